"""Adders above a unit's chains: what a column of an array ends in, and what adds that."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import Format, kept_format
from numsim.kernels.jit import over_range
from numsim.kernels.rules import mac as kernel
from numsim.targets.rules import Limit, Mac
from numsim.targets.rules.mac import arithmetics
from numsim.vocabulary import ROUNDINGS


@known_floats
@dataclass(frozen=True)
class Level:
    """An adder that takes the results of what is below it, in order of k.

    Parameters
    ----------
    every
        k of one addend: what is below restarts from +0 every so many k.
    acc_format
        Format of its sums, as in `Mac`.
    rounding
        Of every sum (``rne rna rtz rup rdn rto``).

    Examples
    --------
    >>> from numsim.targets.table import get_target
    >>> levels = (Level(128, rounding="rtz"), Level(1024))
    >>> unit = get_target("ideal.mac", acc_format="float_e8m13", levels=levels)
    >>> [level_words(level) for level in unit.levels]
    ['every 128 k in float32 (rtz)', 'every 1024 k in float32 (rne)']
    """

    every: int
    acc_format: str | Format = "float32"
    rounding: str = "rne"

    def __post_init__(self) -> None:  # a Format of the table by its name, one's own as it is
        if isinstance(self.acc_format, str) and not self.acc_format.endswith(".toml"):
            with suppress(NumsimError):  # `check` names the unit
                object.__setattr__(self, "acc_format", kept_format(self.acc_format))

    @property
    def plain(self) -> bool:
        """Whether its sums are those of float32, to nearest even."""
        return (self.acc_format, self.rounding) == ("float32", "rne")


LEVEL_LIMITS: dict[str, Limit] = {
    "every": (1, 1 << 30), "acc_format": Format, "rounding": ROUNDINGS[:6],
}  # fmt: skip


def level_words(level: Level) -> str:
    """Return a level in a few words.

    >>> level_words(Level(128, rounding="rtz"))
    'every 128 k in float32 (rtz)'
    """
    name = level.acc_format if isinstance(level.acc_format, str) else level.acc_format.label
    return f"every {level.every} k in {name} ({level.rounding})"


def added(
    before: NDArray[Any] | None, parts: list[NDArray[Any]], level: Level
) -> NDArray[np.float32]:
    """Add parts in order to `before`, None: +0, each sum rounded as a level does.

    A part times one is a multiply-add of `Mac`, whose kernel rounds in every format.
    """
    p, f = arithmetics(Mac(acc_format=level.acc_format, rounding=level.rounding))
    with np.errstate(invalid="ignore"):  # signalling NaN
        rows = np.stack([part.reshape(-1) for part in parts], axis=-1).astype(np.float64)
        start = np.zeros((len(rows), 1))
        if before is not None:
            start[:, 0] = before.reshape(-1)
    ones, sums = np.ones((1, len(parts))), np.empty((len(rows), 1))
    order = kernel.ORDERS.index("sequential")
    over_range(
        lambda i, j: kernel.matmul(rows, ones, start, sums, i, j, order, len(parts), False, p, f),
        len(rows),
    )
    with np.errstate(over="ignore"):
        found: NDArray[np.float32] = sums.astype(np.float32).reshape(parts[0].shape)
    return found
