"""Every decimal that an explanation prints is the number: read back, it has the same bits."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from every_rule import every_rule, random_codes

from numsim.decimals import exact_text, short_text
from numsim.explain import list_lines
from numsim.formats import get_format, list_formats
from numsim.formats.lookup import describe
from numsim.targets.explain import explain_mma

pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")


def number(text):
    """The number that `exact_text` wrote: at most 17 digits are the shortest of a float64."""
    whole, _, power = text.partition(" * 2**")
    if power:
        return int(whole) * Fraction(2) ** int(power)
    digits = text.partition("e")[0].strip("-").replace(".", "").strip("0")
    return Fraction(text) if len(digits) > 17 else Fraction(float(text))


def test_text_is_the_number():
    rng = np.random.default_rng(0)
    for _ in range(500):
        numerator, shift = int(rng.integers(-(2**62), 2**62)), int(rng.integers(-80, 200))
        value = Fraction(numerator, 1) / Fraction(2) ** shift
        assert number(exact_text(value)) == value
        assert float(exact_text(float(value))) == float(value)
    for value in (np.finfo(np.float64).max, 5e-324, 2.0**-149, 1e16, 0.1):
        assert float(exact_text(value)) == value == float(exact_text(Fraction(value)))
    assert [exact_text(v) for v in (np.inf, -np.inf, -0.0)] == ["inf", "-inf", "-0"]
    assert exact_text(10**20) == "1" + "0" * 20


def test_limits_of_formats_are_printed_whole():
    parsed = ("q3.4", "q0.15", "float_e8m10", "posit16_es2", "int28", "float_e2m20")
    for name in (*list_formats(), *parsed):
        f = get_format(name)
        row = dict(zip(("name", "bits", "precision", "bias", "max", "smallest"),
                       list_lines([name], 80)[1].split(), strict=False))  # fmt: skip
        for text, value in ((row["max"], f.max), (row["smallest"], f.min_subnormal)):
            assert float(np.float32(text)) == value or float(text) == value, (name, text)
        said = describe(name).partition("max ")[2].partition(",")[0].rstrip(")")
        assert float(np.float32(said)) == f.max or float(said) == f.max, name
    assert short_text(float(np.nextafter(np.float32(1), np.float32(2)))) == "1.0000001"
    assert short_text(float(np.nextafter(1.0, 2.0))) == "1.0000000000000002"
    assert [short_text(v) for v in (-0.0, np.inf, 1e300)] == ["-0", "inf", "1e+300"]


def test_explained_accumulator_of_hopper_is_its_bits():
    """17.251220703125 was printed as 17.2512207031, which is no float32."""
    text = explain_mma("ideal.fp32", values=[(1.7251220703125, 10.0)], formats="float32")
    shown, bits = re.search(r"D = (\S+), (0x\w+)", text).groups()
    assert np.float32(shown).view(np.uint32) == int(bits, 16)
    assert len(shown) > 12


@pytest.mark.parametrize(("target", "fa", "fb", "out"), list(every_rule()))
def test_accumulators_of_every_rule_are_their_bits(target, fa, fb, out):
    rng = np.random.default_rng(3)
    a, b = (random_codes(f, (9,), rng, wild=False) for f in (fa, fb))
    pairs = list(zip(*(q.values().astype(float).tolist() for q in (a, b)), strict=True))
    text = explain_mma(target, values=pairs, formats=(fa, fb), out_format=out)
    found = re.findall(
        r"(?:accumulator|D =|parts added in order:) (\S+), (0x\w+)$", text, re.MULTILINE
    )
    assert len(found) > 1
    integers = "-> int32" in text
    for shown, bits in found:
        kind = {10: np.float32, 6: np.float16}[len(bits)]
        if integers:
            assert int(shown) & 0xFFFFFFFF == int(bits, 16)
        else:
            assert kind(shown).view(f"u{kind().itemsize}") == int(bits, 16)
            assert float(shown) == float(kind(shown))  # all digits that tell, not a near number
