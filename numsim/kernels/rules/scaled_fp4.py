"""The k = 64 block-scaled FP4 dot product of Blackwell: exact runs of 16, then one alignment."""

from __future__ import annotations

import numpy as np

from numsim.kernels.jit import kernel
from numsim.kernels.rules.fused import parts, round_sum, shifted

RUN, STEP = 16, 64


@kernel
def matmul(
    a: np.ndarray, b: np.ndarray,
    a_sig: np.ndarray, a_exp: np.ndarray, a_nan: np.ndarray,
    b_sig: np.ndarray, b_exp: np.ndarray, b_nan: np.ndarray,
    fraction: int, c: np.ndarray, out: np.ndarray, start: int, stop: int, align_bits: int,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C; a [M, K], b [N, K] are twice the FP4 values, integers.

    Scales are split planes [M or N, K / 16]: significand, exponent, whether NaN; `fraction` counts
    the fraction bits of a product of two scale significands. c, out [M, N] float64. Every run of 16
    products is added exactly; times the scale significands it has the exponent of the scales, also
    when it is zero; the runs and the accumulator are cut to `align_bits` and added.
    """
    depth = a.shape[1]
    for i in range(start, stop):
        for j in range(b.shape[0]):
            acc = c[i, j]
            for k0 in range(0, depth, STEP):
                stop_k = min(k0 + STEP, depth)
                largest = np.int64(-(1 << 30))
                nan = np.isnan(acc)
                for s in range(k0 // RUN, (stop_k + RUN - 1) // RUN):
                    nan = nan or a_nan[i, s] or b_nan[j, s]
                    largest = max(largest, np.int64(a_exp[i, s]) + np.int64(b_exp[j, s]))
                if nan:
                    acc = np.nan
                    break
                if np.isinf(acc):
                    continue
                sig, exponent = parts(acc, np.int64(-126))
                if acc != 0:
                    largest = max(largest, exponent)
                total = np.int64(0)
                for s in range(k0 // RUN, (stop_k + RUN - 1) // RUN):
                    partial = np.int64(0)
                    for k in range(s * RUN, min((s + 1) * RUN, depth)):
                        partial += np.int64(a[i, k]) * np.int64(b[j, k])
                    partial *= np.int64(a_sig[i, s]) * np.int64(b_sig[j, s])
                    e = np.int64(a_exp[i, s]) + np.int64(b_exp[j, s])
                    total += shifted(partial, align_bits - 2 - fraction - (largest - e))
                if acc != 0:
                    total += shifted(sig, align_bits - 52 - (largest - exponent))
                acc = round_sum(
                    total, largest - align_bits, np.int64(24), np.int64(-126), np.int64(127),
                    np.int64(2),
                )  # fmt: skip
            out[i, j] = acc
