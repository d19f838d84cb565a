"""Formats and casts in words; the commands that print them."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.explain import bit_string, explain_cast, explain_format, parse_number, value_rows
from numsim.formats import STOCHASTIC, get_stochastic
from numsim.number_line import draw_number_line, number_line
from numsim.quant import QUANTS
from numsim.shift_register import TAPS, lfsr

PARSED = ("q3.4", "uq0.8", "float_e5m6", "p3109_k8p4se", "p3109_k8p1uf", "posit8_es2")


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=True)
    return result.exit_code, result.output, result.exception


@pytest.mark.parametrize("name", [*ns.list_formats(), *PARSED])
def test_every_format_is_explained(name):
    text = explain_format(name)
    f = ns.get_format(name)
    assert text.startswith(f"{f.name}: {f.bits}-bit")
    assert f.source in text
    limits = [line.split()[2:] for line in text.splitlines() if " finite  " in line][:2]
    assert limits[0] == [repr(f.max).removesuffix(".0")]  # all of its digits
    assert limits[1] == [repr(f.min).removesuffix(".0")]


def test_e4m3_names_its_relatives_and_limits():
    text = explain_format("e4m3")
    for part in ("2**-9", "448", "bias 8", "float8_e5m2", "18", "253 finite in 256"):
        assert part in text, part


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float16", "int8", "q3.4", "uq0.8", "nf4"])
def test_bits_join_to_the_code(name):
    f = ns.get_format(name)
    for code in (0, 1, (1 << f.bits) - 1, 1 << (f.bits - 1)):
        assert int(bit_string(f, code).replace(" ", ""), 2) == code


def test_value_rows_are_the_values():
    rows = value_rows("float8_e5m2")
    want = ns.get_format("float8_e5m2").values()
    assert np.array_equal([v for _, _, v in rows], want, equal_nan=True)
    assert rows[0x7C][1] == "0 11111 00"
    with pytest.raises(ns.NumsimError, match="16 bits"):
        value_rows("tfloat32")


@pytest.mark.parametrize("rounding", ["rne", "rna", "rtz", "rup", "rdn", "rto"])
@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float4_e2m1fn", "int8", "q3.4", "bfloat16", "p3109_k8p1se"]
)
def test_the_decision_is_what_encode_does(name, rounding):
    f = ns.get_format(name)
    rng = np.random.default_rng(3)
    inputs = np.concatenate([rng.uniform(-5, 5, 25), np.arange(-12, 13) / 4]) * min(f.max, 7) / 6
    for x in inputs.tolist():
        text = explain_cast(x, name, rounding=rounding)
        result = ns.cast(x, name, rounding=rounding).item()
        assert text.splitlines()[-1] == f"  value         {result!r}"
        if "quantum" in text:
            kept = int(text.split(" quanta")[0].rsplit("= ", 1)[1])
            away = kept + ("one more" in text)
            exponent = int(text.split("quantum       2**")[1].split(":")[0])
            assert abs(result) == away * 2.0**exponent


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e8m0fnu", "nf4", "int8"])
@pytest.mark.parametrize("x", [0.0, -0.0, np.inf, -np.inf, 1e300, 5e-324, 3.0])
def test_special_values_are_explained(name, x):
    assert explain_cast(x, name).count("\n") >= 3
    assert "stochastic" in explain_cast(x, name, rounding="sr")


def test_cast_refuses_what_encode_refuses():
    with pytest.raises(ns.NumsimError, match="NaN"):
        explain_cast(float("nan"), "int8")


# --- the command line


def test_formats_command(tmp_path):
    code, text, _ = run("formats")
    assert code == 0
    assert "float8_e4m3fn" in text
    code, text, _ = run("formats", "e2m1")
    assert code == 0
    assert "0 11 1" in text
    image = tmp_path / "fp8.png"
    code, text, _ = run("formats", "e4m3", "-o", str(image))
    assert code == 0
    assert image.read_bytes()[:4] == b"\x89PNG"


def test_formats_fit_80_columns_with_every_name():
    lines = run("formats")[1].splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for name in [*ns.list_formats(), *QUANTS]:
        kind = name.rstrip("0123456789")
        shown = {"int": "int1 to int32 ", "uint": "uint1 to uint16 "}.get(kind, f"{name} ")
        assert sum(line.startswith(shown) for line in lines) == 1, name
    assert re.search(r"^int1 to int32 +n +n-1 +0 +2\*\*\(n-1\)-1 +1$", text, re.MULTILINE)
    assert re.search(r"^nvfp4 +16 +float4_e2m1fn +float8_e4m3fn +amax$", text, re.MULTILINE)
    assert all(line == line.rstrip() for line in lines)


def test_formats_match_by_any_part_of_the_name():
    text = run("formats", "fp8")[1]
    shown = [line.split()[0] for line in text.splitlines()]
    every = [name for name in ns.list_formats() if "fp8" in name or "float8" in name]
    assert shown == ["name", *every, "recipe", "mxfp8_e4m3", "mxfp8_e5m2"]
    assert "int8" not in text
    text = run("formats", "e4m3")[1]  # a name itself: its values, then the others
    assert text.startswith("float8_e4m3fn: OCP")
    assert text.splitlines()[-1].endswith(
        "float8_e4m3, float8_e4m3fnuz, float8_e4m3b11fnuz, float8_ue4m3, mxfp8_e4m3"
    )
    assert run("formats", "E8M0F")[1].startswith("float8_e8m0fnu: OCP")
    assert isinstance(run("formats", "e4m3f", "-o", "x.png")[2], ns.NumsimError)  # which one?


@pytest.mark.parametrize(
    "arguments",
    [
        ("formats", "e4m33"),
        ("formats", "float32"),
        ("formats", "-o", "x.png"),
        ("formats", "e4m3", "-o", "x.gif"),
        ("formats", "e4m3", "-o", "/nowhere/at/all.png"),
        ("cast", "1", "--to", "e4m33"),
        ("cast", "1", "--to", "e4m3", "--rounding", "up"),
        ("cast", "nan", "--to", "int8"),
        ("explain", "fp9"),
        ("verify", "--formats", "nf4"),
        ("verify", "--formats", ","),
        ("verify", "--formats", ""),
        ("bench", "matmull"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_numsim_errors(arguments):
    _, _, error = run(*arguments)
    assert isinstance(error, ns.NumsimError)


def test_cast_and_explain_commands():
    code, text, _ = run("cast", "17", "--to", "e4m3")
    assert code == 0
    assert "a tie, 8 is even: stays" in text
    code, text, _ = run("cast", "--to", "int8", "--rounding", "rup", "--", "-2.5")
    assert code == 0
    assert text.endswith("-2.0\n")
    code, text, _ = run("explain", "bf16")
    assert code == 0
    assert "bfloat16: 16-bit float" in text


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_number_line(suffix, tmp_path):
    assert draw_number_line("posit8_es1", tmp_path / f"x.{suffix}").stat().st_size > 1000
    with pytest.raises(ns.NumsimError, match="16 bits"):
        draw_number_line("tfloat32", tmp_path / "x.png")


def test_a_name_in_the_number_line_is_no_mathematics(tmp_path):
    own = ns.Format(r"$\x$ a", "float", 6, 3, 3)  # an unknown symbol of TeX was an error
    assert draw_number_line(own, tmp_path / "x.png").stat().st_size > 1000


def test_the_number_line_has_ticks_at_its_ends_and_the_subnormal_border():
    line, scale = number_line(ns.get_format("e4m3")).axes
    assert {-448, 0, 448} <= set(line.get_xticks())
    marked = {*scale.get_xticks(minor=True), *scale.get_xticks()}
    assert marked == {2.0**e for e in range(-9, 9)}
    assert 2.0**-6 in scale.get_xticks()
    assert [list(v.get_xdata()) for v in scale.lines] == [[2.0**-6] * 2]
    assert "subnormal, below 2^-6" in scale.get_xlabel()
    for name in ("int8", "nf4", "posit8_es1", "e8m0", "float_e8m0"):  # none is subnormal
        _, scale = number_line(ns.get_format(name)).axes
        assert not scale.lines
        assert "subnormal" not in scale.get_xlabel()


@pytest.mark.parametrize("kind", ["pipe", "folder", "zero"])
def test_a_number_line_goes_to_a_file_only(kind, tmp_path):
    path = tmp_path / "x.png"
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir,
     "zero": lambda: path.symlink_to("/dev/zero")}[kind]()  # fmt: skip
    with pytest.raises(ns.NumsimError, match="is no file"):
        draw_number_line("e4m3", path)


def test_options_are_named_as_they_are_typed():
    """No message of the command line names a parameter of a Python function."""
    for arguments, words in (
        (("nan", "--to", "int8"), "give --nan max or --nan zero"),
        (("nan", "--to", "e4m3", "--nan", "max"), "--nan max is for formats without NaN"),
        (("1", "--to", "int8", "--nan", "x"), "--nan is one of canonical"),
        (("1", "--to", "int8", "--rounding", "up"), "--rounding is one of rne"),
        (("1", "--to", "e4m3", "--overflow", "wrap"), "--overflow wrap is for integers"),
        (("1", "--to", "e4m3", "--random-bits", "3"), "--random-bits belongs to --rounding sr"),
        (("1", "--to", "e4m3", "--seed", "3"), "set --rounding sr, or leave --seed out"),
        (
            ("1", "--to", "e4m3", "--rounding", "sr", "--random-bits", "99"),
            "--random-bits is an integer from 1 to 32",
        ),
        (
            (
                "1",
                "--to",
                "e4m3",
                "--rounding",
                "sr",
                "--sr",
                "nvidia.cvt.rs",
                "--random-bits",
                "3",
            ),
            "or use --sr truncate",
        ),
        (("1", "--to", "nvfp4", "--rounding", "sr", "--offset", "-1"), "--offset is an integer"),
    ):
        error = run("cast", *arguments)[2]
        assert isinstance(error, ns.NumsimError), arguments
        assert words in str(error), str(error)
        assert not re.search(r"\w='", str(error)), str(error)


# --- stochastic rounding of hardware, and shift registers


@pytest.mark.parametrize("name", STOCHASTIC)
def test_hardware_is_its_bits_and_variant(name):
    unit = get_stochastic(name)
    x = np.random.default_rng(5).standard_normal(3000).astype(np.float32)
    for fmt in unit.formats:
        with pytest.warns(ns.UnvalidatedWarning, match=name):
            got = ns.encode(x, fmt, rounding="sr", sr=name, seed=4)
        bits = unit.bits_for(fmt)
        want = ns.encode(x, fmt, rounding="sr", sr=unit.variant, random_bits=bits, seed=4)
        assert np.array_equal(got, want)
    assert unit.source
    assert unit.note


@pytest.mark.parametrize(
    ("fmt", "options", "word"),
    [
        ("int8", {"sr": "amd.cvt_sr"}, "float8_e4m3fn"),
        ("e4m3", {"sr": "amd.cvt_sr", "random_bits": 3}, "20"),
        ("e4m3", {"sr": "amd.cvt_sr", "rounding": "rne"}, "rounding='sr'"),
        ("e4m3", {"sr": "amd.cvt"}, "amd.cvt_sr"),
    ],
)
def test_hardware_refuses(fmt, options, word):
    with pytest.raises(ns.NumsimError, match=word):
        ns.encode([1.0], fmt, **{"rounding": "sr", **options})


def test_unknown_hardware():
    with pytest.raises(ns.NumsimError, match=r"nvidia\.cvt\.rs"):
        get_stochastic("nvidia.cvt")


@pytest.mark.parametrize("width", [8, 13, 16, pytest.param(24, marks=pytest.mark.exhaustive)])
def test_registers_have_the_full_period(width):
    period = (1 << width) - 1
    states = lfsr(period + 1, width=width, steps=1)
    assert states[0] == states[period]
    seen = np.zeros(1 << width, bool)
    seen[states] = True
    assert int(seen.sum()) == period
    assert not seen[0]


@pytest.mark.exhaustive
def test_the_32_bit_register_has_the_full_period():
    state, total = 1, 0
    for _ in range(255 * 257):  # 2**32 - 1 = 65535 * 65537
        state = int(lfsr(1, width=32, seed=state, steps=65537)[0])
        total += 65537
        assert state != 1 or total == (1 << 32) - 1
    assert state == 1


@pytest.mark.parametrize(
    "options",
    [{"width": 12}, {"seed": 0}, {"seed": 1 << 16}, {"random_bits": 0}, {"random_bits": 17},
     {"steps": 0}, {"random_bits": True}, {"width": [16]}, {"width": 16.0}, {"width": True},
     {"count": 1 << 41}, {"count": 1 << 40, "width": 32}, {"count": 2.0}, {"seed": [1]}],
    ids=str,
)  # fmt: skip
def test_wrong_registers(options):
    with pytest.raises(ns.NumsimError, match="lfsr"):
        lfsr(**{"count": 3, **options})


def test_a_register_goes_on_over_blocks():
    assert ns.lfsr is lfsr
    whole = lfsr(40_000, width=32, steps=3)
    assert np.array_equal(whole[20_000:], lfsr(20_000, width=32, steps=3, seed=int(whole[19_999])))


def test_a_register_drives_encode():
    x = np.full(65535, 1 + 1 / 32, np.float32)
    codes = ns.encode(x, "e4m3", rounding="sr", random_bits=16, random=lfsr(x.size, steps=1))
    # over a whole period every number but 0 is drawn once: 65,536 / 4 = 16,384 carry
    assert int((codes == 0x39).sum()) == 16384
    assert sorted(TAPS) == [8, 13, 16, 24, 32]


# --- overflow in words, numbers in words


@pytest.mark.parametrize(
    ("x", "name", "options", "words"),
    [
        (450.0, "e4m3", {}, None),
        (464.0, "e4m3", {}, None),
        (465.0, "e4m3", {}, "magnitude is 448"),
        (464.0, "e4m3", {"rounding": "rup"}, "magnitude is 448"),
        (464.0, "e4m3", {"rounding": "sr"}, None),
        (464.0, "e4m3", {"rounding": "sr", "offset": 1}, "magnitude is 448"),
        (300.0, "int8", {"overflow": "wrap"}, "the residue is 44"),
        (-3.0, "uint8", {"overflow": "wrap"}, "the residue is 253"),
        (-3.0, "uint8", {}, "no negative values"),
        (-0.25, "uint8", {}, None),
    ],
    ids=str,
)
def test_overflow_is_said_where_it_happens(x, name, options, words):
    lines = [s for s in explain_cast(x, name, **options).splitlines() if "  overflow  " in s]
    assert len(lines) == (words is not None)
    assert not lines or words in lines[0]


@pytest.mark.parametrize("name", ["nf4", "posit8_es2", "e8m0", "uint8", "p3109_k8p4ue"])
@pytest.mark.parametrize("x", [0.3, -3.0, 1e30])
def test_numbers_are_plain(name, x):
    text = explain_cast(x, name)
    assert "np." not in text
    assert "is -0" not in text


def test_cast_command_takes_negative_numbers():
    code, text, _ = run("cast", "-0.3", "--to", "e4m3")
    assert code == 0
    assert text.endswith("-0.3125\n")
    assert run("cast", "-inf", "--to", "e4m3")[0] == 0
    assert run("cast", "-1", "--two", "e4m3")[0] == 2


@pytest.mark.parametrize(
    ("x", "name", "options", "words"),
    [
        (0.0, "e8m0", {}, "no zero: saturates to 5.87"),
        (0.0, "e8m0", {"overflow": "special"}, "no zero: special gives NaN"),
        (-3.0, "e8m0", {}, "no negative values: saturates to 5.87"),
        (6.0, "e8m0", {}, "8.0: a tie, ties go up"),
        (6.0, "e8m0", {"rounding": "rto"}, "4.0: inexact, its code is odd"),
        (2.0**-127 * 1.1, "e8m0", {}, "two smallest values rounds up, as in ml_dtypes"),
        (2.0**-127 * 1.1, "e8m0", {"rounding": "rtz"}, "inexact, toward zero"),
        (1e-40, "e8m0", {}, "below the lowest value"),
        (3e38, "e8m0", {"overflow": "special"}, "special gives NaN"),
        (np.inf, "e4m3", {}, "saturates to 448.0"),
        (np.inf, "e4m3", {"overflow": "special"}, "special gives NaN, the format has no Inf"),
        (-np.inf, "e5m2", {"overflow": "special"}, "Inf is kept"),
        (-np.inf, "uint8", {}, "no negative values: saturates to 0.0"),
        (1e30, "e4m3", {"overflow": "special"}, "special gives NaN, the format has no Inf"),
        (-1e30, "e5m2", {"overflow": "special"}, "special gives -Inf"),
        (1e30, "e5m2", {"overflow": "special", "rounding": "rtz"}, "toward zero stops at the"),
        (1e30, "e2m1", {"overflow": "special"}, "neither Inf nor NaN"),
        (1e30, "posit8_es1", {"overflow": "special"}, "saturates to 4096.0, special too"),
        (0.3, "posit8_es1", {}, "0.296875: the nearer"),
        (0.3046875, "posit8_es1", {}, "0.3125: a tie, its code is even"),
        (0.25, "posit8_es1", {}, "exact: stays"),
        (0.02, "nf4", {"rounding": "sr", "random_bits": 4}, "probability 0.25 (4 of 16"),
        (-0.02, "nf4", {"rounding": "rup"}, "0.0: inexact, toward +infinity"),
        (1 + 5 / 64, "e4m3", {"rounding": "sr", "random_bits": 2}, "probability 0.5 (2 of 4"),
        (1 + 5 / 64, "e4m3", {"rounding": "sr", "random_bits": 2, "sr": "rne_first"}, "(2 of 4"),
        (1 + 5 / 64, "e4m3", {"rounding": "sr", "random_bits": 2, "sr": "half_offset"}, "(3 of 4"),
        (-np.nan, "e4m3", {}, "NaN is kept with its sign"),
        (-np.nan, "e4m3", {"nan": "canonical"}, "the one positive NaN"),
        (-np.nan, "e4m3fnuz", {}, "NaN is kept; the format has one, without a sign"),
        (np.nan, "e2m1", {"nan": "max"}, "nan='max' gives 6.0"),
        (-0.0, "int8", {}, "the sign is lost"),
        (2**53 + 1, "float32", {"rounding": "rup"}, "one more, 8388609"),
    ],
    ids=str,
)
def test_every_decision_is_told(x, name, options, words):
    text = explain_cast(x, name, **options)
    assert words in text, text
    want = ns.cast(x, name, **options).item()
    assert text.splitlines()[-1] == f"  value         {want!r}"
    if options.get("nan") is None and x != x and x < 0:
        assert "-nan" in text


@pytest.mark.parametrize("rounding", ["rne", "rna", "rtz", "rup", "rdn", "rto"])
@pytest.mark.parametrize("name", ["e8m0", "nf4", "posit8_es1", "posit6_es0"])
def test_the_decision_between_neighbours_is_what_encode_does(name, rounding):
    values = np.unique(ns.get_format(name).values())
    values = values[np.isfinite(values)]
    middles = (values[1:] + values[:-1]) / 2
    for x in [*(values[1:-1] * 1.01), *middles, np.nextafter(middles, 0)[3]]:
        text = explain_cast(float(x), name, rounding=rounding)
        decision = text.split("decision      ")[1].split(":")[0].split("\n")[0]
        if decision not in ("exact", "below the lowest value, 5.877471754111438e-39"):
            assert float(decision) == ns.cast(float(x), name, rounding=rounding).item()


@pytest.mark.parametrize(
    ("text", "value"),
    [("17", 17), ("0x1F", 31), ("-0x10", -16), ("9007199254740993", 2**53 + 1), ("1e3", 1000.0),
     ("0x1.8p1", 3.0), ("inf", np.inf), ("007", 7.0), ("1_0", 10)],
)  # fmt: skip
def test_numbers_of_the_command_line(text, value):
    got = parse_number(text)
    assert got == value
    assert type(got) is type(value)


def test_the_command_keeps_integers_and_signs():
    code, text, _ = run("cast", "0x20000000000001", "--to", "float32", "--rounding", "rup")
    assert (code, text.splitlines()[-1]) == (0, "  value         9007200328482816.0")
    assert run("cast", "18446744073709551615", "--to", "uint8", "--overflow", "wrap")[1].endswith(
        "= 11111111\n  value         255.0\n"
    )
    assert "0xff = 1 1111 111" in run("cast", "-nan", "--to", "e4m3")[1]
    assert "-0.0" in run("cast", "-0", "--to", "e4m3")[1]
    assert "0x7f = 0 1111 111" in run("cast", "-nan", "--to", "e4m3", "--nan", "canonical")[1]
    options = ("--rounding", "sr", "--random-bits", "3", "--sr", "rne_first", "--seed", "4")
    assert "of 8 random integers" in run("cast", "1.1", "--to", "e4m3", *options)[1]
    for wrong in (("abc",), ("1", "--seed", "3"), ("1e400",), ("9" * 400,), ("1", "--sr", "no")):
        assert isinstance(run("cast", *wrong, "--to", "e4m3")[2], ns.NumsimError)
    code, text, _ = run("formats", "nf4")
    assert "0.07958029955625534" in text


@pytest.mark.parametrize(
    "value", ["abc", None, 10**400, -(2**63) - 1, np.ones(3), np.ones(1), [1.0], 1j, True], ids=repr
)
def test_values_that_are_not_one_number(value):
    with pytest.raises(ns.NumsimError, match="explain_cast"):
        explain_cast(value, "e4m3")


@pytest.mark.parametrize("code", ["abc", None, 1.0, np.ones(3), 10**400, -1, 256, True], ids=repr)
def test_codes_that_are_not_one_code(code):
    with pytest.raises(ns.NumsimError, match="0 to 255"):
        bit_string("e4m3", code)


@pytest.mark.parametrize("path", [None, 3, "a\0.png", np.ones(2)], ids=repr)
def test_number_lines_that_have_no_file(path):
    with pytest.raises(ns.NumsimError, match="number line"):
        draw_number_line("e4m3", path)
    with pytest.raises(ns.NumsimError, match="a format is"):
        draw_number_line(np.ones(2), "x.png")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("posit8_es1", ["always saturates, special too", "posit8_es0", "posit16_es1", "positive"]),
        ("nf4", ["smallest positive", "int4", "float4_e2m1fn"]),
        ("float_e1m6", ["no normal numbers", "multiple of 2**-5", "float_e2m5"]),
        ("e4m3", ["every bit but the sign set, 2 codes", "2**-3 of normal numbers"]),
        ("e4m3fnuz", ["one NaN: the code of -0"]),
        ("e8m0", ["one NaN: every bit set", "none: 0 and negative values"]),
        ("float32", ["bfloat16", "tfloat32"]),
        ("tfloat32", ["float16", "float32"]),
        ("int8", ["uint8", "int4", "int16", "q0.7"]),
        ("uint8", ["int8", "uq0.8"]),
        ("q3.4", ["uq4.4", "q2.5", "q4.3", "int8"]),
        ("uq0.8", ["uq1.7", "uint8"]),
        ("p3109_k8p4se", ["p3109_k8p4sf", "p3109_k8p4ue", "p3109_k8p3se", "p3109_k8p5se"]),
        ("float_e4m3", ["float_e5m2", "float_e3m4", "float8_e4m3fn"]),
    ],
)
def test_what_is_said_of_a_format(name, words):
    text = explain_format(name)
    for word in words:
        assert word in text, text
    if name in ("nf4", "posit8_es1"):
        assert "smallest normal" not in text
