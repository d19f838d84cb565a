"""targets, explain mma and verify silicon: text that agrees with matmul bit for bit."""

from __future__ import annotations

import json
import os
import re
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from every_rule import every_rule, random_codes
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.targets import trace as tracing
from numsim.targets.explain import explain_mma, hex_word, step_lines
from numsim.verify.silicon import check_silicon, golden_folder

pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
RECORDED = Path(os.environ.get("NUMSIM_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))


def run(*arguments, **more):
    return CliRunner().invoke(app, list(arguments), **more)


def last_bits(text):
    """The result's bits at the end of the last line."""
    return int(re.fullmatch(r"D = \S+, (0x[0-9a-f]+)", text.splitlines()[-1])[1], 16)


# ------------------------------------------------------------------------------ explain mma
@pytest.mark.parametrize(("target", "fa", "fb", "out"), list(every_rule()))
def test_every_rule_agrees_with_matmul(target, fa, fb, out):
    rng = np.random.default_rng(17)
    for depth, with_c in ((1, False), (7, True), (40, True)):
        a, b = (
            random_codes(f, s, rng, wild=False) for f, s in ((fa, (1, depth)), (fb, (depth, 1)))
        )
        pairs = [(float(x), float(y)) for x, y in zip(a.values()[0], b.values()[:, 0], strict=True)]
        c = 3.0 if with_c else None
        text = explain_mma(target, values=pairs, c=c, formats=(fa, fb), out_format=out)
        d = ns.matmul(a, b, target=target, out_format=out)
        if with_c:
            d = ns.matmul(a, b, target=target, out_format=out, c=np.full((1, 1), 3, d.dtype))
        assert last_bits(text) == int(hex_word(d), 16)
        ks = re.findall(r"^step \d+, k = (\d+)(?: to (\d+))?:", text, re.MULTILINE)
        assert [k for first, end in ks for k in range(int(first), int(end or first) + 1)] == list(
            range(depth)
        )


@pytest.mark.parametrize("target", ns.list_targets())
def test_the_example_of_every_target(target):
    text = explain_mma(target)
    unit = ns.get_target(target)
    assert text.startswith(f"{target}: ")
    assert f"\n{unit.maturity}: {unit.evidence}\n" in text
    last_bits(text)


@pytest.mark.parametrize(
    ("target", "quant"),
    [("nvidia.blackwell.tcgen05", "nvfp4"), ("nvidia.blackwell.tcgen05", "mxfp4_e2m1"),
     ("nvidia.rtx_blackwell.mma", "mxfp8_e4m3"), ("nvidia.ada.mma", "mxfp8_e4m3")],
)  # fmt: skip
def test_block_scales(target, quant):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 80)).astype("f4")
    text = explain_mma(target, values=list(zip(x.tolist(), y.tolist(), strict=True)), formats=quant)
    a, b = ns.quantize(x[None], quant, axis=-1), ns.quantize(y[:, None], quant, axis=0)
    assert last_bits(text) == int(hex_word(ns.matmul(a, b, target=target)), 16)
    assert ("scales applied in float32 after the unit" in text) == (
        quant == "nvfp4" or "ada" in target
    )


@pytest.mark.parametrize(
    ("element", "scale", "block"),
    [("e2m1", "float8_e4m3fn", 16), ("e2m1", "float8_e8m0fnu", 32), ("e4m3", "float8_e8m0fnu", 32)],
)
def test_scales_inside_the_unit_are_shown(element, scale, block):
    """Codes, values and exponents of every block; with them the sum is the accumulator's."""
    rng = np.random.default_rng(3)
    low, high = (0, 12) if scale == "float8_e4m3fn" else (120, 134)  # E4M3: zero, subnormals
    tensors = []
    for shape, axis in (((1, 96), -1), ((96, 1), 0)):
        codes = random_codes(element, shape, rng, wild=False).codes
        kept = rng.integers(low, high, [96 // block if n == 96 else 1 for n in shape])
        kept = kept.astype(np.uint8)
        kept.flat[-1] = low
        tensors.append(
            ns.QTensor.from_codes(
                codes, element, scale_codes=kept, scale_format=scale, block=block, axis=axis
            )
        )
    a, b = tensors
    found = tracing.trace(a, b, "nvidia.blackwell.tcgen05", np.float32([[0.5]]))
    text = "\n".join(line for step in found.chains[0] for line in step_lines(found, step))
    rows = re.findall(
        r"^(\d+) to \d+ +0x(\w\w) +(\S+) +(\S+) +0x(\w\w) +(\S+) +(\S+)$", text, re.MULTILINE
    )
    assert [int(row[0]) for row in rows] == list(range(0, 96, block))
    for q, at in ((a, 1), (b, 4)):
        assert [int(row[at], 16) for row in rows] == q.scale_codes.ravel().tolist()
        assert [float(row[at + 1]) for row in rows] == q.scale.ravel().tolist()
        fields = q.scale_codes.ravel().astype(int)
        want = fields - 127 if "e8m0" in scale else np.maximum(fields >> 3, 1) - 7
        assert [int(row[at + 2]) for row in rows] == want.tolist()
    sums = [float(n) for n in re.findall(r"^sum (\S+), truncated", text, re.MULTILINE)]
    after = [step.after.item() for step in found.chains[0]]
    assert len(sums) == len(after)
    for total, accumulator in zip(sums, after, strict=True):  # twelve digits are printed
        assert abs(total - accumulator) <= np.spacing(np.float32(abs(accumulator)))
    scale_codes = a.scale_codes.copy()
    scale_codes.flat[0] = 0xFF if "e8m0" in scale else 0x7F
    a = ns.QTensor.from_codes(
        a.codes, element, scale_codes=scale_codes, scale_format=scale, block=block
    )
    found = tracing.trace(a, b, "nvidia.blackwell.tcgen05")
    assert np.isnan(found.d).all()
    shown = list(step_lines(found, found.chains[0][0]))
    assert " nan " in shown[1]
    assert shown[-1] == "a NaN scale makes the result NaN"


def lines_of(text, word):
    return [float(n) for n in re.findall(rf"\b{word} (\S+?)(?:,|$)", text, re.MULTILINE)]


def test_kept_and_cut_add_up():
    """Kept plus cut is the product; the sum of the kept, truncated, is the accumulator."""
    rng = np.random.default_rng(2)
    values = [(float(x), float(y)) for x, y in ns.cast(rng.normal(size=(64, 2)) * 8, "e4m3")]
    text = explain_mma("nvidia.hopper.wgmma", values=values, formats="e4m3")
    rows = re.findall(r"k (\d+): (\S+) \* (\S+)\s+-?\d+\s+\d+\s+(\S+)\s+(\S+)$", text, re.MULTILINE)
    assert len(rows) == 64
    for _, a, b, kept, cut in rows:
        lost = Fraction(0) if cut == "-" else Fraction(float(cut))
        assert Fraction(float(kept)) + lost == Fraction(float(a)) * Fraction(float(b))
    sums, held = lines_of(text, "sum"), re.findall(r"^  accumulator (\S+), ", text, re.MULTILINE)
    assert len(sums) == len(held) == 2
    for total, accumulator in zip(sums, held, strict=True):
        mantissa, exponent = np.frexp(total)
        assert np.ldexp(np.trunc(mantissa * 2**14) / 2**14, exponent) == float(accumulator)


def test_what_the_text_says():
    text = explain_mma("x86.vpmaddubsw", values=[(255, 127), (255, 127)])
    assert "pair 64770 in 16 bits, saturates to 32767" in text
    unit = ns.get_target("ideal.int", acc_bits=12)
    assert "wraps modulo 12 bits" in explain_mma(unit, values=[(100, 100)])
    unit = ns.get_target("ideal.fp32", promote_every=1)
    text = explain_mma(unit, values=[(1, 1), (2, 2)])
    assert "chain 2 of 2, from +0" in text
    assert "parts added in order: 5, 0x40a00000" in text
    text = explain_mma("ideal.exact", values=[(np.inf, 1), (1, 1)], formats="float16", c=0.0)
    assert "sum" in text
    unit = ns.get_target(
        "ideal.mac", acc_format="float_e5m6", product_format="float_e5m2", fused=False
    )
    text = explain_mma(unit, values=[(1.25, 1.25)])
    assert "products rounded to float_e5m2 (rne)" in text
    assert re.search(r"accumulator 1.5, 0x[0-9a-f]{3} of float_e5m6", text)


def test_zero_products_and_special_values_are_explained():
    text = explain_mma("nvidia.hopper.wgmma", values=[(0, 8), (1, 1)], formats="bfloat16")
    assert "k 0" not in text
    unit = ns.get_target("nvidia.hopper.wgmma", zero_products=True)
    assert "k 0: 0 * 8" in explain_mma(unit, values=[(0, 8), (1, 1)], formats="bfloat16")
    unit = ns.get_target("amd.cdna3.mfma", zero_products=True)
    assert "k 0: 0 * 8" in explain_mma(unit, values=[(0, 8), (1, 1)], formats="bfloat16")
    text = explain_mma("nvidia.hopper.wgmma", values=[(0, 8)], formats="bfloat16", c=np.nan)
    assert "NaN or Inf among the operands" in text
    assert last_bits(text) == 0x7FFFFFFF
    assert "no nonzero addend" in explain_mma("nvidia.hopper.wgmma", values=[(0, 8)])


@pytest.mark.parametrize("out", [None, "float16"])
def test_trace_is_matmul(out):
    rng = np.random.default_rng(0)
    a, b = (random_codes("float8_e5m2", s, rng, wild=True) for s in ((3, 50), (50, 2)))
    unit = ns.get_target("nvidia.hopper.mma", split_k=2, split_order="pairwise", split_tile=16)
    found = tracing.trace(a, b, unit, None, out)
    np.testing.assert_array_equal(found.d, ns.matmul(a, b, target=unit, out_format=out))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "mma"], "give the unit with --target"),
        (["explain", "mma", "--target", "ideal.in"], "did you mean ideal.int"),
        (["explain", "mma", "--target", "ideal.int", "--values", "1*2*3"], "products a*b"),
        (["explain", "mma", "--target", "ideal.int", "--values", "a*b"], "got 'a*b'"),
        (["explain", "mma", "--target", "ideal.int", "--values", "1e400*1"], "float64 numbers"),
        (["explain", "mma", "--target", "ideal.int", "--values", "9" * 400 + "*1"], "float64"),
        (["explain", "mma", "--target", "ideal.int", "--c", "1.5"], "whole number"),
        (["explain", "mma", "--target", "ideal.int", "--formats", "a,b,c"], "one format, or two"),
        (
            ["explain", "mma", "--target", "nvidia.volta.mma", "--formats", "e4m3"],
            "does not multiply",
        ),
        (["explain", "e4m3", "--target", "ideal.int"], "for explain mma"),
        (["targets", "nvidia.hoper.wgmma"], "did you mean nvidia.hopper.wgmma"),
        (["targets", "--toml"], "got no NAME"),
        (["verify", "silikon"], "conversions, silicon, published or probe"),
    ],
)
def test_one_clear_error(arguments, words):
    done = run(*arguments)
    assert isinstance(done.exception, ns.NumsimError)
    assert words in str(done.exception)
    assert len(str(done.exception).splitlines()) == 1


def test_values_must_be_pairs():
    for values in ([], [1, 2], [(1, 2, 3)], "no"):
        with pytest.raises(ns.NumsimError, match="pairs"):
            explain_mma("ideal.int", values=values)


def test_explain_commands():
    done = run("explain", "mma", "--target", "nvidia.ada.mma", "--values", "448*448, 1*1",
               "--formats", "e4m3,e5m2", "--c", "0.5", "--out-format", "float16")  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert "float8_e4m3fn x float8_e5m2 -> float16, K = 2" in done.stdout
    assert run("explain", "e4m3").stdout.startswith("float8_e4m3fn")


# ---------------------------------------------------------------------------------- targets
@pytest.mark.parametrize("columns", ["20", "80", "400"])
def test_targets_lists_all_one_line_a_unit(columns):
    lines = run("targets", env={"COLUMNS": columns}).stdout.splitlines()
    for name in ns.list_targets():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        unit = ns.get_target(name)
        assert line.split()[1] == unit.maturity
        assert (unit.evidence in line) == (columns == "400")
    assert columns == "20" or max(map(len, lines)) <= int(columns)
    legend = " ".join(" ".join(lines).partition(" maturity (")[2].split())
    assert "open:" not in " ".join(lines)
    for word in ("definition an", "silicon equal", "model equal", "document written", "assumed pa"):
        assert word in legend


def test_targets_match_by_any_part_of_the_name():
    found = [name for name in ns.list_targets() if "hopper" in name]
    text = run("targets", "Hopper").stdout
    assert [line.split()[0] for line in text.splitlines()[1 : 1 + len(found)]] == found
    assert "nvidia.ada.mma" not in text
    assert run("targets", "volta").stdout.startswith("nvidia.volta.mma\n  maturity ")
    assert run("targets", "volta", "--toml").stdout.startswith('name = "nvidia.volta.mma"')
    assert "name one" in str(run("targets", "hopper", "--toml").exception)
    assert run("targets", "x86.vpdpbusd").stdout.startswith("x86.vpdpbusd\n")  # part of another


def test_one_target_in_full(tmp_path):
    text = run("targets", "nvidia.hopper.wgmma").stdout
    unit = ns.get_target("nvidia.hopper.wgmma")
    for words in (unit.maturity, unit.evidence, unit.source, "align_bits=13", "float8_e5m2"):
        assert words in text
    path = tmp_path / "unit.toml"
    path.write_text(run("targets", "generic.systolic", "--toml").stdout, encoding="utf-8")
    assert ns.Target.from_toml(path) == ns.get_target("generic.systolic")
    assert "promote_every  128" in run("targets", str(path)).stdout


# --------------------------------------------------------------------------- verify silicon
recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason=f"no recordings in {RECORDED}")


@recorded
@pytest.mark.parametrize("only", ["hw_V100", "hw_H100", "cpu_", "mmasim_nv_bf16", "mmaemu"])
def test_recordings(only):
    rows = list(check_silicon(RECORDED, only=only))
    assert rows
    for row in rows:
        assert row.ok, row
        assert row.rows > 0


@recorded
def test_silicon_table(monkeypatch):
    monkeypatch.setenv("NUMSIM_GOLDEN", str(RECORDED))
    done = run("verify", "silicon", "--only", "mmasim_cdna12")
    assert done.exit_code == 0, done.exception
    assert re.search(r"mmasim_cdna12 +amd.cdna1.mfma", done.stdout)
    assert "\nmodelled: outputs of an independent model" in done.stdout
    assert "recorded:" not in done.stdout
    assert "\nmasked: " in done.stdout
    assert "0 of 2 units differ" in done.stdout
    assert isinstance(run("verify", "silicon", "--only", "none").exception, ns.NumsimError)


@recorded
def test_evidence_is_listed_apart(tmp_path, monkeypatch):
    for file in ("hw_V100", "mmasim_cdna12"):
        (tmp_path / f"{file}.npz").write_bytes((RECORDED / f"{file}.npz").read_bytes())
    rows = list(check_silicon(tmp_path))
    assert {(r.file, r.evidence) for r in rows} == {
        ("hw_V100", "recorded"), ("mmasim_cdna12", "modelled")
    }  # fmt: skip
    monkeypatch.setenv("NUMSIM_GOLDEN", str(tmp_path))
    out = run("verify", "silicon").stdout
    assert out.index("\nrecorded: ") < out.index("hw_V100") < out.index("\nmodelled: ")


def test_a_file_of_a_published_rule_names_its_unit(tmp_path):
    """A unit or a change that numsim does not have is a failure, not a silence."""
    one = np.ones((1, 1, 1), np.uint8)
    group = {"id": "g0", "a": "s8", "b": "s8", "c": "s32", "d": "s32", "scale": None, "nan": "any"}
    known, unknown = {"target": "x86.tdpbssd", "changes": {}}, {"target": "x86.no", "changes": {}}
    meta = [group | known, group | unknown | {"id": "g1"}]
    arrays = {f"{g}_{x}": one for g in ("g0", "g1") for x in "AB"}
    arrays |= {f"{g}_{x}": one.astype(np.int32) for g in ("g0", "g1") for x in "C"}
    arrays |= {f"{g}_D": 2 * one.astype(np.int32) for g in ("g0", "g1")}
    np.savez(tmp_path / "x86_own.npz", meta=np.array(json.dumps(meta)), **arrays)
    rows = list(check_silicon(tmp_path))
    assert [(r.unit, r.ok, r.evidence) for r in rows] == [
        ("x86.tdpbssd", True, "documented"), ("x86.no", False, "documented")
    ]  # fmt: skip
    assert "unknown target" in rows[1].first


@recorded
def test_a_difference_is_reported(tmp_path, monkeypatch):
    with np.load(RECORDED / "hw_V100.npz") as npz:
        data = {name: npz[name].copy() for name in npz.files}
    data["fp16_D_fp32"][3] ^= 1
    np.savez(tmp_path / "hw_V100.npz", **data)
    monkeypatch.setenv("NUMSIM_GOLDEN", str(tmp_path))
    assert golden_folder() == tmp_path
    done = run("verify", "silicon")
    assert done.exit_code == 1
    assert "FAIL hw_V100 nvidia.volta.mma fp16 -> fp32: first at (3,)" in done.stdout


@pytest.mark.parametrize("named", ["", "missing", "a\0b", "x" * 300])
def test_absent_recordings_are_not_shipped(named, tmp_path, monkeypatch):
    monkeypatch.delenv("NUMSIM_GOLDEN", raising=False)
    monkeypatch.setattr("numsim.verify.silicon.__file__", str(tmp_path / "a/b/c/silicon.py"))
    with pytest.raises(
        ns.NumsimError, match=r"not shipped with numsim.*set NUMSIM_GOLDEN"
    ) as error:
        golden_folder(named)
    assert ("has none" in str(error.value)) == bool(named)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("kind", ["pipe", "folder", "text", "cut", "huge"])
def test_what_is_no_recording_is_one_sentence(kind, tmp_path, monkeypatch):
    file = tmp_path / "hw_V100.npz"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "text":
        file.write_text("no archive")
    else:
        np.savez_compressed(file, meta=np.array("[]"), x=np.arange(999))
        data = bytearray(file.read_bytes())
        if kind == "cut":
            data[200:260] = bytes(60)
        file.write_bytes(data)
        if kind == "huge":
            with zipfile.ZipFile(file, "w") as archive:
                head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1 << 50,), }"
                head = head.replace(b"1 << 50", str(1 << 50).encode()).ljust(117) + b"\n"
                archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x76\x00" + head)
    monkeypatch.setenv("NUMSIM_GOLDEN", str(tmp_path))
    error = run("verify", "silicon").exception
    assert isinstance(error, ns.NumsimError), error
    assert "hw_V100.npz is no recording" in str(error)


def test_options_of_the_other_check_are_refused():
    for wrong in (["silicon", "--exhaustive"], ["silicon", "--formats", "e4m3"], ["--only", "hw_"]):
        assert "leave" in str(run("verify", *wrong).exception)
    done = run("verify", "--formats", "e2m1,e4m33")
    assert "e4m33" in str(done.exception)
    assert done.stdout == ""  # no check runs before every name is known


def test_a_half_that_overflows_and_values_that_are_rounded_are_told():
    text = explain_mma(
        "nvidia.hopper.mma", values=[(448, 448)], formats="float8_e4m3fn", out_format="float16"
    )
    assert "beyond float16: the half is inf" in text
    text = explain_mma("nvidia.ada.mma", values=[(448, 448)], formats="float8_e4m3fn")
    assert "beyond float16" not in text  # a float32 accumulator holds it
    assert "rounded to their formats" not in text
    assert "values were rounded to their formats first" in explain_mma(
        "ideal.int", values=[(1.5, 2)]
    )
