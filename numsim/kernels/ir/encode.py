"""float32 to signed floats of eight bits, to nearest even, 64 at a time with AVX-512.

Magnitudes are rounded by one float addition, signs and NaN come from byte tables. Proof:
``tests/convert/test_convert_fast.py`` compares all float32 patterns of a stride, and all halves,
with the generic kernel.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.fp8 import I8, V8, bottom, top
from numsim.kernels.ir.simd import (
    I32,
    I64,
    V32,
    VF,
    broadcast,
    emitted,
    joined,
    loop,
    splat,
    vectors_of,
)


def bytes_of(b: Any, words: list[Any], byte: int) -> Any:
    """Return byte `byte` of the words of four vectors."""
    order = ir.Constant(ir.VectorType(I32, 32), [4 * n + byte for n in range(32)])
    pairs = [
        b.shuffle_vector(b.bitcast(words[i], V8), b.bitcast(words[i + 1], V8), order)
        for i in (0, 2)
    ]
    return joined(b, *pairs)


def _finished(b: Any, code: Any, bits: list[Any], nan: Any, nan_sign: Any) -> tuple[Any, Any]:
    """Return 64 codes with the signs and the NaN of float32 bit patterns; a mask of those NaN."""
    signs = bytes_of(b, bits, 3)
    code = b.or_(b.and_(code, splat(V8, 0x7F)), b.and_(signs, splat(V8, -128)))
    numbers = [b.bitcast(word, VF) for word in bits]
    nans = [b.fcmp_unordered("uno", x, x) for x in numbers]
    mask = joined(b, joined(b, nans[0], nans[1]), joined(b, nans[2], nans[3]))
    return b.select(mask, b.or_(nan, b.and_(signs, nan_sign)), code), b.bitcast(mask, I64)


@emitted
def signed_bytes(typing: Any, x: Any, runs: Any, out: Any, fields: Any) -> Any:
    """Give `runs` times 64 magnitude codes the signs and NaN of x; return whether NaN was met."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], V32)
        target = vectors_of(context, b, sig.args[2], args[2], V8)
        nan, nan_sign = (broadcast(b, b.trunc(b.extract_value(args[3], i), I8), V8) for i in (8, 9))

        def run(i: Any, carried: list[Any]) -> list[Any]:
            first = b.mul(i, ir.Constant(I64, 4))
            bits = [
                b.load(b.gep(source, [b.add(first, ir.Constant(I64, j))]), align=1)
                for j in range(4)
            ]
            code = b.load(b.gep(target, [i]), align=1)
            code, met = _finished(b, code, bits, nan, nan_sign)
            b.store(code, b.gep(target, [i]), align=1)
            return [b.or_(carried[0], met)]

        (met,) = loop(b, args[1], [ir.Constant(I64, 0)], run)
        return met

    return types.int64(x, types.int64, out, fields), codegen


@emitted
def byte_codes(typing: Any, x: Any, runs: Any, out: Any, fields: Any) -> Any:
    """Encode `runs` times 64 float32 bit patterns; return whether NaN was met (not 0).

    x and out are contiguous. The arithmetic is that of `float32.float_rne`, sign and NaN come in as
    bytes. `fields` is `fast.Fast` of a format with minus zero, whose infinities become what its
    overflow does.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], V32)
        target = vectors_of(context, b, sig.args[2], args[2], V8)
        cut, min_field, stored, clamp, nan, nan_sign = (
            b.extract_value(args[3], i) for i in (0, 1, 2, 5, 8, 9)
        )
        base = b.trunc(b.shl(min_field, stored), I8)  # the rest of it leaves the low byte alone
        low = broadcast(b, base, V8)
        nan, nan_sign = (broadcast(b, b.trunc(value, I8), V8) for value in (nan, nan_sign))
        twenty_three = ir.Constant(I32, 23)
        clamp, least, magic, cut = (
            broadcast(b, value, V32)
            for value in (clamp, b.shl(min_field, twenty_three), b.shl(cut, twenty_three), cut)
        )
        infinity, magnitude = splat(V32, 0x7F800000), splat(V32, 0x7FFFFFFF)

        def run(i: Any, carried: list[Any]) -> list[Any]:
            bits, sums = [], []
            for j in range(4):
                at = b.add(b.mul(i, ir.Constant(I64, 4)), ir.Constant(I64, j))
                word = b.load(b.gep(source, [at]), align=1)
                c = bottom(b, b.and_(word, magnitude), clamp)
                e = top(b, b.and_(c, infinity), least)
                lifted = b.bitcast(b.add(e, magic), VF)
                s = b.bitcast(b.fadd(b.bitcast(c, VF), lifted), V32)
                sums.append(b.add(b.sub(s, e), b.lshr(e, cut)))
                bits.append(word)
            code, met = _finished(b, b.sub(bytes_of(b, sums, 0), low), bits, nan, nan_sign)
            b.store(code, b.gep(target, [i]), align=1)
            return [b.or_(carried[0], met)]

        (met,) = loop(b, args[1], [ir.Constant(I64, 0)], run)
        return met

    return types.int64(x, types.int64, out, fields), codegen
