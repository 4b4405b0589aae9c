"""C4: the chooser against a table worked out by hand, for SD 1.5 and SDXL on 1-8 GPUs of 16-80 GB.

BY_HAND is what a person gets with a pocket calculator from the figures below; nothing of it comes from the code that
chooses. The job: 4 instance and 4 class rows a step, UNet and all text encoders trained, AdamW, bf16, no average.
Everything is in GB of 10^9 bytes.

A GPU of 16 / 24 / 40 / 80 GB offers  14.36 / 22.04 / 37.40 / 75.80: less 4 % for fragments, less 1 for CUDA.

Parameters P, in 10^9:  SD 1.5  0.8595 + 0.1231 = 0.9826;  SDXL  2.5675 + 0.1231 + 0.6947 = 3.3852.
VAE, fp32, 0.0837 x 4 = 0.335. Buckets 2 x 50 M x 2 bytes = 0.2, or 2 x 25 M x 2 bytes = 0.1 where that helps.
Stage 3 gathers at most 1.05e9 weights besides: SDXL 2.1.

Bytes of state for a parameter, N ranks (ZeRO paper, with DeepSpeed's fp32 copy of the gradient in the step):
plain 4 + 4 + 8 and autocast's 2 = 18;  stage 1  2 + max(2 + 12/N, 16/N);  stage 2  2 + 16/N;  stage 3  20/N;
stage 2 with the optimizer in host memory  2.

                 plain  N=2 (1 = 2 = 3)  N=4: 1 / 2 / 3         N=8: 1 / 2 / 3        in host memory
SD 1.5 states   17.686       9.826       6.878  5.895  4.913   5.404  3.930  2.456        1.965
SDXL   states   60.933      33.852      23.696 20.311 16.926  18.619 13.541  8.463        6.770

A row, from the measured table (cells x bytes + text encoders) x 1.05 for backward's own:
SD 1.5, 512 px, 4096 cells:    (4096 x 227,628 + 28.6 M) x 1.05 = 1.009, plain engine (302,187; 34.4 M) 1.336
SDXL, 1024 px, 16384 cells:    (16384 x 418,803 + 28.6 M + 101.3 M) x 1.05 = 7.341
                               plain engine (525,758; 34.4 M + 126.8 M) 9.214
       activations recomputed  (16384 x 44,831 + 3.9 M + 9.7 M) x 1.05 = 0.785
"""

from typing import NamedTuple

from booth_service.plan import GB, Devices, Work, plan
from booth_service.plan_sizes import sizes_of_family


class Choice(NamedTuple):
    """What the chooser decides."""

    ranks: int
    zero_stage: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    recomputes: bool = False
    offloads: bool = False


BY_HAND = {
    # SD 1.5. One GPU, plain: 17.686 + 0.335 = 18.021.
    ("sd15", 16, 1): Choice(1, 2, 8, 1, offloads=True),  # 18.0 > 14.36; host: 1.965 + 0.535 + 8 x 1.009 = 10.57
    ("sd15", 24, 1): Choice(1, 0, 2, 4),  # 4.019 left / 1.336 = 3.008; of 8 rows 2 at once
    ("sd15", 40, 1): Choice(1, 0, 8, 1),  # 18.021 + 8 x 1.336 = 28.7
    ("sd15", 80, 1): Choice(1, 0, 8, 1),
    # Two: 9.826 + 0.535 = 10.361 and 4 rows of 1.009 = 14.397; with the small buckets 14.297.
    ("sd15", 16, 2): Choice(2, 1, 4, 1),
    ("sd15", 24, 2): Choice(2, 1, 4, 1),
    ("sd15", 40, 2): Choice(2, 1, 4, 1),
    ("sd15", 80, 2): Choice(2, 1, 4, 1),
    # Four: 6.878 + 0.535 + 2 x 1.009 = 9.43.
    ("sd15", 16, 4): Choice(4, 1, 2, 1),
    ("sd15", 24, 4): Choice(4, 1, 2, 1),
    ("sd15", 40, 4): Choice(4, 1, 2, 1),
    ("sd15", 80, 4): Choice(4, 1, 2, 1),
    # Eight: 5.404 + 0.535 + 1.009 = 6.95.
    ("sd15", 16, 8): Choice(8, 1, 1, 1),
    ("sd15", 24, 8): Choice(8, 1, 1, 1),
    ("sd15", 40, 8): Choice(8, 1, 1, 1),
    ("sd15", 80, 8): Choice(8, 1, 1, 1),
    # SDXL. One GPU: plain 61.268; in host memory 6.770 + 0.535 = 7.305.
    ("sdxl", 16, 1): Choice(1, 2, 8, 1, True, True),  # 7.055 left: no row of 7.341, but 8 x 0.785 = 6.28
    ("sdxl", 24, 1): Choice(1, 2, 2, 4, offloads=True),  # 14.735 left / 7.341 = 2.007
    ("sdxl", 40, 1): Choice(1, 2, 4, 2, offloads=True),  # 30.095 left / 7.341 = 4.1
    ("sdxl", 80, 1): Choice(1, 0, 1, 8),  # 14.532 left / 9.214 = 1.58
    # Two, 4 rows each: every stage 33.852 + 0.535 = 34.387.
    ("sdxl", 16, 2): Choice(2, 2, 4, 1, True, True),  # host: 7.055 left < 7.341; 4 x 0.785 = 3.14
    ("sdxl", 24, 2): Choice(2, 2, 2, 2, offloads=True),  # host: 14.735 left / 7.341 = 2.007
    ("sdxl", 40, 2): Choice(2, 1, 2, 2, True),  # 3.013 left < 7.341; / 0.785 = 3.84, small buckets 3.96: 2
    ("sdxl", 80, 2): Choice(2, 1, 4, 1),  # 34.387 + 4 x 7.341 = 63.8
    # Four, 2 rows each: stage 1 24.231, stage 2 20.846, stage 3 16.926 + 0.335 + 2.3 = 19.561.
    ("sdxl", 16, 4): Choice(4, 2, 2, 1, True, True),  # no stage; host: 7.055 left < 7.341; 2 x 0.785 = 1.57
    ("sdxl", 24, 4): Choice(4, 2, 1, 2, True),  # 2: 1.194 left < 7.341; 1 not at all; 1.194 / 0.785 = 1.52
    ("sdxl", 40, 4): Choice(4, 1, 1, 2),  # 13.169 left / 7.341 = 1.79
    ("sdxl", 80, 4): Choice(4, 1, 2, 1),
    # Eight, 1 row each: stage 1 19.154, stage 2 14.076, stage 3 8.463 + 0.335 + 2.3 = 11.098.
    ("sdxl", 16, 8): Choice(8, 3, 1, 1, True),  # 2: 0.284, small buckets 0.384 left < 0.785; 3: 3.262 left < 7.341
    ("sdxl", 24, 8): Choice(8, 2, 1, 1),  # 1: 2.886 left; 2: 7.964 left > 7.341, before recomputing at stage 1
    ("sdxl", 40, 8): Choice(8, 1, 1, 1),  # 18.246 left
    ("sdxl", 80, 8): Choice(8, 1, 1, 1),
}


def chosen_by_the_planner(family: str, memory_gb: int, gpus: int) -> Choice:
    """What the code under test decides for one case."""
    sizes = sizes_of_family(family)
    work = Work(sizes, train_batch_size=4, with_prior=True, resolution=sizes.resolution_px)
    layout = plan(Devices(cpus=gpus, gpus=gpus, gpu_memory_bytes=memory_gb * GB), work)
    return Choice(
        layout.ranks,
        layout.zero_stage,
        layout.micro_batch_size,
        layout.gradient_accumulation_steps,
        layout.activation_checkpointing,
        layout.offload_optimizer,
    )


def agreement() -> int:
    """How many cases the planner decides as the table by hand does."""
    return sum(chosen_by_the_planner(*case) == choice for case, choice in BY_HAND.items())


def report_agreement(name: str) -> bool:
    """One line, as the other figures have it; True where all cases agree."""
    agreed, cases = agreement(), len(BY_HAND)
    verdict = "ok" if agreed == cases else "SHORT"
    print(f"{name} {agreed} of {cases} goal ={cases} {verdict}  plans as worked out by hand", flush=True)
    return agreed == cases
