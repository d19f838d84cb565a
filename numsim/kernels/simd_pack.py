"""Rows of words laid out k by k, 16 k at a time."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.np import arrayobj

from numsim.kernels.simd import _I32 as I32
from numsim.kernels.simd import _I64 as I64
from numsim.kernels.simd import _V32 as V32
from numsim.kernels.simd import FMA_ROWS, _broadcast, _intrinsic, _loop, pointer_at


def transposed(b: Any, lines: list[Any]) -> list[Any]:
    """Return 16 vectors of 16 words with rows and lanes exchanged."""
    lines = list(lines)
    for step in (1, 2, 4, 8):  # rows and lanes change places where this bit differs
        for i in range(16):
            if not i & step:
                x, y = lines[i], lines[i + step]
                low = [n if not n & step else 16 + n - step for n in range(16)]
                high = [n + step if not n & step else 16 + n for n in range(16)]
                lines[i], lines[i + step] = (
                    b.shuffle_vector(x, y, ir.Constant(V32, mask)) for mask in (low, high)
                )
    return lines


@_intrinsic
def turned_words(typing: Any, rows: Any, words: Any, runs: Any, flip: Any) -> Any:
    """Write `runs` times 16 words of each of at most 12 rows, XOR `flip`, as [k, 12].

    Rows that there are not become copies of the last one.
    """
    count = FMA_ROWS

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        make: Any = arrayobj.make_array
        source = make(sig.args[0])(context, b, args[0])
        stride, used = (b.extract_value(x, 0) for x in (source.strides, source.shape))
        last = b.sub(used, ir.Constant(I64, 1))
        target = pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0))
        mask = ir.VectorType(ir.IntType(1), 16)
        kind = ir.FunctionType(ir.VoidType(), [V32, V32.as_pointer(), I32, mask])
        store = b.module.declare_intrinsic("llvm.masked.store.v16i32.p0", (), kind)
        inside = ir.Constant(mask, [i < count for i in range(16)])
        other = _broadcast(b, args[3], V32)
        data = b.bitcast(source.data, ir.IntType(8).as_pointer())
        starts = []
        for i in range(count):
            row = ir.Constant(I64, i)
            row = b.select(b.icmp_signed("<", row, last), row, last)
            starts.append(b.bitcast(b.gep(data, [b.mul(row, stride)]), V32.as_pointer()))

        def run(n: Any, carried: list[Any]) -> list[Any]:
            lines = [b.xor(b.load(b.gep(start, [n]), align=1), other) for start in starts]
            lines += [ir.Constant(V32, ir.Undefined)] * (16 - count)
            for k, line in enumerate(transposed(b, lines)):
                step = b.add(b.mul(n, ir.Constant(I64, 16)), ir.Constant(I64, k))
                at = b.gep(target, [b.mul(step, ir.Constant(I64, count))])
                b.call(store, [line, b.bitcast(at, V32.as_pointer()), ir.Constant(I32, 4), inside])
            return carried

        _loop(b, args[2], [], run)
        return context.get_dummy_value()

    return types.void(rows, words, types.int64, types.uint32), codegen
