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
from numsim.kernels.jit import expanded, inline, kernel
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
def _single_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    """Do what `_mac_wide` does where little happens in a step."""
    if left >= FMA_ROWS:
        simd_mac.mac_tile(FMA_ROWS, rule[0], a, a_at, b, b_at, out, out_at, stride, steps, rule[1])
        return FMA_ROWS
    return _mac_wide(a, a_at, b, b_at, out, out_at, stride, steps, left, rule)


@inline
def _single_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    if left >= 2:
        simd_mac.mac_tile(2, rule[0], a, a_at, b, b_at, out, out_at, stride, steps, rule[1])
        return 2
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


@expanded
def _run_codes(
    micro: Callable[..., int], decode: Callable[..., Array], out: Array, a: Array, b: Array,
    steps: int, block: int, group: int, start: int, stop: int, rule: Any, how: Any,
) -> None:  # fmt: skip
    scratch = scratch_words(2 * block * b.shape[3] * b.shape[4]).view(a.dtype)
    cover_codes(micro, decode, out, a, b, scratch, steps, block, group, start, stop, rule, how)


@kernel
def _bytes_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    flavour: int, rule: Array, how: Array,
) -> None:  # fmt: skip
    _run_codes(
        _mac_wide, values_of_bytes, out, a, b, steps, block, group, start, stop, (flavour, rule),
        how,
    )  # fmt: skip


@kernel
def _floats_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    flavour: int, rule: Array, how: Any,
) -> None:  # fmt: skip
    _run_codes(
        _mac_wide, values_of_floats, out, a, b, steps, block, group, start, stop, (flavour, rule),
        how,
    )  # fmt: skip


@kernel
def _floats_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    flavour: int, rule: Array, how: Any,
) -> None:  # fmt: skip
    _run_codes(
        _mac_narrow, values_of_floats, out, a, b, steps, block, group, start, stop,
        (flavour, rule), how,
    )  # fmt: skip


@kernel
def _single_bytes_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    flavour: int, rule: Array, how: Array,
) -> None:  # fmt: skip
    _run_codes(
        _single_wide, values_of_bytes, out, a, b, steps, block, group, start, stop,
        (flavour, rule), how,
    )  # fmt: skip


@kernel
def _single_floats_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    flavour: int, rule: Array, how: Any,
) -> None:  # fmt: skip
    _run_codes(
        _single_wide, values_of_floats, out, a, b, steps, block, group, start, stop,
        (flavour, rule), how,
    )  # fmt: skip


@kernel
def _single_floats_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    flavour: int, rule: Array, how: Any,
) -> None:  # fmt: skip
    _run_codes(
        _single_narrow, values_of_floats, out, a, b, steps, block, group, start, stop,
        (flavour, rule), how,
    )  # fmt: skip


_CODES = {  # by whether there is AVX-512, whether codes are looked up, and `Flavour.single`
    (True, True, False): _bytes_wide, (True, True, True): _single_bytes_wide,
    (True, False, False): _floats_wide, (True, False, True): _single_floats_wide,
    (False, False, False): _floats_narrow, (False, False, True): _single_floats_narrow,
}  # fmt: skip


@cache
def _codes_runner(
    flavour: Flavour, codes: np.dtype[Any], how: Any, wide: bool
) -> Callable[..., Any]:
    chosen = _CODES[wide, wide and isinstance(how, types.Array), flavour.single]
    doubles = codes_types(types.float64, codes, types.float64)
    rule = simd.contiguous(types.float64, 1)
    return simd.compiled(chosen, *doubles, simd.literal(flavour.code()), rule, how)


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
        if isinstance(b, PackedCodes):
            entry = _codes_runner(flavour, b.panels.dtype, type_of(how), simd.enabled())
            block = max(_BLOCK // flavour.tree, 1)
            run_codes(entry, out, rows, b, block, flavour.code(), rule, how)
            return out
        panels = b.panels.reshape(
            *b.panels.shape[:2], steps, b.panels.shape[3], flavour.tree
        )  # one step reads the numbers of `tree` consecutive k
        entry = _runner(flavour.code(), simd.enabled())
        run_tiles(entry, out, rows, panels, _BLOCK, flavour.code(), rule)
    return out
