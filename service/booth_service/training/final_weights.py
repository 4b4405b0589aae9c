"""The weights at the end of a run as a rank holds them: live copies, and its fragments of the fp32 masters."""

import torch
from torch import Tensor, nn

from booth_service.errors import BaseModelError
from booth_service.training.engine import own_fragments, trained_shapes
from booth_service.training.worker import Trained


class FinalWeights:
    """The moving average where the run kept one, else the weights. Names are "component.name", as the module's own.

    Raises BaseModelError where two names share one trained tensor: a file would get the base's values for one of them.
    """

    def __init__(self, trained: Trained) -> None:
        engine = trained.engine
        refuse_tied(engine.module)
        self.shapes = trained_shapes(engine)
        self._parameters = dict(engine.module.named_parameters())
        self.device = next(iter(self._parameters.values())).device
        self._is_average = trained.ema is not None
        self._flats = trained.ema.flats if trained.ema else engine.flats("fp32")
        self._fragments = {fragment.name: fragment for fragment in own_fragments(engine)}

    def live(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """The rank's live copy, 1-D, where it is whole and casts to `dtype` as its fp32 master does; else None."""
        parameter = self._parameters[name]
        is_sharded = hasattr(parameter, "ds_tensor")  # ZeRO stage 3
        if self._is_average or is_sharded or parameter.dtype not in (torch.float32, dtype):
            return None
        return parameter.detach().view(-1)

    def fragment(self, name: str) -> tuple[int, Tensor] | None:
        """First element and values, 1-D fp32, of this rank's piece; None where others hold all of it."""
        fragment = self._fragments.get(name)
        if fragment is None:
            return None
        return fragment.start, self._flats[fragment.flat].narrow(0, fragment.offset, fragment.length)


def refuse_tied(module: nn.Module) -> None:
    """Raise BaseModelError where a parameter that is trained has two names."""
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        holder = first.setdefault(id(parameter), name)
        if holder != name and parameter.requires_grad:
            raise BaseModelError(
                f"{name} and {holder} of the base model are one tensor; tied weights are not published"
            )
