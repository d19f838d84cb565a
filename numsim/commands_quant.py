"""Commands about scales: calibrate, verify published, bench quantize. Parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from numsim.errors import NumsimError
from numsim.terminal import columns, say


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(calibrate)


def calibrate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the network.")],
    text: Annotated[Path, typer.Option(help="Text file to look at.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Recipe to write, .toml.")],
    recipe: Annotated[
        str, typer.Option(help="Recipe by name, or .toml: its activations with one scale a tensor.")
    ] = "te_delayed",
    rule: Annotated[str, typer.Option(help="amax, moving, percentile:99.9 or mse.")] = "amax",
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 128,
    windows: Annotated[int, typer.Option(help="Windows of the text, from its beginning.")] = 16,
) -> None:
    """Write a recipe of static scales found on a text."""
    from numsim.models import Recipe, load_model, load_text_tools, named_recipe
    from numsim.models.calibrate import calibrated

    if length < 1 or windows < 1:
        raise NumsimError(
            f"calibrate: --length and --windows are 1 or more; got {length}, {windows}"
        )
    rules = Recipe.from_toml(recipe) if recipe.endswith(".toml") else named_recipe(recipe)
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise NumsimError(f"calibrate: {text}: {error}; --text is a file of UTF-8 text") from None
    network = load_model(model)
    pieces = load_text_tools(model).windows(words, length)[:windows]
    found = calibrated(network, rules, pieces, rule=rule)
    out.write_text(found.to_toml(), encoding="utf-8")
    count = sum(each.activation_scale is not None for _, each in found.rules)
    say(f"{out}: {count} static scales by {rule} of {len(pieces)} windows of {length} tokens")


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


def print_bench() -> None:
    """Print how fast every kind of scale is: ``bench quantize``."""
    from numsim.bench.quantize import bench_gptq, bench_quantize

    cells: list[tuple[str, ...]] = [("task", "million/s", "of", "share", "aim")]
    for row in bench_quantize():
        share = f"{row.share:.3g}" if row.of else ""
        aim = f"{row.aim:.2g}" if row.aim else ""
        cells.append((row.task, f"{row.rate:,.3g}", row.of, share, aim))
    say("quantisation, one core, best of the repetitions")
    say("\n".join(columns(cells, "<><>>")))
    say(f"GPTQ of 4096 x 4096, every thread: {bench_gptq():.0f} s; the aim is 60")
