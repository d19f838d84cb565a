"""Stimuli: dot products whose results show one property of a unit each.

Terms are products of two numbers of the formats; all others are +0. The names of batches say what
they are for: `exact` and `rich` how two terms add, `span` single products, `start` how c joins,
`steps` which products meet before something is rounded, `edges` zeros, subnormals, overflow and
NaN, `long` where long sums are cut, `random` whether what was found is the whole truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode, encode
from numsim.probe.alphabet import Words, words
from numsim.probe.machine import Batch, Machine

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
    return sorted({high, (both.low + 2 * high) // 3, min(2, high), min(-2, high)}, reverse=True)


def _signed(pair: tuple[float, float], sign: float) -> tuple[float, float]:
    return sign * pair[0], pair[1]


def _sign(machine: Machine) -> tuple[float, ...]:
    return (1.0, -1.0) if machine.a.signed else (1.0,)


def exact(machine: Machine) -> Batch:
    """Two powers of two (and one and a half of one): how many bits a sum keeps, how it rounds."""
    both, sheet = words(machine.a, machine.b), Sheet(machine, machine.depths[0])
    for anchor in _anchors(both, machine):
        one = both.factors(anchor)
        for gap in range(min(_REACH, anchor - both.low) + 1):
            other = both.factors(anchor - gap)
            for sign in _sign(machine):
                sheet.add([(0, *one), (1, *_signed(other, sign))])
                sheet.add([(0, *_signed(one, -sign)), (1, *other)])
                if machine.a.precision > 1:
                    more = (1.5 * other[0], other[1])
                    sheet.add([(0, *one), (1, *_signed(more, sign))])
    return shuffled(sheet.batch("exact"))


def rich(machine: Machine) -> Batch:
    """Two terms with all bits of their significands set."""
    both, sheet = words(machine.a, machine.b), Sheet(machine, machine.depths[0])
    for anchor in _anchors(both, machine):
        one, full = both.factors(anchor), both.rich(anchor)
        for gap in range(min(_REACH, anchor - both.low) + 1):
            other = both.rich(anchor - gap)
            for sign in _sign(machine):
                sheet.add([(0, *one), (1, *_signed(other, sign))])
                sheet.add([(0, *full), (1, *_signed(other, sign))])
    return shuffled(sheet.batch("rich"))


def span(machine: Machine) -> Batch:
    """Single products from the least to the largest."""
    both, sheet = words(machine.a, machine.b), Sheet(machine, machine.depths[0])
    for exponent in range(both.low, both.high + 1):
        sheet.add([(0, *both.factors(exponent))])
        for sign in _sign(machine):
            sheet.add([(0, *_signed(both.rich(exponent), sign))])
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
                sheet.add([*terms, (i, *one), (j, *_signed(one, -1.0))])
        for place in (24, 23, 26, 11, 12, 14):  # c's last bits beside two small terms
            if n % 3 == 0:
                large = 2.0 ** (bottom + place)
                sheet.add([(i, *both.factors(bottom)), (j, *both.factors(bottom))], large)
    for half, gap in product((24, 14, 11, 8), range(1, 26, 2)):  # a tie, but for a small term
        if both.low <= top - half - gap:
            three = [both.factors(top - n) for n in (half + gap, half, 0)]
            for turn in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
                sheet.add([(k, *three[n]) for k, n in enumerate(turn)])
                sheet.add([(k * 16, *_signed(three[n], _sign(machine)[-1]))
                           for k, n in enumerate(turn)])  # fmt: skip
    sizes = sorted({top, (top + bottom) // 2, max(bottom, top - 9)})
    for n in range(1, depth + 1):  # sums that need ever more bits
        for size, sign in zip(sizes, (1.0, _sign(machine)[-1], 1.0), strict=False):
            pairs_of = (both.rich(size - int(rng.integers(3))) for _ in range(n))
            sheet.add([(k, *_signed(pair, sign)) for k, pair in enumerate(pairs_of)])
    for n in range(depth):  # ever larger and ever smaller terms
        sizes = sorted(int(e) for e in rng.integers(bottom, top + 1, depth))
        signs = rng.choice(_sign(machine), depth)
        for order in (sizes, sizes[::-1]):
            kept = range(0, depth, 1 + n % 4)
            sheet.add([(k, *_signed(both.rich(order[k]), signs[k])) for k in kept])
    fixed = sheet.batch("steps")
    return shuffled(joined_with(fixed, random(machine, depth, 200, 4, quiet=True)), 5)


def joined_with(first: Batch, second: Batch) -> Batch:
    """Return two batches as one, under the name of the first."""
    parts = [np.concatenate([getattr(first, key), getattr(second, key)]) for key in "abc"]
    return Batch(first.name, *parts)


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
        for sign in _sign(machine):
            small, value = both.rich(exponent), 2.0**exponent
            sheet.add([(0, *_signed(small, sign))], value * 1.25)
            sheet.add([(0, *_signed(small, sign))], -sign * small[0] * small[1])
            sheet.add([(0, *small), (1, *_signed(small, sign)), (3, *both.factors(exponent))])
            sheet.add([(0, *_signed(small, sign)), (1, 2.0 ** both.a.powers[-1], 0.0)])
    for c in (0.0, -0.0):
        for sign in _sign(machine):
            sheet.add([(k, sign * 0.0, 1.0) for k in range(depth)], c)
            sheet.add([(k, 0.0, sign * 1.0) for k in range(depth)], c)
            sheet.add([(0, sign, 1.0), (1, -sign, 1.0)] if len(_sign(machine)) > 1 else [], c)
    low = both.a.powers[0] + both.b.powers[0]
    for exponent in range(max(low, least - width - 4), least - width + 1):  # about to be subnormal
        for sign in _sign(machine):
            pair = _signed(_power(both, exponent), sign)
            for c in (1.0, 1 + 2.0**-width, 2.0):
                sheet.add([(0, *pair)], -sign * c * 2.0**least)
                sheet.add([(0, *pair), (1, *pair)], -sign * c * 2.0**least)
            normal = _signed(_power(both, least), -sign)
            sheet.add([(0, *normal), (1, *pair)])
            sheet.add([(0, *normal), (2, *pair)])
    step = least - width  # results' last one: what a tiny product beside it decides
    for exponent in range(max(low, step - 40), step - 1):
        for sign in _sign(machine):
            tiny, half, whole = (_power(both, e) for e in (exponent, step - 1, step))
            sheet.add([(0, *_signed(half, sign)), (1, *_signed(tiny, sign))])
            if len(_sign(machine)) > 1:
                sheet.add([(0, *_signed(whole, sign)), (1, *_signed(tiny, -sign))])
    large = both.factors(both.high)
    for sign in _sign(machine):
        for c in (0.0, float(info.max), -float(info.max), np.inf, -np.inf, np.nan):
            sheet.add([(0, *_signed(large, sign))], c)
            sheet.add([(k, *_signed(both.rich(both.high), sign)) for k in range(depth)], c)
            sheet.add([(k, *_signed(large, 1 - 2.0 * (k % 2))) for k in range(depth)], c)
    batch = joined_with(sheet.batch("edges"), _below(machine, both, rng))
    if both.a.special.size + both.b.special.size:
        batch = joined_with(batch, _specials(machine, both, rng))
    return shuffled(batch, 7)


def _below(machine: Machine, both: Words, rng: np.random.Generator) -> Batch:
    """Products of the least codes, and c of their size."""
    depth = machine.depths[0]
    a, b = (np.sort(np.abs(_values(x.finite, x.fmt)))[: 4 * x.fmt.bits] for x in (both.a, both.b))
    rows = 48
    left, right = np.zeros((2, rows, depth))
    n = min(3, depth)
    left[:, :n] = rng.choice(a, (rows, n)) * rng.choice(_sign(machine), (rows, n))
    right[:, :n] = rng.choice(b, (rows, n))
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
                sheet.add([*terms, (i, *one), (j, *_signed(one, -1.0))])
    fixed = sheet.batch("long")
    rng.shuffle(ends)
    return shuffled(joined_with(fixed, random(machine, depth, 60, 10, quiet=True)), 11)


def _values(codes: NDArray[Any], fmt: Any) -> NDArray[np.float64]:
    return decode(codes, fmt).astype(np.float64)


def random(
    machine: Machine, depth: int, count: int, seed: int, *, quiet: bool = False
) -> Batch:  # fmt: skip
    """Return random sums of many kinds; `quiet`: none overflows, none is Inf or NaN."""
    both, rng = words(machine.a, machine.b), np.random.default_rng([seed, depth])
    kinds: list[Callable[..., tuple[NDArray[Any], NDArray[Any]]]]
    kinds = [_middle, _spread] if quiet else [_any, _near, _spread, _few]
    a = np.empty((count, depth), both.a.fmt.code_dtype)
    b = np.empty((count, depth), both.b.fmt.code_dtype)
    for n, kind in enumerate(kinds):
        rows = np.arange(n, count, len(kinds))
        a[rows], b[rows] = kind(both, len(rows), depth, rng)
    if machine.a.signed:
        _cancel(machine, a, b, rng)
    size = np.abs(_values(a, both.a.fmt) * _values(b, both.b.fmt)).max(1)
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


def _cancel(machine: Machine, a: NDArray[Any], b: NDArray[Any], rng: Any) -> None:
    """Put the negative of one product into half of the sums."""
    count, depth = a.shape
    if depth < 2:
        return
    for row in range(0, count, 2):
        i, j = rng.choice(depth, 2, replace=False)
        value = -_values(a[row, i : i + 1], machine.a)
        if np.isfinite(value).all():
            a[row, j : j + 1], b[row, j] = encode(value, machine.a), b[row, i]


def checks(machine: Machine) -> Batch:
    """Random sums that no question was made for."""
    return random(machine, machine.depths[0], 300, 7)


EVERY = (exact, rich, span, start, steps, edges, long, checks)
