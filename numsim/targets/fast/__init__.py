"""The kernels of each rule, one module a rule: the first that covers a chain runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format
from numsim.quant import QTensor
from numsim.targets.runs.chain import Chain, Ways, Work, one_nan
from numsim.targets.runs.exact import EXACT
from numsim.targets.runs.fp4 import SCALED_FP4
from numsim.targets.runs.fused import FUSED, TWO_STAGE
from numsim.targets.runs.integer import INTEGER, add_integer_parts
from numsim.targets.runs.mac import MAC
from numsim.targets.types import Exact, Fused, IntSum, Mac, Rule, ScaledFp4, TwoStage

WAYS: dict[type, Ways] = {
    Mac: MAC, Exact: EXACT, Fused: FUSED, TwoStage: TWO_STAGE, ScaledFp4: SCALED_FP4,
    IntSum: INTEGER,
}  # fmt: skip


def run(
    rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, name: str
) -> NDArray[Any]:
    """Run one chain of a unit: a [..., M, K] by b [..., K, N] from c, result [count, M, N]."""
    return chosen(Chain(rule, a, b, c, out, name)).run()


def chosen(chain: Chain) -> Work:
    """Return the first kernel that covers a chain; the last, its definition, covers all."""
    return next(work for way in WAYS[type(chain.rule)] if (work := way(chain)) is not None)


def add_parts(parts: list[NDArray[Any]], rule: Rule) -> NDArray[Any]:
    """Add chunk or split results in order: float32 nearest even, or in `outer_bits`."""
    if isinstance(rule, IntSum):
        return add_integer_parts(parts, rule)
    with np.errstate(all="ignore"):
        total = parts[0].astype(np.float32) + np.float32(0.0)
        for part in parts[1:]:
            total = total + part.astype(np.float32)
    return one_nan(total, rule)
