"""Integer matrix products whose accumulator saturates as it goes, or whose pairs of products do.

`kernels.integer` states the rules one scalar at a time and is the reference for every bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels import simd, simd_int
from numsim.kernels.gemm_fma import PackedFma, cover, pack_rows, run_tiles, tile_types
from numsim.kernels.gemm_fma import pack_b as pack_fma
from numsim.kernels.gemm_mac import padded
from numsim.kernels.jit import inline, kernel

Array = npt.NDArray[Any]
_BLOCK = 512  # k for which a panel of b stays in the cache


@inline
def _saturating_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    if left >= 4:
        simd_int.saturating_tile(
            4, rule[0], a, a_at, b, b_at, out, out_at, stride, steps, rule[1]
        )  # fmt: skip
        return 4
    simd_int.saturating_tile(1, rule[0], a, a_at, b, b_at, out, out_at, stride, steps, rule[1])
    return 1


@inline
def _saturating_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    simd_int.saturating_tile(1, rule[0], a, a_at, b, b_at, out, out_at, stride, steps, rule[1])
    return 1


@kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    kind: int, rule: Array,
) -> None:  # fmt: skip
    cover(_saturating_wide, out, a, b, steps, block, group, start, stop, (kind, rule))


@kernel
def _run_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    kind: int, rule: Array,
) -> None:  # fmt: skip
    cover(_saturating_narrow, out, a, b, steps, block, group, start, stop, (kind, rule))


@cache
def _runner(kind: int, wide: bool) -> Callable[..., Any]:
    runner = _run_wide if wide else _run_narrow
    words = tile_types(types.int32, types.int32, types.int32)
    return simd.compiled(runner, *words, simd.literal(kind), simd.contiguous(types.int64, 1))


def pack_b(b: Array, group: int) -> PackedFma:
    """Pack the right operand [1 or batch, K, N], any integers of at most 16 bits."""
    return pack_fma(padded(b.astype(np.int32), 1, group))


def gemm_saturate(
    a: Array, b: PackedFma, c: Array, kind: int, group: int, low: int, high: int
) -> Array:
    """Return the int32 accumulators [batch, M, N] after groups of `group` products, from c.

    Parameters: a [batch, M, K] integers; b packed for the same group; `kind`, `low` and `high` as
    in `simd_int.saturating_tile`.
    """
    out = np.array(c, np.int32, order="C")
    if out.size:
        rows = pack_rows(padded(a.astype(np.int32), 2, group))
        block = max(_BLOCK // group, 1) * group
        run_tiles(
            _runner(kind, simd.enabled()), out, rows, b.panels, block, kind,
            np.array([group, low, high], np.int64),
        )  # fmt: skip
    return out
