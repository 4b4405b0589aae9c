"""How a job is laid out on the cluster: one pure function of numbers, no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from booth.contract.jobs import OptimizerName, Params, Precision
from booth_service import plan_memory as memory
from booth_service.errors import DoesNotFit
from booth_service.plan_sizes import ModelSizes

GB = 10**9


@dataclass(frozen=True)
class Devices:
    """What the cluster offers to one job's gang. `gpu_memory_bytes` 0: not known, and nothing is refused for it."""

    cpus: float
    gpus: float
    gpu_memory_bytes: int = 0


@dataclass(frozen=True)
class Work:
    """What one optimizer step of a job is: rows of pictures through parts of known sizes.

    `inverts_token`: one row of each text encoder's embedding is trained (Textual Inversion), through all other parts.
    """

    sizes: ModelSizes
    train_batch_size: int
    with_prior: bool
    resolution: int
    train_text_encoder: bool = True
    precision: Precision = "auto"
    optimizer: OptimizerName = "adamw"
    ema: bool = False
    inverts_token: bool = False

    @property
    def rows(self) -> int:
        """train_batch_size instance rows and, with the prior, as many class rows."""
        return self.train_batch_size * (2 if self.with_prior else 1)

    @property
    def trained_parameters(self) -> int:
        """Parameters that the optimizer moves."""
        if self.inverts_token:
            return sum(self.sizes.text_widths)
        return self.sizes.unet_parameters + (sum(self.sizes.text_encoder_parameters) if self.train_text_encoder else 0)

    @property
    def frozen_parameters(self) -> int:
        """Parameters of the UNet and the text encoders that lie on the device and are not trained."""
        text = sum(self.sizes.text_encoder_parameters)
        if self.inverts_token:
            return self.sizes.unet_parameters + text
        return 0 if self.train_text_encoder else text

    @property
    def text_has_gradient(self) -> bool:
        """True where every step goes through the text encoders and back."""
        return self.train_text_encoder or self.inverts_token


@dataclass(frozen=True)
class Plan:
    """Ranks, their devices, the rows each works on, and how a rank holds its memory; `why` says it in one line.

    A step's rows are ranks x micro_batch_size x gradient_accumulation_steps. `zero_stage` 0 is one rank with a plain
    fused optimizer and no DeepSpeed. The byte counts are of one rank; `available_bytes` 0 means that the memory of
    the device is not known, as on CPUs. `host_bytes` is what an offloaded optimizer takes. `bucket_elements` is for
    gradients on their way between ranks.
    """

    ranks: int
    use_gpu: bool
    cpus_per_rank: float
    micro_batch_size: int
    gradient_accumulation_steps: int
    zero_stage: int
    why: str
    fewer_ranks_than_rows: str | None = None
    offload_optimizer: bool = False
    activation_checkpointing: bool = False
    bucket_elements: int = memory.BUCKET_ELEMENTS[0]
    state_bytes: int = 0
    activation_bytes: int = 0
    frozen_bytes: int = 0
    buffer_bytes: int = 0
    available_bytes: int = 0
    host_bytes: int = 0

    @property
    def needed_bytes(self) -> int:
        """All that a rank holds at its fullest."""
        return self.state_bytes + self.activation_bytes + self.frozen_bytes + self.buffer_bytes


class Way(NamedTuple):
    """How a rank may hold its memory."""

    zero_stage: int
    offload_optimizer: bool
    activation_checkpointing: bool


# From fast to slow. Stage 2 costs some percent over stage 1; recomputing activations a third of the arithmetic (1.7x
# in SimpleTuner's table for SD 1.x on an H100); stage 3 two to three times stage 2 for these many small tensors; and
# offload moves every gradient and weight over PCIe and steps on the CPU. Rows that do not fit at once are accumulated.
WAYS = (
    Way(1, False, False),
    Way(2, False, False),
    Way(1, False, True),
    Way(2, False, True),
    Way(3, False, False),
    Way(3, False, True),
    Way(2, True, False),
    Way(2, True, True),
    Way(3, True, False),
    Way(3, True, True),
)
# One rank has nobody to share with: plain, or what does not fit in the host's memory.
WAYS_OF_ONE_RANK = (Way(0, False, False), Way(0, False, True), Way(2, True, False), Way(2, True, True))


def work_of(params: Params, sizes: ModelSizes) -> Work:
    """A job's step, from its resolved parameters and its base model's sizes."""
    return Work(
        sizes=sizes,
        train_batch_size=params.train_batch_size,
        with_prior=params.num_class_images > 0,
        resolution=params.resolution,
        train_text_encoder=params.train_text_encoder,
        precision=params.precision,
        optimizer=params.optimizer,
        ema=params.ema_decay > 0,
        inverts_token=params.method == "textual_inversion",
    )


def plan(devices: Devices, work: Work, *, serving_gpus: float = 0, max_ranks: int = 0, min_zero_stage: int = 0) -> Plan:
    """The fastest layout of a job that fits, the same for the same numbers. `max_ranks` 0: no limit.

    As many ranks as divide the rows of a step evenly, so that every rank has equal work and the result does not
    depend on their number; then the first of WAYS that fits with one row at least; then the most rows at once.
    Raises DoesNotFit where no device is left, or nothing fits.
    """
    use_gpu = devices.gpus > 0
    free = _free_devices(devices, serving_gpus)
    possible = min(work.rows, max_ranks or work.rows)
    ranks = max(number for number in range(1, min(free, possible) + 1) if work.rows % number == 0)
    candidates = list(_candidates(work, ranks, use_gpu, min_zero_stage))
    known = use_gpu and devices.gpu_memory_bytes > 0
    available = max(1, memory.usable_bytes(devices.gpu_memory_bytes)) if known else 0
    fitting = (each for each in candidates if not available or each.needed_bytes <= available)
    chosen = next(fitting, None)
    if chosen is None:
        raise DoesNotFit(_refusal(work, devices, ranks, min(candidates, key=lambda each: each.needed_bytes), available))
    kind = "GPU" if use_gpu else "CPU"
    fewer = None
    if ranks < possible:
        fewer = f"training runs on {ranks} of {possible} possible ranks: {free} {kind}s are free"
    idle = min(free, max_ranks or free) - work.rows
    return _with_words(chosen, work, available, fewer, max(0, idle))


def _free_devices(devices: Devices, serving_gpus: float) -> int:
    use_gpu = devices.gpus > 0
    free = int(devices.gpus - serving_gpus) if use_gpu else int(devices.cpus)
    if free < 1:
        held = (
            f"{devices.gpus:g} GPUs, of which serving holds {serving_gpus:g}" if use_gpu else f"{devices.cpus:g} CPUs"
        )
        raise DoesNotFit(f"the cluster has {held}; training needs at least one whole device")
    return free


def _candidates(work: Work, ranks: int, use_gpu: bool, min_zero_stage: int) -> Iterator[Plan]:
    """Every layout of so many ranks, the fastest first. One rank has nobody to share with, whatever the least stage."""
    rows = work.rows // ranks
    ways = [way for way in WAYS if way.zero_stage >= min_zero_stage] if ranks > 1 else list(WAYS_OF_ONE_RANK)
    for way in ways if use_gpu else ways[:1]:
        for micro_batch_size in (size for size in range(rows, 0, -1) if rows % size == 0):
            for bucket_elements in memory.BUCKET_ELEMENTS:
                yield _layout(work, ranks, use_gpu, way, micro_batch_size, bucket_elements)


def _layout(work: Work, ranks: int, use_gpu: bool, way: Way, micro_batch_size: int, bucket_elements: int) -> Plan:
    bf16 = work.precision == "bf16" or (work.precision == "auto" and use_gpu)
    mode = memory.mode_of(way.zero_stage, bf16)
    return Plan(
        ranks=ranks,
        use_gpu=use_gpu,
        cpus_per_rank=1.0 if use_gpu else 0.9,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=work.rows // ranks // micro_batch_size,
        zero_stage=way.zero_stage,
        why="",
        offload_optimizer=way.offload_optimizer,
        activation_checkpointing=way.activation_checkpointing,
        bucket_elements=bucket_elements,
        state_bytes=memory.state_bytes(
            work.trained_parameters,
            ranks,
            way.zero_stage,
            bf16=bf16,
            eight_bit=work.optimizer == "adamw_8bit",
            ema=work.ema,
            offload_optimizer=way.offload_optimizer,
        ),
        activation_bytes=memory.activation_bytes(
            work.sizes,
            rows=micro_batch_size,
            latent_cells=work.sizes.latent_cells(work.resolution),
            mode=mode,
            checkpointed=way.activation_checkpointing,
            train_text_encoder=work.text_has_gradient,
        ),
        frozen_bytes=memory.frozen_bytes(
            work.sizes.vae_parameters, work.frozen_parameters, half=mode == "bf16" or (bf16 and work.inverts_token)
        ),
        host_bytes=memory.host_bytes(work.trained_parameters, ranks, bf16=bf16) if way.offload_optimizer else 0,
        buffer_bytes=memory.buffer_bytes(work.trained_parameters, way.zero_stage, bucket_elements, bf16=bf16),
    )


def _with_words(chosen: Plan, work: Work, available: int, fewer: str | None, idle: int) -> Plan:
    kind = "GPU" if chosen.use_gpu else "CPU"
    rows = chosen.micro_batch_size * chosen.gradient_accumulation_steps
    words = [
        f"{chosen.ranks} rank{'s' * (chosen.ranks > 1)} on {kind}s for {work.rows} rows a step, {rows} each",
        f"ZeRO stage {chosen.zero_stage}" if chosen.zero_stage else "plain optimizer, nothing to share",
    ]
    if idle:
        words.append(f"no row for {idle} more")
    if chosen.gradient_accumulation_steps > 1:
        words.append(f"{chosen.micro_batch_size} at once, {chosen.gradient_accumulation_steps} accumulated")
    if chosen.activation_checkpointing:
        words.append("activations recomputed")
    if chosen.offload_optimizer:
        words.append(f"optimizer in {_gb(chosen.host_bytes)} GB of host memory")
    if available:
        words.append(f"{_gb(chosen.needed_bytes)} of {_gb(available)} GB")
    if work.sizes.scaled_from:
        words.append(f"rows estimated from {work.sizes.scaled_from}")
    return replace(chosen, why=", ".join(words), fewer_ranks_than_rows=fewer, available_bytes=available)


def _refusal(work: Work, devices: Devices, ranks: int, least: Plan, available: int) -> str:
    remedies = ["use GPUs with more memory"]
    if work.resolution > work.sizes.vae_scale_factor * 8:
        remedies.append(f"a resolution below {work.resolution} px")
    if work.train_text_encoder and work.sizes.text_encoder_parameters:
        remedies.append("train_text_encoder=False")
    what = f"{work.trained_parameters / 1e9:.2f} billion trained parameters"
    if work.inverts_token:
        what = "the embedding of one token, trained through all other parts,"
    return (
        f"{what} at {work.resolution} px need at least "
        f"{_gb(least.needed_bytes)} GB ({least.needed_bytes} bytes) on each of {ranks} GPUs, of whose "
        f"{_gb(devices.gpu_memory_bytes)} GB training may fill {_gb(available)} GB ({available} bytes), even with "
        f"the optimizer in host memory and activations recomputed; {' or '.join(remedies)}"
    )


def _gb(count: int) -> str:
    return f"{count / GB:.1f}"
