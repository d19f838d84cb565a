"""What a row of results says: what was asked, what was emulated, bits, units of the last place."""

import numpy as np
import pytest

import numsim as ns
from numsim.data import bundled_model_dir, bundled_text
from numsim.losses import read_losses
from numsim.models.text import load_text_tools
from numsim.sweep.inputs import windows

SMALL = {"limit_tokens": 63, "window": 64}
INT8 = ns.Rule("int8", "int8", "ideal.int")


@pytest.fixture(scope="module")
def model():
    return ns.load_model(bundled_model_dir())


def one(rule, *globs):
    return ns.Recipe((("*", ns.Rule()), *((glob, rule) for glob in globs)))


def test_format_is_what_was_asked_for(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(one(INT8, "*_proj").to_toml())
    names = ["nvfp4", "mxfp4_e2m1", "mxint8", "e4m3"]
    rows = ns.sweep(formats=names, recipes=[recipe], targets=["ideal.fp32"], **SMALL)
    want = ["nvfp4", "mxfp4_e2m1", "mxint8", "float8_e4m3fn", "float8_e4m3fn", "mine"]
    assert rows[rows.layer == "all"].format.tolist() == want
    assert rows.groupby("case_id").format.nunique().eq(1).all()  # of every row of a case


def test_products_left_in_float32_are_told_from_emulated_ones():
    rows = ns.sweep(formats=["int8"], granularities=["per_tensor"], **SMALL)
    products = rows[rows.layer != "all"]
    assert products[~products.emulated].op.unique().tolist() == ["qk", "pv", "lm_head"]
    assert products.sqnr_local_db.notna().equals(products.emulated.astype(bool))
    assert products.sqnr_cumulative_db.notna().all()  # what came before was emulated
    assert rows.groupby("layer").sqnr_local_db.mean().max() < 50
    assert rows[rows.layer == "all"].emulated.all()


def test_no_sqnr_before_the_first_emulated_product_nor_without_one():
    rows = ns.sweep(recipes=[one(INT8, "layers.1.o_proj"), one(ns.Rule())], **SMALL)
    first, second = (rows[rows.case_id == case] for case in rows.case_id.unique())
    at = first.index[first.emulated & (first.layer == "1")][0]
    assert first.loc[: at - 1].sqnr_cumulative_db.isna().all()
    assert first.loc[at:].sqnr_cumulative_db.notna().all()
    assert first.sqnr_local_db.notna().sum() == 1
    assert not second.emulated.any()
    assert second[["sqnr_local_db", "sqnr_cumulative_db"]].isna().all(axis=None)
    assert second.iloc[-1].perplexity == pytest.approx(second.iloc[-1].perplexity_reference)


def test_bits_of_a_recipe_of_attention_are_those_of_its_cache(model):
    per_token = ns.Quant("int8", "per_token")
    recipes = [
        one(INT8, "*.qk", "*.pv"),
        one(ns.Rule(None, per_token), "*.qk", "*.pv"),
        one(ns.Rule(None, per_token), "*.qk"),
        one(INT8, "lm_head"),
        one(INT8, "*.qk", "layers.0.q_proj"),
    ]
    rows = ns.sweep(recipes=recipes, **SMALL)
    whole = rows[rows.layer == "all"].set_index("case_id").loc[list(rows.case_id.unique())]
    layers, heads, kv, t, d = 5, model.arch.heads, model.arch.kv_heads, 64, 32
    scalar = 8 + 32 * 2 * layers / (2 * layers * kv * t * d)  # one scale a tensor
    keys = 8 + 32 / d  # quantised along the head
    values = 8 + 32 / t  # quantised along the keys, as the product sums
    linears = [model.tensors[n + ".weight"].size for n in model.gemm_names() if n[-5:] == "_proj"]
    at = model.tensors["layers.0.q_proj.weight"].size
    want = [
        scalar, (keys + values) / 2, (keys + 32) / 2,
        8 + 32 / model.tensors["lm_head.weight"].size,
        (32 * (sum(linears) - at) + 8 * at + 32) / sum(linears),
    ]  # fmt: skip
    assert whole.bits_per_weight.tolist() == pytest.approx(want, rel=1e-12)
    assert whole.bits_per_act.iloc[1] == 32
    left = 8 + 32 * 2 / (heads * t * (d + t))
    assert whole.bits_per_act.iloc[0] == pytest.approx(left, rel=1e-12)


def test_max_ulp_counts_the_last_place_of_the_largest_reference(model):
    rows = ns.sweep(formats=["int8"], granularities=["per_tensor"], **SMALL)
    text, spec = bundled_text(), ns.SweepSpec(**SMALL)
    tokens = windows(load_text_tools(bundled_model_dir()), spec, text)
    names = ["layers.2.down_proj.out", "layers.0.qk.out"]
    exact, run = (
        model.run(tokens, recipe, taps=names)
        for recipe in (None, ns.Recipe.uniform("int8", target="ideal.int"))
    )
    pairs = [
        (exact.taps[name], run.taps[name], row)
        for name, row in zip(names, (("2", "down_proj"), ("0", "qk")), strict=True)
    ]
    pairs.append((exact.logits[:, :-1], run.logits[:, :-1], ("all", None)))
    for want, got, (layer, op) in pairs:
        want = want.astype(np.float32).astype(np.float64)
        top = np.abs(want).max()
        unit = 2.0 ** (np.floor(np.log(top) / np.log(2)) - 23)
        row = rows[(rows.layer == layer) & ((rows.op == op) if op else rows.op.isna())].iloc[0]
        assert row.max_ulp == pytest.approx(np.abs(want - got).max() / unit, rel=1e-12)
        assert row.max_ulp == pytest.approx(row.max_abs / unit, rel=1e-12)
        assert row.max_ulp < 1e8


def test_standard_errors_are_those_of_the_tokens(tmp_path):
    path = tmp_path / "r.csv"
    rows = ns.sweep(formats=["int8"], granularities=["per_tensor"], out=path, **SMALL)
    row = rows.iloc[-1]
    kl = read_losses(path, row.case_id)["kl"].reshape(-1)
    assert kl.size == row.tokens == 63
    assert row.kl_stderr == pytest.approx(np.sqrt(((kl - kl.mean()) ** 2).mean() / 63), rel=1e-12)
    assert 0 < row.kl_stderr < row.kl_nats
