"""flock(2) on files and folders that may go away meanwhile. A lock ends with its process, kill -9 included."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: dict[Path, int] = {}  # folder -> descriptor with its shared lock
_held_lock = threading.Lock()


def hold(folder: Path) -> bool:
    """This process uses the folder until it ends. False where the folder is not there."""
    with _held_lock:
        if folder in _held:
            if _is_at(_held[folder], folder):
                return True
            os.close(_held.pop(folder))
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            return False
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits at most until whoever makes the folder, or takes it away, is done
        if not _is_at(lock, folder):
            os.close(lock)
            return False
        _held[folder] = lock
        return True


def keep(folder: Path, lock: int) -> None:
    """This process uses the folder that it has just made, whose lock it has, until it ends."""
    fcntl.flock(lock, fcntl.LOCK_SH)
    with _held_lock:
        if folder in _held:
            os.close(_held.pop(folder))
        _held[folder] = lock


def of_folder(folder: Path) -> int:
    """A descriptor of the folder, which is locked until it is closed."""
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """The file is there, made where it was not, and this thread's alone; whoever else wants it waits."""
    while True:
        lock = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_at(lock, path):
            break
        os.close(lock)  # whoever had it moved or removed the file
    try:
        yield
    finally:
        os.close(lock)


@contextmanager
def taken_over(path: Path) -> Iterator[bool]:
    """True where the file or folder is there and no process has it; meanwhile none gets it."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_mine = _is_at(lock, path)
    except BlockingIOError:
        is_mine = False
    try:
        yield is_mine
    finally:
        os.close(lock)


def _is_at(descriptor: int, path: Path) -> bool:
    """True where the path still leads to this very file or folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
