"""Where two recipes part on one network, and which field is why."""

import csv
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.diff import ULPS, as_text, diff, write_diff
from numsim.models import Recipe, bundled_model

DATA = Path(__file__).parents[1] / "data"
TOKENS = [5, 17, 256, 1024]


def recipe(target, **how):
    return Recipe.uniform("float8_e4m3fn", target=target, **how)


@pytest.fixture(scope="module")
def found():
    hopper = ns.get_target("nvidia.hopper.wgmma")
    narrow = ns.get_target("nvidia.hopper.wgmma", group=16)
    return diff(bundled_model(), TOKENS, recipe(hopper), recipe(narrow), names=("32", "16"))


def test_the_field_that_differs_explains_everything(found):
    assert [(c.field, c.a, c.b) for c in found.causes] == [("group", "32", "16")] * 2
    assert [c.in_first for c in found.causes] == [True, False]
    assert all(c.explains == 1.0 and c.differing == 0.0 for c in found.causes)


def test_rows_are_those_of_the_products_themselves(found):
    model = bundled_model()
    row = next(r for r in found.products if r.differing)
    assert row.first
    assert sum(r.first for r in found.products) == 1
    name = f"layers.{row.layer}.{row.op}"
    one, two = recipe("nvidia.hopper.wgmma"), recipe(ns.get_target("nvidia.hopper.wgmma", group=16))
    x = model.run(TOKENS, one, taps=[f"{name}.in"]).taps[f"{name}.in"]
    d, e = (model.gemm(name, x, r) for r in (one, two))
    assert row.results == d.size
    assert row.differing == (d.view(np.uint32) != e.view(np.uint32)).mean()
    assert row.k == x.shape[-1]
    assert sum(row.ulp_hist) == pytest.approx(1)
    assert row.ulp_hist[0] == pytest.approx(1 - row.differing)
    assert len(row.ulp_hist) == len(ULPS)


def test_products_that_a_recipe_leaves_alone_are_equal(found):
    assert not any(r.differing for r in found.products if r.op in ("qk", "pv", "lm_head"))


def test_equal_units_are_said_to_be_equal():
    one = recipe("nvidia.blackwell.tcgen05")
    other = recipe("nvidia.rtx_blackwell.mma")
    found = diff(bundled_model(), TOKENS, one, other, names=("a", "b"))
    assert found.equal
    assert found.causes == ()
    assert "bit for bit equal on" in as_text(found)
    assert all(d.differing == 0 for d in found.depth)


def test_two_fields_are_set_one_at_a_time_in_both_directions():
    one, two = recipe("nvidia.hopper.wgmma"), recipe("nvidia.rtx_blackwell.mma")
    found = diff(bundled_model(), TOKENS, one, two, names=("a", "b"))
    assert {(c.field, c.in_first) for c in found.causes} == {
        (field, side) for field in ("align_bits", "keep_bits") for side in (True, False)
    }


def test_files(found, tmp_path):
    files = write_diff(found, tmp_path)
    assert [f.name for f in files] == ["diff.csv", "cause.csv", "depth.csv", "diff.png"]
    with (tmp_path / "diff.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == len(found.products)
    assert [r["first"] for r in rows].count("True") == 1
    assert all(len(r["ulp_hist"].split(";")) == len(ULPS) for r in rows)
    with (tmp_path / "depth.csv").open() as f:
        depth = list(csv.DictReader(f))
    assert depth[-1]["name"] == "logits"
    assert float(depth[-1]["kl_nats"]) > 0
    assert (tmp_path / "diff.png").read_bytes()[:4] == b"\x89PNG"


def test_recipes_that_differ_between_the_products_are_not_called_equal():
    plain = ns.Recipe((("*", ns.Rule()),))
    lowered = ns.Recipe(plain.rules, ops={"*norm": ns.Op("bfloat16")})
    found = diff(ns.bundled_model(), [5, 17, 256], plain, lowered, names=("a", "b"))
    assert not found.equal
    assert not any(row.differing for row in found.products)
    text = as_text(found)
    assert "no product differs: operators between them do, or caches" in text
    assert "products that differ most" not in text


def test_two_seeds_of_stochastic_rounding_differ_in_the_products():
    drawn = ns.Quant("float8_e4m3fn", rounding="sr")
    rules = Recipe.uniform(drawn, target="nvidia.hopper.wgmma").rules
    one, two = (Recipe(rules, seed) for seed in (1, 2))
    seeds = diff(bundled_model(), TOKENS, one, two, names=("1", "2"))
    assert not seeds.equal
    assert any(row.differing for row in seeds.products)


def storage(**fields):
    fp8 = ns.Quant("float8_e4m3fn", "per_tensor")
    fields = {"activations": fp8, "weights": fp8} | fields
    return Recipe((("*", ns.Rule()), ("*_proj", ns.Rule(**fields))))


@pytest.mark.parametrize(
    ("a", "b", "cause"),
    [
        (
            {},
            {"activations": ns.Quant("float8_e4m3fn", "per_tensor", scale=0.25)},
            ("activations", "float8_e4m3fn scale=None", "float8_e4m3fn scale=0.25"),
        ),
        ({"rotate": 64}, {"rotate": 32}, ("rotate", "64", "32")),
        (
            {"activations": None, "weights": None, "outliers": 4.0},
            {"activations": "int8", "weights": "int8"},
            ("activations+weights+outliers", "float32 float32 4", "int8 int8 none"),
        ),
    ],
)  # fmt: skip
def test_every_field_of_a_rule_is_a_cause(a, b, cause):
    """One that cannot differ alone, with those that it stands beside."""
    found = diff(bundled_model(), TOKENS, storage(**a), storage(**b), names=("a", "b"))
    assert [(c.field, c.a, c.b) for c in found.causes] == [cause] * 2
    assert all(c.explains == 1.0 and c.differing == 0.0 for c in found.causes)


def test_values_of_many_products_are_counted():
    names = bundled_model().linear_names()
    fp8 = ns.Quant("float8_e4m3fn", "per_tensor")
    scaled = [ns.Quant("float8_e4m3fn", "per_tensor", scale=2.0**-i) for i in range(len(names))]
    rules = [(n, ns.Rule(own, fp8)) for n, own in zip(names, scaled, strict=True)]
    found = diff(bundled_model(), TOKENS, storage(), Recipe((("*", ns.Rule()), *rules)),
                 names=("a", "b"))  # fmt: skip
    assert found.causes[0].b.startswith(f"{len(names)} values, ")


@pytest.mark.parametrize("name", ["vit", "vit_classifier", "whisper", "bart"])
def test_networks_that_read_no_text_and_those_of_two_stacks(tmp_path, name):
    folder = DATA / ("families" if name == "bart" else "fronts") / name
    with np.load(folder / "oracle.npz") as o:
        kinds = ("pixels", "features", "decoder_tokens")
        given = {k: o[k] for k in kinds if k in o.files}
    if name == "bart":
        np.save(tmp_path / "ids.npy", np.arange(3, 15))
    else:
        np.savez(tmp_path / "in.npz", **given)
    recipes = [tmp_path / "a.toml", tmp_path / "b.toml"]
    for path, fmt in zip(recipes, ("float8_e4m3fn", "float8_e5m2"), strict=True):
        path.write_text(Recipe.uniform(fmt, target="ideal.fp32").to_toml())
    words = ["diff", "--model", folder, "--recipes", ",".join(map(str, recipes)), "--text"]
    file = "ids.npy" if name == "bart" else "in.npz"
    done = CliRunner().invoke(app, [*map(str, words), str(tmp_path / file)])
    assert done.exit_code == 0, done.exception
    out = done.output
    assert "one field set to the other's value" in out
    assert "first product that differs: layer " in out
    if name != "bart":
        (tmp_path / "t.txt").write_text("some words")
        failed = CliRunner().invoke(app, [*map(str, words), str(tmp_path / "t.txt")])
        reads = next(iter(given))
        assert f"reads {reads}, not a text; give --text INPUTS.npz" in str(failed.exception)
