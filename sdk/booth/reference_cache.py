"""What all models of a base model are differences to, kept in the user's cache folder: fetched once, by SHA-256.

At most LIMIT_BYTES stay, but for the one in use; what was not used for longest goes first. Deleting the folder at any
time loses nothing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

import platformdirs

from booth.contract.models import ModelFile
from booth.errors import TransferError
from booth.transport import Transport

LIMIT_BYTES = 16 * 2**30  # some nine of Stable Diffusion 1.5, or three of SDXL
_fetching = threading.Lock()


def folder() -> Path:
    """Where references are kept."""
    return Path(platformdirs.user_cache_dir("booth")) / "references"


@contextmanager
def opened(transport: Transport, file: ModelFile) -> Iterator[mmap.mmap]:
    """The reference's bytes, fetched unless they are here, and hashed in any case.

    Raises TransferError where they do not arrive as recorded, or cannot be kept here.
    """
    if not re.fullmatch("[0-9a-f]{64}", file.sha256) or file.part_sha256 or file.delta:
        raise TransferError(f"The service names a base file for {file.path} that is none. Nothing was fetched.")
    path = folder() / file.sha256
    try:
        with _fetching:  # the files of one model are put together at the same time, and may share a reference
            if not _is_right(path, file):
                _fetch(transport, file, path)
            os.utime(path)
            with path.open("rb") as there:
                mapped = mmap.mmap(there.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise TransferError(
            f"The base model's {file.path} cannot be kept: {error}. Make room for {file.bytes / 2**30:.1f} GiB in "
            f"{folder()}, or name another place with XDG_CACHE_HOME."
        ) from error
    with mapped:
        yield mapped


def _is_right(path: Path, file: ModelFile) -> bool:
    """Whether it is there and holds what it should."""
    try:
        with path.open("rb") as there:
            return path.stat().st_size == file.bytes and _sha256(there) == file.sha256
    except FileNotFoundError:
        return False


def _sha256(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(transport: Transport, file: ModelFile, path: Path) -> None:
    """The file is there, and was checked as it came."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _make_room(path.parent, file.bytes)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    digest = hashlib.sha256()
    try:
        with transport.get_link(file.url) as pieces, partial.open("wb") as out:
            for piece in pieces:
                digest.update(piece)
                out.write(piece)
        if digest.hexdigest() != file.sha256:
            raise TransferError(
                f"The base model's {file.path} arrived with other bytes than were stored (SHA-256). Try again."
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _make_room(place: Path, incoming_bytes: int) -> None:
    """The longest unused go until the rest and what comes are within the limit. Others may do the same meanwhile."""
    found = []
    for path in place.iterdir():
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    kept_bytes = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if kept_bytes + incoming_bytes <= LIMIT_BYTES:
            return
        with suppress(OSError):  # one that is open, where the system forbids to delete those
            path.unlink(missing_ok=True)
        kept_bytes -= size
