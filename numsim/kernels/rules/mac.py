"""Multiply-add in any small float format: one rounding a step, any order, exact in between.

This is the definition of the rule `Mac`, and counts what is lost where it is asked to. Operands are
float64 values of at most 24 bits, a [M, K] by b [N, K], the transposed right operand. Products are
exact in float64. A sum is rounded to odd at 53 bits first (TwoSum finds the lost part), so that
rounding it to the accumulator's format is rounding the exact sum. `tests/oracle_mac.py` states the
rule in fractions; recordings of TestFloat, EPYC and MI100 agree.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numsim.kernels.convert.round import RDN, RNA, RNE, RUP, round_quotient, top_bit
from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules.align import parts, power_of_two
from numsim.kernels.rules.counts import (
    CUT,
    GAP,
    OVERFLOWS,
    SATURATIONS,
    STEPS,
    SWAMPED,
    note_peak,
    row,
)

INFINITE, NOT_A_NUMBER, LARGEST = range(3)
SEQUENTIAL, TREE, ODD_FIRST, TWO_CHAINS = range(4)
ORDERS = ("sequential", "tree", "odd_first", "two_chains")


class Arithmetic(NamedTuple):
    """Precision, exponent range and rounding of one kind of result."""

    precision: int
    emin: int
    emax: int
    mode: int
    flush: bool  # subnormal results become zero
    to_inf: bool  # overflow is infinite in every rounding mode
    top: float  # largest finite magnitude, of positive and of negative values
    bottom: float
    beyond: int = 0  # what lies beyond: INFINITE, NOT_A_NUMBER or LARGEST
    minus_zero: bool = True  # the format has -0
    unbounded: bool = False  # flush: by the exponent that rounding without a limit gives
    signed_zero: bool = True  # -0 of a tree's sum reaches the accumulator


@inline
def rounded(x: Any, f: Arithmetic) -> Any:
    """Round a finite float64 (exact, or rounded to odd) to a precision, however large."""
    sig, exponent = parts(x, np.int64(-1022))
    negative = sig < 0
    e = exponent if f.flush and f.unbounded else max(exponent, np.int64(f.emin))
    shift = e - exponent + 53 - f.precision
    m = round_quotient(
        np.uint64(abs(sig)), min(shift, np.int64(127)), negative, np.int64(0), np.int64(f.mode),
        np.uint64(0), np.int64(0), np.int64(0),
    )  # fmt: skip
    scale = e - (f.precision - 1)
    if m == np.uint64(0) or (f.flush and top_bit(m) + scale < f.emin):
        return -0.0 if negative else 0.0
    half = scale // 2
    value = np.float64(m) * power_of_two(half) * power_of_two(scale - half)
    return -value if negative else value


@inline
def in_range(x: Any, f: Arithmetic) -> Any:
    """Return a value, or what a format has in place of one beyond its range, of Inf and of -0."""
    negative = np.signbit(x)
    limit = f.bottom if negative else f.top
    if abs(x) <= limit:
        return 0.0 if x == 0.0 and negative and not f.minus_zero else x
    if np.isnan(x):
        return x
    away = f.to_inf or f.mode in (RNE, RNA) or f.mode == (RDN if negative else RUP)
    value = limit
    if f.beyond != LARGEST and (away or np.isinf(x)):
        value = np.inf if f.beyond == INFINITE else np.nan
    return -value if negative else value


@inline
def round_to(x: Any, f: Arithmetic) -> Any:
    """Round a float64 (exact, or rounded to odd) to a format; overflow as IEEE 754 says."""
    return in_range(rounded(x, f) if np.isfinite(x) and x != 0.0 else x, f)


@inline
def sum_to_odd(x: Any, y: Any) -> Any:
    """Return x + y, rounded to odd where float64 cannot hold it."""
    total = x + y
    if not np.isfinite(total) or total == 0.0:
        return total
    back = total - x
    error = (x - (total - back)) + (y - back)
    bits = np.float64(total).view(np.int64)
    if error != 0.0 and bits & 1 == 0:  # toward the lost part
        bits += 1 if (error > 0) == (total > 0) else -1
    return np.int64(bits).view(np.float64)


@inline
def note_range(exact: Any, value: Any, f: Arithmetic, n: Any) -> None:
    """Count a finite number that left the range: to Inf or NaN, or stopped at the largest value."""
    limit = f.bottom if exact < 0 else f.top
    if not np.isfinite(value):
        n[OVERFLOWS] += 1
    elif abs(exact) > limit and (
        abs(exact) >= power_of_two(np.int64(f.emax + 1)) or abs(rounded(exact, f)) > limit
    ):
        n[SATURATIONS] += 1


@inline
def add(x: Any, y: Any, f: Arithmetic, n: Any, both: bool) -> Any:
    """Return x + y rounded once to `f`; `both`: x is an addend like y, not the accumulator."""
    total = sum_to_odd(x, y)
    if total == 0.0:
        if x == 0.0 and y == 0.0 and np.signbit(x) == np.signbit(y):
            value = in_range(x, f)
        else:
            value = in_range(-0.0, f) if f.mode == RDN else 0.0
    else:
        value = round_to(total, f)
    if n is not None and np.isfinite(x) and np.isfinite(y):
        note_range(total, value, f, n)
        if (y != 0 and value == x) or (both and x != 0 and value == y):
            n[SWAMPED] += 1
        if x != 0 and y != 0:
            gap = parts(x, np.int64(-1022))[1] - parts(y, np.int64(-1022))[1]
            n[GAP] = max(n[GAP], abs(gap))
    return value


@inline
def product(x: Any, y: Any, rounds: bool, f: Arithmetic, n: Any) -> Any:
    """Return x * y, exact or rounded to `f`."""
    exact = x * y
    if not rounds:
        return exact
    value = round_to(exact, f)
    if n is not None and np.isfinite(exact):
        note_range(exact, value, f, n)
        if value != exact:
            n[CUT] += 1
            if value == 0:
                n[SWAMPED] += 1
    return value


@inline
def flushed(x: Any, flush: bool, emin: int) -> Any:
    """Return x, or a zero of its sign where it is subnormal and the unit flushes."""
    if flush and abs(x) < power_of_two(np.int64(emin)):
        return -0.0 if np.signbit(x) else 0.0
    return x


@kernel
def matmul(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    order: int, group: int, rounds: bool, p: Arithmetic, f: Arithmetic,
    counts: Any = None, extremes: Any = None,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C; a [M, K], b [N, K], c, out [M, N], all float64 values.

    `p` is the product's arithmetic (used where `rounds`), `f` the accumulator's. NaN is positive.
    Orders: SEQUENTIAL one chain; TREE neighbours pairwise within a group (a short one filled with
    +0), then the accumulator; ODD_FIRST a chain that takes k + 1 before k; TWO_CHAINS even and odd
    k of a group from zero, their sum, then the accumulator. Counts are described in
    `numsim.kernels.rules.counts`.
    """
    depth = a.shape[1]
    leaves = np.empty(max(min(group, depth), 1))
    for i in range(start, stop):
        x, n, e = a[i], row(counts, i), row(extremes, i)
        for j in range(b.shape[0]):
            y = b[j]
            acc = flushed(c[i, j], f.flush, f.emin)
            note_peak(acc, e)
            if order == SEQUENTIAL:
                for k in range(depth):
                    acc = add(acc, product(x[k], y[k], rounds, p, n), f, n, False)
                    note_peak(acc, e)
            elif order == ODD_FIRST:
                for k in range(0, depth, 2):
                    if k + 1 < depth:
                        acc = add(acc, product(x[k + 1], y[k + 1], rounds, p, n), f, n, False)
                        note_peak(acc, e)
                    else:
                        acc = add(acc, 0.0, f, None, False)  # a short pair holds +0
                    acc = add(acc, product(x[k], y[k], rounds, p, n), f, n, False)
                    note_peak(acc, e)
            elif order == TWO_CHAINS:
                for k0 in range(0, depth, group):
                    even = odd = 0.0
                    for k in range(k0, min(k0 + group, depth)):
                        term = product(x[k], y[k], rounds, p, n)
                        if (k - k0) % 2:
                            odd = add(odd, term, f, n, False)
                        else:
                            even = add(even, term, f, n, False)
                    acc = add(acc, add(even, odd, f, n, True), f, n, False)
                    note_peak(acc, e)
            else:
                for k0 in range(0, depth, group):
                    m = min(group, depth - k0)
                    for k in range(m):
                        leaves[k] = product(x[k0 + k], y[k0 + k], rounds, p, n)
                    width = group  # a short group is filled with +0
                    while width > 1:
                        for k in range((m + 1) // 2):
                            if 2 * k + 1 < m:
                                leaves[k] = add(leaves[2 * k], leaves[2 * k + 1], f, n, True)
                            elif 2 * k + 1 < width:
                                leaves[k] = add(leaves[2 * k], 0.0, f, n, True)
                            else:
                                leaves[k] = leaves[2 * k]
                        m, width = (m + 1) // 2, (width + 1) // 2
                    term = leaves[0] if f.signed_zero else leaves[0] + 0.0
                    acc = add(acc, term, f, n, False)
                    note_peak(acc, e)
            out[i, j] = np.nan if np.isnan(acc) else acc
        if counts is not None:
            grouped = order in (TREE, TWO_CHAINS)
            n[STEPS] += b.shape[0] * (-(-depth // group) if grouped else depth)
