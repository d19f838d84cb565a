"""MacStats: the counting kernels return what the units return, and count by definition."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import oracle_mac as om
import pytest
from every_rule import every_rule, random_codes

import numsim as ns
from numsim.targets import ops, runs, split_k, stats, tensor

pytestmark = pytest.mark.filterwarnings("ignore::numsim.UnvalidatedWarning")
SCALED = [
    ("nvidia.blackwell.tcgen05", "float4_e2m1fn", "float8_e4m3fn", 16),
    ("nvidia.blackwell.tcgen05", "float4_e2m1fn", "float8_e8m0fnu", 32),
    ("nvidia.rtx_blackwell.mma", "float8_e4m3fn", "float8_e8m0fnu", 32),
    ("x86.top4mxbf8ps", "float8_e4m3fn", "float8_e8m0fnu", 32),
]


class Both(stats.Counter):
    """A counter that compares the counting kernels' results with the unit's."""

    def run(self, rule, a, b, c, out, name):
        result = runs.run(rule, a, b, c, out, name)
        counted = super().run(rule, a, b, c, out, name)
        word = f"u{result.itemsize}"
        np.testing.assert_array_equal(result.view(word), counted.view(word))
        return result


@pytest.mark.parametrize(("target", "fa", "fb", "out"), list(every_rule()))
@pytest.mark.parametrize("wild", [False, True])
def test_same_result_for_every_rule(target, fa, fb, out, wild):
    rng = np.random.default_rng(7)
    a, b = (random_codes(f, s, rng, wild=wild) for f, s in ((fa, (5, 70)), (fb, (70, 4))))
    if a is None or b is None:
        pytest.skip("codes narrower than a byte")
    both = Both()
    plain = ns.matmul(a, b, target=target, out_format=out)
    counted = ops.multiply(a, b, target, None, out, both)
    np.testing.assert_array_equal(plain, counted)
    d, found = ns.matmul(a, b, target=target, out_format=out, stats=True)
    np.testing.assert_array_equal(plain.view(f"u{plain.itemsize}"), d.view(f"u{d.itemsize}"))
    assert found == both.stats()
    assert found.products == 5 * 4 * 70
    c = np.asarray(np.where(np.isfinite(plain), plain, 1), plain.dtype)
    ops.multiply(a, b, target, c, out, Both())


@pytest.mark.parametrize(("target", "fmt", "scale", "block"), SCALED)
@pytest.mark.parametrize("changes", [{}, {"promote_every": 64}, {"split_k": 2}])
def test_same_result_with_scales_inside(target, fmt, scale, block, changes):
    rng = np.random.default_rng(3)
    f = ns.get_format(fmt)
    a, b = (
        ns.QTensor.from_codes(
            rng.integers(0, 1 << f.bits, shape) & 0xF7, f, scale_format=scale, block=block,
            axis=axis, scale_codes=rng.integers(100, 124, scales),
        )
        for shape, axis, scales in (
            ((3, 256), 1, (3, 256 // block)), ((256, 2), 0, (256 // block, 2)),
        )
    )  # fmt: skip
    both = Both()
    unit = ns.get_target(target, **changes)
    np.testing.assert_array_equal(
        ns.matmul(a, b, target=unit), ops.multiply(a, b, unit, None, None, both)
    )
    assert both.stats().peak_bits is None
    assert both.stats().exponent_gap > 0


def scaled_operands(seed, m, k, n):
    """MXFP8 operands, and for the oracle: rows, columns, their scale codes."""
    rng = np.random.default_rng(seed)
    a = ns.quantize(rng.normal(size=(m, k)).astype("f4") * 8, "mxfp8_e4m3")
    b = ns.quantize(rng.normal(size=(k, n)).astype("f4") * 8, "mxfp8_e4m3", axis=0)
    f = om.FORMATS["float8_e4m3fn"]
    rows = [[f.read(v) for v in row] for row in a.codes]
    columns = [[f.read(v) for v in column] for column in b.codes.T]
    return a, b, rows, columns, a.scale_codes.tolist(), b.scale_codes.T.tolist()


@pytest.mark.parametrize("splits", [1, 2])
def test_promotion_keeps_block_scales_inside_the_unit(splits):
    """Chains of a promoted or split product see the scales of their own blocks."""
    a, b, rows, columns, sa, sb = scaled_operands(1, 3, 256, 2)
    changes = (
        {"promote_every": 128}
        if splits == 1
        else {"split_k": 2, "split_order": "serial", "split_tile": 64}
    )
    blocks = ((0, 1, 2, 3), (4, 5, 6, 7)) if splits == 1 else ((0, 1, 4, 5), (2, 3, 6, 7))
    d = ns.matmul(a, b, target=ns.get_target("nvidia.blackwell.tcgen05", **changes))
    for i, j in np.ndindex(3, 2):
        parts = [
            om.scaled_k32(
                [v for n in part for v in rows[i][32 * n : 32 * n + 32]],
                [v for n in part for v in columns[j][32 * n : 32 * n + 32]],
                [sa[i][n] for n in part], [sb[j][n] for n in part],
            )
            for part in blocks
        ]  # fmt: skip
        assert int(d[i, j].view(np.uint32)) == om.add(*parts)


@pytest.mark.parametrize(
    ("target", "chain"),
    [("nvidia.ada.mma", om.block(16, 13, keep=13)), ("nvidia.hopper.mma", om.products_then_c)],
)
@pytest.mark.parametrize("k", [32, 20, 96])
def test_scales_of_blocks_outside_the_unit_are_applied_once(target, chain, k):
    """Also where one block is all of K: a chain from +0, times fp32(scale_a * scale_b)."""
    a, b, rows, columns, sa, sb = scaled_operands(2, 2, k, 2)
    d, scale = ns.matmul(a, b, target=target), om.FORMATS["float8_e8m0fnu"]
    assert {scale.read(v)[3] for v in (*sa[0], *sb[0])} != {0}
    for i, j in np.ndindex(2, 2):
        total = 0
        for n, first in enumerate(range(0, k, 32)):
            part = chain(rows[i][first : first + 32], columns[j][first : first + 32])
            e = scale.read(sa[i][n])[3] + scale.read(sb[j][n])[3]
            v = om.F32.read(part)
            total = om.add(total, om.round_bits(om.F32, om.signed(v), v[2] + e))
        assert int(d[i, j].view(np.uint32)) == total


# ------------------------------------------------------------------- counts by definition
def ints(values):
    return ns.QTensor.from_codes(values, "int8")


def naive_integer(a, b, *, bits, overflow, group=1, c=0):
    """(result, events, swamped, lowest, highest) in plain integers."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    acc = whole = c
    seen = [whole]
    events = swamped = 0
    for k in range(0, len(a), group):
        step = sum(x * y for x, y in zip(a[k : k + group], b[k : k + group], strict=True))
        before, acc = acc, acc + step
        whole = acc if overflow == "saturate" else whole + step
        seen.append(whole)
        if not low <= acc <= high:
            events += 1
            acc = (
                min(max(acc, low), high)
                if overflow == "saturate"
                else (acc - low) % (1 << bits) + low
            )
        swamped += step != 0 and acc == before
    return acc, events, swamped, min(seen), max(seen)


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
@pytest.mark.parametrize(("bits", "group"), [(8, 1), (15, 1), (16, 4), (24, 3)])
def test_integer_counts(overflow, bits, group):
    rng = np.random.default_rng(bits)
    a, b = rng.integers(-128, 128, (4, 50)), rng.integers(-128, 128, (50, 3))
    unit = ns.get_target("ideal.int", acc_bits=bits, overflow=overflow, group=group)
    d, found = ns.matmul(ints(a), ints(b), target=unit, stats=True)
    want = [
        [
            naive_integer(r.tolist(), col.tolist(), bits=bits, overflow=overflow, group=group)
            for col in b.T
        ]
        for r in a
    ]
    assert d.tolist() == [[w[0] for w in row] for row in want]
    flat = [w for row in want for w in row]
    assert found.wraps + found.saturations == sum(w[1] for w in flat)
    assert (found.wraps > 0) != (overflow == "saturate") or found.wraps == 0
    assert found.swamped == sum(w[2] for w in flat)
    low, high = min(0, *(w[3] for w in flat)), max(0, *(w[4] for w in flat))
    assert found.largest == max(-low, high)
    assert found.peak_bits == max((~low).bit_length(), high.bit_length()) + 1


def test_pair_saturation_counts():
    a = ns.QTensor.from_codes([[255, 255, 1, 1]], "uint8")
    b = ints([[127], [127], [1], [1]])
    d, found = ns.matmul(a, b, target="x86.vpmaddubsw", stats=True)
    assert d[0, 0] == 32767 + 2
    assert (found.saturations, found.wraps) == (1, 0)


def test_outer_accumulator_counts():
    a, b = ints([[100] * 8]), ints([[100]] * 8)
    unit = ns.get_target("ideal.int", promote_every=4, acc_bits=32, outer_bits=17)
    d, found = ns.matmul(a, b, target=unit, stats=True)
    assert d[0, 0] == 80000 - 2**17
    assert (found.wraps, found.steps, found.peak_bits) == (1, 9, 17)


def test_multiply_add_counts():
    e5m2 = "float_e5m2"
    a = ns.QTensor.from_codes(
        ns.encode([[8.0, 0.5, 1.0, 57344.0, 57344.0]], "float8_e5m2"), "float8_e5m2"
    )
    b = ns.QTensor.from_codes(ns.encode(np.ones((5, 1)), "float8_e5m2"), "float8_e5m2")
    d, found = ns.matmul(a, b, target=ns.get_target("ideal.mac", acc_format=e5m2), stats=True)
    assert d[0, 0] == np.inf
    # 8 + 0.5 = 8 and 8 + 1 = 8 (tie to even) are swamped, 57344 + 57344 overflows
    assert (found.swamped, found.overflows, found.saturations) == (2, 1, 0)
    assert found.exponent_gap == 15 - 3
    assert found.largest == 57344
    down = ns.get_target("ideal.mac", acc_format=e5m2, rounding="rtz")
    d, found = ns.matmul(a, b, target=down, stats=True)
    assert d[0, 0] == 57344
    assert (found.saturations, found.overflows) == (1, 0)


def naive_fused(a, b, rule):
    """Swamped and cut products, largest gap of one chain of a joining unit, in fractions."""
    acc, swamped, cut, gap = Fraction(0), 0, 0, 0
    for k in range(0, len(a), rule.group):
        pairs = [
            (x, y)
            for x, y in zip(a[k : k + rule.group], b[k : k + rule.group], strict=True)
            if x * y
        ]
        exponents = [math.frexp(x)[1] - 1 + math.frexp(y)[1] - 1 for x, y in pairs]
        held = math.frexp(float(acc))[1] - 1 if acc else -(10**6)
        top = max([*exponents, held])
        gap = max([gap, *(top - e for e in exponents), *([top - held] if acc else [])])
        quantum = Fraction(2) ** (top - rule.align_bits)
        kept = [math.trunc(Fraction(x) * Fraction(y) / quantum) for x, y in pairs]
        swamped += kept.count(0)
        cut += sum(
            n * quantum != Fraction(x) * Fraction(y) for n, (x, y) in zip(kept, pairs, strict=True)
        )
        total = sum(kept) + math.trunc(acc / quantum)
        after = total * quantum
        if after:
            place = Fraction(2) ** (math.frexp(float(after))[1] - 1 - rule.keep_bits)
            after = math.trunc(after / place) * place
        swamped += sum(kept) != 0 and after == acc
        acc = after
    return acc, swamped, cut, gap


def test_fused_counts():
    rng = np.random.default_rng(5)
    x = ns.cast(rng.normal(size=(3, 96)) * np.exp(2 * rng.normal(size=(3, 96))), "float16")
    y = ns.cast(rng.normal(size=(96, 2)), "float16")
    x[np.abs(x) < 2**-14] = 0
    a, b = (ns.QTensor.from_codes(ns.encode(v, "float16"), "float16") for v in (x, y))
    unit = ns.get_target("nvidia.ampere.mma", align_bits=9, keep_bits=9)
    d, found = ns.matmul(a, b, target=unit, stats=True)
    want = [naive_fused(r.tolist(), col.tolist(), unit.rule("fp16")) for r in x for col in y.T]
    assert d.ravel().tolist() == [float(w[0]) for w in want]
    assert found.swamped == sum(w[1] for w in want)
    assert found.swamped > 0
    assert found.cut == sum(w[2] for w in want)
    assert found.exponent_gap == max(w[3] for w in want)


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "bfloat16", "int16", "int32", "q3.4"])
def test_exact_peak(fmt):
    rng = np.random.default_rng(11)
    a, b = random_codes(fmt, (3, 40), rng, wild=False), random_codes(fmt, (40, 2), rng, wild=False)
    _, found = ns.matmul(a, b, target="ideal.exact", stats=True)
    unit = tensor.quantum(a.fmt) * tensor.quantum(b.fmt)
    widths = [1]
    for row in a.values():
        for column in b.values().T:
            total = Fraction(0)
            for p, q in zip(row, column, strict=True):
                total += Fraction(float(p)) * Fraction(float(q))
                n = total / unit
                assert n.denominator == 1
                widths.append((n if n >= 0 else ~int(n)).__int__().bit_length() + 1)
    assert found.peak_bits == max(widths)


def test_non_finite_steps_count_nothing():
    a = ns.QTensor.from_codes([[np.float16(np.inf).view(np.uint16), 0x3C00]], "float16")
    b = ns.QTensor.from_codes([[0x3C00], [0x3C00]], "float16")
    for target in ("ideal.mac", "ideal.exact", "nvidia.hopper.wgmma", "amd.cdna3.mfma"):
        d, found = ns.matmul(a, b, target=target, stats=True)
        assert np.isinf(d).all()
        assert (found.overflows, found.swamped, found.cut) == (0, 0, 0)


def test_overflow_of_every_kind():
    big = ns.QTensor.from_codes(ns.encode([[3e38, 3e38]], "bfloat16"), "bfloat16")
    two = ns.QTensor.from_codes(ns.encode([[2.0], [2.0]], "bfloat16"), "bfloat16")
    for target in (
        "ideal.mac",
        "ideal.exact",
        "nvidia.hopper.wgmma",
        "amd.cdna3.mfma",
        "amd.cdna2.mfma",
    ):
        d, found = ns.matmul(big, two, target=target, stats=True)
        assert np.isinf(d).all()
        assert found.overflows >= 1


def test_outer_float_additions_count():
    a = ns.QTensor.from_codes(ns.encode([[2.0**12, 1.0]], "float16"), "float16")
    b = ns.QTensor.from_codes(ns.encode([[2.0**13], [0.5]], "float16"), "float16")
    unit = ns.get_target("ideal.fp32", promote_every=1)
    d, found = ns.matmul(a, b, target=unit, stats=True)
    assert d[0, 0] == 2.0**25
    assert (found.swamped, found.steps) == (1, 3)


def test_threads_do_not_change_counts():
    import numba

    rng = np.random.default_rng(0)
    a, b = (
        random_codes("float16", (7, 64), rng, wild=True),
        random_codes("float16", (64, 3), rng, wild=True),
    )
    found = []
    for count in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        before = numba.get_num_threads()
        numba.set_num_threads(count)
        found.append(ns.matmul(a, b, target="nvidia.ada.mma", stats=True)[1])
        numba.set_num_threads(before)
    assert found[0] == found[1]


def test_batches_and_empty():
    rng = np.random.default_rng(0)
    a, b = (
        random_codes("int8", (2, 3, 8), rng, wild=False),
        random_codes("int8", (8, 2), rng, wild=False),
    )
    assert ns.matmul(a, b, target="ideal.int", stats=True)[1].products == 2 * 3 * 8 * 2
    empty = ns.QTensor.from_codes(np.zeros((0, 8), np.int8), "int8")
    d, found = ns.matmul(empty, b, target="ideal.int", stats=True)
    assert d.shape == (0, 2)
    assert found.products == 0
    assert found.peak_bits == 1


def test_every_k_is_in_one_chain():
    unit = ns.get_target(
        "ideal.fp32", promote_every=48, split_k=3, split_order="serial", split_tile=32
    )
    ks = np.concatenate([k for part in split_k.chain_positions(300, unit) for k in part])
    assert sorted(ks.tolist()) == list(range(300))


def test_groups_of_wide_integers():
    """`ideal.exact` rounds after every group of k, also where an operand is two float32 numbers."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(-(2**31), 2**31, (2, 12))
    a, b = ns.QTensor.from_codes(x[None], "int32"), ns.QTensor.from_codes(y[:, None], "int32")
    want = Fraction(0)
    for k in range(0, 12, 4):
        want += sum(int(p) * int(q) for p, q in zip(x[k : k + 4], y[k : k + 4], strict=True))
        bits = max(abs(int(want)).bit_length() - 24, 0)
        want = Fraction(round(want / 2**bits) * 2**bits)
    unit = ns.get_target("ideal.exact", group=4)
    d, found = ns.matmul(a, b, target=unit, stats=True)
    assert d[0, 0] == want
    assert found.steps == 3
