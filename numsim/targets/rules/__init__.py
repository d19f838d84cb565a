"""The rules by which units multiply and add: one module a rule, all of them in one table."""

from typing import TypeGuard

from numsim.targets.rules.bulk_norm import BULK_NORM, BulkNorm
from numsim.targets.rules.exact import EXACT, Exact
from numsim.targets.rules.fused import FUSED, Fused
from numsim.targets.rules.int_sum import INT_SUM, IntSum
from numsim.targets.rules.limits import CLASSES, INTEGERS, WIDE, Kind, Limit
from numsim.targets.rules.mac import MAC, Mac
from numsim.targets.rules.mme import MME, Mme
from numsim.targets.rules.scaled_fp4 import SCALED_FP4, ScaledFp4
from numsim.targets.rules.two_stage import TWO_STAGE, TwoStage

Rule = Exact | Mac | IntSum | Fused | TwoStage | ScaledFp4 | BulkNorm | Mme

RULES: dict[type, Kind] = {
    kind.rule: kind for kind in (EXACT, MAC, INT_SUM, FUSED, TWO_STAGE, SCALED_FP4, BULK_NORM, MME)
}


def about(rule: Rule) -> Kind:
    """Return what there is to say about a rule.

    >>> about(IntSum()).words
    'integer products added in an accumulator of acc_bits bits'
    """
    return RULES[type(rule)]


def adds_integers(rule: Rule) -> TypeGuard[IntSum]:
    """Whether a rule's sums are integers; it has `acc_bits`, `outer_bits`, `pair_bits`, `overflow`.

    >>> adds_integers(IntSum()), adds_integers(Mac())
    (True, False)
    """
    return about(rule).integers


__all__ = [
    "CLASSES", "INTEGERS", "RULES", "WIDE", "BulkNorm", "Exact", "Fused", "IntSum", "Kind", "Limit",
    "Mac", "Mme", "Rule", "ScaledFp4", "TwoStage", "about", "adds_integers",
]  # fmt: skip
