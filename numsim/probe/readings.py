"""What can be read from answers directly, without trying rules."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode
from numsim.probe.machine import Batch, Machine


def exact_bits(machine: Machine, batch: Batch, d: NDArray[Any]) -> tuple[int, bool]:
    """Return the most bits below the larger of two terms that a sum held, and if all did.

    The sums of two powers of two in `exact` are exact as long as the gap is no wider.
    """
    a, b = (
        decode(x, f).astype(np.float64) for x, f in ((batch.a, machine.a), (batch.b, machine.b))
    )
    p = a[:, :2] * b[:, :2]
    with np.errstate(divide="ignore"):
        m, e = np.frexp(p)
    powers = (m == 0.5).all(1) & (p > 0).all(1) & (batch.c == 0)
    gaps, right = (e[:, 0] - e[:, 1])[powers], (p.sum(1) == d.astype(np.float64))[powers]
    anchors = e[:, 0][powers]
    best, complete = 0, False
    for anchor in set(anchors.tolist()):
        here = anchors == anchor
        wrong = gaps[here][~right[here]]
        bits = int(wrong.min()) - 1 if wrong.size else int(gaps[here].max())
        if bits > best:
            best, complete = bits, not wrong.size
    return best, complete


def least_exponents(machine: Machine, batch: Batch, d: NDArray[Any], align_bits: int) -> set[int]:
    """Return exponents below which no alignment seems to go.

    C alone, and a single product, keep their last bit as long as that is not below the least
    exponent minus `align_bits`. Where all of them are kept there is nothing to see.
    """
    a, b = (
        decode(x, f).astype(np.float64) for x, f in ((batch.a, machine.a), (batch.b, machine.b))
    )
    with np.errstate(all="ignore"):
        p = a * b
        exact = p.sum(1) + batch.c.astype(np.float64)
        single = ((p != 0).sum(1) + (batch.c != 0)) == 1
        known = single & np.isfinite(exact) & np.isfinite(d)
    value, got = exact[known], d[known].astype(np.float64)
    last = _last_bit(value)
    if not value.size or (value == got).all():
        return set()
    lost = int(last[value != got].max())  # the last bit of something cut: below the limit
    return {lost + 1 + align_bits + n for n in (-1, 0, 1)}


def _numbers(machine: Machine, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    both = ((batch.a, machine.a), (batch.b, machine.b))
    a, b = (decode(codes, fmt).astype(np.float64) for codes, fmt in both)
    return a, b


def _last_bit(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the exponents of the last bits that are set in numbers."""
    mantissa, exponent = np.frexp(values)
    whole = (mantissa * 2.0**53).astype(np.int64)
    place = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    return np.asarray(exponent - 53 + place, np.int64)
