"""The vector micro-kernel of units that keep up to 25 fraction bits of FP8 products.

With AVX2, or twice as wide with AVX-512. As in Hopper's (`ir.hopper`), fused multiply-adds into the
middle of a binade whose last place is the last kept bit cut toward minus infinity while the thread
cuts toward zero, and a count of negative products makes it toward zero: of all, where values of
rows are larger in size by their last place, or for few rows of those that lose something. Here the
binades are those of float64, and the accumulator is added after the products: with block scales its
exponent is beyond every byte.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numsim.kernels.ir.control import toward_zero
from numsim.kernels.ir.double_planes import (
    A_REST,
    A_STEP,
    BASE,
    BELOW,
    SINGLE,
    Coded,
    Planes,
    b_words,
)
from numsim.kernels.ir.fp8 import (
    EIGHT,
    FIELD,
    FLOOR,
    I8,
    LOWEST,
    PLACES,
    TURN,
    bottom,
    declared,
    halves,
    lanes,
    top,
)
from numsim.kernels.ir.halves import cut_in_double
from numsim.kernels.ir.hopper import exponents_of
from numsim.kernels.ir.simd import (
    I16,
    I32,
    I64,
    Tile,
    broadcast,
    emitted,
    loop,
    maximum,
    splat,
)

ROWS, UNROLL = 2, 8
NOTHING, FAR = -4096, 200  # stands for no exponent; products are cut to nothing from FAR on
MOST_BITS = 25  # to align to: below FAR the largest product reaches the last of them
_LOST = 6  # fraction bits of a product of two significands, at most
# Without scales; with those, where all is a normal number of float32, with room; or anything
PLAIN, NORMAL, ANY = range(3)

_V32, _VF = ir.VectorType(I32, 8), ir.VectorType(ir.FloatType(), 8)
_VD, _VL = ir.VectorType(ir.DoubleType(), 8), ir.VectorType(I64, 8)


def _emit(b: Any, tile: Tile, read: Any, how: int, rows: int, rule: Any) -> None:
    """Emit one call; `read` (`Planes` or `Coded`) says what the columns are.

    `how` is the kind of `double_tile`.
    """
    lines, group, a_step, align, least = rule
    a, out = tile.a, tile.out
    width = read.width
    quarter = width // 4  # words
    together = width // 8 // rows  # vectors of a row summed in registers
    v = lanes(quarter)
    vb, words, shorts = v.bytes, v.words, ir.VectorType(I16, width // 2)
    fma = declared(b, "llvm.fma.v8f64", _VD, _VD, _VD, _VD)
    less = declared(b, f"llvm.usub.sat.v{width}i8", vb, vb, vb)
    ones = declared(b, f"llvm.ctpop.v{width}i8", vb, vb)
    size_of = declared(b, "llvm.fabs.v8f64", _VD, _VD)
    sign_bit = splat(_VL, -(1 << 63))
    floor = broadcast(b, b.trunc(b.add(least, ir.Constant(I64, FIELD)), I32), words)
    short_from = b.add(align, ir.Constant(I64, FIELD - 2 * LOWEST))
    short_from = broadcast(b, b.trunc(short_from, I8), vb)
    cuts = read.by_fields is not None  # each product alone, to an integer
    looks = isinstance(read, Coded) and not cuts  # whether anything is lost, before it counts
    may_lose = b.add(align, ir.Constant(I64, FLOOR - _LOST))
    may_lose = broadcast(b, b.trunc(may_lose, I8), vb)
    middle = b.sub(ir.Constant(I64, 1023 + 52 - FIELD), align)
    middle = b.add(b.shl(middle, ir.Constant(I64, 52)), ir.Constant(I64, 1 << 51))
    middle = broadcast(b, middle, _VL)
    one, floors = splat(vb, 1), splat(vb, FLOOR)
    if width == 64:  # see `ir.hopper`
        kind = ir.FunctionType(vb, [vb])
        one = b.call(ir.InlineAsm(kind, "", "=v,0", side_effect=False), [one])
    a_group = b.add(b.mul(group, ir.Constant(I64, A_STEP)), ir.Constant(I64, A_REST))
    make: Any = cgutils.alloca_once
    fields, counts, stays = (make(b, ir.ArrayType(I8, rows * width)) for _ in range(3))
    pieces = b.sdiv(group, ir.Constant(I64, UNROLL))

    def left(first: Any, k: Any, word: int, r: int) -> Any:
        at = b.add(b.add(first, b.mul(k, ir.Constant(I64, A_STEP))), ir.Constant(I64, word))
        return b.gep(tile.a, [b.add(at, b.mul(a_step, ir.Constant(I64, r)))])

    def as_bytes(pointer: Any) -> Any:
        return b.bitcast(broadcast(b, b.load(pointer), words), vb)

    def double(pointer: Any) -> Any:
        value = b.load(b.bitcast(pointer, ir.DoubleType().as_pointer()), align=4)
        return broadcast(b, value, _VD)

    def over(carried: list[Any], body: Any) -> Any:
        def some(i: Any, carried: list[Any]) -> list[Any]:
            for u in range(UNROLL):
                carried = body(tile.index(i, UNROLL, u), carried)
            return carried

        return loop(b, pieces, carried, some)

    def outputs(r: int, column: int, vector: Any) -> Any:
        at = b.add(b.mul(tile.stride, ir.Constant(I64, r)), ir.Constant(I64, column))
        return b.bitcast(b.gep(tile.out, [at]), vector.as_pointer())

    def keep(array: Any, r: int, value: Any) -> None:
        at = b.gep(array, [ir.Constant(I32, 0), ir.Constant(I32, width * r)])
        b.store(value, b.bitcast(at, vb.as_pointer()), align=1)

    def kept(array: Any, r: int, q: int) -> Any:
        """Return the words, as int64, whose byte `8 q // quarter` is of eight columns."""
        at = b.gep(array, [ir.Constant(I32, 0), ir.Constant(I32, width * r + 32 * q % width)])
        return b.zext(b.load(b.bitcast(at, _V32.as_pointer()), align=1), _VL)

    def own_words(row: Any, panel: Any, r: int, values: list[Any]) -> Any:
        power = broadcast(b, b.load(left(row, group, 0, r)), words)
        found = ir.Constant(words, None)
        for j, x in enumerate(values):
            field = b.and_(b.lshr(b.bitcast(x, words), splat(words, 23)), splat(words, 255))
            e = b.add(maximum(b, field, splat(words, 1)), splat(words, FIELD - 127))
            zero = b.fcmp_ordered("==", x, splat(v.floats, 0.0))
            e = maximum(b, b.select(zero, splat(words, NOTHING), e), floor)
            e = b.sub(e, b.add(power, read.scale_exponents(panel, j)))
            most = splat(words, FAR + 1)
            e = b.select(b.icmp_signed("<", e, most), e, most)
            e = maximum(b, e, splat(words, 0))
            found = b.or_(found, b.shl(e, splat(words, 8 * j)))
        return b.bitcast(found, vb)

    def own_shorts(row: Any, panel: Any, r: int, values: list[Any]) -> Any:
        power = b.sub(ir.Constant(I32, FIELD - 127), b.load(left(row, group, 0, r)))
        power = broadcast(b, b.trunc(power, I16), shorts)
        away, found = splat(words, 16), []
        for i in range(2):
            low, high = (b.bitcast(values[j], words) for j in (i, i + 2))
            pair = b.bitcast(halves(b, high, b.lshr(low, away), 0xFFFF0000), shorts)
            field = b.lshr(b.shl(pair, splat(shorts, 1)), splat(shorts, 8))
            low, high = (read.scale_exponents(panel, j) for j in (i, i + 2))
            column = b.bitcast(halves(b, b.shl(high, away), low, 0xFFFF0000), shorts)
            e = b.add(field, b.sub(power, column))  # below all products, if subnormal
            most = splat(shorts, FAR + 1)
            e = maximum(b, b.select(b.icmp_signed("<", e, most), e, most), splat(shorts, 0))
            found.append(b.bitcast(e, words))
        return b.bitcast(b.or_(found[0], b.shl(found[1], splat(words, 8))), vb)

    def own_fields(row: Any, panel: Any, r: int) -> Any:
        """Return bytes for the exponents of accumulators, beside those of products."""
        values = [b.load(outputs(r, quarter * j, v.floats), align=4) for j in range(4)]
        if how == PLAIN:
            return b.add(exponents_of(b, v, values), splat(vb, FIELD - 127))
        return (own_shorts if how == NORMAL else own_words)(row, panel, r, values)

    def step(g: Any, carried: list[Any]) -> list[Any]:
        row, panel = b.mul(g, a_group), read.start(g)

        def peak(k: Any, found: list[Any]) -> list[Any]:
            e = read.exponents(panel, k)
            both = [b.add(as_bytes(left(row, k, 0, r)), e) for r in range(rows)]
            tops = [top(b, *each) for each in zip(both, found[:rows], strict=True)]
            # those of zero factors are below the floor, and wrap
            return [*tops, *(bottom(b, least, b.sub(both[0], floors)) for least in found[rows:])]

        found = over([*[splat(vb, 0)] * rows, *[splat(vb, -1)] * looks], peak) if not cuts else [
            quick_peak(row, panel, peak)
        ]  # fmt: skip
        peaks, tops = found[:rows], []
        limits = []
        for r in range(rows):
            own = own_fields(row, panel, r)
            field = top(b, top(b, peaks[r], own), floors)
            tops.append(field)
            keep(fields, r, field)
            if how != PLAIN:
                none = b.icmp_unsigned("<=", peaks[r], floors)
                far = b.icmp_unsigned(">", own, splat(vb, FAR))
                keep(stays, r, b.sext(b.or_(none, far), vb))
            if looks:
                limit = bottom(b, b.call(less, [field, short_from]), splat(vb, PLACES))
                limits.append(b.xor(limit, splat(vb, TURN)))

        def count(k: Any, counts: list[Any]) -> list[Any]:
            column, new = read.lowest(panel, k), []
            for r in range(rows):
                short = b.icmp_signed("<", b.add(as_bytes(left(row, k, 1, r)), column), limits[r])
                new.append(b.select(short, b.add(counts[r], one), counts[r]))
            return new

        def signs(i: Any, counts: list[Any]) -> list[Any]:
            k = b.mul(i, ir.Constant(I64, EIGHT))
            column = read.lowest(panel, k)
            unlike = [b.xor(as_bytes(left(row, k, 1, r)), column) for r in range(rows)]
            return [b.add(n, b.call(ones, [x])) for n, x in zip(counts, unlike, strict=True)]

        def count_all() -> None:
            start = [splat(vb, 0)] * rows
            found = over(start, count) if looks else loop(b, pieces, start, signs)
            for r, value in enumerate(found):
                keep(counts, r, value)

        if cuts:
            for q, units in enumerate(cut_products(row)):
                finish(row, panel, 0, q, units, binade(0, q))
            return carried
        if looks:
            short = b.icmp_unsigned("<", found[-1], b.call(less, [tops[0], may_lose]))
            some = b.icmp_unsigned(
                "!=", b.bitcast(short, ir.IntType(width)), ir.Constant(ir.IntType(width), 0)
            )
            keep(counts, 0, splat(vb, 0))
            with b.if_then(some):
                count_all()
        else:
            count_all()

        for first in range(0, width // 8, together):
            places = [(r, q) for r in range(rows) for q in range(first, first + together)]

            def add(k: Any, sums: list[Any], places: Any = places, first: int = first) -> Any:
                values = read.values(panel, k, range(first, first + together))
                xs = [double(left(row, k, 2, r)) for r in range(rows)]
                return [
                    b.call(fma, [xs[r], values[q - first], total])
                    for (r, q), total in zip(places, sums, strict=True)
                ]

            binades = [binade(r, q) for r, q in places]
            sums = over(binades, add)
            for (r, q), total, begin in zip(places, sums, binades, strict=True):
                byte = 8 * (8 * q // quarter)
                lost = b.and_(b.lshr(kept(counts, r, q), splat(_VL, byte)), splat(_VL, 255))
                whole = b.bitcast(b.add(b.bitcast(total, _VL), lost), _VD)
                finish(row, panel, r, q, b.fsub(whole, begin), begin)  # exact
        return carried

    def quick_peak(row: Any, panel: Any, peak: Any) -> Any:
        """Return the largest exponents of a row's products, by `ir.peaks`."""

        def quick(k: Any, peaks: list[Any]) -> list[Any]:
            code = read.asked(panel, k)
            read.room.keep(k, code)
            below = read.tops.bytes_of(b.load(left(row, k, BELOW, 0)))
            return list(read.tops.body(code, [below], peaks))

        base = read.tops.bytes_of(b.load(left(row, group, BASE, 0)))
        (found,) = read.tops.fields(over([splat(vb, 0)], quick), [base], [floors])
        doubt, before = read.tops.doubtful([found], [top(b, base, floors)]), b.block
        with b.if_then(doubt):
            (exact,), inside = over([splat(vb, 0)], peak), b.block
        chosen = b.phi(vb)
        chosen.add_incoming(found, before)
        chosen.add_incoming(exact, inside)
        return chosen

    def found_fields() -> Any:
        at = b.gep(fields, [ir.Constant(I32, 0), ir.Constant(I32, 0)])
        return b.load(b.bitcast(at, words.as_pointer()), align=1)

    def cut_products(row: Any) -> list[Any]:
        """Return the sums of a row's products, cut to integers, as float64."""

        def products(i: Any) -> list[Any]:
            return [tile.index(i, UNROLL, u) for u in range(UNROLL)]

        def value(k: Any) -> Any:
            return b.load(left(row, k, SINGLE, 0))

        return cut_in_double(b, found_fields(), align, pieces, products, value, read.room)

    def binade(r: int, q: int) -> Any:
        away = 52 - 8 * (8 * q // quarter)
        e = b.and_(b.shl(kept(fields, r, q), splat(_VL, away)), splat(_VL, 255 << 52))
        return b.bitcast(b.add(e, middle), _VD)

    def finish(row: Any, panel: Any, r: int, q: int, units: Any, begin: Any) -> None:
        """Add the cut accumulators to a group's sums and write what float32 keeps of them."""
        byte = 8 * (8 * q // quarter)
        place = outputs(r, 8 * q, _VF)
        x = b.load(place, align=4)
        wide, own = b.fpext(x, _VD), begin
        if how != PLAIN:
            scale = double(left(row, group, 2, r))
            powers = b.fmul(scale, read.powers(panel, q))
            own = b.fmul(begin, powers)
        same = b.or_(b.bitcast(own, _VL), b.and_(b.bitcast(wide, _VL), sign_bit))
        same = b.bitcast(same, _VD)
        cut = b.fsub(b.fadd(same, wide), same)
        if how == PLAIN:
            b.store(b.fptrunc(b.fadd(units, cut), _VF), place, align=4)
            return
        value = b.call(fma, [units, powers, cut])  # exact
        result = b.fptrunc(value, _VF)
        if how == ANY:
            sign = b.and_(b.bitcast(result, _V32), splat(_V32, -(1 << 31)))
            infinite = b.bitcast(b.or_(sign, splat(_V32, 0x7F800000)), _VF)
            beyond = b.fcmp_ordered(">=", b.call(size_of, [value]), splat(_VD, 2.0**128))
            result = b.select(beyond, infinite, result)
            result = b.fadd(result, splat(_VF, 0.0))  # zeros are positive
        stay = b.and_(kept(stays, r, q), splat(_VL, 255 << byte))
        stay = b.icmp_signed("!=", stay, splat(_VL, 0))
        b.store(b.select(stay, x, result), place, align=4)

    def line(r: Any, carried: list[Any]) -> list[Any]:
        tile.a = b.gep(a, [b.mul(r, b.mul(a_step, ir.Constant(I64, rows)))])
        tile.out = b.gep(out, [b.mul(tile.index(r, rows, 0), tile.stride)])
        tile.ask(out, r, rows, width)
        loop(b, tile.steps, [], step)
        return carried

    with toward_zero(b):
        loop(b, lines, [], line)


@emitted
def double_tile(
    typing: Any, columns: Any, kind: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any,
    out_at: Any, stride: Any, steps: Any, lines: Any, group: Any, a_step: Any, align: Any,
    least: Any,
) -> Any:  # fmt: skip
    """Chain `steps` groups of products onto out[r, :] of `ROWS` times `lines` rows.

    Rows are `a_step` words apart in a. Terms are cut to `align` fraction bits below the largest
    exponent, which is at least `least` (in `ANY`). `group`: products, a multiple of 8. `kind`:
    what scales there are and how large numbers become.
    """
    if not (isinstance(columns, types.IntegerLiteral) and isinstance(kind, types.IntegerLiteral)):
        return None
    width, how = columns.literal_value, kind.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args[:-5], args[:-5], 1, _VF)
        group, (product, rest) = args[-4], b_words(width)
        step = b.add(b.mul(group, ir.Constant(I64, product)), ir.Constant(I64, rest))
        read = Planes(b, tile.panel, width, group, step)
        _emit(b, tile, read, how, ROWS, args[-5:])
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(columns, kind, a, i64, b, i64, out, *(i64,) * 8), codegen


@emitted
def double_row(
    typing: Any, columns: Any, kind: Any, codes: Any, scales: Any, scales_at: Any, a: Any,
    a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any, stride: Any, steps: Any, lines: Any,
    group: Any, a_step: Any, align: Any, least: Any,
) -> Any:  # fmt: skip
    """Do `double_tile` row by row, for codes as they are packed.

    `codes` says how they are read, and `scales` what the exponents of their scales are, as in
    `ir.double_planes.Coded`.
    """
    if not (isinstance(columns, types.IntegerLiteral) and isinstance(kind, types.IntegerLiteral)):
        return None
    width, how = columns.literal_value, kind.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args[:-5], args[:-5], 1, _VF)
        first = tile.pointer(context, sig.args[3], args[3], args[4])
        read = Coded(context, b, width, sig.args[2], args[2], tile.panel, first, args[-4])
        _emit(b, tile, read, how, 1, args[-5:])
        return context.get_dummy_value()

    i64 = types.int64
    arguments = columns, kind, codes, scales, i64, a, i64, b, i64, out, *(i64,) * 8
    return types.void(*arguments), codegen
