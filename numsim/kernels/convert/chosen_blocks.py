"""Blocks along rows in four bits, in the better one of two ways under scales of few bits.

`e2m1_blocks` with a choice in it, of `four_bit_blocks`. What is computed is what
`numsim.quant.four_bits` says; of integers the codes are half steps, bit 7 of a scale's code says
that they are, and the scale is 6/7 of it.

Proof: ``tests/quant/test_one_pass.py`` compares with the general way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype
from numpy.typing import NDArray

from numsim.kernels.convert.e2m1_blocks import (
    FAR,
    NEAR,
    e2m1_coded,
    e2m1_under,
    rounded_scales,
    scale_codes,
)
from numsim.kernels.convert.float32 import Fast
from numsim.kernels.convert.four_bit_blocks import better_along, choice_room, thresholds
from numsim.kernels.convert.tiles import tops_along, words_of
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.ir import simd
from numsim.kernels.ir.choice import half_steps
from numsim.kernels.jit import kernel

Array = NDArray[Any]
MAGNITUDES, SQUARES, INTEGERS = 0, 1, 2  # errors of 4 over 6; E2M1 or integers, by squares
_INTEGERS = np.uint8(0x80)  # bit of a scale's code


class Chosen(NamedTuple):
    """A format of block scales as in `e2m1_blocks.Narrow`, and between what is chosen."""

    how: Fast
    values: Array
    ways: int


@kernel
def _chosen_along(
    x: Array, kind: int, above: np.float32, chosen: Chosen, wide: bool, scales: Array,
    bytes_: Array, out: Array, start: int, stop: int,
) -> bool:  # fmt: skip
    wide_vectors()
    size, good, over = x.shape[1], np.uint32(1), np.float64(above)
    part = max(NEAR // size, 16)
    words, least = np.empty(part * size, np.uint32), np.empty((7, part), np.uint32)
    tops, second = np.empty(part, np.uint32), np.empty(part, np.uint8)
    picks, one, other = np.empty(part, np.bool_), np.empty(part), np.empty(part)
    room, own = (np.empty(part), np.empty(part, np.uint32)), choice_room(part)
    whole, absolute = chosen.ways == INTEGERS, chosen.ways == MAGNITUDES
    for at in range(start, stop, part):
        end = min(at + part, stop)
        n = end - at
        bits = words_of(x[at:end].reshape(-1), kind, words)
        codes, top, pick = out[at:end].reshape(-1), tops[:n], picks[:n]
        each, found, by, beside = scales[at:end], bytes_[at:end], one[:n], other[:n]
        tops_along(bits, size, top)
        scale_codes(top, over, chosen.how, room, found)
        for i in range(n):
            good &= np.uint32(top[i] < FAR)
            by[i] = np.float64(chosen.values[found[i]]) * over
        if whole:
            for i in range(n):
                beside[i] = by[i] * 6.0 / 7.0
            better_along(bits, by, beside, whole, absolute, pick, own)
            thresholds(by, pick, least)
            e2m1_coded(bits, size, least, wide, codes)
            half_steps(codes, pick, size // 16, n)
            for i in range(n):
                plain = chosen.values[found[i]]
                seventh = np.float32(np.float64(plain) * 6.0 / 7.0)
                each[i] = seventh if pick[i] else plain
                found[i] = np.uint8(found[i] | (_INTEGERS if pick[i] else np.uint8(0)))
        else:
            wanted, four = room[0][:n], second[:n]
            for i in range(n):
                wanted[i] = np.float64(np.uint32(top[i]).view(np.float32)) / 4.0 / over
            rounded_scales(wanted, chosen.how, room[1][:n], four)
            for i in range(n):
                beside[i] = np.float64(chosen.values[four[i]]) * over
            better_along(bits, by, beside, whole, absolute, pick, own)
            for i in range(n):
                found[i] = four[i] if pick[i] else found[i]
                by[i] = beside[i] if pick[i] else by[i]
                each[i] = chosen.values[found[i]]
            e2m1_under(bits, size, by, least, wide, codes)
    return bool(good != np.uint32(0))


@cache
def chosen_kernel(word: np.dtype[Any]) -> Callable[..., bool]:
    """Return the kernel of blocks in rows, x [blocks, size] as words, `size` a multiple of 16.

    (x, kind, above, chosen, wide, scales, bytes_, out, start, stop) stores rows under the scale
    above; it returns what ``e2m1_blocks.narrow_kernels(word).along`` does.
    """
    same: Any = types.NamedUniTuple
    mixed: Any = types.NamedTuple
    how = same(types.uint32, len(Fast._fields), Fast)
    f32, i64 = types.float32, types.int64
    chosen = mixed((how, types.Array(f32, 1, "C", readonly=True), i64), Chosen)
    x = types.Array(from_dtype(word), 2, "C", readonly=True)
    scales, bytes_ = (simd.contiguous(dtype, 1) for dtype in (f32, types.uint8))
    made = scales, bytes_, simd.contiguous(types.uint8, 2)
    how_rows = x, i64, f32, chosen, types.boolean
    return simd.compiled(_chosen_along, *how_rows, *made, i64, i64)
