"""Ray's Jobs API: the one of a live cluster, and where nobody answers."""

import os
import subprocess
import sys

import pytest
from one_machine import OneMachine

from booth_service.control.launcher import ClusterAway, Launcher
from booth_service.control.policy import RayStatus
from booth_service.local import environment
from booth_service.local.data_dir import DataDir

LIVE = """
import sys, time
from booth_service.control.launcher import ClusterAway, Launcher
from booth_service.control.policy import RayStatus

launcher, job = Launcher(sys.argv[1]), "job-that-no-table-holds"
name = f"{job}-{sys.argv[2]}-a1"
assert launcher.refusal() is None
assert launcher.status(name).status is RayStatus.UNKNOWN
for _ in range(2):  # the second one finds that it exists
    launcher.submit(name, job, 1)
while not launcher.status(name).status.is_gone:  # its driver is told that there is no such job
    time.sleep(0.2)
assert launcher.status(name).status is RayStatus.FAILED
launcher.stop(name)
assert f"no attempt '{job}-a1'" in launcher.logs(name)
try:
    launcher.logs("job-unknown-a1")
except ClusterAway:
    print("all seen")
"""


@pytest.mark.ray
def test_a_live_cluster_runs_a_driver_once_and_knows_its_end_and_its_log(stack: OneMachine) -> None:
    """In a process of its own: Ray reads its token once in a process, and other tests may have run without one."""
    state = DataDir(stack.data_dir).load_state()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": state.ray_token}
    command = [sys.executable, "-c", LIVE, environment.ray_dashboard_url(state), str(os.getpid())]
    done = subprocess.run(command, env={**os.environ, **token}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("all seen")


def test_a_cluster_that_is_not_there_is_unreachable_and_nothing_more(unused_port):
    launcher = Launcher(f"http://127.0.0.1:{unused_port}")
    assert launcher.status("job-a1").status is RayStatus.UNREACHABLE
    assert "Failed to connect" in launcher.refusal()
    with pytest.raises(ClusterAway):
        launcher.submit("job-a1", "job", 1)
    with pytest.raises(ClusterAway):
        launcher.stop("job-a1")
    with pytest.raises(ClusterAway):
        launcher.logs("job-a1")


def test_addresses_in_the_environment_do_not_win(unused_port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    told = Launcher(f"http://127.0.0.1:{unused_port}").status("job-a1").message
    assert str(unused_port) in told
    assert "RAY_ADDRESS" not in os.environ
