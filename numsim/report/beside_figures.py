"""Figures of the tables beside results: histograms, crest factors, accumulators, depth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter

from numsim.errors import NumsimError
from numsim.formats import Format, get_format
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
from numsim.report.tables import Results, records

HISTOGRAMS = 4  # products whose tensors are drawn: those that lose most
LINES = 7  # formats, units or cases in a figure of lines
# Crest factors at which two formats lose alike (integer below, float above).
CROSSOVERS = {"mxint8 / mxfp8": 7.55, "mxint6 / mxfp6": 1.96, "mxint4 / mxfp4": 2.04,
              "nvint4 / nvfp4": 2.39}  # fmt: skip
WIDTHS = (16, 24, 32)  # bits of accumulators that are built
FIELDS = ("bits_bound", "bits_bound_l1", "bits_measured_peak", "vrr_bits")
FIELD_WORDS = ("any data of the format", "these weights", "measured peak", "float: fraction, VRR")


def draw_beside(tables: dict[str, pd.DataFrame], results: Results) -> dict[str, Drawn]:
    """Draw what the tables have; figure name -> figure."""
    drawn: dict[str, Drawn] = {}
    with style():
        if "tensors" in tables:
            drawn |= _histograms(tables["tensors"])
            drawn |= _crest(tables["tensors"])
        if "accumulators" in tables:
            drawn |= _accumulators(tables["accumulators"])
            drawn |= _promotion(tables["accumulators"])
            drawn |= _cliffs(tables["accumulators"])
        if "positions" in tables:
            drawn |= _positions(tables["positions"])
        if "sensitivity" in tables:
            drawn["sensitivity"] = _sensitivity(tables["sensitivity"])
        if "diff" in tables:
            drawn["diff"] = _diff(tables["diff"])
        drawn |= _depth(results)
    return drawn


def _histograms(tensors: pd.DataFrame) -> dict[str, Drawn]:
    """Draw the tensors of the products that lose most, with what each format reaches."""
    drawn = {}
    worst = tensors.groupby(["layer", "op"], sort=False)["sqnr_db"].min().sort_values(kind="stable")
    for layer, op in worst.index[:HISTOGRAMS]:
        own = tensors[(tensors["layer"] == layer) & (tensors["op"] == op)]
        first = own.drop_duplicates("role")
        first = first[first["hist_counts"] != ""]
        if first.empty:
            continue
        figure = canvas(min(WIDEST, 0.6 + 3.9 * len(first)), 3.6)
        panels = figure.subplots(1, len(first), squeeze=False)[0]
        for axes, row in zip(panels, records(first), strict=True):
            _histogram(axes, row, own.loc[own["role"] == row["role"], "format"])
        panels[0].set_ylabel("share of values (%)")
        figure.supxlabel("log2 of the magnitude", fontsize=9)
        name = f"hist_{_plain(layer)}_{_plain(op)}"
        drawn[name] = save_figure(
            figure,
            f"Magnitudes of the tensors of {drawn_name(f'{layer}.{op}')}. Bars above: what a "
            "format reaches when its largest value is the largest of the tensor; thin: subnormal.",
        )
    return drawn


def _double(axes: Any) -> None:
    """Count across in powers of two."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _plain(name: object) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in str(name))[:24]


def _histogram(axes: Any, row: dict[str, Any], formats: Iterable[str]) -> None:
    counts = np.array([float(n) for n in row["hist_counts"].split(";") if n], float)
    edges = row["hist_lo"] + row["hist_step"] * np.arange(counts.size + 1)
    share = 100 * counts / max(counts.sum(), 1.0)
    axes.bar(edges[:-1], share, width=row["hist_step"], align="edge", color="#7aa6c2", linewidth=0)
    top = float(share.max(initial=1.0))
    known = [fmt for fmt in map(_format, dict.fromkeys(formats)) if fmt is not None][:LINES]
    high = math.frexp(row["amax"])[1] if row["amax"] > 0 else 0
    for i, fmt in enumerate(known):
        y, colour = top * (1.1 + 0.09 * i), COLOURS[i % len(COLOURS)]
        normal, least = _binades(fmt)
        axes.plot([high - normal, high], [y, y], color=colour, linewidth=3)
        axes.plot([high - least, high - normal], [y, y], color=colour, linewidth=1)
        axes.text(high + 0.6, y, fmt.name, va="center", fontsize=6.5, color=colour)
    tensor = drawn_name(f"{row['layer']}.{row['op']}")
    axes.set_title(f"{tensor} {row['role']}, amax {row['amax']:.3g}", fontsize=8.5)
    axes.set_xlim(max(edges[0], high - 40) - 1, high + 9)
    axes.set_ylim(0, top * (1.2 + 0.09 * len(known)))


def _format(name: str) -> Format | None:
    try:
        return get_format(name)
    except NumsimError:
        return None  # a storage rule, or a format of the sweep's own


def _binades(fmt: Format) -> tuple[int, int]:
    """Return binades from the largest value to the least normal and to the least one."""
    if fmt.kind == "integer":
        return fmt.bits - 1, fmt.bits - 1
    normal = fmt.emax - fmt.emin + 1
    return normal, normal + fmt.precision - 1


def _crest(tensors: pd.DataFrame) -> dict[str, Drawn]:
    """Draw error over crest factor, where formats with block scales were measured."""
    blocks = tensors[tensors["block"].isin(["16", "32"])]
    if blocks.empty:
        return {}
    figure = canvas(8.4, 4.0)
    axes = figure.subplots()
    for i, name in enumerate(list(dict.fromkeys(blocks["format"]))[:LINES]):
        own = blocks[blocks["format"] == name]
        x = own["crest_32_median"].where(own["block"] == "32", own["crest_16_median"])
        order = np.argsort(x.to_numpy(), kind="stable")
        xs, ys = x.to_numpy()[order], own["sqnr_db"].to_numpy()[order]
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(xs, ys, ".", color=colour, markersize=4, alpha=0.6)
        middle = pd.Series(ys).rolling(9, center=True, min_periods=3).median()
        axes.plot(xs, middle, color=colour, linewidth=1.4, label=drawn_name(name))
    low, high = axes.get_xlim()
    there = " ".join(blocks["format"].unique())
    crossed = [
        (word, x)
        for word, x in CROSSOVERS.items()
        if low < x < high and all(part in there for part in word.split(" / "))
    ]
    for word, x in crossed:
        axes.axvline(x, color="#777777", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.text(x, axes.get_ylim()[1], f" {word} {x:g}", fontsize=6.5, va="top", rotation=90)
    axes.set_xlabel("crest factor of a block, median over the tensor")
    axes.set_ylabel("SQNR of the stored tensor (dB)")
    axes.grid(color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside right upper", frameon=False)
    caption = (
        "Error of stored tensors over the crest factor of their blocks: a point a tensor, a line "
        "the running median."
    )
    if crossed:
        caption += " Dashed: where an integer and a float format are known to cross."
    return {"crest": save_figure(figure, caption)}


def _accumulators(table: pd.DataFrame) -> dict[str, Drawn]:
    table = table.assign(target=table["target"].str.partition(":")[0])  # widths are an axis
    kinds = list(dict.fromkeys(zip(table["format"], table["target"], strict=True)))
    wanted = [k for k in kinds if _of(table, k)[list(FIELDS)].notna().any(axis=None)][:4]
    if not wanted:
        return {}
    figure = canvas(min(WIDEST, 1.8 + 2.8 * len(wanted)), 3.6)
    panels = figure.subplots(1, len(wanted), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, wanted, strict=True):
        own = _of(table, kind)
        for field, words, colour, mark in zip(
            FIELDS, FIELD_WORDS, COLOURS, ("-", "o", "s", "--"), strict=False
        ):
            line = own.groupby("K")[field].max().dropna()
            if not line.empty:
                how = {"linestyle": mark} if mark in ("-", "--") else {"marker": mark, "ls": ""}
                axes.plot(line.index, line, color=colour, label=words, markersize=4, **how)
        for width in WIDTHS:
            axes.axhline(width, color="#aaaaaa", linewidth=0.8, zorder=0)
        _double(axes)
        axes.set_xlabel("K")
        axes.set_title(f"{drawn_name(kind[0])}\n{drawn_name(kind[1])}", fontsize=8)
    panels[0].set_ylabel("bits of the accumulator")
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    more = f" The first {len(wanted)} of {len(kinds)} units." if len(kinds) > len(wanted) else ""
    caption = (
        "Bits that an accumulator needs over the length K of its sums: integers that hold every "
        "partial sum, and fraction bits of a float that keeps the variance. Grey: widths that are "
        f"built.{more}"
    )
    return {"accumulator": save_figure(figure, caption)}


def _of(table: pd.DataFrame, kind: tuple[str, str]) -> pd.DataFrame:
    return table[(table["format"] == kind[0]) & (table["target"] == kind[1])]


def _promotion(table: pd.DataFrame) -> dict[str, Drawn]:
    """Draw the error of sums over the interval after which they move into float32."""
    steps = pd.to_numeric(table["promote_every"], errors="coerce")
    known = table.assign(step=steps, unit=table["target"].str.partition(":")[0])
    found = known[steps.notna() & np.isfinite(table["sqnr_db"])]
    if found["step"].nunique() < 2:
        return {}
    lines = found.groupby(["format", "unit", "K", "step"])["sqnr_db"].median().unstack("step")
    spread = (lines.max(axis=1) - lines.min(axis=1)).sort_values(ascending=False, kind="stable")
    figure = canvas(8.4, 3.6)
    axes = figure.subplots()
    for i, key in enumerate(sorted(spread.index[:LINES])):
        fmt, unit, k = key
        line = lines.loc[key].dropna()
        axes.plot(line.index, line, "o-", color=COLOURS[i % len(COLOURS)], markersize=4,
                  label=f"{drawn_name(fmt)}, K {k:.0f}\n{drawn_name(unit)}")  # fmt: skip
    _double(axes)
    axes.set_xlabel("products between promotions into float32")
    axes.set_ylabel("SQNR of the sum (dB)")
    axes.grid(color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside right upper", frameon=False)
    caption = "Error of sums over the promotion interval; the lines that it moves most."
    return {"promotion": save_figure(figure, caption)}


def _cliffs(table: pd.DataFrame) -> dict[str, Drawn]:
    """Draw the error of integer sums over the width of the accumulator, wrapping or saturating."""
    found = table[table["acc_bits"].notna() & table["overflow"].isin(["wrap", "saturate"])]
    found = found.assign(sqnr_db=found["sqnr_db"].clip(-10, 150))  # an exact sum has no noise
    if found["acc_bits"].nunique() < 2:
        return {}
    figure = canvas(8.4, 3.6)
    axes = figure.subplots()
    lengths = sorted(found["K"].unique())[-LINES:]
    for (k, overflow), own in found[found["K"].isin(lengths)].groupby(["K", "overflow"]):
        line = own.groupby("acc_bits")["sqnr_db"].median()
        axes.plot(
            line.index, line, marker="o", markersize=3, label=f"K {k:.0f}, {overflow}",
            color=COLOURS[lengths.index(k) % len(COLOURS)],
            linestyle="-" if overflow == "wrap" else (0, (4, 2)),
        )  # fmt: skip
    axes.set_xlabel("bits of the integer accumulator")
    axes.set_ylabel("SQNR of the sum (dB)")
    axes.grid(color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    caption = (
        "The cliff: error of integer sums where the accumulator becomes too narrow, by length K; "
        "150 dB stands for exact sums. Median over the products measured."
    )
    return {"cliffs": save_figure(figure, caption)}


def _positions(table: pd.DataFrame) -> dict[str, Drawn]:
    means = table.groupby("case_id", sort=False)["kl_nats"].mean().sort_values(kind="stable")
    figure = canvas(8.4, 3.8)
    axes = figure.subplots()
    for i, case in enumerate(means.index[:LINES]):
        own = table[table["case_id"] == case]
        x = np.sqrt(own["begin"] * own["end"])
        axes.errorbar(
            x, own["kl_nats"], yerr=2 * own["kl_stderr"], color=COLOURS[i % len(COLOURS)],
            marker="o", markersize=3.5, linewidth=1.2,
            label=f"{drawn_name(own['format'].iloc[0])}, {drawn_name(own['target'].iloc[0])}",
        )  # fmt: skip
    _double(axes)
    if (table["kl_nats"] > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("position of the token in its window")
    axes.set_ylabel("KL divergence (nats)")
    axes.grid(color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside right upper", frameon=False)
    more = f" The best {LINES} of {len(means)} cases." if len(means) > LINES else ""
    caption = f"Error over decode length. Bars: two standard errors.{more}"
    return {"positions": save_figure(figure, caption)}


def _sensitivity(table: pd.DataFrame) -> Drawn:
    parts = table[table["part"] != "all"].iloc[:40]
    figure = canvas(8.4, 1.2 + 0.28 * len(parts))
    axes = figure.subplots()
    y = np.arange(len(parts))
    axes.barh(y - 0.2, parts["share_only"] * 100, height=0.36, color=COLOURS[0], label="alone")
    axes.barh(y + 0.2, parts["share_budget"] * 100, height=0.36, color=COLOURS[1],
              label="budget: what goes when it stays float32")  # fmt: skip
    axes.set_yticks(y, [drawn_name(part) for part in parts["part"]])
    axes.invert_yaxis()
    axes.axvline(0, color="#555555", linewidth=0.8)
    axes.set_xlabel("share of the final KL divergence (%)")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return save_figure(figure, "Whose error it is: KL divergence by part of the network.")


def _diff(table: pd.DataFrame) -> Drawn:
    """Draw where two units differ, and by how much."""
    differ = table[table["differing"] > 0]
    same = len(table) - len(differ)  # not emulated, or the same on both units
    table = differ if len(differ) else table
    shown = table.iloc[:60]
    figure = canvas(min(WIDEST, 10.0), max(3.0, 0.6 + 0.13 * len(shown)))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    y = np.arange(len(shown))
    left.barh(y, 100 * shown["differing"], color=COLOURS[0])
    names = (shown["layer"] + "." + shown["op"]).str.removesuffix(".").str.removeprefix("-.")
    left.set_yticks(y, [drawn_name(name) for name in names], fontsize=6.5)
    left.invert_yaxis()
    left.set_xlabel("outputs that differ (%)")
    shares = [[float(x) for x in cell.split(";") if x] for cell in table["ulp_hist"]]
    most = max(map(len, shares), default=0)
    mean = np.mean([row + [0.0] * (most - len(row)) for row in shares], axis=0) if most else []
    words = [*"012", *(f"{2**i + 1}-{2 ** (i + 1)}" for i in range(1, most))][: len(mean)]
    right.bar(range(len(mean)), 100 * np.asarray(mean), color=COLOURS[1])
    right.set_xticks(range(len(mean)), words, rotation=60, ha="right", fontsize=7)
    right.set_xlabel("units in the last place")
    right.set_ylabel("outputs (%), mean over products")
    more = f" Not drawn: {same} products without a difference." if same and len(differ) else ""
    caption = f"Two units on equal inputs: outputs that differ, by product, and by how much.{more}"
    return save_figure(figure, caption)


def _depth(results: Results) -> dict[str, Drawn]:
    """Draw the error of the residual stream after each layer, where the file has it."""
    products, cases = results.products, best_cases(results.cases)[0]
    found = products[products["sqnr_depth_db"].notna()]
    if found.empty:
        return {}
    figure = canvas(8.4, 3.8)
    axes = figure.subplots()
    measured = set(found["case_id"])
    order = [name for name in cases["case_id"] if name in measured]
    names = cases.set_index("case_id")
    drawn = names.loc[order[: 2 * LINES]]
    one = drawn["target"].nunique() == 1
    labels = distinct_names(drawn["name"], 40 if one else 28)
    for i, case in enumerate(drawn.index):
        label = labels[str(names.at[case, "name"])]
        if not one:
            label += f", {drawn_name(names.at[case, 'target'], 20)}"
        own = found[found["case_id"] == case].groupby("layer", sort=False)["sqnr_depth_db"].last()
        axes.plot(
            range(len(own)), own, color=COLOURS[i % len(COLOURS)], marker="o", markersize=3,
            linestyle="-" if i < LINES else (0, (4, 2)), linewidth=1.2,
            label=label,
        )  # fmt: skip
        axes.set_xticks(range(len(own)), [drawn_name(layer) for layer in own.index])
    axes.set_xlabel("after layer")
    axes.set_ylabel("SQNR of the residual stream (dB)")
    axes.grid(color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    more = f" {2 * LINES} of {len(order)} cases." if len(order) > 2 * LINES else ""
    if one and order:
        more += f" Unit: {drawn_name(drawn['target'].iloc[0])}."
    return {"depth": save_figure(figure, f"How the error grows with depth.{more}")}
