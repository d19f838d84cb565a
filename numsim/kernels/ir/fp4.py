"""The vector micro-kernel of Blackwell's block-scaled FP4 dot product, for AVX2.

One lane is one output. Twice an FP4 value is an integer of at most 12, so a run of 16 products fits
int16: 4 products of k stand in a lane as bytes, the left ones unsigned as 12 more than they are.
The pair sums of a run times the significands of its scales are exact in int32 and in float32, and
so is what a power of two and a cut toward zero leave of them; float64 holds the sum of a step.
A run whose products are all zero has no exponent. It takes 16 zeros among its factors: where no run
of either side has so many, a block of steps need not look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.align import NO_TERM
from numsim.kernels.ir.fp8 import I8, declared
from numsim.kernels.ir.simd import (
    I16,
    I32,
    I64,
    Tile,
    broadcast,
    emitted,
    loop,
    maximum,
    pointer_at,
    splat,
)

COLUMNS, RUNS, WORDS = 8, 4, 4  # of a panel; of a step; of a run: bytes of four k each
STEP = 16 * RUNS
LIFT = 12  # is added to the left operand's bytes
# Of a row and step: bytes, exponents, significands twice in a word, the most zeros of a run in the
# steps that one call does.
A_WORDS = RUNS * (WORDS + 2) + 1
# Of one row: its bytes are not lifted, those of the columns are; before the most zeros stands what
# the sums of each run start from, -12 times those of the row's own pairs.
FEW_WORDS = RUNS * (WORDS + 3) + 1
B_CODES = RUNS * WORDS * COLUMNS  # words of a panel and step; then sums to start from,
B_REST = B_CODES + 3 * RUNS * COLUMNS  # exponents and significands, of each run; then
B_WORDS = B_REST + COLUMNS  # the most zeros of a run, in the first word
_EXPONENTS, _SIGNIFICANDS = RUNS * WORDS, RUNS * (WORDS + 1)

_BYTES, _PAIRS = ir.VectorType(I8, 32), ir.VectorType(I16, 16)
_V32, _VF = ir.VectorType(I32, 8), ir.VectorType(ir.FloatType(), 8)
_VD, _VL = ir.VectorType(ir.DoubleType(), 8), ir.VectorType(I64, 8)


def _pair_products(b: Any, x: Any, y: Any) -> Any:
    """Return x * y of unsigned and signed bytes, neighbours added, in 16 bits."""
    multiply = declared(b, "llvm.x86.avx2.pmadd.ub.sw", _PAIRS, _BYTES, _BYTES)
    return b.call(multiply, [b.bitcast(x, _BYTES), b.bitcast(y, _BYTES)])


def _power(b: Any, exponent: Any) -> Any:
    """Return 2.0**exponent of int32 lanes as float64."""
    wide = b.add(b.sext(exponent, _VL), splat(_VL, 1023))
    return b.bitcast(b.shl(wide, splat(_VL, 52)), _VD)


@emitted
def right_fp4(typing: Any, codes: Any, count: Any, planes: Any, twice: Any) -> Any:
    """Write twice the values of `count` steps of codes, and -12 times the sums of their pairs.

    `twice`: twice the value of each of 16 codes, one signed byte each.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        first = [pointer_at(context, b, sig.args[i], args[i], ir.Constant(I64, 0)) for i in (0, 2)]
        look_up, _ = _table(context, b, sig.args[3], args[3])

        def at(which: int, step: Any, words: int, size: int, plus: int, vector: Any) -> Any:
            place = b.add(b.mul(step, ir.Constant(I64, words * size)), ir.Constant(I64, plus))
            return b.bitcast(b.gep(first[which], [place]), vector.as_pointer())

        def step(k: Any, carried: list[Any]) -> list[Any]:
            for run in range(RUNS):
                total = splat(_PAIRS, 0)
                for word in range(WORDS):
                    n = (run * WORDS + word) * COLUMNS
                    code = b.load(at(0, k, B_CODES, 4, 4 * n, _BYTES), align=1)
                    value = look_up(code)
                    b.store(value, at(1, k, B_WORDS, 1, n, _BYTES), align=4)
                    lifted = _pair_products(b, splat(_BYTES, LIFT), value)
                    total = b.sub(total, lifted)
                place = at(1, k, B_WORDS, 1, B_CODES + run * COLUMNS, _PAIRS)
                b.store(total, place, align=4)
            return carried

        loop(b, args[1], [], step)
        return context.get_dummy_value()

    return types.void(codes, types.int64, planes, twice), codegen


@emitted
def left_fp4(
    typing: Any, codes: Any, codes_at: Any, planes: Any, planes_at: Any, twice: Any
) -> Any:  # fmt: skip
    """Write the bytes of a step of codes of a row; return how many zeros each run has, a byte each.

    `twice`: a byte for each of 16 codes, the first that of zeros.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = pointer_at(context, b, sig.args[0], args[0], args[1])
        target = pointer_at(context, b, sig.args[2], args[2], args[3])
        look_up, zero = _table(context, b, sig.args[4], args[4])
        count = declared(b, "llvm.ctpop.i16", I16, I16)
        found = ir.Constant(I32, 0)
        for half in range(2):
            at = b.bitcast(b.gep(source, [ir.Constant(I64, 32 * half)]), _BYTES.as_pointer())
            value = look_up(b.load(at, align=1))
            at = b.bitcast(b.gep(target, [ir.Constant(I64, 8 * half)]), _BYTES.as_pointer())
            b.store(value, at, align=4)
            zeros = b.bitcast(b.icmp_unsigned("==", value, zero), I32)
            for run in range(2):
                own = b.trunc(b.lshr(zeros, ir.Constant(I32, 16 * run)), I16)
                own = b.zext(b.call(count, [own]), I32)
                found = b.or_(found, b.shl(own, ir.Constant(I32, 8 * (2 * half + run))))
        return found

    return types.int32(codes, types.int64, planes, types.int64, twice), codegen


def _table(context: Any, b: Any, kind: Any, table: Any) -> tuple[Callable[[Any], Any], Any]:
    """Return a look-up of 32 codes in a table of 16 bytes, and its first byte in every lane."""
    small = ir.VectorType(I8, 16)
    first = pointer_at(context, b, kind, table, ir.Constant(I64, 0))
    bytes_of = b.load(b.bitcast(first, small.as_pointer()), align=1)
    both = ir.Constant(ir.VectorType(I32, 32), [*range(16)] * 2)
    wide = b.shuffle_vector(bytes_of, bytes_of, both)
    zero = b.shuffle_vector(bytes_of, bytes_of, ir.Constant(both.type, [0] * 32))
    pick = declared(b, "llvm.x86.avx2.pshuf.b", _BYTES, _BYTES, _BYTES)
    return lambda codes: b.call(pick, [wide, b.and_(codes, splat(_BYTES, 15))]), zero


class _Planes:
    """What the arithmetic reads of a step: both operands as planes, the left bytes lifted."""

    zero_left, zero_right = LIFT, 0  # bytes of zeros

    def __init__(self, b: Any, tile: Tile, count: int) -> None:
        self.b, self.tile, self.count = b, tile, count

    def _left(self, k: Any, r: int, word: int) -> Any:
        return broadcast(
            self.b, self.tile.scalar(k, self.count * A_WORDS, r * A_WORDS + word), _V32
        )

    def _right(self, k: Any, word: int, vector: Any = _V32) -> Any:
        return self.tile.columns(k, B_WORDS, word * COLUMNS, vector)

    def left(self, k: Any, r: int, word: int) -> Any:
        """Return four k of a row in every lane."""
        return self._left(k, r, word)

    def right(self, k: Any, word: int) -> Any:
        """Return four k of every column."""
        return self._right(k, word)

    def products(self, left: Any, right: Any) -> Any:
        return _pair_products(self.b, left, right)

    def sums(self, k: Any, s: int) -> list[Any]:
        """Return what the pair sums of a run start from, a vector a row."""
        return [self._right(k, _EXPONENTS + s, _PAIRS)] * self.count

    def left_scale(self, k: Any, r: int, s: int) -> tuple[Any, Any]:
        """Return exponent and significand, twice in a word, of a run of a row."""
        pairs = self.b.bitcast(self._left(k, r, _SIGNIFICANDS + s), _PAIRS)
        return self._left(k, r, _EXPONENTS + s), pairs

    def right_scale(self, k: Any, s: int) -> tuple[Any, Any]:
        """Return exponents and significands, twice in a word, of a run of all columns."""
        pairs = self._right(k, _EXPONENTS + 2 * RUNS + s, _PAIRS)
        return self._right(k, _EXPONENTS + RUNS + s), pairs


class _Codes(_Planes):
    """The same of one row and of codes as they are packed, which are lifted as they are read."""

    zero_left, zero_right = 0, LIFT

    def __init__(self, b: Any, tile: Tile, look_up: Callable[[Any], Any], scales: Any) -> None:
        super().__init__(b, tile, 1)
        self.look_up, self.scales = look_up, scales

    def left(self, k: Any, r: int, word: int) -> Any:
        return broadcast(self.b, self.tile.scalar(k, FEW_WORDS, word), _V32)

    def right(self, k: Any, word: int) -> Any:
        return self.look_up(self.tile.columns(k, B_CODES, word * COLUMNS, _BYTES))

    def products(self, left: Any, right: Any) -> Any:
        return _pair_products(self.b, right, left)

    def sums(self, k: Any, s: int) -> list[Any]:
        return [self.b.bitcast(self.left(k, 0, _SIGNIFICANDS + RUNS + s), _PAIRS)]

    def left_scale(self, k: Any, r: int, s: int) -> tuple[Any, Any]:
        pairs = self.b.bitcast(self.left(k, r, _SIGNIFICANDS + s), _PAIRS)
        return self.left(k, r, _EXPONENTS + s), pairs

    def right_scale(self, k: Any, s: int) -> tuple[Any, Any]:
        b, half = self.b, splat(_V32, 16)
        at = b.gep(self.scales, [self.tile.index(k, RUNS * COLUMNS, s * COLUMNS)])
        word = b.load(b.bitcast(at, _V32.as_pointer()), align=4)
        above = b.and_(word, splat(_V32, -(1 << 16)))
        pairs = b.bitcast(b.or_(above, b.lshr(word, half)), _PAIRS)
        return b.ashr(b.shl(word, half), half), pairs


class _Arithmetic:
    """A chain of steps of 64 products, float32; `fraction`, `align`, `least` as in `fp4_tile`."""

    def __init__(self, b: Any, read: _Planes, fraction: Any, align: Any, least: Any) -> None:
        self.b, self.read, self.count = b, read, read.count
        fraction, one, least = (b.trunc(x, I32) for x in (fraction, align, least))
        self.least, self.align = broadcast(b, least, _V32), broadcast(b, one, _V32)
        above = b.sub(one, b.add(fraction, ir.Constant(I32, 2)))  # products are 4-fold
        self.ahead = broadcast(b, b.add(above, ir.Constant(I32, 127)), _V32)
        self.cut_single = declared(b, "llvm.trunc.v8f32", _VF, _VF)
        self.cut = declared(b, "llvm.trunc.v8f64", _VD, _VD)
        self.multiply = declared(b, "llvm.x86.avx2.pmadd.wd", _V32, _PAIRS, _PAIRS)

    def _nothing(self, k: Any, r: int, s: int) -> Any:
        """Return the lanes in which all products of a run are zero."""
        b, read, some = self.b, self.read, splat(_BYTES, 0)
        for word in range(s * WORDS, (s + 1) * WORDS):
            x, y = (b.bitcast(v, _BYTES) for v in (read.left(k, r, word), read.right(k, word)))
            x = b.icmp_signed("!=", x, splat(_BYTES, read.zero_left))
            y = b.icmp_signed("!=", y, splat(_BYTES, read.zero_right))
            some = b.or_(some, b.sext(b.and_(x, y), _BYTES))
        return b.icmp_signed("==", b.bitcast(some, _V32), splat(_V32, 0))

    def step(self, k: Any, acc: list[Any], look: bool) -> list[Any]:
        """Return the accumulators after a step; `look` for runs whose products are zero."""
        b, read, count = self.b, self.read, self.count
        tops = []
        for x in acc:
            field = b.and_(b.lshr(b.bitcast(x, _V32), splat(_V32, 23)), splat(_V32, 255))
            own = maximum(b, b.sub(field, splat(_V32, 127)), splat(_V32, -126))
            zero = b.fcmp_ordered("==", x, splat(_VF, 0.0))
            tops.append(maximum(b, b.select(zero, splat(_V32, NO_TERM), own), self.least))
        hidden: dict[tuple[int, int], Any] = {}
        for s in range(RUNS):
            e, _ = read.right_scale(k, s)
            for r in range(count):
                both = b.add(read.left_scale(k, r, s)[0], e)
                if look:
                    hidden[s, r] = self._nothing(k, r, s)
                    both = b.select(hidden[s, r], splat(_V32, NO_TERM), both)
                tops[r] = maximum(b, tops[r], both)
        totals = [splat(_VD, 0.0)] * count
        bases = [b.sub(self.ahead, top) for top in tops]
        for s in range(RUNS):
            sums = read.sums(k, s)
            for word in range(s * WORDS, (s + 1) * WORDS):
                y = read.right(k, word)
                for r in range(count):
                    sums[r] = b.add(sums[r], read.products(read.left(k, r, word), y))
            e, m = read.right_scale(k, s)
            for r in range(count):
                own, significand = read.left_scale(k, r, s)
                factor = b.mul(significand, m)
                partial = b.sitofp(b.call(self.multiply, [sums[r], factor]), _VF)
                power = b.add(b.add(own, e), bases[r])
                if look:  # a zero of any size
                    power = b.select(hidden[s, r], splat(_V32, 1), power)
                power = b.shl(maximum(b, power, splat(_V32, 1)), splat(_V32, 23))
                term = b.call(self.cut_single, [b.fmul(partial, b.bitcast(power, _VF))])
                totals[r] = b.fadd(totals[r], b.fpext(term, _VD))
        return [self._cut(*each) for each in zip(totals, tops, acc, strict=True)]

    def _cut(self, total: Any, top: Any, x: Any) -> Any:
        """Return the accumulator x plus a total in units of the last bit that is kept."""
        b, special = self.b, splat(_V32, 0x7F800000)
        unit = b.sub(top, self.align)
        up = _power(b, b.sub(splat(_V32, 0), unit))
        own = b.call(self.cut, [b.fmul(b.fpext(x, _VD), up)])
        value = b.fmul(b.fadd(total, own), _power(b, unit))
        # toward zero to 24 bits, and to float32's last place: subnormals have fewer
        bits = b.and_(b.bitcast(value, _VL), splat(_VL, -(1 << 29)))
        value = b.fmul(b.bitcast(bits, _VD), splat(_VD, 2.0**149))
        value = b.fmul(b.call(self.cut, [value]), splat(_VD, 2.0**-149))
        value = b.fadd(value, splat(_VD, 0.0))  # zeros are positive
        result = b.fptrunc(value, _VF)  # exact, or infinite
        sticks = b.icmp_signed("==", b.and_(b.bitcast(x, _V32), special), special)
        return b.select(sticks, x, result)

    def run(self, tile: Tile, doubt: Any) -> None:
        """Emit all steps of a tile; `doubt`: whether there may be runs of zeros."""
        with self.b.if_else(doubt) as ways:
            for way, look in zip(ways, (True, False), strict=True):

                def body(k: Any, acc: list[Any], look: bool = look) -> list[Any]:
                    return self.step(k, acc, look)

                with way:
                    tile.store(loop(self.b, tile.steps, tile.load(self.count), body), self.count)


@emitted
def fp4_tile(
    typing: Any, rows: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any,
    stride: Any, steps: Any, fraction: Any, align: Any, least: Any,
) -> Any:  # fmt: skip
    """Chain `steps` steps of 64 products onto out[r, :], float32.

    `fraction` counts the fraction bits of a product of two scales' significands; terms are cut to
    `align` fraction bits below the largest exponent, which is at least `least`. The first step says
    how many zeros a run of the rows, and of the columns, has at most.
    """
    if not isinstance(rows, types.IntegerLiteral):
        return None
    count = rows.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args[:-3], args[:-3], 1, _VF)
        first, doubt = ir.Constant(I64, 0), ir.Constant(ir.IntType(1), 0)
        zeros = b.load(b.gep(tile.panel, [ir.Constant(I64, B_REST)]))
        for r in range(count):
            own = tile.scalar(first, count * A_WORDS, r * A_WORDS + A_WORDS - 1)
            doubt = b.or_(doubt, b.icmp_signed(">=", own, b.sub(ir.Constant(I32, 16), zeros)))
        _Arithmetic(b, _Planes(b, tile, count), *args[-3:]).run(tile, doubt)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(rows, a, i64, b, i64, out, *(i64,) * 6), codegen


@emitted
def fp4_row(
    typing: Any, lifted: Any, scales: Any, scales_at: Any, zeros: Any, a: Any, a_at: Any, b: Any,
    b_at: Any, out: Any, out_at: Any, stride: Any, steps: Any, fraction: Any, align: Any,
    least: Any,
) -> Any:  # fmt: skip
    """Do `fp4_tile` for one row and codes as they are packed.

    `lifted`: 12 more than twice the value of each of 16 codes; `scales`: exponent and significand,
    16 bits each, of every run and column; `zeros`: the most that a run of a column has.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args[:-3], args[:-3], 1, _VF)
        look_up, _ = _table(context, b, sig.args[0], args[0])
        words = pointer_at(context, b, sig.args[1], args[1], args[2])
        own = tile.scalar(ir.Constant(I64, 0), FEW_WORDS, FEW_WORDS - 1)
        room = b.sub(ir.Constant(I32, 16), b.trunc(args[3], I32))
        doubt = b.icmp_signed(">=", own, room)
        _Arithmetic(b, _Codes(b, tile, look_up, words), *args[-3:]).run(tile, doubt)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(lifted, scales, i64, i64, a, i64, b, i64, out, *(i64,) * 6), codegen
