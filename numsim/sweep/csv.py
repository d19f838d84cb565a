"""results.csv: one writer at a time, rows appended as they are made, finished cases kept.

What a resumed sweep does not keep is removed by a new file that takes the place of the old one in
a single step; until then the old one stays as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from numsim.errors import DamagedFileWarning, NumsimError
from numsim.files import check_regular
from numsim.losses import join_losses
from numsim.sweep.columns import NAMES
from numsim.sweep.lines import add_to, cell, check_header, finished, line_of, printed, ranges
from numsim.sweep.lock import Lock

_APPEND = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)


class ResultsFile:
    """The file of a sweep, to be used in a ``with`` block; without a path, nothing is written.

    Parameters
    ----------
    path
        The file. One that has something in it needs one of the following.
    resume
        Keep its finished cases.
    force
        Replace it when the first row comes.
    others
        Files of parts of the sweep, whose finished cases it takes over where it resumes.

    Attributes
    ----------
    path
        The file.
    kept
        Rows of the finished cases, as they were when they were computed.
    before_first
        Called before the first new row is written.
    """

    def __init__(
        self, path: Path | None, *, resume: bool = False, force: bool = False,
        others: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        if resume and force:
            raise NumsimError(
                "sweep: resume keeps what is in the file and force replaces it; got both; give one"
            )
        self.path = path
        self.kept: list[dict[str, Any]] = []
        self.before_first: Callable[[], None] = lambda: None
        self._path, self._resume, self._force = path, resume, force
        self.others, self._joined = others, dict[Path, list[str]]()
        self._digests: dict[str, Any] = {}
        self._content = [line_of(NAMES)]  # what the file is to hold before the first new row
        self._as_it_is = False  # the file holds just that
        self._damaged = False
        self._file = -1
        self._size = 0

    def __enter__(self) -> ResultsFile:
        if self._path is None:
            return self
        _check_place(self._path)
        self._place = Path(os.path.realpath(self._path))  # a link stays one
        self._lock = Lock(self._place, self._path)
        try:
            self._lock.acquire()
            self._read(self._path)
        except OSError as error:
            self._lock.release()
            raise NumsimError(f"sweep: cannot write {self._path}: {error.strerror}") from None
        except BaseException:
            self._lock.release()
            raise
        return self

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append one row and return it as the file has it; after the last of a case, sync."""
        unknown = row.keys() - set(NAMES)
        if unknown:
            raise KeyError(f"no column of a results file: {sorted(unknown)}")
        row = {name: printed(row.get(name)) for name in NAMES}
        last = row["layer"] == "all"
        digest = self._digests.setdefault(row["case_id"], hashlib.sha256())
        add_to(digest, (cell(row[name]) for name in NAMES))
        if last:
            row["check"] = self._digests.pop(row["case_id"]).hexdigest()[:12]
        if self._path is not None:
            try:
                if self._file < 0:
                    self.before_first()
                    self._open()
                self._append(line_of(cell(value) for value in row.values()))
                if last:
                    os.fsync(self._file)
            except OSError as error:
                raise NumsimError(
                    f"sweep: cannot write {self._path}: {error.strerror}; the finished cases in it "
                    "are kept, and --resume goes on from them"
                ) from None
        return row

    def finish(self, rows: list[dict[str, Any]], order: Sequence[str]) -> list[dict[str, Any]]:
        """Bring cases into an order, in the file too; return `rows` so.

        Cases that are not in `order` stay where they are.
        """
        place = {case: i for i, case in enumerate(order)}
        found = _in_order([row["case_id"] for row in rows], place)
        rows = [rows[i] for i in found]
        if self._path is None:
            return rows
        try:
            for path, known in self._joined.items():
                join_losses(self._path, path, known)
            opened = self._file >= 0
            content = self._place.read_bytes().splitlines(True) if opened else self._content
            moved = _in_order([line.partition(b",")[0].decode() for line in content[1:]], place)
            if moved != list(range(len(moved))):
                self._content = [content[0], *(content[i + 1] for i in moved)]
                self._as_it_is = False
                if opened:
                    os.close(self._file)
                    self._file = -1
                    self._open()
        except OSError as error:
            raise NumsimError(f"sweep: cannot write {self._path}: {error.strerror}") from None
        return rows

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._path is None:
            return
        try:
            if kind is None and self._file < 0 and not self._as_it_is and self.kept:
                self._open()  # nothing was left to compute: what is not kept goes now
        except OSError as error:
            raise NumsimError(f"sweep: cannot write {self._path}: {error.strerror}") from None
        finally:
            if self._file >= 0:
                with contextlib.suppress(OSError):  # what could not be written has been reported
                    os.close(self._file)
            self._lock.release()

    def _read(self, path: Path) -> None:
        """Find out what the file holds, and which lines stay."""
        if self._force:
            return
        data = self._place.read_bytes() if self._place.exists() else b""
        if data.strip() and not self._content[0].startswith(data):  # else cut in its first line
            self._read_own(path, data)
        for other in self.others:
            self._join(other)

    def _join(self, path: Path) -> None:
        """Take over the finished cases of the file of a part; one still written has some too."""
        check_regular(path, "sweep")
        lines = path.read_bytes().split(b"\n")
        if not any(line.strip() for line in lines):
            return
        check_header(path, lines)
        content, kept, _ = finished(self._content[0], lines)
        known = {row["case_id"] for row in self.kept}
        self.kept += [row for row in kept if row["case_id"] not in known]
        new = [line for line in content[1:] if line.partition(b",")[0].decode() not in known]
        self._content += new
        self._as_it_is = self._as_it_is and not new
        self._joined[path] = list(dict.fromkeys(row["case_id"] for row in kept))

    def _read_own(self, path: Path, data: bytes) -> None:
        if not self._resume:
            raise NumsimError(
                f"sweep: {path} exists and is not replaced unasked; give --resume (resume=True) to "
                "keep its finished cases, --force (force=True) to replace it, or another file"
            )
        lines = data.split(b"\n")
        check_header(path, lines)
        self._content, self.kept, bad = finished(self._content[0], lines)
        self._as_it_is = b"".join(self._content) == data
        if bad:
            self._damaged = True
            warnings.warn(
                f"sweep: {path}: {ranges(bad)} damaged, doubled or foreign, and not kept; cases "
                "of this sweep among them are computed again; the file as it is now becomes "
                f"{path}.damaged",
                DamagedFileWarning,
                stacklevel=4,
            )

    def _open(self) -> None:
        """Bring the file to what is kept, in a single step, and open it to append."""
        self._lock.check()
        if not self._as_it_is:
            part = self._place.with_name(f"{self._place.name}.part")
            part.unlink(missing_ok=True)  # of a process that was killed
            try:
                file = os.open(part, _APPEND | os.O_CREAT | os.O_EXCL, 0o666)
                try:
                    _write(file, b"".join(self._content))
                    os.fsync(file)
                finally:
                    os.close(file)
                if self._place.exists():
                    shutil.copymode(self._place, part)
                    if self._damaged:
                        _keep_aside(self._place)
                part.replace(self._place)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            _sync_folder(self._place.parent)
        self._file = os.open(self._place, _APPEND)
        self._size = os.fstat(self._file).st_size

    def _append(self, data: bytes) -> None:
        """Write a line whole or not at all."""
        self._lock.check()
        try:
            same = os.path.samestat(self._place.stat(), os.fstat(self._file))
        except FileNotFoundError:
            same = False
        if not same or os.fstat(self._file).st_size != self._size:
            raise NumsimError(
                f"sweep: {self._path} was moved, replaced or changed while the sweep ran, which "
                "ends it; the rows so far are in the file that was there; leave the file alone and "
                "--resume"
            )
        try:
            _write(self._file, data)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)


def _in_order(cases: Sequence[str], place: Mapping[str, int]) -> list[int]:
    """Return indices that bring cases into their places; those without one stay where they are."""
    slots = [i for i, case in enumerate(cases) if case in place]
    found = list(range(len(cases)))
    for slot, i in zip(slots, sorted(slots, key=lambda i: place[cases[i]]), strict=True):
        found[slot] = i
    return found


def _check_place(path: Path) -> None:
    """Raise NumsimError unless `path` can be written, and replaced; nothing is touched."""
    if "\0" in str(path):
        raise NumsimError("sweep: a file name has no NUL character; name another file")
    check_regular(path, f"sweep: cannot write {path}")
    try:
        if path.is_dir():
            raise NumsimError(f"sweep: {path} is a folder; name a file in it")
        place = Path(os.path.realpath(path))
        for folder in (path.parent, place.parent):
            if not folder.is_dir():
                raise NumsimError(f"sweep: cannot write {path}: there is no folder {folder}")
        if place.exists() and not os.access(place, os.W_OK):
            raise NumsimError(f"sweep: cannot write {path}: permission denied")
    except OSError as error:
        raise NumsimError(f"sweep: cannot write {path}: {error.strerror}") from None
    if not os.access(place.parent, os.W_OK):
        raise NumsimError(
            f"sweep: cannot write {path}: permission denied for the folder {place.parent}, in "
            "which results are written beside and moved into place"
        )


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _keep_aside(place: Path) -> None:
    """Give the file a second name, under which it stays when another takes its place."""
    aside = place.with_name(f"{place.name}.damaged")
    part = place.with_name(f"{place.name}.damaged.part")
    part.unlink(missing_ok=True)
    try:
        os.link(place, part)
    except OSError:  # a file system without links
        shutil.copyfile(place, part)
    part.replace(aside)
    part.unlink(missing_ok=True)  # two names of one file, after a kill: nothing was moved


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows opens no folder
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
