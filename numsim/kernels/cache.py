"""Machine code kept on disk, under a name that changes with everything that it was made from.

Numba's own cache looks at the file of an entry point only, though most of its code comes from
helpers in other files, and it keeps an index that two processes can mix up. Here each compiled
function is one file, named by a digest, written beside and moved into place, and checked when read.
No trouble with such a file is an error: the function is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from numsim.version import __version__

_CONFIG: Any = numba.config
_REBUILD: Any = CompileResult._rebuild
_DUMPS: Any = dumps
_USER: Any = AppDirs
_OPTIONS = ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE")
KEPT = 4  # generations of a folder: what other Pythons, versions and edits compiled
_OLD = 3600  # seconds after which an unfinished file has no writer any more
_waiting: list[Callable[[], object]] = []


def sources_digest() -> str | None:
    """Return a digest of what compiled kernels are made from, None where no source is there.

    It takes in all sources of the kernels, the versions of numsim and of the compilers, and
    settings that change the code. The processor stands in the name of each file.
    """
    found = hashlib.sha256()
    versions = (__version__, numba.__version__, llvmlite.__version__, np.__version__, sys.version)
    settings = [getattr(_CONFIG, name, None) for name in _OPTIONS]
    found.update(repr((versions, settings, os.environ.get("NUMSIM_SIMD"))).encode())
    try:
        sources = sorted(_sources(files("numsim.kernels"), ""))
        for name, code in sources:
            found.update(f"{name} {len(code)}\n".encode())
            found.update(code)
    except OSError:
        return None
    return found.hexdigest() if sources else None


def _sources(folder: Traversable, inside: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name and text of each source in a folder and in the folders inside it."""
    for entry in folder.iterdir():
        name = f"{inside}{entry.name}"
        if entry.name.endswith(".py"):
            yield name, entry.read_bytes()
        elif entry.is_dir() and entry.name != "__pycache__":
            yield from _sources(entry, f"{name}/")


DIGEST = sources_digest()  # while this is imported, as the kernels' modules are: of the same files


def before_compiling(say: Callable[[], object]) -> None:
    """Call `say` once, before the first function that no file holds is compiled."""
    _waiting[:] = [say]


class KernelCache(NullCache):
    """The compiled forms of one function, in the folders that `folders` names."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = (
            f"{function.__module__.removeprefix('numsim.kernels.')}.{function.__qualname__}"
        )
        self._line = function.__code__.co_firstlineno

    @property
    def cache_path(self) -> str | None:
        """The first folder, for Numba's statistics."""
        return next((str(folder) for folder in folders()), None)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled for a signature, None where it must be compiled."""
        target_context.refresh()
        name = self._file_name(sig, target_context.codegen())
        for folder in folders():
            with contextlib.suppress(Exception):  # whatever a damaged or foreign file brings
                known, parts = pickle.loads(_read(folder / name))
                if known == sig:
                    found = _REBUILD(target_context, *parts)
                    _use(folder)
                    return found
        if _waiting:
            _waiting.pop()()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled form in the first folder that takes it, if the sources still stand."""
        if DIGEST is None or data.library.has_dynamic_globals or data.lifted:
            return
        with contextlib.suppress(OSError):
            if sources_digest() != DIGEST:  # edited since: which text was imported is unknown
                return
            name = self._file_name(sig, data.codegen)
            content = _DUMPS((sig, data._reduce()))
            for folder in folders():
                if _write(folder / name, content):
                    return

    def _file_name(self, sig: Any, codegen: Any) -> str:
        key = repr((str(sig), codegen.magic_tuple(), self._line))
        return f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.nbc"


@cache
def folders() -> tuple[Path, ...]:
    """Return where files of this digest may lie, the preferred folder first.

    ``NUMBA_CACHE_DIR`` alone where it is set; else the sources' ``__pycache__`` and the user's
    folder for caches, for an installation that only others may write.
    """
    if DIGEST is None:
        return ()
    if _CONFIG.CACHE_DIR:
        parents = [Path(_CONFIG.CACHE_DIR).absolute()]
    else:
        user = _USER(appname="numsim", appauthor=False).user_cache_dir
        parents = [Path(__file__).parent / "__pycache__", Path(user)]
    return tuple(p / f"numsim-{DIGEST[:16]}" for p in parents if p.is_absolute())


def _read(path: Path) -> bytes:
    """Return a file's content; raise ValueError where it is not what was written."""
    check, content = (data := path.read_bytes())[:32], data[32:]
    if hashlib.sha256(content).digest() != check:
        raise ValueError(f"{path} is damaged")
    return content


def _write(path: Path, content: bytes) -> bool:
    """Write a file beside its place and move it there; return whether that was possible."""
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _tidy(path.parent)
        try:
            beside.write_bytes(hashlib.sha256(content).digest() + content)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError:
        return False
    return True


@cache
def _use(folder: Path) -> None:
    """Mark a generation as in use."""
    with contextlib.suppress(OSError):
        os.utime(folder)


@cache
def _tidy(folder: Path) -> None:
    """Remove all but the newest generations beside a folder, and what killed writers left."""
    for generation in sorted(folder.parent.glob("numsim-*"), key=_changed, reverse=True)[KEPT:]:
        shutil.rmtree(generation, ignore_errors=True)
    for left in folder.glob("*.tmp"):
        if _changed(left) < time.time() - _OLD:
            left.unlink(missing_ok=True)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0
