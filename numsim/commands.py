"""Commands about formats: formats, cast, explain, verify, bench. Parse, call, print."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from numsim import options
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
    for command in (formats, explain, verify, bench):
        app.command()(command)
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
        f, recipe = _format_or_recipe(name)
    except NumsimError:
        if not found or (out is not None and len(found) > 1):
            raise
        if len(found) > 1:
            say("\n".join(list_lines(found, width())))
            return
        (name,) = found
        f, recipe = _format_or_recipe(name)
    if out is not None:
        from numsim.number_line import draw_number_line

        say(draw_number_line(f, out))
        return
    _print_values(f, recipe)
    others = [other for other in found if other not in (name, f.name, recipe)]
    if others:
        say(f"names with {name!r} in them: {', '.join(others)}")


def _format_or_recipe(name: str) -> tuple[Format, str | None]:
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

    f, recipe = _format_or_recipe(to)
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


def explain(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Format, recipe (mxfp4_e2m1, w8a8 ...); or mma: a dot product.",
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
            help="mma: operand format, or A,B; or nvfp4, mxfp8_e4m3.", autocompletion=_FORMAT
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
    """Explain a format, or work a dot product as a unit does (mma)."""
    if name == "mma":
        from numsim.commands_mac import print_mma

        print_mma(target, values, c, formats, out_format, plan)
        return
    if plan or (target, values, c, formats, out_format) != (None,) * 5:
        raise NumsimError(
            f"explain: these options are for explain mma; got {name!r}; leave them out, or "
            "numsim explain mma --target T"
        )
    from numsim.explain import explain_format, explain_recipe
    from numsim.models.named import NAMED, recipe_lines

    if name in NAMED:
        say("\n".join(recipe_lines(name)))
        return
    f, recipe = _format_or_recipe(name)
    say(explain_recipe(recipe) if recipe else explain_format(f))


def verify(
    what: Annotated[
        str,
        typer.Argument(
            help="conversions; silicon: recorded outputs of chips and models; published: figures "
            "of the literature; probe: units probed as black boxes.",
            autocompletion=options.completes("conversions", "silicon", "published", "probe"),
        ),
    ] = "conversions",
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="All 2**32 float32 inputs of each format.")
    ] = False,
    formats: Annotated[
        str | None,
        typer.Option(
            help="Formats, comma separated.", autocompletion=options.completes(*options.FORMATS)
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="silicon, published: beginning of the names.")
    ] = None,
    units: Annotated[
        int | None,
        typer.Option(
            help="probe: units with random fields.", parser=options.whole, metavar="N"
        ),
    ] = None,
) -> None:  # fmt: skip
    """Check bits, recorded outputs, published figures."""
    if what == "probe":
        from numsim.commands_probe import print_probe

        if exhaustive or formats is not None or only is not None:
            raise NumsimError("verify: verify probe has --units only; leave the others out")
        if units is not None and units < 0:
            raise NumsimError(f"verify: --units is at least 0; got {units}")
        print_probe(40 if units is None else units, seed=0)
        return
    if units is not None:
        raise NumsimError("verify: --units is for verify probe; leave it out")
    if what in ("silicon", "published"):
        from numsim.commands_mac import print_silicon
        from numsim.commands_quant import print_published

        if exhaustive or formats is not None:
            raise NumsimError(
                "verify: --exhaustive and --formats are for verify conversions; leave them out"
            )
        (print_silicon if what == "silicon" else print_published)(only or "")
        return
    if what != "conversions":
        raise NumsimError(f"verify: conversions, silicon, published or probe; got {what!r}")
    if only is not None:
        raise NumsimError("verify: --only is for verify silicon and published; leave it out")
    from numsim.verify import check_every_float32, check_modes, checkable, formats_to_check

    names = formats_to_check() if formats is None else options.split(formats)
    if not names:
        raise NumsimError(f"verify: --formats is names, comma separated; got {formats!r}")
    failed = False
    for f in [checkable(name) for name in names]:  # every name first, then the work
        for check in check_every_float32(f) if exhaustive else (check_modes(f),):
            failed |= check.different > 0
            word = "FAIL" if check.different else "ok"
            say(
                f"{word:<4} {check.name:<34} {check.compared:>13,} compared with "
                f"{check.reference:<14} {check.different:,} differ {check.seconds:7.1f} s"
                + (f"; first: {check.first}" if check.first else "")
            )
    if failed:
        sys.exit(1)


def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="What to time: cast, matmul, model or train.",
            autocompletion=options.completes("cast", "matmul", "model", "train"),
        ),
    ] = "cast",
) -> None:
    """Time numsim beside the installed peers, on this machine."""
    from numsim import bench as timers

    if what not in ("cast", "matmul", "model", "train"):
        raise NumsimError(f"bench: cast, matmul, model and train can be timed; got {what!r}")
    if what != "cast":
        say("numsim: timing, a few minutes; the table comes at the end", err=True)
    if what == "matmul":
        timers.print_matmul(timers.bench_matmul())
        return
    if what == "model":
        timers.print_model(timers.bench_model())
        return
    if what == "train":
        timers.print_train(timers.bench_train())
        return
    rows = [("task", "library", "million/s", "of copy bound", "numsim is faster by")]
    for row in timers.bench_cast():
        text = f"{row.ratio:.2f} x"
        if row.library.endswith(" x2"):
            text = f"(scales {1 / row.ratio:.2f} x)"
        elif row.library in ("numsim", "numsim out=", "NumPy"):
            text = ""
        rows.append((row.task, row.library, f"{row.rate:,.0f}", f"{row.of_bound:.0%}", text))
    say("conversions, one core, median; 'x2': two threads")
    say("\n".join(columns(rows, "<<>>>")))
