"""The vector micro-kernels of integer units: exact sums, and sums that saturate as they go.

One lane is one output. A word of 32 bits holds four bytes or two int16 of consecutive k; VNNI adds
four products of bytes at once, elsewhere plain multiplications and additions do. Proof:
``tests/kernels/test_gemm_saturate.py`` and ``tests/targets/test_fast_units.py``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.simd import (
    FMA_ROWS,
    I32,
    I64,
    INT8_COLUMNS,
    INT8_ROWS,
    V16,
    V32,
    VF,
    Tile,
    broadcast,
    emitted,
    fetch,
    loop,
    signature_of,
    splat,
)

CLAMP, FULL, PAIRS = range(3)
COLUMNS = 32


def _pair_sums(b: Any, x: Any, y: Any) -> Any:
    """Return x[2i] y[2i] + x[2i + 1] y[2i + 1] of int16, as int32: one instruction of x86."""
    twice = ir.VectorType(I32, x.type.count)
    products = b.mul(b.sext(x, twice), b.sext(y, twice))
    half = x.type.count // 2
    even, odd = (
        b.shuffle_vector(
            products,
            ir.Constant(twice, ir.Undefined),
            ir.Constant(ir.VectorType(I32, half), list(range(first, 2 * half, 2))),
        )
        for first in range(2)
    )
    return b.add(even, odd)


def _int8_sums(
    b: Any, tile: Tile, count: int, before: list[Any], *, native: bool, later: Any = None,
    pace: Any = None,
) -> list[Any]:  # fmt: skip
    """Return `before` and, modulo 2^32, four products of an unsigned a and a signed b per step.

    Each step asks for memory: what stands a page later in the panel, or, if there is an address
    `later`, for one line from there on, `pace` words a step.
    """
    dot4 = None
    if native:
        kind = ir.FunctionType(V32, [V32] * 3)
        dot4 = b.module.declare_intrinsic("llvm.x86.avx512.vpdpbusd.512", (), kind)

    eight, low = splat(V16, 8), splat(V16, 255)

    def row(k: Any, r: int) -> Any:
        return broadcast(b, tile.scalar(k, INT8_ROWS, r), V32)

    def column(k: Any, c: int) -> Any:
        if later is None and (count == 1 or native):
            tile.ahead(k, INT8_COLUMNS, 16 * c)
        return tile.columns(k, INT8_COLUMNS, 16 * c)

    def ask(k: Any) -> None:
        if later is not None:
            fetch(b, b.gep(later, [b.mul(k, pace)]), level=2)

    def wide_step(k: Any, acc: list[Any]) -> list[Any]:
        ask(k)
        columns = [column(k, c) for c in range(2)]
        new = []
        for r in range(count):
            x = row(k, r)
            new += [b.call(dot4, [acc[2 * r + c], x, columns[c]]) for c in range(2)]
        return new

    def step(k: Any, acc: list[Any]) -> list[Any]:
        ask(k)
        rows, new = [], list(acc)
        for r in range(count):
            x = b.bitcast(row(k, r), V16)
            rows.append((b.and_(x, low), b.lshr(x, eight)))  # the even bytes, and the odd ones
        for c in range(2):
            y = b.bitcast(column(k, c), V16)
            columns = b.ashr(b.shl(y, eight), eight), b.ashr(y, eight)
            for r in range(count):
                for pair in zip(rows[r], columns, strict=True):
                    new[2 * r + c] = b.add(new[2 * r + c], _pair_sums(b, *pair))
        return new

    sums: list[Any] = loop(b, tile.steps, before, wide_step if native else step)
    return sums


@emitted
def int8_tile(
    typing: Any, rows: Any, wide: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any,
    stride: Any, steps: Any,
) -> Any:  # fmt: skip
    """Add to out[r, :], modulo 2^32, four products of an unsigned a and a signed b per step."""
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(wide, types.IntegerLiteral)):
        return None
    count, native = rows.literal_value, bool(wide.literal_value)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args, args, 2, V32)
        tile.store(_int8_sums(b, tile, count, tile.load(count), native=native), count)
        return context.get_dummy_value()

    return signature_of(a, b, out, rows, wide), codegen


@emitted
def scaled_int8_tile(
    typing: Any, rows: Any, wide: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any,
    stride: Any, steps: Any, begin: Any, begin_at: Any, first: Any, scale: Any, last: Any,
    later: Any, pace: Any,
) -> Any:  # fmt: skip
    """Write to out[r, :] what `int8_tile` adds to it, from first sums to scaled ones.

    If a block of k is the `first`, sums start from `begin`, one row for all, and out is not read.
    If it is the `last`, they become float32, are multiplied by `scale`, and out holds their bits.
    Calls of the most rows ask for b's elements from `later` on, `pace` of them a step: what comes
    next.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(wide, types.IntegerLiteral)):
        return None
    count, native = rows.literal_value, bool(wide.literal_value)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args[:-7], args[:-7], 2, V32)
        begin, begin_at, first, scale, last, later, pace = args[-7:]
        for at in tile.outputs(count):  # new memory, which nothing else reads: it comes meanwhile
            fetch(b, at, write=True)
        fresh = b.icmp_signed("!=", first, ir.Constant(I64, 0))
        row = tile.pointer(context, sig.args[-7], begin, begin_at)
        out, stride = tile.out, tile.stride
        tile.out = b.select(fresh, row, out)
        tile.stride = b.select(fresh, ir.Constant(I64, 0), stride)
        before = tile.load(count)
        tile.out, tile.stride = out, stride
        whole = count == (INT8_ROWS if native else 2)  # fewer rows read b as fast as it comes
        ahead = b.gep(tile.panel, [b.sub(later, args[5])]) if whole else None
        sums = _int8_sums(b, tile, count, before, native=native, later=ahead, pace=pace)
        scaled, by = b.icmp_signed("!=", last, ir.Constant(I64, 0)), broadcast(b, scale, VF)
        singles = [b.bitcast(b.fmul(b.sitofp(v, VF), by), V32) for v in sums]
        tile.store([b.select(scaled, x, v) for x, v in zip(singles, sums, strict=True)], count)
        return context.get_dummy_value()

    i64 = types.int64
    ends = (begin, i64, i64, types.float32, i64, i64, i64)
    return types.void(rows, wide, a, i64, b, i64, out, i64, i64, i64, *ends), codegen


def saturating_flavour(kind: int, each: int) -> int:
    """Return what is compiled into a `saturating_tile`, as one number."""
    return 4 * kind + each


@emitted
def saturating_tile(
    typing: Any, rows: Any, flavour: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any,
    out_at: Any, stride: Any, steps: Any, rule: Any,
) -> Any:  # fmt: skip
    """Add the products of a group to out[r, :], int32 throughout.

    `rule` holds the steps of a group and the least and largest sum; `flavour` is that of a kind and
    of how many products a step has (`saturating_flavour`). Kinds: CLAMP limits every sum,
    none of which leaves int32 before; FULL saturates to int32; PAIRS limits the sum of two
    neighbouring products instead, and adds those modulo 2^32. A step is `each` products, one or
    two: b holds them side by side, a in the halves of a word, the upper 0 if there is one. Elements
    of b with 32 bits are one a step, and so are those of a.
    """
    if not all(isinstance(x, types.IntegerLiteral) for x in (rows, flavour)):
        return None
    count, (how, width) = rows.literal_value, divmod(flavour.literal_value, 4)
    vectors = COLUMNS // 16

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args[:-1], args[:-1], vectors, V32)
        pointer = tile.pointer(context, sig.args[-1], args[-1], ir.Constant(I64, 0))
        group, low, high = (b.load(b.gep(pointer, [ir.Constant(I64, i)])) for i in range(3))
        low, high = (broadcast(b, b.trunc(v, I32), V32) for v in (low, high))
        name = "llvm.sadd.sat.v16i32"
        saturating = b.module.declare_intrinsic(name, (), ir.FunctionType(V32, [V32] * 2))

        def clamped(x: Any) -> Any:
            x = b.select(b.icmp_signed("<", x, high), x, high)
            return b.select(b.icmp_signed(">", x, low), x, low)

        def added(acc: Any, x: Any) -> Any:
            if how == FULL:
                return b.call(saturating, [acc, x])
            acc = b.add(acc, x)
            return clamped(acc) if how == CLAMP else acc

        element = sig.args[-7].dtype
        read = ir.VectorType(ir.IntType(element.bitwidth), 16 * width)
        extended = b.sext if element.signed else b.zext

        def product(x: Any, y: Any) -> Any:
            if element.bitwidth == 32:
                return b.mul(x, y)
            y = b.bitcast(extended(y, V16 if width == 2 else V32), V16)
            return _pair_sums(b, b.bitcast(x, V16), y)

        def products(k: Any) -> list[Any]:
            columns = [
                tile.columns(k, COLUMNS * width, 16 * width * c, read) for c in range(vectors)
            ]
            if count == 1:
                for c in range(vectors):
                    tile.ahead(k, COLUMNS * width, 16 * width * c)
            rows = [broadcast(b, tile.scalar(k, FMA_ROWS, r), V32) for r in range(count)]
            return [product(x, y) for x in rows for y in columns]

        def single(k: Any, acc: list[Any]) -> list[Any]:
            return [added(x, y) for x, y in zip(acc, products(k), strict=True)]

        def pair(p: Any, acc: list[Any]) -> list[Any]:
            k = b.mul(p, ir.Constant(I64, 2))
            first, second = products(k), products(b.add(k, ir.Constant(I64, 1)))
            sums = [clamped(b.add(x, y)) for x, y in zip(first, second, strict=True)]
            return [b.add(x, y) for x, y in zip(acc, sums, strict=True)]

        def grouped(g: Any, acc: list[Any]) -> list[Any]:
            first = b.mul(g, group)

            def inside(i: Any, sums: list[Any]) -> list[Any]:
                new = products(b.add(first, i))
                return [b.add(x, y) for x, y in zip(sums, new, strict=True)]

            zeros = [splat(V32, 0)] * len(acc)
            sums = loop(b, group, zeros, inside)
            return [added(x, y) for x, y in zip(acc, sums, strict=True)]

        def limited(k: Any, acc: list[Any]) -> list[Any]:
            return [b.add(x, clamped(y)) for x, y in zip(acc, products(k), strict=True)]

        before = tile.load(count)
        if how == PAIRS and width == 2:
            tile.store(loop(b, tile.steps, before, limited), count)
            return context.get_dummy_value()
        if how == PAIRS:
            pairs = b.lshr(tile.steps, ir.Constant(I64, 1))
            tile.store(loop(b, pairs, before, pair), count)
            return context.get_dummy_value()
        one = b.icmp_signed("==", group, ir.Constant(I64, 1))
        with b.if_else(one) as (then, otherwise):
            with then:
                tile.store(loop(b, tile.steps, before, single), count)
            with otherwise:
                groups = b.sdiv(tile.steps, group)
                tile.store(loop(b, groups, before, grouped), count)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(rows, flavour, a, i64, b, i64, out, i64, i64, i64, rule), codegen
