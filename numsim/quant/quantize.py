"""quantize: choose scales, divide, encode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array
from numsim.convert import decode, encode
from numsim.dispatch import encode_quotients
from numsim.dispatch.blocks import as_type, covers_blocks, encode_e2m1
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike, get_format
from numsim.kernels.convert import blocks
from numsim.quant import four_bits
from numsim.quant.affine import affine_codes, scales_and_zeros
from numsim.quant.choose import Scales, choose, given_above, given_scales
from numsim.quant.extremes import (
    PART,
    amax_of,
    check_finite,
    check_signs,
    computed_in,
    extreme_of,
    pieces_of,
)
from numsim.quant.grouped import shared_by
from numsim.quant.powers import far_below, in_one_pass
from numsim.quant.rule import (
    CHOICE_RULES,
    CLIP_RULES,
    POW2_FORMATS,
    Quant,
    has_two_levels,
    rule_name,
    scale_format_name,
)
from numsim.quant.scales import block_shape, scale_above
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
    zero_point: bool | None = None,
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
        Fields of `Quant` that replace those of `quant`; None: as they are.
    scale, tensor_scale
        Scales from outside ("static"), in the shape that `QTensor.scale` has, and the float32
        scale above narrow block scales; what is too large saturates. None: by the rule.
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
        and finite, of another shape, or no values of the scale format.

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
    given = {
        "granularity": granularity, "block": block, "scale_format": scale_format,
        "scale_rule": scale_rule, "rounding": rounding, "overflow": overflow,
        "zero_point": zero_point,
    }  # fmt: skip
    rule = _changed(as_quant(quant), {key: v for key, v in given.items() if v is not None})
    return quantize_pieces(
        x, rule, axis=axis, seed=seed, offset=offset, random=random, scale=scale,
        tensor_scale=tensor_scale,
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
    tensor_scale: ArrayLike | None = None, done: Callable[[], object] = lambda: None,
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
    if not isinstance(axis, int | np.integer):
        raise NumsimError(f"quantize: axis is an integer; got {axis!r}")
    wide = computed_in(values.dtype)
    random = None if random is None else as_array("quantize: random", random)
    if random is not None and random.shape != values.shape:
        raise NumsimError(
            f"quantize: random holds one integer for each input, shape {values.shape}; got "
            f"{random.shape}"
        )
    if rule.fmt.min >= 0 and rule.overflow != "wrap" and not rule.zero_point:
        check_signs(values, rule.fmt)
    if (scale is not None or tensor_scale is not None) and (
        rule.granularity == "none" or rule.zero_point or rule.scale_rule in ("if4", "hif4")
    ):
        raise NumsimError(
            f"quantize: scales are given to a Quant that has one scale a part; got {rule!r:.200}"
        )
    if rule.granularity == "none":
        how = _draws(rule, values, ..., seed, offset, random)
        codes = encode(values, rule.fmt, overflow=rule.overflow, **how)  # type: ignore[arg-type]
        done()  # integers too are rounded once
        return QTensor(codes, rule.fmt, np.ones((), np.float32), rule)
    if rule.granularity != "per_tensor" and not -values.ndim <= axis < values.ndim:
        raise NumsimError(f"quantize: axis {axis} is not an axis of shape {values.shape}")
    sizes = block_shape(rule, values.shape, axis) if rule.granularity == "per_block" else None
    pieces = pieces_of(values.shape, sizes)
    if rule.zero_point:
        return _affine(values, wide, pieces, rule, sizes, axis, done, (seed, offset, random))
    if sizes is not None and scale is None:
        q = in_one_pass(values, rule, sizes, axis, done)
        if q is not None:
            _keep_finite(q)
            return q
    amax = amax_of(values, wide, pieces, rule, sizes, axis, done)
    check_finite(amax, values)
    if rule.scale is not None and scale is tensor_scale is None:  # fixed by the rule itself
        scale, tensor_scale = (None, rule.scale) if rule.above else (rule.scale, None)
    above = given_above(tensor_scale, rule, values.shape, axis)
    given = None if scale is None else given_scales(scale, rule, amax.shape, above)
    if above is None and rule.above is not None:
        above = scale_above(amax, rule, axis)
    draws = (seed, offset, random)
    if sizes is None:
        return _stored(values, wide, amax, rule, sizes, axis, given, above, draws, done)
    whole: QTensor | None = None
    for part in pieces_of(values.shape, sizes, PART):
        size = 1 if part is ... else sizes[0]
        where = part if part is ... else slice(part.start // size, -(-part.stop // size))
        over = above[part] if np.ndim(above) and len(above) > 1 else above
        fixed = given
        if given is not None:
            kept = None if given.codes is None else given.codes[where]
            fixed = Scales(given.values[where], kept, given.format, over)
        q = _stored(
            values[part], wide, amax[where], rule, sizes, axis, fixed, over,
            _moved(draws, part, values.shape), done,
        )  # fmt: skip
        if q.codes.shape == values.shape:
            return q
        whole = _joined(whole or _room(q, values.shape, amax.shape, above), q, part, where)
    assert whole is not None
    return whole


def _stored(
    values: NDArray[Any], wide: Any, amax: NDArray[Any], rule: Quant, sizes: tuple[int, ...] | None,
    axis: int, given: Scales | None, above: Any, draws: tuple[int, int, NDArray[Any] | None],
    done: Callable[[], object],
) -> QTensor:  # fmt: skip
    """Return values under scales: given, or chosen by the rule."""
    pieces = pieces_of(values.shape, sizes)
    chosen = given
    if chosen is None:
        shared = shared_by(values.shape, str(rule.granularity), sizes, axis)
        name = rule_name(str(rule.scale_rule))
        searches = name in CLIP_RULES or name.startswith("4over6")  # others know amax alone
        whole = as_type(values, wide) if searches else values
        chosen = choose(whole, amax, rule, shared, axis, above)
    held = chosen.above is None or np.isfinite(chosen.above).all()
    if not (held and np.isfinite(chosen.values).all()):
        raise NumsimError(
            f"quantize: the scale of values up to {float(np.max(amax)):.3g} in {rule.fmt.label} is "
            "beyond float32; divide the tensor by a constant first"
        )
    fast = chosen.elements
    if fast is not None:
        done()
        return QTensor(
            fast, rule.fmt, chosen.values, rule, sizes, chosen.codes, chosen.format, chosen.above
        )
    if rule.scale_rule in ("if4", "hif4"):
        return _special_blocks(values, wide, pieces, rule, sizes, chosen, done)
    wide_quotient = has_two_levels(rule.scale_format)
    codes = _of_e2m1(values, rule, axis, chosen) if wide_quotient else None
    made = codes is not None
    codes = np.empty(values.shape, rule.fmt.code_dtype) if codes is None else codes
    q = QTensor(
        codes, rule.fmt, chosen.values, rule, sizes, chosen.codes, chosen.format, chosen.above
    )
    if made:
        done()
        return q
    narrow = rule.scale_format in POW2_FORMATS and wide is np.float32 and far_below(rule)
    by_blocks = (
        (narrow or wide_quotient)
        and wide is np.float32
        and isinstance(rule.block, int)
        and blocks.covers(values, axis, rule.block)
    )
    divisor: Any = chosen.values if by_blocks else q.element_scale()
    if wide_quotient or (rule.scale_format in POW2_FORMATS and not narrow):
        divisor = np.asarray(divisor, np.float64)  # of powers of two: subnormal quotients too
    if chosen.above is not None:
        divisor = divisor * np.asarray(chosen.above, np.float64)
    by_piece = divisor.ndim == values.ndim > 0 and len(divisor) > 1
    usual = wide is np.float32 and rule.rounding == "rne" and rule.overflow == "saturate"
    at_once = usual and divisor.dtype == np.float32 and not by_blocks
    for piece in pieces:
        if at_once:
            part, each = as_type(values[piece], wide), divisor[piece if by_piece else ...]
            if encode_quotients(rule.fmt, part, np.asarray(each), codes[piece]):
                done()
                continue
        if by_blocks:
            part, each = values[piece], divisor[_blocks_of(piece, rule, axis % values.ndim)]
            quotient = blocks.divided(part, each, axis, int(str(rule.block)))
        else:
            with np.errstate(over="ignore", under="ignore"):
                by = divisor[piece if by_piece else ...]
                quotient = as_type(values[piece], wide) / by
        how = _draws(rule, values, piece, *draws)
        encode(quotient, rule.fmt, overflow=rule.overflow, out=codes[piece], **how)  # type: ignore[arg-type]
        done()
    _keep_finite(q)
    return q


def _of_e2m1(
    values: NDArray[Any], rule: Quant, axis: int, chosen: Scales
) -> NDArray[np.uint8] | None:
    """Return codes of E2M1 under narrow scales, rounded once; None: the general way does it."""
    usual = rule.rounding == "rne" and rule.overflow == "saturate" and isinstance(rule.block, int)
    if not usual or rule.fmt != _E2M1 or not covers_blocks(values, axis, int(str(rule.block))):
        return None
    above = np.asarray(1 if chosen.above is None else chosen.above, np.float64)
    divisors = np.ascontiguousarray(chosen.values * above)
    return encode_e2m1(values, axis, int(str(rule.block)), divisors)


def _room(q: QTensor, shape: tuple[int, ...], scales: tuple[int, ...], above: Any) -> QTensor:
    """Return a tensor to be filled with parts such as q."""
    kept = None if q.scale_codes is None else np.empty(scales, q.scale_codes.dtype)
    return replace(
        q, codes=np.empty(shape, q.codes.dtype), scale=np.empty(scales, np.float32),
        scale_codes=kept, tensor_scale=above,
    )  # fmt: skip


def _joined(whole: QTensor, q: QTensor, part: Any, where: Any) -> QTensor:
    """Fill a slice of the first axis."""
    for filled, made, at in (
        (whole.codes, q.codes, part), (whole.scale, q.scale, where),
        (whole.scale_codes, q.scale_codes, where),
    ):  # fmt: skip
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


def _special_blocks(
    values: NDArray[Any], wide: Any, pieces: list[Any], rule: Quant, sizes: tuple[int, ...] | None,
    chosen: Scales, done: Callable[[], object],
) -> QTensor:  # fmt: skip
    """Quantise blocks of IF4 and HiF4."""
    assert sizes is not None
    assert chosen.codes is not None
    scale_codes = chosen.codes.copy()
    whole = rule.scale_rule == "if4"
    fmt = four_bits.HALVES if whole else four_bits.QUARTERS
    codes = np.empty(values.shape, fmt.code_dtype)
    for piece in pieces:
        part = as_type(values[piece], wide)
        each = piece if piece is ... else slice(piece.start // sizes[0], -(-piece.stop // sizes[0]))
        if whole:
            above = chosen.above
            if above is not None and np.ndim(above):
                above = above[each]
            found = four_bits.if4(part, scale_codes[each], above, rule, sizes, codes[piece])
            scale_codes[each] |= np.where(found, four_bits.INTEGERS, 0).astype(np.uint8)
        else:
            four_bits.hif4(part, sizes, scale_codes[each], codes[piece])
        done()
    scale = chosen.values
    if whole:
        sixths = (scale.astype(np.float64) * 6 / 7).astype(np.float32)
        scale = np.where(scale_codes & four_bits.INTEGERS, sixths, scale)
    else:
        scale = decode(scale_codes, "float8_ue6m2").astype(np.float32)
    return QTensor(codes, fmt, scale, rule, sizes, scale_codes, chosen.format, chosen.above)


def _affine(
    values: NDArray[Any], wide: Any, pieces: list[Any], rule: Quant, sizes: tuple[int, ...] | None,
    axis: int, done: Callable[[], object], draws: tuple[int, int, NDArray[Any] | None],
) -> QTensor:  # fmt: skip
    """Quantise with zero points."""
    low, high = (
        extreme_of(values, wide, pieces, rule, sizes, axis, done, which)
        for which in (np.minimum, np.maximum)
    )
    check_finite(low, values)
    check_finite(high, values)
    scale, zeros = scales_and_zeros(low, high, rule.fmt)
    codes = np.empty(values.shape, rule.fmt.code_dtype)
    q = QTensor(codes, rule.fmt, scale, rule, sizes, zero_point=zeros)
    divisor, zero = q.element_scale(), q.element_zero_point()
    assert divisor is not None
    assert zero is not None
    by_piece = divisor.ndim == values.ndim > 0 and len(divisor) > 1
    for piece in pieces:
        at = piece if by_piece else ...
        with np.errstate(over="ignore", under="ignore"):
            quotient = as_type(values[piece], wide) / divisor[at]
        how = _draws(rule, values, piece, *draws)
        affine_codes(quotient, zero[at], rule, codes[piece], how)
        done()
    _keep_finite(q)
    return q


def _keep_finite(q: QTensor) -> None:
    """Move integer codes whose value leaves float32 to the next that does not.

    Only the largest numbers of float32 come there: -2**128, which is -128 of MXINT8's largest
    scale, or the ends of a range that float32 does not hold.
    """
    largest = max(q.fmt.max, -q.fmt.min) * (2 if q.zero_point is not None else 1)
    if q.fmt.kind != "integer" or q.scale is None or not q.scale.size:
        return
    if largest * float(q.scale.max()) < float(_FLOAT32_MAX):
        return
    scale = np.asarray(q.element_scale(), np.float64) * 2.0**-q.fmt.bias
    most = np.broadcast_to(np.minimum(np.floor(_FLOAT32_MAX / scale), 2.0**40), q.shape)
    zero: Any = 0 if q.zero_point is None else q.element_zero_point()
    np.copyto(q.codes, np.clip(q.codes - zero, -most, most) + zero, casting="unsafe")


def _draws(
    rule: Quant, values: NDArray[Any], piece: Any, seed: int, offset: int,
    random: NDArray[Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Return how `encode` rounds a slice of the first axis, and what it draws."""
    how: dict[str, Any] = {"rounding": rule.rounding}
    if random is not None:
        return how | {"random": random[piece]}
    if rule.rounding != "sr":
        return how
    first = 0 if piece is ... else piece.start * math.prod(values.shape[1:])
    return how | {"seed": seed, "offset": offset + first}


def _blocks_of(piece: Any, rule: Quant, axis: int) -> Any:
    """Return the blocks of a slice of the first axis: whole ones, if they run along it."""
    if axis or piece is ...:
        return piece
    size = int(str(rule.block))
    return slice(piece.start // size, -(-piece.stop // size))


_E2M1 = get_format("float4_e2m1fn")
_FLOAT32_MAX = np.float64(np.finfo(np.float32).max)
