"""A job where inference and jobs share a device: pictures under way finish, replicas leave, it runs, they come back.

The device is a custom resource, of which the stack's Ray has one. The control plane is killed while inference pauses.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
from one_machine import OneMachine

import booth
from booth.contract.states import JobState

TEAPOT = sorted((Path(__file__).parents[2] / "examples" / "tinyworld" / "subjects" / "teapot").glob("*.png"))
LONG = {"prompts": ["a photo of a teapot"], "num_images": 8, "num_inference_steps": 200, "seed": 1}
SHORT = {"prompts": ["a photo of a teapot"], "num_images": 1, "num_inference_steps": 2, "seed": 1}


def row(folder: Path) -> str:
    """Draw, submit, look at who holds the device on the way, and draw with the new model."""
    with stack_with_a_device(folder) as machine:
        client = booth.Client(machine.base_url, machine.api_key)
        assert ask(machine, SHORT).status_code == 200
        with ThreadPoolExecutor(1) as thread:
            long = thread.submit(ask, machine, LONG)
            time.sleep(1.5)
            assert not long.done(), "the pictures under way are too short for this test"
            job = client.personalize(TEAPOT, "sks", "teapot", steps=30, num_class_images=4, seed=4)
            wait_for(lambda: job.refresh().status_detail.startswith("Waiting for inference"))
            refused = paused(ask(machine, SHORT))
            assert not long.done(), "calls are refused while those before them are finished"
            assert len(long.result().json()["pictures"]) == 8
        wait_for(lambda: not replicas(machine))
        wait_for(lambda: job.refresh().status is not JobState.QUEUED)
        assert not replicas(machine), "the device is the job's"
        assert job.id in refused["detail"], refused
        kill_control_plane(machine)
        while not job.refresh().status.is_final:
            assert not replicas(machine), "inference came back while the job ran"
            time.sleep(0.5)
        model = job.wait(timeout_s=400)
        said = [event.message for event in job.events()]
        assert any("finish 1 call for pictures" in message for message in said), said
        wait_for(lambda: ask(machine, SHORT).status_code == 200)
        began = time.monotonic()
        assert model.generate("a photo of sks teapot", num_inference_steps=2, seed=1)
        first_s = time.monotonic() - began
        log = (machine.data_dir / "logs" / "control-plane.log").read_text()
        assert f"model {model.id} warmed: 204" in log, "the returning replica was not given the new model"
    return f"8 pictures finished, device free before the driver, paused by name, first picture after {first_s:.1f} s"


@contextlib.contextmanager
def stack_with_a_device(folder: Path) -> Iterator[OneMachine]:
    """A stack whose replicas and jobs share the resource DEVICE."""
    os.environ["BOOTH_SERVING_YIELDS"] = "DEVICE"
    machine = OneMachine(folder / "data")
    machine.start()
    try:
        yield machine
    finally:
        machine.stop()


def ask(machine: OneMachine, body: dict) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {machine.api_key}"}
    url = f"{machine.base_url}/v1/base-models/tinyworld/generate"
    with contextlib.suppress(httpx2.TransportError):
        return httpx2.post(url, json=body, headers=headers, timeout=120, trust_env=False)
    return httpx2.Response(599)


def paused(answer: httpx2.Response) -> dict:
    """The refusal that says so; it must tell when to come back."""
    assert (answer.status_code, answer.json()["code"]) == (503, "paused"), answer.text
    assert int(answer.headers["Retry-After"]) > 0
    return dict(answer.json())


def replicas(machine: OneMachine) -> list[psutil.Process]:
    return [process for process in machine.processes() if is_named(process, "ray::ServeReplica")]


def is_named(process: psutil.Process, name: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(name in word for word in process.cmdline())
    return False


def kill_control_plane(machine: OneMachine) -> None:
    plane = next(process for process in machine.processes() if is_named(process, "booth_service.local.control_plane"))
    plane.kill()
    wait_for(lambda: "control plane ended" in machine.log.read_text())


def wait_for(condition, within_s: float = 180):
    """What the condition returned once it was true."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(booth.BoothError):
            if found := condition():
                return found
        time.sleep(0.2)
    raise AssertionError(f"{condition} did not come true within {within_s:.0f} s")
