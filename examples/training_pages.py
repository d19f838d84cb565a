"""Pages of training by number format: the classifier's table, and the language model's perplexity.

    python examples/training_pages.py classifier      # five seeds, all recipes
    python examples/training_pages.py language        # the bundled Llama, trained on

Each writes the curves (classifier.csv or language.csv, in the current folder), then the page and
its figures in reports/training/NAME. More arguments: another folder, seeds, steps.
"""

import os
import subprocess
import sys
from pathlib import Path

from numsim.report import write_report

REPORTS = Path(__file__).parents[1] / "reports" / "training"
# Seeds, steps, steps between scores, and what else numsim train is given.
PAGES = {
    "classifier": (5, 240, 20, ()),
    "language": (1, 40, 4, ("--model", "tiny_llama", "--recipes",
                            "float32,mxfp8,fp8_hybrid,int8,fp8_stored_rne,fp8_stored_sr,"
                            "int8_stored_rne,int8_stored_sr")),
}  # fmt: skip


def command(name, seeds, steps):
    """Return the command whose curves the page draws."""
    every, more = PAGES[name][2:]
    return (
        "train", *more, "--seeds", str(seeds), "--steps", str(steps), "--every",
        str(min(every, steps)), "--watch", str(max(steps // 4, 1)), "--jobs",
        str(os.cpu_count() or 1), "--out", f"{name}.csv",
    )  # fmt: skip


def page(name, folder, seeds, steps):
    """Train, draw, and say on the page how it was made."""
    ran = command(name, seeds, steps)
    subprocess.run([sys.executable, "-m", "numsim.cli", *ran, "--force"], check=True)
    files = write_report(Path(f"{name}.csv"), folder)
    text = files[0].read_text(encoding="utf-8")
    title, _, rest = text.partition("\n")
    made = f"Made by `python examples/training_pages.py {name}`: `numsim {' '.join(ran)}`."
    files[0].write_text(f"{title}\n\n{made}\n{rest}", encoding="utf-8")
    return files


if __name__ == "__main__":
    given = sys.argv[1:]
    if not given or given[0] not in PAGES:
        sys.exit(f"usage: training_pages.py {' | '.join(PAGES)} [folder [seeds [steps]]]")
    which = given[0]
    where = Path(given[1]) if len(given) > 1 else REPORTS / which
    usual = [str(number) for number in PAGES[which][:2]]
    seeds, steps = (int(number) for number in (given[2:] + usual[len(given[2:]) :]))
    print(*page(which, where, seeds, steps), sep="\n")
