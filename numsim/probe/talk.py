"""The conversation with a machine: rounds of stimuli, and what their answers leave."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import fields, replace
from typing import Any

import numpy as np

from numsim.probe import rules as rules_of
from numsim.probe.found import Probe, ProbeError, Witness
from numsim.probe.infer import Found, infer
from numsim.probe.inputs import first_round, moderate_sums, random_sums
from numsim.probe.lines import Lines
from numsim.probe.machine import Answers, Batch, Doubt, is_float, joined, restarts
from numsim.probe.search import Search, rule_of, with_rule
from numsim.probe.stages import UNSEEN, all_meetings, cut_of, cuts
from numsim.targets import Target

Talk = Generator[list[Batch], list[Answers], Probe]

_ROUNDS = 5  # after the first: stimuli on which hypotheses that fit so far differ
_WITNESSES = 6  # stimuli for two such hypotheses
_OF_EACH = 3  # hypotheses beside another that are compared on many sums
_LISTED = 3  # values that are named one by one
_MANY = 8  # times as many sums for those that the usual ones do not tell apart


def conversation(search: Search) -> Talk:
    """Yield rounds of stimuli, take their answers into `search`, return what was found."""
    machine = search.machine
    batches = list(first_round(machine))
    for batch, d in zip(batches, (yield batches), strict=True):
        search.learn(batch, d)
    found = infer(search)
    open_ones: dict[str, str] = {}
    for number in range(_ROUNDS if not found.failed else 0):
        rivals = found.units[1:] + [unit for _, unit in neighbours(search, found.units[0])]
        short, equal = witnesses(search, found.units[0], rivals, number)
        others = other_cuts(search, found.units[0])
        long, same = witnesses(search, found.units[0], others, number, long=True)
        equal += same
        plain = _rounds_least(found.units[0], equal)
        equal = [unit for unit in (*found.units[:1], *equal) if unit is not plain]
        found.units[0] = plain
        open_ones = _ranges(plain, equal)
        telling = [batch for batch in (short, long) if batch is not None]
        if not telling:
            break
        for batch, d in zip(telling, (yield telling), strict=True):
            search.learn(batch, d)
        rivals += [*others, *equal]
        names = tuple(search.pieces)
        left = [unit for unit in (found.units[0], *rivals) if search.fits(unit, names)]
        if not left:
            found = infer(search)
            if found.failed:
                break
        else:
            found = Found([left[0], *(u for u in left[1:] if u in found.units)], "", search.tried)
    return summary(search, found, open_ones)


def neighbours(search: Search, unit: Target) -> list[tuple[str, Target]]:
    """Return (field, unit) with one field changed, for all that fit every answer so far."""
    found, dead = [], set()
    names = tuple(search.pieces)
    for name, rule in rules_of.nearby(rule_of(unit), search.machine):
        key, side = name, rules_of.side(rule_of(unit), rule, name)
        if (key, side) in dead:
            continue  # beyond a number that does not fit, none does
        new = with_rule(unit, rule)
        if name == "nan" and search.nans:
            continue  # read from the answers
        if search.fits(new, names):
            found.append((name, new))
        elif side and name != "group":
            dead.add((key, side))
    mine = rule_of(unit)
    for name, new in tuple(found):  # two words that change together
        if name != "group" and rules_of.side(mine, rule_of(new), name) == 0:
            for other, rule in rules_of.nearby(rule_of(new), search.machine):
                word = isinstance(getattr(mine, other), bool | str) and other != "nan"
                both = with_rule(unit, rule)
                if word and rule != mine and search.fits(both, names):
                    found.append((other, both))
    some = (new for new in all_meetings(search, unit) if new != unit)
    usual = [("group", new) for new in some if search.fits(new, names)]  # the usual ones first
    every = {new: name for name, new in (*usual, *found)}
    return [(name, new) for new, name in every.items()]


def other_cuts(search: Search, unit: Target) -> list[Target]:
    """Return a unit with other ways of cutting a long K that fit every answer to a long sum."""
    m = search.machine
    if len(m.depths) < 2 or not (restarts(unit) or m.integer or not m.has_c):
        return []
    names = tuple(name for name in search.pieces if name == "long" or name.startswith("long"))
    mine = (rule_of(unit), cut_of(unit))
    return [new for new in cuts(search, unit)
            if (rule_of(new), cut_of(new)) != mine and search.fits(new, names)]  # fmt: skip


def witnesses(
    search: Search, unit: Target, rivals: list[Target], seed: int, *, long: bool = False
) -> tuple[Batch | None, list[Target]]:
    """Return stimuli on which a unit and its rivals differ, and the rivals that never did.

    `long`: sums over the longest K.
    """
    m, equal = search.machine, rivals
    kept: list[Batch] = []
    depth, first = m.depths[-1 if long else 0], 1000 + 10 * seed
    count = 200 if long else 500
    pools = [[(random_sums, count, 0), (random_sums, count, 1), (moderate_sums, count, 2)],
             [(random_sums, _MANY * count, 3), (moderate_sums, _MANY * count, 4)]]  # fmt: skip
    for pool in pools:  # the larger one where the smaller one tells none apart
        if kept or not equal:
            break
        left, equal = (equal, []) if equal is rivals else _some_of_each(unit, equal)
        batches = [make(m, depth, some, first + n) for make, some, n in pool]
        sums = [Lines(m, batch) for batch in batches]
        own = [search.answer(unit, some) for some in sums]
        for rival in left:
            differs = False
            for batch, some, mine in zip(batches, sums, own, strict=True):
                other = search.answer(rival, some)
                if mine is None or other is None:
                    continue
                rows = np.flatnonzero(mine != other)[:_WITNESSES]
                if rows.size:
                    kept.append(batch.rows(rows))
                    differs = True
                    break
            if not differs:
                equal.append(rival)
    if not kept:
        return None, equal
    return joined(kept)._replace(name=f"{'long' if long else 'apart'}{seed}"), equal


def _rounds_least(unit: Target, equal: list[Target]) -> Target:
    """Return a unit, or one that cannot be told from it and does not round its products."""
    if getattr(rule_of(unit), "fused", True):
        return unit
    return next((new for new in equal if getattr(rule_of(new), "fused", False)), unit)


def _some_of_each(unit: Target, rivals: list[Target]) -> tuple[list[Target], list[Target]]:
    """Return some rivals of each set of fields in which they are another unit, and the others."""
    sets: dict[tuple[Any, ...], list[Target]] = {}
    for rival in rivals:
        mine, its = rule_of(unit), rule_of(rival)
        same = type(mine) is type(its)
        names = [
            f.name for f in fields(mine) if same and getattr(mine, f.name) != getattr(its, f.name)
        ]
        key = (type(its), *names, cut_of(unit) != cut_of(rival))
        sets.setdefault(key, []).append(rival)
    many = {key: 4 * _OF_EACH if "group" in key else _OF_EACH for key in sets}
    return (
        [x for key, some in sets.items() for x in some[: many[key]]],
        [x for key, some in sets.items() for x in some[many[key] :]],
    )


def _ranges(unit: Target, equal: list[Target]) -> dict[str, str]:
    """Return in words what the fields of a unit may be besides."""
    others: dict[str, list[str]] = {}
    for rival in equal:
        mine, its = rule_of(unit), rule_of(rival)
        if type(mine) is not type(its):
            others.setdefault("kind", []).append(type(its).__name__)
            continue
        if cut_of(unit) != cut_of(rival):
            others.setdefault("promote_every", []).append(_cut_words(rival))
        for f in fields(mine):
            if getattr(mine, f.name) != getattr(its, f.name):
                others.setdefault(f.name, []).append(str(getattr(its, f.name)))
    return {
        name: f"{_listed(values)} gave the same bits on all stimuli and on many random sums"
        for name, values in others.items()
    }


def _cut_words(unit: Target) -> str:
    """Return in words how a unit cuts a long K."""
    if unit.split_k > 1:
        return f"split_k {unit.split_k} {unit.split_order} in tiles of {unit.split_tile}"
    if unit.promote_every is None:
        return "None"
    return "c added after the sum" if unit.promote_every == UNSEEN else str(unit.promote_every)


def _listed(values: list[str]) -> str:
    """Return values as a list, many numbers as a range, of many words the first."""
    numbers = sorted({int(v) for v in values if v.lstrip("-").isdigit()})
    words = list(dict.fromkeys(v for v in values if not v.lstrip("-").isdigit()))
    if len(numbers) > _LISTED:
        numbers_said = [f"{len(numbers)} others tried from {numbers[0]} to {numbers[-1]}"]
    else:
        numbers_said = [str(n) for n in numbers]
    more = len(words) - _LISTED
    words = [*words[:_LISTED], f"{more} more such"] if more > 1 else words
    return ", ".join([*numbers_said, *words])


def summary(search: Search, found: Found, open_ones: dict[str, str]) -> Probe:
    """Return what was found, with the evidence for each field."""
    unit = found.units[0] if found.units else None
    right, asked = (0, sum(len(d) for _, d in search.batches))
    evidence: dict[str, tuple[Witness, ...]] = {}
    if unit is not None:
        right, asked = search.share(unit)
        evidence = _evidence(search, unit)
        if restarts(unit) and unit.promote_every == UNSEEN:
            open_ones = open_ones | {
                "promote_every": f"c is added after the sum; no restart within K = "
                f"{search.machine.depths[-1]}"
            }
        unit = replace(
            unit,
            evidence=f"a probe: {right} of {asked} answers"
            + (f"; {found.failed}" if found.failed else ""),
            source="numsim probe",
        )
    vectors = {}
    for batch, d in search.batches:
        for key, array in (batch.arrays() | {"d": d}).items():
            vectors[f"{batch.name}_{key}"] = array
    near_on = ("random",) if "random" in search.pieces else tuple(search.pieces)
    near = sorted(
        ((name, search.share(known, near_on)) for name, known in rules_of.known(search.machine)),
        key=lambda item: -item[1][0],
    )
    nearest = tuple((name, r / n) for name, (r, n) in near if n)
    return Probe(
        unit, evidence, open_ones, found.failed, right, asked, nearest, 0, search.tried, vectors
    )


def _evidence(search: Search, unit: Target) -> dict[str, tuple[Witness, ...]]:
    """Return for each field the first stimuli on which its neighbours give another result."""
    found: dict[str, list[Witness]] = {}
    seen: set[tuple[str, int]] = set()
    for name, rule in rules_of.nearby(rule_of(unit), search.machine):
        side = rules_of.side(rule_of(unit), rule, name)
        if side and (name, side) in seen:
            continue
        witness = search.first_difference(unit, with_rule(unit, rule))
        if witness is not None:
            seen.add((name, side))
            other = str(getattr(rule, name))
            found.setdefault(name, []).append(Witness(name, other, *witness))
    return {name: tuple(items) for name, items in found.items()}


def stopped(
    message: str, search: Search, batches: list[Batch], found: list[Answers], calls: int
) -> ProbeError:
    """Return the error for a probe that ends early, with what was learned."""
    for batch, d in zip(batches, found, strict=False):
        search.learn(batch, d)
    try:
        known = infer(search) if search.batches else Found([], message, 0)
    except (StopIteration, IndexError, KeyError):  # not even the first question has its answers
        known = Found([], message, 0)
    kept = summary(search, known, {})
    return ProbeError(message, replace(kept, calls=calls, failed=message))


def check_answers(batch: Batch, d: Answers) -> None:
    """Raise Doubt for sums of two finite numbers that are all NaN."""
    if batch.name != "exact":
        return  # a narrow accumulator may make NaN of infinities
    if is_float(d.dtype) and d.size and np.isnan(d).all():
        raise Doubt(
            f"probe: stimulus {batch.name} 0: a machine adds finite numbers; all {d.size} results "
            f"of {batch.name} are NaN; look at the formats of the operands and of the result"
        )
