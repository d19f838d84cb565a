"""The numbers that stimuli are made of: what a pair of formats can say exactly."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode, encode
from numsim.formats import Format

_WINDOW = 100  # exponents of products stay within, so that float32 holds sums of them


class Alphabet(NamedTuple):
    """Codes of one format.

    `powers` are the exponents e for which 2**e is a number of it, ascending, without gaps.
    """

    fmt: Format
    powers: tuple[int, ...]
    finite: NDArray[Any]  # codes of every finite number (of 65,536 at most: a sample beyond)
    special: NDArray[Any]  # codes of Inf and NaN

    def codes(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the codes of numbers that the format holds."""
        found: NDArray[Any] = encode(values, self.fmt)
        return found


@lru_cache(maxsize=64)
def alphabet(fmt: Format) -> Alphabet:
    """Return the codes of a format."""
    low, high = -160, 128
    tried = np.array([2.0**e for e in range(low, high + 1)])
    back = decode(encode(tried, fmt, overflow="saturate"), fmt).astype(np.float64)
    powers = tuple(e for e, x, y in zip(range(low, high + 1), tried, back, strict=True) if x == y)
    if fmt.kind == "integer":
        bottom, top = int(fmt.min * 2.0**fmt.bias), int(fmt.max * 2.0**fmt.bias)
        some = np.unique(np.linspace(bottom, top, min(top - bottom + 1, 65536)).astype(np.int64))
        empty = np.zeros(0, fmt.code_dtype)
        return Alphabet(fmt, powers, some.astype(fmt.code_dtype), empty)
    if fmt.bits <= 16:
        every = np.arange(1 << fmt.bits, dtype=fmt.code_dtype)
    else:
        rng = np.random.default_rng(1)
        every = rng.integers(0, 1 << fmt.bits, 65536, dtype=np.uint64).astype(fmt.code_dtype)
        every = np.concatenate([every, encode(np.array([np.inf, np.nan]), fmt, overflow="special")])
    known = np.isfinite(decode(every, fmt))
    return Alphabet(fmt, powers, every[known], every[~known])


class Words(NamedTuple):
    """What products of two formats can say."""

    a: Alphabet
    b: Alphabet

    @property
    def low(self) -> int:
        """Least exponent e for which 2**e is a product."""
        return max(self.a.powers[0] + self.b.powers[0], -_WINDOW)

    @property
    def high(self) -> int:
        """Largest exponent e for which 2**e is a product."""
        return min(self.a.powers[-1] + self.b.powers[-1], _WINDOW)

    def factors(self, exponent: int) -> tuple[float, float]:
        """Return two powers of two whose product is 2**exponent, near each other."""
        first = self.a.powers
        middle = (exponent + first[0] + first[-1] - self.b.powers[0] - self.b.powers[-1]) // 2
        ea = min(max(middle, exponent - self.b.powers[-1], first[0]), first[-1])
        ea = max(min(ea, exponent - self.b.powers[0]), first[0])
        return 2.0**ea, 2.0 ** (exponent - ea)

    def rich(self, exponent: int) -> tuple[float, float]:
        """Return two numbers of that exponent (or the next below) with all significand bits set."""
        x, y = self.factors(exponent)
        return _full(x, self.a.fmt), _full(y, self.b.fmt)


@lru_cache(maxsize=4096)
def _full(value: float, fmt: Format) -> float:
    wide = value * (2.0 - 2.0 ** (1 - fmt.precision))
    back = decode(encode(np.array([wide]), fmt), fmt)
    return float(back[0]) if abs(float(back[0])) < np.inf else value


@lru_cache(maxsize=64)
def words(a: Format, b: Format) -> Words:
    """Return what products of two formats can say."""
    return Words(alphabet(a), alphabet(b))
