"""The command pack: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from numsim.cli import options
from numsim.terminal import say


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(pack)


def pack(
    model: Annotated[Path, typer.Argument(help="Folder of a model, or org/name of the hub cache.")],
    recipe: Annotated[
        str,
        typer.Option(
            help="TOML file of a recipe; or a format or storage rule for the weights of all block "
            "linears, activations wide.",
            autocompletion=options.completes(*options.FORMATS, *options.RECIPES),
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    ignore_keys: Annotated[
        str | None, typer.Option(help="Keys of config.json to read over, comma separated.")
    ] = None,
) -> None:
    """Write a model as compressed-tensors by a recipe."""
    from numsim.models import Recipe, load_model
    from numsim.models import pack as write

    if recipe.endswith(".toml"):
        rules = Recipe.from_toml(recipe)
    else:
        rules = Recipe.uniform(None, target="ideal.fp32", weights=recipe)
    network = load_model(model, ignore_keys=options.split(ignore_keys) or ())
    names = write(network, rules, out)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    say(f"{len(names)} weights of {network.name} packed in {out}: {size / 1e6:.1f} MB")
