"""How fast this GPU draws and changes tenants against what it can: python tests/gpu/serving.py, under nine minutes.

Random weights of Stable Diffusion 1.5's shape in half precision. It needs torch, diffusers, transformers, pydantic, and
boto3, which is imported and not used; no Ray, no S3, nothing installed of Booth. First the machine's own ceilings, then
one line for each figure, H6 to H12, then what was tried on the sampler. Pictures and addresses are compared before
times. Exit status 1 where a figure is short.

--cpu-miniature runs all of it at an eighth of the widths and 64 px on the CPU in seconds, to see that it runs.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "service"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sdk"))

import ceilings
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from figure import at_least, at_most
from said import attempt, ratios, say
from tenants import Scale, addresses, in_host_memory, on_device

from booth_service.diffusion.components import load_pipeline
from booth_service.diffusion.schedulers import scheduler_of
from booth_service.inference.skeleton import Skeleton
from booth_service.training.speed import FlopCount

BUDGET_S = 420.0  # what is tried last is left out once this is spent
GB = 1e9
REFERENCE_BATCH = 4  # sample_batch_size of diffusers' train_dreambooth.py
FIRST_STEPS, FIRST_PX = 2, 128  # the first picture is a small one, so that it does not hide what comes before it


def gpu_scale() -> Scale:
    """The real size."""
    device = torch.device("cuda", 0)
    return Scale(device, torch.float16, 1, 512, 25, 50, batch=16, served_batch=8, tenants=8, goes=3)


def cpu_scale() -> Scale:
    """The miniature: fp32, a step or two of everything."""
    return Scale(torch.device("cpu"), torch.float32, 8, 64, 1, 2, batch=2, served_batch=2, tenants=2, goes=1)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cpu-miniature", action="store_true", help="everything at a tiny size on the CPU")
    is_small = parser.parse_args(argv).cpu_miniature
    if not is_small and not torch.cuda.is_available():
        print("No CUDA device. --cpu-miniature runs the same at a tiny size on the CPU.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="booth-serving-") as folder:
        is_reached = measure(cpu_scale() if is_small else gpu_scale(), Path(folder), small=is_small)
    return 0 if is_reached or is_small else 1


def measure(scale: Scale, folder: Path, small: bool) -> bool:
    """Print all figures; True where every goal is reached. `small`: smaller ceilings."""
    began = time.monotonic()
    device = scale.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, miniature"
    best = ceilings.measure(device, scale.dtype, 2**20 if small else 2**30)
    print(f"{name}, torch {torch.__version__}: {best}", flush=True)
    skeleton = scale.skeleton(folder)
    said = [
        *attempt("H6 or H7", lambda: class_images(scale, skeleton.pipeline, best)),
        *attempt("H8 or H9", lambda: switches(scale, skeleton, best)),
        *attempt("H10", lambda: first_picture(scale, skeleton)),
        *attempt("H11", lambda: batched(scale, skeleton.pipeline)),
        *attempt("H12", lambda: share_of_switches(scale, skeleton)),
    ]
    tried(scale, skeleton, deadline=began + BUDGET_S)
    print(f"took {time.monotonic() - began:.0f} s", flush=True)
    return all(said)


def class_images(scale: Scale, pipeline: Any, best: ceilings.Ceilings) -> Iterator[bool]:
    """H6 and H7: blocks of class images by DPM-Solver++, against the example's generator with its defaults."""
    theirs, ours = reference_seconds(scale, pipeline), block_of(scale, pipeline)
    with FlopCount() as counted:
        ours()
    seconds = scale.seconds(ours)
    gains = [(scale.batch / own) / (REFERENCE_BATCH / other) for own, other in zip(seconds, theirs, strict=True)]
    how = f"{scale.batch} together, {scale.steps} steps ({scale.batch / middle(seconds):.1f}/s)"
    yield say(scale.device, "H6", gains, at_least(4), f"class images/s, {how}, over the example's generator")
    mfu = [counted.total / each / best.matrix_flops for each in seconds]
    yield say(scale.device, "H7", mfu, at_least(0.40), f"of the product rate, whole pictures, {scale.batch} together")


def reference_seconds(scale: Scale, pipeline: Any) -> list[float]:
    """Of a batch of the example's generator, with the scheduler that Stable Diffusion 1.5's folder names."""
    scheduler = PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    parts = {**pipeline.components, "scheduler": scheduler}
    theirs = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    prompts = ["a photo of a dog"] * REFERENCE_BATCH
    size = {"height": scale.resolution, "width": scale.resolution}
    return scale.seconds(lambda: theirs(prompts, num_inference_steps=scale.reference_steps, **size))


def block_of(scale: Scale, pipeline: Any) -> Callable[[], list[Any]]:
    pipeline.scheduler = scheduler_of(pipeline.scheduler, "dpmsolver++")
    return lambda: scale.pictures(pipeline, scale.batch, batch_size=scale.batch, steps=scale.steps)


def switches(scale: Scale, skeleton: Skeleton, best: ceilings.Ceilings) -> Iterator[bool]:
    """H8 and H9: a tenant's weights into the live modules, from host memory and from the device's own."""
    before = addresses(skeleton)
    for name, kept, goal in (("H8", in_host_memory, 1.3), ("H9", on_device, 2.0)):
        pair = [kept(skeleton, scale, number) for number in (1, 2)]
        turns = iter(pair * (scale.goes + 1))
        seconds = scale.seconds(lambda turns=turns: next(turns).activate(skeleton))
        size = pair[0].bytes
        is_host = kept is in_host_memory
        floor = size / best.pinned_bytes if is_host else 2 * size / best.copy_bytes
        where = "pinned host memory" if is_host else "the device"
        title = f"switch from {where}, {1e3 * middle(seconds):.1f} ms, over one copy of {size / GB:.2f} GB"
        yield say(scale.device, name, [each / floor for each in seconds], at_most(goal), title)
    check(addresses(skeleton) == before, "weights moved to other addresses: compiled graphs would be stale")


def first_picture(scale: Scale, skeleton: Skeleton) -> Iterator[bool]:
    """H10: another tenant's first picture, against loading its folder."""
    tenant, before = in_host_memory(skeleton, scale, 3), addresses(skeleton)

    def first(pipeline: Any) -> Any:
        return scale.pictures(pipeline, 1, batch_size=1, steps=FIRST_STEPS, resolution=FIRST_PX)[0]

    def switched() -> Any:
        tenant.activate(skeleton)
        return first(skeleton.pipeline)

    with tempfile.TemporaryDirectory(prefix="booth-tenant-") as folder:
        picture = switched()
        skeleton.pipeline.save_pretrained(folder)

        def loaded() -> Any:
            return first(load_pipeline(Path(folder), scale.dtype).to(scale.device))

        check(loaded().tobytes() == picture.tobytes(), "the loaded folder draws another picture")
        loading, switching = scale.seconds(loaded), scale.seconds(switched)
    check(addresses(skeleton) == before, "weights moved to other addresses: compiled graphs would be stale")
    title = f"from_pretrained + first picture, {middle(loading):.2f} s, over switch + first picture"
    yield say(scale.device, "H10", ratios(loading, switching), at_least(10), title)


def batched(scale: Scale, pipeline: Any) -> Iterator[bool]:
    """H11: pictures for one tenant together, against one at a time."""
    count = scale.served_batch
    alone = scale.seconds(lambda: scale.pictures(pipeline, count, batch_size=1, steps=scale.steps))
    together = scale.seconds(lambda: scale.pictures(pipeline, count, batch_size=count, steps=scale.steps))
    title = f"{count} pictures one at a time, {count / middle(alone):.1f}/s, over the same together"
    yield say(scale.device, "H11", ratios(alone, together), at_least(1.4), title)


def share_of_switches(scale: Scale, skeleton: Skeleton) -> Iterator[bool]:
    """H12: tenants in turn, a batch each, all from host memory."""
    everyone = [in_host_memory(skeleton, scale, number) for number in range(scale.tenants)]
    count, shares = scale.served_batch, []

    def draw() -> None:
        scale.pictures(skeleton.pipeline, count, batch_size=count, steps=scale.steps)

    for _ in range(scale.goes):
        switching = drawing = 0.0
        for tenant in everyone:
            switching += scale.seconds_of(lambda tenant=tenant: tenant.activate(skeleton))
            drawing += scale.seconds_of(draw)
        shares.append(switching / (switching + drawing))
    title = f"share of switches, {scale.tenants} tenants in turn, {scale.steps} steps, batch {count}"
    yield say(scale.device, "H12", shares, at_most(0.05), title)


def tried(scale: Scale, skeleton: Skeleton, deadline: float) -> None:
    """What each change of the UNet gains at the class images' batch; one that fails says why."""
    plain = scale.seconds(block_of(scale, skeleton.pipeline))
    for name, change in changes(scale).items():
        if time.monotonic() > deadline:
            print(f"T {name}: not tried, {BUDGET_S:.0f} s are spent", flush=True)
            continue
        change(skeleton.pipeline.unet)
        list(attempt(f"T {name}", lambda name=name: [gain(scale, skeleton, plain, name)]))


def changes(scale: Scale) -> dict[str, Callable[[Any], object]]:
    """Name -> what it does to the UNet, each on top of those before."""
    found: dict[str, Callable[[Any], object]] = {
        "channels-last": lambda unet: unet.to(memory_format=torch.channels_last),
    }
    if scale.device.type != "cuda":
        return found
    return found | {"channels-last, torch.compile": lambda unet: unet.compile()}


def gain(scale: Scale, skeleton: Skeleton, plain: list[float], name: str) -> bool:
    """What the change gains. Another tenant must then compile nothing anew, and draw something else."""
    block = block_of(scale, skeleton.pipeline)
    seconds, before = scale.seconds(block), block()
    compiled = dict(torch._dynamo.utils.counters["stats"])
    in_host_memory(skeleton, scale, 40).activate(skeleton)
    after = block()
    check(dict(torch._dynamo.utils.counters["stats"]) == compiled, "a switch of tenants compiled the UNet anew")
    check(after[0].tobytes() != before[0].tobytes(), "a switch of tenants changed no picture")
    return say(scale.device, "T", ratios(plain, seconds), None, f"class images without over with {name}")


def check(is_true: bool, otherwise: str) -> None:
    """Raise where a figure would be of something else than it says."""
    if not is_true:
        raise AssertionError(otherwise)


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    sys.exit(main())
