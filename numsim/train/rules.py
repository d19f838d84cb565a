"""Which formats and units the three products of every GEMM use, and how parameters are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from numsim.arguments import is_integer, is_word
from numsim.errors import NumsimError, near_names
from numsim.files import digest_of, read_toml
from numsim.float_state import known_floats
from numsim.formats import Format
from numsim.formats.toml import fields_from_table
from numsim.models import Rule as Product
from numsim.models.rule import (
    beside,
    inline_toml,
    quant_from_table,
    quant_table,
    rule_from_table,
    rule_text,
)
from numsim.quant import Quant, as_quant
from numsim.train.scaling import DelayedScaling

SOURCES = ("high", "requantise")
PRODUCTS = ("forward", "dgrad", "wgrad")


@known_floats
@dataclass(frozen=True)
class Rule:
    """The three products of a GEMM: ``y = x W^T``, ``dx = g W``, ``dW = g^T x``.

    Parameters
    ----------
    forward, dgrad, wgrad : numsim.Rule
        In dgrad and wgrad `activations` stores the gradient g; `weights` stores W in forward and
        dgrad, and x in wgrad.
    source
        What a format with blocks quantises along another axis: ``high`` the float32 tensor,
        ``requantise`` the decoded copy of the forward product.
    delayed : DelayedScaling or None
        Per-tensor scales from the history of earlier steps.
    gradient_scale
        Multiplies the gradient before it is stored; the stored scale divides again.
    hadamard
        Random Hadamard transform of so many points along the summed axis of both operands of
        wgrad; 0: none.
    clip_gradient
        True: no gradient where storage saturated the value. False: straight through.
    pointwise : Quant or name or None
        The result of each operation between products is stored in this format, its gradient as
        above: activation functions, norms, the softmax of attention, and every operation inside
        of an LSTM or GRU cell (`numsim.nn.pointwise_names`). Blocks lie along the last axis.
        None: float32.

    Raises
    ------
    NumsimError
        For an unknown word, or a product that is no `numsim.Rule`.

    Examples
    --------
    >>> Rule().dgrad.is_plain
    True
    """

    forward: Product = field(default_factory=Product)
    dgrad: Product = field(default_factory=Product)
    wgrad: Product = field(default_factory=Product)
    source: str = "high"
    delayed: DelayedScaling | None = None
    gradient_scale: float = 1.0
    hadamard: int = 0
    clip_gradient: bool = False
    pointwise: Quant | str | None = None

    def __post_init__(self) -> None:
        for name in PRODUCTS:
            if not isinstance(getattr(self, name), Product):
                raise NumsimError(
                    f"train.Rule: {name} is a numsim.Rule; got {getattr(self, name)!r:.60}"
                )
        if not is_word(self.source, SOURCES):
            raise NumsimError(
                f"train.Rule: source is one of {', '.join(SOURCES)}; got {self.source!r}"
                f"{near_names(str(self.source), SOURCES)}"
            )
        if self.delayed is not None and not isinstance(self.delayed, DelayedScaling):
            raise NumsimError(
                f"train.Rule: delayed is a DelayedScaling or None; got {self.delayed!r:.60}"
            )
        scale = self.gradient_scale
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not number or not 2.0**-126 <= scale < 2.0**127:
            raise NumsimError(
                f"train.Rule: gradient_scale is a positive float32 number; got {scale!r}"
            )
        if not isinstance(self.clip_gradient, bool):
            raise NumsimError(
                f"train.Rule: clip_gradient is True or False; got {self.clip_gradient!r:.60}"
            )
        size = self.hadamard
        if not is_integer(size) or size < 0 or size & (size - 1):
            raise NumsimError(f"train.Rule: hadamard is 0 or a power of two; got {size!r}")
        if self.pointwise is not None:
            try:
                object.__setattr__(self, "pointwise", as_quant(self.pointwise))
            except NumsimError as error:
                raise NumsimError(f"train.Rule: pointwise: {error}") from None


@known_floats
@dataclass(frozen=True)
class Recipe:
    """Rules by glob of product, the last that matches wins; and how parameters are kept.

    Parameters
    ----------
    rules : tuple of (glob, Rule)
    seed
        Of stochastic rounding and random signs, 0 to 2**32 - 1.
    storage : Quant or name or None
        Parameters themselves are kept in this format, without a copy of more bits; None: float32.

    Raises
    ------
    NumsimError
        Rules of another form, or a seed out of range.

    Examples
    --------
    >>> Recipe((("*", Rule()),)).rule("head").source
    'high'
    """

    rules: tuple[tuple[str, Rule], ...]
    seed: int = 0
    storage: Quant | str | None = None

    def __post_init__(self) -> None:
        try:
            pairs = tuple((str(glob), rule) for glob, rule in self.rules)
        except (TypeError, ValueError):
            pairs = (("", None),)  # type: ignore[assignment]
        if not pairs or not all(isinstance(rule, Rule) for _, rule in pairs):
            raise NumsimError(
                f"train.Recipe: rules are (glob, train.Rule) pairs; got {self.rules!r:.80}; write "
                'Recipe((("*", Rule()),))'
            )
        object.__setattr__(self, "rules", pairs)
        if not is_integer(self.seed) or not 0 <= self.seed < 1 << 32:
            raise NumsimError(
                f"train.Recipe: seed is an integer from 0 to 2**32 - 1; got {self.seed!r}"
            )
        object.__setattr__(self, "seed", int(self.seed))
        if self.storage is not None:
            object.__setattr__(self, "storage", as_quant(self.storage))

    def rule(self, name: str) -> Rule:
        """Return the rule of the product `name`.

        Raises
        ------
        NumsimError
            No glob matches.
        """
        if not isinstance(name, str):
            raise NumsimError(f"train.Recipe: a product is a name, a str; got {name!r:.60}")
        for glob, rule in reversed(self.rules):
            if fnmatchcase(name, glob):
                return rule
        globs = ", ".join(glob for glob, _ in self.rules)
        raise NumsimError(
            f"train.Recipe: every product needs a rule; {name} matches no glob of {globs}; add "
            'a general first one: ("*", Rule())'
        )

    def pointwise(self, name: str) -> Rule | None:
        """Return the rule of an operation between products; None: its result stays float32."""
        for glob, rule in reversed(self.rules):
            if fnmatchcase(name, glob):
                return None if rule.pointwise is None else rule
        return None

    def resolve(self, names: Iterable[str], pointwise: Iterable[str] = ()) -> Recipe:
        """Return the recipe with one rule for each of `names`, and of `pointwise` that has one.

        Raises
        ------
        NumsimError
            A product without a rule, a glob without a product or operation, `pointwise` in
            rules that name no operation between products, or names that are no collection of str.
        """
        known, between = _names("names", names), _names("pointwise", pointwise)
        for glob, _ in self.rules:
            if not any(fnmatchcase(name, glob) for name in (*known, *between)):
                raise NumsimError(
                    f"train.Recipe: every glob must name a product; {glob!r} matches none of "
                    f"{', '.join(known[:8])}{near_names(glob, (*known, *between))}"
                )
        asked = any(rule.pointwise is not None for _, rule in self.rules)
        if between and asked and not any(map(self.pointwise, between)):
            raise NumsimError(
                "train.Recipe: no rule with pointwise names an operation between products; those "
                f"are {', '.join(between[:8])}"
            )
        rules = [(name, self.rule(name)) for name in known]
        found = ((name, self.pointwise(name)) for name in between if name not in known)
        rules += [(name, rule) for name, rule in found if rule is not None]
        return Recipe(tuple(rules), self.seed, self.storage)

    def to_toml(self) -> str:
        """Return the text that `from_toml` reads back as an equal recipe."""
        parts = [f"seed = {self.seed}\n"] if self.seed else []
        if self.storage is not None:
            parts.append(f"storage = {_quant_text(as_quant(self.storage))}\n")
        return "\n".join(parts + [_text(glob, rule) for glob, rule in self.rules])

    def digest(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of `to_toml`."""
        return digest_of(self.to_toml())

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read ``[[rule]]`` tables: match, source, gradient_scale, hadamard, clip_gradient,
        pointwise, delayed, and the tables forward, dgrad and wgrad as `numsim.Recipe` has them.

        Lines ``seed = N`` and ``storage = ...`` may stand before them. All three products must be
        there.

        Raises
        ------
        NumsimError
            The file is not TOML of this form, or leaves a product undefined.
        """  # noqa: D205
        tables = read_toml(path, "train.Recipe.from_toml")
        rows = tables.pop("rule", [])
        folder = Path(path).parent
        seed, storage = tables.pop("seed", 0), beside(tables, folder).pop("storage", None)
        tables.pop("storage", None)
        if tables or not isinstance(rows, list) or not rows:
            raise NumsimError(
                f"train.Recipe.from_toml: {path} holds seed, storage and [[rule]] tables only; got "
                f"{', '.join(tables) or 'no rule'}"
            )
        rules = []
        for at, row in enumerate(rows, start=1):
            try:
                if not isinstance(row, Mapping):
                    raise NumsimError(f"a rule is a table, [[rule]]; got {row!r:.60}")
                rules.append(_from_table(beside(row, folder)))
            except NumsimError as error:
                raise NumsimError(f"train.Recipe.from_toml: {path}: rule {at}: {error}") from None
        try:
            return cls(tuple(rules), seed, _quant(storage))
        except NumsimError as error:
            raise NumsimError(f"train.Recipe.from_toml: {path}: {error}") from None


def _names(what: str, names: Iterable[str]) -> tuple[str, ...]:
    several = isinstance(names, Iterable) and not isinstance(names, str | bytes | np.ndarray)
    found = tuple(names) if several else (None,)
    if not all(isinstance(name, str) for name in found):
        raise NumsimError(
            f"train.Recipe: {what} of resolve is a collection of names; got {names!r:.60}; "
            "numsim.nn.product_names(layer) returns one"
        )
    return found  # type: ignore[return-value]


def _quant(value: Any) -> Quant | None:
    if value is None:
        return None
    return quant_from_table(value) if isinstance(value, Mapping) else as_quant(value)


def _from_table(row: dict[str, Any]) -> tuple[str, Rule]:
    known = ("match", *(f.name for f in fields(Rule)))
    unknown = sorted(set(row) - set(known))
    if unknown:
        raise NumsimError(
            f"a rule has {', '.join(known)}; unknown: {', '.join(unknown)}"
            f"{near_names(unknown[0], known)}"
        )
    glob = row.pop("match", None)
    if not isinstance(glob, str):
        raise NumsimError(f'match is required, a glob of products; got {glob!r}; write match = "*"')
    for name in PRODUCTS:
        if not isinstance(row.get(name), Mapping):
            raise NumsimError(
                f"the product {name} of {glob!r} is undefined; write a table "
                f"{name} = {{activations = ..., weights = ..., target = ...}}"
            )
        if "match" in row[name]:
            raise NumsimError(f"match belongs to the rule, not to {name}; write it above {name}")
        row[name] = rule_from_table({"match": glob, **row[name]})[1]
    if isinstance(row.get("delayed"), Mapping):
        delayed = dict(row["delayed"])
        if isinstance(delayed.get("format"), Mapping):
            delayed["format"] = Format(**fields_from_table(delayed["format"]))
        try:
            row["delayed"] = DelayedScaling(**delayed)
        except TypeError as error:
            raise NumsimError(f"delayed has the fields of DelayedScaling; {error}") from None
    row["pointwise"] = _quant(row.get("pointwise"))
    return glob, Rule(**row)


def _quant_text(quant: Quant) -> str:
    return inline_toml(quant_table(quant))


def _text(glob: str, rule: Rule) -> str:
    lines = ["[[rule]]", f"match = {inline_toml(glob)}"]
    plain = Rule()
    for name in ("source", "gradient_scale", "hadamard", "clip_gradient"):
        value = getattr(rule, name)
        if value != getattr(plain, name):
            lines.append(f"{name} = {inline_toml(value)}")
    if rule.pointwise is not None:
        lines.append(f"pointwise = {_quant_text(as_quant(rule.pointwise))}")
    if rule.delayed is not None:
        delayed = {f.name: getattr(rule.delayed, f.name) for f in fields(rule.delayed)}
        lines.append(f"delayed = {inline_toml(delayed)}")
    for name in PRODUCTS:
        product = rule_text("", getattr(rule, name)).splitlines()[2:]
        lines.append(f"{name} = {{{', '.join(line for line in product if line)}}}")
    return "\n".join(lines) + "\n"
