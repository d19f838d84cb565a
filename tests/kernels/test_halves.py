"""One row whose products are cut to integers: at the ends of what float16 and float32 can scale."""

import numpy as np
import pytest

import numsim as ns
from numsim.kernels.gemm import hopper, hopper_paths
from numsim.kernels.ir import simd
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


@pytest.mark.skipif(not simd.HAVE_HALVES, reason="this processor has no arithmetic of float16")
def test_without_float16_tables_of_bytes_do_it(monkeypatch):
    rng, both = np.random.default_rng(1), (E4M3, E4M3)
    a, b = signed(rng, 0, 127, (1, 320)), signed(rng, 0, 127, (320, 130))
    assert hopper.rows_of(1, fields(E4M3)) == hopper_paths.ONE
    want = product("plain", a, b, both, 32, None)
    np.testing.assert_array_equal(product("avx512", a, b, both, 32, None), want)
    monkeypatch.setattr(simd, "HAVE_HALVES", False)
    assert hopper.rows_of(1, fields(E4M3)) == hopper_paths.FEW
    np.testing.assert_array_equal(product("avx512", a, b, both, 32, None), want)


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
