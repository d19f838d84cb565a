"""Blocks of numbers under powers of two, or of E2M1 under given scales: one pass over memory.

What is computed, for x [outer, A, inner] in C order and blocks of `block` numbers along A: the
largest magnitude of each block, by it the exponent of its scale, and the codes of fp32(x / scale)
to nearest even, saturated. Blocks lie along rows of memory (inner is 1; all whole) or down its
columns (the last may be short). A few blocks at a time pass through the first cache.

Of E2M1 a magnitude is compared with the steps times the scale. A step has 3 bits and a scale 28,
so float64 holds their product; the quotient that the definition rounds to float64 is never so
close to a step that this would tell.

Proof: ``tests/quant/test_block_codes.py`` compares with the general way of `numsim.quant.quantize`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.convert.float32 import Fast, byte_rne, float_rne, integer_rne
from numsim.kernels.convert.tiles import MAGNITUDE, columns_of, given, singles, taken
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import expanded, inline, kernel

Array = NDArray[Any]
_INFINITY = np.uint32(0x7F800000)
_NEAR = 2048  # numbers that pass the loops together
MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # between numbers of E2M1, in scales
LEAST = -127  # exponent of the smallest scale, and of a block of zeros


class Power(NamedTuple):
    """Which power of two a block of amax m 2**e, 1 <= m < 2, has: e + more, one up if m > above."""

    above: float
    more: int


class Integers(NamedTuple):
    """What `integer_rne` multiplies by, and its limits."""

    unit: np.float32
    low: np.float32
    high: np.float32


@inline
def _powers(tops: Array, power: Power, scales: Array, codes: Array) -> bool:
    """Fill scales [n] and their E8M0 codes; return whether each is a number, and each top is."""
    good = np.uint32(1)
    words = scales.view(np.uint32)
    for i in range(tops.size):
        top = tops[i]
        wide = np.float64(np.uint32(top).view(np.float32)).view(np.int64)
        fraction = np.int64((wide & np.int64(0xFFFFFFFFFFFFF)) | np.int64(1023 << 52))
        e = np.int32(np.int32(wide >> np.int64(52)) + np.int32(power.more - 1023))
        e += np.int32(1 if fraction.view(np.float64) > power.above else 0)
        e = np.int32(LEAST) if top == np.uint32(0) or e < np.int32(LEAST) else e
        held = np.uint32(e < np.int32(128)) & np.uint32(top < _INFINITY)
        good = np.uint32(good & held)
        biased = np.uint32(e + np.int32(127))
        words[i] = biased << np.uint32(23) if biased > np.uint32(0) else np.uint32(1 << 22)
        codes[i] = np.uint8(biased)
    return bool(good != np.uint32(0))


@inline
def _tops_along(bits: Array, size: int, tops: Array) -> None:
    for block in range(tops.size):
        row, most = bits[block * size : (block + 1) * size], np.uint32(0)
        for i in range(row.size):
            a = np.uint32(row[i] & MAGNITUDE)
            most = a if a > most else most
        tops[block] = most


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
def _divided_along(values: Array, size: int, scales: Array) -> None:
    for block in range(scales.size):
        row, by = values[block * size : (block + 1) * size], scales[block]
        for i in range(row.size):
            row[i] = row[i] / by


@inline
def _divided_down(values: Array, scales: Array) -> None:
    width = scales.size
    for row in range(values.size // width):
        line = values[row * width : (row + 1) * width]
        for j in range(width):
            line[j] = line[j] / scales[j]


@expanded
def _pass_along(
    encode: Callable[..., None], x: Array, kind: int, power: Power, how: Any, scales: Array,
    bytes_: Array, out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    size, good = x.shape[1], True
    part = max(_NEAR // size, 1)
    values, tops = np.empty(part * size, np.float32), np.empty(part, np.uint32)
    for at in range(start, stop, part):
        end = min(at + part, stop)
        n = (end - at) * size
        some, top, by = values[:n], tops[: end - at], scales[at:end]
        singles(x[at:end].reshape(-1), kind, some.view(np.uint32))
        _tops_along(some.view(np.uint32), size, top)
        good &= _powers(top, power, by, bytes_[at:end])
        _divided_along(some, size, by)
        encode(some, out[at:end].reshape(-1), how)
    return good


@expanded
def _pass_down(
    encode: Callable[..., None], x: Array, kind: int, block: int, power: Power, how: Any,
    scales: Array, bytes_: Array, out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    depth, inner, count, good = x.shape[1], x.shape[2], scales.shape[1], True
    most = columns_of(block)
    values, codes = np.empty(block * most, np.float32), np.empty(block * most, out.dtype)
    tops = np.empty(most, np.uint32)
    for piece in range(start, stop):
        plane, which = piece // count, piece % count
        first, last = which * block, min(which * block + block, depth)
        lines = x[plane, first:last]
        for at in range(0, inner, most):
            width = min(most, inner - at)
            n = lines.shape[0] * width
            some, top = values[:n], tops[:width]
            by = scales[plane, which, at : at + width]
            taken(lines, kind, at, width, some.view(np.uint32))
            _tops_down(some.view(np.uint32), top)
            good &= _powers(top, power, by, bytes_[plane, which, at : at + width])
            _divided_down(some, by)
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


@kernel
def bytes_along(
    x: Array, kind: int, power: Power, how: Fast, scales: Array, bytes_: Array, out: Array,
    start: int, stop: int,
) -> bool:  # fmt: skip
    """Store rows start:stop of x [blocks, size] in floats of eight bits (AVX-512)."""
    wide_vectors()
    return _pass_along(_bytes, x, kind, power, how, scales, bytes_, out, start, stop)


@kernel
def floats_along(
    x: Array, kind: int, power: Power, how: Fast, scales: Array, bytes_: Array, out: Array,
    start: int, stop: int,
) -> bool:  # fmt: skip
    """Store rows start:stop of x [blocks, size] in floats of at most 16 bits."""
    wide_vectors()
    return _pass_along(_floats, x, kind, power, how, scales, bytes_, out, start, stop)


@kernel
def integers_along(
    x: Array, kind: int, power: Power, how: Integers, scales: Array, bytes_: Array, out: Array,
    start: int, stop: int,
) -> bool:  # fmt: skip
    """Store rows start:stop of x [blocks, size] in integers of at most 16 bits."""
    wide_vectors()
    return _pass_along(_integers, x, kind, power, how, scales, bytes_, out, start, stop)


@kernel
def bytes_down(
    x: Array, kind: int, block: int, power: Power, how: Fast, scales: Array, bytes_: Array,
    out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    """Do `bytes_along` for blocks start:stop down the axis A of x [outer, A, inner]."""
    wide_vectors()
    return _pass_down(_bytes, x, kind, block, power, how, scales, bytes_, out, start, stop)


@kernel
def floats_down(
    x: Array, kind: int, block: int, power: Power, how: Fast, scales: Array, bytes_: Array,
    out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    """Do `floats_along` for blocks start:stop down the axis A of x [outer, A, inner]."""
    wide_vectors()
    return _pass_down(_floats, x, kind, block, power, how, scales, bytes_, out, start, stop)


@kernel
def integers_down(
    x: Array, kind: int, block: int, power: Power, how: Integers, scales: Array, bytes_: Array,
    out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    """Do `integers_along` for blocks start:stop down the axis A of x [outer, A, inner]."""
    wide_vectors()
    return _pass_down(_integers, x, kind, block, power, how, scales, bytes_, out, start, stop)


# ------------------------------------------------------------------------------------- E2M1


@kernel
def widen(x: Array, kind: int, out: Array, start: int, stop: int) -> None:
    """Fill `out` with the float32 bits of numbers start:stop of 16 bits."""
    wide_vectors()
    singles(x[start:stop], kind, out[start:stop])


@inline
def _steps(divisors: Array, least: Array) -> None:
    """Fill least [7, n]: float32 bits from which a magnitude has passed a step of E2M1.

    A tie goes to the even code, so that every other step is passed only above it.
    """
    for step in range(7):
        middle = MIDDLES[step]
        line, odd = least[step], step % 2
        for i in range(divisors.size):
            exact = middle * divisors[i]
            near = np.float32(exact)
            word, back = near.view(np.uint32), np.float64(near)
            below = np.uint32(word - np.uint32(1 if back > exact else 0))
            above = np.uint32(word + np.uint32(1 if back < exact else 0))
            line[i] = above if odd else np.uint32(below + np.uint32(1))


@inline
def _code(
    word: np.uint32, s0: np.uint32, s1: np.uint32, s2: np.uint32, s3: np.uint32, s4: np.uint32,
    s5: np.uint32, s6: np.uint32,
) -> np.uint32:  # fmt: skip
    """Return the code of a number by the steps that it has passed."""
    a = np.uint32(word & MAGNITUDE)
    code = np.uint32(np.uint32(a >= s0) + np.uint32(a >= s1) + np.uint32(a >= s2))
    code = np.uint32(code + np.uint32(a >= s3) + np.uint32(a >= s4) + np.uint32(a >= s5))
    sign = np.uint32(np.uint32(word >> np.uint32(28)) & np.uint32(8))
    return np.uint32(np.uint32(code + np.uint32(a >= s6)) | sign)


@inline
def _e2m1_row(bits: Array, least: Array, block: int, out: Array) -> None:
    s0, s1, s2, s3 = least[0, block], least[1, block], least[2, block], least[3, block]
    s4, s5, s6 = least[4, block], least[5, block], least[6, block]
    for i in range(bits.size):
        out[i] = np.uint8(_code(bits[i], s0, s1, s2, s3, s4, s5, s6))


@kernel
def e2m1_along(x: Array, kind: int, divisors: Array, out: Array, start: int, stop: int) -> None:
    """Store rows start:stop of x [blocks, size], bits of numbers, under divisors [blocks]."""
    wide_vectors()
    size = x.shape[1]
    part = max(_NEAR // size, 1)
    bits, least = np.empty(part * size, np.uint32), np.empty((7, part), np.uint32)
    for at in range(start, stop, part):
        end = min(at + part, stop)
        singles(x[at:end].reshape(-1), kind, bits[: (end - at) * size])
        _steps(divisors[at:end], least)
        codes = out[at:end].reshape(-1)
        if size == 16:  # a vector
            for block in range(end - at):
                _e2m1_row(bits[16 * block :][:16], least, block, codes[16 * block :][:16])
        else:
            for block in range(end - at):
                first = block * size
                _e2m1_row(bits[first : first + size], least, block, codes[first : first + size])


@kernel
def e2m1_down(
    x: Array, kind: int, block: int, divisors: Array, out: Array, start: int, stop: int
) -> None:
    """Do `e2m1_along` for blocks start:stop down the axis A of x [outer, A, inner]."""
    wide_vectors()
    depth, inner, count = x.shape[1], x.shape[2], divisors.shape[1]
    most = columns_of(block)
    bits, least = np.empty(most, np.uint32), np.empty((7, most), np.uint32)
    for piece in range(start, stop):
        plane, which = piece // count, piece % count
        for at in range(0, inner, most):
            width = min(most, inner - at)
            _steps(divisors[plane, which, at : at + width], least)
            for row in range(which * block, min(which * block + block, depth)):
                singles(x[plane, row, at : at + width], kind, bits[:width])
                codes = out[plane, row, at : at + width]
                s0, s1, s2, s3 = least[0], least[1], least[2], least[3]
                s4, s5, s6 = least[4], least[5], least[6]
                for i in range(width):
                    codes[i] = np.uint8(
                        _code(bits[i], s0[i], s1[i], s2[i], s3[i], s4[i], s5[i], s6[i])
                    )
