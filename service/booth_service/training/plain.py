"""The engine of one rank: a fused AdamW on fp32 weights, with clipping and the finite flag inside its kernel.

There is nothing to shard at world size 1, and DeepSpeed's per-parameter hooks cost more than such a step.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from booth_service.errors import MissingExtra
from booth_service.training.engine import (
    Fragment,
    StepResult,
    adam_flats,
    begin_adam,
    set_learning_rates,
    whole_fragments,
)


class PlainEngine:
    """Implements `Engine` with plain torch. bf16 computes under autocast; weights and gradients stay fp32."""

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, object]],
        *,
        max_grad_norm: float,
        weight_decay: float,
        bf16: bool,
        eight_bit: bool = False,
    ) -> None:
        self.module = module
        self.is_replicated = False
        self._max_grad_norm, self._bf16 = max_grad_norm, bf16
        self._named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self._parameters = [parameter for _, parameter in self._named]
        self._device = self._parameters[0].device
        if eight_bit:
            self._optimizer = _eight_bit(groups, weight_decay)
        else:
            self._optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)
        self._fused = not eight_bit

    def __call__(self, *arguments: Any, **keywords: Any) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            prediction: Tensor = self.module(*arguments, **keywords)
        return prediction

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def step(self, learning_rates: Sequence[float]) -> StepResult:
        set_learning_rates(self._optimizer, learning_rates)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        applied = torch.isfinite(norm).float()
        # The kernel divides by this on the fly: clipping reads and writes no gradient a second time.
        divisor = ((norm + 1e-6) / self._max_grad_norm).clamp(min=1)
        if self._fused:
            self._optimizer.grad_scale, self._optimizer.found_inf = divisor, 1 - applied
            self._optimizer.step()
        elif applied.item():
            torch._foreach_div_(gradients, divisor)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(norm, applied)

    def flats(self, kind: str) -> list[Tensor]:
        return adam_flats(self._optimizer, self._parameters, kind)

    def fragments(self) -> list[Fragment]:
        return whole_fragments(self._named)

    def begin_restore(self, step: int) -> None:
        begin_adam(self._optimizer, self._parameters, step)

    def parts_callable(self) -> AbstractContextManager[None]:
        return nullcontext()

    def put_weights(self, name: str, start: int, values: Tensor) -> None:
        pass  # the masters are the weights


def _eight_bit(groups: list[dict[str, object]], weight_decay: float) -> Any:
    try:
        import bitsandbytes
    except ImportError:
        raise MissingExtra(
            'optimizer "adamw_8bit" needs bitsandbytes on the ranks: pip install bitsandbytes, or use "adamw"'
        ) from None
    return bitsandbytes.optim.AdamW8bit(groups, weight_decay=weight_decay)
