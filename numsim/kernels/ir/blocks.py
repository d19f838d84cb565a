"""What follows a block whose scale stands outside the unit: its results scaled and added.

``out += fp32(result * fp32(row scale * column scale))``, each operation rounded, for a tile of
float32 or int32 results that lie row by row; or the chain of multiply-adds before it, too, without
leaving the registers. Proof: ``tests/targets/test_block_products.py``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.codes import singles_by_table
from numsim.kernels.ir.fp8 import V8, declared
from numsim.kernels.ir.fp8_codes import ByTables
from numsim.kernels.ir.simd import (
    FMA_ROWS,
    I32,
    I64,
    PAGE,
    V32,
    VF,
    Tile,
    broadcast,
    emitted,
    fetch,
    loop,
    pointer_at,
    splat,
)

_AHEAD = 8  # blocks whose scales are asked for before they are read


@emitted
def scaled_fma_tile(
    typing: Any, rows: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any,
    stride: Any, steps: Any, row_scales: Any, rows_at: Any, rows_stride: Any, columns: Any,
    columns_at: Any,
) -> Any:  # fmt: skip
    """Add ``chain * (row_scales[r] * columns[c])`` to out[r, :] for chains of `ir.simd.fma_tile`.

    Chains of float32 start from zero; NaN is not made canonical.
    """
    if not isinstance(rows, types.IntegerLiteral):
        return None
    count = rows.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args[:-5], args[:-5], 2, VF)
        fma = declared(b, "llvm.fma.v16f32", VF, VF, VF, VF)
        first = pointer_at(context, b, sig.args[-5], args[-5], args[-4])
        scales = pointer_at(context, b, sig.args[-2], args[-2], args[-1])

        def step(k: Any, acc: list[Any]) -> list[Any]:
            values = [tile.columns(k, 32, 16 * c) for c in range(2)]
            new = []
            for r in range(count):
                x = broadcast(b, tile.scalar(k, FMA_ROWS, r), VF)
                new += [b.call(fma, [x, values[c], acc[2 * r + c]]) for c in range(2)]
            return new

        sums = loop(b, tile.steps, [ir.Constant(VF, None)] * (2 * count), step)
        totals = tile.load(count)
        for r in range(count):
            at = b.gep(first, [b.mul(args[-3], ir.Constant(I64, r))])
            scale = broadcast(b, b.load(at), VF)
            for c in range(2):
                place = b.gep(scales, [ir.Constant(I64, 16 * c)])
                column = b.load(b.bitcast(place, VF.as_pointer()), align=4)
                term = b.fmul(sums[2 * r + c], b.fmul(scale, column))
                totals[2 * r + c] = b.fadd(totals[2 * r + c], term)
        tile.store(totals, count)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(
        rows, a, i64, b, i64, out, i64, i64, i64, row_scales, i64, i64, columns, i64
    ), codegen


@emitted
def scaled_chain_of_codes(
    typing: Any, mirrored: Any, table: Any, scales: Any, a: Any, a_at: Any, b: Any, b_at: Any,
    out: Any, out_at: Any, stride: Any, steps: Any,
) -> Any:  # fmt: skip
    """Do `scaled_fma_tile` for one row, all its blocks and codes of one byte, of 32 columns.

    `table`: of `ir.codes.looked_up_values`, or `mirrored`: of `ir.fp8_codes.ByTables`, where the
    highest bit of a code is a sign. `scales`: see `Scales`; None: one chain of all steps goes on
    from out, NaN is canonical. Blocks and steps are even.
    """
    if not isinstance(mirrored, types.IntegerLiteral):
        return None
    signs, alone = bool(mirrored.literal_value), isinstance(scales, types.NoneType)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args, args, 2, VF)
        fma = declared(b, "llvm.fma.v16f32", VF, VF, VF, VF)

        def shuffled(x: Any, y: Any, order: list[int]) -> Any:
            return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(order)), order))

        def by_value(code: Any) -> list[list[Any]]:
            halves = [[16 * c + m for m in range(16)] for c in range(2)]
            return [[shuffled(x, x, half) for half in halves] for x in read(code)]

        def by_sign(code: Any) -> list[list[Any]]:
            """Return the values of even columns and of odd ones, of each of two k."""
            # eight columns of both k in each 16 bytes, where an exchange is cheap
            quads = b.bitcast(code, ir.VectorType(I64, 8))
            code = b.bitcast(shuffled(quads, quads, [0, 4, 1, 5, 2, 6, 3, 7]), V8)
            lower, upper, found = looked.looked_up(3, code), looked.upper(code), []
            for second in range(2):
                at = [16 * lane + 8 * second + n for lane in range(4) for n in range(8)]
                both = shuffled(lower, upper, [m for n in at for m in (n, 64 + n)])
                pairs = b.bitcast(both, V32)
                even, odd = b.shl(pairs, splat(V32, 16)), b.and_(pairs, splat(V32, -(1 << 16)))
                found.append([b.bitcast(even, VF), b.bitcast(odd, VF)])
            return found

        if signs:
            looked = ByTables(context, b, sig.args[1], args[1])
        else:
            read = singles_by_table(context, b, sig.args[1], args[1])

        def in_turn(even: Any, odd: Any) -> list[Any]:
            return [
                shuffled(even, odd, [m for n in range(8) for m in (c + n, 16 + c + n)])
                for c in (0, 8)
            ]

        def chain(first: Any, count: Any, acc: list[Any]) -> list[Any]:
            def pair(n: Any, acc: list[Any]) -> list[Any]:
                k = b.add(first, b.mul(n, ir.Constant(I64, 2)))
                at = b.gep(tile.panel, [b.mul(k, ir.Constant(I64, 32))])
                fetch(b, b.gep(at, [ir.Constant(I64, PAGE)]))
                code = b.load(b.bitcast(at, V8.as_pointer()), align=1)
                for j, values in enumerate(by_sign(code) if signs else by_value(code)):
                    x = broadcast(b, tile.scalar(k, 1, j), VF)
                    acc = [b.call(fma, [x, y, z]) for y, z in zip(values, acc, strict=True)]
                return acc

            acc = loop(b, b.lshr(count, ir.Constant(I64, 1)), acc, pair)
            return in_turn(*acc) if signs else acc

        if alone:
            low, high = tile.load(1)
            apart = [shuffled(low, high, [*range(second, 32, 2)]) for second in range(2)]
            start = apart if signs else [low, high]
            sums, nan = chain(ir.Constant(I64, 0), tile.steps, start), splat(VF, float("nan"))
            tile.store([b.select(b.fcmp_unordered("uno", v, v), nan, v) for v in sums], 1)
            return context.get_dummy_value()

        of = Scales(context, b, sig.args[2], args[2])

        def block(i: Any, totals: list[Any]) -> list[Any]:
            acc = chain(*of.block(i, tile.steps), [ir.Constant(VF, None)] * 2)
            return [of.added(totals[c], acc[c], i, ir.Constant(I64, 0), 16 * c) for c in range(2)]

        tile.store(loop(b, of.blocks(tile.steps), tile.load(1), block), 1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(mirrored, table, scales, a, i64, b, i64, out, i64, i64, i64), codegen


@emitted
def two_chains_of_words(
    typing: Any, float16: Any, half: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any,
    out_at: Any, stride: Any, steps: Any,
) -> Any:  # fmt: skip
    """Add two chains of `half` steps each, from zero, to out[:], group by group of one row.

    Codes of 16 bits, of 32 columns, are the high halves of their float32 values, or `float16`, a
    literal. The steps of one chain stand before those of the other.
    """
    if not isinstance(float16, types.IntegerLiteral):
        return None
    converts = bool(float16.literal_value)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile, half = Tile(context, b, sig.args, args, 2, VF), args[1]
        fma = declared(b, "llvm.fma.v16f32", VF, VF, VF, VF)

        def values(k: Any) -> list[Any]:
            """Return the values of even columns, and of odd ones; float16: of either half."""
            at = b.gep(tile.panel, [b.mul(k, ir.Constant(I64, 32))])
            fetch(b, b.gep(at, [ir.Constant(I64, PAGE // 2)]))
            if converts:
                halves = b.bitcast(at, ir.VectorType(ir.HalfType(), 16).as_pointer())
                both = [b.gep(halves, [ir.Constant(I64, i)]) for i in range(2)]
                return [b.fpext(b.load(place, align=2), VF) for place in both]
            codes = b.load(b.bitcast(at, V32.as_pointer()), align=2)
            even, odd = b.shl(codes, splat(V32, 16)), b.and_(codes, splat(V32, -(1 << 16)))
            return [b.bitcast(x, VF) for x in (even, odd)]

        def shuffled(x: Any, y: Any, order: list[int]) -> Any:
            return b.shuffle_vector(x, y, ir.Constant(V32, order))

        def group(g: Any, totals: list[Any]) -> list[Any]:
            first = b.mul(g, b.shl(half, ir.Constant(I64, 1)))

            def step(n: Any, acc: list[Any]) -> list[Any]:
                new = []
                for i, k in enumerate((b.add(first, n), b.add(b.add(first, n), half))):
                    x = broadcast(b, tile.scalar(k, 1, 0), VF)
                    both = zip(values(k), acc[2 * i : 2 * i + 2], strict=True)
                    new += [b.call(fma, [x, y, z]) for y, z in both]
                return new

            acc = loop(b, half, [ir.Constant(VF, None)] * 4, step)
            return [b.fadd(totals[c], b.fadd(acc[c], acc[2 + c])) for c in range(2)]

        groups = b.sdiv(tile.steps, b.shl(half, ir.Constant(I64, 1)))
        low, high = tile.load(1)
        if converts:
            tile.store(loop(b, groups, [low, high], group), 1)
            return context.get_dummy_value()
        apart = [shuffled(low, high, [*range(second, 32, 2)]) for second in range(2)]
        even, odd = loop(b, groups, apart, group)
        turns = [[m for n in range(8) for m in (c + n, 16 + c + n)] for c in (0, 8)]
        tile.store([shuffled(even, odd, order) for order in turns], 1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(float16, half, a, i64, b, i64, out, i64, i64, i64), codegen


class Scales:
    """Scales of blocks of a row and of columns, a tuple of what a kernel is given.

    Those of rows, float32: where the first row's stand, how far rows are apart; those of columns,
    likewise, how far blocks are apart; steps of a block.
    """

    def __init__(self, context: Any, b: Any, kind: Any, value: Any) -> None:
        self.b = b
        parts = [b.extract_value(value, i) for i in range(len(kind))]
        self.rows = pointer_at(context, b, kind[0], parts[0], parts[1])
        self.columns = pointer_at(context, b, kind[3], parts[3], parts[4])
        self.row_stride, self.column_stride, self.span = parts[2], parts[5], parts[6]

    def blocks(self, steps: Any) -> Any:
        """Return how many blocks there are in so many steps."""
        more = self.b.add(steps, self.b.sub(self.span, ir.Constant(I64, 1)))
        return self.b.sdiv(more, self.span)

    def block(self, i: Any, steps: Any) -> tuple[Any, Any]:
        """Return the first step of a block, and how many it has."""
        b, first = self.b, self.b.mul(i, self.span)
        left = b.sub(steps, first)
        return first, b.select(b.icmp_signed("<", left, self.span), left, self.span)

    def added(
        self, total: Any, value: Any, i: Any, row: Any, column: int, *, ask: bool = True
    ) -> Any:
        """Return a total plus block i's scaled value, of columns from `column` on.

        `ask` for later scales, too.
        """
        b, vector = self.b, total.type
        at = b.gep(self.rows, [b.add(b.mul(row, self.row_stride), i)])
        place = b.add(b.mul(i, self.column_stride), ir.Constant(I64, column))
        # blocks are pages apart, where the processor does not foresee them
        if ask:
            later = b.add(place, b.mul(self.column_stride, ir.Constant(I64, _AHEAD)))
            fetch(b, b.gep(self.columns, [later]))
        scales = b.load(b.bitcast(b.gep(self.columns, [place]), vector.as_pointer()), align=4)
        return b.fadd(total, b.fmul(value, b.fmul(broadcast(b, b.load(at), vector), scales)))


@emitted
def add_scaled(
    typing: Any, part: Any, width: Any, left: Any, starts: Any, starts_at: Any, out: Any,
    out_at: Any, stride: Any, rows: Any, rows_at: Any, rows_stride: Any, columns: Any,
    columns_at: Any,
) -> Any:  # fmt: skip
    """Add ``part * (rows[r] * columns[c])`` to out[r, c] in float32, each step rounded.

    `part` [left, width] is zero afterwards; width is a multiple of 16. Parts that are int32 get
    ``starts[c]`` first and are rounded to float32.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kinds = sig.args
        whole = kinds[0].dtype == types.int32
        vector = V32 if whole else VF

        def start(i: int, at: Any) -> Any:
            return pointer_at(context, b, kinds[i], args[i], at)

        def piece(first: Any, at: Any, kind: Any) -> Any:
            return b.bitcast(b.gep(first, [at]), kind.as_pointer())

        parts = start(0, ir.Constant(I64, 0))
        pieces = b.sdiv(args[1], ir.Constant(I64, 16))
        first, outs, scales = start(3, args[4]), start(5, args[6]), start(11, args[12])
        row_scales = start(8, args[9])

        def row(r: Any, carried: list[Any]) -> list[Any]:
            scale = broadcast(b, b.load(b.gep(row_scales, [b.mul(r, args[10])])), VF)
            line, results = b.mul(r, args[7]), b.mul(r, args[1])

            def some(c: Any, carried: list[Any]) -> list[Any]:
                column = b.mul(c, ir.Constant(I64, 16))
                place = piece(parts, b.add(results, column), vector)
                value = b.load(place, align=4)
                b.store(ir.Constant(vector, None), place, align=4)
                if whole:
                    value = b.add(value, b.load(piece(first, column, V32), align=4))
                    value = b.sitofp(value, VF)
                factor = b.fmul(scale, b.load(piece(scales, column, VF), align=4))
                total = piece(outs, b.add(line, column), VF)
                b.store(b.fadd(b.load(total, align=4), b.fmul(value, factor)), total, align=4)
                return carried

            loop(b, pieces, [], some)
            return carried

        loop(b, args[2], [], row)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(
        part, i64, i64, starts, i64, out, i64, i64, rows, i64, i64, columns, i64
    ), codegen
