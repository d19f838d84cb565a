"""Formats of the user's own, far beyond the named ones, against the oracle."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import oracle
import pytest

import numsim as ns

ALL = (1 << 64) - 1  # the largest 64-bit draw
WIDE = [1, 3, 1 << 53, (1 << 53) + 1, (1 << 59) + 100, 1 << 63, (1 << 63) + 1, ALL]


@pytest.fixture
def known(monkeypatch):
    """Make a format known to the oracle by its name."""

    def add(f, witness):
        monkeypatch.setitem(oracle.NAMED, f.name, witness)
        oracle.spec.cache_clear()
        oracle.sorted_table.cache_clear()
        return f

    return add


def stochastic(f, values, draws, bits=None, variant="truncate"):
    """Compare every value with every draw."""
    x = np.repeat(values, len(draws))
    random = np.tile(np.array(draws, np.uint64), len(values))
    got = ns.encode(x, f, rounding="sr", random_bits=bits, sr=variant, random=random)
    width = 64 if bits is None else bits
    for v, r, code in zip(x.tolist(), random.tolist(), got.tolist(), strict=True):
        how = {"bits": width, "integer": r, "variant": variant}
        assert code == oracle.encode(f.name, Fraction(v), **how), (v, r)


@pytest.mark.parametrize("lowest", [124, 125, 126, 127, 128, 200, 900])
def test_integers_far_below_every_value_round_up_by_their_true_share(known, lowest):
    """A 64-bit integer below 2**-64 of a step carries under no 64-bit draw."""
    f = ns.Format("far", "float", 6, 3, 1 - lowest, signed=False)
    known(f, oracle.Float("far", 6, 3, 1 - lowest, top=f.max_code, signed=False))
    values = np.array(WIDE, np.uint64)
    stochastic(f, values, [0, 1, ALL >> 1, ALL - 1, ALL])
    for variant in ("truncate", "half_offset", "rne_first"):
        stochastic(f, values, [0, 1, (1 << 32) - 1], 32, variant)


@pytest.mark.parametrize("step", [63, 64, 65, 127, 128, 129, 500])
def test_integers_below_a_fixed_point_of_huge_steps(known, step):
    class Multiples(oracle.Fixed):
        def magnitude(self, n):
            return Fraction(n) * Fraction(2) ** step

    f = ns.Format("multiples", "integer", 4, 3, -step)
    known(f, Multiples("multiples", 4, -step, True))
    stochastic(f, np.array(WIDE, np.uint64), [0, 1, ALL >> 1, ALL - 1, ALL])
    stochastic(f, -np.array(WIDE[:5], np.int64), [0, 1, ALL >> 1, ALL - 1, ALL])


def test_stochastic_rounding_between_neighbours_farther_apart_than_float64_reaches(known):
    values = (-1.7e308, 1.7e308, 1.75e308, 1.79e308)
    f = ns.Format("apart", "table", 2, 3, 0, table=values)
    known(f, oracle.Table("apart", 2, tuple(map(Fraction, values))))
    x = np.array([1e308, -1e308, 1.0, -1.0, 0.0, 1.6e308, 1.72e308, 1.78e308, 5e-324])
    stochastic(f, x, [0, 1, ALL // 3, 1 << 63, ALL - 1, ALL])
    stochastic(f, x, [0, 1, 100, 128, 255], 8, "rne_first")


@pytest.mark.parametrize("rounding", oracle.ROUNDINGS)
@pytest.mark.parametrize(
    "values",
    [
        (0.0, 1.0, 1000.5, 2.0**60),
        (0.0, 2.0**53, 2.0**53 + 4, 2.0**63 + 2**11),
        (-(2.0**62), -(2.0**53) - 2, 7.0, 2.0**64),
    ],
)
def test_integers_beyond_float64_take_the_right_value_of_a_table(known, values, rounding):
    f = ns.Format("wide", "table", 2, 3, 0, table=values)
    known(f, oracle.Table("wide", 2, tuple(map(Fraction, values))))
    exact = [int(v) for v in values]
    middles = [(a + b) // 2 for a, b in pairwise(exact)]
    near = [n + d for n in (*exact, *middles, *WIDE) for d in (-3, -1, 0, 1, 2, 3)]
    for dtype in (np.int64, np.uint64):
        limits = np.iinfo(dtype)
        ints = [n for n in (*near, *(-n for n in near)) if limits.min <= n <= limits.max]
        got = ns.encode(np.array(ints, dtype), f, rounding=rounding).tolist()
        for n, code in zip(ints, got, strict=True):
            assert code == oracle.encode(f.name, Fraction(n), rounding), n


@pytest.mark.parametrize("rounding", ["rne", "rna"])
def test_the_middle_of_the_smallest_and_a_huge_value_is_exact(known, rounding):
    values = (-1.7e308, 5e-324, 1.5e308, 1.7976931348623157e308)
    f = ns.Format("ends", "table", 2, 3, 0, table=values)
    known(f, oracle.Table("ends", 2, tuple(map(Fraction, values))))
    x = [(a / 2 + b / 2) for a, b in pairwise(values)]
    x = np.array([*x, *np.nextafter(x, np.inf), *np.nextafter(x, -np.inf), 5e-324, 0.0, 1e308])
    got = ns.encode(x, f, rounding=rounding).tolist()
    assert got == [oracle.encode("ends", Fraction(v), rounding) for v in x.tolist()]


def test_overflow_at_the_end_of_float64(known):
    f = ns.Format("last", "float", 8, 4, 15 - 1023, nan="minus_zero")
    nan = frozenset({0x80})
    known(f, oracle.Float("last", 8, 4, f.bias, top=0x7F, negative_zero=False, nans=nan))
    x = np.array([1.0, 2.0**1006, 1.7e308, np.inf, -np.inf, -1.79e308])
    for overflow in oracle.POLICIES:
        for rounding in oracle.ROUNDINGS:
            want = [oracle.encode("last", oracle.from_float(v), rounding, overflow) for v in x]
            assert ns.encode(x, f, rounding=rounding, overflow=overflow).tolist() == want
        single = ns.encode(np.float32([1, np.inf]), f, overflow=overflow)
        assert single.tolist() == [0, 0x7F if overflow == "saturate" else 0x80]


@pytest.mark.parametrize("name", ["nf4", "posit8_es2"])
def test_ties_between_values_of_a_table_go_away_from_zero(name):
    values = np.unique(ns.get_format(name).values()[np.isfinite(ns.get_format(name).values())])
    low, high = values[:-1].astype(np.float64), values[1:].astype(np.float64)
    middle = low + (high - low) / 2
    exact = (middle - low == high - middle) & (low != 0) & (high != 0)  # posits never become 0
    want = np.where(middle < 0, low, high)
    assert exact.sum() > 10
    got = ns.cast(middle[exact], name, rounding="rna")
    np.testing.assert_array_equal(got, want[exact].astype(np.float32))


@pytest.mark.parametrize("rounding", ["rne", "rna", "rtz", "rup", "rdn", "rto", "sr"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_one_above_the_largest_wraps_to_the_least(rounding, dtype):
    more = {"seed": 1} if rounding == "sr" else {}
    got = ns.encode(
        np.array([8, 24, -8, 7], dtype), "int4", rounding=rounding, overflow="wrap", **more
    )
    assert got.tolist() == [-8, -8, -8, 7]
