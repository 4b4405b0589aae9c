"""What the loop needs of an optimizer engine, whoever shards it: DeepSpeed from two ranks on, a plain one for one."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """What this rank owns of one parameter: elements [start, start + length) of it, flattened, lie at
    [offset, offset + length) of the engine's flat tensor number `flat`."""

    name: str
    start: int
    length: int
    flat: int
    offset: int


@dataclass(frozen=True)
class StepResult:
    """Scalars of one optimizer step, on the device, equal on all ranks.

    `grad_norm` is the gradient's 2-norm before clipping. `applied` is 0 where it was not finite: such a step changes
    neither weights nor moments.
    """

    grad_norm: Tensor
    applied: Tensor


class Engine(Protocol):
    """One trained module with fp32 masters and AdamW. Every rank calls every method that trains, in the same order."""

    module: nn.Module
    is_replicated: bool
    """True where every rank holds all of everything (DeepSpeed's stage 0), so that one speaks for all."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Tensor:
        """The module's forward, in the compute precision."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this micro-batch's loss. A step's loss is the sum over micro-batches and ranks."""
        ...

    def step(self, learning_rates: Sequence[float]) -> StepResult:
        """Clip, update, forget the gradients. `learning_rates`: one for each parameter group."""
        ...

    def flats(self, kind: str) -> list[Tensor]:
        """This rank's own 1-D fp32 tensors of a kind: "fp32" masters, or one of MOMENTS."""
        ...

    def fragments(self) -> list[Fragment]:
        """What of the trained parameters lies in this rank's flats: of each one piece, or nothing."""
        ...

    def begin_restore(self, step: int) -> None:
        """Make moments to copy into, as they are after `step` optimizer steps."""
        ...

    def parts_callable(self) -> AbstractContextManager[None]:
        """Inside it the module's own parts may be called, for drawing; at stage 3 by all ranks alike."""
        ...

    def put_weights(self, name: str, start: int, values: Tensor) -> None:
        """Set elements from `start` on of a parameter's compute copy, where that is not the master itself."""
        ...


def whole_fragments(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[Fragment]:
    """Of every parameter all, flat number k the k-th: where nothing is sharded."""
    return [Fragment(name, 0, parameter.numel(), flat, 0) for flat, (name, parameter) in enumerate(parameters)]


def adam_flats(optimizer: Any, masters: Iterable[Tensor], kind: str) -> list[Tensor]:
    """The masters of an AdamW, or one of its MOMENTS of them, as live 1-D tensors."""
    if kind == "fp32":
        return [master.data.view(-1) for master in masters]
    return [optimizer.state[master][kind].view(-1) for master in masters]


def begin_adam(optimizer: Any, masters: Iterable[Tensor], step: int) -> None:
    """Make the state that torch's AdamW makes at its first step, so that there is something to copy into."""
    for master in masters:
        optimizer.state[master] = {
            "step": torch.tensor(float(step), device=master.device),
            "exp_avg": torch.zeros_like(master),
            "exp_avg_sq": torch.zeros_like(master),
        }


def set_learning_rates(optimizer: Any, learning_rates: Sequence[float]) -> None:
    """Give each parameter group its rate for the next step."""
    for group, rate in zip(optimizer.param_groups, learning_rates, strict=True):
        group["lr"] = rate


def trained_shapes(engine: Engine) -> dict[str, torch.Size]:
    """Name and whole shape of every trained parameter, in one order on all ranks."""
    return {
        name: getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO stage 3 a parameter's own shape is empty
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }


def own_fragments(engine: Engine) -> list[Fragment]:
    """This rank's share of what the gang holds, nothing twice."""
    return [] if engine.is_replicated and dist.get_rank() > 0 else engine.fragments()


@torch.no_grad()
def gather(engine: Engine, flats: list[Tensor], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every trained parameter whole, by name, on the CPU in `dtype`, from all ranks' fragments of `flats`.

    All ranks must exhaust it; the values are whole on rank 0 alone. One parameter at a time is on the device.
    """
    own = {fragment.name: fragment for fragment in own_fragments(engine)}
    device = next(engine.module.parameters()).device
    for name, shape in trained_shapes(engine).items():
        whole = torch.zeros(shape.numel(), dtype=torch.float32, device=device)
        if fragment := own.get(name):
            piece = flats[fragment.flat].narrow(0, fragment.offset, fragment.length)
            whole.narrow(0, fragment.start, fragment.length).copy_(piece)
        if dist.get_world_size() > 1:
            dist.reduce(whole, 0)
        yield name, whole.view(shape).to("cpu", dtype)


class Ema:
    """An exponential moving average of the master weights, sharded as they are."""

    def __init__(self, engine: Engine, decay: float) -> None:
        self._masters = engine.flats("fp32")
        self._decay = decay
        self.flats = [flat.detach().clone() for flat in self._masters]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the masters after a step."""
        torch._foreach_lerp_(self.flats, self._masters, 1 - self._decay)
