"""The one object-store client: boto3 against AWS S3 or any server that speaks its protocol."""

import base64
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from booth.contract.digests import part_ranges
from booth_service.errors import ObjectMissing, StorageError
from booth_service.storage.transfer import Link, Transfer

_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchBucket", "NoSuchUpload"}
_TAKEN = {"412", "PreconditionFailed"}
_NO_UPLOAD = {"NoSuchUpload"}
READ_TRIES = 6
UPLOAD_PART_BYTES, UPLOAD_THREADS = 32 * 2**20, 4
MOST_PARTS = 10_000  # S3's own limit
LINK_S = 900
"""How long a link is good that is used at once; a body may still be on its way after that."""


@dataclass(frozen=True)
class StoredPart:
    """A part of an upload that the store has; `number` counts from 1, `sha256` is hex."""

    number: int
    etag: str
    sha256: str


@dataclass(frozen=True)
class Upload:
    """An upload in parts that was begun: invisible until it is completed."""

    key: str
    id: str


@dataclass(frozen=True)
class Listed:
    """An object as a listing shows it."""

    key: str
    bytes: int
    etag: str


class ObjectStore:
    """Objects of one bucket. Every method raises StorageError, or ObjectMissing where a named key is absent."""

    def __init__(self, bucket: str, endpoint_url: str | None, region: str) -> None:
        self.bucket = bucket
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=region,
            config=Config(
                # "virtual" also keeps links on the bucket's own region, where "auto" sends them round by us-east-1
                s3={"addressing_style": "path" if endpoint_url else "virtual"},
                signature_version="s3v4",
                retries={"mode": "standard", "max_attempts": 8},
                connect_timeout=5,
                read_timeout=60,
                max_pool_connections=32,
            ),
        )
        endpoint = self.client.meta.endpoint_url
        proxy = get_environ_proxies(endpoint).get(endpoint.split(":")[0])
        own_bundle = botocore.session.get_session().get_config_variable("ca_bundle")
        self.transfer = Transfer(proxy, own_bundle or get_cert_path(True))

    def __reduce__(self) -> tuple[type["ObjectStore"], tuple[str, str | None, str]]:
        endpoint = self.client.meta.endpoint_url
        is_aws = "amazonaws.com" in endpoint
        return ObjectStore, (self.bucket, None if is_aws else endpoint, self.client.meta.region_name)

    def sibling(self, bucket: str) -> "ObjectStore":
        """Another bucket of the same server."""
        _, (_, endpoint_url, region) = self.__reduce__()
        return ObjectStore(bucket, endpoint_url, region)

    def ensure_bucket(self) -> None:
        """Create the bucket where it is missing. One that is there asks for no right to list or make any."""
        with _mapped(self.bucket):
            try:
                self.client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if _code(error) not in _MISSING:
                    raise
                self.client.create_bucket(Bucket=self.bucket, **_place_of(self.client.meta.region_name))

    def look(self) -> None:
        """The bucket answers, at the first try and within seconds."""
        with _mapped(self.bucket):
            self._impatient.head_bucket(Bucket=self.bucket)

    @cached_property
    def _impatient(self) -> Any:
        once = Config(connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1})
        meta = self.client.meta
        return boto3.client(
            "s3", endpoint_url=meta.endpoint_url, region_name=meta.region_name, config=meta.config.merge(once)
        )

    def put(self, key: str, body: bytes, content_type: str = "application/octet-stream") -> None:
        """Store bytes; the SDK adds a checksum that the server verifies."""
        with _mapped(key):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=content_type)

    def put_once(self, key: str, body: bytes, content_type: str = "application/json") -> bool:
        """Store bytes unless the key exists (`If-None-Match: *`). True where this call wrote them."""
        try:
            self.client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=content_type, IfNoneMatch="*")
        except ClientError as error:
            if _code(error) in _TAKEN:
                return False
            raise StorageError(f"{key}: {error}") from error
        except BotoCoreError as error:
            raise StorageError(f"{key}: {error}") from error
        return True

    def get(self, key: str, sha256: str | None = None) -> bytes:
        """An object's bytes; with `sha256`, a different content raises StorageError."""
        body = self._read(key)
        if sha256 is not None and hashlib.sha256(body).hexdigest() != sha256:
            raise StorageError(f"{key} does not have the recorded SHA-256 {sha256}")
        return body

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, or fewer where the object ends before."""
        return self._read(key, Range=f"bytes={start}-{start + length - 1}")

    def _read(self, key: str, **asked: str) -> bytes:
        """The SDK tries a request again, but not one whose answer breaks off."""
        with _mapped(key):
            for _ in range(READ_TRIES - 1):
                with contextlib.suppress(ResponseStreamingError, IncompleteReadError, ReadTimeoutError):
                    return bytes(self.client.get_object(Bucket=self.bucket, Key=key, **asked)["Body"].read())
            return bytes(self.client.get_object(Bucket=self.bucket, Key=key, **asked)["Body"].read())

    def size(self, key: str) -> int | None:
        """The object's size in bytes, or None where it does not exist."""
        try:
            return int(self.client.head_object(Bucket=self.bucket, Key=key)["ContentLength"])
        except ClientError as error:
            if _code(error) in _MISSING:
                return None
            raise StorageError(f"{key}: {error}") from error
        except BotoCoreError as error:
            raise StorageError(f"{key}: {error}") from error

    def upload(self, path: Path, key: str) -> None:
        """Store a file, in parallel parts where it is large; one that fails leaves nothing."""
        total_bytes = path.stat().st_size
        if total_bytes <= UPLOAD_PART_BYTES:
            self.put(key, path.read_bytes())
            return
        ranges = part_ranges(total_bytes, max(UPLOAD_PART_BYTES, -(-total_bytes // MOST_PARTS)))

        with self.uploading(key, total_bytes) as put, ThreadPoolExecutor(UPLOAD_THREADS) as pool:

            def send(number: int) -> None:
                start, length = ranges[number - 1]
                with path.open("rb") as file:
                    file.seek(start)
                    put(number, file.read(length))

            list(pool.map(send, range(1, len(ranges) + 1)))  # the first failure cancels what has not begun

    @contextmanager
    def uploading(self, key: str, total_bytes: int) -> Iterator[Callable[[int, bytes], None]]:
        """Begin an upload in parts; the block puts them, (number from 1, body), from any thread.

        The object is there when the block ends; where it raises, neither object nor upload is left.
        """
        upload = self.begin_upload(key)
        parts: list[StoredPart] = []
        try:
            yield lambda number, body: parts.append(
                self.put_part(upload, number, memoryview(body), hashlib.sha256(body).hexdigest())
            )
            self.complete(upload, parts, total_bytes)
        except BaseException:
            self.abort(upload)
            raise

    def download(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Fetch an object to a file; with `sha256`, a different content raises StorageError and leaves no file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with _mapped(key):
            self.client.download_file(self.bucket, key, str(partial), Config=_TRANSFER)
        if sha256 is not None and file_sha256(partial) != sha256:
            partial.unlink()
            raise StorageError(f"{key}: the stored bytes do not have the recorded SHA-256 {sha256}")
        partial.rename(path)

    def begin_upload(self, key: str) -> Upload:
        """Begin an upload in parts. It ends with `complete`, `abort`, or a sweep."""
        with _mapped(key):
            begun = self.client.create_multipart_upload(Bucket=self.bucket, Key=key, ChecksumAlgorithm="SHA256")
        return Upload(key, begun["UploadId"])

    def put_part(self, upload: Upload, number: int, body: memoryview, sha256: str) -> StoredPart:
        """Store part `number` (from 1; 5 MiB or more but for the last) from memory. Safe from many threads.

        `sha256` is the body's, in hex: a store that checks it (AWS does) refuses what arrives otherwise.
        """
        asked = {"Key": upload.key, "UploadId": upload.id, "PartNumber": number}
        return StoredPart(number, self._send(f"{upload.key} part {number}", "upload_part", asked, body, sha256), sha256)

    def put_from(self, key: str, body: memoryview, sha256: str) -> None:
        """Store an object from memory. Safe from many threads; `sha256` is as in `put_part`."""
        self._send(key, "put_object", {"Key": key}, body, sha256)

    def _send(self, what: str, operation: str, asked: dict[str, Any], body: memoryview, sha256: str) -> str:
        """The ETag of a body that a signed link has taken, its checksum signed too."""
        checksum = _base64(sha256)
        parameters = {"Bucket": self.bucket, **asked, "ChecksumSHA256": checksum}

        def link() -> Link:
            url = self.client.generate_presigned_url(operation, Params=parameters, ExpiresIn=LINK_S)
            return Link(url, {"x-amz-checksum-sha256": checksum})

        return self.transfer.put(what, link, body)

    def complete(self, upload: Upload, parts: Sequence[StoredPart], total_bytes: int) -> None:
        """The object is there, whole. Raises StorageError."""
        listed = [
            {
                "PartNumber": part.number,
                "ETag": part.etag,
                "ChecksumSHA256": _base64(part.sha256),
            }
            for part in sorted(parts, key=lambda part: part.number)
        ]
        try:
            with _mapped(upload.key):
                self.client.complete_multipart_upload(
                    Bucket=self.bucket, Key=upload.key, UploadId=upload.id, MultipartUpload={"Parts": listed}
                )
        except ObjectMissing:  # a first request did it, and its answer was lost
            if self.size(upload.key) != total_bytes:
                raise

    def abort(self, upload: Upload) -> None:
        """The upload and its parts are gone; one that is gone already is no error."""
        try:
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload.key, UploadId=upload.id)
        except ClientError as error:
            if _code(error) not in _NO_UPLOAD:
                raise StorageError(f"{upload.key}: {error}") from error
        except BotoCoreError as error:
            raise StorageError(f"{upload.key}: {error}") from error

    def uploads(self, prefix: str) -> Iterator[Upload]:
        """Uploads below a prefix that are neither completed nor aborted. For sweeps."""
        with _mapped(prefix):
            pages = self.client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
                yield from (Upload(item["Key"], item["UploadId"]) for item in page.get("Uploads", []))

    def get_range_into(self, key: str, start: int, view: memoryview) -> None:
        """Fill `view` with the object's bytes from `start` on. Safe from many threads; raises where it ends before."""
        self.transfer.get_into(key, lambda: Link(self.download_link(key, LINK_S), {}), start, view)

    def delete(self, *keys: str) -> None:
        """Remove objects; absent ones are no error."""
        for start in range(0, len(keys), 1000):
            batch = [{"Key": key} for key in keys[start : start + 1000]]
            with _mapped(keys[start]):
                self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys below a prefix. For sweeps and tests; nothing decides by listing."""
        yield from (listed.key for listed in self.listing(prefix))

    def folders(self, prefix: str) -> Iterator[str]:
        """What lies directly below a prefix that ends with "/", as prefixes that do too. For sweeps."""
        with _mapped(prefix):
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/"):
                yield from (item["Prefix"] for item in page.get("CommonPrefixes", []))

    def listing(self, prefix: str) -> Iterator[Listed]:
        """All objects below a prefix, with size and ETag. For operators' commands; nothing decides by listing."""
        with _mapped(f"{self.bucket}/{prefix}"):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                yield from (Listed(item["Key"], item["Size"], item["ETag"]) for item in page.get("Contents", []))

    def copy_from(self, bucket: str, listed: Listed, key: str) -> None:
        """Store a copy of another bucket's object, made by the server. Raises StorageError where it has changed."""
        source = {"Bucket": bucket, "Key": listed.key}
        with _mapped(f"{bucket}/{listed.key}"):
            self.client.copy(source, self.bucket, key, ExtraArgs={"CopySourceIfMatch": listed.etag}, Config=_TRANSFER)

    def upload_link(self, key: str, expires_s: int) -> str:
        """A presigned PUT."""
        parameters = {"Bucket": self.bucket, "Key": key}
        return str(self.client.generate_presigned_url("put_object", Params=parameters, ExpiresIn=expires_s))

    def download_link(self, key: str, expires_s: int) -> str:
        """A presigned GET."""
        parameters = {"Bucket": self.bucket, "Key": key}
        return str(self.client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=expires_s))


_TRANSFER = TransferConfig(multipart_threshold=64 * 2**20, multipart_chunksize=64 * 2**20, max_concurrency=8)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _place_of(region: str) -> dict[str, Any]:
    """AWS makes a bucket in us-east-1 where nothing is said, and refuses that very name where it is."""
    return {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def _mapped(key: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        kind = ObjectMissing if _code(error) in _MISSING else StorageError
        raise kind(f"{key}: {error}") from error
    except BotoCoreError as error:
        raise StorageError(f"{key}: {error}") from error
