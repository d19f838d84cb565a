"""Stimuli at the ends: zeros and their signs, subnormals, overflow, Inf and NaN."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from numsim.probe.alphabet import Words, words
from numsim.probe.machine import Batch, Machine, joined
from numsim.probe.stimuli import Sheet, random, shuffled, signed, signs, values_of


def _power(both: Words, exponent: int) -> tuple[float, float]:
    """Return two powers of two whose product is a power beyond the usual window."""
    x = max(both.a.powers[0], min(exponent // 2, both.a.powers[-1]))
    x = max(x, exponent - both.b.powers[-1])
    return 2.0**x, 2.0 ** (exponent - x)


def edges(machine: Machine) -> Batch:
    """Zeros and their signs, subnormals, c alone, the ends of the range, Inf and NaN."""
    both, depth = words(machine.a, machine.b), machine.depths[0]
    sheet, rng = Sheet(machine, depth), np.random.default_rng(6)
    info: Any = ml_dtypes.finfo(machine.dtype)  # type: ignore[no-untyped-call]
    least, most, width = int(info.minexp), int(info.maxexp), info.nmant
    for exponent in range(least - width, most):
        fraction = 1 + int(rng.integers(1 << width)) * 2.0**-width
        sheet.add([], fraction * 2.0**exponent * (1 - 2 * (exponent % 2)))
    for x in both.a.powers[:: max(1, len(both.a.powers) // 40)]:
        for y in (both.b.powers[-1], both.b.powers[0]):
            for exponent in (x + y - 20, x + y - 5, x + y, least + 3):
                fraction = 1 + int(rng.integers(1 << width)) * 2.0**-width
                if least <= exponent < most:
                    sheet.add([(0, 2.0**x, 0.0), (1, 0.0, 2.0**y)], fraction * 2.0**exponent)
    for exponent in range(both.low, min(both.low + 30, both.high)):
        for sign in signs(machine):
            small, value = both.rich(exponent), 2.0**exponent
            sheet.add([(0, *signed(small, sign))], value * 1.25)
            sheet.add([(0, *signed(small, sign))], -sign * small[0] * small[1])
            sheet.add([(0, *small), (1, *signed(small, sign)), (3, *both.factors(exponent))])
            for c in (0.0, -sign * 2.0**least):  # a zero product may have an exponent
                sheet.add([(0, *signed(small, sign)), (1, 2.0 ** both.a.powers[-1], 0.0)], c)
    for n, gap in enumerate((*range(48), *range(48))):  # two products that cancel: c's last bits
        anchor = (min(both.high, 12), max(both.low, -4))[n // 48]
        fraction = 1 + int(rng.integers(1 << width)) * 2.0**-width
        if machine.a.signed and least <= anchor - gap < most:
            pair = both.factors(anchor)
            terms = [(0, *pair), (1 + n % 3, *signed(pair, -1.0))]
            sheet.add(terms, (1 - 2 * (n % 2)) * fraction * 2.0 ** (anchor - gap))
        if machine.a.signed and anchor - gap >= both.low:  # and those of a third product
            pair, small = both.factors(anchor), signed(both.rich(anchor - gap), 1 - 2.0 * (n % 2))
            sheet.add([(0, *pair), (1, *signed(pair, -1.0)), (2, *small)])
    for c in (0.0, -0.0):
        for sign in signs(machine):
            sheet.add([(k, sign * 0.0, 1.0) for k in range(depth)], c)
            sheet.add([(k, 0.0, sign * 1.0) for k in range(depth)], c)
            sheet.add([(0, sign, 1.0), (1, -sign, 1.0)] if len(signs(machine)) > 1 else [], c)
    low = both.a.powers[0] + both.b.powers[0]
    for exponent in range(max(low, least - width - 4), least - width + 1):  # about to be subnormal
        for sign in signs(machine):
            pair = signed(_power(both, exponent), sign)
            for c in (1.0, 1 + 2.0**-width, 2.0):
                sheet.add([(0, *pair)], -sign * c * 2.0**least)
                sheet.add([(0, *pair), (1, *pair)], -sign * c * 2.0**least)
            normal = signed(_power(both, least), -sign)
            sheet.add([(0, *normal), (1, *pair)])
            sheet.add([(0, *normal), (2, *pair)])
    step = least - width  # results' last one: what a tiny product beside it decides
    for exponent in range(max(low, step - 40), step - 1):
        for sign in signs(machine):
            tiny, half, whole = (_power(both, e) for e in (exponent, step - 1, step))
            sheet.add([(0, *signed(half, sign)), (1, *signed(tiny, sign))])
            if len(signs(machine)) > 1:
                sheet.add([(0, *signed(whole, sign)), (1, *signed(tiny, -sign))])
    large = both.factors(both.high)
    for sign in signs(machine):
        for c in (0.0, float(info.max), -float(info.max), np.inf, -np.inf, np.nan):
            sheet.add([(0, *signed(large, sign))], c)
            sheet.add([(k, *signed(both.rich(both.high), sign)) for k in range(depth)], c)
            sheet.add([(k, *signed(large, 1 - 2.0 * (k % 2))) for k in range(depth)], c)
    batch = joined([sheet.batch("edges"), _below(machine, both, rng)])
    if both.a.special.size + both.b.special.size:
        batch = joined([batch, _specials(machine, both, rng)])
    return shuffled(batch, 7)


def _below(machine: Machine, both: Words, rng: np.random.Generator) -> Batch:
    """Products of the least codes, and c of their size."""
    depth = machine.depths[0]
    a, b = (np.sort(np.abs(values_of(x.finite, x.fmt)))[: 4 * x.fmt.bits] for x in (both.a, both.b))
    rows = 48
    left, right = np.zeros((2, 2 * rows, depth))
    n = min(3, depth)
    left[:rows, :n] = rng.choice(a, (rows, n)) * rng.choice(signs(machine), (rows, n))
    right[:rows, :n] = rng.choice(b, (rows, n))
    for row in range(rows, 2 * rows):  # least codes of one side times large ones of the other
        small, large = (a, both.b) if row % 2 else (b, both.a)
        pair = rng.choice(small), 2.0 ** rng.choice(large.powers[-8:])
        at = int(rng.integers(n))
        left[row, at], right[row, at] = pair if row % 2 else pair[::-1]
    rows = 2 * rows
    with np.errstate(all="ignore"):
        c = (left[:, 0] * right[:, 0] * rng.normal(size=rows)).astype(machine.dtype)
    c[::2] = 0
    batch = Batch("edges", both.a.codes(left), both.b.codes(right), c)
    return batch if machine.has_c else batch.rows(c == 0)


def _specials(machine: Machine, both: Words, rng: np.random.Generator) -> Batch:
    """Random sums with one or two codes of Inf or NaN."""
    batch = random(machine, machine.depths[0], 48, 8, quiet=True)
    for row in range(len(batch.a)):
        for codes, letters in ((batch.a, both.a), (batch.b, both.b)):
            if letters.special.size and rng.random() < 0.7:
                at = int(rng.integers(min(4, codes.shape[1])))
                codes[row, at] = rng.choice(letters.special)
    return batch
