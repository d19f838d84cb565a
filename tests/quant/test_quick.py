"""What is stored with fewer questions asked is what `quantize` stores, or left to it."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

import numsim as ns
from numsim.dispatch.workers import GRAIN
from numsim.kernels.ir import simd
from numsim.kernels.jit import using_threads
from numsim.quant import Quant
from numsim.quant.quantize import quantize_pieces
from numsim.quant.quick import quick

quantize_module = importlib.import_module("numsim.quant.quantize")  # the function has its name
FORMATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "int8", "int4", "int16", "q3.4",
           "float6_e3m2fn", "float4_e2m1fn", "float16", "float_e5m6", "bfloat16", "float32",
           "uint8")  # fmt: skip


def numbers(size, rng):
    x = rng.normal(size=size) * 2.0 ** rng.integers(-30, 9, size)
    x[::7], x[3::11] = 0.0, -0.0
    return x.astype(np.float32)


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize("granularity", ["none", "per_tensor"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_codes_and_scale_are_those_of_quantize(fmt, granularity, path):
    rule, rng, taken = Quant(fmt, granularity), np.random.default_rng(0), 0
    with simd.force(path):
        for size in (1, 63, 64, 65, 1025, 40000):
            for by in (1.0, 0.0, 1e-25, 1e-36, 1e30, 1e37):
                with np.errstate(over="ignore"):
                    x = numbers(size, rng) * np.float32(by)
                x = x.reshape(-1, 5) if size % 5 == 0 else x
                with using_threads(1):
                    q = quick(x, rule)
                if q is None:
                    continue
                taken += 1
                want = quantize_pieces(x, rule)
                np.testing.assert_array_equal(q.codes, want.codes)
                assert q.codes.dtype == want.codes.dtype
                assert q.codes.shape == want.codes.shape
                assert q.scale.tobytes() == want.scale.tobytes()
                assert (q.scale.shape, q.scale.dtype) == (want.scale.shape, want.scale.dtype)
                assert (q.fmt, q.quant, q.block_shape, q.tensor_scale, q.zero_point) == (
                    want.fmt, want.quant, want.block_shape, want.tensor_scale, want.zero_point,
                )  # fmt: skip
    if fmt in ("bfloat16", "float32", "uint8"):
        assert not taken
    else:
        assert taken > 20


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e4m3fnuz", "float16", "int8"])
def test_every_value_and_middle_of_a_format(fmt):
    values = ns.get_format(fmt).values()
    values = np.unique(values[np.isfinite(values)])
    middle = (values[1:] + values[:-1]) / 2
    up, down = (np.nextafter(middle.astype(np.float32), np.float32(s)) for s in (1e9, -1e9))
    x = np.concatenate([values, middle, up, down, [-0.0]]).astype(np.float32)
    for rule in (Quant(fmt, "none"), Quant(fmt)):
        q, want = quick(x, rule), quantize_pieces(x, rule)
        assert q is None or np.array_equal(q.codes, want.codes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_left(bad):
    x = np.ones((3, 4), np.float32)
    x[2, 1] = bad
    for fmt in ("float8_e5m2", "int8"):
        assert quick(x, Quant(fmt)) is None
        assert quick(x, Quant(fmt, "none")) is None


@pytest.mark.parametrize(
    "rule",
    [Quant("int8", "per_token"), Quant("int8", block=32), Quant("int8", rounding="sr"),
     Quant("int8", rounding="rtz"), Quant("int8", overflow="wrap"), Quant("int8", scale=0.5),
     Quant("int8", scale_rule="mse"), Quant("int8", scale_rule="amax_half"),
     Quant("int8", scale_rule="amax:1"), Quant("int8", zero_point=True),
     Quant("int8", scale_format="bfloat16"), Quant("int8", scale_format="float8_e8m0fnu")],
)  # fmt: skip
def test_other_rules_are_left(rule):
    assert quick(np.ones((2, 64), np.float32), rule) is None


def test_other_arrays_are_left():
    rule = Quant("int8")
    assert quick(np.ones((4, 4), np.float64), rule) is None
    assert quick(np.ones((4, 4), np.float32)[:, ::2], rule) is None
    assert quick(np.ones((0, 4), np.float32), rule) is None
    fixed = np.ones((2, 2), np.float32)
    fixed.flags.writeable = False
    assert quick(fixed, rule).codes.tolist() == [[127, 127], [127, 127]]


@pytest.mark.parametrize("fmt", ["int8", "int4", "float8_e4m3fn", "float4_e2m1fn"])
def test_two_threads_share_large_arrays(fmt):
    rng, rule = np.random.default_rng(0), Quant(fmt)
    x = rng.standard_normal(3 * GRAIN + 5).astype(np.float32)
    kinds = [x, np.zeros_like(x), x * np.float32(2.0**-120), x * np.float32(2.0**-140)]
    for at, value in ((-1, 9.0), (7, np.inf), (-2, np.nan)):
        kinds.append(x.copy())
        kinds[-1][at] = value
    for values in kinds:
        with using_threads(1):
            one = quick(values, rule)
        with using_threads(2) as possible:
            two = quick(values, rule) if possible else one
            if not (possible and np.isfinite(values).all()):
                continue
            whole = ns.quantize(values, rule)
        if one is not None:
            np.testing.assert_array_equal(whole.codes, one.codes)
            np.testing.assert_array_equal(whole.scale, one.scale)
        assert two is None or one is not None


def test_small_arrays_are_quantised_the_quick_way(monkeypatch):
    asked = []
    monkeypatch.setattr(quantize_module, "quick", lambda x, rule: asked.append(x) or quick(x, rule))
    x, rule = np.ones((2, 3), np.float32), Quant("int8")
    ns.quantize(x, rule)
    ns.quantize(x, "int8", axis=7)
    assert len(asked) == 2
    for how in ({"scale": 0.5}, {"axis": np.int64(0)}):
        ns.quantize(x, rule, **how)
    ns.quantize(x, replace(rule, rounding="sr"), random=np.ones((2, 3), np.uint8))
    ns.quantize(np.ma.masked_array(x), rule)
    ns.quantize(x.tolist(), rule)
    assert len(asked) == 2
    with pytest.raises(ns.NumsimError, match="axis is an integer"):
        ns.quantize(x, rule, axis=True)
