"""What holds of every recipe: finite values, zeros, the nearest elements, a second quantisation."""

from __future__ import annotations

import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numsim as ns
from numsim.explain import explain_recipe
from numsim.models.named import NAMED, recipe_lines
from numsim.quant import QUANTS, Quant, extremes
from numsim.quant.table import quantised_again

MOST = np.finfo(np.float32).max
E2M1, PAIR = {"format": "float4_e2m1fn"}, {"block": 16, "scale_format": "float8_e4m3fn"}
MX = {"block": 32, "scale_format": "float8_e8m0fnu"}
OF_NETWORKS = {
    f"{name} {side}": quant
    for name, entry in NAMED.items()
    for side, quant in {**entry.linears, "keys": entry.keys}.items()
    if isinstance(quant, Quant)
}
OTHERS = {
    **{f"MX {word} {name}": Quant(name, **MX, scale_rule=word)
       for word in ("ceil", "even", "rceil", "midmax", "mse")
       for name in ("float4_e2m1fn", "float8_e4m3fn", "float8_e5m2", "float6_e3m2fn", "q1.6")},
    "nvfp4 mse": Quant(**E2M1, **PAIR, scale_rule="mse"),
    "nvfp4 tiles": Quant(**E2M1, block=(16, 16), scale_format="float8_e4m3fn"),
    "nvfp4 of 300": Quant(**E2M1, **PAIR, scale_max=300),
    "4over6 mae 448": Quant(**E2M1, **PAIR, scale_rule="4over6:mae", scale_max=448),
    "int4 bfloat16": Quant("int4", block=32, scale_format="bfloat16"),
    "E2M1 bfloat16 mse": Quant(**E2M1, block=32, scale_format="bfloat16", scale_rule="mse"),
    "int8 mse": Quant("int8", block=32, scale_rule="mse"),
    "int8 half": Quant("int8", "per_token", scale_rule="amax_half"),
    "int8 percentile": Quant("int8", block=32, scale_rule="percentile:90"),
    "hifloat8": Quant("hifloat8", "per_token"), "posit": Quant("posit8_es1", "per_token"),
}  # fmt: skip
EVERY = QUANTS | OF_NETWORKS | OTHERS


def drawn(rng, kind):
    """Rows whose first 20 numbers are zeros: plain, up to the ends of float32, or of any size."""
    x = rng.standard_t(2, (16, 64))
    with np.errstate(over="ignore", under="ignore"):
        if kind == "top":
            x *= MOST / np.abs(x).max()
        elif kind == "largest":
            near = MOST * (1 - rng.integers(0, 9, x.shape) * 2.0**-24)
            x = np.where(rng.random(x.shape) < 0.4, near * np.sign(x), 0)
        elif kind == "tiny":
            x = np.ldexp(x, -int(rng.integers(110, 150)))
        elif kind == "mixed":
            x = np.ldexp(x, rng.integers(-145, 110, x.shape))
        else:
            x = np.ldexp(x, int(rng.integers(-12, 12)))
        x[:, :20] = 0
        return np.clip(x, -MOST, MOST).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(("plain", "top", "largest", "tiny", "mixed")),
       st.sampled_from(sorted(EVERY)))  # fmt: skip
def test_every_value_is_finite_and_zero_stays(seed, kind, name):
    x = drawn(np.random.default_rng(seed), kind)
    quant = EVERY[name]
    if quant.granularity == "none":
        x = np.clip(x, -1e4, 1e4)
    if name.startswith("MX"):  # an element of 2**128 is one of MX, and no float32
        x = np.clip(x, -MOST / 2, MOST / 2)
    back = ns.quantize(x, quant).dequantize()
    assert np.isfinite(back).all()
    assert (back[x == 0] == 0).all()


@pytest.mark.parametrize("name", ["nvfp4", "if4", "nvfp4_4over6", "nvfp4_row"])
@pytest.mark.parametrize("power", [110, 113, 114, 115, 120, 127])
def test_values_are_finite_under_any_given_tensor_scale(name, power):
    rng = np.random.default_rng(power)
    for kind in ("top", "largest"):
        x = drawn(rng, kind)
        scale = np.float32(rng.uniform(1, 2) * 2.0**power)
        scale = np.full((16, 1), scale) if name == "nvfp4_row" else scale
        assert np.isfinite(ns.quantize(x, name, tensor_scale=scale).dequantize()).all()


def elements(q):
    """The values of an element, exact, and the scale of each: (fractions, array of scales)."""
    fmt = q.fmt
    values = sorted({Fraction(float(v)) for v in fmt.values() if np.isfinite(v)})
    scale = np.broadcast_to(np.asarray(q.element_scale(), np.float64), q.shape)
    if q.tensor_scale is not None:
        scale = scale * np.asarray(q.tensor_scale, np.float64)  # 4 by 24 bits
    return values, np.broadcast_to(scale, q.shape)


NEAREST = {n: q for n, q in EVERY.items()
           if q.scale_rule not in ("if4", "hif4") and not q.zero_point and q.fmt.bits <= 8
           and q.fmt.name != "hifloat8" and q.granularity != "none"}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(NEAREST)))
def test_every_element_is_the_nearest_under_its_scale(seed, name):
    """In fractions; quotients are float32, whose rounding may decide where two are as near."""
    rng = np.random.default_rng(seed)
    x = drawn(rng, "plain")[:, 16:48]
    q = ns.quantize(x, NEAREST[name])
    values, scale = elements(q)
    codes = ns.decode(q.codes, q.fmt)
    for value, each, code in zip(x[0], scale[0], codes[0], strict=True):
        place = Fraction(float(value)) / Fraction(float(each))
        off = abs(Fraction(float(code)) - place)
        least = min(abs(v - place) for v in values)
        assert off <= least + abs(place) * Fraction(1, 1 << 23)


BOUNDS = {  # of the error of an element, in the amax of what shares its scale
    "mxfp8_e4m3": 1 / 8, "mxfp8_e5m2": 1 / 8, "mxfp6_e2m3": 1 / 16, "mxfp6_e3m2": 1 / 8,
    "mxfp4_e2m1": 1 / 4, "mxint8": 1 / 64, "nvfp4": 0.18, "nvfp4_row": 0.18, "amdfp4": 0.18,
    "nvfp4_4over6": 0.18, "if4": 0.18, "hif4": 1 / 8,
    "w8a8 activations": 1.01 / 254, "w4a8 weights": 1.01 / 14,
    "quarot_w4a4 weights": 1.01 / 14, "nf4 weights": 0.16, "te_current weights": 1.01 / 28,
    "deepseek_fp8 weights": 1.01 / 28,
}  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(BOUNDS)))
def test_an_element_is_off_by_a_share_of_its_amax_at_most(seed, name):
    rng = np.random.default_rng(seed)
    quant = EVERY[name]
    x = rng.standard_t(2, (4, 64)).astype(np.float32)
    x[rng.random(x.shape) < 0.3] *= 2.0**-6
    back = ns.quantize(x, quant).dequantize()
    size = quant.block if isinstance(quant.block, int) else 64
    size = min(size, 64)
    blocks = x.reshape(4, -1, size)
    amax = np.abs(blocks).max(-1, keepdims=True)
    if isinstance(quant.block, tuple) or quant.granularity == "per_tensor":
        amax = np.abs(x).max()
    # where E4M3 is subnormal the scale of a small block is coarse: a share of the tensor's
    floor = np.abs(x).max() * 2.0**-15 if "nvfp4" in name or name == "if4" else 0
    assert (np.abs(back.reshape(blocks.shape) - blocks) <= BOUNDS[name] * amax + floor).all()


@pytest.mark.parametrize("name", sorted(n for n, q in EVERY.items() if not quantised_again(q)))
def test_what_says_nothing_has_the_same_values_again(name):
    rng = np.random.default_rng(len(name))
    for _ in range(12):
        x = drawn(rng, "plain")
        back = ns.quantize(x, EVERY[name]).dequantize()
        np.testing.assert_array_equal(ns.quantize(back, EVERY[name]).dequantize(), back)


@pytest.mark.parametrize("top", [7, 15, 31, 127, 448, 2688, 57344])
def test_a_float32_scale_comes_back_from_its_largest_value(top):
    """Every fraction of an amax: fp32(fp32(top s) / top) is s where s is fp32(amax / top)."""
    amax = np.arange(1 << 23, 1 << 24, 1 if top == 127 else 7, dtype=np.float32)
    scale = (amax / np.float32(top)).astype(np.float32)
    again = (scale * np.float32(top)) / np.float32(top)
    np.testing.assert_array_equal(again, scale)


@pytest.mark.parametrize("name", sorted(n for n, q in EVERY.items() if quantised_again(q)))
def test_what_says_why_not_does_change_once(name):
    """An explanation that nothing bears out would be an excuse."""
    quant = EVERY[name]
    rng = np.random.default_rng(1)

    def changes(x):
        back = ns.quantize(x, quant).dequantize()
        return not np.array_equal(ns.quantize(back, quant).dequantize(), back)

    # blocks of a few steps of their scale beside one that has the largest scale
    top = 1536 if "4over6" in str(quant.scale_rule) else 6 * float(quant.scale_max or 448)
    unit = 2.0**-17 if quant.scale_format == "float8_ue5m3" else 2.0**-9
    small = rng.uniform(-1, 1, (1024, 64)) * np.repeat(rng.uniform(4, 60, (64, 1)), 16, 0) * unit
    small[:, :16] = top * (quant.scale_format != "float8_ue5m3")
    least = np.zeros((1, 64))
    least[0, :2] = -1.999, 1 / 64
    cases = [small.astype(np.float32), least.astype(np.float32)]
    cases += [drawn(rng, kind) for kind in ("plain", "mixed") for _ in range(100)]
    assert any(changes(x) for x in cases), quantised_again(quant)


def test_the_reasons_stand_where_a_recipe_is_explained():
    for name, quant in QUANTS.items():
        text = explain_recipe(name)
        assert f"quantised again      {quantised_again(quant) or 'the same values'}" in text
    assert "keys and values quantised again: the range" in "\n".join(recipe_lines("kv4"))
    assert quantised_again(replace(QUANTS["mxfp4_e2m1"], rounding="sr")) == "rounding is sr"


def same(one, other):
    assert one.block_shape == other.block_shape
    for part in ("codes", "scale", "scale_codes", "zero_point", "tensor_scale"):
        got, want = getattr(one, part), getattr(other, part)
        assert (got is None) == (want is None), part
        if want is not None:
            assert np.shape(got) == np.shape(want), part
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("rounding", ["rne", "sr"])
@pytest.mark.parametrize("name", sorted(EVERY))
def test_pieces_of_any_size_are_the_whole(name, rounding, monkeypatch):
    """Large tensors are quantised part by part: here parts of 300 values and of all."""
    quant = EVERY[name]
    if rounding == "sr":
        if quant.scale_rule in ("if4", "hif4"):
            pytest.skip("rounds to nearest")
        quant = replace(quant, rounding="sr")
    rng = np.random.default_rng(9)
    for shape, axis in (((1, 3, 160), -1), ((1, 1, 700), 2), ((40, 48), 1), ((40, 48), 0)):
        x = np.abs(rng.standard_t(3, shape)) if quant.fmt.min >= 0 else rng.standard_t(3, shape)
        x = x.astype(np.float32)
        if isinstance(quant.block, tuple) and axis != len(shape) - 1:
            continue
        want = ns.quantize(x, quant, axis=axis, seed=5)
        with monkeypatch.context() as small:
            small.setattr(sys.modules["numsim.quant.quantize"], "PART", 300)
            small.setattr(extremes, "PIECE", 100)
            same(ns.quantize(x, quant, axis=axis, seed=5), want)
            if quant.granularity != "none":
                x[(0,) * (len(shape) - 1) + (7,)] = np.nan
                with pytest.raises(ns.NumsimError, match=r"index \(0, .*7\)"):
                    ns.quantize(x, quant, axis=axis)
