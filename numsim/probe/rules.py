"""Which rules a probe tries, one table of values a kind of rule, in the order they can be seen.

A hypothesis is a rule with every field filled in. Its fields are found in stages, each with stimuli
that do not depend on the fields of later stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import lru_cache
from itertools import product
from typing import Any

from numsim.formats import Format, get_format
from numsim.probe.machine import Machine, changed, class_of
from numsim.targets import get_target, list_targets, rule_for
from numsim.targets.rules import RULES
from numsim.targets.types import Exact, Fused, IntSum, Mac, Rule, TwoStage

_MODES = ("rne", "rtz", "rna", "rup", "rdn", "rto")
_USUAL = (
    "float32", "float16", "bfloat16", "tfloat32", "float8_e4m3fn", "float8_e5m2", "float8_e4m3",
    "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip
_WIDTHS = (25, 24, 23, 13, 35, *(n for n in range(1, 35) if n not in (13, 23, 24, 25)))
_ORDERS: tuple[dict[str, Any], ...] = (
    {"order": "sequential"}, {"order": "two_chains", "group": 2}, {"order": "tree", "group": 2},
    {"order": "odd_first"},
)  # fmt: skip
_GROUPS = (16, 8, 4, 32, 2, 64, 1)  # the usual ones first
FLUSHES: tuple[dict[str, Any], ...] = (
    {"flush": False}, {"flush": True, "tiny": "stored"}, {"flush": True, "tiny": "unbounded"},
)  # fmt: skip


@lru_cache(maxsize=1)
def accumulators() -> tuple[str, ...]:
    """Return the formats in which a multiply-add may add, the usual ones first."""
    floats = [f"float_e{e}m{m}" for e in range(8, 1, -1) for m in range(23, 0, -1)]
    fixed = [f"q{i}.{f}" for i in range(1, 19) for f in range(20) if 3 <= i + f <= 22]
    seen: dict[Any, str] = {}
    for name in (*_USUAL, *floats, *fixed):
        fmt = get_format(name)
        seen.setdefault((fmt.kind, fmt.precision, fmt.bias, fmt.max, fmt.inf, fmt.nan), name)
    return tuple(seen.values())


def adding(machine: Machine, bits: int, complete: bool) -> Iterator[Rule]:
    """Yield rules for how two products add, given how many bits a sum held.

    `complete`: it held every gap that was tried, so it may hold more.
    """

    def held(n: int) -> bool:
        return n == bits or (n > bits and complete)

    out_bits = machine.width
    if class_of(Exact, machine) and held(out_bits):
        yield Exact(group=machine.depths[0])
    if class_of(Mac, machine):
        for name in accumulators():
            fmt = get_format(name)
            wide = name in _USUAL and held(out_bits) and fmt.precision - 1 > out_bits
            known = fmt.precision - 1 == bits or (name in _USUAL and held(fmt.precision - 1))
            if known or wide:
                near = fmt.emax < 70  # its ends are within reach of products
                overs = ("ieee", "inf", "saturate") if near else ("ieee",)
                flushes = FLUSHES if near else FLUSHES[:1]
                orders, fuses = (
                    (_ORDERS, (True, False)) if near and not complete else (_ORDERS[:1], (True,))
                )
                for fused, how, mode, over, tiny in product(fuses, orders, _MODES, overs, flushes):
                    known_ones = {"rounding": mode, "overflow": over, "fused": fused}
                    yield changed(Mac(acc_format=name), **known_ones, **how, **tiny)
    for group in (machine.depths[0], 1):
        yield from _blocks(machine, group, held, complete)


def _blocks(
    machine: Machine, group: int, held: Callable[[int], bool], complete: bool
) -> Iterator[Rule]:
    """Yield rules that align products; a `group` of 1 where two products do not meet in them."""
    single, wide = machine.out == "float32", machine.width
    keeps: Iterable[int] = (23,) if not single else (23, 13) if complete else range(23, 0, -1)
    joins: tuple[str, ...] = ("joins", "late") if single else ("joins", "late", "halves")
    if class_of(Fused, machine):
        for f, keep in product(_WIDTHS, keeps):
            if not held(min(f, keep, wide)):
                continue
            for join, cut, mode in product(
                joins if group > 1 else ("late",), ("truncate", "floor"), ("rtz", "rne")
            ):
                yield changed(
                    Fused(group, f), keep_bits=keep, accumulator=join, align=cut, rounding=mode
                )
    if class_of(TwoStage, machine) and single:
        for f, streams in product(_WIDTHS, (1, 2)):
            if held(min(f, 23)):
                yield TwoStage(group, f, sum_bits=max(f, 32), streams=streams)


def products(rule: Rule, machine: Machine) -> Iterator[Rule]:
    """Yield a rule with every way of rounding its products."""
    yield rule
    if isinstance(rule, Mac) and rule.fused:
        yield changed(rule, fused=False)
        full = machine.a.precision + machine.b.precision
        for name in accumulators():
            fmt = get_format(name)
            if fmt.precision <= full and fmt.kind == "float" and name != rule.acc_format:
                yield changed(rule, fused=False, product_format=name)


def meetings(rule: Rule, machine: Machine) -> Iterator[Rule]:
    """Yield a rule with every grouping and order."""
    depth = machine.depths[0]
    groups = [n for n in _GROUPS if n <= depth]
    groups += [n for n in range(3, depth + 1) if n not in groups]
    if isinstance(rule, Mac):
        yield changed(rule, order="sequential", group=None)
        yield changed(rule, order="odd_first", group=None)
        for order in ("tree", "two_chains"):
            for n in groups:
                if n % 2 == 0 or (n > 1 and order == "tree"):
                    yield changed(rule, order=order, group=n)
    else:
        for n in groups:
            yield changed(rule, group=n)


def ends(rule: Rule, machine: Machine) -> Iterator[Rule]:
    """Yield a rule with every treatment of zeros, small numbers, and NaN."""
    if isinstance(rule, TwoStage):
        for zeros in (False, True):
            yield changed(rule, zero_products=zeros)
    elif isinstance(rule, Exact):
        for minus in (False, True):
            yield changed(rule, negative_zero=minus)
    elif isinstance(rule, Mac):
        for tiny, minus, over in product(FLUSHES, (True, False), ("ieee", "inf", "saturate")):
            yield changed(rule, negative_zero=minus, overflow=over, **tiny)
    else:
        yield rule


def integers(machine: Machine) -> Iterator[Rule]:
    """Yield widths of an integer accumulator."""
    for bits, over in product(range(32, 7, -1), ("wrap", "saturate")):
        yield changed(IntSum(), acc_bits=bits, overflow=over)


def pairs(rule: Rule, machine: Machine) -> Iterator[Rule]:
    """Yield an integer rule with every limit of a sum of two products."""
    yield rule
    assert isinstance(rule, IntSum)
    for bits in range(8, 34):
        yield changed(rule, pair_bits=bits, group=2)


def integer_meetings(rule: Rule, machine: Machine) -> Iterator[Rule]:
    """Yield an integer rule with every group."""
    assert isinstance(rule, IntSum)
    step = 2 if rule.pair_bits else 1
    for n in range(step, machine.depths[0] + 1, step):
        yield changed(rule, group=n)


def known(machine: Machine) -> Iterator[tuple[str, Any]]:
    """Yield (name, unit) of every unit of the table that multiplies a machine's formats."""
    from numsim.errors import NumsimError

    for name in list_targets():
        unit = get_target(name)
        try:
            rule_for(unit, machine.a, machine.b, None if machine.integer else machine.out)
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
            yield from (-126, -133, -139)
    elif isinstance(limit, tuple):
        low, high = int(limit[0]), int(limit[1])
        high = min(high, machine.depths[-1]) if name == "group" else high
        if name in ("min_exponent", "pair_bits"):
            yield None
        steps = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
        yield from (value + n for n in steps if value + n <= high)
        yield from (value - n for n in steps if value - n >= low)
