"""Matrix products as chains, or small trees, of multiply-adds rounded to nearest even.

The rules are `Mac` with a small accumulator, and `Exact` with groups; `rules.mac` and `rules.exact`
define them. Operands are float64 values, packed by rows of a tile and columns of a panel; the right
one may stay codes of 8 or 16 bits, decoded a cache-sized piece at a time. Proof:
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

from numsim.kernels.gemm.called import address_of, by_address, rows_or_one
from numsim.kernels.gemm.codes import (
    PackedCodes,
    codes_types,
    cover_codes,
    pack_codes,
    run_codes,
    scratch_words,
    type_of,
    values_of_floats,
)
from numsim.kernels.gemm.fma import PackedFma, cover, pack_rows, run_tiles, tile_types
from numsim.kernels.gemm.fma import pack_b as pack_fma
from numsim.kernels.gemm.values import Decode, values_of_bytes
from numsim.kernels.ir import mac as simd_mac
from numsim.kernels.ir import simd
from numsim.kernels.ir.mac import Flavour
from numsim.kernels.ir.simd import FMA_ROWS
from numsim.kernels.jit import borrowing_kernel, called, expanded, kernel
from numsim.kernels.rules.mac import Arithmetic

Array = npt.NDArray[Any]
_BLOCK = 512  # k for which a panel of b stays in the cache


@called
def _tile_wide(
    a: Array, b: Array, out: Array, stride: int, steps: int, left: int, rule: Array, flavour: int
) -> int:  # fmt: skip
    """Update four rows of a tile or one; return how many."""
    return rows_or_one(simd_mac.mac_tile, 4, a, b, out, stride, steps, left, rule, flavour)


@called
def _single_wide(
    a: Array, b: Array, out: Array, stride: int, steps: int, left: int, rule: Array, flavour: int
) -> int:  # fmt: skip
    """Do what `_tile_wide` does where little happens in a step."""
    if left >= FMA_ROWS:
        simd_mac.mac_tile(FMA_ROWS, flavour, a, 0, b, 0, out, 0, stride, steps, rule)
        return FMA_ROWS
    return rows_or_one(simd_mac.mac_tile, 4, a, b, out, stride, steps, left, rule, flavour)


@called
def _single_narrow(
    a: Array, b: Array, out: Array, stride: int, steps: int, left: int, rule: Array, flavour: int
) -> int:  # fmt: skip
    """Do what `_single_wide` does, without AVX-512."""
    return rows_or_one(simd_mac.mac_tile, 2, a, b, out, stride, steps, left, rule, flavour)


@called
def _tile_narrow(
    a: Array, b: Array, out: Array, stride: int, steps: int, left: int, rule: Array, flavour: int
) -> int:  # fmt: skip
    """Update one row of a tile, without AVX-512."""
    simd_mac.mac_tile(1, flavour, a, 0, b, 0, out, 0, stride, steps, rule)
    return 1


_TILES = {  # by whether there is AVX-512, and `Flavour.single`
    (True, False): _tile_wide, (True, True): _single_wide,
    (False, False): _tile_narrow, (False, True): _single_narrow,
}  # fmt: skip


@borrowing_kernel
def _run(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    tile: int, rule: Array,
) -> None:  # fmt: skip
    cover(by_address, out, a, b, steps, block, group, start, stop, (tile, rule))


@expanded
def _run_codes(
    decode: Callable[..., Array], out: Array, a: Array, b: Array, steps: int, block: int,
    group: int, start: int, stop: int, rule: Any, how: Any,
) -> None:  # fmt: skip
    scratch = scratch_words(2 * block * b.shape[3] * b.shape[4]).view(a.dtype)
    cover_codes(
        by_address, decode, out, a, b, scratch, steps, block, group, start, stop, rule, how
    )  # fmt: skip


@kernel
def _run_bytes(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    tile: int, rule: Array, how: Array,
) -> None:  # fmt: skip
    _run_codes(
        values_of_bytes, out, a, b, steps, block, group, start, stop, (tile, rule), how
    )  # fmt: skip


@kernel
def _run_floats(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    tile: int, rule: Array, how: Any,
) -> None:  # fmt: skip
    _run_codes(
        values_of_floats, out, a, b, steps, block, group, start, stop, (tile, rule), how
    )  # fmt: skip


@cache
def _tile(flavour: Flavour, wide: bool) -> int:
    kinds = (types.float64,) * 4
    return address_of(_TILES[wide, flavour.single], flavour.code(), *kinds)


@cache
def _codes_runner(codes: np.dtype[Any], how: Any) -> Callable[..., Any]:
    chosen = _run_bytes if isinstance(how, types.Array) else _run_floats
    doubles = codes_types(types.float64, codes, types.float64)
    return simd.compiled(chosen, *doubles, types.int64, simd.contiguous(types.float64, 1), how)


@cache
def _runner() -> Callable[..., Any]:
    doubles = tile_types(types.float64, types.float64, types.float64)
    return simd.compiled(_run, *doubles, types.int64, simd.contiguous(types.float64, 1))


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


def pack_b_codes(codes: Array, tree: int) -> PackedCodes:
    """Pack the codes [1 or batch, K, N] of the right operand, floats of 8 or 16 bits."""
    width = simd_mac.MAC_VECTORS * simd_mac.MAC_LANES
    return pack_codes(codes, width, np.arange(tree), tree)


def gemm_mac(
    a: Array, b: PackedFma | PackedCodes, c: Array, p: Arithmetic, f: Arithmetic, flavour: Flavour,
    how: Decode | None = None, splitter: float = 0.0,
) -> Array:  # fmt: skip
    """Return the float64 accumulators [batch, M, N] of a chain over k from c.

    Parameters: a [batch, M, K] float64; b packed for the same tree; c [batch, M, N] float64 values
    of the accumulator's format `f`; `p` the products' format; `how` the codes of a b of codes are
    read; `splitter` 1.5 * 2**52 times where a flavour that splits products does it.
    """
    out = np.array(c, np.float64, order="C")
    if out.size:
        rows = pack_rows(padded(a, 2, flavour.tree))
        batch, tiles, depth, width, _ = rows.shape
        steps = depth // flavour.tree
        rows = rows.reshape(batch, tiles, steps, width, flavour.tree)
        rule = np.array([*format_array(f), *format_array(p), splitter])
        tile = _tile(flavour, simd.enabled())
        if isinstance(b, PackedCodes):
            entry = _codes_runner(b.panels.dtype, type_of(how))
            block = max(_BLOCK // flavour.tree, 1)
            run_codes(entry, out, rows, b, block, tile, rule, how)
            return out
        panels = b.panels.reshape(
            *b.panels.shape[:2], steps, b.panels.shape[3], flavour.tree
        )  # one step reads the numbers of `tree` consecutive k
        run_tiles(_runner(), out, rows, panels, _BLOCK, tile, rule)
    return out
