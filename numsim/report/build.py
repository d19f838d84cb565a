"""All files of the report of a sweep, in memory."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd

from numsim.cost import load_costs
from numsim.errors import printable
from numsim.files import escape_cell
from numsim.report.beside import Sidecars, manifest_facts, read_beside
from numsim.report.beside_figures import draw_beside
from numsim.report.beside_sections import beside_sections
from numsim.report.compare import compare
from numsim.report.costs import cost_section
from numsim.report.decide import Answers, best_first, runs_of
from numsim.report.figures import draw_figures
from numsim.report.heat import draw_layers
from numsim.report.html import image, write_page
from numsim.report.measures import MEASURES, SETTINGS
from numsim.report.page import write_markdown
from numsim.report.pareto import draw_fronts
from numsim.report.tables import Results, read_results

CASE_NUMBERS = tuple(
    dict.fromkeys((*(m.key for m in MEASURES), *(m.stderr for m in MEASURES if m.stderr)))
)
PRODUCT_COLUMNS = (
    "case_id", "name", "target", "layer", "op", "weight_format", "act_format", "M", "N", "K",
    "sqnr_local_db", "sqnr_cumulative_db", "mean_signed_error", "saturation_rate",
    "underflow_rate", "acc_overflow_rate", "acc_swamp_rate", "acc_peak_bits", "energy_pj",
    "area_ge",
)  # fmt: skip
STATIC = ("pareto_bits", "perplexity", "cosine")  # figures that the page shows where no script runs


def sweep_files(results: Path, *, against: Path | None, cost: Path | None) -> dict[str, bytes]:
    """Return the files of the report of a sweep, by name."""
    costs = load_costs(cost)
    found = read_results(results, None if cost is None else costs)
    compared = None if against is None else compare(found, against)
    drawn = draw_figures(found) | draw_fronts(found) | draw_layers(found)
    more = read_beside(results)
    more_drawn = draw_beside(more.tables, found)
    drawn |= more_drawn
    images = {name: image(name, figure.svg, figure.caption) for name, figure in more_drawn.items()}
    ranked, answers = rank(found)
    captions = {name: figure.caption for name, figure in drawn.items()}
    markdown = write_markdown(found, captions, answers, compared)
    page = write_page(
        ranked, answers,
        None if compared is None or against is None else (compared, against.name),
        {name: drawn[name].svg for name in STATIC if name in drawn},
        [*beside_sections(more.tables, images),
         cost_section(ranked, costs, None if cost is None else cost.name)],
        commands_of(results, against, cost, more), manifest_facts(more.manifest),
    )  # fmt: skip
    files = {"report.md": markdown.encode(), "report.html": page.encode()}
    for name, figure in drawn.items():
        files |= {f"{name}.png": figure.png, f"{name}.svg": figure.svg}
    tables = {
        "cases": ranked.cases[[*SETTINGS, "kind", *CASE_NUMBERS, "error"]],
        "products": ranked.products[list(PRODUCT_COLUMNS)],
        "compare": compared,
        **more.tables,
    }
    return files | {
        f"tables/{name}.csv": as_csv(table.dropna(axis=1, how="all"))
        for name, table in tables.items()
        if table is not None and not table.empty
    }


def rank(found: Results) -> tuple[Results, list[Answers]]:
    """Return the results with their cases best first, and the answers of each run."""
    cases = best_first(found.cases)
    ranked, runs = Results(found.source, cases, found.products, found.unfinished), runs_of(cases)
    return ranked, [Answers(ranked, cases[runs == run]) for run in range(runs.max() + 1)]


def page_of(results: Path) -> str:
    """Return the page of a sweep alone, without figures for readers without a script."""
    ranked, answers = rank(read_results(results))
    costs = cost_section(ranked, load_costs(), None)
    return write_page(ranked, answers, None, {}, [costs], [], {})


def as_csv(table: pd.DataFrame) -> bytes:
    """Return a table as CSV that no spreadsheet computes."""
    words = {
        name: [escape_cell(cell) if isinstance(cell, str) else cell for cell in table[name]]
        for name in table.columns[table.dtypes.map(pd.api.types.is_object_dtype)]
    }
    return table.assign(**words).to_csv(index=False, lineterminator="\r\n").encode()


def commands_of(
    results: Path, against: Path | None, cost: Path | None, more: Sidecars
) -> list[str]:
    """Return the commands that make the results and the report again."""
    made = printable(more.manifest.get("command", ""))
    words = ["numsim", "report", results.name]
    words += ["--against", against.name] if against else []
    words += ["--cost", cost.name] if cost else []
    return [*([made] if made else []), shlex.join(words)]
