"""Every example runs."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
WRITES = {"stall.py": "pages", "worked_example.py": "page.md"}  # elsewhere than in reports/


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_example(path, capsys, monkeypatch, tmp_path):
    own = [str(tmp_path / WRITES[path.name])] if path.name in WRITES else []
    monkeypatch.setattr(sys, "argv", [str(path), *own])
    code = None
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as done:  # an extra is not installed: the example says which
        code = done.code
    assert not code
    assert capsys.readouterr().out
