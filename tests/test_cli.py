"""The command line: exit codes, one clear sentence on stderr, nothing half-written."""

import os
import signal
import subprocess
import sys
import time

import pytest

from numsim.models import Recipe

SHORT = ["--limit-tokens", "100", "--formats", "int8", "--targets", "ideal.int"]


def numsim(*args, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "numsim.cli", *map(str, args)],
        capture_output=True, text=True, cwd=cwd, timeout=300, check=False,
    )  # fmt: skip


def test_sweep_then_report(tmp_path):
    done = numsim("sweep", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    assert "94 rows in results.csv" in done.stderr
    made = numsim("report", "results.csv", "-o", "out", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "out" / "report.md").is_file()


def test_sweep_of_recipes(tmp_path):
    (tmp_path / "mine.toml").write_text(
        '[[rule]]\nmatch = "*"\n[[rule]]\nmatch = "*.down_proj"\nweights = "int8"\n'
    )
    done = numsim("sweep", "--recipes", "mine.toml", "--limit-tokens", "100", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
    assert "47 rows in results.csv" in done.stderr
    made = numsim("report", "results.csv", "-o", "out", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "down_proj" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--recipes", "missing.toml"], "missing.toml"),
        (["--model", "missing"], "missing"),
        (["--formats", "int8,e4m33"], "unknown format 'e4m33'"),
        (["--targets", "ideal.fp23"], "did you mean ideal.fp32"),
        (["--text", "missing.txt"], "missing.txt"),
        (["--out", "missing/r.csv"], "no folder missing"),
        (["--out", "."], "is a folder"),
        (["--config", "missing.toml"], "cannot read missing.toml"),
        (["--granularity", "per_row"], "granularity is one of"),
        (["--limit-tokens", "0"], "limit_tokens"),
        (["--memory-limit", "9" * 320], "memory_limit: a positive number of bytes below 2**63"),
        (["--memory-limit", "9" * 5000], "... (5002 characters)"),
        (["--scheduler", "nowhere"], "no dask scheduler answers at 'nowhere'"),
        (["--text", "/dev/zero"], "/dev/zero is a device, not a file; name a file"),
        (["--out", "/dev/null"], "cannot write /dev/null: /dev/null is a device, not a file"),
        (["--text", "a\x1b[31m.txt"], r"a\x1b[31m.txt"),
        (["--resume", "--force"], "got both; give one"),
    ],
)
def test_bad_arguments(args, words, tmp_path):
    done = numsim("sweep", *SHORT, *args, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_report_of_a_missing_file(tmp_path):
    done = numsim("report", "missing.csv", "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "missing.csv" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_unknown_command_and_version():
    assert numsim("swep").returncode == 2
    assert numsim("--version").stdout.startswith("numsim ")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_leaves_the_rows(tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-m", "numsim.cli", "sweep"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    out = tmp_path / "results.csv"
    for _ in range(1200):
        if out.exists() and "\n" in out.read_text() and ",all," in out.read_text():
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in errors
    assert "--resume" in errors
    assert ",all," in out.read_text()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_before_the_first_row_names_no_file_that_is_not_there(tmp_path):
    out = tmp_path / "results.csv"
    for before in (None, b"case_id,an older file\n1f,2\n"):
        if before is not None:
            out.write_bytes(before)
        run = subprocess.Popen(
            [sys.executable, "-m", "numsim.cli", "sweep", "--force"],
            cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        lock = tmp_path / "results.csv.lock"
        while not (lock.exists() and "process" in lock.read_text()):
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
        assert run.returncode == 130
        assert errors.strip() == (
            "numsim: interrupted; no row had been computed, and no file was written or changed"
        )
        assert (out.read_bytes() if out.exists() else None) == before
        assert not lock.exists()


def test_an_existing_file_is_replaced_only_by_force(tmp_path):
    out = tmp_path / "results.csv"
    assert numsim("sweep", *SHORT, cwd=tmp_path).returncode == 0
    before = out.read_bytes()
    done = numsim("sweep", *SHORT, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    for words in ("results.csv exists", "--resume", "--force"):
        assert words in done.stderr
    assert out.read_bytes() == before
    done = numsim("sweep", *SHORT, "--resume", cwd=tmp_path)
    assert done.returncode == 0
    assert out.read_bytes() == before
    short = ["--limit-tokens", "40", "--formats", "int4", "--granularity", "per_tensor"]
    done = numsim("sweep", *short, "--targets", "ideal.int", "--force", cwd=tmp_path)
    assert done.returncode == 0
    assert "47 rows in results.csv" in done.stderr


def test_a_grid_and_recipes_share_a_table(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(Recipe.uniform("int8", target="ideal.int").to_toml())
    options = ["--formats", "int8", "--granularity", "per_tensor", "--targets", "ideal.fp32"]
    options += ["--limit-tokens", "40", "--out", "r.csv"]
    done = numsim("sweep", *options, "--recipes", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
    options += ["--force"]
    done = numsim("sweep", *options, "--recipes", f"{recipe},{recipe}", cwd=tmp_path)
    assert done.returncode == 2
    assert "name the same rules" in done.stderr
