"""What a killed stack left running: found by the mark in its environment or by the session it was started in."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from booth_service.local.data_dir import DataDir, Session
from booth_service.local.part import kill

MARK = "BOOTH_LOCAL_STACK"
"""Every process of a stack has this in its environment, with the path of the data directory."""


def find(directory: DataDir) -> list[psutil.Process]:
    """The processes of any stack that was started on this data directory, but for this process.

    Ray's workers overwrite their environment with a process title, so they are known by their session.
    """
    sessions = {session.pid for session in directory.recorded_sessions() if not _is_reused(session)}
    return [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid() and (_is_marked(process, directory.path) or _is_member(process, sessions))
    ]


def kill_all(directory: DataDir) -> int:
    """None of them lives. Returns how many there were."""
    found = find(directory)
    kill(found)
    return len(found)


def _is_marked(process: psutil.Process, path: Path) -> bool:
    try:
        return bool(process.environ().get(MARK) == str(path))
    except psutil.Error:
        return False


def _is_member(process: psutil.Process, sessions: Iterable[int]) -> bool:
    try:
        if os.getsid(process.pid) not in sessions:
            return False
        executable = str(process.exe())
    except (psutil.Error, OSError):
        return False
    return executable == os.path.realpath(sys.executable) or executable.startswith(sys.prefix + os.sep)


def _is_reused(session: Session) -> bool:
    """True where the pid now belongs to a process that was started at another time."""
    try:
        return bool(abs(psutil.Process(session.pid).create_time() - session.started_at) > 1)
    except psutil.NoSuchProcess:
        return False
