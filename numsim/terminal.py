"""What numsim prints: sentences and columns in which no name can steer a terminal."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import typer


def plain(text: object, *, keep: str = "") -> str:
    r"""Return a text whose unprintable characters are written as ``\u....``.

    Names come from files and arguments: an escape sequence in one could move the cursor, colour
    the screen or hide what follows, and a line feed could pass for a second message.

    Parameters
    ----------
    text
        Anything; its `str` is taken.
    keep
        Characters that stay, such as the line feeds of a page.

    Examples
    --------
    >>> plain("\x1b[31mred\x1b[0m\n")
    '\\u001b[31mred\\u001b[0m\\u000a'
    """
    words = str(text)
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() or c in keep else _code(c) for c in words)


def _code(character: str) -> str:
    number = ord(character)  # TOML and JSON read these two forms back
    return f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"


def say(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Print lines of text on stdout (``err``: stderr), their unprintable characters written out."""
    typer.echo(plain(text, keep="\n\t"), err=err, nl=nl)


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
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if within is not None and sum(widths) + len(gap) * (len(widths) - 1) > within:
        cells = [row[:-1] for row in cells]
    return [
        gap.join(f"{c:{a}{w}}" for c, a, w in zip(row, align, widths, strict=False)).rstrip()
        for row in cells
    ]
