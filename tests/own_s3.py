"""A SeaweedFS of one's own, for a test run, a chaos row or a benchmark."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3

from booth_service.local import object_store as seaweedfs
from booth_service.local.part import Part, Signals
from booth_service.storage.s3 import ObjectStore

REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """Where it answers."""

    endpoint_url: str
    credentials: seaweedfs.Credentials
    region: str = REGION

    def empty_bucket(self, endpoint_url: str | None = None) -> ObjectStore:
        """A new bucket, through another address of the same server where one is given."""
        store = ObjectStore(f"test-{secrets.token_hex(4)}", self.endpoint_url, self.region)
        store.ensure_bucket()
        return ObjectStore(store.bucket, endpoint_url, self.region) if endpoint_url else store


@contextmanager
def own_s3(folder: Path) -> Iterator[S3Server]:
    """The server, with its data in `folder` and its credentials in AWS_* as boto3 expects, while the block runs."""
    chosen = seaweedfs.choose_ports({})
    credentials = seaweedfs.Credentials("boothtests", secrets.token_hex(16))
    server = Part(seaweedfs.spec(folder, chosen, credentials, folder / "weed.log"))
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    server.start()
    try:
        server.wait_ready(Signals())
        _set_aws({"AWS_ACCESS_KEY_ID": credentials.access_key, "AWS_SECRET_ACCESS_KEY": credentials.secret_key})
        yield S3Server(seaweedfs.endpoint_url(chosen), credentials)
    finally:
        _set_aws(before)
        server.stop(Signals())
        seaweedfs.remove_sockets(chosen)


def _set_aws(variables: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(variables)
    boto3.DEFAULT_SESSION = None  # it keeps the credentials that it found first
