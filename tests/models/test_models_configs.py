"""Configs and tensors of every family: what must be refused, and how published ones vary."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from numsim.errors import NumsimError, UnsupportedError
from numsim.models import load_model
from numsim.models.config import read_arch
from numsim.models.families import FAMILIES
from numsim.models.gemm import packed_bytes
from numsim.models.memory import block_bytes
from numsim.models.multimodal import WRAPPERS

ORACLE = pathlib.Path(__file__).parents[1] / "data" / "oracle"
NAMES = sorted(p.name for p in ORACLE.iterdir())


def checkpoint(folder, family, rename=None, extra=None, drop=(), spelling="config.json", **changes):
    """Write an oracle checkpoint with changed config keys, tensor names and tensors."""
    config = json.loads((ORACLE / family / spelling).read_text()) | changes
    config = {k: v for k, v in config.items() if v != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(ORACLE / family / "model.safetensors")
    tensors = {rename(k) if rename else k: v for k, v in tensors.items() if k not in drop}
    save_file(tensors | (extra or {}), folder / "model.safetensors")
    return folder


def run(model, family):
    ids = np.arange(22).reshape(2, 11) * 5 % 96
    given = {"decoder_tokens": ids[:, :4]} if family == "t5" else {}
    return model.run(ids, **given).hidden_states[-1]


@pytest.mark.parametrize(
    ("family", "key", "count"),
    [
        ("llama", "num_hidden_layers", 10**6),
        ("mistral", "num_hidden_layers", 2 * 10**9),
        ("qwen2", "num_hidden_layers", 2 * 10**9),
        ("gpt2", "n_layer", 2 * 10**9),
        ("t5", "num_decoder_layers", 2 * 10**9),
        ("mixtral", "num_local_experts", 10**8),
        ("deepseek_v3", "n_routed_experts", 2 * 10**9),
    ],
)
def test_counts_beyond_the_stored_tensors_are_refused_at_once(tmp_path, family, key, count):
    with pytest.raises(NumsimError, match=f"{key} {count}, .* holds [0-9]+ tensors"):
        load_model(checkpoint(tmp_path, family, **{key: count}))


def test_there_is_an_oracle_for_every_family():
    configs = ORACLE.parent.glob("*/*/config.json")
    found = {json.loads(path.read_text())["model_type"] for path in configs}
    beside = {"qwen3_vl_moe_text"}  # Qwen3-MoE under another name: test_multimodal compares them
    assert found - set(WRAPPERS) == set(FAMILIES) - beside


@pytest.mark.parametrize("family", NAMES)
def test_keys_and_tensors_nobody_knows_are_refused(tmp_path, family):
    sizes = ("vocab_size", "hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer")
    for spelling in ("config.json", "config_v4.json"):
        with pytest.raises(NumsimError, match="unknown: zzz_scale"):
            load_model(checkpoint(tmp_path, family, spelling=spelling, zzz_scale=2.0))
        with pytest.raises(UnsupportedError, match="architectures"):
            load_model(checkpoint(tmp_path, family, architectures=["QuantizedForCausalLM"]))
        with pytest.raises(UnsupportedError, match="add_cross_attention"):
            load_model(checkpoint(tmp_path, family, add_cross_attention=True))
        config = json.loads((ORACLE / family / spelling).read_text())
        for key in set(sizes) & set(config):
            with pytest.raises(NumsimError, match=f"{key} is required"):
                load_model(checkpoint(tmp_path, family, spelling=spelling, **{key: None}))
            with pytest.raises(NumsimError, match=f"{key} must be of type int"):
                load_model(checkpoint(tmp_path, family, spelling=spelling, **{key: "8"}))
    stored = load_file(ORACLE / family / "model.safetensors")
    first = sorted(stored)[0]
    with pytest.raises(NumsimError, match=r"1 problem:\n  surplus extra\.weight"):
        load_model(checkpoint(tmp_path, family, extra={"extra.weight": np.zeros(3, np.float32)}))
    matrix = next(k for k, v in stored.items() if v.ndim == 2 and ("layer" in k or ".h." in k))
    with pytest.raises(NumsimError, match=r"problems?:\n  missing "):
        load_model(checkpoint(tmp_path, family, drop=[matrix]))
    bad = stored[first].copy()
    bad.reshape(-1)[0] = np.nan
    with pytest.raises(NumsimError, match="1 NaN or Inf"):
        load_model(checkpoint(tmp_path, family, extra={first: bad}))
    with pytest.raises(NumsimError, match=r"has shape .*, expected"):
        load_model(checkpoint(tmp_path, family, extra={first: np.zeros((3, 3), np.float32)}))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", NAMES)
def test_stored_types(tmp_path, family, dtype):
    stored = load_file(ORACLE / family / "model.safetensors")
    half = {k: v.astype(dtype) for k, v in stored.items()}
    got = run(load_model(checkpoint(tmp_path, family, extra=half)), family)
    wide = {k: v.astype(np.float32) for k, v in half.items()}
    want = run(load_model(checkpoint(tmp_path, family, extra=wide)), family)
    assert np.array_equal(got, want)


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        ("llama", {"num_key_value_heads": 4}, "multiple of num_key_value_heads"),
        ("llama", {"rope_parameters": {"rope_theta": 5.0, "rope_type": "linear"}}, "factor is req"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "short": 1}}, "short"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "'default' as beside it"),
        ("llama", {"rope_theta": 5.0}, "5.0 as beside it"),
        ("llama", {"rope_parameters": {"rope_type": ["x"]}}, "rope_type"),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 1.0,
                    "original_max_position_embeddings": 16,
                }
            },
            "below high_freq_factor",
        ),
        ("mistral", {"sliding_window": 0}, "above 0"),
        ("mistral", {"layer_types": ["full_attention"]}, "2 words"),
        ("mistral", {"layer_types": ["full_attention", "chunked_attention"]}, "2 words"),
        (
            "qwen2",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "a number where a layer slides",
        ),
        (
            "mistral",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "sliding_attention in every layer",
        ),
        (
            "mixtral",
            {"layer_types": ["full_attention"] * 2, "sliding_window": 4},
            "sliding_attention in every layer",
        ),
        ("qwen2", {"use_sliding_window": "false"}, "use_sliding_window must be of type bool"),
        ("qwen3", {"use_sliding_window": 1}, "use_sliding_window must be of type bool"),
        (
            "qwen2",
            {
                "use_sliding_window": False,
                "sliding_window": 4,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            "a number where a layer slides",
        ),
        (
            "gemma",
            {"hidden_act": "relu", "hidden_activation": "gelu_pytorch_tanh"},
            "hidden_activation must be 'relu', as hidden_act",
        ),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"hidden_activation": "geglu"}, "the activation must be one of"),
        ("phi", {"rope_parameters": {"partial_rotary_factor": 0.3}}, "even number"),
        ("gpt_neox", {"rotary_pct": 0.5}, "as beside it"),
        (
            "gpt_neox",
            {"rope_parameters": "absent", "partial_rotary_factor": 0.5},
            "partial_rotary_factor must be 0.25, as rotary_pct",
        ),
        (
            "gpt_neox",
            {"rope_parameters": "absent", "rotary_pct": 0.5, "rope_theta": 5e4},
            "rope_theta must be 10000.0, as rotary_emb_base",
        ),
        ("mixtral", {"num_experts_per_tok": 5}, "at most 4"),
        ("deepseek_v3", {"n_group": 3}, "divisor of 8 experts"),
        ("deepseek_v3", {"topk_group": 5}, "at most 4 groups"),
        ("deepseek_v3", {"num_experts_per_tok": 5}, "at most 4"),
        ("deepseek_v3", {"qk_head_dim": 21}, "qk_head_dim must be 20"),
        ("deepseek_v3", {"head_dim": 20}, "head_dim must be 8"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("t5", {"feed_forward_proj": "gated-gated-gelu"}, "gated-ACTIVATION"),
        ("t5", {"dense_act_fn": "gelo"}, "activation must be one of .* did you mean gelu"),
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder"),
        ("gemma2", {"sliding_window_size": 77}, "as sliding_window"),
        ("gemma2", {"sliding_window": float("nan")}, "sliding_window"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved must be False"),
        ("t5", {"relative_attention_max_distance": 4}, "must be above 4"),
        ("mistral", {"layer_types": [["a"], ["b"]]}, "2 words"),
        (
            "deepseek_v3",
            {
                "rope_parameters": "absent",
                "rope_theta": 1e4,
                "rope_scaling": {"type": "yarn", "mscale_all_dim": 1.0},
            },
            "factor is required",
        ),
        (
            "deepseek_v3",
            {
                "rope_parameters": "absent",
                "rope_theta": 1e4,
                "rope_scaling": {"type": "yarn", "factor": 2.0, "mscale_all_dim": "q"},
            },
            "mscale_all_dim must be of type float",
        ),
        (
            "t5",
            {"decoder_start_token_id": 96},
            "decoder_start_token_id must be below vocab_size 96",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": []}},
            "mscale must be of type float",
        ),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "dynamic",
                    "factor": 2.0,
                    "original_max_position_embeddings": -1,
                }
            },
            "original_max_position_embeddings must be above 0",
        ),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "declares packed weights must"),
        ("gpt2", {"n_head": 5}, "multiple of num_attention_heads"),
        ("opt", {"word_embed_proj_dim": 24}, "project_in"),
    ],
)
def test_contradictions(tmp_path, family, changes, match):
    with pytest.raises(NumsimError, match=match):
        load_model(checkpoint(tmp_path, family, **changes))


@pytest.mark.parametrize(
    ("family", "old", "new", "extra"),
    [
        ("gpt2", "transformer.", "", {"h.0.attn.bias": (1, 1, 32, 32), "h.1.attn.masked_bias": ()}),
        ("bert", "", "bert.", {"cls.predictions.bias": (96,)}),
        ("opt", "model.decoder.", "decoder.", {}),
        ("gpt_neox", "", "", {"gpt_neox.layers.0.attention.bias": (1, 1, 64, 64)}),
        ("llama", "", "", {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}),
        ("deepseek_v3", "", "", {"model.layers.2.eh_proj.weight": (40, 80)}),
        (
            "t5", "", "",
            {
                "encoder.embed_tokens.weight": (96, 36), "decoder.embed_tokens.weight": (96, 36),
                "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": (8, 4),
            },
        ),
    ],
)  # fmt: skip
def test_published_names_vary(tmp_path, family, old, new, extra):
    """Prefixes come and go; buffers and copies that nothing needs are left aside."""
    spare = {k: np.zeros(s, np.float32) for k, s in extra.items()}
    if family == "bert":
        spare["bert.embeddings.position_ids"] = np.arange(32)[None]
    folder = checkpoint(tmp_path, family, lambda k: new + k.removeprefix(old), spare)
    assert np.array_equal(run(load_model(folder), family), run(load_model(ORACLE / family), family))


def test_norms_of_older_bert_checkpoints_are_called_gamma_and_beta(tmp_path):
    def older(name):
        if "LayerNorm" not in name:
            return f"bert.{name}"
        return f"bert.{name.replace('.weight', '.gamma').replace('.bias', '.beta')}"

    extra = {"cls.predictions.transform.LayerNorm.gamma": np.ones(3, np.float32)}
    got = load_model(checkpoint(tmp_path, "bert", older, extra))
    assert np.array_equal(run(got, "bert"), run(load_model(ORACLE / "bert"), "bert"))
    both = {"embeddings.LayerNorm.gamma": np.ones(36, np.float32)}
    with pytest.raises(NumsimError, match=r"surplus embeddings\.LayerNorm\.gamma"):
        load_model(checkpoint(tmp_path, "bert", extra=both))


def test_an_encoder_without_pooler(tmp_path):
    folder = checkpoint(tmp_path, "bert", drop=["pooler.dense.weight", "pooler.dense.bias"])
    model = load_model(folder)
    assert "pooler" not in model.gemm_names()
    assert model.run([1, 2]).pooled is None
    with pytest.raises(NumsimError, match=r"missing pooler\.dense\.bias"):
        load_model(checkpoint(tmp_path, "bert", drop=["pooler.dense.bias"]))


def test_a_byte_order_mark_is_read_over_and_a_repeated_key_is_refused(tmp_path):
    path = checkpoint(tmp_path, "llama") / "config.json"
    text = path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    assert load_model(tmp_path).arch == load_model(ORACLE / "llama").arch
    path.write_text(text.replace("{", '{"rope_theta": 5.0, "rope_theta": 1e4,', 1))
    with pytest.raises(NumsimError, match="'rope_theta' occurs twice"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"head_dim": 2 * 10**9}),
        (
            "deepseek_v3",
            {"qk_rope_head_dim": 2 * 10**9, "head_dim": "absent", "qk_head_dim": "absent"},
        ),
    ],
)
def test_absurd_heads_are_refused_at_once(tmp_path, family, changes):
    with pytest.raises(NumsimError, match="at most 65536"):
        load_model(checkpoint(tmp_path, family, **changes))


def test_long_contexts_load_and_sequences_beyond_the_sines_are_refused(tmp_path):
    model = load_model(checkpoint(tmp_path, "llama", max_position_embeddings=10**7))
    with pytest.raises(NumsimError, match="below 2\\*\\*20 radians"):
        model.generate([1, 2], max_new_tokens=2**20)


@pytest.mark.parametrize("family", NAMES)
def test_heads_turn_in_part_only_where_the_family_has_it(tmp_path, family):
    """Where transformers does not read the share, the network is another one than its config."""
    rope = {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}
    folder = checkpoint(tmp_path, family, rope_parameters=rope)
    if family in ("phi", "gpt_neox"):
        arch = load_model(folder).arch
        assert arch.rope.width == arch.head_dim // 2
        return
    turns = FAMILIES[family].rope is not None
    message = f"partial_rotary_factor must be 1 for {family}; got 0.5" if turns else "unknown: rope"
    with pytest.raises(NumsimError, match=message):
        load_model(folder)
    with pytest.raises(NumsimError, match="unknown: partial_rotary_factor"):
        load_model(checkpoint(tmp_path, family, partial_rotary_factor=0.5))
    if turns:
        rope["partial_rotary_factor"] = 1.0
        load_model(checkpoint(tmp_path, family, rope_parameters=rope))


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps must have a value; got null; .* 1e-06"),
        ("llama", {"hidden_act": None}, "hidden_act must have a value; got null; .* 'silu'"),
        ("llama", {"rope_theta": None, "rope_parameters": "absent"}, "rope_theta must be a number"),
        ("llama", {"rope_parameters": {"rope_theta": None}}, "rope_parameters.rope_theta must be"),
        ("gpt_neox", {"rotary_pct": None, "rope_parameters": "absent"}, "rotary_pct must be"),
        ("qwen3", {"head_dim": None}, "head_dim must have a value; got null; .* 128"),
        ("gemma2", {"query_pre_attn_scalar": None}, "query_pre_attn_scalar must have a value"),
        ("mixtral", {"num_experts_per_tok": None}, "num_experts_per_tok must have a value"),
        ("deepseek_v3", {"routed_scaling_factor": None}, "routed_scaling_factor must have"),
        ("gpt2", {"tie_word_embeddings": None}, "tie_word_embeddings must have a value"),
    ],
)
def test_null_does_not_hide_the_default_of_a_family(tmp_path, family, changes, match):
    with pytest.raises(NumsimError, match=match):
        load_model(checkpoint(tmp_path, family, **changes))


def test_published_spellings(tmp_path):
    """Keys of hub checkpoints that the oracles do not have."""
    for family, changes in (
        ("gemma", {"hidden_act": "gelu", "hidden_activation": None}),  # means the tanh form
        ("gemma", {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}),
        ("mistral", {"layer_types": ["sliding_attention"] * 2}),
        ("gpt2", {"n_ctx": 32, "task_specific_params": {}, "_num_labels": 1}),
        ("gpt2", {"n_special": 0, "predict_special_tokens": True}),
        ("llama", {"is_llama_config": True, "rope_interleaved": False}),
        ("llama", {"max_sequence_length": 2048, "architectures": ["LLaMAForCausalLM"]}),
        ("gpt_neox", {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0}),
        ("gpt_neox", {"rope_theta": 1e4, "partial_rotary_factor": 1 / 3, "rotary_pct": 1 / 3}),
        ("gemma2", {"sliding_window_size": 4}),
        ("t5", {"architectures": ["T5WithLMHeadModel"]}),
        ("deepseek_v3", {"scoring_func": "sigmoid", "moe_layer_freq": 1, "ep_size": 1}),
        ("t5", {"n_positions": 512, "scale_decoder_outputs": "absent", "dense_act_fn": "absent"}),
        ("qwen2", {"use_mrope": False, "sliding_window": 4, "layer_types": "absent"}),
        ("phi", {"hidden_act": "gelu_pytorch_tanh"}),
        ("llama", {"head_dim": None, "pad_token_id": None, "rope_scaling": None}),
        ("gpt_neox", {"attention_bias": "absent", "tie_word_embeddings": None}),
        ("gpt2", {"n_inner": None, "scale_attn_by_inverse_layer_idx": None}),
        ("qwen2", {"layer_types": "absent", "max_window_layers": None, "sliding_window": None}),
        ("t5", {"num_decoder_layers": None}),
    ):
        got = run(load_model(checkpoint(tmp_path, family, **changes)), family)
        assert np.array_equal(got, run(load_model(ORACLE / family), family))


@pytest.mark.parametrize("family", NAMES)
def test_less_memory_gives_the_same_bits(family):
    """Weights are converted anew where the cache holds one block."""
    whole = load_model(ORACLE / family)
    needs = packed_bytes(whole.tensors, None, whole.gemm_names())
    limit = max(block_bytes(needs).values())
    small = load_model(ORACLE / family, memory_limit=limit)
    assert np.array_equal(run(small, family), run(whole, family))
    assert small.cache.used_bytes <= limit < whole.cache.used_bytes


def test_pickles_and_foreign_shards_are_refused(tmp_path):
    shutil.copy(ORACLE / "gpt2" / "config.json", tmp_path)
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(NumsimError, match="safe_serialization"):
        load_model(tmp_path)
    (tmp_path / "model.pt").unlink()
    index = {"weight_map": {"transformer.wte.weight": "../../etc/model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NumsimError, match="its own folder"):
        load_model(tmp_path)


def test_weights_that_are_no_files_are_refused(tmp_path):
    path = checkpoint(tmp_path, "llama") / "model.safetensors"
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(NumsimError, match=r"model\.safetensors is a folder, a link to nothing"):
        load_model(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(NumsimError, match=r"model\.safetensors is a folder, a link to nothing"):
        load_model(tmp_path)
    with pytest.raises(NumsimError, match="which is not a folder"):
        load_model("x" * 5000)


def test_indices_that_do_not_say_one_place_are_refused(tmp_path):
    checkpoint(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    first, *others = sorted(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    save_file({first: tensors[first] * 2}, tmp_path / "b.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    places = dict.fromkeys(others, "a.safetensors")
    index.write_text(json.dumps({"weight_map": places | {first: "b.safetensors"}}))
    load_model(tmp_path)
    save_file({first: tensors[first], "x": tensors[first]}, tmp_path / "b.safetensors")
    index.write_text(json.dumps({"weight_map": places | {"x": "b.safetensors"}}))
    with pytest.raises(NumsimError, match=f"{first} is in a.safetensors and b.safetensors"):
        load_model(tmp_path)
    for name in ("pytorch_model.bin", "x" * 5000):
        index.write_text(json.dumps({"weight_map": places | {first: name}}))
        with pytest.raises(NumsimError, match=r"index must name \*\.safetensors"):
            load_model(tmp_path)
    index.write_text(json.dumps({"weight_map": places | {first: "x" * 5000 + ".safetensors"}}))
    with pytest.raises(NumsimError, match="every shard of the index must be there"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["mistral", "mixtral"])
def test_no_number_of_key_heads_is_that_of_the_heads(name):
    """Absent it is 8, the family's default; null is what transformers makes of it."""
    config = json.loads((ORACLE / name / "config.json").read_text())
    arch = read_arch(config | {"num_key_value_heads": None}, FAMILIES[name])
    assert arch.kv_heads == arch.heads == config["num_attention_heads"]
