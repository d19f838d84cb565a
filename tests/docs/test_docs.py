"""The documentation: a block that fails is seen, and pages name only files that are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import run_blocks  # noqa: E402

TOP = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md")
PAGES = [*TOP, *sorted((ROOT / "docs").glob("*.md"))]
GOOD = """
```python
>>> x = 2
```
```python
assert x == 2
```
```toml title="a.toml"
name = "a"
```
```sh
grep -q 'name = "a"' a.toml
```
```console
$ echo one two
one ...
```
"""


def test_blocks_share_names_and_files_down_a_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(GOOD)
    assert run_blocks.run_page(page) == 0
    assert "5 blocks, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "block",
    [
        "```python\n>>> 1 + 1\n3\n```\n",
        "```python\nraise ValueError\n```\n",
        "```sh\nfalse\ntrue\n```\n",
        "```sh\nfalse | true\n```\n",
        "```console\n$ echo one\ntwo\n```\n",
        "```console\n$ echo one; false\none\n```\n",
        '```sh title="install"\nno such command\n```\n',
    ],
)
def test_a_block_that_fails_is_counted(tmp_path, block):
    page = tmp_path / "page.md"
    page.write_text(f"{block}{GOOD}")
    assert run_blocks.run_page(page) == 1


def test_verilog_is_left_out_only_where_the_simulator_is_not_there(tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```sh\niverilog --no-such-option\n```\n")
    monkeypatch.setattr(run_blocks.shutil, "which", lambda name: "/usr/bin/iverilog")
    assert run_blocks.run_page(page) == 1
    monkeypatch.setattr(run_blocks.shutil, "which", lambda name: None)
    assert run_blocks.run_page(page) == 0
    assert "left out, iverilog is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages_name_files_that_are_there(page):
    text = page.read_text(encoding="utf-8")
    # alone, between other words of a command, or in a block
    named = re.findall(r"(?<![\w./-])((?:numsim|tests|docs|examples|reports|\.ci)/[\w./-]*)", text)
    named += [f"numsim/{name}" for name in re.findall(r"`((?:targets|kernels)/[\w.]+)`", text)]
    # RULE.py and numsim-DIGEST stand for names
    named = [re.sub(r"/[a-z-]*[A-Z]+(\.py)?$", "/", name).rstrip(".") for name in named]
    made = ("docs/generated", "numsim/kernels/__pycache__")  # by docs/generate.py and by Numba
    assert not [n for n in named if not n.startswith(made) and not (ROOT / n).exists()]
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    made = ("generated/", "docs/generated/")  # mkdocs --strict looks for those
    assert not [
        name for name in linked if not name.startswith(made) and not (page.parent / name).exists()
    ]


def test_every_page_is_in_the_navigation():
    shown = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert {p.name for p in (ROOT / "docs").glob("*.md")} <= shown


def test_the_rules_of_contributing_name_what_the_code_has():
    """The words in code style that recipes send a reader to."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sources = "\n".join(
        p.read_text(encoding="utf-8")
        for folder in ("numsim", "tests")
        for p in (ROOT / folder).rglob("*.py")
    )
    words = set(re.findall(r"`(_?[A-Za-z][A-Za-z_0-9]{3,})`", text))
    outside = {"ruff", "mypy", "transformers", "frexp", "log2", "_nats", "vVERSION"}
    assert not {word for word in words - outside if not re.search(rf"\b{word}\b", sources)}


def words_of_files(text):
    """Return (word, file) of every "`a` or `b` (or `c`) of `FILE.py`" in a text."""
    chain = r"`\w+`(?: \([^)]*\))?"
    found = re.findall(rf"((?:{chain}(?:, | or | and ))*{chain}),? (?:of|in) `([\w./]+\.py)`", text)
    return [(word, file) for words, file in found for word in re.findall(r"`(\w+)`", words)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_words_are_in_the_file_that_a_page_names(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    where = {file: ROOT / file for _, file in words_of_files(text)}
    where = {k: p if p.exists() else ROOT / "numsim" / k for k, p in where.items()}
    assert not [
        f"{word} is not in {file}"
        for word, file in words_of_files(text)
        if not re.search(rf"\b{word}\b", where[file].read_text(encoding="utf-8"))
    ]


def test_words_of_files_are_found():
    text = (
        "One in `_A` of `x/y.py` (or `B`). `C` or `D`, in `z.py`; `E` and `F` (if `G`) of `w.py`."
    )
    assert words_of_files(text) == [
        ("_A", "x/y.py"), ("C", "z.py"), ("D", "z.py"), ("E", "w.py"), ("F", "w.py"), ("G", "w.py"),
    ]  # fmt: skip
