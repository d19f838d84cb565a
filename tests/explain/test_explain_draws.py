"""The draw that decides a stochastic rounding, in words; zero where a table has none."""

from __future__ import annotations

import re

import numpy as np
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.explain import explain_cast

BITS = [(None, "truncate"), (1, "truncate"), (8, "half_offset"), (8, "rne_first"), (32, "truncate")]


@pytest.mark.parametrize(("bits", "variant"), BITS, ids=str)
@pytest.mark.parametrize("name", ["e4m3", "e2m1", "int8", "uq4.4", "nf4", "posit8_es1", "e8m0"])
def test_the_draw_is_that_of_encode(name, bits, variant):
    """The sum of fraction and draw carries where encode goes away from zero."""
    x = np.array([0.013, 0.3, 1.1, 1.3, 2.7, 5.9])
    options = {"rounding": "sr", "random_bits": bits, "sr": variant, "seed": 5}
    values = ns.cast(x, name, offset=40, **options)
    for i, value in enumerate(x.tolist()):
        text = explain_cast(value, name, offset=40 + i, **options)
        assert text.splitlines()[-1] == f"  value         {values[i].item()!r}"
        if "draw" not in text:
            assert "exact" in text or "beyond" in text
            continue
        assert f"Philox-2x32-7, seed 5, counter {40 + i}" in text
        r, width = re.search(r"R = (0x[0-9a-f]+) of (\d+) bits", text).groups()
        decided = ns.encode(
            value, name, rounding="sr", random_bits=bits, sr=variant,
            random=np.array(int(r, 16), np.uint64),
        )  # fmt: skip
        assert decided == ns.encode(value, name, offset=40 + i, **options)
        assert int(width) == (64 if bits is None else bits)
        scaled, addend, total, sign, whole = re.search(
            r"= (0x[0-9a-f]+) \+ (0x[0-9a-f]+) = (0x[0-9a-f]+) (<|>=) 2\*\*(\d+)", text
        ).groups()
        assert int(scaled, 16) + int(addend, 16) == int(total, 16)
        away = int(total, 16) >= 1 << int(whole)
        assert (sign == ">=") == away
        larger = ns.cast(value, name, rounding="rup").item()
        assert (values[i] == larger) == away


def test_nothing_is_drawn_where_nothing_is_rounded():
    for value in (1.0, 0.0, np.inf):
        assert "draw" not in explain_cast(value, "e4m3", rounding="sr")


def test_the_command_tells_the_draw():
    options = ("--rounding", "sr", "--random-bits", "8", "--seed", "3", "--offset", "7")
    text = CliRunner().invoke(app, ["cast", "1.1", "--to", "e4m3", *options]).output
    assert "of 8 bits: Philox-2x32-7, seed 3, counter 7" in text
    random_bits = explain_cast(1.1, "e4m3", rounding="sr", random_bits=np.int8(8), seed=3, offset=7)
    assert text == random_bits + "\n"


@pytest.mark.parametrize("rounding", ["rne", "rna", "rtz", "rup", "rdn", "rto", "sr"])
@pytest.mark.parametrize("x", [0.0, -0.0, 0])
@pytest.mark.parametrize(
    "table", [(1.0, 2.0, 4.0, -1.0), (1.0, -1.0, 4.0, 8.0), (1.0, 2.0, 3.0, 4.0)]
)
def test_zero_in_a_table_without_zero_is_rounded(table, x, rounding):
    f = ns.Format("t", "table", 2, 3, 0, table=table)
    text = explain_cast(x, f, rounding=rounding)
    assert "exact: stays" not in text
    assert "zero, nothing is rounded" not in text
    value = ns.cast(x, f, rounding=rounding).item()
    if min(table) > 0:
        assert "below the lowest value, 1.0: saturates to 1.0" in text
    else:
        assert f"decision      {value!r}: " in text


def test_numbers_at_the_ends_of_float64_are_explained():
    f = ns.Format("t", "table", 2, 3, 0, table=(-1.7e308, 1.7e308, 1.75e308, 1.79e308))
    assert "distances     1.7e+308 and 1.7e+308" in explain_cast(0.0, f)
    far, near = f"{8016673440035891} * 2**972", repr(1.7e308 - 1.5e308)  # beyond float64; in it
    assert f"distances     {far} and {near}" in explain_cast(1.5e308, f)
    scale = ns.Format("scale", "float", 3, 1, -1016, signed=False, zero=False)
    text = explain_cast(1.7e308, scale)
    assert "beyond the largest value" in text
    assert text.endswith(f"value         {2.0**1023!r}")
