"""Recipes of blocks in words, and the three commands that take them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.explain import explain_block, explain_cast, explain_recipe
from numsim.quant import QUANTS, SOURCES


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    return result.output, result.exception


@pytest.mark.parametrize("name", QUANTS)
def test_the_three_commands_agree(name):
    rule = QUANTS[name]
    title = f"{name}: blocks of {rule.block} {rule.format} under a {rule.scale_format} scale"
    told, _ = run("explain", name)
    cast, _ = run("cast", "1.5", "--to", name)
    shown, _ = run("formats", name)
    assert told.startswith(f"{title}, from {SOURCES[name]}")
    assert cast.startswith(f"1.5 to {title}")
    assert title.split() == shown.split(";")[0].split()
    for words in (str(rule.block), rule.format, rule.scale_format, rule.scale_rule):
        assert words in told
    assert all(other in told for other in QUANTS)
    bits = ns.quantize(np.ones((1 << 10, 1 << 12)), name).bits_per_value()
    assert float(re.search(r"bits per value +([0-9.]+)", told)[1]) == pytest.approx(bits, abs=0.01)


@pytest.mark.parametrize("rounding", ["rne", "rup", "sr"])
@pytest.mark.parametrize("name", QUANTS)
def test_a_block_is_what_quantize_stores(name, rounding):
    if name in ("if4", "hif4"):
        pytest.skip("they round to nearest only: test_blocks_of_two_kinds")
    rng = np.random.default_rng(3)
    for scale in (1e-30, 1.0, 3e20):
        x = (rng.standard_normal(9) * scale).tolist()
        how = {"seed": 3, "offset": 5} if rounding == "sr" else {}
        text = explain_block([*x, 0], name, rounding=rounding, **how)
        rule = replace(QUANTS[name], rounding=rounding)
        q = ns.quantize(np.array([*x, 0.0]), rule, **how)
        width = 2 + -(-q.fmt.bits // 4)
        mask = (1 << q.fmt.bits) - 1
        codes = re.findall(r"^  code +(0x[0-9a-f]+) =", text, re.MULTILINE)
        assert codes == [f"{c & mask:#0{width}x}" for c in q.codes.tolist()]
        assert f"code {q.scale_codes.item():#04x}, rule" in text
        results = re.findall(r"^  value .* = (\S+)$", text, re.MULTILINE)
        assert [float(v) for v in results] == q.dequantize().tolist()


def test_the_command_takes_a_block():
    text, _ = run("cast", "-1,2.7,0", "--to", "nvfp4", "--rounding", "sr", "--offset", "4")
    assert text == explain_block([-1, 2.7, 0], "nvfp4", rounding="sr", offset=4) + "\n"
    assert "counter 5" in text
    assert "tensor scale" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("cast", "nan", "--to", "nvfp4"),
            "finite values; 1 of 1 are not, the first at index (0,)",
        ),
        (("cast", "1,x", "--to", "nvfp4"), "got 'x'"),
        (("cast", "1,2", "--to", "e2m1"), "got '1,2'"),
        (("cast", "1", "--to", "nvfp4", "--sr", "half_offset"), "use --to float4_e2m1fn"),
        (("cast", "1", "--to", "nvfp4", "--seed", "3"), "--seed belongs to --rounding sr"),
        (("cast", "1", "--to", "nvfp4", "--overflow", "wrap"), "integers and fixed point"),
        (("cast", ",".join("1" * 17), "--to", "nvfp4"), "1 to 16, one block of nvfp4; got 17"),
        (("cast", "1", "--to", "mxfp4_e3m0"), "encode their elements (float4_e2m1fn"),
        (("explain", "mxfp4_e3m0"), "encode their elements (float4_e2m1fn"),
    ],
    ids=str,
)
def test_what_a_block_is_not(arguments, words):
    error = run(*arguments)[1]
    assert isinstance(error, ns.NumsimError)
    assert words in str(error)


def test_formats_and_recipes_are_told_apart():
    for call in (ns.encode, ns.cast, explain_cast):
        with pytest.raises(ns.NumsimError, match="quantize takes them"):
            call(1.0, "mxfp4_e2m1")
    with pytest.raises(ns.NumsimError, match="did you mean mxfp4_e2m1"):
        explain_recipe("mxfp4_e2m")
    for values in (1.0, [], ["a"], np.ones(3)):
        with pytest.raises(ns.NumsimError):
            explain_block(values, "nvfp4")


@pytest.mark.parametrize(
    "arguments",
    [
        ("explain", "{}"),
        ("formats", "{}"),
        ("cast", "1.5,2.25", "--to", "{}"),
        ("explain", "mma", "--target", "nvidia.blackwell.tcgen05", "--formats", "{}"),
    ],
    ids=" ".join,
)
def test_recipes_go_by_their_other_names(arguments):
    # vendors' word and capitals, as quantize and sweeps take them
    want, *others = (
        run(*(word.format(name) for word in arguments))
        for name in ("mxfp4_e2m1", "mxfp4", "MXFP4", " MXFP4_E2M1 ")
    )
    assert want[1] is None
    assert "float4_e2m1fn" in want[0]
    for other in others:
        assert other == want


def test_a_word_for_several_recipes_lists_them():
    _, error = run("explain", "mxfp8")
    assert "mxfp8_e4m3 (max 448), mxfp8_e5m2 (max 57344)" in str(error)


@pytest.mark.parametrize("name", ["if4", "hif4"])
def test_blocks_of_two_kinds(name):
    x = [7.0, -3.1, 0.4, 5.0]
    q = ns.quantize(np.array(x), name)
    text = explain_block(x, name)
    results = re.findall(r"^\S+: (-?\d+) \w+ steps x .* = (\S+)$", text, re.MULTILINE)
    assert [int(code) for code, _ in results] == q.codes.tolist()
    assert [float(value) for _, value in results] == q.dequantize().tolist()
