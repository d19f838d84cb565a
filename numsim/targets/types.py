"""How a MAC array multiplies and adds: a `Target` is a named set of rules, all of them data."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from numsim.errors import NumsimError, near_names

Overflow = Literal["wrap", "saturate", "raise"]


@dataclass(frozen=True)
class Exact:
    """Every product and the accumulator are added exactly; one rounding (nearest even)."""


@dataclass(frozen=True)
class Fma:
    """One chain of IEEE fused multiply-adds in float32, nearest even, in increasing k."""


@dataclass(frozen=True)
class IntSum:
    """Integer products added in increasing k in `acc_bits` bits.

    `overflow`: ``wrap`` modulo 2**acc_bits, ``saturate`` after every product, or ``raise``.
    """

    acc_bits: int = 32
    overflow: Overflow = "wrap"


@dataclass(frozen=True)
class Fused:
    """Align to the largest exponent, truncate, add exactly, round once: the tensor-core block.

    Parameters
    ----------
    group
        Products in one block; longer dot products chain blocks through the accumulator.
    align_bits
        Fraction bits kept below the largest exponent among the products and the accumulator.
    keep_bits
        Fraction bits of a float32 result (23, or 13 where the unit returns e8m13), truncated.
        float16 results are rounded to nearest even.
    """

    group: int
    align_bits: int
    keep_bits: int = 23


Rule = Exact | Fma | IntSum | Fused

# operand class -> formats that belong to it; a target lists the classes it accepts
CLASSES: dict[str, tuple[str, ...]] = {
    "fp8": ("float8_e4m3fn", "float8_e5m2"),
    "fp16": ("float16",),
    "bf16": ("bfloat16",),
    "tf32": ("tfloat32",),
}


@dataclass(frozen=True)
class Target:
    """A matrix-multiply unit.

    Parameters
    ----------
    name
        Canonical name, ``maker.generation.instruction``.
    rules
        (operand class, rule) pairs; class ``"float"`` is every format that float32 holds,
        ``"integer"`` every integer and fixed-point format.
    maturity
        ``definition`` (an ideal unit), ``silicon`` (equal to hardware recordings), ``model``
        (equal to an independent model) or ``document``.
    evidence
        What the rules were compared with.
    source
        Where the rules are described.

    Examples
    --------
    >>> from numsim.targets import get_target
    >>> get_target("nvidia.hopper.wgmma").rule("fp8")
    Fused(group=32, align_bits=13, keep_bits=13)
    """

    name: str
    rules: tuple[tuple[str, Rule], ...]
    maturity: str
    evidence: str
    source: str

    def rule(self, operand_class: str) -> Rule | None:
        """Return the rule for an operand class, None where the unit does not take it."""
        return dict(self.rules).get(operand_class)

    def changed(self, **changes: Any) -> Target:
        """Return the target with fields of its rules replaced (``group=16``, ``acc_bits=24``).

        Raises
        ------
        NumsimError
            For a field that no rule of this unit has, or a value it cannot take.
        """
        known = sorted({f.name for _, rule in self.rules for f in fields(rule)})
        for key in changes:
            if key not in known:
                raise NumsimError(
                    f"{self.name} has no field {key!r}; it has "
                    f"{', '.join(known) or 'none that can be changed'}{near_names(key, known)}"
                )
        new = tuple(
            (kind, replace(rule, **{k: v for k, v in changes.items() if hasattr(rule, k)}))
            for kind, rule in self.rules
        )
        for _, rule in new:
            check_rule(self.name, rule)
        return replace(self, rules=new)


def check_rule(name: str, rule: Rule) -> None:
    """Raise NumsimError for a rule with a value outside its range."""
    limits = {"group": (1, 4096), "align_bits": (1, 35), "keep_bits": (1, 23), "acc_bits": (8, 64)}
    for field, (low, high) in limits.items():
        value = getattr(rule, field, low)
        if not isinstance(value, int) or not low <= value <= high:
            raise NumsimError(f"{name}: {field} is {low} to {high}; got {value!r}")
    if isinstance(rule, IntSum) and rule.overflow not in ("wrap", "saturate", "raise"):
        raise NumsimError(f"{name}: overflow is wrap, saturate or raise; got {rule.overflow!r}")
