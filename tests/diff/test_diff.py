"""Where two recipes part on one network, and which field is why."""

import csv

import numpy as np
import pytest

import numsim as ns
from numsim.diff import ULPS, as_text, diff, write_diff
from numsim.models import Recipe, bundled_model

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
