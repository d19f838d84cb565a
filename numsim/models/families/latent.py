"""Decoders with latent attention and experts: one table entry each."""

from __future__ import annotations

import math

from numsim.models.arch import Mla, Moe
from numsim.models.families.shared import (
    ATTENTION_BIAS,
    CORRECTION,
    DECODER,
    EXPERTS_IGNORED,
    MLP,
    NEXT_TOKENS,
    ROTARY_BUFFERS,
    checked,
    corrected,
    expert_names,
    expert_sizes,
    first_dense,
    llama_keys,
    llama_like,
    llama_names,
    one_bias,
)
from numsim.models.family import Config, Family, Fields
from numsim.models.keys import Key, wrong
from numsim.models.rope_keys import rope_settings, yarn_growth

_HEADLESS = ("head_dim", "kv_heads")


def _latent(f: Fields, config: Config) -> Fields:
    """Sizes of latent attention; YaRN scales queries and keys once more."""
    mla = Mla(f.pop("q_rank"), f.pop("kv_rank"), f.pop("nope"), f.pop("rope_dim"))
    for key, value in (("qk_head_dim", mla.nope + mla.rope), ("head_dim", mla.rope)):
        if config.get(key, value) not in (None, value):
            raise wrong(key, f"{value}, as the other head sizes say", config[key])
    scale = 1.0 / math.sqrt(mla.nope + mla.rope)
    rope = rope_settings(config)
    if rope.get("rope_type", "default") != "default" and rope.get("mscale_all_dim"):
        factor, weight = (Key(k, float).read(rope, {}) for k in ("factor", "mscale_all_dim"))
        scale *= yarn_growth(factor, weight) ** 2
    return one_bias(f, config) | {
        "mla": mla,
        "head_dim": mla.nope + mla.rope,
        "kv_heads": f["heads"],
        "attn_scale": scale,
    }


def _deepseek_v2(f: Fields, config: Config) -> Fields:
    """Choose groups by their best expert, and only where `topk_method` says so."""
    groups, top_groups, method = f.pop("groups"), f.pop("top_groups"), f.pop("method")
    if method not in ("greedy", "group_limited_greedy"):
        raise wrong("topk_method", "greedy or group_limited_greedy", method)
    if method == "greedy":
        groups, top_groups = 1, 1
    sizes = expert_sizes(f)
    moe = Moe(
        **sizes, normalise=False, scale=f.pop("scale"), groups=groups or 1,
        top_groups=top_groups or 1, group_best=1, shared=sizes["intermediate"] * f.pop("shared"),
        dense=first_dense(f),
    )  # fmt: skip
    return _latent(f, config) | {"moe": checked(moe)}


def _deepseek_v3(f: Fields, config: Config) -> Fields:
    moe = corrected(f)
    return _latent(f, config) | {"moe": moe}


_LATENT = {
    "v_head_dim": Key("v_head_dim", int, 128),
    "q_rank": Key("q_lora_rank", int, 1536, nullable=True),
    "kv_rank": Key("kv_lora_rank", int, 512),
    "nope": Key("qk_nope_head_dim", int, 128),
    "rope_dim": Key("qk_rope_head_dim", int, 64),
}
_LATENT_NAMES = {
    f"layers.{{i}}.{ours}": f"{{p}}layers.{{i}}.self_attn.{theirs}"
    for ours, theirs in (
        ("q_a_proj", "q_a_proj"), ("q_a_norm", "q_a_layernorm"), ("q_b_proj", "q_b_proj"),
        ("kv_a_proj", "kv_a_proj_with_mqa"), ("kv_a_norm", "kv_a_layernorm"),
        ("kv_b_proj", "kv_b_proj"),
    )
}  # fmt: skip
# head_dim and qk_head_dim follow from other keys and are checked against them;
# num_key_value_heads: every head has its own keys
_LATENT_IGNORED = (
    f"{EXPERTS_IGNORED} head_dim qk_head_dim num_key_value_heads num_nextn_predict_layers ep_size"
    " aux_loss_alpha seq_aux"
)


def _latent_keys(**changes: Key) -> dict[str, Key]:
    keys = llama_keys(qkv_bias=ATTENTION_BIAS, **_LATENT, **changes)
    return {name: key for name, key in keys.items() if name not in _HEADLESS}


_DEEPSEEK_V3 = llama_like(
    "DeepseekV3",
    keys=_latent_keys(
        interleaved=Key("rope_interleave", bool, True),
        moe_intermediate=Key("moe_intermediate_size", int, 2048),
        experts=Key("n_routed_experts", int, 256),
        top_k=Key("num_experts_per_tok", int, 8),
        groups=Key("n_group", int, 8),
        top_groups=Key("topk_group", int, 4),
        normalise=Key("norm_topk_prob", bool, True),
        scale=Key("routed_scaling_factor", float, 2.5),
        shared=Key("n_shared_experts", int, 1, least=0),
        first=Key("first_k_dense_replace", int, 3, least=0),
    ),
    names=llama_names() | _LATENT_NAMES | CORRECTION | expert_names(MLP, shared="shared_experts"),
    fixed=DECODER | {"scoring_func": ("sigmoid",), "moe_layer_freq": (1,)},
    ignored=f"{_LATENT_IGNORED} topk_method",
    ignored_tensors=(*ROTARY_BUFFERS, *NEXT_TOKENS),
    finish=_deepseek_v3,
)

LATENT: dict[str, Family] = {
    "deepseek_v2": llama_like(
        "DeepseekV2",
        keys=_latent_keys(
            moe_intermediate=Key("moe_intermediate_size", int, 1407),
            experts=Key("n_routed_experts", int, 64),
            top_k=Key("num_experts_per_tok", int),
            groups=Key("n_group", int, None),
            top_groups=Key("topk_group", int, None),
            method=Key("topk_method", str, "greedy"),
            scale=Key("routed_scaling_factor", float, 1.0),
            shared=Key("n_shared_experts", int, 2, least=0),
            first=Key("first_k_dense_replace", int, 0, least=0),
            mlp_bias=Key("mlp_bias", bool, False),
        ),
        names=llama_names() | _LATENT_NAMES | expert_names(MLP, shared="shared_experts"),
        switches={"interleaved": True},
        fixed=DECODER | {"scoring_func": ("softmax",), "moe_layer_freq": (1,)},
        ignored=f"{_LATENT_IGNORED} norm_topk_prob",
        finish=_deepseek_v2,
    ),
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
}
