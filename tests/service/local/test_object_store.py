"""The SeaweedFS of the one-machine stack keeps what is stored, asks for credentials and runs only when verified."""

from pathlib import Path

import boto3
import psutil
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from booth_service.local import object_store as seaweedfs
from booth_service.local.errors import StackError
from booth_service.local.part import Part, Signals
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

AT_ONCE = Signals()
AT_ONCE.hurry.set()


def test_conditional_put_has_one_winner(object_store: ObjectStore) -> None:
    assert object_store.put_once("once/manifest.json", b"first")
    assert not object_store.put_once("once/manifest.json", b"second")
    assert object_store.get("once/manifest.json") == b"first"


def test_anonymous_requests_are_refused(object_store: ObjectStore) -> None:
    object_store.put("private/a", b"secret")
    endpoint = object_store.client.meta.endpoint_url
    stranger = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        config=Config(signature_version=UNSIGNED, s3={"addressing_style": "path"}),
    )
    with pytest.raises(ClientError) as refused:
        stranger.get_object(Bucket=object_store.bucket, Key="private/a")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_objects_survive_a_kill_and_other_ports(s3_server: object, tmp_path: Path) -> None:
    credentials = s3_server.credentials
    first, second = seaweedfs.choose_ports({}), seaweedfs.choose_ports({})
    server = Part(seaweedfs.spec(tmp_path, first, credentials, tmp_path / "weed.log"))
    server.start()
    try:
        server.wait_ready(Signals())
        store = ObjectStore("kept", seaweedfs.endpoint_url(first), "us-east-1")
        store.ensure_bucket()
        store.put("a", b"x" * 100_000)
        addresses = [c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"]
        assert set(addresses) == {"127.0.0.1"}
    finally:
        server.stop(AT_ONCE)
        seaweedfs.remove_sockets(first)

    server = Part(seaweedfs.spec(tmp_path, second, credentials, tmp_path / "weed.log"))
    server.start()
    try:
        server.wait_ready(Signals())
        assert ObjectStore("kept", seaweedfs.endpoint_url(second), "us-east-1").get("a") == b"x" * 100_000
    finally:
        server.stop(Signals())
        seaweedfs.remove_sockets(second)
    assert (tmp_path / "weed.old.log").exists()


def test_an_unknown_binary_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seaweedfs, "_KNOWN_SHA256", {"0" * 64})
    with pytest.raises(StackError, match=r"SHA-256 [0-9a-f]{64}, which is none of the published ones"):
        seaweedfs.weed_binary()
