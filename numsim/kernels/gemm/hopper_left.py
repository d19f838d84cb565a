"""The left operand of Hopper's FP8 rule: its planes, and what a search of exponents needs of them.

`gemm.hopper_paths` has the kernels that read them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from numsim.kernels.gemm.codes import Fields
from numsim.kernels.ir import fp8 as simd_fp8
from numsim.kernels.ir import halves, simd
from numsim.kernels.ir.codes import fp8_planes
from numsim.kernels.ir.fp8_left import looked_up_left
from numsim.kernels.jit import expanded, inline, kernel

Array = npt.NDArray[Any]
PAIR = 2  # products whose planes stand together for the portable kernel


@inline
def exponents_below(a: Array, runs: int, how: Fields) -> tuple[Array, Array]:
    """Return what `ir.peaks` needs to know of planes a, whose groups are so many runs.

    For each word of a plane: four times the exponent below the largest of its row and group, in
    place of a column's exponent in a code; 255 for a zero. For each run and row: four times the
    field of the binade that a product of this largest exponent and a code's field 0 would choose.
    """
    rows, run = simd_fp8.ROWS, simd_fp8.RUN
    exponents, plane = a.reshape(-1), rows * run
    count = exponents.size // simd_fp8.A_WORDS
    below, bases = np.empty(count * plane, np.uint32), np.empty(count * rows, np.uint32)
    byte, four = np.uint32(255), np.uint32(0x01010101)
    for start in range(0, count, runs):
        for row in range(rows):
            largest = np.uint32(0)
            for i in range(start, start + runs):
                at = i * simd_fp8.A_WORDS + row * run
                line = exponents[at : at + run]
                for k in range(run):
                    largest = max(largest, np.uint32(line[k]) & byte)
            base = np.uint32(largest + np.uint32(simd_fp8.RIGHT) - how.bias) & byte
            for i in range(start, start + runs):
                bases[i * rows + row] = base * four
                at, to = i * simd_fp8.A_WORDS + row * run, i * plane + row * run
                line, own = exponents[at : at + run], below[to : to + run]
                for k in range(run):
                    e = np.uint32(line[k]) & byte
                    less = np.uint32(np.uint32(largest - e) << how.trailing) & byte
                    own[k] = (less if e > 0 else byte) * four
    return below, bases


@inline
def halves_of(a: Array, groups: int, runs: int) -> Array:
    """Return the values of the first row of planes a for `ir.halves`, a word for each of a plane.

    A word has 2**6 times the value as float16, twice. There are none where one is not a multiple
    of 2**-9 below 2**9 in size, as all of E4M3 are.
    """
    rows, run = simd_fp8.ROWS, simd_fp8.RUN
    plane, count = rows * run, groups * runs
    words = a.reshape(-1)
    values, found = words.view(np.float32), np.zeros(count * plane, np.uint32)
    sign, up = np.uint32(1 << 15), np.uint32((127 - halves.ONE - halves.UP) << 10)
    for i in range(count):
        at = i * simd_fp8.A_WORDS + 2 * plane
        for k in range(run):
            size = abs(values[at + k])
            whole = size * np.float32(512.0)
            if not (size < np.float32(512.0) and whole == np.floor(whole)):
                return np.empty(0, np.uint32)
            bits = np.uint32(words[at + k])
            high = np.uint32(bits >> np.uint32(13)) & np.uint32(0x3FFFF)
            half = np.uint32(np.uint32(bits >> np.uint32(16)) & sign | np.uint32(high - up))
            if size > 0:
                found[i * plane + k] = np.uint32(half | np.uint32(half << np.uint32(16)))
    return found


@inline
def singles_of(a: Array, groups: int, runs: int) -> Array:
    """Return the values of the first row of planes a as float32, for `ir.halves.Cuts`."""
    rows, run = simd_fp8.ROWS, simd_fp8.RUN
    plane, count = rows * run, groups * runs
    values, found = a.reshape(-1).view(np.float32), np.zeros(count * plane, np.uint32)
    singles = found.view(np.float32)
    for i in range(count):
        at = i * simd_fp8.A_WORDS + 2 * plane
        for k in range(run):
            x = values[at + k]
            singles[i * plane + k] = x if x != 0 else halves.NEAR_ZERO
    return found


@inline
def left_tables(how: Fields) -> Array:
    """Return what `ir.fp8_left` reads."""
    codes, words = np.arange(128).astype(np.uint8), np.empty(8 * simd_fp8.A_WORDS, np.int32)
    simd_fp8.left_codes(16, codes, 8, 0, words, how)
    planes = words.view(np.uint8).reshape(8, 3, simd_fp8.ROWS, simd_fp8.RUN, 4)
    tables = np.empty((4, 128), np.uint8)
    for code in range(128):
        run, place = code // simd_fp8.RUN, code % simd_fp8.RUN
        tables[0, code], tables[1, code] = planes[run, 0, 0, place, 0], planes[run, 1, 0, place, 0]
        tables[2, code], tables[3, code] = planes[run, 2, 0, place, 3], planes[run, 2, 0, place, 2]
    return tables.reshape(-1)


@expanded
def _left_codes(
    words: int, rows: Array, planes: Array, runs: int, how: Fields, start: int, stop: int
) -> None:
    """Write the planes of codes [tiles, lines per tile, k] as [blocks, tiles, `runs`, words]."""
    tiles, count = rows.shape[0], rows.shape[2] // simd_fp8.RUN
    flat = rows.reshape(-1)
    for tile in range(start, stop):
        for row in range(rows.shape[1]):
            line = (tile * rows.shape[1] + row) * rows.shape[2]
            for first in range(0, count, runs):
                at = (first * tiles + tile * runs) * simd_fp8.A_WORDS
                some = min(runs, count - first)
                codes = flat[line + first * simd_fp8.RUN :]
                simd_fp8.left_codes(words, codes, some, row, planes[at:], how)


@inline
def planes_wide(
    rows: Array, planes: Array, runs: int, how: Fields, tables: Array, start: int, stop: int
) -> None:
    """Do `_left_codes` with AVX-512; `tables` are those of `left_tables`."""
    tiles, each, depth = rows.shape
    fours = depth // simd_fp8.RUN // 4
    whole = depth % (4 * simd_fp8.RUN) == 0 and runs % 4 == 0
    if simd.HAVE_BYTE_TABLES and how.magnitude < 128 and whole:
        flat = rows.reshape(-1)
        looked_up_left(flat, start * each, stop * each, fours, runs // 4, tiles, planes, tables)
    else:
        _left_codes(16, rows, planes, runs, how, start, stop)


@inline
def planes_half(
    rows: Array, planes: Array, runs: int, how: Fields, tables: Array, start: int, stop: int
) -> None:
    """Do `_left_codes` with AVX2."""
    _left_codes(8, rows, planes, runs, how, start, stop)


@kernel
def _left_wide(rows: Array, planes: Array, runs: int, how: Fields, start: int, stop: int) -> None:
    planes_wide(rows, planes, runs, how, left_tables(how), start, stop)


@kernel
def _left_half(rows: Array, planes: Array, runs: int, how: Fields, start: int, stop: int) -> None:
    _left_codes(8, rows, planes, runs, how, start, stop)


@kernel
def _left_pairs(source: Array, planes: Array, how: Fields, start: int, stop: int) -> None:
    """Write the planes of codes [tiles, pairs, lines per tile, 2]."""
    step = 2 * simd.HOPPER_ROWS
    pairs = source.shape[1]
    codes = source.reshape(-1)
    for tile in range(start, stop):
        words = planes[tile * pairs * 3 * step // 2 :]
        fp8_planes(1, codes, tile * pairs * step, pairs, words, how)


LEFT = {"avx512": _left_wide, "avx2": _left_half, "plain": _left_pairs}
