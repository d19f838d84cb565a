"""FP8 matrix products by the rule of Hopper's wgmma and Ada's mma, for finite operands.

Per group of products (Hopper 32, Ada 16) and the accumulator: every term is cut toward zero to 13
fraction bits below the largest exponent, the terms are added exactly, and the sum is cut to 13
fraction bits. A product with a zero factor has no say in the largest exponent; a zero sum is +0.
Operands are codes [batch, M, K] and [1 or batch, K, N], packed by rows of a tile and columns of a
panel, group by group of k. Proof: ``tests/targets/test_fast_units.py`` compares every bit with the
definition, `rules.fused`, on every path.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.gemm import hopper_paths, hopper_right
from numsim.kernels.gemm.codes import (
    BLOCK,
    GROUP,
    Fields,
    PackedCodes,
    as_halves,
    codes_types,
    pack_codes,
    run_codes,
    uint32_tuple,
)
from numsim.kernels.gemm.fma import even_groups
from numsim.kernels.gemm.hopper_left import LEFT, PAIR
from numsim.kernels.gemm.hopper_paths import SHORT_RUN
from numsim.kernels.gemm.turned import turn
from numsim.kernels.ir import fp8 as simd_fp8
from numsim.kernels.ir import simd
from numsim.kernels.ir.hopper_rows import LONG
from numsim.kernels.jit import PACKED, grain_of, over_range, threads
from numsim.kernels.memory import zeros

Array = npt.NDArray[Any]
_BLOCK = simd_fp8.TURNED  # k of a panel whose planes stay in the first cache; of fewer bytes, BLOCK
# Rows up to which it pays to read codes for each pair anew, by path
FEW = {"avx512": 4, "avx2": 5, "plain": 0}
WIDEST = simd_fp8.WIDEST  # products of a group
LEAST, MOST = simd_fp8.LEAST, simd_fp8.MOST  # exponents of the operands' values
LOW, HIGH = 2.0 ** (2 * LEAST - 1), 2.0**116  # magnitudes of accumulators


class PackedFp8(NamedTuple):
    """The left operand: `planes` [1, tiles, groups, lines a tile, words], M, groups of a block.

    With AVX-512 and AVX2 a group holds runs of k and stands as [blocks of groups, tiles, groups of
    a block, ...] (`ir.fp8.left_codes`); otherwise pairs of k (`simd_codes.fp8_planes`). Both have
    exponents, signs, and significands or values.
    """

    planes: Array
    lines: int
    block: int


@cache
def _packer(path: str) -> Callable[..., Any]:
    planes, rest = simd.contiguous(types.int32, 1), (types.int64, types.int64)
    how = uint32_tuple(Fields)
    packer = LEFT[path]
    if path == "plain":
        return simd.compiled(packer, simd.contiguous(types.uint8, 4), planes, how, *rest)
    return simd.compiled(packer, simd.contiguous(types.uint8, 3), planes, types.int64, how, *rest)


@cache
def _runner(path: str, rows: int, in_place: bool) -> Callable[..., Any]:
    out, a, b, *rest = codes_types(types.int32, np.dtype(np.uint8), types.float32)
    if in_place:
        b = simd.strided(types.uint8, 5)
    runner = hopper_paths.RUN[path, rows, in_place]
    return simd.compiled(runner, out, a, b, *rest, types.int64, uint32_tuple(Fields))


def _packed(
    codes: Array, width: int, group: int, run: int, multiple: int, order: tuple[int, ...] = ()
) -> PackedCodes:
    slots = np.full(-(-group // multiple) * multiple, -1)
    slots[:group] = np.arange(group)
    return pack_codes(codes, width, slots, group, run=run, order=order)


@cache
def _columns_packer() -> Callable[..., Any]:
    codes = types.Array(types.uint8, 3, "C", readonly=True)
    words = simd.contiguous(types.uint32, 4)
    return simd.compiled(hopper_right.pack_columns, codes, words, types.int64, types.int64)


def _side_by_side(codes: Array, group: int) -> Array:
    """Pack the right operand [batch, K, N] in C order, in `ir.fp8.ORDER`: K whole groups."""
    batch, depth, n = codes.shape
    width, groups = simd_fp8.COLUMNS, -(-depth // group)
    words = np.zeros((batch, -(-n // width), groups * group, width // 4), np.uint32)
    entry = _columns_packer()
    pieces = batch * words.shape[1]
    over_range(
        lambda start, stop: entry(codes, words, start, stop), pieces,
        grain=grain_of(pieces, codes.size),
    )  # fmt: skip
    return words.view(np.uint8).reshape(*words.shape[:2], groups, width, group)


def _left_rows(codes: Array, group: int) -> Array:
    """Return codes [M, K] as whole tiles of lines and whole groups of runs, 0 where is nothing."""
    lines, depth = codes.shape
    rows, run = simd_fp8.ROWS, simd_fp8.RUN
    if codes.flags.c_contiguous and not (lines % rows or depth % group or group % run):
        return codes.reshape(-1, rows, depth)
    tiles, groups, places = -(-lines // rows), -(-depth // group), -(-group // run) * run
    wide = np.zeros((tiles * rows, groups * group), np.uint8)
    if codes.T.flags.c_contiguous:
        turn(codes.T, wide)
    else:
        wide[:lines, :depth] = codes
    if group % run:
        short, wide = wide, np.zeros((tiles * rows, groups, places), np.uint8)
        wide[..., :group] = short.reshape(-1, groups, group)
    return wide.reshape(tiles, rows, groups * places)


def pack_a(codes: Array, how: Fields, group: int = 32, span: int = 1) -> PackedFp8:
    """Pack the left operand [M, K]: FP8 codes of any strides, finite; `how` they are read.

    Blocks hold multiples of `span` groups.
    """
    lines, depth = codes.shape
    groups = -(-depth // group)
    path = simd.path()
    if path == "plain":
        tile = simd.HOPPER_ROWS
        tiles = -(-lines // tile)
        pairs = _packed(codes.T[None], tile, group, PAIR, SHORT_RUN).panels
        pairs = pairs.reshape(tiles, -1, tile, PAIR)
        planes = np.empty(pairs.size // 2 * 3, np.int32)
        entry = _packer(path)
        grain = grain_of(tiles, PACKED * lines * depth)
        over_range(lambda start, stop: entry(pairs, planes, how, start, stop), tiles, grain=grain)
        block = max(BLOCK // (-(-group // SHORT_RUN) * SHORT_RUN), 1)
        return PackedFp8(planes.reshape(1, tiles, groups, tile, -1), lines, block)
    rows = _left_rows(codes.view(np.uint8), group)
    tiles, runs = len(rows), rows.shape[2] // groups // simd_fp8.RUN
    block, whole = _blocks(lines, groups, runs, span)
    planes = np.empty(tiles * whole * runs * simd_fp8.A_WORDS, np.int32)
    entry = _packer(path)
    grain = grain_of(tiles, PACKED * lines * depth)
    over_range(
        lambda start, stop: entry(rows, planes, block * runs, how, start, stop), tiles, grain=grain
    )
    return PackedFp8(planes.reshape(1, tiles, whole, simd_fp8.ROWS, -1), lines, block)


def _blocks(lines: int, groups: int, runs: int, span: int = 1) -> tuple[int, int]:
    """Return the groups of a block of k, and those of all blocks."""
    near = LONG if lines <= FEW[simd.path()] else _BLOCK
    most = max(near // (runs * simd_fp8.RUN) // span, 1) * span
    count = -(-groups // most)
    block = -(-groups // (count * span)) * span  # even blocks: little is filled up
    return block, count * block


def pack_b(codes: Array, group: int = 32, *, in_place: bool = True) -> PackedCodes:
    """Pack the right operand [1 or batch, K, N]: FP8 codes of any strides, finite.

    Columns whose codes stand side by side, as a network's weights have them, stay where they are if
    `in_place`.
    """
    if simd.path() != "plain":
        rows = codes.swapaxes(1, 2)
        batch, n, depth = rows.shape
        run, width = simd_fp8.TURNED, simd_fp8.COLUMNS
        if (
            in_place
            and rows.flags.c_contiguous
            and not (n % width or depth % run or run % group or group % 16)
        ):
            panels = rows.view(np.uint8).reshape(batch, n // width, width, depth // group, group)
            return PackedCodes(panels.swapaxes(2, 3), n, in_place=True)
        if codes.flags.c_contiguous and group % simd_fp8.RUN == 0:
            return PackedCodes(_side_by_side(codes.view(np.uint8), group), n)
        return _packed(codes, width, group, 1, simd_fp8.RUN, simd_fp8.ORDER)
    return _packed(codes, simd.HOPPER_COLUMNS, group, PAIR, SHORT_RUN)


def rows_of(lines: int, how: Fields) -> int:
    """Return how so many rows are done on this path: see `hopper_paths`."""
    few = lines <= FEW[simd.path()] and as_halves(how)
    return hopper_paths.FEW if few else hopper_paths.MANY


def gemm_hopper_fp8(a: PackedFp8, b: PackedCodes, how: Fields, *, c: Array | None = None) -> Array:
    """Return the float32 accumulators [M, N] of a chain over the groups of k, from c or +0.

    Parameters: operands packed on the same path, of the same K and group (1 to WIDEST), one b;
    `how` b's codes are read; c [M, N] float32, zero or LOW <= |c| <= HIGH.
    """
    lines, columns = b.lines, b.panels.shape[1] * b.panels.shape[3]
    out: Array = zeros((1, a.lines, columns))
    if c is not None:
        out[0, :, :lines] = c
    if out.size:
        path = simd.path()
        runs = b.panels.shape[4] // (SHORT_RUN if path == "plain" else simd_fp8.RUN)
        runner = _runner(path, rows_of(a.lines, how), b.in_place)
        run_codes(runner, out, a.planes, b, a.block, runs, how)
    whole: Array = out[0]
    return whole if lines == columns else whole[:, :lines].copy()


def gemm_items(
    a: Array, how_a: Fields, b: PackedCodes, how_b: Fields, group: int, c: Array | None = None
) -> Array:
    """Return the accumulators [batch, M, N] of a [batch, M, K] by b of one item or as many.

    As `gemm_hopper_fp8` of each item. Heads of attention are many and small: each takes two calls,
    and its left planes have the place of the last one's, which stays near.
    """
    batch, m, depth = a.shape
    n, panels, path = b.lines, b.panels, simd.path()
    if path == "plain" or batch < threads():
        out = np.empty((batch, m, n), np.float32)
        for i in range(batch):
            own = b._replace(panels=panels[i : i + 1]) if len(panels) > 1 else b
            start = None if c is None else c[i]
            out[i] = gemm_hopper_fp8(pack_a(a[i], how_a, group), own, how_b, c=start)
        return out
    groups, columns = panels.shape[2], panels.shape[1] * panels.shape[3]
    tiles, codes = -(-m // simd_fp8.ROWS), a.view(np.uint8)
    if m % simd_fp8.ROWS:
        codes = np.zeros((batch, tiles * simd_fp8.ROWS, depth), np.uint8)
        codes[:, :m] = a.view(np.uint8)
    rows = _left_rows(codes.reshape(-1, depth), group)
    runs = rows.shape[2] // groups // simd_fp8.RUN
    block, whole = _blocks(m, groups, runs)
    out = zeros((batch, m, columns))
    if c is not None:
        out[:, :, :n] = c
    together = even_groups(tiles, GROUP)
    pieces = -(-tiles // together) * panels.shape[1]
    pack, run = _packer(path), _runner(path, rows_of(m, how_b), b.in_place)

    def items(start: int, stop: int) -> None:
        flat = np.empty(tiles * whole * runs * simd_fp8.A_WORDS, np.int32)
        planes = flat.reshape(1, tiles, whole, simd_fp8.ROWS, -1)
        for i in range(start, stop):
            pack(rows[i * tiles : (i + 1) * tiles], flat, block * runs, how_a, 0, tiles)
            own = panels[i : i + 1] if len(panels) > 1 else panels
            run(out[i : i + 1], planes, own, groups, block, together, 0, pieces, runs, how_b)

    over_range(items, batch)
    return out if n == columns else out[:, :, :n].copy()
