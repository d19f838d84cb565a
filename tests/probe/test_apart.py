"""Two units are told apart by products of which none can be left out."""

import json

import numpy as np
import pytest

import numsim as ns
from numsim.probe.apart import tell_apart


def test_saturation_against_wrapping_by_hand():
    # one product and C at the end of 32 bits: wrap goes to the other end, saturate stays
    found = tell_apart("x86.vpdpbusd", "x86.vpdpbusds")
    assert found.products == 1
    exactly = int(found.c.item()) + int(
        (found.a.codes.astype(np.int64) @ found.b.codes.astype(np.int64)).item()
    )
    wrapped = (exactly + 2**31) % 2**32 - 2**31
    assert [int(d.item()) for d in found.d] == [wrapped, min(max(exactly, -(2**31)), 2**31 - 1)]


def test_the_vectors_are_what_the_units_return(tmp_path):
    found = tell_apart(
        ns.get_target("ideal.mac", acc_format="bfloat16"), "ideal.fp32", formats="bfloat16"
    )
    files = found.save(tmp_path)
    assert {f.parent.name for f in files} == {"a", "b"}
    words = []
    for name in "ab":
        with np.load(tmp_path / name / "vectors.npz") as npz:
            words.append(int(npz["d"].ravel()[0]))
            assert json.loads(str(npz["meta"]))["arrays"]["a"]["format"] == "bfloat16"
    assert words[0] != words[1]


def test_no_product_can_be_left_out():
    found = tell_apart(
        ns.get_target("ideal.mac", order="tree", group=4), "ideal.fp32", formats="float8_e4m3fn"
    )
    assert found.products >= 2
    used = np.flatnonzero((ns.decode(found.a.codes, found.a.fmt) != 0).ravel())
    for k in used:
        codes = found.a.codes.copy()
        codes[0, k] = 0
        less = ns.QTensor.from_codes(codes, found.a.fmt)
        both = [ns.matmul(less, found.b, target=u, c=found.c) for u in found.units]
        assert both[0].view(np.uint32) == both[1].view(np.uint32)


def test_equal_units_are_not_told_apart_and_strangers_are_an_error():
    assert tell_apart("x86.tdpbssd", "arm.sdot") is None
    with pytest.raises(ns.NumsimError, match="none in common"):
        tell_apart("x86.vpdpbusd", "x86.vdpbf16ps")


def test_products_that_are_not_needed_are_left_out():
    # two products that c loses one by one: 16 of a tree meet before c, 8 and 8 do not
    wide, narrow = (ns.get_target("ideal.mac", order="tree", group=n) for n in (16, 8))
    found = tell_apart(wide, narrow, formats="float8_e4m3fn")
    assert found.products == 2
    assert found.a.shape[-1] <= 32
