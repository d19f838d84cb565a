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
    signs: int, codes: Array, group: int, first: int, scales: Array, groups: int, planes: Array,
    f: Fields, start: int, stop: int,
) -> None:  # fmt: skip
    """Write lines start:stop, from item `first` on, of codes [batch, M, K].

    Planes are [items, blocks, rows, groups of a block, words]; a block of scales has `groups`.
    """
    (m, depth), (blocks, rows, block, size) = codes.shape[1:], planes.shape[1:]
    places = (size - A_REST) // A_STEP
    flat, words = codes.reshape(-1), planes.reshape(-1)
    numbers, room = words.view(np.float64), np.zeros(places, np.uint8)
    for line in range(start, stop):
        item, row = line // m, line % m
        own = scales[min(first + item, scales.shape[0] - 1), min(row, scales.shape[1] - 1)]
        for g in range(blocks * block):
            at = (((item * blocks + g // block) * rows + row) * block + g % block) * size
            place, some = (first * m + line) * depth + g * group, min(group, depth - g * group)
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
        _left, simd.literal(signs), simd.contiguous(types.uint8, 3), i64, i64,
        simd.strided(types.uint8, 3), i64, simd.contiguous(types.int32, 5), uint32_tuple(Fields),
        i64, i64,
    )  # fmt: skip


def left_room(codes: Array, items: int, sizes: tuple[int, int], block: int, rows: int) -> Array:
    """Return room for the planes of so many items of codes [batch, M, K], at least M `rows` each.

    Shape [items, groups / block, rows, block, words]. `sizes`: products of a group, and places for
    them.
    """
    group, places = sizes
    m, depth = codes.shape[1:]
    words = A_STEP * places + A_REST
    planes = np.empty((items, -(-depth // group) // block, rows, block, words), np.int32)
    if rows > m:
        planes[:, :, m:] = 0
    return planes


def left_planes(
    codes: Array, scales: Scales, how: Fields, group: int, planes: Array, first: int = 0,
    *, signs: bool = False,
) -> Array:  # fmt: skip
    """Write what `ir.double_planes` makes of codes [batch, M, K] of one byte, from an item on.

    Parameters: `scales` of their lines; `how` codes are read; products of a group; `planes` of
    `left_room`, returned for as many items as are left; `signs`: of `left_double`.
    """
    planes, m = planes[: len(codes) - first], codes.shape[1]
    pack, lines = _left_packer(int(signs)), len(planes) * m
    whole = np.ascontiguousarray(codes.view(np.uint8))
    over_range(
        lambda start, stop: pack(
            int(signs), whole, group, first, scales.codes, scales.groups, planes, how, start, stop
        ),
        lines, grain=grain_of(lines, PACKED * lines * codes.shape[2]),
    )  # fmt: skip
    return planes
