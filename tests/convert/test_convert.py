"""encode, decode and cast against the oracle, ml_dtypes and the golden vectors.

The big comparisons use ``expected``, the definition of oracle.encode over sorted tables of exact
float64 values; ``test_the_table_method_is_the_oracle`` ties the two together.
"""

from __future__ import annotations

import bisect
import datetime
import functools
from fractions import Fraction

import ml_dtypes
import numpy as np
import oracle
import pytest
from oracle import philox

import numsim as ns

ML_DTYPES = tuple(
    n for n in oracle.NAMED
    if n.startswith(("float8", "float6", "float4", "bf")) and hasattr(ml_dtypes, n)
)  # fmt: skip
REPRESENTATIVE = (
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn",
    "bfloat16",
    "p3109_k8p4ue",
    "int8",
    "q3.4",
)
REST = (
    "float16",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e5m2fnuz",
    "float8_e3m4",
    "float6_e2m3fn",
    "float6_e3m2fn",
    "float_e2m1",
    "float_e4m5",
    "float_e6m9",
    "float_e8m1",
    "p3109_k8p1se",
    "p3109_k8p1uf",
    "p3109_k8p3se",
    "p3109_k8p4sf",
    "p3109_k6p3se",
    "p3109_k4p2sf",
    "p3109_k3p2ue",
    "p3109_k9p4sf",
    "p3109_k12p4ue",
    "p3109_k16p7se",
    "p3109_k16p12uf",
    "int2",
    "int4",
    "int16",
    "uint4",
    "uint8",
    "uint16",
    "q0.7",
    "q7.8",
    "uq4.4",
    "uq0.8",
)
EVERY_P3109 = tuple(
    f"p3109_k{k}p{p}{signedness}{domain}"
    for k in range(2, 9)
    for signedness in "su"
    for p in range(1, k + (signedness == "u"))
    for domain in "ef"
    if (k, signedness, domain) != (2, "s", "e")
)
EVERY_POSIT = tuple(f"posit{n}_es{es}" for n in (2, 3, 4, 6, 8, 12, 16) for es in range(4))
EVERY = tuple(
    dict.fromkeys((*REPRESENTATIVE, *REST, *ns.list_formats(), *EVERY_P3109, *EVERY_POSIT))
)
# A different few of them every day; all are in the exhaustive run.
TODAY = EVERY[datetime.date.today().toordinal() % 61 :: 61]
SOURCES = ("float16", "bfloat16")


# --- the fast form of the oracle


@functools.cache
def magnitudes(name):
    """Values of the codes 0, 1, ... up to one beyond the largest, in a wider exponent range."""
    f = oracle.spec(name)
    count = f.highest - f.lowest + 2 if isinstance(f, oracle.Fixed) else f.top + 2
    return np.array([oracle.to_float(f.magnitude(n)) for n in range(count)])


def is_posit(table):
    """Whether the code of the least integer is NaR; codebooks have a number there."""
    return table.values[1 << (table.bits - 1)] == "nan" and table.beyond is None


def is_nan(name, codes):
    f = oracle.spec(name)
    if isinstance(f, oracle.Fixed):
        return np.zeros(codes.shape, bool)
    if isinstance(f, oracle.Table):
        return np.isin(codes, f.nans) if f.bits <= 8 else codes == 1 << (f.bits - 1)
    above = (codes & ~f.sign_bit) > f.inf if f.ieee else np.zeros(codes.shape, bool)
    return above | np.isin(codes, sorted(f.nans))


def places(name, m):
    """Codes whose values lie at or below ``m``, what is beyond, and half of the step there."""
    f = oracle.spec(name)
    if isinstance(f, oracle.Fixed):
        m = np.ldexp(np.minimum(m, 2.0 ** (40 - f.fraction)), f.fraction)
        return np.floor(m).astype(np.int64), m - np.floor(m), 0.5
    if f.bits > 16:  # no table: float64 arithmetic that is exact
        emin, p = 1 - f.bias, f.precision
        m = np.minimum(m, 2.0 ** (f.bias + 2))
        e = np.where(m > 0, np.maximum(np.frexp(m)[1] - 1, emin), emin)
        q = np.ldexp(m, p - 1 - e)
        return np.floor(q).astype(np.int64) + ((e - emin) << (p - 1)), q - np.floor(q), 0.5
    table = magnitudes(name)
    last = len(table) - 1
    n = np.clip(np.searchsorted(table, m, side="right") - 1, 0, last)
    low, high = table[n], table[np.minimum(n + 1, last)]
    return n, np.where((m <= low) | (n == last), 0.0, m - low), (low + high) / 2 - low


def expected(name, x, rounding="rne", overflow="saturate"):
    """oracle.encode of a float64 array without NaN."""
    f = oracle.spec(name)
    if isinstance(f, oracle.Table):
        return expected_of_table(name, x, rounding, overflow)
    fixed = isinstance(f, oracle.Fixed)
    x = np.asarray(x, np.float64)
    negative, m = np.signbit(x), np.abs(x)
    if fixed and overflow == "wrap":
        m = np.ldexp(m, f.fraction)
        n = np.floor(m)
        up = _up(f, np.mod(n, 2) == 1, m - n, 0.5, negative, rounding)
        residue = np.mod(np.where(negative, -1, 1) * (n + up), 2.0**f.bits)  # exact
        return np.where(residue > f.highest, residue - 2.0**f.bits, residue).astype(np.int64)
    n, excess, half = places(name, m)
    up = _up(f, n % 2 == 1, excess, half, negative, rounding)
    if name == "float8_e8m0fnu" and rounding == "rne" and overflow in oracle.E8M0_LOWEST_BINADE_UP:
        up |= (n == 0) & (excess > 0)
    n = n + up
    if fixed:
        return np.clip(np.where(negative, -n, n), f.lowest, f.highest)
    nan = oracle.nan_code(name) if f.has_nan else None
    largest = f.top
    special = f.inf if f.has_inf else largest if nan is None or f.p3109 else nan
    stop = np.zeros(x.shape, bool)
    if overflow != "special" or rounding in ("rtz", "rto"):
        stop[:] = not (f.p3109 and f.signed and (overflow, rounding) == ("special", "rto"))
    elif rounding in ("rup", "rdn"):
        stop = negative if rounding == "rup" else ~negative
    code = np.where(n <= f.top, n, np.where(stop, largest, special))
    code = np.where(np.isinf(x), largest if overflow == "saturate" else special, code)
    if not f.signed:
        below = negative & (n > 0) if f.zero else negative | (m == 0)
        clamp = np.isneginf(x) if overflow == "saturate_finite" else overflow == "special"
        if f.p3109:
            upward = rounding in ("rtz", "rup")
            clamp = overflow == "special" and (np.isneginf(x) if upward else True)
        code = np.where(below, np.where(clamp, nan, 0), code)
        return np.where(negative & (code != nan), 0, code) if nan is not None else code
    with_sign = code | f.sign_bit
    if not f.negative_zero:
        with_sign = np.where(code == 0, 0, with_sign)
    if nan is not None:
        with_sign = np.where(code == nan, nan, with_sign)
    return np.where(negative, with_sign, code)


def expected_of_table(name, x, rounding, overflow):
    """Nearest value with the tie to the even code, by distances that float64 holds exactly."""
    pairs = oracle.sorted_table(name)
    values = np.array([float(v) for v, _ in pairs])
    codes = np.array([c for _, c in pairs])
    x = np.asarray(x, np.float64)
    f = oracle.spec(name)
    if f.beyond is not None and overflow == "special":
        ends = [f.values.index(inf) for inf in ("-inf", "+inf")]
        values = np.concatenate([[-float(f.beyond)], values, [float(f.beyond)]])
        codes = np.array([ends[0], *codes, ends[1]])
    v = np.clip(x, values[0], values[-1])
    hi = np.searchsorted(values, v)
    lo = np.maximum(hi - (values[hi] != v), 0)
    # Sterbenz: near the middle both differences are exact, elsewhere their order is clear
    below, above = v - values[lo], values[hi] - v
    tie = (values[lo] + (values[hi] - values[lo]) / 2 == v) & (lo != hi)
    nearer = (above < below) & ~tie
    up = {
        "rne": nearer | (tie & (codes[hi] % 2 == 0)),
        "rna": nearer | (tie & (v > 0)),
        "rtz": v < 0,
        "rup": np.full(v.shape, True),
        "rdn": np.full(v.shape, False),
        "rto": codes[hi] % 2 == 1,
    }[rounding]
    code = codes[np.where(up, hi, lo)]
    if f.beyond is not None and overflow == "special":
        inward = {"rtz": np.isfinite(x), "rto": np.isfinite(x), "rup": x < 0, "rdn": x > 0}
        stops = np.isfinite(x) & inward.get(rounding, np.full(x.shape, False))
        code = np.where(stops & (x >= values[-1]), codes[-2], code)
        code = np.where(stops & (x <= values[0]), codes[1], code)
    if f.beyond is not None and overflow != "saturate":
        ends = [f.values.index(inf) for inf in ("-inf", "+inf")]
        return np.where(np.isinf(x), np.where(x > 0, ends[1], ends[0]), code)
    if overflow != "saturate" and (is_posit(f) or (f.bits <= 8 and f.nans)):
        code = np.where(np.isinf(x), f.nans[0] if f.bits <= 8 else 1 << (f.bits - 1), code)
    return code


def _up(f, odd, excess, half, negative, rounding):
    if rounding == "rne":
        odd = odd if getattr(f, "zero", True) else True
        return (excess > half) | ((excess == half) & odd & (excess > 0))
    if rounding == "rna":
        return (excess >= half) & (excess > 0)
    if rounding == "rto":
        return (excess > 0) & ~odd
    return (excess > 0) & {"rtz": False, "rup": ~negative, "rdn": negative}[rounding]


def check(name, x, got, want, note=""):
    """Equal codes, where any NaN code stands for NaN; say the first that differs."""
    got, want = np.asarray(got).astype(np.int64), np.asarray(want).astype(np.int64)
    same = got == want
    same |= is_nan(name, got) & is_nan(name, want)
    if not same.all():
        i = int(np.flatnonzero(~same)[0])
        pytest.fail(
            f"{name} {note}: {np.sum(~same)} of {same.size} differ; x = {float(x[i])!r} "
            f"({float(x[i]).hex()}) got {got[i]:#x}, expected {want[i]:#x}"
        )


@functools.cache
def every_input(source, nan=False):
    """All 65,536 values of a 16-bit type, without NaN unless asked for."""
    dtype = np.float16 if source == "float16" else ml_dtypes.bfloat16
    x = np.arange(65536, dtype=np.uint16).view(dtype)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
    keep = np.full(65536, True) if nan else ~np.isnan(wide)
    return x[keep], wide[keep]


@functools.cache
def hard_inputs(name, dtype):
    """Every value, every midpoint, and their neighbours in ``dtype``; past the range as well."""
    dtype = np.dtype(dtype)
    f = oracle.spec(name)
    if isinstance(f, oracle.Table):
        table = np.array([max(float(v), 0.0) for v, _ in oracle.sorted_table(name)])
    elif f.bits > 16:
        top = f.highest + 1 if isinstance(f, oracle.Fixed) else f.top + 1
        some = [*range(40), *range(top // 2, top // 2 + 40), *range(top - 40, top + 1)]
        table = np.array([oracle.to_float(f.magnitude(n)) for n in some])
    else:
        table = magnitudes(name)
    if len(table) > 3000:
        table = np.concatenate([table[:300], table[len(table) // 2 :][:300], table[-300:]])
    steps = np.concatenate([table, (table[1:] + table[:-1]) / 2, [2 * table[-1], 1e30, 1e-30]])
    if dtype == np.float32:
        steps = steps[np.abs(steps) < 3e38]
    x = steps.astype(dtype)
    out = [x, np.nextafter(x, dtype.type(0)), np.nextafter(x, dtype.type(np.inf))]
    limits = np.finfo(dtype)
    out.append(np.array([limits.max, limits.smallest_subnormal, np.inf, 0], dtype))
    x = np.concatenate(out)
    return np.concatenate([x, -x])


def policies(name):
    wrap = ("wrap",) if isinstance(oracle.spec(name), oracle.Fixed) else ()
    return (*oracle.POLICIES, *wrap)


def compare(name, x, rounding, overflow):
    if overflow == "wrap":
        x = x[np.abs(x.astype(np.float64)) < 1e300]
    got = ns.encode(x, name, rounding=rounding, overflow=overflow)
    want = expected(name, x.astype(np.float64), rounding, overflow)
    check(name, x, got, want, f"from {x.dtype} {rounding} {overflow}")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in REPRESENTATIVE + REST + TODAY else pytest.mark.exhaustive)
        for n in EVERY
    ],
)
def test_the_table_method_is_the_oracle(name):
    """No numsim here: the two ways of computing the expectation agree."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.choice(every_input(s)[1], 20) for s in SOURCES])
    f = oracle.spec(name)
    scale = 2.0**-8 if isinstance(f, oracle.Table) else float(f.magnitude(1))
    x = np.concatenate([x, scale * np.arange(-8, 9) / 4, rng.choice(hard_inputs(name, "f8"), 40)])
    x = np.concatenate([x, [0.0, -0.0, np.inf, -np.inf]])
    values = [oracle.from_float(float(v)) for v in x]
    for overflow in policies(name):
        ok = (np.abs(x) < 1e300) | (overflow != "wrap")
        for rounding in oracle.ROUNDINGS:
            some = [v for v, use in zip(values, ok, strict=True) if use]
            want = [oracle.encode(name, v, rounding, overflow) for v in some]
            check(name, x[ok], expected(name, x[ok], rounding, overflow), want, rounding + overflow)


# --- ml_dtypes


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["float16", *ML_DTYPES])
def test_special_is_ml_dtypes_on_every_16_bit_input(name, source):
    has_nan = ns.get_format(name).has_nan
    x, wide = every_input(source, nan=has_nan)
    dtype = np.dtype(np.float16 if name == "float16" else getattr(ml_dtypes, name))
    with np.errstate(all="ignore"):
        want = x.astype(np.float32).astype(dtype).view(f"u{dtype.itemsize}")
    got = ns.encode(x, name, overflow="special")
    assert got.dtype == want.dtype
    check(name, wide, got, want, "special")
    nan = np.isnan(wide)
    sign = oracle.spec(name).sign_bit
    assert np.array_equal(got[nan] & sign, want[nan] & sign), "sign of NaN"


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["float16", *ML_DTYPES])
def test_saturate_is_ml_dtypes_after_clipping(name, source):
    x, wide = every_input(source)
    dtype = np.dtype(np.float16 if name == "float16" else getattr(ml_dtypes, name))
    largest = ns.get_format(name).max
    lowest = 2.0**-127 if name == "float8_e8m0fnu" else -largest
    clipped = np.clip(wide, lowest, largest)
    with np.errstate(all="ignore"):
        want = clipped.astype(np.float32).astype(dtype).view(f"u{dtype.itemsize}")
    check(name, wide, ns.encode(x, name), want, "saturate")


# --- all rounding modes and overflow policies


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("overflow", [*oracle.POLICIES, "wrap"])
@pytest.mark.parametrize("rounding", oracle.ROUNDINGS)
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_every_16_bit_input_in_every_mode(name, rounding, overflow, source):
    if overflow not in policies(name):
        with pytest.raises(ns.NumsimError, match="wrap"):
            ns.encode(np.ones(2, np.float32), name, rounding=rounding, overflow=overflow)
        return
    compare(name, every_input(source)[0], rounding, overflow)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("rounding", "overflow"), [("rne", "saturate"), ("rdn", "special")])
@pytest.mark.parametrize("name", REST)
def test_every_16_bit_input_in_two_modes(name, rounding, overflow, source):
    compare(name, every_input(source)[0], rounding, overflow)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in TODAY else pytest.mark.exhaustive) for n in EVERY],
)
def test_every_16_bit_input_of_every_format_in_every_mode(name):
    for source in SOURCES:
        for overflow in policies(name):
            for rounding in oracle.ROUNDINGS:
                compare(name, every_input(source)[0], rounding, overflow)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*REPRESENTATIVE, *REST])
def test_values_midpoints_and_their_neighbours(name, dtype):
    """From float64 the neighbours of midpoints are the double-rounding cases."""
    x = hard_inputs(name, dtype)
    for overflow in policies(name):
        for rounding in oracle.ROUNDINGS:
            compare(name, x, rounding, overflow)


@pytest.mark.parametrize(
    "name", ["float32", "tfloat32", "float_e8m12", "float_e7m23", "float_e5m14"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_formats_wider_than_16_bits(name, dtype):
    f = oracle.spec(name)
    rng = np.random.default_rng(3)
    x = rng.standard_normal(40) * 2.0 ** rng.integers(-150, 129, 40)
    steps = 1 + np.arange(1, 8) * 2.0 ** -(f.precision + 1)
    top = float(f.magnitude(f.top))
    tiny = float(f.magnitude(1)) * np.arange(1, 8) / 4
    x = np.concatenate([x, steps, np.nextafter(steps, 0), np.nextafter(steps, 2), tiny])
    x = np.concatenate([x, top * np.array([1, 1 + 2.0**-26, 1 + 2.0 ** -(f.precision + 1), 1.5])])
    with np.errstate(all="ignore"):
        x = np.concatenate([x, [0, np.inf]]).astype(dtype)
    x = np.concatenate([x, -x])
    values = [oracle.from_float(float(v)) for v in x]
    for overflow in oracle.POLICIES:
        for rounding in oracle.ROUNDINGS:
            got = ns.encode(x, name, rounding=rounding, overflow=overflow)
            assert got.dtype == np.uint32
            want = [oracle.encode(name, v, rounding, overflow) for v in values]
            for v, g, w in zip(x, got.tolist(), want, strict=True):
                assert g == w, f"{float(v)!r} {rounding} {overflow}: got {g:#x}, expected {w:#x}"


@pytest.mark.parametrize("name", ["int32", "int24", "int17", "q15.16", "q8.16"])
def test_integers_wider_than_16_bits(name):
    f = oracle.spec(name)
    edge = [f.lowest, f.highest, 0, 1, 2, 3, 1 << 16, 1 << 23]
    x = np.array([(e + d) for e in edge for d in (-2, -1, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 2)])
    x = np.concatenate([np.ldexp(x, -f.fraction), [1e300, -1e300, 2.0**53 + 2, 5e-324]])
    values = [oracle.from_float(float(v)) for v in x]
    for overflow in policies(name):
        for rounding in oracle.ROUNDINGS:
            got = ns.encode(x, name, rounding=rounding, overflow=overflow)
            assert got.dtype == np.int32
            want = [oracle.encode(name, v, rounding, overflow) for v in values]
            for v, g, w in zip(x, got.tolist(), want, strict=True):
                assert g == w, f"{float(v)!r} {rounding} {overflow}: got {g}, expected {w}"


# --- specific numbers


def one(x, name, **options):
    return float(ns.cast(np.array([x], np.float64), name, **options)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_e4m3_overflow(dtype):
    x = np.array([448, 464, np.nextafter(np.array(464, dtype), 1000), 465, 1e30, np.inf], dtype)
    for sign in (1, -1):
        assert (sign * ns.cast(sign * x, "float8_e4m3fn") == 448).all()
        special = sign * ns.cast(sign * x, "float8_e4m3fn", overflow="special")
        assert special[:2].tolist() == [448, 448]
        assert np.isnan(special[2:]).all()
        finite = sign * ns.cast(sign * x, "float8_e4m3fn", overflow="saturate_finite")
        assert (finite[:-1] == 448).all()
        assert np.isnan(finite[-1])
    for overflow in oracle.POLICIES:
        codes = ns.encode(np.array([np.nan, -np.nan], dtype), "float8_e4m3fn", overflow=overflow)
        assert codes.tolist() == [0x7F, 0xFF]


def test_e5m2_overflow():
    x = np.array([57344, 61439, 61440, 1e30, np.inf], np.float32)
    inf = np.inf
    assert (ns.cast(x, "float8_e5m2") == 57344).all()
    assert ns.cast(x, "float8_e5m2", overflow="special").tolist() == [57344, 57344, inf, inf, inf]
    finite = ns.cast(x, "float8_e5m2", overflow="saturate_finite")
    assert finite.tolist() == [57344] * 4 + [inf]


@pytest.mark.parametrize(
    ("x", "name", "want"),
    [
        (-431.99999999999994, "float8_e4m3fn", -416),
        (432, "float8_e4m3fn", 448),
        (1 + 2**-8 + 2**-40, "bfloat16", 1.0078125),
        (1 + 2**-8, "bfloat16", 1.0),
        (1 + 2**-11 + 2**-40, "float16", 1 + 2**-10),
        (1.00048828125, "float16", 1.0),
        (4.25, "float8_e5m2", 4.0),
        (4.25, "float6_e2m3fn", 4.0),
        (2**-25, "float16", 0.0),
        (2**-25 * (1 + 2**-30), "float16", 2**-24),
        (2**-10, "float8_e4m3fn", 0.0),
        (2**-10 * (1 + 2**-40), "float8_e4m3fn", 2**-9),
        (1 + 2**-24 + 2**-50, "float32", 1 + 2**-23),
        (2**-150 * (1 + 2**-40), "float32", 2**-149),
        (464 + 2**-40, "float8_e4m3fn", 448),
        (0.5 + 2**-50, "int8", 1),
        (0.5, "int8", 0),
        (127.5, "int8", 127),
        (-128.5, "int8", -128),
        (2.5 / 16, "q3.4", 2 / 16),
        (100.0, "q3.4", 7.9375),
        (0.0625, "float4_e2m1fn", 0.0),
        (0.25, "float4_e2m1fn", 0.0),
        (0.75, "float4_e2m1fn", 1.0),
        (5.0, "float4_e2m1fn", 4.0),
        (5.1, "nf4", 1.0),
        (-3.0, "nf4", -1.0),
        (0.04, "nf4", 0.07958029955625534),
    ],
)
def test_single_rounding_from_float64(x, name, want):
    assert one(x, name) == np.float32(want)


@pytest.mark.parametrize(
    ("x", "want"), [(1.125, 2), (1.25, 2), (5.0, 8), (1.0, 1), (2.0**-127, 2.0**-127)]
)
def test_e8m0_rounds_up(x, want):
    assert one(x, "float8_e8m0fnu", rounding="rup") == want


def test_e8m0_has_no_zero():
    x = np.array([0, -0.0, 2.0**-130, 2.0**-127, -1, -np.inf], np.float64)
    assert ns.encode(x, "float8_e8m0fnu", overflow="special").tolist() == [255, 255, 0, 0, 255, 255]
    assert ns.encode(x, "float8_e8m0fnu").tolist() == [0] * 6


def test_zero_keeps_its_sign_where_the_format_can():
    x = np.array([0.0, -0.0, 1e-30, -1e-30])
    assert ns.encode(x, "float8_e4m3fn").tolist() == [0, 0x80, 0, 0x80]
    assert ns.encode(x, "float8_e4m3fnuz").tolist() == [0, 0, 0, 0]
    assert ns.encode(x, "p3109_k8p4se").tolist() == [0, 0, 0, 0]
    assert ns.encode(x, "int8").tolist() == [0, 0, 0, 0]
    assert np.signbit(ns.cast(x, "float8_e4m3fn")).tolist() == [False, True, False, True]


@pytest.mark.parametrize("name", ["nf4", "posit8_es0", "posit8_es2", "posit16_es1"])
def test_tables_keep_their_own_values(name):
    values = ns.get_format(name).values()
    finite = np.isfinite(values)
    codes = np.flatnonzero(finite)
    assert ns.encode(values[finite], name).tolist() == codes.tolist()


def test_nf4_takes_the_nearest_value():
    x = np.linspace(-1.2, 1.2, 4001)
    values = np.array(oracle.NF4)
    want = np.abs(x[:, None] - values).argmin(axis=1)
    assert ns.encode(x, "nf4").tolist() == want.tolist()


@pytest.mark.parametrize("name", ["nf4", "posit8_es0", "posit8_es1", "posit16_es1"])
def test_directed_modes_of_tables(name):
    values = ns.get_format(name).values()
    values = np.sort(values[np.isfinite(values)])
    rng = np.random.default_rng(9)
    x = rng.uniform(-1, 1, 500)
    down = values[np.searchsorted(values, x, side="right") - 1]
    up = values[np.searchsorted(values, x, side="left")]
    assert np.array_equal(ns.cast(x, name, rounding="rdn"), down)
    assert np.array_equal(ns.cast(x, name, rounding="rup"), up)
    assert np.array_equal(ns.cast(x, name, rounding="rtz"), np.where(x < 0, up, down))
    got = ns.cast(x, name, rounding="sr")
    assert ((got == down) | (got == up)).all()
    assert 100 < np.sum(got == up) < 400


POSITS = ("posit8_es0", "posit8_es1", "posit8_es2", "posit16_es1")


@pytest.mark.parametrize("name", POSITS)
def test_posits_take_the_nearest_value(name):
    """Nearest value, ties to the even code (the Posit Standard cuts the bit string instead)."""
    f = oracle.spec(name)
    codes = [c for c in range(1 << f.bits) if c != 1 << (f.bits - 1)]
    values = sorted((oracle.decode(name, c), c) for c in codes)
    rng = np.random.default_rng(4)
    x = rng.standard_normal(200) * 2.0 ** rng.integers(-24, 24, 200)
    middles = [float((values[i][0] + values[i + 1][0]) / 2) for i in range(0, len(values) - 1, 97)]
    x = np.concatenate([x, [0.0, 1, 1.5, 0.75, 1e30, -1e30], middles])
    numbers = [w for w, _ in values]
    want = []
    for v in map(Fraction, x.tolist()):
        at = bisect.bisect_left(numbers, v)
        close = values[max(at - 1, 0) : at + 1]
        near = min(abs(v - w) for w, _ in close)
        want.append(min((c for w, c in close if abs(v - w) == near), key=lambda c: c & 1))
    assert ns.encode(x, name).tolist() == want


# --- integers as inputs


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
@pytest.mark.parametrize(
    "name",
    ["int8", "uint8", "int4", "int32", "q3.4", "float8_e4m3fn", "float16", "float32", "bfloat16"],
)
def test_integer_inputs(name, dtype):
    limits = np.iinfo(dtype)
    exponents = (3, 4, 7, 8, 11, 15, 16, 23, 24, 31, 32, 53, 62, 63)
    candidates = [0, 1, 2, 3, 5, 7, 100, 127, 128, limits.max, limits.max - 1, limits.min]
    candidates += [2**e + d for e in exponents for d in (-1, 0, 1)]
    # ties broken only by the last bit of a wide integer
    candidates += [(2**24 + 1) * 2**30 + d for d in (-1, 0, 1)]
    candidates += [(2**8 + 1) * 2**50 + d for d in (-1, 0, 1)]
    candidates += [-c for c in candidates]
    ints = sorted({c for c in candidates if limits.min <= c <= limits.max})
    x = np.array(ints, dtype)
    for overflow in policies(name):
        for rounding in ("rne", "rto"):
            got = ns.encode(x, name, rounding=rounding, overflow=overflow).tolist()
            for v, g in zip(ints, got, strict=True):
                want = oracle.encode(name, oracle.Fraction(v), rounding, overflow)
                f = oracle.spec(name)
                if isinstance(f, oracle.Float) and f.is_nan(want):
                    assert f.is_nan(g), f"{v} {rounding} {overflow}: got {g:#x}, expected NaN"
                else:
                    assert g == want, f"{v} {rounding} {overflow}: got {g:#x}, expected {want:#x}"


def test_extreme_integers():
    x = np.array([np.iinfo(np.uint64).max, 0], np.uint64)
    assert ns.encode(x, "int8", overflow="wrap").tolist() == [-1, 0]
    assert ns.encode(x, "int8").tolist() == [127, 0]
    assert ns.cast(x, "float32")[0] == 2.0**64
    x = np.array([np.iinfo(np.int64).min], np.int64)
    assert ns.encode(x, "int8", overflow="wrap").tolist() == [0]
    assert ns.encode(x, "int32").tolist() == [-(2**31)]
    assert ns.encode(x, "uint8").tolist() == [0]


# --- array shapes and layouts


def test_codes_have_the_dtype_of_the_contract():
    x = np.ones(3, np.float32)
    for name, dtype in {
        "float4_e2m1fn": "uint8",
        "float8_e4m3fn": "uint8",
        "float16": "uint16",
        "float_e4m5": "uint16",
        "tfloat32": "uint32",
        "float32": "uint32",
        "int4": "int8",
        "int8": "int8",
        "int12": "int16",
        "int32": "int32",
        "uint4": "uint8",
        "uint16": "uint16",
        "q3.4": "int8",
        "q7.8": "int16",
        "uq4.4": "uint8",
    }.items():
        assert ns.encode(x, name).dtype == dtype, name


@pytest.mark.parametrize("name", ["float8_e4m3fn", "bfloat16", "int8", "float8_e8m0fnu", "nf4"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", ml_dtypes.bfloat16])
def test_layouts(name, dtype):
    rng = np.random.default_rng(5)
    x = np.ascontiguousarray((rng.standard_normal((6, 10, 8)) * 20).astype(dtype))
    want = ns.encode(x.ravel(), name).reshape(x.shape)
    assert np.array_equal(ns.encode(x, name), want)
    assert np.array_equal(ns.encode(np.asfortranarray(x), name), want)
    assert np.array_equal(ns.encode(x[::2, ::-1, 1::3], name), want[::2, ::-1, 1::3])
    assert np.array_equal(ns.encode(x.transpose(2, 0, 1), name), want.transpose(2, 0, 1))
    row = np.broadcast_to(x[0, 0], (4, 8))
    assert np.array_equal(ns.encode(row, name), np.broadcast_to(want[0, 0], (4, 8)))
    for shape in ((0,), (3, 0, 2)):
        empty = ns.encode(np.empty(shape, dtype), name)
        assert empty.shape == shape
        assert empty.dtype == want.dtype
    point = ns.encode(x[1, 2, 3], name)
    assert np.shape(point) == ()
    assert point == want[1, 2, 3]
    assert np.shape(ns.cast(np.array(x[1, 2, 3]), name)) == ()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "uint64"])
def test_foreign_byte_order(dtype):
    x = np.array([0, 1, 2, 3, 17, 100, 250, 1000]).astype(dtype)
    swapped = x.astype(x.dtype.newbyteorder())
    assert not swapped.dtype.isnative
    for name in ("float8_e4m3fn", "int8", "float32"):
        assert np.array_equal(ns.encode(swapped, name), ns.encode(x, name))


def test_the_input_is_neither_changed_nor_required_writable():
    x = np.array([1.1, 1e9, -3], np.float32)
    before = x.copy()
    x.flags.writeable = False
    ns.encode(x, "float8_e4m3fn")
    ns.cast(x, "int8")
    assert np.array_equal(x, before)


def test_cast_is_decode_of_encode():
    x = np.linspace(-500, 500, 777)
    for name in ("float8_e4m3fn", "int8", "q3.4", "bfloat16", "nf4"):
        for rounding in oracle.ROUNDINGS if name != "nf4" else ("rne",):
            codes = ns.encode(x, name, rounding=rounding)
            want = ns.decode(codes, name)
            got = ns.cast(x, name, rounding=rounding)
            assert got.dtype == want.dtype
            assert np.array_equal(got, want)


# --- wrong input


def nan_at(*places, dtype="float32"):
    x = np.linspace(-1, 1, 20).astype(dtype)
    x[list(places)] = np.nan
    return x


@pytest.mark.parametrize("name", ["int8", "q3.4", "float4_e2m1fn", "float6_e2m3fn", "uint8", "nf4"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_nan_into_a_format_without_nan_raises(name, dtype):
    with pytest.raises(ns.NumsimError, match=r"\b3\b") as caught:
        ns.encode(nan_at(7, 11, 13, dtype=dtype), name)
    assert "7" in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "largest"),
    [("int8", 127), ("float4_e2m1fn", 6), ("float6_e3m2fn", 28), ("q3.4", 7.9375)],
)
def test_nan_where_asked_for(name, largest):
    x = nan_at(7, 11)
    want = ns.cast(np.nan_to_num(x), name)
    assert np.array_equal(ns.cast(x, name, nan="zero"), want)
    want[[7, 11]] = largest
    assert np.array_equal(ns.cast(x, name, nan="max"), want)
    assert np.array_equal(ns.cast(-x, name, nan="max")[[7, 11]], [largest, largest])


# Every NaN of 8 and 16 bits, some of float32 and float64: sign and fraction of 52 bits.
NAN_DTYPES = {
    "float8_e5m2": (2, 8),
    "float8_e4m3": (3, 8),
    "float8_e3m4": (4, 8),
    "float16": (10, 16),
    "bfloat16": (7, 16),
    "float32": (23, 32),
    "float64": (52, 64),
}


def every_nan(dtype):
    fraction_bits, bits = NAN_DTYPES[dtype]
    exponent = ((1 << (bits - 1 - fraction_bits)) - 1) << fraction_bits
    if bits <= 16:
        fractions = np.arange(1, 1 << fraction_bits)
    else:
        rng = np.random.default_rng(1)
        edges = [1, 2, (1 << fraction_bits) - 1, 1 << (fraction_bits - 1)]
        fractions = np.concatenate([edges, rng.integers(1, 1 << fraction_bits, 1000)])
    patterns = fractions.astype(np.uint64) | np.uint64(exponent)
    patterns = np.concatenate([patterns, patterns | np.uint64(1 << (bits - 1))])
    x = patterns.astype(f"u{bits // 8}").view(getattr(ml_dtypes, dtype, dtype))
    return x, np.tile(fractions << (52 - fraction_bits), 2).tolist()


@pytest.mark.parametrize("policy", [None, "canonical", "payload", "max", "zero"])
@pytest.mark.parametrize(
    "name",
    [*REPRESENTATIVE, "float16", "float32", "tfloat32", "float8_e3m4", "float6_e2m3fn", "uint4",
     "float_e2m1", "p3109_k6p3se", "nf4", "posit8_es1"],
)  # fmt: skip
def test_what_nan_becomes(name, policy):
    """The generic kernel, the fast ones and the table of 16-bit inputs, among other numbers."""
    has_nan = ns.get_format(name).has_nan
    if policy is None and not has_nan:
        return
    if policy is not None and has_nan != (policy in ("canonical", "payload")):
        with pytest.raises(ns.NumsimError, match=f"nan='{policy}' is for formats with"):
            ns.encode([1.0], name, nan=policy)
        return
    for dtype in NAN_DTYPES:
        x, fractions = every_nan(dtype)
        signs = np.repeat([False, True], x.size // 2).tolist()
        want = [
            oracle.encode_nan(name, s, f, policy) for s, f in zip(signs, fractions, strict=True)
        ]
        for options in ({}, {"overflow": "special", "rounding": "rup"}, {"rounding": "sr"}):
            got = ns.encode(x, name, nan=policy, **options)
            assert got.tolist() == want, (dtype, options)
            mixed = np.concatenate([x, np.ones(1 << 15, x.dtype)])  # long enough for the table
            got = ns.encode(mixed, name, nan=policy, **options)
            assert got[: x.size].tolist() == want, (dtype, options)
            assert (got[x.size :] == ns.encode(1.0, name)).all()
            got = ns.encode(np.repeat(mixed, 2)[::2], name, nan=policy, **options)
            assert got[: x.size].tolist() == want, (dtype, options)


def test_nan_as_hardware_writes_it():
    x = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFB23456], np.uint32).view(np.float32)
    for name in ("float8_e4m3fn", "float8_e5m2"):  # PTX cvt.rn.satfinite
        assert ns.encode(x, name, nan="canonical").tolist() == [0x7F] * 4
    # x86 VCVTNEPS2BF16: upper half, quiet bit set
    got = ns.encode(x, "bfloat16", nan="payload")
    assert got.tolist() == [0x7FC0, 0xFFC0, 0x7FC0, 0xFFF2]
    assert ns.encode(x, "float32", nan="payload").tolist()[3] == 0xFFF23456
    # an overflow under special is not an input of NaN: it keeps its sign
    assert ns.encode([-1e9], "e4m3", nan="canonical", overflow="special").tolist() == [0xFF]


@pytest.mark.parametrize(
    "x",
    [
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(["1.0"]),
        np.array([object()]),
        np.array(["2020-01-01"], "datetime64[D]"),
    ],
    ids=["bool", "complex", "str", "object", "datetime"],
)
def test_inputs_that_are_not_numbers_raise(x):
    with pytest.raises(ns.NumsimError):
        ns.encode(x, "float8_e4m3fn")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rounding": "rnd"}, "rne"),
        ({"rounding": "RNE"}, "rne"),
        ({"rounding": "nearest"}, "rne"),
        ({"overflow": "saturat"}, "saturate"),
        ({"overflow": "clip"}, "saturate"),
        ({"rounding": "sr", "sr": "trunc"}, "truncate"),
        ({"nan": "min"}, "max"),
    ],
)
def test_an_unknown_option_lists_the_known(options, words):
    with pytest.raises(ns.NumsimError, match=words):
        ns.encode(np.ones(3, np.float32), "float8_e4m3fn", **options)


def test_an_unknown_format_raises():
    for call in (ns.encode, ns.cast):
        with pytest.raises(ns.NumsimError, match="float8_e4m3fn"):
            call(np.ones(3, np.float32), "float8_e4m3f")


def test_wrap_refuses_infinities():
    with pytest.raises(ns.NumsimError):
        ns.encode(np.array([1, 2, np.inf]), "int8", overflow="wrap")


# --- stochastic rounding

SR_TABLES = ("nf4", "posit8_es0", "posit6_es1", "posit16_es1")
SR_FORMATS = (
    *SR_TABLES,
    "float8_e4m3fn",
    "float8_e5m2",
    "float4_e2m1fn",
    "float16",
    "bfloat16",
    "int8",
    "q3.4",
    "p3109_k8p4se",
    "p3109_k8p4ue",
    "float8_e4m3fnuz",
    "float8_e8m0fnu",
)
VARIANTS = ("truncate", "half_offset", "rne_first")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", SR_FORMATS)
def test_stochastic_with_supplied_integers(name, dtype, variant):
    rng = np.random.default_rng(6)
    f = oracle.spec(name)
    if name in SR_TABLES:
        largest, quantum = float(oracle.sorted_table(name)[-1][0]), 2.0**-10
    else:
        largest = float(f.magnitude(f.highest if isinstance(f, oracle.Fixed) else f.top))
        quantum = float(f.magnitude(1))
    x = rng.standard_normal(60) * 2.0 ** rng.integers(-12, 12, 60)
    x = np.concatenate([x, quantum * rng.uniform(-4, 4, 60), quantum * np.arange(-8, 9) / 4])
    x = np.concatenate([x, largest * rng.uniform(0.9, 1.1, 20), [0, -0.0, np.inf, -np.inf, 1e-8]])
    with np.errstate(all="ignore"):
        x = x.astype(dtype)
    values = [oracle.from_float(float(v)) for v in x]
    for bits in (1, 3, 8, 13, 20):
        random = rng.integers(0, 1 << bits, x.size)
        random[:2] = 0, (1 << bits) - 1
        for overflow in ("saturate", "special"):
            got = ns.encode(
                x,
                name,
                rounding="sr",
                sr=variant,
                random_bits=bits,
                random=random,
                overflow=overflow,
            )
            want = [
                oracle.encode(
                    name, v, overflow=overflow, bits=bits, integer=int(r), variant=variant
                )
                for v, r in zip(values, random, strict=True)
            ]
            check(name, x, got, want, f"sr {variant} {bits} bits {overflow} from {dtype}")


@pytest.mark.parametrize(
    ("bits", "discarded", "variant", "bias"),
    [  # published.md 3.5, in units of the last place
        (3, 4, "truncate", -0.03125),
        (3, 4, "half_offset", 0.03125),
        (3, 4, "rne_first", 0),
        (3, 8, "truncate", 2**-9 - 2**-4),
        (3, 8, "half_offset", 2**-9),
        (3, 8, "rne_first", 0),
        (1, 6, "truncate", 2**-7 - 2**-2),
        (1, 6, "half_offset", 2**-7),
        (1, 6, "rne_first", 0),
        (5, 5, "truncate", 0),
        (5, 5, "half_offset", 0),
        (5, 5, "rne_first", 0),
    ],
)
@pytest.mark.parametrize(("name", "precision"), [("float8_e4m3fn", 4), ("float8_e5m2", 3)])
def test_published_bias_of_few_bit_rounding(bits, discarded, variant, bias, name, precision):
    """Every discarded fraction with every random integer: exact, no sampling."""
    ulp = 2.0 ** (1 - precision)
    fraction = np.arange(2**discarded) / 2**discarded
    x = np.repeat(1 + ulp * fraction, 2**bits).astype(np.float32)
    random = np.tile(np.arange(2**bits), 2**discarded)
    got = ns.cast(x, name, rounding="sr", sr=variant, random_bits=bits, random=random)
    assert np.mean((got.astype(np.float64) - x) / ulp) == bias


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("name", "low", "discarded"),
    [
        ("float8_e4m3fn", 1.0, 5),
        ("float8_e4m3fn", -1.875, 5),  # up to the next binade
        ("float8_e4m3fn", 3 * 2.0**-9, 5),  # subnormal
        ("float8_e4m3fn", 416.0, 5),  # up to the maximum
        ("float8_e5m2", -(2.0**-16), 6),
        ("float4_e2m1fn", 0.0, 5),
        ("float16", 1.0, 6),
        ("int8", -3.0, 5),
        ("q3.4", 0.0625, 5),
        ("posit8_es1", 0.25, 5),
    ],
)
def test_mean_and_variance_of_full_stochastic_rounding(name, low, discarded, variant):
    """E[error] = 0 and var = u^2 f (1 - f): all fractions of D bits with all D-bit integers."""
    values = np.unique(ns.get_format(name).values())
    values = values[np.isfinite(values)]
    at = int(np.flatnonzero(values == low)[0])
    near, far = values[at], values[at - 1 if low < 0 else at + 1]
    draws = 1 << discarded
    fraction = np.arange(draws) / draws
    x = np.repeat(near + fraction * (far - near), draws)
    random = np.tile(np.arange(draws, dtype=np.uint64), draws)
    wide = random << np.uint64(64 - discarded)  # all 64 bits: those below the fraction are idle
    ways = [{"random_bits": discarded, "random": random}, {"random": wide}]
    ways.append({"random": wide | np.uint64((1 << (64 - discarded)) - 1)})
    step = abs(Fraction(float(far)) - Fraction(float(near)))
    for options in ways:
        got = ns.cast(x, name, rounding="sr", sr=variant, **options)
        errors = [Fraction(float(g)) - Fraction(float(v)) for g, v in zip(got, x, strict=True)]
        for i in range(draws):
            some, f = errors[i * draws : (i + 1) * draws], Fraction(i, draws)
            assert sum(some) == 0
            assert sum(e * e for e in some) / draws == step**2 * f * (1 - f)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float16", "float8_e5m2", "float4_e2m1fn"])
def test_half_the_smallest_subnormal_goes_both_ways(name):
    smallest = ns.get_format(name).min_subnormal
    random = np.arange(256)
    for sign in (1, -1):
        x = np.full(256, sign * smallest / 2, np.float32)
        got = ns.cast(x, name, rounding="sr", random_bits=8, random=random)
        assert np.sum(got == 0) == 128
        assert np.sum(got == sign * smallest) == 128


@pytest.mark.parametrize("bits", [None, 3, 16])
@pytest.mark.parametrize("name", ["float8_e4m3fn", "int8", "bfloat16"])
def test_the_stream_does_not_depend_on_slicing(name, bits):
    rng = np.random.default_rng(7)
    x = (rng.standard_normal(100_003) * 30).astype(np.float32)
    options = {"rounding": "sr", "random_bits": bits, "seed": 11}
    whole = ns.encode(x, name, **options)
    assert np.array_equal(ns.encode(x, name, **options), whole)
    for start, stop in ((0, 1), (1, 2), (12345, 67890), (99_999, 100_003), (8192, 16384)):
        part = ns.encode(x[start:stop], name, offset=start, **options)
        assert np.array_equal(part, whole[start:stop])
    shifted = ns.encode(x, name, rounding="sr", random_bits=bits, seed=11, offset=1000)
    again = ns.encode(x[500:], name, rounding="sr", random_bits=bits, seed=11, offset=1500)
    assert np.array_equal(shifted[500:], again)
    assert not np.array_equal(shifted, whole)
    other = ns.encode(x, name, rounding="sr", random_bits=bits, seed=12)
    assert np.mean(other != whole) > 0.1
    square = x[:100_000].reshape(250, 400)
    want = whole[:100_000].reshape(250, 400)
    assert np.array_equal(ns.encode(square, name, **options), want)
    assert np.array_equal(ns.encode(np.asfortranarray(square), name, **options), want)
    padded = np.repeat(x, 2)[::2]
    assert np.array_equal(ns.encode(padded, name, **options), whole)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float16", "int8", "q3.4"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stochastic_is_unbiased_and_takes_a_neighbour(name, dtype):
    for x in (1.037, -2.71, 0.3, 2.0**-12 * 1.3, 1.0):
        value = np.array([x], dtype)
        n = 20_000
        got = ns.cast(np.repeat(value, n), name, rounding="sr", seed=3).astype(np.float64)
        down = float(ns.cast(value, name, rounding="rdn")[0])
        up = float(ns.cast(value, name, rounding="rup")[0])
        assert set(np.unique(got)) <= {down, up}
        if up == down:
            continue
        p = (float(value[0]) - down) / (up - down)
        share = np.mean(got == up)
        assert abs(share - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-12


def test_neighbouring_elements_and_seeds_are_independent():
    """Bit for bit Philox's words, whose independence is published; and no mix-up in how they serve.

    Shares of fair and independent draws lie within five standard deviations of one half,
    5 / (2 sqrt(n)) = 0.0177; a stream that repeats a draw or shares it with another seed has 1.
    """
    n = 20_000
    x = np.full(n, 1 + 1 / 16, np.float32)  # half way in E4M3: the upper bit of a draw decides
    draws = [ns.encode(x, "float8_e4m3fn", rounding="sr", seed=s) & 1 for s in range(4)]
    bound = 5 / (2 * np.sqrt(n - 1))
    for i, a in enumerate(draws):
        words = np.array([philox(block, 0, i) for block in range(n // 2)], np.uint32)
        np.testing.assert_array_equal(a, words.reshape(-1) >> 31)
        assert abs(np.mean(a) - 0.5) < bound
        assert abs(np.mean(a[1:] == a[:-1]) - 0.5) < bound
        for b in draws[i + 1 :]:
            assert abs(np.mean(a == b) - 0.5) < bound
            assert abs(np.mean(a[1:] == b[:-1]) - 0.5) < bound


@pytest.mark.parametrize(
    "options",
    [
        {"random_bits": 3, "random": np.array([0, 1, 8])},
        {"random_bits": 3, "random": np.array([0, 1, -1])},
        {"random_bits": 3, "random": np.array([0, 1])},
        {"random_bits": 3, "random": np.array([0.0, 1.5, 2.0])},
        {"random_bits": 0},
        {"random_bits": -1},
        {"random_bits": 2.5},
        {"random_bits": 1000},
        {"seed": 1.5},
        {"offset": -1},
    ],
    ids=str,
)
def test_wrong_stochastic_arguments_raise(options):
    with pytest.raises(ns.NumsimError):
        ns.encode(np.ones(3, np.float32), "float8_e4m3fn", rounding="sr", **options)


@pytest.mark.parametrize("options", [{"random": np.array([1, 2, 3])}, {"random_bits": 3}], ids=str)
def test_random_arguments_without_sr_are_not_ignored(options):
    with pytest.raises(ns.NumsimError, match="sr"):
        ns.encode(np.ones(3, np.float32), "float8_e4m3fn", **options)
