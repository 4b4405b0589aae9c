"""Files of a node by content: each is stored once, folders are links to them, what was not used for longest goes.

    blobs/<sha256>     a whole file, checked when it came
    partial/<sha256>   one on its way, locked by the process that fetches it
    building/<name>    a folder on its way, locked by the process that builds it
    folders/<name>     a complete folder, locked (shared) by every process that uses it, until that process ends
    lock               held while links come and go, never while bytes travel

All locks are flock(2)'s: they end with their process, kill -9 included. So a lock that can be had means that nobody is
at it any more, and whatever lies under it is a leftover. The folder must be on this machine's own disk.
"""

import hashlib
import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from booth.contract.attempts import StoredFile
from booth_service.errors import StorageError
from booth_service.storage import locks

Fetch = Callable[[StoredFile, memoryview], None]

FETCH_THREADS = 4
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class BlobCache:
    """A cache below `root` of at most `limit_bytes`, but that what is in use stays, however much it is.

    `fetch` fills memory with a file's bytes, or raises StorageError where they are not the recorded ones.
    """

    root: Path
    limit_bytes: int
    fetch: Fetch

    def folder(self, name: str, files: Sequence[StoredFile]) -> Path:
        """The folder that holds these files. It stays as it is as long as this process lives.

        Each file's length and time are looked at in every call: one that was cut, or written to since it was checked,
        is fetched again, and so is everything after a restart of the machine, which may lose what was written last.
        A bit that turns on the disk itself is not seen. Raises StorageError, OSError.
        """
        self._prepare()
        folder = self.root / "folders" / name
        while not locks.hold(folder):
            self._build(folder, files)
        damaged = [file for file in files if not is_whole(folder / file.path, file)]
        if damaged:
            self._put(damaged, folder)
        os.utime(folder)
        return folder

    def _prepare(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.root.lstat().st_uid != os.getuid():
            raise StorageError(f"{self.root} belongs to another user, who could put other weights there")
        for part in ("blobs", "partial", "building", "folders"):
            (self.root / part).mkdir(exist_ok=True)

    def _build(self, folder: Path, files: Sequence[StoredFile]) -> None:
        """The folder is there, complete, whoever made it."""
        missing = {file.sha256: file.bytes for file in files if not is_whole(self._blob(file), file)}
        with self._alone():
            self._clear_leftovers()
            self._make_room(sum(missing.values()))
            building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=self.root / "building"))
            lock = locks.of_folder(building)
        is_ours = False
        try:
            self._put(files, building)
            with self._alone():
                if is_ours := not folder.exists():  # else another process was first; its folder has the same content
                    building.rename(folder)
                    locks.keep(folder, lock)
                    self._make_room(0)  # what came meanwhile may have been more than was asked for
        finally:
            if not is_ours:
                with self._alone():
                    shutil.rmtree(building, ignore_errors=True)
                    os.close(lock)

    def _put(self, files: Sequence[StoredFile], folder: Path) -> None:
        """Every file lies in the folder, in place of what was there."""
        with ThreadPoolExecutor(FETCH_THREADS) as pool:
            for done in [pool.submit(self._link, file, folder / file.path) for file in files]:
                done.result()

    def _link(self, file: StoredFile, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        blob = self._blob(file)
        while True:
            with self._alone():
                if is_whole(blob, file):
                    new.unlink(missing_ok=True)
                    try:
                        os.link(blob, new)
                    except OSError:  # a file system without hard links
                        os.symlink(blob.absolute(), new)
                    new.replace(path)
                    return
            self._fetch(file)

    def _fetch(self, file: StoredFile) -> None:
        """The blob is whole. Of several processes one fetches it, and the others wait for that one."""
        blob = self._blob(file)
        partial = self.root / "partial" / file.sha256
        with locks.claimed(partial):
            if is_whole(blob, file):
                partial.unlink()
                return
            try:
                _filled(partial, file, self.fetch)
                os.utime(partial, (_checked_at(), _checked_at()))
                partial.replace(blob)
                with suppress(FileNotFoundError):  # another process may have needed the room already
                    blob.chmod(0o400)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def _make_room(self, incoming_bytes: int) -> None:
        """Folders that nobody uses go, the longest unused first, until the limit holds or all are in use."""
        unused = sorted((self.root / "folders").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
        while self._bytes() + incoming_bytes > self.limit_bytes:
            if self._drop_unlinked():
                continue
            if not unused:
                return
            self._take_away(unused.pop(0))

    def _bytes(self) -> int:
        folders = (self.root / "blobs", self.root / "partial")
        return sum(_size(path) for folder in folders for path in folder.iterdir())

    def _drop_unlinked(self) -> bool:
        """Blobs that no folder links to are gone. True where there were any."""
        roots = (self.root / "folders", self.root / "building")
        linked = {path.stat().st_ino for root in roots for path in root.rglob("*") if path.is_file()}
        unlinked = [blob for blob in (self.root / "blobs").iterdir() if blob.stat().st_ino not in linked]
        for blob in unlinked:
            blob.unlink()
        return bool(unlinked)

    def _take_away(self, folder: Path) -> None:
        """The folder is gone, unless a process uses it."""
        with locks.taken_over(folder) as is_mine:
            if is_mine:
                doomed = self.root / "building" / folder.name  # if this process dies here, it is a leftover there
                shutil.rmtree(doomed, ignore_errors=True)
                folder.rename(doomed)
                shutil.rmtree(doomed)

    def _clear_leftovers(self) -> None:
        """What killed processes left behind is gone: half files, half folders."""
        for path in [*(self.root / "building").iterdir(), *(self.root / "partial").iterdir()]:
            with locks.taken_over(path) as is_mine:
                if is_mine and path.is_dir():
                    shutil.rmtree(path)
                elif is_mine:
                    path.unlink()

    def _blob(self, file: StoredFile) -> Path:
        return self.root / "blobs" / file.sha256

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread or process changes links meanwhile."""
        with locks.claimed(self.root / "lock"):
            yield


def is_whole(path: Path, file: StoredFile) -> bool:
    """True where the file has its length and was not written to since it was checked."""
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == file.bytes and found.st_mtime == _checked_at()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # on its way no more: it has become a blob, or was given up
        return 0


def _checked_at() -> int:
    """The modification time that marks a checked file, in seconds: another one after every start of the machine."""
    boot = _BOOT_ID.read_bytes() if _BOOT_ID.exists() else b""
    return 10**9 + int.from_bytes(hashlib.sha256(boot).digest()[:4], "big") % 10**8


def _filled(path: Path, file: StoredFile, fetch: Fetch) -> None:
    """The file's bytes, checked, lie at `path`; its room on the disk is taken first, so that a full disk says so."""
    with path.open("r+b") as out:
        out.truncate(0)
        if file.bytes:
            os.posix_fallocate(out.fileno(), 0, file.bytes)
        fetch(file, memoryview(mmap.mmap(out.fileno(), file.bytes) if file.bytes else b""))
