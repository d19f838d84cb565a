"""The pictures of the documentation, each drawn from numbers that numsim computes."""

from __future__ import annotations

import ast
import struct
import tomllib
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import numsim as ns
from numsim.kernels.ir import simd

ROOT = Path(__file__).resolve().parents[1]
BLUE, RED, GREY, PALE = "#1f5fa8", "#b5332e", "#777777", "#e8eef6"
mpl.rcParams["svg.hashsalt"] = "numsim"  # the same file each time


def save(figure: Figure, path: Path) -> None:
    """Write a picture without a date in it."""
    figure.savefig(path, metadata={"Date": None})


def draw_all(out: Path) -> None:
    """Draw the pictures that pages show."""
    walk_value(out / "walks" / "value.svg")
    walk_tensor(out / "walks" / "tensor.svg")
    walk_network(out / "walks" / "network.svg")
    accumulators(out / "walks" / "accumulators.svg")
    rooms(out / "parts" / "rooms.svg")
    packing(out / "parts" / "packing.svg")


def rounding(word: str, path: Path) -> None:
    """Draw what INT4 stores for x from -3 to 3 by one rounding."""
    x = np.linspace(-3, 3, 1201)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(x, x, color=GREY, lw=0.8, ls=":")
    if word == "sr":
        draws = np.stack([ns.cast(x, "int4", rounding="sr", seed=seed) for seed in range(400)])
        few = x[::12]
        for row in draws[:12]:
            axes.plot(few, row[::12], ".", color=GREY, ms=2)
        axes.plot(x, draws.mean(0), color=BLUE, lw=1.2)
    else:
        y = ns.cast(x, "int4", rounding=word)
        jumps = np.flatnonzero(np.diff(y)) + 1
        for part_x, part_y in zip(np.split(x, jumps), np.split(y, jumps), strict=True):
            axes.plot(part_x, part_y, color=BLUE, lw=2.2, solid_capstyle="butt")
        ties = np.arange(-2.5, 3)
        axes.plot(ties, ns.cast(ties, "int4", rounding=word), "o", color=RED, ms=4)
    axes.set(xlabel="x", ylabel="stored", xticks=range(-3, 4), yticks=range(-3, 4))
    axes.grid(color="#dddddd", lw=0.5)
    axes.set_title("red: where ties go" if word != "sr" else "mean of 400 draws", fontsize=9)
    save(figure, path)


def boxes(
    axes: Any, y: float, bits: str, groups: list[int], colours: list[str], left: float
) -> None:
    """Draw bits as boxes in groups of a colour each, from x = left on."""
    at = 0
    for size, colour in zip(groups, colours, strict=True):
        for bit in bits[at : at + size]:
            axes.add_patch(
                FancyBboxPatch(
                    (left + at, y), 0.86, 0.8, boxstyle="round,pad=0,rounding_size=0.1",
                    fc=colour, ec="white",
                )
            )  # fmt: skip
            axes.text(left + at + 0.43, y + 0.38, bit, ha="center", va="center", fontsize=9)
            at += 1


def walk_value(path: Path, x: float = 0.3, name: str = "float8_e4m3fn") -> None:
    """Draw one number on its way into a format: its bits, its neighbours, its code."""
    f = ns.get_format(name)
    kept = f.precision - 1
    word = f"{struct.unpack('>Q', struct.pack('>d', x))[0]:064b}"
    code = int(ns.encode(x, name))
    stored = float(ns.decode(np.array([code], f.code_dtype), name)[0])
    values = np.unique(f.values()[np.isfinite(f.values())])
    above = float(values[np.searchsorted(values, x)])
    below = float(values[np.searchsorted(values, x) - 1])
    figure = Figure(figsize=(9, 5), layout="constrained")
    top, line, bottom = figure.subplots(3, 1, height_ratios=(1, 1.3, 1))
    shown = 24  # fraction bits that fit
    boxes(top, 0, word[: 12 + shown], [1, 11, kept, shown - kept],
          ["#f3d9d7", "#fbeec7", "#cfe0f3", "#eeeeee"], 0)  # fmt: skip
    top.text(12 + shown + 0.2, 0.4, f"... {52 - shown} more bits", va="center", fontsize=8)
    top.set_title(
        f"{x} in float64: sign, exponent, {kept} fraction bits that {name} keeps, the rest",
        fontsize=9,
    )
    top.set(xlim=(-0.5, 42), ylim=(-0.3, 1.2))
    boxes(bottom, 0, f"{code:0{f.bits}b}", [1, f.bits - 1 - kept, kept],
          ["#f3d9d7", "#fbeec7", "#cfe0f3"], 12)  # fmt: skip
    bottom.text(
        12 + f.bits + 0.6, 0.4, f"code {code:#04x}, worth {stored}", va="center", fontsize=10
    )
    bottom.set(xlim=(-0.5, 42), ylim=(-0.3, 1.2))
    bottom.set_title("what is stored: sign, exponent, fraction", fontsize=9)
    gap, middle = above - below, (above + below) / 2
    near = values[(values >= below - 2 * gap) & (values <= above + 2 * gap)]
    line.vlines(near, 0, 0.5, color=BLUE, lw=1.5)
    for value in near:
        line.text(value, -0.22, f"{value:g}", ha="center", fontsize=8, color=BLUE)
    line.vlines(middle, 0, 0.35, color=GREY, lw=0.8, ls=":")
    line.text(middle, 0.4, f"half way, {middle:g}", ha="center", fontsize=8, color=GREY)
    line.plot([x], [0.15], "o", color=RED)
    line.annotate("", (stored, 0.65), (x, 0.65), arrowprops={"arrowstyle": "->", "color": RED})
    line.text(
        (x + stored) / 2, 0.75, f"{x:g} goes to {stored:g}, off by {stored - x:+.4g}", ha="center",
        fontsize=9, color=RED,
    )  # fmt: skip
    line.set(ylim=(-0.4, 1.0))
    for axes in (top, line, bottom):
        axes.axis("off")
    save(figure, path)


def walk_tensor(path: Path) -> None:
    """Draw a matrix through E4M3 with a scale a row, and a product of it on two units."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((6, 256)) * np.exp2(rng.integers(-2, 3, (6, 1)))
    q = ns.quantize(x, ns.Quant("float8_e4m3fn", "per_token"))
    w = ns.quantize(rng.standard_normal((256, 6)), "float8_e4m3fn")
    figure = Figure(figsize=(9.5, 6.2), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    part = slice(0, 8)
    grid(axes[0], x[:, part], "values, first 8 of 256 columns", "{:.2f}", "RdBu")
    scale = np.asarray(q.scale).reshape(-1)
    axes[1].barh(range(6), scale, color=BLUE)
    axes[1].invert_yaxis()
    axes[1].set_xlim(0, scale.max() * 1.3)
    axes[1].set_title("one scale a row: largest magnitude / 448", fontsize=9)
    for i, value in enumerate(scale):
        axes[1].text(value, i, f" {value:.4g}", va="center", fontsize=8)
    grid(axes[2], q.codes[:, part].astype(float), "codes", "{:02x}", None, whole=True)
    error = (np.asarray(q) - x)[:, part] / np.abs(x).max(1, keepdims=True)
    grid(axes[3], error * 100, "stored - value, in % of the row's largest", "{:+.1f}", "RdBu")
    exact = ns.matmul(q, w, target="ideal.exact").astype(np.float64)
    for axis, unit in zip(axes[4:], ("ideal.fp32", "nvidia.hopper.wgmma"), strict=True):
        lost = (ns.matmul(q, w, target=unit) - exact) / np.abs(exact).max()
        grid(
            axis,
            lost * 1e6,
            f"{unit} - exact sum,\nin millionths of the largest",
            "{:+.0f}",
            "RdBu",
        )
    save(figure, path)


def grid(
    axes: Any, values: Any, title: str, form: str, colours: str | None, *, whole: bool = False
) -> None:
    """Draw a matrix with its numbers."""
    if colours is None:
        axes.imshow(np.zeros_like(values), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    else:
        top = np.nanmax(np.abs(values)) or 1.0
        axes.imshow(values, cmap=colours, vmin=-1.4 * top, vmax=1.4 * top, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        axes.text(
            j,
            i,
            form.format(int(value) if whole else value),
            ha="center",
            va="center",
            fontsize=6.5,
        )
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


def walk_network(path: Path) -> None:
    """Draw the error of every product of the bundled model, alone and in the run."""
    rows = ns.sweep(
        formats=["float8_e4m3fn"], targets=["nvidia.hopper.wgmma"],
        granularities=["per_channel+per_token"], limit_tokens=510,
    )  # fmt: skip
    whole = rows[rows.layer == "all"].iloc[0]
    products = rows[(rows.layer != "all") & (rows.layer != "outer") & rows.emulated]
    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    order = list(dict.fromkeys(products.op))
    for axes, column, title in zip(
        figure.subplots(2, 1), ("sqnr_local_db", "sqnr_cumulative_db"),
        ("each product alone, on exact inputs", "in the run, with every error before it"),
        strict=True,
    ):  # fmt: skip
        shown = products.pivot_table(index="layer", columns="op", values=column, sort=False)[order]
        values = shown.to_numpy(float)
        axes.imshow(values, cmap="viridis", vmin=15, vmax=50, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            colour = "black" if value > 38 else "white"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(order)), order, fontsize=8)
        axes.set_yticks(range(len(values)), [f"block {name}" for name in shown.index], fontsize=8)
        axes.set_title(f"signal to error in dB, {title}", fontsize=9)
    figure.suptitle(
        f"{whole.model}, {whole.tokens} tokens, {whole.weight_format} on {whole.target}: "
        f"KL divergence {whole.kl_nats:.2g} nats, "
        f"perplexity {whole.perplexity_reference:.2f} -> {whole.perplexity:.2f}",
        fontsize=10,
    )  # fmt: skip
    save(figure, path)


def accumulators(path: Path) -> None:
    """Draw the error of a dot product over the bits of its accumulator."""
    rng = np.random.default_rng(0)
    a = ns.quantize(rng.standard_normal((64, 2048)), "int8")
    b = ns.quantize(rng.standard_normal((2048, 64)), "int8")
    exact = ns.matmul(a, b, target="ideal.exact").astype(np.float64)
    bits = range(14, 27)
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for overflow, colour in (("wrap", RED), ("saturate", BLUE)):
        shares = []
        for width in bits:
            unit = ns.get_target("ideal.int", acc_bits=width, overflow=overflow)
            got = ns.matmul(a, b, target=unit).astype(np.float64)
            shares.append(np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean()))
        axes.semilogy(bits, np.maximum(shares, 1e-8), "o-", color=colour, ms=4, label=overflow)
    found = ns.accumulator_bits(a, b)
    for width, word in (
        (found.measured_peak, "measured"), (found.weight_bound, "weights"),
        (found.format_bound, "formats"),
    ):  # fmt: skip
        axes.axvline(width, color=GREY, lw=0.8, ls=":")
        axes.text(width, 1e-4, f" {word}", fontsize=8, color=GREY)
    axes.set(xlabel="bits of the accumulator", ylabel="RMS error / RMS of the sums")
    axes.set(xticks=list(bits), ylim=(1e-9, 2.5))
    axes.set_title("INT8, K = 2048; a sum without any error is drawn at 1e-8", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)


# ------------------------------------------------------------------------------------ architecture
ROOMS = {  # where each module lives, for the picture
    "cli": "command line",
    "torch": "torch", "sweep": "sweep", "report": "report", "bench": "bench", "verify": "verify",
    "explain": "explain", "number_line": "explain", "train": "train", "nn": "nn",
    "models": "models", "targets": "targets", "quant": "quant", "convert": "convert",
    "dispatch": "convert", "shift_register": "convert",
    "arguments": "convert", "kernels": "kernels", "formats": "formats",
}  # fmt: skip
PLACES = {  # column, row: a room stands above those that it imports
    "command line": (1.9, 6), "torch": (4.4, 5.9), "report": (0, 5), "sweep": (2.0, 5),
    "bench": (3.2, 5.1), "train": (4.4, 4.7), "nn": (4.4, 3.9), "models": (2.6, 3.6),
    "verify": (0.95, 4), "explain": (0, 4), "targets": (2.2, 2.7), "quant": (2.2, 1.9),
    "convert": (2.2, 1.2),
    "kernels": (1.2, 0.4), "formats": (3.2, 0.4),
}  # fmt: skip


def imports() -> set[tuple[str, str]]:
    """Return which room imports which, read from the sources."""
    found = set()
    for path in (ROOT / "numsim").rglob("*.py"):
        own = ROOMS.get(path.relative_to(ROOT / "numsim").parts[0].removesuffix(".py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("numsim"):
                parts = (node.module or "").split(".")
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
                found |= {(own, ROOMS.get(name)) for name in names}
    return {(a, b) for a, b in found if a and b and a != b}


def direct(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the arrows that no longer way says already."""
    reach: dict[str, set[str]] = {}

    def below(room: str) -> set[str]:
        if room not in reach:
            next_rooms = {b for a, b in edges if a == room}
            reach[room] = next_rooms.union(*(below(b) for b in next_rooms))
        return reach[room]

    return {
        (a, b) for a, b in edges if not any(b in below(c) for x, c in edges if x == a and c != b)
    }


def width(name: str) -> float:
    """Return how wide the box of a room is."""
    return 0.09 * len(name) + 0.24


def rooms(path: Path) -> None:
    """Draw the rooms of the package and who imports whom."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.subplots()
    for a, b in sorted(direct(imports())):
        (xa, ya), (xb, yb) = PLACES[a], PLACES[b]
        start, end = (xa, ya - 0.2), (xb, yb + 0.2)
        if abs(ya - yb) < 0.6:  # beside each other: from side to side
            way = 1 if xb > xa else -1
            start, end = (xa + way * width(a) / 2, ya), (xb - way * width(b) / 2, yb)
        axes.annotate(
            "", end, start,
            arrowprops={"arrowstyle": "->", "color": GREY, "lw": 0.9},
        )  # fmt: skip
    for name, (x, y) in PLACES.items():
        wide = width(name)
        axes.add_patch(
            FancyBboxPatch((x - wide / 2, y - 0.18), wide, 0.36, boxstyle="round,pad=0.02",
                           fc=PALE, ec=BLUE)
        )  # fmt: skip
        axes.text(x, y, name, ha="center", va="center", fontsize=10)
    axes.set(xlim=(-0.7, 5.3), ylim=(0, 6.4))
    axes.axis("off")
    save(figure, path)


def layers() -> list[str]:
    """Return the layers that the linter of imports holds, the highest first."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines: list[str] = table["tool"]["importlinter"]["contracts"][0]["layers"]
    return lines


def packing(path: Path) -> None:
    """Draw in which order the float32 kernel reads its operands from memory."""
    rows, columns, steps = simd.FMA_ROWS, simd.FMA_BYTES // 4, 4
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    for axes, shape, title in (
        (left, (rows, steps), f"a: a tile of {rows} rows"),
        (right, (steps, columns), f"b: a panel of {columns} columns"),
    ):
        order = np.arange(shape[0] * shape[1])
        order = order.reshape(shape[::-1]).T if axes is left else order.reshape(shape)
        axes.imshow(order, cmap="Blues", vmax=order.max() * 1.6, aspect="auto")
        for (i, j), at in np.ndenumerate(order):
            axes.text(j, i, str(at), ha="center", va="center", fontsize=6 if axes is left else 4.5)
        axes.set_title(f"{title}, {steps} steps", fontsize=9)
        axes.set_yticks(range(0, shape[0], 2 if axes is left else 1))
        axes.set(
            xlabel="step of k" if axes is left else "column of the panel",
            ylabel="row of the tile" if axes is left else "step of k",
        )
    figure.suptitle("each number: the place of the element in memory", fontsize=9)
    save(figure, path)
