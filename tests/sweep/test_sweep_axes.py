"""The axes of a grid: what people ask for in words stands for just these cases."""

import numpy as np
import pytest

import numsim as ns
from numsim import metrics
from numsim.data import bundled_model_dir, bundled_text
from numsim.losses import read_losses
from numsim.models.text import load_text_tools
from numsim.sweep.cases import cases
from numsim.sweep.inputs import windows
from numsim.sweep.spec import as_spec

SMALL = {"limit_tokens": 63, "window": 64}
ONE = {"formats": "int8", "granularities": "per_tensor"}
NAMES = [
    *(f"layers.{i}.{op}" for i in range(2) for op in ("q_proj", "qk", "pv", "down_proj")),
    "lm_head",
]


def grid(**fields):
    spec = as_spec(None, **fields)
    return cases(spec, model="m", text="t", text_hash="", products=NAMES)


def labels(**fields):
    return [case.label for case in grid(**fields)]


def test_weights_and_activations_apart():
    (pair,) = grid(formats="int4+int8", granularities="per_channel+per_token")
    assert (pair.format, pair.target) == ("int4+int8", "ideal.int")
    weights, activations = pair.quants
    assert (weights.format, weights.granularity) == ("int4", "per_channel")
    assert (activations.format, activations.granularity) == ("int8", "per_token")
    found = labels(weights="int4,mxfp4_e2m1", activations="int8,mxfp8_e4m3")
    assert found == [
        "int4+int8 per_tensor ideal.int",
        "int4+int8 per_channel+per_token ideal.int",
        "int4+mxfp8_e4m3 per_tensor+per_block ideal.fp32",
        "int4+mxfp8_e4m3 per_channel+per_block ideal.fp32",
        "mxfp4_e2m1+int8 per_block+per_tensor ideal.fp32",
        "mxfp4_e2m1+int8 per_block+per_token ideal.fp32",
        "mxfp4_e2m1+mxfp8_e4m3 per_block nvidia.blackwell.tcgen05",
    ]
    assert labels(weights="int8", activations="int8") == labels(formats="int8")
    (alone,) = grid(weights="int4", granularities="per_channel")
    rule = alone.recipe().rule("layers.0.q_proj")
    assert rule.activations is None  # float32 as it is
    assert alone.format == "int4+float32"


def test_blocks_and_tiles():
    (case,) = grid(formats="e4m3", granularities="per_block:128x128+per_block:128")
    weights, activations = case.quants
    assert (weights.block, activations.block) == ((128, 128), 128)
    assert [c.quants[0].block for c in grid(formats="int8", granularities="per_block:64,32")] == [
        64, 32,
    ]  # fmt: skip


def test_scale_formats_and_rules():
    rules = ("floor", "ceil", "even", "rceil")
    found = grid(formats="mxfp4_e2m1", scale_rules=rules)
    assert [case.quants[0].scale_rule for case in found] == list(rules)
    assert len({case.case_id for case in found}) == 4
    (pow2,) = grid(formats="int8", granularities="per_block:32", scale_formats="float8_e8m0fnu")
    assert pow2.quants[0].scale_format == "float8_e8m0fnu"
    both = {"scale_formats": "float8_e4m3fn,float8_e8m0fnu", "scale_rules": "amax,floor"}
    with pytest.warns(ns.SkippedWarning, match=r"they cannot be: 2 combinations, .*got 'floor'"):
        found = grid(formats="mxfp4_e2m1", **both)
    pairs = [(case.quants[0].scale_format, case.quants[0].scale_rule) for case in found]
    assert pairs == [("float8_e4m3fn", "amax"), ("float8_e8m0fnu", "floor")]
    with pytest.raises(ns.NumsimError, match=r"scale_rules: .*got 'floor'"):  # no case is left
        grid(formats="mxfp4_e2m1", scale_formats="float8_e4m3fn", scale_rules="floor,amax")
    assert labels(formats="int8", granularities="none", scale_rules="mse,amax") == [
        "int8 none ideal.int"  # which has no scale
    ]


def test_units_with_fields():
    assert [c.target for c in grid(**ONE, targets="ideal.int:acc_bits=16,20,ideal.fp32")] == [
        "ideal.int:acc_bits=16", "ideal.int:acc_bits=20", "ideal.fp32",
    ]  # fmt: skip
    both = grid(**ONE, targets="ideal.int:acc_bits=16,20:overflow=wrap,saturate")
    assert [case.target.partition(":")[2] for case in both] == [
        "acc_bits=16:overflow=wrap", "acc_bits=16:overflow=saturate",
        "acc_bits=20:overflow=wrap", "acc_bits=20:overflow=saturate",
    ]  # fmt: skip
    assert both[3].own == ns.get_target("ideal.int", acc_bits=20, overflow="saturate")
    unit = {"name": "nvidia.hopper.wgmma", "promote_every": ["none", 64]}
    every = grid(formats="e4m3", granularities="per_tensor", targets=[unit])
    assert [case.target for case in every] == [
        "nvidia.hopper.wgmma", "nvidia.hopper.wgmma:promote_every=64",
    ]  # fmt: skip


def test_products_in_and_out_and_keys_and_values():
    found = grid(**ONE, products="linears,all-lm_head,linears+qk+pv")
    emulated = [[name for name in NAMES if not case.recipe().rule(name).is_plain] for case in found]
    linears = [name for name in NAMES if name.endswith("_proj")]
    assert emulated == [linears, NAMES[:-1], NAMES[:-1]]
    (cache,) = grid(**ONE, kv="mxfp8_e4m3")
    rule = cache.recipe().rule("layers.1.pv")
    assert rule.activations is None
    assert rule.weights == ns.Quant(
        "e4m3", block=32, scale_format="float8_e8m0fnu", scale_rule="floor"
    )
    assert "kv=mxfp8_e4m3" in cache.label
    (whole,) = grid(**ONE, products="all", kv="int8")
    rule = whole.recipe().rule("layers.1.qk")
    assert (rule.weights.granularity, rule.activations.granularity) == ("per_token", "per_tensor")


def test_seeds_are_cases_only_where_something_draws():
    assert labels(**ONE, rounding="rne,sr", seed="1,2") == [
        "int8 per_tensor ideal.int", "int8 per_tensor ideal.int sr seed=1",
        "int8 per_tensor ideal.int sr seed=2",
    ]  # fmt: skip


def test_exclusions():
    assert labels(formats="int8,e4m3", exclude="per_tensor") == [
        "int8 per_channel+per_token ideal.int",
        "float8_e4m3fn per_channel+per_token nvidia.hopper.wgmma",
    ]
    assert labels(formats="int8,e4m3", exclude="int8*token,e4m3*tensor") == [
        "int8 per_tensor ideal.int", "float8_e4m3fn per_channel+per_token nvidia.hopper.wgmma",
    ]  # fmt: skip


def test_a_named_recipe_overrides_its_base():
    table = {
        "name": "down in eight bits",
        "base": {"formats": "int4", "granularities": "per_channel+per_token"},
        "rule": [{"match": "*down_proj", "weights": "int8", "activations": "int8"}],
    }
    (case,) = grid(recipes=[table])
    assert case.label == "recipe down in eight bits"
    down, other = (case.recipe().rule(f"layers.1.{op}") for op in ("down_proj", "q_proj"))
    assert (down.weights.format, other.weights.format) == ("int8", "int4")
    assert down.target == ns.get_target("ideal.int")  # of the base
    assert other.weights.granularity == "per_channel"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (ONE | {"granularities": "per_blok:3"}, r"granularities: blocks are per_block:N"),
        (ONE | {"granularities": "per_tensr"}, r"granularities: Quant: .*did you mean per_tensor"),
        (ONE | {"scale_rules": "flor"}, r"sweep: scale_rules: .*one of amax"),
        (ONE | {"rounding": "up"}, r"sweep: rounding: .*did you mean rup"),
        (ONE | {"products": "lm_haed"}, r"products: 'lm_haed'.*did you mean lm_head"),
        (ONE | {"products": "a++b"}, r"products are names joined by \+ and -"),
        (ONE | {"kv": "int9x"}, r"int9x"),
        (ONE | {"targets": "ideal.int:acc_bit=3"}, r"did you mean acc_bits"),
        (ONE | {"targets": "ideal.int:acc_bits"}, r"NAME=VALUE; got 'acc_bits'"),
        (ONE | {"exclude": "nothing"}, r"exclude: 'nothing' excludes none"),
        ({"formats": "int8,int4", "max_cases": 3}, r"4 cases, above max_cases 3"),
        ({"formats": []}, r"the grid is empty"),
        (ONE | {"exclude": "int8"}, r"exclude: 'int8' excludes all of the cases left, 1;"),
        ({"recipes": [{"name": "x", "bass": {}}]}, r"recipes\.0: 'bass' is no .*did you mean base"),
        ({"recipes": [{"name": "x", "base": {"formats": "int8"}}]}, r"recipe x: .*stand for 2"),
        (ONE | {"seed": "x"}, r"sweep: seed: a whole number"),
        (ONE | {"shard": "0/3"}, r"shard is PART/OF"),
    ],
)
def test_words_that_cannot_be_are_one_sentence(fields, message):
    call = ns.sweep if "shard" in fields else grid
    with pytest.raises(ns.NumsimError, match=message) as error:
        call(**fields)
    assert "\n" not in str(error.value)


def test_a_huge_grid_is_refused_before_it_is_made():
    many = [f"ideal.int:acc_bits={bits}" for bits in range(8, 65)]
    with pytest.raises(ns.NumsimError, match="above max_cases"):
        grid(formats=[f"int{n}" for n in range(2, 33)], granularities="per_tensor,none",
             scale_rules="amax,mse,kl", rounding="rne,rna,rtz,rup,rdn", targets=many,
             seed=tuple(range(1000)))  # fmt: skip


@pytest.mark.slow
def test_rows_of_new_axes_say_what_ran(tmp_path):
    out = tmp_path / "r.csv"
    rows = ns.sweep(
        formats="int4+int8", granularities="per_channel+per_token", kv="int8", out=out, **SMALL,
        targets="ideal.int:acc_bits=24", stats=True,
    )  # fmt: skip
    whole, linear = rows.iloc[-1], rows[rows.op == "q_proj"].iloc[0]
    assert whole.format == "int4+int8"
    # not mixed: kv_format says how keys and values are stored
    assert (whole.granularity, whole.kv_format) == ("per_channel+per_token", "int8")
    assert (whole.scale_format, whole.target, whole.exact) == ("float32", "mixed", False)
    assert (linear.weight_format, linear.act_format) == ("int4", "int8")
    assert linear.target == "ideal.int:acc_bits=24"
    assert linear.accumulator == "int24"
    qk = rows[rows.op == "qk"].iloc[0]
    assert (qk.weight_format, qk.act_format, qk.target) == ("int8", "float32", "ideal.fp32")
    tokens, layers, width = 64, 5, 64  # two heads of 32
    assert qk.bytes_kv == tokens * width + 4 * tokens * 2  # codes, and a scale a key and head
    values = tokens * width + 4 * width
    assert whole.bytes_kv == pytest.approx(layers * (qk.bytes_kv + values))
    assert (linear.acc_swamp_rate, linear.acc_overflow_rate) == (0, 0)
    assert 8 < linear.acc_peak_bits <= 19  # 192 products of 4 and 8 bits
    kl = read_losses(out, whole.case_id)["kl"].reshape(-1)
    assert whole.kl_max_nats == kl.max()
    assert whole.kl_p99_nats == pytest.approx(np.quantile(kl, 0.99))
    for name in ("tensors", "accumulators", "positions"):
        assert len((tmp_path / f"r.{name}.csv").read_text().splitlines()) > 5


def test_top_five_and_bias_by_another_path():
    model = ns.load_model(bundled_model_dir())
    rows = ns.sweep(formats="int4", granularities="per_tensor", **SMALL)
    from numsim.data import bundled_text
    from numsim.models.text import load_text_tools
    from numsim.sweep.inputs import windows

    tokens = windows(load_text_tools(bundled_model_dir()), ns.SweepSpec(**SMALL), bundled_text())
    recipe = ns.Recipe.uniform("int4", target="ideal.int")
    want = model.run(tokens, taps=["layers.2.o_proj.in", "layers.2.o_proj.out"])
    got = model.run(tokens, recipe).logits[:, :-1]
    best = want.logits[:, :-1].argmax(-1)
    five = np.argsort(-got, axis=-1, kind="stable")[..., :5]
    share = (five == best[..., None]).any(-1).mean()
    assert rows.iloc[-1].top5_agreement == pytest.approx(share)
    assert rows.iloc[-1].top1_agreement <= share < 1
    x, exact = (np.float32(want.taps[f"layers.2.o_proj.{end}"]) for end in ("in", "out"))
    alone = model.gemm("layers.2.o_proj", x, recipe).astype(np.float64)
    bias = (alone - exact).mean() / np.sqrt((exact.astype(np.float64) ** 2).mean())
    row = rows[(rows.layer == "2") & (rows.op == "o_proj")].iloc[0]
    assert row.mean_signed_error == pytest.approx(bias, rel=1e-6)


def test_several_models_and_texts(tmp_path):
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, words in zip(texts, ("one two three " * 20, "red green blue " * 20), strict=True):
        path.write_text(words)
    rows = ns.sweep(
        model=[bundled_model_dir(), bundled_model_dir()][:1], text=texts, limit_tokens=20,
        window=16, **ONE,
    )  # fmt: skip
    whole = rows[rows.layer == "all"]
    assert whole.text.tolist() == ["a.txt", "b.txt"]
    assert whole.case_id.nunique() == 2
    assert whole.perplexity_reference.nunique() == 2


def test_operators_and_the_cache_of_a_recipe_are_swept(tmp_path):
    globs = (("*", ns.Rule()), ("*_proj", ns.Rule("int8", "int8", "ideal.int")))
    ops, kv = {"residual": ns.operators.Op("bfloat16")}, ns.operators.KV(value="mxfp4_e2m1")
    file = tmp_path / "low.toml"
    file.write_text(ns.Recipe(globs, 0, ops, kv).to_toml())
    given = [ns.Recipe(globs), ns.Recipe(globs, 0, ops), ns.Recipe(globs, 0, (), kv), file]
    found = ns.sweep(recipes=given, **SMALL).cases
    assert found.recipe_digest.nunique() == found.kl_nats.nunique() == 4
    model = ns.load_model(bundled_model_dir())
    spec = as_spec(None, **SMALL)
    tokens = windows(load_text_tools(bundled_model_dir()), spec, bundled_text())
    want = model.run(tokens, recipe=ns.Recipe.from_toml(file)).logits
    nll = metrics.token_nll(want, tokens)
    assert found.perplexity.iloc[-1] == pytest.approx(metrics.perplexity(nll), rel=1e-12)
    wrong = ns.Recipe(globs, 0, {"softmx": ns.operators.Op("bfloat16")})
    with pytest.raises(ns.NumsimError, match=r"sweep: recipe .*'softmx' names none .*softmax"):
        ns.sweep(recipes=wrong, out=tmp_path / "r.csv", **SMALL)
    assert not (tmp_path / "r.csv").exists()


def test_rows_say_how_the_cache_of_a_recipe_stores_keys_and_values():
    """Two heads of 32, one window of 64 tokens: bytes by hand, and the error of storing alone."""
    kv = ns.KV(key="int4", value={"format": "uint2", "granularity": "per_token", "group": 8})
    globs = (("*", ns.Rule()), ("*_proj", ns.Rule("int8", "int8", "ideal.int")))
    rows = ns.sweep(recipes=[ns.Recipe(globs[:1], kv=kv), ns.Recipe(globs, kv=kv)], **SMALL)
    for _, case in rows.groupby("case_id", sort=False):
        at = case.set_index("op")
        qk, pv, whole = at.loc["qk"].iloc[0], at.loc["pv"].iloc[0], case.iloc[-1]
        assert (qk.weight_format, qk.granularity) == ("int4", "per_token_head+none")
        assert (pv.weight_format, pv.block, pv.scale_format) == ("uint2", "8", "float32")
        assert (qk.emulated, pv.emulated, whole.emulated) == (True, True, True)
        assert set(case.kv_format) == {"int4 per_token_head+uint2 per_token:8"}
        assert qk.bytes_kv == 64 * 2 * (32 * 4 + 32) / 8
        assert pv.bytes_kv == 64 * 2 * (32 * 2 + 4 * 2 * 32) / 8  # a scale and a minimum of eight
        assert whole.bytes_kv == 5 * (qk.bytes_kv + pv.bytes_kv)
        assert (qk.bits_per_weight, pv.bits_per_weight) == (5, 10)
    plain, linears = rows[rows.layer == "all"].itertuples()
    assert plain.bits_per_weight == 7.5
    assert linears.bits_per_weight < 8.1  # of the linears
    assert linears.area_ge > 0
    model = ns.bundled_model()
    spec = as_spec(None, **SMALL)
    tokens = windows(load_text_tools(bundled_model_dir()), spec, bundled_text())
    names = [f"layers.0.qk.{end}" for end in ("in", "operand", "out")]
    x, keys, want = (model.run(tokens, taps=names).taps[n].astype(np.float32) for n in names)
    stored = np.stack([kv.through(k, k)[0].swapaxes(1, 2) for k in keys.swapaxes(2, 3)])
    got = model.gemm("layers.0.qk", x, ns.Recipe(globs[:1]), operand=stored.astype(np.float32))
    noise = np.square(got.astype(np.float64) - want).sum()
    signal = np.square(want.astype(np.float64)).sum()
    first = rows[rows.op == "qk"].iloc[0]
    assert first.sqnr_local_db == pytest.approx(10 * np.log10(signal / noise), rel=1e-6)
