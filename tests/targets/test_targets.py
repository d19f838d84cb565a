"""Every unit against the integer oracle of oracle_mac.py, and the contract of `numsim.matmul`."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import numba
import numpy as np
import oracle
import oracle_mac as om
import pytest

import numsim as ns
from numsim.kernels.ir import simd

# Every unit the oracle has: a new one joins by standing in the oracle's table.
ENABLED = tuple(
    dict.fromkeys([case.target for case in om.CASES] + list(om.INTEGER) + ["ideal.mac"])
)
ENABLED_BLOCK_SCALED = ("nvidia.blackwell.tcgen05", "nvidia.rtx_blackwell.mma")

# the warning that nobody recorded a unit is tested where the warning is made
pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")

CASES = list(om.CASES)
E4M3, E5M2 = om.E4M3, om.E5M2
WGMMA = "nvidia.hopper.wgmma"
BITS = {2: np.uint16, 4: np.uint32}
NUMPY = {"float32": np.float32, "float16": np.float16}
EVERY_CODE = np.arange(256, dtype=np.uint8)


# ---------------------------------------------------------------------------------------- helpers
def tensor(codes, fmt, **scale):
    return ns.QTensor.from_codes(codes, fmt, **scale)


def raw(d):
    """Raw bits of a floating-point result."""
    d = np.ascontiguousarray(d)
    return d.view(BITS[d.dtype.itemsize])


def operands_of(name):
    """Formats that the unit multiplies, FP8 where it can, and their NumPy types."""
    if name in om.INTEGER:
        fmt = om.INTEGER[name][:2]
    else:
        have = [(case.a, case.b) for case in om.CASES if case.target == name]
        fmt = min(have or [(E4M3, E4M3)], key=lambda pair: pair[0] != E4M3)
    return (*fmt, *(ns.get_format(f).code_dtype for f in fmt))


def some(name, rng, shape_a, shape_b):
    """Two operand tensors of small finite codes (integers: of any codes below 100)."""
    fa, fb, ta, tb = operands_of(name)
    if name in om.INTEGER:
        return rng.integers(0, 100, shape_a).astype(ta), rng.integers(0, 100, shape_b).astype(tb)
    return codes(fa, "plain", rng, shape_a).astype(ta), codes(fb, "plain", rng, shape_b).astype(tb)


def target_of(case):
    return ns.get_target(case.target, **dict(case.changes))


def multiply(case, a, b, c=None):
    """`numsim.matmul` of codes; ``c`` and the result as raw bits."""
    c = None if c is None else c.view(NUMPY[case.out])
    d = ns.matmul(
        tensor(a, case.a), tensor(b, case.b), target=target_of(case), c=c, out_format=case.out
    )
    assert d.dtype == NUMPY[case.out]
    return raw(d)


def expected(case, a, b, c=None):
    """The same by the oracle, one element at a time."""
    fa, fb, out = om.FORMATS[case.a], om.FORMATS[case.b], om.FORMATS[case.out]
    rows = [[fa.read(v) for v in row] for row in a.tolist()]
    columns = [[fb.read(v) for v in column] for column in b.T.tolist()]
    bits = BITS[NUMPY[case.out]().itemsize]
    d = np.empty((len(rows), len(columns)), bits)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            d[i, j] = case.dot(row, column, 0 if c is None else int(c[i, j]))
    assert d.dtype.itemsize * 8 == out.sign_bit.bit_length()
    return d


def assert_same(got, want, *, nan_bits=True, note=""):
    same = got == want
    if not nan_bits:
        f = NUMPY["float32" if got.dtype == np.uint32 else "float16"]
        same |= np.isnan(got.view(f)) & np.isnan(want.view(f))
    if not same.all():
        at = tuple(int(i[0]) for i in np.nonzero(~same))
        pytest.fail(
            f"{note} {(~same).sum()} of {same.size} differ, first at {at}: "
            f"got {int(got[at]):#x}, expected {int(want[at]):#x}"
        )


def check(case, a, b, c=None, note=""):
    assert_same(multiply(case, a, b, c), expected(case, a, b, c), nan_bits=case.nan_bits, note=note)


# ------------------------------------------------------------------------------------- test inputs
KINDS = ("plain", "any code", "subnormal", "largest", "sparse", "one large", "cancel", "tiny")


def fields(f, rng, shape, low, high):
    """Codes with exponent fields in [low, high]."""
    field = rng.integers(low, high + 1, shape)
    fraction = rng.integers(0, 1 << f.fraction_bits, shape)
    code = (field << f.fraction_bits) | fraction
    sign = rng.integers(0, 2, shape) * f.sign_bit
    return code | sign


def codes(name, kind, rng, shape):
    f = om.FORMATS[name]
    top = (1 << f.exponent_bits) - (2 if f.kind == "ieee" else 1)
    middle = min(f.bias, top)
    magnitude = f.sign_bit - 1
    highest = f.infinity - 1 if f.kind == "ieee" else magnitude - (f.kind == "fn")
    x = fields(f, rng, shape, max(middle - 3, 0), min(middle + 2, top))
    if kind == "any code":
        x = rng.integers(0, 2 * f.sign_bit, shape)
        if f.exponent_bits == 8:  # else nearly every product is out of range
            x = np.where(rng.random(shape) < 0.9, fields(f, rng, shape, 60, 190), x)
    elif kind == "subnormal":
        x = fields(f, rng, shape, 0, 0)
        if f.exponent_bits == 8:
            x = np.where(rng.random(shape) < 0.5, fields(f, rng, shape, 118, 150), x)
    elif kind == "largest":
        x = highest | rng.integers(0, 2, shape) * f.sign_bit
    elif kind == "sparse":
        x = np.where(rng.random(shape) < 0.7, x & f.sign_bit, x)
    elif kind == "one large":
        k = rng.integers(0, shape[-1])
        x[..., k] = highest
    elif kind == "cancel":
        half = shape[-1] // 2
        x[..., half : 2 * half] = x[..., :half] ^ f.sign_bit
    elif kind == "tiny":
        x = fields(f, rng, shape, 0, 1)
    if highest < magnitude and kind in ("subnormal", "sparse", "cancel", "tiny"):
        x = np.where((x & magnitude) > highest, x & f.sign_bit, x)
    return x.astype(
        np.uint8 if f.sign_bit == 128 else np.uint16 if f.sign_bit < 65536 else np.uint32
    )


def accumulators(out, rng, shape):
    """Zeros of both signs, ordinary values, tiny and huge ones, a few specials."""
    f = om.FORMATS[out]
    plain = fields(f, rng, shape, f.bias - 6, f.bias + 8)
    wide = rng.integers(0, 2 * f.sign_bit, shape)
    pick = rng.random(shape)
    c = np.where(
        pick < 0.5, plain, np.where(pick < 0.8, wide, rng.integers(0, 2, shape) * f.sign_bit)
    )
    return c.astype(BITS[2 if out == "float16" else 4])


@pytest.fixture
def threads():
    """`numba.set_num_threads` for one test."""
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


# ------------------------------------------------------------------------- units against the oracle
# units with a scale, another NaN or zeros of their own: test_every_code.py
OWN = ("arm.", "intel.", "riscv.")
FP8_CASES = [c for c in om.CASES if c.a.startswith("float8") and not c.target.startswith(OWN)]


@cache
def single_products(a, b, out, minus_zero=True):
    """Bits of all 65,536 products plus +0, rounded once; `minus_zero`: tiny ones keep the sign."""
    f, canonical = om.FORMATS[out], om.FORMATS[out].sign_bit - 1
    left, right = ([om.FORMATS[n].read(v) for v in range(256)] for n in (a, b))

    @cache
    def stored(negative, s, q):
        bits = om.round_bits(f, -s if negative else s, q, inf=True)
        return bits if minus_zero or bits != f.sign_bit else 0

    def one(p):
        if isinstance(p, str):
            return om.special_bits(f, p, canonical)
        return stored(*p[:3]) if p[1] else 0

    table = [[one(om.product(x, y)) for y in right] for x in left]
    return np.array(table, BITS[2 if out == "float16" else 4])


@pytest.mark.parametrize("case", FP8_CASES, ids=str)
def test_every_pair_of_fp8_codes_as_a_single_product(case):
    """All units, all mixes: no single product is cut by any alignment."""
    got = multiply(case, EVERY_CODE[:, None], EVERY_CODE[None, :])
    want = single_products(case.a, case.b, case.out, not case.target.startswith("nvidia."))
    assert_same(got, want, nan_bits=case.nan_bits)


@pytest.mark.parametrize("name", ["ideal.exact", "ideal.mac", "generic.systolic"])
@pytest.mark.parametrize(("a", "b"), [*om.FP8, *om.FNUZ])
def test_every_pair_of_fp8_codes_on_ideal_units(name, a, b):
    d = ns.matmul(tensor(EVERY_CODE[:, None], a), tensor(EVERY_CODE[None, :], b), target=name)
    assert_same(raw(d), single_products(a, b, "float32"), nan_bits=False)


SINGLE_PRODUCTS = [
    (a, b, out, c)
    for a, b in ((E4M3, E4M3), (E4M3, E5M2), (E5M2, E5M2))
    for out, c in (("float32", None), ("float32", 0xBB345678), ("float16", 0x8421))
]


@pytest.mark.parametrize(("a", "b", "out", "c"), SINGLE_PRODUCTS)
def test_every_pair_of_fp8_codes_on_hopper(a, b, out, c):
    """65,536 single products; ``c`` cuts below some products and rises above others."""
    case = next(k for k in om.CASES if (k.target, k.a, k.b, k.out) == (WGMMA, a, b, out))
    x, y = EVERY_CODE[:, None], EVERY_CODE[None, :]
    fill = None if c is None else np.full((256, 256), c, BITS[2 if out == "float16" else 4])
    unit, fa, fb = case.dot, om.FORMATS[a], om.FORMATS[b]
    left, right = [fa.read(v) for v in range(256)], [fb.read(v) for v in range(256)]
    want = [[unit.one([om.product(u, v)], c or 0) for v in right] for u in left]
    assert_same(multiply(case, x, y, fill), np.array(want, BITS[2 if out == "float16" else 4]))


@pytest.mark.parametrize("name", ["ideal.exact", "ideal.fp32"])
@pytest.mark.parametrize("a", [E4M3, E5M2])
def test_every_pair_of_fp8_codes_is_exact_in_fp32(name, a):
    d = ns.matmul(tensor(EVERY_CODE[:, None], a), tensor(EVERY_CODE[None, :], E4M3), target=name)
    x = ns.decode(EVERY_CODE, a).astype(np.float64)
    y = ns.decode(EVERY_CODE, E4M3).astype(np.float64)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(d, np.multiply.outer(x, y))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_unit_equals_oracle(case):
    rng = np.random.default_rng(list(str(case).encode()))
    for kind in KINDS:
        k = int(rng.choice([2, 5, 16, 32, 40]))
        a = codes(case.a, kind, rng, (3, k))
        b = codes(case.b, "plain" if kind == "one large" else kind, rng, (4, k)).T
        check(case, a, b, accumulators(case.out, rng, (3, 4)), f"{kind}, K = {k}, with c:")
        check(case, a, b, None, f"{kind}, K = {k}:")


@pytest.mark.parametrize("path", simd.PATHS)
def test_halves_that_overflow_meet_infinities(path):
    """Every half is a float16 step of its own: +Inf of one and -Inf of the next are NaN."""
    case = next(c for c in om.CASES if str(c) == f"nvidia.hopper.mma-{E5M2}-{E5M2}-float16")
    a = np.array([[0, 0x7B, 0, 0, 0], [0x7B, 0x7B, 0, 0x7C, 0]], np.uint8)
    b = np.array([[0x7B, 0x7B, 0x3C, 0xBC, 0x3C]], np.uint8).T
    with simd.force(path):
        for c in (0, 0x7C00, 0xFC00, 0x7E01):
            check(case, a, b, np.full((2, 1), c, np.uint16))
        check(case, a[:1], b, np.full((1, 1), 0xFC00, np.uint16))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("k", [1, 31, 33, 100])
def test_any_k(case, k):
    rng = np.random.default_rng(k)
    a, b = codes(case.a, "plain", rng, (3, k)), codes(case.b, "plain", rng, (k, 2))
    check(case, a, b, accumulators(case.out, rng, (3, 2)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_specials(case):
    """NaN, both infinities, Inf times zero, in operands and accumulator."""

    def some(f):
        found = {}
        for code in range(min(2 * f.sign_bit, 1 << 16)) if f.sign_bit <= 1 << 15 else ():
            v = f.read(code)
            found.setdefault(v if isinstance(v, str) else ("zero" if not v[1] else "one"), code)
        if f.sign_bit > 1 << 15:
            top = f.infinity
            found = {"nan": top + 1, "+inf": top, "-inf": top | f.sign_bit, "zero": 0, "one": 1}
        return np.array([found[k] for k in sorted(found)])

    dtype = [codes(n, "plain", np.random.default_rng(0), (1,)).dtype for n in (case.a, case.b)]
    x, y = some(om.FORMATS[case.a]), some(om.FORMATS[case.b])
    out = om.FORMATS[case.out]
    cs = [0, out.sign_bit, out.infinity, out.infinity | out.sign_bit, out.sign_bit - 1, 1]
    rng = np.random.default_rng(5)
    for at in (0, 20):  # in the first and in a later group
        a = codes(case.a, "plain", rng, (len(x), 40))
        b = codes(case.b, "plain", rng, (40, len(y)))
        a[:, at], b[at] = x.astype(dtype[0]), y.astype(dtype[1])
        for c in cs:
            check(case, a, b, np.full((len(x), len(y)), c, BITS[2 if case.out == "float16" else 4]))


@pytest.mark.parametrize("fmt", [E4M3, E5M2, "float16", "bfloat16", "tfloat32"])
@pytest.mark.parametrize(
    ("group", "align_bits", "keep_bits"),
    [(4, 13, 13), (16, 20, 23), (32, 25, 23), (7, 10, 10), (1, 1, 1), (100, 35, 23), (4096, 24, 7)],
)
@pytest.mark.parametrize("out", ["float32", "float16"])
def test_changed_block(fmt, group, align_bits, keep_bits, out):
    """Changes of get_target are what the unit computes with."""
    if out == "float16" and fmt in ("bfloat16", "tfloat32"):
        pytest.skip("these formats have no float16 accumulator")
    changes = {"group": group, "align_bits": align_bits, "keep_bits": keep_bits}
    rng = np.random.default_rng(group)
    unit = om.block(group, align_bits, keep=keep_bits, f16=out == "float16")
    case = om.Case(WGMMA, fmt, fmt, out, unit, tuple(changes.items()))
    for kind in ("plain", "any code"):
        a, b = codes(fmt, kind, rng, (3, 110)), codes(fmt, kind, rng, (110, 3))
        check(case, a, b, accumulators(out, rng, (3, 3)), kind)


@pytest.mark.parametrize("align", ["truncate", "floor"])
@pytest.mark.parametrize("rounding", [None, "rtz", "rne"])
@pytest.mark.parametrize("out", ["float32", "float16"])
@pytest.mark.parametrize("accumulator", ["joins", "late"])
def test_how_terms_are_cut_and_results_rounded(align, rounding, out, accumulator):
    changes = {"align": align, "rounding": rounding, "align_bits": 12, "keep_bits": 9}
    late = {"accumulator": "late"} if accumulator == "late" else {}
    unit = om.block(
        16, 12, keep=9, f16=out == "float16", align=align, mode=rounding, c_joins=not late
    )
    changes |= {"group": 16, **late}
    case = om.Case(WGMMA, E4M3, E4M3, out, unit, tuple(changes.items()))
    rng = np.random.default_rng(7)
    for kind in ("plain", "any code", "cancel"):
        a, b = codes(E4M3, kind, rng, (4, 40)), codes(E4M3, kind, rng, (40, 4))
        c = accumulators(out, rng, (4, 4))
        check(case, a, b, c, kind)
        x, y, start = tensor(a, E4M3), tensor(b, E4M3), c.view(NUMPY[out])
        more = {"target": target_of(case), "c": start, "out_format": out}
        counted, _ = ns.matmul(x, y, stats=True, **more)
        assert_same(raw(counted), multiply(case, a, b, c))


def test_pattern_of_nan():
    a, b = np.array([[0x7F]], np.uint8), np.array([[0x38]], np.uint8)
    for nan, wide, half in (("ones", 0x7FFFFFFF, 0x7FFF), ("quiet", 0x7FC00000, 0x7E00)):
        unit = ns.get_target(WGMMA, nan=nan)
        for out, want in (("float32", wide), ("float16", half)):
            d = ns.matmul(tensor(a, E4M3), tensor(b, E4M3), target=unit, out_format=out)
            assert int(raw(d)[0, 0]) == want


@pytest.mark.parametrize("unit", [WGMMA, "nvidia.hopper.mma", "nvidia.volta.mma"])
@pytest.mark.parametrize("more", [{}, {"promote_every": 2}, {"split_k": 2, "split_tile": 2}])
@pytest.mark.parametrize(
    "scale", [{}, {"scale": [[-2.0]]}, {"scale": [[2.0, 1.0]], "block": 2}], ids=str
)
def test_pattern_of_nan_in_float16_after_sums_and_scales(unit, more, scale):
    a = tensor(np.array([[0x3C00, 0x7E00, 0x3C00, 0xFC00]], np.uint16), "float16", **scale)
    b = tensor(np.full((4, 1), 0x3C00, np.uint16), "float16")
    for nan, want in (("ones", 0x7FFF), ("quiet", 0x7E00)):
        target = ns.get_target(unit, nan=nan, **more)
        d = ns.matmul(a, b, target=target, out_format="float16")
        assert int(raw(d)[0, 0]) == want
        counted, _ = ns.matmul(a, b, target=target, out_format="float16", stats=True)
        assert int(raw(counted)[0, 0]) == want


def fixed_point(total):
    """fp32 bits of a Fraction with a power-of-two denominator."""
    return om.round_bits(om.F32, total.numerator, 1 - total.denominator.bit_length())


@pytest.mark.parametrize(
    "fmt", ["int8", "uint8", "int16", "int24", "int26", "int32", "q3.4", "q15.16"]
)
@pytest.mark.parametrize("name", ["ideal.exact", "ideal.fp32"])
def test_integer_and_fixed_point_operands_of_float_units(name, fmt):
    spec = oracle.spec(fmt)
    rng = np.random.default_rng(9)
    a = rng.integers(spec.lowest, spec.highest + 1, (4, 7))
    b = rng.integers(spec.lowest, spec.highest + 1, (7, 4))
    a[0], b[:, 0] = spec.highest, spec.lowest
    if name == "ideal.fp32" and spec.highest >= 1 << 24:
        with pytest.raises(ns.UnsupportedError, match=r"ideal\.fp32 does not multiply"):
            ns.matmul(tensor(a, fmt), tensor(b, fmt), target=name)
        return
    got = raw(ns.matmul(tensor(a, fmt), tensor(b, fmt), target=name))
    for i, j in np.ndindex(4, 4):
        x = [oracle.decode(fmt, v) for v in a[i].tolist()]
        y = [oracle.decode(fmt, v) for v in b[:, j].tolist()]
        if name == "ideal.exact":
            want = fixed_point(sum((u * v for u, v in zip(x, y, strict=True)), Fraction(0)))
        else:
            terms = [(u * v < 0, abs(u * v)) for u, v in zip(x, y, strict=True)]
            want = 0
            for minus, p in terms:
                q = 1 - p.denominator.bit_length()
                want = om.add_values((minus, p.numerator, q, q), om.F32.read(want))
        assert int(got[i, j]) == want


# ---------------------------------------------------------------------------------------- integers
INTEGERS = [name for name in om.INTEGER if name in ENABLED]


def integers(dtype, rng, shape, extreme):
    info = np.iinfo(dtype)
    if extreme:
        return rng.choice([info.min, info.max], shape).astype(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("k", [1, 7, 31, 64, 100])
@pytest.mark.parametrize("extreme", [False, True])
def test_integer_unit_equals_oracle(name, k, extreme):
    ta, tb, dot = om.INTEGER[name]
    rng = np.random.default_rng(k)
    a, b = integers(ta, rng, (5, k), extreme), integers(tb, rng, (k, 5), extreme)
    edge = [2**31 - 1, -(2**31), 2**31 - 40000, 40000 - 2**31, 0]
    c = rng.choice(edge, (5, 5)).astype(np.int32)
    got = ns.matmul(tensor(a, ta), tensor(b, tb), target=name, c=c)
    assert got.dtype == np.int32
    want = [[dot(r, col, z) for col, z in zip(b.T.tolist(), cs, strict=True)]
            for r, cs in zip(a.tolist(), c.tolist(), strict=True)]  # fmt: skip
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bits", [8, 12, 16, 17, 24, 31, 32])
@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
@pytest.mark.parametrize("types", [("int8", "int8"), ("uint8", "int8"), ("int4", "uint8")])
def test_accumulator_width(bits, overflow, types):
    rng = np.random.default_rng(bits)
    a = (
        rng.integers(-8, 8, (6, 50))
        if types[0] == "int4"
        else integers(types[0], rng, (6, 50), False)
    )
    b = integers(types[1], rng, (50, 6), False)
    half = 1 << (bits - 1)
    c = rng.choice([-half, half - 1, 0], (6, 6)).astype(np.int32)
    target = ns.get_target("ideal.int", acc_bits=bits, overflow=overflow)
    got = ns.matmul(tensor(a, types[0]), tensor(b, types[1]), target=target, c=c)
    want = [[om.int_dot(r, col, z, bits=bits, overflow=overflow)
             for col, z in zip(b.T.tolist(), cs, strict=True)]
            for r, cs in zip(a.tolist(), c.tolist(), strict=True)]  # fmt: skip
    np.testing.assert_array_equal(got, want)


def test_saturation_is_per_product_and_order_matters():
    target = ns.get_target("ideal.int", acc_bits=16, overflow="saturate")
    a = np.array([[127, 127, 127, -128]], np.int8)
    b = np.array([[127, 127, 127, 127]], np.int8).T
    up = ns.matmul(tensor(a, "int8"), tensor(b, "int8"), target=target)[0, 0]
    down = ns.matmul(tensor(a[:, ::-1], "int8"), tensor(b, "int8"), target=target)[0, 0]
    assert up == 32767 - 128 * 127
    assert down == 3 * 127 * 127 - 128 * 127


def test_raise_names_the_first_overflow():
    rng = np.random.default_rng(3)
    a, b = np.full((3, 9), 1, np.int8), np.full((9, 4), 1, np.int8)
    a[1], b[:, 2] = 120, rng.integers(100, 120, 9)
    k = om.int_first_overflow(a[1].tolist(), b[:, 2].tolist(), bits=16)
    assert k == 2
    target = ns.get_target("ideal.int", acc_bits=16, overflow="raise")
    with pytest.raises(ns.NumsimError, match=rf"16-bit.*row 1, column 2, k = {k}"):
        ns.matmul(tensor(a, "int8"), tensor(b, "int8"), target=target)
    c = np.full((3, 4), 32767, np.int32)
    with pytest.raises(ns.NumsimError, match=r"row 0, column 0, k = 0"):
        ns.matmul(tensor(a, "int8"), tensor(b, "int8"), target=target, c=c)
    fits = ns.get_target("ideal.int", acc_bits=18, overflow="raise")
    got = ns.matmul(tensor(a, "int8"), tensor(b, "int8"), target=fits)
    np.testing.assert_array_equal(got, a.astype(np.int64) @ b)


# ------------------------------------------------------------------------------- shapes and layouts
@pytest.mark.parametrize("name", ENABLED)
def test_batches_broadcast_as_in_numpy(name):
    rng = np.random.default_rng(1)
    fa, fb = operands_of(name)[:2]

    def run(a, b):
        return ns.matmul(tensor(a, fa), tensor(b, fb), target=name)

    for batch_a, batch_b in [((2, 1), (4,)), ((3,), ()), ((), (2, 2)), ((0,), ()), ((2,), (2,))]:
        a, b = some(name, rng, (*batch_a, 3, 20), (*batch_b, 20, 5))
        got = run(a, b)
        batch = np.broadcast_shapes(batch_a, batch_b)
        assert got.shape == (*batch, 3, 5)
        wide_a = np.broadcast_to(a, (*batch, 3, 20))
        wide_b = np.broadcast_to(b, (*batch, 20, 5))
        for i in np.ndindex(batch):
            np.testing.assert_array_equal(got[i], run(wide_a[i], wide_b[i]))
    a, b = some(name, rng, (2, 3, 20), (3, 20, 5))
    with pytest.raises(ns.NumsimError):
        run(a, b)


@pytest.mark.parametrize("name", ENABLED)
def test_layout_does_not_matter(name):
    fa, fb = operands_of(name)[:2]
    a, b = some(name, np.random.default_rng(2), (7, 50), (50, 9))
    want = ns.matmul(tensor(a, fa), tensor(b, fb), target=name)
    spread = np.zeros((14, 150), a.dtype)
    spread[::2, ::3] = a
    back = np.ascontiguousarray(b[::-1, ::-1])
    for x, y in [
        (np.asfortranarray(a), np.asfortranarray(b)),
        (spread[::2, ::3], back[::-1, ::-1]),
        (np.ascontiguousarray(a.T).T, np.ascontiguousarray(b.T).T),
    ]:
        got = ns.matmul(tensor(x, fa), tensor(y, fb), target=name)
        np.testing.assert_array_equal(got, want)
    left = tensor(np.ascontiguousarray(a.T), fa).T
    right = tensor(np.ascontiguousarray(b.T), fb).T
    np.testing.assert_array_equal(ns.matmul(left, right, target=name), want)


@pytest.mark.parametrize("name", ENABLED)
def test_inputs_are_not_written(name):
    rng = np.random.default_rng(4)
    fa, fb = operands_of(name)[:2]
    a, b = some(name, rng, (4, 40), (40, 4))
    c = rng.integers(-9, 9, (4, 4)).astype(np.int32 if name in om.INTEGER else np.float32)
    kept = a.copy(), b.copy(), c.copy()
    ns.matmul(tensor(a, fa), tensor(b, fb), target=name, c=c)
    for before, after in zip(kept, (a, b, c), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", ENABLED)
def test_threads_and_vector_code_do_not_change_bits(name, threads):
    rng = np.random.default_rng(6)
    fa, fb, ta, tb = operands_of(name)
    a, b = some(name, rng, (67, 131), (131, 45))
    if name not in om.INTEGER:  # NaN and Inf in some rows only
        a[50:] = codes(fa, "any code", rng, (17, 131)).astype(ta)
        b[:, 30:] = codes(fb, "any code", rng, (131, 15)).astype(tb)
    results = []
    for n in (1, 2):
        if n > numba.config.NUMBA_NUM_THREADS:
            continue
        threads(n)
        results.append(ns.matmul(tensor(a, fa), tensor(b, fb), target=name))
        with simd.force("plain"):
            results.append(ns.matmul(tensor(a, fa), tensor(b, fb), target=name))
    for d in results[1:]:
        assert d.tobytes() == results[0].tobytes()


# ----------------------------------------------------------------------------------------- scales
def scaled(acc, alpha):
    """fp32(acc * alpha) of bits."""
    return om.multiply(om.F32.read(acc), om.F32.read(alpha))


@pytest.mark.parametrize("name", ["nvidia.hopper.wgmma", "ideal.fp32", "ideal.exact"])
@pytest.mark.parametrize(("ra", "rb"), [((), ()), ((3, 1), (1, 4)), ((3, 1), ()), ((1,), (4,))])
def test_scales_apply_after_the_unit(name, ra, rb):
    rng = np.random.default_rng(7)
    case = next(k for k in om.CASES if (k.target, k.a, k.b, k.out) == (name, E4M3, E4M3, "float32"))
    a, b = codes(E4M3, "plain", rng, (3, 40)), codes(E4M3, "plain", rng, (40, 4))
    sa = rng.uniform(0.001, 0.01, ra).astype(np.float32)
    sb = rng.uniform(0.5, 3.0, rb).astype(np.float32)
    c = rng.standard_normal((3, 4)).astype(np.float32)
    acc = expected(case, a, b, raw(c))
    # alpha is fp32(sa * sb); its bits come from an exact product in float64
    alpha = raw(np.broadcast_to((sa.astype(np.float64) * sb).astype(np.float32), (3, 4)))
    want = [[scaled(int(acc[i, j]), int(alpha[i, j])) for j in range(4)] for i in range(3)]
    d = ns.matmul(tensor(a, E4M3, scale=sa), tensor(b, E4M3, scale=sb), target=name, c=c)
    assert_same(raw(d), np.array(want, np.uint32))
    # a scale on one side only
    d = ns.matmul(tensor(a, E4M3, scale=sa), tensor(b, E4M3), target=name, c=c)
    one = raw(np.broadcast_to(sa, (3, 4)))
    want = [[scaled(int(acc[i, j]), int(one[i, j])) for j in range(4)] for i in range(3)]
    assert_same(raw(d), np.array(want, np.uint32))


def test_a_scaled_integer_accumulator_is_rounded_to_fp32_first():
    a, b = np.full((1, 1100), 127, np.int8), np.full((1100, 1), 127, np.int8)
    b[-1] = 126  # 17,741,773: odd and above 2**24
    acc = int(a[0].astype(np.int64) @ b[:, 0])
    assert acc > 2**24
    assert acc % 2 == 1
    sa = np.float32(1.0000001)
    d = ns.matmul(tensor(a, "int8", scale=sa), tensor(b, "int8"), target="ideal.int")
    first = om.round_bits(om.F32, acc, 0)
    assert d.dtype == np.float32
    assert int(raw(d)[0, 0]) == scaled(first, int(raw(sa)[0]))


# ------------------------------------------------------------------------------------ block scales
BLOCK_SCALED = [
    (name, a, b, scale, block)
    for name in ("nvidia.blackwell.tcgen05", "nvidia.rtx_blackwell.mma")
    if name in ENABLED_BLOCK_SCALED
    for a, b, scale, block in [
        *((a, b, "float8_e8m0fnu", 32) for a, b in om.FP8),
        ("float4_e2m1fn", "float4_e2m1fn", "float8_e8m0fnu", 32),
        ("float4_e2m1fn", "float4_e2m1fn", "float8_e8m0fnu", 16),
        ("float4_e2m1fn", "float4_e2m1fn", "float8_e4m3fn", 16),
    ]
]


@pytest.mark.parametrize(("name", "fa", "fb", "scale", "block"), BLOCK_SCALED)
@pytest.mark.parametrize("k", [64, 192])
def test_block_scaled_unit_equals_oracle(name, fa, fb, scale, block, k):
    rng = np.random.default_rng(k)
    a, b = rng.integers(0, 16, (3, k)), rng.integers(0, 16, (k, 4))
    if fa != "float4_e2m1fn":
        a, b = rng.integers(0, 256, (3, k)), rng.integers(0, 256, (k, 4))
        a[a & 0x7C == 0x7C], b[b & 0x7C == 0x7C] = 0x38, 0x38
    a, b = a.astype(np.uint8), b.astype(np.uint8)
    low, high = (1, 127) if scale == "float8_e4m3fn" else (110, 144)
    sa = rng.integers(low, high, (3, k // block)).astype(np.uint8)
    sb = rng.integers(low, high, (k // block, 4)).astype(np.uint8)
    sa[2, 0] = 0xFF if scale == "float8_e8m0fnu" else 0x7F  # NaN
    c = accumulators("float32", rng, (3, 4))
    c = np.where((c & 0x7F800000) == 0x7F800000, np.uint32(0x3F800000), c)
    d = ns.matmul(
        tensor(a, fa, scale_codes=sa, scale_format=scale, block=block, axis=1),
        tensor(b, fb, scale_codes=sb, scale_format=scale, block=block, axis=0),
        target=name,
        c=c.view(np.float32),
    )
    x = [[om.FORMATS[fa].read(v) for v in row] for row in a.tolist()]
    y = [[om.FORMATS[fb].read(v) for v in column] for column in b.T.tolist()]
    want = np.empty((3, 4), np.uint32)
    for i, j in np.ndindex(3, 4):
        scales = sa[i].tolist(), sb[:, j].tolist(), int(c[i, j])
        want[i, j] = (
            om.scaled_k64(x[i], y[j], *scales, block=block, scale=scale)
            if fa == "float4_e2m1fn"
            else om.scaled_k32(x[i], y[j], *scales)
        )
    assert_same(raw(d), want)


# ------------------------------------------------------------------------------------------ errors
def eights(*shape):
    return tensor(np.full(shape, 0x38, np.uint8), E4M3)


def shaped(name, shape_a, shape_b):
    """Operands of these shapes that the unit has."""
    fa, fb, ta, tb = operands_of(name)
    return tensor(np.ones(shape_a, ta), fa), tensor(np.ones(shape_b, tb), fb)


@pytest.mark.parametrize("name", [n for n in ENABLED if n not in om.INTEGER])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_c_has_the_type_of_the_result(name, dtype):
    a, b = shaped(name, (2, 4), (4, 3))
    with pytest.raises(ns.NumsimError, match=rf"float32.*{np.dtype(dtype).name}"):
        ns.matmul(a, b, target=name, c=np.zeros((2, 3), dtype))


@pytest.mark.parametrize("name", INTEGERS)
def test_c_of_an_integer_unit(name):
    a, b = shaped(name, (2, 4), (4, 3))
    with pytest.raises(ns.NumsimError, match="float32"):
        ns.matmul(a, b, target=name, c=np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("name", ENABLED)
def test_shape_errors(name):
    for shape_a, shape_b, message in [
        ((2, 4), (5, 3), r"4.*5"),
        ((2, 4), (4,), r"\(4,\)"),
        ((2, 0), (0, 3), "K is 0"),
    ]:
        a, b = shaped(name, shape_a, shape_b)
        with pytest.raises(ns.NumsimError, match=message):
            ns.matmul(a, b, target=name)
    a, b = shaped(name, (2, 4), (4, 3))
    dtype = np.int32 if name in om.INTEGER else np.float32
    for shape in [(2, 4), (3,), (1, 2, 4)]:
        with pytest.raises(ns.NumsimError, match=r"\(2, 3\)"):
            ns.matmul(a, b, target=name, c=np.zeros(shape, dtype))


@pytest.mark.parametrize("name", ENABLED)
@pytest.mark.parametrize(("m", "n"), [(0, 3), (2, 0), (0, 0)])
def test_no_rows_or_columns(name, m, n):
    a, b = shaped(name, (m, 4), (4, n))
    assert ns.matmul(a, b, target=name).shape == (m, n)


def test_arrays_are_not_tensors():
    with pytest.raises(ns.NumsimError, match="ndarray"):
        ns.matmul(np.zeros((2, 2)), eights(2, 2), target="ideal.exact")


def test_wrong_operands_say_what_the_unit_has():
    with pytest.raises(ns.NumsimError, match=r"float8_e4m3fn.*integer"):
        ns.matmul(eights(2, 4), eights(4, 2), target="ideal.int")
    other = tensor(np.ones((4, 4), np.uint8), "float8_e4m3fnuz")
    with pytest.raises(ns.NumsimError, match=r"e4m3fnuz.*float8_e4m3fn.*float8_e5m2.*float16"):
        ns.matmul(other, other, target=WGMMA)
    mixed = tensor(np.zeros((4, 2), np.uint16), "float16")
    with pytest.raises(ns.NumsimError, match=r"float8_e4m3fn by float16"):
        ns.matmul(eights(2, 4), mixed, target=WGMMA)
    with pytest.raises(ns.NumsimError, match=r"float32.*float16.*bfloat16"):
        ns.matmul(eights(2, 4), eights(4, 2), target=WGMMA, out_format="bfloat16")


def test_unknown_target_names_near_ones():
    with pytest.raises(ns.NumsimError, match=r"nvidia\.hoper\.wgmma.*nvidia\.hopper\.wgmma"):
        ns.get_target("nvidia.hoper.wgmma")
    with pytest.raises(ns.NumsimError, match=r"ideal\.fp23.*ideal\.fp32"):
        ns.matmul(eights(1, 1), eights(1, 1), target="ideal.fp23")


def test_get_target_changes():
    assert set(ENABLED) <= set(ns.list_targets())
    assert ns.get_target(WGMMA).name == WGMMA
    assert ns.get_target(ns.get_target(WGMMA)) == ns.get_target(WGMMA)
    assert ns.get_target(WGMMA, group=16) != ns.get_target(WGMMA)
    with pytest.raises(ns.NumsimError, match=r"grup.*group"):
        ns.get_target(WGMMA, grup=16)
    with pytest.raises(ns.NumsimError, match="acc_bits"):
        ns.get_target("ideal.exact", acc_bits=16)
    for bad in ({"group": 0}, {"align_bits": -1}, {"group": 2.5}):
        with pytest.raises(ns.NumsimError, match=next(iter(bad))):
            ns.get_target(WGMMA, **bad)
    for bad in ({"acc_bits": 1}, {"acc_bits": 1000}, {"overflow": "clip"}):
        with pytest.raises(ns.NumsimError, match=next(iter(bad))):
            ns.get_target("ideal.int", **bad)


# ------------------------------------------------------- prepared: ideal.mac, promotion and split-K
MACS = [
    (acc, product, rounding)
    for acc in ("float16", "bfloat16", "float8_e5m2", "float_e6m9", "float32")
    for product in (None, acc)
    for rounding in ("rne", "rtz", "rup", "rdn", "rna", "rto")
    if "ideal.mac" in ENABLED
]


@pytest.mark.parametrize(("acc", "product", "rounding"), MACS)
def test_small_accumulator(acc, product, rounding):
    rng = np.random.default_rng(11)
    a, b = codes(E4M3, "plain", rng, (3, 20)), codes(E4M3, "plain", rng, (20, 3))
    target = ns.get_target(
        "ideal.mac", acc_format=acc, product_format=product, rounding=rounding, fused=not product
    )
    got = ns.matmul(tensor(a, E4M3), tensor(b, E4M3), target=target)
    for i, j in np.ndindex(3, 3):
        x = [oracle.decode(E4M3, v) for v in a[i].tolist()]
        y = [oracle.decode(E4M3, v) for v in b[:, j].tolist()]
        want = om.small_chain(x, y, Fraction(0), acc, rounding=rounding, product_format=product)
        assert oracle.from_float(float(got[i, j])) == want


def changed(name, **changes):
    """A unit with GEMM-level changes, once it has them."""
    try:
        return ns.get_target(name, **changes)
    except ns.NumsimError:
        pytest.skip(f"{name} has no {', '.join(changes)} yet")


@pytest.mark.parametrize("k", [100, 128, 129, 400, 640])
def test_promotion_equals_oracle(k):
    target = changed(WGMMA, promote_every=128)
    rng = np.random.default_rng(k)
    a, b = codes(E4M3, "plain", rng, (3, k)), codes(E5M2, "plain", rng, (k, 3))
    unit = om.block(32, 13, keep=13)

    def promoted(x, y, c):
        return om.promoted(unit, x, y, c, every=128)

    want = expected(om.Case(WGMMA, E4M3, E5M2, "float32", promoted), a, b)
    assert_same(raw(ns.matmul(tensor(a, E4M3), tensor(b, E5M2), target=target)), want)


@pytest.mark.parametrize(
    ("order", "parts"),
    [("contiguous", 3), ("serial", 3), *(("pairwise", parts) for parts in range(2, 9))],
)
@pytest.mark.parametrize("every", [None, 128])
@pytest.mark.parametrize("k", [100, 640, 1000])
def test_split_k_equals_oracle(order, parts, every, k):
    more = {} if every is None else {"promote_every": every}
    # recorded orders: contiguous on Hopper, the other two on Ada (hardware.md 1.4)
    name, group = (WGMMA, 32) if order == "contiguous" else ("nvidia.ada.mma", 16)
    target = changed(name, split_k=parts, split_order=order, **more)
    rng = np.random.default_rng(k)
    a, b = codes(E4M3, "plain", rng, (2, k)), codes(E5M2, "plain", rng, (k, 2))
    unit = om.block(group, 13, keep=13)

    def divided(x, y, c):
        return om.split(unit, x, y, parts=parts, order=order, every=every)

    want = expected(om.Case(name, E4M3, E5M2, "float32", divided), a, b)
    assert_same(raw(ns.matmul(tensor(a, E4M3), tensor(b, E5M2), target=target)), want)


@pytest.mark.parametrize("path", simd.PATHS)
def test_the_largest_exponent_has_a_least_value(path):
    """2**-130 and four times 2**-151: 24 bits below 2**-132 keep them, not so below 2**-126."""
    a = tensor(ns.encode([[2.0**-65] + [2.0**-75] * 4], "bfloat16"), "bfloat16")
    b = tensor(ns.encode([[2.0**-65]] + [[2.0**-76]] * 4, "bfloat16"), "bfloat16")
    wide_a, wide_b = np.repeat(a.codes, 4, 0), np.repeat(b.codes, 20, 1)
    a, b = tensor(wide_a, "bfloat16"), tensor(wide_b, "bfloat16")
    limited = ns.get_target("nvidia.ampere.mma", min_exponent=-126)
    with simd.force(path):
        free = ns.matmul(a, b, target="nvidia.ampere.mma")
        held = ns.matmul(a, b, target=limited)
    assert (free == np.float32(2.0**-130 + 2.0**-149)).all()
    assert (held == np.float32(2.0**-130)).all()


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize(("x", "bits"), [(2.0**64, 0x7F800000), (2.0**64 - 2.0**56, 0x7EFE0000)])
def test_a_product_of_two_to_the_128_is_infinite_on_cdna3(path, x, bits):
    """Before the sum, in which -2**127 would make it finite again (hardware.md 1.5)."""
    a = tensor(ns.encode([[x, 2.0**63]] * 4, "bfloat16"), "bfloat16")
    b = tensor(ns.encode([[2.0**64] * 20, [-(2.0**64)] * 20], "bfloat16"), "bfloat16")
    with simd.force(path):
        assert (raw(ns.matmul(a, b, target="amd.cdna3.mfma")) == bits).all()


def test_the_outer_accumulator_begins_at_plus_zero():
    """Toward minus infinity a chain of zeros gives -0; the sum of one part is +0."""
    a, b = (tensor(np.array(x, np.uint16), "float16") for x in ([[0x8000, 0]], [[0], [0x3C00]]))
    down = {"rounding": "rdn", "acc_format": "float32"}
    assert raw(ns.matmul(a, b, target=ns.get_target("ideal.mac", **down))) == 0x80000000
    parts = ns.get_target("ideal.mac", promote_every=2, **down)
    assert raw(ns.matmul(a, b, target=parts)) == 0


PAIRWISE = {  # hardware.md 1.4: the last part first; part i meets part i + ceil(S / 2)
    2: lambda p: p[1] + p[0],
    3: lambda p: (p[2] + p[0]) + p[1],
    4: lambda p: (p[3] + (p[0] + p[2])) + p[1],
    5: lambda p: ((p[4] + (p[0] + p[3])) + p[1]) + p[2],
    6: lambda p: ((p[5] + (p[0] + p[3])) + (p[1] + p[4])) + p[2],
    7: lambda p: (((p[6] + (p[0] + p[4])) + (p[1] + p[5])) + p[2]) + p[3],
    8: lambda p: (((p[7] + (p[0] + p[4])) + (p[1] + p[5])) + (p[2] + p[6])) + p[3],
}


@pytest.mark.parametrize("parts", PAIRWISE)
def test_order_of_pairwise_sums(parts):
    """Parts of one product each, so that every sum shows; four and more were added in order."""
    rng = np.random.default_rng(parts)
    x = (rng.normal(size=(200, parts)) * 10.0 ** rng.integers(-4, 5, (200, parts))).astype("f4")
    a, one = tensor(ns.encode(x, "float32"), "float32"), np.ones((parts, 1), np.float32)
    b = tensor(ns.encode(one, "float32"), "float32")
    unit = ns.get_target("ideal.fp32", split_k=parts, split_order="pairwise", split_tile=1)
    want = PAIRWISE[parts](x.T)
    got, stats = ns.matmul(a, b, target=unit, stats=True)
    assert_same(raw(got[:, 0]), raw(want))
    assert stats.steps == 200 * (parts + parts - 1)
    assert_same(raw(ns.matmul(a, b, target=unit)[:, 0]), raw(want))
    if parts > 3:
        assert (want != np.add.accumulate(x[:, [-1, *range(parts - 1)]], 1)[:, -1]).any()
    if parts == 4:  # C comes before the last part
        c = np.full((200, 1), 3e3, np.float32)
        p, got = x.T, ns.matmul(a, b, target=unit, c=c)
        assert_same(raw(got[:, 0]), raw(((c[:, 0] + p[3]) + (p[0] + p[2])) + p[1]))


def test_pairwise_sums_of_integers_saturate_slot_by_slot():
    """In 8 bits: 90 + (100 - 120) is 70, and 50 makes 120; in order 90 + 100 would be 127."""
    a = ns.QTensor.from_codes([[100, 50, -120, 90]], "int8")
    b = ns.QTensor.from_codes([[1]] * 4, "int8")
    more = {"split_k": 4, "split_order": "pairwise", "split_tile": 1, "outer_bits": 8}
    unit = ns.get_target("ideal.int", overflow="saturate", **more)
    assert ns.matmul(a, b, target=unit) == 120
    serial = ns.get_target("ideal.int", overflow="saturate", **more | {"split_order": "serial"})
    assert ns.matmul(a, b, target=serial) == 97  # 127, 7, 97
    wide = ns.QTensor.from_codes([[100, 50, 120, 90]], "int8")
    stop = ns.get_target("ideal.int", overflow="raise", **more)
    with pytest.raises(ns.NumsimError, match=r"8-bit outer accumulator .* k = 2"):
        ns.matmul(wide, b, target=stop)  # part 2 overflows the slot of part 0


@pytest.mark.parametrize(
    ("name", "bits"),
    [(WGMMA, 0x7FFFFFFF), ("ideal.fp32", 0x7FC00000), ("ideal.exact", 0x7FC00000),
     ("ideal.mac", 0x7FC00000)],
)  # fmt: skip
@pytest.mark.parametrize("more", [{}, {"promote_every": 2}, {"split_k": 2, "split_tile": 2}])
@pytest.mark.parametrize("c", [None, 0.0, -np.nan, np.nan])
@pytest.mark.parametrize("values", [(np.inf, -np.inf), (1.0, -np.nan), (-np.nan, 1.0), (1.0, 1.0)])
def test_nan_has_the_bits_of_the_unit_in_sums_of_parts_too(name, bits, more, c, values):
    x = np.ones((1, 4), np.float32)
    x[0, ::2] = values
    a = tensor(ns.encode(x, "float16", overflow="special"), "float16")
    b = tensor(np.full((4, 1), 0x3C00, np.uint16), "float16")
    start = None if c is None else np.full((1, 1), c, np.float32)
    unit = ns.get_target(name, **more)
    special = values != (1.0, 1.0) or c not in (None, 0.0)
    got = ns.matmul(a, b, target=unit, c=start)
    assert got.view(np.uint32) == (bits if special else 0x40800000)
    counted, _ = ns.matmul(a, b, target=unit, c=start, stats=True)
    assert counted.view(np.uint32) == got.view(np.uint32)


def test_nan_of_scaled_blocks_has_the_bits_of_the_unit():
    x = np.array([[0x3C, 0x7C, 0x3C, 0xFC]], np.uint8)  # 1, Inf, 1, -Inf in E5M2
    scale = {"scale": [[1.0, 2.0]], "block": 2}
    a = ns.QTensor.from_codes(x, E5M2, **scale)
    b = ns.QTensor.from_codes(np.full((1, 4), 0x3C, np.uint8), E5M2, **scale).T
    for name, bits in ((WGMMA, 0x7FFFFFFF), ("ideal.fp32", 0x7FC00000)):
        assert ns.matmul(a, b, target=name).view(np.uint32) == bits
    half = ns.matmul(a, b, target="ideal.fp32", out_format="float16")
    assert half.view(np.uint16) == 0x7E00


@pytest.mark.parametrize("scale", [0.0, -0.0, np.nan, -np.nan])
@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize(("name", "bits"), [(WGMMA, 0x7FFFFFFF), ("ideal.fp32", 0x7FC00000)])
def test_nan_that_a_scale_makes_has_the_bits_of_the_unit(scale, block, name, bits):
    given = {"scale": np.full((1, 1), scale, np.float32)} | ({"block": 2} if block else {})
    a = ns.QTensor.from_codes(np.array([[0x7C, 0x3C]], np.uint8), E5M2, **given)  # Inf, 1
    b = ns.QTensor.from_codes(np.full((2, 1), 0x3C, np.uint8), E5M2)
    got = ns.matmul(a, b, target=name)
    assert got.view(np.uint32) == bits


@pytest.mark.parametrize(
    "unit",
    [ns.get_target("nvidia.hopper.wgmma", promote_every=4),
     ns.get_target("ideal.exact", promote_every=4),
     ns.get_target("ideal.fp32", split_k=2, split_tile=4)],
    ids=lambda unit: unit.name,
)  # fmt: skip
def test_one_tensor_may_be_both_operands(unit):
    values = np.random.default_rng(3).standard_normal((8, 8)).astype(np.float32)
    q = ns.quantize(values, "e4m3")
    other = ns.quantize(values, "e4m3")
    np.testing.assert_array_equal(ns.matmul(q, q, target=unit), ns.matmul(q, other, target=unit))
