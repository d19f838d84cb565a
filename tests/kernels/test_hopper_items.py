"""Batches of Hopper's FP8: heads of attention, one after the other on a thread."""

import numpy as np
import pytest

import numsim as ns
from numsim.kernels.gemm import hopper
from numsim.kernels.ir import simd
from numsim.kernels.jit import using_threads
from numsim.targets.tensor import fields

E4M3, E5M2 = ns.get_format("float8_e4m3fn"), ns.get_format("float8_e5m2")
SHAPES = [(3, 8, 64, 128), (5, 1, 70, 33), (2, 7, 32, 64), (4, 257, 96, 65), (2, 3, 40, 9)]


def codes(rng, fmt, shape):
    """Return finite codes of both signs."""
    most = int(np.flatnonzero(np.isfinite(fmt.values()[:128])).max())
    return (rng.integers(0, most + 1, shape) + 128 * rng.integers(0, 2, shape)).astype(np.uint8)


@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2])
def test_items_of_a_batch_are_products_of_their_own(path, shape, count):
    """Whatever the threads, the rows that fill a tile, and where the columns lie in memory."""
    (items, m, depth, n), rng, group = shape, np.random.default_rng(sum(shape)), 32
    a, start = codes(rng, E4M3, (items, m, depth)), np.float32(rng.standard_normal((items, m, n)))
    for b in (
        codes(rng, E5M2, (items, depth, n)),
        codes(rng, E5M2, (items, n, depth)).swapaxes(1, 2),
        codes(rng, E5M2, (1, n, depth)).swapaxes(1, 2),
    ):
        with simd.force(path), using_threads(count):
            packed = hopper.pack_b(b, group)
            for c in (None, start):
                found = hopper.gemm_items(a, fields(E4M3), packed, fields(E5M2), group, c)
                for i in range(items):
                    own = hopper.pack_b(b[i : i + 1] if len(b) > 1 else b, group)
                    rows = hopper.pack_a(a[i], fields(E4M3), group)
                    begin = None if c is None else c[i]
                    want = hopper.gemm_hopper_fp8(rows, own, fields(E5M2), c=begin)
                    np.testing.assert_array_equal(found[i].view(np.uint32), want.view(np.uint32))
