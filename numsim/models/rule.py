"""What a recipe says of one product, and its form in TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, format_name
from numsim.formats.toml import fields_from_table
from numsim.quant import Quant, as_quant
from numsim.quant.transforms import hadamard_order
from numsim.targets import Target, get_target
from numsim.targets.table import changes_of
from numsim.targets.toml import own_format, toml_value

QuantLike = Quant | FormatLike | None
_STEPS = ("rotate", "outliers")  # fields of a rule that are numbers


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
        value = self.outliers
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < np.inf):
            raise NumsimError(f"Rule: outliers is a positive number; got {value!r:.40}")
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


def lines_of(table: Mapping[str, Any]) -> str:
    """Return the lines of a table of TOML."""
    return "".join(f"{key} = {inline_toml(value)}\n" for key, value in table.items())


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
