"""From answers to rules: hypotheses are dropped as soon as one of their answers is another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from numsim.formats import get_format
from numsim.probe.kinds import accumulators
from numsim.probe.machine import (
    changed,
)
from numsim.probe.rules import nearby
from numsim.probe.search import Search, rule_of, with_rule
from numsim.probe.stages import (
    FLOATS,
    INTEGERS,
    UNSEEN,
    Stage,
    all_meetings,
    cuts,
    every,
    kind_of,
    meeting,
)
from numsim.targets import Target
from numsim.targets.types import Mac

_STARTS = 24  # of the nearest units, whose answers are all counted
_KINDS = 4  # of rules that fit every answer are enough to be told apart
_MORE = 200  # where another kind fits already
_PATIENCE = 4_000  # hypotheses of a kind that are tried once it is known how two products add


def _in_turn(units: list[Target]) -> list[Target]:
    """Return units with the kinds of rules in turn: a wrong kind then costs little."""
    kinds: dict[tuple[Any, ...], list[Target]] = {}
    for unit in units:
        kinds.setdefault(kind_of(unit), []).append(unit)
    rows = zip_longest(*kinds.values())
    return [unit for row in rows for unit in row if unit is not None]


@dataclass
class Found:
    """Units that fit every answer, or the nearest one and the stage at which none fitted."""

    units: list[Target]
    failed: str
    tried: int


def _all_of(stage: Stage, search: Search, unit: Target) -> Iterator[Target]:
    """Yield what a stage makes of a unit, whether it fits or not."""
    return (all_meetings if stage.step is meeting else stage.step)(search, unit)


def infer(search: Search) -> Found:
    """Return units of different kinds that fit all answers, else the one that came nearest."""
    first: Found | None = None
    for thorough in (False, True):
        search.thorough = search.thorough or thorough
        found = _infer(search)
        if not found.failed:
            return found
        found = _climbed(search, found)
        if not found.failed:
            return found
        if first is None or not first.units:
            first = found
    assert first is not None
    return replace(first, tried=search.tried)


def _climbed(search: Search, found: Found) -> Found:
    """Return what steps from the nearest units lead to: one field at a time, ever more answers."""
    asked = sum(len(d) for _, d in search.batches)
    for unit in found.units:
        best, score = unit, search.share(unit)[0]
        while score < asked:
            for ways in (_steps, cuts):
                some = enumerate(ways(search, best))
                tried = [(search.share(new)[0], -n, new) for n, new in some]
                search.tried += len(tried)
                top = max(tried, key=lambda item: item[:2], default=(0, 0, best))
                if top[0] > score:
                    break
            if top[0] <= score:
                break
            score, _, best = top
        if score == asked:
            return Found([best], "", search.tried)
        found.units[found.units.index(unit)] = best
    found.units.sort(key=lambda unit: -search.share(unit)[0])
    return found


def _steps(search: Search, unit: Target) -> Iterator[Target]:
    """Yield units beside a unit: one field of its rule, or how it cuts K, is another."""
    rule: Any = rule_of(unit)
    for _, other in nearby(rule, search.machine):
        yield from every(search, unit, (other,))
    if isinstance(rule, Mac):
        bits = get_format(rule.acc_format).precision
        for name in accumulators():
            if abs(get_format(name).precision - bits) <= 1:
                yield with_rule(unit, changed(rule, acc_format=name))
    if search.machine.integer or len(search.machine.depths) > 1:
        yield replace(unit, promote_every=None, split_k=1)
        yield replace(unit, promote_every=UNSEEN, split_k=1)


def _infer(search: Search) -> Found:
    stages = INTEGERS if search.machine.integer else FLOATS
    arrived: list[list[Target]] = [[] for _ in stages]  # by stage, units that none of it fits
    whole: dict[tuple[Any, ...], Target] = {}

    def fitting(unit: Target | None, n: int) -> Iterator[Target]:
        stage, hopeful = stages[n], False
        names = stage.names or tuple(search.pieces)
        for new in stage.step(search, unit):  # type: ignore[arg-type]  # the first stage has none
            if search.fits(new, names):
                hopeful = True
                yield new
        if not hopeful and unit is not None:
            arrived[n].append(unit)

    def deeper(unit: Target, n: int) -> bool:
        if n == len(stages):
            whole.setdefault(kind_of(unit), unit)
            return True
        for new in fitting(unit, n):
            if search.tried - spent > (patience if not whole else _MORE):
                return False
            if deeper(new, n + 1):
                return True
        return False

    patience = _PATIENCE * (10 if search.machine.integer else 1)  # of sums that are soon asked
    alone = 1 if search.machine.integer else 3  # stages that do not know which products meet
    units: list[Any] = [None]
    for n in range(alone):
        units = [new for unit in units for new in fitting(unit, n)]
    spent, kind = search.tried, None
    scores: dict[tuple[Any, ...], int] = {}
    ordered = _in_turn(units) if search.machine.integer else _promising(search, units, scores)
    for unit in ordered:
        if whole and scores and scores[kind_of(unit)[:4]] < max(scores.values()):
            break  # another kind does better
        if len(whole) >= _KINDS:
            break
        if kind != kind_of(unit)[:4]:
            spent, kind = search.tried, kind_of(unit)[:4]
        if any(kind_of(unit)[:4] == known[:4] for known in whole):
            continue  # another width of a kind that fits: found by its neighbours
        if search.tried - spent <= (patience if not whole else _MORE):
            deeper(unit, alone)
    if whole:
        return Found(list(whole.values()), "", search.tried)
    last = max((n for n, units in enumerate(arrived) if units), default=0)
    first = {kind_of(unit)[:4]: unit for unit in reversed(arrived[last])}
    near = [new for unit in first.values() for new in _all_of(stages[last], search, unit)]
    if not near:
        return Found([], stages[0].words, search.tried)
    near.sort(key=lambda u: -search.share(u, stages[last].names or None)[0])
    near = sorted(near[:_STARTS], key=lambda u: -search.share(u)[0])
    kinds = {kind_of(unit)[:4]: unit for unit in reversed(near)}
    best = [unit for unit in near if kinds[kind_of(unit)[:4]] is unit]
    return Found(best[:3], stages[last].words, search.tried)


def _promising(
    search: Search, units: list[Target], scores: dict[tuple[Any, ...], int]
) -> list[Target]:
    """Return units, first those of kinds that come nearest in which products meet: `scores`."""
    kinds: dict[tuple[Any, ...], list[Target]] = {}
    for unit in units:
        kinds.setdefault(kind_of(unit)[:4], []).append(unit)
    for kind, some in kinds.items():
        for _ in meeting(search, some[0]):
            pass
        scores[kind] = max(search.ranks[kind].values(), default=0)
    order = sorted(kinds, key=lambda kind: -scores[kind])
    return [unit for kind in order for unit in _in_turn(kinds[kind])]
