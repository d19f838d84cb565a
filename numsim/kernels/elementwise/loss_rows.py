"""Cross-entropy and binary cross-entropy with their gradients, rows [R, C] or elements.

Float64 inside, one rounding to the type of the logits. Proof: ``tests/nn`` compares them with
central differences and with recorded gradients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise.activations import (
    sigmoid_of,
)
from numsim.kernels.elementwise.functions import (
    FloatArray,
    add_to_lanes,
    combine,
    exp64,
    largest_of,
)
from numsim.kernels.elementwise.logarithm import log1p64, log64
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import kernel


@kernel
def cross_entropy_rows(
    logits: FloatArray, target: NDArray[np.int64], ignore: int, losses: FloatArray,
    gradient: FloatArray, count: float, start: int, stop: int,
) -> None:  # fmt: skip
    """Rows start..stop of logits [R, C]: the loss of each, and its gradient over `count`."""
    wide_vectors()
    width = logits.shape[1]
    e, lanes = np.empty(width), np.empty(8)
    for row in range(start, stop):
        losses[row] = 0.0
        if target[row] == ignore:
            for j in range(width):
                gradient[row, j] = 0.0
            continue
        scores = logits[row]
        top = largest_of(scores, lanes)
        for j in range(width):
            e[j] = exp64(np.float64(scores[j]) - top)
        lanes[:] = 0.0
        add_to_lanes(e, lanes)
        total = combine(lanes)
        at = target[row]
        losses[row] = log64(total) - (np.float64(logits[row, at]) - top)
        for j in range(width):
            gradient[row, j] = e[j] / total / count
        gradient[row, at] = (e[at] / total - 1.0) / count


@kernel
def bce_range(
    logits: FloatArray, target: FloatArray, losses: FloatArray, gradient: FloatArray, count: float,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Elements start..stop: max(x, 0) - x t + ln(1 + e**-|x|), and its gradient over `count`."""
    for i in range(start, stop):
        v, t = np.float64(logits[i]), np.float64(target[i])
        losses[i] = (v if v > 0.0 else 0.0) - v * t + log1p64(exp64(-(v if v > 0.0 else -v)))
        gradient[i] = (sigmoid_of(v) - t) / count
