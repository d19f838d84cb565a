"""quantize: choose scales, divide, encode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, index_of
from numsim.convert import decode, encode
from numsim.dispatch import encode_quotients
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, get_format
from numsim.kernels.convert import blocks
from numsim.kernels.convert.float32 import largest
from numsim.quant.scales import (
    block_amax,
    block_shape,
    clipped_amax,
    scales_from_amax,
    two_level_scales,
)  # fmt: skip
from numsim.quant.table import as_quant
from numsim.quant.types import POW2_FORMATS, POW2_RULES, QTensor, Quant, scale_format_name


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
    granularity, block, scale_format, scale_rule, rounding, overflow
        Fields of `Quant` that replace those of `quant`; None: as they are.
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
        format without any (unless they wrap), or a bad axis.

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
    }  # fmt: skip
    rule = _changed(as_quant(quant), {key: v for key, v in given.items() if v is not None})
    return quantize_pieces(x, rule, axis=axis, seed=seed, offset=offset, random=random)


def _changed(rule: Quant, given: dict[str, Any]) -> Quant:
    """Return a rule with other fields; those that follow from them start again."""
    if not given:
        return rule
    if "block" in given or (given.get("granularity") not in (None, "per_block") and rule.block):
        given = {"granularity": None, "block": None} | given
    scales = scale_format_name(given.get("scale_format", rule.scale_format))
    if (scales in POW2_FORMATS) != (rule.scale_format in POW2_FORMATS):
        given = {"scale_rule": None} | given
    return replace(rule, **given)


def quantize_pieces(
    x: ArrayLike, quant: FormatLike | Quant, *, axis: int = -1, seed: int = 0, offset: int = 0,
    random: NDArray[Any] | None = None, done: Callable[[], object] = lambda: None,
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
    wide = _computed_in(values.dtype)
    random = None if random is None else as_array("quantize: random", random)
    if random is not None and random.shape != values.shape:
        raise NumsimError(
            f"quantize: random holds one integer for each input, shape {values.shape}; got "
            f"{random.shape}"
        )
    if rule.fmt.min >= 0 and rule.overflow != "wrap":
        _check_signs(values, rule.fmt)
    if rule.granularity == "none":
        codes = _codes(values, rule, seed, offset, random)  # integers too are rounded once
        done()
        return QTensor(codes, rule.fmt, np.ones((), np.float32), rule)
    if rule.granularity != "per_tensor" and not -values.ndim <= axis < values.ndim:
        raise NumsimError(f"quantize: axis {axis} is not an axis of shape {values.shape}")
    sizes = block_shape(rule, values.shape, axis) if rule.granularity == "per_block" else None
    pieces = _pieces(values.shape, sizes)
    amax = _amax(values, wide, pieces, rule, sizes, axis, done)
    _check_finite(amax, values)
    if rule.scale_rule is not None and rule.scale_rule not in ("amax", *POW2_RULES):
        amax = clipped_amax(values.astype(wide, copy=False), rule, axis)
    scale_codes, scale_format, above = None, None, None
    if rule.scale_format == "float8_e4m3fn":
        scale_codes, scale, above = two_level_scales(amax, rule)
        scale_format = get_format("float8_e4m3fn")
    else:
        scale = scales_from_amax(amax, rule)
        if rule.scale_format == "float8_e8m0fnu":
            scale_format = get_format("float8_e8m0fnu")
            scale_codes = encode(scale, scale_format)
    if not (np.isfinite(scale).all() and (above is None or np.isfinite(above))):
        raise NumsimError(
            f"quantize: the scale of values up to {float(np.max(amax)):.3g} in {rule.fmt.label} is "
            "beyond float32; divide the tensor by a constant first"
        )
    codes = np.empty(values.shape, rule.fmt.code_dtype)
    narrow = rule.scale_format in POW2_FORMATS and wide is np.float32 and _far_below(rule)
    by_blocks = (
        (narrow or above is not None)
        and wide is np.float32
        and isinstance(rule.block, int)
        and blocks.covers(values, axis, rule.block)
    )
    q = QTensor(codes, rule.fmt, scale, rule, sizes, scale_codes, scale_format, above)
    divisor: Any = scale if by_blocks else q.element_scale()
    if above is not None:
        divisor = np.asarray(divisor, np.float64) * np.float64(above)
    elif rule.scale_format in POW2_FORMATS and not narrow:
        divisor = np.asarray(divisor, np.float64)  # exact, subnormal quotients included
    by_piece = divisor.ndim == values.ndim > 0 and len(divisor) > 1
    by_one = scale.ndim == 0 and above is None and rule.scale_format == "float32"
    nearest = wide is np.float32 and rule.rounding == "rne" and rule.overflow == "saturate"
    for piece in pieces:
        if by_one and nearest:
            part = values[piece].astype(wide, copy=False)
            if encode_quotients(rule.fmt, part, np.float32(scale), codes[piece]):
                done()
                continue
        if by_blocks:
            part, each = values[piece], divisor[_blocks_of(piece, rule, axis % values.ndim)]
            quotient = blocks.divided(part, each, axis, int(str(rule.block)))
        else:
            with np.errstate(over="ignore", under="ignore"):
                by = divisor[piece if by_piece else ...]
                quotient = values[piece].astype(wide, copy=False) / by
        first = offset + (piece.start * math.prod(values.shape[1:]) if values.ndim else 0)
        drawn = None if random is None else random[piece]
        _codes(quotient, rule, seed, first, drawn, codes[piece])
        done()
    return q


def _blocks_of(piece: Any, rule: Quant, axis: int) -> Any:
    """Return the blocks of a slice of the first axis: whole ones, if they run along it."""
    if axis or piece is ...:
        return piece
    size = int(str(rule.block))
    return slice(piece.start // size, -(-piece.stop // size))


def _far_below(rule: Quant) -> bool:
    """Whether what float32 rounds of x / 2**n, below its normal numbers, cannot change a code.

    Nothing there is near half of the format's least step; rounding up or down would see it. A table
    may have a middle of two values there, and a format without zero tells what lost it from zero.
    """
    f = rule.fmt
    around = rule.rounding in ("rne", "rna", "rtz") and f.kind != "table" and f.zero
    return around and f.min_normal >= 2.0**-60 and f.bits <= 16


_PIECE = 1 << 18  # elements: what is made of a large tensor on the way stays small


def _pieces(shape: tuple[int, ...], blocks: tuple[int, ...] | None) -> list[Any]:
    """Return slices of the first axis, whole blocks each, that cover a tensor."""
    if not shape:
        return [...]
    step = max(_PIECE // max(math.prod(shape[1:]), 1), 1)
    if blocks is not None:
        step = -(-step // blocks[0]) * blocks[0]
    return [slice(i, min(i + step, shape[0])) for i in range(0, max(shape[0], 1), step)]


def _amax(
    values: NDArray[Any], wide: Any, pieces: list[Any], rule: Quant, sizes: tuple[int, ...] | None,
    axis: int, done: Callable[[], object],
) -> NDArray[Any]:  # fmt: skip
    """Return the largest magnitude of every part that shares a scale."""
    found: list[Any] = []
    for piece in pieces:
        done()
        part = values[piece].astype(wide, copy=False)
        if sizes is not None:
            found.append(block_amax(part, sizes))
            continue
        along = None if rule.granularity == "per_tensor" else axis
        if along is None and wide is np.float32 and part.flags.c_contiguous and part.flags.aligned:
            found.append(np.uint32(largest(part.reshape(-1).view(np.uint32))).view(np.float32))
            continue
        high = np.max(part, axis=along, keepdims=along is not None, initial=0.0)
        low = np.min(part, axis=along, keepdims=along is not None, initial=0.0)
        found.append(np.abs(np.maximum(high, -low)))  # without the sign of a zero
    if rule.granularity == "per_tensor" or (sizes is None and axis % values.ndim == 0):
        return np.asarray(np.maximum.reduce(found))
    return found[0] if len(found) == 1 else np.concatenate(found)


@known_floats
def storage_losses(
    x: ArrayLike, quant: FormatLike | Quant, *, axis: int = -1, where: ArrayLike = True,
    stored: QTensor | None = None,
) -> tuple[float, float]:  # fmt: skip
    """Return the shares of values that storage clips and that it turns to zero.

    Saturated: beyond the format's range by at least half of its last step. Underflow: not zero,
    stored as zero. Parameters and errors as `quantize`.

    Parameters
    ----------
    where
        Booleans that broadcast against `x`: the values that count. Scales are those of all of `x`.
    stored
        `x` as it was stored, where that cannot be repeated: stochastic rounding.

    Raises
    ------
    NumsimError
        As `quantize`.

    Examples
    --------
    >>> storage_losses([0.01, 0.5, 9.0, -8.5], "q3.4")
    (0.5, 0.25)
    >>> storage_losses([0.01, 0.5, 9.0, -8.5], "q3.4", where=[True, True, False, False])
    (0.0, 0.5)
    """
    q = quantize(x, quant, axis=axis) if stored is None else stored
    values = as_array("storage_losses", x).astype(np.float64)
    scale = np.asarray(q.element_scale(), np.float64)
    if q.tensor_scale is not None:
        scale = scale * np.float64(q.tensor_scale)
    half = _last_step(q.fmt) / 2
    clipped = (values >= (q.fmt.max + half) * scale) | (values <= (q.fmt.min - half) * scale)
    lost = (values != 0) & (decode(q.codes, q.fmt) == 0)
    counted = np.broadcast_to(np.asarray(where, np.bool_), values.shape)
    if not counted.any():
        return 0.0, 0.0
    return float(clipped.mean(where=counted)), float(lost.mean(where=counted))


def _last_step(fmt: Format) -> float:
    """Return the distance of the largest finite value from the one below it."""
    if fmt.kind == "integer":
        return float(2.0**-fmt.bias)
    if fmt.kind == "float":
        return float(2.0 ** (fmt.emax - (fmt.precision - 1)))
    finite = np.unique(fmt.values()[np.isfinite(fmt.values())])
    return float(finite[-1] - finite[-2])


def _computed_in(dtype: np.dtype[Any]) -> Any:
    """Return the type that holds the numbers of another: float32, or float64."""
    named = dtype.kind == "V" and hasattr(ml_dtypes, dtype.name)  # bfloat16 and relatives
    if not (dtype.kind in "iuf" or named) or dtype.itemsize > 8:
        raise NumsimError(
            f"quantize: inputs are float16, bfloat16, float32, float64 or integers; got "
            f"{dtype}; convert the array first"
        )
    return (
        np.float64
        if dtype == np.float64 or (dtype.kind in "iu" and dtype.itemsize > 2)
        else (np.float32)
    )


def _codes(
    values: NDArray[Any], rule: Quant, seed: int, offset: int, random: NDArray[Any] | None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:  # fmt: skip
    how: dict[str, Any] = {"rounding": rule.rounding, "overflow": rule.overflow, "out": out}
    if random is not None:
        how["random"] = random
    elif rule.rounding == "sr":
        how |= {"seed": seed, "offset": offset}
    return encode(values, rule.fmt, **how)


def _check_signs(values: NDArray[Any], fmt: Format) -> None:
    """Refuse negative numbers in a format that has none: they would all become its lowest."""
    with np.errstate(invalid="ignore"):
        wrong = np.flatnonzero(values < 0)
    if wrong.size:
        raise NumsimError(
            f"quantize: {fmt.label} has no negative numbers; {wrong.size} of {values.size} values "
            f"({100 * wrong.size / values.size:.3g} %) are negative, the first at index "
            f"{index_of(int(wrong[0]), values.shape)}; use a signed format, or clip them first: "
            "np.maximum(x, 0)"
        )


def _check_finite(amax: Any, values: NDArray[Any]) -> None:
    if not np.isfinite(amax).all():
        bad = ~np.isfinite(values.astype(np.float64))
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise NumsimError(
            f"quantize: a scale needs finite values; {int(bad.sum())} of {values.size} are not, "
            f"the first at index {index}; clip them, or use granularity='none'"
        )
