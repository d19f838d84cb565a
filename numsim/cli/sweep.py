"""Commands that run networks: sweep, profile, sensitivity, accumulator. Parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from numsim.cli import options
from numsim.errors import NumsimError, printable
from numsim.terminal import say, width
from numsim.vocabulary import ROUNDINGS


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    for command in (sweep, profile, sensitivity, accumulator):
        app.command()(command)


_FORMATS = options.completes(*options.FORMATS, *options.RECIPES)
_TARGETS = options.completes(*options.TARGETS)
_GRANULARITIES = options.completes(
    "per_tensor", "per_channel+per_token", "none", "per_block:", "per_block:128x128"
)
Model = Annotated[
    str | None,
    typer.Option(
        help="Hugging Face folder, or ORG/NAME in its cache, or several, comma separated; default: "
        "the bundled tiny Llama."
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        help="UTF-8 text, or token ids in .npy, integers [tokens], of an encoder [sentences, "
        "tokens]; of an encoder or classifier .jsonl too, a text or a pair in each line; T5 "
        "reads half of each window and is scored on the rest; default: the bundled course."
    ),
]
Formats = Annotated[
    str | None,
    typer.Option(
        help="Formats, comma separated: e4m3,int8,q3.4,nvfp4,mine.toml; int4+int8: weights and "
        "activations; default: twelve.",
        autocompletion=_FORMATS,
    ),
]
Targets = Annotated[
    str | None,
    typer.Option(
        help="Units, comma separated: ideal.fp32,nvidia.hopper.wgmma,mine.toml; fields: "
        "ideal.int:acc_bits=16,20; default: the exact unit of each format.",
        autocompletion=_TARGETS,
    ),
]
Granularity = Annotated[
    str | None,
    typer.Option(
        help="Scales, comma separated: per_tensor,per_channel+per_token,none,per_block:128,"
        "per_block:128x128; default: the first two; none for bfloat16 and fixed point.",
        autocompletion=_GRANULARITIES,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(help="Use only the first tokens of the text.", parser=options.whole, metavar="N"),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def sweep(
    model: Model = None,
    text: Text = None,
    formats: Formats = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Formats of weights, each with each of --activations.", autocompletion=_FORMATS
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(help="Formats of activations; default: float32.", autocompletion=_FORMATS),
    ] = None,
    targets: Targets = None,
    granularity: Granularity = None,
    scale_formats: Annotated[
        str | None, typer.Option(help="Formats of scales: float32,bfloat16,float8_e8m0fnu ...")
    ] = None,
    scale_rules: Annotated[
        str | None,
        typer.Option(help="How scales are chosen: amax,mse,kl,percentile:99.9; floor,even,rceil."),
    ] = None,
    rounding: Annotated[
        str | None,
        typer.Option(
            help="Rounding of the conversions: rne (default), rna, rtz, rup, rdn, rto or sr.",
            autocompletion=options.completes(*ROUNDINGS),
        ),
    ] = None,
    products: Annotated[
        str | None,
        typer.Option(
            help="What is emulated: linears (default), linears+qk+pv, all-lm_head, globs; each a "
            "case.",
            autocompletion=options.completes("linears", "linears+qk+pv", "all", "all-lm_head"),
        ),
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option("--kv", help="Formats of keys and values.", autocompletion=_FORMATS),
    ] = None,
    recipes: Annotated[
        str | None,
        typer.Option(
            help="TOML files of recipes, comma separated; without --formats, only they. declared: "
            "what a packed checkpoint says of itself."
        ),
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(help="Cases to leave out: globs found in their names.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of the same settings, or the manifest of a sweep, to repeat it; "
            "options override it."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file; default: results.csv.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep the finished cases of the CSV file; join its shards."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the CSV file if it exists.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the cases, their work and an estimate of time only."),
    ] = False,
    max_cases: Annotated[
        int | None,
        typer.Option(help="Refuse more; default: 10000.", parser=options.whole, metavar="N"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Processes that share the cases; the same rows.", parser=options.whole, metavar="N"
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="2/4: the second of four parts, into NAME.2of4.csv.", metavar="I/N"),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="In place of jobs: tcp://HOST:PORT of a dask scheduler."),
    ] = None,
    limit_tokens: Limit = None,
    seed: Annotated[
        str | None, typer.Option(help="Seeds of stochastic rounding, comma separated.")
    ] = None,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats",
            help="Count what accumulators lose; tensors.csv, accumulators.csv, positions.csv too.",
        ),
    ] = False,
    cost: Annotated[
        Path | None, typer.Option(help="TOML file of rows of cost beside the bundled ones.")
    ] = None,
    scale_node: Annotated[
        str | None, typer.Option(help="Your factor between nodes: 45nm:7nm=0.2; marks figures U.")
    ] = None,
    scale_source: Annotated[str | None, typer.Option(help="Where that factor comes from.")] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            "--bandwidth-gb-s", help="Of the memory, for a roofline; 10**9 bytes a second."
        ),
    ] = None,
    peak: Annotated[
        str | None,
        typer.Option(
            "--peak-tmac-s",
            help="10**12 multiply-adds a second: one number, or float16=495,int8=989.",
        ),
    ] = None,
    window_start: Annotated[
        str | None,
        typer.Option(
            help="What begins each window: bos (default), eos, or none: the text itself.",
            autocompletion=options.completes("bos", "eos", "none"),
        ),
    ] = None,
    ignore_keys: Annotated[
        str | None,
        typer.Option(
            help="Keys of config.json to read over, comma separated; results name them. "
            "rope_scaling.attn_factor=vllm: as vLLM reads it."
        ),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="For packed weights of all jobs: 4GB, 512MiB; larger models run by block."
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="On stdout: table, csv, json or md.",
            autocompletion=options.completes("table", "csv", "json", "md"),
        ),
    ] = "table",
    quiet: Quiet = False,
) -> None:
    """Run a model through formats and units; print a table."""
    from numsim.cli.screen import FORMS, print_cases
    from numsim.files import check_apart, read_toml
    from numsim.progress import sweep_progress
    from numsim.sweep.dry import dry_lines
    from numsim.sweep.run import FailedCases
    from numsim.sweep.run import sweep as run_sweep
    from numsim.sweep.shards import shard_path
    from numsim.sweep.spec import as_spec

    if form not in FORMS:
        raise NumsimError(f"sweep: --format is one of {', '.join(FORMS)}; got {form!r:.40}")
    said: dict[str, Any] = read_toml(config, "sweep") if config else {}
    given = {
        "model": model, "text": text, "formats": options.split(formats),
        "weights": options.split(weights), "activations": options.split(activations),
        "targets": targets, "granularities": options.split(granularity),
        "scale_formats": options.split(scale_formats), "scale_rules": options.split(scale_rules),
        "products": options.split(products), "kv": options.split(kv),
        "recipes": options.split(recipes), "exclude": options.split(exclude),
        "rounding": rounding, "out": out, "limit_tokens": limit_tokens, "seed": seed,
        "max_cases": max_cases, "jobs": jobs, "shard": shard, "scheduler": scheduler,
        "memory_limit": memory_limit, "stats": stats or None, "cost": cost,
        "scale_node": scale_node, "scale_source": scale_source, "bandwidth_gb_s": bandwidth,
        "peak_tmac_s": peak, "resume": resume or None, "force": force or None,
        "window_start": window_start, "ignore_keys": options.split(ignore_keys),
    }  # fmt: skip
    fields = {key: value for key, value in given.items() if value is not None}
    if "out" not in said:
        fields.setdefault("out", Path("results.csv"))
    if dry_run:
        say("\n".join(dry_lines(config, **fields)))
        return
    plan = as_spec(config, **fields)
    place = shard_path(plan.out, plan.shard) or Path("results.csv")
    check_apart(place, [("settings", config)], "sweep")
    failed: list[str] = []
    before = _state(place)
    try:
        with sweep_progress(quiet=quiet) as progress:
            rows = run_sweep(config, progress=progress, **fields)
    except FailedCases as error:
        rows, failed = error.rows, error.messages
    except KeyboardInterrupt:
        where = f"rows computed so far are in {place}, continue with --resume"
        if _state(place) == before:
            where = "no row had been computed, and no file was written or changed"
        say(f"numsim: interrupted; {where}", err=True)
        sys.exit(130)
    if len(rows):
        print_cases(rows, form, place)
        say(f"{len(rows)} rows in {place}", err=True)
    for message in failed:
        say(f"numsim: case failed: {printable(message)}", err=True)
    if failed:
        sys.exit(1)


def _state(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is written; None: there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _fields(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def profile(
    model: Model = None,
    text: Text = None,
    formats: Formats = None,
    limit_tokens: Limit = 2048,
    out: Annotated[Path, typer.Option(help="CSV file.")] = Path("tensors.csv"),
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Show ranges of tensors, and what formats lose."""
    from numsim.cli.questions import profile_lines
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
    say("\n".join(profile_lines(rows, width())))
    say(f"{len(rows)} rows in {out}", err=True)


def sensitivity(
    model: Model = None,
    text: Text = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format", help="Format to take apart; default: mxfp4_e2m1.", autocompletion=_FORMATS
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe in TOML instead, with its operators.")
    ] = None,
    granularity: Granularity = None,
    target: Annotated[str | None, typer.Option(help="Its unit.", autocompletion=_TARGETS)] = None,
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
        str, typer.Option(help="Format of a mixed recipe's worst parts.", autocompletion=_FORMATS)
    ] = "mxfp8_e4m3",
    budget: Annotated[
        float | None,
        typer.Option(help="Bits for each weight of a mixed recipe, which goes into mixed.toml."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Processes that share the runs.", parser=options.whole, metavar="N"),
    ] = None,
    limit_tokens: Limit = 2040,
    out: Annotated[Path, typer.Option(help="CSV file.")] = Path("sensitivity.csv"),
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Show which product or layer causes the error."""
    from numsim.cli.questions import sensitivity_lines
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
    say("\n".join(sensitivity_lines(rows)))
    say(f"{len(rows)} rows in {out}", err=True)
    if budget is not None:
        made, bits = mixed_recipe(plan, better, rows, budget)
        write_text(mixed, made.to_toml())
        say(f"{bits:.3f} bits for each weight; numsim sweep --recipes {mixed} runs it")


def accumulator(
    model: Model = None,
    text: Text = None,
    formats: Formats = "int8,float8_e4m3fn",
    targets: Targets = None,
    limit_tokens: Limit = 512,
    longest_k: Annotated[
        int,
        typer.Option(
            help="Of synthetic sums, normally distributed.", parser=options.whole, metavar="K"
        ),
    ] = 65536,
    out: Annotated[Path, typer.Option(help="CSV file.")] = Path("accumulators.csv"),
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Show how wide accumulators must be, by K."""
    from numsim.cli.questions import accumulator_lines, order_lines
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
    say("\n".join([*accumulator_lines(rows, width()), "", *order_lines(turned)]))
    say(f"{len(rows)} rows in {out}, {len(turned)} in {orders}", err=True)
