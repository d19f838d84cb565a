"""Parts of a sweep and its manifest: joined, repeated, and never mixed with another sweep."""

import csv
import dataclasses
import shutil
import tomllib
import warnings

import pytest

import numsim as ns
from numsim.data import bundled_model_dir
from numsim.sweep.cases import cases
from numsim.sweep.manifest import Manifest
from numsim.sweep.spec import as_spec

pytestmark = pytest.mark.slow  # whole sweeps

SMALL = {"formats": ["int8", "e4m3"], "limit_tokens": 63, "window": 64}


def table(path):
    with path.open(newline="") as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "r.csv"
    ns.sweep(SMALL | {"out": out})
    return out


def losses(path):
    folder = path.with_name(f"{path.name}.tokens")
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_shards_join_into_the_file_of_one_sweep(tmp_path, whole):
    out = tmp_path / "r.csv"
    for part in ("3/3", "1/3"):  # the second is missing, and computed when they are joined
        ns.sweep(SMALL | {"out": out, "shard": part})
    assert not out.exists()
    assert sorted(p.name for p in tmp_path.glob("*.csv")) == ["r.1of3.csv", "r.3of3.csv"]
    with pytest.raises(ns.NumsimError, match=r"r\.1of3\.csv is a part of .*--resume joins"):
        ns.sweep(SMALL | {"out": out})
    rows = ns.sweep(SMALL | {"out": out, "resume": True})
    assert table(out) == table(whole)
    assert losses(out) == losses(whole)
    assert rows.case_id.unique().tolist() == list(dict.fromkeys(r["case_id"] for r in table(whole)))
    ns.sweep(SMALL | {"out": out, "resume": True})  # nothing is left to do
    assert table(out) == table(whole)


def test_parts_of_another_sweep_do_not_join(tmp_path):
    out = tmp_path / "r.csv"
    ns.sweep(SMALL | {"out": out, "shard": "1/4"})
    ns.sweep(SMALL | {"out": out, "shard": "2/4", "limit_tokens": 40})
    with pytest.raises(ns.NumsimError, match=r"limit_tokens was 40, now 63; incompatible runs"):
        ns.sweep(SMALL | {"out": out, "resume": True})
    assert not out.exists()


def test_parts_that_are_all_there_join_with_a_manifest(tmp_path):
    out, one = tmp_path / "r.csv", SMALL | {"formats": ["int8"]}
    for part in ("1/2", "2/2"):
        ns.sweep(one | {"out": out, "shard": part})
    ns.sweep(one | {"out": out, "resume": True})  # nothing is left to compute
    record = tomllib.loads((tmp_path / "r.manifest.toml").read_text())["manifest"]
    assert record["cases"] == 2
    assert len(losses(out)) == 2


def test_cases_done_in_another_order_end_in_order(tmp_path, whole):
    out = tmp_path / "r.csv"
    ns.sweep(SMALL | {"out": out, "formats": ["e4m3"]})
    ns.sweep(SMALL | {"out": out, "resume": True})
    assert table(out) == table(whole)


def test_a_manifest_repeats_its_run(tmp_path, whole):
    manifest = whole.with_name("r.manifest.toml")
    out = tmp_path / "again.csv"
    ns.sweep(manifest, out=out)
    assert table(out) == table(whole)
    record = tomllib.loads(manifest.read_text())["manifest"]
    assert record["cases"] == 4
    assert record["numsim_version"] == ns.__version__
    assert {"models", "texts", "code_hash", "processor", "seeds", "libraries"} <= set(record)


def test_rows_without_their_manifest_take_no_more(tmp_path, whole):
    out = shutil.copy(whole, tmp_path / "r.csv")
    before = out.read_bytes()
    with pytest.raises(ns.NumsimError, match=r"no r\.manifest\.toml beside it; put it back"):
        ns.sweep(SMALL | {"out": out, "resume": True})
    assert out.read_bytes() == before


def test_a_manifest_has_recipes_and_units_inside(tmp_path):
    unit, recipe = tmp_path / "narrow.toml", tmp_path / "mine.toml"
    unit.write_text(ns.get_target("ideal.int", acc_bits=20).to_toml())
    recipe.write_text(ns.Recipe.uniform("int8", target="ideal.int").to_toml())
    fields = SMALL | {
        "formats": ["int8", ns.Quant("int4", block=32)], "granularities": ["per_tensor"],
        "targets": [str(unit)], "recipes": [recipe],
    }  # fmt: skip
    with pytest.warns(ns.SkippedWarning):
        first = ns.sweep(fields | {"out": tmp_path / "a.csv"})
    unit.unlink()
    recipe.unlink()
    with pytest.warns(ns.SkippedWarning):
        again = ns.sweep(tmp_path / "a.manifest.toml", out=tmp_path / "b.csv")
    names = ["layer", "op", "recipe_digest", "format", "kl_nats", "sqnr_local_db", "recipe"]
    assert first[names].equals(again[names])


def test_settings_of_a_manifest_stand_for_the_same_cases(tmp_path):
    own = dataclasses.replace(ns.get_format("e4m3"), name="mine", bias=10)
    file = tmp_path / "own.toml"
    file.write_text(dataclasses.replace(own, name="other").to_toml())
    plan = as_spec(
        None, formats=["int8", ns.Quant("int8"), own, str(file), ns.Quant("int4", block=32)],
        weights=["int4"], activations=[ns.Quant("int8", "per_token")],
        targets=["ideal.fp32", ns.get_target("ideal.exact")], rounding=["rne", "sr"], seed=[1, 2],
        kv="mxfp8_e4m3", products=["linears", "all"], exclude=["int8 per_tensor ideal.fp32"],
        recipes=[ns.Recipe.uniform("int8", target="ideal.int"),
                 {"name": "x y", "base": {"formats": "nvfp4"}, "rule": [{"match": "*k_proj",
                                                                         "weights": "nvfp4"}]}],
    )  # fmt: skip
    dataclasses.replace(Manifest.of(plan, []), path=tmp_path / "m.toml").write()
    file.unlink()
    names = [f"layers.0.{op}" for op in ("q_proj", "k_proj", "qk", "pv")]

    def found(spec):
        every = cases(spec, model="m", text="t", text_hash="", products=names)
        return [(case.case_id, case.label) for case in every]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ns.SkippedWarning)
        first = found(plan.model_copy(update={"formats": (*plan.formats[:3], plan.formats[4])}))
        again = found(as_spec(tmp_path / "m.toml"))
    assert len(again) > 40
    assert set(first) <= set(again)  # and those of the file, which is gone


def test_a_manifest_of_another_model_or_text_does_not_repeat(tmp_path, whole):
    text = tmp_path / "course.rst"
    text.write_text("quite another text " * 60)
    out = tmp_path / "r.csv"
    with pytest.raises(ns.NumsimError, match=r"repeats its run on the same texts"):
        ns.sweep(whole.with_name("r.manifest.toml"), text=text, out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit_tokens": 40}, "limit_tokens was 63, now 40"),
        ({"window": 32}, "window was 64, now 32"),
        ({"bandwidth_gb_s": 10.0}, "bandwidth_gb_s was None, now 10.0"),
    ],
)
def test_incompatible_runs_do_not_mix(tmp_path, whole, change, message):
    out = tmp_path / "r.csv"
    out.write_bytes(whole.read_bytes())
    out.with_name("r.manifest.toml").write_bytes(whole.with_name("r.manifest.toml").read_bytes())
    with pytest.raises(ns.NumsimError, match=f"{message}; incompatible runs do not mix"):
        ns.sweep(SMALL | change | {"out": out, "resume": True})
    assert out.read_bytes() == whole.read_bytes()


def test_another_text_does_not_join_a_file_without_a_manifest(tmp_path, whole):
    out, text = tmp_path / "r.csv", tmp_path / "other.txt"
    out.write_bytes(whole.read_bytes())
    text.write_text("quite another text " * 60)
    with pytest.raises(ns.NumsimError, match=r"text was course\.rst, now other\.txt"):
        ns.sweep(SMALL | {"out": out, "resume": True, "text": text})
    assert out.read_bytes() == whole.read_bytes()


def test_model_of_a_manifest_is_found_again(tmp_path):
    ns.sweep(SMALL | {"model": bundled_model_dir(), "formats": ["int8"], "out": tmp_path / "r.csv"})
    text = (tmp_path / "r.manifest.toml").read_text()
    assert str(bundled_model_dir()) in tomllib.loads(text)["model"]


def test_models_and_texts_of_one_name_are_told_apart(tmp_path):
    for place in "ab":
        shutil.copytree(bundled_model_dir(), tmp_path / place / "m")
        (tmp_path / place / "t.txt").write_text(f"the words of {place} " * 60)
    norm = tmp_path / "b" / "m" / "config.json"
    norm.write_text(norm.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))
    models, texts = ([tmp_path / place / name for place in "aba"] for name in ("m", "t.txt"))
    one = SMALL | {"formats": ["int8"], "granularities": ["per_tensor"], "out": tmp_path / "r.csv"}
    cases_of = ns.sweep(one | {"model": models, "text": texts}).cases
    both = cases_of[["model", "text"]].astype(str).to_numpy().tolist()
    assert both == [[f"{m}/m", f"{t}/t.txt"] for m in "ab" for t in "ab"]
    assert cases_of.kl_nats.nunique() == cases_of.case_id.nunique() == 4
    record = tomllib.loads((tmp_path / "r.manifest.toml").read_text())["manifest"]
    assert len(set(record["models"].values())) == len(set(record["texts"].values())) == 2
    again = ns.sweep(tmp_path / "r.manifest.toml", out=tmp_path / "again.csv").cases
    assert again.case_id.tolist() == cases_of.case_id.tolist()
    norm.write_text(norm.read_text().replace("20000.0", "30000.0"))
    with pytest.raises(ns.NumsimError, match=r"b/m with other contents"):
        ns.sweep(one | {"model": models, "text": texts, "resume": True})
    with pytest.raises(ns.NumsimError, match=r"got tiny_llama twice; rename one"):
        ns.sweep(SMALL | {"model": [ns.load_model(bundled_model_dir()) for _ in range(2)]})
