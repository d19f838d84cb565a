"""Matrix products as chains, or small trees, of multiply-adds rounded to nearest even.

The rules are `Mac` with a small accumulator, and `Exact` with groups; `rules.mac` and `rules.exact`
define them. Operands are float64 values, packed by rows of a tile and columns of a panel. Proof:
``tests/kernels/test_gemm_kernels.py`` and ``tests/targets/test_fast_units.py`` compare every bit
with fractions and with the definitions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.gemm.fma import PackedFma, cover, pack_rows, run_tiles, tile_types
from numsim.kernels.gemm.fma import pack_b as pack_fma
from numsim.kernels.ir import mac as simd_mac
from numsim.kernels.ir import simd
from numsim.kernels.ir.mac import Flavour
from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules.mac import Arithmetic

Array = npt.NDArray[Any]
_BLOCK = 512  # k for which a panel of b stays in the cache


@inline
def _mac_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    if left >= 4:
        simd_mac.mac_tile(4, rule[0], a, a_at, b, b_at, out, out_at, stride, steps, rule[1])
        return 4
    simd_mac.mac_tile(1, rule[0], a, a_at, b, b_at, out, out_at, stride, steps, rule[1])
    return 1


@inline
def _mac_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    simd_mac.mac_tile(1, rule[0], a, a_at, b, b_at, out, out_at, stride, steps, rule[1])
    return 1


@kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    flavour: int, rule: Array,
) -> None:  # fmt: skip
    cover(_mac_wide, out, a, b, steps, block, group, start, stop, (flavour, rule))


@kernel
def _run_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    flavour: int, rule: Array,
) -> None:  # fmt: skip
    cover(_mac_narrow, out, a, b, steps, block, group, start, stop, (flavour, rule))


@cache
def _runner(flavour: int, wide: bool) -> Callable[..., Any]:
    runner = _run_wide if wide else _run_narrow
    doubles = tile_types(types.float64, types.float64, types.float64)
    return simd.compiled(runner, *doubles, simd.literal(flavour), simd.contiguous(types.float64, 1))


def format_array(f: Arithmetic) -> list[float]:
    """Return a format as the kernel reads it."""
    return [
        2.0 ** (53 - f.precision),
        2.0 ** (-1000 if f.flush and f.unbounded else f.emin),
        (2.0 - 2.0 ** (1 - f.precision)) * 2.0**f.emax,
        2.0**f.emin if f.flush else 0.0,
    ]


def padded(values: Array, axis: int, multiple: int) -> Array:
    """Return values with zeros appended to a multiple of a length along an axis."""
    short = -values.shape[axis] % multiple
    if not short:
        return values
    widths = [(0, short if i == axis else 0) for i in range(values.ndim)]
    return np.pad(values, widths)


def pack_b(b: Array, tree: int) -> PackedFma:
    """Pack the right operand [1 or batch, K, N], float64, of any strides."""
    return pack_fma(padded(b, 1, tree))


def gemm_mac(
    a: Array, b: PackedFma, c: Array, p: Arithmetic, f: Arithmetic, flavour: Flavour,
    splitter: float = 0.0,
) -> Array:  # fmt: skip
    """Return the float64 accumulators [batch, M, N] of a chain over k from c.

    Parameters: a [batch, M, K] float64; b packed for the same tree; c [batch, M, N] float64 values
    of the accumulator's format `f`; `p` the products' format; `splitter` 1.5 * 2**52 times where a
    flavour that splits products does it.
    """
    out = np.array(c, np.float64, order="C")
    if out.size:
        rows = pack_rows(padded(a, 2, flavour.tree))
        batch, tiles, depth, width, _ = rows.shape
        steps = depth // flavour.tree
        rows = rows.reshape(batch, tiles, steps, width, flavour.tree)
        panels = b.panels.reshape(
            *b.panels.shape[:2], steps, b.panels.shape[3], flavour.tree
        )  # one step reads the numbers of `tree` consecutive k
        entry = _runner(flavour.code(), simd.enabled())
        rule = np.array([*format_array(f), *format_array(p), splitter])
        run_tiles(entry, out, rows, panels, _BLOCK, flavour.code(), rule)
    return out
