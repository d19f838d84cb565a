"""What can be read from answers directly, without trying rules."""

from __future__ import annotations

from typing import Any

import ml_dtypes
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
    exponent minus `align_bits`. A tiny product beside half of the last step of results, or less a
    whole one, decides where the sum goes, or is cut away.
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
    lost: set[int] = set()  # places of bits that were cut: below the limit
    if value.size and (value != got).any():
        lost.add(int(last[value != got].max()))
    info: Any = ml_dtypes.finfo(machine.dtype)  # type: ignore[no-untyped-call]
    step = 2.0 ** (int(info.minexp) - info.nmant)
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
        if cut.any() and not cut[two & beside].all():
            lost.add(int(np.frexp(tiny[cut].max())[1]) - 1)
    return {place + 1 + align_bits + n for place in lost for n in (-1, 0, 1)}


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
