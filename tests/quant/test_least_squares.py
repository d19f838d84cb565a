"""The scale of the least squared error is the best of all real scales, by two independent ways."""

import numba
import numpy as np
import pytest

import numsim as ns
from numsim.formats import get_format
from numsim.kernels.convert.block_search import levels_of, quantised, split
from numsim.kernels.convert.intervals import UNDECIDED, least_squares_near
from numsim.kernels.convert.least_squares import least_squares
from numsim.kernels.ir import simd
from numsim.kernels.jit import using_threads
from numsim.quant import Quant, clip
from numsim.quant.clip import least_squares_scale, levels

FORMATS = ("int8", "int4", "int2", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn",
           "float4_e3m0fn", "float6_e3m2fn", "hifloat8", "uint4", "float8_ue4m3")  # fmt: skip


def error(row, scale, values):
    """Sum of squared distances to the nearest value under a scale."""
    rest = np.abs(row[:, None] - scale * values[None])
    return float((rest.min(axis=1) ** 2).sum())


def least_error(row, values):
    """Try the levels on either side of every scale at which one of them changes, one by one."""
    places = set()
    for x in row[row != 0]:
        same = np.unique(np.abs(values[values * x >= 0]))
        places.update(np.abs(x) / ((same[1:] + same[:-1]) / 2))
    places = np.sort(np.array(list(places)))
    between = np.concatenate([places[:1] / 2, (places[1:] + places[:-1]) / 2, places[-1:] * 2])
    q = values[np.abs(row[:, None, None] / between[None, :, None] - values).argmin(axis=2)]
    both, square = (row[:, None] * q).sum(axis=0), (q * q).sum(axis=0)
    gained = np.where(square > 0, both * both / np.where(square > 0, square, 1), 0.0)
    return float((row * row).sum() - gained.max())


def rows_of(fmt, size, count=6, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.concatenate([
        rng.normal(size=(count, size)), rng.standard_t(2, size=(count, size)),
        rng.uniform(-1, 1, (count, size)), rng.integers(-6, 7, (count, size)) * 0.37,
    ]).astype(np.float32)  # fmt: skip
    return np.abs(rows) if get_format(fmt).min >= 0 else rows


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 5, 16, 33])
@pytest.mark.parametrize("fmt", FORMATS)
def test_no_levels_at_all_fit_better(fmt, size):
    values = get_format(fmt).values()
    values = values[np.isfinite(values)].astype(np.float64)
    rows = rows_of(fmt, size, 3).astype(np.float64)
    scales = least_squares_scale(rows, get_format(fmt), (1, size)).reshape(-1)
    for row, scale in zip(rows, scales, strict=True):
        if row.any():
            whole = float((row * row).sum())
            found, least = error(row, scale, values), least_error(row, values)
            assert found <= least * (1 + 1e-9) + 1e-14 * whole


@pytest.mark.parametrize("fmt", ["int8", "int4", "float8_e4m3fn", "float4_e2m1fn", "uint4"])
def test_sorted_rows_and_others_find_the_same(fmt, monkeypatch):
    rows = rows_of(fmt, 700, 2)
    want = least_squares_scale(rows, get_format(fmt), (1, 700)).astype(np.float32)
    monkeypatch.setattr(clip, "_LONG", 1)
    got = least_squares_scale(rows, get_format(fmt), (1, 700)).astype(np.float32)
    assert (got != want).sum() <= len(rows) // 4  # multiples of 0.37 have many scales of no error
    values = get_format(fmt).values().astype(np.float64)
    values = values[np.isfinite(values)]
    for row, one, other in zip(rows.astype(np.float64), got, want, strict=True):
        if one != other:
            whole = float((row * row).sum())
            assert max(error(row, one, values), error(row, other, values)) <= 1e-13 * whole


def test_a_scale_of_no_error_is_found_and_the_first_is_kept():
    x = np.float32([1, -3, 7, 2]) * np.float32(0.25)
    assert ns.quantize(x, Quant("int4", scale_rule="mse")).scale == np.float32(0.25)
    assert least_squares_scale(np.zeros((2, 8)), get_format("int4"), (1, 8)).tolist() == [[0], [0]]


@numba.njit(error_model="numpy")
def both(row, f, listed, m, cap, one, other):
    split(row, f, m, cap)
    quantised(m, cap, 1.0, f, one)
    quantised(m, cap, 1.0, listed, other)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_grid_rounds_as_the_list_of_levels(fmt):
    values = get_format(fmt).values()
    f = levels_of(values[np.isfinite(values)].astype(np.float64))
    if fmt in ("int8", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "float6_e3m2fn"):
        assert f.grid.known
    row = np.random.default_rng(1).normal(size=4000) * float(f.positive[-1]) / 2
    m, cap, one, other = np.empty((4, row.size))
    both(row, f, f._replace(grid=f.grid._replace(known=False)), m, cap, one, other)
    np.testing.assert_array_equal(one, other)


def test_threads_change_no_scale():
    x = rows_of("int8", 32, 300)
    quant = Quant("int8", block=32, scale_rule="mse")
    want = ns.quantize(x, quant).scale
    with using_threads(2) as possible:
        if possible:
            np.testing.assert_array_equal(ns.quantize(x, quant).scale, want)


@pytest.mark.parametrize("scale_format", ["bfloat16", "float8_e8m0fnu", "float8_e4m3fn"])
def test_every_candidate_was_tried(scale_format):
    """The largest of the best representable scales, against trying each one."""
    x = rows_of("int4", 16, 3)[:8].astype(np.float64)
    quant = Quant("int4", block=16, scale_format=scale_format, scale_rule="mse", tensor_scale=None)
    q = ns.quantize(x.astype(np.float32), quant)
    f = get_format(scale_format)
    codes = np.arange(1, f.max_code + 1, dtype=f.code_dtype)
    candidates = ns.decode(codes, f).astype(np.float64)
    candidates = candidates[np.isfinite(candidates) & (candidates > 1e-4) & (candidates < 100)]
    values = np.arange(-8.0, 8.0)
    for row, scale in zip(x, q.scale.reshape(-1), strict=True):
        if row.any():
            errors = np.array([error(row, s, values) for s in candidates])
            best = candidates[np.flatnonzero(errors <= errors.min() * (1 + 1e-13))]
            assert scale in best.astype(np.float32)


def special_rows(size):
    """Rows at the ends of float32, of equal values, of few values, of ties and of zeros."""
    rng = np.random.default_rng(size)
    x = rng.normal(size=(14, size)).astype(np.float32)
    x[0] = 0
    x[1] = -0.0
    x[2] = 1.5
    x[3] = np.where(rng.random(size) < 0.5, -3, 3)
    x[4] *= np.float32(2.0**-140)  # subnormal numbers
    x[5] = np.float32(2.0**-149) * rng.integers(-9, 10, size)
    x[6, 0] = np.finfo(np.float32).max
    x[7] = np.finfo(np.float32).max * rng.uniform(-1, 1, size)
    x[8] = rng.integers(-6, 7, size) * 0.37
    x[9] = np.where(rng.random(size) < 0.8, 0, x[9])
    x[10] = -np.abs(x[10])
    x[11] = np.float32(2.0) ** rng.integers(-20, 20, size)
    x[12] = x[12, 0] * np.sign(x[12]) * (1 + np.arange(size) * np.float32(2.0**-23))
    x[13] = rng.integers(-254, 255, size) / 2  # ties of int8 under the first scale
    return x


GRIDS = ("int8", "int4", "int2", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn",
         "float6_e3m2fn", "float6_e2m3fn", "float8_e4m3fnuz")  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 5, 16, 32, 33, 300, 1100])
@pytest.mark.parametrize("fmt", GRIDS)
def test_float32_rules_out_no_interval_of_the_best_scale(fmt, size):
    """What it decides has the bits of the way that looks at every interval in float64."""
    rows = np.concatenate([special_rows(size), rows_of(fmt, size, 6, seed=size)])
    f = levels(get_format(fmt))
    got, want = np.empty(len(rows)), np.empty(len(rows))
    least_squares_near(rows, f, got, 0, len(rows))
    least_squares(rows.astype(np.float64), f, True, want, 0, len(rows))
    decided = got != UNDECIDED
    np.testing.assert_array_equal(got[decided], want[decided])
    assert size < 16 or decided[14:32].mean() > 0.7  # of plain rows; halved levels may tie
    wide = np.empty(len(rows))
    least_squares_near(rows.astype(np.float64), f, wide, 0, len(rows))
    np.testing.assert_array_equal(wide, got)


@pytest.mark.parametrize("path", simd.PATHS)
def test_paths_and_threads_change_no_scale(path):
    x = np.concatenate([special_rows(32)[:6], rows_of("int8", 32, 60, seed=7)])
    for fmt in ("int8", "float8_e4m3fn", "float4_e2m1fn"):
        quant = Quant(fmt, block=16, scale_rule="mse")
        want = ns.quantize(x, quant)
        with simd.force(path), using_threads(2) as possible:
            got = ns.quantize(np.tile(x, (200, 1)), quant) if possible else want
        np.testing.assert_array_equal(got.scale[: len(x)], want.scale)
        np.testing.assert_array_equal(got.codes[-len(x) :], want.codes)


def test_two_scales_that_fit_equally_well_are_left_to_the_search_one_by_one():
    x = np.float32([[1, 2, 3, 4, 5, 6, 7, 6, 5, 4, 3, 2, 1, 2, 3, 4]]) * np.float32(0.37)
    found = np.empty(1)
    least_squares_near(x, levels(get_format("int8")), found, 0, 1)
    assert found[0] == UNDECIDED
    scale = ns.quantize(x, Quant("int8", block=16, scale_rule="mse")).scale
    values = np.arange(-128.0, 128.0)
    assert error(x[0].astype(np.float64), float(scale[0, 0]), values) < 1e-10


def test_trials_that_round_too_finely_rule_out_no_better_scale():
    """Under octaves alone tiny values err less than they do: 4 % of the least error came of it."""
    row = np.full((1, 16383), 0.8 * 2.0**-9, np.float32)
    row[0, :5] = 448, 16.50729, 13.464022, 9.507874, 10.266557
    want = np.empty(1)
    least_squares(row.astype(np.float64), levels(get_format("float8_e4m3fn")), True, want, 0, 1)
    scale = ns.quantize(row, Quant("float8_e4m3fn", "per_token", scale_rule="mse")).scale
    assert scale.reshape(-1) == want.astype(np.float32)
    assert 1.27 < want[0] < 1.28


def test_parts_of_an_interval_of_many_changes_do_not_become_that_interval_again():
    row = np.random.default_rng(0).standard_normal((1, 16383))
    row[0, 0] = 53
    got, want = np.empty(1), np.empty(1)
    f = levels(get_format("float4_e1m2fn"))
    least_squares_near(row, f, got, 0, 1)
    least_squares(row, f, True, want, 0, 1)
    assert got[0] in (UNDECIDED, want[0])
