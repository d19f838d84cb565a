"""Codes of rows under one scale: made quickly, and put in another order of rows.

Steps of a sequence are computed as [T, B, N], where a step lies in one piece of memory; sums over
all of them run over the rows [B T, N].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.models.gemm import RAW
from numsim.quant import QTensor, Quant, as_quant, quantize
from numsim.quant.kept import Key
from numsim.quant.quick import quick
from numsim.targets.operands import locked

Array = NDArray[Any]
Codes = dict[Any, QTensor]  # of one tensor, by how it is stored
ONE_SCALE = ("none", "per_tensor")


def quickly(values: Array, quant: Quant, axis: int = -1) -> QTensor | None:
    """Return `quick`, whose codes stay as they are: finite, since finite numbers saturated.

    None too for blocks along another axis than the last.
    """
    q = quick(values, quant) if axis == -1 or quant.block is None else None
    if q is not None and q.fmt.kind == "float":
        locked(q)
        q.packed[Key("finite")] = True
    return q


def by_steps(y: Array, shape: tuple[int, ...]) -> Array:
    """Return rows [A B, N], of which `shape` is A, B, as [B, A, N]."""
    return np.ascontiguousarray(y.reshape(*shape, -1).swapaxes(0, 1))


def rows_turned(q: QTensor, shape: tuple[int, ...]) -> QTensor:
    """Return a tensor of one scale whose rows [A, B] stand as [B, A]."""
    return replace(q, codes=by_steps(q.codes, shape).reshape(q.shape))


def codes_by_rows(steps: Array, quants: Sequence[Any]) -> Codes | None:
    """Return the codes of rows [B T, N] of values [T, B, N] as `products.Operands` share them.

    None where a rule is not of one scale by amax and to nearest (sums of a search would run over
    the values in another order), or does not store the values.
    """
    codes: Codes = {}
    flat = steps.reshape(-1, steps.shape[-1])
    for one in quants:
        quant = RAW if one is None else as_quant(one)
        plain = quant.rounding == "rne" and quant.scale_rule == "amax"
        if quant == RAW or quant.granularity not in ONE_SCALE or not plain:
            return None
        key = quant, None, np.float32(1)
        if key in codes or not steps.size:
            continue
        try:
            made = quickly(flat, quant)
            q = quantize(flat, quant) if made is None else made
        except NumsimError:
            return None
        codes[key] = rows_turned(q, steps.shape[:2])
    return codes
