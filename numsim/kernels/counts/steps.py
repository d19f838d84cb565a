"""Products of multiply-adds, integers and exact sums with counts, one output a lane.

The left operand is [M, K], the right one [K, columns], columns a multiple of `LANES`, zeros
appended. Results and counts are those of the definitions in `numsim.kernels.rules`, for the cases
that `numsim.targets.fast.counted` selects; `tests/targets/test_fast_stats.py` compares every bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numsim.kernels.instructions import shr, wide_vectors
from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules.counts import (
    CUT,
    GAP,
    OVERFLOWS,
    SATURATIONS,
    STEPS,
    SWAMPED,
    WRAPS,
)
from numsim.kernels.rules.mac import ODD_FIRST, SEQUENTIAL, TWO_CHAINS

LANES, TILE = 16, 512  # columns of the right operand are padded to LANES; TILE of them at a time
_SIGN = np.int64(-(1 << 63))
_EXPONENT = np.int64(0x7FF << 52)


class Nearest(NamedTuple):
    """Rounding of a float64 to nearest even in a smaller format."""

    lift: float  # 2**(53 - precision)
    least: float  # smallest normal value
    largest: float


@inline
def nearest(x: Any, f: Nearest) -> Any:
    """Return a float64 (exact, or rounded to odd) rounded to `f`; zeros keep their sign."""
    raw = np.float64(x).view(np.int64)
    size = abs(x)
    place = np.int64(raw & _EXPONENT).view(np.float64)
    place = place if place > f.least else np.float64(f.least)
    lift = place * f.lift
    near = (size + lift) - lift
    near = near if near <= f.largest else size * np.inf
    return np.int64(np.float64(near).view(np.int64) | (raw & _SIGN)).view(np.float64)


@inline
def start_rows(c: Any, acc: Any, low: Any, high: Any) -> None:
    """Begin a tile: accumulators from c, zeros in the padding; the range of their values."""
    wide_vectors()
    for j in range(acc.size):
        acc[j] = 0
        low[j] = 0
        high[j] = 0
    for j in range(c.size):
        acc[j] = c[j]
    peak_row(acc, low, high)


@inline
def peak_row(values: Any, low: Any, high: Any) -> None:
    """Widen the range of every lane by its value, if that is finite."""
    wide_vectors()
    for j in range(values.size):
        v = values[j]
        low[j] = v if (v < low[j]) & (v > -np.inf) else low[j]
        high[j] = v if (v > high[j]) & (v < np.inf) else high[j]


@inline
def end_rows(acc: Any, low: Any, high: Any, out: Any, extremes: Any) -> None:
    """End a tile: results and the range of all lanes."""
    wide_vectors()
    for j in range(out.size):
        out[j] = acc[j]
        extremes[0] = min(extremes[0], low[j])
        extremes[1] = max(extremes[1], high[j])


@inline
def product_row(x: Any, y: Any, out: Any, rounded: bool, p: Nearest, n: Any) -> None:
    """`rules.mac.product` of x and a row y."""
    wide_vectors()
    if not rounded:
        for j in range(out.size):
            out[j] = x * y[j]
        return
    overflows = cut = swamped = np.int64(0)
    for j in range(out.size):
        exact = x * y[j]
        value = nearest(exact, p)
        out[j] = value
        finite = abs(exact) < np.inf
        changed = finite & (value != exact)
        overflows += np.int64(finite & (abs(value) == np.inf))
        cut += np.int64(changed)
        swamped += np.int64(changed & (value == 0.0))
    n[OVERFLOWS] += overflows
    n[CUT] += cut
    n[SWAMPED] += swamped


@inline
def add_row(x: Any, y: Any, f: Nearest, both: bool, low: Any, high: Any, n: Any) -> None:
    """`rules.mac.add` of two rows, the result in x."""
    wide_vectors()
    overflows = swamped = gap = np.int64(0)
    for j in range(x.size):
        a, b = x[j], y[j]
        total = a + b
        back = total - a
        error = (a - (total - back)) + (b - back)
        raw = np.float64(total).view(np.int64)
        away = (np.float64(error).view(np.int64) ^ raw) >> 63  # -1: it was rounded up
        odd = np.int64((raw + away) | 1).view(np.float64)
        value = nearest(odd if abs(error) > 0.0 else total, f)
        x[j] = value
        finite = (abs(a) < np.inf) & (abs(b) < np.inf)
        overflows += np.int64(finite & (abs(value) == np.inf))
        lost = (b != 0.0) & (value == a)
        if both:
            lost |= (a != 0.0) & (value == b)
        swamped += np.int64(finite & lost)
        distance = abs(
            (np.float64(a).view(np.int64) >> 52 & 2047)
            - (np.float64(b).view(np.int64) >> 52 & 2047)
        )
        distance = distance if finite & (a != 0.0) & (b != 0.0) else np.int64(0)
        gap = max(gap, distance)
        v = value if abs(value) < np.inf else 0.0
        low[j] = v if v < low[j] else low[j]
        high[j] = v if v > high[j] else high[j]
    n[OVERFLOWS] += overflows
    n[SWAMPED] += swamped
    n[GAP] = max(n[GAP], gap)


@inline
def plus_zero(x: Any) -> None:
    """Add +0 to a row: -0 becomes +0."""
    for j in range(x.size):
        x[j] += 0.0


@kernel
def mac(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    order: int, group: int, rounded: bool, p: Nearest, f: Nearest, signed_zero: bool,
    counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`rules.mac.matmul` for rounding to nearest even; ODD_FIRST comes as a permuted chain."""
    wide_vectors()
    (depth, columns), real = b.shape, c.shape[1]
    size = min(TILE, columns)
    chain = order in (SEQUENTIAL, ODD_FIRST)
    rows, unused = np.empty((4, size)), np.zeros((2, size))
    leaves = np.empty((2 if chain or order == TWO_CHAINS else group, size))
    for j0 in range(0, columns, TILE):
        w = min(TILE, columns - j0)
        last = min(j0 + w, real)
        acc, low, high, term = rows[0, :w], rows[1, :w], rows[2, :w], rows[3, :w]
        no_low, no_high = unused[0, :w], unused[1, :w]
        for i in range(start, stop):
            n = counts[i]
            start_rows(c[i, j0:last], acc, low, high)
            if chain:
                for k in range(depth):
                    if order == ODD_FIRST and k + 1 == depth and k % 2 == 0:
                        plus_zero(acc)  # a short pair holds +0
                    product_row(a[i, k], b[k, j0 : j0 + w], term, rounded, p, n)
                    add_row(acc, term, f, False, low, high, n)
                n[STEPS] += (last - j0) * depth
            elif order == TWO_CHAINS:
                even, odd = leaves[0, :w], leaves[1, :w]
                for k0 in range(0, depth, group):
                    even[:] = 0.0
                    odd[:] = 0.0
                    for k in range(k0, min(k0 + group, depth)):
                        product_row(a[i, k], b[k, j0 : j0 + w], term, rounded, p, n)
                        if (k - k0) % 2:
                            add_row(odd, term, f, False, no_low, no_high, n)
                        else:
                            add_row(even, term, f, False, no_low, no_high, n)
                    add_row(even, odd, f, True, no_low, no_high, n)
                    add_row(acc, even, f, False, low, high, n)
                    n[STEPS] += last - j0
            else:
                for k0 in range(0, depth, group):
                    m = min(group, depth - k0)
                    for k in range(m):
                        leaf = leaves[k, :w]
                        product_row(a[i, k0 + k], b[k0 + k, j0 : j0 + w], leaf, rounded, p, n)
                    for k in range(m, group):
                        leaves[k, :w] = 0.0
                    m = group
                    apart = 1  # the sums of a level stay where their first operands were
                    while m > 1:
                        for k in range(m // 2):
                            at = 2 * k * apart
                            add_row(
                                leaves[at, :w], leaves[at + apart, :w], f, True, no_low, no_high, n
                            )
                        apart *= 2
                        m = (m + 1) // 2
                    leaf = leaves[0, :w]
                    if not signed_zero:
                        plus_zero(leaf)
                    add_row(acc, leaf, f, False, low, high, n)
                    n[STEPS] += last - j0
            end_rows(acc, low, high, out[i, j0:last], extremes[i])


@inline
def exponent32(x: Any) -> Any:
    """Return the biased exponent of a normal float32 as int32."""
    return np.int32(shr(np.float32(x).view(np.uint32), np.uint32(23)) & np.uint32(255))


@inline
def fma_row(x: Any, y: Any, acc: Any, low: Any, high: Any, n: Any) -> None:
    """`rules.mac.add` of products; float32 holds those, and numbers are normal or zero."""
    wide_vectors()
    swamped = gap = np.int32(0)
    zero = np.float32(0.0)
    for j in range(acc.size):
        a, product = acc[j], x * y[j]
        value = a + product
        acc[j] = value
        some = product != zero
        swamped = np.int32(swamped + np.int32(some & (value == a)))
        apart = np.int32(exponent32(a) - exponent32(product))
        apart = apart if apart > np.int32(0) else np.int32(-apart)
        apart = apart if some & (a != zero) else np.int32(0)
        gap = apart if apart > gap else gap
        low[j] = value if value < low[j] else low[j]
        high[j] = value if value > high[j] else high[j]
    n[SWAMPED] += np.int64(swamped)
    n[GAP] = max(n[GAP], np.int64(gap))


@kernel
def fma(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`mac` in float32 where no result can be infinite or subnormal; a, b float32."""
    (depth, columns), real = b.shape, c.shape[1]
    rows = np.empty((3, min(TILE, columns)), np.float32)
    for j0 in range(0, columns, TILE):
        w = min(TILE, columns - j0)
        last = min(j0 + w, real)
        acc, low, high = rows[0, :w], rows[1, :w], rows[2, :w]
        for i in range(start, stop):
            start_rows(c[i, j0:last], acc, low, high)
            for k in range(depth):
                fma_row(a[i, k], b[k, j0 : j0 + w], acc, low, high, counts[i])
            counts[i, STEPS] += (last - j0) * depth
            end_rows(acc, low, high, out[i, j0:last], extremes[i])


@kernel
def exact(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    extremes: np.ndarray,
) -> None:  # fmt: skip
    """Add where float64 holds every partial sum, all of them in `extremes`; all float64."""
    wide_vectors()
    (depth, columns), real = b.shape, c.shape[1]
    rows = np.empty((3, min(TILE, columns)))
    for j0 in range(0, columns, TILE):
        w = min(TILE, columns - j0)
        last = min(j0 + w, real)
        acc, low, high = rows[0, :w], rows[1, :w], rows[2, :w]
        for i in range(start, stop):
            start_rows(c[i, j0:last], acc, low, high)
            for k in range(depth):
                x, y = a[i, k], b[k, j0 : j0 + w]
                for j in range(w):
                    v = acc[j] + x * y[j]
                    acc[j] = v
                    low[j] = v if v < low[j] else low[j]
                    high[j] = v if v > high[j] else high[j]
            end_rows(acc, low, high, out[i, j0:last], extremes[i])


@inline
def step_row(a: Any, b: Any, j0: int, k0: int, last: int, step: Any) -> None:
    """Sum the products of one step; a [K] and b [K, columns] of one integer type."""
    wide_vectors()
    word = step.dtype.type
    for k in range(k0, last):
        x, y = word(a[k]), b[k, j0 : j0 + step.size]
        if k == k0:
            for j in range(step.size):
                step[j] = word(x * y[j])
        else:
            for j in range(step.size):
                step[j] = word(step[j] + word(x * y[j]))


@inline
def pair_row(a: Any, b: Any, j0: int, k0: int, last: int, limit: Any, step: Any) -> Any:
    """Sum the pairs of one step, each clamped to [-limit - 1, limit]; return how many were."""
    wide_vectors()
    word = step.dtype.type
    step[:] = 0
    clamps = np.int64(0)
    high, low = word(limit), word(-limit - 1)
    for k in range(k0, last, 2):
        second = min(k + 1, last - 1)
        x, y = word(a[k]), b[k, j0 : j0 + step.size]
        x2, y2 = word(a[k + 1] if k + 1 < last else 0), b[second, j0 : j0 + step.size]
        found = word(0)
        for j in range(step.size):
            pair = word(word(x * y[j]) + word(x2 * y2[j]))
            clamped = pair if pair < high else high
            clamped = clamped if clamped > low else low
            found = word(found + word(clamped != pair))
            step[j] = word(step[j] + clamped)
        clamps += np.int64(found)
    return clamps


@inline
def settle_row(
    step: Any, acc: Any, whole: Any, lowest: Any, highest: Any, low: Any, high: Any,
    saturate: bool, n: Any,
) -> None:  # fmt: skip
    """Add one step to a row of integer accumulators."""
    wide_vectors()
    word = step.dtype.type
    outside = swamped = word(0)
    mask = word(high - low)
    for j in range(step.size):
        before = acc[j]
        new = word(before + step[j])
        total = new if saturate else word(whole[j] + step[j])
        whole[j] = total
        lowest[j] = total if total < lowest[j] else lowest[j]
        highest[j] = total if total > highest[j] else highest[j]
        outside = word(outside + word((new < low) | (new > high)))
        if saturate:
            new = new if new < high else high
            new = new if new > low else low
        else:
            new = word(low + word(word(new - low) & mask))
        acc[j] = new
        swamped = word(swamped + word((step[j] != 0) & (new == before)))
    n[SATURATIONS if saturate else WRAPS] += np.int64(outside)
    n[SWAMPED] += np.int64(swamped)


@kernel
def integer(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    low: int, high: int, saturate: bool, group: int, pair_limit: int,
    counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`rules.integer.matmul`; a, b int32 where no sum of products and c leaves it, else int64."""
    wide_vectors()
    word = b.dtype.type
    (depth, columns), real = b.shape, c.shape[1]
    rows = np.empty((5, min(TILE, columns)), b.dtype)
    for j0 in range(0, columns, TILE):
        w = min(TILE, columns - j0)
        last = min(j0 + w, real)
        acc, whole, step = rows[0, :w], rows[1, :w], rows[2, :w]
        lowest, highest = rows[3, :w], rows[4, :w]
        for i in range(start, stop):
            n = counts[i]
            acc[:] = 0
            acc[: last - j0] = c[i, j0:last]
            for j in range(w):
                whole[j] = acc[j]
                lowest[j] = min(acc[j], word(0))
                highest[j] = max(acc[j], word(0))
            for k0 in range(0, depth, group):
                k1 = min(k0 + group, depth)
                if pair_limit > 0:
                    n[SATURATIONS] += pair_row(a[i], b, j0, k0, k1, pair_limit, step)
                else:
                    step_row(a[i], b, j0, k0, k1, step)
                settle_row(
                    step, acc, whole, lowest, highest, word(low), word(high), saturate, n
                )  # fmt: skip
                n[STEPS] += last - j0
            end_rows(acc, lowest, highest, out[i, j0:last], extremes[i])
