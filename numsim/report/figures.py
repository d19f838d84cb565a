"""Figures of a sweep, drawn in memory: the same results give the same bytes of PNG and SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

from numsim.report.decide import SIGNED, judged_by
from numsim.report.measures import BY_KEY
from numsim.report.tables import Results, what_has_noise, without_keys
from numsim.words import shorten

# Colours of Okabe and Ito, told apart by the colour-blind: one a target, in order of the CSV file.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
MARKERS = "osD^vPX<>*"
WIDEST = 12.0  # inches
LISTED = 12  # units, and kinds of scales, that a legend names
MOST = 40  # cases in a figure: of more the best
LONGEST = 32  # characters of a name that is told from others by them; tables have all of it
NARROW = 8  # lanes: beside fewer, a line of words is wider than the axes
ZOOM = 0.05  # a second panel shows the cases within this share of the lowest perplexity
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.labelsize": 9, "legend.fontsize": 8.5, "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5, "axes.spines.top": False, "axes.spines.right": False,
    "figure.dpi": 200, "axes.formatter.useoffset": False, "text.parse_math": False,
    "axes.axisbelow": True, "svg.fonttype": "path", "svg.hashsalt": "numsim",
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A finished figure."""

    png: bytes
    caption: str
    svg: bytes = b""


@dataclass(frozen=True)
class Measure:
    """What a figure shows of every case, over its format."""

    file: str
    column: str
    axis: str
    caption: str
    stderr: str = ""
    zoom: bool = False  # a second panel for the cases near the lowest
    log: bool = False
    reference: str = ""  # column of what a perfect format would reach


MEASURES = (
    Measure("kl", "kl_nats", "KL divergence (nats)", "KL divergence from the reference against "
            "bits per weight; lower is better.", "kl_stderr", log=True),
    Measure("perplexity", "perplexity", "perplexity", "Perplexity of the text against bits per "
            "weight; lower is better. Dashed: the float64 reference.", "perplexity_stderr",
            zoom=True, log=True, reference="perplexity_reference"),
    Measure("cosine", "cosine_distance", "1 − cosine of embeddings", "Distance of sentence "
            "embeddings from the reference's, one minus their mean cosine, against bits per weight;"
            " lower is better.", "embedding_cosine_stderr", log=True),
    Measure("sqnr", "sqnr_cumulative_db", "SQNR of {what} (dB)", "Signal to quantisation noise "
            "of {what} against bits per weight; higher is better."),
)  # fmt: skip


def draw_figures(results: Results) -> dict[str, Drawn]:
    """Draw the figures whose columns have values; name -> figure."""
    drawn = {}
    what = what_has_noise(results.cases)
    cases, left_out = best_cases(results.cases)
    cases = cases.assign(
        cosine_distance=1 - cases["embedding_cosine"],
        perplexity_stderr=cases["perplexity"] * cases["dnll_stderr"],
    )
    with style():
        for measure in MEASURES:
            if _finite(cases[measure.column]).any():
                words = {
                    key: getattr(measure, key).format(what=what) for key in ("axis", "caption")
                }
                words["caption"] += left_out
                drawn[measure.file] = _lanes_figure(cases, replace(measure, **words))
    return drawn


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of reports, whatever the caller set."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def best_cases(cases: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the cases that a figure has room for, in order of the file, and a sentence on it."""
    if len(cases) <= MOST:
        return cases, ""
    key = judged_by(cases)
    merit = SIGNED[BY_KEY[key].better] * cases[key]
    kept = merit.sort_values(kind="stable").index[:MOST]
    return cases[
        cases.index.isin(kept)
    ], f" The best {MOST} of {len(cases)} cases; tables have all."


def _lanes_figure(cases: pd.DataFrame, measure: Measure) -> Drawn:
    values = cases[measure.column][_finite(cases[measure.column])]
    log = measure.log and values.max() > 2 * values.min() and bool((values > 0).any())
    if log:  # what is not above 0 has no place on it
        values = values[values > 0]
    low = values[values <= values.min() * (1 + ZOOM)]
    zoom = measure.zoom and 1 < len(low) < len(values)
    lanes = _lanes(cases)
    figure = canvas(_width(lanes), 5.6 if zoom else 3.6)
    panels = figure.subplots(2 if zoom else 1, 1, sharex=True, squeeze=False)[:, 0]
    whole = panels[0]
    whole.set_ylabel(measure.axis)
    if log:
        whole.set_yscale("log")
        whole.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if values.max() < 1000 * values.min():
            whole.yaxis.set_minor_formatter(_PlainLog(minor_thresholds=(1, 0.4)))
        else:
            whole.yaxis.set_minor_formatter(NullFormatter())
        whole.set_ylabel(f"{measure.axis}, log scale")
    _points(whole, cases.loc[values.index], measure, lanes, cases)
    references = list(cases[measure.reference].dropna().unique()) if measure.reference else []
    if len(references) == 1:  # of several runs each has its own
        for axes in panels:
            axes.axhline(
                float(references[0]), color="#555555", linewidth=1, linestyle=(0, (5, 3)), zorder=0
            )
    _name_lanes(figure, whole, panels[-1], lanes)
    note = _note(len(cases) - len(values), log)
    if measure.stderr:
        note = f" Bars: two standard errors to each side.{note}"
    if zoom:
        _points(panels[1], cases.loc[low.index], measure, lanes, cases)
        panels[1].set_ylabel(f"{measure.axis}\n(within {ZOOM:.0%} of the lowest)")
        note = f" Below: the cases within {ZOOM:.0%} of the lowest {measure.axis}.{note}"
    mark_legend(figure, cases)
    return save_figure(figure, measure.caption + note)


class _PlainLog(LogFormatter):
    """Numbers between the powers of ten, where there is room, without powers of their own."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _lanes(cases: pd.DataFrame) -> list[tuple[int, str]]:
    """Return the places on the x axis: (bits per weight to the nearest whole bit, format)."""
    return sorted(dict.fromkeys(_lane_of(cases)), key=lambda lane: lane[0])


def _lane_of(cases: pd.DataFrame) -> list[tuple[int, str]]:
    return [(round(b), f) for b, f in zip(cases["bits"].fillna(0), cases["format"], strict=True)]


def _points(
    axes: Axes,
    cases: pd.DataFrame,
    measure: Measure,
    lanes: list[tuple[int, str]],
    every: pd.DataFrame,
) -> None:
    """Mark every case in its lane, beside the others: outline = fake quantisation, full = exact.

    `every`: all cases of the figure, which decide the marks, colours and places.
    """
    marks, colours = marks_of(every), units_of(every)
    neighbours: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for lane, scales, target in zip(_lane_of(every), every["scales"], every["target"], strict=True):
        neighbours.setdefault(lane, []).append((scales, target))
    for lane, (_, case) in zip(_lane_of(cases), cases.iterrows(), strict=True):
        places = sorted(neighbours[lane], key=lambda pair: list(marks).index(pair[0]))
        place = places.index((case["scales"], case["target"])) - (len(places) - 1) / 2
        fill = {"markersize": 5.5} if case["exact"] else {"markersize": 7, "fillstyle": "none"}
        at = lanes.index(lane) + min(0.2, 0.8 / len(places)) * place
        colour, value = colours[case["target"]], case[measure.column]
        axes.plot(
            at, value, marker=marks[case["scales"]], color=colour, linestyle="", **fill,
        )  # fmt: skip
        error = 2 * case[measure.stderr] if measure.stderr else 0.0
        if error > 0:
            low = max(value - error, value / 100) if value > 0 else value - error
            axes.vlines(at, low, value + error, color=colour, linewidth=1)
    axes.grid(axis="y", which="both", color="#dddddd", linewidth=0.6)


def _name_lanes(figure: Figure, top: Axes, bottom: Axes, lanes: list[tuple[int, str]]) -> None:
    bottom.set_xlim(-0.6, len(lanes) - 0.4)
    labels = distinct_names(name for _, name in lanes)
    bottom.set_xticks(
        range(len(lanes)), [labels[name] for _, name in lanes],
        rotation=30 if len(lanes) <= 14 else 60, ha="right", rotation_mode="anchor",
    )  # fmt: skip
    words = "format, in order of bits per weight", "(scales included, nearest whole bit)"
    bottom.set_xlabel(("\n" if len(lanes) < NARROW else " ").join(words))
    for axes in figure.axes:
        axes.tick_params(axis="x", length=0)
        for i in range(1, len(lanes)):
            if lanes[i][0] != lanes[i - 1][0]:
                axes.axvline(i - 0.5, color="#999999", linewidth=0.8)
    for bits in dict.fromkeys(bits for bits, _ in lanes):
        places = [i for i, lane in enumerate(lanes) if lane[0] == bits]
        name = f"{bits} bits" if bits else "bits not known"
        top.text(
            sum(places) / len(places), 1.02, name, ha="center", va="bottom",
            transform=top.get_xaxis_transform(),
        )  # fmt: skip


def mark_legend(figure: Figure, cases: pd.DataFrame) -> None:
    """Say which colour is which unit, which mark which scales."""

    def entry(label: str, marker: str, colour: Any, **more: Any) -> Line2D:
        return Line2D([], [], marker=marker, color=colour, linestyle="", label=label, **more)

    entries = [entry("unit", "", "none")]
    units = distinct_names(units_of(cases))
    named = list(units_of(cases).items())
    entries += [entry(units[n], "s", c, markersize=7) for n, c in named[:LISTED]]
    if len(named) > LISTED:
        entries += [entry(f"and {len(named) - LISTED} more", "", "none")]
    entries += [entry("scales", "", "none")]
    entries += [
        entry(drawn_name(n), mark, "#555555") for n, mark in list(marks_of(cases).items())[:LISTED]
    ]
    entries += [
        entry("products", "", "none"),
        entry("exact emulation", "o", "#555555", markersize=5.5),
    ]
    if not cases["exact"].all():
        entries += [entry("fake quantisation", "o", "#555555", markersize=7, fillstyle="none")]
    legend = figure.legend(handles=entries, loc="outside right upper", frameon=False)
    for line, text in zip(entries, legend.get_texts(), strict=True):
        if line.get_marker() == "":
            text.set_fontweight("bold")


def marks_of(cases: pd.DataFrame) -> dict[str, str]:
    """Return the mark of each kind of scales."""
    names = dict.fromkeys(cases["scales"])
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def units_of(cases: pd.DataFrame) -> dict[str, Any]:
    """Return the colour of each unit."""
    names = list(dict.fromkeys(cases["target"]))
    if len(names) <= len(COLOURS):
        return dict(zip(names, COLOURS, strict=False))
    spread = mpl.colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))
    return dict(zip(names, spread, strict=True))


def distinct_names(names: Iterable[str], shortest: int = LONGEST) -> dict[str, str]:
    """Return names as `drawn_name` does; no label is so short that it is another's too."""
    every = dict.fromkeys(names)
    for longest in (shortest, 2 * shortest, 4 * shortest):
        labels = {name: drawn_name(name, longest) for name in every}
        if len(set(labels.values())) == len(labels):
            return labels
    return {name: f"{label} #{i}" for i, (name, label) in enumerate(labels.items(), start=1)}


def drawn_name(name: object, longest: int = LONGEST) -> str:
    """Return a name as it may stand in a figure: printable, not empty, not as long as a page."""
    short = shorten(without_keys(str(name)), longest)
    return short.lstrip("_") or "none"  # an underscore would hide a legend entry


def _note(count: int, log: bool) -> str:
    value = "a finite value above 0" if log else "a finite value"
    return f" Not drawn: {count} cases without {value}." if count else ""


def _finite(values: pd.Series) -> pd.Series:
    return pd.Series(np.isfinite(values.to_numpy(dtype=float)), index=values.index)


def _width(lanes: Iterable[object]) -> float:
    return min(WIDEST, max(6.4, 3.2 + 0.6 * len(list(lanes))))


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, caption: str) -> Drawn:
    """Return a figure as PNG and as SVG, whose letters are outlines, with its caption."""
    FigureCanvasAgg(figure)
    png, svg = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a letter the font lacks: a box
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # it has found the places; "none" would draw once more
        figure.savefig(png, format="png", metadata={"Software": None})
        figure.savefig(
            svg, format="svg", metadata={"Title": caption, "Date": None, "Creator": None}
        )
    return Drawn(png.getvalue(), caption, svg.getvalue())
