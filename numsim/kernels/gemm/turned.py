"""Codes of one byte laid out the other way round: what lies side by side in memory changes.

A matrix whose columns stand side by side is packed as if its rows did. Proof:
``tests/kernels/test_gemm_kernels.py`` compares with NumPy's transposed copy.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.ir import simd
from numsim.kernels.jit import grain_of, inline, kernel, over_range

Array = npt.NDArray[Any]
_LOW = (np.uint64(0x00000000FFFFFFFF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0x00FF00FF00FF00FF))
_EDGE = 8  # bytes of a word: squares of 8 x 8 change places within eight words
_TALL = 64  # lines of the source that are read together: they stay in the first cache


@inline
def _exchange(x: np.uint64, y: np.uint64, by: int, low: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Exchange the upper parts of x and the lower ones of y."""
    moved = ((x >> np.uint64(by)) ^ y) & low
    return x ^ (moved << np.uint64(by)), y ^ moved


@inline
def _square(w: Array, at: int, step: int, out: Array, to: int, stride: int) -> None:
    """Turn the 8 x 8 bytes of words w[at], w[at + step] ...; write words out[to], [to + stride]."""
    a, b, c, d = w[at], w[at + step], w[at + 2 * step], w[at + 3 * step]
    at += 4 * step
    e, f, g, h = w[at], w[at + step], w[at + 2 * step], w[at + 3 * step]
    a, e = _exchange(a, e, 32, _LOW[0])
    b, f = _exchange(b, f, 32, _LOW[0])
    c, g = _exchange(c, g, 32, _LOW[0])
    d, h = _exchange(d, h, 32, _LOW[0])
    a, c = _exchange(a, c, 16, _LOW[1])
    b, d = _exchange(b, d, 16, _LOW[1])
    e, g = _exchange(e, g, 16, _LOW[1])
    f, h = _exchange(f, h, 16, _LOW[1])
    a, b = _exchange(a, b, 8, _LOW[2])
    c, d = _exchange(c, d, 8, _LOW[2])
    e, f = _exchange(e, f, 8, _LOW[2])
    g, h = _exchange(g, h, 8, _LOW[2])
    out[to], out[to + stride], out[to + 2 * stride], out[to + 3 * stride] = a, b, c, d
    to += 4 * stride
    out[to], out[to + stride], out[to + 2 * stride], out[to + 3 * stride] = e, f, g, h


@kernel
def _turn(source: Array, out: Array, start: int, stop: int) -> None:
    """Fill out[i, k] from source [K, M] for k, and squares of i from start to stop."""
    depth, lines = source.shape
    whole = depth // _EDGE * _EDGE
    wide = lines // _EDGE * _EDGE
    if lines % _EDGE == 0 and out.shape[1] % _EDGE == 0:
        words, made = source.reshape(-1).view(np.uint64), out.reshape(-1).view(np.uint64)
        step, stride = lines // _EDGE, out.shape[1] // _EDGE
        for k0 in range(0, whole, _TALL):
            for i in range(start, min(stop, step)):
                for k in range(k0, min(k0 + _TALL, whole), _EDGE):
                    _square(
                        words, k * step + i, step, made, i * _EDGE * stride + k // _EDGE, stride
                    )
    else:
        wide = 0
    first, last = start * _EDGE, min(stop * _EDGE, lines)
    for k0 in range(whole if wide else 0, depth, _EDGE):
        for i in range(first, last):
            for k in range(k0, min(k0 + _EDGE, depth)):
                out[i, k] = source[k, i]


@cache
def _entry() -> Any:
    array = types.Array(types.uint8, 2, "C", readonly=True)
    return simd.compiled(_turn, array, simd.contiguous(types.uint8, 2), types.int64, types.int64)


def turn(source: Array, out: Array) -> None:
    """Fill out [M, K] and more columns, of bytes, from source [K, M]: both in C order.

    >>> out = np.zeros((2, 4), np.uint8)
    >>> turn(np.array([[1, 2], [3, 4], [5, 6]], np.uint8), out)
    >>> out
    array([[1, 3, 5, 0],
           [2, 4, 6, 0]], dtype=uint8)
    """
    entry = _entry()
    pieces = -(-source.shape[1] // _EDGE)
    over_range(
        lambda start, stop: entry(source, out, start, stop), pieces,
        grain=grain_of(pieces, source.size),
    )  # fmt: skip
