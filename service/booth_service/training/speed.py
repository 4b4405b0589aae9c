"""How fast a run is: the arithmetic of a step, the device's own matrix rate, and memory at its fullest."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class FlopCount:
    """Floating point operations, 2 for a multiply-add."""

    total: int = 0


@contextmanager
def counted(enabled: bool) -> Iterator[FlopCount]:
    """Count the arithmetic of what runs inside, where enabled (products, convolutions, attention; both directions)."""
    count = FlopCount()
    if not enabled:
        yield count
        return
    with FlopCounterMode(display=False) as mode:
        yield count
    count.total = int(mode.get_total_flops())


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
