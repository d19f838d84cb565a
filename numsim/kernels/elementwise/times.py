"""Accumulators times one scale: fp32(fp32(x) * by), and whether any is NaN, in one pass.

Proof: ``tests/targets/test_scaling.py`` compares with NumPy's product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import expanded, kernel, over_range

_GRAIN = 1 << 15  # elements a thread takes at least


@expanded
def _product(x: NDArray[Any], by: np.float32, out: NDArray[np.float32]) -> bool:
    met = np.int32(0)
    for i in range(x.size):
        v = np.float32(np.float32(x[i]) * by)
        met = np.int32(met | (np.int32(1) if v != v else np.int32(0)))
        out[i] = v
    return bool(met != np.int32(0))


@kernel
def _times(
    x: NDArray[Any], by: np.float32, out: NDArray[np.float32], start: int, stop: int
) -> bool:
    wide_vectors()
    return _product(x[start:stop], by, out[start:stop])


@kernel
def _times_here(x: NDArray[Any], by: np.float32, start: int, stop: int) -> bool:
    wide_vectors()
    part = x[start:stop]
    return _product(part, by, part.view(np.float32))  # LLVM sees that the places are the same


def times(x: NDArray[Any], by: np.float32, *, in_place: bool) -> tuple[NDArray[np.float32], bool]:
    """Return fp32(fp32(x) * by), x int32 or float32 in C order, and whether NaN is met.

    `in_place`: nobody else holds x, whose memory the result may have.

    >>> times(np.int32([3, -(1 << 24) - 1]), np.float32(0.5), in_place=True)
    (array([ 1.500000e+00, -8.388608e+06], dtype=float32), False)
    """
    source = x.reshape(-1)
    if in_place and 0 < x.size <= _GRAIN:
        nan = _times_here(source, by, 0, x.size)
        return x if x.dtype == np.float32 else x.view(np.float32), nan
    met: list[bool] = []
    if in_place:
        over_range(lambda i, j: met.append(_times_here(source, by, i, j)), x.size, grain=_GRAIN)
        return source.view(np.float32).reshape(x.shape), any(met)
    made = np.empty(x.size, np.float32)
    over_range(lambda i, j: met.append(_times(source, by, made, i, j)), x.size, grain=_GRAIN)
    return made.reshape(x.shape), any(met)
