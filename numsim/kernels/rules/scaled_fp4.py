"""The k = 64 block-scaled FP4 dot product of Blackwell: exact runs of 16, then one alignment.

This is the definition of the rule `ScaledFp4`, and counts what is lost where it is asked to.
Operands are twice the FP4 values, int8, a [M, K] by b [N, K], the transposed right operand; scales
come as significands and exponents of every run. `tests/oracle_mac.py` states the rule in fractions;
MMA-Sim agrees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.jit import kernel
from numsim.kernels.rules.align import note_cut, note_result, parts, round_sum, shifted
from numsim.kernels.rules.counts import (
    GAP,
    STEPS,
    note_peak,
    row,
)

RUN, STEP = 16, 64
NO_TERM = -4000  # exponent of a scale of zero: below any least one


@kernel
def matmul(
    a: np.ndarray, b: np.ndarray,
    a_sig: np.ndarray, a_exp: np.ndarray, a_nan: np.ndarray,
    b_sig: np.ndarray, b_exp: np.ndarray, b_nan: np.ndarray,
    fraction: int, c: np.ndarray, out: np.ndarray, start: int, stop: int, align_bits: int,
    least: int, counts: Any = None, extremes: Any = None,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C; a [M, K], b [N, K] are twice the FP4 values, integers.

    Scales are split planes [M or N, K / 16]: significand, exponent, whether NaN; `fraction` counts
    the fraction bits of a product of two scale significands. c, out [M, N] float64. Every run of 16
    products is added exactly; times the scale significands it has the exponent of the scales, also
    where it cancels to zero, but none where all products are zero. The runs and the accumulator are
    cut to `align_bits` below the largest exponent, which is at least `least`, and added. Counts are
    described in `numsim.kernels.rules.counts`; their addends are the runs.
    """
    depth = a.shape[1]
    for i in range(start, stop):
        n, e = row(counts, i), row(extremes, i)
        for j in range(b.shape[0]):
            acc = c[i, j]
            note_peak(acc, e)
            for k0 in range(0, depth, STEP):
                if counts is not None:
                    n[STEPS] += 1
                first, last = k0 // RUN, (min(k0 + STEP, depth) + RUN - 1) // RUN
                largest = np.int64(least)
                nan = np.isnan(acc)
                for s in range(first, last):
                    nan = nan or a_nan[i, s] or b_nan[j, s]
                    some = False
                    for k in range(s * RUN, min((s + 1) * RUN, depth)):
                        some |= (a[i, k] != 0) & (b[j, k] != 0)
                    if some:
                        largest = max(largest, np.int64(a_exp[i, s]) + np.int64(b_exp[j, s]))
                if nan:
                    acc = np.nan
                if not np.isfinite(acc):
                    continue
                sig, exponent = parts(acc, np.int64(-126))
                if acc != 0:
                    largest = max(largest, exponent)
                total = np.int64(0)
                for s in range(first, last):
                    partial = np.int64(0)
                    for k in range(s * RUN, min((s + 1) * RUN, depth)):
                        partial += np.int64(a[i, k]) * np.int64(b[j, k])
                    partial *= np.int64(a_sig[i, s]) * np.int64(b_sig[j, s])
                    gap = largest - (np.int64(a_exp[i, s]) + np.int64(b_exp[j, s]))
                    left = align_bits - 2 - fraction - gap
                    kept = shifted(partial, left)
                    if counts is not None:
                        note_cut(partial, kept, left, gap, n)
                    total += kept
                before, products = acc, total
                if acc != 0:
                    total += shifted(sig, align_bits - 52 - (largest - exponent))
                    if counts is not None:
                        n[GAP] = max(n[GAP], largest - exponent)
                acc = round_sum(
                    total, largest - align_bits, np.int64(24), np.int64(-126), np.int64(127),
                    np.int64(2),
                )  # fmt: skip
                if counts is not None:
                    note_result(before, acc, products != 0, n)
                note_peak(acc, e)
            out[i, j] = acc
