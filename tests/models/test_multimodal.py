"""The text model within checkpoints that read pictures, against transformers on a text alone."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from numsim.errors import LeftOutWarning, NumsimError, UnsupportedError
from numsim.models import describe_model, load_model, load_text_tools
from numsim.models.describe import description_rows
from numsim.models.multimodal import text_config

FOLDERS = sorted((pathlib.Path(__file__).parents[1] / "data" / "multimodal").iterdir())
FAMILY = {"gemma3": "gemma3_text", "llama4": "llama4_text", "qwen3_vl": "qwen3", "llava": "llama",
          "mistral3": "mistral", "qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2",
          "qwen3_vl_moe": "qwen3_vl_moe_text"}  # fmt: skip


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_the_text_model_runs_and_what_is_left_out_is_said(folder):
    with pytest.warns(LeftOutWarning, match=r"the text model runs; left out: .*tensors\)"):
        model = load_model(folder)
    assert model.arch.family == FAMILY[folder.name]
    assert model.left_out
    with np.load(folder / "oracle.npz") as o:
        got, want = model.run(o["input_ids"]).logits, o["logits"]
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()
    found = describe_model(folder)
    assert found.arch == model.arch
    assert "left out" in dict(description_rows(found))
    assert load_text_tools(folder).vocab == model.arch.vocab


def changed(folder, into, drop=(), **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {k: v for k, v in config.items() if k not in drop}
    (into / "config.json").write_text(json.dumps(config))
    shutil.copy(folder / "model.safetensors", into)
    return into


def test_experts_in_either_order(tmp_path):
    folder = by_name("qwen3_vl_moe")
    changed(folder, tmp_path)
    stored = load_file(folder / "model.safetensors")
    turned = {n: np.swapaxes(t, 1, 2).copy() for n, t in stored.items() if ".experts." in n}
    assert len(turned) == 4
    save_file(stored | turned, tmp_path / "model.safetensors")
    with pytest.warns(LeftOutWarning):
        one, two = load_model(folder), load_model(tmp_path)
    assert np.array_equal(one.run([[5, 6, 7]]).logits, two.run([[5, 6, 7]]).logits)
    for name in ("layers.0.experts.3.up_proj.weight", "layers.2.experts.4.down_proj.weight"):
        assert np.array_equal(one.tensors[name], two.tensors[name])


@pytest.mark.parametrize("wide", [16, 32])
def test_an_expert_that_is_square_lies_as_the_other_one_shows(tmp_path, wide):
    """gate_up_proj is square where hidden is 2 wide, down_proj where it is wide."""
    folder, rng = by_name("qwen3_vl_moe"), np.random.default_rng(wide)
    config = json.loads((folder / "config.json").read_text())["text_config"]
    hidden = config["hidden_size"]
    assert hidden == 32
    stored = load_file(folder / "model.safetensors")
    for name, t in stored.items():
        if ".experts." in name:
            last = (hidden, 2 * wide) if "gate_up" in name else (wide, hidden)
            stored[name] = rng.normal(size=(len(t), *last)).astype(t.dtype) / 8
    turned = {n: np.swapaxes(t, 1, 2).copy() for n, t in stored.items() if ".experts." in n}
    models = []
    for at, tensors in enumerate((stored, stored | turned)):
        (tmp_path / str(at)).mkdir()
        into = changed(folder, tmp_path / str(at),
                       text_config=config | {"moe_intermediate_size": wide})  # fmt: skip
        save_file(tensors, into / "model.safetensors")
        with pytest.warns(LeftOutWarning):
            models.append(load_model(into))
    one, two = (model.run([[5, 6, 7]]).logits for model in models)
    assert np.array_equal(one, two)


def test_architectures_that_are_no_list(tmp_path):
    changed(by_name("qwen3_vl"), tmp_path, architectures=-1)
    with pytest.raises(UnsupportedError, match="must be Qwen3VLForConditionalGeneration"):
        describe_model(tmp_path)


def by_name(name):
    return next(p for p in FOLDERS if p.name == name)


def test_the_older_spelling_has_keys_of_the_text_beside_those_of_pictures(tmp_path):
    folder = by_name("qwen2_vl")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    text |= {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "rope_theta": 1e4}
    text = {k: v for k, v in text.items() if k not in ("rope_parameters", "model_type")}
    older = changed(folder, tmp_path, ["text_config"], **text, tie_word_embeddings=False)
    with pytest.warns(LeftOutWarning):
        got, want = load_model(older), load_model(folder)
    assert got.arch == want.arch
    assert np.array_equal(got.run([[5, 6, 7]]).logits, want.run([[5, 6, 7]]).logits)


def test_a_config_of_gemma3_leaves_out_what_is_the_default():
    """As published: the rest of the keys of the text is that of the class."""
    text, is_part = text_config({
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"hidden_size": 2560, "model_type": "gemma3_text", "sliding_window": 1024},
    })  # fmt: skip
    assert is_part
    assert text["model_type"] == "gemma3_text"
    assert text["hidden_size"] == 2560


def test_what_is_not_known_of_the_larger_config_is_refused(tmp_path):
    folder = by_name("gemma3")
    with pytest.raises(NumsimError, match=r"gemma3 is known to have; unknown: zzz_scale"):
        load_model(changed(folder, tmp_path, zzz_scale=2))
    with pytest.raises(UnsupportedError, match="must be Gemma3ForConditionalGeneration, whose"):
        load_model(changed(folder, tmp_path, architectures=["Gemma3ForSequenceClassification"]))
    with pytest.raises(NumsimError, match="text_config must be a table"):
        load_model(changed(folder, tmp_path, text_config=[1]))
    with pytest.raises(NumsimError, match="model_type is required"):
        load_model(changed(by_name("llava"), tmp_path, text_config={"hidden_size": 32}))
