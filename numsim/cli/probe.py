"""The commands about black boxes and pairs of units: probe and diff."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from numsim.cli import options
from numsim.errors import NumsimError
from numsim.terminal import say


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    for command in (probe, diff):
        app.command()(command)


_FORMATS = options.completes(*options.FORMATS)
_TARGETS = options.completes(*options.TARGETS)


def probe(
    emit: Annotated[
        Path | None, typer.Option("--emit", help="Write the first round of stimuli to a folder.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option("--answers", help="Read what a machine answered to the stimuli of a folder."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Probe a unit, or .toml file, as a black box.", autocompletion=_TARGETS),
    ] = None,
    apart: Annotated[
        str | None,
        typer.Option("--apart", help="Two units A,B: the fewest products that tell them apart."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(help="Operand format, or A,B of a and b.", autocompletion=_FORMATS),
    ] = None,
    out_format: Annotated[
        str | None, typer.Option(help="float32 or float16; integers int32.")
    ] = None,
    c: Annotated[
        bool, typer.Option("--c/--no-c", help="The machine adds to an accumulator input.")
    ] = True,
    depths: Annotated[str, typer.Option(help="K of the stimuli, and of the long ones.")] = "64,512",
    blocks: Annotated[
        str | None, typer.Option(help="Block scales inside, as in float8_e8m0fnu/32.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for unit, evidence and vectors.")
    ] = None,
) -> None:  # fmt: skip
    """Find out how a machine adds, from its answers to stimuli."""
    from numsim.probe import ProbeError

    doing = [x for x in (emit, answers, target, apart) if x is not None]
    if len(doing) != 1:
        raise NumsimError(
            f"probe: one of --emit FOLDER, --answers FOLDER, --target UNIT and --apart A,B; got "
            f"{len(doing)} of them"
        )
    if answers is not None and formats is not None:
        raise NumsimError("probe: --answers reads the formats from the folder; leave --formats out")
    if answers is not None and blocks is not None:
        raise NumsimError("probe: --answers reads the blocks from the folder; leave --blocks out")
    if answers is None and apart is None and formats is None:
        raise NumsimError(
            "probe: give the operand format with --formats; numsim formats lists them"
        )
    how: dict[str, Any] = {
        "out_format": out_format, "c": c, "depths": _depths(depths), "blocks": blocks,
    }  # fmt: skip
    try:
        if emit is not None:
            _say_asked(emit, _emitted(emit, formats, how))
        elif answers is not None:
            _read(answers, out)
        elif target is not None:
            _probe_unit(target, formats, how, out)
        else:
            _apart(str(apart), formats, {"out_format": out_format, "blocks": blocks}, out)
    except ProbeError as error:
        from numsim.probe.words import as_text

        folder = out or answers
        if folder is not None:
            _save(error.probe, folder)
        say(as_text(error.probe), err=True)
        raise


def _depths(text: str) -> tuple[int, ...]:
    parts = options.split(text) or ()
    if not parts or not all(p.isdigit() for p in parts):
        raise NumsimError(f"probe: --depths is one K or two, as in 64,512; got {text!r}")
    return tuple(int(p) for p in parts)


def _pair(text: str | None) -> Any:
    parts = options.split(text) or ()
    return parts[0] if len(parts) == 1 else tuple(parts)


def _emitted(folder: Path, formats: str | None, how: dict[str, Any]) -> Any:
    from numsim.probe.offline import emit

    return emit(folder, formats=_pair(formats), **how)


def _say_asked(folder: Path, asked: Any) -> None:
    say(
        f"round {asked.round} of stimuli in {folder}/round{asked.round}: {', '.join(asked.files)}; "
        "put the results beside them as NAME.d.npz, .d.hex or .d.csv, then numsim probe --answers "
        f"{folder}"
    )


def _read(folder: Path, out: Path | None) -> None:
    from numsim.probe.offline import Asked, read_answers

    found = read_answers(folder)
    if isinstance(found, Asked):
        _say_asked(folder, found)
        return
    say(str(found))
    _save(found, out or folder)


def _probe_unit(name: str, formats: str | None, how: dict[str, Any], out: Path | None) -> None:
    from numsim.probe import probe as run_probe
    from numsim.probe.machine import as_machine
    from numsim.probe.probe import machine_for
    from numsim.targets import get_target

    machine = machine_for(_pair(formats), **how)
    found = run_probe(as_machine(get_target(name), machine), formats=_pair(formats), **how)
    say(str(found))
    if out is not None:
        _save(found, out)


def _save(found: Any, folder: Path) -> None:
    from numsim.probe.words import save

    for file in save(found, folder):
        say(file)


def _apart(both: str, formats: str | None, how: dict[str, Any], out: Path | None) -> None:
    from numsim.probe import tell_apart

    names = options.split(both) or ()
    if len(names) != 2:
        raise NumsimError(f"probe: --apart is two units, A,B; got {both!r}")
    found = tell_apart(names[0], names[1], formats=_pair(formats) if formats else None, **how)
    if found is None:
        say(f"{names[0]} and {names[1]}: no product was found on which they differ")
        return
    say(str(found))
    for file in found.save(out) if out is not None else ():
        say(file)


def diff(
    results: Annotated[
        list[str] | None,
        typer.Argument(help="Two files of results, or FILE.csv:CASE_ID.", show_default=False),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="Two units or .toml files, A,B.", autocompletion=_TARGETS),
    ] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Two recipes in TOML, A.toml,B.toml.")
    ] = None,
    formats: Annotated[
        str, typer.Option(help="With --targets: how operands are stored.", autocompletion=_FORMATS)
    ] = "float8_e4m3fn",
    out_format: Annotated[str, typer.Option(help="With --targets: of the units.")] = "float32",
    model: Annotated[
        Path | None, typer.Option(help="Folder of a model; default: the bundled one.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Text, ids in .npy, inputs in .npz; default: bundled."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Tokens of the text.", parser=options.whole, metavar="N")
    ] = 64,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the CSV files and the figure.")
    ] = None,
) -> None:  # fmt: skip
    """Show where two units or recipes part, and why."""
    from numsim.cli.given import read, some_tokens
    from numsim.data import bundled_model_dir, bundled_text
    from numsim.diff import as_text, write_diff
    from numsim.diff import diff as compare
    from numsim.diff.compute import recipes as of_units
    from numsim.models import Recipe, load_model
    from numsim.models.text import load_text_tools

    given = [options.split(x) or () for x in (targets, recipes) if x is not None]
    given += [tuple(results)] if results else []
    if len(given) != 1 or len(given[0]) != 2:
        raise NumsimError(
            "diff: two sides, --targets A,B, --recipes A.toml,B.toml or two result files; got "
            + (", ".join(" ".join(g) for g in given) or "none")
        )
    if tokens < 1:
        raise NumsimError(f"diff: --tokens is at least 1; got {tokens}")
    names = given[0]
    if results:
        if model is not None or text is not None:
            raise NumsimError("diff: files of results name their model and text; leave them out")
        found = _of_results(names, tokens)
    else:
        if targets is not None:
            sides = tuple(of_units(names, formats, out_format).values())
            sides = sides if len(sides) == 2 else (sides[0], sides[0])
        else:
            sides = tuple(Recipe.from_toml(name) for name in names)
        folder = model or bundled_model_dir()
        words = bundled_text() if text is None else read("diff", text)
        network = load_model(folder)
        inputs = some_tokens("diff", network, load_text_tools(folder), words, tokens)
        found = compare(network, inputs, sides[0], sides[1], names=(names[0], names[1]))
    say(as_text(found))
    for file in write_diff(found, out) if out is not None else ():
        say(file)


def _of_results(names: Sequence[str], tokens: int) -> Any:
    """Compare a case of each of two files on the first window of their text."""
    from numsim.diff import diff as compare
    from numsim.sweep.again import read_case

    a, b = (read_case(name) for name in names)
    one, two = ((x.case.model_hash, x.case.text_hash) for x in (a, b))
    if one != two:
        raise NumsimError(
            f"diff: two files of results of one model and text; {names[0]} is of {a.case.model} on "
            f"{a.case.text}, {names[1]} of {b.case.model} on {b.case.text}"
        )
    labels = [x.case.label for x in (a, b)]
    shown = (labels[0], labels[1]) if labels[0] != labels[1] else (names[0], names[1])
    return compare(a.model, a.tokens[:tokens], a.recipe, b.recipe, names=shown)
