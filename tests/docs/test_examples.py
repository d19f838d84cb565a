"""Every example runs."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
# Arguments for a short run that writes elsewhere than in reports/.
WRITES = {
    "stall.py": ["pages"], "worked_example.py": ["page.md"],
    "gallery.py": ["pages", "255", "fp8-units"],
    "training_pages.py": ["classifier", "pages", "1", "2"],
    "operators.py": ["--windows", "2", "--only", "rotary", "--out", "pages"],
    "networks.py": ["page.md"], "vectors.py": ["pages"],
    "four_bits.py": ["--windows", "2", "--only", "HiF4", "--out", "pages"],
}  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_example(path, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), *WRITES.get(path.name, [])])
    code = None
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as done:  # an extra is not installed: the example says which
        code = done.code
    assert not code
    assert capsys.readouterr().out


def test_one_window_has_no_standard_error(capsys, monkeypatch):
    path = next(p for p in EXAMPLES if p.name == "operators.py")
    monkeypatch.setattr(sys, "argv", [str(path), "--windows", "1", "--only", "rotary"])
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("rotary") for line in lines) == 3
    assert not any("nan" in line or "±" in line for line in lines)


def test_the_gallery_makes_every_folder_of_reports():
    path = next(p for p in EXAMPLES if p.name == "gallery.py")
    found = runpy.run_path(str(path))
    made = set(found["PAGES"]) | set(found["SCRIPTS"])
    folders = {p.name for p in found["REPORTS"].iterdir() if p.is_dir()}
    assert folders - made == {"probes"}
    assert "Only reports/probes" in found["__doc__"]
