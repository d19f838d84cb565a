"""Every field of a unit in a few words, for the command line; rules have their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Literal

from numsim.targets.rules import RULES, Rule

Maturity = Literal["definition", "silicon", "model", "document", "assumed"]

MATURITIES: dict[Maturity, str] = {
    "definition": "an ideal unit: its rules are its definition",
    "silicon": "equal to recordings of hardware, bit for bit",
    "model": "equal to an independent model that was validated on hardware",
    "document": "written from the vendor's text; no recording confirms it (warns once when used)",
    "assumed": "parts are not public and were assumed (warns once when used)",
}

UNIT_FIELDS: dict[str, str] = {
    "name": "what messages and results call the unit",
    "rules": "operand class -> rule, a table [rules.CLASS] each",
    "maturity": "how well the rules are known: " + ", ".join(MATURITIES),
    "evidence": "what the rules were compared with",
    "source": "where the rules are described",
    "promote_every": "restart from +0 every so many k, add the parts in an outer accumulator",
    "split_k": "parts of K that are summed apart and added afterwards",
    "split_order": "contiguous runs of tiles; or tiles dealt out in turn, added serial or pairwise",
    "split_tile": "width of those tiles in k",
    "kind": "products with block scales, by their PTX name; unset: what the operands mean",
    "levels": "adders above the rule: each restarts what is below it every so many k",
}


def field_words(item: Any, name: str) -> str:
    """Return what a field of a rule, or of a unit, means.

    Examples
    --------
    >>> from numsim.targets.rules import IntSum
    >>> field_words(IntSum(), "overflow")
    'wrap modulo 2**acc_bits, saturate after every step, or raise an error'
    """
    kind = item if isinstance(item, type) else type(item)
    return RULES[kind].fields[name] if kind in RULES else UNIT_FIELDS[name]


def explained(unit: Any) -> Iterator[tuple[str, str]]:
    """Yield (heading, words) of each kind of rule that a unit has, and below it of its fields."""
    for kind in dict.fromkeys(type(rule) for _, rule in unit.rules):
        yield kind.__name__, RULES[kind].words
        for f in fields(kind):
            yield f"  {f.name}", field_words(kind, f.name)
    yield "Target", "fields of whole dot products"
    for name in ("promote_every", "split_k", "split_order", "split_tile", "kind", "levels"):
        yield f"  {name}", UNIT_FIELDS[name]


def rule_words(rule: Rule, *, short: bool = False) -> str:
    """Return a rule as its dataclass is written, without None; `short`: without defaults.

    Examples
    --------
    >>> from numsim.targets.types import TwoStage
    >>> rule_words(TwoStage(8), short=True)
    'TwoStage(group=8)'
    """
    given = [(f, getattr(rule, f.name)) for f in fields(rule)]
    inner = ", ".join(
        f"{f.name}={value!r}"
        for f, value in given
        if value is not None and not (short and value == f.default)
    )
    return f"{type(rule).__name__}({inner})"
