"""What a matrix product lost: every step of a unit again, one output at a time, with counts.

Multiply-adds, integers and exact sums; `counts.align` has the units that align and cut.
Each kernel writes its results, which equal those of the unit's own kernel, and for every row of
them one row of `counts` (columns `OVERFLOWS` to `BITS`) and of `extremes` (lowest and highest value
of the accumulator). A step whose operands or accumulator are not finite counts nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.convert.round import top_bit
from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules import exact as ex
from numsim.kernels.rules.fused import parts, power_of_two
from numsim.kernels.rules.integer import limited
from numsim.kernels.rules.mac import (
    ODD_FIRST,
    SEQUENTIAL,
    TWO_CHAINS,
    Arithmetic,
    add,
    flushed,
    round_to,
    rounded,
)

OVERFLOWS, SATURATIONS, WRAPS, SWAMPED, CUT, GAP, BITS, STEPS = range(8)
COLUMNS = 8
LEAST, MOST = -(1 << 63), (1 << 63) - 1


@inline
def note_peak(value: Any, extremes: Any) -> None:
    """Widen the range of accumulator values."""
    if np.isfinite(value):
        extremes[0] = min(extremes[0], value)
        extremes[1] = max(extremes[1], value)


@inline
def sum_to_odd(x: Any, y: Any) -> Any:
    """Return x + y, rounded to odd where float64 cannot hold it."""
    total = x + y
    if not np.isfinite(total) or total == 0.0:
        return total
    back = total - x
    error = (x - (total - back)) + (y - back)
    bits = np.float64(total).view(np.int64)
    if error != 0.0 and bits & 1 == 0:
        bits += 1 if (error > 0) == (total > 0) else -1
    return np.int64(bits).view(np.float64)


@inline
def noted_range(exact: Any, value: Any, f: Arithmetic, n: Any) -> None:
    """Count a finite number that left the range: to Inf or NaN, or stopped at the largest value."""
    limit = f.bottom if exact < 0 else f.top
    if not np.isfinite(value):
        n[OVERFLOWS] += 1
    elif abs(exact) > limit and (
        abs(exact) >= power_of_two(np.int64(f.emax + 1)) or abs(rounded(exact, f)) > limit
    ):
        n[SATURATIONS] += 1


@inline
def counted_add(x: Any, y: Any, f: Arithmetic, n: Any, both: bool) -> Any:
    """Return x + y rounded to `f`; `both`: x is an addend like y, not the accumulator."""
    value = add(x, y, f)
    if np.isfinite(x) and np.isfinite(y):
        noted_range(sum_to_odd(x, y), value, f, n)
        if (y != 0 and value == x) or (both and x != 0 and value == y):
            n[SWAMPED] += 1
        if x != 0 and y != 0:
            gap = parts(x, np.int64(-1022))[1] - parts(y, np.int64(-1022))[1]
            n[GAP] = max(n[GAP], abs(gap))
    return value


@inline
def counted_product(x: Any, y: Any, rounds: bool, p: Arithmetic, n: Any) -> Any:
    """Return x * y, exact or rounded to `p`."""
    exact = x * y
    if not rounds:
        return exact
    value = round_to(exact, p)
    if np.isfinite(exact):
        noted_range(exact, value, p, n)
        if value != exact:
            n[CUT] += 1
            if value == 0:
                n[SWAMPED] += 1
    return value


@kernel
def mac(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    order: int, group: int, rounds: bool, p: Arithmetic, f: Arithmetic,
    counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`rules.mac.matmul` with counts; shapes as there, counts [M, 8], extremes [M, 2]."""
    depth = a.shape[1]
    leaves = np.empty(max(min(group, depth), 1))
    for i in range(start, stop):
        x, n, e = a[i], counts[i], extremes[i]
        for j in range(b.shape[0]):
            y = b[j]
            acc = flushed(c[i, j], f.flush, f.emin)
            note_peak(acc, e)
            if order in (SEQUENTIAL, ODD_FIRST):
                width = 1 if order == SEQUENTIAL else 2
                for k0 in range(0, depth, width):
                    if k0 + width > depth:
                        acc = add(acc, 0.0, f)  # a short pair holds +0
                    for k in range(min(k0 + width, depth) - 1, k0 - 1, -1):
                        acc = counted_add(
                            acc, counted_product(x[k], y[k], rounds, p, n), f, n, False
                        )
                        note_peak(acc, e)
                        n[STEPS] += 1
            elif order == TWO_CHAINS:
                for k0 in range(0, depth, group):
                    even = odd = 0.0
                    for k in range(k0, min(k0 + group, depth)):
                        term = counted_product(x[k], y[k], rounds, p, n)
                        if (k - k0) % 2:
                            odd = counted_add(odd, term, f, n, False)
                        else:
                            even = counted_add(even, term, f, n, False)
                    acc = counted_add(acc, counted_add(even, odd, f, n, True), f, n, False)
                    note_peak(acc, e)
                    n[STEPS] += 1
            else:
                for k0 in range(0, depth, group):
                    m = min(group, depth - k0)
                    for k in range(m):
                        leaves[k] = counted_product(x[k0 + k], y[k0 + k], rounds, p, n)
                    wide = group
                    while wide > 1:
                        for k in range((m + 1) // 2):
                            if 2 * k + 1 < wide:
                                other = leaves[2 * k + 1] if 2 * k + 1 < m else 0.0
                                leaves[k] = counted_add(leaves[2 * k], other, f, n, True)
                            else:
                                leaves[k] = leaves[2 * k]
                        m, wide = (m + 1) // 2, (wide + 1) // 2
                    term = leaves[0] if f.signed_zero else leaves[0] + 0.0
                    acc = counted_add(acc, term, f, n, False)
                    note_peak(acc, e)
                    n[STEPS] += 1
            out[i, j] = acc


@kernel
def integer(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    low: Any, high: Any, saturate: bool, group: int, pair_low: Any, pair_high: Any,
    counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`numsim.kernels.rules.integer.matmul` with counts; a [M, K], b [K, N], extremes [M, 2] int64.

    Extremes are of the sum before it is clamped or wrapped (where sums wrap: as if none did). BITS
    is 65 where those left int64.
    """
    depth = b.shape[0]
    for i in range(start, stop):
        n, e = counts[i], extremes[i]
        for j in range(b.shape[1]):
            acc = whole = np.int64(c[i, j])
            e[0], e[1] = min(e[0], whole), max(e[1], whole)
            for k0 in range(0, depth, group):
                step = np.int64(0)
                last = min(k0 + group, depth)
                if pair_high > 0:
                    for k in range(k0, last, 2):
                        pair = np.int64(a[i, k]) * np.int64(b[k, j])
                        if k + 1 < depth:
                            pair += np.int64(a[i, k + 1]) * np.int64(b[k + 1, j])
                        clamped = min(max(pair, pair_low), pair_high)
                        if clamped != pair:
                            n[SATURATIONS] += 1
                        step += clamped
                else:
                    for k in range(k0, last):
                        step += np.int64(a[i, k]) * np.int64(b[k, j])
                before = acc
                whole, above, below = limited(acc if saturate else whole, step, LEAST, MOST)
                if above or below:  # more than 64 bits
                    n[BITS] = 65
                    whole = np.int64(MOST) if above else np.int64(LEAST)
                e[0], e[1] = min(e[0], whole), max(e[1], whole)
                acc, above, below = limited(acc, step, low, high)
                if above or below:
                    if saturate:
                        n[SATURATIONS] += 1
                        acc = np.int64(high) if above else np.int64(low)
                    else:
                        n[WRAPS] += 1
                        acc = low + ((acc - low) & (high - low))
                if step != 0 and acc == before:
                    n[SWAMPED] += 1
                n[STEPS] += 1
            out[i, j] = acc


@inline
def carried(limbs: np.ndarray) -> None:
    """Make limbs 0 to LIMBS - 2 digits of 32 bits; the last one keeps the sign."""
    for i in range(ex.LIMBS - 1):
        limbs[i + 1] += limbs[i] >> 32
        limbs[i] &= np.int64(0xFFFFFFFF)


@inline
def noted_width(limbs: np.ndarray, quantum: np.int64, n: Any, extremes: Any) -> None:
    """Note the width and value of a carried accumulator; `quantum`: exponent of its unit."""
    negative = limbs[ex.LIMBS - 1] < 0
    highest = np.int64(-1)
    value = 0.0
    for t in range(ex.LIMBS - 1, -1, -1):
        digit = limbs[t]
        if negative:
            digit = ~digit if t == ex.LIMBS - 1 else digit ^ np.int64(0xFFFFFFFF)
        if digit != 0 and highest < 0:
            highest = 32 * t + top_bit(np.uint64(digit))
        value += np.float64(limbs[t]) * power_of_two(np.int64(32 * t + ex.LOWEST))
    n[BITS] = max(n[BITS], max(highest + ex.LOWEST - quantum + 1, np.int64(0)) + 1)
    note_peak(value, extremes)


@kernel
def exact(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    params: Any, quantum: int, stride: int, signed_zero: bool,
    counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`rules.exact.matmul` with counts; a partial sum follows every `stride` products.

    Column BITS is the width of the largest partial sum in units of ``2**quantum``.
    """
    limbs, begin = np.empty(ex.LIMBS, np.int64), np.empty(ex.LIMBS, np.int64)
    for i in range(start, stop):
        n, e = counts[i], extremes[i]
        for j in range(b.shape[0]):
            limbs[:] = 0
            nan = up = down = False
            minus = signed_zero
            uc = c[i, j]
            mc = uc & np.uint32(0x7FFFFFFF)
            if mc > np.uint32(0x7F800000):
                nan = True
            elif mc == np.uint32(0x7F800000):
                down = (uc >> np.uint32(31)) != 0
                up = not down
            else:
                sc, ec = ex.float32_parts(uc)
                ex.add_term(limbs, sc, ec, (uc >> np.uint32(31)) != 0)
                carried(limbs)
                noted_width(limbs, np.int64(quantum), n, e)
            minus = minus and uc == np.uint32(0x80000000)
            begin[:] = limbs
            for k in range(a.shape[1]):
                ua, ub = a[i, k], b[j, k]
                negative = ((ua ^ ub) >> np.uint32(31)) != 0
                minus = minus and negative
                ma, mb = ua & np.uint32(0x7FFFFFFF), ub & np.uint32(0x7FFFFFFF)
                if ma >= np.uint32(0x7F800000) or mb >= np.uint32(0x7F800000):
                    if max(ma, mb) > np.uint32(0x7F800000) or min(ma, mb) == np.uint32(0):
                        nan = True
                    elif negative:
                        down = True
                    else:
                        up = True
                elif ma != 0 and mb != 0:
                    sa, ea = ex.float32_parts(ua)
                    sb, eb = ex.float32_parts(ub)
                    ex.add_term(limbs, sa * sb, ea + eb, negative)
                    carried(limbs)
                if (k + 1) % stride == 0:
                    noted_width(limbs, np.int64(quantum), n, e)
            n[STEPS] += 1
            changed = (limbs != begin).any()
            code = ex.finish(limbs, params, nan, up, down, minus)
            out[i, j] = code
            if not (nan or up or down):
                magnitude = code & ~np.int64(params.sign_bit)
                if params.inf >= 0 and magnitude == params.inf:
                    n[OVERFLOWS] += 1
                begin_code = ex.finish(begin, params, False, False, False, False)
                if changed and code == begin_code:
                    n[SWAMPED] += 1
