"""Multiply-adds with a rounding at every step: CPU vector units, and arrays of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from numsim.errors import NumsimError
from numsim.formats import Format, kept_format
from numsim.targets.rules.limits import (
    GROUP,
    OUTPUT_WORDS,
    OUTPUTS,
    Kind,
    has_output,
    is_scaled,
)
from numsim.vocabulary import ROUNDINGS

ORDERS = ("sequential", "tree", "odd_first", "two_chains", "exact")


@dataclass(frozen=True)
class Mac:
    """Multiply-adds with one rounding a step.

    Parameters
    ----------
    acc_format
        Format of the accumulator, and of every sum: any signed float, integer or fixed-point
        format whose steps are exact before the rounding (floats of 2 to 24 bits of precision,
        the others of at most 23 bits in all).
    product_format
        Format to which products are rounded first; None: exact products, a fused multiply-add.
    fused
        False rounds products to `product_format`, or to `acc_format` where that is None.
    rounding
        Of every step (``rne rna rtz rup rdn rto``).
    order
        ``sequential``: one chain in increasing k from the accumulator. ``tree``: neighbours
        pairwise within each `group` (None: all of K), then the accumulator. ``odd_first``: a
        chain that takes k + 1 before k. ``two_chains``: even and odd k of a group from zero,
        their sum, then the accumulator. ``exact``: the products of a `group` and the accumulator
        exactly, one rounding to the output (the rule is `Exact`).
    flush
        Subnormal inputs and results become zeros of their sign.
    tiny
        Which results that flushes: ``stored``, those whose rounding is subnormal; ``unbounded``,
        those that an unbounded exponent would leave below the smallest normal number (x86).
    negative_zero
        False: the sign of a zero is lost before the sum of a tree is added to the accumulator.
    overflow
        ``ieee``: Inf (NaN where the format has no Inf) or the largest finite value, by the
        rounding; ``inf``: always Inf; ``saturate``: the largest finite value, for Inf too, as
        formats without Inf and NaN always do.
    outputs
        Formats in which the unit can return the sum.
    """

    acc_format: str | Format = "float32"
    product_format: str | Format | None = None
    fused: bool = True
    rounding: str = "rne"
    order: str = "sequential"
    group: int | None = None
    flush: bool = False
    tiny: Literal["stored", "unbounded"] = "stored"
    negative_zero: bool = True
    overflow: Literal["ieee", "inf", "saturate"] = "ieee"
    outputs: tuple[str, ...] = ("float32",)

    def __post_init__(self) -> None:  # a Format of the table by its name, one's own as it is
        for key in ("acc_format", "product_format"):
            value = getattr(self, key)
            if not isinstance(value, str | None) or str(value).endswith(".toml"):
                with suppress(NumsimError):  # `check` names the unit
                    object.__setattr__(self, key, kept_format(value))

    @cached_property
    def steps(self) -> Mac:
        """The rule without the formats of its results: how each sum is rounded."""
        return replace(self, outputs=Mac.outputs)


def _contradiction(rule: Mac, kind: str, given: Mapping[str, Any]) -> str:
    if rule.product_format is not None and given.get("fused"):
        return "fused = true leaves products exact, product_format rounds them; keep one"
    if rule.group is not None and rule.order in ("sequential", "odd_first"):
        return f"group cuts K for tree, two_chains and exact; order is {rule.order}"
    usual = (rule.acc_format, rule.product_format, rule.rounding, rule.overflow)
    plain = usual == ("float32", None, "rne", "ieee") and not rule.flush
    if rule.order == "exact" and (rule.group is None or not plain):
        return "order = exact has a group, float32, rne, no product_format and no flush"
    return ""


MAC = Kind(
    Mac,
    "multiply-adds with a rounding at every step",
    {
        "acc_format": "format of the accumulator and of every sum",
        "product_format": "format to which products are rounded first; unset: exact products",
        "fused": "true: a product is not rounded before it is added",
        "rounding": "of every step: rne, rna, rtz, rup, rdn or rto",
        "order": "sequential, tree, odd_first, two_chains, or exact (a group and the accumulator)",
        "group": "k of one tree, pair of chains or exact sum; unset: all",
        "flush": "subnormal inputs and results become zeros",
        "tiny": "what flush takes: stored (rounded) subnormals, or those of an unbounded exponent",
        "negative_zero": "false: the sum of a tree loses the sign of a zero",
        "overflow": "ieee: Inf or the largest value by the rounding; inf: always; saturate: never",
        "outputs": OUTPUT_WORDS,
    },
    {
        "acc_format": Format, "product_format": Format, "fused": bool, "rounding": ROUNDINGS[:6],
        "order": ORDERS, "group": GROUP, "flush": bool, "tiny": ("stored", "unbounded"),
        "negative_zero": bool, "overflow": ("ieee", "inf", "saturate"),
        "outputs": frozenset(OUTPUTS),
    },
    takes=lambda kind: not is_scaled(kind) and not has_output(kind)
    and kind not in ("integer", "number"),
    contradiction=_contradiction,
)  # fmt: skip
