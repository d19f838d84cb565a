"""Blocks of numbers under powers of two, in one pass over memory.

What is computed, for x [outer, A, inner] in C order and blocks of `block` numbers along A: the
largest magnitude of each block, by it the exponent of its scale, and the codes of fp32(x / scale)
to nearest even, saturated. Blocks lie along rows of memory (inner is 1; all whole) or down its
columns (the last may be short). A few blocks at a time pass through the first cache.

Numbers are multiplied by 1 / scale, a power of two as well: both are rounded from the same number.

Proof: ``tests/quant/test_block_codes.py`` compares with the general way of `numsim.quant.quantize`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype
from numpy.typing import NDArray

from numsim.kernels.convert.float32 import Fast, byte_rne, float_rne, integer_rne
from numsim.kernels.convert.tiles import (
    MAGNITUDE,
    columns_of,
    given,
    taken,
    tops_along,
    words_of,
)
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.ir import simd
from numsim.kernels.ir.block_codes import scaled, scaled_codes
from numsim.kernels.jit import expanded, inline, kernel

Array = NDArray[Any]
_INFINITY = np.uint32(0x7F800000)
_NEAR = 2048  # numbers that pass the loops together
LEAST = -127  # exponent of the smallest scale, and of a block of zeros


class Power(NamedTuple):
    """Which power of two a block of amax m 2**e, 1 <= m < 2, has: e + more, one up if m > above.

    At most `most`: larger ones are left to the general way.
    """

    above: float
    more: int
    most: int = 127


class Integers(NamedTuple):
    """What `integer_rne` multiplies by, and its limits."""

    unit: np.float32
    low: np.float32
    high: np.float32


@inline
def _powers(tops: Array, power: Power, scales: Array, codes: Array, inverse: Array) -> bool:
    """Fill scales [n], their E8M0 codes and 1 / scale; return whether each is as `power` says."""
    good = np.uint32(1)
    words, others = scales.view(np.uint32), inverse.view(np.uint32)
    for i in range(tops.size):
        top = tops[i]
        wide = np.float64(np.uint32(top).view(np.float32)).view(np.int64)
        fraction = np.int64((wide & np.int64(0xFFFFFFFFFFFFF)) | np.int64(1023 << 52))
        e = np.int32(np.int32(wide >> np.int64(52)) + np.int32(power.more - 1023))
        e += np.int32(1 if fraction.view(np.float64) > power.above else 0)
        e = np.int32(LEAST) if top == np.uint32(0) or e < np.int32(LEAST) else e
        held = np.uint32(e <= np.int32(power.most)) & np.uint32(top < _INFINITY)
        good = np.uint32(good & held)
        biased = np.uint32(e + np.int32(127))
        words[i] = biased << np.uint32(23) if biased > np.uint32(0) else np.uint32(1 << 22)
        other = np.uint32(np.uint32(254) - biased)
        others[i] = other << np.uint32(23) if other > np.uint32(0) else np.uint32(1 << 22)
        codes[i] = np.uint8(biased)
    return bool(good != np.uint32(0))


@inline
def _tops_down(bits: Array, tops: Array) -> None:
    width = tops.size
    for j in range(width):
        tops[j] = np.uint32(0)
    for row in range(bits.size // width):
        line = bits[row * width : (row + 1) * width]
        for j in range(width):
            tops[j] = max(tops[j], np.uint32(line[j] & MAGNITUDE))


@inline
def _shift_of(size: int) -> int:
    """Return log2 of the vectors of 16 numbers that a block fills, -1 where it fills none so."""
    shift = 0
    while 16 << shift < size:
        shift += 1
    return shift if 16 << shift == size else -1


@inline
def _scaled_along(bits: Array, by: Array, size: int, values: Array) -> None:
    """Fill values with the numbers times what their block has."""
    shift = _shift_of(size)
    if shift >= 0:
        scaled(bits, by, shift, bits.size // 16, values)
        return
    x = bits.view(np.float32)
    for block in range(bits.size // size):
        row, made = x[block * size : (block + 1) * size], values[block * size : (block + 1) * size]
        one = by[block]
        for i in range(row.size):
            made[i] = row[i] * one


@inline
def _scaled_down(values: Array, by: Array) -> None:
    width = by.size
    for row in range(values.size // width):
        line = values[row * width : (row + 1) * width]
        for j in range(width):
            line[j] = line[j] * by[j]


@expanded
def _pass_along(
    encode: Callable[..., None], x: Array, kind: int, power: Power, how: Any, scales: Array,
    bytes_: Array, out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    size, good = x.shape[1], True
    part = max(_NEAR // size, 1)
    room, tops = np.empty(part * size, np.uint32), np.empty(part, np.uint32)
    values, inverse = np.empty(part * size, np.float32), np.empty(part, np.float32)
    for at in range(start, stop, part):
        end = min(at + part, stop)
        bits = words_of(x[at:end].reshape(-1), kind, room)
        top, by = tops[: end - at], inverse[: end - at]
        tops_along(bits, size, top)
        good &= _powers(top, power, scales[at:end], bytes_[at:end], by)
        encode(bits, by, size, values, out[at:end].reshape(-1), how)
    return good


@expanded
def _pass_down(
    encode: Callable[..., None], x: Array, kind: int, block: int, power: Power, how: Any,
    scales: Array, bytes_: Array, out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    depth, inner, count, good = x.shape[1], x.shape[2], scales.shape[1], True
    most = columns_of(block)
    values, codes = np.empty(block * most, np.float32), np.empty(block * most, out.dtype)
    tops, inverse = np.empty(most, np.uint32), np.empty(most, np.float32)
    for piece in range(start, stop):
        plane, which = piece // count, piece % count
        first, last = which * block, min(which * block + block, depth)
        lines = x[plane, first:last]
        for at in range(0, inner, most):
            width = min(most, inner - at)
            n = lines.shape[0] * width
            some, top, by = values[:n], tops[:width], inverse[:width]
            each = scales[plane, which, at : at + width]
            taken(lines, kind, at, width, some.view(np.uint32))
            _tops_down(some.view(np.uint32), top)
            good &= _powers(top, power, each, bytes_[plane, which, at : at + width], by)
            _scaled_down(some, by)
            encode(some, codes[:n], how)
            given(codes, out[plane, first:last], at, width)
    return good


@inline
def _bytes(values: Array, out: Array, how: Fast) -> None:
    byte_rne(values.view(np.uint32), out, how)


@inline
def _floats(values: Array, out: Array, how: Fast) -> None:
    float_rne(values.view(np.uint32), out, how)


@inline
def _integers(values: Array, out: Array, how: Integers) -> None:
    integer_rne(values, out, how.unit, how.low, how.high)


@inline
def _to_codes(
    bits: Array, by: Array, size: int, values: Array, out: Array, how: Fast
) -> None:  # fmt: skip
    shift, done = _shift_of(size), 0
    if shift >= 0:
        runs = bits.size // 64
        scaled_codes(bits, by, shift, runs, out, how)
        done = 64 * runs
    if done < bits.size:  # begins with a block: those of 64 numbers and more fill all runs
        rest = values[: bits.size - done]
        _scaled_along(bits[done:], by[done // size :], size, rest)
        _floats(rest, out[done:], how)


@inline
def _to_floats(
    bits: Array, by: Array, size: int, values: Array, out: Array, how: Fast
) -> None:  # fmt: skip
    _scaled_along(bits, by, size, values)
    _floats(values[: bits.size], out, how)


@inline
def _to_integers(
    bits: Array, by: Array, size: int, values: Array, out: Array, how: Integers
) -> None:  # fmt: skip
    _scaled_along(bits, by, size, values)
    _integers(values[: bits.size], out, how)


@kernel
def _codes_along(
    x: Array, kind: int, power: Power, how: Fast, scales: Array, bytes_: Array, out: Array,
    start: int, stop: int,
) -> bool:  # fmt: skip
    wide_vectors()
    return _pass_along(_to_codes, x, kind, power, how, scales, bytes_, out, start, stop)


@kernel
def _floats_along(
    x: Array, kind: int, power: Power, how: Fast, scales: Array, bytes_: Array, out: Array,
    start: int, stop: int,
) -> bool:  # fmt: skip
    wide_vectors()
    return _pass_along(_to_floats, x, kind, power, how, scales, bytes_, out, start, stop)


@kernel
def _integers_along(
    x: Array, kind: int, power: Power, how: Integers, scales: Array, bytes_: Array, out: Array,
    start: int, stop: int,
) -> bool:  # fmt: skip
    wide_vectors()
    return _pass_along(_to_integers, x, kind, power, how, scales, bytes_, out, start, stop)


Kind = Literal["codes", "floats", "integers"]
_ALONG: dict[Kind, Any] = {
    "codes": _codes_along, "floats": _floats_along, "integers": _integers_along,
}  # fmt: skip


def takes_codes(f: Fast) -> bool:
    """Whether ``codes`` of `along` is right for a format of at most eight bits: minus zero."""
    return bool(f.limit == f.limit_negative and f.sign_bit == f.zero_sign != 0 and not f.negate)


@cache
def along(to: Kind, word: np.dtype[Any], code: np.dtype[Any]) -> Callable[..., bool]:
    """Return the kernel (x, kind, power, how, scales, bytes_, out, start, stop) of blocks in rows.

    It stores rows start:stop of x [blocks, size], numbers as words, and returns whether all is as
    `power` says; otherwise what was stored is undefined. ``codes`` are floats of at most eight bits
    with minus zero (AVX-512), ``floats`` and ``integers`` those of at most 16. `bytes_`: E8M0.
    """
    same: Any = types.NamedUniTuple
    how = (
        same(types.float32, 3, Integers) if to == "integers"
        else same(types.uint32, len(Fast._fields), Fast)
    )  # fmt: skip
    mixed: Any = types.NamedTuple
    power = mixed((types.float64, types.int64, types.int64), Power)
    given = types.Array(from_dtype(word), 2, "C", readonly=True)
    scales, bytes_ = (simd.contiguous(dtype, 1) for dtype in (types.float32, types.uint8))
    i64 = types.int64
    out = simd.contiguous(from_dtype(code), 2)
    return simd.compiled(_ALONG[to], given, i64, power, how, scales, bytes_, out, i64, i64)


@kernel
def bytes_down(
    x: Array, kind: int, block: int, power: Power, how: Fast, scales: Array, bytes_: Array,
    out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    """Store blocks start:stop down the axis A of x [outer, A, inner], as `along` (eight bits)."""
    wide_vectors()
    return _pass_down(_bytes, x, kind, block, power, how, scales, bytes_, out, start, stop)


@kernel
def floats_down(
    x: Array, kind: int, block: int, power: Power, how: Fast, scales: Array, bytes_: Array,
    out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    """Do ``floats`` of `along` for blocks start:stop down the axis A of x [outer, A, inner]."""
    wide_vectors()
    return _pass_down(_floats, x, kind, block, power, how, scales, bytes_, out, start, stop)


@kernel
def integers_down(
    x: Array, kind: int, block: int, power: Power, how: Integers, scales: Array, bytes_: Array,
    out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    """Do ``integers`` of `along` for blocks start:stop down the axis A of x [outer, A, inner]."""
    wide_vectors()
    return _pass_down(_integers, x, kind, block, power, how, scales, bytes_, out, start, stop)
