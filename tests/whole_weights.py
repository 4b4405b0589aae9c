"""Trained weights for publishing without a training run: whole on every rank, or in fragments of ZeRO's kind."""

from collections.abc import Mapping

import torch
from torch import Tensor


class WholeWeights:
    """Implements `TrainedWeights` where every rank holds all; `parts`: component folder -> name -> tensor."""

    def __init__(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.device = torch.device("cpu")
        self.tensors = {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}

    def live(self, name: str, dtype: torch.dtype) -> Tensor | None:
        tensor = self.tensors[name].detach()
        return tensor.reshape(-1) if tensor.dtype in (torch.float32, dtype) else None

    def fragment(self, name: str) -> tuple[int, Tensor] | None:
        return 0, self.tensors[name].detach().reshape(-1).float()


class ShardedWeights(WholeWeights):
    """Every tensor cut among the ranks at odd places; the first ones lie on one rank alone, as small ones do."""

    def __init__(self, parts: Mapping[str, Mapping[str, Tensor]], rank: int, ranks: int) -> None:
        super().__init__(parts)
        self.rank, self.ranks = rank, ranks

    def live(self, name: str, dtype: torch.dtype) -> Tensor | None:
        return None

    def fragment(self, name: str) -> tuple[int, Tensor] | None:
        whole = self.tensors[name].detach().reshape(-1)
        if len(whole) < 2 * self.ranks:
            return (0, whole) if self.rank == len(whole) % self.ranks else None
        cuts = [0, *(len(whole) * k // self.ranks | 1 for k in range(1, self.ranks)), len(whole)]
        return cuts[self.rank], whole[cuts[self.rank] : cuts[self.rank + 1]]
