"""C14: what our deployment adds over a bare Serve echo, and what a picture costs on its way besides being drawn.

C14 is a ratio: our deployment round an engine that answers at once, with its router, over an application that returns
what it gets, both called by handle in turn in one Ray, with the same request. C14e is milliseconds on the one-machine
stack: a tinyworld picture of one step by `POST /v1/.../generate`, minus the CPU time of the pipeline alone on the one
thread that it has, and the same for a call to Serve itself, which leaves the control plane's part. It wants a quiet
machine: the first two wait for a core where others use it, and CPU time does not.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
from figure import at_most, line, line_of
from miniature import ROOT

sys.path.insert(0, str(ROOT / "tests"))

ROUNDS, CALLS = 9, 60
PICTURES = 60
STEPS = 1
GOAL, GOAL_MS = at_most(1.3), at_most(60.0)
TINYWORLD = ROOT / "examples" / "tinyworld" / "base_model"
BODY = {"prompts": ["a photo of a teapot"], "num_images": 1, "num_inference_steps": STEPS, "guidance_scale": 4.0}


def report(name: str) -> bool:
    """Print both figures and where the time goes. True where both goals are reached."""
    ratios = handle_ratios()
    print(line(name, ratios, GOAL, "our deployment over a bare Serve echo, p50 by handle"), flush=True)
    return all([GOAL.is_reached(statistics.median(ratios)), report_way(f"{name}e")])


def handle_ratios() -> list[float]:
    """Of each round: the median call to our deployment over the median call to the echo."""
    from class_pool import own_ray
    from painters import Echo, IdlePainter
    from ray import serve

    from booth.contract.serving import Draw, DrawRequest, ModelRef
    from booth_service.inference.deployment import serve_options
    from booth_service.settings import Settings

    draws = [Draw(prompt="a photo of a teapot", negative_prompt="", seed=1)]
    model = ModelRef(model_id="model-1", base_model="tiny", base_files=[])
    size = {"guidance_scale": 4.0, "num_inference_steps": STEPS, "width": 64, "height": 64}
    request = DrawRequest(model=model, draws=draws, **size)
    with own_ray():
        try:
            echo = serve.run(
                serve.deployment(ray_actor_options={"num_cpus": 0})(Echo).bind(), name="echo", route_prefix=None
            )
            painter = serve.deployment(**serve_options(Settings()))(IdlePainter).bind()
            ours = serve.run(painter, name="ours", route_prefix=None).draw.options(session_id="model-1")
            arms = [lambda: ours.remote(request).result(), lambda: echo.remote(request).result()]
            for arm in arms:
                times_of(arm, CALLS)
            rounds = [[statistics.median(times_of(arm, CALLS)) for arm in arms] for _ in range(ROUNDS)]
        finally:
            serve.shutdown()
    medians = [1000 * statistics.median(times) for times in zip(*rounds, strict=True)]
    print(f"C14 by handle, p50: ours {medians[0]:.2f} ms, echo {medians[1]:.2f} ms", flush=True)
    return [ours_s / echo_s for ours_s, echo_s in rounds]


def report_way(name: str) -> bool:
    """Client to pixels on a stack of its own, in turn with Serve alone and the pipeline alone."""
    from one_machine import OneMachine

    pipeline = pipeline_alone()
    with tempfile.TemporaryDirectory(prefix="booth-way-") as folder:
        machine = OneMachine(Path(folder) / "data")
        machine.start()
        try:
            with httpx2.Client(timeout=60, trust_env=False) as client:
                arms = [through_the_api(machine, client), through_serve(machine, client), pipeline]
                clocks = [time.perf_counter, time.perf_counter, time.process_time]
                for arm in arms:
                    times_of(arm, 5)
                times = [
                    [times_of(arm, 1, clock)[0] for arm, clock in zip(arms, clocks, strict=True)]
                    for _ in range(PICTURES)
                ]
        finally:
            machine.stop()
    api, serve, alone = ([1000 * each for each in arm] for arm in zip(*times, strict=True))
    added = statistics.median(api) - statistics.median(alone)
    spread = [each - statistics.median(alone) for each in api]
    title = "ms from client to pixels and back through API, SQL and S3, minus the pipeline's own, p50"
    print(line_of(name, added, spread, GOAL_MS, title), flush=True)
    where = f"{name} p50 (p99), ms: API {shown(api)}, Serve {shown(serve)}, pipeline alone {shown(alone)}"
    print(f"{where}; of p50 the control plane adds {statistics.median(api) - statistics.median(serve):.1f},", end=" ")
    print(f"proxy, replica and engine {statistics.median(serve) - statistics.median(alone):.1f}", flush=True)
    return GOAL_MS.is_reached(added)


def times_of(arm: Callable[[], object], calls: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each of so many calls, one after the other."""
    times = []
    for _ in range(calls):
        began = clock()
        arm()
        times.append(clock() - began)
    return times


def shown(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} ({statistics.quantiles(times, n=100)[98]:.1f})"


def pipeline_alone() -> Callable[[], object]:
    """One picture by the pipeline in this process, on one thread as a replica has it."""
    import torch

    from booth_service.diffusion.batch import Row, Setting, sample_batch
    from booth_service.diffusion.components import load_pipeline

    torch.set_num_threads(1)
    pipeline = load_pipeline(TINYWORLD, torch.float32)
    setting = Setting(guidance_scale=4.0, num_inference_steps=STEPS, width=64, height=64)
    row = Row(BODY["prompts"][0], "", 1)
    return lambda: sample_batch(pipeline, [row], setting, places=1)


def through_the_api(machine, client: httpx2.Client) -> Callable[[], object]:
    """One picture as a user gets it."""
    headers = {"Authorization": f"Bearer {machine.api_key}"}
    url = f"{machine.base_url}/v1/base-models/tinyworld/generate"
    return lambda: client.post(url, json=BODY, headers=headers).raise_for_status().json()["pictures"][0]


def through_serve(machine, client: httpx2.Client) -> Callable[[], object]:
    """The same picture as the control plane gets it."""
    from booth.contract.serving import SECRET_HEADER, Draw, DrawRequest, ModelRef
    from booth_service.control.base_models import named
    from booth_service.control.database import Database
    from booth_service.control.views import stored_files

    state = json.loads((machine.data_dir / "state.json").read_text())
    database = Database(f"sqlite:///{machine.data_dir}/booth.db")
    with database.read() as session:
        base = named(session, "tinyworld")
    database.close()
    model = ModelRef(model_id=base.id, base_model=base.name, base_files=stored_files(base.files))
    size = {"guidance_scale": 4.0, "num_inference_steps": STEPS, "width": 64, "height": 64}
    draws = [Draw(prompt=BODY["prompts"][0], negative_prompt="", seed=1)]
    body = DrawRequest(model=model, draws=draws, **size).model_dump_json()
    headers = {SECRET_HEADER: state["stack_secret"], "Content-Type": "application/json"}
    url = f"http://127.0.0.1:{state['service_ports']['serve']}/"
    return lambda: client.post(url, content=body, headers=headers).raise_for_status().json()["pictures"][0]
