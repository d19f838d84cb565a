"""How keys or values of a cache are stored: what a recipe says, and the codes and scales of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.arguments import choice
from numsim.convert import decode, encode
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import format_name, get_format
from numsim.operators.rounded import Values, minus, over, plus, rounding_to, times
from numsim.quant import QUANTS, quantize, recipe_name

GRANULARITIES = ("none", "per_tensor", "per_head", "per_token", "per_token_head", "per_channel")
_GGML = ("q8_0", "q4_0")
_BLOCK = 32  # elements of a head that share a scale in ggml's formats
_WIDE = 63  # the largest exponent from which a format has no scale, as in a sweep
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
        What shares a scale: ``none``: no scale, as of formats with float32's range; ``per_tensor``;
        ``per_head``; ``per_token``, over heads and features; ``per_token_head``; ``per_channel``: a
        feature of a head over `group` tokens from the first.
    group
        Tokens of a run under per_channel; features of a run under ``per_token`` with minima.
    static
        Scales are given, not taken from the data.
    zero
        None: symmetric; ``minimum``: unsigned steps above the smallest value of a group (KIVI), as
        unsigned formats always have them.
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
        With the axes that share one at 1; None where a recipe has `scale_codes`, or without scales.
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
    """Return a Spec from its fields, the name of a recipe or format, or None (unquantised).

    Raises
    ------
    NumsimError
        For an unknown field or word, or fields that contradict each other.

    Examples
    --------
    >>> spec_of("int8", "key").granularity, spec_of("nvfp4", "key").recipe
    ('per_token_head', 'nvfp4')
    """
    if given is None:
        return None
    if isinstance(given, Spec):
        spec = given
    elif isinstance(given, str):
        spec = Spec(recipe=given) if _recipe(given) else Spec(format=given)
    elif isinstance(given, Mapping):
        for key in given:
            if key not in _KEYS:
                hint = near_names(str(key), _KEYS)
                raise NumsimError(f"{name}: unknown key {key!r}{hint}; known: {', '.join(_KEYS)}")
        spec = Spec(**given)
    else:
        raise NumsimError(
            f"{name} is a Spec, its fields, the name of a recipe or format, or None; got "
            f"{given!r:.60}"
        )
    if (spec.format is None) == (spec.recipe is None):
        raise NumsimError(f"{name} names a format or a recipe, not both; got {given!r:.160}")
    choice(f"{name}: granularity", spec.granularity, GRANULARITIES)
    if spec.zero not in (None, "minimum"):
        raise NumsimError(f"{name}: zero is None or 'minimum'; got {spec.zero!r:.40}")
    if not isinstance(spec.static, bool):
        raise NumsimError(f"{name}: static is False or True; got {spec.static!r:.40}")
    return _of_recipe(spec, name) if spec.format is None else _of_format(spec, name)


def _recipe(word: object) -> str | None:
    """Return the name of a recipe that keeps features of a head in blocks, None: it is none."""
    return str(word) if word in _GGML else recipe_name(word)


def _of_recipe(spec: Spec, name: str) -> Spec:
    """Check what stands beside a recipe."""
    recipe = _recipe(spec.recipe)
    if recipe is None:
        known = (*_GGML, *QUANTS)
        raise NumsimError(
            f"{name}: recipe is one of {', '.join(known)}; got {spec.recipe!r:.40}"
            f"{near_names(str(spec.recipe), known)}; a format stands under format"
        )
    plain = replace(spec, recipe=None, tensor_scale=None)
    if plain != Spec():
        more = [k for k in _KEYS if getattr(plain, k) != getattr(Spec(), k)]
        raise NumsimError(
            f"{name}: a recipe brings granularity and scales of its own; got {', '.join(more)} "
            f"beside {recipe}; leave them out"
        )
    scale, above = spec.tensor_scale, recipe not in _GGML and QUANTS[recipe].above == "per_tensor"
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if scale is not None and not (above and number and 0 < np.float32(scale) < np.inf):
        raise NumsimError(
            f"{name}: tensor_scale is a positive number of float32, of recipes with one scale a "
            f"tensor above their blocks, such as nvfp4; got {scale!r:.40} beside {recipe}"
        )
    return replace(spec, recipe=recipe)


def _of_format(spec: Spec, name: str) -> Spec:
    """Check what stands beside a format; an unsigned one counts from the minimum."""
    try:
        fmt = format_name(spec.format or "", f"{name}: format")
        narrow = format_name(spec.scale_format, f"{name}: scale_format")
    except NumsimError as error:
        raise type(error)(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None
    f = get_format(fmt)
    if not f.signed:
        spec = replace(spec, zero="minimum")
    if f.emax >= _WIDE and spec.granularity == "per_token_head":  # the default
        spec = replace(spec, granularity="none")
    if f.emax >= _WIDE and spec.granularity != "none":
        raise NumsimError(
            f"{name}: {fmt} has float32's range, and no scale; got granularity "
            f"{spec.granularity}; leave it out"
        )
    steps = f.kind == "integer" and f.bias == 0 and not f.signed and f.bits <= 8
    if spec.zero is not None and not steps:
        raise NumsimError(
            f"{name}: steps above a minimum are of uint1 to uint8; got {fmt}; name one of them, or "
            "leave zero out"
        )
    if spec.zero is not None and spec.granularity not in ("per_channel", "per_token"):
        raise NumsimError(
            f"{name}: minima stand per_channel (runs of tokens) or per_token (runs of features); "
            f"got {fmt} {spec.granularity}"
        )
    if spec.static and (spec.granularity == "none" or spec.zero is not None):
        raise NumsimError(
            f"{name}: static scales are of signed formats with a granularity; got static beside "
            f"{fmt} {spec.granularity}"
        )
    if spec.zero is None and narrow != "float32":
        raise NumsimError(
            f"{name}: scale_format is of scales beside minima, others are float32; got {narrow} "
            "without zero = 'minimum'"
        )
    grouped = spec.granularity == "per_channel" or spec.zero is not None
    whole = isinstance(spec.group, int) and not isinstance(spec.group, bool)
    if grouped and not (whole and (spec.group or 0) >= 1):
        raise NumsimError(
            f"{name}: {spec.granularity} runs have a group of 1 or more; got {spec.group!r:.40}"
        )
    for key, used in (("group", grouped), ("tensor_scale", False)):
        if getattr(spec, key) is not None and not used:
            raise NumsimError(
                f"{name}: {key} is of {'runs' if key == 'group' else 'a recipe'}; got "
                f"{getattr(spec, key)!r:.40} beside {fmt} {spec.granularity}; leave it out"
            )
    if spec.zero is not None:
        rounding_to(narrow)  # of every step
    return replace(spec, format=fmt, scale_format=narrow)


def needs_all_tokens(spec: Spec) -> str:
    """Return why scales depend on tokens that come later, "" where they do not."""
    if spec.recipe is not None:
        above = spec.recipe not in _GGML and QUANTS[spec.recipe].above == "per_tensor"
        if above and spec.tensor_scale is None:
            return "the tensor scale is taken from all tokens; give tensor_scale"
    elif spec.granularity in ("per_tensor", "per_head") and not spec.static:
        return f"{spec.granularity} scales are taken from all tokens; make them static"
    return ""


def spec_words(spec: Spec | None) -> str:
    """Return how tokens are stored in a few words.

    >>> [spec_words(spec_of(word, "key")) for word in ("int8", "nvfp4", None)]
    ['int8 per_token_head', 'nvfp4', 'float32']
    """
    if spec is None or spec.recipe is not None:
        return "float32" if spec is None else str(spec.recipe)
    group = "" if spec.group is None else f":{spec.group}"
    return f"{spec.format} {spec.granularity}{group}"


def stored_bits(spec: Spec | None, heads: int, tokens: int, dim: int) -> float:
    """Return the bits that [heads, tokens, dim] take, all of them as the spec says; None: float32.

    Examples
    --------
    >>> [stored_bits(spec_of(word, "key"), 2, 64, 32) / (2 * 64 * 32) for word in
    ...     ("bfloat16", "int8", "q4_0", "mxfp4_e2m1")]
    [16.0, 9.0, 4.5, 4.25]
    """
    values = heads * tokens * dim
    if spec is None:
        return 32.0 * values
    if spec.recipe in _GGML:
        return values * (8 if spec.recipe == "q8_0" else 4) + values / _BLOCK * 16
    if spec.recipe is not None:
        return QUANTS[spec.recipe].stored_bits(heads * tokens, dim)
    group = spec.group or 1
    scales = {
        "none": 0, "per_tensor": 1, "per_head": heads, "per_token": tokens,
        "per_token_head": heads * tokens, "per_channel": heads * dim * -(-tokens // group),
    }[spec.granularity]  # fmt: skip
    wide = get_format(spec.scale_format).bits
    if spec.zero is not None:  # a scale and a minimum of every run
        runs = heads * tokens * -(-dim // group)
        scales = 2 * (runs if spec.granularity == "per_token" else scales)
    return float(values * get_format(spec.format or "").bits + scales * wide)


def quantised(x: Values, spec: Spec, given: NDArray[np.float32] | None) -> Stored:
    """Return tokens [heads, tokens, dim] as a spec stores them; `given`: its static scales."""
    if spec.recipe in _GGML:
        return _ggml(x, spec.recipe or "")
    if spec.recipe is not None:
        extra: Any = {} if spec.tensor_scale is None else {"tensor_scale": spec.tensor_scale}
        q = quantize(x, spec.recipe, **extra)
        return Stored(q.codes, None, q.scale_codes, None, np.asarray(q.dequantize(), np.float32))
    return _symmetric(x, spec, given) if spec.zero is None else _from_minimum(x, spec)


def _symmetric(x: Values, spec: Spec, given: NDArray[np.float32] | None) -> Stored:
    """S = amax / max, code = Q(x / s), value = code s, each in float32."""
    f = get_format(spec.format or "")
    if spec.granularity == "none":
        codes = encode(x, f)
        return Stored(codes, None, None, None, np.asarray(decode(codes, f), np.float32))
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
        least = np.float32(2.0**-149)  # as `quantize`, where amax / max underflows
        scale = np.where(amax == 0, np.float32(1), np.maximum(amax / np.float32(f.max), least))
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
    with np.errstate(over="ignore"):
        d = scale.astype(np.float16)
    if np.isinf(d).any():
        raise NumsimError(
            f"{recipe}: scales are float16; got {float(np.abs(x).max()):.6g}, whose scale is beyond"
        )
    if recipe == "q8_0":
        codes = np.copysign(np.floor(np.abs(steps) + np.float32(0.5)), steps).astype(np.int8)
        values = codes.astype(np.float32) * d.astype(np.float32)
    else:
        codes = np.minimum(np.trunc(steps + np.float32(8.5)), 15).astype(np.uint8)
        values = (codes.astype(np.float32) - 8) * d.astype(np.float32)
    return Stored(
        codes.reshape(x.shape), d[..., 0], None, None, values.reshape(x.shape).astype(np.float32)
    )
