"""Published figures: every row has its computation, and a moved figure is an error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.verify.published import check_published, published_rows, rows, stored_rows

QUICK = ("format", "p3109", "e8m0", "int_fp", "bdr", "width", "int", "harmonic", "sr.", "bits",
         "midrise", "a2q", "kulisch")  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_there_are_203_rows():
    assert len(published_rows()) == len({row["id"] for row in stored_rows()}) == 203


@pytest.mark.parametrize("head", QUICK)
def test_counted_figures_hold(head):
    found = list(check_published(head))
    assert found
    for row in found:
        assert row.holds, row
        assert row.agrees == next(r for r in stored_rows() if r["id"] == row.id)["agrees"]


@pytest.mark.slow
def test_every_figure_holds():
    assert [row.id for row in check_published() if not row.holds] == []


def test_the_best_clip_is_that_of_a_plain_grid():
    """INT8 of N(0,1) by numerical integration: an independent path to 40.54 dB."""
    x = np.linspace(-9, 9, 400_001)
    p = np.exp(-x * x / 2)
    best = min(
        float((p * (x - np.clip(np.rint(x / c * 127), -127, 127) * c / 127) ** 2).sum() / p.sum())
        for c in np.linspace(3.6, 4.2, 31)
    )
    (row,) = check_published("opt.normal.int8")
    assert row.computed == pytest.approx(-10 * np.log10(best), abs=0.005)


def test_rows_that_differ_from_their_source_are_shown_with_the_reason():
    done = run("verify", "published", "--only", "int_fp.nv4")
    assert done.exit_code == 0
    assert "differs: int_fp.nv4.kappa.rho1.0" in done.output
    assert "does not reproduce with the stated rho = 1" in done.output
    assert "4 figures: 2 agree, 2 differ, as said above, 0 new here; 0 moved" in done.output


def test_a_figure_that_moves_is_an_error(monkeypatch):
    changed = json.loads(json.dumps(stored_rows()))
    changed[0]["computed"] = 449.0
    monkeypatch.setattr(rows, "stored_rows", lambda: changed)
    done = run("verify", "published", "--only", "format.e4m3.max")
    assert done.exit_code == 1
    assert "MOVED: format.e4m3.max was 449 and is 448" in done.output


def test_a_beginning_that_no_figure_has():
    with pytest.raises(ns.NumsimError, match=r"no figure begins with 'opd'.*opt"):
        published_rows("opd")
    assert isinstance(run("verify", "published", "--formats", "int8").exception, ns.NumsimError)
