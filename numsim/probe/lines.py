"""Stimuli as hypotheses answer them: dot by dot, by the definitions of rules."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.formats import get_format
from numsim.probe.machine import (
    Answers,
    Batch,
    Laid,
    Machine,
    held,
    laid_out,
    operand,
    restarts,
    rule_in,
)
from numsim.targets import Target
from numsim.targets.dots import Dots, chain, results
from numsim.targets.rules import about, adds_integers


class Lines:
    """The dot products of a batch, asked of many units one after the other."""

    def __init__(self, machine: Machine, batch: Batch) -> None:
        self.machine, self.batch = machine, batch
        self.out = get_format(machine.out)
        self._starts: dict[Any, NDArray[Any]] = {}

    @cached_property
    def _dots(self) -> Dots:
        m, batch = self.machine, self.batch
        return Dots(operand(batch.a, m.a, batch.sa, m), operand(batch.b, m.b, batch.sb, m))

    @cached_property
    def _laid(self) -> Laid:
        return laid_out(self.machine, self.batch)

    def _start(self, unit: Target, rule: Any) -> NDArray[Any] | None:
        """Return c as a unit's accumulator holds it, made once for each accumulator."""
        if not self.machine.has_c:
            return None
        key: Any = restarts(unit)
        if adds_integers(rule):
            key = rule.outer_bits if key else rule.acc_bits
        elif not key:
            key = about(rule).formats(rule)[:1]
        if key not in self._starts:
            self._starts[key] = held(self.batch.c, unit, rule)
        return self._starts[key]

    def from_zero(self, rule: Any) -> Answers | None:
        """Return what a rule makes of the products alone, [S]; None where c or the rule bars it."""
        c = self.batch.c
        if c.any() or np.signbit(c).any():
            return None
        return chain(self._dots, rule, self.out)

    def answers(self, unit: Target) -> Answers:
        """Return what a unit computes, [S].

        Raises
        ------
        NumsimError
            Where it has no such operands, or no such sums.
        """
        rule = rule_in(unit, self.machine)
        found = results(self._dots, rule, self._start(unit, rule), self.out, unit)
        return self._laid.answers(unit, self.machine) if found is None else found
