"""A Format of one's own is that Format wherever it goes; only the table's go by a name alone."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

import numsim as ns
from numsim.formats import kept_format, table_name
from numsim.targets.plan import class_for
from numsim.targets.table import label

E4M3 = ns.get_format("float8_e4m3fn")
SMALL = replace(E4M3, bias=10)  # the table's name, an eighth of its values: max 56
MINE = ns.Format("mine", "float", 8, 4, 10, nan="all_ones", source="notebook, page 3")


def test_quant_keeps_a_format_that_has_the_name_of_another():
    # max 448 * 2**(7 - 10) = 56; amax 7 gives scale 1/8, codes of 56 and 8
    assert ns.Quant(SMALL).fmt.max == 56.0
    assert ns.Quant(SMALL).fmt is SMALL
    q = ns.quantize(np.float32([7.0, 1.0]), SMALL)
    assert q.scale == np.float32(0.125)
    assert q.codes.tolist() == [0x7E, 0x68]  # 8 = 2**3: exponent field 3 + 10 = 13
    assert q.dequantize().tolist() == [7.0, 1.0]


@pytest.mark.parametrize("fmt", [SMALL, MINE], ids=["name of another", "new name"])
def test_quants_of_different_formats_differ(fmt):
    assert ns.Quant(fmt) != ns.Quant(E4M3)
    assert ns.Quant(fmt) == ns.Quant(replace(fmt))
    assert len({ns.Quant(SMALL), ns.Quant(MINE), ns.Quant(E4M3), ns.Quant("e4m3")}) == 3


def test_the_tables_formats_go_by_their_canonical_name():
    assert ns.Quant(E4M3).format == ns.Quant("e4m3").format == "float8_e4m3fn"
    assert kept_format(replace(E4M3, source="elsewhere")) == "float8_e4m3fn"  # means the same
    assert kept_format(ns.Format("e4m3", "float", 8, 4, 7, nan="all_ones")) == "float8_e4m3fn"
    assert kept_format(ns.Format("e4m3", "float", 8, 4, 8, nan="all_ones")) != "float8_e4m3fn"


@pytest.mark.parametrize(
    "change",
    [{"bias": 8}, {"signed": False, "precision": 5}, {"nan": "none"}, {"nan": "minus_zero"},
     {"inf": "top"}, {"precision": 3}, {"bits": 7}],
    ids=str,
)  # fmt: skip
def test_every_field_of_the_meaning_counts(change):
    other = replace(E4M3, **change)
    assert other != E4M3
    assert table_name(other) == ""
    assert other.label.startswith("float8_e4m3fn (")
    recipe, plain = (ns.Recipe.uniform(f, target="ideal.fp32") for f in (other, E4M3))
    assert recipe != plain
    assert recipe.digest() != plain.digest()


def test_the_sign_of_a_zero_in_a_table_counts():
    nf4 = ns.get_format("nf4")
    other = replace(nf4, table=tuple(-0.0 if v == 0 else v for v in nf4.table))
    assert other != nf4
    assert ns.cast(np.float32([0.0]), nf4).tobytes() != ns.cast(np.float32([0.0]), other).tobytes()


def test_a_copied_nan_is_the_same_nan():
    table = ns.Format("t", "table", 2, 2, 0, nan="minus_zero", table=(0.0, 1.0, math.nan, -1.0))
    for made in (pickle.loads(pickle.dumps(table)), copy.deepcopy(table)):
        assert made == table
        assert ns.Quant(made) == ns.Quant(table)
    posit = ns.get_format("posit8_es1")
    assert pickle.loads(pickle.dumps(posit)) is posit


def test_caches_of_conversion_do_not_mix_formats_of_one_name():
    x = np.float32([0.01, 0.3, 3.0, 30.0, 300.0])
    want = [ns.cast(x, f).tolist() for f in (replace(E4M3, name="a"), replace(SMALL, name="b"))]
    assert [ns.cast(x, f).tolist() for f in (E4M3, SMALL, E4M3)] == [want[0], want[1], want[0]]
    assert ns.cast(np.float32([300.0]), SMALL) == 56.0


def test_a_replaced_tensor_keeps_nothing_of_the_old_codes():
    q = ns.QTensor.from_codes([[0x38]], "e4m3")
    for used in (False, True):
        if used:
            q.values()
        other = replace(q, fmt=SMALL)
        assert q.values().item() == 1.0
        assert other.values().item() == 0.125


# --- files


@pytest.mark.parametrize(
    "fmt",
    [SMALL, MINE, ns.get_format("q3.4"), ns.get_format("nf4"), ns.get_format("posit8_es2"),
     ns.get_format("float8_e8m0fnu"), ns.get_format("uint8"), ns.get_format("p3109_k6p3se"),
     ns.Format('a "b" \\ c', "integer", 4, 3, -2)],
    ids=lambda f: f.label,
)  # fmt: skip
def test_toml_reads_back_the_same_format(fmt, tmp_path):
    file = tmp_path / "f.toml"
    file.write_text(fmt.to_toml(), encoding="utf-8")
    again = ns.Format.from_toml(file)
    assert again == fmt
    assert again.source == fmt.source
    assert ns.get_format(file) == ns.get_format(str(file)) == fmt
    assert ns.encode(0.25, str(file)) == ns.encode(0.25, fmt)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "m"\nkind = "float"\nbits = 8', "needs precision, bias"),
        (MINE.to_toml() + "baised = 3", "no field 'baised'.*did you mean .*bias"),
        (MINE.to_toml().replace("bits = 8", "bits = 99"), "bits is 1 to 32"),
        (MINE.to_toml().replace("bits = 8", "bits = '8'"), "bits is an int"),
        ("name = ", "not TOML"),
        ('name = "a\\nb"\nkind = "float"\nbits = 8\nprecision = 4\nbias = 7', "one line"),
    ],
)
def test_a_format_file_that_is_none(text, words, tmp_path):
    file = tmp_path / "f.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ns.NumsimError, match=words) as caught:
        ns.get_format(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_format_file_that_is_not_there():
    with pytest.raises(ns.NumsimError, match=r"cannot read none.toml"):
        ns.quantize([1.0], "none.toml")


# --- recipes


@pytest.mark.parametrize("fmt", [SMALL, MINE], ids=["name of another", "new name"])
def test_a_recipe_carries_the_format_itself(fmt, tmp_path):
    recipe = ns.Recipe.uniform(ns.Quant(fmt, "per_channel"), activations=fmt, target="ideal.fp32")
    file = tmp_path / "r.toml"
    file.write_text(recipe.to_toml(), encoding="utf-8")
    again = ns.Recipe.from_toml(file)
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert again.rule("layers.0.q_proj").weights.fmt.max == 56.0


def test_a_recipe_names_files_of_formats_and_units_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(SMALL.to_toml(), encoding="utf-8")
    (tmp_path / "unit.toml").write_text(
        ns.get_target("ideal.mac", acc_format=MINE).to_toml(), encoding="utf-8"
    )
    file = tmp_path / "r.toml"
    file.write_text(
        '[[rule]]\nmatch = "*"\nactivations = "mine.toml"\n'
        'weights = {format = "mine.toml", granularity = "per_channel"}\n'
        'target = {name = "ideal.mac", acc_format = "mine.toml"}\n'
        '[[rule]]\nmatch = "lm_head"\ntarget = "unit.toml"\n',
        encoding="utf-8",
    )
    monkeypatch.chdir("/")
    recipe = ns.Recipe.from_toml(file)
    rule = recipe.rule("qk")
    assert rule.activations == ns.Quant(SMALL)
    assert rule.weights == ns.Quant(SMALL, "per_channel")
    assert rule.target == ns.get_target("ideal.mac", acc_format=SMALL)
    assert recipe.rule("lm_head").target == ns.get_target("ideal.mac", acc_format=MINE)
    (tmp_path / "again.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert ns.Recipe.from_toml(tmp_path / "again.toml") == recipe


def test_where_only_a_name_can_be_written_others_are_refused():
    narrow = replace(ns.get_format("float16"), bias=14)
    a = ns.QTensor.from_codes([[0x38]], "e4m3")
    for call in (
        lambda: ns.Rule(out_format=narrow),
        lambda: ns.matmul(a, a, target="ideal.mac", out_format=narrow),
        lambda: ns.epilogue(np.float32([1.0]), alpha=1.0, out_format=SMALL),
        lambda: ns.encode(1.0, SMALL, rounding="sr", sr="nvidia.cvt.rs"),
        lambda: ns.Quant("e4m3", scale_format=narrow),
    ):
        with pytest.raises(ns.NumsimError, match=r"\((bias=|'float16')"):
            call()


# --- units


def test_units_compare_formats_not_names():
    q = ns.quantize(np.full((2, 32), 7.0, np.float32), SMALL)  # scale 1/8, codes of 56
    with pytest.raises(ns.UnsupportedError, match=r"does not multiply float8_e4m3fn \(bias=10\)"):
        ns.matmul(q, q.T, target="nvidia.hopper.wgmma")
    unsigned, signed = (replace(ns.get_format(f), bias=1) for f in ("uint8", "int8"))
    with pytest.raises(ns.UnsupportedError):
        class_for(ns.get_target("x86.vpdpbusd"), unsigned, signed)
    assert class_for(ns.get_target("x86.vpdpbusd"), ns.get_format("uint8"), ns.get_format("int8"))
    assert ns.matmul(q, q.T, target="ideal.fp32").tolist() == [[1568.0] * 2] * 2  # 32 * 49


def test_scales_inside_a_unit_are_those_it_has():
    codes = np.full((1, 32), 0x38, np.uint8)
    scale = replace(ns.get_format("float8_e8m0fnu"), bias=126)

    def tensor(fmt):
        return ns.QTensor.from_codes(codes, "e4m3", scale_codes=[[127]], scale_format=fmt, block=32)

    a, own = tensor("float8_e8m0fnu"), tensor(scale)
    # 32 ones; a scale of one's own is 2**(127 - 126) on each side, and stays outside the unit
    assert ns.matmul(a, a.T, target="nvidia.blackwell.tcgen05").item() == 32.0
    assert ns.matmul(own, own.T, target="nvidia.blackwell.tcgen05").item() == 128.0


@pytest.mark.parametrize("fmt", [SMALL, MINE], ids=["name of another", "new name"])
def test_a_unit_with_a_format_of_ones_own(fmt, tmp_path):
    unit = ns.get_target("ideal.mac", acc_format=fmt, product_format=fmt)
    file = tmp_path / "unit.toml"
    file.write_text(unit.to_toml(), encoding="utf-8")
    assert ns.Target.from_toml(file) == unit
    assert fmt.label in label(unit)
    # 1 + 1 + 1/64 by hand: 2, then 2 + 1/64 rounds to 2 with 3 fraction bits
    a = ns.quantize(np.float32([[1.0, 1.0, 2.0**-6]]), ns.Quant("float32", "none"))
    b = ns.quantize(np.ones((3, 1), np.float32), ns.Quant("float32", "none"))
    assert ns.matmul(a, b, target=unit).item() == 2.0
    assert ns.matmul(a, b, target=unit, stats=True)[0].item() == 2.0
    ns.export_vectors(tmp_path / "v", a, b, target=unit)
    lines = (tmp_path / "v" / "accumulator.hex").read_text().splitlines()
    assert lines[1:] == ["50", "58", "58"]  # 1 = 2**(10 - 10): 10 << 3; 2: 11 << 3
    meta = json.loads(str(np.load(tmp_path / "v" / "vectors.npz")["meta"]))
    assert meta["arrays"]["accumulator"]["format"] == fmt.label


def test_a_unit_takes_formats_by_any_spelling():
    unit = ns.get_target("ideal.mac", acc_format=E4M3)
    assert unit == ns.get_target("ideal.mac", acc_format="float8_e4m3fn")
    assert unit == ns.get_target("ideal.mac", acc_format=np.dtype("float16"), product_format=None
                                 ).changed(acc_format="float8_e4m3fn")  # fmt: skip
    with pytest.raises(ns.NumsimError, match=r"ideal.mac: acc_format: a format is a name"):
        ns.get_target("ideal.mac", acc_format=5)
    with pytest.raises(ns.NumsimError, match=r"ideal.mac: acc_format: unknown format"):
        ns.get_target("ideal.mac", acc_format="e4m33")


# --- results


def test_labels_say_what_a_name_does_not():
    assert E4M3.label == str(E4M3) == "float8_e4m3fn"
    assert SMALL.label == "float8_e4m3fn (bias=10)"
    assert MINE.label == "mine (kind=float, bits=8, precision=4, bias=10, nan=all_ones)"
    assert repr(E4M3) == "Format('float8_e4m3fn')"
    assert eval(repr(SMALL), {"Format": ns.Format}) == SMALL
    wide = replace(ns.get_format("posit16_es1"), name="wide")
    other = replace(wide, table=(*wide.table[:-1], -0.0))
    assert wide.label != other.label
    assert len(wide.label) < 150
    assert "bias=10" in repr(ns.quantize([1.0], SMALL))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "mine"])
def test_a_sweep_takes_a_format_file_and_its_rows_say_so(name, tmp_path):
    # e2m1 under the name of another: bits, precision and bias of FP4
    own = ns.Format(name, "float", 4, 2, 1)
    file = tmp_path / "own.toml"
    file.write_text(own.to_toml(), encoding="utf-8")
    spec = {
        "formats": [str(file), "float4_e2m1fn"], "targets": ["ideal.fp32"],
        "granularities": ["per_tensor"], "limit_tokens": 32, "out": str(tmp_path / "o.csv"),
    }  # fmt: skip
    rows = ns.sweep(spec)
    whole = rows[rows.layer == "all"]
    assert whole.weight_format.tolist() == [own.label, "float4_e2m1fn"]
    assert whole.case_id.nunique() == 2
    kl = whole.kl_nats.tolist()
    assert kl[0] == kl[1]  # the same values under both names
    read = ns.sweep(spec | {"resume": True})
    assert read[read.layer == "all"].weight_format.tolist() == whole.weight_format.tolist()


@pytest.mark.parametrize("value", [10**400, (1 << 54) + 1])
def test_a_table_holds_what_float64_holds(value):
    with pytest.raises(ns.NumsimError, match="numbers that float64 has"):
        ns.Format("t", "table", 1, 1, 0, table=(0, value))


def test_a_format_file_that_never_ends_is_not_read():
    with pytest.raises(ns.NumsimError, match="is a device"):
        ns.Format.from_toml("/dev/zero")


@pytest.mark.parametrize("read", [ns.Format.from_toml, ns.Target.from_toml])
def test_a_number_of_thousands_of_digits_in_a_file(read, tmp_path):
    file = tmp_path / "x.toml"
    file.write_text(f"bits = {'9' * 5000}", encoding="utf-8")
    with pytest.raises(ns.NumsimError, match="not TOML"):
        read(file)
