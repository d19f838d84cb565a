"""Caches of keys and values: prefill and decode, by hand where the rule is short; refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import numsim as ns
from numsim.operators import KV, KVCache, Op

FAMILIES = Path(__file__).parents[1] / "data" / "families"


@pytest.fixture
def tokens():
    rng = np.random.default_rng(5)
    return rng.normal(size=(2, 2, 21, 32)).astype(np.float16).astype(np.float32)


def test_scales_by_hand():
    x = np.float32([[[1, -2, 4, 0], [0, 0, 0, 0], [8, 1, 1, 1]]])  # one head, three tokens
    cache = KVCache({"format": "int8", "granularity": "per_token_head"}, None)
    cache.append(x, x)
    assert cache.key.scale.ravel().tolist() == [
        np.float32(4) / np.float32(127),
        1,
        np.float32(8) / 127,
    ]
    assert cache.key.codes.tolist() == [[[32, -64, 127, 0], [0] * 4, [127, 16, 16, 16]]]
    by_run = KVCache({"format": "int8", "granularity": "per_channel", "group": 2}, None)
    by_run.append(x, x)
    assert by_run.key.scale.shape == (1, 2, 4)
    assert by_run.key.codes[0, :, 0].tolist() == [127, 0, 127]


@pytest.mark.parametrize(
    "spec",
    [
        {"format": "int4"}, {"format": "float8_e4m3fn", "granularity": "per_token"}, "q8_0", "q4_0",
        "mxfp8_e4m3", {"format": "int8", "granularity": "per_channel", "group": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("residual", [0, 4])
def test_decoding_ends_where_prefill_does(tokens, spec, residual):
    k, v = tokens
    whole, step = (KVCache(spec, spec, residual=residual) for _ in range(2))
    whole.append(k, v)
    for t in range(k.shape[1]):
        step.append(k[:, t : t + 1], v[:, t : t + 1])
    for part in ("key", "value"):
        a, b = getattr(whole, part), getattr(step, part)
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_array_equal(a.values, b.values)
    q = tokens[0, :, 3]
    np.testing.assert_array_equal(whole.attention(q), step.attention(q))


def test_scales_that_would_change_are_refused_and_nothing_is_lost(tokens):
    k, v = tokens
    for spec, why in (
        ({"format": "int8", "granularity": "per_tensor"}, "make them static"),
        ({"format": "int8", "granularity": "per_head"}, "make them static"),
        ({"format": "int8", "granularity": "per_channel", "group": 16}, "5 of them"),
    ):
        cache = KVCache(spec, None)
        cache.append(k, v)
        before = cache.key.codes.copy()
        with pytest.raises(ns.NumsimError, match=why):
            cache.append(k[:, :1], v[:, :1])
        np.testing.assert_array_equal(cache.key.codes, before)
        assert cache.seen()[0].shape[1] == 21


def test_given_scales_saturate(tokens):
    spec = {"format": "float8_e4m3fn", "granularity": "per_head", "static": True}
    cache = KVCache(spec, spec, scale=np.float32([[[1e-3]], [[1.0]]]))
    for t in range(3):
        cache.append(*(x[:, t : t + 1] for x in tokens))
    assert np.abs(cache.key.values[0]).max() == np.float32(448) * np.float32(1e-3)


STATIC = {"format": "int8", "static": True}
ONE = np.ones((1, 1, 32), np.float32)


@pytest.mark.parametrize("granularity", ["per_head", "per_token", "per_token_head", "per_channel"])
def test_given_scales_are_those_of_heads_however_tokens_come(tokens, granularity):
    group = {"group": 4} if granularity == "per_channel" else {}
    spec = {"format": "int8", "granularity": granularity, "static": True} | group
    whole, step = (KVCache(spec, None, scale=np.float32([[[0.5]], [[0.25]]])) for _ in range(2))
    whole.append(*tokens)
    for t in range(tokens.shape[2]):
        step.append(*(x[:, t : t + 1] for x in tokens))
    assert whole.key.scale.shape == step.key.scale.shape == (2, 1, 1)
    np.testing.assert_array_equal(whole.key.values, step.key.values)


def test_a_scale_that_underflows_is_the_least_one_as_in_quantize():
    x = np.float32([[[2**-149, -(2**-148), 0]]])
    cache = KVCache("int8", None)
    cache.append(x, x)
    same = ns.quantize(x[0], ns.Quant("int8", "per_token"))
    np.testing.assert_array_equal(cache.key.codes[0], same.codes)
    np.testing.assert_array_equal(cache.key.values, x)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: KVCache({"fromat": "int8"}), "unknown key 'fromat'.*format"),
        (lambda: KVCache({"format": "int8", "recipe": "q8_0"}), "format or a recipe"),
        (lambda: KVCache({"format": "int8", "granularity": "per_row"}), "granularity"),
        (lambda: KVCache({"format": "int8", "granularity": "per_channel"}), "group of 1 or more"),
        (lambda: KVCache(rule="kivi"), "kivi: 1 or more"),
        (lambda: KVCache({"format": "int8", "static": True}), r"needs scale, \[heads, 1, 1\]"),
        (lambda: KVCache("q8_0").append(np.ones((1, 1, 8)), np.ones((1, 1, 8))), "multiple of 32"),
        (lambda: KVCache("q8_0").append(np.ones((1, 8)), np.ones((1, 8))), "heads, tokens, dim"),
        (lambda: KVCache().append(np.full((1, 1, 2), np.nan), np.ones((1, 1, 2))), "keys hold 2"),
        (lambda: KVCache().attention(np.ones((1, 2))), "cache is empty"),
        (lambda: KVCache("int8", scale=2.0), "without a static spec"),
        (lambda: KVCache(STATIC, scale="a"), "given scales are numbers"),
        (lambda: KVCache(STATIC, scale=1e-60), "positive, finite numbers of float32"),
        (lambda: KVCache(STATIC, scale=np.ones((1, 2, 1))), r"or \[heads, 1, 1\]; got shape"),
        (lambda: KVCache(STATIC, scale=np.ones((3, 1, 1))).append(ONE, ONE), "got 3 beside 1"),
        (lambda: KVCache("int8").append(ONE[..., :0], ONE[..., :0]), "of one number or more"),
        (lambda: KVCache("q8_0").append(ONE * 1e9, ONE), "scales are float16; got 1e.09"),
    ],
)  # fmt: skip
def test_refusals(made, message):
    with pytest.raises(ns.NumsimError, match=message):
        made()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (3, "key is a Spec, its fields, the name of a recipe or format"),
        ({"recipe": "int8"}, "recipe is one of q8_0.*a format stands under format"),
        ({"recipe": "mxfp4_e2m1", "granularity": "per_head"}, "got granularity beside mxfp4_e2m1"),
        ({"recipe": "mxfp4_e2m1", "tensor_scale": 1.0}, "tensor_scale is a positive .*mxfp4_e2m1"),
        ({"recipe": "nvfp4", "tensor_scale": -1.0}, "tensor_scale is a positive number"),
        ({"format": "int8", "group": 4}, "group is of runs; got 4 beside int8"),
        ({"format": "int8", "tensor_scale": 2.0}, "tensor_scale is of a recipe"),
        ({"format": "int8", "scale_format": "float16"}, "without zero = 'minimum'"),
        ({"format": "int8", "static": 1}, "static is False or True"),
        ({"format": "int8", "granularity": "per_channel", "group": True}, "a group of 1 or more"),
        ({"format": "int4", "zero": "minimum", "granularity": "per_token", "group": 8}, "uint1 to"),
        ({"format": "uint16", "granularity": "per_token", "group": 8}, "to uint8; got uint16"),
        ({"format": "uint4"}, "per_channel .runs of tokens. or per_token"),
        ({"format": "bfloat16", "granularity": "per_head"}, "float32's range, and no scale"),
    ],
)
def test_a_spec_is_checked_when_it_is_made(spec, message):
    with pytest.raises(ns.NumsimError, match=message):
        KV(key=spec)


@pytest.mark.parametrize("residual", [-1, 1.5, "3", True])
def test_a_residual_counts_tokens(residual):
    with pytest.raises(ns.NumsimError, match="residual is 0 tokens or more"):
        KV(residual=residual)


def test_a_wide_format_has_no_scale_and_a_name_alone_may_be_a_format():
    x = np.float32([[[1.003, -3.0e38]], [[0.1, 7.0]]])
    keys, values = KV("bfloat16", "int8").through(x, x)
    np.testing.assert_array_equal(keys, ns.cast(x, "bfloat16").astype(np.float64))
    same, _ = KV({"format": "int8"}).through(x, x)
    np.testing.assert_array_equal(values, same)
    fp8, _ = KV({"format": "float8_e4m3fn", "granularity": "none"}).through(x, x)
    np.testing.assert_array_equal(fp8, ns.cast(x, "float8_e4m3fn").astype(np.float64))


def test_an_unsigned_format_counts_from_the_minimum():
    given = {"format": "uint4", "granularity": "per_channel", "group": 32}
    assert KV(given) == KV(given | {"zero": "minimum"})


@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4_4over6", "if4"])
def test_recipes_with_a_scale_of_all_tokens_are_not_decoded(recipe):
    x = np.ones((1, 2, 32), np.float32)
    cache = KVCache(recipe, recipe)
    cache.append(x, x)
    with pytest.raises(ns.NumsimError, match="tensor scale is taken from all tokens"):
        cache.append(x, x)


def test_bits_of_a_cache_count_scales_minima_and_the_residual():
    whole = {"format": "uint2", "granularity": "per_channel", "group": 32}
    kv = KV(whole | {"scale_format": "float16"}, "q4_0", residual=32, rule="kivi")
    keys = 64 * 2 * 8 * 2 + 2 * 2 * 8 * 2 * 16  # two runs of 32 of 70 tokens, two heads of eight
    assert kv.stored_bits("key", 2, 70, 8) == keys + 6 * 2 * 8 * 32
    assert kv.stored_bits("value", 2, 70, 32) == 38 * 2 * (32 * 4 + 16) + 32 * 2 * 32 * 32
    assert KV().stored_bits("key", 2, 3, 4) == 2 * 3 * 4 * 32
    assert str(kv) == "uint2 per_channel:32+q4_0 kivi residual=32"


# ------------------------------------------------------------------------------- in a network


@pytest.fixture(scope="module")
def model():
    return ns.bundled_model()


def recipe(**fields):
    return ns.Recipe((("*", ns.Rule()),), **fields)


IDS = np.arange(40)[None] * 7 % 2000


def test_operators_in_float32_change_little_and_in_bfloat16_more(model):
    plain = model.run(IDS, recipe()).logits
    single = {"*norm": Op(), "softmax": Op(), "act": Op(), "residual": Op(), "rotary": Op()}
    assert 0 < np.abs(model.run(IDS, recipe(ops=single)).logits - plain).max() < 1e-3
    for name in ("*norm", "softmax", "act", "residual", "rotary", "embedding", "logits"):
        fmt = "float_e5m6" if name == "embedding" else "bfloat16"  # what its table is stored in
        changed = model.run(IDS, recipe(ops={name: Op(fmt)})).logits
        assert 1e-3 < np.abs(changed - plain).max() < 3, name


def test_the_last_glob_wins_and_a_bare_name_is_every_layers(model):
    ops = {"residual": Op("float16"), "layers.2.residual": Op("bfloat16", "rtz")}
    run = model.run(IDS, recipe(ops=ops), taps=["layers.*.out"])
    for i in range(5):
        x = run.taps[f"layers.{i}.out"]
        fmt = "bfloat16" if i == 2 else "float16"
        np.testing.assert_array_equal(x, np.asarray(ns.cast(x, fmt), np.float32))
    assert run.recipe.ops == recipe(ops=ops).ops


@pytest.mark.parametrize("spec", [{"format": "int8"}, "q8_0"])
@pytest.mark.slow
def test_prefill_and_decoding_of_a_network_are_equal(model, spec):
    made = recipe(kv=KV(spec, spec), ops={"softmax": Op("bfloat16"), "*norm": Op("float16")})
    whole = model.run(IDS, made).logits
    past = ns.models.Past()
    steps = [model.run(IDS[:, t : t + 1], made, past=past).logits for t in range(IDS.shape[1])]
    np.testing.assert_array_equal(np.concatenate(steps, 1), whole)
    assert np.abs(whole - model.run(IDS, recipe()).logits).max() > 1e-3


def test_heads_that_do_not_fit_are_refused_before_a_run_whatever_stays_wide():
    """A residual let the first tokens pass, and the run ended in its middle."""
    model = ns.load_model(FAMILIES / "phi3")
    for fields in ({"residual": 64}, {"residual": 64, "rule": "kivi"}):
        with pytest.raises(ns.NumsimError, match=r"heads of phi3 have .* does not fit them"):
            model.run([1, 2], recipe(kv=KV("q8_0", **fields)))


@pytest.mark.parametrize("order", ["sequential", "pairwise", "lanes:4"])
def test_a_sink_is_added_last_whatever_the_order_and_the_number_of_keys(order):
    """In a lane of its place it met other keys in a prefill than in decoding."""
    model = ns.load_model(FAMILIES / "gpt_oss")
    made = recipe(ops={"softmax": Op("bfloat16", sum=order)})
    ids = (np.arange(12)[None] * 5 + 3) % model.arch.vocab
    past = ns.models.Past()
    steps = [model.run(ids[:, t : t + 1], made, past=past).logits for t in range(12)]
    np.testing.assert_array_equal(np.concatenate(steps, 1), model.run(ids, made).logits)


def test_toml_and_digest_hold_operators_and_caches(tmp_path):
    made = recipe(
        ops={
            "*.softmax": Op("bfloat16", sum="lanes:8", exp="exp2_poly:3"), "*norm": Op("float16"),
            "layers.0.softmax": Op(tile=128, rescale_threshold=8.0, out_format="bfloat16"),
        },
        kv=KV({"format": "uint4", "granularity": "per_channel", "group": 32, "zero": "minimum"},
              "q8_0", residual=32, rule="kivi"),
    )  # fmt: skip
    path = tmp_path / "recipe.toml"
    path.write_text(made.to_toml())
    assert ns.Recipe.from_toml(path) == made
    assert made.digest() != recipe(ops=made.ops).digest() != recipe().digest()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ops": {"*.softmx": Op()}}, "names none of.*softmax"),
        ({"ops": {"*.act": Op(sum="exact")}}, "kind act.*got sum"),
        ({"ops": {"*.act": {"fromat": "bfloat16"}}}, "unknown key 'fromat'"),
        ({"ops": {"*.act": {"format": "bfloat16", "variant": "fast"}}}, "variant"),
        ({"ops": Op()}, "ops maps globs"),
        ({"ops": {"*.softmax": {"exp": "exp2_poly:9"}}}, "DEGREE"),
        ({"kv": {"key": "q8_0"}}, "kv is a numsim.operators.KV"),
    ],
)
def test_refusals_of_recipes(model, fields, message):
    with pytest.raises(ns.NumsimError, match=message):
        model.run(IDS, recipe(**fields))


def test_a_message_about_a_recipe_names_the_table(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[[rule]]\nmatch = "*"\n[kv.key]\nformat = "int8"\ngroup = 4\n')
    with pytest.raises(ns.NumsimError, match=r"r.toml: \[kv\]: key: group is of runs"):
        ns.Recipe.from_toml(path)


@pytest.mark.parametrize("key", [{"format": "int8", "static": True}, "spec"])
def test_a_recipe_has_no_scales_for_a_static_cache(key):
    spec = ns.operators.Spec("int8", granularity="per_head", static=True) if key == "spec" else key
    with pytest.raises(ns.NumsimError, match="leave static out, or use"):
        KV(key=spec)
    unsigned = {"format": "uint4", "granularity": "per_token", "group": 4, "static": True}
    with pytest.raises(ns.NumsimError, match="of signed"):
        KVCache(unsigned, scale=1.0)
