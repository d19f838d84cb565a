"""Tensors of long rows are cut in all axes: every part is that of the whole."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import numsim as ns
from numsim.quant import Quant, extremes

quantizing = importlib.import_module("numsim.quant.quantize")
QUANTS = (
    "nvfp4", "nvfp4_row", "nvfp4_4over6", "if4", "hif4", "amdfp4", "mxfp4_e2m1",
    Quant("float8_e4m3fn", block=(16, 16)),
    Quant("e2m1", block=(16, 16), scale_format="e4m3"),
    Quant("e2m1", block=16, scale_format="e4m3", scale=0.01),
    Quant("e2m1", block=16, scale_format="e4m3", scale_rule="mse"),
    Quant("uint4", block=32, zero_point=True), Quant("uint8", "per_token", zero_point=True),
    Quant("int8", "per_channel"), Quant("int8", "per_token", scale_rule="percentile:99"),
    Quant("e2m1", block=16, scale_format="e4m3", rounding="sr"),
)  # fmt: skip


@pytest.fixture
def narrow(monkeypatch):
    """Return what makes every tensor a wide one."""

    def set_limits():
        monkeypatch.setattr(quantizing, "WIDE_ROW", 64)
        monkeypatch.setattr(extremes, "PIECE", 512)

    return set_limits


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("shape", [(48, 210), (130, 1000), (3, 70, 64)], ids=str)
@pytest.mark.parametrize("quant", QUANTS, ids=str)
def test_panels_have_the_bits_of_the_whole(quant, shape, axis, narrow):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    whole = ns.quantize(x, quant, axis=axis, seed=3)
    narrow()
    parts = ns.quantize(x, quant, axis=axis, seed=3)
    for name in ("codes", "scale", "scale_codes", "zero_point", "tensor_scale"):
        got, want = getattr(parts, name), getattr(whole, name)
        assert (got is None) == (want is None)
        if want is not None:
            np.testing.assert_array_equal(got, want)
            assert np.shape(got) == np.shape(want)
    assert parts.block_shape == whole.block_shape


def test_numbers_without_a_scale_are_counted_in_the_whole(narrow):
    x = np.ones((48, 2100), np.float32)
    x[40, 2000], x[41, 3] = np.inf, np.nan
    narrow()
    for quant in ("nvfp4", "hif4", Quant("int8", "per_token"), Quant("int8", block=16)):
        with pytest.raises(ns.NumsimError, match=r"2 of 100800 are not, .* index \(40, 2000\)"):
            ns.quantize(x, quant, axis=0)
