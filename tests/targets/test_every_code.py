"""Single products of every code on units whose rules vendors and standards publish.

All 65,536 pairs of codes of a byte, all 65,536 codes of two bytes against 64 partners, with
accumulators: against tests/oracle_mac.py. A sample of lines runs always.
"""

from __future__ import annotations

import numpy as np
import oracle_mac as om
import pytest
from test_targets import BITS, NUMPY, assert_same, multiply, tensor

import numsim as ns

pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")

NEW = ("arm.f", "intel.", "riscv.", "x86.top", "x86.tdpfp16")
CASES = [c for c in om.CASES if c.target.startswith(NEW)]
FP8 = [c for c in CASES if om.FORMATS[c.a].sign_bit == 128]
WIDE = [c for c in CASES if om.FORMATS[c.a].sign_bit > 128 and dict(c.changes).get("group") != 6]
EVERY = np.arange(256)
LINES = {"float32": 0xBE345678, "float16": 0x8421}  # accumulators


def starts(out, shape):
    """None, and accumulators of one binade, some of them -0 and subnormal."""
    f = om.FORMATS[out]
    c = np.full(shape, LINES[out], np.int64)
    c.reshape(-1)[::7] = f.sign_bit
    c.reshape(-1)[3::11] = 5
    return None, c.astype(BITS[2 if out == "float16" else 4])


def single(case, a, b, c):
    """What the oracle says of products of one pair each, [len(a), len(b)]."""
    fa, fb = om.FORMATS[case.a], om.FORMATS[case.b]
    left, right = [fa.read(v) for v in a.tolist()], [fb.read(v) for v in b.tolist()]
    word = BITS[NUMPY[case.out]().itemsize]
    d = np.empty((len(left), len(right)), word)
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            d[i, j] = case.dot([x], [y], 0 if c is None else int(c[i, j]))
    return d


def check(case, a, b, choices=slice(None)):
    width = np.uint8 if om.FORMATS[case.a].sign_bit == 128 else np.uint16
    for c in starts(case.out, (len(a), len(b)))[choices]:
        got = multiply(case, a.astype(width)[:, None], b.astype(width)[None, :], c)
        assert_same(got, single(case, a, b, c), nan_bits=case.nan_bits)


@pytest.mark.parametrize("case", FP8, ids=str)
def test_some_pairs_of_bytes(case):
    rng = np.random.default_rng(list(str(case).encode()))
    check(case, rng.choice(EVERY, 6, replace=False), rng.choice(EVERY, 48, replace=False))


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", FP8, ids=str)
def test_every_pair_of_bytes(case):
    check(case, EVERY, EVERY)


def partners(case):
    """Zeros, ends of the format, ones, and codes spread over all of it."""
    f = om.FORMATS[case.a]
    one = f.bias << f.fraction_bits
    some = [0, f.sign_bit, 1, f.infinity - 1, f.infinity, f.infinity + 1, one, one | f.sign_bit]
    rng = np.random.default_rng(8)
    return np.array([*some, *rng.integers(0, 2 * f.sign_bit, 56)])


@pytest.mark.parametrize("case", WIDE, ids=str)
def test_some_codes_of_two_bytes(case):
    rng = np.random.default_rng(list(str(case).encode()))
    check(case, rng.integers(0, 1 << 16, 40), partners(case)[::8])


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_every_code_of_two_bytes(case):
    check(case, np.arange(1 << 16), partners(case), slice(1))
    check(case, np.arange(1 << 16), partners(case)[::16], slice(1, None))


def scaled(q, fmt, axis, scale):
    shape = (len(q), 1) if axis == 1 else (1, len(q))
    codes = np.full(shape, scale)
    return tensor(
        q.reshape(shape), fmt, scale_codes=codes, scale_format="float8_e8m0fnu", block=32, axis=axis
    )


def scaled_products(a, b, read, name, fa, fb, scales):
    d = ns.matmul(scaled(a, fa, 1, scales[0]), scaled(b, fb, 0, scales[1]), target=name)
    want = [
        [om.top4mx([x], [y], [scales[0]], [scales[1]]) for y in read(fb, b)] for x in read(fa, a)
    ]
    assert_same(d.view(np.uint32), np.array(want, np.uint32), nan_bits=False)


def floats(fmt, codes):
    return [om.FORMATS[fmt].read(v) for v in codes.tolist()]


def fixed(fmt, codes):
    return [(v < 0, abs(v), -6, 0) for v in codes.tolist()]


SCALES = ((127, 127), (3, 130), (64, 65), (250, 140), (255, 1))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize(
    "step", [16, pytest.param(1, marks=pytest.mark.exhaustive)], ids=["some", "every"]
)
def test_pairs_of_scaled_bytes(scales, step):
    codes, whole = EVERY[::step].astype(np.uint8), np.arange(-128, 128, step).astype(np.int8)
    for fa, fb in om.FP8:
        scaled_products(codes, codes, floats, "x86.top4mxbf8ps", fa, fb, scales)
    scaled_products(whole, whole, fixed, "x86.top4mxbssps", "q1.6", "q1.6", scales)


def test_integer_products_of_every_pair():
    for a, b in (("int8", "int8"), ("uint8", "int8"), ("int8", "uint8"), ("uint8", "uint8")):
        x, y = (EVERY.astype(np.uint8).view(name) for name in (a, b))
        d = ns.matmul(tensor(x[:, None], a), tensor(y[None, :], b), target="x86.top4bssd")
        np.testing.assert_array_equal(d, np.multiply.outer(x.astype(int), y.astype(int)))
