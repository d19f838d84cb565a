"""Integer dot products of any accumulator width: wrap, saturate at every step, or report."""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.jit import inline, kernel

WRAP, SATURATE, RAISE = range(3)


@inline
def limited(acc: Any, step: Any, low: Any, high: Any) -> tuple[Any, Any, Any]:
    """Return acc + step modulo 2**64, and whether the sum is above `high`, below `low`."""
    total = np.int64(acc + step)
    lost = ((acc ^ total) & (step ^ total)) < 0  # the sign is wrong: beyond 64 bits
    return total, (step > 0 if lost else total > high), (step < 0 if lost else total < low)


@kernel
def matmul(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    low: int, high: int, overflow: int, group: int, pair_low: int, pair_high: int,
    found: np.ndarray,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C in increasing k; a [M, K], b [K, N], c and out int64.

    A step adds the exact sum of `group` products; saturation clamps after every step. Where
    pair_high > 0 the sums of two neighbouring products are clamped to that range first. With
    RAISE the first overflow (row, column, k) of these rows goes to `found`, whose first entry is
    -1 while there is none. WRAP leaves the residue to the caller; else a step's sum fits int64.
    """
    depth, columns = b.shape
    step = np.empty(columns, np.int64)
    for i in range(start, stop):
        row = out[i]
        row[:] = c[i]
        for k0 in range(0, depth, group):
            step[:] = 0
            if pair_high > 0:
                for k in range(k0, min(k0 + group, depth), 2):
                    x0 = np.int64(a[i, k])
                    x1 = np.int64(a[i, k + 1]) if k + 1 < depth else np.int64(0)
                    last = min(k + 1, depth - 1)
                    for j in range(columns):
                        pair = x0 * np.int64(b[k, j]) + x1 * np.int64(b[last, j])
                        step[j] += min(max(pair, pair_low), pair_high)
            else:
                for k in range(k0, min(k0 + group, depth)):
                    x0 = np.int64(a[i, k])
                    for j in range(columns):
                        step[j] += x0 * np.int64(b[k, j])
            if overflow == WRAP:
                for j in range(columns):
                    row[j] += step[j]
                continue
            for j in range(columns):
                total, above, below = limited(row[j], step[j], low, high)
                if overflow == SATURATE:
                    total = high if above else (low if below else total)
                elif found[0] < 0 and (above or below):
                    found[0], found[1], found[2] = i, j, min(k0 + group, depth) - 1
                row[j] = total
