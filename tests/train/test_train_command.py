"""``numsim train``: rows, checkpoints by recipe, one sentence for wrong input."""

import csv
import json

import pytest
from typer.testing import CliRunner

from numsim.cli import app
from numsim.errors import NumsimError

MESSAGES = [
    {"label": i % 2, "text": f"{('win', 'home')[i % 2]} word{i % 5} now", "split": split}
    for i, split in enumerate(["train"] * 24 + ["test"] * 6)
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "\n".join(map(json.dumps, MESSAGES))
    (tmp_path / "m.jsonl").write_text(text)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)], catch_exceptions=True)


def table(path="curves.csv"):
    with open(path, encoding="utf-8", newline="") as file:  # noqa: PTH123
        return list(csv.DictReader(file))


SMALL = ("--data", "m.jsonl", "--steps", "3", "--batch", "4", "--every", "2")


def test_rows_of_recipes_and_seeds(here):
    made = run(*SMALL, "--recipes", "float32, int8", "--seeds", "2", "--watch", "3")
    assert made.exit_code == 0, made.output
    found = table()
    assert [(r["recipe"], r["seed"], r["step"]) for r in found] == [
        (recipe, seed, step) for recipe in ("float32", "int8") for seed in "01" for step in "123"
    ]
    assert [r["test_loss"] != "" for r in found[:3]] == [False, True, True]
    assert {r["recipe"] for r in table("curves.tensors.csv")} == {"float32", "int8"}
    assert run(*SMALL, "--recipes", "float32").exit_code == 0
    assert not (here / "curves.tensors.csv").exists()  # they were of the curves before


def test_every_recipe_has_a_checkpoint_of_its_own_and_resumes(here):
    names = "q3.4,q3.4_forward,q3.4_scale4096,fp8_stored_sr"
    assert run(*SMALL, "--recipes", names, "--checkpoint", "ck").exit_code == 0
    assert sorted(p.name for p in (here / "ck").iterdir()) == [
        "fp8_stored_sr-0", "q3.4-0", "q3.4_forward-0", "q3.4_scale4096-0"
    ]  # fmt: skip
    before = (here / "curves.csv").read_bytes()
    again = run(*SMALL, "--recipes", names, "--checkpoint", "ck", "--resume")
    assert again.exit_code == 0, again.output
    assert (here / "curves.csv").read_bytes() == before
    other = run(*SMALL, "--recipes", names, "--checkpoint", "ck", "--resume", "--lr", "0.1")
    assert isinstance(other.exception, NumsimError)
    assert "another run: optimizer" in str(other.exception)


def test_a_run_that_fails_ends_with_1_after_the_others(here):
    made = run(*SMALL, "--recipes", "float32,fp8_hybrid", "--lr", "1e30", "--checkpoint", "ck")
    assert made.exit_code == 1, made.output
    errors = [r["error"] for r in table() if r["error"]]
    assert errors
    assert any("; the checkpoint of step " in error for error in errors)
    assert all(error.startswith("step ") for error in errors)


def test_a_recipe_of_a_file(here):
    from numsim import train

    (here / "mine.toml").write_text(train.recipe("fp8_e4m3").to_toml())
    made = run(*SMALL, "--recipes", "mine.toml", "--watch", "2")
    assert made.exit_code == 0, made.output
    assert (
        {r["recipe"] for r in table()}
        == {"mine"}
        == {r["recipe"] for r in table("curves.tensors.csv")}
    )


def test_cleaning_options_and_losses(here):
    for more in (
        ("--keep-case", "--marks", "[]^-\\", "--numbers"), ("--drop-stop-words", "--marks", ""),
        ("--loss", "cross_entropy", "--optimizer", "sgd", "--lr", "0.1"), ("--loss", "mse"),
        ("--tokens", "subwords"), ("--loss-scale", "1024"),
    ):  # fmt: skip
        made = run(*SMALL, "--recipes", "int8", *more)
        assert made.exit_code == 0, (more, made.output, made.exception)


BAD = [
    ("--recipes", ""), ("--recipes", "int9"), ("--recipes", "int8,int8"), ("--recipes", "no.toml"),
    ("--steps", "0"), ("--seeds", "0"), ("--batch", "0"), ("--every", "0"), ("--watch", "0"),
    ("--jobs", "0"), ("--lr", "0"), ("--lr", "-1"), ("--lr", "nan"), ("--lr", "inf"),
    ("--optimizer", "lion"), ("--loss", "l1"), ("--tokens", "bytes"), ("--resume",), ("--scratch",),
    ("--text", "m.jsonl"), ("--model", "tiny_llama"), ("--loss-scale", "0"),
    ("--loss-scale", "nan"), ("--target", "none"), ("--target", "x86.vpdpbusd"),
    ("--batch", "1000"), ("--out", "."),
    ("--out", "m.jsonl/x.csv"), ("--out", "x" * 300), ("--test", "none.csv"),
    ("--data", "none.csv"),
    ("--data", "one.csv"), ("--data", "three.csv"), ("--data", "empty.csv"), ("--data", "gap.csv"),
    ("--test", "three.csv"), ("--recipes", "glob.toml"), ("--recipes", "part.toml"),
]  # fmt: skip


@pytest.mark.parametrize("more", BAD, ids=" ".join)
def test_wrong_input_is_one_sentence_before_any_file_is_written(here, more):
    (here / "one.csv").write_text("label,text\n0,a b\n0,c d\n")
    (here / "three.csv").write_text("label,text\n0,a\n1,b\n2,c\n0,a\n1,b\n2,c\n")
    (here / "empty.csv").write_text("label,text\n0,a\n1,12\n0,b\n1,c\n")
    (here / "gap.csv").write_text("label,text\n0,a\n2,b\n")
    (here / "glob.toml").write_text(
        "[[rule]]\nmatch='*'\nforward={}\ndgrad={}\nwgrad={}\n"
        "[[rule]]\nmatch='conv'\nforward={}\ndgrad={}\nwgrad={}\n"
    )
    (here / "part.toml").write_text("[[rule]]\nmatch='*'\nforward={}\ndgrad={}\n")
    given = list(SMALL) if "--recipes" in more else [*SMALL, "--recipes", "int8"]
    before = sorted(here.iterdir())
    made = run(*given, *more)
    assert made.exit_code != 0
    assert isinstance(made.exception, NumsimError), (made.output, made.exception)
    said = str(made.exception)
    assert "\n" not in said
    assert sorted(here.iterdir()) == before


def test_a_process_that_is_killed_fails_its_runs_in_one_sentence(here, monkeypatch):
    from concurrent.futures import Future
    from concurrent.futures.process import BrokenProcessPool

    from numsim.train import runs

    class Pool:
        """Ends the first run, and dies in the second."""

        def __init__(self, *_):
            self.count = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def submit(self, work, *given):
            future, self.count = Future(), self.count + 1
            if self.count == 1:
                future.set_result(work(*given))
            else:
                future.set_exception(BrokenProcessPool("gone"))
            return future

    monkeypatch.setattr(runs, "ProcessPoolExecutor", Pool)
    made = run(*SMALL, "--recipes", "int8", "--seeds", "3", "--jobs", "2")
    assert made.exit_code == 1
    assert "run failed: int8, seed 1: a process of --jobs was ended from outside" in made.output
    assert "Traceback" not in made.output
    rows = table()
    assert [(row["seed"], row["step"], bool(row["error"])) for row in rows] == [
        ("0", "1", False), ("0", "2", False), ("0", "3", False), ("1", "", True), ("2", "", True),
    ]  # fmt: skip


def test_labels_that_are_words_give_the_rows_of_numbers_and_are_said(here):
    words = [row | {"label": ("ham", "spam")[row["label"]]} for row in MESSAGES]
    (here / "w.jsonl").write_text("\n".join(map(json.dumps, words)))
    numbered = run(*SMALL, "--recipes", "int8", "--out", "n.csv")
    made = run(*SMALL, "--recipes", "int8", "--data", "w.jsonl", "--out", "w.csv")
    assert made.exit_code == 0, made.output
    assert "ham = 0, spam = 1" in made.output
    assert "ham" not in numbered.output
    rows = [(here / f).read_text().replace("m.jsonl", "w.jsonl") for f in ("n.csv", "w.csv")]
    assert rows[0] == rows[1]


def test_messages_that_are_all_trained_on_are_said_to_be_unscored(here):
    alone = [{k: row[k] for k in ("label", "text")} for row in MESSAGES]
    (here / "alone.jsonl").write_text("\n".join(map(json.dumps, alone)))
    made = run("--data", "alone.jsonl", "--steps", "2", "--batch", "4", "--recipes", "float32")
    assert made.exit_code == 0, made.output
    assert "nothing was scored" in made.output
    assert "float32  1" in made.output
    scored = run(*SMALL, "--recipes", "float32")
    assert "nothing was scored" not in scored.output
