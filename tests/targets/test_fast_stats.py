"""The vector counting kernels against the scalar ones: every count, and every result."""

import numpy as np
import pytest

import numsim as ns
from numsim.kernels.counts import steps
from numsim.kernels.jit import using_threads
from numsim.targets import runs
from numsim.targets.chain import Chain
from numsim.targets.plan import class_for
from numsim.targets.rules import about
from numsim.targets.types import Mac

pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
SHAPES = [(1, 1, 1), (3, 70, 18), (5, 37, 16), (2, 129, 33)]
E4, E5, HALF, BF16 = "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16"
TF32, FNUZ, U8S8 = "tfloat32", "float8_e4m3fnuz", "u8s8"
UNITS = [  # target, changed fields, operand format, output format
    ("nvidia.hopper.wgmma", {}, E4, None),
    ("nvidia.hopper.wgmma", {}, E5, None),
    ("nvidia.hopper.wgmma", {"promote_every": 32}, E4, None),
    ("nvidia.hopper.wgmma", {}, HALF, "float16"),
    ("nvidia.hopper.wgmma", {}, BF16, None),
    ("nvidia.hopper.wgmma", {}, TF32, None),
    ("nvidia.ampere.mma", {}, BF16, None),
    ("nvidia.ampere.mma", {"align_bits": 9, "keep_bits": 9}, HALF, None),
    ("nvidia.ampere.mma", {"zero_products": True}, HALF, None),
    ("nvidia.ampere.mma", {"min_exponent": -3}, BF16, None),
    ("nvidia.volta.mma", {"split_k": 2, "split_tile": 16}, HALF, None),
    ("nvidia.hopper.mma", {}, E4, None),
    ("nvidia.hopper.mma", {"min_exponent": -3}, E5, None),
    ("nvidia.hopper.mma", {}, E4, "float16"),
    ("nvidia.hopper.mma", {}, E5, "float16"),
    ("nvidia.hopper.mma", {"zero_products": True, "group": 7}, E5, "float16"),
    ("amd.cdna3.mfma", {}, HALF, None),
    ("amd.cdna3.mfma", {}, BF16, None),
    ("amd.cdna3.mfma", {}, TF32, None),
    ("amd.cdna3.mfma", {}, FNUZ, None),
    ("amd.cdna3.mfma", {"streams": 2, "group": 5}, HALF, None),
    ("ideal.fp32", {}, E4, None),
    ("ideal.fp32", {}, BF16, "bfloat16"),
    ("ideal.fp32", {}, "float32", None),
    ("ideal.fp32", {"promote_every": 48}, E5, None),
    ("ideal.fp32", {}, "nf4", None),
    ("ideal.fp32", {}, "q3.4", None),
    ("ideal.mac", {"acc_format": "float16"}, E4, None),
    ("ideal.mac", {"acc_format": "float_e5m2"}, E4, None),
    ("ideal.mac", {"acc_format": "bfloat16", "product_format": "float_e4m3"}, E5, None),
    ("ideal.mac", {"acc_format": "bfloat16", "fused": False, "order": "odd_first"}, E5, None),
    ("ideal.mac", {"acc_format": "float_e5m2", "order": "tree", "group": 7}, E4, None),
    ("ideal.mac", {"acc_format": "float16", "order": "two_chains", "group": 6}, E4, None),
    ("amd.cdna1.mfma", {}, HALF, None),
    ("amd.cdna1.mfma", {}, BF16, None),
    ("amd.cdna1.mfma", {"order": "tree"}, HALF, None),
    ("amd.cdna1.mfma", {"order": "tree"}, BF16, None),
    ("ideal.exact", {}, E4, None),
    ("ideal.exact", {}, E4, "float16"),
    ("ideal.exact", {}, "int8", "bfloat16"),
    ("ideal.exact", {"split_k": 3, "split_tile": 8}, HALF, "float16"),
    ("ideal.exact", {"group": 5}, "int8", "bfloat16"),
    ("ideal.exact", {"group": 4}, E4, None),
    ("ideal.int", {}, "int8", None),
    ("ideal.int", {"acc_bits": 9}, "int4", None),
    ("ideal.int", {"acc_bits": 17, "overflow": "saturate", "group": 3}, "int8", None),
    ("ideal.int", {"acc_bits": 31, "overflow": "saturate"}, "int16", None),
    ("ideal.int", {"acc_bits": 40}, "int16", None),
    ("ideal.int", {"acc_bits": 16, "overflow": "saturate", "promote_every": 20}, "int8", None),
    ("x86.vpdpbusd", {}, U8S8, None),
    ("x86.vpmaddubsw", {}, U8S8, None),
    ("x86.vpmaddubsw", {"pair_bits": 9, "acc_bits": 12}, U8S8, None),
    ("x86.vpdpwssds", {}, "int16", None),
]  # fmt: skip


def tensor(rng, shape, name, kind):
    """Random operands: every finite `code` alike, `normal` numbers, `sparse` ones, or `wild`."""
    f = ns.get_format(name)
    if f.kind == "integer":
        codes = rng.integers(int(f.min), int(f.max) + 1, shape)
        return ns.QTensor.from_codes(
            codes * (rng.random(shape) < 0.5 if kind == "sparse" else 1), f
        )
    values = rng.normal(size=shape)
    if kind == "codes":
        values = f.decode_bits(rng.integers(0, 1 << f.bits, shape))
        values = np.where(np.isfinite(values), values, 0.0)
    elif kind == "sparse":
        values = values * (rng.random(shape) < 0.3)
    elif kind == "wild":
        values = np.ldexp(values, rng.integers(f.emin - f.precision, f.emax, shape))
    with np.errstate(over="ignore"):
        return ns.QTensor.from_codes(ns.encode(values, f, overflow="saturate"), f)


def start(rng, d, kind, rule):
    """An accumulator like the result: of its size or larger, with zeros, or with infinities."""
    if d.dtype.kind == "i":
        bound = max(int(np.abs(d.astype(np.int64)).max()), 1)
        bound = min(bound, (1 << (rule.acc_bits - 1)) - 1)
        return (rng.integers(-bound, bound + 1, d.shape) * (kind != "sparse")).astype(d.dtype)
    with np.errstate(all="ignore"):
        c = np.where(np.isfinite(d), d, 1).astype(np.float64) * rng.choice([1, -1, 0, 2], d.shape)
        if isinstance(rule, Mac):
            c = ns.cast(c, rule.acc_format, overflow="special")
        c = c.astype(d.dtype)
    if kind == "wild":
        c.flat[0] = np.inf
        c.flat[-1] = -np.inf if d.size % 2 else np.nan
    return c


def both(monkeypatch, a, b, c, unit, out):
    """Whether lanes counted each chain, after a comparison with the definition and with D."""
    met = []
    inner = runs.chosen

    def spy(chain):
        work = inner(chain)
        met.append(work.kernel != "scalar")
        return work

    with monkeypatch.context() as patch:
        patch.setattr(runs, "chosen", spy)
        d, found = ns.matmul(a, b, c=c, target=unit, out_format=out, stats=True)
        patch.setattr(runs, "chosen", lambda chain: about(chain.rule).definition(chain))
        plain, want = ns.matmul(a, b, c=c, target=unit, out_format=out, stats=True)
    assert found == want
    fast = ns.matmul(a, b, c=c, target=unit, out_format=out)
    for other in (plain, fast):
        np.testing.assert_array_equal(d.view(f"u{d.itemsize}"), other.view(f"u{d.itemsize}"))
    return met


@pytest.mark.parametrize(("target", "changes", "fmt", "out"), UNITS)
@pytest.mark.parametrize("kind", ["normal", "codes", "sparse", "wild"])
def test_counts_of_the_scalar_kernels(monkeypatch, target, changes, fmt, out, kind):
    unit = ns.get_target(target, **changes)
    names = ("uint8", "int8") if fmt == U8S8 else (fmt, fmt)
    rng = np.random.default_rng(len(target) + len(fmt))
    fast = 0
    for m, k, n in SHAPES:
        a, b = tensor(rng, (m, k), names[0], kind), tensor(rng, (k, n), names[1], kind)
        d = ns.matmul(a, b, target=unit, out_format=out)
        for c in (None, start(rng, d, kind, unit.rules[0][1])):
            fast += sum(w is not None for w in both(monkeypatch, a, b, c, unit, out))
    assert fast or kind in ("codes", "wild")  # wide ranges: infinite products, long exact sums


@pytest.mark.parametrize(
    ("target", "fmt"),
    [("nvidia.hopper.mma", E4), ("ideal.fp32", E4), ("ideal.fp32", "float32"),
     ("ideal.exact", E4), ("x86.vpdpwssds", "int16")],
)  # fmt: skip
def test_more_columns_than_a_tile(monkeypatch, target, fmt):
    rng = np.random.default_rng(6)
    columns = steps.TILE + 5
    a, b = tensor(rng, (2, 19), fmt, "normal"), tensor(rng, (19, columns), fmt, "normal")
    assert all(both(monkeypatch, a, b, None, ns.get_target(target), None))


@pytest.mark.parametrize("target", ["nvidia.volta.mma", "ideal.fp32", "ideal.exact"])
def test_same_values_in_batches(target):
    rng = np.random.default_rng(4)
    f = ns.get_format("float8_e5m2" if target != "nvidia.volta.mma" else "float16")
    a = tensor(rng, (3, 4, 21), f.name, "normal")
    b = tensor(rng, (21, 7), f.name, "normal")
    c = rng.normal(size=(3, 4, 7)).astype(np.float32)
    c[0, 0] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 3e38]
    rule, out = ns.get_target(target).rules[0][1], ns.get_format("float32")
    found = []
    for make in (runs.chosen, lambda chain: about(chain.rule).definition(chain)):
        chain = runs.counted(Chain(rule, a, b, c, out, target))
        found.append((make(chain).run().view(np.uint32), *chain.tally))
    (fast, counts, _), (scalar, want, _) = found
    np.testing.assert_array_equal(fast, scalar)
    np.testing.assert_array_equal(counts.sum((0, 1)), want.sum((0, 1)))


MINUS_ZEROS = [
    ("ideal.mac", {"acc_format": "float16", "order": "tree", "group": 3, "fused": False}, 1 << 15),
    ("ideal.mac", {"acc_format": "float16", "order": "odd_first"}, 0),
    ("x86.vdpbf16ps", {}, 0),
    ("ideal.mac", {"order": "exact", "group": 3}, 1 << 15),
    ("ideal.mac", {"order": "exact", "group": 4}, 0),
]


@pytest.mark.parametrize(("target", "changes", "bits"), MINUS_ZEROS)
def test_the_sign_of_zero_where_products_are_counted(target, changes, bits):
    """-0 + 3 products of -0 is -0; where the unit takes an even k or four, +0 fills it: +0."""
    unit = ns.get_target(target, **changes)
    fmt = "bfloat16" if target.startswith("x86") else E4
    a = ns.QTensor.from_codes(ns.encode(np.full((1, 3), -0.0), fmt), fmt)
    b = ns.QTensor.from_codes(ns.encode(np.ones((3, 5)), fmt), fmt)
    c = np.full((1, 5), -0.0, np.float32)
    chain = Chain(class_for(unit, a.fmt, b.fmt)[1], a, b, c[None], ns.get_format("float32"), target)
    for d in (
        ns.matmul(a, b, c=c, target=unit, stats=True)[0],
        ns.matmul(a, b, c=c, target=unit),
        about(chain.rule).definition(chain).run(),
    ):
        assert (d.view(np.uint32) == bits << 16).all()


def test_opposite_infinities_where_products_are_counted():
    """57344**2 is beyond float16: +Inf in the first block, -Inf in the second, NaN together."""
    x = np.array([57344.0] * 32 + [-57344.0] * 32)
    a = ns.QTensor.from_codes(ns.encode(x[None], E5), E5)
    b = ns.QTensor.from_codes(ns.encode(np.full((64, 5), 57344.0), E5), E5)
    d, found = ns.matmul(a, b, target="nvidia.hopper.mma", out_format="float16", stats=True)
    assert (d.view(np.uint16) == 0x7FFF).all()
    assert found.overflows == 5  # the second block began with an infinity


def test_block_scales_inside_the_unit(monkeypatch):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(3, 128)).astype("f4"), rng.normal(size=(128, 5)).astype("f4")
    a, b = ns.quantize(x, "mxfp8_e4m3"), ns.quantize(y, "mxfp8_e4m3", axis=0)
    unit = ns.get_target("nvidia.blackwell.tcgen05", promote_every=64)
    assert all(both(monkeypatch, a, b, None, unit, None))


def test_overflow_inside_a_chain(monkeypatch):
    """A lane that left the range counts nothing but steps afterwards."""
    values = np.full((2, 64), 2.0**127)
    values[1, :40] = 1.0
    a = ns.QTensor.from_codes(ns.encode(values, BF16), BF16)
    b = tensor(np.random.default_rng(0), (64, 19), BF16, "normal")
    tree = ns.get_target("amd.cdna1.mfma", order="tree")
    for target in ("nvidia.ampere.mma", "ideal.fp32", tree):
        assert all(both(monkeypatch, a, b, None, ns.get_target(target), None))
        assert ns.matmul(a, b, target=target, stats=True)[1].overflows


def test_operands_that_are_not_finite(monkeypatch):
    """Multiply-adds take them a lane at a time; other units leave them to the scalar kernels."""
    rng = np.random.default_rng(2)
    a, b = tensor(rng, (4, 30), HALF, "normal"), tensor(rng, (30, 5), HALF, "normal")
    a.codes[1, 7], a.codes[2, 3], b.codes[11, 2] = 0x7C00, 0x7E00, 0xFC00
    assert all(both(monkeypatch, a, b, None, ns.get_target("ideal.fp32"), None))
    tree = ns.get_target("amd.cdna1.mfma", order="tree")
    assert all(both(monkeypatch, a, b, None, tree, None))
    for target in ("nvidia.ampere.mma", "ideal.exact", "amd.cdna1.mfma", "amd.cdna3.mfma"):
        assert not any(both(monkeypatch, a, b, None, ns.get_target(target), None))


@pytest.mark.parametrize(
    ("target", "fmt"),
    [("nvidia.hopper.wgmma", E4), ("ideal.fp32", E4), ("ideal.exact", E4), ("ideal.int", "int8")],
)
def test_threads_do_not_change_counts(target, fmt):
    rng = np.random.default_rng(8)
    a, b = tensor(rng, (7, 64), fmt, "normal"), tensor(rng, (64, 6), fmt, "normal")
    found = []
    for count in (1, 2):
        with using_threads(count):
            found.append(ns.matmul(a, b, target=target, stats=True)[1])
    assert found[0] == found[1]
