"""Sweeps: the figures of the bundled model, determinism, rows that survive an interruption."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

import numsim as ns
from numsim.cli.screen import sweep_table
from numsim.data import bundled_model_dir, bundled_text
from numsim.models.text import load_text_tools
from numsim.report import write_report
from numsim.sweep import COLUMNS
from numsim.sweep import run as run_module
from numsim.sweep.cases import cases
from numsim.sweep.inputs import Inputs, windows
from numsim.sweep.overflow import COUNTED
from numsim.sweep.run import case_rows, run_reference

pytestmark = pytest.mark.slow  # processes, whole sweeps, kernels compiled again

SMALL = {"formats": ["int8"], "targets": ["ideal.int"], "limit_tokens": 200, "window": 64}
ROWS = 5 * 9 + 1 + 1  # of a case: nine products a layer, the head, the network
API_COLUMNS = """
    case_id model layer op weight_format act_format granularity block scale_format scale_rule
    rounding target exact bits_per_weight bits_per_act M N K sqnr_local_db sqnr_cumulative_db mse
    max_abs max_ulp cosine saturation_rate underflow_rate acc_overflow_rate kl_nats
    top1_agreement perplexity energy_pj seconds seed numsim_version
"""

# published with the bundled model: mean NLL minus the float reference's, batches of 8 windows;
# two correct implementations differ by up to 0.0012 at 8 bits and 0.0042 at 4 bits
PUBLISHED_DNLL = {
    ("float8_e4m3fn", "per_tensor"): 0.00181,
    ("float8_e5m2", "per_tensor"): 0.00901,
    ("int8", "per_tensor"): 0.01090,
    ("int4", "per_tensor"): 0.80091,
    ("float8_e4m3fn", "per_channel+per_token"): 0.00059,
    ("int8", "per_channel+per_token"): 0.00121,
    ("int4", "per_channel+per_token"): 0.15570,
}


@pytest.fixture(scope="module")
def model():
    return ns.load_model(bundled_model_dir())


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_are_the_contract():
    names = API_COLUMNS.split()
    assert [c.name for c in COLUMNS][: len(names)] == names
    assert all(c.meaning for c in COLUMNS)


def test_reference_perplexity_of_the_bundled_text(model):
    spec = ns.SweepSpec()
    tokens = windows(load_text_tools(bundled_model_dir()), spec, bundled_text())
    assert tokens.shape == (64, 256)
    assert (tokens[:, 0] == 0).all()
    reference = run_reference(model, Inputs(tokens), 8, lambda n: None)
    assert np.exp(reference.nll.mean()) == pytest.approx(41.09785, rel=1e-5)


def test_fake_quantisation_agrees_with_the_published_figures():
    rows = ns.sweep({"formats": ["e4m3", "e5m2", "int8", "int4"], "targets": ["ideal.fp32"]}).query(
        "layer == 'all'"
    )
    got = {(r.weight_format, r.granularity): r for r in rows.itertuples()}
    for key, want in PUBLISHED_DNLL.items():
        tolerance = 0.0042 if key[0] == "int4" else 0.0012
        assert got[key].dnll == pytest.approx(want, abs=tolerance), key
        assert got[key].tokens == 16320
    # visibly different formats, in the order everybody knows
    ppl = {key: r.perplexity for key, r in got.items()}
    tensor = [ppl[f, "per_tensor"] for f in ("float8_e4m3fn", "float8_e5m2", "int8", "int4")]
    assert tensor == sorted(tensor)


def test_rows_of_a_case():
    rows = ns.sweep(SMALL)
    assert len(rows) == 2 * ROWS
    first = rows[rows.case_id == rows.case_id[0]]
    assert first.layer.tolist()[-2:] == ["outer", "all"]
    assert first.op.tolist()[-2] == "lm_head"
    products = first[first.layer == "3"]
    assert products.op.tolist() == [
        "q_proj", "k_proj", "v_proj", "qk", "pv", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    heads, window = 6, 64
    assert products.set_index("op").loc[["qk", "pv"], ["M", "N", "K"]].to_numpy().tolist() == [
        [3 * heads * window, window, 32],
        [3 * heads * window, 32, window],
    ]
    plain = first[~first.emulated]  # what the case keeps in float32
    assert plain.op.tolist() == ["qk", "pv"] * 5 + ["lm_head"]
    assert set(plain.weight_format) == set(plain.act_format) == {"float32"}
    assert plain.sqnr_local_db.isna().all()
    assert not plain.exact.any()
    one = rows[rows.granularity == "per_tensor"]
    ops = one[one.layer == "3"]
    assert (ops.M == 3 * 64).all()
    assert ops.K.tolist() == [192] * 6 + [512]
    assert (ops.sqnr_local_db >= ops.sqnr_cumulative_db - 3).all()
    assert one.exact.all()
    assert one.saturation_rate.dropna().eq(0).all()
    products = rows[rows.layer != "all"]
    assert (products.acc_overflow_rate == 0).all()  # proven: 512 products of 7 bits in 32
    for column in ("M", "N", "K", "mse", "cosine", "underflow_rate", "bits_per_act"):
        assert products[column].notna().all(), column


RULES = """
[[rule]]
match = "*"
[[rule]]
match = "*_proj"
activations = "int8"
weights = "int8"
target = {name = "ideal.int", acc_bits = %d}
[[rule]]
match = "layers.0.*_proj"
activations = "float8_e4m3fn"
weights = {format = "float8_e4m3fn", granularity = "per_channel"}
target = "nvidia.hopper.wgmma"
"""


def test_recipes_are_cases(tmp_path, model):
    paths = [tmp_path / f"{name}.toml" for name in ("wide", "again", "narrow")]
    for path, bits in zip(paths, (32, 32, 15), strict=True):
        path.write_text(RULES % bits)
    grid = SMALL | {"granularities": ["per_tensor"]}
    with pytest.raises(ns.NumsimError, match="recipes wide and again name the same rules"):
        ns.sweep(grid | {"recipes": paths})
    rows = ns.sweep(grid | {"recipes": paths[::2]})
    assert rows.case_id.nunique() == 3  # one of the grid
    whole = rows[rows.layer == "all"].set_index("recipe")
    assert whole.loc["wide", ["weight_format", "act_format", "granularity", "target"]].tolist() == [
        "mixed", "mixed", "mixed", "mixed",
    ]  # fmt: skip
    assert whole.loc["wide"].exact
    assert whole.loc["wide"].perplexity != whole.iloc[0].perplexity
    recipe = ns.Recipe.from_toml(paths[0]).resolve(model.gemm_names())
    assert whole.loc["wide"].recipe_digest == recipe.digest()
    uniform = ns.Recipe.uniform("int8", target="ideal.int").resolve(model.gemm_names())
    grid_rows = rows[rows.recipe.isna()]
    assert grid_rows.recipe_digest.unique().tolist() == [uniform.digest()]
    one = rows[rows.recipe == "wide"].set_index(["layer", "op"])
    assert one.loc[("0", "q_proj"), ["weight_format", "act_format", "granularity"]].tolist() == [
        "float8_e4m3fn", "float8_e4m3fn", "per_channel+per_tensor",
    ]  # fmt: skip
    assert one.loc["1", "q_proj"].target == "ideal.int"
    narrow = rows[rows.recipe == "narrow"].set_index(["layer", "op"])
    worse, better = (table.loc["1", "down_proj"].sqnr_local_db for table in (narrow, one))
    assert worse < better - 9  # 15 bits wrap
    # a grid is swept beside recipes only where it is asked for
    alone = ns.sweep(
        {"recipes": paths[:1], "limit_tokens": 200, "window": 64, "out": tmp_path / "r.csv"}
    )
    assert alone.case_id.unique().tolist() == [whole.loc["wide"].case_id]
    before = (tmp_path / "r.csv").read_bytes()
    ns.sweep({
        "recipes": paths[1:2], "limit_tokens": 200, "window": 64, "out": tmp_path / "r.csv",
        "resume": True,
    })  # fmt: skip
    assert (tmp_path / "r.csv").read_bytes() == before


def test_overflow_of_a_narrow_accumulator_is_counted(tmp_path, model):
    (tmp_path / "narrow.toml").write_text(RULES % 15)
    rows = ns.sweep(SMALL | {"recipes": [tmp_path / "narrow.toml"], "formats": []})
    rows = rows.set_index(["layer", "op"])
    x = np.asarray(
        model.run(
            windows(load_text_tools(bundled_model_dir()), ns.SweepSpec(**SMALL), bundled_text()),
            taps=["layers.1.v_proj.in"],
        ).taps["layers.1.v_proj.in"],
        np.float32,
    ).reshape(-1, 192)
    a = ns.quantize(x, "int8").codes[: COUNTED // (64 * 192)].astype(np.int64)
    weight = model.tensors["layers.1.v_proj.weight"].astype(np.float32)
    b = ns.quantize(weight, "int8").codes.astype(np.int64)
    sums, outside = np.zeros((len(a), 64), np.int64), 0
    for k in range(192):
        wide = sums + a[:, k, None] * b[None, :, k]
        sums = (wide + (1 << 14)) % (1 << 15) - (1 << 14)
        outside += np.count_nonzero(sums != wide)
    assert outside > 0
    assert rows.loc["1", "v_proj"].acc_overflow_rate == outside / (len(a) * 64 * 192)
    assert rows.loc["0", "v_proj"].acc_overflow_rate == 0  # E4M3 in float32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[rule]]\nmatch = "*"\n[[rule]]\nmatch = "*.q_prjo"\n', "q_prjo"),
        ('[[rule]]\nmatch = "*_proj"\n', "needs a rule"),
        (
            '[[rule]]\nmatch = "*"\nweights = "int8"\ntarget = "ideal.int"\n',
            r"bad\.toml: .* rule 1 \('\*'\)",
        ),
        ("rule = 3\n", r"\[\[rule\]\]"),
    ],
)
def test_bad_recipes_are_refused_before_any_work(text, message, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    out = tmp_path / "r.csv"
    with pytest.raises(ns.NumsimError, match=message) as error:
        ns.sweep(SMALL | {"recipes": [path], "out": out})
    assert type(error.value).__name__ != "FailedCases"
    assert not out.exists()


def test_twice_the_same_numbers(tmp_path):
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in paths:
        ns.sweep(SMALL | {"out": path})
    first, second = (read(p) for p in paths)
    for a, b in zip(first, second, strict=True):
        assert a.pop("seconds") == "" or b["seconds"] != ""
        b.pop("seconds")
        assert a == b


def test_processes_give_the_rows_of_one(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(RULES % 32)
    unit = tmp_path / "strict.toml"
    unit.write_text(ns.get_target("ideal.int", overflow="raise").to_toml())
    grid = SMALL | {"formats": ["int8", "int32"], "granularities": ["per_tensor"]}
    grid["targets"] = [str(unit)]
    tables, seen = [], []
    for jobs in (1, 2):
        path = tmp_path / f"{jobs}.csv"
        spec = grid | {"recipes": [recipe], "jobs": jobs, "out": path}
        with pytest.raises(ns.NumsimError, match=r"1 cases failed: int32 per_tensor.*overflows"):
            ns.sweep(spec, progress=lambda *what: seen.append(what))
        tables.append([row | {"seconds": ""} for row in read(path)])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2 * ROWS + 1
    assert seen[-1][1] == seen[-1][2]
    with pytest.raises(ns.NumsimError, match="jobs"):
        ns.sweep(grid | {"jobs": 0})


def test_a_case_that_fails_late_keeps_the_rows_before_in_a_process_too(model):
    """`case_rows` is what a process runs, and what a sweep in one process runs."""
    spec = ns.SweepSpec(**SMALL, batch=1)
    tokens = windows(load_text_tools(bundled_model_dir()), spec, bundled_text())
    reference = run_reference(model, Inputs(tokens), 1, lambda n: None)
    case = cases(spec, model="m", text="t", text_hash="")[0]

    def fail(n):
        if n == 2:
            raise ns.NumsimError("the input of a product: has Inf")

    serial = list(case_rows(model, case, reference, fail))
    assert len(serial) == ROWS
    last = serial[-1]
    assert (last["layer"], last["error"]) == ("all", "the input of a product: has Inf")
    assert last["bits_per_weight"] > 8
    assert last["perplexity"] is None
    whole = list(case_rows(model, case, reference, lambda n: None))
    assert serial[:-1] == whole[:-1]


def test_stochastic_rounding_depends_on_the_seed_and_on_nothing_else(tmp_path):
    sr = SMALL | {"rounding": "sr", "granularities": ["per_channel+per_token"]}

    def figures(rows):
        numbers = ["sqnr_local_db", "sqnr_cumulative_db", "perplexity"]
        return rows.set_index(["layer", "op"])[numbers].astype(float).fillna(0)

    first, again, other = (ns.sweep(sr | {"seed": seed}) for seed in (1, 1, 2))
    assert first.seed.unique().tolist() == [1]
    emulated = first.weight_format == "int8"
    assert emulated.equals(first.emulated)
    assert set(first[emulated].rounding) == {"sr"}
    assert set(first[~emulated].rounding) == {"rne"}
    assert first.case_id[0] == again.case_id[0] != other.case_id[0]
    assert figures(first).equals(figures(again))
    assert (figures(first) != figures(other)).loc["all"].perplexity.all()
    linears = first.op.str.endswith("_proj", na=False).to_numpy()
    assert (figures(first) != figures(other))[linears].sqnr_local_db.all()
    # the first product reads exact inputs in the run too: alone and within it are one
    row = first.iloc[0]
    assert row.op == "q_proj"
    assert row.sqnr_local_db == row.sqnr_cumulative_db
    # windows run one at a time draw alike where no scale is shared
    single = ns.sweep(sr | {"seed": 1, "batch": 1})
    assert single.perplexity.dropna().tolist() == first.perplexity.dropna().tolist()
    # a recipe without a seed takes that of the sweep
    recipe = tmp_path / "sr.toml"
    recipe.write_text(
        '[[rule]]\nmatch = "*"\n[[rule]]\nmatch = "*_proj"\ntarget = "ideal.int"\n'
        'activations = {format = "int8", granularity = "per_token", rounding = "sr"}\n'
        'weights = {format = "int8", granularity = "per_channel", rounding = "sr"}\n'
    )
    size = {"limit_tokens": 200, "window": 64, "recipes": [recipe]}
    same, differs = (ns.sweep(size | {"seed": seed}) for seed in (1, 2))
    assert figures(same).equals(figures(first))
    assert not figures(differs).equals(figures(first))
    recipe.write_text("seed = 1\n" + recipe.read_text())
    own = ns.sweep(size | {"seed": 2})
    assert own.seed.unique().tolist() == [1]
    assert figures(own).equals(figures(first))


def test_hopper_differs_from_fake_quantisation_and_integers_do_not():
    targets = ["ideal.fp32", "nvidia.hopper.wgmma", "ideal.int"]
    with pytest.warns(ns.SkippedWarning):
        rows = ns.sweep(formats=["e4m3", "int8"], targets=targets, limit_tokens=200, window=64)
    rows = rows[(rows.layer == "all") & (rows.granularity == "per_tensor")]
    ppl = {(r.weight_format, r.target): r.perplexity for r in rows.itertuples()}
    assert ppl["float8_e4m3fn", "nvidia.hopper.wgmma"] != ppl["float8_e4m3fn", "ideal.fp32"]
    assert ppl["int8", "ideal.int"] == ppl["int8", "ideal.fp32"]  # sums stay below 2**24


def test_named_storage_rules():
    rows = ns.sweep(SMALL | {"formats": ["mxfp4_e2m1", "nvfp4"], "targets": ["ideal.fp32"]})
    rows = rows[rows.layer == "all"]
    assert rows.weight_format.tolist() == ["float4_e2m1fn"] * 2
    assert rows.block.tolist() == [32, 16]
    assert rows.scale_format.tolist() == ["float8_e8m0fnu", "float8_e4m3fn"]
    assert rows.bits_per_weight.round(2).tolist() == [4.25, 4.5]
    assert (rows.sqnr_cumulative_db > 15).all()


def test_interrupted_sweep_keeps_its_rows_and_resumes(tmp_path, monkeypatch):
    path = tmp_path / "r.csv"
    whole = ns.sweep(SMALL)

    def interrupt(what, done, total):
        if "per_channel" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ns.sweep(SMALL | {"out": path}, progress=interrupt)
    rows = read(path)
    assert [r["layer"] for r in rows[:ROWS]] == whole.layer.tolist()[:ROWS]
    assert len(rows) == ROWS + ROWS - 1  # the second case's operators, no "all" row
    seen = []
    again = ns.sweep(
        SMALL | {"out": path, "resume": True}, progress=lambda what, *_: seen.append(what)
    )
    assert not any("per_tensor" in what for what in seen)
    assert again.perplexity.dropna().astype(float).tolist() == whole.perplexity.dropna().tolist()
    assert len(read(path)) == len(whole)
    ns.sweep(SMALL | {"out": path, "resume": True})  # nothing left to do
    assert len(read(path)) == len(whole)


def test_spec_from_toml(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text('formats = ["int4"]\ntargets = ["ideal.int"]\nlimit_tokens = 40\n')
    rows = ns.sweep(path)
    assert set(rows[rows.op.str.endswith("_proj", na=False)].weight_format) == {"int4"}


def bundle(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(bundled_model_dir(), folder)
    return folder


BAD = [
    ({"formats": ["int9x"]}, "unknown format 'int9x'"),
    ({"formats": []}, "grid is empty"),
    ({"targets": []}, "grid is empty"),
    ({"targets": ["nvidia.hoper.wgmma"]}, "did you mean nvidia.hopper.wgmma"),
    ({"formats": ["int8"], "targets": ["nvidia.volta.mma"]}, "none of the targets"),
    ({"granularities": ["per_row"]}, "granularity is one of"),
    ({"limit_tokens": 0}, "limit_tokens"),
    ({"formts": ["int8"]}, "did you mean formats"),
    ({"model": "/nowhere"}, "/nowhere"),
    ({"text": "/nowhere.txt"}, "cannot read the text /nowhere.txt"),
    ({"out": "/nowhere/r.csv"}, "there is no folder /nowhere"),
    ({"seed": -1}, "seed"),
    ({"rounding": "stochastic"}, "rounding is one of"),
    ({"text": "a\0b"}, "no NUL character"),
    *(({key: 10**5000}, key) for key in ("limit_tokens", "window", "batch", "seed", "jobs")),
    ({"memory_limit": 10**5000}, "memory_limit"),
    ({3: 4}, "3: Keys should be strings"),
]


def test_unlike_runs_are_not_ranked_together(tmp_path, capsys):
    plan = SMALL | {"granularities": ["per_tensor"]}
    first = ns.sweep(plan | {"out": tmp_path / "r.csv"})
    other = plan | {"limit_tokens": 100, "formats": ["int8", "int4"]}
    with pytest.raises(ns.NumsimError, match=r"limit_tokens was 200, now 100; incompatible runs"):
        ns.sweep(other | {"out": tmp_path / "r.csv", "resume": True})
    rows = pd.concat([first, ns.sweep(other)])  # as a reader of two files has them
    sweep_table(rows)
    tables = capsys.readouterr().out.split("error versus bit format, best first; ")[1:]
    runs = rows.query("layer == 'all'").drop_duplicates("tokens")
    assert len(tables) == len(runs) == 2
    for table, run, formats in zip(
        tables, runs.itertuples(), (["int8"], ["int8", "int4"]), strict=True
    ):
        words = " ".join(table.split())
        assert words.startswith(f"tiny_llama, {run.tokens:.0f} tokens of course.rst, reference ")
        assert f"perplexity {run.perplexity_reference:.3f} " in words
        assert [f for line in table.splitlines() for f in ("int8", "int4") if f in line] == formats


def test_pairs_that_no_unit_multiplies_are_named():
    grid = {"formats": ["int8", "e4m3", "mxfp4_e2m1"]}
    spec = ns.SweepSpec(targets=["ideal.fp32", "ideal.int"], **grid)
    words = "left out.*format: float8_e4m3fn on ideal.int, mxfp4_e2m1 on ideal.int$"
    with pytest.warns(ns.SkippedWarning, match=words):
        found = cases(spec, model="m", text="t", text_hash="")
    assert len(found) == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [({"targets": ["ideal.int"]}, "sweep: targets of"), ({"rounding": "sr"}, "sweep: rounding of"),
     ({"targets": ["ideal.int"], "granularities": ["none"]}, "targets and granularities of")],
)  # fmt: skip
def test_fields_of_a_grid_that_is_not_swept_are_refused(change, words, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(RULES % 32)
    with pytest.raises(ns.NumsimError, match=words):
        ns.sweep({"recipes": [path], "out": tmp_path / "r.csv"} | change)
    assert not (tmp_path / "r.csv").exists()


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_specs(change, message, tmp_path):
    with pytest.raises(ns.NumsimError, match=message):
        ns.sweep(SMALL | change)


def test_text_that_gives_no_tokens(tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text("")
    out = tmp_path / "r.csv"
    with pytest.raises(ns.NumsimError, match="gives no tokens"):
        ns.sweep(SMALL | {"text": path, "out": out})
    assert not out.exists()
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ns.NumsimError, match="not UTF-8"):
        ns.sweep(SMALL | {"text": path})


def test_token_ids_in_place_of_a_text(tmp_path):
    folder = bundle(tmp_path)
    ids = load_text_tools(folder).ids(bundled_text())
    (folder / "tokenizer.json").unlink()
    path = tmp_path / "ids.npy"
    np.save(path, ids.astype(np.uint16))
    plan = SMALL | {"granularities": ["per_tensor"]}
    got, want = ns.sweep(plan | {"model": folder, "text": path}), ns.sweep(plan)
    assert got.text.unique().tolist() == ["ids.npy"]
    same = got.columns.difference(["case_id", "model", "text", "seconds"])
    assert got[same].equals(want[same])
    for bad, match in (
        (ids[:18].reshape(2, 9), r"array \[tokens\]; .*ids.npy holds int64 \[2, 9\]; join them"),
        (ids[:9].astype(float), "holds float64 \\[9\\]; save them as integers"),
        (np.array([1, 2048]), "vocabulary of 2048; got 2048"),
        (np.array([-1, 5]), "got -1"),
        (np.zeros(0, int), "gives no tokens"),
        (np.array([{}]), "cannot read the token ids"),
    ):
        np.save(path, bad, allow_pickle=True)
        with pytest.raises(ns.NumsimError, match=match):
            ns.sweep(plan | {"model": folder, "text": path})
    path.write_bytes(b"")
    with pytest.raises(ns.NumsimError, match="cannot read the token ids"):
        ns.sweep(plan | {"model": folder, "text": path})


def test_bad_model_folders(tmp_path):
    folder = bundle(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(ns.NumsimError, match="mamba"):
        ns.sweep(SMALL | {"model": folder})
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 500}))
    with pytest.raises(ns.NumsimError, match=r"(?s)gate_proj.*512.*500|500.*512"):
        ns.sweep(SMALL | {"model": folder})
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    with pytest.raises(ns.NumsimError, match=r"layers\.5"):
        ns.sweep(SMALL | {"model": folder})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ns.NumsimError, match=r"no tokenizer\.json"):
        ns.sweep(SMALL | {"model": folder})


def test_resume_refuses_another_file(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ns.NumsimError, match="columns of a results file"):
        ns.sweep(SMALL | {"out": path, "resume": True})
    assert path.read_text() == "a,b\n1,2\n"


def test_a_failing_case_has_a_row_and_leaves_the_others(tmp_path, monkeypatch, capsys):
    path = tmp_path / "r.csv"
    unit = tmp_path / "strict.toml"
    unit.write_text(ns.get_target("ideal.int", overflow="raise").to_toml())
    more = {"granularities": ["per_tensor"], "targets": [str(unit)], "out": path}
    grid = {"formats": ["int32", "int8"], **more}
    with pytest.raises(ns.NumsimError, match=r"1 cases failed.*32-bit accumulator overflows") as e:
        ns.sweep(SMALL | grid)
    whole = e.value.rows.query("layer == 'all'").set_index("weight_format")
    assert whole.index.tolist() == ["int32", "int8"]
    assert "32-bit accumulator overflows" in whole.loc["int32"].error
    assert np.isnan(whole.loc["int32"].perplexity)
    assert whole.loc["int32"].bits_per_weight > 32
    assert not isinstance(whole.loc["int8"].error, str)
    assert len(read(path)) == ROWS + 1
    sweep_table(e.value.rows)
    assert "failed" in capsys.readouterr().out
    write_report(path, tmp_path / "report")
    report = (tmp_path / "report" / "report.md").read_text()
    assert "`int32`" in report
    # it is known to fail: a resumed sweep says so again and computes nothing
    before = path.read_bytes()
    monkeypatch.setattr("numsim.models.Model.run", lambda *a, **k: pytest.fail("a run began"))
    with pytest.raises(ns.NumsimError, match="1 cases failed: int32"):
        ns.sweep(SMALL | grid | {"resume": True})
    assert path.read_bytes() == before


def test_logits_that_overflow_are_figures(tmp_path):
    """Infinite logits divide to 0 and differ to NaN: neither may be an error, nor look exact."""
    folder = bundle(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 20000
    save_file(tensors, folder / "model.safetensors")
    rule = tmp_path / "head.toml"
    rule.write_text(
        '[[rule]]\nmatch = "*"\n[[rule]]\nmatch = "lm_head"\nactivations = "float8_e5m2"\n'
        'weights = {format = "float8_e5m2", granularity = "none"}\nout_format = "float16"\n'
        'target = "nvidia.hopper.wgmma"\n'
    )
    rows = ns.sweep(SMALL | {"model": folder, "recipes": [rule], "formats": []})
    head = rows[rows.op == "lm_head"].iloc[0]
    whole = rows[rows.layer == "all"].iloc[0]
    assert head.sqnr_local_db == whole.sqnr_cumulative_db == -np.inf
    assert head.max_abs == whole.max_abs == np.inf


def test_resume_refuses_other_weights(tmp_path):
    folder = bundle(tmp_path)
    spec = SMALL | {"model": folder, "out": tmp_path / "r.csv", "granularities": ["per_tensor"]}
    ns.sweep(spec)
    before = (tmp_path / "r.csv").read_bytes()
    blob = bytearray((folder / "model.safetensors").read_bytes())
    blob[-4000:] = bytes(4000)
    (folder / "model.safetensors").write_bytes(blob)
    with pytest.raises(ns.NumsimError, match=r"with other contents.*incompatible runs do not mix"):
        ns.sweep(spec | {"resume": True})
    assert (tmp_path / "r.csv").read_bytes() == before


def test_out_does_not_replace_the_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("some words " * 50)
    with pytest.raises(ns.NumsimError, match="would replace the text"):
        ns.sweep(SMALL | {"text": path, "out": path})
    assert path.read_text().startswith("some words")


@pytest.mark.parametrize("field", ["formats", "targets", "recipes"])
def test_out_replaces_no_file_that_is_read(tmp_path, field):
    path = tmp_path / "mine.toml"
    text = {
        "formats": ns.get_format("e4m3").to_toml().replace("bias = 7", "bias = 9"),
        "targets": ns.get_target("ideal.int").to_toml(),
        "recipes": ns.Recipe.uniform("int8", target="ideal.int").to_toml(),
    }[field]
    path.write_text(text)
    spec = SMALL | {field: [str(path)], "out": path, "force": True}
    with pytest.raises(ns.NumsimError, match=rf"would replace the {field[:-1]} .*mine\.toml"):
        ns.sweep(spec)
    assert path.read_text() == text


def test_full_disk(tmp_path):
    with pytest.raises(ns.NumsimError, match="cannot write /dev/full"):
        ns.sweep(SMALL | {"out": "/dev/full"})


@pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
def test_an_assumed_unit_is_emulated_not_fake_quantised():
    rows = ns.sweep(SMALL | {"targets": ["tpu.mxu_int8"], "granularities": ["per_tensor"]})
    assert rows[rows.granularity == "per_tensor"].exact.all()


def test_a_memory_limit_changes_no_row(tmp_path):
    plan = {**SMALL, "formats": ["float8_e4m3fn"], "targets": ["nvidia.hopper.wgmma"]}
    whole, small = ns.sweep(plan), ns.sweep({**plan, "memory_limit": "4MB"})
    assert whole.drop(columns="seconds").equals(small.drop(columns="seconds"))
    with pytest.raises(ns.NumsimError, match=r"must fit; layers\.0 needs about 3,145,728 bytes"):
        ns.sweep({**plan, "memory_limit": 1000, "out": tmp_path / "x.csv"})
    assert not (tmp_path / "x.csv").exists()
    with pytest.raises(ns.NumsimError, match="got 'much'"):
        ns.sweep({**plan, "memory_limit": "much"})
    with pytest.raises(ns.NumsimError, match="got 2,000,000; raise the limit; 2 jobs share"):
        ns.sweep({**plan, "memory_limit": "4MB", "jobs": 9})  # of two cases


def test_an_edited_unit_is_another_case(tmp_path):
    unit = tmp_path / "acme.toml"
    plan = SMALL | {"granularities": ["per_tensor"], "targets": [str(unit)], "limit_tokens": 40}
    plan |= {"out": tmp_path / "r.csv", "resume": True}
    for bits, rows in ((32, 1), (32, 1), (20, 2)):
        unit.write_text(ns.get_target("ideal.int", acc_bits=bits).to_toml())
        assert (ns.sweep(plan).layer == "all").sum() == rows


@pytest.mark.parametrize(
    "data",
    [b"\x93NUMPY\x01\x00\x10\x00{'descr': '<i8',", b"\x93NUMPY", b"",
     b"\x93NUMPY\x01\x00v\x00"
     + b"{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117)
     + b"\n"],
)  # fmt: skip
def test_damaged_token_ids(tmp_path, data):
    path = tmp_path / "ids.npy"
    path.write_bytes(data)
    with pytest.raises(ns.NumsimError, match="cannot read the token ids"):
        ns.sweep(SMALL | {"text": path})


def test_token_ids_beyond_int64(tmp_path):
    path = tmp_path / "ids.npy"
    np.save(path, np.array([2**63 + 5, 1], np.uint64))
    with pytest.raises(ns.NumsimError, match="holds 9223372036854775813"):
        ns.sweep(SMALL | {"text": path})


def test_blocks_are_told_where_a_batch_takes_long(monkeypatch):
    monkeypatch.setattr(run_module, "BLOCK_EVERY", 0.0)
    seen = []
    spec = {"formats": ["int8"], "granularities": ["per_tensor"], "limit_tokens": 40, "window": 16}
    ns.sweep(spec, progress=lambda *what: seen.append(what))
    assert ("float64 reference, layers.0 of 5", 0, 2) in seen
    blocks = [(words, done) for words, done, _ in seen if ", layers.4 of 5" in words]
    assert len(blocks) == 2
    assert blocks[1][0].startswith("1 of 1: int8 per_tensor ideal.int, layers.4 of 5")
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
