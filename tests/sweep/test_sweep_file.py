"""The file of a sweep: what is finished is never lost, and what is not whole is never kept."""

import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import numsim as ns
from numsim.cli.screen import sweep_table
from numsim.progress import sweep_progress
from numsim.sweep import lock
from numsim.sweep.columns import COLUMNS, NAMES
from numsim.sweep.csv import ResultsFile

pytestmark = pytest.mark.slow  # processes, whole sweeps, kernels compiled again

SMALL = {"formats": ["int8"], "targets": ["ideal.int"], "limit_tokens": 100, "window": 32}
POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX signals, links and locks")


def rows_of(name, count=3, **more):
    """Rows of one case: products, and one for the network."""
    row = dict.fromkeys(NAMES) | {"case_id": name * 12, "model": "toy", "text": "t"} | more
    products = [row | {"layer": str(i), "op": "fc", "M": 4, "mse": 0.25 * i} for i in range(count)]
    return [*products, row | {"layer": "all", "op": None, "perplexity": 3.5, "seconds": 0.125}]


def write(path, *cases, **how):
    with ResultsFile(path, **how) as file:
        return [file.write(row) for case in cases for row in case]


def kept(path):
    """Ids of the cases that a resumed sweep keeps."""
    with ResultsFile(path, resume=True) as file:
        return list(dict.fromkeys(row["case_id"][0] for row in file.kept))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "r.csv"
    write(path, rows_of("a"), rows_of("b"), rows_of("c"))
    return path


# -- nothing is replaced unasked ------------------------------------------------------------------


def test_an_existing_file_is_refused_and_both_remedies_named(path):
    before = path.read_bytes()
    with pytest.raises(ns.NumsimError, match=r"exists .* --resume \(resume=True\).*--force"):
        ns.sweep(SMALL | {"out": path})
    with pytest.raises(ns.NumsimError, match="got both"):
        ns.sweep(SMALL | {"out": path, "resume": True, "force": True})
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path]


def test_force_replaces_with_the_first_row_and_not_before(path):
    before = path.read_bytes()
    with ResultsFile(path, force=True) as file:
        assert file.kept == []
        assert path.read_bytes() == before
        file.write(rows_of("d")[0])
        assert len(path.read_bytes().splitlines()) == 2
    with pytest.raises(KeyError), ResultsFile(path, force=True):
        raise KeyError
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n", b"case_id,mod", "header"])
def test_a_file_without_a_row_is_a_fresh_start(tmp_path, data):
    path = tmp_path / "r.csv"
    path.write_bytes((",".join(NAMES) + "\n").encode() if data == "header" else data)
    for how in ({}, {"resume": True}):
        with ResultsFile(path, **how) as file:
            assert file.kept == []
    write(path, rows_of("a"))
    assert kept(path) == ["a"]


# -- what counts as finished ----------------------------------------------------------------------


def test_rows_that_are_kept_are_those_that_were_computed(tmp_path):
    path = tmp_path / "r.csv"
    more = {"exact": np.True_, "K": np.int64(7), "kl_nats": np.float64(0.1), "max_abs": np.inf}
    made = write(path, rows_of("a", **more), rows_of("b", error="=1+1; it failed, 'so'"))
    with ResultsFile(path, resume=True) as file:
        assert file.kept == made
        for row in file.kept:
            for column in COLUMNS:
                value = row[column.name]
                assert value is None or isinstance(value, column.type), column.name
    assert len(path.read_bytes().splitlines()) == 9


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def edit(number, old, new):
    def change(lines):
        assert old in lines[number - 1]
        lines[number - 1] = lines[number - 1].replace(old, new)

    return change


def drop(number):
    return lambda lines: lines.pop(number - 1)


def insert(number, line):
    return lambda lines: lines.insert(number - 1, line)


def double(number):
    return lambda lines: lines.insert(number, lines[number - 1])


def swap(lines):  # a row in place of another one
    lines[6] = lines[5]


# lines 2 to 5 are of case a, 6 to 9 of b, 10 to 13 of c
DAMAGE = {
    "digit": (edit(7, b"0.25", b"0.26"), "ac", "lines 6 to 9 are"),
    "layer": (edit(7, b",1,", b",2,"), "ac", "lines 6 to 9 are"),
    "model": (edit(7, b"toy", b"joy"), "ac", "lines 6 to 9 are"),
    "number": (edit(7, b"0.25", b"0.x5"), "ac", "lines 6 to 9 are"),
    "seconds": (edit(9, b"0.125", b"0.l25"), "ac", "lines 6 to 9 are"),
    "other case": (edit(7, b"b" * 12, b"d" * 12), "ac", "lines 6 and 8 to 9 are"),
    "no case": (edit(7, b"b" * 12, b"B" * 12), "ac", "lines 6 to 9 are"),
    "missing": (drop(7), "ac", "lines 6 to 8 are"),
    "doubled": (double(7), "ac", "lines 6 to 10 are"),
    "last doubled": (double(9), "ac", "lines 6 to 10 are"),
    "in place": (swap, "ac", "lines 6 to 9 are"),
    "foreign": (insert(7, b"a note\n"), "abc", "line 7 is"),
    "foreign cells": (insert(7, b",".join([b"x"] * len(NAMES)) + b"\n"), "abc", "line 7 is"),
    "bytes": (edit(7, b"toy", b"\xff\xfe"), "ac", "lines 6 to 9 are"),
    "zeros": (insert(14, b"\0" * 4096 + b"\n"), "abc", "line 14 is"),
    "open quote": (insert(7, b'"open\n'), "abc", "line 7 is"),
    "long": (edit(7, b"toy", b"toy,"), "ac", "lines 6 to 9 are"),
    "two": (lambda x: (double(3)(x), drop(11)(x)), "b", "lines 2 to 6 and 11 to 13 are"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_doubled_and_foreign_lines_are_named_and_not_kept(path, kind):
    change, stay, words = DAMAGE[kind]
    whole = lines_of(path)
    lines = list(whole)
    change(lines)
    path.write_bytes(b"".join(lines))
    with pytest.warns(ns.DamagedFileWarning, match=f"r.csv: {words} damaged"):
        made = write(path, resume=True)  # nothing to compute
    assert made == []
    assert lines_of(path) == [
        line for line in whole if line.startswith((b"case_id", *(c.encode() for c in stay)))
    ]
    assert kept(path) == list(stay)
    assert (path.parent / "r.csv.damaged").read_bytes() == b"".join(lines)
    assert sorted(p.name for p in path.parent.iterdir()) == ["r.csv", "r.csv.damaged"]


def test_what_a_kill_leaves_is_no_damage(path):
    whole = path.read_bytes()
    for end in range(whole.index(b"\ncccc") + 1, len(whole) - 13):  # before the last digest
        path.write_bytes(whole[:end])
        assert kept(path) == ["a", "b"]
        assert path.read_bytes() == whole[: whole.index(b"\ncccc") + 1]
    path.write_bytes(whole[:-1])  # only the end of the line is missing
    assert kept(path) == ["a", "b", "c"]
    assert path.read_bytes() == whole


def test_two_files_one_after_the_other_are_kept_but_not_twice(path):
    whole, other = path.read_bytes(), path.with_name("other.csv")
    write(other, rows_of("d"))
    path.write_bytes(whole + other.read_bytes())
    assert kept(path) == ["a", "b", "c", "d"]
    assert path.read_bytes().count(b"case_id") == 1
    path.write_bytes(whole + path.read_bytes())
    with pytest.warns(ns.DamagedFileWarning, match="lines 2 to 13 and 15 to 26 are"):
        assert kept(path) == ["d"]


HEADERS = {
    "other": (b"a,b\n1,2\n", "does not have the columns of a results file; resume needs one"),
    "semicolons": (";".join(NAMES).encode() + b"\n", "separated by semicolons, as spreadsheets"),
    "tabs": ("\t".join(NAMES).encode() + b"\n", "separated by tabs"),
    "version": (
        b"case_id,model,layer,numsim_version,old\n" + b"1,m,all,0.0.9,\n",
        r"written by numsim 0\.0\.9, or changed.*columns differ \(op, .*this is numsim",
    ),
    "order": (",".join(reversed(NAMES)).encode() + b"\n", "columns differ.*their order"),
    "extra": (",".join([*NAMES, "note"]).encode() + b"\n", r"another version.*\(note\)"),
    "binary": (b"\x89PNG\xff\x00", "does not have the columns"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_resume_refuses_a_file_of_another_kind_and_says_which(tmp_path, kind):
    data, words = HEADERS[kind]
    path = tmp_path / "r.csv"
    path.write_bytes(data)
    with pytest.raises(ns.NumsimError, match=f"{words}.*--force replaces it") as error:
        ns.sweep(SMALL | {"out": path, "resume": True})
    assert "\n" not in str(error.value)
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore::numsim.DamagedFileWarning")
def test_a_resumed_sweep_computes_damaged_cases_again(tmp_path):
    path = tmp_path / "r.csv"
    plan = SMALL | {"out": path}
    whole = ns.sweep(plan)
    lines = lines_of(path)
    lines[2] = lines[2].replace(b"int8", b"int9")
    path.write_bytes(b"".join(lines))
    seen = []
    again = ns.sweep(plan | {"resume": True}, progress=lambda what, *_: seen.append(what))
    assert {what for what in seen if "int8" in what} == {"1 of 1: int8 per_tensor ideal.int"}
    order = ["case_id", "layer", "op"]
    same = [
        rows.drop(columns="seconds").sort_values(order).reset_index(drop=True).convert_dtypes()
        for rows in (whole, again)
    ]
    assert same[0].equals(same[1])
    assert sorted(lines_of(path)) != sorted(lines)


# -- kills ----------------------------------------------------------------------------------------

STEPS = """
    import os, pathlib, signal, sys
    from numsim.sweep import csv, lock
    sys.path.insert(0, {tests!r})
    from test_sweep_file import rows_of, kept

    def whole(path):
        with csv.ResultsFile(path, resume=True) as file:
            done = {{row["case_id"] for row in file.kept}}
            for name in "abc":
                if name * 12 not in done:
                    for row in rows_of(name):
                        file.write(row)

    def child(task):
        if (pid := os.fork()) == 0:
            try:
                task()
                os._exit(0)
            except BaseException:
                os._exit(2)
        return os.waitpid(pid, 0)[1]

    def killed_at(step, task):
        taken = 0
        def counted(real, is_write):
            def call(first, *rest, **more):
                nonlocal taken
                taken += 1
                if taken == step:
                    if is_write:
                        real(first, rest[0][: len(rest[0]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(first, *rest, **more)
            return call
        def run():
            for owner, name in ((os, "write"), (os, "fsync"), (os, "link"),
                                (pathlib.Path, "replace"), (pathlib.Path, "unlink")):
                setattr(owner, name, counted(getattr(owner, name), name == "write"))
            task()
        return run

    folder = pathlib.Path({folder!r})
    path = folder / "r.csv"
    whole(folder / "want.csv")
    want = (folder / "want.csv").read_bytes()
    (folder / "want.csv").unlink()
    ends = want.index(b"\\nbbbb") + 40
    starts = {{"none": None, "empty": b"", "unfinished": want[:ends],
              "damaged": want[:ends] + b"\\nnote\\n"}}
    for kind, data in starts.items():
        for step in range(1, 100):
            for old in folder.iterdir():
                old.unlink()
            if data is not None:
                path.write_bytes(data)
            status = child(killed_at(step, lambda: whole(path)))
            if status == 0:
                break
            assert os.WIFSIGNALED(status), (kind, step, status)
            if kind in ("unfinished", "damaged"):
                assert b"\\naaaaaaaaaaaa,toy,all" in path.read_bytes(), (kind, step)
            assert child(lambda: whole(path)) == 0, (kind, step)
            assert path.read_bytes() == want, (kind, step)
            left = {{p.name for p in folder.iterdir()}} - {{"r.csv.damaged"}}
            assert left == {{"r.csv"}}, (kind, step, left)
        print(kind, step)
"""


@POSIX
def test_a_kill_at_any_step_loses_nothing_that_was_finished(tmp_path):
    """Half of a write, then kill -9: of the lock, the new file, a row; before a sync or a move."""
    script = STEPS.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = dict(line.split() for line in done.stdout.splitlines())
    assert list(steps) == ["none", "empty", "unfinished", "damaged"]
    assert all(int(count) > 15 for count in steps.values())


SWEEP = """
    import os, signal, sys
    import numsim as ns
    from numsim.sweep import csv
    if sys.argv[2] == "rewrite":
        def half(file, data):
            os.write(file, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        csv._write = half
    if __name__ == "__main__":
        ns.sweep({"formats": ["int8", "int4", "e4m3"], "targets": ["ideal.fp32"],
                  "limit_tokens": 300, "window": 64, "jobs": int(sys.argv[3]),
                  "out": sys.argv[1], "resume": True})
"""


def without_seconds(path):
    with path.open(newline="") as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


@POSIX
@pytest.mark.parametrize(
    ("jobs", "kills"),
    [(1, 2), (2, 2), *(pytest.param(jobs, 20, marks=pytest.mark.exhaustive) for jobs in (1, 2))],
)  # 20 take about four minutes; five of them are inside the rewrite
def test_random_kills_of_a_whole_sweep(tmp_path, jobs, kills):
    script = tmp_path / "s.py"
    script.write_text(textwrap.dedent(SWEEP))

    def start(out, how="run"):
        return subprocess.Popen(
            [sys.executable, str(script), str(out), how, str(jobs)], stderr=subprocess.DEVNULL
        )

    began = time.monotonic()
    assert start(tmp_path / "want.csv").wait(300) == 0
    took = time.monotonic() - began
    draw, out = random.Random(jobs), tmp_path / "r.csv"
    cut = b"".join(lines_of(tmp_path / "want.csv")[:60])[:-9]  # a case, and a part of another
    for kill in range(kills):
        if kill % 6 == 0:
            out.unlink(missing_ok=True)
        if kill % 4 == 1:  # in the middle of the file beside
            if not out.exists():  # rows never lie there without it
                shutil.copy(tmp_path / "want.manifest.toml", tmp_path / "r.manifest.toml")
            out.write_bytes(out.read_bytes() + b"cut" if out.exists() else cut)
            assert start(out, "rewrite").wait(300) == -signal.SIGKILL
            assert out.with_name("r.csv.part").exists()
            continue
        run = start(out)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(draw.uniform(0.3, 0.9) * took)
        run.kill()
        run.wait()
    assert start(out).wait(300) == 0
    assert without_seconds(out) == without_seconds(tmp_path / "want.csv")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [
        "r.csv",
        "r.csv.tokens",
        "r.manifest.toml",
        "s.py",
        "want.csv",
        "want.csv.tokens",
        "want.manifest.toml",
    ]
    losses = [
        {p.name: p.read_bytes() for p in (tmp_path / f"{name}.csv.tokens").iterdir()}
        for name in ("r", "want")
    ]
    assert losses[0].items() <= losses[1].items()  # but those of the case that was put there
    assert len(losses[0]) >= len(losses[1]) - 1


# -- one writer -----------------------------------------------------------------------------------

HOLD = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from test_sweep_file import rows_of
    from numsim.sweep.csv import ResultsFile
    with ResultsFile(Path(sys.argv[1]), resume=True) as file:
        for row in rows_of("e"):
            file.write(row)
        print("held", flush=True)
        time.sleep(600)
"""


@POSIX
def test_the_second_of_two_writers_is_told_who_writes_and_how_to_break_it(path):
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with_e = path.read_bytes()
        for how in ({}, {"resume": True}, {"force": True}):
            with pytest.raises(ns.NumsimError) as error:
                ns.sweep(SMALL | {"out": path} | how)
            for words in (
                f"{path} is being written by process {holder.pid} on {lock._host()}, since 20",
                "wait for it or name another file",
                f"if it no longer runs, remove {path}.lock",
            ):
                assert words in str(error.value)
        assert path.read_bytes() == with_e
    finally:
        holder.kill()
        holder.communicate()
    assert Path(f"{path}.lock").exists()  # of a process that is gone
    assert kept(path) == ["a", "b", "c", "e"]
    assert not Path(f"{path}.lock").exists()


@pytest.mark.parametrize("has_flock", [True, False])
def test_a_lock_left_behind(path, monkeypatch, has_flock):
    if not has_flock:
        monkeypatch.setattr(lock, "_flock", lambda file: None)
    elif lock.fcntl is None:
        pytest.skip("no flock")
    left = Path(f"{path}.lock")
    here, gone = lock._host(), "2026-01-02 03:04:05 UTC"
    monkeypatch.setattr(lock, "_runs", lambda pid: pid != 4321)
    left.write_text(f"host {here}, process 4321, since {gone}\n")
    assert kept(path) == ["a", "b", "c"]
    left.write_text(f"host other-{here}, process 4321, since {gone}\n")
    with pytest.raises(ns.NumsimError, match=f"process 4321 on other-{here}, since {gone}; wait"):
        kept(path)
    left.write_text(f"host {here}, process 1234, since {gone}\n")
    if has_flock:  # the kernel says that nobody holds it: another process has the number now
        assert kept(path) == ["a", "b", "c"]
        left.write_text("")
        assert kept(path) == ["a", "b", "c"]
        return
    with pytest.raises(ns.NumsimError, match="written by process 1234"):
        kept(path)
    left.write_text("")
    with pytest.raises(ns.NumsimError, match="written by another process; wait"):
        kept(path)


@pytest.mark.parametrize("has_flock", [True, False])
def test_one_writer_in_one_process(path, monkeypatch, has_flock):
    if not has_flock:
        monkeypatch.setattr(lock, "_flock", lambda file: None)
    with ResultsFile(path, resume=True) as file:
        with pytest.raises(ns.NumsimError, match=f"written by process {os.getpid()} on"):
            kept(path)
        file.write(rows_of("d")[0])
    assert kept(path) == ["a", "b", "c"]


@POSIX
def test_of_two_writers_one_stops_where_the_lock_was_removed_by_hand(path):
    with ResultsFile(path, resume=True) as first:
        Path(f"{path}.lock").unlink()
        first.write(rows_of("d")[0])  # nobody else was there: the lock is taken again
        Path(f"{path}.lock").unlink()
        with ResultsFile(path, resume=True) as second:
            for row in rows_of("e"):
                second.write(row)
            with pytest.raises(ns.NumsimError, match=f"written by process {os.getpid()}"):
                first.write(rows_of("d")[1])
    assert kept(path) == ["a", "b", "c", "e"]


@pytest.mark.parametrize("change", ["replaced", "removed", "longer"])
def test_a_file_that_changes_under_the_sweep_ends_it(path, change):
    other = path.with_name("other.csv")
    other.write_bytes(path.read_bytes())
    with ResultsFile(path, resume=True) as file:
        file.write(rows_of("d")[0])
        if change == "replaced":
            other.replace(path)
        elif change == "removed":
            path.unlink()
        else:
            with path.open("ab") as more:
                more.write(b"x\n")
        with pytest.raises(ns.NumsimError, match="moved, replaced or changed while the sweep ran"):
            file.write(rows_of("d")[1])


@POSIX
def test_links_stay_links_and_none_is_followed_by_the_lock(path, tmp_path):
    link, victim = tmp_path / "link.csv", tmp_path / "victim"
    link.symlink_to(path.name)
    path.chmod(0o640)
    victim.write_text("mine")
    for name in ("r.csv.part", "r.csv.damaged"):
        (tmp_path / name).symlink_to(victim)
    path.write_bytes(path.read_bytes() + b"note\n")
    with pytest.warns(ns.DamagedFileWarning):
        write(link, rows_of("d"), resume=True)
    assert link.is_symlink()
    assert kept(path) == ["a", "b", "c", "d"]
    assert path.stat().st_mode & 0o777 == 0o640
    assert victim.read_text() == "mine"
    Path(f"{path}.lock").symlink_to(victim)
    with pytest.raises(ns.NumsimError, match="cannot write"):
        kept(path)
    assert victim.read_text() == "mine"


# -- full disks, read-only folders, things that are no files ---------------------------------------

FULL = """
    import resource, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from test_sweep_file import rows_of
    from numsim.sweep.csv import ResultsFile
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
    with ResultsFile(Path(sys.argv[1]), resume=True) as file:
        for name in sys.argv[4]:
            for row in rows_of(name):
                file.write(row)
"""


@POSIX
@pytest.mark.parametrize("where", ["a row", "the rewrite"])
def test_a_full_disk_loses_nothing_that_was_finished(path, where):
    whole = path.read_bytes()
    limit = len(whole) + 150
    if where == "the rewrite":
        path.write_bytes(whole + b"unfinished")
        limit = len(whole) - 40
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(path), str(Path(__file__).parent),
         str(limit), "d"], capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert f"cannot write {path}: File too large; the finished cases in it are kept" in last
    after = path.read_bytes()
    assert after == before if where == "the rewrite" else after.startswith(whole)
    assert after.endswith(b"\n") or where == "the rewrite"  # no line is cut
    assert [p.name for p in path.parent.iterdir()] == ["r.csv"]
    assert kept(path) == ["a", "b", "c"]
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written(path, monkeypatch):
    folder = path.parent
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != folder)
    with pytest.raises(ns.NumsimError, match="permission denied for the folder"):
        ns.sweep(SMALL | {"out": path, "resume": True})


@POSIX
@pytest.mark.parametrize("name", ["out", "text", "recipes", "targets", "config"])
def test_pipes_and_devices_are_refused_at_once(tmp_path, name):
    pipe = tmp_path / ("pipe.toml" if name != "text" else "pipe.npy")
    os.mkfifo(pipe)
    for place, word in ((pipe, "pipe"), (Path("/dev/zero"), "device")):
        spec = place if name == "config" else SMALL | {name: place}
        if name in ("recipes", "targets"):
            if word == "device":
                continue  # no name of a TOML file
            spec = SMALL | {name: [str(place)]}
        with pytest.raises(ns.NumsimError, match=f"{place} is a {word}, not a file"):
            ns.sweep(spec)
    assert [p.name for p in tmp_path.iterdir()] == [pipe.name]


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "'=1", "'x", "a,b", 'say "x"', "ü"])
def test_no_cell_is_a_formula_and_every_name_comes_back(tmp_path, name):
    path = tmp_path / "r.csv"
    made = write(path, rows_of("a", recipe=name, target=name, text=name, mse=-1.5))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for column in ("recipe", "target", "text"):
                assert row[column][0] not in "=+-@"
            assert row["layer"] != "all" or row["mse"] == "-1.5"  # numbers stay numbers
    with ResultsFile(path, resume=True) as file:
        assert file.kept == made
        assert {row["recipe"] for row in file.kept} == {name}


def test_names_with_terminal_escapes_and_lines_are_shown_not_obeyed(tmp_path):
    path = tmp_path / "r.csv"
    made = write(path, rows_of("a", recipe="\x1b[2J\n\udcff\u202e", error="no\r\nwords"))
    assert {row["recipe"] for row in made} == {r"\u001b[2J\u000a\udcff\u202e"}
    assert len(lines_of(path)) == 5
    assert b"\x1b" not in path.read_bytes()
    with ResultsFile(path, resume=True) as file:
        assert file.kept == made


@POSIX
def test_a_recipe_a_text_and_a_unit_of_hostile_names_are_swept(tmp_path):
    names = ["=cmd|x", "+a\x1b[31m", os.fsdecode(b"-\xff")]
    recipe, text, out = (tmp_path / name for name in names)
    recipe = recipe.with_name(f"{recipe.name}.toml")
    recipe.write_text(ns.Recipe.uniform("int8", target="ideal.int").to_toml())
    text.write_text("some words of a text " * 20)
    plan = {"recipes": [recipe], "text": text, "out": out, "limit_tokens": 60, "window": 32}
    rows = ns.sweep(plan)
    assert set(rows.recipe) == {"=cmd|x"}
    assert set(rows.text) == {r"+a\u001b[31m"}
    again = ns.sweep(plan | {"resume": True})
    assert again.recipe.tolist() == rows.recipe.tolist()
    assert "\x1b" not in out.read_text()
    assert "'=cmd|x" in out.read_text()


def test_brackets_of_a_name_are_no_markup(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # the progress bar too
    unit = tmp_path / "u.toml"
    unit.write_text(ns.get_target("ideal.int").to_toml().replace('"ideal.int"', '"[/x] [bold]"', 1))
    plan = SMALL | {"targets": [str(unit)], "granularities": ["per_tensor"]}
    with sweep_progress() as progress:
        sweep_table(ns.sweep(plan, progress=progress))
    shown = capsys.readouterr()
    assert "[/x] [bold]" in shown.out
    assert "[/x] [bold]" in shown.err


# -- processes ------------------------------------------------------------------------------------

WORKERS = """
    import contextlib, os, signal, sys, time
    from numsim.processes import in_processes

    def begin(folder):
        open(os.path.join(folder, str(os.getpid())), "w").close()
        return folder

    def work(folder, seconds):
        time.sleep(seconds)
        return seconds

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
        results = in_processes(begin, sys.argv[1], work, [0, 600, 600], jobs=2, who="w")
        with contextlib.closing(results):
            assert next(results) == 0
            while len(os.listdir(sys.argv[1])) < 2:
                time.sleep(0.05)
            if sys.argv[2] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if sys.argv[2] == "interrupt":  # as a terminal does, to the whole group
                os.killpg(0, signal.SIGINT)
                next(results)
"""


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("how", "code"), [("close", 0), ("kill", -9), ("interrupt", -2)], ids=lambda x: str(x)
)
def test_processes_end_with_the_sweep_however_it_ends(tmp_path, how, code):
    script, folder = tmp_path / "w.py", tmp_path / "workers"
    script.write_text(textwrap.dedent(WORKERS))
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(folder), how], capture_output=True, text=True,
        timeout=120, start_new_session=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stderr.count("Traceback") == (how == "interrupt")  # of this script, no worker
    pids = [int(path.name) for path in folder.iterdir()]
    assert len(pids) == 2
    while any(runs(pid) for pid in pids):  # or the test never ends
        time.sleep(0.05)
