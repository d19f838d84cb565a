"""Contradictions are refused alike in TOML and in `get_target`; changes go where they can."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest

import numsim as ns
from numsim.targets import Target
from numsim.targets.table import label
from numsim.targets.types import Fused, ScaledFp4

WGMMA = "nvidia.hopper.wgmma"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("amd.cdna3.mfma", {"sum_bits": 10}, "sum_bits"),
        ("nvidia.volta.mma", {"accumulator": "quarters"}, "joins, late, halves"),
        ("x86.vpmaddubsw", {"group": 3}, "odd"),
        ("ideal.mac", {"fused": True, "product_format": "float16"}, "product_format"),
        ("ideal.mac", {"group": 4}, "sequential"),
        (WGMMA, {"split_order": "serial"}, "split_k"),
        (WGMMA, {"split_tile": 64}, "split_k"),
        ("generic.systolic", {"overflow": "clip"}, "clip"),
    ],
)
def test_contradictions(name, changes, message):
    with pytest.raises(ns.NumsimError, match=message):
        ns.get_target(name, **changes)


def test_a_change_goes_to_the_rules_that_have_the_word():
    unit = ns.get_target("generic.systolic", overflow="wrap")
    assert unit == ns.get_target("generic.systolic")
    raising = ns.get_target("generic.systolic", overflow="raise")
    assert raising.rule("integer").overflow == "raise"
    assert raising.rule("float").overflow == "ieee"
    assert ns.get_target("amd.cdna3.mfma", group=4).rule("fp32").group is None
    for kind, rule in ns.get_target("nvidia.hopper.wgmma", accumulator="halves").rules:
        assert getattr(rule, "accumulator", "") == {"int8": ""}.get(
            kind, "halves" if kind.endswith("->float16") else "joins"
        )


def test_name_is_no_field():
    with pytest.raises(ns.NumsimError, match="'name'"):
        ns.get_target(WGMMA, name="y")


@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("x86.tdpbssd", "uint8"), ("amd.cdna3.mfma", "uint8"), ("amd.cdna1.mfma", "uint8"),
        ("tpu.mxu_int8", "uint8"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("left", [True, False])
def test_units_without_unsigned_operands(name, fmt, left):
    a, b = (ns.QTensor.from_codes(np.ones((2, 2), int), f) for f in (fmt, "int8"))
    with pytest.raises(ns.UnsupportedError, match=r"s8: int8"):
        ns.matmul(*((a, b) if left else (b, a)), target=name)


HEAD = 'name = "my.unit"\nmaturity = "assumed"\nevidence = "-"\nsource = "-"\n'


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ('[rules.fp8]\nkind = "Fused"\ngroup = 32\nalign_bits = 13\n[rules.f8f6f4]\n'
         'kind = "Fused"\ngroup = 16\nalign_bits = 25\n', "fp8 and f8f6f4 both have"),
        ('[rules.fp32]\nkind = "Fused"\ngroup = 4\nalign_bits = 24\n', "at most 16 bits"),
        ('[rules.fp8]\nkind = ["Fused"]\n', "kind is one of"),
        ('[rules.tf32]\nkind = "TwoStage"\ngroup = 4\nsum_bits = 10\n', "sum_bits"),
        ('[rules.fp8]\nkind = "Fused"\ngroup = 4\nalign_bits = 24\naccumulator = "halves"\n',
         "halves"),
    ],
)  # fmt: skip
def test_toml_contradictions(tmp_path, rules, message):
    path = tmp_path / "unit.toml"
    path.write_text(HEAD + rules)
    with pytest.raises(ns.NumsimError, match=message):
        Target.from_toml(path)


def test_words_of_one_rule_do_not_contradict_another(tmp_path):
    path = tmp_path / "unit.toml"
    path.write_text(
        HEAD + '[rules.bf16]\nkind = "Mac"\nfused = true\n'
        '[rules.fp16]\nkind = "Mac"\nproduct_format = "float16"\n'
    )
    assert Target.from_toml(path).rule("fp16").product_format == "float16"


def test_rows_of_unequal_length_and_masks_are_refused():
    uneven, words = [[1], [2, 3]], r"from_codes: \w*codes: the input makes no array"
    with pytest.raises(ns.NumsimError, match=words):
        ns.QTensor.from_codes(uneven, "e4m3")
    with pytest.raises(ns.NumsimError, match=words):
        ns.QTensor.from_codes([[1]], "e4m3", scale_codes=uneven, scale_format="e8m0")
    a = ns.QTensor.from_codes([[56]], "e4m3")
    masked = np.ma.masked_array(np.float32([[1]]), mask=[[True]])
    for c, words in ((uneven, "makes no array"), (masked, "would lose its mask")):
        with pytest.raises(ns.NumsimError, match=rf"c has the shape of the result.*{words}"):
            ns.matmul(a, a, target="ideal.fp32", c=c)


def test_a_unit_with_no_plain_class_says_what_it_has():
    rules = (("fp8->float16", Fused(8, 20)), ("mx:fp4", ScaledFp4()))
    unit = ns.Target("my.unit", rules, "definition", "none", "me")
    a = ns.QTensor.from_codes([[56]], "e4m3")
    with pytest.raises(ns.UnsupportedError, match=r"it has only fp8->float16, mx:fp4 \(mx: with"):
        ns.matmul(a, a, target=unit)
    assert ns.matmul(a, a, target=unit, out_format="float16") == 1


@pytest.mark.parametrize(
    ("target", "fmt", "words"),
    [
        ("ideal.int", "e4m3", "integer: every integer and fixed-point format; quantise"),
        ("x86.vpdpbusd", "int8", "u8s8: a uint8, b int8; quantise"),
        ("ideal.fp32", "int32", "float: every format that float32 holds; quantise"),
        (WGMMA, "int4", "int8: int8, uint8; quantise a and b to formats of one class, or"),
    ],
)
def test_what_a_unit_has_is_said_in_formats(target, fmt, words):
    a = ns.QTensor.from_codes([[1]], fmt)
    with pytest.raises(ns.UnsupportedError, match=words):
        ns.matmul(a, a, target=target)


def test_an_accumulator_that_its_format_does_not_hold_is_pointed_at():
    a = ns.QTensor.from_codes(np.full((2, 1), 0x38), "e4m3")
    unit = ns.get_target("ideal.mac", acc_format="float16")
    c = np.float32([[1, np.nan], [1 + 2.0**-20, 1e6]])
    words = r"float16; 2 of 4 are not, the first is 1\.000001 at index \(1, 0\); cast"
    with pytest.raises(ns.NumsimError, match=words):
        ns.matmul(a, a.T, target=unit, c=c)


def test_a_unit_has_rules():
    with pytest.raises(ns.NumsimError, match="mine: a unit has a rule for each operand class"):
        ns.get_target(ns.Target("mine", (), "definition", "none", "me"))


def test_flags_may_be_of_numpy():
    unit = ns.get_target("nvidia.hopper.wgmma", zero_products=np.True_)
    assert unit.rule("fp8").zero_products is True


def test_a_target_put_together_by_hand_is_checked_too():
    unit = ns.Target("mine", (("float", Fused(32, 25)),), "assumed", "none", "none")
    a = ns.QTensor.from_codes(np.full((1, 4), 0x38, np.uint8), "float8_e4m3fn")
    with pytest.raises(ns.NumsimError, match="mine"):
        ns.matmul(a, a.T, target=unit)


def test_turings_m8n8k4_is_voltas():
    unit = ns.get_target("nvidia.turing.mma", group=4)
    volta = ns.get_target("nvidia.volta.mma")
    for kind in ("fp16", "fp16->float16"):
        assert unit.rule(kind) == volta.rule(kind)
    assert label(unit) == "nvidia.turing.mma (group=4)"
    assert ns.get_target(ns.get_target("nvidia.turing.mma"), group=4) == unit
    assert ns.get_target("nvidia.turing.mma", group=4, align_bits=20).rule("fp16").align_bits == 20
    assert ns.get_target("nvidia.turing.mma", group=16).rule("fp16").align_bits == 24


@pytest.mark.parametrize(
    ("unit", "float32", "float16"),
    [
        ("nvidia.volta.mma", -131, -19), ("nvidia.turing.mma", -132, -20),
        ("nvidia.ampere.mma", -132, -20), ("nvidia.ada.mma", -132, -20),
        ("nvidia.hopper.mma", -133, -21), ("nvidia.hopper.wgmma", -133, -21),
        ("nvidia.blackwell.mma", -133, -21), ("nvidia.blackwell.tcgen05", -133, -21),
        ("nvidia.rtx_blackwell.mma", -133, -21),
    ],
)  # fmt: skip
def test_the_least_exponent_goes_by_the_result(unit, float32, float16):
    rules = dict(ns.get_target(unit).rules)
    fused = {kind: rule for kind, rule in rules.items() if isinstance(rule, Fused)}
    assert {"fp16", "fp16->float16"} <= set(fused)
    for kind, rule in fused.items():
        assert not rule.zero_products
        assert rule.min_exponent == (float16 if kind.endswith("->float16") else float32)
        assert "->" in kind or "float16" not in rule.outputs or f"{kind}->float16" in fused
    if "mx:fp4" in rules:
        assert rules["mx:fp4"].min_exponent == -139


FP4, E8M0 = "float4_e2m1fn", "float8_e8m0fnu"


def scaled(fmt, scale, block, transposed=False):
    codes = np.full((64, 2) if transposed else (2, 64), 2, np.uint8)
    axis = 0 if transposed else 1
    of = [2, 2]
    of[axis] = 64 // block
    return ns.QTensor.from_codes(
        codes, fmt, scale_codes=np.full(of, 0x38, np.uint8), scale_format=scale, block=block,
        axis=axis,
    )  # fmt: skip


@pytest.mark.parametrize("unit", ["nvidia.blackwell.tcgen05", "nvidia.rtx_blackwell.mma"])
@pytest.mark.parametrize(
    ("kind", "fmt", "scale", "block", "operands"),
    [
        (None, FP4, E8M0, 32, "mx:fp4"), ("mxf4", FP4, E8M0, 32, "mx:fp4"),
        ("mxf4nvf4", FP4, E8M0, 32, "mx:fp4"), ("mxf4nvf4", FP4, E8M0, 16, "mx:fp4"),
        ("mxf4nvf4", FP4, "float8_e4m3fn", 16, "mx:fp4"),
        ("mxf8f6f4", FP4, E8M0, 32, "mx:f8f6f4"),
        ("mxf8f6f4", "float8_e5m2", E8M0, 32, "mx:f8f6f4"),
        ("mxf4", FP4, E8M0, 16, None), ("mxf4", FP4, "float8_e4m3fn", 16, None),
        ("mxf8f6f4", FP4, E8M0, 16, None), ("mxf8f6f4", FP4, "float8_e4m3fn", 16, None),
        ("mxf4", "float8_e5m2", E8M0, 32, None), ("mxf4nvf4", "float6_e3m2fn", E8M0, 32, None),
    ],
)  # fmt: skip
def test_kinds_of_block_scaled_products(unit, kind, fmt, scale, block, operands):
    target = ns.get_target(unit, kind=kind)
    a, b = scaled(fmt, scale, block), scaled(fmt, scale, block, transposed=True)
    if operands is None:
        with pytest.raises(ns.UnsupportedError, match=rf"kind '{kind}' multiplies .* leave kind"):
            ns.matmul(a, b, target=target)
        return
    assert ns.plan(target, a, b).operands == operands
    again = ns.Target.from_tables(tomllib.loads(target.to_toml()))
    assert again == target
    np.testing.assert_array_equal(ns.matmul(a, b, target=again), ns.matmul(a, b, target=target))


def test_a_kind_without_scales_or_without_a_unit():
    unit = ns.get_target("nvidia.blackwell.tcgen05", kind="mxf8f6f4")
    assert label(unit) == "nvidia.blackwell.tcgen05 (kind=mxf8f6f4)"
    a = ns.quantize(np.ones((2, 32), np.float32), "float8_e4m3fn")
    with pytest.raises(ns.UnsupportedError, match=r"with other scales or none"):
        ns.matmul(a, a.T, target=unit)
    with pytest.raises(ns.NumsimError, match="mx:fp4, block scales inside the unit"):
        ns.get_target("nvidia.hopper.wgmma", kind="mxf4")
    with pytest.raises(ns.NumsimError, match="one of mxf8f6f4, mxf4, mxf4nvf4"):
        ns.get_target("nvidia.blackwell.tcgen05", kind="mxfp4")
