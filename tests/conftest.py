"""Real parts for the tests: a SeaweedFS server, a bucket in it, and the whole one-machine stack."""

import os
from collections.abc import Iterator

# Before torch is loaded anywhere: tiny models gain nothing from more threads, and lose much beside other work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from one_machine import OneMachine
from own_s3 import S3Server, own_s3

from booth_service.local import object_store as seaweedfs
from booth_service.local.errors import StackError
from booth_service.storage.s3 import ObjectStore

# A run of the suite finds what the run before it found: examples come from the test's own text, and none are kept.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS of this test run's own, with its credentials in AWS_* as boto3 expects them."""
    try:
        seaweedfs.weed_binary()
    except StackError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))
    with own_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def object_store(s3_server: S3Server) -> ObjectStore:
    """An empty bucket for this test run; tests keep apart by prefix."""
    return s3_server.empty_bucket()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneMachine]:
    """The whole one-machine stack, started once for the test run. Mark the test with `ray`."""
    machine = OneMachine(tmp_path_factory.mktemp("stack") / "data")
    machine.start()
    try:
        yield machine
    finally:
        assert machine.stop() == 0, machine.log.read_text()
