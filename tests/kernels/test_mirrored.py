"""One row of scaled chains by half a table of values: every format's codes, and which have such."""

import numpy as np
import pytest

import numsim as ns
from numsim.kernels.gemm import chains
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
    assert chains._mirrored(table.tobytes()) == FORMATS[name]


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
