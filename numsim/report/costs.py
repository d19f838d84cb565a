"""The section of costs: every figure with its source, its node and how far it is known."""

from __future__ import annotations

from collections.abc import Iterable

from numsim.cost import Row
from numsim.report.markup import Html, tag
from numsim.report.sections import number, rows_table, section
from numsim.report.tables import Results, records

MODEL = "numsim.cost.area_ge, a count of cells"
HEADS = ("id", "quantity", "operation", "formats", "adds in", "value", "node", "scope", "mark",
         "source")  # fmt: skip


def cost_section(results: Results, costs: Iterable[Row], own: str | None) -> Html:
    """Return every figure of cost, with where it comes from."""
    costs = tuple(costs)
    body = [_literature(row) for row in costs if row.enabled]
    off = sum(not row.enabled for row in costs)
    said = (
        "Figures of two nodes, sources or scopes are never added, divided or drawn on one axis. "
        "Mark V: read in its source; S: quoted by others; M: from memory; U: a user's own."
        + (f" {off} rows are switched off." if off else "")
        + (f" With the rows of {own}." if own else "")
    )
    head = tag("tr", *(tag("th", h, scope="col") for h in HEADS))
    return section(
        "cost", "Cost", _areas(results),
        tag("details", tag("summary", f"{len(body)} figures from the literature"),
            tag("p", said, class_="note"), rows_table(head, body)),
    )  # fmt: skip


def _literature(row: Row) -> Html:
    where = f"{row.source}, {row.locator}" if row.locator else row.source
    unit = f" × {row.base}" if row.base else f" {row.unit}"
    node = row.node + (f", {row.voltage:g} V" if row.voltage else "")
    amount = f"{row.value:g}{unit}" + (f" for {row.bits} bits" if row.bits else "")
    cells = (row.id, row.quantity, row.op, " × ".join(row.formats), row.accumulator or "", amount,
             node, row.scope, row.mark, where)  # fmt: skip
    return tag(
        "tr", *(tag("td", cell) for cell in cells), data_testid="cost-row", data_mark=row.mark,
        data_source=row.source, data_node=row.node,
    )  # fmt: skip


def _areas(results: Results) -> Html | None:
    """Return the areas of the structural model, as ranges: it cannot tell more."""
    cases = results.cases
    found = cases[cases["area_ge"].notna()].drop_duplicates(["short_format", "target", "area_ge"])
    if found.empty:
        return None
    body = [
        tag(
            "tr", tag("td", row["short_format"]), tag("td", row["target"]),
            tag("td", number(row["area_ge"], ".0f"), data_v=f"{row['area_ge']!r}"),
            tag("td", f"{row['area_low']:.0f} to {row['area_high']:.0f}"),
            data_testid="cost-row", data_mark="model", data_source=MODEL, data_node="none",
        )
        for row in records(found.sort_values("area_ge", kind="stable"))
    ]  # fmt: skip
    heads = ("format", "unit", "GE per MAC", "range")
    return tag(
        "div", tag("h3", "Area by the structural model"),
        tag("p", "Gate equivalents for each product in a step, counted from cells, not "
            "synthesised; node none, mark model. Units whose ranges overlap are equal to it: 20 "
            "percent for 8-bit formats and widths of accumulators, 0.7 to 1.5 times for 4-bit "
            "block formats, which it does not rank. It is area; for energy it is a proxy at best.",
            class_="note"),
        rows_table(tag("tr", *(tag("th", h, scope="col") for h in heads)), body),
    )  # fmt: skip
