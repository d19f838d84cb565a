"""The command line: parse, call, print."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from numsim import options
from numsim.commands import register
from numsim.commands_mac import register as register_mac
from numsim.commands_model import register as register_model
from numsim.commands_pack import register as register_pack
from numsim.commands_train import register as register_train
from numsim.errors import NumsimError, printable
from numsim.float_state import known_floats
from numsim.kernels.cache import before_compiling
from numsim.terminal import say
from numsim.version import __version__
from numsim.vocabulary import ROUNDINGS

app = typer.Typer(
    name="numsim",
    help="Bit-exact emulation of number formats and matrix-multiply hardware.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Click's UsageError: Typer has it from Click, or brings its own
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


@known_floats
def main() -> None:
    """Run the command line; what is wrong is one sentence on stderr and exit code 2."""
    warnings.showwarning = _warned  # type: ignore[assignment]
    sys.unraisablehook = _unraisable
    before_compiling(_compiling)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows its code
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(_run())
    except NumsimError as error:
        _stop(str(error))
    except _UsageError as error:
        _stop(_usage(error))
    except BrokenPipeError:  # the reader has had enough; what is left goes nowhere
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (KeyboardInterrupt, typer.Abort):
        _stop("interrupted", code=130)
    except MemoryError:
        _stop("there is not enough memory for this; ask for less")
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _stop(f"{error.strerror or error}{where}")


def _run() -> Any:
    """Run the command; return its exit code."""
    try:
        code = app(prog_name="numsim", standalone_mode=False)
        if code == 130:  # Typer's word for it
            raise KeyboardInterrupt
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None
        code = stop.code
    if sys.stdout is not None:
        sys.stdout.flush()  # here, where an error still becomes a sentence
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not where LLVM calls Python: it would be lost, or a crash."""
    here = frame
    while here is not None:
        if "llvmlite" in Path(here.f_code.co_filename).parts:
            again = threading.Timer(0.05, signal.raise_signal, (number,))
            again.daemon = True
            again.start()
            return
        here = here.f_back
    raise KeyboardInterrupt


def _unraisable(what: Any) -> None:
    """Be silent of compiled code that an interrupt left half-made when it is thrown away."""
    if not str(getattr(what.object, "__module__", "")).startswith("llvmlite"):
        sys.__unraisablehook__(what)


def _stop(sentence: str, *, code: int = 2) -> None:
    short = re.sub(r"(\S{80})\S{200,}", r"\1...", printable(sentence))  # no word fills the screen
    try:
        typer.echo(f"numsim: {short}", err=True)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # no one listens
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def _usage(error: Any) -> str:
    """Return as one sentence what Click says in several lines: what is wrong, and who helps."""
    command = error.ctx.command_path if error.ctx else "numsim"
    text = " ".join(error.format_message().split()).rstrip(".")
    text = text.replace(". Did you mean", "; did you mean").removesuffix("?")
    name = command.removeprefix("numsim").strip()
    return f"{name}{': ' if name else ''}{text[:1].lower()}{text[1:]}; see {command} -h"


def _warned(message: Warning | str, *_: Any) -> None:
    """Say a warning as a sentence, without the line of code that gave it."""
    typer.echo(f"numsim: warning: {printable(message)}", err=True)


def _compiling() -> None:
    typer.echo("numsim: compiling what this needs, once for this processor", err=True)


def _version(value: bool) -> None:
    if value:
        say(f"numsim {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@app.command()
def sweep(
    model: Annotated[
        Path | None,
        typer.Option(
            help="Hugging Face folder, or ORG/NAME in its cache; default: the bundled tiny Llama."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="UTF-8 text, or token ids in .npy, integers [tokens], of an encoder [sentences, "
            "tokens]; of an encoder or classifier .jsonl too, a text or a pair in each line; T5 "
            "reads half of each window and is scored on the rest; default: the "
            "bundled course."
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            help="Formats, comma separated: e4m3,int8,q3.4,nvfp4,mine.toml; default: ten.",
            autocompletion=options.completes(*options.FORMATS, *options.RECIPES),
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="Units, comma separated: ideal.fp32,nvidia.hopper.wgmma,mine.toml; default: the "
            "exact unit of each format.",
            autocompletion=options.completes(*options.TARGETS),
        ),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            help="Scales, comma separated: per_tensor,per_channel+per_token,none; default: the "
            "first two; none for bfloat16 and fixed point."
        ),
    ] = None,
    rounding: Annotated[
        str | None,
        typer.Option(
            help="Rounding of the conversions: rne (default), rna, rtz, rup, rdn, rto or sr.",
            autocompletion=options.completes(*ROUNDINGS),
        ),
    ] = None,
    recipes: Annotated[
        str | None,
        typer.Option(
            help="TOML files of recipes, comma separated; without --formats, only they. declared: "
            "what a packed checkpoint says of itself.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of the same settings; options override it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file; default: results.csv.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the finished cases of the CSV file.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the CSV file if it exists.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Processes that share the cases; the same rows.", parser=options.whole, metavar="N"
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="In place of jobs: tcp://HOST:PORT of a dask scheduler."),
    ] = None,
    limit_tokens: Annotated[
        int | None,
        typer.Option(
            help="Use only the first tokens of the text.", parser=options.whole, metavar="N"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of stochastic rounding.", parser=options.whole, metavar="N"),
    ] = None,
    window_start: Annotated[
        str | None,
        typer.Option(help="What begins each window: bos (default), eos, or none: the text itself."),
    ] = None,
    ignore_keys: Annotated[
        str | None,
        typer.Option(
            help="Keys of config.json to read over, comma separated; results name them. "
            "rope_scaling.attn_factor=vllm: as vLLM reads it."
        ),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="For packed weights of all jobs: 4GB, 512MiB; larger models run by block."
        ),
    ] = None,
) -> None:
    """Run a model through formats and units; print a table."""
    from numsim.files import check_apart, read_toml
    from numsim.screen import sweep_progress, sweep_table
    from numsim.sweep.run import FailedCases
    from numsim.sweep.run import sweep as run_sweep

    fields: dict[str, Any] = read_toml(config, "sweep") if config else {}
    given = {
        "model": model, "text": text, "formats": options.split(formats),
        "targets": options.split(targets),
        "granularities": options.split(granularity), "recipes": options.split(recipes),
        "rounding": rounding, "out": out, "limit_tokens": limit_tokens, "seed": seed,
        "jobs": jobs, "scheduler": scheduler, "memory_limit": memory_limit,
        "resume": resume or None, "force": force or None, "window_start": window_start,
        "ignore_keys": options.split(ignore_keys),
    }  # fmt: skip
    fields |= {key: value for key, value in given.items() if value is not None}
    fields.setdefault("out", Path("results.csv"))
    check_apart(Path(fields["out"]), [("settings", config)], "sweep")
    failed: list[str] = []
    before = _state(fields["out"])
    try:
        with sweep_progress() as progress:
            rows = run_sweep(fields, progress=progress)
    except FailedCases as error:
        rows, failed = error.rows, error.messages
    except KeyboardInterrupt:
        where = f"rows computed so far are in {fields['out']}, continue with --resume"
        if _state(fields["out"]) == before:
            where = "no row had been computed, and no file was written or changed"
        say(f"numsim: interrupted; {where}", err=True)
        sys.exit(130)
    if len(rows):
        sweep_table(rows, Path(fields["out"]))
        say(f"{len(rows)} rows in {fields['out']}", err=True)
    for message in failed:
        say(f"numsim: case failed: {printable(message)}", err=True)
    if failed:
        sys.exit(1)


def _state(path: Path | str) -> tuple[int, ...] | None:
    """Return what changes when a file is written; None: there is none."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="CSV file of a sweep or of training.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for the report; default: NAME-report."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="CSV file of an older sweep: the page lists what moved.")
    ] = None,
    cost: Annotated[
        Path | None, typer.Option(help="TOML file of costs of your own, merged by id.")
    ] = None,
) -> None:
    """Make a page, tables and figures of a sweep or of training."""
    from numsim.report import write_report

    for path in write_report(results, out, against=against, cost=cost):
        say(path)


register(app)
register_mac(app)
register_train(app)
register_pack(app)
register_model(app)

if __name__ == "__main__":
    main()
