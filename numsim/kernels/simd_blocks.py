"""What follows a block whose scale stands outside the unit: its results scaled and added."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.simd import _I64 as I64
from numsim.kernels.simd import _V32 as V32
from numsim.kernels.simd import _VF as VF
from numsim.kernels.simd import _broadcast, _intrinsic, _loop, pointer_at


@_intrinsic
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
            scale = _broadcast(b, b.load(b.gep(row_scales, [b.mul(r, args[10])])), VF)
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

            _loop(b, pieces, [], some)
            return carried

        _loop(b, args[2], [], row)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(
        part, i64, i64, starts, i64, out, i64, i64, rows, i64, i64, columns, i64
    ), codegen
