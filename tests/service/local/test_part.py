"""A part is a real process here: its end is told with its last words, and stopping it leaves no descendant."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from booth_service.local.errors import Interrupted, StackError
from booth_service.local.part import Part, PartSpec, Signals
from booth_service.local.stack import Restarts

SPAWN = """
import subprocess, sys, time, pathlib
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
running = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, start_new_session=True)
running.stdout.readline()
pathlib.Path(sys.argv[1]).write_text(str(running.pid))
time.sleep(600)
"""


def part(folder: Path, program: str, *arguments: str, ready: Path | None = None, within_s: float = 60) -> Part:
    return Part(
        PartSpec(
            name="part under test",
            address="nowhere",
            command=[sys.executable, "-c", program, *arguments],
            environment=dict(os.environ),
            log=folder / "part.log",
            is_ready=lambda: ready is not None and ready.exists() and bool(ready.read_text()),
            ready_within_s=within_s,
        )
    )


def test_stop_takes_stubborn_descendants_of_other_sessions_along(tmp_path: Path) -> None:
    child_file = tmp_path / "child"
    running = part(tmp_path, SPAWN, str(child_file), ready=child_file)
    running.start()
    running.wait_ready(Signals())
    child = psutil.Process(int(child_file.read_text()))
    assert child.is_running()
    running.stop(Signals())
    assert not child.is_running()
    assert "killed by SIGTERM" in running.ended()


def test_stop_takes_the_orphans_of_a_dead_part_along(tmp_path: Path) -> None:
    spawn = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    )
    dead = part(tmp_path, spawn)
    dead.start()
    dead.process.wait()
    orphan = psutil.Process(int((tmp_path / "part.log").read_text()))
    assert orphan.is_running()
    dead.stop(Signals())
    assert not orphan.is_running()


def test_a_part_that_ends_while_starting_is_told_with_its_last_words(tmp_path: Path) -> None:
    ends = part(tmp_path, "print('no such disk'); raise SystemExit(7)")
    ends.start()
    with pytest.raises(StackError, match=r"part under test ended \(exit status 7\)(?s:.*)no such disk"):
        ends.wait_ready(Signals())


def test_a_part_that_is_never_ready_is_told_with_its_limit(tmp_path: Path) -> None:
    hangs = part(tmp_path, "import time; time.sleep(600)", within_s=0.3)
    hangs.start()
    with pytest.raises(StackError, match="not ready within"):
        hangs.wait_ready(Signals())
    hangs.stop(Signals())


def test_the_operator_can_stop_a_start(tmp_path: Path) -> None:
    signals = Signals()
    signals.stop.set()
    hangs = part(tmp_path, "import time; time.sleep(600)")
    hangs.start()
    with pytest.raises(Interrupted):
        hangs.wait_ready(signals)
    hangs.stop(signals)
    assert hangs.ended() is not None


def test_a_new_start_keeps_the_log_of_the_one_before(tmp_path: Path) -> None:
    pids = []
    for _ in range(2):
        ends = part(tmp_path, "import os; print(os.getpid())")
        ends.start()
        ends.process.wait()
        pids.append(ends.pid)
    assert [int((tmp_path / name).read_text()) for name in ("part.old.log", "part.log")] == pids


def test_pauses_double_up_to_a_minute_and_begin_again_after_a_good_run() -> None:
    restarts = Restarts(ready_at=0.0)
    assert [restarts.plan(now=1.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert restarts.due_at == 61.0
    restarts.done(now=100.0)
    assert restarts.due_at is None
    assert restarts.plan(now=110.0) == 60
    restarts.done(now=200.0)
    assert restarts.plan(now=300.0) == 1
