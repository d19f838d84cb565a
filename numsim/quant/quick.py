"""What `quantize` gives for float32 under one amax scale or none, with fewer questions asked.

A training step stores hundreds of small tensors; for each, `quantize` looks at every argument again
for longer than it rounds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.dispatch import encode_by_amax
from numsim.quant.rule import Quant
from numsim.quant.types import QTensor

_REACH = 2.0**20  # largest values of formats whose products with usual scales float32 holds


def quick(values: NDArray[Any], rule: Quant) -> QTensor | None:
    """Return ``quantize(values, rule)``, or None where that has to decide.

    >>> q = quick(np.float32([[1.0, -127.0]]), Quant("int8"))
    >>> q.codes, q.scale
    (array([[   1, -127]], dtype=int8), array(1., dtype=float32))
    >>> quick(np.float32([np.inf]), Quant("int8")) is None
    True
    """
    top = _top(rule)
    if top is None or values.dtype != np.float32 or not values.size:
        return None
    codes = np.empty(values.shape, rule.fmt.code_dtype)
    scale = encode_by_amax(rule.fmt, values, top, codes)
    return None if scale is None else QTensor(codes, rule.fmt, np.asarray(scale), rule)


@lru_cache(maxsize=256)
def _top(rule: Quant) -> np.float32 | None:
    """Return what an amax is divided by, 0: nothing; None for rules that are not covered."""
    f, granularity = rule.fmt, rule.granularity
    if granularity not in ("none", "per_tensor") or rule != Quant(rule.format, granularity):
        return None
    if f.min >= 0 or f.max > _REACH or rule.scale_rule != "amax" or np.float32(f.max) != f.max:
        return None
    return np.float32(f.max if granularity == "per_tensor" else 0)
