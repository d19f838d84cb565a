"""The real scale of the least squared error of every row, by bounds on intervals of scales.

Between two scales a < b the error is at least what lies between, less what levels can change
(`least_squares`: D lies below its chord): at ``a + t (b - a)`` it is at least

    (1 - t) E(a) + t E(b) - t (1 - t) K,   K = x.x (b - a)**2 / (a b) - (b - a) (E(a)/a - E(b)/b)

which is above B everywhere if ``K < (sqrt(E(a) - B) + sqrt(E(b) - B))**2``. float32 finds E under
32 scales at a time, and rules out all but a few intervals, so narrow that few values change their
level there; those float64 settles, level by level.

What float32 loses: a magnitude is rounded twice, a quotient is off by a unit in the last place or
so, and one that is nearly a tie may go to either side, so sqrt(E) is off by 2**-21 sqrt(x.x) at
most, and a sum of n squares by n units. With 2 sqrt(u v) <= u r + v / r that is less than
`_SHARE` E + `_FLOOR` x.x, which is left as room. Rows whose least error is near that floor, and
those in which two sets of levels fit about equally well, are left to others.

Proof: ``tests/quant/test_least_squares.py`` compares with trying every level of every value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.convert.block_search import Grid, Levels, on_grid, split
from numsim.kernels.convert.least_squares import ordered
from numsim.kernels.instructions import top_bit, wide_vectors
from numsim.kernels.ir.trials import (
    PART,
    TRIALS,
    changed,
    errors_grid,
    errors_octaves,
    errors_uniform,
    levels_of_row,
    marked,
    products,
)
from numsim.kernels.jit import expanded, inline, kernel

Array = Any
UNDECIDED = -1.0
_SHARE, _FLOOR = np.float32(1e-4), np.float32(8e-9)  # 2**-42 / 8e-9 is less than half of 1e-4
_LEAST = np.float32(1e-6)  # of x.x: smaller errors are not told apart
_SAME = 1e-12  # of x.x: two sums of float64 that are no further apart may be equal
_DENSE = np.float32(0.45)  # of the distance at which an interval of the average error is ruled out
_BELOW = np.float32(0.3)  # what the best scale saves of the average error
_HIGH = np.float32(2.000001)  # scales from here on tell no more apart than their halves
_UNITS, _DOWN = 13, 2  # of trials at most, and of those below the first
_CHANGES = 1024  # of level that are put in order in an interval; half of them may be expected,
_EXPECTED, _EIGHTH = np.float32(4), np.float32(0.125)  # or as many, or one of an eighth of values
_ONE_BY_ONE = 16  # are put in order so
_ROOM = 512  # intervals that wait
_PART = TRIALS // 2  # parts of an interval
_TINY = 2.0**-10  # of the largest level: below it rounding by octaves alone goes on
_LANES = 16  # rows are filled up to whole vectors with zeros


@inline
def _largest(m: Array, cap: Array, sign: float) -> float:
    """Return the largest magnitude of numbers of one sign, by words: comparisons without order."""
    words, found = m.view(np.int64), np.int64(0)
    for i in range(m.size):
        word = words[i] if cap[i] * sign > 0 else np.int64(0)
        found = word if word > found else found
    return np.int64(found).view(np.float64)


@inline
def _levels(m: Array, cap: Array, by: float, g: Grid, out: Array) -> None:
    levels_of_row(m, cap, out, m.size // 8, by, by, g.shifter, g.octaves_from, g.splitter)


@expanded
def _errors(
    near: Array, most: Array, one: Any, apart: Any, other: Any, apart_too: Any, g: Grid,
    octaves: bool, scales: Array, out: Array, at: int,
) -> Any:  # fmt: skip
    """Fill 16 scales above one and 16 above another, and their errors; return the least."""
    shifter, high, n = np.float32(g.shifter * 2.0**-29), _HIGH, near.size
    half = np.int32((1 << 23) / g.fine)
    kept = np.int32(-2 * half)
    if g.octaves_from == np.inf:
        least = errors_uniform(
            near, most, n, one, apart, other, apart_too, high, scales, out, at, shifter
        )  # fmt: skip
    elif octaves:
        least = errors_octaves(
            near, most, n, one, apart, other, apart_too, high, scales, out, at, half, kept
        )  # fmt: skip
    else:
        least = errors_grid(
            near, most, n, one, apart, other, apart_too, high, scales, out, at, half, kept, shifter,
            np.float32(g.octaves_from),
        )  # fmt: skip
    return least


@expanded
def _unit(
    near: Array, most: Array, s: Any, width: Any, g: Grid, octaves: bool, scales: Array,
    out: Array, at: int,
) -> Any:  # fmt: skip
    """Fill 32 scales above one, and their errors; return the least."""
    other = s + width * np.float32(_PART)
    return _errors(near, most, s, width, other, width, g, octaves, scales, out, at)


@inline
def _stays(a: Any, e_a: Any, b: Any, e_b: Any, whole: Any, best: Any, share: Any) -> Any:
    """Whether an interval may hold an error below `best`, which has its room already."""
    wide, product = np.float32(b - a), np.float32(a * b)
    over_a = np.float32(e_a * (np.float32(1) - share) - best)
    over_b = np.float32(e_b * (np.float32(1) - share) - best)
    k = np.float32(whole * np.float32(wide * wide)) * (np.float32(1) + share)
    k = np.float32(k - wide * np.float32(b * e_a - a * e_b))
    rest = np.float32(k - product * np.float32(over_a + over_b))
    four = np.float32(np.float32(4) * product * product * over_a * over_b)
    above = (over_a > np.float32(0)) & (over_b > np.float32(0))
    return not (above & ((rest < np.float32(0)) | (np.float32(rest * rest) < four)))


@inline
def _noted(scales: Array, found: Array, whole: Any, best: Any, share: Any, flags: Array) -> None:
    """Note which intervals between neighbours stay."""
    a, b, e_a, e_b = scales[:-1], scales[1:], found[:-1], found[1:]
    flags = flags[: a.size]
    for j in range(flags.size):
        flags[j] = np.int32(1 if _stays(a[j], e_a[j], b[j], e_b[j], whole, best, share) else 0)


@inline
def _ranked(gain: float, scale: float, state: Array) -> None:
    """Keep what is taken off at most, its scale, the next best, and whether twice the scale is."""
    best, chosen = state[0], state[1]
    same = abs(scale - chosen) <= 1e-9 * scale
    twice = abs(scale - 2 * chosen) <= 1e-9 * scale or abs(chosen - 2 * scale) <= 1e-9 * chosen
    if twice and abs(gain - best) <= _SAME * best:
        state[1], state[3] = min(scale, chosen), 1.0
    elif gain > best:
        if not same:
            state[2], state[3] = max(state[2], best), 0.0
        state[0], state[1] = gain, scale
    elif not same:
        state[2] = max(state[2], gain)


@inline
def _settled(
    m: Array, cap: Array, g: Grid, a: float, b: float, total: float, state: Array, room: Any
) -> bool:
    """Try every set of levels between two scales; False where that would be too many."""
    upper, lower, places, order, starts = room
    _levels(m, cap, 1.0 / a, g, upper)
    _levels(m, cap, 1.0 / b, g, lower)
    used = 0
    for part in range(0, m.size, _LANES):
        bits = changed(upper, lower, part)
        while bits:
            bit = top_bit(bits)
            bits ^= np.uint64(1) << np.uint64(bit)
            i = part + bit
            middle = (upper[i] + lower[i]) / 2
            nearest = on_grid(middle, g)
            if used == _CHANGES or (nearest != upper[i] and nearest != lower[i]):
                return False  # too many, or two levels at once
            places[used, 0] = m[i] / middle
            places[used, 1] = m[i] * (upper[i] - lower[i])
            places[used, 2] = upper[i] * upper[i] - lower[i] * lower[i]
            used += 1
    if used > _ONE_BY_ONE:
        ordered(places, used, a, b, starts, order)
    else:
        for i in range(used):
            at = i
            while at > 0 and places[order[at - 1], 0] > places[i, 0]:
                order[at] = order[at - 1]
                at -= 1
            order[at] = i
    both, square = products(m, upper, m.size // 8)
    for i in range(used + 1):
        if i:
            both -= places[order[i - 1], 1]
            square -= places[order[i - 1], 2]
        if both * both > (state[0] - 2 * _SAME * total) * square and square > 0:
            _ranked(both * both / square, both / square, state)
    return True


@inline
def _cut(near: Array, most: Array, s: Any) -> Any:
    """Return the error of what a scale clips: smaller scales clip more."""
    total = 0.0
    for i in range(near.size):
        over = np.float64(max(near[i] - most[i] * s, np.float32(0)))
        total += over * over
    return np.float32(total * 0.999)


@inline
def _tried(
    near: Array, most: Array, g: Grid, octaves: bool, top: Any, whole: Any, lost: Any,
    scales: Array, found: Array,
) -> tuple[int, int, int]:  # fmt: skip
    """Fill trials from a scale below which clipping alone costs too much to twice the first.

    The first scale that clips nothing is 1. Returns where trials begin and end, and where the best
    of them is; -1 where there would be too many, or an error is too small. `lost`: the error that
    is to be expected of 1; `top`: the largest level, of the sign that has fewer.
    """
    one = np.float32(1)
    clipped = np.float32(1.001) / top  # sqrt(E) is top (1 - s) at least
    s = one - min(np.float32(1.15) * np.sqrt(lost) * clipped, np.float32(0.9))
    width = _DENSE * np.float32(2) * np.sqrt(lost * _BELOW / whole)
    at, end = _DOWN * TRIALS, (_DOWN + 1) * TRIALS
    unit, best = at, _unit(near, most, s, width, g, octaves, scales, found, at)
    while scales[at] > one - np.sqrt(best) * clipped and _cut(near, most, scales[at]) < best:
        if at == 0 or scales[at] <= np.float32(1e-3):
            return -1, end, unit
        down = min(width, (scales[at] - np.float32(5e-4)) / np.float32(TRIALS + 1))
        s = scales[at] - down * np.float32(TRIALS + 1)
        at -= TRIALS
        least = _unit(near, most, s, down, g, octaves, scales, found, at)
        if least < best:
            best, unit = least, at
    average = np.float32(0)
    for j in range(_DOWN * TRIALS, (_DOWN + 1) * TRIALS, 4):
        average += found[j] / (scales[j] * scales[j]) * np.float32(4.0 / TRIALS)
    while scales[end - 1] < _HIGH:
        if end == scales.size or not best > _LEAST * whole:
            return -1, end, unit
        s = scales[end - 1]
        middle = s + width * np.float32(TRIALS // 2)
        over = max(average * middle * middle - best, _BELOW * best)
        width = _DENSE * np.float32(2) * s * np.sqrt(over / whole)
        least = _unit(near, most, s, width, g, octaves, scales, found, end)
        if least < best:
            best, unit = least, end
        end += TRIALS
    while found[unit] != best:
        unit += 1
    return at, end, unit


@inline
def _waits(stack: Array, used: int, a: Any, e_a: Any, b: Any, e_b: Any, wide: Any) -> int:
    """Let an interval wait, in one with its upper neighbour where both are not too wide."""
    top = used - 1
    if used and stack[top, 0] == b and stack[top, 2] - a < wide * a:
        stack[top, 0], stack[top, 1] = a, e_a
        return used
    stack[used, 0], stack[used, 1], stack[used, 2], stack[used, 3] = a, e_a, b, e_b
    return used + 1


@inline
def _staying(
    scales: Array, found: Array, whole: Any, limit: Any, share: Any, flags: Array, stack: Array,
    best: int, used: int, wide: Any,
) -> int:  # fmt: skip
    """Let intervals between neighbours wait that stay, but those beside the best trial."""
    _noted(scales, found, whole, limit, share, flags)
    flags[scales.size - 1] = flags[best] = np.int32(0)
    flags[max(best - 1, 0)] = np.int32(0)
    for j in range(0, scales.size, _LANES):
        bits = marked(flags, j)
        while bits:
            i = top_bit(bits)
            bits ^= np.uint64(1) << np.uint64(i)
            i += j
            used = _waits(
                stack, used, scales[i], found[i], scales[i + 1], found[i + 1], wide
            )  # fmt: skip
    return used


@inline
def _begin(ends: Array, first: Any, second: Any, out: Array) -> None:
    """Fill where the parts of two intervals begin, given where they end."""
    inner, own = out[1:], ends[:-1]
    for j in range(inner.size):
        inner[j] = own[j]
    out[0], out[_PART] = first, second


@kernel
def least_squares_near(rows: Array, f: Levels, out: Array, start: int, stop: int) -> None:
    """Find what `least_squares` finds, of formats whose levels are a grid and have their halves.

    `out` [count]: scales, 0 for zeros, `UNDECIDED` where float32 does not tell.
    """
    wide_vectors()
    size = rows.shape[1]
    filled = -(-size // _LANES) * _LANES
    m, cap, upper, lower = np.zeros(filled), np.zeros(filled), np.zeros(filled), np.zeros(filled)
    near, most = np.zeros(filled, np.float32), np.zeros(filled, np.float32)
    count = TRIALS * _UNITS
    scales, found = np.zeros(count, np.float32), np.zeros(count, np.float32)
    parts, errors = np.zeros(TRIALS, np.float32), np.zeros(TRIALS, np.float32)
    ends = np.zeros(TRIALS, np.float32), np.zeros(TRIALS, np.float32)
    flags, stack = np.zeros(count, np.int32), np.zeros((_ROOM, 4), np.float32)
    order, starts = np.zeros(_CHANGES, np.int64), np.zeros(_CHANGES + 1, np.int64)
    room, state = (upper, lower, np.zeros((_CHANGES, 3)), order, starts), np.zeros(4)
    top_p, top_n = f.positive[-1], f.negative[-1]
    step = 2 * (f.positive_steps[0] if f.positive_steps.size else f.negative_steps[0])
    share = _SHARE + np.float32((min(size, PART) + size / PART + 8) * 2.0**-23)
    few = max(_EXPECTED, min(np.float32(size) * _EIGHTH, np.float32(_CHANGES // 2)))
    uniform = f.grid.octaves_from == np.inf
    relative = 0.0 if uniform else 0.15 / f.grid.fine**2
    octaves = f.grid.octaves_from < max(top_p, top_n) * _TINY
    # octaves alone err less than the format: by half a step at most, of scales up to 2
    unseen = np.float32(size * step * step if octaves else 0.0)
    top = np.float32(min(top_p, top_n) if min(top_p, top_n) > 0 else max(top_p, top_n))
    for row in range(start, stop):
        split(rows[row], f, m[:size], cap[:size])
        first = _largest(m, cap, 1.0) / top_p
        if top_n > 0:
            first = max(first, _largest(m, cap, -1.0) / top_n)
        out[row] = first
        if not 0.0 < first < np.inf:
            continue
        out[row] = UNDECIDED
        by = 1.0 / first
        total, _ = products(m, m, filled // 8)
        whole = np.float32(total * by * by)
        if not (by < np.inf and 0.0 < whole < np.inf):
            continue
        for i in range(filled):
            near[i], most[i] = np.float32(m[i] * by), np.float32(abs(cap[i]))
        lost = np.float32(size * step * step / 12 + relative * whole)
        at, end, best = _tried(
            near, most, f.grid, octaves, top, whole, lost, scales, found
        )  # fmt: skip
        if at < 0:
            continue
        floor = _FLOOR * whole + unseen
        limit = found[best] * (np.float32(1) + share) + floor
        dense = np.float32(size * min(np.sqrt(whole / size) / step, f.grid.fine))
        state[:] = 0.0
        used, turn, good = 0, 0, found[best] > _LEAST * whole
        narrow = few / dense
        for i in (min(best, end - 2), max(best - 1, at)):
            used = _waits(stack, used, scales[i], found[i], scales[i + 1], found[i + 1], narrow)
        while good:
            if used == 0:
                if turn:
                    break
                turn = 1
                used = _staying(
                    scales[at:end], found[at:end], whole, limit, share, flags, stack, best - at,
                    used, narrow,
                )  # fmt: skip
                continue
            used -= 1
            a, e_a, b, e_b = stack[used, 0], stack[used, 1], stack[used, 2], stack[used, 3]
            if not _stays(a, e_a, b, e_b, whole, limit, share):
                continue
            wide = b - a
            if wide < narrow * a and _settled(
                m, cap, f.grid, a * first, b * first, total, state, room
            ):
                off = np.float32((total - state[0]) * by * by)
                limit = min(limit, off * (np.float32(1) + share) + _FLOOR * whole)
                continue
            good = used + TRIALS <= _ROOM and wide > a * np.float32(1e-5)
            if not good:
                break
            other, e_other, last = a, e_a, b  # a second one, or the same again
            if used and _stays(
                stack[used - 1, 0], stack[used - 1, 1], stack[used - 1, 2], stack[used - 1, 3],
                whole, limit, share,
            ):  # fmt: skip
                used -= 1
                other, e_other = stack[used, 0], stack[used, 1]
                last = stack[used, 2]
            by_one, by_two = wide / np.float32(_PART), (last - other) / np.float32(_PART)
            least = _errors(
                near, most, a, by_one, other, by_two, f.grid, octaves, parts, errors, 0
            )  # fmt: skip
            limit = min(limit, least * (np.float32(1) + share) + floor)
            less = min(narrow, np.float32(0.5) * min(wide / a, (last - other) / other))  # or no end
            _begin(parts, a, other, ends[0])
            _begin(errors, e_a, e_other, ends[1])
            for j in range(TRIALS):
                flags[j] = np.int32(
                    1 if _stays(ends[0][j], ends[1][j], parts[j], errors[j], whole, limit, share)
                    else 0
                )  # fmt: skip
            for j in range(0, TRIALS if other != a else _PART, _LANES):
                bits = marked(flags, j)
                while bits:
                    i = top_bit(bits)
                    bits ^= np.uint64(1) << np.uint64(i)
                    i += j
                    used = _waits(
                        stack, used, ends[0][i], ends[1][i], parts[i], errors[i], less
                    )  # fmt: skip
        gain, scale = state[0], state[1]
        if not (good and total - gain > _LEAST * total and gain - state[2] > _SAME * total):
            continue
        _levels(m, cap, 1.0 / scale, f.grid, upper)
        if state[3] > 0:  # all levels halved: the smaller scale comes first
            _levels(m, cap, 0.5 / scale, f.grid, lower)
            halves = 0
            for i in range(filled):
                halves += 1 if upper[i] != 2 * lower[i] else 0
            if halves:
                continue
        both, square = 0.0, 0.0
        for i in range(size):
            both += m[i] * upper[i]
            square += upper[i] * upper[i]
        out[row] = both / square
