"""How fast a training step is on this GPU against what it can be: python tests/gpu/step.py, in under nine minutes.

Random weights of Stable Diffusion 1.5's shape, 512 px, bf16, UNet and text encoder trained. It needs torch, diffusers,
transformers and pydantic, and DeepSpeed for H4; no Ray, no S3, nothing installed of Booth. First the machine's own
ceilings, then one line for each figure in the form of `make bench`, then what was tried on the bare step. Arms follow
one another on a GPU that nobody else uses; what spreads are blocks of steps. Exit status 1 where a figure is short.

--cpu-miniature runs all of it at an eighth of the widths and 64 px on the CPU in seconds, to see that it runs.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "service"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sdk"))

import arms
import ceilings
import torch
import torch.distributed as dist
from arms import Setting
from figure import at_least, at_most
from said import attempt, ratios, say

from booth_service.settings import torchrun_place

BUDGET_S = 480.0  # what is tried last is left out once this is spent
GB = 1e9
STATE_BYTES = 16  # fp32 weight, gradient, two moments
ADAMW_BYTES, NORM_BYTES, CAST_BYTES = 28, 4, 6  # traffic of a step for each parameter; clipping is in AdamW's kernel


def gpu_setting(folder: Path) -> Setting:
    """The real size."""
    return Setting(folder, torch.device("cuda", 0), True, 1, 512, warm_up=5, blocks=6, block_steps=5)


def cpu_setting(folder: Path) -> Setting:
    """The miniature: fp32, two steps of everything."""
    return Setting(folder, torch.device("cpu"), False, 8, 64, warm_up=1, blocks=1, block_steps=1)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cpu-miniature", action="store_true", help="everything at a tiny size on the CPU")
    is_small = parser.parse_args(argv).cpu_miniature
    if not is_small and not torch.cuda.is_available():
        print("No CUDA device. --cpu-miniature runs the same at a tiny size on the CPU.", file=sys.stderr)
        return 2
    rank, ranks, _ = torchrun_place()
    dist.init_process_group("gloo" if is_small else "nccl", rank=rank, world_size=ranks)
    with tempfile.TemporaryDirectory(prefix="booth-step-") as folder:
        setting = cpu_setting(Path(folder)) if is_small else gpu_setting(Path(folder))
        is_reached = measure(setting, small=is_small)
    dist.destroy_process_group()
    return 0 if is_reached or is_small else 1


def measure(setting: Setting, small: bool) -> bool:
    """Print all figures; True where every goal is reached. `small`: fewer rows."""
    began = time.monotonic()
    device = setting.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, miniature"
    best = ceilings.measure(device, torch.bfloat16 if setting.bf16 else torch.float32, 2**20 if small else 2**30)
    print(f"{name}, torch {torch.__version__}: {best}", flush=True)
    said = [
        *steps_of_two(setting, best),
        *attempt("H3", lambda: [throughput(setting, best, 2 if small else 16)]),
        *attempt("H4", lambda: deepspeed_cost(setting, (1,) if small else (1, 8))),
    ]
    tried(setting, deadline=began + BUDGET_S)
    print(f"took {time.monotonic() - began:.0f} s", flush=True)
    return all(said)


def steps_of_two(setting: Setting, best: ceilings.Ceilings) -> Iterator[bool]:
    """H1, H2 and H5: steps of one instance and one class row."""
    arithmetic, parameters = arms.flops(setting, 1)
    ours, peak = arms.booth(setting, 1)
    theirs = arms.reference(setting, 1)
    floor = floor_s(arithmetic, parameters, best)
    print(f"reference {milliseconds(theirs)}, ours {milliseconds(ours)}, floor {1e3 * floor:.1f} ms a step", flush=True)
    yield say(setting.device, "H1", ratios(theirs, ours), at_least(2.5), "reference loop over ours, 1+1 images")
    over_floor = [seconds / floor for seconds in ours]
    yield say(setting.device, "H2", over_floor, at_most(2.5), "ours over the sum of the floors")
    states = STATE_BYTES * parameters / GB
    yield say(setting.device, "H5", [peak / GB], at_most(states + 6), f"peak GB, 1+1 images; states are {states:.2f}")


def throughput(setting: Setting, best: ceilings.Ceilings, train_batch_size: int) -> bool:
    """H3."""
    arithmetic, _ = arms.flops(setting, train_batch_size)
    seconds, _ = arms.booth(setting, train_batch_size)
    mfu = [arithmetic / s / best.matrix_flops for s in seconds]
    rate = 2 * train_batch_size / sorted(seconds)[len(seconds) // 2]
    title = f"of the product rate at {train_batch_size}+{train_batch_size} images ({rate:.1f} images/s)"
    return say(setting.device, "H3", mfu, at_least(0.35), title)


def deepspeed_cost(setting: Setting, sizes: Sequence[int]) -> Iterator[bool]:
    """H4: DeepSpeed's engine at world size 1 over the bare loop."""
    import deepspeed  # noqa: F401

    for train_batch_size, goal in zip(sizes, (1.25, 1.05), strict=False):
        bare = arms.bare(setting, train_batch_size)
        for stage in (1, 2):
            sharded = arms.bare(setting, train_batch_size, zero_stage=stage)
            title = f"DeepSpeed over the bare loop at {train_batch_size}+{train_batch_size} images, stage {stage}"
            yield say(setting.device, f"H4-{train_batch_size}-{stage}", ratios(sharded, bare), at_most(goal), title)


def tried(setting: Setting, deadline: float) -> None:
    """What each change of the bare step gains, 1+1 images; a change that fails says why."""
    bare = arms.bare(setting, 1)
    print(f"bare step {milliseconds(bare)}; over each of these changes:", flush=True)
    for name, (how, surroundings) in changes(setting).items():
        if time.monotonic() > deadline:
            print(f"T {name}: not tried, {BUDGET_S:.0f} s are spent", flush=True)
            continue
        with surroundings:
            list(attempt(f"T {name}", lambda how=how, name=name: [compare(setting, bare, name, how)]))


def compare(setting: Setting, bare: list[float], name: str, how: dict[str, Any]) -> bool:
    return say(setting.device, "T", ratios(bare, arms.bare(setting, 1, **how)), None, f"bare step over: {name}")


def changes(setting: Setting) -> dict[str, tuple[dict[str, Any], Any]]:
    """Name -> arguments of the bare loop, and what lies round it. Cheap ones first."""
    found: dict[str, tuple[dict[str, Any], Any]] = {
        "AdamW foreach": ({"optimizer": {"fused": False, "foreach": True}}, nullcontext()),
        "channels-last": ({"change": lambda module: module.unet.to(memory_format=torch.channels_last)}, nullcontext()),
    }
    if setting.device.type != "cuda":
        return found
    capturable = {"capture": True, "optimizer": {"fused": True, "capturable": True}}
    channels_last = found["channels-last"][0]["change"]
    return found | {
        "cuDNN's own search": ({}, arms.cudnn_benchmark()),
        "CUDA graph": (capturable, nullcontext()),
        "CUDA graph, channels-last": (capturable | {"change": channels_last}, arms.cudnn_benchmark()),
        "torch.compile, reduce-overhead": (
            {"change": lambda module: module.unet.compile(mode="reduce-overhead")},
            nullcontext(),
        ),
        "torch.compile": ({"change": lambda module: module.unet.compile()}, nullcontext()),
    }


def floor_s(arithmetic: int, parameters: int, best: ceilings.Ceilings) -> float:
    """Least seconds of a step: its products, AdamW's traffic, the norm's, and the casts of all weights."""
    traffic = parameters * (ADAMW_BYTES + NORM_BYTES + CAST_BYTES)
    return arithmetic / best.matrix_flops + traffic / best.copy_bytes


def milliseconds(seconds: Sequence[float]) -> str:
    return f"{1e3 * sorted(seconds)[len(seconds) // 2]:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
