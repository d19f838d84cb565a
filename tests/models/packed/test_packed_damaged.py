"""Damaged, contradictory and unknown packed checkpoints: the file, the tensor, the rule."""

import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from packing import DATA, base, save

from numsim.cli import main
from numsim.errors import NumsimError, UnsupportedError
from numsim.models import describe_model, load_model
from numsim.models.stored import map_file, metadata, stored_tensors, view

NARROW = {"F8_E4M3": ml_dtypes.float8_e4m3fn}
Q = "model.layers.0.self_attn.q_proj"


def opened(kind):
    """Return config and tensors of a packed network."""
    stored = stored_tensors(DATA / kind)
    maps = {t.file: map_file(t.file) for t in stored.values()}
    tensors = {n: np.array(view(maps, t)) for n, t in stored.items()}
    for name, t in stored.items():
        if t.dtype in NARROW:
            tensors[name] = tensors[name].view(NARROW[t.dtype])
    return json.loads((DATA / kind / "config.json").read_text()), tensors


def damaged(tmp_path, kind, change=None, **table):
    """Write a network after `change(tensors)`, and with other words in its table."""
    config, tensors = opened(kind)
    if change is not None:
        change(tensors)
    if table:
        config["quantization_config"] |= table
    said = metadata([DATA / kind / "model.safetensors"])
    folder = save(tmp_path / "m", config, tensors, said)
    for path in (DATA / kind).glob("*quant*.json"):
        if path.name != "quant.json":
            shutil.copy(path, folder)
    return folder


def refused(folder, words, kind=NumsimError):
    with pytest.raises(kind) as caught:
        load_model(folder)
    text = str(caught.value)
    assert re.search(words, text), text
    assert "\n" not in text
    assert len(text) < 600
    return text


LACKING = [
    ("awq", ".scales"), ("awq", ".qzeros"), ("bnb_int8", ".SCB"), ("bnb_nf4", ".weight.absmax"),
    ("bnb_nf4", ".weight.quant_map"), ("bnb_nf4", ".weight.nested_absmax"),
    ("bnb_nf4", ".weight.quant_state.bitsandbytes__nf4"), ("ct_fp8_block", ".weight_scale"),
    ("ct_fp8_tensor_static", ".input_scale"), ("ct_mxfp4", ".weight_scale"),
    ("ct_nvfp4", ".weight_scale"), ("ct_nvfp4", ".weight_global_scale"),
    ("ct_nvfp4", ".input_global_scale"), ("ct_w4a16_asym", ".weight_zero_point"),
    ("deepseek_fp8_block", ".weight_scale_inv"), ("gptq", ".scales"), ("gptq", ".qzeros"),
    ("gptq_act_order", ".g_idx"), ("ct_w4a16_actorder", ".weight_g_idx"),
    ("modelopt_fp8", ".input_scale"), ("modelopt_nvfp4", ".weight_scale_2"),
    ("fbgemm_fp8", ".weight_scale"), ("torchao", "._weight_scale"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "end"), LACKING)
def test_a_missing_part_is_named_with_its_file(tmp_path, kind, end):
    stem = "model.layers.0.mlp.down_proj"
    folder = damaged(tmp_path, kind, lambda tensors: tensors.pop(stem + end))
    shown = ".quant_state" if "quant_state" in end else end
    refused(folder, rf"model\.safetensors: {stem}.*{shown}.* must be stored beside {stem}")


def write(name, change):
    """Return a change of one tensor: an index and a value, or a function."""

    def run(tensors):
        if callable(change):
            tensors[name] = change(tensors[name])
        else:
            tensors[name] = tensors[name].copy()
            tensors[name].reshape(-1)[change[0]] = change[1]

    return run


SHAPES = [
    ("gptq", f"{Q}.scales", lambda t: t[:1], r"q_proj\.scales must be \[2, 64\].*got \[1, 64\]"),
    ("gptq", f"{Q}.qzeros", lambda t: t[:, 1:], r"q_proj\.qzeros must be \[2, 8\]"),
    ("gptq", f"{Q}.g_idx", lambda t: t[1:], r"q_proj\.g_idx must be \[64\]"),
    ("awq", f"{Q}.qzeros", lambda t: t[1:], r"q_proj\.qzeros must be \[2, 8\]"),
    ("ct_w4a16_asym", f"{Q}.weight_zero_point", lambda t: t[1:], r"zero_point must be \[8, 2\]"),
    ("ct_w4a16_group", f"{Q}.weight_shape", (1, 72), r"weight_shape must be the shape of a matrix"),
    ("ct_w4a16_group", f"{Q}.weight_shape", (0, -64), r"weight_shape must be the shape"),
    ("ct_w4a16_group", f"{Q}.weight_packed", lambda t: t[:, :0], r"must be a matrix"),
    ("ct_fp8_block", f"{Q}.weight_scale", lambda t: t[:, :1], r"\[1, 2\].*blocks of \(128, 128\)"),
    ("deepseek_fp8_block", f"{Q}.weight_scale_inv", lambda t: t[:1], r"scale_inv must be \[2, 2\]"),
    ("ct_nvfp4", f"{Q}.weight_global_scale", lambda t: t.repeat(2), r"must be \[\], one number"),
    ("bnb_nf4", f"{Q}.weight.absmax", lambda t: t[1:], r"absmax must have 64 elements"),
    ("bnb_nf4", f"{Q}.weight", lambda t: t[1:], r"q_proj\.weight must have 2048 elements"),
    ("bnb_nf4", f"{Q}.weight.quant_map", lambda t: t[1:], r"quant_map must have 16 elements"),
    ("bnb_nf4", f"{Q}.weight.quant_state.bitsandbytes__nf4", (0, 0), r"quant_state must be JSON"),
    ("bnb_nf4", f"{Q}.weight.nested_absmax", lambda t: t.astype(np.int32), "stored as F64 or F32"),
    ("bnb_nf4", f"{Q}.weight.absmax", lambda t: t.astype(np.int64), "stored as F64 or F32"),
    ("ct_w4a16_group", f"{Q}.weight_shape", lambda t: t[:0], r"weight_shape must be .*got \[\]"),
    ("gptq_v2", f"{Q}.scales", lambda t: t.reshape(-1), r"scales must be \[1, 64\].*got \[64\]"),
]


@pytest.mark.parametrize(("kind", "name", "change", "words"), SHAPES)
def test_parts_that_do_not_fit_each_other(tmp_path, kind, name, change, words):
    refused(damaged(tmp_path, kind, write(name, change)), rf"model\.safetensors: .*{words}")


def test_scales_of_nf4_are_read_in_any_shape(tmp_path):
    """A column of them was a traceback."""
    plain = load_model(DATA / "bnb_nf4").tensors[f"{Q}.weight"].dequantize()
    folder = damaged(tmp_path, "bnb_nf4", write(f"{Q}.weight.absmax", lambda t: t[:, None]))
    assert np.array_equal(load_model(folder).tensors[f"{Q}.weight"].dequantize(), plain)


VALUES = [
    ("gptq", f"{Q}.qzeros", (0, -1), r"qzeros must hold zero points from 0 to 15; got 16 \(8 such"),
    ("gptq_act_order", f"{Q}.g_idx", (0, 1), r"g_idx must put 32 columns into each of 2 groups"),
    ("gptq_act_order", f"{Q}.g_idx", (0, 2), r"g_idx must put .*groups 0 to 2"),
    ("ct_w4a16_actorder", f"{Q}.weight_g_idx", (5, -3), r"weight_g_idx must put .*groups -3 to"),
    ("gptq_v2", f"{Q}.g_idx", (9, 1), r"g_idx must put 64 columns into each of 1 groups"),
    ("ct_fp8_channel_dynamic", f"{Q}.weight_scale", (3, np.nan), "must hold finite scales"),
    ("ct_mxfp4", f"{Q}.weight_scale", (3, 255), "must hold finite scales; got 1 NaN or Inf"),
    ("modelopt_nvfp4", f"{Q}.weight_scale", (0, -1.0), "must hold scales above 0; got negative"),
    ("modelopt_nvfp4", f"{Q}.weight_scale_2", (0, 0.0), "must be finite and above 0; got 0"),
    ("ct_nvfp4", f"{Q}.input_global_scale", (0, np.inf), "must be finite and above 0; got inf"),
    ("fbgemm_fp8", "model.layers.0.mlp.up_proj.weight", (7, np.nan), "must hold finite weights"),
    ("bnb_nf4", f"{Q}.weight.nested_absmax", (0, np.inf), "must hold finite scales"),
    ("bnb_nf4", f"{Q}.weight.quant_map", (3, np.nan), "quant_map must hold finite numbers"),
    ("bnb_nf4", f"{Q}.weight.quant_map", lambda t: t * 0, "quant_map must hold .*some above 0"),
]


@pytest.mark.parametrize(("kind", "name", "change", "words"), VALUES)
def test_values_that_no_quantiser_writes(tmp_path, kind, name, change, words):
    refused(damaged(tmp_path, kind, write(name, change)), rf"model\.safetensors: .*{words}")


TABLES = [
    ("gptq", {"group_size": 64}, r"scales must be \[2, 64\].*blocks of 64; got \[3, 64\]; correct"),
    ("gptq", {"group_size": 0}, "group_size must be a number of inputs, or -1; got 0"),
    ("gptq", {"bits": 3}, r"scales must be \[4, 64\].* \[64, 128\] in blocks of 32"),
    ("gptq", {"bits": 5}, "bits must be 2 or 3 or 4 or 8; got 5"),
    ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format must be gptq"),
    ("gptq", {"dynamic": {"-:.*": {}}}, "dynamic must be absent or empty"),
    ("awq", {"version": "gemv"}, "version must be gemm"),
    ("awq", {"group_size": 16}, r"scales must be \[6, 64\]"),
    ("deepseek_fp8_block", {"weight_block_size": [64, 64]}, r"weight_scale_inv must be \[3, 3\]"),
    ("deepseek_fp8_block", {"weight_block_size": [64]}, r"must be two sizes, \[rows, columns\]"),
    ("deepseek_fp8_block", {"fmt": "e5m2"}, "fmt must be e4m3"),
    ("bnb_int8", {"load_in_4bit": True}, "one of load_in_8bit and load_in_4bit .* got both"),
    ("ct_w4a16_actorder", {"format": "marlin-24"}, "format must be float-quantized.*'marlin-24'"),
    ("ct_w4a16_group", {"config_groups": []}, "config_groups must be a table of groups"),
    ("ct_w4a16_group", {"transform_config": {"a": 1}}, "transform_config must be absent or empty"),
    ("ct_w4a16_group", {"quantization_status": "frozen"}, "quantization_status must be compressed"),
    ("ct_fp8_block", {"kv_cache_scheme": True}, "kv_cache_scheme must be a table or null; got T"),
    ("ct_fp8_block", {"quant_method": "fp8"}, r"weight_scale must be \[\], .*got \[2, 2\]"),
]


@pytest.mark.parametrize(("kind", "table", "words"), TABLES)
def test_tables_that_do_not_fit_or_are_not_read(tmp_path, kind, table, words):
    refused(damaged(tmp_path, kind, **table), words)


@pytest.mark.parametrize("target", ["re:(", 3, None])
def test_targets_that_are_no_patterns(tmp_path, target):
    config, tensors = opened("ct_w4a16_group")
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = [target]
    refused(save(tmp_path / "m", config, tensors), "targets must be names, classes or patterns")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("input_activations", True, "input_activations must be a table or null; got True"),
        ("input_activations", {}, "input_activations must be a table or null; got {}"),
        ("symmetric", 0, "symmetric must be True or False or null; got 0"),
        ("dynamic", "yes", "dynamic must be True or False or null or local; got 'yes'"),
    ],
)
def test_activations_of_other_words(tmp_path, key, value, words):
    config, tensors = opened("ct_fp8_channel_dynamic")
    group = config["quantization_config"]["config_groups"]["group_0"]
    (group if key in group else group["input_activations"])[key] = value
    refused(save(tmp_path / "m", config, tensors), words)


def test_two_groups_of_one_target(tmp_path):
    config, tensors = opened("ct_w4a16_group")
    groups = config["quantization_config"]["config_groups"]
    groups["group_1"] = groups["group_0"]
    refused(save(tmp_path / "m", config, tensors), "a module is of one group; 'Linear' is")


def test_two_methods_at_once(tmp_path):
    folder = damaged(tmp_path, "gptq")
    table = {"quantization": {"quant_algo": "NVFP4"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(table))
    words = r"packed by one method; got two at once: quantization_config of config\.json says "
    refused(folder, words + r"quant_method 'gptq', bits 4 and hf_quant_config\.json, of ModelOpt")


def test_tensors_of_another_method_than_declared(tmp_path):
    config, tensors = opened("ct_w4a16_group")
    config["quantization_config"] = opened("gptq")[0]["quantization_config"]
    words = r"weight_packed must belong to a weight of gptq.* got a tensor of compressed-tensors"
    refused(save(tmp_path / "m", config, tensors), words, UnsupportedError)


def test_a_weight_stored_packed_and_plain(tmp_path):
    def both(tensors):
        tensors[f"{Q}.weight"] = np.zeros((64, 64), np.float16)

    words = r"q_proj\.weight must be stored once; model\.safetensors has it packed too; got F16"
    refused(damaged(tmp_path, "gptq", both), words)


@pytest.mark.parametrize("zero", [0, 1])
def test_zero_points_of_a_symmetric_method_are_zeros(tmp_path, zero):
    def add(tensors):
        for name in [name for name in tensors if name.endswith(".weight_scale")]:
            stored = np.full(tensors[name].shape, zero, np.int8)
            tensors[name.replace("weight_scale", "weight_zero_point")] = stored

    folder = damaged(tmp_path, "ct_int8_w8a8", add)
    if zero:
        refused(folder, r"weight_zero_point must be 0 or absent: .* is declared symmetric")
    else:
        assert load_model(folder).tensors["layers.0.q_proj.weight"].zero_point is None


def test_scales_that_belong_to_nothing(tmp_path):
    def one_more(tensors):
        tensors["model.norm.weight_scale"] = np.ones(1, np.float32)

    words = r"model\.norm\.weight_scale must belong to a weight of compressed-tensors"
    refused(damaged(tmp_path, "ct_fp8_channel_dynamic", one_more), words, UnsupportedError)


@pytest.mark.parametrize(
    ("changes", "file", "says"),
    [
        (
            {"quantization_config": {"quant_method": "aqlm", "bits": 2}}, None,
            "quantization_config of config.json says quant_method 'aqlm', bits 2",
        ),
        (
            {"compression_config": {"quant_method": "sparseml", "format": "dense"}}, None,
            "compression_config of config.json says quant_method 'sparseml', format 'dense'",
        ),
        (
            {"quantization": {"group_size": 64, "bits": 4}}, None,
            "quantization of config.json, of MLX, says bits 4",
        ),
        ({}, None, r"its tensors \*.qweight are those of GPTQ or AWQ"),
    ],
)  # fmt: skip
def test_methods_that_are_not_read_are_named(tmp_path, changes, file, says):
    config, tensors, _ = base()
    tensors[f"{Q}.qweight"] = np.zeros((4, 4), np.int32)
    folder = save(tmp_path / "m", config | changes, tensors)
    text = refused(folder, f"are packed: {says}; .*dequantise", UnsupportedError)
    assert "compressed-tensors, fp8, modelopt, gptq, awq" in text


def test_modelopt_algorithms_that_are_not_read(tmp_path):
    folder = damaged(tmp_path, "modelopt_nvfp4")
    table = {"quantization": {"quant_algo": "W4A8_AWQ"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(table))
    refused(folder, "hf_quant_config.json: quant_algo must be FP8, .* got 'W4A8_AWQ'")


def test_weights_of_a_narrow_type_need_a_table_and_tables_left_over_do_not_matter(tmp_path):
    config, tensors, shapes = base()
    rng = np.random.default_rng(0)
    tensors |= {f"{n}.weight": rng.normal(size=s).astype(np.float16) for n, s in shapes.items()}
    folder = save(tmp_path / "m", config, tensors)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4}))
    load_model(folder)
    tensors[f"{Q}.weight"] = np.zeros((64, 64), np.int8)
    save(folder, config, tensors)
    (folder / "quantize_config.json").write_text("{")
    refused(folder, r"quantize_config\.json must be JSON")
    (folder / "quantize_config.json").unlink()
    refused(folder, "its weights are stored as I8", UnsupportedError)


def test_a_table_without_packed_weights(tmp_path):
    config, tensors, shapes = base()
    tensors |= {f"{n}.weight": np.zeros(s, np.float16) for n, s in shapes.items()}
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    words = r"must hold some; .*quant_method 'gptq'.*ignore_keys \(quantization_config\)"
    refused(save(tmp_path / "m", config, tensors), words)
    load_model(tmp_path / "m", ignore_keys=["quantization_config"])


def test_damage_ends_a_command_with_exit_2(tmp_path, capsys, monkeypatch):
    folder = damaged(tmp_path, "gptq", lambda tensors: tensors.pop(f"{Q}.scales"))
    ids = tmp_path / "ids.npy"
    np.save(ids, np.arange(3, 40))
    words = ["sweep", "--model", str(folder), "--text", str(ids), "--formats", "int8"]
    monkeypatch.setattr("sys.argv", ["numsim", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"{Q}.scales must be stored beside" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["hqq", "gguf", ""])
def test_a_method_that_is_not_read_is_named_before_a_load(tmp_path, method):
    folder = damaged(tmp_path, "fbgemm_fp8", quant_method=method)
    for read in (load_model, describe_model):
        with pytest.raises(NumsimError, match="packed weights must be of a method that is read"):
            read(folder)
