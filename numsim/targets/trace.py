"""The accumulator after every step of a unit: what explanations and RTL vectors show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.float_state import known_floats
from numsim.formats import Format, format_name, get_format, kept_format
from numsim.quant import QTensor
from numsim.targets import ops, runs
from numsim.targets.chain import round_to
from numsim.targets.levels import Level
from numsim.targets.plan import resolve, shapes
from numsim.targets.rules import IntSum, Rule, about, adds_integers
from numsim.targets.rules.int_sum import Overflowed
from numsim.targets.split_k import chain_positions, cut_out, step_length
from numsim.targets.steps import Step
from numsim.targets.table import get_target
from numsim.targets.types import Target


@dataclass(frozen=True, eq=False)
class Trace:
    """A matrix product step by step.

    Parameters
    ----------
    target, rule
        The unit and the rule that applied.
    accumulator, bits
        Format of the accumulator (``int24`` for 24 bits of an integer unit) and its width.
    chains
        The steps of every chain that started from +0 or C.
    sums
        The outer accumulator after each addition of promoted or split parts.
    corrected
        The integer sum of every block of K, without blocks of all K, less its zero points.
    d
        What `matmul` returns.
    """

    target: Target
    rule: Rule
    accumulator: str | Format
    bits: int
    chains: tuple[tuple[Step, ...], ...]
    sums: tuple[NDArray[Any], ...]
    corrected: tuple[NDArray[Any], ...]
    d: NDArray[Any]


class Tracer:
    """Runs chains step by step; see `numsim.targets.split_k.Engine`."""

    def __init__(self, positions: list[NDArray[np.int64]]) -> None:
        self.positions = positions
        self.chains: list[tuple[Step, ...]] = []
        self.sums: list[NDArray[Any]] = []
        self.corrected: list[NDArray[Any]] = []
        self.rule: Rule | None = None
        self.accumulator: str | Format = ""
        self.bits = 0

    def run(
        self, rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, name: str
    ) -> NDArray[Any]:
        """Run one chain a step at a time, each from the accumulator of the last."""
        depth = a.shape[-1]
        length = step_length(rule, depth)
        own = about(rule).formats(rule)
        held = get_format("float32") if own else out  # float32 holds what those formats hold
        self.rule = rule
        if adds_integers(rule):
            self.accumulator, self.bits = f"int{rule.acc_bits}", rule.acc_bits
        else:
            fmt = get_format(own[0]) if own else out
            self.accumulator, self.bits = kept_format(fmt), fmt.bits
        positions = self.positions[len(self.chains)]
        before, steps = c, []
        for k0 in range(0, depth, length):
            run = np.arange(k0, min(k0 + length, depth))
            where = slice(k0, k0 + len(run))
            left, right = cut_out(a, -1, run, where), cut_out(b, -2, run, where)
            try:
                after = runs.run(rule, left, right, before, held, name)
            except Overflowed as found:
                found.k += k0
                raise
            if adds_integers(rule):
                after = after.astype(np.int64)
            start = np.zeros_like(after) if before is None else before.astype(after.dtype)
            steps.append(Step(left, right, start, after, positions[run]))
            before = after
        self.chains.append(tuple(steps))
        if adds_integers(rule):
            return after.astype(np.int32 if rule.acc_bits <= 32 else np.int64)
        return after if held is out or out.name == "float32" else round_to(after, out)

    def add_parts(
        self, parts: list[NDArray[Any]], rule: Rule, level: Level | None = None
    ) -> NDArray[Any]:
        """Add parts as `runs` does, keeping every partial sum."""
        total = runs.add_parts(parts[:1], rule, level)
        for part in parts[1:]:
            total = runs.add_parts([total, part], rule, level, more=True)
            self.sums.append(total)
        return total

    def add_terms(
        self, acc: NDArray[Any], terms: NDArray[np.int64], rule: IntSum, bits: int, depth: int
    ) -> NDArray[Any]:
        """Add the terms of zero points as `runs` does, keeping the sums."""
        self.corrected.append(runs.add_terms(acc, terms, rule, bits, depth))
        return self.corrected[-1]


@known_floats
def trace(
    a: QTensor, b: QTensor, target: str | Target, c: ArrayLike | None = None,
    out_format: str | Format | None = None,
) -> Trace:  # fmt: skip
    """Multiply as `matmul` does and keep the accumulator after every step.

    A unit of integers adds codes: its steps are theirs, and `Trace.corrected` has the sums less
    their zero points. The steps of a unit of floats have codes less zero points.

    Raises
    ------
    NumsimError
        As `matmul`.

    Examples
    --------
    >>> a = QTensor.from_codes([[1, 2, 3]], "int8")
    >>> found = trace(a, a.T, "ideal.int")
    >>> [int(step.after.item()) for step in found.chains[0]]
    [1, 5, 14]
    """
    unit = get_target(target)
    shapes(a, b)
    wanted = None if out_format is None else format_name(out_format, "trace: out_format")
    block = resolve(unit, a, b, wanted).block
    depth = a.shape[-1]
    step = block or depth
    positions = [
        k0 + ks
        for k0 in range(0, depth, step)
        for part in chain_positions(min(step, depth - k0), unit)
        for ks in part
    ]
    tracer = Tracer(positions)
    d = ops.multiply(a, b, unit, c, out_format, tracer)
    assert tracer.rule is not None
    return Trace(
        unit, tracer.rule, tracer.accumulator, tracer.bits, tuple(tracer.chains),
        tuple(tracer.sums), tuple(tracer.corrected), d,
    )  # fmt: skip
