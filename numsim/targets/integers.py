"""Integer units: sums of codes in an accumulator of any width, and the accumulator of their parts.

All arithmetic is int64. A sum that leaves it is told by its sign, so 64-bit accumulators are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError, UnsupportedError
from numsim.kernels import integer as integer_kernel
from numsim.kernels.jit import over_items
from numsim.quant import QTensor
from numsim.targets import fast
from numsim.targets.fast import batched
from numsim.targets.types import IntSum

OVERFLOW = {"wrap": 0, "saturate": 1, "raise": 2}


@dataclass
class Overflowed(Exception):
    """A sum left an accumulator that must not overflow; `k` counts from the start of the chain."""

    what: str
    place: tuple[int, int, int]
    k: int
    part: int = 0  # which addend of an outer accumulator

    def error(self, name: str, batch: int) -> NumsimError:
        """Return the message for the user of the unit `name`."""
        item, row, column = self.place
        end = f" of batch {item}" if batch > 1 else ""
        return NumsimError(
            f"matmul: {name} with overflow='raise': the {self.what} overflows at row {row}, "
            f"column {column}, k = {self.k}{end}; widen it or choose wrap or saturate"
        )


def limits(bits: int) -> tuple[int, int]:
    """Return the least and largest value of a two's-complement integer.

    Examples
    --------
    >>> limits(8)
    (-128, 127)
    """
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def integer(
    a: QTensor, b: QTensor, c: NDArray[np.int64] | None, rule: IntSum, name: str
) -> NDArray[Any]:
    """Integer codes added in an accumulator of `acc_bits` bits."""
    left, right = batched(a.codes), batched(b.codes)
    product = 1 << sum(q.fmt.bits - q.fmt.signed for q in (a, b))
    together = 1 if rule.overflow == "wrap" else min(rule.group, left.shape[-1])
    if rule.pair_bits is not None:
        together = max(together, 2)
    if product * together >= 1 << 63:
        raise UnsupportedError(
            f"matmul: {name} adds {together} products of {a.fmt.name} and {b.fmt.name} before it "
            "limits their sum, which 64 bits do not hold; use group=1, wrap, or narrower operands"
        )
    plan = fast.integer_plan(a, b, c, rule)
    if plan is not None:
        return wrapped(fast.integer(a, b, c, rule, plan), rule.acc_bits)
    batch, m, n = len(left), left.shape[1], right.shape[-1]
    out = np.empty((batch, m, n), np.int64)
    start = np.zeros((batch, m, n), np.int64) if c is None else c
    low, high = limits(rule.acc_bits)
    pair = limits(rule.pair_bits)[1] if rule.pair_bits else 0
    found: list[tuple[int, NDArray[np.int64]]] = []

    def rows(i: int, lo: int, hi: int) -> None:
        place = np.full(3, -1, np.int64)
        found.append((i, place))
        integer_kernel.matmul(
            left[i], right[min(i, len(right) - 1)], start[i], out[i], lo, hi, low, high,
            OVERFLOW[rule.overflow], rule.group, -pair - 1, pair, place,
        )  # fmt: skip

    over_items(rows, batch, m)
    places = sorted((i, *(int(v) for v in p)) for i, p in found if p[0] >= 0)
    if places:
        item, row, column, k = places[0]
        raise Overflowed(f"{rule.acc_bits}-bit accumulator", (item, row, column), k)
    return wrapped(out, rule.acc_bits)


def wrapped(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Return values modulo 2**bits as signed integers: int32, or int64 beyond 32 bits.

    Examples
    --------
    >>> wrapped(np.array([128, -129]), 8)
    array([-128,  127], dtype=int32)
    """
    if bits == 32 and values.dtype == np.int32:
        return values
    unused = np.int64(64 - bits)
    cut = (values.astype(np.int64) << unused) >> unused
    return cut.astype(np.int32 if bits <= 32 else np.int64)


def outside(
    total: NDArray[np.int64], part: NDArray[np.int64], bits: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return total + part modulo 2**64, and where it is above and below `bits` bits.

    Examples
    --------
    >>> top = np.array([2**63 - 1])
    >>> [bool(x[0]) for x in outside(top, top, 64)[1:]]
    [True, False]
    """
    low, high = limits(bits)
    wide = total + part
    lost = ((total ^ wide) & (part ^ wide)) < 0
    return wide, np.where(lost, part > 0, wide > high), np.where(lost, part < 0, wide < low)


def add_integer_parts(parts: list[NDArray[Any]], rule: IntSum) -> NDArray[Any]:
    """Add the results of chains in order in `outer_bits`, the first to zero."""
    low, high = limits(rule.outer_bits)
    total = np.zeros(parts[0].shape, np.int64)
    for i, part in enumerate(parts):
        total, above, below = outside(total, part.astype(np.int64), rule.outer_bits)
        if rule.overflow == "wrap":
            total = wrapped(total, rule.outer_bits).astype(np.int64)
        elif rule.overflow == "saturate":
            total = np.where(above, high, np.where(below, low, total))
        elif (above | below).any():
            item, row, column = (int(v) for v in np.argwhere(above | below)[0])
            what = f"{rule.outer_bits}-bit outer accumulator"
            raise Overflowed(what, (item, row, column), 0, i)
    return wrapped(total, rule.outer_bits)
