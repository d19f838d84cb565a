"""Units of published rules: what they take, what they say, what they count, what they refuse."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import oracle_mac as om
import pytest

import numsim as ns
from numsim.kernels.ir import simd
from numsim.targets.explain import explain_mma
from numsim.targets.trace import trace
from numsim.targets.types import Mme, Target

pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
E4M3, E5M2 = om.E4M3, om.E5M2
UNITS = (
    ("riscv.zvfwdota16bf", "bfloat16"), ("riscv.zvfqwdota8f", E4M3), ("intel.gaudi3.mme", E4M3),
    ("intel.gaudi2.mme", "float8_e4m3"), ("intel.gaudi2.mme", E5M2), ("arm.fdot_fp8", E5M2),
    ("arm.fmlal_fp8", E4M3), ("arm.fmmla_fp8", E4M3), ("arm.fmopa_fp8", E4M3),
    ("x86.top4mxbf8ps", "mxfp8_e4m3"), ("x86.top4mxbssps", "mxint8"),
    ("x86.top2bf16ps", "bfloat16"), ("x86.top4bssd", "int8"), ("x86.tdpfp16ps", "float16"),
)  # fmt: skip
VALUES = [(15, 2), (-3, 25), (6, 1), (12, 13), (-5, 5), (2, 7)] * 9


def operands(storage, m=3, k=70, n=4, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(m, k)) * 4, rng.normal(size=(k, n))
    if storage == "int8":
        x, y = np.round(x * 9), np.round(y * 30)
    if storage.startswith("mx"):
        return ns.quantize(x, storage), ns.quantize(y, storage, axis=0)
    return tuple(ns.QTensor.from_codes(ns.encode(v, storage), storage) for v in (x, y))


@pytest.mark.parametrize(("name", "storage"), UNITS)
def test_explanations_and_traces_end_in_the_result(name, storage):
    a, b = operands(storage)
    found, d = trace(a, b, name), ns.matmul(a, b, target=name)
    np.testing.assert_array_equal(found.d, d)
    steps = [step for chain in found.chains for step in chain]
    np.testing.assert_array_equal(steps[-1].after.reshape(d.shape), d)
    x, y = np.array(VALUES, "f4").T
    if storage.startswith("mx"):
        a, b = ns.quantize(x[None], storage), ns.quantize(y[:, None], storage, axis=0)
    else:
        a, b = (
            ns.QTensor.from_codes(ns.encode(v, storage), storage) for v in (x[None], y[:, None])
        )
    bits = int(ns.matmul(a, b, target=name).view(np.uint32)[0, 0])
    text = explain_mma(name, formats=storage, values=VALUES)
    assert text.splitlines()[-1].endswith(f", {bits:#010x}")
    assert text.count("step ") == -(-len(VALUES) // len(steps[0].positions))


@pytest.mark.parametrize(("name", "storage"), UNITS)
def test_counting_changes_no_bit_and_vectors_hold_the_result(name, storage, tmp_path):
    a, b = operands(storage, seed=1)
    d, counts = ns.matmul(a, b, target=name, stats=True)
    np.testing.assert_array_equal(d, ns.matmul(a, b, target=name))
    assert counts.products == 3 * 4 * 70
    ns.export_vectors(tmp_path, a, b, target=name)
    with np.load(tmp_path / "vectors.npz") as file:
        np.testing.assert_array_equal(file["d"], d.view(np.uint32))
        unit = Target.from_tables(tomllib.loads(json.loads(str(file["meta"]))["target"]))
    assert unit == ns.get_target(name)


@pytest.mark.parametrize("name", ["x86.top4mxbf8ps", "x86.top4mxbssps"])
def test_a_unit_with_scales_only_explains_itself(name):
    assert explain_mma(name).splitlines()[0].startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("arm.fdot_fp8", {"lscale": 9, "osm": True}),
        ("intel.gaudi2.mme", {"bias_a": 3, "bias_b": 11}),
        ("intel.gaudi3.mme", {"bias_a": 40}),
        ("riscv.zvfqwdota8f", {"group": 6}),
        ("x86.tdpfp16ps", {"flush_inputs": True}),
    ],
)
def test_changed_units_round_trip(name, changes):
    unit = ns.get_target(name, **changes)
    assert Target.from_tables(tomllib.loads(unit.to_toml())) == unit
    assert unit != ns.get_target(name)


def product(x, y, name, c=None, out=None, fmt=E4M3, **changes):
    """A sum of products of values, as bits."""
    a, b = (ns.QTensor.from_codes(ns.encode(np.array(v, "f8"), fmt), fmt) for v in ([x], [y]))
    c = None if c is None else np.array([[c]], out or "float32")
    d = ns.matmul(a, b.T, target=ns.get_target(name, **changes), c=c, out_format=out)
    return d[0, 0]


def test_arm_scales_and_overflow():
    """448 * 448 = 200,704 is beyond float16; 2^-4 of it is 12,544."""
    for osm, want in ((False, np.inf), (True, 65504)):
        assert product([448], [448], "arm.fmlal_fp8", out="float16", osm=osm) == want
        assert product([-448], [448], "arm.fmlal_fp8", out="float16", osm=osm) == -want
    assert product([448], [448], "arm.fmlal_fp8", out="float16", lscale=4) == 12544
    assert product([448], [448], "arm.fmlal_fp8", out="float16", lscale=20) == 12544  # 4 bits
    assert product([448], [448], "arm.fmlal_fp8", lscale=127) == np.float32(200704 / 2.0**127)
    assert product([1], [1], "arm.fmlal_fp8", np.inf, "float16", osm=True) == np.inf


@pytest.mark.parametrize("lscale", [1, 33, 127])
@pytest.mark.parametrize("group", [1, 4])
def test_a_scale_of_sums_below_all_products_of_float32(monkeypatch, group, lscale):
    """2**-393 is the least product of bfloat16 times 2**-127: no digit of the exact sum is lost."""
    rng, fmt = np.random.default_rng(lscale), om.FORMATS["bfloat16"]
    unit = ns.get_target("ideal.exact", group=group, lscale=lscale, negative_zero=True)
    x, y = (rng.integers(0, 1 << 16, shape).astype(np.uint16) for shape in [(5, 9), (9, 6)])
    x[:2] &= 0x81FF  # subnormals and what is next to them
    y[:, :2] &= 0x81FF
    x[2:], y[:, 2:] = (np.where(v & 0x7F80 == 0x7F80, 0x7F7F, v) for v in (x[2:], y[:, 2:]))
    c = rng.integers(0, 1 << 32, (5, 6)).astype(np.uint32)
    c[:, ::2] &= 0x80000007
    a, b = (ns.QTensor.from_codes(codes, "bfloat16") for codes in (x, y))

    def of(i, j):
        rows = [fmt.read(v) for v in x[i]], [fmt.read(v) for v in y[:, j]]
        return om.fdot_fp8(*rows, int(c[i, j]), lscale=lscale, ways=(group, group))

    want = np.array([[of(i, j) for j in range(6)] for i in range(5)], np.uint32)
    found = [ns.matmul(a, b, target=unit, c=c.view(np.float32))]
    monkeypatch.setattr("numsim.targets.runs.FAST", {})
    found += [ns.matmul(a, b, target=unit, c=c.view(np.float32))]
    found += [ns.matmul(a, b, target=unit, c=c.view(np.float32), stats=True)[0]]
    for d in found:
        np.testing.assert_array_equal(d.view(np.uint32), want)


def test_arm_counts_of_overflow_and_saturation():
    a = ns.QTensor.from_codes(ns.encode([[448.0] * 4], E4M3), E4M3)
    for osm, counts in ((False, (1, 0)), (True, (0, 2))):  # an infinite sum overflows no more
        unit = ns.get_target("arm.fdot_fp8", osm=osm)
        _, found = ns.matmul(a, a.T, target=unit, out_format="float16", stats=True)
        assert (found.overflows, found.saturations) == counts


def test_bulk_normalisation_rounds_to_odd():
    """In a set of 4, 25 bits are kept below 2^16; 2^-18 is cut and ORed into the last one, 2^-9.

    65,536 + 2^-9 has 26 bits: cut to the 24 of float32, the last one becomes 1.
    """
    x = product([256, 2.0**-9], [256, 2.0**-9], "riscv.zvfqwdota8f", group=4)
    assert x == 65536 + 2.0**-7
    assert product([256, 0], [256, 2.0**-9], "riscv.zvfqwdota8f", group=4) == 65536
    assert product([1], [1], "riscv.zvfqwdota8f", 2.0**-30) == 1 + 2.0**-23  # and so does c
    assert product([1], [1], "riscv.zvfqwdota8f", -(2.0**-30)) == 1 - 2.0**-24


def test_gaudi_reads_another_bias():
    """Codes of 1.5 and 2 with bias 7 are 2^4 and 2^-8 times that with biases 3 and 15."""
    name = "intel.gaudi2.mme"
    assert product([1.5], [2], name, fmt="float8_e4m3", bias_a=3, bias_b=15) == 3 * 2.0**-4
    assert product([1.5], [2], "intel.gaudi3.mme", bias_a=0) == 3 * 2.0**7
    assert product([1.5], [2], name, 2.0**-130, fmt="float8_e4m3") == 3  # DAZ


def test_gaudi_places_subnormals_at_their_leading_bit():
    """2^-9 in E4M3: 2^-18 times 1.75 keeps a bit of c that the format's own exponent cuts."""
    c = 2.0**-12 + 2.0**-35
    want = om.Block(8, 24, floor=-132)
    f = om.FORMATS[E4M3]
    code = int(np.float32(c).view(np.uint32))
    one, x = f.read(1), f.read(0x0E)
    got = int(product([2.0**-9], [2.0**-6 * 1.75], "intel.gaudi3.mme", c).view(np.uint32))
    assert got == om.gaudi3([one], [x], code)
    kept = int(
        product([2.0**-9], [2.0**-6 * 1.75], "intel.gaudi3.mme", c, subnormals="kept")
        .view(np.uint32)
    )  # fmt: skip
    assert kept == want([one], [x], code)


def test_gaudi_2_places_subnormals_as_float16_does():
    """2^-16 is placed at 2^-14: its product with 2^15 at 2^1, which cuts 2^-24."""
    x, y = [2.0**-16, 2.0**-12], [2.0**15, 2.0**-12]
    assert product(x, y, "intel.gaudi2.mme", fmt=E5M2) == 0.5
    assert product(x, y, "intel.gaudi3.mme", fmt=E5M2) == 0.5 + 2.0**-24


def test_gaudi_2_flushes_what_stays_subnormal_when_it_is_rounded():
    """2^-126 - 2^-150 is a tie that rounds to the least normal number."""
    x = [2.0**-63, -(2.0**-75)]
    d = product(x, [2.0**-63, 2.0**-75], "intel.gaudi2.mme", fmt="bfloat16")
    assert d == 2.0**-126
    d = product(x, [2.0**-63, 2.0**-73], "intel.gaudi2.mme", fmt="bfloat16")
    assert d == 0


@pytest.mark.parametrize("path", simd.PATHS)
def test_osm_goes_on_after_an_overflow(path):
    """The largest number, less 65,504: an infinite sum would stay."""
    with simd.force(path):
        x, y = [448, 448, -256, -256], [448, 448, 256, 0]
        d = product(x, y, "arm.fmlal_fp8", out="float16", osm=True)
    assert d == 65504 - 65536


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ns.get_target("arm.fdot_fp8", lscale=128), "lscale is 0 to 127"),
        (lambda: ns.get_target("arm.fdot_fp8", osm=2), "osm is True or False"),
        (lambda: ns.get_target("arm.fdot_fp8", flush=True), 'accumulator = "late"'),
        (lambda: ns.get_target("arm.fdot_fp8", accumulator="late"), "outputs"),
        (lambda: ns.get_target("intel.gaudi2.mme", bias_a=5), "bias_a is 3, 7, 11, 15; got 5"),
        (lambda: ns.get_target("intel.gaudi3.mme", bias_b=63), "bias_b is 0 to 62"),
        (lambda: ns.get_target("intel.gaudi3.mme", biases=(3, 99)), "from 0 to 62; got"),
        (lambda: ns.get_target("intel.gaudi2.mme", group=256), "have 56 bits"),
        (lambda: ns.get_target("riscv.zvfqwdota8f", group=0), "group is 1 to 65536"),
        (lambda: ns.get_target("arm.sdot", acc_format="float32"), "no field 'acc_format'"),
        (lambda: ns.get_target("ideal.mac", flush_inputs=False), "flush is false"),
        (lambda: product([1], [1], "intel.gaudi2.mme"), "it has e4m3: float8_e4m3; e5m2"),
        (lambda: product([1], [1], "riscv.zvfqwdota8f", fmt="int8"), "it has fp8"),
        (lambda: product([1], [1], "x86.top4mxbf8ps"), "only mx:fp8"),
        (lambda: product([1], [1], "riscv.zvfqwdota8f", out="float16"), "returns float32"),
    ],
)
def test_what_a_unit_does_not_have(call, words):
    with pytest.raises(ns.NumsimError, match=words):
        call()


def test_a_bias_is_of_fp8_only():
    assert ns.get_target("intel.gaudi3.mme", bias_a=3).rule("bf16").bias_a is None
    with pytest.raises(ns.NumsimError, match="operands of 8 bits"):
        Target("my.mme", (("bf16", Mme(8, 24, bias_a=3)),), "assumed", "none", "me").check()
