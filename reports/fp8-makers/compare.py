"""One network on the FP8 units of several makers: where each parts from Hopper's, and why.

    python reports/fp8-makers/compare.py

writes README.md, units.csv and a folder of CSV files and a figure for each unit beside itself.
"""

from __future__ import annotations

import csv
import sys
import warnings
from pathlib import Path

import numsim as ns
from numsim.data import bundled_model_dir, bundled_text
from numsim.diff import as_text, diff, write_diff
from numsim.models import Recipe, bundled_model
from numsim.models.text import load_text_tools

BASE = "nvidia.hopper.wgmma"
UNITS = {
    "nvidia.ada.mma": "float8_e4m3fn",
    "nvidia.hopper.mma": "float8_e4m3fn",
    "nvidia.blackwell.tcgen05": "float8_e4m3fn",
    "amd.cdna3.mfma": "float8_e4m3fnuz",
    "intel.gaudi2.mme": "float8_e4m3",
    "intel.gaudi3.mme": "float8_e4m3fn",
    "arm.fdot_fp8": "float8_e4m3fn",
    "riscv.zvfqwdota8f": "float8_e4m3fn",
    "x86.top4mxbf8ps": "mxfp8_e4m3",
    "ideal.exact": "float8_e4m3fn",
}
TOKENS = 128


def main() -> None:
    warnings.simplefilter("ignore", ns.UnvalidatedWarning)
    here = Path(__file__).parent
    model = bundled_model()
    ids = load_text_tools(bundled_model_dir()).ids(bundled_text(), limit=TOKENS)[:TOKENS]
    base = Recipe.uniform("float8_e4m3fn", target=BASE)
    rows, pages = [], []
    for unit, fmt in UNITS.items():
        found = diff(model, ids, base, Recipe.uniform(fmt, target=unit), names=(BASE, unit))
        write_diff(found, here / unit)
        share = sum(r.differing * r.results for r in found.products) / found.results
        best = max(found.causes, key=lambda c: c.explains, default=None)
        alone = best is not None and best.explains >= 0.001
        why = f"{best.field} {best.a} / {best.b}" if best and alone else "no field alone"
        rows.append(
            (unit, fmt, f"{share:.6f}", why, f"{best.explains:.4f}" if best else "",
             f"{found.depth[-1].sqnr_db:.2f}", f"{found.depth[-1].kl_nats:.3e}")
        )  # fmt: skip
        pages.append(f"## {unit}\n\n```text\n{as_text(found)}\n```\n\n![]({unit}/diff.png)\n")
    head = ("unit", "format", "differing", "best_cause", "explains", "logits_sqnr_db", "kl_nats")
    with (here / "units.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    lines = [
        "# FP8 units of several makers, one network", "",
        f"The bundled Llama, {TOKENS} tokens, block linears in E4M3 (CDNA3 in its own E4M3FNUZ, "
        "Gaudi 2 in E4M3 with infinities, x86 ACE in MXFP8, since it takes no other), each unit "
        f"against `{BASE}` on equal inputs. The cause is the field that, set "
        "alone to the other's value in one of both, restores most of the results that differ; "
        "fields act together, so both directions are listed below. `ideal.exact` shows how far "
        "Hopper's sums are from exact ones. Made by "
        "`python reports/fp8-makers/compare.py`.", "",
        "| " + " | ".join(head) + " |", "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows), "", *pages,
    ]  # fmt: skip
    (here / "README.md").write_text("\n".join(lines), encoding="utf-8")
    sys.stdout.write("\n".join(lines[:14]) + "\n")


if __name__ == "__main__":
    main()
