"""What is compiled for Hopper's FP8 rule: an entry point for each path and place of the codes.

Names end by the path: wide with AVX-512, half with AVX2 (few: for few rows), narrow on any CPU; and
in rows where columns stand side by side in memory. `gemm.hopper` chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from numsim.kernels.gemm.codes import Fields, codes_at, cover_codes, scratch_words
from numsim.kernels.gemm.hopper_left import PAIR, few_left
from numsim.kernels.ir import fp8 as simd_fp8
from numsim.kernels.ir import simd
from numsim.kernels.ir.codes import fp8_planes
from numsim.kernels.ir.fp8_codes import looked_up_codes
from numsim.kernels.ir.hopper import float_tile
from numsim.kernels.ir.hopper_rows import hopper_rows
from numsim.kernels.ir.pack import turned_quads
from numsim.kernels.jit import expanded, inline, kernel

Array = npt.NDArray[Any]
SHORT_RUN = 8  # a packed group is a multiple of this many products for the portable kernel
QUADS = simd_fp8.COLUMNS // 4  # words of the codes of one k


@expanded
def _tiles(
    words: int, a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int,
    steps: int, left: int, rule: Any,
) -> None:  # fmt: skip
    runs, tile = rule
    pairs = left // 2
    float_tile(words, 2, pairs, runs, a, a_at, b, b_at, out, out_at, stride, steps, tile)
    if left % 2:
        a_at, out_at = a_at + pairs * tile, out_at + 2 * pairs * stride
        float_tile(words, 1, 1, runs, a, a_at, b, b_at, out, out_at, stride, steps, tile)


@expanded
def _few_tiles(
    words: int, a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int,
    steps: int, left: int, rule: Any,
) -> None:  # fmt: skip
    runs, tile, how, own, bases = rule
    pairs = left // 2
    hopper_rows(
        words, 2, how, own, bases, 0, pairs, runs, a, a_at, b, b_at, out, out_at, stride, steps,
        tile,
    )  # fmt: skip
    if left % 2:
        a_at, out_at = a_at + pairs * tile, out_at + 2 * pairs * stride
        hopper_rows(
            words, 1, how, own, bases, 0, 1, runs, a, a_at, b, b_at, out, out_at, stride, steps,
            tile,
        )  # fmt: skip


@inline
def hopper_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    """Update all rows of tiles, with AVX-512; return how many."""
    _tiles(16, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def hopper_half(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    """Update all rows of tiles, with AVX2; return how many."""
    _tiles(8, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def _hopper_few(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    _few_tiles(16, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def _hopper_few_half(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    _few_tiles(8, a, a_at, b, b_at, out, out_at, stride, steps, left, rule)
    return left


@inline
def _hopper_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    simd.hopper_tile(a, a_at, b, b_at, out, out_at, stride, steps, rule)
    return 1


@inline
def tables_of(how: Fields) -> Array:
    """Return what `ir.fp8_codes.ByTables` reads."""
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
        looked_up_codes(codes, count, words, tables)
    else:
        simd_fp8.right_codes(16, codes, count, words, f)


@inline
def codes_wide(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    """Write the planes of steps of a panel, for AVX-512; return them."""
    _planes(codes_at(b, batch, panel, k, count), words, how)
    return words


@inline
def _turned(b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any) -> Array:
    step = simd_fp8.TURNED // b.shape[4]
    for i in range(0, count, step):
        simd_fp8.turned_codes(b[batch, panel, k + i], words[i * b.shape[4] * QUADS :])
    return words


@inline
def _rows(b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any) -> Array:
    turned = scratch_words(count * b.shape[4] * QUADS)
    _planes(_turned(b, batch, panel, k, count, turned, how).view(np.uint8), words, how)
    return words


@inline
def _planes_half(codes: Array, words: Array, how: Fields) -> Array:
    simd_fp8.right_codes(8, codes, codes.size // simd_fp8.COLUMNS, words, how)
    return words


@inline
def codes_half(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Fields
) -> Array:
    """Write the planes of steps of a panel, for AVX2; return them."""
    return _planes_half(codes_at(b, batch, panel, k, count), words, how)


@inline
def _turned_half(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    step = simd_fp8.TURNED // b.shape[4]
    for i in range(0, count, step):
        turned_quads(b[batch, panel, k + i], words[i * b.shape[4] * QUADS :])
    return words


@inline
def _rows_half(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Fields
) -> Array:
    turned = scratch_words(count * b.shape[4] * QUADS)
    _turned_half(b, batch, panel, k, count, turned, how)
    return _planes_half(turned.view(np.uint8), words, how)


@inline
def _as_they_are(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    return codes_at(b, batch, panel, k, count).view(np.int32)


@inline
def _pairs(b: Array, batch: int, panel: int, k: int, count: int, words: Array, f: Fields) -> Array:
    codes = codes_at(b, batch, panel, k, count)
    fp8_planes(0, codes, 0, codes.size // (simd.HOPPER_COLUMNS * PAIR), words, f)
    return words


@expanded
def _run(
    micro: Callable[..., int], decode: Callable[..., Array], words: int, out: Array, a: Array,
    b: Array, steps: int, block: int, group: int, start: int, stop: int, runs: int, read: Any,
) -> None:  # fmt: skip
    """Cover the output; `decode` makes `words` of the codes of one k of a panel."""
    scratch = scratch_words(block * runs * simd_fp8.RUN * words)
    rule = (runs, block * a.shape[3] * a.shape[4])
    cover_codes(
        micro, decode, out, a, b, scratch, steps, block, group, start, stop, rule, read, True
    )


@kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run(
        hopper_wide, codes_wide, simd_fp8.B_WORDS, out, a, b, steps, block, group, start, stop,
        runs, (tables_of(how), how),
    )  # fmt: skip


@kernel
def _run_wide_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run(
        hopper_wide, _rows, simd_fp8.B_WORDS, out, a, b, steps, block, group, start, stop, runs,
        (tables_of(how), how),
    )  # fmt: skip


@kernel
def _run_half(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run(
        hopper_half, codes_half, simd_fp8.B_WORDS, out, a, b, steps, block, group, start, stop,
        runs, how,
    )  # fmt: skip


@kernel
def _run_half_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run(
        hopper_half, _rows_half, simd_fp8.B_WORDS, out, a, b, steps, block, group, start, stop,
        runs, how,
    )  # fmt: skip


@expanded
def _run_few(
    micro: Callable[..., int], decode: Callable[..., Array], words: int, out: Array, a: Array,
    b: Array, steps: int, block: int, group: int, start: int, stop: int, runs: int, how: Fields,
) -> None:  # fmt: skip
    """Cover the output; `decode` returns codes, or puts them in order into so many `words`."""
    scratch = scratch_words(block * runs * simd_fp8.RUN * words)
    own, bases = few_left(a, runs, how)
    rule = (runs, block * a.shape[3] * a.shape[4], how, own, bases)
    cover_codes(
        micro, decode, out, a, b, scratch, steps, block, group, start, stop, rule, how, True
    )


@kernel
def _run_few_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run_few(
        _hopper_few, _as_they_are, 0, out, a, b, steps, block, group, start, stop, runs, how
    )  # fmt: skip


@kernel
def _run_few_wide_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run_few(
        _hopper_few, _turned, QUADS, out, a, b, steps, block, group, start, stop, runs, how
    )  # fmt: skip


@kernel
def _run_few_half(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run_few(
        _hopper_few_half, _as_they_are, 0, out, a, b, steps, block, group, start, stop, runs, how
    )  # fmt: skip


@kernel
def _run_few_half_rows(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    _run_few(
        _hopper_few_half, _turned_half, QUADS, out, a, b, steps, block, group, start, stop, runs,
        how,
    )  # fmt: skip


@kernel
def _run_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    scratch = scratch_words(block * runs * SHORT_RUN * 3 * simd.HOPPER_COLUMNS // 2)
    cover_codes(
        _hopper_narrow, _pairs, out, a, b, scratch, steps, block, group, start, stop, runs, how
    )


@kernel
def pack_columns(codes: Array, words: Array, start: int, stop: int) -> None:
    """Lay codes [batch, K, N] out as panels [batch, panels, K, 16 words]: `ir.fp8.ORDER`."""
    depth, lines = codes.shape[1], codes.shape[2]
    width, count = simd_fp8.COLUMNS, words.shape[1]
    each = width // 4
    flat, padded = codes.reshape(-1), np.zeros(width, np.uint8)
    for piece in range(start, stop):
        batch, first = piece // count, piece % count * width
        used = min(width, lines - first)
        panel = words[batch, piece % count]
        for k in range(depth):
            at = (batch * depth + k) * lines + first
            if used == width:
                line = flat[at : at + width]
            else:
                padded[:used] = flat[at : at + used]
                line = padded
            for i in range(each):
                low = np.uint32(line[i]) | np.uint32(line[each + i]) << np.uint32(8)
                high = np.uint32(line[2 * each + i]) | np.uint32(line[3 * each + i]) << np.uint32(8)
                panel[k, i] = low | high << np.uint32(16)


MANY, FEW = range(2)  # rows
RUN = {  # by the path, how many rows there are, and whether b's codes stand in place
    ("avx512", MANY, False): _run_wide, ("avx512", MANY, True): _run_wide_rows,
    ("avx512", FEW, False): _run_few_wide, ("avx512", FEW, True): _run_few_wide_rows,
    ("avx2", MANY, False): _run_half, ("avx2", MANY, True): _run_half_rows,
    ("avx2", FEW, False): _run_few_half, ("avx2", FEW, True): _run_few_half_rows,
    ("plain", MANY, False): _run_narrow,
}  # fmt: skip
