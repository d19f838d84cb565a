"""How long the page of a report takes: to build, to load and to filter in Chromium."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from numsim.report import write_report
from numsim.sweep import sweep

CASES, ROWS = 2000, 10_000  # of the two large files
_BUILD, _PAINT, _LARGE_PAINT, _KEY, _USABLE = 20.0, 1.5, 4.0, 0.5, 5.0  # seconds
_PAGE, _LARGE_PAGE = 1.0, 6.0  # MB
_PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
_PRESSED = """async words => {
  const box = document.querySelector('[data-testid=search]'), began = performance.now();
  box.value = words;
  box.dispatchEvent(new Event('input', {bubbles: true}));
  await new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
  return (performance.now() - began) / 1000;
}"""


@dataclass(frozen=True)
class ReportTiming:
    """What one step of a report took.

    Parameters
    ----------
    file, task
        Which results, and what is measured.
    value, limit, unit
        What it took, the most that it may take, and their unit: ``s`` or ``MB``.
    """

    file: str
    task: str
    value: float
    limit: float
    unit: str


def chromium() -> str | None:
    """Return the path of Chromium, None where it or playwright is not installed."""
    if importlib.util.find_spec("playwright") is None:
        return None
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def bench_report(*, limit_tokens: int = 255, rows: int = ROWS, cases: int = CASES) -> list[
    ReportTiming
]:  # fmt: skip
    """Time the report of the default sweep, of many rows and of many cases.

    Parameters
    ----------
    limit_tokens
        Of the sweep whose rows are reported, and repeated for the large files.
    rows, cases
        Of the large files.

    Returns
    -------
    list of ReportTiming
        To build a page and its size; where Chromium and playwright are installed also its first
        paint, the answer to a press of a key, and until all cases can be used.
    """
    base = sweep(limit_tokens=limit_tokens)
    browser = chromium()
    found: list[ReportTiming] = []
    with tempfile.TemporaryDirectory(prefix="numsim-") as folder:
        for name, frame in _files(base, rows, cases):
            results, out = Path(folder, "results.csv"), Path(folder, name)
            frame.to_csv(results, index=False)
            began = time.perf_counter()
            write_report(results, out)
            seconds, page = time.perf_counter() - began, out / "report.html"
            large = frame is not base
            size = page.stat().st_size / 1e6
            found.append(ReportTiming(name, "build", seconds, _BUILD, "s"))
            most = _LARGE_PAGE if large else _PAGE
            found.append(ReportTiming(name, "page", size, most, "MB"))
            if browser is not None:
                found += _in_browser(browser, name, page, large=large)
    return found


def _files(base: pd.DataFrame, rows: int, cases: int) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "default sweep", base
    whole = base[base["layer"] == "all"]
    many = _repeated(base, -(-rows // len(base)))
    yield f"{len(many):,} rows", many
    yield f"{cases:,} cases", _repeated(whole, -(-cases // len(whole)))[:cases]


def _repeated(frame: pd.DataFrame, times: int) -> pd.DataFrame:
    """Return rows again and again, each time as other cases, a little worse than before."""
    parts = []
    for n in range(times):
        part = frame.copy()
        part["case_id"] = [f"{n:04x}{case[4:]}" for case in part["case_id"]]
        part["recipe"] = f"variant_{n}"
        for name in ("perplexity", "kl_nats", "bits_per_weight"):
            part[name] *= 1 + 0.01 * n
        parts.append(part)
    return pd.concat(parts)


def _in_browser(browser: str, name: str, page: Path, *, large: bool) -> list[ReportTiming]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        view: Any = opened.new_context(offline=True).new_page()
        began = time.perf_counter()
        view.goto(page.absolute().as_uri())
        view.get_by_test_id("count").inner_text()
        usable = time.perf_counter() - began
        view.wait_for_timeout(200)
        paint, pressed = view.evaluate(_PAINTED), view.evaluate(_PRESSED, "variant_3")
        opened.close()
    return [
        ReportTiming(name, "first paint", paint, _LARGE_PAINT if large else _PAINT, "s"),
        ReportTiming(name, "usable", usable, _USABLE, "s"),
        ReportTiming(name, "a key in the search", pressed, _KEY, "s"),
    ]
