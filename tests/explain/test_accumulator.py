"""Readings of an accumulator in words: each is a unit, and they differ."""

import re
import tomllib
from fractions import Fraction

import numpy as np
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.explain import accumulator_readings, explain_accumulator, is_accumulator


@pytest.mark.parametrize("bits", range(8, 24))
@pytest.mark.parametrize("words", ["truncation", "round to nearest", "floor", "round to odd", ""])
def test_every_reading_is_a_unit(bits, words):
    readings = accumulator_readings(f"{bits}-bit {words}")
    assert len(readings) == (3 if "odd" in words else 4)
    for reading in readings:
        reading.unit.check()
        assert str(bits) in reading.words
    fmt = ns.get_format(readings[0].unit.rules[0][1].acc_format)
    assert fmt.bits == bits
    assert ns.get_format(readings[-2].unit.rules[0][1].acc_format).bits == bits
    assert readings[-1].unit.rules[0][1].acc_bits == bits


def test_what_is_left_of_a_small_term_tells_them_apart():
    """Quanta under 512: 2**-4 of the float, 2**-13 aligned, 2**-11 of the fixed point."""
    text = explain_accumulator("22 bits with truncation")
    small = 77 * Fraction(1, 2**14)
    left = [Fraction(v) for v in re.findall(r"512 = (\S+)", text)]
    assert left == [small // Fraction(1, 2**n) / 2**n for n in (4, 13, 11)]


@pytest.mark.parametrize(
    ("words", "rounding", "overflow"),
    [
        ("truncated, saturating", "rtz", "saturate"), ("chopped", "rtz", "wrap"),
        ("rounded toward zero, wraps", "rtz", "wrap"), ("nearest, clamped", "rne", "saturate"),
        ("ties away", "rna", "wrap"), ("", "rne", "wrap"), ("rto", "rto", "wrap"),
    ],
)  # fmt: skip
def test_words(words, rounding, overflow):
    first, *_, last = (r.unit.rules[0][1] for r in accumulator_readings(f"16 bits {words}"))
    assert (first.rounding, last.overflow) == (rounding, overflow)
    assert ("names no rounding" in explain_accumulator(f"16 bits {words}")) == (not words)


def test_the_lines_are_toml():
    text = explain_accumulator("22 bits with truncation")
    head = 'name = "my.unit"\nmaturity = "definition"\nevidence = "e"\nsource = "s"\n'
    parts = re.split(r"\n  (?:or )?a? ?22", text)[1:]
    for part, reading in zip(parts, accumulator_readings("22 bits with truncation"), strict=True):
        lines = [x.strip() for x in part.splitlines()[1:] if "512" not in x and "own" not in x]
        unit = ns.Target.from_tables(tomllib.loads(head + "\n".join(lines)))
        assert unit.rules == reading.unit.rules
        kind = unit.rules[0][0]
        a = ns.quantize(np.ones((1, 4), np.float32), "int8" if kind == "integer" else "bfloat16")
        assert ns.matmul(a, a.T, target=unit)[0, 0] != 0


def test_the_command():
    done = CliRunner().invoke(app, ["explain", "22 bits with truncation"])
    assert done.stdout.strip() == explain_accumulator("22 bits with truncation")
    for wrong in ("40 bits", "3 bits", "22 bits or 24 bits"):
        error = CliRunner().invoke(app, ["explain", wrong]).exception
        assert isinstance(error, ns.NumsimError)
        assert "one width of 8 to 23 bits" in str(error)
    assert not is_accumulator("float8_e4m3fn")
