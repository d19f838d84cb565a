"""How hypotheses are laid out: `Ways` of a kind of rule, in the order in which stimuli show them.

A hypothesis is a rule with every field filled in. Its fields are found in stages, each with stimuli
that do not depend on the fields of later stages. `probe.kinds` has the ways of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from numsim.probe.machine import Machine, changed
from numsim.targets.types import Rule

_GROUPS = (16, 8, 4, 32, 2, 64, 1)  # the usual ones first


class Seen(NamedTuple):
    """What was read from answers before any rule is tried.

    Parameters
    ----------
    machine
        What is known of it.
    bits
        The most bits below the larger of two products that a sum held.
    complete
        It held every gap that was tried, so it may hold more.
    place
        Exponent of the larger of those two.
    power
        A single product counts times ``2**power``.
    limits
        Fraction bits of an alignment -> lower limits of its exponent that answers speak for.
    thorough
        Nothing was found of what is usual: all is tried.
    """

    machine: Machine
    bits: int
    complete: bool
    place: int
    power: int
    limits: Callable[[int], Iterable[int]]
    thorough: bool = False

    def held(self, bits: int) -> bool:
        """Whether sums may hold so many bits."""
        return bits == self.bits or (bits > self.bits and self.complete)


def first_groups(machine: Machine, align_bits: int, kept_bits: int) -> tuple[int, ...]:
    """Return groups to begin with: all of K, and where that shows, one with others behind it.

    An accumulator that joins each alignment is cut again by groups of zeros, where they keep fewer
    bits than it has.
    """
    depth = machine.depths[0]
    return (depth, 4, 1) if align_bits < kept_bits and depth > 4 else (depth, 1)


def itself(rule: Any, _: Any) -> Iterator[Any]:
    """Yield the rule alone: there is nothing to try."""
    yield rule


def all_groups(machine: Machine) -> list[int]:
    """Return every group that a short K shows, the usual ones first."""
    depth = machine.depths[0]
    groups = [n for n in _GROUPS if n <= depth]
    return groups + [n for n in range(3, depth + 1) if n not in groups]


def by_group(rule: Any, machine: Machine) -> Iterator[Any]:
    """Yield a rule with every group."""
    for n in all_groups(machine):
        yield changed(rule, group=n)


def _longer(rule: Any, machine: Machine) -> Iterator[Any]:
    """Yield a rule whose group is all of a short K with wider ones, as a long K shows them."""
    yield rule
    if getattr(rule, "group", 0) == machine.depths[0]:
        for n in range(machine.depths[0] + 32, machine.depths[-1] + 1, 32):
            yield changed(rule, group=n)


class Ways(NamedTuple):
    """What is tried of one kind of rule.

    Parameters
    ----------
    adding
        Rules by how two products add.
    products
        A rule with every way of rounding its products.
    joining
        A rule with every way in which the accumulator joins.
    meetings
        A rule with every grouping and order.
    ends
        A rule with every treatment of zeros, small and large numbers.
    longer
        A rule with the groups that only a long K shows.
    outer
        Whether an adder outside is told apart by two products: it makes +0 of a -0.
    """

    adding: Callable[[Seen], Iterator[Rule]]
    products: Callable[[Any, Machine], Iterator[Rule]] = itself
    joining: Callable[[Any, Machine], Iterator[Rule]] = itself
    meetings: Callable[[Any, Machine], Iterator[Rule]] = by_group
    ends: Callable[[Any, Seen], Iterator[Rule]] = itself
    longer: Callable[[Any, Machine], Iterator[Rule]] = _longer
    outer: Callable[[Any], bool] = lambda rule: False
