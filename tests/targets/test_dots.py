"""Dot products by the definitions of rules, line by line, against `matmul`, bit for bit."""

import numpy as np
import pytest

from numsim.formats import get_format
from numsim.probe.inputs import first_round, moderate_sums, random_sums
from numsim.probe.machine import bits_of, held, laid_out, operand, rule_in, unit_of
from numsim.probe.probe import machine_for
from numsim.quant import QTensor
from numsim.targets import get_target
from numsim.targets.dots import Dots, results
from numsim.targets.types import BulkNorm, Exact, Fused, IntSum, Mac, Mme, TwoStage

RULES = [
    (Fused(8, 13, 13), "float8_e4m3fn", None, {}),
    (Fused(16, 25, accumulator="late", zero_products=True), "bfloat16", None, {}),
    (Fused(16, 25, accumulator="halves"), "float8_e5m2", "float16", {}),
    (Fused(4, 30, align="floor", rounding="rne", min_exponent=-30), "tfloat32", None, {}),
    (Fused(8, 20), "float16", None, {"promote_every": 24}),
    (TwoStage(8, streams=2), "float8_e4m3fnuz", None, {}),
    (TwoStage(4, zero_products=True), "bfloat16", None, {}),
    (BulkNorm(16), "float8_e5m2", None, {}),
    (Mme(8, 24, bias_a=9, bias_b=20), "float8_e4m3fn", None, {}),
    (Mme(16, 30, accumulator="after", subnormals="half"), "float8_e5m2", None, {}),
    (Exact(4, negative_zero=True), "float8_e5m2", None, {}),
    (Exact(2, lscale=9, osm=True), "float16", "float16", {}),
    (Exact(8), "bfloat16", None, {}),  # float32 does not hold its products
    (Mac(order="odd_first", flush=True, tiny="unbounded"), "bfloat16", None, {}),
    (Mac(acc_format="float_e3m18", fused=False, rounding="rna"), "float8_e5m2", None,
     {"split_k": 3, "split_tile": 16, "split_order": "pairwise"}),
    (Mac("q2.9", "float16", False, "rup", "tree", 6, overflow="saturate"), "float16", None, {}),
    (Mac(acc_format="bfloat16", order="two_chains", group=8), "bfloat16", "bfloat16", {}),
    (IntSum(acc_bits=18, overflow="saturate", group=4), "int8", None, {}),
    (IntSum(acc_bits=20, group=4, pair_bits=15), ("uint8", "int8"), None, {}),
    (IntSum(acc_bits=18), "int16", None, {"split_k": 2, "split_tile": 16}),
    (IntSum(acc_bits=19, overflow="saturate"), "int4", None, {"promote_every": 16}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "formats", "out", "cuts"), RULES, ids=str)
def test_dots_are_those_of_a_product(rule, formats, out, cuts):
    machine = machine_for(formats, out, True, (64,))
    unit = unit_of(rule, machine, **cuts)
    asked = [*first_round(machine), random_sums(machine, 64, 200, 5)]
    for batch in [*asked, moderate_sums(machine, 64, 100, 6)]:
        some = batch.rows(slice(0, 90))
        a, b = operand(some.a, machine.a, None, machine), operand(some.b, machine.b, None, machine)
        c = held(some.c, unit, rule)
        found = results(Dots(a, b), rule, c, get_format(machine.out), unit)
        if found is None:  # no kernel takes its products
            assert isinstance(rule, Exact)
            assert formats == "bfloat16"
            return
        want = laid_out(machine, some).answers(unit, machine)
        assert found.dtype == want.dtype
        np.testing.assert_array_equal(bits_of(found), bits_of(want), err_msg=batch.name)


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_dots_with_block_scales(fmt):
    machine = machine_for(fmt, None, True, (64,), "float8_e8m0fnu/32")
    unit = get_target("nvidia.blackwell.tcgen05", kind="mxf8f6f4")
    rule = rule_in(unit, machine)
    for batch in first_round(machine):
        some = batch.rows(slice(0, 60))
        a = operand(some.a, machine.a, some.sa, machine)
        b = operand(some.b, machine.b, some.sb, machine)
        found = results(Dots(a, b), rule, some.c, get_format("float32"), unit)
        want = laid_out(machine, some).answers(unit, machine)
        np.testing.assert_array_equal(bits_of(found), bits_of(want), err_msg=batch.name)


def test_float32_has_no_table_of_codes():
    q = QTensor.from_codes(np.array([[1, 2]], np.uint32), "float32")
    for rule in (Fused(4, 20), TwoStage(4), BulkNorm(4), Mme(4, 24)):
        assert Dots(q, q).lines(rule) is None
    assert Dots(q, q).lines(Mac()) is not None


def test_sums_from_zero_are_asked_once():
    q = QTensor.from_codes(np.array([[0x38, 0xB8, 0x40]], np.uint8), "float8_e4m3fn")
    single, unit = get_format("float32"), get_target("ideal.fp32")
    dots, rule = Dots(q, q), Mac()
    first = results(dots, rule, None, single, unit)
    assert results(dots, rule, np.zeros(1, np.float32), single, unit) is first
    minus = results(dots, rule, np.full(1, -0.0, np.float32), single, unit)
    assert minus is not first
    assert first[0] == minus[0] == 1 + 1 + 4
