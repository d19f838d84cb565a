"""Blocks stored in one pass: what the definition says, the general way stores, or left to it."""

from __future__ import annotations

import importlib
from dataclasses import replace
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numsim as ns
from numsim.dispatch import rows
from numsim.kernels.ir import simd
from numsim.kernels.jit import using_threads
from numsim.quant import Quant, one_pass, quantize
from numsim.quant.quantize import quantize_pieces
from numsim.quant.quick import quick
from numsim.quant.table import as_quant

quantize_module = importlib.import_module("numsim.quant.quantize")  # the function has its name
PATHS = ("avx512", "plain") if "avx512" in simd.PATHS else ("plain",)
E2M1 = "float4_e2m1fn"
MX = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4_e2m1", "mxint8")
CHOICES = ("nvfp4_4over6", "if4", "hif4")
NARROW = ("float8_e4m3fn", "float8_ue4m3", "float8_ue5m3", "float8_e5m2", "float6_e3m2fn")
MIDDLES = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
SHAPES = ((128,), (3, 384), (2, 3, 5, 128), (7, 2176), (1, 1, 384))


def two_levels(scales: str, above: str | None = "per_tensor", **more: Any) -> Quant:
    return Quant(E2M1, **{"block": 16, **more}, scale_format=scales, tensor_scale=above)


RULES = {
    **{name: as_quant(name) for name in (*MX, "nvfp4", "amdfp4")},
    **{f"{name} under {above}": two_levels(name, above)
       for name in NARROW for above in ("per_tensor", None)},
    **{name: as_quant(name) for name in CHOICES},
    **{f"{name}, {scales} under {above}, of {block}": two_levels(
        scales, above, scale_rule=name, block=block
    ) for name, scales, above, block in (
        ("4over6:mae", "float8_e4m3fn", "per_tensor", 16), ("if4", "float8_ue4m3", None, 32),
        ("4over6:mse", "float8_ue4m3", None, 48), ("4over6:mae", "float8_e4m3fn", None, 64),
        ("if4", "float8_e4m3fn", "per_tensor", 64),
    )},
    "4over6 up to 448": two_levels("float8_e4m3fn", scale_rule="4over6:mse", scale_max=448.0),
    "if4 up to 100": two_levels("float8_e4m3fn", scale_rule="if4", scale_max=100.0),
    "nvfp4 of 32": Quant(E2M1, block=32, scale_format="float8_e4m3fn"),
    "nvfp4 up to 256": two_levels("float8_e4m3fn", scale_max=256.0),
    "nvfp4 up to 250": two_levels("float8_e4m3fn", scale_max=250.0),  # which is rounded up
    "int8 of 64, ceil": Quant("int8", block=64, scale_format="pow2", scale_rule="ceil"),
    "no minus zero": Quant("float8_e4m3fnuz", block=32, scale_format="pow2", scale_rule="even"),
    "the largest power": Quant("float4_e1m2fn", block=32, scale_format="pow2"),
    "blocks of 48": Quant("float8_e5m2", block=48, scale_format="pow2", scale_rule="rceil"),
}  # fmt: skip


def numbers(kind: str, shape: tuple[int, ...]) -> Any:
    """Return float32 numbers of a kind, zeros of both signs among them."""
    rng = np.random.default_rng(len(kind))
    x = rng.standard_normal(shape)
    x *= {
        "plain": 1.0, "wide": np.exp2(rng.integers(-60, 60, shape)), "subnormal": 2.0**-140,
        "tiny": np.exp2(rng.integers(-149, -100, shape)), "zeros": 0.0, "large": 2.0**98,
        "top": 2.0**126,
    }[kind]  # fmt: skip
    x.reshape(-1)[::11], x.reshape(-1)[5::13] = 0.0, -0.0
    x[..., :32] = np.where(rng.random((*shape[:-1], 32)) < 0.5, 0.0, -0.0)  # blocks of zeros
    largest = float(np.finfo(np.float32).max)
    return np.clip(x, -largest, largest).astype(np.float32)


def same(q: Any, want: Any) -> None:
    for name in ("codes", "scale", "scale_codes", "tensor_scale"):
        found, other = getattr(q, name), getattr(want, name)
        assert (found is None) == (other is None), name
        if found is not None:
            assert (type(found), found.dtype, found.shape) == (
                type(other),
                other.dtype,
                other.shape,
            )
            assert found.tobytes() == other.tobytes(), name
    assert (q.fmt, q.quant, q.block_shape, q.scale_format, q.zero_point, q.packed) == (
        want.fmt, want.quant, want.block_shape, want.scale_format, want.zero_point, want.packed,
    )  # fmt: skip


def general(monkeypatch: Any, x: Any, rule: Quant, **how: Any) -> Any:
    """Return what amax, scale, quotient and code by turns give."""
    with monkeypatch.context() as patch:
        patch.setattr(quantize_module, "in_one_pass", lambda *_: None)
        return quantize_pieces(x, rule, **how)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", RULES)
def test_the_general_way_stores_the_same(name: str, path: str, monkeypatch: Any) -> None:
    rule = RULES[name]
    with simd.force(path), using_threads(1):
        for kind in ("plain", "wide", "subnormal", "tiny", "zeros", "large", "top"):
            for shape in SHAPES:
                x = numbers(kind, shape)
                q, want = quick(x, rule), general(monkeypatch, x, rule)
                same(quantize(x, rule), want)
                same(quantize_pieces(x, rule), want)
                if shape[-1] % rule.block == 0 and kind not in ("large", "top"):
                    assert q is not None
                if q is not None:
                    same(q, want)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_numbers_of_16_bits(name: str, dtype: Any, monkeypatch: Any) -> None:
    rule = RULES[name]
    with np.errstate(over="ignore"):
        x = (numbers("plain", (3, 4224)) * np.float32(100)).astype(dtype)
    assert quick(x, rule) is None
    same(quantize(x, rule), general(monkeypatch, x, rule))


def by_oracle(x: Any, rule: Quant) -> tuple[Any, Any, np.float32]:
    """Return codes, codes of scales and the scale above, by fractions and float64's divisions."""
    scales = rule.scale_format
    reach = float(oracle.to_float(oracle.decode(E2M1, 7)) * ns.get_format(scales).max)
    top = float(np.abs(x).max())
    above = np.float32(top / reach) if rule.above and top else np.float32(1)
    above = max(above, np.float32(2.0**-149))
    codes, found = np.zeros(x.shape, np.uint8), np.zeros(x.shape[0], np.uint8)
    for i, row in enumerate(x):
        wanted = Fraction(float(np.abs(row).max()) / 6.0 / float(above))
        found[i] = max(oracle.encode(scales, wanted), 1)
        divisor = oracle.decode(scales, int(found[i])) * Fraction(float(above))
        for j, v in enumerate(row):
            sign = 8 if np.signbit(v) else 0
            codes[i, j] = oracle.encode(E2M1, abs(Fraction(float(v))) / divisor) | sign
    return codes, found, above


def check(x: Any, rule: Quant) -> None:
    codes, found, above = by_oracle(x, rule)
    for path in PATHS:
        with simd.force(path):
            q = quick(x, rule)
        assert q is not None
        np.testing.assert_array_equal(q.scale_codes, found[:, None])
        np.testing.assert_array_equal(q.codes, codes)
        values = [float(oracle.decode(rule.scale_format, int(c))) for c in found]
        np.testing.assert_array_equal(q.scale[:, 0], np.float32(values))
        assert (q.tensor_scale is None) == (rule.above is None)
        assert q.tensor_scale is None or q.tensor_scale == above


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(NARROW), st.booleans(), st.data())
def test_any_numbers_are_stored_as_fractions_say(scales: str, tensor: bool, data: Any) -> None:
    blocks = data.draw(st.integers(1, 6))
    least = data.draw(st.integers(0, 226))
    fields = st.integers(least << 23, (min(least + data.draw(st.integers(0, 30)), 226) << 23) + 9)
    word = st.tuples(st.booleans(), fields).map(lambda w: w[0] << 31 | w[1])
    words = data.draw(st.lists(word, min_size=16 * blocks, max_size=16 * blocks))
    x = np.array(words, np.uint32).view(np.float32).reshape(blocks, 16)
    check(x, two_levels(scales, "per_tensor" if tensor else None))


@pytest.mark.parametrize("scales", NARROW)
def test_every_scale_its_middles_and_the_ties_of_its_elements(scales: str) -> None:
    f = ns.get_format(scales)
    values = f.values()[: f.max_code + 1]
    wanted = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    tops = np.float32(wanted * 6)
    tops = np.concatenate([tops, np.nextafter(tops, np.float32(0)), np.nextafter(tops, np.inf)])
    tops = np.minimum(tops, np.float32(6 * f.max))  # of which the scale above is one
    for tensor in ("per_tensor", None):
        for by in (1.0, float(np.float32(0.73)), 2.0**-118):
            rule, x = two_levels(scales, tensor), np.zeros((tops.size, 16), np.float32)
            x[:, 0] = tops * np.float32(by)
            scale = np.maximum(np.abs(ns.cast(tops / 6, scales).astype(np.float64)), values[1])
            above = float(np.float32(x.max() / (6 * f.max))) if tensor else by
            near = np.float32(MIDDLES * scale[:, None] * above)
            for i, to in enumerate((near, np.nextafter(near, np.float32(0)))):
                x[:, 1 + 7 * i :][:, :7] = np.where(to <= x[:, :1], to, 0) * np.float32(1 - 2 * i)
            x[:, 15] = np.minimum(np.nextafter(near[:, 3], np.inf), x[:, 0])
            check(x, rule)


@pytest.mark.parametrize("scales", NARROW)
def test_zeros_and_the_least_numbers(scales: str) -> None:
    least = np.float32(2.0**-149)
    for tensor in ("per_tensor", None):
        rule, x = two_levels(scales, tensor), np.zeros((3, 16), np.float32)
        x[0, 3::2] = -0.0
        check(x, rule)
        for top in (1, 6, 7, 1343, 1345, 2687, 5000, 1 << 22):
            x[1] = least * np.arange(16) * np.float32(-1)
            x[2, 5] = least * np.float32(top)
            check(x, rule)


def test_what_is_left_to_the_general_way(monkeypatch: Any) -> None:
    x = np.ones((4, 64), np.float32)
    alone = "if4, float8_ue4m3 under None, of 32", "4over6:mae, float8_e4m3fn under None, of 64"
    for name in ("nvfp4", "amdfp4", "mxfp8_e4m3", "mxint8", *CHOICES, *alone):
        rule = RULES[name]
        assert quick(x, rule) is not None
        for bad in (np.nan, np.inf, -np.inf):
            y = x.copy()
            y[2, 40] = bad
            assert quick(y, rule) is None
            with pytest.raises(ns.NumsimError, match=r"1 of 256 are not, .* index \(2, 40\)"):
                quantize(y, rule)
        for other in (x[:, ::2], x[:, 1:], x[:, :40], x.T, x.astype(np.float64), x[:0], x[0, 0],
                      x.astype(">f4"), np.float32(1)):  # fmt: skip
            assert quick(np.asarray(other), rule) is None
        same(quantize(x[:, :40], rule), general(monkeypatch, x[:, :40], rule))
        same(quantize(x[:, ::2], rule), general(monkeypatch, x[:, ::2], rule))
    for above in (0.5, 0.001):
        q = quantize(x, "nvfp4", tensor_scale=above)
        assert q.tensor_scale == np.float32(above)
        same(q, general(monkeypatch, x, as_quant("nvfp4"), tensor_scale=above))
    nv = {"block": 16, "scale_format": "float8_e4m3fn"}
    mx: dict[str, Any] = {"block": 32, "scale_format": "pow2"}
    for rule in (
        as_quant("nvfp4_row"), two_levels("float8_e4m3fn", scale_rule="if4", block=8),
        two_levels("float8_e4m3fn", "per_token", scale_rule="4over6:mse"),
        Quant(E2M1, **nv, scale=0.5), Quant(E2M1, **nv, rounding="sr"),
        Quant(E2M1, **nv, overflow="special"), Quant(E2M1, **nv, scale_rule="mse"),
        Quant(E2M1, **nv, scale_max=2.0**-7), Quant("float6_e2m3fn", **nv),
        Quant(E2M1, block=(1, 16), scale_format="float8_e4m3fn"),
        Quant("uint8", **mx), Quant("int8", **mx, rounding="rtz"), Quant("int8", block=32),
        Quant("int8", **mx, scale_rule="mse"), Quant("nf4", **mx), Quant("float32", **mx),
    ):  # fmt: skip
        assert quick(x, rule) is None
        same(quantize(x, rule, seed=3), general(monkeypatch, x, rule, seed=3))


def test_equal_rules_keep_what_tells_them_apart() -> None:
    mine = ns.Format("mine", "float", 8, 4, 7, source="one")
    x = np.ones((2, 64), np.float32)
    for f in (mine, replace(mine, source="another")):  # a source is no part of what is equal
        rule = Quant(f, block=32, scale_format="pow2")
        for q in (quick(x, rule), quantize(x, rule, axis=0)):
            assert q is not None
            assert q.quant is rule
            assert q.fmt is f


def test_blocks_down_columns_are_not_those_of_rows(monkeypatch: Any) -> None:
    x = numbers("wide", (64, 64))
    for name in ("nvfp4", "mxfp8_e4m3", *CHOICES):
        rule = as_quant(name)
        down = quantize(x, rule, axis=0)
        assert down.block_shape == (rule.block, 1)
        same(down, general(monkeypatch, x, rule, axis=0))
        for axis in (0, -1):
            same(quantize(x[0], rule, axis=axis), quick(x[0], rule))
        assert quantize(np.ones((2, 64, 1), np.float32), rule, axis=1).scale.shape[1] == (
            64 // rule.block
        )


@pytest.mark.parametrize("name", ["nvfp4", "amdfp4", "mxfp8_e4m3", "mxint8", *CHOICES])
def test_threads_and_pieces_change_nothing(name: str, monkeypatch: Any) -> None:
    rule, kinds = as_quant(name), ("wide", "zeros", "tiny")
    monkeypatch.setattr(rows, "grain_of", lambda pieces, products: 3)
    for x in (*(numbers(kind, (37, 1088)) for kind in kinds), numbers("plain", (3, 2, 4160))):
        with using_threads(1):
            want = quick(x, rule)
        for bad in (False, True):
            y = x.copy()
            if bad:
                y[-1, ..., -1] = np.nan
            for count in (1, 2):
                with using_threads(count), monkeypatch.context() as patch:
                    patch.setattr(rows, "GRAIN", 100)
                    q = quick(y, rule)
                    assert (q is None) == bad
                    if q is not None:
                        same(q, want)
                    patch.setattr(one_pass, "PART", 5000)
                    reads: list[int] = []
                    sizes = (1,) * (x.ndim - 1) + (rule.block,)
                    q = one_pass.in_one_pass(y, rule, sizes, -1, lambda to=reads: to.append(1))
                    assert (q is None) == bad
                    if q is not None:
                        same(q, want)
                        assert len(reads) >= 3


@pytest.mark.parametrize("name", ["nvfp4", "mxint8", "amdfp4", "nvfp4 up to 250", *CHOICES])
def test_elements_beside_the_largest_float32_stay_finite(name: str, monkeypatch: Any) -> None:
    x = numbers("top", (4, 128))
    x[1, 70] = np.finfo(np.float32).max
    x[2, 90] = -np.finfo(np.float32).max
    q = quantize(x, RULES[name])
    same(q, general(monkeypatch, x, RULES[name]))
    assert np.isfinite(q.dequantize()).all()


STEPS = np.float32([*MIDDLES, 0, -0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -6, -5, -0.75])
SEVENTHS = np.arange(-14, 15, dtype=np.float32) * np.float32(3 / 7)  # of integers, and middles


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("block", [16, 32, 64, 256])
@pytest.mark.parametrize("name", ["4over6:mae", "4over6:mse", "if4", "hif4"])
def test_every_count_of_blocks_and_ties_of_two_ways(
    name: str, block: int, path: str, monkeypatch: Any
) -> None:
    """Sums that are equal or nearly so, numbers on steps and beside them, blocks left over."""
    rule = as_quant("hif4")
    if name != "hif4":
        rule = two_levels("float8_e4m3fn", scale_rule=name, block=block)
    rng = np.random.default_rng(block)
    with simd.force(path):
        for count in (*range(1, 19), 33, 40):
            for steps in (STEPS, SEVENTHS):
                shape = (1, count * int(str(rule.block)))
                x = steps[rng.integers(0, len(steps), shape)]
                x = x * np.exp2(rng.integers(-3, 4, shape[1] // 16).repeat(16)).astype(np.float32)
                x = np.where(rng.random(shape) < rng.choice([0.0, 0.9]), 0, x).astype(np.float32)
                for y in (x, np.nextafter(x, np.float32(9)), np.nextafter(x, np.float32(-9))):
                    q = quick(y, rule)
                    assert q is not None
                    same(q, general(monkeypatch, y, rule))
                want = quantize(x.astype(np.float64), rule)  # no kernel of blocks takes these
                same(quick(x, rule), want)


def test_every_first_scale_of_hif4_and_the_amax_beside_its_middles(monkeypatch: Any) -> None:
    f = ns.get_format("float8_ue6m2")
    values = f.values()[:255].astype(np.float64)
    tops = np.concatenate([values, (values[1:] + values[:-1]) / 2, [0.0, 1e-30, 1e30]])
    tops = np.concatenate([tops * 7, tops / 0.142578125]).astype(np.float32)
    tops = np.concatenate([
        tops * np.float32(by) for by in (1, 1 - 2**-8, 1 - 2**-9, 1 + 2**-8, 1 + 2**-9)
    ])  # fmt: skip
    tops = np.concatenate([tops, np.nextafter(tops, np.float32(0)), np.nextafter(tops, np.inf)])
    x = np.outer(tops, np.linspace(-1, 1, 64, dtype=np.float32))
    rule = as_quant("hif4")
    q = quick(x, rule)
    assert q is not None
    assert len(np.unique(q.scale_codes)) == 255
    same(q, general(monkeypatch, x, rule))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("block", [8, 16, 32, 64, 256, 48])
@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float6_e2m3fn", E2M1, "int8", "float16"])
def test_every_count_of_blocks(fmt: str, block: int, path: str, monkeypatch: Any) -> None:
    rule = Quant(fmt, block=block, scale_format="float8_e8m0fnu")
    x = numbers("wide", (1, 40 * 256))
    with simd.force(path):
        for count in (*range(1, 20), 33, 40):
            part = np.ascontiguousarray(x[:, : count * block])
            same(quick(part, rule), general(monkeypatch, part, rule))


@pytest.mark.parametrize("path", PATHS)
def test_every_value_and_middle_of_elements_under_powers_of_two(path: str) -> None:
    with simd.force(path):
        for name in MX:
            rule = as_quant(name)
            values = rule.fmt.values() if rule.fmt.kind == "float" else np.arange(-128, 128) / 64
            values = np.unique(values[np.isfinite(values)])
            middle = ((values[1:] + values[:-1]) / 2).astype(np.float32)
            near = [np.nextafter(middle, np.float32(s)) for s in (1e9, -1e9)]
            x = np.concatenate([values, middle, *near, [-0.0]]).astype(np.float32)
            x = np.resize(x[np.abs(x) <= rule.fmt.max], (-(-x.size // 31), 31))
            for power in (0, -100, 90, -126):
                y = np.c_[np.full(len(x), rule.fmt.max, np.float32), x] * np.float32(2.0**power)
                q = quick(np.float32(y), rule)
                want = ns.encode(np.float64(y) * 2.0**-power, rule.fmt)
                assert q is not None
                if power > -126:
                    np.testing.assert_array_equal(q.codes, want)
                assert set(q.scale.reshape(-1)) == {np.float32(max(2.0**power, 2.0**-127))}
