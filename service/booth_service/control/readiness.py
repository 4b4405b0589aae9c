"""Whether the control plane can do its work: database and bucket must answer, Ray and Serve may be away for a while.

Anyone may ask, as Kubernetes does: the answer holds no address and no error text, and the parts are asked at most once
a second, however many ask.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx2

if TYPE_CHECKING:
    from booth_service.control.plane import Plane

OK, AWAY = "ok", "no answer"
WITHIN_S = 4.0
KEPT_S = 1.0
SERVE_TIMEOUT_S = 2.0
SERVE_HEALTH_PATH = "/-/healthz"  # of Serve's proxy itself: a replica that is scaled to zero must not start for it

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Of each part "ok" or "no answer"."""

    database: str
    bucket: str
    ray: str
    serve: str

    @property
    def is_ready(self) -> bool:
        return self.database == self.bucket == OK

    @property
    def status_code(self) -> int:
        return 200 if self.is_ready else 503


class Readiness:
    """What the parts answered last. Changes are logged, with the reason."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._parts: Parts | None = None
        self._asked_at = float("-inf")

    async def look(self, plane: Plane) -> Parts:
        """What the parts answer now, or answered within the last second."""
        async with self._lock:
            if self._parts is None or time.monotonic() - self._asked_at > KEPT_S:
                found = await ask(plane)
                for name, reason in found.items():
                    if self._parts is None or getattr(self._parts, name) != _said(reason):
                        logger.info("%s: %s", name, reason or "answers")
                self._parts = Parts(**{name: _said(reason) for name, reason in found.items()})
                self._asked_at = time.monotonic()
            return self._parts


async def ask(plane: Plane) -> dict[str, str | None]:
    """Name of each part -> why it gives no answer, None where it does."""
    reasons = await asyncio.gather(
        _in_time(asyncio.to_thread(_reason, plane.database.look)),
        _in_time(asyncio.to_thread(_reason, plane.store.look)),
        _in_time(asyncio.to_thread(plane.launcher.refusal)),
        _in_time(asyncio.to_thread(_serve_refusal, plane.settings.serve_url)),
    )
    return dict(zip(("database", "bucket", "ray", "serve"), reasons, strict=True))


def _reason(look: Callable[[], None]) -> str | None:
    try:
        look()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _serve_refusal(serve_url: str) -> str | None:
    """Not over the plane's own client, where calls mean pictures."""
    try:
        answer = httpx2.get(serve_url.rstrip("/") + SERVE_HEALTH_PATH, timeout=SERVE_TIMEOUT_S, trust_env=False)
    except httpx2.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    return None if answer.status_code == 200 else f"it answered {answer.status_code}"


async def _in_time(look: Awaitable[str | None]) -> str | None:
    """The reason that `look` finds, or that it took too long."""
    try:
        return await asyncio.wait_for(look, WITHIN_S)
    except TimeoutError:
        return f"nothing within {WITHIN_S:.0f} s"


def _said(reason: str | None) -> str:
    return OK if reason is None else AWAY
