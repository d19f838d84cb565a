"""The commands that run networks, as people type them: output, and what is wrong in a sentence."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest
from test_cli import called

import numsim as ns

pytestmark = pytest.mark.slow  # processes
SMALL = ("--limit-tokens", "63", "--formats", "int8", "--granularity", "per_tensor")


def numsim(*words, cwd, **env):
    return subprocess.run(
        [sys.executable, "-m", "numsim.cli", *words], cwd=cwd, capture_output=True, text=True,
        env=os.environ | env, check=False,
    )  # fmt: skip


@pytest.fixture
def here(monkeypatch, capsys, tmp_path):
    """Run a command in this process, which has loaded what it needs, in the folder of the test."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        return subprocess.CompletedProcess(words, *called(monkeypatch, capsys, *words))

    return run


def refused(done):
    lines = [line for line in done.stderr.splitlines() if "compiling" not in line]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert done.stdout == ""
    return lines[0]


def test_forms_of_the_output(here, tmp_path):
    out = {
        form: here("sweep", *SMALL, "--format", form, "--out", f"{form}.csv")
        for form in ("table", "csv", "json", "md")
    }
    assert all(done.returncode == 0 for done in out.values())
    (row,) = csv.DictReader(io.StringIO(out["csv"].stdout))
    (same,) = json.loads(out["json"].stdout)
    assert float(row["kl_nats"]) == pytest.approx(same["kl_nats"], rel=1e-12)
    assert row["format"] == same["format"] == "int8"
    head, rule, line = out["md"].stdout.splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    assert "error versus bit format" in out["table"].stdout


def test_a_dry_run_lists_cases_and_writes_nothing(here, tmp_path):
    done = here("sweep", *SMALL, "--targets", "ideal.int:acc_bits=16,20", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("s  ", 1)[1] for line in lines] == [
        "int8 per_tensor ideal.int:acc_bits=16", "int8 per_tensor ideal.int:acc_bits=20",
        "2 cases; nothing was run",
    ]  # fmt: skip
    weights = 5 * (192 * (192 + 2 * 64) + 192 * 192 + 3 * 192 * 512) + 2048 * 192
    assert float(lines[0].split()[0]) == pytest.approx(64 * weights / 1e9, abs=0.005)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("profile",), ("accumulator", "--longest-k", "256"),
                                   ("sensitivity", "--by", "layer", "--budget", "6")])  # fmt: skip
def test_questions_write_tables_once(words, here, tmp_path):
    more = () if words[0] == "sensitivity" else ("--formats", "int8")
    done = here(*words, *more, "--limit-tokens", "63", "--quiet")
    assert done.returncode == 0, done.stderr
    names = {"profile": {"tensors.csv"}, "accumulator": {"accumulators.csv", "orders.csv"},
             "sensitivity": {"sensitivity.csv", "mixed.toml"}}[words[0]]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == names
    again = here(*words, "--limit-tokens", "63")
    assert "exists and is not replaced unasked; --force" in refused(again)
    if "mixed.toml" in names:
        recipe = ns.Recipe.from_toml(tmp_path / "mixed.toml")
        assert done.stdout.rpartition(" bits for each weight")[0].split("\n")[-1] < "6.0"
        assert len({rule for _, rule in recipe.rules}) == 3  # float32, four and eight bits


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("formats = [", "is not TOML"),
        ('formts = ["int8"]', "s.toml: 'formts' is no field"),
        ("window = 1", "s.toml: window: must be greater"),
        ('formats = ["int8"]\nexclude = ["int8"]', "excludes all of the cases"),
        ('formats = ["imt8"]', "s.toml: formats: unknown format 'imt8'"),
        ('targets = ["ideal.itn"]', "s.toml: targets: unknown target 'ideal.itn'"),
        ('formats = ["int8x"]', "int8x"),
        ('[[recipes]]\nname = "x"\nbass = 1', "s.toml: recipes.0: 'bass' is no field"),
    ],
)
def test_wrong_settings_are_a_sentence_and_leave_nothing(text, words, here, tmp_path):
    (tmp_path / "s.toml").write_text(text)
    line = refused(here("sweep", "--config", "s.toml"))
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["s.toml"]


def test_a_dry_run_reads_the_rows_of_cost(here, tmp_path):
    (tmp_path / "c.toml").write_text('[[row]]\nid = "x"\n')
    said = refused(here("sweep", "--dry-run", "--cost", "c.toml"))
    assert "cost: c.toml: row 'x'" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sweep", "--format", "xml"), "--format is one of table, csv, json, md"),
        (
            ("sweep", "--formats", "int8,int4,int6", "--max-cases", "5"),
            "6 cases, above max_cases 5",
        ),
        (("sweep", "--shard", "5/4"), "shard is PART/OF"),
        (("sweep", "--out", "."), "is a folder"),
        (("sweep", "--scale-node", "45nm:7nm=2"), "scale_node and scale_source go together"),
        (("sweep", "--scheduler", "tcp://127.0.0.1:9"), "scheduler"),
        (("sensitivity", "--format", "int8"), "one case is taken apart"),
        (("sensitivity", "--by", "letter"), "parts are by layer, op, product"),
        (("profile", "--out", "."), "it is no file in a folder"),
        (("profile", "--formats", "e4m4x"), "e4m4x"),
    ],
)
def test_wrong_words_are_a_sentence_and_leave_nothing(words, message, here, tmp_path):
    assert message in refused(here(*words))
    assert list(tmp_path.iterdir()) == []


def test_a_log_gets_lines_and_quiet_gets_none():
    from numsim.progress import log_line

    assert log_line("float64 reference", 0, 10, 3.0) == "float64 reference, 0 %"
    line = log_line("2 of 4: int8; best int8 (kl 0.1)", 5, 10, 60.0)
    assert line == "2 of 4: int8; best int8 (kl 0.1), 50 %, 2.0 cases a minute, about 60 s left"
