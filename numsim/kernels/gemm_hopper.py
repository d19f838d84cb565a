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

from numsim.kernels import simd, simd_fp8
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
from numsim.kernels.gemm_fma import expanded
from numsim.kernels.jit import inline, kernel, over_range
from numsim.kernels.large import zeros
from numsim.kernels.simd_codes import fp8_planes
from numsim.kernels.simd_hopper import float_tile
from numsim.kernels.simd_pack import turned_quads

Array = npt.NDArray[Any]
_PAIR = 2  # products whose planes stand together for the portable kernel
_QUADS = simd_fp8.COLUMNS // 4  # words of the codes of one k
_RUN = 8  # a packed group is a multiple of this many products for the portable kernel
_BLOCK = simd_fp8.TURNED  # k of a panel whose planes stay in the first cache; of fewer bytes, BLOCK
FEW = 8  # rows up to which it pays to read codes for each pair anew
WIDEST = simd_fp8.WIDEST  # products of a group
LEAST, MOST = simd_fp8.LEAST, simd_fp8.MOST  # exponents of the operands' values
LOW, HIGH = 2.0 ** (2 * LEAST - 1), 2.0**116  # magnitudes of accumulators


class PackedFp8(NamedTuple):
    """The left operand: `planes` [1, tiles, groups, lines a tile, words], M, groups of a block.

    With AVX-512 and AVX2 a group holds runs of k and stands as [blocks of groups, tiles, groups of
    a block, ...] (`simd_fp8.left_codes`); otherwise pairs of k (`simd_codes.fp8_planes`). Both have
    exponents, significands or values, and signs or lowest bits.
    """

    planes: Array
    lines: int
    block: int


@expanded
def _tiles(
    words: int, coded: int, a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int,
    stride: int, steps: int, left: int, rule: Any,
) -> None:  # fmt: skip
    runs, tile, tables = rule
    pairs = left // 2
    float_tile(
        words, 2, coded, tables, pairs, runs, a, a_at, b, b_at, out, out_at, stride, steps, tile
    )
    if left % 2:
        a_at, out_at = a_at + pairs * tile, out_at + 2 * pairs * stride
        float_tile(
            words, 1, coded, tables, 1, runs, a, a_at, b, b_at, out, out_at, stride, steps, tile
        )


@inline
def _hopper_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    _tiles(16, 0, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def _hopper_half(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    _tiles(8, 0, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def _hopper_few(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    _tiles(16, 1, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def _hopper_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    simd.hopper_tile(a, a_at, b, b_at, out, out_at, stride, steps, rule)
    return 1


@inline
def _tables(how: Fields) -> Array:
    """Return what `simd_fp8.looked_up_codes` reads."""
    codes, words = np.arange(128).astype(np.uint8), np.empty(2 * simd_fp8.B_WORDS, np.int32)
    simd_fp8.right_codes(16, codes, 2, words, how)
    tables = np.empty((4, 128), np.uint8)
    planes = words.view(np.uint8)
    for code in range(128):
        at, place = code // 64 * 4 * simd_fp8.B_WORDS, code % 64
        value = at + 128 + 64 * (place % 4) + 4 * (place // 4)
        tables[0, code], tables[1, code] = planes[at + place], planes[at + 64 + place]
        tables[2, code], tables[3, code] = planes[value + 3], planes[value + 2]
    return tables.reshape(-1)


@inline
def _planes(codes: Array, words: Array, how: Any) -> None:
    tables, f = how
    count = codes.size // simd_fp8.COLUMNS
    if simd.HAVE_BYTE_TABLES and f.magnitude < 128:
        simd_fp8.looked_up_codes(codes, count, words, tables)
    else:
        simd_fp8.right_codes(16, codes, count, words, f)


@inline
def _codes(b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any) -> Array:
    _planes(codes_at(b, batch, panel, k, count), words, how)
    return words


@inline
def _turned(b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any) -> Array:
    step = simd_fp8.TURNED // b.shape[4]
    for i in range(0, count, step):
        simd_fp8.turned_codes(b[batch, panel, k + i], words[i * b.shape[4] * _QUADS :])
    return words


@inline
def _rows(b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any) -> Array:
    turned = scratch_words(count * b.shape[4] * _QUADS)
    _planes(_turned(b, batch, panel, k, count, turned, how).view(np.uint8), words, how)
    return words


@inline
def _codes_half(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    codes = codes_at(b, batch, panel, k, count)
    simd_fp8.right_codes(8, codes, codes.size // simd_fp8.COLUMNS, words, how)
    return words


@inline
def _rows_half(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    turned = scratch_words(count * b.shape[4] * _QUADS)
    step = simd_fp8.TURNED // b.shape[4]
    for i in range(0, count, step):
        turned_quads(b[batch, panel, k + i], turned[i * b.shape[4] * _QUADS :])
    codes = turned.view(np.uint8)
    simd_fp8.right_codes(8, codes, codes.size // simd_fp8.COLUMNS, words, how)
    return words


@inline
def _as_they_are(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    return codes_at(b, batch, panel, k, count).view(np.int32)


@inline
def _pairs(b: Array, batch: int, panel: int, k: int, count: int, words: Array, f: Fields) -> Array:
    codes = codes_at(b, batch, panel, k, count)
    fp8_planes(0, codes, 0, codes.size // (simd.HOPPER_COLUMNS * _PAIR), words, f)
    return words


@expanded
def _run(
    micro: Callable[..., int], decode: Callable[..., Array], words: int, out: Array, a: Array,
    b: Array, steps: int, block: int, group: int, start: int, stop: int, runs: int, read: Any,
    tables: Array,
) -> None:  # fmt: skip
    """Cover the output; `decode` makes `words` of the codes of one k of a panel."""
    scratch = scratch_words(block * runs * simd_fp8.RUN * words)
    rule = (runs, block * a.shape[3] * a.shape[4], tables)
    cover_codes(
        micro, decode, out, a, b, scratch, steps, block, group, start, stop, rule, read, True
    )


@kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    words = simd_fp8.B_WORDS
    tables = _tables(how)
    read = (tables, how)
    _run(
        _hopper_wide, _codes, words, out, a, b, steps, block, group, start, stop, runs, read, tables
    )


@kernel
def _run_wide_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    words = simd_fp8.B_WORDS
    tables = _tables(how)
    read = (tables, how)
    _run(
        _hopper_wide, _rows, words, out, a, b, steps, block, group, start, stop, runs, read, tables
    )


@kernel
def _run_half(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    words, none = simd_fp8.B_WORDS, np.empty(0, np.uint8)
    _run(
        _hopper_half,
        _codes_half,
        words,
        out,
        a,
        b,
        steps,
        block,
        group,
        start,
        stop,
        runs,
        how,
        none,
    )


@kernel
def _run_half_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    words, none = simd_fp8.B_WORDS, np.empty(0, np.uint8)
    _run(
        _hopper_half,
        _rows_half,
        words,
        out,
        a,
        b,
        steps,
        block,
        group,
        start,
        stop,
        runs,
        how,
        none,
    )


@kernel
def _run_few(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    tables = _tables(how)
    read = (tables, how)
    _run(
        _hopper_few,
        _as_they_are,
        0,
        out,
        a,
        b,
        steps,
        block,
        group,
        start,
        stop,
        runs,
        read,
        tables,
    )


@kernel
def _run_few_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    tables = _tables(how)
    read = (tables, how)
    _run(
        _hopper_few,
        _turned,
        _QUADS,
        out,
        a,
        b,
        steps,
        block,
        group,
        start,
        stop,
        runs,
        read,
        tables,
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


@expanded
def _left_codes(
    words: int, rows: Array, planes: Array, runs: int, how: Fields, start: int, stop: int
) -> None:
    """Write the planes of codes [tiles, lines per tile, k] as [blocks, tiles, `runs`, words]."""
    tiles, count = rows.shape[0], rows.shape[2] // simd_fp8.RUN
    flat = rows.reshape(-1)
    for tile in range(start, stop):
        for row in range(rows.shape[1]):
            line = (tile * rows.shape[1] + row) * rows.shape[2]
            for first in range(0, count, runs):
                at = (first * tiles + tile * runs) * simd_fp8.A_WORDS
                some = min(runs, count - first)
                codes = flat[line + first * simd_fp8.RUN :]
                simd_fp8.left_codes(words, codes, some, row, planes[at:], how)


@kernel
def _left_wide(rows: Array, planes: Array, runs: int, how: Fields, start: int, stop: int) -> None:
    _left_codes(16, rows, planes, runs, how, start, stop)


@kernel
def _left_half(rows: Array, planes: Array, runs: int, how: Fields, start: int, stop: int) -> None:
    _left_codes(8, rows, planes, runs, how, start, stop)


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
def _packer(path: str) -> Callable[..., Any]:
    planes, rest = simd.contiguous(types.int32, 1), (types.int64, types.int64)
    how = uint32_tuple(Fields)
    if path == "plain":
        return simd.compiled(_left_pairs, simd.contiguous(types.uint8, 4), planes, how, *rest)
    packer = _left_wide if path == "avx512" else _left_half
    return simd.compiled(packer, simd.contiguous(types.uint8, 3), planes, types.int64, how, *rest)


_RUNNERS = {  # by the path, whether there are few rows, and whether b's codes stand in place
    ("avx512", False, False): _run_wide, ("avx512", False, True): _run_wide_rows,
    ("avx512", True, False): _run_few, ("avx512", True, True): _run_few_rows,
    ("avx2", False, False): _run_half, ("avx2", False, True): _run_half_rows,
    ("plain", False, False): _run_narrow,
}  # fmt: skip


@cache
def _runner(path: str, few: bool, in_place: bool) -> Callable[..., Any]:
    out, a, b, *rest = codes_types(types.int32, np.dtype(np.uint8), types.float32)
    if in_place:
        b = simd.strided(types.uint8, 5)
    runner = _RUNNERS[path, few, in_place]
    return simd.compiled(runner, out, a, b, *rest, types.int64, uint32_tuple(Fields))


def _packed(
    codes: Array, width: int, group: int, run: int, multiple: int, order: tuple[int, ...] = ()
) -> PackedCodes:
    slots = np.full(-(-group // multiple) * multiple, -1)
    slots[:group] = np.arange(group)
    return pack_codes(codes, width, slots, group, run=run, order=order)


def _left_rows(codes: Array, group: int) -> Array:
    """Return codes [M, K] as whole tiles of lines and whole groups of runs, 0 where is nothing."""
    lines, depth = codes.shape
    rows, run = simd_fp8.ROWS, simd_fp8.RUN
    if codes.flags.c_contiguous and not (lines % rows or depth % group or group % run):
        return codes.reshape(-1, rows, depth)
    tiles, groups, places = -(-lines // rows), -(-depth // group), -(-group // run) * run
    wide = np.zeros((tiles * rows, groups * group), np.uint8)
    wide[:lines, :depth] = codes
    if group % run:
        short, wide = wide, np.zeros((tiles * rows, groups, places), np.uint8)
        wide[..., :group] = short.reshape(-1, groups, group)
    return wide.reshape(tiles, rows, groups * places)


def pack_a(codes: Array, how: Fields, group: int = 32) -> PackedFp8:
    """Pack the left operand [M, K]: FP8 codes of any strides, finite; `how` they are read."""
    lines, depth = codes.shape
    groups = -(-depth // group)
    path = simd.path()
    if path == "plain":
        tile = simd.HOPPER_ROWS
        tiles = -(-lines // tile)
        pairs = _packed(codes.T[None], tile, group, _PAIR, _RUN).panels
        pairs = pairs.reshape(tiles, -1, tile, _PAIR)
        planes = np.empty(pairs.size // 2 * 3, np.int32)
        entry = _packer(path)
        over_range(lambda start, stop: entry(pairs, planes, how, start, stop), tiles)
        block = max(BLOCK // (-(-group // _RUN) * _RUN), 1)
        return PackedFp8(planes.reshape(1, tiles, groups, tile, -1), lines, block)
    rows = _left_rows(codes.view(np.uint8), group)
    tiles, runs = len(rows), rows.shape[2] // groups // simd_fp8.RUN
    near = BLOCK if lines <= FEW and path == "avx512" else _BLOCK
    block = max(near // (runs * simd_fp8.RUN), 1)
    whole = -(-groups // block) * block
    planes = np.empty(tiles * whole * runs * simd_fp8.A_WORDS, np.int32)
    entry = _packer(path)
    over_range(lambda start, stop: entry(rows, planes, block * runs, how, start, stop), tiles)
    return PackedFp8(planes.reshape(1, tiles, whole, simd_fp8.ROWS, -1), lines, block)


def pack_b(codes: Array, group: int = 32) -> PackedCodes:
    """Pack the right operand [1 or batch, K, N]: FP8 codes of any strides, finite.

    Columns whose codes stand side by side, as a network's weights have them, stay where they are.
    """
    if simd.path() != "plain":
        rows = codes.swapaxes(1, 2)
        batch, n, depth = rows.shape
        run, width = simd_fp8.TURNED, simd_fp8.COLUMNS
        if rows.flags.c_contiguous and not (n % width or depth % run or run % group or group % 16):
            panels = rows.view(np.uint8).reshape(batch, n // width, width, depth // group, group)
            return PackedCodes(panels.swapaxes(2, 3), n, in_place=True)
        return _packed(codes, width, group, 1, simd_fp8.RUN, simd_fp8.ORDER)
    return _packed(codes, simd.HOPPER_COLUMNS, group, _PAIR, _RUN)


def gemm_hopper_fp8(a: PackedFp8, b: PackedCodes, how: Fields, *, c: Array | None = None) -> Array:
    """Return the float32 accumulators [M, N] of a chain over the groups of k, from c or +0.

    Parameters: operands packed on the same path, of the same K and group (1 to WIDEST), one b;
    `how` b's codes are read; c [M, N] float32, zero or LOW <= |c| <= HIGH.
    """
    shape = (1, a.lines, b.lines)
    out: Array = zeros(shape) if c is None else np.array(c, np.float32, order="C").reshape(shape)
    if out.size:
        path = simd.path()
        runs = b.panels.shape[4] // (_RUN if path == "plain" else simd_fp8.RUN)
        few = a.lines <= FEW and simd.enabled() and simd.HAVE_BYTE_TABLES and how.magnitude < 128
        runner = _runner(path, bool(few), b.in_place)
        run_codes(runner, out, a.planes, b, a.block, runs, how)
    return out.reshape(shape[1:])
