"""Codes of eight bits to what kernels read, by vectors of bytes and of 16-bit integers.

Numba has neither; 32-bit lanes take a multiple of the time, as long as the product of one row.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.simd import _BIAS as BIAS
from numsim.kernels.simd import _FRACTION as FRACTION
from numsim.kernels.simd import _I16 as I16
from numsim.kernels.simd import _I32 as I32
from numsim.kernels.simd import _I64 as I64
from numsim.kernels.simd import _V32 as V32
from numsim.kernels.simd import _VF as VF
from numsim.kernels.simd import (
    HOPPER_COLUMNS,
    HOPPER_ROWS,
    PAGE,
    ZERO_EXPONENT,
    _broadcast,
    _intrinsic,
    _loop,
    _splat,
    fetch,
    pointer_at,
)
from numsim.kernels.simd_align import NO_TERM
from numsim.kernels.simd_fp8 import V8, declared


@_intrinsic
def looked_up_values(typing: Any, codes: Any, runs: Any, values: Any, table: Any) -> Any:
    """Write the values of `runs` times 64 codes as float32 or float64.

    `table` holds the two high bytes of the float32 values of all 256 codes: 256 high ones, then 256
    low ones. Their other bytes are 0.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        def start(i: int, vector: Any) -> Any:
            at = pointer_at(context, b, sig.args[i], args[i], ir.Constant(I64, 0))
            return b.bitcast(at, vector.as_pointer())

        wide = sig.args[2].dtype == types.float64
        singles = ir.VectorType(ir.FloatType(), 32)
        vector = ir.VectorType(ir.DoubleType(), 32) if wide else singles
        source, target, first = start(0, V8), start(2, vector), start(3, V8)
        parts = [b.load(b.gep(first, [ir.Constant(I64, i)]), align=1) for i in range(8)]
        pick = declared(b, "llvm.x86.avx512.vpermi2var.qi.512", V8, V8, V8, V8)
        orders = [
            ir.Constant(
                ir.VectorType(I32, 64), [n // 2 + 64 * (n % 2) + 32 * half for n in range(64)]
            )
            for half in range(2)
        ]

        def run(i: Any, carried: list[Any]) -> list[Any]:
            fetch(b, b.gep(source, [b.add(i, ir.Constant(I64, PAGE // 64))]))
            code = b.load(b.gep(source, [i]), align=1)
            second = b.icmp_signed("<", code, _splat(V8, 0))
            upper, lower = (
                b.select(second, b.call(pick, [parts[t + 2], code, parts[t + 3]]),
                         b.call(pick, [parts[t], code, parts[t + 1]]))
                for t in (0, 4)
            )  # fmt: skip
            for half, order in enumerate(orders):
                words = b.bitcast(b.shuffle_vector(lower, upper, order), ir.VectorType(I16, 32))
                bits = b.zext(words, ir.VectorType(I32, 32))
                value = b.bitcast(b.shl(bits, _splat(bits.type, 16)), singles)
                value = b.fpext(value, vector) if wide else value
                place = b.add(b.mul(i, ir.Constant(I64, 2)), ir.Constant(I64, half))
                b.store(value, b.gep(target, [place]), align=4)
            return carried

        _loop(b, args[1], [], run)
        return context.get_dummy_value()

    return types.void(codes, types.int64, values, table), codegen


@_intrinsic
def aligned_planes(typing: Any, codes: Any, runs: Any, planes: Any, fields: Any) -> Any:
    """Write float32 significands (or values) and int32 exponents of `runs` times 16 codes.

    `fields` is `gemm_codes.Fields`. Plain vector IR, for any CPU.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = pointer_at(context, b, sig.args[0], args[0], ir.Constant(I64, 0))
        narrow = ir.VectorType(ir.IntType(sig.args[0].dtype.bitwidth), 16)
        source = b.bitcast(source, narrow.as_pointer())
        target = pointer_at(context, b, sig.args[2], args[2], ir.Constant(I64, 0))
        target = b.bitcast(target, V32.as_pointer())
        magnitude, sign, sign_up, trailing, _, bias, up, kept, rebias, quantum = (
            _broadcast(b, b.extract_value(args[3], i), V32) for i in range(10)
        )
        ahead = PAGE // (2 * narrow.element.width)
        place, none, zero = _splat(V32, 23), _splat(V32, NO_TERM), _splat(V32, 0)
        placed, placed_sign = b.and_(b.shl(magnitude, up), kept), b.shl(sign, sign_up)
        one, lower = b.bitcast(rebias, VF), b.sub(zero, bias)
        # of a subnormal, (fraction) quantum = (what is read as normal - one) times this
        least = b.add(b.sub(quantum, rebias), _splat(V32, BIAS << 23))
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
            value = b.or_(b.bitcast(value, V32), b.and_(b.shl(code, sign_up), placed_sign))
            exponent = b.select(b.icmp_unsigned(">", field, _splat(V32, 1)), field, _splat(V32, 1))
            exponent = b.add(exponent, lower)
            exponent = b.select(b.icmp_unsigned("==", m, zero), none, exponent)
            for plane, vector in enumerate((value, exponent)):
                at = b.add(b.mul(i, ir.Constant(I64, 2)), ir.Constant(I64, plane))
                b.store(vector, b.gep(target, [at]), align=4)
            return carried

        _loop(b, args[1], [], run)
        return context.get_dummy_value()

    return types.void(codes, types.int64, planes, fields), codegen


@_intrinsic
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
        target = pointer_at(context, b, kinds[3], args[3], ir.Constant(I64, 0))
        target = b.bitcast(target, vector.as_pointer())

        def field(index: int) -> Any:
            return _broadcast(b, b.trunc(b.extract_value(args[4], index), I16), vector)

        magnitude, sign_bit, _, trailing, fraction, bias = (field(i) for i in range(6))
        one, zero, positive, negative = (_splat(vector, n) for n in (1, 0, plus, plus - 2))
        up = b.sub(_splat(vector, places), trailing)
        rebias = b.sub(_splat(vector, more), bias)

        def run(i: Any, carried: list[Any]) -> list[Any]:
            code = b.zext(b.load(b.gep(source, [i]), align=1), vector)
            m = b.and_(code, magnitude)
            top = b.lshr(m, trailing)
            normal = b.icmp_unsigned("!=", top, zero)
            hidden = b.shl(b.select(normal, one, zero), trailing)
            exponent = b.add(b.select(normal, top, one), rebias)
            nothing = _splat(vector, ZERO_EXPONENT + more)
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

        _loop(b, args[2], [], run)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(left, codes, i64, i64, words, fields), codegen
