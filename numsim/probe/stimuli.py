"""Stimuli: dot products whose results show one property of a unit each.

Terms are products of two numbers of the formats; all others are +0. The names of batches say what
they are for: `exact` and `rich` how two terms add, `span` single products, `start` how c joins,
`steps` which products meet before something is rounded, `long` where long sums are cut, `random`
whether what was found is the whole truth; `numsim.probe.edges`: zeros, subnormals, overflow, NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode, encode
from numsim.probe.alphabet import Words, words
from numsim.probe.machine import Batch, Machine, joined

Term = tuple[int, float, float]  # position in K, numbers of a and of b
_REACH = 40  # exponents between two terms that are tried: the widest alignment is 35 bits


class Sheet:
    """Dot products, written down one by one."""

    def __init__(self, machine: Machine, depth: int) -> None:
        self.machine, self.depth = machine, depth
        self.terms: list[list[Term]] = []
        self.start: list[float] = []

    def add(self, terms: Iterable[Term], c: float = 0.0) -> None:
        """Write one dot product."""
        self.terms.append([t for t in terms if t[0] < self.depth])
        self.start.append(c)

    def batch(self, name: str) -> Batch:
        """Return what was written, c without what the machine cannot take."""
        m = self.machine
        a = np.zeros((len(self.terms), self.depth))
        b = np.zeros_like(a)
        for row, terms in enumerate(self.terms):
            for position, x, y in terms:
                a[row, position], b[row, position] = x, y
        both = words(m.a, m.b)
        with np.errstate(all="ignore"):
            c = np.array(self.start).astype(m.dtype)  # integers below 2**53 are exact
        keep = slice(None) if m.has_c else np.array(self.start) == 0
        return Batch(name, both.a.codes(a), both.b.codes(b), c).rows(keep)


def shuffled(batch: Batch, seed: int = 1) -> Batch:
    """Return a batch in another order: the first few then show a bit of everything."""
    return batch.rows(np.random.default_rng(seed).permutation(len(batch.a)))


def _anchors(both: Words, machine: Machine) -> list[int]:
    """Return exponents of the larger of two terms: high, middle, low."""
    high = min(both.high - 1, 14 if machine.out == "float16" else 40)
    return sorted({high, (both.low + 2 * high) // 3, min(0, high), min(-2, high)}, reverse=True)


def signed(pair: tuple[float, float], sign: float) -> tuple[float, float]:
    """Return two factors, the product times a sign."""
    return sign * pair[0], pair[1]


def signs(machine: Machine) -> tuple[float, ...]:
    """Return the signs that products can have."""
    return (1.0, -1.0) if machine.a.signed else (1.0,)


def exact(machine: Machine) -> Batch:
    """Two powers of two (and one and a half of one): how many bits a sum keeps, how it rounds."""
    both, sheet = words(machine.a, machine.b), Sheet(machine, machine.depths[0])
    for anchor in _anchors(both, machine):
        one = both.factors(anchor)
        for gap in range(min(_REACH, anchor - both.low) + 1):
            other = both.factors(anchor - gap)
            for sign in signs(machine):
                sheet.add([(0, *one), (1, *signed(other, sign))])
                sheet.add([(0, *signed(one, -sign)), (1, *other)])
                if machine.a.precision > 1:
                    more = (1.5 * other[0], other[1])
                    sheet.add([(0, *one), (1, *signed(more, sign))])
    return shuffled(sheet.batch("exact"))


def rich(machine: Machine) -> Batch:
    """Two terms with all bits of their significands set."""
    both, sheet = words(machine.a, machine.b), Sheet(machine, machine.depths[0])
    for anchor in _anchors(both, machine):
        one, full = both.factors(anchor), both.rich(anchor)
        for gap in range(min(_REACH, anchor - both.low) + 1):
            other = both.rich(anchor - gap)
            for sign in signs(machine):
                sheet.add([(0, *one), (1, *signed(other, sign))])
                sheet.add([(0, *full), (1, *signed(other, sign))])
    return shuffled(sheet.batch("rich"))


def span(machine: Machine) -> Batch:
    """Single products from the least to the largest."""
    both, sheet = words(machine.a, machine.b), Sheet(machine, machine.depths[0])
    for exponent in range(both.low, both.high + 1):
        sheet.add([(0, *both.factors(exponent))])
        for sign in signs(machine):
            sheet.add([(0, *signed(both.rich(exponent), sign))])
    return shuffled(sheet.batch("span"))


def start(machine: Machine) -> Batch:
    """C and one product."""
    both, sheet = words(machine.a, machine.b), Sheet(machine, machine.depths[0])
    rng = np.random.default_rng(2)
    width = machine.width
    for anchor in _anchors(both, machine)[::2]:
        for gap in range(-30, 41):
            if (
                not (-14 if machine.out == "float16" else -120)
                <= anchor - gap
                <= (120 if width == 23 else 14)
            ):
                continue
            for pair in (both.factors(anchor), both.rich(anchor)):
                fraction = int(rng.integers(1 << width))
                some = (1.0, 1 + 2.0**-width, 2 - 2.0**-width, 1 + fraction * 2.0**-width)
                for value in some[:: 1 if gap >= 20 else 2]:
                    sign = 1 - 2 * int(rng.integers(2))
                    sheet.add([(0, *pair)], sign * value * 2.0 ** (anchor - gap))
    return shuffled(sheet.batch("start"))


def steps(machine: Machine) -> Batch:
    """Large numbers that cancel while small ones are added, and random sums of many terms."""
    both, depth = words(machine.a, machine.b), machine.depths[0]
    sheet, rng = Sheet(machine, depth), np.random.default_rng(3)
    top = min(both.high - 1, 13 if machine.out == "float16" else 40)
    bottom = max(both.low, -8 if machine.out == "float16" else -18)
    pairs = [(0, j) for j in range(1, depth)] + [(depth // 2 + 1, j) for j in range(depth // 2)]
    pairs += [tuple(sorted(rng.choice(depth, 2, replace=False).tolist())) for _ in range(depth)]
    smalls = {max(bottom, top - gap) for gap in (12, 26, 60)}
    for n, (i, j) in enumerate(pairs):
        for small in smalls if n % 3 == 0 else [sorted(smalls)[n % len(smalls)]]:
            one, other = both.factors(top), both.factors(small)
            if machine.a.signed:
                terms = [(k, *other) for k in range(depth) if k not in (i, j)]
                sheet.add([*terms, (i, *one), (j, *signed(one, -1.0))])
        for place in (24, 23, 26, 11, 12, 14):  # c's last bits beside two small terms
            if n % 3 == 0:
                large = 2.0 ** (bottom + place)
                sheet.add([(i, *both.factors(bottom)), (j, *both.factors(bottom))], large)
    for half, gap in product((24, 14, 11, 8), range(1, 26, 2)):  # a tie, but for a small term
        if both.low <= top - half - gap:
            three = [both.factors(top - n) for n in (half + gap, half, 0)]
            for turn in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
                sheet.add([(k, *three[n]) for k, n in enumerate(turn)])
                sheet.add([(k * 16, *signed(three[n], signs(machine)[-1]))
                           for k, n in enumerate(turn)])  # fmt: skip
    sizes = sorted({top, (top + bottom) // 2, max(bottom, top - 9)})
    for n in range(1, depth + 1):  # sums that need ever more bits
        for size, sign in zip(sizes, (1.0, signs(machine)[-1], 1.0), strict=False):
            pairs_of = (both.rich(size - int(rng.integers(3))) for _ in range(n))
            sheet.add([(k, *signed(pair, sign)) for k, pair in enumerate(pairs_of)])
    for n in range(depth):  # ever larger and ever smaller terms
        sizes = sorted(int(e) for e in rng.integers(bottom, top + 1, depth))
        plus = rng.choice(signs(machine), depth)
        for order in (sizes, sizes[::-1]):
            kept = range(0, depth, 1 + n % 4)
            sheet.add([(k, *signed(both.rich(order[k]), plus[k])) for k in kept])
    fixed = sheet.batch("steps")
    return shuffled(joined([fixed, random(machine, depth, 200, 4, quiet=True)]), 5)


def long(machine: Machine) -> Batch:
    """Write sums over the longest K."""
    both, depth = words(machine.a, machine.b), machine.depths[-1]
    sheet, rng = Sheet(machine, depth), np.random.default_rng(9)
    top = min(both.high - 1, 12 if machine.out == "float16" else 40)
    smalls = {max(both.low, -10 if machine.out == "float16" else -18, top - gap)
              for gap in (13, 26, 60)}  # fmt: skip
    ends = sorted({k for j in range(0, depth + 1, 16) for k in (j - 1, j) if 0 < k < depth})
    for n, j in enumerate(ends):
        small = sorted(smalls)[n % len(smalls)]
        for i in (0, j // 2):
            if machine.a.signed and i != j:
                one, other = both.factors(top), both.factors(small)
                terms = [(k, *other) for k in range(depth) if k not in (i, j)]
                sheet.add([*terms, (i, *one), (j, *signed(one, -1.0))])
        if machine.a.signed and n % 8 == 7:  # c's bits are lost, unless the parts meet before
            one = both.factors(top)
            sheet.add([(0, *one), (j, *signed(one, -1.0))], 1.37 * 2.0 ** (top - 26))
    fixed = sheet.batch("long")
    rng.shuffle(ends)
    more = random(machine, depth, 60, 10, quiet=True), moderate(machine, depth, 60, 12)
    return shuffled(joined([fixed, *more]), 11)


def values_of(codes: NDArray[Any], fmt: Any) -> NDArray[np.float64]:
    """Return what codes mean."""
    return decode(codes, fmt).astype(np.float64)


def random(
    machine: Machine, depth: int, count: int, seed: int, *, quiet: bool = False
) -> Batch:  # fmt: skip
    """Return random sums of many kinds; `quiet`: none overflows, none is Inf or NaN."""
    both, rng = words(machine.a, machine.b), np.random.default_rng([seed, depth])
    kinds: list[Callable[..., tuple[NDArray[Any], NDArray[Any]]]]
    kinds = [_middle, _spread] if quiet else [_any, _near, _spread, _few, _uneven]
    a = np.empty((count, depth), both.a.fmt.code_dtype)
    b = np.empty((count, depth), both.b.fmt.code_dtype)
    for n, kind in enumerate(kinds):
        rows = np.arange(n, count, len(kinds))
        a[rows], b[rows] = kind(both, len(rows), depth, rng)
    if machine.a.signed:
        _cancel(machine, a, b, rng)
    size = np.abs(values_of(a, both.a.fmt) * values_of(b, both.b.fmt)).max(1)
    with np.errstate(all="ignore"):
        shift = rng.integers(-30, 31, count) * (rng.random(count) < 0.7)
        c = size * rng.uniform(-2, 2, count) * 2.0**shift
        c[rng.random(count) < 0.25] = 0
        top = 6e4 if machine.out == "float16" else 1e38
        c = np.clip(c, -top, top).astype(machine.dtype)
    if not machine.has_c:
        c[:] = 0
    if not quiet:
        for codes, letters in ((a, both.a), (b, both.b)):
            rare = rng.random(count) < 0.03
            if letters.special.size and rare.any():
                codes[rare, rng.integers(depth)] = rng.choice(letters.special, int(rare.sum()))
    return Batch("random", a, b, c)


def moderate(machine: Machine, depth: int, count: int, seed: int) -> Batch:
    """Return random sums of products below a limit that varies: some fit any narrow accumulator."""
    both, rng = words(machine.a, machine.b), np.random.default_rng([seed, depth, 5])
    top = rng.integers(max(both.low, -16), min(both.high, 6) + 1, (count, 1))
    reach = rng.choice([6, 14, 24], (count, 1))
    size = np.maximum(top - np.floor(reach * rng.random((count, depth)) ** 2), both.low)
    first, second = both.a.powers, both.b.powers
    middle = (size + first[0] + first[-1] - second[0] - second[-1]) // 2
    ea = np.clip(middle + rng.integers(-2, 3, size.shape), first[0], first[-1])
    ea = np.clip(ea, size - second[-1], size - second[0])
    a = _within(both.a, ea, ea + 1, rng)
    b = _within(both.b, size - ea, size - ea + 1, rng)
    _cancel(machine, a, b, rng)
    c = np.ldexp(rng.normal(size=count), top[:, 0]).astype(machine.dtype)
    c[rng.random(count) < 0.5] = 0
    if not machine.has_c:
        c[:] = 0
    return Batch("random", a, b, c)


def _any(both: Words, count: int, depth: int, rng: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Any finite codes."""
    return tuple(rng.choice(x.finite, (count, depth)) for x in (both.a, both.b))


def _within(letters: Any, low: NDArray[Any], high: NDArray[Any], rng: Any) -> NDArray[Any]:
    """Random signed numbers between powers of two, rounded to the format."""
    exponent = np.floor(rng.uniform(low, high)).astype(np.int64)
    values = np.ldexp(1 + rng.random(exponent.shape), exponent)
    values *= 1 - 2.0 * rng.integers(0, 2, exponent.shape)
    if not letters.fmt.signed:
        values = np.abs(values)
    return letters.codes(values)  # type: ignore[no-any-return]


def _near(both: Words, count: int, depth: int, rng: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Numbers within a few powers of two of each other."""
    found = []
    for x in (both.a, both.b):
        low, high = max(x.powers[0], -30), min(x.powers[-1], 30)
        first = rng.uniform(low, max(high - 2, low), (count, 1))
        found.append(_within(x, first + np.zeros((1, depth)), first + 2, rng))
    return found[0], found[1]


def _middle(both: Words, count: int, depth: int, rng: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Numbers about the size of one."""
    found = []
    for x in (both.a, both.b):
        low, high = max(x.powers[0], -5), min(x.powers[-1], 5)
        found.append(_within(x, np.full((count, depth), low), np.full((count, depth), high), rng))
    return found[0], found[1]


def _spread(both: Words, count: int, depth: int, rng: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Numbers over many powers of two."""
    found = []
    for x in (both.a, both.b):
        low, high = max(x.powers[0], -22), min(x.powers[-1], 22)
        found.append(_within(x, np.full((count, depth), low), np.full((count, depth), high), rng))
    return found[0], found[1]


def _few(both: Words, count: int, depth: int, rng: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw a few numbers among zeros."""
    a, b = _spread(both, count, depth, rng)
    keep = rng.random((count, depth)) < 6 / depth
    a[~keep] = both.a.codes(np.array([0.0]))[0]
    return a, b


def _uneven(both: Words, count: int, depth: int, rng: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw a few of the least codes of one side times large ones of the other, among zeros."""
    found = []
    for x in (both.a, both.b):
        least = x.finite[np.argsort(np.abs(values_of(x.finite, x.fmt)), kind="stable")]
        small = rng.choice(least[: 4 * x.fmt.bits], (count, depth))
        high = np.full((count, depth), x.powers[-1])
        found.append((small, _within(x, high - min(8, len(x.powers) - 1), high, rng)))
    turn = rng.random((count, 1)) < 0.5
    a, b = (np.where(turn == flip, *pair) for flip, pair in zip((True, False), found, strict=True))
    keep = rng.random((count, depth)) < 6 / depth
    a[~keep] = both.a.codes(np.array([0.0]))[0]
    return a, b


def _cancel(machine: Machine, a: NDArray[Any], b: NDArray[Any], rng: Any) -> None:
    """Put the negative of one product into half of the sums."""
    count, depth = a.shape
    if depth < 2:
        return
    for row in range(0, count, 2):
        i, j = rng.choice(depth, 2, replace=False)
        value = -values_of(a[row, i : i + 1], machine.a)
        if np.isfinite(value).all():
            a[row, j : j + 1], b[row, j] = encode(value, machine.a), b[row, i]
