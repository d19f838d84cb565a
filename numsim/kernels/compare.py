"""Compare two sets of logits in one pass: likelihood, divergence, agreement, squared error.

Logits are [rows, vocab] in float32, rows apart; sums are float64 in a fixed order. Proof:
``tests/test_metrics.py`` compares with NumPy's log-softmax.
"""

from __future__ import annotations

import numpy as np

from numsim.kernels.elementwise.functions import exp64
from numsim.kernels.jit import inline, kernel

NLL, KL, AGREE, SIGNAL, NOISE, DOT, OTHER, LARGEST, RANK = range(9)


@inline
def log64(s: float) -> float:
    """Natural logarithm of a positive float64 by Halley steps on our own exp (no libm)."""
    bits = np.float64(s).view(np.int64)
    exponent = ((bits >> 52) & 2047) - 1023
    m = np.int64((bits & ((1 << 52) - 1)) | (1023 << 52)).view(np.float64)
    y = exponent * 0.6931471805599453 + (m - 1.0) * 0.6931471805599453
    for _ in range(4):
        e = exp64(y)
        y = y + 2.0 * (s - e) / (s + e)
    return y


@kernel
def compare_logits(
    reference: np.ndarray, got: np.ndarray, targets: np.ndarray, out: np.ndarray,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Fill out[row] = (nll, kl, agree, sum a^2, sum (a-b)^2, sum a b, sum b^2, max |a-b|, rank).

    rank: how many of b stand before the place of the largest a; of equal ones the first does.
    reference a and got b are [rows, vocab]; all sums run in float64 in index order over eight
    interleaved partial sums that are added pairwise, so no result depends on threads.
    """
    width = reference.shape[1]
    part = np.empty((6, 8))
    p, q = np.empty(width), np.empty(width)
    for row in range(start, stop):
        a, b = reference[row], got[row]
        top_a, top_b = np.float64(a[0]), np.float64(b[0])
        best_a = best_b = 0
        for j in range(1, width):
            if a[j] > top_a:
                top_a, best_a = np.float64(a[j]), j
            if b[j] > top_b:
                top_b, best_b = np.float64(b[j]), j
        for j in range(width):
            p[j] = exp64(np.float64(a[j]) - top_a)
        for j in range(width):
            q[j] = exp64(np.float64(b[j]) - top_b)
        part[:] = 0.0
        largest = 0.0
        for j in range(width):
            x, y = np.float64(a[j]), np.float64(b[j])
            lane = j & 7
            part[0, lane] += p[j]
            part[1, lane] += q[j]
            part[2, lane] += x * x
            part[3, lane] += (x - y) * (x - y)
            part[4, lane] += x * y
            part[5, lane] += y * y
            difference = abs(x - y)
            if difference > largest or difference != difference:  # NaN stays
                largest = difference
        total = np.empty(6)
        for s in range(6):
            v = part[s]
            total[s] = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]))
        log_a, log_b = top_a + log64(total[0]), top_b + log64(total[1])
        kl = 0.0
        for j in range(width):
            gap = (np.float64(a[j]) - log_a) - (np.float64(b[j]) - log_b)
            kl += p[j] / total[0] * gap
        out[row, 0] = log_b - np.float64(b[targets[row]])
        out[row, 1] = kl
        out[row, 2] = 1.0 if best_a == best_b else 0.0
        for s in range(2, 6):
            out[row, s + 1] = total[s]
        out[row, 7] = largest
        rank, mine = 0, b[best_a]
        for j in range(width):
            if b[j] > mine or (b[j] == mine and j < best_a):
                rank += 1
        out[row, 8] = rank if mine == mine else width  # NaN has no place


@kernel
def compare_values(
    reference: np.ndarray, got: np.ndarray, out: np.ndarray, start: int, stop: int
) -> None:
    """Fill out[row] = (sum a^2, sum (a-b)^2, sum a b, sum b^2, max |a-b|, max |a|, sum b-a).

    Rows of reference a (any float) and got b (float32), [rows, width]. The last sum
    only where `out` has a seventh column.
    """
    width = reference.shape[1]
    for row in range(start, stop):
        a, b = reference[row], got[row]
        signal = noise = dot = other = largest = top = signed = 0.0
        for j in range(width):
            x, y = np.float64(a[j]), np.float64(b[j])
            signal += x * x
            noise += (x - y) * (x - y)
            dot += x * y
            other += y * y
            signed += y - x
            difference = abs(x - y)
            if difference > largest or difference != difference:  # NaN stays
                largest = difference
            top = max(top, abs(x))
        out[row, 0], out[row, 1], out[row, 2] = signal, noise, dot
        out[row, 3], out[row, 4], out[row, 5] = other, largest, top
        if out.shape[1] > 6:
            out[row, 6] = signed
