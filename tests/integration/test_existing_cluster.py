"""The control plane by itself beside a Ray cluster that someone else started: settings are all that joins them."""

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from own_s3 import S3Server

import booth
from booth.contract.states import JobState
from booth_service.local import environment, leftovers, ports, ray_head
from booth_service.local.data_dir import DataDir, State
from booth_service.local.part import Part, PartSpec, Signals
from booth_service.local.ray_head import RayHead

pytestmark = pytest.mark.ray

TINYWORLD = Path(__file__).parents[2] / "examples" / "tinyworld"
NODE_SETTINGS = {"BOOTH_STACK_SECRET", "BOOTH_SCRATCH_DIR", leftovers.MARK}
"""What a Ray node carries of ours; addresses and the bucket come with the jobs."""


@dataclass(frozen=True)
class Plane:
    """`python -m booth_service` with settings alone, and what its operator runs beside it."""

    part: Part

    @property
    def url(self) -> str:
        return self.part.address

    def ready(self) -> dict[str, str]:
        answer: dict[str, str] = httpx2.get(f"{self.url}/v1/ready", timeout=10, trust_env=False).json()
        return answer

    def operate(self, program: str, *arguments: str) -> Any:
        """What `admin` or `register` answers."""
        command = [sys.executable, "-m", f"booth_service.control.{program}", *arguments, "--json"]
        done = subprocess.run(command, env=self.part.spec.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def state(s3_server: S3Server) -> State:
    """Secrets and ports of this test's own; the object store is the test run's."""
    chosen = ports.choose([*ray_head.PORT_NAMES, "api", "serve"], {})
    return State(
        s3_access_key=s3_server.credentials.access_key,
        s3_secret_key=s3_server.credentials.secret_key,
        s3_ports={"s3": int(s3_server.endpoint_url.rsplit(":", 1)[1])},
        api_port=chosen.pop("api"),
        service_ports={"serve": chosen.pop("serve")},
        ray_ports=chosen,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataDir]:
    """Logs, the database and the node's scratch folder. Nothing that was started for it outlives it."""
    directory = DataDir(tmp_path_factory.mktemp("existing"))
    yield directory
    leftovers.kill_all(directory)


@pytest.fixture(scope="module")
def plane(directory: DataDir, state: State) -> Iterator[Plane]:
    """A control plane, before there is any cluster."""
    chosen = environment.control(directory, state) | {
        "BOOTH_S3_BUCKET": f"existing-{secrets.token_hex(4)}",
        "BOOTH_MAX_RANKS": "1",
    }
    url = environment.api_url(state)
    spec = PartSpec(
        name="control plane",
        address=url,
        command=[sys.executable, "-m", "booth_service", "--port", str(state.api_port)],
        environment=chosen,
        log=directory.logs / "plane.log",
        is_ready=lambda: answers(url),
        ready_within_s=180,
    )
    part = Part(spec)
    part.start()
    try:
        part.wait_ready(Signals())
        yield Plane(part)
    finally:
        part.stop(Signals())


@pytest.fixture(scope="module")
def cluster(directory: DataDir, state: State, plane: Plane) -> Iterator[RayHead]:
    """A Ray head by hand, with a token. Its environment holds secrets of ours, and no address."""
    head = RayHead(directory, state)
    spec = head.part.spec
    known = {key: value for key, value in spec.environment.items() if not key.startswith("BOOTH_")}
    carried = {key: spec.environment[key] for key in NODE_SETTINGS}
    head.part = Part(replace(spec, environment=known | carried))
    head.start()
    try:
        head.wait_ready(Signals())
        yield head
    finally:
        head.stop(Signals())


@pytest.fixture(scope="module")
def client(plane: Plane) -> booth.Client:
    plane.operate("admin", "tenant-add", "someone")
    plane.operate("register", "tinyworld", str(TINYWORLD / "base_model"), "--default")
    return booth.Client(plane.url, plane.operate("admin", "key-add", "someone")["key"])


@pytest.fixture(scope="module")
def job(client: booth.Client) -> booth.Job:
    """Submitted while there is no cluster."""
    photos = sorted((TINYWORLD / "subjects" / "teapot").glob("*.png"))[:1]
    with pytest.warns(booth.BoothWarning):  # one photo, and fewer steps than its warm-up
        return client.personalize(photos, "sks", "teapot", steps=2, num_class_images=2, train_batch_size=1, seed=1)


def test_without_a_cluster_it_is_ready_warns_and_jobs_wait(plane: Plane, job: booth.Job) -> None:
    ready = {"status": "ready", "database": "ok", "bucket": "ok", "ray": "no answer", "serve": "no answer"}
    assert plane.ready() == ready
    assert "warning: Ray at http://127.0.0.1:" in plane.part.spec.log.read_text()
    wait_for(lambda: "The Ray cluster does not take jobs" in job.refresh().status_detail)


def test_a_cluster_that_comes_later_runs_the_job(cluster: RayHead, plane: Plane, job: booth.Job) -> None:
    assert plane.ready()["ray"] == "ok"
    model = job.wait(timeout_s=450)
    assert job.refresh().status == JobState.SUCCEEDED
    assert "plan: 1 rank" in "".join(job.logs())
    assert model.base_model == "tinyworld"


def test_another_token_is_refused_and_said(cluster: RayHead, plane: Plane) -> None:
    program = "import sys; from booth_service.control.launcher import Launcher; print(Launcher(sys.argv[1]).refusal())"
    wrong = plane.part.spec.environment | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [sys.executable, "-c", program, cluster.address]
    done = subprocess.run(command, env=wrong, capture_output=True, text=True, check=True)
    assert "token" in done.stdout.lower(), done.stdout


def test_both_end_in_order(cluster: RayHead, plane: Plane, directory: DataDir) -> None:
    plane.part.stop(Signals())
    assert plane.part.process is not None
    assert plane.part.process.returncode == 0, plane.part.spec.log.read_text()
    cluster.stop(Signals())
    assert not leftovers.find(directory)


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/v1/ready", timeout=10, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def wait_for(condition: Callable[[], bool], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
