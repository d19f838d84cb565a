"""Scales outside the unit: which operand they belong to, in which order, and what C means."""

from __future__ import annotations

import numpy as np
import pytest

import numsim as ns

E4M3 = "float8_e4m3fn"
BLOCKS = ns.Quant(E4M3, "per_block", block=16)


def of(shape, quant, axis, seed=0):
    return ns.quantize(np.random.default_rng(seed).normal(size=shape), quant, axis=axis)


def each(a, b, **more):
    """The product of every item of a batch by itself."""
    pairs = zip(a, b, strict=True)
    return np.stack([ns.matmul(x, y, target="ideal.exact", **more) for x, y in pairs])


def same(got, want):
    np.testing.assert_array_equal(np.asarray(got).view(np.uint32), np.asarray(want).view(np.uint32))


def test_scale_of_the_operand_that_broadcasts_is_kept():
    """A scale of 1/448 was dropped: 14,336 for 32."""
    a = ns.quantize(np.ones((1, 32)), E4M3)
    b = ns.quantize(np.ones((2, 32, 1)), BLOCKS, axis=-2)
    alone = ns.matmul(a, ns.quantize(np.ones((32, 1)), BLOCKS, axis=-2), target="ideal.exact")
    same(ns.matmul(a, b, target="ideal.exact"), np.stack([alone, alone]))
    assert abs(float(alone[0, 0]) - 32) < 1e-4


@pytest.mark.parametrize("lead", [(), (1,)])
@pytest.mark.parametrize("left", [E4M3, ns.Quant(E4M3, "per_token"), BLOCKS])
def test_left_operand_broadcasts_against_blocks(lead, left):
    x = np.random.default_rng(1).normal(size=(*lead, 4, 64))
    a, b = ns.quantize(x, left), of((3, 64, 5), BLOCKS, -2)
    one = ns.quantize(x.reshape(4, 64), left)
    parts = [
        ns.quantize(w, BLOCKS, axis=-2) for w in np.random.default_rng(0).normal(size=(3, 64, 5))
    ]
    same(ns.matmul(a, b, target="ideal.exact"), each([one] * 3, parts))


@pytest.mark.parametrize("lead", [(), (1,)])
@pytest.mark.parametrize("right", [E4M3, ns.Quant(E4M3, "per_channel"), BLOCKS])
def test_right_operand_broadcasts_against_blocks(lead, right):
    w = np.random.default_rng(2).normal(size=(*lead, 64, 5))
    a, b = of((3, 4, 64), BLOCKS, -1), ns.quantize(w, right, axis=-2)
    one = ns.quantize(w.reshape(64, 5), right, axis=-2)
    parts = [ns.quantize(x, BLOCKS) for x in np.random.default_rng(0).normal(size=(3, 4, 64))]
    same(ns.matmul(a, b, target="ideal.exact"), each(parts, [one] * 3))


def test_scales_inside_the_unit_broadcast():
    x = np.random.default_rng(3).normal(size=(1, 2, 64))
    w = np.random.default_rng(4).normal(size=(3, 64, 5))
    got = ns.matmul(
        ns.quantize(x, "mxfp8_e4m3"), ns.quantize(w, "mxfp8_e4m3", axis=-2),
        target="nvidia.rtx_blackwell.mma",
    )  # fmt: skip
    one = ns.quantize(x[0], "mxfp8_e4m3")
    for d, y in zip(got, w, strict=True):
        part = ns.quantize(y, "mxfp8_e4m3", axis=-2)
        same(d, ns.matmul(one, part, target="nvidia.rtx_blackwell.mma"))


def test_a_scale_that_varies_along_k_without_blocks_is_refused():
    a = ns.QTensor.from_codes(np.full((1, 32), 0x38), E4M3, scale=np.arange(32.0)[None])
    with pytest.raises(ns.UnsupportedError, match="constant along K"):
        ns.matmul(a, of((32, 1), BLOCKS, 0), target="ideal.exact")


@pytest.mark.parametrize("k", [16, 32, 40])
@pytest.mark.parametrize("target", ["nvidia.hopper.wgmma", "ideal.exact"])
def test_c_joins_the_sum_of_scaled_blocks_unscaled(k, target):
    """One block scaled it; two did not."""
    a, b = (ns.quantize(np.ones(s), BLOCKS, axis=x) for s, x in (((1, k), -1), ((k, 1), 0)))
    c = np.float32([[100]])
    assert ns.matmul(a, b, target=target, c=c) == 100 + k


def test_c_of_scaled_integer_blocks_has_the_type_of_the_result():
    q = ns.Quant("int8", "per_block", block=16)
    a, b = ns.quantize(np.ones((1, 16)), q), ns.quantize(np.ones((16, 1)), q, axis=0)
    with pytest.raises(ns.NumsimError, match="float32"):
        ns.matmul(a, b, target="ideal.int", c=[[100]])
    plain = ns.matmul(a, b, target="ideal.int")
    same(ns.matmul(a, b, target="ideal.int", c=np.float32([[100]])), plain + np.float32(100))


def test_c_comes_after_the_scale_of_the_whole_tensor():
    a, b = (of((32, 32), "nvfp4", axis, 5) for axis in (-1, 0))
    plain = ns.matmul(a, b, target="ideal.exact")
    c = np.full((32, 32), 3, np.float32)
    same(ns.matmul(a, b, target="ideal.exact", c=c), plain + c)


# --------------------------------------------------------------------------- formats of the result
def test_float32_output_of_an_integer_unit():
    a = ns.QTensor.from_codes([[127] * 2000 + [1]], "int8")
    exact = ns.matmul(a, a.T, target="ideal.int")
    assert exact.dtype == np.int32
    rounded = ns.matmul(a, a.T, target="ideal.int", out_format="float32")
    assert rounded.dtype == np.float32
    assert rounded == np.float32(exact)
    assert int(rounded[0, 0]) != int(exact[0, 0])
    wide = ns.get_target("ideal.int", acc_bits=48)
    with pytest.raises(ns.UnsupportedError, match="int32"):
        ns.matmul(a, a.T, target=wide, out_format="int32")


@pytest.mark.parametrize("fmt", ["bfloat16", "tfloat32"])
def test_no_float16_result_for_operands_that_lack_it(fmt):
    a = ns.QTensor.from_codes(np.zeros((2, 4), ns.get_format(fmt).code_dtype), fmt)
    with pytest.raises(ns.UnsupportedError, match="returns float32 for operands"):
        ns.matmul(a, a.T, target="nvidia.hopper.wgmma", out_format="float16")
    mx = ns.quantize(np.ones((2, 32)), "mxfp8_e4m3")
    with pytest.raises(ns.UnsupportedError, match="returns float32 for operands mx:"):
        ns.matmul(mx, mx.T, target="nvidia.blackwell.tcgen05", out_format="float16")
