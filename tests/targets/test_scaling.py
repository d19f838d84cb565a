"""Scales outside the unit: which operand they belong to, in which order, and what C means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle_mac as om
import pytest

import numsim as ns
from numsim.kernels.elementwise.times import times
from numsim.models.gemm import make_gemm
from numsim.models.memory import OperandCache
from numsim.models.rule import Rule
from numsim.quant import as_quant

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


# ------------------------------------------------------------------------------ the axis of blocks
ALONG_N = [
    ("mxfp8_e4m3", -1), (ns.Quant(E4M3, block=16), -1), (ns.Quant(E4M3, block=(1, 16)), -1),
    (ns.Quant(E4M3, block=1), -2),
]  # fmt: skip


@pytest.mark.parametrize(("quant", "axis"), ALONG_N)
@pytest.mark.parametrize(
    "target", ["nvidia.hopper.wgmma", "nvidia.blackwell.tcgen05", "ideal.exact", "ideal.fp32"]
)
def test_blocks_along_the_wrong_axis_are_refused(target, quant, axis, tmp_path):
    """They were chains of one product, a thousand times more exact than the unit."""
    a, b = of((4, 64), "mxfp8_e4m3", -1), of((64, 32), quant, axis)
    calls = (
        lambda: ns.matmul(a, b, target=target),
        lambda: ns.matmul(a, b, target=target, stats=True),
        lambda: ns.matmul(a, b, target=target, c=np.zeros((4, 32), np.float32)),
        lambda: ns.export_vectors(tmp_path / "v", a, b, target=target),
        lambda: ns.matmul(b.T, a.T, target=target),
    )
    words = [r"b \[..., K, N\] run along K, its axis -2.*axis=-2"] * 4
    words.append(r"a \[..., M, K\] run along K, its axis -1.*axis=-1")
    for call, word in zip(calls, words, strict=True):
        with pytest.raises(ns.UnsupportedError, match=word):
            call()
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("target", ["nvidia.hopper.wgmma", "ideal.fp32"])
@pytest.mark.parametrize("tile", [(32, 32), (64, 16), (32, 128), (128, 128)])
def test_tiles_are_chains_as_long_as_they_are_along_k(target, tile):
    a, b = (
        of((3, 96), ns.Quant(E4M3, block=tile[0]), -1),
        of((96, 40), ns.Quant(E4M3, block=tile), 0),
    )
    want = np.zeros((3, 40), np.float32)
    for k in range(0, 96, tile[0]):
        run = slice(k, k + tile[0])
        chain = ns.matmul(
            ns.QTensor.from_codes(a.codes[:, run], E4M3),
            ns.QTensor.from_codes(b.codes[run], E4M3), target=target,
        )  # fmt: skip
        scale = a.scale[:, k // tile[0]][:, None] * np.repeat(b.scale[k // tile[0]], tile[1])[:40]
        want = want + chain * scale
    same(ns.matmul(a, b, target=target), want)


def test_lengths_of_blocks_divide_one_another():
    a = of((2, 96), ns.Quant(E4M3, block=32), -1)
    with pytest.raises(ns.UnsupportedError, match="got 32 for a and 48 for b"):
        ns.matmul(a, of((96, 2), ns.Quant(E4M3, block=48), 0), target="ideal.fp32")
    finer = of((96, 2), ns.Quant(E4M3, block=16), 0)
    assert ns.matmul(a, finer, target="ideal.fp32").shape == (2, 2)
    # one block over all of K leaves the other's alone: two chains of 48, not six of 16
    a, b = of((2, 96), ns.Quant(E4M3, block=48), -1), of((96, 2), ns.Quant(E4M3, block=128), 0)
    parts = []
    for i, k in enumerate((0, 48)):
        left = ns.QTensor.from_codes(a.codes[:, k : k + 48], E4M3, scale=a.scale[:, i : i + 1])
        right = ns.QTensor.from_codes(b.codes[k : k + 48], E4M3, scale=b.scale)
        parts.append(ns.matmul(left, right, target="ideal.fp32"))
    same(ns.matmul(a, b, target="ideal.fp32"), parts[0] + parts[1])


def test_one_k_has_no_axis_to_be_wrong():
    a, b = of((3, 1), E4M3, -1), of((1, 64), ns.Quant(E4M3, block=16), -1)
    want = a.dequantize() * b.dequantize()
    np.testing.assert_allclose(ns.matmul(a, b, target="ideal.fp32"), want, rtol=2**-22)


# ------------------------------------------------------------------------- the quantum of integers
def bits(x):
    return int(np.float32(x).view(np.uint32))


def biased(name, bias):
    return replace(ns.get_format(name), name=f"{name} with bias {bias}", bias=bias)


def test_the_quantum_of_fixed_point_is_exact():
    """7700 / 256 * fp32(1.5e-38 * 1.2345678); rounded twice it was 5.570013e-37."""
    a = ns.QTensor.from_codes([[100]], "q3.4", scale=1.5e-38)
    b = ns.QTensor.from_codes([[77]], "q3.4", scale=1.2345678)
    got, stats = ns.matmul(a, b, target="ideal.int", stats=True)
    assert got == ns.matmul(a, b, target="ideal.int") == np.float32(5.5700224e-37)
    assert bits(got[0, 0]) == om.scaled_integer(7700, bits(1.5e-38), bits(1.2345678), 8)
    assert stats.largest == 7700 / 256


EXTREMES = [1e-45, 1e-38, 1.5e-38, 2.0**-126, 0.1, 1.0, 3.0, 1.2345678, 1e30, 3e38]


@pytest.mark.parametrize("bias", [(4, 4), (31, 31), (0, 7), (-20, 3), (100, 90), (-70, -70),
                                  (500, -490), (1000, 1000), (-900, -900)])  # fmt: skip
def test_scaled_fixed_point_equals_the_oracle(bias):
    left, right = biased("int16", bias[0]), biased("int16", bias[1])
    rng = np.random.default_rng(abs(sum(bias)))
    x, y = rng.integers(-(2**15), 2**15, (len(EXTREMES), 3)), rng.integers(-(2**15), 2**15, (3, 4))
    x[1], y[:, 1] = (3, 0, 0), (5, 0, 0)
    row, column = np.float32(EXTREMES)[:, None], np.float32([[1.0, 0.3, 2.0**-100, 1e20]])
    a = ns.QTensor.from_codes(x, left, scale=row)
    b = ns.QTensor.from_codes(y, right, scale=column)
    sums = x @ y
    want = [
        [om.scaled_integer(int(sums[i, j]), bits(row[i, 0]), bits(column[0, j]), sum(bias))
         for j in range(4)] for i in range(len(EXTREMES))
    ]  # fmt: skip
    got = ns.matmul(a, b, target="ideal.int")
    np.testing.assert_array_equal(got.view(np.uint32), np.uint32(want))
    counted, _ = ns.matmul(a, b, target="ideal.int", stats=True)
    same(counted, got)
    same(ns.matmul(a, b, target="ideal.int", c=np.zeros(sums.shape, np.int32)), got)
    one = ns.QTensor.from_codes(x[2:3], left, scale=row[2])
    whole = ns.QTensor.from_codes(y, right, scale=column[0, 1])
    for j, code in enumerate(ns.matmul(one, whole, target="ideal.int").view(np.uint32)[0]):
        want_one = om.scaled_integer(
            int(sums[2, j]), bits(row[2, 0]), bits(column[0, 1]), sum(bias)
        )
        assert code == want_one


@pytest.mark.parametrize("bias", [(4, 4), (90, 60), (-70, -50)])
def test_scaled_blocks_of_fixed_point_equal_the_oracle(bias):
    rng = np.random.default_rng(0)
    x, y = rng.integers(-128, 128, (2, 8)), rng.integers(-128, 128, (8, 3))
    sa, sb = (
        np.float32(10.0) ** rng.integers(-12, 12, s) * np.float32(1.1) for s in ((2, 2), (2, 3))
    )
    a = ns.QTensor.from_codes(x, biased("int8", bias[0]), scale=sa, block=4)
    b = ns.QTensor.from_codes(y, biased("int8", bias[1]), scale=sb, block=4, axis=0)
    got = ns.matmul(a, b, target="ideal.int")
    for i in range(2):
        for j in range(3):
            parts = [
                om.scaled_integer(
                    int(x[i, 4 * k : 4 * k + 4] @ y[4 * k : 4 * k + 4, j]), bits(sa[i, k]),
                    bits(sb[k, j]), sum(bias),
                )
                for k in range(2)
            ]  # fmt: skip
            assert bits(got[i, j]) == om.add(*parts)


def test_integers_that_two_float32_numbers_do_not_hold_are_refused():
    """Their values were rounded to 0 or infinity before `ideal.exact` added them."""
    small, large = biased("int8", 160), biased("int8", -160)
    a, b = (ns.QTensor.from_codes([[3]], f) for f in (small, large))
    with pytest.raises(ns.UnsupportedError, match="every integer of its range"):
        ns.matmul(a, b, target="ideal.exact")
    edge = ns.QTensor.from_codes([[3]], biased("int32", 149))
    assert ns.matmul(edge, edge, target="ideal.exact") == 0
    far = ns.QTensor.from_codes([[5]], biased("int32", -90))
    assert ns.matmul(edge, far, target="ideal.exact") == 15 * 2.0**-59


def test_integers_take_the_integer_rule_of_a_unit_that_has_both():
    """They were added in float32, and the accumulator's width meant nothing."""
    a, b = (ns.QTensor.from_codes(v, "int8") for v in ([[100, 3]], [[100], [3]]))
    assert ns.matmul(a, b, target="generic.systolic").dtype == np.int32
    unit = ns.get_target("generic.systolic", acc_bits=12, overflow="saturate")
    assert ns.matmul(a, b, target=unit) == 2047
    floats = ns.quantize([[1.5]], E4M3)
    assert ns.matmul(floats, floats, target="generic.systolic").dtype == np.float32


def test_tiles_of_keys_and_values_run_along_k_as_those_of_weights():
    """Tiles are (outputs, K): of an operand [K, N] they were turned the other way."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 8, 64)), rng.normal(size=(2, 64, 8))
    x, w = x.astype(np.float32), w.astype(np.float32)
    rows, tiles = ns.Quant(E4M3, block=32), ns.Quant(E4M3, block=(1, 32))
    rule = Rule(weights=tiles, activations=rows, target="nvidia.hopper.wgmma")
    got = make_gemm({}, OperandCache(None), {"l.qk": rule})("l.qk", x, w, np.arange(8))
    a, b = ns.quantize(x, rows), ns.quantize(w, rows, axis=-2)
    same(got, ns.matmul(a, b, target="nvidia.hopper.wgmma"))


def test_a_product_of_powers_of_two_that_is_just_infinite_is_exact():
    """2**128 is no float32, and 2**-12 times it is; two blocks of it, and a sum of them."""
    codes = np.full((1, 4), 0x08, np.uint8)  # 2**-6 in E4M3
    a = ns.QTensor.from_codes(codes, E4M3, scale=np.float32([[2.0**64] * 2]), block=2)
    for target in ("ideal.fp32", "ideal.exact"):
        same(ns.matmul(a, a.T, target=target), np.float32([[2.0**118]]))


def test_a_large_scale_of_fixed_point_blocks_meets_its_small_partner_first():
    """2**120 times the quantum 2**16 alone is infinite; with 2**-120 it is 65,536."""
    wide = biased("int8", -8)
    a = ns.QTensor.from_codes(np.ones((1, 8), int), wide, scale=[[2.0**120] * 2], block=4)
    b = ns.QTensor.from_codes(np.ones((8, 1), int), wide, scale=[[2.0**-120]] * 2, block=4, axis=0)
    assert ns.matmul(a, b, target="ideal.int") == 8 * 2.0**16


def test_split_tiles_shorter_than_scale_blocks_keep_their_scales():
    """Tiles of 16 dealt out in turn: two halves of a block go to two parts of K."""
    rng = np.random.default_rng(7)
    x = (rng.integers(-7, 8, (2, 128)) * 2.0 ** rng.integers(-2, 3, (2, 4)).repeat(32, 1)).astype(
        np.float32
    )
    a, b = ns.quantize(x, "mxfp8_e4m3"), ns.quantize(x.T, "mxfp8_e4m3", axis=-2)
    assert np.array_equal(a.dequantize(), x)
    assert len(set(a.scale_codes.ravel().tolist())) > 1
    unit = ns.get_target("nvidia.blackwell.tcgen05", split_k=2, split_order="serial", split_tile=16)
    same(ns.matmul(a, b, target=unit), (x.astype(np.float64) @ x.T).astype(np.float32))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_one_scale_in_one_pass_is_numpy_s_product(dtype, in_place):
    rng = np.random.default_rng(0)
    x = rng.integers(-(2**31), 2**31, 70_001).astype(dtype)
    x[:5] = [0, 1, -1, 2**24 + 1, -(2**31)]
    if dtype is np.float32:
        x[5:9] = [-0.0, np.inf, 2.0**-149, -np.inf]
    for by in (np.float32(0.1), np.float32(2.0**-149), np.float32(3e38)):
        with np.errstate(over="ignore", under="ignore"):
            want = x.astype(np.float32) * by
        got, nan = times(x.copy(), by, in_place=in_place)
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
        assert got.dtype == np.float32
        assert not nan
    if dtype is np.float32:
        assert times(x.copy(), np.float32(np.inf), in_place=in_place)[1]  # 0 x Inf


@pytest.mark.parametrize("left", ["int8", "uint8", "int4", "q3.4"])
@pytest.mark.parametrize("right", ["int8", "uint8", "q3.4"])
@pytest.mark.parametrize("scale", [0.37, 1.0, 2.0**-149, 3e38, np.nan])
def test_integers_scaled_at_once_are_those_summed_and_then_scaled(left, right, scale):
    rng = np.random.default_rng(3)

    def codes(shape, name):
        info = np.iinfo(np.int8 if name != "uint8" else np.uint8)
        low, high = (-8, 8) if name == "int4" else (info.min, info.max + 1)
        return rng.integers(low, high, shape)

    a = ns.QTensor.from_codes(codes((3, 5, 70), left), left, scale=np.float32(0.5))
    for lead in ((), (3,)):
        b = ns.QTensor.from_codes(codes((*lead, 70, 33), right), right, scale=np.float32(scale))
        for changes in ({}, {"acc_bits": 16}, {"overflow": "saturate"}):
            unit = ns.get_target("ideal.int", **changes)
            want, _ = ns.matmul(a, b, target=unit, stats=True)
            same(ns.matmul(a, b, target=unit), want)


@pytest.mark.parametrize(
    "quant",
    ["int8", E4M3, "nvfp4", "mxfp4_e2m1", "mxint8", ns.Quant(E4M3, "per_token"),
     ns.Quant(E4M3, block=(4, 16)), ns.Quant("int4", block=16, scale_rule="mse"),
     replace(as_quant("nvfp4"), tensor_scale="per_token")],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_keys_and_values_are_stored_as_down_their_columns(quant, turned):
    x = np.random.default_rng(4).normal(size=(2, 3, 40, 24)).astype(np.float32)
    values = x.swapaxes(-1, -2) if turned else x  # [.., K, N]
    rows = np.random.default_rng(5).normal(size=(2, 3, 5, values.shape[-2])).astype(np.float32)
    rule = Rule(None, quant, "ideal.fp32")
    gemm = make_gemm({}, OperandCache(), {"layers.0.pv": rule})
    of_k = quant
    if isinstance(quant, ns.Quant) and isinstance(quant.block, tuple):
        of_k = replace(quant, block=quant.block[::-1])
    want = ns.matmul(
        ns.quantize(rows, ns.Quant("float32", granularity="none")),
        ns.quantize(values, of_k, axis=-2), target="ideal.fp32",
    )  # fmt: skip
    same(gemm("layers.0.pv", rows, values, np.arange(5)), want)
