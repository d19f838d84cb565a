"""Kernels that run many outputs of a chain at once: an entry for each rule that has any.

The first that covers a chain runs it; where none does, or a rule has none, its definition runs.
`FAST` computes, `COUNTED` computes and counts. All of them give the bits of the definition.
"""

from __future__ import annotations

from numsim.targets.chain import Ways
from numsim.targets.fast import counted
from numsim.targets.fast.exact import EXACT
from numsim.targets.fast.fp4 import SCALED_FP4
from numsim.targets.fast.fused import BULK_NORM, FUSED, MME, TWO_STAGE
from numsim.targets.fast.integer import INTEGER
from numsim.targets.fast.mac import MAC
from numsim.targets.rules import (
    BulkNorm,
    Exact,
    Fused,
    IntSum,
    Mac,
    Mme,
    ScaledFp4,
    TwoStage,
)

FAST: dict[type, Ways] = {
    Mac: MAC, Exact: EXACT, Fused: FUSED, TwoStage: TWO_STAGE, ScaledFp4: SCALED_FP4,
    IntSum: INTEGER, BulkNorm: BULK_NORM, Mme: MME,
}  # fmt: skip

COUNTED: dict[type, Ways] = {
    Mac: counted.MAC, Exact: counted.EXACT, Fused: counted.FUSED, TwoStage: counted.TWO_STAGE,
    IntSum: counted.INTEGER,
}  # fmt: skip
