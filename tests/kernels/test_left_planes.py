"""Planes of the left operand: by byte tables, of Blackwell's FP8, and of its FP4."""

import numba
import numpy as np
import pytest

import numsim as ns
from numsim.kernels.gemm import double_left, fp4, hopper_left
from numsim.kernels.gemm.scales import NONE, scales_of
from numsim.kernels.ir import fp4 as fp4_ir
from numsim.kernels.ir import fp8, simd
from numsim.targets.tensor import fields

vectors = pytest.mark.skipif(simd.PATHS[-1] == "plain", reason="no vector kernels here")
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


def double_planes(codes, powers, fmt, group, signs):
    """Return what the kernels of `ir.double` read of codes [M, K], [groups, M, words]."""
    m, depth = codes.shape
    places, groups = -(-group // 8) * 8, -(-depth // group)
    padded = np.zeros((m, groups * group), np.uint8)
    padded[:, :depth] = codes
    own = np.zeros((groups, m, places), np.uint8)
    own[..., :group] = padded.reshape(m, groups, group).swapaxes(0, 1)
    values = fmt.values()[own].astype(np.float64)
    magnitude = own & ((1 << (fmt.bits - fmt.signed)) - 1)
    negative = (own != magnitude).astype(np.uint8)
    parts, exponents = np.frexp(values)
    exponents = np.maximum(exponents - 1, fmt.emin)
    whole = np.ldexp(parts, 60).astype(np.int64)
    lowest = np.frexp((whole & -whole).astype(np.float64))[1] - 61 + np.frexp(values)[1]
    words = np.zeros((groups, m, 4 * places + 4), np.int32)
    byte = np.where(magnitude == 0, 0, exponents + fp8.LEFT).astype(np.uint8)
    words[..., : 4 * places : 4] = np.repeat(byte[..., None], 4, -1).view(np.int32)[..., 0]
    if signs:
        second = np.repeat(np.packbits(negative, -1, bitorder="little"), 8, -1)
        zero = np.where(negative, -fp8.NEAR_ZERO, fp8.NEAR_ZERO)
        values = np.where(magnitude == 0, zero, values).astype(np.float64)
        values = (values.view(np.int64) | 1).view(np.float64)
    else:
        place = lowest + fp8.LOWEST + fp8.SIGN * negative
        second = np.where(magnitude == 0, fp8.NO_LEFT, place) + fp8.TURN
        values = np.copysign(values, np.where(negative, -1, 1))
    second = (second & 255).astype(np.uint8)
    words[..., 1 : 4 * places : 4] = np.repeat(second[..., None], 4, -1).view(np.int32)[..., 0]
    numbers = words.view(np.float64)
    numbers[..., 1 : 2 * places : 2] = values
    words[..., 4 * places] = powers
    numbers[..., 2 * places + 1] = np.ldexp(1.0, powers)
    return words


@vectors
@pytest.mark.parametrize("name", [*FORMATS[:3], "float6_e3m2fn", "float4_e2m1fn"])
@pytest.mark.parametrize("signs", [False, True])
def test_planes_of_double(name, signs):
    """Groups of any size, items of a batch, blocks of groups, scales of several groups."""
    fmt, rng = ns.get_format(name), np.random.default_rng(0)
    for m, depth, group, each, block, rows in [
        (5, 96, 32, 1, 1, 5), (3, 100, 32, 2, 2, 4), (2, 33, 5, 7, 1, 4), (4, 256, 128, 1, 2, 4),
        (3, 40, 24, 1, 1, 3), (1, 320, 40, 4, 8, 2),
    ]:  # fmt: skip
        codes = rng.integers(0, 1 << fmt.bits, (3, m, depth)).astype(np.uint8)
        codes[~np.isfinite(fmt.values()[codes])] = 0
        groups = -(-depth // group)
        scales = rng.integers(0, 256, (3, m, -(-groups // each))).astype(np.uint8)
        powers = scales[..., np.arange(groups) // each].astype(np.int32) - 127
        places = -(-group // 8) * 8
        for own, scaled in ((scales_of(scales, each), powers), (NONE, 0 * powers)):
            found = double_left.left_planes(
                codes, own, fields(fmt), (group, places), block, rows, signs=signs
            )
            for i, planes in enumerate(found):
                want = double_planes(codes[i], scaled[i].T, fmt, group, signs)
                got = planes.swapaxes(1, 2).reshape(groups, rows, -1)
                assert not got[:, m:].any()
                got[..., 4 * places + 1] = 0  # nothing is written there
                np.testing.assert_array_equal(got[:, :m], want)


@vectors
@pytest.mark.parametrize("few", [False, True])
def test_planes_of_fp4(few):
    """Bytes, scales and the most zeros of a run, of every item of a batch."""
    fmt, rng = ns.get_format("float4_e2m1fn"), np.random.default_rng(0)
    twice = (fmt.values() * 2).astype(np.int16) + (0 if few else fp4_ir.LIFT)
    table = twice.astype(np.uint8)
    exponents, significands = (rng.integers(-99, 99, 256).astype(np.int32) for _ in range(2))
    rows, size = (1, fp4_ir.FEW_WORDS) if few else (2, fp4_ir.A_WORDS)
    for m, depth, each, block in [(2, 64, 1, 1), (4, 100, 2, 2), (2, 17, 1, 4), (6, 320, 2, 3)]:
        codes = rng.integers(0, 256, (2, m, depth)).astype(np.uint8)  # four bits of them count
        codes[rng.random(codes.shape) < 0.4] = 0
        runs, steps = -(-depth // 16), -(-depth // 64)
        scales = rng.integers(0, 256, (2, m, -(-runs // each))).astype(np.uint8)
        planes = np.empty((2, m // rows, steps, rows, size), np.int32)
        args = (codes, scales, each, exponents, significands, table, planes, block)
        pack = fp4._left_packer()
        pack(*args, 1, 2 * m)
        pack(*args, 0, 1)
        lines = planes.swapaxes(2, 3).reshape(2, m, steps, size)
        padded = np.zeros((2, m, 64 * steps), np.uint8)
        padded[..., :depth] = codes & 15
        bytes_ = table[padded]
        np.testing.assert_array_equal(
            lines[..., :16], bytes_.reshape(2, m, steps, 64).view(np.int32)
        )
        own = scales[..., np.minimum(np.arange(4 * steps), runs - 1) // each]
        want = np.where(np.arange(4 * steps) < runs, exponents[own], fp4_ir.NO_TERM)
        np.testing.assert_array_equal(lines[..., 16:20].reshape(2, m, -1), want)
        np.testing.assert_array_equal(
            lines[..., 20:24].reshape(2, m, -1), significands[own] * 0x10001
        )
        zeros = (bytes_ == table[0]).reshape(2, m, 4 * steps, 16).sum(-1)
        zeros[..., runs:] = 0
        for step in range(0, steps, block):
            most = zeros[..., 4 * step : 4 * (step + block)].max(-1)
            np.testing.assert_array_equal(lines[:, :, step, -1], most)
