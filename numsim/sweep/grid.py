"""One step of a grid: how two operands are stored, which products and which unit they meet in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from numsim.errors import NumsimError, SkippedWarning, UnsupportedError, near_names, warn
from numsim.formats import Format, get_format, table_name
from numsim.models import Recipe, Rule
from numsim.models.gemm import probe
from numsim.quant import QUANTS, Quant, recipe_name
from numsim.targets import Target, get_target, rule_for

DEFAULT_FORMATS = (
    "float8_e4m3fn", "float8_e5m2", "int8", "int4", "q3.4", "bfloat16",
    "mxfp8_e4m3", "mxint8", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4_e2m1", "nvfp4",
)  # fmt: skip
DEFAULT_GRANULARITIES = ("per_tensor", "per_channel+per_token")
FAKE_QUANT = "ideal.fp32"  # the target whose rows are fake quantisation
EXACT_UNITS = ("ideal.int", "nvidia.hopper.wgmma")  # the first that takes a format is its unit
BLOCK_UNITS = ("ideal.int", "nvidia.blackwell.tcgen05")  # of formats with block scales
PRODUCTS = {  # words for the products of a network
    "linears": "*_proj", "qk": "*qk", "pv": "*pv", "router": "*router", "lm_head": "lm_head",
    "all": "*",
}  # fmt: skip
_WIDE = 63  # formats of float32's range are stored without a scale
BLOCK_SCALES = ("float8_e8m0fnu", "float8_e4m3fn")  # that BLOCK_UNITS apply


def split_granularity(text: str) -> tuple[str, str]:
    """Return (weights, activations) of ``"per_tensor"`` or ``"per_channel+per_token"``.

    Examples
    --------
    >>> split_granularity("per_channel+per_token")
    ('per_channel', 'per_token')
    """
    weights, _, activations = text.partition("+")
    return weights, activations or weights


def default_target(a: Format, b: Format, *, blocks: bool = False) -> str:
    """Return the exact unit of two formats, with or without block scales; else ``ideal.fp32``.

    Examples
    --------
    >>> [default_target(get_format(name), get_format(name)) for name in ("q3.4", "e3m2")]
    ['ideal.int', 'ideal.fp32']
    """
    units = BLOCK_UNITS if blocks else EXACT_UNITS
    return next((name for name in units if takes(get_target(name), a, b)), FAKE_QUANT)


def default_granularities(fmt: Format) -> tuple[str, ...]:
    """Return the scales that a format is swept with where none are asked for.

    Examples
    --------
    >>> default_granularities(get_format("q3.4")), default_granularities(get_format("bf16"))
    (('none',), ('none',))
    """
    fixed_point = fmt.kind == "integer" and fmt.bias != 0
    return ("none",) if fixed_point or fmt.emax >= _WIDE else DEFAULT_GRANULARITIES


@dataclass(frozen=True)
class Storage:
    """How one operand is stored: a format, or a storage rule.

    Attributes
    ----------
    called
        The name in results.
    fmt
        Its element format.
    rule
        Where it is a storage rule, which brings scales of its own.
    own
        Where that rule is a `Quant` of the user's, which keeps all that it says.
    digest
        Of all of it, where `called` does not say it.
    """

    called: str
    fmt: Format
    rule: Quant | None = None
    own: bool = False
    digest: str = ""

    @classmethod
    def of(cls, given: str | Quant | Format) -> Storage:
        """Return the storage that a name, a `Quant` or a `Format` stands for."""
        rule = given if isinstance(given, Quant) else None
        named = next((name for name, known in QUANTS.items() if known == rule), recipe_name(given))
        if named is not None:
            return cls(named, QUANTS[named].fmt, QUANTS[named])
        fmt = given.fmt if isinstance(given, Quant) else get_format(given)
        if rule is None:
            return cls(fmt.label, fmt, digest="" if table_name(fmt) else _digest(Quant(fmt)))
        said = rule.block is None and rule == Quant(fmt, rule.granularity, rounding=rule.rounding)
        digest = "" if said and table_name(fmt) else _digest(rule)
        return cls(fmt.label, fmt, rule, own=True, digest=digest)

    @property
    def has_blocks(self) -> bool:
        """Whether it has block scales that some units apply themselves."""
        return self.rule is not None and self.rule.scale_format in BLOCK_SCALES

    def part(self, asked: str, *, chosen: bool) -> str:
        """Return the scales it gets: its own, those asked for, or none by default."""
        if self.rule is not None:
            return str(self.rule.granularity)
        return "none" if not chosen and default_granularities(self.fmt) == ("none",) else asked

    def quant(
        self, part: str, rounding: str, scale_format: str | None = None,
        scale_rule: str | None = None,
    ) -> Quant:  # fmt: skip
        """Return the storage of one case.

        Raises
        ------
        NumsimError
            A word that is none, or a contradiction.
        """
        if self.rule is not None and self.own:
            return self.rule
        scales: dict[str, Any] = {}
        if scale_format is not None:
            scales["scale_format"] = scale_format
        if scale_rule is not None:
            scales["scale_rule"] = scale_rule
        if self.rule is not None:
            if "scale_format" in scales:  # whose own rule it takes
                scales.setdefault("scale_rule", None)
            return replace(self.rule, rounding=rounding, **scales)
        granularity, block = split_block(part)
        if granularity == "none":
            scales = {}
        return Quant(self.fmt, granularity, block=block, rounding=rounding, **scales)


def split_block(part: str) -> tuple[str, int | tuple[int, int] | None]:
    """Return granularity and block of ``per_block:128``, ``per_block:128x128`` or ``128x128``.

    Examples
    --------
    >>> split_block("per_block:128"), split_block("128x64"), split_block("per_token")
    (('per_block', 128), ('per_block', (128, 64)), ('per_token', None))
    """
    head, colon, sizes = part.partition(":")
    if not colon and re.fullmatch(r"\d{1,9}(x\d{1,9})?", head):
        head, sizes = "per_block", head
    if not sizes and not colon:
        return head, None
    found = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", sizes)
    if head != "per_block" or found is None:
        raise NumsimError(
            f"sweep: granularities: blocks are per_block:N or per_block:ROWSxCOLUMNS; got "
            f"{part!r:.60}; as in per_block:128, or per_block:128x128 for tiles"
        )
    rows, columns = found.groups()
    return head, int(rows) if columns is None else (int(rows), int(columns))


@dataclass(frozen=True)
class Entry:
    """One of the `formats` of a sweep: how weights and activations are stored; None: float32."""

    called: str
    weights: Storage | None
    activations: Storage | None

    @classmethod
    def of(cls, given: str | Quant | Format) -> Entry:
        """Return what one word stands for: a format or rule, or ``WEIGHTS+ACTIVATIONS``."""
        if isinstance(given, str) and "+" in given and not given.endswith(".toml"):
            weights, _, activations = (word.strip() for word in given.partition("+"))
            return cls.apart(weights, activations)
        one = Storage.of(given)
        return cls(one.called, one, one)

    @classmethod
    def apart(cls, weights: str | Quant | Format, activations: str | Quant | Format) -> Entry:
        """Return what two words stand for; ``float32`` is an operand as it is."""
        sides = [Storage.of(side) for side in (weights, activations)]
        called = "+".join(side.called for side in sides)
        left, right = (None if side.called == "float32" else side for side in sides)
        if left == right and left is not None:
            return cls(left.called, left, left)
        return cls(called, left, right)

    @property
    def sides(self) -> tuple[Storage, ...]:
        """The operands that are stored in some format."""
        return tuple(side for side in (self.weights, self.activations) if side is not None)

    @property
    def formats(self) -> tuple[Format, Format]:
        """Formats of the left operand, the activations, and of the right one."""
        wide = get_format("float32")
        left, right = (wide if s is None else s.fmt for s in (self.activations, self.weights))
        return left, right

    @property
    def unit(self) -> str:
        """The unit where the sweep names none: an exact one, if it takes what is stored."""
        blocks = any(side.has_blocks for side in self.sides)
        unit = default_target(*self.formats, blocks=blocks)
        if unit == FAKE_QUANT or all(side.rule is None for side in self.sides):
            return unit
        weights, activations = self.quants(self.granularities(None)[0], rounding="rne")
        try:
            probe(Rule(activations, weights, unit))
        except NumsimError:  # elements of two kinds, such as those of if4
            return FAKE_QUANT
        return unit

    def granularities(self, asked: tuple[str, ...] | None) -> list[str]:
        """Return the scales to sweep: weights+activations, one word where both agree."""
        found = []
        for words in DEFAULT_GRANULARITIES if asked is None else asked:
            parts = [
                "none" if side is None else side.part(part, chosen=asked is not None)
                for side, part in zip(
                    (self.weights, self.activations), split_granularity(words), strict=True
                )
            ]
            found.append("+".join(dict.fromkeys(parts)))
        return list(dict.fromkeys(found))

    def quants(self, granularity: str, **how: Any) -> tuple[Quant | None, Quant | None]:
        """Return the storage of weights and of activations; `how` as in `Storage.quant`."""
        parts = split_granularity(granularity)
        return tuple(
            None if side is None else side.quant(part, **how)
            for side, part in zip((self.weights, self.activations), parts, strict=True)
        )  # type: ignore[return-value]  # of two


def _digest(rule: Quant) -> str:
    return Recipe((("*", Rule(rule, rule)),)).digest()


def check_granularities(entries: list[Entry], asked: tuple[str, ...] | None) -> None:
    """Refuse granularities that no format uses; warn of formats that bring scales of their own."""
    sides = [side for entry in entries for side in entry.sides]
    own = {side.called: side.rule for side in sides if side.rule is not None}
    if not own or asked is None or set(asked) <= {str(rule.granularity) for rule in own.values()}:
        return
    words = ", ".join(f"{called} ({_scales(rule)})" for called, rule in own.items())
    if all(side.rule is not None for side in sides):
        raise NumsimError(
            f"sweep: storage rules bring scales of their own: {words}; granularity "
            f"{', '.join(asked)} is for plain formats; leave it out, or add a plain format"
        )
    warn(
        f"sweep: granularity is ignored by storage rules, which bring scales of their own: {words}",
        SkippedWarning,
    )


def _scales(rule: Quant) -> str:
    block = "" if rule.block is None else f" {rule.block}"
    return f"{rule.granularity}{block}"


def takes(target: Target, a: Format, b: Format) -> bool:
    """Return whether the unit multiplies two formats."""
    try:
        rule_for(target, a, b)
    except UnsupportedError:
        return False
    return True


@dataclass(frozen=True)
class Products:
    """Which products of a network a case emulates, and how its keys and values are stored."""

    called: str = "linears"
    kv: Storage | None = None

    def globs(self) -> list[tuple[str, bool]]:
        """Return (glob, emulated) in order: the last that matches a product counts.

        Examples
        --------
        >>> Products("linears+qk-router").globs()
        [('*_proj', True), ('*qk', True), ('*router', False)]
        """
        signed = re.findall(r"([+-]?)([^+-]+)", self.called.strip())
        if "".join(sign + word for sign, word in signed) != self.called.strip() or not signed:
            raise NumsimError(
                f"sweep: products are names joined by + and -; got {self.called!r:.60}; as in "
                f"linears+qk+pv or all-lm_head, of {', '.join(PRODUCTS)} or globs"
            )
        return [(PRODUCTS.get(word.strip(), word.strip()), sign != "-") for sign, word in signed]

    def check(self, names: Iterable[str]) -> None:
        """Raise NumsimError where a name stands for no product of the network."""
        known = tuple(names)
        for glob, _ in self.globs():
            if known and not any(fnmatchcase(name, glob) for name in known):
                words = ", ".join(PRODUCTS)
                raise NumsimError(
                    f"sweep: products: {self.called!r:.60} has {glob!r}, and no product of this "
                    f"model matches it{near_names(glob, (*PRODUCTS, *known))}; names are {words}, "
                    "or globs of its products"
                )

    def recipe(
        self, weights: Quant | None, activations: Quant | None, unit: Target, rounding: str,
        seed: int,
    ) -> Recipe:  # fmt: skip
        """Return the recipe of a case; every other product stays float32."""
        emulated = Rule(activations, weights, unit)
        globs = self.globs()
        rules = [("*", Rule()), *((glob, emulated if on else Rule()) for glob, on in globs)]
        if self.kv is not None:
            part = self.kv.part("per_token", chosen=False)
            keys = self.kv.quant(part, rounding)
            for name in ("qk", "pv"):
                inside = [on for glob, on in globs if fnmatchcase(f"layers.0.{name}", glob)][-1:]
                whole = inside == [True]
                rule = Rule(activations, keys, unit) if whole else Rule(None, keys, FAKE_QUANT)
                rules.append((f"*{name}", rule))
        return Recipe(tuple(rules), seed)
