"""Codes of eight bits to the planes that the vector kernel of Hopper's FP8 rule reads.

A plane of exponents and one of the places of the lowest bits that are set, a byte for each code;
float32 values. 64 codes at a time: by arithmetic for any format, or by tables of 128 bytes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.np import arrayobj

from numsim.kernels.simd import _BIAS as BIAS
from numsim.kernels.simd import _FRACTION as FRACTION
from numsim.kernels.simd import _I64 as I64
from numsim.kernels.simd import _V32 as V32
from numsim.kernels.simd import _VF as VF
from numsim.kernels.simd import (
    PAGE,
    _broadcast,
    _intrinsic,
    _loop,
    _splat,
    fetch,
    pointer_at,
    vectors_of,
)
from numsim.kernels.simd_pack import transposed

ROWS, COLUMNS = 2, 64
RUN = 16  # products of a row whose planes stand side by side
A_WORDS = 3 * ROWS * RUN  # of a run: exponents, lowest bits, values; all rows of each
B_WORDS = 3 * COLUMNS // 2  # of a k: exponents and lowest bits, a byte each, and values
# A panel's columns i, 16 + i, 32 + i, 48 + i share word i of their codes, exponents and lowest bits
ORDER = tuple(16 * (place % 4) + place // 4 for place in range(COLUMNS))
TURNED = 64  # codes of a row that are read at a time where columns are rows of memory
AHEAD = PAGE // COLUMNS  # k that are asked for before they are read
LEAST, MOST = -16, 15  # exponents of factors
WIDEST = 128  # products of a group: their sum and the accumulator stay in the binade

# The sum of two factors' bytes is the field of the binade that their product alone would choose. A
# zero's byte is 0, which makes less than any sum of others. Accumulators are multiples of the last
# place at the floor, so that it cuts nothing from them.
FIELD = BIAS + 23 - FRACTION
LEFT, RIGHT, FLOOR = FIELD // 2, -(-FIELD // 2), FIELD + 2 * LEAST - 1
# The sum of two factors' lowest bits, from LOWEST on each, is below PLACES for a product of
# unlike signs, and not for others or zeros, modulo 256: one sign adds SIGN on the left, the other
# takes it away on the right.
LOWEST, SIGN, PLACES = 3 - LEAST, 108, 2 * (3 - LEAST + MOST) + 1
_NO_LEFT, _NO_RIGHT = 216, 109  # of zeros; on the right with SIGN or without

PICK = "llvm.x86.avx512.vpermi2var.qi.512"  # bytes of two vectors, by their places
I8 = ir.IntType(8)
V8 = ir.VectorType(I8, 64)


def declared(b: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Return an intrinsic of LLVM."""
    return b.module.declare_intrinsic(name, (), ir.FunctionType(result, list(arguments)))


def top(b: Any, x: Any, y: Any) -> Any:
    """Return the larger of unsigned lanes."""
    return b.select(b.icmp_unsigned(">", x, y), x, y)


def bottom(b: Any, x: Any, y: Any) -> Any:
    """Return the smaller of unsigned lanes."""
    return b.select(b.icmp_unsigned("<", x, y), x, y)


def halves(b: Any, x: Any, y: Any, mask: int) -> Any:
    """Return the bits of x where `mask` has 1, those of y elsewhere."""
    high = b.and_(x, _splat(V32, mask - (1 << 32)))
    return b.or_(high, b.and_(y, _splat(V32, ~mask & 0xFFFFFFFF)))


def _reader(b: Any, fields: Any, exponent: int, lowest: int, nothing: int) -> tuple[Any, Any]:
    """Return how words of four codes are read: exponents and lowest bits, and values of byte i."""

    def field(index: int, vector: Any = V32) -> Any:
        value = b.extract_value(fields, index)
        return _broadcast(b, value if vector is V32 else b.trunc(value, I8), vector)

    magnitude, sign, sign_up, up, rebias = (field(i) for i in (0, 1, 2, 6, 8))
    magnitude8, sign8, trailing8, fraction8, bias8 = (field(i, V8) for i in (0, 1, 3, 4, 5))
    zero8, one8 = _splat(V8, 0), _splat(V8, 1)
    placed, placed_sign = b.shl(magnitude, up), b.shl(sign, sign_up)
    turn = declared(b, "llvm.fshl.v16i32", V32, V32, V32, V32)
    fma = declared(b, "llvm.fma.v16f32", VF, VF, VF, VF)
    pick = declared(b, "llvm.x86.avx512.pshuf.b.512", V8, V8, V8)
    zeros = ir.Constant(V8, [(n & -n).bit_length() - 1 if n else 0 for n in range(16)] * 4)
    two = _splat(VF, 2.0)
    least = b.fneg(b.bitcast(b.add(rebias, _splat(V32, 1 << 23)), VF))
    more, hidden = b.sub(_splat(V8, exponent), bias8), b.shl(one8, trailing8)
    less = b.sub(_splat(V8, lowest), b.add(bias8, trailing8))

    def bytes_of(words: Any) -> tuple[Any, Any]:
        code = b.bitcast(words, V8)
        m = b.and_(code, magnitude8)
        e = top(b, b.lshr(m, trailing8), one8)
        none = b.icmp_unsigned("==", m, zero8)
        places = b.call(pick, [zeros, b.or_(b.and_(m, fraction8), hidden)])
        low = b.add(b.add(e, less), places)
        negative = b.icmp_unsigned("!=", b.and_(code, sign8), zero8)
        low = b.select(negative, b.add(low, _splat(V8, SIGN)), low)
        low = b.select(none, _splat(V8, nothing), low)
        return b.select(none, zero8, b.add(e, more)), low

    def values(words: Any, i: int) -> Any:
        bits = b.call(turn, [words, words, b.sub(up, _splat(V32, 8 * i))])  # counts modulo 32
        read = b.bitcast(b.add(b.and_(bits, placed), rebias), VF)
        # A subnormal magnitude was read as (1 + f) 2^(emin - 1) instead of f 2^emin, which is
        # twice that less 2^emin; for the others that difference is no less than what was read.
        twice = b.call(fma, [read, two, least])
        size = b.select(b.fcmp_ordered("<", read, twice), read, twice)
        turned = b.call(turn, [words, words, b.sub(sign_up, _splat(V32, 8 * i))])
        return b.bitcast(b.or_(b.bitcast(size, V32), b.and_(turned, placed_sign)), VF)

    return bytes_of, values


def _storing(b: Any, first: Any) -> Any:
    """Return a function that stores a value in the place of vector `plane` from `first` on."""
    start = b.bitcast(first, V32.as_pointer())

    def put(plane: int, value: Any) -> None:
        b.store(b.bitcast(value, V32), b.gep(start, [ir.Constant(I64, plane)]), align=4)

    return put


@_intrinsic
def left_codes(typing: Any, codes: Any, runs: Any, row: Any, words: Any, fields: Any) -> Any:
    """Write the planes of `row` of a tile: `runs` runs of codes that stand side by side.

    `fields` is `gemm_codes.Fields`; formats have at most 3 fraction bits and 8 bits in all.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], ir.VectorType(I8, RUN))
        target = pointer_at(context, b, sig.args[3], args[3], ir.Constant(I64, 0))
        bytes_of, values = _reader(b, args[4], LEFT, LOWEST, _NO_LEFT)

        def run(i: Any, carried: list[Any]) -> list[Any]:
            code = b.zext(b.load(b.gep(source, [i]), align=1), V32)
            words = b.mul(code, _splat(V32, 0x01010101))
            at = b.add(b.mul(i, ir.Constant(I64, A_WORDS)), b.mul(args[2], ir.Constant(I64, RUN)))
            put = _storing(b, b.gep(target, [at]))
            for plane, value in enumerate((*bytes_of(words), values(words, 0))):
                put(plane * ROWS, value)
            return carried

        _loop(b, args[1], [], run)
        return context.get_dummy_value()

    return types.void(codes, types.int64, types.int64, words, fields), codegen


@_intrinsic
def right_codes(typing: Any, codes: Any, count: Any, words: Any, fields: Any) -> Any:
    """Write the planes of `count` k of a panel, whose columns stand in `ORDER`."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], V32)
        target = pointer_at(context, b, sig.args[2], args[2], ir.Constant(I64, 0))
        bytes_of, values = _reader(b, args[3], RIGHT, LOWEST - SIGN, _NO_RIGHT)

        def step(k: Any, carried: list[Any]) -> list[Any]:
            put = _storing(b, b.gep(target, [b.mul(k, ir.Constant(I64, B_WORDS))]))
            fetch(b, b.gep(source, [b.add(k, ir.Constant(I64, AHEAD))]))
            words = b.load(b.gep(source, [k]), align=1)
            planes = (*bytes_of(words), *(values(words, i) for i in range(4)))
            for plane, value in enumerate(planes):
                put(plane, value)
            return carried

        _loop(b, args[1], [], step)
        return context.get_dummy_value()

    return types.void(codes, types.int64, words, fields), codegen


@_intrinsic
def looked_up_codes(typing: Any, codes: Any, count: Any, words: Any, tables: Any) -> Any:
    """Do what `right_codes` does, by `tables` of codes 0 to 127, a byte for each.

    They are exponents, lowest bits, and the two high bytes of values (the others are 0). The sign
    of formats of eight bits is not in them.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], V8)
        target = pointer_at(context, b, sig.args[2], args[2], ir.Constant(I64, 0))
        exponents, rest = reader_by_tables(context, b, sig.args[3], args[3])

        def step(k: Any, carried: list[Any]) -> list[Any]:
            put = _storing(b, b.gep(target, [b.mul(k, ir.Constant(I64, B_WORDS))]))
            fetch(b, b.gep(source, [b.add(k, ir.Constant(I64, AHEAD))]))
            code = b.load(b.gep(source, [k]), align=1)
            lowest, values = rest(code)
            for plane, value in enumerate((exponents(code), lowest, *values)):
                put(plane, value)
            return carried

        _loop(b, args[1], [], step)
        return context.get_dummy_value()

    return types.void(codes, types.int64, words, tables), codegen


def reader_by_tables(context: Any, b: Any, kind: Any, tables: Any) -> tuple[Any, Any]:
    """Return how 64 codes are read: their exponents; their lowest bits and four vectors' values."""
    first = vectors_of(context, b, kind, tables, V8)
    parts = [b.load(b.gep(first, [ir.Constant(I64, i)]), align=1) for i in range(8)]
    pick = declared(b, PICK, V8, V8, V8, V8)
    sign8, eight, high = _splat(V8, -128), _splat(V32, 8), _splat(V32, -(1 << 16))

    def looked_up(table: int, code: Any) -> Any:
        return b.call(pick, [parts[2 * table], code, parts[2 * table + 1]])

    def rest(code: Any) -> tuple[Any, list[Any]]:
        negative = b.icmp_signed("<", code, _splat(V8, 0))
        lowest = looked_up(1, code)
        lowest = b.select(negative, b.add(lowest, _splat(V8, SIGN)), lowest)
        upper = b.bitcast(b.or_(looked_up(2, code), b.and_(code, sign8)), V32)
        lower = b.bitcast(looked_up(3, code), V32)
        even = halves(b, b.shl(upper, eight), lower, 0xFF00FF00)
        odd = halves(b, upper, b.lshr(lower, eight), 0xFF00FF00)
        low = [b.shl(pair, _splat(V32, 16)) for pair in (even, odd)]
        return lowest, low + [b.and_(pair, high) for pair in (even, odd)]

    return lambda code: looked_up(0, code), rest


@_intrinsic
def turned_codes(typing: Any, rows: Any, words: Any) -> Any:
    """Write 64 codes of each of 64 rows [64, 64] as those of 64 k, whose columns are the rows."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        make: Any = arrayobj.make_array
        source = make(sig.args[0])(context, b, args[0])
        stride = b.extract_value(source.strides, 0)
        first = pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0))
        put, target = _storing(b, first), b.bitcast(first, V32.as_pointer())
        for i in range(4):
            lines = []
            for r in range(16):
                at = b.gep(source.data, [b.mul(stride, ir.Constant(I64, 16 * i + r))])
                fetch(b, b.gep(at, [ir.Constant(I64, TURNED)]))
                lines.append(b.load(b.bitcast(at, V32.as_pointer()), align=1))
            for quad, line in enumerate(transposed(b, lines)):
                put(4 * quad + i, line)

        def turn(quad: Any, carried: list[Any]) -> list[Any]:  # four k by four rows, of each word
            at = [
                b.gep(target, [b.add(b.mul(quad, ir.Constant(I64, 4)), ir.Constant(I64, i))])
                for i in range(4)
            ]
            lines = [b.load(place, align=4) for place in at]
            for step, mask in ((2, 0xFFFF0000), (1, 0xFF00FF00)):
                away = _splat(V32, 8 * step)
                for j in range(4):
                    if not j & step:
                        x, y = lines[j], lines[j + step]
                        lines[j] = halves(b, b.shl(y, away), x, mask)
                        lines[j + step] = halves(b, y, b.lshr(x, away), mask)
            for place, line in zip(at, lines, strict=True):
                b.store(line, place, align=4)
            return carried

        _loop(b, ir.Constant(I64, 16), [], turn)
        return context.get_dummy_value()

    return types.void(rows, words), codegen
