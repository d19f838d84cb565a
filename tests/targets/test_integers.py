"""Integer accumulators at their edges: 64 bits, two levels, and where an overflow is named."""

from __future__ import annotations

import numpy as np
import oracle_mac as om
import pytest

import numsim as ns

TOP = (1 << 63) - 1


def tensor(values, fmt):
    return ns.QTensor.from_codes(values, fmt)


def run(a, b, fmt="int8", c=None, stats=False, **changes):
    c = None if c is None else np.array([[c]])
    x, y = tensor([a], fmt), tensor([[v] for v in b], fmt)
    return ns.matmul(x, y, target=ns.get_target("ideal.int", **changes), c=c, stats=stats)


@pytest.mark.parametrize(("c", "x", "limit"), [(TOP, 100, TOP), (-TOP - 1, -100, -TOP - 1)])
def test_sixty_four_bits_at_the_edge(c, x, limit):
    for overflow, want in (("saturate", limit), ("wrap", om.wrap(c + 100 * x, 64))):
        d, stats = run([x], [100], c=c, stats=True, acc_bits=64, overflow=overflow)
        assert int(d[0, 0]) == want
        assert stats.wraps + stats.saturations == 1
        assert stats.peak_bits == 65
    with pytest.raises(ns.NumsimError, match="64-bit accumulator overflows at row 0, column 0"):
        run([x], [100], c=c, acc_bits=64, overflow="raise")


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_int32_products_in_sixty_four_bits(overflow):
    rng = np.random.default_rng(0)
    a, b = (rng.choice([-(2**31), 2**31 - 1, 2**31 - 2, 1, -3], 60).tolist() for _ in "ab")
    for k in (1, 2, 3, 60):
        d = run(a[:k], b[:k], "int32", acc_bits=64, overflow=overflow)
        assert int(d[0, 0]) == om.int_dot(a[:k], b[:k], 0, bits=64, overflow=overflow)
    assert int(run([2**30], [2**30], "int32", acc_bits=64, overflow="raise")[0, 0]) == 2**60


def test_a_group_beyond_sixty_four_bits_is_refused():
    with pytest.raises(ns.UnsupportedError, match="2 products of int32 and int32"):
        run([1, 1], [1, 1], "int32", acc_bits=64, overflow="saturate", group=2)
    assert int(run([1, 1], [1, 1], "int32", acc_bits=64, group=2)[0, 0]) == 2


def test_outer_accumulator_narrower_than_one_part():
    """The first part is limited like every other."""
    a, b = [127] * 8, [127] * 8  # 129,032
    two = {"acc_bits": 32, "outer_bits": 16, "promote_every": 8}
    d, stats = run(a, b, stats=True, overflow="saturate", **two)
    assert (int(d[0, 0]), stats.saturations) == (32767, 1)
    d, stats = run(a, b, stats=True, **two)
    assert (int(d[0, 0]), stats.wraps) == (om.wrap(129032, 16), 1)
    for stats in (False, True):
        with pytest.raises(ns.NumsimError, match=r"16-bit outer .* row 0, column 0, k = 7"):
            run(a, b, stats=stats, overflow="raise", **two)
    down = [-127] * 8
    d = run(a + down, b + b, overflow="saturate", **two)
    assert int(d[0, 0]) == om.clamp(32767 - 129032, 16)


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
@pytest.mark.parametrize("outer", [16, 24, 64])
def test_two_levels_equal_the_oracle(overflow, outer):
    rng = np.random.default_rng(outer)
    limit = om.wrap if overflow == "wrap" else om.clamp
    a, b = (rng.integers(-128, 128, 50).tolist() for _ in "ab")
    unit = {"acc_bits": 20, "outer_bits": outer, "promote_every": 7, "overflow": overflow}
    total, c = 0, (1 << (outer - 1)) - 5
    for k in range(0, 50, 7):
        part = om.int_dot(a[k : k + 7], b[k : k + 7], bits=20, overflow=overflow)
        total = limit(total + part, outer)
    assert int(run(a, b, c=c, **unit)[0, 0]) == limit(c + total, outer)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("split", [{}, {"split_k": 2, "split_tile": 1}])
def test_parts_that_leave_sixty_four_bits(sign, split):
    """Two parts of 2**62 leave int64, which no sum that has wrapped shows."""
    a, b = [-(2**31)] * 2, [-(2**31) * sign if sign > 0 else 2**31 - 1] * 2
    part = a[0] * b[0]
    whole = 2 * part if sign > 0 else 3 * part
    if sign < 0:
        a, b = a + a[:1], b + b[:1]
        split = split and {"split_k": 3, "split_tile": 1}
    unit = {"acc_bits": 64, "outer_bits": 64} | (split or {"promote_every": 1})
    limit = TOP if sign > 0 else -TOP - 1
    assert not -TOP - 1 <= whole <= TOP
    for overflow, want in (("saturate", limit), ("wrap", om.wrap(whole, 64))):
        assert int(run(a, b, "int32", overflow=overflow, **unit)[0, 0]) == want
        d, stats = run(a, b, "int32", overflow=overflow, stats=True, **unit)
        assert int(d[0, 0]) == want
        assert (stats.saturations, stats.wraps) == ((1, 0) if overflow == "saturate" else (0, 1))
    with pytest.raises(ns.NumsimError, match=rf"64-bit outer .* k = {len(a) - 1}\b"):
        run(a, b, "int32", overflow="raise", **unit)


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_c_and_parts_at_the_ends_of_sixty_four_bits(overflow):
    limit = om.wrap if overflow == "wrap" else om.clamp
    unit = {"acc_bits": 64, "outer_bits": 64, "promote_every": 2, "overflow": overflow}
    rng = np.random.default_rng(4)
    for _ in range(20):
        a, b = (rng.choice([-(2**31), 2**31 - 1, 1], 6).tolist() for _ in "ab")
        c, total = int(rng.choice([TOP, -TOP - 1, 0])), 0
        for k in range(0, 6, 2):
            total = limit(
                total + om.int_dot(a[k : k + 2], b[k : k + 2], bits=64, overflow=overflow), 64
            )
        assert int(run(a, b, "int32", c=c, **unit)[0, 0]) == limit(c + total, 64)


@pytest.mark.parametrize("changes", [{}, {"acc_bits": 40}, {"overflow": "raise"}, {"group": 6}])
def test_the_last_product_of_an_odd_k_is_a_pair(changes):
    """On the vector kernel, and on the scalar one of accumulators that it does not have."""
    a, b = [255, 255, 3], [127, 127, -5]
    unit = ns.get_target("x86.vpmaddubsw", **changes)
    d = ns.matmul(tensor([a], "uint8"), tensor([[v] for v in b], "int8"), target=unit)
    assert int(d[0, 0]) == om.vpmaddubsw(a, b) == 32767 - 15


def test_c_of_a_two_level_sum_is_as_wide_as_the_outer_accumulator():
    unit = {"acc_bits": 16, "outer_bits": 32, "promote_every": 4}
    assert run([1] * 8, [1] * 8, c=100_000, **unit) == 100_008
    with pytest.raises(ns.NumsimError, match="-32768 to 32767"):
        run([1] * 8, [1] * 8, c=100_000, acc_bits=16)


def test_overflow_names_k_of_the_whole_product():
    a, b = [0] * 100 + [127] * 28, [127] * 128
    k = om.int_first_overflow(a, b, bits=16)
    assert k == 102
    for every in (None, 50, 64):
        with pytest.raises(ns.NumsimError, match=rf"k = {k}\b"):
            run(a, b, acc_bits=16, overflow="raise", promote_every=every)


def test_overflow_of_the_outer_accumulator_names_row_column_and_k():
    a = np.zeros((3, 8), np.int8)
    b = np.full((8, 2), 127, np.int8)
    a[2] = 127
    b[:, 0] = 0
    unit = ns.get_target("ideal.int", outer_bits=16, promote_every=1, overflow="raise")
    with pytest.raises(ns.NumsimError, match=r"16-bit outer .* row 2, column 1, k = 2"):
        ns.matmul(tensor(a, "int8"), tensor(b, "int8"), target=unit)


def test_overflow_in_a_scaled_block_names_k_of_the_whole_product():
    q = ns.Quant("int8", "per_block", block=16)
    x = np.zeros((1, 48))
    x[0, 20:] = 1
    a, b = ns.quantize(x, q), ns.quantize(np.ones((48, 1)), q, axis=0)
    with pytest.raises(ns.NumsimError, match="k = 22"):
        ns.matmul(a, b, target=ns.get_target("ideal.int", acc_bits=16, overflow="raise"))


def test_sums_beyond_fifty_three_bits_keep_their_last():
    # (2**27 - 1)**2 is odd, and above 2**53
    assert int(run([2**27 - 1], [2**27 - 1], "int32", acc_bits=64)[0, 0]) == 2**54 - 2**28 + 1


@pytest.mark.parametrize("acc_bits", [16, 32])
def test_a_sum_one_above_the_largest_saturates(acc_bits):
    # each product is 2**14
    k = 1 << (acc_bits - 15)
    d = run([-128] * k, [-128] * k, acc_bits=acc_bits, overflow="saturate", group=4)
    assert int(d[0, 0]) == (1 << (acc_bits - 1)) - 1


def test_a_pair_one_above_the_largest_saturates():
    for overflow in ("wrap", "saturate"):
        changes = {"group": 2, "pair_bits": 16, "overflow": overflow}
        assert int(run([-128] * 2, [-128] * 2, **changes)[0, 0]) == 32767
        assert int(run([-128, -127], [-128, -128], **changes)[0, 0]) == 32640
