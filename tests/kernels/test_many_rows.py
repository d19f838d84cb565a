"""Many rows of FP8 whose negative products are counted by signs: pairs of codes, counts, zeros."""

from dataclasses import replace

import numpy as np
import pytest

import numsim as ns
from numsim.kernels.gemm import double, hopper
from numsim.kernels.gemm.scales import NONE
from numsim.kernels.ir import simd
from numsim.targets.tensor import fields

E4M3, E5M2 = ns.get_format("float8_e4m3fn"), ns.get_format("float8_e5m2")
PAIRS = [(x, y) for x in (E4M3, E5M2) for y in (E4M3, E5M2)]
SHORT = [ns.get_format(f"float{name}fn") for name in ("6_e2m3", "6_e3m2", "4_e2m1")]
SHORT += [ns.Format("s5", "float", 5, 3, 2), ns.Format("s7", "float", 7, 4, 3)]
UNSIGNED = ns.Format("u7", "float", 7, 4, 7, signed=False), ns.get_format("float8_ue4m3")
FAST = [path for path in simd.PATHS if path != "plain"]
KEPT = {"hopper": (13, 13), "tcgen05": (25, 23)}  # fraction bits of terms, and of a sum
UNITS = {"hopper": "nvidia.hopper.wgmma", "tcgen05": "nvidia.blackwell.tcgen05"}


def product(unit, a, b, formats, group, c=None):
    """Return what the kernel of many rows makes of codes [M, K] and [K, N]."""
    left, right = (fields(f) for f in formats)
    if unit == "hopper":
        assert hopper.rows_of(len(a), right) == hopper.hopper_paths.MANY
        rows, columns = hopper.pack_a(a, left, group), hopper.pack_b(b[None], group)
        return hopper.gemm_hopper_fp8(rows, columns, right, c=c)
    assert len(a) > double.FEW[simd.path()]
    packed = double.pack_b(b[None], NONE, group)
    start = None if c is None else c[None]
    align = KEPT[unit][0]
    return double.gemm_double(
        a[None], NONE, left, packed, right, group, align, None, double.PLAIN, start
    )[0]  # fmt: skip


def parts(codes, fmt):
    """Return significands as integers, and exponents; -1000 of zeros."""
    values = fmt.values()[codes].astype(np.float64)
    exponents = np.maximum(np.frexp(values)[1] - 1, fmt.emin)
    whole = np.ldexp(values, fmt.precision - 1 - exponents).astype(np.int64)
    return whole, np.where(values == 0, -1000, exponents)


def cut(numbers, away):
    """Return numbers times a power of two, cut toward zero."""
    away = np.clip(away, -62, 38)
    size = np.where(away < 0, abs(numbers) >> np.maximum(-away, 0), abs(numbers))
    return np.sign(numbers) * (size << np.maximum(away, 0))


def definition(unit, a, b, formats, group, c=None):
    """Return the sums by integers: align to the largest exponent, cut, add, cut."""
    align, kept = KEPT[unit]
    (x, x_powers), (y, y_powers) = (parts(*each) for each in zip((a, b), formats, strict=True))
    fraction = sum(f.precision - 1 for f in formats)
    total = np.zeros((len(a), b.shape[1])) if c is None else c.astype(np.float64)
    for k in range(0, a.shape[1], group):
        terms = x[:, k : k + group, None] * y[None, k : k + group]
        powers = x_powers[:, k : k + group, None] + y_powers[None, k : k + group]
        own = np.where(total == 0, -1000, np.frexp(total)[1] - 1)
        most = np.maximum(powers.max(1), own)
        sums = cut(terms, powers - fraction - most[:, None] + align).sum(1)
        significand = np.ldexp(total, 23 - np.where(total == 0, 0, own)).astype(np.int64)
        sums += cut(significand, own - 23 - most + align)
        extra = np.maximum(np.frexp(sums.astype(np.float64))[1] - 1 - kept, 0)
        sums = cut(sums, -extra) << extra
        total = np.where(sums == 0, 0.0, np.ldexp(sums.astype(np.float64), most - align))
    return total.astype(np.float32)


def check(unit, a, b, formats, group, c=None):
    want = definition(unit, a, b, formats, group, c)
    for columns in (b, np.ascontiguousarray(b.T).T):
        got = product(unit, a, columns, formats, group, c)
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def drawn(rng, shape, fmt, kind="any"):
    """Return finite codes, many of them zeros of either sign."""
    top = fmt.bits - fmt.signed
    codes = rng.integers(0, fmt.max_code + 1, shape)
    if kind == "largest":
        codes[...] = fmt.max_code
    codes[rng.random(shape) < {"any": 0.2, "zeros": 0.7, "largest": 0.01}[kind]] = 0
    if fmt.signed and fmt.nan != "minus_zero":
        codes |= rng.integers(0, 2, shape) << top
    return codes.astype(np.uint8)


@pytest.fixture(params=FAST, autouse=True)
def path(request):
    with simd.force(request.param):
        yield request.param


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("formats", PAIRS)
def test_every_pair_of_codes_beside_every_binade(unit, formats):
    """A row's value is made larger by its last place: no product may pass a whole number by it."""
    a, b = (np.flatnonzero(np.isfinite(f.values())).astype(np.uint8) for f in formats)
    a, b = ns.QTensor.from_codes(a[:, None], formats[0]), ns.QTensor.from_codes(b[None], formats[1])
    for power in range(-33, 44 if unit == "tcgen05" else 32):
        c = np.full((a.shape[0], b.shape[1]), 2.0**power, np.float32)
        c[:, ::2] *= -1
        c[1::3] *= np.float32(1.5 + 2**-12)
        got = ns.matmul(a, b, target=UNITS[unit], c=c)
        with simd.force("plain"):
            want = ns.matmul(a, b, target=UNITS[unit], c=c)
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("formats", [*PAIRS, *((f, f) for f in SHORT), *((f, E4M3) for f in SHORT),
                                     (UNSIGNED[0], E4M3), (E4M3, UNSIGNED[1])])  # fmt: skip
def test_groups_of_any_size(unit, formats):
    """Each k has its own bit, padded ones none that counts; a sign stands anywhere in a code."""
    rng = np.random.default_rng(0)
    for m, k, n, group in [(9, 128, 64, 32), (10, 100, 65, 16), (13, 40, 31, 5), (12, 256, 70, 128),
                           (9, 64, 64, 64), (11, 33, 130, 24), (10, 9, 33, 1)]:  # fmt: skip
        for kind in ("any", "zeros"):
            a, b = drawn(rng, (m, k), formats[0], kind), drawn(rng, (k, n), formats[1], kind)
            size = np.ldexp(rng.uniform(1, 2, (m, n)), rng.integers(-30, 24, (m, n)))
            c = np.where(rng.random((m, n)) < 0.2, -0.0, size * rng.choice([-1, 1], (m, n)))
            for start in (None, c.astype(np.float32)):
                check(unit, a, b, formats, group, start)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("formats", [(E4M3, E4M3), (E5M2, E5M2)])
def test_the_largest_sums_of_negative_products(unit, formats):
    """128 products at the top of the binade, all negative: each is corrected by one."""
    rng, n = np.random.default_rng(1), 66
    a = np.full((9, 256), formats[0].max_code, np.uint8)
    b = np.full((256, n), formats[1].max_code, np.uint8)
    b[:, 1::3] |= 128
    b[5::7, 2::3] = 128
    b[3::5, 2::3] = 1 | 128  # far below the others: cut to nothing
    for group in (128, 127, 32):
        check(unit, a, b, formats, group)
        check(unit, a | np.uint8(128), b, formats, group)
        check(unit, drawn(rng, a.shape, formats[0], "largest"), b, formats, group)


@pytest.mark.parametrize("unit", UNITS)
def test_zeros_of_a_sign_beside_the_largest_factors(unit):
    """A zero of either operand has a sign that counts, and is less than any last place."""
    least, most = (replace(ns.get_format("float8_e5m2fnuz"), name=f"b{b}", bias=b, nan="none")
                   for b in (17, 16))  # fmt: skip
    assert least.emin == hopper.LEAST
    assert most.emax == hopper.MOST
    a, b = np.zeros((18, 32), np.uint8), np.zeros((32, 64), np.uint8)
    a[:, :8], b[:8] = 1, 1  # the smallest products there are, and whole ones of the last place
    a[9:, :8] = 4
    a[::2, 0] |= 128
    b[1, ::3] |= 128
    a[:, 8:16], b[16:24] = most.max_code, most.max_code
    a[1::2, 8:24:3] |= 128
    b[8:24:2, ::2] |= 128
    for formats in ((least, most), (least, least), (most, most)):
        check(unit, a, b, formats, 32)
        c = np.full((18, 64), 2.0**-33, np.float32)
        c[:, ::2] *= -1
        check(unit, a, b, formats, 32, c)
