"""What is compiled for Hopper's FP8 rule: an entry point for each path and place of the codes.

Names end by the path: wide with AVX-512, half with AVX2 (few: for few rows), narrow on any CPU; and
in rows where columns stand side by side in memory. `gemm.hopper` chooses; `gemm.hopper_left` and
`gemm.hopper_right` prepare the operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from numsim.kernels.gemm.codes import Fields, cover_codes, scratch_words
from numsim.kernels.gemm.hopper_left import few_left
from numsim.kernels.gemm.hopper_right import (
    QUADS,
    as_they_are,
    codes_half,
    codes_wide,
    pairs_narrow,
    rows_half,
    rows_wide,
    tables_of,
    turned_half,
    turned_wide,
)
from numsim.kernels.ir import fp8 as simd_fp8
from numsim.kernels.ir import simd
from numsim.kernels.ir.hopper import float_tile
from numsim.kernels.ir.hopper_rows import hopper_rows
from numsim.kernels.jit import expanded, inline, kernel

Array = npt.NDArray[Any]
SHORT_RUN = 8  # a packed group is a multiple of this many products for the portable kernel


@expanded
def _tiles(
    words: int, a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int,
    steps: int, left: int, rule: Any,
) -> None:  # fmt: skip
    runs, tile = rule
    pairs = left // 2
    float_tile(words, 2, pairs, runs, a, a_at, b, b_at, out, out_at, stride, steps, tile)
    if left % 2:
        a_at, out_at = a_at + pairs * tile, out_at + 2 * pairs * stride
        float_tile(words, 1, 1, runs, a, a_at, b, b_at, out, out_at, stride, steps, tile)


@expanded
def _few_tiles(
    words: int, a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int,
    steps: int, left: int, rule: Any,
) -> None:  # fmt: skip
    runs, tile, how, own, bases = rule
    pairs = left // 2
    hopper_rows(
        words, 2, how, own, bases, 0, pairs, runs, a, a_at, b, b_at, out, out_at, stride, steps,
        tile,
    )  # fmt: skip
    if left % 2:
        a_at, out_at = a_at + pairs * tile, out_at + 2 * pairs * stride
        hopper_rows(
            words, 1, how, own, bases, 0, 1, runs, a, a_at, b, b_at, out, out_at, stride, steps,
            tile,
        )  # fmt: skip


@inline
def hopper_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    """Update all rows of tiles, with AVX-512; return how many."""
    _tiles(16, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def hopper_half(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    """Update all rows of tiles, with AVX2; return how many."""
    _tiles(8, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def _hopper_few(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    _few_tiles(16, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def _hopper_few_half(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    _few_tiles(8, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def _hopper_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    simd.hopper_tile(a, a_at, b, b_at, out, out_at, stride, steps, rule)
    return 1


@expanded
def _run(
    micro: Callable[..., int], decode: Callable[..., Array], words: int, out: Array, a: Array,
    b: Array, steps: int, block: int, group: int, start: int, stop: int, runs: int, read: Any,
) -> None:  # fmt: skip
    """Cover the output; `decode` makes `words` of the codes of one k of a panel."""
    scratch = scratch_words(block * runs * simd_fp8.RUN * words)
    rule = (runs, block * a.shape[3] * a.shape[4])
    cover_codes(
        micro, decode, out, a, b, scratch, steps, block, group, start, stop, rule, read, True
    )


@kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run(
        hopper_wide, codes_wide, simd_fp8.B_WORDS, out, a, b, steps, block, group, start, stop,
        runs, (tables_of(how), how),
    )  # fmt: skip


@kernel
def _run_wide_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run(
        hopper_wide, rows_wide, simd_fp8.B_WORDS, out, a, b, steps, block, group, start, stop, runs,
        (tables_of(how), how),
    )  # fmt: skip


@kernel
def _run_half(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run(
        hopper_half, codes_half, simd_fp8.B_WORDS, out, a, b, steps, block, group, start, stop,
        runs, how,
    )  # fmt: skip


@kernel
def _run_half_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run(
        hopper_half, rows_half, simd_fp8.B_WORDS, out, a, b, steps, block, group, start, stop,
        runs, how,
    )  # fmt: skip


@expanded
def _run_few(
    micro: Callable[..., int], decode: Callable[..., Array], words: int, out: Array, a: Array,
    b: Array, steps: int, block: int, group: int, start: int, stop: int, runs: int, how: Fields,
) -> None:  # fmt: skip
    """Cover the output; `decode` returns codes, or puts them in order into so many `words`."""
    scratch = scratch_words(block * runs * simd_fp8.RUN * words)
    own, bases = few_left(a, runs, how)
    rule = (runs, block * a.shape[3] * a.shape[4], how, own, bases)
    cover_codes(
        micro, decode, out, a, b, scratch, steps, block, group, start, stop, rule, how, True
    )


@kernel
def _run_few_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run_few(
        _hopper_few, as_they_are, 0, out, a, b, steps, block, group, start, stop, runs, how
    )  # fmt: skip


@kernel
def _run_few_wide_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run_few(
        _hopper_few, turned_wide, QUADS, out, a, b, steps, block, group, start, stop, runs, how
    )  # fmt: skip


@kernel
def _run_few_half(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run_few(
        _hopper_few_half, as_they_are, 0, out, a, b, steps, block, group, start, stop, runs, how
    )  # fmt: skip


@kernel
def _run_few_half_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run_few(
        _hopper_few_half, turned_half, QUADS, out, a, b, steps, block, group, start, stop, runs,
        how,
    )  # fmt: skip


@kernel
def _run_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    scratch = scratch_words(block * runs * SHORT_RUN * 3 * simd.HOPPER_COLUMNS // 2)
    cover_codes(
        _hopper_narrow, pairs_narrow, out, a, b, scratch, steps, block, group, start, stop, runs,
        how,
    )  # fmt: skip


MANY, FEW = range(2)  # rows
RUN = {  # by the path, how many rows there are, and whether b's codes stand in place
    ("avx512", MANY, False): _run_wide, ("avx512", MANY, True): _run_wide_rows,
    ("avx512", FEW, False): _run_few_wide, ("avx512", FEW, True): _run_few_wide_rows,
    ("avx2", MANY, False): _run_half, ("avx2", MANY, True): _run_half_rows,
    ("avx2", FEW, False): _run_few_half, ("avx2", FEW, True): _run_few_half_rows,
    ("plain", MANY, False): _run_narrow,
}  # fmt: skip
