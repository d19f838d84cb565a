"""Figures from formulas: theorems on block formats, quantisers of known distributions, widths."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_erf = np.frompyfunc(math.erf, 1, 1)
_erfc = np.frompyfunc(math.erfc, 1, 1)


def figure(name: str) -> float:
    """Return one figure by its id.

    >>> round(figure("bdr.mx9"), 2), figure("kulisch.e5m2.minifloat"), figure("a2q.bound")
    (34.74, 67.0, 28.0)
    """
    head, *rest = name.split(".", 1)
    words = rest[0].split(".")
    if head == "int_fp":
        return _int_fp(rest[0])
    if head == "bdr":  # blocks of 16 with a scale, pairs with one bit more
        bits = {"mx9": 7, "mx6": 4, "mx4": 2}[words[0]]
        return 6.02 * bits + 10 * math.log10(4 / (16 + 3 * 2))
    if head == "opt":
        return _optimum(words)
    if head == "midrise":
        step, db = _midrise(int(words[1]))
        return step if words[0] == "step" else db
    if head == "a2q":
        a = _log2(4608) + 8 + 8 - 1 - 1
        return float(math.ceil(a + _log2(1 + 2.0**-a) + 1))
    if head == "kulisch":
        exponent, fraction = 5, 2
        return float(2 * (2**exponent + fraction) - 1)
    return float(_accumulator_bits(int(words[0])))


def _log2(x: float) -> float:
    return math.log(x) / math.log(2.0)


# --------------------------------------------------------------- integers against floats in blocks
class _Pair(NamedTuple):
    """An integer and a float format of one width: bits, fraction bits, bias, largest value."""

    bits: int
    fraction: int
    bias: int
    largest: float


_PAIRS = {"mx8": _Pair(8, 3, 7, 448.0), "mx6": _Pair(6, 3, 1, 7.5), "mx4": _Pair(4, 1, 1, 6.0)}


def _int_fp(what: str) -> float:
    if what == "fp_ceiling_m3":
        return 10 * math.log10(24 * 2**6)
    which, figure_of, *rest = what.split(".", 2)
    narrow = which == "nv4"  # E4M3 scales of blocks of 16
    rho = float(rest[0].removeprefix("rho")) if narrow else 1.5
    pair = _PAIRS["mx4" if narrow else which]

    def integer(kappa: float) -> float:
        db = 4.78 + 6.02 * pair.bits - 20 * math.log10(rho * kappa)
        return db + (10 * math.log10(16 / 15) if narrow else 0.0)

    def floating(kappa: float) -> float:
        t = rho * kappa * 2.0 ** (1 - pair.bias) / pair.largest
        small = math.erf(t / math.sqrt(2))
        density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        normal = 2 * t * density + math.erfc(t / math.sqrt(2))
        normal -= kappa**2 / 16 if narrow else 0.0
        alpha = 1 / (24 * 2 ** (2 * pair.fraction))
        beta = 2.0 ** (2 * (1 - pair.bias - pair.fraction)) / (12 * pair.largest**2)
        return -10 * math.log10(alpha * normal + beta * (rho * kappa) ** 2 * small)

    # integers are ahead of small crest factors; that of a block of 16 is at most 4
    low, high = 1.0, 3.5 if narrow else 20.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if integer(middle) > floating(middle) else (low, middle)
    return low if figure_of == "kappa" else integer(low)


# ------------------------------------------------------------------ quantisers of a distribution
Moments = Callable[[Floats], tuple[Floats, Floats, Floats]]


def _uniform(x: Floats) -> tuple[Floats, Floats, Floats]:
    """Moments 0, 1, 2 from 0 to x of the positive half."""
    x = np.minimum(x, 1.0)
    return x / 2, x**2 / 4, x**3 / 6


def _normal(x: Floats) -> tuple[Floats, Floats, Floats]:
    area = np.asarray(_erf(x / math.sqrt(2)), np.float64) / 2
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return area, 1 / math.sqrt(2 * math.pi) - density, area - x * density


def _laplace(x: Floats) -> tuple[Floats, Floats, Floats]:
    e = np.exp(-x)
    return (1 - e) / 2, (1 - (1 + x) * e) / 2, 1 - (1 + x + x * x / 2) * e


def _student_3(x: Floats) -> tuple[Floats, Floats, Floats]:
    c = 2 / (math.pi * math.sqrt(3))
    angle = np.arctan(x / math.sqrt(3))
    area = (x / math.sqrt(3) / (1 + x * x / 3) + angle) / math.pi
    return area, c * 1.5 * (1 - 1 / (1 + x * x / 3)), 3 * (c * math.sqrt(3) * angle - area)


def _student_8(x: Floats) -> tuple[Floats, Floats, Floats]:
    s = x / np.sqrt(8 + x * x)
    whole = 2 * (1 - 1 + 3 / 5 - 1 / 7)
    area = (s - s**3 + 3 * s**5 / 5 - s**7 / 7) / whole
    first = 8 / 7 * (1 - (1 + x * x / 8) ** -3.5) / (whole * math.sqrt(8))
    return area, first, 8 * (s**3 / 3 - 2 * s**5 / 5 + s**7 / 7) / whole


class _Source(NamedTuple):
    """A distribution: its moments, where it is cut off, and whether the tail sits there."""

    moments: Moments
    end: float
    tail: bool = False


_SOURCES = {
    "uniform": _Source(_uniform, 1.0), "normal": _Source(_normal, 10.0),
    "laplace": _Source(_laplace, 100.0), "t8": _Source(_student_8, 100.0),
    "t3": _Source(_student_3, 100.0), "t3_pointmass": _Source(_student_3, 100.0, tail=True),
}  # fmt: skip


def _levels(name: str) -> Floats:
    """Return the magnitudes of a format with every code finite, 1 the largest."""
    if name.startswith("int"):
        most = (1 << (int(name[3:]) - 1)) - 1
        return np.arange(most + 1) / most
    exponents, fraction = int(name[1]), int(name[3])
    codes = np.arange(1 << (exponents + fraction))
    e, m = codes >> fraction, codes & ((1 << fraction) - 1)
    values = np.ldexp((m + (e > 0) * (1 << fraction)).astype(np.float64), np.maximum(e, 1))
    return np.asarray(values / values[-1])


def _error(source: _Source, levels: Floats) -> tuple[float, float]:
    """Return (mean squared error, mean square) of numbers that take the nearest level."""
    ends = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [source.end]])
    ends = np.minimum(ends, source.end)
    zero, one, two = (np.diff(m) for m in source.moments(ends))
    error = 2 * float(np.sum(two - 2 * levels * one + levels**2 * zero))
    whole, _, square = (2 * float(m[0]) for m in source.moments(np.array([source.end])))
    if source.tail:
        rest = 1 - whole
        return error + rest * (source.end - levels[-1]) ** 2, 2 * square / 2 + rest * source.end**2
    return error / whole, square / whole


@cache
def _best(source_name: str, format_name: str) -> tuple[float, float]:
    """Return (mean squared error, mean square) at the best largest level."""
    source, levels = _SOURCES[source_name], _levels(format_name)
    low, high = 0.05, 400.0
    best = (math.inf, 1.0)
    for _ in range(4):  # ever finer grids around the best of the one before
        grid = np.geomspace(low, high, 1500)
        found = [_error(source, levels * c) for c in grid]
        i = min(range(len(grid)), key=lambda k: found[k][0])
        best = min(best, found[i])
        low, high = grid[max(i - 2, 0)], grid[min(i + 2, len(grid) - 1)]
    return best


def _optimum(words: list[str]) -> float:
    if words[0] == "mse_convention":
        return -10 * math.log10(_best(words[1], words[2])[0])
    error, square = _best(words[0], words[1])
    return 10 * math.log10(square / error)


@cache
def _midrise(bits: int) -> tuple[float, float]:
    """Return the step and decibels of the best uniform quantiser of N(0, 1) without a zero."""
    odd = np.arange(1 << (bits - 1)) + 0.5
    low, high = 1e-3, 2.0
    best = (math.inf, 0.0)
    for _ in range(5):
        grid = np.geomspace(low, high, 400)
        found = []
        for step in grid:
            ends = np.concatenate([[0.0], (odd[1:] - 0.5) * step, [40.0]])
            zero, one, two = (np.diff(m) for m in _normal(ends))
            levels = odd * step
            found.append(2 * float(np.sum(two - 2 * levels * one + levels**2 * zero)))
        i = int(np.argmin(found))
        best = min(best, (found[i], float(grid[i])))
        low, high = grid[max(i - 2, 0)], grid[min(i + 2, len(grid) - 1)]
    return best[1], -10 * math.log10(best[0])


# ------------------------------------------------------------------------ widths of accumulators
def _accumulator_bits(n: int) -> int:
    """Return the least fraction bits under which a sum of n keeps its variance (Sakr, 2019)."""
    i = np.arange(1, n)
    bits = 1
    while True:
        # twice the probability that a sum of so many terms swamps the next one
        swamped = np.asarray(_erfc(2.0**bits / np.sqrt(i) / math.sqrt(2)), np.float64)
        q = swamped[1:] * (1 - swamped[:-1])
        last = 1 - math.erfc(2.0**bits / math.sqrt(n) / math.sqrt(2))
        kept = (np.sum(i[1:] * q) + n * last) / ((np.sum(q) + last) * n)
        if n * (1 - kept) < math.log(50):
            return bits
        bits += 1
