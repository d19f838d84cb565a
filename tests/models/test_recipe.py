"""Recipes: the last glob wins, TOML in and out, the resolved recipe of a run, wrong recipes."""

from dataclasses import replace

import numpy as np
import pytest

from numsim.data import bundled_model_dir
from numsim.errors import NumsimError, UnsupportedError
from numsim.models import Recipe, Rule, load_model
from numsim.quant import Quant, quantize
from numsim.targets import get_target, matmul


@pytest.fixture(scope="module")
def model():
    return load_model(bundled_model_dir())


def test_last_glob_wins():
    recipe = Recipe((("*", Rule()), ("layers.?.q_proj", Rule("int8", "int8")), ("*.0.*", Rule())))
    assert recipe.rule("layers.0.q_proj").is_plain
    assert recipe.rule("layers.1.q_proj").weights.format == "int8"
    uniform = Recipe.uniform("int8", target="ideal.fp32", weights=Quant("int4", "per_channel"))
    rule = uniform.rule("layers.3.experts.7.v_proj")
    assert (rule.activations.format, rule.weights.format) == ("int8", "int4")
    for name in ("lm_head", "layers.0.qk", "layers.0.pv", "layers.0.router", "pooler"):
        assert uniform.rule(name).is_plain


FULL = Recipe(
    (
        ("*", Rule()),
        ("*_proj", Rule("mxfp8_e4m3", Quant("int4", "per_channel", rounding="rtz"))),
        ("*.q_proj", Rule("int8", "int8", get_target("ideal.int", acc_bits=24, overflow="wrap"))),
        ("*.k_proj", Rule("e4m3", "e5m2", get_target("nvidia.hopper.wgmma", promote_every=128))),
        ("*.v_proj", Rule(Quant("float16", "none"), Quant("float16", "none"),
                          "nvidia.hopper.wgmma", "float16")),
        ("*.down_proj", Rule(None, Quant("int8", block=(32, 16)), "ideal.fp32")),
        ("*.qk", Rule("q3.4", None)),
    )
)  # fmt: skip


def test_toml_there_and_back(tmp_path, model):
    file = tmp_path / "recipe.toml"
    for recipe in (FULL, FULL.resolve(model.gemm_names())):
        file.write_text(recipe.to_toml())
        again = Recipe.from_toml(file)
        assert again == recipe
        assert again.digest() == recipe.digest()
    file.write_text(
        '[[rule]]\nmatch = "*"\n[[rule]]\nmatch = "*_proj"\nactivations = "int8"\n'
        'weights = {format = "int4", granularity = "per_channel"}\n'
        'target = {name = "ideal.mac", acc_format = "float16"}\n'
    )
    rule = Recipe.from_toml(file).rule("layers.0.up_proj")
    assert rule.target == get_target("ideal.mac", acc_format="float16")
    assert rule.weights == Quant("int4", "per_channel")


def test_a_run_tells_its_resolved_recipe(model):
    recipe = Recipe.uniform("int8", target="ideal.int")
    run = model.run([0, 1, 2], recipe)
    assert [name for name, _ in run.recipe.rules] == list(model.gemm_names())
    assert run.recipe == recipe.resolve(model.gemm_names())
    assert run.recipe.to_toml().count("[[rule]]") == len(model.gemm_names())
    assert np.array_equal(model.run([0, 1, 2], run.recipe).logits, run.logits)
    other = Recipe.uniform("int8", target="ideal.fp32").resolve(model.gemm_names())
    assert len(run.recipe.digest()) == 16
    assert other.digest() != run.recipe.digest()
    assert model.run([0, 1, 2]).recipe is None


def test_the_seed_of_stochastic_rounding(tmp_path, model):
    """In the text and the digest where it is not 0, so that older digests stay."""
    recipe = Recipe.uniform("int8", target="ideal.int", seed=2**32 - 1)
    assert recipe == Recipe(Recipe.uniform("int8", target="ideal.int").rules, 2**32 - 1)
    assert (
        recipe.resolve(model.gemm_names()).seed == model.run([0], recipe).recipe.seed == 2**32 - 1
    )
    file = tmp_path / "recipe.toml"
    file.write_text(recipe.to_toml())
    assert file.read_text().startswith("seed = 4294967295\n\n[[rule]]")
    assert Recipe.from_toml(file) == recipe
    assert Recipe(recipe.rules, 1).digest() != recipe.digest() != Recipe(recipe.rules).digest()
    assert "seed" not in Recipe(recipe.rules).to_toml()
    for bad in (-1, 2**32, 1.5, "1", True):
        with pytest.raises(NumsimError, match="seed is an integer"):
            Recipe(recipe.rules, bad)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("seed = 'x'\n[[rule]]\nmatch='*'", "seed is an integer"),
        ("x = 1", "only"),
        ("", "none"),
        ("rule = []", "none"),
        ("rule = [1, 2]", "tables only"),
        ("[[rule]]\nmatch='*'\nweights=3", "got 3|got int"),
        ("[[rule]]\nmatch='*'\ntarget=3", "got int"),
        ("[[rule]]\nmatch='*'\ntarget={name=3}", "got int"),
        ("[[rule]]\nmatch='*'\nout_format=3", "got int|got 3"),
        ("[[rule]]\nweights = 'int8'", "toml: rule 1: match is required, .*; got none; write"),
        ("[[rule]]\nmatch='*'\n[[rule]]", "rule 2: match is required"),
        ("[[rule]]\nmatch=3", "rule 1: match is required, .*; got 3; write"),
        ("[[rule]]\nmatch='*'\nweight='int8'", "did you mean weights"),
        (
            "[[rule]]\nmatch='*'\n[[rule]]\nmatch='*_proj'\nweights='zz'",
            r"toml: rule 2 \('\*_proj'\): unknown format 'zz'",
        ),
        ("[[rule]]\nmatch='*'\nweights={fmt='int8'}", "fields of Quant"),
        ("[[rule]]\nmatch='*'\nweights='int9q'", "int9q"),
        ("[[rule]]\nmatch='*'\ntarget='nvidia.hoper.wgmma'", "did you mean nvidia.hopper.wgmma"),
        ("[[rule]]\nmatch='*'\ntarget={group=16}", "a target table has name"),
        ("[[rule]]\nmatch='*'\ntarget={name='ideal.int', grup=16}", "has no field 'grup'"),
        ("[[rule", "TOML"),
    ],
)
def test_wrong_toml(tmp_path, text, match):
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(NumsimError, match=match):
        Recipe.from_toml(file)


def test_wrong_recipes(model, tmp_path):
    with pytest.raises(NumsimError, match="cannot read"):
        Recipe.from_toml(tmp_path / "none.toml")
    for recipe, error, match in (
        (Recipe((("layers.*", Rule()),)), NumsimError, "lm_head matches no glob"),
        (Recipe(()), NumsimError, "of none"),
        (
            Recipe((("*", Rule()), ("layer.*", Rule()))),
            NumsimError,
            r"rule 2 \('layer\.\*'\) matches none",
        ),
        (
            Recipe((("*", Rule()), ("*.1.*_proj", Rule("int8", None, "ideal.int")))),
            UnsupportedError,
            r"rule 2 \('\*\.1\.\*_proj'\), for layers\.1\.q_proj: .*ideal\.int does not .*; change",
        ),
        (
            Recipe((("*", Rule("e4m3", "e4m3", "nvidia.hopper.wgmma", "int8")),)),
            NumsimError,
            "int8",
        ),
    ):
        with pytest.raises(error, match=match):
            model.run([0], recipe)
        with pytest.raises(error, match=match):
            model.gemm("lm_head", np.zeros((1, 192)), recipe)
    for rules in ((("*", "int8"),), ("*", Rule()), ((3, Rule()),), 3, (("*",),), "*"):
        with pytest.raises(NumsimError, match="rules are"):
            Recipe(rules)
    assert hash(Recipe([["*", Rule()]])) == hash(Recipe((("*", Rule()),)))
    odd = replace(get_target("ideal.int"), rules=get_target("nvidia.hopper.wgmma").rules)
    assert "unit = " in Recipe((("*", Rule(target=odd)),)).to_toml()


def test_a_unit_of_ones_own_stands_in_the_recipe(tmp_path):
    file = tmp_path / "acme.toml"
    text = get_target("nvidia.hopper.wgmma", align_bits=16).to_toml()
    file.write_text(text.replace('"nvidia.hopper.wgmma"', '"acme.npu1"', 1))
    unit = get_target(file)
    assert unit.name == "acme.npu1"
    by_path = Recipe.uniform("float8_e4m3fn", target=str(file))
    again = tmp_path / "recipe.toml"
    again.write_text(by_path.to_toml())
    read = Recipe.from_toml(again)
    assert get_target(read.rules[-1][1].target) == unit or unit in (
        get_target(rule.target) for _, rule in read.rules
    )
    assert read.digest() == by_path.digest()
    renamed = replace(unit, name="nvidia.hopper.wgmma", rules=unit.rules[:1])
    again.write_text(Recipe.uniform("float8_e4m3fn", target=renamed).to_toml())
    assert renamed in (get_target(rule.target) for _, rule in Recipe.from_toml(again).rules)


def check_round_trip(recipe, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.from_toml(file).to_toml() == recipe.to_toml()
    rules = [get_target(rule.target) for _, rule in Recipe.from_toml(file).rules]
    assert rules == [get_target(rule.target) for _, rule in recipe.rules]


@pytest.mark.parametrize(
    ("name", "changes"),
    [("x86.vpmaddubsw", {"pair_bits": None}), ("arm.bfdot", {"group": None}),
     ("generic.systolic", {"rows": None}), ("ideal.int", {"acc_bits": 20})],
)  # fmt: skip
def test_units_with_fields_unset_are_read_back(tmp_path, name, changes):
    unit = get_target(name, **changes)
    quant = "int8" if "int" in name or name.startswith(("x86", "generic")) else "bfloat16"
    check_round_trip(Recipe((("*", Rule(quant, quant, unit)),)), tmp_path)


def test_a_unit_says_its_evidence_in_any_script(tmp_path):
    unit = replace(get_target("ideal.fp32", group=None), name="mine", evidence="測定 😀 “x”")
    check_round_trip(Recipe((("*", Rule("e4m3", "e4m3", unit)),)), tmp_path)
    with pytest.raises(NumsimError, match="evidence is a text on one line"):
        matmul(*[quantize([[1.0]], "e4m3")] * 2, target=replace(unit, evidence="a\x7fb"))


def test_a_target_table_needs_a_name(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[[rule]]\nmatch = "*"\ntarget = {acc_bits = 20}\n')
    with pytest.raises(NumsimError, match=r"a target table has name .* got acc_bits"):
        Recipe.from_toml(path)


def test_a_unit_within_a_recipe_that_is_no_toml(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[[rule]]\nmatch = "*"\ntarget = {unit = "a = "}\n')
    with pytest.raises(NumsimError, match="unit must be the TOML of a unit"):
        Recipe.from_toml(path)
