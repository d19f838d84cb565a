"""The vector micro-kernel of CDNA3's FP8 rule: two sums of products, then the accumulator.

Most often no product loses a bit below the largest exponent. Then the sum of all is exact in
float64, and what is left is its floor beside the accumulator. Where an exponent says that one may,
the sums of even and odd k are cut apart, as `ir.double` cuts. The thread cuts toward zero; sums in
the middle of a binade, all positive, are so floored.
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
    FIELD,
    FLOOR,
    I8,
    LOWEST,
    PLACES,
    TURN,
    bottom,
    declared,
    lanes,
    top,
)
from numsim.kernels.ir.fp8_codes import apart, together
from numsim.kernels.ir.halves import cut_and_added, shifts_to_cut
from numsim.kernels.ir.simd import I32, I64, Tile, broadcast, emitted, loop, splat

UNROLL = 16  # products of a group are a multiple of it
_ALIGN, _SUM = 24, 32  # fraction bits of terms, and of their sum beside the accumulator
_LOST = 6  # fraction bits of a product of two significands, at most
_V32, _VF = ir.VectorType(I32, 8), ir.VectorType(ir.FloatType(), 8)
_VD, _VL = ir.VectorType(ir.DoubleType(), 8), ir.VectorType(I64, 8)
_FIELD = splat(_VL, 0x7FF << 52)
_NEAREST = 8  # of an instruction, without exceptions


def _emit(b: Any, tile: Tile, read: Any, rule: Any) -> None:
    """Emit one call; `read` (`Planes` or `Coded`) says what the columns are."""
    lines, group, a_step = rule
    a, out = tile.a, tile.out
    width = read.width
    quarter, count = width // 4, width // 8
    v = lanes(quarter)
    vb, words = v.bytes, v.words
    fma = declared(b, "llvm.fma.v8f64", _VD, _VD, _VD, _VD)
    less = declared(b, f"llvm.usub.sat.v{width}i8", vb, vb, vb)
    middle = splat(_VL, (1023 + 52 - FIELD - _ALIGN << 52) + (1 << 51))
    one, nothing, floors = splat(vb, 1), splat(vb, 0), splat(vb, FLOOR)
    if width == 64:  # see `ir.hopper`
        kind = ir.FunctionType(vb, [vb])
        one = b.call(ir.InlineAsm(kind, "", "=v,0", side_effect=False), [one])
    a_group = b.add(b.mul(group, ir.Constant(I64, A_STEP)), ir.Constant(I64, A_REST))
    make: Any = cgutils.alloca_once
    bytes_of, sums_of = ir.ArrayType(I8, width), ir.ArrayType(ir.DoubleType(), width)
    fields, streams = make(b, bytes_of), [make(b, bytes_of) for _ in range(4)]
    results = make(b, sums_of)
    pieces = b.sdiv(group, ir.Constant(I64, UNROLL))

    def left(first: Any, k: Any, word: int) -> Any:
        at = b.add(b.add(first, b.mul(k, ir.Constant(I64, A_STEP))), ir.Constant(I64, word))
        return b.gep(tile.a, [at])

    def both(row: Any, panel: Any, k: Any, plane: int) -> Any:
        """Return the bytes of products: exponents, or places of lowest bits."""
        x = b.bitcast(broadcast(b, b.load(left(row, k, plane)), words), vb)
        return b.add(x, (read.lowest if plane else read.exponents)(panel, k))

    def over(carried: list[Any], body: Any, parts: tuple[int, ...] = (0, 1)) -> Any:
        """Emit `body` (k, carried, part) for even k, part 0, and odd ones, part 1."""

        def some(i: Any, carried: list[Any]) -> list[Any]:
            for u in range(UNROLL):
                if u % 2 in parts:
                    carried = body(tile.index(i, UNROLL, u), carried, u % 2)
            return carried

        return loop(b, pieces, carried, some)

    def keep(array: Any, value: Any) -> None:
        b.store(value, b.bitcast(array, vb.as_pointer()), align=1)

    def kept(array: Any, q: int) -> Any:
        """Return the words, as int64, whose byte `8 q // quarter` is of eight columns."""
        at = b.gep(array, [ir.Constant(I32, 0), ir.Constant(I32, 32 * q % width)])
        return b.zext(b.load(b.bitcast(at, _V32.as_pointer()), align=1), _VL)

    def binade(array: Any, q: int) -> Any:
        away = 52 - 8 * (8 * q // quarter)
        e = b.and_(b.shl(kept(array, q), splat(_VL, away)), splat(_VL, 255 << 52))
        return b.bitcast(b.add(e, middle), _VD)

    def sums(row: Any, panel: Any, begin: list[Any], parts: tuple[int, ...]) -> list[Any]:
        def add(k: Any, sums: list[Any], part: int) -> list[Any]:
            x = b.load(b.bitcast(left(row, k, 2), ir.DoubleType().as_pointer()), align=4)
            x = broadcast(b, x, _VD)
            values = read.values(panel, k, range(count))
            return [b.call(fma, [x, y, z]) for y, z in zip(values, sums, strict=True)]

        return list(over(begin, add, parts))

    def result_at(q: int) -> Any:
        at = b.gep(results, [ir.Constant(I32, 0), ir.Constant(I32, 8 * q)])
        return b.bitcast(at, _VD.as_pointer())

    def cut_apart(row: Any, panel: Any, peaks: list[Any]) -> None:
        """Write the sums, each stream's products cut below its own largest exponent."""
        limits = []
        for array, peak in zip(streams, peaks, strict=False):
            field = top(b, peak, floors)
            keep(array, field)
            first = splat(vb, FIELD + _ALIGN - 2 * LOWEST)
            limit = bottom(b, b.call(less, [field, first]), splat(vb, PLACES))
            limits.append(b.xor(limit, splat(vb, TURN)))

        def count_short(k: Any, counts: list[Any], part: int) -> list[Any]:
            short = b.icmp_signed("<", both(row, panel, k, 1), limits[part])
            counts = list(counts)
            counts[part] = b.select(short, b.add(counts[part], one), counts[part])
            return counts

        counts = over([nothing, nothing], count_short)
        for array, value in zip(streams[2:], counts, strict=True):
            keep(array, value)
        for part in range(2):
            begin = [binade(streams[part], q) for q in range(count)]
            for q, total in enumerate(sums(row, panel, begin, (part,))):
                byte = splat(_VL, 8 * (8 * q // quarter))
                lost = b.and_(b.lshr(kept(streams[2 + part], q), byte), splat(_VL, 255))
                units = b.bitcast(b.add(b.bitcast(total, _VL), lost), _VD)
                units = b.fsub(units, binade(streams[part], q))  # exact
                before = b.load(result_at(q), align=8) if part else binade(fields, q)
                b.store(b.fadd(before, units), result_at(q), align=8)  # floored

    def cut_to_integers(row: Any, panel: Any) -> None:
        """Add the same sums, of codes whose values go by way of float16, and finish.

        A product in units of the last kept bit is at most 225 * 2**18, and there are at most 32.
        """

        def quick(k: Any, found: list[Any], part: int) -> list[Any]:
            code, found = read.asked(panel, k), list(found)
            read.room.keep(k, code)
            below = read.tops.bytes_of(b.load(left(row, k, BELOW)))
            found[part] = read.tops.body(code, [below], [found[part]])[0]
            return found

        def slow(k: Any, found: list[Any], part: int) -> list[Any]:
            found = list(found)
            found[part] = top(b, found[part], both(row, panel, k, 0))
            return found

        base = read.tops.bytes_of(b.load(left(row, group, BASE)))
        peaks = read.tops.fields(over([nothing] * 2, quick), [base] * 2, [floors] * 2)
        doubt = read.tops.doubtful(peaks, [top(b, base, floors)] * 2)
        before = b.block
        with b.if_then(doubt):
            exact, inside = over([floors] * 2, slow), b.block
        found = []
        for x, y in zip(peaks, exact, strict=True):
            phi = b.phi(vb)
            phi.add_incoming(x, before)
            phi.add_incoming(y, inside)
            found.append(phi)
        largest = top(b, *found)
        keep(fields, largest)
        whole, found = b.bitcast(largest, words), [b.bitcast(x, words) for x in found]

        def field(x: Any, q: int) -> Any:
            return b.and_(b.lshr(x, splat(words, 8 * q)), splat(words, 255))

        half, totals = quarter // 2, []
        bits, doubles = ir.VectorType(I64, half), ir.VectorType(ir.DoubleType(), half)
        for part, own in enumerate(found):
            shifts = apart(b, shifts_to_cut(b, own, splat(words, _ALIGN), read.by_fields))

            def add(k: Any, sums: list[Any], part: int, shifts: Any = shifts) -> list[Any]:
                x = broadcast(b, b.load(left(row, k, SINGLE)), words)
                return cut_and_added(b, sums, x, read.room.singles_apart(k), shifts)

            sums = together(b, over([ir.Constant(words, None)] * 4, add, (part,)))
            for q, total in enumerate(sums):
                away = b.sub(field(whole, q), field(own, q))
                most = splat(words, 31)
                away = b.select(b.icmp_unsigned("<", away, most), away, most)
                totals.append(b.ashr(total, away))  # floored
        for q, (x, y) in enumerate(zip(totals[:4], totals[4:], strict=True)):
            total, e = b.add(x, y), field(whole, q)
            for part in range(2):  # a processor with wider vectors does narrow ones at more places
                at = [part * half + n for n in range(half)]
                at = ir.Constant(ir.VectorType(I32, half), at)
                power = b.shl(b.zext(b.shuffle_vector(e, e, at), bits), splat(bits, 52))
                top_bit = 1023 + 52 - FIELD - _ALIGN
                unit = b.bitcast(b.add(power, splat(bits, top_bit - 52 << 52)), doubles)
                largest = b.bitcast(b.add(power, splat(bits, top_bit << 52)), doubles)
                units = b.fmul(b.sitofp(b.shuffle_vector(total, total, at), doubles), unit)
                at = b.gep(tile.out, [ir.Constant(I64, quarter * q + half * part)])
                finish(at, units, largest)

    def step(g: Any, carried: list[Any]) -> list[Any]:
        row, panel = b.mul(g, a_group), read.start(g)
        if read.by_fields:
            cut_to_integers(row, panel)
            return carried

        def peak(k: Any, found: list[Any], part: int) -> list[Any]:
            e, found = both(row, panel, k, 0), list(found)
            found[part] = top(b, found[part], e)
            # those of zero factors are below the floor, and wrap
            found[2] = bottom(b, found[2], b.sub(e, floors))
            return found

        *peaks, least = over([nothing, nothing, splat(vb, -1)], peak)
        field = top(b, top(b, *peaks), floors)
        keep(fields, field)
        below = b.call(less, [field, splat(vb, FLOOR + _ALIGN - _LOST)])
        short = b.icmp_unsigned("<", least, below)
        any_short = b.icmp_unsigned(
            "!=", b.bitcast(short, ir.IntType(width)), ir.Constant(ir.IntType(width), 0)
        )
        with b.if_else(any_short) as (then, otherwise):
            with then:
                cut_apart(row, panel, peaks)
            with otherwise:
                begin = [binade(fields, q) for q in range(count)]
                for q, total in enumerate(sums(row, panel, begin, (0, 1))):
                    b.store(total, result_at(q), align=8)
        for q in range(count):
            begin = binade(fields, q)
            units = b.fsub(b.load(result_at(q), align=8), begin)  # exact
            largest = b.bitcast(b.and_(b.bitcast(begin, _VL), _FIELD), _VD)
            finish(b.gep(tile.out, [ir.Constant(I64, 8 * q)]), units, largest)
        return carried

    def finish(at: Any, units: Any, largest: Any) -> None:
        """Add the accumulators at a place to a group's sums, both floored; round to nearest even.

        `largest`: the power of two of the products, 52 less the bits of terms too large.
        """
        d, v = units.type, ir.VectorType(I64, units.type.count)
        place = b.bitcast(at, ir.VectorType(ir.FloatType(), d.count).as_pointer())
        wide = b.fpext(b.load(place, align=4), d)
        scale = 2.0 ** (52 - _ALIGN)
        own = b.and_(b.bitcast(b.fmul(wide, splat(d, scale)), v), splat(v, 0x7FF << 52))
        own = b.bitcast(own, d)
        second = b.select(b.fcmp_ordered(">", own, largest), own, largest)
        middle = b.fmul(second, splat(d, 1.5))
        low = b.fmul(second, splat(d, 1.5 * 2.0 ** (_ALIGN - _SUM)))
        part = b.fsub(b.fadd(wide, middle), middle)
        far = b.fcmp_ordered("<", own, b.fmul(second, splat(d, 2.0 ** -(_ALIGN + 1))))
        part = b.select(far, splat(d, 0.0), part)
        whole = b.fadd(b.fsub(b.fadd(units, low), low), part)  # exact, but for the floor
        # floored to 31 bits of its own exponent: away from zero where it is negative
        bits, rest = b.bitcast(whole, v), splat(v, (1 << 52 - _SUM + 1) - 1)
        minus = b.and_(b.ashr(bits, splat(v, 63)), rest)
        bits = b.and_(b.add(bits, minus), b.xor(rest, splat(v, -1)))
        b.store(nearest(bits, place.type.pointee), place, align=4)

    def nearest(bits: Any, kind: Any) -> Any:
        """Round float64 to float32, nearest even."""
        v, d = bits.type, ir.VectorType(ir.DoubleType(), kind.count)
        if width == 64:
            mask = ir.IntType(8)
            name = "llvm.x86.avx512.mask.cvtpd2ps.512"
            cut = declared(b, name, kind, d, kind, mask, I32)
            how = [ir.Constant(kind, None), ir.Constant(mask, -1), ir.Constant(I32, _NEAREST)]
            return b.call(cut, [b.bitcast(bits, d), *how])
        odd = b.and_(b.lshr(bits, splat(v, 29)), splat(v, 1))
        bits = b.add(bits, b.add(odd, splat(v, (1 << 28) - 1)))
        return b.fptrunc(b.bitcast(bits, d), kind)

    def line(r: Any, carried: list[Any]) -> list[Any]:
        tile.a = b.gep(a, [b.mul(r, a_step)])
        tile.out = b.gep(out, [b.mul(r, tile.stride)])
        loop(b, tile.steps, [], step)
        return carried

    with toward_zero(b):
        loop(b, lines, [], line)


@emitted
def two_streams_tile(
    typing: Any, columns: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any,
    stride: Any, steps: Any, lines: Any, group: Any, a_step: Any,
) -> Any:  # fmt: skip
    """Chain `steps` groups of products onto out[r, :] of `lines` rows, `a_step` words apart in a.

    `group`: products, a multiple of `UNROLL`; both operands as `ir.double_planes` writes them, b
    without what belongs to groups.
    """
    if not isinstance(columns, types.IntegerLiteral):
        return None
    width = columns.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile, group = Tile(context, b, sig.args[:-3], args[:-3], 1, _VF), args[-2]
        step = b.mul(group, ir.Constant(I64, b_words(width)[0]))
        _emit(b, tile, Planes(b, tile.panel, width, group, step), args[-3:])
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(columns, a, i64, b, i64, out, *(i64,) * 6), codegen


@emitted
def two_streams_row(
    typing: Any, columns: Any, codes: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any,
    out_at: Any, stride: Any, steps: Any, lines: Any, group: Any, a_step: Any,
) -> Any:  # fmt: skip
    """Do `two_streams_tile` for codes as they are packed; `codes`: as in `ir.double.double_row`."""
    if not isinstance(columns, types.IntegerLiteral):
        return None
    width = columns.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args[:-3], args[:-3], 1, _VF)
        read = Coded(context, b, width, sig.args[1], args[1], tile.panel, None, args[-2])
        _emit(b, tile, read, args[-3:])
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(columns, codes, a, i64, b, i64, out, *(i64,) * 6), codegen
