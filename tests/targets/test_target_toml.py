"""Units in TOML: round trips, use, and one clear error for everything that is wrong."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from typing import get_args

import numpy as np
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.sweep.cases import cases
from numsim.targets.explain import explain_mma
from numsim.targets.rules import RULES
from numsim.targets.types import Mac, Maturity, Rule, Target
from numsim.targets.words import MATURITIES, UNIT_FIELDS, field_words

HEAD = 'name = "my.unit"\nmaturity = "assumed"\nevidence = "none"\nsource = "me"\n'
FUSED = '[rules.fp8]\nkind = "Fused"\ngroup = 8\nalign_bits = 20\n'
pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")


@pytest.mark.parametrize("name", ns.list_targets())
def test_round_trip(name, tmp_path):
    unit = ns.get_target(name)
    path = tmp_path / "unit.toml"
    path.write_text(unit.to_toml(), encoding="utf-8")
    assert ns.Target.from_toml(path) == unit
    assert ns.get_target(str(path)) == ns.get_target(path) == unit


@pytest.mark.parametrize("name", ns.list_targets())
def test_comments_say_every_field(name):
    unit = ns.get_target(name)
    done = CliRunner().invoke(app, ["targets", name, "--toml"])
    assert Target.from_tables(tomllib.loads(done.stdout)) == unit
    page = CliRunner().invoke(app, ["targets", name]).stdout
    assert f"  {unit.maturity} " in page.partition("what the words mean")[2]
    for kind in {type(rule) for _, rule in unit.rules}:
        for f in fields(kind):
            words = field_words(kind, f.name)
            assert f"  # {words}\n" in done.stdout
            assert re.search(rf"^    {f.name} +{re.escape(words)}$", page, re.MULTILINE)


def test_words_are_of_fields_that_exist():
    assert set(RULES) == set(get_args(Rule))
    assert set(MATURITIES) == set(get_args(Maturity))
    for rule, about in RULES.items():
        assert set(about.fields) == set(about.limits) == {f.name for f in fields(rule)}
    assert set(UNIT_FIELDS) == {f.name for f in fields(ns.Target)}


def test_changed_unit_round_trips():
    unit = ns.get_target(
        "nvidia.hopper.wgmma", promote_every=128, split_k=4, split_order="pairwise", group=16,
        min_exponent=-133, zero_products=True,
    )  # fmt: skip
    assert Target.from_tables(tomllib.loads(unit.to_toml())) == unit
    unit = ns.get_target(
        "ideal.mac", product_format="float_e5m10", fused=False, order="tree", group=4
    )
    assert Target.from_tables(tomllib.loads(unit.to_toml())) == unit


def test_matmul_takes_a_path(tmp_path):
    path = tmp_path / "unit.toml"
    path.write_text(HEAD + FUSED, encoding="utf-8")
    a = ns.quantize(np.ones((2, 16)), "e4m3")
    b = ns.quantize(np.ones((16, 2)), "e4m3")
    want = ns.matmul(a, b, target=ns.get_target("nvidia.blackwell.tcgen05", group=8, align_bits=20))
    np.testing.assert_array_equal(ns.matmul(a, b, target=str(path)), want)
    assert ns.get_target(path, align_bits=9).rule("fp8").align_bits == 9


def mac(lines, kind="fp16"):
    return f'{HEAD}[rules.{kind}]\nkind = "Mac"\n{lines}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FUSED, "needs name, maturity, evidence, source"),
        (HEAD, "none came"),
        (HEAD + "rules = 3\n", "none came"),
        (HEAD + "[rules]\nfp8 = 3\n", "is a table of kind"),
        (HEAD.replace("assumed", "asumed") + FUSED, "did you mean assumed"),
        (HEAD.replace('"me"', "3") + FUSED, "source is a text on one line; got 3"),
        (HEAD + "promot_every = 3\n" + FUSED, "did you mean promote_every"),
        (HEAD + 'promote_every = "3"\n' + FUSED, "promote_every is 1 to"),
        (HEAD + 'split_order = "serial"\n' + FUSED, "split_k is 1"),
        (HEAD + FUSED.replace("fp8", "fp9"), "did you mean fp8"),
        (HEAD + FUSED.replace("fp8", '"mx:number"'), "operand class is one of"),
        (HEAD + FUSED.replace("fp8", '"fp8->bfloat16"'), "operand class is one of"),
        (HEAD + FUSED.replace("Fused", "Fuzed"), "did you mean Fused"),
        (HEAD + FUSED.replace('kind = "Fused"\n', ""), "kind is one of"),
        (HEAD + FUSED.replace("group = 8\n", ""), "Fused needs group"),
        (HEAD + FUSED.replace("align_bits", "align_bit"), "did you mean align_bits"),
        (HEAD + FUSED.replace("group = 8", "group = 8.5"), "group is 1 to"),
        (HEAD + FUSED.replace("group = 8", "group = true"), "group is 1 to"),
        (HEAD + FUSED.replace("20", "60"), "align_bits is 1 to 35, a whole number; got 60"),
        (HEAD + FUSED.replace("fp8", "int8"), "take Exact, Mac, IntSum; got Fused"),
        (HEAD + FUSED.replace("fp8", "number"), "take Exact"),
        (HEAD + FUSED.replace("fp8", "float"), "take Exact, Mac; got Fused"),
        (HEAD + FUSED + 'accumulator = "halves"\n', "name the class"),
        (HEAD + '[rules."mx:fp8"]\nkind = "ScaledFp4"\n', "take Exact, Fused; got ScaledFp4"),
        (HEAD + '[rules.fp16]\nkind = "IntSum"\n', "got IntSum"),
        (HEAD + '[rules.int8]\nkind = "IntSum"\npair_bits = 16\n', "group is odd"),
        (HEAD + '[rules.fp16]\nkind = "TwoStage"\ngroup = 8\nsum_bits = 20\n', "at least align"),
        (mac('fused = true\nproduct_format = "float16"'), "keep one"),
        (mac("group = 4"), "order is sequential"),
        (mac('acc_format = "posit8_es1"'), "a signed float of 2 to 24 bits of precision"),
        (mac('acc_format = "flot16"'), "my.unit: acc_format: unknown format"),
        (mac("acc_format = 3"), "my.unit: acc_format: a format is a name"),
        (HEAD + FUSED.replace("fp8", '"mx:int8"'), "Fused aligns floats of one class; int8"),
        (HEAD + FUSED.replace("fp8", '"int8->float16"'), "aligns floats of one class; int8"),
        (HEAD + FUSED.replace("fp8", '"float->float16"'), "aligns floats of one class; float"),
        (HEAD.replace("my.unit", " ") + FUSED, "name is a text on one line; got ' '"),
        (HEAD.replace("my.unit", "a\\nb") + FUSED, "name is a text on one line"),
        ("a = " + "[" * 5000 + "]" * 5000, "not TOML"),
        (mac('rounding = "sr"'), "rounding is one of"),
        (mac('fused = "no"'), "fused is True or False"),
        ("name = ", "not TOML"),
    ],
)  # fmt: skip
def test_one_clear_error(text, words, tmp_path):
    path = tmp_path / "unit.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ns.NumsimError) as error:
        ns.Target.from_toml(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ns.NumsimError, match=r"cannot read .*missing\.toml"):
        ns.get_target("missing.toml")
    with pytest.raises(ns.NumsimError, match="cannot read"):
        ns.Target.from_toml(tmp_path)
    with pytest.raises(ns.NumsimError, match="null byte"):
        ns.get_target("a\0.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ns.NumsimError, match="UTF-8"):
        ns.Target.from_toml(tmp_path / "latin.toml")


def test_a_group_that_a_unit_must_have_is_not_none():
    for name in ("nvidia.hopper.wgmma", "ideal.int"):
        with pytest.raises(ns.NumsimError, match="group is 1 to"):
            ns.get_target(name, group=None)


def test_a_sweep_takes_a_unit_from_a_file(tmp_path):
    path = tmp_path / "unit.toml"
    path.write_text(
        ns.get_target("ideal.int").to_toml().replace("ideal.int", "my.unit"), encoding="utf-8"
    )
    rows = ns.sweep(
        {"targets": (str(path), "ideal.int"), "formats": ("int8",), "limit_tokens": 40,
         "granularities": ("per_tensor",)}
    )  # fmt: skip
    whole = rows[rows["layer"] == "all"]
    assert list(whole["target"]) == ["my.unit", "ideal.int"]
    assert whole["perplexity"].nunique() == 1


def test_what_a_sweep_calls_units(tmp_path):
    """A named unit with other fields is not that unit; two of one name go by their files."""
    unit = ns.get_target("ideal.int", acc_bits=20)
    own = unit.to_toml().replace("ideal.int", "my.unit")
    texts = {
        "same": ns.get_target("ideal.int").to_toml(), "narrow": unit.to_toml(), "own": own,
        "again": own, "document": own.replace('"definition"', '"document"'),
        "hopper": ns.get_target("nvidia.hopper.wgmma").to_toml().replace("= 16", "= 8", 1),
    }  # fmt: skip
    paths = {name: str(tmp_path / f"{name}.toml") for name in texts}
    for name, text in texts.items():
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")

    def called(*names):
        spec = ns.SweepSpec(
            formats=("int8",), granularities=("per_tensor",),
            targets=["ideal.int", *(paths[n] for n in names)],
        )  # fmt: skip
        found = cases(spec, model="m", text="t", text_hash="")
        assert len({case.case_id for case in found}) == len(found)
        return [case.target for case in found]

    assert called("same") == ["ideal.int"]
    assert called("narrow", "own", "again") == ["ideal.int", "ideal.int (acc_bits=20)", "my.unit"]
    assert called("own", "document") == ["ideal.int", paths["own"], paths["document"]]
    assert called("hopper") == ["ideal.int", "nvidia.hopper.wgmma (changed)"]
    text = explain_mma(paths["hopper"])
    assert text.startswith("nvidia.hopper.wgmma (changed): ")
    assert "\nsilicon without the changes: " in text
    text = CliRunner().invoke(app, ["targets", paths["narrow"]]).stdout
    assert text.startswith("ideal.int (acc_bits=20)\n  maturity       definition (of ideal.int ")


@pytest.mark.parametrize("name", ["ideal.fp32", "ideal.mac", "generic.systolic"])
def test_rounded_products_are_not_fused(name):
    unit = ns.get_target(name, product_format="bfloat16")
    macs = [rule for _, rule in unit.rules if isinstance(rule, Mac)]
    assert macs
    assert not any(rule.fused for rule in macs)
    assert Target.from_tables(tomllib.loads(unit.to_toml())) == unit


@pytest.mark.parametrize("name", ["ideal.mac", "ideal.exact", "generic.systolic"])
@pytest.mark.parametrize("out_format", ["float32", "float16", "bfloat16"])
def test_a_unit_under_another_name_behaves_the_same(name, out_format):
    """What a unit can do is in its fields, never in its name."""
    other = ns.get_target(name).to_toml().replace(f'"{name}"', '"my.unit"', 1)
    a, b = ns.quantize([[1.0, 2.5]], "e4m3"), ns.quantize([[3.0], [-4.0]], "e4m3")
    ours = ns.matmul(a, b, target=name, out_format=out_format)
    theirs = ns.matmul(a, b, target=Target.from_tables(tomllib.loads(other)), out_format=out_format)
    assert ours.dtype == theirs.dtype
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("outputs", ["[]", '["int8"]', '"float32"'])
def test_outputs_are_a_list_of_formats(outputs):
    text = HEAD + f'[rules.float]\nkind = "Mac"\noutputs = {outputs}\n'
    with pytest.raises(ns.NumsimError, match="outputs is a list of bfloat16, float16, float32"):
        Target.from_tables(tomllib.loads(text))
