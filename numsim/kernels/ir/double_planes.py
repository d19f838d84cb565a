"""Codes of eight bits to the planes that the kernel of `ir.double` reads.

Exponents and places of the lowest bits that are set, as in `ir.fp8`, and float64 values.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.fp8 import (
    I8,
    LEFT,
    LOWEST,
    NO_LEFT,
    NO_RIGHT,
    RIGHT,
    SIGN,
    TURN,
    half_reader,
    lanes,
    planes_reader,
)
from numsim.kernels.ir.simd import I32, I64, emitted, loop, pointer_at, splat, vectors_of

COLUMNS = {"avx512": 64, "avx2": 32}  # of a panel, by path
A_STEP, A_REST = 4, 4  # words of a product: exponent, lowest bit, value; of a group: its scale
_V32, _VL = ir.VectorType(I32, 8), ir.VectorType(I64, 8)


def order(columns: int) -> tuple[int, ...]:
    """Return a panel's columns by place: a word has one of each quarter of the panel."""
    return tuple(columns // 4 * (place % 4) + place // 4 for place in range(columns))


def b_words(columns: int) -> tuple[int, int]:
    """Return the words of a product's columns, and of a group's: exponents and powers."""
    return 5 * columns // 2, 3 * columns


@emitted
def right_double(
    typing: Any, columns: Any, codes: Any, count: Any, planes: Any, fields: Any
) -> Any:
    """Write the exponents, lowest bits and float64 values of `count` k of columns in `order`.

    Values are in turn.
    `fields` is `gemm_codes.Fields`, of formats that `ir.fp8.half_reader` reads.
    """
    if not isinstance(columns, types.IntegerLiteral):
        return None
    width = columns.literal_value
    v, eight = lanes(width // 4), ir.VectorType(I32, 8)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[1], args[1], v.bytes)
        target = pointer_at(context, b, sig.args[3], args[3], ir.Constant(I64, 0))
        bytes_of, _ = planes_reader(b, v, args[4], RIGHT, LOWEST - SIGN, NO_RIGHT)
        halves_of = half_reader(b, v, args[4], double=True)
        half = width // 2

        def step(k: Any, carried: list[Any]) -> list[Any]:
            first = b.gep(target, [b.mul(k, ir.Constant(I64, b_words(width)[0]))])

            def put(word: int, value: Any) -> None:
                at = b.bitcast(b.gep(first, [ir.Constant(I64, word)]), value.type.as_pointer())
                b.store(value, at, align=4)

            code = b.load(b.gep(source, [k]), align=1)
            for i, plane in enumerate(bytes_of(b.bitcast(code, v.words))):
                put(width // 4 * i, plane)
            for i in range(2):  # bytes 2 i and 2 i + 1 of all words
                at = [n // 2 % (width // 4) * 4 + 2 * i + n // half for n in range(width)]
                twice = b.shuffle_vector(code, code, ir.Constant(ir.VectorType(I32, width), at))
                high = halves_of(twice)
                for q in range(half // 8):
                    at = ir.Constant(eight, [8 * q + n for n in range(8)])
                    value = b.zext(b.shuffle_vector(high, high, at), _VL)
                    put(half + half * i * 2 + 16 * q, b.shl(value, splat(_VL, 48)))
            return carried

        loop(b, args[2], [], step)
        return context.get_dummy_value()

    return types.void(columns, codes, types.int64, planes, fields), codegen


@emitted
def left_double(typing: Any, codes: Any, runs: Any, planes: Any, fields: Any) -> Any:
    """Write the exponents, lowest bits and float64 values of `runs` runs of 8 k of a row.

    `fields`: as in `right_double`.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], ir.VectorType(I8, 8))
        target = pointer_at(context, b, sig.args[2], args[2], ir.Constant(I64, 0))
        v = lanes(8)
        more = TURN[8]
        bytes_of, _ = planes_reader(b, v, args[3], LEFT, LOWEST + more, NO_LEFT + more & 255)
        halves_of = half_reader(b, v, args[3], double=True)

        def run(i: Any, carried: list[Any]) -> list[Any]:
            code = b.load(b.gep(source, [i]), align=1)
            four = ir.Constant(ir.VectorType(I32, 32), [n // 4 for n in range(32)])
            words = b.shuffle_vector(code, code, four)
            twice = ir.Constant(ir.VectorType(I32, 32), [n // 2 % 8 for n in range(32)])
            high = b.bitcast(halves_of(b.shuffle_vector(code, code, twice)), lanes(8).words)
            high = b.bitcast(high, ir.VectorType(ir.IntType(16), 16))
            first = ir.Constant(ir.VectorType(I32, 8), [*range(8)])
            values = b.zext(b.shuffle_vector(high, high, first), _VL)
            values = b.shl(values, splat(_VL, 48))
            places = [b.zext(b.bitcast(x, _V32), _VL) for x in bytes_of(b.bitcast(words, v.words))]
            heads = b.or_(places[0], b.shl(places[1], splat(_VL, 32)))
            order = ir.Constant(ir.VectorType(I32, 16), [n // 2 + 8 * (n % 2) for n in range(16)])
            at = b.gep(target, [b.mul(i, ir.Constant(I64, 8 * A_STEP))])
            whole = b.shuffle_vector(heads, values, order)
            b.store(whole, b.bitcast(at, whole.type.as_pointer()), align=4)
            return carried

        loop(b, args[1], [], run)
        return context.get_dummy_value()

    return types.void(codes, types.int64, planes, fields), codegen
