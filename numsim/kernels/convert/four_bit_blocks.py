"""Blocks stored in four bits in one of two ways, the better one: one pass over memory.

Blocks stand side by side, one a lane (`convert.tiles`), or follow each other where they are whole
vectors. Which of two ways is better float32 tells, where the two sums of errors lie further apart
than all its roundings; else the sums of the definition in float64, one value after the other, do.
Codes come from comparisons alone: a code's threshold is the least float32 number that has it, found
in float64, which holds a step times a scale (3 or 6 bits by 28).

Proof: ``tests/quant/test_four_bits.py`` compares with the general way of `numsim.quant.four_bits`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.convert.e2m1_blocks import MIDDLES
from numsim.kernels.convert.tiles import (
    MAGNITUDE,
    columns_of,
    given,
    magnitude,
    singles,
    taken,
    together,
    turned,
    turned_back,
)
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.ir.choice import (
    magnitudes_off_e2m1,
    squares_off_e2m1,
    squares_off_integers,
)
from numsim.kernels.jit import inline, kernel

Array = Any
_SIXTHS = tuple(3.0 * (2 * k + 1) for k in range(7))  # steps of integers, in sevenths of scales
# whether x / s * 7 / 6, rounded each time, passes a step that x meets exactly
_PASSED = tuple(bool(np.rint(np.float64(c) / 7 * 7 / 6) > k) for k, c in enumerate(_SIXTHS))
_ROUNDINGS = np.float32(2.0**-19)  # 8 units of a quotient up to 7, twice: squares
_HALF_UP, _TWO_BITS = np.uint32(1 << 21), np.uint32(0xFFC00000)
_HALVES = np.float32(1.5 * 2.0**22)  # adding it leaves multiples of 1/2
_WHOLE = np.float32(1.5 * 2.0**23)
_SEVENTH = 1.0 / 7.0


@inline
def _off_e2m1(v: Any) -> Any:
    """Return how far a float32 magnitude lies from the nearest of E2M1, in either direction."""
    word = np.float32(v).view(np.uint32)
    even = np.float32(np.float32(v + _HALVES) - _HALVES)
    octave = np.uint32(np.uint32(word + _HALF_UP) & _TWO_BITS).view(np.float32)
    q = even if v < np.float32(1) else octave
    return np.float32(v - min(q, np.float32(6)))


@inline
def _off_integers(v: Any) -> Any:
    return np.float32(v - min(np.float32(np.float32(v + _WHOLE) - _WHOLE), np.float32(7)))


@inline
def _sums(tile: Array, one: Array, other: Array, whole: bool, absolute: bool, sums: Array) -> None:
    """Sum the errors of blocks under two inverse scales, each in units of its scale.

    The second way is E2M1 too, or integers if `whole`; errors are squares, or `absolute`.
    """
    width = one.size
    first, second = sums[0, :width], sums[1, :width]
    for j in range(width):
        first[j] = second[j] = np.float32(0)
    for row in range(tile.size // width):
        line = tile[row * width : (row + 1) * width]
        if absolute:
            for j in range(width):
                a = magnitude(line[j])
                first[j] += abs(_off_e2m1(np.float32(a * one[j])))
                second[j] += abs(_off_e2m1(np.float32(a * other[j])))
        elif whole:
            for j in range(width):
                a = magnitude(line[j])
                e = _off_e2m1(np.float32(a * one[j]))
                g = _off_integers(np.float32(a * other[j]))
                first[j] += np.float32(e * e)
                second[j] += np.float32(g * g)
        else:
            for j in range(width):
                a = magnitude(line[j])
                e = _off_e2m1(np.float32(a * one[j]))
                g = _off_e2m1(np.float32(a * other[j]))
                first[j] += np.float32(e * e)
                second[j] += np.float32(g * g)


@inline
def _decided(
    one: Array, other: Array, size: int, absolute: bool, chosen: Array, room: Any
) -> None:  # fmt: skip
    """Note the blocks whose errors under the second scale are the smaller sum, and those unsure.

    A quotient v is off by 2**-23 v, and so is its error e; v is at most 7 or 7 e. Squares of n
    values are then off by 7 * 2**-22 (sqrt(n sum e**2) + sum e**2), magnitudes by half of
    7 * 2**-22 (n + sum e), and sums of float32 by n + 8 units in the last place, counted twice.
    """
    sums, unsure = room[0], room[2]
    last = np.float32((size + 8) * 2.0**-23)
    n = np.float32(size)
    for j in range(one.size):
        r = np.float32(other[j] / one[j])
        by = r if absolute else np.float32(r * r)
        total, rest = sums[0, j], np.float32(sums[1, j] * by)
        both = np.float32(total + rest)
        spread = n if absolute else np.sqrt(np.float32(n * both))
        spread = np.float32(np.float32(np.float32(1) + r) * spread)
        off = np.float32(_ROUNDINGS * np.float32(spread + both) + np.float32(last * both))
        chosen[j] = rest < total
        unsure[j] = np.uint8(0 if abs(np.float32(total - rest)) > off else 1)


@inline
def _inverses(one: Array, other: Array, room: Any) -> Any:
    first, second = room[1][0, : one.size], room[1][1, : one.size]
    for j in range(one.size):
        first[j], second[j] = np.float32(1.0 / one[j]), np.float32(1.0 / other[j])
    return first, second


@inline
def _better(
    tile: Array, one: Array, other: Array, whole: bool, absolute: bool, chosen: Array, room: Any
) -> None:
    """Note the blocks, one a lane, whose errors under the second scale are the smaller sum."""
    width = one.size
    first, second = _inverses(one, other, room)
    _sums(tile, first, second, whole, absolute, room[0])
    _decided(one, other, tile.size // width, absolute, chosen, room)
    for j in range(width):
        if room[2][j]:
            chosen[j] = _smaller(tile[j:], width, one[j], other[j], whole, absolute)


@inline
def better_along(
    bits: Array, one: Array, other: Array, whole: bool, absolute: bool, chosen: Array, room: Any
) -> None:
    """Do `_better` for blocks that follow each other, of whole vectors."""
    blocks = one.size
    size, runs = bits.size // blocks, blocks // 16
    first, second = _inverses(one, other, room)
    sums, vectors, done = room[0], size // 16, 16 * runs
    if absolute:
        magnitudes_off_e2m1(bits, first, vectors, runs, sums[0])
        magnitudes_off_e2m1(bits, second, vectors, runs, sums[1])
    else:
        squares_off_e2m1(bits, first, vectors, runs, sums[0])
        if whole:
            squares_off_integers(bits, second, vectors, runs, sums[1])
        else:
            squares_off_e2m1(bits, second, vectors, runs, sums[1])
    _decided(one[:done], other[:done], size, absolute, chosen, room)
    room[2][done:blocks] = np.uint8(1)
    for j in range(blocks):
        if room[2][j]:
            row = bits[j * size : (j + 1) * size]
            chosen[j] = _smaller(row, 1, one[j], other[j], whole, absolute)


@inline
def _error_e2m1(m: Any, s: Any) -> Any:
    steps = (1.0 if m > 0.25 * s else 0.0) + (1.0 if m >= 0.75 * s else 0.0)
    steps += (1.0 if m > 1.25 * s else 0.0) + (1.0 if m >= 1.75 * s else 0.0)
    steps += (2.0 if m > 2.5 * s else 0.0) + (2.0 if m >= 3.5 * s else 0.0)
    steps += 4.0 if m > 5.0 * s else 0.0
    return m - steps * 0.5 * s


@inline
def _smaller(
    words: Array, apart: int, one: float, other: float, whole: bool, absolute: bool
) -> bool:  # fmt: skip
    """Whether the errors of a block under the second scale are the smaller sum, in float64.

    Its numbers are every `apart` of words.
    """
    total, rest, most = 0.0, 0.0, np.uint32(0)
    for i in range(0, words.size, apart):
        most = max(most, np.uint32(words[i] & MAGNITUDE))
    if most == np.uint32(0):
        return False
    for i in range(0, words.size, apart):
        m = np.float64(magnitude(words[i]))
        if whole:  # the second scale is 6/7 of the first: both errors in sevenths, exact
            e = _error_e2m1(7.0 * m, 7.0 * one)
            g = 7.0 * m - min(np.rint(7.0 * m / (6.0 * one)), 7.0) * (6.0 * one)
        else:
            e, g = _error_e2m1(m, one), _error_e2m1(m, other)
        total += abs(e) if absolute else e * e
        rest += abs(g) if absolute else g * g
    return bool(rest < total)


@inline
def choice_room(width: int) -> Any:
    """Return what choosing between two ways for so many blocks takes: sums, inverses, doubts."""
    sums, inverse = np.empty((2, width), np.float32), np.empty((2, width), np.float32)
    return sums, inverse, np.empty(width, np.uint8)


@kernel
def four_over_six_along(
    x: Array, kind: int, six: Array, four: Array, absolute: bool, chosen: Array, start: int,
    stop: int,
) -> None:  # fmt: skip
    """Note which rows start:stop of x [blocks, size] are better under the second scale."""
    wide_vectors()
    size = x.shape[1]
    most = together(size)
    bits, tile = np.empty(most * size, np.uint32), np.empty(most * size, np.uint32)
    room = choice_room(most)
    for at in range(start, stop, most):
        end = min(at + most, stop)
        n = (end - at) * size
        singles(x[at:end].reshape(-1), kind, bits[:n])
        turned(bits[:n], size, tile)
        _better(tile[:n], six[at:end], four[at:end], False, absolute, chosen[at:end], room)


@kernel
def four_over_six_down(
    x: Array, kind: int, block: int, six: Array, four: Array, absolute: bool, chosen: Array,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Do `four_over_six_along` for blocks start:stop down the axis A of x [outer, A, inner]."""
    wide_vectors()
    depth, inner, count = x.shape[1], x.shape[2], six.shape[1]
    most = columns_of(block)
    tile, room = np.empty(block * most, np.uint32), choice_room(most)
    for piece in range(start, stop):
        plane, which = piece // count, piece % count
        lines = x[plane, which * block : min(which * block + block, depth)]
        for at in range(0, inner, most):
            width = min(most, inner - at)
            part = tile[: lines.shape[0] * width]
            taken(lines, kind, at, width, part)
            _better(
                part, six[plane, which, at : at + width], four[plane, which, at : at + width],
                False, absolute, chosen[plane, which, at : at + width], room,
            )  # fmt: skip


@inline
def thresholds(scales: Array, integers: Array, least: Array) -> None:
    """Fill least [7, n]: float32 bits from which a magnitude has passed a step of its block."""
    for step in range(7):
        line, middle, sevenths = least[step], MIDDLES[step], _SIXTHS[step]
        even, passed = step % 2 == 1, _PASSED[step]
        for j in range(scales.size):
            whole = integers[j]
            exact = scales[j] * (sevenths if whole else middle)
            parts = 7.0 if whole else 1.0
            near = np.float32(exact * (_SEVENTH if whole else 1.0))  # a neighbour of the step
            word, back = near.view(np.uint32), np.float64(near) * parts
            at_tie = passed if whole else even
            above = np.uint32(word + np.uint32(1 if back < exact else 0))
            below = np.uint32(word - np.uint32(1 if back > exact else 0))
            line[j] = above if at_tie else np.uint32(below + np.uint32(1))


@inline
def _half_steps(tile: Array, least: Array, integers: Array, codes: Array) -> None:
    """Fill codes: half steps of E2M1 0 1 2 3 4 6 8 12, or of integers 0 2 .. 14, with signs."""
    width = integers.size
    s0, s1, s2, s3 = least[0, :width], least[1, :width], least[2, :width], least[3, :width]
    s4, s5, s6 = least[4, :width], least[5, :width], least[6, :width]
    for row in range(tile.size // width):
        line, out = tile[row * width : (row + 1) * width], codes[row * width : (row + 1) * width]
        for j in range(width):
            a = np.uint32(line[j] & MAGNITUDE)
            low = np.uint32(a >= s0[j]) + np.uint32(a >= s1[j]) + np.uint32(a >= s2[j])
            low = np.uint32(low + np.uint32(a >= s3[j]))
            five, six, seven = (
                np.uint32(a >= s4[j]), np.uint32(a >= s5[j]), np.uint32(a >= s6[j])
            )  # fmt: skip
            count = np.uint32(np.uint32(low + five) + np.uint32(six + seven))
            extra = np.uint32(np.uint32(five + six) + np.uint32(seven * np.uint32(3)))
            extra = count if integers[j] else extra
            h = np.int32(np.uint32(count + extra))
            out[j] = -h if np.int32(line[j]) < np.int32(0) else h


@inline
def _if4(
    tile: Array, scales: Array, integers: Array, codes: Array, least: Array, room: Any
) -> None:
    """Note which blocks are better as integers, and fill the codes of all."""
    width = scales.size
    seventh = room[1]
    for j in range(width):
        seventh[j] = scales[j] * 6.0 / 7.0
    _better(tile, scales, seventh[:width], True, False, integers, room[0])
    thresholds(scales, integers, least)
    _half_steps(tile, least, integers, codes)


@kernel
def if4_along(
    x: Array, kind: int, scales: Array, integers: Array, codes: Array, start: int, stop: int
) -> None:
    """Store rows start:stop of x [blocks, size] as E2M1 or integers, in half steps."""
    wide_vectors()
    size = x.shape[1]
    most = together(size)
    bits, tile = np.empty(most * size, np.uint32), np.empty(most * size, np.uint32)
    made, least = np.empty(most * size, codes.dtype), np.empty((7, most), np.uint32)
    room = choice_room(most), np.empty(most)
    for at in range(start, stop, most):
        end = min(at + most, stop)
        n = (end - at) * size
        singles(x[at:end].reshape(-1), kind, bits[:n])
        turned(bits[:n], size, tile)
        _if4(tile[:n], scales[at:end], integers[at:end], made[:n], least, room)
        turned_back(made[:n], codes[at:end])


@kernel
def if4_down(
    x: Array, kind: int, block: int, scales: Array, integers: Array, codes: Array, start: int,
    stop: int,
) -> None:  # fmt: skip
    """Do `if4_along` for blocks start:stop down the axis A of x [outer, A, inner]."""
    wide_vectors()
    depth, inner, count = x.shape[1], x.shape[2], scales.shape[1]
    most = columns_of(block)
    tile, made = np.empty(block * most, np.uint32), np.empty(block * most, codes.dtype)
    least, room = np.empty((7, most), np.uint32), (choice_room(most), np.empty(most))
    for piece in range(start, stop):
        plane, which = piece // count, piece % count
        first, last = which * block, min(which * block + block, depth)
        for at in range(0, inner, most):
            width = min(most, inner - at)
            n = (last - first) * width
            taken(x[plane, first:last], kind, at, width, tile[:n])
            _if4(
                tile[:n], scales[plane, which, at : at + width],
                integers[plane, which, at : at + width], made[:n], least, room,
            )  # fmt: skip
            given(made[:n], codes[plane, first:last], at, width)
