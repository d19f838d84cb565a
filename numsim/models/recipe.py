"""Which number format and which hardware unit each matrix product of a network uses."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from numsim.errors import NumsimError, near_names
from numsim.files import read_toml
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, format_name
from numsim.formats.toml import fields_from_table
from numsim.operators.rules import KV, Ops, kv_from_table, ops_of
from numsim.quant import Quant, as_quant
from numsim.quant.transforms import hadamard_order
from numsim.targets import Target, get_target
from numsim.targets.table import changes_of
from numsim.targets.toml import own_format, toml_value

_STEPS = ("activation_scale", "rotate", "outliers")  # fields of a rule that are numbers
QuantLike = Quant | FormatLike | None


@known_floats
@dataclass(frozen=True, slots=True)
class Rule:
    """How one matrix product runs.

    Parameters
    ----------
    activations : Quant or Format or name or None
        Storage of the left operand; None: float32 as it is.
    weights : Quant or Format or name or None
        Storage of the right operand: the stored matrix, the keys (``qk``), the values (``pv``).
    target : Target or name
        The unit.
    out_format : str
        Format of the unit's output; it is widened to float32 for what follows.
    activation_scale : float, optional
        A static scale of activations that have one scale a tensor (`numsim calibrate` finds them).
    rotate : int, optional
        Both operands are rotated along K in blocks of so many before they are stored
        (`numsim.quant.transforms.rotate`): their product stays, outliers spread.
    outliers : float, optional
        LLM.int8(): columns of activations with a magnitude from there on stay float, the others are
        int8 (`numsim.quant.transforms.llm_int8`); of stored matrices, without other storage.

    Raises
    ------
    NumsimError
        For values that contradict each other.
    """

    activations: QuantLike = None
    weights: QuantLike = None
    target: Target | str = "ideal.fp32"
    out_format: str = "float32"
    activation_scale: float | None = None
    rotate: int | None = None
    outliers: float | None = None

    def __post_init__(self) -> None:
        for side in ("activations", "weights"):
            value = getattr(self, side)
            if value is not None:
                object.__setattr__(self, side, as_quant(value))
        object.__setattr__(self, "target", get_target(self.target))
        object.__setattr__(self, "out_format", format_name(self.out_format, "Rule: out_format"))
        self._check_steps()

    def _check_steps(self) -> None:
        for name in ("activation_scale", "outliers"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < np.inf):
                raise NumsimError(f"Rule: {name} is a positive number; got {value!r:.40}")
        left = self.activations
        whole = isinstance(left, Quant) and left.granularity == "per_tensor" and not left.zero_point
        if self.activation_scale is not None and not whole:
            raise NumsimError(
                "Rule: activation_scale is for activations with one scale a tensor and no zero "
                f"point; got {left!r:.120}"
            )
        if self.rotate is not None:
            hadamard_order(self.rotate)
        stored = self.activations is not None or self.weights is not None
        if self.outliers is not None and (stored or self.rotate is not None):
            raise NumsimError(
                "Rule: outliers brings its own int8 storage; leave activations, weights and "
                "rotate out"
            )

    @property
    def is_plain(self) -> bool:
        """Whether this is float32 on ``ideal.fp32``: a chain of fused multiply-adds."""
        return (
            self.activations is None
            and self.weights is None
            and self.rotate is None
            and self.outliers is None
            and self.out_format == "float32"
            and self.target == get_target("ideal.fp32")
        )


@known_floats
@dataclass(frozen=True, slots=True)
class Recipe:
    """Rules for all matrix products of a network, as ordered (glob, Rule) pairs.

    **The last glob that matches a name wins**, so write the general rule first and exceptions
    after it. A product that no glob names, and a glob that names no product, are errors. Norms,
    softmax, rotary positions, activations and the residual stream are float32, each operation
    computed in float64 and rounded once, but for those that `ops` names.

    Stochastic rounding (``Quant(..., rounding="sr")``) draws from a stream that depends on `seed`,
    the name of the product and the side of the operand; the draw of an element depends on its
    position alone: of an activation the token position in the sequence, head and feature, of a
    weight its index. So prefill and decoding, a row alone and in a batch, and ``Model.gemm`` on
    tapped inputs draw the same bits; rows of a batch at one position draw alike, and products
    that share an input draw apart.

    Parameters
    ----------
    rules : tuple of (glob, Rule)
        Checked for names when a model runs.
    seed : int
        Of stochastic rounding, 0 to 2**32 - 1; part of `to_toml` and `digest` where not 0.
    ops : mapping or pairs of glob and `numsim.operators.Op`
        Operators in low precision, by names such as ``layers.0.softmax``, ``layers.0.attn_norm``,
        ``layers.0.act``, ``layers.0.rotary``, ``layers.0.residual``, ``embedding``, ``logits``;
        a glob may give the last part only: ``residual``, ``*norm``. The last one wins.
    kv : numsim.operators.KV, optional
        How keys and values of self-attention are kept.

    Raises
    ------
    NumsimError
        Rules of another form, or a seed out of range.

    Examples
    --------
    >>> recipe = Recipe((("*", Rule()), ("layers.0.*_proj", Rule("int8", "int8"))))
    >>> recipe.rule("layers.0.q_proj").weights.format
    'int8'
    """

    rules: tuple[tuple[str, Rule], ...]
    seed: int = 0
    ops: Ops = ()
    kv: KV | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", ops_of(self.ops))
        if not (self.kv is None or isinstance(self.kv, KV)):
            raise NumsimError(f"Recipe: kv is a numsim.operators.KV or None; got {self.kv!r:.60}")
        try:
            pairs = tuple(tuple(pair) for pair in self.rules)
        except TypeError:
            pairs = ((self.rules,),)
        for pair in pairs:
            if not (len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], Rule)):
                raise NumsimError(
                    f"Recipe: rules are (glob, Rule) pairs; got {', '.join(map(repr, pair))}; "
                    'write Recipe((("*", Rule()), ("*_proj", Rule("int8", "int8"))))'
                )
        object.__setattr__(self, "rules", pairs)
        whole = isinstance(self.seed, int | np.integer) and not isinstance(self.seed, bool)
        if not whole or not 0 <= self.seed < 2**32:
            raise NumsimError(
                f"Recipe: seed is an integer from 0 to 2**32 - 1; got {self.seed!r}; 0 is usual"
            )
        object.__setattr__(self, "seed", int(self.seed))

    def rule(self, name: str) -> Rule:
        """Return the rule of the product `name`.

        Raises
        ------
        NumsimError
            No glob matches.
        """
        return self._rule_at(name)[1]

    def _rule_at(self, name: str) -> tuple[int, Rule]:
        """Return the place of the rule of `name`, from 0, and the rule."""
        at = _finder(self.rules)(name)
        if at >= 0:
            return at, self.rules[at][1]
        globs = ", ".join(glob for glob, _ in self.rules) or "none"
        raise NumsimError(
            f"Recipe: every matrix product needs a rule; {name} matches no glob of {globs}; "
            f'add a rule for it, or a general first one: ("*", Rule())'
        )

    def place(self, name: str) -> str:
        """Return the words for the rule of the product `name` in messages.

        Raises
        ------
        NumsimError
            No glob matches.

        Examples
        --------
        >>> Recipe.uniform("int8", target="ideal.int").place("layers.0.q_proj")
        "rule 2 ('*_proj'), for layers.0.q_proj"
        """
        at, _ = self._rule_at(name)
        return f"{_numbered(at, self.rules[at][0])}, for {name}"

    def check(self, names: Iterable[str]) -> dict[str, Rule]:
        """Return the rule of each of `names`, all products of a network.

        Raises
        ------
        NumsimError
            A product without a rule, or a glob without a product.
        """
        known = tuple(names)
        every = set(known)
        for at, (glob, _) in enumerate(self.rules):
            if glob not in every and not any(fnmatchcase(name, glob) for name in known):
                raise NumsimError(
                    f"Recipe: every glob must name a matrix product; {_numbered(at, glob)} matches "
                    f"none of {known[0]} ... {known[-1]}{near_names(glob, known)}"
                )
        find = _finder(self.rules)
        found = {name: find(name) for name in known}
        return {n: self.rules[at][1] if at >= 0 else self.rule(n) for n, at in found.items()}

    def resolve(self, names: Iterable[str]) -> Recipe:
        """Return the recipe with one rule for each of `names`, as a run uses it (``Run.recipe``).

        Raises
        ------
        NumsimError
            A product without a rule, or a glob without a product.

        Examples
        --------
        >>> recipe = Recipe((("*", Rule("int8", "int8", "ideal.int")),))
        >>> print(recipe.resolve(["lm_head"]).to_toml())
        [[rule]]
        match = "lm_head"
        activations = "int8"
        weights = "int8"
        target = "ideal.int"
        """
        return replace(self, rules=tuple(self.check(names).items()))

    def to_toml(self) -> str:
        """Return the text that `from_toml` reads back as an equal recipe.

        A unit that is not a named one with changed fields stands in it whole: ``unit = "..."``,
        and so does a `Format` of one's own: ``format = {name = "mine", kind = "float", ...}``.
        """
        head = [f"seed = {self.seed}\n"] if self.seed else []
        text = [rule_text(glob, rule) for glob, rule in self.rules]
        text += [f"[ops.{inline_toml(glob)}]\n{_lines(op.table())}" for glob, op in self.ops]
        if self.kv is not None:
            text.append(f"[kv]\n{_lines(self.kv.table())}")
        return "\n".join(head + text)

    def digest(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of `to_toml`; hash the resolved recipe.

        Examples
        --------
        >>> recipe = Recipe.uniform("int8", target="ideal.fp32").resolve(["layers.0.q_proj", "qk"])
        >>> recipe.digest()
        'ab00c5fb265b793e'
        """
        return hashlib.sha256(self.to_toml().encode()).hexdigest()[:16]

    @classmethod
    def uniform(
        cls,
        quant: QuantLike,
        *,
        target: Target | str,
        weights: QuantLike = None,
        activations: QuantLike = None,
        out_format: str = "float32",
        seed: int = 0,
    ) -> Recipe:
        """One rule for the linears of all blocks (``*_proj``); all other products stay float32.

        Parameters
        ----------
        quant : Quant or Format or name or None
            Storage of weights and activations; None leaves float32.
        target : Target or name
            Unit of the block linears; the other products run on ``ideal.fp32``.
        weights, activations : Quant or name, optional
            Override `quant` for one side.
        out_format : str
            Output of the unit.
        seed : int
            Of stochastic rounding.

        Returns
        -------
        Recipe

        Examples
        --------
        >>> recipe = Recipe.uniform("float8_e4m3fn", target="nvidia.hopper.wgmma")
        >>> recipe.rule("layers.3.qk").is_plain, recipe.rule("layers.3.o_proj").is_plain
        (True, False)
        """
        plain = Rule()
        linears = Rule(
            quant if activations is None else activations,
            quant if weights is None else weights,
            target,
            out_format,
        )
        return cls((("*", plain), ("*_proj", linears)), seed)

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read ``[[rule]]`` tables: match, and optionally activations, weights, target, out_format.

        A line ``seed = N`` may stand before them, tables ``[ops."*.softmax"]`` and ``[kv]`` after.
        A Quant is a name, the path of a format's TOML file or a table of its fields, whose format
        is such a name or path, or a table of the fields of `Format`; a target is a name, the path
        of a unit's TOML file, a table of its name and the fields it changes, or ``{unit = "..."}``,
        a unit's TOML. Paths are looked for beside the recipe first, then in the current folder.

        Raises
        ------
        NumsimError
            The file is not TOML of this form.
        """
        tables = read_toml(path, "Recipe.from_toml")
        return recipe_from_tables(tables, f"{path}", Path(path).parent)


def recipe_from_tables(tables: Mapping[str, Any], where: str, folder: Path | None = None) -> Recipe:
    """Return the recipe of the tables that `Recipe.from_toml` reads from `where`.

    Raises
    ------
    NumsimError
        The tables are not of that form.
    """
    tables = dict(tables)
    rows, seed = tables.pop("rule", []), tables.pop("seed", 0)
    ops, kv = tables.pop("ops", {}), tables.pop("kv", None)
    listed = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if tables or not listed or not rows:
        raise NumsimError(
            f"Recipe.from_toml: the file must hold seed, [[rule]], [ops] and [kv] tables only; got "
            f"{', '.join(tables) or rows or 'none'}; start each rule with a line [[rule]]"
        )
    rules = []
    for at, row in enumerate(rows):
        try:
            rules.append(rule_from_table(dict(row) if folder is None else beside(row, folder)))
        except NumsimError as error:
            number = _numbered(at, row.get("match"))
            raise type(error)(f"Recipe.from_toml: {where}: {number}: {error}") from None
    for name, table in (("ops", ops), ("kv", {} if kv is None else kv)):
        nested = name == "kv" or all(
            isinstance(v, Mapping) for v in getattr(table, "values", list)()
        )
        if not isinstance(table, Mapping) or not nested:
            raise NumsimError(
                f"Recipe.from_toml: {where}: [{name}] holds tables; got {table!r:.60}"
            )
    try:
        return Recipe(tuple(rules), seed, ops_of(ops), None if kv is None else kv_from_table(kv))
    except NumsimError as error:
        raise NumsimError(f"Recipe.from_toml: {where}: {error}") from None


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {inline_toml(value)}\n" for key, value in table.items())


def _finder(rules: tuple[tuple[str, Rule], ...]) -> Callable[[str], int]:
    """Return what gives the place of the last glob that matches a name, -1 where none does.

    A rule for each of the 20,000 products of a network with experts is found by its name.
    """
    plain = {glob: at for at, (glob, _) in enumerate(rules) if not set(glob) & set("*?[")}
    globs = [(at, glob) for at, (glob, _) in enumerate(rules) if set(glob) & set("*?[")]

    def find(name: str) -> int:
        own = plain.get(name, -1)
        later = (at for at, glob in reversed(globs) if at > own and fnmatchcase(name, glob))
        return next(later, own)

    return find


def _numbered(at: int, glob: object) -> str:
    """Return ``rule 2 ('*_proj')``: rules count from 1 in messages."""
    return f"rule {at + 1} ({glob!r})" if isinstance(glob, str) else f"rule {at + 1}"


def beside(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a table whose names of TOML files are paths, where they lie beside the recipe."""

    def found(value: Any) -> Any:
        if isinstance(value, Mapping):
            return beside(value, folder)
        file = isinstance(value, str) and value.endswith(".toml") and "\n" not in value
        return str(folder / value) if file and (folder / value).is_file() else value

    return {key: value if key == "match" else found(value) for key, value in row.items()}


def rule_from_table(row: dict[str, Any]) -> tuple[str, Rule]:
    """Return the glob and the rule of a ``[[rule]]`` table.

    Raises
    ------
    NumsimError
        For a key that a rule does not have, and a value that it cannot take.
    """
    fields = ("match", "activations", "weights", "target", "out_format", *_STEPS)
    unknown = sorted(set(row) - set(fields))
    if unknown:
        raise NumsimError(
            f"a rule has match and optionally {', '.join(fields[1:])}; "
            f"unknown: {', '.join(unknown)}{near_names(unknown[0], fields)}; correct the name"
        )
    if not isinstance(row.get("match"), str):
        got = repr(row["match"]) if "match" in row else "none"
        raise NumsimError(
            f'match is required, a glob of products; got {got}; write match = "*_proj" or "*"'
        )
    glob = row.pop("match")
    for side in ("activations", "weights"):
        if isinstance(row.get(side), Mapping):
            row[side] = quant_from_table(row[side])
    if isinstance(row.get("target"), Mapping):
        changes = dict(row["target"])
        if set(changes) == {"unit"} and isinstance(changes["unit"], str):
            try:
                row["target"] = Target.from_tables(tomllib.loads(changes["unit"]))
            except (tomllib.TOMLDecodeError, RecursionError) as error:
                raise NumsimError(f"unit must be the TOML of a unit; {error}; correct it") from None
        elif "name" not in changes:
            raise NumsimError(
                f"a target table has name and the fields it changes, or unit; got "
                f"{', '.join(changes) or 'nothing'}"
            )
        else:
            changes = {key: own_format(key, key, value) for key, value in changes.items()}
            row["target"] = get_target(changes.pop("name"), **changes)
    return glob, Rule(**row)


def quant_from_table(table: Mapping[str, Any]) -> Quant:
    """Return the `Quant` of a table that `quant_table` makes.

    Raises
    ------
    NumsimError
        For a field that a `Quant` or a `Format` does not have, and a value that it cannot take.
    """
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in table.items()
    }
    if isinstance(values.get("format"), Mapping):
        values["format"] = Format(**fields_from_table(values["format"]))
    try:
        return Quant(**values)
    except TypeError as error:
        raise NumsimError(
            f"a Quant table has the fields of Quant; {error}; correct the table"
        ) from None


def inline_toml(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)} = {inline_toml(v)}" for key, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline_toml(v) for v in value) + "]"
    return toml_value(value)


def _key(key: str) -> str:
    """Return a key of a table, quoted where it is not bare.

    >>> _key("block"), _key("course.rst")
    ('block', '"course.rst"')
    """
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def rule_text(glob: str, rule: Rule) -> str:
    """Return a ``[[rule]]`` table that `rule_from_table` reads back."""
    lines = ["[[rule]]", f"match = {inline_toml(glob)}"]
    for side in ("activations", "weights"):
        quant = getattr(rule, side)
        if quant is not None:
            lines.append(f"{side} = {inline_toml(quant_table(as_quant(quant)))}")
    lines.append(f"target = {inline_toml(target_table(get_target(rule.target)))}")
    if rule.out_format != "float32":
        lines.append(f"out_format = {inline_toml(rule.out_format)}")
    lines += [f"{k} = {inline_toml(v)}" for k in _STEPS if (v := getattr(rule, k)) is not None]
    return "\n".join(lines) + "\n"


def quant_table(quant: Quant) -> str | dict[str, Any]:
    """Return the name of a format where that is all, else the fields that differ from it."""
    plain = Quant(quant.format)
    if plain == quant and not isinstance(plain.format, Format):
        return plain.fmt.name
    table = {f.name: getattr(quant, f.name) for f in fields(quant)}
    if quant.tensor_scale is None:
        table["tensor_scale"] = "none"  # TOML has no word for None
    return {
        key: v
        for key, v in table.items()
        if key == "format" or (v is not None and v != getattr(plain, key))
    }


def target_table(target: Target) -> str | dict[str, Any]:
    """Return a target's name, with the fields that were changed; of another unit all of it."""
    changes = changes_of(target)
    if changes is None or None in changes.values():
        return {"unit": target.to_toml()}
    return {"name": target.name} | changes if changes else target.name
