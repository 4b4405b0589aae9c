"""The data directory: one stack at a time, secrets kept, leftovers found."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from booth_service.local import leftovers, ports
from booth_service.local.data_dir import DataDir, Session
from booth_service.local.errors import StackError
from booth_service.local.part import descendants, kill
from booth_service.local.stack import with_ports

HOLD = """
import sys, pathlib
from booth_service.local.data_dir import DataDir
with DataDir(pathlib.Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(StackError, match=rf"already runs on {tmp_path} \(pid {holder.pid}\)"),
        DataDir(tmp_path).locked(),
    ):
        pass
    holder.kill()
    holder.communicate()
    with DataDir(tmp_path).locked():
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_directory_that_cannot_hold_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for unusable in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StackError, match=rf"{unusable} cannot hold a stack's state .*--data-dir"):
            DataDir(unusable).locked().__enter__()


def test_secrets_are_made_once(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    state = directory.load_state()
    directory.save_state(state)
    assert directory.load_state() == state
    assert DataDir(tmp_path / "other").load_state().stack_secret != state.stack_secret


def test_an_unreadable_state_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(StackError, match=r"state\.json cannot be read"):
        DataDir(tmp_path).load_state()


def test_ports_are_kept_while_free_and_never_shared(tmp_path: Path) -> None:
    listener, state = with_ports(DataDir(tmp_path).load_state(), None)
    chosen = [state.api_port, *state.s3_ports.values(), *state.ray_ports.values(), *state.service_ports.values()]
    assert len(set(chosen)) == len(chosen)
    with pytest.raises(StackError, match=f"Port {state.api_port} of 127.0.0.1 is in use"):
        with_ports(state, state.api_port)
    listener.close()

    again, kept = with_ports(state, None)
    again.close()
    assert kept == state

    taken = ports.hold(state.s3_ports["master"])
    moved_listener, moved = with_ports(state, None)
    assert not set(moved.s3_ports.values()) & set(state.s3_ports.values())
    assert (moved.ray_ports, moved.api_port) == (state.ray_ports, state.api_port)
    taken.close()
    moved_listener.close()


def test_leftovers_are_found_by_mark_and_by_session(tmp_path: Path) -> None:
    directory = DataDir(tmp_path)
    sleep = "import time; time.sleep(600)"
    marked = subprocess.Popen([sys.executable, "-c", sleep], env=os.environ | {leftovers.MARK: str(directory.path)})
    leader = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]]).pid, flush=True)"
    session = subprocess.Popen(
        [sys.executable, "-c", f"{leader}; import time; time.sleep(600)", sleep],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    orphan = int(session.stdout.readline())
    stranger = subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)
    try:
        directory.record_sessions([Session(pid=session.pid, started_at=psutil.Process(session.pid).create_time())])
        session.kill()
        session.wait()
        assert {process.pid for process in leftovers.find(directory)} == {marked.pid, orphan}
        # A pid that was the leader of an earlier stack's session and now belongs to somebody else.
        earlier = psutil.Process(stranger.pid).create_time() - 3600
        directory.record_sessions([Session(pid=stranger.pid, started_at=earlier)])
        assert {process.pid for process in leftovers.find(directory)} == {marked.pid}
        assert leftovers.kill_all(directory) == 1
        assert not psutil.pid_exists(marked.pid)
        assert stranger.poll() is None
    finally:
        for pid in (marked.pid, orphan, stranger.pid):
            kill(descendants(pid))
