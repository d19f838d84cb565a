"""What operators of integer units share: checks of what they take."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from numsim.arguments import as_array
from numsim.errors import NumsimError

Ints = Any  # NDArray[np.int64]: NumPy types the results of its functions as anything


def integers(x: ArrayLike, name: str, bits: int = 32) -> Ints:
    """Return integers [..., n] of so many bits as int64; refuse anything else."""
    array = as_array(name, x)
    if array.dtype.kind not in "iu":
        raise NumsimError(f"{name} takes integers; got {array.dtype}")
    if array.ndim and array.shape[-1] == 0:
        raise NumsimError(f"{name}: rows hold at least one number; got {array.shape}")
    low, high = int(array.min()), int(array.max())
    if not -(1 << (bits - 1)) <= low <= high < 1 << (bits - 1):
        raise NumsimError(f"{name} takes integers of {bits} bits; got {low} to {high}")
    return array.astype(np.int64)


def positive(value: float, name: str) -> float:
    """Return a positive, finite scale."""
    number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    if not (number and 2.0**-149 <= value <= float(np.finfo(np.float32).max)):
        raise NumsimError(f"{name} is a positive number of float32; got {value!r:.40}")
    return float(value)
