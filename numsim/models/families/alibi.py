"""Decoders of fused heads, whose positions may be a linear bias (ALiBi)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from numsim.errors import NumsimError, UnsupportedError
from numsim.models.arch import Arch
from numsim.models.families.shared import (
    DECODER,
    LAYER_NORM_MLP,
    QKV,
    ROPE,
    ROTARY_BUFFERS,
    SLICES,
    all_biases,
    as_one,
    decoder,
)
from numsim.models.family import Config, Family, Fields, Names
from numsim.models.keys import COMMON_KEYS, Key, listing, shown, wrong


def _falcon(f: Fields, config: Config) -> Fields:
    """Three layouts: new heads in groups, one key head for all, or as many as heads."""
    new, one, parallel = f.pop("new"), f.pop("multi_query"), f.pop("parallel")
    biased, norms, alibi = f.pop("biased"), f.pop("norms"), f.pop("alibi")
    if new and not parallel:
        raise wrong("parallel_attn", "true with new_decoder_architecture", False)
    if not new and norms == 2:
        raise wrong("num_ln_in_parallel_attn", "1 or null without the new decoder", 2)
    if not new:
        f["kv_heads"] = 1 if one else f["heads"]
    residual = "parallel" if new and norms != 1 else "parallel_shared" if parallel else "pre"
    scale = 1.0 / math.sqrt(f["hidden"] / f["heads"])
    f["intermediate"] = f["intermediate"] or 4 * f["hidden"]
    return f | {
        "residual": residual,
        # the bias is added before the scores are scaled
        "alibi": scale if alibi else 0.0,
        **dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), biased),
    }


def _falcon_norms(arch: Arch) -> Names:
    if arch.residual != "parallel":
        return {}
    return {
        "layers.{i}.attn_norm": "{p}h.{i}.ln_attn",
        "layers.{i}.mlp_norm": "{p}h.{i}.ln_mlp",
    }


def _bloom(f: Fields, config: Config) -> Fields:
    residual = "normed" if f.pop("normed") else "pre"
    return all_biases(f) | {
        "residual": residual,
        "intermediate": 4 * f["hidden"],
        "alibi": 1.0,
    }


_MPT_ATTENTION: dict[str, tuple[object, ...]] = {
    "alibi": (True,), "attn_type": ("multihead_attention",), "prefix_lm": (False,),
    "qk_ln": (False,), "attn_uses_sequence_id": (False,),
}  # fmt: skip
_MPT_UNREAD = ("alibi_bias_max", "attn_impl", "attn_pdrop", "model_type")  # always 8; how; training


def _mpt(f: Fields, config: Config) -> Fields:
    """Read the table that the keys of attention have."""
    table = config.get("attn_config") or {}
    if not isinstance(table, Mapping):
        raise wrong("attn_config", "a table", table)
    for key, values in _MPT_ATTENTION.items():
        if table.get(key, values[0]) not in values:
            raise UnsupportedError(
                f"config.json: attn_config.{key} must be {values[0]!r} for mpt; got "
                f"{shown(table[key])}; other values are not implemented"
            )
    read = {"clip_qkv", "softmax_scale", *_MPT_ATTENTION, *_MPT_UNREAD}
    unknown = sorted(set(table) - read - COMMON_KEYS - {"chunk_size_feed_forward", *DECODER})
    if unknown:
        raise NumsimError(
            f"config.json: every key of attn_config must be one that mpt is known to have; "
            f"unknown: {listing(unknown)}; drop them if they change no result"
        )
    scale = Key("softmax_scale", float, None).read(table, {})
    clip = table.get("clip_qkv") or None  # 0 clips nothing
    return f | {
        "intermediate": 4 * f["hidden"],
        "alibi": 1.0,
        "clip_qkv": Key("clip_qkv", float, None).read({"clip_qkv": clip}, {}),
        **({} if scale is None else {"attn_scale": scale}),
    }


ALIBI: dict[str, Family] = {
    "falcon": Family(
        classes=decoder("Falcon"),
        keys={
            "vocab": Key("vocab_size", int),
            "hidden": Key("hidden_size", int),
            "layers": Key("num_hidden_layers", int),
            "heads": Key("num_attention_heads", int),
            "kv_heads": Key("num_kv_heads", int, lambda f: f["heads"]),
            "intermediate": Key("ffn_hidden_size", int, None),
            "activation": Key("activation", str, "gelu"),
            "norm_eps": Key("layer_norm_epsilon", float, 1e-5),
            "tied": Key("tie_word_embeddings", bool, True),
            "alibi": Key("alibi", bool, False),
            "biased": Key("bias", bool, False),
            "multi_query": Key("multi_query", bool, True),
            "new": Key("new_decoder_architecture", bool, False),
            "parallel": Key("parallel_attn", bool, True),
            "norms": Key("num_ln_in_parallel_attn", int, None),
        },
        names={
            "embed": "{p}word_embeddings",
            "layers.{i}.attn_norm": "{p}h.{i}.input_layernorm",
            "layers.{i}.mlp_norm": "{p}h.{i}.post_attention_layernorm",
            **as_one("{p}h.{i}.self_attention.query_key_value", QKV, by="head"),
            "layers.{i}.o_proj": "{p}h.{i}.self_attention.dense",
            "layers.{i}.up_proj": "{p}h.{i}.mlp.dense_h_to_4h",
            "layers.{i}.down_proj": "{p}h.{i}.mlp.dense_4h_to_h",
            "final_norm": "{p}ln_f",
            "lm_head": "lm_head",
            "classifier": "score",
        },
        switches=LAYER_NORM_MLP | {"position_count": "kept"},
        fixed=DECODER,
        ignored=f"{SLICES} apply_residual_connection_post_layernorm",
        prefixes=("transformer.", ""),
        ignored_tensors=ROTARY_BUFFERS,
        renamed=_falcon_norms,
        rope=ROPE,
        finish=_falcon,
    ),
    "bloom": Family(
        classes=decoder("Bloom"),
        keys={
            "vocab": Key("vocab_size", int),
            "hidden": Key("hidden_size", int),
            "layers": Key("n_layer", int),
            "heads": Key("n_head", int),
            "norm_eps": Key("layer_norm_epsilon", float, 1e-5),
            "tied": Key("tie_word_embeddings", bool, True),
            "normed": Key("apply_residual_connection_post_layernorm", bool, False),
        },
        names={
            "embed": "{p}word_embeddings",
            "embed_norm": "{p}word_embeddings_layernorm",
            "layers.{i}.attn_norm": "{p}h.{i}.input_layernorm",
            "layers.{i}.mlp_norm": "{p}h.{i}.post_attention_layernorm",
            **as_one("{p}h.{i}.self_attention.query_key_value", QKV, by="head"),
            "layers.{i}.o_proj": "{p}h.{i}.self_attention.dense",
            "layers.{i}.up_proj": "{p}h.{i}.mlp.dense_h_to_4h",
            "layers.{i}.down_proj": "{p}h.{i}.mlp.dense_4h_to_h",
            "final_norm": "{p}ln_f",
            "lm_head": "lm_head",
            "classifier": "score",
        },
        switches=LAYER_NORM_MLP
        | {"activation": "gelu_new", "embed_norm": True, "position_count": "kept"},
        fixed=DECODER,
        ignored=f"{SLICES} slow_but_exact attention_softmax_in_fp32 bias_dropout_fusion"
        " masked_softmax_fusion n_inner offset_alibi skip_bias_add skip_bias_add_qkv seq_length"
        " unk_token_id",
        prefixes=("transformer.", ""),
        finish=_bloom,
    ),
    "mpt": Family(
        classes=decoder("Mpt") | {"MPTForCausalLM": decoder("Mpt")["MptForCausalLM"]},
        keys={
            "vocab": Key("vocab_size", int),
            "hidden": Key("d_model", int),
            "layers": Key("n_layers", int),
            "heads": Key("n_heads", int),
            "norm_eps": Key("layer_norm_epsilon", float, 1e-5),
            "tied": Key("tie_word_embeddings", bool, True),
        },
        names={
            "embed": "{p}wte",
            "layers.{i}.attn_norm": "{p}blocks.{i}.norm_1",
            "layers.{i}.mlp_norm": "{p}blocks.{i}.norm_2",
            **as_one("{p}blocks.{i}.attn.Wqkv", QKV),
            "layers.{i}.o_proj": "{p}blocks.{i}.attn.out_proj",
            "layers.{i}.up_proj": "{p}blocks.{i}.ffn.up_proj",
            "layers.{i}.down_proj": "{p}blocks.{i}.ffn.down_proj",
            "final_norm": "{p}norm_f",
            "lm_head": "lm_head",
            "classifier": "score",
        },
        switches={"norm": "layer_weight", "gated": False, "activation": "gelu"},
        fixed=DECODER,
        # transformers always computes four times the width, no bias and unscaled logits
        ignored=f"{SLICES} embedding_fraction emb_pdrop expansion_ratio init_config init_device"
        " learned_pos_emb logit_scale max_seq_len no_bias norm_type verbose",
        read="attn_config",
        prefixes=("transformer.", ""),
        finish=_mpt,
    ),
}
