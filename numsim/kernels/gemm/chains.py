"""Chains of fused multiply-adds whose scales stand outside the unit, one for each block of k.

`gemm.blocks` says how; these are scaled before they leave the registers. The left operand is
float32 values, packed by rows of a tile, the right one codes packed as in `gemm.values`, both with
one float32 scale for each line and block. Proof: ``tests/targets/test_block_products.py`` compares
every bit with blocks that are multiplied one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.convert.decode import Codes
from numsim.kernels.gemm import values as gemm_values
from numsim.kernels.gemm.blocks import (
    Scales,
    codes_with_scales,
    padded,
    scale_types,
    whole_blocks,
)
from numsim.kernels.gemm.codes import (
    BLOCK,
    Fields,
    PackedCodes,
    codes_types,
    cover_codes,
    run_codes,
    scratch_words,
    type_of,
    values_of_floats,
    values_of_integers,
)
from numsim.kernels.gemm.fma import pack_rows
from numsim.kernels.ir import simd
from numsim.kernels.ir.blocks import scaled_chain_of_codes, scaled_fma_tile
from numsim.kernels.ir.float16 import scaled_chains_by_halves
from numsim.kernels.jit import expanded, inline, kernel

Array = npt.NDArray[Any]


@inline
def _scaled_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rows: Array, rows_at: int, rows_stride: int, columns: Array, columns_at: int,
) -> int:  # fmt: skip
    if left >= 12:
        scaled_fma_tile(
            12, a, a_at, b, b_at, out, out_at, stride, steps, rows, rows_at, rows_stride, columns,
            columns_at,
        )  # fmt: skip
        return 12
    if left >= 4:
        scaled_fma_tile(
            4, a, a_at, b, b_at, out, out_at, stride, steps, rows, rows_at, rows_stride, columns,
            columns_at,
        )  # fmt: skip
        return 4
    scaled_fma_tile(
        1, a, a_at, b, b_at, out, out_at, stride, steps, rows, rows_at, rows_stride, columns,
        columns_at,
    )  # fmt: skip
    return 1


@inline
def _scaled_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rows: Array, rows_at: int, rows_stride: int, columns: Array, columns_at: int,
) -> int:  # fmt: skip
    if left >= 2:
        scaled_fma_tile(
            2, a, a_at, b, b_at, out, out_at, stride, steps, rows, rows_at, rows_stride, columns,
            columns_at,
        )  # fmt: skip
        return 2
    scaled_fma_tile(
        1, a, a_at, b, b_at, out, out_at, stride, steps, rows, rows_at, rows_stride, columns,
        columns_at,
    )  # fmt: skip
    return 1


@expanded
def _chains(
    micro: Callable[..., int], decode: Callable[..., Array], out: Array, a: Array, b: Array,
    steps: int, block: int, group: int, start: int, stop: int, span: int, how: Any,
    rows_scale: Array, columns_scale: Array,
) -> None:  # fmt: skip
    """Do what `_cover` does, with chains that are scaled before they leave the registers."""
    m, n = out.shape[1], out.shape[2]
    tiles, panels, rows, width = a.shape[1], b.shape[1], a.shape[3], b.shape[3]
    groups = (tiles + group - 1) // group
    scratch = scratch_words(block * width).view(np.float32)
    flat, blocks = out.reshape(-1), columns_scale.shape[1]
    row_scales, column_scales = rows_scale.reshape(-1), columns_scale.reshape(-1)
    for piece in range(start, stop):
        panel = piece % panels
        batch = piece // panels // groups
        first = piece // panels % groups * group
        shared = batch if b.shape[0] > 1 else 0
        for k in range(0, steps, block):
            count = min(block, steps - k)
            near = decode(b, shared, panel, k, count, scratch, how)
            for t in range(first, min(first + group, tiles)):
                left = min(rows, m - t * rows)
                a_at = ((batch * tiles + t) * steps + k) * rows
                line = batch * m + t * rows
                for s in range(0, count, span):
                    some, at_block = min(span, count - s), (k + s) // span
                    other = (shared * blocks + at_block) * n + panel * width
                    done = 0
                    while done < left:
                        done += micro(
                            a, a_at + s * rows + done, near, s * width, flat,
                            (line + done) * n + panel * width, n, some, left - done, row_scales,
                            (line + done) * blocks + at_block, blocks, column_scales, other,
                        )  # fmt: skip


@kernel
def _bytes_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, how: Any, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _chains(
        _scaled_wide, gemm_values.values_of_bytes, out, a, b, steps, block, group, start, stop,
        span, how, rows, columns,
    )  # fmt: skip


@kernel
def _shorts_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, how: Any, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _chains(
        _scaled_narrow, gemm_values.values_of_shorts, out, a, b, steps, block, group, start, stop,
        span, how, rows, columns,
    )  # fmt: skip


@kernel
def _floats_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, how: Any, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _chains(
        _scaled_wide, values_of_floats, out, a, b, steps, block, group, start, stop, span, how,
        rows, columns,
    )  # fmt: skip


@kernel
def _floats_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, how: Any, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _chains(
        _scaled_narrow, values_of_floats, out, a, b, steps, block, group, start, stop, span, how,
        rows, columns,
    )  # fmt: skip


@kernel
def _integers_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, how: Any, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _chains(
        _scaled_wide, values_of_integers, out, a, b, steps, block, group, start, stop, span, how,
        rows, columns,
    )  # fmt: skip


@kernel
def _integers_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, how: Any, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _chains(
        _scaled_narrow, values_of_integers, out, a, b, steps, block, group, start, stop, span, how,
        rows, columns,
    )  # fmt: skip


@inline
def _one_row(
    a: Array, a_at: int, b: Any, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    codes, columns_at, at_block = b
    table, rows, blocks, columns, span = rule
    row = out_at // stride * blocks + at_block
    scales = (rows, row, blocks, columns, columns_at, stride, span)
    scaled_chain_of_codes(0, table, scales, a, a_at, codes, b_at, out, out_at, stride, steps)
    return 1


@inline
def _one_mirrored_row(
    a: Array, a_at: int, b: Any, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    codes, columns_at, at_block = b
    table, rows, blocks, columns, span = rule
    row = out_at // stride * blocks + at_block
    scales = (rows, row, blocks, columns, columns_at, stride, span)
    scaled_chain_of_codes(1, table, scales, a, a_at, codes, b_at, out, out_at, stride, steps)
    return 1


@kernel
def _bytes_row(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, table: Array, rows: Array, columns: Array,
) -> None:  # fmt: skip
    blocks = columns.shape[1]
    rule = (table, rows.reshape(-1), blocks, columns.reshape(-1), span)
    cover_codes(
        _one_row, codes_with_scales, out, a, b, np.empty(0, np.int32), steps, block, group, start,
        stop, rule, (span, blocks, columns.shape[2]),
    )  # fmt: skip


@kernel
def _mirrored_row(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, table: Array, rows: Array, columns: Array,
) -> None:  # fmt: skip
    blocks = columns.shape[1]
    rule = (gemm_values.half_tables(table), rows.reshape(-1), blocks, columns.reshape(-1), span)
    cover_codes(
        _one_mirrored_row, codes_with_scales, out, a, b, np.empty(0, np.int32), steps, block, group,
        start, stop, rule, (span, blocks, columns.shape[2]),
    )  # fmt: skip


@inline
def _halves_rows(
    a: Array, a_at: int, b: Any, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    codes, columns_at, at_block = b
    how, words, near, rows, blocks, columns, span = rule
    row = out_at // stride * blocks + at_block
    scales = (rows, row, blocks, columns, columns_at, stride, span)
    scaled_chains_by_halves(
        how, words, near, scales, left, a, a_at, codes, b_at, out, out_at, stride, steps
    )  # fmt: skip
    return left


@kernel
def _halves_few(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, how: Any, near: int, rows: Array, columns: Array,
) -> None:  # fmt: skip
    blocks, words = columns.shape[1], scratch_words(near * b.shape[3] // 2)
    rule = (how, words, near, rows.reshape(-1), blocks, columns.reshape(-1), span)
    cover_codes(
        _halves_rows, codes_with_scales, out, a, b, words, steps, block, group, start, stop, rule,
        (span, blocks, columns.shape[2]), True,
    )  # fmt: skip


@cache
def _chain_runner(
    codes: np.dtype[Any], how: Any, kind: Any, wide: bool, row: int
) -> Callable[..., Any]:
    if row:
        chosen = _mirrored_row if row > 1 else _bytes_row
    elif kind is Codes:
        chosen = _floats_wide if wide else _floats_narrow
    elif kind is tuple:
        chosen = _integers_wide if wide else _integers_narrow
    else:
        chosen = _shorts_narrow if kind is Fields else _bytes_wide
    arguments = codes_types(types.float32, codes, types.float32)
    return simd.compiled(chosen, *arguments, types.int64, how, *scale_types())


@cache
def _halves_runner(how: Any) -> Callable[..., Any]:
    arguments = codes_types(types.float32, np.dtype(np.uint8), types.float32)
    i64 = types.int64
    return simd.compiled(_halves_few, *arguments, i64, how, i64, *scale_types())


def chains(
    out: Array, a: Array, b: PackedCodes, how: gemm_values.Decode, span: int, scales: Scales,
    *, in_halves: bool = False,
) -> None:  # fmt: skip
    """Add the scaled chains of fused multiply-adds of each block of `span` k to out [batch, M, N].

    Parameters: a [batch, M, K] float32; b packed for float32 (`gemm.values.pack_b`), of one item
    or as many as a; `how` its codes are read; `in_halves`: no exponent field of theirs is above 30.
    """
    kind: Any = type(how)
    depth = a.shape[2]
    columns = padded(scales.columns, b.panels.shape[3])
    few = out.shape[1] <= gemm_values.FEW[simd.path()]
    halves = gemm_values.halves(how, a) if in_halves and few else None
    if halves:
        read, power = halves
        rows = np.multiply(a, np.float32(power), order="C").reshape(*a.shape, 1, 1)
        near, entry = whole_blocks(gemm_values.NEAR, span), _halves_runner(type_of(read))
        run_codes(entry, out, rows, b, depth, span, read, near, scales.rows, columns)
        return
    row = few and isinstance(how, np.ndarray) and span % 2 == depth % 2 == 0
    rows_of = 1 + gemm_values.mirrored(how) if row and isinstance(how, np.ndarray) else 0
    entry = _chain_runner(b.panels.dtype, type_of(how), kind, simd.enabled(), rows_of)
    block = whole_blocks(depth if row else BLOCK // 2, span)
    rows = np.ascontiguousarray(a).reshape(*a.shape, 1, 1) if row else pack_rows(a)
    run_codes(entry, out, rows, b, block, span, how, scales.rows, columns)
