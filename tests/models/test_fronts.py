"""Networks that read pictures (ViT) and speech (Whisper): convolutions as products of patches."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from packing import save
from safetensors.numpy import load_file

import numsim as ns
from numsim.cli import main
from numsim.errors import NumsimError, UnsupportedError
from numsim.models import Past, Recipe, Rule, describe_model, load_model, pack
from numsim.models.taps import tap_names
from numsim.operators import Op
from numsim.quant import Quant, quantize

DATA = Path(__file__).parents[1] / "data" / "fronts"
PLAIN = Recipe((("*", Rule()),))
FP8 = Quant("float8_e4m3fn", "per_token")


def oracle(name):
    with np.load(DATA / name / "oracle.npz") as npz:
        return {k: npz[k] for k in npz.files}


def inputs(o):
    return {k: o[k] for k in ("pixels", "features", "decoder_tokens") if k in o}


def close(got, want, tolerance=1e-12):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("name", ["vit", "vit_classifier", "whisper"])
def test_reference_matches_transformers(name):
    o, model = oracle(name), load_model(DATA / name)
    run = model.run(**inputs(o))
    for key, got in (("logits", run.logits), ("pooled", run.pooled), ("last", None)):
        if key in o:
            close(run.hidden_states[-1] if got is None else got, o[key])
    for states, prefix in ((run.hidden_states, "hidden"), (run.encoder_hidden_states, "encoder")):
        for i, state in enumerate(states[:-1]):  # the last is after the final norm here
            close(state, o[f"{prefix}.{i}"])
    emulated = model.run(**inputs(o), recipe=PLAIN)
    if run.logits.size:
        close(emulated.logits, run.logits, 1e-5)
    close(emulated.hidden_states[-1], run.hidden_states[-1], 1e-5)


# ------------------------------------------- twins in numpy, which share nothing with the package


def layer_norm(x, w, name, eps):
    d = x - x.mean(-1, keepdims=True)
    y = d / np.sqrt((d * d).mean(-1, keepdims=True) + eps)
    return y * w[f"{name}.weight"] + w[f"{name}.bias"]


def dense(x, w, name):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def gelu(x):
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def heads_of(x, count):
    return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)


def attend(q, k, v, count, *, causal=False):
    q, k, v = heads_of(q, count), heads_of(k, count), heads_of(v, count)
    s = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[-1])
    if causal:
        s = np.where(np.tril(np.ones(s.shape[-2:])) > 0, s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    y = (e / e.sum(-1, keepdims=True)) @ v
    return y.swapaxes(1, 2).reshape(len(y), y.shape[2], -1)


def vit_twin(w, config, x):
    """ViT for classification."""
    (rows, columns), (height, width) = config["patch_size"], config["image_size"]
    kernel, tokens = w["vit.embeddings.patch_embeddings.projection.weight"], []
    for top in range(0, height - rows + 1, rows):
        for left in range(0, width - columns + 1, columns):
            part = x[:, :, top : top + rows, left : left + columns]
            tokens.append((part[:, None] * kernel).sum((2, 3, 4)))
    h = np.stack(tokens, 1) + w["vit.embeddings.patch_embeddings.projection.bias"]
    first = np.broadcast_to(w["vit.embeddings.cls_token"], (len(x), 1, h.shape[-1]))
    h = np.concatenate([first, h], 1) + w["vit.embeddings.position_embeddings"]
    for i in range(config["num_hidden_layers"]):
        n, eps = f"vit.encoder.layer.{i}", config["layer_norm_eps"]
        y = layer_norm(h, w, f"{n}.layernorm_before", eps)
        q, k, v = (dense(y, w, f"{n}.attention.attention.{p}") for p in ("query", "key", "value"))
        y = attend(q, k, v, config["num_attention_heads"])
        h = h + dense(y, w, f"{n}.attention.output.dense")
        y = gelu(dense(layer_norm(h, w, f"{n}.layernorm_after", eps), w, f"{n}.intermediate.dense"))
        h = h + dense(y, w, f"{n}.output.dense")
    h = layer_norm(h, w, "vit.layernorm", config["layer_norm_eps"])
    return dense(h[:, 0], w, "classifier")


def whisper_twin(w, config, mel, ids):
    """Whisper's logits."""

    def conv(x, name, step):
        kernel, padded = w[f"{name}.weight"], np.pad(x, ((0, 0), (0, 0), (1, 1)))
        places = range(0, x.shape[2], step)
        each = [(padded[:, None, :, t : t + 3] * kernel).sum((2, 3)) for t in places]
        return gelu(np.stack(each, 2) + w[f"{name}.bias"][:, None])

    def layer(h, n, heads, memory=None):
        y = layer_norm(h, w, f"{n}.self_attn_layer_norm", 1e-5)
        q, k, v = (dense(y, w, f"{n}.self_attn.{p}_proj") for p in "qkv")
        y = attend(q, k, v, heads, causal=memory is not None)
        h = h + dense(y, w, f"{n}.self_attn.out_proj")
        if memory is not None:
            y = layer_norm(h, w, f"{n}.encoder_attn_layer_norm", 1e-5)
            k, v = (dense(memory, w, f"{n}.encoder_attn.{p}_proj") for p in "kv")
            y = attend(dense(y, w, f"{n}.encoder_attn.q_proj"), k, v, heads)
            h = h + dense(y, w, f"{n}.encoder_attn.out_proj")
        y = gelu(dense(layer_norm(h, w, f"{n}.final_layer_norm", 1e-5), w, f"{n}.fc1"))
        return h + dense(y, w, f"{n}.fc2")

    e = conv(conv(mel, "model.encoder.conv1", 1), "model.encoder.conv2", 2).swapaxes(1, 2)
    e = e + w["model.encoder.embed_positions.weight"]
    for i in range(config["encoder_layers"]):
        e = layer(e, f"model.encoder.layers.{i}", config["encoder_attention_heads"])
    e = layer_norm(e, w, "model.encoder.layer_norm", 1e-5)
    table = w["model.decoder.embed_tokens.weight"]
    d = table[ids] + w["model.decoder.embed_positions.weight"][: ids.shape[1]]
    for i in range(config["decoder_layers"]):
        d = layer(d, f"model.decoder.layers.{i}", config["decoder_attention_heads"], e)
    return layer_norm(d, w, "model.decoder.layer_norm", 1e-5) @ table.T


def random_weights(shapes, seed):
    rng = np.random.default_rng(seed)
    return {
        n: (rng.normal(size=s) * 0.4 + ("norm" in n and n.endswith("weight"))).astype(np.float32)
        for n, s in shapes.items()
    }


def shapes_of(folder):
    return {name: t.shape for name, t in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("bias", [True, False])
def test_pictures_and_patches_of_two_sides(tmp_path, bias):
    config = {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "image_size": [9, 10], "patch_size": [2, 5], "num_channels": 2, "layer_norm_eps": 1e-3,
        "qkv_bias": bias, "id2label": {str(i): "x" for i in range(5)},
    }  # fmt: skip
    shapes = shapes_of(DATA / "vit_classifier")
    patches = {"weight": (16, 2, 2, 5), "bias": (16,)}
    shapes |= {f"vit.embeddings.patch_embeddings.projection.{k}": s for k, s in patches.items()}
    shapes["vit.embeddings.position_embeddings"] = (1, 9, 16)  # a row is left over
    shapes = {
        n: s for n, s in shapes.items() if bias or not re.search(r"(query|key|value)\.bias", n)
    }
    w = random_weights(shapes, 5)
    model = load_model(save(tmp_path / "m", config, w))
    x = np.random.default_rng(1).normal(size=(3, 2, 9, 10)).astype(np.float32)
    wide = {k: v.astype(np.float64) for k, v in w.items()}
    close(model.run(pixels=x).logits, vit_twin(wide, config, x.astype(np.float64)), 1e-11)


def test_speech_of_other_sizes(tmp_path):
    config = {
        "model_type": "whisper", "vocab_size": 40, "d_model": 16, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 8, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "num_mel_bins": 7, "max_source_positions": 5,
        "max_target_positions": 9, "decoder_start_token_id": 3, "num_hidden_layers": 2,
        "forced_decoder_ids": [[1, 2]], "median_filter_width": 7,
    }  # fmt: skip
    shapes = shapes_of(DATA / "whisper")
    shapes["model.encoder.conv1.weight"] = (16, 7, 3)
    shapes["model.encoder.embed_positions.weight"] = (5, 16)
    shapes["model.decoder.embed_positions.weight"] = (9, 16)
    w = random_weights(shapes, 6)
    model = load_model(save(tmp_path / "m", config, w))
    mel = np.random.default_rng(2).normal(size=(2, 7, 10)).astype(np.float32)
    ids = np.array([[3, 5, 6, 39], [3, 0, 1, 2]])
    wide = {k: v.astype(np.float64) for k, v in w.items()}
    want = whisper_twin(wide, config, mel.astype(np.float64), ids)
    close(model.run(features=mel, decoder_tokens=ids).logits, want, 1e-11)


# --------------------------------------------------------------------------------- the same form


def test_what_the_products_are():
    found = describe_model(DATA / "whisper")
    sizes = {p.name: (p.k, p.n, p.times) for p in found.products}
    assert sizes["encoder.conv1"] == (30, 16, 1)
    assert sizes["encoder.conv2"] == (48, 16, 1)
    assert sizes["decoder.layers.*.cross_q_proj"] == (16, 16, 2)
    assert {p.name: p.k for p in describe_model(DATA / "vit_classifier").products}["patches"] == 48
    for name in ("vit", "vit_classifier", "whisper"):
        model = load_model(DATA / name)
        assert "_proj" not in "".join(n for n in model.gemm_names() if "layers" not in n)
        described = describe_model(DATA / name)
        stored = sum(math.prod(s) for s in shapes_of(DATA / name).values())
        assert described.parameters == stored


def test_command_model_says_what_is_read(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["numsim", "model", str(DATA / "whisper")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    out = capsys.readouterr().out
    assert "features [bins, times] of [10, 22]: 11 tokens" in out
    assert re.search(r"encoder\.conv2 +48 +16", out)


@pytest.mark.parametrize("name", ["vit", "whisper"])
def test_every_tap_is_kept(name):
    model, o = load_model(DATA / name), oracle(name)
    assert set(model.run(**inputs(o), taps="*").taps) == set(tap_names(model.arch))


def test_convolutions_run_on_the_unit_with_k_as_channels_times_kernel():
    model, o = load_model(DATA / "whisper"), oracle("whisper")
    rule = Rule(FP8, Quant("float8_e4m3fn", "per_channel"), "nvidia.hopper.wgmma")
    recipe = Recipe((("*", Rule()), ("encoder.conv?", rule)))
    taps = ["encoder.conv1.*", "encoder.conv2.*"]
    run = model.run(**inputs(o), recipe=recipe, taps=taps)
    w = load_file(DATA / "whisper" / "model.safetensors")
    x = np.pad(o["features"], ((0, 0), (0, 0), (1, 1)))
    want = np.stack([x[:, :, t : t + 3].reshape(2, -1) for t in range(22)], 1)  # channel, kernel
    assert np.array_equal(run.taps["encoder.conv1.in"], want)
    for name in ("conv1", "conv2"):
        left = run.taps[f"encoder.{name}.in"].reshape(-1, want.shape[2] if name[-1] == "1" else 48)
        kernel = w[f"model.encoder.{name}.weight"].reshape(16, -1)
        b = quantize(kernel, Quant("float8_e4m3fn", "per_channel"), axis=-1).T
        y = ns.matmul(quantize(left, FP8, axis=-1), b, target="nvidia.hopper.wgmma")
        assert np.array_equal(run.taps[f"encoder.{name}.out"].reshape(y.shape), y)
        alone = model.gemm(f"encoder.{name}", run.taps[f"encoder.{name}.in"], recipe)
        assert np.array_equal(alone, run.taps[f"encoder.{name}.out"])


@pytest.mark.parametrize("recipe", [None, PLAIN, Recipe.uniform(FP8, target="ideal.fp32")])
def test_rows_and_decoding_give_the_same_bits(recipe):
    o, model = oracle("whisper"), load_model(DATA / "whisper")
    whole = model.run(**inputs(o), recipe=recipe)
    alone = model.run(
        features=o["features"][1], decoder_tokens=o["decoder_tokens"][1], recipe=recipe
    )
    assert np.array_equal(alone.logits[0], whole.logits[1])
    past, logits = Past(), []
    for t in range(o["decoder_tokens"].shape[1]):
        ids = o["decoder_tokens"][:, t : t + 1]
        run = model.run(features=o["features"], decoder_tokens=ids, recipe=recipe, past=past)
        logits.append(run.logits)
    assert np.array_equal(np.concatenate(logits, 1), whole.logits)


def test_generate_and_nll_read_speech():
    o, model = oracle("whisper"), load_model(DATA / "whisper")
    found = model.generate(features=o["features"], max_new_tokens=8)
    assert np.array_equal(found, o["greedy"])
    one = model.generate(features=o["features"][0], max_new_tokens=8)
    assert np.array_equal(one, o["greedy"][0])
    nll = model.nll(features=o["features"], decoder_tokens=o["decoder_tokens"], batch=1)
    each = o["logits"] - o["logits"].max(-1, keepdims=True)
    each = np.log(np.exp(each).sum(-1)) - np.take_along_axis(
        each, np.roll(o["decoder_tokens"], -1, 1)[..., None], -1
    )[..., 0]  # fmt: skip
    close(nll, each[:, :-1])
    with pytest.raises(NumsimError, match="table of 16 positions; got a sequence of 17"):
        model.generate(features=o["features"], max_new_tokens=17)


def test_stochastic_rounding_of_pictures_draws_by_place():
    o, model = oracle("vit"), load_model(DATA / "vit")
    sr = Quant("float8_e4m3fn", "per_token", rounding="sr")
    recipe = Recipe((("*", Rule()), ("patches", Rule(sr))), seed=3)
    both = model.run(pixels=o["pixels"], recipe=recipe)
    one = model.run(pixels=o["pixels"][1:], recipe=recipe)
    assert np.array_equal(both.hidden_states[-1][1:], one.hidden_states[-1])


def test_operators_of_the_front_in_low_precision():
    o, model = oracle("whisper"), load_model(DATA / "whisper")
    ops = {"encoder.conv1.act": Op("bfloat16"), "encoder.embedding": Op("bfloat16")}
    taps = ["encoder.conv?.act.out", "encoder.embed.out", "decoder.embed.out"]
    run = model.run(**inputs(o), recipe=Recipe((("*", Rule()),), ops=ops), taps=taps)

    def narrow(x):
        return bool(np.array_equal(ns.cast(x, "bfloat16"), x))

    found = {name: narrow(x) for name, x in run.taps.items()}
    assert found == {
        "encoder.conv1.act.out": True, "encoder.conv2.act.out": False,
        "encoder.embed.out": True, "decoder.embed.out": False,
    }  # fmt: skip


def test_pack_writes_convolutions_as_they_are(tmp_path):
    model = load_model(DATA / "whisper")
    recipe = Recipe.uniform("int8", target="ideal.int", activations=None)
    pack(model, recipe, tmp_path / "m")
    before, after = (load_file(f / "model.safetensors") for f in (DATA / "whisper", tmp_path / "m"))
    for name in (n for n in before if "conv" in n or "position" in n):
        assert np.array_equal(before[name], after[name])
    o, again = oracle("whisper"), load_model(tmp_path / "m")
    want = model.run(**inputs(o), recipe=recipe).logits
    assert np.array_equal(again.run(**inputs(o), recipe=again.recipe() or recipe).logits, want)
    with pytest.raises(UnsupportedError, match=r"conv1.*must be one matrix"):
        pack(model, Recipe((("*", Rule("int8", "int8", "ideal.int")),)), tmp_path / "n")


# ----------------------------------------------------------------------------------- bad input

WRONG = [
    ("vit", {"tokens": [1, 2]}, r"vit reads pixels, and nothing else; got tokens; .*run\(pixels="),
    ("vit", {}, "vit reads pixels, and nothing else; got none"),
    ("vit", {"pixels": np.zeros((3, 16, 15))}, r"\[B, channels, height, width\], \[3, 16, 16\]"),
    ("vit", {"pixels": np.zeros((0, 3, 16, 16))}, r"got \[0, 3, 16, 16\]"),
    ("vit", {"pixels": np.full((3, 16, 16), np.nan)}, "must be finite in float64; got 768 that"),
    ("vit", {"pixels": "cat.png"}, "must be a rectangular array of real numbers"),
    ("vit", {"pixels": np.zeros((3, 16, 16)), "attention_mask": [[1]]}, "attention_mask must"),
    ("vit", {"pixels": np.zeros((3, 16, 16)), "past": Past()}, "past must be left out for vit"),
    ("whisper", {"features": np.zeros((10, 20)), "decoder_tokens": [1]}, r"\[B, bins, times\]"),
    ("whisper", {"features": np.zeros((10, 22))}, "decoder_tokens must be given for whisper"),
    ("whisper", {"features": np.zeros((10, 22)), "pixels": 1, "decoder_tokens": [1]}, "got pixels"),
    ("whisper", {"features": np.zeros((10, 22)), "decoder_tokens": [1] * 17}, "table of 16"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "words"), WRONG)
def test_other_inputs_are_refused_in_a_sentence(name, given, words):
    with pytest.raises(NumsimError, match=words) as caught:
        load_model(DATA / name).run(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vit", "whisper"])
def test_numbers_beyond_float32_are_refused_in_an_emulation_alone(name, recwarn):
    model, given = load_model(DATA / name), inputs(oracle(name))
    reads = model.arch.reads
    given[reads] = given[reads].astype(np.float64)
    given[reads].flat[7] = 1e39
    assert np.isfinite(model.run(**given).hidden_states[0]).all()
    with pytest.raises(NumsimError, match=f"{reads} must be finite in float32; got 1 that"):
        model.run(**given, recipe=PLAIN)
    assert not recwarn.list


CONFIGS = [
    ("vit", {"image_size": [16]}, "image_size must be one or two numbers"),
    ("vit", {"patch_size": 17}, "patch_size must be at most image_size"),
    ("vit", {"pooler_output_size": 8}, "pooler_output_size must be hidden_size 16"),
    ("vit", {"pooler_act": "relu"}, "pooler_act must be 'tanh'"),
    ("vit", {"patch_size": 4}, "position_embeddings has shape"),
    ("whisper", {"num_mel_bins": 80}, r"conv1.weight has shape .*expected \[16, 80, 3\]"),
    ("whisper", {"num_hidden_layers": 9}, "num_hidden_layers must be 2, as encoder_layers"),
    ("whisper", {"architectures": ["WhisperForAudioClassification"]}, "architectures must name"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "words"), CONFIGS)
def test_configs_that_do_not_fit(tmp_path, name, changes, words):
    config = json.loads((DATA / name / "config.json").read_text()) | changes
    folder = save(tmp_path / "m", config, load_file(DATA / name / "model.safetensors"))
    with pytest.raises(NumsimError, match=words):
        load_model(folder)


@pytest.mark.parametrize("name", ["vit_classifier", "whisper"])
def test_a_sweep_of_texts_says_that_there_is_none(tmp_path, capsys, monkeypatch, name):
    ids = tmp_path / "ids.npy"
    np.save(ids, np.arange(3, 40))
    words = ["sweep", "--model", str(DATA / name), "--text", str(ids), "--formats", "int8"]
    monkeypatch.setattr("sys.argv", ["numsim", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert re.search(r"reads (pixels|features); compare recipes on", capsys.readouterr().err)
