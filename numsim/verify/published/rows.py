"""Rows of published figures, and who computes which."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.verify.published import enumerated, sampled, theory

_FILE = Path(__file__).parents[2] / "data" / "published.json"
_BY: dict[str, Callable[[str], float]] = {  # by the first word of an id
    **dict.fromkeys(
        ("format", "p3109", "e8m0", "width", "int32", "int16", "harmonic", "sr", "bits"),
        enumerated.figure,
    ),
    **dict.fromkeys(("int_fp", "bdr", "opt", "midrise", "a2q", "kulisch", "vrr"), theory.figure),
    **dict.fromkeys(("qsnr", "clip", "crest", "hif4", "4over6", "if4", "scale", "deepseek"),
                    sampled.figure),
}  # fmt: skip


@dataclass(frozen=True)
class PublishedRow:
    """One figure.

    Parameters
    ----------
    id, statement, source, how, note
        What it is, whose, and how it is computed; the note says why it does not agree.
    value
        As published; None: a figure that only this library has computed.
    before, computed
        As the row was written, and now.
    tolerance
        Of both comparisons, absolute.
    """

    id: str
    statement: str
    source: str
    how: str
    note: str
    value: float | None
    before: float
    computed: float
    tolerance: float

    @property
    def agrees(self) -> bool | None:
        """Whether the computed figure is the published one; None where none is published."""
        return None if self.value is None else abs(self.computed - self.value) <= self.tolerance

    @property
    def holds(self) -> bool:
        """Whether the figure is what it was when the row was written."""
        return abs(self.computed - self.before) <= self.tolerance


@cache
def stored_rows() -> list[dict[str, Any]]:
    """Return the rows as they are stored.

    >>> stored_rows()[0]["statement"]
    'E4M3 largest finite value'
    """
    rows: list[dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return rows


def published_rows(only: str = "") -> list[str]:
    """Return the ids of the rows, or of those that begin with `only`.

    Raises
    ------
    NumsimError
        Where none does.

    Examples
    --------
    >>> published_rows("format.e4m3.max"), len(published_rows())
    (['format.e4m3.max'], 203)
    """
    ids = [str(row["id"]) for row in stored_rows()]
    found = [i for i in ids if i.startswith(only)]
    if not found:
        heads = dict.fromkeys(i.split(".")[0] for i in ids)
        raise NumsimError(
            f"verify published: no figure begins with {only!r:.60}; they begin with "
            f"{', '.join(heads)}{near_names(only, heads)}"
        )
    return found


def check_published(only: str = "") -> Iterator[PublishedRow]:
    """Compute published figures again, one after another.

    Parameters
    ----------
    only
        The beginning of ids.

    Raises
    ------
    NumsimError
        Where no id begins so.

    Source
    ------
    Each row's own.

    Examples
    --------
    >>> [row.computed for row in check_published("format.e2m1.max")]
    [6.0]
    """
    wanted = set(published_rows(only))
    for row in stored_rows():
        name = str(row["id"])
        if name in wanted:
            yield PublishedRow(
                name, row["statement"], row["source"], row["how"], row.get("note") or "",
                None if row["value"] is None else float(row["value"]), float(row["computed"]),
                _computed(name), float(row["tolerance"]),
            )  # fmt: skip


@known_floats
def _computed(name: str) -> float:
    return float(_BY[name.split(".")[0]](name))
