"""The scales of a tensor: given, or by the rule of its `Quant`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, index_of
from numsim.convert import decode, encode
from numsim.errors import NumsimError
from numsim.formats import Format, get_format
from numsim.quant.clip import THRESHOLDS, best_candidate, clipped_amax, least_squares_scale
from numsim.quant.four_bits import four_over_six, rows_of_memory, stored_four_over_six
from numsim.quant.rule import (
    CLIP_RULES,
    POW2_FORMATS,
    Quant,
    amax_bound,
    has_two_levels,
    rule_name,
)
from numsim.quant.scales import (
    WIDE,
    amax_scale,
    narrow_codes,
    scale_above,
    scales_from_amax,
    stored_scale,
)

_TINY = np.float32(2.0**-149)


class Scales(NamedTuple):
    """Stored scales: their values, codes and format where they have one, and what stands above.

    `elements`: the codes of the values, where the choice of scales has made them.
    """

    values: NDArray[np.float32]
    codes: NDArray[Any] | None = None
    format: Format | None = None
    above: Any = None
    elements: NDArray[Any] | None = None


def choose(
    values: NDArray[Any], amax: NDArray[Any], rule: Quant, sizes: tuple[int, ...], axis: int,
    given_above: Any,
) -> Scales:  # fmt: skip
    """Return the scales of a tensor of float32 or float64; `sizes`: of the parts that share one."""
    if not values.size and rule_name(str(rule.scale_rule)) in CLIP_RULES:
        rule = replace(rule, scale_rule=None)  # there is nothing to search
    if has_two_levels(rule.scale_format):
        return _two_levels(values, amax, rule, sizes, axis, given_above)
    if rule.fmt.emax >= WIDE and rule.scale_format not in POW2_FORMATS:
        return Scales(np.ones(amax.shape, np.float32))
    if rule.scale_rule == "mse":
        return _coded(_least_error(values, amax, rule, sizes), rule)
    if rule_name(str(rule.scale_rule)) in THRESHOLDS:
        amax = clipped_amax(values, amax, rule, sizes)
    bound = amax_bound(str(rule.scale_rule))
    if bound is not None:
        amax = np.minimum(amax, amax.dtype.type(bound))
    return _coded(scales_from_amax(amax, rule), rule)


def _coded(scale: NDArray[np.float32], rule: Quant) -> Scales:
    if rule.scale_format != "float8_e8m0fnu":
        return Scales(scale)
    f = get_format(rule.scale_format)
    return Scales(scale, encode(scale, f), f)


def _two_levels(
    values: NDArray[Any], amax: NDArray[Any], rule: Quant, sizes: tuple[int, ...], axis: int,
    given_above: Any,
) -> Scales:  # fmt: skip
    f = get_format(rule.scale_format)
    above = given_above
    if above is None and rule.above is not None:
        above = scale_above(amax, rule, axis)
    by = np.float64(1) if above is None else np.asarray(above, np.float64)
    if rule_name(str(rule.scale_rule)) in THRESHOLDS:
        amax = clipped_amax(values, amax, rule, sizes)
    if str(rule.scale_rule).startswith("4over6"):
        if rule.rounding == "rne" and rows_of_memory(values, sizes):
            codes, elements = stored_four_over_six(values, amax, by, rule)
            return Scales(decode(codes, f).astype(np.float32), codes, f, above, elements)
        codes = four_over_six(values, amax, by, rule, sizes)
    else:
        with np.errstate(over="ignore"):
            wanted = np.asarray(amax, np.float64) / rule.fmt.max / by
        codes = narrow_codes(wanted, rule.scale_format)
    if rule.scale_rule == "mse":
        least, most = int(f.zero), f.max_code
        candidates = decode(np.arange(least, most + 1, dtype=f.code_dtype), f).astype(np.float64)
        first = np.minimum(np.searchsorted(candidates, wanted), len(candidates) - 1)
        each = np.array(np.broadcast_to(by, first.shape))
        place = best_candidate(values, rule.fmt, sizes, candidates, each, first, f.min_normal)
        codes = np.where(np.asarray(amax) == 0, codes, place + least).astype(f.code_dtype)
    return Scales(decode(codes, f).astype(np.float32), codes, f, above)


def _least_error(
    values: NDArray[Any], amax: NDArray[Any], rule: Quant, sizes: tuple[int, ...]
) -> NDArray[np.float32]:
    grid = tuple(-(-n // size) for n, size in zip(values.shape, sizes, strict=True))
    zero = np.asarray(amax) == 0
    if rule.scale_format == "float32":
        scale = least_squares_scale(values, rule.fmt, sizes).reshape(amax.shape)
        with np.errstate(under="ignore", over="ignore"):
            kept = np.maximum(scale.astype(np.float32), _TINY)
        safe = amax_scale(amax, rule.fmt.max)  # also where float32 ends
        kept = np.where(np.isinf(kept * np.float64(rule.fmt.max)), safe, kept)
        return np.asarray(np.where(zero, np.float32(1), kept), np.float32)
    if rule.scale_format in POW2_FORMATS:
        candidates, normal = np.ldexp(1.0, np.arange(-127, 128)), 0.0
    else:
        f = get_format(rule.scale_format)
        candidates = decode(np.arange(1, f.max_code + 1, dtype=f.code_dtype), f).astype(np.float64)
        normal = f.min_normal
        stored_scale(amax_scale(amax, rule.fmt.max), amax, rule)  # says what it cannot hold
    wanted = np.asarray(amax, np.float64).reshape(grid) / rule.fmt.max
    first = np.minimum(np.searchsorted(candidates, wanted), len(candidates) - 1)
    place = best_candidate(values, rule.fmt, sizes, candidates, np.ones(grid), first, normal)
    chosen = candidates[place].reshape(amax.shape)
    empty = 2.0**-127 if rule.scale_format in POW2_FORMATS else 1.0
    return np.where(zero, empty, chosen).astype(np.float32)


def given_scales(scale: ArrayLike, rule: Quant, shape: tuple[int, ...], above: Any) -> Scales:
    """Return scales from outside, of the shape that `QTensor.scale` has.

    Raises
    ------
    NumsimError
        For scales of another shape, that are not positive and finite, that their format does not
        hold, or under which the largest element leaves float32.
    """
    values = _positive(scale, "scale", shape)
    f = None
    if rule.scale_format in POW2_FORMATS:
        f = get_format("float8_e8m0fnu")
    elif rule.scale_format != "float32":
        f = get_format(rule.scale_format)
    codes = None
    if f is not None:
        codes = encode(values, f)
        differ = np.flatnonzero(decode(codes, f) != values)
        if differ.size:
            raise NumsimError(
                f"quantize: scales of {rule.scale_format} are values of it; {differ.size} of "
                f"{values.size} are not, the first is {values.flat[differ[0]]!s}; round them "
                f"first: numsim.cast(scale, {rule.scale_format!r})"
            )
    if has_two_levels(rule.scale_format) and rule.above is not None and above is None:
        raise NumsimError(
            "quantize: given block scales stand under a tensor scale; give tensor_scale too, or "
            "use a Quant of tensor_scale=None"
        )
    with np.errstate(over="ignore"):
        most = float(np.max(values, initial=0.0)) * rule.fmt.max
        most *= 1.0 if above is None else float(np.max(above))
        beyond = np.isinf(np.float32(most))
    if beyond:
        raise NumsimError(
            f"quantize: under the scale {float(np.max(values)):.3g} the largest value of "
            f"{rule.fmt.label} leaves float32; give a smaller scale"
        )
    keeps_codes = has_two_levels(rule.scale_format) or rule.scale_format == "float8_e8m0fnu"
    return Scales(values, codes, f, above) if keeps_codes else Scales(values)


def given_above(
    tensor_scale: ArrayLike | None, rule: Quant, shape: tuple[int, ...], axis: int
) -> Any:
    """Return the float32 scale of a tensor or of its rows from outside; None: none is given.

    Raises
    ------
    NumsimError
        As `given_scales`, and for a rule that has no such scale.
    """
    if tensor_scale is None:
        return None
    if rule.above is None:
        raise NumsimError(
            "quantize: tensor_scale stands above narrow block scales; this Quant has none "
            f"(scale_format={rule.scale_format!r}, tensor_scale={rule.tensor_scale!r})"
        )
    want: tuple[int, ...] = ()
    if rule.above == "per_token":
        want = tuple(1 if i == axis % len(shape) else n for i, n in enumerate(shape))
    values = _positive(tensor_scale, "tensor_scale", want)
    return values if want else np.float32(values)


def _positive(given: ArrayLike, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = as_array(f"quantize: {name}", given)
    if array.dtype.kind not in "iuf":
        raise NumsimError(f"quantize: {name} holds positive numbers; got {array.dtype}")
    if array.shape != shape and not (array.size == 1 and shape == ()):
        raise NumsimError(
            f"quantize: {name} has the shape {shape}, that of QTensor.{name}; got {array.shape}"
        )
    with np.errstate(over="ignore", under="ignore"):
        values = array.reshape(shape).astype(np.float32)
    wrong = np.flatnonzero(~((values > 0) & np.isfinite(values)))
    if wrong.size:
        raise NumsimError(
            f"quantize: {name} is positive and finite in float32; {wrong.size} of {values.size} "
            f"are not, the first is {array.flat[wrong[0]]!s} at index "
            f"{index_of(int(wrong[0]), values.shape)}; a tensor of zeros has the scale 1"
        )
    return values
