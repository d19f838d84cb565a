"""The command model: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from numsim.terminal import columns, say, width


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(model)


def model(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a model, or org/name of the hub cache.")
    ],
) -> None:
    """Say what a checkpoint is, before any of it is run."""
    from numsim.models import describe_model
    from numsim.models.describe import description_rows, product_cells

    found = describe_model(folder)
    say("\n".join([found.name, "", *columns(description_rows(found), "<<"), ""]))
    say("\n".join(columns(product_cells(found), "<>>>", within=width())))
