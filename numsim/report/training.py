"""Reports of training: the CSV file of curves becomes a table, two figures and sentences."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from numsim.errors import NumsimError, printable
from numsim.files import separator_of
from numsim.report.csv import CURVES, number_columns, read_table
from numsim.report.figures import STYLE, Drawn, canvas, drawn_name, save_figure
from numsim.report.page import code, table_lines, text
from numsim.report.tensors import draw_tensors, line_styles, read_tensors, tensor_lines

KEYS = ("recipe", "seed", "step", "loss")  # what makes a CSV file one of curves
NUMBERS = (
    "seed", "step", "loss", "lr", "loss_scale", "test_loss", "test_accuracy", "test_perplexity",
    "grad_elements", "grad_lost",
)  # fmt: skip
REFERENCE = "float32"
SMOOTH = 10  # steps whose losses a drawn point averages
WORSE = 1.2  # times the loss of float32 on unseen data: beyond, a recipe suffers
LEARNED = 0.9  # of the first training loss: a run that ends above it has not learned
COST = 2.0  # points of accuracy that are worth a sentence
CLEAR = 2.0  # standard errors from which a difference is called one


def is_training(path: Path) -> bool:
    """Return whether a CSV file begins like one of curves; a pipe is none and is not waited for."""
    try:
        if not path.is_file():
            return False
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline(1 << 16)
        return set(KEYS) <= set(next(csv.reader([line], delimiter=separator_of(line)), []))
    except (OSError, ValueError, csv.Error):
        return False


def read_curves(path: Path) -> pd.DataFrame:
    """Read the CSV file of ``numsim train``: a row for each (recipe, seed, step).

    Raises
    ------
    NumsimError
        Where a number is not one, with its line, or no step is there.
    """
    lines = read_table(path, KEYS, NUMBERS, CURVES)
    if not lines:
        raise NumsimError(f"report: {path} holds no step; run numsim train first")
    return number_columns(path, lines, NUMBERS, CURVES)


def summary(curves: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each recipe: means over seeds, and differences paired by seed.

    Columns: seeds; accuracy, accuracy_sd (%); loss (of unseen data), loss_sd; gain, gain_stderr
    (points of accuracy over float32, paired by seed); ppl_gain, ppl_gain_stderr (% of perplexity
    over that of float32, paired by seed); learned (whether the training loss fell); lost (% of the
    non-zero elements of gradients that became 0 in the operands of dgrad).
    """
    tested = curves[curves["test_loss"].notna()]
    last = tested.sort_values("step").groupby(["recipe", "seed"], sort=False).last()
    sums = curves.groupby("recipe", sort=False)[["grad_elements", "grad_lost"]].sum(min_count=1)
    rows = {}
    for recipe in dict.fromkeys(curves["recipe"]):
        runs = last.loc[recipe] if recipe in last.index.get_level_values(0) else last.iloc[:0]
        own, accuracy = curves[curves["recipe"] == recipe], 100 * runs["test_accuracy"]
        row = {
            "seeds": own["seed"].nunique(),
            "accuracy": accuracy.mean(), "accuracy_sd": accuracy.std(ddof=1),
            "loss": runs["test_loss"].mean(), "loss_sd": runs["test_loss"].std(ddof=1),
            "perplexity": runs["test_perplexity"].mean(),
            "perplexity_sd": runs["test_perplexity"].std(ddof=1),
            "gain": math.nan, "gain_stderr": math.nan,
            "ppl_gain": math.nan, "ppl_gain_stderr": math.nan,
            "learned": _fell(own),
            "lost": 100 * sums.loc[recipe, "grad_lost"] / sums.loc[recipe, "grad_elements"]
            if sums.loc[recipe, "grad_elements"] else math.nan,
        }  # fmt: skip
        if recipe != REFERENCE and REFERENCE in last.index.get_level_values(0):
            gains = (accuracy - 100 * last.loc[REFERENCE]["test_accuracy"]).dropna()
            row["gain"] = gains.mean()
            row["gain_stderr"] = gains.std(ddof=1) / math.sqrt(max(len(gains), 1))
            ratio = runs["test_perplexity"] / last.loc[REFERENCE]["test_perplexity"]
            percent = 100 * (ratio - 1).dropna()
            row["ppl_gain"] = percent.mean()
            row["ppl_gain_stderr"] = percent.std(ddof=1) / math.sqrt(max(len(percent), 1))
        rows[recipe] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _fell(runs: pd.DataFrame) -> bool:
    """Return whether the training loss at the end is clearly below that at the beginning."""
    steps = runs["step"].max()
    width = min(SMOOTH, max(int(steps) // 2, 1)) if steps == steps else 1
    first = runs.loc[runs["step"] <= width, "loss"].mean()
    final = runs.loc[runs["step"] > steps - width, "loss"].mean()
    return bool(final < LEARNED * first)


def findings(table: pd.DataFrame) -> list[str]:
    """Return what the table says, a sentence each; nothing that its numbers do not show."""
    if table["perplexity"].notna().any():
        return _language_findings(table)
    if REFERENCE not in table.index:
        return []
    if not table.loc[REFERENCE, "learned"]:
        return ["`float32` itself has hardly learned: too few steps to compare formats."]
    said = []
    losses: dict[str, float] = {str(name): row["loss"] for name, row in table.iterrows()}
    most = WORSE * losses[REFERENCE]
    for recipe, row in table.iterrows():
        if row["lost"] >= 30 and row["gain"] >= -COST and not row["loss"] > most:
            said.append(
                f"{code(recipe)} loses {row['lost']:.0f} % of its gradient elements and "
                f"hardly suffers ({_pair(row['gain'], row['gain_stderr'], '+.1f')} points)."
            )
    pairs = [
        (name, name.removesuffix("_rne") + "_sr")
        for name in table.index
        if str(name).endswith("_stored_rne") and name.removesuffix("_rne") + "_sr" in table.index
    ]
    pairs = [(rne, sr) for rne, sr in pairs if table.loc[rne, "gain"] < -COST]
    costs = [-table.loc[rne, "gain"] for rne, _ in pairs]
    if costs:
        low, high = min(costs), max(costs)
        cost = f"{low:.0f} to {high:.0f}" if round(low) != round(high) else f"{low:.0f}"
        said.append(
            f"A *stored* weight that is rounded to nearest costs {cost} points: an update smaller "
            "than half a step of the format is lost, every time."
        )
    for rne, sr in pairs:
        back = table.loc[sr, "accuracy"] - table.loc[rne, "accuracy"]
        if back > COST:
            said.append(
                f"Stochastic rounding gives {back:.1f} points back to "
                f"{code(str(rne).removesuffix('_stored_rne'))} "
                f"({table.loc[sr, 'accuracy']:.1f} %)."
            )
    for recipe, row in table.iterrows():
        if row["gain"] < -30 and not str(recipe).endswith("_rne"):
            why = f": {row['lost']:.0f} % of its gradient elements become 0"
            said.append(
                f"{code(recipe)} does not learn ({row['accuracy']:.1f} %)"
                f"{why if row['lost'] >= 90 else ''}."
            )
    return said


def _language_findings(table: pd.DataFrame) -> list[str]:
    """Return sentences on perplexity: what costs more than one percent, and what SR gives back."""
    said = []
    for recipe, row in table.iterrows():
        change = row["ppl_gain"]
        percent = _pair(change, row["ppl_gain_stderr"], "+.1f")
        if row["lost"] >= 30 and change < 1:
            said.append(
                f"{code(recipe)} loses {row['lost']:.0f} % of its gradient elements and "
                f"hardly suffers: its perplexity differs from that of `float32` by {percent} %."
            )
        elif change >= 1 and not change < CLEAR * row["ppl_gain_stderr"]:
            said.append(f"{code(recipe)} costs {percent} % of perplexity.")
    perplexity: dict[str, float] = {str(name): row["perplexity"] for name, row in table.iterrows()}
    for rne in (name for name in perplexity if name.endswith("_stored_rne")):
        sr = f"{rne.removesuffix('_rne')}_sr"
        if sr in perplexity and perplexity[sr] < 0.99 * perplexity[rne]:
            said.append(
                f"Stochastic rounding of the *stored* weight brings "
                f"{code(rne.removesuffix('_stored_rne'))} from perplexity "
                f"{perplexity[rne]:.1f} to {perplexity[sr]:.1f}."
            )
    return said


def summary_text(path: Path) -> str:
    """Return the table of a CSV file of curves as text of at most 80 columns."""
    table = summary(read_curves(path))
    table.index = [printable(name) for name in table.index]
    width = max(len("recipe"), *(len(name) for name in table.index))
    perplexity = bool(table["perplexity"].notna().any())
    over = "vs float32 %" if perplexity else "vs float32"
    heads = ("ppl" if perplexity else "acc %", "loss", over, "grad lost %")
    lines = [
        f"{'recipe':<{width}} {'n':>2} {heads[0]:>12} {heads[1]:>13} {heads[2]:>12} {heads[3]:>11}"
    ]
    for name, row in table.iterrows():
        cells = (
            _main(row, perplexity=perplexity),
            _pair(row["loss"], row["loss_sd"], ".3f"),
            _pair(*_gain(row, perplexity=perplexity), "+.1f"),
            "" if math.isnan(row["lost"]) else f"{row['lost']:.2f}",
        )
        lines.append(
            f"{name:<{width}} {row['seeds']:>2.0f} {cells[0]:>12} {cells[1]:>13} {cells[2]:>12} "
            f"{cells[3]:>11}"
        )
    return "\n".join(lines)


def training_files(path: Path) -> dict[str, bytes]:
    """Return the files of the report of a CSV file of curves, by name."""
    curves = read_curves(path)
    table = summary(curves)
    drawn = draw_curves(curves)
    lines = ["# Training by number format", "", *_about(curves, path), ""]
    watched = read_tensors(path, set(curves["recipe"]))
    said = findings(table)
    if said:
        lines += ["## What the table says", "", *(f"- {sentence}" for sentence in said), ""]
    lines += ["## Results", "", *_results(table)]
    for name, figure in drawn.items():
        lines += [f"![{name.removesuffix('.png')}]({name})", "", f"*{figure.caption}*", ""]
    if watched is not None:
        more = draw_tensors(watched)
        lines += tensor_lines(watched, more)
        drawn |= more
    page = "\n".join(lines).rstrip("\n") + "\n"
    return {"report.md": page.encode()} | {name: figure.png for name, figure in drawn.items()}


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _about(curves: pd.DataFrame, path: Path) -> list[str]:
    steps = curves.groupby(["recipe", "seed"])["step"].max()
    seeds = sorted(curves["seed"].dropna().unique())
    seen = "Perplexity" if curves["test_perplexity"].notna().any() else "Accuracy"
    lines = [
        f"- {code(path.name)}: {curves['recipe'].nunique()} recipes, {_seeds(len(seeds))}, "
        f"{steps.max() if steps.notna().any() else 0:.0f} steps each.",
        f"- {seen} and loss are of unseen data after the last step; ± is the standard deviation "
        "over seeds. Differences from `float32` are paired by seed, ± their standard error.",
        "- Gradients lost: share of the non-zero elements that become 0 in the operands of dgrad.",
    ]
    if len(seeds) == 1:
        lines.append("- One seed has no spread: differences of a few points may be chance.")
    for name in ("model", "data", "numsim_version"):
        if name in curves and (curves[name] != "").any():
            values = ", ".join(code(value) for value in dict.fromkeys(curves[name]) if value)
            lines.append(f"- {name.replace('_', ' ')}: {values}.")
    short = steps[steps < steps.max()]
    if not short.empty:
        named = ", ".join(f"{code(recipe)} seed {seed:.0f}" for recipe, seed in short.index)
        lines.append(f"- Stopped early: {named}.")
    if "error" in curves:
        wrong = curves[curves["error"] != ""]
        lines += [
            f"- {code(r.recipe)} seed {r.seed:.0f}: {text(r.error)}" for r in wrong.itertuples()
        ]
    return lines


def _pair(value: float, spread: float, form: str) -> str:
    """Return a number and its spread, as far as there are any."""
    if math.isnan(value):
        return ""
    return f"{value:{form}}" + (
        "" if math.isnan(spread) else f" ± {abs(spread):{form.lstrip('+')}}"
    )


def _main(row: Any, *, perplexity: bool) -> str:
    """Return what a run is judged by."""
    if perplexity:
        return _pair(row["perplexity"], row["perplexity_sd"], ".2f")
    return _pair(row["accuracy"], row["accuracy_sd"], ".1f")


def _gain(row: Any, *, perplexity: bool) -> tuple[float, float]:
    """Return the difference from float32 and its standard error: points, or % of perplexity."""
    kind = "ppl_gain" if perplexity else "gain"
    return row[kind], row[f"{kind}_stderr"]


def _results(table: pd.DataFrame) -> list[str]:
    language = bool(table["perplexity"].notna().any())
    heads = [
        "recipe", "seeds", "perplexity" if language else "accuracy %", "loss",
        "vs float32, %" if language else "vs float32, points", "gradients lost %",
    ]  # fmt: skip
    body = []
    for recipe, row in table.iterrows():
        gain, stderr = _gain(row, perplexity=language)
        same = abs(gain) < CLEAR * stderr
        body.append([
            code(recipe), f"{row['seeds']:.0f}", _main(row, perplexity=language),
            _pair(row["loss"], row["loss_sd"], ".3f"),
            _pair(gain, stderr, "+.1f") + (" (no difference)" if same else ""),
            "" if math.isnan(row["lost"]) else f"{row['lost']:.2f}",
        ])  # fmt: skip
    return table_lines(heads, "lrrrrr", body)


def draw_curves(curves: pd.DataFrame) -> dict[str, Drawn]:
    """Draw the losses, and the accuracies where there are any; file name -> figure."""
    drawn = {}
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        drawn["loss.png"] = _loss(curves)
        if curves["test_perplexity"].notna().any():
            drawn["perplexity.png"] = _perplexity(curves)
        elif curves["test_accuracy"].notna().any():
            drawn["accuracy.png"] = _accuracy(curves)
    return drawn


def _loss(curves: pd.DataFrame) -> Drawn:
    width = SMOOTH if curves["step"].max() >= 5 * SMOOTH else 1
    at = ((curves["step"] - 1) // width + 1) * width
    means = curves.assign(at=at).groupby(["recipe", "at", "seed"], sort=False)["loss"].mean()
    figure, axes = _axes("step", "training loss")
    _draw(axes, means)
    _legend(figure, axes)
    note = f", each point the mean of {width} steps" if width > 1 else ""
    return save_figure(
        figure, f"Training loss{note}: mean over seeds, and the band of one standard deviation."
    )


def _accuracy(curves: pd.DataFrame) -> Drawn:
    tested = curves[curves["test_accuracy"].notna()].assign(at=curves["step"])
    values = 100 * tested.groupby(["recipe", "at", "seed"], sort=False)["test_accuracy"].mean()
    figure, axes = _axes("step", "accuracy on unseen data (%)")
    _draw(axes, values)
    _legend(figure, axes)
    return save_figure(
        figure, "Accuracy on unseen data: mean over seeds, and the band of one standard deviation."
    )


def _perplexity(curves: pd.DataFrame) -> Drawn:
    tested = curves[curves["test_perplexity"].notna()].assign(at=curves["step"])
    values = tested.groupby(["recipe", "at", "seed"], sort=False)["test_perplexity"].mean()
    figure, axes = _axes("step", "perplexity of unseen text")
    _draw(axes, values)
    if values.max() > 10 * values.min():
        axes.set_yscale("log")
    _legend(figure, axes)
    return save_figure(
        figure,
        "Perplexity of unseen text: mean over seeds, and the band of one standard deviation.",
    )


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = canvas(8.4, 4.2)
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    return figure, axes


def _draw(axes: Axes, values: pd.Series) -> None:
    """Draw the mean over seeds of values indexed by (recipe, at, seed), and their spread."""
    names = list(dict.fromkeys(values.index.get_level_values("recipe")))
    for name, style in line_styles(names).items():
        by_seed = values.loc[name].unstack("seed").sort_index()
        x, mean = by_seed.index.to_numpy(float), by_seed.mean(axis=1).to_numpy()
        spread = by_seed.std(axis=1, ddof=1).fillna(0.0).to_numpy()
        alone = "o" if len(x) == 1 else ""  # a line of one point cannot be seen
        axes.plot(x, mean, label=drawn_name(name), linewidth=1.6, marker=alone, **style)
        if np.any(spread > 0):
            axes.fill_between(
                x, mean - spread, mean + spread, color=style["color"], alpha=0.08, linewidth=0
            )


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
