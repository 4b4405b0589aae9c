"""Bytes arrive whole through a store that is often away, and what cannot arrive is said; links suit AWS too."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from fault_proxy import FaultProxy, fault_proxy
from own_s3 import S3Server

from booth_service.errors import ObjectMissing, StorageError
from booth_service.storage import transfer
from booth_service.storage.s3 import ObjectStore, Upload
from booth_service.storage.transfer import Link, Transfer

PART = 5 * 2**20


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(s3_server.endpoint_url, slow_down=0.2, reset=0.3) as proxy:
        yield proxy


@pytest.mark.s3
def test_parts_and_ranges_come_through_faults_whole(
    proxy: FaultProxy, s3_server: S3Server, object_store: ObjectStore
) -> None:
    store = ObjectStore(object_store.bucket, proxy.endpoint_url, s3_server.region)
    body = bytes(range(256)) * (3 * PART // 256) + b"tail"
    upload = store.begin_upload("transfer/parts")
    views = [memoryview(body)[start : start + PART] for start in range(0, len(body), PART)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(
            pool.map(
                lambda number: store.put_part(
                    upload, number + 1, views[number], hashlib.sha256(views[number]).hexdigest()
                ),
                range(len(views)),
            )
        )
    assert object_store.size("transfer/parts") is None
    store.complete(upload, parts, len(body))
    assert object_store.get("transfer/parts") == body
    got = memoryview(bytearray(len(body) - 7))
    with ThreadPoolExecutor(4) as pool:
        cuts = range(0, len(got), PART)
        list(pool.map(lambda at: store.get_range_into("transfer/parts", 7 + at, got[at : at + PART]), cuts))
    assert got == body[7:]
    for _ in range(12):
        assert store.get_range("transfer/parts", 5, 9) == body[5:14]
        assert hashlib.sha256(store.get("transfer/parts")).digest() == hashlib.sha256(body).digest()
    assert proxy.counts["slow down"] >= 3
    assert len({fault for fault in proxy.counts if "reset" in fault}) == 3, proxy.counts
    store.complete(upload, parts, len(body))  # as a repetition whose first answer was lost
    store.abort(upload)


@pytest.mark.s3
def test_what_is_not_there_is_said_at_once(object_store: ObjectStore) -> None:
    with pytest.raises(ObjectMissing, match="transfer/none: answered 404"):
        object_store.get_range_into("transfer/none", 0, memoryview(bytearray(3)))
    object_store.put("transfer/short", b"12345")
    with pytest.raises(StorageError, match="transfer/short"):
        object_store.get_range_into("transfer/short", 3, memoryview(bytearray(3)))
    gone = Upload("transfer/none", "0" * 32)
    with pytest.raises(StorageError, match="transfer/none part 1: answered 404 NoSuchUpload"):
        object_store.put_part(gone, 1, memoryview(b"x"), hashlib.sha256(b"x").hexdigest())
    with pytest.raises(StorageError, match="NoSuchUpload"):
        object_store.complete(gone, [], 3)
    object_store.abort(gone)


class Away(BaseHTTPRequestHandler):
    """Answers with the status that its server has, and counts."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        status, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "body", "is_tried_again"),
    [
        (503, b"", True),
        (500, b"<Error><Code>InternalError</Code></Error>", True),
        (400, b"<Error><Code>RequestTimeout</Code></Error>", True),
        (400, b"<Error><Code>BadDigest</Code></Error>", True),
        (403, b"<Error><Code>AccessDenied</Code></Error>", False),
        (301, b"<Error><Code>PermanentRedirect</Code></Error>", False),
    ],
)
def test_only_what_may_pass_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, is_tried_again: bool
) -> None:
    """Every try has a link of its own."""
    monkeypatch.setattr(transfer, "RETRY_FOR_S", 1.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Away)
    server.asked, server.answer = [], (status, body)  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    links = iter(range(100))

    def link() -> Link:
        return Link(f"http://127.0.0.1:{server.server_port}/{next(links)}", {})

    with pytest.raises(StorageError, match=f"x: answered {status}"):
        Transfer().put("x", link, memoryview(b"body"))
    server.shutdown()
    asked = server.asked  # type: ignore[attr-defined]
    assert (len(asked) > 1) == is_tried_again
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_links_to_aws_are_the_buckets_own_in_its_region(monkeypatch: pytest.MonkeyPatch, region: str) -> None:
    """Nothing is sent: the link is made here. A session's token goes with it, and so does the body's digest."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials of the tests' own server
    sent = []
    store = ObjectStore("bucket", None, region)
    monkeypatch.setattr(store.transfer, "put", lambda what, link, body: sent.append(link()) or "etag")
    digest = hashlib.sha256(b"x").hexdigest()
    store.put_part(Upload("a b/k", "id"), 3, memoryview(b"x"), digest)
    (link,) = sent
    address, asked = urlsplit(link.url), parse_qs(urlsplit(link.url).query)
    assert address.scheme == "https"
    known = ["bucket.s3.amazonaws.com"] if region == "us-east-1" else []  # the same place, by its older name
    assert address.netloc in [f"bucket.s3.{region}.amazonaws.com", *known]
    assert address.path == "/a%20b/k"
    assert asked["X-Amz-Security-Token"] == ["session"]
    assert asked["X-Amz-SignedHeaders"] == ["host;x-amz-checksum-sha256"]
    assert asked["partNumber"] == ["3"]
    assert list(link.headers) == ["x-amz-checksum-sha256"]
