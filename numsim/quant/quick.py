"""What `quantize` gives for usual rules and numbers, with fewer questions asked.

A training step stores hundreds of small tensors; for each, `quantize` looks at every argument again
for longer than it rounds. So it does between two products, which leave no code of it in the caches.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.dispatch import encode_by_amax
from numsim.dispatch.blocks import Stored
from numsim.kernels.convert.tiles import SINGLE
from numsim.kernels.ir import simd
from numsim.quant.one_pass import way_of
from numsim.quant.rule import Quant
from numsim.quant.types import QTensor

_REACH = 2.0**20  # largest values of formats whose products with usual scales float32 holds


def quick(values: NDArray[Any], rule: Quant) -> QTensor | None:
    """Return ``quantize(values, rule)``, or None where that has to decide: blocks lie in rows.

    >>> q = quick(np.float32([[1.0, -127.0]]), Quant("int8"))
    >>> q.codes, q.scale
    (array([[   1, -127]], dtype=int8), array(1., dtype=float32))
    >>> quick(np.float32([np.inf]), Quant("int8")) is None
    True
    """
    if rule.block is not None:
        return _of_blocks(values, rule)
    top = _top(rule)
    if top is None or values.dtype != np.float32 or not values.size:
        return None
    codes = np.empty(values.shape, rule.fmt.code_dtype)
    scale = encode_by_amax(rule.fmt, values, top, codes)
    return None if scale is None else QTensor(codes, rule.fmt, np.asarray(scale), rule)


def _of_blocks(values: NDArray[Any], rule: Quant) -> QTensor | None:
    way, shape, flags = way_of(rule, simd.enabled()), values.shape, values.flags
    if way is None or values.dtype != np.float32 or not (flags.c_contiguous and flags.aligned):
        return None
    size, fmt = way.block, way.fmt(rule)
    if not values.size or not shape or shape[-1] % size or fmt.min >= 0:
        return None
    grid = (*shape[:-1], shape[-1] // size)
    codes = np.empty(shape, fmt.code_dtype)
    scales, bytes_ = np.empty(grid, np.float32), np.empty(grid, np.uint8)
    above = way.rows(
        values.view(np.uint32).reshape(-1, size), SINGLE, codes.reshape(-1, size),
        scales.reshape(-1), bytes_.reshape(-1),
    )  # fmt: skip
    sizes = (1,) * (len(shape) - 1) + (size,)
    return None if above < 0 else way.tensor(rule, sizes, Stored(codes, scales, bytes_), above)


@lru_cache(maxsize=256)
def _top(rule: Quant) -> np.float32 | None:
    """Return what an amax is divided by, 0: nothing; None for rules that are not covered."""
    f, granularity = rule.fmt, rule.granularity
    if granularity not in ("none", "per_tensor") or rule != Quant(rule.format, granularity):
        return None
    if f.min >= 0 or f.max > _REACH or rule.scale_rule != "amax" or np.float32(f.max) != f.max:
        return None
    return np.float32(f.max if granularity == "per_tensor" else 0)
