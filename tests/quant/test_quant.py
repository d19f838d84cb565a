"""Quantised tensors: scales, losses, blocks, and what is refused."""

import math
import sys
from fractions import Fraction

import numpy as np
import pytest

import numsim as ns
from numsim.formats import Format
from numsim.kernels.convert import blocks
from numsim.quant import Quant, quantize, storage_losses
from numsim.quant.scale_rules import CLIP_RULES, POW2_RULES

RNG = np.random.default_rng(5)


@pytest.mark.parametrize(
    "name", ["int8", "int16", "float8_e5m2", "float8_e4m3", "float8_e3m4", "p3109_k8p4se", "nf4"]
)
def test_an_amax_scale_clips_nothing(name):
    x = RNG.standard_normal((8, 64)).astype(np.float32)
    for granularity in ("per_tensor", "per_token"):
        assert storage_losses(x, ns.Quant(name, granularity))[0] == 0


def test_losses_of_raw_casts():
    assert storage_losses([32767.0, 0.0], ns.Quant("int16", "none")) == (0.0, 0.0)
    assert storage_losses([65504.0], ns.Quant("float16", "none")) == (0.0, 0.0)
    assert storage_losses([480.0, 448.0], ns.Quant("float8_e4m3fn", "none")) == (0.5, 0.0)
    assert storage_losses([-8.0, -9.0], "q3.4") == (0.5, 0.0)


def test_codes_are_the_rounded_quotient():
    x = RNG.standard_normal((5, 33)).astype(np.float32)
    q = ns.quantize(x, ns.Quant("int8", "per_token"))
    scale = (np.abs(x).max(1, keepdims=True) / 127.0).astype(np.float32)
    assert np.array_equal(q.scale, scale)
    assert np.array_equal(q.codes, np.rint(x / scale).astype(np.int8))


def test_zeros_and_tiny_values():
    for name in ("int8", "float8_e4m3fn", "mxfp8_e4m3", "nvfp4"):
        assert not ns.quantize(np.zeros((2, 32)), name).dequantize().any()
    tiny = np.full((1, 4), 2.0**-149, np.float32)
    assert np.array_equal(ns.quantize(tiny, "int8").dequantize(), tiny)


@pytest.mark.parametrize("name", ["int8", "q0.7", "nvfp4", "mxfp8_e4m3"])
def test_a_scale_beyond_float32_is_refused(name):
    quant = ns.Quant(name, "per_tensor") if name[0] in "iq" else name
    with pytest.raises(ns.NumsimError, match="beyond float32"):
        ns.quantize(np.full(32, 1e308), quant)


def test_blocks():
    x = RNG.standard_normal((3, 50)).astype(np.float32)
    q = ns.quantize(x, ns.Quant("int8", block=16))
    assert q.scale.shape == (3, 4)
    for block in range(4):
        part = x[:, block * 16 : block * 16 + 16]
        alone = ns.quantize(part, ns.Quant("int8", "per_token"))
        assert np.array_equal(q.codes[:, block * 16 : block * 16 + 16], alone.codes)
    tiles = ns.quantize(x, ns.Quant("int8", block=(2, 25)))
    assert tiles.scale.shape == (2, 2)
    assert np.array_equal(tiles.T.dequantize(), tiles.dequantize().T)


POW2_CASES = {  # amax of a block of E4M3, largest 448 = 1.75 * 2**8 -> the scale's exponent
    "floor": {256: 0, 255.99998: -1, 448: 0, 511.99997: 0, 150: -1},
    "ceil": {256: 0, 255.99998: 0, 256.00003: 1, 448: 1, 150: 0},
    "even": {256: 0, 255.99998: 0, 248: 0, 247.99998: -1, 448: 0, 1.9999: -7},
    "rceil": {256: 0, 255.99998: 0, 448: 0, 448.00003: 1, 224: -1, 150: -1},
    "midmax": {256: 0, 255.99998: 0, 448: 0, 480: 0, 480.00003: 1, 240: -1},
}
POW2_EDGES = {0.0: -127, 2.0**-149: -127, 2.0**-119: -127, 2.0**-118: -126, 2.0**127: 119}


@pytest.mark.parametrize("rule", [rule for rule in POW2_RULES if rule != "mse"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power_of_two_rules(rule, dtype):
    quant = ns.Quant("float8_e4m3fn", block=32, scale_format="float8_e8m0fnu", scale_rule=rule)
    for amax, exponent in (POW2_CASES[rule] | POW2_EDGES).items():
        x = np.zeros(32, dtype)
        x[3] = -amax
        assert ns.quantize(x, quant).scale.tolist() == [2.0**exponent], (amax, exponent)


def test_the_sign_of_an_e4m3_scale_is_ignored_everywhere():
    codes = np.full((2, 16), 2, np.uint8)  # 1.0 in E2M1
    scales = ns.encode(np.array([[-2.0], [2.0]]), "float8_e4m3fn")
    a = ns.QTensor.from_codes(
        codes, "float4_e2m1fn", scale_codes=scales, scale_format="float8_e4m3fn", block=16
    )
    assert (a.dequantize() == 2).all()
    for target in ("nvidia.blackwell.tcgen05", "ideal.fp32"):
        assert (ns.matmul(a, a.T, target=target) == 64).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ns.quantize([[1, 2], [3]], "int8"), "rectangular"),
        (lambda: ns.quantize([True], "int8"), "got bool"),
        (lambda: ns.quantize(["a"], "int8"), "real|inputs are"),
        (lambda: ns.quantize([1.0], ns.Quant("int8", "per_token"), axis="x"), "axis is an integer"),
        (lambda: ns.quantize([1.0], ns.Quant("int8", "per_token"), axis=3), "not an axis"),
        (lambda: ns.quantize([1.0, np.nan], "int8"), r"1 of 2 are not, the first at index \(1,\)"),
        (lambda: ns.quantize(np.ma.array([1.0, 2.0], mask=[0, 1]), "int8"), "mask"),
        (lambda: ns.Quant("int8", "per_row"), "granularity is one of"),
        (lambda: ns.Quant("int8", block=0), "positive integer"),
        (lambda: ns.Quant("int8", "per_tensor", block=4), "go together"),
        (lambda: ns.Quant("int8", scale_rule="floor"), "scale_rule for float32"),
        (lambda: ns.QTensor.from_codes([300], "int8"), "are -128 to 127"),
        (lambda: ns.QTensor.from_codes([1], "int8", scale="x"), "real number"),
        (lambda: ns.QTensor.from_codes([1], "int8", scale=1e300), "finite"),
        (lambda: ns.QTensor.from_codes([1, 2], "int8", scale=[1, 2, 3]), "broadcasts"),
        (lambda: ns.QTensor.from_codes([1, 2], "int8").T, "last two axes"),
    ],
)
def test_refused(call, words):
    with pytest.raises(ns.NumsimError, match=words):
        call()


def test_stochastic_rounding_has_a_stream_for_every_tensor():
    quant = ns.Quant("int8", "none", rounding="sr")
    x = np.full(1000, 0.5)
    draws = [ns.quantize(x, quant, seed=s).codes for s in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    tail = ns.quantize(x[300:], quant, offset=300).codes
    assert np.array_equal(tail, draws[0][300:])


@pytest.mark.parametrize("name", ["int8", "int4", "float8_e4m3fn"])
def test_kl_scale_has_the_least_divergence(name):
    x = RNG.standard_t(2, 4000).astype(np.float32)
    x[::7] = 0
    q = ns.quantize(x, ns.Quant(name, "per_tensor", scale_rule="kl"))
    fmt, top = ns.get_format(name), float(np.abs(x).max())
    width = top / 2048
    counts = [0] * 2048
    for v in np.abs(x[x != 0]).astype(float).tolist():
        counts[min(int(v / width), 2047)] += 1
    best = (np.inf, None)
    for kept in range(2048, 127, -16):
        scale = np.float32(float(np.float32(kept * width)) / fmt.max)
        centres = ((np.arange(kept) + 0.5) * width / scale).astype(np.float32)
        levels = ns.cast(centres, fmt).tolist()
        p = counts[:kept]
        mass, filled = {}, {}
        for level, count in zip(levels, p, strict=True):
            mass[level] = mass.get(level, 0) + count
            filled[level] = filled.get(level, 0) + (count > 0)
        inside, beyond = sum(p), sum(counts[kept:])
        total = 0.0
        for j, level in enumerate(levels):
            count = p[j] + (beyond if j == kept - 1 else 0)
            if count and not p[j]:
                total = np.inf
            elif count:
                share = mass[level] / filled[level] / inside
                total += count / len(x[x != 0]) * math.log(count / len(x[x != 0]) / share)
        if total < best[0] - 1e-12:
            best = (total, scale)
    assert q.scale == best[1]


def test_clipping_rules_leave_zeros_and_empty_tensors_alone():
    for rule in (word.replace(":P", ":99") for word in CLIP_RULES):
        quant = ns.Quant("int8", "per_token", scale_rule=rule)
        assert np.array_equal(ns.quantize(np.zeros((2, 8), np.float32), quant).scale, [[1], [1]])
        assert ns.quantize(np.zeros((0, 8), np.float32), quant).shape == (0, 8)
        column = ns.quantize(np.ones((8, 3), np.float32) * 127, quant, axis=0)
        assert column.scale.shape == (1, 3)
        with pytest.raises(ns.NumsimError, match="finite"):
            ns.quantize([[1.0, np.nan]], quant)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_rule": "percentile:0"}, ", ".join(("amax", *CLIP_RULES))),
        ({"scale_rule": "percentile:101"}, ", ".join(("amax", *CLIP_RULES))),
        ({"scale_rule": "percentile:x"}, ", ".join(("amax", *CLIP_RULES))),
        ({"scale_rule": "msee"}, "did you mean mse"),
        ({"scale_rule": "kl", "granularity": "none"}, "use amax"),
        ({"scale_rule": "mse", "overflow": "wrap"}, "use amax"),
        ({"scale_rule": "kl", "scale_format": "pow2"}, "floor, ceil"),
        ({"scale_rule": "rceil", "scale_format": "float8_e4m3fn", "block": 16}, "one of amax"),
    ],
)
def test_clipping_rules_that_are_refused(change, message):
    with pytest.raises(ns.NumsimError, match=message):
        ns.Quant("int8", **change)


@pytest.mark.parametrize("shape", [(37, 45), (3, 20, 10), (17, 2), (0, 5)])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(
    "quant",
    [
        ns.Quant("float8_e4m3fn"),
        ns.Quant("int8", "per_token", rounding="sr"),
        ns.Quant("float4_e2m1fn", block=16, scale_format="float8_e4m3fn"),
        ns.Quant("int8", block=(16, 8)),
        ns.Quant("q3.4"),
    ],
    ids=["tensor", "token", "block", "tile", "none"],
)
def test_a_large_tensor_is_quantised_in_pieces(monkeypatch, shape, axis, quant):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    want = ns.quantize(x.astype(np.float32), quant, axis=axis, seed=3, offset=5)
    monkeypatch.setattr(sys.modules["numsim.quant.extremes"], "PIECE", 64)
    monkeypatch.setattr(sys.modules["numsim.quant.quantize"], "PART", 128)
    got = ns.quantize(x, quant, axis=axis, seed=3, offset=5)
    assert np.array_equal(got.codes, want.codes)
    assert np.array_equal(got.scale, want.scale)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int8", "float4_e2m1fn", "float16"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_token"])
def test_zeros_under_two_level_scales(name, granularity):
    x = np.array([[0.0, -0.0, 0.0], [1.0, -2.0, 0.0]], np.float32)
    quant = ns.Quant(name, granularity, scale_format="float8_e4m3fn")
    for tensor in (x[:1], x):
        q = ns.quantize(tensor, quant)
        assert (q.scale > 0).all()
        assert not q.dequantize()[0].any()
    assert ns.Quant("int8", block=(32,)) == ns.Quant("int8", block=32)


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp4_e2m1", "mxint8", "mxfp6_e2m3"])
@pytest.mark.parametrize("rounding", ["rne", "rna", "rtz", "rup", "rdn", "rto"])
@pytest.mark.parametrize("kind", ["normal", "wild", "bits", "tiny"])
def test_block_quotients_in_float32_give_the_codes_of_exact_ones(name, rounding, kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 96)).astype(np.float32)
    if kind == "wild":
        x *= np.float32(2.0) ** rng.integers(-149, 120, x.shape).astype(np.float32)
    if kind == "bits":
        x = rng.integers(0, 1 << 32, x.shape, dtype=np.uint64).astype(np.uint32).view(np.float32)
        x = np.where(np.isfinite(x), x, np.float32(1))
    if kind == "tiny":
        x = (x * np.float32(1e-40)).astype(np.float32)
    for axis in (-1, 0):
        narrow = ns.quantize(x, name, rounding=rounding, axis=axis)
        wide = ns.quantize(x.astype(np.float64), name, rounding=rounding, axis=axis)
        np.testing.assert_array_equal(narrow.codes, wide.codes)
        np.testing.assert_array_equal(narrow.scale_codes, wide.scale_codes)


def test_words_of_a_rule_are_no_arrays():
    for field in ("granularity", "scale_format", "scale_rule", "rounding", "overflow"):
        with pytest.raises(ns.NumsimError, match=rf"^Quant: {field}.* (word|one of)"):
            ns.Quant("e4m3", **{field: np.ones(2)})
    with pytest.raises(ns.NumsimError, match="a spec is a SweepSpec, a dict or a TOML path"):
        ns.sweep(np.ones(2))


def test_a_raw_cast_of_integers_is_rounded_once():
    # 2**56 + 2**48 is a tie of bfloat16; float64 lost the 1 that decides, and what wraps is below
    x = np.array([2**56 + 2**48 + 1, -(2**56) - 2**48 - 1, 2**63 - 1, 2**60 + 3])
    q = ns.quantize(x, ns.Quant("bfloat16", "none"))
    assert q.dequantize().tolist() == [2.0**56 + 2**49, -(2.0**56) - 2**49, 2.0**63, 2.0**60]
    wrapped = ns.quantize(x, ns.Quant("int16", "none", overflow="wrap"))
    assert wrapped.codes.tolist() == [1, -1, -1, 3]
    large = np.array([2**64 - 1, 2**63 + 5], np.uint64)
    assert ns.quantize(large, ns.Quant("uint8", "none", overflow="wrap")).codes.tolist() == [255, 5]


def fp32(value):
    """Round a fraction of normal range to float32, ties to even, in integers."""
    size = abs(value)
    power = size.numerator.bit_length() - size.denominator.bit_length()
    power -= Fraction(2) ** power > size
    quotient = size / Fraction(2) ** (power - 23)
    whole, rest = divmod(quotient.numerator, quotient.denominator)
    double = 2 * rest - quotient.denominator
    whole += double > 0 or (double == 0 and whole % 2)
    return math.copysign(float(whole * Fraction(2) ** (power - 23)), value)


def test_values_of_many_bits_times_a_scale_are_rounded_once():
    # 31 by 24 bits: where the product is a tie of float32 and a little, float64 lost the little
    assert 1347502757 * 16045357 % 2**31 == 2**30 + 1
    codes, scales = [1347502757], [16045357]
    for scale in range(2**23 + 1, 2**24, 2**15):
        code = (2**30 + 1) * pow(scale, -1, 2**31) % 2**31
        if code * scale >= 2**54:
            codes, scales = [*codes, code, -code], [*scales, scale, scale]
    scale = np.array(scales, np.float32)
    want = [fp32(Fraction(c) * s) for c, s in zip(codes, scales, strict=True)]
    assert ns.QTensor.from_codes(codes, "int32", scale=scale).dequantize().tolist() == want
    own = ns.Format("wide", "integer", 32, 31, 200)  # far below: subnormal float32
    tiny = ns.QTensor.from_codes([2**30 + 1, 3], own, scale=np.float32(2.0**20)).dequantize()
    assert tiny.tolist() == [2.0**-149 * round((2**30 + 1) / 2**31), 0.0]
    table = ns.Format("t", "table", 1, 1, 0, table=(1 + 2**-24 + 2**-52, -1.5))
    q = ns.QTensor.from_codes([0, 1], table, scale=np.float32(1 + 2**-23))
    exact = [Fraction(v) * (1 + Fraction(1, 2**23)) for v in (1 + 2**-24 + 2**-52, -1.5)]
    assert q.dequantize().tolist() == [fp32(value) for value in exact]
    assert np.asarray(ns.quantize(3.0, "e4m3")).shape == ()  # NumPy refused a tensor of no axes
    assert np.asarray(ns.quantize([1.0, 2.0], "e4m3")[1]).tolist() == 2.0


@pytest.mark.parametrize("name", ["int32", "int31", "int8", "e4m3"])
def test_scales_of_float64_amaxes_are_rounded_once(name):
    # amax / (2**31 - 1) may be a tie of float32 and less than half a place of float64 more
    top = ns.get_format(name).max
    for middle in range(2**24 + 1, 2**25, 2**18 + 2):
        near = middle * 2.0**-30 * top
        for amax in (near, np.nextafter(near, 0.0), np.nextafter(near, np.inf)):
            scale = ns.quantize([amax], ns.Quant(name, "per_tensor")).scale
            assert scale == fp32(Fraction(amax) / Fraction(top))


@pytest.mark.parametrize(
    "shape", [(1, 32), (3, 64), (64, 3), (33, 5), (2, 48, 7), (2, 7, 48), (96,)]
)
@pytest.mark.parametrize("block", [1, 2, 16, 32, 48])
def test_kernels_of_blocks_do_what_numpy_does(shape, block):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32) * np.float32(2.0) ** rng.integers(
        -140, 120, shape
    )
    x = x.astype(np.float32)
    x.reshape(-1)[:3] = [-0.0, np.inf, 1e-45]
    for axis in range(-len(shape), len(shape)):
        if not blocks.covers(x, axis, block):
            continue
        starts = np.arange(0, shape[axis], block)
        want = np.maximum.reduceat(np.abs(x), starts, axis)
        got = blocks.amax(x, axis, block)
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
        scale = rng.uniform(0.1, 2, want.shape).astype(np.float32)
        wide = np.repeat(scale, block, axis).take(range(shape[axis]), axis)
        with np.errstate(over="ignore", under="ignore"):
            quotient = x / wide
        got = blocks.divided(x, scale, axis, block)
        np.testing.assert_array_equal(got.view(np.uint32), quotient.view(np.uint32))
        exact = blocks.divided(x, scale.astype(np.float64), axis, block)
        np.testing.assert_array_equal(exact, x / wide.astype(np.float64))
    x.reshape(-1)[-1] = np.nan
    assert np.isnan(blocks.amax(x[None].repeat(2, 0), 0, 2)).any()


@pytest.mark.parametrize("shape", [(5000, 96), (96, 5000), (300_000,), (3, 640, 200)])
@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxint8", "nvfp4"])
def test_blocks_of_tensors_that_are_cut_in_pieces(shape, name):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    for axis in range(len(shape)):
        narrow, wide = (
            ns.quantize(x, name, axis=axis),
            ns.quantize(x.astype(float), name, axis=axis),
        )
        np.testing.assert_array_equal(narrow.codes, wide.codes)
        np.testing.assert_array_equal(narrow.scale_codes, wide.scale_codes)


@pytest.mark.parametrize("rounding", ["rne", "rna", "rtz"])
def test_quotients_below_float32_decide_in_tables_and_formats_without_zero(rounding):
    halves = Format("halves", "table", 2, 1, 0, table=(-1.0, -0.5, 0.5, 1.0))
    rule = {"block": 2, "scale_format": "pow2", "rounding": rounding}
    x = np.array([[4.0, 1e-45], [4.0, -1e-45]], np.float32)  # divided by 4: less than float32 has
    got = quantize(x, Quant(halves, scale_rule="ceil", **rule)).codes[:, 1].tolist()
    assert got == ([1, 2] if rounding == "rtz" else [2, 1])  # -0.5 or 0.5: 0 lies between
    powers = Format("powers", "float", 8, 1, 20, False, "all_ones", "none", zero=False)
    x = np.array([[2.0**120, 1e-45]], np.float32)
    q = quantize(x, Quant(powers, scale_rule="ceil", overflow="special", **rule))
    assert q.codes[0, 1] == quantize(x.astype(np.float64), q.quant).codes[0, 1] == 0  # no NaN


def test_of_thresholds_that_are_equally_good_the_largest_is_taken():
    # one number in bin 127 and one in the last: no divergence with all bins, nor with 128 of them
    histogram = ns.Quant("int8", "per_tensor", scale_rule="kl")
    assert ns.quantize(np.float32([127.5, 2048]), histogram).scale == np.float32(2048 / 127)


def test_half_a_step_beyond_the_range_is_clipped():
    raw = ns.Quant("int8", "none")
    assert storage_losses([127.5, -128.5, 127.4, -128.4], raw)[0] == 0.5
