"""From answers to rules: hypotheses are dropped as soon as one of their answers is another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.probe.kinds import WAYS, Seen, Ways
from numsim.probe.machine import (
    Batch,
    Laid,
    Machine,
    bits_of,
    changed,
    class_of,
    is_float,
    laid_out,
    plain_nan,
    restarts,
    unit_of,
)
from numsim.probe.readings import exact_bits, least_exponents, power_of
from numsim.targets import Target
from numsim.targets.rules import RULES
from numsim.targets.types import Rule

_SHORT = 8  # K that holds all terms of the batches below, and a group of +0 as the rest is
_TERMS = ("exact", "rich", "span", "start")
_FIRST = 40  # answers that a hypothesis must give before it is asked for the others
_NEAR = 6  # groupings tried for a unit whose sister was tried with all
_USUAL = 4
_PATIENCE = 12_000  # hypotheses that are tried, beside those of how two products add
_QUIET = {0x7FC00000, 0x7E00, 0x7FC0}  # the usual NaN of float32, float16, bfloat16
UNSEEN = 1 << 20  # promote_every of a unit that adds c at the end, and is not seen to restart


@dataclass
class Piece:
    """Answers of a machine, with the stimuli as our units take them."""

    name: str
    sums: Laid
    d: NDArray[Any]
    full: Laid | None = None  # where `sums` are cut short: the whole K

    def of(self, unit: Target, depth: int) -> Laid:
        """Return the stimuli for a unit: those cut short have a group of +0 behind the terms."""
        group = getattr(rule_of(unit), "group", None)
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
    ranks: dict[tuple[Any, ...], dict[tuple[Any, Any], int]] = field(default_factory=dict)

    def learn(self, batch: Batch, d: NDArray[Any]) -> None:
        """Keep the answers to a batch."""
        self.batches.append((batch, d))
        if is_float(d.dtype):
            self.nans |= {int(x) for x in bits_of(d[np.isnan(d)])}
        for rows in (slice(0, _FIRST), slice(_FIRST, None)):
            part, k = batch.rows(rows), _SHORT if batch.name in _TERMS else None
            if len(part.a):
                full = None
                if k and self.machine.scale is None:
                    full = laid_out(self.machine, part)
                    part = part._replace(a=part.a[:, :k], b=part.b[:, :k])
                piece = Piece(batch.name, laid_out(self.machine, part), d[rows], full)
                self.pieces.setdefault(batch.name, []).append(piece)

    @cached_property
    def seen(self) -> Seen:
        """What was read from the answers to the first stimuli."""
        m, known = self.machine, {batch.name: (batch, d) for batch, d in reversed(self.batches)}
        if m.integer:
            return Seen(m, m.width, True, 0, lambda bits: ())
        power = power_of(m, *known["span"]) if "span" in known else 0
        ends = [known[name] for name in ("edges", "span") if name in known]

        def limits(bits: int) -> set[int]:
            return set().union(*(least_exponents(m, *pair, bits, power) for pair in ends))

        return Seen(m, *exact_bits(m, *known["exact"], power), power, limits)

    def predicted(self, unit: Target, sums: Laid) -> NDArray[Any] | None:
        """Return what a unit answers; None where it cannot be."""
        try:
            with np.errstate(all="ignore"):
                return sums.answers(unit, self.machine)
        except NumsimError:
            return None

    def right(self, unit: Target, piece: Piece, nan: bool = False) -> NDArray[np.bool_]:
        """Return which answers of a unit are the machine's; `nan`: in the bits of NaN too."""
        found = self.predicted(unit, piece.of(unit, self.machine.depths[0]))
        if found is None or found.dtype != piece.d.dtype:
            return np.zeros(len(piece.d), bool)
        see = bits_of if nan else plain_nan
        return see(found) == see(piece.d)  # type: ignore[no-any-return]

    def fits(self, unit: Target | None, names: Iterable[str], nan: bool = False) -> bool:
        """Whether a unit gives every answer to the named batches."""
        if unit is None:
            return False
        self.tried += 1
        parts = [self.pieces.get(name, []) for name in names]
        return all(
            self.right(unit, piece, nan).all()
            for n in (0, 1)
            for part in parts
            for piece in (part[0::2], part[1::2])[n]
        )

    def answer(self, unit: Target, batch: Batch) -> NDArray[Any] | None:
        """Return the bits that a unit answers to a batch that was not asked."""
        found = self.predicted(unit, laid_out(self.machine, batch))
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
                    found = self.predicted(other, piece.of(other, self.machine.depths[0]))
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
            unit = unit_of(rule, m)
            if unit is None:
                continue
            yield unit
            if m.integer or ways.outer(rule):  # an outer sum makes +0 of its -0
                yield replace(unit, promote_every=UNSEEN)


def _products(search: Search, unit: Target) -> Iterator[Target]:
    yield from _all(search, unit, _ways(unit).products(rule_of(unit), search.machine))


def _joining(search: Search, unit: Target) -> Iterator[Target]:
    """Yield a unit that adds c itself, in every way, and one after which c is added."""
    yield from _all(search, unit, _ways(unit).joining(rule_of(unit), search.machine))
    if not restarts(unit):
        yield replace(unit, promote_every=UNSEEN)


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
    if ranks:
        usual = tried[:_USUAL]
        tried.sort(key=lambda rule: -ranks.get(_grouping(rule), 0))
        tried = [*tried[:_NEAR], *(rule for rule in usual if rule not in tried[:_NEAR])]
    for rule in tried:
        new = _with_class(search, unit, rule)
        if new is None:
            continue
        search.tried += 1
        piece = search.pieces["steps"][0]
        right = search.right(new, piece)
        ranks[_grouping(rule)] = max(ranks.get(_grouping(rule), 0), int(right.sum()))
        if right.all():
            yield new


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


def _cuts(search: Search, unit: Target) -> Iterator[Target]:
    """Yield a unit with every way of cutting a long K."""
    m = search.machine
    depth = m.depths[-1]
    for rule in _ways(unit).longer(rule_of(unit), m):
        base = with_rule(unit, rule)
        yield base
        if restarts(unit) or m.integer or not m.has_c:
            for every in range(8, depth, 8):
                yield replace(base, promote_every=every)
            for parts in range(2, 9):
                for tile in (16, 32, 64, 128, 256):
                    for order in ("contiguous", "serial", "pairwise"):
                        yield replace(
                            base, promote_every=None, split_k=parts, split_tile=tile,
                            split_order=order,
                        )  # fmt: skip


def _same(search: Search, unit: Target) -> Iterator[Target]:
    yield unit


def _all_meetings(search: Search, unit: Target) -> Iterator[Target]:
    yield from _all(search, unit, _ways(unit).meetings(rule_of(unit), search.machine))


class Stage(NamedTuple):
    """One question: its words, what may be, and the batches that decide."""

    words: str
    step: Step
    names: tuple[str, ...]


_FLOATS = (
    Stage("how two products add", _adding, ("exact",)),
    Stage("how products are rounded", _products, ("rich",)),
    Stage("where c joins", _joining, ("start",)),
    Stage("which products meet before a rounding", _meeting, ("steps",)),
    Stage("zeros, small and large numbers, NaN", _ends, ("span", "edges")),
    Stage("how a long K is cut", _cuts, ("long",)),
    Stage("random sums", _same, ("random",)),
)
_INTEGERS = (
    Stage("width of the accumulator", _adding, ("start",)),
    Stage("limit of a pair of products", _products, ("exact",)),
    Stage("which products meet before the limit", _all_meetings, ("steps",)),
    Stage("ends of the range", _same, ("edges",)),
    Stage("how a long K is cut", _cuts, ("long",)),
    Stage("random sums", _same, ("random",)),
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
    stages = _INTEGERS if search.machine.integer else _FLOATS
    arrived: list[list[Target]] = [[] for _ in stages]  # by stage, units that none of it fits
    whole: dict[tuple[Any, ...], Target] = {}
    spent: list[int] = []

    def deeper(unit: Target | None, n: int) -> bool:
        if n == len(stages):
            assert unit is not None
            whole.setdefault(_kind(unit), unit)
            return True
        stage = stages[n]
        units = stage.step(search, unit)  # type: ignore[arg-type]  # the first stage has none
        fit = (new for new in units if search.fits(new, stage.names))
        hopeful = False
        some = fit if n > 1 else _in_turn(list(fit))
        if n == 0:
            spent.append(search.tried)  # all ways to add two products were tried
        for new in some:
            hopeful = True
            if n < 2 and any(_kind(new)[:4] == known[:4] for known in whole):
                continue  # another width of a kind that fits: found by its neighbours
            if search.tried - spent[0] > (_PATIENCE if not whole else _PATIENCE // 4):
                return False
            if deeper(new, n + 1) and n > 1:
                return True
        if not hopeful and unit is not None:
            arrived[n].append(unit)
        return False

    deeper(None, 0)
    if whole:
        return Found(list(whole.values()), "", search.tried)
    last = max((n for n, units in enumerate(arrived) if units), default=0)
    near = [new for unit in arrived[last][:8] for new in _all_of(stages[last], search, unit)]
    if not near:
        return Found([], stages[0].words, search.tried)
    near.sort(key=lambda u: -search.share(u, stages[last].names)[0])
    best = max(near[:12], key=lambda u: search.share(u)[0])
    return Found([best], stages[last].words, search.tried)
