"""Commands about formats: formats, cast, explain, verify, bench. Parse, call, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from numsim.errors import NumsimError, printable
from numsim.formats import get_format, list_formats

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


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    for command in (formats, explain, verify, bench):
        app.command()(command)
    app.command(context_settings={"ignore_unknown_options": True})(cast)  # -0.3 is a number


def formats(
    name: Annotated[str | None, typer.Argument(help="Show every value of one format.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Draw its number line: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """List the formats, or every value of one with its bits."""
    from numsim.explain import recipe_title, value_rows
    from numsim.quant import QUANTS

    if name is None:
        if out is not None:
            raise NumsimError(
                "formats: -o draws one format; got no NAME; try formats e4m3 -o x.png"
            )
        _print(_format_table())
        return
    recipe = name in QUANTS
    f = QUANTS[name].fmt if recipe else get_format(name)
    if out is not None:
        from numsim.number_line import draw_number_line

        typer.echo(printable(draw_number_line(f, out)))
        return
    title = f"{recipe_title(name)}; the elements" if recipe else f"{f.name}: {f.source}"
    table = Table(title=title)
    for column in ("code", "bits", "value"):
        table.add_column(column, justify="right", no_wrap=True)
    digits = -(-f.bits // 4)
    for code, bits, value in value_rows(f):
        table.add_row(f"{code:#0{digits + 2}x}", bits, repr(value))
    _print(table)


def _format_table() -> Table:
    from numsim.quant import QUANTS

    also = "q3.4, uq0.8, float_e5m6, p3109_k8p4se, posit8_es2; blocks: " + ", ".join(QUANTS)
    table = Table(title=f"formats (also {also})")
    columns = ("name", "bits", "precision", "bias", "max", "smallest", "Inf", "NaN", "source")
    for column in columns:
        left = column in ("name", "source")
        table.add_column(column, justify="left" if left else "right", no_wrap=not left)
    for name in list_formats():
        f = get_format(name)
        table.add_row(
            f.name, str(f.bits), str(f.precision), str(f.bias), f"{f.max:.6g}",
            f"{f.min_subnormal:.6g}", "yes" if f.has_inf else "", "yes" if f.has_nan else "",
            f.source,
        )  # fmt: skip
    return table


def cast(
    value: Annotated[str, typer.Argument(help="17, -0.3, 0x1F, 1e9, inf, nan; a block: 1,2.5.")],
    to: Annotated[str, typer.Option("--to", help="Format, or blocks: mxfp4_e2m1, nvfp4.")],
    rounding: Annotated[str, typer.Option(help=_ROUNDING)] = "rne",
    overflow: Annotated[str, typer.Option(help=_OVERFLOW)] = "saturate",
    nan: Annotated[str | None, typer.Option("--nan", help=_NAN)] = None,
    random_bits: Annotated[
        int | None, typer.Option("--random-bits", help="sr: bits drawn, 1 to 32; unset: all.")
    ] = None,
    sr: Annotated[str, typer.Option("--sr", help=_SR)] = "truncate",
    seed: Annotated[int, typer.Option("--seed", help="sr: key of the random stream.")] = 0,
    offset: Annotated[
        int, typer.Option("--offset", help="sr: counter; element i of a call has i.")
    ] = 0,
) -> None:
    """Round one number to a format, or a block of numbers by a recipe, step by step."""
    from numsim.explain import explain_block, explain_cast, parse_number
    from numsim.quant import QUANTS

    if to in QUANTS:
        if (random_bits, sr, nan) != (None, "truncate", None):
            raise NumsimError(
                f"cast: --random-bits, --sr and --nan belong to formats; got --to {to}; leave them "
                f"out, or use --to {QUANTS[to].fmt.name}"
            )
        numbers = [parse_number(part) for part in value.split(",")]
        how = {"rounding": rounding, "overflow": overflow, "seed": seed, "offset": offset}
        typer.echo(explain_block(numbers, to, **how))  # type: ignore[arg-type]
        return
    options = {"random_bits": random_bits, "sr": sr, "seed": seed, "offset": offset, "nan": nan}
    text = explain_cast(parse_number(value), to, rounding=rounding, overflow=overflow, **options)  # type: ignore[arg-type]
    typer.echo(text)


def explain(
    name: Annotated[str, typer.Argument(help="Format, mxfp4_e2m1 ...; or mma: a dot product.")],
    target: Annotated[str | None, typer.Option(help="mma: unit, or .toml file.")] = None,
    values: Annotated[str | None, typer.Option(help='mma: "1.5*2, -3*0.25".')] = None,
    c: Annotated[float | None, typer.Option("--c", help="mma: accumulator input.")] = None,
    formats: Annotated[
        str | None, typer.Option(help="mma: operand format, or A,B; or nvfp4, mxfp8_e4m3.")
    ] = None,
    out_format: Annotated[str | None, typer.Option(help="mma: float32, float16.")] = None,
) -> None:
    """Explain a format and its relatives, or work a dot product as a unit does (mma)."""
    if name == "mma":
        from numsim.commands_mac import print_mma

        print_mma(target, values, c, formats, out_format)
        return
    if (target, values, c, formats, out_format) != (None,) * 5:
        raise NumsimError(
            f"explain: these options are for explain mma; got {name!r}; leave them out, or "
            "numsim explain mma --target T"
        )
    from numsim.explain import explain_format, explain_recipe
    from numsim.quant import QUANTS

    typer.echo(explain_recipe(name) if name in QUANTS else explain_format(name))


def verify(
    what: Annotated[
        str, typer.Argument(help="conversions, or silicon: recorded outputs of chips and models.")
    ] = "conversions",
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="All 2**32 float32 inputs of each format.")
    ] = False,
    formats: Annotated[str | None, typer.Option(help="Formats, comma separated.")] = None,
    only: Annotated[str, typer.Option(help="silicon: beginning of the file names.")] = "",
) -> None:
    """Check conversions, or replay outputs of chips and models (silicon); print the comparison."""
    if what == "silicon":
        from numsim.commands_mac import print_silicon

        print_silicon(only)
        return
    if what != "conversions":
        raise NumsimError(f"verify: conversions or silicon; got {what!r}")
    from numsim.verify import check_every_float32, check_modes, formats_to_check

    names: Sequence[str] = formats_to_check()
    if formats is not None:
        names = [n.strip() for n in formats.split(",") if n.strip()]
    if not names:
        raise NumsimError(f"verify: --formats is names, comma separated; got {formats!r}")
    failed = False
    for name in names:
        for check in check_every_float32(name) if exhaustive else (check_modes(name),):
            failed |= check.different > 0
            word = "FAIL" if check.different else "ok"
            typer.echo(
                f"{word:<4} {check.name:<34} {check.compared:>13,} compared with "
                f"{check.reference:<14} {check.different:,} differ {check.seconds:7.1f} s"
                + (f"; first: {check.first}" if check.first else "")
            )
    if failed:
        sys.exit(1)


def bench(
    what: Annotated[str, typer.Argument(help="What to time: cast, matmul or model.")] = "cast",
) -> None:
    """Time numsim beside the installed peers; ratios are of one run on one machine."""
    from numsim import bench as timers

    if what not in ("cast", "matmul", "model"):
        raise NumsimError(f"bench: cast, matmul and model can be timed; got {what!r}")
    if what == "matmul":
        timers.print_matmul(timers.bench_matmul())
        return
    if what == "model":
        timers.print_model(timers.bench_model())
        return
    table = Table(title="conversions, one core, median; 'x2': two threads")
    for column, justify in (
        ("task", "left"), ("library", "left"), ("million/s", "right"), ("of copy bound", "right"),
        ("numsim is faster by", "right"),
    ):  # fmt: skip
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in timers.bench_cast():
        text = f"{row.ratio:.2f} x"
        if row.library.endswith(" x2"):
            text = f"(scales {1 / row.ratio:.2f} x)"
        elif row.library in ("numsim", "numsim out=", "NumPy"):
            text = ""
        table.add_row(
            row.task, row.library, f"{row.rate:,.0f}", f"{row.of_bound:.0%}",
            text,
        )  # fmt: skip
    _print(table)


def _print(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
