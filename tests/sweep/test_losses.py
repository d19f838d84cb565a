"""Losses of tokens beside the results: every finished case has its own, and pairs are compared."""

import numpy as np
import pytest

import numsim as ns
from numsim import losses
from numsim.losses import Ties, compare_cases, read_losses

PLAN = {"formats": ["int8"], "limit_tokens": 200, "window": 64}


def saved(tmp_path, **cases):
    """Write losses and return the file and one row of results for each case."""
    path = tmp_path / "r.csv"
    rows = []
    for number, kl in enumerate(cases.values()):
        kl = np.asarray(kl, np.float64)
        case = f"{number:012x}"
        losses.save_losses(path, case, {"nll": kl + 3, "kl": kl})
        rows.append({"case_id": case, "kl_nats": float(kl.mean())})
    return path, rows


def test_pairs_decide_what_means_alone_cannot(tmp_path):
    """Tokens differ by 1 nat, the cases by 0.001 at every token: far below either mean's error."""
    hard = np.linspace(0.0, 1.0, 101)
    swing = np.where(np.arange(101) % 2, 0.01, -0.01)
    path, (base, shifted, noisy) = saved(
        tmp_path, base=hard, shifted=hard + 1e-3, noisy=hard + 1e-3 + swing
    )
    mean, error = compare_cases(path, base["case_id"], shifted["case_id"])
    assert mean == pytest.approx(1e-3)
    assert error < 1e-15
    ties = Ties(path)
    assert ties.mark(base, shifted) == ""
    assert ties.mark(base, noisy) == "~"  # 0.001 - 0.01/101, and 0.01 / sqrt(101) its error
    mean, error = compare_cases(path, base["case_id"], noisy["case_id"])
    assert error == pytest.approx(0.01 * np.sqrt(1 - 101**-2) / np.sqrt(101))


def test_marks_of_equal_missing_and_foreign_losses(tmp_path):
    path, (a, b, c, one, other) = saved(
        tmp_path, a=[0.1, 0.2], b=[0.1, 0.2], c=[0.1, 0.2, 0.3], one=[0.1], other=[0.2]
    )
    ties = Ties(path)
    assert ties.mark(a, b) == "="
    assert ties.mark(a, c) == "?"  # other tokens
    assert ties.mark(a, b | {"kl_nats": 0.3}) == "?"  # not the losses of that row
    assert ties.mark(a, {"case_id": "f" * 12, "kl_nats": 0.1}) == "?"
    assert ties.mark(a, {"case_id": "../../etc", "kl_nats": 0.1}) == "?"
    assert ties.mark(one, other) == "~"  # one token has no error to compare with
    with pytest.raises(ns.UnsupportedError, match=r"r\.csv\.tokens; got 0+ and f+; sweep them"):
        compare_cases(path, a["case_id"], "f" * 12)
    with pytest.raises(ns.UnsupportedError, match="same tokens"):
        compare_cases(path, a["case_id"], c["case_id"])


def test_two_standard_errors_are_the_border(tmp_path):
    """Differences m + 0.03, m - 0.03, ... of four tokens: their error is 0.03 / sqrt(4)."""
    base, swing = np.array([0.1, 0.2, 0.3, 0.4]), 0.03 * np.array([1, -1, 1, -1])
    error = 0.015
    path, (a, below, above, less) = saved(
        tmp_path, a=base, below=base + swing + 1.99 * error, above=base + swing + 2.01 * error,
        less=base + swing - 2.01 * error,
    )  # fmt: skip
    assert compare_cases(path, a["case_id"], above["case_id"])[1] == pytest.approx(error)
    marks = [Ties(path).mark(a, other) for other in (below, above, less)]
    assert marks == ["~", "", ""]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x93NUMPY", None])
def test_damaged_losses_are_none(tmp_path, damage):
    path, (row,) = saved(tmp_path, a=[0.1, 0.2])
    file = losses.losses_folder(path) / f"{row['case_id']}.npz"
    if damage is None:
        np.savez(file, kl=np.array(["a"]))
    else:
        file.write_bytes(damage)
    assert read_losses(path, row["case_id"]) is None
    assert Ties(path).mark(row, row) == "?"


@pytest.mark.slow
def test_every_finished_case_has_its_losses_through_resume(tmp_path):
    path = tmp_path / "r.csv"

    def interrupt(what, done, total):
        if "per_channel" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ns.sweep(PLAN, out=path, progress=interrupt)
    folder = losses.losses_folder(path)
    whole = ns.sweep(PLAN)
    first, second = whole.case_id.unique()
    assert [p.name for p in folder.iterdir()] == [f"{first}.npz"]
    before = (folder / f"{first}.npz").read_bytes()
    (folder / f".{second}.part").write_bytes(b"cut off")  # of a killed process
    (folder / f"{'0' * 12}.npz").write_bytes(b"of a case that is not in the file")
    (folder / "notes.txt").write_text("a person's")
    rows = ns.sweep(PLAN, out=path, resume=True)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [f"{first}.npz", f"{second}.npz", "notes.txt"]
    )
    assert (folder / f"{first}.npz").read_bytes() == before
    for row in rows[rows.layer == "all"].itertuples():
        found = read_losses(path, row.case_id)
        assert found["nll"].shape == found["kl"].shape == (4, 63) or found["kl"].size == row.tokens
        assert found["kl"].mean() == pytest.approx(row.kl_nats, rel=1e-12)
        assert np.exp(found["nll"].mean()) == pytest.approx(row.perplexity, rel=1e-12)
        error = found["kl"].std() / np.sqrt(found["kl"].size)
        assert row.kl_stderr == pytest.approx(error, rel=1e-12)


@pytest.mark.slow
def test_processes_write_the_same_losses(tmp_path):
    for jobs in (1, 2):
        ns.sweep(PLAN, out=tmp_path / f"{jobs}.csv", jobs=jobs)
    one, two = (losses.losses_folder(tmp_path / f"{jobs}.csv") for jobs in (1, 2))
    files = sorted(p.name for p in one.iterdir())
    assert files == sorted(p.name for p in two.iterdir())
    assert len(files) == 2
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    path = tmp_path / "r.csv"
    losses.losses_folder(path).write_text("mine")
    with pytest.raises(ns.NumsimError, match=r"r\.csv\.tokens, and something else is there"):
        ns.sweep(PLAN, out=path)
    assert losses.losses_folder(path).read_text() == "mine"
