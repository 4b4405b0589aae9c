"""Round every request: an id that every answer carries, and a limit on what is read."""

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from booth.contract import limits
from booth_service.control.problems import ProblemError, answer

MAX_BODY_BYTES = 2**20  # photos go to the object store, so that bodies are small but for what drawing starts from
MAX_PICTURE_BODY_BYTES = MAX_BODY_BYTES + limits.MAX_INIT_IMAGE_BYTES * 7 // 5  # base64, with its line breaks
_PICTURE_ROUTES = re.compile(r"/v1/(models|base-models)/[^/]+/generate")
REQUEST_ID_HEADER = "X-Request-Id"


class TooLarge(ProblemError):
    """The body is longer than any request of this route."""

    def __init__(self, most: int) -> None:
        super().__init__("bad_request", f"The body has more than {most} bytes.", remedy="Send less.")


class RequestEnvelope:
    """ASGI middleware: `scope["state"]["request_id"]` is set, sent back, and bodies end at their route's limit."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req-{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        most = MAX_PICTURE_BODY_BYTES if _PICTURE_ROUTES.fullmatch(scope["path"]) else MAX_BODY_BYTES
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > most:
            await answer(TooLarge(most), request_id)(scope, receive, send_with_id)
            return
        await self.app(scope, _limited(receive, most), send_with_id)


def _limited(receive: Receive, most: int) -> Receive:
    """The same body; TooLarge is raised where a chunked one goes on and on."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise TooLarge(most)
        return message

    return limited
