"""What `numsim model` says of checkpoints, counted by hand, before any weight is read."""

import json
import pathlib
import shutil

import pytest
from safetensors.numpy import load_file

from numsim.cli import app
from numsim.errors import NumsimError
from numsim.models import describe_model, load_model
from numsim.models.describe import description_rows, product_cells

DATA = pathlib.Path(__file__).parents[1] / "data"
FOLDERS = sorted((DATA / "families").iterdir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_parameters_are_those_stored_and_products_those_that_run(folder):
    found = describe_model(folder)
    stored = load_file(folder / "model.safetensors")
    size = sum(v.size for v in stored.values())
    assert found.parameters == size
    assert sum(t.tensors for t in found.stored) == len(stored)
    assert sum(t.bytes for t in found.stored) == sum(v.nbytes for v in stored.values())
    model = load_model(folder)
    assert sum(p.times for p in found.products) == len(model.gemm_names())
    assert found.arch == model.arch
    for product in found.products:
        name = product.name.replace("*", "0")
        while f"{name}.weight" not in model.tensors and "layers.0" in name and product.k:
            if product.n is None:
                break
            name = name.replace("layers.0", "layers.1")  # layer 0 has an MLP of its own
        if None not in (product.k, product.n):
            assert model.tensors[f"{name}.weight"].shape == (product.n, product.k)


def test_of_experts_a_token_runs_those_it_chooses():
    """gpt_oss: 2 layers of 4 experts with 3 matrices and biases, of which a token skips two."""
    found = describe_model(DATA / "families" / "gpt_oss")
    one = 2 * 32 * 32 + 2 * 32 + 32 * 32 + 32
    assert found.parameters - found.active == 2 * 2 * one
    rows = dict(description_rows(found))
    assert rows["experts"] == "4 of 32, 2 a token"
    assert rows["layers"] == "2: 1 in windows of 4, 1 that see all"
    assert ("layers.*.experts.*.down_proj", "32", "32", "8") in product_cells(found)


def test_the_command_prints_it_and_reads_no_weight(tmp_path, capsys):
    folder = DATA / "families" / "olmo2"
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-64:] = b"\xff" * 64  # NaN, which a run would refuse
    (tmp_path / "model.safetensors").write_bytes(data)
    app(["model", str(tmp_path)], standalone_mode=False)
    out = capsys.readouterr().out
    assert "olmo2 (Olmo2ForCausalLM): a decoder that predicts the next token" in out
    assert "BF16: 25 tensors, 0.0 MB" in out
    with pytest.raises(NumsimError, match="NaN"):
        load_model(tmp_path)


def test_a_config_that_is_none_of_ours_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(NumsimError, match=r"model_type must be one of .*; got 'mamba'; other"):
        describe_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "classes", "hint"),
    [
        ("xlm_roberta", None, "near names: xlm-roberta"),
        ("gptneox", None, "near names: gpt_neox"),
        ("qwen3_next", ["Qwen3NextForCausalLM"], "of the same kind: qwen3_moe"),
        ("mbart", ["MBartForConditionalGeneration"], "of the same kind: bart"),
        ("lama", ["LlamaForCausalLM"], "LlamaForCausalLM is a class of llama"),
        ("kimi", ["DeepseekV3ForCausalLM"], "is a class of deepseek_v3 and kimi_k2"),
        ("glm4v", ["Glm4vForConditionalGeneration"], ""),  # like glm4, which reads no pictures
        ("bloomz", ["BloomzForMaskedLM"], ""),  # like bloom, which is no encoder
        ("deberta", None, ""),
        ("whisper", ["WhisperForConditionalGeneration"], ""),
        ("mamba", ["MambaForCausalLM"], ""),
    ],
)
def test_a_hint_names_families_of_the_same_kind_or_none(tmp_path, name, classes, hint):
    config = {"model_type": name} | ({"architectures": classes} if classes else {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NumsimError) as error:
        load_model(tmp_path)
    said = str(error.value)
    assert hint in said
    assert ("near names" in said or "is a class of" in said) == bool(hint)


@pytest.mark.parametrize(
    ("name", "key"), [("phi3", "num_hidden_layers"), ("qwen3_moe", "num_experts")]
)
def test_more_layers_or_experts_than_tensors_are_refused_at_once(tmp_path, name, key):
    """Names were made for each of them, until memory ended; `load_model` refused."""
    config = json.loads((DATA / "families" / name / "config_v4.json").read_text()) | {key: 2**31}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(DATA / "families" / name / "model.safetensors", tmp_path)
    for read in (describe_model, load_model):
        with pytest.raises(NumsimError, match=f"config.json says {key} 2147483648"):
            read(tmp_path)
