"""The executed pages in reports/training are what their examples make."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_worked_example_is_as_checked_in():
    kept = (ROOT / "reports" / "training" / "worked_example.md").read_text()
    assert example("worked_example").page() == kept


def test_the_page_of_stalls_is_as_checked_in(tmp_path):
    page = example("stall").page(tmp_path)
    assert page.read_text() == (ROOT / "reports" / "training" / "stall.md").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"stall.md", "stall.png", "underflow.png"}


def test_a_stall_by_hand():
    # step of E4M3 at 1.0 is 1/8; 1/64 is less than half of it
    means = example("stall").stall()
    assert means["rne"] == [1.0] * 65
    assert means["sr"][-1] == pytest.approx(2.0, abs=4 * (64 * 7 / 64 / 64 / 256) ** 0.5)
