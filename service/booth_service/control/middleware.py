"""Round every request: an id that every answer carries, and a limit on what is read."""

import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from booth_service.control.problems import ProblemError, answer

MAX_BODY_BYTES = 2**20  # photos go to the object store, so no body here is large
REQUEST_ID_HEADER = "X-Request-Id"


class TooLarge(ProblemError):
    """The body is longer than any request of this API."""

    def __init__(self) -> None:
        super().__init__("bad_request", f"The body has more than {MAX_BODY_BYTES} bytes.", remedy="Send less.")


class RequestEnvelope:
    """ASGI middleware: `scope["state"]["request_id"]` is set, sent back, and bodies end at MAX_BODY_BYTES."""

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
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            await answer(TooLarge(), request_id)(scope, receive, send_with_id)
            return
        await self.app(scope, _limited(receive), send_with_id)


def _limited(receive: Receive) -> Receive:
    """The same body; TooLarge is raised where a chunked one goes on and on."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY_BYTES:
            raise TooLarge()
        return message

    return limited
