"""Rows of cost: one figure each, with its node, its source and how far it can be trusted."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from numsim.errors import NumsimError, near_names
from numsim.files import read_toml
from numsim.float_state import known_floats

BUNDLED = "cost.toml"  # in numsim.data


class Row(BaseModel):
    """One figure of cost.

    Parameters
    ----------
    id
        Its name, unique; a row of a user's file replaces the bundled one of the same id.
    quantity
        ``energy area power energy_ratio area_ratio sram dram``.
    op
        ``mul add mac pe mma read system``.
    formats
        Of the operands; of an ``add`` that of the accumulator alone.
    accumulator
        Of a ``mac`` or ``pe``: the format that it adds in.
    bits
        Of a read of memory: how many it moves.
    value, unit
        The figure: pJ, um2, mW, or 1 for ratios.
    base
        Id of the row that a ratio is relative to.
    node
        ``45nm``; ``normalised`` for ratios, ``unknown`` where the source does not say.
    voltage, frequency_ghz
        Of the measurement, in V and GHz, where given.
    scope
        ``operator unit system``: figures of different scopes are never added.
    source, locator
        Where the figure is, and where in it.
    mark
        V read in the source, S quoted by others, M from memory, U a user's own.
    enabled
        Whether it may price anything; rows from memory are off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    quantity: Literal["energy", "area", "power", "energy_ratio", "area_ratio", "sram", "dram"]
    op: Literal["mul", "add", "mac", "pe", "mma", "read", "system"]
    formats: tuple[str, ...] = ()
    accumulator: str | None = None
    bits: int | None = Field(default=None, ge=1)
    value: float = Field(gt=0, allow_inf_nan=False)
    unit: Literal["pJ", "um2", "mW", "1"]
    base: str | None = None
    node: str = Field(min_length=1)
    voltage: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    frequency_ghz: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    scope: Literal["operator", "unit", "system"]
    source: str = Field(min_length=1)
    locator: str = ""
    mark: Literal["V", "S", "M", "U"] = "U"
    enabled: bool = True

    @model_validator(mode="after")
    def _fits_together(self) -> Row:
        wanted = {"energy": "pJ", "area": "um2", "power": "mW", "sram": "pJ", "dram": "pJ"}
        unit = wanted.get(self.quantity, "1")
        if self.unit != unit:
            raise ValueError(f"unit of {self.quantity} is {unit}")
        if (self.base is None) == (unit == "1"):
            raise ValueError("base names the row that a ratio is relative to; only ratios have one")
        if (self.bits is None) == (self.quantity in ("sram", "dram")):
            raise ValueError("bits says how much a read of sram or dram moves; only reads have it")
        return self


@known_floats
def load_costs(path: str | Path | None = None) -> tuple[Row, ...]:
    """Return the bundled rows of cost, and those of a file of the user's.

    Parameters
    ----------
    path
        TOML of ``[[row]]`` tables; a row of a bundled id replaces that one. None: no such file.

    Returns
    -------
    tuple of Row

    Raises
    ------
    NumsimError
        The file is not TOML of that form; the message names row and key.

    Source
    ------
    Each row names its own.

    Examples
    --------
    >>> rows = {row.id: row for row in load_costs()}
    >>> row = rows["horowitz14.int8.mul"]
    >>> row.value, row.unit, row.node, row.mark
    (0.2, 'pJ', '45nm', 'S')
    """
    rows = _rows(Path(str(files("numsim.data") / BUNDLED)))
    if path is not None:
        rows |= _rows(Path(path))
    for row in rows.values():
        if row.base is not None and row.base not in rows:
            raise NumsimError(
                f"cost: row {row.id!r}: base names another row; got {row.base!r}"
                f"{near_names(row.base, rows)}; correct the id"
            )
    return tuple(rows.values())


def _rows(path: Path) -> dict[str, Row]:
    tables = read_toml(path, "cost")
    listed = tables.pop("row", [])
    if tables or not isinstance(listed, list) or not all(isinstance(r, dict) for r in listed):
        got = ", ".join(tables) or "row as something else"
        raise NumsimError(
            f"cost: {path} must hold [[row]] tables only; got {got}; start each row with a line "
            "[[row]]"
        )
    rows: dict[str, Row] = {}
    for at, table in enumerate(listed, start=1):
        row = _row(path, at, table)
        if row.id in rows:
            raise NumsimError(f"cost: {path}: row id {row.id!r} stands twice; rename one of them")
        rows[row.id] = row
    return rows


def _row(path: Path, at: int, table: dict[str, Any]) -> Row:
    who = f"cost: {path}: row {str(table.get('id', at))!r}"
    try:
        return Row.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise NumsimError(f"{who}: {key} is required; got none; add {key} = ...") from None
        if first["type"] == "extra_forbidden":
            known = Row.model_fields
            raise NumsimError(
                f"{who}: {key!r} is no key of a row{near_names(key, known)}; keys are "
                f"{', '.join(known)}"
            ) from None
        words = first["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
        shown = f"{key} {words}; got {first['input']!r:.60}" if key else words
        raise NumsimError(f"{who}: {shown}; correct it") from None
