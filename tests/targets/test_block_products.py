"""Products with block scales, inside the unit and outside it: vector paths against scalar ones."""

from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction

import numba
import numpy as np
import oracle_mac as om
import pytest

import numsim as ns
from numsim.formats import get_format
from numsim.kernels.gemm import double as gemm_double
from numsim.kernels.gemm import fp4 as gemm_fp4
from numsim.kernels.ir import simd
from numsim.quant import QTensor, Quant
from numsim.targets import get_target, outside, runs
from numsim.targets.chain import Chain
from numsim.targets.fast import fp4, fused
from numsim.targets.rules import about
from numsim.targets.types import Fused

TCGEN05 = "nvidia.blackwell.tcgen05"
vectors = pytest.mark.skipif(simd.PATHS[-1] == "plain", reason="no vector kernels here")


def bits(x):
    return np.asarray(x).view(np.uint32)


@contextmanager
def scalar():
    """Only the kernels that were there before block scales had some of their own."""
    with pytest.MonkeyPatch.context() as patch:
        old = (fused._double, fp4._vectors)
        fewer = {r: tuple(w for w in ways if w not in old) for r, ways in runs.FAST.items()}
        patch.setattr(runs, "FAST", fewer)
        patch.setattr(outside, "add_blocks", lambda *_: None)
        yield


def same(a, b, target, c=None):
    fresh = [replace(q) for q in (a, b)]  # what the other path kept is not theirs
    with np.errstate(all="ignore"):
        got = ns.matmul(a, b, target=target, c=c)
        with scalar():
            want = ns.matmul(*fresh, target=target, c=c)
    np.testing.assert_array_equal(bits(got), bits(want))
    return got


def coded(rng, shape, axis, name, block, scale_format, scales):
    """Return a tensor of any finite codes, a part of it zeros, with scale codes of a kind."""
    fmt = get_format(name)
    codes = rng.integers(0, 1 << fmt.bits, shape).astype(np.uint8)
    codes *= (rng.random(shape) < rng.choice([0.1, 0.9, 1.0])).astype(np.uint8)
    codes[~np.isfinite(fmt.values()[codes])] = 0
    of = list(shape)
    of[axis] = -(-shape[axis] // block)
    low, high = scales
    own = rng.integers(low, high, of).astype(np.uint8)
    q = ns.quantize(
        np.ones(shape, np.float32), Quant(name, block=block, scale_format=scale_format), axis=axis
    )
    return replace(q, codes=codes, scale_codes=own)


def accumulator(rng, shape):
    with np.errstate(over="ignore"):
        c = rng.standard_normal(shape) * 2.0 ** rng.integers(-149, 127, shape)
        c = c.astype(np.float32)
    for value, share in ((0.0, 0.1), (-0.0, 0.1), (np.inf, 0.02), (-np.inf, 0.02), (-np.nan, 0.02)):
        c[rng.random(shape) < share] = value
    return c


E8M0 = [(0, 255), (0, 256), (110, 140), (180, 200), (45, 65)]
SHAPES = [(1, 1, 1), (3, 17, 70), (5, 40, 200), (4, 33, 64), (2, 9, 300)]


@vectors
@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("scales", [*E8M0, "e4m3", "e4m3 without NaN"])
def test_fp4_with_scales_inside_the_unit(block, scales):
    e4m3 = isinstance(scales, str)
    name = "float8_e4m3fn" if e4m3 else "float8_e8m0fnu"
    if e4m3:
        block, scales = 16, (0, 256) if scales == "e4m3" else (0, 127)
    rng = np.random.default_rng(block)
    for m, n, k in [*SHAPES, (7, 20, 150), (2, 9, 4400)]:
        a = coded(rng, (m, k), -1, "float4_e2m1fn", block, name, scales)
        b = coded(rng, (k, n), -2, "float4_e2m1fn", block, name, scales)
        same(a, b, TCGEN05)
        same(a, b, TCGEN05, accumulator(rng, (m, n)))
    a = coded(rng, (2, 3, 100), -1, "float4_e2m1fn", block, name, scales)
    b = coded(rng, (2, 100, 9), -2, "float4_e2m1fn", block, name, scales)
    same(a, b, TCGEN05, accumulator(rng, (2, 3, 9)))
    same(a, replace(b[0]), TCGEN05)


@vectors
@pytest.mark.parametrize("scales", E8M0)
@pytest.mark.parametrize("left", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
@pytest.mark.parametrize("right", ["float8_e4m3fn", "float8_e5m2", "float6_e3m2fn"])
def test_small_floats_with_scales_inside_the_unit(left, right, scales):
    rng = np.random.default_rng(7)
    for m, n, k in SHAPES:
        a = coded(rng, (m, k), -1, left, 32, "float8_e8m0fnu", scales)
        b = coded(rng, (k, n), -2, right, 32, "float8_e8m0fnu", scales)
        same(a, b, TCGEN05)
        same(a, b, TCGEN05, accumulator(rng, (m, n)))
    a = coded(rng, (2, 3, 100), -1, left, 32, "float8_e8m0fnu", scales)
    b = coded(rng, (2, 100, 9), -2, right, 32, "float8_e8m0fnu", scales)
    same(a, b, TCGEN05, accumulator(rng, (2, 3, 9)))


@vectors
@pytest.mark.parametrize("rule", [
    Fused(32, 25), Fused(32, 25, min_exponent=-133), Fused(7, 24), Fused(40, 23), Fused(128, 25),
    Fused(32, 25, nan="quiet"), Fused(32, 22), Fused(32, 26), Fused(32, 25, min_exponent=-20),
    Fused(32, 25, zero_products=True), Fused(129, 25),
])  # fmt: skip
@pytest.mark.parametrize(
    "names", [("float8_e4m3fn", "float8_e4m3fn"), ("float8_e5m2", "float6_e2m3fn")]
)
def test_small_floats_without_scales(rule, names):
    target = replace(get_target(TCGEN05), rules=(("f8f6f4", rule),))
    rng = np.random.default_rng(rule.group)
    for m, n, k in SHAPES:
        a, b = (
            QTensor.from_codes(coded(rng, s, i, f, 32, "float8_e8m0fnu", (0, 255)).codes, f)
            for s, i, f in (((m, k), -1, names[0]), ((k, n), -2, names[1]))
        )
        same(a, b, target)
        same(a, b, target, accumulator(rng, (m, n)))


@vectors
def test_products_that_are_cut_are_those_that_the_oracle_cuts():
    """Small products beside a large one, of both signs: 25 fraction bits, cut toward zero."""
    f = om.FORMATS["float8_e4m3fn"]
    large, small = 0x7E, 0x01  # 448 and 2**-9; 448 * 448 = 1.53 * 2**17, kept to 2**-8
    x = np.full((4, 32), small, np.uint8)
    x[:, 0], x[1::2, 1:] = large, small | 0x80
    y = np.full((32, 1), 0x34, np.uint8)  # 0.75: products of 0.75 * 2**-9 are below the last bit
    y[0] = large
    got = ns.matmul(*(QTensor.from_codes(q, "float8_e4m3fn") for q in (x, y)), target=TCGEN05)
    want = [om.Block(32, 25)([f.read(c) for c in row], [f.read(c) for c in y[:, 0]]) for row in x]
    assert bits(got).ravel().tolist() == want
    assert [Fraction(float(v)) for v in got.ravel()] == [448 * 448] * 4


@vectors
def test_runs_that_cancel_still_have_the_exponent_of_their_scales():
    """A run of 1 - 1 under 2**40 lifts what the other runs are cut to: 2**5 is below 2**(40-34)."""
    codes = np.zeros((1, 64), np.uint8)
    codes[0, :2], codes[0, 16] = (2, 10), 2  # 1, -1 and, in the second run, 1
    scales = np.full((1, 4), 127, np.uint8)
    scales[0, 0] = 127 + 40
    one = Quant("float4_e2m1fn", block=16, scale_format="float8_e8m0fnu")
    a = replace(ns.quantize(np.ones((1, 64), np.float32), one), codes=codes, scale_codes=scales)
    ones = np.full((64, 1), 2, np.uint8)
    for up, kept in ((4, 0.0), (5, 2.0**5)):
        other = np.full((4, 1), 127, np.uint8)
        other[1] += up
        b = ns.quantize(np.ones((64, 1), np.float32), one, axis=-2)
        b = replace(b, codes=ones, scale_codes=other)
        assert same(a, b, TCGEN05)[0, 0] == kept


@vectors
@pytest.mark.parametrize("rows", [3, 5])  # few, and more
@pytest.mark.parametrize("zeros", ["a", "b", "both", "scale"])
def test_a_run_whose_products_are_all_zero_has_no_exponent(zeros, rows):
    """Under scales of 2**40 it would cut the 1 of another run away; see the test above."""
    left, right = np.full((rows, 64), 2, np.uint8), np.full((64, 9), 2, np.uint8)
    # the second run holds one product, 1, and no operand more zeros than it takes
    if zeros == "both":
        left[:, 17::2], right[18::2] = 0, 8
    if zeros in ("a", "scale"):
        left[:, 17:] = 0
    if zeros == "b":
        right[17:] = 8
    e4m3 = zeros == "scale"
    if zeros in ("a", "both"):
        left[:, :16:2] = 8
    if zeros in ("b", "both"):
        right[1:16:2] = 0
    if zeros == "a":
        left[:, 1:16:2] = 0
    if zeros == "b":
        right[:16:2] = 8
    name = "float8_e4m3fn" if e4m3 else "float8_e8m0fnu"
    how = {"scale_format": name, "block": 16}
    unit = 0x38 if e4m3 else 127
    scales = np.full((rows, 4), unit, np.uint8)
    scales[:, 0] = 0x80 if e4m3 else 127 + 40
    a = QTensor.from_codes(left, "float4_e2m1fn", scale_codes=scales, axis=-1, **how)
    ones = np.full((4, 9), unit, np.uint8)
    b = QTensor.from_codes(right, "float4_e2m1fn", scale_codes=ones, axis=-2, **how)
    assert (same(a, b, TCGEN05) == 1).all()
    small = np.full((rows, 9), 2.0**-33, np.float32)  # below 34 bits of 2**0, where 1 * 1 leaves it
    assert (same(a, b, get_target(TCGEN05, align_bits=34), small) == 1).all()
    assert (same(a, b, TCGEN05, np.full((rows, 9), 2.0**-23, np.float32)) == 1 + 2.0**-23).all()


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize("bits_kept", [20, 25])  # of the general kernel alone, and of another
@pytest.mark.parametrize("side", ["a", "b"])
def test_zeros_under_the_smallest_scale_add_nothing(path, bits_kept, side):
    """A zero of E2M1 scaled by 2**-127 has a power whose float32 would be an infinity."""
    unit = get_target(TCGEN05, align_bits=bits_kept)
    wide, small = np.full((3, 33), 12, np.uint8), np.zeros((33, 5), np.uint8)
    small[0] = 2
    ones, scales = np.full((3, 2), 127, np.uint8), np.full((2, 5), 127, np.uint8)
    scales[0], scales[1] = 100, 0
    if side == "a":
        small, wide, scales, ones = small.T.copy(), wide.T.copy(), scales.T.copy(), ones.T.copy()
    names = ("float4_e2m1fn", "float6_e3m2fn")[:: 1 if side == "a" else -1]
    pairs = ((small, scales), (wide, ones))[:: 1 if side == "a" else -1]
    a, b = (
        QTensor.from_codes(
            codes, name, scale_codes=own, scale_format="float8_e8m0fnu", block=32, axis=axis
        )
        for name, (codes, own), axis in zip(names, pairs, (-1, -2), strict=True)
    )
    with simd.force(path):
        got = ns.matmul(a, b, target=unit)
    assert (got == 2.0**-27).all()  # of the first product alone


@vectors
@pytest.mark.parametrize("least", [-139, -100, 3, -1000])
def test_the_least_exponent_of_runs(least):
    rng = np.random.default_rng(5)
    unit = get_target(TCGEN05, min_exponent=least)
    for scales in ((0, 70), (50, 70), (100, 130)):
        a = coded(rng, (5, 200), -1, "float4_e2m1fn", 16, "float8_e8m0fnu", scales)
        b = coded(rng, (200, 40), -2, "float4_e2m1fn", 16, "float8_e8m0fnu", scales)
        same(a, b, unit)
        same(a, b, unit, accumulator(rng, (5, 40)))


@vectors
@pytest.mark.parametrize(("up", "want"), [(64, np.inf), (63, 2.0**127)])
def test_fp4_overflows_at_the_next_power_of_two(up, want):
    """1 * 1 times scales of 2**64 and 2**64 is 2**128, which float32 does not hold."""
    codes = np.zeros((1, 16), np.uint8)
    codes[0, 0] = 2
    rule = Quant("float4_e2m1fn", block=16, scale_format="float8_e8m0fnu")
    a = replace(
        ns.quantize(np.ones((1, 16), np.float32), rule), codes=codes,
        scale_codes=np.array([[127 + up]], np.uint8),
    )  # fmt: skip
    b = replace(
        ns.quantize(np.ones((16, 1), np.float32), rule, axis=-2), codes=codes.T,
        scale_codes=np.array([[127 + 64]], np.uint8),
    )  # fmt: skip
    with np.errstate(over="ignore"):
        assert same(a, b, TCGEN05)[0, 0] == want


@vectors
def test_the_least_exponent_counts_with_scales():
    """Products far below it are cut to its last bit, so that many small ones are nothing."""
    rng = np.random.default_rng(2)
    rule = Fused(32, 25, min_exponent=-133)
    target = replace(get_target(TCGEN05), rules=(("fp8", rule), ("mx:f8f6f4", rule)))
    plain = replace(target, rules=(("mx:f8f6f4", Fused(32, 25)),))
    differs = False
    for low in range(44, 60, 2):
        a = coded(rng, (6, 96), -1, "float8_e4m3fn", 32, "float8_e8m0fnu", (low, low + 4))
        b = coded(rng, (96, 40), -2, "float8_e4m3fn", 32, "float8_e8m0fnu", (low, low + 4))
        with_floor, without = same(a, b, target), same(replace(a), replace(b), plain)
        differs |= bool((bits(with_floor) != bits(without)).any())
    assert differs


KINDS = [("float8_e4m3fn", "float8_e8m0fnu", 32), ("float4_e2m1fn", "float8_e8m0fnu", 32),
         ("float4_e2m1fn", "float8_e4m3fn", 16)]  # fmt: skip


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize(("name", "scale_format", "block"), KINDS)
@pytest.mark.parametrize("where", ["a", "b", "both", "c", "b alone of its item"])
@pytest.mark.parametrize("rows", [1, 12])
def test_nan_of_one_scale_or_of_c(path, name, scale_format, block, where, rows):
    """A scale makes its line NaN, all else stays a number; the bits are the unit's own."""
    rng, k, n = np.random.default_rng(3), 96, 40
    e4m3 = scale_format == "float8_e4m3fn"
    size, nan = (0x38, 0xFF) if e4m3 else (127, 255)
    batch = (3,) if where.endswith("item") else ()
    a = coded(rng, (*batch, rows, k), -1, name, block, scale_format, (size, size + 1))
    b = coded(rng, (*batch, k, n), -2, name, block, scale_format, (size, size + 1))
    want = np.zeros((*batch, rows, n), bool)
    if where in ("a", "both"):
        a.scale_codes[0, -1] = nan
        want[0] = True
    if where in ("b", "both"):
        b.scale_codes[1, 7] = nan
        want[:, 7] = True
    if batch:
        b.scale_codes[1, 0, 3] = nan
        want[1, :, 3] = True
    c = None
    if where == "c":
        c = np.zeros((rows, n), np.float32)
        c.view(np.uint32)[0, 5] = 0xFFC01234
        want[0, 5] = True
    with simd.force(path):
        got = ns.matmul(a, b, target=TCGEN05, c=c)
    np.testing.assert_array_equal(np.isnan(got), want)
    assert (bits(got)[want] == 0x7FFFFFFF).all()


@vectors
@pytest.mark.parametrize("scaled", ["a", "b"])
@pytest.mark.parametrize("nan", [[], [(2, 0)]])
def test_one_operand_has_scales(scaled, nan):
    """No unit takes such a pair; the rule does, and bare codes have one line of scales for all."""
    rng = np.random.default_rng(8)
    a, b = (
        coded(rng, shape, axis, "float8_e4m3fn", 32, "float8_e8m0fnu", (120, 130))
        for shape, axis in (((9, 70), -1), ((70, 40), -2))
    )
    for place in nan:
        if scaled == "a":
            a.scale_codes[place] = 255
        else:
            b.scale_codes[place[::-1]] = 255
    if scaled == "a":
        b = QTensor.from_codes(b.codes, b.fmt)
    else:
        a = QTensor.from_codes(a.codes, a.fmt)
    chain = Chain(Fused(32, 25), a, b, None, get_format("float32"), TCGEN05)
    assert runs.chosen(chain).kernel == "aligned sums in float64"
    got, want = runs.chosen(chain).run(), about(chain.rule).definition(chain).run()
    np.testing.assert_array_equal(bits(got), bits(want))
    assert np.isnan(got).any() == bool(nan)


@vectors
@pytest.mark.parametrize(("name", "scale_format", "block"), KINDS[:2])
@pytest.mark.parametrize("rows", [1, 12])
def test_what_overflows_stays_infinite(name, scale_format, block, rows):
    """Sums of one sign and then of the other: no NaN, which results are not searched for."""
    rng, k, n = np.random.default_rng(4), 256, 40
    a = coded(rng, (rows, k), -1, name, block, scale_format, (240, 255))
    b = coded(rng, (k, n), -2, name, block, scale_format, (185, 255))
    fmt = get_format(name)
    a.codes[...] = fmt.max_code
    b.codes[...] = rng.choice([fmt.max_code, fmt.max_code | 1 << (fmt.bits - 1), 0], (8, n)).repeat(
        32, axis=0
    )
    rule = dict(get_target(TCGEN05).rules)["mx:fp4" if name.startswith("float4") else "mx:f8f6f4"]
    chain = Chain(rule, a, b, None, get_format("float32"), TCGEN05)
    want = about(rule).definition(chain).run()[0]
    assert np.isinf(want).mean() > 0.5
    assert not np.isnan(want).any()
    for c in (None, np.where(rng.random((rows, n)) < 0.5, np.inf, -np.inf).astype(np.float32)):
        for path in simd.PATHS:
            with simd.force(path):
                got = ns.matmul(replace(a), replace(b), target=TCGEN05, c=c)
            expected = want if c is None else c
            np.testing.assert_array_equal(bits(got), bits(expected))


@vectors
def test_the_depth_counts_in_how_large_sums_become():
    """No product of 448 * 448 under 2**107 is above 2**125, and 1024 of them are infinite."""
    codes = np.full((1024, 9), 0x7E, np.uint8)
    for depth, want in ((8, 448.0**2 * 2.0**110), (1024, np.inf)):
        how = {"scale_format": "float8_e8m0fnu", "block": 32}
        some, blocks = codes[:depth], -(-depth // 32)
        scales = [np.full(n, 127 + e, np.uint8) for n, e in (((9, blocks), 53), ((blocks, 9), 54))]
        a = QTensor.from_codes(some.T, "float8_e4m3fn", scale_codes=scales[0], axis=-1, **how)
        b = QTensor.from_codes(some, "float8_e4m3fn", scale_codes=scales[1], axis=-2, **how)
        assert (same(a, b, TCGEN05) == np.float32(want)).all()


OUTSIDE = [
    ("mxfp8_e4m3", "ideal.fp32"), ("nvfp4", "ideal.fp32"), ("mxfp6_e3m2", "ideal.fp32"),
    ("mxint8", "ideal.fp32"), ("mxint8", "ideal.int"), (Quant("int8", block=20), "ideal.int"),
    (Quant("int8", block=18), "ideal.int"), ("mxfp8_e4m3", "nvidia.hopper.wgmma"),
    ("mxfp8_e5m2", "nvidia.ada.mma"), (Quant("float8_e4m3fn", block=128), "nvidia.hopper.wgmma"),
    (Quant("float8_e4m3fn", block=16), "nvidia.hopper.wgmma"),
    (Quant("float8_e4m3fn", block=48), "nvidia.ada.mma"),
    (Quant("bfloat16", block=32), "ideal.fp32"), ("mxfp8_e4m3", "nvidia.ampere.mma"),
]  # fmt: skip


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize(("quant", "target"), OUTSIDE)
def test_scales_outside_the_unit(path, quant, target):
    rng = np.random.default_rng(3)
    with simd.force(path):
        for m, n, k in SHAPES:
            x = rng.standard_normal((m, k)) * 2.0 ** rng.integers(-20, 20, (m, 1))
            y = rng.standard_normal((k, n))
            x[:, : k // 3], y[:, : n // 4] = 0, 0
            a, b = (ns.quantize(v.astype(np.float32), quant, axis=i) for v, i in ((x, -1), (y, -2)))
            try:
                same(a, b, target)
            except ns.UnsupportedError:
                assert target == "nvidia.ampere.mma"
                return
            same(a, b, target, rng.standard_normal((m, n)).astype(np.float32))
        x, y = rng.standard_normal((2, 3, 96)), rng.standard_normal((2, 96, 40))
        a, b = (ns.quantize(v.astype(np.float32), quant, axis=i) for v, i in ((x, -1), (y, -2)))
        same(a, b, target)
        same(a, b[1], target)


def test_integer_blocks_whose_scales_leave_float32_are_scaled_in_float64():
    """2**-140 times 64 * 64 quanta of 2**-12: the scales alone are beyond float32's normals."""
    codes, scales = np.full((1, 64), 64, np.int8), np.full((1, 2), 2.0**-70, np.float32)
    a = QTensor.from_codes(codes, "q1.6", scale=scales, block=32)
    b = QTensor.from_codes(codes.T, "q1.6", scale=scales.T, block=32, axis=-2)
    got = same(a, b, "ideal.int")
    assert got[0, 0] == np.float32(64 * 2.0**-140)


def test_a_block_of_minus_zero_alone_stays_minus_zero():
    """The first block's -0 is the sum; with +0 before it, it would be +0."""
    codes, scale = np.full((1, 32), 1, np.uint8), np.full((1, 1), 2.0**-120, np.float32)
    a = QTensor.from_codes(codes, "float8_e4m3fn", scale=-scale, block=32)
    b = QTensor.from_codes(codes.T, "float8_e4m3fn", scale=scale, block=32, axis=-2)
    assert bits(same(a, b, "ideal.fp32"))[0, 0] == 0x80000000


@vectors
def test_threads_do_not_change_products_of_blocks():
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(s).astype(np.float32) for s in ((70, 256), (256, 150)))
    cases = [("nvfp4", TCGEN05), ("mxfp8_e4m3", TCGEN05), ("mxfp8_e4m3", "ideal.fp32"),
             ("mxint8", "ideal.int"), ("mxfp8_e4m3", "nvidia.hopper.wgmma")]  # fmt: skip
    before = numba.get_num_threads()
    found = []
    try:
        for threads in {1, before}:
            numba.set_num_threads(threads)
            found.append([
                bits(ns.matmul(ns.quantize(x, q), ns.quantize(y, q, axis=-2), target=t))
                for q, t in cases
            ])  # fmt: skip
    finally:
        numba.set_num_threads(before)
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("quant", "target", "home", "name"), [
    ("nvfp4", TCGEN05, gemm_fp4, "pack_b"), ("mxfp8_e4m3", TCGEN05, gemm_double, "pack_b"),
    ("float8_e4m3fn", "nvidia.hopper.wgmma", None, None),
])  # fmt: skip
def test_a_right_operand_is_packed_once(monkeypatch, quant, target, home, name):
    """`__post_init__` of QTensor once emptied what products keep, at every product."""
    from numsim.kernels.gemm import hopper as gemm_hopper

    home, name = home or gemm_hopper, name or "pack_b"
    if simd.path() == "plain" and home is not gemm_hopper:
        pytest.skip("no vector kernels here")
    calls, inner = [], getattr(home, name)
    monkeypatch.setattr(home, name, lambda *a, **k: calls.append(1) or inner(*a, **k))
    a, b = ns.quantize(np.ones((2, 64)), quant), ns.quantize(np.ones((64, 3)), quant, axis=-2)
    for _ in range(3):
        ns.matmul(a, b, target=target)
    assert len(calls) == 1


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize(("name", "target"), [
    ("float8_e4m3fn", "ideal.fp32"), ("float8_e5m2", "ideal.fp32"),
    ("float8_e5m2", "nvidia.hopper.wgmma"), ("int8", "ideal.int"),
])  # fmt: skip
def test_specials_outside_the_unit(path, name, target):
    """NaN and infinite codes and scales, scales whose product leaves float32 at either end."""
    rng = np.random.default_rng(11)
    fmt = get_format(name)
    extremes = np.float32([2.0**-149, 2.0**-100, 2.0**100, 2.0**127, 1.0, -1.0, 0.0])
    for special in ("codes", "scales", "both"):
        made = []
        for shape, axis in (((5, 128), -1), ((128, 40), -2)):
            codes = rng.integers(0, 256, shape).astype(np.uint8).view(fmt.code_dtype)
            if special == "scales" and fmt.kind == "float":
                codes[~np.isfinite(fmt.values()[codes])] = 0
            of = [s // 32 if i == axis % 2 else s for i, s in enumerate(shape)]
            scale = np.ones(of, np.float32)
            if special != "codes":
                scale = rng.choice(extremes, of)
                scale[rng.random(of) < 0.02] = np.nan
                scale[rng.random(of) < 0.02] = np.inf
            q = ns.quantize(np.ones(shape, np.float32), Quant(name, block=32), axis=axis)
            made.append(replace(q, codes=codes, scale=scale))
        with simd.force(path):
            same(*made, target)
            same(*made, target, rng.standard_normal((5, 40)).astype(np.float32))


@pytest.mark.filterwarnings("ignore::numsim.errors.UnvalidatedWarning")
@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize(
    ("fmt", "target"),
    [("mxfp8_e4m3", "ideal.fp32"), ("mxfp8_e5m2", "ideal.exact"), ("mxint8", "ideal.int"),
     ("mxfp8_e4m3", "nvidia.hopper.wgmma"), ("mxfp4_e2m1", "ideal.fp32")],
)  # fmt: skip
@pytest.mark.parametrize(
    "powers", [(-100, -30), (-75, -75), (-120, -40), (90, 60), (127, 127), (-127, 120)]
)
def test_powers_of_two_scale_exactly_beyond_float32(powers, fmt, target, path):
    """2**-150 is no float32, but a sum times 2**-150 is; 2**150 times a sum of zeros is zero."""
    with simd.force(path):
        rng = np.random.default_rng(0)
        one = ns.quantize(rng.integers(-6, 7, (3, 48)).astype(np.float32), fmt)
        other = ns.quantize(rng.integers(-6, 7, (2, 48)).astype(np.float32), fmt)
        one.codes[1, :32] = 0  # a block of zeros
        moved = [
            ns.QTensor.from_codes(
                q.codes, q.fmt, scale=np.full((len(q.codes), 2), 2.0**power, np.float32), block=32
            )
            for q, power in zip((one, other), powers, strict=True)
        ]
        got = ns.matmul(moved[0], moved[1].T, target=target)
        counted, _ = ns.matmul(moved[0], moved[1].T, target=target, stats=True)
        values = [ns.decode(q.codes, q.fmt).astype(np.float64) for q in (one, other)]
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            want = np.zeros((3, 2), np.float32)
            for part in (slice(0, 32), slice(32, 48)):
                sums = values[0][:, part] @ values[1][:, part].T  # small integers: exact
                want += np.ldexp(sums, sum(powers)).astype(np.float32)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(counted, want)
