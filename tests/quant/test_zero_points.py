"""Zero points: scales of ranges, and products whose int32 sums are those of (qa - za)(qb - zb)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numsim as ns

FORMATS = ("int8", "uint8", "int4", "uint4")


def tensor(rng, fmt, shape, granularity, axis):
    """Codes, scales and zero points of one granularity along an axis."""
    f = ns.get_format(fmt)
    codes = rng.integers(int(f.min), int(f.max) + 1, shape)
    sizes = list(shape)
    sizes[axis] = 1
    if granularity == "per_block":
        sizes[axis] = shape[axis] // 4
    sizes = () if granularity == "per_tensor" else sizes
    zeros = rng.integers(int(f.min), int(f.max) + 1, sizes)
    scale = np.ldexp(1.0, rng.integers(-3, 4, sizes)).astype(np.float32)
    block = {"block": 4, "axis": axis} if granularity == "per_block" else {}
    return ns.QTensor.from_codes(codes, fmt, scale=scale, zero_point=zeros, **block)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(FORMATS), st.sampled_from(FORMATS),
    st.sampled_from(("per_tensor", "per_token", "per_block")),
    st.sampled_from(("per_tensor", "per_token", "per_block")),
)  # fmt: skip
def test_products_are_those_of_codes_less_zero_points(seed, left, right, rows, columns):
    """Powers of two as scales and few bits: float64 holds everything."""
    rng = np.random.default_rng(seed)
    a, b = tensor(rng, left, (3, 8), rows, -1), tensor(rng, right, (8, 5), columns, -2)
    exact = a.dequantize().astype(np.float64) @ b.dequantize().astype(np.float64)
    for target in ("ideal.int", "ideal.exact", "ideal.fp32"):
        np.testing.assert_array_equal(ns.matmul(a, b, target=target), exact.astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(FORMATS), st.sampled_from(FORMATS),
    st.sampled_from(("per_tensor", "per_token")), st.sampled_from(("per_tensor", "per_token")),
    st.integers(1, 40),
)  # fmt: skip
def test_the_sum_is_an_integer_scaled_by_one_product(seed, left, right, rows, columns, depth):
    """D = fp32(acc * fp32(sa * sb)), acc in Python's integers, any scales."""
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(rng.normal(), 2, s).astype(np.float32) for s in ((3, depth), (depth, 4)))
    a = ns.quantize(x, ns.Quant(left, rows, zero_point=True))
    b = ns.quantize(y, ns.Quant(right, columns, zero_point=True), axis=0)
    whole = (a.codes.astype(object) - a.zero_point) @ (b.codes.astype(object) - b.zero_point)
    want = whole.astype(np.int32).astype(np.float32) * (a.scale * b.scale).astype(np.float32)
    np.testing.assert_array_equal(ns.matmul(a, b, target="ideal.int"), want.astype(np.float32))


def test_the_int32_sum_is_exact_and_scaled_once():
    rng = np.random.default_rng(1)
    qa, qb = rng.integers(0, 256, (4, 100)), rng.integers(-128, 128, (100, 3))
    za, zb = rng.integers(0, 256, (4, 1)), rng.integers(-128, 128, (1, 3))
    want = (qa - za) @ (qb - zb)
    bare = [ns.QTensor.from_codes(q, f, zero_point=z)
            for q, f, z in ((qa, "uint8", za), (qb, "int8", zb))]  # fmt: skip
    for target in ("ideal.int", "x86.vpdpbusd", "x86.tdpbssd"):
        try:
            got = ns.matmul(*bare, target=target)
        except ns.UnsupportedError:
            continue
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, want)
    sa, sb = np.float32(0.1), rng.random((1, 3)).astype(np.float32)
    a = ns.QTensor.from_codes(qa, "uint8", zero_point=za, scale=sa)
    b = ns.QTensor.from_codes(qb, "int8", zero_point=zb, scale=sb)
    scaled = want.astype(np.float32) * (sa * sb).astype(np.float32)
    np.testing.assert_array_equal(ns.matmul(a, b, target="ideal.int"), scaled)


def test_the_terms_of_zero_points_leave_int32_as_the_sum_does():
    """32768 products of 255 * -128 less those of zero points: 2**31 and more, modulo 2**32."""
    a = ns.QTensor.from_codes(np.full((1, 1 << 16), 255), "uint8", zero_point=0)
    b = ns.QTensor.from_codes(np.full((1 << 16, 1), -128), "int8", zero_point=127)
    exact = (1 << 16) * 255 * (-128 - 127)
    wrapped = (exact + (1 << 31)) % (1 << 32) - (1 << 31)
    assert ns.matmul(a, b, target="ideal.int")[0, 0] == wrapped
    stays = ns.get_target("ideal.int", overflow="saturate")
    assert ns.matmul(a, b, target=stays)[0, 0] == -(1 << 31)
    with pytest.raises(ns.NumsimError, match="zero points overflows at row 0"):
        ns.matmul(a, b, target=ns.get_target("ideal.int", overflow="raise"))


def test_zero_is_exact_and_every_value_within_half_a_step():
    x = np.concatenate([[0.0], np.random.default_rng(2).normal(3, 1, 500)]).astype(np.float32)
    for fmt in FORMATS:
        q = ns.quantize(x, fmt, zero_point=True)
        assert q.dequantize()[0] == 0
        assert np.abs(q.dequantize() - x).max() <= 0.5000001 * q.scale
        assert int(q.codes.min()) == ns.get_format(fmt).min


def test_parts_and_turns_keep_their_zero_points():
    x = np.random.default_rng(3).normal(1, 1, (4, 96)).astype(np.float32)
    for how in ({"block": 32}, {"granularity": "per_token"}, {"granularity": "per_tensor"}):
        q = ns.quantize(x, ns.Quant("uint4", zero_point=True, **how))
        whole = q.dequantize()
        np.testing.assert_array_equal(q[1:3, 32:].dequantize(), whole[1:3, 32:])
        np.testing.assert_array_equal(q.T.dequantize(), whole.T)
        np.testing.assert_array_equal(q.values() * q.element_scale(), whole)


def test_bits_count_zero_points():
    q = ns.quantize(np.ones((2, 128), np.float32), ns.Quant("uint4", block=128, zero_point=True))
    assert q.bits_per_value() == 4 + (32 + 4) / 128 == q.quant.stored_bits(2, 128) / 256


def test_the_ends_of_float32_stay_finite():
    top = np.finfo(np.float32).max
    for fmt in FORMATS:
        q = ns.quantize(np.float32([-top, top, 0.0, 1.0]), fmt, zero_point=True)
        assert np.isfinite(q.dequantize()).all()
        assert q.dequantize()[2] == 0


def test_zero_points_where_there_can_be_none():
    for how in ({"format": "e4m3"}, {"format": "nf4"}, {"format": "q3.4"}, {"format": "int32"}):
        with pytest.raises(ns.NumsimError, match="zero points are for integers"):
            ns.Quant(**how, zero_point=True)
    with pytest.raises(ns.NumsimError, match="float32, of the whole range"):
        ns.Quant("int8", zero_point=True, scale_rule="mse")
    with pytest.raises(ns.NumsimError, match="zero points are for integers"):
        ns.QTensor.from_codes([1], "e4m3", zero_point=1)
    with pytest.raises(ns.NumsimError, match=r"against the scales, \(1, 2\)"):
        ns.QTensor.from_codes([[1, 2]], "int8", scale=[[1, 1]], zero_point=[1, 2, 3], block=1)
    with pytest.raises(ns.NumsimError, match="1 of 3 are not, the first at index"):
        ns.quantize([1.0, np.nan, 2.0], "uint8", zero_point=True)
    q = ns.QTensor.from_codes([[1, 2]], "int8", zero_point=[[1, 2]])
    with pytest.raises(ns.UnsupportedError, match="zero point is constant along K"):
        ns.matmul(q, q.T, target="ideal.int")


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("how", [{}, {"granularity": "per_token"}, {"block": 24}], ids=str)
def test_given_zero_points_are_onnx_quantize_linear(fmt, how):
    """saturate(round(x / scale) + zero point), in Python's numbers; and those of a first call."""
    rng = np.random.default_rng(6)
    x = rng.normal(0.5, 2, (3, 60)).astype(np.float32)
    q = ns.quantize(x, ns.Quant(fmt, zero_point=True, **how))
    again = ns.quantize(x, ns.Quant(fmt, **how), scale=q.scale, zero_point=q.zero_point)
    np.testing.assert_array_equal(again.codes, q.codes)
    f = ns.get_format(fmt)
    low, high = int(f.min), int(f.max)
    scale = rng.uniform(0.05, 0.5, q.scale.shape).astype(np.float32)
    zeros = rng.integers(low, high + 1, q.scale.shape)
    got = ns.quantize(x, fmt, scale=scale, zero_point=zeros, **how)
    each, zero = (np.broadcast_to(v, x.shape)
                  for v in (got.element_scale(), got.element_zero_point()))  # fmt: skip
    want = [min(max(round(float(v / s)) + int(z), low), high)
            for v, s, z in zip(x.ravel(), each.ravel(), zero.ravel(), strict=True)]  # fmt: skip
    assert got.codes.ravel().tolist() == want
    assert got.quant.zero_point


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"zero_point": 3}, "go together; got only zero points"),
        ({"zero_point": True, "scale": 1.0}, "go together; got only scales"),
        ({"zero_point": 300, "scale": 1.0}, "codes of uint8, 0 to 255; 1 of 1 are not"),
        ({"zero_point": 1.5, "scale": 1.0}, r"integers of the shape \(\)"),
        ({"zero_point": [1, 2], "scale": 1.0}, r"integers of the shape \(\)"),
        ({"zero_point": 1, "scale": np.nan}, "positive and finite"),
        ({"zero_point": 1, "scale": 3e38}, "leaves float32"),
        ({"zero_point": 1, "scale": 1.0, "tensor_scale": 1.0}, "this Quant has none"),
    ],
)
def test_given_zero_points_that_cannot_be(given, words):
    with pytest.raises(ns.NumsimError, match=words):
        ns.quantize([1.0, 2.0], "uint8", **given)


def test_an_epilogue_of_integers_is_onnx_quantize_linear():
    acc = np.int32([-300, 5, 7, 999, 1000])
    got = ns.epilogue(acc, alpha=0.5, out_format="uint8", scale_result=0.5, zero_point=3)
    np.testing.assert_array_equal(got, [0, 4, 5, 253, 253])  # ties 249.75, 1.25, 1.75 -> even
    assert ns.epilogue(np.int32([2]), alpha=0.25, out_format="int8", zero_point=-1)[0] == -1
    with pytest.raises(ns.NumsimError, match="a code of an integer out_format; got 300 for uint8"):
        ns.epilogue(acc, alpha=1.0, out_format="uint8", zero_point=300)
    with pytest.raises(ns.NumsimError, match="got 1 for float16"):
        ns.epilogue(acc, alpha=1.0, out_format="float16", zero_point=1)
    with pytest.raises(ns.NumsimError, match=r"int8 has no NaN; 1 of 2 .* index \(1,\)"):
        ns.epilogue(np.float32([1, np.nan]), alpha=1.0, out_format="int8")


def test_the_outer_accumulator_of_parts_holds_their_zero_points():
    """Sums beyond 32 bits in an outer accumulator of 48 keep their upper bits."""
    a = ns.QTensor.from_codes(np.full((1, 1 << 17), 255), "uint8", zero_point=1)
    b = ns.QTensor.from_codes(np.full((1 << 17, 1), 255), "uint8", zero_point=0)
    unit = ns.get_target("ideal.int", promote_every=1 << 10, outer_bits=48)
    assert ns.matmul(a, b, target=unit)[0, 0] == (1 << 17) * 254 * 255


def test_stats_count_terms_that_leave_the_accumulator():
    a = ns.QTensor.from_codes(np.full((1, 1 << 15), 255), "uint8", zero_point=255)
    b = ns.QTensor.from_codes(np.full((1 << 15, 1), 255), "uint8", zero_point=0)
    d, stats = ns.matmul(a, b, target="ideal.int", stats=True)
    assert d[0, 0] == 0  # 2130739200 less as much: nothing leaves int32
    assert stats.wraps == 0
    b = ns.QTensor.from_codes(np.full((1 << 15, 1), -128), "int8", zero_point=127)
    assert ns.matmul(a, b, target="ideal.int", stats=True)[1].wraps == 0
    b = ns.QTensor.from_codes(np.full((1 << 16, 1), -128), "int8", zero_point=127)
    a = ns.QTensor.from_codes(np.full((1, 1 << 16), 255), "uint8", zero_point=0)
    assert ns.matmul(a, b, target="ideal.int", stats=True)[1].wraps == 1
