"""Commands about scales: verify published. Parse, call, print."""

from __future__ import annotations

import sys

from numsim.terminal import say
from numsim.terminal import columns


def print_published(only: str) -> None:
    """Print figures of the literature beside those computed now: ``verify published``."""
    from numsim.verify.published import PublishedRow, check_published

    rows: list[PublishedRow] = []
    cells: list[tuple[str, ...]] = [("", "figure", "published", "computed", "difference", "source")]
    for row in check_published(only):
        rows.append(row)
        word = "MOVED" if not row.holds else {True: "ok", None: "new", False: "differs"}[row.agrees]
        published, difference = "", ""
        if row.value is not None:
            published, difference = f"{row.value:.6g}", f"{row.computed - row.value:+.2g}"
        cells.append((word, row.id, published, f"{row.computed:.6g}", difference, row.source))
    say("\n".join(columns(cells, "<<>>><")))
    for row in rows:
        if row.agrees is False:
            say(f"differs: {row.id}, {row.statement}: {row.note or row.how}")
    for row in rows:
        if not row.holds:
            say(
                f"MOVED: {row.id} was {row.before:.6g} and is {row.computed:.6g}; the tolerance is "
                f"{row.tolerance:g}"
            )
    moved = sum(not row.holds for row in rows)
    count = {
        word: sum(row.agrees is agrees for row in rows)
        for word, agrees in (("agree", True), ("differ, as said above", False), ("new here", None))
    }
    say(
        f"{len(rows)} figures: {', '.join(f'{n} {word}' for word, n in count.items())}; "
        f"{moved} moved since they were written down"
    )
    if moved:
        sys.exit(1)
