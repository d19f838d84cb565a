"""Run every Python and shell block of the documentation's pages; a failure fails the build.

    python docs/run_blocks.py [PAGE.md ...]

Each page has an empty folder of its own, in which its blocks run in the order of the page:

- ``python``: as a doctest where the block has ``>>>``, else as a script; names last for the page.
- ``sh``: by bash, which stops at the first error. ``console``: each ``$ command``, and its output
  is compared with what follows, where ``...`` stands for anything.
- ``toml``, ``verilog`` and ``json`` blocks with a title are written to the file of that name first.
- ``sh`` with the title "install" is not run here: it is a command of the README, which CI runs.

A ``sh`` block that names iverilog is left out where that program is not installed, and said so.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LIKE = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its title and where it stands."""

    language: str
    title: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found = []
    for match in FENCE.finditer(page):
        title = re.search(r'title="([^"]*)"', match[2])
        line = page.count("\n", 0, match.start()) + 1
        found.append(Block(match[1], title[1] if title else "", match[3], line))
    return found


def environment() -> dict[str, str]:
    """Return the environment of commands: this Python's programs first, 80 columns."""
    programs = Path(sys.executable).parent
    return os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "80"}


def shell(text: str) -> subprocess.CompletedProcess[str]:
    """Run a text by bash, which stops at the first error."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True,
        env=environment(), timeout=300, check=False,
    )  # fmt: skip


def run_python(block: Block, names: dict[str, Any], page: str) -> str:
    """Run one block; return what went wrong."""
    if ">>>" in block.text:
        test = doctest.DocTestParser().get_doctest(block.text, names, page, page, block.line)
        runner, said = doctest.DocTestRunner(optionflags=LIKE, verbose=False), io.StringIO()
        runner.run(test, out=said.write, clear_globs=False)
        names.update(test.globs)
        return said.getvalue()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile("\n" * block.line + block.text, page, "exec"), names)
    except Exception:
        return traceback.format_exc()
    return ""


def run_console(block: Block) -> str:
    """Run each command of a session and compare; return what went wrong."""
    wrong = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        done = shell(command)
        if done.returncode or not doctest.OutputChecker().check_output(shown, done.stdout, LIKE):
            wrong.append(f"$ {command}\nprinted:\n{done.stdout}{done.stderr}")
    return "\n".join(wrong)


def run_block(block: Block, names: dict[str, Any], page: str) -> str:
    """Run or write one block; return what went wrong."""
    if block.language == "python":
        return run_python(block, names, page)
    if block.language == "console":
        return run_console(block)
    if block.language in ("toml", "verilog", "json") and block.title:
        Path(block.title).write_text(block.text, encoding="utf-8")
    if block.language == "sh":
        if block.title == "install":
            known = README.read_text(encoding="utf-8")
            return "" if block.text.strip() in known else "the README has no such command"
        if "iverilog" in block.text and shutil.which("iverilog") is None:
            sys.stdout.write(f"{page}:{block.line}: left out, iverilog is not installed\n")
            return ""
        done = shell(block.text)
        if done.returncode:
            return f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return ""


def run_page(path: Path) -> int:
    """Run a page in a folder of its own; return how many blocks failed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    failed, start = 0, time.perf_counter()
    found = blocks(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in found:
            wrong = run_block(block, names, path.name)
            if wrong:
                failed += 1
                sys.stdout.write(f"{path.name}:{block.line}: {block.language} failed\n{wrong}\n")
    seconds = time.perf_counter() - start
    sys.stdout.write(f"{path.name}: {len(found)} blocks, {failed} failed, {seconds:.1f} s\n")
    return failed


if __name__ == "__main__":
    pages = [Path(name).resolve() for name in sys.argv[1:]] or [
        *sorted(DOCS.glob("*.md")),
        DOCS / "generated" / "course.md",
    ]
    sys.exit(1 if sum([run_page(page) for page in pages]) else 0)
