"""The text model within a checkpoint that reads pictures too: its config, its tensors, the rest.

A text alone gives the three positions of multimodal rotary embeddings (height, width, time) one
value, so that they are the plain ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from numsim.errors import UnsupportedError
from numsim.models.keys import Key, listing, shown, sort_keys, wrong

_IMAGE = "image_token_index boi_token_index eoi_token_index mm_tokens_per_image"
_QWEN = "image_token_id video_token_id vision_start_token_id vision_end_token_id vision_token_id"
_LLAVA = (
    "image_token_index image_seq_length multimodal_projector_bias projector_hidden_act"
    " vision_feature_layer vision_feature_select_strategy spatial_merge_size"
)
_STARTS = {  # of stored names -> of the text model's own
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
PACKED = ("quantization_config", "compression_config")  # how all of it is stored
_OTHERS = ("vision_tower.", "vision_model.", "visual.", "multi_modal_projector.")


class Wrapper(NamedTuple):
    """A class that holds a text model beside others."""

    name: str
    text: str | None  # the family of its text model, None: as its config says
    keys: str  # of its config, beside those of the text


WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper("Gemma3ForConditionalGeneration", "gemma3_text", _IMAGE),
    "llama4": Wrapper("Llama4ForConditionalGeneration", "llama4_text", _IMAGE),
    "qwen2_vl": Wrapper("Qwen2VLForConditionalGeneration", "qwen2", _QWEN),
    "qwen2_5_vl": Wrapper("Qwen2_5_VLForConditionalGeneration", "qwen2", _QWEN),
    "qwen3_vl": Wrapper("Qwen3VLForConditionalGeneration", "qwen3", _QWEN),
    "qwen3_vl_moe": Wrapper("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe_text", _QWEN),
    "mistral3": Wrapper("Mistral3ForConditionalGeneration", None, _LLAVA),
    "llava": Wrapper("LlavaForConditionalGeneration", None, _LLAVA),
}


def text_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the config of the text model, and whether it is a part of a larger one.

    Raises
    ------
    UnsupportedError
        Another class than the one whose text model is known.
    NumsimError
        A key that no list has.

    Examples
    --------
    >>> text_config({"model_type": "gemma3", "text_config": {"hidden_size": 8}})
    ({'hidden_size': 8, 'model_type': 'gemma3_text'}, True)
    """
    wrapper = WRAPPERS.get(str(config.get("model_type")))
    if wrapper is None:
        return dict(config), False
    classes = config.get("architectures") or [wrapper.name]
    if not isinstance(classes, list) or wrapper.name not in classes:
        raise UnsupportedError(
            f"config.json: architectures of {config['model_type']} must be {wrapper.name}, whose "
            f"text model runs; got {shown(classes)}; other classes are not implemented"
        )
    own = {*wrapper.keys.split(), "vision_config", "text_config", "model_type", "architectures"}
    inner = config.get("text_config")
    if inner is None:  # the older spelling: keys of the text stand beside vision_config
        text = {key: value for key, value in config.items() if key not in own}
    elif isinstance(inner, Mapping):
        own |= {"tie_word_embeddings", *PACKED, *inner}  # some repeat keys of the text
        rest = {key: value for key, value in config.items() if key not in own}
        sort_keys(rest, str(config["model_type"]), own, {}, ())
        text = {key: config[key] for key in PACKED if key in config} | dict(inner)
    else:
        raise wrong("text_config", "a table", inner)
    text.pop("architectures", None)
    text["model_type"] = wrapper.text or Key("model_type", str).read(text, {})
    for group in ("rope_parameters", "rope_scaling"):
        if isinstance(text.get(group), Mapping):
            text[group] = _plain_positions(text[group])
    return text, True


def _plain_positions(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rotary table without how its angles are shared among three positions."""
    left = {k: v for k, v in table.items() if k not in ("mrope_section", "mrope_interleaved")}
    words = {k: "default" for k in ("type", "rope_type") if left.get(k) == "mrope"}
    return left | words


def text_names(stored: Iterable[str]) -> tuple[dict[str, str], dict[str, int]]:
    """Return stored names of the text model -> its own names, and how many the other parts have.

    >>> text_names(["language_model.model.norm.weight", "vision_tower.a", "vision_tower.b"])
    ({'language_model.model.norm.weight': 'model.norm.weight'}, {'vision_tower': 2})
    """
    names, others = {}, dict[str, int]()
    for name in stored:
        start = next((s for s in _STARTS if name.startswith(s)), "")
        bare = name.removeprefix("model.")
        other = next((s for s in _OTHERS if bare.startswith(s)), "")
        if other and not start:
            others[other[:-1]] = others.get(other[:-1], 0) + 1
        else:
            names[name] = _STARTS.get(start, "") + name.removeprefix(start)
    return names, others


def say_left_out(others: Mapping[str, int]) -> str:
    """Return the warning about parts that do not run.

    >>> say_left_out({"visual": 3})
    'load_model: the text model runs; left out: visual (3 tensors)'
    """
    parts = [f"{name} ({count} tensors)" for name, count in others.items()]
    return f"load_model: the text model runs; left out: {listing(parts)}"
