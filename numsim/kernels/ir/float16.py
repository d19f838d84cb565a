"""Codes of at most eight bits by way of float16 in the first cache, with AVX2, for few rows.

An instruction makes float32 of eight float16 that it reads from memory, in one place of execution;
codes of eight bits become float16 by two shifts and a mask for 16 of them, those of four bits by a
table of their upper bytes. `gemm.codes.as_halves` and `nibble_table` say of which formats: values
are so many powers of two off as their bias is another than that of float16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.blocks import Scales
from numsim.kernels.ir.fp8 import I8, declared, field_of, lanes
from numsim.kernels.ir.fp8_codes import from_halves
from numsim.kernels.ir.simd import (
    I16,
    I32,
    I64,
    PAGE,
    Tile,
    broadcast,
    emitted,
    fetch,
    loop,
    pointer_at,
    splat,
    vectors_of,
)

COLUMNS = 32  # of a panel of scaled chains
GROUPS, SUMS = (4, 8), 16  # products of an exact sum; columns of a panel of those
_UNROLL = 4
_V, _SHORTS = lanes(8), ir.VectorType(I16, 16)
_EIGHT = ir.VectorType(ir.HalfType(), 8)
# where in 32 codes, as float16 in memory, the vectors of eight begin
_PLACES = (0, 16, 8, 24)


def _reader(context: Any, b: Any, kind: Any, how: Any) -> Callable[[Any], list[Any]]:
    """Return how 32 codes become twice 16 float16, as integers, in the order of `_PLACES`.

    `how` is `gemm_codes.Fields` or a table of 16 bytes.
    """

    def spread(code: Any) -> list[Any]:
        return _upper(b, code)

    if isinstance(kind, types.Array):
        sixteen = ir.VectorType(I8, 16)
        table = b.load(vectors_of(context, b, kind, how, sixteen), align=1)
        order = ir.Constant(ir.VectorType(I32, 32), [*range(16)] * 2)
        wide = b.shuffle_vector(table, table, order)
        pick = declared(b, "llvm.x86.avx2.pshuf.b", _V.bytes, _V.bytes, _V.bytes)
        return lambda code: spread(b.call(pick, [wide, code]))
    return _by_fields(b, how, 32)


def _upper(b: Any, code: Any) -> list[Any]:
    """Return bytes as upper ones of words of 16 bits, of either half of every 16 bytes."""
    count, found = code.type.count, []
    for half in (0, 8):
        at = [16 * lane + half + n for lane in range(count // 16) for n in range(8)]
        order = ir.Constant(ir.VectorType(I32, count), [m for n in at for m in (n, count + n)])
        both = b.shuffle_vector(ir.Constant(code.type, None), code, order)
        found.append(b.bitcast(both, ir.VectorType(I16, count // 2)))
    return found


def _by_fields(b: Any, how: Any, count: int) -> Callable[[Any], list[Any]]:
    """Return how so many codes of eight bits become float16, as `_upper` puts them."""
    shorts = ir.VectorType(I16, count // 2)
    right = b.sub(field_of(b, how, 3, shorts), splat(shorts, 2))
    magnitude = b.shl(field_of(b, how, 0, shorts), splat(shorts, 8))
    kept = b.or_(splat(shorts, -(1 << 15)), b.lshr(magnitude, right))
    return lambda code: [b.and_(b.ashr(x, right), kept) for x in _upper(b, code)]


@emitted
def scaled_chains_by_halves(
    typing: Any, how: Any, words: Any, near: Any, scales: Any, rows: Any, a: Any, a_at: Any, b: Any,
    b_at: Any, out: Any, out_at: Any, stride: Any, steps: Any,
) -> Any:  # fmt: skip
    """Do `ir.blocks.scaled_fma_tile` for `rows` rows, all their blocks and codes of one byte.

    Rows of a are `steps` apart, and `words` has room for `near` k of 32 columns as float16, whole
    blocks. `how`: see `_reader`; `scales`: see `ir.blocks.Scales`; None: one chain of all steps
    goes on from out, NaN is canonical.
    """
    alone = isinstance(scales, types.NoneType)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args, args, 1, _V.floats)
        near, rows = args[2], args[4]
        read = _reader(context, b, sig.args[0], args[0])
        room = vectors_of(context, b, sig.args[1], args[1], _SHORTS)
        of = None if alone else Scales(context, b, sig.args[3], args[3])
        fma = declared(b, "llvm.fma.v8f32", *(_V.floats,) * 4)
        nan = splat(_V.floats, float("nan"))

        def piece(n: Any, carried: list[Any]) -> list[Any]:
            begin = b.mul(n, near)
            left = b.sub(tile.steps, begin)
            count = b.select(b.icmp_signed("<", left, near), left, near)
            codes = b.gep(tile.panel, [b.mul(begin, ir.Constant(I64, COLUMNS))])
            codes = b.bitcast(codes, _V.bytes.as_pointer())

            def write(k: Any, carried: list[Any]) -> list[Any]:
                fetch(b, b.gep(codes, [b.add(k, ir.Constant(I64, PAGE // COLUMNS))]))
                for i, x in enumerate(read(b.load(b.gep(codes, [k]), align=1))):
                    b.store(x, b.gep(room, [tile.index(k, 2, i)]), align=2)
                return carried

            loop(b, count, [], write)

            def row(r: Any, carried: list[Any]) -> list[Any]:
                own = b.gep(tile.a, [b.add(b.mul(r, tile.steps), begin)])
                line = b.gep(tile.out, [b.mul(r, tile.stride)])
                at = [b.gep(line, [ir.Constant(I64, column)]) for column in _PLACES]
                at = [b.bitcast(place, _V.floats.as_pointer()) for place in at]
                totals = [b.load(place, align=4) for place in at]
                if of is None:
                    sums = chain(own, ir.Constant(I64, 0), count, totals)
                    totals = [b.select(b.fcmp_unordered("uno", x, x), nan, x) for x in sums]
                else:
                    totals = scaled(of, n, r, own, count, totals)
                for place, total in zip(at, totals, strict=True):
                    b.store(total, place, align=4)
                return carried

            loop(b, rows, [], row)
            return carried

        def scaled(
            of: Scales, n: Any, r: Any, own: Any, count: Any, totals: list[Any]
        ) -> list[Any]:
            """Return totals of row r plus its blocks in piece n."""
            first_block = b.mul(n, b.sdiv(near, of.span))

            def block(i: Any, totals: list[Any]) -> list[Any]:
                sums = chain(own, *of.block(i, count), [ir.Constant(_V.floats, None)] * 4)
                terms = zip(totals, sums, _PLACES, strict=True)
                i = b.add(first_block, i)
                return [
                    of.added(total, x, i, r, column, ask=column % 16 == 0)
                    for total, x, column in terms
                ]

            found: list[Any] = loop(b, of.blocks(count), totals, block)
            return found

        def chain(own: Any, first: Any, count: Any, sums: list[Any]) -> Any:
            """Return sums plus the products from `first` on, so many."""

            def add(k: Any, sums: list[Any]) -> list[Any]:
                x = broadcast(b, b.load(b.gep(own, [k])), _V.floats)
                halves = b.bitcast(b.gep(room, [tile.index(k, 2, 0)]), _EIGHT.as_pointer())
                new = []
                for n, total in enumerate(sums):
                    at = b.gep(halves, [ir.Constant(I64, n)])
                    new.append(b.call(fma, [x, from_halves(b, at, _V.floats), total]))
                return new

            def some(n: Any, sums: list[Any]) -> list[Any]:
                for u in range(_UNROLL):
                    sums = add(b.add(first, tile.index(n, _UNROLL, u)), sums)
                return sums

            whole = b.lshr(count, ir.Constant(I64, _UNROLL.bit_length() - 1))
            done = tile.index(whole, _UNROLL, 0)
            sums = loop(b, whole, sums, some)
            rest = b.add(first, done)
            return loop(b, b.sub(count, done), sums, lambda n, sums: add(b.add(rest, n), sums))

        more = b.add(tile.steps, b.sub(near, ir.Constant(I64, 1)))
        loop(b, b.sdiv(more, near), [], piece)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(how, words, i64, scales, i64, a, i64, b, i64, out, i64, i64, i64), codegen


@emitted
def exact_sums_by_halves(
    typing: Any, width: Any, group: Any, how: Any, words: Any, near: Any, rows: Any, a: Any,
    a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any, stride: Any, steps: Any,
) -> Any:  # fmt: skip
    """Do what `ir.mac.mac_tile` does where float64 holds all sums and rounds them to float32.

    For `rows` rows of `steps` groups each and codes of one byte, 16 columns of each k. `width`:
    bytes of a vector, 64 for AVX-512 or 32 for AVX2; `group`: of `GROUPS`; `words` has room for
    `near` k of 16 columns as float32, a multiple of 8; `how` is `gemm_codes.Fields`.
    """
    literal = types.IntegerLiteral
    if not (isinstance(width, literal) and isinstance(group, literal)):
        return None
    size, products = width.literal_value, group.literal_value
    lanes_of, together = size // 8, size // SUMS  # columns of a vector; k of one of codes
    wide, floats = ir.VectorType(ir.DoubleType(), lanes_of), ir.VectorType(ir.FloatType(), lanes_of)
    codes, halves = ir.VectorType(I8, size), ir.VectorType(ir.HalfType(), size // 2)
    some = ir.VectorType(ir.FloatType(), size // 4)
    vectors = range(0, SUMS, lanes_of)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args, args, 1, wide)
        near, rows = args[4], args[5]
        read = _by_fields(b, args[2], size)
        room = pointer_at(context, b, sig.args[3], args[3], ir.Constant(I64, 0))
        room = b.bitcast(room, ir.FloatType().as_pointer())
        fma = declared(b, f"llvm.fma.v{lanes_of}f64", *(wide,) * 4)
        depth = b.mul(tile.steps, ir.Constant(I64, products))

        def value(k: Any, u: int, column: int) -> Any:
            """Return the values of k + u of a group, k a multiple of what a vector has."""
            whole = u // together * together
            at = column // 8 * 8 * together + (u - whole) * 8 + column % 8 + whole * SUMS
            place = b.gep(room, [tile.index(k, SUMS, at)])
            return b.fpext(b.load(b.bitcast(place, floats.as_pointer()), align=4), wide)

        def piece(n: Any, carried: list[Any]) -> list[Any]:
            begin = b.mul(n, near)
            left = b.sub(depth, begin)
            count = b.select(b.icmp_signed("<", left, near), left, near)
            source = b.gep(tile.panel, [b.mul(begin, ir.Constant(I64, SUMS))])
            source = b.bitcast(source, codes.as_pointer())

            def write(i: Any, carried: list[Any]) -> list[Any]:
                fetch(b, b.gep(source, [b.add(i, ir.Constant(I64, PAGE // size))]))
                for high, bits in enumerate(read(b.load(b.gep(source, [i]), align=1))):
                    both = b.bitcast(bits, halves)
                    for part in range(2):
                        first = size // 4 * part
                        at = [first + n for n in range(size // 4)]
                        order = ir.Constant(ir.VectorType(I32, size // 4), at)
                        x = b.fpext(b.shuffle_vector(both, both, order), some)
                        place = b.gep(room, [tile.index(i, size, size // 2 * high + first)])
                        b.store(x, b.bitcast(place, some.as_pointer()), align=4)
                return carried

            loop(b, b.sdiv(count, ir.Constant(I64, together)), [], write)
            groups = b.sdiv(count, ir.Constant(I64, products))

            def row(r: Any, carried: list[Any]) -> list[Any]:
                own = b.gep(tile.a, [b.add(b.mul(r, depth), begin)])
                line = b.gep(tile.out, [b.mul(r, tile.stride)])
                at = [b.gep(line, [ir.Constant(I64, column)]) for column in vectors]
                at = [b.bitcast(place, wide.as_pointer()) for place in at]

                def add(g: Any, totals: list[Any]) -> list[Any]:
                    k = b.mul(g, ir.Constant(I64, products))
                    sums: list[Any] = []  # apart from the totals, which wait for the last group's
                    for u in range(products):
                        x = broadcast(b, b.load(b.gep(own, [b.add(k, ir.Constant(I64, u))])), wide)
                        values = [value(k, u, column) for column in vectors]
                        sums = [
                            b.call(fma, [x, y, sums[i]]) if u else b.fmul(x, y)
                            for i, y in enumerate(values)
                        ]
                    totals = [b.fadd(x, y) for x, y in zip(totals, sums, strict=True)]
                    return [b.fpext(b.fptrunc(x, floats), wide) for x in totals]

                totals = loop(b, groups, [b.load(place, align=8) for place in at], add)
                for place, total in zip(at, totals, strict=True):
                    b.store(total, place, align=8)
                return carried

            loop(b, rows, [], row)
            return carried

        more = b.add(depth, b.sub(near, ir.Constant(I64, 1)))
        loop(b, b.sdiv(more, near), [], piece)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(
        width, group, how, words, i64, i64, a, i64, b, i64, out, i64, i64, i64
    ), codegen
