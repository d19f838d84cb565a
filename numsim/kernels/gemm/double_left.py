"""The left operand of `gemm.double` and `gemm.two_streams`: its planes and its scales."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.gemm.codes import Fields, uint32_tuple
from numsim.kernels.ir import simd
from numsim.kernels.ir.double import UNROLL
from numsim.kernels.ir.double_planes import A_REST, A_STEP, left_double
from numsim.kernels.jit import PACKED, grain_of, inline, kernel, over_range

Array = npt.NDArray[Any]


@inline
def power_of_two(exponent: np.int32) -> Any:
    """Return 2 to an exponent, float64."""
    return np.int64(np.int64(exponent + 1023) << 52).view(np.float64)


@kernel
def _left(
    signs: int, codes: Array, powers: Array, planes: Array, f: Fields, start: int, stop: int
) -> None:
    """Write rows start:stop of codes [M, groups, k] as [blocks, M, groups of a block, words]."""
    block, numbers = planes.shape[2], planes.view(np.float64)
    places = codes.shape[2]
    for row in range(start, stop):
        for g in range(codes.shape[1]):
            words = planes[g // block, row, g % block]
            left_double(signs, codes[row, g], places // UNROLL, words, f)
            words[A_STEP * places] = powers[row, g]
            at = A_STEP // 2 * places + 1
            numbers[g // block, row, g % block, at] = power_of_two(powers[row, g])


@cache
def _left_packer(signs: int) -> Callable[..., Any]:
    return simd.compiled(
        _left, simd.literal(signs), simd.contiguous(types.uint8, 3),
        simd.contiguous(types.int32, 2), simd.contiguous(types.int32, 4), uint32_tuple(Fields),
        types.int64, types.int64,
    )  # fmt: skip


def _groups(codes: Array, group: int, places: int) -> Array:
    """Return codes [batch, M, K] as [batch, M, groups, places], 0 where there is nothing."""
    batch, m, depth = codes.shape
    if codes.flags.c_contiguous and group == places and depth % group == 0:
        return codes.reshape(batch, m, -1, group)
    groups = -(-depth // group)
    wide = np.zeros((batch, m, groups * group), np.uint8)
    wide[..., :depth] = codes
    whole = np.zeros((batch, m, groups, places), np.uint8)
    whole[..., :group] = wide.reshape(batch, m, groups, group)
    return whole


def left_planes(
    codes: Array, powers: Array, how: Fields, sizes: tuple[int, int], block: int, rows: int,
    *, signs: bool = False,
) -> Array:  # fmt: skip
    """Return what `ir.double_planes` makes of codes [batch, M, K] of one byte.

    Shape [batch, groups / block, rows, block, words], of at least M rows. `sizes`: products of a
    group, and places for them; `powers` [batch, M, groups] int32: exponents of the codes' scales;
    `signs`: of `left_double`.
    """
    batch, m, depth = codes.shape
    group, places = sizes
    groups = -(-depth // group)
    lines = _groups(codes.view(np.uint8), group, places)
    own = np.ascontiguousarray(powers, np.int32).reshape(batch, m, groups)
    words = A_STEP * places + A_REST
    planes = np.empty((batch, groups // block, rows, block, words), np.int32)
    planes[:, :, m:] = 0
    pack = _left_packer(int(signs))
    for i in range(batch):

        def piece(start: int, stop: int, i: int = i) -> object:
            return pack(int(signs), lines[i], own[i], planes[i], how, start, stop)

        over_range(piece, m, grain=grain_of(m, PACKED * lines[i].size))
    return planes
