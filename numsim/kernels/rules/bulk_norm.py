"""RISC-V's bulk normalisation: sums of many products, normalised once, always rounded to odd.

This is the definition of the rule `BulkNorm`, and counts what is lost where it is asked to.
Operands are planes as in `align`, a [M, K] by b [N, K], the transposed right operand.
`tests/oracle_mac.py` states the rule in integers; spike's model agrees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules.align import (
    NO_TERM,
    Block,
    Terms,
    counted_block,
    note_cut,
    round_sum,
    scan,
    shifted,
    with_special,
)
from numsim.kernels.rules.counts import COLUMNS, OVERFLOWS, note_peak, row
from numsim.kernels.rules.mac import Arithmetic, add


@inline
def jammed(value: np.int64, left: np.int64) -> np.int64:
    """Return ``value * 2**left`` cut toward zero; what is cut is ORed into the last bit."""
    kept = shifted(value, left)
    if left >= 0 or value == 0:
        return kept
    lost = left < -62 or kept << -left != value
    if lost and kept & 1 == 0:
        kept += -1 if value < 0 else 1
    return kept


@inline
def products(a: Terms, b: Terms, k0: int, k1: int, r: Block, n: Any) -> Any:
    """Return the sum of a block's products as float32, rounded to odd."""
    largest, nan, up, down = scan(a, b, k0, k1, 0, 0, r)
    value, special = with_special(0.0, nan, up, down)
    if special or largest == NO_TERM:
        return value
    total = np.int64(0)
    for k in range(k0, k1):
        product = np.int64(a.sig[k]) * np.int64(b.sig[k])
        if product != 0:
            gap = largest - (np.int64(a.exp[k]) + np.int64(b.exp[k]))
            left = r.align_bits - r.fraction - gap
            kept = jammed(product, left)
            total += kept
            if n is not None:
                note_cut(product, kept, left, gap, n)
    value = round_sum(
        total, largest - r.align_bits, np.int64(r.precision), np.int64(r.emin), np.int64(r.emax),
        np.int64(r.mode),
    )  # fmt: skip
    if n is not None and not np.isfinite(value):
        n[OVERFLOWS] += 1
    return value


@kernel
def matmul(
    a_sig: np.ndarray, a_exp: np.ndarray, a_cls: np.ndarray,
    b_sig: np.ndarray, b_exp: np.ndarray, b_cls: np.ndarray,
    c: np.ndarray, out: np.ndarray, start: int, stop: int, r: Block, f: Arithmetic,
    counts: Any = None, extremes: Any = None,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C; planes a [M, K], b [N, K] (transposed), c, out float64.

    `f`: how the rounded sum and the accumulator are added. NaN results are stored as NaN; the
    caller writes the unit's bit pattern. Counts are described in `numsim.kernels.rules.counts`.
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
                acc = add(acc, products(a, b, k0, k1, r, into), f, into, False)
                note_peak(acc, e)
            out[i, j] = acc
