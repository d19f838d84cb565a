"""Integer matrix products whose accumulator saturates as it goes, or whose pairs of products do.

The rule is `IntSum`; `rules.integer` defines it. Operands are codes of 8 or 16 bits, packed group
by group of k, by rows of a tile and columns of a panel; sums are int32. Proof:
``tests/kernels/test_gemm_saturate.py`` compares every sum with Python's integers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.np.numpy_support import from_dtype

from numsim.kernels.gemm.called import address_of, by_address, rows_or_one
from numsim.kernels.gemm.codes import PackedCodes, pack_codes
from numsim.kernels.gemm.fma import cover, pack_rows, run_tiles, tile_types
from numsim.kernels.gemm.mac import padded
from numsim.kernels.ir import integer as simd_int
from numsim.kernels.ir import simd
from numsim.kernels.jit import borrowing_kernel, called

Array = npt.NDArray[Any]
_BLOCK = 512  # steps for which a panel of b stays in the cache


@called
def _tile_wide(
    a: Array, b: Array, out: Array, stride: int, steps: int, left: int, rule: Array, flavour: int
) -> int:  # fmt: skip
    """Update four rows of a tile or one; return how many."""
    return rows_or_one(simd_int.saturating_tile, 4, a, b, out, stride, steps, left, rule, flavour)


@called
def _tile_narrow(
    a: Array, b: Array, out: Array, stride: int, steps: int, left: int, rule: Array, flavour: int
) -> int:  # fmt: skip
    """Update two rows of a tile or one, without AVX-512; return how many."""
    return rows_or_one(simd_int.saturating_tile, 2, a, b, out, stride, steps, left, rule, flavour)


@borrowing_kernel
def _run(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    tile: int, limits: Array,
) -> None:  # fmt: skip
    cover(by_address, out, a, b, steps, block, group, start, stop, (tile, limits))


@cache
def _tile(kind: int, each: int, codes: np.dtype[Any], wide: bool) -> int:
    micro, flavour = _tile_wide if wide else _tile_narrow, simd_int.saturating_flavour(kind, each)
    return address_of(micro, flavour, types.int32, from_dtype(codes), types.int32, types.int64)


@cache
def _runner(codes: np.dtype[Any]) -> Callable[..., Any]:
    arrays = tile_types(types.int32, from_dtype(codes), types.int32)
    return simd.compiled(_run, *arrays, types.int64, simd.contiguous(types.int64, 1))


def _short(kind: np.dtype[Any]) -> bool:
    """Whether the sum of two products is one instruction: codes are int16, or fit it."""
    return kind in (np.int8, np.uint8, np.int16)


def pack_b(b: Array, group: int, left: np.dtype[Any]) -> PackedCodes:
    """Pack the right operand [1 or batch, K, N], integers, for groups of products with `left`.

    They stay codes of 8 or 16 bits where two products' sum is one instruction, side by side if
    groups have pairs; otherwise they are int32.
    """
    kind = b.dtype if _short(b.dtype) and _short(left) else np.dtype(np.int32)
    each = 2 if kind.itemsize < 4 and group % 2 == 0 else 1
    whole = padded(b.astype(kind, copy=False), 1, group)
    codes = pack_codes(whole, simd_int.COLUMNS, np.arange(each), each, run=each)
    return codes._replace(panels=codes.panels.view(kind))


def _left_words(a: Array, each: int, short: bool) -> Array:
    if not short:
        return a.astype(np.int32)
    halves = np.ascontiguousarray(a, np.int16)
    return halves.view(np.int32) if each == 2 else halves.view(np.uint16).astype(np.int32)


def gemm_saturate(
    a: Array, b: PackedCodes, c: Array, kind: int, group: int, low: int, high: int
) -> Array:
    """Return the int32 accumulators [batch, M, N] after groups of `group` products, from c.

    Parameters: a [batch, M, K] integers; b packed for their type and group; `kind`, `low` and
    `high` as in `ir.integer.saturating_tile`.
    """
    out = np.array(c, np.int32, order="C")
    if out.size:
        each, codes = b.panels.shape[4], b.panels.dtype
        rows = pack_rows(_left_words(padded(a, 2, group), each, codes.itemsize < 4))
        steps = group // each
        block = max(_BLOCK // steps, 1) * steps
        tile = _tile(kind, each, codes, simd.enabled())
        limits = np.array([steps, low, high], np.int64)
        run_tiles(_runner(codes), out, rows, b.panels, block, tile, limits)
    return out
