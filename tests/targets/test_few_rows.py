"""Kernels of one row, of a few, which read codes where they are, and of more: bit for bit."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

import numsim as ns
from numsim.convert import encode
from numsim.formats import get_format
from numsim.kernels import jit
from numsim.kernels.gemm import chains, exact_rows, two_chains
from numsim.kernels.ir import simd
from numsim.quant import QTensor
from numsim.targets import outside, runs

FAST = [path for path in simd.PATHS if path != "plain"]
E4M3, E5M2, FNUZ = "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"
pytestmark = [
    pytest.mark.skipif(not FAST, reason="no vector path on this machine"),
    pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning"),
]


@contextmanager
def generic():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "FAST", {})
        patch.setattr(outside, "add_blocks", lambda *_: None)
        yield


def floats(rng, shape, name, kind):
    fmt = get_format(name)
    if kind == "codes":
        codes = rng.integers(0, 1 << fmt.bits, shape).astype(fmt.code_dtype)
        codes[~np.isfinite(fmt.decode_bits(codes.astype(np.int64)))] = 0
        return QTensor.from_codes(codes, name)
    values = rng.standard_normal(shape).astype(np.float32)
    values[rng.random(shape) < (0.8 if kind == "sparse" else 0.1)] = -0.0
    return QTensor.from_codes(encode(values, fmt), name)


def check(a, b, unit, c=None):
    """Compare every path, with one thread and two, with the definition."""
    with generic():
        want = ns.matmul(replace(a), replace(b), target=unit, c=c)
    for path in FAST:
        for threads in (1, 2):
            with simd.force(path), jit.using_threads(threads):
                got = ns.matmul(replace(a), replace(b), target=unit, c=c)
            np.testing.assert_array_equal(
                got.view(np.uint32), want.view(np.uint32), err_msg=f"{path} {unit} {a.shape}"
            )


TWO_CHAINS = ns.get_target("ideal.mac", order="two_chains", group=32, flush=True, tiny="unbounded")
PLAIN = [
    ("nvidia.hopper.wgmma", E4M3, E4M3), ("nvidia.ada.mma", E5M2, E4M3),
    ("nvidia.blackwell.tcgen05", E4M3, E4M3), ("nvidia.blackwell.tcgen05", E5M2, E5M2),
    ("amd.cdna3.mfma", FNUZ, FNUZ), ("amd.cdna3.mfma", "float8_e5m2fnuz", FNUZ),
    ("arm.fdot_fp8", E4M3, E4M3), ("arm.fdot_fp8", E4M3, E5M2), ("arm.fmmla_fp8", E4M3, E4M3),
    ("arm.fmlal_fp8", E4M3, E4M3), ("x86.tdpbf16ps", "bfloat16", "bfloat16"),
    (TWO_CHAINS, "float16", "float16"), ("x86.tdpfp16ps", "float16", "float16"),
]  # fmt: skip


@pytest.mark.parametrize(("unit", "left", "right"), PLAIN)
def test_units_without_scales(unit, left, right):
    rng = np.random.default_rng(0)
    shapes = (
        (17, 21, 40),
        (1, 37, 200),
        (2, 65, 71),
        (3, 16, 128),
        (4, 9, 72),
        (6, 33, 69),
        (7, 5, 32),
    )
    for m, n, k in shapes:  # no path calls 17 rows few
        for kind in ("normal", "codes", "sparse"):
            a, b = floats(rng, (m, k), left, kind), floats(rng, (k, n), right, kind)
            check(a, b, unit)
        size = np.ldexp(rng.uniform(1, 2, (m, n)), rng.integers(-12, 13, (m, n)))
        check(a, b, unit, np.where(rng.random((m, n)) < 0.2, -0.0, size).astype(np.float32))
        far = np.ldexp(size, rng.integers(0, 97, (m, n)))  # beside zeros of a, which lie lowest
        check(a, b, unit, far.astype(np.float32))
        codes = b.codes.copy()
        codes[:, ::4] = 0
        far[:, ::4], far[0, 1] = -0.0, 2.0**120
        check(a, QTensor.from_codes(codes, right), unit, far.astype(np.float32))


@pytest.mark.parametrize("low", range(0, 112, 16))
def test_streams_of_unlike_exponents(low):
    """Even k and odd ones of CDNA3 have largest exponents of their own, and one may have none."""
    rng = np.random.default_rng(low)
    for first in (0, 1):
        codes = rng.integers(1, 127, (1, 96)).astype(np.uint8)
        codes[:, first::2] = rng.integers(low, low + 16, 48)
        other = (rng.integers(0, 127, (96, 40)) | rng.integers(0, 2, (96, 40)) << 7).astype(
            np.uint8
        )
        other[first::2, ::5] = 0
        other[:, ::7] = 0
        other[other == 128] = 0
        check(QTensor.from_codes(codes, FNUZ), QTensor.from_codes(other, FNUZ), "amd.cdna3.mfma")


@pytest.mark.parametrize("group", [16, 32, 40, 128])
def test_the_largest_sums_of_a_stream(group):
    """Sums of products cut to integers are the largest that 32 bits must hold, of either sign."""
    rng, unit = np.random.default_rng(group), ns.get_target("amd.cdna3.mfma", group=group)
    depth, n = 2 * group, 40
    top = np.full((1, depth), 127, np.uint8)
    right = np.full((depth, n), 127, np.uint8)
    right[:, 1::2] |= 128
    right[::2, 2::5] = 8  # one stream far below the other
    right[1::2, 3::5] &= rng.integers(0, 256, right[1::2, 3::5].shape, np.uint8)
    right[right == 128] = 0
    a, b = QTensor.from_codes(top, FNUZ), QTensor.from_codes(right, FNUZ)
    check(a, b, unit)
    size = np.ldexp(rng.choice([-1, 1], (1, n)), rng.integers(-12, 40, (1, n)))
    check(a, b, unit, size.astype(np.float32))


def test_streams_below_the_last_bit_of_each_other():
    """What is left of the lower stream is its floor: 0, or -1 of the last bit of the higher."""
    rng, (m, depth, n) = np.random.default_rng(5), (2, 64, 40)
    signs, columns = rng.integers(0, 2, n), np.arange(n)
    for first in (0, 1):
        for low in range(0, 64, 4):  # exponents of E5M2 from the least on, beside the largest
            a = rng.integers(120, 128, (m, depth))
            a[:, first::2] = low + rng.integers(0, 4, (m, depth // 2))
            b = rng.integers(120, 128, (depth, n))
            b[first::2] = columns % 8 * 8 + rng.integers(1, 8, (depth // 2, n))
            b |= np.where(columns % 3, signs, rng.integers(0, 2, (depth, n))) << 7
            left = QTensor.from_codes(a.astype(np.uint8), "float8_e5m2fnuz")
            check(left, QTensor.from_codes(b.astype(np.uint8), FNUZ), "amd.cdna3.mfma")


def test_accumulators_below_the_last_bit_of_products():
    """A negative one is -1 of that bit down to 25 binades below the products, then nothing."""
    exponents = np.repeat(np.arange(-28, -20), 4)
    c = np.ldexp(np.tile(np.float32([1, -1, 1.5, -1.5]), 8), exponents)[None]
    a = np.ones((1, 4), np.float32)
    for products in ([1, 0, 0, 0], [1, 1, -1, -1], [1, -1, 0, 0], [-1, 0, 0, 0]):
        b = np.repeat(np.float32(products)[:, None], c.shape[1], 1)
        left, right = (QTensor.from_codes(encode(x, get_format(FNUZ)), FNUZ) for x in (a, b))
        check(left, right, "amd.cdna3.mfma", c)
        if products == [1, 0, 0, 0]:
            got = ns.matmul(left, right, target="amd.cdna3.mfma", c=c)[0]
            less = np.float32(1 - 2.0**-24)
            np.testing.assert_array_equal(got[c[0] < 0][4:8], [1, 1, less, less])


SCALED = [  # outside the unit, then inside
    ("mxfp8_e4m3", "ideal.fp32"), ("mxfp8_e5m2", "ideal.fp32"), ("nvfp4", "ideal.fp32"),
    ("mxfp4_e2m1", "ideal.fp32"), ("mxfp6_e3m2", "ideal.fp32"),
    (ns.Quant(E4M3, block=128), "ideal.fp32"), (ns.Quant(E4M3, block=7), "ideal.fp32"),
    ("mxfp8_e4m3", "nvidia.hopper.wgmma"), (ns.Quant(E4M3, block=64), "nvidia.hopper.wgmma"),
    ("mxfp8_e5m2", "nvidia.ada.mma"), ("mxfp8_e4m3", "nvidia.blackwell.tcgen05"),
    ("mxfp6_e3m2", "nvidia.blackwell.tcgen05"), ("mxfp4_e2m1", "nvidia.blackwell.tcgen05"),
    ("nvfp4", "nvidia.blackwell.tcgen05"),
]  # fmt: skip


@pytest.mark.parametrize(("quant", "unit"), SCALED)
def test_scales_of_blocks(quant, unit):
    rng = np.random.default_rng(1)
    shapes = (1, 70, 256), (1, 33, 130), (2, 64, 64), (3, 5, 96), (4, 9, 64), (6, 65, 192)
    for m, n, k in (*shapes, (7, 31, 64), (17, 21, 96)):
        x = rng.standard_normal((m, k)) * 2.0 ** rng.integers(-20, 20, (m, 1))
        y = rng.standard_normal((k, n))
        x[:, : k // 5], y[:, : n // 4] = -0.0, 0
        a, b = (ns.quantize(v.astype(np.float32), quant, axis=i) for v, i in ((x, -1), (y, -2)))
        check(a, b, unit)
        c = rng.standard_normal((m, n)).astype(np.float32)
        c[:, ::2] = -0.0
        check(a, b, unit, c)
    x, y = rng.standard_normal((2, 3, 96)), rng.standard_normal((2, 96, 40))
    a, b = (ns.quantize(v.astype(np.float32), quant, axis=i) for v, i in ((x, -1), (y, -2)))
    check(a, b, unit)
    check(a, b[1], unit)


def test_every_code_by_way_of_float16():
    """A row of ones reads each code's value; a large or tiny row is read otherwise."""
    finite = replace(get_format(E5M2), name="finite_e5m2", inf="none", nan="none")
    assert finite.emax + finite.bias == 31  # where float16 is infinite
    names = E4M3, E5M2, FNUZ, "float8_e5m2fnuz", "float4_e2m1fn", "float4_e3m0", "float4_e1m2"
    others = "float8_ue4m3", "hifloat8", "posit8_es1"  # whose upper half is no mirror, or a table
    for fmt in (finite, *(get_format(name) for name in (*names, *others))):
        codes = np.arange(1 << fmt.bits).astype(fmt.code_dtype)
        codes[~np.isfinite(fmt.decode_bits(codes.astype(np.int64)))] = 0
        ones, twice = np.ones((2, codes.size), np.float32), np.tile(codes, (4, 1))
        right = QTensor.from_codes(twice, fmt, scale=ones, block=2, axis=-2)
        for size in (1.0, 2.0**100, 2.0**118, 2.0**-120, 2.0**-149, 3.0):
            left = QTensor.from_codes(
                np.full((1, 4), size, np.float32).view(np.uint32), "float32",
                scale=np.ones((1, 2), np.float32), block=2,
            )  # fmt: skip
            with np.errstate(over="ignore"):
                check(left, right, "ideal.fp32")


@pytest.mark.parametrize("group", exact_rows.GROUPS)
def test_numbers_where_float16_is_infinite_have_another_kernel(monkeypatch, group):
    """Float64 holds all sums of the top binades alone, which few rows of other codes go by."""
    met, inner = [], exact_rows.exact_rows
    monkeypatch.setattr(exact_rows, "exact_rows", lambda *args: met.append(args) or inner(*args))
    rng = np.random.default_rng(3)
    unit = ns.get_target("ideal.exact", group=group)
    finite = replace(get_format(E5M2), name="finite_e5m2", inf="none", nan="none")
    for fmt, few in ((finite, False), (get_format(E5M2), True)):
        codes = rng.integers(fmt.max_code - 7, fmt.max_code + 1, (2 * group + 1, 20))
        codes |= rng.integers(0, 2, codes.shape) << 7
        met.clear()
        b = QTensor.from_codes(codes.astype(fmt.code_dtype), fmt)
        check(floats(rng, (1, len(codes)), E4M3, "normal"), b, unit)
        assert bool(met) == few


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("fmt", [E4M3, E5M2, FNUZ, "float8_e3m4"])
def test_exact_rows_with_tables_and_without(monkeypatch, tables, fmt):
    """The processor's byte tables or conversions of float16 give the same float64 of codes."""
    if not tables:
        monkeypatch.setattr(exact_rows, "_tables_read", lambda: False)
    rng = np.random.default_rng(5)
    for rows, n, depth in [
        (1, 256, 64), (2, 33, 37), (3, 16, 8), (5, 40, 70), (6, 18, 8), (7, 16, 12), (9, 31, 41),
        (10, 17, 16), (11, 70, 24), (13, 17, 16),
    ]:  # fmt: skip
        for group in exact_rows.GROUPS:
            b = floats(rng, (depth, n), fmt, "codes")
            if n == 256:
                b.codes[:] = np.where(np.isfinite(get_format(fmt).values()), np.arange(256), 0)
            unit = ns.get_target("ideal.exact", group=group)
            check(floats(rng, (rows, depth), E4M3, "sparse"), b, unit)
            c = rng.standard_normal((rows, n)).astype(np.float32)
            check(floats(rng, (rows, depth), fmt, "normal"), b, unit, c)


@pytest.mark.parametrize("tables", [True, False])
def test_sums_of_negative_zeros_of_few_rows(monkeypatch, tables):
    """Sums of -0 alone are -0 where a unit keeps it."""
    if not tables:
        monkeypatch.setattr(exact_rows, "_tables_read", lambda: False)
    rng = np.random.default_rng(7)
    for group in exact_rows.GROUPS:
        unit = ns.get_target("ideal.exact", group=group, negative_zero=True)
        for rows in (1, 3, 6):
            left = rng.choice(np.array([0, 128, 1], np.uint8), (rows, 16), p=[0.1, 0.8, 0.1])
            left[0] = 128
            right = rng.choice(np.array([0, 128, 1], np.uint8), (16, 20), p=[0.8, 0.1, 0.1])
            right[:, 0] = 0
            a, b = QTensor.from_codes(left, E4M3), QTensor.from_codes(right, E4M3)
            c = np.full((rows, 20), -0.0, np.float32)
            check(a, b, unit, c)
            assert np.signbit(ns.matmul(a, b, target=unit, c=c)[0, 0])
            check(a, b, ns.get_target(unit, negative_zero=False), c)


@pytest.mark.parametrize("fmt", ["float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn", "float8_ue4m3"])
def test_exact_rows_of_codes_whose_sign_is_not_the_highest_of_eight_bits(fmt):
    rng = np.random.default_rng(6)
    for rows, n, depth in [(1, 64, 32), (3, 17, 20), (11, 40, 8)]:
        for group in exact_rows.GROUPS:
            a, b = (floats(rng, x, fmt, "codes") for x in ((rows, depth), (depth, n)))
            check(a, b, ns.get_target("ideal.exact", group=group))


@pytest.mark.parametrize("bias", [-40, -9, -1, 45])
def test_biases_far_from_that_of_float16(bias):
    rng = np.random.default_rng(4)
    fmt = replace(get_format(E4M3), name="biased", bias=bias)
    for rows in (1, 3):
        a, b = floats(rng, (rows, 48), E4M3, "normal"), floats(rng, (48, 37), fmt, "codes")
        for group in exact_rows.GROUPS:
            check(a, b, ns.get_target("ideal.exact", group=group))
        tiny = np.ldexp(rng.standard_normal((rows, 48)), -110).astype(np.float32)
        tiny = QTensor.from_codes(tiny.view(np.uint32), "float32")  # times 2**-30 it loses bits
        for block, x in ((16, a), (24, a), (16, tiny)):
            sizes = (rows, 48 // block), (48 // block, 37)
            left, right = (
                QTensor.from_codes(
                    q.codes, q.fmt, scale=rng.uniform(0.5, 3, size).astype(np.float32),
                    block=block, axis=axis,
                )
                for q, size, axis in ((x, sizes[0], -1), (b, sizes[1], -2))
            )  # fmt: skip
            check(left, right, "ideal.fp32")


def test_the_kernels_of_few_rows_run(monkeypatch):
    """What is said here of each path runs, and gives what the kernel of many rows gives."""
    rng, met = np.random.default_rng(2), []
    entries = ((chains, "_halves_runner"), (exact_rows, "_runner"), (two_chains, "_runner"))
    for module, name in entries:
        inner = getattr(module, name)

        def spy(*args, inner=inner, module=module):
            met.append((module, args))
            return inner(*args)

        monkeypatch.setattr(module, name, spy)
    for rows in (1, 2, 3):
        a, b = floats(rng, (rows, 64), E4M3, "normal"), floats(rng, (64, 40), E4M3, "normal")
        with simd.force("avx2"):
            met.clear()
            ns.matmul(a, b, target="arm.fdot_fp8")
            assert [module for module, _ in met] == [exact_rows]
            x = rng.standard_normal((rows, 64)).astype(np.float32)
            y = rng.standard_normal((64, 40)).astype(np.float32)
            met.clear()
            for quant in ("mxfp8_e4m3", "nvfp4"):
                p, q = ns.quantize(x, quant), ns.quantize(y, quant, axis=-2)
                ns.matmul(p, q, target="ideal.fp32")
            assert [module for module, _ in met] == [chains] * 2
