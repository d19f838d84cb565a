"""Codes of eight bits to the int16 planes that the FP8 kernels read, 32 at a time.

Numba has no 16-bit arithmetic, and 32-bit lanes take twice the time: as long as the product of one
row itself.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.simd import _I16 as I16
from numsim.kernels.simd import _I64 as I64
from numsim.kernels.simd import _V16 as V16
from numsim.kernels.simd import ZERO_EXPONENT, _broadcast, _intrinsic, _loop, _splat, pointer_at

_FRACTION, _EXPONENT_BIAS = 3, 127  # of the planes' significands and exponents


@_intrinsic
def fp8_planes(typing: Any, codes: Any, at: Any, runs: Any, words: Any, fields: Any) -> Any:
    """Write significands, biased exponents and signs (0 or -2) of `runs` times 32 codes.

    `fields` is `gemm_codes.Fields`; formats have at most 3 fraction bits and 8 bits in all.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = pointer_at(context, b, sig.args[0], args[0], args[1])
        source = b.bitcast(source, ir.VectorType(ir.IntType(8), 32).as_pointer())
        target = pointer_at(context, b, sig.args[3], args[3], ir.Constant(I64, 0))
        target = b.bitcast(target, V16.as_pointer())

        def field(index: int) -> Any:
            return _broadcast(b, b.trunc(b.extract_value(args[4], index), I16), V16)

        magnitude, sign_bit, _, trailing, fraction, bias = (field(i) for i in range(6))
        one, zero = _splat(V16, 1), _splat(V16, 0)
        up = b.sub(_splat(V16, _FRACTION), trailing)
        rebias = b.sub(_splat(V16, _EXPONENT_BIAS), bias)

        def run(i: Any, carried: list[Any]) -> list[Any]:
            code = b.zext(b.load(b.gep(source, [i]), align=1), V16)
            m = b.and_(code, magnitude)
            top = b.lshr(m, trailing)
            normal = b.icmp_unsigned("!=", top, zero)
            hidden = b.shl(b.select(normal, one, zero), trailing)
            exponent = b.add(b.select(normal, top, one), rebias)
            nothing = _splat(V16, ZERO_EXPONENT + _EXPONENT_BIAS)
            exponent = b.select(b.icmp_unsigned("!=", m, zero), exponent, nothing)
            negative = b.icmp_unsigned("!=", b.and_(code, sign_bit), zero)
            planes = (
                b.shl(b.or_(b.and_(m, fraction), hidden), up),
                exponent,
                b.select(negative, _splat(V16, -2), zero),
            )
            first = b.mul(i, ir.Constant(I64, 3))
            for p, plane in enumerate(planes):
                b.store(plane, b.gep(target, [b.add(first, ir.Constant(I64, p))]), align=4)
            return carried

        _loop(b, args[2], [], run)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(codes, i64, i64, words, fields), codegen
