"""Eight float64 lanes that a row of numbers is added to, or compared with, in turn.

Element j of a row goes to lane j mod 8, in increasing j: the order that `elementwise.functions`
defines its sums by. LLVM makes no vectors of a loop over eight scalars, so they are one here.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.simd import I64, emitted, loop, pointer_at

LANES = 8
SUM, SQUARES, MOST = range(3)  # what a lane becomes: it + x, it + x x, x if larger (NaN is not)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)


@emitted
def to_lanes(typing: Any, what: Any, x: Any, at: Any, eights: Any, lanes: Any) -> Any:
    """Take `eights` times 8 elements of x in C order, from element `at` of its memory on."""
    if not isinstance(what, types.IntegerLiteral):
        return None
    kind, wide = what.literal_value, x.dtype == types.float64

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        element = ir.DoubleType() if wide else ir.FloatType()
        source = ir.VectorType(element, LANES)
        first = pointer_at(context, b, sig.args[1], args[1], args[2])
        zero = ir.Constant(I64, 0)
        kept = b.bitcast(pointer_at(context, b, sig.args[4], args[4], zero), _DOUBLES.as_pointer())

        def step(i: Any, before: list[Any]) -> list[Any]:
            near = b.gep(first, [b.mul(i, ir.Constant(I64, LANES))])
            v = b.load(b.bitcast(near, source.as_pointer()), align=4)
            v = v if wide else b.fpext(v, _DOUBLES)
            if kind == MOST:
                return [b.select(b.fcmp_ordered(">", v, before[0]), v, before[0])]
            return [b.fadd(before[0], b.fmul(v, v) if kind == SQUARES else v)]

        b.store(loop(b, args[3], [b.load(kept, align=8)], step)[0], kept, align=8)
        return context.get_dummy_value()

    return types.void(what, x, types.int64, types.int64, lanes), codegen
