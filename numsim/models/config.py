"""From the ``config.json`` of a checkpoint to an Arch.

Every key of a config is read, fixed to one value, or ignored by name; anything else is an error,
since a key that is not understood may change what the network computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from numsim.errors import NumsimError, UnsupportedError, near_names
from numsim.kernels.elementwise.activations import ACTIVATIONS
from numsim.models.arch import Arch
from numsim.models.keys import REMEDY, Key, shown, sort_keys, wrong
from numsim.models.rope_keys import ROPE_KEYS, read_rope


class At(NamedTuple):
    """Where a tensor of ours is stored, {p} {i} {e} = prefix, layer, expert."""

    name: str
    turned: bool = False  # stored [in, out]
    part: int = 0  # which of
    parts: int = 1  # so many tensors stored as one, along the outputs
    by_head: bool = False  # the parts alternate head by head, else they follow each other


@dataclass(frozen=True, slots=True)
class Family:
    """How checkpoints of one ``model_type`` spell an Arch and name its tensors."""

    architectures: tuple[str, ...]  # the network with its usual head
    keys: Mapping[str, Key]  # field of Arch (or of `finish`) -> config key, in reading order
    names: Mapping[str, str | At]  # our tensor or module -> theirs
    switches: Mapping[str, Any] = field(default_factory=dict)  # fields every checkpoint shares
    fixed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)  # key -> computed values
    ignored: str = ""  # config keys that change no result
    prefixes: tuple[str, ...] = ("model.", "")  # of stored names, the usual one first
    ignored_tensors: tuple[str, ...] = ()  # globs of stored tensors that no computation needs
    optional: tuple[str, ...] = ()  # fields of Arch that hold only where their tensors are stored
    older_names: Mapping[str, str] = field(default_factory=dict)  # ends of stored names -> today's
    gated_names: Mapping[str, str] = field(default_factory=dict)  # override `names` where gated
    rope: Mapping[str, object] | None = None  # defaults of the rotary keys; None: no rotary
    rope_keys: str = ""  # older keys that `rope_settings` knows
    windows: Callable[[Mapping[str, Any], int], bool] | None = None  # does a layer slide
    all_slide: bool = False  # where one slides; `layer_types` cannot say otherwise
    window_default: int | None = None
    window_switch: str = ""  # a key without which no layer slides
    finish: Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]] | None = None
    trunks: tuple[str, ...] = ()  # architectures without a head
    trunk_switches: Mapping[str, Any] = field(default_factory=dict)  # what else a trunk changes
    classifiers: tuple[str, ...] = ()  # architectures that give a few scores for a text
    head_tensors: tuple[str, ...] = ("lm_head.*",)  # globs: not needed where that head is not run


WINDOW_KEYS = ("sliding_window", "layer_types")


def read_arch(config: Mapping[str, Any], family: Family) -> Arch:
    """Turn a parsed ``config.json`` into an Arch.

    Raises
    ------
    NumsimError
        A key is missing, of the wrong type, or known to no list of the family; sizes contradict.
    UnsupportedError
        A key asks for something that is not implemented.
    """
    unused_keys(config, family)
    part = part_of(config, family)
    fields: dict[str, Any] = {"family": config["model_type"], **family.switches}
    for name, entry in family.keys.items():
        fields[name] = entry.read(config, fields)
    if family.finish is not None:
        fields = family.finish(fields, config)
    fields |= _head(part, family, fields, config)
    heads, hidden = fields["heads"], fields["hidden"]
    fields.setdefault("kv_heads", heads)
    if fields.get("head_dim") is None:
        fields["head_dim"] = _head_dim(hidden, heads)
    fields.setdefault("v_head_dim", fields["head_dim"])
    fields.setdefault("attn_scale", 1.0 / math.sqrt(fields["head_dim"]))
    if heads % fields["kv_heads"]:
        raise NumsimError(
            "config.json: num_attention_heads must be a multiple of num_key_value_heads; "
            f"got {heads} and {fields['kv_heads']}; {REMEDY}"
        )
    if fields["activation"] not in ACTIVATIONS:
        raise UnsupportedError(
            f"config.json: the activation must be one of {', '.join(ACTIVATIONS)}; "
            f"got {shown(fields['activation'])}{near_names(fields['activation'], ACTIVATIONS)}; "
            "other activations are not implemented"
        )
    if family.rope is not None:
        fields["rope"] = read_rope(config, family.rope, fields)
        fields.pop("interleaved", None)
    if family.windows is not None:
        fields["windows"] = read_windows(config, family, fields["layers"])
    return Arch(**fields)


def part_of(config: Mapping[str, Any], family: Family) -> Literal["whole", "trunk", "classifier"]:
    """Return what `architectures` says is stored; a config without it is of the usual network.

    Raises
    ------
    UnsupportedError
        A class of another head or family.
    """
    classes = config.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise wrong("architectures", "a list of names", classes)
    if not classes or set(classes) & set(family.architectures):
        return "whole"
    if set(classes) & set(family.trunks):
        return "trunk"
    if set(classes) & set(family.classifiers):
        return "classifier"
    known = (*family.architectures, *family.trunks, *family.classifiers)
    raise UnsupportedError(
        f"config.json: architectures must name one of {', '.join(known)}; got {shown(classes)}; "
        "other heads are not implemented"
    )


def _head(
    part: str, family: Family, fields: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of Arch that a trunk or a classifier has in place of the usual head."""
    if part == "whole":
        return {}
    bare = {"head": False, "tied": False, "head_bias": False, "head_scale": 1.0, "head_cap": None}
    if part == "trunk":
        return bare | dict(family.trunk_switches)
    listed = config.get("id2label")
    if listed is not None and not (isinstance(listed, Mapping) and listed):
        raise wrong("id2label", "a table of the labels, or absent", listed)
    labels = len(listed) if listed else Key("num_labels", int, 2).read(config, {})
    pad = config.get("pad_token_id")
    if pad is not None and type(pad) is not int:
        raise wrong("pad_token_id", "an integer or null", pad)
    return bare | {"labels": labels, "label_bias": bool(fields.get("pooler")), "pad": pad}


def used_keys(config: Mapping[str, Any], family: Family) -> set[str]:
    """Return the keys that decide numbers of a family."""
    used = {key.name for key in family.keys.values()}
    if family.rope is not None:
        used |= {*ROPE_KEYS, *family.rope_keys.split()}
    if family.windows is not None:
        used |= {*WINDOW_KEYS, family.window_switch} - {""}
    if part_of(config, family) == "classifier":
        used |= {"id2label", "num_labels", "pad_token_id"}
    return used | {"model_type", "architectures"}


def unused_keys(config: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    """Return the keys of a config that only other software reads.

    Raises
    ------
    NumsimError
        A key is known to no list of the family.
    UnsupportedError
        A key asks for something that is not implemented.
    """
    fixed = dict(family.fixed)
    if family.windows is None:  # a family without windows may say so
        fixed |= {"sliding_window": (None,), "use_sliding_window": (False, None)}
    return sort_keys(
        config, config["model_type"], used_keys(config, family), fixed, family.ignored.split()
    )


def _head_dim(hidden: int, heads: int) -> int:
    if hidden % heads:
        raise NumsimError(
            "config.json: without head_dim, hidden_size must be a multiple of "
            f"num_attention_heads; got {hidden} and {heads}; add head_dim"
        )
    return hidden // heads


def read_windows(config: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    """Return the sliding window of each layer, from either spelling; () where none slides."""
    default, switch = family.window_default, family.window_switch
    window = Key("sliding_window", int, default, nullable=True).read(config, {})
    if switch and not Key(switch, bool, False).read(config, {}):
        window = None
    types = config.get("layer_types")
    if types is None and window is None:
        return ()
    if types is None:
        slides = [family.windows is None or family.windows(config, i) for i in range(layers)]
    else:
        allowed = ("full_attention", "sliding_attention")
        listed = isinstance(types, list) and all(isinstance(word, str) for word in types)
        if not listed or len(types) != layers or set(types) - set(allowed):
            raise wrong("layer_types", f"{layers} words of {', '.join(allowed)}", types)
        slides = [word == "sliding_attention" for word in types]
        if family.all_slide and window is not None and not all(slides):
            rule = f"sliding_attention in every layer, as transformers runs {config['model_type']}"
            raise wrong("layer_types", rule, types)
        if any(slides) and window is None:
            raise wrong("sliding_window", "a number where a layer slides", window)
    if window is None or not any(slides):
        return ()
    return tuple(window if slide else None for slide in slides)
