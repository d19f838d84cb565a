"""Figures of cost against error, with the front of the bit-exact cases."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from numsim.report.decide import front
from numsim.report.figures import (
    Drawn,
    best_cases,
    canvas,
    drawn_name,
    mark_legend,
    marks_of,
    save_figure,
    style,
    units_of,
)  # fmt: skip
from numsim.report.measures import BY_KEY
from numsim.report.tables import Results

COSTS = {"bits": "bits_per_weight", "area": "area_ge", "energy": "pj_per_mac"}
LINEAR = {"dnll": 1e-3, "cosine_distance": 1e-4, "kl_nats": 1e-4}  # of the symmetric log scale


def draw_fronts(results: Results) -> dict[str, Drawn]:
    """Draw dNLL, of an encoder the distance of embeddings, against each cost there is."""
    cases, left_out = best_cases(results.cases)
    cases = cases.assign(cosine_distance=1 - cases["embedding_cosine"])
    y = next((name for name in LINEAR if np.isfinite(cases[name]).any()), None)
    drawn = {}
    with style():
        for name, x in COSTS.items():
            if y is not None and (np.isfinite(cases[x]) & np.isfinite(cases[y])).any():
                drawn[f"pareto_{name}"] = _front_figure(cases, x, y, left_out)
    return drawn


def _front_figure(cases: pd.DataFrame, x: str, y: str, left_out: str) -> Drawn:
    # Energies of two nodes never stand on one axis.
    nodes = list(dict.fromkeys(cases["energy_node"])) if x == "pj_per_mac" else [""]
    nodes = [
        node for node in nodes if cases.loc[cases["energy_node"] == node, x].notna().any()
    ] or [""]
    figure = canvas(9.6, 4.4)
    panels = figure.subplots(1, len(nodes), squeeze=False)[0]
    for axes, node in zip(panels, nodes, strict=True):
        here = cases[cases["energy_node"] == node] if x == "pj_per_mac" else cases
        _panel(axes, here, cases, x, y)
        axes.set_xlabel(BY_KEY[x].head + (f" ({node})" if node else ""))
    words = {"dnll": "dNLL (nats)", "cosine_distance": "1 − cosine of embeddings",
             "kl_nats": "KL divergence (nats)"}  # fmt: skip
    panels[0].set_ylabel(f"{words[y]}, symmetric log scale")
    mark_legend(figure, cases)
    return save_figure(
        figure,
        f"{words[y]} against {BY_KEY[x].title}; lower and further left is better. Dashed: no "
        "bit-exact case is better in both; those cases are named. Bars: 95 % of chance"
        + (", and across what the model of area can tell." if x == "area_ge" else ".")
        + left_out,
    )


def _panel(axes: Axes, cases: pd.DataFrame, every: pd.DataFrame, x: str, y: str) -> None:
    marks, colours = marks_of(every), units_of(every)
    found = cases[np.isfinite(cases[x]) & np.isfinite(cases[y])]
    axes.set_yscale("symlog", linthresh=LINEAR[y])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for _, case in found.iterrows():
        fill = {"markersize": 5.5} if case["exact"] else {"markersize": 7, "fillstyle": "none"}
        colour = colours[case["target"]]
        axes.plot(
            case[x], case[y], marker=marks[case["scales"]], color=colour, linestyle="", **fill
        )
        error = 2 * case["dnll_stderr"] if y == "dnll" else 0.0
        if x == "area_ge":  # what the model can tell
            axes.hlines(case[y], case["area_low"], case["area_high"], color=colour, alpha=0.4)
        if error > 0:
            axes.vlines(case[x], case[y] - error, case[y] + error, color=colour, linewidth=1)
    real = found[found["exact"] & ~found["failed"]]
    named = front_rows(real, x, y)
    axes.plot(named[x], named[y], color="#555555", linestyle=(0, (5, 3)), linewidth=1,
              drawstyle="steps-post", zorder=1)  # fmt: skip
    low, high = axes.get_xlim()
    for i, (_, case) in enumerate(named.iterrows()):
        room = case[x] - low > 0.4 * (high - low)  # below and left of a front nothing stands
        axes.annotate(
            drawn_name(case["format"], 30), (case[x], case[y]), fontsize=7.5, zorder=5,
            xytext=(-6, -12) if room else (7, 7 if i % 2 == 0 else -13),
            ha="right" if room else "left", textcoords="offset points",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "alpha": 0.85, "lw": 0},
        )  # fmt: skip
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def front_rows(real: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Return the rows of the front, in order of `x`."""
    ids = front(real, x, "embedding_cosine" if y == "cosine_distance" else y)
    return real.set_index("case_id", drop=False).loc[ids]
