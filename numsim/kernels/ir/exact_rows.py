"""Exact sums of few rows with AVX-512: float64 of codes by tables, which nothing has to write.

Two exchanges give the two high bytes of 64 values, whose others are 0, and eight of another kind
put them where float64 has them: a third of what conversions by way of float16 take.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.fp8 import V8, declared
from numsim.kernels.ir.fp8_codes import ByTables, placed_doubles
from numsim.kernels.ir.simd import I16, I32, I64, PAGE, Tile, broadcast, emitted, fetch, loop

_COLUMNS, _TOGETHER = 16, 4  # of a panel; k of 64 codes
_WIDE, _FLOATS = ir.VectorType(ir.DoubleType(), 8), ir.VectorType(ir.FloatType(), 8)


@emitted
def exact_sums_by_tables(
    typing: Any, rows: Any, group: Any, tables: Any, a: Any, a_at: Any, b: Any, b_at: Any,
    out: Any, out_at: Any, stride: Any, steps: Any,
) -> Any:  # fmt: skip
    """Do what `ir.float16.exact_sums_by_halves` does, for literal `rows` whose lines follow.

    `tables`: of `ir.fp8_codes.ByTables`, of the values as float64; those of a are not scaled.
    """
    literal = types.IntegerLiteral
    if not (isinstance(rows, literal) and isinstance(group, literal)):
        return None
    count, products = rows.literal_value, group.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args, args, 2, _WIDE)
        looked = ByTables(context, b, sig.args[2], args[2])
        fma = declared(b, "llvm.fma.v8f64", *(_WIDE,) * 4)
        depth = b.mul(tile.steps, ir.Constant(I64, products))
        own = [b.gep(tile.a, [b.mul(depth, ir.Constant(I64, r))]) for r in range(count)]

        def values(k: Any) -> list[list[Any]]:
            """Return the values of four k from k on, of either half of the columns."""
            at = b.gep(tile.panel, [b.mul(k, ir.Constant(I64, _COLUMNS))])
            fetch(b, b.gep(at, [ir.Constant(I64, PAGE)]))
            code = b.load(b.bitcast(at, V8.as_pointer()), align=1)
            lower, upper, shorts = looked.looked_up(3, code), looked.upper(code), []
            for half in (0, 8):
                places = [_COLUMNS * u + half + n for u in range(_TOGETHER) for n in range(8)]
                order = ir.Constant(
                    ir.VectorType(I32, 64), [m for n in places for m in (n, 64 + n)]
                )
                both = b.shuffle_vector(lower, upper, order)
                shorts.append(b.bitcast(both, ir.VectorType(I16, 32)))
            every = [[8 * u + n for n in range(8)] for u in range(_TOGETHER)]
            return [[placed_doubles(b, x, words) for x in shorts] for words in every]

        def add(g: Any, totals: list[Any]) -> list[Any]:
            first = b.mul(g, ir.Constant(I64, products))
            sums: list[Any] = []  # apart from the totals, which wait for the last group's
            for run in range(0, products, _TOGETHER):
                k = b.add(first, ir.Constant(I64, run))
                for u, both in enumerate(values(k)):
                    at = b.add(k, ir.Constant(I64, u))
                    x = [broadcast(b, b.load(b.gep(line, [at])), _WIDE) for line in own]
                    terms = [(x[r], y) for r in range(count) for y in both]
                    sums = [
                        b.call(fma, [*term, sums[i]]) if sums else b.fmul(*term)
                        for i, term in enumerate(terms)
                    ]
            totals = [b.fadd(x, y) for x, y in zip(totals, sums, strict=True)]
            return [b.fpext(b.fptrunc(x, _FLOATS), _WIDE) for x in totals]

        tile.store(loop(b, tile.steps, tile.load(count), add), count)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(rows, group, tables, a, i64, b, i64, out, i64, i64, i64), codegen
