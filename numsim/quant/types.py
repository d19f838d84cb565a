"""How a tensor is stored: `Quant` says it, `QTensor` is one."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import OVERFLOWS, ROUNDINGS, as_array, is_integer
from numsim.convert import checked_codes, decode
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, format_name, get_format, kept_format
from numsim.quant.odd import product_to_odd
from numsim.quant.slices import cut

GRANULARITIES = ("none", "per_tensor", "per_channel", "per_token", "per_block")
SCALE_FORMATS = ("float32", "bfloat16", "pow2", "float8_e8m0fnu", "float8_e4m3fn")
POW2_FORMATS = ("pow2", "float8_e8m0fnu")
POW2_RULES = ("floor", "ceil", "even", "rceil")
CLIP_RULES = ("mse", "kl", "percentile:P")
SCALE_BITS = {"float32": 32, "bfloat16": 16, "pow2": 8, "float8_e8m0fnu": 8, "float8_e4m3fn": 8}


@known_floats
@dataclass(frozen=True)
class Quant:
    """A storage rule: format, scale granularity, scale format and rule, rounding, overflow.

    Parameters
    ----------
    format
        Element format: kept as its canonical name, a `Format` of one's own as it is.
    granularity
        ``none`` (scale 1, a raw cast: the default of fixed point), ``per_tensor`` (the default
        of everything else), ``per_channel`` (one scale a weight row), ``per_token`` (one scale an
        activation row; the same arithmetic under the name of the other operand), ``per_block``.
    block
        For per_block: values that share a scale along the quantised axis, or (rows, columns) for
        tiles of the last two axes. Giving it implies per_block.
    scale_format
        ``float32``, ``bfloat16``, ``pow2`` (a power of two in float32), ``float8_e8m0fnu``, or
        ``float8_e4m3fn`` (with one float32 scale for the tensor on top, as NVFP4 has).
    scale_rule
        ``amax``: the largest magnitude maps to the format's maximum. ``mse``,
        ``percentile:99.9``, ``kl``: a smaller one does, and what is beyond it saturates (see
        `numsim.quant.scales.clipped_amax`; not per block). Powers of two: ``floor``
        (OCP MX: floor(log2 amax) - emax), ``ceil``, ``even`` (floor after rounding amax to the
        element's precision), ``rceil`` (smallest power of two that clips nothing).
    rounding, overflow
        As in `numsim.encode`.
    scale
        A fixed scale in place of one from amax, as checkpoints store it for activations: of the
        tensor (per_tensor), or the one above the blocks (``float8_e4m3fn`` scales). What it does
        not reach overflows. Kept as the float32 that it is used as.

    Raises
    ------
    NumsimError
        For an unknown word or a contradiction.

    Source
    ------
    OCP MX 1.0 section 6.3 (floor); torchao's ScaleCalculationMode (ceil, even, rceil).

    Examples
    --------
    >>> Quant("e4m3")
    Quant(format='float8_e4m3fn', granularity='per_tensor', ...)
    >>> Quant("q3.4").granularity
    'none'
    >>> Quant("e2m1", block=32, scale_format="float8_e8m0fnu", scale_rule="floor").granularity
    'per_block'
    """

    format: FormatLike
    granularity: str | None = None
    block: int | tuple[int, int] | None = None
    scale_format: str = "float32"
    scale_rule: str | None = None
    rounding: str = "rne"
    overflow: str = "saturate"
    zero_point: bool = False
    scale: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", kept_format(self.format))
        for name in ("granularity", "scale_format", "scale_rule", "rounding", "overflow"):
            if isinstance(word := getattr(self, name), np.ndarray):  # has no truth value
                raise NumsimError(f"Quant: {name} is a word; got an array {list(word.shape)}")
        fmt = get_format(self.format)
        object.__setattr__(self, "_fmt", fmt)
        object.__setattr__(self, "scale_format", scale_format_name(self.scale_format))
        fixed_point = fmt.kind == "integer" and fmt.bias != 0
        default = "none" if fixed_point else "per_tensor"
        if self.block is not None:
            default = "per_block"
            object.__setattr__(self, "block", _block(self.block))
        granularity = self.granularity or default
        object.__setattr__(self, "granularity", granularity)
        pow2 = self.scale_format in POW2_FORMATS
        rule = self.scale_rule or ("floor" if pow2 else "amax")
        object.__setattr__(self, "scale_rule", rule)
        rules: tuple[str, ...] = POW2_RULES if pow2 else ("amax", *CLIP_RULES)
        if self.scale_format == "float8_e4m3fn":
            rules = ("amax",)
        named = "percentile:P" if percentile(rule) is not None else rule
        for what, value, known in (
            ("granularity", granularity, GRANULARITIES),
            ("scale_format", self.scale_format, SCALE_FORMATS),
            (f"scale_rule for {self.scale_format} scales", named, rules),
            ("rounding", self.rounding, ROUNDINGS),
            ("overflow", self.overflow, OVERFLOWS),
        ):
            if value not in known:
                raise NumsimError(
                    f"Quant: {what} is one of {', '.join(known)}; got {value!r}"
                    f"{near_names(str(value), known)}"
                )
        if (granularity == "per_block") != (self.block is not None):
            raise NumsimError(
                f"Quant: granularity per_block and block go together; got {granularity!r} with "
                f"block={self.block!r}"
            )
        if named in CLIP_RULES and (
            granularity in ("none", "per_block") or not self.overflow.startswith("saturate")
        ):
            raise NumsimError(
                f"Quant: scale_rule {rule} clips and saturates a tensor, row or token; got "
                f"granularity={granularity!r}, overflow={self.overflow!r}; use amax there"
            )
        if self.scale is not None:
            object.__setattr__(self, "scale", _fixed_scale(self))

    @property
    def fmt(self) -> Format:
        """The element `Format`."""
        return self._fmt  # type: ignore[attr-defined,no-any-return]

    def stored_bits(self, rows: int, columns: int) -> float:
        """Return the bits that a [rows, columns] matrix takes, quantised along its columns.

        Examples
        --------
        >>> Quant("int8", "per_token").stored_bits(2, 64) / (2 * 64)
        8.5
        """
        if self.granularity == "none":
            scales = 0
        elif self.granularity == "per_tensor":
            scales = 1
        else:
            down, across = (1, columns)
            if self.block is not None:
                down, across = self.block if isinstance(self.block, tuple) else (1, self.block)
            scales = -(-rows // down) * -(-columns // across)
        above = 32 if self.scale_format == "float8_e4m3fn" else 0  # one scale for the tensor
        return rows * columns * self.fmt.bits + scales * SCALE_BITS[self.scale_format] + above


def _fixed_scale(quant: Quant) -> float:
    """Return the scale of a Quant that fixes one, rounded to float32."""
    given = quant.scale
    one = isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool)
    above = quant.scale_format == "float8_e4m3fn"
    with np.errstate(over="ignore"):
        value = float(np.float32(given)) if one and given is not None else 0.0
    if not 0 < value < math.inf:
        raise NumsimError(f"Quant: scale is a number above 0 that float32 has; got {given!r:.60}")
    if not above and (quant.granularity != "per_tensor" or quant.scale_format != "float32"):
        raise NumsimError(
            "Quant: a fixed scale is that of a tensor, granularity per_tensor, or the one above "
            f"float8_e4m3fn block scales; got granularity={quant.granularity!r}, scale_format="
            f"{quant.scale_format!r}; give scales of parts to QTensor.from_codes"
        )
    return value


def scale_format_name(word: Any) -> Any:
    """Return the canonical name of a scale format; other words, which `Quant` refuses, as they are.

    Examples
    --------
    >>> scale_format_name("e8m0"), scale_format_name("pow2")
    ('float8_e8m0fnu', 'pow2')
    """
    with suppress(NumsimError):
        return format_name(word, "Quant: scale_format")
    return word


def percentile(rule: str) -> Fraction | None:
    """Return P of ``percentile:P``, 0 < P <= 100; None for another rule.

    Examples
    --------
    >>> percentile("percentile:99.9"), percentile("percentile:0"), percentile("amax")
    (Fraction(999, 10), None, None)
    """
    head, _, text = str(rule).partition(":")
    if head != "percentile" or not text.replace(".", "", 1).isdecimal() or not text.isascii():
        return None
    value = Fraction(text)
    return value if 0 < value <= 100 else None


def _block(block: object) -> int | tuple[int, int]:
    sizes = block if isinstance(block, tuple | list) else (block,)
    if not (len(sizes) in (1, 2) and all(is_integer(b) and 1 <= b < 1 << 31 for b in sizes)):
        raise NumsimError(
            f"Quant: block is a positive integer below 2**31 or (rows, columns); got {block!r:.60}"
        )
    whole = [int(b) for b in sizes]
    return (whole[0], whole[1]) if len(whole) == 2 else whole[0]


@known_floats
@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantised tensor: value = scale x decode(code).

    `scale` is None for bare codes, broadcasts against the codes, or, with `block_shape`, has one
    entry for each block (ceil(size / block) along every axis). `tensor_scale` multiplies on top.
    Made by `numsim.quantize` or `QTensor.from_codes`, which copies what it is given. The first
    product makes codes and scales read-only, since `packed` keeps what products know of them;
    q.codes.copy() can be changed. Arrays given to the constructor itself belong to the tensor: with
    them the arrays that they are views of become read-only. Other views of that memory, made
    before, stay writable and are not to be written.
    """

    codes: NDArray[Any]
    fmt: Format
    scale: NDArray[np.float32] | None = None
    quant: Quant | None = None
    block_shape: tuple[int, ...] | None = None
    scale_codes: NDArray[Any] | None = None
    scale_format: Format | None = None
    tensor_scale: np.float32 | None = None
    zero_point: NDArray[Any] | None = None
    packed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:  # dataclasses.replace hands on what belongs to other codes
        object.__setattr__(self, "packed", {})

    def __repr__(self) -> str:
        scale = "no scale" if self.scale is None else f"scale {list(self.scale.shape)}"
        return f"QTensor({self.fmt.label} {list(self.codes.shape)}, {scale})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the dequantised values: what ``np.asarray(q)`` is."""
        if copy is False:
            raise ValueError("QTensor: its values are computed; no array exists without a copy")
        values: NDArray[Any] = self.dequantize()
        return values if dtype is None else values.astype(dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **how: Any) -> Any:
        if ufunc is np.matmul:
            raise self._no_target()
        plain = (x.dequantize() if isinstance(x, QTensor) else x for x in inputs)
        return getattr(ufunc, method)(*plain, **how)

    def __matmul__(self, other: object) -> NDArray[Any]:
        raise self._no_target()

    __rmatmul__ = __matmul__

    @staticmethod
    def _no_target() -> NumsimError:
        return NumsimError(
            "QTensor: @ does not say which unit multiplies; use numsim.matmul(a, b, target=...), "
            "or np.asarray(a) @ np.asarray(b) for the product of dequantised values"
        )

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, key: Any) -> QTensor:
        """Return a part with its scales: integers and slices, whole blocks where there are any.

        Examples
        --------
        >>> from numsim.quant import quantize
        >>> q = quantize(np.ones((3, 2, 64)), "mxfp4_e2m1")
        >>> q[1:], q[0, :, 32:]
        (QTensor(float4_e2m1fn [2, 2, 64], scale [2, 2, 2]),
         QTensor(float4_e2m1fn [2, 32], scale [2, 1]))
        """
        parts, (scale, kept), blocks = cut(
            key, self.shape, (self.scale, self.scale_codes), self.block_shape
        )
        codes = np.asarray(readable(self)[parts])
        shown = codes if self.codes.flags.writeable else _shown(codes)
        part = replace(self, codes=shown, scale=scale, scale_codes=kept, block_shape=blocks)
        part.packed["codes"] = [codes]
        return part

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes where it is stored: `bits_per_value`, scales included.

        Codes of fewer than 8 bits are counted packed, though `codes` holds each in a byte.
        """
        return math.ceil(self.bits_per_value() * self.codes.size / 8)

    @classmethod
    def from_codes(
        cls,
        codes: ArrayLike,
        fmt: FormatLike,
        *,
        scale: ArrayLike | None = None,
        scale_codes: ArrayLike | None = None,
        scale_format: FormatLike | None = None,
        block: int | None = None,
        axis: int = -1,
    ) -> QTensor:
        """Wrap existing codes.

        Parameters
        ----------
        codes
            Bit patterns (floats) or values (integers) of `fmt`, any shape.
        scale
            float32 array that broadcasts against the codes, or has one entry for each block of
            `block` values along `axis`. None: no scale.
        scale_codes, scale_format
            The same as codes of a format (``float8_e8m0fnu``, ``float8_e4m3fn``).
        block, axis
            Values that share a scale, and along which axis.

        Raises
        ------
        NumsimError
            For codes outside the format or scales of the wrong shape.

        Examples
        --------
        >>> QTensor.from_codes([[0x38, 0xC0]], "e4m3", scale=0.5).dequantize()
        array([[ 0.5, -1. ]], dtype=float32)
        """
        f = get_format(fmt)
        array = checked_codes(as_array("from_codes: codes", codes), f).astype(f.code_dtype)
        if scale is not None and scale_codes is not None:
            raise NumsimError("from_codes: give scale or scale_codes, not both")
        if (scale_codes is None) != (scale_format is None):
            raise NumsimError("from_codes: scale_codes and scale_format go together")
        kept, kept_format = None, None
        if scale_codes is not None and scale_format is not None:
            kept_format = get_format(scale_format)
            kept = as_array("from_codes: scale_codes", scale_codes)
            scale = np.abs(decode(kept, kept_format))  # units ignore the sign of an E4M3 scale
            kept = kept.astype(kept_format.code_dtype)
        given = None if scale is None else as_array("from_codes: scale", scale)
        try:
            with np.errstate(over="ignore"):
                if given is not None and given.dtype.kind == "c":
                    raise TypeError
                values = None if given is None else np.array(given, np.float32)
        except (TypeError, ValueError, OverflowError):
            raise NumsimError("from_codes: scale is a real number or an array of them") from None
        if values is not None and np.isinf(values).any():
            raise NumsimError("from_codes: scales are finite in float32 (NaN: a NaN block)")
        shape = None
        if block is not None:
            if values is None:
                raise NumsimError("from_codes: block needs scale or scale_codes")
            whole = is_integer(block) and is_integer(axis)
            if not whole or not -array.ndim <= axis < array.ndim or not 1 <= block < 1 << 31:
                raise NumsimError(
                    f"from_codes: block is positive and axis one of {array.ndim} axes; got "
                    f"block={block!r}, axis={axis}"
                )
            sizes = [1] * array.ndim
            sizes[axis] = int(block)
            shape = tuple(sizes)
            want = tuple(-(-n // b) for n, b in zip(array.shape, shape, strict=True))
            if values.shape != want:
                raise NumsimError(
                    f"from_codes: blocks of {block} along axis {axis} of {array.shape} need scales "
                    f"of shape {want}; got {values.shape}"
                )
        elif values is not None:
            try:
                fits = np.broadcast_shapes(values.shape, array.shape) == array.shape
            except ValueError:
                fits = False
            if not fits:
                raise NumsimError(
                    f"from_codes: a scale broadcasts against the codes; got scale {values.shape} "
                    f"for codes {array.shape}"
                )
        return cls(array, f, values, None, shape, kept, kept_format)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.codes.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.codes.ndim

    @property
    def T(self) -> QTensor:
        """The tensor with its last two axes swapped (a read-only view); it has two at least."""
        if self.ndim < 2:
            raise NumsimError(f"QTensor.T: swaps the last two axes; the shape is {self.shape}")
        scale, shape = self.scale, self.block_shape
        if shape is not None:
            shape = (*shape[:-2], shape[-1], shape[-2])
        if scale is not None and scale.ndim:
            full = scale.reshape((1,) * (self.ndim - scale.ndim) + scale.shape)
            scale = np.swapaxes(full, -1, -2)
        kept = self.scale_codes
        if kept is not None and kept.ndim >= 2:
            kept = np.swapaxes(kept, -1, -2)
        codes = np.swapaxes(readable(self), -1, -2)
        turned = replace(
            self, codes=_shown(codes), scale=_shown(scale), block_shape=shape,
            scale_codes=_shown(kept),
        )  # fmt: skip
        turned.packed["codes"] = [codes]
        return turned

    def values(self) -> NDArray[Any]:
        """Return the decoded codes without the scale, read-only."""
        used = "locked" in self.packed  # by a product: they cannot change
        values: NDArray[Any] = _shown(decoded(self) if used else decode(self.codes, self.fmt))
        return values

    def element_scale(self) -> NDArray[np.float32] | None:
        """Return the stored scales so that they broadcast against the codes."""
        scale = self.scale
        if scale is None or self.block_shape is None:
            return scale
        for axis, (size, block) in enumerate(zip(self.shape, self.block_shape, strict=True)):
            if block > 1:
                scale = np.repeat(scale, min(block, size), axis)  # of one long block no more
                scale = scale[(slice(None),) * axis + (slice(size),)]
        return scale

    def dequantize(self) -> NDArray[np.float32]:
        """Return scale x decode(code) in float32 (one rounding for each value).

        Examples
        --------
        >>> from numsim.quant import quantize
        >>> quantize([1.0, -3.0, 2.0], "int4").dequantize()
        array([ 0.85714287, -3.        ,  2.142857  ], dtype=float32)
        """
        values = decode(readable(self), self.fmt)
        scale = self.element_scale()
        if self.zero_point is not None:
            values = values - replace(self, scale=self.zero_point).element_scale()
        if scale is None:
            with np.errstate(over="ignore", under="ignore"):
                return np.asarray(values.astype(np.float32))
        factor = scale.astype(np.float64)
        if self.tensor_scale is not None:
            factor = factor * np.float64(self.tensor_scale)  # 4 by 24 bits
        with np.errstate(all="ignore"):
            exact = values.astype(np.float64) * factor
            if values.dtype == np.float64:  # of more than 24 bits: the product has more than 53
                exact = product_to_odd(values, np.broadcast_to(factor, values.shape))
            return np.asarray(exact.astype(np.float32))

    def bits_per_value(self) -> float:
        """Return stored bits for each value, scales included.

        Examples
        --------
        >>> from numsim.quant import quantize
        >>> quantize(np.ones((4, 64)), "mxfp4_e2m1").bits_per_value()
        4.25
        """
        bits = float(self.fmt.bits)
        size = max(math.prod(self.shape), 1)
        if self.scale is not None and (self.quant is None or self.quant.granularity != "none"):
            name = "float32" if self.quant is None else self.quant.scale_format
            if self.scale_format is not None:
                name = self.scale_format.name
            bits += SCALE_BITS.get(name, 32) * self.scale.size / size
        return bits + (32 / size if self.tensor_scale is not None else 0.0)


def _shown(array: Any) -> Any:
    """Return a read-only view of an array (None: None)."""
    if array is None:
        return None
    view = array.view()
    view.flags.writeable = False
    return view


def readable(q: QTensor) -> NDArray[Any]:
    """Return the codes for kernels, which are compiled for arrays that may be written (none is).

    A list in `packed` holds the view that was made before the codes became read-only: its memory
    is that of the codes and counts once.
    """
    codes: NDArray[Any] = q.packed.get("codes", [q.codes])[0]
    return codes


def decoded(q: QTensor) -> NDArray[Any]:
    """Return the values of the codes without the scale, kept: weights are decoded once."""
    if "values" not in q.packed:
        codes = readable(q)
        turned = codes.ndim > 1 and codes.swapaxes(-1, -2).flags.c_contiguous
        if turned:  # decoded as they lie in memory
            q.packed["values"] = decode(codes.swapaxes(-1, -2), q.fmt).swapaxes(-1, -2)
        else:
            q.packed["values"] = decode(codes, q.fmt)
    kept: NDArray[Any] = q.packed["values"]
    return kept
