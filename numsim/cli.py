"""The command line: parse, call, print."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from numsim.commands import register
from numsim.commands_mac import register as register_mac
from numsim.errors import NumsimError
from numsim.version import __version__

app = typer.Typer(
    name="numsim",
    help="Bit-exact emulation of number formats and matrix-multiply hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; a NumsimError is one sentence on stderr and exit code 2."""
    warnings.showwarning = _warned  # type: ignore[assignment]
    try:
        app()
    except NumsimError as error:
        typer.echo(f"numsim: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)
    except KeyboardInterrupt:
        typer.echo("numsim: interrupted", err=True)
        sys.exit(130)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        typer.echo(f"numsim: {error.strerror or error}{where}", err=True)
        sys.exit(2)


def _warned(message: Warning | str, *_: Any) -> None:
    """Say a warning as a sentence, without the line of code that gave it."""
    typer.echo(f"numsim: warning: {message}", err=True)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"numsim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())


@app.command()
def sweep(
    model: Annotated[
        Path | None, typer.Option(help="Hugging Face folder; default: the bundled tiny Llama.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="UTF-8 text, or token ids in .npy, integers [tokens], of an encoder [sentences, "
            "tokens]; T5 reads half of each window and is scored on the rest; default: the "
            "bundled course."
        ),
    ] = None,
    formats: Annotated[
        str | None, typer.Option(help="Formats, comma separated: float8_e4m3fn,int8,q3.4.")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="Units, comma separated: ideal.fp32,nvidia.hopper.wgmma."),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(help="Scales, comma separated: per_tensor,per_channel+per_token,none."),
    ] = None,
    rounding: Annotated[
        str | None, typer.Option(help="Rounding of the conversions: rne (default), rtz, sr, ...")
    ] = None,
    recipes: Annotated[
        str | None,
        typer.Option(help="TOML files of recipes, comma separated; without --formats, only they."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of the same settings; options override it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file; default: results.csv.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the finished cases of the CSV file.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Processes that share the cases; the same rows.")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="In place of jobs: tcp://HOST:PORT of a dask scheduler."),
    ] = None,
    limit_tokens: Annotated[
        int | None, typer.Option(help="Use only the first tokens of the text.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of stochastic rounding.")] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="For packed weights of all jobs: 4GB, 512MiB; larger models run by block."
        ),
    ] = None,
) -> None:
    """Run a model through formats and units; write a CSV file and print a table."""
    from numsim.screen import sweep_progress, sweep_table
    from numsim.sweep.run import FailedCases
    from numsim.sweep.run import sweep as run_sweep
    from numsim.sweep.spec import read_fields

    fields: dict[str, Any] = read_fields(config) if config else {}
    given = {
        "model": model, "text": text, "formats": _names(formats), "targets": _names(targets),
        "granularities": _names(granularity), "recipes": _names(recipes),
        "rounding": rounding, "out": out, "limit_tokens": limit_tokens, "seed": seed,
        "jobs": jobs, "scheduler": scheduler, "memory_limit": memory_limit,
        "resume": resume or None,
    }  # fmt: skip
    fields |= {key: value for key, value in given.items() if value is not None}
    fields.setdefault("out", Path("results.csv"))
    failed: list[str] = []
    try:
        with sweep_progress() as progress:
            rows = run_sweep(fields, progress=progress)
    except FailedCases as error:
        rows, failed = error.rows, error.messages
    except KeyboardInterrupt:
        typer.echo(
            f"numsim: interrupted; rows computed so far are in {fields['out']}, "
            "continue with --resume",
            err=True,
        )
        sys.exit(130)
    if len(rows):
        sweep_table(rows, Path(fields["out"]))
        typer.echo(f"{len(rows)} rows in {fields['out']}", err=True)
    for message in failed:
        typer.echo(f"numsim: case failed: {message}", err=True)
    if failed:
        sys.exit(1)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="CSV file of a sweep.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for the report; default: NAME-report."),
    ] = None,
) -> None:
    """Write a Markdown table and figures from the CSV file of a sweep."""
    from numsim.report import write_report

    for path in write_report(results, out):
        typer.echo(str(path))


register(app)
register_mac(app)

if __name__ == "__main__":
    main()
