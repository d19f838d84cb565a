"""Scales that a rule fixes or bounds, as checkpoints declare them for activations."""

import numpy as np
import pytest

import numsim as ns
from numsim.errors import NumsimError
from numsim.quant import Quant

NVFP4 = {"format": "float4_e2m1fn", "block": 16, "scale_format": "float8_e4m3fn"}


def test_a_fixed_scale_does_not_depend_on_the_values():
    """10 / 0.02 = 500 is beyond 448, 3 / 0.02 = 150 lies between 144 and 160."""
    rule = Quant("e4m3", scale=0.02)
    q = ns.quantize([10.0, 3.0, -0.05, 0.0], rule)
    assert q.scale == np.float32(0.02)
    assert ns.decode(q.codes, "e4m3").tolist() == [448.0, 144.0, -2.5, 0.0]
    eight = ns.quantize([10.0, -10.0, 0.019], Quant("int8", scale=0.01))
    assert eight.codes.tolist() == [127, -128, 2]


def test_the_fixed_scale_above_narrow_ones():
    """amax 3 / 6 / 0.001 = 500 is beyond E4M3's 448: the block saturates at 6 * 448 * 0.001."""
    x = np.zeros((2, 16), np.float32)
    x[0, 0], x[1, 0] = 3.0, 0.3
    q = ns.quantize(x, Quant(**NVFP4, scale=0.001))
    assert q.tensor_scale == np.float32(0.001)
    assert q.scale.ravel().tolist() == [448.0, 48.0]  # 0.3 / 6 / 0.001 = 50 -> 48
    assert q.dequantize()[0, 0] == np.float32(6 * 448 * np.float64(np.float32(0.001)))


def test_a_fixed_scale_stands_in_recipes():
    rule = Quant("e4m3", scale=0.1)
    assert rule.scale == np.float32(0.1)
    recipe = ns.Recipe.uniform(rule, target="ideal.fp32")
    assert f"scale = {float(np.float32(0.1))!r}" in recipe.to_toml()


@pytest.mark.parametrize("bound", [1.0, 1200.0])
def test_a_bound_of_the_amax(bound):
    x = np.array([[3.0, -0.25], [0.5, 0.125]], np.float32)
    q = ns.quantize(x, Quant("e4m3", "per_token", scale_rule=f"amax:{bound}"))
    want = np.minimum(np.abs(x).max(axis=1, keepdims=True), np.float32(bound)) / np.float32(448)
    assert np.array_equal(q.scale, want)
    if bound == 1.0:
        assert q.dequantize()[0, 0] == 1.0  # saturated
    else:
        same = ns.quantize(x, Quant("e4m3", "per_token"))
        assert np.array_equal(q.codes, same.codes)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "e4m3", "scale": 0}, "scale is a number above 0"),
        ({"format": "e4m3", "scale": float("nan")}, "scale is a number above 0"),
        ({"format": "e4m3", "scale": 1e39}, "scale is a number above 0"),
        ({"format": "e4m3", "scale": True}, "scale is a number above 0"),
        ({"format": "e4m3", "scale": "0.1"}, "scale is a number above 0"),
        ({"format": "e4m3", "granularity": "per_token", "scale": 1.0}, "that of a tensor"),
        ({"format": "e4m3", "scale_format": "pow2", "scale": 1.0}, "that of a tensor"),
        ({"format": "int8", "zero_point": True, "scale": 1.0}, "that of a tensor"),
        (NVFP4 | {"tensor_scale": None, "scale": 1.0}, "that of a tensor"),
        ({"format": "e4m3", "scale_rule": "amax:0"}, "scale_rule for float32 scales is one of"),
        ({"format": "e4m3", "scale_rule": "amax:1e400"}, "scale_rule for float32 scales is one"),
        ({"format": "e4m3", "scale_rule": "amax:"}, "scale_rule for float32 scales is one of"),
    ],
)  # fmt: skip
def test_fixed_scales_that_cannot_be(fields, words):
    with pytest.raises(NumsimError, match=words):
        Quant(**fields)


@pytest.mark.parametrize("scales", ["pow2", "float8_e8m0fnu", "bfloat16"])
def test_scales_of_no_format_are_rounded_as_the_message_says(scales):
    x, scale = np.ones((2, 32), np.float32), np.full((2, 1), 3.3)
    rule = ns.Quant("e4m3", block=32, scale_format=scales)
    with pytest.raises(ns.NumsimError, match=r"2 of 2 are not, the first is 3\.3") as told:
        ns.quantize(x, rule, scale=scale)
    remedy = str(told.value).rpartition(": ")[2]
    kept = eval(remedy, {"numsim": ns, "scale": scale})
    np.testing.assert_array_equal(ns.quantize(x, rule, scale=kept).scale, kept)
