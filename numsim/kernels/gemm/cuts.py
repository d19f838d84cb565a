"""The left operand of products that are cut to integers, each alone (`ir.halves`).

Proof: ``tests/targets/test_few_rows.py`` compares every bit with the definitions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.gemm.codes import Fields, uint32_tuple
from numsim.kernels.ir import simd
from numsim.kernels.ir.double_planes import A_STEP, BASE, BELOW, SINGLE
from numsim.kernels.ir.fp8 import NEAR_ZERO, RIGHT
from numsim.kernels.jit import kernel

Array = npt.NDArray[Any]


@kernel
def _for_cuts(planes: Array, places: int, f: Fields, start: int, stop: int) -> None:
    """Change words of rows start:stop of planes to what `ir.halves` cuts products by.

    `f`: how the right operand's codes are read.
    """
    byte, four = np.uint32(255), np.uint32(0x01010101)
    for row in range(start, stop):
        for g in range(planes.shape[2]):
            words = planes[0, row, g]
            numbers, singles = words.view(np.float64), words.view(np.float32)
            largest = np.uint32(0)
            for k in range(places):
                largest = max(largest, np.uint32(words[A_STEP * k]) & byte)
            words[A_STEP * places + BASE] = np.uint32(largest + RIGHT - f.bias & byte) * four
            for k in range(places):
                e = np.uint32(words[A_STEP * k]) & byte
                less = np.uint32(np.uint32(largest - e) << f.trailing) & byte
                x = np.float32(numbers[A_STEP // 2 * k + 1])
                singles[A_STEP * k + SINGLE] = x if x != 0 else NEAR_ZERO
                words[A_STEP * k + BELOW] = (less if e > 0 else byte) * four


@cache
def _changer() -> Callable[..., Any]:
    planes, i64 = simd.contiguous(types.int32, 4), types.int64
    return simd.compiled(_for_cuts, planes, i64, uint32_tuple(Fields), i64, i64)


def change_for_cuts(planes: Array, places: int, how: Fields) -> None:
    """Change what `double_left.left_planes` returned, one block each, for products that are cut.

    `places` of a group; `how` the right operand's codes are read.
    """
    for item in planes:
        _changer()(item, places, how, 0, item.shape[1])
