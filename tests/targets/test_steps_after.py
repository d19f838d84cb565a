"""The steps after a unit, and the advisor, at the edges of what they take."""

from __future__ import annotations

import math
from fractions import Fraction
from math import floor

import ml_dtypes
import numpy as np
import oracle_mac as om
import pytest

import numsim as ns
from numsim.targets.explain import explain_mma
from numsim.verify.silicon import check_silicon


# ------------------------------------------------------------------------------------- requantize
@pytest.mark.parametrize("zero_point", [2**63 - 1, 1 << 70, -(1 << 31) - 1, True, 0.5])
def test_zero_point_fits_int32(zero_point):
    with pytest.raises(ns.NumsimError, match="zero_point"):
        ns.requantize([5], multiplier=1 << 30, shift=0, zero_point=zero_point)


@pytest.mark.parametrize("word", ["multiplier", "shift"])
@pytest.mark.parametrize("bad", [True, 1 << 31, -32, 0.5, [[1], [1, 2]], [1, 2, 3, 4]])
def test_multiplier_and_shift_are_checked(word, bad):
    given = {"multiplier": 1 << 30, "shift": 0, word: bad}
    with pytest.raises(ns.NumsimError, match=word):
        ns.requantize(np.ones((2, 3), int), **given)


def fixed_point(acc, multiplier, shift, rounding):
    """TensorFlow Lite in fractions: ties upward; of the second rounding, away from zero."""
    if rounding == "single":
        return floor(Fraction(acc * multiplier) * Fraction(2) ** (shift - 31) + Fraction(1, 2))
    x = om.clamp(acc << max(shift, 0))
    high = floor(Fraction(x * multiplier, 1 << 31) + Fraction(1, 2))
    last = abs(Fraction(high, 1 << max(-shift, 0))) + Fraction(1, 2)
    return floor(last) if high >= 0 else -floor(last)


@pytest.mark.parametrize(
    ("acc", "shift", "single", "double"),
    [  # times 2**30 / 2**31
        (-1, 0, 0, 0), (1, 0, 1, 1), (-3, 0, -1, -1), (3, 0, 2, 2), (-5, 0, -2, -2),
        (-2, -1, 0, -1), (2, -1, 1, 1), (-6, -1, -1, -2), (6, -1, 2, 2), (-4, -2, 0, -1),
        (-5, -1, -1, -1), (5, -1, 1, 2), (-1, 1, -1, -1), (-(1 << 31), 0, -128, -128),
    ],
)  # fmt: skip
def test_ties_of_requantisation(acc, shift, single, double):
    """The high half of the doubled product is truncated toward zero after its nudge: -1/2 is 0."""
    for rounding, want in (("single", single), ("double", double)):
        got = ns.requantize(acc, multiplier=1 << 30, shift=shift, rounding=rounding)
        assert int(got) == want
        assert om.clamp(fixed_point(acc, 1 << 30, shift, rounding), 8) == want


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_requantisation_equals_fractions(rounding):
    rng = np.random.default_rng(9)
    acc = np.concatenate([rng.integers(-(2**31), 2**31, 300), np.arange(-40, 41)])
    for multiplier in (0, 1, 1 << 30, (1 << 31) - 1, 3 << 29, 1583594044):
        for shift in (-31, -9, -2, -1, 0, 1, 5, 30):
            got = ns.requantize(
                acc, multiplier=multiplier, shift=shift, rounding=rounding, out_format="int32"
            )
            want = [om.clamp(fixed_point(int(x), multiplier, shift, rounding)) for x in acc]
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_one_multiplier_and_shift_a_channel(rounding):
    rng = np.random.default_rng(0)
    acc = rng.integers(-(1 << 20), 1 << 20, (50, 6))
    multiplier = rng.integers(1 << 30, 1 << 31, 6)
    shift = rng.integers(-16, 2, 6)
    got = ns.requantize(acc, multiplier=multiplier, shift=shift, rounding=rounding)
    for j in range(6):
        one = {"multiplier": int(multiplier[j]), "shift": int(shift[j])}
        want = ns.requantize(acc[:, j], rounding=rounding, **one)
        np.testing.assert_array_equal(got[:, j], want)


# --------------------------------------------------------------------------------------- epilogue
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_epilogue_takes_what_matmul_returns(dtype):
    acc = np.array([[1.5, -2.0]], dtype)
    got = ns.epilogue(acc, alpha=0.5, out_format="float32", bias=[1.0, 0.0])
    np.testing.assert_array_equal(got, np.float32([[1.75, -1.0]]))


@pytest.mark.parametrize(
    ("word", "bad"),
    [
        ("acc", [[1], [1, 2]]), ("acc", ["a"]), ("bias", np.ones(4)), ("bias", np.ones((5, 2, 3))),
        ("bias", "abc"), ("alpha", "x"), ("alpha", True), ("scale_result", "a"),
    ],
)  # fmt: skip
def test_epilogue_says_what_is_no_number(word, bad):
    given = {"acc": np.ones((2, 3), np.float32), "alpha": 1.0, word: bad}
    with pytest.raises(ns.NumsimError, match=f"epilogue: {word}"):
        ns.epilogue(given.pop("acc"), out_format="float8_e4m3fn", **given)


@pytest.mark.parametrize(
    ("acc", "alpha", "bits"),
    [
        (-1e-30, 1e-30, 0x80000000), (1e-30, -1e-30, 0x80000000), (-1e-30, -1e-30, 0),
        (-0.0, 1.0, 0), (0.0, -1.0, 0), (-1.0, 2.0**-149, 0x80000001), (-0.5, 2.0**-149, 1 << 31),
        (np.inf, 0.0, 0x7FFFFFFF), (np.nan, 1.0, 0x7FFFFFFF), (-np.nan, 1.0, 0x7FFFFFFF),
    ],
)  # fmt: skip
def test_zeros_and_nan_of_the_epilogue(acc, alpha, bits):
    x = np.float32(acc)
    for given in (x, x[None], np.full((2, 3), x)):
        got = ns.epilogue(given, alpha=alpha, out_format="float32")
        assert got.shape == given.shape
        assert (got.view(np.uint32) == bits).all()
    if not np.isnan(got).any():
        factor = int(np.float32(alpha).view(np.uint32))
        assert om.epilogue(int(x.view(np.uint32)), factor, "float32") == bits
    half = ns.epilogue(x, alpha=alpha, out_format="float16").view(np.uint16)
    eight = ns.epilogue(x, alpha=alpha, out_format="float8_e5m2")
    sign = bits >> 31
    assert (half, eight) == ((0x7FFF, 0x7F) if bits == 0x7FFFFFFF else (sign << 15, sign << 7))


def bits(x):
    return int(np.float32(x).view(np.uint32))


@pytest.mark.parametrize("out", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_every_step_of_the_epilogue_rounds(out):
    """fp32(acc * alpha), fp32(+ bias), fp32(* scale_result), then the format: as the oracle."""
    rng = np.random.default_rng(2)
    eight = out.startswith("float8")
    for _ in range(300):
        acc, alpha, bias, after = (
            np.float32(rng.normal() * 10.0 ** rng.integers(-3, 3)) for _ in range(4)
        )
        more = {"scale_result": after} if eight else {}
        got = ns.epilogue([acc], alpha=alpha, out_format=out, bias=[bias], **more)
        y = om.add(om.epilogue(bits(acc), bits(alpha), "float32"), bits(bias))
        want = om.epilogue(y, bits(1), out, bits(after))
        assert int(got.view(f"u{got.itemsize}")[0]) == want


def test_a_scaled_fp8_result_is_rounded_to_float32_first():
    """A product just above 17 becomes the tie 17 in float32, and then 16, not 18."""
    met = 0
    for acc in np.float32(np.arange(101, 400, 2) / 100):
        after = np.float32(17 / acc)
        if np.float64(acc) * np.float64(after) > 17 and acc * after == 17:
            met += 1
            got = ns.epilogue([acc], alpha=1, out_format="float8_e4m3fn", scale_result=after)
            assert ns.decode(got, "float8_e4m3fn") == 16
    assert met > 5


def test_the_bias_is_added_to_the_rounded_product():
    """(1 + 2**-23)**2 - 1 is 2**-22 after the product's rounding, 2**-22 + 2**-46 without."""
    one = np.nextafter(np.float32(1), np.float32(2))
    got = ns.epilogue([one], alpha=one, out_format="float32", bias=[-1.0])
    assert got == np.float32(2.0**-22)


@pytest.mark.parametrize("word", ["acc", "bias"])
@pytest.mark.parametrize(
    "dtype", [np.float64, np.longdouble, np.bool_, np.complex64, ml_dtypes.float8_e4m3fn]
)
def test_epilogue_refuses_types_that_it_does_not_list(word, dtype):
    """float64 became float32 first, so that 1 + 2**-24 + 2**-40 lost its last bits in silence."""
    given = {"acc": np.ones((2, 2), np.float32), word: np.ones((2, 2), dtype)}
    with pytest.raises(ns.NumsimError, match=f"epilogue: {word} holds float32, .*; got"):
        ns.epilogue(given.pop("acc"), alpha=1.0, out_format="float32", **given)


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">f2", np.int8, np.uint64, ">i4", np.int64])
def test_epilogue_takes_types_that_it_lists(dtype):
    acc = np.array([[1, 2], [3, 100]], dtype)
    want = np.float32([[1.5, 2.5], [3.5, 100.5]])
    bias = np.array([0.5, 0.5], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(ns.epilogue(acc, alpha=1, out_format="float32", bias=bias), want)
    np.testing.assert_array_equal(
        ns.epilogue(acc.tolist(), alpha=1, out_format="float32", bias=[0.5, 0.5]), want
    )


def test_masks_are_not_lost():
    masked = np.ma.masked_array([1, 2], mask=[1, 0])
    with pytest.raises(ns.NumsimError, match=r"epilogue: acc: .*lose its mask"):
        ns.epilogue(masked, alpha=1, out_format="float32")
    with pytest.raises(ns.NumsimError, match=r"requantize: acc: .*lose its mask"):
        ns.requantize(masked, multiplier=1, shift=0)


def test_messages_after_a_unit_are_one_line_and_say_where():
    far = np.array([[0, 1], [1 << 31, -1]])
    words = (
        r"acc is integers of .*; 1 of 4 are not, the first is 2147483648 at index \(1, 0\); clip"
    )
    with pytest.raises(ns.NumsimError, match=words):
        ns.requantize(far, multiplier=1, shift=0)
    with pytest.raises(ns.NumsimError, match=r"acc is integers .*; got float64; round"):
        ns.requantize(far * 0.5, multiplier=1, shift=0)
    for call in (
        lambda: ns.epilogue([1.0], alpha=far, out_format="float32"),
        lambda: ns.accumulator_bits(far, "int8"),
        lambda: ns.encode([1.0], far),
    ):
        with pytest.raises(ns.NumsimError) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(
        ns.NumsimError, match=r"a is a QTensor or a format; got ndarray; .*quantize"
    ):
        ns.accumulator_bits(far, "int8")


def test_ragged_c():
    a = ns.QTensor.from_codes([[1], [1]], "int8")
    with pytest.raises(ns.NumsimError, match="c has the shape of the result"):
        ns.matmul(a, a.T, target="ideal.int", c=[[1], [1, 2]])


# ---------------------------------------------------------------------------------------- advisor
def test_longest_k_has_no_limit_of_its_own():
    assert ns.accumulator_bits("uint4", "uint4").longest_k(32) == (2**31 - 1) // 225 == 9544371


def test_sizes_may_be_of_numpy():
    four, k = np.int64(4), np.uint8(200)
    assert ns.accumulator_bits("int8", "int8", k=four) == ns.accumulator_bits("int8", "int8", k=4)
    assert ns.accumulator_bits("int8", "int8", k=k).format_bound == 23
    assert ns.accumulator_bits("uint4", "uint4").longest_k(np.uint8(32)) == 9544371
    assert ns.Quant("e4m3", block=four) == ns.Quant("e4m3", block=4)
    assert type(ns.Quant("e4m3", block=(four, four)).block[0]) is int
    q = ns.QTensor.from_codes([[1] * 8], "int8", scale=[[1, 2]], block=four, axis=np.int64(1))
    assert q.block_shape == (1, 4)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_not_a_number_in_the_data(code):
    one, bad = (ns.QTensor.from_codes([[v]], om.E4M3) for v in (0x38, code))
    with pytest.raises(ns.NumsimError, match="a has NaN"):
        ns.accumulator_bits(bad, one)
    with pytest.raises(ns.NumsimError, match="NaN or Inf"):
        ns.accumulator_bits(one, bad)


# ---------------------------------------------------------------------------- vectors, explanations
def test_vectors_hold_the_scale_of_the_tensor(tmp_path):
    rng = np.random.default_rng(0)
    a, b = (ns.quantize(rng.normal(size=(64, 64)), "nvfp4", axis=x) for x in (-1, 0))
    ns.export_vectors(tmp_path, a, b, target="nvidia.blackwell.tcgen05")
    with np.load(tmp_path / "vectors.npz") as found:
        above = [found[f"tensor_scale_{x}"].view(np.float32)[0] for x in "ab"]
        last = found["accumulator"][-1].view(np.float32)
        np.testing.assert_array_equal((last[0] * (above[0] * above[1])).view(np.uint32), found["d"])
    assert (tmp_path / "tensor_scale_a.hex").exists()


def test_vectors_need_a_folder():
    a = ns.QTensor.from_codes([[1]], "int8")
    with pytest.raises(ns.NumsimError, match="path is a folder"):
        ns.export_vectors(None, a, a, target="ideal.int")


@pytest.mark.parametrize("c", [math.inf, math.nan, "x", 1e30, 2**70, True])
def test_explained_accumulator_of_an_integer_unit(c):
    with pytest.raises(ns.NumsimError, match="explain mma: c "):
        explain_mma("ideal.int", c=c)


def test_explained_infinities_and_formats():
    assert explain_mma("nvidia.hopper.wgmma", c=math.inf).endswith("D = inf, 0x7f800000")
    with pytest.raises(ns.NumsimError, match=r"c is beyond float32; got 1e[+]300; write inf"):
        explain_mma("nvidia.hopper.wgmma", c=1e300)
    with pytest.raises(ns.NumsimError, match="has no Inf"):
        explain_mma("nvidia.hopper.wgmma", values=[(math.inf, 1)])
    assert "D = inf" in explain_mma("ideal.fp32", values=[(math.inf, 1)], formats="float32")
    with pytest.raises(ns.NumsimError, match="one format, or two"):
        explain_mma("ideal.fp32", formats=("int8", "int8", "int8"))


# ------------------------------------------------------------------------------- recordings, models
@pytest.mark.parametrize("damage", ["not a zip", "no meta", "other meta"])
def test_a_damaged_recording_is_named(tmp_path, damage):
    file = tmp_path / "hw_V100.npz"
    if damage == "not a zip":
        file.write_bytes(b"PK\x03\x04 nothing")
    else:
        meta = {"meta": np.array("[{}]")} if damage == "other meta" else {}
        np.savez(file, x=np.zeros(3), **meta)
    with pytest.raises(ns.NumsimError, match=r"hw_V100\.npz is no recording"):
        list(check_silicon(tmp_path))


@pytest.mark.parametrize(("fmt", "group"), [("float16", 4), ("bfloat16", 2)])
def test_both_models_of_cdna1(fmt, group):
    f = om.FORMATS[fmt]
    rng = np.random.default_rng(1)
    spread = 2.0 ** rng.integers(-9, 9, 20)
    codes = [ns.encode(rng.normal(size=(6, 20)) * spread, fmt) for _ in "ab"]
    a, b = ns.QTensor.from_codes(codes[0], fmt), ns.QTensor.from_codes(codes[1].T, fmt)
    differ = 0
    pairs = ns.get_target("amd.cdna1.mfma", order="tree")
    assert pairs.rule("fp32") == ns.get_target("amd.cdna1.mfma").rule("fp32")
    tree = ns.matmul(a, b, target=pairs).view(np.uint32)
    other = ns.matmul(a, b, target="amd.cdna1.mfma").view(np.uint32)
    for i, j in np.ndindex(6, 6):
        x, y = ([f.read(int(v)) for v in c[r]] for c, r in zip(codes, (i, j), strict=True))
        assert int(tree[i, j]) == om.pair_tree(x, y, group=group)
        assert int(other[i, j]) == om.exact_groups(x, y, group=group)
        differ += int(tree[i, j]) != int(other[i, j])
    assert differ


def test_explained_alignment_that_floors():
    unit = ns.get_target("nvidia.hopper.wgmma", align="floor", rounding="rne")
    text = explain_mma(unit, values=[(16, 16), (-0.125, 0.125)])
    assert "-0.03125" in text  # -2**-6 floored to a multiple of 2**-5
    assert "sum 255.96875, rounded to nearest even, 13 bits of fraction" in text
    assert text.endswith("D = 255.96875, 0x437ff800")
