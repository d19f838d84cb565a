"""Ranges, shares of the error and accumulators, by numbers worked out on another path."""

import csv

import numpy as np
import pytest

import numsim as ns
from numsim.data import bundled_model_dir, bundled_text
from numsim.losses import read_losses
from numsim.models.text import load_text_tools
from numsim.sweep.accumulators import accumulator_rows, order_rows, vrr_bits
from numsim.sweep.grid import Entry
from numsim.sweep.inputs import Inputs, windows
from numsim.sweep.sensitivity import mixed_recipe, sensitivity
from numsim.sweep.sidecars import position_rows, write_table
from numsim.sweep.spec import as_spec
from numsim.sweep.tensors import lost, shape_of, tensor_rows

SMALL = {"limit_tokens": 63, "window": 64}
BFLOAT16 = ns.operators.Op("bfloat16")


@pytest.fixture(scope="module")
def model():
    return ns.load_model(bundled_model_dir())


@pytest.fixture(scope="module")
def inputs():
    spec = ns.SweepSpec(**SMALL)
    return Inputs(windows(load_text_tools(bundled_model_dir()), spec, bundled_text()))


def test_crest_factors_of_a_tensor_that_was_measured_elsewhere(model):
    """down_proj of layer 1, 512 tokens from the start of the text: figures of the specification."""
    spec = ns.SweepSpec(window=512, limit_tokens=512, window_start="none")
    tokens = windows(load_text_tools(bundled_model_dir()), spec, bundled_text())
    name = "layers.1.down_proj.in"
    x = np.asarray(model.run(tokens, taps=[name]).taps[name], np.float32)
    found = shape_of(x)
    assert x.shape == (1, 512, 512)
    assert found["amax"] == pytest.approx(26.3, abs=0.05)
    assert found["crest_16_median"] == pytest.approx(2.64, abs=0.005)
    assert found["crest_32_median"] == pytest.approx(3.52, abs=0.005)
    assert found["crest_row_median"] == pytest.approx(9.65, abs=0.005)


def test_a_shape_by_hand():
    x = np.array([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    found = shape_of(x)
    assert (found["n"], found["zeros"], found["amax"]) == (8, 6, 4.0)
    assert found["rms"] == pytest.approx(np.sqrt(25 / 8))
    assert found["crest_row_median"] == pytest.approx(4 / 2.5)  # the row of zeros has none
    assert (found["hist_lo"], found["hist_counts"]) == (1.5, "1;1")  # 3 in [2.83, 4), 4 in [4, 5.7)


def test_what_a_format_loses_by_hand():
    # E4M3 without a scale: 2**-10 becomes 0 (tie to even), 2**-8 is subnormal, 1000 saturates
    x = np.array([[2.0**-10, 2.0**-8, 1.0, 1000.0]], np.float32)
    found = lost(x, ns.Quant("e4m3", "none"))
    rates = [found[f"{name}_rate"] for name in ("underflow", "subnormal", "saturation")]
    assert rates == [0.25, 0.25, 0.25]
    signal, noise = (x.astype(float) ** 2).sum(), 2.0**-20 + 552.0**2
    assert found["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise))


def test_every_tensor_stands_once_with_every_format(model, inputs):
    rows = list(tensor_rows(model, inputs, [Entry.of("int8"), Entry.of("mxfp4_e2m1")], 8))
    keys = [(r["layer"], r["op"], r["role"], r["format"], r["granularity"]) for r in rows]
    assert len(set(keys)) == len(keys)
    attention = {(r["op"], r["role"]) for r in rows if r["layer"] == "2"}
    assert {("qk", "KV"), ("pv", "KV"), ("qk", "A"), ("q_proj", "A"), ("q_proj", "W")} <= attention
    assert ("k_proj", "A") not in attention  # that of q_proj
    one = next(r for r in rows if r["op"] == "up_proj" and r["role"] == "W")
    assert one["n"] == model.tensors["layers.0.up_proj.weight"].size
    assert sum(map(int, one["hist_counts"].split(";"))) + one["zeros"] == one["n"]


def test_published_accumulator_widths():
    """Values of another implementation of the criterion; one of integers, from the definition."""
    assert [vrr_bits(k) for k in (576, 1152, 2304, 4608, 65536)] == [7, 7, 8, 9, 11]


def test_accumulators_are_intact_from_the_measured_peak_on(model, inputs):
    rows = list(accumulator_rows(model, inputs, [Entry.of("int8")], None, 8, 256))
    plain = [row for row in rows if row["target"] == "ideal.int"]
    assert len(plain) == 5 * 7 + 1 + 2  # products with stored matrices, and synthetic 64, 256
    one = next(r for r in plain if (r["layer"], r["op"]) == ("3", "down_proj"))
    assert one["bits_bound"] == 16 + 9  # 512 products of -128 by -128: 2**23, and a sign
    assert one["bits_measured_peak"] <= one["bits_bound_l1"] <= one["bits_bound"]
    narrow = [r for r in rows if (r["layer"], r["op"]) == ("3", "down_proj") and r["overflow"]]
    for row in narrow:
        if row["acc_bits"] >= one["bits_measured_peak"]:
            assert row["overflow_rate"] == 0
            assert row["sqnr_db"] == one["sqnr_db"]
    worst = min(narrow, key=lambda row: row["acc_bits"])
    assert worst["overflow_rate"] > 0
    assert worst["sqnr_db"] < 20 < one["sqnr_db"]


@pytest.mark.parametrize("target", ["nvidia.hopper.wgmma", "nvidia.volta.mma", "ideal.fp32"])
def test_no_more_addends_are_swamped_than_there_are_products(target):
    # tiny products beside a large one: every group of wgmma loses all of its 32 but that one
    a = np.full((4, 256), 2.0**-9, np.float32)
    a[:, ::32] = 448.0
    fmt = "float16" if "volta" in target else "e4m3"
    q = ns.quantize(a, fmt, granularity="none")
    b = ns.quantize(np.abs(a[:1].T), fmt, granularity="none")
    stats = ns.matmul(q, b, target=target, stats=True)[1]
    assert stats.swamped <= stats.products
    if "hopper" in target:
        assert stats.swamped > stats.steps  # so that a rate is for each product, not each step


def test_a_rate_of_swamping_is_for_each_product(model, inputs):
    rows = list(accumulator_rows(model, inputs, [Entry.of("e4m3")], None, 8, 4096))
    assert max(row["swamp_rate"] for row in rows) < 0.1  # of steps it is above 1
    assert any(row["swamp_rate"] > 0 for row in rows)


def test_other_orders_change_truncating_sums_and_no_integer(model, inputs):
    targets = ["ideal.int", "nvidia.hopper.wgmma"]
    rows = list(order_rows(model, inputs, [Entry.of("int8")], targets[:1], 8))
    assert rows
    assert all(row["differing"] == 0 for row in rows)
    rows = list(order_rows(model, inputs, [Entry.of("e4m3")], targets[1:], 8))
    assert {row["order"] for row in rows} >= {"reversed", "split_k=2"}
    assert max(row["differing"] for row in rows) > 0.1


@pytest.mark.slow
def test_error_budget_is_what_a_sweep_without_the_part_saves():
    spec = as_spec(None, formats="int4", granularities="per_tensor", **SMALL)
    rows = {row["part"]: row for row in sensitivity(spec, by="op")}
    names = ["q", "k", "v", "o", "gate", "up", "down"]
    assert set(rows) == {"all", *(f"*.{name}_proj" for name in names)}
    rule, plain = ns.Rule("int4", "int4", "ideal.int"), ns.Rule()
    globs = (("*", plain), ("*_proj", rule), ("*.down_proj", plain))
    kl = {
        name: ns.sweep(recipes=[ns.Recipe(rules)], **SMALL).iloc[-1].kl_nats
        for name, rules in {"without": globs, "whole": globs[:2],
                            "only": (globs[0], ("*.down_proj", rule))}.items()
    }  # fmt: skip
    part = rows["*.down_proj"]
    assert rows["all"]["kl_only_nats"] == pytest.approx(kl["whole"], rel=1e-12)
    assert part["kl_only_nats"] == pytest.approx(kl["only"], rel=1e-12)
    assert part["kl_without_nats"] == pytest.approx(kl["without"], rel=1e-12)
    assert part["kl_budget_nats"] == pytest.approx(kl["whole"] - kl["without"], rel=1e-12)
    assert part["share_budget"] == pytest.approx(part["kl_budget_nats"] / kl["whole"])


@pytest.mark.slow
def test_operators_and_the_cache_have_budgets():
    plain, ops = ns.Rule(), {"softmax": ns.operators.Op("float8_e5m2"), "*norm": BFLOAT16}
    globs = (("*", plain), ("layers.1.down_proj", ns.Rule("int4", "int4", "ideal.int")))
    kv = ns.operators.KV(key="mxfp4_e2m1")
    rows = {r["part"]: r for r in sensitivity(as_spec(None, recipes=ns.Recipe(globs, 0, ops, kv),
                                                      **SMALL), by="op")}  # fmt: skip
    norms = ["*.attn_norm", "*.mlp_norm", "final_norm"]
    assert list(rows) == ["all", "*.down_proj", "*.softmax", *norms, "kv"]
    cases_of = {
        ("*.softmax", "without"): ns.Recipe(globs, 0, {"*norm": BFLOAT16}, kv),
        ("*.softmax", "only"): ns.Recipe(globs[:1], 0, {"softmax": ops["softmax"]}),
        ("kv", "without"): ns.Recipe(globs, 0, ops),
        ("kv", "only"): ns.Recipe(globs[:1], kv=kv),
        ("*.down_proj", "without"): ns.Recipe(globs[:1], 0, ops, kv),
        ("*.down_proj", "only"): ns.Recipe(globs),
    }
    whole = ns.sweep(recipes=ns.Recipe(globs, 0, ops, kv), **SMALL).cases.kl_nats[0]
    for (part, kind), recipe in cases_of.items():
        kl = ns.sweep(recipes=recipe, **SMALL).cases.iloc[0]
        assert rows[part][f"kl_{kind}_nats"] == pytest.approx(kl.kl_nats, rel=1e-12)
        assert kl.sqnr_cumulative_db > 0  # though no product of some is emulated
    for part, row in rows.items():
        if part != "all":
            saved = whole - row["kl_without_nats"]
            assert row["kl_budget_nats"] == pytest.approx(saved, rel=1e-9, abs=1e-15)
    assert rows["*.softmax"]["products"] == 5
    assert rows["*.softmax"]["values"] == rows["kv"]["values"] == 0


def test_a_mixed_recipe_keeps_its_budget(model):
    spec = as_spec(None, formats="mxfp4_e2m1", **SMALL)
    sizes = {n: model.tensors[f"{n}.weight"].size for n in model.gemm_names() if n[-5:] == "_proj"}
    parts = [{"part": "all", "kl_budget_nats": 1.0}]
    parts += [{"part": n, "kl_budget_nats": 1e-3 * (i + 1)} for i, n in enumerate(sizes)]
    recipe, bits = mixed_recipe(spec, "mxfp8_e4m3", parts, 5.25)
    better = [n for n in sizes if recipe.rule(n).weights.format == "float8_e4m3fn"]
    total = sum(sizes.values())
    assert bits == pytest.approx(4.25 + 4 * sum(sizes[n] for n in better) / total)
    assert 5.0 < bits <= 5.25
    worth = {n: 1e-3 * (i + 1) / sizes[n] for i, n in enumerate(sizes)}
    best = max(worth, key=worth.get)
    assert best in better
    with pytest.raises(ns.NumsimError, match=r"stores 4\.250 bits .* above the budget 4"):
        mixed_recipe(spec, "mxfp8_e4m3", parts, 4.0)
    with pytest.raises(ns.NumsimError, match="stores no more bits"):
        mixed_recipe(spec, "mxfp4_e2m1", parts, 5.0)


def test_error_by_position_by_hand(tmp_path):
    out = tmp_path / "r.csv"
    rows = ns.sweep(formats="int4", granularities="per_tensor", out=out, **SMALL)
    whole = rows.cases.iloc[0]
    table = position_rows(out, [whole.to_dict()])
    kl = read_losses(out, whole.case_id)["kl"]
    assert [(r["begin"], r["end"]) for r in table] == [
        (1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63),
    ]  # fmt: skip
    assert table[3]["kl_nats"] == pytest.approx(kl[:, 7:15].mean())
    total = sum(r["kl_nats"] * r["tokens"] for r in table) / kl.size
    assert total == pytest.approx(whole.kl_nats)


def test_a_table_is_whole_or_not_there(tmp_path):
    path = tmp_path / "t.csv"
    write_table(path, ("a", "b"), [{"a": 1.5, "b": "=1+1"}, {"a": None, "b": "x"}], force=False)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["1.5", "'=1+1"], ["", "x"]]
    with pytest.raises(ns.NumsimError, match="exists and is not replaced unasked"):
        write_table(path, ("a",), [], force=False)
