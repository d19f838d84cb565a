"""The real scale of the least squared error of every row, exactly.

Under a scale s the error of a row x is ``x.x - 2 s D(s)`` with ``D(s) = max over levels q of
(x.q - s q.q / 2)``, for the nearest levels are the best. Levels q alone do best at ``x.q / q.q``,
where they take ``(x.q)**2 / q.q`` off the error. D is the largest of straight lines: between two
scales it lies below its chord, and ``2 s chord(s)`` bounds what any scale between them takes off.
So scales are tried at such distances that the bound rules most intervals out; in others the points
where a value changes its level are put in order, and every set of levels between them is tried.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.convert.block_search import (
    LANES,
    Levels,
    level,
    on_grid,
    quantised,
    split,
)
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import expanded, inline, kernel

Array = Any
EVENTS = 1 << 10  # changes of level that are put in order at a time
_FEW = 16  # are put in order one by one
SAME = 1e-15  # of the sum of squares: rounding a scale to float32 costs as much
_PARTS = 9  # of an interval of many changes; eight scales between them fill vectors
_DEPTH = 40 * _PARTS  # intervals that wait


@inline
def may_gain(a: Any, d_a: Any, b: Any, d_b: Any, least: Any) -> Any:
    """Whether a scale inside an interval may take more than `least` off, and more than its ends."""
    fall, wide = d_a - d_b, b - a  # 2 s chord(s) is largest where s is top / (2 fall)
    top = d_a * wide + fall * a
    return (top > 2 * fall * a) & (top < 2 * fall * b) & (top * top > 2 * fall * wide * least)


@inline
def ordered(events: Any, count: Any, low: Any, high: Any, ends: Any, order: Any) -> None:
    """Fill `order` with events by rising scale: counted into as many buckets, then inserted."""
    ends[: count + 1] = 0
    width = count / (high - low)
    for i in range(count):
        bucket = min(max(np.int64((events[i, 0] - low) * width), 0), count - 1)
        ends[bucket + 1] += 1
    for i in range(count):
        ends[i + 1] += ends[i]
    for i in range(count):
        bucket = min(max(np.int64((events[i, 0] - low) * width), 0), count - 1)
        order[ends[bucket]] = i
        ends[bucket] += 1
    for i in range(1, count):
        event = order[i]
        j = i - 1
        while j >= 0 and events[order[j], 0] > events[event, 0]:
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = event


@inline
def _sums_on_grid(m: Any, cap: Any, inverse: Any, g: Any, both: Any, square: Any) -> None:
    """Sum x q and q q under many scales."""
    wide_vectors()
    both[:] = 0.0
    square[: both.size] = 0.0
    for i in range(m.size):
        x, most = m[i], abs(cap[i])
        for j in range(both.size):
            q = on_grid(min(x * inverse[j], most), g)
            both[j] += x * q
            square[j] += q * q


@inline
def _sums_by_list(m: Any, cap: Any, inverse: Any, f: Any, both: Any, square: Any) -> None:
    wide_vectors()
    both[:] = 0.0
    square[: both.size] = 0.0
    for i in range(m.size):
        x = m[i]
        levels, steps = f.negative, f.negative_steps
        if cap[i] > 0:
            levels, steps = f.positive, f.positive_steps
        for j in range(both.size):
            q = level(x * inverse[j], levels, steps)
            both[j] += x * q
            square[j] += q * q


@expanded
def _sums(m: Any, cap: Any, inverse: Any, f: Any, both: Any, square: Any) -> None:
    if f.grid.known:
        _sums_on_grid(m, cap, inverse, f.grid, both, square)
    else:
        _sums_by_list(m, cap, inverse, f, both, square)


@expanded
def _changes(m: Any, cap: Any, low: Any, high: Any, f: Any, room: Any) -> Any:
    """Note where values change their level between two scales: (scale, x.q, q.q) that go, in order.

    Returns how many, or -1 if they are too many or a value changes more than one level.
    """
    events, order, ends, upper, lower, middle, found = room
    quantised(m, cap, low, f, upper)
    quantised(m, cap, high, f, lower)
    for i in range(m.size):
        middle[i] = (upper[i] + lower[i]) / 2
    quantised(middle, cap, 1.0, f, found)
    count, jumps = 0, 0
    for i in range(m.size):
        count += 1 if upper[i] != lower[i] else 0
        jumps += 1 if (found[i] != upper[i]) & (found[i] != lower[i]) else 0
    if jumps or count > min(max(m.size // 32, _FEW), EVENTS):
        count = -1
    else:
        count = 0
        for i in range(m.size):
            if upper[i] != lower[i]:
                place, at = m[i] / middle[i], count
                events[count, 0] = place
                events[count, 1] = m[i] * (upper[i] - lower[i])
                events[count, 2] = upper[i] * upper[i] - lower[i] * lower[i]
                while at > 0 and count < _FEW and events[order[at - 1], 0] > place:
                    order[at] = order[at - 1]
                    at -= 1
                order[at] = count
                count += 1
        if count > _FEW:
            ordered(events, count, low, high, ends, order)
    return count


@expanded
def _settle(
    m: Any, cap: Any, f: Any, a: Any, both_a: Any, square_a: Any, b: Any, both_b: Any,
    square_b: Any, whole: Any, best: Any, chosen: Any, room: Any, lanes: Any, stack: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Try what the bound leaves of an interval; return what is taken off at most, and its scale."""
    events, order = room[0], room[1]
    inverse, both, square = lanes
    stack[0, 0], stack[0, 1], stack[0, 2] = a, both_a, square_a
    stack[0, 3], stack[0, 4], stack[0, 5] = b, both_b, square_b
    used = 1
    while used > 0:
        used -= 1
        a, both_a, square_a = stack[used, 0], stack[used, 1], stack[used, 2]
        b, both_b, square_b = stack[used, 3], stack[used, 4], stack[used, 5]
        d_a, d_b = both_a - a * square_a / 2, both_b - b * square_b / 2
        if used + _PARTS > _DEPTH or not may_gain(a, d_a, b, d_b, best + SAME * whole):
            continue
        count = _changes(m, cap, a, b, f, room)
        if count >= 0:
            for i in range(count):
                event = order[i]
                both_a -= events[event, 1]
                square_a -= events[event, 2]
                if square_a > 0 and both_a * both_a > (best + SAME * whole) * square_a:
                    best, chosen = both_a * both_a / square_a, both_a / square_a
            continue
        n = _PARTS
        for j in range(n - 1):
            inverse[j] = 1.0 / (a + (b - a) * (j + 1) / n)
        _sums(m, cap, inverse, f, both[: n - 1], square)
        for j in range(n):  # the last on top of the stack: the smaller scales come first
            k = n - 1 - j
            at = used + j
            stack[at, 3], stack[at, 4], stack[at, 5] = b, both_b, square_b
            if k:
                s = 1.0 / inverse[k - 1]
                b, both_b, square_b = s, both[k - 1], square[k - 1]
                stack[at, 0], stack[at, 1], stack[at, 2] = b, both_b, square_b
                if square_b > 0 and both_b * both_b > (best + SAME * whole) * square_b:
                    best, chosen = both_b * both_b / square_b, both_b / square_b
            else:
                stack[at, 0], stack[at, 1], stack[at, 2] = a, both_a, square_a
        used += n
    return best, chosen


@kernel
def least_squares(rows: Array, f: Levels, halves: bool, out: Array, start: int, stop: int) -> None:
    """Find the real scale of the least squared error of every row; out [count], 0 for zeros.

    Scales are tried from the first that clips nothing down, until what is clipped costs more than
    all, then up from there, to twice that if `halves` (a format that has half of every level tells
    no more apart there). Of errors closer than 1e-15 of the sum of squares the first one's.
    """
    wide_vectors()
    size = rows.shape[1]
    m, cap = np.empty(size), np.empty(size)
    upper, lower = np.empty(size), np.empty(size)
    middle, found = np.empty(size), np.empty(size)
    events = np.empty((EVENTS, 3))
    order, ends = np.empty(EVENTS, np.int64), np.empty(EVENTS + 1, np.int64)
    room = events, order, ends, upper, lower, middle, found
    inverse, both, square = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    lanes = inverse, both, square
    sums = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    stack = np.empty((_DEPTH, 6))
    least_step = np.inf
    if f.positive_steps.size:
        least_step = f.positive_steps[0]
    if f.negative_steps.size:
        least_step = min(least_step, f.negative_steps[0])
    for row in range(start, stop):
        split(rows[row], f, m, cap)
        whole, first, amax = 0.0, 0.0, 0.0
        for i in range(size):
            whole += m[i] * m[i]
            amax = max(amax, m[i])
            most = abs(cap[i])
            if m[i] > first * most:
                first = m[i] / most
        out[row] = first
        if not 0.0 < first < np.inf:
            continue
        quantised(m, cap, first, f, upper)
        both_f, square_f, total = 0.0, 0.0, 0.0
        for i in range(size):
            both_f += m[i] * upper[i]
            square_f += upper[i] * upper[i]
            total += upper[i]
        best, chosen = both_f * both_f / square_f, both_f / square_f
        # intervals of fewer than a change for every eighth value are not worth a trial
        changes = min(total / (size * 2 * least_step), f.grid.fine)
        narrowest = 0.125 / max(changes, 1.0)
        high = 2 * first * (1 + 1e-9) if halves else amax / least_step * (1 + 1e-9)
        for down in (True, False):
            a, both_a, square_a = first, both_f, square_f
            end = high if not down else first * 2.0**-30
            going = whole - best > SAME * whole
            while going and (a < end if not down else a > end):
                rest = whole - best
                here = max(whole - 2 * a * both_a + a * a * square_a - 0.7 * rest, 0.3 * rest)
                width = max(2 * np.sqrt(0.8 * here / whole), narrowest)
                ratio = 1 + min(width, 1.0)
                n, s = 0, a
                clipped = max(amax - np.sqrt(rest) * 1.001, 0.0) / max(
                    f.positive[-1], f.negative[-1]
                )
                limit = end if not down else max(end, clipped * (1 - 1e-9))
                while n < LANES:
                    s = s * ratio if not down else s / ratio
                    if (s >= limit) if not down else (s <= limit):
                        s, going = limit, False
                    sums[0][n], inverse[n] = s, 1.0 / s
                    n += 1
                    if not going:
                        break
                filled = -(-n // 8) * 8  # whole vectors
                inverse[n:filled] = inverse[n - 1]
                _sums(m, cap, inverse, f, both[:filled], square)
                for j in range(n):
                    sums[1][j], sums[2][j] = both[j], square[j]
                    if square[j] > 0 and both[j] * both[j] > (best + SAME * whole) * square[j]:
                        best, chosen = both[j] * both[j] / square[j], both[j] / square[j]
                for j in range(n):
                    s, both_s, square_s = sums[0][j], sums[1][j], sums[2][j]
                    low, both_l, square_l = (
                        (a, both_a, square_a) if not down else (s, both_s, square_s)
                    )
                    if down:
                        s, both_s, square_s = a, both_a, square_a
                    d_l, d_s = both_l - low * square_l / 2, both_s - s * square_s / 2
                    if may_gain(low, d_l, s, d_s, best + SAME * whole):
                        best, chosen = _settle(
                            m, cap, f, low, both_l, square_l, s, both_s, square_s, whole, best,
                            chosen, room, lanes, stack,
                        )  # fmt: skip
                    a, both_a, square_a = sums[0][j], sums[1][j], sums[2][j]
                if down and going:  # smaller scales clip more than this one
                    lost = 0.0
                    for i in range(size):
                        over = max(m[i] - abs(cap[i]) * a, 0.0)
                        lost += over * over
                    going = lost <= whole - best
        quantised(m, cap, chosen, f, upper)
        both_f, square_f = 0.0, 0.0
        for i in range(size):
            both_f += m[i] * upper[i]
            square_f += upper[i] * upper[i]
        out[row] = both_f / square_f if square_f > 0 else chosen
