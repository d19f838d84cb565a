"""The rules by which units multiply and add: one module a rule, all of them in one table."""

from numsim.targets.rules.exact import EXACT, Exact
from numsim.targets.rules.fused import FUSED, Fused
from numsim.targets.rules.int_sum import INT_SUM, IntSum
from numsim.targets.rules.limits import CLASSES, INTEGERS, WIDE, Kind, Limit
from numsim.targets.rules.mac import MAC, Mac
from numsim.targets.rules.scaled_fp4 import SCALED_FP4, ScaledFp4
from numsim.targets.rules.two_stage import TWO_STAGE, TwoStage

Rule = Exact | Mac | IntSum | Fused | TwoStage | ScaledFp4

RULES: dict[type, Kind] = {
    kind.rule: kind for kind in (EXACT, MAC, INT_SUM, FUSED, TWO_STAGE, SCALED_FP4)
}

__all__ = [
    "CLASSES", "INTEGERS", "RULES", "WIDE", "Exact", "Fused", "IntSum", "Kind", "Limit", "Mac",
    "Rule", "ScaledFp4", "TwoStage",
]  # fmt: skip
