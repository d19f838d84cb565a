"""Elementary functions to about 100 bits: numbers are the sum of two float64, high and low.

What is computed: exp(x) - 1, ln, sin and cos, erf and erfc as pairs (high, low), by argument
reduction and Taylor series (erfc far out by its continued fraction), with operations that keep what
float64 rounds away. `correct` rounds the pairs once. Proof: ``tests/operators/test_elementwise.py``
compares the rounded results with tables made by interval arithmetic, all 16-bit inputs of them.

Source: Dekker, Numerische Mathematik 18, 1971 (pairs); Payne and Hanek, SIGNUM Newsletter 18, 1983
(reduction of large angles).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.elementwise.logarithm import log64
from numsim.kernels.jit import inline

Pair = tuple[float, float]

_SPLIT = 134217729.0  # 2**27 + 1
_INVERSE_LN2 = float.fromhex("0x1.71547652b82fep+0")
_LN2_1 = float.fromhex("0x1.62e42fee00000p-1")  # 32 bits: exact times any exponent
_LN2_2 = float.fromhex("0x1.a39ef35793c76p-33")
_LN2_3 = float.fromhex("0x1.cc01f97b57a08p-87")
LN2 = (float.fromhex("0x1.62e42fefa39efp-1"), float.fromhex("0x1.abc9e3b39803fp-56"))
TWO_OVER_SQRT_PI = (
    float.fromhex("0x1.20dd750429b6dp+0"),
    float.fromhex("0x1.1ae3a914fed80p-56"),
)
SQRT_PI = (float.fromhex("0x1.c5bf891b4ef6bp+0"), float.fromhex("-0x1.618f13eb7ca89p-54"))
_HALF_PI = (float.fromhex("0x1.921fb54442d18p+0"), float.fromhex("0x1.1a62633145c07p-54"))
_TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
_HALF_PI_1 = float.fromhex("0x1.921fb54400000p+0")  # 32 bits each: exact times a turn below 2**20
_HALF_PI_2 = float.fromhex("0x1.0b4611a600000p-34")
_HALF_PI_3 = float.fromhex("0x1.3198a2e037073p-69")
_HALF_PI_4 = float.fromhex("0x1.129024e088a68p-123")
SMALL_ANGLE = 2.0**20  # radians up to which turns are subtracted from an angle
SERIES_ERF = 3.0  # from here on erfc is a continued fraction
_FRACTION_TERMS = 120

# 2/pi times 2**(e - 3) modulo 4, e of 0 to 127: limbs of 32 bits, the first two bits whole turns.
_BITS = int("a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e0", 16)
_LIMBS = 5
_TURNS = np.array(
    [
        [
            ((_BITS << e) >> (320 - 158 + 3) & ((1 << 160) - 1)) >> (32 * (_LIMBS - 1 - i))
            & 0xFFFFFFFF
            for i in range(_LIMBS)
        ]
        for e in range(128)
    ],
    np.uint64,
)


@inline
def two_sum(a: float, b: float) -> Pair:
    """Return a + b, exactly."""
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


@inline
def two_product(a: float, b: float) -> Pair:
    """Return a * b, exactly, below 2**990 and where nothing underflows."""
    p = a * b
    t = _SPLIT * a
    a1 = t - (t - a)
    a2 = a - a1
    t = _SPLIT * b
    b1 = t - (t - b)
    b2 = b - b1
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


@inline
def add(a: Pair, b: Pair) -> Pair:
    """Return a + b."""
    s, e = two_sum(a[0], b[0])
    t, f = two_sum(a[1], b[1])
    s, e = two_sum(s, e + t)
    return two_sum(s, e + f)


@inline
def times(a: Pair, b: Pair) -> Pair:
    """Return a * b."""
    p, e = two_product(a[0], b[0])
    return two_sum(p, e + (a[0] * b[1] + a[1] * b[0]))


@inline
def over(a: Pair, b: Pair) -> Pair:
    """Return a / b."""
    q = a[0] / b[0]
    p = times((q, 0.0), b)
    r = add(a, (-p[0], -p[1]))
    q2 = r[0] / b[0]
    p = times((q2, 0.0), b)
    r = add(r, (-p[0], -p[1]))
    s, e = two_sum(q, q2)
    return two_sum(s, e + r[0] / b[0])


@inline
def exp_parts(x: Pair) -> tuple[Any, Pair]:
    """K and m with e**x = 2**k * (1 + m), m small where k is 0; |x| below 700."""
    k = np.floor(x[0] * _INVERSE_LN2 + 0.5)
    p2 = two_product(k, _LN2_2)
    r = add(two_sum(x[0], -k * _LN2_1), (x[1], 0.0))
    r = add(r, (-p2[0], -p2[1]))
    r = add(r, (-k * _LN2_3, 0.0))
    r = (r[0] * 0.00390625, r[1] * 0.00390625)  # 2**-8
    p = (1.0, 0.0)
    for n in range(12, 1, -1):
        p = add((1.0, 0.0), times(over(r, (np.float64(n), 0.0)), p))
    m = times(r, p)
    for _ in range(8):  # (1 + m)**2 - 1
        m = times(m, add((2.0, 0.0), m))
    return np.int64(k), m


@inline
def scaled(x: Pair, k: int) -> Pair:
    """X * 2**k, for k of -1021 to 1023."""
    power = np.int64((k + 1023) << 52).view(np.float64)
    return x[0] * power, x[1] * power


@inline
def exp(x: Pair) -> Pair:
    """e**x for |x| below 700."""
    k, m = exp_parts(x)
    return scaled(add((1.0, 0.0), m), k)


@inline
def expm1(x: Pair) -> Pair:
    """e**x - 1 for |x| below 700."""
    k, m = exp_parts(x)
    if k == 0:
        return m
    return add(scaled(add((1.0, 0.0), m), k), (-1.0, 0.0))


@inline
def log(x: float) -> Pair:
    """ln(x) of a positive normal number."""
    y = log64(x)
    rest = expm1((-y, 0.0))  # x e**-y - 1 is x - 1 and x (e**-y - 1)
    e = add(times((x, 0.0), rest), two_sum(x, -1.0))
    half = (0.5 * e[0], 0.5 * e[1])
    lost = times(e, add((1.0, 0.0), (-half[0], -half[1])))
    return add((y, 0.0), lost)


@inline
def _quarter_of_large(x: float) -> tuple[Any, Pair]:
    """`quarter` for a number of at most 24 bits, of 2**20 or more."""
    bits = np.float64(x).view(np.int64)
    m = np.uint64((bits & 0xFFFFFFFFFFFFF | 1 << 52) >> 29)
    e = (bits >> 52) - 1023 - 23  # x = m * 2**e, e of -3 to 104
    limbs = np.empty(_LIMBS, np.uint64)
    carry = np.uint64(0)
    for i in range(_LIMBS - 1, -1, -1):
        t = _TURNS[e + 3, i] * m + carry
        limbs[i] = t & np.uint64(0xFFFFFFFF)
        carry = t >> np.uint64(32)
    turns = np.int64(limbs[0] >> np.uint64(30))
    limbs[0] &= np.uint64(0x3FFFFFFF)
    f = (0.0, 0.0)
    place = 2.0**-30
    for i in range(_LIMBS):
        f = add(f, (np.float64(limbs[i]) * place, 0.0))
        place *= 2.0**-32
    if f[0] >= 0.5:
        turns += 1
        f = add(f, (-1.0, 0.0))
    return turns & 3, times(f, _HALF_PI)


@inline
def quarter(x: Pair) -> tuple[Any, Pair]:
    """Quarter turns, modulo 4, and the angle that is left: at most pi/4, for x of 0 or more.

    From 2**20 on x is one number of at most 24 bits, and below 2**128.
    """
    if x[0] >= SMALL_ANGLE:
        return _quarter_of_large(x[0])
    k = np.floor(x[0] * _TWO_OVER_PI + 0.5)
    p = two_product(k, _HALF_PI_3)
    r = two_sum(x[0], -k * _HALF_PI_1)
    r = add(r, (-k * _HALF_PI_2, x[1]))
    r = add(r, (-p[0], -p[1] - k * _HALF_PI_4))
    return np.int64(k) & 3, r


@inline
def _series(square: Pair, first: int) -> Pair:
    """1 - square / (first (first + 1)) + ..., of cos (first is 1) or sin over its angle (2)."""
    p = (1.0, 0.0)
    for n in range(26 + first, first - 1, -2):
        q = over(square, (np.float64(n) * np.float64(n + 1), 0.0))
        t = times(q, p)
        p = add((1.0, 0.0), (-t[0], -t[1]))
    return p


@inline
def sine(turns: int, r: Pair) -> Pair:
    """Sin of `turns` quarter turns and an angle r of at most pi/4; one turn more gives cos."""
    square = times(r, r)
    y = _series(square, 1) if turns & 1 else times(r, _series(square, 2))
    return (-y[0], -y[1]) if turns & 2 else y


@inline
def erf(z: Pair, square: Pair) -> Pair:
    """erf(z) for z of 0 to 3, with z squared: a series of positive terms."""
    term = z
    total = z
    double = (2.0 * square[0], 2.0 * square[1])
    n = 1.0
    while term[0] > total[0] * 2.0**-110:
        term = times(term, over(double, (2.0 * n + 1.0, 0.0)))
        total = add(total, term)
        n += 1.0
    return times(times(TWO_OVER_SQRT_PI, exp((-square[0], -square[1]))), total)


@inline
def erfc(z: Pair, square: Pair) -> Pair:
    """1 - erf(z) for z of 0 to 24, with z squared."""
    if z[0] < SERIES_ERF:
        e = erf(z, square)
        return add((1.0, 0.0), (-e[0], -e[1]))
    t = z
    for n in range(_FRACTION_TERMS, 0, -1):
        t = add(z, over((0.5 * np.float64(n), 0.0), t))
    return over(exp((-square[0], -square[1])), times(SQRT_PI, t))
