"""How a tensor is to be stored: `Quant` says it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from numsim.arguments import is_integer
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, format_name, get_format, kept_format
from numsim.vocabulary import OVERFLOWS, ROUNDINGS

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
    zero_point
        Integers: the range of the values, not their largest magnitude, maps to the codes, and
        value = (code - zero point) x scale, see `numsim.quant.affine`.

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
        self._check_zero_point(fmt)

    def _check_zero_point(self, fmt: Format) -> None:
        if self.zero_point not in (True, False):
            raise NumsimError(f"Quant: zero_point is True or False; got {self.zero_point!r:.60}")
        object.__setattr__(self, "zero_point", bool(self.zero_point))
        if not self.zero_point:
            return
        if fmt.kind != "integer" or fmt.bias or fmt.bits > 16:
            raise NumsimError(
                f"Quant: zero points are for integers of up to 16 bits; got {fmt.label}; leave "
                "zero_point out, or use int8, uint4 ..."
            )
        plain = self.scale_format == "float32" and self.scale_rule == "amax"
        if not plain or self.granularity == "none" or self.overflow != "saturate":
            raise NumsimError(
                "Quant: with a zero point the scale is float32, of the whole range, and codes "
                f"saturate; got scale_format={self.scale_format!r}, "
                f"scale_rule={self.scale_rule!r}, granularity={self.granularity!r}, "
                f"overflow={self.overflow!r}"
            )

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
        each = SCALE_BITS[self.scale_format] + (self.fmt.bits if self.zero_point else 0)
        return rows * columns * self.fmt.bits + scales * each + above


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
