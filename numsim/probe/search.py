"""What a machine answered, and which units answer as it does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.probe.lines import Lines
from numsim.probe.machine import (
    Batch,
    Machine,
    bits_of,
    is_float,
    plain_nan,
)
from numsim.probe.readings import exact_bits, least_exponents, power_of
from numsim.probe.ways import Seen
from numsim.targets import Target, get_target
from numsim.targets.types import Rule

_SHORT = 8  # K that holds all terms of the batches below, and a group of +0 as the rest is
_TERMS = ("exact", "rich", "span", "start")
_TURNS = (0, 8, 40, None)  # a hypothesis gives the first 8 answers to be asked for more, then 40


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
