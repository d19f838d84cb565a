"""Find out how a black box multiplies and adds: `probe`, and the conversation it holds."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, format_name, get_format
from numsim.probe import integers, stimuli
from numsim.probe import rules as rules_of
from numsim.probe.machine import (
    DTYPES,
    Answers,
    Batch,
    Doubt,
    Machine,
    Run,
    ask,
    is_float,
    restarts,
)
from numsim.probe.search import UNSEEN, Found, Search, infer, rule_of, with_rule
from numsim.targets import Target

Talk = Generator[list[Batch], list[Answers], "Probe"]

_ROUNDS = 4  # after the first: stimuli on which hypotheses that fit so far differ
_WITNESSES = 6  # stimuli for two such hypotheses


@known_floats
@dataclass(frozen=True)
class Witness:
    """Why a field has its value: a stimulus on which another value gives another result.

    `stimulus` is its batch and row, `answer` the machine's bits, `instead` what `other` gives.
    """

    field: str
    other: str
    stimulus: str
    answer: str
    instead: str


@known_floats
@dataclass(frozen=True, eq=False)
class Probe:
    """What a probe found out.

    Parameters
    ----------
    target
        The unit whose answers are the machine's, or come nearest; None where nothing was learned.
    evidence
        Field -> the stimuli that decided it.
    undecided
        Field -> what else it may be, and why no stimulus can tell.
    failed
        The question that no rule of numsim answers as the machine does; "" where one does.
    right, asked
        How many answers of `target` are the machine's, of how many.
    nearest
        Units of the table by the share of the machine's answers that they give.
    calls
        How often the machine was called.
    tried
        Rules that were tried.
    vectors
        What was recorded: arrays ``BATCH_a``, ``BATCH_b`` [S, K] of codes, ``BATCH_c``,
        ``BATCH_d`` [S].
    """

    target: Target | None
    evidence: Mapping[str, tuple[Witness, ...]]
    undecided: Mapping[str, str]
    failed: str
    right: int
    asked: int
    nearest: tuple[tuple[str, float], ...]
    calls: int
    tried: int
    vectors: Mapping[str, NDArray[Any]] = field(repr=False)

    def __str__(self) -> str:
        from numsim.probe.words import as_text

        return as_text(self)

    def to_toml(self) -> str:
        """Return the unit as TOML, with what decided each field, and what is open, as comments."""
        from numsim.probe.words import as_toml

        return as_toml(self)


class ProbeError(NumsimError):
    """A probe that could not go on; `probe` is what was learned until then."""

    def __init__(self, message: str, probe: Probe) -> None:
        super().__init__(message)
        self.probe = probe


@known_floats
def probe(
    run: Run,
    *,
    formats: FormatLike | tuple[FormatLike, FormatLike],
    out_format: FormatLike | None = None,
    c: bool = True,
    depths: tuple[int, ...] = (64, 512),
    rows: int = 32,
) -> Probe:
    """Find the rule by which a machine multiplies and adds.

    Parameters
    ----------
    run
        The machine: ``run(a, b, c) -> d`` for codes a [rows, K], b [K, rows], c [rows, rows] in the
        NumPy type of the result (None where `c` is False) and d like c. A library, a device, a
        simulation.
    formats
        Format of the operands, or of a and of b.
    out_format
        ``float32``, ``float16`` or ``bfloat16``; integers: ``int32``. None: float32, or int32 for
        integers.
    c
        Whether the machine adds to an accumulator input.
    depths
        K of the stimuli: most, and the long ones that show how long sums are cut. One K alone for
        a machine that takes no other; what only longer sums show stays open then.
    rows
        M and N of every call. Each dot product is asked twice, at two places.

    Returns
    -------
    `Probe`: the unit, the stimuli that decided each field, and what none could decide.

    Raises
    ------
    NumsimError
        For formats or depths that cannot be.
    ProbeError
        For answers of the wrong shape or type, that change, or are all NaN; what was learned until
        then is its `probe`.

    Source
    ------
    Fasi, Higham, Mikaitis and Pranesh, Numerical behavior of NVIDIA tensor cores, PeerJ 2021; Xie
    et al., FPRev, arXiv 2411.00442 (large numbers that cancel show the order of a sum).

    Examples
    --------
    >>> import numpy as np
    >>> def machine(a, b, c):  # wraps in 20 bits
    ...     return (c + a.astype(np.int32) @ b.astype(np.int32)) << 12 >> 12
    >>> found = probe(machine, formats="int8", depths=(16,), rows=16)
    >>> found.target.rules[0][1].acc_bits, found.target.rules[0][1].overflow
    (20, 'wrap')
    """
    machine = machine_for(formats, out_format, c, depths)
    if not callable(run) or rows < 1:
        raise NumsimError(
            f"probe: run is a function of (a, b, c) and rows at least 1; got {run!r:.60}, {rows}"
        )
    search = Search(machine)
    talk, calls = conversation(search), 0
    batches = next(talk)
    while True:
        found: list[Answers] = []
        try:
            for batch in batches:
                d, some = ask(run, machine, batch, rows)
                calls += some
                check_answers(batch, d)
                found.append(d)
        except Doubt as doubt:
            raise stopped(str(doubt), search, batches, found, calls) from None
        try:
            batches = talk.send(found)
        except StopIteration as end:
            result: Probe = end.value
            return replace(result, calls=calls)


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


def machine_for(
    formats: FormatLike | tuple[FormatLike, FormatLike], out_format: FormatLike | None, c: bool,
    depths: tuple[int, ...],
) -> Machine:  # fmt: skip
    """Return what is known of a machine before it is asked.

    Raises
    ------
    NumsimError
        For formats or depths that cannot be.
    """
    both = formats if isinstance(formats, tuple) else (formats, formats)
    if len(both) != 2:
        raise NumsimError(f"probe: formats is one format, or two, of a and b; got {formats!r:.80}")
    a, b = (get_format(f) for f in both)
    integer = a.kind == b.kind == "integer"
    out = format_name(out_format, "probe: out_format") if out_format else ""
    out = out or ("int32" if integer else "float32")
    if out not in DTYPES or (out == "int32") != integer:
        raise NumsimError(
            "probe: out_format is float32, float16 or bfloat16, for two integer formats "
            "int32; got "
            f"{out} for {a.label} and {b.label}"
        )
    whole = all(isinstance(k, int) and not isinstance(k, bool) for k in depths)
    if (
        not depths
        or len(depths) > 2
        or not whole
        or min(depths) < 4
        or list(depths) != sorted(depths)
    ):
        raise NumsimError(
            f"probe: depths is one K or two, ascending, of at least 4; got {depths!r:.60}"
        )
    _check_format(a)
    _check_format(b)
    return Machine(a, b, out, bool(c), tuple(depths))


def _check_format(fmt: Format) -> None:
    if fmt.kind not in ("float", "integer") or not fmt.zero:
        raise NumsimError(
            f"probe: stimuli are made of powers of two and zero; {fmt.label} is another kind of "
            "format; probe the machine with one of its float, fixed-point or integer formats"
        )


def first_round(machine: Machine) -> list[Batch]:
    """Return the stimuli that do not depend on any answer."""
    kinds = (integers if machine.integer else stimuli).EVERY
    made = [kind(machine) for kind in kinds if kind.__name__ != "long" or len(machine.depths) > 1]
    return [batch for batch in made if len(batch.a)]


def conversation(search: Search) -> Talk:
    """Yield rounds of stimuli, take their answers into `search`, return what was found."""
    machine = search.machine
    batches = first_round(machine)
    for batch, d in zip(batches, (yield batches), strict=True):
        search.learn(batch, d)
    found = infer(search)
    open_ones: dict[str, str] = {}
    for number in range(_ROUNDS if not found.failed else 0):
        rivals = found.units[1:] + [unit for _, unit in neighbours(search, found.units[0])]
        telling, equal = witnesses(search, found.units[0], rivals, number)
        open_ones = _ranges(found.units[0], equal)
        if telling is None:
            break
        (d,) = yield [telling]
        search.learn(telling, d)
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
        elif side:
            dead.add((key, side))
    return found


def witnesses(
    search: Search, unit: Target, rivals: list[Target], seed: int
) -> tuple[Batch | None, list[Target]]:
    """Return stimuli on which a unit and its rivals differ, and the rivals that never did."""
    m, kept, equal = search.machine, [], []
    make = (integers if m.integer else stimuli).random
    pool = [make(m, m.depths[0], 500, 1000 + 10 * seed + n) for n in range(2)]
    own = [search.answer(unit, batch) for batch in pool]
    for rival in rivals:
        differs = False
        for batch, mine in zip(pool, own, strict=True):
            other = search.answer(rival, batch)
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
    parts = [np.concatenate([getattr(b, key) for b in kept]) for key in "abc"]
    return Batch(f"apart{seed}", *parts), equal


def _ranges(unit: Target, equal: list[Target]) -> dict[str, str]:
    """Return in words what the fields of a unit may be besides."""
    others: dict[str, list[str]] = {}
    for rival in equal:
        mine, its = rule_of(unit), rule_of(rival)
        if type(mine) is not type(its):
            others.setdefault("kind", []).append(type(its).__name__)
            continue
        for f in fields(mine):
            if getattr(mine, f.name) != getattr(its, f.name):
                others.setdefault(f.name, []).append(str(getattr(its, f.name)))
    return {
        name: f"{_listed(values)} gave the same bits on all stimuli and on 1,000 random sums"
        for name, values in others.items()
    }


def _listed(values: list[str]) -> str:
    """Return values as a list, many numbers as a range."""
    if len(values) > 3 and all(v.lstrip("-").isdigit() for v in values):
        numbers = sorted(map(int, values))
        return f"{len(numbers)} others tried from {numbers[0]} to {numbers[-1]}"
    return ", ".join(dict.fromkeys(values))


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
        for key, array in (("a", batch.a), ("b", batch.b), ("c", batch.c), ("d", d)):
            vectors[f"{batch.name}_{key}"] = array
    near_on = ("random",) if "random" in search.pieces else tuple(search.pieces)
    near = sorted(
        ((name, search.share(known, near_on)) for name, known in rules_of.known(search.machine)),
        key=lambda item: -item[1][0],
    )
    nearest = tuple((name, r / n if n else 0.0) for name, (r, n) in near)
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
