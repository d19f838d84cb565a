"""The vector micro-kernel of multiply-adds that round to nearest even in a small float format.

One lane is one output, held in float64. Products of two operands are exact. A sum whose lost part
is not zero is made odd in its last bit, so that rounding it again is rounding the exact sum.
More than two products whose sum float64 does not hold are split at one power of two, so that the
sums of their high and of their low parts are exact; how three such numbers are added and rounded
once is in Boldo and Melquiond, Emulation of FMA and correctly rounded sums, IEEE TC 57 (2008).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from numsim.kernels.ir.fp8 import declared
from numsim.kernels.ir.simd import FMA_ROWS, I64, Tile, broadcast, emitted, loop, splat

MAC_VECTORS, MAC_LANES = 2, 8
FORMAT_SIZE = 4  # numbers that describe a format: `gemm.mac.format_array`
_VD, _VL = ir.VectorType(ir.DoubleType(), MAC_LANES), ir.VectorType(I64, MAC_LANES)


class Flavour(NamedTuple):
    """What is compiled into a kernel: packed in one integer, a literal type."""

    tree: int  # 1: one chain; 2, 4 or 8: products added pairwise first
    rounded: bool  # products are rounded before they are added
    exact: bool  # float64 holds every sum
    plain: bool = False  # float64 holds sums of products, and those are not rounded
    signed_zero: bool = True  # -0 of a tree's sum reaches the accumulator
    split: bool = False  # sums of products are exact in two numbers; the rule has the splitter
    single: bool = False  # float64 holds sums of products and accumulators, float32 the results

    def code(self) -> int:
        """Return the flavour as one number."""
        flags = self.single * 32 + self.split * 16 + self.signed_zero * 8 + self.plain * 4
        return self.tree * 64 + flags + self.rounded * 2 + self.exact


class _Format:
    """Rounds float64 lanes to a format read from a rule."""

    def __init__(self, b: Any, rule: Any, first: int) -> None:
        self.b = b
        values = [b.load(b.gep(rule, [ir.Constant(I64, first + i)])) for i in range(FORMAT_SIZE)]
        self.lift, self.least, self.top, self.small = (broadcast(b, v, _VD) for v in values)

    def rounded(self, x: Any) -> Any:
        """Return x rounded; zeros keep their sign, infinities and NaN stay."""
        b = self.b
        raw = b.bitcast(x, _VL)
        sign = b.and_(raw, splat(_VL, -(1 << 63)))
        size = b.bitcast(b.and_(raw, splat(_VL, (1 << 63) - 1)), _VD)
        place = b.bitcast(b.and_(raw, splat(_VL, 0x7FF << 52)), _VD)
        place = b.select(b.fcmp_ordered(">", place, self.least), place, self.least)
        lift = b.fmul(place, self.lift)
        near = b.fsub(b.fadd(size, lift), lift)
        flushed = b.fcmp_ordered("<", near, self.small)
        near = b.select(flushed, splat(_VD, 0.0), near)
        fits = b.fcmp_ordered("<=", near, self.top)
        over = b.fmul(size, splat(_VD, float("inf")))  # infinite, or NaN
        near = b.select(fits, near, over)
        return b.bitcast(b.or_(b.bitcast(near, _VL), sign), _VD)


def _sum(b: Any, x: Any, y: Any, exact: bool) -> Any:
    """Return x + y, exact or rounded to odd."""
    if exact:
        return b.fadd(x, y)
    total, error = _two_sum(b, x, y)
    raw = b.bitcast(total, _VL)
    lost = b.fcmp_ordered("!=", error, splat(_VD, 0.0))  # false for infinite sums
    away = b.ashr(b.xor(b.bitcast(error, _VL), raw), splat(_VL, 63))  # -1: it was rounded up
    odd = b.or_(b.add(raw, away), splat(_VL, 1))
    return b.bitcast(b.select(lost, odd, raw), _VD)


def _two_sum(b: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Return x + y, and what its rounding lost."""
    total = b.fadd(x, y)
    back = b.fsub(total, x)
    return total, b.fadd(b.fsub(x, b.fsub(total, back)), b.fsub(y, back))


def _three(b: Any, acc: Any, high: Any, low: Any) -> Any:
    """Return acc + high + low rounded to odd; an accumulator that is not finite stays."""
    high, low = _two_sum(b, high, low)
    near, lost = _two_sum(b, acc, low)
    total, rest = _two_sum(b, high, near)
    value = _sum(b, total, _sum(b, lost, rest, False), False)
    bits = b.and_(b.bitcast(acc, _VL), splat(_VL, 0x7FF << 52))
    special = b.icmp_signed("==", bits, splat(_VL, 0x7FF << 52))
    return b.select(special, acc, value)


@emitted
def mac_tile(
    typing: Any, rows: Any, flavour: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any,
    out_at: Any, stride: Any, steps: Any, rule: Any,
) -> Any:  # fmt: skip
    """Update out[r, :] by one multiply-add, or one tree of them, a step; all float64.

    `rule` holds the accumulator's format, the product's, and what splits products.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(flavour, types.IntegerLiteral)):
        return None
    count, code = rows.literal_value, flavour.literal_value
    tree, keeps, plain, rounds = code >> 6, code & 8, code & 4, code & 2
    exact, splits, single = bool(code & 1), bool(code & 16), bool(code & 32)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args[:-1], args[:-1], MAC_VECTORS, _VD)
        pointer = tile.pointer(context, sig.args[-1], args[-1], ir.Constant(I64, 0))
        sums, products = _Format(b, pointer, 0), _Format(b, pointer, FORMAT_SIZE)
        width = MAC_VECTORS * MAC_LANES
        splitter = b.load(b.gep(pointer, [ir.Constant(I64, 2 * FORMAT_SIZE)]))
        splitter = broadcast(b, splitter, _VD)

        def add(x: Any, y: Any) -> Any:
            return sums.rounded(_sum(b, x, y, exact))

        def term(k: Any, u: int, r: int, c: int) -> Any:
            x = broadcast(b, tile.scalar(k, tree * FMA_ROWS, u * FMA_ROWS + r), _VD)
            value = b.fmul(x, tile.columns(k, tree * width, u * width + c * MAC_LANES))
            return products.rounded(value) if rounds else value

        def parts(terms: list[Any]) -> tuple[Any, Any]:
            if tree == 2:
                return terms[0], b.fadd(terms[1], splat(_VD, 0.0))
            heads = [b.fsub(b.fadd(x, splitter), splitter) for x in terms]
            tails = [b.fsub(x, head) for x, head in zip(terms, heads, strict=True)]
            return total(heads), total(tails)

        def total(values: list[Any]) -> Any:
            while len(values) > 1:
                pairs = zip(values[::2], values[1::2], strict=True)
                values = [b.fadd(x, y) for x, y in pairs]
            return values[0]

        fma = declared(b, f"llvm.fma.v{MAC_LANES}f64", _VD, _VD, _VD, _VD)
        floats = ir.VectorType(ir.FloatType(), MAC_LANES)

        def exact_step(k: Any, acc: list[Any]) -> list[Any]:
            """Add exact products to exact sums, which the processor rounds to float32."""
            for u in range(tree):
                columns = [
                    tile.columns(k, tree * width, u * width + c * MAC_LANES)
                    for c in range(MAC_VECTORS)
                ]
                for r in range(count):
                    x = broadcast(b, tile.scalar(k, tree * FMA_ROWS, u * FMA_ROWS + r), _VD)
                    for c, column in enumerate(columns):
                        i = MAC_VECTORS * r + c
                        acc[i] = b.call(fma, [x, column, acc[i]])
            return [b.fpext(b.fptrunc(x, floats), _VD) for x in acc]

        def step(k: Any, acc: list[Any]) -> list[Any]:
            if single:
                return exact_step(k, list(acc))
            new = []
            for i, old in enumerate(acc):
                terms = [term(k, u, i // MAC_VECTORS, i % MAC_VECTORS) for u in range(tree)]
                if splits:
                    new.append(sums.rounded(_three(b, old, *parts(terms))))
                    continue
                while len(terms) > 1:
                    pairs = zip(terms[::2], terms[1::2], strict=True)
                    terms = [b.fadd(x, y) if plain else add(x, y) for x, y in pairs]
                if not keeps:
                    terms[0] = b.fadd(terms[0], splat(_VD, 0.0))
                new.append(add(old, terms[0]))
            return new

        nan = splat(_VD, float("nan"))
        acc = loop(b, tile.steps, tile.load(count), step)
        tile.store([b.select(b.fcmp_unordered("uno", v, v), nan, v) for v in acc], count)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(rows, flavour, a, i64, b, i64, out, i64, i64, i64, rule), codegen
