"""Adam in one pass over memory: torch's formula, each operation rounded once in the given type.

A parameter that is stored in a float format is decoded block by block on the way, and the extremes
of the new one, which decide its scale, are found on the way: what is not read again costs nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.convert.decode import Codes, code_scalars, float_bits
from numsim.kernels.elementwise.functions import GRAIN
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import inline, kernel, over_range

Array = NDArray[Any]
BLOCK = 512  # elements that stay in the first cache between two loops
NO_CODES = code_scalars(8, 4, -6, True, -1, -1, -1)  # of a parameter that is not stored


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


class Coded(NamedTuple):
    """A stored parameter: its codes, how they are decoded, and what multiplies them (float32)."""

    codes: Array
    how: Codes
    scale: np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the parameter."""
        return tuple(self.codes.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type that is computed with."""
        return np.dtype(np.float32)


@inline
def _key(bits: np.int32) -> np.int32:
    """Return float32 patterns as integers in the order of the numbers, and back.

    NaN lies beyond the infinity of its sign.
    """
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@kernel
def _steps(
    p: Array, stored: Any, how: Codes, scale: Any, g: Array, first: Array, second: Array,
    largest: Array, out: Array, new_first: Array, new_second: Array, new_largest: Array,
    by: Numbers, decays: bool, single: bool, ends: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """Elements start..stop; `largest` is empty without amsgrad; `single`: numbers are float32.

    `stored` has the codes of p, or nothing. ends [2] takes the extremes of the new keys (`single`).

    A quotient of two float32 is at least 2**-49 of itself away from the middle of two others, so
    that the product with the inverse in float64, off by 2**-52, rounds to the same: one division
    less.
    """
    wide_vectors()
    slope, decoded = np.empty(BLOCK, p.dtype), np.empty(BLOCK, p.dtype)
    patterns = decoded.view(np.uint32)
    inverse = 1.0 / np.float64(by.root)
    low, high = ends[0], ends[1]
    for at in range(start, stop, BLOCK):  # loops of few arrays: LLVM proves that they are apart
        n = min(BLOCK, stop - at)
        up, top = g[at : at + n], new_second[at : at + n]
        m, v, new_m = first[at : at + n], second[at : at + n], new_first[at : at + n]
        old = decoded[:n] if stored.size else p[at : at + n]
        if stored.size:
            codes = stored[at : at + n]
            for i in range(n):
                patterns[i] = float_bits(np.uint32(codes[i]), how)
            for i in range(n):
                decoded[i] *= scale
        if decays:
            for i in range(n):
                slope[i] = up[i] + by.decay * old[i]
            up = slope[:n]
        for i in range(n):
            new_m[i] = by.first * m[i] + by.first_new * up[i]
            top[i] = by.second * v[i] + by.second_new * (up[i] * up[i])
        if largest.size:
            before, after = largest[at : at + n], new_largest[at : at + n]
            for i in range(n):
                after[i] = top[i] if top[i] > before[i] or top[i] != top[i] else before[i]
            top = after
        new = out[at : at + n]
        if single:
            for i in range(n):
                step = new_m[i] / (np.float32(np.sqrt(top[i]) * inverse) + by.eps)
                value = np.float32(by.keep * old[i] - by.rate * step)
                new[i] = value
                key = _key(value.view(np.int32))
                low, high = min(low, key), max(high, key)
        else:
            for i in range(n):
                step = new_m[i] / (np.sqrt(top[i]) / by.root + by.eps)
                new[i] = by.keep * old[i] - by.rate * step
    ends[0], ends[1] = low, high


def adam(
    p: Array | Coded, g: Array, first: Array, second: Array, largest: Array | None, by: Numbers, *,
    decays: bool,
) -> tuple[Array, Array, Array, Array | None, tuple[Any, Any]]:  # fmt: skip
    """Return the parameters and moments after a step, and the extremes of the parameters.

    Arrays of one shape and type. One extreme is NaN where a parameter is; both are 0 without any.
    """
    shape, dtype, none = p.shape, p.dtype, np.empty(0, p.dtype)
    flat = [np.ascontiguousarray(x).reshape(-1) for x in (g, first, second)]
    most = none if largest is None else np.ascontiguousarray(largest).reshape(-1)
    new = [np.empty(shape, dtype) for _ in range(3)]
    new_largest = np.empty(0 if largest is None else shape, dtype)
    outs = [x.reshape(-1) for x in (*new, new_largest)]
    single = dtype == np.float32
    if isinstance(p, Coded):
        where = none, np.ascontiguousarray(p.codes).reshape(-1), p.how, p.scale
    else:
        where = np.ascontiguousarray(p).reshape(-1), np.empty(0, np.uint8), NO_CODES, np.float32(1)
    limits, ends = np.iinfo(np.int32), []

    def work(start: int, stop: int) -> None:
        found = np.array([limits.max, limits.min], np.int32)
        _steps(*where, *flat, most, *outs, by, decays, single, found, start, stop)
        ends.append(found)

    over_range(work, flat[0].size, grain=GRAIN)
    value = new[0]
    if not value.size:
        extremes = dtype.type(0), dtype.type(0)
    elif single:
        keys = np.array([min(e[0] for e in ends), max(e[1] for e in ends)], np.int32)
        extremes = tuple((keys ^ ((keys >> 31) & 0x7FFFFFFF)).view(np.float32))
    else:
        extremes = value.min(), value.max()
    return new[0], new[1], new[2], None if largest is None else new_largest, extremes
