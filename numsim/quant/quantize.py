"""quantize: choose scales, divide, encode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, is_integer, without_draws
from numsim.convert import encode
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike
from numsim.kernels.jit import threads
from numsim.quant.choose import Scales
from numsim.quant.extremes import (
    PART,
    PIECE,
    WIDE_ROW,
    Panel,
    amax_of,
    check_finite,
    check_signs,
    computed_in,
    panels_of,
    pieces_of,
)
from numsim.quant.given import given_above, given_affine, given_scales, static_scales
from numsim.quant.grouped import shared_by
from numsim.quant.one_pass import in_one_pass
from numsim.quant.quick import quick
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import (
    CHOICE_RULES,
    CLIP_RULES,
    POW2_FORMATS,
    rule_name,
    scale_format_name,
)
from numsim.quant.scales import block_shape, scale_above
from numsim.quant.store import affine_scales, affine_stored, draws_of, stored
from numsim.quant.table import as_quant
from numsim.quant.types import QTensor


@known_floats
def quantize(
    x: ArrayLike,
    quant: FormatLike | Quant,
    *,
    axis: int = -1,
    granularity: str | None = None,
    block: int | tuple[int, int] | None = None,
    scale_format: str | None = None,
    scale_rule: str | None = None,
    rounding: str | None = None,
    overflow: str | None = None,
    zero_point: bool | ArrayLike | None = None,
    scale: ArrayLike | None = None,
    tensor_scale: ArrayLike | None = None,
    seed: int = 0,
    offset: int = 0,
    random: NDArray[Any] | None = None,
) -> QTensor:
    """Store a tensor as codes and scales.

    The float32 scale is fp32(amax / max); it is 1 where amax is 0, and for formats of float32's
    range (bfloat16, tfloat32), whose largest products no accumulator holds. A code is
    ``encode(fp32(x / scale))``: the quotient is rounded to float32 first, as software on the
    hardware does (float64 input, and integers of 32 and 64 bits, which are float64 first: to
    float64). Division by a power of two is exact. Without scales a code is ``encode(x)``.

    Parameters
    ----------
    x
        Finite float or integer array, any shape; tensors of other libraries as in `encode`.
    quant
        A `Quant`, a named one (`list_recipes`), or a format for its default.
    axis
        The axis along which values share a scale (the K axis of a product); not used by
        per_tensor and tiles.
    granularity, block, scale_format, scale_rule, rounding, overflow, zero_point
        Fields of `Quant` that replace those of `quant`; None: as they are. Zero points can be
        given too, with `scale`: integers in its shape.
    scale, tensor_scale
        Scales from outside ("static"), in the shape that `QTensor.scale` has, and the float32
        scale above narrow block scales; what is too large saturates. None: by the rule, whose
        `Quant.scale` fixes the one of a whole tensor.
    seed, offset
        Of stochastic rounding, as in `numsim.encode`: give every tensor its own.
    random
        Random integers of stochastic rounding in place of that stream, as in `numsim.encode`.

    Returns
    -------
    QTensor
        Codes of the shape of `x`; scale of shape (), of `x` with length 1 along `axis`, or one
        entry a block.

    Raises
    ------
    NumsimError
        For NaN or Inf under a scale (with the count and the first index), negative numbers in a
        format without any (unless they wrap), a bad axis, or given scales that are not positive
        and finite, of another shape, no values of the scale format, or beside those that `quant`
        fixes.

    Source
    ------
    Dynamic amax scaling of FP8 and INT8 inference stacks; OCP MX 1.0 section 6.3 for block scales.

    Examples
    --------
    >>> q = quantize([[1.0, -2.0], [0.5, 0.25]], Quant("int8", "per_token"))
    >>> q.codes
    array([[  64, -127],
           [ 127,   64]], dtype=int8)
    >>> q.scale.shape
    (2, 1)
    >>> quantize([[1.0, -2.0], [0.5, 0.25]], "int8", granularity="per_token").scale.shape
    (2, 1)
    """
    zeros = None
    if not (zero_point is None or isinstance(zero_point, bool | np.bool_)):
        zeros, zero_point = zero_point, True
    given = {
        "granularity": granularity, "block": block, "scale_format": scale_format,
        "scale_rule": scale_rule, "rounding": rounding, "overflow": overflow,
        "zero_point": zero_point,
    }  # fmt: skip
    rule = _changed(as_quant(quant), {key: v for key, v in given.items() if v is not None})
    usual = scale is None and tensor_scale is None and zeros is None and random is None
    if usual and type(x) is np.ndarray and type(axis) is int:
        # one thread stores more than a piece piece by piece, several share the whole
        rows = rule.block is None or axis in (-1, x.ndim - 1)
        q = quick(x, rule) if rows and (x.size <= PIECE or threads() > 1) else None
        if q is not None:
            return q
    return quantize_pieces(
        x, rule, axis=axis, seed=seed, offset=offset, random=random, scale=scale,
        tensor_scale=tensor_scale, zero_point=zeros,
    )  # fmt: skip


def _changed(rule: Quant, given: dict[str, Any]) -> Quant:
    """Return a rule with other fields; those that follow from them start again."""
    if not given:
        return rule
    if "block" in given or (given.get("granularity") not in (None, "per_block") and rule.block):
        given = {"granularity": None, "block": None} | given
    scales = scale_format_name(given.get("scale_format", rule.scale_format))
    if scales != rule.scale_format:
        again = {"scale_max": None, "tensor_scale": "per_tensor"}
        if (scales in POW2_FORMATS) != (rule.scale_format in POW2_FORMATS) or (
            rule.scale_rule in (*CHOICE_RULES, "hif4")
        ):
            again["scale_rule"] = None
        given = again | given
    return replace(rule, **given)


def quantize_pieces(
    x: ArrayLike, quant: FormatLike | Quant, *, axis: int = -1, seed: int = 0, offset: int = 0,
    random: NDArray[Any] | None = None, scale: ArrayLike | None = None,
    tensor_scale: ArrayLike | None = None, zero_point: ArrayLike | None = None,
    done: Callable[[], object] = lambda: None,
) -> QTensor:  # fmt: skip
    """Do what `quantize` does; `done` is called after each piece of `x` that has been read.

    Raises
    ------
    NumsimError
        As `quantize`.
    """
    rule = as_quant(quant)
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise NumsimError("quantize: a masked array would lose its mask; pass x.filled(value)")
    values = as_array("quantize", x.data if isinstance(x, np.ma.MaskedArray) else x)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if not is_integer(axis):
        raise NumsimError(f"quantize: axis is an integer; got {axis!r}")
    wide = computed_in(values.dtype)
    random = None if random is None else as_array("quantize: random", random)
    if random is not None and random.shape != values.shape:
        raise NumsimError(
            f"quantize: random holds one integer for each input, shape {values.shape}; got "
            f"{random.shape}"
        )
    if random is not None and rule.rounding != "sr":
        raise without_draws("random", rule.rounding)
    if rule.fmt.min >= 0 and rule.overflow != "wrap" and not rule.zero_point:
        check_signs(values, rule.fmt)
    scale, tensor_scale = static_scales(rule, scale, tensor_scale, zero_point)
    if rule.granularity == "none":
        how = draws_of(rule, values, ..., seed, offset, random)
        codes = encode(values, rule.fmt, overflow=rule.overflow, **how)  # type: ignore[arg-type]
        done()  # integers too are rounded once
        return QTensor(codes, rule.fmt, np.ones((), np.float32), rule)
    if rule.granularity != "per_tensor" and not -values.ndim <= axis < values.ndim:
        raise NumsimError(f"quantize: axis {axis} is not an axis of shape {values.shape}")
    sizes = block_shape(rule, values.shape, axis) if rule.granularity == "per_block" else None
    if _one_first(values, rule, axis) and scale is tensor_scale is None:
        inner = axis if axis < 0 else axis - 1
        drawn = None if random is None else random[0]
        try:
            return _led(
                quantize_pieces(
                    values[0], rule, axis=inner, seed=seed, offset=offset, random=drawn, done=done
                )
            )
        except NumsimError:
            check_finite(_largest(values), values, rule)  # whose index has all axes
            raise
    pieces = pieces_of(values.shape, sizes)
    panels = _panels(values.shape, rule, sizes, axis)
    if len(panels) > 1 and scale is random is None and rule.rounding != "sr":
        q = None
        if sizes is not None and tensor_scale is None:
            q = in_one_pass(values, rule, sizes, axis, done)
        if q is None:
            above = given_above(tensor_scale, rule, values.shape, axis)
            return _by_panels(values, wide, rule, panels, axis, above, done)
        return q
    if rule.zero_point:
        found = affine_scales(values, wide, pieces, rule, sizes, axis, done)
        if scale is not None and zero_point is not None:
            found = given_affine(scale, zero_point, rule, found[0].shape)
        return affine_stored(values, wide, pieces, rule, sizes, found, done, (seed, offset, random))
    if sizes is not None and scale is tensor_scale is None:
        q = in_one_pass(values, rule, sizes, axis, done)
        if q is not None:
            return q
    amax = amax_of(values, wide, pieces, rule, sizes, axis, done)
    check_finite(amax, values, rule)
    above = given_above(tensor_scale, rule, values.shape, axis)
    given = None if scale is None else given_scales(scale, rule, amax.shape, above)
    if above is None and rule.above is not None:
        above = scale_above(amax, rule, axis)
    draws = (seed, offset, random)
    shared, size = sizes, PART
    if rule_name(str(rule.scale_rule)) in CLIP_RULES:  # what a search makes is large
        shared, size = shared_by(values.shape, str(rule.granularity), sizes, axis), PIECE
    if isinstance(rule.block, tuple):  # every value of a tile has a copy of its scale
        size = PIECE
    parts: list[Any] = [...] if shared is None else pieces_of(values.shape, shared, size)
    if len(parts) == 1:
        return stored(values, wide, amax, rule, sizes, axis, given, above, draws, done)
    whole: QTensor | None = None
    for part in parts:
        size = shared[0] if shared is not None else 1
        where = slice(part.start // size, -(-part.stop // size))
        over = above[part] if np.ndim(above) and len(above) > 1 else above
        fixed = given
        if given is not None:
            kept = None if given.codes is None else given.codes[where]
            fixed = Scales(given.values[where], kept, given.format, over)
        q = stored(
            values[part], wide, amax[where], rule, sizes, axis, fixed, over,
            _moved(draws, part, values.shape), done,
        )  # fmt: skip
        whole = _joined(whole or _room(q, values.shape, amax.shape, above), q, part, where)
    assert whole is not None
    return whole


def _panels(
    shape: tuple[int, ...], rule: Quant, sizes: tuple[int, ...] | None, axis: int
) -> list[Panel]:
    """Return parts of a tensor whose rows are so long that pieces of the first axis are large."""
    row, shared = math.prod(shape[1:]), sizes
    if sizes is not None:
        row *= sizes[0]
    elif rule.granularity in ("per_token", "per_channel") and axis % len(shape) == 0:
        shared = shared_by(shape, rule.granularity, None, axis)
    if shared is None or len(shape) < 2 or row <= WIDE_ROW or shape[0] > PIECE:
        return []
    return panels_of(shape, shared)


def _by_panels(
    values: NDArray[Any], wide: Any, rule: Quant, panels: list[Panel], axis: int, above: Any,
    done: Callable[[], object],
) -> QTensor:  # fmt: skip
    """Quantise a wide tensor, a copy of some whole blocks at a time."""
    grid = tuple(place.stop for place in panels[-1].scales)
    if above is None and rule.above is not None and rule.scale is None:
        amax = np.empty(grid, wide)
        for panel in panels:
            part = np.ascontiguousarray(values[panel.where])
            sizes = block_shape(rule, part.shape, axis)
            amax[panel.scales] = amax_of(part, wide, [...], rule, sizes, axis, done)
        check_finite(amax, values, rule)
        above = scale_above(amax, rule, axis)
    whole: QTensor | None = None
    for panel in panels:
        over = above
        if np.ndim(above):
            each = zip(panel.where, above.shape, strict=True)
            over = above[tuple(part if n > 1 else slice(None) for part, n in each)]
        try:
            q = quantize_pieces(
                np.ascontiguousarray(values[panel.where]), rule, axis=axis, done=done,
                tensor_scale=None if rule.scale is not None else over,
            )  # fmt: skip
        except NumsimError:
            check_finite(_largest(values), values, rule)  # whose count and index are of all
            raise
        if whole is None:
            whole = _room(q, values.shape, grid, q.tensor_scale if above is None else above)
        whole = _joined(whole, q, panel.where, panel.scales)
    assert whole is not None
    return whole


def _largest(values: NDArray[Any]) -> Any:
    with np.errstate(invalid="ignore"):  # which NaN of bfloat16 is to NumPy
        return np.abs(values).max()


def _one_first(values: NDArray[Any], rule: Quant, axis: int) -> bool:
    """Whether a large tensor has a first axis of one, along which no piece can be cut."""
    plain = rule.granularity == "per_tensor" or axis % values.ndim != 0
    tiles = isinstance(rule.block, tuple) and values.ndim == 2
    return values.ndim > 1 and len(values) == 1 and values.size > PART and plain and not tiles


def _led(q: QTensor) -> QTensor:
    """Return a tensor with a first axis of one more."""
    each: tuple[Any, ...] = (q.scale, q.scale_codes, q.zero_point, q.tensor_scale)
    scale, kept, zeros, above = (x[None] if np.ndim(x) else x for x in each)
    blocks = None if q.block_shape is None else (1, *q.block_shape)
    return replace(
        q, codes=q.codes[None], scale=scale, scale_codes=kept, zero_point=zeros,
        tensor_scale=above, block_shape=blocks,
    )  # fmt: skip


def _room(q: QTensor, shape: tuple[int, ...], scales: tuple[int, ...], above: Any) -> QTensor:
    """Return a tensor to be filled with parts such as q."""
    kept, zeros = (
        None if x is None else np.empty(scales, x.dtype) for x in (q.scale_codes, q.zero_point)
    )
    return replace(
        q, codes=np.empty(shape, q.codes.dtype), scale=np.empty(scales, np.float32),
        scale_codes=kept, zero_point=zeros, tensor_scale=above,
    )  # fmt: skip


def _joined(whole: QTensor, q: QTensor, part: Any, where: Any) -> QTensor:
    """Fill a slice of the first axis."""
    pairs: Any = (
        (whole.codes, q.codes, part), (whole.scale, q.scale, where),
        (whole.scale_codes, q.scale_codes, where), (whole.zero_point, q.zero_point, where),
    )  # fmt: skip
    for filled, made, at in pairs:
        if filled is not None:
            filled[at] = made
    return whole


def _moved(
    draws: tuple[int, int, NDArray[Any] | None], part: Any, shape: tuple[int, ...]
) -> tuple[int, int, NDArray[Any] | None]:
    """Return what a slice of the first axis draws."""
    seed, offset, random = draws
    first = 0 if part is ... else part.start * math.prod(shape[1:])
    return seed, offset + first, None if random is None else random[part]
