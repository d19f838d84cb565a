"""Products of FP8 codes without the questions of `matmul` have its bits, or are left to it."""

from dataclasses import replace

import numpy as np
import pytest

import numsim as ns
from numsim.kernels.ir import simd
from numsim.nn import direct
from numsim.quant import Quant

HOPPER, ADA = "nvidia.hopper.wgmma", "nvidia.ada.mma"
E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"
pytestmark = pytest.mark.filterwarnings("ignore::numsim.errors.UnvalidatedWarning")


def operands(m, k, widths, formats=(E5M2, E4M3), seed=0):
    rng = np.random.default_rng([m, k, seed])
    shapes = [(m, k), *((k, n) for n in widths)]
    values = [(rng.normal(size=s) * 2.0 ** rng.integers(-12, 3, s)).astype(np.float32)
              for s in shapes]  # fmt: skip
    values[0][:, ::5], values[1][0] = -0.0, 0.0
    a, *rights = (ns.quantize(v, formats[min(i, 1)]) for i, v in enumerate(values))
    return a, rights


def turned(q):
    """Return the same tensor whose columns lie side by side."""
    return ns.QTensor(np.ascontiguousarray(q.codes.T), q.fmt, q.scale, q.quant).T


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize("target", [HOPPER, ADA])
@pytest.mark.parametrize("formats", [(E5M2, E4M3), (E4M3, E4M3)])
@pytest.mark.parametrize(("m", "k", "widths"), [
    (1, 1, [1]), (3, 33, [5, 70]), (64, 64, [64]), (37, 128, [64, 64]), (200, 64, [64, 17]),
    (256, 320, [3]), (2, 64, [130]),
])  # fmt: skip
def test_bits_are_those_of_matmul(m, k, widths, formats, target, path):
    rule = ns.Rule(formats[0], formats[1], target)
    with simd.force(path):
        a, rights = operands(m, k, widths, formats)
        for left in (a, turned(a)):
            for right in (rights, [turned(b) for b in rights]):
                made = direct.products(left, right, rule)
                assert made is not None
                for b, y in zip(right, made, strict=True):
                    want = ns.matmul(left, b, target=target)
                    assert y.shape == want.shape
                    assert y.flags.c_contiguous
                    np.testing.assert_array_equal(y.view(np.uint32), want.view(np.uint32))


def test_what_it_leaves_to_matmul():
    a, (b,) = operands(8, 64, [16])
    rule = ns.Rule(E5M2, E4M3, HOPPER)
    assert direct.products(a, [b], rule) is not None
    assert direct.products(a, [b], ns.Rule(E5M2, E4M3, "ideal.fp32")) is None
    assert direct.products(a, [b], replace(rule, out_format="float16")) is None
    promoted = ns.get_target(HOPPER, promote_every=32)
    assert direct.products(a, [b], replace(rule, target=promoted)) is None
    rows = ns.quantize(a.dequantize(), Quant(E5M2, "per_token"))
    assert direct.products(rows, [b], rule) is None
    batch = ns.quantize(np.ones((2, 8, 64), np.float32), E5M2)
    assert direct.products(batch, [b], rule) is None
    codes = a.codes.copy()
    codes[3, 4] = 0x7E  # NaN
    assert direct.products(ns.QTensor(codes, a.fmt, a.scale), [b], rule) is None
    other = ns.quantize(b.dequantize(), E5M2)
    assert direct.products(a, [b, other], rule) is None


def test_codes_that_were_looked_at_cannot_change():
    a, (b,) = operands(8, 64, [16])
    assert direct.products(a, [b], ns.Rule(E5M2, E4M3, HOPPER)) is not None
    for q in (a, b):
        with pytest.raises(ValueError, match="read-only"):
            q.codes[0, 0] = 1
