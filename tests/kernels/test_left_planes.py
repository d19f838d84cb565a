"""Planes of the left operand by byte tables are those that arithmetic makes of every code."""

import numba
import numpy as np
import pytest

import numsim as ns
from numsim.kernels.gemm import hopper_left
from numsim.kernels.ir import fp8, simd
from numsim.targets.tensor import fields

FORMATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e3m4")


@numba.njit
def by_arithmetic(rows, planes, runs, how):
    hopper_left._left_codes(16, rows, planes, runs, how, 0, rows.shape[0])


@numba.njit
def by_tables(rows, planes, runs, how, start):
    tables = hopper_left.left_tables(how)
    hopper_left.planes_wide(rows, planes, runs, how, tables, 0, start)
    hopper_left.planes_wide(rows, planes, runs, how, tables, start, rows.shape[0])


@pytest.mark.slow
@pytest.mark.skipif(not simd.HAVE_BYTE_TABLES, reason="this processor has no byte tables")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("depth", "runs"), [
    (64, 4), (256, 4), (192, 8), (192, 16), (128, 2), (96, 4), (48, 3),
])  # fmt: skip
def test_every_code(name, depth, runs):
    fmt, tiles = ns.get_format(name), 5
    codes = np.arange(256).astype(np.uint8)
    codes = np.where(np.isfinite(fmt.values()), codes, np.uint8(0x80))  # zero, with a sign
    rows = np.resize(codes, (tiles, fp8.ROWS, depth))
    blocks = -(-(depth // fp8.RUN) // runs)
    one, other = (np.full(blocks * tiles * runs * fp8.A_WORDS, 7, np.int32) for _ in range(2))
    by_arithmetic(rows, one, runs, fields(fmt))
    by_tables(rows, other, runs, fields(fmt), 2)
    np.testing.assert_array_equal(one, other)
