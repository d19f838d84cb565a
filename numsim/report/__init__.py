"""Reports: the CSV file of a sweep becomes a page, tables and figures. Knows nothing of models.

The package is called itself: ``numsim.report(frame)`` is `numsim.report.notebook.report`.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType

from numsim.errors import NumsimError
from numsim.files import check_regular, replace_files
from numsim.float_state import known_floats
from numsim.report.build import sweep_files
from numsim.report.notebook import Page, report
from numsim.report.training import is_training, training_files

__all__ = ["Page", "report", "write_report"]
HEADS = (b"# Number formats on ", b"# Training by number format")  # of every report.md
FILES = (".csv", ".htm", ".html", ".json", ".md", ".pdf", ".png", ".svg", ".txt", ".xlsx", ".zip")


@known_floats
def write_report(
    results: Path,
    out: Path | None = None,
    *,
    against: Path | None = None,
    cost: Path | None = None,
) -> list[Path]:
    """Write ``report.html``, ``report.md``, tables and figures from the CSV file of a sweep.

    The same CSV file gives the same bytes. Everything is made in memory before the first file is
    written, and each file replaces an older one in a single step.

    Parameters
    ----------
    results
        CSV file of ``numsim sweep``. Cases without their ``layer="all"`` row are left out.
    out
        Folder for the report; made if it is missing. None: ``NAME-report`` beside ``NAME.csv``.
    against
        CSV file of an older sweep of the same model and text: the page lists what moved.
    cost
        TOML file of costs of one's own, in the form of ``numsim/data/cost.toml``; its rows replace
        those of the same id.

    Returns
    -------
    list of Path
        The files written: ``report.html``, ``report.md``, ``tables/*.csv`` and, where the columns
        they need have values, figures as PNG of 200 dpi and as SVG: ``kl``, ``perplexity`` (of an
        encoder ``cosine``), ``sqnr``, ``pareto_bits``, ``layers``. Of training ``report.md`` and
        its figures.

    Raises
    ------
    NumsimError
        If `results` is missing, is not a CSV file of a sweep or has no finished case, or if `out`
        is a file, is named like one or cannot be written, or if `against` is of another model,
        text or number of tokens.

    Examples
    --------
    >>> import tempfile
    >>> from numsim.report.tables import COLUMNS
    >>> row = dict.fromkeys(COLUMNS, "") | {
    ...     "case_id": "1f", "model": "tiny", "layer": "all", "format": "int8",
    ...     "granularity": "per_tensor", "target": "ideal.int", "emulated": "True",
    ...     "exact": "True", "bits_per_weight": "8.0", "perplexity": "41.5", "seed": "0",
    ...     "numsim_version": "0.1.0"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     csv = Path(folder, "results.csv")
    ...     _ = csv.write_text(f"{','.join(row)}{chr(10)}{','.join(row.values())}")
    ...     files = write_report(csv, Path(folder, "report"))
    ...     print([file.name for file in files])
    ...     print(files[0].read_text().splitlines()[0])
    ['report.md', 'report.html', 'perplexity.png', 'perplexity.svg', 'cases.csv']
    # Number formats on `tiny`
    """
    out = results.with_name(f"{results.stem}-report") if out is None else out
    if out.suffix.lower() in FILES and not out.exists():
        raise NumsimError(
            f"report: the output is a folder of several files, and {out} is named like a file; "
            f"name a folder, as {out.with_suffix('')}"
        )
    if is_training(results):
        return _save(training_files(results), out)
    return _save(sweep_files(results, against=against, cost=cost), out)


def _check_own(out: Path) -> None:
    """Raise NumsimError where a page in the folder is none that numsim wrote: it is not replaced.

    Raises
    ------
    NumsimError
        So, or it cannot be read.
    """
    page = out / "report.md"
    if not page.is_file():
        return
    try:
        with page.open("rb") as file:
            first = file.readline(200)
    except OSError as error:
        raise NumsimError(f"report: cannot read {page}: {error.strerror}") from None
    if first.strip() and not first.startswith(HEADS):
        raise NumsimError(
            f"report: {page} is no report of numsim, and is not replaced; name another folder, or "
            "move it away"
        )


def _save(files: dict[str, bytes], out: Path) -> list[Path]:
    """Write every file beside its place first, then move all of them there."""
    found = {out / name: data for name, data in files.items()}
    if out.exists() and not out.is_dir():
        raise NumsimError(f"report: the output is a folder, and {out} is a file; name another")
    _check_own(out)
    for path in found:
        check_regular(path, "report")
        if path.is_dir():
            raise NumsimError(f"report: {path} is a folder; remove it or name another output")
    try:
        for folder in dict.fromkeys(path.parent for path in found):
            folder.mkdir(parents=True, exist_ok=True)
        replace_files(found)
    except OSError as error:
        raise NumsimError(
            f"report: cannot write into {out}: {error.strerror}; name a folder you may write to"
        ) from None
    return list(found)


class _Called(ModuleType):
    """A function of the name of its package would hide it from ``import numsim.report.tables``."""

    __call__ = staticmethod(report)


sys.modules[__name__].__class__ = _Called
__signature__ = inspect.signature(report)
