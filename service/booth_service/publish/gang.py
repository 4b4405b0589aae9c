"""The ranks of a run as publishing sees them: what one knows all know, and an error of one is an error of all."""

import pickle
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from booth_service.errors import ServiceError

_T = TypeVar("_T")


class Gang:
    """All ranks call every method, in the same order. Without a process group there is one rank."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def all_or_none(self, step: Callable[[], _T]) -> _T:
        """This rank's result of `step`. Where it raised on any rank, all raise the first such rank's error."""
        try:
            value, error = step(), None
        except Exception as raised:
            if self.ranks == 1:
                raise
            error = raised
        errors = self.everyone(error and _portable(error))
        for rank, raised_there in enumerate(errors):
            if raised_there is not None:
                raise error if error is not None and rank == self.rank else raised_there
        return value

    def everyone(self, value: _T) -> list[_T]:
        """What each rank gave, in their order."""
        if self.ranks == 1:
            return [value]
        values = [value] * self.ranks
        dist.all_gather_object(values, value)
        return values

    def sum(self, *numbers: int) -> list[int]:
        """The ranks' numbers added up, one by one."""
        if self.ranks == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        dist.all_reduce(total)
        return [int(number) for number in total.tolist()]

    def merge(self, data: Tensor, owner: int) -> None:
        """`data`, uint8 (4 k,) with bytes that are 0 on all ranks but one, has them all on `owner`; elsewhere garbage.

        A sum of bit patterns of which all but one are 0 is that one, whatever the bits mean.
        """
        if self.ranks > 1:
            dist.reduce(data.view(torch.int32), owner)


def _portable(error: Exception) -> Exception:
    """An error that another process can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ServiceError(f"{type(error).__name__}: {error}")
    return error
