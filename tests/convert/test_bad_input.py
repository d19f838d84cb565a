"""Every refusal of a conversion names the rule, what came, the first index and the remedy."""

from __future__ import annotations

import datetime
import warnings
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.convert import checked_codes
from numsim.explain import explain_cast

ENCODERS = (ns.encode, ns.cast)


def refused(call, *words):
    """The message of a NumsimError: one line with every word; a warning is an error too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ns.NumsimError) as caught:
            call()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


NO_NUMBERS = {
    "object": (np.array([[1, None]], object), ("object", "None at index (0, 1)", "astype")),
    "list": ([1.0, "x", None], ("'x' at index (1,)", "astype")),
    "ints": ([1, 2**70], ("1180591620717411303424 at index (1,)", "astype")),
    "fraction": ([Fraction(1, 3)], ("Fraction(1, 3) at index (0,)", "astype")),
    "0-d": (None, ("None at index ()", "astype")),
    "complex": (np.ones((2, 2), complex), ("complex128", "1+0j) at index (0, 0)", "x.real")),
    "string": ("1.5", ("<U3", "'1.5') at index ()", "reads numbers from text")),
    "bytes": ([b"1.5"], ("|S3", "at index (0,)", "reads numbers from text")),
    "bool": ([True], ("bool", "True", "at index (0,)", "x.astype(np.uint8)")),
    "date": (np.array(["2020-01-01"], "M8[D]"), ("datetime64[D]", "2020-01-01", "np.int64")),
    "time": (np.array([3], "m8[s]"), ("timedelta64[s]", "index (0,)", "np.int64")),
    "datetime": (datetime.datetime(2020, 1, 1), ("object", "2020, 1, 1", "astype")),
    "long": (np.longdouble([1]), ("index (0,)", "x.astype(np.float64)")),
    "empty": (np.array([], object), ("object", "astype")),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_inputs_that_are_no_numbers(kind):
    x, words = NO_NUMBERS[kind]
    if kind == "long" and np.dtype(np.longdouble) == np.float64:
        pytest.skip("long double is double here")
    for call in ENCODERS:
        refused(lambda call=call: call(x, "e4m3"), "inputs are float16", *words)
    refused(lambda: explain_cast(x, "e4m3"), "value is one int or float; got ", "pass float(x)")


@pytest.mark.parametrize(
    ("codes", "fmt", "words"),
    [
        ([1.0], "e4m3", ("codes are integers", "float64", "1.0) at index (0,)", "encode(x, fmt)")),
        (1.0, "e4m3", ("float64", "1.0) at index ()", "encode(x, fmt)")),
        ([[np.nan]], "e2m1", ("nan) at index (0, 0)", "encode(x, fmt)")),
        ([True], "e2m1", ("bool", "True", "index (0,)")),
        (["1"], "e2m1", ("<U1", "'1') at index (0,)")),
        ([1, None], "e2m1", ("object", "None at index (1,)")),
        ([1, 2**70], "float32", ("object", "1180591620717411303424 at index (1,)")),
        (np.array([], "U3"), "e2m1", ("<U3", "encode(x, fmt)")),
        (np.array([1], "M8[D]"), "e2m1", ("datetime64[D]", "index (0,)")),
        (np.ones(2, ml_dtypes.float8_e5m2), "e5m2", ("float8_e5m2", "x.view(np.uint8)")),
        (np.ones(2, ml_dtypes.bfloat16), "bf16", ("bfloat16", "x.view(np.uint16)")),
        (np.ones(2, ml_dtypes.int4), "int4", ("got int4", "x.astype(np.int8)")),
        ([[0, 16]], "e2m1", ("0 to 15", "1 of 2", "16 at index (0, 1)", "encode()")),
        (16, "e2m1", ("0 to 15", "16 at index ()", "encode()")),
        ([0, -1], "e2m1", ("0 to 15", "-1 at index (1,)", "encode()")),
        ([-9, 0], "int4", ("-8 to 7", "-9 at index (0,)", "encode()")),
        (np.array([1 << 32], np.uint64), "float32", ("4294967295", "index (0,)")),
    ],
    ids=str,
)
def test_codes_that_are_none(codes, fmt, words):
    refused(lambda: ns.decode(codes, fmt), "decode: codes ", *words)


def test_empty_lists_are_empty_arrays():
    for shape in ((0,), (0, 3)):
        x = np.zeros(shape)
        assert ns.encode(x.tolist() if shape == (0,) else x, "e4m3").shape == shape
        assert ns.cast(x, "e4m3").shape == shape
        assert ns.decode(x.tolist() if shape == (0,) else x, "e4m3").shape == shape


@pytest.mark.parametrize("name", ["e2m1", "int8", "q3.4", "nf4", "float_e4m0"])
def test_nan_where_there_is_none(name):
    f = ns.get_format(name).name
    for call in ENCODERS:
        words = (f"{f} has no NaN", "2 of 3", "index (0, 1)", "nan='max'")
        refused(lambda call=call: call([[1.0, np.nan, np.nan]], name), *words)
        refused(lambda call=call: call(np.float32(np.nan), name), "has no NaN", "index ()")
    refused(lambda: explain_cast(float("nan"), name), f"{f} has no NaN", "nan='max'")


@pytest.mark.parametrize("call", [*ENCODERS, explain_cast])
@pytest.mark.parametrize(
    ("fmt", "options", "words"),
    [
        ("e4m3", {"overflow": "wrap"}, ("integers and fixed point", "float8_e4m3fn", "saturate")),
        ("nf4", {"overflow": "wrap"}, ("integers and fixed point", "nf4", "saturate")),
        ("e4m3", {"random_bits": 0}, ("1 to 32", "got 0", "leave it out")),
        ("e4m3", {"random_bits": 40}, ("1 to 32", "got 40", "leave it out")),
        ("e4m3", {"random_bits": True}, ("1 to 32", "got True")),
        ("e4m3", {"random_bits": 8}, ("rounding='sr'", "leave random_bits out")),
        ("e4m3", {"rounding": "RNE"}, ("one of rne", "'RNE'", "did you mean rne")),
        ("e4m3", {"rounding": None}, ("one of rne", "got None")),
        ("e4m3", {"overflow": "sat"}, ("'sat'", "did you mean saturate")),
        ("e4m3", {"rounding": "sr", "sr": "trunc"}, ("'trunc'", "did you mean truncate")),
        ("e4m3", {"rounding": "sr", "seed": -1}, ("0 to 2**32 - 1", "got -1", "0 is usual")),
        ("e4m3", {"rounding": "sr", "offset": 1.5}, ("0 to 2**63 - 1", "got 1.5", "0 is usual")),
        ("e4m3", {"nan": "maxx"}, ("'maxx'", "did you mean max")),
        ("e4m4", {}, ("'e4m4'", "did you mean e4m3", "list_formats")),
        (None, {}, ("name or a Format", "None", "list_formats")),
        (float, {}, ("name or a Format", "float", "list_formats")),
    ],
    ids=str,
)
def test_wrong_words_and_numbers(call, fmt, options, words):
    if "rounding" not in options and options.get("random_bits", 8) != 8:
        options = {"rounding": "sr", **options}
    refused(lambda: call(1.0, fmt, **options), *words)


def test_infinities_have_no_residue():
    for call in ENCODERS:
        words = ("modulo 2**8", "1 of 2", "index (1,)", "use saturate")
        refused(lambda call=call: call([1, np.inf], "int8", overflow="wrap"), *words)


@pytest.mark.parametrize(
    ("random", "words"),
    [
        ([0, 1.5], ("one integer for each input", "0.0) at index (0,)", "rng.integers")),
        ([1], ("shape (2,)", "of shape (1,)", "rng.integers")),
        (["a", "b"], ("<U1", "'a') at index (0,)", "rng.integers")),
        ([1, 256], ("= 255", "256 at index (1,)", "mask")),
    ],
)
def test_random_integers_that_are_none(random, words):
    options = {"rounding": "sr", "random_bits": 8, "random": random}
    refused(lambda: ns.encode([1.0, 2.0], "e4m3", **options), "random", *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("1+2j", "--to", "e4m3"), ("'1+2j'", "such as 17")),
        (("True", "--to", "e4m3"), ("'True'", "such as 17")),
        (("nan", "--to", "e2m1"), ("has no NaN", "--nan max")),
        (("1", "--to", "e4m3", "--overflow", "wrap"), ("integers and fixed point",)),
        (("1", "--to", "e4m3", "--rounding", "sr", "--random-bits", "40"), ("got 40",)),
        (("1", "--to", "e4m4"), ("did you mean e4m3",)),
        ((str(2**65), "--to", "e4m3"), ("-2**63 to 2**64 - 1", "66 bits", "1e20")),
    ],
    ids=str,
)
def test_the_command_line(arguments, words):
    result = CliRunner().invoke(app, ["cast", *arguments])
    assert isinstance(result.exception, ns.NumsimError)
    for word in words:
        assert word in str(result.exception)


@pytest.mark.parametrize("fmt", ["float4_e2m1fn", "float6_e2m3fn", "uint3", "int4", "int12", "nf4"])
def test_codes_beyond_a_narrow_format_in_its_own_type(fmt):
    f = ns.get_format(fmt)
    high = 1 << f.bits - (f.kind == "integer" and f.signed)
    good = np.array([[0, high - 1]], f.code_dtype)
    assert checked_codes(good, f).tolist() == good.tolist()
    with pytest.raises(ns.NumsimError, match=rf"first is {high} at index \(0, 1\)"):
        checked_codes(good + good.dtype.type(1) * (good > 0), f)


class Kind(np.ndarray):
    """A kind of array of a user's own."""


@pytest.mark.parametrize("fmt", ["float8_e5m2", "int8", "bfloat16", "uint16", "float32"])
def test_codes_of_every_kind_of_array_that_has_no_others(fmt):
    f = ns.get_format(fmt)
    codes = np.array([[1, 2, 100]], f.code_dtype)
    frozen = codes.copy()
    frozen.flags.writeable = False
    for some in (
        codes, codes.astype(codes.dtype.newbyteorder()), frozen, codes.view(Kind),
        codes[:, ::-1].copy()[:, ::-1], codes.astype(np.int64),
    ):  # fmt: skip
        assert type(checked_codes(some, f)) is np.ndarray
        assert checked_codes(some, f).tolist() == codes.tolist()
        assert ns.decode(some, f).tolist() == ns.decode(codes.tolist(), f).tolist()
