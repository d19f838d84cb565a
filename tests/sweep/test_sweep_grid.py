"""The grid of a sweep: the default one, objects in place of names, settings that nothing uses."""

import dataclasses
import pickle

import ml_dtypes
import numpy as np
import pytest

import numsim as ns
from numsim.data import bundled_model_dir
from numsim.errors import NumsimError
from numsim.quant import QUANTS
from numsim.sweep.cases import cases
from numsim.sweep.frames import as_frame
from numsim.sweep.spec import as_spec

SMALL = {"limit_tokens": 200, "window": 64}


def grid(**fields):
    return cases(ns.SweepSpec(**fields), model="m", text="t", text_hash="")


def test_default_grid_has_every_case_once_on_its_exact_unit():
    both = ("per_tensor", "per_channel+per_token")
    hopper, blackwell, integers = "nvidia.hopper.wgmma", "nvidia.blackwell.tcgen05", "ideal.int"
    want = [
        *(("float8_e4m3fn", scales, hopper) for scales in both),
        *(("float8_e5m2", scales, hopper) for scales in both),
        *(("int8", scales, integers) for scales in both),
        *(("int4", scales, integers) for scales in both),
        ("q3.4", "none", integers),
        ("bfloat16", "none", hopper),
        ("mxfp8_e4m3", "per_block", blackwell),
        ("mxint8", "per_block", integers),
        ("mxfp6_e2m3", "per_block", blackwell),
        ("mxfp6_e3m2", "per_block", blackwell),
        ("mxfp4_e2m1", "per_block", blackwell),
        ("nvfp4", "per_block", blackwell),
    ]
    got = grid()
    assert [(c.format, c.granularity, c.target) for c in got] == want
    assert len({c.case_id for c in got}) == len(want)


@pytest.mark.parametrize(
    ("given", "unit"),
    [
        ("int16", "ideal.int"), ("uint8", "ideal.int"), ("float16", "nvidia.hopper.wgmma"),
        ("e3m2", "ideal.fp32"), ("posit8_es2", "ideal.fp32"), ("nf4", "ideal.fp32"),
        ("mxfp6_e2m3", "nvidia.blackwell.tcgen05"), (ns.Quant("e4m3", block=128),
                                                     "nvidia.hopper.wgmma"),
    ],
)  # fmt: skip
def test_the_unit_where_none_is_named(given, unit):
    assert {case.target for case in grid(formats=(given,))} == {unit}


def test_granularity_that_no_format_uses_is_refused():
    words = r"mxfp4_e2m1 \(per_block 32\), nvfp4 \(per_block 16\); granularity per_tensor is for"
    with pytest.raises(ns.NumsimError, match=words):
        grid(formats=("mxfp4_e2m1", "nvfp4"), granularities=("per_tensor",))
    assert len(grid(formats=("mxfp4_e2m1",), granularities=("per_block",))) == 1


def test_granularity_that_some_formats_ignore_is_said():
    with pytest.warns(ns.SkippedWarning, match=r"ignored by storage rules.*: mxfp4_e2m1 \(per_bl"):
        found = grid(formats=("int8", "mxfp4_e2m1"), granularities=("per_tensor",))
    assert [(c.format, c.granularity) for c in found] == [
        ("int8", "per_tensor"), ("mxfp4_e2m1", "per_block"),
    ]  # fmt: skip


def test_objects_and_their_names_are_the_same_cases():
    names = grid(formats=("int8", "nvfp4"), granularities=None, targets=("ideal.fp32",))
    objects = grid(
        formats=(ns.get_format("int8"), QUANTS["nvfp4"]), targets=(ns.get_target("ideal.fp32"),)
    )
    assert [c.case_id for c in names] == [c.case_id for c in objects]
    tensor = grid(formats=(ns.Quant("int8", "per_tensor"),))
    assert tensor == grid(formats=("int8",), granularities=("per_tensor",))


def test_a_quant_keeps_all_that_it_says():
    rule = ns.Quant("int8", "per_token", scale_rule="mse", rounding="rtz")
    (case,) = grid(formats=(rule,))
    assert case.quants == (rule, rule)
    assert case.rounding == "rtz"
    assert (case.called, case.granularity) == ("int8", "per_token")
    others = [
        ns.Quant("int8", "per_token", scale_rule="kl", rounding="rtz"),
        ns.Quant("int8", "per_token", rounding="rtz"),
        ns.Quant("int8", block=16),
        ns.Quant("int8", block=32),
        ns.Quant("int8", block=32, scale_format="float8_e8m0fnu"),
    ]
    assert len({c.case_id for c in grid(formats=(rule, *others))}) == 6


def test_two_units_of_one_label_are_told_apart():
    units = [ns.get_target("ideal.int", acc_bits=bits) for bits in (20, 24)]
    own = [dataclasses.replace(unit, name="acme") for unit in units]
    found = grid(formats=("int8",), granularities=("per_tensor",), targets=(*units, *own))
    assert [c.target for c in found[:2]] == ["ideal.int (acc_bits=20)", "ideal.int (acc_bits=24)"]
    assert all(c.target.startswith("acme") for c in found[2:])
    assert len({c.target for c in found}) == len({c.case_id for c in found}) == 4


def test_keywords_stand_before_the_fields_of_a_spec(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('formats = ["int4"]\nlimit_tokens = 40\n')
    for spec in (path, {"formats": ["int4"], "limit_tokens": 40}, ns.SweepSpec(
        formats=("int4",), limit_tokens=40
    )):  # fmt: skip
        plan = as_spec(spec, formats=["int8"])
        assert (plan.formats, plan.limit_tokens) == (("int8",), 40)
    with pytest.raises(ns.NumsimError, match="did you mean formats"):
        ns.sweep(formts=["int8"])
    with pytest.raises(ns.NumsimError, match=r"fields go by name, as in sweep\(formats"):
        ns.sweep(["int8"])


def test_a_sweep_of_objects_gives_the_numbers_of_names(tmp_path):
    model = ns.load_model(bundled_model_dir())
    recipe = ns.Recipe.uniform("int8", target="ideal.int")
    fields = {"granularities": ["per_tensor"], "out": tmp_path / "r.csv", **SMALL}
    objects = ns.sweep(
        model=model, formats=[ns.get_format("int8")], targets=[ns.get_target("ideal.int")],
        recipes=[recipe], **fields,
    )  # fmt: skip
    names = ns.sweep(formats=["int8"], targets=["ideal.int"], granularities=["per_tensor"], **SMALL)
    figures = ["layer", "op", "sqnr_local_db", "sqnr_cumulative_db", "kl_nats", "K", "emulated"]
    first = objects[objects.recipe.isna()]
    assert first[figures].equals(names[figures])
    resolved = recipe.resolve(model.gemm_names()).digest()
    assert objects[objects.recipe.notna()].format.unique().tolist() == [f"recipe_{resolved[:8]}"]
    assert objects.recipe_digest.unique().tolist() == [resolved]
    # a Model is its tensors, whatever folder they came from
    name = "layers.0.q_proj.weight"
    other = dataclasses.replace(model, tensors={**model.tensors, name: model.tensors[name] * 2})
    changed = ns.sweep(model=other, formats=["int8"], granularities=["per_tensor"], **SMALL)
    assert changed.case_id[0] not in set(objects.case_id)
    assert changed.iloc[-1].perplexity_reference != names.iloc[-1].perplexity_reference


@pytest.mark.slow
def test_a_model_goes_to_processes_as_it_is():
    model = ns.load_model(bundled_model_dir())
    name = "layers.0.q_proj.weight"
    other = dataclasses.replace(model, tensors={**model.tensors, name: model.tensors[name] * 2})
    fields = {"model": other, "formats": ["int8"], **SMALL}
    one, two = (ns.sweep(jobs=jobs, **fields).drop(columns="seconds") for jobs in (1, 2))
    assert one.equals(two)
    assert pickle.loads(pickle.dumps(ns.SweepSpec(model=other))).model.name == other.name


def test_a_model_without_a_folder_says_what_it_lacks():
    model = dataclasses.replace(ns.load_model(bundled_model_dir()), folder=None)
    with pytest.raises(ns.NumsimError, match=r"no tokenizer; give it one with dataclasses.replace"):
        ns.sweep(model=model)


def test_a_model_object_does_not_go_to_a_scheduler():
    model = ns.load_model(bundled_model_dir())
    with pytest.raises(ns.NumsimError, match="got a Model in this process; give its folder"):
        ns.sweep(model=model, scheduler="tcp://127.0.0.1:1")


def test_columns_have_one_type_whatever_is_missing():
    rows = ns.sweep(formats=["int8"], granularities=["per_tensor"], **SMALL)
    types = {name: str(dtype) for name, dtype in rows.dtypes.items()}
    for name, dtype in (
        ("M", "Int64"), ("tokens", "Int64"), ("exact", "boolean"), ("emulated", "boolean"),
        ("recipe", "string"), ("error", "string"), ("block", "Int64"), ("kl_nats", "float64"),
        ("embedding_cosine", "float64"), ("energy_pj", "float64"),
    ):  # fmt: skip
        assert types[name] == dtype
    assert "object" not in types.values()
    assert rows.M.isna().sum() == 1
    assert rows[rows.emulated].groupby("layer").sqnr_local_db.mean().max() < 50
    assert np.isnan(rows.roofline_seconds).all()  # no machine is stated
    row = {"case_id": "0", "layer": "all"}
    assert as_frame([row | {"block": 32}, row | {"block": "16"}]).block.tolist() == [32, 16]
    tiles = as_frame([row | {"block": (128, 128)}, row | {"block": 32}, row]).block
    assert tiles.tolist()[:2] == ["(128, 128)", "32"]
    assert tiles.isna().tolist() == [False, False, True]


def test_one_thing_is_a_list_of_one_and_dtypes_are_formats():
    """As people write them: one object, words with commas as on the command line, dtypes."""
    int8, unit = ns.get_format("int8"), ns.get_target("ideal.int")
    assert as_spec(None, formats="int8, e4m3").formats == ("int8", "e4m3")
    assert as_spec(None, formats=int8, targets=unit).formats == (int8,)
    assert as_spec(None, targets=unit).targets == (unit,)
    assert as_spec(None, formats=ns.Quant("int8")).formats == (ns.Quant("int8"),)
    assert as_spec(None, formats=np.int8).formats == ("int8",)
    assert as_spec(None, formats=[ml_dtypes.float8_e5m2, "int4"]).formats == ("float8_e5m2", "int4")
    assert as_spec(None, granularities="none,per_tensor").granularities == ("none", "per_tensor")
    recipe = ns.Recipe.uniform("int8", target="ideal.int")
    assert as_spec(None, recipes=recipe).recipes == (recipe,)
    assert as_spec(None, ignore_keys="a,b").ignore_keys == ("a", "b")
    assert as_spec(None, formats=None, targets=[]).targets == ()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "format",
            "int8",
            r"sweep: 'format' is no field; .*'int8'; did you mean formats.*; fields are model",
        ),
        ("qqqqq", 1, r"'qqqqq' is no field; got it as 1; fields are model, text, formats, "),
        ("formats", [8], r"sweep: formats: a format is a name or a Format; got 8 .*pass a name"),
        ("targets", 8, r"sweep: targets\.0: a unit or a list of them: .*Target; got 8$"),
        ("model", 3, r"sweep: model: a folder, org/name .*, or a Model; got 3$"),
        ("text", 3, r"sweep: text: the path of a UTF-8 file .*; got 3$"),
        ("batch", 0, r"sweep: batch: must be greater than or equal to 1; got 0$"),
        ("batch", 10**1000, r"batch: must be less than .*; got a number of hundreds of digits$"),
        ("window_start", "x" * 999, r"window_start: must be 'bos', 'eos' or 'none'; got 'x.{,90}$"),
    ],
)
def test_a_field_that_cannot_be_is_named_with_what_it_takes(field, value, message):
    with pytest.raises(NumsimError, match=message):
        as_spec({field: value})
