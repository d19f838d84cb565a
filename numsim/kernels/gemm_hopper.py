"""FP8 matrix products by the rule of Hopper's wgmma and Ada's mma, for finite operands.

Per group of products (Hopper 32, Ada 16) and the accumulator: every term is cut toward zero to 13
fraction bits below the largest exponent, the terms are added exactly, and the sum is cut to 13
fraction bits. A product with a zero factor has no say in the largest exponent; a zero sum is +0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels import simd, simd_hopper
from numsim.kernels.gemm_codes import (
    BLOCK,
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
from numsim.kernels.large import zeros
from numsim.kernels.simd_codes import fp8_planes

Array = npt.NDArray[Any]
_PAIR, _QUAD = 2, simd_hopper.QUAD  # products whose planes stand together: portable, AVX-512
_RUN = 8  # a packed group is a multiple of this many products for the portable kernel
_BLOCKS = BLOCK, simd_hopper.TURNED * _QUAD  # k of a panel whose planes stay in the first cache
LEAST, MOST = simd_hopper.LEAST, simd_hopper.MOST  # exponents of the operands' values
LOW, HIGH = 2.0 ** (2 * LEAST - 1), 2.0**116  # magnitudes of accumulators


class PackedFp8(NamedTuple):
    """The left operand: `planes` [1, tiles, groups, lines per tile, words], its M, k of a group.

    Each group holds pairs or quads of k, each of them exponents, significands and signs of a tile
    (`simd_codes.fp8_planes`, `simd_hopper.left_quad`). Quads are laid out as [blocks of groups,
    tiles, groups of a block, ...].
    """

    planes: Array
    lines: int
    group: int


@inline
def _hopper_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    if left >= 4:
        simd_hopper.float_tile(4, a, a_at, b, b_at, out, out_at, stride, steps, rule)
        return 4
    simd_hopper.float_tile(1, a, a_at, b, b_at, out, out_at, stride, steps, rule)
    return 1


@inline
def _hopper_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    simd.hopper_tile(a, a_at, b, b_at, out, out_at, stride, steps, rule)
    return 1


@inline
def _quads(b: Array, batch: int, panel: int, k: int, count: int, words: Array, f: Fields) -> None:
    codes = codes_at(b, batch, panel, k, count)
    simd_hopper.right_quads(codes, codes.size // (simd_hopper.COLUMNS * _QUAD), words, f)


@inline
def _rows(b: Array, batch: int, panel: int, k: int, count: int, words: Array, f: Fields) -> None:
    turned = scratch_words(simd_hopper.TURNED * simd_hopper.COLUMNS)
    simd_hopper.turned_quads(b[batch, panel, k], turned)
    simd_hopper.right_quads(turned, simd_hopper.TURNED, words, f)


@inline
def _pairs(b: Array, batch: int, panel: int, k: int, count: int, words: Array, f: Fields) -> None:
    codes = codes_at(b, batch, panel, k, count)
    fp8_planes(0, codes, 0, codes.size // (simd.HOPPER_COLUMNS * _PAIR), words, f)


@kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    scratch = scratch_words(block * runs * simd_hopper.B_WORDS)
    cover_codes(
        _hopper_wide, _quads, out, a, b, scratch, steps, block, group, start, stop, runs, how, True
    )


@kernel
def _run_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    scratch = scratch_words(block * runs * simd_hopper.B_WORDS)
    cover_codes(
        _hopper_wide, _rows, out, a, b, scratch, steps, block, group, start, stop, runs, how, True
    )


@kernel
def _run_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    scratch = scratch_words(block * runs * _RUN * 3 * simd.HOPPER_COLUMNS // 2)
    cover_codes(
        _hopper_narrow, _pairs, out, a, b, scratch, steps, block, group, start, stop, runs, how
    )


@kernel
def _left_quads(
    source: Array, planes: Array, block: int, how: Fields, start: int, stop: int
) -> None:
    """Write the planes of words [tiles, quads, lines per tile] of four codes.

    They become [blocks, tiles, `block` quads, words].
    """
    tiles = source.shape[0]
    for tile in range(start, stop):
        for quad in range(source.shape[1]):
            w = source[tile, quad]
            place = (quad // block * tiles + tile) * block + quad % block
            at = place * simd_hopper.A_WORDS
            simd_hopper.left_quad(w[0], w[1], w[2], w[3], planes, at, how)


@kernel
def _left_pairs(source: Array, planes: Array, how: Fields, start: int, stop: int) -> None:
    """Write the planes of codes [tiles, pairs, lines per tile, 2]."""
    step = 2 * simd.HOPPER_ROWS
    pairs = source.shape[1]
    codes = source.reshape(-1)
    for tile in range(start, stop):
        words = planes[tile * pairs * 3 * step // 2 :]
        fp8_planes(1, codes, tile * pairs * step, pairs, words, how)


@cache
def _packer(wide: bool) -> Callable[..., Any]:
    planes, rest = simd.contiguous(types.int32, 1), (types.int64, types.int64)
    how = uint32_tuple(Fields)
    if wide:
        words = simd.strided(types.uint32, 3)
        return simd.compiled(_left_quads, words, planes, types.int64, how, *rest)
    return simd.compiled(_left_pairs, simd.contiguous(types.uint8, 4), planes, how, *rest)


@cache
def _runner(wide: bool, in_place: bool) -> Callable[..., Any]:
    out, a, b, *rest = codes_types(types.int32, np.dtype(np.uint8), types.float32)
    runner = _run_wide if wide else _run_narrow
    if in_place:
        runner, b = _run_rows, simd.strided(types.uint8, 5)
    return simd.compiled(runner, out, a, b, *rest, types.int64, uint32_tuple(Fields))


def _packed(codes: Array, width: int, group: int, run: int, multiple: int) -> PackedCodes:
    slots = np.full(-(-group // multiple) * multiple, -1)
    slots[:group] = np.arange(group)
    return pack_codes(codes, width, slots, group, run=run)


def _block(places: int) -> int:
    """Return how many groups, of so many packed places, are multiplied at a time."""
    return max(_BLOCKS[simd.enabled()] // places, 1)


def pack_a(codes: Array, how: Fields, group: int = 32) -> PackedFp8:
    """Pack the left operand [M, K]: FP8 codes of any strides, finite; `how` they are read."""
    lines, depth = codes.shape
    rows = simd.HOPPER_ROWS
    tiles, groups = -(-lines // rows), -(-depth // group)
    if not simd.enabled():
        pairs = _packed(codes.T[None], rows, group, _PAIR, _RUN).panels
        pairs = pairs.reshape(tiles, -1, rows, _PAIR)
        planes = np.empty(pairs.size // 2 * 3, np.int32)
        entry = _packer(False)
        over_range(lambda start, stop: entry(pairs, planes, how, start, stop), tiles)
        return PackedFp8(planes.reshape(1, tiles, groups, rows, -1), lines, group)
    if codes.flags.c_contiguous and not (lines % rows or depth % group or group % _QUAD):
        quads = codes.view(np.uint32).reshape(tiles, rows, -1).swapaxes(1, 2)
    else:
        quads = _packed(codes.T[None], rows, group, _QUAD, _QUAD).panels
        quads = quads.reshape(tiles, -1, rows, _QUAD).view(np.uint32)[..., 0]
    places = quads.shape[1] // groups * _QUAD
    block = _block(places)
    whole = -(-groups // block) * block
    planes = np.empty(tiles * whole * places // _QUAD * simd_hopper.A_WORDS, np.int32)
    entry = _packer(True)
    run = block * places // _QUAD
    over_range(lambda start, stop: entry(quads, planes, run, how, start, stop), tiles)
    return PackedFp8(planes.reshape(1, tiles, whole, rows, -1), lines, group)


def pack_b(codes: Array, group: int = 32) -> PackedCodes:
    """Pack the right operand [1 or batch, K, N]: FP8 codes of any strides, finite.

    Columns whose codes stand side by side, as a network's weights have them, stay where they are.
    """
    if simd.enabled():
        rows = codes.swapaxes(1, 2)
        batch, n, depth = rows.shape
        run, width = simd_hopper.TURNED * _QUAD, simd_hopper.COLUMNS
        if rows.flags.c_contiguous and not (n % width or depth % run or run % group or group % 4):
            panels = rows.view(np.uint8).reshape(batch, n // width, width, depth // group, group)
            return PackedCodes(panels.swapaxes(2, 3), n, in_place=True)
        return _packed(codes, simd_hopper.COLUMNS, group, _QUAD, _QUAD)
    return _packed(codes, simd.HOPPER_COLUMNS, group, _PAIR, _RUN)


def gemm_hopper_fp8(a: PackedFp8, b: PackedCodes, how: Fields, *, c: Array | None = None) -> Array:
    """Return the float32 accumulators [M, N] of a chain over the groups of k, from c or +0.

    Parameters: operands packed on the same path, of the same K and group (1 to 256), one b; `how`
    b's codes are read; c [M, N] float32, zero or LOW <= |c| <= HIGH.
    """
    shape = (1, a.lines, b.lines)
    out: Array = zeros(shape) if c is None else np.array(c, np.float32, order="C").reshape(shape)
    if out.size:
        wide = simd.enabled()
        places = b.panels.shape[4]
        runs = places // (_QUAD if wide else _RUN)
        runner = _runner(wide, b.in_place)
        run_codes(runner, out, a.planes, b, _block(places), runs, how)
    return out.reshape(shape[1:])
