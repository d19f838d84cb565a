"""The order of a sum, read from answers alone, for machines that no rule of numsim fits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike
from numsim.probe.alphabet import words
from numsim.probe.machine import Batch, Machine, Run, ask
from numsim.probe.probe import machine_for

_LOST = 40  # a number 2**40 times as large as one loses it


@known_floats
def order_of(
    run: Run,
    *,
    formats: FormatLike | tuple[FormatLike, FormatLike],
    out_format: FormatLike | None = None,
    c: bool = False,
    depth: int = 32,
    rows: int = 32,
) -> str:
    """Return the order in which a machine adds products, as brackets.

    Parameters
    ----------
    run, formats, out_format, c, rows
        As for `probe`.
    depth
        K.

    Returns
    -------
    ``((0 1) (2 3))``: 0 and 1 are added, 2 and 3, then both sums. What meets in one step, without
    a rounding between, stands in one bracket.

    Raises
    ------
    NumsimError
        For formats whose products do not reach 2**40 times each other, and machines whose sums
        are in no order.
    ProbeError, Doubt
        As `probe`.

    Source
    ------
    Xie et al., FPRev, arXiv 2411.00442: of a large number at i, its negative at j and ones
    elsewhere, those ones are left that are added after i and j met.

    Examples
    --------
    >>> import numpy as np
    >>> def pairs(a, b, c):  # each two neighbours first
    ...     a, b = a.view(np.float32), b.view(np.float32)
    ...     return a[:, :2] @ b[:2] + a[:, 2:] @ b[2:]
    >>> order_of(pairs, formats="float32", depth=4, rows=4)
    '((0 1) (2 3))'
    """
    machine = machine_for(formats, out_format, c, (max(depth, 4),))
    both = words(machine.a, machine.b)
    if machine.integer or both.high - both.low < _LOST or not machine.a.signed:
        raise NumsimError(
            "order_of: products reach 2**40 times each other and have both signs; those of "
            f"{machine.a.label} by {machine.b.label} do not; try float32 or bfloat16"
        )
    pairs = [(i, j) for i in range(depth) for j in range(i + 1, depth)]
    d = ask(run, machine, _masks(machine, depth, pairs), rows)[0].astype(np.float64)
    low = 2.0 ** max(both.low, both.high - 2 * _LOST, -20)
    met = np.zeros((depth, depth), np.int64)
    for (i, j), left in zip(pairs, (d / low).tolist(), strict=True):
        met[i, j] = met[j, i] = depth - round(left) if np.isfinite(left) else depth
    return _brackets(list(range(depth)), met)


def _masks(machine: Machine, depth: int, pairs: list[tuple[int, int]]) -> Batch:
    both = words(machine.a, machine.b)
    exponent = max(both.low, both.high - 2 * _LOST, -20)
    small, large = both.factors(exponent), both.factors(min(both.high, exponent + _LOST))
    a, b = (np.full((len(pairs), depth), value) for value in small)
    for row, (i, j) in enumerate(pairs):
        a[row, [i, j]], b[row, [i, j]] = (large[0], -large[0]), large[1]
    c = np.zeros(len(pairs), machine.dtype)
    return Batch("order", both.a.codes(a), both.b.codes(b), c)


def _brackets(leaves: list[int], met: NDArray[Any]) -> str:
    """Return the tree over some leaves; `met[i, j]`: how many are added once i and j have met."""
    first, rest = leaves[0], leaves[1:]
    if not rest:
        return str(first)
    text = str(first)
    for size in sorted({int(met[first, j]) for j in rest}):
        joins = [j for j in rest if met[first, j] == size]
        inside: list[list[int]] = []
        for j in joins:  # those that met each other before they met the first
            mine = next((g for g in inside if met[g[0], j] < size), None)
            if mine is None:
                inside.append([j])
            else:
                mine.append(j)
        text = f"({' '.join([text, *(_brackets(g, met) for g in inside)])})"
    return text


__all__ = ["order_of"]
