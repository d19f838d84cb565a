"""The report of training on curves made by hand: its table, its sentences, odd names."""

import math

import pytest

from numsim.errors import NumsimError
from numsim.report.training import (
    findings,
    is_training,
    read_curves,
    summary,
    summary_text,
    training_files,
)  # fmt: skip
from numsim.train.runs import CURVE_COLUMNS, write_csv


def rows(recipe, accuracies, *, loss=0.5, lost=0, perplexity="", error=""):
    """Return two steps of a run of each seed; the last one is scored."""
    made = []
    for seed, accuracy in enumerate(accuracies):
        for step in (1, 2):
            last = step == 2
            made.append(dict.fromkeys(CURVE_COLUMNS, "") | {
                "recipe": recipe, "seed": seed, "step": step, "loss": 1.0 / step, "lr": 0.1,
                "test_loss": loss + seed if last else "", "test_accuracy": accuracy if last else "",
                "test_perplexity": perplexity if last else "", "grad_elements": 200,
                "grad_lost": lost * 2, "model": "classifier", "data": "d", "error": error,
            })  # fmt: skip
    return made


def file_of(tmp_path, *parts):
    path = tmp_path / "curves.csv"
    write_csv(path, [row for part in parts for row in part], CURVE_COLUMNS)
    return path


def test_the_table_by_hand(tmp_path):
    path = file_of(tmp_path, rows("float32", [0.90, 0.92, 0.94]),
                   rows("int8", [0.91, 0.90, 0.95], lost=65))  # fmt: skip
    assert is_training(path)
    table = summary(read_curves(path))
    assert list(table.index) == ["float32", "int8"]
    one = table.loc["float32"]
    assert one["seeds"] == 3
    assert one["accuracy"] == pytest.approx(92)
    assert one["accuracy_sd"] == pytest.approx(2)
    assert one["loss"] == pytest.approx(1.5)
    assert one["loss_sd"] == pytest.approx(1)
    assert one["lost"] == 0
    assert math.isnan(one["gain"])
    other = table.loc["int8"]  # paired by seed: +1, -2, +1
    assert other["gain"] == pytest.approx(0, abs=1e-12)
    assert other["gain_stderr"] == pytest.approx(1.0)
    assert other["lost"] == 65
    page = training_files(path)["report.md"].decode()
    assert "| `float32` | 3 | 92.0 ± 2.0 | 1.500 ± 1.000 |  | 0.00 |" in page
    assert (
        "| `int8` | 3 | 92.0 ± 2.6 | 1.500 ± 1.000 | +0.0 ± 1.0 (no difference) | 65.00 |" in page
    )
    text = summary_text(path)
    assert "92.0 ± 2.6" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_sentences_say_what_the_table_shows(tmp_path):
    path = file_of(
        tmp_path, rows("float32", [0.92, 0.92]), rows("int8", [0.92, 0.91], lost=65),
        rows("fp8_stored_rne", [0.78, 0.78]), rows("fp8_stored_sr", [0.90, 0.91]),
        rows("q3.4_stored_rne", [0.62, 0.61]), rows("q3.4_stored_sr", [0.92, 0.92]),
        rows("q3.4", [0.51, 0.51], lost=99), rows("slow", [0.51, 0.51]),
    )  # fmt: skip
    said = findings(summary(read_curves(path)))
    assert said[0] == (
        "`int8` loses 65 % of its gradient elements and hardly suffers (-0.5 ± 0.5 points)."
    )
    assert said[1].startswith("A *stored* weight that is rounded to nearest costs 14 to 30 points")
    assert said[2] == "Stochastic rounding gives 12.5 of them back to `fp8` (90.5 %)."
    assert said[3] == "Stochastic rounding gives 30.5 of them back to `q3.4` (92.0 %)."
    assert said[4] == ("`q3.4` does not learn (51.0 %): 99 % of its gradient elements become 0.")
    assert said[5] == "`slow` does not learn (51.0 %)."
    assert len(said) == 6


def test_one_seed_has_no_spread_and_small_differences_no_sentence(tmp_path):
    path = file_of(
        tmp_path, rows("float32", [0.92]), rows("int8", [0.93], lost=65),
        rows("fp8_stored_rne", [0.915]), rows("fp8_stored_sr", [0.92]),
    )  # fmt: skip
    said = findings(summary(read_curves(path)))
    assert said == ["`int8` loses 65 % of its gradient elements and hardly suffers (+1.0 points)."]
    assert "nan" not in training_files(path)["report.md"].decode()
    assert "nan" not in summary_text(path)


def test_without_float32_nothing_is_compared(tmp_path):
    path = file_of(tmp_path, rows("int8", [0.92], lost=65), rows("fp8_stored_rne", [0.5]))
    assert findings(summary(read_curves(path))) == []


def test_networks_are_judged_by_perplexity(tmp_path):
    path = file_of(tmp_path, rows("float32", [0.31], perplexity=17.25))
    page = training_files(path)["report.md"].decode()
    assert "| recipe | seeds | perplexity |" in page
    assert "| `float32` | 1 | 17.25 |" in page
    assert "17.25" in summary_text(path)


def test_odd_names_and_errors_stay_what_they_are(tmp_path):
    odd = "a|b`c\n# <b>*d*"
    path = file_of(tmp_path, rows("float32", [0.9]), rows(odd, [0.9]),
                   rows("=1+1", [0.9], error="<script> *x* `y`\n# z"))  # fmt: skip
    assert "'=1+1" in path.read_text(encoding="utf-8")  # no formula for a spreadsheet
    page = training_files(path)["report.md"].decode()
    assert "<script>" not in page
    assert "\n# z" not in page
    assert "`` a\\|b`c # <b>*d* ``" in page
    for line in page.splitlines():
        if line.startswith("| `"):
            assert line.replace("\\|", "").count("|") == 7
    assert len(summary_text(path).splitlines()) == 4


@pytest.mark.parametrize("text", [
    "", "a,b\n1,2\n", "recipe,seed,step,loss\n", "recipe,seed,step,loss\nx,a,1,2\n",
    "recipe,seed,step,loss\nx,0,1,two\n", 'recipe,seed,step,loss\n"x,0,1,2\n',
    "recipe,seed,step,loss\nx,0,1,2,3,4\n",
])  # fmt: skip
def test_files_that_are_no_curves(tmp_path, text):
    path = tmp_path / "c.csv"
    path.write_text(text)
    if is_training(path):
        with pytest.raises(NumsimError):
            training_files(path)


def test_only_runs_that_failed(tmp_path):
    bad = dict.fromkeys(CURVE_COLUMNS, "") | {"recipe": "fp8", "seed": 0, "error": "step 2, x"}
    path = tmp_path / "c.csv"
    write_csv(path, [bad], CURVE_COLUMNS)
    page = training_files(path)["report.md"].decode()
    assert "step 2, x" in page
    assert "nan" not in page
    assert "fp8" in summary_text(path)
