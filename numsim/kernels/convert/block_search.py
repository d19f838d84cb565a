"""How well a scale fits: squared or absolute errors of rows, and the scale of the least error.

A format is its levels: magnitudes in rising order, those of positive and of negative numbers apart,
with the steps between them: a quotient from ``steps[k - 1]`` on has level k at least. Rounding is
to nearest; a tie costs the same on either side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numsim.kernels.jit import inline, kernel

Array = Any
_EVENTS = 1 << 15  # of a sweep are put in order at a time
_LONG = 1 << 14  # values of a row whose errors at single scales are cheaper than its events
_FEW = 8  # steps are compared one by one; more are searched


class Levels(NamedTuple):
    """Magnitudes of a format, [m + 1] float64 per sign, and the steps between them, [m]."""

    positive: Array
    positive_steps: Array
    negative: Array
    negative_steps: Array


def levels_of(values: Array) -> Levels:
    """Return the levels of a format's finite values.

    >>> levels_of(np.array([0.0, 1.0, -2.0, -1.0])).negative_steps
    array([0.5, 1.5])
    """
    sides = []
    for side in (values[values >= 0], -values[values <= 0]):
        levels = np.unique(np.abs(side))
        levels = levels if levels.size else np.zeros(1)
        sides += [levels, (levels[1:] + levels[:-1]) / 2]
    return Levels(*sides)


@inline
def _level(quotient: Any, levels: Any, steps: Any) -> Any:
    if steps.size <= _FEW:
        level = levels[0]
        for k in range(steps.size):
            level = levels[k + 1] if quotient >= steps[k] else level
        return level
    return levels[np.searchsorted(steps, quotient, side="right")]


@inline
def _error(row: Any, scale: Any, f: Any, absolute: bool) -> Any:
    total = 0.0
    for i in range(row.size):
        x = row[i]
        if x >= 0:
            rest = x - scale * _level(x / scale, f.positive, f.positive_steps)
        else:
            rest = x + scale * _level(-x / scale, f.negative, f.negative_steps)
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
    top = max(f.positive[-1], f.negative[-1])
    for i in range(start, stop):
        row = rows[i]
        amax = 0.0
        for j in range(row.size):
            amax = max(amax, abs(row[j]))
        place = first[i]
        chosen, least = place, _error(row, candidates[place] * above[i], f, False)
        octave, better = 2 * candidates[place], True
        for c in range(place + 1, candidates.size):
            if candidates[c] > octave and candidates[c] >= halved_from:
                if not better:
                    break
                octave, better = 2 * octave, False
            found = _error(row, candidates[c] * above[i], f, False)
            if found <= least:
                chosen, least, better = c, found, True
        for c in range(place - 1, -1, -1):
            cut = amax - top * candidates[c] * above[i]
            if cut > 0 and cut * cut > least:
                break
            found = _error(row, candidates[c] * above[i], f, False)
            if found < least:
                chosen, least = c, found
        out[i] = chosen


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
def _ordered(events: Any, count: Any, low: Any, high: Any, ends: Any, order: Any) -> None:
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
def _at(side: Any, sums: Any, levels: Any, steps: Any, scale: Any) -> tuple[Any, Any]:
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
def _count(side: Any, steps: Any, low: Any, high: Any) -> Any:
    total = np.int64(0)
    for k in range(steps.size):
        first = np.searchsorted(side, steps[k] * low)
        total += np.searchsorted(side, steps[k] * high) - first
    return total


@inline
def _sweep(
    x: Any, y: Any, f: Any, low: Any, high: Any, both: Any, square: Any, best: Any, chosen: Any,
    room: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Try every interval of fixed levels between two scales; return the best and its scale.

    `both`, `square`: sums of x * level and level**2 at the lower scale.
    """
    at_p, at_n, events, order, ends = room
    if square > 0 and both * both > best * square:
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
            _ordered(events, count, low, until, ends, order)
        for i in range(count):
            both -= events[order[i], 1]
            square -= events[order[i], 2]
            if square > 0 and both * both > best * square:
                best, chosen = both * both / square, both / square
        low = until
    return best, chosen


@inline
def _narrowed(
    x: Any, y: Any, f: Any, low: Any, high: Any, whole: Any, best: Any, chosen: Any, room: Any
) -> tuple[Any, Any]:
    """Sweep only where the least error may lie, of rows too long to sweep from end to end.

    The root of the error changes between two scales by no more than their difference times the
    norm of the levels at the smaller one: what neither end comes near to is left out, halves of
    the rest are looked at in turn.
    """
    sums_x, sums_y = np.zeros(x.size + 1), np.zeros(y.size + 1)
    for i in range(x.size):
        sums_x[i + 1] = sums_x[i] + x[i]
    for i in range(y.size):
        sums_y[i + 1] = sums_y[i] + y[i]
    # a scale, the root of its error, its sums; the end of the interval, the root there
    stack = np.empty((256, 6))
    used = 0
    points = 33
    before = np.zeros(4)
    for i in range(points):
        s = low + (high - low) * i / (points - 1)
        both_p, square_p = _at(x, sums_x, f.positive, f.positive_steps, s)
        both_n, square_n = _at(y, sums_y, f.negative, f.negative_steps, s)
        both, square = both_p + both_n, square_p + square_n
        if square > 0 and both * both > best * square:
            best, chosen = both * both / square, both / square
        root = np.sqrt(max(whole - 2 * s * both + s * s * square, 0.0))
        if i:
            stack[used, :4] = before
            stack[used, 4], stack[used, 5] = s, root
            used += 1
        before[0], before[1], before[2], before[3] = s, root, both, square
    while used > 0:
        used -= 1
        a, root_a, both_a, square_a = (
            stack[used, 0], stack[used, 1], stack[used, 2], stack[used, 3],
        )  # fmt: skip
        b, root_b = stack[used, 4], stack[used, 5]
        bound = max((root_a + root_b - (b - a) * np.sqrt(square_a)) / 2, 0.0)
        if bound * bound > (whole - best) * (1 - 1e-12):
            continue
        count = _count(x, f.positive_steps, a, b) + _count(y, f.negative_steps, a, b)
        if count <= 2048 or used > 250 or b - a < a * 1e-9:
            best, chosen = _sweep(x, y, f, a, b, both_a, square_a, best, chosen, room)
            continue
        s = (a + b) / 2
        both_p, square_p = _at(x, sums_x, f.positive, f.positive_steps, s)
        both_n, square_n = _at(y, sums_y, f.negative, f.negative_steps, s)
        both, square = both_p + both_n, square_p + square_n
        if square > 0 and both * both > best * square:
            best, chosen = both * both / square, both / square
        root = np.sqrt(max(whole - 2 * s * both + s * s * square, 0.0))
        stack[used, 4], stack[used, 5] = s, root  # the rest of the entry is as it was
        used += 1
        stack[used, 0], stack[used, 1], stack[used, 2], stack[used, 3] = s, root, both, square
        stack[used, 4], stack[used, 5] = b, root_b
        used += 1
    return best, chosen


@kernel
def least_squares(
    positive: Array, negative: Array, f: Levels, halves: bool, out: Array, start: int, stop: int
) -> None:
    """Find the real scale of the least squared error of every row; out [count].

    `positive` [count, size], `negative` [count, other]: the magnitudes of numbers of one sign,
    rising, 0 in place of others. Between two scales where a value changes its level all levels are
    fixed, and the best scale is sum(x level) / sum(level**2), with sum(x level)**2 / sum(level**2)
    less error than scale 0. The largest of all intervals is the least error of all scales. It lies
    below twice the least scale that clips nothing, if `halves`, and above where clipping alone
    costs more.
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
        if not 0.0 < first < np.inf:
            out[row] = first
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
        rest = max(whole - best, 0.0)
        low = max((amax - np.sqrt(rest)) / top, first * 2.0**-30)
        low = min(low, first) * (1 - 1e-9)
        high = 2 * first * (1 + 1e-9)
        if not halves:
            least = f.positive_steps[0] if count_p else np.inf
            least = min(least, f.negative_steps[0] if count_n else np.inf)
            high = amax / least * (1 + 1e-9)
        if x.size + y.size >= _LONG:
            best, chosen = _narrowed(x, y, f, low, high, whole, best, chosen, room)
        else:
            both_p, square_p = _start(x, f.positive, f.positive_steps, low, at_p)
            both_n, square_n = _start(y, f.negative, f.negative_steps, low, at_n)
            both, square = both_p + both_n, square_p + square_n
            best, chosen = _sweep(x, y, f, low, high, both, square, best, chosen, room)
        out[row] = chosen
