"""Blocks of float32 in rows of memory, stored in four bits in one of two ways.

A magnitude is compared with the steps of E2M1 times its scale, which float64 holds exactly (3 by 28
bits); a quotient of 24 by 28 bits is never so close to a step that its rounding would tell. Many
blocks pass each loop together, for loops as short as a block fill no vectors.
Proof: ``tests/quant/test_four_bits.py`` compares with the general
way of `numsim.quant.four_bits`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import inline, kernel

Array = Any
_PART = 2048  # values that pass the loops together


@inline
def _spread(scales: Any, size: Any, out: Any) -> None:
    """Repeat the scale of every block for its values."""
    for block in range(scales.size):
        scale = scales[block]
        for i in range(block * size, (block + 1) * size):
            out[i] = scale


@inline
def _e2m1(x: Any, scale: Any, halves: Any, errors: Any, absolute: bool) -> None:
    """Fill the half steps of E2M1 of values under their scales, and the errors."""
    x, scale, halves, errors = x[:], scale[: x.size], halves[: x.size], errors[: x.size]
    for i in range(x.size):
        m, s = abs(np.float64(x[i])), scale[i]
        steps = (1.0 if m > 0.25 * s else 0.0) + (1.0 if m >= 0.75 * s else 0.0)
        steps += (1.0 if m > 1.25 * s else 0.0) + (1.0 if m >= 1.75 * s else 0.0)
        steps += (2.0 if m > 2.5 * s else 0.0) + (2.0 if m >= 3.5 * s else 0.0)
        steps += 4.0 if m > 5.0 * s else 0.0
        halves[i] = steps
        errors[i] = m - steps * 0.5 * s
    if absolute:
        for i in range(x.size):
            errors[i] = abs(errors[i])
    else:
        for i in range(x.size):
            errors[i] *= errors[i]


@inline
def _integers(x: Any, scale: Any, halves: Any, errors: Any) -> None:
    """Fill twice the integers 0 .. 7 of values under 6/7 of their scales, and squared errors."""
    for i in range(x.size):
        m, s = abs(np.float64(x[i])), scale[i]
        q = min(np.rint(m / s * 7.0 / 6.0), 7.0)
        halves[i] = q * 2.0
        rest = m - q * (s * 6.0 / 7.0)
        errors[i] = rest * rest


@inline
def _better(first: Any, second: Any, size: Any, chosen: Any, one: Any, other: Any) -> None:
    """Note the blocks whose second errors are the smaller sum, and copy `other` to `one` there."""
    for block in range(chosen.size):
        at = block * size
        total, rest = 0.0, 0.0
        for i in range(at, at + size):
            total += first[i]
            rest += second[i]
        chosen[block] = rest < total
        if rest < total:
            for i in range(at, at + size):
                one[i] = other[i]


@kernel
def four_over_six(
    x: Array, six: Array, four: Array, absolute: bool, chosen: Array, codes: Array, start: int,
    stop: int,
) -> None:  # fmt: skip
    """Store rows [blocks, size] under the better of two scales; codes are those of E2M1."""
    wide_vectors()
    size = x.shape[1]
    part = max(_PART // size, 1)
    one, other = np.empty(part * size, np.float32), np.empty(part * size, np.float32)
    scale = np.empty(part * size)
    first, second = np.empty(part * size), np.empty(part * size)
    for at in range(start, stop, part):
        end = min(at + part, stop)
        n = (end - at) * size
        row, out = x[at:end].reshape(-1), codes[at:end].reshape(-1)
        _spread(six[at:end], size, scale)
        _e2m1(row, scale[:n], one[:n], first[:n], absolute)
        _spread(four[at:end], size, scale)
        _e2m1(row, scale[:n], other[:n], second[:n], absolute)
        _better(first, second, size, chosen[at:end], one, other)
        bits, halves = row.view(np.uint32), one[:n]
        for i in range(n):  # half steps 0 1 2 3 4 6 8 12 are the codes 0 .. 7
            h = np.uint32(np.int32(halves[i]))
            code = h - np.uint32(h > np.uint32(4)) - np.uint32(h > np.uint32(6))
            code -= np.uint32(h > np.uint32(8)) * np.uint32(3)
            out[i] = code | (bits[i] >> np.uint32(31) << np.uint32(3))


@kernel
def if4(x: Array, scales: Array, integers: Array, codes: Array, start: int, stop: int) -> None:
    """Store rows [blocks, size] as E2M1 or integers, in half steps."""
    wide_vectors()
    size = x.shape[1]
    part = max(_PART // size, 1)
    one, other = np.empty(part * size, np.float32), np.empty(part * size, np.float32)
    scale = np.empty(part * size)
    first, second = np.empty(part * size), np.empty(part * size)
    for at in range(start, stop, part):
        end = min(at + part, stop)
        n = (end - at) * size
        row, out = x[at:end].reshape(-1), codes[at:end].reshape(-1)
        _spread(scales[at:end], size, scale)
        _e2m1(row, scale[:n], one[:n], first[:n], False)
        _integers(row, scale[:n], other[:n], second[:n])
        _better(first, second, size, integers[at:end], one, other)
        halves = one[:n]
        for i in range(n):
            h = np.int32(halves[i])
            out[i] = -h if row[i] < np.float32(0) else h


@kernel
def hif4(x: Array, inverse: Array, codes: Array, start: int, stop: int) -> None:
    """Store rows [blocks, 64] in quarters under three levels of scales, the first given."""
    wide_vectors()
    part = _PART // 64
    quotient, scale = np.empty(_PART), np.empty(_PART)
    up, back = np.empty(_PART, np.float64), np.empty(_PART, np.float64)
    most = np.empty(_PART // 4)
    for at in range(start, stop, part):
        end = min(at + part, stop)
        n = (end - at) * 64
        row, out = x[at:end].reshape(-1), codes[at:end].reshape(-1)
        _spread(inverse[at:end], 64, scale)
        for i in range(n):
            quotient[i] = abs(np.float64(row[i])) * scale[i]
        for j in range(n // 4):
            a = max(quotient[4 * j], quotient[4 * j + 1])
            b = max(quotient[4 * j + 2], quotient[4 * j + 3])
            most[j] = max(a, b)
        for j in range(n // 4):
            eight = max(most[j & -2], most[j | 1])
            level = 2.0 if eight >= 4.0 else 1.0
            factor = level * (2.0 if most[j] >= 2.0 * level else 1.0)
            for i in range(4):
                up[4 * j + i], back[4 * j + i] = 4.0 / factor, factor
        whole, growth, shrink = quotient[:n], up[:n], back[:n]
        for i in range(n):
            q = min(np.floor(whole[i] * growth[i] + 0.5), 7.0) * shrink[i]
            out[i] = np.int32(-q if row[i] < np.float32(0) else q)
