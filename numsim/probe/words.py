"""What a probe found, in words and as TOML."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from numsim.errors import NumsimError
from numsim.files import check_regular, replace_files
from numsim.float_state import known_floats
from numsim.targets.words import rule_words


@known_floats
def as_text(found: Any) -> str:
    """Return a probe on a page."""
    lines = [
        f"{found.right:,} of {found.asked:,} answers reproduced bit for bit; the machine was "
        f"called {found.calls:,} times, {found.tried:,} rules were tried"
    ]
    early = found.failed.startswith("probe: ")  # the error that stopped it
    if early:
        lines.append(f"the probe stopped early: {found.failed.removeprefix('probe: ')}")
    elif found.failed:
        lines.append(f"no rule of numsim answers as the machine does: {found.failed}")
    if found.target is not None:
        kind, rule = found.target.rules[0]
        how = "a rule that fits so far" if early else "nearest rule" if found.failed else "rule"
        lines.append(f"{how} for {kind}: {rule_words(rule)}")
    for name, witnesses in found.evidence.items():
        if name in found.undecided:
            continue
        some = "; ".join(
            f"{w.other}: {w.stimulus} gives {w.answer}, not {w.instead}" for w in witnesses[:2]
        )
        lines.append(f"  {name} is not {some}")
    lines += [f"  {name} is open: {why}" for name, why in found.undecided.items()]
    near = ", ".join(f"{name} {share:.1%}" for name, share in found.nearest[:4])
    if found.asked:
        lines.append(f"nearest units of the table: {near or 'none takes these formats'}")
    return "\n".join(lines)


def as_toml(found: Any) -> str:
    """Return a probe as a unit, its evidence as comments."""
    head = [f"# {line}" for line in as_text(found).splitlines()]
    body = "" if found.target is None else found.target.to_toml()
    return "\n".join(head) + "\n" + body


def save(found: Any, folder: str | Path) -> tuple[Path, ...]:
    """Write probed.toml, evidence.csv and vectors.npz.

    Raises
    ------
    NumsimError
        For a folder that cannot be written.
    """
    place, rows, packed = Path(folder), io.StringIO(), io.BytesIO()
    out = csv.writer(rows, lineterminator="\n")
    out.writerow(("field", "value", "other", "stimulus", "answer", "instead", "open"))
    rule = None if found.target is None else found.target.rules[0][1]
    names = dict.fromkeys([*found.evidence, *found.undecided])
    for name in names:
        value, open_one = str(getattr(rule, name, "")), found.undecided.get(name, "")
        for w in found.evidence.get(name, ()):
            out.writerow((name, value, w.other, w.stimulus, w.answer, w.instead, open_one))
        if name not in found.evidence:
            out.writerow((name, value, "", "", "", "", open_one))
    np.savez_compressed(packed, **found.vectors)
    files = {
        place / "probed.toml": as_toml(found).encode(),
        place / "evidence.csv": rows.getvalue().encode(),
        place / "vectors.npz": packed.getvalue(),
    }  # fmt: skip
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file in files:
            check_regular(file, "probe")
        replace_files(files)
    except OSError as error:
        raise NumsimError(
            f"probe: cannot write {place}: {error}; give a folder that can be written"
        ) from None
    return tuple(files)
