"""The Markdown page of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from numsim.report.tables import RUN, Results, local_sqnr, pivot

WORST = 3


def write_markdown(results: Results, captions: Mapping[str, str]) -> str:
    """Return the page; `captions` names the figures that exist, by file name."""
    models = ", ".join(dict.fromkeys(results.cases["model"]))
    lines = [f"# Number formats on {models}", "", *_about(results)]
    for title, column, form, figure in (
        ("Perplexity", "perplexity", ".3f", "perplexity.png"),
        ("SQNR of the logits, dB", "sqnr_cumulative_db", ".2f", "sqnr.png"),
        ("KL divergence from the reference, nats for each token", "kl_nats", ".3g", ""),
    ):
        lines += [f"## {title}", "", *_figure(title, figure, captions)]
        lines += _pivot_table(results, column, form)
    title = "Worst products: lowest local SQNR, dB"
    lines += [f"## {title}", "", *_figure(title, "layers.png", captions), *_worst_table(results)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _about(results: Results) -> list[str]:
    """Return the list that says what was measured, how, and how far the results reach."""
    cases = results.cases
    every = results.products["op"].str.fullmatch(r"\w+_proj")  # not of experts or attention
    rows = results.products.loc[every, "M"]
    tokens = " or ".join(f"{m:.0f}" for m in sorted(rows.dropna().unique()))
    exact, fake = (cases.loc[cases["exact"] == kind, "target"] for kind in (True, False))
    failed = int((cases["error"] != "").sum()) if "error" in cases else 0
    lines = [
        f"- Model {_names(cases['model'])}, numsim {_names(cases['numsim_version'])}, seed "
        f"{_names(cases['seed'])}; finished cases in `{results.source}`: {len(cases)}"
        + (f", {failed} of them failed." if failed else "."),
        f"- Text {_names(cases['text'])}, tokens scored {_names(cases['tokens'])}. Numbers of a "
        "product come from its first batch"
        + (f" ({tokens} tokens)" if tokens else "")
        + ", those of the network from all of the text.",
        f"- Exact emulation, bit for bit: {_names(exact)}.",
        f"- Fake quantisation, rounded values multiplied and added in float32: {_names(fake)}.",
        "- Bits: stored bits for each weight, scales included.",
        "- Error: difference from the float64 run of the same model.",
    ]
    ranked = cases[cases["perplexity"].map(math.isfinite)].sort_values("perplexity", kind="stable")
    for _, run in ranked.groupby(list(RUN), sort=False):
        if len(run) > 1:
            low, high = (
                f"{value:.3f} (`{name}`, {scales}, `{target}`)"
                for value, name, scales, target in run.iloc[[0, -1]][
                    ["perplexity", "format", "scales", "target"]
                ].itertuples(index=False)
            )
            lines.append(f"- Lowest perplexity: {low}; highest: {high}.")
    if "error" in cases:
        lines += [
            f"- Failed: `{row.format}`, {row.scales}, `{row.target}`: {row.error}."
            for row in cases[cases["error"] != ""].itertuples()
        ]
    if results.unfinished:
        lines.append(f"- Left out, unfinished: case {', '.join(results.unfinished)}.")
    return [*lines, ""]


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names)) or "none"


def _figure(title: str, name: str, captions: Mapping[str, str]) -> list[str]:
    if name not in captions:
        return []
    return [f"![{title}]({name})", "", f"*{captions[name]}*", ""]


def _pivot_table(results: Results, column: str, form: str) -> list[str]:
    table = pivot(results, column)
    if table.isna().all(axis=None):
        return [f"The CSV file has no values in column `{column}`.", ""]
    bits = pivot(results, "bits").bfill(axis=1).iloc[:, 0]
    cases = results.cases
    fake = set(cases["target"]) - set(cases.loc[cases["exact"], "target"])
    heads = [f"`{name}`" + (" (fake)" if name in fake else "") for name in table.columns]
    body = [
        [f"`{row[0]}`", row[1], _number(bits[row], ".2f"), *(_number(v, form) for v in values)]
        for row, values in zip(table.index.tolist(), table.to_numpy(), strict=True)
    ]
    return _table(["format", "scales", "bits", *heads], "llr" + "r" * len(heads), body)


def _worst_table(results: Results) -> list[str]:
    table = local_sqnr(results)
    if table.isna().all(axis=None):
        return ["The CSV file has no values in column `sqnr_local_db`.", ""]
    body = []
    for key in table.columns.tolist():
        low = table[key].dropna().sort_values(kind="stable").head(WORST)
        cells = [f"{product} {_number(value, '.2f')}" for product, value in low.items()]
        body.append([f"`{key[0]}`", key[1], *cells, *[""] * (WORST - len(cells))])
    heads = ["lowest", *(f"{n}." for n in range(2, WORST + 1))]
    return _table(["format", "scales", *heads], "ll" + "l" * WORST, body)


def _number(value: float, form: str) -> str:
    """Write a number: nothing for none, powers of ten where decimals would be long."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:{form}}" if abs(value) < 1e6 else f"{value:.3e}"


def _table(heads: Iterable[str], align: str, body: Iterable[Iterable[str]]) -> list[str]:
    """Return a Markdown table and an empty line."""
    rules = ["---:" if side == "r" else "---" for side in align]
    rows = [heads, rules, *body]
    return [
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows),
        "",
    ]
