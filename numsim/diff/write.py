"""A comparison of two recipes as text, CSV files and one figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from numsim.diff.compute import ULPS, Diff
from numsim.errors import NumsimError
from numsim.files import check_regular, escape_cell, replace_files
from numsim.float_state import known_floats
from numsim.terminal import columns

PRODUCT_COLUMNS = (
    "layer", "op", "K", "differing", "max_ulp", "ulp_hist", "mean_signed_ulp", "sqnr_db", "first",
)  # fmt: skip
CAUSE_COLUMNS = (
    "field", "a", "b", "changed_in", "differing_if_only_this_changed", "explains",
)  # fmt: skip
DEPTH_COLUMNS = ("depth", "name", "sqnr_db", "differing", "kl_nats")


@known_floats
def write_diff(found: Diff, folder: str | Path) -> tuple[Path, ...]:
    """Write diff.csv, cause.csv, depth.csv and diff.png.

    Raises
    ------
    NumsimError
        For a folder that cannot be written.
    """
    place = Path(folder)
    products = [
        (r.layer, r.op, r.k, r.differing, r.max_ulp, ";".join(f"{x:.6g}" for x in r.ulp_hist),
         r.mean_signed_ulp, r.sqnr_db, r.first)
        for r in found.products
    ]  # fmt: skip
    causes = [
        (c.field, c.a, c.b, found.a if c.in_first else found.b, c.differing, c.explains)
        for c in found.causes
    ]
    depth = [(d.depth, d.name, d.sqnr_db, d.differing, d.kl_nats) for d in found.depth]
    files = {
        place / "diff.csv": _csv(PRODUCT_COLUMNS, products),
        place / "cause.csv": _csv(CAUSE_COLUMNS, causes),
        place / "depth.csv": _csv(DEPTH_COLUMNS, depth),
        place / "diff.png": _figure(found),
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file in files:
            check_regular(file, "diff")
        replace_files(files)
    except OSError as error:
        raise NumsimError(
            f"diff: cannot write {place}: {error}; give a folder that can be written"
        ) from None
    return tuple(files)


def _csv(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> bytes:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(head)
    for row in rows:
        out.writerow(
            [escape_cell(v) if isinstance(v, str) else "" if v is None else v for v in row]
        )
    return text.getvalue().encode()


@known_floats
def as_text(found: Diff) -> str:
    """Return a comparison on a page."""
    if found.equal:
        return f"{found.a} and {found.b}: bit for bit equal on {found.results:,} outputs"
    differing = sum(r.differing * r.results for r in found.products)
    lines = [
        f"{found.a} against {found.b}: {differing / found.results:.2%} of {found.results:,} "
        "outputs differ on equal inputs"
    ]
    cells: list[tuple[str, ...]]
    first = next((r for r in found.products if r.first), None)
    if first is None:
        lines.append("no product differs: operators between them do, or caches of keys and values")
    else:
        lines.append(
            f"the first product that differs: layer {first.layer}, {first.op} (K = {first.k})"
        )
    worst = sorted(found.products, key=lambda r: -r.differing)[:8]
    cells = [("layer", "op", "K", "differing", "max ulp", "mean ulp", "SQNR dB")]
    cells += [
        (r.layer, r.op, str(r.k), f"{r.differing:.2%}", str(r.max_ulp),
         f"{r.mean_signed_ulp:+.3g}", f"{r.sqnr_db:.1f}")
        for r in worst if r.differing
    ]  # fmt: skip
    if first is not None:
        lines += ["the products that differ most:", *columns(cells, "<<>>>>>")]
    if found.causes:
        cells = [("field", found.a, found.b, "changed in", "still differing", "explains")]
        cells += [
            (c.field, c.a, c.b, found.a if c.in_first else found.b, f"{c.differing:.2%}",
             f"{c.explains:.1%}")
            for c in sorted(found.causes, key=lambda c: -c.explains)
        ]  # fmt: skip
        lines += ["one field set to the other's value:", *columns(cells, "<<<<>>")]
    cells = [("depth", "after", "SQNR dB", "differing", "KL nats")]
    cells += [
        (str(d.depth), d.name, f"{d.sqnr_db:.1f}", f"{d.differing:.2%}",
         "" if d.kl_nats is None else f"{d.kl_nats:.3g}")
        for d in found.depth
    ]  # fmt: skip
    return "\n".join([*lines, "two whole runs:", *columns(cells, "><>>>")])


def _figure(found: Diff) -> bytes:
    """Draw the share of differing results a product, their distances, and depth."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    share, ulps, depth = figure.subplots(1, 3)
    rows = [r for r in found.products if r.differing] or list(found.products[:1])
    names = sorted({r.op for r in rows})
    layers = sorted({r.layer for r in rows}, key=lambda x: (not x.isdigit(), x.zfill(4)))
    width = 0.8 / max(len(names), 1)
    for n, op in enumerate(names):
        mine = {r.layer: r.differing for r in rows if r.op == op}
        share.bar(
            [i + n * width for i in range(len(layers))], [mine.get(x, 0.0) for x in layers], width,
            label=op,
        )  # fmt: skip
    share.set_xticks([i + 0.4 - width / 2 for i in range(len(layers))], layers)
    share.set(xlabel="layer", ylabel="share of results that differ")
    share.legend(
        fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False
    )
    share.set_ylim(0, None)
    total = sum(r.results for r in found.products)
    hist = [
        sum(r.ulp_hist[n] * r.results for r in found.products) / total for n in range(len(ULPS))
    ]
    ulps.bar(range(1, len(ULPS)), hist[1:])
    ulps.set_xticks(range(1, len(ULPS), 2), ULPS[1::2], rotation=60, fontsize=7)
    ulps.set(xlabel="units of the last place", ylabel="share of results")
    known = [d for d in found.depth if math.isfinite(d.sqnr_db)]
    depth.plot([d.depth for d in known], [d.sqnr_db for d in known], "o-")
    depth.set(xlabel="depth (last: logits)", ylabel="SQNR of two whole runs, dB")
    figure.suptitle(f"{found.a} against {found.b}", fontsize=10)
    packed = io.BytesIO()
    figure.savefig(packed, format="png", dpi=150, metadata={"Software": None})
    return packed.getvalue()
