"""What operators of integer units share: checks of what they take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from numsim.errors import NumsimError

Ints = Any  # NDArray[np.int64]: NumPy types the results of its functions as anything


def integers(x: ArrayLike, name: str) -> Ints:
    """Return integers as int64; refuse anything else."""
    array = np.asarray(x)
    if array.dtype.kind not in "iu":
        raise NumsimError(f"{name} takes integers; got {array.dtype}")
    return array.astype(np.int64)


def positive(value: float, name: str) -> float:
    """Return a positive, finite scale."""
    if not (value > 0 and math.isfinite(value)):
        raise NumsimError(f"{name} is a positive number; got {value!r}")
    return float(value)
