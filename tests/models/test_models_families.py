"""Fourteen families against the float64 tensors of transformers, in both spellings of a config."""

import json
import pathlib
import re
import shutil
from dataclasses import replace

import numba
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from numsim.errors import NumsimError, UnsupportedError
from numsim.metrics import token_nll
from numsim.models import Past, Recipe, Rule, load_model
from numsim.models.blocks import block
from numsim.models.rope import rotary_frequencies
from numsim.models.taps import tap_names
from numsim.quant import Quant
from numsim.targets import get_target

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "oracle"
FAMILIES = sorted(p.name for p in FOLDER.iterdir())
DECODERS = [f for f in FAMILIES if f not in ("bert", "t5")]
PLAIN = Recipe((("*", Rule()),))
TOKEN = Quant("int8", "per_token")
ROWS = Recipe.uniform(TOKEN, target="ideal.fp32", weights=Quant("int8", "per_channel"))
E4M3 = Quant("float8_e4m3fn", "per_token")
WGMMA = Recipe.uniform(E4M3, target="nvidia.hopper.wgmma")
RAW = Quant("float8_e4m3fn", "none")
WGMMA_RAW = Recipe((("*", Rule(RAW, RAW, "nvidia.hopper.wgmma")),))
SR_TOKEN = Quant("int8", "per_token", rounding="sr")
SR_RAW = Quant("float8_e5m2", "none", rounding="sr")
SR = Recipe(
    (
        ("*", Rule(SR_TOKEN, Quant("int8", "per_channel", rounding="sr"))),
        ("*qk", Rule(SR_TOKEN, SR_TOKEN)),
        ("*pv", Rule(SR_RAW, SR_RAW)),
    ),
    seed=5,
)


def load(family, spelling="config.json", into=None, **changes):
    """Load an oracle checkpoint with one of its configs, some keys changed."""
    if spelling == "config.json" and not changes:
        return load_model(FOLDER / family)
    config = json.loads((FOLDER / family / spelling).read_text()) | changes
    config = {k: v for k, v in config.items() if v != "absent"}
    (into / "config.json").write_text(json.dumps(config))
    shutil.copy(FOLDER / family / "model.safetensors", into)
    return load_model(into)


def oracle(family):
    with np.load(FOLDER / family / "oracle.npz") as npz:
        return {k: npz[k] for k in npz.files}


def inputs(o):
    given = {k: o[k] for k in ("attention_mask", "token_type_ids") if k in o}
    if "decoder_input_ids" in o:
        given["decoder_tokens"] = o["decoder_input_ids"]
    return given


def close(got, want, tolerance=2e-5):
    want = np.asarray(want)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


def tap_of(module):
    """Return our tap of a sub-module of transformers, None for one we do not keep."""
    side, layer, part = re.match(r"(\D*)(\d+)\.(.+)", module).groups()
    ours = {
        "self_attn": "attn.out", "attn": "attn.out", "attention": "attn.out", "mlp": "mlp.out",
        "block_sparse_moe": "mlp.out", "attention.output": "attn_norm.out", "output": "out",
        "layer.0.SelfAttention": "attn.out", "layer.1.EncDecAttention": "cross.out",
        "layer.1.DenseReluDense": "mlp.out", "layer.2.DenseReluDense": "mlp.out",
    }.get(part)  # fmt: skip
    stack = side.split(".")[0] + "." if "block" in side else ""
    if ours is None or (side == "encoder.layer." and part == "attention"):
        return None
    return f"{stack}layers.{layer}.{ours}"


@pytest.mark.parametrize("spelling", ["config.json", "config_v4.json"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reference_matches_transformers(tmp_path, family, spelling):
    o = oracle(family)
    model = load(family, spelling, tmp_path, transformers_version="0")
    taps = {k: tap_of(k[4:]) for k in o if k.startswith("sub:")}
    run = model.run(o["input_ids"], **inputs(o), taps=set(filter(None, taps.values())))
    assert run.hidden_states[0].dtype == np.float64
    if "logits" in o:
        close(run.logits, o["logits"])
    valid = o["attention_mask"].astype(bool) if family == "bert" else ...
    states = o["decoder_hidden_states"] if family == "t5" else o["hidden_states"]
    for got, want in zip(run.hidden_states, states, strict=True):
        close(got[valid], want[valid])
    if family == "t5":
        for got, want in zip(run.encoder_hidden_states, o["encoder_hidden_states"], strict=True):
            close(got, want)
    if family == "bert":
        close(run.pooled, o["pooler_output"])
        assert run.logits.shape == (2, 13, 0)
    assert sum(t is not None for t in taps.values()) >= 2
    for name, tap in taps.items():
        if tap is not None:
            close(run.taps[tap][valid], o[name][valid])
    if "rope.inv_freq" in o:
        got = rotary_frequencies(model.arch.rope, 0)
        np.testing.assert_allclose(got, o["rope.inv_freq"], rtol=4e-7)
    if "greedy_ids" in o:
        count = len(o["greedy_ids"])
        for recipe in (None, PLAIN):
            ids = model.generate(o["input_ids"][0], recipe, max_new_tokens=count)
            assert ids[-count:].tolist() == o["greedy_ids"].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_products_and_float32_stay_near_the_reference(family):
    """Each of the 2 layers adds at most 2e-6 of the largest state: the bound we state."""
    o, model = oracle(family), load(family)
    exact = Recipe((("*", Rule(target="ideal.exact")),))
    reference = model.run(o["input_ids"], **inputs(o))
    run = model.run(o["input_ids"], exact, **inputs(o))
    valid = o["attention_mask"].astype(bool) if family == "bert" else ...
    for layer, (got, want) in enumerate(
        zip(run.hidden_states, reference.hidden_states, strict=True)
    ):
        assert got.dtype == np.float32
        close(got[valid], want[valid], 2e-6 * (layer + 1))


@pytest.mark.parametrize("recipe", [None, ROWS, WGMMA, SR], ids=["float64", "int8", "wgmma", "sr"])
@pytest.mark.parametrize("family", DECODERS)
def test_decoding_gives_the_bits_of_prefill(family, recipe):
    o, model = oracle(family), load(family)
    ids = o["input_ids"]
    whole = model.run(ids, recipe)
    past = Past()
    steps = [
        model.run(ids[:, a:b], recipe, past=past)
        for a, b in [(0, 5), (5, 6), (6, 7), (7, 10), (10, 11), (11, 12), (12, 13)]
    ]
    assert past.length == 13
    assert np.array_equal(np.concatenate([s.logits for s in steps], axis=1), whole.logits)
    for layer, want in enumerate(whole.hidden_states):
        got = np.concatenate([s.hidden_states[layer] for s in steps], axis=1)
        assert np.array_equal(got, want)


@pytest.mark.parametrize("recipe", [None, ROWS, WGMMA, SR], ids=["float64", "int8", "wgmma", "sr"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_do_not_depend_on_batch_or_threads(family, recipe):
    o, model = oracle(family), load(family)
    ids = np.concatenate([o["input_ids"], o["input_ids"][:, ::-1]])  # [4, 13]
    given = {k: np.concatenate([v, v]) for k, v in inputs(o).items()}
    whole = model.run(ids, recipe, **given)
    state = whole.hidden_states[-1]
    for row in range(4):
        alone = model.run(ids[row], recipe, **{k: v[row] for k, v in given.items()})
        assert np.array_equal(alone.hidden_states[-1][0], state[row])
        assert np.array_equal(alone.logits[0], whole.logits[row])
    before = numba.get_num_threads()
    try:
        for count in {1, min(2, before)}:
            numba.set_num_threads(count)
            assert np.array_equal(model.run(ids, recipe, **given).hidden_states[-1], state)
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("family", DECODERS)
def test_padding_does_not_reach_other_tokens(family):
    model = load(family)
    ids = np.arange(26).reshape(2, 13) * 3 % 96
    keep = np.ones((2, 13), int)
    keep[1, 9:] = 0
    got = model.run(ids, ROWS, attention_mask=keep)
    assert np.array_equal(got.logits[0], model.run(ids[0], ROWS).logits[0])
    assert np.array_equal(got.logits[1, :9], model.run(ids[1, :9], ROWS).logits[0])
    past = Past()
    first = model.run(ids[:, :6], ROWS, attention_mask=keep[:, :6], past=past).logits
    rest = model.run(ids[:, 6:], ROWS, attention_mask=keep[:, 6:], past=past).logits
    both = np.concatenate([first, rest], axis=1)
    assert np.array_equal(both[keep == 1], got.logits[keep == 1])


def test_quantised_attention_products_decode_with_the_same_bits():
    """Keys take a scale each, values none: then nothing depends on later tokens."""
    raw = Quant("float8_e4m3fn", "none")
    recipe = Recipe(
        (
            *WGMMA.rules,
            ("*.qk", Rule(E4M3, E4M3, "nvidia.hopper.wgmma")),
            ("*.pv", Rule(raw, raw, "nvidia.hopper.wgmma")),
        )
    )
    for family in ("gemma2", "deepseek_v3"):
        o, model = oracle(family), load(family)
        ids = o["input_ids"]
        whole = model.run(ids, recipe).logits
        past = Past()
        parts = [model.run(ids[:, i : i + 1], recipe, past=past).logits for i in range(13)]
        assert np.array_equal(np.concatenate(parts, axis=1), whole)
        assert np.array_equal(model.run(ids[1], recipe).logits[0], whole[1])
        assert not np.array_equal(model.run(ids, WGMMA).logits, whole)


def test_encoder_decoder_decodes_with_kept_keys():
    o, model = oracle("t5"), load("t5")
    for recipe in (None, ROWS):
        whole = model.run(o["input_ids"], recipe, **inputs(o))
        past, parts = Past(), []
        for a, b in [(0, 1), (1, 2), (2, 6), (6, 9)]:
            given = inputs(o) | {"decoder_tokens": o["decoder_input_ids"][:, a:b]}
            parts.append(model.run(o["input_ids"], recipe, past=past, **given).logits)
        assert np.array_equal(np.concatenate(parts, axis=1), whole.logits)
    losses = model.nll(o["input_ids"], decoder_tokens=o["decoder_input_ids"])
    run = model.run(o["input_ids"], decoder_tokens=o["decoder_input_ids"])
    assert np.array_equal(losses, token_nll(run.logits, o["decoder_input_ids"]))
    ids = model.generate(o["input_ids"], max_new_tokens=4)
    assert ids.shape == (2, 5)
    assert (ids[:, 0] == 0).all()
    again = model.run(o["input_ids"], decoder_tokens=ids[:, :-1]).logits
    assert np.array_equal(np.argmax(again, axis=-1), ids[:, 1:])


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "bert"])
def test_padded_prompts_continue_as_they_do_alone(family):
    model = load(family)
    lengths, width = (9, 4, 9, 1), 9
    ids = np.arange(36).reshape(4, 9) * 7 % 96
    keep = np.arange(width) >= width - np.array(lengths)[:, None]
    for recipe in (None, ROWS):
        got = model.generate(ids, recipe, max_new_tokens=3, attention_mask=keep)
        for row, length in enumerate(lengths):
            alone = model.generate(ids[row, width - length :], recipe, max_new_tokens=3)
            assert got[row, -3:].tolist() == alone[-3:].tolist()
    if family == "t5":
        right = model.generate(ids[:, ::-1], max_new_tokens=3, attention_mask=keep[:, ::-1])
        alone = model.generate(ids[1, ::-1][:4], max_new_tokens=3)
        assert right[1].tolist() == alone.tolist()
    else:
        assert np.array_equal(got[:, :width], ids)


def test_masks_that_generate_refuses():
    for family, mask, match in (
        ("llama", [[1, 1, 0]], "padding on its left"),
        ("llama", [[0, 0, 0]], "padding on its left"),
        ("llama", [[1, 0, 1]], "padding on its left"),
        ("t5", [[1, 0, 1]], "without a gap"),
        ("llama", [[1, 1]], "attention_mask"),
    ):
        with pytest.raises(NumsimError, match=match):
            load(family).generate([[1, 2, 3]], max_new_tokens=1, attention_mask=mask)


def test_dynamic_rotary_scaling_cannot_keep_keys_beyond_its_length(tmp_path):
    rope = {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}
    model = load("llama", into=tmp_path, rope_parameters=rope, max_position_embeddings=8)
    ids = np.arange(12) * 5 % 96
    whole = model.run(ids[:8]).logits
    past = Past()
    parts = [model.run(part, past=past).logits for part in (ids[:5], ids[5:8])]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    with pytest.raises(NumsimError, match="beyond 8 tokens, kept ones too; got 9"):
        model.run(ids[8:9], past=past)
    longer = model.generate(ids[:5], max_new_tokens=6)
    for n in range(5, 11):
        assert longer[n] == np.argmax(model.run(longer[:n]).logits[0, -1])


def test_values_with_shared_scales_are_not_causal_as_documented():
    model, ids = load("llama"), np.arange(9)[None]
    raw, other = Quant("float8_e4m3fn", "none"), ids.copy()
    other[0, -1] = 50
    for values, same in ((Quant("float8_e4m3fn", block=3), False), ("nvfp4", False), (raw, True)):
        recipe = Recipe((*PLAIN.rules, ("*pv", Rule(raw, values))))
        first, last = model.run(ids, recipe).logits, model.run(other, recipe).logits
        assert np.array_equal(first[:, :8], last[:, :8]) == same


def test_values_that_are_not_finite_reach_rows_that_do_not_see_them_as_documented():
    model, ids = load("llama"), np.arange(9)
    table = model.tensors["embed.weight"].copy()
    table[ids[-1]] = np.nan
    damaged = replace(model, tensors={**model.tensors, "embed.weight": table})
    for recipe in (None, WGMMA_RAW):
        assert np.isfinite(damaged.run(ids[:-1], recipe).hidden_states[1]).all()
        assert np.isnan(damaged.run(ids, recipe).hidden_states[1]).all()


@pytest.mark.parametrize(("product", "same"), [("pv", False), ("qk", True)])
def test_a_split_of_the_keys_depends_on_their_number_as_documented(product, same):
    """The K of ``qk`` is the width of a head."""
    model, ids, past = load("llama"), np.arange(40), Past()
    half = Quant("bfloat16", "none")
    rule = Rule(half, half, get_target("ideal.mac", split_k=2, split_tile=4))
    recipe = Recipe((*PLAIN.rules, (f"*{product}", rule)))
    whole = model.run(ids, recipe).logits[0]
    parts = [model.run(ids[i : i + 1], recipe, past=past).logits[0, 0] for i in range(len(ids))]
    assert np.array_equal(parts, whole) == same


def test_names_of_products():
    assert load("deepseek_v3").gemm_names()[:8] == (
        "layers.0.q_a_proj", "layers.0.q_b_proj", "layers.0.kv_a_proj", "layers.0.kv_b_proj",
        "layers.0.qk", "layers.0.pv", "layers.0.o_proj", "layers.0.gate_proj",
    )  # fmt: skip
    names = load("mixtral").gemm_names()
    assert names[6:8] == ("layers.0.router", "layers.0.experts.0.gate_proj")
    assert "layers.0.router" not in load("mixtral").linear_names()
    assert "decoder.layers.1.cross_v_proj" in load("t5").gemm_names()
    assert load("bert").gemm_names()[-1] == "pooler"
    for family in FAMILIES:  # what a run multiplies is what gemm_names says
        o, model = oracle(family), load(family)
        run = model.run(o["input_ids"], **inputs(o), taps=["*.in"])
        used = {name.removesuffix(".in") for name in run.taps}
        asleep = {n for n in model.gemm_names() if ".experts." in n and n not in used}
        assert used | asleep == set(model.gemm_names())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_named_tensor_can_be_kept(family):
    o, model = oracle(family), load(family)
    run = model.run(o["input_ids"], ROWS, **inputs(o), taps=["*"])
    names = set(tap_names(model.arch))
    chosen = {f"experts.{e}." for e in range(9)}
    asleep = {n for n in names - set(run.taps) if any(e in n for e in chosen)}
    assert set(run.taps) | asleep == names
    weights = {n.removesuffix(".weight") for n in model.tensors}
    for name, value in run.taps.items():
        base, end = name.rpartition(".")[::2]
        if end == "biased":
            bias = model.tensors[f"{base}.bias"].astype(np.float32)
            assert np.array_equal(value, run.taps[f"{base}.out"] + bias)
        elif name.endswith("softmax.out"):
            mixed = run.taps[name.replace("softmax.out", "pv.in")]
            assert np.array_equal(value.reshape(mixed.shape), mixed)
            assert value.shape[1] == model.arch.heads
        elif name.endswith(".act.out") and f"{base[:-4]}.gate_proj" in weights:
            up = f"{base[:-4]}.up_proj"
            up = run.taps.get(f"{up}.biased", run.taps[f"{up}.out"])
            assert np.array_equal(value * up, run.taps[f"{base[:-4]}.down_proj.in"])
        elif name.endswith("q_rotary.out"):
            turned = run.taps[name.replace("q_rotary.out", "qk.in")]
            assert np.array_equal(value.reshape(turned.shape), turned)
        elif name.endswith("k_rotary.out"):
            turned = run.taps[name.replace("k_rotary.out", "qk.operand")]
            assert np.array_equal(value.swapaxes(2, 3), turned)
    if model.arch.head:
        assert run.taps["logits"] is run.logits
    else:
        assert run.taps["pooled"] is run.pooled


def test_wrong_taps_name_near_ones():
    for family, tap, match in (
        ("llama", "layers.0.softmax", "did you mean layers.0.softmax.out"),
        ("llama", "logit", "did you mean logits"),
        ("gpt2", "layers.0.q_rotary.out", "matches none"),
        ("qwen2", "layers.0.q_proj.bias", "did you mean layers.0.q_proj.biased"),
    ):
        with pytest.raises(NumsimError, match=match):
            load(family).run([1], taps=[tap])


def test_norms_without_weights_leave_taps(tmp_path):
    config = json.loads((FOLDER / "opt" / "config.json").read_text())
    config |= {"layer_norm_elementwise_affine": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = load_file(FOLDER / "opt" / "model.safetensors")
    plain = {k: v for k, v in stored.items() if "layer_norm" not in k}
    save_file(plain, tmp_path / "model.safetensors")
    run = load_model(tmp_path).run([1, 2], taps=["*norm.out"])
    assert "layers.0.attn_norm.out" in run.taps


def test_experts_leave_rows_and_shared_routing():
    o, model = oracle("mixtral"), load("mixtral")
    run = model.run(o["input_ids"], taps=["layers.0.experts.*"])
    rows = [run.taps[f"layers.0.experts.{e}.rows"] for e in range(4)]
    assert sum(len(r) for r in rows) == 2 * 26
    for e, r in enumerate(rows):
        assert len(run.taps[f"layers.0.experts.{e}.up_proj.in"]) == len(r)


def test_calls_that_the_family_cannot_serve():
    bert, t5, gpt2 = load("bert"), load("t5"), load("gpt2")
    for call, error, match in (
        (
            lambda: bert.generate([1], max_new_tokens=1),
            UnsupportedError,
            "no head of the next token",
        ),
        (lambda: bert.run([1, 2], token_type_ids=[0, 2]), NumsimError, "token_type_ids"),
        (lambda: bert.run([1, 2], past=Past()), NumsimError, "past must be left out for bert"),
        (lambda: bert.run([1, 2], token_type_ids=[0]), NumsimError, "shape"),
        (lambda: bert.run(np.arange(33)), NumsimError, "32 positions"),
        (lambda: bert.nll([1, 2]), UnsupportedError, "no head of the next token"),
        (lambda: gpt2.nll(np.arange(33)), NumsimError, "32 positions"),
        (lambda: t5.run([1]), NumsimError, "given for t5"),
        (lambda: t5.run([1], decoder_tokens=[[1], [2]]), NumsimError, "row for each"),
        (lambda: t5.run([1], decoder_tokens=[96]), NumsimError, "vocabulary of 96"),
        (lambda: gpt2.run([1], decoder_tokens=[1]), NumsimError, "left out for gpt2"),
        (lambda: gpt2.generate(np.arange(20), max_new_tokens=40), NumsimError, "sequence of 59"),
    ):
        with pytest.raises(error, match=match):
            call()
    assert gpt2.generate(np.arange(30), max_new_tokens=3).shape == (33,)


@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
@pytest.mark.parametrize("count", [2**20 + 1, 2**62, 2**70, np.int64(2**62)])
def test_more_tokens_than_can_be_generated(family, count):
    with pytest.raises(NumsimError, match="max_new_tokens must be an integer from 0 to 1048576"):
        load(family).generate([1, 2], max_new_tokens=count)


def test_masked_arrays_are_refused_where_they_would_lose_their_mask():
    t5, bert, llama = load("t5"), load("bert"), load("llama")
    part, ids = np.ma.array([1, 1, 1], mask=[0, 1, 0]), [1, 2, 3]
    for what, call in (
        ("tokens", lambda: llama.run(part)),
        ("tokens", lambda: llama.generate(part, max_new_tokens=1)),
        ("tokens", lambda: llama.nll(part)),
        ("attention_mask", lambda: llama.run(ids, attention_mask=part)),
        ("attention_mask", lambda: llama.generate(ids, max_new_tokens=1, attention_mask=part)),
        ("token_type_ids", lambda: bert.run(ids, token_type_ids=part)),
        ("decoder_tokens", lambda: t5.run([1], decoder_tokens=part)),
        ("decoder_tokens", lambda: t5.nll([1], decoder_tokens=part)),
        ("x", lambda: llama.gemm("layers.0.qk", part[None], operand=np.ones((3, 2)))),
        ("operand", lambda: llama.gemm("layers.0.qk", [[1.0]], operand=part[None])),
        ("positions", lambda: llama.gemm("lm_head", np.ones((3, 48)), positions=part)),
    ):
        with pytest.raises(NumsimError, match=f"{what} must be an array without masked values"):
            call()
    whole = np.ma.array(ids, mask=False)  # has no mask to lose
    assert np.array_equal(llama.run(whole).logits, llama.run(ids).logits)


def test_a_past_of_another_run_is_refused():
    """The kernels would read and write beyond its keys."""
    llama, t5, gpt2 = load("llama"), load("t5"), load("gpt2")
    past, longer = Past(), Past()
    llama.run([1, 2], past=past)
    llama.run([1, 2], past=longer)
    longer.length = 7
    source = Past()
    t5.run([1, 2, 3], decoder_tokens=[1], past=source)
    assert t5.run([1], decoder_tokens=[2], past=source).logits.shape == (1, 1, 96)
    source.memory = None
    for call in (
        lambda: t5.run([1, 2, 3], decoder_tokens=[1, 2], past=past),
        lambda: gpt2.run([1], past=past),
        lambda: llama.run([1], PLAIN, past=past),
        lambda: llama.run([1], past=longer),
        lambda: llama.run([1], past=Past(length=3)),
        lambda: t5.run([1, 2, 3], decoder_tokens=[1], past=source),
    ):
        with pytest.raises(NumsimError, match="past must come from runs of the same model"):
            call()


def test_an_error_leaves_the_past_as_it_was(monkeypatch):
    gpt2 = load("gpt2")
    past, want = Past(), gpt2.run(np.arange(32)[None] % 7).logits
    gpt2.run(np.arange(30)[None] % 7, past=past)
    for call, match in (
        (lambda: gpt2.run([1, 2, 3], past=past, attention_mask=[1, 1, 0]), "32 positions"),
        (lambda: gpt2.run([[1], [2]], past=past), "same size"),
        (lambda: gpt2.run([1], PLAIN, past=past), "all emulated"),
    ):
        with pytest.raises(NumsimError, match=match):
            call()
    assert past.length == 30
    assert past.keep is None
    assert np.array_equal(gpt2.run([2, 3], past=past).logits, want[:, 30:])
    past = Past()

    def broken(layer, index, x, c):
        return block(layer, index, x, c) if index == 0 else 1 // 0

    monkeypatch.setattr("numsim.models.forward.block", broken)
    with pytest.raises(ZeroDivisionError):
        gpt2.run(np.arange(5), past=past)
    assert (past.kept, past.length) == ({}, 0)


@pytest.mark.parametrize("family", ["llama", "mixtral", "deepseek_v3", "gemma2", "t5", "bert"])
def test_stochastic_rounding_alone_draws_as_within_the_run(family):
    o, model = oracle(family), load(family)
    run = model.run(o["input_ids"], SR, **inputs(o), taps=["*"])
    steps = o["input_ids"].shape[1]
    for name in model.gemm_names():
        if f"{name}.in" not in run.taps:  # an expert that nobody chose
            continue
        given = {"operand": run.taps.get(f"{name}.operand")}
        if ".experts." in name:
            rows = run.taps[name.rsplit(".", 1)[0] + ".rows"]
            given["positions"] = rows % steps
        alone = model.gemm(name, run.taps[f"{name}.in"], SR, **given)
        assert np.array_equal(alone, run.taps[f"{name}.out"]), name


def test_stochastic_rounding_draws_by_seed_product_side_and_position():
    model = load("llama")
    x = np.tile(np.random.default_rng(0).standard_normal((1, 48)), (6, 1))
    other = Recipe(SR.rules, seed=6)
    y = model.gemm("layers.0.q_proj", x, SR)
    assert len(np.unique(y, axis=0)) == 6  # equal rows at six positions
    assert np.array_equal(model.gemm("layers.0.q_proj", x[4:], SR, positions=[4, 5]), y[4:])
    assert not np.array_equal(model.gemm("layers.0.q_proj", x, other), y)
    twice = model.gemm("layers.0.q_proj", np.stack([x, x]), SR)
    assert np.array_equal(twice, np.stack([y, y]))
    ids = oracle("llama")["input_ids"]
    assert not np.array_equal(model.run(ids, SR).logits, model.run(ids, other).logits)
    # q and k share their input and would, of equal weights, give equal results
    tensors = dict(model.tensors)
    tensors["layers.0.v_proj.weight"] = tensors["layers.0.k_proj.weight"]
    same = replace(model, tensors=tensors, cache=load("llama").cache)
    rule = Rule(SR_TOKEN, Quant("int8", "per_channel"))
    run = same.run(ids, Recipe((("*", rule),)), taps=["layers.0.?_proj.out"])
    assert not np.array_equal(run.taps["layers.0.v_proj.out"], run.taps["layers.0.k_proj.out"])
    for bad in ([0], [-1] * 6, [0.5] * 6, np.zeros((6, 1), int)):
        with pytest.raises(NumsimError, match="positions"):
            model.gemm("layers.0.q_proj", x, SR, positions=bad)
