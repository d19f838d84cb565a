"""Stimuli for machines that apply block scales: those of plain ones at other scales, and more."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import encode
from numsim.formats import Format
from numsim.probe.alphabet import Words, words
from numsim.probe.machine import Batch, Machine, joined
from numsim.probe.stimuli import random as plain_random
from numsim.probe.stimuli import shuffled, signed, signs

_RUN = 16  # k that the shortest blocks have
_GAPS = (*range(1, 46), 60)
_Parts = list[tuple[int, float, float, int]]  # position, numbers of a and b, exponent of scales


def _scale_words(machine: Machine) -> Words:
    assert machine.scale is not None
    return words(machine.scale, machine.scale)


def _codes(values: NDArray[Any], fmt: Format | None) -> NDArray[Any]:
    assert fmt is not None
    return encode(values, fmt)


def _factors(machine: Machine, exponents: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return codes of scales of a and b whose products are powers of two."""
    both = _scale_words(machine)
    low, high = (2 * end for end in (both.a.powers[0], both.a.powers[-1]))
    e = np.clip(exponents, low, high)
    first = e >> 1
    a, b = (_codes(np.ldexp(1.0, part), machine.scale) for part in (first, e - first))
    return a, b


def _reach(machine: Machine) -> tuple[int, int]:
    """Return the least and largest exponent of a product of two scales."""
    powers = _scale_words(machine).a.powers
    return 2 * powers[0], 2 * powers[-1]


def shifted(machine: Machine, batch: Batch, seed: int) -> Batch:
    """Return a batch with the same scale everywhere in a sum.

    Single products and edges also at the ends of results, where limits of exponents show.
    """
    rng, count = np.random.default_rng(seed), len(batch.a)
    both, (low, high) = words(machine.a, machine.b), _reach(machine)
    e = np.where(rng.random(count) < 0.5, 0, rng.integers(-20, 21, count))
    if batch.name in ("span", "edges"):
        far = np.where(
            rng.random(count) < 0.8, rng.integers(-160 - both.high, -120 - both.low, count),
            rng.integers(100 - both.high, 130 - both.high, count),
        )  # fmt: skip
        e = np.where(rng.random(count) < 0.5, e, far)
    e = np.clip(e, low, high)
    with np.errstate(all="ignore"):
        c = np.ldexp(batch.c.astype(np.float64), e)
        c = np.where(np.isinf(c), batch.c, c).astype(machine.dtype)
    blocks = batch.a.shape[1] // machine.block
    sa, sb = _factors(machine, np.repeat(e[:, None], blocks, axis=1))
    return batch._replace(c=c, sa=sa, sb=sb)


def _rows(machine: Machine, name: str, rows: list[_Parts], c: list[float]) -> Batch:
    """Return sums of a few terms, each with the scales of its block."""
    depth = machine.depths[0]
    a, b = np.zeros((2, len(rows), depth))
    e = np.zeros((len(rows), depth // machine.block), np.int64)
    for row, parts in enumerate(rows):
        for k, x, y, exponent in parts:
            a[row, k], b[row, k], e[row, k // machine.block] = x, y, exponent
    sa, sb = _factors(machine, e)
    both = words(machine.a, machine.b)
    with np.errstate(all="ignore"):
        start = np.array(c).astype(machine.dtype)
    batch = Batch(name, both.a.codes(a), both.b.codes(b), start, sa, sb)
    return batch if machine.has_c else batch.rows(start == 0)


def exact(machine: Machine) -> Batch:
    """Two terms in two blocks, as far apart as scales make them."""
    low, high = _reach(machine)
    rows: list[_Parts] = []
    for top in sorted({min(20, high), min(0, high)}):
        for gap in (0, *_GAPS[:-1]):
            if top - gap >= low:
                for x, y in ((1.0, 1.0), (1.0, 1.5), (1.0, -1.0), (1.5, -1.5), (-1.5, 1.0)):
                    if min(x, y) > 0 or machine.a.signed:
                        rows.append([(0, x, 1, top), (machine.block, y, 1, top - gap)])
                        rows.append([(0, y, 1, top - gap), (machine.block, x, 1, top)])
    return _rows(machine, "exact", rows, [0.0] * len(rows))


def steps(machine: Machine) -> Batch:
    """Large terms in two runs of K that cancel, small ones in other blocks and in c."""
    rng, (low, high) = np.random.default_rng(21), _reach(machine)
    depth, block = machine.depths[0], machine.block
    rows: list[_Parts] = []
    c: list[float] = []
    top = min(high, 30)
    for gap in _GAPS if machine.a.signed else ():
        for i in range(0, depth, _RUN):
            j = int(rng.choice([n for n in range(0, depth, _RUN) if n != i]))
            used = {i // block, j // block}
            rest = [n for n in range(depth // block) if n not in used]
            value = float(rng.choice([1.0, 1.5]))
            parts: _Parts = [(i, value, 1, top), (j, -value, 1, top)]
            small = max(low, top - gap)
            parts += [
                (n * block + int(rng.integers(block)), s * float(rng.choice([1.0, 1.5])), 1, small)
                for n in rest for s in (float(rng.choice(signs(machine))),)
            ]  # fmt: skip
            rows.append(parts)
            c.append(float(rng.choice([0.0, 1.0, -1.25])) * 2.0 ** (top - gap))
    return _rows(machine, "steps", rows, c) if rows else exact(machine)._replace(name="steps")


def edges(machine: Machine) -> Batch:
    """Write sums near the last step of results, zeros under large scales, and runs that cancel."""
    rng, (low, high) = np.random.default_rng(22), _reach(machine)
    block, last = machine.block, -149
    rows: list[_Parts] = []
    c: list[float] = []
    for e in range(max(low, last - 40), last + 30):
        for sign in signs(machine):
            for large in (last - 1, last):
                if e < large and large >= low:
                    first = 1.0 if large == last - 1 else sign
                    rows.append([(0, first, 1, large), (block, sign * (2 * first - sign), 1, e)])
            rows.append([(0, sign * 1.5, 1, e)])
            rows.append([(0, sign, 1, e), (1, 1.5, 1, e), (block, 1.0, 1, e + 1)])
    both = words(machine.a, machine.b)
    for gap in range(1, min(41, both.high - both.low + 1)):  # the same within one block
        one, tiny = both.factors(both.high), both.factors(both.high - gap)
        for sign in signs(machine):
            for large, other in ((last - 1, sign), (last, -sign)):
                e = large - both.high
                if e >= low and (other == sign or machine.a.signed):
                    rows.append([(0, *signed(one, sign), e), (1, *signed(tiny, other), e)])
    c += [0.0] * len(rows)
    for gap in (0, 10, 20, 30, 40, 60):
        for k in range(0, machine.depths[0], _RUN):  # under a large scale: zeros, and a sum of zero
            other = (k + block) % machine.depths[0]
            small = max(low, -100 if low < -100 else low)
            large = min(high, small + gap)
            rows.append([(k, 0.0, 1, large), (other, 1.5, 1, small)])
            pair: _Parts = [(k, 1.0, 1, large), (k + 1, signs(machine)[-1], 1, large)]
            rows.append([*pair, (other, 1.5, 1, small)])
            c += [0.0, float(rng.choice([0.0, 1.25])) * 2.0 ** (small - 3)]
    return _rows(machine, "edges", rows, c)


def random(
    machine: Machine, depth: int, count: int, seed: int, *, quiet: bool = False
) -> Batch:  # fmt: skip
    """Return random sums with random scales; `quiet`: none overflows, none is Inf or NaN."""
    batch = plain_random(machine, depth, count, seed, quiet=quiet)
    rng, (low, high) = np.random.default_rng([seed, depth, 23]), _reach(machine)
    blocks = depth // machine.block
    kinds = rng.choice(4, count, p=(0.3, 0.4, 0.2, 0.1))
    if quiet:
        kinds %= 3
    base = np.select([kinds == 1, kinds == 2, kinds == 3],
                     [rng.integers(-6, 7, count), rng.integers(-30, 31, count),
                      rng.integers(-165, 110, count)], 0)  # fmt: skip
    width = np.select([kinds == 1, kinds == 2], [4, 20], 8)[:, None]
    e = base[:, None] + np.round(rng.uniform(-1, 1, (count, blocks)) * width).astype(np.int64)
    sa, sb = _factors(machine, e)
    sa, sb = _odd(machine, sa, rng), _odd(machine, sb, rng)
    with np.errstate(all="ignore"):
        c = np.ldexp(batch.c.astype(np.float64), np.clip(base, low, high))
        c = np.where(np.abs(c) < 3e38, c, 0).astype(machine.dtype)
    if not quiet:
        for codes in (sa, sb):
            rare = rng.random(count) < 0.02
            codes[rare, rng.integers(blocks)] = rng.integers(0, 256, int(rare.sum()))
    return batch._replace(c=c, sa=sa, sb=sb)


def _odd(machine: Machine, codes: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Return scales with random significands, where their format has such."""
    fmt = machine.scale
    assert fmt is not None
    bits = fmt.precision - 1
    if not bits:
        return codes
    some: NDArray[Any] = codes | rng.integers(0, 1 << bits, codes.shape).astype(codes.dtype)
    return np.where((some & 0x7F) == 0x7F, codes, some)  # not NaN


def more(machine: Machine, batch: Batch) -> Batch:
    """Return a batch of plain stimuli at several scales, with those that scales alone show."""
    own = {"exact": exact, "steps": steps, "edges": edges}
    found = shifted(machine, batch, len(batch.name))
    parts = [found]
    if batch.name in own:
        parts.append(own[batch.name](machine))
    if batch.name in ("steps", "edges"):
        parts.append(random(machine, machine.depths[0], 150, 31, quiet=True))
    return shuffled(joined(parts), 17)
