"""The seam to DeepSpeed ZeRO: one engine around the denoiser, sharded optimizer states, clipping that clips.

Fragments rest on DeepSpeed's private names (pinned to 0.19.8); tests/service/training/test_resume.py fails loudly
when they change.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import deepspeed.comm
import torch
import torch.distributed as dist
from torch import Tensor, nn

from booth_service.training.engine import (
    Fragment,
    StepResult,
    adam_flats,
    begin_adam,
    set_learning_rates,
    whole_fragments,
)


class ZeroEngine:
    """Implements `Engine` with DeepSpeed at ZeRO stage 0 to 3. Call on every rank, inside a process group."""

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, object]],
        *,
        zero_stage: int,
        micro_batch_size: int,
        gradient_accumulation_steps: int,
        max_grad_norm: float,
        weight_decay: float,
        bf16: bool,
        bucket_elements: int,
        offload_optimizer: bool = False,
    ) -> None:
        if dist.get_backend() == "gloo":
            # Otherwise DeepSpeed compiles a shared-memory helper at first use: 65 s, and a compiler on every node.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        self._stage, self._ranks, self._rank = zero_stage, dist.get_world_size(), dist.get_rank()
        self._accumulation, self._micro_steps = gradient_accumulation_steps, 0
        exact = {name: p.detach().float().cpu() for name, p in module.named_parameters() if p.requires_grad and bf16}
        # On the host: a small device would not hold the fp32 weights that it never needs.
        module.to(torch.bfloat16 if bf16 else torch.float32)
        self._optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": micro_batch_size,
                "gradient_accumulation_steps": gradient_accumulation_steps,
                "gradient_clipping": max_grad_norm,
                "bf16": {"enabled": bf16},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "zero_optimization": _zero_optimization(zero_stage, bucket_elements, bf16, offload_optimizer),
                "timers": {"throughput": {"enabled": False}},  # it waits for the device at every step
                "steps_per_print": 10**9,
            },
        )
        self.module: nn.Module = self._engine.module
        self.is_replicated = zero_stage == 0
        self._parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self._set_masters(exact)

    def __call__(self, *arguments: Any, **keywords: Any) -> Tensor:
        prediction: Tensor = self._engine(*arguments, **keywords)
        return prediction

    def backward(self, loss: Tensor) -> None:
        # ZeRO averages gradients over ranks; the loss is a sum over ranks and micro-batches.
        self._engine.backward(loss * self._ranks, scale_wrt_gas=False)
        self._micro_steps += 1
        if self._micro_steps % self._accumulation:
            self._engine.step()

    def step(self, learning_rates: Sequence[float]) -> StepResult:
        set_learning_rates(self._optimizer, learning_rates)
        self._engine.step()
        skipped = bool(getattr(self._engine.optimizer, "overflow", False))
        norm = float("nan") if skipped else self._engine.get_global_grad_norm()
        return StepResult(torch.as_tensor(norm if norm is not None else 0.0).float(), torch.tensor(float(not skipped)))

    def flats(self, kind: str) -> list[Tensor]:
        return adam_flats(self._optimizer, self._masters(), kind)

    def fragments(self) -> list[Fragment]:
        if self._stage == 0:
            return whole_fragments(self._parameters.items())
        find = self._stage_3_fragment if self._stage == 3 else self._stage_1_or_2_fragment
        found = [find(name, parameter) for name, parameter in self._parameters.items()]
        return [fragment for fragment in found if fragment is not None]

    def begin_restore(self, step: int) -> None:
        begin_adam(self._optimizer, self._masters(), step)
        self._engine.global_steps = step

    def put_weights(self, name: str, start: int, values: Tensor) -> None:
        parameter = self._parameters[name]
        if self._stage < 3:
            parameter.data.view(-1).narrow(0, start, values.numel()).copy_(values)
            return
        own = parameter.ds_tensor.numel()
        begin, end = max(start, self._rank * own), min(start + values.numel(), (self._rank + 1) * own)
        if begin < end:
            part = parameter.ds_tensor.data.view(-1).narrow(0, begin - self._rank * own, end - begin)
            part.copy_(values.narrow(0, begin - start, end - begin))

    @contextmanager
    def parts_callable(self) -> Iterator[None]:
        sharded = [part for part in self.module.modules() if self._stage == 3]
        for part in sharded:  # DeepSpeed fetches parameters that a module reads of another one only while this is set
            part._parameters._in_forward = True  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for part in sharded:
                part._parameters._in_forward = False  # type: ignore[attr-defined]
            if sharded:
                self._engine.optimizer._partition_all_parameters()

    @torch.no_grad()
    def _set_masters(self, exact: dict[str, Tensor]) -> None:
        """Masters as the base model has them: DeepSpeed makes them of the bf16 copies, and what training does not
        move would be published rounded."""
        masters = self.flats("fp32")
        for fragment in self.fragments() if exact else []:
            piece = exact[fragment.name].view(-1).narrow(0, fragment.start, fragment.length)
            masters[fragment.flat].narrow(0, fragment.offset, fragment.length).copy_(piece)

    def _masters(self) -> list[Any]:
        zero = self._engine.optimizer
        if self._stage == 0:
            return list(self._parameters.values())
        return list(zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups)

    def _stage_1_or_2_fragment(self, name: str, parameter: Any) -> Fragment | None:
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        at, owned = mapping.lp_fragment_address, mapping.hp_fragment_address
        return Fragment(name, at.start, owned.numel, mapping.param_group_index, owned.start)

    def _stage_3_fragment(self, name: str, parameter: Any) -> Fragment | None:
        zero = self._engine.optimizer
        flat, offset, length = zero.grad_position[zero.get_param_id(parameter)]
        start = self._rank * length
        owned = min(length, parameter.ds_numel - start)  # the last partition is padded
        return Fragment(name, start, owned, flat, offset) if owned > 0 else None


def _zero_optimization(stage: int, bucket_elements: int, overlap: bool, offload_optimizer: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": bucket_elements,
        "overlap_comm": overlap,
        "contiguous_gradients": True,
    }
    if stage < 3:
        options["allgather_bucket_size"] = bucket_elements
    if offload_optimizer:
        options["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return options
