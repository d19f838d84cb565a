"""Powers with an exponent that is no integer, the same on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.compare import log64
from numsim.kernels.elementwise.functions import exp64
from numsim.kernels.jit import kernel


@kernel
def _power(x: np.ndarray, exponent: float, out: np.ndarray) -> None:
    for i in range(x.size):
        out[i] = exp64(exponent * log64(x[i]))


def power64(x: Any, exponent: float) -> Any:
    """Return x**exponent of positive float64 [n], to about 1e-14.

    >>> power64(np.array([4.0, 9.0]), 0.0), power64(np.array([4.0, 9.0]), 1.0)
    (array([1., 1.]), array([4., 9.]))
    """
    if exponent == 0.0:
        return np.ones_like(x)
    if exponent == 1.0:
        return np.copy(x)
    out = np.empty_like(x)
    _power(x, exponent, out)
    return out
