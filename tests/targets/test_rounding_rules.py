"""Zeros, tiny results and short groups: what the last bit of a float unit depends on."""

from __future__ import annotations

import numpy as np
import oracle_mac as om
import pytest

import numsim as ns
from numsim.kernels.ir import simd
from numsim.targets.types import Fused

pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
E4M3, BF16, F32 = (om.FORMATS[n] for n in (om.E4M3, "bfloat16", "float32"))


PATHS = ("avx512", "plain") if simd.HAVE_AVX512_VNNI else simd.PATHS[-1:]


@pytest.fixture(params=PATHS)
def path(request):
    with simd.force(request.param):
        yield request.param


def of(values, fmt):
    return ns.QTensor.from_codes(ns.encode(np.array(values, np.float64), fmt), fmt)


def dot(a, b, fmt, target, c=0, **more):
    """Bits of one dot product of values; `c` is bits. Statistics must come from the same D."""
    start = np.array([[c]], np.uint32).view(np.float32)
    x, y = of([a], fmt), of([[v] for v in b], fmt)
    d = ns.matmul(x, y, target=target, c=start, **more)
    again, _ = ns.matmul(x, y, target=target, c=start, stats=True, **more)
    np.testing.assert_array_equal(again.view(np.uint32), d.view(np.uint32))
    return int(d.view(np.uint32)[0, 0])


# ------------------------------------------------------------------------------------------- tiny
@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("x", [1.0, 1.25, 1.5, 1.75])
@pytest.mark.parametrize("y", [-(2.0**-76), 2.0**-76, -(2.0**-75)])
def test_x86_flushes_what_an_unbounded_exponent_leaves_tiny(path, odd, x, y):
    """2**-126 - 1.5 * 2**-151 is tiny there, though stored it rounds to 2**-126."""
    a, b = [0.0, 0.0], [0.0, 0.0]
    a[odd], b[odd] = x * 2.0**-75, y
    c = 0x00800000 if y < 0 else 0x80800000
    codes = [[BF16.read(int(v)) for v in ns.encode(np.array(z), "bfloat16")] for z in (a, b)]
    assert dot(a, b, "bfloat16", "x86.vdpbf16ps", c) == om.vdpbf16ps(*codes, c)
    assert dot(a, b, "bfloat16", "x86.tdpbf16ps", c) == om.tdpbf16ps(*codes, c)


def test_the_case_that_hardware_decides(path):
    a, b = [1.5 * 2.0**-75, 0], [-(2.0**-76), 0]
    assert dot(a, b, "bfloat16", "x86.vdpbf16ps", 0x00800000) == 0
    stored = ns.get_target("x86.vdpbf16ps", tiny="stored")
    assert dot(a, b, "bfloat16", stored, 0x00800000) == 0x00800000


def test_random_results_near_underflow(path):
    rng = np.random.default_rng(0)
    field = (rng.integers(50, 78, (2, 200, 2)) << 7) | rng.integers(0, 128, (2, 200, 2))
    a, b = (field | rng.integers(0, 2, field.shape) << 15).astype(np.uint16)
    c = ((rng.integers(0, 3, 200) << 23) | rng.integers(0, 4, 200)).astype(np.uint32)
    c |= rng.integers(0, 2, 200).astype(np.uint32) << np.uint32(31)
    x, y = (ns.QTensor.from_codes(v, "bfloat16") for v in (a[:, None, :], b[:, :, None]))
    d = ns.matmul(x, y, target="x86.vdpbf16ps", c=c.view(np.float32)[:, None, None])
    for i, got in enumerate(d.view(np.uint32).ravel().tolist()):
        u, v = ([BF16.read(int(k)) for k in z[i]] for z in (a, b))
        assert got == om.vdpbf16ps(u, v, int(c[i]))


# ------------------------------------------------------------------------------------------- zeros
MINUS = 0x80000000


@pytest.mark.parametrize("n", [4, 8])
def test_a_sum_of_negative_zeros(path, n):
    a, b = [-0.0] * n, [1.0] * n
    codes = [E4M3.read(0x80)] * n, [E4M3.read(0x38)] * n
    assert dot(a, b, om.E4M3, "arm.fdot_fp8", MINUS) == om.fdot_fp8(*codes, MINUS) == MINUS
    assert dot(a, b, om.E4M3, "arm.fdot_fp8", 0) == om.fdot_fp8(*codes, 0) == 0
    assert dot(a, b, om.E4M3, "ideal.exact", MINUS) == om.exact(*codes, MINUS) == 0
    signed = ns.get_target("ideal.exact", negative_zero=True)
    assert dot(a, b, om.E4M3, signed, MINUS) == MINUS
    assert dot([*a[:-1], 0.0], b, om.E4M3, signed, MINUS) == 0


@pytest.mark.parametrize("rounding", ["rne", "rdn"])
@pytest.mark.parametrize("group", [2, 4, 8, None])
@pytest.mark.parametrize("product", [None, "float32"])
def test_trees_keep_the_sign_of_zero(path, rounding, group, product):
    unit = ns.get_target(
        "ideal.mac", order="tree", group=group, rounding=rounding, product_format=product
    )
    a, b = [-0.0] * 8, [1.0] * 8
    assert dot(a, b, om.E4M3, unit, MINUS) == MINUS
    assert dot(a, b, om.E4M3, unit, 0) == (MINUS if rounding == "rdn" else 0)


@pytest.mark.parametrize("unit", ["amd.cdna1.mfma", "amd.cdna2.mfma"])
def test_cdna_trees_lose_the_sign_of_zero(path, unit):
    a = [BF16.read(0x8000)] * 4, [BF16.read(0x3F80)] * 4
    want = om.pair_tree(*a, MINUS, group=4)
    assert dot([-0.0] * 4, [1.0] * 4, "bfloat16", unit, MINUS) == want == 0


def test_a_short_pair_holds_a_positive_zero(path):
    got = dot([-0.0], [1.0], "bfloat16", "x86.vdpbf16ps", MINUS)
    assert got == om.vdpbf16ps([BF16.read(0x8000)], [BF16.read(0x3F80)], MINUS) == 0


# ------------------------------------------------------------------------------------ short groups
@pytest.mark.parametrize("rounding", ["rne", "rna", "rup"])
@pytest.mark.parametrize("group", [2, 4, 8, 5])
@pytest.mark.parametrize("k", [1, 2, 3, 7, 9])
def test_a_short_group_is_filled_with_zeros(path, rounding, group, k):
    """Its products are wider than the accumulator: they are rounded by the tree all the same."""
    unit = ns.get_target(
        "ideal.mac", acc_format="float16", product_format="float32", order="tree", group=group,
        rounding=rounding,
    )  # fmt: skip
    rng = np.random.default_rng(group)
    for scale in (1.0, 1e4):
        a, b = rng.normal(size=(2, k)).astype(np.float32)
        a = a * scale
        c = int(np.float32(np.float16(-0.5 * scale)).view(np.uint32))
        fill = [0.0] * (-k % group)
        filled = dot([*a, *fill], [*b, *fill], "float32", unit, c)
        assert dot(list(a), list(b), "float32", unit, c) == filled


@pytest.mark.parametrize("c", [0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x00000001])
@pytest.mark.parametrize("accumulator", ["joins", "late"])
@pytest.mark.parametrize("zero_products", [False, True])
def test_the_accumulator_is_no_product_and_is_added_as_numbers_are(c, accumulator, zero_products):
    """A late sum that overflowed meets an infinite C; a zero C has no part in the alignment."""
    unit = ns.Target(
        "my.unit", (("bf16", Fused(4, 3, 23, accumulator, zero_products)),), "definition", "-", "-"
    )
    joins = accumulator == "joins"
    dot = om.Block(4, 3, 23, c_joins=joins, zero_products=zero_products)
    rows = [[0x7F7F, 0x7F00, 0, 0x80], [0x1F80, 0x0041, 0x9F00, 0x0003], [0, 0x1FA0, 0x8000, 1]]
    column = [0x7F00, 0x4000, 0x1F81, 0x1F00]
    read = BF16.read
    d = ns.matmul(
        ns.QTensor.from_codes(np.array(rows), "bfloat16"),
        ns.QTensor.from_codes(np.array(column)[:, None], "bfloat16"),
        target=unit, c=np.full((3, 1), c, np.uint32).view(np.float32),
    )  # fmt: skip
    want = [dot([read(x) for x in row], [read(y) for y in column], c) for row in rows]
    assert d.view(np.uint32).ravel().tolist() == want
