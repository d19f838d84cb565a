"""The command verify: conversions, recorded outputs, published figures, probed units."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from numsim.cli import options
from numsim.errors import NumsimError
from numsim.terminal import columns, say


def register(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command()(verify)


def verify(
    what: Annotated[
        str,
        typer.Argument(
            help="conversions; silicon: recorded outputs of chips and models; published: figures "
            "of the literature; probe: units probed as black boxes.",
            autocompletion=options.completes("conversions", "silicon", "published", "probe"),
        ),
    ] = "conversions",
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="All 2**32 float32 inputs of each format.")
    ] = False,
    formats: Annotated[
        str | None,
        typer.Option(
            help="Formats, comma separated.", autocompletion=options.completes(*options.FORMATS)
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="silicon, published: beginning of the names.")
    ] = None,
    units: Annotated[
        int | None,
        typer.Option(
            help="probe: units with random fields.", parser=options.whole, metavar="N"
        ),
    ] = None,
) -> None:  # fmt: skip
    """Check bits, recorded outputs, published figures."""
    if what == "probe":
        if exhaustive or formats is not None or only is not None:
            raise NumsimError("verify: verify probe has --units only; leave the others out")
        if units is not None and units < 0:
            raise NumsimError(f"verify: --units is at least 0; got {units}")
        print_probe(40 if units is None else units, seed=0)
        return
    if units is not None:
        raise NumsimError("verify: --units is for verify probe; leave it out")
    if what in ("silicon", "published"):
        if exhaustive or formats is not None:
            raise NumsimError(
                "verify: --exhaustive and --formats are for verify conversions; leave them out"
            )
        (print_silicon if what == "silicon" else print_published)(only or "")
        return
    if what != "conversions":
        raise NumsimError(f"verify: conversions, silicon, published or probe; got {what!r}")
    if only is not None:
        raise NumsimError("verify: --only is for verify silicon and published; leave it out")
    from numsim.verify import check_every_float32, check_modes, checkable, formats_to_check

    names = formats_to_check() if formats is None else options.split(formats)
    if not names:
        raise NumsimError(f"verify: --formats is names, comma separated; got {formats!r}")
    failed = False
    for f in [checkable(name) for name in names]:  # every name first, then the work
        for check in check_every_float32(f) if exhaustive else (check_modes(f),):
            failed |= check.different > 0
            word = "FAIL" if check.different else "ok"
            say(
                f"{word:<4} {check.name:<34} {check.compared:>13,} compared with "
                f"{check.reference:<14} {check.different:,} differ {check.seconds:7.1f} s"
                + (f"; first: {check.first}" if check.first else "")
            )
    if failed:
        sys.exit(1)


def print_silicon(only: str) -> None:
    """Print which outputs of chips, models and published rules come out: ``verify silicon``."""
    from numsim.verify.silicon import EVIDENCE, check_silicon, golden_folder

    folder = golden_folder()
    rows = list(check_silicon(folder, only=only))
    say(f"outputs in {_short(folder)}, replayed bit for bit")
    for kind, words in EVIDENCE.items():
        found = [row for row in rows if row.evidence == kind]
        if found:
            equal, total = sum(r.equal for r in found), sum(r.rows for r in found)
            say(f"\n{kind}: {words}; {equal:,} of {total:,} equal")
            cells: list[tuple[str, ...]] = [("file", "unit", "results", "equal", "masked")]
            cells += [
                (r.file, r.unit, f"{r.rows:,}", f"{r.equal:,}{'' if r.ok else '  FAIL'}",
                 str(r.masked or ""))
                for r in found
            ]  # fmt: skip
            say("\n".join(columns(cells, "<<>>>")))
    failed = [row for row in rows if not row.ok]
    for row in failed:
        say(f"FAIL {row.file} {row.unit}: first {row.first}")
    if any(row.masked for row in rows):
        say(
            "\nmasked: not compared; another version of the model differs there, or the rule "
            "leaves it open"
        )
    equal, total = sum(r.equal for r in rows), sum(r.rows for r in rows)
    say(f"{equal:,} of {total:,} results equal; {len(failed)} of {len(rows)} units differ")
    if failed:
        sys.exit(1)


def _short(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def print_published(only: str) -> None:
    """Print figures of the literature beside those computed now: ``verify published``."""
    from numsim.verify.published import PublishedRow, check_published

    rows: list[PublishedRow] = []
    cells: list[tuple[str, ...]] = [("", "figure", "published", "computed", "difference", "source")]
    for row in check_published(only):
        rows.append(row)
        word = "MOVED" if not row.holds else {True: "ok", None: "new", False: "differs"}[row.agrees]
        published, difference = "", ""
        if row.value is not None:
            published, difference = f"{row.value:.6g}", f"{row.computed - row.value:+.2g}"
        cells.append((word, row.id, published, f"{row.computed:.6g}", difference, row.source))
    say("\n".join(columns(cells, "<<>>><")))
    for row in rows:
        if row.agrees is False:
            say(f"differs: {row.id}, {row.statement}: {row.note or row.how}")
    for row in rows:
        if not row.holds:
            say(
                f"MOVED: {row.id} was {row.before:.6g} and is {row.computed:.6g}; the tolerance is "
                f"{row.tolerance:g}"
            )
    moved = sum(not row.holds for row in rows)
    count = {
        word: sum(row.agrees is agrees for row in rows)
        for word, agrees in (("agree", True), ("differ, as said above", False), ("new here", None))
    }
    say(
        f"{len(rows)} figures: {', '.join(f'{n} {word}' for word, n in count.items())}; "
        f"{moved} moved since they were written down"
    )
    if moved:
        sys.exit(1)


def print_probe(units: int, seed: int) -> None:
    """Print how units come back from a probe: ``verify probe``."""
    from numsim.verify.probe import Recovery, random_units, recover, table_units

    rows: list[Recovery] = []
    form = "{:<28} {:<44} {:>7} {:>7} {:>6} {:>12}  {}"
    say("units probed as black boxes; what was found, on sums that the probe never saw")
    say(form.format("unit", "operands", "equal", "of", "calls", "rules tried", "").rstrip())
    for unit, machine in [*table_units(), *random_units(units, seed)]:  # hours: each as it comes
        row = recover(unit, machine)
        rows.append(row)
        say(form.format(
            row.unit, row.operands, f"{row.equal:,}", f"{row.fresh:,}", f"{row.calls:,}",
            f"{row.tried:,}", "" if row.ok else "FAIL",
        ).rstrip())  # fmt: skip
    for words, some in (
        ("of the table", [r for r in rows if not r.unit.startswith("random ")]),
        ("with random fields", [r for r in rows if r.unit.startswith("random ")]),
    ):
        if some:
            good = sum(r.ok for r in some)
            equal, fresh = sum(r.equal for r in some), sum(r.fresh for r in some)
            calls = sorted(r.calls for r in some)
            say(
                f"{good} of {len(some)} units {words} recovered bit for bit "
                f"({good / len(some):.1%}); "
                f"{equal:,} of {fresh:,} results equal; calls {calls[0]} to {calls[-1]}, median "
                f"{calls[len(calls) // 2]}"
            )
    if any(not r.ok for r in rows):
        sys.exit(1)
