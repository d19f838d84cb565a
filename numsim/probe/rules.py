"""Rules beside a rule: units of the table for the same operands, and one field changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from numsim.errors import NumsimError
from numsim.formats import Format
from numsim.probe.machine import Machine, changed, rule_in
from numsim.targets import get_target, list_targets
from numsim.targets.rules import RULES
from numsim.targets.types import Rule


def known(machine: Machine) -> Iterator[tuple[str, Any]]:
    """Yield (name, unit) of every unit of the table that multiplies a machine's formats."""
    for name in list_targets():
        unit = get_target(name)
        try:
            rule_in(unit, machine)
        except NumsimError:
            continue
        yield name, unit


def nearby(rule: Rule, machine: Machine) -> Iterator[tuple[str, Rule]]:
    """Yield (field, rule) with one field changed: each word, and numbers from the nearest on."""
    limits = RULES[type(rule)].limits
    for f in fields(rule):
        limit, value = limits.get(f.name), getattr(rule, f.name)
        if f.name == "keep_bits" and machine.out != "float32":
            continue  # of float32 results only
        for other in _others(f.name, limit, value, machine):
            if other == value:
                continue
            change: dict[str, Any] = {f.name: other}
            if f.name == "order":  # which says whether there is a group
                grouped = other in ("tree", "two_chains")
                change["group"] = (getattr(rule, "group", None) or 2) if grouped else None
            if f.name == "fused" and other:
                change["product_format"] = None
            if f.name == "pair_bits" and value is None:  # pairs fill a group
                change["group"] = 2 * -(-getattr(rule, "group", 2) // 2)
            yield f.name, changed(rule, **change)


def side(rule: Rule, other: Rule, name: str) -> int:
    """Return on which side of a number another lies: -1, 1; 0 for what is no number."""
    mine, its = getattr(rule, name), getattr(other, name)
    if not (type(mine) is type(its) is int):
        return 0
    return 1 if its > mine else -1


def _others(name: str, limit: Any, value: Any, machine: Machine) -> Iterator[Any]:
    if name == "outer_bits" or limit is Format or limit is None or isinstance(limit, frozenset):
        return
    if limit is bool:
        yield from (False, True)
    elif isinstance(limit, tuple) and isinstance(limit[0], str):
        yield from (word for word in limit if word not in ("raise", "exact"))  # exact: a rule
    elif isinstance(limit, tuple) and value is None:
        if name == "min_exponent":
            yield from (-126, -133, -139, *range(-112, 0, 16))
        elif name == "pair_bits":
            yield from (8, 10, 12, 14, 16, 17, 18, 20, 24, 32)
        elif name in ("bias_a", "bias_b"):
            own = (machine.a if name == "bias_a" else machine.b).bias
            yield from (own + n for n in (1, -1) if 0 <= own + n <= 62)
    elif isinstance(limit, tuple):
        low, high = int(limit[0]), int(limit[1])
        high = min(high, machine.depths[-1]) if name == "group" else high
        high = min(high, 8 * machine.dtype.itemsize) if name == "acc_bits" else high  # of results
        if name in ("min_exponent", "pair_bits"):
            yield None
        steps = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
        yield from (value + n for n in steps if value + n <= high)
        yield from (value - n for n in steps if value - n >= low)
