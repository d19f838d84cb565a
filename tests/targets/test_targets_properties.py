"""Laws of matrix units: what the order of k may and may not change, and published error laws."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import oracle_mac as om
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numsim as ns

E4M3, E5M2 = om.E4M3, om.E5M2
WGMMA = "nvidia.hopper.wgmma"
# Units that add a group of n products at once.
FUSED = [
    (WGMMA, E4M3, 32),
    (WGMMA, E5M2, 32),
    (WGMMA, "float16", 16),
    (WGMMA, "bfloat16", 16),
    (WGMMA, "tfloat32", 8),
    ("nvidia.volta.mma", "float16", 4),
    ("nvidia.ampere.mma", "bfloat16", 8),
    ("nvidia.ada.mma", E4M3, 16),
    ("nvidia.blackwell.tcgen05", E5M2, 32),
    ("nvidia.blackwell.mma", E4M3, 32),
    ("amd.cdna3.mfma", "float16", 8),
]
SETTINGS = settings(max_examples=60, deadline=None)
pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")


def tensor(values, fmt, **shape):
    return ns.QTensor.from_codes(np.array(values), fmt, **shape)


def bits(d):
    return np.ascontiguousarray(d).view(np.uint32)


def dot(a, b, fmt, target, c=0):
    """Bits of one dot product of codes."""
    width = om.FORMATS[fmt].sign_bit
    kind = np.uint8 if width == 128 else np.uint16 if width < 65536 else np.uint32
    x, y = np.array([a], kind), np.array([b], kind).T
    start = np.array([[c]], np.uint32).view(np.float32)
    return int(bits(ns.matmul(tensor(x, fmt), tensor(y, fmt), target=target, c=start))[0, 0])


def finite_codes(fmt):
    """Codes that multiply without overflow, subnormals and zeros among them."""
    f = om.FORMATS[fmt]
    if f.exponent_bits < 8:
        return st.integers(0, 2 * f.sign_bit - 1).filter(lambda c: not isinstance(f.read(c), str))
    magnitude = st.integers(100 << f.fraction_bits, (150 << f.fraction_bits) - 1) | st.just(0)
    return st.tuples(magnitude, st.booleans()).map(lambda t: t[0] | t[1] * f.sign_bit)


def pairs(fmt, low, high):
    return st.lists(st.tuples(finite_codes(fmt), finite_codes(fmt)), min_size=low, max_size=high)


ACCUMULATOR = st.integers(0, 0x4F000000) | st.integers(0x80000000, 0xCF000000)


# ------------------------------------------------------------------------------------ fused groups
@pytest.mark.parametrize(("target", "fmt", "n"), FUSED)
def test_order_inside_a_group_never_matters(target, fmt, n):
    @SETTINGS
    @given(pairs(fmt, 2 * n, 3 * n), ACCUMULATOR, st.randoms(use_true_random=False))
    def check(terms, c, random):
        moved = []
        for k in range(0, len(terms), n):
            group = terms[k : k + n]
            random.shuffle(group)
            moved += group
        first = dot(*zip(*terms, strict=True), fmt, target, c)
        assert first == dot(*zip(*moved, strict=True), fmt, target, c)

    check()


@pytest.mark.parametrize(("target", "fmt", "n"), [f for f in FUSED if f[0] == WGMMA])
def test_order_across_groups_can_matter(target, fmt, n):
    """One large product before, or after, a group of products below its last kept bit."""
    f = om.FORMATS[fmt]
    down = 2 if fmt in (E4M3, E5M2) else 6
    large, small = (f.bias + 7) << f.fraction_bits, (f.bias - down) << f.fraction_bits
    first = [large] + [0] * (n - 1) + [small] * n
    last = [small] * n + [large]
    assert dot(first, first, fmt, target) == om.round_bits(om.F32, 1, 14)  # all lost
    kept = (1 << 14 + 2 * down) + n
    assert dot(last, last, fmt, target) == om.round_bits(om.F32, kept, -2 * down)


@SETTINGS
@given(pairs(E4M3, 33, 64))
def test_hopper_fp8_result_has_thirteen_fraction_bits(terms):
    assert dot(*zip(*terms, strict=True), E4M3, WGMMA) & 0x3FF == 0


@SETTINGS
@given(pairs(E4M3, 1, 70), ACCUMULATOR)
def test_negating_every_term_negates_a_fused_result(terms, c):
    """Truncation is of the magnitude, so the rule is symmetric; zero stays +0."""
    a, b = zip(*terms, strict=True)
    d = dot(a, b, E4M3, WGMMA, c)
    negated = dot([x ^ 0x80 for x in a], b, E4M3, WGMMA, c ^ 0x80000000)
    assert negated == (d ^ 0x80000000 if d else 0)


@SETTINGS
@given(pairs(E4M3, 1, 70), st.integers(1, 40))
def test_zero_terms_inside_the_last_group_change_nothing(terms, extra):
    a, b = map(list, zip(*terms, strict=True))
    room = -len(a) % 32
    fill = min(extra, room)
    assert dot(a, b, E4M3, WGMMA) == dot(a + [0] * fill, b + [0x38] * fill, E4M3, WGMMA)


# ------------------------------------------------------- any codes, any accumulator: the oracle
ANY_FUSED = [
    case
    for case in om.CASES
    if case.target.startswith(("nvidia.", "amd.cdna3", "arm.fdot")) and case.a != "float32"
]


def any_code(fmt):
    """Every code, zeros, subnormals, the largest numbers and specials more often."""
    f = om.FORMATS[fmt]
    top, one = f.sign_bit - 1, 1 << f.fraction_bits
    edges = [0, 1, one - 1, one, top, top - 1, top - one, top - one + 1]
    magnitude = st.integers(0, top) | st.sampled_from(edges)
    return st.tuples(magnitude, st.booleans()).map(lambda t: t[0] | t[1] * f.sign_bit)


@pytest.mark.parametrize("case", ANY_FUSED, ids=str)
def test_any_group_equals_the_oracle(case):
    kinds = [ns.get_format(n).code_dtype for n in (case.a, case.b)]
    f = [om.FORMATS[n] for n in (case.a, case.b, case.out)]
    start = np.float32 if case.out == "float32" else np.float16
    target = ns.get_target(case.target, **dict(case.changes))

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.tuples(any_code(case.a), any_code(case.b)), min_size=1, max_size=40),
        any_code(case.out),
    )
    def check(terms, c):
        a, b = zip(*terms, strict=True)
        x = tensor(np.array([a], kinds[0]), case.a)
        y = tensor(np.array([b], kinds[1]).T, case.b)
        begin = np.array([[c]], f"u{start().itemsize}").view(start)
        d = ns.matmul(x, y, target=target, c=begin, out_format=case.out)
        got = int(d.view(begin.dtype.str.replace("f", "u"))[0, 0])
        want = case.dot([f[0].read(v) for v in a], [f[1].read(v) for v in b], c)
        both = np.isnan(d).all() and f[2].read(want) == "nan"
        assert got == want or (both and not case.nan_bits)

    check()


# ----------------------------------------------------------------------------- sequential and exact
@SETTINGS
@given(pairs("bfloat16", 1, 40), st.randoms(use_true_random=False))
def test_exact_is_free_of_order_and_equals_the_fraction(terms, random):
    f = om.FORMATS["bfloat16"]
    total = sum(
        (
            Fraction(om.signed(p)) * Fraction(2) ** p[2]
            for p in (om.product(f.read(x), f.read(y)) for x, y in terms)
        ),
        Fraction(0),
    )
    moved = random.sample(terms, len(terms))
    d = dot(*zip(*terms, strict=True), "bfloat16", "ideal.exact")
    assert d == dot(*zip(*moved, strict=True), "bfloat16", "ideal.exact")
    got = om.F32.read(d)
    value = Fraction(om.signed(got)) * Fraction(2) ** got[2]
    # nearest: within half a unit in the last place, even significand on a tie
    half = Fraction(2) ** (max(got[1].bit_length() - 1 + got[2], -126) - 24)
    assert abs(value - total) <= half
    assert total or d == 0


def test_sequential_fp32_depends_on_order():
    one, large, small = 0x3F80, 0x4B80, 0x3F00  # 1, 2**24, 1/2
    a, b = [large, small, small, small, small], [one] * 5
    f = om.FORMATS["bfloat16"]
    results = []
    for order in (a, a[::-1]):
        x, y = [f.read(v) for v in order], [f.read(v) for v in b]
        results.append(dot(order, b, "bfloat16", "ideal.fp32"))
        assert results[-1] == om.fma_chain(x, y)
    assert results == [om.round_bits(om.F32, 1, 24), om.round_bits(om.F32, (1 << 23) + 1, 1)]
    assert dot(a, b, "bfloat16", "ideal.exact") == results[1]


@SETTINGS
@given(pairs("float16", 2, 40), ACCUMULATOR)
def test_sequential_fp32_can_be_cut_anywhere(terms, c):
    """The accumulator is the whole state: D of one part is C of the next."""
    a, b = zip(*terms, strict=True)
    cut = len(a) // 2
    middle = dot(a[:cut], b[:cut], "float16", "ideal.fp32", c) if cut else c
    assert dot(a, b, "float16", "ideal.fp32", c) == dot(
        a[cut:], b[cut:], "float16", "ideal.fp32", middle
    )


@SETTINGS
@given(pairs(E5M2, 33, 80), ACCUMULATOR)
def test_a_fused_chain_can_be_cut_between_groups(terms, c):
    a, b = zip(*terms, strict=True)
    middle = dot(a[:32], b[:32], E5M2, WGMMA, c)
    assert dot(a, b, E5M2, WGMMA, c) == dot(a[32:], b[32:], E5M2, WGMMA, middle)


# ----------------------------------------------------------------------------------------- integers
INT8 = st.integers(-128, 127)


@SETTINGS
@given(
    st.lists(st.tuples(INT8, INT8), min_size=1, max_size=80),
    st.sampled_from([8, 13, 16, 20, 32]),
    st.randoms(use_true_random=False),
)
def test_wrapping_is_free_of_order_and_saturation_stays_in_range(terms, width, random):
    def run(order, overflow):
        a, b = zip(*order, strict=True)
        target = ns.get_target("ideal.int", acc_bits=width, overflow=overflow)
        x, y = np.array([a], np.int8), np.array([b], np.int8).T
        return int(ns.matmul(tensor(x, "int8"), tensor(y, "int8"), target=target)[0, 0])

    moved = random.sample(terms, len(terms))
    total = sum(x * y for x, y in terms)
    assert run(terms, "wrap") == run(moved, "wrap") == om.wrap(total, width)
    half = 1 << (width - 1)
    assert -half <= run(moved, "saturate") < half
    if all(x * y >= 0 for x, y in terms):
        assert run(moved, "saturate") == om.clamp(total, width)


# ---------------------------------------------------------------------- published laws (arXiv 2412)
def uniform(rng, k):
    """U[0, 1) scaled to the E4M3 range: 24 x 24 dot products and their exact values."""
    a = ns.encode(rng.random((24, k)) * 448, E4M3)
    b = ns.encode(rng.random((k, 24)) * 448, E4M3)
    exact = ns.decode(a, E4M3).astype(np.float64) @ ns.decode(b, E4M3).astype(np.float64)
    return tensor(a, E4M3), tensor(b, E4M3), exact


def test_truncation_bias_halves_per_alignment_bit():
    """Published means -7.5 %, -3.7 %, -1.7 % for 13, 14 and 15 fraction bits at K = 4096."""
    a, b, exact = uniform(np.random.default_rng(0), 4096)
    bias = []
    for F in (13, 14, 15, 16):
        d = ns.matmul(a, b, target=ns.get_target(WGMMA, align_bits=F))
        bias.append(float(np.mean(d / exact - 1)))
    np.testing.assert_allclose(bias[:3], [-0.075, -0.037, -0.017], atol=0.001)
    for narrow, wide in pairwise(bias):
        assert 1.9 < narrow / wide < 2.2


def test_promotion_every_128_gains_two_orders():
    try:
        promoted = ns.get_target(WGMMA, promote_every=128)
    except ns.NumsimError:
        pytest.skip("nvidia.hopper.wgmma has no promote_every yet")
    a, b, exact = uniform(np.random.default_rng(1), 4096)
    plain = np.abs(ns.matmul(a, b, target=WGMMA) / exact - 1)
    better = np.abs(ns.matmul(a, b, target=promoted) / exact - 1)
    assert plain.max() / better.max() > 20
    assert better.max() < 0.005


def test_exact_widths_of_products():
    """E4M3 products need 37 signed bits, E5M2 products 65 (Kulisch accumulator widths)."""
    for fmt, width in ((E4M3, 37), (E5M2, 65)):
        f = om.FORMATS[fmt]
        values = [v for v in map(f.read, range(256)) if not isinstance(v, str) and v[1]]
        low = min(v[2] for v in values)
        high = max(v[1] << (v[2] - low) for v in values)
        assert (high * high).bit_length() + 1 == width


def test_fixed_counts_of_int8_products():
    """127 * 127 fits an int32 accumulator 133,144 times and int16 twice."""
    for width, k in ((16, 2), (32, 133_144)):
        assert om.clamp(k * 127 * 127, width) == k * 127 * 127
        assert om.clamp((k + 1) * 127 * 127, width) != (k + 1) * 127 * 127
    a = np.full((1, 133_145), 127, np.int8)
    for k, fits in ((133_144, True), (133_145, False)):
        x, y = tensor(a[:, :k], "int8"), tensor(a[:, :k].T, "int8")
        d = ns.matmul(x, y, target="ideal.int")
        assert (int(d[0, 0]) == k * 127 * 127) is fits
