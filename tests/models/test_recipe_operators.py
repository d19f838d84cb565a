"""Operators and caches that a recipe names: inside a network they are those of numsim.operators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from numsim import cast, operators
from numsim.data import bundled_model_dir, bundled_text
from numsim.errors import NumsimError, UnsupportedError
from numsim.metrics import kl_nats
from numsim.models import Past, Recipe, Rule, bundled_model, load_model, load_text_tools
from numsim.models.calibrate import calibrated
from numsim.operators import KV, Op
from numsim.quant import Quant
from numsim.sweep import sweep

FAMILIES = Path(__file__).parents[1] / "data" / "families"
PLAIN = Recipe((("*", Rule()),))
IDS = np.random.default_rng(4).integers(3, 2000, (1, 40))


@pytest.fixture(scope="module")
def model():
    return bundled_model()


def lowered(ops, **more):
    return replace(PLAIN, ops=ops, **more)


# ------------------------------------------------------- a block alone, on what it was given


def test_norms_softmax_and_residual_stream_are_the_operators(model):
    op = Op("bfloat16", sum="lanes:8")
    ops = {"layers.2.attn_norm": op, "layers.2.softmax": op, "layers.2.residual": Op("bfloat16")}
    taps = ["layers.1.out", "layers.2.attn_norm.out", "layers.2.qk.out", "layers.2.softmax.out",
            "layers.2.attn.out", "layers.2.mlp.out", "layers.2.out"]  # fmt: skip
    t = model.run(IDS, lowered(ops), taps=taps).taps
    a, n = model.arch, "layers.2"
    weight = model.tensors[f"{n}.attn_norm.weight"].astype(np.float32)
    bf16 = {"format": "bfloat16", "sum": "lanes:8"}
    x, w = cast(t["layers.1.out"], "bfloat16"), cast(weight, "bfloat16")
    want = operators.rmsnorm(x, w, eps=a.norm_eps, **bf16)
    assert np.array_equal(t[f"{n}.attn_norm.out"], want)
    scores = t[f"{n}.qk.out"].reshape(1, a.heads, 40, 40)
    scaled = cast(scores.astype(np.float64) * a.attn_scale, "bfloat16")
    masked = np.where(np.tril(np.ones((40, 40))) > 0, scaled, -np.inf)
    assert np.array_equal(t[f"{n}.softmax.out"], operators.softmax(masked, **bf16))
    h = operators.residual(x, cast(t[f"{n}.attn.out"], "bfloat16"), format="bfloat16")
    h = operators.residual(h, cast(t[f"{n}.mlp.out"], "bfloat16"), format="bfloat16")
    assert np.array_equal(t[f"{n}.out"], h)


TILES = [
    Op(tile=16),
    Op(tile=16, out_format="bfloat16"),
    Op(tile=7, exp="exp2_poly:3", rescale_threshold=8.0, out_format="bfloat16"),
    Op(tile=1000, out_format="float16"),
]


@pytest.mark.parametrize("op", TILES, ids=lambda op: f"{op.tile} {op.exp}")
def test_attention_by_tiles_is_the_online_softmax(model, op):
    a, n = model.arch, "layers.0"
    recipe = Recipe((("*", Rule()), ("*pv", Rule(target="ideal.exact"))), ops={"*softmax": op})
    taps = [f"{n}.qk.out", f"{n}.pv.*", f"{n}.softmax.out"]
    t = model.run(IDS, recipe, taps=taps).taps
    scores = t[f"{n}.qk.out"].reshape(a.heads, 40, 40)
    values, got = t[f"{n}.pv.operand"][0], t[f"{n}.pv.out"].reshape(a.heads, 40, -1)
    how = {
        "tile": op.tile, "exp2": "exact" if op.exp is None else "poly3",
        "rescale_threshold": op.rescale_threshold or 0.0, "p_format": op.out_format or "float32",
        "scale_log2": a.attn_scale * 1.4426950408889634,
    }  # fmt: skip
    for h in range(a.heads):
        v = values[h // (a.heads // a.kv_heads)]
        for i in range(40):
            want, _, _ = operators.online_softmax(scores[h, i, : i + 1], v[: i + 1], **how)
            assert np.array_equal(got[h, i], want)
    weights = t[f"{n}.softmax.out"]
    assert (weights[0, :, 3, 4:] == 0).all()
    assert np.abs(weights.sum(-1) - 1).max() < 2e-2
    assert np.array_equal(weights.reshape(t[f"{n}.pv.in"].shape), t[f"{n}.pv.in"])


@pytest.mark.parametrize("exp", ["exp2_lut:16", "ex2.approx.ftz.f32", "ex2.approx.ftz.bf16"])
def test_other_exponentials_by_tiles_and_at_once(model, exp):
    """One tile of all keys is the softmax at once, but for where it divides."""
    ops = [{"*softmax": Op(tile=64, exp=exp)}, {"*softmax": Op(exp=exp)}]
    tiles, once = (model.run(IDS, lowered(o)).logits for o in ops)
    exact = model.run(IDS, PLAIN).logits
    assert np.abs(tiles - once).max() < (0.05 if exp.endswith("bf16") else 1e-3)
    far = np.abs(once - exact).max()
    assert far > (1e-2 if exp.endswith("bf16") else 1e-6)
    alone = model.run(IDS[:, :7], lowered(ops[0])).logits
    assert np.array_equal(alone, tiles[:, :7])  # an error belongs to its input, not to its place


def test_tiles_meet_their_values_in_the_unit_of_pv(model):
    unit = Rule(Quant("float8_e4m3fn", "per_token"), None, "nvidia.hopper.wgmma", "float32")
    unit = replace(unit, weights=Quant("float8_e4m3fn", "none"))
    one, two = (
        Recipe((("*", Rule()), ("*pv", unit)), ops={"*softmax": Op(tile=tile)}) for tile in (8, 32)
    )
    assert not np.array_equal(model.run(IDS, one).logits, model.run(IDS, two).logits)


@pytest.mark.parametrize("name", ["phi3", "olmo3", "gemma3_text", "modernbert"])
@pytest.mark.parametrize("tile", [1, 3, 64])
def test_tiles_under_windows_padding_and_both_directions(name, tile):
    model = load_model(FAMILIES / name)
    ids = np.random.default_rng(1).integers(3, 40, (2, 9))
    keep = np.array([[1] * 9, [0, 0, 1, 1, 1, 1, 1, 1, 1]])
    want = model.run(ids, attention_mask=keep)
    got = model.run(ids, lowered({"*softmax": Op(tile=tile)}), attention_mask=keep)
    seen = keep.astype(bool)
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        assert np.abs(a - b)[seen].max() < 1e-4 * max(1.0, np.abs(b[seen]).max())


def test_decoding_by_tiles_gives_the_bits_of_the_whole(model):
    recipe = lowered({"*softmax": Op(tile=8, exp="exp2_poly:3", out_format="bfloat16")})
    whole, past = model.run(IDS, recipe).logits, Past()
    parts = [model.run(IDS[:, i : i + 4], recipe, past=past).logits for i in range(0, 40, 4)]
    assert np.array_equal(np.concatenate(parts, 1), whole)


def test_cross_attention_by_tiles():
    model = load_model(FAMILIES / "bart")
    ids, target = [[3, 4, 5, 6, 7]], [[2, 9, 8]]
    want = model.run(ids, decoder_tokens=target).logits
    recipe = lowered({"*softmax": Op(tile=2)})
    assert np.abs(model.run(ids, recipe, decoder_tokens=target).logits - want).max() < 1e-5


# ------------------------------------------------------------------ what is refused, before work

OPS = [
    ({"tile": 0}, "tile is a number of keys, 1 or more; got 0"),
    ({"tile": True}, "tile is a number of keys"),
    ({"rescale_threshold": 8.0}, "tile is a number of keys, 1 or more; got None"),
    ({"tile": 8, "rescale_threshold": -1}, "rescale_threshold is 0 to 64"),
    ({"tile": 8, "sum": "exact"}, "softmax by tiles has float32 steps"),
    ({"tile": 8, "format": "bfloat16"}, "softmax by tiles has float32 steps"),
    ({"exp": "exp2_poly:9"}, "exp is exact, exp2_poly:DEGREE"),
    ({"exp": "cordic"}, "exp is exact, exp2_poly:DEGREE"),
    ({"exp": "exp2_poly:3", "base": "e"}, r"computes 2\*\*x; got base 'e'"),
    ({"sum": "lanes:3"}, "sum is sequential, pairwise, lanes:w"),
    ({"out_rounding": "rtz"}, "out_rounding is of out_format; got 'rtz' without one"),
    ({"weight_rounding": "rtz"}, "weight_rounding is of weight_format"),
    ({"sum_rounding": "rtz"}, "sum_rounding is of sum_format"),
    ({"fma": 1}, "fma is true or false; got 1"),
]


@pytest.mark.parametrize(("fields", "words"), OPS)
def test_settings_that_contradict_are_refused_when_they_are_written(fields, words):
    with pytest.raises(NumsimError, match=words):
        Op(**fields)


NETWORKS = [
    ("bart", {"*norm": Op("bfloat16", weight_format="float32")}, "embed_norm is a LayerNorm, and"),
    ("gpt_oss", {"*.act": Op("bfloat16")}, "act is a clamped SwiGLU, which has no form"),
    ("bart", {"*.act": Op("bfloat16", variant="steps")}, "act is gelu, which has one form"),
    ("gpt_oss", {"*softmax": Op(tile=8)}, "softmax of gpt_oss has a bias or sinks"),
    ("bloom", {"*softmax": Op(tile=8)}, "softmax of bloom has a bias or sinks"),
    ("phi3", {"*act": Op(tile=8)}, "is of kind act, which has format, rounding, variant; got tile"),
]


@pytest.mark.parametrize(("name", "ops", "words"), NETWORKS)
def test_operators_that_a_network_does_not_have(name, ops, words):
    model, tokens = load_model(FAMILIES / name), [[3, 4, 5]]
    more = {"decoder_tokens": tokens} if model.arch.decoder_layers else {}
    told = []
    for call in (
        lambda: model.run(tokens, lowered(ops), **more, tell=lambda *args: told.append(args)),
        lambda: model.suited(lowered(ops)),
        lambda: model.check(lowered(ops)),
    ):
        with pytest.raises(NumsimError, match=words):
            call()
    assert not told


def test_weight_format_of_rms_norms_still_counts(model):
    ops = {"*norm": Op("bfloat16", weight_format="float32")}
    assert not np.array_equal(
        model.run(IDS, lowered(ops)).logits,
        model.run(IDS, lowered({"*norm": Op("bfloat16")})).logits,
    )


@pytest.mark.parametrize("side", ["weights", "activations"])
def test_values_drawn_at_random_do_not_know_their_tile(model, side):
    drawn = Rule(**{side: Quant("float8_e4m3fn", "none", rounding="sr")})
    recipe = Recipe((("*", Rule()), ("layers.1.pv", drawn)), ops={"*softmax": Op(tile=8)})
    with pytest.raises(UnsupportedError, match=r"layers\.1\.softmax has tile 8, layers\.1\.pv rou"):
        model.run(IDS, recipe)


# --------------------------------------------------------------------------------------- caches


def test_a_past_belongs_to_the_cache_it_was_made_with(model):
    kept = lowered((), kv=KV(key={"format": "int8"}, value={"format": "int8"}))
    whole = model.run(IDS, kept).logits
    for first, second in ((PLAIN, kept), (kept, PLAIN)):
        past = Past()
        model.run(IDS[:, :30], first, past=past)
        with pytest.raises(NumsimError, match="past must come from runs that keep keys and values"):
            model.run(IDS[:, 30:], second, past=past)
        assert past.length == 30
    past = Past()
    model.run(IDS[:, :30], kept, past=past)
    assert np.array_equal(model.run(IDS[:, 30:], kept, past=past).logits, whole[:, 30:])


def test_calibration_keeps_operators_and_caches(model):
    recipe = Recipe.uniform(Quant("int8"), target="ideal.int")
    recipe = replace(recipe, ops={"*norm": Op("bfloat16")}, kv=KV(key={"format": "int8"}), seed=5)
    found = calibrated(model, recipe, [IDS])
    assert (found.ops, found.kv, found.seed) == (recipe.ops, recipe.kv, 5)


def test_an_encoder_with_a_table_of_positions_has_an_end():
    model = load_model(FAMILIES / "bart")
    ids = np.full((1, model.arch.positions + 1), 5)
    with pytest.raises(NumsimError, match="the encoder of bart has a table of"):
        model.run(ids, decoder_tokens=[[2, 3]])
    with pytest.raises(NumsimError, match="the encoder of bart has a table of"):
        model.generate(ids, max_new_tokens=1)


# --------------------------------------------------------------------------------------- sweeps


def test_a_sweep_runs_operators_and_caches_of_its_recipes(model, tmp_path):
    ops, kv = {"*norm": Op("bfloat16")}, KV(key={"format": "int4"}, value={"format": "int4"})
    files = []
    for name, recipe in (("plain", PLAIN), ("ops", lowered(ops)), ("kv", lowered((), kv=kv))):
        files.append(tmp_path / f"{name}.toml")
        files[-1].write_text(recipe.to_toml())
    rows = sweep(recipes=files, limit_tokens=62, window=32, batch=2)
    whole = rows[rows.layer == "all"].set_index("format")
    tokens = load_text_tools(bundled_model_dir()).windows(bundled_text(), 32, limit=62)
    exact = model.run(tokens).logits[:, :-1]
    for name, recipe in (("ops", lowered(ops)), ("kv", lowered((), kv=kv))):
        got = model.run(tokens, recipe).logits[:, :-1]
        assert whole.kl_nats[name] == pytest.approx(kl_nats(exact, got), rel=1e-3)
        assert whole.kl_nats[name] > 1e3 * whole.kl_nats["plain"]
        assert whole.recipe_digest[name] == recipe.resolve(model.gemm_names()).digest()
        assert whole.sqnr_cumulative_db[name] < 60
    with pytest.raises(NumsimError, match="names none of"):
        sweep(recipes=[lowered({"*.softmx": Op()})], limit_tokens=62, window=32)


def test_a_cache_that_does_not_fit_the_heads_is_refused_before_a_run(tmp_path):
    small = load_model(FAMILIES / "qwen3_moe")
    recipe = lowered((), kv=KV("q8_0"))
    with pytest.raises(NumsimError, match="multiple of 32; got 16; heads of qwen3_moe have 16 f"):
        small.check(recipe)
    with pytest.raises(NumsimError, match=r"sweep: recipe .*kv: q8_0: features of a head"):
        sweep(model=small, text=np_file(tmp_path), recipes=recipe, window=8)


def np_file(folder):
    np.save(folder / "ids.npy", np.arange(16) % 60)
    return folder / "ids.npy"
