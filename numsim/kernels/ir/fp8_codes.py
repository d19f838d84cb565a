"""Codes of eight bits as vectors of their exponents, lowest bits and values, without planes.

By tables of 128 bytes for AVX-512, 64 codes at a time; by arithmetic for AVX2, 32 at a time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.fp8 import (
    AHEAD,
    COLUMNS,
    LOWEST,
    NO_RIGHT,
    PICK,
    RIGHT,
    SIGN,
    V8,
    WIDEST,
    declared,
    field_of,
    halves,
    lanes,
    over_eights,
    planes_reader,
)
from numsim.kernels.ir.simd import (
    BIAS,
    HAVE_AVX512_VNNI,
    HAVE_HALVES,
    I16,
    I32,
    I64,
    V32,
    broadcast,
    emitted,
    fetch,
    pointer_at,
    splat,
    vectors_of,
)


@emitted
def looked_up_codes(typing: Any, codes: Any, count: Any, words: Any, tables: Any) -> Any:
    """Do what `right_codes` does, by `tables` of codes 0 to 127, a byte for each.

    They are exponents, nothing that is read here, and the two high bytes of values (the others are
    0). The sign of formats of eight bits is not in them.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], V8)
        target = pointer_at(context, b, sig.args[2], args[2], ir.Constant(I64, 0))
        read = ByTables(context, b, sig.args[3], args[3])

        def planes_of(put: Any, k: Any) -> list[Any]:
            fetch(b, b.gep(source, [b.add(k, ir.Constant(I64, AHEAD))]))
            code = b.load(b.gep(source, [k]), align=1)
            upper = read.upper(code)
            for plane, value in enumerate((read.exponents(code), *read.singles(code, upper))):
                put(COLUMNS // 4 * plane, value)
            return [b.bitcast(upper, V32)]

        over_eights(b, target, args[1], planes_of, [V32])
        return context.get_dummy_value()

    return types.void(codes, types.int64, words, tables), codegen


class ByTables:
    """Reads 64 codes by four tables of 128 bytes.

    They are exponents, lowest bits, and the two high bytes of values; see `looked_up_codes`.
    """

    def __init__(self, context: Any, b: Any, kind: Any, tables: Any) -> None:
        first = vectors_of(context, b, kind, tables, V8)
        self.b, self.pick = b, declared(b, PICK, V8, V8, V8, V8)
        self.parts = [b.load(b.gep(first, [ir.Constant(I64, i)]), align=1) for i in range(8)]

    def looked_up(self, table: int, code: Any) -> Any:
        """Return the byte of a table for each code, whose sign does not count."""
        return self.b.call(self.pick, [self.parts[2 * table], code, self.parts[2 * table + 1]])

    def exponents(self, code: Any) -> Any:
        """Return a byte for each code."""
        return self.looked_up(0, code)

    def lowest(self, code: Any) -> Any:
        """Return the place of the lowest bit that is set, a byte for each code."""
        b, found = self.b, self.looked_up(1, code)
        negative = b.icmp_signed("<", code, splat(V8, 0))
        return b.select(negative, b.add(found, splat(V8, SIGN)), found)

    def upper(self, code: Any) -> Any:
        """Return the highest byte of each value."""
        b = self.b
        return b.or_(self.looked_up(2, code), b.and_(code, splat(V8, -128)))

    def high_halves(self, code: Any, upper: Any = None) -> tuple[Any, Any]:
        """Return the two high bytes of values, of even codes and of odd ones, 16 bits each."""
        b, eight = self.b, splat(V32, 8)
        upper = b.bitcast(self.upper(code) if upper is None else upper, V32)
        lower = b.bitcast(self.looked_up(3, code), V32)
        even = halves(b, b.shl(upper, eight), lower, 0xFF00FF00)
        return even, halves(b, upper, b.lshr(lower, eight), 0xFF00FF00)

    def singles(self, code: Any, upper: Any = None) -> list[Any]:
        """Return the float32 values of byte 0 of each word of codes, of byte 1, 2 and 3."""
        b, pairs = self.b, self.high_halves(code, upper)
        low = [b.shl(pair, splat(V32, 16)) for pair in pairs]
        return low + [b.and_(pair, splat(V32, -(1 << 16))) for pair in pairs]


def placed_doubles(b: Any, shorts: Any, at: list[int]) -> Any:
    """Return float64 whose 16 high bits are those at eight places of 32, the others 0.

    By one exchange, where LLVM takes two or three.
    """
    every = shorts.type
    kind = ir.FunctionType(every, [I32, every, every])
    exchange = ir.InlineAsm(kind, "vpermw $3, $2, $0 {$1} {z}", "=v,^Yk,v,v", side_effect=False)
    places = ir.Constant(every, [at[n // 4] for n in range(32)])
    last = ir.Constant(I32, 0x88888888 - (1 << 32))  # of every four
    found = b.call(exchange, [last, places, shorts])
    return b.bitcast(found, ir.VectorType(ir.DoubleType(), 8))


def apart(b: Any, vectors: list[Any]) -> list[Any]:
    """Return four vectors, of bytes 0, 1, 2 and 3 of words, in the order of `singles_apart`."""
    count, found = vectors[0].type.count, []
    for i in range(2):
        for first in (0, count // 2):
            order = [m for n in range(count // 2) for m in (first + n, count + first + n)]
            at = ir.Constant(ir.VectorType(I32, count), order)
            found.append(b.shuffle_vector(vectors[i], vectors[i + 2], at))
    return found


def together(b: Any, vectors: list[Any]) -> list[Any]:
    """Return what `apart` took apart."""
    kind, found = vectors[0].type, []
    if isinstance(kind.element, ir.IntType) and HAVE_AVX512_VNNI:
        # for integers LLVM takes vectors of 64 bytes, which close a place of execution to others
        floats = lanes(kind.count).floats
        same = ir.InlineAsm(ir.FunctionType(floats, [floats]), "", "=x,0", side_effect=False)
        vectors = [b.call(same, [b.bitcast(x, floats)]) for x in vectors]
    for second in (0, 1):
        order = [2 * n + second for n in range(kind.count)]
        at = ir.Constant(ir.VectorType(I32, kind.count), order)
        found += [b.shuffle_vector(vectors[i], vectors[i + 1], at) for i in (0, 2)]
    return [b.bitcast(x, kind) for x in found]


class ByFields:
    """Reads codes of eight bits by arithmetic, four times `width` of them.

    Values are `scale` times too small: they are made of halves, whose bias is another.
    `gemm.codes.as_halves` says of which formats.
    """

    def __init__(self, b: Any, fields: Any, width: int = 8) -> None:
        self.b, self.width, v = b, width, lanes(width)
        self.bytes_of, _ = planes_reader(b, v, fields, RIGHT, LOWEST - SIGN, NO_RIGHT)
        pairs = ir.VectorType(I16, 2 * width)
        self.right = b.sub(field_of(b, fields, 3, pairs), splat(pairs, 2))
        sign = splat(pairs, -(1 << 15))
        self.kept = b.or_(sign, b.lshr(b.shl(field_of(b, fields, 0, pairs), splat(pairs, 8)),
                                       self.right))  # fmt: skip
        field = b.sub(ir.Constant(I32, BIAS + 15), b.extract_value(fields, 5))
        self.scale = b.bitcast(b.shl(broadcast(b, field, v.words), splat(v.words, 23)), v.floats)

    def exponents(self, code: Any) -> Any:
        """Return a byte for each code."""
        return self.bytes_of(code)[0]

    def lowest(self, code: Any) -> Any:
        """Return the place of the lowest bit that is set, a byte for each code."""
        return self.bytes_of(code)[1]

    def halves(self, code: Any) -> list[Any]:
        """Return float16 values, of even codes and of odd ones, as integers."""
        b, words = self.b, self.b.bitcast(code, self.kept.type)
        both = b.shl(words, splat(words.type, 8)), words
        return [b.and_(b.ashr(high, self.right), self.kept) for high in both]


def from_halves(b: Any, place: Any, vector: Any) -> Any:
    """Return the float32 `vector` of float16 that stand at a place.

    For eight of them, a processor with arithmetic of float16 is told which instruction to take:
    LLVM's choice there takes twice as long.
    """
    half = ir.VectorType(ir.HalfType(), vector.count)
    place = b.bitcast(place, half.as_pointer())
    if not (HAVE_HALVES and vector.count == 8):
        return b.fpext(b.load(place, align=2), vector)
    kind = ir.FunctionType(vector, [place.type])
    named = ir.InlineAsm(kind, "vcvtph2ps $1, $0", "=v,*m", side_effect=False)
    return b.call(named, [place], arg_attrs={0: ("elementtype",)})


class Room:
    """Room for values of so many products as float16: written as codes are first read.

    An instruction that makes float32 of them takes one place of execution where it reads memory,
    and two or three where they stand in a register.
    """

    def __init__(self, b: Any, read: ByFields, products: int = WIDEST) -> None:
        self.b, self.read, self.each = b, read, 4 * read.width
        with b.goto_entry_block():  # Numba's own way would fill it with zeros at every call
            self.room = b.alloca(ir.ArrayType(I16, products * self.each))
        self.room.align = 64  # what is stored across two lines waits for the cache

    def _at(self, k: Any, part: int, vector: Any) -> Any:
        b = self.b
        at = b.add(b.mul(k, ir.Constant(I64, self.each)), ir.Constant(I64, part))
        return b.bitcast(b.gep(self.room, [ir.Constant(I64, 0), at]), vector.as_pointer())

    def keep(self, k: Any, code: Any) -> None:
        """Write the values of product k of a group."""
        for i, value in enumerate(self.read.halves(code)):
            self.b.store(value, self._at(k, self.each // 2 * i, value.type), align=2)

    def singles_apart(self, k: Any) -> list[Any]:
        """Return them as float32, in the order of `apart`."""
        b, floats = self.b, lanes(self.read.width).floats
        places = [self._at(k, floats.count * i, floats) for i in range(4)]
        return [from_halves(b, place, floats) for place in places]
