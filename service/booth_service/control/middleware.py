"""Round every request: an id that every answer carries, and a limit on what is read."""

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from booth.contract import limits
from booth_service.control.problems import ProblemError, answer

MAX_BODY_BYTES = 2**20  # photos go to the object store, so that hardly a body here is large
MAX_PICTURE_BODY_BYTES = MAX_BODY_BYTES + limits.MAX_INIT_IMAGE_BYTES * 7 // 5  # base64, with its line breaks
_LARGER = {
    re.compile(r"/v1/(models|base-models)/[^/]+/generate"): MAX_PICTURE_BODY_BYTES,
    re.compile(r"/v1/(models|base-models)/[^/]+/generations"): limits.MAX_BULK_BYTES,
    re.compile(r"/v1/groups"): limits.MAX_GROUP_BYTES,
}
REQUEST_ID_HEADER = "X-Request-Id"


class TooLarge(ProblemError):
    """The body is longer than any request of this API."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__("bad_request", f"The body has more than {limit_bytes} bytes.", remedy="Send less.")


class RequestEnvelope:
    """ASGI middleware: `scope["state"]["request_id"]` is set, sent back, and bodies end at their limit."""

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

        length = Headers(scope=scope).get("content-length", "0")
        limit_bytes = body_limit_bytes(scope["path"])
        if not length.isdigit() or int(length) > limit_bytes:
            await answer(TooLarge(limit_bytes), request_id)(scope, receive, send_with_id)
            return
        await self.app(scope, _limited(receive, limit_bytes), send_with_id)


def body_limit_bytes(path: str) -> int:
    """The longest body that is read for this path."""
    return next((limit for pattern, limit in _LARGER.items() if pattern.fullmatch(path)), MAX_BODY_BYTES)


def _limited(receive: Receive, limit_bytes: int) -> Receive:
    """The same body; TooLarge is raised where a chunked one goes on and on."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit_bytes:
            raise TooLarge(limit_bytes)
        return message

    return limited
