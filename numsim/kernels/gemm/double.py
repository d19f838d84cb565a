"""FP8, FP6 and FP4 products aligned to up to 25 fraction bits, with E8M0 scales or without: AVX2.

The rule is `Fused` with an accumulator that joins and a float32 result, cut toward zero; the
operands are finite and have few bits (`covers`). They are codes, a by rows of a tile and b by
columns of a panel, group by group of k, with the exponent of the scales of each line and group.
Proof: ``tests/targets/test_block_products.py`` and ``test_fast_units.py`` compare every bit with
the definition, `rules.fused`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.gemm.codes import (
    Fields,
    PackedCodes,
    codes_at,
    codes_types,
    cover_codes,
    pack_codes,
    run_codes,
    scratch_words,
    uint32_tuple,
)
from numsim.kernels.ir import double as simd_double
from numsim.kernels.ir import simd
from numsim.kernels.ir.double import (
    A_REST,
    A_STEP,
    B_REST,
    B_STEP,
    COLUMNS,
    MOST_BITS,
    NOTHING,
    ROWS,
    UNROLL,
)
from numsim.kernels.ir.fp8 import LEAST, MOST
from numsim.kernels.jit import PACKED, grain_of, inline, kernel, over_range

Array = npt.NDArray[Any]
WIDEST = 128  # products of a group, counted in a byte
FEW = 2  # rows up to which `gemm.align`, which reads its codes faster, is quicker without scales


class PackedDouble(NamedTuple):
    """The right operand, packed once: `powers` [batch, panels, groups, columns] int32."""

    codes: PackedCodes
    powers: Array


def covers(
    group: int, align_bits: int, least: int | None, low: int, high: int, precision: int
) -> bool:
    """Whether the kernel does groups of so many products of finite codes of at most 8 bits.

    Nothing may be cut from an accumulator that no product meets. Parameters: those of the rule;
    the least and largest exponents of both operands, subnormals at the format's least, and the
    larger precision.
    """
    keeps = 23 <= align_bits <= MOST_BITS and (least is None or least - align_bits <= -149)
    fits = 1 <= group <= WIDEST and keeps and precision <= 4
    return fits and low >= LEAST and high <= MOST and simd.path() != "plain"


@inline
def _tile(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    group, a_step, align, least, bounded = rule
    simd_double.double_tile(
        a, a_at, b, b_at, out, out_at, stride, steps, left // ROWS, group, a_step, align, least,
        bounded,
    )  # fmt: skip
    return left


@inline
def _power(exponent: np.int32) -> Any:
    return np.int64(np.int64(exponent + 1023) << 52).view(np.float64)


@inline
def _planes(b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any) -> Array:
    powers, f = how
    codes, group = codes_at(b, batch, panel, k, count), b.shape[4]
    numbers, each = words.view(np.float64), group * B_STEP + B_REST
    for step in range(count):
        simd_double.right_double(codes[step * group * COLUMNS :], group, words[step * each :], f)
        at, line = step * each + group * B_STEP, powers[batch, panel, k + step]
        for i in range(COLUMNS):
            words[at + i] = line[i]
            numbers[at // 2 + 16 + i] = _power(line[i])
    return words


@kernel
def _run(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    powers: Array, f: Fields, align: int, least: int, bounded: int,
) -> None:  # fmt: skip
    scratch = scratch_words(block * (b.shape[4] * B_STEP + B_REST))
    rule = (b.shape[4], block * a.shape[4], align, least, bounded)
    cover_codes(
        _tile, _planes, out, a, b, scratch, steps, block, group, start, stop, rule, (powers, f),
        True,
    )  # fmt: skip


@kernel
def _left(codes: Array, powers: Array, planes: Array, f: Fields, start: int, stop: int) -> None:
    """Write rows start:stop of codes [M, groups, k] as [blocks, M, groups of a block, words]."""
    block, numbers = planes.shape[2], planes.view(np.float64)
    places = codes.shape[2]
    for row in range(start, stop):
        for g in range(codes.shape[1]):
            words = planes[g // block, row, g % block]
            simd_double.left_double(codes[row, g], places // UNROLL, words, f)
            words[A_STEP * places] = powers[row, g]
            at = A_STEP // 2 * places + 1
            numbers[g // block, row, g % block, at] = _power(powers[row, g])


@cache
def _runner() -> Callable[..., Any]:
    return simd.compiled(
        _run, *codes_types(types.int32, np.dtype(np.uint8), types.float32),
        simd.contiguous(types.int32, 4), uint32_tuple(Fields), *(types.int64,) * 3,
    )  # fmt: skip


@cache
def _left_packer() -> Callable[..., Any]:
    return simd.compiled(
        _left, simd.contiguous(types.uint8, 3), simd.contiguous(types.int32, 2),
        simd.contiguous(types.int32, 4), uint32_tuple(Fields), types.int64, types.int64,
    )  # fmt: skip


def pack_b(codes: Array, powers: Array, group: int) -> PackedDouble:
    """Pack codes [1 or batch, K, N] of one byte; `powers` [1 or batch, N, groups] of scales."""
    slots = np.full(-(-group // UNROLL) * UNROLL, -1)
    slots[:group] = np.arange(group)
    packed = pack_codes(codes, COLUMNS, slots, group)
    batch, panels, groups = packed.panels.shape[:3]
    lines = np.zeros((batch, panels * COLUMNS, groups), np.int32)
    lines[:, : powers.shape[1]] = powers
    turned = lines.reshape(batch, panels, COLUMNS, groups).swapaxes(2, 3)
    return PackedDouble(packed, np.ascontiguousarray(turned))


def _groups(codes: Array, group: int, places: int) -> Array:
    """Return codes [batch, M, K] as [batch, M, groups, places], 0 where there is nothing."""
    batch, m, depth = codes.shape
    if codes.flags.c_contiguous and group == places and depth % group == 0:
        return codes.reshape(batch, m, -1, group)
    groups = -(-depth // group)
    wide = np.zeros((batch, m, groups * group), np.uint8)
    wide[..., :depth] = codes
    whole = np.zeros((batch, m, groups, places), np.uint8)
    whole[..., :group] = wide.reshape(batch, m, groups, group)
    return whole


def gemm_double(
    a: Array, powers: Array, how_a: Fields, b: PackedDouble, how_b: Fields, group: int, align: int,
    least: int | None, *, bounded: bool, c: Array | None = None,
) -> Array:  # fmt: skip
    """Return the float32 accumulators [batch, M, N] of a chain over groups of k, from c or +0.

    Parameters: a [batch, M, K] codes of one byte; `powers` [batch, M, groups] int32: exponents of
    its scales; b packed for the same group, of one item or as many as a; how their codes are read;
    `align` fraction bits; `least` that the largest exponent is at least; `bounded`: no sum can
    leave float32; c [batch, M, N] float32.
    """
    batch, m, depth = a.shape
    n, groups, places = b.codes.lines, *b.codes.panels.shape[2::2]
    shape = (1, batch * m, n) if len(b.codes.panels) == 1 else (batch, m, n)
    tiles = -(-shape[1] // ROWS)
    out = np.zeros((shape[0], tiles * ROWS, n), np.float32)  # whole tiles of rows
    if c is not None:
        out[:, : shape[1]] = c.reshape(shape)
    if out.size:
        lines = _groups(a.view(np.uint8).reshape(*shape[:2], depth), group, places)
        own = np.ascontiguousarray(powers, np.int32).reshape(*shape[:2], groups)
        words = A_STEP * places + A_REST
        block = 2 - groups % 2  # accumulators are read and written once for two groups
        rows_of = tiles * ROWS
        planes = np.empty((shape[0], groups // block, rows_of, block, words), np.int32)
        planes[:, :, shape[1] :] = 0
        pack = _left_packer()
        for i in range(shape[0]):

            def rows(start: int, stop: int, i: int = i) -> object:
                return pack(lines[i], own[i], planes[i], how_a, start, stop)

            over_range(rows, shape[1], grain=grain_of(shape[1], PACKED * lines[i].size))
        laid = planes.reshape(shape[0], tiles, groups, ROWS, words)
        floor = NOTHING if least is None else max(least, NOTHING)
        run_codes(_runner(), out, laid, b.codes, block, b.powers, how_b, align, floor, int(bounded))
    return out[:, : shape[1]].reshape(batch, m, n)
