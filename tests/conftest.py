"""Real parts for the tests: a SeaweedFS server, a bucket in it, and the whole one-machine stack."""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

# Before torch is loaded anywhere: tiny models gain nothing from more threads, and lose much beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from one_machine import OneMachine

from booth_service.local import object_store as seaweedfs
from booth_service.local.errors import StackError
from booth_service.local.part import Part, Signals
from booth_service.storage.s3 import ObjectStore

REGION = "us-east-1"

# A run of the suite finds what the run before it found: examples come from the test's own text, and none are kept.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


@dataclass(frozen=True)
class S3Server:
    """Where the tests' SeaweedFS answers."""

    endpoint_url: str
    credentials: seaweedfs.Credentials
    region: str = REGION


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS of this test run's own, with its credentials in AWS_* as boto3 expects them."""
    try:
        seaweedfs.weed_binary()
    except StackError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("s3")
    chosen = seaweedfs.choose_ports({})
    credentials = seaweedfs.Credentials("boothtests", secrets.token_hex(16))
    server = Part(seaweedfs.spec(folder, chosen, credentials, folder / "weed.log"))
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", credentials.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", credentials.secret_key)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        patch.delenv("AWS_PROFILE", raising=False)
        try:
            server.wait_ready(Signals())
            yield S3Server(seaweedfs.endpoint_url(chosen), credentials)
        finally:
            server.stop(Signals())
            seaweedfs.remove_sockets(chosen)


@pytest.fixture(scope="session")
def object_store(s3_server: S3Server) -> ObjectStore:
    """An empty bucket for this test run; tests keep apart by prefix."""
    store = ObjectStore(f"test-{secrets.token_hex(4)}", s3_server.endpoint_url, s3_server.region)
    store.ensure_bucket()
    return store


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneMachine]:
    """The whole one-machine stack, started once for the test run. Mark the test with `ray`."""
    machine = OneMachine(tmp_path_factory.mktemp("stack") / "data")
    machine.start()
    try:
        yield machine
    finally:
        assert machine.stop() == 0, machine.log.read_text()
