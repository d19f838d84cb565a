"""Every pair of units: what tells them apart, and which cannot be told apart."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from numsim.files import escape_cell, replace_files
from numsim.float_state import known_floats
from numsim.probe.apart import Apart, shared, tell_apart
from numsim.targets import get_target, list_targets


def pairs() -> Iterator[tuple[str, str, Apart | None, str]]:
    """Yield (unit, unit, what tells them apart, the operands compared) for units of the table.

    Pairs that have no operands in common are left out.
    """
    for a, b in combinations(list_targets(), 2):
        machines = list(shared(get_target(a), get_target(b)))
        if machines:
            names = dict.fromkeys(
                (m.a.label if m.a == m.b else f"{m.a.label} by {m.b.label}")
                + (f" with {m.blocks}" if m.blocks else "")
                for m in machines
            )
            yield a, b, tell_apart(a, b), ", ".join(names)


@known_floats
def write_matrix(folder: str | Path) -> tuple[Path, ...]:
    """Write pairs.csv and README.md: every pair of units of the table.

    Parameters
    ----------
    folder
        Folder to write to; made if it does not exist.

    Returns
    -------
    The files written.

    Source
    ------
    `numsim.tell_apart`.

    Examples
    --------
    >>> write_matrix.__name__  # minutes: every unit runs every stimulus
    'write_matrix'
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    table, rows, equal = io.StringIO(), [], []
    out = csv.writer(table, lineterminator="\n")
    out.writerow(("a", "b", "products", "only_nan", "operands", "example"))
    for a, b, found, operands in pairs():
        if found is None:
            equal.append((a, b, operands))
            out.writerow((a, b, "", "", operands, "no product was found"))
            continue
        out.writerow((a, b, found.products, found.nan, operands, escape_cell(str(found))))
        rows.append((a, b, found))
    names = list_targets()
    cells = {(a, b): str(x.products) + ("n" if x.nan else "") for a, b, x in rows}
    cells |= {(a, b): "=" for a, b, _ in equal}
    text = _page(names, cells, equal, rows)
    files = {place / "pairs.csv": table.getvalue().encode(), place / "README.md": text.encode()}
    replace_files(files)
    return tuple(files)


def _page(
    names: tuple[str, ...], cells: dict[tuple[str, str], str],
    equal: list[tuple[str, str, str]], rows: list[tuple[str, str, Apart]],
) -> str:  # fmt: skip
    lines = [
        "# Which units can be told apart", "",
        "Every pair of units of the table that multiply the same formats: the fewest products that "
        "are not zero on which their results differ (0: C and zeros alone do). `=`: no product was "
        "found, on the stimuli of `numsim probe` and 500 random sums for each pair of formats; n: "
        "only the bits of NaN differ; empty: no operands in common. The products themselves are in "
        "[pairs.csv](pairs.csv); `numsim probe --apart A,B -o FOLDER` writes them as vectors for a "
        "test bench. Made by `python -c \"from numsim.probe.matrix import write_matrix; "
        "write_matrix('reports/units-apart')\"`.", "",
        "## Pairs that cannot be told apart", "",
        *(f"- `{a}` and `{b}` ({operands})" for a, b, operands in equal), "",
        f"{len(rows)} pairs differ, {len(equal)} do not.", "", "## All pairs", "",
    ]  # fmt: skip
    lines += [f"{n}. `{name}`" for n, name in enumerate(names, 1)]
    lines += ["", "| | " + " | ".join(str(n) for n in range(2, len(names) + 1)) + " |"]
    lines.append("|---|" + "---|" * (len(names) - 1))
    for n, a in enumerate(names[:-1], 1):
        row = [cells.get((a, b), "") if m > n - 1 else "" for m, b in enumerate(names[1:], 1)]
        lines.append(f"| {n} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"
