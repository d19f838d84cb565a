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

from numsim.kernels.gemm.codes import PackedCodes, pack_codes
from numsim.kernels.gemm.fma import cover, pack_rows, run_tiles, tile_types
from numsim.kernels.gemm.mac import padded
from numsim.kernels.ir import integer as simd_int
from numsim.kernels.ir import simd
from numsim.kernels.jit import inline, kernel

Array = npt.NDArray[Any]
_BLOCK = 512  # steps for which a panel of b stays in the cache


@inline
def _saturating(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    if left >= rule[0]:
        simd_int.saturating_tile(
            rule[0], rule[1], rule[2], a, a_at, b, b_at, out, out_at, stride, steps, rule[3]
        )
        return int(rule[0])
    simd_int.saturating_tile(
        1, rule[1], rule[2], a, a_at, b, b_at, out, out_at, stride, steps, rule[3]
    )
    return 1


@kernel
def _run(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    rows: int, kind: int, each: int, limits: Array,
) -> None:  # fmt: skip
    rule = (rows, kind, each, limits)
    cover(_saturating, out, a, b, steps, block, group, start, stop, rule)


@cache
def _runner(rows: int, kind: int, each: int, codes: np.dtype[Any]) -> Callable[..., Any]:
    literals = (simd.literal(n) for n in (rows, kind, each))
    arrays = tile_types(types.int32, from_dtype(codes), types.int32)
    return simd.compiled(_run, *arrays, *literals, simd.contiguous(types.int64, 1))


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
        wide = 4 if simd.enabled() else 2
        entry = _runner(wide, kind, each, codes)
        limits = np.array([steps, low, high], np.int64)
        run_tiles(entry, out, rows, b.panels, block, wide, kind, each, limits)
    return out
