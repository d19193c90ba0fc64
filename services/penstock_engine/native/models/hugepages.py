"""Memory in large pages, for what every step reads end to end: weights and the KV cache.

With pages of 4 KiB each of them costs a walk through the page tables, and in a virtual machine a
walk through two; with 2 MiB there are 512 times fewer. Knows neither weights nor caches.
"""

import contextlib
import mmap
from math import prod

import torch
from torch import Tensor

_HUGE = 2 << 20


def zeros(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A zeroed CPU tensor whose memory is only taken as it is written."""
    num_bytes = prod(size) * dtype.itemsize
    if num_bytes < _HUGE:
        return torch.zeros(size, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes + _HUGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them is slower and nothing else
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE
    return whole[start : start + num_bytes].view(dtype).view(size)
