"""One sentence, one update, every code and bit: the source article's example in four formats.

Writes reports/training/worked_example.md, or the file that is named.
"""

import sys
from pathlib import Path

import numpy as np

import numsim as ns
from numsim import nn, train

SENTENCE = "numbers decide what a network learns"
X = np.array([[0.5, -1.2, 0.3, 0.8, -0.1]])  # the sentence as a vector of five
W = np.array([[0.2, -0.4, 0.1, 0.5, -0.3]])
BIAS, TARGET, LR = np.array([0.1]), np.array([1.0]), 0.5
LAYER = nn.Linear(5, 1)
FORMATS = {"FP8": "fp8_hybrid", "INT8": "int8", "q3.4": "q3.4"}


def bits(codes, fmt):
    """Return codes as the bits that are stored."""
    width = fmt.bits
    return [f"{int(c) & ((1 << width) - 1):0{width}b}" for c in np.ravel(codes)]


def row(*cells):
    """Return a line of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def tensor(name, values, stored):
    """Return lines that show a tensor: numbers, codes, bits, and what the codes are worth."""
    scale = np.float32(1) if stored.scale is None else np.asarray(stored.scale)
    lines = [f"**{name}** in `{stored.fmt.name}`, scale {float(scale.reshape(-1)[0])!r}", ""]
    lines += [row("value", "code", "bits", "worth"), row("---:", "---:", "---", "---:")]
    worth = stored.dequantize().reshape(-1)
    for v, code, pattern, w in zip(
        np.ravel(values), np.ravel(stored.codes), bits(stored.codes, stored.fmt), worth, strict=True
    ):
        lines.append(row(repr(float(v)), int(code), f"`{pattern}`", repr(float(w))))
    return [*lines, ""]


def reference():
    """Return the example in float64."""
    y, tape = nn.forward(LAYER, {"weight": W, "bias": BIAS}, X)
    loss, g = nn.loss("bce_with_logits", y[:, 0], TARGET)
    _, grads = nn.backward(tape, g[:, None])
    p = float(g[0] + TARGET[0])  # the gradient is sigmoid minus target
    new = {
        name: np.asarray(v, np.float64) - LR * grads[name]
        for name, v in (("weight", W), ("bias", BIAS))
    }
    return [
        "## float64",
        "",
        f"- x w + b = {float(y[0, 0])!r}",
        f"- sigmoid = {p!r}",
        f"- cross-entropy = {loss!r}",
        f"- gradient at the output = {float(g[0])!r}",
        f"- gradient of the weights = {grads['weight'].ravel().tolist()}",
        f"- weights after one step = {new['weight'].ravel().tolist()}",
        f"- bias after one step = {float(new['bias'][0])!r}",
        "",
    ]


def low(title, name):
    """Return the example by a recipe, its weights stored in the format of the forward product."""
    recipe = train.recipe(name)
    rule = recipe.rule("")
    seen = []
    params = {"weight": W, "bias": BIAS}
    y, tape = nn.forward(
        LAYER, params, X, recipe=recipe, watch=lambda n, role, v, q: seen.append((role, v, q))
    )
    loss, g = nn.loss("bce_with_logits", y[:, 0], TARGET)
    _, grads = nn.backward(tape, g[:, None])
    words = {"x": "Input x", "w": "Weights w", "g": "Gradient g"}
    lines = [f"## {title}: recipe `{name}`, unit `{rule.forward.target.name}`", ""]
    for role, values, q in seen:
        if role in words:
            lines += tensor(words.pop(role), values, q)
    codes = {role: q for role, _, q in seen}
    a, b = (
        ns.QTensor(codes["x"].codes, codes["x"].fmt),
        ns.QTensor(codes["w"].codes, codes["w"].fmt),
    )
    acc = ns.matmul(a, b.T, target=rule.forward.target)
    lines += [
        f"- accumulator of x w: {acc.ravel()[0]!s}, times the scales plus the bias: "
        f"{float(y[0, 0])!r}",
        f"- cross-entropy = {loss!r}; gradient at the output = {float(g[0])!r}",
        f"- gradient of the weights = {[float(v) for v in grads['weight'].ravel()]}",
    ]
    stored = codes["w"]
    changed = stored.dequantize() - np.float32(LR) * grads["weight"]
    for rounding, more in (("rne", {}), ("sr", {"seed": 7})):
        after = train.store(changed, stored, rounding=rounding, **more)
        moved = int((after.codes != stored.codes).sum())
        lines.append(
            f"- weights stored again, {rounding}: codes {np.ravel(after.codes).tolist()} "
            f"(`{' '.join(bits(after.codes, after.fmt))}`), {moved} of 5 moved"
        )
    return [*lines, ""]


def page():
    """Return the page."""
    lines = [
        "# One update, every bit", "",
        "Made by `python examples/worked_example.py`; a test makes it again and compares.", "",
        f"The sentence \"{SENTENCE}\" as a vector of five values, a Dense layer with one output, "
        "sigmoid and cross-entropy against the label 1, one step of gradient descent with "
        f"learning rate {LR}. Scales are amax over the largest value of the format (q3.4: none).",
        "",
    ]  # fmt: skip
    lines += reference()
    for title, name in FORMATS.items():
        lines += low(title, name)
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "reports" / "training" / "worked_example.md"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page())
    print(out)
