"""Matrix products as chains of IEEE fused multiply-adds, and the tiling all fast products share.

Each output is one chain in increasing k, in float32 or float64, as ``ideal.fp32`` has it. Operands
are values: a [batch, M, K] packed as [batch, tiles, K, rows], b [1 or batch, K, N] as [batch,
panels, K, columns]. Proof: ``tests/targets/test_fast_units.py`` compares every bit with the
definition, `rules.mac`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from numba import types
from numba.np.numpy_support import from_dtype

from numsim.kernels.ir import simd
from numsim.kernels.ir.pack import turned_words
from numsim.kernels.jit import (
    PACKED,
    borrowing_kernel,
    expanded,
    grain_of,
    inline,
    kernel,
    over_range,
)

Array = npt.NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])
_GROUP = 8  # row tiles that reuse a panel of b while it is in the cache
_BLOCK = 512  # steps of k for which that panel fits
_WIDE = 1 << 13  # columns from which every row of the output has pages of its own


class PackedFma(NamedTuple):
    """The right operand, packed once: panels [1 or batch, panels, K, columns], and its N."""

    panels: Array
    n: int


@expanded
def tile_rows(
    micro: Callable[..., int],
    a: Array,
    a_at: int,
    b: Array,
    b_at: int,
    out: Array,
    at: int,
    n: int,
    left: int,
    count: int,
    rule: Any,
) -> None:
    """Run `micro` over the `left` rows of one tile."""
    done = 0
    while done < left:
        done += micro(a, a_at + done, b, b_at, out, at + done * n, n, count, left - done, rule)


@expanded
def cover(
    micro: Callable[..., int],
    out: Array,
    a: Array,
    b: Array,
    steps: int,
    block: int,
    group: int,
    start: int,
    stop: int,
    rule: Any,
) -> None:
    """Run `micro` over the pieces start:stop of the output (batch, group of row tiles, panel).

    Parameters: `out` [batch, M, N], N whole panels, holds the accumulators' first values; `a`
    [batch, tiles, steps, rows, ...] and `b` [1 or batch, panels, steps, columns, ...] are packed. k
    is cut into blocks; the accumulators rest in `out` in between, which no kernel's arithmetic can
    tell. `rule` goes to `micro` as it is.
    """
    m, n = out.shape[1], out.shape[2]
    tiles, panels, rows, width = a.shape[1], b.shape[1], a.shape[3], b.shape[3]
    groups = (tiles + group - 1) // group
    a_step = a.shape[3] * a.shape[4]
    b_step = b.shape[3] * b.shape[4]
    flat = out.reshape(-1)
    for piece in range(start, stop):
        panel = piece % panels
        batch = piece // panels // groups
        first = piece // panels % groups * group
        shared = batch if b.shape[0] > 1 else 0
        for k in range(0, max(steps, 1), block):
            count = min(block, steps - k)
            b_at = ((shared * panels + panel) * steps + k) * b_step
            for t in range(first, min(first + group, tiles)):
                a_at = ((batch * tiles + t) * steps + k) * a_step
                at = (batch * m + t * rows) * n + panel * width
                left = min(rows, m - t * rows)
                tile_rows(micro, a, a_at, b, b_at, flat, at, n, left, count, rule)


def run_tiles(
    entry: Callable[..., Any], out: Array, a: Array, b: Array, block: int, *rule: Any
) -> None:
    """Call a compiled kernel built on `cover` over all of `out`, on all threads."""
    tiles, steps = a.shape[1], a.shape[2]
    most = _GROUP // 2 if out.shape[2] >= _WIDE and steps <= _BLOCK else _GROUP
    group = even_groups(tiles, most)
    pieces = out.shape[0] * -(-tiles // group) * b.shape[1]
    whole = whole_panels(out, b.shape[1] * b.shape[3])
    over_range(
        lambda start, stop: entry(whole, a, b, steps, block, group, start, stop, *rule),
        pieces,
        grain=grain_of(pieces, out.size * steps * b.shape[4]),
    )
    if whole is not out:
        out[...] = whole[:, :, : out.shape[2]]


def even_groups(count: int, most: int) -> int:
    """Return the size of groups that are as even as can be, of at most `most`.

    >>> even_groups(10, 8)
    5
    """
    return -(-count // -(-count // most))


def whole_panels(out: Array, columns: int) -> Array:
    """Return `out` [batch, M, N], or a copy with so many columns: of it the first N count."""
    n = out.shape[2]
    if n == columns:
        return out
    whole = np.zeros((*out.shape[:2], columns), out.dtype)
    whole[:, :, :n] = out
    return whole


def tile_types(a: types.Type, b: types.Type, out: types.Type) -> tuple[Any, ...]:
    """Return the argument types of a kernel built on `cover`, from three element types."""
    arrays = (simd.contiguous(out, 3), simd.contiguous(a, 5), simd.contiguous(b, 5))
    return (*arrays, *(types.int64,) * 5)


@inline
def fma_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    """Update up to 12 rows of a tile; return how many."""
    if left >= 12:
        simd.fma_tile(12, a, a_at, b, b_at, out, out_at, stride, steps)
        return 12
    if left >= 4:
        simd.fma_tile(4, a, a_at, b, b_at, out, out_at, stride, steps)
        return 4
    simd.fma_tile(1, a, a_at, b, b_at, out, out_at, stride, steps)
    return 1


@inline
def fma_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    """Update one or two rows of a tile, without AVX-512; return how many."""
    if left >= 2:
        simd.fma_tile(2, a, a_at, b, b_at, out, out_at, stride, steps)
        return 2
    simd.fma_tile(1, a, a_at, b, b_at, out, out_at, stride, steps)
    return 1


@borrowing_kernel
def run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int
) -> None:
    """Lay chains over packed operands, as `cover` says."""
    cover(fma_wide, out, a, b, steps, block, group, start, stop, 0)


@borrowing_kernel
def run_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int
) -> None:
    """Do what `run_wide` does, for processors without AVX-512."""
    cover(fma_narrow, out, a, b, steps, block, group, start, stop, 0)


@kernel
def _pack(source: Array, panels: Array, start: int, stop: int) -> None:
    """Copy lines [batch, lines, K] into panels [batch, panels, K, width, 1], pieces start:stop.

    Reads along whichever axis of `source` is the contiguous one.
    """
    lines, depth = source.shape[1], source.shape[2]
    count, width = panels.shape[1], panels.shape[3]
    if abs(source.strides[1]) < abs(source.strides[2]):
        for k0 in range(0, depth, 16):
            for piece in range(start, stop):  # inside, so that whole lines of memory are read
                batch, first = piece // count, piece % count * width
                panel, used = panels[batch, piece % count], min(width, lines - first)
                for k in range(k0, min(k0 + 16, depth)):
                    for i in range(used):
                        panel[k, i, 0] = source[batch, first + i, k]
        return
    for piece in range(start, stop):
        batch, first = piece // count, piece % count * width
        panel, used = panels[batch, piece % count], min(width, lines - first)
        for k0 in range(0, depth, 16):  # short runs keep the written lines in the cache
            for i in range(used):
                for k in range(k0, min(k0 + 16, depth)):
                    panel[k, i, 0] = source[batch, first + i, k]


@kernel
def pack_rows_of_words(
    source: Array, panels: Array, flip: int, runs: int, start: int, stop: int
) -> None:
    """Copy lines [batch, lines, K] of words, XOR `flip`, into [batch, panels, K, width, 1].

    `runs` times 16 k of them by vectors, in which lines that there are not become others; the width
    is 12 or a multiple of 16.
    """
    lines, depth = source.shape[1], source.shape[2]
    count, width = panels.shape[1], panels.shape[3]
    mask = np.uint32(flip)
    for piece in range(start, stop):
        batch, first = piece // count, piece % count * width
        panel, used = panels[batch, piece % count], min(width, lines - first)
        rows = source[batch, first : first + used]
        words = panel.reshape(-1)
        if width == simd.FMA_ROWS:
            turned_words(12, rows, words, 0, width, runs, mask)
        else:
            for i in range(0, used, 16):
                turned_words(16, rows[i : i + 16], words, i, width, runs, mask)
        for k0 in range(16 * runs, depth, 16):  # short runs keep the written lines in the cache
            for i in range(used):
                for k in range(k0, min(k0 + 16, depth)):
                    panel[k, i, 0] = rows[i, k] ^ mask


@cache
def _word_packer() -> Callable[..., Any]:
    arrays = (simd.contiguous(types.uint32, 3), simd.contiguous(types.uint32, 5))
    return simd.compiled(pack_rows_of_words, *arrays, *(types.int64,) * 4)


def pack_words(source: Array, flip: int = 0, width: int = simd.FMA_ROWS) -> Array:
    """Pack rows [batch, M, K] of uint32, side by side in memory, XOR `flip`.

    Returns [batch, tiles, K, width, 1]; rows that there are not hold anything. The width is 12 or a
    multiple of 16.
    """
    batch, lines, depth = source.shape
    tiles = -(-lines // width)
    panels = np.empty((batch, tiles, depth, width, 1), np.uint32)
    entry, runs = _word_packer(), depth // 16 if simd.enabled() else 0
    over_range(
        lambda start, stop: entry(source, panels, flip, runs, start, stop), batch * tiles,
        grain=grain_of(batch * tiles, PACKED * source.size),
    )  # fmt: skip
    return panels


@cache
def _packer(dtype: np.dtype[Any]) -> Callable[..., Any]:
    element = from_dtype(dtype)
    arrays = (simd.strided(element, 3), simd.contiguous(element, 5))
    return simd.compiled(_pack, *arrays, types.int64, types.int64)


@cache
def _runner(dtype: np.dtype[Any], wide: bool) -> Callable[..., Any]:
    element = types.float64 if dtype == np.float64 else types.float32
    runner = run_wide if wide else run_narrow
    return simd.compiled(runner, *tile_types(element, element, element))


def _packed(source: Array, width: int) -> Array:
    batch, lines, depth = source.shape
    shape = batch, -(-lines // width), depth, width, 1
    panels = (np.zeros if lines % width else np.empty)(shape, source.dtype)
    entry = _packer(source.dtype)
    pieces = batch * shape[1]
    over_range(
        lambda start, stop: entry(source, panels, start, stop), pieces,
        grain=grain_of(pieces, PACKED * source.size),
    )  # fmt: skip
    return panels


@kernel
def _pack_columns(source: Array, panels: Array, start: int, stop: int) -> None:
    """Copy [batch, K, lines] into [batch, tiles, K, rows, 1], pieces start:stop."""
    depth, lines = source.shape[1], source.shape[2]
    count, width = panels.shape[1], panels.shape[3]
    for piece in range(start, stop):
        batch, first = piece // count, piece % count * width
        used = min(width, lines - first)
        rows = source[batch]
        panel = panels[batch, piece % count].reshape(-1)
        for k in range(depth):
            line, to = rows[k, first : first + used], panel[k * width : k * width + used]
            for i in range(used):
                to[i] = line[i]


@cache
def _column_packer() -> Callable[..., Any]:
    arrays = (
        types.Array(types.uint32, 3, "C", readonly=True), simd.contiguous(types.uint32, 5),
    )  # fmt: skip
    return simd.compiled(_pack_columns, *arrays, types.int64, types.int64)


def _pack_turned(source: Array) -> Array:
    """Pack rows whose k stand far apart: words [batch, K, M] in C order."""
    batch, depth, lines = source.shape
    tiles = -(-lines // simd.FMA_ROWS)
    panels = np.zeros((batch, tiles, depth, simd.FMA_ROWS, 1), np.uint32)
    entry = _column_packer()
    over_range(
        lambda start, stop: entry(source, panels, start, stop), batch * tiles,
        grain=grain_of(batch * tiles, PACKED * source.size),
    )  # fmt: skip
    return panels


def pack_rows(a: Array) -> Array:
    """Pack the left operand [batch, M, K], also int32, into [batch, tiles, K, rows, 1]."""
    if a.itemsize == 4 and a.flags.c_contiguous and a.size:
        return pack_words(a.view(np.uint32)).view(a.dtype)
    turned = a.swapaxes(1, 2)
    if a.itemsize == 4 and turned.flags.c_contiguous and a.size:
        return _pack_turned(turned.view(np.uint32)).view(a.dtype)
    return _packed(a, simd.FMA_ROWS)


def pack_b(b: Array) -> PackedFma:
    """Pack the right operand [1 or batch, K, N]: float32, float64 or int32, of any strides."""
    return PackedFma(_packed(b.swapaxes(1, 2), simd.FMA_BYTES // b.dtype.itemsize), b.shape[2])


def gemm_fma(a: Array, b: Array | PackedFma, *, c: Array | None = None) -> Array:
    """Return, per output, the chain acc = fma(a[k], b[k], acc) in increasing k, from c or +0.

    Parameters: a [batch, M, K]; b [1 or batch, K, N] or packed; c [batch, M, N]; all float32 or all
    float64. Round to nearest even, subnormals kept. Every NaN is the positive quiet NaN.
    """
    packed = b if isinstance(b, PackedFma) else pack_b(b)
    batch, m, depth = a.shape
    shared = packed.panels.shape[0] == 1
    shape = (1, batch * m, packed.n) if shared else (batch, m, packed.n)
    out = np.zeros(shape, a.dtype) if c is None else np.array(c, order="C").reshape(shape)
    if out.size:
        rows = pack_rows(a.reshape(*shape[:2], depth))
        entry = _runner(a.dtype, simd.enabled())
        run_tiles(entry, out, rows, packed.panels, _BLOCK)
    return out.reshape(batch, m, packed.n)
