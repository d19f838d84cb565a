"""Outputs that are written whole or not at all: figures, vectors, reports."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

import numsim as ns
from numsim.files import replace_files
from numsim.number_line import draw_number_line


@pytest.fixture
def full(monkeypatch):
    """Return what makes the n-th file from now on meet a full disk, after half of its bytes."""
    whole, left = Path.write_bytes, [-1]

    def write(self, data):
        left[0] -= 1
        if left[0] == 0:
            whole(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    return lambda n: left.__setitem__(0, n)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("file", [1, 2, 5])
def test_a_full_disk_leaves_the_vectors_that_were_there(tmp_path, full, file):
    # the docstring says that nothing is written then; the first files were
    one, other = (
        [ns.quantize(np.full((2, 2), x), "int8", axis=axis) for axis in (-1, 0)] for x in (1.0, -2)
    )
    ns.export_vectors(tmp_path / "first", *one, target="ideal.int")  # kernels are files too
    full(file)
    with pytest.raises(ns.NumsimError, match="No space left on device"):
        ns.export_vectors(tmp_path / "new", *one, target="ideal.int")
    assert content(tmp_path / "new") == {}
    ns.export_vectors(tmp_path / "v", *one, target="ideal.int")
    before = content(tmp_path / "v")
    full(file)
    with pytest.raises(ns.NumsimError, match="No space left on device"):
        ns.export_vectors(tmp_path / "v", *other, target="ideal.int")
    assert content(tmp_path / "v") == before


def test_a_full_disk_leaves_the_figure_that_was_there(tmp_path, full):
    path = draw_number_line("e2m1", tmp_path / "x.svg")
    before = content(tmp_path)
    full(1)
    with pytest.raises(ns.NumsimError, match="No space left on device"):
        draw_number_line("e4m3", path)
    assert content(tmp_path) == before


def test_files_go_through_links_and_leave_nothing_beside_them(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/a")
    replace_files({tmp_path / "link": b"1", tmp_path / "b": b"2"})
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == {"a": b"1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "link", "real"]
    with pytest.raises(OSError, match="No such file"):
        replace_files({tmp_path / "b": b"3", tmp_path / "none" / "c": b"4"})
    assert (tmp_path / "b").read_bytes() == b"2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "link", "real"]
