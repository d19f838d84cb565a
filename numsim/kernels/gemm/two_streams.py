"""FP8 products by CDNA3's rule, of finite operands and accumulators: AVX-512 and AVX2.

The rule is `TwoStage` with two streams, 24 fraction bits of terms and 32 of their sum. Operands are
codes, a by rows of a tile and b by columns of a panel, group by group of k, as in `gemm.double`.
Proof: ``tests/targets/test_fast_units.py`` compares every bit with the definition,
`rules.two_stage`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.gemm.codes import (
    Fields,
    PackedCodes,
    as_halves,
    codes_at,
    codes_types,
    cover_codes,
    pack_codes,
    run_codes,
    scratch_words,
    uint32_tuple,
)
from numsim.kernels.gemm.cuts import change_for_cuts
from numsim.kernels.gemm.double import HIGH, LOW, makes_doubles, tables_of
from numsim.kernels.gemm.double_left import left_planes
from numsim.kernels.gemm.scales import NONE
from numsim.kernels.ir import simd
from numsim.kernels.ir.double_planes import COLUMNS, b_words, order, right_double
from numsim.kernels.ir.fp8 import LEAST, MOST
from numsim.kernels.ir.two_streams import UNROLL, two_streams_row, two_streams_tile
from numsim.kernels.jit import expanded, inline, kernel

Array = npt.NDArray[Any]
_ROWS = 4  # of a tile
# Rows up to which it pays to read codes for each anew, by path
FEW = {"avx512": 3, "avx2": 1, "plain": 0}
_CUT_ROWS = 3  # those of codes whose products `ir.halves` cuts
_CUT_GROUP = 32  # products whose sum, cut to integers, fits in 32 bits
_MOST = 128  # products of a group, counted in a byte
_WIDE, _HALF = COLUMNS["avx512"], COLUMNS["avx2"]
_WIDE_WORDS, _HALF_WORDS = b_words(_WIDE)[0], b_words(_HALF)[0]


def covers(
    group: int, align_bits: int, sum_bits: int, low: int, high: int, precision: int,
    c: Array | None,
) -> bool:  # fmt: skip
    """Whether the kernel does groups of so many products of finite codes of at most 8 bits.

    Parameters: those of the rule; the least and largest exponents of both operands, subnormals at
    the format's least, and the larger precision; c, the accumulators' first values.
    """
    if simd.path() == "plain" or not 1 <= group <= _MOST or precision > 4:
        return False
    if (align_bits, sum_bits) != (24, 32) or low < LEAST or high > MOST:
        return False
    size = np.zeros(1, np.float32) if c is None else np.abs(c)
    return bool(((size == 0) | ((size >= LOW) & (size <= HIGH))).all())


@inline
def _wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    group, a_step = rule
    two_streams_tile(_WIDE, a, a_at, b, b_at, out, out_at, stride, steps, left, group, a_step)
    return left


@inline
def _half(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    group, a_step = rule
    two_streams_tile(_HALF, a, a_at, b, b_at, out, out_at, stride, steps, left, group, a_step)
    return left


@inline
def _row(
    a: Array, a_at: int, b: Any, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    columns, group, a_step = rule
    codes, how = b
    two_streams_row(
        columns, how, a, a_at, codes, b_at, out, out_at, stride, steps, left, group, a_step
    )  # fmt: skip
    return left


@inline
def _as_they_are(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Any:
    return codes_at(b, batch, panel, k, count), how


@inline
def _wide_planes(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Fields
) -> Array:
    right_double(_WIDE, 0, codes_at(b, batch, panel, k, count), count * b.shape[4], words, how)
    return words


@inline
def _half_planes(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Fields
) -> Array:
    right_double(_HALF, 0, codes_at(b, batch, panel, k, count), count * b.shape[4], words, how)
    return words


@expanded
def _run(
    micro: Callable[..., int], decode: Callable[..., Array], words: int, out: Array, a: Array,
    b: Array, steps: int, block: int, group: int, start: int, stop: int, how: Fields,
) -> None:  # fmt: skip
    scratch = scratch_words(block * b.shape[4] * words)
    rule = (b.shape[4], block * a.shape[4])
    cover_codes(
        micro, decode, out, a, b, scratch, steps, block, group, start, stop, rule, how, True
    )


@kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Fields,
) -> None:  # fmt: skip
    _run(
        _wide, _wide_planes, _WIDE_WORDS, out, a, b, steps, block, group, start, stop, how
    )  # fmt: skip


@kernel
def _run_half(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Fields,
) -> None:  # fmt: skip
    _run(
        _half, _half_planes, _HALF_WORDS, out, a, b, steps, block, group, start, stop, how
    )  # fmt: skip


@expanded
def _run_rows(
    columns: int, out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int,
    stop: int, how: Any,
) -> None:  # fmt: skip
    rule = (columns, b.shape[4], block * a.shape[4])
    cover_codes(
        _row, _as_they_are, out, a, b, np.empty(0, np.int32), steps, block, group, start, stop,
        rule, how, True,
    )  # fmt: skip


@kernel
def _run_wide_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Fields,
) -> None:  # fmt: skip
    _run_rows(_WIDE, out, a, b, steps, block, group, start, stop, tables_of(how))


@kernel
def _run_wide_cut(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Fields,
) -> None:  # fmt: skip
    _run_rows(_WIDE, out, a, b, steps, block, group, start, stop, (how,))


@kernel
def _run_half_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Fields,
) -> None:  # fmt: skip
    _run_rows(_HALF, out, a, b, steps, block, group, start, stop, how)


@kernel
def _run_half_cut(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Fields,
) -> None:  # fmt: skip
    _run_rows(_HALF, out, a, b, steps, block, group, start, stop, (how,))


_MANY, _FEW, _CUT = range(3)  # rows, and how codes of few are read
_RUN = {
    ("avx512", _MANY): _run_wide, ("avx512", _FEW): _run_wide_rows,
    ("avx512", _CUT): _run_wide_cut,
    ("avx2", _MANY): _run_half, ("avx2", _FEW): _run_half_rows, ("avx2", _CUT): _run_half_cut,
}  # fmt: skip


@cache
def _runner(path: str, rows: int) -> Callable[..., Any]:
    return simd.compiled(
        _RUN[path, rows],
        *codes_types(types.int32, np.dtype(np.uint8), types.float32), uint32_tuple(Fields),
    )  # fmt: skip


def pack_b(codes: Array, group: int) -> PackedCodes:
    """Pack codes [1 or batch, K, N] of one byte."""
    slots = np.full(-(-group // UNROLL) * UNROLL, -1)
    slots[:group] = np.arange(group)
    width = COLUMNS[simd.path()]
    return pack_codes(codes, width, slots, group, order=order(width))


def gemm_two_streams(
    a: Array, how_a: Fields, b: PackedCodes, how_b: Fields, group: int, c: Array | None = None
) -> Array:
    """Return the float32 accumulators [batch, M, N] of a chain over groups of k, from c or +0.

    Parameters: a [batch, M, K] codes of one byte; b packed for the same group, of one item or as
    many as a; how their codes are read; c [batch, M, N] float32 as `covers` wants it.
    """
    batch, m, depth = a.shape
    n, groups, places = b.lines, *b.panels.shape[2::2]
    shape = (1, batch * m, n) if len(b.panels) == 1 else (batch, m, n)
    out = np.zeros(shape, np.float32)
    if c is not None:
        start = c.reshape(shape)
        out[...] = np.where(start == 0, np.float32(0.0), start)  # zeros are positive
    if out.size:
        cut = as_halves(how_b) and group <= _CUT_GROUP and shape[1] <= _CUT_ROWS
        few = cut or (shape[1] <= FEW[simd.path()] and makes_doubles(how_b))
        tile, block = (1, groups) if few else (_ROWS, 2 - groups % 2)
        tiles = -(-shape[1] // tile)
        planes = left_planes(
            a.reshape(*shape[:2], depth), NONE, how_a, (group, places), block, tiles * tile
        )
        laid = planes.reshape(shape[0], tiles, groups, tile, -1)
        if cut:
            change_for_cuts(planes, places, how_b)
        entry = _runner(simd.path(), _CUT if cut else _FEW if few else _MANY)
        run_codes(entry, out, laid, b, block, how_b)
    return out.reshape(batch, m, n)
