"""Codes of eight bits to the planes that the vector kernel of Hopper's FP8 rule reads.

Exponents, a byte for each code; signs, a bit; float32 values, a tiny one of each sign for zeros,
those of rows larger in size by their last place. 64 codes at a time: by arithmetic for any format,
or by tables of 128 bytes. `ir.double` reads other planes: of the places of the lowest bits, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.np import arrayobj

from numsim.kernels.ir.pack import transposed
from numsim.kernels.ir.simd import (
    BIAS,
    FRACTION,
    I16,
    I32,
    I64,
    PAGE,
    V32,
    broadcast,
    emitted,
    fetch,
    loop,
    pointer_at,
    splat,
    vectors_of,
)

ROWS, COLUMNS = 2, 64
RUN, EIGHT = 16, 8  # products of a row whose planes stand side by side; of a byte of signs
A_WORDS = 3 * ROWS * RUN  # of a run: exponents, signs (two words a row), values; all rows of each
K_WORDS = 5 * COLUMNS // 4  # of a k: exponents, a byte each, and values
RUN_WORDS = RUN * K_WORDS + RUN // EIGHT * COLUMNS // 4  # of a run; signs, bytes of eight k, follow
B_WORDS = RUN_WORDS // RUN
NEAR_ZERO = np.float32(2.0**-90)  # stands for a zero: less than any last place with any factor
# A panel's columns i, 16 + i, 32 + i, 48 + i share word i of their codes, exponents and signs
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
NO_LEFT, NO_RIGHT = 216, 109  # of zeros; on the right with SIGN or without
TURN = 128  # more on the left, where lowest bits are compared as signed bytes

PICK = "llvm.x86.avx512.vpermi2var.qi.512"  # bytes of two vectors, by their places
I8 = ir.IntType(8)


class Lanes(NamedTuple):
    """The types of one vector of `words`: of AVX-512, or of AVX2."""

    bytes: Any
    words: Any
    floats: Any


def lanes(words: int) -> Lanes:
    """Return the types of a vector of 16 or 8 words."""
    return Lanes(
        ir.VectorType(I8, 4 * words),
        ir.VectorType(I32, words),
        ir.VectorType(ir.FloatType(), words),
    )


V8 = lanes(16).bytes


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
    high = b.and_(x, splat(x.type, mask - (1 << 32)))
    return b.or_(high, b.and_(y, splat(x.type, ~mask & 0xFFFFFFFF)))


# Bytes by their place in 16, in each 16 bytes of a vector of so many words
_SHUFFLES = {8: "llvm.x86.avx2.pshuf.b", 16: "llvm.x86.avx512.pshuf.b.512"}


def field_of(b: Any, fields: Any, index: int, vector: Any, away: int = 0) -> Any:
    """Return the low bits, from bit `away` on, of one of `gemm_codes.Fields` in every lane."""
    bits = b.lshr(b.extract_value(fields, index), ir.Constant(I32, away))
    return broadcast(b, b.trunc(bits, vector.element), vector)


def _nibbles(b: Any, v: Lanes, table: Any) -> Callable[[Any], Any]:
    """Return a look-up by bytes below 16 in a table of 16 bytes."""
    at = ir.Constant(ir.VectorType(I32, 4 * v.words.count), [*range(16)] * (v.words.count // 4))
    wide = b.shuffle_vector(table, table, at)
    pick = declared(b, _SHUFFLES[v.words.count], v.bytes, v.bytes, v.bytes)
    return lambda places: b.call(pick, [wide, places])


def half_reader(
    b: Any, v: Lanes, fields: Any, *, double: bool = False, zero: float = 0.0
) -> Callable[[Any], Any]:
    """Return how codes that stand twice become the two high bytes of their values.

    Those are float32, or float64; zeros are `zero` with a sign. Formats have at most 3 fraction
    bits and 8 bits in all; values are finite, and normal numbers of float32, so that the other
    bytes are 0.
    """
    width, trailing, center = (64, 4, 1023) if double else (32, 7, BIAS)
    pairs, eights = ir.VectorType(I16, 2 * v.words.count), ir.VectorType(ir.IntType(width), 8)
    numbers = ir.Constant(ir.VectorType(ir.FloatType(), 8), [float(n) for n in range(8)])
    quantum = broadcast(b, b.extract_value(fields, 9), ir.VectorType(I32, 8))
    subnormals = b.fmul(numbers, b.bitcast(quantum, numbers.type))
    if zero:
        first = ir.Constant(ir.FloatType(), zero)
        subnormals = b.insert_element(subnormals, first, ir.Constant(I32, 0))
    if double:
        subnormals = b.fpext(subnormals, ir.VectorType(ir.DoubleType(), 8))
    subnormals = b.bitcast(subnormals, eights)
    low, high = (
        b.trunc(b.lshr(subnormals, splat(eights, width - away)), ir.VectorType(I8, 8))
        for away in (16, 8)
    )
    order = ir.Constant(ir.VectorType(I32, 16), [*range(16)])
    look_up = _nibbles(b, v, b.shuffle_vector(low, high, order))
    # in the lower byte the fraction, for the low byte; in the upper one 8 more, for the high byte
    fraction, upper = field_of(b, fields, 4, pairs), splat(pairs, 0x0800)
    lower = b.or_(fraction, b.shl(fraction, splat(pairs, 8)))
    up = b.and_(b.sub(field_of(b, fields, 2, pairs), splat(pairs, 24)), splat(pairs, 7))
    signs = b.shl(b.shl(field_of(b, fields, 1, pairs), splat(pairs, 8)), up)
    magnitudes = b.shl(field_of(b, fields, 0, pairs), splat(pairs, 8))
    rebias = b.sub(splat(pairs, center), field_of(b, fields, 5, pairs))
    rebias = b.shl(rebias, splat(pairs, trailing))
    down = b.add(field_of(b, fields, 3, pairs), splat(pairs, 8 - trailing))

    def halves_of(twice: Any) -> Any:
        code = b.bitcast(twice, pairs)
        places = b.or_(b.and_(code, lower), upper)
        subnormal = b.bitcast(look_up(b.bitcast(places, v.bytes)), pairs)
        normal = b.lshr(b.and_(code, magnitudes), down)
        small = b.icmp_signed("<", normal, splat(pairs, 1 << trailing))
        size = b.select(small, subnormal, b.add(normal, rebias))
        return b.or_(size, b.and_(b.shl(code, up), signs))

    return halves_of


def planes_reader(
    b: Any, v: Lanes, fields: Any, exponent: int, lowest: int, nothing: int
) -> tuple[Any, Any]:
    """Return how words of four codes are read: exponents and lowest bits, and values of byte i.

    Values of zeros are NEAR_ZERO, with their sign.
    """
    count = v.words.count
    pairs = ir.VectorType(I16, 2 * count)

    def field(index: int, vector: Any) -> Any:
        return field_of(b, fields, index, vector)

    magnitude, sign, bias = (field(i, v.bytes) for i in (0, 1, 5))
    zero, one = splat(v.bytes, 0), splat(v.bytes, 1)
    # by the fraction: its lowest bit, from the exponent on
    small = ir.VectorType(I8, 16)
    trailing, hidden = field(3, small), b.shl(splat(small, 1), field(3, small))
    fractions = b.or_(b.and_(ir.Constant(small, list(range(16))), field(4, small)), hidden)
    counted = declared(b, "llvm.cttz.v16i8", small, small, ir.IntType(1))
    places = b.sub(b.call(counted, [fractions, ir.Constant(ir.IntType(1), 1)]), trailing)
    place = _nibbles(b, v, b.add(places, b.sub(splat(small, lowest), field(5, small))))
    nibble = splat(v.bytes, 15)
    more = b.sub(splat(v.bytes, exponent), bias)
    trailing_of, kept = field(3, pairs), b.lshr(splat(v.bytes, -1), field(3, v.bytes))
    halves_of = half_reader(b, v, fields, zero=float(NEAR_ZERO))

    def bytes_of(words: Any) -> tuple[Any, Any]:
        code = b.bitcast(words, v.bytes)
        m = b.and_(code, magnitude)
        shifted = b.bitcast(b.lshr(b.bitcast(m, pairs), trailing_of), v.bytes)
        e = top(b, b.and_(shifted, kept), one)
        none = b.icmp_unsigned("==", m, zero)
        low = b.add(e, place(b.and_(m, nibble)))
        negative = b.icmp_unsigned("!=", b.and_(code, sign), zero)
        low = b.add(low, b.select(negative, splat(v.bytes, SIGN), zero))
        return b.select(none, zero, b.add(e, more)), b.select(none, splat(v.bytes, nothing), low)

    def values(words: Any, i: int) -> Any:
        at = [n // 4 * 4 + i % 2 + n // 2 % 2 * 2 for n in range(4 * count)]
        code = b.bitcast(words, v.bytes)
        twice = b.shuffle_vector(code, code, ir.Constant(ir.VectorType(I32, 4 * count), at))
        both = b.bitcast(halves_of(twice), v.words)
        above = splat(v.words, 16)
        word = b.and_(both, splat(v.words, -(1 << 16))) if i > 1 else b.shl(both, above)
        return b.bitcast(word, v.floats)

    return bytes_of, values


def storing(b: Any, first: Any) -> Any:
    """Return a function that stores a vector from word `at` on behind `first`."""

    def put(at: int, value: Any) -> None:
        place = b.gep(first, [ir.Constant(I64, at)])
        b.store(value, b.bitcast(place, value.type.as_pointer()), align=4)

    return put


@emitted
def left_codes(
    typing: Any, words: Any, codes: Any, runs: Any, row: Any, planes: Any, fields: Any
) -> Any:
    """Write the planes of `row` of a tile: `runs` runs of codes that stand side by side.

    Of the plane of signs bytes of eight k, four times, the first k in the lowest bit.

    `fields` is `gemm_codes.Fields`; formats have at most 3 fraction bits and 8 bits in all.
    `words`: how many a vector has.
    """
    if not isinstance(words, types.IntegerLiteral):
        return None
    count = words.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        v = lanes(count)
        source = vectors_of(context, b, sig.args[1], args[1], ir.VectorType(I8, count))
        target = pointer_at(context, b, sig.args[4], args[4], ir.Constant(I64, 0))
        bytes_of, values = planes_reader(b, v, args[5], LEFT, LOWEST, NO_LEFT)
        pieces, sign = RUN // count, field_of(b, args[5], 1, ir.VectorType(I8, count))

        def run(i: Any, carried: list[Any]) -> list[Any]:
            at = b.add(b.mul(i, ir.Constant(I64, A_WORDS)), b.mul(args[3], ir.Constant(I64, RUN)))
            put = storing(b, b.gep(target, [at]))
            for piece in range(pieces):
                code = b.gep(
                    source, [b.add(b.mul(i, ir.Constant(I64, pieces)), ir.Constant(I64, piece))]
                )
                code = b.load(code, align=1)
                words = b.mul(b.zext(code, v.words), splat(v.words, 0x01010101))
                put(count * piece, bytes_of(words)[0])
                value = b.bitcast(values(words, 0), v.words)
                put(2 * ROWS * RUN + count * piece, b.or_(value, splat(v.words, 1)))
                negative = b.icmp_unsigned("!=", b.and_(code, sign), splat(code.type, 0))
                bits = b.zext(b.bitcast(negative, ir.IntType(count)), I32)
                for n in range(count // EIGHT):
                    byte = b.and_(b.lshr(bits, ir.Constant(I32, 8 * n)), ir.Constant(I32, 255))
                    four = b.mul(byte, ir.Constant(I32, 0x01010101))
                    put(ROWS * RUN + count // EIGHT * piece + n, four)
            return carried

        loop(b, args[2], [], run)
        return context.get_dummy_value()

    return types.void(words, codes, types.int64, types.int64, planes, fields), codegen


@emitted
def right_codes(typing: Any, words: Any, codes: Any, count: Any, planes: Any, fields: Any) -> Any:
    """Write the planes of `count` k of a panel, whose columns stand in `ORDER`: whole runs."""
    if not isinstance(words, types.IntegerLiteral):
        return None
    width = words.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        v = lanes(width)
        source = vectors_of(context, b, sig.args[1], args[1], v.words)
        target = pointer_at(context, b, sig.args[3], args[3], ir.Constant(I64, 0))
        bytes_of, values = planes_reader(b, v, args[4], RIGHT, LOWEST - SIGN, NO_RIGHT)
        pieces = COLUMNS // 4 // width
        sign_of = signs_reader(b, v, args[4])

        def planes_of(put: Any, k: Any) -> list[Any]:
            first, signs = b.mul(k, ir.Constant(I64, pieces)), []
            fetch(b, b.gep(source, [b.add(first, ir.Constant(I64, AHEAD * pieces))]))
            for piece in range(pieces):
                at = b.gep(source, [b.add(first, ir.Constant(I64, piece))])
                words = b.load(at, align=1)
                planes = (bytes_of(words)[0], *(values(words, i) for i in range(4)))
                for plane, value in enumerate(planes):
                    put(COLUMNS // 4 * plane + width * piece, value)
                signs.append(sign_of(b.bitcast(words, v.bytes)))
            return signs

        over_eights(b, target, args[2], planes_of, [v.words] * pieces)
        return context.get_dummy_value()

    return types.void(words, codes, types.int64, planes, fields), codegen


def signs_reader(b: Any, v: Lanes, fields: Any) -> Callable[[Any], Any]:
    """Return how codes become words of bytes whose highest bits are their signs."""
    sign = field_of(b, fields, 1, v.bytes)
    up = b.and_(b.sub(field_of(b, fields, 2, v.words), splat(v.words, 24)), splat(v.words, 7))
    return lambda code: b.shl(b.bitcast(b.and_(code, sign), v.words), up)


def joined_signs(b: Any, own: Any, before: Any) -> Any:
    """Return the signs of k before, in each byte, and those of one more, the highest bits."""
    return halves(b, own, b.lshr(before, splat(before.type, 1)), 0x80808080)


def over_eights(b: Any, target: Any, count: Any, planes_of: Any, kinds: list[Any]) -> None:
    """Write the planes of `count` k, whole runs: what `planes_of` (put, k) writes, and signs.

    It returns those of a k, the highest bit of each byte, in vectors of words of these kinds.
    """

    def eight(n: Any, carried: list[Any]) -> list[Any]:
        run, half = b.lshr(n, ir.Constant(I64, 1)), b.and_(n, ir.Constant(I64, RUN // EIGHT - 1))
        first = b.gep(target, [b.mul(run, ir.Constant(I64, RUN_WORDS))])

        def step(j: Any, signs: list[Any]) -> list[Any]:
            k = b.add(b.mul(half, ir.Constant(I64, EIGHT)), j)
            put = storing(b, b.gep(first, [b.mul(k, ir.Constant(I64, K_WORDS))]))
            own = planes_of(put, b.add(b.mul(run, ir.Constant(I64, RUN)), k))
            return [joined_signs(b, x, seen) for x, seen in zip(own, signs, strict=True)]

        signs = loop(b, ir.Constant(I64, EIGHT), [splat(kind, 0) for kind in kinds], step)
        put = storing(b, b.gep(first, [b.mul(half, ir.Constant(I64, COLUMNS // 4))]))
        for piece, bits in enumerate(signs):
            put(RUN * K_WORDS + kinds[0].count * piece, bits)
        return carried

    loop(b, b.lshr(count, ir.Constant(I64, EIGHT.bit_length() - 1)), [], eight)


@emitted
def turned_codes(typing: Any, rows: Any, words: Any) -> Any:
    """Write 64 codes of each of 64 rows [64, 64] as those of 64 k, whose columns are the rows."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        make: Any = arrayobj.make_array
        source = make(sig.args[0])(context, b, args[0])
        stride = b.extract_value(source.strides, 0)
        first = pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0))
        put, target = storing(b, first), b.bitcast(first, V32.as_pointer())
        for i in range(4):
            lines = []
            for r in range(16):
                at = b.gep(source.data, [b.mul(stride, ir.Constant(I64, 16 * i + r))])
                fetch(b, b.gep(at, [ir.Constant(I64, TURNED)]))
                lines.append(b.load(b.bitcast(at, V32.as_pointer()), align=1))
            for quad, line in enumerate(transposed(b, lines)):
                put(16 * (4 * quad + i), line)

        def turn(quad: Any, carried: list[Any]) -> list[Any]:  # four k by four rows, of each word
            at = [
                b.gep(target, [b.add(b.mul(quad, ir.Constant(I64, 4)), ir.Constant(I64, i))])
                for i in range(4)
            ]
            lines = [b.load(place, align=4) for place in at]
            for step, mask in ((2, 0xFFFF0000), (1, 0xFF00FF00)):
                away = splat(V32, 8 * step)
                for j in range(4):
                    if not j & step:
                        x, y = lines[j], lines[j + step]
                        lines[j] = halves(b, b.shl(y, away), x, mask)
                        lines[j + step] = halves(b, y, b.lshr(x, away), mask)
            for place, line in zip(at, lines, strict=True):
                b.store(line, place, align=4)
            return carried

        loop(b, ir.Constant(I64, 16), [], turn)
        return context.get_dummy_value()

    return types.void(rows, words), codegen
