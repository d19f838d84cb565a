"""Networks that read pictures: one table entry each."""

from __future__ import annotations

import math

from numsim.models.arch import Conv
from numsim.models.families.shared import (
    ENCODER,
    LAYER_NORM_MLP,
    NO_POOLER,
    classifier,
    trunk,
)
from numsim.models.family import Config, Family, Fields, Head
from numsim.models.keys import Key, wrong
from numsim.models.places import At


def _sides(config: Config, key: str, default: int) -> tuple[int, int]:
    """Return height and width, which one number may give."""
    value = config.get(key, default)
    both = value if isinstance(value, list) else [value, value]
    if len(both) != 2 or not all(type(n) is int and 0 < n < 1 << 20 for n in both):
        raise wrong(key, "one or two numbers above 0", value)
    return both[0], both[1]


def _vit(f: Fields, config: Config) -> Fields:
    """Squares of a picture become tokens, one learned token stands before them."""
    channels, hidden = f.pop("channels"), f["hidden"]
    picture, patch = _sides(config, "image_size", 224), _sides(config, "patch_size", 16)
    if any(p > n for p, n in zip(patch, picture, strict=True)):
        raise wrong("patch_size", f"at most image_size {list(picture)}", list(patch))
    width = f.pop("pooled")
    if width not in (None, 0, hidden):
        raise wrong("pooler_output_size", f"hidden_size {hidden}", width)
    return f | {
        "frame": (channels, *picture),
        "convs": (Conv("patches", channels, hidden, patch, patch),),
        "positions": 1 + math.prod(n // p for n, p in zip(picture, patch, strict=True)),
    }


PICTURES: dict[str, Family] = {
    "vit": Family(
        classes={
            "ViTModel": Head(trunk(pooler="tanh").switches, optional=(NO_POOLER,)),
            "ViTForImageClassification": classifier(pooling="first"),
        },
        keys={
            "hidden": Key("hidden_size", int, 768),
            "layers": Key("num_hidden_layers", int, 12),
            "heads": Key("num_attention_heads", int, 12),
            "intermediate": Key("intermediate_size", int, 3072),
            "activation": Key("hidden_act", str, "gelu"),
            "norm_eps": Key("layer_norm_eps", float, 1e-12),
            "qkv_bias": Key("qkv_bias", bool, True),
            "channels": Key("num_channels", int, 3),
            "pooled": Key("pooler_output_size", int, None, least=0),
        },
        names={
            "class_token.weight": At("{p}embeddings.cls_token", stacked=True),
            "position.weight": At("{p}embeddings.position_embeddings", stacked=True),
            "patches": "{p}embeddings.patch_embeddings.projection",
            "layers.{i}.attn_norm": "{p}encoder.layer.{i}.layernorm_before",
            "layers.{i}.q_proj": "{p}encoder.layer.{i}.attention.attention.query",
            "layers.{i}.k_proj": "{p}encoder.layer.{i}.attention.attention.key",
            "layers.{i}.v_proj": "{p}encoder.layer.{i}.attention.attention.value",
            "layers.{i}.o_proj": "{p}encoder.layer.{i}.attention.output.dense",
            "layers.{i}.mlp_norm": "{p}encoder.layer.{i}.layernorm_after",
            "layers.{i}.up_proj": "{p}encoder.layer.{i}.intermediate.dense",
            "layers.{i}.down_proj": "{p}encoder.layer.{i}.output.dense",
            "final_norm": "{p}layernorm",
            "pooler": "{p}pooler.dense",
            "classifier": "classifier",
        },
        switches=LAYER_NORM_MLP
        | {
            "vocab": 0,
            "reads": "pixels",
            "class_token": True,
            "causal": False,
            "head": False,
            "o_bias": True,
            "mlp_bias": True,
        },
        fixed=ENCODER | {"pooler_act": ("tanh",)},
        ignored="encoder_stride",
        read="image_size patch_size",
        prefixes=("", "vit."),
        ignored_tensors=("*embeddings.mask_token",),
        finish=_vit,
    ),
}
