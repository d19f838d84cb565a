"""The left operand of `gemm.double` and `gemm.two_streams`: its planes and its scales."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.gemm.codes import Fields, uint32_tuple
from numsim.kernels.gemm.scales import ONE, Scales
from numsim.kernels.ir import simd
from numsim.kernels.ir.double_planes import A_REST, A_STEP, left_double
from numsim.kernels.jit import PACKED, grain_of, inline, kernel, over_range

Array = npt.NDArray[Any]


@inline
def power_of_two(exponent: np.int32) -> Any:
    """Return 2 to an exponent, float64."""
    return np.int64(np.int64(exponent + 1023) << 52).view(np.float64)


@kernel
def _left(
    signs: int, codes: Array, group: int, scales: Array, groups: int, planes: Array, f: Fields,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Write lines start:stop of codes [batch, M, K]; a block of scales has so many groups.

    Planes are [batch, blocks, rows, groups of a block, words].
    """
    (m, depth), (blocks, rows, block, size) = codes.shape[1:], planes.shape[1:]
    places = (size - A_REST) // A_STEP
    flat, words = codes.reshape(-1), planes.reshape(-1)
    numbers, room = words.view(np.float64), np.zeros(places, np.uint8)
    for line in range(start, stop):
        item, row = line // m, line % m
        own = scales[min(item, scales.shape[0] - 1), min(row, scales.shape[1] - 1)]
        for g in range(blocks * block):
            at = (((item * blocks + g // block) * rows + row) * block + g % block) * size
            place, some = line * depth + g * group, min(group, depth - g * group)
            if some == places:
                left_double(signs, flat, place, places, words, at, block * size, f)
            else:
                for k in range(places):
                    room[k] = flat[place + k] if k < some else np.uint8(0)
                left_double(signs, room, 0, places, words, at, block * size, f)
            power = np.int32(np.int32(own[g // groups]) - np.int32(ONE))
            words[at + A_STEP * places] = power
            numbers[(at + A_STEP * places) // 2 + 1] = power_of_two(power)


@cache
def _left_packer(signs: int) -> Callable[..., Any]:
    i64 = types.int64
    return simd.compiled(
        _left, simd.literal(signs), simd.contiguous(types.uint8, 3), i64,
        simd.strided(types.uint8, 3), i64, simd.contiguous(types.int32, 5), uint32_tuple(Fields),
        i64, i64,
    )  # fmt: skip


def left_planes(
    codes: Array, scales: Scales, how: Fields, sizes: tuple[int, int], block: int, rows: int,
    *, signs: bool = False,
) -> Array:  # fmt: skip
    """Return what `ir.double_planes` makes of codes [batch, M, K] of one byte, and of scales.

    Shape [batch, groups / block, rows, block, words], of at least M rows. `sizes`: products of a
    group, and places for them; `signs`: of `left_double`.
    """
    batch, m, depth = codes.shape
    group, places = sizes
    words = A_STEP * places + A_REST
    planes = np.empty((batch, -(-depth // group) // block, rows, block, words), np.int32)
    if rows > m:
        planes[:, :, m:] = 0
    pack, lines = _left_packer(int(signs)), np.ascontiguousarray(codes.view(np.uint8))
    over_range(
        lambda start, stop: pack(
            int(signs), lines, group, scales.codes, scales.groups, planes, how, start, stop
        ),
        batch * m, grain=grain_of(batch * m, PACKED * codes.size),
    )  # fmt: skip
    return planes
