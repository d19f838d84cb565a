"""Adam in one pass over memory: torch's formula, each operation rounded once in the given type."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise.functions import GRAIN
from numsim.kernels.jit import kernel, over_range

Array = NDArray[Any]
BLOCK = 1024  # elements whose gradient stays in the first cache


class Numbers(NamedTuple):
    """Factors of one step, of the type of the parameters.

    `keep` multiplies the parameter first, `decay` times the parameter joins the gradient; 1 and 0
    leave them. `root`: sqrt(1 - b2**t). `rate`: lr / (1 - b1**t).
    """

    keep: Any
    decay: Any
    first: Any
    first_new: Any
    second: Any
    second_new: Any
    root: Any
    eps: Any
    rate: Any


@kernel
def _steps(
    p: Array, g: Array, first: Array, second: Array, largest: Array, out: Array, new_first: Array,
    new_second: Array, new_largest: Array, by: Numbers, decays: bool, single: bool, start: int,
    stop: int,
) -> None:  # fmt: skip
    """Elements start..stop; `largest` is empty without amsgrad; `single`: numbers are float32.

    A quotient of two float32 is at least 2**-49 of itself away from the middle of two others, so
    that the product with the inverse in float64, off by 2**-52, rounds to the same: one division
    less.
    """
    slope = np.empty(BLOCK, p.dtype)
    inverse = 1.0 / np.float64(by.root)
    for at in range(start, stop, BLOCK):  # loops of few arrays: LLVM proves that they are apart
        n = min(BLOCK, stop - at)
        old, up, top = p[at : at + n], g[at : at + n], new_second[at : at + n]
        m, v, new_m = first[at : at + n], second[at : at + n], new_first[at : at + n]
        for i in range(n):
            slope[i] = up[i]
        if decays:
            for i in range(n):
                slope[i] += by.decay * old[i]
        for i in range(n):
            new_m[i] = by.first * m[i] + by.first_new * slope[i]
        for i in range(n):
            top[i] = by.second * v[i] + by.second_new * (slope[i] * slope[i])
        if largest.size:
            before, after = largest[at : at + n], new_largest[at : at + n]
            for i in range(n):
                after[i] = top[i] if top[i] > before[i] or top[i] != top[i] else before[i]
            top = after
        if single:
            for i in range(n):
                slope[i] = new_m[i] / (np.float32(np.sqrt(top[i]) * inverse) + by.eps)
        else:
            for i in range(n):
                slope[i] = new_m[i] / (np.sqrt(top[i]) / by.root + by.eps)
        new = out[at : at + n]
        for i in range(n):
            new[i] = by.keep * old[i] - by.rate * slope[i]


def adam(
    p: Array, g: Array, first: Array, second: Array, largest: Array | None, by: Numbers, *,
    decays: bool,
) -> tuple[Array, Array, Array, Array | None]:  # fmt: skip
    """Return the parameters and moments after a step; arrays of one shape and type."""
    flat = [np.ascontiguousarray(x).reshape(-1) for x in (p, g, first, second)]
    most = np.empty(0, p.dtype) if largest is None else np.ascontiguousarray(largest).reshape(-1)
    new = [np.empty(p.shape, p.dtype) for _ in range(3)]
    new_largest = np.empty(0 if largest is None else p.shape, p.dtype)
    outs = [x.reshape(-1) for x in (*new, new_largest)]
    single = p.dtype == np.float32
    work = lambda a, b: _steps(*flat, most, *outs, by, decays, single, a, b)  # noqa: E731
    over_range(work, p.size, grain=GRAIN)
    return new[0], new[1], new[2], None if largest is None else new_largest
