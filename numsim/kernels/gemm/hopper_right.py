"""The right operand of Hopper's FP8 rule: how each path reads its codes, and how they are packed.

`gemm.hopper_paths` has the kernels that read them. Names end by the path, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from numsim.kernels.gemm.codes import Fields, codes_at, scratch_words
from numsim.kernels.gemm.hopper_left import PAIR
from numsim.kernels.ir import fp8 as simd_fp8
from numsim.kernels.ir import simd
from numsim.kernels.ir.codes import fp8_planes
from numsim.kernels.ir.fp8_codes import looked_up_codes
from numsim.kernels.ir.pack import turned_quads
from numsim.kernels.jit import expanded, inline, kernel

Array = npt.NDArray[Any]
QUADS = simd_fp8.COLUMNS // 4  # words of the codes of one k


@inline
def tables_of(how: Fields) -> Array:
    """Return what `ir.fp8_codes.ByTables` reads."""
    codes = np.zeros(simd_fp8.RUN * simd_fp8.COLUMNS, np.uint8)
    codes[:128] = np.arange(128)
    words = np.empty(simd_fp8.RUN_WORDS, np.int32)
    simd_fp8.right_codes(16, codes, simd_fp8.RUN, words, how)
    tables = np.zeros((4, 128), np.uint8)
    planes = words.view(np.uint8)
    for code in range(128):
        at, place = code // 64 * 4 * simd_fp8.K_WORDS, code % 64
        value = at + 64 + 64 * (place % 4) + 4 * (place // 4)
        tables[0, code] = planes[at + place]
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


@expanded
def _turned(
    turn: Callable[..., None], b: Array, batch: int, panel: int, k: int, count: int, words: Array
) -> Array:
    step = simd_fp8.TURNED // b.shape[4]
    for i in range(0, count, step):
        turn(b[batch, panel, k + i], words[i * b.shape[4] * QUADS :])
    return words


@inline
def turned_wide(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    """Put the codes of steps of a panel whose columns lie side by side in order, for AVX-512."""
    return _turned(simd_fp8.turned_codes, b, batch, panel, k, count, words)


@inline
def rows_wide(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    """Do what `codes_wide` does where columns lie side by side."""
    turned = scratch_words(count * b.shape[4] * QUADS)
    _planes(turned_wide(b, batch, panel, k, count, turned, how).view(np.uint8), words, how)
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
def turned_half(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    """Do what `turned_wide` does, for AVX2."""
    return _turned(turned_quads, b, batch, panel, k, count, words)


@inline
def rows_half(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Fields
) -> Array:
    """Do what `codes_half` does where columns lie side by side."""
    turned = scratch_words(count * b.shape[4] * QUADS)
    turned_half(b, batch, panel, k, count, turned, how)
    return _planes_half(turned.view(np.uint8), words, how)


@inline
def as_they_are(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Array:
    """Return the codes of steps of a panel, four in a word."""
    return codes_at(b, batch, panel, k, count).view(np.int32)


@inline
def pairs_narrow(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Fields
) -> Array:
    """Write the planes of pairs of steps of a panel, for any CPU; return them."""
    codes = codes_at(b, batch, panel, k, count)
    fp8_planes(0, codes, 0, codes.size // (simd.HOPPER_COLUMNS * PAIR), words, how)
    return words


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
