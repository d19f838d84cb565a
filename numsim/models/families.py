"""The families of networks: one table entry each, names and switches only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from numsim.errors import UnsupportedError, near_names
from numsim.models.arch import Mla, Moe
from numsim.models.config import At, Family
from numsim.models.keys import Key, shown, wrong
from numsim.models.rope_keys import rope_settings, yarn_growth

Fields = dict[str, Any]
Config = Mapping[str, Any]

DECODER = {
    "is_encoder_decoder": (False,), "is_decoder": (False, True), "is_causal": (True, None),
}  # fmt: skip
ROTARY_BUFFERS = ("*rotary_emb.inv_freq",)  # recomputed from the config


def _llama_names(layer: str = "{p}layers.{i}.") -> dict[str, str | At]:
    return {
        "embed": "{p}embed_tokens",
        "layers.{i}.attn_norm": f"{layer}input_layernorm",
        "layers.{i}.q_proj": f"{layer}self_attn.q_proj",
        "layers.{i}.k_proj": f"{layer}self_attn.k_proj",
        "layers.{i}.v_proj": f"{layer}self_attn.v_proj",
        "layers.{i}.q_norm": f"{layer}self_attn.q_norm",
        "layers.{i}.k_norm": f"{layer}self_attn.k_norm",
        "layers.{i}.o_proj": f"{layer}self_attn.o_proj",
        "layers.{i}.mlp_norm": f"{layer}post_attention_layernorm",
        "layers.{i}.gate_proj": f"{layer}mlp.gate_proj",
        "layers.{i}.up_proj": f"{layer}mlp.up_proj",
        "layers.{i}.down_proj": f"{layer}mlp.down_proj",
        "final_norm": "{p}norm",
        "lm_head": "lm_head",
        "classifier": "score",
    }


_KV_HEADS_OF_MISTRAL = Key("num_key_value_heads", int, 8, nullable=lambda f: f["heads"])


def _llama_keys(**changes: Key) -> dict[str, Key]:
    keys = {
        "vocab": Key("vocab_size", int),
        "hidden": Key("hidden_size", int),
        "layers": Key("num_hidden_layers", int),
        "heads": Key("num_attention_heads", int),
        "kv_heads": Key("num_key_value_heads", int, lambda f: f["heads"]),
        "head_dim": Key("head_dim", int, None),
        "intermediate": Key("intermediate_size", int),
        "norm_eps": Key("rms_norm_eps", float, 1e-6),
        "activation": Key("hidden_act", str, "silu"),
        "tied": Key("tie_word_embeddings", bool, False),
    }
    return keys | changes


ATTENTION_BIAS = Key("attention_bias", bool, False)
SLICES = "pretraining_tp"  # sums in slices: the same function
ROUTER_TRAINING = "output_router_logits router_aux_loss_coef router_jitter_noise"


def _one_bias(f: Fields, config: Config) -> Fields:
    """One key gives the biases of all attention projections."""
    return f | {"o_bias": f["qkv_bias"]}


def _all_biases(f: Fields) -> Fields:
    return f | dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), True)


def _qwen_window(config: Config, layer: int) -> bool:
    first = Key("max_window_layers", int, 28, least=0).read(config, {})
    return bool(layer >= first)


def _gemma(f: Fields, config: Config) -> Fields:
    """Scale the embedding by sqrt(hidden); "gelu" is the tanh form.

    Versions of transformers differ in which of two activation keys counts, so they must agree.
    """
    if f["activation"] == "gelu":
        f["activation"] = "gelu_pytorch_tanh"
    named = f.pop("hidden_activation", None)
    if named not in (None, f["activation"]):
        raise wrong("hidden_activation", f"{f['activation']!r}, as hidden_act", named)
    return _one_bias(f, config) | {"embed_scale": math.sqrt(f["hidden"])}


def _gemma2(f: Fields, config: Config) -> Fields:
    window = config.get("sliding_window", 4096)
    size = config.get("sliding_window_size")
    if size not in (None, window):
        raise wrong("sliding_window_size", f"{window}, as sliding_window", size)
    scalar = f.pop("query_pre_attn_scalar")
    act = f["activation"]  # means what it says, unlike Gemma's
    return _gemma(f, config) | {"attn_scale": 1.0 / math.sqrt(scalar), "activation": act}


def _gpt2(f: Fields, config: Config) -> Fields:
    if not f.pop("scale_attn_weights"):
        f["attn_scale"] = 1.0
    f["intermediate"] = f["intermediate"] or 4 * f["hidden"]
    return _all_biases(f)


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
    return _all_biases(f) | {"qk_norm": "layer" if f["qk_norm"] else None}


def _gpt_neox(f: Fields, config: Config) -> Fields:
    """Beside the table, transformers reads ``rotary_emb_base`` and ``rotary_pct`` only."""
    read = _NEOX_ROPE | rope_settings({k: v for k, v in config.items() if k not in _NEOX_ROPE})
    for key, spelt in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        if config.get(key) not in (None, read[key]):
            raise wrong(key, f"{read[key]}, as {spelt} or its default says", config[key])
    parallel = f.pop("parallel")
    residual = "parallel" if parallel else "pre"
    return _one_bias(f, config) | {"residual": residual, "mlp_bias": True}


def _mixtral(f: Fields, config: Config) -> Fields:
    moe = Moe(f.pop("experts"), f.pop("top_k"), f["intermediate"])
    return f | {"moe": _checked(moe)}


def _deepseek(f: Fields, config: Config) -> Fields:
    mla = Mla(f.pop("q_rank"), f.pop("kv_rank"), f.pop("nope"), f.pop("rope_dim"))
    for key, value in (("qk_head_dim", mla.nope + mla.rope), ("head_dim", mla.rope)):
        if config.get(key, value) not in (None, value):
            raise wrong(key, f"{value}, as the other head sizes say", config[key])
    width = f.pop("moe_intermediate")
    moe = Moe(
        f.pop("experts"), f.pop("top_k"), width, "sigmoid", f.pop("normalise"), f.pop("scale"),
        f.pop("groups"), f.pop("top_groups"), True, width * f.pop("shared"), f.pop("first"),
    )  # fmt: skip
    scale = 1.0 / math.sqrt(mla.nope + mla.rope)
    rope = rope_settings(config)
    if rope.get("rope_type", "default") != "default" and rope.get("mscale_all_dim"):
        factor, weight = (Key(k, float).read(rope, {}) for k in ("factor", "mscale_all_dim"))
        scale *= yarn_growth(factor, weight) ** 2
    return _one_bias(f, config) | {
        "mla": mla,
        "moe": _checked(moe),
        "head_dim": mla.nope + mla.rope,
        "kv_heads": f["heads"],
        "attn_scale": scale,
    }


def _checked(moe: Moe) -> Moe:
    per_group = moe.experts // moe.groups
    if moe.experts % moe.groups or (moe.groups > 1 and per_group < 2):
        raise wrong("n_group", f"a divisor of {moe.experts} experts, two a group", moe.groups)
    if moe.top_groups > moe.groups:
        raise wrong("topk_group", f"at most {moe.groups} groups", moe.top_groups)
    if moe.top_k > moe.top_groups * per_group:
        raise wrong("num_experts_per_tok", f"at most {moe.top_groups * per_group}", moe.top_k)
    return moe


def _t5(f: Fields, config: Config) -> Fields:
    """``feed_forward_proj`` is an activation, or ``gated-`` and one; gelu means gelu_new then."""
    encoder = "T5EncoderModel" in (config.get("architectures") or ())
    if config.get("is_encoder_decoder", True) is not True and not encoder:
        raise wrong("is_encoder_decoder", "true, but for a T5EncoderModel", False)
    words = f["activation"].split("-")
    gated = len(words) == 2 and words[0] == "gated"
    if len(words) != 1 and not gated:
        raise wrong("feed_forward_proj", "ACTIVATION or gated-ACTIVATION", f["activation"])
    activation = "gelu_new" if f["activation"] == "gated-gelu" else words[-1]
    for key, value in (("is_gated_act", gated), ("dense_act_fn", activation)):
        if config.get(key, value) != value:
            raise wrong(key, f"{value!r}, as feed_forward_proj says", config[key])
    if f["bucket_distance"] <= f["buckets"] // 2:  # the nearer half holds one distance each
        raise wrong(
            "relative_attention_max_distance", f"above {f['buckets'] // 2}", f["bucket_distance"]
        )
    start = f["decoder_start"]
    if start is not None and start >= f["vocab"]:
        raise wrong("decoder_start_token_id", f"below vocab_size {f['vocab']}", start)
    scaled = f.pop("scaled")
    return f | {
        "gated": gated,
        "activation": activation,
        "head_scale": 1.0 / math.sqrt(f["hidden"]) if scaled else 1.0,
    }


# our prefix, theirs, the sub-layer of the MLP; of an encoder alone ours is empty
_T5_SIDES = (("", "encoder", 1), ("encoder.", "encoder", 1), ("decoder.", "decoder", 2))


def _t5_names() -> dict[str, str | At]:
    names: dict[str, str | At] = {"embed": "shared", "lm_head": "lm_head"}
    for own, side, mlp in _T5_SIDES:
        block, ours = f"{side}.block.{{i}}.layer", f"{own}layers.{{i}}"
        for letter in "qkvo":
            names[f"{ours}.{letter}_proj"] = f"{block}.0.SelfAttention.{letter}"
            names[f"{ours}.cross_{letter}_proj"] = f"{block}.1.EncDecAttention.{letter}"
        names |= {
            f"{ours}.attn_norm": f"{block}.0.layer_norm",
            f"{ours}.cross_norm": f"{block}.1.layer_norm",
            f"{ours}.mlp_norm": f"{block}.{mlp}.layer_norm",
            f"{ours}.gate_proj": f"{block}.{mlp}.DenseReluDense.wi_0",
            f"{ours}.up_proj": f"{block}.{mlp}.DenseReluDense.wi",
            f"{ours}.down_proj": f"{block}.{mlp}.DenseReluDense.wo",
            f"{own}final_norm": f"{side}.final_layer_norm",
            f"{own}relative": f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias",
        }
    return names


def _plain_keys(**changes: Key) -> dict[str, Key]:
    """GPT-NeoX, Phi and BERT spell their sizes alike."""
    keys = _llama_keys(norm_eps=Key("layer_norm_eps", float, 1e-5))
    del keys["head_dim"], keys["kv_heads"]
    return keys | changes


def _windowed(config: Config, layer: int) -> bool:
    return True


_ROPE = {"rope_theta": 10000.0}
_NEOX_ROPE = _ROPE | {"partial_rotary_factor": 0.25}
_LAYER_NORM_MLP: dict[str, Any] = {"norm": "layer", "gated": False}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
        trunks=("LlamaModel",),
        classifiers=("LlamaForSequenceClassification",),
        keys=_llama_keys(qkv_bias=ATTENTION_BIAS, mlp_bias=Key("mlp_bias", bool, False)),
        names=_llama_names(),
        fixed=DECODER | {"is_llama_config": (True,), "rope_interleaved": (False,)},
        ignored=SLICES + " max_sequence_length",
        ignored_tensors=ROTARY_BUFFERS,
        rope=_ROPE,
        finish=_one_bias,
    ),
    "mistral": Family(
        architectures=("MistralForCausalLM",),
        trunks=("MistralModel",),
        classifiers=("MistralForSequenceClassification",),
        keys=_llama_keys(kv_heads=_KV_HEADS_OF_MISTRAL),
        names=_llama_names(),
        fixed=DECODER,
        ignored=SLICES,
        ignored_tensors=ROTARY_BUFFERS,
        rope=_ROPE,
        windows=_windowed,
        all_slide=True,
        window_default=4096,
    ),
    "qwen2": Family(
        architectures=("Qwen2ForCausalLM",),
        trunks=("Qwen2Model",),
        classifiers=("Qwen2ForSequenceClassification",),
        keys=_llama_keys(),
        names=_llama_names(),
        switches={"qkv_bias": True},
        fixed=DECODER | {"use_mrope": (False,)},
        ignored=SLICES + " max_window_layers",  # _qwen_window reads it
        ignored_tensors=ROTARY_BUFFERS,
        rope=_ROPE,
        windows=_qwen_window,
        window_switch="use_sliding_window",
        window_default=4096,
    ),
    "qwen3": Family(
        architectures=("Qwen3ForCausalLM",),
        trunks=("Qwen3Model",),
        classifiers=("Qwen3ForSequenceClassification",),
        keys=_llama_keys(head_dim=Key("head_dim", int, 128), qkv_bias=ATTENTION_BIAS),
        names=_llama_names(),
        switches={"qk_norm": "rms"},
        fixed=DECODER,
        ignored=SLICES + " max_window_layers",
        ignored_tensors=ROTARY_BUFFERS,
        rope=_ROPE,
        windows=_qwen_window,
        window_switch="use_sliding_window",
        window_default=4096,
        finish=_one_bias,
    ),
    "gemma": Family(
        architectures=("GemmaForCausalLM",),
        trunks=("GemmaModel",),
        classifiers=("GemmaForSequenceClassification",),
        keys=_llama_keys(
            head_dim=Key("head_dim", int, 256),
            activation=Key("hidden_act", str, "gelu_pytorch_tanh"),
            hidden_activation=Key("hidden_activation", str, None),
            tied=Key("tie_word_embeddings", bool, True),
            qkv_bias=ATTENTION_BIAS,
        ),
        names=_llama_names(),
        switches={"norm": "rms_plus_one"},
        fixed=DECODER,
        ignored=SLICES,
        ignored_tensors=ROTARY_BUFFERS,
        rope=_ROPE,
        finish=_gemma,
    ),
    "gemma2": Family(
        architectures=("Gemma2ForCausalLM",),
        trunks=("Gemma2Model",),
        classifiers=("Gemma2ForSequenceClassification",),
        keys=_llama_keys(
            head_dim=Key("head_dim", int, 256),
            activation=Key("hidden_activation", str, "gelu_pytorch_tanh"),
            tied=Key("tie_word_embeddings", bool, True),
            qkv_bias=ATTENTION_BIAS,
            attn_cap=Key("attn_logit_softcapping", float, 50.0, nullable=True),
            head_cap=Key("final_logit_softcapping", float, 30.0, nullable=True),
            query_pre_attn_scalar=Key("query_pre_attn_scalar", float, 256.0),
        ),
        names=_llama_names()
        | {
            "layers.{i}.attn_post_norm": "{p}layers.{i}.post_attention_layernorm",
            "layers.{i}.mlp_norm": "{p}layers.{i}.pre_feedforward_layernorm",
            "layers.{i}.mlp_post_norm": "{p}layers.{i}.post_feedforward_layernorm",
        },
        switches={"norm": "rms_plus_one", "residual": "sandwich"},
        fixed=DECODER,
        # hidden_activation is the one that counts; sliding_window_size is checked against its twin
        ignored=SLICES + " hidden_act sliding_window_size",
        ignored_tensors=ROTARY_BUFFERS,
        rope=_ROPE,
        windows=lambda config, layer: layer % 2 == 0,
        window_default=4096,
        finish=_gemma2,
    ),
    "mixtral": Family(
        architectures=("MixtralForCausalLM",),
        trunks=("MixtralModel",),
        classifiers=("MixtralForSequenceClassification",),
        keys=_llama_keys(
            kv_heads=_KV_HEADS_OF_MISTRAL,
            norm_eps=Key("rms_norm_eps", float, 1e-5),
            experts=Key("num_local_experts", int, 8),
            top_k=Key("num_experts_per_tok", int, 2),
        ),
        names=_llama_names()
        | {
            "layers.{i}.router": "{p}layers.{i}.block_sparse_moe.gate",
            "layers.{i}.experts.{e}.gate_proj": "{p}layers.{i}.block_sparse_moe.experts.{e}.w1",
            "layers.{i}.experts.{e}.up_proj": "{p}layers.{i}.block_sparse_moe.experts.{e}.w3",
            "layers.{i}.experts.{e}.down_proj": "{p}layers.{i}.block_sparse_moe.experts.{e}.w2",
        },
        fixed=DECODER,
        ignored=f"{SLICES} {ROUTER_TRAINING}",
        ignored_tensors=ROTARY_BUFFERS,
        rope={"rope_theta": 1e6},
        windows=_windowed,
        all_slide=True,
        finish=_mixtral,
    ),
    "deepseek_v3": Family(
        architectures=("DeepseekV3ForCausalLM",),
        trunks=("DeepseekV3Model",),
        classifiers=("DeepseekV3ForSequenceClassification",),
        keys={
            name: key
            for name, key in _llama_keys(
                qkv_bias=ATTENTION_BIAS,
                v_head_dim=Key("v_head_dim", int, 128),
                q_rank=Key("q_lora_rank", int, 1536, nullable=True),
                kv_rank=Key("kv_lora_rank", int, 512),
                nope=Key("qk_nope_head_dim", int, 128),
                rope_dim=Key("qk_rope_head_dim", int, 64),
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
            ).items()
            if name not in ("head_dim", "kv_heads")
        },
        names=_llama_names()
        | {
            "layers.{i}.q_a_proj": "{p}layers.{i}.self_attn.q_a_proj",
            "layers.{i}.q_a_norm": "{p}layers.{i}.self_attn.q_a_layernorm",
            "layers.{i}.q_b_proj": "{p}layers.{i}.self_attn.q_b_proj",
            "layers.{i}.kv_a_proj": "{p}layers.{i}.self_attn.kv_a_proj_with_mqa",
            "layers.{i}.kv_a_norm": "{p}layers.{i}.self_attn.kv_a_layernorm",
            "layers.{i}.kv_b_proj": "{p}layers.{i}.self_attn.kv_b_proj",
            "layers.{i}.router": "{p}layers.{i}.mlp.gate",
            "layers.{i}.router.correction": "{p}layers.{i}.mlp.gate.e_score_correction_bias",
            **{
                f"layers.{{i}}.{ours}.{proj}": f"{{p}}layers.{{i}}.mlp.{theirs}.{proj}"
                for ours, theirs in (("experts.{e}", "experts.{e}"), ("shared", "shared_experts"))
                for proj in ("gate_proj", "up_proj", "down_proj")
            },
        },
        fixed=DECODER
        | {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "moe_layer_freq": (1,)},
        # head_dim and qk_head_dim follow from other keys and are checked against them;
        # num_key_value_heads: every head has its own keys
        ignored=f"{SLICES} {ROUTER_TRAINING} head_dim qk_head_dim num_key_value_heads "
        "num_nextn_predict_layers ep_size aux_loss_alpha seq_aux",
        ignored_tensors=(
            *ROTARY_BUFFERS,
            "model.layers.{layers}.*",
            "layers.{layers}.*",
        ),  # predicts a second token
        rope=_ROPE,
        finish=_deepseek,
    ),
    "phi": Family(
        architectures=("PhiForCausalLM",),
        trunks=("PhiModel",),
        classifiers=("PhiForSequenceClassification",),
        keys=_plain_keys(
            kv_heads=Key("num_key_value_heads", int, lambda f: f["heads"]),
            activation=Key("hidden_act", str, "gelu_new"),
            qk_norm=Key("qk_layernorm", bool, False),
        ),
        names=_llama_names()
        | {
            "layers.{i}.q_norm": "{p}layers.{i}.self_attn.q_layernorm",
            "layers.{i}.k_norm": "{p}layers.{i}.self_attn.k_layernorm",
            "layers.{i}.o_proj": "{p}layers.{i}.self_attn.dense",
            "layers.{i}.up_proj": "{p}layers.{i}.mlp.fc1",
            "layers.{i}.down_proj": "{p}layers.{i}.mlp.fc2",
            "final_norm": "{p}final_layernorm",
        },
        switches=_LAYER_NORM_MLP | {"residual": "parallel_shared", "head_bias": True},
        fixed=DECODER,
        ignored=SLICES,
        ignored_tensors=ROTARY_BUFFERS,
        rope=_ROPE | {"partial_rotary_factor": 0.5},
        rope_keys="partial_rotary_factor",
        finish=_phi,
    ),
    "gpt_neox": Family(
        architectures=("GPTNeoXForCausalLM",),
        trunks=("GPTNeoXModel",),
        classifiers=("GPTNeoXForSequenceClassification",),
        head_tensors=("embed_out.*",),
        keys=_plain_keys(
            activation=Key("hidden_act", str, "gelu"),
            qkv_bias=Key("attention_bias", bool, True),
            parallel=Key("use_parallel_residual", bool, True),
        ),
        names={
            "embed": "{p}embed_in",
            "layers.{i}.attn_norm": "{p}layers.{i}.input_layernorm",
            "layers.{i}.mlp_norm": "{p}layers.{i}.post_attention_layernorm",
            **{
                f"layers.{{i}}.{name}": At(
                    "{p}layers.{i}.attention.query_key_value", part=part, parts=3, by_head=True
                )
                for part, name in enumerate(("q_proj", "k_proj", "v_proj"))
            },
            "layers.{i}.o_proj": "{p}layers.{i}.attention.dense",
            "layers.{i}.up_proj": "{p}layers.{i}.mlp.dense_h_to_4h",
            "layers.{i}.down_proj": "{p}layers.{i}.mlp.dense_4h_to_h",
            "final_norm": "{p}final_layer_norm",
            "lm_head": "embed_out",
            "classifier": "score",
        },
        switches=_LAYER_NORM_MLP,
        fixed=DECODER,
        ignored=SLICES,
        prefixes=("gpt_neox.", ""),
        ignored_tensors=(*ROTARY_BUFFERS, "*.attention.bias", "*.attention.masked_bias"),
        rope=_NEOX_ROPE,
        rope_keys="rotary_pct rotary_emb_base partial_rotary_factor",
        finish=_gpt_neox,
    ),
    "gpt2": Family(
        architectures=("GPT2LMHeadModel",),
        trunks=("GPT2Model",),
        classifiers=("GPT2ForSequenceClassification",),
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
            **{
                f"layers.{{i}}.{name}": At("{p}h.{i}.attn.c_attn", turned=True, part=i, parts=3)
                for i, name in enumerate(("q_proj", "k_proj", "v_proj"))
            },
            "layers.{i}.o_proj": At("{p}h.{i}.attn.c_proj", turned=True),
            "layers.{i}.up_proj": At("{p}h.{i}.mlp.c_fc", turned=True),
            "layers.{i}.down_proj": At("{p}h.{i}.mlp.c_proj", turned=True),
            "final_norm": "{p}ln_f",
            "lm_head": "lm_head",
            "classifier": "score",
        },
        switches=_LAYER_NORM_MLP,
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
        architectures=("OPTForCausalLM",),
        trunks=("OPTModel",),
        classifiers=("OPTForSequenceClassification",),
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
        switches=_LAYER_NORM_MLP
        | {"norm_eps": 1e-5, "position_offset": 2, "masked_positions": True},
        # Galactica says so of every OPT
        fixed=DECODER | {"learned_embeddings": (True,), "scale_embeddings": (False,)},
        prefixes=("model.decoder.", "decoder."),
        finish=_opt,
    ),
    "bert": Family(
        architectures=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
        classifiers=("BertForSequenceClassification",),
        keys=_plain_keys(
            activation=Key("hidden_act", str, "gelu"),
            norm_eps=Key("layer_norm_eps", float, 1e-12),
            positions=Key("max_position_embeddings", int, 512),
            token_types=Key("type_vocab_size", int, 2),
        ),
        names={
            "embed": "{p}embeddings.word_embeddings",
            "position": "{p}embeddings.position_embeddings",
            "token_type": "{p}embeddings.token_type_embeddings",
            "embed_norm": "{p}embeddings.LayerNorm",
            "layers.{i}.q_proj": "{p}encoder.layer.{i}.attention.self.query",
            "layers.{i}.k_proj": "{p}encoder.layer.{i}.attention.self.key",
            "layers.{i}.v_proj": "{p}encoder.layer.{i}.attention.self.value",
            "layers.{i}.o_proj": "{p}encoder.layer.{i}.attention.output.dense",
            "layers.{i}.attn_norm": "{p}encoder.layer.{i}.attention.output.LayerNorm",
            "layers.{i}.up_proj": "{p}encoder.layer.{i}.intermediate.dense",
            "layers.{i}.down_proj": "{p}encoder.layer.{i}.output.dense",
            "layers.{i}.mlp_norm": "{p}encoder.layer.{i}.output.LayerNorm",
            "pooler": "{p}pooler.dense",
            "classifier": "classifier",
        },
        switches=_LAYER_NORM_MLP
        | {
            "residual": "post",
            "final_norm": False,
            "embed_norm": True,
            "causal": False,
            "head": False,
            "pooler": True,
        },
        fixed={
            "is_encoder_decoder": (False,),
            "is_decoder": (False,),
            "position_embedding_type": ("absolute",),
        },
        ignored="directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
        "pooler_size_per_head pooler_type",
        prefixes=("", "bert."),
        older_names={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        ignored_tensors=("*embeddings.position_ids", "cls.*"),
        optional=("pooler",),
        finish=lambda f, config: _all_biases(f) | {"tied": False},
    ),
    "t5": Family(
        architectures=("T5ForConditionalGeneration", "T5Model", "T5WithLMHeadModel"),
        trunks=("T5EncoderModel",),
        trunk_switches={"decoder_layers": 0, "decoder_start": None, "causal": False},
        head_tensors=("lm_head.*", "decoder.*"),
        keys={
            "vocab": Key("vocab_size", int),
            "hidden": Key("d_model", int),
            "layers": Key("num_layers", int),
            "decoder_layers": Key("num_decoder_layers", int, lambda f: f["layers"]),
            "heads": Key("num_heads", int),
            "head_dim": Key("d_kv", int),
            "intermediate": Key("d_ff", int),
            "activation": Key("feed_forward_proj", str, "relu"),
            "norm_eps": Key("layer_norm_epsilon", float, 1e-6),
            "buckets": Key("relative_attention_num_buckets", int, 32, least=4),
            "bucket_distance": Key("relative_attention_max_distance", int, 128),
            "tied": Key("tie_word_embeddings", bool, True),
            "scaled": Key("scale_decoder_outputs", bool, lambda f: f["tied"]),
            "decoder_start": Key("decoder_start_token_id", int, None, least=0),
        },
        names=_t5_names(),
        gated_names={
            f"{own}layers.{{i}}.up_proj": f"{side}.block.{{i}}.layer.{at}.DenseReluDense.wi_1"
            for own, side, at in _T5_SIDES
        },
        switches={"attn_scale": 1.0},
        # False: T5EncoderModel alone, see _t5
        fixed={"is_encoder_decoder": (True, False), "is_decoder": (False,)},
        # is_gated_act and dense_act_fn repeat feed_forward_proj and are checked against it
        ignored="n_positions is_gated_act dense_act_fn",
        prefixes=("",),
        # a tied table may be stored under one of its other names alone
        older_names={"encoder.embed_tokens.weight": "shared.weight"},
        ignored_tensors=(
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
        ),
        finish=_t5,
    ),
}


def get_family(model_type: object) -> Family:
    """Return the family of a ``model_type``.

    Raises
    ------
    UnsupportedError
        No family of that name.

    Examples
    --------
    >>> get_family("qwen2").architectures
    ('Qwen2ForCausalLM',)
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedError(
            f"config.json: model_type must be one of {', '.join(FAMILIES)}; got {shown(model_type)}"
            f"{near_names(str(model_type), FAMILIES)}; other families are not implemented"
        )
    return FAMILIES[model_type]


def current_name(stored: str, family: Family) -> str:
    """Return today's spelling of a stored name.

    >>> current_name("embeddings.LayerNorm.gamma", FAMILIES["bert"])
    'embeddings.LayerNorm.weight'
    """
    for old, new in family.older_names.items():
        if stored.endswith(old):
            return stored.removesuffix(old) + new
    return stored


def stored_at(name: str, family: Family, prefix: str, *, gated: bool) -> At:
    """Return where the checkpoint has our tensor `name`.

    >>> stored_at("layers.3.q_proj.weight", FAMILIES["llama"], "model.", gated=True).name
    'model.layers.3.self_attn.q_proj.weight'
    """
    numbers = [part for part in name.split(".") if part.isdigit()]
    values = dict(zip(("i", "e"), numbers, strict=False))
    left = iter(("{i}", "{e}"))
    key = [next(left) if part.isdigit() else part for part in name.split(".")]
    names = {**family.names, **(family.gated_names if gated else {})}
    entry, leaf = names.get(".".join(key)), ""
    if entry is None:
        entry, leaf = names[".".join(key[:-1])], f".{key[-1]}"
    at = entry if isinstance(entry, At) else At(entry)
    return at._replace(name=at.name.format(p=prefix, **values) + leaf)
