"""The closed loop: units of numsim, probed from outside, must come back as the same unit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from numsim.probe import probe
from numsim.probe.apart import results, shared
from numsim.probe.inputs import random_sums
from numsim.probe.kinds import accumulators
from numsim.probe.lines import Lines
from numsim.probe.machine import Batch, Machine, as_machine, bits_of, rule_in, unit_of
from numsim.probe.probe import machine_for
from numsim.targets import Target, get_target, list_targets
from numsim.targets.rules import RULES
from numsim.targets.types import Exact, Fused, IntSum, Mac, Rule, TwoStage

FRESH = 10_000  # results compared, on sums that the probe never saw
_DEPTHS = (64, 512)
_FLOATS = ("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "tfloat32", "float6_e3m2fn")
_INTEGERS = (("int8", "int8"), ("uint8", "int8"), ("int16", "int16"), ("int4", "int4"))


@dataclass(frozen=True)
class Recovery:
    """How a unit came back from a probe.

    `equal` of `fresh` results on new sums are the unit's, bit for bit; `rule` is what was found.
    """

    unit: str
    operands: str
    equal: int
    fresh: int
    calls: int
    tried: int
    rule: str
    failed: str

    @property
    def ok(self) -> bool:
        """Whether every result is equal."""
        return self.fresh > 0 and self.equal == self.fresh


def recover(unit: Target, machine: Machine, *, fresh: int = FRESH) -> Recovery:
    """Probe a unit of ours as a black box, and compare what was found on new sums."""
    found = probe(
        as_machine(unit, machine), formats=(machine.a, machine.b), out_format=machine.out,
        depths=machine.depths, blocks=machine.blocks or None,
    )  # fmt: skip
    equal, total = 0, 0
    for batch in _fresh(machine, fresh) if found.target is not None else ():
        own = bits_of(results(unit, machine, batch))
        assert found.target is not None
        equal += int((bits_of(Lines(machine, batch).answers(found.target)) == own).sum())
        total += len(own)
    label = machine.a.label if machine.a == machine.b else f"{machine.a.label} {machine.b.label}"
    label += f" with {machine.blocks}" if machine.blocks else ""
    rule = "" if found.target is None else str(found.target.rules[0][1])
    return Recovery(
        unit.name, f"{label} -> {machine.out}", equal, total, found.calls, found.tried, rule,
        found.failed,
    )  # fmt: skip


def _fresh(machine: Machine, count: int) -> Iterator[Batch]:
    long = count // 20
    yield random_sums(machine, machine.depths[0], count - long, 4242)
    if long:
        yield random_sums(machine, machine.depths[-1], long, 4243)


def table_units() -> Iterator[tuple[Target, Machine]]:
    """Yield every unit of the table with the operands and results that stimuli are made for."""
    for name in list_targets():
        unit = get_target(name)
        seen: set[tuple[Any, ...]] = set()
        for machine in shared(unit, unit):
            key = (rule_in(unit, machine), machine.out, machine.blocks)
            if key not in seen:
                seen.add(key)
                yield unit, machine


def random_units(count: int, seed: int = 0) -> Iterator[tuple[Target, Machine]]:
    """Yield units with random fields, each with operands it takes."""
    rng = np.random.default_rng(seed)
    made = 0
    while made < count:
        rule, machine = _random_rule(rng)
        chain: dict[str, Any] = {}
        if rng.random() < 0.2:
            chain["promote_every"] = int(rng.choice([64, 96, 128, 256]))
        elif rng.random() < 0.1:
            order = str(rng.choice(["contiguous", "serial", "pairwise"]))
            chain = {"split_k": int(rng.integers(2, 5)), "split_tile": 64, "split_order": order}
        unit = unit_of(rule, machine, **chain)
        if unit is None or RULES[type(rule)].contradiction(rule, unit.rules[0][0], {}):
            continue
        made += 1
        yield Target(f"random {made}", unit.rules, "model", "random", "random", **chain), machine


def _random_rule(rng: np.random.Generator) -> tuple[Rule, Machine]:
    def pick(*words: Any) -> Any:
        return words[int(rng.integers(len(words)))]

    group, kind = pick(1, 2, 4, 8, 12, 16, 32, 64), rng.random()
    out = pick("float32", "float32", "float32", "float16")
    fmt = pick(*_FLOATS)
    rule: Rule
    if kind < 0.2:
        both = pick(*_INTEGERS)
        pair = pick(None, None, None, int(rng.integers(10, 18)))
        rule = IntSum(
            int(rng.integers(12, 33)), pick("wrap", "saturate"),
            group if pair is None else 2 * group, pair,
        )  # fmt: skip
        return rule, machine_for(both, None, True, _DEPTHS)
    if kind < 0.65:
        if fmt not in ("float16", "float8_e4m3fn", "float8_e5m2"):
            out = "float32"
        rule = Fused(
            group, int(rng.integers(6, 36)), int(rng.integers(8, 24)) if rng.random() < 0.4 else 23,
            pick("joins", "joins", "late"), bool(rng.integers(2)),
            pick(None, int(rng.integers(-140, -20))), pick("truncate", "floor"),
            pick(None, "rtz", "rne"), pick("ones", "quiet"),
        )  # fmt: skip
    elif kind < 0.75:
        out, f = "float32", int(rng.integers(10, 33))
        rule = TwoStage(
            group, f, int(rng.integers(f, 41)), int(rng.integers(1, 3)), bool(rng.integers(2))
        )
    elif kind < 0.8:
        rule = Exact(group, negative_zero=bool(rng.integers(2)))
    else:
        order = pick("sequential", "tree", "odd_first", "two_chains")
        acc = pick("float32", "float16", "bfloat16", *accumulators()[9:200:3])
        fused = bool(rng.integers(2))
        product = None if fused else pick(None, "bfloat16", "float16")
        flush = bool(rng.random() < 0.3)
        rule = Mac(
            acc, product, fused, pick("rne", "rne", "rna", "rtz", "rup", "rdn", "rto"), order,
            max(2, group // 2 * 2) if order in ("tree", "two_chains") else None, flush,
            pick("stored", "unbounded") if flush else "stored", bool(rng.integers(2)),
            pick("ieee", "inf", "saturate"),
        )  # fmt: skip
        out = "float32"
    return rule, machine_for(fmt, out, True, _DEPTHS)
