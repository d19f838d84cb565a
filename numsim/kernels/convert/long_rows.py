"""The scale of the least squared error from magnitudes in rising order.

For rows so long that a search for every level is cheaper than a look at every value, and for short
rows under few levels, where all changes of level are fewer than the scales that would be tried.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.convert.block_search import Levels
from numsim.kernels.convert.least_squares import SAME, may_gain, ordered
from numsim.kernels.jit import inline, kernel

Array = Any
_EVENTS = 1 << 15  # of a sweep are put in order at a time


@inline
def _collect(
    side: Any, levels: Any, steps: Any, scale: Any, at: Any, events: Any, count: Any
) -> Any:
    """Note the scales up to `scale` where values leave a level: (scale, change, change)."""
    for k in range(steps.size):
        lower, upper = levels[k], levels[k + 1]
        i = at[k]
        while i < side.size and side[i] < steps[k] * scale:
            again = i > at[k] and side[i] == side[i - 1]  # equal values leave together
            count += 0 if again else 1
            if count <= len(events):
                if not again:
                    events[count - 1, 0] = side[i] / steps[k]
                    events[count - 1, 1] = events[count - 1, 2] = 0.0
                events[count - 1, 1] += side[i] * (upper - lower)
                events[count - 1, 2] += upper * upper - lower * lower
            i += 1
        if count <= len(events):
            at[k] = i
    return count


@inline
def _at_side(side: Any, sums: Any, levels: Any, steps: Any, scale: Any) -> tuple[Any, Any]:
    """Return sums of x * level and level**2 at a scale, from running sums of a sorted side."""
    both, square = 0.0, 0.0
    last = side.size
    for k in range(steps.size - 1, -1, -1):
        place = np.searchsorted(side[:last], steps[k] * scale)
        both += levels[k + 1] * (sums[last] - sums[place])
        square += levels[k + 1] * levels[k + 1] * np.float64(last - place)
        last = place
    both += levels[0] * sums[last]
    square += levels[0] * levels[0] * np.float64(last)
    return both, square


@inline
def _at(x: Any, sums_x: Any, y: Any, sums_y: Any, f: Any, scale: Any) -> tuple[Any, Any]:
    both_p, square_p = _at_side(x, sums_x, f.positive, f.positive_steps, scale)
    both_n, square_n = _at_side(y, sums_y, f.negative, f.negative_steps, scale)
    return both_p + both_n, square_p + square_n


@inline
def _running(side: Any) -> Any:
    """Return running sums, each as good as one rounding: what additions lose is kept."""
    sums = np.zeros(side.size + 1)
    total, lost = 0.0, 0.0
    for i in range(side.size):
        new = total + side[i]
        part = new - total
        lost += (total - (new - part)) + (side[i] - part)
        total = new
        sums[i + 1] = total + lost
    return sums


@inline
def _count(side: Any, steps: Any, low: Any, high: Any) -> Any:
    total = np.int64(0)
    for k in range(steps.size):
        first = np.searchsorted(side, steps[k] * low)
        total += np.searchsorted(side, steps[k] * high) - first
    return total


@inline
def _sweep(
    x: Any, y: Any, f: Any, low: Any, high: Any, both: Any, square: Any, best: Any, chosen: Any,
    more: Any, room: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Try every interval of fixed levels between two scales; return the best and its scale.

    `both`, `square`: sums of x * level and level**2 at the lower scale.
    """
    at_p, at_n, events, order, ends = room
    if square > 0 and both * both > (best + more) * square:
        best, chosen = both * both / square, both / square
    for k in range(at_p.size):
        at_p[k] = np.searchsorted(x, f.positive_steps[k] * low)
    for k in range(at_n.size):
        at_n[k] = np.searchsorted(y, f.negative_steps[k] * low)
    part = high - low
    while low < high:
        until = min(low + part, high)
        count = _collect(x, f.positive, f.positive_steps, until, at_p, events, np.int64(0))
        kept = count <= _EVENTS
        if kept:
            count = _collect(y, f.negative, f.negative_steps, until, at_n, events, count)
            kept = count <= _EVENTS
        if not kept and part > low * 1e-12:  # too many at once: begin this part again
            part *= min(0.5, 0.7 * _EVENTS / count)
            for k in range(at_p.size):
                at_p[k] = np.searchsorted(x, f.positive_steps[k] * low)
            for k in range(at_n.size):
                at_n[k] = np.searchsorted(y, f.negative_steps[k] * low)
            continue
        count = min(count, np.int64(_EVENTS))
        if count:
            ordered(events, count, low, until, ends, order)
        for i in range(count):
            both -= events[order[i], 1]
            square -= events[order[i], 2]
            if square > 0 and both * both > (best + more) * square:
                best, chosen = both * both / square, both / square
        low = until
    return best, chosen


@kernel
def least_squares_sorted(positive: Array, negative: Array, f: Levels, halves: bool) -> Any:
    """Find the real scale of the least squared error of one long row, from its sorted magnitudes.

    `positive`, `negative`: those of either sign, rising, above 0. What `least_squares` finds; sums
    over the values of a level are differences of running sums, so a scale costs no more than a
    search for every level.
    """
    x, y = positive, negative
    sums_x, sums_y = _running(x), _running(y)
    whole, first, amax = 0.0, 0.0, 0.0
    for i in range(x.size):
        whole += x[i] * x[i]
    for i in range(y.size):
        whole += y[i] * y[i]
    if x.size:
        first, amax = x[-1] / f.positive[-1], x[-1]
    if y.size:
        first, amax = max(first, y[-1] / f.negative[-1]), max(amax, y[-1])
    if not 0.0 < first < np.inf:
        return first
    steps_p, steps_n = f.positive_steps, f.negative_steps
    at_p, at_n = np.zeros(steps_p.size, np.int64), np.zeros(steps_n.size, np.int64)
    events = np.empty((_EVENTS, 3))
    order, ends = np.empty(_EVENTS, np.int64), np.empty(_EVENTS + 1, np.int64)
    room = at_p, at_n, events, order, ends
    both, square = _at(x, sums_x, y, sums_y, f, first)
    best, chosen = both * both / square, both / square
    top = max(f.positive[-1], f.negative[-1])
    low = max((amax - np.sqrt(max(whole - best, 0.0))) / top, first * 2.0**-30) * (1 - 1e-9)
    low = min(low, first)
    high = 2 * first * (1 + 1e-9)
    if not halves:
        least = steps_p[0] if steps_p.size else np.inf
        least = min(least, steps_n[0] if steps_n.size else np.inf)
        high = amax / least * (1 + 1e-9)
    stack = np.empty((256, 6))  # a scale, its sums; another, its sums
    more = SAME * whole
    used, points = 0, 65
    for i in range(points):  # the smaller scales first, here and below
        s = low + (high - low) * i / (points - 1)
        both, square = _at(x, sums_x, y, sums_y, f, s)
        if square > 0 and both * both > (best + more) * square:
            best, chosen = both * both / square, both / square
        if i < points - 1:
            stack[i, 0], stack[i, 1], stack[i, 2] = s, both, square
        if i:
            stack[i - 1, 3], stack[i - 1, 4], stack[i - 1, 5] = s, both, square
    if whole - best > more:
        used = points - 1
        stack[:used] = stack[:used][::-1].copy()
    while used > 0:
        used -= 1
        a, both_a, square_a = stack[used, 0], stack[used, 1], stack[used, 2]
        b, both_b, square_b = stack[used, 3], stack[used, 4], stack[used, 5]
        d_a, d_b = both_a - a * square_a / 2, both_b - b * square_b / 2
        if not may_gain(a, d_a, b, d_b, best + more):
            continue
        count = _count(x, steps_p, a, b) + _count(y, steps_n, a, b)
        if count <= 256 or used > 250 or b - a < a * 1e-12:
            best, chosen = _sweep(x, y, f, a, b, both_a, square_a, best, chosen, more, room)
            continue
        s = (a + b) / 2
        both, square = _at(x, sums_x, y, sums_y, f, s)
        if square > 0 and both * both > (best + more) * square:
            best, chosen = both * both / square, both / square
        stack[used, 0], stack[used, 1], stack[used, 2] = s, both, square
        used += 1  # the end of the entry stays
        stack[used, 0], stack[used, 1], stack[used, 2] = a, both_a, square_a
        stack[used, 3], stack[used, 4], stack[used, 5] = s, both, square
        used += 1
    both, square = _at(x, sums_x, y, sums_y, f, chosen)
    return both / square if square > 0 else chosen


@inline
def _start(side: Any, levels: Any, steps: Any, scale: Any, at: Any) -> tuple[Any, Any]:
    """Return sums of x * level and level**2 at a scale; `at`: the first x of every step."""
    for k in range(steps.size):
        at[k] = np.searchsorted(side, steps[k] * scale)
    both, square = 0.0, 0.0
    k = 0
    for i in range(side.size):
        while k < steps.size and i >= at[k]:
            k += 1
        both += side[i] * levels[k]
        square += levels[k] * levels[k]
    return both, square


@kernel
def least_squares_few(
    positive: Array, negative: Array, f: Levels, halves: bool, out: Array, start: int, stop: int
) -> None:
    """Find what `least_squares` finds for short rows and few levels: every change in order.

    `positive` [count, size], `negative` [count, other]: the magnitudes of numbers of one sign,
    rising, 0 in place of others.
    """
    top = max(f.positive[-1], f.negative[-1])
    count_p, count_n = f.positive_steps.size, f.negative_steps.size
    at_p, at_n = np.zeros(count_p, np.int64), np.zeros(count_n, np.int64)
    events = np.empty((_EVENTS, 3))
    order, ends = np.empty(_EVENTS, np.int64), np.empty(_EVENTS + 1, np.int64)
    room = at_p, at_n, events, order, ends
    for row in range(start, stop):
        x, y = positive[row], negative[row]
        amax = max(x[x.size - 1], y[y.size - 1])
        first = 0.0
        if x[x.size - 1] > 0:
            first = x[x.size - 1] / f.positive[-1]
        if y[y.size - 1] > 0:
            first = max(first, y[y.size - 1] / f.negative[-1])
        out[row] = first
        if not 0.0 < first < np.inf:
            continue
        both_p, square_p = _start(x, f.positive, f.positive_steps, first, at_p)
        both_n, square_n = _start(y, f.negative, f.negative_steps, first, at_n)
        both, square = both_p + both_n, square_p + square_n
        whole = 0.0
        for i in range(x.size):
            whole += x[i] * x[i]
        for i in range(y.size):
            whole += y[i] * y[i]
        best, chosen = both * both / square, both / square
        low = max((amax - np.sqrt(max(whole - best, 0.0))) / top, first * 2.0**-30)
        low = min(low, first) * (1 - 1e-9)
        high = 2 * first * (1 + 1e-9)
        if not halves:
            least = f.positive_steps[0] if count_p else np.inf
            least = min(least, f.negative_steps[0] if count_n else np.inf)
            high = amax / least * (1 + 1e-9)
        both_p, square_p = _start(x, f.positive, f.positive_steps, low, at_p)
        both_n, square_n = _start(y, f.negative, f.negative_steps, low, at_n)
        both, square = both_p + both_n, square_p + square_n
        best, chosen = _sweep(x, y, f, low, high, both, square, best, chosen, SAME * whole, room)
        out[row] = chosen
