"""The command bench: numsim beside the installed peers, in one run."""

from __future__ import annotations

from typing import Annotated

import typer

from numsim.cli import options
from numsim.errors import NumsimError
from numsim.terminal import columns, say

_TASKS = ("cast", "quantize", "matmul", "model", "train", "report")


def register(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command()(bench)


def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="What to time: cast (conversions), quantize (scales), matmul (products), "
            "model (networks), train or report (the page).",
            autocompletion=options.completes(*_TASKS),
        ),
    ] = "cast",
) -> None:
    """Time numsim beside the installed peers, on this machine.

    All but cast take minutes, up to six. Compare ratios, which are of one run;
    docs/benchmarks.md says what was aimed at, and what limits it.
    """
    from numsim import bench as timers

    if what not in _TASKS:
        raise NumsimError(f"bench: {', '.join(_TASKS[:-1])} and report can be timed; got {what!r}")
    if what != "cast":
        say("numsim: timing, a few minutes; the table comes at the end", err=True)
    if what == "quantize":
        print_quantize()
        return
    if what == "matmul":
        timers.print_matmul(timers.bench_matmul())
        return
    if what == "model":
        timers.print_model(timers.bench_model())
        return
    if what == "train":
        timers.print_train(timers.bench_train())
        return
    if what == "report":
        print_report()
        return
    rows = [("task", "library", "million/s", "of copy bound", "numsim is faster by")]
    for row in timers.bench_cast():
        text = f"{row.ratio:.2f} x"
        if row.library.endswith(" x2"):
            text = f"(scales {1 / row.ratio:.2f} x)"
        elif row.library in ("numsim", "numsim out=", "NumPy"):
            text = ""
        rows.append((row.task, row.library, f"{row.rate:,.0f}", f"{row.of_bound:.0%}", text))
    say("conversions, one core, median; 'x2': two threads")
    say("\n".join(columns(rows, "<<>>>")))


def print_quantize() -> None:
    """Print how fast every kind of scale is: ``bench quantize``."""
    from numsim.bench.quantize import bench_gptq, bench_quantize

    cells: list[tuple[str, ...]] = [("task", "million/s", "/ copy", "of", "share", "aim")]
    for row in bench_quantize():
        share = f"{row.share:.3g}" if row.of else ""
        aim = f"{row.aim:.2g}" if row.aim else ""
        rate = f"{row.rate:,.0f}" if row.rate >= 100 else f"{row.rate:.3g}"
        cells.append((row.task, rate, f"{row.of_copy:.2f}", row.of, share, aim))
    say("quantisation, one core (x2: two), best of the repetitions")
    say("\n".join(columns(cells, "<>><>>")))
    say(
        "/ copy: over the rate of copying the values; share: over the rate of what\n"
        "stands under `of`, timed again in turns with the row; aim: the least share"
    )
    say(f"GPTQ of 4096 x 4096, every thread: {bench_gptq():.0f} s; the aim is 60")


def print_report() -> None:
    """Print how long the page of a report takes: ``bench report``."""
    from numsim.bench.report import bench_report, chromium

    cells: list[tuple[str, ...]] = [("results", "task", "took", "at most", "")]
    for row in bench_report():
        took, most = (f"{value:.2f} {row.unit}" for value in (row.value, row.limit))
        cells.append((row.file, row.task, took, most, "" if row.value <= row.limit else "above"))
    say("the page of a report")
    say("\n".join(columns(cells, "<<>><")))
    if chromium() is None:
        say("loading and filtering need Chromium, and pip install 'numsim[page]'")
