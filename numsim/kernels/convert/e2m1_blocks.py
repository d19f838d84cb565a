"""Blocks of numbers as E2M1 under scales of few bits, or under given ones: one pass over memory.

What is computed, for blocks of x along rows of memory: the largest magnitude of each, the code of
its scale, to nearest even from amax / 6 / above in float64, at least the smallest and at most the
largest; and the codes of x / (scale x above), rounded once. `above` is the float32 scale of the
tensor. Under given scales blocks may lie down columns too (`block_codes`).

A magnitude is compared with the steps times the scale. A step has 3 bits and a scale 28, so
float64 holds their product; the quotient that the definition rounds to float64 is never so close to
a step that this would tell.

Proof: ``tests/quant/test_block_codes.py`` and ``tests/quant/test_one_pass.py`` compare with the
definition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype
from numpy.typing import NDArray

from numsim.kernels.convert.float32 import Fast, float_rne, largest, odd_singles
from numsim.kernels.convert.tiles import MAGNITUDE, columns_of, singles, tops_along, words_of
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.ir import simd
from numsim.kernels.ir.block_codes import e2m1_codes
from numsim.kernels.jit import inline, kernel

Array = NDArray[Any]
MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # between numbers of E2M1, in scales
NEAR = 2048  # numbers that pass the loops together
FAR = np.uint32((127 + 100) << 23)  # bits of 2**100: beyond, elements might leave float32
_TINY = np.float32(2.0**-149)
_BIAS = np.int64((1023 - 127) << 23)
_LAST = np.int64((1 << 29) - 1)  # what float64 has below float32's last place


@kernel
def widen(x: Array, kind: int, out: Array, start: int, stop: int) -> None:
    """Fill `out` with the float32 bits of numbers start:stop of 16 bits."""
    wide_vectors()
    singles(x[start:stop], kind, out[start:stop])


@inline
def _past(middle: float, divisors: Array, line: Array) -> None:
    """Fill line with the bits of the first float32 above middle x divisor, a normal number."""
    for i in range(divisors.size):
        wide = np.float64(middle * divisors[i]).view(np.int64)
        line[i] = np.uint32((wide >> np.int64(29)) - _BIAS + np.int64(1))


@inline
def _from(middle: float, divisors: Array, line: Array) -> None:
    """Fill line with the bits of the first float32 not below it."""
    for i in range(divisors.size):
        wide = np.float64(middle * divisors[i]).view(np.int64)
        line[i] = np.uint32(((wide + _LAST) >> np.int64(29)) - _BIAS)


@inline
def _doubled(line: Array, out: Array, times: int) -> None:
    for i in range(line.size):
        out[i] = np.uint32(line[i] + np.uint32(times << 23))


@inline
def _steps(divisors: Array, least: Array) -> None:
    """Fill least [7, n]: float32 bits from which a magnitude has passed a step of E2M1.

    A tie goes to the even code, so that every other step is passed only above it.
    """
    n, low, high = divisors.size, divisors[0], divisors[0]
    for i in range(n):
        low, high = min(low, divisors[i]), max(high, divisors[i])
    if low >= 2.0**-120 and high <= 2.0**120:  # steps are normal numbers
        _past(0.25, divisors, least[0, :n])
        _from(0.75, divisors, least[1, :n])
        _past(1.25, divisors, least[2, :n])
        _from(1.75, divisors, least[3, :n])
        _doubled(least[2, :n], least[4, :n], 1)
        _doubled(least[3, :n], least[5, :n], 1)
        _doubled(least[2, :n], least[6, :n], 2)
        return
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


@inline
def e2m1_coded(bits: Array, size: int, least: Array, wide: bool, out: Array) -> None:
    """Store blocks of `size` words by their steps, least [7, blocks or more]."""
    done, blocks = 0, bits.size // size
    if size == 16:  # a vector
        if wide:
            runs = blocks // 4
            e2m1_codes(bits, least, least.shape[1], runs, out)
            done = 4 * runs
        for block in range(done, blocks):
            _e2m1_row(bits[16 * block :][:16], least, block, out[16 * block :][:16])
    else:
        for block in range(blocks):
            first = block * size
            _e2m1_row(bits[first : first + size], least, block, out[first : first + size])


@inline
def e2m1_under(
    bits: Array, size: int, divisors: Array, least: Array, wide: bool, out: Array
) -> None:  # fmt: skip
    """Store blocks of `size` words under divisors [blocks]."""
    _steps(divisors, least)
    e2m1_coded(bits, size, least, wide, out)


@kernel
def e2m1_along(
    x: Array, kind: int, divisors: Array, wide: bool, out: Array, start: int, stop: int
) -> None:
    """Store rows start:stop of x [blocks, size], bits of numbers, under divisors [blocks].

    `wide`: with AVX-512.
    """
    wide_vectors()
    size = x.shape[1]
    part = max(NEAR // size, 1)
    room, least = np.empty(part * size, np.uint32), np.empty((7, part), np.uint32)
    for at in range(start, stop, part):
        end = min(at + part, stop)
        bits = words_of(x[at:end].reshape(-1), kind, room)
        e2m1_under(bits, size, divisors[at:end], least, wide, out[at:end].reshape(-1))


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


# ------------------------------------------------------------------------- scales of few bits


class Narrow(NamedTuple):
    """A format of block scales: how it rounds, and the values of its codes, float32."""

    how: Fast
    values: Array


@inline
def scale_codes(tops: Array, above: float, how: Fast, room: Any, codes: Array) -> None:
    """Fill the codes of scales by the largest magnitudes of blocks, as bits.

    What they are rounded from stays in ``room[0]``.
    """
    wanted = room[0][: tops.size]
    for i in range(tops.size):
        wanted[i] = np.float64(np.uint32(tops[i]).view(np.float32)) / 6.0 / above
    rounded_scales(wanted, how, room[1][: tops.size], codes)


@inline
def rounded_scales(wanted: Array, how: Fast, bits: Array, codes: Array) -> None:
    """Fill the codes of float64 scales: to nearest even, none of them zero."""
    odd_singles(wanted, bits)
    float_rne(bits, codes, how)
    for i in range(codes.size):
        codes[i] = max(codes[i], np.uint8(1))


@inline
def _narrow_blocks(
    x: Array, kind: int, above: np.float32, narrow: Narrow, wide: bool, scales: Array,
    bytes_: Array, out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    size, good, over = x.shape[1], np.uint32(1), np.float64(above)
    part = max(NEAR // size, 1)
    words, least = np.empty(part * size, np.uint32), np.empty((7, part), np.uint32)
    tops, divisors = np.empty(part, np.uint32), np.empty(part, np.float64)
    room = np.empty(part, np.float64), np.empty(part, np.uint32)
    for at in range(start, stop, part):
        end = min(at + part, stop)
        bits = words_of(x[at:end].reshape(-1), kind, words)
        top, by = tops[: end - at], divisors[: end - at]
        each, found = scales[at:end], bytes_[at:end]
        tops_along(bits, size, top)
        scale_codes(top, over, narrow.how, room, found)
        for i in range(top.size):
            good &= np.uint32(top[i] < FAR)
            value = narrow.values[found[i]]
            each[i] = value
            by[i] = np.float64(value) * over
        e2m1_under(bits, size, by, least, wide, out[at:end].reshape(-1))
    return bool(good != np.uint32(0))


@inline
def _largest(x: Array, kind: int, start: int, stop: int) -> np.uint32:
    size, most = x.shape[1], np.uint32(0)
    part = max(NEAR // size, 1)
    room = np.empty(part * size, np.uint32)
    for at in range(start, stop, part):
        most = max(most, largest(words_of(x[at : min(at + part, stop)].reshape(-1), kind, room)))
    return most


@inline
def _above(most: np.uint32, reach: float) -> np.float32:
    """Return the scale above those of blocks, 1 for zeros and a `reach` of 0; -1: out of range."""
    if most >= FAR:
        return np.float32(-1.0)
    if most == np.uint32(0) or reach == 0.0:
        return np.float32(1.0)
    return max(np.float32(np.float64(np.uint32(most).view(np.float32)) / reach), _TINY)


@kernel
def _narrow_along(
    x: Array, kind: int, above: np.float32, narrow: Narrow, wide: bool, scales: Array,
    bytes_: Array, out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    wide_vectors()
    return _narrow_blocks(x, kind, above, narrow, wide, scales, bytes_, out, start, stop)


@kernel
def _narrow_whole(
    x: Array, kind: int, reach: float, narrow: Narrow, wide: bool, scales: Array, bytes_: Array,
    out: Array,
) -> np.float32:  # fmt: skip
    wide_vectors()
    blocks = x.shape[0]
    above = _above(_largest(x, kind, 0, blocks) if reach > 0.0 else np.uint32(0), reach)
    good = above > np.float32(0.0) and _narrow_blocks(
        x, kind, above, narrow, wide, scales, bytes_, out, 0, blocks
    )
    return above if good else np.float32(-1.0)


@kernel
def largest_along(x: Array, kind: int, start: int, stop: int) -> np.uint32:
    """Return the largest magnitude of rows start:stop of x [blocks, size], as float32 bits."""
    wide_vectors()
    return _largest(x, kind, start, stop)


@kernel
def above_by(most: int, reach: float) -> np.float32:
    """Return fp32(amax / reach), `most` the bits of amax, as a whole tensor's is found."""
    return _above(np.uint32(most), reach)


class NarrowKernels(NamedTuple):
    """What `narrow_kernels` returns."""

    whole: Callable[..., np.float32]
    along: Callable[..., bool]


@cache
def narrow_kernels(word: np.dtype[Any]) -> NarrowKernels:
    """Return the kernels of blocks in rows, x [blocks, size] as words, under scales of few bits.

    whole (x, kind, reach, narrow, wide, scales, bytes_, out) stores a tensor and returns the scale
    above: fp32(amax / reach), 1 where amax or `reach` is 0. along (x, kind, above, narrow, wide,
    scales, bytes_, out, start, stop) stores rows under that scale. `wide`: with AVX-512. They
    return -1 and False, with what was stored undefined, where x is not finite or reaches 2**100.
    """
    same: Any = types.NamedUniTuple
    mixed: Any = types.NamedTuple
    how = same(types.uint32, len(Fast._fields), Fast)
    f32, i64, f64 = types.float32, types.int64, types.float64
    values = types.Array(f32, 1, "C", readonly=True)
    narrow = mixed((how, values), Narrow)
    x = types.Array(from_dtype(word), 2, "C", readonly=True)
    scales, bytes_ = (simd.contiguous(dtype, 1) for dtype in (f32, types.uint8))
    made = scales, bytes_, simd.contiguous(types.uint8, 2)
    return NarrowKernels(
        simd.compiled(_narrow_whole, x, i64, f64, narrow, types.boolean, *made),
        simd.compiled(_narrow_along, x, i64, f32, narrow, types.boolean, *made, i64, i64),
    )
