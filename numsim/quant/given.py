"""Scales and zero points from outside: static ones, in a `Quant` or beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, index_of
from numsim.convert import decode, encode
from numsim.errors import NumsimError
from numsim.formats import get_format
from numsim.quant.affine import range_of
from numsim.quant.choose import Scales
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import POW2_FORMATS, has_two_levels


def static_scales(
    rule: Quant, scale: ArrayLike | None, tensor_scale: ArrayLike | None,
    zero_point: ArrayLike | None = None,
) -> tuple[ArrayLike | None, ArrayLike | None]:  # fmt: skip
    """Return the scales of parts and the one above that are given, by the rule or beside it.

    Raises
    ------
    NumsimError
        For scales from both, and where a rule has none that could be given.

    Examples
    --------
    >>> static_scales(Quant("int8", scale=0.5), None, None)
    (0.5, None)
    """
    if rule.scale is not None:
        if scale is not None or tensor_scale is not None:
            raise NumsimError(
                f"quantize: this Quant fixes its scale, {rule.scale!r}; leave scale and "
                "tensor_scale out, or use a Quant without scale"
            )
        return (rule.scale, None) if rule.above is None else (None, rule.scale)
    if rule.zero_point and (scale is None) != (zero_point is None):
        raise NumsimError(
            "quantize: given scales and given zero points go together; got only "
            f"{'zero points' if scale is None else 'scales'}"
        )
    if tensor_scale is not None and rule.above is None:
        raise NumsimError(
            "quantize: tensor_scale stands above narrow block scales; this Quant has none "
            f"(scale_format={rule.scale_format!r}, tensor_scale={rule.tensor_scale!r})"
        )
    whole = rule.scale_rule in ("if4", "hif4")  # a block's codes and scale are chosen together
    if scale is not None and (whole or rule.granularity == "none"):
        raise NumsimError(
            f"quantize: scales are given to a Quant that has one scale a part; got {rule!r:.200}"
        )
    return scale, tensor_scale


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
                f"first: numsim.cast(scale, {f.name!r})"
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


def given_affine(
    scale: ArrayLike, zero_point: ArrayLike, rule: Quant, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return scales and zero points from outside, of the shape that `QTensor.scale` has.

    Raises
    ------
    NumsimError
        As `given_scales`, and for zero points that are no codes of the format.
    """
    scales = given_scales(scale, rule, shape, None).values
    zeros = as_array("quantize: zero_point", zero_point)
    low, high = range_of(rule.fmt)
    if zeros.size == 1 and shape == ():
        zeros = zeros.reshape(())
    if zeros.dtype.kind not in "iu" or zeros.shape != shape:
        raise NumsimError(
            f"quantize: zero_point holds integers of the shape {shape}, that of QTensor.scale; got "
            f"{zeros.dtype} {zeros.shape}"
        )
    wrong = np.flatnonzero((zeros < low) | (zeros > high))
    if wrong.size:
        raise NumsimError(
            f"quantize: zero points are codes of {rule.fmt.label}, {low} to {high}; {wrong.size} "
            f"of {zeros.size} are not, the first is {zeros.flat[wrong[0]]!s}"
        )
    return scales, zeros.astype(np.int32)


def given_above(
    tensor_scale: ArrayLike | None, rule: Quant, shape: tuple[int, ...], axis: int,
    who: str = "quantize",
) -> Any:  # fmt: skip
    """Return the float32 scale of a tensor or of its rows from outside; None: none is given.

    Raises
    ------
    NumsimError
        As `given_scales`, and for a rule that has no such scale.
    """
    if tensor_scale is None:
        return None
    want: tuple[int, ...] = ()
    if rule.above == "per_token":
        want = tuple(1 if i == axis % len(shape) else n for i, n in enumerate(shape))
    values = _positive(tensor_scale, "tensor_scale", want, who)
    return values if want else np.float32(values)


def _positive(
    given: ArrayLike, name: str, shape: tuple[int, ...], who: str = "quantize"
) -> NDArray[np.float32]:
    array = as_array(f"{who}: {name}", given)
    if array.dtype.kind not in "iuf":
        raise NumsimError(f"{who}: {name} holds positive numbers; got {array.dtype}")
    if array.shape != shape and not (array.size == 1 and shape == ()):
        raise NumsimError(
            f"{who}: {name} has the shape {shape}, that of QTensor.{name}; got {array.shape}"
        )
    with np.errstate(over="ignore", under="ignore"):
        values = array.reshape(shape).astype(np.float32)
    wrong = np.flatnonzero(~((values > 0) & np.isfinite(values)))
    if wrong.size:
        raise NumsimError(
            f"{who}: {name} is positive and finite in float32; {wrong.size} of {values.size} "
            f"are not, the first is {array.flat[wrong[0]]!s} at index "
            f"{index_of(int(wrong[0]), values.shape)}; a tensor of zeros has the scale 1"
        )
    return values
