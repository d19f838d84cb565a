"""One row's sums of FP8 products that are cut to integers, each alone.

A product of two numbers of 4 bits has 8, exact in float32. Times a power of two that puts the last
kept bit at 1 it is made an integer of 32 bits, which cuts it toward zero: nothing is left to count.
For the 25 bits of `ir.double` and columns that `ir.fp8_codes.ByFields` reads.

Proof: ``tests/targets/test_fast_units.py`` and ``tests/kernels/test_hopper_rows.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from numsim.kernels.ir.fp8 import FIELD, MOST, lanes
from numsim.kernels.ir.fp8_codes import ByFields, Room, apart, together
from numsim.kernels.ir.simd import BIAS, I32, I64, broadcast, joined, loop, splat

_FAR = 2 * MOST + 3  # exponent from which on, beyond the fraction bits, no product has any bit


def shifts_to_cut(b: Any, fields: Any, fraction: Any, read: ByFields) -> list[Any]:
    """Return what to add to a row's value as integers, for each of four vectors of columns.

    Its product with what `read` reads is then one with so many bits before the point. Far binades
    are taken for one where no product has any, so that sums of exponents stay those of float32.
    """
    v, found = lanes(read.width), []
    words, most = b.bitcast(fields, v.words), b.add(fraction, splat(v.words, FIELD + _FAR))
    own = b.sub(b.bitcast(read.scale, v.words), splat(v.words, BIAS << 23))
    for i in range(4):
        field = b.and_(b.lshr(words, splat(v.words, 8 * i)), splat(v.words, 255))
        field = b.select(b.icmp_unsigned("<", field, most), field, most)
        up = b.add(fraction, b.sub(splat(v.words, FIELD), field))
        found.append(b.add(b.shl(up, splat(v.words, 23)), own))
    return found


def cut_and_added(
    b: Any, sums: list[Any], x: Any, values: list[Any], shifts: list[Any]
) -> list[Any]:
    """Return sums, in the order of `apart`, plus a row's value times those of columns, each cut."""
    v, found = lanes(values[0].type.count), []
    for total, y, shift in zip(sums, values, shifts, strict=True):
        term = b.fmul(b.bitcast(b.add(x, shift), v.floats), y)
        found.append(b.add(total, b.fptosi(term, v.words)))
    return found


def cut_in_double(
    b: Any, fields: Any, align: Any, pieces: Any, products: Callable[[Any], list[Any]],
    value: Callable[[Any], Any], room: Room,
) -> list[Any]:  # fmt: skip
    """Return a row's sums of products cut to `align` bits, at most 25, as float64.

    Vectors are of eight columns each; `fields`, words, are those of their binades. ``products(i)``,
    at most eight for i below `pieces`, are those of the group to add, and ``value(k)`` is a word
    with the row's. A product in units of the last kept bit is below 2**27: eight of them fit.
    """
    v, count = lanes(room.read.width), room.read.width // 2
    half, whole = ir.VectorType(ir.DoubleType(), count), ir.VectorType(I64, 2 * count)
    kind = ir.VectorType(I32, count)
    parts = [ir.Constant(kind, [count * i + n for n in range(count)]) for i in (0, 1)]
    fraction = broadcast(b, b.trunc(align, I32), v.words)
    shifts = apart(b, shifts_to_cut(b, fields, fraction, room.read))

    def some(i: Any, totals: list[Any]) -> list[Any]:
        sums = [ir.Constant(v.words, None)] * 4
        for k in products(i):
            x = broadcast(b, value(k), v.words)
            sums = cut_and_added(b, sums, x, room.singles_apart(k), shifts)
        new = [b.sitofp(b.shuffle_vector(x, x, at), half) for x in sums for at in parts]
        return [b.fadd(x, y) for x, y in zip(totals, new, strict=True)]

    totals = loop(b, pieces, [ir.Constant(half, None)] * 8, some)
    units = together(b, [joined(b, *totals[2 * q : 2 * q + 2]) for q in range(4)])
    found = []
    for q, unit in enumerate(units):
        field = b.and_(b.lshr(fields, splat(v.words, 8 * q)), splat(v.words, 255))
        power = b.zext(b.add(field, splat(v.words, 1023 - FIELD)), whole)
        power = b.shl(b.sub(power, broadcast(b, align, whole)), splat(whole, 52))
        unit = b.fmul(unit, b.bitcast(power, unit.type))  # exact
        for first in range(0, 2 * count, 8):
            at = ir.Constant(ir.VectorType(I32, 8), [first + n for n in range(8)])
            found.append(b.shuffle_vector(unit, unit, at))
    return found
