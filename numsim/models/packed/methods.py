"""The words of each quantisation method: from its table to what the weights are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from numsim.errors import NumsimError, UnsupportedError
from numsim.models.keys import shown
from numsim.models.packed.compressed import compressed_tensors
from numsim.models.packed.types import Declared, Scheme, Words
from numsim.quant import Quant

FP8, FP4 = "float8_e4m3fn", "float4_e2m1fn"
MXFP4 = Quant(FP4, block=32, scale_format="float8_e8m0fnu")
NVFP4 = Quant(FP4, block=16, scale_format="float8_e4m3fn")


def _all(w: Words, method: str, scheme: Scheme, **more: Any) -> Declared:
    return Declared(method, w.file, (("*", scheme),), **more)


def _fp8(w: Words) -> Declared:
    """Fine-grained FP8 of DeepSeek-V3, Qwen3 and others; without blocks one scale a tensor."""
    w.one_of("fmt", ("e4m3", None))
    mode = w.one_of("activation_scheme", ("dynamic", "static", None)) or "dynamic"
    tile = w.table.get("weight_block_size")
    if tile is None:
        static = mode == "static"
        acts = Quant(FP8) if static else Quant(FP8, "per_token")
        return _all(w, "fp8", Scheme("whole", Quant(FP8), acts, static))
    rows, columns = w.tile("weight_block_size")
    if w.one_of("scale_fmt", ("ue8m0", None, "float")) == "ue8m0":
        acts = Quant(FP8, block=columns, scale_format="float8_e8m0fnu", scale_rule="rceil")
    else:
        acts = Quant(FP8, block=columns)
    weights = Quant(FP8, block=(rows, columns))
    if mode == "static":
        scheme = Scheme("blocks", weights, Quant(FP8), static=True)
    else:
        scheme = Scheme("blocks", weights, acts)
    return _all(w, "fp8", scheme)


def _gptq(w: Words) -> Declared:
    bits = w.number("bits", (2, 3, 4, 8))
    key = "checkpoint_format" if "checkpoint_format" in w.table else "format"
    layout = w.one_of(key, ("gptq", "gptq_v2", None)) or "gptq"
    w.one_of("pack_dtype", ("int32", None))
    w.none("dynamic")
    w.one_of("is_marlin_format", (False, None))
    size = w.group("group_size")
    quant = Quant(f"uint{bits}", *_grouped(size), zero_point=True)
    scattered = w.flag("desc_act") and size is not None
    return _all(w, "gptq", Scheme(layout, quant, scattered=scattered))


def _awq(w: Words) -> Declared:
    w.number("w_bit" if "w_bit" in w.table else "bits", (4,))
    version = str(w.table.get("version", "gemm")).lower()
    if version != "gemm":
        raise w.unread("version", "gemm")
    size = w.group("q_group_size" if "q_group_size" in w.table else "group_size")
    return _all(w, "awq", Scheme("awq", Quant("uint4", *_grouped(size), zero_point=True)))


def _grouped(size: int | None) -> tuple[str, int | None]:
    """Return granularity and block of groups of so many inputs, None: of all."""
    return ("per_channel", None) if size is None else ("per_block", size)


def _mxfp4(w: Words) -> Declared:
    return _all(w, "mxfp4", Scheme("mx_experts", MXFP4))


def _bitsandbytes(w: Words) -> Declared:
    eight = w.flag("load_in_8bit") or w.flag("_load_in_8bit")
    four = w.flag("load_in_4bit") or w.flag("_load_in_4bit")
    if eight == four:
        raise NumsimError(
            f"load_model: {w.file}: one of load_in_8bit and load_in_4bit must be true; got "
            f"{'both' if eight else 'none'}; correct the table"
        )
    if four:
        # block sizes are said beside each weight
        return _all(w, "bitsandbytes", Scheme("bnb_4bit", Quant("nf4", block=64)))
    quant = Quant("int8", "per_channel")
    return _all(w, "bitsandbytes", Scheme("bnb_int8", quant, Quant("int8", "per_token")))


def _fbgemm(w: Words) -> Declared:
    bound = w.positive("activation_scale_ub")  # of the amax that a scale is made of
    acts = Quant(FP8, "per_token", scale_rule=None if bound is None else f"amax:{bound!r}")
    scheme = Scheme("whole", Quant(FP8, "per_channel"), acts)
    return _all(w, "fbgemm_fp8", replace(scheme, experts="fbgemm_experts"))


_MODELOPT: dict[str, Scheme] = {
    "FP8": Scheme("whole", Quant(FP8), Quant(FP8), static=True),
    "FP8_PER_CHANNEL_PER_TOKEN": Scheme(
        "whole", Quant(FP8, "per_channel"), Quant(FP8, "per_token")
    ),
    "FP8_PB_WO": Scheme("whole", Quant(FP8, block=(128, 128))),
    "NVFP4": Scheme("modelopt_two_level", NVFP4, NVFP4, static=True),
    "W4A16_NVFP4": Scheme("modelopt_two_level", NVFP4),
}
_MODELOPT_SIZES = {"NVFP4": 16, "W4A16_NVFP4": 16}


def _modelopt(w: Words) -> Declared:
    inner = w.table.get("quantization")
    w = w if not isinstance(inner, Mapping) else replace(w, table=inner)
    kept = str(w.table.get("kv_cache_quant_algo") or "").upper()
    if isinstance(w.table.get("kv_cache_scheme"), Mapping):
        kept = "FP8"

    more: dict[str, Any] = {"cache": Quant(FP8), "cache_static": True} if kept == "FP8" else {}
    layers = w.table.get("quantized_layers")
    if isinstance(layers, Mapping) and layers:
        named = {
            name: _modelopt_scheme(replace(w, table=one if isinstance(one, Mapping) else {}))
            for name, one in layers.items()
        }
        return Declared("modelopt", w.file, tuple(named.items()), **more)
    return _all(w, "modelopt", _modelopt_scheme(w), **more)


def _modelopt_scheme(w: Words) -> Scheme:
    algo = str(w.table.get("quant_algo", "")).upper()
    scheme = _MODELOPT.get(algo)
    if scheme is None:
        raise w.unread("quant_algo", ", ".join(_MODELOPT))
    size = w.table.get("group_size")
    if algo in _MODELOPT_SIZES and size not in (None, _MODELOPT_SIZES[algo]):
        raise w.unread("group_size", str(_MODELOPT_SIZES[algo]))
    groups = w.table.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        rounds = any(isinstance(g, Mapping) and g.get("input_activations") for g in groups.values())
        return scheme if rounds else replace(scheme, activations=None, static=False)
    return scheme


def _torchao(w: Words) -> Declared:
    """Each tensor says in the metadata of its file how it is stored."""
    schemes = []
    for name, text in w.said.items():
        if not name.endswith("weight") or "Tensor" not in text:
            continue
        try:
            told = json.loads(text)
        except ValueError:
            continue
        kind = told.get("_type") if isinstance(told, Mapping) else None
        if kind in (None, "Tensor"):
            continue
        module = name.removesuffix(".weight")
        schemes.append((module, _torchao_scheme(w, name, str(kind), told.get("_data") or {})))
    if not schemes:
        raise NumsimError(
            f"load_model: {w.file}: torchao says in the metadata of its files how each weight is "
            "stored; got none; save the checkpoint again with safe_serialization"
        )
    return Declared("torchao", w.file, tuple(schemes))


_GRANULARITIES = {"PerRow": "per_token", "PerToken": "per_token", "PerTensor": "per_tensor"}


def _torchao_scheme(w: Words, name: str, kind: str, data: Mapping[str, Any]) -> Scheme:
    if kind not in ("Float8Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor"):
        raise UnsupportedError(
            f"load_model: {w.file}: {name} must be stored as Float8Tensor, Int8Tensor or "
            f"IntxUnpackedToInt8Tensor of torchao; got {shown(kind)}; save it as one of those"
        )
    codes = w.dtypes.get(name.removesuffix("weight") + "_weight_qdata", "F8_E4M3")
    target = data.get("target_dtype")
    bits = _inner(target).rpartition("int")[2] if target is not None else ""
    word = {"F8_E4M3": FP8, "F8_E5M2": "float8_e5m2"}.get(codes, f"int{bits or 8}")
    zero = name.removesuffix("weight") + "_weight_zero_point" in w.dtypes
    tile = data.get("block_size")
    ok = isinstance(tile, list) and len(tile) == 2 and all(type(n) is int and n > 0 for n in tile)
    if not ok or not isinstance(tile, list):
        raise NumsimError(
            f"load_model: {w.file}: block_size of {name} must be two sizes; got {shown(tile)}; "
            "save the checkpoint again"
        )
    # sizes are those of the whole matrix where a row or all of it shares a scale
    quant = Quant(word, block=(tile[0], tile[1]), zero_point=zero)
    how = data.get("act_quant_kwargs", data.get("activation_quantization"))
    if not how:
        return Scheme("torchao", quant)
    inner = how.get("_data", {}) if isinstance(how, Mapping) else {}
    granularity = _GRANULARITIES.get(_type(inner.get("granularity")))
    if granularity is None or inner.get("activation_value_lb") or inner.get("activation_value_ub"):
        return Scheme("torchao", quant, unsaid=f"{name}: activations {shown(how)}")
    return Scheme("torchao", quant, Quant(word, granularity))


def _inner(value: Any) -> str:
    return str(value.get("_data", "") if isinstance(value, Mapping) else value)


def _type(value: Any) -> str:
    return str(value.get("_type", "") if isinstance(value, Mapping) else value)


METHODS: dict[str, Callable[[Words], Declared]] = {
    "compressed-tensors": compressed_tensors,
    "fp8": _fp8,
    "modelopt": _modelopt,
    "gptq": _gptq,
    "awq": _awq,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "fbgemm_fp8": _fbgemm,
    "torchao": _torchao,
}
