"""Decoders with experts: one table entry each."""

from __future__ import annotations

from numsim.models.arch import Growth, Moe
from numsim.models.families.decoders import KV_HEADS_OF_MISTRAL
from numsim.models.families.shared import (
    ATTENTION_BIAS,
    CORRECTION,
    DECODER,
    EXPERTS_IGNORED,
    GATE_UP,
    GRANITE_KEYS,
    MLP,
    NEXT,
    NEXT_TOKENS,
    ROPE,
    ROTARY_BUFFERS,
    TRUNK,
    always,
    checked,
    corrected,
    decoder,
    expert_names,
    expert_sizes,
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
from numsim.models.rope_keys import ORIGINAL

_SPARSE = "{p}layers.{i}.block_sparse_moe"


def _mixtral(f: Fields, config: Config) -> Fields:
    return f | {"moe": checked(Moe(**expert_sizes(f)))}


def _qwen(f: Fields, config: Config) -> Fields:
    """Every `decoder_sparse_step`-th layer has experts, but for those in `mlp_only_layers`."""
    step = Key("decoder_sparse_step", int, 1).read(config, {})
    dense = listed_layers(config, "mlp_only_layers", f["layers"]) or set()
    dense |= {i for i in range(f["layers"]) if (i + 1) % step}
    moe = Moe(
        **expert_sizes(f),
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
    moe = Moe(**expert_sizes(f), score="softmax_chosen", router_bias=True, bias=True)
    return one_bias(f, config) | {"moe": checked(moe)}


def _glm4_moe(f: Fields, config: Config) -> Fields:
    norm, moe = f.pop("has_qk_norm"), corrected(f)
    return f | {"moe": moe, "qk_norm": "rms" if norm else None}


def _olmoe(f: Fields, config: Config) -> Fields:
    normalise = f.pop("normalise")
    moe = Moe(**expert_sizes(f), normalise=normalise)
    return one_bias(f, config) | {"moe": checked(moe)}


def _granitemoe(f: Fields, config: Config) -> Fields:
    moe = Moe(**expert_sizes(f), score="softmax_chosen")
    return one_bias(f, config) | {"moe": checked(moe)}


def _llama4(f: Fields, config: Config) -> Fields:
    """Multiply what an expert reads; layers without rotary positions see all."""
    step = Key("interleave_moe_layer_step", int, 1).read(config, {})
    sparse = listed_layers(config, "moe_layers", f["layers"])
    if sparse is None:
        sparse = set(range(step - 1, f["layers"], step))
    sizes = expert_sizes(f)
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
        ignored=EXPERTS_IGNORED,
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
        | expert_names(MLP, shared="shared_expert")
        | {"layers.{i}.shared_gate": f"{MLP}.shared_expert_gate"},
        ignored=EXPERTS_IGNORED,
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
        names=llama_names() | expert_names(MLP),
        switches={"qk_norm": "rms"},
        ignored=f"{EXPERTS_IGNORED} max_window_layers",
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
        | {"layers.{i}.router": f"{MLP}.gate"}
        | {
            f"layers.{{i}}.experts.{{e}}.{part}.weight": At(
                f"{MLP}.experts.gate_up_proj", turned=None, parts=GATE_UP, stacked=True
            )
            for part in GATE_UP
        }
        | {
            "layers.{i}.experts.{e}.down_proj.weight": At(
                f"{MLP}.experts.down_proj", turned=None, stacked=True
            )
        },
        switches={"qk_norm": "rms", "normalise": True},
        fixed=DECODER | {"norm_topk_prob": (True,)},  # no version reads it
        ignored=EXPERTS_IGNORED,
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
            "layers.{i}.router": f"{MLP}.router",
            "layers.{i}.sinks": "{p}layers.{i}.self_attn.sinks",
        }
        | {
            f"layers.{{i}}.experts.{{e}}.{part}.{leaf}": At(
                f"{MLP}.experts.gate_up_proj{end}", leaf == "weight", GATE_UP, "row", stacked=True
            )
            for part in GATE_UP
            for leaf, end in (("weight", ""), ("bias", "_bias"))
        }
        | {
            f"layers.{{i}}.experts.{{e}}.down_proj.{leaf}": At(
                f"{MLP}.experts.down_proj{end}", leaf == "weight", stacked=True
            )
            for leaf, end in (("weight", ""), ("bias", "_bias"))
        },
        switches={"sinks": True},
        ignored=f"{EXPERTS_IGNORED} experts_per_token initial_context_length",
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
        names=llama_names() | expert_names(MLP),
        switches={"qk_norm": "rms_wide"},
        ignored=EXPERTS_IGNORED,
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
        ignored=f"{EXPERTS_IGNORED} mlp_bias",
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
        names=llama_names() | CORRECTION | expert_names(MLP, shared="shared_experts"),
        ignored=f"{EXPERTS_IGNORED} num_nextn_predict_layers",
        ignored_tensors=(*ROTARY_BUFFERS, *NEXT_TOKENS),
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
        ignored=f"{EXPERTS_IGNORED} for_llm_compressor",
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
