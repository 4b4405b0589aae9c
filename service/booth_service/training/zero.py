"""The seam to DeepSpeed ZeRO: one engine around the denoiser, sharded optimizer states, clipping that clips."""

from typing import Any

import deepspeed
import deepspeed.comm
import torch
import torch.distributed as dist

BUCKET_ELEMENTS = 50_000_000


def engine(
    module: torch.nn.Module,
    groups: list[dict[str, object]],
    *,
    zero_stage: int,
    micro_batch_size: int,
    max_grad_norm: float,
    weight_decay: float,
    bf16: bool,
) -> Any:
    """A DeepSpeed engine with AdamW over `groups`, each with its own learning rate; masters are fp32.

    Call on every rank, inside an initialised process group.
    """
    if dist.get_backend() == "gloo":
        # Otherwise DeepSpeed compiles a shared-memory helper at first use: 65 s, and a compiler on every node.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
    config = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": zero_stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "overlap_comm": bf16,
            "contiguous_gradients": True,
        },
        "steps_per_print": 10**9,
    }
    model_engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    return model_engine


def set_learning_rates(model_engine: Any, rates: list[float]) -> None:
    """Give each parameter group its rate for the next step."""
    for group, rate in zip(model_engine.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
