"""Where a base model's files come from: a folder, a bucket, or the hub at one commit. Files are read, code never is."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from booth_service.errors import BaseModelError, ObjectMissing, StorageError
from booth_service.storage.s3 import Listed, ObjectStore

DEFAULT_HUB_REVISION = "main"
_HUB_ID = r"[\w.-]+/[\w.-]+"


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. `sha256` is what the source says of it, or None where it says nothing.

    `read(start, length)` gives bytes, `put(key)` stores the whole file under a key of our bucket.
    """

    total_bytes: int
    sha256: str | None
    read: Callable[[int, int], bytes]
    put: Callable[[str], None]

    def whole(self) -> bytes:
        """All bytes; for small files."""
        return self.read(0, self.total_bytes) if self.total_bytes else b""


@dataclass(frozen=True)
class Source:
    """Files by path. `name` is how the operator named it, `revision` the hub's commit."""

    name: str
    revision: str | None
    files: dict[str, SourceFile]


def source_of(name: str, revision: str | None, store: ObjectStore) -> Source:
    """The source that this names. Raises BaseModelError, saying why there is none and what to do."""
    is_folder, is_bucket = Path(name).is_dir(), name.startswith("s3://")
    if revision is not None and (is_folder or is_bucket):
        raise BaseModelError(f"{name} is not of the hub, so it has no revision {revision!r}. Leave --revision out.")
    if is_folder:
        return folder(Path(name), store)
    if is_bucket:
        return bucket(name, store)
    if re.fullmatch(_HUB_ID, name):
        return hub(name, revision or DEFAULT_HUB_REVISION, store)
    raise BaseModelError(f"{name!r} is no folder here, no s3://bucket/prefix and no hub id such as owner/name")


def split_revision(given: str) -> tuple[str, str | None]:
    """A hub id and its revision out of owner/name@revision; any other source as it is."""
    if Path(given).is_dir() or given.startswith("s3://"):
        return given, None
    name, _, revision = given.partition("@")
    return name, revision or None


def folder(root: Path, store: ObjectStore) -> Source:
    """A folder of this machine."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return Source(str(root), None, {path.relative_to(root).as_posix(): _local(path, None, store) for path in paths})


def bucket(name: str, store: ObjectStore) -> Source:
    """A prefix of a bucket on the same server. Files go from bucket to bucket there, and never onto a disk here."""
    bucket_name, _, prefix = name.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
    there = store.sibling(bucket_name)
    try:
        listed = list(there.listing(prefix))
    except ObjectMissing:
        raise BaseModelError(f"{name}: there is no bucket {bucket_name!r}. Check the name and the region.") from None
    except StorageError as error:
        raise BaseModelError(f"{name} cannot be listed: {error.detail}. Check the credentials (AWS_...).") from error
    if not listed:
        raise BaseModelError(
            f"{name}: the bucket has nothing below {prefix!r}. Give the prefix that the folder lies under."
        )
    return Source(name, None, {item.key.removeprefix(prefix): _stored(there, item, store) for item in listed})


def hub(name: str, revision: str, store: ObjectStore) -> Source:
    """A repository of the hub at one commit, which `revision` (branch, tag or commit) leads to now.

    The hub says the SHA-256 of large files, so that those which are stored already are not fetched.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise BaseModelError(f"{name} looks like a hub id; it needs pip install huggingface_hub") from None
    api = HfApi()
    info = _from_hub(name, lambda: api.model_info(name, revision=revision, files_metadata=True))
    commit = str(info.sha)

    def file(path: str, total_bytes: int, sha256: str | None) -> SourceFile:
        return _lazy(
            lambda: Path(_from_hub(name, lambda: api.hf_hub_download(name, path, revision=commit))),
            total_bytes,
            sha256,
            store,
        )

    listed = info.siblings or []
    files = {each.rfilename: file(each.rfilename, each.size or 0, each.lfs and each.lfs.sha256) for each in listed}
    return Source(name, commit, files)


def of_bytes(body: bytes, store: ObjectStore) -> SourceFile:
    """A file that is made here."""
    return SourceFile(
        total_bytes=len(body),
        sha256=None,
        read=lambda start, length: body[start : start + length],
        put=lambda key: store.put(key, body),
    )


def _from_hub(name: str, ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception as error:  # its client's errors have no common base
        raise BaseModelError(f"{name} could not be fetched from the hub: {error}") from error


def _local(path: Path, sha256: str | None, store: ObjectStore) -> SourceFile:
    return _lazy(lambda: path, path.stat().st_size, sha256, store)


def _lazy(where: Callable[[], Path], total_bytes: int, sha256: str | None, store: ObjectStore) -> SourceFile:
    """A local file that is asked for when it is first read."""

    def read(start: int, length: int) -> bytes:
        with where().open("rb") as file:
            file.seek(start)
            return file.read(length)

    return SourceFile(total_bytes, sha256, read, lambda key: store.upload(where(), key))


def _stored(there: ObjectStore, item: Listed, store: ObjectStore) -> SourceFile:
    return SourceFile(
        total_bytes=item.bytes,
        sha256=None,
        read=lambda start, length: there.get_range(item.key, start, length),
        put=lambda key: store.copy_from(there.bucket, item, key),
    )
