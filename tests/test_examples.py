"""Every example runs."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_example(path, capsys):
    code = None
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as done:  # an extra is not installed: the example says which
        code = done.code
    assert not code
    assert capsys.readouterr().out
