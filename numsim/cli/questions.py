"""The commands profile, sensitivity and accumulator: parse, call, print a table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from numsim.cli import options
from numsim.terminal import columns, say, width
from numsim.words import with_error

PROMOTED = 128  # the interval that the table shows; the file has others
INTACT = 60.0  # dB of a sum that an accumulator leaves as good as exact
MOST = 40  # lines of a table; the file has them all
Rows = Sequence[dict[str, Any]]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    for command in (profile, sensitivity, accumulator):
        app.command()(command)


def profile(
    model: options.Model = None,
    text: options.Text = None,
    formats: options.Formats = None,
    limit_tokens: options.Limit = 2048,
    out: Annotated[Path, typer.Option(help="CSV file.")] = Path("tensors.csv"),
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Show ranges of tensors, and what formats lose."""
    from numsim.progress import spinner
    from numsim.sweep.prepare import prepare
    from numsim.sweep.sidecars import check_table, write_table
    from numsim.sweep.spec import as_spec
    from numsim.sweep.stats import entries_of
    from numsim.sweep.tensors import COLUMNS, tensor_rows

    check_table(out, force=force)
    fields = _fields(
        model=model, text=text, formats=options.split(formats), limit_tokens=limit_tokens
    )
    plan = as_spec(None, **fields)
    rows: list[dict[str, Any]] = []
    with spinner("measuring tensors", quiet=quiet):
        for run in prepare(plan):
            rows += tensor_rows(run.model, run.inputs, entries_of(plan), plan.batch)
    write_table(out, COLUMNS, rows, force=force)
    say("\n".join(_profile_lines(rows, width())))
    say(f"{len(rows)} rows in {out}", err=True)


def sensitivity(
    model: options.Model = None,
    text: options.Text = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Format to take apart; default: mxfp4_e2m1.",
            autocompletion=options.ANY_FORMAT,
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe in TOML instead, with its operators.")
    ] = None,
    granularity: options.Granularity = None,
    target: Annotated[
        str | None, typer.Option(help="Its unit.", autocompletion=options.ANY_TARGET)
    ] = None,
    products: Annotated[
        str | None, typer.Option(help="What is emulated: linears (default), all-lm_head ...")
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="Parts: layer, op (a product in all layers) or product.",
            autocompletion=options.completes("layer", "op", "product"),
        ),
    ] = "op",
    better: Annotated[
        str,
        typer.Option(
            help="Format of a mixed recipe's worst parts.", autocompletion=options.ANY_FORMAT
        ),
    ] = "mxfp8_e4m3",
    budget: Annotated[
        float | None,
        typer.Option(help="Bits for each weight of a mixed recipe, which goes into mixed.toml."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Processes that share the runs.", parser=options.whole, metavar="N"),
    ] = None,
    limit_tokens: options.Limit = 2040,
    out: Annotated[Path, typer.Option(help="CSV file.")] = Path("sensitivity.csv"),
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Show which product or layer causes the error."""
    from numsim.progress import sweep_progress
    from numsim.sweep.sensitivity import COLUMNS, mixed_recipe
    from numsim.sweep.sensitivity import sensitivity as parts_of
    from numsim.sweep.sidecars import check_table, write_table, write_text
    from numsim.sweep.spec import as_spec

    mixed = out.with_name("mixed.toml")
    for path in (out, *([mixed] if budget is not None else [])):
        check_table(path, force=force)
    fields = _fields(
        model=model, text=text, formats=options.split(formats), targets=target, jobs=jobs,
        granularities=options.split(granularity), products=products, limit_tokens=limit_tokens,
        recipes=recipe,
    )  # fmt: skip
    if formats is None and recipe is None:
        fields["formats"] = "mxfp4_e2m1"
    plan = as_spec(None, **fields)
    with sweep_progress(quiet=quiet) as progress:
        rows = parts_of(plan, by=by, progress=progress)
    write_table(out, COLUMNS, rows, force=force)
    say("\n".join(_sensitivity_lines(rows)))
    say(f"{len(rows)} rows in {out}", err=True)
    if budget is not None:
        made, bits = mixed_recipe(plan, better, rows, budget)
        write_text(mixed, made.to_toml())
        say(f"{bits:.3f} bits for each weight; numsim sweep --recipes {mixed} runs it")


def accumulator(
    model: options.Model = None,
    text: options.Text = None,
    formats: options.Formats = "int8,float8_e4m3fn",
    targets: options.Targets = None,
    limit_tokens: options.Limit = 512,
    longest_k: Annotated[
        int,
        typer.Option(
            help="Of synthetic sums, normally distributed.", parser=options.whole, metavar="K"
        ),
    ] = 65536,
    out: Annotated[Path, typer.Option(help="CSV file.")] = Path("accumulators.csv"),
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Show how wide accumulators must be, by K."""
    from numsim.progress import spinner
    from numsim.sweep.accumulators import COLUMNS, ORDER_COLUMNS, accumulator_rows, order_rows
    from numsim.sweep.prepare import prepare
    from numsim.sweep.sidecars import check_table, write_table
    from numsim.sweep.spec import as_spec
    from numsim.sweep.stats import entries_of

    orders = out.with_name("orders.csv")
    for path in (out, orders):
        check_table(path, force=force)
    fields = _fields(
        model=model, text=text, formats=options.split(formats), targets=targets,
        limit_tokens=limit_tokens,
    )  # fmt: skip
    plan = as_spec(None, **fields)
    rows: list[dict[str, Any]] = []
    turned: list[dict[str, Any]] = []
    with spinner("adding on each unit", quiet=quiet):
        entries = entries_of(plan)
        for run in prepare(plan):
            given = run.model, run.inputs, entries, plan.targets, plan.batch
            rows += accumulator_rows(*given, longest_k)
            turned += order_rows(*given)
    write_table(out, COLUMNS, rows, force=force)
    write_table(orders, ORDER_COLUMNS, turned, force=force)
    say("\n".join([*_accumulator_lines(rows, width()), "", *_order_lines(turned)]))
    say(f"{len(rows)} rows in {out}, {len(turned)} in {orders}", err=True)


def _fields(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _profile_lines(rows: Rows, within: int) -> list[str]:
    """Return the tensors that lose most in any format, lowest SQNR first."""
    worst: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in ("model", "layer", "op", "role"))
        if key not in worst or row["sqnr_db"] < worst[key]["sqnr_db"]:
            worst[key] = row
    found = sorted(worst.values(), key=lambda row: float(row["sqnr_db"]))
    head = ("tensor", "amax", "rms", "crest row", "32", "16", "max 16", "worst format", "dB")
    cells: list[tuple[str, ...]] = [head]
    cells += [
        (
            f"{row['layer']}.{row['op']} {row['role']}", f"{row['amax']:.3g}", f"{row['rms']:.3g}",
            _short(row["crest_row_median"]), _short(row["crest_32_median"]),
            _short(row["crest_16_median"]), _short(row["crest_16_max"]),
            f"{row['format']} {row['granularity']}", f"{row['sqnr_db']:.1f}",
        )
        for row in found[:MOST]
    ]  # fmt: skip
    if within < 110:  # the format is the longest word
        cells = [row[:7] + row[8:] for row in cells]
    title = f"crest factors (median) and the worst way to store each of {len(found)} tensors"
    return [
        title,
        *columns(cells, "<>>>>>><>" if len(cells[0]) == 9 else "<>>>>>>>"),
        *_rest(found),
    ]


def _sensitivity_lines(rows: Rows) -> list[str]:
    """Return the parts of a network, largest share of the error first."""
    whole = next(row for row in rows if row["part"] == "all")
    parts = sorted(
        (row for row in rows if row is not whole), key=lambda row: -row["kl_budget_nats"]
    )
    cells = [("part", "products", "KL saved without it", "share", "KL of it alone", "share")]
    for row in parts[:MOST]:
        saved = with_error(row["kl_budget_nats"], row["kl_budget_stderr"])
        alone = with_error(row["kl_only_nats"], row["kl_only_stderr"])
        shares = [f"{row[name] or 0:.1%}" for name in ("share_budget", "share_only")]
        cells.append((row["part"], str(row["products"]), saved, shares[0], alone, shares[1]))
    total = with_error(whole["kl_only_nats"], whole["kl_only_stderr"])
    title = f"KL of the case {total} nats; what each part adds (left in float32, and alone)"
    return [title, *columns(cells, "<>>>>>"), *_rest(parts)]


def _accumulator_lines(rows: Rows, within: int) -> list[str]:
    """Return widths and errors by K: of the network the worst product of each K, and synthetic."""
    head = ("K", "of", "format", "unit", "bound", "l1", "peak", "wrap", "clamp", "VRR", "swamped",
            "SQNR dB", "promoted", "bias")  # fmt: skip
    cells: list[tuple[str, ...]] = [head]
    groups: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        own, unit = "model" if row["op"] else row["layer"], row["target"].partition(":")[0]
        groups.setdefault((row["format"], unit, own, row["K"]), []).append(row)
    for (fmt, unit, own, k), found in sorted(groups.items()):
        plain = [row for row in found if row["target"] == unit] or found[:1]
        row = min(plain, key=lambda row: float(row["sqnr_db"]))
        promoted = [float(r["sqnr_db"]) for r in found if r["promote_every"] == PROMOTED]
        cells.append((
            f"{k:,}", own, fmt, unit.removeprefix("nvidia."),
            *(_bits(_largest(found, f"bits_{name}")) for name in ("bound", "bound_l1",
                                                                  "measured_peak")),
            *(_bits(_needed(found, how)) for how in ("wrap", "saturate")),
            str(row["vrr_bits"]), f"{row['swamp_rate']:.2%}", f"{row['sqnr_db']:.1f}",
            f"{min(promoted):.1f}" if promoted else "", f"{row['mean_signed_error'] or 0:+.0e}",
        ))  # fmt: skip
    if within < 120:
        cells = [(*row[:3], *row[4:9], *row[10:13]) for row in cells]
    words = (
        "bits of an exact accumulator: bound of the formats, l1 bound of the weights, measured; "
        f"narrowest with {INTACT:.0f} dB, wrapping and clamping. SQNR of the sum alone, and "
        f"promoted every {PROMOTED}. Of the network the worst product of each K"
    )
    align = "><<<" if len(cells[0]) == len(head) else "><<"
    table = columns(cells, align + ">" * (len(cells[0]) - len(align)))
    return [*textwrap.wrap(words, max(within, 40)), *table]


def _largest(rows: Rows, name: str) -> int | None:
    return max((row[name] for row in rows if row[name] is not None), default=None)


def _needed(rows: Rows, how: str) -> int | None:
    """Return the fewest bits with which every product stays intact."""
    tried = [row for row in rows if row["overflow"] == how]
    short = [row["acc_bits"] for row in tried if float(row["sqnr_db"]) < INTACT]
    fine = [row["acc_bits"] for row in tried if row["acc_bits"] > max(short, default=0)]
    return min(fine, default=None)


def _order_lines(rows: Rows) -> list[str]:
    """Return, of each unit, whether another order of a sum gives the same bits."""
    units: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        units.setdefault((row["format"], row["target"]), []).append(row)
    lines = []
    for (fmt, target), found in units.items():
        shares = [float(row["differing"]) for row in found]
        orders = ", ".join(dict.fromkeys(str(row["order"]) for row in found))
        if max(shares) == 0:
            verdict = "reproducible: the same bits in every order tried"
        else:
            worst = max(found, key=lambda row: float(row["differing"]))
            verdict = (
                f"not reproducible: up to {max(shares):.1%} of results differ ({worst['order']}, "
                f"{worst['layer']}.{worst['op']}), by at most {worst['max_abs_rms']:.1e} rms"
            )
        lines.append(f"{fmt} on {target}: {verdict} ({orders})")
    return lines


def _rest(found: Sequence[object]) -> list[str]:
    left = len(found) - MOST
    return [f"and {left} more, which the file has"] if left > 0 else []


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _bits(value: int | None) -> str:
    return "" if value is None else str(value)
