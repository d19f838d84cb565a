"""What the kernels of `ir.double` and `ir.two_streams` read of codes of eight bits.

Exponents, and places of the lowest bits that are set or signs, as in `ir.fp8`, and float64 values:
from planes, written once for many rows of the left operand, or from the codes themselves.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.fp8 import (
    EIGHT,
    I8,
    LEFT,
    LOWEST,
    NEAR_ZERO,
    NO_LEFT,
    NO_RIGHT,
    RIGHT,
    SIGN,
    TURN,
    field_of,
    half_reader,
    joined_signs,
    lanes,
    planes_reader,
    signs_reader,
    storing,
)
from numsim.kernels.ir.fp8_codes import ByFields, ByTables, Room, placed_doubles
from numsim.kernels.ir.peaks import Peaks
from numsim.kernels.ir.simd import (
    I16,
    I32,
    I64,
    PAGE,
    emitted,
    fetch,
    loop,
    pointer_at,
    splat,
    vectors_of,
)

COLUMNS = {"avx512": 64, "avx2": 32}  # of a panel, by path
# Words of a product: exponent, lowest bit or signs of eight, value; of a group: its scale
A_STEP, A_REST = 4, 4
# Words of a product where each is cut to an integer (`gemm.cuts`): a float32 value,
# and how far the exponent is below the largest; of a group: what `ir.peaks` begins with
SINGLE, BELOW, BASE = 2, 3, 1
_V32, _VL = ir.VectorType(I32, 8), ir.VectorType(I64, 8)
_VD = ir.VectorType(ir.DoubleType(), 8)


def order(columns: int) -> tuple[int, ...]:
    """Return a panel's columns by place: a word has one of each quarter of the panel."""
    return tuple(columns // 4 * (place % 4) + place // 4 for place in range(columns))


def b_words(columns: int) -> tuple[int, int]:
    """Return the words of a product's columns, and of a group's: exponents and powers."""
    return 5 * columns // 2, 3 * columns


def _doubled(b: Any, code: Any, i: int) -> Any:
    """Return bytes 2 i and 2 i + 1 of all words of codes, each twice, in turn of columns."""
    width = code.type.count
    at = [n // 2 % (width // 4) * 4 + 2 * i + n // (width // 2) for n in range(width)]
    return b.shuffle_vector(code, code, ir.Constant(ir.VectorType(I32, width), at))


def _spread(b: Any, halves: Any, at: list[int]) -> Any:
    """Return the float64 values whose two high bytes are some elements of `halves`."""
    some = b.shuffle_vector(halves, halves, ir.Constant(ir.VectorType(I32, 8), at))
    return b.shl(b.zext(some, _VL), splat(_VL, 48))


class Planes:
    """The planes of a panel of `width` columns, as `right_double` writes them.

    `panel` points at words, and a group of so many products has `group_words` of them: at its end
    stand the exponents of its scales and their powers of two, if there are any.
    """

    by_fields: Any = None

    def __init__(self, b: Any, panel: Any, width: int, group: Any, group_words: Any) -> None:
        self.b, self.panel, self.width = b, panel, width
        self.group, self.group_words = group, group_words

    def start(self, g: Any) -> Any:
        """Return where group g begins."""
        return self.b.mul(g, self.group_words)

    def _at(self, first: Any, k: Any, word: int, vector: Any) -> Any:
        b = self.b
        k = b.mul(k, ir.Constant(I64, b_words(self.width)[0]))
        at = b.gep(self.panel, [b.add(b.add(first, k), ir.Constant(I64, word))])
        return b.load(b.bitcast(at, vector.as_pointer()), align=4)

    def exponents(self, first: Any, k: Any) -> Any:
        """Return the exponents' bytes of product k of a group."""
        return self._at(first, k, 0, lanes(self.width // 4).bytes)

    def lowest(self, first: Any, k: Any) -> Any:
        """Return the bytes of its lowest bits' places, or the signs of eight."""
        return self._at(first, k, self.width // 4, lanes(self.width // 4).bytes)

    def values(self, first: Any, k: Any, qs: range) -> list[Any]:
        """Return its values, of eight columns for each q."""
        return [self._at(first, k, self.width // 2 + 16 * q, _VD) for q in qs]

    def scale_exponents(self, first: Any, j: int) -> Any:
        """Return the exponents of a group's scales, of a quarter of the columns."""
        return self._at(first, self.group, self.width // 4 * j, lanes(self.width // 4).words)

    def powers(self, first: Any, q: int) -> Any:
        """Return the powers of two of the scales of eight columns."""
        return self._at(first, self.group, self.width + 16 * q, _VD)


class Coded:
    """The same of codes as they are packed: `scales` points at their exponents, a line a group.

    `how` is `gemm_codes.Fields`, or for AVX-512 the tables of `ir.fp8.ByTables`, of float64; or
    fields alone in a tuple, of formats that `ir.fp8_codes.ByFields` reads, to cut each product.
    `width`: columns of a panel.
    """

    def __init__(
        self, context: Any, b: Any, width: int, kind: Any, how: Any, panel: Any, scales: Any,
        group: Any,
    ) -> None:  # fmt: skip
        self.b, self.panel, self.scales, self.group = b, panel, scales, group
        self.tables = ByTables(context, b, kind, how) if isinstance(kind, types.Array) else None
        self.width, self.v = width, lanes(width // 4)
        self.by_fields: Any = None
        self.tops: Any = None
        self.room: Any = None
        if isinstance(kind, types.BaseTuple) and len(kind) == 1:
            how = b.extract_value(how, 0)
            self.by_fields = ByFields(b, how, width // 4)
            self.tops = Peaks(b, self.v, how)
            self.room = Room(b, self.by_fields)
        if not self.tables:
            self.bytes_of, _ = planes_reader(b, self.v, how, RIGHT, LOWEST - SIGN, NO_RIGHT)
            self.halves_of = half_reader(b, self.v, how, double=True)

    def start(self, g: Any) -> Any:
        """Return where group g begins."""
        return self.b.mul(g, self.group), g

    def codes_at(self, first: Any, k: Any) -> Any:
        """Return where the codes of product k of a group stand."""
        b = self.b
        at = b.mul(b.add(first[0], k), ir.Constant(I64, self.width))
        return b.bitcast(b.gep(self.panel, [at]), self.v.bytes.as_pointer())

    def exponents(self, first: Any, k: Any) -> Any:
        """Return the exponents' bytes of product k of a group."""
        code = self.asked(first, k)
        if self.tables:
            return self.tables.exponents(code)
        return self.bytes_of(self.b.bitcast(code, self.v.words))[0]

    def lowest(self, first: Any, k: Any) -> Any:
        """Return the bytes of its lowest bits' places."""
        code = self.b.load(self.codes_at(first, k), align=1)
        if self.tables:
            return self.tables.lowest(code)
        return self.bytes_of(self.b.bitcast(code, self.v.words))[1]

    def values(self, first: Any, k: Any, qs: range) -> list[Any]:
        """Return its values, of eight columns for each q."""
        b, shorts = self.b, ir.VectorType(I16, self.width // 2)
        code = b.load(self.codes_at(first, k), align=1)
        if self.tables:  # columns 8 q ... have byte q // 2 of the words
            pairs = self.tables.high_halves(code)
            both = [b.bitcast(pair, shorts) for pair in pairs]
            places = {q: [2 * (8 * (q % 2) + n) + q // 4 for n in range(8)] for q in qs}
            return [placed_doubles(b, both[q // 2 % 2], places[q]) for q in qs]
        halves = {i: self.halves_of(_doubled(b, code, i)) for i in {q // 2 for q in qs}}
        parts = [b.bitcast(halves[q // 2], shorts) for q in qs]
        at = [[8 * (q % 2) + n for n in range(8)] for q in qs]
        return [b.bitcast(_spread(b, *each), _VD) for each in zip(parts, at, strict=True)]

    def asked(self, first: Any, k: Any) -> Any:
        """Return the codes of product k of a group, and ask for later ones."""
        b, at = self.b, self.codes_at(first, k)
        fetch(b, b.gep(at, [ir.Constant(I64, PAGE // self.width)]))
        return b.load(at, align=1)

    def _scale(self, first: Any, column: int, vector: Any) -> Any:
        b = self.b
        at = b.add(b.mul(first[1], ir.Constant(I64, self.width)), ir.Constant(I64, column))
        return b.load(b.bitcast(b.gep(self.scales, [at]), vector.as_pointer()), align=4)

    def scale_exponents(self, first: Any, j: int) -> Any:
        """Return the exponents of a group's scales, of a quarter of the columns."""
        return self._scale(first, self.width // 4 * j, self.v.words)

    def powers(self, first: Any, q: int) -> Any:
        """Return the powers of two of the scales of eight columns."""
        b = self.b
        wide = b.add(b.sext(self._scale(first, 8 * q, _V32), _VL), splat(_VL, 1023))
        return b.bitcast(b.shl(wide, splat(_VL, 52)), _VD)


@emitted
def right_double(
    typing: Any, columns: Any, signs: Any, codes: Any, count: Any, planes: Any, fields: Any
) -> Any:
    """Write the exponents, lowest bits and float64 values of `count` k of columns in `order`.

    Values are in turn. `signs`, literal: in place of the lowest bits of every eighth k the signs of
    eight stand, a bit each; zeros are tiny numbers with a sign. `fields` is `gemm_codes.Fields`, of
    formats that `ir.fp8.half_reader` reads.
    """
    if not all(isinstance(x, types.IntegerLiteral) for x in (columns, signs)):
        return None
    width, by_signs = columns.literal_value, bool(signs.literal_value)
    v = lanes(width // 4)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[2], args[2], v.bytes)
        target = pointer_at(context, b, sig.args[4], args[4], ir.Constant(I64, 0))
        bytes_of, _ = planes_reader(b, v, args[5], RIGHT, LOWEST - SIGN, NO_RIGHT)
        zero = float(NEAR_ZERO) if by_signs else 0.0
        halves_of = half_reader(b, v, args[5], double=True, zero=zero)
        half, sign_of = width // 2, signs_reader(b, v, args[5])

        def storing_at(k: Any) -> Any:
            return storing(b, b.gep(target, [b.mul(k, ir.Constant(I64, b_words(width)[0]))]))

        def step(k: Any, carried: list[Any]) -> list[Any]:
            put = storing_at(k)
            code = b.load(b.gep(source, [k]), align=1)
            exponents, lowest = bytes_of(b.bitcast(code, v.words))
            put(0, exponents)
            if by_signs:
                carried = [joined_signs(b, sign_of(code), carried[0])]
            else:
                put(width // 4, lowest)
            for i in range(2):
                high = halves_of(_doubled(b, code, i))
                for q in range(half // 8):
                    value = _spread(b, high, [8 * q + n for n in range(8)])
                    put(half + half * i * 2 + 16 * q, value)
            return carried

        def eight(n: Any, carried: list[Any]) -> list[Any]:
            first = b.mul(n, ir.Constant(I64, EIGHT))
            start = [ir.Constant(v.words, None)]
            (found,) = loop(
                b, ir.Constant(I64, EIGHT), start, lambda j, x: step(b.add(first, j), x)
            )
            storing_at(first)(width // 4, found)
            return carried

        if by_signs:
            loop(b, b.lshr(args[3], ir.Constant(I64, EIGHT.bit_length() - 1)), [], eight)
        else:
            loop(b, args[3], [], step)
        return context.get_dummy_value()

    return types.void(columns, signs, codes, types.int64, planes, fields), codegen


@emitted
def left_double(
    typing: Any, signs: Any, codes: Any, codes_at: Any, count: Any, planes: Any, planes_at: Any,
    ahead: Any, fields: Any,
) -> Any:  # fmt: skip
    """Write the exponents, lowest bits and float64 values of `count` codes of a row, by eights.

    `signs`, literal: signs of all eight in place of lowest bits, as in `right_double`; values are
    then larger in size by their last place. `fields`: as there. Words `ahead` are written next, and
    asked for: a row's groups lie far apart, and a store waits for memory that is in no cache.
    """
    if not isinstance(signs, types.IntegerLiteral):
        return None
    by_signs = bool(signs.literal_value)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = pointer_at(context, b, sig.args[1], args[1], args[2])
        target = pointer_at(context, b, sig.args[4], args[4], args[5])
        v, more, how = lanes(8), TURN, args[7]
        bytes_of, _ = planes_reader(b, v, how, LEFT, LOWEST + more, NO_LEFT + more & 255)
        zero = float(NEAR_ZERO) if by_signs else 0.0
        halves_of = half_reader(b, v, how, double=True, zero=zero)
        sign = field_of(b, how, 1, v.bytes)
        rest = ir.Constant(v.bytes, [int(by_signs)] + [0] * 31)  # the lower bytes of a value

        def picked(x: Any, y: Any, at: list[int]) -> Any:
            return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(at)), at))

        def some(first: Any, count: int) -> None:
            small = ir.VectorType(I8, count).as_pointer()
            code = b.load(b.bitcast(b.gep(source, [first]), small), align=1)
            code = picked(code, code, [n % count for n in range(32)])
            exponents, second = bytes_of(b.bitcast(code, v.words))
            twice = [[n + k // 2 for k in range(32)] for n in range(0, count, 16)]
            highs = [b.bitcast(halves_of(picked(code, code, at)), v.bytes) for at in twice]
            if by_signs:
                negative = b.icmp_unsigned("!=", b.and_(code, sign), splat(v.bytes, 0))
                eights = b.bitcast(b.bitcast(negative, I32), ir.VectorType(I8, 4))
                second = picked(eights, eights, [n // 8 for n in range(32)])
            here = b.gep(target, [b.mul(first, ir.Constant(I64, A_STEP))])
            for word in range(0, A_STEP * count, 16):
                fetch(b, b.gep(here, [b.add(args[6], ir.Constant(I64, word))]), write=True)
            put = storing(b, here)
            for k in range(0, count, 8):  # four bytes of each: exponent, second, those of the value
                both = picked(exponents, second, [k + n // 2 + 32 * (n % 2) for n in range(16)])
                high = picked(highs[k // 16], highs[k // 16], [k % 16 * 2 + n for n in range(16)])
                both, high = (b.bitcast(x, ir.VectorType(I16, 8)) for x in (both, high))
                each = picked(both, high, [n // 2 + 8 * (n % 2) for n in range(16)])
                for first_of in (0, 4):
                    at = []
                    for n in range(4 * first_of, 4 * first_of + 16, 4):
                        at += [n] * 4 + [n + 1] * 4 + [32] + [33] * 5 + [n + 2, n + 3]
                    put(A_STEP * (k + first_of), picked(b.bitcast(each, v.bytes), rest, at))

        def over(start: Any, stop: Any, count: int) -> None:
            def body(i: Any, carried: list[Any]) -> list[Any]:
                some(b.add(start, b.mul(i, ir.Constant(I64, count))), count)
                return carried

            loop(b, b.sdiv(b.sub(stop, start), ir.Constant(I64, count)), [], body)

        most = b.and_(args[3], ir.Constant(I64, -32))
        over(ir.Constant(I64, 0), most, 32)
        over(most, args[3], 8)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(signs, codes, i64, i64, planes, i64, i64, fields), codegen
