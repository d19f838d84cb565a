"""The vector micro-kernel of units that keep up to 25 fraction bits of FP8 products, for AVX2.

As in Hopper's (`ir.hopper`), fused multiply-adds into the middle of a binade whose last place is
the last kept bit cut toward minus infinity while the thread cuts toward zero; a count of negative
products that lose something makes it toward zero. Here the binades are those of float64, and the
accumulator is added after the products: with block scales its exponent is beyond every byte.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from numsim.kernels.ir.control import toward_zero
from numsim.kernels.ir.fp8 import (
    FIELD,
    FLOOR,
    I8,
    LEFT,
    LOWEST,
    NO_LEFT,
    NO_RIGHT,
    PLACES,
    RIGHT,
    SIGN,
    TURN,
    bottom,
    declared,
    half_reader,
    lanes,
    planes_reader,
    top,
)
from numsim.kernels.ir.simd import (
    I32,
    I64,
    Tile,
    broadcast,
    emitted,
    loop,
    maximum,
    pointer_at,
    splat,
    vectors_of,
)

ROWS, COLUMNS, UNROLL = 2, 32, 8
A_STEP, A_REST = 4, 4  # words of a product: exponent, lowest bit, value; of a group: its scale
B_STEP, B_REST = 80, 96  # words of a product's columns, and of a group's: exponents, powers
NOTHING, FAR = -4096, 200  # stands for no exponent; products are cut to nothing from FAR on
MOST_BITS = 25  # to align to: below FAR the largest product reaches the last of them

_VB = ir.VectorType(I8, 32)
_V32, _VF = ir.VectorType(I32, 8), ir.VectorType(ir.FloatType(), 8)
_VD, _VL = ir.VectorType(ir.DoubleType(), 8), ir.VectorType(I64, 8)


def _joined(b: Any, parts: list[Any]) -> Any:
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        count = 2 * parts[0].type.count
        order = ir.Constant(ir.VectorType(I32, count), [*range(count)])
        parts = [b.shuffle_vector(x, y, order) for x, y in pairs]
    return parts[0]


@emitted
def right_double(typing: Any, codes: Any, count: Any, planes: Any, fields: Any) -> Any:
    """Write the exponents, lowest bits and float64 values of `count` k of 32 columns.

    `fields` is `gemm_codes.Fields`, of formats that `ir.fp8.half_reader` reads.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], _VB)
        target = pointer_at(context, b, sig.args[2], args[2], ir.Constant(I64, 0))
        v = lanes(8)
        bytes_of, _ = planes_reader(b, v, args[3], RIGHT, LOWEST - SIGN, NO_RIGHT)
        halves_of = half_reader(b, v, args[3], double=True)
        wide = ir.VectorType(I64, 16)

        def step(k: Any, carried: list[Any]) -> list[Any]:
            code = b.load(b.gep(source, [k]), align=1)
            first = b.gep(target, [b.mul(k, ir.Constant(I64, B_STEP))])

            def put(word: int, value: Any) -> None:
                at = b.bitcast(b.gep(first, [ir.Constant(I64, word)]), value.type.as_pointer())
                b.store(value, at, align=4)

            for i, plane in enumerate(bytes_of(b.bitcast(code, v.words))):
                put(8 * i, plane)
            for half in range(2):
                order = [16 * half + n // 2 for n in range(32)]
                twice = b.shuffle_vector(code, code, ir.Constant(ir.VectorType(I32, 32), order))
                values = b.shl(b.zext(halves_of(twice), wide), splat(wide, 48))
                put(16 + 32 * half, values)
            return carried

        loop(b, args[1], [], step)
        return context.get_dummy_value()

    return types.void(codes, types.int64, planes, fields), codegen


@emitted
def left_double(typing: Any, codes: Any, runs: Any, planes: Any, fields: Any) -> Any:
    """Write the exponents, lowest bits and float64 values of `runs` runs of 8 k of a row.

    `fields`: as in `right_double`.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], ir.VectorType(I8, 8))
        target = pointer_at(context, b, sig.args[2], args[2], ir.Constant(I64, 0))
        v = lanes(8)
        more = TURN[8]
        bytes_of, _ = planes_reader(b, v, args[3], LEFT, LOWEST + more, NO_LEFT + more & 255)
        halves_of = half_reader(b, v, args[3], double=True)

        def run(i: Any, carried: list[Any]) -> list[Any]:
            code = b.load(b.gep(source, [i]), align=1)
            four = ir.Constant(ir.VectorType(I32, 32), [n // 4 for n in range(32)])
            words = b.shuffle_vector(code, code, four)
            twice = ir.Constant(ir.VectorType(I32, 32), [n // 2 % 8 for n in range(32)])
            high = b.bitcast(halves_of(b.shuffle_vector(code, code, twice)), lanes(8).words)
            high = b.bitcast(high, ir.VectorType(ir.IntType(16), 16))
            first = ir.Constant(ir.VectorType(I32, 8), [*range(8)])
            values = b.zext(b.shuffle_vector(high, high, first), _VL)
            values = b.shl(values, splat(_VL, 48))
            places = [b.zext(b.bitcast(x, _V32), _VL) for x in bytes_of(b.bitcast(words, v.words))]
            heads = b.or_(places[0], b.shl(places[1], splat(_VL, 32)))
            order = ir.Constant(ir.VectorType(I32, 16), [n // 2 + 8 * (n % 2) for n in range(16)])
            at = b.gep(target, [b.mul(i, ir.Constant(I64, 8 * A_STEP))])
            whole = b.shuffle_vector(heads, values, order)
            b.store(whole, b.bitcast(at, whole.type.as_pointer()), align=4)
            return carried

        loop(b, args[1], [], run)
        return context.get_dummy_value()

    return types.void(codes, types.int64, planes, fields), codegen


@emitted
def double_tile(
    typing: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any, stride: Any,
    steps: Any, lines: Any, group: Any, a_step: Any, align: Any, least: Any,
    bounded: Any,
) -> Any:  # fmt: skip
    """Chain `steps` groups of products onto out[r, :] of `ROWS` times `lines` rows.

    Rows are `a_step` words apart in a.

    Terms are cut to `align` fraction bits below the largest exponent, which is at least `least`.
    `group`: products, a multiple of 8. `bounded`: not 0 where no sum can leave float32.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args[:-6], args[:-6], 1, _VF)
        lines, group, a_step, align, least, bounded = args[-6:]
        bounded = b.icmp_signed("!=", bounded, ir.Constant(I64, 0))
        a, out = tile.a, tile.out
        fma = declared(b, "llvm.fma.v8f64", _VD, _VD, _VD, _VD)
        less = declared(b, "llvm.usub.sat.v32i8", _VB, _VB, _VB)
        size_of = declared(b, "llvm.fabs.v8f64", _VD, _VD)
        sign_bit = splat(_VL, -(1 << 63))
        floor = broadcast(b, b.trunc(b.add(least, ir.Constant(I64, FIELD)), I32), _V32)
        short_from = b.add(align, ir.Constant(I64, FIELD - 2 * LOWEST))
        short_from = broadcast(b, b.trunc(short_from, I8), _VB)
        rebias = broadcast(b, b.sub(ir.Constant(I64, 1023 + 52 - FIELD), align), _VL)
        one, floors = splat(_VB, 1), splat(_VB, FLOOR)
        b_group = b.add(b.mul(group, ir.Constant(I64, B_STEP)), ir.Constant(I64, B_REST))
        a_group = b.add(b.mul(group, ir.Constant(I64, A_STEP)), ir.Constant(I64, A_REST))
        make: Any = cgutils.alloca_once
        fields, counts, stays = (make(b, ir.ArrayType(I8, ROWS * COLUMNS)) for _ in range(3))
        pieces = b.sdiv(group, ir.Constant(I64, UNROLL))

        def left(first: Any, k: Any, word: int, r: int) -> Any:
            at = b.add(b.add(first, b.mul(k, ir.Constant(I64, A_STEP))), ir.Constant(I64, word))
            return b.gep(tile.a, [b.add(at, b.mul(a_step, ir.Constant(I64, r)))])

        def right(first: Any, k: Any, word: int, vector: Any) -> Any:
            at = b.add(b.add(first, b.mul(k, ir.Constant(I64, B_STEP))), ir.Constant(I64, word))
            at = b.bitcast(b.gep(tile.panel, [at]), vector.as_pointer())
            return b.load(at, align=4)

        def as_bytes(pointer: Any) -> Any:
            return b.bitcast(broadcast(b, b.load(pointer), _V32), _VB)

        def double(pointer: Any) -> Any:
            value = b.load(b.bitcast(pointer, ir.DoubleType().as_pointer()), align=4)
            return broadcast(b, value, _VD)

        def over(carried: list[Any], body: Any) -> Any:
            def some(i: Any, carried: list[Any]) -> list[Any]:
                for u in range(UNROLL):
                    carried = body(tile.index(i, UNROLL, u), carried)
                return carried

            return loop(b, pieces, carried, some)

        def outputs(r: int, column: Any) -> Any:
            at = b.add(b.mul(tile.stride, ir.Constant(I64, r)), column)
            return b.bitcast(b.gep(tile.out, [at]), _VF.as_pointer())

        def bytes_at(array: Any, r: int, column: Any) -> Any:
            return b.gep(array, [ir.Constant(I32, 0), b.add(column, ir.Constant(I64, 32 * r))])

        def eight(array: Any, r: int, column: Any) -> Any:
            at = b.bitcast(bytes_at(array, r, column), ir.VectorType(I8, 8).as_pointer())
            return b.load(at, align=1)

        def keep(array: Any, r: int, value: Any) -> None:
            at = bytes_at(array, r, ir.Constant(I64, 0))
            b.store(value, b.bitcast(at, _VB.as_pointer()), align=1)

        def own_fields(row: Any, panel: Any, r: int) -> Any:
            """Return bytes for the exponents of accumulators, beside those of products."""
            power = broadcast(b, b.load(left(row, group, 0, r)), _V32)
            found = []
            for j in range(4):
                x = b.load(outputs(r, ir.Constant(I64, 8 * j)), align=4)
                field = b.and_(b.lshr(b.bitcast(x, _V32), splat(_V32, 23)), splat(_V32, 255))
                e = b.add(maximum(b, field, splat(_V32, 1)), splat(_V32, FIELD - 127))
                zero = b.fcmp_ordered("==", x, splat(_VF, 0.0))
                e = maximum(b, b.select(zero, splat(_V32, NOTHING), e), floor)
                e = b.sub(e, b.add(power, right(panel, group, 8 * j, _V32)))
                most = splat(_V32, FAR + 1)
                e = b.select(b.icmp_signed("<", e, most), e, most)
                found.append(maximum(b, e, splat(_V32, 0)))
            return b.trunc(_joined(b, found), _VB)

        def step(g: Any, carried: list[Any]) -> list[Any]:
            row, panel = b.mul(g, a_group), b.mul(g, b_group)

            def peak(k: Any, tops: list[Any]) -> list[Any]:
                e = right(panel, k, 0, _VB)
                return [
                    top(b, t, b.add(as_bytes(left(row, k, 0, r)), e)) for r, t in enumerate(tops)
                ]

            peaks = over([splat(_VB, 0)] * ROWS, peak)
            limits = []
            for r in range(ROWS):
                own = own_fields(row, panel, r)
                field = top(b, top(b, peaks[r], own), floors)
                keep(fields, r, field)
                none = b.icmp_unsigned("<=", peaks[r], floors)
                far = b.icmp_unsigned(">", own, splat(_VB, FAR))
                keep(stays, r, b.sext(b.or_(none, far), _VB))
                limit = bottom(b, b.call(less, [field, short_from]), splat(_VB, PLACES))
                limits.append(b.xor(limit, splat(_VB, TURN[8])))

            def count(k: Any, counts: list[Any]) -> list[Any]:
                column, new = right(panel, k, 8, _VB), []
                for r in range(ROWS):
                    short = b.icmp_signed(
                        "<", b.add(as_bytes(left(row, k, 1, r)), column), limits[r]
                    )
                    new.append(b.select(short, b.add(counts[r], one), counts[r]))
                return new

            for r, value in enumerate(over([splat(_VB, 0)] * ROWS, count)):
                keep(counts, r, value)

            def half(h: Any, carried: list[Any]) -> list[Any]:
                first = b.mul(h, ir.Constant(I64, COLUMNS // 2))
                columns = [b.add(first, ir.Constant(I64, 8 * j)) for j in range(2)]
                place = b.add(panel, b.mul(h, ir.Constant(I64, COLUMNS)))  # of float64: two words
                places = [(r, j) for r in range(ROWS) for j in range(2)]

                def binade(r: int, j: int) -> Any:
                    e = b.add(b.zext(eight(fields, r, columns[j]), _VL), rebias)
                    e = b.shl(e, splat(_VL, 52))
                    return b.bitcast(b.or_(e, splat(_VL, 1 << 51)), _VD)

                def add(k: Any, sums: list[Any]) -> list[Any]:
                    values = [right(place, k, 16 + 16 * j, _VD) for j in range(2)]
                    xs = [double(left(row, k, 2, r)) for r in range(ROWS)]
                    return [
                        b.call(fma, [xs[r], values[j], total])
                        for (r, j), total in zip(places, sums, strict=True)
                    ]

                sums = over([binade(r, j) for r, j in places], add)
                for (r, j), total in zip(places, sums, strict=True):
                    scale = double(left(row, group, 2, r))
                    powers = b.fmul(scale, right(place, group, 32 + 16 * j, _VD))
                    finish(r, columns[j], total, binade(r, j), powers)
                return carried

            loop(b, ir.Constant(I64, 2), [], half)
            return carried

        def finish(r: int, column: Any, total: Any, binade: Any, powers: Any) -> None:
            """Add the cut accumulators to a group's sums and write what float32 keeps of them."""
            lost = b.zext(eight(counts, r, column), _VL)
            units = b.fsub(b.bitcast(b.add(b.bitcast(total, _VL), lost), _VD), binade)  # exact
            place = outputs(r, column)
            x = b.load(place, align=4)
            wide = b.fpext(x, _VD)
            same = b.or_(
                b.bitcast(b.fmul(binade, powers), _VL), b.and_(b.bitcast(wide, _VL), sign_bit)
            )
            same = b.bitcast(same, _VD)
            cut = b.fsub(b.fadd(same, wide), same)
            value = b.fadd(b.fmul(units, powers), cut)  # exact
            result = b.fptrunc(value, _VF)
            before, inside, after = b.block, *(b.append_basic_block(n) for n in ("over", "after"))
            b.cbranch(bounded, after, inside)
            b.position_at_end(inside)
            sign = b.and_(b.bitcast(result, _V32), splat(_V32, -(1 << 31)))
            infinite = b.bitcast(b.or_(sign, splat(_V32, 0x7F800000)), _VF)
            beyond = b.fcmp_ordered(">=", b.call(size_of, [value]), splat(_VD, 2.0**128))
            some = b.select(beyond, infinite, result)
            b.branch(after)
            b.position_at_end(after)
            chosen = b.phi(_VF)
            chosen.add_incoming(result, before)
            chosen.add_incoming(some, inside)
            result = chosen
            stay = b.sext(eight(stays, r, column), _V32)
            result = b.select(b.icmp_signed("<", stay, splat(_V32, 0)), x, result)
            b.store(b.fadd(result, splat(_VF, 0.0)), place, align=4)  # zeros are positive

        def line(r: Any, carried: list[Any]) -> list[Any]:
            tile.a = b.gep(a, [b.mul(r, b.mul(a_step, ir.Constant(I64, ROWS)))])
            tile.out = b.gep(out, [b.mul(tile.index(r, ROWS, 0), tile.stride)])
            loop(b, tile.steps, [], step)
            return carried

        with toward_zero(b):
            loop(b, lines, [], line)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, b, i64, out, *(i64,) * 9), codegen
