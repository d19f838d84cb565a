"""Losses of single tokens beside the results of a sweep: any two of its cases compare in pairs.

What makes a token hard is common to two cases, so their difference is known far better than either
mean. ``results.csv.tokens/CASE_ID.npz`` holds the arrays of one case: of a network with logits
``nll`` and ``kl`` [windows, tokens], in nats, of an encoder ``cosine`` [sentences].
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim import metrics
from numsim.errors import NumsimError, UnsupportedError
from numsim.float_state import known_floats

Losses = dict[str, NDArray[np.float64]]
# array -> the column of results.csv that holds its mean; the first of a case decides its rank
MEANS = {"kl": "kl_nats", "cosine": "embedding_cosine"}
_FILE = re.compile(r"[0-9a-f]{12}\.npz|\.[0-9a-f]{12}\.part")
SIGNIFICANT = 2.0  # standard errors of a difference that counts as one


def losses_folder(results: Path) -> Path:
    """Return the folder beside a CSV file that holds the losses of its cases.

    >>> losses_folder(Path("sweeps/results.csv")).name
    'results.csv.tokens'
    """
    return results.with_name(f"{results.name}.tokens")


def save_losses(results: Path, case_id: str, losses: Mapping[str, NDArray[np.float64]]) -> None:
    """Write the losses of a case, all of them or nothing.

    Raises
    ------
    NumsimError
        The folder cannot be made or written.
    """
    folder = losses_folder(results)
    part = folder / f".{case_id}.part"
    try:
        folder.mkdir(exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, **losses)  # type: ignore[arg-type]  # a dict of arrays alone
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / f"{case_id}.npz")
    except OSError as error:
        raise NumsimError(
            f"sweep: cannot write the losses of tokens into {folder}: {error.strerror}; name "
            "another results file, or free the place"
        ) from None


def forget_losses(results: Path, kept: Collection[str]) -> None:
    """Remove the losses of all cases but the `kept`, and what a killed sweep left half written.

    Raises
    ------
    NumsimError
        Something that is not a folder is in its place, or it cannot be changed.
    """
    folder = losses_folder(results)
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise NumsimError(
                f"sweep: the losses of tokens go into the folder {folder}, and something else is "
                "there; remove it or name another results file"
            )
        return
    try:
        for path in folder.iterdir():
            if _FILE.fullmatch(path.name) and path.name.removesuffix(".npz") not in kept:
                path.unlink()
    except OSError as error:
        raise NumsimError(f"sweep: cannot write into {folder}: {error.strerror}") from None


def join_losses(results: Path, other: Path, cases: Iterable[str]) -> None:
    """Copy the losses of cases from beside another results file, where there are none yet.

    Raises
    ------
    NumsimError
        The folder cannot be made or written.
    """
    folder = losses_folder(results)
    for case in cases:
        if not (folder / f"{case}.npz").exists():
            losses = read_losses(other, case)
            if losses is not None:
                save_losses(results, case, losses)


def read_losses(results: str | Path, case_id: str) -> Losses | None:
    """Return the losses of the tokens of one case of a sweep; None where they were not kept.

    Parameters
    ----------
    results
        The CSV file of the sweep.
    case_id
        As in its column ``case_id``.

    Returns
    -------
    dict of float64 arrays, or None
        ``nll`` and ``kl`` [windows, tokens] in nats: negative log likelihood of each next token,
        and the divergence of its distribution from the float64 reference's. Of an encoder
        ``cosine`` [sentences], of each embedding to the reference's.
    """
    path = losses_folder(Path(results)) / f"{case_id}.npz"
    if not _FILE.fullmatch(path.name) or not path.is_file():
        return None
    with contextlib.suppress(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            found = {name: stored[name] for name in ("nll", "kl", "cosine") if name in stored}
        if found and all(a.dtype == np.float64 and a.size for a in found.values()):
            return found
    return None


@known_floats
def compare_cases(results: str | Path, first: str, second: str) -> tuple[float, float]:
    """Return by how much two cases differ: the mean over tokens, and its standard error.

    The difference, second minus first, is that of the KL divergences from the reference in nats;
    of an encoder that of the cosines of sentences. Below two standard errors it decides nothing.

    Parameters
    ----------
    results
        The CSV file of a sweep, with the folder that the sweep wrote beside it.
    first, second
        Two of its ``case_id``, measured on the same tokens.

    Returns
    -------
    mean, standard error : float

    Raises
    ------
    UnsupportedError
        Where the losses of one of them were not kept, or those are of other tokens.
    """
    both = [read_losses(results, case) for case in (first, second)]
    for name in MEANS:
        a, b = (None if losses is None else losses.get(name) for losses in both)
        if a is not None and b is not None and a.shape == b.shape:
            return metrics.paired_difference(a, b)
    raise UnsupportedError(
        f"compare_cases: both cases need losses of the same tokens in "
        f"{losses_folder(Path(results))}; got {first} and {second}; sweep them on one text"
    )


def with_losses(
    out: Path | None, kept: Collection[str], rows: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield rows; what the last of a case knows of single tokens is written beside `out` first.

    So a case whose last row is in the file has its losses. When the first row comes, and the file
    is replaced, those of cases that are not `kept` go.
    """
    first = True
    for row in rows:
        losses = row.pop("losses", None)
        if out is not None:
            if first:
                forget_losses(out, kept)
                first = False
            if losses is not None:
                save_losses(out, row["case_id"], losses)
        yield row


class Ties:
    """Says of two cases whether their losses differ by more than chance; reads each case once."""

    def __init__(self, results: Path | None) -> None:
        self._results = results
        self._last: tuple[Any, Losses | None] = (None, None)

    def mark(self, better: Mapping[str, Any], worse: Mapping[str, Any]) -> str:
        """Compare two rows of a table of cases, of one run.

        Returns
        -------
        str
            ``=`` same loss at every token, ``~`` mean difference within two standard errors,
            empty: they differ. ``?``: their losses are not in the folder, or not those of the rows.

        Examples
        --------
        >>> Ties(None).mark({}, {})
        '?'
        """
        a, b = self._losses(better), self._losses(worse)
        name = next((n for n in MEANS if a and b and n in a and n in b), None)
        if a is None or b is None or name is None or a[name].shape != b[name].shape:
            return "?"
        if all(np.array_equal(a[n], b[n], equal_nan=True) for n in a):
            return "="
        mean, error = metrics.paired_difference(a[name], b[name])
        chance = abs(mean) <= SIGNIFICANT * error or a[name].size < 2  # one alone has no error
        return "~" if chance else ""

    def _losses(self, row: Mapping[str, Any]) -> Losses | None:
        if self._results is None or not row:
            return None
        case = row.get("case_id")
        if self._last[0] != case:
            self._last = (case, read_losses(self._results, str(case)))
        losses = self._last[1] or {}
        with np.errstate(all="ignore"):
            means = {MEANS[n]: float(a.mean()) for n, a in losses.items() if n in MEANS}
        fits = means and all(_close(mean, row.get(column)) for column, mean in means.items())
        return losses if fits else None


def _close(a: float, b: Any) -> bool:
    b = float(b) if isinstance(b, int | float | np.number) else math.nan
    return a == b or math.isclose(a, b, rel_tol=1e-9) or (math.isnan(a) and math.isnan(b))
