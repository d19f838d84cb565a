"""The command calibrate: static scales of a network, found on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from numsim.cli import options
from numsim.errors import NumsimError
from numsim.terminal import say


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(calibrate)


def calibrate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the network.")],
    text: Annotated[Path, typer.Option(help="Text, ids in .npy, or inputs in .npz.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Recipe to write, .toml.")],
    recipe: Annotated[
        str, typer.Option(help="Recipe by name, or .toml: its activations with one scale a tensor.")
    ] = "te_delayed",
    rule: Annotated[str, typer.Option(help="amax, moving, percentile:99.9 or mse.")] = "amax",
    length: Annotated[
        int, typer.Option(help="Tokens of a window.", parser=options.whole, metavar="N")
    ] = 128,
    windows: Annotated[
        int,
        typer.Option(
            help="Windows of the text, from its beginning.", parser=options.whole, metavar="N"
        ),
    ] = 16,
    force: Annotated[bool, typer.Option("--force", help="Replace --out if it exists.")] = False,
) -> None:
    """Write a recipe of static scales found on a text."""
    from numsim.cli import given
    from numsim.files import check_apart, replace_files
    from numsim.models import Recipe, load_model, load_text_tools, named_recipe
    from numsim.models.calibrate import calibrated

    if length < 2 or windows < 1:
        raise NumsimError(
            f"calibrate: --length is 2 or more, --windows 1 or more; got {length}, {windows}"
        )
    check_apart(out, [("text", text), ("recipe", recipe)], "calibrate")
    _check_place(out, force=force)
    rules = Recipe.from_toml(recipe) if recipe.endswith(".toml") else named_recipe(recipe)
    looked_at = given.read("calibrate", text)
    network = load_model(model)
    tools = load_text_tools(model)
    pieces = given.windows("calibrate", network, tools, looked_at, length, windows)
    found = calibrated(network, rules, pieces, rule=rule)
    try:
        replace_files({out: found.to_toml().encode()})
    except OSError as error:
        raise NumsimError(f"calibrate: cannot write {out}: {error.strerror}") from None
    count = sum(getattr(each.activations, "scale", None) is not None for _, each in found.rules)
    say(f"{out}: {count} static scales by {rule} of {_counted(pieces)}")


def _check_place(out: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, or exists, before the network runs."""
    if not out.parent.is_dir():
        raise NumsimError(f"calibrate: the folder of {out} is missing; make it first")
    if out.exists() and not out.is_file():
        raise NumsimError(f"calibrate: {out} is not a file; name a file for the recipe")
    if out.exists() and not force:
        raise NumsimError(f"calibrate: {out} exists; name another file, or --force replaces it")


def _counted(pieces: list[Any]) -> str:
    """Return how many windows of how many tokens, or rows of what, were looked at."""
    if "tokens" not in pieces[0]:
        rows = f"{len(pieces)} row{'s' if len(pieces) > 1 else ''}"
        return f"{rows} of {' and '.join(pieces[0])}"
    sizes = {sum(np.size(v) for k, v in one.items() if k.endswith("tokens")) for one in pieces}
    words = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    return f"{len(pieces)} window{'s' if len(pieces) > 1 else ''} of {words} tokens"
