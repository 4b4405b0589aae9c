"""How fast a run is: the arithmetic of a step, the device's own matrix rate, and memory at its fullest."""

import resource
import sys
import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the arithmetic of what runs inside: 2 for a multiply-add of products, convolutions and attention.

    torch's own FlopCounterMode decomposes operators on its way and so changes the last bits of what runs inside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=out))
        return out


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product on this device, the best of three: the ceiling that MFU is measured against."""
    side = 8192 if device.type == "cuda" else 768
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):  # the first one also loads the kernel
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held on its device so far; host memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
