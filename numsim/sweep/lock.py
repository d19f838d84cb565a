"""One writer at a time: a file beside the results that says who writes them."""

from __future__ import annotations

import os
import re
import socket
from datetime import UTC, datetime
from pathlib import Path

from numsim.errors import NumsimError, printable
from numsim.files import check_regular

try:
    import fcntl
except ImportError:  # Windows: only what the file says
    fcntl = None  # type: ignore[assignment]

_HOLDER = re.compile(r"host (?P<host>\S+), process (?P<pid>\d+), since (?P<since>\S+ \S+ UTC)")
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class Lock:
    """The right to write `results`, held from `acquire` to `release`.

    The kernel's lock (flock) ends with the process that holds it, whatever ends that. Where a file
    system has none, the words in the file decide: a process of this machine that is gone has lost
    it, and one of another machine keeps it until somebody removes the file.
    """

    def __init__(self, results: Path, called: Path) -> None:
        self.path = results.with_name(f"{results.name}.lock")
        self._called, self._file = called, -1

    def acquire(self) -> None:
        """Take the lock, or raise NumsimError that says who holds it and how to break it."""
        check_regular(self.path, "sweep")
        for _ in range(100):  # each time, another process was between two steps of its own
            try:
                file, mine = self._open()
            except FileNotFoundError:
                continue
            try:
                if self._is_free(file, mine):
                    self._file = file
                    return
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        raise NumsimError(f"sweep: cannot lock {self._called}: {self.path} comes and goes")

    def check(self) -> None:
        """Take a lock again that somebody removed; raise NumsimError if another holds it now."""
        if not _same(self._file, self.path):
            os.close(self._file)
            self._file = -1
            self.acquire()

    def release(self) -> None:
        """Remove the file, and with it the lock."""
        if self._file < 0:
            return
        try:
            if _same(self._file, self.path):
                self.path.unlink(missing_ok=True)
        except OSError:  # Windows removes no open file
            os.close(self._file)
            self.path.unlink(missing_ok=True)
        else:
            os.close(self._file)
        self._file = -1

    def _open(self) -> tuple[int, bool]:
        try:
            return os.open(self.path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            return os.open(self.path, _FLAGS), False

    def _is_free(self, file: int, mine: bool) -> bool:
        """Return whether the lock is ours now; False: try again."""
        locked = _flock(file)
        found = _HOLDER.search(os.read(file, 1000).decode("utf-8", "replace"))
        here = found is not None and found["host"] == _host()
        if locked is False:
            raise self._held(found)
        if not _same(file, self.path):
            return False  # removed by its holder since it was opened
        if locked is None and not mine:
            if found is None or not here or _runs(int(found["pid"])):
                raise self._held(found)
            self.path.unlink(missing_ok=True)
            return False
        if found is not None and not here:
            raise self._held(found)
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        try:
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.write(file, f"host {_host()}, process {os.getpid()}, since {now}\n".encode())
        except OSError:  # a full disk: nobody is to be stopped by an empty file
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _held(self, found: re.Match[str] | None) -> NumsimError:
        who = "another process"
        if found is not None:
            who = f"process {found['pid']} on {printable(found['host'])}, since {found['since']}"
        return NumsimError(
            f"sweep: {self._called} is being written by {who}; wait for it or name another file, "
            f"or, if it no longer runs, remove {self.path}"
        )


def _flock(file: int) -> bool | None:
    """Return whether the kernel gave the lock; None: it has none for this file system."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _same(file: int, path: Path) -> bool:
    """Return whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _runs(pid: int) -> bool:
    if os.name != "posix" or pid < 1:  # elsewhere signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _host() -> str:
    return re.sub(r"[\s,]", "_", socket.gethostname()) or "unknown"
