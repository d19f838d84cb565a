"""Rows of words laid out k by k, 16 k at a time; rows of codes, 32.

A tile's rows lie along memory and a micro-kernel wants the rows of one k side by side: a transposed
copy in registers. Proof: ``tests/kernels/test_gemm_kernels.py`` compares with NumPy's.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.np import arrayobj

from numsim.kernels.ir.simd import (
    I32,
    I64,
    V32,
    broadcast,
    emitted,
    fetch,
    loop,
    pointer_at,
)


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


@emitted
def turned_words(
    typing: Any, most: Any, rows: Any, words: Any, at: Any, width: Any, runs: Any, flip: Any
) -> Any:
    """Write `runs` times 16 words of each of at most `most` rows, XOR `flip`.

    Those of one k, `width` of them to the next k, begin at `at`. `most` is up to 16; rows that
    there are not become copies of the last one.
    """
    if not isinstance(most, types.IntegerLiteral):
        return None
    count = most.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        make: Any = arrayobj.make_array
        source = make(sig.args[1])(context, b, args[1])
        stride, used = (b.extract_value(x, 0) for x in (source.strides, source.shape))
        last = b.sub(used, ir.Constant(I64, 1))
        target, each = pointer_at(context, b, sig.args[2], args[2], args[3]), args[4]
        mask = ir.VectorType(ir.IntType(1), 16)
        kind = ir.FunctionType(ir.VoidType(), [V32, V32.as_pointer(), I32, mask])
        store = b.module.declare_intrinsic("llvm.masked.store.v16i32.p0", (), kind)
        inside = ir.Constant(mask, [i < count for i in range(16)])
        other = broadcast(b, args[6], V32)
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
                at = b.gep(target, [b.mul(step, each)])
                b.call(store, [line, b.bitcast(at, V32.as_pointer()), ir.Constant(I32, 4), inside])
            return carried

        loop(b, args[5], [], run)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(most, rows, words, i64, i64, i64, types.uint32), codegen


def interleaved(b: Any, x: Any, y: Any, bits: int, high: int) -> Any:
    """Return elements of x and y in turn, of the lower or upper half of every 16 bytes."""
    each = 128 // bits
    vector = ir.VectorType(ir.IntType(bits), 2 * each)
    at = [each * lane + each // 2 * high + n for lane in range(2) for n in range(each // 2)]
    order = ir.Constant(ir.VectorType(I32, 2 * each), [m for n in at for m in (n, 2 * each + n)])
    return b.shuffle_vector(b.bitcast(x, vector), b.bitcast(y, vector), order)


@emitted
def turned_quads(typing: Any, rows: Any, words: Any) -> Any:
    """Write 64 codes of each of 64 rows [64, 64] as those of 64 k, 16 words each.

    Word i holds the codes of rows i, 16 + i, 32 + i and 48 + i (`ir.fp8.ORDER`). For registers of
    32 bytes, whose halves exchange nothing.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        make: Any = arrayobj.make_array
        source = make(sig.args[0])(context, b, args[0])
        stride = b.extract_value(source.strides, 0)
        target = pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0))
        codes, quarter = ir.VectorType(ir.IntType(8), 32), ir.VectorType(I32, 4)

        def piece(n: Any, carried: list[Any]) -> list[Any]:  # a quarter of the rows
            first = b.mul(n, ir.Constant(I64, 4))
            lines: list[list[Any]] = []  # of four rows, the words of 4 k and of the 4 k 16 later
            for i in range(4):
                row = []
                for j in range(4):
                    line = b.mul(stride, b.add(first, ir.Constant(I64, 16 * j + i)))
                    at = b.gep(source.data, [line])
                    fetch(b, b.gep(at, [ir.Constant(I64, 64)]))
                    at = b.bitcast(at, codes.as_pointer())
                    places = [b.gep(at, [ir.Constant(I64, half)]) for half in range(2)]
                    row.append([b.load(place, align=1) for place in places])
                words = []
                for half in range(2):
                    low, high = (
                        [interleaved(b, row[j][half], row[j + 1][half], 8, h) for h in (0, 1)]
                        for j in (0, 2)
                    )
                    words += [
                        interleaved(b, low[q // 2], high[q // 2], 16, q % 2) for q in range(4)
                    ]
                lines.append(words)
            for q in range(8):
                w = [line[q] for line in lines]
                low, high = (
                    [interleaved(b, w[j], w[j + 1], 32, h) for h in (0, 1)] for j in (0, 2)
                )
                for j in range(4):
                    done = interleaved(b, low[j // 2], high[j // 2], 64, j % 2)
                    done = b.bitcast(done, ir.VectorType(I32, 8))
                    for half in range(2):
                        order = ir.Constant(quarter, [4 * half + m for m in range(4)])
                        k = 32 * (q // 4) + 16 * half + 4 * (q % 4) + j
                        at = b.gep(target, [b.add(first, ir.Constant(I64, 16 * k))])
                        some = b.shuffle_vector(done, done, order)
                        b.store(some, b.bitcast(at, quarter.as_pointer()), align=4)
            return carried

        loop(b, ir.Constant(I64, 4), [], piece)
        return context.get_dummy_value()

    return types.void(rows, words), codegen
