"""The fields that say what a format's codes mean, as plain data: tables and files hold these."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from numsim.vocabulary import Conversion, Inf, Kind, Nan


class Fields(NamedTuple):
    """The fields of a `Format`, which is made of them by ``Format(*fields)``."""

    name: str
    kind: Kind
    bits: int
    precision: int
    bias: int
    signed: bool = True
    nan: Nan = "none"
    inf: Inf = "none"
    zero: bool = True
    table: tuple[float, ...] = ()
    conversion: Conversion = "ieee"
    source: str = ""


class HasFields(Protocol):
    """A `Format`, or its `Fields` alone."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def table(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102


POSITIONAL = ("name", "kind", "bits", "precision", "bias")
NAMED = ("signed", "nan", "inf", "zero", "table", "conversion")
DEFAULTS: dict[str, Any] = Fields._field_defaults


def meaning_of(f: HasFields) -> tuple[Any, ...]:
    """Return everything but name and source: equal where every code means the same, bit for bit."""
    values = np.array(f.table, np.float64)
    values[np.isnan(values)] = np.nan  # one NaN is as good as another, but -0 is not 0
    other = ("kind", "bits", "precision", "bias", "signed", "nan", "inf", "zero", "conversion")
    return *(getattr(f, key) for key in other), values.tobytes()
