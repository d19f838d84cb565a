"""The tables of compressed-tensors: groups of modules, their weights and their activations.

Source
------
compressed-tensors 0.20, ``quantization/quant_args.py`` and ``quant_config.py``; vLLM rounds the
activations: INT8 by amax / 127, MXFP4 by the rule ``even``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from numsim.errors import NumsimError
from numsim.models.keys import shown
from numsim.models.packed.types import Declared, Scheme, Words
from numsim.quant import Quant

LAYOUT_OF = {
    "float-quantized": "whole",
    "int-quantized": "whole",
    "naive-quantized": "whole",
    "mxfp8-quantized": "whole",
    "pack-quantized": "words",
    "nvfp4-pack-quantized": "two_level",
    "mxfp4-pack-quantized": "mx",
    "mxfp6-pack-quantized": "mx",
}
FLOATS = {8: "float8_e4m3fn", 6: "float6_e2m3fn", 4: "float4_e2m1fn"}
E8M0, E4M3 = "float8_e8m0fnu", "float8_e4m3fn"


def compressed_tensors(w: Words) -> Declared:
    """Return what a ``quantization_config`` of compressed-tensors says.

    Raises
    ------
    NumsimError
        A table that contradicts itself.
    UnsupportedError
        A format or setting that is not read.
    """
    w.one_of("quantization_status", ("compressed", None))
    for key in ("sparsity_config", "transform_config"):
        inner = w.table.get(key)
        dense = isinstance(inner, Mapping) and inner.get("format") == "dense"
        if inner and not dense:
            raise w.unread(key, "absent or empty")
    groups = w.table.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise w.unread("config_groups", "a table of groups")
    named: dict[str, Scheme] = {}
    for key, group in groups.items():
        if not isinstance(group, Mapping) or not isinstance(group.get("targets"), list):
            raise w.unread("config_groups", f"tables with targets ({key})")
        for target in group["targets"]:
            _check_target(w, target)
            if str(target) in named:
                raise NumsimError(
                    f"load_model: {w.file}: a module is of one group; {shown(target)} is a target "
                    "of two; correct config_groups"
                )
            named[str(target)] = _scheme(w, group)
    # names before patterns before classes of modules
    order = sorted(named, key=lambda t: (not _is_name(t), not t.startswith("re:")))
    schemes = tuple((_target(t), named[t]) for t in order)
    cache = _table(w, "kv_cache_scheme")
    if cache is None:
        return Declared("compressed-tensors", w.file, schemes)
    kept, static, _ = _activations(replace(w, table=cache), "kv_cache_scheme")
    return Declared("compressed-tensors", w.file, schemes, kept, static)


def _check_target(w: Words, target: object) -> None:
    if isinstance(target, str):
        with suppress(re.error):
            re.compile(target.removeprefix("re:"))
            return
    raise replace(w, table={"targets": target}).unread("targets", "names, classes or patterns")


def _is_name(target: str) -> bool:
    return "." in target and not target.startswith("re:")


def _target(target: str) -> str:
    """Return a target; a class of modules stands for all that are packed."""
    return target if _is_name(target) or target.startswith("re:") else "*"


def _scheme(w: Words, group: Mapping[str, Any]) -> Scheme:
    word = group.get("format") or w.table.get("format")
    layout = LAYOUT_OF.get(str(word))
    if layout is None:
        known = ", ".join(LAYOUT_OF)
        raise replace(w, table={"format": word}).unread("format", known)
    args = group.get("weights")
    if not isinstance(args, Mapping):
        raise replace(w, table=group).unread("weights", "a table of the stored weights")
    mx = str(word).startswith("mx")
    quant = _weights(replace(w, table=args), mx=mx, floats=layout not in ("words",))
    inputs = _table(replace(w, table=group), "input_activations")
    acts: Quant | None = None
    static, unsaid = False, ""
    if inputs is not None:
        acts, static, unsaid = _activations(replace(w, table=inputs), "input_activations")
    if group.get("output_activations"):
        unsaid = "output_activations"
    scattered = args.get("actorder") in ("group", "dynamic", True)
    return Scheme(layout, quant, acts, static, unsaid, scattered=scattered)


def _table(w: Words, key: str) -> Mapping[str, Any] | None:
    """Return a table of settings, None where there is none."""
    value = w.table.get(key)
    if value is not None and not (isinstance(value, Mapping) and value):
        raise w.unread(key, "a table or null")
    return value


def _word(w: Words) -> str:
    """Return the format of ``num_bits`` and ``type``."""
    kind = str(w.table.get("type") or "int").lower()
    bits = w.table.get("num_bits", 8)
    if kind == "float":
        return FLOATS[w.number("num_bits", tuple(FLOATS)) if "num_bits" in w.table else 8]
    if kind != "int":
        raise w.unread("type", "int or float")
    if type(bits) is not int or not 2 <= bits <= 8:
        raise w.unread("num_bits", "2 to 8")
    return f"int{bits}"


def _strategy(w: Words) -> str:
    size, word = w.table.get("group_size"), w.table.get("strategy")
    if word is not None:
        return str(word).lower()
    if size is None:
        return "tensor"
    return "channel" if size == -1 else "group"


def _size(w: Words) -> int:
    size = w.table.get("group_size")
    if type(size) is not int or not 0 < size < 1 << 31:
        raise w.unread("group_size", "a number of inputs")
    return size


def _weights(w: Words, *, mx: bool, floats: bool) -> Quant:
    word, strategy = _word(w), _strategy(w)
    if not floats and not word.startswith("int"):
        raise w.unread("type", "int for pack-quantized")
    if w.table.get("dynamic"):
        raise w.unread("dynamic", "false for weights")
    zero = w.one_of("symmetric", (True, False, None)) is False
    more: dict[str, Any] = {"zero_point": True} if zero else {}
    if strategy == "tensor":
        return Quant(word, "per_tensor", **more)
    if strategy == "channel":
        return Quant(word, "per_channel", **more)
    if strategy == "block":
        return Quant(word, block=w.tile("block_structure"), **more)
    if strategy == "group":
        scales = {"scale_format": E8M0} if mx else {}
        return Quant(word, block=_size(w), **scales, **more)  # type: ignore[arg-type]
    if strategy == "tensor_group" and not zero:
        return Quant(word, block=_size(w), scale_format=E4M3)
    raise w.unread("strategy", "tensor, channel, block, group or tensor_group")


def _activations(w: Words, what: str) -> tuple[Quant | None, bool, str]:
    """Return what activations are rounded to, whether its scale is stored, and what is unsaid."""
    word, strategy = _word(w), _strategy(w)
    dynamic = w.one_of("dynamic", (True, False, None, "local"))
    zero = w.one_of("symmetric", (True, False, None)) is False
    more: dict[str, Any] = {"zero_point": True} if zero else {}
    mx = "uint8" in str(w.table.get("scale_dtype"))
    if strategy == "tensor" and not (zero and not dynamic):
        return Quant(word, "per_tensor", **more), not dynamic, ""
    if strategy == "token" and dynamic:
        return Quant(word, "per_token", **more), False, ""
    if strategy == "group" and dynamic and mx:
        return Quant(word, block=_size(w), scale_format=E8M0, scale_rule="even"), False, ""
    if strategy == "group" and dynamic:
        return Quant(word, block=_size(w), **more), False, ""
    if strategy == "tensor_group" and not zero:
        return Quant(word, block=_size(w), scale_format=E4M3), dynamic is not True, ""
    return None, False, f"{what} of strategy {strategy}, {'' if dynamic else 'not '}dynamic"
