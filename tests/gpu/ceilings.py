"""What this machine can do at most: matrix products, copies on the device, copies from pinned host memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from booth_service.training.speed import matrix_rate


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s of a large square product; bytes/s of a device copy (reads and writes counted), and from pinned memory."""

    matrix_flops: float
    copy_bytes: float
    pinned_bytes: float

    def __str__(self) -> str:
        product = f"product {self.matrix_flops / 1e12:.3g} TFLOP/s"
        return (
            f"{product}, device copy {self.copy_bytes / 1e9:.4g} GB/s, pinned copy {self.pinned_bytes / 1e9:.4g} GB/s"
        )


def measure(device: torch.device, dtype: torch.dtype, copied_bytes: int) -> Ceilings:
    """The best of several goes of each; on a CPU "pinned" memory is memory."""
    source = torch.empty(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    host = torch.empty(copied_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    on_device = best_s(lambda: target.copy_(source), device)
    from_host = best_s(lambda: target.copy_(host, non_blocking=True), device)
    return Ceilings(matrix_rate(device, dtype), 2 * copied_bytes / on_device, copied_bytes / from_host)


def best_s(work: Callable[[], object], device: torch.device, goes: int = 5) -> float:
    best = float("inf")
    for _ in range(goes):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best


def synchronize(device: torch.device) -> None:
    """All that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
