"""HiF4: blocks of 64 numbers of four bits under scales of three levels, in one pass over memory.

Proof: ``tests/quant/test_four_bits.py`` compares with the general way of `numsim.quant.four_bits`,
``tests/quant/test_one_pass.py`` scales that are found on the way too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype

from numsim.kernels.convert.float32 import odd_singles
from numsim.kernels.convert.tiles import (
    MAGNITUDE,
    columns_of,
    given,
    magnitude,
    singles,
    taken,
    together,
    tops_along,
    turned,
    turned_back,
    words_of,
)
from numsim.kernels.instructions import shl, shr, wide_vectors
from numsim.kernels.ir import simd
from numsim.kernels.ir.hif4 import quarters
from numsim.kernels.jit import inline, kernel

Array = Any
SEVENTH = 0.142578125  # 1/7 in bfloat16
_PART = 32  # blocks that pass the loops together
_LEAST, _MOST = np.uint32((127 - 48) << 23), np.float32(49152.0).view(np.uint32)  # of scales
_OFFSET = np.uint32((127 - 48) << 2)  # of a code's exponent and two fraction bits
_INFINITY, _ONE = np.uint32(0x7F800000), np.uint32(1)


class Levels(NamedTuple):
    """What the codes of first scales stand for: the scale, and its inverse in bfloat16."""

    values: Array  # float32
    inverses: Array  # float64


@inline
def _hif4(tile: Array, inverse: Array, codes: Array, room: Any) -> None:
    """Store 64 lines of blocks in quarters under three levels of scales, the first given."""
    width = inverse.size
    tops, up, down = room
    for four in range(16):
        line = tops[four, :width]
        part = tile[4 * four * width : 4 * (four + 1) * width]
        a, b = part[:width], part[width : 2 * width]
        c, d = part[2 * width : 3 * width], part[3 * width :]
        for j in range(width):
            one = max(np.uint32(a[j] & MAGNITUDE), np.uint32(b[j] & MAGNITUDE))
            other = max(np.uint32(c[j] & MAGNITUDE), np.uint32(d[j] & MAGNITUDE))
            line[j] = max(one, other)
    for four in range(16):
        own, beside = tops[four, :width], tops[four ^ 1, :width]
        for j in range(width):
            both = np.uint32(max(own[j], beside[j]))
            eight = np.float64(both.view(np.float32)) * inverse[j]
            level = 2.0 if eight >= 4.0 else 1.0
            most = np.float64(np.uint32(own[j]).view(np.float32)) * inverse[j]
            factor = level * (2.0 if most >= 2.0 * level else 1.0)
            up[j], down[j] = inverse[j] * (4.0 / factor), factor  # a power of two: exact
        for i in range(4):
            line = tile[(4 * four + i) * width : (4 * four + i + 1) * width]
            out = codes[(4 * four + i) * width : (4 * four + i + 1) * width]
            for j in range(width):
                m = np.float64(magnitude(line[j]))
                q = np.int32(min(np.floor(m * up[j] + 0.5), 7.0) * down[j])
                out[j] = -q if np.int32(line[j]) < np.int32(0) else q


@inline
def _hif4_room(width: int) -> Any:
    return np.empty((16, width), np.uint32), np.empty(width), np.empty(width)


@kernel
def hif4_along(x: Array, kind: int, inverse: Array, codes: Array, start: int, stop: int) -> None:
    """Store rows start:stop of x [blocks, 64] in quarters."""
    wide_vectors()
    most = together(64)
    bits, tile = np.empty(most * 64, np.uint32), np.empty(most * 64, np.uint32)
    made, room = np.empty(most * 64, codes.dtype), _hif4_room(most)
    for at in range(start, stop, most):
        end = min(at + most, stop)
        n = (end - at) * 64
        singles(x[at:end].reshape(-1), kind, bits[:n])
        turned(bits[:n], 64, tile)
        _hif4(tile[:n], inverse[at:end], made[:n], room)
        turned_back(made[:n], codes[at:end])


@kernel
def hif4_down(x: Array, kind: int, inverse: Array, codes: Array, start: int, stop: int) -> None:
    """Do `hif4_along` for blocks start:stop down the axis A of x [outer, A, inner]."""
    wide_vectors()
    inner, count, most = x.shape[2], inverse.shape[1], columns_of(64)
    tile, made = np.empty(64 * most, np.uint32), np.empty(64 * most, codes.dtype)
    room = _hif4_room(most)
    for piece in range(start, stop):
        plane, first = piece // count, piece % count * 64
        for at in range(0, inner, most):
            width = min(most, inner - at)
            taken(x[plane, first : first + 64], kind, at, width, tile[: 64 * width])
            by = inverse[plane, piece % count, at : at + width]
            _hif4(tile[: 64 * width], by, made[: 64 * width], room)
            given(made[: 64 * width], codes[plane, first : first + 64], at, width)


@inline
def _nearest_bits(word: Any, cut: Any) -> Any:
    """Return a float32 number's bits without `cut` last ones: to nearest even, shifted down."""
    half = np.uint32(shl(_ONE, np.uint32(cut - _ONE)) - _ONE)
    return shr(np.uint32(np.uint32(word + half) + np.uint32(shr(word, cut) & _ONE)), cut)


@inline
def _first_scales(tops: Array, wanted: Array, bits: Array, codes: Array) -> None:
    """Fill the codes of first scales: amax / 7 in bfloat16, then rounded to two fraction bits."""
    for i in range(tops.size):
        wanted[i] = np.float64(np.uint32(tops[i]).view(np.float32)) * SEVENTH  # exact
    odd_singles(wanted, bits)
    for i in range(tops.size):
        near = shl(_nearest_bits(bits[i], np.uint32(16)), np.uint32(16))
        near = min(max(near, _LEAST), _MOST)
        codes[i] = np.uint8(np.uint32(_nearest_bits(near, np.uint32(21)) - _OFFSET))


@kernel
def _hif4_rows(
    x: Array, kind: int, levels: Levels, scales: Array, bytes_: Array, out: Array, start: int,
    stop: int,
) -> bool:  # fmt: skip
    wide_vectors()
    words, tops = np.empty(64 * _PART, np.uint32), np.empty(_PART, np.uint32)
    wanted, room, inverse = np.empty(_PART), np.empty(_PART, np.uint32), np.empty(_PART)
    good = _ONE
    for at in range(start, stop, _PART):
        end = min(at + _PART, stop)
        n = end - at
        bits = words_of(x[at:end].reshape(-1), kind, words)
        top, found, each = tops[:n], bytes_[at:end], scales[at:end]
        tops_along(bits, 64, top)
        _first_scales(top, wanted[:n], room[:n], found)
        for i in range(n):
            good &= np.uint32(top[i] < _INFINITY)
            each[i], inverse[i] = levels.values[found[i]], levels.inverses[found[i]]
        quarters(bits, inverse, n, out[at:end].reshape(-1))
    return bool(good != np.uint32(0))


@cache
def hif4_kernel(word: np.dtype[Any]) -> Callable[..., bool]:
    """Return the kernel of rows in HiF4, x [blocks, 64] as words.

    (x, kind, levels, scales, bytes_, out, start, stop) stores rows start:stop under scales by
    amax; it returns False, with what was stored undefined, where x is not finite.
    """
    mixed: Any = types.NamedTuple
    f32, i64, f64 = types.float32, types.int64, types.float64
    levels = mixed([types.Array(dtype, 1, "C", readonly=True) for dtype in (f32, f64)], Levels)
    x = types.Array(from_dtype(word), 2, "C", readonly=True)
    scales, bytes_ = (simd.contiguous(dtype, 1) for dtype in (f32, types.uint8))
    made = scales, bytes_, simd.contiguous(types.int8, 2)
    return simd.compiled(_hif4_rows, x, i64, levels, *made, i64, i64)
