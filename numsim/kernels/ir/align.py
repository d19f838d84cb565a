"""The vector micro-kernel of units that align products to their largest exponent and cut them.

One lane is one output. A product of two significands is exact in float32; scaled so that one unit
is the last kept bit, its conversion to int32 is the cut toward zero. A few such integers fit int32,
then they go to float64, where the rest of the block is exact: at most 53 bits are ever in use.
With vectors the products of a whole block, if their sum fits int32, stay there, and the conversion
to float32 cuts it.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from numsim.kernels.ir.control import any_lane, either, toward_zero
from numsim.kernels.ir.simd import (
    I32,
    I64,
    V32,
    VF,
    Tile,
    broadcast,
    emitted,
    loop,
    maximum,
    splat,
)

ALIGN_ROWS, ALIGN_COLUMNS = 4, 16
JOINS, LATE, HALVES, TWO_STAGE, TWO_STREAMS, BULK = range(6)
NO_TERM = -4000  # exponent of a factor that takes no part, low enough in any sum
LOWEST = -700  # stands for the largest exponent where there is no term: 2**(F + 700) is a float64
RULE_SIZE = 10
_LIFT = 1000  # makes exponents of terms positive, and leaves NO_TERM negative

_VD, _VL = ir.VectorType(ir.DoubleType(), 16), ir.VectorType(I64, 16)


def _least(b: Any, least: Any, exponent: Any) -> Any:
    """Return the least of unsigned lanes and an exponent, lifted; where there is no term, huge."""
    lifted = b.add(exponent, splat(exponent.type, _LIFT))
    return b.select(b.icmp_unsigned("<", lifted, least), lifted, least)


class Flavour(NamedTuple):
    """What is compiled into a kernel: packed in one integer, a literal type."""

    kind: int
    chunk: int  # products summed in int32: 8, 4, 2 or 1
    direct: bool  # products of whole values are exact in float32, no need to split exponents off
    small: int  # JOINS, cut to float32: sums of products fit int32; 1: with the accumulator too

    def code(self) -> int:
        """Return the flavour as one number."""
        chunk = self.chunk.bit_length() - 1
        return self.kind * 32 + self.small * 8 + chunk * 2 + self.direct


class _Align:
    """Emits one call of the kernel."""

    def __init__(self, context: Any, b: Any, sig: Any, args: Any, rows: int, flavour: int) -> None:
        self.b, self.rows = b, rows
        self.kind, self.small = flavour >> 5, flavour >> 3 & 3
        self.chunk, self.direct = 1 << (flavour >> 1 & 3), flavour & 1
        self.tile = Tile(context, b, sig.args[:-1], args[:-1], 1, VF)
        rule = self.tile.pointer(context, sig.args[-1], args[-1], ir.Constant(I64, 0))
        values = [b.load(b.gep(rule, [ir.Constant(I64, i)])) for i in range(RULE_SIZE)]
        self.chunks = b.fptosi(values[0], I64)
        # exponents as int32 lanes: cut position, least largest exponent, the format's least one
        self.cut, self.floor, self.emin, self.sum_bits = (
            self._lanes(values[i]) for i in (1, 2, 3, 7)
        )
        keep = b.fptosi(values[4], I64)
        self.lift = self._power(self._spread(b.sub(ir.Constant(I64, 52), keep), _VL))
        self.drop = self._power(self._spread(b.sub(ir.Constant(I64, 0), keep), _VL))
        self.truncates = self._spread(values[5], _VD)  # 1.0: toward zero, 0.0: to nearest even
        self.limit = self._spread(values[6], _VD)  # 2**(emax + 1)
        self.least = self._power(b.sext(self.emin, _VL))
        self.room = b.sub(self.cut, self._lanes(values[9]))  # an exponent so far below cuts nothing
        self.halves = b.fcmp_ordered("!=", self._spread(values[8], _VD), splat(_VD, 0.0))

    def _spread(self, scalar: Any, vector: Any) -> Any:
        return broadcast(self.b, scalar, vector)

    def _lanes(self, value: Any) -> Any:
        return self._spread(self.b.fptosi(value, I32), V32)

    def _call(self, name: str, *values: Any) -> Any:
        kind = ir.FunctionType(_VD, [_VD] * len(values))
        function = self.b.module.declare_intrinsic(f"llvm.{name}.v16f64", (), kind)
        return self.b.call(function, values)

    def _power(self, exponent: Any) -> Any:
        """Return 2.0**exponent of int64 lanes, in the range of normal float64."""
        b = self.b
        return b.bitcast(b.shl(b.add(exponent, splat(_VL, 1023)), splat(_VL, 52)), _VD)

    def _scaled(self, x: Any, exponent: Any) -> Any:
        return self.b.fmul(x, self._power(self.b.sext(exponent, _VL)))

    def _row(self, slot: Any, plane: int, r: int) -> Any:
        x = self.tile.scalar(slot, 2 * ALIGN_ROWS, plane * ALIGN_ROWS + r)
        return self._spread(x, V32)

    def _column(self, slot: Any, plane: int) -> Any:
        return self.tile.columns(slot, 2 * ALIGN_COLUMNS, plane * ALIGN_COLUMNS, V32)

    def products(self, first: Any, top: list[Any]) -> tuple[list[Any], list[Any]]:
        """Return the largest exponents, at least `top`, and the sums of the cut products.

        They are float64; if blocks are small, int32.
        """
        b = self.b

        def slots(c: Any) -> list[Any]:
            start = b.add(first, b.mul(c, ir.Constant(I64, self.chunk)))
            return [b.add(start, ir.Constant(I64, u)) for u in range(self.chunk)]

        def peak(c: Any, found: list[Any]) -> list[Any]:
            top, least = found[: self.rows], found[self.rows :]
            for slot in slots(c):
                eb = self._column(slot, 1)
                top = [maximum(b, t, b.add(self._row(slot, 1, r), eb)) for r, t in enumerate(top)]
                if least:
                    lines = (self.tile.rows(slot, 2 * ALIGN_ROWS, ALIGN_ROWS, few), eb)
                    least = [_least(b, x, y) for x, y in zip(least, lines, strict=True)]
            return top + least

        few = ir.VectorType(I32, self.rows)
        bounds = [splat(few, -1), splat(V32, -1)] if self.kind == BULK else []
        found = loop(b, self.chunks, top + bounds, peak)
        top, least = found[: self.rows], found[self.rows :]
        ahead = b.add(self.cut, splat(V32, 127))
        above = [b.sub(ahead, t) for t in top]  # + the product's exponent: its scale's, biased
        zero, last, shift = splat(V32, 0), splat(V32, 254), splat(V32, 23)
        scales = [
            b.bitcast(b.shl(b.select(b.icmp_signed("<", x, last), x, last), shift), VF)
            for x in above
        ]

        def add(c: Any, totals: list[Any], jams: bool = False) -> list[Any]:
            sums = [zero] * self.rows
            for slot in slots(c):
                mb = b.bitcast(self._column(slot, 0), VF)
                eb = None if self.direct else self._column(slot, 1)
                for r in range(self.rows):
                    x = b.fmul(b.bitcast(self._row(slot, 0, r), VF), mb)
                    scale = scales[r]
                    if not self.direct:
                        e = b.add(b.add(self._row(slot, 1, r), eb), above[r])
                        scale = b.bitcast(b.shl(maximum(b, e, zero), shift), VF)
                    sums[r] = b.add(sums[r], self.cut_off(b.fmul(x, scale), jams))
            if self.small:
                return [b.add(t, s) for t, s in zip(totals, sums, strict=True)]
            return [b.fadd(t, b.sitofp(s, _VD)) for t, s in zip(totals, sums, strict=True)]

        nothing = [zero if self.small else splat(_VD, 0.0)] * self.rows
        if self.kind != BULK:
            return top, loop(b, self.chunks, nothing, add)
        lost = splat(V32, 0)  # the least product that there may be of each row lies too low
        for r, t in enumerate(top):
            x = self._spread(b.extract_element(least[0], ir.Constant(I32, r)), V32)
            low = b.sub(b.add(x, least[1]), splat(V32, 2 * _LIFT))
            lost = b.or_(lost, b.sext(b.icmp_signed(">", b.sub(t, low), self.room), V32))
        return top, either(
            b, any_lane(b, lost),
            lambda: loop(b, self.chunks, nothing, lambda c, x: add(c, x, jams=True)),
            lambda: loop(b, self.chunks, nothing, add),
        )  # fmt: skip

    def cut_off(self, units: Any, jams: bool) -> Any:
        """Return float32 lanes as whole numbers: cut toward zero, or jammed into the last bit."""
        b = self.b
        if not jams:
            return b.fptosi(units, V32)
        kind = ir.FunctionType(VF, [VF])
        below = b.call(b.module.declare_intrinsic("llvm.floor.v16f32", (), kind), [units])
        lost = b.zext(b.fcmp_ordered("!=", below, units), V32)
        return b.or_(b.fptosi(below, V32), lost)  # two's complement: toward zero, made odd

    def exponent(self, acc: Any) -> Any:
        """Return the exponent of float32 lanes, NO_TERM for zeros."""
        b = self.b
        field = b.and_(b.lshr(b.bitcast(acc, V32), splat(V32, 23)), splat(V32, 255))
        e = maximum(b, b.sub(field, splat(V32, 127)), self.emin)
        zero = b.fcmp_ordered("==", acc, splat(VF, 0.0))
        return b.select(zero, splat(V32, NO_TERM), e)

    def rounded(self, x: Any) -> Any:
        """Round float64 lanes to the result's format; the sign of a zero is that of x."""
        b = self.b
        size = self._call("fabs", x)
        mask = splat(_VL, 0x7FF << 52)
        place = b.bitcast(b.and_(b.bitcast(size, _VL), mask), _VD)
        place = b.select(b.fcmp_ordered(">", place, self.least), place, self.least)
        lift = b.fmul(place, self.lift)
        near = b.fsub(b.fadd(size, lift), lift)  # nearest even at the last kept bit
        bit = b.fmul(b.fmul(place, self.drop), self.truncates)
        over = b.fcmp_ordered(">", near, size)
        kept = b.select(over, b.fsub(near, bit), near)
        infinite = b.fcmp_unordered(">=", kept, self.limit)  # infinite x made it NaN
        return self._call("copysign", b.select(infinite, splat(_VD, float("inf")), kept), x)

    def floored_nearest(self, x: Any) -> Any:
        """Floor float64 lanes to one fraction bit less than `sum_bits` of their own exponent.

        Then round them to nearest even. A floor that reaches the next power of two is exact.
        """
        b = self.b
        place = b.and_(b.bitcast(x, _VL), splat(_VL, 0x7FF << 52))
        least = b.bitcast(self.least, _VL)
        place = b.select(b.icmp_signed(">", place, least), place, least)
        bits = b.shl(b.sext(b.sub(self.sum_bits, splat(V32, 1)), _VL), splat(_VL, 52))
        up = b.bitcast(b.sub(b.add(bits, splat(_VL, 2046 << 52)), place), _VD)
        whole = self._call("floor", b.fmul(x, up))
        whole = b.fmul(whole, b.bitcast(b.sub(place, bits), _VD))
        lift = b.fmul(b.bitcast(place, _VD), self.lift)
        near = b.fsub(b.fadd(self._call("fabs", whole), lift), lift)
        infinite = b.fcmp_unordered(">=", near, self.limit)
        return self._call("copysign", b.select(infinite, splat(_VD, float("inf")), near), whole)

    def positive_zero(self, x: Any) -> Any:
        return self.b.fadd(x, splat(_VD, 0.0))

    def sticky(self, acc: Any, result: Any, special: Any = None) -> Any:
        """Return `special` (None: `acc`) where `acc` is infinite or NaN, else `result`."""
        b = self.b
        bits = b.and_(b.bitcast(acc, V32), splat(V32, 0x7F800000))
        return b.select(b.icmp_signed("==", bits, splat(V32, 0x7F800000)), special or acc, result)

    def fused(self, first: Any, acc: list[Any] | None) -> list[Any]:
        """Return float32 lanes after a block that `acc`, if given, joins."""
        b = self.b
        top = [self.floor] * self.rows
        if acc is not None:
            top = [maximum(b, self.floor, self.exponent(x)) for x in acc]
        top, total = self.products(first, top)
        if acc is not None:
            for r, x in enumerate(acc):
                units = self._scaled(b.fpext(x, _VD), b.sub(self.cut, top[r]))
                total[r] = b.fadd(total[r], b.sitofp(b.fptosi(units, V32), _VD))
        values = [
            self.positive_zero(self.rounded(self._scaled(x, b.sub(e, self.cut))))
            for x, e in zip(total, top, strict=True)
        ]
        new = [b.fptrunc(x, VF) for x in values]
        if acc is None:
            return new
        return [self.sticky(x, y) for x, y in zip(acc, new, strict=True)]

    def _single_scaled(self, x: Any, exponent: Any) -> Any:
        """Return float32 lanes times 2**exponent, in two steps that cut no more than one would."""
        b = self.b
        far = splat(V32, 252)
        exponent = b.select(b.icmp_signed("<", exponent, far), exponent, far)
        exponent = maximum(b, exponent, splat(V32, -252))
        half = b.ashr(exponent, splat(V32, 1))
        for part in (half, b.sub(exponent, half)):
            power = b.shl(b.add(part, splat(V32, 127)), splat(V32, 23))
            x = b.fmul(x, b.bitcast(power, VF))
        return x

    def small_block(self, first: Any, acc: list[Any]) -> list[Any]:
        """Return what `fused` does, where arithmetic cuts toward zero."""
        b = self.b
        top, total = self.products(first, [maximum(b, self.floor, self.exponent(x)) for x in acc])
        new = []
        for e, t, x in zip(top, total, acc, strict=True):
            units = b.fptosi(self._single_scaled(x, b.sub(self.cut, e)), V32)
            if self.small == 1:
                value = b.sitofp(b.add(t, units), VF)
            else:
                value = b.fptrunc(b.fadd(b.sitofp(t, _VD), b.sitofp(units, _VD)), VF)
            up = b.sub(e, self.cut)
            bits = b.bitcast(value, V32)
            field = b.and_(b.lshr(bits, splat(V32, 23)), splat(V32, 255))
            over = b.icmp_signed(">", b.add(field, up), splat(V32, 254))
            infinite = b.or_(b.and_(bits, splat(V32, -(1 << 31))), splat(V32, 0x7F800000))
            whole = b.fadd(self._single_scaled(value, up), splat(VF, 0.0))  # zeros are positive
            new.append(self.sticky(x, b.select(over, b.bitcast(infinite, VF), whole)))
        return new

    def late(self, value: Any, acc: Any) -> Any:
        """Return value + acc, rounded to nearest even in float32 or float16."""
        b = self.b
        plain = b.fadd(value, acc)
        single = b.fpext(plain, _VD)
        exact = b.fadd(b.fpext(value, _VD), b.fpext(acc, _VD))
        zero = b.fcmp_ordered("==", exact, splat(_VD, 0.0))
        half = b.select(zero, exact, self.rounded(exact))
        # an infinite accumulator meets a value that may have overflowed the other way
        return self.sticky(acc, b.fptrunc(b.select(self.halves, half, single), VF), plain)

    def odd_single(self, x: Any) -> Any:
        """Round float64 lanes, normal in float32 or held by it, to odd."""
        b = self.b
        bits, rest = b.bitcast(x, _VL), splat(_VL, (1 << 29) - 1)
        lost = b.icmp_signed("!=", b.and_(bits, rest), splat(_VL, 0))
        kept = b.and_(bits, splat(_VL, ~((1 << 29) - 1)))
        odd = b.select(lost, b.or_(kept, splat(_VL, 1 << 29)), kept)
        return b.bitcast(odd, _VD)

    def bulk(self, first: Any, acc: list[Any]) -> list[Any]:
        """Return float32 lanes after a set of products, its sum and the accumulator to odd."""
        b = self.b
        new = []
        top, total = self.products(first, [self.floor] * self.rows)
        for e, t, old in zip(top, total, acc, strict=True):
            x = self.odd_single(self._scaled(t, b.sub(e, self.cut)))
            y = b.fpext(old, _VD)
            both = b.fadd(x, y)
            back = b.fsub(both, x)
            error = b.fadd(b.fsub(x, b.fsub(both, back)), b.fsub(y, back))
            raw = b.bitcast(both, _VL)
            away = b.ashr(b.xor(b.bitcast(error, _VL), raw), splat(_VL, 63))  # rounded up: -1
            odd = b.or_(b.add(raw, away), splat(_VL, 1))
            lost = b.fcmp_ordered("!=", error, splat(_VD, 0.0))
            both = self.odd_single(b.bitcast(b.select(lost, odd, raw), _VD))
            new.append(self.sticky(old, b.fptrunc(both, VF)))
        return new

    def two_stage(self, first: Any, acc: list[Any]) -> list[Any]:
        """Return float32 lanes after CDNA3's block."""
        b = self.b
        top, total = self.products(first, [self.floor] * self.rows)
        if self.kind == TWO_STREAMS:
            odd_top, odd = self.products(b.add(first, self._width()), [self.floor] * self.rows)
            for r in range(self.rows):
                e = maximum(b, top[r], odd_top[r])
                even = self._call("floor", self._scaled(total[r], b.sub(top[r], e)))
                other = self._call("floor", self._scaled(odd[r], b.sub(odd_top[r], e)))
                top[r], total[r] = e, b.fadd(even, other)
        new = []
        extra = b.sub(self.sum_bits, self.cut)
        for e, t, x in zip(top, total, acc, strict=True):
            own = maximum(b, self.exponent(x), self.emin)  # of a zero too
            second = maximum(b, e, own)
            whole = self._scaled(t, b.add(extra, b.sub(e, second)))
            whole = self._call("floor", whole)
            units = self._scaled(b.fpext(x, _VD), b.sub(self.cut, second))
            units = self._scaled(self._call("floor", units), extra)
            if self.kind == TWO_STREAMS:
                far = b.sub(b.sub(second, self.cut), splat(V32, 1))
                units = b.select(b.icmp_signed("<", own, far), splat(_VD, 0.0), units)
            whole = b.fadd(whole, units)
            value = self.floored_nearest(self._scaled(whole, b.sub(second, self.sum_bits)))
            new.append(self.sticky(x, b.fptrunc(value, VF)))
        return new

    def _width(self) -> Any:
        return self.b.mul(self.chunks, ir.Constant(I64, self.chunk))

    def emit(self) -> None:
        b = self.b
        parts = 2 if self.kind in (HALVES, TWO_STREAMS) else 1

        def step(g: Any, acc: list[Any]) -> list[Any]:
            first = b.mul(g, b.mul(self._width(), ir.Constant(I64, parts)))
            if self.kind == BULK:
                return self.bulk(first, acc)
            if self.kind >= TWO_STAGE:
                return self.two_stage(first, acc)
            if self.small:
                return self.small_block(first, acc)
            if self.kind == JOINS:
                return self.fused(first, acc)
            values = self.fused(first, None)
            if self.kind == HALVES:
                values = self.fused(b.add(first, self._width()), values)
            return [self.late(v, x) for v, x in zip(values, acc, strict=True)]

        with toward_zero(b) if self.small else nullcontext():
            acc = loop(b, self.tile.steps, self.tile.load(self.rows), step)
            self.tile.store(acc, self.rows)


@emitted
def align_tile(
    typing: Any, rows: Any, flavour: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any,
    out_at: Any, stride: Any, steps: Any, rule: Any,
) -> Any:  # fmt: skip
    """Chain `steps` blocks onto out[r, :] by a rule (`gemm.align.rule_array`).

    Both operands hold, per product, a plane of float32 significands (or values) and one of int32
    exponents, exponents with `NO_TERM` where a product takes no part.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(flavour, types.IntegerLiteral)):
        return None

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _Align(context, builder, sig, args, rows.literal_value, flavour.literal_value).emit()
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(rows, flavour, a, i64, b, i64, out, i64, i64, i64, rule), codegen
