"""What is compiled is kept under a name that changes with every source; no file there can hurt."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numsim as ns
from numsim.kernels import cache, jit

pytestmark = pytest.mark.slow  # processes, whole sweeps, kernels compiled again

PACKAGE = Path(ns.__file__).parent
PROGRAM = """
import sys
import numpy as np
import numsim as ns
from numsim.dispatch import exact, workers
from numsim.kernels.convert import codec
x = np.array([1.0625, 1.1875, 1.3, -1.7])  # two ties of E4M3 first
f, codes = ns.get_format("e4m3"), np.empty(4, np.uint8)
plan = workers.Plan(0, 0, 64, 0, 0, 0, f.nan_code)
exact.generic(f, plan)(x, codes, 0, workers.NO_RANDOM)  # the kernel of every format
sys.stdout.write(repr((
    ns.__file__,
    codes.tolist(),
    ns.encode(x, "e4m3", rounding="sr", seed=3).tolist(),
    sum(codec.encode_float64.stats.cache_hits.values()),
)))
"""
# 1.0625 is half way from 1 to 1.125, 1.1875 from 1.125 to 1.25: to even, 1 and 1.25. 1.3 is next
# to 1.25, 1.7 to 1.75. A code: eight times (exponent plus 7) plus eighths
NEAREST = [0x38, 0x3A, 0x3A, 0xBE]


def _run(folder: Path, **environment: str) -> tuple[list[int], list[int], int]:
    """Run the program on the package in a folder; return both lists of codes, and the hits."""
    known = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], cwd=folder, capture_output=True, text=True,
        env=known | {"PYTHONPATH": str(folder)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    where, nearest, drawn, hits = ast.literal_eval(done.stdout)
    assert Path(where).parent.parent == folder
    return nearest, drawn, hits


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "numsim", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def _edit(copy: Path, name: str, old: str, new: str) -> None:
    path = copy / "numsim" / "kernels" / name
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_an_edited_helper_changes_the_bits_of_a_warm_cache(copy):
    nearest, drawn, hits = _run(copy)
    assert (nearest, hits) == (NEAREST, 0)
    assert _run(copy) == (nearest, drawn, 1)  # unchanged: nothing is compiled

    tie = "up = rem > half or (rem == half and odd and shift <= 64)"
    _edit(copy, "convert/round.py", tie, "up = rem > half")  # ties toward zero: 1 and 1.125
    assert _run(copy) == ([0x38, 0x39, 0x3A, 0xBE], drawn, 0)

    _edit(copy, "convert/round.py", "up = rem > half", tie)
    _edit(copy, "convert/philox.py", "0xD256D193", "0xD256D195")  # another stream
    nearest, other, hits = _run(copy)
    assert (nearest, hits) == (NEAREST, 0)
    assert other != drawn

    _edit(copy, "convert/philox.py", "0xD256D195", "0xD256D193")
    assert _run(copy) == (NEAREST, drawn, 1)  # what the first text gave is still there


def test_folders_that_cannot_be_used_are_no_error(copy):
    _, drawn, _ = _run(copy)
    kept = next((copy / "numsim" / "kernels" / "__pycache__").glob("numsim-*"))
    files = sorted(kept.glob("*.nbc"))
    assert files

    for i, path in enumerate(files):  # cut, garbage, empty: compiled again, and mended
        data = path.read_bytes()
        path.write_bytes((data[: len(data) // 2], b"garbage" * 99, b"")[i % 3])
    assert _run(copy) == (NEAREST, drawn, 0)
    assert _run(copy) == (NEAREST, drawn, 1)

    blocked = copy / "file"
    blocked.write_text("no folder")
    assert _run(copy, NUMBA_CACHE_DIR=str(blocked)) == (NEAREST, drawn, 0)
    assert not [p for p in kept.iterdir() if p.suffix == ".tmp"]


def test_the_users_folder_serves_where_the_sources_cannot_be_written(copy):
    folder = copy / "numsim" / "kernels" / "__pycache__"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_text("in the way, also for root")
    home = {"XDG_CACHE_HOME": str(copy / "home"), "HOME": str(copy / "home")}
    first = _run(copy, **home)
    assert first[2] == 0
    assert _run(copy, **home) == (*first[:2], 1)


# ---------------------------------------------------------------------------- within this process


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep what is compiled in a folder of the test's own."""
    folder = tmp_path / "numsim-0123"
    monkeypatch.setattr(cache, "folders", lambda: (folder,))
    yield folder
    cache._tidy.cache_clear()
    cache._use.cache_clear()


def add(a: np.ndarray, b: int) -> int:
    return int(a[0]) + b


def _fresh() -> Any:
    return jit.kernel(add)


def _hits(kernel: Any) -> int:
    return sum(kernel.stats.cache_hits.values())


def test_each_signature_is_kept_by_itself(kept):
    first = _fresh()
    assert first(np.ones(1, np.int64), 2) == 3
    assert first(np.ones(1, np.float32), 2) == 3
    assert len(list(kept.iterdir())) == 2
    second = _fresh()
    assert second(np.ones(1, np.float32), 4) == 5
    assert _hits(second) == 1


def test_a_file_of_another_signature_is_not_taken(kept):
    first = _fresh()
    first(np.ones(1, np.int64), 2)
    name = next(kept.iterdir())
    content = name.read_bytes()
    first(np.full(1, 1.5, np.float64), 2)
    other = next(p for p in kept.iterdir() if p != name)
    other.write_bytes(content)  # as if two names collided
    second = _fresh()
    assert second(np.full(1, 1.5, np.float64), 2) == 3
    assert _hits(second) == 0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13)])
def test_a_full_folder_is_no_error_and_keeps_nothing_half_written(kept, monkeypatch, error):
    def write(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:100])
        raise error

    monkeypatch.setattr(Path, "write_bytes", write)
    kernel = _fresh()
    assert kernel(np.ones(1, np.int64), 2) == 3
    assert not list(kept.iterdir())


def test_a_folder_that_vanishes_is_made_again(kept):
    kernel = _fresh()
    kernel(np.ones(1, np.int64), 2)
    shutil.rmtree(kept)
    kernel(np.ones(1, np.int32), 2)
    assert len(list(kept.iterdir())) == 1


def test_only_a_few_generations_stay(kept):
    for i in range(9):
        old = kept.with_name(f"numsim-old{i}")
        old.mkdir()
        os.utime(old, (1000 + i, 1000 + i))
    left = kept / "x.nbc.1234.tmp"
    kept.mkdir()
    left.write_text("of a writer that was killed")
    os.utime(left, (1000, 1000))
    _fresh()(np.ones(1, np.int64), 2)
    names = sorted(p.name for p in kept.parent.glob("numsim-*"))
    assert names == ["numsim-0123", "numsim-old6", "numsim-old7", "numsim-old8"]
    assert len(list(kept.iterdir())) == 1


def test_nothing_is_kept_once_a_source_changed_under_the_process(kept, monkeypatch):
    monkeypatch.setattr(cache, "sources_digest", lambda: "other")
    assert _fresh()(np.ones(1, np.int64), 2) == 3
    assert not kept.exists()


def test_several_writers_at_once(kept):
    content = [bytes([i]) * 100_000 for i in range(8)]
    path = kept / "same.nbc"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda c: [cache._write(path, c) for _ in range(20)], content))
    assert cache._read(path) in content
    assert len(list(kept.iterdir())) == 1


def test_the_digest_names_versions_settings_and_every_source(monkeypatch):
    before = cache.sources_digest()
    assert before == cache.DIGEST
    changes: list[tuple[object, str, object]] = [
        (cache, "__version__", "9"), (cache.numba, "__version__", "9"),
        (cache.llvmlite, "__version__", "9"), (cache._CONFIG, "BOUNDSCHECK", 1),
    ]  # fmt: skip
    for where, name, value in changes:
        with monkeypatch.context() as m:
            m.setattr(where, name, value)
            assert cache.sources_digest() != before
    assert cache.sources_digest() == before


def test_the_processor_is_in_the_name():
    class Codegen:
        def __init__(self, features: str) -> None:
            self.features = features

        def magic_tuple(self) -> tuple[str, ...]:
            return ("x86_64", "znver3", self.features)

    names = {cache.KernelCache(add)._file_name((), Codegen(f)) for f in ("+avx2", "-avx2")}
    assert len(names) == 2


def test_one_word_before_the_first_compilation(kept):
    said = []
    cache.before_compiling(lambda: said.append(len(list(kept.parent.glob("*/*.nbc")))))
    kernel = _fresh()
    kernel(np.ones(1, np.int64), 2)
    kernel(np.ones(1, np.int32), 2)
    assert said == [0]
    cache.before_compiling(lambda: said.append("again"))
    _fresh()(np.ones(1, np.int64), 2)  # it is on disk
    assert said == [0]
    cache._waiting.clear()


def test_a_kernel_with_a_closure_is_refused():
    n = 3

    def shifted(a: int) -> int:
        return a + n

    with pytest.raises(TypeError, match="closure"):
        jit.kernel(shifted)


def _cli(*words: str, **environment: str) -> Callable[[], Any]:
    return lambda: subprocess.run(
        [sys.executable, "-m", "numsim.cli", *words], capture_output=True, text=True,
        env=os.environ | environment,
    )  # fmt: skip


def test_the_command_line_says_that_it_compiles_on_stderr_and_once(tmp_path):
    run = _cli("cast", "1.3", "--to", "e4m3", NUMBA_CACHE_DIR=str(tmp_path))
    cold, warm = run(), run()
    assert cold.stderr == "numsim: compiling what this needs, once for this processor\n"
    assert warm.stderr == ""
    assert cold.stdout == warm.stdout != ""


def test_without_the_compiler_numsim_says_so_at_once():
    done = _cli("cast", "1.3", "--to", "e4m3", NUMBA_DISABLE_JIT="1")()
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "numsim: kernels run as compiled code only, and NUMBA_DISABLE_JIT is set; unset it\n"
    )
