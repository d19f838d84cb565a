"""Which number format and which hardware unit each matrix product of a network uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from numsim.errors import NumsimError, near_names
from numsim.files import digest_of, read_toml
from numsim.float_state import known_floats
from numsim.models.rule import (
    QuantLike,
    Rule,
    beside,
    inline_toml,
    lines_of,
    rule_from_table,
    rule_text,
)
from numsim.operators.kv_rules import KV, kv_from_table
from numsim.operators.rules import Ops, ops_of
from numsim.targets import Target


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
        text += [f"[ops.{inline_toml(glob)}]\n{lines_of(op.table())}" for glob, op in self.ops]
        if self.kv is not None:
            text.append(f"[kv]\n{lines_of(self.kv.table())}")
        return "\n".join(head + text)

    def digest(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of `to_toml`; hash the resolved recipe.

        Examples
        --------
        >>> recipe = Recipe.uniform("int8", target="ideal.fp32").resolve(["layers.0.q_proj", "qk"])
        >>> recipe.digest()
        'ab00c5fb265b793e'
        """
        return digest_of(self.to_toml())

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
