"""The vector paths of the units against the generic scalar kernels, bit for bit."""

import hashlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import numba
import numpy as np
import pytest

from numsim.convert import cast, decode, encode
from numsim.formats import get_format, list_formats
from numsim.kernels.gemm.fma import gemm_fma
from numsim.kernels.ir import simd
from numsim.quant import QTensor
from numsim.quant.kept import Key
from numsim.targets import get_target, outside, runs
from numsim.targets.fast.integer import integer_plan
from numsim.targets.fast.mac import fma
from numsim.targets.ops import matmul
from numsim.targets.types import CLASSES

PATHS = ("avx512", "plain") if simd.HAVE_AVX512_VNNI else simd.PATHS[-1:]
SHAPES = [(1, 1, 1), (3, 70, 18), (6, 33, 16), (9, 129, 5)]


@pytest.fixture(params=PATHS)
def path(request):
    with simd.force(request.param):
        yield request.param


_CHOSEN = runs.chosen


@contextmanager
def generic():
    """Only the scalar kernels inside, which nobody counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "chosen", _CHOSEN)
        patch.setattr(runs, "FAST", {})
        patch.setattr(outside, "add_blocks", lambda *_: None)
        yield


@contextmanager
def counted():
    """Count chains by the kernels that ran them."""
    calls = Counter()
    inner = runs.chosen

    def spy(chain):
        work = inner(chain)
        calls[work.kernel] += 1
        return work

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "chosen", spy)
        yield calls


def floats(rng, shape, name, kind):
    """Random tensors: `normal`, `codes` (all finite codes alike), `sparse`, `wild` exponents.

    Products of `tiny` ones lie around the least exponents of alignments, 2**-132.
    """
    fmt = get_format(name)
    if kind == "codes":
        codes = rng.integers(0, 1 << fmt.bits, shape).astype(fmt.code_dtype)
        codes[~np.isfinite(fmt.decode_bits(codes.astype(np.int64)))] = 0
        return QTensor.from_codes(codes, name)
    values = rng.standard_normal(shape).astype(np.float32)
    if kind == "wild":
        values *= np.float32(2.0) ** rng.integers(-40, 41, shape).astype(np.float32)
    if kind == "tiny":
        values *= (2.0 ** rng.integers(-74, -67, shape)).astype(np.float32)
    if kind == "sparse":
        values[rng.random(shape) < 0.8] = 0
    return QTensor.from_codes(encode(values, fmt), name)


def accumulator(rng, shape, dtype, spread=40):
    c = rng.standard_normal(shape) * 2.0 ** rng.integers(-spread, spread + 1, shape)
    c[rng.random(shape) < 0.2] = 0
    with np.errstate(over="ignore"):
        return c.astype(dtype)


def bits(x):
    return x.view(np.uint32 if x.itemsize == 4 else np.uint16 if x.itemsize == 2 else np.uint64)


def same(a, b, unit, c=None, out=None):
    got = matmul(a, b, target=unit, c=c, out_format=out)
    want = defined(a, b, unit, c, out)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(bits(got), bits(want), err_msg=f"{unit} {a.fmt.name} {out}")


_DEFINED = {}  # tests meet the same operands on every path: their definition is run once


def defined(a, b, unit, c, out):
    arrays = (c, *(getattr(q, name) for q in (a, b) for name in ("codes", "scale", "scale_codes")))
    said = hashlib.sha1(repr((a.fmt, b.fmt, a.block_shape, b.block_shape, out)).encode())
    for array in arrays:
        said.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode())
        said.update(b"" if array is None else array.tobytes())
    key = unit, said.digest()
    if key not in _DEFINED:
        with generic():
            _DEFINED[key] = matmul(a, b, target=unit, c=c, out_format=out)
    return _DEFINED[key]


def cancelled(a, b):
    """Make the second half of K the negative of the first."""
    half = a.shape[-1] // 2
    x, y = a.codes.copy(), b.codes.copy()
    x[..., half : 2 * half] = x[..., :half] ^ x.dtype.type(1 << (a.fmt.bits - 1))
    y[half : 2 * half] = y[:half]
    return QTensor.from_codes(x, a.fmt), QTensor.from_codes(y, b.fmt)


FUSED = [
    ("nvidia.volta.mma", "float16"),
    ("nvidia.ampere.mma", "bfloat16"),
    ("nvidia.ampere.mma", "tfloat32"),
    ("nvidia.ada.mma", "float8_e4m3fn"),
    ("nvidia.hopper.wgmma", "float8_e5m2"),
    ("nvidia.hopper.wgmma", "float16"),
    ("nvidia.hopper.mma", "float8_e4m3fn"),
    ("nvidia.blackwell.tcgen05", "float8_e5m2"),
    ("amd.cdna3.mfma", "float16"),
    ("amd.cdna3.mfma", "bfloat16"),
    ("amd.cdna3.mfma", "float8_e4m3fnuz"),
    ("amd.cdna3.mfma", "float8_e5m2fnuz"),
]


E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"
PUBLISHED = [  # unit, formats, output, changes
    ("riscv.zvfqwdota8f", E4M3, E4M3, None, {}),
    ("riscv.zvfqwdota8f", E5M2, E4M3, None, {"group": 8}),
    ("riscv.zvfqwdota8f", E5M2, E5M2, None, {"group": 32}),
    ("riscv.zvfqwdota8f", E4M3, E5M2, None, {"group": 64}),
    ("riscv.zvfqwdota8f", E4M3, E4M3, None, {"group": 5}),
    ("riscv.zvfqwdota8f", E4M3, E4M3, None, {"group": 1}),
    ("intel.gaudi3.mme", E4M3, E4M3, None, {}),
    ("intel.gaudi3.mme", "float8_e4m3", E5M2, None, {"bias_a": 0, "bias_b": 62}),
    ("intel.gaudi3.mme", E5M2, E5M2, None, {"bias_a": 62, "bias_b": 62}),
    ("intel.gaudi3.mme", E5M2, E4M3, None, {"subnormals": "kept"}),
    ("intel.gaudi3.mme", E4M3, E4M3, None, {"subnormals": "half", "min_exponent": -3}),
    ("intel.gaudi3.mme", "bfloat16", "bfloat16", None, {}),
    ("arm.fdot_fp8", E5M2, E4M3, None, {"lscale": 127}),
    ("arm.fdot_fp8", E4M3, E4M3, "float16", {}),
    ("arm.fmmla_fp8", E4M3, E4M3, None, {"lscale": 5}),
    ("arm.fmmla_fp8", E5M2, E4M3, "float16", {"lscale": 3, "osm": True}),
    ("arm.fmlal_fp8", E4M3, E4M3, "float16", {"osm": True}),
    ("x86.tdpfp16ps", "float16", "float16", None, {}),
]


@pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
@pytest.mark.parametrize("case", PUBLISHED, ids=str)
@pytest.mark.parametrize("path", simd.PATHS)
def test_units_of_published_rules(path, case):
    name, left, right, out, changes = case
    unit = get_target(name, **changes)
    rng = np.random.default_rng(list(str(case).encode()))
    with simd.force(path), counted() as calls:
        for kind in ("normal", "codes", "sparse", "wild"):
            for m, k, n in SHAPES:
                a, b = floats(rng, (m, k), left, kind), floats(rng, (k, n), right, kind)
                matmul(a, b, target=unit, out_format=out)
        assert calls.total() > calls["scalar"], "no vector kernel covers them"
        for kind in ("normal", "codes", "sparse", "wild"):
            for m, k, n in SHAPES:
                a, b = floats(rng, (m, k), left, kind), floats(rng, (k, n), right, kind)
                same(a, b, unit, out=out)
                for spread in (8, 40, 130):
                    c = accumulator(rng, (m, n), out or "float32", spread)
                    c[rng.random(c.shape) < 0.1] = -0.0
                    same(a, b, unit, c, out)
            same(*cancelled(a, floats(rng, (k, n), left, kind)), unit, out=out)
        c[:] = [np.inf, -np.inf, np.nan, 3e-42, -6e4]
        same(a, b, unit, c, out)


HALF = ("float16", "float8_e4m3fn", "float8_e5m2")  # operands with a float16 accumulator


@pytest.mark.parametrize(("unit", "name"), FUSED)
@pytest.mark.parametrize("kind", ["normal", "codes", "sparse", "wild"])
def test_aligning_units(path, unit, name, kind):
    rng = np.random.default_rng(len(unit) + len(kind))
    half = unit.startswith("nvidia") and name in HALF
    outs = [None, "float16"] if half else [None]
    for m, k, n in SHAPES:
        a, b = floats(rng, (m, k), name, kind), floats(rng, (k, n), name, kind)
        for out in outs:
            same(a, b, unit, out=out)
            same(a, b, unit, accumulator(rng, (m, n), out or "float32"), out)
    same(*cancelled(a, b), unit)


TINY = [(unit, name) for unit, name in FUSED if name in ("bfloat16", "tfloat32")]


@pytest.mark.parametrize(("unit", "name"), [*TINY, ("nvidia.hopper.wgmma", "bfloat16")])
def test_the_least_exponent_of_an_alignment(path, unit, name):
    rng = np.random.default_rng(11)
    for m, k, n in SHAPES:
        a, b = floats(rng, (m, k), name, "tiny"), floats(rng, (k, n), name, "tiny")
        c = (rng.standard_normal((m, n)) * 2.0 ** rng.integers(-149, -120, (m, n))).astype("f4")
        same(a, b, unit)
        same(a, b, unit, c)
    if unit.startswith("nvidia"):  # the limit shows
        free = get_target(unit, min_exponent=None)
        a, b = floats(rng, (40, 64), name, "tiny"), floats(rng, (64, 40), name, "tiny")
        x, y = (matmul(a, b, target=t) for t in (unit, free))
        assert (x != y).any()


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("out", ["float32", "float16"])
def test_plain_fp8_does_not_show_the_least_exponent(path, name, out):
    rng = np.random.default_rng(12)
    for unit in ("nvidia.ada.mma", "nvidia.hopper.wgmma", "nvidia.hopper.mma",
                 "nvidia.blackwell.tcgen05"):  # fmt: skip
        free = get_target(unit, min_exponent=None)
        a, b = floats(rng, (6, 96), name, "codes"), floats(rng, (96, 33), name, "codes")
        a.codes[:3] &= 0x87  # subnormals
        b.codes[:, :20] &= 0x83
        c = accumulator(rng, (6, 33), out, 30)
        x, y = (matmul(a, b, target=t, c=c, out_format=out) for t in (unit, free))
        np.testing.assert_array_equal(bits(x), bits(y))


@pytest.mark.parametrize("least", [-46, -45, -44, -30])
def test_a_least_exponent_that_fp8_shows_has_another_kernel(path, least):
    rng = np.random.default_rng(13)
    unit = get_target("nvidia.hopper.wgmma", min_exponent=least)
    a, b = (floats(rng, s, "float8_e5m2", "codes") for s in ((6, 96), (96, 33)))
    a.codes[:] &= 0x87
    b.codes[:] &= 0x83
    with counted() as calls:
        same(a, b, unit)
    assert ("FP8 with 13 fraction bits" in calls) == (least <= -45)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float32"])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "codes", "sparse", "wild", "tiny"])
def test_exact_groups(path, name, group, kind):
    """Sums that float64 holds in one number, in two, or not; and sums that cancel."""
    rng = np.random.default_rng(group)
    unit = get_target("ideal.mac", order="exact", group=group, negative_zero=False)
    for m, k, n in SHAPES:
        a, b = floats(rng, (m, k), name, kind), floats(rng, (k, n), name, kind)
        c = accumulator(rng, (m, n), np.float32)
        c[rng.random(c.shape) < 0.1] = rng.choice([np.inf, -np.inf, np.nan, -0.0])
        same(a, b, unit)
        same(a, b, unit, c)
        same(*cancelled(a, b), unit, c)
        ks = np.argsort(np.arange(k) % max(k // 2, 1), kind="stable")  # a product, and less it
        x, y = cancelled(a, b)
        x, y = (QTensor.from_codes(q, name) for q in (x.codes[:, ks], y.codes[ks]))
        same(x, y, unit, c)


def squares(q, axis):
    total = np.square(q.dequantize().astype(np.float64)).sum(axis).max()
    return int(np.frexp(total * (1 + 2.0**-20))[1])


@pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
def test_sums_of_wide_codes_that_their_norms_bound(path):
    # multiples of 2**-32 up to 2**12, K = 512: 55 bits by the largest product, fewer by the norms
    rng = np.random.default_rng(15)
    unit, short = get_target("arm.fdot_fp8"), "exact groups in float64, rounded to float32"
    x, y = (np.clip(rng.standard_normal(s), -7, 7) for s in ((6, 512), (512, 20)))
    x[:, ::7], y[::5] = 2.0**-16, 2.0**-16
    x[:, 1], y[2] = 48, 48
    a, b = (QTensor.from_codes(encode(v, E5M2), E5M2) for v in (x, y))
    with counted() as calls:
        same(a, b, unit)
        same(*cancelled(a, b), unit)
    assert calls[short] >= 2
    x[0, 1:], y[1:, 0] = 48, 48  # here they are as large as can be, beside the least
    a, b = (QTensor.from_codes(encode(v, E5M2), E5M2) for v in (x, y))
    with counted() as calls:
        same(a, b, unit)
    assert short not in calls


_ALONE, _TWO = "exact groups in float64, rounded to float32", "exact groups in two float64"


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize(("name", "group"), [(E5M2, 4), (E5M2, 2), (E5M2, 8), ("float16", 4)])
def test_rows_whose_sums_float64_holds(path, name, group):
    """Some rows reach 53 bits and some one more, the last bit in a sum that it decides."""
    rng, fmt = np.random.default_rng(group), get_format(name)
    unit = get_target("ideal.exact", group=group)
    least, met = int(np.frexp(fmt.min_subnormal)[1]) - 1, Counter()
    for m, k, n in [(9, 16, 17), (5, 24, 3), (1, 8, 1)]:
        for top in range(least, 15, 2):
            x = rng.standard_normal((m, k)) * 2.0 ** rng.integers(least, 14, (m, 1))
            y = rng.standard_normal((k, n)) * 2.0 ** rng.integers(least, 14, (k, n))
            y[2::4] = 2.0**14
            x[:, 2], x[:, 3], y[3] = 2.0**top, 2.0**least, 2.0**least  # the largest, the least
            x[::2, 3] = 0
            x[:, 6], y[6] = -x[:, 2], y[2]  # and what is left when the largest have cancelled
            a, b = (QTensor.from_codes(encode(np.clip(v, fmt.min, fmt.max), fmt), name)
                    for v in (x, y))  # fmt: skip
            with simd.force(path), counted() as calls:
                same(a, b, unit)
                same(*cancelled(a, b), unit)
                same(a, b, unit, accumulator(rng, (m, n), np.float32, 9))
            met += calls
    some = [name for name in met if name.startswith(f"{_ALONE}, and some rows in")]
    assert met[_ALONE]
    assert some
    assert not met["scalar"]


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize(("group", "negative_zero"), [(2, True), (4, True), (8, True), (8, False)])
def test_signs_of_zeros_beside_sums_in_two_float64(path, group, negative_zero):
    rng = np.random.default_rng(group)
    unit = get_target("ideal.exact", group=group, negative_zero=negative_zero)
    with simd.force(path), counted() as calls:
        for m, k, n in SHAPES[1:]:
            a, b = floats(rng, (m, k), E5M2, "codes"), floats(rng, (k, n), E5M2, "codes")
            a.codes[:, 0], b.codes[0] = 0x7B, 0x7B  # the largest, and the least
            a.codes[:, -1], b.codes[-1] = 1, 1
            a.codes[0], b.codes[:, 0] = 0x80, 0x01  # products that are -0
            c = accumulator(rng, (m, n), np.float32)
            c[c == 0] = 1
            same(a, b, unit, c)
            same(a, b, unit)
            c[0, 0], c[-1] = -0.0, -0.0
            same(a, b, unit, c)
            same(*cancelled(a, b), unit, np.full((m, n), -0.0, np.float32))
    assert any("two float64" in name for name in calls)
    with simd.force(path):  # a sum that float32 rounds to -0, and zeros of both signs after it
        for top, rest in product((-100, 0), (0.0, -0.0)):
            x, y = np.full((1, 16), -0.0), np.full((16, 1), abs(rest))
            x[0, :2], y[:2, 0] = (-(2.0**-100), 2.0**top), (2.0**-100, 2.0 ** (top - 100))
            x[0, 8:], y[8:] = 0.0, rest
            a, b = (QTensor.from_codes(encode(v, "bfloat16"), "bfloat16") for v in (x, y))
            same(a, b, unit)
            same(a, b, unit, np.full((1, 1), -0.0, np.float32))


@pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize("gap", [0, 19, 20, 21, 22, 23, 24, 30])
@pytest.mark.parametrize("name", [E4M3, E5M2])
def test_products_that_are_jammed_or_not(path, gap, name):
    """One row and one column with two products whose last bit alone is cut or not: it shows."""
    rng, unit = np.random.default_rng(gap), get_target("riscv.zvfqwdota8f")
    fmt = get_format(name)
    whole = 1 << (fmt.precision - 1)
    for m, k, n in [(4, 32, 16), (5, 33, 19), (1, 48, 3)]:
        x, y = np.ones((m, k)), np.ones((k, n))
        x *= rng.choice([-1, 1, 2], x.shape)
        low = -(gap // 2), -(gap - gap // 2)  # (w + 1)**2 less (w + 2) w is one
        up = max(0, fmt.emin - low[0], fmt.emin - low[1])
        x[m // 2, 3:5] = np.array([whole + 1, whole + 2]) / whole * 2.0 ** low[0]
        y[3:5, n // 2] = np.array([whole + 1, -whole]) / whole * 2.0 ** low[1]
        x, y = x * 2.0**up, y * 2.0**up
        x[:, 7], y[9] = 0, 0
        a, b = (QTensor.from_codes(encode(v, fmt), name) for v in (x, y))
        with simd.force(path), counted() as calls:
            same(a, b, unit)
            same(a, b, unit, accumulator(rng, (m, n), "float32"))
        assert calls["aligned terms"] >= 2


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("negative_zero", [True, False])
def test_groups_of_codes_that_float64_holds(path, group, negative_zero):
    """Sums of E4M3 that float64 holds whole, accumulators too; one bit more, and it does not."""
    rng = np.random.default_rng(3)
    unit = get_target("ideal.exact", group=group, negative_zero=negative_zero)
    name, short = "float8_e4m3fn", "exact groups in float64, rounded to float32"
    with simd.force(path):
        for m, k, n in [*SHAPES, (30, 41, 33)]:
            for kind in ("normal", "codes", "sparse"):
                a, b = floats(rng, (m, k), name, kind), floats(rng, (k, n), name, kind)
                a.codes[0, 0] = b.codes[0, 0] = 0x7E  # 448: products below 2**18
                norms = squares(a, -1) + squares(b, -2)  # no sum of products leaves this
                top = max(min(18 + (k + 1).bit_length(), (norms + 1) // 2 + 1), 18) + 1
                least = np.float32(2.0) ** (top - 53)
                for low, fits in ((least, True), (least / 2, False)):
                    c = rng.standard_normal((m, n)).astype(np.float32)
                    c = np.round(c * 2**7) * (low if low < 1 else 1) * rng.choice([1, 64], c.shape)
                    c[rng.random(c.shape) < 0.2] = -0.0
                    c[0, 0] = low
                    with counted() as calls:
                        same(a, b, unit, c.astype(np.float32))
                    assert (short in calls) == fits
                same(*cancelled(a, b), unit, np.full((m, n), -0.0, np.float32))
                minus = QTensor.from_codes(np.full((m, k), 0x80, np.uint8), name)
                zeros = QTensor.from_codes(np.zeros((k, n), np.uint8), name)
                same(minus, zeros, unit, np.full((m, n), -0.0, np.float32))
                same(a, b, unit)


def test_units_of_exact_groups_have_vectors(path):
    rng = np.random.default_rng(14)
    for name in ("float16", "bfloat16"):
        with counted() as calls:
            for kind in ("normal", "sparse"):
                a, b = floats(rng, (5, 64), name, kind), floats(rng, (64, 17), name, kind)
                same(a, b, "amd.cdna1.mfma")
        assert not calls["scalar"]
        kinds = ("float64, rounded to float32", "float64", "two float64")
        every = {f"exact groups in {kind}" for kind in kinds}
        assert set(calls) <= every | {f"{_ALONE}, and some rows in {kind}" for kind in kinds[1:]}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("float8_e4m3fn", {"group": 2}),
        ("float8_e4m3fn", {"group": 5}),
        ("float8_e4m3fn", {"group": 24}),
        ("float8_e4m3fn", {"group": 64, "align_bits": 25, "keep_bits": 23}),
        ("float8_e5m2", {"group": 12, "align_bits": 7, "keep_bits": 5}),
        ("float8_e5m2", {"group": 6, "accumulator": "halves", "align_bits": 20}),
        ("float8_e5m2", {"group": 7, "accumulator": "late", "keep_bits": 9}),
        ("bfloat16", {"group": 3, "align_bits": 1}),
        ("bfloat16", {"zero_products": True}),
        ("bfloat16", {"min_exponent": -132}),
        ("tfloat32", {"min_exponent": 3, "zero_products": True}),
        ("float16", {"align_bits": 30}),
    ],
    ids=str,
)
def test_units_that_an_architect_draws(path, name, changes):
    rng = np.random.default_rng(1)
    base = "nvidia.hopper.mma" if "accumulator" in changes else "nvidia.hopper.wgmma"
    unit = get_target(base, **changes)
    for kind in ("normal", "codes", "sparse"):
        a, b = floats(rng, (5, 77), name, kind), floats(rng, (77, 19), name, kind)
        c = accumulator(rng, (5, 19), np.float32, 130)
        same(a, b, unit)
        same(a, b, unit, c)
        if name in HALF:
            same(a, b, unit, out="float16")


@pytest.mark.parametrize("unit", ["nvidia.hopper.wgmma", "nvidia.hopper.mma", "amd.cdna3.mfma"])
def test_aligning_extremes(path, unit):
    rng = np.random.default_rng(2)
    for name in ("float16", "bfloat16"):
        if get_target(unit).rule("bf16") is None:
            continue
        a, b = floats(rng, (4, 40), name, "normal"), floats(rng, (40, 20), name, "normal")
        wild = [np.inf, -np.inf, np.nan, -np.nan, 3e38, -3e38, 1e-45, -1e-40, -0.0]
        c = rng.choice(wild, (4, 20))
        same(a, b, unit, c.astype(np.float32))
        big = encode(np.full((40, 20), 1e38, np.float32), name, overflow="saturate")
        same(a, QTensor.from_codes(big, name), unit, c.astype(np.float32))
        small = encode(np.full((40, 20), 1e-38, np.float32), name)
        same(a, QTensor.from_codes(small, name), unit)
        special = a.codes.copy()
        special[0, 3] = encode(np.float32(np.inf), name, overflow="special")
        special[1, 5] = encode(np.float32(np.nan), name, overflow="special")
        same(QTensor.from_codes(special, name), b, unit)


def test_block_scales_inside_the_unit(path):
    rng = np.random.default_rng(3)
    made = []
    for shape, axis in (((5, 96), -1), ((96, 17), -2)):
        codes = floats(rng, shape, "float8_e4m3fn", "codes").codes
        scale_shape = (shape[0], 3) if axis == -1 else (3, shape[1])
        for low, high in ((90, 160), (0, 255)):
            scales = rng.integers(low, high, scale_shape).astype(np.uint8)
            made.append(
                QTensor.from_codes(
                    codes, "float8_e4m3fn", scale_codes=scales, scale_format="float8_e8m0fnu",
                    block=32, axis=axis,
                )
            )  # fmt: skip
    for i in range(2):
        with counted() as calls:
            same(made[i], made[2 + i], "nvidia.blackwell.tcgen05")
        assert calls.total() - calls["scalar"] == 1


MACS = [
    ({"acc_format": "float16"}, "float8_e4m3fn"),
    ({"acc_format": "bfloat16"}, "float8_e5m2"),
    ({"acc_format": "float16", "fused": False}, "float16"),
    ({"acc_format": "float_e5m6"}, "float32"),
    ({"acc_format": "float_e8m9", "product_format": "bfloat16"}, "bfloat16"),
    ({"acc_format": "float_e4m3", "flush": True}, "float4_e2m1fn"),
    ({"acc_format": "float32", "flush": True}, "float32"),
    ({"acc_format": "float_e8m13", "order": "odd_first"}, "float16"),
    ({"fused": False, "order": "tree", "group": 2}, "float32"),
    ({"fused": False, "order": "tree", "group": 4, "flush": True}, "bfloat16"),
    ({"acc_format": "float16", "fused": False, "order": "tree", "group": 4}, "float8_e5m2"),
]


@pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
def test_two_chains_of_amx(path):
    """Subnormal factors are zeros, and so are results below the normal numbers: then no kernel."""
    rng = np.random.default_rng(4)
    unit = "x86.tdpbf16ps"
    for m, n, k in SHAPES:
        for kind in ("normal", "codes", "sparse", "wild"):
            a, b = (floats(rng, s, "bfloat16", kind) for s in ((m, k), (k, n)))
            with counted() as calls:
                same(a, b, unit)
            assert kind == "codes" or calls["two chains of float32"] == 1
            same(a, b, unit, accumulator(rng, (m, n), "float32", 140))
            same(a, b, unit, accumulator(rng, (m, n), "float32"))
    codes = a.codes.copy()
    codes[:, ::3] = 0x0041  # subnormal
    codes[0, 1] = 0x7F80
    with np.errstate(invalid="ignore"):
        same(QTensor.from_codes(codes, "bfloat16"), b, unit)
        same(QTensor.from_codes(codes[1:], "bfloat16"), b, unit)
    large = QTensor.from_codes(np.full((1, 96), 0x7F7F, np.uint16), "bfloat16")
    with np.errstate(over="ignore"):
        same(large, large.T, unit)
    pair = [floats(rng, s, "bfloat16", "normal") for s in ((2, 3, 70), (2, 70, 5))]
    same(*pair, unit)
    small = [QTensor.from_codes(encode(np.float32([[2.0**e]]), "bfloat16"), "bfloat16")
             for e in (-70, -60)]  # fmt: skip
    assert matmul(*small, target=unit)[0, 0] == 0.0  # 2**-130 is flushed


@pytest.mark.parametrize("order", [{"order": "two_chains", "group": 4}, {}], ids=str)
@pytest.mark.parametrize("name", ["float8_e4m3fnuz", "float_e1m6", "float_e1m2"])
def test_what_a_flush_of_operands_takes_for_subnormal(path, order, name):
    """Not NaN that has the code of -0; every finite number where the exponent has one bit."""
    unit = get_target("ideal.mac", **order, flush=True, tiny="unbounded")
    fmt, ones = get_format(name), QTensor.from_codes(np.full((1, 2), 0x38, np.uint8), E4M3)
    codes = np.arange(1 << fmt.bits).astype(fmt.code_dtype)
    every = QTensor.from_codes(np.stack([codes, np.zeros_like(codes)]), fmt)
    values = every.dequantize()[0]
    normal = np.abs(values) >= (fmt.min_normal if name == "float8_e4m3fnuz" else np.inf)
    want = np.where(normal | np.isnan(values), values, 0)
    np.testing.assert_array_equal(matmul(ones, every, target=unit)[0], want)
    np.testing.assert_array_equal(matmul(every.T, ones.T, target=unit)[:, 0], want)
    finite = QTensor.from_codes(every.codes[:, np.isfinite(values)], fmt)
    for some in (every, finite):
        same(ones, some, unit)


@pytest.mark.parametrize(("changes", "name"), MACS, ids=str)
def test_multiply_adds(path, changes, name):
    rng = np.random.default_rng(4)
    unit = get_target("ideal.mac", **changes)
    fmt = get_format(changes.get("acc_format", "float32"))
    for m, k, n in SHAPES:
        for kind in ("normal", "codes", "wild"):
            a, b = floats(rng, (m, k), name, kind), floats(rng, (k, n), name, kind)
            c = cast(accumulator(rng, (m, n), np.float32, 140), fmt, overflow="special")
            with counted() as calls:
                same(a, b, unit)
                same(a, b, unit, c)
            assert calls["rounded steps in float64"] == 2
    every = rng.integers(0, 1 << get_format(name).bits, (m, k), dtype=np.uint64)
    a = QTensor.from_codes(every.astype(get_format(name).code_dtype), name)  # NaN and Inf too
    same(a, b, unit, c)


@pytest.mark.parametrize("rounding", ["rna", "rtz", "rup", "rdn", "rto"])
def test_other_roundings_stay_scalar(rounding):
    unit = get_target("ideal.mac", acc_format="float16", rounding=rounding)
    rng = np.random.default_rng(5)
    with counted() as calls:
        matmul(*(floats(rng, (3, 3), "float16", "normal") for _ in "ab"), target=unit)
    assert calls == {"scalar": 1}


def integers(rng, shape, name, extreme):
    fmt = get_format(name)
    low = -(1 << (fmt.bits - 1)) if fmt.signed else 0
    codes = rng.integers(low, low + (1 << fmt.bits), shape)
    codes[rng.random(shape) < extreme] = low if extreme > 0.5 else low + (1 << fmt.bits) - 1
    return QTensor.from_codes(codes.astype(fmt.code_dtype), name)


INTEGERS = [
    *(
        ("ideal.int", {"acc_bits": bits, "overflow": overflow, "group": group}, "int8", "int8")
        for bits in (8, 15, 16, 24, 31, 32, 40, 64)
        for overflow in ("wrap", "saturate")
        for group in (1, 3)
    ),
    ("ideal.int", {"acc_bits": 20, "overflow": "saturate"}, "uint8", "uint4"),
    ("ideal.int", {"acc_bits": 24, "overflow": "saturate"}, "int12", "int8"),
    ("ideal.int", {"acc_bits": 40}, "int16", "int16"),
    ("ideal.int", {"acc_bits": 32}, "int16", "int16"),
    ("ideal.int", {"acc_bits": 32, "overflow": "saturate"}, "int16", "int16"),
    ("ideal.int", {"pair_bits": 10, "group": 2, "acc_bits": 20}, "int8", "int8"),
    ("ideal.int", {"pair_bits": 10, "group": 6}, "int8", "int8"),
    ("ideal.int", {"pair_bits": 10, "group": 2, "overflow": "saturate"}, "int8", "int8"),
    ("x86.vpdpbusds", {}, "uint8", "int8"),
    ("x86.vpmaddubsw", {}, "uint8", "int8"),
    ("x86.vpdpwssd", {}, "int16", "int16"),
    ("x86.vpdpwssds", {}, "int16", "int16"),
]


@pytest.mark.parametrize(("unit", "changes", "left", "right"), INTEGERS, ids=str)
def test_integer_units(path, unit, changes, left, right):
    rng = np.random.default_rng(6)
    target = get_target(unit, **changes)
    most = 1 << (target.rules[0][1].acc_bits - 1)
    for m, k, n in SHAPES:
        for extreme in (0.0, 0.3, 0.9):
            a, b = integers(rng, (2, m, k), left, extreme), integers(rng, (k, n), right, extreme)
            same(a, b, target)
            for low, high in ((-most, most - 1), (-most, -most + 1), (most - 2, most - 1)):
                same(a, b, target, rng.integers(low, high, (2, m, n), endpoint=True))


@pytest.mark.parametrize(
    ("changes", "left", "right", "plan"),
    [
        ({"acc_bits": 24}, "int8", "int8", "int8"),
        ({"acc_bits": 32, "overflow": "saturate"}, "int8", "int8", "int8"),
        ({"acc_bits": 32, "overflow": "raise"}, "int8", "uint8", "int8"),
        ({"acc_bits": 20, "overflow": "saturate"}, "int8", "int8", "clamp"),
        ({"acc_bits": 48, "overflow": "saturate"}, "int16", "int16", "float64"),
        ({"acc_bits": 32, "overflow": "saturate"}, "int16", "int12", "full"),
        ({"pair_bits": 12, "group": 4}, "int8", "int8", "pairs"),
        ({"acc_bits": 16, "overflow": "raise"}, "int8", "int8", None),
    ],
)
def test_integer_plans(changes, left, right, plan):
    rng = np.random.default_rng(7)
    rule = get_target("ideal.int", **changes).rule("integer")
    a, b = integers(rng, (3, 100), left, 0.1), integers(rng, (100, 3), right, 0.1)
    assert integer_plan(a, b, None, rule) == plan


@pytest.mark.parametrize("group", [None, 1, 3, 4, 8])
def test_exact_sums(path, group):
    rng = np.random.default_rng(8)
    unit = get_target("ideal.exact", group=group)
    for name in ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "bfloat16", "int8"):
        if name == "int8":
            a, b = integers(rng, (4, 37), name, 0.0), integers(rng, (37, 11), name, 0.0)
        else:
            a, b = floats(rng, (4, 37), name, "normal"), floats(rng, (37, 11), name, "normal")
        for out in (None, "float16", "bfloat16"):
            same(a, b, unit, out=out)
            c = accumulator(rng, (4, 11), np.float32, 140)
            c = cast(c, out or "float32", overflow="special")
            c[0, :3] = np.inf, -np.inf, np.nan
            dtype = matmul(a, b, target=unit, out_format=out).dtype
            same(a, b, unit, c.astype(dtype), out)
    same(*cancelled(*(floats(rng, s, "float8_e4m3fn", "codes") for s in ((3, 36), (36, 5)))), unit)


def test_every_operand_class_of_every_gpu_takes_a_fast_path():
    rng = np.random.default_rng(9)
    names = ("fp8", "fp8_fnuz", "fp16", "bf16", "tf32")
    for unit in ("ampere.mma", "ada.mma", "hopper.wgmma", "hopper.mma", "blackwell.tcgen05"):
        for kind in names:
            if get_target(f"nvidia.{unit}").rule(kind) is None:
                continue
            a, b = (floats(rng, (8, 8), CLASSES[kind][0], "normal") for _ in "ab")
            with counted() as calls:
                matmul(a, b, target=f"nvidia.{unit}")
            assert calls.total() == 1
            assert not calls["scalar"]


def test_threads_and_paths_do_not_change_bits():
    def everything():
        rng = np.random.default_rng(10)
        x, y = (floats(rng, s, "float8_e4m3fn", "normal") for s in ((40, 200), (200, 70)))
        i, j = (integers(rng, s, "int8", 0.1) for s in ((40, 200), (200, 70)))
        u, v = (floats(rng, s, "float8_e4m3fnuz", "normal") for s in ((2, 40, 200), (2, 200, 70)))
        return [
            matmul(x, y, target="nvidia.ada.mma"),
            matmul(x, y, target="nvidia.blackwell.tcgen05"),
            matmul(u, v, target="amd.cdna3.mfma"),
            matmul(x, y, target=get_target("ideal.mac", acc_format="bfloat16")),
            matmul(i, j, target=get_target("ideal.int", acc_bits=16, overflow="saturate")),
            matmul(QTensor.from_codes(i.codes.T.copy().T, "int8"), j, target="ideal.int"),
        ]

    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        with simd.force("plain"):
            want = everything()
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            for got, expected in zip(everything(), want, strict=True):
                np.testing.assert_array_equal(bits(got), bits(expected))
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "tfloat32"])
@pytest.mark.parametrize(
    "unit", ["nvidia.volta.mma", "nvidia.ampere.mma", "nvidia.hopper.mma", "nvidia.hopper.wgmma"]
)
def test_sums_of_blocks_at_their_ends(path, unit, name):
    """The largest products and accumulators of one sign, overflow, and results below normal."""
    if unit == "nvidia.volta.mma" and name != "float16":
        pytest.skip("no such operands")
    f = get_format(name)
    top = np.float32(2 - 2.0 ** (1 - f.precision))
    for exponent in (0, 12, 63, -63, -70):
        if not f.emin <= exponent <= f.emax:
            continue
        x = np.full((4, 32), top * np.float32(2.0) ** exponent, np.float32)
        x[1::2] *= -1
        x[2:, 16:] = 0
        y = np.full((32, 3), x[0, 0])
        y[:, 1] = -y[:, 1]
        y[1::3, 2] *= np.float32(0.625)
        a, b = (QTensor.from_codes(encode(v, f), name) for v in (x, y))
        peak = np.float32(2.0) ** min(2 * exponent, 126)
        for c in (2 - 2.0**-23, 1.0, 1.5 - 2.0**-23, 2.0**-20, 3.9999):
            start = np.full((4, 3), peak * np.float32(c), np.float32)
            start[::3] *= -1
            got = matmul(a, b, target=unit, c=start)
            with generic():
                want = matmul(a, b, target=unit, c=start)
            np.testing.assert_array_equal(bits(got), bits(want))


SMALL = [
    name for name in list_formats()
    if get_format(name).bits <= 16 and get_format(name).value_dtype == np.float32
]  # fmt: skip


@pytest.mark.parametrize("name", [*SMALL, "p3109_k8p3sf", "p3109_k6p2ue", "float_e8m4", "uq4.4"])
def test_a_right_operand_of_codes_means_its_values(path, name):
    """One times every code, in float32 and in float64 chains."""
    f = get_format(name)
    codes = np.arange(1 << f.bits).astype(f"u{f.code_dtype.itemsize}").view(f.code_dtype)
    if f.kind == "integer" and f.signed:
        codes = (codes << (8 * codes.itemsize - f.bits)) >> (8 * codes.itemsize - f.bits)
    codes = np.resize(codes, (2, -(-codes.size // 2)))
    b = QTensor.from_codes(codes, name)
    want = b.values().astype(np.float32)
    got = fma(np.eye(2, dtype=np.float32)[None], QTensor.from_codes(codes, name))[0]
    finite = np.isfinite(want).all(0)  # elsewhere 0 x Inf is NaN
    assert np.array_equal(got[:, finite], want[:, finite])
    ones = np.ones((1, 1, 1), np.float64)
    single = fma(ones, QTensor.from_codes(codes[:1], name))[0]
    assert np.array_equal(single, want[:1].astype(np.float64) + 0.0, equal_nan=True)
    assert Key("values") not in b.packed or b.packed.keys() == {Key("values")}


BYTES = [
    name for name in [*SMALL, "p3109_k8p3sf", "p3109_k6p2ue", "p3109_k8p4ue", "float_e1m1",
                      "p3109_k3p2sf", "float_e2m0", "float_e1m2", "float_e5m1", "float_e6m1"]
    if get_format(name).kind == "float" and get_format(name).bits <= 8
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", BYTES)
def test_finite_codes_of_a_byte_mean_their_values(path, name, dtype):
    """Another reader takes them; every code in every place of 16, in one row's chain and in two."""
    f = get_format(name)
    codes = np.arange(1 << f.bits).astype(np.uint8)
    codes = codes[np.isfinite(decode(codes, name))]
    codes = np.concatenate([np.resize(codes, (17, codes.size)), np.resize(codes[::-1], (17, 5))], 1)
    values = decode(codes, name).astype(dtype)
    rows = np.eye(17, dtype=dtype)
    for some in (rows[:1], rows[7:9], rows):
        got = fma(some[None], QTensor.from_codes(codes, name))[0]
        want = gemm_fma(some[None], values[None])[0]
        assert np.array_equal(got.view(np.uint8), want.view(np.uint8))
    turned = np.ascontiguousarray(codes.T)
    got = fma(np.ones((1, 1, 1), dtype), QTensor.from_codes(turned.reshape(1, -1), name))[0]
    assert np.array_equal(got[0] + 0.0, values.T.reshape(-1) + 0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["float8_e5m2", "int8", "int4", "float6_e2m3fn", "bfloat16"])
def test_chains_over_codes_are_chains_over_values(path, name, dtype):
    """Infinities and NaN among them; one row and more, any K and N, one b or as many as items."""
    rng, f = np.random.default_rng(1), get_format(name)
    for batch, items, m, k, n in [
        (1, 1, 1, 1, 1), (1, 1, 1, 131, 70), (1, 1, 2, 66, 33), (3, 1, 1, 7, 16),
        (2, 2, 1, 130, 40), (1, 1, 14, 64, 64), (2, 2, 3, 5, 17), (1, 1, 1, 600, 32),
    ]:  # fmt: skip
        a = rng.standard_normal((batch, m, k)).astype(dtype)
        patterns = rng.integers(0, 1 << f.bits, (items, k, n))
        if f.kind == "integer":
            patterns = (patterns ^ 1 << f.bits - 1) - (1 << f.bits - 1)
        codes = patterns.astype(f.code_dtype)
        c = rng.standard_normal((batch, m, n)).astype(dtype)
        values = decode(codes, name).astype(dtype)
        for start in (None, c):
            got = fma(a, QTensor.from_codes(codes, name), start)
            assert np.array_equal(got.view(np.uint8), gemm_fma(a, values, c=start).view(np.uint8))


@pytest.mark.parametrize("rows", [1, 2])
def test_no_terms(path, rows):
    b = QTensor.from_codes(np.zeros((0, 5), np.uint8), "float8_e4m3fn")
    for dtype in (np.float32, np.float64):
        assert not fma(np.zeros((1, rows, 0), dtype), b).any()


@pytest.mark.parametrize("bias", [127, 128, 129, 250])
def test_zeros_of_a_format_whose_powers_leave_float32(path, bias):
    """2**-bias, by way of which codes are read, is no normal number there."""
    rng = np.random.default_rng(bias)
    fmt = replace(get_format("float8_e4m3fn"), bias=bias)
    a = floats(rng, (3, 37), "float8_e4m3fn", "normal")
    codes = rng.integers(0x78, 0x7F, (37, 5)).astype(np.uint8)
    for some in (np.where(rng.random(codes.shape) < 0.5, codes, 0x80), codes & 0x80):
        b = QTensor.from_codes(some.astype(np.uint8), fmt)
        rule, out = get_target("nvidia.hopper.mma").rule("fp8"), get_format("float32")
        # the unit itself refuses such a format: its rule is run on it
        got = runs.run(rule, a, b, None, out, "a rule")
        with generic():
            want = runs.run(rule, a, b, None, out, "a rule")
        np.testing.assert_array_equal(bits(got), bits(want))


@pytest.mark.parametrize(
    ("unit", "name", "bytes_a_weight"),
    [
        ("nvidia.hopper.wgmma", "float8_e4m3fn", 1), ("nvidia.blackwell.tcgen05", "float8_e5m2", 1),
        ("nvidia.ampere.mma", "bfloat16", 2), ("amd.cdna3.mfma", "float16", 2),
        ("ideal.fp32", "float8_e4m3fn", 1), ("ideal.fp32", "int8", 1),
        ("ideal.fp32", "bfloat16", 2),
        ("ideal.exact", "float8_e4m3fn", 1), ("ideal.int", "int8", 1),
    ],
)  # fmt: skip
def test_what_a_unit_keeps_of_its_weights(unit, name, bytes_a_weight):
    """Codes, whatever the kernels read: a network's weights are kept in about their own size."""
    b = floats(np.random.default_rng(0), (256, 256), name, "codes")
    matmul(floats(np.random.default_rng(1), (3, 256), name, "codes"), b, target=unit)

    def size(kept):
        if isinstance(kept, np.ndarray):
            return kept.nbytes
        return sum(map(size, kept)) if isinstance(kept, tuple) else 0

    assert sum(map(size, b.packed.values())) <= 1.1 * bytes_a_weight * b.codes.size + 100_000


@pytest.mark.parametrize("group", [4, 12, 16, 32, 64, 128])
@pytest.mark.parametrize("depth", [64, 128, 192, 200])
def test_columns_that_lie_side_by_side_are_read_in_place(path, group, depth):
    """A network's weights [N, K] have no packed copy where blocks and panels are whole."""
    rng = np.random.default_rng(group + depth)
    unit = get_target("nvidia.hopper.wgmma", group=group)
    for m, n in [(1, 64), (5, 128), (9, 64), (11, 96), (3, 70)]:
        a = floats(rng, (m, depth), "float8_e5m2", "codes")
        rows = floats(rng, (n, depth), "float8_e4m3fn", "codes")
        b = rows.T
        same(a, b, unit, accumulator(rng, (m, n), "float32"))
        same(a, b, unit)
        whole = n % 64 == 0 and depth % 64 == 0 and group in (16, 32, 64) and path != "plain"
        assert b.packed[Key("fp8", (group, path))].in_place == whole
    pair = QTensor.from_codes(np.stack([rows.codes[:64]] * 2), rows.fmt)
    left = floats(rng, (2, 3, depth), "float8_e4m3fn", "codes")
    same(left, pair.T, unit)


@pytest.mark.parametrize(("unit", "name"), FUSED)
def test_no_rows_and_no_columns(path, unit, name):
    for m, n in [(0, 3), (3, 0)]:
        rng = np.random.default_rng(0)
        a, b = floats(rng, (m, 32), name, "normal"), floats(rng, (32, n), name, "normal")
        assert matmul(a, b, target=unit).shape == (m, n)


@pytest.mark.parametrize("name", ["int17", "int18", "int20", "q3.15", "q0.18", "int21"])
def test_integers_of_more_than_16_bits_are_surveyed_by_their_values(name):
    """Negative codes of 32-bit words are no places in a table."""
    low = -(1 << (get_format(name).bits - 1))
    a = QTensor.from_codes(np.array([[-1, low, 3]]), name)
    b = QTensor.from_codes(np.array([[2, 1], [-1, 1], [-5, 0]]), name)
    exact = a.codes.astype(np.int64) @ b.codes.astype(np.int64)
    want = np.ldexp(exact.astype(np.float64), -2 * get_format(name).bias).astype(np.float32)
    assert np.array_equal(matmul(a, b, target="ideal.exact"), want)
    got, counts = matmul(a, b, target="ideal.exact", stats=True)
    assert np.array_equal(got, want)
    assert counts.products == 6
    matmul(a, b, target="ideal.fp32", stats=True)


@pytest.mark.parametrize(("acc_format", "alike"), [("q2.17", True), ("float_e3m12", False)])
def test_a_flush_is_of_formats_with_subnormals(acc_format, alike):
    rng = np.random.default_rng(4)
    x, y = 0.1 + 0.4 * rng.random((5, 12)), 1.5 * rng.standard_normal((12, 7))
    y[np.abs(y) < 2**-14] = 0  # as operands, subnormals become zeros
    a, b = (QTensor.from_codes(encode(v, "float16"), "float16") for v in (x, y))
    for order in ({"order": "sequential"}, {"order": "tree", "group": 4}):
        unit = get_target("ideal.mac", acc_format=acc_format, **order)
        kept, flushed = (matmul(a, b, target=get_target(unit, flush=f)) for f in (False, True))
        assert np.any(flushed)
        assert np.array_equal(bits(kept), bits(flushed)) == alike
