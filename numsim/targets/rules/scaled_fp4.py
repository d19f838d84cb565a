"""Blackwell's block-scaled FP4: exact runs of 16, scaled, aligned, cut, rounded once."""

from __future__ import annotations

from dataclasses import dataclass

from numsim.targets.rules.limits import Kind


@dataclass(frozen=True)
class ScaledFp4:
    """Blackwell's k = 64 block-scaled FP4: exact runs of 16, scaled, aligned, truncated."""

    align_bits: int = 35


SCALED_FP4 = Kind(
    ScaledFp4,
    "block-scaled FP4: exact runs of 16, scaled, aligned, cut, rounded once",
    {"align_bits": "fraction bits kept below the largest exponent"},
    {"align_bits": (1, 35)},
    takes=lambda kind: kind == "mx:fp4",
)
