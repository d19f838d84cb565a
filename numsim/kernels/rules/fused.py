"""The aligned dot products of tensor cores, for any group, width and operand format.

This is the definition of the rule `Fused`, and counts what is lost where it is asked to. One block:
every product is cut to `align_bits` fraction bits below the largest exponent, the pieces are added
exactly, and rounded once; how the accumulator joins is the unit's `kind`. Operands are planes as in
`align`, a [M, K] by b [N, K], the transposed right operand. `tests/oracle_mac.py` states the rule
in fractions; recordings of V100 to B200 and MMA-Sim agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.convert.round import RNE
from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules.align import (
    JOINS,
    LATE,
    NO_TERM,
    Block,
    Terms,
    counted_block,
    cut,
    note_result,
    parts,
    round_sum,
    scan,
    total_of,
    with_special,
)
from numsim.kernels.rules.counts import COLUMNS, GAP, SWAMPED, note_peak, row


@inline
def joined(total: Any, largest: Any, acc: Any, r: Block) -> Any:
    """Round the products' sum plus an accumulator that took part in `largest`."""
    if acc != 0:
        sig, exponent = parts(acc, np.int64(r.emin))
        total += cut(sig, r.align_bits - 52 - (largest - exponent), r)
    return round_sum(
        total, largest - r.align_bits, np.int64(r.precision), np.int64(r.emin), np.int64(r.emax),
        np.int64(r.mode),
    )  # fmt: skip


@inline
def add_rounded(x: Any, y: Any, precision: int, emin: int, emax: int) -> Any:
    """Return x + y rounded to nearest even; both have at most 24 bits, so TwoSum decides."""
    total = x + y
    if not np.isfinite(total) or total == 0.0:
        return total
    back = total - x
    error = (x - (total - back)) + (y - back)
    bits = np.float64(total).view(np.int64)
    if error != 0.0 and bits & 1 == 0:  # to odd: the later rounding sees that it is inexact
        bits += 1 if (error > 0) == (total > 0) else -1
    sig, exponent = parts(np.int64(bits).view(np.float64), np.int64(-1022))
    return round_sum(
        sig, exponent - 52, np.int64(precision), np.int64(emin), np.int64(emax), np.int64(RNE)
    )


@inline
def halves(a: Terms, b: Terms, k0: int, k1: int, acc: Any, r: Block, n: Any) -> Any:
    """Return the accumulator after a block whose products are added in two halves."""
    value = 0.0
    for phase in range(2):
        largest, nan, up, down = scan(a, b, k0, k1, 2, phase, r)
        value, special = with_special(value, nan, up, down)
        if special:
            continue
        if value != 0:
            largest = max(largest, parts(value, np.int64(r.emin))[1])
        if largest != NO_TERM:
            largest = max(largest, np.int64(r.min_exponent))
            total = total_of(a, b, k0, k1, 2, phase, largest, r, n)
            before = value
            value = joined(total, largest, value, r)
            if n is not None:
                if before != 0:
                    n[GAP] = max(n[GAP], largest - parts(before, np.int64(r.emin))[1])
                if total != 0 and value == before:
                    n[SWAMPED] += 1
    after = add_rounded(value, acc, r.out_precision, r.emin, r.emax)
    if n is not None:
        note_result(acc, after, value != 0, n)
    return after


@inline
def late(a: Terms, b: Terms, k0: int, k1: int, acc: Any, r: Block, n: Any) -> Any:
    """Return the accumulator after a block whose rounded sum is added to it."""
    largest, nan, up, down = scan(a, b, k0, k1, 0, 0, r)
    total = np.int64(0)
    value, special = with_special(0.0, nan, up, down)
    if not special and largest != NO_TERM:
        largest = max(largest, np.int64(r.min_exponent))
        total = total_of(a, b, k0, k1, 0, 0, largest, r, n)
        value = joined(total, largest, 0.0, r)
    after = add_rounded(value, acc, r.out_precision, r.emin, r.emax)
    if n is not None:
        note_result(acc, after, total != 0, n)
    return after


@inline
def joining(a: Terms, b: Terms, k0: int, k1: int, acc: Any, r: Block, n: Any) -> Any:
    """Return the accumulator after a block in whose alignment it takes part."""
    largest, nan, up, down = scan(a, b, k0, k1, 0, 0, r)
    value, special = with_special(acc, nan, up, down)
    if special:
        return value
    exponent = np.int64(NO_TERM)
    if acc != 0:
        exponent = parts(acc, np.int64(r.emin))[1]
        largest = max(largest, exponent)
    if largest == NO_TERM:
        return 0.0
    largest = max(largest, np.int64(r.min_exponent))
    total = total_of(a, b, k0, k1, 0, 0, largest, r, n)
    after = joined(total, largest, acc, r)
    if n is not None:
        if acc != 0:
            n[GAP] = max(n[GAP], largest - exponent)
        note_result(acc, after, total != 0, n)
    return after


@kernel
def matmul(
    a_sig: np.ndarray, a_exp: np.ndarray, a_cls: np.ndarray,
    b_sig: np.ndarray, b_exp: np.ndarray, b_cls: np.ndarray,
    c: np.ndarray, out: np.ndarray, start: int, stop: int, r: Block,
    counts: Any = None, extremes: Any = None,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C; planes a [M, K], b [N, K] (transposed), c, out float64.

    NaN results are stored as NaN; the caller writes the unit's bit pattern. Counts are described in
    `numsim.kernels.rules.counts`.
    """
    n_columns, depth = b_sig.shape
    unused = np.zeros(COLUMNS, np.int64)
    for i in range(start, stop):
        a, n, e = Terms(a_sig[i], a_exp[i], a_cls[i]), row(counts, i), row(extremes, i)
        for j in range(n_columns):
            b, acc = Terms(b_sig[j], b_exp[j], b_cls[j]), c[i, j]
            note_peak(acc, e)
            for k0 in range(0, depth, r.group):
                k1 = min(k0 + r.group, depth)
                into = counted_block(a, b, k0, k1, acc, r, n, unused)
                if r.kind == JOINS:
                    acc = joining(a, b, k0, k1, acc, r, into)
                elif r.kind == LATE:
                    acc = late(a, b, k0, k1, acc, r, into)
                else:
                    acc = halves(a, b, k0, k1, acc, r, into)
                note_peak(acc, e)
            out[i, j] = acc
