"""Few rows by Hopper's rule, codes read in place: every binade, the largest sums, every code."""

from dataclasses import replace

import numpy as np
import pytest

import numsim as ns
from numsim.kernels.gemm import hopper, hopper_paths
from numsim.kernels.ir import simd
from numsim.kernels.ir.hopper_rows import LONG
from numsim.targets.tensor import fields

E4M3, E5M2 = ns.get_format("float8_e4m3fn"), ns.get_format("float8_e5m2")
FAST = [path for path in simd.PATHS if path != "plain"]


def signed(rng, low, high, shape):
    codes = rng.integers(low, high, shape) | rng.integers(0, 2, shape) << 7
    return codes.astype(np.uint8)


def product(path, a, b, fmt, group, c):
    with simd.force(path):
        rows = hopper.pack_a(a, fields(fmt[0]), group)
        columns = hopper.pack_b(b[None], group)
        return hopper.gemm_hopper_fp8(rows, columns, fields(fmt[1]), c=c).view(np.uint32)


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("formats", [(E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2), (E5M2, E5M2)])
def test_a_row_at_every_binade(path, formats):
    """Accumulators from 2**-30 to 2**70 beside small, middling and large products, and zeros."""
    rng = np.random.default_rng(0)
    depth, n = 96, 65
    starts: list = [None]
    for least in (-30, -3, 12, 26, 27, 28, 40, 60):  # all of a panel can be scaled, or one cannot
        size = np.ldexp(rng.uniform(1, 2, (1, n)), least + np.arange(n) % 4)
        starts.append((size * rng.choice([-1, 1], n)).astype(np.float32))
    drawn = [(0, 12), (0, 60), (40, 80), (60, 123), (110, 123)]
    if formats == (E4M3, E4M3):
        drawn.append((126, 127))  # whose product reaches 2**17
    for low, high in drawn:
        for group in (32, 16, 128):
            a, b = signed(rng, low, high, (1, depth)), signed(rng, low, high, (depth, n))
            a[:, rng.random(depth) < 0.2] &= 128
            b[:, ::7] &= 128
            for start in starts:
                want = product("plain", a, b, formats, group, start)
                for columns in (b, np.ascontiguousarray(b.T).T):
                    got = product(path, a, columns, formats, group, start)
                    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("names", [("float8_e4m3fn", "float8_e4m3fn"), ("float8_e5m2", E5M2.name)])
def test_every_pair_of_codes_beside_every_binade(path, names):
    """A row's value is made larger by its last place: no product may pass a whole number by it."""
    fmt, other = (ns.get_format(name) for name in names)
    codes = np.arange(256, dtype=np.uint8)
    codes = codes[np.isfinite(fmt.decode_bits(codes.astype(np.int64)))]
    assert hopper.rows_of(1, fields(other)) == hopper_paths.FEW
    columns = np.tile(codes, (2, 1))  # of one product, and of one beside a zero
    columns[1] = 128
    for first in codes[::5] if fmt is E4M3 else codes[::9]:
        row = np.array([[first, 3]], np.uint8)
        for power in range(-20, 24, 3):
            c = np.full((1, codes.size), 2.0**power, np.float32)
            c[0, ::2] *= -1
            want = product("plain", row, columns, (fmt, other), 32, c)
            np.testing.assert_array_equal(product(path, row, columns, (fmt, other), 32, c), want)


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sum_of_negative_products(path, sign):
    """128 products at the top of the binade, all negative: each is corrected by one."""
    a = np.full((2, 128), 126, np.uint8)
    b = np.full((128, 70), 126 | 128 if sign < 0 else 126, np.uint8)
    b[:, 1::3] ^= 128
    b[5::7, 2::3] = 128
    for rows in (1, 2):
        want = product("plain", a[:rows], b, (E4M3, E4M3), 128, None)
        np.testing.assert_array_equal(product(path, a[:rows], b, (E4M3, E4M3), 128, None), want)


@pytest.mark.parametrize("path", FAST)
def test_pairs_of_rows_in_blocks_of_k(path):
    """The second pair of rows, and what follows a block of k, have words of their own."""
    rng = np.random.default_rng(4)
    for rows in range(1, hopper.FEW[path] + 1):
        a, b = signed(rng, 0, 127, (rows, 2 * LONG + 40)), signed(rng, 0, 127, (2 * LONG + 40, 65))
        want = product("plain", a, b, (E4M3, E4M3), 32, None)
        np.testing.assert_array_equal(product(path, a, b, (E4M3, E4M3), 32, None), want)


@pytest.mark.parametrize("path", FAST)
def test_a_bias_below_zero(path):
    """IEEE's E4M3 with a bias of -1 ends at 2**15, and 15 less its bias is a power still."""
    below = replace(ns.get_format("float8_e4m3"), name="below", bias=-1)
    assert below.emax == hopper.MOST
    assert hopper.rows_of(2, fields(below)) == hopper_paths.FEW
    rng = np.random.default_rng(3)
    a, b = signed(rng, 0, 120, (2, 64)), signed(rng, 0, 120, (64, 70))
    for formats in ((E4M3, below), (below, below)):
        want = product("plain", a, b, formats, 32, None)
        assert want.any()
        np.testing.assert_array_equal(product(path, a, b, formats, 32, None), want)


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_25_bits_of_a_row(path, name):
    """The unit that keeps 25 bits: the largest sums, far accumulators, scales of blocks."""
    rng, unit = np.random.default_rng(2), ns.get_target("nvidia.blackwell.tcgen05")
    top = 126 if name == "float8_e4m3fn" else 123
    n = 66
    exponents = np.resize(np.arange(-30, 100), n)
    c = np.ldexp(rng.uniform(1, 2, (1, n)), exponents).astype(np.float32)
    for depth, low in [(64, top), (256, 0), (128, 90), (100, 30)]:
        a, b = signed(rng, low, top + 1, (1, depth)), signed(rng, low, top + 1, (depth, n))
        a[:, rng.random(depth) < 0.2] &= 128
        if low == top:  # products of one sign at the largest sum
            a, b = np.full_like(a, top), np.full_like(b, top)
        plain = ns.QTensor.from_codes(a, name), ns.QTensor.from_codes(b, name)
        cases = [(*plain, None), (*plain, c), (*plain, -c)]
        if depth % 32 == 0:
            scales = [
                rng.integers(90, 160, (1, depth // 32)),
                rng.integers(90, 160, (depth // 32, n)),
            ]
            scaled = [
                ns.QTensor.from_codes(
                    x, name, scale_codes=s.astype(np.uint8), scale_format="e8m0", block=32, axis=i
                )
                for x, s, i in zip((a, b), scales, (-1, -2), strict=True)
            ]
            cases.append((*scaled, None))
        for x, y, start in cases:
            with simd.force("plain"):
                want = ns.matmul(x, y, target=unit, c=start)
            with simd.force(path):
                got = ns.matmul(x, y, target=unit, c=start)
            np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))
