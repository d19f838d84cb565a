"""Accumulator widths and the laws of published.md 3.4."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import oracle
import pytest
from oracle import philox

import numsim as ns


def codes(values, fmt):
    return ns.QTensor.from_codes(ns.encode(values, fmt), fmt)


# ----------------------------------------------------------------------------- published widths
@pytest.mark.parametrize(
    ("fmt", "k", "bits"),
    [("float8_e4m3fn", 1, 37), ("float8_e4m3fn", 4096, 49), ("float8_e5m2", 1, 65),
     ("float8_e5m2", 4096, 77), ("int8", 4608, 28), ("int8", 1, 16), ("int4", 1, 8)],
)  # fmt: skip
def test_published_widths(fmt, k, bits):
    found = ns.accumulator_bits(fmt, fmt, k=k)
    assert found.format_bound == bits
    assert found.product_bits == ns.accumulator_bits(fmt, fmt).format_bound
    assert found.weight_bound is None
    assert found.measured_peak is None
    assert found.guaranteed == bits


@pytest.mark.parametrize(
    ("bits", "symmetric", "longest"),
    [(32, True, 133144), (32, False, 131071), (16, True, 2), (16, False, 1)],
)
def test_longest_int8_dot_product(bits, symmetric, longest):
    found = ns.accumulator_bits("int8", "int8", symmetric=symmetric)
    assert found.longest_k(bits) == longest
    code = 127 if symmetric else -128
    unit = ns.get_target("ideal.int", acc_bits=bits, overflow="raise")
    for k in (longest, longest + 1):
        a = ns.QTensor.from_codes(np.full((1, k), code, np.int8), "int8")
        if k == longest:
            assert ns.matmul(a, a.T, target=unit)[0, 0] == k * code * code
        else:
            with pytest.raises(ns.NumsimError, match="overflows at row 0, column 0"):
                ns.matmul(a, a.T, target=unit)


def test_a2q_data_type_bound():
    """P >= a + log2(1 + 2**-a) + 1, a = log2 K + N + M - 1 - signed(x)."""
    for k in (1, 3, 64, 576, 4608, 65536):
        a = math.log(k, 2) + 8 + 8 - 1 - 1
        published = math.ceil(a + math.log(1 + 2**-a, 2) + 1 - 1e-12)
        assert ns.accumulator_bits("int8", "int8", k=k).format_bound == published


def test_a2q_weight_bound():
    """The l1 norm of integer weights is at most (2**(P-1) - 1) * 2**(signed(x) - N)."""
    rng = np.random.default_rng(0)
    w = rng.integers(-7, 8, (512, 6))
    weights = ns.QTensor.from_codes(w, "int8")
    norm = int(np.abs(w).sum(0).max())
    for x, factor in (("int8", 2**7), ("uint8", 2**8 - 1), ("int4", 2**3)):
        bits = ns.accumulator_bits(x, weights).weight_bound
        assert norm * factor <= 2 ** (bits - 1) - 1
        assert norm * factor > 2 ** (bits - 2) - 1
    found = ns.accumulator_bits("int8", weights)
    assert found.guaranteed == found.weight_bound < found.format_bound


@pytest.mark.parametrize("fmt", ["int8", "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16"])
def test_bounds_hold_for_data(fmt):
    rng = np.random.default_rng(1)
    a, b = codes(rng.normal(size=(4, 96)) * 9, fmt), codes(rng.normal(size=(96, 3)) * 9, fmt)
    found = ns.accumulator_bits(a, b)
    assert found.measured_peak <= found.weight_bound <= found.format_bound
    assert found.k == 96


def test_measured_peak_is_tight():
    a = ns.QTensor.from_codes([[100, 100, -100]], "int8")
    b = ns.QTensor.from_codes([[100], [100], [100]], "int8")
    found = ns.accumulator_bits(a, b)
    assert found.measured_peak == (20000).bit_length() + 1
    unit = ns.get_target("ideal.int", overflow="raise", acc_bits=found.measured_peak)
    assert ns.matmul(a, b, target=unit)[0, 0] == 10000
    with pytest.raises(ns.NumsimError, match="overflows"):
        ns.matmul(a, b, target=ns.get_target(unit, acc_bits=found.measured_peak - 1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ns.accumulator_bits("int8", "int8", k=0), "k is a positive integer; got 0"),
        (lambda: ns.accumulator_bits("float8_e8m0fnu", "int8"), "holds scales"),
        (lambda: ns.accumulator_bits("int88", "int8"), "unknown format"),
        (lambda: ns.accumulator_bits("int8", codes(np.ones((4, 1)), "int8"), k=5), "b: 4, k: 5"),
        (lambda: ns.accumulator_bits("int8", codes(np.ones(4), "int8")), r"got b \(4,\)"),
        (lambda: ns.accumulator_bits("int8", codes([[np.nan]], "bfloat16")), "weights are finite"),
        (lambda: ns.accumulator_bits("int8", "int8").longest_k(0), "positive integer; got 0"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ns.NumsimError, match=words):
        call()


# ------------------------------------------------------------------------------ laws of 3.4
def mean_relative_error(target, a, b, exact):
    return float(np.mean((ns.matmul(a, b, target=target) - exact) / exact))


def test_truncation_bias_halves_with_each_bit():
    rng = np.random.default_rng(0)
    a = codes(rng.random((64, 4096)), "float8_e4m3fn")
    b = codes(rng.random((4096, 64)), "float8_e4m3fn")
    exact = a.values().astype(float) @ b.values().astype(float)
    bias = [
        mean_relative_error(
            ns.get_target("nvidia.hopper.wgmma", align_bits=bits, keep_bits=bits), a, b, exact
        )
        for bits in (13, 14, 15)
    ]
    assert bias[0] == pytest.approx(-0.075, abs=0.01)  # published.md 3.4
    for wide, narrow in itertools.pairwise(bias):
        assert 1.8 < wide / narrow < 2.3


def test_promotion_gains_a_hundredfold():
    rng = np.random.default_rng(0)
    a = codes(rng.random((64, 4096)), "float8_e4m3fn")
    b = codes(rng.random((4096, 64)), "float8_e4m3fn")
    exact = a.values().astype(float) @ b.values().astype(float)

    def rms(target):
        return float(np.sqrt(np.mean(((ns.matmul(a, b, target=target) - exact) / exact) ** 2)))

    gain = rms("nvidia.hopper.wgmma") / rms(ns.get_target("nvidia.hopper.wgmma", promote_every=128))
    assert 30 < gain < 300


@pytest.mark.parametrize(
    ("fmt", "stagnates_at", "last_change"),
    [("float16", 7.0859375, 512), ("bfloat16", 5.0625, 64), ("float_e4m3", 3.0, 8),
     ("float_e5m2", 2.0, 4)],
)  # fmt: skip
def test_harmonic_series_stagnates(fmt, stagnates_at, last_change):
    """E4M3 and E5M2 with IEEE infinities: an accumulator of `ideal.mac` overflows to Inf."""
    terms = codes(1 / np.arange(1, 2001), fmt)
    ones = codes(np.ones(2000), fmt)
    unit = ns.get_target("ideal.mac", acc_format=fmt)

    def total(n):
        a = ns.QTensor.from_codes(ones.codes[None, :n], fmt)
        b = ns.QTensor.from_codes(terms.codes[:n, None], fmt)
        return ns.matmul(a, b, target=unit, stats=True)

    d, found = total(2000)
    assert d[0, 0] == stagnates_at
    assert total(last_change)[0][0, 0] == stagnates_at
    assert total(last_change - 1)[0][0, 0] < stagnates_at
    nonzero = int((terms.values()[last_change:] != 0).sum())
    assert found.swamped >= nonzero > 0


def test_stochastic_rounding_keeps_growing():
    """Few-bit stochastic rounding of every partial sum does not stagnate (published.md 3.4).

    Every sum is the one that the documented stream gives. A rounding errs by less than one ulp,
    2**-5 at most here, with a variance of at most a quarter of its square; so the mean of 64 sums
    of 400 steps lies within five standard deviations, 5 * 2**-5 * sqrt(400 / 4 / 64) = 0.2.
    """
    total = np.zeros(64, np.float32)
    terms = ns.cast(np.float32(1 / np.arange(1, 401)), "bfloat16")
    for i, term in enumerate(terms, 1):
        exact = total.astype(np.float64) + term  # of 24 bits: float32 holds it
        total = ns.cast(total + term, "bfloat16", rounding="sr", seed=3, offset=64 * i)
        for lane in range(0, 64, 21):
            number = 64 * i + lane
            words = philox(number // 2, 0, 3)
            integer = words[number % 2] << 32 | words[1 - number % 2]
            code = oracle.encode(
                "bfloat16",
                Fraction(exact[lane]),
                "sr",
                bits=64,
                integer=integer,
                variant="truncate",
            )
            assert Fraction(float(total[lane])) == oracle.decode("bfloat16", code)
    assert abs(total.mean() - terms.astype(np.float64).sum()) < 5 * 2**-5 * np.sqrt(400 / 4 / 64)
    nearest = np.float32(0)
    for term in terms:
        nearest = ns.cast(nearest + term, "bfloat16")
    assert terms.astype(np.float64).sum() - nearest > 1  # which stagnates
