"""Blocks of two kinds: the kernels for runs of memory against the general way."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

import numsim as ns


def hard(rng):
    """Steps of E2M1 times scales and their neighbours, zeros of both signs, and plain numbers."""
    x = rng.standard_normal((8, 256)).astype(np.float32)
    steps = np.float32([0, -0.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, -5, -3.5, 0.5, 3, 4, -6])
    x[1] = np.tile(steps, 16)
    x[2] = np.nextafter(x[1], np.float32(10))
    x[3] = np.nextafter(x[1], np.float32(-10))
    x[4, :128] = 0
    x[5] *= 1e-20
    x[6] = np.tile(np.float32([7, 6.5, 5.5, 4.5, 3.5, 2.5, 1.5, 0.5] * 2) / 7 * 6, 16)
    return x


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "quant",
    [
        "hif4", "if4", "nvfp4_4over6",
        ns.Quant("e2m1", block=16, scale_format="e4m3", scale_rule="4over6:mae", scale_max=448),
        ns.Quant("e2m1", block=8, scale_format="e4m3", scale_rule="4over6:mse", tensor_scale=None),
        ns.Quant("e2m1", block=32, scale_format="e4m3", scale_rule="if4",
                 tensor_scale="per_token"),
        ns.Quant("e2m1", block=16, scale_format="e4m3", scale_rule="if4", tensor_scale=None),
    ],
    ids=str,
)  # fmt: skip
def test_runs_of_memory_are_as_any_other_blocks(quant, seed):
    x = hard(np.random.default_rng(seed))
    fast = ns.quantize(x, quant)
    slow = ns.quantize(np.asfortranarray(x), quant)
    for name in ("codes", "scale_codes", "scale"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))
    down = ns.quantize(np.ascontiguousarray(x.T), quant, axis=0)
    np.testing.assert_array_equal(down.dequantize().T, fast.dequantize())
    general = ns.quantize(x.T.astype(np.float64), quant, axis=0)  # float32 is turned into rows
    for name in ("codes", "scale_codes", "scale"):
        np.testing.assert_array_equal(getattr(down, name), getattr(general, name))


def test_if4_without_a_tensor_scale_is_under_its_block_scales_alone():
    """In [-6, 6] with an amax of 6 the scale is 1: steps of E2M1, or of 6/7 where these are off."""
    rule = ns.Quant("e2m1", block=16, scale_format="e4m3", scale_rule="if4", tensor_scale=None)
    floats = np.float32([6, 4, 3, 2, 1.5, 1, 0.5, 0, -6, -4, -3, -2, -1.5, -1, -0.5, 0])
    sevens = np.float32([7, 6, 5, 4, 3, 2, 1, 0, -7, -6, -5, -4, -3, -2, -1, 0])
    integers = sevens * np.float32(6 / 7)
    for x in (np.stack([floats, integers]), np.stack([floats[:7], integers[:7]])):
        q = ns.quantize(x, rule)
        assert (q.scale_codes >> 7).ravel().tolist() == [0, 1]
        np.testing.assert_allclose(q.dequantize(), x, rtol=2e-7)


def test_if4_under_scales_of_columns_in_pieces():
    rule = ns.Quant(
        "e2m1", block=16, scale_format="e4m3", scale_rule="if4", tensor_scale="per_token"
    )
    x = np.random.default_rng(0).standard_t(3, (4096, 128)).astype(np.float32)
    q, rows = ns.quantize(x, rule, axis=0), ns.quantize(np.ascontiguousarray(x.T), rule)
    np.testing.assert_array_equal(q.codes.T, rows.codes)
    np.testing.assert_array_equal(q.tensor_scale.T, rows.tensor_scale)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("quant", ["hif4", "if4", "nvfp4_4over6"])
def test_words_of_16_bits_are_stored_as_their_float32_numbers(quant, dtype):
    x = hard(np.random.default_rng(5)).astype(ns.cast(np.zeros(1), dtype).dtype)
    for values, axis in ((x, -1), (np.ascontiguousarray(x.T), 0)):
        got = ns.quantize(values, quant, axis=axis)
        want = ns.quantize(values.astype(np.float64), quant, axis=axis)
        for name in ("codes", "scale_codes", "scale"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_sums_of_errors_that_are_equal_keep_the_first_way():
    """Blocks of zeros and of 6: neither scale has an error, and that which maps to 6 stays."""
    x = np.zeros((4, 16), np.float32)
    x[0, 0], x[1, :2], x[2], x[3] = 6.0, [6.0, 1.0], 6.0, 4.0
    rule = ns.Quant("e2m1", block=16, scale_format="e4m3", scale_rule="4over6:mse",
                    tensor_scale=None)  # fmt: skip
    fast, slow = ns.quantize(x, rule), ns.quantize(x.astype(np.float64), rule)
    np.testing.assert_array_equal(fast.scale_codes, slow.scale_codes)
    np.testing.assert_array_equal(fast.scale.ravel()[:3], [1.0, 1.0, 1.0])


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_if4_holds_no_integers_where_both_ways_err_alike(dtype, axis):
    """A number alone comes near 6 scales, which is 7 times 6/7 of one: equal errors, exactly."""
    rng = np.random.default_rng(4)
    x = np.zeros((600, 32), dtype)
    x[:, 3] = np.float32(rng.uniform(1, 30, 600)) * rng.choice([-1, 1], 600)
    x[::2, 7] = -x[::2, 3]
    x[:, 16] = np.float32(rng.uniform(30, 60, 600))  # whose row has a scale of its own
    rule = ns.Quant(
        "e2m1", block=16, scale_format="e4m3", scale_rule="if4", tensor_scale="per_token"
    )
    q = ns.quantize(x if axis else np.ascontiguousarray(x.T), rule, axis=axis)
    assert not (q.scale_codes & 0x80).any()


@pytest.mark.parametrize("error", ["mae", "mse"])
@pytest.mark.parametrize("layout", ["rows", "columns", "float64"])
def test_the_second_scale_of_4over6_is_rounded_from_the_exact_quotient(error, layout):
    """Where amax / 4 / S lies between two codes it goes to the even one: exact integers say so."""
    rng, fmt = np.random.default_rng(0), ns.get_format("float8_e4m3fn")
    codes = np.arange(1, 127)
    middles = [(Fraction(float(x)) + Fraction(float(y))) / 2
               for x, y in pairwise(fmt.decode_bits(codes))]  # fmt: skip
    even = [int(code + code % 2) for code in codes[:-1]]
    rule = ns.Quant("e2m1", block=16, scale_format="e4m3", scale_rule=f"4over6:{error}")
    met = 0
    for s in (1, 3, 5, 7, 11, 1.25):  # 4 middle S is a float32, and S is
        tops = [float(4 * middle * Fraction(s)) for middle in middles]
        x = rng.uniform(-1, 1, (len(tops) + 1, 16)) * np.float64([0, *tops])[:, None]
        x[0, 0] = 1536 * s  # S is amax / 6 / 256
        x[1:, 3] = tops
        x = x.astype(np.float32)
        keep = np.abs(x[1:]).max(axis=1) <= x[0, 0]
        x[1:] *= keep[:, None]
        if layout == "columns":
            q = ns.quantize(x.T.copy(), rule, axis=0)
            found = q.scale_codes.reshape(-1)
        else:
            q = ns.quantize(x.astype(np.float64) if layout == "float64" else x, rule)
            found = q.scale_codes.reshape(-1)
        assert float(q.tensor_scale) == s
        six = ns.encode(x[1:].astype(np.float64).max(axis=1) / 6 / s, fmt)
        four = np.where(keep, even, 0)
        chosen = keep & (found[1:] != six)
        np.testing.assert_array_equal(found[1:][chosen], four[chosen])
        met += chosen.sum()
    assert met > 100


def test_what_is_refused_of_draws_and_of_numbers_that_are_not():
    """One word for one mistake: whatever the dtype and layout, and quietly for bfloat16."""
    x, r = np.ones((4, 128), np.float32), np.zeros((4, 128), np.int64)
    for rule in ("nvfp4", "nvfp4_4over6", "if4", "mxfp8_e4m3", "e4m3"):
        for values in (x, x.astype(np.float64), np.asfortranarray(x)):
            with pytest.raises(ns.NumsimError, match="random= belongs to rounding='sr'"):
                ns.quantize(values, rule, random=r)
    wide = np.zeros((1, (1 << 21) + 64), ml_dtypes.bfloat16)
    wide[0, 5] = np.nan
    tall = np.zeros((2, (1 << 20) + 64), ml_dtypes.bfloat16)
    tall[1, 5] = np.nan
    for values in (wide, tall):
        for rule in ("nvfp4", "hif4", "mxfp8_e4m3"):
            with np.errstate(all="raise"), pytest.raises(ns.NumsimError, match="need finite"):
                ns.quantize(values, rule)


def test_scales_of_float64_are_rounded_once():
    """A magnitude of 53 bits beside a tie of two codes, by as little as its last place."""
    values = ns.get_format("float8_e4m3fn").decode_bits(np.arange(127))
    for s in (1.0, 1.25, 1.0000001192092896, 1.9999998807907104):
        for c in range(1, 126):
            tie = 6 * s * (values[c] + values[c + 1]) / 2
            for top in (tie, np.nextafter(tie, 0), np.nextafter(tie, np.inf)):
                x = np.zeros((2, 16))
                x[0, 0], x[1, 0] = 6 * 448 * s, top
                exact = Fraction(float(top)) / 6 / Fraction(s)
                low, high = (Fraction(float(values[n])) for n in (c, c + 1))
                up = exact - low > high - exact or (exact - low == high - exact and c % 2)
                assert ns.quantize(x, "nvfp4").scale_codes[1, 0] == c + up, (s, c, top)
    z = np.zeros(64)
    z[0] = 7.917808219178083  # times 73 / 512 a little above a tie of bfloat16
    assert ns.quantize(z, "hif4").scale[0] == 1.25
