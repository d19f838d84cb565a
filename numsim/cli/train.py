"""The command train: parse, call, print."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from numsim.cli import options
from numsim.errors import NumsimError, printable
from numsim.terminal import say


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(train)


def train(
    recipes: Annotated[
        str | None,
        typer.Option(
            help="Recipes of training or their TOML files, comma separated; default: thirteen, or "
            "five with --model."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Messages, JSON lines or CSV (label, text, split); default: bundled."),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Unseen messages; default: those of --data not in train.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Train a network on a text: a folder, or tiny_llama.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text of --model.")] = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Start --model from random parameters.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(help="Updates; 240, of --model 40.", parser=options.whole, metavar="N"),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            help="Runs of each recipe, from seed 0 on.", parser=options.whole, metavar="N"
        ),
    ] = 1,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Examples of an update; 32, windows 8.", parser=options.whole, metavar="N"
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="First learning rate.", parser=options.number, metavar="NUMBER"),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adam or sgd.")] = "adam",
    loss: Annotated[
        str, typer.Option(help="Messages: bce_with_logits, cross_entropy or mse.")
    ] = "bce_with_logits",
    loss_scale: Annotated[
        float | None,
        typer.Option(
            help="First scale of a dynamic loss scale.", parser=options.number, metavar="NUMBER"
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Unit of the products.")] = None,
    tokens: Annotated[str, typer.Option(help="words, or subwords of the bundled model.")] = "words",
    keep_case: Annotated[bool, typer.Option("--keep-case", help="No lower case.")] = False,
    marks: Annotated[str, typer.Option(help="Punctuation that stays as words.")] = "!?$%",
    numbers: Annotated[bool, typer.Option("--numbers", help="Numbers stay as words.")] = False,
    drop_stop_words: Annotated[
        bool, typer.Option("--drop-stop-words", help="Leave out English function words.")
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder for checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --checkpoint.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace --out and checkpoints that exist.")
    ] = False,
    every: Annotated[
        int,
        typer.Option(
            help="Steps between checkpoints and scores.", parser=options.whole, metavar="N"
        ),
    ] = 20,
    watch: Annotated[
        int | None,
        typer.Option(
            help="Watch tensors each so many steps (*.tensors.csv); report draws them.",
            parser=options.whole,
            metavar="N",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            help="Processes that share the runs; the same rows.", parser=options.whole, metavar="N"
        ),
    ] = 1,
    out: Annotated[Path, typer.Option(help="CSV file of the curves.")] = Path("curves.csv"),
) -> None:
    """Train a classifier or a network by each recipe and seed."""
    from numsim.report.training import summary_text
    from numsim.train.files import check_writable, write_csv
    from numsim.train.plan import Plan, cases, check, check_checkpoints, check_inputs_stay
    from numsim.train.runs import CURVE_COLUMNS, runs
    from numsim.train.watch import TENSOR_COLUMNS

    names = () if recipes is None else tuple(n.strip() for n in recipes.split(",") if n.strip())
    if recipes is not None and not names:
        raise NumsimError(f"train: --recipes is names, comma separated; got {recipes!r}")
    bundled = model is not None and str(model) == "tiny_llama" and not model.exists()
    plan = Plan(
        names, seeds, steps, batch, None if lr is None else float(lr), optimizer, loss, target,
        None if loss_scale is None else float(loss_scale), data, test,
        None if bundled else model, text, model is not None, scratch, tokens, not keep_case, marks,
        numbers, drop_stop_words, checkpoint, resume, every, watch, jobs,
    )  # fmt: skip
    check(plan)
    check_inputs_stay(plan, out)
    check_writable(out, replace=force or resume)
    if not force:
        check_checkpoints(plan)
    watched = out.with_suffix(".tensors.csv")
    check_writable(watched, replace=force or resume)
    total, rows, tensors, failed = len(cases(plan)), [], [], []
    tell = _Progress(total)
    classes: tuple[str, ...] = ()
    try:
        for outcome in runs(plan, tell):
            rows += outcome.rows
            tensors += outcome.tensors
            tell.ended()
            classes = outcome.classes
            if outcome.error:
                failed.append(f"{outcome.recipe}, seed {outcome.seed}: {outcome.error}")
            write_csv(out, rows, CURVE_COLUMNS)
            if tensors:
                columns = ("recipe", "seed", *TENSOR_COLUMNS)
                write_csv(watched, tensors, columns)
            else:
                watched.unlink(missing_ok=True)  # of the curves that were here before
    except KeyboardInterrupt:
        kept = f"{len(rows)} rows are in {out}" if rows else "no run had ended"
        more = "" if checkpoint is None else "; the same command with --resume goes on"
        say(f"\nnumsim: interrupted; {kept}{more}", err=True)
        sys.exit(130)
    finally:
        tell.close()
    say(summary_text(out))
    say(f"{len(rows)} rows in {out}; numsim report {out} -o DIR draws them", err=True)
    if classes:
        said = ", ".join(f"{name} = {at}" for at, name in enumerate(classes))
        say(f"labels that are words were numbered in alphabetical order: {said}", err=True)
    if not failed and all(row["test_loss"] == "" for row in rows):
        typer.echo(
            "nothing was scored: every message is trained on; give --test FILE, or a column split "
            "whose rows other than train are unseen",
            err=True,
        )
    for message in failed:
        say(f"numsim: run failed: {printable(message)}", err=True)
    if failed:
        sys.exit(1)


class _Progress:
    """One line on stderr that says which step of which run, and when all will be done."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.began = total, 0, time.monotonic()
        self.live, self.said = sys.stderr.isatty(), 0.0

    def __call__(self, recipe: str, seed: int, step: int, steps: int, loss: float) -> None:
        now = time.monotonic()
        if not self.live or now - self.said < 0.2:
            return
        self.said = now
        part = (self.done + step / max(steps, 1)) / self.total
        left = (now - self.began) * (1 - part) / part if part > 0 else 0.0
        line = (
            f"run {min(self.done + 1, self.total)} of {self.total}: {recipe}, seed {seed}, step "
            f"{step} of {steps}, loss {loss:.3f}, {left / 60:.1f} min left"
        )
        sys.stderr.write(f"\r{printable(line)[:100]:<100}")
        sys.stderr.flush()

    def ended(self) -> None:
        """Count a run; without a terminal say so in a line."""
        self.done += 1
        if not self.live:
            passed = time.monotonic() - self.began
            typer.echo(f"{self.done} of {self.total} runs, {passed:.0f} s", err=True)

    def close(self) -> None:
        """End the line."""
        if self.live:
            sys.stderr.write("\r" + " " * 100 + "\r")
