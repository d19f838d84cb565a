"""The command explain: a format, a recipe, an accumulator in words, or a dot product (mma)."""

from __future__ import annotations

from typing import Annotated

import typer

from numsim.cli import options
from numsim.cli.formats import format_or_recipe
from numsim.errors import NumsimError
from numsim.explain import parse_number
from numsim.targets.explain import explain_mma
from numsim.terminal import say


def register(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command()(explain)


def explain(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help='Format, recipe, "22 bits, cut"; or mma: a dot product.',
            autocompletion=options.completes("mma", *options.FORMATS, *options.RECIPES),
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            help="mma: unit, or .toml file.", autocompletion=options.completes(*options.TARGETS)
        ),
    ] = None,
    values: Annotated[str | None, typer.Option(help='mma: "1.5*2, -3*0.25".')] = None,
    c: Annotated[
        float | None,
        typer.Option(
            "--c", help="mma: accumulator input.", parser=options.number, metavar="NUMBER"
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            help="mma: operand format, or A,B; or nvfp4, mxfp8_e4m3.",
            autocompletion=options.completes(*options.FORMATS, *options.RECIPES),
        ),
    ] = None,
    out_format: Annotated[
        str | None,
        typer.Option(
            help="mma: float32, float16.", autocompletion=options.completes(*options.FORMATS)
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="mma: only the rule, where scales go, the kernel.")
    ] = False,
) -> None:  # fmt: skip
    """Explain a format, an accumulator, or a dot product (mma)."""
    if name == "mma":
        print_mma(target, values, c, formats, out_format, plan)
        return
    if plan or (target, values, c, formats, out_format) != (None,) * 5:
        raise NumsimError(
            f"explain: these options are for explain mma; got {name!r}; leave them out, or "
            "numsim explain mma --target T"
        )
    from numsim.explain import explain_accumulator, explain_format, explain_recipe, is_accumulator
    from numsim.models.named import NAMED, recipe_lines

    if name in NAMED:
        say("\n".join(recipe_lines(name)))
        return
    if is_accumulator(name):
        say(explain_accumulator(name))
        return
    f, recipe = format_or_recipe(name)
    say(explain_recipe(recipe) if recipe else explain_format(f))


def print_mma(
    target: str | None, values: str | None, c: float | None, formats: str | None,
    out: str | None, plan: bool,
) -> None:  # fmt: skip
    """Print a worked dot product; the command ``explain mma``."""
    if target is None:
        raise NumsimError("explain mma: give the unit with --target; numsim targets lists them")
    names = tuple(n.strip() for n in formats.split(",")) if formats else (None,)
    if len(names) > 2:
        raise NumsimError(f"explain mma: --formats is one format, or two: A,B; got {formats!r}")
    both = (names[0], names[1]) if len(names) == 2 else names[0]
    say(
        explain_mma(
            target, values=None if values is None else read_values(values), c=c,
            formats=both, out_format=out, plan=plan,
        )
    )  # fmt: skip


def read_values(text: str) -> list[tuple[float, float]]:
    """Read pairs written as products: ``1.5*2, -3*0.25``.

    Raises
    ------
    NumsimError
        For text of another form.

    Examples
    --------
    >>> read_values("1.5*2, -3*0.25")
    [(1.5, 2.0), (-3.0, 0.25)]
    """
    pairs = []
    for part in text.split(","):
        try:
            a, b = (float(parse_number(v.strip())) for v in part.split("*"))
        except (ValueError, OverflowError):
            raise NumsimError(
                "explain mma: --values are products a*b of float64 numbers with commas between; "
                f'got {part.strip()[:60]!r}; as in "1.5*2, -3*0.25, inf*1"'
            ) from None
        pairs.append((a, b))
    return pairs
