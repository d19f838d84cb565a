"""Decoders with experts: one table entry each."""

from __future__ import annotations

import math
from typing import Any

from numsim.models.arch import Growth, Mla, Moe
from numsim.models.families.decoders import KV_HEADS_OF_MISTRAL
from numsim.models.families.shared import (
    ATTENTION_BIAS,
    DECODER,
    GATE_UP,
    GRANITE_KEYS,
    NEXT,
    ROPE,
    ROTARY_BUFFERS,
    ROUTER_TRAINING,
    SLICES,
    TRUNK,
    always,
    checked,
    decoder,
    expert_names,
    listed_layers,
    llama_keys,
    llama_like,
    llama_names,
    one_bias,
)
from numsim.models.family import Config, Family, Fields
from numsim.models.keys import Key, wrong
from numsim.models.layers import has_rotary, rotary_layers
from numsim.models.places import At
from numsim.models.rope_keys import ORIGINAL, rope_settings, yarn_growth

_IGNORED = f"{SLICES} {ROUTER_TRAINING}"
_MLP = "{p}layers.{i}.mlp"
_SPARSE = "{p}layers.{i}.block_sparse_moe"
_NEXT_TOKENS = ("model.layers.{layers}.*", "layers.{layers}.*")  # predict a second token
_HEADLESS = ("head_dim", "kv_heads")


def _sizes(f: Fields) -> dict[str, Any]:
    width = f.pop("moe_intermediate", f["intermediate"])
    return {"experts": f.pop("experts"), "top_k": f.pop("top_k"), "intermediate": width}


def _first_dense(f: Fields) -> tuple[int, ...]:
    return tuple(range(min(f.pop("first"), f["layers"])))


def _mixtral(f: Fields, config: Config) -> Fields:
    return f | {"moe": checked(Moe(**_sizes(f)))}


def _qwen(f: Fields, config: Config) -> Fields:
    """Every `decoder_sparse_step`-th layer has experts, but for those in `mlp_only_layers`."""
    step = Key("decoder_sparse_step", int, 1).read(config, {})
    dense = listed_layers(config, "mlp_only_layers", f["layers"]) or set()
    dense |= {i for i in range(f["layers"]) if (i + 1) % step}
    moe = Moe(
        **_sizes(f),
        normalise=f.pop("normalise"),
        shared=f.get("shared", 0),
        shared_gate=f.pop("shared", 0) > 0,
        dense=tuple(sorted(dense)),
    )
    return f | {"moe": checked(moe)}


def _qwen2_moe_slides(config: Config, layer: int) -> bool:
    """Every second layer below max_window_layers, where use_sliding_window."""
    below = Key("max_window_layers", int, 28, least=0).read(config, {})
    return layer % 2 == 0 and bool(layer < below)


def _gpt_oss(f: Fields, config: Config) -> Fields:
    moe = Moe(**_sizes(f), score="softmax_chosen", router_bias=True, bias=True)
    return one_bias(f, config) | {"moe": checked(moe)}


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
    sizes = _sizes(f)
    moe = Moe(
        **sizes, normalise=False, scale=f.pop("scale"), groups=groups or 1,
        top_groups=top_groups or 1, group_best=1, shared=sizes["intermediate"] * f.pop("shared"),
        dense=_first_dense(f),
    )  # fmt: skip
    return _latent(f, config) | {"moe": checked(moe)}


def _deepseek_v3(f: Fields, config: Config) -> Fields:
    moe = _corrected(f)
    return _latent(f, config) | {"moe": moe}


def _corrected(f: Fields) -> Moe:
    """Return experts as DeepSeek-V3 chooses them: sigmoids with a learned correction."""
    sizes = _sizes(f)
    moe = Moe(
        **sizes, score="sigmoid", normalise=f.pop("normalise"), scale=f.pop("scale"),
        groups=f.pop("groups"), top_groups=f.pop("top_groups"), correction=True,
        shared=sizes["intermediate"] * f.pop("shared"), dense=_first_dense(f),
    )  # fmt: skip
    return checked(moe)


def _glm4_moe(f: Fields, config: Config) -> Fields:
    norm, moe = f.pop("has_qk_norm"), _corrected(f)
    return f | {"moe": moe, "qk_norm": "rms" if norm else None}


def _olmoe(f: Fields, config: Config) -> Fields:
    normalise = f.pop("normalise")
    moe = Moe(**_sizes(f), normalise=normalise)
    return one_bias(f, config) | {"moe": checked(moe)}


def _granitemoe(f: Fields, config: Config) -> Fields:
    moe = Moe(**_sizes(f), score="softmax_chosen")
    return one_bias(f, config) | {"moe": checked(moe)}


def _llama4(f: Fields, config: Config) -> Fields:
    """Multiply what an expert reads; layers without rotary positions see all."""
    step = Key("interleave_moe_layer_step", int, 1).read(config, {})
    sparse = listed_layers(config, "moe_layers", f["layers"])
    if sparse is None:
        sparse = set(range(step - 1, f["layers"], step))
    sizes = _sizes(f)
    moe = Moe(
        **sizes, score="sigmoid", normalise=False, shared=sizes["intermediate"], weighs_input=True,
        dense=tuple(i for i in range(f["layers"]) if i not in sparse),
    )  # fmt: skip
    growth, norm = Growth(f.pop("every"), f.pop("by")), f.pop("has_qk_norm")
    grows = f.pop("grows")
    return one_bias(f, config) | {
        "moe": checked(moe),
        "qk_norm": "l2" if norm else None,
        "query_growth": growth if grows else None,
        "chunks": f["windows"],
        "windows": (),
        "rotary_layers": rotary_layers(config, f["layers"]),
    }


_EXPERTS = {
    "experts": Key("num_local_experts", int, 8),
    "top_k": Key("num_experts_per_tok", int, 2),
}
_QWEN = {
    "moe_intermediate": Key("moe_intermediate_size", int),
    "experts": Key("num_experts", int),
    "top_k": Key("num_experts_per_tok", int),
    "normalise": Key("norm_topk_prob", bool, False),
}
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
_CORRECTION = {"layers.{i}.router.correction": f"{_MLP}.gate.e_score_correction_bias"}
# head_dim and qk_head_dim follow from other keys and are checked against them;
# num_key_value_heads: every head has its own keys
_LATENT_IGNORED = (
    f"{_IGNORED} head_dim qk_head_dim num_key_value_heads num_nextn_predict_layers ep_size"
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
    names=llama_names() | _LATENT_NAMES | _CORRECTION | expert_names(_MLP, shared="shared_experts"),
    fixed=DECODER | {"scoring_func": ("sigmoid",), "moe_layer_freq": (1,)},
    ignored=f"{_LATENT_IGNORED} topk_method",
    ignored_tensors=(*ROTARY_BUFFERS, *_NEXT_TOKENS),
    finish=_deepseek_v3,
)

EXPERTS: dict[str, Family] = {
    "mixtral": llama_like(
        "Mixtral",
        keys=llama_keys(
            kv_heads=KV_HEADS_OF_MISTRAL, norm_eps=Key("rms_norm_eps", float, 1e-5), **_EXPERTS
        ),
        names=llama_names()
        | {
            "layers.{i}.router": f"{_SPARSE}.gate",
            "layers.{i}.experts.{e}.gate_proj": f"{_SPARSE}.experts.{{e}}.w1",
            "layers.{i}.experts.{e}.up_proj": f"{_SPARSE}.experts.{{e}}.w3",
            "layers.{i}.experts.{e}.down_proj": f"{_SPARSE}.experts.{{e}}.w2",
        },
        ignored=_IGNORED,
        rope={"rope_theta": 1e6},
        windows=always,
        all_slide=True,
        finish=_mixtral,
    ),
    "qwen2_moe": llama_like(
        "Qwen2Moe",
        keys=llama_keys(
            qkv_bias=Key("qkv_bias", bool, True),
            shared=Key("shared_expert_intermediate_size", int, 5632, least=0),
            **_QWEN,
        ),
        names=llama_names()
        | expert_names(_MLP, shared="shared_expert")
        | {"layers.{i}.shared_gate": f"{_MLP}.shared_expert_gate"},
        ignored=_IGNORED,
        windows=_qwen2_moe_slides,
        window_switch="use_sliding_window",
        window_default=4096,
        read="max_window_layers mlp_only_layers decoder_sparse_step",
        finish=_qwen,
    ),
    "qwen3_moe": llama_like(
        "Qwen3Moe",
        keys=llama_keys(
            kv_heads=Key("num_key_value_heads", int, 4, nullable=lambda f: f["heads"]),
            qkv_bias=ATTENTION_BIAS,
            **_QWEN | {"experts": Key("num_experts", int, None)},
            local_experts=Key("num_local_experts", int, None),
        ),
        names=llama_names() | expert_names(_MLP),
        switches={"qk_norm": "rms"},
        ignored=f"{_IGNORED} max_window_layers",
        windows=always,
        all_slide=True,
        window_switch="use_sliding_window",
        window_default=4096,
        read="mlp_only_layers decoder_sparse_step",
        finish=lambda f, config: one_bias(_qwen(_either(f), config), config),
    ),
    "qwen3_vl_moe_text": llama_like(  # published experts are [in, out], today's are [out, in]
        "Qwen3VLMoe",
        classes={"Qwen3VLMoeForConditionalGeneration": NEXT, "Qwen3VLMoeTextModel": TRUNK},
        keys=llama_keys(
            kv_heads=Key("num_key_value_heads", int, 16, nullable=lambda f: f["heads"]),
            qkv_bias=ATTENTION_BIAS,
            moe_intermediate=Key("moe_intermediate_size", int, 1408),
            experts=Key("num_experts", int, None),
            local_experts=Key("num_local_experts", int, None),
            top_k=Key("num_experts_per_tok", int, 4),
        ),
        names=llama_names()
        | {"layers.{i}.router": f"{_MLP}.gate"}
        | {
            f"layers.{{i}}.experts.{{e}}.{part}.weight": At(
                f"{_MLP}.experts.gate_up_proj", turned=None, parts=GATE_UP, stacked=True
            )
            for part in GATE_UP
        }
        | {
            "layers.{i}.experts.{e}.down_proj.weight": At(
                f"{_MLP}.experts.down_proj", turned=None, stacked=True
            )
        },
        switches={"qk_norm": "rms", "normalise": True},
        fixed=DECODER | {"norm_topk_prob": (True,)},  # no version reads it
        ignored=_IGNORED,
        read="mlp_only_layers decoder_sparse_step",
        rope={"rope_theta": 500000.0},
        finish=lambda f, config: one_bias(_qwen(_either(f), config), config),
    ),
    "gpt_oss": llama_like(
        "GptOss",
        keys=llama_keys(
            kv_heads=Key("num_key_value_heads", int, 8, nullable=lambda f: f["heads"]),
            head_dim=Key("head_dim", int, 64, nullable=True),
            norm_eps=Key("rms_norm_eps", float, 1e-5),
            qkv_bias=Key("attention_bias", bool, True),
            swiglu_limit=Key("swiglu_limit", float, 7.0),
            swiglu_alpha=Key("swiglu_alpha", float, 1.702),
            experts=Key("num_local_experts", int, 128),
            top_k=Key("num_experts_per_tok", int, 4),
        ),
        names=llama_names()
        | {
            "layers.{i}.router": f"{_MLP}.router",
            "layers.{i}.sinks": "{p}layers.{i}.self_attn.sinks",
        }
        | {
            f"layers.{{i}}.experts.{{e}}.{part}.{leaf}": At(
                f"{_MLP}.experts.gate_up_proj{end}", leaf == "weight", GATE_UP, "row", stacked=True
            )
            for part in GATE_UP
            for leaf, end in (("weight", ""), ("bias", "_bias"))
        }
        | {
            f"layers.{{i}}.experts.{{e}}.down_proj.{leaf}": At(
                f"{_MLP}.experts.down_proj{end}", leaf == "weight", stacked=True
            )
            for leaf, end in (("weight", ""), ("bias", "_bias"))
        },
        switches={"sinks": True},
        ignored=f"{_IGNORED} experts_per_token initial_context_length",
        rope={"rope_theta": 150000.0},
        rope_table={
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            ORIGINAL: 4096,
        },
        windows=lambda config, layer: layer % 2 == 0,
        window_default=128,
        finish=_gpt_oss,
    ),
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
        names=llama_names() | _LATENT_NAMES | expert_names(_MLP, shared="shared_experts"),
        switches={"interleaved": True},
        fixed=DECODER | {"scoring_func": ("softmax",), "moe_layer_freq": (1,)},
        ignored=f"{_LATENT_IGNORED} norm_topk_prob",
        finish=_deepseek_v2,
    ),
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "olmoe": llama_like(
        "Olmoe",
        classes=decoder("Olmoe", scores=False),
        keys=llama_keys(
            norm_eps=Key("rms_norm_eps", float, 1e-5),
            qkv_bias=ATTENTION_BIAS,
            clip_qkv=Key("clip_qkv", float, None),
            experts=Key("num_experts", int, 64),
            top_k=Key("num_experts_per_tok", int, 8),
            normalise=Key("norm_topk_prob", bool, False),
        ),
        names=llama_names() | expert_names(_MLP),
        switches={"qk_norm": "rms_wide"},
        ignored=_IGNORED,
        finish=_olmoe,
    ),
    "granitemoe": llama_like(
        "GraniteMoe",
        classes=decoder("GraniteMoe", scores=False),
        keys=llama_keys(qkv_bias=ATTENTION_BIAS, **GRANITE_KEYS, **_EXPERTS),
        names=llama_names()
        | {"layers.{i}.router": f"{_SPARSE}.router.layer"}
        | {
            f"layers.{{i}}.experts.{{e}}.{part}.weight": At(
                f"{_SPARSE}.input_linear.weight", parts=GATE_UP, stacked=True
            )
            for part in GATE_UP
        }
        | {
            "layers.{i}.experts.{e}.down_proj.weight": At(
                f"{_SPARSE}.output_linear.weight", stacked=True
            )
        },
        ignored=f"{_IGNORED} mlp_bias",
        finish=_granitemoe,
    ),
    "glm4_moe": llama_like(
        "Glm4Moe",
        classes=decoder("Glm4Moe", scores=False),
        keys=llama_keys(
            kv_heads=Key("num_key_value_heads", int, 8),
            norm_eps=Key("rms_norm_eps", float, 1e-5),
            qkv_bias=ATTENTION_BIAS,
            has_qk_norm=Key("use_qk_norm", bool, False),
            moe_intermediate=Key("moe_intermediate_size", int, 1408),
            experts=Key("n_routed_experts", int, 128),
            top_k=Key("num_experts_per_tok", int, 8),
            groups=Key("n_group", int, 1),
            top_groups=Key("topk_group", int, 1),
            normalise=Key("norm_topk_prob", bool, True),
            scale=Key("routed_scaling_factor", float, 1.0),
            shared=Key("n_shared_experts", int, 1, least=0),
            first=Key("first_k_dense_replace", int, 1, least=0),
        ),
        names=llama_names() | _CORRECTION | expert_names(_MLP, shared="shared_experts"),
        ignored=f"{_IGNORED} num_nextn_predict_layers",
        ignored_tensors=(*ROTARY_BUFFERS, *_NEXT_TOKENS),
        rope=ROPE | {"partial_rotary_factor": 0.5},
        read="partial_rotary_factor",
        finish=_glm4_moe,
    ),
    "llama4_text": llama_like(
        "Llama4",
        classes={"Llama4ForCausalLM": NEXT, "Llama4TextModel": TRUNK},
        keys=llama_keys(
            kv_heads=Key("num_key_value_heads", int, 8, nullable=lambda f: f["heads"]),
            head_dim=Key("head_dim", int, 128, nullable=True),
            norm_eps=Key("rms_norm_eps", float, 1e-5),
            moe_intermediate=Key("intermediate_size", int, 8192),
            intermediate=Key("intermediate_size_mlp", int, 16384),
            qkv_bias=ATTENTION_BIAS,
            has_qk_norm=Key("use_qk_norm", bool, True),
            experts=Key("num_local_experts", int, 16),
            top_k=Key("num_experts_per_tok", int, 1),
            grows=Key("attn_temperature_tuning", bool, True),
            every=Key("floor_scale", int, 8192),
            by=Key("attn_scale", float, 0.1),
        ),
        names=llama_names()
        | expert_names("{p}layers.{i}.feed_forward", "router", "shared_expert")
        | {
            f"layers.{{i}}.{part}": f"{{p}}layers.{{i}}.feed_forward.{part}"
            for part in (*GATE_UP, "down_proj")
        }
        | {
            f"layers.{{i}}.experts.{{e}}.{part}.weight": At(
                "{p}layers.{i}.feed_forward.experts.gate_up_proj", True, GATE_UP, stacked=True
            )
            for part in GATE_UP
        }
        | {
            "layers.{i}.experts.{e}.down_proj.weight": At(
                "{p}layers.{i}.feed_forward.experts.down_proj", True, stacked=True
            )
        },
        switches={"interleaved": True},
        ignored=f"{_IGNORED} for_llm_compressor",
        rope={"rope_theta": 5e5},
        windows=has_rotary,
        window_key="attention_chunk_size",
        window_default=8192,
        read="no_rope_layers no_rope_layer_interval moe_layers interleave_moe_layer_step",
        finish=_llama4,
    ),
}


def _either(f: Fields) -> Fields:
    """Experts by their older or newer key, which must agree."""
    older, newer = f.pop("experts"), f.pop("local_experts")
    if older is not None and newer not in (None, older):
        raise wrong("num_local_experts", f"{older}, as num_experts", newer)
    count = older or newer
    if count is None:
        raise wrong("num_experts", "a number", None)
    return f | {"experts": count}
