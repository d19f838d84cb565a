"""What a product will be, said before it runs, is what runs."""

import subprocess
import sys

import numpy as np
import pytest

import numsim as ns
from numsim.kernels.ir import simd
from numsim.targets import get_target, runs
from numsim.targets.explain import explain_mma
from numsim.targets.rules import RULES
from numsim.targets.types import Exact, Fused, IntSum, Mac, ScaledFp4

pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")


def operands(storage, shape=(4, 128)):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    a = ns.quantize(x, storage)
    return a, a.T


@pytest.mark.parametrize(
    ("unit", "storage", "operand_class", "rule", "scales"),
    [
        ("nvidia.hopper.wgmma", "e4m3", "fp8", Fused, "after the unit, in float32"),
        ("nvidia.hopper.wgmma", "bfloat16", "bf16", Fused, "after the unit, in float32"),
        ("nvidia.hopper.wgmma", "mxfp8_e4m3", "fp8", Fused,
         "of blocks, around the unit in float32, every 32 k"),
        ("nvidia.blackwell.tcgen05", "mxfp8_e4m3", "mx:f8f6f4", Fused,
         "of blocks, inside the unit"),
        ("nvidia.blackwell.tcgen05", "nvfp4", "mx:fp4", ScaledFp4, "of blocks, inside the unit"),
        ("ideal.int", "int8", "integer", IntSum, "after the unit, in float32"),
        ("ideal.int", "q3.4", "integer", IntSum, "after the unit, in float32"),
        ("ideal.fp32", "e5m2", "float", Mac, "after the unit, in float32"),
        ("ideal.exact", "e4m3", "number", Exact, "after the unit, in float32"),
    ],
)  # fmt: skip
def test_rule_and_place_of_scales(unit, storage, operand_class, rule, scales):
    found = ns.plan(unit, *operands(storage))
    assert (found.operands, type(found.rule), found.scales) == (operand_class, rule, scales)
    for said in (unit, operand_class, scales, found.kernel):
        assert said in str(found)


def test_a_block_that_is_all_of_k_is_called_so():
    found = ns.plan("nvidia.hopper.wgmma", *operands("mxfp8_e4m3", (4, 8)))
    assert found.scales == "of blocks, around the unit in float32, one block of all 8 k"


@pytest.mark.parametrize("unit", ["nvidia.hopper.wgmma", "nvidia.ada.mma", "amd.cdna3.mfma",
                                  "ideal.fp32", "ideal.int", "ideal.exact"])  # fmt: skip
@pytest.mark.parametrize("path", simd.PATHS)
def test_the_kernel_that_is_named_runs(unit, path, monkeypatch):
    storage = {"ideal.int": "int8", "amd.cdna3.mfma": "float8_e4m3fnuz"}.get(unit, "e4m3")
    with simd.force(path):
        a, b = operands(storage)
        said = ns.plan(unit, a, b).kernel
        inner, ran = runs.chosen, []
        monkeypatch.setattr(runs, "chosen", lambda c: ran.append(inner(c)) or ran[-1])
        ns.matmul(a, b, target=unit)
    assert [work.kernel for work in ran] == [said]


def test_values_that_a_vector_kernel_leaves_go_to_the_definition():
    codes = np.full((2, 32), 0x38, np.uint8)
    fine = ns.QTensor.from_codes(codes, "e5m2")
    codes[0, 0] = 0x7C  # Inf
    infinite = ns.QTensor.from_codes(codes, "e5m2")
    assert ns.plan("nvidia.hopper.wgmma", fine, fine.T).kernel == "FP8 with 13 fraction bits"
    assert ns.plan("nvidia.hopper.wgmma", infinite, fine.T).kernel == "scalar"


def test_chains_that_restart_are_planned_by_their_first():
    a, b = operands("e4m3", (4, 512))
    unit = get_target("nvidia.hopper.wgmma", promote_every=128)
    assert ns.plan(unit, a, b).kernel == "FP8 with 13 fraction bits"
    for changes in ({"split_k": 2}, {"split_k": 4, "split_order": "pairwise"}):
        assert ns.plan(get_target("ideal.fp32", **changes), a, b).kernel


@pytest.mark.parametrize("out", [None, "float32", "float16"])
def test_output_formats(out):
    a, b = operands("e4m3")
    assert ns.plan("nvidia.hopper.wgmma", a, b, out_format=out).out.name == (out or "float32")


def test_what_a_unit_does_not_take_is_refused_as_by_matmul():
    a, b = operands("int8")
    for call in (ns.plan, lambda unit, a, b: ns.matmul(a, b, target=unit)):
        with pytest.raises(ns.UnsupportedError, match="does not multiply int8 by int8"):
            call("arm.fdot_fp8", a, b)
    with pytest.raises(ns.NumsimError, match="plan: a is a QTensor"):
        ns.plan("ideal.fp32", np.ones((2, 2)), b)
    with pytest.raises(ns.NumsimError, match="a has K = 128, b has K = 4"):
        ns.plan("ideal.int", a, a)


def test_a_definition_runs_what_no_kernel_covers():
    a, b = operands("int8", (1, 3))
    chain = runs.Chain(IntSum(), a, b, None, ns.get_format("int32"), "x")
    last = RULES[IntSum].definition(chain)
    assert last.kernel == "scalar"
    want = a.codes.astype(np.int64) @ b.codes.astype(np.int64)
    np.testing.assert_array_equal(last.run()[0], want)


def test_explain_mma_shows_the_plan_and_nothing_else():
    text = explain_mma("nvidia.hopper.wgmma", formats="e5m2", plan=True)
    assert text.splitlines()[-1] == "kernel       FP8 with 13 fraction bits"
    assert "D =" not in text
    command = ["explain", "mma", "--target", "ideal.int", "--plan"]
    done = subprocess.run(
        [sys.executable, "-m", "numsim.cli", *command], capture_output=True, text=True, check=True
    )
    assert done.stdout == explain_mma("ideal.int", plan=True) + "\n"


def blocked(fmt, shape, block, scale):
    """Return a tensor of ones with scales of blocks, of a format or of float32."""
    counts = tuple(-(-size // one) for size, one in zip(shape, block, strict=True))
    ones, form = np.ones(counts, np.float32), None if scale is None else ns.get_format(scale)
    codes = ns.encode(np.ones(shape, np.float32), fmt)
    kept = None if form is None else ns.encode(ones, form)
    return ns.QTensor(codes, ns.get_format(fmt), ones, None, block, kept, form)


def test_scales_go_inside_by_all_that_says_so():
    """What is kept of one plan serves no other block, format of scales, batch or output."""
    e8m0, ue4m3, e4m3, fp4 = "float8_e8m0fnu", "float8_ue4m3", "float8_e4m3fn", "float4_e2m1fn"
    unit = "nvidia.blackwell.tcgen05"
    found = {}
    for _ in range(2):
        for fmt, block, scales in [
            (e4m3, 32, e8m0), (fp4, 32, e8m0), (fp4, 16, e4m3), (fp4, 16, e8m0), (fp4, 32, e4m3),
            (fp4, 16, ue4m3), (e4m3, 16, e8m0), (e4m3, 64, e8m0), (e4m3, 32, ue4m3),
            (e4m3, 32, None),
        ]:  # fmt: skip
            a, b = (blocked(fmt, (64, 64), shape, scales) for shape in ((1, block), (block, 1)))
            p = ns.plan(unit, a, b)
            key = fmt, block, scales
            assert found.setdefault(key, p) == p
            assert (p.block is None) == p.inside
    inside = {key for key, p in found.items() if p.inside}
    assert inside == {(e4m3, 32, e8m0), (fp4, 32, e8m0), (fp4, 16, e4m3), (fp4, 16, e8m0)}
    assert ns.plan(unit, *[blocked(e4m3, (64, 64), s, e8m0) for s in ((1, 32), (32, 1))],
                   out_format="float32").inside  # fmt: skip


@pytest.mark.parametrize(
    ("left", "right", "scales", "inside"),
    [
        ((1, 32), (32, 1), ("float8_e8m0fnu",) * 2, True),
        ((2, 32), (32, 1), ("float8_e8m0fnu",) * 2, False),
        ((1, 32), (32, 2), ("float8_e8m0fnu",) * 2, False),
        ((1, 32), (64, 1), ("float8_e8m0fnu",) * 2, False),
        ((1, 32), (32, 1), ("float8_e8m0fnu", "float8_ue4m3"), False),
        ((1, 32), (32, 1), ("float8_e8m0fnu", None), False),
        ((1, 32), (32, 1), (None, "float8_e8m0fnu"), False),
        ((1, 32), (32, 1), (None, None), False),
        ((1, 1, 32), (1, 32, 1), ("float8_e8m0fnu",) * 2, True),
        ((2, 1, 32), (1, 32, 1), ("float8_e8m0fnu",) * 2, False),
        ((1, 1, 32), (2, 32, 1), ("float8_e8m0fnu",) * 2, False),
    ],
)  # fmt: skip
def test_scales_go_inside_where_each_has_a_run_of_k_alone(left, right, scales, inside):
    shape = (2,) * (len(left) - 2) + (64, 64)
    a, b = (blocked("float8_e4m3fn", shape, *x) for x in zip((left, right), scales, strict=True))
    assert ns.plan("nvidia.blackwell.tcgen05", a, b).inside == inside


def test_a_scale_of_a_format_that_has_no_blocks_stays_outside():
    blocks = blocked("float8_e4m3fn", (64, 64), (32, 1), "float8_e8m0fnu")
    one = blocked("float8_e4m3fn", (64, 64), (64, 64), "float8_e8m0fnu")
    whole = ns.QTensor(
        one.codes, one.fmt, one.scale, scale_codes=one.scale_codes, scale_format=one.scale_format
    )
    for a, b in [(whole, blocks), (blocks.T, whole), (whole, whole)]:
        assert not ns.plan("nvidia.blackwell.tcgen05", a, b).inside


def test_of_several_faults_formats_are_named_first_and_the_output_last():
    along = blocked("float8_e4m3fn", (64, 64), (32, 1), None)
    across = blocked("float8_e4m3fn", (64, 64), (1, 32), None)
    wrong = blocked("float16", (64, 64), (1, 32), None)
    unit = "nvidia.hopper.wgmma"
    for a, b, out, match in [
        (wrong, across, "int8", "does not multiply"),
        (along, across, "int8", "run along K"),
        (across, blocked("float8_e4m3fn", (64, 64), (24, 1), None), "int8", "one divides"),
        (across, along, "int8", "returns float32"),
    ]:  # fmt: skip
        for _ in range(2):
            with pytest.raises(ns.UnsupportedError, match=match):
                ns.plan(unit, a, b, out_format=out)
