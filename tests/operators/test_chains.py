"""Chains of rounded operations against the same chain written in Python's fractions."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import oracle
import pytest

import numsim as ns
from numsim import operators


class R:
    """Rounding of fractions to a format, by the oracle."""

    def __init__(self, fmt: str, rounding: str = "rne") -> None:
        self.fmt, self.rounding = fmt, rounding

    def __call__(self, x: Fraction) -> Fraction:
        code = oracle.encode(self.fmt, Fraction(x), self.rounding, "saturate")
        return Fraction(float(ns.decode(np.asarray([code]), self.fmt)[0]))

    def exp(self, x: Fraction) -> Fraction:
        with localcontext(prec=120):
            return self(Fraction((Decimal(x.numerator) / Decimal(x.denominator)).exp()))

    def root(self, x: Fraction, *, inverse: bool) -> Fraction:
        with localcontext(prec=120):
            y = (Decimal(x.numerator) / Decimal(x.denominator)).sqrt()
            return self(Fraction(1 / y if inverse else y))


def added(terms: list[Fraction], order: str, r: R) -> Fraction:
    if order == "exact":
        return r(sum(terms, Fraction(0)))
    if order == "sequential":
        total = terms[0]
        for t in terms[1:]:
            total = r(total + t)
        return total
    if order == "pairwise":
        while len(terms) > 1:
            odd = terms[-1:] if len(terms) % 2 else []
            terms = [r(a + b) for a, b in zip(terms[::2], terms[1::2], strict=False)] + odd
        return terms[0]
    width = int(order.partition(":")[2])
    lanes = [Fraction(0)] * width
    for j in range(width):
        mine = terms[j::width]
        lanes[j] = mine[0] if mine else Fraction(0)
        for t in mine[1:]:
            lanes[j] = r(lanes[j] + t)
    while width > 1:
        width //= 2
        lanes = [r(lanes[j] + lanes[j + width]) for j in range(width)]
    return lanes[0]


ORDERS = ("sequential", "pairwise", "lanes:4", "exact")


def rows(fmt: str, seed: int, shape=(3, 11)) -> np.ndarray:
    return ns.cast(np.random.default_rng(seed).normal(size=shape) * 3, fmt)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rounding", ["rne", "rtz"])
@pytest.mark.parametrize("divide", ["divide", "reciprocal"])
@pytest.mark.parametrize("fmt", ["bfloat16", "float16", "float32"])
def test_softmax(order, rounding, divide, fmt):
    x, r = rows(fmt, 1), R(fmt, rounding)
    got = operators.softmax(x, format=fmt, rounding=rounding, sum=order, divide=divide)
    for row, found in zip(x.tolist(), got.tolist(), strict=True):
        e = [r.exp(r(Fraction(v) - Fraction(max(row)))) for v in row]
        s = added(e, order, r)
        want = [r(v / s) if divide == "divide" else r(v * r(1 / s)) for v in e]
        assert found == [float(v) for v in want]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("inv", ["rsqrt", "sqrt_recip"])
@pytest.mark.parametrize("mean", ["divide", "reciprocal"])
def test_layernorm_and_rmsnorm(order, place, inv, mean):
    fmt, n = "bfloat16", 11
    x, w, b = rows(fmt, 2), rows(fmt, 3)[0], rows(fmt, 4)[0]
    r = R(fmt)
    eps = r(Fraction("1e-3"))
    settings = {"sum": order, "eps": 1e-3, "eps_place": place, "inv": inv, "mean": mean}

    def average(terms):
        s = added(terms, order, r)
        return r(s / n) if mean == "divide" else r(s * r(Fraction(1, n)))

    def inverse(v):
        if place == "outside":
            return r(1 / r(r.root(v, inverse=False) + eps))
        t = r(v + eps)
        return r.root(t, inverse=True) if inv == "rsqrt" else r(1 / r.root(t, inverse=False))

    normed = operators.layernorm(x, w, b, format=fmt, **settings)
    rms = operators.rmsnorm(x, w, format=fmt, unit_offset=True, weight_format="float16", **settings)
    half = R("float16")
    for i, row in enumerate(x.tolist()):
        values = [Fraction(v) for v in row]
        mu = average(values)
        d = [r(v - mu) for v in values]
        by = inverse(average([r(v * v) for v in d]))
        want = [
            r(r(r(v * by) * Fraction(float(s))) + Fraction(float(t)))
            for v, s, t in zip(d, w, b, strict=True)
        ]
        assert normed[i].tolist() == [float(v) for v in want]
        by = inverse(average([r(v * v) for v in values]))
        want = [
            half(half(r(v * by)) * r(1 + Fraction(float(s))))
            for v, s in zip(values, w, strict=True)
        ]
        assert rms[i].tolist() == [float(v) for v in want]


@pytest.mark.parametrize("fma", [False, True])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotary(fma, layout):
    fmt, r = "float16", R("float16", "rtz")
    x = rows(fmt, 5, (2, 6))
    cos, sin = operators.rotary_tables([3, 9], 6, theta=100.0, format=fmt)
    got = operators.rotary(x, cos, sin, format=fmt, rounding="rtz", layout=layout, fma=fma)
    for t in range(2):
        for i in range(3):
            at = (i, i + 3) if layout == "half" else (2 * i, 2 * i + 1)
            a, b = (Fraction(float(x[t, k])) for k in at)
            c, s = Fraction(float(cos[t, i])), Fraction(float(sin[t, i]))
            keep = (lambda v: v) if fma else r
            assert got[t, at[0]] == float(r(keep(a * c) - r(b * s)))
            assert got[t, at[1]] == float(r(keep(b * c) + r(a * s)))


def test_tables_of_an_exact_angle_differ_from_those_of_a_float32_one():
    exact = operators.rotary_tables([100_000], 64, theta=10000.0, format="float32", angle="exact")
    single = operators.rotary_tables([100_000], 64, theta=10000.0, format="float32")
    angle = np.float32(100_000) * np.float32(10000.0 ** (-np.arange(32) / 32))
    np.testing.assert_allclose(single[0][0], np.cos(angle.astype(np.float64)), atol=1e-7)
    assert 1e-5 < np.abs(exact[0] - single[0]).max() < 1e-2


def test_the_published_share_of_wrong_bfloat16_values():
    """flash-attention issue 2263: about 1 % of exp2 by the polynomial of degree 3."""
    x = -np.random.default_rng(0).uniform(0, 8, 400_000).astype(np.float32)
    wrong = {}
    for degree in (2, 3, 4):
        got = ns.encode(operators.exp2_poly(x, degree=degree), "bfloat16")
        right = operators.elementwise("exp2", x, format="bfloat16")
        wrong[degree] = 100 * np.mean(got != ns.encode(right, "bfloat16"))
    assert wrong[2] == pytest.approx(24, abs=1)
    assert wrong[3] == pytest.approx(1.02, abs=0.06)
    assert wrong[4] == pytest.approx(0.03, abs=0.02)


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
def test_every_16_bit_input_of_a_polynomial_stays_within_its_bound(degree):
    codes = np.arange(1 << 16, dtype=np.uint16)
    x = ns.decode(codes, "bfloat16")
    x = x[(x >= -126) & (x <= 127)]
    bound = next(v for v in operators.list_variants() if v.name == f"exp2_poly:{degree}").error
    got = operators.exp2_poly(x, degree=degree).astype(np.float64)
    error = np.abs(got / np.exp2(x.astype(np.float64)) - 1).max()
    assert error <= float(bound.partition(" ")[0]) * 1.01 + 2.0**-23


@pytest.mark.parametrize("name", [v.name for v in operators.list_variants() if not v.bit_exact])
def test_a_drawn_error_stays_within_the_documented_bound(name):
    from numsim.operators.variants import _BOUNDS  # the numbers behind the words

    bound = _BOUNDS[name]
    fmt = ns.get_format(bound.format)
    codes = np.arange(0, 1 << fmt.bits, 1 if fmt.bits == 16 else 9973).astype(fmt.code_dtype)
    x = np.asarray(ns.decode(codes, fmt), np.float32)
    made_for = next(v for v in operators.list_variants() if v.name == name)
    x = x[(x >= made_for.low) & (x <= made_for.high)]  # all of them, of a format of 16 bits
    got = operators.approximate(name, x, seed=3).astype(np.float64)
    x = np.where((np.abs(x) < fmt.min_normal) & bound.flushes, np.copysign(0, x), x)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        right = {"exp2": np.exp2, "reciprocal": lambda v: 1 / v, "sqrt": np.sqrt,
                 "rsqrt": lambda v: 1 / np.sqrt(v), "sin": np.sin, "cos": np.cos,
                 "tanh": np.tanh}[bound.function](wide)  # fmt: skip
        ulp = np.ldexp(1.0, np.frexp(right)[1] - fmt.precision)
        allowed = np.maximum(np.abs(right) * bound.relative, bound.absolute) + bound.ulps * ulp
        normal = np.isfinite(right) & (np.abs(right) >= fmt.min_normal) & (np.abs(right) < fmt.max)
    assert (np.abs(got[normal] - right[normal]) <= (allowed * (1 + 1e-6))[normal]).all()
    assert (operators.approximate(name, x, seed=4) != got)[normal].mean() > 0.05
    np.testing.assert_array_equal(operators.approximate(name, x, seed=3), got)
