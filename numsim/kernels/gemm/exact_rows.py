"""Exact sums of groups of FP8 products and an accumulator, for few rows and codes read in place.

`gemm.mac` does the same for many rows, and says where float64 holds all sums (`Flavour.single`).
The right operand is what `gemm.mac.pack_b_codes` packs. Proof:
``tests/targets/test_fast_units.py`` compares every bit with the definition, `rules.exact`.
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
    codes_types,
    cover_codes,
    power_in_halves,
    run_codes,
    scratch_words,
    uint32_tuple,
    undecoded,
)
from numsim.kernels.gemm.double import tables_of
from numsim.kernels.ir import simd
from numsim.kernels.ir.exact_rows import exact_sums_by_tables
from numsim.kernels.ir.float16 import GROUPS, SUMS, exact_sums_by_halves
from numsim.kernels.jit import expanded, inline, kernel

Array = npt.NDArray[Any]
FEW = {"avx512": 7, "avx2": 12, "plain": 0}  # rows up to which it pays, by path
_FEW_BY_TABLES = 11
_NEAR = 32  # k of a panel whose values stay in the first cache


def covers(group: int, rows: int, how: Fields) -> bool:
    """Whether this path sums groups of so many products for so few rows, and codes so read."""
    few = _FEW_BY_TABLES if _tables_read() else FEW[simd.path()]
    return group in GROUPS and rows <= few and as_halves(how)


def _tables_read() -> bool:
    return simd.enabled() and simd.HAVE_BYTE_TABLES


@expanded
def _sums(
    size: int, a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int,
    steps: int, left: int, rule: Any,
) -> None:  # fmt: skip
    """Update so many rows with vectors of `size` bytes."""
    group, how, words = rule
    exact_sums_by_halves(
        size, group, how, words, _NEAR, left, a, a_at, b, b_at, out, out_at, stride, steps
    )  # fmt: skip


@inline
def _wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    _sums(64, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def _half(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    _sums(32, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@expanded
def _run(
    micro: Callable[..., int], out: Array, a: Array, b: Array, steps: int, block: int, group: int,
    start: int, stop: int, products: int, how: Fields,
) -> None:  # fmt: skip
    words = scratch_words(_NEAR * SUMS)
    cover_codes(
        micro, undecoded, out, a, b, words, steps, block, group, start, stop,
        (products, how, words), 0, True,
    )  # fmt: skip


@kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    products: int, how: Fields,
) -> None:  # fmt: skip
    _run(_wide, out, a, b, steps, block, group, start, stop, products, how)


@kernel
def _run_half(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    products: int, how: Fields,
) -> None:  # fmt: skip
    _run(_half, out, a, b, steps, block, group, start, stop, products, how)


@inline
def _by_tables(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    group, tables = rule
    line, done = steps * group, 0
    while left - done >= 4:
        exact_sums_by_tables(
            4, group, tables, a, a_at + done * line, b, b_at, out, out_at + done * stride, stride,
            steps,
        )  # fmt: skip
        done += 4
    if left - done == 3:
        exact_sums_by_tables(
            3, group, tables, a, a_at + done * line, b, b_at, out, out_at + done * stride, stride,
            steps,
        )  # fmt: skip
    elif left - done == 2:
        exact_sums_by_tables(
            2, group, tables, a, a_at + done * line, b, b_at, out, out_at + done * stride, stride,
            steps,
        )  # fmt: skip
    elif left - done == 1:
        exact_sums_by_tables(
            1, group, tables, a, a_at + done * line, b, b_at, out, out_at + done * stride, stride,
            steps,
        )  # fmt: skip
    return left


@kernel
def _run_tables(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    products: int, how: Fields,
) -> None:  # fmt: skip
    cover_codes(
        _by_tables, undecoded, out, a, b, a.reshape(-1), steps, block, group, start, stop,
        (products, tables_of(how)), 0, True,
    )  # fmt: skip


_RUN = {"avx512": _run_wide, "avx2": _run_half}


@cache
def _runner(path: str, group: int, tables: bool) -> Callable[..., Any]:
    doubles = codes_types(types.float64, np.dtype(np.uint8), types.float64)
    run = _run_tables if tables else _RUN[path]
    return simd.compiled(run, *doubles, simd.literal(group), uint32_tuple(Fields))


def exact_rows(a: Array, b: PackedCodes, c: Array, group: int, how: Fields) -> Array:
    """Return the float64 accumulators [batch, M, N] of a chain over groups of k from c.

    Parameters: a [batch, M, K] float64; b packed for the same group; c [batch, M, N] float64, of
    numbers of float32; `how` the codes of b are read, whose exponent fields are at most 30. Float64
    holds all sums, and float32 the rounded ones as normal numbers.
    """
    batch, m, depth = a.shape
    shape = (1, batch * m, b.lines) if len(b.panels) == 1 else (batch, m, b.lines)
    out = np.array(c, np.float64, order="C").reshape(shape)
    if out.size:
        steps = b.panels.shape[2]
        tables = _tables_read()
        rows = np.zeros((batch, m, steps * group))
        power = 0 if tables else -power_in_halves(how)
        np.multiply(a, 2.0**power, out=rows[..., :depth])
        lines = rows.reshape(*shape[:2], steps, 1, group)
        entry = _runner(simd.path(), group, tables)
        run_codes(entry, out, lines, b, steps, group, how)
    return out.reshape(batch, m, b.lines)
