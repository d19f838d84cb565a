"""Files of numsim train: curves and checkpoints, checked before the first step."""

from __future__ import annotations

import csv
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from numsim.errors import NumsimError
from numsim.files import check_regular, escape_cell


def check_writable(path: Path, *, replace: bool) -> None:
    """Raise where a file cannot be written, before the work that fills it.

    A pipe or a device is refused: a file moved to its name would end it for the whole machine.

    Raises
    ------
    NumsimError
        Names the file; also one that exists, where `replace` is false.
    """
    check_regular(path, f"train: cannot write {path}")
    try:
        if path.is_dir():
            raise NumsimError(f"train: --out is a file; {path} is a folder")
        if path.exists() and path.stat().st_size and not replace:
            raise NumsimError(
                f"train: {path} exists and is not replaced unasked; give --force to replace it, "
                "--resume to go on from --checkpoint, or another --out"
            )
        probe = path.with_name(f".{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> NumsimError:
    return NumsimError(
        f"train: cannot write {path}: {error.strerror}; name a file in a folder you may write to"
    )


def write_csv(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Write rows beside their place, then move them there in a single step.

    Raises
    ------
    NumsimError
        Where the folder cannot be written.
    """
    check_regular(path, "train: cannot write the curves")
    path = Path(os.path.realpath(path))  # a link stays one
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({key: _cell(v) for key, v in row.items()} for row in rows)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            part.unlink()


def _cell(value: Any) -> Any:
    return escape_cell(value) if isinstance(value, str) else value
