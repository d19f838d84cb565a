"""What the README shows of the command line is what the program prints."""

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
_SPACE = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def sessions(text):
    """Return (command, output shown) of every line ``$ numsim ...`` in a block ``console``."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append((command, shown))
    return found


def agrees(shown, printed):
    """Whether a text is what was printed; ``...`` stands for lines that are left out."""
    return doctest.OutputChecker().check_output(shown, printed, _SPACE)


# times, and what depends on the machine
TIMED = ("numsim bench", "numsim verify")


@pytest.mark.parametrize(
    ("command", "shown"), [pair for pair in sessions(README) if not pair[0].startswith(TIMED)]
)
def test_the_readme_shows_what_is_printed(command, shown, tmp_path):
    program, *arguments = shlex.split(command)
    assert program == "numsim"
    done = subprocess.run(
        [sys.executable, "-m", "numsim.cli", *arguments], capture_output=True, text=True,
        cwd=tmp_path, env=os.environ | {"COLUMNS": "80"}, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert agrees(shown, done.stdout), done.stdout


def test_sessions_are_found_and_compared():
    text = (
        "x\n```console\n$ numsim -V\nnumsim 0.1\n$ numsim cast 1\na\n...\nd\n```\n```sh\n$ no\n```"
    )
    assert sessions(text) == [("numsim -V", "numsim 0.1\n"), ("numsim cast 1", "a\n...\nd\n")]
    assert agrees("a\n...\nd\n", "a\nb\nc\nd\n")
    assert not agrees("a\n...\nd\n", "a\nb\nc\n")
