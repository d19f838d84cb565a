"""The commands about formats: formats and cast."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from numsim.cli import options
from numsim.errors import NumsimError
from numsim.formats import Format, get_format, list_formats
from numsim.terminal import columns, say, width
from numsim.vocabulary import NAN_POLICIES, OVERFLOWS, ROUNDINGS

_ROUNDING = (
    "rne: nearest, ties to even; rna: ties away from zero; rtz: toward zero; rup, rdn: toward "
    "+inf, -inf; rto: inexact to odd; sr: stochastic."
)
_OVERFLOW = (
    "saturate: the maximum, for Inf too; special: Inf, or NaN without Inf; saturate_finite: the "
    "maximum, Inf stays; wrap: modulo 2**bits (integers)."
)
_NAN = (
    "canonical: one positive NaN; payload: sign and upper bits kept; without NaN in the format "
    "max or zero. Unset: quiet, sign kept."
)
_SR = (
    "sr: truncate, half_offset or rne_first of the discarded bits; or hardware: nvidia.cvt.rs, "
    "amd.cvt_sr, graphcore.ipu, aws.trainium."
)
# a parameter of numsim.encode in its messages: the option of the command stands for it
_PARAMETERS = "rounding|overflow|nan|random_bits|sr|seed|offset"
_ASSIGNED = re.compile(rf"\b({_PARAMETERS})=(?:'(\S+?)'|([\w.+-]*))")
_NAMED = re.compile(rf"(?<![\w-])({_PARAMETERS})(?= is one of| is an integer| out\b)")


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(formats)
    app.command(context_settings={"ignore_unknown_options": True})(cast)  # -0.3 is a number


_FORMAT = options.completes(*options.FORMATS, *options.RECIPES)


def formats(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", autocompletion=_FORMAT,
            help="Show every value of one format, or the formats whose names have this part.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Draw its number line: .png, .svg or .pdf.")
    ] = None,
) -> None:  # fmt: skip
    """List the formats, or every value of one with its bits."""
    from numsim.explain import list_lines
    from numsim.quant import QUANTS

    if name is None:
        if out is not None:
            raise NumsimError(
                "formats: -o draws one format; got no NAME; try formats e4m3 -o x.png"
            )
        say("\n".join([*list_lines(list_formats(), width()), "", *list_lines(QUANTS, width())]))
        say("parsed names: q3.4, uq0.8, float_e5m6, p3109_k8p4se, posit8_es2 and their like")
        return
    found = options.matching_formats(name)
    try:
        f, recipe = format_or_recipe(name)
    except NumsimError:
        if not found or (out is not None and len(found) > 1):
            raise
        if len(found) > 1:
            say("\n".join(list_lines(found, width())))
            return
        (name,) = found
        f, recipe = format_or_recipe(name)
    if out is not None:
        from numsim.number_line import draw_number_line

        say(draw_number_line(f, out))
        return
    _print_values(f, recipe)
    others = [other for other in found if other not in (name, f.name, recipe)]
    if others:
        say(f"names with {name!r} in them: {', '.join(others)}")


def format_or_recipe(name: str) -> tuple[Format, str | None]:
    """Return a format and None, or the elements of a recipe of blocks and its name."""
    from numsim.quant import QUANTS, recipe_name

    recipe = recipe_name(name)
    return (QUANTS[recipe].fmt if recipe else get_format(name)), recipe


def _print_values(f: Format, recipe: str | None) -> None:
    from numsim.explain import recipe_title, value_rows

    rows, digits = value_rows(f), -(-f.bits // 4)
    title = f"{recipe_title(recipe)}; the elements" if recipe else ""
    say(title or f"{f.name}: {f.source}")
    cells = [("code", "bits", "value")]
    cells += [(f"{code:#0{digits + 2}x}", bits, repr(value)) for code, bits, value in rows]
    say("\n".join(columns(cells, ">>>")))


def cast(
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="17, -0.3, 0x1F, 1e9, inf, nan; a block: 1,2.5.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", help="Format, or blocks: mxfp4_e2m1, nvfp4.", autocompletion=_FORMAT
        ),
    ],
    rounding: Annotated[
        str, typer.Option(help=_ROUNDING, autocompletion=options.completes(*ROUNDINGS))
    ] = "rne",
    overflow: Annotated[
        str, typer.Option(help=_OVERFLOW, autocompletion=options.completes(*OVERFLOWS))
    ] = "saturate",
    nan: Annotated[
        str | None,
        typer.Option("--nan", help=_NAN, autocompletion=options.completes(*NAN_POLICIES)),
    ] = None,
    random_bits: Annotated[
        int | None,
        typer.Option(
            "--random-bits", help="sr: bits drawn, 1 to 32; unset: all.", parser=options.whole,
            metavar="N",
        ),
    ] = None,
    sr: Annotated[
        str, typer.Option("--sr", help=_SR, autocompletion=options.completes(*options.STOCHASTICS))
    ] = "truncate",
    seed: Annotated[
        int,
        typer.Option(
            "--seed", help="sr: key of the random stream.", parser=options.whole, metavar="N"
        ),
    ] = 0,
    offset: Annotated[
        int,
        typer.Option(
            "--offset", help="sr: counter; element i of a call has i.", parser=options.whole,
            metavar="N",
        ),
    ] = 0,
) -> None:  # fmt: skip
    """Round a number to a format, or a block by a recipe, in steps."""
    from numsim.explain import explain_block, explain_cast, parse_number

    f, recipe = format_or_recipe(to)
    if recipe:
        if (random_bits, sr, nan) != (None, "truncate", None):
            raise NumsimError(
                f"cast: --random-bits, --sr and --nan belong to formats; got --to {to}; leave them "
                f"out, or use --to {f.name}"
            )
        numbers = [parse_number(part) for part in value.split(",")]
        how: dict[str, Any] = {"rounding": rounding, "overflow": overflow}
        how |= {"seed": seed, "offset": offset}
        with _option_names():
            say(explain_block(numbers, recipe, **how))
        return
    number = parse_number(value)
    if isinstance(number, float) and math.isnan(number) and not f.has_nan and nan is None:
        raise NumsimError(f"cast: {f.name} has no NaN; got {value!r}; give --nan max or --nan zero")
    how = {"random_bits": random_bits, "sr": sr, "seed": seed, "offset": offset, "nan": nan}
    with _option_names():
        say(explain_cast(number, to, rounding=rounding, overflow=overflow, **how))


@contextmanager
def _option_names() -> Iterator[None]:
    """Name the options of the command in messages of functions, not their parameters."""
    try:
        yield
    except NumsimError as error:
        text = _ASSIGNED.sub(lambda m: f"{_option(m[1])} {m[2] or m[3]}".rstrip(), str(error))
        text = _NAMED.sub(lambda m: _option(m[1]), text)
        raise NumsimError(
            re.sub(r"^(encode|explain_cast|explain_block): ", "cast: ", text)
        ) from None


def _option(parameter: str) -> str:
    return "--" + parameter.replace("_", "-")
