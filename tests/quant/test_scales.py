"""Scales against plain loops over their definitions, and what holds of every recipe."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import numsim as ns
from numsim.quant.clip import THRESHOLDS
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import CLIP_RULES, POW2_FORMATS, POW2_RULES

RNG = np.random.default_rng(17)


def errors(x, scale, fmt):
    """Squared error of a row under one scale, elements by the conversion itself."""
    kept = ns.cast(x.astype(np.float64) / scale, fmt).astype(np.float64) * scale
    return float(((x - kept) ** 2).sum())


def rows():
    """Rows of every kind: Gaussian, heavy tails, few distinct values, one value, one sign."""
    yield RNG.standard_normal(40)
    yield RNG.standard_t(2, 40) * 7
    yield RNG.integers(-3, 4, 40) * 0.37
    yield np.full(40, -2.5)
    yield np.abs(RNG.standard_normal(40)) * -1e-3
    yield np.array([1.0] + [0.01] * 39)


@pytest.mark.parametrize(
    "name", ["int8", "int4", "int2", "float4_e2m1fn", "float6_e2m3fn", "float8_e4m3fn", "nf4"]
)
def test_no_scale_of_a_fine_grid_beats_the_least_squares(name):
    top = ns.get_format(name).max
    for x in rows():
        x = x.astype(np.float32)
        q = ns.quantize(x, Quant(name, "per_tensor", scale_rule="mse"))
        found = errors(x, float(q.scale), name)
        first = float(np.abs(x).max()) / top
        for s in np.geomspace(first / 3, first * 4, 2000):
            # the scale is rounded to float32
            assert found <= errors(x, s, name) * (1 + 1e-6) + 1e-13 * (x.astype(float) ** 2).sum()


@pytest.mark.parametrize("scale_format", ["pow2", "float8_e8m0fnu", "bfloat16", "float8_ue5m3"])
@pytest.mark.parametrize("name", ["int4", "float4_e2m1fn", "float8_e5m2"])
def test_narrow_scales_are_the_best_of_all_their_values(name, scale_format):
    x = np.stack([r.astype(np.float32) for r in rows()])[:, :32]
    quant = Quant(name, block=16, scale_format=scale_format, scale_rule="mse", tensor_scale=None
                  if scale_format == "float8_ue5m3" else "per_tensor")  # fmt: skip
    q = ns.quantize(x, quant)
    if scale_format in ("pow2", "float8_e8m0fnu"):
        every = np.ldexp(1.0, np.arange(-40, 20))
    else:
        f = ns.get_format(scale_format)
        every = f.values()[1 : f.max_code + 1]
    for i in range(len(x)):
        for j in range(2):
            part = x[i, 16 * j : 16 * j + 16]
            first = float(np.abs(part).max()) / ns.get_format(name).max
            near = every[(every > first / 4) & (every < first * 16)]
            near = near if near.size else every[:1]
            best = min(errors(part, s, name) for s in near)
            assert errors(part, float(q.scale[i, j]), name) <= best * (1 + 1e-12)


def test_of_equal_powers_of_two_the_larger_is_taken():
    # 2 and 4 are exact under 1 and 2, and, as 0.5 and 1 of it, under 4
    rule = Quant("e2m1", block=2, scale_format="e8m0", scale_rule="mse")
    assert ns.quantize(np.float32([[2, 4]]), rule).scale == 4


@pytest.mark.parametrize("name", ["int8", "float4_e2m1fn"])
def test_a_large_tensor_is_searched_in_parts_of_its_events(name):
    x = RNG.standard_normal(200_000).astype(np.float32)
    q = ns.quantize(x, Quant(name, scale_rule="mse"))
    found = errors(x, float(q.scale), name)
    for factor in np.geomspace(0.8, 1.25, 200):
        assert found <= errors(x, float(q.scale) * factor, name) * (1 + 1e-9)


def test_equal_values_leave_their_level_together():
    """A million equal numbers are one event, not more than the search puts in order at a time."""
    x = np.repeat(np.float32([1.0, 0.3]), [1, 200_000])
    scale = ns.quantize(x, Quant("int4", scale_rule="mse")).scale
    assert scale == pytest.approx(0.15, rel=1e-5)  # 1 is 7 x 0.15 or nearly so


def test_the_rules_that_clip_are_those_of_the_table():
    assert set(CLIP_RULES) == {"mse", *THRESHOLDS}


HOWS = (
    {}, {"granularity": "per_channel"}, {"granularity": "per_token"}, {"block": 256},
    {"block": (2, 128)}, {"scale_format": "bfloat16"}, {"scale_format": "float16", "block": 256},
    {"scale_format": "float8_e4m3fn", "block": 256}, {"scale_format": "pow2"},
    {"scale_format": "float8_e8m0fnu", "block": 8},
)  # fmt: skip


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_every_word_has_scales_of_its_own(how):
    """A word that `Quant` takes and nobody computes would be the rule of another word."""
    powers = how.get("scale_format") in POW2_FORMATS
    rng = np.random.default_rng(3)
    x = rng.standard_t(3, (16, 512)) * np.exp2(rng.uniform(-4, 4, (16, 1)))
    parts = [x] if "block" in how or "granularity" in how else x.reshape(256 if powers else 4, -1)
    found: dict[bytes, str] = {}
    for word in POW2_RULES if powers else ("amax", *CLIP_RULES):
        rule = Quant("e4m3" if powers else "int4", **how, scale_rule=word.replace(":P", ":75"))
        scales = b"".join(ns.quantize(part, rule).scale.tobytes() for part in parts)
        assert scales not in found, f"{word} has the scales of {found[scales]}"
        found[scales] = word


def test_percentile_of_blocks_by_nearest_rank():
    x = np.arange(1, 41, dtype=np.float32).reshape(2, 20)
    q = ns.quantize(x, Quant("int4", block=16, scale_rule="percentile:75"))
    # ranks 12 of 16 and 3 of the 4 that a short block has
    np.testing.assert_array_equal(q.scale, np.float32([[12, 19], [32, 39]]) / np.float32(7))


def test_kl_of_blocks_is_that_of_the_same_rows():
    x = RNG.standard_t(3, (3, 128)).astype(np.float32)
    whole = ns.quantize(x.reshape(6, 64), Quant("int8", "per_token", scale_rule="kl")).scale
    np.testing.assert_array_equal(
        ns.quantize(x, Quant("int8", block=64, scale_rule="kl")).scale.ravel(), whole.ravel()
    )


def test_midmax_is_between_ceil_and_floor():
    """E2M1: m of amax / 2**e up to (6/4 + 2) / 2 = 1.75 stays in the lower binade."""
    x = np.float32([[1.75 * 4], [np.nextafter(np.float32(7), np.float32(8))]])
    q = ns.quantize(x, Quant("e2m1", block=1, scale_format="e8m0", scale_rule="midmax"))
    np.testing.assert_array_equal(q.scale.ravel(), [1, 2])


def test_amax_half_maps_the_span_of_the_codes():
    q = ns.quantize(np.float32([-127.5, 127.5]), Quant("int8", scale_rule="amax_half"))
    assert q.scale == 1
    np.testing.assert_array_equal(q.codes, [-128, 127])


def test_given_scales_are_those_of_the_tensor():
    x = RNG.standard_normal((4, 64)).astype(np.float32)
    for how in ({}, {"granularity": "per_token"}, {"block": 32}, {"block": (2, 32)}):
        rule = Quant("int8", **how)
        q = ns.quantize(x, rule)
        again = ns.quantize(x, rule, scale=q.scale)
        np.testing.assert_array_equal(again.codes, q.codes)
    half = ns.quantize(x, Quant("int8"), scale=ns.quantize(x, "int8").scale / 2)
    assert half.codes.min() == -128
    assert half.codes.max() == 127
    for name in ("nvfp4", "nvfp4_row", "amdfp4", "mxfp8_e4m3"):
        q = ns.quantize(x, name)
        more = {} if q.tensor_scale is None else {"tensor_scale": q.tensor_scale}
        again = ns.quantize(x, name, scale=q.scale, **more)
        np.testing.assert_array_equal(again.dequantize(), q.dequantize())
        np.testing.assert_array_equal(again.scale_codes, q.scale_codes)


@pytest.mark.parametrize(
    ("quant", "given", "words"),
    [
        ("int8", {"scale": [1.0, 2.0]}, r"has the shape \(\)"),
        ("int8", {"scale": 0.0}, "positive and finite.*1 of 1"),
        ("int8", {"scale": -1.0}, "positive and finite"),
        ("int8", {"scale": np.nan}, "the first is nan"),
        ("int8", {"scale": 3e38}, "leaves float32"),
        ("int8", {"scale": "x"}, "positive numbers"),
        ("int8", {"tensor_scale": 1.0}, "this Quant has none"),
        ("nvfp4", {"scale": np.ones((1, 2))}, "give tensor_scale too"),
        ("nvfp4", {"scale": np.full((1, 2), 1.01), "tensor_scale": 1.0}, "2 of 2 are not"),
        ("mxfp4_e2m1", {"scale": np.full((1, 1), 3.0)}, "values of it"),
        ("q3.4", {"scale": 1.0}, "one scale a part"),
        ("if4", {"scale": np.ones((1, 2))}, "one scale a part"),
    ],
)
def test_given_scales_that_cannot_be(quant, given, words):
    with pytest.raises(ns.NumsimError, match=words):
        ns.quantize(np.ones((1, 32), np.float32), quant, **given)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "int1"}, "largest value of int1 is 0"),
        ({"format": "int8", "scale_format": "int8"}, "a float format of up to 16 bits"),
        ({"format": "int8", "scale_max": 5}, "scale_max is a positive scale"),
        ({"format": "e2m1", "block": 16, "scale_format": "e4m3", "scale_max": 500}, "up to 448"),
        ({"format": "int8", "tensor_scale": "per_token"}, "above narrow scales"),
        ({"format": "int8", "tensor_scale": "row"}, "tensor_scale is one of"),
        ({"format": "e2m1", "block": (16, 16), "scale_format": "e4m3", "scale_rule": "if4"},
         "blocks along an axis"),
        ({"format": "e4m3", "block": 16, "scale_format": "e4m3", "scale_rule": "if4"}, "one of"),
        ({"format": "float4_e1m2fn", "block": 32, "scale_format": "float8_ue6m2"},
         "blocks of 64"),
        ({"format": "e4m3", "scale_rule": "amax_half"}, "one of amax"),
        ({"format": "posit8_es2", "scale_rule": "amax", "scale_format": "float16x"},
         "float format"),
    ],
)  # fmt: skip
def test_quants_that_cannot_be(fields, words):
    with pytest.raises(ns.NumsimError, match=words):
        Quant(**fields)


def test_a_scale_beyond_its_format_is_said():
    with pytest.raises(ns.NumsimError, match="beyond float16"):
        ns.quantize([1e9], Quant("int8", scale_format="float16"))


def test_if4_holds_integers_where_they_fit_better():
    whole = np.float32([7, 6, 5, 4, 3, 2, 1, 0] * 2)[None] * 6 / 7
    floats = np.float32([6, 4, 3, 2, 1.5, 1, 0.5, 0] * 2)[None]
    x = np.concatenate([whole, floats], 1)
    q = ns.quantize(x, "if4")
    np.testing.assert_array_equal((q.scale_codes & 0x80) != 0, [[True, False]])
    np.testing.assert_allclose(q.dequantize(), x, rtol=2e-7)
    np.testing.assert_array_equal(q.T.dequantize(), q.dequantize().T)
    np.testing.assert_array_equal(q[:, 16:].dequantize(), q.dequantize()[:, 16:])


@pytest.mark.parametrize("name", ["hif4", "if4", "nvfp4_4over6", "nvfp4_row", "amdfp4"])
def test_products_of_new_blocks_are_those_of_their_values(name):
    """Powers of two as inputs: every block sum is exact."""
    x = np.ldexp(1.0, RNG.integers(-2, 3, (4, 128))).astype(np.float32)
    q = ns.quantize(x, name)
    exact = q.dequantize().astype(np.float64) @ q.dequantize().astype(np.float64).T
    got = ns.matmul(q, q.T, target="ideal.fp32")
    np.testing.assert_allclose(got, exact, rtol=1e-5)


@pytest.mark.parametrize(
    ("quant", "words"),
    [
        ("if4", "the scales of if4 need"), ("nvfp4", "the scales of nvfp4 need"),
        ("int8", "the scales of int8 per tensor need"),
        (Quant("e4m3", block=(2, 8)), r"float8_e4m3fn in blocks of \(2, 8\) need"),
        (Quant("uint8", "per_token", zero_point=True), "uint8 per token need"),
        (Quant("int8", scale=1.0), "int8 per tensor need"),
    ],
)  # fmt: skip
def test_numbers_that_are_not_finite_are_counted_and_found(quant, words):
    x = np.ones((4, 64), np.float32)
    x[2, 5], x[3, 0] = np.nan, -np.inf
    with pytest.raises(ns.NumsimError, match=words) as found:
        ns.quantize(x, quant)
    assert "2 of 256 are not, the first at index (2, 5)" in str(found.value)


def test_a_format_that_nothing_scales_to_is_known():
    """int1 is a format: its largest value is the trouble, not its name."""
    with pytest.raises(ns.NumsimError, match="the largest value of int1 is 0"):
        ns.quantize([1.0], "int1")


def test_words_of_p3109_name_the_overflow_of_a_rule():
    for word, ours in (("SatFinite", "saturate"), ("SatPropagate", "saturate_finite"),
                       ("SatNone", "special")):  # fmt: skip
        assert Quant("p3109_k8p4se", overflow=word) == Quant("p3109_k8p4se", overflow=ours)


def test_an_axis_is_no_truth_value():
    with pytest.raises(ns.NumsimError, match="axis is an integer; got True"):
        ns.quantize(np.ones((2, 16)), "nvfp4", axis=True)


@pytest.mark.parametrize("rule", POW2_RULES)
def test_integers_of_mx_hold_their_scale_at_the_largest_power(rule):
    """Its exponent is at most 127: 2**128 is no code of E8M0."""
    most = np.finfo(np.float32).max
    q = ns.quantize(np.float32([[most, -most, 0, most / 2]]),
                    Quant("q1.6", block=4, scale_format="e8m0", scale_rule=rule))  # fmt: skip
    assert q.scale_codes.tolist() == [[254]]
    assert q.codes.tolist() == [[127, -127, 0, 64]]
    with pytest.raises(ns.NumsimError, match="divide the tensor by a constant"):
        ns.quantize(np.array([[1e39]]), Quant("q1.6", block=1, scale_format="e8m0",
                                              scale_rule="floor"))  # fmt: skip


@pytest.mark.parametrize(
    "rule", [Quant("int8", "per_channel", zero_point=zeros) for zeros in (False, True)], ids=str
)
def test_scales_of_the_columns_of_a_wide_tensor_take_no_more_room(rule):
    """At most 1.3 times the output, also where a row of the tensor is as large as a piece."""
    x = np.tile(np.float16(RNG.standard_normal((8, 1 << 16))), (64, 1))
    ns.quantize(x[:2], rule, axis=0)
    tracemalloc.start()
    q = ns.quantize(x, rule, axis=0)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    spare = 3 << 21  # what one piece of numbers takes on the way
    assert most < 1.3 * (q.codes.nbytes + q.scale.nbytes) + spare
    wide = np.abs(x.astype(np.float32))
    if not rule.zero_point:
        np.testing.assert_array_equal(q.scale, wide.max(0, keepdims=True) / np.float32(127))
