"""`boothctl up`: one stack on a directory, several side by side, nothing left behind, and back after a kill -9."""

import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from one_machine import OneMachine
from tiny_base import write_tiny_base
from tiny_job import RECIPE
from tiny_suite import write_tiny_suite

from booth_service.local import leftovers, ports, ray_head
from booth_service.local.data_dir import DataDir, State

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def neighbour(stack: OneMachine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneMachine]:
    """A second stack, which tests may kill. It runs beside the first."""
    machine = OneMachine(tmp_path_factory.mktemp("neighbour") / "data")
    machine.start()
    yield machine
    machine.stop()


def test_a_second_up_on_the_same_directory_names_the_first(stack: OneMachine) -> None:
    command = [sys.executable, "-m", "booth_service.local", "up", "--data-dir", str(stack.data_dir)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert f"A stack already runs on {stack.data_dir.resolve()} (pid {stack.process.pid})" in refused.stderr
    assert stack.get("/v1/health")["status"] == "ok"


def test_secrets_are_for_the_owner_alone(stack: OneMachine) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(stack.data_dir) == 0o700
    assert {name: mode(stack.data_dir / name) for name in ("state.json", "client.json", "booth.db")} == {
        "state.json": 0o600,
        "client.json": 0o600,
        "booth.db": 0o600,
    }
    state = state_of(stack)
    secrets = {state.stack_secret, state.ray_token, state.s3_secret_key, state.api_key}
    shown = " ".join(word for process in stack.processes() for word in process.cmdline())
    assert not [secret for secret in secrets if secret in shown]


def test_everything_listens_on_loopback(stack: OneMachine) -> None:
    """But for the replica's port, whose address is fixed in Ray; there the token guards."""
    open_to_all = [
        (process.name(), connection.laddr)
        for process in stack.processes()
        for connection in listening(process)
        if connection.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1", "::1")
    ]
    assert not [found for found in open_to_all if not found[0].startswith("ray::ServeReplica")]


def test_ray_and_serve_take_nothing_from_strangers(stack: OneMachine) -> None:
    state = state_of(stack)
    dashboard = f"http://127.0.0.1:{state.ray_ports['dashboard']}"
    assert httpx2.get(f"{dashboard}/api/jobs/").status_code == 401
    assert httpx2.put(f"{dashboard}/api/serve/applications/", json={"applications": []}).status_code == 401
    assert httpx2.post(f"http://127.0.0.1:{state.service_ports['serve']}/", json={}).status_code == 403


def test_what_the_checkout_holds_is_there_from_the_start(stack: OneMachine, tmp_path: Path) -> None:
    own = Path(__file__).parents[2] / "examples" / "tinyworld" / "encoders" / "encoders.json"
    assert "tinyworld" in [base["name"] for base in stack.get("/v1/base-models")["base_models"]]
    suites = [suite["name"] for suite in stack.get("/v1/encoder-suites")["suites"]]
    assert ("tinyworld" in suites) == own.exists()
    added = stack.register_encoders("tiny-encoders", str(write_tiny_suite(tmp_path)))
    assert added["status"] in ("added", "replaced", "unchanged")
    assert "tiny-encoders" in [suite["name"] for suite in stack.get("/v1/encoder-suites")["suites"]]


def test_a_part_that_dies_is_named_and_started_again(stack: OneMachine) -> None:
    before = stack.get("/v1/jobs")
    plane = next(process for process in stack.processes() if "booth_service.local.control_plane" in process.cmdline())
    plane.kill()
    wait_for(lambda: "control plane ended (killed by SIGKILL)" in stack.log.read_text())
    wait_for(lambda: is_healthy(stack))
    assert stack.get("/v1/jobs") == before


@pytest.mark.timeout(1500)  # it starts two stacks
def test_a_killed_stack_comes_back_with_all_it_had_and_stops_without_a_trace(
    stack: OneMachine, neighbour: OneMachine, tmp_path: Path
) -> None:
    base = write_tiny_base(tmp_path / "base")
    (base / "booth_recipe.json").write_text(RECIPE.model_dump_json())
    neighbour.register("kept", str(base))
    key = neighbour.api_key
    assert neighbour.base_url != stack.base_url

    for process in neighbour.processes():
        process.kill()
    neighbour.process.wait()
    assert stack.get("/v1/health")["status"] == "ok"

    neighbour.start()
    assert neighbour.api_key == key
    assert "kept" in [model["name"] for model in neighbour.get("/v1/base-models")["base_models"]]
    assert neighbour.register("kept", str(base))["uploaded"] == 0  # the files are in S3 still

    processes = neighbour.processes()
    state = state_of(neighbour)
    assert neighbour.stop() == 0
    assert not [process for process in processes if process.is_running()]
    assert not leftovers.find(DataDir(neighbour.data_dir))
    chosen = [*state.s3_ports.values(), *state.ray_ports.values(), *state.service_ports.values(), state.api_port]
    assert not [port for port in chosen if not ports.is_free(port)]
    assert not (neighbour.data_dir / "client.json").exists()
    assert not ray_head.temp_dir(DataDir(neighbour.data_dir)).exists()
    assert list((neighbour.data_dir / "logs" / "ray").glob("raylet*"))
    assert stack.get("/v1/health")["status"] == "ok"


def state_of(machine: OneMachine) -> State:
    return State.model_validate_json((machine.data_dir / "state.json").read_bytes())


def listening(process: psutil.Process) -> list:
    try:
        return [connection for connection in process.net_connections() if connection.status == psutil.CONN_LISTEN]
    except psutil.NoSuchProcess:
        return []


def is_healthy(machine: OneMachine) -> bool:
    try:
        return httpx2.get(f"{machine.base_url}/v1/health", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def wait_for(condition: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
