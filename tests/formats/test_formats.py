"""Every attribute and every code of every format, against the specifications in oracle.py."""

from __future__ import annotations

import dataclasses
import math
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import oracle
import pytest

import numsim as ns
from numsim.formats import Format

ML_DTYPES = (
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3",
    "float8_e4m3fnuz",
    "float8_e4m3b11fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e3m4",
    "float8_e8m0fnu",
    "float6_e2m3fn",
    "float6_e3m2fn",
    "float4_e2m1fn",
)
P3109 = tuple(
    f"p3109_k{k}p{p}{signedness}{domain}"
    for k in range(3, 9)
    for p in range(1, k)
    for signedness in "su"
    for domain in "ef"
)
IEEE_LIKE = tuple(
    f"float_e{e}m{m}"
    for e, m in ((2, 1), (2, 3), (3, 2), (4, 5), (5, 3), (6, 9), (8, 1), (8, 5), (8, 12), (7, 23))
)
INTEGERS = tuple(f"int{n}" for n in range(2, 33)) + tuple(f"uint{n}" for n in range(2, 17))
FIXED = ("q3.4", "q0.7", "q7.8", "q1.2", "q4.0", "q15.16", "uq4.4", "uq0.8", "uq8.8", "uq2.3")
POSITS = ("posit8_es0", "posit8_es1", "posit8_es2", "posit16_es1", "posit16_es2", "posit6_es1")
FLOATS = tuple(oracle.NAMED) + P3109 + IEEE_LIKE
ALL = FLOATS + INTEGERS + FIXED + POSITS + ("nf4",)


def identical(got, want):
    """Equal values with equal signs of zero; NaN equals NaN."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    nan = np.isnan(got) & np.isnan(want)
    return nan | ((got == want) & (np.signbit(got) == np.signbit(want)))


def code_array(name, codes):
    """Codes in the dtype that the contract names."""
    f = oracle.spec(name)
    kind = "int" if isinstance(f, oracle.Fixed) and f.signed else "uint"
    width = 8 if f.bits <= 8 else 16 if f.bits <= 16 else 32
    return np.array(codes, f"{kind}{width}")


def oracle_values(name):
    return np.array([oracle.to_float(oracle.decode(name, c)) for c in oracle.codes(name)])


# --- attributes


@pytest.mark.parametrize("name", ALL)
def test_name_bits_and_source(name):
    fmt = ns.get_format(name)
    assert fmt.bits == oracle.spec(name).bits
    assert isinstance(fmt.source, str)
    assert fmt.source
    assert isinstance(fmt.name, str)
    assert ns.get_format(fmt.name) == fmt
    assert ns.get_format(fmt) is fmt or ns.get_format(fmt) == fmt


@pytest.mark.parametrize("name", [n for n in ALL if not n.startswith("float_e")])
def test_a_canonical_name_is_kept(name):
    assert ns.get_format(name).name == name


@pytest.mark.parametrize("name", FLOATS)
def test_float_attributes(name):
    fmt, f = ns.get_format(name), oracle.spec(name)
    largest = f.magnitude(f.top)
    emax = largest.numerator.bit_length() - largest.denominator.bit_length()
    assert fmt.precision == f.precision
    assert fmt.bias == f.bias
    assert fmt.signed is f.signed
    assert fmt.has_inf is f.has_inf
    assert fmt.has_nan is f.has_nan
    assert fmt.has_negative_zero is f.negative_zero
    assert fmt.emax == emax
    assert fmt.emin == (1 - f.bias if f.zero else -f.bias)
    assert Fraction(fmt.max) == largest
    assert Fraction(fmt.min_normal) == oracle.power_of_two(fmt.emin)
    assert fmt.has_subnormals is f.has_subnormals
    if f.has_subnormals:
        assert Fraction(fmt.min_subnormal) == f.magnitude(1)


@pytest.mark.parametrize("name", INTEGERS + FIXED)
def test_integer_and_fixed_point_attributes(name):
    fmt, f = ns.get_format(name), oracle.spec(name)
    assert fmt.signed is f.signed
    assert (fmt.has_inf, fmt.has_nan, fmt.has_negative_zero) == (False, False, False)
    assert Fraction(fmt.max) == Fraction(f.highest, 2**f.fraction)


def test_a_format_is_frozen_and_hashable():
    fmt = ns.get_format("float8_e4m3fn")
    assert hash(fmt) == hash(ns.get_format("float8_e4m3fn"))
    with pytest.raises(AttributeError):
        fmt.bits = 9


# --- every code


@pytest.mark.parametrize("name", [n for n in ALL if oracle.spec(n).bits <= 16])
def test_values_and_decode_of_every_code(name):
    want = oracle_values(name)
    values = ns.get_format(name).values()
    assert values.dtype == np.float64
    assert values.shape == want.shape
    assert identical(values, want).all()
    decoded = ns.decode(code_array(name, oracle.codes(name)), name)
    assert decoded.dtype == np.float32
    assert identical(decoded, want).all()


@pytest.mark.parametrize("name", ["float32", "tfloat32", "float_e8m12", "float_e7m23"])
def test_decode_of_wide_floats(name):
    f = oracle.spec(name)
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 1 << f.bits, 2000).tolist()
    codes += [0, 1, f.top, f.inf, f.inf + 1, (1 << (f.precision - 1)) - 1, 1 << (f.precision - 1)]
    codes += [c | f.sign_bit for c in codes]
    want = [oracle.to_float(oracle.decode(name, c)) for c in codes]
    got = ns.decode(code_array(name, codes), name)
    assert got.dtype == np.float32
    assert identical(got, want).all()


@pytest.mark.parametrize("name", ["int32", "int26", "q15.16"])
def test_decode_of_what_float32_cannot_hold(name):
    f = oracle.spec(name)
    rng = np.random.default_rng(2)
    codes = [*rng.integers(f.lowest, f.highest, 500).tolist(), f.lowest, f.highest, -1, 0]
    want = [oracle.to_float(oracle.decode(name, c)) for c in codes]
    got = ns.decode(code_array(name, codes), name)
    assert got.dtype == np.float64
    assert identical(got, want).all()


@pytest.mark.parametrize("name", ["float16", *ML_DTYPES])
def test_every_code_decodes_as_in_ml_dtypes(name):
    bits = ns.get_format(name).bits
    codes = np.arange(1 << bits, dtype=np.uint8 if bits <= 8 else np.uint16)
    with np.errstate(all="ignore"):
        dtype = np.float16 if name == "float16" else getattr(ml_dtypes, name)
        want = codes.view(dtype).astype(np.float32)
    got = ns.decode(codes, name)
    same_bits = got.view(np.uint32) == want.view(np.uint32)
    assert (same_bits | (np.isnan(got) & np.isnan(want))).all()


# --- published limits


@pytest.mark.parametrize(
    ("name", "bias", "largest", "min_normal", "min_subnormal"),
    [  # published.md 3.1
        ("float8_e4m3fn", 7, 448, 2.0**-6, 2.0**-9),
        ("float8_e5m2", 15, 57344, 2.0**-14, 2.0**-16),
        ("float6_e2m3fn", 1, 7.5, 1, 0.125),
        ("float6_e3m2fn", 3, 28, 0.25, 0.0625),
        ("float4_e2m1fn", 1, 6, 1, 0.5),
        ("float8_e8m0fnu", 127, 2.0**127, 2.0**-127, None),
        # hardware.md 4
        ("float8_e4m3fnuz", 8, 240, 2.0**-7, 2.0**-10),
        ("float8_e5m2fnuz", 16, 57344, 2.0**-15, 2.0**-17),
        ("float8_e4m3", 7, 240, 2.0**-6, 2.0**-9),
        # meta of convert_gfloat.npz
        ("p3109_k8p3se", 16, 49152, 2.0**-15, 2.0**-17),
        ("p3109_k8p4se", 8, 224, 2.0**-7, 2.0**-10),
        ("p3109_k8p5se", 4, 15, 2.0**-3, 2.0**-7),
        ("p3109_k8p4sf", 8, 240, 2.0**-7, 2.0**-10),
        ("p3109_k8p3sf", 16, 57344, 2.0**-15, 2.0**-17),
        ("p3109_k6p3se", 4, 12, 2.0**-3, 2.0**-5),
        ("p3109_k4p2sf", 2, 3, 0.5, 0.25),
        ("float16", 15, 65504, 2.0**-14, 2.0**-24),
        ("float32", 127, 2.0**128 - 2.0**104, 2.0**-126, 2.0**-149),
    ],
)
def test_published_limits(name, bias, largest, min_normal, min_subnormal):
    fmt = ns.get_format(name)
    assert (fmt.bias, fmt.max, fmt.min_normal) == (bias, largest, min_normal)
    if min_subnormal is not None:
        assert fmt.min_subnormal == min_subnormal


@pytest.mark.parametrize(
    ("name", "below_one", "above_one"),
    [
        ("float8_e4m3fn", 55, 70),
        ("float8_e5m2", 59, 63),
        ("float4_e2m1fn", 1, 5),
        ("float6_e2m3fn", 7, 23),
        ("float6_e3m2fn", 11, 19),
    ],
)
def test_published_counts_of_values(name, below_one, above_one):
    v = ns.get_format(name).values()
    v = v[np.isfinite(v)]
    assert np.sum((v > 0) & (v < 1)) == below_one
    assert np.sum(v > 1) == above_one


@pytest.mark.parametrize(("name", "binades"), [("float8_e4m3fn", 18), ("float8_e5m2", 32)])
def test_published_binades(name, binades):
    v = ns.get_format(name).values()
    v = v[np.isfinite(v) & (v > 0)]
    assert len({math.frexp(x)[1] for x in v}) == binades


def test_nf4_is_the_published_table():
    assert ns.get_format("nf4").values().tolist() == list(oracle.NF4)


# --- names


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("e4m3", "float8_e4m3fn"),
        ("fp8_e4m3", "float8_e4m3fn"),
        ("fp8_e5m2", "float8_e5m2"),
        ("bf16", "bfloat16"),
        ("fp16", "float16"),
        ("fp32", "float32"),
    ],
)
def test_aliases(alias, name):
    assert ns.get_format(alias).name == name
    assert ns.get_format(alias) == ns.get_format(name)


def test_list_formats():
    names = ns.list_formats()
    assert isinstance(names, tuple)
    assert len(set(names)) == len(names)
    assert {*oracle.NAMED, "int8", "int4", "uint8", "nf4"} <= set(names)
    for name in names:
        assert ns.get_format(name).name == name


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("float8_e4m3f", "float8_e4m3fn"),
        ("flaot16", "float16"),
        ("bfloat", "bfloat16"),
        ("float4_e2m2fn", "float4_e2m1fn"),
        ("nf5", "nf4"),
    ],
)
def test_a_misspelt_name_lists_near_names(wrong, near):
    with pytest.raises(ns.NumsimError, match=near) as caught:
        ns.get_format(wrong)
    assert wrong in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "float",
        "int0",
        "int33",
        "uint17",
        "int08",
        "q3",
        "q.4",
        "q30.30",
        "float_e9m3",
        "float_e4m24",
        "float_e0m3",
        "p3109_k17p3se",
        "p3109_k8p9se",
        "p3109_k8p0se",
        "p3109_k8p3xe",
        "p3109_k2p1se",
        "q" + "9" * 5000 + ".1",
        "float_e" + "9" * 5000 + "m1",
        "posit8_es" + "9" * 5000,
        "q\u0663.4",
        "posit8",
        "posit1_es1",
        "FLOAT 16",
        8,
        None,
    ],
)
def test_an_unknown_name_raises(wrong):
    with pytest.raises(ns.NumsimError):
        ns.get_format(wrong)


# --- codes outside the format


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("float4_e2m1fn", np.array([1, 2, 16], np.uint8)),
        ("float6_e2m3fn", np.array([1, 2, 64], np.uint8)),
        ("int4", np.array([1, 2, 8], np.int8)),
        ("int4", np.array([1, 2, -9], np.int8)),
        ("uint4", np.array([1, 2, 16], np.uint8)),
        ("tfloat32", np.array([1, 2, 1 << 19], np.uint32)),
        ("p3109_k6p3se", np.array([1, 2, 64], np.uint8)),
        ("nf4", np.array([1, 2, 16], np.uint8)),
    ],
)
def test_decode_refuses_codes_outside_the_format(name, codes):
    with pytest.raises(ns.NumsimError, match="2"):
        ns.decode(codes, name)


def test_decode_refuses_values():
    with pytest.raises(ns.NumsimError):
        ns.decode(np.array([1.0, 2.0]), "float8_e4m3fn")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4)])
def test_decode_keeps_the_shape(shape):
    codes = np.full(shape, 0x38, np.uint8)
    got = ns.decode(codes, "float8_e4m3fn")
    assert np.shape(got) == shape
    assert (np.asarray(got) == 1).all()


def test_decode_of_strided_and_foreign_order_codes():
    codes = np.arange(512, dtype=np.uint16).reshape(16, 32)
    want = np.arange(512, dtype=np.uint16).view(np.float16).astype(np.float32).reshape(16, 32)
    assert np.array_equal(ns.decode(np.asfortranarray(codes), "float16"), want)
    assert np.array_equal(ns.decode(codes.astype(">u2"), "float16"), want)
    assert np.array_equal(ns.decode(codes[::-2, ::3], "float16"), want[::-2, ::3])


# --- formats that users make, and copies


@pytest.mark.parametrize("bias", [300, -140])
def test_user_made_floats_beyond_float32(bias):
    fmt = Format("mine", "float", 8, 4, bias, nan="all_ones")
    codes = np.arange(1, 100, dtype=np.uint8)
    values = ns.decode(codes, fmt)
    assert values.dtype == np.float64
    assert np.array_equal(values, fmt.values()[1:100])
    assert np.array_equal(ns.encode(values, fmt), codes)
    assert Format("wide", "float", 32, 28, 7).value_dtype == np.float64


@pytest.mark.parametrize("name", ["posit8_es2", "nf4", "float8_e4m3fn", "q3.4"])
def test_a_format_survives_pickling(name):
    fmt = ns.get_format(name)
    assert pickle.loads(pickle.dumps(fmt)) is fmt
    mine = Format("float16", "float", 8, 4, 3)
    assert pickle.loads(pickle.dumps(mine)) == mine


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            ("m", "table", 4, 4, 0, True, "none", "none", True, (1.0, 2.0)),
            "2\\*\\*bits = 16 values",
        ),
        (("m", "float", 40, 33, 7), "bits is 1 to 32; got 40"),
        (("m", "float", -8, 4, 7), "bits is 1 to 32; got -8"),
        (("m", "float", "8", 4, 7), "bits is an int; got '8'"),
        (("m", "float", 8.0, 4, 7), "bits is an int"),
        (("m", "float", True, 4, 7), "bits is an int"),
        (("m", "float", 8, 12, 7), "precision is 1 to 7"),
        (("m", "float", 8, 0, 7), "precision is 1 to 7"),
        (("m", "flot", 8, 4, 7), "got 'flot'; did you mean float"),
        ((3, "float", 8, 4, 7), "name is a string"),
        (("m", "float", 8, 4, 7, 1), "signed is a bool"),
        (("m", "float", 8, 4, 7, True, "all_one"), "did you mean all_ones"),
        (("m", "float", 8, 4, 7, True, "none", "ieeee"), "did you mean ieee"),
        (("m", "float", 8, 4, 7, True, "ieee"), "goes with inf"),
        (("m", "float", 8, 4, 7, True, "none", "ieee"), "goes with nan"),
        (("m", "float", 8, 1, 7, True, "ieee", "ieee"), "precision of 2"),
        (("m", "float", 8, 4, 7, False, "minus_zero"), "takes a sign"),
        (("m", "float", 8, 4, 7, True, "none", "none", False), "zero=False"),
        (("m", "float", 2, 1, 1, True, "minus_zero", "top"), "finite and positive"),
        (("m", "float", 32, 2, 7), "range of float64"),
        (("m", "float", 8, 4, 1100), "range of float64"),
        (("m", "float", 8, 4, 7, True, "none", "none", True, (1.0,)), "kind='table'"),
        (("m", "integer", 8, 8, 0), "bits less the sign, 7"),
        (("m", "integer", 8, 7, 0, True, "all_ones"), "neither NaN nor Inf"),
        (("m", "integer", 8, 7, 2000), "range of float64"),
        (("m", "table", 1, 1, 0, True, "none", "none", True, (1.0, "2")), "tuple of Python floats"),
        (("m", "table", 1, 1, 0, True, "none", "none", True, [1.0, 2.0]), "tuple of Python floats"),
        (
            ("m", "table", 1, 1, 0, True, "none", "none", True, (1.0, math.inf)),
            "largest magnitudes",
        ),
        (("m", "table", 1, 1, 0, True, "none", "none", True, (1.0, math.nan)), "holds NaN"),
        (("m", "table", 1, 1, 0, True, "all_ones", "none", True, (1.0, 2.0)), "holds NaN"),
        (("m", "table", 1, 1, 0, True, "none", "none", True, (0.0, -1.0)), "positive"),
        (("m", "table", 17, 1, 0, True, "none", "none", True, (1.0,)), "16 bits"),
    ],
    ids=str,
)
def test_fields_that_make_no_format(fields, words):
    with pytest.raises(ns.NumsimError, match=words):
        Format(*fields)
    with pytest.raises(ns.NumsimError, match="bits"):
        dataclasses.replace(ns.get_format("float8_e4m3fn"), bits=99)


def test_a_table_of_ones_own():
    fmt = Format("mine", "table", 2, 2, 0, table=(0.0, 1.0, 4.0, -1.0))
    assert ns.cast([0.4, 2.6, 9, -0.6], fmt).tolist() == [0, 4, 4, -1]
    with pytest.raises(ns.NumsimError, match="0 to 3"):
        ns.decode([4], fmt)


def test_every_parsed_name_makes_a_format():
    for e in range(1, 9):
        for m in range(24):
            if e + m >= 2:
                ns.get_format(f"float_e{e}m{m}")
    for n in range(2, 17):
        for es in range(5):
            if (n - 2) << es <= 1000:
                ns.get_format(f"posit{n}_es{es}")
    for k in range(2, 9):
        for s in "su":
            for p in range(1, k + (s == "u")):
                for d in "ef":
                    if (k, s, d) != (2, "s", "e"):
                        ns.get_format(f"p3109_k{k}p{p}{s}{d}")
    for i in range(33):
        for f in range(33):
            if 2 <= i + f <= 31:
                ns.get_format(f"q{i}.{f}"), ns.get_format(f"uq{i}.{f}")


def test_p3109_formats_beyond_float64_are_refused_with_that_reason():
    with pytest.raises(ns.NumsimError, match=r"float64.*from P = 5 on a format of K = 16 fits"):
        ns.get_format("p3109_k16p4se")
    assert ns.get_format("p3109_k16p5se").max == 2.0**1023 * (2 - 2.0**-3)


def test_p3109_calls_policies_and_variants_by_its_own_names():
    x = np.array([-1.0, 1e9, 0.3])
    for theirs, ours in (("SatFinite", "saturate"), ("SatPropagate", "saturate_finite"),
                         ("SatNone", "special")):  # fmt: skip
        got = ns.encode(x, "p3109_k8p4ue", overflow=theirs)
        np.testing.assert_array_equal(got, ns.encode(x, "p3109_k8p4ue", overflow=ours))
    how = {"rounding": "sr", "random_bits": 3, "seed": 5}
    got = ns.encode(x, "p3109_k8p4se", sr="StochasticB", **how)
    np.testing.assert_array_equal(got, ns.encode(x, "p3109_k8p4se", sr="half_offset", **how))


def test_hifloat8_rounds_half_away_and_leaves_its_range_where_the_paper_says():
    tie, under, over = 2.0**-23, np.nextafter(2.0**-23, 0), 40960.0
    away = ns.cast([tie, under, np.nextafter(over, 0), over], "hifloat8", rounding="rna")
    np.testing.assert_array_equal(away, [2.0**-22, 0, 32768, 32768])
    special = ns.encode([-over, over, np.nan], "hifloat8", rounding="rna", overflow="special")
    np.testing.assert_array_equal(special, [0xEF, 0x6F, 0x80])
