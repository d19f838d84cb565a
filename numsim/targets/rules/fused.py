"""Align to the largest exponent, cut, add exactly, round once: the block of a tensor core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numsim.targets.rules.limits import GROUP, INTEGERS, WIDE, Kind, aligns, has_output


@dataclass(frozen=True)
class Fused:
    """Align to the largest exponent, truncate, add exactly, round once: the tensor-core block.

    Parameters
    ----------
    group
        Products in one block; longer dot products chain blocks through the accumulator.
    align_bits
        Fraction bits kept below the largest exponent.
    keep_bits
        Fraction bits of a float32 result (23, or 13 where the unit returns e8m13).
    accumulator
        ``joins`` the alignment; ``late``: is added to the rounded sum by an ordinary addition;
        ``halves``: k with (k // 2) even, then the others on top in float16, then the accumulator.
    zero_products
        Whether a product with a zero factor takes part in the largest exponent (models differ;
        no recording decides).
    min_exponent
        Lower limit of the largest exponent, None: no limit (models differ; no recording decides).
    align
        How terms are cut to the alignment: ``truncate`` toward zero, or ``floor``.
    rounding
        Of each block's result, ``rtz`` or ``rne``. None: float32 toward zero, float16 to nearest
        even.
    nan
        Pattern of NaN results: ``ones`` (0x7FFFFFFF, 0x7FFF) or ``quiet`` (0x7FC00000, 0x7E00).

    Two things are no fields, since all models and recordings agree on them: a zero result is +0,
    and a result that rounds beyond the largest number is infinite, toward zero too.
    """

    group: int
    align_bits: int
    keep_bits: int = 23
    accumulator: Literal["joins", "late", "halves"] = "joins"
    zero_products: bool = False
    min_exponent: int | None = None
    align: Literal["truncate", "floor"] = "truncate"
    rounding: Literal["rtz", "rne"] | None = None
    nan: Literal["ones", "quiet"] = "ones"


def _contradiction(rule: Fused, kind: str, given: Mapping[str, Any]) -> str:
    if rule.accumulator == "halves" and not has_output(kind):
        return f'accumulator = "halves" gives float16: name the class "{kind}->float16"'
    why = aligns(kind)
    return why and f"Fused {why}"


FUSED = Kind(
    Fused,
    "align to the largest exponent, cut, add exactly, round once (tensor cores)",
    {
        "group": "products in one step; longer dot products chain steps through the accumulator",
        "align_bits": "fraction bits kept below the largest exponent",
        "keep_bits": "fraction bits of a float32 result: 23, or fewer",
        "accumulator": "joins the alignment; late: added to the rounded sum; halves: float16 in "
        "two",
        "zero_products": "a product with a zero factor counts for the largest exponent (models "
        "differ)",
        "min_exponent": "lower limit of the largest exponent; unset: none (models differ)",
        "align": "how addends are cut: truncate toward zero, or floor",
        "rounding": "rtz or rne; unset: float32 toward zero, float16 to nearest even",
        "nan": "bits of NaN results: ones 0x7FFFFFFF, quiet 0x7FC00000",
    },
    {
        "group": GROUP, "align_bits": (1, 35), "keep_bits": (1, 23),
        "accumulator": ("joins", "late", "halves"), "zero_products": bool,
        "min_exponent": (-1000, 127), "align": ("truncate", "floor"), "rounding": ("rtz", "rne"),
        "nan": ("ones", "quiet"),
    },
    takes=lambda kind: kind not in (*INTEGERS, *WIDE),
    contradiction=_contradiction,
)  # fmt: skip
