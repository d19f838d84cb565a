"""ideal.mac with accumulators that have no infinity, no -0, or a fixed point."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import oracle
import oracle_mac as om
import pytest

import numsim as ns

FORMATS = (
    "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz", "float8_e4m3",
    "float8_e5m2", "float6_e2m3fn", "p3109_k8p3se", "q3.4", "q7.8", "int16",
)  # fmt: skip


def values(codes, fmt):
    return [oracle.decode(fmt, v) for v in codes]


@pytest.mark.parametrize("acc", FORMATS)
@pytest.mark.parametrize("overflow", ["ieee", "saturate"])
@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("rounding", ["rne", "rtz", "rup", "rdn", "rto"])
def test_equals_the_oracle(acc, overflow, product, rounding):
    rng = np.random.default_rng(3)
    operand = "float8_e4m3"  # with Inf and NaN
    scale = 4.0 if ns.get_format(acc).max > 16 else 0.5
    a, b = (ns.encode(rng.normal(size=(12, 10)) * scale, operand) for _ in "ab")
    a[:4] = ns.encode(rng.normal(size=(4, 10)) * 40 * scale, operand)
    a[5, 3], a[6, 5], b[7, 2] = 0x78, 0xF8, 0x7C
    unit = ns.get_target(
        "ideal.mac", acc_format=acc, rounding=rounding, overflow=overflow,
        product_format=acc if product else None, fused=not product,
    )  # fmt: skip
    x, y = (ns.QTensor.from_codes(v, operand) for v in (a[:, None, :], b[:, :, None]))
    d = ns.matmul(x, y, target=unit)
    again, stats = ns.matmul(x, y, target=unit, stats=True)
    np.testing.assert_array_equal(again.view(np.uint32), d.view(np.uint32))
    policy = "special" if overflow == "ieee" else "saturate"
    has_nan = ns.get_format(acc).has_nan
    for i, got in enumerate(d.ravel().tolist()):
        u, v = values(a[i].tolist(), operand), values(b[i].tolist(), operand)
        if not has_nan and {"nan", "+inf", "-inf"} & {*u, *v}:
            continue  # the oracle cannot store NaN there
        want = om.small_chain(
            u, v, Fraction(0), acc, rounding=rounding, overflow=policy,
            product_format=acc if product else None,
        )  # fmt: skip
        assert oracle.from_float(got) == want, (i, got, want)
    if ns.get_format(acc).max < 500:
        assert stats.overflows + stats.saturations


@pytest.mark.parametrize("overflow", ["ieee", "saturate"])
@pytest.mark.parametrize(
    ("fmt", "total", "last"),
    [("float8_e4m3fn", 3.0, 8), ("float8_e5m2", 2.0, 4), ("bfloat16", 5.0625, 64)],
)
def test_harmonic_sums_stagnate_where_published(fmt, total, last, overflow):
    i = np.arange(1, 200)
    terms = ns.QTensor.from_codes(ns.encode(np.tril(np.ones((199, 199))) / i, fmt), fmt)
    ones = ns.QTensor.from_codes(ns.encode(np.ones((199, 1)), fmt), fmt)
    unit = ns.get_target("ideal.mac", acc_format=fmt, overflow=overflow)
    sums = ns.matmul(terms, ones, target=unit).ravel()
    assert sums[-1] == total
    assert i[1:][np.diff(sums) != 0].max() == last


def test_overflow_of_a_format_without_infinity():
    a = ns.QTensor.from_codes(ns.encode(np.array([[448.0, 448.0]]), om.E4M3), om.E4M3)
    one = ns.QTensor.from_codes(ns.encode(np.array([[1.0], [1.0]]), om.E4M3), om.E4M3)
    unit = ns.get_target("ideal.mac", acc_format=om.E4M3)
    assert np.isnan(ns.matmul(a, one, target=unit))
    d, stats = ns.matmul(a, one, target=unit.changed(overflow="saturate"), stats=True)
    assert (float(d[0, 0]), stats.saturations) == (448.0, 1)


@pytest.mark.parametrize("fmt", ["posit16_es1", "float8_e8m0fnu", "uint8", "int32", "float64x"])
def test_formats_that_no_step_rounds_to(fmt):
    with pytest.raises(ns.NumsimError):
        ns.get_target("ideal.mac", acc_format=fmt)
