"""What a unit may not say: fields out of range, and fields that contradict each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from itertools import combinations, pairwise
from typing import Any, get_args

from numsim.errors import NumsimError, near_names
from numsim.formats import Format, get_format
from numsim.targets.levels import LEVEL_LIMITS, Level
from numsim.targets.rules import CLASSES, RULES, Limit, Rule, about
from numsim.targets.rules.limits import KINDS
from numsim.targets.words import Maturity

_UNIT_LIMITS: dict[str, Limit] = {
    "promote_every": (1, 1 << 30), "split_k": (1, 1 << 20), "split_tile": (1, 1 << 20),
    "split_order": ("contiguous", "serial", "pairwise"), "kind": tuple(KINDS),
}  # fmt: skip


def takes(kind: str, rule: Rule, key: str, value: object) -> bool:
    """Whether a field of the rule for an operand class can have this value.

    Examples
    --------
    >>> from numsim.targets.rules import IntSum, Mac
    >>> takes("float", Mac(), "overflow", "wrap"), takes("integer", IntSum(), "overflow", "wrap")
    (False, True)
    """
    limits = about(rule).limits
    if key not in limits or not about(rule).changes(rule, kind, key, value):
        return False
    limit = limits[key]
    return not isinstance(limit, tuple) or not isinstance(limit[0], str) or value in limit


def key_of(kind: str) -> str:
    """Return an operand class as a TOML key."""
    return kind if kind.replace("_", "").isalnum() else json.dumps(kind)


def check_unit(target: Any, said: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise NumsimError for fields out of range or that contradict each other."""
    for key in ("name", "maturity", "evidence", "source"):
        value = getattr(target, key)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise NumsimError(f"{key} is a text on one line; got {value!r}")
    words = get_args(Maturity)
    if target.maturity not in words:
        raise NumsimError(
            f"maturity is one of {', '.join(words)}; got {target.maturity!r}"
            f"{near_names(target.maturity, words)}"
        )
    if not target.rules:
        raise NumsimError(f"{target.name}: a unit has a rule for each operand class; none came")
    _check_fields(target.name, target, _UNIT_LIMITS)
    for _, rule in target.rules:
        _check_fields(target.name, rule, about(rule).limits)
    for key in ("split_order", "split_tile"):
        if key in said.get("", {}) and target.split_k == 1:
            raise NumsimError(
                f"{target.name}: {key} says how K is split, but split_k is 1; set both"
            )
    if target.kind is not None and KINDS[target.kind][0] not in dict(target.rules):
        raise NumsimError(
            f"{target.name}: kind {target.kind!r} is a rule for {KINDS[target.kind][0]}, block "
            "scales inside the unit; this unit has none"
        )
    _check_levels(target)
    for (kind, rule), (other, second) in combinations(target.rules, 2):
        shared = _shared(kind, other)
        if shared and rule != second:
            raise NumsimError(
                f"{target.name}: classes {kind} and {other} both have {', '.join(sorted(shared))}, "
                "with rules that differ; make them equal or drop one"
            )
    for kind, rule in target.rules:
        _check_rule(target, kind, rule, said.get(kind, {}))


def _check_levels(target: Any) -> None:
    if not isinstance(target.levels, tuple) or not all(isinstance(x, Level) for x in target.levels):
        raise NumsimError(f"{target.name}: levels is a tuple of Level; got {target.levels!r}")
    if not target.levels:
        return
    for level in target.levels:
        _check_fields(f"{target.name}: levels", level, LEVEL_LIMITS)
    lengths = [level.every for level in target.levels]
    if any(a >= b or b % a for a, b in pairwise(lengths)):
        raise NumsimError(
            f"{target.name}: levels stand from the inside out, each every a multiple of the one "
            f"before; got {', '.join(map(str, lengths))}"
        )
    if target.promote_every is not None or target.split_k > 1:
        raise NumsimError(
            f"{target.name}: levels say how parts are added, and so do promote_every and split_k; "
            "leave those out"
        )
    only_integers = all(about(rule).integers for _, rule in target.rules)
    if only_integers and not all(level.plain for level in target.levels):
        raise NumsimError(
            f"{target.name}: a level adds integers in outer_bits; leave out its acc_format and "
            "rounding"
        )


def _check_fields(name: str, item: Any, limits: Mapping[str, Limit]) -> None:
    defaults = {f.name: f.default for f in fields(item)}
    for key, limit in limits.items():
        value = getattr(item, key)
        if value is None and defaults[key] is None:
            continue
        if limit is bool:
            if not isinstance(value, bool):
                raise NumsimError(f"{name}: {key} is True or False; got {value!r}")
        elif limit is Format:
            _check_accumulator(f"{name}: {key}", value)
        elif isinstance(limit, frozenset):
            some = isinstance(value, tuple) and (value or defaults[key] == ())
            if not some or not limit.issuperset(value):
                words = ", ".join(map(str, sorted(limit)))
                if 0 in limit:
                    words = f"whole numbers from 0 to {max(limit)}"
                raise NumsimError(f"{name}: {key} is a list of {words}; got {value!r}")
        elif isinstance(limit, tuple) and isinstance(limit[0], str):
            if value not in limit:
                raise NumsimError(
                    f"{name}: {key} is one of {', '.join(map(str, limit))}; got {value!r}"
                    f"{near_names(str(value), map(str, limit))}"
                )
        elif isinstance(limit, tuple):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not int(limit[0]) <= value <= int(limit[1]):
                raise NumsimError(
                    f"{name}: {key} is {limit[0]} to {limit[1]}, a whole number; got {value!r}"
                )


def _check_accumulator(where: str, value: Any) -> None:
    try:
        fmt = get_format(value)
    except NumsimError as error:
        raise NumsimError(f"{where}: {error}") from None
    known = fmt.kind in ("float", "integer") and fmt.signed and fmt.zero
    if not known or not 2 <= fmt.params.p <= 24:
        raise NumsimError(
            f"{where} is a signed float of 2 to 24 bits of precision, or a signed "
            f"integer or fixed-point format of at most 23 bits; got {fmt.name}"
        )


def _check_rule(target: Any, kind: str, rule: Rule, given: Mapping[str, Any]) -> None:
    """Raise NumsimError where fields, or the class and the rule, contradict each other."""
    where, of = f"{target.name}: [rules.{key_of(kind)}]", about(rule)
    if not of.takes(kind):
        fits = (other.__name__ for other in RULES if RULES[other].takes(kind))
        raise NumsimError(
            f"{where}: operands {kind!r} take {', '.join(fits)}; got {type(rule).__name__}"
        )
    problem = of.contradiction(rule, kind, given)
    if problem:
        raise NumsimError(f"{where}: {problem}")


def _shared(kind: str, other: str) -> set[str]:
    """Return the formats that two operand classes of the same kind and output both take."""

    def split(name: str) -> tuple[bool, str, set[str]]:
        operands, _, out = name.removeprefix("mx:").partition("->")
        formats = ("uint8", "int8") if operands == "u8s8" else CLASSES.get(operands, ())
        return name.startswith("mx:"), out, set(formats)

    (scaled, out, formats), (scaled_2, out_2, formats_2) = split(kind), split(other)
    if kind == other or (scaled, out) != (scaled_2, out_2) or scaled:
        return set()  # block scales say which of two rules it is
    if {"u8s8", "s8"} == {kind, other}:
        return set()  # never the same pair
    return formats & formats_2
