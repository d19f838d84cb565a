"""Codes of eight bits to what kernels read, by vectors of bytes and of 16-bit integers.

Numba has neither; 32-bit lanes take a multiple of the time, as long as the product of one row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.align import NO_TERM
from numsim.kernels.ir.fp8 import I8, PICK, V8, declared, half_reader, lanes
from numsim.kernels.ir.pack import interleaved
from numsim.kernels.ir.simd import (
    BIAS,
    FRACTION,
    HOPPER_COLUMNS,
    HOPPER_ROWS,
    I16,
    I32,
    I64,
    PAGE,
    V32,
    VF,
    ZERO_EXPONENT,
    Tile,
    broadcast,
    emitted,
    fetch,
    joined,
    loop,
    pointer_at,
    splat,
    vectors_of,
)


def _bytes_by_table(context: Any, b: Any, kind: Any, table: Any, first: int) -> Callable[..., Any]:
    """Return how 64 codes become low and high bytes, by 512 bytes of a table from `first` on."""
    start = pointer_at(context, b, kind, table, ir.Constant(I64, first))
    start = b.bitcast(start, V8.as_pointer())
    parts = [b.load(b.gep(start, [ir.Constant(I64, i)]), align=1) for i in range(8)]
    pick = declared(b, PICK, V8, V8, V8, V8)

    def read(code: Any) -> tuple[Any, Any]:
        second = b.icmp_signed("<", code, splat(V8, 0))
        high, low = (
            b.select(second, b.call(pick, [parts[t + 2], code, parts[t + 3]]),
                     b.call(pick, [parts[t], code, parts[t + 1]]))
            for t in (0, 4)
        )  # fmt: skip
        return low, high

    return read


def singles_by_table(context: Any, b: Any, kind: Any, table: Any) -> Callable[[Any], list[Any]]:
    """Return how 64 codes become two vectors of 32 float32, by the table of `looked_up_values`."""
    read = _bytes_by_table(context, b, kind, table, 0)
    words, whole = ir.VectorType(I16, 32), ir.VectorType(I32, 32)

    def values(code: Any) -> list[Any]:
        low, high = read(code)
        found = []
        for first in (0, 32):
            order = [n // 2 + 64 * (n % 2) + first for n in range(64)]
            pairs = b.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, 64), order))
            bits = b.shl(b.zext(b.bitcast(pairs, words), whole), splat(whole, 16))
            found.append(b.bitcast(bits, ir.VectorType(ir.FloatType(), 32)))
        return found

    return values


@emitted
def looked_up_values(typing: Any, codes: Any, runs: Any, values: Any, table: Any) -> Any:
    """Write the values of `runs` times 64 codes as float32 or float64.

    `table` holds the two high bytes of the float32 values of all 256 codes: 256 high ones, then 256
    low ones. Their other bytes are 0.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        wide = sig.args[2].dtype == types.float64
        vector = ir.VectorType(ir.DoubleType() if wide else ir.FloatType(), 32)
        source = vectors_of(context, b, sig.args[0], args[0], V8)
        target = vectors_of(context, b, sig.args[2], args[2], vector)
        read = singles_by_table(context, b, sig.args[3], args[3])

        def run(i: Any, carried: list[Any]) -> list[Any]:
            fetch(b, b.gep(source, [b.add(i, ir.Constant(I64, PAGE // 64))]))
            for half, value in enumerate(read(b.load(b.gep(source, [i]), align=1))):
                place = b.gep(
                    target, [b.add(b.mul(i, ir.Constant(I64, 2)), ir.Constant(I64, half))]
                )
                b.store(b.fpext(value, vector) if wide else value, place, align=4)
            return carried

        loop(b, args[1], [], run)
        return context.get_dummy_value()

    return types.void(codes, types.int64, values, table), codegen


def _short_reader(b: Any, fields: Any, double: bool) -> Callable[[Any], list[Any]]:
    """Return how 16 codes become float32, or twice 8 float64, by `ir.fp8.half_reader`.

    The high bytes go to their places by exchanges inside of 16 bytes, which are cheap; `column`
    says which code must stand where for that.
    """
    halves_of = half_reader(b, lanes(8), fields, double=double)
    near = 2 if double else 4  # elements that follow one another, in either half of a register
    column = [n % 8 // near * 2 * near + n // 8 * near + n % near for n in range(16)]
    twice = ir.Constant(ir.VectorType(I32, 32), [column[n // 2] for n in range(32)])

    def spread(x: Any) -> list[Any]:
        zero = ir.Constant(x.type, None)
        return [interleaved(b, zero, x, x.type.element.width, high) for high in (0, 1)]

    def read(code: Any) -> list[Any]:
        halves = halves_of(b.shuffle_vector(code, code, twice))
        words = [b.bitcast(x, lanes(8).words) for x in spread(halves)]
        if not double:
            return [b.bitcast(joined(b, *words), VF)]
        four = ir.VectorType(ir.DoubleType(), 4)
        return [joined(b, *(b.bitcast(x, four) for x in spread(word))) for word in words]

    return read


@emitted
def short_values(typing: Any, codes: Any, runs: Any, values: Any, fields: Any) -> Any:
    """Write the values of `runs` times 16 codes of one byte as float32 or float64, with AVX2.

    `fields` is `gemm_codes.Fields`, of formats that `ir.fp8.half_reader` reads.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        wide = sig.args[2].dtype == types.float64
        vector = ir.VectorType(ir.DoubleType(), 8) if wide else VF
        source = vectors_of(context, b, sig.args[0], args[0], ir.VectorType(I8, 16))
        target = vectors_of(context, b, sig.args[2], args[2], vector)
        read, parts = _short_reader(b, args[3], wide), 16 // vector.count

        def run(i: Any, carried: list[Any]) -> list[Any]:
            fetch(b, b.gep(source, [b.add(i, ir.Constant(I64, PAGE // 16))]))
            first = b.mul(i, ir.Constant(I64, parts))
            for n, value in enumerate(read(b.load(b.gep(source, [i]), align=1))):
                b.store(value, b.gep(target, [b.add(first, ir.Constant(I64, n))]), align=4)
            return carried

        loop(b, args[1], [], run)
        return context.get_dummy_value()

    return types.void(codes, types.int64, values, fields), codegen


@emitted
def chain_of_shorts(
    typing: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any, stride: Any,
    steps: Any, fields: Any,
) -> Any:  # fmt: skip
    """Do what `chain_of_codes` does, with AVX2, for codes that `short_values` reads."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        double = sig.args[0].dtype == types.float64
        count = 8 if double else 16
        vector = ir.VectorType(ir.DoubleType(), count) if double else VF
        tile = Tile(context, b, sig.args[:-1], args[:-1], 2, vector)
        fma = declared(b, f"llvm.fma.v{count}f{512 // count}", vector, vector, vector, vector)
        read = _short_reader(b, args[-1], double)

        def columns(at: Any, c: int) -> list[Any]:
            start = b.gep(at, [ir.Constant(I64, 16 * c)])
            return read(b.load(b.bitcast(start, ir.VectorType(I8, 16).as_pointer()), align=1))

        def step(k: Any, acc: list[Any]) -> list[Any]:
            x = broadcast(b, tile.scalar(k, 1, 0), vector)
            at = b.gep(tile.panel, [b.mul(k, ir.Constant(I64, 2 * count))])
            fetch(b, b.gep(at, [ir.Constant(I64, PAGE)]))
            values = [value for c in range(2 * count // 16) for value in columns(at, c)]
            return [b.call(fma, [x, y, z]) for y, z in zip(values, acc, strict=True)]

        acc = loop(b, tile.steps, tile.load(1), step)
        nan = splat(vector, float("nan"))
        tile.store([b.select(b.fcmp_unordered("uno", v, v), nan, v) for v in acc], 1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, b, i64, out, i64, i64, i64, fields), codegen


@emitted
def chain_of_codes(
    typing: Any, doubles: Any, table: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any,
    out_at: Any, stride: Any, steps: Any,
) -> Any:  # fmt: skip
    """Update out[:] = fma(a[k], value of b[k, :], out[:]) in order of k; NaN is canonical.

    Codes of one byte, read by the table of `looked_up_values`; `doubles`: by 512 bytes that follow
    it and hold the two high bytes of the values as float64. For a row alone, which is not packed,
    it does not pay to write values.
    """
    if not isinstance(doubles, types.IntegerLiteral):
        return None
    direct = bool(doubles.literal_value)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        double = sig.args[2].dtype == types.float64
        lanes = 8 if double else 16
        vector = ir.VectorType(ir.DoubleType() if double else ir.FloatType(), lanes)
        tile = Tile(context, b, sig.args, args, 2, vector)
        fma = declared(b, f"llvm.fma.v{lanes}f{512 // lanes}", vector, vector, vector, vector)
        pick = declared(b, PICK, V8, V8, V8, V8)
        width, together = 2 * lanes, 32 // lanes  # columns; k of 64 codes
        reader = (
            _bytes_by_table(context, b, sig.args[1], args[1], 512)
            if direct
            else singles_by_table(context, b, sig.args[1], args[1])
        )
        highest = ir.Constant(ir.VectorType(ir.IntType(1), 64), [n % 8 > 5 for n in range(64)])

        def part(values: Any, first: int) -> Any:
            """Return the values of `lanes` codes from `first` on."""
            if direct:
                low, high = values
                at = [n // 8 + first + 64 * (n % 8 == 7) for n in range(64)]
                found = b.call(pick, [low, ir.Constant(V8, at), high])
                return b.bitcast(b.select(highest, found, splat(V8, 0)), vector)
            order = ir.Constant(ir.VectorType(I32, lanes), [first % 32 + n for n in range(lanes)])
            some = b.shuffle_vector(values[first // 32], values[first // 32], order)
            return b.fpext(some, vector) if double else some

        def chain(k: Any, code: Any, count: int, acc: list[Any]) -> list[Any]:
            values = reader(code)
            for n in range(count):
                x = broadcast(b, tile.scalar(k, 1, n), vector)
                for c in range(2):
                    acc[c] = b.call(fma, [x, part(values, n * width + c * lanes), acc[c]])
            return acc

        def run(i: Any, acc: list[Any]) -> list[Any]:
            at = b.gep(tile.panel, [b.mul(i, ir.Constant(I64, 64))])
            fetch(b, b.gep(at, [ir.Constant(I64, PAGE)]))
            code = b.load(b.bitcast(at, V8.as_pointer()), align=1)
            return chain(b.mul(i, ir.Constant(I64, together)), code, together, list(acc))

        runs = b.sdiv(tile.steps, ir.Constant(I64, together))
        done = b.mul(runs, ir.Constant(I64, together))

        def single(i: Any, acc: list[Any]) -> list[Any]:
            k = b.add(done, i)
            at = b.gep(tile.panel, [b.mul(k, ir.Constant(I64, width))])
            few = b.load(b.bitcast(at, ir.VectorType(I8, width).as_pointer()), align=1)
            order = ir.Constant(ir.VectorType(I32, 64), [n % width for n in range(64)])
            return chain(k, b.shuffle_vector(few, few, order), 1, list(acc))

        acc = loop(b, runs, tile.load(1), run)
        acc = loop(b, b.sub(tile.steps, done), acc, single)
        nan = splat(vector, float("nan"))
        tile.store([b.select(b.fcmp_unordered("uno", v, v), nan, v) for v in acc], 1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(doubles, table, a, i64, b, i64, out, i64, i64, i64), codegen


@emitted
def aligned_planes(typing: Any, codes: Any, runs: Any, planes: Any, fields: Any) -> Any:
    """Write float32 significands (or values) and int32 exponents of `runs` times 16 codes.

    `fields` is `gemm_codes.Fields`. Plain vector IR, for any CPU.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        narrow = ir.VectorType(ir.IntType(sig.args[0].dtype.bitwidth), 16)
        source = vectors_of(context, b, sig.args[0], args[0], narrow)
        target = vectors_of(context, b, sig.args[2], args[2], V32)
        magnitude, sign, sign_up, trailing, _, bias, up, kept, rebias, quantum, leading = (
            broadcast(b, b.extract_value(args[3], i), V32) for i in range(11)
        )
        ahead = PAGE // (2 * narrow.element.width)
        place, none, zero = splat(V32, 23), splat(V32, NO_TERM), splat(V32, 0)
        placed, placed_sign = b.and_(b.shl(magnitude, up), kept), b.shl(sign, sign_up)
        one, lower = b.bitcast(rebias, VF), b.sub(zero, bias)
        own = b.icmp_unsigned("!=", leading, zero)
        # of a subnormal, (fraction) quantum = (what is read as normal - one) times this
        least = b.add(b.sub(quantum, rebias), splat(V32, BIAS << 23))
        times = b.bitcast(b.add(least, b.shl(trailing, place)), VF)

        def run(i: Any, carried: list[Any]) -> list[Any]:
            fetch(b, b.gep(source, [b.add(i, ir.Constant(I64, ahead))]))
            code = b.load(b.gep(source, [i]), align=1)
            code = b.zext(code, V32) if narrow.element.width < 32 else code
            m = b.and_(code, magnitude)
            field = b.lshr(m, trailing)
            value = b.bitcast(b.add(b.and_(b.shl(code, up), placed), rebias), VF)
            small = b.fmul(b.fsub(value, one), times)
            value = b.select(b.icmp_unsigned("==", field, zero), small, value)
            exponent = b.select(b.icmp_unsigned(">", field, splat(V32, 1)), field, splat(V32, 1))
            exponent = b.add(exponent, lower)
            single = b.sub(b.lshr(b.bitcast(value, V32), place), splat(V32, 127))
            exponent = b.select(own, single, exponent)
            value = b.or_(b.bitcast(value, V32), b.and_(b.shl(code, sign_up), placed_sign))
            exponent = b.select(b.icmp_unsigned("==", m, zero), none, exponent)
            for plane, vector in enumerate((value, exponent)):
                at = b.add(b.mul(i, ir.Constant(I64, 2)), ir.Constant(I64, plane))
                b.store(vector, b.gep(target, [at]), align=4)
            return carried

        loop(b, args[1], [], run)
        return context.get_dummy_value()

    return types.void(codes, types.int64, planes, fields), codegen


@emitted
def fp8_planes(
    typing: Any, left: Any, codes: Any, at: Any, runs: Any, words: Any, fields: Any
) -> Any:
    """Write significands, exponents and signs of `runs` times as many codes as a pair of k has.

    The left operand's significands have the fraction bits of the rule, the right one's exponents
    have a bias, and the signs are such that XOR gives 1 or -1. `fields` is `gemm_codes.Fields`;
    formats have at most 3 fraction bits and 8 bits in all.
    """
    if not isinstance(left, types.IntegerLiteral):
        return None
    plus = left.literal_value
    vector = ir.VectorType(I16, 2 * (HOPPER_ROWS if plus else HOPPER_COLUMNS))
    places, more = (FRACTION - 3, 0) if plus else (3, BIAS)  # of 3 + 3 fraction bits make 13

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        args, kinds = args[1:], sig.args[1:]
        source = pointer_at(context, b, kinds[0], args[0], args[1])
        source = b.bitcast(source, ir.VectorType(ir.IntType(8), vector.count).as_pointer())
        target = vectors_of(context, b, kinds[3], args[3], vector)

        def field(index: int) -> Any:
            return broadcast(b, b.trunc(b.extract_value(args[4], index), I16), vector)

        magnitude, sign_bit, _, trailing, fraction, bias = (field(i) for i in range(6))
        one, zero, positive, negative = (splat(vector, n) for n in (1, 0, plus, plus - 2))
        up = b.sub(splat(vector, places), trailing)
        rebias = b.sub(splat(vector, more), bias)

        def run(i: Any, carried: list[Any]) -> list[Any]:
            code = b.zext(b.load(b.gep(source, [i]), align=1), vector)
            m = b.and_(code, magnitude)
            top = b.lshr(m, trailing)
            normal = b.icmp_unsigned("!=", top, zero)
            hidden = b.shl(b.select(normal, one, zero), trailing)
            exponent = b.add(b.select(normal, top, one), rebias)
            nothing = splat(vector, ZERO_EXPONENT + more)
            exponent = b.select(b.icmp_unsigned("!=", m, zero), exponent, nothing)
            below = b.icmp_unsigned("!=", b.and_(code, sign_bit), zero)
            planes = (
                b.shl(b.or_(b.and_(m, fraction), hidden), up),
                exponent,
                b.select(below, negative, positive),
            )
            first = b.mul(i, ir.Constant(I64, 3))
            for p, plane in enumerate(planes):
                b.store(plane, b.gep(target, [b.add(first, ir.Constant(I64, p))]), align=4)
            return carried

        loop(b, args[2], [], run)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(left, codes, i64, i64, words, fields), codegen
