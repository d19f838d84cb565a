"""Sums that saturate as they go, against Python's integers: types, groups, shapes, paths."""

from itertools import product

import numpy as np
import pytest

from numsim.kernels.gemm.saturate import gemm_saturate, pack_b
from numsim.kernels.ir import simd
from numsim.kernels.ir.integer import CLAMP, FULL, PAIRS

TYPES = [np.dtype(t) for t in ("i1", "u1", "i2", "u2")]
MOST = 2**31 - 1


@pytest.fixture(params=simd.PATHS, autouse=True)
def path(request):
    with simd.force(request.param):
        yield request.param


def chain(a, b, start, kind, group, low, high):
    """The accumulator after each group of products of two lists, one Python integer at a time."""
    acc = start
    for first in range(0, len(a), group):
        pairs = zip(a[first : first + group], b[first : first + group], strict=True)
        terms = [x * y for x, y in pairs]
        if kind == PAIRS:
            terms = [max(low, min(sum(terms[i : i + 2]), high)) for i in range(0, len(terms), 2)]
            acc = (acc + sum(terms) + MOST + 1) % (2 * MOST + 2) - MOST - 1
        else:
            least, most = (low, high) if kind == CLAMP else (-MOST - 1, MOST)
            acc = max(least, min(acc + sum(terms), most))
    return acc


def operands(rng, left, right, shape):
    """Draw codes over all of their range, or its ends alone; 16 bits: where sums fit int32."""
    m, n, k = shape
    wide = left.itemsize + right.itemsize == 4
    ends = [
        (max(np.iinfo(t).min, -8000), min(np.iinfo(t).max, 8000)) if wide
        else (np.iinfo(t).min, np.iinfo(t).max)
        for t in (left, right)
    ]  # fmt: skip
    draw = [lambda e, s: rng.integers(*e, s, endpoint=True), rng.choice][rng.integers(2)]
    a, b = draw(ends[0], (m, k)).astype(left), draw(ends[1], (k, n)).astype(right)
    return a, b, max(map(abs, ends[0])) * max(map(abs, ends[1]))


@pytest.mark.parametrize(("left", "right"), list(product(TYPES, TYPES)), ids=str)
def test_sums_that_saturate(left, right):
    rng = np.random.default_rng(left.num + 100 * right.num)
    for kind, group in [(k, g) for k in (CLAMP, FULL, PAIRS) for g in (1, 2, 3, 4, 8)]:
        for shape in [(1, 5, 7), (5, 33, 19), (9, 2, 16)]:
            a, b, bound = operands(rng, left, right, shape)
            high = (1 << int(rng.integers(8, 24))) - 1
            if 2 * bound * group > MOST or (kind == PAIRS and group % 2):
                continue
            if kind == CLAMP and high + 1 + bound * group > MOST:
                continue
            begin = MOST if kind == FULL else high
            c = rng.integers(-begin - 1, begin, (1, shape[0], shape[1]), endpoint=True)
            packed = pack_b(b[None], group, a.dtype)
            got = gemm_saturate(a[None], packed, c.astype(np.int32), kind, group, -high - 1, high)
            want = [
                [chain(row, column, int(c[0, i, j]), kind, group, -high - 1, high)
                 for j, column in enumerate(b.T.tolist())]
                for i, row in enumerate(a.tolist())
            ]  # fmt: skip
            np.testing.assert_array_equal(got[0], want)


def test_codes_of_bytes_stay_bytes():
    b = np.zeros((1, 64, 32), np.int8)
    assert pack_b(b, 4, np.dtype(np.uint8)).panels.nbytes == b.size
    assert pack_b(b, 1, np.dtype(np.int16)).panels.nbytes == b.size
    assert pack_b(b, 1, np.dtype(np.uint16)).panels.dtype == np.int32
