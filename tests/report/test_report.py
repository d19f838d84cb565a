import html
import math
import os
import re
import warnings

import pandas as pd
import pytest
from markdown_it import MarkdownIt  # comes with rich

import numsim.report
from numsim.errors import NumsimError
from numsim.report import figures, write_report
from numsim.report.tables import local_sqnr, pivot, read_results
from numsim.sweep.columns import NAMES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unrendered")]


def files_of(*figures, tables=("cases", "products")):
    drawn = [f"{name}.{ending}" for name in figures for ending in ("png", "svg")]
    return ["report.md", "report.html", *drawn, *(f"{name}.csv" for name in tables)]


FIGURES = ["kl", "perplexity", "sqnr", "pareto_bits", "layers"]


def case(name, fmt, scales, target, perplexity, local, **more):
    """Rows of one case: one for each product in `local`, one for the network."""
    common = dict.fromkeys(NAMES, "") | {
        "case_id": name, "model": "toy", "format": fmt, "weight_format": fmt, "act_format": fmt,
        "emulated": True,
        "granularity": scales, "rounding": "rne", "target": target,
        "exact": target != "ideal.fp32", "seed": 0, "numsim_version": "0.1.0",
        "bits_per_weight": {"int4": 4.01, "int8": 8.01, "bfloat16": 16.0}.get(fmt, 8.01),
    }  # fmt: skip
    rows = [
        common | {"layer": layer, "op": op, "M": 64, "sqnr_local_db": value} | more
        for (layer, op), value in local.items()
    ]
    kl = perplexity / 1000 if perplexity else ""
    figures = {"perplexity": perplexity, "kl_nats": kl, "kl_stderr": 0.001, "dnll": kl,
               "dnll_stderr": 0.02, "sqnr_cumulative_db": 30.0}  # fmt: skip
    return [*rows, common | {"layer": "all"} | figures | more]


def save(path, rows):
    pd.DataFrame(rows, columns=list(NAMES)).to_csv(path, index=False)
    return path


@pytest.fixture
def rows():
    first, last = ("0", "q_proj"), ("1", "down_proj")
    return [
        *case("a", "int8", "per_tensor", "ideal.fp32", 41.5, {first: 30.0, last: 20.5}),
        *case("b", "int8", "per_tensor", "ideal.int", 41.5, {first: 29.0, last: 21.0}),
        *case("c", "int4", "per_tensor", "ideal.int", 1234.5, {first: 9.0, last: math.inf}),
        *case("d", "int8", "per_token", "ideal.int", 41.0, {first: 38.0, last: ""}),
        *case("e", "bfloat16", "none", "ideal.fp32", 40.9, {first: 50.0, last: math.inf}),
    ]


@pytest.fixture
def csv(tmp_path, rows):
    return save(tmp_path / "results.csv", rows)


def test_products_and_caches_are_in_the_names_of_cases(tmp_path):
    local = {("0", "q_proj"): 30.0}
    plain = case("a", "int8", "per_tensor", "ideal.int", 41.5, local, products="linears")
    more = case("b", "int8", "per_tensor", "ideal.int", 42.5, local, products="linears+qk+pv")
    cache = case("c", "int8", "per_tensor", "mixed", 43.5, local, products="linears",
                 kv_format="int4", weight_format="mixed")  # fmt: skip
    recipe = case("d", "mine", "per_tensor", "mixed", 44.5, local, recipe="mine")
    found = read_results(save(tmp_path / "r.csv", [*plain, *more, *cache, *recipe])).cases
    assert found["name"].tolist() == [
        "int8 linears, per_tensor", "int8 linears+qk+pv, per_tensor",
        "int8 linears kv_format=int4, per_tensor", "mine, per_tensor",
    ]  # fmt: skip
    # other products are no other unit: they do not stand in one line of a table
    assert len(pivot(read_results(tmp_path / "r.csv"), "kl_nats")) == 4
    alone = read_results(save(tmp_path / "r.csv", plain)).cases
    assert alone["name"].tolist() == ["int8, per_tensor"]


def test_pivot_has_every_case_once_and_formats_together(csv):
    table = pivot(read_results(csv), "perplexity")
    assert table.columns.tolist() == ["ideal.fp32", "ideal.int"]
    assert table.fillna(0).T.to_dict("list") == {
        ("int8", "per_tensor"): [41.5, 41.5],
        ("int8", "per_token"): [0, 41.0],
        ("int4", "per_tensor"): [0, 1234.5],
        ("bfloat16", "none"): [40.9, 0],
    }
    assert table.index.get_level_values("format").tolist() == ["int8", "int8", "int4", "bfloat16"]


def test_local_sqnr_is_the_lowest_over_targets(csv):
    table = local_sqnr(read_results(csv))
    assert table.index.tolist() == ["0.q_proj", "1.down_proj"]
    assert table[("int8", "per_tensor")].tolist() == [29.0, 20.5]
    assert table[("int4", "per_tensor")].tolist() == [9.0, math.inf]
    assert math.isnan(table.loc["1.down_proj", ("int8", "per_token")])


@pytest.mark.rendered
def test_page(csv, tmp_path):
    files = write_report(csv, tmp_path / "deep" / "report")
    assert [file.name for file in files] == files_of(*FIGURES, "units")
    found = [p.name for p in files[0].parent.rglob("*") if p.is_file()]
    assert sorted(found) == sorted(files_of(*FIGURES, "units"))
    page = files[0].read_text()
    for line in (
        "- Model `toy`, numsim `0.1.0`, seed `0`; finished cases in `results.csv`: 5.",
        "- Exact emulation, bit for bit: `ideal.int`.",
        "- Fake quantisation, rounded values multiplied and added in float32: `ideal.fp32`.",
        "| format | scales | bits | `ideal.fp32` (fake) | `ideal.int` |",
        "| `int8` | per_tensor | 8.01 | 41.500 | 41.500 |",
        "| `int8` | per_token | 8.01 |  | 41.000 |",
        "| `int8` | per_tensor | 8.01 | 0.0415 | 0.0415 |",
        "| `int8` | per_tensor | `1.down_proj` 20.50 | `0.q_proj` 29.00 |  |",
        "| `int4` | per_tensor | `0.q_proj` 9.00 | `1.down_proj` ∞ |  |",
        "|  | format | scales | unit | bits | KL, nats | dNLL, nats | perplexity "
        "| SQNR of the logits, dB |",
        "|  | `bfloat16` | none | `ideal.fp32` (fake) | 16.00 | 0.041±0.001 | +0.04±0.02 | 40.900 "
        "| 30.00 |",
        "| ? | `int4` | per_tensor | `ideal.int` | 4.01 | 1.234±0.001 | +1.23±0.02 | 1234.500 "
        "| 30.00 |",
        "![Perplexity](perplexity.png)",
    ):
        assert line in page.splitlines()
    assert "unfinished" not in page


@pytest.mark.rendered
def test_same_bytes_twice_and_whatever_the_style(csv, tmp_path):
    import matplotlib as mpl

    first = write_report(csv, tmp_path / "one")
    with mpl.rc_context({"font.size": 20, "lines.markersize": 30}):
        second = write_report(csv, tmp_path / "two")
        assert mpl.rcParams["font.size"] == 20
    again = write_report(csv, tmp_path / "one")
    for paths in zip(first, second, again, strict=True):
        assert len({path.read_bytes() for path in paths}) == 1


def test_figures_tell_targets_of_a_format_apart(csv, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, caption: drawn.append(figure))
    results = read_results(csv)
    figures.draw_figures(results)
    for figure in drawn[:3]:
        same = [
            line for line in figure.axes[0].lines
            if line.get_marker() == "o" and line.get_linestyle() == "None"
        ]  # fmt: skip
        colours = {"ideal.fp32": "#0072B2", "ideal.int": "#D55E00"}
        assert [line.get_color() for line in same] == [
            colours[t] for t in results.cases.loc[results.cases.scales == "per_tensor", "target"]
        ]
        places = [
            line.get_xdata()[0] for line in figure.axes[0].lines if len(line.get_xdata()) == 1
        ]
        assert len(set(places)) == len(results.cases)
        words = [text.get_text() for text in figure.legends[0].get_texts()]
        assert words[:3] == ["unit", "ideal.fp32", "ideal.int"]


def test_unfinished_cases_and_cut_lines_are_left_out(tmp_path, rows):
    path = save(
        tmp_path / "r.csv", rows + case("f", "int2", "none", "ideal.int", 9, {("0", "q"): 1})[:1]
    )
    with path.open("a") as file:
        file.write("g,toy,all,,int2")
    results = read_results(path)
    assert results.unfinished == ("f",)
    assert "int2" not in set(results.cases["format"]) | set(results.products["format"])
    page = write_report(path, tmp_path / "out")[0].read_text()
    assert "- Left out, unfinished: case f." in page
    assert "int2" not in page


def test_a_case_written_twice_counts_once(tmp_path, rows):
    table = pivot(read_results(save(tmp_path / "r.csv", rows + rows[:3])), "perplexity")
    assert table.notna().to_numpy().sum() == 5


def test_settings_that_differ_are_named(tmp_path):
    local = {("0", "fc1"): 3.0}
    rows = [
        *case("a", "int8", "per_block", "ideal.int", 9.0, local, block=32, rounding="sr", seed=1),
        *case("b", "int8", "per_block", "ideal.int", 8.0, local, block=32, rounding="sr", seed=2),
        *case("c", "int8", "per_block", "ideal.int", 7.0, local, block=32),
        *case("d", "int8", "per_block", "ideal.int", 6.0, local, block=64, act_format="int4"),
    ]
    table = pivot(read_results(save(tmp_path / "r.csv", rows)), "perplexity")
    assert table["ideal.int"].to_dict() == {
        ("int8 rounding=sr seed=1", "per_block 32"): 9.0,
        ("int8 rounding=sr seed=2", "per_block 32"): 8.0,
        ("int8 rounding=rne seed=0", "per_block 32"): 7.0,
        ("int8 rounding=rne seed=0", "per_block 64"): 6.0,
    }


def test_settings_that_change_numbers_are_named_beside_other_formats_too(tmp_path):
    local = {("0", "fc1"): 3.0}
    blocks = {"block": 32, "scale_format": "float8_e8m0fnu", "scale_rule": "floor"}
    rows = [
        *case("a", "int8", "per_token", "ideal.int", 9.0, local, scale_format="float32",
              scale_rule="amax"),
        *case("b", "int8", "per_tensor", "ideal.int", 8.0, local, rounding="sr", seed=1),
        *case("c", "int4", "per_tensor", "ideal.int", 7.0, local, scale_format="float32",
              scale_rule="mse"),
        *case("d", "mxint8", "per_block", "ideal.int", 6.0, local, weight_format="q1.6", **blocks),
        *case("e", "int8", "per_block", "ideal.int", 5.0, local, **blocks),
    ]  # fmt: skip
    results = read_results(save(tmp_path / "r.csv", rows))
    assert results.cases["format"].tolist() == [
        "int8", "int8 rounding=sr", "int4 scale_rule=mse", "mxint8",
        "int8 scale_format=float8_e8m0fnu",
    ]  # fmt: skip
    assert set(results.products["format"]) == set(results.cases["format"])


def test_formats_of_ones_own_keep_names_that_differ_in_tables_and_figures(tmp_path, monkeypatch):
    local, mine = {("0", "fc1"): 3.0}, "mine (kind=float, bits=8, precision=4, bias={})"
    rows = [
        *case("a", mine.format(9), "none", "ideal.fp32", 9.0, local),
        *case("b", mine.format(2), "none", "ideal.fp32", 8.0, local),
        *case("c", "yours (kind=table, bits=2)", "none", "ideal.fp32", 7.0, local),
        *case("d", "float8_e4m3fn (bias=10)", "none", "ideal.fp32", 6.0, local, rounding="sr"),
        *case("e", "paper (draft)", "none", "ideal.fp32", 5.0, local),  # a recipe's name
    ]
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, caption: drawn.append(figure))
    path = save(tmp_path / "r.csv", rows)
    results = read_results(path)
    names = ["mine (bias=9)", "mine (bias=2)", "yours", "float8_e4m3fn (bias=10) rounding=sr",
             "paper (draft)"]  # fmt: skip
    assert results.cases["format"].tolist() == names
    assert list(dict.fromkeys(results.products["format"])) == names
    figures.draw_figures(results)
    for figure in drawn:
        labels = [text.get_text() for axes in figure.axes for text in axes.get_xticklabels()]
        assert len([x for x in labels if x.startswith("mine (bias=")]) == 2, labels
    monkeypatch.undo()
    page = write_report(path, tmp_path / "out")[0].read_text()
    assert "- Format `mine (bias=2)`: `mine (kind=float, bits=8, precision=4, bias=2)`." in page
    assert "- Format `yours`: `yours (kind=table, bits=2)`." in page
    assert page.count("- Format ") == 3


def test_unlike_runs_are_named_and_not_ranked_together(tmp_path):
    local, more = {("0", "fc1"): 3.0}, {"text": "a.txt", "tokens": 100}
    rows = [
        *case("a", "int8", "none", "ideal.int", 9.0, local, **more),
        *case("b", "int4", "none", "ideal.int", 10.0, local, **more),
        *case("c", "int8", "none", "ideal.fp32", 7.0, local, **more | {"tokens": 50}),
        *case("d", "int4", "none", "ideal.fp32", 8.0, local, **more | {"tokens": 50}),
    ]
    path = save(tmp_path / "r.csv", rows)
    assert pivot(read_results(path), "perplexity").index.get_level_values(0).tolist() == [
        "int8 tokens=100", "int4 tokens=100", "int8 tokens=50", "int4 tokens=50",
    ]  # fmt: skip
    page = write_report(path, tmp_path / "out")[0].read_text()
    tables = [part.split("\n## ")[0] for part in page.split("## Cases, best first")[1:]]
    ranked = [re.findall(r"`(int\d tokens=\d+)`", table) for table in tables]
    assert ranked == [["int8 tokens=100", "int4 tokens=100"], ["int8 tokens=50", "int4 tokens=50"]]


@pytest.mark.parametrize("perplexity", [math.inf, 5.0, ""])
def test_single_case_with_little_in_it(tmp_path, perplexity):
    rows = case("a", "nf4", "none", "ideal.exact", 5.0, {("lm_head", ""): math.inf})
    rows[-1] |= {"perplexity": perplexity, "sqnr_cumulative_db": "inf", "bits_per_weight": ""}
    files = write_report(save(tmp_path / "r.csv", rows), tmp_path / "out")
    assert [file.name for file in files] == files_of(
        "kl", *(["perplexity"] if perplexity == 5.0 else [])
    )
    page = files[0].read_text()
    assert "| `nf4` | none | `lm_head` ∞ |  |  |" in page
    assert ("## Perplexity" in page) == (perplexity != "")
    assert "| `nf4` | none |  | ∞ |" in page
    assert "no values" not in page


def test_many_layers_and_cases_without_product_rows(tmp_path):
    local = {(str(i), op): float(i) for i in range(40) for op in ("q|a", "$k", "v")}
    rows = case("a", "float8_e4m3fn", "none", "ideal.exact", 5.0, local)
    path = save(tmp_path / "r.csv", rows)
    assert [file.name for file in write_report(path, tmp_path / "out")] == files_of(*FIGURES)
    assert "`0.q\\|a` 0.00" in (tmp_path / "out" / "report.md").read_text()
    path = save(path, rows[-1:])
    found = [file.name for file in write_report(path, tmp_path / "out")]
    assert found == files_of(*FIGURES[:4], tables=["cases"])


def edit(**columns):
    def change(path):
        pd.read_csv(path, dtype=str).assign(**columns).to_csv(path, index=False)

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.unlink(), r"needs the CSV file of a sweep, and .* does not exist; give"),
        (lambda p: (p.unlink(), p.mkdir()), r"is a folder; give the results.csv"),
        (lambda p: p.write_bytes(b"\x89PNG\xff\x00"), r"is not a CSV file \(.*\); give"),
        (lambda p: p.write_bytes(b""), r"names none of their columns; give"),
        (
            lambda p: p.write_text("case_id,layer\n1,all\n"),
            r"has the columns op, granularity, block",
        ),
        (lambda p: p.write_text(p.read_text() + "," * 99), r"lines longer than its header"),
        (lambda p: p.write_text(p.read_text() + '"open'), r"is not a CSV file \(unexpected end"),
        (edit(layer="0"), r'needs a finished case, .* layer "all", .* none in 15 rows; finish'),
        (edit(perplexity="low"), r"column perplexity holds numbers, and .* has 'low' there"),
    ],
)
def test_wrong_files(csv, tmp_path, spoil, message):
    spoil(csv)
    out = tmp_path / "out"
    with pytest.raises(NumsimError, match=message) as caught:
        write_report(csv, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def excel(path, separator=";", decimal=","):
    """What a spreadsheet of a country with decimal commas makes of the file."""
    table = pd.read_csv(path, dtype=str)
    for name in ("perplexity", "kl_nats", "sqnr_cumulative_db", "sqnr_local_db", "bits_per_weight"):
        table[name] = table[name].str.replace(".", decimal)
    table["exact"] = table["exact"].str.upper()
    return table.to_csv(index=False, sep=separator, lineterminator="\r\n")


@pytest.mark.parametrize("how", ["semicolons", "sep line", "tabs", "points", "byte order mark"])
def test_files_of_a_spreadsheet_are_read(csv, tmp_path, how):
    want = write_report(csv, tmp_path / "want")
    separator = "\t" if how == "tabs" else ";"
    text = excel(csv, separator, "." if how == "points" else ",")
    if how == "sep line":
        text = "sep=;\r\n" + text
    csv.write_text(text, encoding="utf-8-sig" if how == "byte order mark" else "utf-8", newline="")
    got = write_report(csv, tmp_path / "got")
    assert [path.read_bytes() for path in got] == [path.read_bytes() for path in want]


def test_two_files_one_after_the_other_are_read(csv, tmp_path, rows):
    want = write_report(csv, tmp_path / "want")
    one, two = save(tmp_path / "1.csv", rows[:6]), save(tmp_path / "2.csv", rows[6:])
    other = pd.read_csv(two, dtype=str)
    other["more"] = "x"  # of a version with another column
    for text in (
        two.read_text(), "\ufeff" + two.read_text(), excel(two), other.to_csv(index=False),
    ):  # fmt: skip
        csv.write_text(one.read_text() + text)
        got = write_report(csv, tmp_path / "got")
        assert [path.read_bytes() for path in got] == [path.read_bytes() for path in want]


@pytest.mark.parametrize("separator", [",", ";"])
def test_empty_columns_and_lines_of_a_spreadsheet_say_nothing(csv, tmp_path, separator):
    want = write_report(csv, tmp_path / "want")
    lines = excel(csv, separator, "." if separator == "," else ",").splitlines()
    count = lines[0].count(separator) + 2
    more = [f"{line}{separator * 2}" for line in lines]
    csv.write_text("\n".join([*more[:3], separator * count, *more[3:], separator * count, ""]))
    got = write_report(csv, tmp_path / "got")
    assert [path.read_bytes() for path in got] == [path.read_bytes() for path in want]
    csv.write_text("\n".join([*more[:3], f"{more[3]}x", *more[4:], ""]))  # text without a column
    with pytest.raises(NumsimError, match="lines longer than its header, line 4 the first"):
        write_report(csv, tmp_path / "got")


NAMED = {
    "negative": (edit(perplexity="-5"), r"perplexity holds numbers of 1 or more.*'-5'.*line 2;"),
    "below 1": (edit(perplexity="0.5"), r"numbers of 1 or more, and .*'0\.5' there, in line 2;"),
    "kl": (edit(kl_nats="-0.2"), r"column kl_nats holds numbers of 0 or more.*line 2;"),
    "bits": (edit(bits_per_weight="-8"), r"column bits_per_weight holds .* 0 or more.*line 2;"),
    "exact": (edit(exact="VERO"), r"column exact holds True or False, and .*'VERO'.*line 2;"),
    "line": (
        lambda p: p.write_text(p.read_text().replace("41.0,", "-41.0,", 1)),
        r"perplexity holds numbers of 1 or more.*'-41\.0' there, in line 13;",
    ),
    "short": (
        lambda p: p.write_text(p.read_text().replace("c,toy,0,", "c\nc,toy,0,", 1)),
        r"line 8 of .* has 1 cells of \d+, separated by commas; it is damaged",
    ),
    "long": (
        lambda p: p.write_text(p.read_text().replace("c,toy,0,", "c,toy,,0,", 1)),
        r"lines longer than its header, line 8 the first",
    ),
    "joined": (
        lambda p: p.write_text(p.read_text().rstrip() + p.read_text()),
        r"lines longer than its header, line 16 the first",
    ),
    "thousands": (
        lambda p: p.write_text(excel(p).replace("1234,5", "1.234,5")),
        r"column perplexity holds numbers, and .*'1\.234,5' there, in line 10;",
    ),
    "version": (
        lambda p: (
            pd.read_csv(p, dtype=str).assign(numsim_version="0.0.9").drop(columns="rounding")
            .to_csv(p, index=False)
        ),
        r"has the columns rounding, and .*, written by numsim 0\.0\.9 \(this is .*\), does not;",
    ),
    "second": (
        lambda p: p.write_text(p.read_text() + "case_id,layer,op\n1,all,\n"),
        r"has the columns .*weight_format.*, and line 17 of .* does not;",
    ),
    "twice": (
        lambda p: p.write_text(p.read_text().replace("seconds", "text", 1)), "has column text 2",
    ),
    "utf-16": (lambda p: p.write_text(p.read_text(), "utf-16"), r"\(UTF-16; save it as UTF-8\)"),
    "latin": (
        lambda p: p.write_text(p.read_text().replace("d,toy", "d,töy", 1), "latin-1"),
        r"\(invalid .* in UTF-8, in line 11\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMED)
def test_what_cannot_be_read_is_named_with_its_line(csv, tmp_path, kind):
    spoil, message = NAMED[kind]
    spoil(csv)
    with pytest.raises(NumsimError, match=message) as caught:
        write_report(csv, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX pipes")
def test_a_pipe_is_refused_at_once(csv, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NumsimError, match="pipe is a pipe, not a file"):
        write_report(tmp_path / "pipe", tmp_path / "out")
    with pytest.raises(NumsimError, match="is a file; name another"):
        write_report(csv, tmp_path / "pipe")


def test_escaped_names_come_back_and_control_characters_do_not(tmp_path, rows):
    more = {"recipe": "'=1+1", "text": "a\x1b[31m"}
    found = read_results(save(tmp_path / "r.csv", [row | more for row in rows]))
    assert set(found.cases["recipe"]) == {"=1+1"}
    assert set(found.cases["text"]) == {r"a\u001b[31m"}


def test_header_only(csv, tmp_path):
    csv.write_text(csv.read_text().splitlines()[0] + "\n")
    with pytest.raises(NumsimError, match="none in 0 rows"):
        write_report(csv, tmp_path / "out")


def test_output_in_the_way(csv, tmp_path):
    with pytest.raises(NumsimError, match=r"the output is a folder, and .* is a file"):
        write_report(csv, csv)
    with pytest.raises(NumsimError, match=r"cannot write into .*: Not a directory; name a folder"):
        write_report(csv, csv / "deep")
    (tmp_path / "out" / "layers.png").mkdir(parents=True)
    with pytest.raises(NumsimError, match=r"layers.png is a folder"):
        write_report(csv, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["layers.png"]


def test_failed_writing_leaves_the_old_report(csv, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = {p: p.read_bytes() for p in write_report(csv, out)}
    monkeypatch.setattr(
        numsim.report.Path, "write_bytes", full_disk(numsim.report.Path.write_bytes)
    )
    with pytest.raises(NumsimError, match="No space left"):
        write_report(csv, out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def full_disk(write):
    def limited(path, data):
        if "sqnr" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, data)

    return limited


def test_an_encoder_is_reported_by_its_embeddings(tmp_path):
    """No section is empty, and nothing speaks of logits or perplexity."""
    rows = []
    for name, cosine in (("int8", 0.999), ("int4", 0.95)):
        new = case(name, name, "per_tensor", "ideal.int", "", {("0", "q_proj"): 30.0})
        new[-1] |= {
            "embedding_cosine": cosine, "embedding_cosine_min": cosine - 0.01,
            "embedding_cosine_stderr": 0.0002, "dnll": "", "kl_stderr": "", "dnll_stderr": "",
        }  # fmt: skip
        rows += new
    files = write_report(save(tmp_path / "r.csv", rows[::-1]), tmp_path / "out")
    assert [f.name for f in files] == files_of("cosine", "sqnr", "pareto_bits", "layers")
    page = files[0].read_text()
    assert re.findall("^#.*", page, re.MULTILINE) == [
        "# Number formats on `toy`", "## Answer", "## Cases, best first",
        "## Cosine of sentence embeddings to the reference's",
        "## SQNR of the last hidden states, dB",
        "## Worst products: lowest local SQNR, dB", "## More figures",
    ]  # fmt: skip
    assert page.index("| 0.9990±0.0002 | 0.98900 |") < page.index("| 0.9500±0.0002 | 0.94000 |")
    for word in ("logits", "erplexity", "KL", "nats"):
        assert word not in page


def test_a_classifier_is_compared_text_by_text(tmp_path):
    rows = case("a", "int8", "per_tensor", "ideal.int", "", {("0", "q_proj"): 30.0}, kl_nats=0.1)
    page = write_report(save(tmp_path / "r.csv", rows), tmp_path / "out")[0].read_text()
    assert "## KL divergence from the reference, nats for each text" in page
    assert "each token" not in page


def test_counts_that_another_program_wrote_with_a_point_are_counts(csv, tmp_path):
    edit(tokens="64", seed="3", block="32")(csv)
    want = write_report(csv, tmp_path / "want")[0].read_text()
    assert "tokens scored `64`" in want
    for tokens, seed, block in (("64.0", "3.0", "32.0"), ("64,0", "3,0", "32,0")):
        edit(tokens=tokens, seed=seed, block=block)(csv)
        assert write_report(csv, tmp_path / "got")[0].read_text() == want


EVIL = (
    "</script><script>alert(1)</script> `` ` | a\n# b <img src=x> ![x](http://y) \x1b[31m $x$ _z_"
)


@pytest.mark.parametrize("length", [10, 60, 3000])
def test_long_names_stay_apart_in_figures(tmp_path, monkeypatch, length):
    """Begin and end are what a label keeps: names that differ in between were one label."""
    local, drawn = {("0", "fc1"): 3.0}, []
    names = [f"{'begin' * (length // 5)}{middle}{'end' * (length // 3)}" for middle in "ab"]
    rows = [
        row for i, name in enumerate(names)
        for row in case(str(i), name, "none", f"unit_{name}", 9.0 - i, local)
    ]  # fmt: skip
    monkeypatch.setattr(figures, "save_figure", lambda figure, caption: drawn.append(figure))
    figures.draw_figures(read_results(save(tmp_path / "r.csv", rows)))
    for figure in drawn:
        labels = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
        assert len(labels) == len(set(labels)) == 2
        assert max(map(len, labels)) < 160
    words = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert len({word for word in words if word.startswith("unit_")}) == 2


@pytest.mark.rendered
def test_names_are_text_in_markdown_and_figures(tmp_path):
    """No name of the CSV file becomes a tag, a cell, a heading or an image."""
    rows = case("a", EVIL, EVIL, EVIL, 5.0, {(EVIL, EVIL): 3.0})
    rows += case("b", "int8" * 80, "\u4e2d\u6587", "_hidden", 6.0, {("0", "q_proj"): 3.0})
    for row in rows:
        row |= {"model": EVIL, "text": EVIL, "error": EVIL if row["case_id"] == "a" else ""}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = write_report(save(tmp_path / "r.csv", rows), tmp_path / "out")
    assert [file.name for file in files] == files_of(*FIGURES)
    page = files[0].read_text()
    assert "\x1b" not in page
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(page)
    assert "&lt;script&gt;" in shown
    tags = set(re.findall(r"<[^>]*>", shown))
    images = {tag for tag in tags if tag.startswith("<img")}
    assert {re.search('src="([^"]*)"', tag)[1] for tag in images} == {
        f"{name}.png" for name in FIGURES
    }
    known = "h1 h2 p ul li code em table thead tbody tr th td"
    assert {re.match(r"</?(\w+)", tag)[1] for tag in tags - images} == set(known.split())
    assert shown.count("<h1>") == 1
    for table in shown.split("<table>")[1:]:
        rows = table.split("</table>")[0].split("<tr>")[1:]
        assert len({len(re.findall("<t[hd]", row)) for row in rows}) == 1
        assert EVIL.encode("unicode_escape")[:30].decode() in html.unescape(table) or (
            "<th>best</th>" in table  # the case of this name failed, and is no answer
        )


def test_products_left_in_float32_are_no_findings(tmp_path):
    rows = case("a", "int8", "none", "ideal.int", 5.0, {("0", "q_proj"): 30.0, ("0", "qk"): ""})
    rows[1]["emulated"] = False
    results = read_results(save(tmp_path / "r.csv", rows))
    assert results.products["op"].tolist() == ["q_proj"]


def test_storage_rules_of_one_element_format_keep_their_names(tmp_path):
    local = {("0", "q_proj"): 20.0}
    rows = [
        *case("a", "float4_e2m1fn", "per_block", "ideal.fp32", 9.0, local, format="nvfp4"),
        *case("b", "float4_e2m1fn", "per_block", "ideal.fp32", 8.0, local, format="mxfp4_e2m1"),
        *case("c", "mixed", "mixed", "mixed", 7.0, local, format="mine", recipe="mine"),
    ]
    table = pivot(read_results(save(tmp_path / "r.csv", rows)), "perplexity")
    assert table.index.get_level_values("format").tolist() == ["nvfp4", "mxfp4_e2m1", "mine"]


def test_tested_lengths_are_said(tmp_path):
    rows = case("a", "int8", "none", "ideal.int", 5.0, {("0", "a"): 3.0, ("0", "b"): 3.0})
    for row, k in zip(rows, (512, 192, ""), strict=True):
        row["K"] = k
    page = write_report(save(tmp_path / "r.csv", rows), tmp_path / "o")[0].read_text()
    assert "- K tested: 192, 512. The error of an accumulator grows with K: longer" in page


def test_a_page_of_another_program_is_not_replaced(csv, tmp_path):
    page = tmp_path / "report.md"
    page.write_text("# My chip\n")
    with pytest.raises(NumsimError, match=r"report.md is no report of numsim"):
        write_report(csv, tmp_path)
    assert page.read_text() == "# My chip\n"
    assert not (tmp_path / "report.html").exists()


def test_the_default_folder_and_names_of_files(csv, tmp_path):
    assert write_report(csv)[0] == tmp_path / "results-report" / "report.md"
    for name in ("z.html", "z.PNG", "z.md"):
        with pytest.raises(NumsimError, match=r"named like a file; name a folder, as .*/z$"):
            write_report(csv, tmp_path / name)
        assert not (tmp_path / name).exists()
