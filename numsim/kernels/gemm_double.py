"""FP8, FP6 and FP4 products aligned to up to 25 fraction bits, with E8M0 scales or without: AVX2.

The rule is that of `kernels.fused` with an accumulator that joins and a float32 result, cut toward
zero; the operands are finite and have few bits (`covers`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels import simd, simd_double
from numsim.kernels.gemm_codes import (
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
from numsim.kernels.jit import inline, kernel, over_range
from numsim.kernels.simd_double import (
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
from numsim.kernels.simd_fp8 import (
    NO_LEFT,
    LEAST,
    LEFT,
    LOWEST,
    MOST,
    SIGN,
    TURN,
)

Array = npt.NDArray[Any]
WIDEST = 128  # products of a group, counted in a byte


class Tables(NamedTuple):
    """What each of 256 codes of the left operand is: bytes for exponents and lowest bits [256], values float64."""

    exponents: Array
    lowest: Array
    values: Array


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


def tables(values: Array, emin: int) -> Tables:
    """Return the tables of the left operand from the values of its 256 codes; not finite: zeros."""
    v = np.where(np.isfinite(values), values, 0.0).astype(np.float64)
    mantissas, exponents = np.frexp(v)
    whole = np.abs(mantissas * 2.0**24).astype(np.int64)
    lowest = exponents - 24 + np.frexp((whole & -whole).astype(np.float64))[1] - 1
    places = np.where(v == 0, NO_LEFT, lowest + SIGN * (v < 0) + LOWEST) + TURN[8]
    fields = np.where(v == 0, 0, np.maximum(exponents - 1, emin) + LEFT)
    return Tables(fields.astype(np.uint8), (places & 255).astype(np.uint8), v)


@inline
def _tile(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    group, a_step, align, least = rule
    simd_double.double_tile(
        a, a_at, b, b_at, out, out_at, stride, steps, left // ROWS, group, a_step, align, least
    )
    return left


@inline
def _power(exponent: np.int32) -> Any:
    return np.int64(np.int64(exponent + 1023) << 52).view(np.float64)


@inline
def _planes(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
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
    powers: Array, f: Fields, align: int, least: int,
) -> None:  # fmt: skip
    scratch = scratch_words(block * (b.shape[4] * B_STEP + B_REST))
    rule = (b.shape[4], a.shape[4], align, least)
    cover_codes(
        _tile, _planes, out, a, b, scratch, steps, block, group, start, stop, rule, (powers, f),
        True,
    )  # fmt: skip


@kernel
def _left(
    codes: Array, powers: Array, exponents: Array, lowest: Array, values: Array, planes: Array,
    group: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Write rows start:stop of codes [M, K] as [groups, M, words]."""
    depth, numbers = codes.shape[1], planes.view(np.float64)
    for row in range(start, stop):
        line = codes[row]
        for g in range(planes.shape[0]):
            words, doubles = planes[g, row], numbers[g, row]
            places = (words.size - A_REST) // A_STEP
            for j in range(places):
                k = g * group + j
                code = line[k] if j < group and k < depth else np.uint8(0)
                words[A_STEP * j] = np.int32(exponents[code]) * np.int32(0x1010101)
                words[A_STEP * j + 1] = np.int32(lowest[code]) * np.int32(0x1010101)
                doubles[A_STEP // 2 * j + 1] = values[code]
            words[A_STEP * places] = powers[row, g]
            doubles[A_STEP // 2 * places + 1] = _power(powers[row, g])


def _table_types() -> tuple[Any, ...]:
    byte = simd.contiguous(types.uint8, 1)
    return byte, byte, simd.contiguous(types.float64, 1)


@cache
def _runner() -> Callable[..., Any]:
    return simd.compiled(
        _run, *codes_types(types.int32, np.dtype(np.uint8), types.float32),
        simd.contiguous(types.int32, 4), uint32_tuple(Fields), types.int64, types.int64,
    )  # fmt: skip


@cache
def _left_packer() -> Callable[..., Any]:
    return simd.compiled(
        _left, simd.strided(types.uint8, 2), simd.contiguous(types.int32, 2), *_table_types(),
        simd.contiguous(types.int32, 3), *(types.int64,) * 3,
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


def gemm_double(
    a: Array, powers: Array, how_a: Tables, b: PackedDouble, how_b: Fields, group: int, align: int,
    least: int | None, *, c: Array | None = None,
) -> Array:  # fmt: skip
    """Return the float32 accumulators [batch, M, N] of a chain over groups of k, from c or +0.

    Parameters: a [batch, M, K] codes of one byte; `powers` [batch, M, groups] int32: exponents of
    its scales; b packed for the same group, of one item or as many as a; how their codes are read; `align`
    fraction bits; `least` that the largest exponent is at least; c [batch, M, N] float32.
    """
    batch, m, depth = a.shape
    n, groups, places = b.codes.lines, *b.codes.panels.shape[2::2]
    shape = (1, batch * m, n) if len(b.codes.panels) == 1 else (batch, m, n)
    tiles = -(-shape[1] // ROWS)
    out = np.zeros((shape[0], tiles * ROWS, n), np.float32)  # whole tiles of rows
    if c is not None:
        out[:, : shape[1]] = c.reshape(shape)
    if out.size:
        lines = a.view(np.uint8).reshape(*shape[:2], depth)
        own = np.ascontiguousarray(powers, np.int32).reshape(*shape[:2], groups)
        words = A_STEP * places + A_REST
        planes = np.zeros((shape[0], groups, tiles * ROWS, words), np.int32)
        pack = _left_packer()
        for i in range(shape[0]):

            def rows(start: int, stop: int, i: int = i) -> object:
                return pack(lines[i], own[i], *how_a, planes[i], group, start, stop)

            over_range(rows, shape[1])
        # a block is one group: planes [groups, M, ...] are those blocks in order
        laid = planes.reshape(shape[0], tiles, groups, ROWS, words)
        floor = NOTHING if least is None else max(least, NOTHING)
        run_codes(_runner(), out, laid, b.codes, 1, b.powers, how_b, align, floor)
    return out[:, : shape[1]].reshape(batch, m, n)
