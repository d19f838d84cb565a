"""The command sweep: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from numsim.cli import options
from numsim.errors import NumsimError, printable
from numsim.terminal import say
from numsim.vocabulary import ROUNDINGS


def register(app: typer.Typer) -> None:
    """Add the command of this module to the command line."""
    app.command()(sweep)


def sweep(
    model: options.Model = None,
    text: options.Text = None,
    formats: options.Formats = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Formats of weights, each with each of --activations.",
            autocompletion=options.ANY_FORMAT,
        ),
    ] = None,
    activations: Annotated[
        str | None,
        typer.Option(
            help="Formats of activations; default: float32.", autocompletion=options.ANY_FORMAT
        ),
    ] = None,
    targets: options.Targets = None,
    granularity: options.Granularity = None,
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
        typer.Option("--kv", help="Formats of keys and values.", autocompletion=options.ANY_FORMAT),
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
    limit_tokens: options.Limit = None,
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
    quiet: options.Quiet = False,
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
