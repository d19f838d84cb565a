"""Golden vectors for a test bench: one FP8 product on Hopper's unit, hex for $readmemh.

Writes reports/vectors, or the folder that is named: operands, the accumulator after every step,
the result, and the unit as TOML.
"""

import sys
from pathlib import Path

import numpy as np

import numsim as ns

UNIT = "nvidia.hopper.wgmma"
HEAD = 4  # lines of a file that the page shows


def main(folder):
    rng = np.random.default_rng(10)
    a, b = (
        ns.QTensor.from_codes(rng.integers(0, 120, shape, np.uint8), "e4m3")
        for shape in ((2, 128), (128, 3))
    )
    files = ns.export_vectors(folder, a, b, target=UNIT)
    (folder / "unit.toml").write_text(ns.get_target(UNIT).to_toml())
    lines = ["# Vectors for a test bench", "",
             f"[2 x 128] by [128 x 3] in E4M3 on `{UNIT}`, four steps of 32 products: made by "
             "`python examples/vectors.py`. `vectors.npz` has the same words; the rule is "
             "`unit.toml`.", ""]  # fmt: skip
    for path in files:
        if path.suffix == ".hex":
            words = path.read_text().splitlines()
            lines += [f"`{path.name}`, {len(words) - 1} words:", "", "```text"]
            lines += [*words[:HEAD], "...", "```", ""]
    (folder / "report.md").write_text("\n".join(lines).rstrip("\n") + "\n")
    print(f"{folder}: {', '.join(path.name for path in files)}")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0]) if given else Path(__file__).parents[1] / "reports" / "vectors")
