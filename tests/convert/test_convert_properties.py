"""Laws of conversion that hold for every format, searched by hypothesis."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numsim as ns

SIGNED_FLOATS = (
    "float32",
    "float16",
    "bfloat16",
    "tfloat32",
    "float8_e4m3fn",
    "float8_e4m3",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e3m4",
    "float6_e2m3fn",
    "float4_e2m1fn",
    "float_e4m5",
    "float_e8m12",
    "p3109_k8p4se",
    "p3109_k8p1sf",
    "p3109_k5p2se",
)
UNSIGNED = ("float8_e8m0fnu", "p3109_k8p4ue", "p3109_k6p1uf", "uint8", "uint16", "uq4.4")
INTEGERS = ("int8", "int4", "int16", "int32", "q3.4", "q7.8", "q0.7")
ALL = SIGNED_FLOATS + UNSIGNED + INTEGERS
MODES = oracle.ROUNDINGS

names = st.sampled_from(ALL)
modes = st.sampled_from(MODES)
doubles = st.floats(allow_nan=False) | st.floats(-1000, 1000) | st.floats(-2.0, 2.0)
arrays = st.lists(doubles, min_size=1, max_size=40).map(lambda v: np.array(v, np.float64))
singles = st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=40).map(
    lambda v: np.array(v, np.float32)
)
many = settings(deadline=None, max_examples=150)


def limits(name):
    fmt, f = ns.get_format(name), oracle.spec(name)
    if isinstance(f, oracle.Fixed):
        return float(Fraction(f.lowest, 1 << f.fraction)), float(
            Fraction(f.highest, 1 << f.fraction)
        )
    lowest = -fmt.max if f.signed else 0.0 if f.zero else fmt.min_normal
    return lowest, fmt.max


@many
@given(names, modes, arrays)
def test_agrees_with_the_oracle(name, rounding, x):
    f = oracle.spec(name)
    for overflow in oracle.POLICIES:
        got = ns.encode(x, name, rounding=rounding, overflow=overflow).tolist()
        for v, code in zip(x.tolist(), got, strict=True):
            want = oracle.encode(name, oracle.from_float(v), rounding, overflow)
            if isinstance(f, oracle.Float) and f.is_nan(want):
                assert f.is_nan(code), (v, overflow, hex(code))
            else:
                assert code == want, (v, overflow, hex(code), hex(want))


@many
@given(names, modes, arrays)
def test_casting_twice_changes_nothing(name, rounding, x):
    once = ns.cast(x, name, rounding=rounding)
    twice = ns.cast(once, name, rounding=rounding)
    assert np.array_equal(once, twice)
    assert np.array_equal(np.signbit(once), np.signbit(twice))


@many
@given(names, modes, arrays)
def test_monotone(name, rounding, x):
    y = ns.cast(np.sort(x), name, rounding=rounding).astype(np.float64)
    assert (np.diff(y) >= 0).all()


@many
@given(names, arrays)
def test_nearest_is_off_by_at_most_half_a_step(name, x):
    lowest, highest = limits(name)
    f = oracle.spec(name)
    x = np.clip(x, lowest, highest)
    for rounding in ("rne", "rna"):
        for v, y in zip(x.tolist(), ns.cast(x, name, rounding=rounding).tolist(), strict=True):
            n, _ = oracle.neighbours(f, abs(Fraction(v)))
            step = f.magnitude(n + 1) - f.magnitude(n)
            assert abs(Fraction(y) - Fraction(v)) <= step / 2


@many
@given(names, arrays)
def test_directed_modes_bracket_the_input(name, x):
    lowest, highest = limits(name)
    x = np.clip(x, lowest, highest)
    down = ns.cast(x, name, rounding="rdn").astype(np.float64)
    up = ns.cast(x, name, rounding="rup").astype(np.float64)
    zero = ns.cast(x, name, rounding="rtz").astype(np.float64)
    assert (down <= x).all()
    assert (up >= x).all()
    assert np.array_equal(zero, np.where(x < 0, up, down))
    for rounding in ("rne", "rna", "rto"):
        y = ns.cast(x, name, rounding=rounding)
        assert ((y == down) | (y == up)).all()


@many
@given(st.sampled_from(SIGNED_FLOATS), modes, arrays)
def test_sign_symmetry(name, rounding, x):
    mirror = {"rup": "rdn", "rdn": "rup"}.get(rounding, rounding)
    for overflow in ("saturate", "special"):
        y = ns.cast(x, name, rounding=rounding, overflow=overflow)
        z = ns.cast(-x, name, rounding=mirror, overflow=overflow)
        assert np.array_equal(-y, z, equal_nan=True)


@many
@given(names, modes, singles)
def test_float32_and_float64_inputs_agree(name, rounding, x):
    wide = x.astype(np.float64)
    for overflow in oracle.POLICIES:
        narrow = ns.encode(x, name, rounding=rounding, overflow=overflow)
        assert np.array_equal(narrow, ns.encode(wide, name, rounding=rounding, overflow=overflow))


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("name", ALL)
def test_every_value_encodes_to_its_own_code(name, rounding):
    f = oracle.spec(name)
    if f.bits <= 16:
        codes = np.array(oracle.codes(name))
    else:
        rng = np.random.default_rng(8)
        low = f.lowest if isinstance(f, oracle.Fixed) else 0
        codes = rng.integers(low, low + (1 << f.bits), 5000)
    if isinstance(f, oracle.Float):
        codes = codes[[not f.is_nan(c) for c in codes.tolist()]]
    codes = codes.astype(ns.encode(np.ones(1), name).dtype)
    overflow = "special"
    assert np.array_equal(
        ns.encode(ns.decode(codes, name), name, rounding=rounding, overflow=overflow), codes
    )


@many
@given(
    st.sampled_from(
        [
            ("float32", "float16"),
            ("float32", "bfloat16"),
            ("float32", "float8_e4m3fn"),
            ("float16", "float8_e4m3fn"),
            ("float16", "float8_e5m2"),
            ("float16", "float6_e2m3fn"),
            ("bfloat16", "float8_e4m3fnuz"),
            ("float_e8m12", "float16"),
            ("float32", "int8"),
            ("float32", "q3.4"),
        ]
    ),
    st.sampled_from(("rne", "rna", "rtz", "rup", "rdn")),
    arrays,
)
def test_rounding_to_odd_first_is_innocuous(pair, rounding, x):
    wide, narrow = pair
    x = x[np.isfinite(x)]
    between = ns.cast(x, wide, rounding="rto", overflow="special")
    for overflow in ("saturate", "special"):
        direct = ns.encode(x, narrow, rounding=rounding, overflow=overflow)
        assert np.array_equal(
            ns.encode(between, narrow, rounding=rounding, overflow=overflow), direct
        )


@many
@given(st.sampled_from(INTEGERS), modes, arrays)
def test_wrap_is_saturate_modulo_the_range(name, rounding, x):
    f = oracle.spec(name)
    x = x[np.isfinite(x)]
    got = ns.encode(x, name, rounding=rounding, overflow="wrap").tolist()
    want = [oracle.encode(name, oracle.from_float(v), rounding, "wrap") for v in x.tolist()]
    assert got == want
    lowest, highest = limits(name)
    inside = (x >= lowest) & (x <= highest)
    saturated = ns.encode(x, name, rounding=rounding)
    assert np.array_equal(np.array(got, np.int64)[inside], saturated[inside])
    assert f.lowest <= min(got, default=0)
    assert max(got, default=0) <= f.highest


@many
@given(names, arrays, st.integers(0, 2**32 - 1), st.integers(0, 2**40))
def test_stochastic_takes_one_of_the_two_neighbours(name, x, seed, offset):
    lowest, highest = limits(name)
    x = np.clip(x, lowest, highest)
    got = ns.cast(x, name, rounding="sr", seed=seed, offset=offset)
    down, up = (ns.cast(x, name, rounding=r) for r in ("rdn", "rup"))
    assert ((got == down) | (got == up)).all()
    again = ns.cast(x[::-1][:1], name, rounding="sr", seed=seed, offset=offset + x.size - 1)
    assert np.array_equal(again, got[-1:])
