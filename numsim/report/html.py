"""The page of a report: one file, which loads nothing and runs only its own scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files

import pandas as pd

from numsim.report import sections
from numsim.report.decide import Answers
from numsim.report.markup import Html, join, tag
from numsim.report.payload import as_json, page_data
from numsim.report.tables import Results

SCRIPTS = ("d3.min.js", "plot.min.js", "chart.js", "tables.js", "page.js")


def asset(name: str) -> str:
    """Return a file of the package's folder ``assets``."""
    return (files("numsim.report") / "assets" / name).read_text(encoding="utf-8")


def write_page(
    results: Results,
    answers: list[Answers],
    compared: tuple[pd.DataFrame, str] | None,
    figures: Mapping[str, bytes],
    more: list[Html],
    commands: list[str],
    facts: Mapping[str, str],
) -> str:
    """Return ``report.html``; `figures`: SVG by name, shown where no script runs."""
    drawn = {name: image(name, svg) for name, svg in figures.items()}
    models = ", ".join(dict.fromkeys(results.cases["model"]))
    title = f"Number formats on {models}"
    data = page_data(results, answers, None if compared is None else compared[0])
    body = [
        tag("header", tag("h1", title),
            tag("p", _facts(results), class_="note"),
            tag("button", "dark or light", type="button", data_testid="theme",
                class_="scripted")),
        tag("main",
            sections.answer(results, answers), sections.failed(results),
            None if compared is None else sections.compare_section(*compared),
            sections.tradeoff(results, drawn), sections.cases_section(results),
            sections.detail(), sections.products_section(results), *more,
            sections.method(results, commands, facts)),
    ]  # fmt: skip
    return document(title, body, as_json(data))


def document(title: str, body: list[Html], data: str) -> str:
    """Return a whole HTML file with the style and the scripts of the package in it."""
    scripts = [asset(name) for name in SCRIPTS]
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Html(asset("page.css"))),
        tag("noscript", tag("style", Html(".scripted, .filters { display: none !important }"))),
    )
    end = [tag("script", Html(data), type="application/json", id="data")]
    end += [tag("script", Html(script)) for script in scripts]
    page = tag("html", head, tag("body", join(body), *end), lang="en")
    return f"<!doctype html>\n{page}\n"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def image(name: str, svg: bytes, caption: str = "") -> Html:
    """Return a figure that stands in the page itself, with what it shows below it."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    drawn = tag("img", src=source, alt=f"figure {name}", class_="figure")
    return tag("figure", drawn, tag("figcaption", caption, class_="note")) if caption else drawn


def _facts(results: Results) -> str:
    cases = results.cases
    parts = [f"{len(cases)} cases", f"{int(cases['exact'].sum())} bit exact"]
    parts += [
        f"{word} {', '.join(dict.fromkeys(cases[name]))}"
        for name, word in (("text", "text"), ("tokens", "tokens"), ("numsim_version", "numsim"))
        if (cases[name] != "").any()
    ]
    return " · ".join(parts)
