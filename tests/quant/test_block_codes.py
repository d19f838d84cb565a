"""Blocks that are stored in one pass over memory: the same bits as amax, scale, quotient, code."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import numsim as ns
from numsim.dispatch.blocks import as_type, covers_blocks
from numsim.kernels.ir import simd
from numsim.quant import Quant, quantize
from numsim.quant.one_pass import in_one_pass
from numsim.quant.scales import block_shape, over_blocks, scales_from_amax
from numsim.quant.table import as_quant

RULES = ("floor", "ceil", "even", "rceil", "midmax")
FORMATS = (
    "float8_e4m3fn", "float8_e5m2", "float6_e3m2fn", "float6_e2m3fn", "float4_e2m1fn",
    "float8_e4m3fnuz", "int8", "q1.6", "int4", "float16",
)  # fmt: skip
TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
PATHS = ("avx512", "plain")  # with AVX2 the kernels are those of any processor


def numbers(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Any:
    """Return numbers of many binades, zeros of both signs and ends of a type's range."""
    rng = np.random.default_rng(seed)
    wide = dtype is not np.float16
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-60 if wide else -9, 9, shape))
    flat = x.reshape(-1)
    flat[::7] = 0.0
    flat[3::11] = -0.0
    flat[::13] = np.exp2(rng.integers(-20, 10, flat[::13].size))  # a binade's first number
    flat[5::17] = 2.0**-24 if not wide else 2.0**-149
    return x.astype(np.float32).astype(dtype)


def by_hand(x: Any, rule: Quant, axis: int) -> tuple[Any, Any]:
    """Return codes and scales as the definition says: numbers that float64 holds throughout."""
    wide = x.astype(np.float32)
    sizes = block_shape(rule, x.shape, axis)
    scale = scales_from_amax(over_blocks(np.abs(wide), sizes, np.maximum), rule)
    each = scale.repeat(rule.block, axis)[tuple(slice(n) for n in x.shape)].astype(np.float64)
    return ns.encode(wide / each, rule.fmt), scale


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_powers_of_two_are_those_of_the_definition(fmt: str, dtype: Any, path: str) -> None:
    with simd.force(path):
        for i, scale_rule in enumerate(RULES):
            rule = Quant(fmt, block=32, scale_format="float8_e8m0fnu", scale_rule=scale_rule)
            for shape, axis in (((37, 96), 1), ((96, 300), 0), ((70, 33), 0), ((2, 45, 40), 1)):
                x = numbers(shape, dtype, i)
                sizes = block_shape(rule, shape, axis)
                assert in_one_pass(x, rule, sizes, axis, lambda: None) is not None
                q, (codes, scale) = quantize(x, rule, axis=axis), by_hand(x, rule, axis)
                np.testing.assert_array_equal(q.scale, scale)
                np.testing.assert_array_equal(q.codes, codes)
                assert q.codes.dtype == codes.dtype
                assert q.scale_codes is not None
                np.testing.assert_array_equal(ns.decode(q.scale_codes, "float8_e8m0fnu"), scale)


@pytest.mark.parametrize("block", [1, 7, 16, 128, 600, 5000])
@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_of_any_size(block: int, axis: int) -> None:
    rule = Quant("float8_e5m2", block=block, scale_format="pow2")
    x = numbers((block * 2, 20), np.float32) if axis == 0 else numbers((20, block * 2), np.float32)
    q, (codes, scale) = quantize(x, rule, axis=axis), by_hand(x, rule, axis)
    np.testing.assert_array_equal(q.codes, codes)
    np.testing.assert_array_equal(q.scale, scale)
    assert q.scale_codes is None


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxint8", "nvfp4"])
def test_a_block_far_longer_than_its_axis_takes_no_room(name: str) -> None:
    x = numbers((4, 64), np.float32)
    for axis in (0, 1):
        long, short = (
            quantize(x, name, axis=axis, block=b) for b in ((1 << 31) - 1, x.shape[axis])
        )
        np.testing.assert_array_equal(long.codes, short.codes)
        np.testing.assert_array_equal(long.scale, short.scale)


def test_the_ends_of_the_range() -> None:
    tiny, top = np.float32(2.0**-149), np.finfo(np.float32).max
    x = np.zeros((6, 32), np.float32)
    x[0, 3], x[1, 5], x[2, 7] = tiny, top, -top
    x[3, :] = -0.0
    x[4, 0], x[4, 1] = top, tiny
    for name in ("mxfp8_e4m3", "mxfp4_e2m1", "mxint8"):
        rule = as_quant(name)
        q, (codes, scale) = quantize(x, rule), by_hand(x, rule, 1)
        np.testing.assert_array_equal(q.scale, scale)
        if name != "mxint8":  # whose -128 of the largest scale leaves float32
            np.testing.assert_array_equal(q.codes, codes)
        assert np.isfinite(q.dequantize()).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxint8", "nvfp4"])
def test_what_is_not_finite_is_named(name: str, dtype: Any, bad: float) -> None:
    x = np.ones((64, 64), dtype)
    x[5, 40] = bad
    for axis in (0, 1):
        with pytest.raises(
            ns.NumsimError, match=r"1 of 4096 are not, the first at index \(5, 40\)"
        ):
            quantize(x, name, axis=axis)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scales", ["float8_e4m3fn", "float8_ue5m3", "float8_e5m2"])
@pytest.mark.parametrize("block", [16, 32, 5])
def test_e2m1_under_narrow_scales_is_rounded_once(
    block: int, scales: str, dtype: Any, path: str
) -> None:
    rule = Quant("float4_e2m1fn", block=block, scale_format=scales)
    with simd.force(path):
        for shape, axis in (((30, 40 * block), 1), ((block * 3 + 2, 300), 0)):
            x = numbers(shape, dtype)
            q = quantize(x, rule, axis=axis)
            each = q.element_scale().astype(np.float64) * np.float64(q.tensor_scale)
            with np.errstate(over="ignore"):
                codes = ns.encode(x.astype(np.float64) / each, rule.fmt)
            np.testing.assert_array_equal(q.codes, codes)


def test_ties_of_e2m1_go_to_the_even_code() -> None:
    middles = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    near = [middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(9))]
    rows = np.stack([np.concatenate([n, -n]) for n in near])
    for axis, x in ((1, rows), (0, np.ascontiguousarray(rows.T))):
        for factor in (1.0, 0.4375):
            scale = np.full((3, 1) if axis else (1, 3), factor, np.float32)
            q = quantize(x * np.float32(factor), "nvfp4", axis=axis, scale=scale, tensor_scale=1.0)
            np.testing.assert_array_equal(q.codes, ns.encode(x, "float4_e2m1fn"))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_numbers_of_16_bits_become_float32(dtype: Any) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    wide, real = as_type(x, np.float32), x.astype(np.float32)
    np.testing.assert_array_equal(wide.view(np.uint32)[~np.isnan(real)],
                                  real.view(np.uint32)[~np.isnan(real)])  # fmt: skip
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(real))
    assert as_type(x[:9], np.float64).dtype == np.float64


def test_threads_and_layout_change_nothing() -> None:
    x = numbers((256, 4096), np.float32)
    for name in ("mxfp8_e4m3", "nvfp4"):
        for axis in (0, 1):
            one = quantize(x, name, axis=axis)
            with ns.kernels.jit.using_threads(1):
                two = quantize(x, name, axis=axis)
            three = quantize(np.asfortranarray(x), name, axis=axis)
            for q in (two, three):
                np.testing.assert_array_equal(one.codes, q.codes)
                np.testing.assert_array_equal(one.scale, q.scale)


def test_what_kernels_leave_to_the_general_way() -> None:
    x = np.ones((4, 40), np.float32)
    assert not covers_blocks(x, 1, 32)
    assert covers_blocks(x, 0, 32)
    assert not covers_blocks(x[:, ::2], 1, 4)
    assert not covers_blocks(x.astype(np.float64), 1, 8)
    for rule in (
        Quant("float8_e4m3fn", block=8, scale_format="pow2", rounding="sr"),
        Quant("float8_e4m3fn", block=8, scale_format="pow2", scale_rule="mse"),
        Quant("float8_e4m3fn", block=(2, 8), scale_format="pow2"),
        Quant("float8_e4m3fn", block=8),
        Quant("nf4", block=8, scale_format="pow2"),
    ):
        sizes = block_shape(rule, x.shape, 1)
        assert in_one_pass(x, rule, sizes, 1, lambda: None) is None


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "nvfp4", "mxint8"])
def test_a_tensor_without_rows_has_blocks_of_its_columns(name: str) -> None:
    rule = as_quant(name)
    for shape, axis, grid in (((0, 70), 1, (0, -(-70 // rule.block))), ((70, 0), 1, (70, 0))):
        q = quantize(np.ones(shape, np.float32), rule, axis=axis)
        assert q.scale.shape == grid
        assert q.dequantize().shape == shape
