"""One scale for a tensor: amax, quotient and code in one pass give what encode(x / scale) gives."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

import numsim as ns
from numsim.dispatch import encode_quotients
from numsim.errors import NumsimError
from numsim.kernels.ir import simd
from numsim.kernels.jit import using_threads
from numsim.quant import as_quant

steps = import_module("numsim.quant.quantize")  # the package has a function of that name
FORMATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "int8", "int16", "q3.4", "int4",
           "float6_e3m2fn", "float4_e2m1fn", "bfloat16", "float16")  # fmt: skip


def by_steps(x, fmt):
    """Quantize with the scale of `quantize`, but the quotient and its code apart."""
    q = ns.quantize(x, ns.Quant(fmt, "per_tensor"))
    with np.errstate(over="ignore", under="ignore"):
        codes = ns.encode(np.asarray(x, np.float32) / q.scale, fmt)
    return q, codes


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_codes_are_those_of_the_rounded_quotient(fmt, path):
    rng = np.random.default_rng(0)
    with simd.force(path):
        for size in (1, 63, 64, 65, 1023, 1025, 3000):
            x = (rng.normal(size=size) * 2.0 ** rng.integers(-20, 9, size)).astype(np.float32)
            q, codes = by_steps(x, fmt)
            np.testing.assert_array_equal(q.codes, codes)
            if ns.get_format(fmt).emax < 100:
                amax = np.float32(np.abs(x).max())
                want = np.float32(np.float64(amax) / ns.get_format(fmt).max)
                assert q.scale == want


@pytest.mark.parametrize("fmt", FORMATS[:4])
@pytest.mark.parametrize("size", [0.0, -0.0, 1e-45, 3e-42, 1e-38, 3e38])
def test_tiny_huge_and_zero_tensors(fmt, size):
    x = np.array([1.0, -0.75, 0.3, -1e-6, 0.0], np.float32) * np.float32(size)
    q, codes = by_steps(x, fmt)
    np.testing.assert_array_equal(q.codes, codes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    x = np.ones((3, 4), np.float32)
    x[2, 1] = bad
    with pytest.raises(NumsimError, match=r"1 of 12 are not, the first at index \(2, 1\)"):
        ns.quantize(x, ns.Quant("float8_e4m3fn", "per_tensor"))


def test_views_and_threads_change_nothing():
    x = np.random.default_rng(1).normal(size=(700, 800)).astype(np.float32)
    quant = ns.Quant("float8_e4m3fn", "per_tensor")
    want = ns.quantize(x, quant).codes
    for view in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x.astype(np.float64)):
        if view.dtype == np.float32:
            np.testing.assert_array_equal(ns.quantize(view, quant).codes, want)
    with using_threads(2) as possible:
        if possible:
            np.testing.assert_array_equal(ns.quantize(x, quant).codes, want)


def test_quotients_that_are_nan_are_left_to_others():
    x, out = np.array([0.0, 1.0], np.float32), np.empty(2, np.uint8)
    assert not encode_quotients(ns.get_format("float8_e4m3fn"), x, np.float32(0), out)


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2", "int8", "int4"])
def test_a_scale_for_every_row_gives_the_codes_of_each_row(fmt, path):
    rng = np.random.default_rng(3)
    with simd.force(path):
        for shape in ((3, 300), (2, 3, 1025), (4, 100)):
            x = (rng.normal(size=shape) * 2.0 ** rng.integers(-9, 9, shape)).astype(np.float32)
            q = ns.quantize(x, ns.Quant(fmt, "per_token"))
            np.testing.assert_array_equal(q.codes, ns.encode(x / q.scale, fmt))
            np.testing.assert_array_equal(
                q.codes[0], ns.quantize(x[:1], ns.Quant(fmt, "per_token")).codes[0]
            )


@pytest.mark.parametrize("shape", [(64, 64), (5000,), (6, 5, 40)])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("name", ["nvfp4", "nvfp4_row", "nvfp4_4over6", "if4", "hif4", "amdfp4",
                                  "mxfp4_e2m1", "mxint8"])  # fmt: skip
def test_parts_of_a_large_tensor_are_stored_as_the_whole(name, axis, shape, monkeypatch):
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    rules = [as_quant(name)]
    if name.startswith("mx") or name == "nvfp4":
        rules += [replace(rules[0], scale_rule="mse"), replace(rules[0], rounding="sr")]
    for rule in rules:
        want = ns.quantize(x, rule, axis=axis, seed=5, offset=3)
        monkeypatch.setattr(steps, "PART", 500)
        got = ns.quantize(x, rule, axis=axis, seed=5, offset=3)
        monkeypatch.undo()
        np.testing.assert_array_equal(got.codes, want.codes)
        np.testing.assert_array_equal(got.scale, want.scale)
        np.testing.assert_array_equal(got.dequantize(), want.dequantize())
        if want.scale_codes is not None:
            np.testing.assert_array_equal(got.scale_codes, want.scale_codes)
