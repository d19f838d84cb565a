"""What goes wrong in low-precision training, shown, with its cure.

A stall: updates smaller than half a step of the format are lost under nearest-even; stochastic
rounding keeps them on average. An underflow: gradients below the least number of their format
become 0; a loss scale, a wider exponent or block scales keep them. Writes reports/training/
stall.md and its figures, or into the folder that is named.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import numsim as ns
from numsim import nn, train

STEPS, DELTA, COUNT = 64, 1 / 64, 256


def stall():
    """Return means of E4M3 weights over 64 steps of +1/64, by rounding."""
    means = {}
    for rounding in ("rne", "sr"):
        q = ns.QTensor.from_codes(np.full(COUNT, 0x38), "float8_e4m3fn", scale=np.float32(1))
        found = [1.0]
        for step in range(STEPS):
            more = {"seed": 0, "offset": step * COUNT} if rounding == "sr" else {}
            q = train.store(q.dequantize() + np.float32(DELTA), q, rounding=rounding, **more)
            found.append(float(q.dequantize().astype(np.float64).mean()))
        means[rounding] = found
    return means


CURES = (
    ("q3.4", "q3.4", 1.0),
    ("q3.4, loss x 4096", "q3.4_scale4096", 1.0),
    ("E4M3, unscaled", "raw_e4m3", 1.0),
    ("E4M3, loss x 4096", "raw_e4m3", 4096.0),
    ("E5M2, unscaled", "raw_e5m2", 1.0),
    ("E5M2, scale of the tensor", "fp8_hybrid", 1.0),
    ("MXFP8, scale of 32", "mxfp8", 1.0),
)


def recipe(name):
    """Return a recipe; raw ones cast gradients without a scale."""
    if not name.startswith("raw_"):
        return train.recipe(name)
    plain = train.recipe("fp8_hybrid").rule("")
    raw = ns.Quant(name.removeprefix("raw_"), "none")
    dgrad = ns.Rule(raw, plain.dgrad.weights, plain.dgrad.target)
    wgrad = ns.Rule(raw, plain.wgrad.weights, plain.wgrad.target)
    return train.Recipe((("*", train.Rule(plain.forward, dgrad, wgrad)),))


def gradients():
    """Return the gradient of a hidden layer of a small classifier, float32: many are tiny."""
    rng = np.random.default_rng(0)
    layer = nn.Sequential(
        one=nn.Linear(64, 64), act=nn.Activation("tanh"), two=nn.Linear(64, 64),
        act2=nn.Activation("tanh"), head=nn.Linear(64, 1),
    )  # fmt: skip
    params = nn.init(layer)
    x = rng.normal(size=(256, 64)).astype(np.float32)
    target = (x[:, 0] > 0).astype(np.float64)
    return layer, params, x, target


def underflow():
    """Return what each way loses of the gradients: (way, elements, lost, histogram data)."""
    layer, params, x, target = gradients()
    rows, sample = [], None
    for way, name, scale in CURES:
        lost = train.Lost()
        held = []

        def see(product, role, values, q, lost=lost, held=held):
            lost(product, role, values, q)
            if role == "g" and product == "one":
                held.append((values, q))

        y, tape = nn.forward(layer, params, x, recipe=recipe(name), watch=see)
        _, g = nn.loss("bce_with_logits", y[:, 0], target)
        nn.backward(tape, (g * np.float32(scale))[:, None])
        rows.append((way, lost.elements, lost.zeroed))
        if name == "fp8_hybrid":  # loses none: what the gradients are
            sample = held[0][0]
    return rows, sample


def draw(folder, means, sample):
    """Draw both figures."""
    mpl.rcParams.update({"svg.hashsalt": "numsim", "font.size": 9})
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        np.linspace(1, 1 + STEPS * DELTA, STEPS + 1), "--", color="#777777", label="exact sum"
    )
    axes.plot(means["rne"], color="#D55E00", label="nearest even: stalls")
    axes.plot(means["sr"], color="#0072B2", label="stochastic: follows")
    axes.set_xlabel("step")
    axes.set_ylabel("mean of the stored weights")
    axes.legend(frameon=False)
    figure.savefig(folder / "stall.png", dpi=150, metadata={"Software": None})
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    live = np.abs(sample[sample != 0]).astype(np.float64)
    axes.hist(np.log10(live), bins=60, color="#56B4E9")
    formats = {"q3.4": "#D55E00", "float8_e4m3fn": "#CC79A7", "float8_e5m2": "#009E73"}
    for name, colour in formats.items():
        least = ns.get_format(name).min_subnormal
        axes.axvline(np.log10(least / 2), color=colour, label=f"half the least of {name}")
    axes.set_xlabel("log10 of the magnitude of a gradient element")
    axes.set_ylabel("elements")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "underflow.png", dpi=150, metadata={"Software": None})


def page(folder):
    """Write the page and its figures."""
    means = stall()
    rows, sample = underflow()
    draw(folder, means, sample)
    lines = [
        "# What goes wrong, and what helps", "",
        "Made by `python examples/stall.py`; a test makes the page again and compares.", "",
        "## A stall", "",
        f"{COUNT} weights of 1.0 stored in E4M3, whose step there is 1/8, take {STEPS} updates of "
        f"+1/64. Nearest even loses each of them: the mean stays {means['rne'][-1]!r}. Stochastic "
        f"rounding keeps them on average: {means['sr'][-1]:.4f}, where the exact sum is 2.", "",
        "![stall](stall.png)", "",
        "## Gradients that vanish", "",
        "The gradients of a small network's hidden products, cast before dgrad. Lost: non-zero "
        "elements that become 0.", "",
        "| gradients stored in | elements | lost | share |", "| --- | ---: | ---: | ---: |",
    ]  # fmt: skip
    lines += [f"| {way} | {n} | {z} | {z / max(n, 1):.1%} |" for way, n, z in rows]
    lines += ["", "![underflow](underflow.png)", ""]
    (folder / "stall.md").write_text("\n".join(lines))
    return folder / "stall.md"


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "reports" / "training"
    into = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    into.mkdir(parents=True, exist_ok=True)
    print(page(into))
