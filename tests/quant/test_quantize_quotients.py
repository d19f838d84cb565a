"""One scale for a tensor: amax, quotient and code in one pass give what encode(x / scale) gives."""

import numpy as np
import pytest

import numsim as ns
from numsim.dispatch import encode_quotients
from numsim.errors import NumsimError
from numsim.kernels.ir import simd
from numsim.kernels.jit import using_threads

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
    x = np.random.default_rng(1).normal(size=(300, 400)).astype(np.float32)
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
