"""From the ``config.json`` of a checkpoint to an Arch.

Every key of a config is read, fixed to one value, or ignored by name; anything else is an error,
since a key that is not understood may change what the network computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from numsim.errors import NumsimError, UnsupportedError, near_names
from numsim.kernels.elementwise.activations import ACTIVATIONS
from numsim.models.arch import Arch
from numsim.models.family import Family, Head
from numsim.models.keys import REMEDY, Key, shown, sort_keys, wrong
from numsim.models.layers import add_ropes, read_layers
from numsim.models.rope_keys import ROPE_KEYS


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
    head = head_of(config, family)
    fields: dict[str, Any] = {"family": config["model_type"], **family.switches}
    for name, entry in family.keys.items():
        fields[name] = entry.read(config, fields)
    fields["layer_words"], fields["windows"] = read_layers(config, family, fields["layers"])
    if family.finish is not None:
        fields = family.finish(fields, config)
    fields = _labels(head, config) | fields | dict(head.switches)
    if head.finish is not None:
        fields = head.finish(fields, config)
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
    for act in (fields["activation"], fields.get("transform")):
        if act is not None and act not in ACTIVATIONS:
            raise UnsupportedError(
                f"config.json: the activation must be one of {', '.join(ACTIVATIONS)}; "
                f"got {shown(act)}{near_names(act, ACTIVATIONS)}; "
                "other activations are not implemented"
            )
    add_ropes(config, family, fields)
    return Arch(**fields)


def head_of(config: Mapping[str, Any], family: Family) -> Head:
    """Return what `architectures` says is stored; a config without it is of the usual network.

    Raises
    ------
    UnsupportedError
        A class of another head or family.
    """
    classes = config.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise wrong("architectures", "a list of names", classes)
    found = [head for name, head in family.classes.items() if name in classes or not classes]
    if not found:
        raise UnsupportedError(
            f"config.json: architectures must name one of {', '.join(family.classes)}; got "
            f"{shown(classes)}; other heads are not implemented"
        )
    return found[0]


def _labels(head: Head, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of Arch that the labels of a classifier set."""
    if not head.counts_labels:
        return {}
    listed = config.get("id2label")
    if listed is not None and not (isinstance(listed, Mapping) and listed):
        raise wrong("id2label", "a table of the labels, or absent", listed)
    labels = len(listed) if listed else Key("num_labels", int, 2).read(config, {})
    pad = config.get("pad_token_id")
    if pad is not None and type(pad) is not int:
        raise wrong("pad_token_id", "an integer or null", pad)
    return {"pad": pad, "labels": labels}


def used_keys(config: Mapping[str, Any], family: Family) -> set[str]:
    """Return the keys that decide numbers of a family."""
    used = {key.name for key in family.keys.values()} | set(family.read.split())
    if family.rope is not None or family.ropes:
        used |= {*ROPE_KEYS, *(rope.theta for rope in family.ropes.values() if rope.theta)}
    if family.windows is not None:
        used |= {family.window_key, "layer_types", family.window_switch} - {""}
    if head_of(config, family).counts_labels:
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
    fixed = {key: values for key, values in fixed.items() if key not in family.ignored.split()}
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
