"""How a tensor is stored: `Quant` says it, `QTensor` is one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.convert import OVERFLOWS, ROUNDINGS, decode
from numsim.errors import NumsimError, UnsupportedError, near_names
from numsim.formats import Format, get_format

GRANULARITIES = ("none", "per_tensor", "per_channel", "per_token", "per_block")


@dataclass(frozen=True)
class Quant:
    """A storage rule: format, scale granularity, scale rule, rounding, overflow.

    Parameters
    ----------
    format
        Element format; kept as its canonical name.
    granularity
        ``none`` (scale 1, a raw cast: the default of fixed point), ``per_tensor`` (the default
        of everything else), ``per_channel`` (one scale a weight row), ``per_token`` (one scale an
        activation row). The last two are the same arithmetic under the names of the two operands.
    scale_format
        ``float32``: the format in which the scale is kept.
    scale_rule
        ``amax``: the largest magnitude maps to the format's maximum, scale = amax / max.
    rounding, overflow
        As in `numsim.encode`.

    Raises
    ------
    NumsimError
        For an unknown word.

    Examples
    --------
    >>> Quant("e4m3")
    Quant(format='float8_e4m3fn', granularity='per_tensor', ...)
    >>> Quant("q3.4").granularity
    'none'
    """

    format: str | Format
    granularity: str | None = None
    block: int | tuple[int, int] | None = None
    scale_format: str = "float32"
    scale_rule: str = "amax"
    rounding: str = "rne"
    overflow: str = "saturate"

    def __post_init__(self) -> None:
        fmt = get_format(self.format)
        object.__setattr__(self, "format", fmt.name)
        fixed_point = fmt.kind == "integer" and fmt.bias != 0
        granularity = self.granularity or ("none" if fixed_point else "per_tensor")
        object.__setattr__(self, "granularity", granularity)
        for what, value, known in (
            ("granularity", granularity, GRANULARITIES),
            ("rounding", self.rounding, ROUNDINGS),
            ("overflow", self.overflow, OVERFLOWS),
        ):
            if value not in known:
                raise NumsimError(
                    f"Quant: {what} is one of {', '.join(known)}; got {value!r}"
                    f"{near_names(str(value), known)}"
                )
        if granularity == "per_block" or self.block is not None:
            raise UnsupportedError(
                "Quant: block scales are not implemented yet; use per_tensor, per_channel, "
                "per_token or none"
            )
        if self.scale_format != "float32" or self.scale_rule != "amax":
            raise UnsupportedError(
                "Quant: scales are float32 by the amax rule for now; got "
                f"scale_format={self.scale_format!r}, scale_rule={self.scale_rule!r}"
            )

    @property
    def fmt(self) -> Format:
        """The element `Format`."""
        return get_format(self.format)

    def bits_per_value(self, size: int, scales: int) -> float:
        """Return stored bits for each of `size` values with `scales` float32 scales."""
        extra = 0 if self.granularity == "none" else 32 * scales
        return self.fmt.bits + extra / max(size, 1)


def as_quant(quant: str | Format | Quant) -> Quant:
    """Return a `Quant`: itself, or the default one of a format (per tensor; fixed point: none).

    Examples
    --------
    >>> as_quant("int8").granularity
    'per_tensor'
    """
    return quant if isinstance(quant, Quant) else Quant(quant)


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantised tensor: value = scale x decode(code).

    `scale` broadcasts against the codes (one entry along `axis`), or is None for bare codes.
    Made by `numsim.quantize` or `QTensor.from_codes`.
    """

    codes: NDArray[Any]
    fmt: Format
    scale: NDArray[np.float32] | None = None
    quant: Quant | None = None
    packed: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_codes(
        cls,
        codes: ArrayLike,
        fmt: str | Format,
        *,
        scale: ArrayLike | None = None,
        scale_codes: ArrayLike | None = None,
        scale_format: str | Format | None = None,
        block: int | None = None,
        axis: int = -1,
    ) -> QTensor:
        """Wrap existing codes.

        Parameters
        ----------
        codes
            Bit patterns (floats) or values (integers) of `fmt`, any shape.
        scale
            float32 array that broadcasts against the codes; None: no scale.

        Raises
        ------
        NumsimError
            For codes outside the format or a scale that does not broadcast.

        Examples
        --------
        >>> QTensor.from_codes([[0x38, 0xC0]], "e4m3", scale=0.5).dequantize()
        array([[ 0.5, -1. ]], dtype=float32)
        """
        f = get_format(fmt)
        if scale_codes is not None or scale_format is not None or block is not None:
            raise UnsupportedError("from_codes: block scales are not implemented yet; pass scale=")
        array = np.asarray(codes)
        decode(array, f)  # validates type and range
        array = array.astype(f.code_dtype)
        kept = None
        if scale is not None:
            kept = np.asarray(scale, np.float32)
            try:
                if np.broadcast_shapes(kept.shape, array.shape) != array.shape:
                    raise ValueError
            except ValueError:
                raise NumsimError(
                    f"from_codes: a scale broadcasts against the codes; got scale {kept.shape} "
                    f"for codes {array.shape}"
                ) from None
        return cls(array, f, kept)

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
        """The tensor with its last two axes swapped (a view)."""
        scale = self.scale
        if scale is not None and scale.ndim:
            full = scale.reshape((1,) * (self.ndim - scale.ndim) + scale.shape)
            scale = np.swapaxes(full, -1, -2)
        return QTensor(np.swapaxes(self.codes, -1, -2), self.fmt, scale, self.quant)

    def values(self) -> NDArray[Any]:
        """Return the decoded codes without the scale (kept: weights are decoded once)."""
        if "values" not in self.packed:
            self.packed["values"] = decode(self.codes, self.fmt)
        kept: NDArray[Any] = self.packed["values"]
        return kept

    def dequantize(self) -> NDArray[np.float32]:
        """Return scale x decode(code) in float32 (one rounding for each value).

        Examples
        --------
        >>> from numsim.quant import quantize
        >>> quantize([1.0, -3.0, 2.0], "int4").dequantize()
        array([ 0.85714287, -3.        ,  2.142857  ], dtype=float32)
        """
        values = decode(self.codes, self.fmt)
        if self.scale is None:
            return values.astype(np.float32)
        exact = values.astype(np.float64) * self.scale.astype(np.float64)
        return exact.astype(np.float32)
