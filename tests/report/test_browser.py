"""The page of a report, opened offline in Chromium; skips where that is not installed."""

import html
import json
import math
import re
import shutil
from contextlib import contextmanager

import pandas as pd
import pytest

import numsim as ns
from numsim.report import write_report
from numsim.sweep.columns import NAMES

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="pip install numsim[page]")

HOSTILE = "</script><script>window.ran=1</script><img src=x onerror=window.ran=2> `|` \u202e & \"'"
OPS = ("q_proj", "k_proj", "down_proj")
VISIBLE = "els => els.filter(e => e.getClientRects().length).map(e => e.dataset.case)"
CONTRAST = r"""() => {
 const parse = c => { const m = c.match(/[\d.]+/g); return m ? [+m[0], +m[1], +m[2], m[3] === undefined ? 1 : +m[3]] : [0,0,0,0] };
 const lum = c => { const f = c.slice(0,3).map(u => (u/=255) <= .03928 ? u/12.92 : ((u+.055)/1.055)**2.4); return .2126*f[0]+.7152*f[1]+.0722*f[2] };
 const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > .99) return c } return [255,255,255,1] };
 const wrong = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
 while (walk.nextNode()) { const t = walk.currentNode, e = t.parentElement; if (!t.data.trim() || /^(SCRIPT|STYLE|NOSCRIPT|OPTION)$/.test(e.tagName)) continue;
  const r = document.createRange(); r.selectNodeContents(t); const b = r.getBoundingClientRect(); if (!b.width || !b.height) continue;
  const svg = e instanceof SVGElement, a = lum(parse(svg ? getComputedStyle(e).fill : getComputedStyle(e).color)), z = lum(behind(svg ? e.closest('svg') : e));
  if ((Math.max(a,z)+.05)/(Math.min(a,z)+.05) < 4.5) wrong.push(t.data.trim().slice(0,30)) }
 return wrong }"""  # noqa: E501


def rows_of(case_id, fmt, bits, kl, *, exact=True, layers=3, scales="per_tensor", **more):
    """Rows of one case, with figures that follow from its KL."""
    unit = "ideal.int" if exact else "ideal.fp32"
    common = dict.fromkeys(NAMES, "") | {
        "case_id": case_id, "model": "toy", "text": "a.txt", "tokens": 510, "format": fmt,
        "weight_format": fmt, "act_format": fmt, "granularity": scales, "target": unit,
        "scale_format": "float32", "scale_rule": "amax", "rounding": "rne", "seed": 0,
        "exact": exact, "emulated": True, "bits_per_weight": bits, "bits_per_act": bits,
        "numsim_version": "0.1.0", "recipe_digest": f"digest{case_id}",
    }  # fmt: skip
    products = [
        common | {"layer": layer, "op": op, "M": 64, "N": 64, "K": 64,
                  "sqnr_local_db": 50 - 10 * math.log10(1 + 1e4 * kl) + layer + 0.25 * i,
                  "sqnr_cumulative_db": 45 - 10 * math.log10(1 + 1e4 * kl) - layer + 0.25 * i}
        for layer in range(layers) for i, op in enumerate(OPS)
    ]  # fmt: skip
    whole = {
        "layer": "all", "kl_nats": kl, "kl_stderr": kl / 50, "dnll": kl, "dnll_stderr": 0.001,
        "perplexity": 40 * math.exp(kl), "perplexity_reference": 40.0,
        "sqnr_cumulative_db": 40 - 10 * math.log10(1 + 1e4 * kl), "top1_agreement": 1 - kl,
    }  # fmt: skip
    return [row | more for row in [*products, common | whole]]


def save(path, rows):
    pd.DataFrame(rows, columns=list(NAMES)).to_csv(path, index=False)
    return path


CASES = [  # id, format, bits, KL, exact
    ("a1", "int8", 8.01, 0.011, True), ("a2", "int8", 8.01, 0.011, False),
    ("a3", "float8_e4m3fn", 8.01, 0.0028, True), ("a4", "float8_e4m3fn", 8.01, 0.0027, False),
    ("a5", "int4", 4.01, 0.92, True), ("a6", "float4_e2m1fn", 4.5001, 0.033, True),
    ("a7", "bfloat16", 16.0, 7e-6, False), ("a8", "float16", 16.0, 1e-6, True),
]  # fmt: skip


def every_row(**more):
    return [r for *c, exact in CASES for r in rows_of(*c, exact=exact, **more)]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_report(save(folder / "results.csv", every_row()), folder / "out")
    return folder / "out" / "report.html"


@contextmanager
def opened(browser, path, *, fragment="", width=1400, **more):
    """Yield the page; at its end it must have been silent and have loaded nothing."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, offline=True, reduced_motion="reduce", **more
    )
    context.set_default_timeout(60_000)
    view, said, asked = context.new_page(), [], []
    view.on("console", lambda m: said.append(m.text))
    view.on("pageerror", lambda e: said.append(str(e)))
    view.on("request", lambda r: asked.append(r.url))
    view.goto(path.absolute().as_uri() + fragment)
    yield view
    assert not said
    assert sum(not url.startswith("data:") for url in asked) == 1
    context.close()


def by(view, name):
    return view.locator(f'[data-testid="{name}"]')


def shown(view, name="case-row"):
    return by(view, name).evaluate_all(VISIBLE)


def column(view, key):
    return view.evaluate(
        """k => { const t = document.querySelector('[data-testid=cases]'),
        i = t.querySelector(`th[data-key="${k}"]`).cellIndex;
        return [...t.tBodies[0].rows].filter(r => r.getClientRects().length)
        .map(r => +r.cells[i].dataset.v) }""", key)  # fmt: skip


def test_every_case_has_a_row_and_a_mark_that_can_be_pointed_at(browser, page):
    with opened(browser, page) as view:
        assert sorted(shown(view)) == sorted(shown(view, "point")) == [c[0] for c in CASES]
        hidden = view.evaluate(
            """() => [...document.querySelectorAll('[data-testid=point]')].filter(e => {
            e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();
            const t = document.elementFromPoint(b.x + b.width / 2, b.y + b.height / 2);
            return t?.closest('[data-testid=point]') !== e }).length"""
        )
        assert hidden == 0
        assert "moved sideways" in view.locator(".said").inner_text()


def test_filters_search_and_sort(browser, page):
    with opened(browser, page) as view:
        by(view, "filter-format").select_option("int8")
        assert shown(view) == shown(view, "point") == ["a1", "a2"]
        by(view, "filter-kind").select_option("exact")
        assert shown(view) == ["a1"]
        assert by(view, "count").inner_text() == "1 of 8 cases"
        by(view, "reset").click()
        view.keyboard.press("/")
        view.keyboard.type("E4M3 ideal.int")
        assert shown(view) == ["a3"]
        by(view, "search").fill("[(*")
        assert shown(view) == shown(view, "point") == []
        by(view, "reset").click()
        button = view.locator('th[data-key="perplexity"] button')
        for word in ("ascending", "descending"):
            button.click()
            assert view.locator('th[data-key="perplexity"]').get_attribute("aria-sort") == word
            assert column(view, "perplexity") == sorted(
                (40 * math.exp(c[3]) for c in CASES), reverse=word == "descending"
            )


def test_each_axis_draws_marks_and_names_values(browser, page):
    with opened(browser, page) as view:
        for axis in ("x", "y"):
            options = (
                by(view, f"axis-{axis}").locator("option").evaluate_all("o => o.map(e => e.value)")
            )
            for key in options:
                by(view, f"axis-{axis}").select_option(key)
                assert len(shown(view, "point")) == 8, key
        assert by(view, "chart").get_attribute("aria-label").endswith("8 cases")


def test_keys_reach_a_mark_open_its_layers_and_come_back(browser, page):
    with opened(browser, page) as view:
        by(view, "search").focus()
        for _ in range(30):
            view.keyboard.press("Tab")
            focused = "document.activeElement.closest('[data-testid=point]')?.dataset.case"
            if case := view.evaluate(focused):
                break
        assert case in by(view, "recipe").inner_text()
        assert f"digest{case}" in by(view, "recipe").inner_text()
        view.keyboard.press("Enter")
        assert view.evaluate("document.activeElement.dataset.testid") == "detail"
        local = (
            by(view, "heatmap-local")
            .locator("td[data-v]")
            .evaluate_all("t => t.map(e => +e.dataset.v)")
        )
        kl = next(c[3] for c in CASES if c[0] == case)
        lost = 10 * math.log10(1 + 1e4 * kl)
        want = [50 - lost + layer + 0.25 * i for layer in range(3) for i in range(3)]
        assert local == pytest.approx(want)
        view.keyboard.press("Escape")
        assert view.evaluate(focused) == case


def test_the_address_holds_the_view_and_ignores_what_it_does_not_know(browser, page):
    with opened(browser, page) as view:
        by(view, "filter-kind").select_option("exact")
        by(view, "search").fill("float")
        by(view, "axis-y").select_option("kl_nats")
        view.locator('th[data-key="kl_nats"] button').click()
        view.locator("input[name=edge1]").fill("4.2")
        view.locator("input[name=edge1]").press("Enter")
        by(view, "case-row").locator("visible=true").nth(1).get_by_role("link").click()
        want = shown(view), by(view, "detail").inner_text(), by(view, "answer").inner_text()
        fragment = view.evaluate("location.hash")
        view.go_back()
        assert view.evaluate("location.hash") != fragment
    assert "case=a3" in fragment
    with opened(browser, page, fragment=fragment) as view:
        assert want == (
            shown(view), by(view, "detail").inner_text(), by(view, "answer").inner_text()
        )  # fmt: skip
    with opened(
        browser, page, fragment="#q=%3Cb%3E&x=no&sort=zz&case=no&format=no&edges=a"
    ) as view:
        assert shown(view) == []


def test_the_answer_is_exact_and_the_script_finds_the_same(browser, page):
    """4.5001 bits are shown as 4.50 and are within 4.5; fake quantisation never stands there."""
    with opened(browser, page) as view:
        links = "a => a.map(e => e.hash)"
        first = view.locator(".card .pick a").evaluate_all(links)
        assert first == ["#case=a6", "#case=a3", "#case=a8", "#case=a3"]
        view.locator("input[name=edge2]").fill("8.4")
        view.locator("input[name=edge2]").press("Enter")
        assert view.locator(".card .pick a").evaluate_all(links) == first
        assert "At most 8.4" in by(view, "answer").inner_text()
        view.locator("input[name=edge1]").fill("4.4")
        view.locator("input[name=edge1]").press("Enter")
        assert view.locator(".card .pick a").first.get_attribute("href") == "#case=a5"


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_in_both_themes_and_after_the_button(browser, page, dark):
    with opened(browser, page, color_scheme="dark" if dark else "light") as view:
        ground = "getComputedStyle(document.body).backgroundColor"
        before = view.evaluate(ground)
        assert view.evaluate(CONTRAST) == []
        by(view, "theme").click()
        assert view.evaluate(ground) != before
        assert view.evaluate(CONTRAST) == []


@pytest.mark.parametrize("width", [420, 360])
def test_narrow_screens_do_not_scroll_sideways(browser, page, width):
    with opened(browser, page, width=width) as view:
        assert view.evaluate("document.documentElement.scrollWidth") <= width


def test_without_a_script_tables_and_figures_remain(browser, page):
    with opened(browser, page, java_script_enabled=False) as view:
        assert by(view, "case-row").count() == len(CASES)
        assert by(view, "case-row").first.is_visible()
        assert by(view, "answer").get_by_role("link").first.is_visible()
        assert view.locator("noscript img, img.figure").first.is_visible()
        assert not by(view, "search").is_visible()


def test_print_is_white_and_short(browser, page):
    with opened(browser, page, color_scheme="dark") as view:
        view.emulate_media(media="print")
        assert not by(view, "search").is_visible()
        assert view.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        assert len(re.findall(rb"/Type\s*/Page\b", view.pdf(format="A4"))) <= 15


def test_names_are_text_and_nothing_of_them_runs(browser, tmp_path):
    rows = every_row(model=HOSTILE, text=HOSTILE) + rows_of(
        "b1", HOSTILE, 8.0, 0.1, scales=HOSTILE, model=HOSTILE, text=HOSTILE, target=HOSTILE
    )
    for row in rows[-1:]:
        row["error"] = HOSTILE
    write_report(save(tmp_path / "r.csv", rows), tmp_path / "out")
    for width in (1400, 420):
        with opened(browser, tmp_path / "out" / "report.html", width=width) as view:
            assert view.evaluate("window.ran ?? null") is None
            assert view.locator("img[src=x]").count() == 0
            assert "</script><script>" in view.locator("h1").inner_text()
            assert HOSTILE[:30] in by(view, "failed").inner_text()
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            by(view, "case-row").nth(2).get_by_role("link").click()
            assert by(view, "heatmap-local").is_visible()


def test_two_thousand_cases_are_all_there(browser, tmp_path):
    rows = [
        row for i in range(2000)
        for row in rows_of(f"{i:04x}", "int8", 8 + i / 100, 0.01 + i / 1e4, layers=0)
    ]  # fmt: skip
    for i, row in enumerate(rows):
        row["recipe"] = f"point_{i}"
    write_report(save(tmp_path / "r.csv", rows), tmp_path / "out")
    path = tmp_path / "out" / "report.html"
    assert path.stat().st_size < 6e6
    with opened(browser, path) as view:
        assert by(view, "count").inner_text() == "2000 of 2000 cases"
        assert len(shown(view, "point")) == 2000
        assert len(shown(view)) == 500
        view.locator(".more").click()
        assert len(shown(view)) == 2000
        by(view, "search").fill("point_1999")
        assert shown(view) == ["07cf"]


def test_what_moved_is_listed_and_thresholds_can_be_edited(browser, tmp_path):
    old = every_row()
    for row in old:
        if row["layer"] == "all":
            row["perplexity"] *= {"a1": 1.02, "a3": 1 + 1e-4, "a5": 1 + 1e-9}.get(row["case_id"], 1)
    gone = rows_of("c9", "int2", 2.0, 0.95)
    old = [r for r in old if r["case_id"] != "a8"] + gone
    now, was = save(tmp_path / "now.csv", every_row()), save(tmp_path / "was.csv", old)
    write_report(now, tmp_path / "out", against=was)
    changes = "r => r.map(e => [e.dataset.case, e.dataset.change]).sort()"
    with opened(browser, tmp_path / "out" / "report.html") as view:
        rows = by(view, "compare-row")
        new = [["a8", "new"], ["c9", "gone"]]
        assert rows.evaluate_all(changes) == [["a1", "moved"], ["a3", "moved"], *new]
        assert "same recipe, other result" in rows.first.inner_text()
        for threshold, moved in (("0.01", ["a1"]), ("1e-12", ["a1", "a3", "a5"])):
            view.locator("input[name=over_perplexity]").fill(threshold)
            view.locator("input[name=over_perplexity]").press("Enter")
            assert rows.evaluate_all(changes) == [*([c, "moved"] for c in moved), *new]


def test_several_runs_are_never_on_one_chart(browser, tmp_path):
    rows = every_row() + [r | {"case_id": f"z{r['case_id']}"} for r in every_row(model="other")]
    write_report(save(tmp_path / "r.csv", rows), tmp_path / "out")
    with opened(browser, tmp_path / "out" / "report.html") as view:
        assert by(view, "count").inner_text() == "8 of 16 cases"
        by(view, "filter-run").select_option("1")
        assert all(case.startswith("z") for case in shown(view, "point"))
        assert view.locator(".cards:visible .pick a").first.get_attribute("href") == "#case=za6"


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(browser, tmp_path):
    cell = ns.report(pd.DataFrame(every_row(), columns=list(NAMES)))._repr_html_()
    assert html.unescape(cell).count("<iframe") == 1
    path = tmp_path / "cell.html"
    path.write_text(f"<!doctype html><title>t</title><link rel=icon href='data:,'>{cell}")
    context = browser.new_context(offline=True)
    view, said = context.new_page(), []
    view.on("console", lambda m: said.append(m.text))
    view.on("pageerror", lambda e: said.append(str(e)))
    view.goto(path.absolute().as_uri())
    frame = view.frame_locator("iframe")
    count = frame.locator('[data-testid="count"]')
    count.filter(has_text="8 of 8 cases").wait_for()  # else the choice may come before its handler
    frame.locator('[data-testid="filter-format"]').select_option("int8")
    count.filter(has_text="2 of 8 cases").wait_for()
    assert not said
    context.close()


def test_the_data_of_the_page_is_json(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert json.loads(text[1])["words"]["case_id"]["words"][0] == "a8"  # best first
