"""The divergence that chooses a clipping threshold from a histogram."""

from __future__ import annotations

import numpy as np

from numsim.kernels.compare import log64
from numsim.kernels.jit import kernel


@kernel
def clip_divergence(counts: np.ndarray, levels: np.ndarray) -> float:
    """KL(P || Q) in nats of a histogram clipped to its first bins, infinite where Q misses P.

    counts[j] of all bins; levels[j] for the bins that stay, non-decreasing: bins of one level
    cannot be told apart. P: the counts, what is clipped in the last bin that stays. Q: the mass of
    each level spread evenly over its bins that have any.
    """
    kept = len(levels)
    clipped = np.int64(0)
    for j in range(kept, len(counts)):
        clipped += counts[j]
    inside = np.int64(0)
    for j in range(kept):
        inside += counts[j]
    if inside == 0 or (clipped > 0 and counts[kept - 1] == 0):
        return np.inf
    divergence = 0.0
    first = 0
    while first < kept:
        last = first
        mass = filled = np.int64(0)
        while last < kept and levels[last] == levels[first]:
            mass += counts[last]
            filled += 1 if counts[last] > 0 else 0
            last += 1
        for j in range(first, last):
            count = counts[j] + (clipped if j == kept - 1 else 0)
            if count > 0:
                p = np.float64(count) / np.float64(inside + clipped)
                q = np.float64(mass) / np.float64(filled) / np.float64(inside)
                divergence += p * log64(p / q)
        first = last
    return divergence
