"""The codes of a tensor under its scales: values divided, rounded, stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode, encode
from numsim.dispatch import encode_quotients
from numsim.dispatch.blocks import as_type, covers_blocks, encode_e2m1
from numsim.errors import NumsimError
from numsim.formats import get_format
from numsim.kernels.convert import blocks
from numsim.quant import four_bits
from numsim.quant.affine import affine_codes, scales_and_zeros
from numsim.quant.choose import Scales, choose
from numsim.quant.extremes import check_finite, extreme_of, pieces_of
from numsim.quant.grouped import shared_by
from numsim.quant.one_pass import far_below
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import CLIP_RULES, POW2_FORMATS, has_two_levels, rule_name
from numsim.quant.scales import WIDE
from numsim.quant.types import QTensor

_E2M1 = get_format("float4_e2m1fn")
_FLOAT32_MAX = np.float64(np.finfo(np.float32).max)


def stored(
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
        searches = name in CLIP_RULES or (  # others know amax alone
            name.startswith("4over6") and not covers_blocks(values, axis, int(str(rule.block)))
        )
        whole = as_type(values, wide) if searches else values
        chosen = choose(whole, amax, rule, shared, axis, above)
    held = chosen.above is None or np.isfinite(chosen.above).all()
    if not (held and np.isfinite(chosen.values).all()):
        raise NumsimError(
            f"quantize: the scale of values up to {float(np.max(amax)):.3g} in {rule.fmt.label} is "
            "beyond float32; divide the tensor by a constant first"
        )
    if rule.scale_rule in ("if4", "hif4"):
        return _special_blocks(values, wide, pieces, rule, sizes, axis, chosen, done)
    wide_quotient = has_two_levels(rule.scale_format)
    codes = _of_e2m1(values, rule, axis, chosen) if wide_quotient else None
    made = codes is not None
    codes = np.empty(values.shape, rule.fmt.code_dtype) if codes is None else codes
    q = QTensor(
        codes, rule.fmt, chosen.values, rule, sizes, chosen.codes, chosen.format, chosen.above
    )
    if made:
        done()
        keep_finite(q)
        return q
    narrow = rule.scale_format in POW2_FORMATS and wide is np.float32 and far_below(rule)
    by_blocks = (
        (narrow or wide_quotient or rule.scale_format == "float32")
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
        how = draws_of(rule, values, piece, *draws)
        encode(quotient, rule.fmt, overflow=rule.overflow, out=codes[piece], **how)  # type: ignore[arg-type]
        done()
    keep_finite(q)
    return q


def _special_blocks(
    values: NDArray[Any], wide: Any, pieces: list[Any], rule: Quant, sizes: tuple[int, ...] | None,
    axis: int, chosen: Scales, done: Callable[[], object],
) -> QTensor:  # fmt: skip
    """Quantise blocks of IF4 and HiF4."""
    assert sizes is not None
    assert chosen.codes is not None
    scale, scale_codes = chosen.values, chosen.codes
    whole = rule.scale_rule == "if4"
    fmt = four_bits.HALVES if whole else four_bits.QUARTERS
    codes = np.empty(values.shape, fmt.code_dtype)
    for piece in pieces:
        part = values[piece]
        if not covers_blocks(part, axis, int(str(rule.block))):
            part = as_type(part, wide)
        each = _scales_at(piece, sizes)
        if whole:
            above = np.asarray(1 if chosen.above is None else chosen.above, np.float64)
            if above.ndim and len(above) > 1:  # of rows, not of columns
                above = above[each]
            found = four_bits.if4(part, scale[each] * above, sizes, codes[piece])
            scale_codes[each] |= found.view(np.uint8) * np.uint8(four_bits.INTEGERS)
        else:
            four_bits.hif4(part, sizes, scale[each], codes[piece])
        done()
    if whole:
        scale = four_bits.if4_scales(scale_codes, rule.scale_format)
    return QTensor(codes, fmt, scale, rule, sizes, scale_codes, chosen.format, chosen.above)


def affine_scales(
    values: NDArray[Any], wide: Any, pieces: list[Any], rule: Quant, sizes: tuple[int, ...] | None,
    axis: int, done: Callable[[], object],
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:  # fmt: skip
    """Return the scales and zero points of the ranges of finite values."""
    low, high = (
        extreme_of(values, wide, pieces, rule, sizes, axis, done, which)
        for which in (np.minimum, np.maximum)
    )
    check_finite(low, values, rule)
    check_finite(high, values, rule)
    return scales_and_zeros(low, high, rule.fmt)


def affine_stored(
    values: NDArray[Any], wide: Any, pieces: list[Any], rule: Quant, sizes: tuple[int, ...] | None,
    found: tuple[NDArray[np.float32], NDArray[np.int32]], done: Callable[[], object],
    draws: tuple[int, int, NDArray[Any] | None],
) -> QTensor:  # fmt: skip
    """Quantise under scales with zero points."""
    scale, zeros = found
    codes = np.empty(values.shape, rule.fmt.code_dtype)
    q = QTensor(codes, rule.fmt, scale, rule, sizes, zero_point=zeros)
    by_piece = scale.ndim == values.ndim > 0 and len(scale) > 1
    for piece in pieces:
        at = _scales_at(piece, sizes) if by_piece else ...
        part = replace(q, codes=codes[piece], scale=scale[at], zero_point=zeros[at])
        divisor, zero = part.element_scale(), part.element_zero_point()
        with np.errstate(over="ignore", under="ignore"):
            quotient = as_type(values[piece], wide) / divisor
        how = draws_of(rule, values, piece, *draws)
        affine_codes(quotient, zero, rule, codes[piece], how)
        done()
    keep_finite(q)
    return q


def keep_finite(q: QTensor) -> None:
    """Move codes whose value leaves float32 to the next that does not.

    Only the largest numbers of float32 come there: under scales that are rounded up, or at the ends
    of a range that float32 does not hold. Floats under powers of two stay: of all scale rules but
    floor 2**128 comes from the last half step before it, which is an element of MX like others.
    """
    f = q.fmt
    if q.scale is None or not q.scale.size or f.emax >= WIDE:
        return
    if f.kind != "integer" and q.quant is not None and q.quant.scale_format in POW2_FORMATS:
        return
    above = 1.0 if q.tensor_scale is None else np.asarray(q.tensor_scale, np.float64)
    reach = max(f.max, -f.min) * (2 if q.zero_point is not None else 1)
    if reach * float(q.scale.max()) * float(np.max(above)) <= float(_FLOAT32_MAX):
        return
    scale = np.asarray(q.element_scale(), np.float64) * above
    if f.kind == "integer":
        most = np.minimum(np.floor(_FLOAT32_MAX / (scale * 2.0**-f.bias)), 2.0**40)
        zero: Any = 0 if q.zero_point is None else q.element_zero_point()
        np.copyto(q.codes, np.clip(q.codes - zero, -most, most) + zero, casting="unsafe")
        return
    values = decode(q.codes, f).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        beyond = np.isinf((values * scale).astype(np.float32)) & np.isfinite(values)
    if beyond.any():
        most = np.broadcast_to(_FLOAT32_MAX / scale, values.shape)[beyond]
        q.codes[beyond] = encode(np.copysign(most, values[beyond]), f, rounding="rtz")


def _scales_at(piece: Any, sizes: tuple[int, ...] | None) -> Any:
    """Return where the scales of a slice of the first axis are."""
    if piece is ... or sizes is None:
        return piece
    return slice(piece.start // sizes[0], -(-piece.stop // sizes[0]))


def draws_of(
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
