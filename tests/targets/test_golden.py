"""Golden vectors: recorded hardware and independent references, bit for bit.

The folder is the one named by NUMSIM_GOLDEN, else ../shared/golden beside the repository, and
golden_next beside it. A file with a unit or a change that numsim does not have fails. The small
sample tests/golden/hopper_fp8.npz always runs.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import numsim as ns

ENABLED = ns.list_targets()

HERE = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("NUMSIM_GOLDEN", HERE.parents[1] / "shared" / "golden"))
SAMPLE = HERE / "golden" / "hopper_fp8.npz"

FORMAT = {
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
    "e4m3fnuz": "float8_e4m3fnuz",
    "e5m2fnuz": "float8_e5m2fnuz",
    "e2m1": "float4_e2m1fn",
    "fp16": "float16",
    "f16": "float16",
    "bf16": "bfloat16",
    "tf32": "tfloat32",
    "xf32": "tfloat32",
    "f32": "float32",
    "ue8m0": "float8_e8m0fnu",
    "ue4m3": "float8_e4m3fn",
    "e3m2": "float6_e3m2fn",
    "e2m3": "float6_e2m3fn",
}
TARGET = {
    ("Volta", "mma"): "nvidia.volta.mma",
    ("Turing", "mma"): "nvidia.turing.mma",
    ("Ampere", "mma"): "nvidia.ampere.mma",
    ("Ada Lovelace", "mma"): "nvidia.ada.mma",
    ("Hopper", "mma"): "nvidia.hopper.mma",
    ("Hopper", "wgmma"): "nvidia.hopper.wgmma",
    ("Blackwell", "tcgen05mma"): "nvidia.blackwell.tcgen05",
    ("Blackwell", "tcgen05mma_block_scale"): "nvidia.blackwell.tcgen05",
    ("RTX Blackwell", "mma"): "nvidia.rtx_blackwell.mma",
    ("RTX Blackwell", "mma_block_scale"): "nvidia.rtx_blackwell.mma",
    ("CDNA1", "mfma"): "amd.cdna1.mfma",
    ("CDNA2", "mfma"): "amd.cdna2.mfma",
    ("CDNA3", "mfma"): "amd.cdna3.mfma",
}
PRESET = {"ada": "nvidia.ada.mma", "hopper": "nvidia.hopper.wgmma"}
CHIP = {
    "V100": "volta",
    "A2": "ampere",
    "A100": "ampere",
    "Ada": "ada",
    "L40S": "ada",
    "H100": "hopper",
    "H200": "hopper",
    "B200": "blackwell",
}
X86 = {
    "vpdpbusd": "x86.vpdpbusd",
    "vpdpbusds": "x86.vpdpbusds",
    "maddubs": "x86.vpmaddubsw",
    "vpdpwssd": "x86.vpdpwssd",
    "vpdpwssds": "x86.vpdpwssds",
}
FLOAT = {"f32": np.float32, "f16": np.float16}


# ----------------------------------------------------------------------------------------- reading
@cache
def load(path):
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}
    return data, json.loads(str(data["meta"]))


def tensor(bits, fmt, **scale):
    """tf32 registers hold fp32 bits, of which the unit reads the upper 19."""
    if fmt in ("tf32", "xf32"):
        bits = (bits >> 13).astype(np.uint32)
    return ns.QTensor.from_codes(bits, FORMAT[fmt], **scale)


def same(got, want, mask=None, *, nan_bits=True):
    """Raw bits equal wherever scored; at least one element is."""
    got = np.ascontiguousarray(got)
    assert got.shape == want.shape
    bits = got.view(want.dtype)
    equal = bits == want
    if not nan_bits:
        equal |= np.isnan(got) & np.isnan(want.view(got.dtype))
    if mask is not None:
        equal |= ~mask
    assert equal.size
    if not equal.all():
        at = tuple(int(i[0]) for i in np.nonzero(~equal))
        pytest.fail(
            f"{(~equal).sum()} of {equal.size} differ, first at {at}: "
            f"got {int(bits[at]):#x}, expected {int(want[at]):#x}"
        )


# -------------------------------------------------------------------------------- replaying a group
def mmasim_target(g):
    """Name and changes; the shape of the instruction decides the group."""
    changes = {}
    if g["scale"] is None:
        if g["arch"] in ("Hopper", "Blackwell", "RTX Blackwell") and g["a"] != "f32":
            changes["group"] = g["k_instr"]
        if g["arch"] == "CDNA3" and g["k_instr"] == 4 and g["a"] in ("fp16", "bf16"):
            changes["group"] = 4
        plain = g["a"] == "bf16" and not g["qualifier"].endswith("_1k")
        if g["arch"] in ("CDNA1", "CDNA2") and plain:
            changes["group"] = 2
    elif g["a"] == g["b"] == "e2m1" and g["k_instr"] == 32:
        changes["kind"] = "mxf8f6f4"
    return TARGET[g["arch"], g["instruction"]], changes


def run_mmasim(data, g):
    i = g["id"]
    A, B, C, D = (data[f"{i}_{x}"] for x in "ABCD")
    name, changes = mmasim_target(g)
    scale_a = scale_b = {}
    if g["scale"] is not None:
        scale = {"scale_format": FORMAT[g["scale"]], "block": g["block_size"]}
        scale_a = {"scale_codes": data[f"{i}_SA"], "axis": -1, **scale}
        scale_b = {"scale_codes": data[f"{i}_SB"], "axis": -2, **scale}
    got = ns.matmul(
        tensor(A, g["a"], **scale_a),
        tensor(B, g["b"], **scale_b),
        target=ns.get_target(name, **changes),
        c=C.view(FLOAT[g["c"]]).astype(FLOAT[g["d"]]),
        out_format=FORMAT[g["d"]],
    )
    same(got, D, data.get(f"{i}_agree"), nan_bits=name.startswith("nvidia"))


def mmaemu_target(g):
    changes = {}
    if g["kind"] != "instruction_chain":
        if not g["use_fast_accum"]:
            changes["promote_every"] = 128
        if g["split"] > 1:
            changes |= {"split_k": g["split"], "split_order": g["split_scheme"]}
    return PRESET[g.get("preset") or g["profile"]], changes


def run_mmaemu(data, g):
    i = g["id"]
    A, B, D = (data[f"{i}_{x}"] for x in "ABD")
    name, changes = mmaemu_target(g)
    c = data[f"{i}_C"].view(np.float32) if f"{i}_C" in data else None
    target = ns.get_target(name, **changes)
    got = ns.matmul(tensor(A, g["a"]), tensor(B, g["b"]), target=target, c=c)
    if g["kind"] == "scaled_mm":
        done = []
        for acc, (scale_a, scale_b, scale_result) in zip(got, data[f"{i}_scale"], strict=True):
            alpha = np.float32(scale_a) * np.float32(scale_b)
            done.append(
                ns.epilogue(acc, alpha=alpha, out_format=FORMAT[g["d"]], scale_result=scale_result)
            )
        got = np.stack(done)
    same(got, D)


def hw_target(g, out):
    chip = CHIP[g["gpu"]]
    if chip == "hopper" and g["format"] in ("E4M3", "E5M2") and out == "fp32":
        return "nvidia.hopper.wgmma", {}
    if chip == "hopper" and "nvidia.hopper.wgmma" in ENABLED and g["format"][0] != "E":
        return "nvidia.hopper.wgmma", {}  # mma and wgmma are one rule there
    return f"nvidia.{chip}.mma", {}


def run_hw(data, g, out):
    """Rows are separate dot products: a batch of 1 x 1 matrices."""
    X, (name, changes) = g["format"], hw_target(g, out)
    A, B, C = data[f"{X}_A"], data[f"{X}_B"], data[f"{X}_C"].view(np.float32)
    if name == "nvidia.hopper.wgmma" and X in ("E4M3", "E5M2"):
        C = np.zeros_like(C)  # recorded so
    c = C if out == "fp32" else C.astype(np.float16)
    fmt = X.lower()
    got = ns.matmul(
        tensor(A[:, None, :], fmt),
        tensor(B[:, :, None], fmt),
        target=ns.get_target(name, **changes),
        c=c[:, None, None],
        out_format="float32" if out == "fp32" else "float16",
    )
    same(got[:, 0, 0], data[f"{X}_D_{out}"])


def run_cpu_int8(data, g, name):
    i = g["id"]
    A, B, C = data[f"{i}_A"], data[f"{i}_B"], data[f"{i}_C"]
    got = ns.matmul(
        ns.QTensor.from_codes(A[:, None, :], A.dtype.name),
        ns.QTensor.from_codes(B[:, :, None], B.dtype.name),
        target=X86[name],
        c=C[:, None, None],
    )
    np.testing.assert_array_equal(got[:, 0, 0], data[f"{i}_D_{name}"])


def run_cpu_bf16(data, g):
    A, B, C, D = (data[f"{g['id']}_{x}"] for x in "ABCD")
    got = ns.matmul(
        tensor(A, "bf16"), tensor(B, "bf16"), target="x86.vdpbf16ps", c=C.view(np.float32)
    )
    same(got, D, nan_bits=False)


# ------------------------------------------------------- units whose groups name them: golden_next
PUBLISHED = ("rvbna", "gaudi", "arm_fp8", "x86_")
NEXT = FOLDER.with_name("golden_next")
NAMES = FORMAT | {
    "e4m3ieee": "float8_e4m3", "q1.6": "q1.6", "u8": "uint8", "s8": "int8",
}  # fmt: skip


def run_published(data, g):
    """A group of a unit and of changes that it names; what numsim does not have is an error."""
    i, agree = g["id"], data.get(f"{g['id']}_agree")
    A, B, C, D = (data[f"{i}_{x}"] for x in "ABCD")
    scale = {"scale_format": NAMES[g["scale"]], "block": g["block_size"]} if g["scale"] else {}
    sa, sb = ({"scale_codes": data[f"{i}_S{x}"]} if scale else {} for x in "AB")
    integer = g["d"] == "s32"
    got = ns.matmul(
        ns.QTensor.from_codes(A, NAMES[g["a"]], axis=-1, **scale, **sa),
        ns.QTensor.from_codes(B, NAMES[g["b"]], axis=-2, **scale, **sb),
        target=ns.get_target(g["target"], **g["changes"]),
        c=C if integer else C.view(FLOAT[g["c"]]),
        out_format=None if integer else NAMES[g["d"]],
    )
    same(got, D, agree, nan_bits=g["nan"] == "bits")


def published():
    files = [path for path in sorted(NEXT.glob("*.npz")) if path.stem.startswith(PUBLISHED)]
    if not files:
        reason = f"no golden vectors in {NEXT} (set NUMSIM_GOLDEN)"
        return [pytest.param(None, None, id="absent", marks=pytest.mark.skip(reason=reason))]
    return [
        pytest.param(load(path)[0], g, id=f"{path.stem}-{g['id']}")
        for path in files
        for g in load(path)[1]
    ]


@pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
@pytest.mark.parametrize(("data", "g"), published())
def test_published_rules(data, g):
    run_published(data, g)


@pytest.mark.parametrize(
    ("target", "changes", "words"),
    [("riscv.nothing", {}, "unknown target"), ("arm.fdot_fp8", {"scale": 3}, "no field 'scale'")],
)
def test_an_unknown_unit_or_change_fails(target, changes, words):
    zeros = {f"g_{x}": np.zeros((1, 1, 1), np.uint8) for x in "ABCD"}
    g = {
        "id": "g", "target": target, "changes": changes, "a": "e4m3", "b": "e4m3", "c": "f32",
        "d": "f32", "scale": None, "nan": "bits",
    }  # fmt: skip
    with pytest.raises(ns.NumsimError, match=words):
        run_published(zeros | {"g_C": np.zeros((1, 1, 1), np.uint32)}, g)


# -------------------------------------------------------------------------------------- the groups
def groups(path):
    """Every replayable group of a file: (name, unit, changes, function, arguments)."""
    data, meta = load(path)
    stem = path.stem
    for g in meta["cases"] if isinstance(meta, dict) else meta:
        label = f"{stem}-{g.get('id', g.get('format'))}"
        if stem.startswith("hw_"):
            for out in ("fp32", "fp16"):
                if f"{g['format']}_D_{out}" in data:
                    yield f"{label}-{out}", *hw_target(g, out), run_hw, (data, g, out)
        elif stem == "cpu_int8_vnni":
            for name, unit in X86.items():
                if f"{g['id']}_D_{name}" in data:
                    yield f"{label}-{name}", unit, {}, run_cpu_int8, (data, g, name)
        elif stem == "cpu_bf16":
            if g["kind"] == "vdpbf16ps":
                yield label, "x86.vdpbf16ps", {}, run_cpu_bf16, (data, g)
        elif "api" in g:  # mmaemu
            if g["kind"] != "scaled_mm" or hasattr(ns, "epilogue"):
                yield f"{label}-{g['kind']}", *mmaemu_target(g), run_mmaemu, (data, g)
        else:
            yield f"{label}-{g['qualifier']}", *mmasim_target(g), run_mmasim, (data, g)


def replayed(path):
    return [pytest.param(run, args, id=name) for name, _, _, run, args in groups(path)]


def shared():
    prefixes = ("hw_", "cpu_", "mmasim_", "mmaemu_")
    folders = (FOLDER, FOLDER.with_name("golden_next"))
    files = [p for f in folders for p in sorted(f.glob("*.npz")) if p.stem.startswith(prefixes)]
    if not files:
        reason = f"no golden vectors in {FOLDER} (set NUMSIM_GOLDEN)"
        return [pytest.param(None, (), id="absent", marks=pytest.mark.skip(reason=reason))]
    return [case for path in files for case in replayed(path)]


@pytest.mark.parametrize(("run", "args"), replayed(SAMPLE))
def test_committed_sample(run, args):
    run(*args)


@pytest.mark.parametrize(("run", "args"), shared())
def test_golden(run, args):
    run(*args)


# -------------------------------------------------------------------------- single steps, TestFloat
MODES = {
    "nearest_even": "rne", "toward_zero": "rtz", "down": "rdn", "up": "rup",
    "nearest_away": "rna", "to_odd": "rto",
}  # fmt: skip


@pytest.mark.skipif(not (FOLDER / "testfloat.npz").exists(), reason="no recordings here")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", ["mulAdd", "add", "mul"])
def test_one_step_of_ideal_mac_is_ieee(operation, mode):
    """Products, sums and fused steps in float16: values, signs of zeros, overflow."""
    with np.load(FOLDER / "testfloat.npz") as data:
        given, want = (data[f"f16_{operation}__{mode}__{end}"] for end in ("in", "out"))
    x, y = given[:, 0], given[:, 1]
    if operation == "mulAdd":
        c = given[:, 2]
    elif operation == "add":
        y, c = np.full_like(x, 0x3C00), given[:, 1]
    else:  # the zero that leaves the sign of every product alone
        c = np.full_like(x, 0 if mode == "down" else 0x8000)
    unit = ns.get_target("ideal.mac", acc_format="float16", rounding=MODES[mode])
    a, b = (ns.QTensor.from_codes(v[:, None, None], "float16") for v in (x, y))
    d = ns.matmul(a, b, target=unit, c=c.view(np.float16)[:, None, None], out_format="float16")
    same(d.ravel(), want, nan_bits=False)
