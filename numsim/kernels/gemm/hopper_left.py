"""The left operand of Hopper's FP8 rule: its planes, and what a search of exponents needs of them.

`gemm.hopper_paths` has the kernels that read them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from numsim.kernels.gemm.codes import Fields
from numsim.kernels.ir import fp8 as simd_fp8
from numsim.kernels.ir import simd
from numsim.kernels.ir.codes import fp8_planes
from numsim.kernels.ir.fp8_left import looked_up_left
from numsim.kernels.ir.hopper_rows import PLANES, SIGNS, VALUES
from numsim.kernels.jit import expanded, inline, kernel

Array = npt.NDArray[Any]
PAIR = 2  # products whose planes stand together for the portable kernel


@inline
def few_left(a: Array, runs: int, how: Fields) -> tuple[Array, Array]:
    """Return what `ir.hopper_rows` needs to know of planes a, whose groups are so many runs.

    Words [runs, 3, rows, run], a byte four times in the first two: how far the exponent is below
    the largest of its row and group, in place of a column's exponent in a code, 255 for a zero;
    the bit that makes codes positive whose products are negative; float32 values to multiply what
    is read of codes with. For each run and row: the field of the binade that a product of this
    largest exponent and a code's field 0 would choose, four times.
    """
    rows, run = simd_fp8.ROWS, simd_fp8.RUN
    exponents, plane = a.reshape(-1), rows * run
    values = exponents.view(np.float32)
    count = exponents.size // simd_fp8.A_WORDS
    words, bases = np.empty(count * PLANES * plane, np.uint32), np.empty(count * rows, np.uint32)
    singles = words.view(np.float32)
    byte, four, sign = np.uint32(255), np.uint32(0x01010101), np.uint32(0x80808080)
    scale = np.float32(2.0 ** (15 - np.int64(np.int32(how.bias))))  # a bias below 0 wraps
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
                at, to = i * simd_fp8.A_WORDS + row * run, i * PLANES * plane + row * run
                for k in range(run):
                    e, x = np.uint32(exponents[at + k]) & byte, values[at + 2 * plane + k]
                    less = np.uint32(np.uint32(largest - e) << how.trailing) & byte
                    words[to + k] = (less if e > 0 else byte) * four
                    words[to + SIGNS * plane + k] = sign if x > 0 else np.uint32(0)
                    singles[to + VALUES * plane + k] = x * scale if e > 0 else x
    return words, bases


@inline
def left_tables(how: Fields) -> Array:
    """Return what `ir.fp8_left` reads."""
    codes, words = np.arange(128).astype(np.uint8), np.empty(8 * simd_fp8.A_WORDS, np.int32)
    simd_fp8.left_codes(16, codes, 8, 0, words, how)
    planes = words.view(np.uint8).reshape(8, 3, simd_fp8.ROWS, simd_fp8.RUN, 4)
    tables = np.zeros((4, 128), np.uint8)
    for code in range(128):
        run, place = code // simd_fp8.RUN, code % simd_fp8.RUN
        tables[0, code] = planes[run, 0, 0, place, 0]
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
