"""Every function against decimals of 400 digits, rounded in Python's fractions."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache

import numpy as np
import oracle
import pytest

import numsim as ns
from numsim.operators import elementwise
from numsim.operators.rounded import FUNCTIONS

DIGITS = 400


@cache
def pi() -> Decimal:
    """Machin's formula."""

    def arctan(inverse: int) -> Decimal:
        total = term = Decimal(1) / inverse
        n = 1
        while abs(term) > Decimal(10) ** -(DIGITS + 60):
            term /= -inverse * inverse
            n += 2
            total += term / n
        return total

    return 16 * arctan(5) - 4 * arctan(239)


def sine(x: Decimal, *, cosine: bool) -> Decimal:
    x %= 2 * pi()
    total = term = Decimal(1) if cosine else x
    n = 1 if cosine else 2
    while abs(term) > Decimal(10) ** -(DIGITS + 20):
        term *= -x * x / (n * (n + 1))
        n += 2
        total += term
    return total


def erf(z: Decimal) -> Decimal:
    total = term = z
    n = 1
    while abs(term) > abs(total) * Decimal(10) ** -(DIGITS - 10):
        term *= 2 * z * z / (2 * n + 1)
        total += term
        n += 1
    return 2 / pi().sqrt() * (-z * z).exp() * total


def tanh(x: Decimal) -> Decimal:
    e = (2 * x).exp()
    return (e - 1) / (e + 1)


def exact(name: str, x: Decimal) -> Decimal:
    def sigmoid() -> Decimal:
        return 1 / (1 + (-x).exp())

    cubic = (2 / pi()).sqrt() * (x + Decimal("0.044715") * x**3)
    return {
        "exp": lambda: x.exp(), "exp2": lambda: Decimal(2) ** x, "log": lambda: x.ln(),
        "reciprocal": lambda: 1 / x, "sqrt": lambda: x.sqrt(), "rsqrt": lambda: 1 / x.sqrt(),
        "tanh": lambda: tanh(x), "erf": lambda: erf(x),
        "gelu": lambda: x / 2 * (1 + erf(x / Decimal(2).sqrt())),
        "gelu_tanh": lambda: x / 2 * (1 + tanh(cubic)), "silu": lambda: x * sigmoid(),
        "sigmoid": sigmoid, "sin": lambda: sine(x, cosine=False),
        "cos": lambda: sine(x, cosine=True),
    }[name]()  # fmt: skip


def inputs(name: str, fmt: str, rng: np.random.Generator) -> np.ndarray:
    scales = (1e-30, 1e-12, 1e-4, 0.3, 1, 3, 6) + ((25, 1e5, 3e8) if name in ("sin", "cos") else ())
    x = np.concatenate([rng.normal(size=4) * s for s in scales])
    x = np.concatenate([x, [0.5, 1, -1, 2, 4, 0.25, 1.5, -3]])
    if name in ("log", "sqrt", "rsqrt"):
        x = np.abs(x)
    values = np.asarray(ns.cast(x, fmt, overflow="saturate"), np.float64)
    return values[values != 0]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("rounding", ["rne", "rtz", "rup", "rdn"])
@pytest.mark.parametrize("fmt", ["float32", "bfloat16", "float16"])
def test_a_function_is_the_exact_one_rounded_once(name, rounding, fmt):
    x = inputs(name, fmt, np.random.default_rng(7))
    got = elementwise(name, x, format=fmt, rounding=rounding)
    with localcontext(prec=DIGITS + 40, Emin=-99999, Emax=99999):
        for value, found in zip(x.tolist(), got, strict=True):
            true = exact(name, Decimal(value))
            code = oracle.encode(fmt, Fraction(true), rounding, "special")
            want = ns.decode(np.asarray([code]), fmt)[0]
            assert found == want or (found == 0 == want), (name, value, found, want)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_ends(name):
    x = np.float32([np.inf, -np.inf, np.nan, 0.0])
    with np.errstate(all="ignore"):
        got = elementwise(name, x, format="float32").tolist()
    plain = {
        "exp": [np.inf, 0, 1], "exp2": [np.inf, 0, 1], "log": [np.inf, np.nan, -np.inf],
        "reciprocal": [0, 0, np.inf], "sqrt": [np.inf, np.nan, 0], "tanh": [1, -1, 0],
        "rsqrt": [0, np.nan, np.inf], "erf": [1, -1, 0], "gelu": [np.inf, 0, 0],
        "gelu_tanh": [np.inf, 0, 0], "silu": [np.inf, 0, 0], "sigmoid": [1, 0, 0.5],
        "sin": [np.nan, np.nan, 0], "cos": [np.nan, np.nan, 1],
    }[name]  # fmt: skip
    np.testing.assert_array_equal([got[0], got[1], got[3]], plain)
    assert np.isnan(got[2])


@pytest.mark.parametrize(
    ("name", "x", "rounding", "want"),
    [
        ("exp", -1e-30, "rtz", 1 - 2.0**-8), ("exp", 1e-30, "rup", 1 + 2.0**-7),
        ("tanh", 40.0, "rtz", 1 - 2.0**-8), ("cos", 1e-20, "rtz", 1 - 2.0**-8),
        ("exp", 1e3, "rtz", 3.3895313892515355e38), ("exp2", -200.0, "rup", 2.0**-133),
    ],
)  # fmt: skip
def test_what_lies_just_beside_a_number(name, x, rounding, want):
    """float64 followed by a rounding toward zero is wrong here."""
    x = ns.cast(np.float32([x]), "bfloat16")
    assert elementwise(name, x, format="bfloat16", rounding=rounding)[0] == want


def test_refusals():
    with pytest.raises(ns.NumsimError, match=r"operator.*sinh"):
        elementwise("sinh", [1.0], format="bfloat16")
    with pytest.raises(ns.NumsimError, match="at most 24 bits of precision; got int8"):
        elementwise("exp", [1.0], format="int8")
    with pytest.raises(ns.NumsimError, match=r"float32 holds; got 0\.1.*flat index 1"):
        elementwise("exp", [0.5, 0.1], format="bfloat16")
