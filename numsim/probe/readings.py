"""What can be read from answers directly, without trying rules."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.probe.machine import Batch, Machine, factors_of


def power_of(machine: Machine, batch: Batch, d: NDArray[Any]) -> int:
    """Return the n for which most single products in `span` count 2**n times; 0 for none."""
    x, y = factors_of(machine, batch)
    with np.errstate(all="ignore"):
        p, got = (x * y).sum(1), d.astype(np.float64)
        m, e = np.frexp(got / p)
    known = (p != 0) & np.isfinite(got) & (got != 0) & (batch.c == 0)
    found = e[known & (m == 0.5)] - 1
    if found.size * 2 <= known.sum() or not found.size:
        return 0
    values, counts = np.unique(found, return_counts=True)
    best = int(np.argmax(counts))
    return int(values[best]) if counts[best] * 2 > known.sum() else 0


def exact_bits(
    machine: Machine, batch: Batch, d: NDArray[Any], power: int = 0
) -> tuple[int, bool, int]:
    """Return the most bits below the larger of two terms that a sum held, if all did, and where.

    The sums of two powers of two in `exact` are exact as long as the gap is no wider. `power`: a
    product counts 2**power times.
    """
    x, y = factors_of(machine, batch)
    every = x * y
    order = np.argsort(every == 0, axis=1, kind="stable")[:, :2]  # the terms first
    p = np.take_along_axis(every, order, 1)
    with np.errstate(divide="ignore"):
        m, e = np.frexp(p)
    powers = (m == 0.5).all(1) & (p > 0).all(1) & (batch.c == 0)
    sums = p.sum(1) * 2.0**power
    gaps, right = (e[:, 0] - e[:, 1])[powers], (sums == d.astype(np.float64))[powers]
    anchors = e[:, 0][powers]
    best, complete, place = 0, False, 0
    for anchor in sorted(set(anchors.tolist()), reverse=True):
        here = anchors == anchor
        wrong = gaps[here & ~right & (gaps > 0)]  # twice a power is one: or it overflows
        kept = gaps[here & right & (gaps < (wrong.min() if wrong.size else np.inf))]
        bits = int(kept.max(initial=0))
        if bits > best or (bits == best and wrong.size and kept.size):
            best, complete, place = bits, not wrong.size, anchor - 1 + power
    return best, complete, place


def least_exponents(
    machine: Machine, batch: Batch, d: NDArray[Any], align_bits: int, power: int = 0
) -> set[int]:
    """Return exponents below which no alignment seems to go.

    C alone, and a single product, keep their last bit as long as that is not below the least
    exponent minus `align_bits`. A tiny product beside half of the last step of results, or less a
    whole one, decides where the sum goes, or is cut away. `power`: a product counts 2**power times.
    """
    a, b = factors_of(machine, batch)
    with np.errstate(all="ignore"):
        p = a * b * 2.0**power
        exact = p.sum(1) + batch.c.astype(np.float64)
        single = ((p != 0).sum(1) + (batch.c != 0)) == 1
        known = single & np.isfinite(exact) & np.isfinite(d)
    value, got = exact[known], d[known].astype(np.float64)
    last = _last_bit(value)
    info: Any = ml_dtypes.finfo(machine.dtype)  # type: ignore[no-untyped-call]
    place = int(info.minexp) - info.nmant
    step = 2.0**place
    lost: set[int] = set()  # places of bits that were cut: below the limit
    cut = (value != got) & (last >= place)  # results hold no bits below
    if cut.any():
        lost.add(int(last[cut].max()))
        top = np.frexp(value[cut])[1] - 1
        gone = np.frexp(np.abs(value - got)[cut])[1] - 1  # the largest bit of what was cut
        usual = (top - gone)[top >= np.median(top)].min()  # results keep no more, far above
        if (top - gone < usual).any():
            lost.add(int(gone[top - gone < usual].max()))
    size = np.abs(p)
    with np.errstate(invalid="ignore"):
        large, tiny = size.max(1), size.sum(1) - size.max(1)
        answer = np.abs(d.astype(np.float64))
    two = ((p != 0).sum(1) == 2) & (batch.c == 0) & (tiny < large)
    above = (large == step / 2) & (np.abs(exact) > large)  # decides a rounding to nearest
    below = (large == step) & (np.abs(exact) < large)  # and one toward zero
    sets = ((above, 0.0), (below, step))
    for beside, alone in sets:
        cut = two & beside & (answer == alone)
        kept = two & beside & ~cut
        if cut.any() and kept.any():  # the two differ where terms meet in several ways
            lost.add(int(np.frexp(tiny[cut].max())[1]) - 1)
            lost.add(int(np.frexp(tiny[kept].min())[1]) - 2)
    return {place + 1 + align_bits + n for place in lost for n in (-1, 0, 1)}


def _last_bit(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the exponents of the last bits that are set in numbers."""
    mantissa, exponent = np.frexp(values)
    whole = (mantissa * 2.0**53).astype(np.int64)
    place = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    return np.asarray(exponent - 53 + place, np.int64)
