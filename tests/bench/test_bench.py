"""numsim bench: it runs and its ratios are of one run (no test asserts a speed)."""

from __future__ import annotations

import importlib.util
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from numsim import bench as timers
from numsim.bench import TrainTiming, bench_cast, bench_matmul, bench_train, report
from numsim.bench import cast as module
from numsim.bench import model as models
from numsim.bench.matmul import MatmulTiming
from numsim.bench.quantize import TASKS, bench_quantize
from numsim.cli import app
from numsim.errors import NumsimError
from numsim.models import load_model

pytestmark = pytest.mark.slow  # processes, whole sweeps, kernels compiled again

TOY = models.Size("toy", 2, 64, 4, 96, 128, tokens=16, threads=1, repeats=2)


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


def test_the_network_that_is_timed(tmp_path):
    arch = models.write_llama(tmp_path, TOY)
    row = models.run_llama(tmp_path, TOY, "numsim")
    per_layer = 4 * 64 * 64 + 3 * 64 * 96 + 2 * 16 * 64  # linears, then attention
    macs = 16 * (2 * per_layer + 128 * 64)
    assert row.rate == macs / row.seconds / 1e9
    assert 0 < row.outside < 1
    assert row.of_products > 0
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 96) + 128 * 64 + 5 * 64
    assert row.of_weights == row.peak_bytes / (2 * weights)
    assert arch.tied


def test_the_sizes_are_those_they_are_named_after():
    parameters = [
        s.layers * (4 * s.hidden**2 + 3 * s.hidden * s.intermediate) for s in models.SIZES
    ]
    assert round((parameters[0] + 32_000 * 768) / 1e6) == 110
    assert round(parameters[1] * 32 / 1e9, 1) == 6.5  # of 32 layers; the ends make it 7


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is a peer")
def test_torch_runs_the_same_network(tmp_path):
    models.write_llama(tmp_path, TOY)
    model = load_model(tmp_path)
    tokens = np.arange(16)
    theirs = models._torch(model, tokens, 1)().numpy()
    np.testing.assert_allclose(theirs, model.run(tokens).logits[0], atol=1e-5)


def test_the_command_for_networks(monkeypatch):
    monkeypatch.setattr("numsim.bench.bench_model", lambda: models.bench_model((TOY,), peers=False))
    result = CliRunner().invoke(app, ["bench", "model"])
    assert result.exit_code == 0, result.output
    assert "toy" in result.output
    assert all(name in result.output for name in models.RECIPES)


def test_the_command_times_training_steps(monkeypatch):
    row = TrainTiming("Adam, stored", 1.5, 0.25, "of a copy's rate")
    monkeypatch.setattr("numsim.bench.bench_train", lambda: [row])
    result = CliRunner().invoke(app, ["bench", "train"])
    assert result.exit_code == 0, result.output
    assert "Adam, stored" in result.output
    assert "0.25 x of a copy's rate" in result.output


@pytest.mark.parametrize("terminal", ["40", "80", "200"])
def test_tables_of_timings_are_a_line_a_row_and_cut_no_number(terminal, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", terminal)
    products = [
        MatmulTiming(
            "blocks of 32, MXFP8 on tcgen05", who, (1, 4096, 4096), 1234.567, 12.3456, 0.416
        )
        for who in ("NumPy BLAS", "numsim", "numsim avx2")
    ]
    timers.print_matmul(products)
    lines = capsys.readouterr().out.splitlines()
    # title, heading, rows, what the columns are, the ratio to the peer
    assert len(lines) == 2 + len(products) + 3 + 1
    for line, row in zip(lines[2:], products, strict=False):
        assert line.startswith("blocks of 32, MXFP8 on tcgen05 ")
        assert row.library in line
        assert line.split()[-4:] == ["1x4096x4096", "1,234.57", "12.346", "0.42"]
    if terminal == "80":
        assert max(map(len, lines)) <= 80
    network = models.ModelTiming(
        "a task", "numsim", 2, 123.456, 7.654321, 99.5, 0.25, 1.5, 2e9, 3.21
    )
    peer = replace(network, library="torch float32", seconds=7.654321 / 4)
    timers.print_model([network, peer])
    heading, row = capsys.readouterr().out.splitlines()[1:3]
    assert heading.split()[-1] == "float16"
    assert row.split()[2:] == [
        "numsim", "2", "123.46", "s", "7.654", "4.00", "99.50", "25%", "1.50", "2,000", "MB",
        "3.21",
    ]  # fmt: skip


def test_report(monkeypatch):
    found = report.bench_report(limit_tokens=16, rows=800, cases=30)
    names = ["default sweep", "1,504 rows", "30 cases"]
    assert list(dict.fromkeys(row.file for row in found)) == names
    for name in names:
        tasks = ["build", "page"]
        if report.chromium() is not None:
            tasks += ["first paint", "usable", "a key in the search"]
        mine = [row for row in found if row.file == name]
        assert [row.task for row in mine] == tasks
        assert all(row.value > 0 for row in mine)
    monkeypatch.setattr(report, "bench_report", lambda: found)
    monkeypatch.setattr(report, "chromium", lambda: None)
    result = CliRunner().invoke(app, ["bench", "report"])
    assert result.exit_code == 0, result.output
    assert re.search(r"30 cases +page +\d+\.\d\d MB +6\.00 MB", result.output)
    assert "need Chromium" in result.output


def test_quantisation_is_compared_with_what_was_timed_before():
    known = set()
    for task in TASKS:
        assert task.of in known | {""}, task
        known.add(task.name)
    rows = bench_quantize(side=128, repeats=1, tasks=TASKS[:3])
    assert [row.task for row in rows] == [
        *(task.name for task in TASKS[:3]), "copy", "Hadamard of 128"
    ]  # fmt: skip
    assert all(row.rate > 0 and row.of_copy > 0 for row in rows)


@pytest.mark.parametrize("repeats", [0, -1, 1.5, True, "3", None])
@pytest.mark.parametrize("timer", [bench_cast, bench_matmul, bench_quantize, bench_train])
def test_calls_are_counted_in_positive_integers(timer, repeats):
    with pytest.raises(NumsimError, match="repeats is a positive integer; got"):
        timer(repeats=repeats)
