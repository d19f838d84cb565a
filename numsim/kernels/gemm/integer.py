"""Exact products of bytes, summed modulo 2^32, which any order of the sum gives.

Operands are int8 or uint8 codes [batch, M, K] and [1 or batch, K, N], packed four k to a word of 32
bits, by rows of a tile and columns of a panel. Proof: ``tests/targets/test_fast_units.py`` compares
every sum with NumPy's in int64 and with the definition, `rules.integer`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.gemm.fma import pack_words, run_tiles, tile_rows, tile_types
from numsim.kernels.gemm.turned import turn
from numsim.kernels.ir import integer as simd_int
from numsim.kernels.ir import simd
from numsim.kernels.jit import (
    borrowing_kernel,
    expanded,
    grain_of,
    inline,
    kernel,
    over_range,
)

Array = npt.NDArray[Any]
_BLOCK = 256  # steps of four k for which a panel of b stays in the first cache


class PackedInt8(NamedTuple):
    """The right operand, packed once.

    Fields: `panels` [1 or batch, panels, K/4, 32, 1] (four signed bytes in each uint32), `begin`
    [1 or batch, columns of whole panels] (-128 times their sums over K: what sums start from where
    a's bytes are 128 too large), `offset` (0 or 128; the true value is the signed byte + offset)
    and `n`.
    """

    panels: Array
    begin: Array
    offset: int
    n: int


@inline
def int8_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    """Update up to 12 rows of a tile; return how many."""
    if left >= 12:
        simd_int.int8_tile(12, 1, a, a_at, b, b_at, out, out_at, stride, steps)
        return 12
    if left >= 4:
        simd_int.int8_tile(4, 1, a, a_at, b, b_at, out, out_at, stride, steps)
        return 4
    simd_int.int8_tile(1, 1, a, a_at, b, b_at, out, out_at, stride, steps)
    return 1


@inline
def int8_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    """Update one or two rows of a tile, without AVX-512; return how many."""
    if left >= 2:
        simd_int.int8_tile(2, 0, a, a_at, b, b_at, out, out_at, stride, steps)
        return 2
    simd_int.int8_tile(1, 0, a, a_at, b, b_at, out, out_at, stride, steps)
    return 1


class Ends(NamedTuple):
    """What sums of a panel begin with, and what becomes of them; of all k, or of a block of these.

    Fields: `begin` [1 or batch times columns] and the panel's place there, whether the block is the
    `first`, a `scale`, and whether it is the `last`, whose sums it multiplies; `later`, the place
    of what a tile asks for meanwhile, and at what `pace`, see `ir.integer.scaled_int8_tile`.
    """

    begin: Array
    at: int
    first: int
    scale: np.float32
    last: int
    later: int
    pace: int


@inline
def _scaled_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, ends: Ends,
) -> int:  # fmt: skip
    """Do what `int8_wide` does, with ends."""
    if left >= 12:
        simd_int.scaled_int8_tile(
            12, 1, a, a_at, b, b_at, out, out_at, stride, steps, ends.begin, ends.at, ends.first,
            ends.scale, ends.last, ends.later, ends.pace,
        )  # fmt: skip
        return 12
    if left >= 4:
        simd_int.scaled_int8_tile(
            4, 1, a, a_at, b, b_at, out, out_at, stride, steps, ends.begin, ends.at, ends.first,
            ends.scale, ends.last, ends.later, ends.pace,
        )  # fmt: skip
        return 4
    simd_int.scaled_int8_tile(
        1, 1, a, a_at, b, b_at, out, out_at, stride, steps, ends.begin, ends.at, ends.first,
        ends.scale, ends.last, ends.later, ends.pace,
    )  # fmt: skip
    return 1


@inline
def _scaled_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, ends: Ends,
) -> int:  # fmt: skip
    """Do what `int8_narrow` does, with ends."""
    if left >= 2:
        simd_int.scaled_int8_tile(
            2, 0, a, a_at, b, b_at, out, out_at, stride, steps, ends.begin, ends.at, ends.first,
            ends.scale, ends.last, ends.later, ends.pace,
        )  # fmt: skip
        return 2
    simd_int.scaled_int8_tile(
        1, 0, a, a_at, b, b_at, out, out_at, stride, steps, ends.begin, ends.at, ends.first,
        ends.scale, ends.last, ends.later, ends.pace,
    )  # fmt: skip
    return 1


@expanded
def _cover(
    micro: Callable[..., int], out: Array, a: Array, b: Array, steps: int, block: int, group: int,
    start: int, stop: int, begin: Array, fresh: int, scale: np.float32, scaled: int,
) -> None:  # fmt: skip
    """Do what `fma.cover` does; begin with rows [1 or batch, N] if `fresh`, and scale at the end.

    Whatever `out` held is then not read. While tiles share a panel, they ask for the next one.
    """
    m, n = out.shape[1], out.shape[2]
    tiles, panels, rows, width = a.shape[1], b.shape[1], a.shape[3], b.shape[3]
    groups = (tiles + group - 1) // group
    flat, first_row = out.reshape(-1), begin.reshape(-1)
    for piece in range(start, stop):
        panel = piece % panels
        batch = piece // panels // groups
        first = piece // panels % groups * group
        shared = batch if b.shape[0] > 1 else 0
        for k in range(0, max(steps, 1), block):
            count = min(block, steps - k)
            b_at = ((shared * panels + panel) * steps + k) * width
            last = min(first + group, tiles)
            pace = (width + last - first - 1) // (last - first)
            later = b_at + count * width
            for t in range(first, last):
                ends = Ends(
                    first_row, shared * n + panel * width, fresh if k == 0 else 0, scale,
                    scaled if k + block >= steps else 0, later, pace,
                )  # fmt: skip
                later += count * pace
                a_at = ((batch * tiles + t) * steps + k) * rows
                at = (batch * m + t * rows) * n + panel * width
                left = min(rows, m - t * rows)
                tile_rows(micro, a, a_at, b, b_at, flat, at, n, left, count, ends)


@borrowing_kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    begin: Array, fresh: int, scale: np.float32, scaled: int,
) -> None:  # fmt: skip
    _cover(
        _scaled_wide, out, a, b, steps, block, group, start, stop, begin, fresh, scale, scaled
    )  # fmt: skip


@borrowing_kernel
def _run_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    begin: Array, fresh: int, scale: np.float32, scaled: int,
) -> None:  # fmt: skip
    _cover(
        _scaled_narrow, out, a, b, steps, block, group, start, stop, begin, fresh, scale, scaled
    )  # fmt: skip


@cache
def _runner(wide: bool) -> Callable[..., Any]:
    runner = _run_wide if wide else _run_narrow
    ends = (simd.contiguous(types.int32, 2), types.int64, types.float32, types.int64)
    return simd.compiled(runner, *tile_types(types.uint32, types.uint32, types.int32), *ends)


@kernel
def _sum_lines(source: Array, sums: Array, flip: int, start: int, stop: int) -> None:
    """Write the sums of lines [lines, K] of bytes, XOR `flip` and read as signed."""
    mask = np.uint8(flip)
    for i in range(start, stop):
        line, total = source[i], np.int32(0)
        for k in range(line.size):
            total += np.int32(np.uint8(line[k] ^ mask).view(np.int8))
        sums[i] = total


@cache
def _summer() -> Callable[..., Any]:
    arrays = types.Array(types.uint8, 2, "C", readonly=True), simd.contiguous(types.int32, 1)
    return simd.compiled(_sum_lines, *arrays, *(types.int64,) * 3)


def _by_fours(lines: Array, beyond: int) -> Array:
    """Return lines [batch, lines, K] of bytes in C order, of a multiple of four k.

    What is added is `beyond`; lines that are so already are returned themselves.
    """
    batch, count, depth = lines.shape
    if depth % 4 == 0 and lines.flags.c_contiguous:
        return lines
    whole = np.full((batch, count, -(-depth // 4) * 4), beyond, np.uint8)
    turned = lines.swapaxes(1, 2)
    if turned.flags.c_contiguous:
        for i in range(batch):
            turn(turned[i].view(np.uint8), whole[i])
    else:
        whole[:, :, :depth] = lines.view(np.uint8)
    return whole


def packed_a(a: Array) -> Array:
    """Return panels of unsigned bytes; what stands beyond K does not matter, b is 0 there."""
    words = _by_fours(a, 0).view(np.uint32)
    return pack_words(words, 0x80808080 if a.dtype == np.int8 else 0)


def pack_b(b: Array) -> PackedInt8:
    """Pack the right operand [1 or batch, K, N], int8 or uint8, of any strides."""
    flip = 0 if b.dtype == np.int8 else 128  # makes signed bytes, and 0 of what stands beyond K
    lines = _by_fours(b.swapaxes(1, 2), flip)
    batch, n, depth = lines.shape
    panels = pack_words(lines.view(np.uint32), flip * 0x01010101, simd.INT8_COLUMNS)
    rows, entry = lines.view(np.uint8).reshape(batch * n, depth), _summer()
    sums = np.empty(batch * n, np.int32)
    over_range(
        lambda start, stop: entry(rows, sums, flip, start, stop), len(rows),
        grain=grain_of(len(rows), rows.size),
    )  # fmt: skip
    begin = np.zeros((batch, panels.shape[1] * panels.shape[3]), np.int32)
    np.multiply(sums.reshape(batch, n), np.int32(-128), out=begin[:, :n])
    return PackedInt8(panels, begin, flip, n)


def starts(b: PackedInt8, span: int) -> Array:
    """Return what blocks of `span` words of k start from where a's bytes are 128 too large.

    [1 or batch, blocks, columns of whole panels] int32.
    """
    batch, panels, steps, width, _ = b.panels.shape
    blocks = -(-steps // span)
    whole = np.zeros((batch, panels, blocks * span, width), np.uint32)
    whole[:, :, :steps] = b.panels[..., 0]
    bytes_of = whole.view(np.int8).reshape(batch, panels, blocks, span, width, 4)
    found = bytes_of.sum(axis=(3, 5), dtype=np.int32) * np.int32(-128)
    return np.ascontiguousarray(found.swapaxes(1, 2)).reshape(batch, blocks, panels * width)


def gemm_int8(
    a: Array, b: Array | PackedInt8, scale: np.float32 | None = None, rows: Array | None = None
) -> Array:
    """Return the int32 sums of products [batch, M, N], modulo 2^32, or fp32(fp32(sum) * scale).

    Parameters: a [batch, M, K]; b [1 or batch, K, N] or packed; each int8 or uint8; `scale` finite;
    `rows`: what `packed_a` made of a.
    """
    packed = b if isinstance(b, PackedInt8) else pack_b(b)
    batch, m, depth = a.shape
    if packed.panels.shape[0] == 1:
        a = a.reshape(1, batch * m, depth)
    out = np.empty((*a.shape[:2], packed.n), np.int32)
    if out.size:
        rows = packed_a(a) if rows is None else rows
        # a = ua - 128 if it is int8, b = sb + packed.offset, summed over k; all modulo 2^32.
        begin = packed.begin if a.dtype == np.int8 else np.zeros_like(packed.begin)
        if packed.offset:
            whole = a.sum(axis=2, dtype=np.int64) * packed.offset
            np.add(begin[:, None, : packed.n], whole.astype(np.int32)[:, :, None], out=out)
        run_tiles(
            _runner(simd.enabled()), out, rows, packed.panels, _BLOCK, begin,
            int(not packed.offset), np.float32(1 if scale is None else scale),
            int(scale is not None),
        )  # fmt: skip
    made = out if scale is None else out.view(np.float32)
    return made.reshape(batch, m, packed.n)
