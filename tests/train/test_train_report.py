"""The report of training on curves made by hand: its table, its sentences, odd names."""

import math

import pytest

from numsim.errors import NumsimError, printable
from numsim.report import tensors, training
from numsim.report.training import (
    findings,
    is_training,
    read_curves,
    summary,
    summary_text,
    training_files,
)  # fmt: skip
from numsim.train.files import write_csv
from numsim.train.runs import CURVE_COLUMNS
from numsim.train.watch import TENSOR_COLUMNS

pytestmark = pytest.mark.usefixtures("unrendered")


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
    assert said[2] == "Stochastic rounding gives 12.5 points back to `fp8` (90.5 %)."
    assert said[3] == "Stochastic rounding gives 30.5 points back to `q3.4` (92.0 %)."
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


def test_a_loss_that_suffers_is_no_small_cost(tmp_path):
    path = file_of(tmp_path, rows("float32", [0.92]), rows("int8", [0.92], lost=65, loss=0.7))
    assert findings(summary(read_curves(path))) == []
    assert "- One seed has no spread" in training_files(path)["report.md"].decode()


def test_without_float32_nothing_is_compared(tmp_path):
    path = file_of(tmp_path, rows("int8", [0.92], lost=65), rows("fp8_stored_rne", [0.5]))
    assert findings(summary(read_curves(path))) == []


def test_a_reference_that_has_not_learned_compares_nothing(tmp_path):
    flat = rows("float32", [0.5]), rows("int8", [0.5], lost=65)
    for row in flat[0]:
        row["loss"] = 0.69
    said = findings(summary(read_curves(file_of(tmp_path, *flat))))
    assert said == ["`float32` itself has hardly learned: too few steps to compare formats."]


def test_the_sentences_on_perplexity_say_what_the_table_shows(tmp_path):
    path = file_of(
        tmp_path, rows("float32", [0.3, 0.3], perplexity=20.0),
        rows("int8", [0.3, 0.3], perplexity=20.1, lost=65),
        rows("fp8_hybrid", [0.3, 0.3], perplexity=20.1, lost=1),
        rows("fp8_stored_rne", [0.2, 0.2], perplexity=25.0),
        rows("fp8_stored_sr", [0.3, 0.3], perplexity=21.0),
    )  # fmt: skip
    said = findings(summary(read_curves(path)))
    assert said == [
        "`int8` loses 65 % of its gradient elements and hardly suffers: its perplexity differs "
        "from that of `float32` by +0.5 ± 0.0 %.",
        "`fp8_stored_rne` costs +25.0 ± 0.0 % of perplexity.",
        "`fp8_stored_sr` costs +5.0 ± 0.0 % of perplexity.",
        "Stochastic rounding of the *stored* weight brings `fp8` from perplexity 25.0 to 21.0.",
    ]
    assert set(training_files(path)) == {"report.md", "loss.png", "perplexity.png"}


TENSORS = ("recipe", "seed", *TENSOR_COLUMNS)


def tensor(recipe, step, name, role, fmt="int8", *, lost=0.0, moved=math.nan, bins="2^-3:5 2^0:1"):
    edges = (math.nan, math.nan) if fmt == "float32" else (2.0**-4, 8.0)
    rates = (0.0, lost, lost, moved)
    values = (recipe, 0, step, name, role, fmt, 1.5, *rates, *edges, bins)
    return dict(zip(TENSORS, values, strict=True))


@pytest.mark.rendered
@pytest.mark.slow
def test_watched_tensors_are_drawn_with_the_one_that_loses_most(tmp_path):
    path = file_of(tmp_path, rows("float32", [0.9]), rows("int8", [0.9]), rows("a|b", [0.9]))
    made = [
        tensor("int8", 1, "head", "g", lost=0.9), tensor("int8", 2, "head", "g", lost=0.25),
        tensor("int8", 2, "lstm", "g", lost=0.5), tensor("int8", 2, "lstm", "gT", lost=0.8),
        tensor("int8", 2, "cell", "tanh", lost=0.1), tensor("int8", 2, "head", "x", bins=""),
        tensor("int8", 2, "w", "parameter", "float32", moved=0.75),
        tensor("int8", 1, "w", "parameter", "float32", moved=0.5),
        tensor("a|b", 2, "head", "w"), tensor("gone", 2, "head", "x"),
    ]  # fmt: skip
    write_csv(path.with_suffix(".tensors.csv"), made, TENSORS)
    files = training_files(path)
    assert set(files) == {"report.md", "loss.png", "accuracy.png", "tensors.png", "moved.png"}
    page = files["report.md"].decode()
    assert "| `int8` | gradient | `lstm` | `int8` | 1.5 | 0.00 | 50.00 | 50.00 |  |" in page
    assert "| `int8` | inside | `cell tanh` | `int8` | 1.5 | 0.00 | 10.00 | 10.00 |  |" in page
    assert "| `int8` | parameter | `w` | `float32` | 1.5 | 0.00 | 0.00 | 0.00 | 75.00 |" in page
    assert "gone" not in page
    assert "nan" not in page
    assert training_files(path) == files


def test_a_recipe_is_drawn_alike_in_every_figure(tmp_path, monkeypatch):
    path = file_of(tmp_path, rows("float32", [0.9]), rows("int8", [0.9]))
    made = [
        tensor(recipe, step, "w", "parameter", "float32", moved=0.0)
        for recipe in ("float32", "int8") for step in (1, 2)
    ]  # fmt: skip
    write_csv(path.with_suffix(".tensors.csv"), made, TENSORS)
    drawn = []
    for module in (training, tensors):
        save = module.save_figure
        monkeypatch.setattr(
            module, "save_figure", lambda f, c, save=save: (drawn.append(f), save(f, c))[1]
        )
    training_files(path)
    looks = {
        (line.get_label(), line.get_color(), line.get_linestyle())
        for figure in drawn for axes in figure.axes for line in axes.lines
    }  # fmt: skip
    assert len(drawn) == 3  # loss, accuracy, moved
    assert len(looks) == 2
    stalled = [line for line in drawn[-1].axes[0].lines if not any(line.get_ydata())]
    assert stalled
    assert not any(line.get_clip_on() for line in stalled)  # seen on the axis


@pytest.mark.parametrize(("change", "said"), [
    ({"histogram": "2^-3=5"}, "a histogram is written"), ({"amax": "x"}, "column amax"),
    (None, "has the columns histogram, and .* does not"),
])  # fmt: skip
def test_files_that_are_no_tensors(tmp_path, change, said):
    path = file_of(tmp_path, rows("int8", [0.9]))
    row = tensor("int8", 2, "head", "g") | (change or {})
    columns = TENSORS if change else TENSORS[:-1]
    write_csv(path.with_suffix(".tensors.csv"), [{k: row[k] for k in columns}], columns)
    with pytest.raises(NumsimError, match=said):
        training_files(path)


def test_curves_that_went_through_a_spreadsheet_are_read(tmp_path):
    path = file_of(tmp_path, rows("float32", [0.9, 0.95]), rows("int8", [0.8, 0.9]))
    whole = training_files(path)
    semicolons = path.read_text(encoding="utf-8").replace(",", ";").replace(".", ",")
    path.write_bytes(b"\xef\xbb\xbf" + semicolons.encode())
    assert is_training(path)
    again = training_files(path)
    assert again["accuracy.png"] == whole["accuracy.png"]
    assert again["report.md"].replace(b"0,1,0", b"0.1.0") == whole["report.md"]
    path.write_text(semicolons.replace(";1,0;", ";one;", 1), encoding="utf-8")
    with pytest.raises(NumsimError, match="in line 2; give the file that numsim train wrote"):
        training_files(path)


def test_networks_are_judged_by_perplexity(tmp_path):
    path = file_of(tmp_path, rows("float32", [0.31], perplexity=17.25))
    page = training_files(path)["report.md"].decode()
    assert "| recipe | seeds | perplexity |" in page
    assert "| `float32` | 1 | 17.25 |" in page
    assert "17.25" in summary_text(path)


@pytest.mark.rendered
def test_odd_names_and_errors_stay_what_they_are(tmp_path):
    odd = "a|b`c\n# <b>*d*"
    out = "x`` <img src=y> ``z"  # two backticks end a code span of two
    path = file_of(tmp_path, rows("float32", [0.9]), rows(odd, [0.9]), rows(out, [0.9]),
                   rows("=1+1", [0.9], error="<script> *x* `y`\n# z"))  # fmt: skip
    assert "'=1+1" in path.read_text(encoding="utf-8")  # no formula for a spreadsheet
    page = training_files(path)["report.md"].decode()
    assert "<script>" not in page
    assert "\n# z" not in page
    assert page.count("` x`` <img src=y> ``z `") == page.count("<img src=y>") > 0
    assert "`` a\\|b`c\\u000a# <b>*d* ``" in page
    for line in page.splitlines():
        if line.startswith("| `"):
            assert line.replace("\\|", "").count("|") == 7
    assert len(summary_text(path).splitlines()) == 5


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


NAMES = ["a`` <img src=x> ``b", "\x1b[31mred", "=1+1", "@f", "_hidden", "$\\x$", "a|b"]


def test_no_name_of_a_recipe_runs_anywhere(tmp_path):
    # two backticks ended the code span, ESC went to the terminal, "_" hid a line of the legend
    path = file_of(tmp_path, *(rows(name, [0.9], error=f"<b>{name}") for name in NAMES))
    page = training_files(path)["report.md"].decode()
    for line in (
        "| ` a`` <img src=x> ``b ` |", "| `\\u001b[31mred` |", "| `=1+1` |", "| `@f` |",
        "| `a\\|b` |", "- `=1+1` seed 0: &lt;b&gt;=1+1",
    ):  # fmt: skip
        assert line in page
    assert "<b>" not in page
    assert "\x1b" not in page + summary_text(path)
    assert "\n=1+1 " in summary_text(path)
    assert list(summary(read_curves(path)).index) == [printable(name) for name in NAMES]
    cells = path.read_text().splitlines()[5:]
    assert all(line[0] in "'ae_$\"\\\x1b" for line in cells)  # no cell begins a formula


def test_every_recipe_stands_in_the_legend(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    seen = []
    monkeypatch.setattr(Figure, "legend", lambda *a, **_: seen.append(a[2]))
    training_files(file_of(tmp_path, *(rows(name, [0.9]) for name in NAMES)))
    assert [len(names) for names in seen] == [len(NAMES)] * 2
