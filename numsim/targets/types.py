"""How a MAC array multiplies and adds: a `Target` is a named set of rules, all of them data.

`numsim.targets.words` says every field in one line, for the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import Format, kept_format

Overflow = Literal["wrap", "saturate", "raise"]


@dataclass(frozen=True)
class Exact:
    """Products and the accumulator are added exactly and rounded once (nearest even).

    `group`: products in one such sum, which the next one takes as its accumulator; None: all.
    `negative_zero`: a sum of nothing but -0 is -0, as IEEE 754 adds; False: every zero is +0.
    """

    group: int | None = None
    negative_zero: bool = False


@dataclass(frozen=True)
class Mac:
    """Multiply-adds with one rounding a step.

    Parameters
    ----------
    acc_format
        Format of the accumulator, and of every sum: any signed float, integer or fixed-point
        format whose steps are exact before the rounding (floats of 2 to 24 bits of precision,
        the others of at most 23 bits in all).
    product_format
        Format to which products are rounded first; None: exact products, a fused multiply-add.
    fused
        False rounds products to `product_format`, or to `acc_format` where that is None.
    rounding
        Of every step (``rne rna rtz rup rdn rto``).
    order
        ``sequential``: one chain in increasing k from the accumulator. ``tree``: neighbours
        pairwise within each `group` (None: all of K), then the accumulator. ``odd_first``: a
        chain that takes k + 1 before k. ``two_chains``: even and odd k of a group from zero,
        their sum, then the accumulator. ``exact``: the products of a `group` and the accumulator
        exactly, one rounding to the output (the rule is `Exact`).
    flush
        Subnormal inputs and results become zeros of their sign.
    tiny
        Which results that flushes: ``stored``, those whose rounding is subnormal; ``unbounded``,
        those that an unbounded exponent would leave below the smallest normal number (x86).
    negative_zero
        False: the sign of a zero is lost before the sum of a tree is added to the accumulator.
    overflow
        ``ieee``: Inf (NaN where the format has no Inf) or the largest finite value, by the
        rounding; ``inf``: always Inf; ``saturate``: the largest finite value, for Inf too, as
        formats without Inf and NaN always do.
    """

    acc_format: str | Format = "float32"
    product_format: str | Format | None = None
    fused: bool = True
    rounding: str = "rne"
    order: str = "sequential"
    group: int | None = None
    flush: bool = False
    tiny: Literal["stored", "unbounded"] = "stored"
    negative_zero: bool = True
    overflow: Literal["ieee", "inf", "saturate"] = "ieee"

    def __post_init__(self) -> None:  # a Format of the table by its name, one's own as it is
        for key in ("acc_format", "product_format"):
            value = getattr(self, key)
            if not isinstance(value, str | None) or str(value).endswith(".toml"):
                with suppress(NumsimError):  # `check` names the unit
                    object.__setattr__(self, key, kept_format(value))


@dataclass(frozen=True)
class IntSum:
    """Integer products added in increasing k in `acc_bits` bits, `group` products a step.

    `overflow`: ``wrap`` modulo 2**acc_bits, ``saturate`` after every step, or ``raise``.
    `pair_bits`: the sum of two neighbouring products saturates to so many bits first.
    `outer_bits`: width of the accumulator that adds the parts of a promoted or split sum.
    """

    acc_bits: int = 32
    overflow: Overflow = "wrap"
    group: int = 1
    pair_bits: int | None = None
    outer_bits: int = 32


@dataclass(frozen=True)
class Fused:
    """Align to the largest exponent, truncate, add exactly, round once: the tensor-core block.

    Parameters
    ----------
    group
        Products in one block; longer dot products chain blocks through the accumulator.
    align_bits
        Fraction bits kept below the largest exponent.
    keep_bits
        Fraction bits of a float32 result (23, or 13 where the unit returns e8m13).
    accumulator
        ``joins`` the alignment; ``late``: is added to the rounded sum by an ordinary addition;
        ``halves``: k with (k // 2) even, then the others on top in float16, then the accumulator.
    zero_products
        Whether a product with a zero factor takes part in the largest exponent (models differ;
        no recording decides).
    min_exponent
        Lower limit of the largest exponent, None: no limit (models differ; no recording decides).
    align
        How terms are cut to the alignment: ``truncate`` toward zero, or ``floor``.
    rounding
        Of each block's result, ``rtz`` or ``rne``. None: float32 toward zero, float16 to nearest
        even.
    nan
        Pattern of NaN results: ``ones`` (0x7FFFFFFF, 0x7FFF) or ``quiet`` (0x7FC00000, 0x7E00).

    Two things are no fields, since all models and recordings agree on them: a zero result is +0,
    and a result that rounds beyond the largest number is infinite, toward zero too.
    """

    group: int
    align_bits: int
    keep_bits: int = 23
    accumulator: Literal["joins", "late", "halves"] = "joins"
    zero_products: bool = False
    min_exponent: int | None = None
    align: Literal["truncate", "floor"] = "truncate"
    rounding: Literal["rtz", "rne"] | None = None
    nan: Literal["ones", "quiet"] = "ones"


@dataclass(frozen=True)
class TwoStage:
    """CDNA3: the products' aligned sum first, then the accumulator, one rounding to float32.

    Products are truncated to `align_bits` below their largest exponent (`streams` = 2: even and
    odd k apart, their sums floored to the larger exponent). Beside the accumulator the sum is
    floored to `sum_bits` and the accumulator to `align_bits` fraction bits. `zero_products`: as in
    `Fused`.
    """

    group: int
    align_bits: int = 24
    sum_bits: int = 31
    streams: int = 1
    zero_products: bool = False


@dataclass(frozen=True)
class ScaledFp4:
    """Blackwell's k = 64 block-scaled FP4: exact runs of 16, scaled, aligned, truncated."""

    align_bits: int = 35


Rule = Exact | Mac | IntSum | Fused | TwoStage | ScaledFp4

_FP8 = ("float8_e4m3fn", "float8_e5m2")
_SMALL = ("float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn")

# operand class -> formats that belong to it; a target lists the classes it accepts
CLASSES: dict[str, tuple[str, ...]] = {
    "fp32": ("float32",),
    "tf32": ("tfloat32",),
    "fp16": ("float16",),
    "bf16": ("bfloat16",),
    "fp8": _FP8,
    "fp8_fnuz": ("float8_e4m3fnuz", "float8_e5m2fnuz"),
    "f8f6f4": (*_FP8, *_SMALL),
    "fp4": ("float4_e2m1fn",),
    "int8": ("int8", "uint8"),
    "s8": ("int8",),
    "int4": ("int4", "uint4"),
    "int16": ("int16",),
}

Maturity = Literal["definition", "silicon", "model", "document", "assumed"]


@known_floats
@dataclass(frozen=True)
class Target:
    """A matrix-multiply unit.

    Parameters
    ----------
    name
        Canonical name, ``maker.generation.instruction``.
    rules
        (operand class, rule) pairs. A class is a key of `CLASSES`; ``"integer"`` is every integer
        and fixed-point format, ``"float"`` every format that float32 holds, ``"number"`` that and
        all integers (both without integers where the unit has a class for those), ``"u8s8"`` uint8
        by int8. ``"fp8->float16"`` is the rule for that output; ``"mx:f8f6f4"`` the rule for
        operands with block scales that the unit applies itself.
    maturity
        ``definition`` (an ideal unit), ``silicon`` (equal to hardware recordings), ``model``
        (equal to an independent model validated on hardware), ``document`` (vendor text), or
        ``assumed``. The last two warn once when used.
    evidence
        What the rules were compared with.
    source
        Where the rules are described.
    promote_every
        Restart the chain from +0 every so many k and add the parts in float32, nearest even
        (integer units: in `outer_bits`).
    split_k, split_order
        Parts of K whose sums are added afterwards in float32: ``contiguous`` runs of tiles, or
        tiles dealt out in turn and added ``serial`` (in order) or ``pairwise``: with h half of the
        S parts, rounded up, part i + h is first added to part i unless it is the last part; then
        ``((p[S-1] + slot[0]) + slot[1]) + ...``.
    split_tile
        Width of those tiles in k.

    Examples
    --------
    >>> from numsim.targets import get_target
    >>> get_target("nvidia.hopper.wgmma").rule("fp8")
    Fused(group=32, align_bits=13, keep_bits=13, accumulator='joins', ...)
    """

    name: str
    rules: tuple[tuple[str, Rule], ...]
    maturity: Maturity
    evidence: str
    source: str
    promote_every: int | None = None
    split_k: int = 1
    split_order: Literal["contiguous", "serial", "pairwise"] = "contiguous"
    split_tile: int = 128

    def rule(self, operand_class: str) -> Rule | None:
        """Return the rule for an operand class, None where the unit does not take it."""
        return dict(self.rules).get(operand_class)

    def changed(self, **changes: Any) -> Target:
        """Return the target with fields replaced: ``group=16``, ``promote_every=128``, ...

        Raises
        ------
        NumsimError
            For a field that this unit does not have, or a value it cannot take.
        """
        own = {k: v for k, v in changes.items() if k in _CHAIN_FIELDS}
        inner = {k: v for k, v in changes.items() if k not in _CHAIN_FIELDS}
        known = sorted({f.name for _, rule in self.rules for f in fields(rule)} | _CHAIN_FIELDS)
        for key in inner:
            if key not in known:
                raise NumsimError(
                    f"{self.name} has no field {key!r}; it has {', '.join(known)}"
                    f"{near_names(key, known)}"
                )
        rules = self.rules
        for key in sorted(inner, key=lambda key: key == "group"):  # which follows the order
            rules = _replaced(rules, key, inner[key])
        if inner.get("product_format") is not None and "fused" not in inner:
            rules = _replaced(rules, "fused", False)  # rounded products are not fused
        new = replace(self, rules=rules, **own)
        new.check({"": changes} | {kind: changes for kind, _ in rules})
        return new

    @classmethod
    def from_toml(cls, path: str | Path) -> Target:
        """Read a unit from a TOML file in the words of the dataclasses.

        Parameters
        ----------
        path
            File with ``name``, ``maturity``, ``evidence``, ``source``, optionally the fields from
            `promote_every` on, and one table ``[rules.CLASS]`` an operand class, with ``kind`` (the
            name of the rule's dataclass) and its fields.

        Raises
        ------
        NumsimError
            For a file that cannot be read, and a field that is missing, unknown, out of range or
            contradicts another one.

        Examples
        --------
        >>> import tempfile
        >>> from numsim.targets import get_target
        >>> unit = get_target("nvidia.hopper.wgmma")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "unit.toml"
        ...     _ = path.write_text(unit.to_toml(), encoding="utf-8")
        ...     Target.from_toml(path) == unit
        True
        """
        from numsim.targets.toml import read_target

        return read_target(path)

    def to_toml(self) -> str:
        """Return the unit as TOML text that `from_toml` reads back.

        Examples
        --------
        >>> from numsim.targets import get_target
        >>> print(get_target("ideal.int").to_toml().partition("[rules.integer]")[2])
        <BLANKLINE>
        kind = "IntSum"
        acc_bits = 32
        overflow = "wrap"
        group = 1
        outer_bits = 32
        """
        from numsim.targets.toml import target_to_toml

        return target_to_toml(self)

    def check(self, said: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Raise NumsimError for fields out of range or that contradict each other.

        `said`: the fields that a user gave, for every operand class; for the unit itself as "".
        """
        from numsim.targets.check import check_target

        check_target(self, said or {})


_CHAIN_FIELDS = frozenset({"promote_every", "split_k", "split_order", "split_tile"})


def _replaced(
    rules: tuple[tuple[str, Rule], ...], key: str, value: Any
) -> tuple[tuple[str, Rule], ...]:
    """Return rules with a field replaced where that can be, everywhere if it nowhere can."""
    from numsim.targets.check import takes

    ready = [takes(kind, rule, key, value) for kind, rule in rules]
    return tuple(
        (kind, replace(rule, **{key: value}))
        if hasattr(rule, key) and (fits or not any(ready))
        else (kind, rule)
        for (kind, rule), fits in zip(rules, ready, strict=True)
    )
