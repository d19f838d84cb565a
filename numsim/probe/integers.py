"""Stimuli for machines that add integers: c near the ends of every width, the largest products."""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.probe.alphabet import words
from numsim.probe.machine import Batch, Machine, joined
from numsim.probe.stimuli import Sheet, shuffled


def pairs(machine: Machine) -> Batch:
    """Two products: where the sum of a pair stops."""
    both, sheet = words(machine.a, machine.b), Sheet(machine, machine.depths[0])
    a, b = _ladder(both.a), _ladder(both.b)
    for x in a:
        for y in (b[0], b[-1]):
            sheet.add([(0, x, y)])
            sheet.add([(0, x, y), (1, x, y)])
            sheet.add([(0, x, y), (1, a[-1], b[-1])])
            sheet.add([(0, x, y), (1, a[0], b[-1]), (2, x, y), (3, x, y)])
    return shuffled(sheet.batch("exact"))


def _ladder(letters: Any) -> list[float]:
    """Return the ends of an integer format and powers of two between."""
    values = [float(letters.fmt.min), float(letters.fmt.max)]
    values += [s * 2.0**e for e in letters.powers for s in (1, -1) if s > 0 or letters.fmt.signed]
    return sorted({v for v in values if letters.fmt.min <= v <= letters.fmt.max})


def start(machine: Machine) -> Batch:
    """C near each power of two and one product."""
    both, sheet = words(machine.a, machine.b), Sheet(machine, machine.depths[0])
    ends = [(x, y) for x in _ladder(both.a)[:: len(_ladder(both.a)) - 1]
            for y in _ladder(both.b)[:: len(_ladder(both.b)) - 1]]  # fmt: skip
    for bits in range(7, 32):
        for near in (-2, -1, 0, 1):
            for sign in (1, -1):
                c = float(min(max(sign * 2**bits + near, -(2**31)), 2**31 - 1))
                for x, y in (*ends, (1.0, 1.0)):
                    sheet.add([(0, x, y)], c)
    for x, y in (*ends, (1.0, 1.0)):
        sheet.add([(0, x, y)])
    return shuffled(sheet.batch("start"))


def steps(machine: Machine) -> Batch:
    """C near the ends of every width, and products that go beyond them and come back."""
    both, depth = words(machine.a, machine.b), machine.depths[0]
    sheet = Sheet(machine, depth)
    a, b = _ladder(both.a), _ladder(both.b)
    up, down = (a[-1], b[-1]), (a[0], b[-1]) if machine.a.signed else (a[-1], b[0])
    for bits in range(10, 32):
        for sign in (1, -1):
            c = sign * (2.0**bits - 1)
            for j in (*range(1, min(depth, 9)), 12, 16, 24, 32, 48):
                first, second = (up, down) if sign > 0 else (down, up)
                if j < depth:
                    sheet.add([(0, *first), (j, *second)], c)
                    sheet.add([(j - 1, *first), (j, *second)], c)
                    sheet.add([*((k, *first) for k in range(j)), (j, *second)], c)
    return shuffled(joined([sheet.batch("steps"), random(machine, depth, 200, 4)]), 5)


def edges(machine: Machine) -> Batch:
    """Write sums of the largest products, over all lengths."""
    both, depth = words(machine.a, machine.b), machine.depths[0]
    sheet = Sheet(machine, depth)
    a_low, a_high = float(both.a.fmt.min), float(both.a.fmt.max)
    for x in _ladder(both.a):
        for y in _ladder(both.b)[:: max(1, len(both.b.powers) // 4)]:
            sheet.add([(k, x, y) for k in range(depth)])
            sheet.add([(k, x, y) for k in range(0, depth, 2)], 2.0**31 - 1)
            sheet.add([(k, x, y) for k in range(1, depth, 2)], -(2.0**31))
    for count in range(1, depth):
        for x in (a_low, a_high):
            sheet.add([(k, x, float(both.b.fmt.max)) for k in range(count)])
    return shuffled(sheet.batch("edges"))


def random(machine: Machine, depth: int, count: int, seed: int) -> Batch:
    """Random sums, with ends of the range among the operands."""
    both, rng = words(machine.a, machine.b), np.random.default_rng([seed, depth])
    codes = []
    for letters in (both.a, both.b):
        some = rng.choice(letters.finite, (count, depth))
        end = rng.choice(letters.finite[[0, -1]], (count, depth))
        some = np.where(rng.random((count, depth)) < rng.random((count, 1)), end, some)
        codes.append(some.astype(letters.fmt.code_dtype))
    width = rng.integers(8, 33, count)
    c = (rng.integers(-(2**31), 2**31, count) >> (32 - width)).astype(np.int32)
    edge = rng.random(count) < 0.4
    limit = (np.int64(1) << (width - 1)) - 1
    near = np.where(rng.random(count) < 0.5, limit, -limit - 1)
    c[edge] = near[edge].astype(np.int32)
    if not machine.has_c:
        c[:] = 0
    return Batch("random", codes[0], codes[1], c)


def long(machine: Machine) -> Batch:
    """Long sums of large products."""
    made = random(machine, machine.depths[-1], 160, 10)
    rng = np.random.default_rng(13)
    near = rng.integers(0, 1 << 14, 160)
    c = np.where(rng.random(160) < 0.5, 2**31 - 1 - near, near - 2**31).astype(np.int32)
    kept = made.c.copy()
    kept[::2] = c[::2] if machine.has_c else 0
    return Batch("long", made.a, made.b, kept)


EVERY = (start, pairs, steps, edges, long)
