"""Networks changed before they are quantised: the same outputs, fewer outliers."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

import numsim as ns
from numsim.models import load_model
from numsim.models.named import NAMED, list_recipes, named_recipe, recipe_lines
from numsim.models.prepare import prepare, rotated, rounded, smoothed
from numsim.models.recipe import recipe_from_tables

ORACLE = Path(__file__).parents[1] / "data" / "oracle"
TOKENS = np.random.default_rng(3).integers(3, 60, (2, 24))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma", "mixtral"])
def test_a_rotated_residual_stream_gives_the_same_logits(family):
    model = load_model(ORACLE / family)
    want = model.run(TOKENS).logits
    for seed in (0, None):
        got = rotated(model, seed=seed).run(TOKENS).logits
        assert np.abs(got - want).max() < 1e-9 * max(np.abs(want).max(), 1)


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt", "gpt2", "gemma"])
def test_smoothing_gives_the_same_logits(family):
    model = load_model(ORACLE / family)
    want = model.run(TOKENS).logits
    got = smoothed(model, TOKENS, alpha=0.6).run(TOKENS).logits
    assert np.abs(got - want).max() < 1e-9 * max(np.abs(want).max(), 1)


@pytest.mark.parametrize(
    ("family", "words"),
    [("gpt2", "attn_norm, whose kind is layer"), ("bert", "norms that are post"),
     ("gemma2", "norms that are sandwich"), ("t5", "two stacks")],
)  # fmt: skip
def test_a_structure_that_no_rotation_passes(family, words):
    with pytest.raises(ns.NumsimError, match=f"{words}.*Rule\\(rotate=128\\)"):
        rotated(load_model(ORACLE / family))


def test_a_rotated_product_is_the_product():
    model = load_model(ORACLE / "llama")
    plain = model.run(TOKENS, named_recipe("w8a8")).logits
    exact = model.run(TOKENS).logits
    rule = ns.Rule("int8", "int8", "ideal.int", rotate=16)
    turned = model.run(TOKENS, ns.Recipe((("*", ns.Rule()), ("*_proj", rule)))).logits
    assert np.abs(turned - exact).max() < 4 * np.abs(plain - exact).max()
    float_rule = ns.Rule(rotate=16)
    same = model.run(TOKENS, ns.Recipe((("*", ns.Rule()), ("*_proj", float_rule),
                                        ("*qk", float_rule)))).logits  # fmt: skip
    np.testing.assert_allclose(same, exact, atol=1e-4 * np.abs(exact).max())


def test_gptq_is_nearer_than_rounding():
    model = load_model(ORACLE / "llama")
    quant = ns.Quant("int4", block=16)
    exact = model.run(TOKENS).logits
    nearest = model.run(TOKENS, ns.Recipe.uniform(None, weights=quant, target="ideal.fp32")).logits
    for how in ({}, {"act_order": True}, {"rotate_by": 16}):
        got = rounded(model, TOKENS, quant, **how).run(TOKENS).logits
        assert ((got - exact) ** 2).mean() < ((nearest - exact) ** 2).mean()


@pytest.mark.parametrize("name", list_recipes())
def test_list_recipes_run_and_are_their_toml(name):
    model = prepare(load_model(ORACLE / "llama"), name, TOKENS)
    recipe = named_recipe(name, target="ideal.fp32")
    logits = model.run(TOKENS[:, :8], recipe).logits
    assert np.isfinite(logits).all()
    again = recipe_from_tables(tomllib.loads(named_recipe(name).to_toml()), "text")
    assert again == named_recipe(name)
    if name in NAMED:
        assert NAMED[name].source in recipe_lines(name)[0]


def test_a_static_scale_is_used_and_part_of_the_text():
    rule = ns.Rule(ns.Quant("int8", scale=0.5), "int8", "ideal.int")
    recipe = ns.Recipe((("*", ns.Rule()), ("*_proj", rule)))
    assert 'activations = {format = "int8", scale = 0.5}' in recipe.to_toml()
    assert recipe_from_tables(tomllib.loads(recipe.to_toml()), "text") == recipe
    model = load_model(ORACLE / "llama")
    one = model.run(TOKENS, recipe).logits
    other = model.run(TOKENS, ns.Recipe((("*", ns.Rule()), ("*_proj", ns.Rule(
        "int8", "int8", "ideal.int"))))).logits  # fmt: skip
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rotate": 22}, "use 20 or 24"),
        ({"outliers": 6.0, "weights": "int8"}, "its own int8 storage"),
        ({"outliers": -1}, "positive number"),
    ],
)
def test_steps_that_cannot_be(fields, words):
    with pytest.raises(ns.NumsimError, match=words):
        ns.Rule(**fields)


def test_outliers_are_for_stored_matrices():
    recipe = ns.Recipe((("*", ns.Rule(outliers=6.0)),))
    with pytest.raises(ns.NumsimError, match="multiplies two activations"):
        load_model(ORACLE / "llama").run(TOKENS, recipe)


def test_a_name_that_no_recipe_has():
    with pytest.raises(ns.NumsimError, match="did you mean w8a8"):
        named_recipe("w8a88")
    with pytest.raises(ns.NumsimError, match="give tokens"):
        prepare(load_model(ORACLE / "llama"), "smoothquant_w8a8")
