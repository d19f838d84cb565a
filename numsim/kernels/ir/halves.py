"""One row's sums of FP8 products that are cut to integers, each alone.

With AVX-512 FP16, for Hopper's rule, in float16 and integers of 16 bits. A product of two numbers
of E4M3 has 8 bits and is exact in float16. Times a power of two that puts the last kept bit at 1 it
is made an integer, which cuts it toward zero as the rule has it: nothing is left to count, and a
vector holds 32 columns. Where a column's largest exponent lies beyond what float16 can be scaled
by, `Halves.fits` says no and `ir.hopper` does the group. With AVX2, for 25 bits (`ir.double`) too,
they are float32 and 32 bits, for any 8 bits that `ir.fp8_codes.ByFields` reads.

Proof: ``tests/targets/test_fast_units.py`` and ``tests/kernels/test_halves.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from numsim.kernels.ir.fp8 import FIELD, FLOOR, MOST, RUN, V8, Lanes, lanes
from numsim.kernels.ir.fp8_codes import ByFields, Room, apart, together
from numsim.kernels.ir.simd import (
    BIAS,
    FRACTION,
    I32,
    I64,
    V16,
    V32,
    broadcast,
    joined,
    loop,
    splat,
)

UP = 6  # the row's values are so many powers of two larger; columns' are 2**8 smaller
ONE = 15  # the exponent field of 1
_SCALE = ONE + FRACTION + 8 - UP + FIELD  # less a binade's field: the field of its power of two
_LAST = _SCALE - 1  # of a binade whose power of two is a normal number
NEAR_ZERO = np.float32(2.0**-90)  # stands for a row's zero, which has no exponent to add to
_FAR = 2 * MOST + 3  # exponent from which on, beyond the fraction bits, no product has any bit
_HALF = ir.VectorType(ir.HalfType(), 32)


def _interleaved(b: Any, x: Any, y: Any, high: int) -> Any:
    """Return shorts of x and y in turn, as words, of either half of every 16 bytes."""
    at = [8 * lane + 4 * high + n for lane in range(4) for n in range(4)]
    order = ir.Constant(ir.VectorType(I32, 32), [m for n in at for m in (n, 32 + n)])
    return b.bitcast(b.shuffle_vector(x, y, order), V32)


def _all(b: Any, x: Any) -> Any:
    bits = ir.IntType(x.type.count)
    return b.icmp_unsigned("==", b.bitcast(x, bits), ir.Constant(bits, -1))


class Halves:
    """Emits the sums of a group, of 64 columns whose codes and fields stand in `ir.fp8.ORDER`.

    `row(run, k)` is a word with the row's value, twice; `codes(run, k)` are the columns' codes.
    """

    def __init__(
        self, b: Any, row: Callable[[Any, Any], Any], codes: Callable[[Any, Any], Any], usable: Any
    ) -> None:
        self.b, self.row, self.codes, self.usable = b, row, codes, usable
        kind = ir.FunctionType(V32, [V32] * 3)  # LLVM makes two of the instruction where it may
        self.dot2 = ir.InlineAsm(kind, "vpdpwssd $3, $2, $0", "=v,0,v,v", side_effect=False)

    def fits(self, fields: Any) -> Any:
        """Return whether all columns' binades can be scaled to, or have no product at all."""
        b, least = self.b, FIELD + FRACTION + 8 - UP - ONE
        inside = b.icmp_unsigned("<=", b.sub(fields, splat(V8, least)), splat(V8, _LAST - least))
        nothing = b.icmp_unsigned("<=", fields, splat(V8, FLOOR))
        return b.and_(self.usable, _all(b, b.or_(inside, nothing)))

    def _values(self, code: Any) -> list[Any]:
        """Return codes of E4M3 as float16 of 2**-8 of their values: the even ones, the odd ones."""
        b, kept = self.b, splat(V16, 0xBF80 - (1 << 16))
        code, one = b.bitcast(code, V16), splat(V16, 1)
        both = b.shl(code, splat(V16, 8)), code
        return [b.bitcast(b.and_(b.ashr(x, one), kept), _HALF) for x in both]

    def _scales(self, fields: Any) -> list[Any]:
        b, most = self.b, splat(V16, 2 * ONE)
        words, found = b.bitcast(fields, V16), []
        for field in (b.and_(words, splat(V16, 255)), b.lshr(words, splat(V16, 8))):
            e = b.sub(splat(V16, _SCALE), field)
            e = b.select(b.icmp_unsigned("<", e, most), e, most)
            found.append(b.bitcast(b.shl(e, splat(V16, 10)), _HALF))
        return found

    def _products(self, first: Any, runs: Any, fields: Any) -> list[Any]:
        """Return the sums of cut products, of each quarter of the columns."""
        b, unroll = self.b, 4
        scales, ones = self._scales(fields), b.bitcast(splat(V16, 1), V32)

        def terms(at: Any, k: Any) -> list[Any]:
            x = b.bitcast(broadcast(b, self.row(at, k), V32), _HALF)
            found = []
            for y, scale in zip(self._values(self.codes(at, k)), scales, strict=True):
                found.append(b.fptosi(b.fmul(b.fmul(x, y), scale), V16))
            return found

        def run(p: Any, carried: list[Any]) -> Any:
            at = b.add(first, p)

            def some(i: Any, sums: list[Any]) -> list[Any]:
                for u in range(0, unroll, 2):
                    k = b.add(b.mul(i, ir.Constant(I64, unroll)), ir.Constant(I64, u))
                    pairs = zip(terms(at, k), terms(at, b.add(k, ir.Constant(I64, 1))), strict=True)
                    both = [_interleaved(b, *pair, high) for pair in pairs for high in (0, 1)]
                    sums = [
                        b.call(self.dot2, [total, x, ones])
                        for total, x in zip(sums, both, strict=True)
                    ]
                return sums

            return loop(b, ir.Constant(I64, RUN // unroll), carried, some)

        low_even, high_even, low_odd, high_odd = loop(b, runs, [ir.Constant(V32, None)] * 4, run)
        found = []
        for second in (0, 1):
            at = [4 * lane + 16 * n + second + 2 * m
                  for lane in range(4) for n in range(2) for m in range(2)]  # fmt: skip
            pairs = (low_even, high_even), (low_odd, high_odd)
            found += [b.shuffle_vector(*pair, ir.Constant(V32, at)) for pair in pairs]
        return found

    def group(self, first: Any, runs: Any, fields: Any, acc: list[Any]) -> list[Any]:
        """Return what four accumulators become by `runs` runs of products from `first` on."""
        return _added(self.b, lanes(16), fields, self._products(first, runs, fields), acc)


class Cuts:
    """The same with AVX2, in float32 and integers of 32 bits, whatever the binades.

    `row(run, k)` is a word with the row's value, `NEAR_ZERO` for 0; `room` has the group's columns.
    """

    def __init__(self, b: Any, row: Callable[[Any, Any], Any], room: Room) -> None:
        self.b, self.row, self.room = b, row, room

    def group(self, first: Any, runs: Any, fields: Any, acc: list[Any]) -> list[Any]:
        """Return what four accumulators become by `runs` runs of products from `first` on."""
        b, unroll, v = self.b, 8, lanes(8)
        shifts = apart(b, shifts_to_cut(b, fields, splat(v.words, FRACTION), self.room.read))

        def run(p: Any, carried: list[Any]) -> Any:
            at = b.add(first, p)

            def some(i: Any, sums: list[Any]) -> list[Any]:
                for u in range(unroll):
                    k = b.add(b.mul(i, ir.Constant(I64, unroll)), ir.Constant(I64, u))
                    x = broadcast(b, self.row(at, k), v.words)
                    place = b.add(b.mul(p, ir.Constant(I64, RUN)), k)
                    sums = cut_and_added(b, sums, x, self.room.singles_apart(place), shifts)
                return sums

            return loop(b, ir.Constant(I64, RUN // unroll), carried, some)

        sums = loop(b, runs, [ir.Constant(v.words, None)] * 4, run)
        return _added(b, v, fields, together(b, sums), acc)


def shifts_to_cut(b: Any, fields: Any, fraction: Any, read: ByFields) -> list[Any]:
    """Return what to add to a row's value as integers, for each of four vectors of columns.

    Its product with what `read` reads is then one with so many bits before the point. Far binades
    are taken for one where no product has any, so that sums of exponents stay those of float32.
    """
    v, found = lanes(8), []
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
    v, found = lanes(8), []
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
    v, half, whole = lanes(8), ir.VectorType(ir.DoubleType(), 4), ir.VectorType(I64, 8)
    parts = [ir.Constant(ir.VectorType(I32, 4), [4 * i + n for n in range(4)]) for i in (0, 1)]
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
        found.append(b.fmul(unit, b.bitcast(power, unit.type)))  # exact
    return found


def _added(b: Any, v: Lanes, fields: Any, totals: list[Any], acc: list[Any]) -> list[Any]:
    """Return accumulators plus totals, of vectors of columns in turn, cut as the rule has it."""
    words, found = b.bitcast(fields, v.words), []
    place, kept = splat(v.words, 23), splat(v.words, -(1 << (23 - FRACTION)))
    for i, (total, value) in enumerate(zip(totals, acc, strict=True)):
        field = b.and_(b.lshr(words, splat(v.words, 8 * i)), splat(v.words, 255))
        up = b.shl(b.sub(splat(v.words, BIAS + FIELD + FRACTION), field), place)
        down = b.shl(b.sub(field, splat(v.words, FIELD + FRACTION - BIAS)), place)
        cut = b.fptosi(b.fmul(value, b.bitcast(up, v.floats)), v.words)
        result = b.fmul(b.sitofp(b.add(total, cut), v.floats), b.bitcast(down, v.floats))  # exact
        found.append(b.bitcast(b.and_(b.bitcast(result, v.words), kept), v.floats))
    return found
