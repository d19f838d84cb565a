"""The page of a report in a notebook."""

from __future__ import annotations

import html
import tempfile
from pathlib import Path

import pandas as pd

from numsim.errors import NumsimError
from numsim.files import replace_files
from numsim.float_state import known_floats
from numsim.report.build import page_of

HEIGHT = 900  # pixels of the page in a cell


class Page:
    """The page of a report: a cell of a notebook shows it, `save` writes it."""

    def __init__(self, text: str) -> None:
        self.html = text

    def __repr__(self) -> str:
        return f"<numsim report, {len(self.html) / 1e6:.2f} MB of HTML; save(path) writes it>"

    def _repr_html_(self) -> str:
        # A frame of its own: neither styles nor scripts of page and notebook meet.
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" sandbox="allow-scripts allow-downloads" '
            f'title="numsim report" style="width:100%;height:{HEIGHT}px;border:0"></iframe>'
        )

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all.

        Raises
        ------
        NumsimError
            The file cannot be written.
        """
        path = Path(path)
        try:
            replace_files({path: self.html.encode()})
        except OSError as error:
            raise NumsimError(
                f"report: cannot write {path}: {error.strerror}; name another file"
            ) from None
        return path


@known_floats
def report(frame: pd.DataFrame) -> Page:
    """Return the page of a sweep, which a notebook shows in a cell.

    It is ``report.html`` of ``numsim report``. Ties are judged by the standard errors of single
    cases, since the losses of tokens stand beside files alone.

    Parameters
    ----------
    frame
        What `numsim.sweep` returned.

    Raises
    ------
    NumsimError
        For something else, or a table without a finished case.

    Examples
    --------
    >>> report("results.csv")
    Traceback (most recent call last):
    numsim.errors.NumsimError: report: needs the table that sweep returned; got a str; of a file ...
    """
    if not isinstance(frame, pd.DataFrame):
        raise NumsimError(
            f"report: needs the table that sweep returned; got a {type(frame).__name__}; of a file "
            "numsim.report.write_report makes one"
        )
    with tempfile.TemporaryDirectory(prefix="numsim-report-") as folder:
        path = Path(folder, "results.csv")
        frame.to_csv(path, index=False)
        return Page(page_of(path))
