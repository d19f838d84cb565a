"""What numsim prints: sentences and columns in which no name can steer a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import typer

from numsim.errors import printable


def say(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print lines of text on stdout (``err``: stderr), their unprintable characters written out."""
    typer.echo(printable(text, keep="\n\t"), err=err, nl=nl)


def width() -> int:
    """Return the columns of the terminal: those of ``COLUMNS`` or of the screen, else 80."""
    return shutil.get_terminal_size((80, 24)).columns


def columns(
    rows: Sequence[Sequence[str]], align: str, *, within: int | None = None, gap: str = "  "
) -> list[str]:
    """Return rows as lines, one each, whose cells stand under each other.

    Parameters
    ----------
    rows
        Cells, the heading first.
    align
        One letter a column: ``<`` left, ``>`` right.
    within
        Width of the terminal. Where the lines are wider, the last column is left out; nothing is
        ever cut.

    Examples
    --------
    >>> rows = [("name", "bits", "source"), ("int8", "8", "two's complement")]
    >>> columns(rows, "<><")
    ['name  bits  source', "int8     8  two's complement"]
    >>> columns(rows, "<><", within=20)
    ['name  bits', 'int8     8']
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if within is not None and sum(widths) + len(gap) * (len(widths) - 1) > within:
        cells = [row[:-1] for row in cells]
    return [
        gap.join(f"{c:{a}{w}}" for c, a, w in zip(row, align, widths, strict=False)).rstrip()
        for row in cells
    ]
