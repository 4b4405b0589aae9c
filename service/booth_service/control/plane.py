"""What the control plane is made of. Built once in `app.py` and passed to whoever acts."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx2

from booth_service.control.calls import Calls
from booth_service.control.database import Database
from booth_service.control.launcher import Launcher
from booth_service.control.serve_calls import ServeCalls
from booth_service.control.tokens import Tokenizers
from booth_service.settings import Settings
from booth_service.storage.s3 import ObjectStore


def utc_now() -> datetime:
    """The clock of production; tests pass their own."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Plane:
    """SQL, object store, Ray, Serve and clock of one control plane.

    `serve` is for the event loop and passes through `serve_calls`, `serve_now` for threads. `handed_over` are
    manifests of models that replicas hold already and SQL does not show yet. `calls` are users' calls for pictures.
    """

    settings: Settings
    database: Database
    store: ObjectStore
    tokenizers: Tokenizers
    launcher: Launcher
    serve: httpx2.AsyncClient
    now: Callable[[], datetime] = utc_now
    calls: Calls = field(default_factory=Calls)
    serve_calls: ServeCalls = field(default_factory=lambda: ServeCalls(httpx2.AsyncHTTPTransport()))
    serve_now: httpx2.Client = field(default_factory=lambda: httpx2.Client(trust_env=False))
    handed_over: set[str] = field(default_factory=set)
    began_s: float = field(default_factory=time.monotonic)
