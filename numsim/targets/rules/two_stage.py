"""CDNA3: the products' aligned sum first, then the accumulator, one rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numsim.targets.rules.limits import (
    GROUP,
    INTEGERS,
    WIDE,
    Kind,
    aligns,
    has_output,
    is_scaled,
)


@dataclass(frozen=True)
class TwoStage:
    """CDNA3: the products' aligned sum first, then the accumulator, one rounding to float32.

    Products are truncated to `align_bits` below their largest exponent (`streams` = 2: even and
    odd k apart, their sums floored to the larger exponent). Beside the accumulator the sum is
    floored to `sum_bits` and the accumulator to `align_bits` fraction bits. `zero_products`: as in
    `Fused`.
    """

    group: int
    align_bits: int = 24
    sum_bits: int = 31
    streams: int = 1
    zero_products: bool = False


def _contradiction(rule: TwoStage, kind: str, given: Mapping[str, Any]) -> str:
    if rule.sum_bits < rule.align_bits:
        return f"sum_bits ({rule.sum_bits}) is at least align_bits ({rule.align_bits})"
    why = aligns(kind)
    return why and f"TwoStage {why}"


TWO_STAGE = Kind(
    TwoStage,
    "the products' aligned sum first, then the accumulator, one rounding (CDNA3)",
    {
        "group": "products in one step; longer dot products chain steps through the accumulator",
        "align_bits": "fraction bits kept below the largest exponent",
        "sum_bits": "fraction bits of the products' sum beside the accumulator",
        "streams": "2: even and odd k are aligned apart",
        "zero_products": "a product with a zero factor counts for the largest exponent (models "
        "differ)",
    },
    {
        "group": GROUP, "align_bits": (1, 35), "sum_bits": (1, 40), "streams": (1, 2),
        "zero_products": bool,
    },
    takes=lambda kind: not is_scaled(kind) and not has_output(kind)
    and kind not in (*INTEGERS, *WIDE),
    contradiction=_contradiction,
)  # fmt: skip
