"""The memory of the machine: arrays that go back to the system."""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGE = 1 << 23  # bytes


def zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return float32 zeros; large ones in a mapping of their own, of which malloc keeps no hole.

    >>> zeros((2, 2)).sum()
    np.float32(0.0)
    """
    size = math.prod(shape)
    if 4 * size < _LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.zeros(shape, np.float32)
    memory: Any = mmap.mmap(-1, 4 * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # else every 4 KiB stop the kernel twice: read, then written
        with contextlib.suppress(OSError):  # a system without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.float32).reshape(shape)
