"""What several families share: spellings of keys, names of tensors, heads."""

from __future__ import annotations

from typing import Any

from numsim.models.arch import Moe
from numsim.models.family import Config, Family, Fields, Head
from numsim.models.keys import Key, wrong
from numsim.models.places import At

DECODER: dict[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False,), "is_decoder": (False, True), "is_causal": (True, None),
}  # fmt: skip
ENCODER: dict[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False,), "is_decoder": (False,),
}  # fmt: skip
ROTARY_BUFFERS = ("*rotary_emb.inv_freq",)  # recomputed from the config
SLICES = "pretraining_tp"  # sums in slices: the same function
ROUTER_TRAINING = "output_router_logits router_aux_loss_coef router_jitter_noise"
EXPERTS_IGNORED = f"{SLICES} {ROUTER_TRAINING}"
MLP = "{p}layers.{i}.mlp"
CORRECTION = {"layers.{i}.router.correction": f"{MLP}.gate.e_score_correction_bias"}
NEXT_TOKENS = ("model.layers.{layers}.*", "layers.{layers}.*")  # predict a second token
ATTENTION_BIAS = Key("attention_bias", bool, False)
GRANITE_KEYS = {
    "embed_scale": Key("embedding_multiplier", float, 1.0),
    "attn_scale": Key("attention_multiplier", float, 1.0),
    "residual_scale": Key("residual_multiplier", float, 1.0),
    "logit_divisor": Key("logits_scaling", float, 1.0),
}
ROPE: dict[str, object] = {"rope_theta": 10000.0}
QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")
LAYER_NORM_MLP: dict[str, Any] = {"norm": "layer", "gated": False}

NO_POOLER = {"pooler": None}
NEXT = Head()  # logits of the next token
_BARE: dict[str, Any] = {
    "head": False, "masked": False, "tied": False, "head_bias": False, "head_scale": 1.0,
    "head_cap": None, "logit_scale": 1.0, "logit_divisor": 1.0,
}  # fmt: skip
TRUNK = Head(_BARE)
LAST = Head(_BARE, counts_labels=True)  # scores from the last token


def trunk(**switches: Any) -> Head:
    """Return a trunk that differs from its language model in more than the head."""
    return Head(_BARE | switches)


def classifier(names: dict[str, str | At] | None = None, **switches: Any) -> Head:
    """Return a classifier whose last product has a bias."""
    return Head(_BARE | {"label_bias": True} | switches, names or {}, counts_labels=True)


def decoder(stem: str, *, scores: bool = True) -> dict[str, Head]:
    """Return the classes of a decoder; `scores`: transformers has a classifier of it."""
    classes = {f"{stem}ForCausalLM": NEXT, f"{stem}Model": TRUNK}
    return classes | ({f"{stem}ForSequenceClassification": LAST} if scores else {})


def llama_names(layer: str = "{p}layers.{i}.") -> dict[str, str | At]:
    """Return the names that most decoders have."""
    return {
        "embed": "{p}embed_tokens",
        "layers.{i}.attn_norm": f"{layer}input_layernorm",
        **{f"layers.{{i}}.{name}": f"{layer}self_attn.{name}" for name in QKV},
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


def as_one(stored: str, parts: tuple[str, ...], **how: Any) -> dict[str, str | At]:
    """Return the names of parts of a layer that are stored as one.

    >>> as_one("{p}h.{i}.qkv", ("q_proj",))["layers.{i}.q_proj"].name
    '{p}h.{i}.qkv'
    """
    return {f"layers.{{i}}.{part}": At(stored, parts=parts, **how) for part in parts}


def expert_names(mlp: str, router: str = "gate", shared: str = "") -> dict[str, str | At]:
    """Return the names of experts stored one by one in `mlp`."""
    both = [("experts.{e}", "experts.{e}")] + ([("shared", shared)] if shared else [])
    return {
        "layers.{i}.router": f"{mlp}.{router}",
        **{
            f"layers.{{i}}.{ours}.{part}": f"{mlp}.{theirs}.{part}"
            for ours, theirs in both
            for part in (*GATE_UP, "down_proj")
        },
    }


def llama_keys(**changes: Key) -> dict[str, Key]:
    """Return the keys that most decoders have."""
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


def plain_keys(**changes: Key) -> dict[str, Key]:
    """GPT-NeoX, Phi and BERT spell their sizes alike."""
    keys = llama_keys(norm_eps=Key("layer_norm_eps", float, 1e-5))
    del keys["head_dim"], keys["kv_heads"]
    return keys | changes


def one_bias(f: Fields, config: Config) -> Fields:
    """One key gives the biases of all attention projections."""
    return f | {"o_bias": f["qkv_bias"]}


def all_biases(f: Fields) -> Fields:
    """Every product has a bias."""
    return f | dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias"), True)


def always(config: Config, layer: int) -> bool:
    """Every layer slides."""
    return True


def every(key: str, default: int) -> Any:
    """Return a pattern in which every n-th layer sees everything, n a key of the config."""

    def slides(config: Config, layer: int) -> bool:
        return bool((layer + 1) % Key(key, int, default).read(config, {}))

    return slides


def listed_layers(config: Config, key: str, layers: int) -> set[int] | None:
    """Return the layers that a key lists, None where it is absent or null."""
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(x) is int and x >= 0 for x in value):
        raise wrong(key, "a list of layers, from 0 on", value)
    return {x for x in value if x < layers}


def checked(moe: Moe) -> Moe:
    """Return experts whose numbers agree."""
    per_group = moe.experts // moe.groups
    least = moe.group_best if moe.groups > 1 else 1
    if moe.experts % moe.groups or per_group < least:
        raise wrong("n_group", f"a divisor of {moe.experts} experts, {least} a group", moe.groups)
    if moe.top_groups > moe.groups:
        raise wrong("topk_group", f"at most {moe.groups} groups", moe.top_groups)
    if moe.top_k > moe.top_groups * per_group:
        raise wrong("num_experts_per_tok", f"at most {moe.top_groups * per_group}", moe.top_k)
    return moe


def expert_sizes(f: Fields) -> dict[str, Any]:
    """Take how many experts there are, how many a token goes to, and their width."""
    width = f.pop("moe_intermediate", f["intermediate"])
    return {"experts": f.pop("experts"), "top_k": f.pop("top_k"), "intermediate": width}


def first_dense(f: Fields) -> tuple[int, ...]:
    """Take the first layers, which keep an MLP."""
    return tuple(range(min(f.pop("first"), f["layers"])))


def corrected(f: Fields) -> Moe:
    """Return experts as DeepSeek-V3 chooses them: sigmoids with a learned correction."""
    sizes = expert_sizes(f)
    moe = Moe(
        **sizes, score="sigmoid", normalise=f.pop("normalise"), scale=f.pop("scale"),
        groups=f.pop("groups"), top_groups=f.pop("top_groups"), correction=True,
        shared=sizes["intermediate"] * f.pop("shared"), dense=first_dense(f),
    )  # fmt: skip
    return checked(moe)


def llama_like(stem: str, **changes: Any) -> Family:
    """Return a decoder that spells most of its config and of its tensors as Llama."""
    own: dict[str, Any] = {
        "classes": decoder(stem),
        "keys": llama_keys(),
        "names": llama_names(),
        "fixed": DECODER,
        "ignored": SLICES,
        "ignored_tensors": ROTARY_BUFFERS,
        "rope": ROPE,
    }
    return Family(**own | changes)
