"""How a tensor is to be stored: `Quant` says it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from numsim.arguments import P3109, is_integer
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, get_format, kept_format
from numsim.quant.scale_rules import (
    CHOICE_RULES,
    CLIP_RULES,
    POW2_FORMATS,
    check_scale_format,
    has_two_levels,
    rule_name,
    rules_of,
    scale_bits,
    scale_format_name,
)
from numsim.vocabulary import OVERFLOWS, ROUNDINGS

GRANULARITIES = ("none", "per_tensor", "per_channel", "per_token", "per_block")
TENSOR_SCALES = (None, "per_tensor", "per_token")


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
        ``float32``, ``pow2`` (a power of two in float32), or any float format: ``bfloat16``,
        ``float16``, ``float8_e8m0fnu`` (powers of two). Those of less than 16 bits, as
        ``float8_e4m3fn`` of NVFP4 or ``float8_ue5m3``, have `tensor_scale` on top.
    scale_rule
        ``amax``: the largest magnitude maps to the format's maximum; ``amax:1200``: that or 1200,
        whichever is smaller, as FBGEMM's ``activation_scale_ub`` says. ``amax_half``, of integers:
        to half of the span of the codes, 127.5 of int8 (torchao's and compressed-tensors'
        "symmetric"). ``mse``, ``percentile:99.9``, ``kl``: the scale of least squared error, or
        a smaller magnitude maps there, and what is beyond it saturates (see
        `numsim.quant.clip`). Powers of two: ``floor`` (OCP MX: floor(log2 amax) - emax), ``ceil``,
        ``even`` (floor after rounding amax to the element's precision), ``rceil`` (smallest power
        of two that clips nothing), ``midmax`` (rceil, unless amax is nearer to the largest value
        than to the next power of two), ``mse``. E2M1 under E4M3 scales: ``4over6:mae``,
        ``4over6:mse``, ``if4`` (see `numsim.quant.four_bits`). ``hif4``: that format's own.
    rounding, overflow
        As in `numsim.encode`, under P3109's names too. Searches for scales round to nearest.
    zero_point
        Integers: the range of the values, not their largest magnitude, maps to the codes, and
        value = (code - zero point) x scale, see `numsim.quant.affine`.
    tensor_scale
        The float32 scale above narrow block scales: ``per_tensor``, ``per_token`` (one a row), or
        None: there is none. Other scale formats have none.
    scale_max
        The block scale to which the tensor's largest block maps under `tensor_scale`; None: the
        format's largest, 448 of E4M3, or 256 under ``4over6``.
    scale
        A fixed scale in place of one from amax, as checkpoints store it for activations: of the
        tensor (per_tensor), or `tensor_scale` itself. What is beyond its reach overflows. Kept as
        the float32 number that it is used as.

    Raises
    ------
    NumsimError
        For an unknown word or a contradiction.

    Source
    ------
    OCP MX 1.0 section 6.3 (floor); torchao's ScaleCalculationMode (ceil, even, rceil); Brevitas
    0.13.4 (midmax); NVIDIA, Pretraining LLMs with NVFP4, arXiv 2509.25149 (two levels).

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
    tensor_scale: str | None = "per_tensor"
    scale_max: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", kept_format(self.format))
        for name in (
            "granularity", "scale_format", "scale_rule", "rounding", "overflow", "tensor_scale",
        ):  # fmt: skip
            if isinstance(word := getattr(self, name), np.ndarray):  # has no truth value
                raise NumsimError(f"Quant: {name} is a word; got an array {list(word.shape)}")
        if isinstance(self.overflow, str):
            object.__setattr__(self, "overflow", P3109.get(self.overflow, self.overflow))
        if self.tensor_scale == "none":  # as TOML says it
            object.__setattr__(self, "tensor_scale", None)
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
        check_scale_format(self.scale_format)
        usual = {"float8_ue6m2": "hif4", **dict.fromkeys(POW2_FORMATS, "floor")}
        rule = self.scale_rule or usual.get(self.scale_format, "amax")
        object.__setattr__(self, "scale_rule", rule)
        named = rule_name(rule)
        for what, value, known in (
            ("granularity", granularity, GRANULARITIES),
            (
                f"scale_rule for {self.scale_format} scales",
                named,
                rules_of(self.scale_format, fmt),
            ),
            ("rounding", self.rounding, ROUNDINGS),
            ("overflow", self.overflow, OVERFLOWS),
            ("tensor_scale", self.tensor_scale, TENSOR_SCALES),
        ):
            if value not in known:
                raise NumsimError(
                    f"Quant: {what} is one of {', '.join(map(str, known))}; got {value!r}"
                    f"{near_names(str(value), map(str, known))}"
                )
        if (granularity == "per_block") != (self.block is not None):
            raise NumsimError(
                f"Quant: granularity per_block and block go together; got {granularity!r} with "
                f"block={self.block!r}"
            )
        if named in CLIP_RULES and (
            granularity == "none" or not self.overflow.startswith("saturate")
        ):
            raise NumsimError(
                f"Quant: scale_rule {rule} clips and saturates; got granularity={granularity!r}, "
                f"overflow={self.overflow!r}; use amax there"
            )
        self._check_levels()
        self._check_zero_point(fmt)
        if self.scale is not None:
            object.__setattr__(self, "scale", _fixed_scale(self))

    def _check_levels(self) -> None:
        """Refuse two levels of scales where there is one, and choices without blocks."""
        two = has_two_levels(self.scale_format)
        if self.scale_max is not None:
            number = isinstance(self.scale_max, int | float) and not isinstance(
                self.scale_max, bool
            )
            most = get_format(self.scale_format).max if two else 0
            if not number or self.tensor_scale is None or not 0 < self.scale_max <= most:
                raise NumsimError(
                    "Quant: scale_max is a positive scale of a narrow scale_format, with a "
                    f"tensor_scale above it; got {self.scale_max!r:.40} for {self.scale_format} "
                    f"scales up to {most:g}, tensor_scale={self.tensor_scale!r}"
                )
        if self.tensor_scale == "per_token" and (not two or isinstance(self.block, tuple)):
            raise NumsimError(
                "Quant: tensor_scale per_token stands above narrow scales of blocks along a row; "
                f"got scale_format={self.scale_format!r}, block={self.block!r}"
            )
        along = isinstance(self.block, int)
        if self.scale_rule in (*CHOICE_RULES, "hif4") and not (
            along and self.overflow == "saturate"
        ):
            raise NumsimError(
                f"Quant: scale_rule {self.scale_rule} is for blocks along an axis that saturate; "
                f"got block={self.block!r}, overflow={self.overflow!r}"
            )
        if self.scale_rule in ("if4", "hif4") and self.rounding != "rne":
            raise NumsimError(
                f"Quant: {self.scale_rule} rounds to nearest; got rounding={self.rounding!r}"
            )
        if self.scale_rule == "hif4" and self.block != 64:
            raise NumsimError(f"Quant: hif4 has blocks of 64; got block={self.block!r}")

    def _check_zero_point(self, fmt: Format) -> None:
        if self.zero_point not in (True, False):
            raise NumsimError(f"Quant: zero_point is True or False; got {self.zero_point!r:.60}")
        object.__setattr__(self, "zero_point", bool(self.zero_point))
        if not self.zero_point:
            if fmt.max <= 0 and self.granularity != "none":
                raise NumsimError(
                    f"Quant: the largest value of {fmt.label} is {fmt.max:g}, to which nothing "
                    "scales; use granularity='none' or zero_point=True"
                )
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

    def __hash__(self) -> int:  # kernels and stored weights are looked up by it in every product
        known = self.__dict__.get("_hash")
        if known is None:
            known = hash(tuple(getattr(self, field.name) for field in fields(self)))
            object.__setattr__(self, "_hash", known)
        return int(known)

    def __getstate__(self) -> dict[str, Any]:  # another process hashes words otherwise
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    @property
    def fmt(self) -> Format:
        """The element `Format`."""
        return self._fmt  # type: ignore[attr-defined,no-any-return]

    @property
    def above(self) -> str | None:
        """Which values share the float32 scale above narrow block scales; None: there is none."""
        single = self.scale_rule == "hif4" or not has_two_levels(self.scale_format)
        return None if single else self.tensor_scale

    @property
    def has_one_scale(self) -> bool:
        """Whether a float32 scale is the tensor's alone, so that `scale` can fix it.

        Examples
        --------
        >>> [Quant("int8", how).has_one_scale for how in ("per_tensor", "per_token")]
        [True, False]
        """
        plain = self.granularity == "per_tensor" and self.scale_format == "float32"
        return not self.zero_point and (plain or self.above == "per_tensor")

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
        above = {None: 0, "per_tensor": 32, "per_token": 32 * rows}[self.above]
        return rows * columns * self.fmt.bits + scales * self.bits_of_scale + above

    @property
    def bits_of_scale(self) -> int:
        """Bits that belong to one scale: its own, its zero point's, HiF4's small exponents."""
        small = 24 if self.scale_rule == "hif4" else 0
        return scale_bits(self.scale_format) + (self.fmt.bits if self.zero_point else 0) + small


def _fixed_scale(quant: Quant) -> float:
    """Return the scale of a Quant that fixes one, rounded to float32."""
    given = quant.scale
    one = isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool)
    with np.errstate(over="ignore"):
        value = float(np.float32(given)) if one and given is not None else 0.0
    if not 0 < value < math.inf:
        raise NumsimError(f"Quant: scale is a number above 0 that float32 has; got {given!r:.60}")
    if not quant.has_one_scale:
        raise NumsimError(
            "Quant: a fixed scale is that of a tensor, granularity per_tensor, or the one above "
            f"narrow block scales; got granularity={quant.granularity!r}, scale_format="
            f"{quant.scale_format!r}, tensor_scale={quant.tensor_scale!r}, zero_point="
            f"{quant.zero_point}; scales of parts are given to quantize(..., scale=...)"
        )
    return value


def _block(block: object) -> int | tuple[int, int]:
    sizes = block if isinstance(block, tuple | list) else (block,)
    if not (len(sizes) in (1, 2) and all(is_integer(b) and 1 <= b < 1 << 31 for b in sizes)):
        raise NumsimError(
            f"Quant: block is a positive integer below 2**31 or (rows, columns); got {block!r:.60}"
        )
    whole = [int(b) for b in sizes]
    return (whole[0], whole[1]) if len(whole) == 2 else whole[0]
