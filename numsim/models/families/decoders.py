"""Decoders whose tensors are called as those of Llama: one table entry each."""

from __future__ import annotations

import math

from numsim.models.families.shared import (
    ATTENTION_BIAS,
    DECODER,
    GATE_UP,
    GRANITE_KEYS,
    LAST,
    NEXT,
    QKV,
    ROPE,
    SLICES,
    TRUNK,
    always,
    as_one,
    decoder,
    every,
    llama_keys,
    llama_like,
    llama_names,
    one_bias,
)
from numsim.models.family import Config, Family, Fields
from numsim.models.keys import Key, wrong
from numsim.models.layers import has_rotary, rotary_layers
from numsim.models.rope_keys import ORIGINAL, TypeRope

KV_HEADS_OF_MISTRAL = Key("num_key_value_heads", int, 8, nullable=lambda f: f["heads"])
_LAYER = "{p}layers.{i}."
_SANDWICH = {
    "layers.{i}.attn_post_norm": f"{_LAYER}post_attention_layernorm",
    "layers.{i}.mlp_norm": f"{_LAYER}pre_feedforward_layernorm",
    "layers.{i}.mlp_post_norm": f"{_LAYER}post_feedforward_layernorm",
}
_AFTER = {
    "layers.{i}.attn_post_norm": f"{_LAYER}post_attention_layernorm",
    "layers.{i}.mlp_post_norm": f"{_LAYER}post_feedforward_layernorm",
}
_LAYER_WEIGHT = {"norm": "layer_weight", "residual": "parallel_shared", "interleaved": True}


def _qwen_window(config: Config, layer: int) -> bool:
    return bool(layer >= Key("max_window_layers", int, 28, least=0).read(config, {}))


def _gemma(f: Fields, config: Config) -> Fields:
    """Scale the embedding by sqrt(hidden); "gelu" is the tanh form.

    Versions of transformers differ in which of two activation keys counts, so they must agree.
    """
    if f["activation"] == "gelu":
        f["activation"] = "gelu_pytorch_tanh"
    named = f.pop("hidden_activation", None)
    if named not in (None, f["activation"]):
        raise wrong("hidden_activation", f"{f['activation']!r}, as hidden_act", named)
    return one_bias(f, config) | {"embed_scale": math.sqrt(f["hidden"])}


def _gemma2(f: Fields, config: Config) -> Fields:
    window = config.get("sliding_window", 4096)
    size = config.get("sliding_window_size")
    if size not in (None, window):
        raise wrong("sliding_window_size", f"{window}, as sliding_window", size)
    return _gemma3(f, config)


def _gemma3(f: Fields, config: Config) -> Fields:
    scalar = f.pop("query_pre_attn_scalar")
    act = f["activation"]  # means what it says, unlike Gemma's
    return _gemma(f, config) | {"attn_scale": 1.0 / math.sqrt(scalar), "activation": act}


def _gemma3_text(f: Fields, config: Config) -> Fields:
    """See both sides, half a window each, where use_bidirectional_attention (EmbeddingGemma)."""
    if not config.get("use_bidirectional_attention"):
        return _gemma3(f, config)
    windows = tuple(w if w is None else w // 2 + 1 for w in f["windows"])
    return _gemma3(f, config) | {"causal": False, "windows": windows}


def _smollm3(f: Fields, config: Config) -> Fields:
    return one_bias(f, config) | {"rotary_layers": rotary_layers(config, f["layers"])}


def _smollm3_slides(config: Config, layer: int) -> bool:
    """Only layers without rotary positions slide."""
    slides = Key("use_sliding_window", bool, False).read(config, {})
    return slides and not has_rotary(config, layer)


def _cohere(f: Fields, config: Config) -> Fields:
    norm = f.pop("has_qk_norm")
    return one_bias(f, config) | {"qk_norm": "layer_by_head" if norm else None}


def _cohere2(f: Fields, config: Config) -> Fields:
    """Layers that see everything have no positions at all."""
    slides = tuple(window is not None for window in f["windows"]) or (False,) * f["layers"]
    return one_bias(f, config) | {"rotary_layers": slides}


_GLM_KEYS = llama_keys(
    kv_heads=Key("num_key_value_heads", int, 2, nullable=lambda f: f["heads"]),
    head_dim=Key("head_dim", int, 128, nullable=True),
    norm_eps=Key("rms_norm_eps", float, 1.5625e-7),
    qkv_bias=Key("attention_bias", bool, True),
)
_COHERE_KEYS = {
    "norm_eps": Key("layer_norm_eps", float, 1e-5),
    "logit_scale": Key("logit_scale", float, 0.0625),
    "tied": Key("tie_word_embeddings", bool, True),
    "qkv_bias": ATTENTION_BIAS,
}

DECODERS: dict[str, Family] = {
    "llama": llama_like(
        "Llama",
        classes={"LlamaForCausalLM": NEXT, "LLaMAForCausalLM": NEXT} | decoder("Llama"),
        keys=llama_keys(qkv_bias=ATTENTION_BIAS, mlp_bias=Key("mlp_bias", bool, False)),
        fixed=DECODER | {"is_llama_config": (True,), "rope_interleaved": (False,)},
        ignored=SLICES + " max_sequence_length",
        finish=one_bias,
    ),
    "mistral": llama_like(
        "Mistral",
        keys=llama_keys(kv_heads=KV_HEADS_OF_MISTRAL),
        windows=always,
        all_slide=True,
        window_default=4096,
    ),
    "qwen2": llama_like(
        "Qwen2",
        switches={"qkv_bias": True},
        fixed=DECODER | {"use_mrope": (False,)},
        windows=_qwen_window,
        window_switch="use_sliding_window",
        window_default=4096,
        read="max_window_layers",
    ),
    "qwen3": llama_like(
        "Qwen3",
        keys=llama_keys(head_dim=Key("head_dim", int, 128), qkv_bias=ATTENTION_BIAS),
        switches={"qk_norm": "rms"},
        windows=_qwen_window,
        window_switch="use_sliding_window",
        window_default=4096,
        read="max_window_layers",
        finish=one_bias,
    ),
    "gemma": llama_like(
        "Gemma",
        keys=llama_keys(
            head_dim=Key("head_dim", int, 256),
            activation=Key("hidden_act", str, "gelu_pytorch_tanh"),
            hidden_activation=Key("hidden_activation", str, None),
            tied=Key("tie_word_embeddings", bool, True),
            qkv_bias=ATTENTION_BIAS,
        ),
        switches={"norm": "rms_plus_one"},
        finish=_gemma,
    ),
    "gemma2": llama_like(
        "Gemma2",
        keys=llama_keys(
            head_dim=Key("head_dim", int, 256),
            activation=Key("hidden_activation", str, "gelu_pytorch_tanh"),
            tied=Key("tie_word_embeddings", bool, True),
            qkv_bias=ATTENTION_BIAS,
            attn_cap=Key("attn_logit_softcapping", float, 50.0, nullable=True),
            head_cap=Key("final_logit_softcapping", float, 30.0, nullable=True),
            query_pre_attn_scalar=Key("query_pre_attn_scalar", float, 256.0),
        ),
        names=llama_names() | _SANDWICH,
        switches={"norm": "rms_plus_one", "residual": "sandwich"},
        # hidden_activation is the one that counts; sliding_window_size is checked against its twin
        ignored=SLICES + " hidden_act sliding_window_size",
        windows=lambda config, layer: layer % 2 == 0,
        window_default=4096,
        finish=_gemma2,
    ),
    "gemma3_text": llama_like(
        "Gemma3",
        classes={
            "Gemma3ForCausalLM": NEXT,
            "Gemma3TextModel": TRUNK,
            "Gemma3TextForSequenceClassification": LAST,
        },
        keys=llama_keys(
            # configs of Gemma 3 within a larger one leave out what is the default
            vocab=Key("vocab_size", int, 262208),
            hidden=Key("hidden_size", int, 2304),
            layers=Key("num_hidden_layers", int, 26),
            heads=Key("num_attention_heads", int, 8),
            intermediate=Key("intermediate_size", int, 9216),
            kv_heads=Key("num_key_value_heads", int, 4),
            head_dim=Key("head_dim", int, 256),
            activation=Key("hidden_activation", str, "gelu_pytorch_tanh"),
            tied=Key("tie_word_embeddings", bool, True),
            qkv_bias=ATTENTION_BIAS,
            head_cap=Key("final_logit_softcapping", float, None),
            query_pre_attn_scalar=Key("query_pre_attn_scalar", float, 256.0),
        ),
        names=llama_names() | _SANDWICH,
        switches={"norm": "rms_plus_one", "residual": "sandwich", "qk_norm": "rms_plus_one"},
        # transformers caps no scores of Gemma 3; it writes the pattern and reads layer_types
        ignored=f"{SLICES} attn_logit_softcapping _sliding_window_pattern hidden_act",
        rope=None,
        ropes={
            "full_attention": TypeRope("rope_theta", 1e6, scaled=True),
            "sliding_attention": TypeRope("rope_local_base_freq", 1e4, scaled=False),
        },
        windows=every("sliding_window_pattern", 6),
        window_default=4096,
        fixed=DECODER | {"use_bidirectional_attention": (None, False, True)},
        read="sliding_window_pattern",
        finish=_gemma3_text,
    ),
    "phi3": llama_like(
        "Phi3",
        keys=llama_keys(norm_eps=Key("rms_norm_eps", float, 1e-5)),
        names=llama_names()
        | as_one("{p}layers.{i}.self_attn.qkv_proj", QKV)
        | as_one("{p}layers.{i}.mlp.gate_up_proj", GATE_UP),
        ignored=f"{SLICES} attention_bias lm_head_bias mlp_bias full_attn_mod interpolate_factor",
        rope=ROPE | {"partial_rotary_factor": 1.0, ORIGINAL: 4096},
        read=f"partial_rotary_factor {ORIGINAL}",
        windows=always,
        all_slide=True,
    ),
    "olmo": llama_like(
        "Olmo",
        classes=decoder("Olmo", scores=False),
        keys={k: v for k, v in llama_keys().items() if k != "norm_eps"}
        | {"qkv_bias": ATTENTION_BIAS, "clip_qkv": Key("clip_qkv", float, None)},
        switches={"norm": "layer_plain", "norm_eps": 1e-5},
        finish=one_bias,
    ),
    "olmo2": llama_like(
        "Olmo2",
        keys=llama_keys(norm_eps=Key("rms_norm_eps", float, 1e-5), qkv_bias=ATTENTION_BIAS),
        names=llama_names() | _AFTER,
        switches={"residual": "after", "qk_norm": "rms_wide"},
        finish=one_bias,
    ),
    "olmo3": llama_like(
        "Olmo3",
        keys=llama_keys(norm_eps=Key("rms_norm_eps", float, 1e-5), qkv_bias=ATTENTION_BIAS),
        names=llama_names() | _AFTER,
        switches={"residual": "after", "qk_norm": "rms_wide"},
        rope=None,
        # transformers gives an older rope_theta to the layers that see everything
        ropes={
            "full_attention": TypeRope("rope_theta", 5e5, scaled=True),
            "sliding_attention": TypeRope(None, 5e5, scaled=False),
        },
        windows=lambda config, layer: (layer + 1) % 4 != 0,
        window_default=4096,
        finish=one_bias,
    ),
    "seed_oss": llama_like(
        "SeedOss",
        keys=llama_keys(
            kv_heads=Key("num_key_value_heads", int, 8, nullable=lambda f: f["heads"]),
            head_dim=Key("head_dim", int, 128, nullable=True),
            qkv_bias=Key("attention_bias", bool, True),
            o_bias=Key("attention_out_bias", bool, False),
            mlp_bias=Key("mlp_bias", bool, False),
        ),
        ignored=f"{SLICES} residual_dropout",
    ),
    "smollm3": llama_like(
        "SmolLM3",
        keys=llama_keys(
            kv_heads=Key("num_key_value_heads", int, 4, nullable=lambda f: f["heads"]),
            tied=Key("tie_word_embeddings", bool, True),
            qkv_bias=ATTENTION_BIAS,
            mlp_bias=Key("mlp_bias", bool, False),
        ),
        ignored=SLICES + " max_window_layers",
        rope={"rope_theta": 2e6},
        windows=_smollm3_slides,
        read="use_sliding_window no_rope_layers no_rope_layer_interval",
        finish=_smollm3,
    ),
    "granite": llama_like(
        "Granite",
        classes=decoder("Granite", scores=False),
        keys=llama_keys(
            qkv_bias=ATTENTION_BIAS, mlp_bias=Key("mlp_bias", bool, False), **GRANITE_KEYS
        ),
        finish=one_bias,
    ),
    "glm": llama_like(
        "Glm",
        keys=_GLM_KEYS,
        names=llama_names() | as_one("{p}layers.{i}.mlp.gate_up_proj", GATE_UP),
        switches={"interleaved": True},
        rope=ROPE | {"partial_rotary_factor": 0.5},
        read="partial_rotary_factor",
    ),
    "glm4": llama_like(
        "Glm4",
        keys=_GLM_KEYS,
        names=llama_names()
        | as_one("{p}layers.{i}.mlp.gate_up_proj", GATE_UP)
        | {
            "layers.{i}.attn_post_norm": "{p}layers.{i}.post_self_attn_layernorm",
            "layers.{i}.mlp_post_norm": "{p}layers.{i}.post_mlp_layernorm",
        },
        switches={"interleaved": True, "residual": "sandwich"},
        rope=ROPE | {"partial_rotary_factor": 0.5},
        read="partial_rotary_factor",
    ),
    "cohere": llama_like(
        "Cohere",
        classes=decoder("Cohere", scores=False),
        keys=llama_keys(has_qk_norm=Key("use_qk_norm", bool, False), **_COHERE_KEYS),
        switches=_LAYER_WEIGHT,
        rope={"rope_theta": 5e5},
        finish=_cohere,
    ),
    "cohere2": llama_like(
        "Cohere2",
        classes=decoder("Cohere2", scores=False),
        keys=llama_keys(**_COHERE_KEYS),
        switches=_LAYER_WEIGHT,
        ignored=f"{SLICES} layer_switch order_of_interleaved_layers position_embedding_type"
        " rotary_pct use_embedding_sharing use_gated_activation use_parallel_block"
        " use_parallel_embedding use_qk_norm",
        windows=every("sliding_window_pattern", 4),
        window_default=4096,
        read="sliding_window_pattern",
        finish=_cohere2,
    ),
}
