"""Host memory that a GPU reads without a copy in between."""

import weakref

import numpy as np
import torch
from torch import Tensor


def host_memory(size_bytes: int, *, pinned: bool) -> Tensor:
    """uint8 (size_bytes,), not set to anything. Pinned, it stays so until the last tensor in it has gone.

    torch's own pinned memory comes in powers of two, which for gigabytes is up to twice as much as is asked for.
    """
    array = np.empty(size_bytes, dtype=np.uint8)
    if pinned and size_bytes:
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        torch.cuda.check_error(cudart.cudaHostRegister(array.ctypes.data, size_bytes, 0))
        weakref.finalize(array, cudart.cudaHostUnregister, array.ctypes.data)
    return torch.from_numpy(array)
