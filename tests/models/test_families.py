"""Every folder of `tests/data/families` and `twins` against the float64 tensors of transformers.

`families`: the settings that published checkpoints have, random weights; `twins`: other settings of
the keys that few families have. A new family is one table entry and one folder here.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from numsim.errors import NumsimError, UnsupportedError
from numsim.models import Past, Recipe, Rule, load_model
from numsim.models.gemm import packed_bytes
from numsim.models.memory import block_bytes
from numsim.models.taps import tap_names
from numsim.quant import Quant

DATA = pathlib.Path(__file__).parents[1] / "data"
PUBLISHED = sorted((DATA / "families").iterdir())
FOLDERS = PUBLISHED + sorted((DATA / "twins").iterdir())
PLAIN = Recipe((("*", Rule()),))
INT8 = Recipe.uniform(
    Quant("int8", "per_token"), target="ideal.fp32", weights=Quant("int8", "per_channel")
)


def every(folders):
    return pytest.mark.parametrize("folder", folders, ids=lambda p: p.name)


def oracle(folder):
    with np.load(folder / "oracle.npz") as npz:
        return {k: npz[k] for k in npz.files}


def inputs(o):
    given = {k: o[k] for k in ("attention_mask", "token_type_ids") if k in o}
    return given | ({"decoder_tokens": o["decoder_input_ids"]} if "decoder_input_ids" in o else {})


def kept(o):
    """Positions whose values somebody uses, [B, T]."""
    if "attention_mask" in o and "decoder_input_ids" not in o:
        return o["attention_mask"].astype(bool)
    return np.ones(o.get("decoder_input_ids", o["input_ids"]).shape, bool)


def close(got, want, tolerance=2e-5):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("spelling", ["config.json", "config_v4.json"])
@every(FOLDERS)
def test_reference_matches_transformers(tmp_path, folder, spelling):
    o = oracle(folder)
    shutil.copy(folder / "model.safetensors", tmp_path)
    shutil.copy(folder / spelling, tmp_path / "config.json")
    model = load_model(tmp_path)
    run, valid = model.run(o["input_ids"], **inputs(o)), kept(o)
    if "logits" in o:
        rows = valid if o["logits"].ndim == 3 else ...
        close(run.logits[rows], o["logits"][rows])
    else:
        assert run.logits.shape == (*valid.shape, 0)
    if "last_hidden_state" in o:
        close(run.hidden_states[-1][valid], o["last_hidden_state"][valid])
    if "pooler_output" in o:
        close(run.pooled, o["pooler_output"])
    states = o.get("decoder_hidden_states", o.get("hidden_states", ()))
    for got, want in zip(run.hidden_states, states, strict=bool(len(states))):
        close(got[valid], want[valid])
    read = o.get("attention_mask", valid).astype(bool)
    for got, want in zip(
        run.encoder_hidden_states if "encoder_hidden_states" in o else (),
        o.get("encoder_hidden_states", ()),
        strict=True,
    ):
        close(got[read], want[read])
    if "greedy_ids" in o:
        count = len(o["greedy_ids"])
        for recipe in (None, PLAIN):
            ids = model.generate(o["input_ids"][0], recipe, max_new_tokens=count)
            assert ids[-count:].tolist() == o["greedy_ids"].tolist()


def predicts(folder):
    return "ForCausalLM" in (folder / "config.json").read_text()


@every([p for p in PUBLISHED if predicts(p)])
def test_decoding_gives_the_bits_of_prefill(folder):
    """One token at a time after the first five, in the reference and with quantised products."""
    model, ids = load_model(folder), oracle(folder)["input_ids"]
    for recipe in (None, INT8):
        whole = model.run(ids, recipe).logits
        past = Past()
        long = [r for r in [model.arch.rope] if r is not None and r.kind == "longrope"]
        first = 9 if long and long[0].longest == 8 else 5  # beyond, all keys turn anew
        steps = [model.run(ids[:, :first], recipe, past=past).logits]
        steps += [
            model.run(ids[:, t : t + 1], recipe, past=past).logits
            for t in range(first, ids.shape[1])
        ]
        assert np.array_equal(np.concatenate(steps, axis=1), whole)


@every(PUBLISHED)
def test_a_row_alone_gives_the_bits_of_the_batch(folder):
    """Without its padding, where it has some."""
    o, model = oracle(folder), load_model(folder)
    whole = model.run(o["input_ids"], INT8, **inputs(o))
    length = int(o["attention_mask"][1].sum()) if "attention_mask" in o else o["input_ids"].shape[1]
    alone = {k: v[1:, :length] for k, v in inputs(o).items() if k != "attention_mask"}
    if "decoder_input_ids" in o:
        alone = {"decoder_tokens": o["decoder_input_ids"][1:]}
    run = model.run(o["input_ids"][1:, :length], INT8, **alone)
    for got, want in zip(run.hidden_states, whole.hidden_states, strict=True):
        assert np.array_equal(got[0], want[1, : got.shape[1]])
    want = whole.logits[1]
    assert np.array_equal(run.logits[0], want if want.ndim == 1 else want[: len(run.logits[0])])


@every(PUBLISHED)
def test_every_named_tensor_can_be_kept(folder):
    """But for those of experts that no token chose."""
    o, model = oracle(folder), load_model(folder)
    run = model.run(o["input_ids"], taps="*", **inputs(o))
    missing = {name for name in tap_names(model.arch) if name not in run.taps}
    assert all(".experts." in name for name in missing)
    assert set(run.taps) <= set(tap_names(model.arch))


@every(PUBLISHED)
def test_less_memory_gives_the_same_bits(folder):
    o, whole = oracle(folder), load_model(folder)
    limit = max(block_bytes(packed_bytes(whole.tensors, None, whole.gemm_names())).values())
    small = load_model(folder, memory_limit=limit)
    got, want = (m.run(o["input_ids"], **inputs(o)).hidden_states[-1] for m in (small, whole))
    assert np.array_equal(got, want)
    assert small.cache.used_bytes <= limit


def changed(folder, into, drop=(), extra=None, **changes):
    """Write a folder with changed keys and tensors."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (into / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    tensors = {k: v for k, v in tensors.items() if k not in drop} | (extra or {})
    save_file(tensors, into / "model.safetensors")
    return into


@every(PUBLISHED)
def test_keys_and_tensors_nobody_knows_are_refused(tmp_path, folder):
    with pytest.raises(NumsimError, match="unknown: zzz_scale"):
        load_model(changed(folder, tmp_path, zzz_scale=2.0))
    with pytest.raises(UnsupportedError, match="architectures must name one of"):
        load_model(changed(folder, tmp_path, architectures=["BertForTokenClassification"]))
    with pytest.raises(UnsupportedError, match="add_cross_attention"):
        load_model(changed(folder, tmp_path, add_cross_attention=True))
    more = {"extra.weight": np.zeros(3, np.float32)}
    with pytest.raises(NumsimError, match=r"1 problem:\n  surplus extra\.weight"):
        load_model(changed(folder, tmp_path, extra=more))
    stored = load_file(folder / "model.safetensors")
    for name in (next(k for k in stored if "layer" in k or ".h." in k or "block" in k), *stored):
        if name.endswith("final_logits_bias") or "pooler" in name:
            continue
        bad = {name: np.zeros((3, 3), np.float32)}
        with pytest.raises(NumsimError, match=r"problems?:\n"):
            load_model(changed(folder, tmp_path, drop=[name]))
        with pytest.raises(NumsimError, match=r"has shape .*, expected|problem"):
            load_model(changed(folder, tmp_path, extra=bad))
        break
