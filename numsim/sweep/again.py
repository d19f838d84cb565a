"""One case of a file of results, as it was measured: its network, its text and its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.models import Model, Recipe
from numsim.sweep.cases import Case
from numsim.sweep.manifest import manifest_path, record_of
from numsim.sweep.prepare import prepare
from numsim.sweep.spec import as_spec

_SHOWN = 6  # cases in a message


class Measured(NamedTuple):
    """A case and what it ran on; `tokens`: its first window."""

    model: Model
    tokens: NDArray[np.int64]
    recipe: Recipe
    case: Case


@known_floats
def read_case(results: str | Path) -> Measured:
    """Return a case of a file of results, from the manifest beside it.

    Parameters
    ----------
    results
        ``FILE.csv`` with one case, or ``FILE.csv:CASE_ID``.

    Raises
    ------
    NumsimError
        For a file without a manifest, one of several cases of which none is named, a case that it
        does not have, and a network or text that is another one now.
    """
    path, case = _parts(str(results))
    manifest = manifest_path(path)
    if not path.exists() or not manifest.exists():
        missing = path if not path.exists() else manifest
        raise NumsimError(
            f"diff: a file of results and its manifest say what a case was; there is no {missing}"
        )
    every = [(run, one) for run in prepare(as_spec(manifest)) for one in run.cases]
    found = [pair for pair in every if case in ("", pair[1].case_id)]
    if len(found) != 1:
        some = ", ".join(f"{one.case_id} ({one.label})" for _, one in every[:_SHOWN])
        more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
        raise NumsimError(f"diff: name one case, {path}:CASE_ID; {path} has {some}{more}")
    run, one = found[0]
    _check_same(path, record_of(manifest), one)
    if run.inputs.source is not None:
        raise NumsimError(f"diff: a network that reads a text of its own is not compared: {path}")
    return Measured(run.model, run.inputs.tokens[0], one.recipe(), one)


def _parts(given: str) -> tuple[Path, str]:
    """Return file and case of ``FILE.csv:CASE_ID``."""
    if Path(given).exists() or ".csv:" not in given:
        return Path(given), ""
    name, _, case = given.rpartition(":")
    return Path(name), case


def _check_same(path: Path, record: dict[str, Any], case: Case) -> None:
    for what, name, now in (
        ("models", case.model, case.model_hash), ("texts", case.text, case.text_hash),
    ):  # fmt: skip
        was = record.get(what, {}).get(name, now)
        if was != now:
            raise NumsimError(
                f"diff: {path} was measured on another {what[:-1]} {name} ({was}, now {now}); "
                "repeat the sweep"
            )
