"""Conversions against recorded references: ml_dtypes, torch, gfloat, SoftFloat, a CPU.

The folder is the one named by NUMSIM_GOLDEN, else ../shared/golden beside the repository.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib

import numpy as np
import pytest
from test_convert import check

import numsim as ns

GOLDEN_MODES = {
    "TowardZero": "rtz",
    "TowardNegative": "rdn",
    "TowardPositive": "rup",
    "TiesToEven": "rne",
    "TiesToAway": "rna",
    "ToOdd": "rto",
}
GOLDEN_NAMES = {
    "ocp_e4m3": "float8_e4m3fn",
    "ocp_e5m2": "float8_e5m2",
    "ocp_e2m3": "float6_e2m3fn",
    "ocp_e3m2": "float6_e3m2fn",
    "ocp_e2m1": "float4_e2m1fn",
    "binary16": "float16",
}


@functools.cache
def golden(name):
    here = pathlib.Path(__file__).resolve()
    folder = os.environ.get("NUMSIM_GOLDEN") or here.parents[2] / "shared" / "golden"
    path = pathlib.Path(folder) / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no golden vectors at {path}; set NUMSIM_GOLDEN to their folder")
    with np.load(path) as data:
        return {k: data[k] for k in data.files}


def test_golden_gfloat():
    data = golden("convert_gfloat")
    for entry in json.loads(str(data["meta"]))["entries"]:
        if "mode" in entry:
            continue
        g = entry["format"]
        name, x = GOLDEN_NAMES.get(g, g), data[f"{g}_x"].view(np.float32)
        for mode, rounding in GOLDEN_MODES.items():
            for suffix, overflow in (("sat", "saturate"), ("nosat", "special")):
                want = data.get(f"{g}_{mode}_{suffix}")
                if want is None:
                    continue
                got = ns.encode(x, name, rounding=rounding, overflow=overflow)
                # gfloat sends overflow to Inf when rounding to odd; SoftFloat and numsim stop
                same_rule = (mode, suffix) != ("ToOdd", "nosat") or ~(np.abs(x) > entry["max"])
                ok = np.broadcast_to(same_rule, x.shape)
                check(name, x[ok], got[ok], want[ok], f"gfloat {mode} {suffix}")


def test_golden_gfloat_stochastic():
    data = golden("convert_gfloat_stochastic")
    modes = {
        "StochasticFastest": "truncate",
        "StochasticFast": "half_offset",
        "Stochastic": "rne_first",
    }
    for key in data:
        if not key.endswith("_rbits"):
            continue
        stem = key.removesuffix("_rbits")
        g, bits = stem.rsplit("_r", 1)
        name, x = GOLDEN_NAMES.get(g, g), data[f"{stem}_x"].view(np.float32)
        for mode, variant in modes.items():
            got = ns.encode(
                x, name, rounding="sr", sr=variant, random_bits=int(bits), random=data[key]
            )
            check(name, x, got, data[f"{stem}_{mode}_sat"], f"gfloat {mode} {bits}")


@pytest.mark.parametrize(
    ("mode", "rounding"),
    [
        ("nearest_even", "rne"),
        ("toward_zero", "rtz"),
        ("down", "rdn"),
        ("up", "rup"),
        ("nearest_away", "rna"),
        ("to_odd", "rto"),
    ],
)
def test_golden_testfloat(mode, rounding):
    data = golden("testfloat")
    x = data[f"f32_to_f16__{mode}__in"].view(np.float32)
    got = ns.encode(x, "float16", rounding=rounding, overflow="special")
    check("float16", x, got, data[f"f32_to_f16__{mode}__out"], f"SoftFloat {mode}")


def test_golden_ml_dtypes_from_float64():
    data = golden("convert_ml_dtypes")
    x = data["x64"].view(np.float64)
    with np.errstate(all="ignore"):
        exact = x.astype(np.float32).astype(np.float64) == x  # elsewhere ml_dtypes rounds twice
    for key, want in data.items():
        if not key.startswith(("ml64_", "np64_")):
            continue
        name = key[5:]
        ok = (exact if key.startswith("ml") else True) & ~np.isnan(x)
        check(name, x[ok], ns.encode(x[ok], name, overflow="special"), want[ok], key)


FROM_FLOAT32 = {  # the policy that each library follows
    "ml": "special",
    "np": "special",
    "torch": "special",
    "torch_float8_e4m3fn": "saturate",
}
GROUPS = (
    *(f"ml_{n}" for n in (
        "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz",
        "float8_e4m3", "float8_e3m4", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn",
        "float4_e2m1fn", "bfloat16",
    )),
    *(f"torch_{n}" for n in (
        "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
        "bfloat16",
    )),
    "np_float16",
)  # fmt: skip


def test_the_groups_are_all_of_the_file():
    keys = {k for k in golden("convert_ml_dtypes") if k.startswith(("ml_", "torch_", "np_"))}
    assert keys == set(GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_golden_from_float32(group):
    data = golden("convert_ml_dtypes")
    x, want = data["x"].view(np.float32), data[group]
    library, _, name = group.partition("_")
    policy = FROM_FLOAT32.get(group, FROM_FLOAT32[library])
    ok = ~np.isnan(x) if not ns.get_format(name).has_nan else np.ones(x.size, bool)
    if group == "torch_float8_e8m0fnu":
        ok &= ~(x <= 0)  # torch drops the sign, and takes zero to the smallest value
    check(name, x[ok], ns.encode(x[ok], name, overflow=policy), want[ok], group)


def test_golden_decoding():
    groups = {k: v for k, v in golden("convert_ml_dtypes").items() if k.startswith("decode_")}
    assert len(groups) == 11
    for key, want in groups.items():
        name = key.removeprefix("decode_")
        got = ns.decode(np.arange(want.size, dtype=np.uint8), name)
        nan = np.isnan(got) & np.isnan(want.view(np.float32))
        assert ((got.view(np.uint32) == want) | nan).all(), key


def test_golden_every_bfloat16():
    groups = {k: v for k, v in golden("convert_ml_dtypes").items() if k.startswith("all_bf16_")}
    assert len(groups) == 6
    x = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    for key, want in groups.items():
        name = key.removeprefix("all_bf16_")
        ok = ~np.isnan(x) if not ns.get_format(name).has_nan else np.ones(x.size, bool)
        check(name, x[ok], ns.encode(x[ok], name, overflow="special"), want[ok], key)


def test_golden_mx_blocks():
    data = golden("mx_blocks_gfloat")
    formats = json.loads(str(data["meta"]))["formats"]
    assert len(formats) == 6
    for entry in formats:
        name = entry["format"]
        got = ns.quantize(data[f"{name}_x"].view(np.float32), name, axis=-1).dequantize()
        assert np.array_equal(np.asarray(got, np.float64), data[f"{name}_decoded"]), name


def test_golden_cpu_bf16():
    """VCVTNEPS2BF16 of an EPYC, payloads of NaN included; it flushes subnormal inputs."""
    data = golden("cpu_bf16")
    x, want = data["cvt_x"].view(np.float32), data["cvt_bf16"]
    flushed = (np.abs(x) < np.float32(2.0**-126)) & (x != 0)
    assert np.isnan(x).any()
    got = ns.encode(x, "bfloat16", overflow="special", nan="payload")
    assert np.array_equal(got[~flushed], want[~flushed])
    assert np.array_equal(want[flushed], (x.view(np.uint32) >> 31 << 15)[flushed])
