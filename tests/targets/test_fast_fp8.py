"""The kernels of FP8 in float64 against the definitions, bit for bit, on every path."""

from dataclasses import replace

import numba
import numpy as np
import pytest
from test_fast_units import SHAPES, accumulator, bits, cancelled, counted, floats, same

from numsim.convert import encode
from numsim.formats import get_format
from numsim.kernels.gemm import double as gemm_double
from numsim.kernels.ir import simd
from numsim.kernels.ir.double import ANY, NORMAL, PLAIN
from numsim.quant import QTensor, Quant, quantize
from numsim.targets import get_target
from numsim.targets.ops import matmul

TCGEN05, CDNA3 = "nvidia.blackwell.tcgen05", "amd.cdna3.mfma"
LOW, HIGH = np.float32(gemm_double.LOW), np.float32(gemm_double.HIGH)
PATHS = simd.PATHS[1:]
pytestmark = pytest.mark.skipif(not PATHS, reason="no vector kernels here")


@pytest.fixture(params=PATHS)
def path(request):
    with simd.force(request.param):
        yield request.param


def moderate(c):
    """Return accumulators without those that are small and not zero."""
    return np.where((c != 0) & (np.abs(c) < LOW), np.float32(1), c).astype(np.float32)


@pytest.mark.parametrize("name", ["float8_e4m3fnuz", "float8_e5m2fnuz"])
@pytest.mark.parametrize("kind", ["normal", "codes", "sparse", "wild", "tiny"])
def test_two_streams(path, name, kind):
    """Products that lose bits and those that do not; accumulators far above and below them."""
    rng = np.random.default_rng(4)
    for m, k, n in [*SHAPES, (13, 200, 70), (5, 64, 130), (7, 16, 64)]:
        a, b = floats(rng, (m, k), name, kind), floats(rng, (k, n), name, kind)
        with counted() as calls:
            same(a, b, CDNA3)
            for spread in (3, 25, 60):
                c = accumulator(rng, (m, n), np.float32, spread)
                same(a, b, CDNA3, moderate(c))
                same(*cancelled(a, b), CDNA3, moderate(c))
        assert "two streams in float64" in calls
        same(a, b, CDNA3, c)
        c[0, 0], c[-1, -1] = np.inf, np.nan
        same(a, b, CDNA3, c)


@pytest.mark.parametrize("group", [1, 5, 16, 24, 128])
def test_two_streams_of_any_group(path, group):
    rng = np.random.default_rng(group)
    unit = get_target(CDNA3, group=group)
    for name in ("float8_e4m3fnuz", "float8_e5m2fnuz"):
        a, b = floats(rng, (6, 257), name, "codes"), floats(rng, (257, 66), name, "codes")
        with counted() as calls:
            same(a, b, unit, moderate(accumulator(rng, (6, 66), np.float32, 20)))
        assert "two streams in float64" in calls


def test_two_streams_beside_accumulators_of_every_exponent(path):
    """One product of either sign beside accumulators down to nothing, of either sign."""
    for group in (2, 16):
        unit = get_target(CDNA3, group=group)
        a = QTensor.from_codes(np.full((6, 16), 0x40, np.uint8), "float8_e4m3fnuz")
        codes = np.zeros((16, 70), np.uint8)
        codes[:3] = np.random.default_rng(1).integers(0, 256, (3, 70))
        codes[codes == 0x80] = 0
        b = QTensor.from_codes(codes, "float8_e4m3fnuz")
        for i in range(-33, 60):
            for tail in (1.0, 1.0 + 2.0**-23, 2.0 - 2.0**-23, 1.5):
                size = np.float32(tail) * np.float32(2.0) ** i
                c = np.full((6, 70), size) * np.where(np.arange(70) % 2, 1, -1)
                same(a, b, unit, c.astype(np.float32))


def test_two_streams_one_bit_below_the_last(path):
    """Large products that cancel beside two alike, whose last bits lie about the last kept one."""
    fmt, found = "float8_e4m3fnuz", set()
    for low in range(-7, 4):
        a, b = np.zeros((6, 16), np.float32), np.zeros((16, 66), np.float32)
        a[:, [0, 2]], b[[0, 2]] = 128.0, np.float32([[128.0], [-128.0]])  # 2**14
        a[:, [1, 3]], b[[1, 3]] = 1.875 * 2.0**low, 1.875
        for sign in (1, -1):
            x, y = (QTensor.from_codes(encode(v, fmt), fmt) for v in (a, np.float32(sign) * b))
            same(x, y, CDNA3)
            found.add(float(matmul(x, y, target=CDNA3)[0, 0]) == 2 * 1.875**2 * sign * 2.0**low)
    assert found == {True, False}  # some lose the bit, some do not


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("kind", ["normal", "codes", "sparse", "wild"])
@pytest.mark.parametrize("align_bits", [23, 25])
def test_sums_without_scales(path, name, kind, align_bits):
    """Accumulators that the kernel without scales takes, and those just outside."""
    rng = np.random.default_rng(5)
    unit = get_target(TCGEN05, align_bits=align_bits)
    edges = np.float32([LOW, -LOW, HIGH, -HIGH, np.nextafter(LOW, 1), 0.0, -0.0])
    outside = np.float32([np.nextafter(LOW, 0), np.nextafter(HIGH, np.inf), 1e-45, 3e38, np.inf])
    for m, k, n in [*SHAPES, (13, 200, 70), (5, 64, 130)]:
        a, b = floats(rng, (m, k), name, kind), floats(rng, (k, n), name, kind)
        c = moderate(accumulator(rng, (m, n), np.float32, 33))
        same(a, b, unit)
        for edge in (*edges, *outside):
            c[0, 0] = edge
            same(a, b, unit, c)
            same(*cancelled(a, b), unit, c)


HOPPER = "nvidia.hopper.wgmma"


@pytest.mark.parametrize(("unit", "name"), [
    (HOPPER, "float8_e4m3fn"), (HOPPER, "float8_e5m2"), (TCGEN05, "float8_e4m3fn"),
    (TCGEN05, "float8_e5m2"), (CDNA3, "float8_e4m3fnuz"), (CDNA3, "float8_e5m2fnuz"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["normal", "codes", "sparse", "wild"])
def test_few_rows(path, unit, name, kind):
    """One row and a few, whose kernels read codes as they are: blocks of k, parts of a panel."""
    rng = np.random.default_rng(6)
    for m, k, n in [(1, 300, 70), (2, 129, 64), (3, 64, 130), (4, 33, 5)]:
        a, b = floats(rng, (m, k), name, kind), floats(rng, (k, n), name, kind)
        c = moderate(accumulator(rng, (m, n), np.float32, 20))
        same(a, b, unit)
        same(a, b, unit, c)
        same(*cancelled(a, b), unit, c)
        turned = QTensor.from_codes(np.ascontiguousarray(b.codes.T).T, b.fmt)
        same(a, turned, unit, c)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_largest_exponents_of_few_rows(path, name):
    """Columns of zeros and subnormals beside rows of few or many exponents: no sum tells less."""
    rng = np.random.default_rng(8)
    fmt, k, n = get_format(name), 64, 70
    sizes = 1 << fmt.precision - 1  # of subnormals, with zero
    for low, high in ((0, 1), (0, sizes), (1, sizes + 1), (0, sizes + 3), (sizes, 2 * sizes)):
        for of_a in ((1, 3), (sizes, 1 << fmt.bits - 2), (0, sizes), (0, 1 << fmt.bits - 2)):
            for m in (1, 2, 3):
                x = rng.integers(*of_a, (m, k)) | rng.integers(0, 2, (m, k)) << fmt.bits - 1
                y = rng.integers(low, high, (k, n)) | rng.integers(0, 2, (k, n)) << fmt.bits - 1
                y[:, 3] = rng.integers(0, 1 << fmt.bits - 2, k)
                a, b = (QTensor.from_codes(v.astype(np.uint8), fmt) for v in (x, y))
                same(a, b, HOPPER)
                same(a, b, HOPPER, moderate(accumulator(rng, (m, n), np.float32, 12)))


@pytest.mark.parametrize(("unit", "name"), [
    (HOPPER, "mxfp8_e4m3"), (HOPPER, "mxfp8_e5m2"), (TCGEN05, "mxfp8_e4m3"),
    (TCGEN05, "mxfp8_e5m2"), ("ideal.fp32", "mxfp8_e4m3"), ("ideal.fp32", "nvfp4"),
])  # fmt: skip
def test_few_rows_of_blocks(path, unit, name):
    rng = np.random.default_rng(9)
    for m, k, n in [(1, 320, 70), (1, 96, 33), (2, 288, 64), (3, 64, 130), (4, 1024, 5)]:
        x = rng.standard_normal((m, k)).astype(np.float32) * np.float32(2) ** rng.integers(-9, 9, k)
        y = rng.standard_normal((k, n)).astype(np.float32)
        y[:, ::3] *= (np.float32(2) ** rng.integers(-9, 9, k))[:, None]
        a, b = quantize(x.astype(np.float32), name), quantize(y, name, axis=-2)
        same(a, b, unit)
        same(a, b, unit, rng.standard_normal((m, n)).astype(np.float32))


def test_kinds_of_sums():
    """The plainest kernel that holds all numbers is chosen."""
    kind = gemm_double.kind_of
    assert kind(-32, 60, -133, None, scaled=False) == PLAIN
    assert kind(-32, 117, -133, None, scaled=False) == NORMAL
    assert kind(-32, 60, -32, None, scaled=False) == ANY
    assert kind(-32, 60, None, np.float32([0, LOW, HIGH]), scaled=False) == PLAIN
    assert kind(-32, 60, None, np.float32([LOW / 2]), scaled=False) == NORMAL
    assert kind(-32, 60, None, np.float32([2.0**126]), scaled=False) == ANY
    assert kind(-32, 60, None, np.float32([np.nan]), scaled=True) == ANY
    assert kind(-120, 125, -133, None, scaled=True) == NORMAL
    assert kind(-121, 125, -133, None, scaled=True) == ANY
    assert kind(-120, 126, -133, None, scaled=True) == ANY


@pytest.mark.parametrize("shift", [-140, -106, -105, -60, 0, 60, 100, 127])
@pytest.mark.parametrize("spread", [0, 12])
def test_sums_with_scales(path, shift, spread):
    """Block scales of every size: results from nothing to infinity, and what lies between."""
    rng = np.random.default_rng(6)
    for m, k, n in [(6, 64, 18), (9, 160, 70)]:
        a, b = (floats(rng, s, "float8_e4m3fn", "codes") for s in ((m, k), (k, n)))
        pairs = []
        for q, axis in ((a, -1), (b, -2)):
            of = list(q.shape)
            of[axis] //= 32
            powers = rng.integers(-spread, spread + 1, of) + shift // 2 + 127
            pairs.append(scaled(q, np.clip(powers, 0, 254).astype(np.uint8), axis))
        wide = accumulator(rng, (m, n), np.float32, 40)
        tiny = (accumulator(rng, (m, n), np.float64, 12) * 2.0**-135).astype(np.float32)
        for c in (None, wide, tiny, np.full((m, n), -0.0, np.float32)):
            same(*pairs, TCGEN05, c)


def scaled(q, codes, axis):
    """Return a tensor with E8M0 scales of blocks of 32."""
    how = Quant(q.fmt.name, block=32, scale_format="float8_e8m0fnu")
    like = quantize(np.ones(q.shape, np.float32), how, axis=axis)
    return replace(like, codes=q.codes, scale_codes=codes)


def test_bits_of_any_threads(path):
    rng = np.random.default_rng(7)
    for name, unit in (("float8_e4m3fnuz", CDNA3), ("float8_e4m3fn", TCGEN05)):
        a, b = floats(rng, (70, 96), name, "codes"), floats(rng, (96, 200), name, "codes")
        found = []
        for threads in {1, numba.config.NUMBA_NUM_THREADS}:
            numba.set_num_threads(threads)
            found.append(bits(matmul(a, b, target=unit)))
        np.testing.assert_array_equal(found[0], found[-1])


@pytest.mark.parametrize("group", [11, 13])  # units that nothing else has asked for
def test_what_one_path_covers_is_not_kept_for_another(group):
    rng, unit = np.random.default_rng(6), get_target(TCGEN05, group=group)
    a, b = (floats(rng, shape, "float8_e4m3fn", "codes") for shape in ((1, 64), (64, 65)))
    order = ("plain", *PATHS) if group == 11 else (*PATHS, "plain")
    for name in order:
        with simd.force(name), counted() as calls:
            same(replace(a), replace(b), unit)
        assert ("aligned sums in float64" in calls) == (name != "plain"), name
