"""Decoders with LayerNorm and an MLP without gate: one table entry each."""

from __future__ import annotations

from numsim.models.families.shared import (
    DECODER,
    LAST,
    LAYER_NORM_MLP,
    NEXT,
    QKV,
    ROPE,
    ROTARY_BUFFERS,
    SLICES,
    TRUNK,
    all_biases,
    always,
    as_one,
    decoder,
    llama_keys,
    llama_like,
    llama_names,
    one_bias,
    plain_keys,
)
from numsim.models.family import Config, Family, Fields
from numsim.models.keys import Key, wrong
from numsim.models.rope_keys import rope_settings

_NEOX_ROPE = ROPE | {"partial_rotary_factor": 0.25}


def _gpt2(f: Fields, config: Config) -> Fields:
    if not f.pop("scale_attn_weights"):
        f["attn_scale"] = 1.0
    f["intermediate"] = f["intermediate"] or 4 * f["hidden"]
    return all_biases(f)


def _opt(f: Fields, config: Config) -> Fields:
    before, keep, affine = f.pop("before"), not f.pop("remove"), f.pop("affine")
    biased, width = f.pop("biased"), f.pop("width")
    return f | {
        "residual": "pre" if before else "post",
        "final_norm": before and keep,
        "norm": "layer" if affine else "layer_plain",
        "embed_dim": width if width != f["hidden"] else 0,
        **dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), biased),
    }


def _phi(f: Fields, config: Config) -> Fields:
    return all_biases(f) | {"qk_norm": "layer" if f["qk_norm"] else None}


def _gpt_neox(f: Fields, config: Config) -> Fields:
    """Beside the table, transformers reads ``rotary_emb_base`` and ``rotary_pct`` only."""
    read = _NEOX_ROPE | rope_settings({k: v for k, v in config.items() if k not in _NEOX_ROPE})
    for key, spelt in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        if config.get(key) not in (None, read[key]):
            raise wrong(key, f"{read[key]}, as {spelt} or its default says", config[key])
    parallel = f.pop("parallel")
    residual = "parallel" if parallel else "pre"
    return one_bias(f, config) | {"residual": residual, "mlp_bias": True}


PLAIN_DECODERS: dict[str, Family] = {
    "phi": llama_like(
        "Phi",
        keys=plain_keys(
            kv_heads=Key("num_key_value_heads", int, lambda f: f["heads"]),
            activation=Key("hidden_act", str, "gelu_new"),
            qk_norm=Key("qk_layernorm", bool, False),
        ),
        names=llama_names()
        | {
            "layers.{i}.q_norm": "{p}layers.{i}.self_attn.q_layernorm",
            "layers.{i}.k_norm": "{p}layers.{i}.self_attn.k_layernorm",
            "layers.{i}.o_proj": "{p}layers.{i}.self_attn.dense",
            "layers.{i}.up_proj": "{p}layers.{i}.mlp.fc1",
            "layers.{i}.down_proj": "{p}layers.{i}.mlp.fc2",
            "final_norm": "{p}final_layernorm",
        },
        switches=LAYER_NORM_MLP | {"residual": "parallel_shared", "head_bias": True},
        rope=ROPE | {"partial_rotary_factor": 0.5},
        read="partial_rotary_factor",
        finish=_phi,
    ),
    "gpt_neox": Family(
        classes=decoder("GPTNeoX"),
        head_tensors=("embed_out.*",),
        keys=plain_keys(
            activation=Key("hidden_act", str, "gelu"),
            qkv_bias=Key("attention_bias", bool, True),
            parallel=Key("use_parallel_residual", bool, True),
        ),
        names={
            "embed": "{p}embed_in",
            "layers.{i}.attn_norm": "{p}layers.{i}.input_layernorm",
            "layers.{i}.mlp_norm": "{p}layers.{i}.post_attention_layernorm",
            **as_one("{p}layers.{i}.attention.query_key_value", QKV, by="head"),
            "layers.{i}.o_proj": "{p}layers.{i}.attention.dense",
            "layers.{i}.up_proj": "{p}layers.{i}.mlp.dense_h_to_4h",
            "layers.{i}.down_proj": "{p}layers.{i}.mlp.dense_4h_to_h",
            "final_norm": "{p}final_layer_norm",
            "lm_head": "embed_out",
            "classifier": "score",
        },
        switches=LAYER_NORM_MLP,
        fixed=DECODER,
        ignored=SLICES,
        prefixes=("gpt_neox.", ""),
        ignored_tensors=(*ROTARY_BUFFERS, "*.attention.bias", "*.attention.masked_bias"),
        rope=_NEOX_ROPE,
        read="rotary_pct rotary_emb_base partial_rotary_factor",
        finish=_gpt_neox,
    ),
    "gpt2": Family(
        classes={
            "GPT2LMHeadModel": NEXT,
            "GPT2Model": TRUNK,
            "GPT2ForSequenceClassification": LAST,
        },
        keys={
            "vocab": Key("vocab_size", int),
            "hidden": Key("n_embd", int),
            "layers": Key("n_layer", int),
            "heads": Key("n_head", int),
            "intermediate": Key("n_inner", int, None),
            "positions": Key("n_positions", int),
            "activation": Key("activation_function", str, "gelu_new"),
            "norm_eps": Key("layer_norm_epsilon", float, 1e-5),
            "tied": Key("tie_word_embeddings", bool, True),
            "scale_attn_weights": Key("scale_attn_weights", bool, True),
            "scale_by_layer": Key("scale_attn_by_inverse_layer_idx", bool, False),
        },
        names={
            "embed": "{p}wte",
            "position": "{p}wpe",
            "layers.{i}.attn_norm": "{p}h.{i}.ln_1",
            "layers.{i}.mlp_norm": "{p}h.{i}.ln_2",
            **as_one("{p}h.{i}.attn.c_attn", QKV, turned=True),
            **as_one("{p}h.{i}.attn.c_proj", ("o_proj",), turned=True),
            **as_one("{p}h.{i}.mlp.c_fc", ("up_proj",), turned=True),
            **as_one("{p}h.{i}.mlp.c_proj", ("down_proj",), turned=True),
            "final_norm": "{p}ln_f",
            "lm_head": "lm_head",
            "classifier": "score",
        },
        switches=LAYER_NORM_MLP,
        fixed=DECODER,
        # reorder_and_upcast_attn: the order of a scale and a type, not the function
        ignored="n_ctx reorder_and_upcast_attn summary_activation"
        " summary_first_dropout summary_proj_to_labels summary_type summary_use_proj n_special"
        " predict_special_tokens",
        prefixes=("transformer.", ""),
        ignored_tensors=("*attn.bias", "*attn.masked_bias"),
        finish=_gpt2,
    ),
    "opt": Family(
        classes=decoder("OPT"),
        keys={
            "vocab": Key("vocab_size", int),
            "hidden": Key("hidden_size", int),
            "layers": Key("num_hidden_layers", int),
            "heads": Key("num_attention_heads", int),
            "intermediate": Key("ffn_dim", int),
            "positions": Key("max_position_embeddings", int),
            "activation": Key("activation_function", str, "relu"),
            "tied": Key("tie_word_embeddings", bool, True),
            "before": Key("do_layer_norm_before", bool, True),
            "remove": Key("_remove_final_layer_norm", bool, False),
            "affine": Key("layer_norm_elementwise_affine", bool, True),
            "biased": Key("enable_bias", bool, True),
            "width": Key("word_embed_proj_dim", int, lambda f: f["hidden"]),
        },
        names={
            "embed": "{p}embed_tokens",
            "position": "{p}embed_positions",
            "project_in": "{p}project_in",
            "project_out": "{p}project_out",
            "layers.{i}.attn_norm": "{p}layers.{i}.self_attn_layer_norm",
            "layers.{i}.q_proj": "{p}layers.{i}.self_attn.q_proj",
            "layers.{i}.k_proj": "{p}layers.{i}.self_attn.k_proj",
            "layers.{i}.v_proj": "{p}layers.{i}.self_attn.v_proj",
            "layers.{i}.o_proj": "{p}layers.{i}.self_attn.out_proj",
            "layers.{i}.mlp_norm": "{p}layers.{i}.final_layer_norm",
            "layers.{i}.up_proj": "{p}layers.{i}.fc1",
            "layers.{i}.down_proj": "{p}layers.{i}.fc2",
            "final_norm": "{p}final_layer_norm",
            "lm_head": "lm_head",
            "classifier": "score",
        },
        switches=LAYER_NORM_MLP
        | {"norm_eps": 1e-5, "position_offset": 2, "position_count": "kept"},
        # Galactica says so of every OPT
        fixed=DECODER | {"learned_embeddings": (True,), "scale_embeddings": (False,)},
        prefixes=("model.decoder.", "decoder."),
        finish=_opt,
    ),
    "starcoder2": llama_like(
        "Starcoder2",
        keys=llama_keys(
            kv_heads=Key("num_key_value_heads", int, 2),
            norm_eps=Key("norm_epsilon", float, 1e-5),
            activation=Key("hidden_act", str, "gelu_pytorch_tanh"),
            tied=Key("tie_word_embeddings", bool, True),
            biased=Key("use_bias", bool, True),
        ),
        names=llama_names()
        | {
            "layers.{i}.up_proj": "{p}layers.{i}.mlp.c_fc",
            "layers.{i}.down_proj": "{p}layers.{i}.mlp.c_proj",
        },
        switches=LAYER_NORM_MLP,
        ignored=f"{SLICES} embedding_dropout residual_dropout mlp_type norm_type",
        windows=always,
        all_slide=True,
        finish=lambda f, config: (
            f | dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), f.pop("biased"))
        ),
    ),
}
