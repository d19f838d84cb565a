"""Blocks that share a scale: their largest magnitudes, and float32 numbers divided by scales.

What is computed: for x [outer, A, inner] in C order and blocks of `block` numbers along A, their
``amax`` [outer, blocks, inner] and ``x / scale``. Blocks lie along rows of memory (inner is 1; all
whole) or down its columns (the last may be short). Proof: ``tests/quant/test_quant.py`` compares
both with NumPy's.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import grain_of, kernel, over_range

Array = NDArray[Any]
_MAGNITUDE = np.uint32(0x7FFFFFFF)


@kernel
def _amax_along(x: Array, out: Array, start: int, stop: int) -> None:
    """Largest magnitudes of the rows start:stop of x [blocks, size]."""
    wide_vectors()
    x, out = x[start:stop], out[start:stop]
    for block in range(out.size):
        row = x[block]
        most = np.uint32(0)
        for i in range(row.size):
            bits = np.uint32(row[i] & _MAGNITUDE)
            most = bits if bits > most else most
        out[block] = most


@kernel
def _divide_along(x: Array, scale: Array, out: Array, start: int, stop: int) -> None:
    """Quotients of the rows start:stop of x [blocks, size]."""
    wide_vectors()
    x, scale, out = x[start:stop], scale[start:stop], out[start:stop]
    for block in range(scale.size):
        row, made, by = x[block], out[block], scale[block]
        for i in range(row.size):
            made[i] = row[i] / by


@kernel
def _amax_down(x: Array, block: int, out: Array, start: int, stop: int) -> None:
    """Largest magnitudes down the axis A of x [outer, A, inner]; blocks start:stop."""
    wide_vectors()
    depth, inner = x.shape[1], x.shape[2]
    count = out.shape[1]
    for piece in range(start, stop):
        first = piece % count * block
        part = x[piece // count, first : min(first + block, depth)].reshape(-1)
        top = out[piece // count, piece % count]
        top[:] = np.uint32(0)
        for row in range(part.size // inner):
            line = part[row * inner : (row + 1) * inner]
            for j in range(inner):
                top[j] = max(top[j], np.uint32(line[j] & _MAGNITUDE))


@kernel
def _divide_down(x: Array, scale: Array, block: int, out: Array, start: int, stop: int) -> None:
    """Quotients down the axis A of x [outer, A, inner]; blocks start:stop."""
    wide_vectors()
    depth, inner = x.shape[1], x.shape[2]
    count = scale.shape[1]
    for piece in range(start, stop):
        first = piece % count * block
        last = min(first + block, depth)
        part = x[piece // count, first:last].reshape(-1)
        to = out[piece // count, first:last].reshape(-1)
        by = scale[piece // count, piece % count]
        for row in range(part.size // inner):
            line = part[row * inner : (row + 1) * inner]
            made = to[row * inner : (row + 1) * inner]
            for j in range(inner):
                made[j] = line[j] / by[j]


def folded(x: Array, axis: int) -> Array:
    """Return x as [outer, A, inner], A its axis `axis`."""
    axis %= x.ndim
    outer = math.prod(x.shape[:axis])
    inner = math.prod(x.shape[axis + 1 :])
    return x.reshape(outer, x.shape[axis], inner)


def covers(x: Array, axis: int, block: int, dtypes: Collection[Any] = (np.float32,)) -> bool:
    """Whether the kernels take blocks: of such numbers in C order, whole where they lie in rows."""
    if x.dtype not in dtypes or not (x.flags.c_contiguous and x.size):
        return False
    inner = math.prod(x.shape[axis % x.ndim + 1 :])
    return inner > 1 or x.shape[axis] % block == 0


def amax(x: Array, axis: int, block: int) -> Array:
    """Return the largest magnitude of every block along an axis; NaN where one is in it.

    >>> amax(np.array([[1.0], [-3.0], [2.0]], np.float32).repeat(2, 1), 0, 2)
    array([[3., 3.],
           [2., 2.]], dtype=float32)
    """
    shape = list(x.shape)
    shape[axis] = -(-shape[axis] // block)
    out = np.empty(shape, np.float32)
    lines, found = folded(x, axis).view(np.uint32), folded(out, axis).view(np.uint32)
    if lines.shape[2] == 1:
        rows, tops = lines.reshape(-1, block), found.reshape(-1)
        over_range(
            lambda start, stop: _amax_along(rows, tops, start, stop), tops.size,
            grain=grain_of(tops.size, x.size),
        )  # fmt: skip
        return out
    pieces = found.shape[0] * found.shape[1]
    over_range(
        lambda start, stop: _amax_down(lines, block, found, start, stop), pieces,
        grain=grain_of(pieces, x.size),
    )  # fmt: skip
    return out


def divided(x: Array, scale: Array, axis: int, block: int) -> Array:
    """Return quotients of x by the scales of blocks along an axis, in the type of the scales.

    >>> x = np.array([[1.0], [-3.0], [2.0]], np.float32).repeat(2, 1)
    >>> divided(x, np.array([[2.0, 1.0], [4.0, 1.0]], np.float32), 0, 2)
    array([[ 0.5,  1. ],
           [-1.5, -3. ],
           [ 0.5,  2. ]], dtype=float32)
    """
    out = np.empty(x.shape, scale.dtype)
    lines, by, made = (folded(array, axis) for array in (x, scale, out))
    if lines.shape[2] == 1:
        rows, to, each = lines.reshape(-1, block), made.reshape(-1, block), by.reshape(-1)
        over_range(
            lambda start, stop: _divide_along(rows, each, to, start, stop), each.size,
            grain=grain_of(each.size, x.size),
        )  # fmt: skip
        return out
    pieces = by.shape[0] * by.shape[1]
    over_range(
        lambda start, stop: _divide_down(lines, by, block, made, start, stop), pieces,
        grain=grain_of(pieces, x.size),
    )  # fmt: skip
    return out
