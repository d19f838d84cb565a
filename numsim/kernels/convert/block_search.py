"""How a format rounds magnitudes, and how well a scale fits: errors of rows under given scales.

A format is its levels: magnitudes in rising order, those of positive and of negative numbers apart,
with the steps between them: a quotient from ``steps[k - 1]`` on has level k at least. Rounding is
to nearest; a tie costs the same on either side. Levels of integers and floats are a grid, of equal
steps up to a bound and of as many steps an octave beyond it: two float64 additions round to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numsim.kernels.instructions import wide_vectors
from numsim.kernels.ir.trials import squares_of_row
from numsim.kernels.jit import expanded, inline, kernel

Array = Any
LANES = 32  # scales that are tried together
_SIDE_BY_SIDE = 8  # scales from which they fill vectors
_FEW = 8  # steps are compared one by one; more are searched


class Grid(NamedTuple):
    """The grid of a format: numbers alone, for an array in an argument costs as much as a block."""

    known: bool  # or there is only a list
    shifter: float  # 1.5 * 2**52 equal steps: adding it leaves whole ones
    octaves_from: float  # from here on steps grow by octaves
    splitter: float  # 2**k + 1: Veltkamp's constant leaves 53 - k bits
    fine: float  # steps an octave at most


class Levels(NamedTuple):
    """Magnitudes of a format, [m + 1] float64 per sign, the steps between them, [m], its grid."""

    positive: Array
    positive_steps: Array
    negative: Array
    negative_steps: Array
    grid: Grid


def levels_of(values: Array) -> Levels:
    """Return the levels of a format's finite values.

    >>> found = levels_of(np.array([0.0, 1.0, -2.0, -1.0]))
    >>> found.negative_steps, found.grid.known
    (array([0.5, 1.5]), True)
    """
    sides: list[Any] = []
    for side in (values[values >= 0], -values[values <= 0]):
        levels = np.unique(np.abs(side))
        levels = levels if levels.size else np.zeros(1)
        sides += [levels, (levels[1:] + levels[:-1]) / 2]
    one, steps, other, other_steps = sides
    return Levels(one, steps, other, other_steps, _grid_of(one, other))


def _grid_of(one: Array, other: Array) -> Grid:
    """Return the grid on which both signs lie, if there is one."""
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    gaps = np.diff(longer)
    none = Grid(False, 0.0, 0.0, 0.0, float(max(len(gaps), 1)))
    if not gaps.size or longer[0] != 0 or not np.array_equal(longer[: len(shorter)], shorter):
        return none
    least, uneven = float(gaps[0]), np.flatnonzero(gaps != gaps[0])
    shifter = 1.5 * 2.0**52 * least
    if not uneven.size:
        return Grid(True, shifter, np.inf, 1.0, 2.0**53)
    bound = longer[uneven[0]]
    fraction, exponent = np.frexp(bound / least)
    kept = int(exponent) - 1  # bits of a number there
    wanted = np.where(longer < bound, least, np.ldexp(1.0, np.frexp(longer)[1] - kept))[:-1]
    if fraction != 0.5 or not 2 <= kept <= 24 or not np.array_equal(gaps, wanted):
        return none
    return Grid(True, shifter, float(bound), 2.0 ** (53 - kept) + 1, 2.0**kept)


@inline
def on_grid(v: Any, g: Any) -> Any:
    """Round a magnitude to the grid of a format."""
    wide = v * g.splitter
    by_octave, even = wide - (wide - v), (v + g.shifter) - g.shifter
    return even if v < g.octaves_from else by_octave


@inline
def level(quotient: Any, levels: Any, steps: Any) -> Any:
    """Return the level of a magnitude from the list of them."""
    if steps.size <= _FEW:
        found = levels[0]
        for k in range(steps.size):
            found = levels[k + 1] if quotient >= steps[k] else found
        return found
    return levels[np.searchsorted(steps, quotient, side="right")]


@inline
def split(row: Any, f: Any, m: Any, cap: Any) -> Any:
    """Fill magnitudes and the largest level of each one's sign, negated for negative numbers."""
    top, bottom = f.positive[-1], -f.negative[-1]
    for i in range(row.size):
        m[i] = abs(row[i])
        cap[i] = top if row[i] >= 0 else bottom


@expanded
def quantised(m: Any, cap: Any, scale: Any, f: Any, out: Any) -> None:
    """Fill the levels of magnitudes under a scale."""
    if f.grid.known:
        _quantised_on_grid(m, cap, 1.0 / scale, f.grid, out)
    else:
        _quantised_by_list(m, cap, 1.0 / scale, f, out)


@inline
def _quantised_on_grid(m: Any, cap: Any, by: Any, g: Any, out: Any) -> None:
    wide_vectors()
    for i in range(m.size):
        out[i] = on_grid(min(m[i] * by, abs(cap[i])), g)


@inline
def _quantised_by_list(m: Any, cap: Any, by: Any, f: Any, out: Any) -> None:
    for i in range(m.size):
        if cap[i] > 0:
            out[i] = level(m[i] * by, f.positive, f.positive_steps)
        else:
            out[i] = level(m[i] * by, f.negative, f.negative_steps)


@inline
def _errors_on_grid(m: Any, cap: Any, inverse: Any, scales: Any, g: Any, out: Any) -> None:
    """Sum squared errors under many scales."""
    wide_vectors()
    out[:] = 0.0
    inverse, scales = inverse[: out.size], scales[: out.size]
    for i in range(m.size):
        x, most = m[i], abs(cap[i])
        for j in range(out.size):
            rest = x - scales[j] * on_grid(min(x * inverse[j], most), g)
            out[j] += rest * rest


@inline
def _errors_by_list(m: Any, cap: Any, inverse: Any, scales: Any, f: Any, out: Any) -> None:
    wide_vectors()
    out[:] = 0.0
    inverse, scales = inverse[: out.size], scales[: out.size]
    for i in range(m.size):
        x = m[i]
        levels, steps = f.negative, f.negative_steps
        if cap[i] > 0:
            levels, steps = f.positive, f.positive_steps
        for j in range(out.size):
            rest = x - scales[j] * level(x * inverse[j], levels, steps)
            out[j] += rest * rest


@inline
def _errors_of_few(
    m: Any, cap: Any, inverse: Any, scales: Any, g: Any, squares: Any, out: Any
) -> None:
    """Do `_errors_on_grid` for few scales: values side by side, and then one after the other."""
    for j in range(out.size):
        squares_of_row(
            m, cap, squares, m.size // 8, inverse[j], scales[j], g.shifter, g.octaves_from,
            g.splitter,
        )  # fmt: skip
        total = 0.0
        for i in range(m.size):
            total += squares[i]
        out[j] = total


@expanded
def _errors_at(m: Any, cap: Any, inverse: Any, scales: Any, f: Any, squares: Any, out: Any) -> None:
    if f.grid.known and out.size < _SIDE_BY_SIDE:
        _errors_of_few(m, cap, inverse, scales, f.grid, squares, out)
    elif f.grid.known:
        _errors_on_grid(m, cap, inverse, scales, f.grid, out)
    else:
        _errors_by_list(m, cap, inverse, scales, f, out)


@inline
def _error(row: Any, scale: Any, f: Any, absolute: bool) -> Any:
    total = 0.0
    for i in range(row.size):
        x = row[i]
        if x >= 0:
            rest = x - scale * level(x / scale, f.positive, f.positive_steps)
        else:
            rest = x + scale * level(-x / scale, f.negative, f.negative_steps)
        total += abs(rest) if absolute else rest * rest
    return total


@kernel
def errors(
    rows: Array, scales: Array, f: Levels, absolute: bool, out: Array, start: int, stop: int
) -> None:
    """Sum the errors of rows [count, size] under scales [count]."""
    for i in range(start, stop):
        out[i] = _error(rows[i], scales[i], f, absolute)


@kernel
def best_of(
    rows: Array, above: Array, first: Array, candidates: Array, f: Levels, halved_from: float,
    out: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """Find the candidate of the least squared error for every row; out [count].

    A scale is a candidate times `above` [count]. `candidates` rise; of equals the larger. `first`
    [count]: the least one that clips nothing. Candidates from `halved_from` on have their halves
    among them, and with every level the format has its half: one of more than twice the first is no
    better than its half, and the search ends with an octave of worse ones. Below the first the
    error grows with what is clipped.
    """
    wide_vectors()
    size = rows.shape[1]
    top = max(f.positive[-1], f.negative[-1])
    filled = -(-size // 8) * 8  # whole vectors: zeros have no error
    m, cap, squares = np.zeros(filled), np.zeros(filled), np.zeros(filled)
    scales, inverse, found = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    for i in range(start, stop):
        split(rows[i], f, m[:size], cap[:size])
        amax = m.max()
        place = first[i]
        chosen, least = place, np.inf
        octave, better = 2 * candidates[place], True
        c, going = place, True
        while going and c < candidates.size:  # a few at a time: the first octave, most often
            n = 1
            while n < LANES and c + n < candidates.size and candidates[c + n] <= 2 * candidates[c]:
                n += 1
            for j in range(n):
                scales[j] = candidates[c + j] * above[i]
                inverse[j] = 1.0 / scales[j]
            _errors_at(m, cap, inverse, scales, f, squares, found[:n])
            for j in range(n):
                if candidates[c + j] > octave and candidates[c + j] >= halved_from:
                    if not better:
                        going = False
                        break
                    octave, better = 2 * octave, False
                if found[j] <= least:
                    chosen, least, better = c + j, found[j], True
            c += n
        c, going = place - 1, True
        while going and c >= 0:
            n, cut = 0, 0.0
            while n < LANES and c - n >= 0 and 2 * candidates[c - n] >= candidates[c]:
                scales[n] = candidates[c - n] * above[i]
                cut = amax - top * scales[n]
                if cut > 0 and cut * cut > least:
                    going = False
                    break
                inverse[n] = 1.0 / scales[n]
                n += 1
            _errors_at(m, cap, inverse, scales, f, squares, found[:n])
            lost = 0.0  # what the last one clips: all below it lose more
            for j in range(n):
                if found[j] < least:
                    chosen, least = c - j, found[j]
            if n:
                for k in range(size):
                    cut = max(m[k] - top * scales[n - 1], 0.0)
                    lost += cut * cut
            going = going and lost <= least
            c -= n
        out[i] = chosen
