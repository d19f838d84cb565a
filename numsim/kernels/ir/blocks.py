"""What follows a block whose scale stands outside the unit: its results scaled and added.

``out += fp32(result * fp32(row scale * column scale))``, each operation rounded, for a tile of
float32 or int32 results that lie row by row; or the chain of multiply-adds before it, too, without
leaving the registers. Proof: ``tests/targets/test_block_products.py``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.fp8 import declared
from numsim.kernels.ir.simd import (
    FMA_ROWS,
    I64,
    V32,
    VF,
    Tile,
    broadcast,
    emitted,
    loop,
    pointer_at,
)


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
