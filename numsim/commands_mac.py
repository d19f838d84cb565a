"""Commands about matrix units: targets, explain mma, verify silicon. Parse, call, print."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from numsim.errors import NumsimError
from numsim.targets import Target, get_target, list_targets
from numsim.targets.explain import explain_mma, rule_words
from numsim.targets.table import OPEN, label
from numsim.targets.toml import target_to_toml
from numsim.targets.types import CLASSES
from numsim.targets.words import MATURITIES, explained


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(targets)


def targets(
    name: Annotated[
        str | None, typer.Argument(help="Show one unit in full: a name or a .toml file.")
    ] = None,
    toml: Annotated[
        bool, typer.Option("--toml", help="Print the unit as TOML, to edit; give it another name.")
    ] = False,
) -> None:
    """List the matrix units, or everything about one of them."""
    if name is None:
        if toml:
            raise NumsimError("targets: --toml prints one unit; got no NAME; try targets ideal.mac")
        _print(_targets_table())
        maturities: list[tuple[str, str]] = [*MATURITIES.items()]
        typer.echo(f"maturity:\n{_aligned(maturities)}\n{OPEN}")
        return
    unit = get_target(name)
    typer.echo(target_to_toml(unit, comments=True) if toml else target_text(unit), nl=not toml)


def target_text(unit: Target) -> str:
    """Return everything about a unit as text.

    Examples
    --------
    >>> print(target_text(get_target("arm.fdot_fp8")))
    arm.fdot_fp8
      maturity       document
      evidence       four products and the accumulator, one rounding
      source         Arm Architecture Reference Manual, A1.5 and instruction pages
      fp8            Exact(group=4, negative_zero=True)
                     float8_e4m3fn, float8_e5m2
    what the words mean (numsim targets NAME --toml prints a unit to edit)
      document        written from the vendor's text; no recording confirms it (warns once ...)
      Exact           exact sums, rounded once to nearest even
        group         products in one exact sum, the next takes it as its accumulator; unset: all
        negative_zero a sum of nothing but -0 is -0; false: every zero is +0
      Target          fields of whole dot products
        promote_every restart from +0 every so many k, add the parts in an outer accumulator
        split_k       parts of K that are summed apart and added afterwards
        split_order   contiguous runs of tiles; or tiles dealt out in turn, added serial or pairwise
        split_tile    width of those tiles in k
    """
    changed = "" if label(unit) == unit.name else f" (of {unit.name} without the changes)"
    rows = [
        ("maturity", unit.maturity + changed),
        ("evidence", unit.evidence),
        ("source", unit.source),
    ]
    rows += _chain_words(unit)
    for kind, rule in unit.rules:
        operands = kind.removeprefix("mx:").partition("->")[0]
        rows.append((kind, rule_words(rule)))
        if operands in CLASSES:
            scaled = ", with block scales inside the unit" if kind.startswith("mx:") else ""
            rows.append(("", ", ".join(CLASSES[operands]) + scaled))
    words = [(unit.maturity, MATURITIES[unit.maturity]), *explained(unit)]
    head = "what the words mean (numsim targets NAME --toml prints a unit to edit)"
    return "\n".join([label(unit), _aligned(rows), head, _aligned(words)])


def _aligned(rows: list[tuple[str, str]]) -> str:
    width = max(14, *(len(key) for key, _ in rows))
    return "\n".join(f"  {key:<{width}} {value}".rstrip() for key, value in rows)


def _chain_words(unit: Target) -> list[tuple[str, str]]:
    """Return the fields about whole dot products that say something."""
    rows = []
    if unit.promote_every is not None:
        rows.append(("promote_every", str(unit.promote_every)))
    if unit.split_k > 1:
        rows.append(("split_k", f"{unit.split_k} {unit.split_order}, tiles of {unit.split_tile}"))
    return rows


def _targets_table() -> Table:
    table = Table(title="matrix units (targets NAME: one in full; a .toml file is a unit too)")
    for column in ("name", "operands", "rule", "maturity", "evidence"):
        table.add_column(column, no_wrap=column in ("name", "maturity"))
    for name in list_targets():
        unit = get_target(name)
        words: dict[str, list[str]] = {}
        for kind, rule in unit.rules:
            words.setdefault(rule_words(rule, short=True), []).append(kind)
        chain = "; ".join(f"{key} {value}" for key, value in _chain_words(unit))
        for i, (rule_text, kinds) in enumerate(words.items()):
            first = i == 0
            table.add_row(
                name if first else "", " ".join(kinds),
                rule_text + (f"; {chain}" if chain else ""), unit.maturity if first else "",
                unit.evidence if first else "", end_section=i == len(words) - 1,
            )  # fmt: skip
    return table


def print_mma(
    target: str | None, values: str | None, c: float | None, formats: str | None, out: str | None
) -> None:
    """Print a worked dot product; the command ``explain mma``."""
    if target is None:
        raise NumsimError("explain mma: give the unit with --target; numsim targets lists them")
    names = tuple(n.strip() for n in formats.split(",")) if formats else (None,)
    if len(names) > 2:
        raise NumsimError(f"explain mma: --formats is one format, or two: A,B; got {formats!r}")
    both = (names[0], names[1]) if len(names) == 2 else names[0]
    typer.echo(
        explain_mma(
            target, values=None if values is None else read_values(values), c=c,
            formats=both, out_format=out,
        )
    )  # fmt: skip


def read_values(text: str) -> list[tuple[float, float]]:
    """Read pairs written as products: ``1.5*2, -3*0.25``.

    Raises
    ------
    NumsimError
        For text of another form.

    Examples
    --------
    >>> read_values("1.5*2, -3*0.25")
    [(1.5, 2.0), (-3.0, 0.25)]
    """
    pairs = []
    for part in text.split(","):
        try:
            a, b = (float(v) for v in part.split("*"))
        except ValueError:
            raise NumsimError(
                f"explain mma: --values are products a*b with commas between; got "
                f"{part.strip()!r}; "
                'as in "1.5*2, -3*0.25"'
            ) from None
        if "inf" not in part.lower() and math.isinf(a + b):
            raise NumsimError(f"explain mma: {part.strip()} is beyond float64; write inf for Inf")
        pairs.append((a, b))
    return pairs


def print_silicon(only: str) -> None:
    """Print how outputs of hardware and of models were reproduced: ``verify silicon``."""
    from numsim.verify.silicon import SiliconRow, check_silicon, golden_folder

    folder = golden_folder()
    table = Table(title=f"outputs in {_short(folder)}, replayed bit for bit")
    columns = (
        "file", "recorded on", "unit", "results", "equal", "undecided", "equal here",
        "equal, other choice",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:3] else "right", no_wrap=True)
    rows: list[SiliconRow] = []
    notes: dict[str, None] = {}
    for row in check_silicon(folder, only=only):
        rows.append(row)
        open_ones = (row.undecided, row.undecided_equal, row.undecided_other)
        table.add_row(
            row.file, row.recorded_on, row.unit, f"{row.rows:,}",
            f"{row.equal:,}{'' if row.ok else '  FAIL'}",
            *(str(n) if row.undecided else "" for n in open_ones),
        )  # fmt: skip
        if row.note:
            notes[f"{row.unit}: {row.note}"] = None
    _print(table)
    failed = [row for row in rows if not row.ok]
    for row in failed:
        typer.echo(f"FAIL {row.file} {row.unit}: first {row.first}")
    typer.echo("Recorded on silicon: outputs of the chip; on a model: of an independent simulator.")
    if notes:
        typer.echo(
            "Undecided: results beside the others, on which two models differ and no silicon was "
            "recorded; both choices are fields:"
        )
        for note in notes:
            typer.echo(f"  {note}")
        typer.echo(
            "  min_exponent: models limit the largest exponent at -126, -132, -133, -139 or not "
            "(float16: -19, -20, -21 or not)"
        )
    equal, total = sum(r.equal for r in rows), sum(r.rows for r in rows)
    typer.echo(f"{equal:,} of {total:,} results equal; {len(failed)} of {len(rows)} units differ")
    if failed:
        sys.exit(1)


def _short(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def _print(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
