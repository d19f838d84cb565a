"""Matrix products whose scales stand outside the unit, one for each block of k.

Every block is a chain of its own from zero; its result times a scale, rounded, is added in float32
in order of k. The blocks' results stay in the first cache: a tile of the output is scaled and added
right after its block, by whatever unit's micro-kernel made it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types
from numba.np.numpy_support import from_dtype

from numsim.kernels.gemm import hopper as gemm_hopper
from numsim.kernels.gemm import hopper_paths, hopper_right
from numsim.kernels.gemm import integer as gemm_int
from numsim.kernels.gemm.codes import (
    BLOCK,
    Fields,
    PackedCodes,
    codes_at,
    codes_types,
    cover_codes,
    run_codes,
    scratch_words,
    uint32_tuple,
    undecoded,
)
from numsim.kernels.gemm.fma import tile_rows
from numsim.kernels.gemm.hopper_left import few_left
from numsim.kernels.gemm.integer import int8_narrow, int8_wide
from numsim.kernels.ir import fp8 as simd_fp8
from numsim.kernels.ir import simd
from numsim.kernels.ir.blocks import add_scaled
from numsim.kernels.ir.hopper_rows import hopper_rows
from numsim.kernels.jit import borrowing_kernel, expanded, inline, kernel

Array = npt.NDArray[Any]
_TILES = 16  # row tiles whose results of one block stay in the first cache


class Scales(NamedTuple):
    """Scales of blocks, float32: `rows` [batch, M, blocks], `columns` [1 or batch, blocks, N]."""

    rows: Array
    columns: Array


@expanded
def _cover(
    micro: Callable[..., int], decode: Callable[..., Array], out: Array, a: Array, b: Array,
    scratch: Array, near_step: int, part: Array, first_sums: Array, steps: int, span: int,
    block: int, group: int, start: int, stop: int, rule: Any, how: Any, rows_scale: Array,
    columns_scale: Array, blocked: bool,
) -> None:  # fmt: skip
    """Do what `gemm.codes.cover_codes` does, a block of `span` steps at a time.

    `near_step`: words of a step of what `decode` returns; `part`: room for the results of one
    block, zeros; `first_sums`: what integer ones begin from; `block`, the steps that are decoded at
    a time, is a multiple of `span`.
    """
    m, n = out.shape[1], out.shape[2]
    tiles, panels, rows, width = a.shape[1], b.shape[1], a.shape[3], b.shape[3]
    groups = (tiles + group - 1) // group
    a_step = a.shape[3] * a.shape[4]
    a_tile, a_k = steps * a_step, a_step
    if blocked:
        a_tile, a_k = block * a_step, tiles * a_step
    flat, blocks = out.reshape(-1), columns_scale.shape[1]
    row_scales, column_scales = rows_scale.reshape(-1), columns_scale.reshape(-1)
    starts = first_sums.reshape(-1)
    part[:] = 0
    for piece in range(start, stop):
        panel = piece % panels
        batch = piece // panels // groups
        first = piece // panels % groups * group
        last = min(first + group, tiles)
        shared = batch if b.shape[0] > 1 else 0
        column = panel * width
        for k in range(0, steps, block):
            count = min(block, steps - k)
            near = decode(b, shared, panel, k, count, scratch, how)
            together = _TILES if blocked else 1
            for t in range(first, last, together):
                left = min(min(together, last - t) * rows, m - t * rows)
                for s in range(0, count, span):
                    some, at_block = min(span, count - s), (k + s) // span
                    a_at = batch * tiles * steps * a_step + t * a_tile + k * a_k + s * a_step
                    tile_rows(micro, a, a_at, near, s * near_step, part, 0, width, left, some, rule)
                    at = (batch * m + t * rows) * n + column
                    row = (batch * m + t * rows) * blocks + at_block
                    other = (shared * blocks + at_block) * n + column
                    add_scaled(
                        part,
                        width,
                        left,
                        starts,
                        other,
                        flat,
                        at,
                        n,
                        row_scales,
                        row,
                        blocks,
                        column_scales,
                        other,
                    )


@expanded
def _sums(
    micro: Callable[..., int], out: Array, a: Array, b: Array, steps: int, block: int, group: int,
    start: int, stop: int, span: int, starts: Array, rows_scale: Array, columns_scale: Array,
) -> None:  # fmt: skip
    part = scratch_words(a.shape[3] * b.shape[3])
    _cover(
        micro, undecoded, out, a, b, part, b.shape[3], part, starts, steps, span, block,
        group, start, stop, 0, 0, rows_scale, columns_scale, False,
    )  # fmt: skip


@kernel
def _sums_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, starts: Array, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _sums(
        int8_wide, out, a, b, steps, block, group, start, stop, span, starts, rows, columns
    )  # fmt: skip


@kernel
def _sums_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, starts: Array, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _sums(
        int8_narrow, out, a, b, steps, block, group, start, stop, span, starts, rows, columns
    )  # fmt: skip


@expanded
def _fp8(
    micro: Callable[..., int], decode: Callable[..., Array], words: int, short: int, out: Array,
    a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int, span: int,
    runs: int, rule: Any, how: Any, rows_scale: Array, columns_scale: Array,
) -> None:  # fmt: skip
    near_step = runs * short * words
    scratch = scratch_words(block * near_step)
    part = scratch_words(_TILES * a.shape[3] * b.shape[3]).view(np.float32)
    _cover(
        micro, decode, out, a, b, scratch, near_step, part, out, steps, span, block,
        group, start, stop, rule, how, rows_scale, columns_scale, short == simd_fp8.RUN,
    )  # fmt: skip


@kernel
def _fp8_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, runs: int, how: Fields, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _fp8(
        hopper_paths.hopper_wide, hopper_right.codes_wide, simd_fp8.B_WORDS, simd_fp8.RUN, out, a,
        b, steps, block, group, start, stop, span, runs, (runs, block * a.shape[3] * a.shape[4]),
        (hopper_right.tables_of(how), how), rows, columns,
    )  # fmt: skip


@kernel
def _fp8_half(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, runs: int, how: Fields, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _fp8(
        hopper_paths.hopper_half, hopper_right.codes_half, simd_fp8.B_WORDS, simd_fp8.RUN, out, a,
        b, steps, block, group, start, stop, span, runs, (runs, block * a.shape[3] * a.shape[4]),
        how, rows, columns,
    )  # fmt: skip


@expanded
def _scaled_rows(
    words: int, a: Array, a_at: int, b: Any, b_at: int, out: Array, out_at: int, stride: int,
    steps: int, left: int, rule: Any,
) -> None:  # fmt: skip
    codes, columns_at, at_block = b
    runs, tile, how, own, bases, rows, blocks, columns, span = rule
    pairs, row, quads = left // 2, out_at // stride, codes.view(np.int32)
    scales = (rows, row * blocks + at_block, blocks, columns, columns_at, stride, span)
    hopper_rows(
        words, 2, how, own, bases, scales, pairs, runs, a, a_at, quads, b_at, out, out_at, stride,
        steps, tile,
    )  # fmt: skip
    if left % 2:
        a_at, out_at, row = a_at + pairs * tile, out_at + 2 * pairs * stride, row + 2 * pairs
        last = (rows, row * blocks + at_block, blocks, columns, columns_at, stride, span)
        hopper_rows(
            words, 1, how, own, bases, last, 1, runs, a, a_at, quads, b_at, out, out_at, stride,
            steps, tile,
        )  # fmt: skip


@inline
def _scaled_wide(
    a: Array, a_at: int, b: Any, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    _scaled_rows(16, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def _scaled_half(
    a: Array, a_at: int, b: Any, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    _scaled_rows(8, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def codes_with_scales(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Any:
    """Return codes, and where the scales of their columns and of the first of their blocks are."""
    span, blocks, n = how
    at_block = k // span
    at = (batch * blocks + at_block) * n + panel * b.shape[3]
    return codes_at(b, batch, panel, k, count), at, at_block


@expanded
def _fp8_few(
    micro: Callable[..., int], out: Array, a: Array, b: Array, steps: int, block: int, group: int,
    start: int, stop: int, span: int, runs: int, how: Fields, rows: Array, columns: Array,
) -> None:  # fmt: skip
    own, bases = few_left(a, runs, how)
    rule = (
        runs, block * a.shape[3] * a.shape[4], how, own, bases, rows.reshape(-1), columns.shape[1],
        columns.reshape(-1), span,
    )  # fmt: skip
    cover_codes(
        micro, codes_with_scales, out, a, b, np.empty(0, np.int32), steps, block, group, start,
        stop, rule, (span, columns.shape[1], columns.shape[2]), True,
    )  # fmt: skip


@kernel
def _fp8_few_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, runs: int, how: Fields, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _fp8_few(
        _scaled_wide, out, a, b, steps, block, group, start, stop, span, runs, how, rows, columns
    )  # fmt: skip


@kernel
def _fp8_few_half(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    span: int, runs: int, how: Fields, rows: Array, columns: Array,
) -> None:  # fmt: skip
    _fp8_few(
        _scaled_half, out, a, b, steps, block, group, start, stop, span, runs, how, rows, columns
    )  # fmt: skip


_FP8 = {  # by the path and how many rows there are
    ("avx512", hopper_paths.MANY): _fp8_wide, ("avx512", hopper_paths.FEW): _fp8_few_wide,
    ("avx2", hopper_paths.MANY): _fp8_half, ("avx2", hopper_paths.FEW): _fp8_few_half,
}  # fmt: skip


def scale_types() -> tuple[Any, Any]:
    """Return the types of `Scales`."""
    return simd.contiguous(types.float32, 3), simd.contiguous(types.float32, 3)


@cache
def _sum_runner(wide: bool) -> Callable[..., Any]:
    arguments = codes_types(types.uint32, np.dtype(np.uint32), types.float32)
    starts = simd.contiguous(from_dtype(np.dtype(np.int32)), 3)
    chosen = _sums_wide if wide else _sums_narrow
    return simd.compiled(chosen, *arguments, types.int64, starts, *scale_types())


@cache
def _fp8_runner(path: str, rows: int) -> Callable[..., Any]:
    arguments = codes_types(types.int32, np.dtype(np.uint8), types.float32)
    return simd.compiled(
        _FP8[path, rows],
        *arguments,
        types.int64,
        types.int64,
        uint32_tuple(Fields),
        *scale_types(),
    )


@borrowing_kernel
def sizes(scales: Array) -> tuple[bool, float, float, int]:
    """Return of scales that are not 0 whether all are finite, the least, the largest, how many.

    NaN counts as not finite; without any the least is infinite and the largest 0.
    """
    finite, count = True, 0
    least, most = np.float32(np.inf), np.float32(0.0)
    for i in range(scales.size):
        size = scales[i]
        finite &= abs(size) < np.float32(np.inf)
        count += size != 0
        least = min(least, size) if size != 0 else least
        most = max(most, size)
    return finite, float(least), float(most), count


def padded(columns: Array, width: int) -> Array:
    """Return scales of columns [1 or batch, blocks, N] with N whole panels."""
    more = -columns.shape[2] % width
    return np.ascontiguousarray(np.pad(columns, ((0, 0), (0, 0), (0, more))) if more else columns)


def whole_blocks(steps: int, span: int) -> int:
    """Return the steps to decode at a time: whole blocks, about `steps` of them."""
    return max(steps // span, 1) * span


def sums(
    out: Array, a: Array, b: gemm_int.PackedInt8, starts: Array, span: int, scales: Scales
) -> None:
    """Add the scaled sums of products of int8 of each block of `span` k, a multiple of 4.

    Parameters: a [batch, M, K] int8; b packed; `starts`: `gemm.integer.starts` of b and span // 4.
    """
    rows = gemm_int.packed_a(a)
    columns = padded(scales.columns, b.panels.shape[3])
    entry, packed = _sum_runner(simd.enabled()), PackedCodes(b.panels, b.n)
    block = whole_blocks(BLOCK, span // 4)
    run_codes(entry, out, rows, packed, block, span // 4, starts, scales.rows, columns)


def fp8_covers() -> bool:
    """Whether `fp8` has a kernel for this path."""
    return (simd.path(), hopper_paths.MANY) in _FP8


def fp8(
    out: Array, a: gemm_hopper.PackedFp8, b: PackedCodes, how: Fields, span: int, scales: Scales
) -> None:
    """Add the scaled chains of Hopper's FP8 rule of each block of `span` groups to out [1, M, N].

    Parameters: operands packed by `gemm.hopper`, b not in place; `how` b's codes are read.
    """
    runs = b.panels.shape[4] // simd_fp8.RUN
    columns = padded(scales.columns, b.panels.shape[3])
    entry = _fp8_runner(simd.path(), gemm_hopper.rows_of(a.lines, how))
    run_codes(entry, out, a.planes, b, a.block, span, runs, how, scales.rows, columns)
