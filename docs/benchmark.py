"""Write docs/benchmarks.md from `numsim bench` on this machine; the page is committed.

    python docs/benchmark.py

Run it on a machine that does nothing else. The page says what was running beside it.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from numsim.kernels.ir import simd

PAGE = Path(__file__).with_name("benchmarks.md")
TIMERS = {
    "cast": "Conversions of arrays in memory, beside NumPy and ml_dtypes where installed.",
    "quantize": "Quantisation with every kind of scale, as a share of another rate of the run, "
    "beside torchao where installed.",
    "matmul": "Products by the rules of units, on one core, beside float32 BLAS.",
    "model": "Whole networks with every product emulated, attention's too, beside torch where "
    "installed.",
}

BY_HAND = "\n## Whole networks beside"  # from there on the page is written by hand: what limits it


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load() -> str:
    """Return how many processes wanted to run in the last minute."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def measured(what: str) -> list[str]:
    """Return the section of one timer."""
    before = load()
    done = subprocess.run(
        [sys.executable, "-m", "numsim.cli", "bench", what], capture_output=True, text=True,
        env=os.environ | {"COLUMNS": "110"}, check=True,
    )  # fmt: skip
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    busy = float(before) > (os.cpu_count() or 1) / 2 if before != "unknown" else False
    note = " **The machine was busy with other work: these figures are rough.**" if busy else ""
    return [
        "", f"## numsim bench {what}", "", TIMERS[what], "",
        f"Processes that wanted to run, mean of a minute: {before} before, {load()} after.{note}",
        "",
        "```text", *lines, "```",
    ]  # fmt: skip


def page() -> list[str]:
    """Return the page."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "ml_dtypes"))
    return [
        "# Speed", "",
        "What `numsim bench` printed on one machine; `python docs/benchmark.py` writes this page. "
        "Times of emulation, not of the hardware that is emulated. Compare ratios, which are of "
        "one run: another machine, or a busy one, has other times. Bits do not change.", "",
        "| | |", "| --- | --- |",
        f"| date | {datetime.date.today().isoformat()} |",
        f"| processor | {processor()}, {os.cpu_count()} hardware threads, kernels: {simd.path()} |",
        f"| system | {platform.system()} {platform.machine()} |",
        f"| Python | {platform.python_version()} |",
        f"| packages | numsim {version('numsim')}, {packages} |",
        *(line for what in TIMERS for line in measured(what)),
        *("\n" + BY_HAND + PAGE.read_text(encoding="utf-8").partition(BY_HAND)[2]).splitlines()[1:],
    ]  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text("\n".join(page()) + "\n", encoding="utf-8")
