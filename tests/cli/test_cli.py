"""The command line: exit codes, one clear sentence on stderr, nothing half-written."""

import os
import signal
import subprocess
import sys
import time
import warnings

import pytest

from numsim.cli import entry as cli
from numsim.models import Recipe

pytestmark = pytest.mark.slow  # processes, whole sweeps, kernels compiled again

COMPILING = "numsim: compiling what this needs, once for this processor\n"  # of a cold cache
# A shell that starts tests in the background lets them, and what they start, ignore Ctrl-C.
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
HEARS += "import numsim.cli as c; "
SHORT = ["--limit-tokens", "100", "--formats", "int8", "--targets", "ideal.int"]


def numsim(*args, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "numsim.cli", *map(str, args)], env=os.environ | environment,
        capture_output=True, text=True, cwd=cwd, timeout=300, check=False,
    )  # fmt: skip


def said(errors):
    """Return stderr without what a cold cache says first."""
    return errors.replace(COMPILING, "").strip()


def called(monkeypatch, capsys, *args):
    """Run `main` in this process: its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["numsim", *map(str, args)])
    with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
        cli.main()
    out, errors = capsys.readouterr()
    return stop.value.code or 0, out, errors


@pytest.fixture
def here(monkeypatch, capsys, tmp_path):
    """Run a command in this process, which has loaded what it needs, in the folder of the test."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        return subprocess.CompletedProcess(words, *called(monkeypatch, capsys, *words))

    return run


def one_sentence(code, out, errors):
    assert code == 2, errors
    assert out == ""
    errors = errors.removeprefix(COMPILING)
    assert errors.startswith("numsim: ")
    assert errors.count("\n") == 1
    assert errors.rstrip("\n").isprintable()
    return errors


def test_sweep_then_report(tmp_path, here):
    done = numsim("sweep", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    # a log has no empty lines of a progress bar that is not there
    assert done.stderr.replace(COMPILING, "") == "94 rows in results.csv\n"
    made = here("report", "results.csv", "-o", "out")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "out" / "report.md").is_file()


def test_sweep_of_recipes(tmp_path, here):
    (tmp_path / "mine.toml").write_text(
        '[[rule]]\nmatch = "*"\n[[rule]]\nmatch = "*.down_proj"\nweights = "int8"\n'
    )
    done = here("sweep", "--recipes", "mine.toml", "--limit-tokens", "100")
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
    assert "47 rows in results.csv" in done.stderr
    made = here("report", "results.csv", "-o", "out")
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
        (["--text", "a\x1b[31m.txt"], r"a\u001b[31m.txt"),
        (["--resume", "--force"], "got both; give one"),
    ],
)
def test_bad_arguments(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in one_sentence(*called(monkeypatch, capsys, "sweep", *SHORT, *args))
    assert list(tmp_path.iterdir()) == []


def test_a_process_refuses_in_one_sentence(tmp_path):
    done = numsim("report", "missing.csv", "-o", "out", cwd=tmp_path)
    assert "missing.csv" in one_sentence(done.returncode, done.stdout, done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_unknown_command_and_version():
    assert numsim("swep").returncode == 2
    assert numsim("--version").stdout.startswith("numsim ")


@pytest.mark.parametrize("short", ["-h", "-V"])
def test_the_short_options_that_everyone_tries(short, monkeypatch, capsys):
    code, out, errors = called(monkeypatch, capsys, short)
    assert (code, errors) == (0, "")
    assert out.startswith("numsim 0." if short == "-V" else "Usage: numsim ")
    long = {"-h": "--help", "-V": "--version"}[short]
    assert called(monkeypatch, capsys, long)[1] == out
    if short == "-h":
        assert "..." not in out.partition("Commands:")[2]  # no command's sentence is cut
        for command in ("sweep", "report", "formats", "explain", "verify", "bench", "cast"):
            assert called(monkeypatch, capsys, command, "-h")[1].startswith("Usage: numsim ")
        code, out, errors = called(monkeypatch, capsys)
        assert (code, out) == (2, "")
        assert errors.startswith("Usage: numsim ")


@pytest.mark.parametrize(
    "command",
    ["explain {}", "formats {}", "cast 1,2 --to {}",
     "explain mma --target nvidia.blackwell.tcgen05 --values 1*2 --formats {}"],
)  # fmt: skip
def test_storage_rules_go_by_every_spelling_in_every_command(command, monkeypatch, capsys):
    want = called(monkeypatch, capsys, *command.format("mxfp4_e2m1").split())
    assert want[0] == 0, want
    for word in ("mxfp4", "MXFP4", "MXFP4_E2M1"):
        assert called(monkeypatch, capsys, *command.format(word).split())[:2] == want[:2]
    if command.startswith("formats"):  # lists the formats that have this part
        return
    code, _, errors = called(monkeypatch, capsys, *command.format("MXFP8").split())
    assert code == 2
    assert "'MXFP8' is the name of several storage rules: mxfp8_e4m3 (max 448)" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("swep", "no such command 'swep'; did you mean 'sweep'"),
        ("zzz", "no such command 'zzz'; see numsim -h"),
        ("--nope", "no such option"),
        ("cast", "cast: missing argument 'VALUE'; see numsim cast -h"),
        ("cast 1", "cast: missing option '--to'"),
        ("cast 1 --to", "requires an argument"),
        ("cast 1 2 --to int8", "unexpected extra argument"),
        ("sweep --nope", "sweep: no such option: --nope"),
        ("cast 1 --to e4m3 --seed 1e400", "'--seed': expected a whole number such as 12"),
        (f"cast 1 --to e4m3 --seed {'9' * 5000}", "expected a whole number"),
        (f"cast 1 --to e4m3 --rounding sr --seed {'9' * 39}", "--seed is an integer from 0 to"),
        ("cast 1 --to e4m3 --offset nan", "expected a whole number"),
        ("sweep --limit-tokens nan", "expected a whole number"),
        ("sweep --seed 0x10", "sweep: seed: a whole number from 0"),
        ("sweep --jobs inf", "expected a whole number"),
        ("explain mma --target ideal.fp32 --c 1e400", "'--c': expected a number within float64"),
        ("explain mma --target ideal.int --c nan", "whole number of at most 64 bits"),
        (f"explain mma --target ideal.int --c {'9' * 320}", "whole number"),
        ("cast \x1b[31m5 --to e4m3", "got '\\x1b[31m5'"),
        ("cast 1 --to \x1b[31m", "unknown format"),
        ("targets \x1b]0;t\a", "unknown target"),
        ("\x1b[2J", "no such command"),
        ("cast 1 --\x1b[2J 3 --to int8", "unexpected extra argument"),
        (f"explain {'a' * 5000}", "aaa..."),
        ("formats e4m3 -o \x1b[31m.gif", "ends in .png"),
        ("report \x1b[31m.csv -o out", "does not exist"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    errors = one_sentence(*called(monkeypatch, capsys, *arguments.split(" ")))
    assert words in errors
    assert len(errors) < 2000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", ["pipe", "folder", "zero", "loop", "bytes", "deep", "escape"])
def test_a_unit_file_that_is_none(kind, monkeypatch, capsys, tmp_path):
    path = tmp_path / "x.toml"
    make = {
        "pipe": lambda: os.mkfifo(path), "folder": path.mkdir,
        "zero": lambda: path.symlink_to("/dev/zero"), "loop": lambda: path.symlink_to(path),
        "bytes": lambda: path.write_bytes(bytes(range(256))),
        "deep": lambda: path.write_text("a = " + "[" * 100_000),
        "escape": lambda: path.write_text('name = "\\u001b[31m"\nmaturity = "\\u001b[2J"\n'),
    }  # fmt: skip
    make[kind]()
    for arguments in (["targets", path], ["explain", "mma", "--target", path]):
        one_sentence(*called(monkeypatch, capsys, *arguments))


@pytest.mark.skipif(os.name == "nt", reason="POSIX names")
def test_names_from_files_cannot_steer_the_terminal(monkeypatch, capsys, tmp_path):
    """Escape sequences and reversals of direction are written out, on stdout as on stderr."""
    path = tmp_path / "\x1b[31m\u202e.png"
    code, out, errors = called(monkeypatch, capsys, "formats", "e2m1", "-o", path)
    assert (code, errors) == (0, "")
    assert out == f"{tmp_path}/\\u001b[31m\\u202e.png\n"
    (tmp_path / "hw_\x1b]0;t\a\n.npz").touch()
    monkeypatch.setenv("NUMSIM_GOLDEN", str(tmp_path))
    errors = one_sentence(*called(monkeypatch, capsys, "verify", "silicon"))
    assert "hw_\\u001b]0;t\\u0007\\u000a.npz is no recording" in errors
    with warnings.catch_warnings(action="always"):
        monkeypatch.setattr(warnings, "showwarning", cli._warned)
        warnings.warn("\x1b[2J\n", stacklevel=1)
    assert capsys.readouterr().err == "numsim: warning: \\u001b[2J\\u000a\n"


def test_the_answer_is_the_same_on_any_terminal(monkeypatch, capsys):
    want = numsim("formats", "nf").stdout
    assert "nf4" in want
    for name, value in (("TERM", "dumb"), ("NO_COLOR", "1"), ("COLUMNS", "20")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert called(patch, capsys, "formats", "nf") == (0, want, "")
    for environment in ({"LC_ALL": "C", "LANG": "C"}, {"PYTHONIOENCODING": "ascii"}):
        done = numsim("formats", "nf", **environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == want
    done = numsim("cast", "1", "--to", "\u00e9\u202e", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX shell")
@pytest.mark.parametrize(
    ("tail", "code", "errors"),
    [
        ("| head -1", 0, ""),
        (">&-", 0, ""),
        ("> /dev/full", 2, "numsim: No space left on device\n"),
        ("> /dev/full 2>&1", 2, ""),
        (">&- 2>&-", 0, ""),
    ],
)
def test_a_reader_that_goes_away(tail, code, errors):
    command = f"set -o pipefail; {sys.executable} -m numsim.cli formats float16 {tail}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr.replace(COMPILING, "")) == (code, errors)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("what", [("verify", "--exhaustive"), ("bench",)], ids=" ".join)
def test_ctrl_c_is_one_line(what):
    """Of the process group, as a terminal sends it: processes that were started say nothing."""
    run = subprocess.Popen(
        [sys.executable, "-c", HEARS + "print(flush=True); c.main()", *what],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    run.stdout.readline()  # everything is imported
    time.sleep(1)
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert (run.returncode, errors.replace(COMPILING, "")) == (130, "numsim: interrupted\n")


def test_names_are_completed():
    def complete(*words):
        return numsim(
            _NUMSIM_COMPLETE="complete_bash", COMP_WORDS=" ".join(["numsim", *words]),
            COMP_CWORD=str(len(words)),
        ).stdout.split()  # fmt: skip

    assert complete("ver") == ["verify"]
    assert complete("cast", "1", "--to", "mxfp4") == ["mxfp4_e2m1"]
    assert complete("targets", "x86.vpdpw") == ["x86.vpdpwssd", "x86.vpdpwssds"]
    assert complete("explain", "mma", "--target", "ideal.f") == ["ideal.fp32"]
    assert "float8_e4m3fn" in complete("formats", "float8")
    assert "nvfp4" in complete("explain", "n")
    assert complete("sweep", "--formats", "int8,float8_e5m2f") == ["int8,float8_e5m2fnuz"]
    assert complete("sweep", "--targets", "ideal.int,ideal.m") == ["ideal.int,ideal.mac"]
    assert complete("cast", "1", "--rounding", "rt") == ["rtz", "rto"]
    shown = numsim("-h").stdout
    assert "--install-completion" in shown
    assert "--show-completion" in shown


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_leaves_the_rows(tmp_path):
    run = subprocess.Popen(
        [sys.executable, "-c", HEARS + "c.main()", "sweep", "--limit-tokens", "1020"],
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
            [sys.executable, "-c", HEARS + "c.main()", "sweep", "--force"],
            cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        lock = tmp_path / "results.csv.lock"
        while not (lock.exists() and "process" in lock.read_text()):
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
        assert run.returncode == 130
        assert said(errors) == (
            "numsim: interrupted; no row had been computed, and no file was written or changed"
        )
        assert (out.read_bytes() if out.exists() else None) == before
        assert not lock.exists()


def test_an_existing_file_is_replaced_only_by_force(tmp_path, here):
    out = tmp_path / "results.csv"
    assert here("sweep", *SHORT).returncode == 0
    before = out.read_bytes()
    done = here("sweep", *SHORT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(said(done.stderr).splitlines()) == 1
    for words in ("results.csv exists", "--resume", "--force"):
        assert words in done.stderr
    assert out.read_bytes() == before
    done = here("sweep", *SHORT, "--resume")
    assert done.returncode == 0
    assert out.read_bytes() == before
    short = ["--limit-tokens", "40", "--formats", "int4", "--granularity", "per_tensor"]
    done = here("sweep", *short, "--targets", "ideal.int", "--force")
    assert done.returncode == 0
    assert "47 rows in results.csv" in done.stderr


def test_a_grid_and_recipes_share_a_table(tmp_path, here):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(Recipe.uniform("int8", target="ideal.int").to_toml())
    options = ["--formats", "int8", "--granularity", "per_tensor", "--targets", "ideal.fp32"]
    options += ["--limit-tokens", "40", "--out", "r.csv"]
    done = here("sweep", *options, "--recipes", recipe)
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
    options += ["--force"]
    done = here("sweep", *options, "--recipes", f"{recipe},{recipe}")
    assert done.returncode == 2
    assert "name the same rules" in done.stderr


def test_an_interrupt_while_something_compiles_is_silent(monkeypatch, capsys):
    """A finaliser of a half-made object of llvmlite raised, and Python printed that."""
    from types import SimpleNamespace

    from llvmlite.binding.ffi import ObjectRef

    from numsim.cli import entry as cli

    said = []
    monkeypatch.setattr(cli.sys, "__unraisablehook__", said.append)
    cli._unraisable(SimpleNamespace(object=ObjectRef.__del__))
    assert not said
    cli._unraisable(SimpleNamespace(object=print))
    assert len(said) == 1
