"""How keys or values of a cache are stored: what a recipe says, and the codes and scales of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.arguments import choice
from numsim.convert import decode, encode
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import get_format
from numsim.operators.rounded import Values, minus, over, plus, rounding_to, times
from numsim.quant import quantize

GRANULARITIES = ("per_tensor", "per_head", "per_token", "per_token_head", "per_channel")
_BLOCK = 32  # elements of a head that share a scale in ggml's formats
_KEYS = (
    "format", "granularity", "group", "static", "zero", "scale_format", "recipe", "tensor_scale",
)  # fmt: skip


@known_floats
@dataclass(frozen=True)
class Spec:
    """How keys or values are stored.

    Parameters
    ----------
    format
        Element format; with `recipe` None.
    granularity
        What shares a scale: ``per_tensor``; ``per_head``; ``per_token``, over heads and features;
        ``per_token_head``; ``per_channel``: a feature of a head over `group` tokens from the first.
    group
        Tokens of a run under per_channel; features of a run under ``per_token`` with minima.
    static
        Scales are given, not taken from the data.
    zero
        None: symmetric; ``minimum``: unsigned steps above the smallest value of a group (KIVI).
    scale_format
        Of scales and minima, and of every step that makes them and the codes, with minima.
    recipe
        In place of all that: ``q8_0`` or ``q4_0`` (ggml), or a recipe of `numsim.quantize`, its
        blocks along the features of a head.
    tensor_scale
        Given upper scale of a recipe that has one.
    """

    format: str | None = None
    granularity: str = "per_token_head"
    group: int | None = None
    static: bool = False
    zero: str | None = None
    scale_format: str = "float32"
    recipe: str | None = None
    tensor_scale: float | None = None


@known_floats
@dataclass(frozen=True)
class Stored:
    """Quantised tokens of a cache, [heads, tokens, dim].

    Parameters
    ----------
    codes
        One a feature.
    scale
        With the axes that share one at 1; None where a recipe has `scale_codes`.
    scale_codes
        Codes of block scales [heads, tokens, blocks], or None.
    minimum
        What codes count from, shaped as `scale`, or None.
    values
        What the codes mean, float32.
    """

    codes: NDArray[Any]
    scale: NDArray[Any] | None
    scale_codes: NDArray[Any] | None
    minimum: NDArray[Any] | None
    values: Values


def spec_of(given: Spec | Mapping[str, Any] | str | None, name: str) -> Spec | None:
    """Return a Spec from its fields, a recipe's name, or None (unquantised).

    Raises
    ------
    NumsimError
        For an unknown field or word, or fields that contradict each other.
    """
    if given is None or isinstance(given, Spec):
        spec = given
    elif isinstance(given, str):
        spec = Spec(recipe=given)
    else:
        for key in given:
            if key not in _KEYS:
                hint = near_names(str(key), _KEYS)
                raise NumsimError(f"{name}: unknown key {key!r}{hint}; known: {', '.join(_KEYS)}")
        spec = Spec(**given)
    if spec is None:
        return None
    if (spec.format is None) == (spec.recipe is None):
        raise NumsimError(f"{name} names a format or a recipe, not both; got {given!r}")
    choice(f"{name}: granularity", spec.granularity, GRANULARITIES)
    if spec.zero not in (None, "minimum"):
        raise NumsimError(f"{name}: zero is None or 'minimum'; got {spec.zero!r}")
    grouped = spec.granularity == "per_channel" or spec.zero is not None
    if grouped and not (isinstance(spec.group, int) and spec.group >= 1):
        raise NumsimError(
            f"{name}: {spec.granularity} runs have a group of 1 or more; got {spec.group!r}"
        )
    if spec.zero is not None and spec.granularity not in ("per_channel", "per_token"):
        raise NumsimError(
            f"{name}: minima stand per_channel (runs of tokens) or per_token (runs of features); "
            f"got {spec.granularity}"
        )
    return spec


def quantised(x: Values, spec: Spec, given: NDArray[np.float32] | None) -> Stored:
    """Return tokens [heads, tokens, dim] as a spec stores them; `given`: its static scales."""
    if spec.recipe in ("q8_0", "q4_0"):
        return _ggml(x, spec.recipe)
    if spec.recipe is not None:
        extra: Any = {} if spec.tensor_scale is None else {"tensor_scale": spec.tensor_scale}
        q = quantize(x, spec.recipe, **extra)
        return Stored(q.codes, None, q.scale_codes, None, np.asarray(q.dequantize(), np.float32))
    return _symmetric(x, spec, given) if spec.zero is None else _from_minimum(x, spec)


def _symmetric(x: Values, spec: Spec, given: NDArray[np.float32] | None) -> Stored:
    """S = amax / max, code = Q(x / s), value = code s, each in float32."""
    f = get_format(spec.format or "")
    if spec.static and given is not None:
        scale = np.broadcast_to(given, (x.shape[0], 1, 1)).astype(np.float32)
        each = scale
    else:
        size = np.abs(x)
        if spec.granularity == "per_channel":
            starts = np.arange(0, x.shape[1], spec.group or 1)
            amax = np.maximum.reduceat(size, starts, axis=1)
        else:
            axes = {"per_tensor": (0, 1, 2), "per_head": (1, 2), "per_token": (0, 2)}
            amax = size.max(axes.get(spec.granularity, (2,)), keepdims=True)
        scale = np.where(amax == 0, np.float32(1), amax / np.float32(f.max))
        each = (
            np.repeat(scale, spec.group or 1, 1)[:, : x.shape[1]]
            if spec.granularity == "per_channel"
            else scale
        )
    codes = encode(x / each, f)
    values = np.asarray(decode(codes, f), np.float32) * each
    return Stored(codes, scale, None, None, values)


def _from_minimum(x: Values, spec: Spec) -> Stored:
    """KIVI: unsigned steps above a group's minimum, every operation rounded to `scale_format`."""
    r, f, group = rounding_to(spec.scale_format), get_format(spec.format or ""), spec.group or 1
    x = r(x)
    axis = 1 if spec.granularity == "per_channel" else 2
    starts = np.arange(0, x.shape[axis], group)
    low, high = (op.reduceat(x, starts, axis=axis) for op in (np.minimum, np.maximum))
    scale = r(over(r(minus(high, low)), float((1 << f.bits) - 1)))
    scale = np.where(scale == 0, np.float32(1), scale)

    def spread(y: Values) -> Values:
        return np.repeat(y, group, axis)[tuple(slice(n) for n in x.shape)]

    steps = r(over(r(minus(x, spread(low))), spread(scale)))
    codes = np.rint(np.clip(steps, 0, (1 << f.bits) - 1)).astype(np.uint8)
    values = r(plus(r(times(codes, spread(scale))), spread(low)))
    narrow = np.float16 if spec.scale_format == "float16" else np.float32
    return Stored(codes, scale.astype(narrow), None, low.astype(narrow), values)


def _ggml(x: Values, recipe: str) -> Stored:
    """Blocks of 32 features with a float16 scale: ggml's q8_0 and q4_0."""
    if x.shape[2] % _BLOCK:
        raise NumsimError(f"{recipe}: features of a head are a multiple of 32; got {x.shape[2]}")
    blocks = x.reshape(*x.shape[:2], -1, _BLOCK)
    at = np.abs(blocks).argmax(-1)[..., None]  # the first of equals
    largest = np.take_along_axis(blocks, at, -1)
    scale = np.abs(largest) / np.float32(127) if recipe == "q8_0" else largest / np.float32(-8)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    steps = blocks * inverse
    d = scale.astype(np.float16)
    if recipe == "q8_0":
        codes = np.copysign(np.floor(np.abs(steps) + np.float32(0.5)), steps).astype(np.int8)
        values = codes.astype(np.float32) * d.astype(np.float32)
    else:
        codes = np.minimum(np.trunc(steps + np.float32(8.5)), 15).astype(np.uint8)
        values = (codes.astype(np.float32) - 8) * d.astype(np.float32)
    return Stored(
        codes.reshape(x.shape), d[..., 0], None, None, values.reshape(x.shape).astype(np.float32)
    )
