"""A matrix-multiply unit: a `Target` is a named set of `numsim.targets.rules`, all of them data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from numsim.errors import NumsimError, near_names
from numsim.files import read_toml
from numsim.float_state import known_floats
from numsim.targets.check import check_unit, takes
from numsim.targets.levels import Level
from numsim.targets.rules import (
    CLASSES,
    RULES,
    BulkNorm,
    Exact,
    Fused,
    IntSum,
    Mac,
    Mme,
    Rule,
    ScaledFp4,
    TwoStage,
)
from numsim.targets.toml import fields_of_unit, unit_to_toml
from numsim.targets.words import Maturity

__all__ = [
    "CLASSES", "BulkNorm", "Exact", "Fused", "IntSum", "Level", "Mac", "Maturity", "Mme", "Rule",
    "ScaledFp4", "Target", "TwoStage",
]  # fmt: skip


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
    kind
        One kind of products with block scales, and nothing else, by its PTX name: ``mxf8f6f4``
        (k 32; two FP4 operands, too), ``mxf4`` or ``mxf4nvf4`` (k 64). None: what the operands
        and scales mean.
    levels
        Adders of floats above the rule's own, the innermost first (rows of a column, accumulator,
        outer sum); c is added by the last one, to its sum. In place of `promote_every`, which
        is one level of float32. Integers are added in `outer_bits` at every level.

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
    kind: Literal["mxf8f6f4", "mxf4", "mxf4nvf4"] | None = None
    levels: tuple[Level, ...] = ()

    def __hash__(self) -> int:  # plans are looked up by their unit in every small call
        known = self.__dict__.get("_hash")
        if known is None:
            known = hash((self.name, self.rules, self.promote_every, self.split_k, self.kind))
            object.__setattr__(self, "_hash", known)
        return int(known)

    def __getstate__(self) -> dict[str, Any]:  # another process hashes words otherwise
        return {field.name: getattr(self, field.name) for field in fields(self)}

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
            `promote_every` on (a table ``[[levels]]`` each level), and one table ``[rules.CLASS]``
            an operand class, with ``kind`` (the name of the rule's dataclass) and its fields.

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
        tables = read_toml(path, "Target.from_toml")
        try:
            return cls.from_tables(tables)
        except NumsimError as error:
            raise NumsimError(f"{path}: {error}") from None

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> Target:
        """Return the unit that the tables of a TOML text describe.

        Raises
        ------
        NumsimError
            For a field that is missing, unknown, of the wrong type, out of range, or contradicts
            another one.

        Examples
        --------
        >>> import tomllib
        >>> unit = Target.from_tables(tomllib.loads('''
        ... name = "my.mma"
        ... maturity = "assumed"
        ... evidence = "a sketch"
        ... source = "notebook, page 3"
        ... [rules.fp8]
        ... kind = "Fused"
        ... group = 8
        ... align_bits = 20
        ... '''))
        >>> unit.rule("fp8").align_bits
        20
        """
        known = {f.name: f.default is MISSING for f in fields(cls) if f.name != "rules"}
        own, rules = fields_of_unit(tables, known)
        target = cls(rules=rules, **own)
        own.pop("split_tile", None)  # a unit may have one for splits to come
        target.check({"": own, **tables["rules"]})
        return target

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
        return unit_to_toml(self)

    def check(self, said: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Raise NumsimError for fields out of range or that contradict each other.

        `said`: the fields that a user gave, for every operand class; for the unit itself as "".
        """
        check_unit(self, said or {})


_CHAIN_FIELDS = frozenset(
    {"promote_every", "split_k", "split_order", "split_tile", "kind", "levels"}
)


def _replaced(
    rules: tuple[tuple[str, Rule], ...], key: str, value: Any
) -> tuple[tuple[str, Rule], ...]:
    """Return rules with a field replaced where that can be, everywhere if it nowhere can."""
    ready = [takes(kind, rule, key, value) for kind, rule in rules]
    return tuple(
        (kind, replace(rule, **{key: value}))
        if key in RULES[type(rule)].limits and (fits or not any(ready))
        else (kind, rule)
        for (kind, rule), fits in zip(rules, ready, strict=True)
    )
