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
from numsim.kernels.gemm_codes import (
    BLOCK,
    Fields,
    PackedCodes,
    codes_types,
    cover_codes,
    pack_codes,
    pairs_of_fp8,
    run_codes,
    scratch_words,
    uint32_tuple,
)
from numsim.kernels.jit import inline, kernel, over_range
from numsim.kernels.large import zeros

Array = npt.NDArray[Any]
_RUN = 8  # a packed group is a multiple of this many products
_PIECE = _RUN * 3 * simd.HOPPER_COLUMNS // 2  # words of a decoded panel in as many
_ZERO_EXPONENT = simd.ZERO_EXPONENT


class PackedFp8(NamedTuple):
    """The left operand: `planes` [1, tiles, groups, lines per tile, words], its M.

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
    runs: int, how: Fields,
) -> None:  # fmt: skip
    scratch = scratch_words(block * runs * _PIECE)
    cover_codes(
        _hopper_wide, pairs_of_fp8, out, a, b, scratch, steps, block, group, start, stop, runs,
        how,
    )  # fmt: skip


@kernel
def _run_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    runs: int, how: Fields,
) -> None:  # fmt: skip
    scratch = scratch_words(block * runs * _PIECE)
    cover_codes(
        _hopper_narrow, pairs_of_fp8, out, a, b, scratch, steps, block, group, start, stop, runs,
        how,
    )  # fmt: skip


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
    source: Array, planes: Array, group: int, padded: int, emin: int, start: int, stop: int
) -> None:
    """Split lines [lines, K] of fp32 bits into planes [panels, pairs, 3, width, 2].

    A group of `group` products takes `padded` places. Products have 6 fraction bits; significands
    carry 7 more to make the 13 of the rule. Signs are 1 and -1.
    """
    table = np.empty((4096, 4), np.int16)  # FP8 values have zeros in the low 20 bits
    for top in range(4096):
        significand, exponent, sign = split_fp8(np.uint32(top << 20), emin)
        table[top, 0] = significand << np.int32(7)
        table[top, 1] = exponent
        table[top, 2] = 1 - 2 * sign
    lines, depth = source.shape
    pairs, width = planes.shape[1], planes.shape[3]
    flat = planes.reshape(-1)
    plane = 2 * width
    if lines % width or padded != group or depth % group:  # zeros where there is nothing
        planes[start:stop, :, 0] = 0
        planes[start:stop, :, 1] = _ZERO_EXPONENT
        planes[start:stop, :, 2] = 1
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
    return simd.compiled(_pack, *arrays, *(types.int64,) * 5)


@cache
def _runner(wide: bool) -> Callable[..., Any]:
    runner = _run_wide if wide else _run_narrow
    arguments = codes_types(types.int32, np.dtype(np.uint8), types.float32)
    return simd.compiled(runner, *arguments, types.int64, uint32_tuple(Fields))


def pack_a(values: Array, emin: int, group: int = 32) -> PackedFp8:
    """Pack the left operand [M, K]: FP8 values held in float32, any strides, finite."""
    lines, depth = values.shape
    width = simd.HOPPER_ROWS
    panels, groups, padded = -(-lines // width), -(-depth // group), -(-group // _RUN) * _RUN
    planes = np.empty((panels, groups * padded // 2, 3, width, 2), np.int16)
    entry = _packer()
    bits = values.view(np.uint32)
    over_range(lambda start, stop: entry(bits, planes, group, padded, emin, start, stop), panels)
    words = planes.view(np.int32).reshape(1, panels, groups, width, 3 * padded // 2)
    return PackedFp8(words, lines, group)


def pack_b(codes: Array, group: int = 32) -> PackedCodes:
    """Pack the right operand [1 or batch, K, N]: FP8 codes of any strides, finite."""
    padded = -(-group // _RUN) * _RUN
    slots = np.full(padded, -1)
    slots[:group] = np.arange(group)
    return pack_codes(codes, simd.HOPPER_COLUMNS, slots, group, run=2)


def gemm_hopper_fp8(a: PackedFp8, b: PackedCodes, how: Fields, *, c: Array | None = None) -> Array:
    """Return the float32 accumulators [M, N] of a chain over the groups of k, from c or +0.

    Parameters: packed operands of the same K and group (1 to 256), one b; `how` b's codes are
    read; c [M, N] float32, zero or 2^-90 <= |c| <= 2^120.
    """
    shape = (1, a.lines, b.lines)
    out: Array = zeros(shape) if c is None else np.array(c, np.float32, order="C").reshape(shape)
    if out.size:
        entry = _runner(simd.enabled())
        runs = a.planes.shape[4] * 2 // (3 * _RUN)
        run_codes(entry, out, a.planes, b, max(BLOCK // a.group, 1), runs, how)
    return out.reshape(shape[1:])
