"""How much memory a rank needs: what the engine holds, what a row leaves for backward, what is set aside."""

# P = trained parameters;  N = ranks;  w, g = bytes of a weight and of its gradient;  m = bytes of Adam's two moments

import math

from booth_service.plan_sizes import Mode, ModelSizes

MASTER_BYTES = 4  # fp32
MOMENTS_BYTES, MOMENTS_BYTES_8_BIT = 8, 2
BUCKET_ELEMENTS = (50_000_000, 25_000_000)  # performance: overlap is lost above, launches dominate below
BUFFERED_BUCKETS = 2  # contiguous gradients with overlap: one fills while the other travels
LIVE_PARAMETERS, PREFETCHED = 1_000_000_000, 50_000_000  # stage 3 gathers so many weights at most (its defaults)
CONTEXT_BYTES = 1_000_000_000  # CUDA context, cuDNN, cuBLAS and NCCL workspaces
BACKWARD_WORKSPACE = 1.05  # gradients of activations on their way; 1.02 at the fullest moment of SD 1.5, traced
FRAGMENTATION = 0.04  # share of the memory that the allocator cannot use


def usable_bytes(gpu_memory_bytes: int) -> int:
    """Memory of a GPU that a plan may fill."""
    return int(gpu_memory_bytes * (1 - FRAGMENTATION)) - CONTEXT_BYTES


def mode_of(zero_stage: int, bf16: bool) -> Mode:
    """How the network computes: plain bf16 weights under DeepSpeed, fp32 weights under autocast without it."""
    if not bf16:
        return "fp32"
    return "bf16" if zero_stage else "autocast"


def state_bytes(
    trained_parameters: int,
    ranks: int,
    zero_stage: int,
    *,
    bf16: bool = True,
    eight_bit: bool = False,
    ema: bool = False,
    offload_optimizer: bool = False,
) -> int:
    """Weights, gradients, masters and moments on one rank at their fullest moment of a step.

    Stages follow Rajbhandari et al. 2020, section 3, with the buffers that DeepSpeed 0.19.8 really has: gradients are
    cast to fp32 for the step beside the masters, stage 1 keeps all gradients until backward ends, and fp32 training
    has masters of its own too. Stage 0 is fp32 weights with autocast's bf16 copies and no engine; it alone has
    8-bit moments. An average of the weights is sharded as the masters are.
    """
    w, m, average = (
        (2 if bf16 else 4),
        (MOMENTS_BYTES_8_BIT if eight_bit and zero_stage == 0 else MOMENTS_BYTES),
        (MASTER_BYTES if ema else 0),
    )
    g, step_gradient = w, 4
    if zero_stage == 0:
        return trained_parameters * (MASTER_BYTES + step_gradient + m + average + (2 if bf16 else 0))
    if offload_optimizer:
        whole, shared = (w, 0) if zero_stage < 3 else (0, w + g)
    elif zero_stage == 1:
        whole, shared = w, average + MASTER_BYTES + m + max(g * ranks, step_gradient)
    elif zero_stage == 2:
        whole, shared = w, average + MASTER_BYTES + m + step_gradient
    else:
        whole, shared = 0, average + w + g + MASTER_BYTES + m + step_gradient
    return trained_parameters * whole + -(-trained_parameters * shared // ranks)


def host_bytes(trained_parameters: int, ranks: int, *, bf16: bool = True) -> int:
    """Host memory of one rank whose optimizer lies there: master, moments, fp32 gradient, and weights on their way."""
    return -(-trained_parameters * (MASTER_BYTES + MOMENTS_BYTES + 4 + (2 if bf16 else 4)) // ranks)


def buffer_bytes(trained_parameters: int, zero_stage: int, bucket_elements: int, *, bf16: bool = True) -> int:
    """DeepSpeed's communication buckets, and at stage 3 the weights gathered for the layers at work."""
    if zero_stage == 0:
        return 0
    gathered = min(trained_parameters, LIVE_PARAMETERS) + PREFETCHED if zero_stage == 3 else 0
    return (BUFFERED_BUCKETS * bucket_elements + gathered) * (2 if bf16 else 4)


def activation_bytes(
    sizes: ModelSizes, *, rows: int, latent_cells: int, mode: Mode, checkpointed: bool, train_text_encoder: bool
) -> int:
    """The most that forward and backward of `rows` rows hold beside the states, from the measured table."""
    return math.ceil(rows * sizes.row_bytes(latent_cells, mode, checkpointed, train_text_encoder) * BACKWARD_WORKSPACE)


def frozen_bytes(vae_parameters: int, frozen_parameters: int, *, half: bool) -> int:
    """Parts that lie on the device without being trained: the VAE, always fp32, and others in fp32 or its half."""
    return vae_parameters * 4 + frozen_parameters * (2 if half else 4)
