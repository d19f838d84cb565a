"""The call of a micro-kernel whose address a kernel is given."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.simd import I64, emitted, pointer_at


@emitted
def call_tile(
    typing: Any, address: Any, rule: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any,
    out_at: Any, stride: Any, steps: Any, left: Any,
) -> Any:  # fmt: skip
    """Call the micro-kernel at an address; return how many of the `left` rows it updated.

    It takes pointers to its places in a, b and the output, the stride of the output, the steps, the
    rows that are left, a pointer to the rule, and a flavour, which it was compiled for: any number.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        places = [pointer_at(context, b, sig.args[i], args[i], args[i + 1]) for i in (2, 4, 6)]
        numbers = pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0))
        values = [*places, *args[8:], numbers, ir.Constant(I64, 0)]
        kind = ir.FunctionType(I64, [value.type for value in values])
        return b.call(b.inttoptr(args[0], kind.as_pointer()), values)

    i64 = types.int64
    arrays = (a, i64, b, i64, out, i64)
    return i64(address, rule, *arrays, i64, i64, i64), codegen
