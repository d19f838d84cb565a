"""The Markdown page of a report."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import pandas as pd

from numsim.errors import printable
from numsim.losses import Ties
from numsim.report.decide import Answers
from numsim.report.measures import BY_KEY
from numsim.report.tables import (
    Results,
    emulated_lengths,
    local_sqnr,
    pivot,
    ranking,
    records,
    what_has_noise,
)  # fmt: skip
from numsim.words import k_tested, with_error

WORST = 3
TIED = 4  # cases not told apart from an answer that are named
SECTIONS = (
    ("KL divergence from the reference, nats for each {each}", "kl_nats", ".3g", "kl"),
    ("Perplexity", "perplexity", ".3f", "perplexity"),
    ("Cosine of sentence embeddings to the reference's", "embedding_cosine", ".5f", "cosine"),
    ("SQNR of {what}, dB", "sqnr_cumulative_db", ".2f", "sqnr"),
)
MARKS = {
    "=": "= the same as the case above, to the last bit.",
    "~": "~ not told apart from the case above: the mean difference of their losses, token by "
    "token (of a classifier text by text, of an encoder cosines, sentence by sentence), is within "
    "two standard errors.",
    "?": "? not compared with the case above: the losses of its tokens are not beside the file.",
}


def write_markdown(
    results: Results,
    captions: Mapping[str, str],
    answers: Iterable[Answers] = (),
    compared: pd.DataFrame | None = None,
) -> str:
    """Return the page; `captions` names the figures that exist, by name without ending."""
    lines = [f"# Number formats on {_names(results.cases['model'])}", "", *_about(results)]
    rows = {row["case_id"]: row for row in records(results.cases)}
    for found in answers:
        lines += _answer(found, rows)
    if compared is not None:
        lines += _compared(compared)
    for run in ranking(results):
        lines += ["## Cases, best first", "", *_ranking_table(run, results)]
    for title, column, form, figure in SECTIONS:
        table = pivot(results, column)
        if not table.isna().all(axis=None):
            title = title.format(what=what_has_noise(results.cases), each=_each(results.cases))
            lines += [f"## {title}", "", *_figure(title, figure, captions)]
            lines += _pivot_table(results, table, form)
    worst = local_sqnr(results)
    if not worst.isna().all(axis=None):
        title = "Worst products: lowest local SQNR, dB"
        lines += [f"## {title}", "", *_figure(title, "layers", captions), *_worst_table(worst)]
    more = [name for name in captions if f"]({name}.png)" not in "\n".join(lines)]
    if more:
        lines += ["## More figures", ""]
        for name in more:
            lines += _figure(name.replace("_", " "), name, captions)
    return "\n".join(lines).rstrip("\n") + "\n"


def _answer(found: Answers, rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return which case to build for each budget: bit-exact ones alone."""
    if found.why_none:
        return ["## Answer", "", text(found.why_none), ""]
    body = []
    key = "dnll" if found.cases["dnll"].notna().any() else found.key
    measure = BY_KEY[key]
    sign = "+" if measure.form.startswith("+") else ""
    for choice in found.choices():
        if choice.case is None:
            body.append([text(choice.question), "none", "", "", "", ""])
            continue
        row = rows[choice.case]
        others = [
            f"{code(rows[c]['format'])} {text(rows[c]['scales'])} {code(rows[c]['target'])}"
            for c in choice.tied[:TIED]
        ]
        more = len(choice.tied) - len(others)
        tied = ", ".join(others) + (f" and {more} more" if more else "")
        body.append([
            text(choice.question), f"{code(row['format'])} {text(row['scales'])}", _unit(row),
            _number(row["bits_per_weight"], ".2f"), _measured(row, key, measure.stderr, sign),
            "nothing gained over the line above" if choice.same else tied,
        ])  # fmt: skip
    heads = ["", "best", "unit", "bits", measure.head, "not told apart from it"]
    note = "Bit-exact cases only. ± one standard error."
    return ["## Answer", "", *table_lines(heads, "lllrrl", body), note, ""]


def _compared(table: pd.DataFrame) -> list[str]:
    moved = table[table["moved"].astype(bool)]
    body = [
        [
            text(row["name"]), row["change"], _number(row["perplexity_before"], ".6g"),
            _number(row["perplexity_now"], ".6g"), _number(row["decibels"], "+.3g"),
            "same recipe, other result" if row["same_recipe"] else "",
        ]
        for row in records(moved)
    ]  # fmt: skip
    heads = ["case", "change", "perplexity before", "now", "SQNR, difference in dB", "note"]
    lines = table_lines(heads, "llrrrl", body) if body else ["No change.", ""]
    return ["## Compared with the older sweep", "", *lines]


def _about(results: Results) -> list[str]:
    """Return the list that says what was measured, how, and how far the results reach."""
    cases = results.cases
    every = results.products["op"].str.fullmatch(r"\w+_proj")  # not of experts or attention
    rows = results.products.loc[every, "M"]
    tokens = " or ".join(f"{m:.0f}" for m in sorted(rows.dropna().unique()))
    exact, fake = (cases.loc[cases["exact"] == kind, "target"] for kind in (True, False))
    failed = int(cases["failed"].sum())
    lines = [
        f"- Model {_names(cases['model'])}, numsim {_names(cases['numsim_version'])}, seed "
        f"{_names(cases['seed'])}; finished cases in {code(results.source.name)}: {len(cases)}"
        + (f", {failed} of them failed." if failed else "."),
        f"- Text {_names(cases['text'])}, tokens scored {_names(cases['tokens'])}. Numbers of a "
        "product come from its first batch"
        + (f" ({tokens} tokens)" if tokens else "")
        + ", those of the network from all of the text.",
        f"- Exact emulation, bit for bit: {_names(exact)}.",
        f"- Fake quantisation, rounded values multiplied and added in float32: {_names(fake)}.",
        "- Bits: stored bits for each weight, scales included; where only attention is emulated, "
        "for each value of the cache of keys and values.",
        "- Error: difference from the float64 run of the same model.",
    ]
    own = cases[cases["short_format"] != cases["whole_format"]]
    for short, whole in dict(zip(own["short_format"], own["whole_format"], strict=True)).items():
        lines.append(f"- Format {code(short)}: {code(whole)}.")
    lengths = emulated_lengths(results)
    if lengths:
        lines.append(f"- {k_tested(lengths)}.")
    lines += [
        f"- Failed: {code(row.format)}, {text(row.scales)}, {code(row.target)}: {text(row.error)}."
        for row in cases[cases["failed"]].itertuples()
    ]
    if results.unfinished:
        lines.append(f"- Left out, unfinished: case {', '.join(map(text, results.unfinished))}.")
    return [*lines, ""]


def code(name: object) -> str:
    r"""Return a name as a code span, whatever is in it.

    >>> code("int8"), code("a`b"), code("<b>\n")
    ('`int8`', '`` a`b ``', '`<b>\\u000a`')
    """
    shown = printable(name)
    if not shown.strip():
        return "`` ``" if shown else ""
    runs = {len(run) for run in re.findall("`+", shown)}
    if not runs:
        return f"`{shown}`"
    fence = "`" * next(n for n in range(1, len(runs) + 2) if n not in runs)
    return f"{fence} {shown} {fence}"


def text(words: object) -> str:
    r"""Return words in which nothing is Markdown or HTML.

    >>> text("<b> *a* per_tensor [x](y)")
    '&lt;b&gt; \\*a\\* per_tensor \\[x\\](y)'
    """
    shown = html.escape(printable(words), quote=False)
    return re.sub(r"[\\`*\[\]~$!#|]|(?<!\w)_|_(?!\w)", r"\\\g<0>", shown)


def _each(cases: pd.DataFrame) -> str:
    """Return what has a KL of its own: a token of running text, a text of a classifier."""
    return "token" if cases["perplexity"].notna().any() else "text"


def _names(names: Iterable[str]) -> str:
    return ", ".join(code(name) for name in dict.fromkeys(names)) or "none"


def _figure(title: str, name: str, captions: Mapping[str, str]) -> list[str]:
    if name not in captions:
        return []
    return [f"![{title}]({name}.png)", "", f"*{captions[name]}*", ""]


def _ranking_table(run: pd.DataFrame, results: Results) -> list[str]:
    """Return the cases of one run, best first, with what chance alone may do to their order."""
    ties, marks = Ties(results.source), [""]
    rows = records(run)
    for better, worse in pairwise(rows):
        failed = better.get("error") or worse.get("error")
        marks.append("" if failed else ties.mark(better, worse))
    heads: dict[str, Callable[[dict[str, Any]], str]] = {
        "KL, nats": lambda r: _measured(r, "kl_nats", "kl_stderr"),
        "dNLL, nats": lambda r: _measured(r, "dnll", "dnll_stderr", "+"),
        "perplexity": lambda r: _number(r["perplexity"], ".3f"),
        "cosine": lambda r: _measured(r, "embedding_cosine", "embedding_cosine_stderr"),
        "smallest cosine": lambda r: _number(r["embedding_cosine_min"], ".5f"),
        f"SQNR of {what_has_noise(run)}, dB": lambda r: _number(r["sqnr_cumulative_db"], ".2f"),
        "top-1": lambda r: _number(r["top1_agreement"], ".1%"),
    }
    figures = {head: [write(row) for row in rows] for head, write in heads.items()}
    figures = {head: cells for head, cells in figures.items() if any(cells)}
    body = [
        [mark, code(r["format"]), text(r["scales"]), _unit(r), _number(r["bits"], ".2f"), *cells]
        for mark, r, *cells in zip(marks, rows, *figures.values(), strict=True)
    ]
    align = "llllr" + "r" * len(figures)
    notes = [words for mark, words in MARKS.items() if mark in marks]
    if any("±" in cell for cells in figures.values() for cell in cells):
        notes.append("± one standard error, over tokens or sentences.")
    table = table_lines(["", "format", "scales", "unit", "bits", *figures], align, body)
    return [*table, *(line for note in notes for line in (note, ""))]


def _unit(row: Mapping[str, Any]) -> str:
    return code(row["target"]) + ("" if row["exact"] else " (fake)")


def _measured(row: Mapping[str, Any], name: str, stderr: str, sign: str = "") -> str:
    if math.isnan(row[name]):
        return ""
    known = bool(stderr) and not math.isnan(row[stderr])
    return with_error(row[name], row[stderr] if known else None, sign)


def _pivot_table(results: Results, table: pd.DataFrame, form: str) -> list[str]:
    bits = pivot(results, "bits").bfill(axis=1).iloc[:, 0]
    cases = results.cases
    fake = set(cases["target"]) - set(cases.loc[cases["exact"], "target"])
    heads = [code(name) + (" (fake)" if name in fake else "") for name in table.columns]
    body = [
        [code(row[0]), text(row[1]), _number(bits[row], ".2f"), *(_number(v, form) for v in values)]
        for row, values in zip(table.index.tolist(), table.to_numpy(), strict=True)
    ]
    return table_lines(["format", "scales", "bits", *heads], "llr" + "r" * len(heads), body)


def _worst_table(table: pd.DataFrame) -> list[str]:
    body = []
    for key in table.columns.tolist():
        low = table[key].dropna().sort_values(kind="stable").head(WORST)
        cells = [f"{code(product)} {_number(value, '.2f')}" for product, value in low.items()]
        body.append([code(key[0]), text(key[1]), *cells, *[""] * (WORST - len(cells))])
    heads = ["lowest", *(f"{n}." for n in range(2, WORST + 1))]
    return table_lines(["format", "scales", *heads], "ll" + "l" * WORST, body)


def _number(value: float, form: str) -> str:
    """Write a number: nothing for none, powers of ten where decimals would be long."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:{form}}" if abs(value) < 1e6 else f"{value:.3e}"


def table_lines(heads: Iterable[str], align: str, body: Iterable[Iterable[str]]) -> list[str]:
    """Return a Markdown table and an empty line."""
    rules = ["---:" if side == "r" else "---" for side in align]
    rows = [heads, rules, *body]
    return [*(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]


def _cell(content: str) -> str:
    """Escape bars that `text` has not: a cell ends at one, within code too."""
    return re.sub(r"(?<!\\)\|", r"\\|", content)
