"""HTML from Python values: what is not markup already is text, whatever stands in it."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Html(str):
    """Text that is HTML: everything else that `tag` is given gets escaped."""

    __slots__ = ()


def tag(element: str, /, *content: str | None, **attributes: str | float | bool | None) -> Html:
    """Return an element; `class_` and `data_case` are written ``class`` and ``data-case``.

    An attribute that is None or False is left out; True stands without a value.

    Examples
    --------
    >>> tag("a", "1 < 2", tag("b", "&"), href="#case=1", class_="x", hidden=True, title=None)
    '<a href="#case=1" class="x" hidden>1 &lt; 2<b>&amp;</b></a>'
    >>> tag("input", value='"')
    '<input value="&quot;">'
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inner = join(content)
    end = "" if element in ("input", "meta", "link", "br", "img") else f"{inner}</{element}>"
    return Html(f"<{element}{written}>{end}")


def join(parts: Iterable[str | None], between: str = "") -> Html:
    """Return parts one after the other as HTML.

    >>> join(["<", tag("b", "x")], ", ")
    '&lt;, <b>x</b>'
    """
    return Html(
        html.escape(between).join(
            part if isinstance(part, Html) else html.escape(part)
            for part in parts
            if part is not None
        )
    )


def table(heads: Iterable[str], body: Iterable[Iterable[str]], **attributes: str) -> Html:
    """Return a table in a box of its own, which scrolls where it is too wide.

    Heads are text; a cell is text or an element ``td`` or ``th``.
    """
    rows = (tag("tr", *(_cell(cell) for cell in row)) for row in body)
    head = tag("thead", tag("tr", *(tag("th", head, scope="col") for head in heads)))
    return box(tag("table", head, tag("tbody", *rows), **attributes))


def box(content: Html) -> Html:
    """Return a box that scrolls sideways, also by keyboard."""
    return tag("div", content, class_="scroll", tabindex="0", role="group", aria_label="table")


def _cell(cell: str) -> Html:
    is_cell = isinstance(cell, Html) and cell.startswith(("<td", "<th", "<tr"))
    return Html(cell) if is_cell else tag("td", cell)
