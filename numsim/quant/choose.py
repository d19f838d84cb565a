"""The scales of a tensor by the rule of its `Quant`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode, encode
from numsim.formats import Format, get_format
from numsim.quant.clip import THRESHOLDS, best_candidate, clipped_amax, least_squares_scale
from numsim.quant.four_bits import four_over_six, hif4_scales
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import CLIP_RULES, POW2_FORMATS, amax_bound, has_two_levels, rule_name
from numsim.quant.scales import (
    WIDE,
    amax_scale,
    narrow_codes,
    narrow_quotient,
    scale_above,
    scales_from_amax,
    stored_scale,
)

_TINY = np.float32(2.0**-149)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Scales(NamedTuple):
    """Stored scales: their values, codes and format where they have one, and what stands above."""

    values: NDArray[np.float32]
    codes: NDArray[Any] | None = None
    format: Format | None = None
    above: Any = None


def choose(
    values: NDArray[Any], amax: NDArray[Any], rule: Quant, sizes: tuple[int, ...], axis: int,
    given_above: Any,
) -> Scales:  # fmt: skip
    """Return the scales of a tensor; `sizes`: of the parts that share one.

    Rules that search have it as float32 or float64.
    """
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
        codes = four_over_six(values, amax, by, rule, sizes)
    elif rule.scale_rule == "hif4":
        codes = hif4_scales(amax)
    else:
        wanted = narrow_quotient(amax, rule.fmt.max * by)
        codes = narrow_codes(wanted, rule.scale_format)
        most = float(np.max(by, initial=0.0)) * f.max * rule.fmt.max
        if rule.scale_rule == "if4" and most > _FLOAT32_MAX:
            # whose largest element float32 is to hold; others move it
            with np.errstate(over="ignore"):
                largest = decode(codes, f).astype(np.float64) * by * rule.fmt.max
                codes = codes - np.isinf(largest.astype(np.float32))
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
