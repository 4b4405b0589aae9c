"""One supervised child process of the stack: started in a session of its own, stopped with all its descendants."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import psutil

from booth_service.local.errors import Interrupted, StackError

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_TAIL_LINES = 20


@dataclass(frozen=True)
class Signals:
    """What the operator asked for: to stop, and to stop without waiting."""

    stop: Event = field(default_factory=Event)
    hurry: Event = field(default_factory=Event)


@dataclass(frozen=True)
class PartSpec:
    """How to run one part and how to see that it is ready. Its output goes to `log`; the run before keeps `.old.log`.

    It runs in the folder of its log, so that nothing in the operator's folder is imported by chance.
    """

    name: str
    address: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    is_ready: Callable[[], bool]
    inherits: tuple[int, ...] = ()
    """File descriptors that the process gets under the same numbers."""
    ready_within_s: float = 60.0
    stop_within_s: float = 10.0


class Part:
    """A running part. Start it from the main thread: it dies with the thread that started it."""

    def __init__(self, spec: PartSpec) -> None:
        self.spec = spec
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def address(self) -> str:
        return self.spec.address

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def start(self) -> None:
        """The process runs; it is not ready yet."""
        log = self.spec.log
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log.exists():
            log.replace(log.with_suffix(".old.log"))
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                self.spec.command,
                env=self.spec.environment,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self.spec.inherits,
                preexec_fn=_die_with_parent,
            )

    def wait_ready(self, signals: Signals) -> None:
        """The part answers. Raises StackError with the tail of its log where it ended or did not answer in time."""
        deadline = time.monotonic() + self.spec.ready_within_s
        while not self.spec.is_ready():
            if (ended := self.ended()) is not None:
                raise StackError(ended)
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} was not ready within {self.spec.ready_within_s:.0f} s.\n{self.tail()}")
            if signals.stop.wait(0.1):
                raise Interrupted

    def ended(self) -> str | None:
        """One paragraph for the operator where the part has ended: how, and its last words. None while it runs."""
        code = self.process.poll() if self.process else None
        return None if code is None else f"{self.name} ended ({_exit_text(code)}).\n{self.tail()}"

    def tail(self) -> str:
        """The last lines of the log, with its path."""
        return f"--- last lines of {self.spec.log}\n{last_lines(self.spec.log)}"

    def stop(self, signals: Signals) -> None:
        """Neither the process nor any descendant of it lives. SIGTERM first, SIGKILL after `stop_within_s`."""
        if self.process is None:
            return
        tree = family(self.process.pid)
        if self.process.poll() is None and not signals.hurry.is_set():
            self.process.terminate()
            wait_until(lambda: self.ended() is not None, self.spec.stop_within_s, signals)
        kill({*tree, *family(self.process.pid)})
        self.process.wait()


def wait_until(condition: Callable[[], bool], within_s: float, signals: Signals) -> bool:
    """Whether the condition came true in time; gives up at once when the operator is in a hurry."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline or signals.hurry.wait(0.05):
            return condition()
    return True


def last_lines(log: Path, count: int = _TAIL_LINES) -> str:
    """The last lines of a text file that may be large or absent."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
    except FileNotFoundError:
        return "(no log)"


def descendants(pid: int) -> list[psutil.Process]:
    """A process and all below it that live now."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def family(leader: int) -> list[psutil.Process]:
    """What lives of a session's leader, its descendants and its session, orphans of a leader that is dead included."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == leader:
                members.append(process)
    return list({*members, *descendants(leader)})


def kill(processes: Iterable[psutil.Process]) -> None:
    """None of the processes lives. psutil compares start times, so a reused pid is left alone."""
    victims = list(processes)
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(victims, timeout=10)


def _exit_text(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
