"""FP8 matrix products by the rule of Hopper's wgmma and Ada's mma, for finite operands.

Per group of products (Hopper 32, Ada 16) and the accumulator: every term is cut toward zero to 13
fraction bits below the largest exponent, the terms are added exactly, and the sum is cut to 13
fraction bits. A product with a zero factor has no say in the largest exponent; a zero sum is +0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels import simd
from numsim.kernels.gemm_fma import cover, run_tiles, tile_types
from numsim.kernels.jit import inline, kernel, over_range

Array = npt.NDArray[Any]
_BLOCK = 1024  # k for which a panel of b stays in the cache
_RUN = 8  # a packed group is a multiple of this many products
_ZERO_EXPONENT = simd.ZERO_EXPONENT


class PackedFp8(NamedTuple):
    """One operand, packed once: `planes` [1, tiles, groups, lines per tile, words], its M or N.

    Each group holds pairs (k, k+1), each pair the planes significand, exponent and sign, each
    plane one int32 (two int16) per line. A group is padded to a multiple of 8 products.
    """

    planes: Array
    lines: int
    group: int


@inline
def _hopper_wide(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    if left >= 4:
        simd.hopper_tile(4, 1, a, a_at, b, b_at, out, out_at, stride, steps, rule)
        return 4
    simd.hopper_tile(1, 1, a, a_at, b, b_at, out, out_at, stride, steps, rule)
    return 1


@inline
def _hopper_narrow(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    simd.hopper_tile(1, 0, a, a_at, b, b_at, out, out_at, stride, steps, rule)
    return 1


@kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int,
) -> None:  # fmt: skip
    cover(_hopper_wide, out, a, b, steps, block, group, start, stop, runs)


@kernel
def _run_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int,
) -> None:  # fmt: skip
    cover(_hopper_narrow, out, a, b, steps, block, group, start, stop, runs)


@inline
def split_fp8(bits: np.uint32, emin: int) -> tuple[np.int32, np.int32, np.int32]:
    """Split the fp32 bits of an FP8 value: significand with 3 fraction bits, exponent, sign bit.

    The exponent is the floor of log2, but at least `emin` (-6 for E4M3, -14 for E5M2).
    """
    field = np.int32((bits >> np.uint32(23)) & np.uint32(255))
    sign = np.int32(bits >> np.uint32(31))
    exponent: np.int32 = max(field - np.int32(127), np.int32(emin))
    cut = np.int32(20) + exponent - (field - np.int32(127))
    significand = np.int32((bits & np.uint32(0x7FFFFF)) | np.uint32(0x800000))
    if field == 0:
        significand, exponent = np.int32(0), np.int32(_ZERO_EXPONENT)
    return significand >> min(cut, np.int32(31)), exponent, sign


@kernel
def _pack(
    source: Array, planes: Array, group: int, padded: int, emin: int, shift: int, bias: int,
    one: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Split lines [lines, K] of fp32 bits into planes [panels, pairs, 3, width, 2].

    A group of `group` products takes `padded` places. Significands are shifted left, exponents
    biased; signs are `one` and `one` - 2.
    """
    table = np.empty((4096, 4), np.int16)  # FP8 values have zeros in the low 20 bits
    for top in range(4096):
        significand, exponent, sign = split_fp8(np.uint32(top << 20), emin)
        table[top, 0] = significand << np.int32(shift)
        table[top, 1] = exponent + bias
        table[top, 2] = one - 2 * sign
    lines, depth = source.shape
    pairs, width = planes.shape[1], planes.shape[3]
    flat = planes.reshape(-1)
    plane = 2 * width
    if lines % width or padded != group or depth % group:  # zeros where there is nothing
        planes[start:stop, :, 0] = 0
        planes[start:stop, :, 1] = _ZERO_EXPONENT + bias
        planes[start:stop, :, 2] = one
    for panel in range(start, stop):
        first = panel * width
        for block in range(2 * pairs // padded):
            k0 = block * group
            to = (panel * pairs + block * padded // 2) * 3 * plane
            for line in range(first, min(first + width, lines)):
                for place in range(min(group, depth - k0)):
                    entry = table[source[line, k0 + place] >> np.uint32(20)]
                    at = to + (place >> 1) * 3 * plane + 2 * (line - first) + (place & 1)
                    flat[at], flat[at + plane], flat[at + 2 * plane] = entry[0], entry[1], entry[2]


@cache
def _packer() -> Callable[..., Any]:
    arrays = (simd.strided(types.uint32, 2), simd.contiguous(types.int16, 5))
    return simd.compiled(_pack, *arrays, *(types.int64,) * 8)


@cache
def _runner(wide: bool) -> Callable[..., Any]:
    runner = _run_wide if wide else _run_narrow
    return simd.compiled(runner, *tile_types(types.int32, types.int32, types.float32), types.int64)


def _packed(
    values: Array, emin: int, group: int, width: int, shift: int, bias: int, one: int
) -> PackedFp8:
    lines, depth = values.shape
    panels, groups, padded = -(-lines // width), -(-depth // group), -(-group // _RUN) * _RUN
    planes = np.empty((panels, groups * padded // 2, 3, width, 2), np.int16)
    entry = _packer()
    bits = values.view(np.uint32)
    over_range(
        lambda start, stop: entry(bits, planes, group, padded, emin, shift, bias, one, start, stop),
        panels,
    )
    words = planes.view(np.int32).reshape(1, panels, groups, width, 3 * padded // 2)
    return PackedFp8(words, lines, group)


def pack_a(values: Array, emin: int, group: int = 32) -> PackedFp8:
    """Pack the left operand [M, K]: FP8 values held in float32, any strides, finite."""
    # Products have 6 fraction bits; 7 more make the 13 of the rule.
    return _packed(values, emin, group, simd.HOPPER_ROWS, 7, 0, 1)


def pack_b(values: Array, emin: int, group: int = 32) -> PackedFp8:
    """Pack the right operand [K, N]: FP8 values held in float32, any strides, finite."""
    # Exponent sums carry the fp32 bias; sign planes 0 and -2 turn 1 into -1, and -1 into 1, by XOR.
    return _packed(values.T, emin, group, simd.HOPPER_COLUMNS, 0, 127, 0)


def gemm_hopper_fp8(a: PackedFp8, b: PackedFp8, *, c: Array | None = None) -> Array:
    """Return the float32 accumulators [M, N] of a chain over the groups of k, from c or +0.

    Parameters: packed operands of the same K and group (1 to 256); c [M, N] float32, zero or
    2^-90 <= |c| <= 2^120.
    """
    shape = (1, a.lines, b.lines)
    out: Array = (
        np.zeros(shape, np.float32)
        if c is None
        else np.array(c, np.float32, order="C").reshape(shape)
    )
    if out.size:
        entry = _runner(simd.enabled())
        runs = a.planes.shape[4] * 2 // (3 * _RUN)
        run_tiles(entry, out, a.planes, b.planes, max(_BLOCK // a.group, 1), runs)
    return out.reshape(shape[1:])
