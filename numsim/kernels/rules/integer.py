"""Integer dot products of any accumulator width: wrap, saturate at every step, or report.

This is the definition of the rule `IntSum`, and counts what is lost where it is asked to. Operands
are integer codes, a [M, K] by b [K, N], as they lie in memory; a row of results is computed at a
time. All arithmetic is int64, and a sum that leaves it is told by its sign. `tests/oracle_mac.py`
states the rule in Python's integers; recordings of EPYC agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules.counts import BITS, SATURATIONS, STEPS, SWAMPED, WRAPS, row

WRAP, SATURATE, RAISE = range(3)
LEAST, MOST = -(1 << 63), (1 << 63) - 1


@inline
def limited(acc: Any, step: Any, low: Any, high: Any) -> tuple[Any, Any, Any]:
    """Return acc + step modulo 2**64, and whether the sum is above `high`, below `low`."""
    total = np.int64(acc + step)
    lost = ((acc ^ total) & (step ^ total)) < 0  # the sign is wrong: beyond 64 bits
    return total, (step > 0 if lost else total > high), (step < 0 if lost else total < low)


@inline
def note_step(
    acc: Any, step: Any, whole: Any, low: Any, high: Any, saturates: bool, n: Any, extremes: Any
) -> Any:
    """Count the addition of a step to an accumulator, which may hold more than it keeps.

    `whole` is the accumulator as if nothing wrapped; the new one is returned. Extremes are of the
    sum before it is clamped or reduced; BITS is 65 where that leaves int64.
    """
    if not saturates:
        acc = low + ((acc - low) & (high - low))
    whole, above, below = limited(acc if saturates else whole, step, LEAST, MOST)
    if above or below:
        n[BITS] = 65
        whole = np.int64(MOST) if above else np.int64(LEAST)
    extremes[0], extremes[1] = min(extremes[0], whole), max(extremes[1], whole)
    _, above, below = limited(acc, step, low, high)
    if above or below:
        n[SATURATIONS if saturates else WRAPS] += 1
    stays = (above and acc == high) or (below and acc == low)
    if not saturates:
        stays = step & (high - low) == 0
    if step != 0 and stays:
        n[SWAMPED] += 1
    return whole


@kernel
def matmul(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    low: int, high: int, overflow: int, group: int, pair_low: int, pair_high: int,
    found: np.ndarray, counts: Any = None, extremes: Any = None,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C in increasing k; a [M, K], b [K, N], c and out int64.

    A step adds the exact sum of `group` products; saturation clamps after every step. Where
    pair_high > 0 the sums of two neighbouring products are clamped to that range first. With
    RAISE the first overflow (row, column, k) of these rows goes to `found`, whose first entry is
    -1 while there is none. WRAP leaves the residue to the caller; else a step's sum fits int64.
    Counts are described in `numsim.kernels.rules.counts`.
    """
    depth, columns = b.shape
    step = np.empty(columns, np.int64)
    whole = np.empty(columns if counts is not None else 0, np.int64)
    for i in range(start, stop):
        total, n, e = out[i], row(counts, i), row(extremes, i)
        total[:] = c[i]
        if counts is not None:
            for j in range(columns):
                whole[j] = total[j]
                e[0], e[1] = min(e[0], whole[j]), max(e[1], whole[j])
        for k0 in range(0, depth, group):
            step[:] = 0
            if pair_high > 0:
                for k in range(k0, min(k0 + group, depth), 2):
                    x0 = np.int64(a[i, k])
                    x1 = np.int64(a[i, k + 1]) if k + 1 < depth else np.int64(0)
                    last = min(k + 1, depth - 1)
                    for j in range(columns):
                        pair = x0 * np.int64(b[k, j]) + x1 * np.int64(b[last, j])
                        clamped = min(max(pair, pair_low), pair_high)
                        step[j] += clamped
                        if counts is not None:
                            n[SATURATIONS] += clamped != pair
            else:
                for k in range(k0, min(k0 + group, depth)):
                    x0 = np.int64(a[i, k])
                    for j in range(columns):
                        step[j] += x0 * np.int64(b[k, j])
            if counts is not None:
                for j in range(columns):
                    whole[j] = note_step(
                        total[j], step[j], whole[j], low, high, overflow == SATURATE, n, e
                    )
                n[STEPS] += columns
            if overflow == WRAP:
                for j in range(columns):
                    total[j] += step[j]
                continue
            for j in range(columns):
                new, above, below = limited(total[j], step[j], low, high)
                if overflow == SATURATE:
                    new = high if above else (low if below else new)
                elif found[0] < 0 and (above or below):
                    found[0], found[1], found[2] = i, j, min(k0 + group, depth) - 1
                total[j] = new
