"""Trunks and classifiers: vectors of transformers, what is refused, how a sweep scores them."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from numsim import nn
from numsim.cli.screen import sweep_table
from numsim.errors import ConfigKeyWarning, NumsimError, UnsupportedError
from numsim.models import Recipe, Rule, load_model, load_text_tools
from numsim.models.families import FAMILIES
from numsim.models.heads import last_state
from numsim.models.places import At
from numsim.quant import Quant
from numsim.sweep import sweep
from numsim.sweep.inputs import Inputs, json_texts, read_inputs
from numsim.sweep.measure import _answers
from numsim.sweep.spec import SweepSpec

HEADS = pathlib.Path(__file__).parents[1] / "data" / "heads"  # random weights, transformers 5.24.0
ORACLE = pathlib.Path(__file__).parents[1] / "data" / "oracle"
FOLDERS = sorted(p.name for p in HEADS.iterdir())


def load(folder, spelling="config.json", into=None, **changes):
    """Load an oracle folder with changed keys; bert_classifier has one that nobody reads."""
    config = json.loads((HEADS / folder / spelling).read_text()) | changes
    config.pop("sbert_ce_default_activation_function", None)
    (into / "config.json").write_text(json.dumps(config))
    shutil.copy(HEADS / folder / "model.safetensors", into)
    return load_model(into)


@pytest.mark.parametrize("spelling", ["config.json", "config_v4.json"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_trunks_and_classifiers_are_those_of_transformers(tmp_path, folder, spelling):
    model = load(folder, spelling, tmp_path)
    with np.load(HEADS / folder / "oracle.npz") as o:
        given = {k: o[k] for k in ("attention_mask", "token_type_ids") if k in o.files}
        run = model.run(o["input_ids"], **given)
        kept = o["attention_mask"] if "attention_mask" in o.files else np.ones((2, 13))
        kept = kept.astype(bool)
        for got, want in zip(run.hidden_states, o["hidden_states"], strict=True):
            assert np.abs(got[kept] - want[kept]).max() <= 2e-5 * max(1, np.abs(want).max())
        if "logits" in o.files:
            assert run.logits.shape == o["logits"].shape
            assert np.abs(run.logits - o["logits"]).max() <= 2e-5
        else:
            assert run.logits.shape == (2, 13, 0)
            last = o["last_hidden_state"]
            assert np.abs(run.hidden_states[-1][kept] - last[kept]).max() <= 1e-4
    assert not model.arch.head
    assert "lm_head" not in model.gemm_names()


def test_every_family_has_a_trunk():
    """Under the name that transformers gives it; of Bart it has both sides, and of T5 one."""
    for name, family in FAMILIES.items():
        trunks = [c for c in family.classes if c.endswith(("Model", "EncoderModel"))]
        assert trunks, name


MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_tensors_stored_as_one_name_their_parts_in_every_family():
    """A part that is misspelt, or is said to be elsewhere, would show as a KeyError in a load."""
    for name, family in FAMILIES.items():
        tables = [family.names, *(family.names | head.names for head in family.classes.values())]
        for table in tables:
            for ours, at in table.items():
                stored = at.name if isinstance(at, At) else at
                assert set(re.findall("{.*?}", stored)) <= {"{p}", "{i}", "{e}"}, (name, ours)
                parts = at.parts if isinstance(at, At) else ()
                own = [part for part in parts if part in ours.split(".")]
                assert len(own) == bool(parts), (name, ours)
                assert set(parts) <= MODULES, (name, ours)
                for part in parts:
                    assert table.get(ours.replace(own[0], part)) == at, (name, ours, part)


DECODERS = sorted(p.name for p in ORACLE.iterdir() if p.name not in ("bert", "t5"))


def class_of(family, end):
    """Return the class of a family whose name ends so."""
    classes = FAMILIES[family].classes
    return [c for c in classes if c.endswith(end) and not c.endswith("HeadModel")]


@pytest.mark.parametrize("family", DECODERS)
def test_the_trunk_of_a_family_is_its_language_model_without_the_head(tmp_path, family):
    """Under the names a trunk is saved with, with and without a left-over head."""
    whole = load_model(ORACLE / family)
    config = json.loads((ORACLE / family / "config.json").read_text())
    config["architectures"] = class_of(family, "Model")
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = load_file(ORACLE / family / "model.safetensors")
    heads = {k: v for k, v in stored.items() if k.startswith(("lm_head", "embed_out"))}
    trunk = {
        k.removeprefix("model.").removeprefix("transformer.").removeprefix("gpt_neox."): v
        for k, v in stored.items()
        if k not in heads
    }
    for extra in ({}, heads):
        save_file(trunk | extra, tmp_path / "model.safetensors")
        run = load_model(tmp_path).run([5, 1, 7])
        want = whole.run([5, 1, 7])
        states = list(want.hidden_states)
        if whole.arch.embed_dim:  # OPTModel returns what its projection gives
            states[-1] = states[-1] @ whole.tensors["project_out.weight"].T.astype(np.float64)
        assert run.logits.shape == (1, 3, 0)
        assert all(map(np.array_equal, run.hidden_states[:-1], states[:-1]))
        assert np.allclose(run.hidden_states[-1], states[-1], rtol=1e-13, atol=1e-13)


def opt_by_hand(t, ids, heads, *, before):
    """Return the last hidden state of an OPTModel, by the formulas of transformers, in float64."""
    w = {k: v.astype(np.float64) for k, v in t.items()}

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred / spread * w[f"{name}.weight"] + w[f"{name}.bias"]

    steps = len(ids)
    x = linear("decoder.project_in", w["decoder.embed_tokens.weight"][ids])
    x = x + w["decoder.embed_positions.weight"][2 : 2 + steps]
    for i in range(len([k for k in w if k.endswith("fc1.weight")])):
        layer = f"decoder.layers.{i}"
        y = norm(f"{layer}.self_attn_layer_norm", x) if before else x
        q, k, v = (
            linear(f"{layer}.self_attn.{p}_proj", y).reshape(steps, heads, -1).swapaxes(0, 1)
            for p in "qkv"
        )
        scores = (q / np.sqrt(q.shape[-1])) @ k.swapaxes(1, 2)
        scores = np.where(np.tri(steps, dtype=bool), scores, -np.inf)
        soft = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (soft / soft.sum(-1, keepdims=True)) @ v
        x = x + linear(f"{layer}.self_attn.out_proj", mixed.swapaxes(0, 1).reshape(steps, -1))
        x = x if before else norm(f"{layer}.self_attn_layer_norm", x)
        y = norm(f"{layer}.final_layer_norm", x) if before else x
        x = x + linear(f"{layer}.fc2", np.maximum(linear(f"{layer}.fc1", y), 0))
        x = x if before else norm(f"{layer}.final_layer_norm", x)
    x = norm("decoder.final_layer_norm", x) if before else x
    return linear("decoder.project_out", x)


@pytest.mark.parametrize("before", [False, True])
def test_the_trunk_of_opt_350m_ends_with_its_projection(tmp_path, before):
    """The width of its embedding is not that of its layers; opt-350m has norms after each part."""
    r = np.random.default_rng(7)
    h, width, inner, vocab = 12, 8, 20, 30
    t = {
        "embed_tokens.weight": r.normal(size=(vocab, width)),
        "embed_positions.weight": r.normal(size=(18, h)),
        "project_in.weight": r.normal(size=(h, width)),
        "project_out.weight": r.normal(size=(width, h)),
    }
    for i in range(2):
        for name in ("q", "k", "v", "out"):
            t[f"layers.{i}.self_attn.{name}_proj.weight"] = r.normal(size=(h, h)) / 3
            t[f"layers.{i}.self_attn.{name}_proj.bias"] = r.normal(size=h)
        t[f"layers.{i}.fc1.weight"] = r.normal(size=(inner, h))
        t[f"layers.{i}.fc2.weight"] = r.normal(size=(h, inner))
        t[f"layers.{i}.fc1.bias"] = r.normal(size=inner)
        t[f"layers.{i}.fc2.bias"] = r.normal(size=h)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            t[f"layers.{i}.{name}.weight"] = r.normal(size=h)
            t[f"layers.{i}.{name}.bias"] = r.normal(size=h)
    if before:
        t["final_layer_norm.weight"], t["final_layer_norm.bias"] = r.normal(size=(2, h))
    t = {f"decoder.{k}": np.ascontiguousarray(v, np.float32) for k, v in t.items()}
    save_file(t, tmp_path / "model.safetensors")
    config = {
        "model_type": "opt", "architectures": ["OPTModel"], "vocab_size": vocab, "hidden_size": h,
        "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": inner,
        "max_position_embeddings": 16, "word_embed_proj_dim": width,
        "do_layer_norm_before": before, "_remove_final_layer_norm": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, ids = load_model(tmp_path), [5, 1, 7, 29, 0]
    want = opt_by_hand(t, ids, 3, before=before)
    run = model.run(ids)
    assert model.gemm_names()[-1] == "project_out"
    assert [s.shape for s in run.hidden_states] == [(1, 5, h), (1, 5, h), (1, 5, width)]
    assert np.allclose(run.hidden_states[-1][0], want, rtol=1e-11, atol=1e-11)
    layer, params = nn.from_model(model)
    wide = {k: v.astype(np.float64) for k, v in params.items()}
    assert np.array_equal(nn.forward(layer, wide, np.array([ids]))[0], run.hidden_states[-1])
    rules = ("*", Rule()), ("project_out", Rule("int8", "int8", target="ideal.int"))
    last = model.run(ids, Recipe(rules))
    assert 0 < np.abs(last.hidden_states[-1][0] - want).max() < 0.2 * np.abs(want).max()
    np.save(tmp_path / "ids.npy", np.arange(24).reshape(4, 6))
    rows = sweep(
        {"model": tmp_path, "text": tmp_path / "ids.npy", "formats": ["int8"],
         "targets": ["ideal.int"], "granularities": ["per_tensor"]}
    )  # fmt: skip
    whole = rows[rows.layer == "all"]
    assert 0.9 < whole.embedding_cosine.item() < 1


@pytest.mark.parametrize("family", [*DECODERS, "bert"])
def test_the_classifier_of_a_family_scores_its_last_state(tmp_path, family):
    """By hand: of the last token that is no padding, or of the pooler's output."""
    whole = load_model(ORACLE / family)
    config = json.loads((ORACLE / family / "config.json").read_text())
    labels = {"0": "a", "1": "b", "2": "c"}
    scores = class_of(family, "ForSequenceClassification")
    changes = {"architectures": scores, "pad_token_id": 9}
    (tmp_path / "config.json").write_text(json.dumps(config | changes | {"id2label": labels}))
    stored = load_file(ORACLE / family / "model.safetensors")
    stored = {k: v for k, v in stored.items() if not k.startswith(("lm_head", "embed_out"))}
    width = whole.arch.embed_dim or whole.arch.hidden
    weight = np.sin(np.arange(3 * width)).reshape(3, width).astype(np.float32)
    own = {"score.weight": weight}
    if family == "bert":
        own = {"classifier.weight": weight, "classifier.bias": np.float32([1, 2, 3])}
    save_file(stored | own, tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    ids = [[5, 1, 7, 9, 9], [5, 9, 1, 7, 2]]
    run, want = model.run(ids), whole.run(ids)
    assert model.gemm_names()[-1] == "classifier"
    if family == "bert":
        expected = want.pooled @ weight.T.astype(np.float64) + [1, 2, 3]
    else:
        state = want.hidden_states[-1][[0, 1], [2, 4]]
        if whole.arch.embed_dim:
            state = state @ whole.tensors["project_out.weight"].T.astype(np.float64)
        expected = state @ weight.T.astype(np.float64)
    assert np.allclose(run.logits, expected, rtol=1e-12, atol=1e-12)


def test_the_last_token_is_that_before_the_padding():
    x = np.arange(2 * 4, dtype=float).reshape(2, 4, 1)
    ids = np.array([[3, 1, 3, 3], [3, 3, 1, 2]])
    keep = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    assert last_state(x, 3, ids, keep)[:, 0, 0].tolist() == [1.0, 7.0]  # ids alone decide
    assert last_state(x, None, ids, keep)[:, 0, 0].tolist() == [2.0, 7.0]
    assert last_state(x, None, ids, None)[:, 0, 0].tolist() == [3.0, 7.0]
    assert last_state(x, 1, np.ones((2, 4), int), None)[:, 0, 0].tolist() == [
        0.0,
        4.0,
    ]  # all padding
    assert last_state(x, -1, ids, None)[:, 0, 0].tolist() == [3.0, 7.0]


def test_the_number_of_labels_is_that_of_the_names_else_two(tmp_path):
    with pytest.raises(NumsimError, match=r"score\.weight has shape \[1, 32\], expected \[2, 32\]"):
        load("mistral_classifier", into=tmp_path, id2label=None)
    assert load("mistral_classifier", into=tmp_path, id2label=None, num_labels=1).arch.labels == 1
    for bad in ({}, [], "x"):
        with pytest.raises(NumsimError, match="id2label must be a table of the labels"):
            load("mistral_classifier", into=tmp_path, id2label=bad)
    with pytest.raises(NumsimError, match="pad_token_id must be an integer or null"):
        load("mistral_classifier", into=tmp_path, pad_token_id="x")


def test_heads_that_do_not_run_are_named(tmp_path):
    with pytest.raises(
        UnsupportedError, match=r"MistralModel, .*BertForToken.*other heads are not"
    ):
        load("mistral_trunk", into=tmp_path, architectures=["BertForTokenClassification"])
    trunk = load("t5_encoder", into=tmp_path)
    for call in (lambda: trunk.nll([1, 2]), lambda: trunk.generate([1], max_new_tokens=1)):
        with pytest.raises(UnsupportedError, match="no head of the next token"):
            call()
    with pytest.raises(NumsimError, match="is_encoder_decoder must be true"):
        load("t5_encoder", into=tmp_path, architectures=["T5ForConditionalGeneration"],
             is_encoder_decoder=False)  # fmt: skip


def test_an_encoder_of_t5_may_keep_its_table_under_its_own_name(tmp_path):
    want = load("t5_encoder", into=tmp_path).run([3, 4]).hidden_states[-1]
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    assert np.array_equal(load_model(tmp_path).run([3, 4]).hidden_states[-1], want)


def test_a_classifier_in_a_batch_and_alone_gives_the_same_bits(tmp_path):
    model = load("mistral_classifier", into=tmp_path)  # pads with 2
    sr = Quant("int8", "per_token", rounding="sr")
    recipe = Recipe.uniform(sr, target="ideal.int", weights=Quant("int8", "per_channel"), seed=3)
    run = model.run([[5, 6, 7, 2, 2], [9, 8, 7, 6, 5]], recipe, taps=["classifier.*", "logits"])
    assert np.array_equal(run.logits[0], model.run([5, 6, 7], recipe).logits[0])
    assert run.taps["classifier.in"].shape == (2, 1, 32)
    assert np.array_equal(run.taps["logits"], run.logits)


WORDS = [f"w{i}" for i in range(62)]
TEXT = "\n\n".join(" ".join((WORDS * 2)[i : i + 50 + i]) for i in (0, 7, 30)) + "\n\nshort"


def folder_of(name, into):
    """Copy a checkpoint and give it a tokenizer of 64 words that ends a text with </s>, 2."""
    folder = into / name
    shutil.copytree(HEADS / name, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("sbert_ce_default_activation_function", None)
    (folder / "config.json").write_text(json.dumps(config))
    vocab = {word: i for i, word in enumerate([*WORDS[:2], "</s>", "<unk>", *WORDS[2:]])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (into / "text.txt").write_text(TEXT)
    return folder


def swept(name, into, **changes):
    spec = {
        "model": folder_of(name, into), "text": into / "text.txt", "formats": ["int8"],
        "granularities": ["per_tensor"], "targets": ["ideal.int"], "window": 30, "batch": 2,
    }  # fmt: skip
    return sweep(spec | changes)


@pytest.mark.parametrize("name", ["bert_classifier", "mistral_classifier"])
def test_a_sweep_scores_the_labels_of_a_classifier(name, tmp_path, capsys):
    rows = swept(name, tmp_path)
    whole = rows[rows.layer == "all"].iloc[0]
    model = load_model(tmp_path / name)
    tools = load_text_tools(tmp_path / name)
    inputs = read_inputs(model.arch, tools, SweepSpec(window=30), TEXT)
    recipe = Recipe.uniform("int8", target="ideal.int")
    want = np.concatenate([inputs.run(model, part, None, []).logits for part in
                           (slice(0, 2), slice(2, 3))])  # fmt: skip
    got = np.concatenate([inputs.run(model, part, recipe, []).logits for part in
                          (slice(0, 2), slice(2, 3))])  # fmt: skip
    p, q = 1 / (1 + np.exp(-want[:, 0])), 1 / (1 + np.exp(-got[:, 0]))  # of yes
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert whole.kl_nats == pytest.approx(kl.mean(), rel=1e-4, abs=1e-12)
    assert whole.top1_agreement == ((want > 0) == (got > 0)).mean()
    assert whole.max_abs == pytest.approx(np.abs(want - got).max(), rel=1e-4)
    assert whole.mse == pytest.approx(np.mean((want - got) ** 2), rel=1e-4)
    assert whole.tokens == inputs.keep.sum()
    assert rows[rows.op == "classifier"].M.tolist() == [2]
    assert not np.isfinite(float(whole.perplexity or np.nan))
    sweep_table(rows)
    shown = capsys.readouterr().out
    assert "top-1" in shown
    assert "perplexity" not in shown


def test_one_score_is_that_of_yes_against_no():
    assert _answers(np.float32([[2.0], [-1.0]])).tolist() == [[[0.0, 2.0]], [[0.0, -1.0]]]
    assert _answers(np.float32([[1.0, 2.0, 3.0]])).tolist() == [[[1.0, 2.0, 3.0]]]


def test_sentences_of_a_decoder_are_padded_with_its_pad_token(tmp_path):
    folder = folder_of("mistral_classifier", tmp_path)
    inputs = read_inputs(
        load_model(folder).arch, load_text_tools(folder), SweepSpec(window=60), TEXT
    )
    assert inputs.tokens[~inputs.keep].tolist() == [2] * int((~inputs.keep).sum())
    assert (~inputs.keep).any()


@pytest.mark.parametrize("name", ["mistral_trunk", "llama_trunk", "qwen2_trunk", "t5_encoder"])
def test_a_sweep_compares_the_embeddings_of_a_trunk(name, tmp_path):
    rows = swept(name, tmp_path)
    whole = rows[rows.layer == "all"].iloc[0]
    assert 0.9 < whole.embedding_cosine_min <= whole.embedding_cosine < 1


def test_tokens_that_see_only_earlier_ones_make_the_last_the_embedding():
    states = np.array([[[3.0, 4.0], [0.0, 2.0], [5.0, 5.0]], [[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]]])
    keep = np.array([[1, 1, 0], [1, 1, 1]], bool)

    class Run:
        hidden_states = (states,)

    both = Inputs(np.zeros((2, 3), int), keep)
    last = both._replace(last=True).embeddings(Run, slice(0, 2))
    assert last.tolist() == [[0.0, 1.0], [0.6, 0.8]]
    mean = both.embeddings(Run, slice(0, 2))
    assert np.allclose(mean[0], np.array([3, 6]) / 45**0.5)


def test_a_published_reranker_loads_with_one_warning():
    with pytest.warns(ConfigKeyWarning, match=r"sbert_ce.* \(sentence-transformers\)") as caught:
        model = load_model(HEADS / "bert_classifier")
    assert len(caught) == 1
    assert model.unused_keys == ("sbert_ce_default_activation_function",)


def test_a_limit_keeps_the_sentences_that_fit_it_exactly(tmp_path):
    folder = folder_of("bert_classifier", tmp_path)
    tools = load_text_tools(folder)
    whole = read_inputs(load_model(folder).arch, tools, SweepSpec(window=30), TEXT)
    first, both = np.cumsum(whole.keep.sum(axis=1))[:2]
    for limit, rows in ((1, 1), (first, 1), (both - 1, 1), (both, 2), (both + 1, 2), (9999, 3)):
        spec = SweepSpec(window=30, limit_tokens=int(limit))
        assert len(read_inputs(load_model(folder).arch, tools, spec, TEXT).tokens) == rows


def pairs_of(name, into):
    """Return a folder whose tokenizer joins pairs as BERT's: w0 A w1 B w1, B and its end are 1."""
    folder = folder_of(name, into)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="w0 $A w1", pair="w0:0 $A:0 w1:0 $B:1 w1:1", special_tokens=[("w0", 0), ("w1", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_pair_of_texts_is_read_together_with_its_segments(tmp_path):
    folder = pairs_of("bert_classifier", tmp_path)
    model, tools = load_model(folder), load_text_tools(folder)
    given = tools.batch([("w4 w5", "w6"), "w7", ["w8", "w9 w10 w11"]], 7)
    tokens = [[0, 6, 7, 1, 8, 1, 0], [0, 9, 1, 0, 0, 0, 0], [0, 10, 1, 11, 12, 13, 1]]
    assert given["tokens"].tolist() == tokens
    assert given["attention_mask"].sum(axis=1).tolist() == [6, 3, 7]
    assert given["token_type_ids"].tolist() == [
        [0, 0, 0, 0, 1, 1, 0], [0] * 7, [0, 0, 0, 1, 1, 1, 1],
    ]  # fmt: skip
    run = model.run(**given)
    alone = model.run([0, 6, 7, 1, 8, 1], token_type_ids=[[0, 0, 0, 0, 1, 1]])
    assert np.allclose(run.logits[0], alone.logits[0], rtol=1e-12, atol=1e-12)
    one_text = model.run([0, 6, 7, 1, 8, 1]).logits
    assert not np.allclose(alone.logits, one_text, rtol=1e-3)  # segments decide numbers
    cut = tools.batch([("w4 w5 w6 w7", "w8")], 6)["tokens"]
    assert cut.tolist() == [[0, 6, 7, 1, 10, 1]]  # the longer one, first
    for bad in ("w4 w5", [], [("a", "b", "c")], [("a", 3)], [3], 3, None):
        with pytest.raises(NumsimError, match=r"list of texts, or of pairs .*one pair is \[\("):
            tools.batch(bad)


def test_segments_are_given_only_where_network_and_tokenizer_have_them(tmp_path):
    folder = pairs_of("mistral_classifier", tmp_path)
    assert sorted(load_text_tools(folder).batch([("w4", "w5")])) == ["attention_mask", "tokens"]
    folder = pairs_of("bert_classifier", tmp_path)
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    assert "token_type_ids" not in load_text_tools(folder).batch([("w4", "w5")])
    (folder / "tokenizer_config.json").write_text("{}")
    assert "token_type_ids" in load_text_tools(folder).batch([("w4", "w5")])


@pytest.mark.parametrize("name", ["bert_classifier", "mistral_classifier", "llama_trunk"])
def test_a_sweep_reads_pairs_of_texts_from_json_lines(name, tmp_path):
    folder = pairs_of(name, tmp_path)
    lines = (
        '{"query": "w4 w5", "passage": "w6 w7", "label": "no", "text": "w9"}\n\n'
        '{"id": 3, "text": "w7", "text_pair": "w8"}\n["w8", "w9"]\n{"text": "w10"}\r\n"w11"\n'
    )
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines, encoding="utf-8-sig")
    model, tools = load_model(folder), load_text_tools(folder)
    inputs = read_inputs(model.arch, tools, SweepSpec(text=path), path.read_text())
    given = tools.batch([("w4 w5", "w6 w7"), ("w7", "w8"), ("w8", "w9"), "w10", "w11"])
    assert np.array_equal(inputs.keep, given["attention_mask"].astype(bool))
    assert np.array_equal(inputs.tokens[inputs.keep], given["tokens"][inputs.keep])
    if name == "bert_classifier":
        assert np.array_equal(inputs.types, given["token_type_ids"])
        got = inputs.run(model, slice(1, 3), None, []).logits
        given = {key: value[1:3, :5] for key, value in given.items()}
        assert np.array_equal(got, model.run(**given).logits)
    rows = sweep({
        "model": folder, "text": path, "formats": ["int8"], "granularities": ["per_tensor"],
        "targets": ["ideal.int"], "batch": 2,
    })  # fmt: skip
    assert rows[rows.layer == "all"].tokens.item() == inputs.keep.sum()
    assert rows[rows.op == "q_proj"].M.iloc[0] == 7 + 5  # the first batch, without padding


def test_json_lines_are_no_running_text(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "one two three"}\n')
    with pytest.raises(
        NumsimError, match=r"llama reads running text; .*t\.jsonl has a text in each"
    ):
        sweep(formats=["int8"], text=path)


@pytest.mark.parametrize(
    "line",
    ["3", "{}", '["a"]', '["a", "b", "c"]', '["a", 3]', '{"query": "a", "passage": null}',
     '{"sentence": "a", "label": "b"}', "null"],
)  # fmt: skip
def test_a_json_line_that_is_no_text_is_named(tmp_path, line):
    with pytest.raises(NumsimError, match=r"p\.jsonl, line 2: a line is a text.*rename its fields"):
        json_texts(f'"w4"\n{line}\n', "p.jsonl")


def test_a_json_line_that_is_no_json_is_named():
    with pytest.raises(NumsimError, match=r"p\.jsonl, line 3: not JSON .*one text or pair a line"):
        json_texts('"w4"\n\nw5\n', "p.jsonl")
