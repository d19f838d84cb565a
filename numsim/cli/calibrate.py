"""The command calibrate: static scales of a network, found on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from numsim.errors import NumsimError
from numsim.terminal import say


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
    count = sum(getattr(each.activations, "scale", None) is not None for _, each in found.rules)
    say(f"{out}: {count} static scales by {rule} of {len(pieces)} windows of {length} tokens")
