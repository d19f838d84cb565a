"""Figures of the products of a network: heat map of the layers, and one unit against another."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from numsim.report.figures import (
    COLOURS,
    WIDEST,
    Drawn,
    best_cases,
    canvas,
    distinct_names,
    drawn_name,
    save_figure,
    style,
)  # fmt: skip
from numsim.report.tables import Results

NAMED = 60  # products up to which each is named; the page and the tables have the numbers
LONGEST_CASE = 52  # letters of the name of a case
PAIRS = 6  # of units that the figure of differences draws


def draw_layers(results: Results) -> dict[str, Drawn]:
    """Draw the SQNR of all products, by case, and the differences of units where there are any."""
    drawn = {}
    cases, left_out = best_cases(results.cases)
    local, cumulative = (
        _table(results, cases, f"sqnr_{kind}_db") for kind in ("local", "cumulative")
    )
    with style():
        if np.isfinite(local.to_numpy(dtype=float)).any():
            drawn["layers"] = _heat_maps(local, cumulative, cases, left_out)
        pairs = unit_pairs(results)
        if pairs:
            drawn["units"] = _units(pairs)
    return drawn


def _table(results: Results, cases: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return layer.op down, case_id across, in order of the file."""
    products = results.products
    names = product_names(products)
    table = products.assign(product=names).pivot_table(
        index="product", columns="case_id", values=column, aggfunc="min", dropna=False
    )
    found = [case for case in cases["case_id"] if case in table.columns]
    return table.reindex(index=list(dict.fromkeys(names)), columns=found)


def product_names(products: pd.DataFrame) -> pd.Series:
    """Return ``layer.op``, or the layer alone where a product has no name."""
    return (products["layer"] + "." + products["op"]).str.removesuffix(".")


def _heat_maps(
    local: pd.DataFrame, cumulative: pd.DataFrame, cases: pd.DataFrame, left_out: str
) -> Drawn:
    rows, columns = local.shape
    named = rows <= NAMED
    rows_in = 0.13 * rows if named else min(0.05 * rows, 8.0)
    names = cases.set_index("case_id").loc[local.columns]
    every = distinct_names(names["name"] + ", " + names["target"], LONGEST_CASE)
    labels = [
        every[f"{name}, {unit}"] for name, unit in zip(names["name"], names["target"], strict=True)
    ]
    products = [drawn_name(name) for name in local.index]
    low, high = _limits(np.concatenate([local.to_numpy(float), cumulative.to_numpy(float)]))
    width = min(WIDEST, max(6.4, 3.4 + 2 * 0.36 * columns))
    figure = canvas(width, max(2.2, 1.0 + 0.055 * max(map(len, labels))) + rows_in)
    panels: Any = figure.subplots(1, 2, sharey=True)
    layers = [drawn_name(str(name).split(".")[0]) for name in local.index]
    starts = [i for i, name in enumerate(layers) if i == 0 or layers[i - 1] != name]
    colours = mpl.colormaps["viridis"].with_extremes(bad="#dddddd")
    titles = ("local: this product alone", "cumulative: all before as well")
    for axes, table, title in zip(panels, (local, cumulative), titles, strict=True):
        raw = table.to_numpy(dtype=float)
        cells = np.clip(raw, low, high)  # infinite: the end of the scale
        image = axes.imshow(cells, cmap=colours, aspect="auto", vmin=low, vmax=high)
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(columns), labels, rotation=60, ha="right", rotation_mode="anchor",
                        fontsize=6.5)  # fmt: skip
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for start in starts[1:]:
            axes.axhline(start - 0.5, color="white", linewidth=1.2)
    shown = range(rows) if named else starts
    panels[0].set_yticks(
        list(shown), [products[i] if named else layers[i] for i in shown],
        fontsize=6.5 if named else 8.5,
    )  # fmt: skip
    panels[0].set_ylabel("layer and product" if named else "layer")
    figure.colorbar(image, ax=list(panels), label="SQNR (dB)", fraction=0.04, aspect=40, pad=0.02)
    caption = (
        "SQNR in dB of each product, by case: left alone, on exact inputs; right with everything "
        "before it emulated as well; higher is better. One scale, from the 2 to the 98 percent "
        "quantile."
    )
    return save_figure(figure, caption + left_out)


def _limits(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    found = values[np.isfinite(values)]
    low, high = np.quantile(found, [0.02, 0.98])
    return (float(low), float(high)) if low < high else (float(low) - 1, float(high) + 1)


def unit_pairs(results: Results) -> dict[tuple[str, str, str], pd.Series]:
    """Return, by (name, unit, other unit), local SQNR of the first minus that of the second.

    Only cases that differ in nothing but the unit are compared.
    """
    cases, products = results.cases, results.products
    found = {}
    several = cases.groupby("name")["target"].transform("nunique") > 1
    compared = cases[several & cases["case_id"].isin(set(products["case_id"]))]
    by_case = {
        case: group.set_index(product_names(group))["sqnr_local_db"]
        for case, group in products[products["case_id"].isin(set(compared["case_id"]))].groupby(
            "case_id", sort=False
        )
    }
    for name, alike in compared.groupby("name", sort=False):
        rows = list(zip(alike["case_id"], alike["target"], strict=True))
        for (a, one), (b, other) in combinations(rows, 2):
            difference = (by_case[a] - by_case[b]).replace([np.inf, -np.inf], np.nan)
            if one != other and difference.notna().any():
                found[str(name), one, other] = difference
    return found


def _units(pairs: dict[tuple[str, str, str], pd.Series]) -> Drawn:
    ordered = sorted(pairs.items(), key=lambda item: -float(item[1].abs().max()))
    figure = canvas(9.6, 3.8)
    axes = figure.subplots()
    axes.axhline(0, color="#555555", linewidth=1)
    for i, ((name, one, other), values) in enumerate(ordered[:PAIRS]):
        layers = [str(product).split(".")[0] for product in values.index]
        order = {layer: n for n, layer in enumerate(dict.fromkeys(layers))}
        label = f"{drawn_name(name)}: {drawn_name(one)} − {drawn_name(other)}"
        offset = (i - (min(len(ordered), PAIRS) - 1) / 2) * 0.1
        axes.plot(
            [order[layer] + offset for layer in layers], values, "o", markersize=4,
            color=COLOURS[i % len(COLOURS)], label=label, alpha=0.8,
        )  # fmt: skip
        axes.set_xticks(range(len(order)), [drawn_name(layer) for layer in order])
    axes.set_xlabel("layer; one mark a product")
    axes.set_ylabel("difference of local SQNR (dB)")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside lower center", frameon=False, fontsize=7.5)
    more = len(pairs) - PAIRS
    note = f" The {PAIRS} pairs that differ most, of {len(pairs)}." if more > 0 else ""
    return save_figure(
        figure, "What the unit alone does: local SQNR of one unit minus that of another, on the "
        f"same format and scales; above zero the first is better.{note}",
    )  # fmt: skip
