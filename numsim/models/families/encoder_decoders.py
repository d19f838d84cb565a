"""Encoder-decoders: one table entry each."""

from __future__ import annotations

import math
from dataclasses import replace

from numsim.models.arch import Arch, Conv
from numsim.models.families.shared import LAYER_NORM_MLP, NEXT, all_biases, trunk
from numsim.models.family import Config, Family, Fields, Head, Names
from numsim.models.keys import Key, wrong
from numsim.models.places import At


def _check_start(f: Fields) -> None:
    start = f["decoder_start"]
    if start is not None and start >= f["vocab"]:
        raise wrong("decoder_start_token_id", f"below vocab_size {f['vocab']}", start)


def _t5(f: Fields, config: Config) -> Fields:
    """``feed_forward_proj`` is an activation, or ``gated-`` and one; gelu means gelu_new then.

    Where ``dense_act_fn`` and ``is_gated_act`` stand beside it, they count.
    """
    classes = config.get("architectures") or ()
    encoder = any(str(name).endswith("EncoderModel") for name in classes)
    if config.get("is_encoder_decoder", True) is not True and not encoder:
        raise wrong("is_encoder_decoder", "true, but for a T5EncoderModel", False)
    words = f["activation"].split("-")
    gated = len(words) == 2 and words[0] == "gated"
    if len(words) != 1 and not gated:
        raise wrong("feed_forward_proj", "ACTIVATION or gated-ACTIVATION", f["activation"])
    activation = "gelu_new" if f["activation"] == "gated-gelu" else words[-1]
    if f["bucket_distance"] <= f["buckets"] // 2:  # the nearer half holds one distance each
        raise wrong(
            "relative_attention_max_distance", f"above {f['buckets'] // 2}", f["bucket_distance"]
        )
    _check_start(f)
    scaled = f.pop("scaled", False)
    return f | {
        "gated": Key("is_gated_act", bool, gated).read(config, {}),
        "activation": Key("dense_act_fn", str, activation).read(config, {}),
        "head_scale": 1.0 / math.sqrt(f["hidden"]) if scaled else 1.0,
    }


# our prefix, theirs, the sub-layer of the MLP; of an encoder alone ours is empty
_T5_SIDES = (("", "encoder", 1), ("encoder.", "encoder", 1), ("decoder.", "decoder", 2))


def _t5_names() -> dict[str, str | At]:
    names: dict[str, str | At] = {"embed": "shared", "lm_head": "lm_head"}
    for own, side, mlp in _T5_SIDES:
        block, ours = f"{side}.block.{{i}}.layer", f"{own}layers.{{i}}"
        relative = "0.SelfAttention.relative_attention_bias"
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
            f"{ours}.relative": f"{block}.{relative}",
            f"{own}final_norm": f"{side}.final_layer_norm",
            f"{own}relative": f"{side}.block.0.layer.{relative}",
        }
    return names


def _t5_gated(arch: Arch) -> Names:
    return {
        f"{own}layers.{{i}}.up_proj": f"{side}.block.{{i}}.layer.{at}.DenseReluDense.wi_1"
        for own, side, at in _T5_SIDES
        if arch.gated
    }


_ENCODER_ONLY = trunk(decoder_layers=0, decoder_start=None, causal=False)


def _t5_classes(stem: str) -> dict[str, Head]:
    whole = {f"{stem}ForConditionalGeneration": NEXT, f"{stem}Model": NEXT}
    return whole | {f"{stem}EncoderModel": _ENCODER_ONLY}


_T5_KEYS = {
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
}
_T5 = Family(
    classes=_t5_classes("T5") | {"T5WithLMHeadModel": NEXT},
    head_tensors=("lm_head.*", "decoder.*"),
    keys=_T5_KEYS,
    names=_t5_names(),
    renamed=_t5_gated,
    switches={"attn_scale": 1.0},
    # False: T5EncoderModel alone, see _t5
    fixed={"is_encoder_decoder": (True, False), "is_decoder": (False,)},
    ignored="n_positions",
    read="is_gated_act dense_act_fn",
    prefixes=("",),
    # a tied table may be stored under one of its other names alone
    older_names={"encoder.embed_tokens.weight": "shared.weight"},
    ignored_tensors=(
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
    stored_head=True,
    finish=_t5,
)
_GATED = _T5_KEYS | {
    "activation": Key("feed_forward_proj", str, "gated-gelu"),
    "decoder_start": Key("decoder_start_token_id", int, 0, least=0),
}


def _bart(f: Fields, config: Config) -> Fields:
    """Each side has its own table of positions, heads and MLP; norms follow the sums."""
    _check_sides(f, config)
    scaled = f.pop("scaled")
    return all_biases(f) | {"embed_scale": math.sqrt(f["hidden"]) if scaled else 1.0}


def _check_sides(f: Fields, config: Config) -> None:
    """Raise where keys of the two sides contradict."""
    count = config.get("num_hidden_layers")
    if count not in (None, f["layers"]):
        raise wrong("num_hidden_layers", f"{f['layers']}, as encoder_layers", count)
    heads, hidden = f["decoder_heads"], f["hidden"]
    if hidden % heads:
        raise wrong("decoder_attention_heads", f"a divisor of d_model {hidden}", heads)
    _check_start(f)


def _whisper(f: Fields, config: Config) -> Fields:
    """Two convolutions over log-mel spectra, the second one halves the times."""
    _check_sides(f, config)
    bins, hidden = f.pop("bins"), f["hidden"]
    return all_biases(f) | {
        "frame": (bins, 2 * f["positions"]),
        "convs": (
            Conv("conv1", bins, hidden, (3,), (1,), 1, "gelu"),
            Conv("conv2", hidden, hidden, (3,), (2,), 1, "gelu"),
        ),
    }


_BART_ENDS = {
    "attn_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm", "up_proj": "fc1",
    "down_proj": "fc2", "o_proj": "self_attn.out_proj", "cross_norm": "encoder_attn_layer_norm",
    "cross_o_proj": "encoder_attn.out_proj",
    **{f"{letter}_proj": f"self_attn.{letter}_proj" for letter in "qkv"},
    **{f"cross_{letter}_proj": f"encoder_attn.{letter}_proj" for letter in "qkv"},
}  # fmt: skip


def _bart_names() -> dict[str, str | At]:
    names: dict[str, str | At] = {
        "embed": "{p}shared",
        "lm_head": "lm_head",
        "lm_head.bias": At("final_logits_bias", stacked=True),
    }
    for side in ("encoder", "decoder"):
        names |= {
            f"{side}.layers.{{i}}.{ours}": f"{{p}}{side}.layers.{{i}}.{theirs}"
            for ours, theirs in _BART_ENDS.items()
        }
        names[f"{side}.position"] = f"{{p}}{side}.embed_positions"
        names[f"{side}.embed_norm"] = f"{{p}}{side}.layernorm_embedding"
    return names


def _whisper_names() -> dict[str, str | At]:
    names = _bart_names() | {"embed": "{p}decoder.embed_tokens", "lm_head": "proj_out"}
    for side in ("encoder", "decoder"):
        names[f"{side}.final_norm"] = f"{{p}}{side}.layer_norm"
    convs = ("encoder.conv1", "encoder.conv2")
    return names | {name: f"{{p}}{name}" for name in convs}


ENCODER_DECODERS: dict[str, Family] = {
    "t5": _T5,
    "mt5": replace(
        _T5,
        classes=_t5_classes("MT5"),
        # its head reads unscaled states whatever the config says of ties
        keys={name: key for name, key in _GATED.items() if name != "scaled"},
        ignored="n_positions scale_decoder_outputs",
    ),
    "umt5": replace(
        _T5,
        classes=_t5_classes("UMT5"),
        keys=_GATED,
        switches={"attn_scale": 1.0, "bucket_by_layer": True},
        ignored="n_positions scalable_attention",
    ),
    "bart": Family(
        classes={
            "BartForConditionalGeneration": Head(
                {"head_bias": True}, optional=({"head_bias": False},)
            ),
            "BartModel": trunk(),
        },
        head_tensors=("lm_head.*", "final_logits_bias"),
        keys={
            "vocab": Key("vocab_size", int),
            "hidden": Key("d_model", int, 1024),
            "layers": Key("encoder_layers", int, 12),
            "decoder_layers": Key("decoder_layers", int, 12),
            "heads": Key("encoder_attention_heads", int, 16),
            "decoder_heads": Key("decoder_attention_heads", int, 16),
            "intermediate": Key("encoder_ffn_dim", int, 4096),
            "decoder_intermediate": Key("decoder_ffn_dim", int, 4096),
            "positions": Key("max_position_embeddings", int, 1024),
            "activation": Key("activation_function", str, "gelu"),
            "scaled": Key("scale_embedding", bool, False),
            "tied": Key("tie_word_embeddings", bool, True),
            "decoder_start": Key("decoder_start_token_id", int, 2, least=0),
        },
        names=_bart_names(),
        switches=LAYER_NORM_MLP
        | {
            "norm_eps": 1e-5,
            "residual": "post",
            "final_norm": False,
            "embed_norm": True,
            "position_offset": 2,
        },
        fixed={"is_encoder_decoder": (True,), "is_decoder": (False,)},
        ignored="add_bias_logits add_final_layer_norm classif_dropout encoder_layerdrop"
        " decoder_layerdrop normalize_before normalize_embedding static_position_embeddings"
        " extra_pos_embeddings force_bos_token_to_be_generated",
        read="num_hidden_layers",
        prefixes=("model.", ""),
        older_names={"encoder.embed_tokens.weight": "shared.weight"},
        ignored_tensors=("*encoder.embed_tokens.weight", "*decoder.embed_tokens.weight"),
        finish=_bart,
    ),
    "whisper": Family(
        classes={"WhisperForConditionalGeneration": NEXT, "WhisperModel": trunk()},
        head_tensors=("proj_out.*",),
        keys={
            "vocab": Key("vocab_size", int),
            "hidden": Key("d_model", int, 384),
            "layers": Key("encoder_layers", int, 4),
            "decoder_layers": Key("decoder_layers", int, 4),
            "heads": Key("encoder_attention_heads", int, 6),
            "decoder_heads": Key("decoder_attention_heads", int, 6),
            "intermediate": Key("encoder_ffn_dim", int, 1536),
            "decoder_intermediate": Key("decoder_ffn_dim", int, 1536),
            "positions": Key("max_source_positions", int, 1500),
            "decoder_positions": Key("max_target_positions", int, 448),
            "bins": Key("num_mel_bins", int, 80),
            "activation": Key("activation_function", str, "gelu"),
            "tied": Key("tie_word_embeddings", bool, True),
            "decoder_start": Key(
                "decoder_start_token_id",
                int,
                lambda f: 50257 if f["vocab"] > 50257 else None,
                least=0,
            ),
        },
        names=_whisper_names(),
        switches=LAYER_NORM_MLP | {"norm_eps": 1e-5, "reads": "features", "key_bias": False},
        fixed={"is_encoder_decoder": (True,), "is_decoder": (False,)},
        # scale_embedding is read by no version of transformers; the others are of training and of
        # the search for a text
        ignored="scale_embedding encoder_layerdrop decoder_layerdrop use_weighted_layer_sum"
        " classifier_proj_size apply_spec_augment mask_time_prob mask_time_length"
        " mask_time_min_masks mask_feature_prob mask_feature_length mask_feature_min_masks"
        " median_filter_width forced_decoder_ids alignment_heads",
        read="num_hidden_layers",
        prefixes=("model.", ""),
        finish=_whisper,
    ),
}
