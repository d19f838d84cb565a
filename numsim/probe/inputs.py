"""The stimuli of a machine, whatever it multiplies: integers, floats, floats with block scales."""

from __future__ import annotations

from functools import lru_cache

from numsim.probe import edges, integers, scaled, stimuli
from numsim.probe.machine import Batch, Machine

_FLOATS = (
    stimuli.exact, stimuli.rich, stimuli.span, stimuli.start, stimuli.steps, edges.edges,
    stimuli.long,
)  # fmt: skip


@lru_cache(maxsize=64)  # one machine after the other is asked the same
def random_sums(machine: Machine, depth: int, count: int, seed: int) -> Batch:
    """Return random sums of many kinds that a machine takes."""
    if machine.scale is not None:
        return scaled.random(machine, depth, count, seed)
    if machine.integer:
        return integers.random(machine, depth, count, seed)
    return stimuli.random(machine, depth, count, seed)


@lru_cache(maxsize=16)
def moderate_sums(machine: Machine, depth: int, count: int, seed: int) -> Batch:
    """Return random sums that overflow no narrow accumulator all at once; integers: any."""
    if machine.integer:
        return integers.random(machine, depth, count, seed)
    made = stimuli.moderate(machine, depth, count, seed)
    return made if machine.scale is None else scaled.shifted(machine, made, seed)


@lru_cache(maxsize=16)
def first_round(machine: Machine) -> tuple[Batch, ...]:
    """Return the stimuli that do not depend on any answer."""
    kinds = integers.EVERY if machine.integer else _FLOATS
    made = [kind(machine) for kind in kinds if kind.__name__ != "long" or len(machine.depths) > 1]
    made = [batch for batch in made if len(batch.a)]
    if machine.scale is not None:
        made = [scaled.more(machine, batch) for batch in made]
    return (*made, random_sums(machine, machine.depths[0], 300, 7))
