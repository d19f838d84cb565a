"""From the tensors of a packed weight to codes, scales and zero points; nothing is rounded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode
from numsim.formats import Format, get_format
from numsim.models.packed.types import Packed, damaged
from numsim.models.stored import Maps, Tensor, view
from numsim.quant import QTensor, Quant

Array = NDArray[Any]
SCALE_FORMATS = {"F8_E8M0": "float8_e8m0fnu", "U8": "float8_e8m0fnu", "F8_E4M3": "float8_e4m3fn"}
_PIECE = 1 << 22  # codes
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
STATES = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")


def read(p: Packed, maps: Maps, expert: int | None = None) -> QTensor:
    """Return a packed weight [out, in], of experts in one tensor [experts, out, in] or one of them.

    Columns in groups of their own order have a scale an element.
    """
    raw = {role: view(maps, t) for role, t in p.parts.items()}
    lead, (out, into) = p.shape[:-2], p.shape[-2:]
    if expert is not None:
        raw, lead = {role: a[expert] if a.ndim else a for role, a in raw.items()}, ()
    quant, fmt = p.scheme.weights, p.scheme.weights.fmt
    if p.layout.order == "high_first":
        return _flat(p, raw, maps)
    codes = _codes(p, raw["codes"], len(lead) + 2)
    scale, kept, scale_format = _scales(p, raw["scale"])
    shape, blocks = scale_shape(quant, (*lead, out, into)), block_shape(quant, len(lead) + 2)
    scale = _placed(p, scale, shape)
    kept = None if kept is None else _placed(p, kept, shape)
    zero = _zeros(p, raw["zero"], shape) if "zero" in raw else None
    groups = groups_of(p, raw)
    if groups is not None:
        scale, blocks, kept = np.ascontiguousarray(scale[:, groups]), None, None
        zero = None if zero is None else np.ascontiguousarray(zero[:, groups])
    above = None
    if "above" in raw:
        level = raw["above"].reshape(-1)[0]
        with np.errstate(divide="ignore"):
            above = np.float32(1) / np.float32(level) if p.layout.above_divides else level
    return made(codes, fmt, scale, quant, blocks, kept, scale_format, above, zero)


def made(
    codes: Array, fmt: Format, scale: Array, quant: Quant, blocks: tuple[int, ...] | None,
    scale_codes: Array | None, scale_format: Format | None, above: Any, zero: Array | None,
) -> QTensor:  # fmt: skip
    """Return a QTensor of arrays that belong to it."""
    more: dict[str, Any] = {} if zero is None else {"zero_point": zero.astype(np.int32)}
    return QTensor(
        np.ascontiguousarray(codes, fmt.code_dtype), fmt, scale, quant, blocks, scale_codes,
        scale_format, None if above is None else np.float32(above), **more,
    )  # fmt: skip


def scale_shape(quant: Quant, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the scales of a weight [..., out, in].

    >>> scale_shape(Quant("e4m3", block=(128, 128)), (136, 300))
    (2, 3)
    """
    *lead, out, into = shape
    if quant.granularity == "per_tensor":
        return (*lead, 1, 1) if lead else ()
    if quant.block is None:
        return (*lead, out, 1)
    rows, columns = quant.block if isinstance(quant.block, tuple) else (1, quant.block)
    return (*lead, -(-out // rows), -(-into // columns))


def block_shape(quant: Quant, ndim: int) -> tuple[int, ...] | None:
    """Return what `QTensor.block_shape` is for a weight of `ndim` axes."""
    if quant.block is None:
        return None
    tile = quant.block if isinstance(quant.block, tuple) else (1, quant.block)
    return (1,) * (ndim - 2) + tile


def fields(words: Array, bits: int, count: int) -> NDArray[np.uint8]:
    """Return `count` fields of each row of words, the lowest bits first, across their borders.

    >>> fields(np.array([[0b11_010_001]], np.uint8), 3, 2)
    array([[1, 2]], dtype=uint8)
    """
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw[..., :count]
    if 8 % bits == 0:
        made = np.empty((*raw.shape[:-1], raw.shape[-1] * 8 // bits), np.uint8)
        for i in range(8 // bits):
            made[..., i :: 8 // bits] = (raw >> (bits * i)) & ((1 << bits) - 1)
        return made[..., :count]
    single = np.unpackbits(raw, axis=-1, count=count * bits, bitorder="little")
    each = single.reshape(*raw.shape[:-1], count, bits)
    return np.packbits(each, axis=-1, bitorder="little")[..., 0]


def _in_words(words: Array, bits: int, count: int) -> NDArray[np.uint8]:
    """Return fields that never cross a word's border, as older compressed-tensors packed."""
    shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
    each = (words.view(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    return each.reshape(*words.shape[:-1], -1)[..., :count].astype(np.uint8)


def _awq(words: Array) -> NDArray[np.uint8]:
    """Return eight columns of each word [..., n] as [..., 8 n]."""
    made = np.empty((*words.shape, 8), np.uint8)
    for slot, column in enumerate(AWQ_ORDER):
        made[..., column] = (words.view(np.uint32) >> np.uint32(4 * slot)) & np.uint32(15)
    return made.reshape(*words.shape[:-1], -1)


def word_count(bits: int, count: int, *, padded: bool = False) -> int:
    """Return how many 32-bit words hold so many fields.

    >>> word_count(3, 64), word_count(3, 64, padded=True)
    (6, 7)
    """
    return -(-count // (32 // bits)) if padded else -(-count * bits // 32)


def _unpacked(p: Packed, words: Array, count: int) -> NDArray[np.uint8]:
    """Return the fields along the last axis of `words`."""
    if p.layout.order == "awq":
        return _awq(words)
    if words.dtype == np.int32 and words.shape[-1] != word_count(p.bits, count):
        return _in_words(words, p.bits, count)
    return fields(words, p.bits, count)


def _codes(p: Packed, raw: Array, ndim: int) -> Array:
    fmt, into = p.scheme.weights.fmt, p.shape[-1]
    if p.layout.order == "whole":  # apart from the file, whose pages are given back
        return np.ascontiguousarray(raw.swapaxes(-1, -2)) if p.layout.turned else raw.copy()
    if p.layout.order == "dense":
        if raw.ndim > ndim:  # an axis for the bytes of a block
            raw = raw.reshape(*raw.shape[:-2], -1)
        codes = _unpacked(p, raw.T if p.layout.turned else raw, into)
    else:
        codes = _unpacked(p, raw, p.shape[-2]).T
    return _signed(codes, fmt)


def _signed(codes: Array, fmt: Format) -> Array:
    """Return packed integers as they count: signed ones are stored from 0 on."""
    if fmt.kind != "integer" or not fmt.signed:
        return codes
    return (codes.astype(np.int16) - (1 << (fmt.bits - 1))).astype(np.int8)


def _scales(p: Packed, raw: Array) -> tuple[NDArray[np.float32], Array | None, Format | None]:
    """Return scales as numbers and, where they are stored so, as codes of a format."""
    word = SCALE_FORMATS.get(p.parts["scale"].dtype)
    if word is not None:
        fmt = get_format(word)
        return np.abs(decode(raw, fmt)).astype(np.float32), raw.copy(), fmt
    wide = raw.astype(np.float32)
    return wide if p.layout.scale_is == 1.0 else wide / np.float32(p.layout.scale_is), None, None


def _placed(p: Packed, scale: Array, shape: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(scale.swapaxes(-1, -2) if p.layout.turned else scale).reshape(shape)


def _zeros(p: Packed, raw: Array, shape: tuple[int, ...]) -> Array:
    """Return zero points in the shape of the scales, on the scale of the codes."""
    if p.layout.order == "whole":
        return raw.astype(np.int32).reshape(shape)
    words = raw if p.layout.turned else raw.T  # [groups, words of outputs]
    each = _unpacked(p, np.ascontiguousarray(words), p.shape[-2]).T
    signed = _signed(each, p.scheme.weights.fmt).astype(np.int32)
    return (signed + p.layout.zero_less).reshape(shape)


def groups_of(p: Packed, raw: Mapping[str, Array]) -> Array | None:
    """Return the group of each column, None where they follow each other."""
    if "groups" not in raw or not isinstance(p.scheme.weights.block, int):
        return None
    groups = raw["groups"].astype(np.int64)
    plain = np.arange(groups.size) // p.scheme.weights.block
    return None if (groups == plain).all() or (groups == -1).all() else groups


def state_of(p: Packed, maps: Maps) -> dict[str, Any]:
    """Return the table that bitsandbytes stores beside 4-bit weights.

    Raises
    ------
    NumsimError
        It is no such table.
    """
    part = next(p.parts[end] for end in STATES if end in p.parts)
    try:
        state = json.loads(bytes(view(maps, part)))
        shape, block = tuple(state["shape"]), state["blocksize"]
        sizes = (*shape, block, state.get("nested_blocksize", 1))
        if len(shape) != 2 or not all(type(n) is int and 0 < n < 1 << 31 for n in sizes):
            raise ValueError(f"shape {shape}, blocks of {block}")
        float(state.get("nested_offset", 0.0))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        rule = "must be JSON with shape and blocksize"
        raise damaged(part.file, f"{p.name}.quant_state", rule, f"{error!s:.100}") from None
    return dict(state)


def flat_format(p: Packed, maps: Maps) -> Format:
    """Return the format of a table of sixteen values: NF4, or as it is in the file."""
    table = view(maps, p.parts[".weight.quant_map"]).astype(np.float64).reshape(-1)
    nf4 = get_format("nf4")
    if np.array_equal(table, np.array(nf4.table)):
        return nf4
    return Format("bnb_fp4", "table", 4, 2, 0, table=tuple(table.tolist()), source="the checkpoint")


def _flat(p: Packed, raw: Mapping[str, Array], maps: Maps) -> QTensor:
    """Return a matrix of bitsandbytes: blocks run over the flattened matrix, across its rows."""
    state = state_of(p, maps)
    out, into = p.shape
    bytes_ = np.ascontiguousarray(raw["codes"]).view(np.uint8).reshape(-1)
    codes = np.stack([bytes_ >> 4, bytes_ & 15], axis=-1).reshape(-1)[: out * into]
    scale: Array = _flat_scales(raw, state).reshape(-1)
    block, blocks = state["blocksize"], None
    if into % block == 0:
        scale, blocks = scale.reshape(out, into // block), (1, block)
    else:
        scale = np.repeat(scale, block)[: out * into].reshape(out, into)
    fmt = flat_format(p, maps)
    quant = Quant(fmt if fmt.name != "nf4" else "nf4", block=block)
    return made(codes.reshape(out, into), fmt, scale, quant, blocks, None, None, None, None)


def _flat_scales(raw: Mapping[str, Array], state: Mapping[str, Any]) -> Array:
    """Return the scales of blocks: numbers, or codes of a table under scales of their own."""
    if raw["scale"].dtype != np.uint8:
        return raw["scale"].astype(np.float32)
    table = raw[".weight.nested_quant_map"].astype(np.float32).reshape(-1)
    each = raw[".weight.nested_absmax"].astype(np.float32).reshape(-1)
    each = np.repeat(each, state["nested_blocksize"])[: raw["scale"].size]
    scale: Array = table[raw["scale"].reshape(-1)] * each + np.float32(
        state.get("nested_offset", 0.0)
    )
    return scale


def _bytes_of(maps: Maps, t: Tensor) -> Array:
    return maps[t.file][t.begin : t.end]


def check_values(p: Packed, maps: Maps) -> None:
    """Raise where codes, scales, zero points or groups hold what no quantiser writes.

    Raises
    ------
    NumsimError
        With the file, the tensor and the rule.
    """
    raw = {role: view(maps, t) for role, t in p.parts.items()}
    file, end = p.parts["codes"].file, p.layout
    word = SCALE_FORMATS.get(p.parts["scale"].dtype)
    stem = p.name.removesuffix(p.layout.weight)
    if end.order == "high_first":
        with np.errstate(all="ignore"):
            bad = int(np.count_nonzero(~np.isfinite(_flat_scales(raw, state_of(p, maps)))))
        table = raw[".weight.quant_map"].astype(np.float64)
        if not (np.isfinite(table).all() and (table > 0).any()):
            rule = "must hold finite numbers, some above 0"
            raise damaged(file, f"{p.name}.quant_map", rule, f"{table.max():g}")
    elif word is not None:
        bad = _nan_count(raw["scale"].reshape(-1), get_format(word))
    else:
        bad = int(np.count_nonzero(~np.isfinite(raw["scale"])))
    if bad:
        raise damaged(file, stem + end.scale, "must hold finite scales", f"{bad} NaN or Inf")
    if word == "float8_e4m3fn" and (raw["scale"] >> 7).any():
        raise damaged(file, stem + end.scale, "must hold scales above 0", "negative ones")
    for role, name in (("above", end.above), ("inputs", end.inputs)):
        if role in raw:
            level = raw[role].astype(np.float32)
            if not (np.isfinite(level) & (level > 0)).all():
                rule = "must be finite and above 0"
                raise damaged(file, stem + name, rule, f"{float(level.reshape(-1)[0]):g}")
    if end.order == "whole" and p.scheme.weights.fmt.kind == "float":
        nan = _nan_count(_bytes_of(maps, p.parts["codes"]), p.scheme.weights.fmt)
        if nan:
            raise damaged(file, stem + end.codes, "must hold finite weights", f"{nan} NaN or Inf")
    if end.order == "whole" and p.scheme.weights.fmt.kind == "integer" and p.bits < 8:
        _check_range(p, raw["codes"], stem)
    if "zero" in raw:
        _check_zeros(p, raw["zero"], stem)
    if "groups" in raw:
        _check_groups(p, raw["groups"].astype(np.int64).reshape(-1), stem)


def _nan_count(codes: Array, fmt: Format) -> int:
    """Return how many codes of 8 bits are NaN or Inf, looking at a few at a time."""
    unusable = ~np.isfinite(fmt.values())
    parts = (codes[i : i + _PIECE] for i in range(0, codes.size, _PIECE))
    return sum(int(np.count_nonzero(unusable[part])) for part in parts)


def _check_range(p: Packed, codes: Array, stem: str) -> None:
    fmt = p.scheme.weights.fmt
    low, high = int(codes.min()), int(codes.max())
    if low < fmt.min or high > fmt.max:
        rule = f"must hold codes from {int(fmt.min)} to {int(fmt.max)}"
        raise damaged(p.parts["codes"].file, stem + p.layout.codes, rule, f"{low} to {high}")


def _check_zeros(p: Packed, raw: Array, stem: str) -> None:
    fmt = p.scheme.weights.fmt
    zero = _zeros(p, raw, scale_shape(p.scheme.weights, p.shape))
    outside = (zero < fmt.min) | (zero > fmt.max)
    if outside.any():
        rule = f"must hold zero points from {int(fmt.min)} to {int(fmt.max)}"
        got = f"{int(zero[outside][0])} ({int(outside.sum())} such)"
        if p.layout.zero_less:
            got += ", stored as 1 less; readers take it for another number each"
        raise damaged(p.parts["zero"].file, stem + p.layout.zero, rule, got)


def _check_groups(p: Packed, groups: Array, stem: str) -> None:
    if (groups == -1).all():
        return  # never filled in
    given = p.scheme.weights.block
    block = given if isinstance(given, int) else groups.size
    count = math.ceil(groups.size / block)
    members = np.bincount(groups[(groups >= 0) & (groups < count)], minlength=count)
    wanted = np.bincount(np.arange(groups.size) // block, minlength=count)
    if groups.min() < 0 or groups.max() >= count or (members != wanted).any():
        rule = f"must put {block} columns into each of {count} groups"
        got = f"groups {int(groups.min())} to {int(groups.max())}, of {int(members.min())} to "
        got += f"{int(members.max())} columns"
        raise damaged(p.parts["groups"].file, stem + p.layout.groups, rule, got)
