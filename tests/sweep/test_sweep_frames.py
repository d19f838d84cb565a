"""The tidy views of the rows of a sweep."""

import warnings

import pandas as pd
import pytest
from rich.console import Console

import numsim as ns
from numsim import progress


def test_cases_and_products_are_two_tidy_frames():
    rows = ns.sweep(formats="int8", limit_tokens=63, window=64)
    assert len(rows.cases) == 2
    assert len(rows.cases) + len(rows.products) == len(rows)
    assert "K" not in rows.cases
    assert "perplexity" not in rows.products
    assert str(rows.products.op.dtype) == "category"
    assert rows.cases.kl_nats.notna().all()
    mean = rows.products.groupby("op", observed=True).sqnr_local_db.mean()
    assert mean.idxmin() == "down_proj"
    assert rows.products.emulated.sum() == 2 * 35
    assert rows.glossary.loc["kl_nats", "unit"] == "nats"
    assert set(rows.columns) == set(rows.glossary.index)
    assert type(rows[rows.layer == "all"]) is type(rows)  # a part has the views too


def test_rows_as_parquet(tmp_path):
    pytest.importorskip("pyarrow", reason="pip install numsim[parquet]")
    tiles = ns.Quant("int8", block=(128, 128)), ns.Quant("int8", block=32)
    mixed = ns.Recipe((("*", ns.Rule()), ("*_proj", ns.Rule(*tiles, "ideal.fp32"))))
    rows = ns.sweep(formats="int8", recipes=mixed, limit_tokens=63, window=64)
    for frame in (rows, rows.cases, rows.products):
        frame.to_parquet(tmp_path / "r.parquet")
        back = pd.read_parquet(tmp_path / "r.parquet")
        assert (back.dtypes.map(str) == frame.dtypes.map(str)).all()
        pd.testing.assert_frame_equal(back.astype("string"), pd.DataFrame(frame.astype("string")))


CELL = """
import numsim as ns
from rich.progress import Progress
said, plain = set(), Progress.update
def update(self, *given, **more):
    said.add(more["description"])
    plain(self, *given, **more)
Progress.update = update
rows = ns.sweep(formats="int8", limit_tokens=63, window=64, progress=True)
print(sorted(said))
"""


@pytest.mark.slow
def test_a_notebook_has_a_bar():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
        nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
    outputs = book.cells[0].outputs
    assert any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs)
    (words,) = (o.text for o in outputs if o.output_type == "stream")
    assert "2 of 2: int8 per_channel+per_token ideal.int" in words
    assert "float64 reference" in words


def test_a_notebook_without_widgets_gets_lines(monkeypatch):
    monkeypatch.setattr(progress, "Console", lambda **how: Console(**how, force_jupyter=True))
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    monkeypatch.setattr(progress, "_bar", lambda console: pytest.fail("a bar of nothing"))
    with progress.sweep_progress() as tell:
        tell("1 of 2: int8", 1, 4)
