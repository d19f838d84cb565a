"""Runs a chain of a unit by the first kernel that covers it, and adds the parts of K."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format
from numsim.quant import QTensor
from numsim.targets import levels
from numsim.targets.chain import Chain, Work, new_tally, one_nan
from numsim.targets.fast import COUNTED, FAST
from numsim.targets.fast.integer import add_integer_parts
from numsim.targets.fast.integer import add_terms as add_terms
from numsim.targets.levels import Level
from numsim.targets.rules import Rule, about, adds_integers


def run(
    rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, name: str
) -> NDArray[Any]:
    """Run one chain of a unit: a [..., M, K] by b [..., K, N] from c, result [count, M, N]."""
    return chosen(Chain(rule, a, b, c, out, name)).run()


def counted(chain: Chain) -> Chain:
    """Return a chain that counts what it loses."""
    dtype = np.int64 if adds_integers(chain.rule) else np.float64
    return chain._replace(tally=new_tally(chain, dtype))


def chosen(chain: Chain) -> Work:
    """Return the first kernel that covers a chain; its rule's definition covers every one."""
    table = FAST if chain.tally is None else COUNTED
    for way in table.get(type(chain.rule), ()):
        work = way(chain)
        if work is not None:
            return work
    return about(chain.rule).definition(chain)


def add_parts(
    parts: list[NDArray[Any]], rule: Rule, level: Level | None = None, *, more: bool = False
) -> NDArray[Any]:
    """Add chunk or split results in order: in float32 to nearest even, in `outer_bits`, by a level.

    `more`: the first part is a sum of the level itself, which the others are added to.
    """
    if adds_integers(rule):
        return add_integer_parts(parts, rule)
    if level is not None and not level.plain:
        total = (
            levels.added(parts[0], parts[1:], level) if more else levels.added(None, parts, level)
        )
        return one_nan(total, rule)
    with np.errstate(all="ignore"):
        total = parts[0].astype(np.float32) + np.float32(0.0)
        for part in parts[1:]:
            total = total + part.astype(np.float32)
    return one_nan(total, rule)
