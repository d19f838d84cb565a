"""Integer products added in an integer accumulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numsim.targets.rules.limits import GROUP, INTEGERS, Kind
from numsim.vocabulary import Accumulation


@dataclass(frozen=True)
class IntSum:
    """Integer products added in increasing k in `acc_bits` bits, `group` products a step.

    `overflow`: ``wrap`` modulo 2**acc_bits, ``saturate`` after every step, or ``raise``.
    `pair_bits`: the sum of two neighbouring products saturates to so many bits first.
    `outer_bits`: width of the accumulator that adds the parts of a promoted or split sum.
    """

    acc_bits: int = 32
    overflow: Accumulation = "wrap"
    group: int = 1
    pair_bits: int | None = None
    outer_bits: int = 32


def _contradiction(rule: IntSum, kind: str, given: Mapping[str, Any]) -> str:
    if rule.pair_bits is not None and rule.group % 2:
        return f"pair_bits adds products in pairs; group is odd ({rule.group})"
    return ""


INT_SUM = Kind(
    IntSum,
    "integer products added in an accumulator of acc_bits bits",
    {
        "acc_bits": "bits of the accumulator, two's complement",
        "overflow": "wrap modulo 2**acc_bits, saturate after every step, or raise an error",
        "group": "products in one step; longer dot products chain steps through the accumulator",
        "pair_bits": "the sum of two neighbouring products saturates to so many bits; unset: no",
        "outer_bits": "bits of the accumulator that adds the parts of promote_every and split_k",
    },
    {
        "acc_bits": (8, 64), "overflow": ("wrap", "saturate", "raise"), "group": GROUP,
        "pair_bits": (8, 62), "outer_bits": (8, 64),
    },
    takes=lambda kind: kind in INTEGERS,
    contradiction=_contradiction,
)  # fmt: skip
