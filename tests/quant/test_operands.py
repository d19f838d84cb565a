"""What products keep of a tensor stays true: its codes and scales cannot change afterwards."""

from __future__ import annotations

import numpy as np
import pytest

import numsim as ns
from numsim.targets.operands import locked

E4M3 = "float8_e4m3fn"


def pair(seed=0):
    x, y = (
        np.random.default_rng(seed + i).normal(size=s) for i, s in enumerate(((4, 64), (64, 4)))
    )
    return ns.quantize(x, "mxfp8_e4m3"), ns.quantize(y, "mxfp8_e4m3", axis=0)


@pytest.mark.parametrize("stats", [False, True])
@pytest.mark.parametrize(
    "target", ["nvidia.hopper.wgmma", "nvidia.blackwell.tcgen05", "ideal.fp32"]
)
def test_codes_and_scales_are_read_only_once_a_product_used_them(target, stats):
    """A changed code was half seen: some kernels read it, others what they had packed."""
    for q in pair():
        q.codes[0, 0] ^= 1  # nobody has used it yet
    a, b = pair()
    before = ns.matmul(a, b, target=target, stats=stats)
    for q in (a, b):
        for array in (q.codes, q.scale, q.scale_codes, q.values()):
            with pytest.raises(ValueError, match="read-only"):
                array[0, 0] = 1
            with pytest.raises(ValueError, match="WRITEABLE"):
                q.T.codes.flags.writeable = True
    after = ns.matmul(a, b, target=target, stats=stats)
    if stats:
        assert before[1] == after[1]
        before, after = before[0], after[0]
    np.testing.assert_array_equal(before, after)


def test_a_transposed_operand_locks_the_tensor_it_is_a_view_of():
    a, b = pair()
    weights = b.T
    ns.matmul(a, weights.T, target="ideal.fp32")
    for array in (b.codes, b.scale, weights.codes):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1


def test_arrays_given_to_from_codes_stay_the_callers():
    codes, scale = np.full((2, 32), 0x38, np.uint8), np.full((2, 1), 2.0, np.float32)
    kept = np.full((2, 1), 127, np.uint8)
    a = ns.QTensor.from_codes(codes, E4M3, scale=scale)
    b = ns.QTensor.from_codes(codes, E4M3, scale_codes=kept, scale_format="e8m0", block=32)
    want = ns.matmul(a, b.T, target="ideal.fp32")
    codes[:], scale[:], kept[:] = 0, 0, 0
    np.testing.assert_array_equal(ns.matmul(a, b.T, target="ideal.fp32"), want)
    assert want[0, 0] == 64


def test_arrays_given_to_the_constructor_are_locked_with_their_memory():
    """Kept packings would not be true of a changed base, and a copy would double large weights."""
    base = np.full((64, 8), 0x38, np.uint8)
    q = ns.QTensor(base[:, ::2], ns.get_format(E4M3))
    ns.matmul(q.T, q, target="ideal.fp32")
    with pytest.raises(ValueError, match="read-only"):
        base[0, 0] = 0


def test_a_refused_product_locks_nothing():
    a, b = pair()
    with pytest.raises(ns.NumsimError):
        ns.matmul(a, a, target="ideal.fp32")
    with pytest.raises(ns.UnsupportedError):
        ns.matmul(a, b, target="ideal.int")
    assert all(q.codes.flags.writeable and q.scale.flags.writeable for q in (a, b))


def test_values_read_before_a_product_are_those_of_the_codes_then():
    a, b = pair()
    old = a.values()
    a.codes[0, 0] = 0x7E
    assert a.values()[0, 0] == 448 != old[0, 0]
    assert ns.matmul(a, b, target="ideal.fp32", stats=True)[1].cut == 0
    assert a.values()[0, 0] == 448
    with pytest.raises(ValueError, match="read-only"):
        a.values()[0, 0] = 1


LAYOUTS = (
    lambda codes: codes, np.asfortranarray, lambda codes: codes[::-1, ::-1],
    lambda codes: np.broadcast_to(codes[:1], (4, 64)), lambda codes: codes[:0],
    lambda codes: np.frombuffer(codes.tobytes(), np.uint8).reshape(4, 64),
)  # fmt: skip


@pytest.mark.parametrize("make", LAYOUTS)
def test_kernels_see_arrays_that_may_be_written(make):
    """For others they would be compiled again; nothing writes to them."""
    codes = make(np.random.default_rng(0).integers(0, 120, (4, 64)).astype(np.uint8))
    q = ns.QTensor(codes, ns.get_format(E4M3))
    want, seen = codes.copy(), locked(q)
    assert seen.codes.flags.writeable
    assert not q.codes.flags.writeable
    assert seen.codes.strides == codes.strides
    np.testing.assert_array_equal(seen.codes, want)
    again = locked(q.T)
    assert again.codes.flags.writeable
    np.testing.assert_array_equal(again.codes, want.T)
    ns.matmul(q, q.T, target="ideal.fp32")
    np.testing.assert_array_equal(q.codes, want)
