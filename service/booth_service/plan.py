"""How a job is laid out on the cluster: one pure function of numbers, no torch."""

from dataclasses import dataclass

from booth_service.errors import DoesNotFit

BYTES_PER_TRAINED_PARAMETER = 18  # bf16 weight and gradient, fp32 master, gradient and two Adam moments
SHARDED_BY_STAGE_1 = 12  # master and moments
SHARDED_BY_STAGE_2 = 16  # and gradients
ACTIVATION_RESERVE_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Devices:
    """What the cluster offers to one job's gang."""

    cpus: float
    gpus: float
    gpu_memory_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """Ranks, their devices, the rows each works on, and how a rank holds its memory; `why` says it in one line.

    A step's rows are ranks x micro_batch_size x gradient_accumulation_steps. `zero_stage` 0 is one rank with a plain
    fused optimizer and no DeepSpeed. The byte counts are of the fullest rank; `available_bytes` 0 means that the
    memory of the device is not known, as on CPUs. `bucket_elements` is for gradients on their way between ranks.
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
    bucket_elements: int = 50_000_000
    state_bytes: int = 0
    activation_bytes: int = 0
    available_bytes: int = 0


def plan(
    devices: Devices,
    *,
    train_batch_size: int,
    with_prior: bool,
    trained_parameters: int,
    serving_gpus: float,
    max_ranks: int,
) -> Plan:
    """The layout of a job. A step has train_batch_size instance rows and, with the prior, as many class rows.

    Ranks always divide the rows, so that every rank has equal work and the result does not depend on their number.
    Raises DoesNotFit where no device is left, or the model's states do not fit at stage 2.
    """
    rows = train_batch_size * (2 if with_prior else 1)
    use_gpu = devices.gpus > 0
    free = int(devices.gpus - serving_gpus) if use_gpu else int(devices.cpus)
    if free < 1:
        held = (
            f"{devices.gpus:g} GPUs, of which serving holds {serving_gpus:g}" if use_gpu else f"{devices.cpus:g} CPUs"
        )
        raise DoesNotFit(f"the cluster has {held}; training needs at least one whole device")
    allowed = min(free, rows, max_ranks or rows)
    ranks = max(number for number in range(1, allowed + 1) if rows % number == 0)
    stage = _lowest_stage(devices.gpu_memory_bytes, ranks, trained_parameters) if use_gpu else 1
    kind = "GPU" if use_gpu else "CPU"
    why = f"{ranks} ranks on {kind}s for {rows} rows a step, {rows // ranks} rows each, ZeRO stage {stage}"
    fewer = None
    if ranks < min(rows, max_ranks or rows):
        fewer = f"training runs on {ranks} of {min(rows, max_ranks or rows)} possible ranks: {free} {kind}s are free"
    return Plan(
        ranks=ranks,
        use_gpu=use_gpu,
        cpus_per_rank=1.0 if use_gpu else 0.9,
        micro_batch_size=rows // ranks,
        gradient_accumulation_steps=1,
        zero_stage=stage,
        why=why,
        fewer_ranks_than_rows=fewer,
    )


def state_bytes(trained_parameters: int, ranks: int, stage: int) -> int:
    """Model states on one rank at ZeRO stage 1 or 2 (Rajbhandari et al. 2020, section 3)."""
    sharded = SHARDED_BY_STAGE_1 if stage == 1 else SHARDED_BY_STAGE_2
    return trained_parameters * (BYTES_PER_TRAINED_PARAMETER - sharded) + trained_parameters * sharded // ranks


def _lowest_stage(gpu_memory_bytes: int, ranks: int, trained_parameters: int) -> int:
    for stage in (1, 2):
        need = state_bytes(trained_parameters, ranks, stage) + ACTIVATION_RESERVE_BYTES
        if gpu_memory_bytes == 0 or need <= gpu_memory_bytes:
            return stage
    raise DoesNotFit(
        f"{trained_parameters / 1e9:.2f} billion trained parameters need {need / 2**30:.0f} GiB on each of "
        f"{ranks} GPUs, which have {gpu_memory_bytes / 2**30:.0f} GiB"
    )
