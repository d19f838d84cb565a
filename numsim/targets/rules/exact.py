"""Exact sums, rounded once: what every other rule is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from numsim.targets.rules.limits import (
    GROUP,
    OUTPUT_WORDS,
    OUTPUTS,
    Kind,
    has_output,
    is_scaled,
)


@dataclass(frozen=True)
class Exact:
    """Products and the accumulator are added exactly and rounded once (nearest even).

    `group`: products in one such sum, which the next one takes as its accumulator; None: all.
    `negative_zero`: a sum of nothing but -0 is -0, as IEEE 754 adds; False: every zero is +0.
    `outputs`: formats in which the unit can return the sum.
    """

    group: int | None = None
    negative_zero: bool = False
    outputs: tuple[str, ...] = ("float32",)


EXACT = Kind(
    Exact,
    "exact sums, rounded once to nearest even",
    {
        "group": "products in one exact sum, the next takes it as its accumulator; unset: all",
        "negative_zero": "a sum of nothing but -0 is -0; false: every zero is +0",
        "outputs": OUTPUT_WORDS,
    },
    {"group": GROUP, "negative_zero": bool, "outputs": frozenset(OUTPUTS)},
    takes=lambda kind: not is_scaled(kind) and not has_output(kind),
)
