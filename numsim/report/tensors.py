"""What happens to tensors on their way into a format: table, histograms, and what updates move.

Read from the file that ``numsim train --watch`` writes beside the curves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from numsim.errors import NumsimError
from numsim.report.csv import WATCHED, number_columns, read_table
from numsim.report.figures import STYLE, Drawn, canvas, drawn_name, save_figure
from numsim.report.page import code, table_lines

KEYS = ("recipe", "seed", "step", "name", "role", "format", "histogram")
RATES = ("saturation_rate", "underflow_rate", "zero_rate", "moved_rate")
NUMBERS = ("step", "amax", *RATES, "smallest", "limit")
ROLES = {"x": "input", "w": "weight", "g": "gradient", "parameter": "parameter"}
INSIDE = "inside"  # results of operations between products: any role that is not in ROLES
DRAWN = (
    ("input",),
    ("weight", "parameter"),
    ("gradient",),
    (INSIDE,),
)  # columns: the first there is
PANELS = 6  # recipes that the figure of histograms draws, a row each
# Two families of colours, light to dark, would hide which line is which: every recipe gets a
# colour of its own and, beyond eight, a dash of its own (Okabe and Ito's colours).
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


def read_tensors(curves: Path, recipes: set[str]) -> pd.DataFrame | None:
    """Return the watched tensors of `recipes` from the file beside `curves`; None: there is none.

    Raises
    ------
    NumsimError
        Where it is no such file, or a number is not one.
    """
    path = curves.with_suffix(".tensors.csv")
    if not path.is_file():
        return None
    lines = read_table(path, (*KEYS, *NUMBERS), NUMBERS, WATCHED)
    frame = number_columns(path, lines, NUMBERS, WATCHED)
    cells = zip(frame["histogram"], lines, strict=True) if lines else ()
    every = [_bins(text, path, line.number) for text, line in cells]
    frame["bins"] = pd.Series(every, frame.index, dtype=object)
    frame = frame[frame["recipe"].isin(recipes)]
    return None if frame.empty else frame


def _bins(text: str, path: Path, line: int) -> dict[int, int]:
    """Return the counts by exponent of ``2^-3:5 2^-2:9``."""
    try:
        pairs = (part.split(":") for part in text.split())
        return {int(power.removeprefix("2^")): int(count) for power, count in pairs}
    except ValueError:
        raise NumsimError(
            f"report: a histogram is written as 2^-3:5 2^-2:9, and {path} has {text!r:.60} in line "
            f"{line}; {WATCHED}"
        ) from None


def worst(tensors: pd.DataFrame) -> pd.DataFrame:
    """Return, by recipe and role, the tensor that loses most in the last watched step.

    Lost: turned to zero, or beyond the limit; of parameters the one that moves least. A cell's
    product has a tensor at each of its steps. Tensors that are quantised again along rows (xT,
    gT) stay out.
    """
    last = tensors[tensors["step"] == tensors.groupby("recipe")["step"].transform("max")]
    last = last[~last["role"].isin(["xT", "wT", "gT"])]
    kind = last["role"].map(ROLES).fillna(INSIDE)
    lost = last["saturation_rate"] + last["underflow_rate"]
    rows = last.assign(
        kind=kind, lost=lost.where(kind != "parameter", -last["moved_rate"]).fillna(0.0),
        name=last["name"].where(kind != INSIDE, last["name"] + " " + last["role"]),
    )  # fmt: skip
    at = rows.groupby(["recipe", "kind"], sort=False)["lost"].idxmax()
    return rows.loc[at].reset_index(drop=True)


def tensor_lines(tensors: pd.DataFrame, drawn: dict[str, Drawn]) -> list[str]:
    """Return the section of the report."""
    body = [
        [
            code(row["recipe"]), str(row["kind"]), code(row["name"]),
            code(row["format"]),
            f"{row['amax']:.3g}",
            *("" if math.isnan(row[rate]) else f"{100 * row[rate]:.2f}" for rate in RATES),
        ]
        for row in worst(tensors).to_dict("records")
    ]  # fmt: skip
    heads = ["recipe", "role", "tensor", "format", "amax", "saturated %", "to zero %", "zero %",
             "moved %"]  # fmt: skip
    lines = [
        "## Tensors", "",
        f"In step {tensors['step'].max():.0f}, of each recipe and role, the tensor that loses most "
        "(of parameters: that moves least). Saturated: beyond the largest value of its format; to "
        "zero: of its non-zero elements; moved: values, or codes, that the update changed. The "
        "file of tensors has every other one.", "",
        *table_lines(heads, "llllrrrrr", body),
    ]  # fmt: skip
    for name, figure in drawn.items():
        lines += [f"![{name.removesuffix('.png')}]({name})", "", f"*{figure.caption}*", ""]
    return lines


def draw_tensors(tensors: pd.DataFrame) -> dict[str, Drawn]:
    """Draw histograms with the limits of the formats, and the shares that updates move."""
    drawn = {}
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        histograms = _histograms(worst(tensors))
        if histograms is not None:
            drawn["tensors.png"] = histograms
        parameters = tensors[tensors["role"] == "parameter"]
        if parameters["step"].nunique() > 1:
            drawn["moved.png"] = _moved(parameters)
    return drawn


def line_styles(recipes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return how the line of each recipe is drawn, the same in every figure of a report."""
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % 3]}
        for i, name in enumerate(dict.fromkeys(recipes))
    }


def _histograms(table: pd.DataFrame) -> Drawn | None:
    limited = table[table["limit"].notna()]
    names = list(dict.fromkeys(limited["recipe"]))
    kinds = [column for column in DRAWN if limited["kind"].isin(column).any()]
    if not kinds:
        return None
    left_out = len(names) - len(names[:PANELS])
    names = names[:PANELS]
    figure = canvas(2.8 * len(kinds) + 0.4, 1.75 * len(names) + 0.5)
    grid: Any = figure.subplots(len(names), len(kinds), squeeze=False)
    for row, recipe in enumerate(names):
        for column, kind in enumerate(kinds):
            axes = grid[row][column]
            own = limited[limited["recipe"] == recipe].set_index("kind")
            found = own.loc[[k for k in kind if k in own.index]]
            if found.empty:
                axes.axis("off")
                continue
            _panel(axes, found.iloc[0])
            if column == 0:
                axes.set_ylabel("share %")
    figure.supxlabel("log2 of the magnitude", fontsize=9)
    more = f" Not drawn: {left_out} more, which the table has." if left_out else ""
    return save_figure(
        figure,
        "Magnitudes of the tensors above before they are stored. Shaded: what the format reaches "
        f"under its scale, from its least positive to its largest value.{more}",
    )


def _panel(axes: Any, row: Any) -> None:
    powers = np.array(sorted(row["bins"]))
    counts = np.array([row["bins"][power] for power in powers], float)
    low, high = (math.log(edge) / math.log(2) for edge in (row["smallest"], row["limit"]))
    axes.axvspan(low, high, color="#0072B2", alpha=0.10, linewidth=0)
    for edge in (low, high):
        axes.axvline(edge, color="#0072B2", linewidth=0.9)
    if counts.size:
        axes.bar(powers + 0.5, 100 * counts / counts.sum(), width=1.0, color="#D55E00", linewidth=0)
    recipe, name, fmt = (drawn_name(row[key]) for key in ("recipe", "name", "format"))
    axes.set_title(
        f"{recipe}: {name}\n{fmt}, to zero "
        f"{100 * row['underflow_rate']:.1f} %, saturated {100 * row['saturation_rate']:.1f} %",
        fontsize=7,
        parse_math=False,
    )
    axes.tick_params(labelsize=7)


def _moved(parameters: pd.DataFrame) -> Drawn:
    # Of a recipe that stores parameters, the stored ones: biases stay float32 and always move.
    stored = parameters["limit"].notna()
    stores = stored.groupby(parameters["recipe"]).transform("any")
    parameters = parameters[stored | ~stores]
    values = 100 * parameters.groupby(["recipe", "step"], sort=False)["moved_rate"].mean()
    figure = canvas(8.4, 3.6)
    axes = figure.subplots()
    for name, style in line_styles(parameters["recipe"]).items():
        line = values.loc[name].sort_index()
        # at 0, where a run stalls, the axis does not hide it
        axes.plot(
            line.index,
            line,
            label=drawn_name(name),
            linewidth=1.6,
            clip_on=False,
            zorder=3,
            **style,
        )
    axes.set_xlabel("step")
    axes.set_ylabel("values or codes that moved (%)")
    axes.set_yscale("symlog", linthresh=0.1)  # 0 is a stall
    axes.set_ylim(0, 130)
    axes.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return save_figure(
        figure,
        "Share of values that an update changes; where a recipe stores parameters in a format, of "
        "their codes. Mean over parameters and seeds. Near 0 while the loss is high: a stall.",
    )
