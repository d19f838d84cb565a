"""FP8, FP6 and FP4 products aligned to up to 25 fraction bits, with E8M0 scales or without.

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
from numsim.kernels.gemm.double_left import left_planes, power_of_two
from numsim.kernels.gemm.scales import ONE, Scales, by_columns
from numsim.kernels.ir import double as simd_double
from numsim.kernels.ir import double_planes, simd
from numsim.kernels.ir.double import ANY, MOST_BITS, NORMAL, NOTHING, PLAIN, ROWS, UNROLL
from numsim.kernels.ir.double_planes import COLUMNS, b_words, order
from numsim.kernels.ir.fp8 import LEAST, MOST
from numsim.kernels.jit import expanded, inline, kernel

Array = npt.NDArray[Any]
_ROWS = 2 * ROWS  # of a tile: more of them make a panel's planes pay
WIDEST = 128  # products of a group, counted in a byte
LOW, HIGH = 2.0 ** (2 * LEAST - 1), 2.0**116  # magnitudes of accumulators without scales
# Rows up to which it pays to read codes for each anew, by path
FEW = {"avx512": 5, "avx2": 2, "plain": 0}
_CUT_ROWS = 5  # those of codes whose products `ir.halves` cuts
_POWERS = np.arange(256, dtype=np.int32) - ONE  # exponents of scales


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


_WIDE, _HALF = COLUMNS["avx512"], COLUMNS["avx2"]
_WIDE_WORDS, _HALF_WORDS = b_words(_WIDE), b_words(_HALF)


@inline
def _wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    simd_double.double_tile(
        _WIDE, rule[0], a, a_at, b, b_at, out, out_at, stride, steps, left // ROWS, rule[1],
        rule[2], rule[3], rule[4],
    )  # fmt: skip
    return left


@inline
def _half(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    simd_double.double_tile(
        _HALF, rule[0], a, a_at, b, b_at, out, out_at, stride, steps, left // ROWS, rule[1],
        rule[2], rule[3], rule[4],
    )  # fmt: skip
    return left


def kind_of(low: int, high: int, least: int | None, c: Array | None, *, scaled: bool) -> int:
    """Return what the kernel must expect: `PLAIN`, `NORMAL` or `ANY`.

    Parameters: products and the sums of all lie from ``2**low`` to below ``2**high``; `least`: that
    the largest exponent is at least; c, the accumulators' first values.
    """
    plain = high <= 116 and (least is None or least <= 2 * LEAST - 1) and not scaled
    normal = low >= -120 and high < 126 and (least is None or least <= -126)
    if c is None:
        return PLAIN if plain else NORMAL if normal else ANY
    size = np.abs(c)
    if plain and ((size == 0) | ((size >= LOW) & (size <= HIGH))).all():
        return PLAIN
    return NORMAL if normal and (size < 2.0**126).all() else ANY


@inline
def _row(
    a: Array, a_at: int, b: Any, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    codes, scales, how = b
    simd_double.double_row(
        rule[0], rule[1], how, scales, 0, a, a_at, codes, b_at, out, out_at, stride, steps, left,
        rule[2], rule[3], rule[4], rule[5],
    )  # fmt: skip
    return left


@inline
def _as_they_are(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Any:
    powers, read = how
    return codes_at(b, batch, panel, k, count), powers[batch, panel, k:].reshape(-1), read


@inline
def _scales(words: Array, line: Array, at: int) -> None:
    """Write a group's exponents from word `at` on, then their powers of two."""
    numbers = words.view(np.float64)
    for i in range(line.size):
        words[at + i] = line[i]
        numbers[(at + line.size) // 2 + i] = power_of_two(line[i])


@inline
def _wide_planes(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    powers, f = how
    codes, group = codes_at(b, batch, panel, k, count), b.shape[4]
    each = group * _WIDE_WORDS[0] + _WIDE_WORDS[1]
    for s in range(count):
        some = codes[s * group * _WIDE :]
        double_planes.right_double(_WIDE, 1, some, group, words[s * each :], f)
        _scales(words, powers[batch, panel, k + s], s * each + group * _WIDE_WORDS[0])
    return words


@inline
def _half_planes(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    powers, f = how
    codes, group = codes_at(b, batch, panel, k, count), b.shape[4]
    each = group * _HALF_WORDS[0] + _HALF_WORDS[1]
    for s in range(count):
        some = codes[s * group * _HALF :]
        double_planes.right_double(_HALF, 1, some, group, words[s * each :], f)
        _scales(words, powers[batch, panel, k + s], s * each + group * _HALF_WORDS[0])
    return words


@expanded
def _run(
    micro: Callable[..., int], decode: Callable[..., Array], words: tuple[int, int], out: Array,
    a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int, kind: int,
    powers: Array, f: Fields, align: int, least: int,
) -> None:  # fmt: skip
    scratch = scratch_words(block * (b.shape[4] * words[0] + words[1]))
    rule = (kind, b.shape[4], block * a.shape[4], align, least)
    cover_codes(
        micro, decode, out, a, b, scratch, steps, block, group, start, stop, rule, (powers, f),
        True,
    )  # fmt: skip


@kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    kind: int, powers: Array, f: Fields, align: int, least: int,
) -> None:  # fmt: skip
    _run(
        _wide, _wide_planes, _WIDE_WORDS, out, a, b, steps, block, group, start, stop, kind,
        powers, f, align, least,
    )  # fmt: skip


@kernel
def _run_half(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    kind: int, powers: Array, f: Fields, align: int, least: int,
) -> None:  # fmt: skip
    _run(
        _half, _half_planes, _HALF_WORDS, out, a, b, steps, block, group, start, stop, kind,
        powers, f, align, least,
    )  # fmt: skip


@expanded
def _run_rows(
    columns: int, out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int,
    stop: int, kind: int, powers: Array, read: Any, align: int, least: int,
) -> None:  # fmt: skip
    rule = (columns, kind, b.shape[4], block * a.shape[4], align, least)
    cover_codes(
        _row, _as_they_are, out, a, b, np.empty(0, np.int32), steps, block, group, start, stop,
        rule, (powers, read), True,
    )  # fmt: skip


@kernel
def _run_wide_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    kind: int, powers: Array, f: Fields, align: int, least: int,
) -> None:  # fmt: skip
    tables = tables_of(f)
    _run_rows(
        _WIDE, out, a, b, steps, block, group, start, stop, kind, powers, tables, align, least
    )  # fmt: skip


@kernel
def _run_wide_cut(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    kind: int, powers: Array, f: Fields, align: int, least: int,
) -> None:  # fmt: skip
    _run_rows(
        _WIDE, out, a, b, steps, block, group, start, stop, kind, powers, (f,), align, least
    )  # fmt: skip


@kernel
def _run_half_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    kind: int, powers: Array, f: Fields, align: int, least: int,
) -> None:  # fmt: skip
    _run_rows(_HALF, out, a, b, steps, block, group, start, stop, kind, powers, f, align, least)


@kernel
def _run_half_cut(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    kind: int, powers: Array, f: Fields, align: int, least: int,
) -> None:  # fmt: skip
    _run_rows(
        _HALF, out, a, b, steps, block, group, start, stop, kind, powers, (f,), align, least
    )  # fmt: skip


@inline
def tables_of(how: Fields) -> Array:
    """Return what `ir.fp8.ByTables` reads, of float64 values."""
    codes, each = np.arange(128).astype(np.uint8), _WIDE_WORDS[0]
    words = np.empty(2 * each, np.int32)
    double_planes.right_double(_WIDE, 0, codes, 2, words, how)
    tables = np.empty((4, 128), np.uint8)
    planes = words.view(np.uint8)
    for code in range(128):
        at, place = code // 64 * 4 * each, code % 64
        value = at + 128 + 8 * (16 * (place % 4) + place // 4)
        tables[0, code], tables[1, code] = planes[at + place], planes[at + 64 + place]
        tables[2, code], tables[3, code] = planes[value + 7], planes[value + 6]
    return tables.reshape(-1)


def reads_codes(how: Fields) -> bool:
    """Whether kernels of few rows read such codes as they are, on this path."""
    return as_halves(how) or makes_doubles(how)


def makes_doubles(how: Fields) -> bool:
    """Whether they make float64 of them, where no product is cut alone."""
    return bool(simd.path() == "avx2" or (simd.HAVE_BYTE_TABLES and how.magnitude < 128))


_MANY, _FEW, _CUT = range(3)  # rows, and how codes of few are read
_RUN = {
    ("avx512", _MANY): _run_wide, ("avx512", _FEW): _run_wide_rows,
    ("avx512", _CUT): _run_wide_cut,
    ("avx2", _MANY): _run_half, ("avx2", _FEW): _run_half_rows, ("avx2", _CUT): _run_half_cut,
}  # fmt: skip


@cache
def _runner(path: str, rows: int, kind: int) -> Callable[..., Any]:
    return simd.compiled(
        _RUN[path, rows],
        *codes_types(types.int32, np.dtype(np.uint8), types.float32), simd.literal(kind),
        simd.contiguous(types.int32, 4), uint32_tuple(Fields), types.int64, types.int64,
    )  # fmt: skip


def pack_b(codes: Array, scales: Scales, group: int) -> PackedDouble:
    """Pack codes [1 or batch, K, N] of one byte, with the scales of their columns."""
    slots = np.full(-(-group // UNROLL) * UNROLL, -1)
    slots[:group] = np.arange(group)
    width = COLUMNS[simd.path()]
    packed = pack_codes(codes, width, slots, group, order=order(width))
    shape = (*packed.panels.shape[:3], width)
    return PackedDouble(packed, by_columns(scales, _POWERS, shape, packed.lines, shape[2]))


def gemm_double(
    a: Array, scales: Scales, how_a: Fields, b: PackedDouble, how_b: Fields, group: int, align: int,
    least: int | None, kind: int, c: Array | None = None,
) -> Array:  # fmt: skip
    """Return the float32 accumulators [batch, M, N] of a chain over groups of k, from c or +0.

    Parameters: a [batch, M, K] codes of one byte, and their scales, E8M0; b packed for the same
    group, of one item or as many as a; how their codes are read; `align` fraction bits; `least`
    that the largest exponent is at least; `kind`: of `kind_of`; c [batch, M, N] float32. What
    overflows stays infinite: NaN comes of c alone. A scale that is NaN makes any number.
    """
    batch, m, depth = a.shape
    n, groups, places = b.codes.lines, *b.codes.panels.shape[2::2]
    one = len(b.codes.panels) == 1
    shape = (1, batch * m, n) if one else (batch, m, n)
    cut = as_halves(how_b) and shape[1] <= _CUT_ROWS
    few = cut or (shape[1] <= FEW[simd.path()] and makes_doubles(how_b))
    tile, whole = (1, shape[1]) if few else (_ROWS, -(-shape[1] // ROWS) * ROWS)
    tiles = -(-shape[1] // tile)
    out = np.zeros((shape[0], whole, n), np.float32)
    if c is not None:
        start = c.reshape(shape)
        out[:, : shape[1]] = np.where(start == 0, np.float32(0.0), start)  # zeros are positive
    if out.size:
        block = groups if few else 1 if simd.enabled() else 2 - groups % 2
        planes = left_planes(
            a.reshape(*shape[:2], depth), scales.joined(batch, m) if one else scales, how_a,
            (group, places), block, tiles * tile, signs=not few,
        )  # fmt: skip
        laid = planes.reshape(shape[0], tiles, groups, tile, -1)
        if cut:
            change_for_cuts(planes, places, how_b)
        floor = NOTHING if least is None else max(least, NOTHING)
        entry = _runner(simd.path(), _CUT if cut else _FEW if few else _MANY, kind)
        run_codes(entry, out, laid, b.codes, block, kind, b.powers, how_b, align, floor)
    return out[:, : shape[1]].reshape(batch, m, n)
