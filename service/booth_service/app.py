"""The control plane's composition root: `uvicorn booth_service.app:create_app --factory`."""

import fcntl
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx2
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import make_url

from booth_service.control import web
from booth_service.control.database import Database
from booth_service.control.launcher import Launcher
from booth_service.control.plane import Plane
from booth_service.control.reconciler import Reconciler
from booth_service.control.serve_calls import ServeCalls
from booth_service.control.tokens import Tokenizers
from booth_service.settings import Settings, driver_environment
from booth_service.settings import settings as settings_of_process
from booth_service.storage.s3 import ObjectStore


def create_app(settings: Settings | None = None, *, reconcile: bool = True) -> FastAPI:
    """The application; database, bucket and reconciler start with it. Raises ValueError without a stack secret.

    `reconcile=False` leaves out the background loop: jobs are stored, and nothing starts them.
    """
    chosen = settings or settings_of_process()
    if not chosen.stack_secret.get_secret_value():
        raise ValueError("BOOTH_STACK_SECRET is empty. Set it to a long random text, the same for cluster and Serve.")

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("booth_service").setLevel(logging.INFO)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with only_one(chosen.database_url):
            plane = await run_in_threadpool(build_plane, chosen)
            app.state.plane = plane
            reconciler = Reconciler(plane)
            if reconcile:
                reconciler.start()
            try:
                yield
            finally:
                if reconcile:
                    await run_in_threadpool(reconciler.stop)
                await plane.serve.aclose()
                plane.serve_now.close()
                plane.database.close()

    return web.build(lifespan)


def build_plane(settings: Settings) -> Plane:
    """All parts, with the database migrated and the bucket there."""
    database = Database(settings.database_url)
    database.migrate()
    store = ObjectStore(settings.s3_bucket, settings.s3_endpoint_url, settings.s3_region)
    store.ensure_bucket()
    serve_calls = ServeCalls(
        httpx2.AsyncHTTPTransport(trust_env=False, limits=httpx2.Limits(max_keepalive_connections=20))
    )
    return Plane(
        settings=settings,
        database=database,
        store=store,
        tokenizers=Tokenizers(store),
        launcher=Launcher(settings.ray_dashboard_url, driver_environment(settings)),
        serve=httpx2.AsyncClient(transport=serve_calls),
        serve_calls=serve_calls,
    )


@contextmanager
def only_one(database_url: str) -> Iterator[None]:
    """While the block runs, no other control plane can begin one on the same SQLite file. Raises RuntimeError."""
    path = make_url(database_url).database
    if not database_url.startswith("sqlite") or path in (None, ":memory:"):
        yield
        return
    descriptor = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"Another control plane runs on {path}. Stop it first.") from None
        yield
    finally:
        os.close(descriptor)
