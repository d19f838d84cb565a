"""``numsim train``: rows, checkpoints by recipe, one sentence for wrong input."""

import csv
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from numsim.cli import app
from numsim.data import bundled_model_dir
from numsim.errors import NumsimError

pytestmark = pytest.mark.slow  # processes, whole sweeps, kernels compiled again

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
    assert run(*SMALL, "--recipes", "float32", "--force").exit_code == 0
    assert not (here / "curves.tensors.csv").exists()  # they were of the curves before


def test_curves_of_another_run_are_replaced_only_by_force(here):
    assert run(*SMALL, "--recipes", "float32", "--seeds", "2").exit_code == 0
    before = (here / "curves.csv").read_bytes()
    again = run(*SMALL, "--recipes", "float32")
    assert isinstance(again.exception, NumsimError)
    assert str(again.exception).startswith("train: curves.csv exists and is not replaced unasked")
    assert "--force" in str(again.exception)
    assert "--resume" in str(again.exception)
    assert (here / "curves.csv").read_bytes() == before
    assert run(*SMALL, "--recipes", "float32", "--force").exit_code == 0
    assert [r["seed"] for r in table()] == ["0", "0", "0"]
    (here / "new.csv").touch()  # an empty file, as mktemp makes it, holds nothing to lose
    assert run(*SMALL, "--recipes", "float32", "--out", "new.csv").exit_code == 0


@pytest.mark.parametrize(
    "more",
    [("--data", "pipe"), ("--test", "pipe"), ("--out", "pipe"), ("--recipes", "pipe.toml"),
     ("--data", "/dev/zero"), ("--out", "/dev/null"), ("--model", "tiny_llama", "--text", "pipe"),
     ("--model", "tiny_llama", "--text", "/dev/zero")],
    ids=" ".join,
)  # fmt: skip
def test_pipes_and_devices_are_refused_at_once(here, more):
    for name in ("pipe", "pipe.toml"):
        os.mkfifo(here / name)
    small = SMALL[2:] if "--model" in more else SMALL
    made = run(*small, *more) if "--recipes" in more else run(*small, "--recipes", "int8", *more)
    assert isinstance(made.exception, NumsimError), (made.output, made.exception)
    assert re.search("is a (pipe|device), not a file", str(made.exception))
    assert stat.S_ISFIFO((here / "pipe").stat().st_mode)


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


@pytest.mark.parametrize("option", ["--data", "--test", "--recipes"])
def test_curves_replace_no_file_that_is_read(here, option):
    name = {"--recipes": "mine.toml"}.get(option, "given.jsonl")
    text = "[[rule]]\nmatch='*'\nforward={}\ndgrad={}\nwgrad={}\n"
    (here / name).write_text(text if option == "--recipes" else (here / "m.jsonl").read_text())
    before = (here / name).read_bytes()
    other = () if option == "--recipes" else ("--recipes", "int8")
    made = run(*SMALL, *other, option, name, "--out", name, "--force")
    assert isinstance(made.exception, NumsimError), made.output
    assert f"{name}; name another file" in str(made.exception)
    assert (here / name).read_bytes() == before


def test_checkpoints_of_another_run_are_replaced_only_by_force(here):
    more = ("--recipes", "float32", "--checkpoint", "ck")
    assert run(*SMALL, *more).exit_code == 0
    kept = here / "ck" / "float32-0" / "checkpoint.safetensors"
    before = kept.read_bytes()
    again = run(*SMALL, *more, "--out", "other.csv", "--lr", "0.5")
    assert isinstance(again.exception, NumsimError)
    for word in (f"ck/float32-0/{kept.name}", "--resume", "--force", "another --checkpoint"):
        assert word in str(again.exception)
    assert kept.read_bytes() == before
    assert not (here / "other.csv").exists()
    assert run(*SMALL, *more, "--lr", "0.5", "--force").exit_code == 0
    assert kept.read_bytes() != before


@pytest.mark.parametrize(
    "option", ["--steps", "--seeds", "--batch", "--every", "--jobs", "--watch"]
)
def test_what_is_no_whole_number_is_shown(here, option):
    for text in ("abc", "1e3", "1.5"):
        made = run(*SMALL, option, text)
        assert made.exit_code == 2
        assert f"expected a whole number such as 12; got '{text}'" in " ".join(made.output.split())
    made = run(*SMALL, option, "9" * 320)
    assert "a whole number of at most 40 digits" in " ".join(made.output.split())


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
        made = run(*SMALL, "--recipes", "int8", "--force", *more)
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


LANGUAGE = ("--model", "tiny_llama", "--steps", "1")


@pytest.mark.parametrize(("given", "said"), [
    ((*LANGUAGE, "--loss", "mse"), "cross_entropy; got --loss mse"),
    ((*LANGUAGE, "--tokens", "subwords"), "--tokens is for messages"),
    ((*LANGUAGE, "--keep-case"), "--keep-case is for messages"),
    ((*LANGUAGE, "--marks", ""), "--marks is for messages"),
    ((*SMALL, "--tokens", "subwords", "--numbers"), "--numbers cleans words"),
    ((*SMALL, "--tokens", "subwords", "--drop-stop-words"), "--drop-stop-words cleans words"),
])  # fmt: skip
def test_options_that_would_change_nothing_are_refused(here, given, said):
    made = run(*given, "--recipes", "int8")
    assert isinstance(made.exception, NumsimError), (made.output, made.exception)
    assert said in str(made.exception)


@pytest.mark.parametrize(("lacks", "said"), [
    ("tokenizer.json", "no tokenizer.json"), ("bos_token_id", "no bos_token_id"),
])  # fmt: skip
def test_a_network_that_cannot_read_the_text_is_told_what_to_add(here, lacks, said):
    shutil.copytree(bundled_model_dir(), here / "net")
    if lacks == "bos_token_id":
        config = json.loads((here / "net/config.json").read_text())
        (here / "net/config.json").write_text(json.dumps(config | {lacks: None}))
    else:
        (here / "net" / lacks).unlink()
    made = run("--model", "net", "--steps", "1", "--recipes", "int8")
    assert isinstance(made.exception, NumsimError), (made.output, made.exception)
    assert said in str(made.exception)
    assert "--window-start" not in str(made.exception)


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
    scored = run(*SMALL, "--recipes", "float32", "--force")
    assert "nothing was scored" not in scored.output


def test_a_pipe_or_a_device_stays_what_it_is(here):
    # a file moved to its name would replace it: as root --out /dev/null ended that for everyone
    os.mkfifo(here / "pipe")
    os.mkfifo(here / "c.tensors.csv")
    for out, name in (("pipe", "pipe"), ("c.csv", "c.tensors.csv")):
        made = run(*SMALL, "--recipes", "float32", "--out", out)
        assert isinstance(made.exception, NumsimError)
        assert f"{name} is a pipe, not a file" in str(made.exception)
        assert stat.S_ISFIFO((here / name).stat().st_mode)
    assert not (here / "c.csv").exists()
    endless = run("--model", "tiny_llama", "--text", "/dev/zero")
    assert "/dev/zero is a device, not a file" in str(endless.exception)


def test_curves_go_through_a_link(here):
    (here / "kept").mkdir()
    (here / "curves.csv").symlink_to("kept/curves.csv")
    assert run(*SMALL, "--recipes", "float32").exit_code == 0
    assert (here / "curves.csv").is_symlink()
    assert len(table("kept/curves.csv")) == 3


JOBS = """
    import os, signal, sys, threading, time

    def children():
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/cmdline") as words:
                    parent = int(stat.read().rpartition(")")[2].split()[1])
                    if parent == os.getpid() and "spawn_main" in words.read():
                        yield int(pid)
            except OSError:
                pass

    def when_they_work(how, after):
        while len(found := list(children())) < 2:
            time.sleep(0.05)
        time.sleep(float(after))
        if how == "kill":
            os.kill(found[0], signal.SIGKILL)
        else:
            os.killpg(0, signal.SIGINT)

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from numsim.cli import main
        threading.Thread(target=when_they_work, args=sys.argv[1:], daemon=True).start()
        words = "train --recipes float32,int8 --steps 100000 --jobs 2"
        sys.argv[1:] = words.split()
        main()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("how", "after", "code", "said"),
    [
        ("interrupt", "0", 130, "numsim: interrupted; no run had ended"),  # while they import
        ("interrupt", "3", 130, "numsim: interrupted; no run had ended"),
        ("kill", "3", 2, "numsim: train: one of 2 processes ended early"),
    ],
)
def test_jobs_end_at_once_in_one_sentence(here, how, after, code, said):
    # an interrupt waited for every run, queued ones too; a killed process was a traceback
    (here / "w.py").write_text(textwrap.dedent(JOBS))
    done = subprocess.run(
        [sys.executable, "w.py", how, after], capture_output=True, text=True, cwd=here,
        timeout=120, start_new_session=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
