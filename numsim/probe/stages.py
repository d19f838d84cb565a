"""What is asked of a hypothesis, question by question: its stages, and the ways to cut a long K."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from numsim.probe.kinds import WAYS
from numsim.probe.machine import (
    changed,
    class_of,
    restarts,
    unit_of,
)
from numsim.probe.search import Search, rule_of, with_rule
from numsim.probe.ways import Ways
from numsim.targets import Target
from numsim.targets.rules import RULES
from numsim.targets.types import Rule

_NEAR = 6  # groupings tried for a unit whose sister was tried with all
_USUAL = 4
_NEAR_CUTS = 8  # ways to cut K, likewise
_QUIET = {0x7FC00000, 0x7E00, 0x7FC0}  # the usual NaN of float32, float16, bfloat16
UNSEEN = 1 << 20  # promote_every of a unit that adds c at the end, and is not seen to restart


Step = Callable[["Search", Target], Iterator[Target]]


def _ways(unit: Target) -> Ways:
    return WAYS[type(rule_of(unit))]


def _adding(search: Search, _: Target) -> Iterator[Target]:
    """Yield units by how they add two products, or c and one."""
    m = search.machine
    for kind, ways in WAYS.items():
        if RULES[kind].integers != m.integer or class_of(kind, m) is None:
            continue
        for rule in ways.adding(search.seen):
            if not search.may_fit(rule, "start" if m.integer else "exact"):
                search.tried += 1
                continue
            unit = unit_of(rule, m)
            if unit is None:
                continue
            yield unit
            if m.integer or ways.outer(rule):  # an outer sum makes +0 of its -0
                yield replace(unit, promote_every=UNSEEN)


def _products(search: Search, unit: Target) -> Iterator[Target]:
    name = "exact" if search.machine.integer else "rich"
    rules = _ways(unit).products(rule_of(unit), search.machine)
    for rule in rules:
        if search.may_fit(rule, name):
            yield from every(search, unit, (rule,))
        else:
            search.tried += 1


def _joining(search: Search, unit: Target) -> Iterator[Target]:
    """Yield a unit that adds c itself, in every way, and one after which c is added."""
    for new in every(search, unit, _ways(unit).joining(rule_of(unit), search.machine)):
        yield new
        if not restarts(unit):
            yield replace(new, promote_every=UNSEEN)


def every(search: Search, unit: Target, rules: Iterable[Rule]) -> Iterator[Target]:
    """Yield a unit with each of some rules that its operands can have."""
    for rule in rules:
        new = _with_class(search, unit, rule)
        if new is not None:
            yield new


def meeting(search: Search, unit: Target) -> Iterator[Target]:
    """Yield a unit with every grouping and order.

    All are tried for the first unit of a kind; its sisters of other widths have those that came
    nearest, and the usual ones.
    """
    kind = kind_of(unit)[:4]
    ranks = search.ranks.setdefault(kind, {})
    tried = list(_ways(unit).meetings(rule_of(unit), search.machine))
    if ranks and not search.thorough:
        usual = [*tried[:_USUAL], *_next(search, ("meeting", *kind), tried, _NEAR)]
        tried.sort(key=lambda rule: -ranks.get(_grouping(rule), 0))
        tried = [*tried[:_NEAR], *(rule for rule in usual if rule not in tried[:_NEAR])]
    for rule in tried:
        new = _with_class(search, unit, rule)
        if new is None:
            continue
        search.tried += 1
        some = [piece for piece in search.pieces.get("steps", ()) if piece.turn < 2]
        right = [search.right(new, piece, unchecked=True) for piece in some]  # none: not asked yet
        count = sum(int(x.sum()) for x in right)
        ranks[_grouping(rule)] = max(ranks.get(_grouping(rule), 0), count)
        if count == sum(len(x) for x in right):
            yield new


def _next(search: Search, key: tuple[Any, ...], items: Sequence[Any], count: int) -> list[Any]:
    """Return the items after those of the last time: sister by sister all have their turn."""
    at = search.places.get(key, 0)
    search.places[key] = at + count
    return [items[(at + n) % len(items)] for n in range(min(count, len(items)))]


def _grouping(rule: Any) -> tuple[Any, Any]:
    return getattr(rule, "order", None), getattr(rule, "group", None)


def _with_class(search: Search, unit: Target, rule: Rule) -> Target | None:
    return None if unit_of(rule, search.machine) is None else with_rule(unit, rule)


def _ends(search: Search, unit: Target) -> Iterator[Target]:
    """Yield a unit with every treatment of zeros, small numbers, and NaN as it came."""
    own = {f.name for f in fields(rule_of(unit))}
    quiet = bool(search.nans & _QUIET)
    for rule in _ways(unit).ends(rule_of(unit), search.seen):
        named = "nan" in own and search.nans
        yield with_rule(unit, changed(rule, nan="quiet" if quiet else "ones") if named else rule)


Cut = dict[str, Any]  # fields of a unit


@lru_cache(maxsize=8)
def _ways_to_cut(depth: int) -> tuple[Cut, ...]:
    """Return the ways in which a K may be cut."""
    promoted = [{"promote_every": every} for every in range(8, depth, 8)]
    split = [
        {"promote_every": None, "split_k": parts, "split_tile": tile, "split_order": order}
        for parts, tile, order in product(
            range(2, 9), (16, 32, 64, 128, 256), ("contiguous", "serial", "pairwise")
        )
    ]
    return (*promoted, *split)


def _bases(search: Search, unit: Target) -> Iterator[tuple[Target, tuple[Cut, ...]]]:
    """Yield a unit with the groups that only a long K shows, and how else it may cut K."""
    m = search.machine
    some = restarts(unit) or m.integer or not m.has_c
    for rule in _ways(unit).longer(rule_of(unit), m):
        yield with_rule(unit, rule), (_ways_to_cut(m.depths[-1]) if some else ())


def cuts(search: Search, unit: Target) -> Iterator[Target]:
    """Yield a unit with every way of cutting a long K."""
    for base, more in _bases(search, unit):
        yield base
        yield from (replace(base, **cut) for cut in more)


def cut_of(unit: Target) -> tuple[Any, ...]:
    """Return how a unit cuts a long K."""
    split = (unit.split_k, unit.split_tile, unit.split_order) if unit.split_k > 1 else ()
    return (unit.promote_every, *split)


def _cuts(search: Search, unit: Target) -> Iterator[Target]:
    """Yield a unit with the ways of cutting a long K that its answers may be of.

    All are tried for the first unit of a kind; the next ones have those that came nearest, until
    nothing is left but to try all.
    """
    ranks = search.ranks.setdefault(("cuts", type(rule_of(unit)), restarts(unit)), {})
    near = set(sorted(ranks, key=lambda key: -ranks[key])[:_NEAR_CUTS])
    some = [piece for piece in search.pieces.get("long", []) if piece.turn < 2]
    for base, more in _bases(search, unit):
        yield base
        group = getattr(rule_of(base), "group", None)
        if near and more:
            key = ("cuts", type(rule_of(unit)), restarts(unit))
            near |= {(n, group) for n in _next(search, key, range(len(more)), _NEAR_CUTS)}
        for n, cut in enumerate(more):
            place = (n, group)
            if near and not search.thorough and place not in near:
                continue
            new = replace(base, **cut)
            if place not in ranks and some:
                right = [search.right(new, piece, unchecked=True) for piece in some]
                ranks[place] = sum(int(x.sum()) for x in right)
                search.tried += 1
                if ranks[place] < sum(len(x) for x in right):
                    continue
            yield new


def same_unit(search: Search, unit: Target) -> Iterator[Target]:
    """Yield a unit: nothing of it is asked but whether it fits."""
    yield unit


def all_meetings(search: Search, unit: Target) -> Iterator[Target]:
    """Yield a unit with every grouping and order, whatever its sisters had."""
    yield from every(search, unit, _ways(unit).meetings(rule_of(unit), search.machine))


class Stage(NamedTuple):
    """One question: its words, what may be, and the batches that decide."""

    words: str
    step: Step
    names: tuple[str, ...]  # none: all


FLOATS = (
    Stage("how two products add", _adding, ("exact",)),
    Stage("how products are rounded", _products, ("rich",)),
    Stage("where c joins", _joining, ("start",)),
    Stage("which products meet before a rounding", meeting, ("steps",)),
    Stage("zeros, small and large numbers, NaN", _ends, ("span", "edges")),
    Stage("how a long K is cut", _cuts, ("long",)),
    Stage("random sums", same_unit, ()),
)
INTEGERS = (
    Stage("width of the accumulator", _adding, ("start",)),
    Stage("limit of a pair of products", _products, ("exact",)),
    Stage("which products meet before the limit", all_meetings, ("steps",)),
    Stage("ends of the range", same_unit, ("edges",)),
    Stage("how a long K is cut", _cuts, ("long",)),
    Stage("random sums", same_unit, ()),
)


def kind_of(unit: Target) -> tuple[Any, ...]:
    """Return the words of a unit's rule, without its numbers: one is tried of each."""
    rule = rule_of(unit)
    words = ("accumulator", "rounding", "align", "streams", "fused", "order", "subnormals")
    return (type(rule).__name__, *(getattr(rule, word, None) for word in words), restarts(unit))
