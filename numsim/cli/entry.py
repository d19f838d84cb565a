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

from numsim.cli.bench import register as register_bench
from numsim.cli.calibrate import register as register_calibrate
from numsim.cli.explain import register as register_explain
from numsim.cli.formats import register as register_formats
from numsim.cli.model import register as register_model
from numsim.cli.pack import register as register_pack
from numsim.cli.probe import register as register_probe
from numsim.cli.questions import register as register_questions
from numsim.cli.sweep import register as register_sweep
from numsim.cli.train import register as register_train
from numsim.cli.units import register as register_units
from numsim.cli.verify import register as register_verify
from numsim.errors import NumsimError, printable
from numsim.float_state import known_floats
from numsim.kernels.cache import before_compiling
from numsim.terminal import say
from numsim.version import __version__

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


register_sweep(app)
register_questions(app)
register_formats(app)
register_explain(app)
register_verify(app)
register_bench(app)
register_units(app)
register_probe(app)
register_calibrate(app)
register_train(app)
register_pack(app)
register_model(app)
