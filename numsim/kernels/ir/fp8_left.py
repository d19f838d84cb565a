"""Codes of the left operand to the planes of Hopper's FP8 rule, by byte tables and in one call.

Proof: ``tests/targets/test_fast_units.py`` compares products with the definition on every path.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.fp8 import A_WORDS, EIGHT, ROWS, RUN, V8, storing
from numsim.kernels.ir.fp8_codes import ByTables
from numsim.kernels.ir.simd import I32, I64, V32, emitted, loop, pointer_at, splat, vectors_of


@emitted
def looked_up_left(
    typing: Any, codes: Any, first: Any, last: Any, fours: Any, block: Any, tiles: Any,
    planes: Any, tables: Any,
) -> Any:  # fmt: skip
    """Do what `left_codes` does with AVX-512, for all codes of the rows from `first` to `last`.

    A row of codes, of all tiles, holds `fours` times four runs, a block of planes `block` times
    four. `tables` are of bytes, as for `looked_up_codes`. One call keeps them in registers.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        _, first, last, fours, block, tiles = args[:6]
        source = vectors_of(context, b, sig.args[0], args[0], V8)
        target = pointer_at(context, b, sig.args[6], args[6], ir.Constant(I64, 0))
        read = ByTables(context, b, sig.args[7], args[7])
        zero, high = splat(V8, 0), splat(V32, -(1 << 16))

        def times(x: Any, y: int) -> Any:
            return b.mul(x, ir.Constant(I64, y))

        def line(i: Any, carried: list[Any]) -> list[Any]:
            row = b.add(first, i)
            tile, place = b.udiv(row, ir.Constant(I64, ROWS)), b.urem(row, ir.Constant(I64, ROWS))

            def four(n: Any, carried: list[Any]) -> list[Any]:
                code = b.load(b.gep(source, [b.add(b.mul(row, fours), n)]), align=1)
                upper, lower = read.upper(code), read.looked_up(3, code)
                exponents = read.exponents(code)
                signs = b.bitcast(b.icmp_signed("<", upper, zero), I64)
                of_tile = b.add(b.mul(b.udiv(n, block), tiles), tile)
                at = times(b.add(b.mul(of_tile, block), b.urem(n, block)), 4 * A_WORDS)
                put = storing(b, b.gep(target, [b.add(at, times(place, RUN))]))
                for r in range(4):
                    each = [16 * r + k // 4 for k in range(64)]
                    order = ir.Constant(ir.VectorType(I32, 64), each)
                    pairs = ir.Constant(order.type, [k + 64 * (i % 2) for i, k in enumerate(each)])
                    both = b.bitcast(b.shuffle_vector(lower, upper, pairs), V32)
                    spread = b.shuffle_vector(exponents, zero, order)
                    put(A_WORDS * r, b.bitcast(spread, V32))
                    for j in range(RUN // EIGHT):
                        away = ir.Constant(I64, RUN * r + EIGHT * j)
                        byte = b.and_(b.trunc(b.lshr(signs, away), I32), ir.Constant(I32, 255))
                        four_times = b.mul(byte, ir.Constant(I32, 0x01010101))
                        put(A_WORDS * r + ROWS * RUN + j, four_times)
                    larger = b.or_(b.and_(both, high), splat(V32, 1))
                    put(A_WORDS * r + 2 * ROWS * RUN, larger)
                return carried

            loop(b, fours, [], four)
            return carried

        loop(b, b.sub(last, first), [], line)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(codes, i64, i64, i64, i64, i64, planes, tables), codegen
