"""The fast matrix products against exact arithmetic written straight from their definitions."""

import math
import os
import subprocess
import sys
import weakref
from fractions import Fraction

import ml_dtypes
import numba
import numpy as np
import pytest

from numsim.kernels.gemm import hopper_right
from numsim.kernels.gemm.codes import fields
from numsim.kernels.gemm.fma import gemm_fma, pack_words
from numsim.kernels.gemm.fma import pack_b as pack_fma
from numsim.kernels.gemm.hopper import HIGH, LEAST, LOW, gemm_hopper_fp8, pack_a
from numsim.kernels.gemm.hopper import pack_b as pack_fp8
from numsim.kernels.gemm.integer import gemm_int8
from numsim.kernels.gemm.integer import pack_b as pack_int8
from numsim.kernels.gemm.turned import turn
from numsim.kernels.ir import fp8 as simd_fp8
from numsim.kernels.ir import simd
from numsim.kernels.ir.fp8_codes import looked_up_codes
from numsim.kernels.jit import over_range

PATHS = simd.PATHS
SHAPES = [(1, 1, 1), (1, 33, 70), (2, 5, 31), (5, 64, 3), (12, 7, 32), (13, 4, 33), (70, 9, 65)]
FP8 = {"e4m3": (ml_dtypes.float8_e4m3fn, -6), "e5m2": (ml_dtypes.float8_e5m2, -14)}


@pytest.fixture(params=PATHS, autouse=True)
def path(request):
    with simd.force(request.param):
        yield request.param


HOW = {"e4m3": fields(8, 4, 7, True), "e5m2": fields(8, 3, 15, True)}


def left_fp8(values, name):
    """The left operand's codes, packed."""
    return pack_a(values.astype(FP8[name][0]).view(np.uint8), HOW[name])


def right_fp8(values, name):
    """The right operand's codes, packed, and how they are read."""
    return pack_fp8(values.astype(FP8[name][0]).view(np.uint8)[None]), HOW[name]


def bits(x):
    return x.view(np.uint32 if x.itemsize == 4 else np.uint64)


def round_fraction(value, dtype):
    """Round an exact value to nearest even; zero must not come here."""
    digits, emin = (24, -126) if dtype == np.float32 else (53, -1022)
    magnitude = abs(value)
    e = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    e -= Fraction(2) ** e > magnitude
    quantum = Fraction(2) ** (max(e, emin) - digits + 1)
    count = round(magnitude / quantum)  # Python rounds a Fraction to nearest even
    if not count:
        return 0.0 if value > 0 else -0.0
    if count * quantum >= Fraction(2) ** (-emin + 2):
        return math.inf if value > 0 else -math.inf
    return float(count * quantum) * (1 if value > 0 else -1)


def fma_oracle(x, y, z, dtype):
    if not all(map(math.isfinite, (x, y, z))):
        product = x * y if not (math.isfinite(x) and math.isfinite(y)) else 0.0
        return product + z
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    if exact == 0:
        if Fraction(x) * Fraction(y) != 0:
            return 0.0  # exact cancellation
        return math.copysign(0.0, x) * math.copysign(1.0, y) + z
    return round_fraction(exact, dtype)


def chain_oracle(a, b, c):
    out = np.empty((a.shape[0], b.shape[1]), a.dtype)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            acc = 0.0 if c is None else float(c[i, j])
            for k in range(a.shape[1]):
                acc = fma_oracle(float(a[i, k]), float(b[k, j]), acc, a.dtype)
            out[i, j] = np.nan if math.isnan(acc) else acc
    return out


def wild(rng, shape, dtype, spread):
    values = rng.standard_normal(shape) * 2.0 ** rng.integers(-spread, spread + 1, shape)
    return np.where(rng.random(shape) < 0.1, 0.0, values).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (1, 9, 33), (5, 6, 17), (14, 3, 34)])
def test_fma_is_the_ordered_chain(dtype, m, k, n):
    rng = np.random.default_rng(m + k + n)
    for spread in (2, 60):  # 60: float32 products reach the subnormals and overflow
        a, b = wild(rng, (m, k), dtype, spread), wild(rng, (k, n), dtype, spread)
        c = wild(rng, (m, n), dtype, spread)
        for start in (None, c):
            got = gemm_fma(a[None], b[None], c=None if start is None else start[None])[0]
            np.testing.assert_array_equal(bits(got), bits(chain_oracle(a, b, start)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_specials_and_subnormals(dtype):
    info = np.finfo(dtype)
    values = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, -np.nan, info.smallest_subnormal]
    values = np.array([*values, info.smallest_normal, info.max, -info.max], dtype)
    bits(values)[7] |= 5  # a payload
    x, y = (v.reshape(-1, 1) for v in np.meshgrid(values, values))
    for z in values:
        c = np.full((len(x), 1), z, dtype)
        got = gemm_fma(x[:, :, None], y[:, :, None], c=c[:, :, None])[:, :, 0]
        want = np.array(
            [
                [fma_oracle(float(p[0]), float(q[0]), float(z), dtype)]
                for p, q in zip(x, y, strict=True)
            ]
        ).astype(dtype)
        want[np.isnan(want)] = np.nan
        np.testing.assert_array_equal(bits(got), bits(want))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_strides_batches_packing_and_long_chains(dtype):
    rng = np.random.default_rng(3)
    a = rng.standard_normal((3, 25, 1100)).astype(dtype)
    b = rng.standard_normal((3, 45, 1100)).astype(dtype).swapaxes(1, 2)
    whole = gemm_fma(a, b)
    acc = np.zeros(whole.shape, dtype)  # the chain in single steps
    for k in range(1100):
        acc = gemm_fma(a[:, :, k : k + 1], b[:, k : k + 1], c=acc)
    np.testing.assert_array_equal(bits(whole), bits(acc))
    for i in range(3):
        np.testing.assert_array_equal(gemm_fma(a[i : i + 1], b[i : i + 1])[0], whole[i])
    frozen = a.copy()
    frozen.flags.writeable = False
    shared = gemm_fma(frozen, pack_fma(b[:1]))
    np.testing.assert_array_equal(shared[0], whole[0])
    np.testing.assert_array_equal(shared[1], gemm_fma(a[1:2], b[:1])[0])
    np.testing.assert_array_equal(gemm_fma(a[:, ::-2, ::3], b[:, ::3]), gemm_fma(
        a[:, ::-2, ::3].copy(), b[:, ::3].copy()))  # fmt: skip
    assert gemm_fma(a[:, :0], b).shape == (3, 0, 45)
    np.testing.assert_array_equal(gemm_fma(a[:, :, :0], b[:, :0]), np.zeros_like(whole))


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("left", [np.int8, np.uint8])
@pytest.mark.parametrize("right", [np.int8, np.uint8])
def test_int8_is_exact(m, k, n, left, right):
    rng = np.random.default_rng(m * k * n)
    a = rng.integers(0, 256, (2, m, k)).astype(np.uint8).view(left)
    b = rng.integers(0, 256, (2, k, n)).astype(np.uint8).view(right)
    want = (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)
    np.testing.assert_array_equal(gemm_int8(a, b), want)
    np.testing.assert_array_equal(gemm_int8(a[:1], b.swapaxes(1, 2).copy().swapaxes(1, 2)[:1])[0],
                                  want[0])  # fmt: skip
    shared = (a.astype(np.int64) @ b[:1].astype(np.int64)).astype(np.int32)
    np.testing.assert_array_equal(gemm_int8(a, pack_int8(b[:1])), shared)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_int8_wraps_modulo_2_32(dtype):
    depth = 140_003  # 140003 * 128^2 > 2^31, and * 255^2 > 2^33
    low = np.iinfo(dtype).min or 255
    a, b = np.full((1, 2, depth), low, dtype), np.full((1, depth, 3), low, dtype)
    want = np.array(depth * int(low) ** 2).astype(np.int32)
    assert depth * int(low) ** 2 > 2**31
    np.testing.assert_array_equal(gemm_int8(a, b), np.full((1, 2, 3), want))


@pytest.mark.parametrize(("m", "k", "n"), [*SHAPES, (13, 4102, 40)])
@pytest.mark.parametrize("right", [np.int8, np.uint8])
def test_int8_is_scaled_once_after_the_last_block_of_k(m, k, n, right):
    rng = np.random.default_rng(m + k + n)
    a = rng.integers(-128, 128, (2, m, k)).astype(np.int8)
    b = rng.integers(0, 256, (2, k, n)).astype(np.uint8).view(right)
    b[..., 0] = 127  # sums beyond 24 bits, which float32 rounds
    sums = np.matmul(a.astype(np.int64), b.astype(np.int64)).astype(np.int32)
    for scale in map(np.float32, (0.37, 1.0, 2.0**-149, 3e38)):
        with np.errstate(all="ignore"):
            want = sums.astype(np.float32) * scale
        got = gemm_int8(a, b, scale)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(bits(got), bits(want))


def floor_exponent(v, emin):
    return max(math.frexp(v)[1] - 1, emin)


def hopper_oracle(a, b, c, emin_a, emin_b):
    """hardware.md, section 1, with n = 32, F = 13, c in the alignment, result cut to 13 bits."""
    acc = c
    for k0 in range(0, len(a), 32):
        terms = [
            (Fraction(x) * Fraction(y), floor_exponent(x, emin_a) + floor_exponent(y, emin_b))
            for x, y in zip(a[k0 : k0 + 32], b[k0 : k0 + 32], strict=True)
            if x != 0 and y != 0
        ]
        if acc != 0:
            terms.append((Fraction(acc), floor_exponent(acc, -126)))
        if not terms:
            acc = 0.0
            continue
        quantum = Fraction(2) ** (max(e for _, e in terms) - 13)
        total = sum(math.trunc(v / quantum) for v, _ in terms)
        excess = max(abs(total).bit_length() - 14, 0)
        total = (abs(total) >> excess << excess) * (1 if total >= 0 else -1)
        acc = float(total * quantum) if total else 0.0
    return acc


def fp8_values(rng, shape, name, kind):
    dtype, emin = FP8[name]
    if kind == "codes":  # every exponent alike
        codes = rng.integers(0, 256, shape).astype(np.uint8)
        values = codes.view(dtype).astype(np.float32)
        values[~np.isfinite(values)] = 0
    else:
        values = (rng.standard_normal(shape) * 3).astype(np.float32).astype(dtype)
        values = values.astype(np.float32)
    if kind == "sparse":
        values[rng.random(shape) < 0.9] = 0
    return values, emin


@pytest.mark.parametrize("formats", [(x, y) for x in FP8 for y in FP8], ids="-".join)
@pytest.mark.parametrize("kind", ["normal", "codes", "sparse"])
def test_hopper_rule(formats, kind):
    rng = np.random.default_rng(len(kind))
    for m, k, n in [(1, 1, 1), (5, 32, 17), (8, 64, 33), (6, 70, 3), (2, 129, 33)]:
        a, ea = fp8_values(rng, (m, k), formats[0], kind)
        b, eb = fp8_values(rng, (n, k), formats[1], kind)
        c = rng.standard_normal((m, n)) * 2.0 ** rng.integers(-20, 20, (m, n))
        c[rng.random((m, n)) < 0.1] *= 2.0**80
        c[np.abs(c) < LOW] = LOW
        c[rng.random((m, n)) < 0.2] = 0
        c = c.astype(np.float32)
        if k > 64:  # the first group cancels itself, and C
            a[:, 16:32], b[:, 16:32] = -a[:, :16], b[:, :16]
            c[::2] = 0
        pa, (pb, how) = left_fp8(a, formats[0]), right_fp8(b.T, formats[1])
        for start in (None, c):
            got = gemm_hopper_fp8(pa, pb, how, c=start)
            want = np.array(
                [
                    [
                        hopper_oracle(a[i].tolist(), b[j].tolist(),
                                      0.0 if start is None else float(start[i, j]), ea, eb)
                        for j in range(n)
                    ]
                    for i in range(m)
                ],
                np.float32,
            )  # fmt: skip
            np.testing.assert_array_equal(bits(got), bits(want))


def test_hopper_zeros_keep_c_and_a_zero_result_is_positive():
    zero, one = np.zeros((2, 40), np.float32), np.full((40, 3), -0.0, np.float32)
    pa, (pb, how) = left_fp8(zero, "e4m3"), right_fp8(one, "e4m3")
    for start in (LOW, -HIGH, -0.0, 1.0 + 2.0**-13, -1.0 - 2.0**-14):
        c = np.full((2, 3), start, np.float32)
        want = bits(c) & np.uint32(0xFFFFFC00) if start else np.zeros((2, 3), np.uint32)
        np.testing.assert_array_equal(bits(gemm_hopper_fp8(pa, pb, how, c=c)), want)
    assert not bits(gemm_hopper_fp8(pa, pb, how)).any()


def test_hopper_at_the_least_exponents():
    """A bias of 17: products down to 2^-38, sums with every accumulator that the kernel takes."""
    how, emin = fields(8, 3, 17, True), LEAST
    rng = np.random.default_rng(0)

    def operand(shape):
        codes = rng.integers(0, 12, shape).astype(np.uint8) | rng.choice([0, 0x80], shape)
        field, fraction = codes >> 2 & 31, codes & 3
        value = np.where(field, 4 + fraction, fraction) * 2.0 ** (np.maximum(field, 1) - 19.0)
        return codes.astype(np.uint8), np.where(codes & 0x80, -value, value)

    for k in (1, 2, 31, 33, 65):
        (a, va), (b, vb) = operand((4, k)), operand((k, 33))
        b[:, ::3] = vb[:, ::3] = 0
        c = (
            LOW
            * 2.0 ** rng.integers(0, 12, (4, 33))
            * rng.choice([-1, 1, 1.0001220703125], (4, 33))
        )
        c[np.abs(c) < LOW] = 0
        c[:, 5] = 0
        for start in (None, c.astype(np.float32)):
            got = gemm_hopper_fp8(pack_a(a, how), pack_fp8(b[None]), how, c=start)
            begin = np.zeros((4, 33)) if start is None else start
            want = [
                [hopper_oracle(va[i].tolist(), vb[:, j].tolist(), float(begin[i, j]), emin, emin)
                 for j in range(33)]
                for i in range(4)
            ]  # fmt: skip
            np.testing.assert_array_equal(bits(got), bits(np.array(want, np.float32)))


READ = {
    "e4m3": (fields(8, 4, 7, True), 8), "e5m2": (fields(8, 3, 15, True), 8),
    "e4m3, bias 17": (fields(8, 4, 15, True), 8), "e2m3": (fields(6, 4, 1, True), 6),
    "e2m1": (fields(4, 2, 1, True), 4), "e5m3 unsigned": (fields(8, 4, 16, False), 8),
    "e1m2": (fields(4, 3, 0, True), 4),
    "e1m1": (fields(3, 2, 0, True), 3),
}  # fmt: skip


@pytest.mark.parametrize(("left", "right"), [(x, y) for x in READ for y in READ], ids="-".join)
@pytest.mark.parametrize("path", PATHS[1:] or PATHS, indirect=True)
def test_hopper_paths_agree(path, left, right):
    """Rows alone, in pairs and many; groups of any size; columns anywhere in memory; zeros."""
    rng = np.random.default_rng(len(left + right))
    (how_a, bits_a), (how_b, bits_b) = READ[left], READ[right]

    def codes(shape, width):
        drawn = rng.integers(0, 1 << width, shape)
        drawn[rng.random(shape) < 0.2] = rng.choice([0, 1 << width - 1])
        if "e5m2" in (left, right):
            drawn[drawn & 0x7C == 0x7C] ^= 4  # those of E5M2 are no numbers
        return drawn.astype(np.uint8)

    for m, k, n, group in [
        (1, 32, 64, 32), (2, 320, 64, 32), (3, 70, 65, 16), (8, 129, 1, 32), (9, 320, 128, 16),
        (13, 100, 66, 5), (1, 256, 128, 128), (21, 192, 64, 64), (2, 64, 64, 8),
    ]:  # fmt: skip
        a, b = codes((m, k), bits_a), codes((k, n), bits_b)
        c = (rng.standard_normal((m, n)) * 2.0 ** rng.integers(-20, 40, (m, n))).astype(np.float32)
        c[rng.random((m, n)) < 0.3] = 0
        for start in (None, c):
            with simd.force("plain"):
                want = gemm_hopper_fp8(
                    pack_a(a, how_a, group), pack_fp8(b[None], group), how_b, c=start
                )
            for columns in (b, np.ascontiguousarray(b.T).T):
                got = gemm_hopper_fp8(
                    pack_a(a, how_a, group), pack_fp8(columns[None], group), how_b, c=start
                )
                np.testing.assert_array_equal(bits(got), bits(want))


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m3", "e2m1"])
@pytest.mark.parametrize("path", PATHS[-1:], indirect=True)
def test_tables_hold_what_arithmetic_reads(path, name):
    if not simd.HAVE_BYTE_TABLES:
        pytest.skip("needs tables of bytes")
    how, width = READ[name]
    codes = np.arange(1 << width).astype(np.uint8)
    codes = np.random.default_rng(0).permutation(np.resize(codes, 2 * 16 * 64))
    want, got = (np.zeros(2 * simd_fp8.RUN_WORDS, np.int32) for _ in range(2))
    planes_both_ways(codes, want, got, how)
    np.testing.assert_array_equal(got, want)
    signs = got.view(np.uint8).reshape(2, -1)[:, -128:].reshape(2, 2, 1, 64)
    bits = signs >> np.arange(8)[:, None] & 1
    np.testing.assert_array_equal(bits.reshape(-1), codes >> width - 1)


@numba.njit
def planes_both_ways(codes, want, got, how):
    simd_fp8.right_codes(16, codes, 32, want, how)
    looked_up_codes(codes, 32, got, hopper_right.tables_of(how))


@pytest.mark.parametrize("path", PATHS[-1:], indirect=True)
@pytest.mark.slow
def test_arithmetic_reads_the_right_operand_where_there_are_no_tables(path, tmp_path):
    script = """
import numpy as np
from numsim.kernels.ir import simd
from numsim.kernels.ir.fp8_codes import looked_up_codes
simd.HAVE_BYTE_TABLES = False
from numsim.kernels.gemm.codes import fields
from numsim.kernels.gemm.hopper import gemm_hopper_fp8, pack_a, pack_b
how, rng = fields(8, 4, 7, True), np.random.default_rng(0)
a, b = (rng.integers(0, 126, shape).astype(np.uint8) for shape in ((11, 128), (128, 64)))
a[::2] |= 128
for columns in (b, np.ascontiguousarray(b.T).T):
    for rows in (a, a[:3]):
        got = gemm_hopper_fp8(pack_a(rows, how), pack_b(columns[None]), how)
        with simd.force("plain"):
            want = gemm_hopper_fp8(pack_a(rows, how), pack_b(columns[None]), how)
        assert got.tobytes() == want.tobytes()
"""
    if not simd.HAVE_BYTE_TABLES:
        pytest.skip("the other tests did this")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize("kinds", [(np.int8, np.int8), (np.uint8, np.int8), (np.int8, np.uint8)])
def test_deep_int8_products_of_several_blocks_and_groups(path, kinds):
    rng = np.random.default_rng(6)
    for m, k, n in [(131, 4500, 70), (12, 2052, 33), (13, 1024, 32), (300, 1028, 31)]:
        a, b = (
            rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, shape).astype(kind)
            for kind, shape in zip(kinds, [(1, m, k), (1, k, n)], strict=True)
        )
        want = a[0].astype(np.int64) @ b[0].astype(np.int64)
        for right in (b, np.ascontiguousarray(b.swapaxes(1, 2)).swapaxes(1, 2)):
            with simd.force(path):
                np.testing.assert_array_equal(gemm_int8(a, right)[0], want)
                scaled = gemm_int8(a, right, np.float32(0.3))[0]
            np.testing.assert_array_equal(scaled, want.astype(np.float32) * np.float32(0.3))


@pytest.mark.parametrize("path", simd.PATHS)
def test_a_product_keeps_nothing_that_it_was_given(path):
    rng = np.random.default_rng(7)
    codes = [rng.integers(-9, 9, shape).astype(np.int8) for shape in [(1, 30, 64), (1, 64, 40)]]
    for kernel, kind in [(gemm_int8, np.int8), (gemm_fma, np.float32)]:
        a, b = (x.astype(kind) for x in codes)
        before = sys.getrefcount(a), sys.getrefcount(b)
        with simd.force(path):
            out = kernel(a, b)
        assert (sys.getrefcount(a), sys.getrefcount(b)) == before
        gone = weakref.ref(out.base if out.base is not None else out)
        del out
        assert gone() is None


@pytest.mark.parametrize("width", [12, 16, 32])
def test_rows_of_words_are_packed_k_by_k(width):
    rng = np.random.default_rng(0)
    for batch, m, k in [(1, 1, 1), (2, 12, 16), (1, 13, 33), (3, 24, 48), (1, 5, 15), (2, 65, 100)]:
        source = rng.integers(0, 1 << 32, (batch, m, k)).astype(np.uint32)
        for flip in (0, 0x80808080):
            panels = pack_words(source, flip, width)
            assert panels.shape == (batch, -(-m // width), k, width, 1)
            rows = panels[..., 0].swapaxes(2, 3).reshape(batch, -1, k)[:, :m]
            np.testing.assert_array_equal(rows, source ^ np.uint32(flip))


def everything(rng):
    a = rng.standard_normal((2, 130, 520)).astype(np.float32)
    b = rng.standard_normal((2, 520, 70)).astype(np.float32)
    qa, qb = (np.rint(x * 20).astype(np.int8) for x in (a, b))
    values = [x[0].astype(ml_dtypes.float8_e4m3fn).astype(np.float32) for x in (a, b)]
    c = rng.standard_normal((130, 70)).astype(np.float32)
    return [
        gemm_fma(a, b),
        gemm_fma(a.astype(np.float64), b.astype(np.float64)),
        gemm_int8(qa, qb),
        gemm_hopper_fp8(left_fp8(values[0], "e4m3"), *right_fp8(values[1].T.copy().T, "e4m3"), c=c),
    ]


def test_threads_and_paths_do_not_change_bits():
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        with simd.force("plain"):
            want = everything(np.random.default_rng(1))
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            for got, expected in zip(everything(np.random.default_rng(1)), want, strict=True):
                np.testing.assert_array_equal(got, expected)
    finally:
        numba.set_num_threads(before)


def test_work_that_asks_for_threads_again_does_not_wait_for_them():
    done = np.zeros((8, 4), np.int64)

    def row(start, stop):
        for i in range(start, stop):
            over_range(lambda a, b, i=i: done[i, a:b].__iadd__(1), 4)

    over_range(row, 8)
    assert (done == 1).all()


def test_force_is_restored(path):
    assert simd.path() == path
    with simd.force("plain"):
        assert simd.path() == "plain"
        assert not simd.enabled()
    assert simd.path() == path
    with pytest.raises(ValueError, match=r"paths are plain.*'neon'"), simd.force("neon"):
        pass


@pytest.mark.parametrize("depth", [1, 7, 8, 16, 63, 64, 65, 200])
@pytest.mark.parametrize("lines", [1, 5, 8, 24, 33, 64])
@pytest.mark.parametrize("more", [0, 1, 8])
def test_bytes_turned(path, depth, lines, more):
    source = np.random.default_rng(depth).integers(0, 256, (depth, lines)).astype(np.uint8)
    out = np.full((lines, depth + more), 77, np.uint8)
    turn(source, out)
    np.testing.assert_array_equal(out[:, :depth], source.T)
    assert (out[:, depth:] == 77).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 31, 63), (1, 64, 64), (3, 33, 65), (2, 100, 200)])
@pytest.mark.parametrize("group", [16, 32])
def test_codes_pack_alike_whichever_side_lies_in_memory(path, shape, group):
    codes = np.random.default_rng(0).integers(0, 127, shape).astype(np.uint8)
    other = np.asfortranarray(codes.transpose(0, 2, 1)).transpose(0, 2, 1)
    strided = np.repeat(codes, 2, axis=2)[:, :, ::2]  # contiguous in neither order
    want = pack_fp8(strided, group, in_place=False)
    for given in (codes, other):
        got = pack_fp8(given, group, in_place=False)
        assert got.lines == want.lines
        np.testing.assert_array_equal(got.panels, want.panels)
    rows = codes[0].T  # [N, K]
    sums = [
        gemm_hopper_fp8(pack_a(x, HOW["e4m3"], group), pack_fp8(codes[:1], group), HOW["e4m3"])
        for x in (rows, rows.copy())
    ]
    np.testing.assert_array_equal(sums[0].view(np.uint32), sums[1].view(np.uint32))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 7), (1, 13, 24), (2, 31, 25), (3, 8, 12)])
def test_left_operands_pack_alike_whichever_side_lies_in_memory(path, shape):
    rng = np.random.default_rng(0)
    batch, depth, lines = shape
    turned = rng.normal(size=shape).astype(np.float32)  # [batch, K, M]
    b = rng.normal(size=(batch, depth, 5)).astype(np.float32)
    rows = turned.swapaxes(1, 2)
    np.testing.assert_array_equal(gemm_fma(rows, b), gemm_fma(rows.copy(), b))
    codes = rng.integers(-128, 128, shape).astype(np.int8)
    right = rng.integers(-128, 128, (batch, depth, 5)).astype(np.int8)
    for kind in (np.int8, np.uint8):
        some = codes.view(kind).swapaxes(1, 2)
        np.testing.assert_array_equal(gemm_int8(some, right), gemm_int8(some.copy(), right))
    assert lines == rows.shape[1]
