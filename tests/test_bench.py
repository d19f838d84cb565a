"""numsim bench: it runs and its ratios are of one run (no test asserts a speed)."""

from __future__ import annotations

import math

from typer.testing import CliRunner

from numsim.bench import bench_cast
from numsim.bench import cast as module
from numsim.cli import app


def test_rows():
    rows = bench_cast(elements=1 << 12, repeats=2)
    copy = rows[0]
    assert copy.task == "copy float32"
    assert math.isnan(copy.ratio)
    tasks = {row.task for row in rows[1:]}
    assert len(tasks) == 7
    for task in tasks:
        mine = [row for row in rows if row.task == task]
        assert [row.library for row in mine[:2]] == ["numsim", "numsim out="]
        for row in mine:
            assert row.rate > 0
            base = mine[1] if row.library.startswith("numsim out=") else mine[0]
            assert row.ratio == base.rate / row.rate
            assert row.of_bound == row.rate / (copy.rate * 8 / 5)
    assert any(row.library == "ml_dtypes" for row in rows)


def test_the_command(monkeypatch):
    monkeypatch.setattr(
        "numsim.bench.bench_cast", lambda: module.bench_cast(elements=64, repeats=1)
    )
    result = CliRunner().invoke(app, ["bench", "cast"])
    assert result.exit_code == 0, result.output
    assert "ml_dtypes" in result.output
