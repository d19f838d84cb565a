"""Blocks of 64 float32 numbers along rows as HiF4, 16 numbers a vector.

Proof: ``tests/quant/test_one_pass.py``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.fp8 import I8, top
from numsim.kernels.ir.simd import (
    I64,
    V32,
    VF,
    broadcast,
    emitted,
    loop,
    pointer_at,
    splat,
    vectors_of,
)

_DOUBLES, _BYTES = ir.VectorType(ir.DoubleType(), 16), ir.VectorType(I8, 16)


@emitted
def quarters(typing: Any, x: Any, inverse: Any, blocks: Any, out: Any) -> Any:
    """Store blocks of 64 words in quarters under three levels of scales, the first as its inverse.

    The arithmetic is that of `convert.hif4`: products are exact in float64.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], V32)
        scales = pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0))
        target = vectors_of(context, b, sig.args[3], args[3], _BYTES)
        one, two, four = (splat(_DOUBLES, value) for value in (1.0, 2.0, 4.0))
        most = splat(_DOUBLES, 7.5)

        def beside(x: Any, apart: int) -> Any:
            """Return the larger of each number and that so many places on or before."""
            order = ir.Constant(V32, [i ^ apart for i in range(16)])
            return top(b, x, b.shuffle_vector(x, x, order))

        def times(words: Any, by: Any) -> Any:
            return b.fmul(b.fpext(b.bitcast(words, VF), _DOUBLES), by)

        def block(i: Any, _: list[Any]) -> list[Any]:
            by = broadcast(b, b.load(b.gep(scales, [i])), _DOUBLES)
            for v in range(4):
                at = b.add(b.mul(i, ir.Constant(I64, 4)), ir.Constant(I64, v))
                word = b.load(b.gep(source, [at]), align=4)
                a = b.and_(word, splat(V32, 0x7FFFFFFF))
                own = beside(beside(a, 1), 2)
                eight = b.fcmp_ordered(">=", times(beside(own, 4), by), four)
                level = b.select(eight, two, one)
                limit = b.fmul(level, two)
                fours = b.fcmp_ordered(">=", times(own, by), limit)
                factor = b.select(eight, two, four)  # four over what doubles the scale
                factor = b.select(fours, b.select(eight, one, two), factor)
                steps = b.fadd(times(a, b.fmul(by, factor)), splat(_DOUBLES, 0.5))
                steps = b.select(b.fcmp_ordered("<", steps, most), steps, most)
                count = b.fptosi(steps, V32)
                shift = b.add(b.zext(eight, V32), b.zext(fours, V32))
                count = b.shl(count, shift)
                negative = b.icmp_signed("<", word, splat(V32, 0))
                count = b.select(negative, b.sub(splat(V32, 0), count), count)
                b.store(b.trunc(count, _BYTES), b.gep(target, [at]), align=1)
            return []

        loop(b, args[2], [], block)
        return context.get_dummy_value()

    return types.void(x, inverse, types.int64, out), codegen
