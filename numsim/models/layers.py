"""Which layers of a ``config.json`` see all tokens, which some, and where they have positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numsim.models.family import Family
from numsim.models.keys import Key, wrong
from numsim.models.rope_keys import read_rope, read_typed_rope

FULL = "full_attention"
LOCAL = {"attention_chunk_size": "chunked_attention"}  # by the key of the width; else sliding
SLIDING = "sliding_attention"


def read_layers(
    config: Mapping[str, Any], family: Family, layers: int
) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """Return the word for each layer and the width it sees; () where none is limited.

    Raises
    ------
    NumsimError
        A list of another length or of other words, or a layer that slides without a width.
    """
    if family.windows is None:
        return (), ()
    local = LOCAL.get(family.window_key, SLIDING)
    width = Key(family.window_key, int, family.window_default, least=0, nullable=True)
    window = width.read(config, {})
    if family.window_switch and not Key(family.window_switch, bool, False).read(config, {}):
        window = None
    types = config.get("layer_types")
    if types is None:
        limited = window is not None or bool(family.ropes)
        slides = family.windows
        words = tuple(local if limited and slides(config, i) else FULL for i in range(layers))
    else:
        allowed = (FULL, local)
        listed = isinstance(types, list) and all(isinstance(word, str) for word in types)
        if not listed or len(types) != layers or set(types) - set(allowed):
            raise wrong("layer_types", f"{layers} words of {', '.join(allowed)}", types)
        words = tuple(types)
        if family.all_slide and window is not None and FULL in words:
            rule = f"{local} in every layer, as transformers runs {config['model_type']}"
            raise wrong("layer_types", rule, types)
        if local in words and window is None:
            raise wrong(family.window_key, "a number where a layer slides", window)
    if local in words and window == 0:
        raise wrong(family.window_key, "above 0 and below 2**63", window)
    if window is None or local not in words:
        return words, ()
    return words, tuple(window if word == local else None for word in words)


def read_windows(config: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    """Return how far each layer sees, from either spelling; () where all see everything."""
    return read_layers(config, family, layers)[1]


def add_ropes(config: Mapping[str, Any], family: Family, fields: dict[str, Any]) -> None:
    """Set the rotary positions of the network and of its layers, where it has them."""
    words, rotary = fields.pop("layer_words"), fields.pop("rotary_layers", ())
    read = {key: value for key, value in config.items() if key not in family.ignored.split()}
    if family.ropes:
        ropes = {
            kind: read_typed_rope(read, kind, spelling, fields)
            for kind, spelling in family.ropes.items()
            if kind in words
        }
        fields["layer_ropes"] = tuple(ropes[word] for word in words)
        fields["rope"] = ropes.get(FULL, ropes.get(SLIDING))
    elif family.rope is not None and not fields.get("alibi"):
        tables = {key: read.get(key) or {} for key in ("rope_parameters", "rope_scaling")}
        if family.rope_table and not any(tables.values()):
            read["rope_scaling"] = family.rope_table
        rope = fields["rope"] = read_rope(read, family.rope, fields)
        if rotary and not all(rotary):
            fields["layer_ropes"] = tuple(rope if turns else None for turns in rotary)
    fields.pop("interleaved", None)


def rotary_layers(config: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Return which layers have rotary positions, from ``no_rope_layers``: 1 means with them.

    >>> rotary_layers({"no_rope_layer_interval": 2}, 3)
    (True, False, True)
    """
    listed = config.get("no_rope_layers") or []
    numbers = isinstance(listed, list) and all(type(x) in (int, bool) for x in listed)
    if not numbers or 0 < len(listed) < layers or set(listed) - {0, 1}:
        raise wrong("no_rope_layers", f"a 1 (with rotary) or 0 for each of {layers} layers", listed)
    return tuple(has_rotary(config, i) for i in range(layers))


def has_rotary(config: Mapping[str, Any], layer: int) -> bool:
    """Return whether one layer has rotary positions, of a list that `rotary_layers` checks."""
    listed = config.get("no_rope_layers") or []
    if listed:
        return isinstance(listed, list) and layer < len(listed) and listed[layer] == 1
    return bool((layer + 1) % Key("no_rope_layer_interval", int, 4).read(config, {}) != 0)
