"""The sections of the page, in the order of an architect's decisions. Names are only ever text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from numsim.report.compare import DECIBELS, PERPLEXITY, SIGMAS
from numsim.report.decide import EDGES, TOLERANCE, Answers, Choice, equal_cases
from numsim.report.markup import Html, box, join, table, tag
from numsim.report.measures import BY_KEY, MEASURES, Measure, with_chance
from numsim.report.payload import plain_number, shown_measures
from numsim.report.tables import Results, emulated_lengths, local_sqnr, records
from numsim.words import k_tested

WITHOUT_SCRIPT = 40  # columns of the table of products in a page that runs no script
NONE = "No bit-exact case is within it."  # page.js says the same
NAMED = 3  # cases of a tie that are named; the rest are counted


def case_link(case: Mapping[str, Any], *, unit: bool = False) -> Html:
    """Return a link that opens a case."""
    name = f"{case['name']}, {case['target']}" if unit else str(case["name"])
    return tag("a", name, href=f"#case={case['case_id']}")


def number(value: float, form: str) -> str:
    """Return a number for people: nothing where there is none."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:{form}}".replace("-", "−") if abs(value) < 1e15 else f"{value:.3g}"


def section(test_id: str, title: str, *content: str | None, **more: Any) -> Html:
    """Return a section with its heading."""
    return tag("section", tag("h2", title), *content, data_testid=test_id, **more)


def answer(results: Results, answers: Sequence[Answers]) -> Html:
    """Return the cards: what to build for a budget."""
    rows = _by_id(results)
    label = "tolerance, %" if answers[0].key != "embedding_cosine" else "tolerance, 0.01 of cosine"
    edges = (
        tag("label", f"edge {i}, bits ", _number_input(f"edge{i}", edge, 0.5))
        for i, edge in enumerate(EDGES, 1)
    )
    cards = (
        tag(
            "div",
            *(
                [tag("p", found.why_none)]
                if found.why_none
                else [_card(choice, rows, found.key) for choice in found.choices()]
            ),
            class_="cards",
            data_run=run,
            hidden=run > 0,
        )
        for run, found in enumerate(answers)
    )
    return section(
        "answer", "Answer", None if answers[0].why_none else _ranked_by(answers[0]), *cards,
        None if all(found.why_none for found in answers) else
        tag("p", *edges, tag("label", f"{label} ", _number_input("tolerance", TOLERANCE, 0.1)),
            class_="controls scripted"),
    )  # fmt: skip


def _ranked_by(found: Answers) -> Html:
    words = (
        f"The best bit-exact case within each budget, by {BY_KEY[found.key].title}; fake "
        "quantisation and failed cases never stand here. ± is 95 % of chance."
    )
    return tag("p", words, class_="note")


def _number_input(name: str, value: float, step: float) -> Html:
    return tag("input", type="number", name=name, value=f"{value:g}", step=f"{step:g}", min="0")


def _card(choice: Choice, rows: Mapping[str, Mapping[str, Any]], key: str) -> Html:
    if choice.case is None:
        words = tag("p", NONE, class_="note")
        return tag("article", tag("h3", choice.question), words, class_="card")
    case = rows[choice.case]
    facts = [f"{number(case['bits_per_weight'], '.2f')} bits", case["target"]]
    figures = {name: chance(case, name) for name in ("dnll", "perplexity_above", key)}
    terms = (
        [tag("dt", BY_KEY[name].head), tag("dd", said)] for name, said in figures.items() if said
    )
    notes = []
    if choice.same:
        notes.append(tag("p", "Nothing gained over the card before.", class_="note"))
    if choice.tied:
        named = [case_link(rows[c], unit=True) for c in choice.tied[:NAMED]]
        more = len(choice.tied) - len(named)
        others = "1 other" if len(choice.tied) == 1 else f"{len(choice.tied)} others"
        notes.append(
            tag("p", f"Tied with {others}: ", join(named, "; "),
                f" and {more} more" if more else "", ".", class_="note")
        )  # fmt: skip
    return tag(
        "article", tag("h3", choice.question), tag("p", case_link(case), class_="pick"),
        tag("p", " · ".join(filter(None, facts))),
        tag("dl", join(map(join, terms))), *notes, class_="card",
    )  # fmt: skip


def chance(case: Mapping[str, Any], key: str) -> str:
    """Return a measure of a case and, where its error is known, 95 % of chance."""
    measure, value = BY_KEY[key], case[key]
    if math.isnan(value):
        return ""
    error = case[measure.stderr] if measure.stderr else math.nan
    if math.isnan(error):
        return number(value, measure.form)
    return with_chance(key, value, error).replace("-", "−").replace("±", " ± ")


def failed(results: Results) -> Html | None:
    """Return the failed cases with their reasons, None where there are none."""
    rows = results.cases[results.cases["failed"]]
    if rows.empty:
        return None
    body = [
        tag("tr", tag("td", row["name"]), tag("td", row["target"]), tag("td", row["error"]),
            data_testid="failed-row", data_case=row["case_id"])
        for row in records(rows)
    ]  # fmt: skip
    head = tag("tr", *(tag("th", h, scope="col") for h in ("case", "unit", "reason")))
    return section("failed", "Failed cases", rows_table(head, body))


def rows_table(head: Html, body: Iterable[Html], **attributes: str) -> Html:
    """Return a table of rows that are made, in a box that scrolls."""
    return box(tag("table", tag("thead", head), tag("tbody", *body), **attributes))


COMPARED = ("case", "change", "perplexity before", "now", "difference", "SQNR before, dB", "now",
            "difference, dB", "dNLL: standard errors", "note")  # fmt: skip


def compare_section(compared: pd.DataFrame, old: str) -> Html:
    """Return the cases that moved, came and went; the script draws the rows again."""
    names = (("perplexity", PERPLEXITY, "any"), ("decibels", DECIBELS, "any"),
             ("sigmas", SIGMAS, "any"))  # fmt: skip
    words = ("perplexity, relative", "SQNR, dB", "dNLL, standard errors")
    inputs = (
        tag("label", f"{word} ",
            tag("input", type="number", name=f"over_{name}", value=f"{value:g}", step=step,
                min="0"))
        for word, (name, value, step) in zip(words, names, strict=True)
    )  # fmt: skip
    listed = compared[compared["moved"].astype(bool)]
    body = [_compare_row(row) for row in records(listed)]
    head = tag("tr", *(tag("th", h, scope="col") for h in COMPARED))
    said = "No change." if listed.empty else f"{len(listed)} cases differ."
    return section(
        "compare", f"Compared with {old}",
        tag("p", said, data_testid="compare-count", aria_live="polite"),
        tag("p", "A case moved where a difference is more than: ", *inputs, class_="controls"),
        rows_table(head, body, data_testid="compare-table"),
    )  # fmt: skip


def _compare_row(row: Mapping[str, Any]) -> Html:
    name = row["name"]
    first = name if row["change"] == "gone" else tag("a", name, href=f"#case={row['case_id']}")
    relative = row["relative"]
    cells = [
        first, row["change"],
        number(row["perplexity_before"], ".6g"), number(row["perplexity_now"], ".6g"),
        "" if math.isnan(relative) else number(100 * relative, "+.3g") + " %",
        number(row["sqnr_cumulative_db_before"], ".2f"),
        number(row["sqnr_cumulative_db_now"], ".2f"), number(row["decibels"], "+.3g"),
        number(row["sigmas"], "+.2g"), "same recipe, other result" if row["same_recipe"] else "",
    ]  # fmt: skip
    return tag(
        "tr", *(tag("td", cell) for cell in cells), data_testid="compare-row",
        data_case=row["case_id"], data_change=row["change"],
    )  # fmt: skip


def controls(results: Results) -> Html:
    """Return search, facets and axes; the script fills in what they offer."""
    facets = {"format": "format", "scales": "scales", "target": "unit", "kind": "kind"}
    cases = results.cases
    columns = {"format": "short_format", "scales": "scales", "target": "target", "kind": "kind"}
    kinds = {"exact": "bit exact", "fake": "fake quantisation"}
    filters = []
    for name, word in facets.items():
        options = [tag("option", f"any {word}", value="")] + [
            tag("option", kinds.get(value, value) if name == "kind" else value or "none",
                value=value)
            for value in dict.fromkeys(cases[columns[name]])
            if value
        ]  # fmt: skip
        filters.append(
            tag("label", f"{word} ", tag("select", *options, data_testid=f"filter-{name}"))
        )
    return tag(
        "div",
        tag("label", "search ", tag("input", type="search", data_testid="search")),
        *filters,
        tag("button", "reset", type="button", data_testid="reset"),
        tag("output", f"{len(cases)} of {len(cases)} cases", data_testid="count",
            aria_live="polite"),
        class_="controls filters",
    )  # fmt: skip


def tradeoff(results: Results, figures: Mapping[str, Html]) -> Html:
    """Return the place of the chart; without the script a figure stands there."""
    axes = (tag("label", f"{word} ", tag("select", data_testid=f"axis-{name}"))
            for name, word in (("x", "across"), ("y", "up")))  # fmt: skip
    shown = [figures[name] for name in ("pareto_bits", "perplexity", "cosine") if name in figures]
    rows = _by_id(results)
    groups = equal_cases(results.cases)
    equal = [
        join([case_link(rows[c], unit=True) for c in group[:NAMED]], " = ")
        for group in groups[:NAMED]
    ]
    more = f"; and {len(groups) - NAMED} more" if len(groups) > NAMED else ""
    return section(
        "tradeoff", "Trade-off",
        tag("p", "What an error costs. Filled: bit exact; outline: fake quantisation. Dashed: no "
            "bit-exact case is better in both. Point at a mark for its recipe, open it for its "
            "layers.", class_="note"),
        run_select(results), controls(results),
        tag("div", tag("p", *axes, class_="controls"), tag("div", class_="chart"),
            tag("div", class_="legend"), tag("p", class_="note said"),
            tag("aside", tag("p", "Point at a case, or reach it with Tab."), data_testid="recipe",
                aria_live="polite", aria_label="recipe of the case"),
            class_="plot scripted"),
        tag("noscript", *shown),
        tag("p", "Alike to the last digit: ", join(equal, "; "), more, ".", class_="note")
        if equal else None,
    )  # fmt: skip


def run_select(results: Results) -> Html | None:
    """Return the choice of a run, where a file has several."""
    runs = results.cases[["model", "text", "tokens"]].drop_duplicates()
    if len(runs) < 2:
        return None
    options = [
        tag("option", f"{row.model}, {row.text}, {row.tokens} tokens", value=str(i))
        for i, row in enumerate(runs.itertuples())
    ]
    select = tag("select", *options, data_testid="filter-run")
    return tag("p", tag("label", "run ", select), class_="controls")


def cases_section(results: Results) -> Html:
    """Return the table of all cases."""
    shown = [BY_KEY[key] for key in shown_measures(results.cases)]
    words = (("name", "case"), ("target", "unit"), ("exact", "kind"))
    heads = [_sorted_head(key, word) for key, word in words]
    heads += [_sorted_head(m.key, m.head, numeric=True) for m in shown]
    body = [_case_row(row, shown) for row in records(results.cases)]
    return section(
        "cases-section", "Cases",
        tag("p", "Every case; a header sorts. Empty: not measured. ",
            tag("a", "Download CSV", href="#", download="cases.csv", class_="download scripted"),
            class_="note"),
        rows_table(tag("tr", *heads), body, data_testid="cases"),
        tag("p", tag("button", "show all rows", type="button", class_="more", hidden=True)),
    )  # fmt: skip


def _sorted_head(key: str, word: str, *, numeric: bool = False) -> Html:
    button = tag("button", word, type="button")
    return tag("th", button, scope="col", data_key=key, aria_sort="none",
               class_="n" if numeric else None)  # fmt: skip


def _case_row(row: Mapping[str, Any], shown: Iterable[Measure]) -> Html:
    cells = [tag("th", case_link(row), scope="row"), tag("td", row["target"]),
             tag("td", row["kind"])]  # fmt: skip
    for measure in shown:
        value = row[measure.key]
        exact = plain_number(value)
        cells.append(
            tag("td", number(value, measure.form), data_v="" if exact is None else str(exact))
        )
    return tag("tr", *cells, data_testid="case-row", data_case=row["case_id"])


def detail() -> Html:
    """Return the place of the layers of one case."""
    return section(
        "detail", "Layers of one case", tag("div", class_="open scripted"),
        tag("noscript", tag("p", "SQNR of every product of every case: tables/products.csv, and "
            "the figure layers.")),
        tabindex="-1",
    )  # fmt: skip


def products_section(results: Results) -> Html | None:
    """Return the place of the table of products over formats."""
    if results.products.empty:
        return None
    select = tag("select", data_testid="products-unit")
    return section(
        "products", "Products",
        tag("p", "Local SQNR in dB of each product alone, on exact inputs. A unit's own effect "
            "shows in the difference of two units on the same format.", class_="note"),
        tag("p", tag("label", "show ", select), class_="controls scripted"),
        tag("div", class_="matrix scripted"),
        tag("noscript", _lowest(results)),
    )  # fmt: skip


def _lowest(results: Results) -> Html:
    """Return the table that the script draws first, for a page without one."""
    lowest = local_sqnr(results)
    heads = ["", *(", ".join(map(str, key)) for key in lowest.columns[:WITHOUT_SCRIPT])]
    body = [
        [tag("th", str(product), scope="row"), *(number(v, ".1f") for v in row[:WITHOUT_SCRIPT])]
        for product, row in zip(lowest.index, lowest.to_numpy(), strict=True)
    ]
    return table(heads, body)


def method(results: Results, commands: Sequence[str], facts: Mapping[str, str]) -> Html:
    """Return what was measured, how, and what the words mean."""
    cases = results.cases
    said = [
        ("Model", _names(cases["model"])), ("Text", _names(cases["text"])),
        ("Tokens scored", _names(cases["tokens"])), ("Seed", _names(cases["seed"])),
        ("numsim", _names(cases["numsim_version"])),
        ("Bit exact", _names(cases.loc[cases["exact"], "target"])),
        ("Fake quantisation", _names(cases.loc[~cases["exact"], "target"])),
        *facts.items(),
    ]  # fmt: skip
    if results.unfinished:
        said.append(("Left out, unfinished", ", ".join(results.unfinished)))
    terms = join(join([tag("dt", word), tag("dd", value)]) for word, value in said if value)
    shown = [m for m in MEASURES if m.key in set(shown_measures(cases))]
    glossary = table(
        ("measure", "column", "better", "meaning"),
        [(m.head, tag("td", tag("code", m.key)), m.better, m.meaning) for m in shown],
    )
    lengths = emulated_lengths(results)
    limits = [
        "Numbers of a product come from the first batch of the text, those of the network from "
        "all of it. Error: difference from the float64 run of the same model.",
        "Exact: the rules of the named unit, bit for bit. Fake: rounded values, multiplied and "
        "added in float32; it says nothing about a unit.",
        f"{k_tested(lengths)}." if lengths else None,
    ]  # fmt: skip
    return section(
        "method", "Method", tag("dl", terms), tag("h3", "Made again by"),
        tag("pre", "\n".join(commands)), tag("h3", "Words"), glossary,
        tag("h3", "Limits"), *(tag("p", limit) for limit in limits if limit),
    )  # fmt: skip


def _names(names: Iterable[str]) -> str:
    return ", ".join(name for name in dict.fromkeys(names) if name)


def _by_id(results: Results) -> dict[str, Mapping[str, Any]]:
    return {row["case_id"]: row for row in records(results.cases)}
