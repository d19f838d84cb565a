"""Few rows of chains by half a table of values, or by float16: every code, and which have such."""

from dataclasses import replace

import numpy as np
import pytest

import numsim as ns
from numsim.kernels.gemm import values
from numsim.kernels.ir import simd
from numsim.targets.tensor import byte_table

FORMATS = {
    "float8_e4m3fn": True, "float8_e5m2": True, "float4_e2m1fn": True, "float6_e2m3fn": True,
    "int4": True, "int8": False, "float8_e4m3fnuz": False, "float8_e8m0fnu": False,
}  # fmt: skip


@pytest.mark.skipif(not simd.HAVE_BYTE_TABLES, reason="this processor has no byte tables")
@pytest.mark.parametrize("name", FORMATS)
def test_which_tables_are_mirrored(name):
    with simd.force("avx512"):
        table = byte_table(ns.get_format(name), True)
    assert values.mirrored(table) == FORMATS[name]


@pytest.mark.parametrize("name", [name for name in FORMATS if "e8m0" not in name])
def test_every_code_of_a_row(name):
    rng, fmt = np.random.default_rng(0), ns.get_format(name)
    low, high = (-(1 << fmt.bits - 1), 1 << fmt.bits - 1) if "int" in name else (0, 1 << fmt.bits)
    for depth, n, block, special in [
        (64, 256, 32, True),
        (96, 65, 16, False),
        (256, 33, 32, False),
    ]:
        a, b = (rng.integers(low, high, shape) for shape in ((1, depth), (depth, n)))
        if not special and fmt.kind == "float":
            a, b = (np.where(np.isfinite(fmt.values())[x], x, 0) for x in (a, b))
        codes = [x.astype(fmt.code_dtype) for x in (a, b)]
        operands = [
            ns.QTensor.from_codes(
                x, name, scale_format="e8m0", block=block, axis=axis,
                scale_codes=rng.integers(110, 140, shape).astype(np.uint8),
            )
            for x, axis, shape in zip(
                codes, (-1, -2), ((1, depth // block), (depth // block, n)), strict=True
            )
        ]  # fmt: skip
        found = []
        for path in simd.PATHS:
            with simd.force(path):
                found.append(ns.matmul(*operands, target="ideal.fp32").view(np.uint32))
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("name", [name for name in FORMATS if "e8m0" not in name])
@pytest.mark.parametrize("start", [False, True])
def test_every_code_of_chains_without_scales(name, start):
    rng, fmt = np.random.default_rng(1), ns.get_format(name)
    low, high = (-(1 << fmt.bits - 1), 1 << fmt.bits - 1) if "int" in name else (0, 1 << fmt.bits)
    special = np.float32([np.nan, -np.nan, np.inf, -np.inf, -0.0, 3e38, 1e-45])
    for m, depth, n, finite in [
        (1, 256, 70, False), (2, 97, 33, True), (3, 64, 128, True), (4, 66, 65, True),
        (6, 130, 31, True), (7, 64, 32, False),
    ]:  # fmt: skip
        b = rng.integers(low, high, (2, depth, n))
        if finite and fmt.kind == "float":
            b = np.where(np.isfinite(fmt.values())[b], b, 0)
        right = ns.QTensor.from_codes(b.astype(fmt.code_dtype), name)
        x = rng.standard_normal((2, m, depth)).astype(np.float32)
        if m == 4:
            x[:, 1, :5] = special[2:]
        c = None
        if start:
            c = rng.standard_normal((2, m, n)).astype(np.float32)
            c[:, 0, : len(special)] = special
        left = ns.QTensor.from_codes(x.view(np.uint32), "float32")
        found = []
        for path in simd.PATHS:
            with simd.force(path):
                found.append(ns.matmul(left, right, target="ideal.fp32", c=c).view(np.uint32))
                one = ns.matmul(left[0], right[0], target="ideal.fp32", c=c if c is None else c[0])
                np.testing.assert_array_equal(one.view(np.uint32), found[-1][0])
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("bias", [-60, -15, 0, 7, 45, 80])
@pytest.mark.parametrize("power", [-149, -126, -91, -90, -89, 89, 90, 91, 119, 126])
def test_rows_near_the_ends_of_float32(bias, power):
    """What makes a float16 its code's value must not take a row's numbers beyond float32."""
    rng, fmt = np.random.default_rng(2), replace(ns.get_format("float8_e4m3fn"), bias=bias)
    for m, depth in [(1, 32), (3, 33), (6, 8)]:
        b = rng.integers(0, 127, (depth, 33)) | rng.integers(0, 2, (depth, 33)) << 7
        x = np.ldexp(rng.choice([-1.0, 1.0, 1.5], (m, depth)), power)
        x[rng.random((m, depth)) < 0.5] = 0.0
        left = ns.QTensor.from_codes(x.astype(np.float32).view(np.uint32), "float32")
        right = ns.QTensor.from_codes(b.astype(np.uint8), fmt)
        c = np.ldexp(rng.standard_normal((m, 33)), min(power - bias, 126)).astype(np.float32)
        found = []
        for path in simd.PATHS:
            with simd.force(path):
                found.append(ns.matmul(left, right, target="ideal.fp32", c=c).view(np.uint32))
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


def test_numbers_where_float16_is_infinite():
    """Codes of E5M2 without infinity have exponent fields of which float16 makes none."""
    rng = np.random.default_rng(3)
    finite = replace(ns.get_format("float8_e5m2"), name="finite", inf="none", nan="none")
    codes = np.arange(256, dtype=np.uint8).reshape(4, 64)
    right = ns.QTensor.from_codes(codes, finite)
    scaled = ns.QTensor.from_codes(codes, finite, scale=np.ones((2, 64)), block=2, axis=-2)
    for m in (1, 2, 6):
        x = rng.standard_normal((m, 4)).astype(np.float32)
        left = ns.QTensor.from_codes(x.view(np.uint32), "float32")
        want = np.zeros((m, 64), np.float64)
        for k in range(4):  # float64 holds a product and float32 plus it, but for the last bits
            want = (want + np.outer(x[:, k].astype(np.float64), finite.values()[codes[k]])).astype(
                np.float32
            )
        found = []
        for path in simd.PATHS:
            with simd.force(path):
                found.append(ns.matmul(left, right, target="ideal.fp32"))
                blocks = ns.matmul(left, scaled, target="ideal.fp32")
            np.testing.assert_allclose(found[-1], want, rtol=1e-5, atol=1e-3)
            np.testing.assert_allclose(blocks, want, rtol=1e-5, atol=1e-3)
            np.testing.assert_array_equal(found[-1], found[0])
