"""What a report recommends, what moved, and what the model of area may tell apart."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.errors import NumsimError
from numsim.losses import save_losses
from numsim.report import write_report
from numsim.report.build import rank
from numsim.report.compare import compare
from numsim.report.decide import equal_cases
from numsim.report.prices import repriced
from numsim.report.tables import read_results
from numsim.sweep.columns import NAMES

pytestmark = pytest.mark.usefixtures("unrendered")


def case(name, fmt, bits, kl, **more):
    """Rows of one case: one product, and the network."""
    common = dict.fromkeys(NAMES, "") | {
        "case_id": name, "model": "toy", "text": "a.txt", "tokens": 100, "format": fmt,
        "weight_format": fmt, "act_format": fmt, "granularity": "per_tensor", "rounding": "rne",
        "target": "ideal.int", "exact": True, "emulated": True, "bits_per_weight": bits,
        "seed": 0, "numsim_version": "0.1.0", "recipe_digest": f"d{name}",
    }  # fmt: skip
    whole = {"layer": "all", "kl_nats": kl, "kl_stderr": kl / 10, "dnll": kl, "dnll_stderr": 0.01,
             "perplexity": 10 * (1 + kl), "perplexity_reference": 10.0,
             "sqnr_cumulative_db": 30.0}  # fmt: skip
    product = {"layer": 0, "op": "q_proj", "M": 2, "N": 3, "K": 4, "sqnr_local_db": 20.0}
    return [common | product | more, common | whole | more]


def save(path, *cases):
    rows = [row for rows in cases for row in rows]
    names = list(dict.fromkeys([*NAMES, *(key for row in rows for key in row)]))
    pd.DataFrame(rows, columns=names).to_csv(path, index=False)
    return path


def choices(path, **more):
    return rank(read_results(path))[1][0].choices(**more)


def test_answers_are_exact_within_the_budget_and_say_when_nothing_is_gained(tmp_path):
    path = save(
        tmp_path / "r.csv",
        case("a", "int4", 4.5004, 0.5), case("b", "int8", 8.1, 0.005),
        case("c", "int8", 8.1, 0.0001, exact=False, target="ideal.fp32"),
        case("d", "int6", 6.1, 0.0001, error="broken"),
        case("e", "float16", 16.0, 0.009),
    )  # fmt: skip
    found = choices(path)
    assert [c.case for c in found] == ["a", "b", "b", "b"]  # 4.5004 is shown as 4.50
    assert [c.same for c in found] == [False, False, True, False]
    assert choices(path, tolerance=0.1)[-1].case is None
    assert choices(path, edges=[4.4])[0].case is None


@pytest.mark.parametrize(
    ("cases", "words"),
    [
        ([case("a", "int4", 4.5, 0.5, exact=False, target="ideal.fp32")],
         "all cases are fake quantisation (ideal.fp32)"),
        ([case("a", "int4", 4.5, 0.5, error="broken")], "no bit-exact case has figures"),
    ],
)  # fmt: skip
def test_a_file_without_an_answer_says_why_once_and_shows_no_cards(tmp_path, cases, words):
    path = save(tmp_path / "r.csv", *cases)
    write_report(path, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    section = page[page.index('data-testid="answer"') : page.index('data-testid="tradeoff"')]
    assert section.count(words) == 1
    assert "<article" not in section
    assert "edge 1" not in section
    assert words in (tmp_path / "out" / "report.md").read_text()
    assert "| none |" not in (tmp_path / "out" / "report.md").read_text()


def test_ties_are_judged_in_pairs_where_the_losses_stand_beside_the_file(tmp_path):
    """Means 0.10 and 0.11 with errors of 0.02: tied alone, apart in pairs that differ alike."""
    a, b = case("aaaaaaaaaaa1", "int8", 8.0, 0.10), case("aaaaaaaaaaa2", "int7", 8.0, 0.11)
    for row in (a[-1], b[-1]):
        row["kl_stderr"] = 0.02
    path = save(tmp_path / "r.csv", a, b)
    assert choices(path)[1].tied == ("aaaaaaaaaaa2",)
    hard = np.linspace(0.0, 0.2, 101)[None]  # what makes a token hard is common to both
    for name, kl in (("aaaaaaaaaaa1", hard), ("aaaaaaaaaaa2", hard + 0.01)):
        save_losses(path, name, {"kl": kl, "nll": kl})
    assert choices(path)[1].tied == ()
    noise = 0.01 + 0.1 * np.where(np.arange(101) % 2, 1, -1)[None]
    noise -= noise.mean() - 0.01
    save_losses(path, "aaaaaaaaaaa2", {"kl": hard + noise, "nll": hard})
    assert choices(path)[1].tied == ("aaaaaaaaaaa2",)


def test_areas_that_the_model_cannot_tell_apart_are_tied_and_the_best_is_named(tmp_path):
    path = save(
        tmp_path / "r.csv",
        case("a", "int8", 8.0, 0.004, area_ge=600), case("b", "float8_e4m3fn", 8.0, 0.002,
                                                         area_ge=700),
        case("c", "float16", 16.0, 0.001, area_ge=1500),
        case("d", "mxfp4", 4.25, 0.003, area_ge=900, block=32),
    )  # fmt: skip
    cheapest = choices(path)[-1]  # 600 and 700 are within 20 %; 0.7 x 900 = 630 < 600 x 1.095
    assert cheapest.question.startswith("Least area")
    assert (cheapest.case, cheapest.tied) == ("b", ("d", "a"))


def test_energies_of_two_nodes_are_never_ranked(tmp_path):
    cases = [case(n, "int8", 8.0, 0.001, energy_pj=e, macs=24, energy_node=node)
             for n, e, node in (("a", 5.0, "45nm"), ("b", 1.0, "7nm"))]  # fmt: skip
    assert all("energy" not in c.question for c in choices(save(tmp_path / "r.csv", *cases)))
    same = [[row | {"energy_node": "7nm"} for row in rows] for rows in cases]
    assert choices(save(tmp_path / "r.csv", *same))[-1].case == "b"


def test_costs_of_ones_own_price_a_case_by_one_source(tmp_path):
    """24 MACs of int8 in int32 at 0.5 pJ are 12 pJ; fake cases have none."""
    own = tmp_path / "own.toml"
    own.write_text(
        '[[row]]\nid = "mine"\nquantity = "energy"\nop = "mac"\nformats = ["int8", "int8"]\n'
        'accumulator = "int32"\nvalue = 0.5\nunit = "pJ"\nnode = "3nm"\nscope = "unit"\n'
        'source = "my lab"\n'
    )
    more = {"accumulator": "int32", "macs": 24}
    fake = case("b", "int8", 8.0, 0.001, exact=False, **more)
    path = save(tmp_path / "r.csv", case("a", "int8", 8.0, 0.001, **more), fake)
    from numsim.cost import load_costs

    rows = [row for row in load_costs(own) if row.id == "mine"]
    cases = read_results(path, rows).cases.set_index("case_id")
    assert cases.loc["a", ["energy_pj", "energy_node", "cost_source", "cost_mark"]].tolist() == [
        12.0, "3nm", "my lab", "U",
    ]  # fmt: skip
    assert cases.at["a", "pj_per_mac"] == 0.5
    assert math.isnan(cases.at["b", "energy_pj"])
    page = write_report(path, tmp_path / "out", cost=own)[1].read_text()
    assert 'data-mark="U" data-source="my lab" data-node="3nm"' in page
    table = pd.DataFrame({"case_id": ["x"], "layer": ["0"], "exact": ["True"],
                          "accumulator": ["int32"], "act_format": ["int8"],
                          "weight_format": ["float16"], "macs": [24.0]})  # fmt: skip
    assert math.isnan(repriced(table, rows)["energy_pj"][0])


def test_what_moved_came_and_went(tmp_path):
    now = save(tmp_path / "now.csv", case("a", "int8", 8.0, 0.1), case("b", "int4", 4.0, 0.2),
               case("n", "int6", 6.0, 0.2))  # fmt: skip
    was = [case("a", "int8", 8.0, 0.1), case("b", "int4", 4.0, 0.2), case("g", "int2", 2.0, 0.2)]
    was[0][-1]["perplexity"] *= 1 + 1e-8  # below the threshold
    was[1][-1]["sqnr_cumulative_db"] = 30.02
    found = compare(read_results(now), save(tmp_path / "was.csv", *was)).set_index("case_id")
    assert found["change"].to_dict() == {"a": "moved", "b": "moved", "n": "new", "g": "gone"}
    assert found["moved"].tolist() == [False, True, True, True]
    assert found.at["b", "decibels"] == pytest.approx(-0.02)
    assert found.at["b", "same_recipe"]


def test_a_case_whose_id_changed_is_known_by_its_recipe(tmp_path):
    now = save(tmp_path / "now.csv", case("a", "int8", 8.0, 0.1))
    old = case("z", "int8", 8.0, 0.1, recipe_digest="da")
    old[-1]["dnll"] = 0.1 - 0.03  # 0.03 over 0.01 times the root of two: 2.1 standard errors
    found = compare(read_results(now), save(tmp_path / "was.csv", old))
    assert found[["case_id", "change", "moved"]].to_numpy().tolist() == [["a", "moved", True]]
    assert found["sigmas"][0] == pytest.approx(0.03 / (0.01 * math.sqrt(2)))


@pytest.mark.parametrize("column", ["model", "text", "tokens"])
def test_another_run_is_not_compared(tmp_path, column):
    now = save(tmp_path / "now.csv", case("a", "int8", 8.0, 0.1))
    was = save(tmp_path / "was.csv", case("a", "int8", 8.0, 0.1, **{column: 7}))
    with pytest.raises(NumsimError, match=f"{column} is .* in .*now.csv, 7 in .*was.csv; name an"):
        write_report(now, tmp_path / "out", against=was)
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_in_words_and_leaves_no_folder(tmp_path):
    now = save(tmp_path / "now.csv", case("a", "int8", 8.0, 0.1)[:1])
    done = CliRunner().invoke(app, ["report", str(now), "-o", str(tmp_path / "out")])
    assert isinstance(done.exception, NumsimError)
    assert "--resume" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_cases_alike_to_the_last_digit_are_one_finding(tmp_path):
    cases = [case("a", "int8", 8.0, 0.1), case("b", "q3.4", 8.0, 0.1), case("c", "int4", 4.0, 0.1)]
    path = save(tmp_path / "r.csv", *cases)
    assert equal_cases(read_results(path).cases) == [["a", "b"]]
    page = write_report(path, tmp_path / "out")[1].read_text()
    assert page.count("Alike to the last digit") == 1


def test_tables_beside_the_results_become_sections_and_figures(tmp_path):
    path = save(tmp_path / "results.csv", case("a", "int8", 8.0, 0.1))
    (tmp_path / "sensitivity.csv").write_text(
        "part,products,values,kl_only_nats,kl_only_stderr,share_only,kl_without_nats,"
        "kl_budget_nats,kl_budget_stderr,share_budget\n"
        "all,7,9,0.1,0.01,1,,,,\n<b>x,1,2,0.04,0.01,0.4,0.06,0.04,0.01,0.4\n"
    )
    (tmp_path / "results.manifest.toml").write_text('[manifest]\ncommand = "numsim sweep <i>"\n')
    files = [p.name for p in write_report(path, tmp_path / "out")]
    assert {"sensitivity.svg", "sensitivity.csv"} <= set(files)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;x" in page
    assert "numsim sweep &lt;i&gt;" in page
    assert not {"<b>x", "<i>"} & {page[i : i + 4] for i in range(len(page))}
    (tmp_path / "sensitivity.csv").write_text("part\nx\n")
    with pytest.raises(NumsimError, match=r"sensitivity.csv does not; write it again with"):
        write_report(path, tmp_path / "again")


def test_the_orders_of_sums_are_a_verdict_for_each_unit(tmp_path):
    path = save(tmp_path / "results.csv", case("a", "int8", 8.0, 0.1))
    rows = [
        "0,q,64,int8,ideal.int,reversed,0.0,0.0", "1,q,64,int8,ideal.int,reversed,0.0,0.0",
        "0,q,64,e4m3,wgmma,reversed,0.25,0.5", "1,q,64,e4m3,wgmma,reversed,0,0",
    ]  # fmt: skip
    head = "layer,op,K,format,target,order,differing,max_abs_rms"
    (tmp_path / "orders.csv").write_text("\n".join([head, *rows]) + "\n")
    write_report(path, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    verdicts = page[page.index('data-testid="beside-orders"') :].partition("<details")[0]
    assert "the same bits in all 2 products" in verdicts
    assert "other bits in 1 of 2 products" in verdicts
    assert ">25<" in verdicts


@pytest.mark.slow
@pytest.mark.rendered
def test_every_figure_is_also_svg_with_outlines_and_a_title(tmp_path):
    path = save(tmp_path / "r.csv", case("a", "int8", 8.0, 0.1), case("b", "int4", 4.0, 0.3))
    files = write_report(path, tmp_path / "out")
    drawn = [p for p in files if p.suffix == ".svg"]
    assert [p.with_suffix(".png") in files for p in drawn] == [True] * len(drawn) != []
    for svg in drawn:
        text = svg.read_text()
        assert "<title>" in text
        assert "<text" not in text
        assert svg.with_suffix(".png").read_bytes().find(b"pHYs") > 0


@pytest.mark.rendered
@pytest.mark.slow
def test_figures_of_hundreds_of_cases_stay_printable_and_name_what_is_left_out(tmp_path):
    from numsim.report.figures import best_cases

    cases = [case(f"{i:03}", f"int{i % 7 + 2}", 2 + i / 10, 1.0 - i / 300) for i in range(200)]
    path = save(tmp_path / "r.csv", *cases)
    kept, note = best_cases(read_results(path).cases)
    assert kept["case_id"].tolist() == [f"{i:03}" for i in range(160, 200)]
    assert "best 40 of 200" in note
    out = write_report(path, tmp_path / "out")[0].parent
    head = (out / "perplexity.png").read_bytes()[16:24]  # width and height of a PNG
    assert max(int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")) <= 12 * 200


def test_the_package_report_is_called_and_imported_from():
    import numsim.report.tables as tables

    assert callable(ns.report)
    assert ns.report.tables is tables
    assert Path(ns.report.__file__).name == "__init__.py"


def test_areas_within_the_error_of_the_model_make_no_front(tmp_path):
    """600 and 650 overlap, so the worse of them is beaten; 300 is told apart from both."""
    from numsim.report.decide import front

    rows = [case("a", "int8", 8.0, 0.004, area_ge=600), case("b", "int8", 8.0, 0.002, area_ge=650),
            case("c", "int6", 6.0, 0.02, area_ge=300)]  # fmt: skip
    cases = read_results(save(tmp_path / "r.csv", *rows)).cases
    assert front(cases, "area_ge", "kl_nats") == ["c", "b"]
    assert front(cases, "bits_per_weight", "kl_nats") == ["c", "b"]
    assert front(cases.assign(area_low=cases["area_ge"], area_high=cases["area_ge"]),
                 "area_ge", "kl_nats") == ["c", "a", "b"]  # fmt: skip
