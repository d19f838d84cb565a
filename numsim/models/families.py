"""The families of networks: one table entry each, names and switches only."""

from __future__ import annotations

from typing import Any

from numsim.errors import NumsimError, UnsupportedError, near_names
from numsim.models.arch import Family, Key

ACTIVATIONS = {"silu": "silu", "swish": "silu"}  # spelling in a config -> ours

# What any decoder-only checkpoint must not ask for.
DECODER_ONLY: dict[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "chunk_size_feed_forward": (0,),
}

LLAMA_NAMES = {
    "embed": "model.embed_tokens",
    "layers.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.q_proj": "model.layers.{i}.self_attn.q_proj",
    "layers.{i}.k_proj": "model.layers.{i}.self_attn.k_proj",
    "layers.{i}.v_proj": "model.layers.{i}.self_attn.v_proj",
    "layers.{i}.o_proj": "model.layers.{i}.self_attn.o_proj",
    "layers.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.gate_proj": "model.layers.{i}.mlp.gate_proj",
    "layers.{i}.up_proj": "model.layers.{i}.mlp.up_proj",
    "layers.{i}.down_proj": "model.layers.{i}.mlp.down_proj",
    "final_norm": "model.norm",
    "lm_head": "lm_head",
}


def _head_dim(fields: dict[str, Any]) -> int:
    hidden, heads = int(fields["hidden"]), int(fields["heads"])
    if hidden % heads:
        raise NumsimError(
            f"config.json: without head_dim, hidden_size must be a multiple of "
            f"num_attention_heads; got {hidden} and {heads}; add head_dim"
        )
    return hidden // heads


def _finish_llama(fields: dict[str, Any]) -> dict[str, Any]:
    if fields["activation"] not in ACTIVATIONS:
        raise UnsupportedError(
            f"config.json: hidden_act must be one of {', '.join(ACTIVATIONS)}; "
            f"got {fields['activation']!r}; other activations are not implemented"
        )
    if fields["heads"] % fields["kv_heads"]:
        raise NumsimError(
            f"config.json: num_attention_heads must be a multiple of num_key_value_heads; "
            f"got {fields['heads']} and {fields['kv_heads']}; take the config.json of the weights"
        )
    if fields["head_dim"] % 2:
        raise NumsimError(
            f"config.json: rotary positions need an even head_dim; got {fields['head_dim']}; "
            "take the config.json that came with the weights"
        )
    biased = fields.pop("attention_bias")
    return fields | {
        "activation": ACTIVATIONS[fields["activation"]],
        "qkv_bias": biased,
        "o_bias": biased,
    }


FAMILIES: dict[str, Family] = {
    "llama": Family(
        architectures=("LlamaForCausalLM",),
        keys={
            "vocab": Key("vocab_size", int),
            "hidden": Key("hidden_size", int),
            "layers": Key("num_hidden_layers", int),
            "heads": Key("num_attention_heads", int),
            "kv_heads": Key("num_key_value_heads", int, lambda f: f["heads"]),
            "head_dim": Key("head_dim", int, _head_dim),
            "intermediate": Key("intermediate_size", int),
            "norm_eps": Key("rms_norm_eps", float, 1e-6),
            "activation": Key("hidden_act", str, "silu"),
            "attention_bias": Key("attention_bias", bool, False),
            "mlp_bias": Key("mlp_bias", bool, False),
            "tied": Key("tie_word_embeddings", bool, False),
        },
        fixed=DECODER_ONLY,
        ignored=frozenset(
            [
                "rope_theta",  # these three: read_rope
                "rope_parameters",
                "rope_scaling",
                "max_position_embeddings",  # rotary positions have no table that could end
                "pretraining_tp",  # splits a matrix product that is summed again
                "attention_dropout",  # training only
            ]
        ),
        names=LLAMA_NAMES,
        ignored_tensors=("*rotary_emb.inv_freq",),  # recomputed from rope_theta
        finish=_finish_llama,
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
    >>> get_family("llama").architectures
    ('LlamaForCausalLM',)
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedError(
            f"config.json: model_type must be one of {', '.join(FAMILIES)}; got {model_type!r}"
            f"{near_names(str(model_type), FAMILIES)}; other families are not implemented"
        )
    return FAMILIES[model_type]


def stored_name(name: str, family: Family) -> str:
    """Return the checkpoint's name of our tensor `name`.

    >>> stored_name("layers.3.q_proj.weight", FAMILIES["llama"])
    'model.layers.3.self_attn.q_proj.weight'
    """
    module, _, leaf = name.rpartition(".")
    parts = module.split(".")
    layer = next((part for part in parts if part.isdigit()), "")
    key = ".".join("{i}" if part == layer else part for part in parts)
    return f"{family.names[key].replace('{i}', layer)}.{leaf}"
