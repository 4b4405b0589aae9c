"""How long a job takes and what it costs, calculated from the arithmetic and the bytes of its steps; not measured.

Every item is its physical floor on the named GPU times ABOVE_FLOOR, which is the goal for a step on one GPU (twice
and a half the sum of the floors) and about what 40 % of the matrix rate comes to for class images. A step takes no
less than the host needs to launch its kernels, which is what small steps on fast GPUs wait for.
"""

from dataclasses import dataclass

from booth_service.plan import Plan, Work

ABOVE_FLOOR = 2.5
HOST_S_PER_TENSOR = 0.18 / 686  # SimpleTuner's SD 1.x, batch 1: 0.18 s on an H100 and on an L40S, so neither is busy
BACKWARD = 3  # forward and backward over forward
BACKWARD_THROUGH = 2  # the same where no weight has a gradient: backward has one product for each, in place of two
RECOMPUTE = 4 / 3  # forward again: 1 of the 3 parts that forward and backward are
ADAM_BYTES = 28  # per parameter: weight, gradient and two moments read in fp32, three of them written
CLIP_BYTES = 4  # the norm reads the gradients once; its factor is folded into the step
CAST_BYTES = 6  # autocast reads fp32 and writes bf16, for every forward
HOST_LINK_BYTES_PER_S = 25e9  # PCIe 4 x16 with pinned memory
HOST_MEMORY_BYTES_PER_S = 50e9  # Adam on the CPU
START_UP_S = 60.0  # submit to first step, measured on a two-core machine with a tiny model: 52 s warm, 65 s cold
OF_DATA_SHEET = 0.8  # an H100 reaches 798 of 989 TFLOP/s in an 8192-cube product


@dataclass(frozen=True)
class Gpu:
    """Rates of a GPU: dense bf16 products, memory traffic, and the link to the other GPUs of its host."""

    memory_gb: float
    flop_per_s: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    source: str


NVLINK, PCIE = 400e9, 20e9
GPUS = {
    "h100": Gpu(80, 798e12, 3.0e12, NVLINK, "measured: 8192-cube bf16 product, device copy"),
    "h200": Gpu(141, 798e12, 0.9 * 4.8e12, NVLINK, "the H100's product; 0.9 of NVIDIA's data sheet, 4.8 TB/s"),
    "a100": Gpu(80, OF_DATA_SHEET * 312e12, 0.9 * 2.0e12, 0.6 * NVLINK, "0.8 and 0.9 of NVIDIA's data sheet"),
    "l40s": Gpu(48, OF_DATA_SHEET * 362e12, 0.9 * 0.864e12, PCIE, "0.8 and 0.9 of NVIDIA's data sheet, dense"),
    "a10g": Gpu(24, OF_DATA_SHEET * 70e12, 0.9 * 0.6e12, PCIE, "0.8 and 0.9 of AWS's and NVIDIA's data sheets"),
    "l4": Gpu(24, OF_DATA_SHEET * 121e12, 0.9 * 0.3e12, PCIE, "0.8 and 0.9 of NVIDIA's data sheet, dense"),
}


@dataclass(frozen=True)
class Estimate:
    """Seconds of a job's parts and of one step; `gpu_hours` counts all ranks from start to end."""

    start_up_s: float
    class_images_s: float
    encoding_s: float
    training_s: float
    step_s: float
    gpu_hours: float

    @property
    def total_s(self) -> float:
        """From submit to the last step."""
        return self.start_up_s + self.class_images_s + self.encoding_s + self.training_s


def estimate(
    layout: Plan, work: Work, gpu: Gpu, *, steps: int, num_class_images: int, num_photos: int, num_inference_steps: int
) -> Estimate:
    """The time of a whole job whose class images are not there yet. `num_inference_steps` is theirs, with guidance."""
    cells = work.sizes.latent_cells(work.resolution)
    unet_calls = 2 * num_inference_steps * work.sizes.unet_flop(cells)
    class_flop = num_class_images * (unet_calls + work.sizes.vae_flop(cells, "decode"))
    encode_flop = (num_class_images + num_photos) * work.sizes.vae_flop(cells, "encode")
    rate = gpu.flop_per_s / ABOVE_FLOOR
    step_s = max(step_floor_s(layout, work, gpu) * ABOVE_FLOOR, launching_s(layout, work))
    class_images_s = class_flop / rate / layout.ranks
    encoding_s = encode_flop / rate  # every rank encodes all pictures
    total_s = START_UP_S + class_images_s + encoding_s + steps * step_s
    return Estimate(
        START_UP_S, class_images_s, encoding_s, steps * step_s, step_s, gpu_hours=total_s * layout.ranks / 3600
    )


def step_floor_s(layout: Plan, work: Work, gpu: Gpu) -> float:
    """Seconds that one optimizer step takes at the least: products, optimizer, casts, and gradients between ranks."""
    cells = work.sizes.latent_cells(work.resolution)
    rows = layout.micro_batch_size * layout.gradient_accumulation_steps
    forward = work.sizes.unet_flop(cells) + (work.sizes.text_flop() if work.text_has_gradient else 0)
    flop = (BACKWARD_THROUGH if work.inverts_token else BACKWARD) * rows * forward
    if layout.activation_checkpointing:
        flop *= RECOMPUTE
    own = work.trained_parameters / layout.ranks
    seconds = flop / gpu.flop_per_s
    if layout.offload_optimizer:
        seconds += own * 2 * 2 / HOST_LINK_BYTES_PER_S + own * (ADAM_BYTES + CLIP_BYTES) / HOST_MEMORY_BYTES_PER_S
    else:
        seconds += own * (ADAM_BYTES + CLIP_BYTES) / gpu.memory_bytes_per_s
    if layout.zero_stage == 0:
        casts = layout.gradient_accumulation_steps * work.trained_parameters * CAST_BYTES
        seconds += casts / gpu.memory_bytes_per_s
    return seconds + exchange_s(layout, work, gpu)


def launching_s(layout: Plan, work: Work) -> float:
    """Seconds that the host needs for the kernels of a step's micro-batches."""
    tensors = work.sizes.tensors(work.text_has_gradient)
    recompute = RECOMPUTE if layout.activation_checkpointing else 1
    return layout.gradient_accumulation_steps * tensors * HOST_S_PER_TENSOR * recompute


def exchange_s(layout: Plan, work: Work, gpu: Gpu) -> float:
    """Seconds that gradients and weights travel: 2P elements a step, 3P at stage 3 (Rajbhandari et al. 2020, 7)."""
    if layout.ranks == 1:
        return 0.0
    share = (layout.ranks - 1) / layout.ranks
    elements = (3 if layout.zero_stage == 3 else 2) * work.trained_parameters
    return elements * 2 * share / gpu.link_bytes_per_s
