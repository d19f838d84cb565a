"""A tensor as it is stored: codes and scales."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, is_integer
from numsim.convert import checked_codes, decode
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, get_format
from numsim.quant.four_bits import if4_values
from numsim.quant.kept import Key, has, kept, known
from numsim.quant.odd import product_to_odd
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import scale_bits
from numsim.quant.slices import cut


@known_floats
@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantised tensor: value = scale x (decode(code) - zero point).

    `scale` is None for bare codes, broadcasts against the codes, or, with `block_shape`, has one
    entry for each block (ceil(size / block) along every axis). `tensor_scale` multiplies on top.
    `zero_point`, of integers, is an int32 array in the shape of `scale`, or None.
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
    tensor_scale: Any = None  # float32, or an array of one for each row
    zero_point: NDArray[np.int32] | None = None
    packed: dict[Key, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:  # dataclasses.replace hands on what belongs to other codes
        object.__setattr__(self, "packed", {})

    def __repr__(self) -> str:
        scale = "no scale" if self.scale is None else f"scale {list(self.scale.shape)}"
        if self.zero_point is not None:
            scale += f", zero point {list(self.zero_point.shape)}"
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
        parts, (scale, kept, zeros), blocks = cut(
            key, self.shape, (self.scale, self.scale_codes, self.zero_point), self.block_shape
        )
        codes = np.asarray(readable(self)[parts])
        above = self.tensor_scale
        if np.ndim(above):
            above = cut(key, self.shape, (above,), None)[1][0]
        shown = codes if self.codes.flags.writeable else _shown(codes)
        part = replace(
            self, codes=shown, scale=scale, scale_codes=kept, zero_point=zeros, block_shape=blocks,
            tensor_scale=above,
        )  # fmt: skip
        part.packed[Key("codes")] = [codes]
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
        zero_point: ArrayLike | None = None,
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
        zero_point
            Integers, of integer formats: value = (code - zero point) x scale. In the shapes that
            `scale` may have.

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
        zeros = None if zero_point is None else _zero_points(zero_point, f, array, values, shape)
        return cls(array, f, values, None, shape, kept, kept_format, zero_point=zeros)

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
        shape = self.block_shape
        if shape is not None:
            shape = (*shape[:-2], shape[-1], shape[-2])
        scale, zeros, above = (
            x if x is None or not x.ndim
            else np.swapaxes(x.reshape((1,) * (self.ndim - x.ndim) + x.shape), -1, -2)
            for x in (self.scale, self.zero_point, self.tensor_scale)
        )  # fmt: skip
        kept = self.scale_codes
        if kept is not None and kept.ndim >= 2:
            kept = np.swapaxes(kept, -1, -2)
        codes = np.swapaxes(readable(self), -1, -2)
        turned = replace(
            self, codes=_shown(codes), scale=_shown(scale), block_shape=shape,
            scale_codes=_shown(kept), zero_point=_shown(zeros),
            tensor_scale=above,
        )  # fmt: skip
        turned.packed[Key("codes")] = [codes]
        if has(self, "locked"):  # what is known of codes that stay
            for key in {Key("survey"), Key("finite")} & self.packed.keys():
                turned.packed[key] = self.packed[key]
        return turned

    def values(self) -> NDArray[Any]:
        """Return the decoded codes, less their zero points, without the scale; read-only."""
        used = has(self, "locked")  # by a product: they cannot change
        values: NDArray[Any] = decoded(self) if used else decode(self.codes, self.fmt)
        if self.zero_point is not None:
            values = values - np.asarray(self.element_zero_point(), values.dtype)
        return np.asarray(_shown(values))

    def element_scale(self) -> NDArray[np.float32] | None:
        """Return the stored scales so that they broadcast against the codes."""
        found: NDArray[np.float32] | None = self._of_elements(self.scale)
        return found

    def element_zero_point(self) -> NDArray[np.int32] | None:
        """Return the zero points so that they broadcast against the codes."""
        found: NDArray[np.int32] | None = self._of_elements(self.zero_point)
        return found

    def _of_elements(self, scale: NDArray[Any] | None) -> Any:
        if scale is None or self.block_shape is None:
            return scale
        for axis, (size, block) in enumerate(zip(self.shape, self.block_shape, strict=True)):
            if block > 1:
                scale = np.repeat(scale, min(block, size), axis)  # of one long block no more
                scale = scale[(slice(None),) * axis + (slice(size),)]
        return scale

    def dequantize(self) -> NDArray[np.float32]:
        """Return scale x (decode(code) - zero point) in float32 (one rounding for each value).

        Examples
        --------
        >>> from numsim.quant import quantize
        >>> quantize([1.0, -3.0, 2.0], "int4").dequantize()
        array([ 0.85714287, -3.        ,  2.142857  ], dtype=float32)
        """
        if self.quant is not None and self.quant.scale_rule == "if4":
            return self._if4_values()
        values = decode(readable(self), self.fmt)
        if self.zero_point is not None:
            values = values - np.asarray(self.element_zero_point(), values.dtype)  # 18 bits
        scale = self.element_scale()
        if scale is None:
            with np.errstate(over="ignore", under="ignore"):
                return np.asarray(values.astype(np.float32))
        factor = scale.astype(np.float64)
        if self.tensor_scale is not None:
            factor = factor * np.asarray(self.tensor_scale, np.float64)  # 4 by 24 bits
        with np.errstate(all="ignore"):
            exact = values.astype(np.float64) * factor
            if values.dtype == np.float64:  # of more than 24 bits: the product has more than 53
                exact = product_to_odd(values, np.broadcast_to(factor, values.shape))
            return np.asarray(exact.astype(np.float32))

    def _if4_values(self) -> NDArray[np.float32]:
        kept = self._of_elements(self.scale_codes)
        integers = (kept & 0x80) != 0
        scale = decode(kept & 0x7F, str(self.quant.scale_format))  # type: ignore[union-attr]
        above = 1.0 if self.tensor_scale is None else self.tensor_scale
        return if4_values(readable(self), scale, above, integers)

    def bits_per_value(self) -> float:
        """Return stored bits for each value, scales included.

        Examples
        --------
        >>> from numsim.quant import quantize
        >>> quantize(np.ones((4, 64)), "mxfp4_e2m1").bits_per_value()
        4.25
        """
        size = max(math.prod(self.shape), 1)
        above = 0.0 if self.tensor_scale is None else 32 * np.size(self.tensor_scale) / size
        if self.quant is not None and self.quant.scale_rule in ("if4", "hif4"):
            scales = 0 if self.scale is None else self.scale.size
            return self.quant.fmt.bits + self.quant.bits_of_scale * scales / size + above
        bits = float(self.fmt.bits)
        if self.scale is not None and (self.quant is None or self.quant.granularity != "none"):
            name = "float32" if self.quant is None else self.quant.scale_format
            if self.scale_format is not None:
                name = self.scale_format.name
            bits += scale_bits(name) * self.scale.size / size
        if self.zero_point is not None:
            bits += self.fmt.bits * self.zero_point.size / size
        return bits + above


def _zero_points(
    given: ArrayLike, f: Format, codes: NDArray[Any], scale: NDArray[Any] | None,
    blocks: tuple[int, ...] | None,
) -> NDArray[np.int32]:  # fmt: skip
    """Return zero points that are integers, one or as many as there are scales."""
    if f.kind != "integer" or f.bias:
        raise NumsimError(
            f"from_codes: zero points are for integers; got {f.label}; leave zero_point out"
        )
    zeros = as_array("from_codes: zero_point", given)
    if zeros.dtype.kind not in "iu" or (zeros.size and int(np.abs(zeros).max()) >= 1 << 17):
        raise NumsimError(
            "from_codes: zero points are integers below 2**17 in magnitude; got "
            f"{zeros.dtype}{'' if zeros.dtype.kind in 'iu' else '; round them first'}"
        )
    want = codes.shape if scale is None or blocks is None else scale.shape
    try:
        fits = np.broadcast_shapes(zeros.shape, want) == want
    except ValueError:
        fits = False
    if not fits:
        raise NumsimError(
            "from_codes: zero_point broadcasts against the "
            f"{'codes' if blocks is None else 'scales'}, {want}; got {zeros.shape}"
        )
    wide = zeros.astype(np.int32)
    return np.array(wide if blocks is None else np.broadcast_to(wide, want))


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
    seen = known(q, "codes")
    codes: NDArray[Any] = q.codes if seen is None else seen[0]
    return codes


def decoded(q: QTensor) -> NDArray[Any]:
    """Return the values of the codes without the scale, kept: weights are decoded once."""

    def made() -> NDArray[Any]:
        codes = readable(q)
        turned = codes.ndim > 1 and codes.swapaxes(-1, -2).flags.c_contiguous
        if turned:  # decoded as they lie in memory
            return decode(codes.swapaxes(-1, -2), q.fmt).swapaxes(-1, -2)
        return decode(codes, q.fmt)

    values: NDArray[Any] = kept(q, "values", made)
    return values
