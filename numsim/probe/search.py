"""From answers to rules: hypotheses are dropped as soon as one of their answers is another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from itertools import pairwise, product, zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.formats import get_format
from numsim.probe.kinds import WAYS, Seen, Ways, accumulators
from numsim.probe.lines import Lines
from numsim.probe.machine import (
    Batch,
    Machine,
    bits_of,
    changed,
    class_of,
    is_float,
    plain_nan,
    restarts,
    unit_of,
)
from numsim.probe.readings import exact_bits, least_exponents, power_of
from numsim.probe.rules import nearby
from numsim.targets import Target, get_target
from numsim.targets.rules import RULES
from numsim.targets.types import Mac, Rule

_SHORT = 8  # K that holds all terms of the batches below, and a group of +0 as the rest is
_TERMS = ("exact", "rich", "span", "start")
_TURNS = (0, 8, 40, None)  # a hypothesis gives the first 8 answers to be asked for more, then 40
_NEAR = 6  # groupings tried for a unit whose sister was tried with all
_USUAL = 4
_NEAR_CUTS = 8  # ways to cut K, likewise
_STARTS = 24  # of the nearest units, whose answers are all counted
_KINDS = 4  # of rules that fit every answer are enough to be told apart
_MORE = 200  # where another kind fits already
_PATIENCE = 4_000  # hypotheses of a kind that are tried once it is known how two products add
_QUIET = {0x7FC00000, 0x7E00, 0x7FC0}  # the usual NaN of float32, float16, bfloat16
UNSEEN = 1 << 20  # promote_every of a unit that adds c at the end, and is not seen to restart


@dataclass
class Piece:
    """Answers of a machine, with the stimuli as our units take them."""

    name: str
    turn: int  # those of the first are asked for first, whatever their batch
    sums: Lines
    d: NDArray[Any]
    full: Lines | None = None  # where `sums` are cut short: the whole K

    @cached_property
    def bits(self) -> NDArray[Any]:
        """The answers' bits, one pattern for every NaN."""
        return plain_nan(self.d)

    def of(self, rule: Any, depth: int) -> Lines:
        """Return the stimuli for a rule: those cut short have a group of +0 behind the terms."""
        group = getattr(rule, "group", None)
        if self.full is not None and group is not None and _SHORT <= group < depth:
            return self.full
        return self.sums


@dataclass
class Search:
    """What a machine answered so far."""

    machine: Machine
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    batches: list[tuple[Batch, NDArray[Any]]] = field(default_factory=list)
    nans: set[int] = field(default_factory=set)  # bit patterns of NaN that came
    tried: int = 0
    known: dict[Any, dict[int, bool]] = field(default_factory=dict)  # by piece: whether it fits
    ranks: dict[tuple[Any, ...], dict[tuple[Any, Any], int]] = field(default_factory=dict)
    turns: dict[tuple[str, ...], list[Piece]] = field(default_factory=dict)
    places: dict[tuple[Any, ...], int] = field(default_factory=dict)
    thorough: bool = False  # nothing was found near what came nearest: all is tried

    def learn(self, batch: Batch, d: NDArray[Any]) -> None:
        """Keep the answers to a batch."""
        self.batches.append((batch, d))
        self.turns.clear()
        if is_float(d.dtype):
            self.nans |= {int(x) for x in bits_of(d[np.isnan(d)])}
        for turn, ends in enumerate(pairwise(_TURNS)):
            rows = slice(*ends)
            part, k = batch.rows(rows), _SHORT if batch.name in _TERMS else None
            if len(part.a):
                full = None
                if k and self.machine.scale is None:
                    full = Lines(self.machine, part)
                    part = part._replace(a=part.a[:, :k], b=part.b[:, :k])
                piece = Piece(batch.name, turn, Lines(self.machine, part), d[rows], full)
                self.pieces.setdefault(batch.name, []).append(piece)

    @property
    def seen(self) -> Seen:
        """What was read from the answers to the first stimuli."""
        return self._seen._replace(thorough=self.thorough)

    @cached_property
    def _seen(self) -> Seen:
        m, known = self.machine, {batch.name: (batch, d) for batch, d in reversed(self.batches)}
        if m.integer:
            return Seen(m, m.width, True, 0, 0, lambda bits: ())
        power = power_of(m, *known["span"]) if "span" in known else 0
        ends = [known[name] for name in ("edges", "span") if name in known]

        def limits(bits: int) -> set[int]:
            return set().union(*(least_exponents(m, *pair, bits, power) for pair in ends))

        return Seen(m, *exact_bits(m, *known["exact"], power), power, limits)

    def predicted(
        self, unit: Target, sums: Lines, *, unchecked: bool = False
    ) -> NDArray[Any] | None:
        """Return what a unit answers; None where it cannot be.

        `unchecked`: whether it can be is asked later, if the answers are right.
        """
        try:
            if not unchecked:
                get_target(unit)
            with np.errstate(all="ignore"):
                return sums.answers(unit)
        except NumsimError:
            return None

    def right(self, unit: Target, piece: Piece, *, unchecked: bool = False) -> NDArray[np.bool_]:
        """Return which answers of a unit are the machine's."""
        sums = piece.of(rule_of(unit), self.machine.depths[0])
        found = self.predicted(unit, sums, unchecked=unchecked)
        if found is None or found.dtype != piece.d.dtype:
            return np.zeros(len(piece.d), bool)
        return plain_nan(found) == piece.bits  # type: ignore[no-any-return]

    def fits(self, unit: Target | None, names: Iterable[str]) -> bool:
        """Whether a unit gives every answer to the named batches."""
        if unit is None:
            return False
        self.tried += 1
        known = self.known.setdefault(_key(unit), {})
        for piece in self._in_turn(tuple(names)):
            fit = known.get(id(piece))
            if fit is None:
                fit = bool(self.right(unit, piece, unchecked=True).all())
                known[id(piece)] = fit
            if not fit:
                return False
        try:
            get_target(unit)
        except NumsimError:
            return False
        return True

    def may_fit(self, rule: Any, name: str) -> bool:
        """Whether a rule gives the first answers to a batch, or an adder behind it does.

        Asked of a rule alone before a unit is made of it: most end here.
        """
        piece = self.pieces[name][0]
        with np.errstate(all="ignore"):
            found = piece.of(rule, self.machine.depths[0]).from_zero(rule)
            if found is None:
                return True
            fit = (plain_nan(found) == piece.bits).all()
            if fit or not is_float(found.dtype):
                return bool(fit)
            return bool((plain_nan(found + found.dtype.type(0)) == piece.bits).all())

    def _in_turn(self, names: tuple[str, ...]) -> list[Piece]:
        """Return the answers to the named batches, those that are asked for first before."""
        if names not in self.turns:
            pieces = [piece for name in names for piece in self.pieces.get(name, [])]
            self.turns[names] = sorted(pieces, key=lambda piece: piece.turn)
        return self.turns[names]

    def answer(self, unit: Target, sums: Lines) -> NDArray[Any] | None:
        """Return the bits that a unit answers to stimuli that were not asked."""
        found = self.predicted(unit, sums)
        return None if found is None else plain_nan(found)

    def first_difference(self, unit: Target, other: Target) -> tuple[str, str, str] | None:
        """Return (stimulus, machine's bits, other's bits) where a unit is right, another not."""
        for name, pieces in self.pieces.items():
            start = 0
            for piece in pieces:
                telling = ~self.right(other, piece)
                if telling.any():
                    telling &= self.right(unit, piece)
                if telling.any():
                    row = int(np.argmax(telling))
                    found = self.predicted(other, piece.of(rule_of(other), self.machine.depths[0]))
                    instead = "none" if found is None else hex(int(bits_of(found)[row]))
                    return f"{name} {start + row}", hex(int(bits_of(piece.d)[row])), instead
                start += len(piece.d)
        return None

    def share(self, unit: Target, names: Iterable[str] | None = None) -> tuple[int, int]:
        """Return how many answers of a unit are the machine's, and of how many."""
        some = self.pieces if names is None else names
        found = [self.right(unit, p) for name in some for p in self.pieces.get(name, [])]
        return sum(int(x.sum()) for x in found), sum(x.size for x in found)


def rule_of(unit: Target) -> Rule:
    """Return the one rule of a hypothesis."""
    return unit.rules[0][1]


def _key(unit: Target) -> tuple[Any, ...]:
    """Return what a hypothesis computes depends on."""
    split = (unit.split_tile, unit.split_order) if unit.split_k > 1 else ()
    return (unit.rules, unit.promote_every, unit.split_k, *split)


def with_rule(unit: Target, rule: Rule, **chain: Any) -> Target:
    """Return a hypothesis with another rule, and other cuts of K."""
    return replace(unit, rules=((unit.rules[0][0], rule),), **chain)


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
            yield from _all(search, unit, (rule,))
        else:
            search.tried += 1


def _joining(search: Search, unit: Target) -> Iterator[Target]:
    """Yield a unit that adds c itself, in every way, and one after which c is added."""
    for new in _all(search, unit, _ways(unit).joining(rule_of(unit), search.machine)):
        yield new
        if not restarts(unit):
            yield replace(new, promote_every=UNSEEN)


def _all(search: Search, unit: Target, rules: Iterable[Rule]) -> Iterator[Target]:
    for rule in rules:
        new = _with_class(search, unit, rule)
        if new is not None:
            yield new


def _meeting(search: Search, unit: Target) -> Iterator[Target]:
    """Yield a unit with every grouping and order.

    All are tried for the first unit of a kind; its sisters of other widths have those that came
    nearest, and the usual ones.
    """
    kind = _kind(unit)[:4]
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
        some = [piece for piece in search.pieces["steps"] if piece.turn < 2]
        right = np.concatenate([search.right(new, piece, unchecked=True) for piece in some])
        ranks[_grouping(rule)] = max(ranks.get(_grouping(rule), 0), int(right.sum()))
        if right.all():
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


def _same(search: Search, unit: Target) -> Iterator[Target]:
    yield unit


def _all_meetings(search: Search, unit: Target) -> Iterator[Target]:
    yield from _all(search, unit, _ways(unit).meetings(rule_of(unit), search.machine))


class Stage(NamedTuple):
    """One question: its words, what may be, and the batches that decide."""

    words: str
    step: Step
    names: tuple[str, ...]  # none: all


_FLOATS = (
    Stage("how two products add", _adding, ("exact",)),
    Stage("how products are rounded", _products, ("rich",)),
    Stage("where c joins", _joining, ("start",)),
    Stage("which products meet before a rounding", _meeting, ("steps",)),
    Stage("zeros, small and large numbers, NaN", _ends, ("span", "edges")),
    Stage("how a long K is cut", _cuts, ("long",)),
    Stage("random sums", _same, ()),
)
_INTEGERS = (
    Stage("width of the accumulator", _adding, ("start",)),
    Stage("limit of a pair of products", _products, ("exact",)),
    Stage("which products meet before the limit", _all_meetings, ("steps",)),
    Stage("ends of the range", _same, ("edges",)),
    Stage("how a long K is cut", _cuts, ("long",)),
    Stage("random sums", _same, ()),
)


def _kind(unit: Target) -> tuple[Any, ...]:
    rule = rule_of(unit)
    words = ("accumulator", "rounding", "align", "streams", "fused", "order", "subnormals")
    return (type(rule).__name__, *(getattr(rule, word, None) for word in words), restarts(unit))


def _in_turn(units: list[Target]) -> list[Target]:
    """Return units with the kinds of rules in turn: a wrong kind then costs little."""
    kinds: dict[tuple[Any, ...], list[Target]] = {}
    for unit in units:
        kinds.setdefault(_kind(unit), []).append(unit)
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
    return (_all_meetings if stage.step is _meeting else stage.step)(search, unit)


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
        yield from _all(search, unit, (other,))
    if isinstance(rule, Mac):
        bits = get_format(rule.acc_format).precision
        for name in accumulators():
            if abs(get_format(name).precision - bits) <= 1:
                yield with_rule(unit, changed(rule, acc_format=name))
    if search.machine.integer or len(search.machine.depths) > 1:
        yield replace(unit, promote_every=None, split_k=1)
        yield replace(unit, promote_every=UNSEEN, split_k=1)


def _infer(search: Search) -> Found:
    stages = _INTEGERS if search.machine.integer else _FLOATS
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
            whole.setdefault(_kind(unit), unit)
            return True
        for new in fitting(unit, n):
            if search.tried - spent > (patience if not whole else _MORE):
                return False
            if deeper(new, n + 1):
                return True
        return False

    patience = _PATIENCE * (5 if search.machine.integer else 1)  # of sums that are soon asked
    alone = 1 if search.machine.integer else 3  # stages that do not know which products meet
    units: list[Any] = [None]
    for n in range(alone):
        units = [new for unit in units for new in fitting(unit, n)]
    spent, kind = search.tried, None
    scores: dict[tuple[Any, ...], int] = {}
    ordered = _in_turn(units) if search.machine.integer else _promising(search, units, scores)
    for unit in ordered:
        if whole and scores and scores[_kind(unit)[:4]] < max(scores.values()):
            break  # another kind does better
        if len(whole) >= _KINDS:
            break
        if kind != _kind(unit)[:4]:
            spent, kind = search.tried, _kind(unit)[:4]
        if any(_kind(unit)[:4] == known[:4] for known in whole):
            continue  # another width of a kind that fits: found by its neighbours
        if search.tried - spent <= (patience if not whole else _MORE):
            deeper(unit, alone)
    if whole:
        return Found(list(whole.values()), "", search.tried)
    last = max((n for n, units in enumerate(arrived) if units), default=0)
    first = {_kind(unit)[:4]: unit for unit in reversed(arrived[last])}
    near = [new for unit in first.values() for new in _all_of(stages[last], search, unit)]
    if not near:
        return Found([], stages[0].words, search.tried)
    near.sort(key=lambda u: -search.share(u, stages[last].names or None)[0])
    near = sorted(near[:_STARTS], key=lambda u: -search.share(u)[0])
    kinds = {_kind(unit)[:4]: unit for unit in reversed(near)}
    best = [unit for unit in near if kinds[_kind(unit)[:4]] is unit]
    return Found(best[:3], stages[last].words, search.tried)


def _promising(
    search: Search, units: list[Target], scores: dict[tuple[Any, ...], int]
) -> list[Target]:
    """Return units, first those of kinds that come nearest in which products meet: `scores`."""
    kinds: dict[tuple[Any, ...], list[Target]] = {}
    for unit in units:
        kinds.setdefault(_kind(unit)[:4], []).append(unit)
    for kind, some in kinds.items():
        for _ in _meeting(search, some[0]):
            pass
        scores[kind] = max(search.ranks[kind].values(), default=0)
    order = sorted(kinds, key=lambda kind: -scores[kind])
    return [unit for kind in order for unit in _in_turn(kinds[kind])]
