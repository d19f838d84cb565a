"""Blocks of float32 numbers along rows, 16 numbers a vector: what two ways to store them leave.

A block is `vectors` vectors. Proof: ``tests/quant/test_one_pass.py``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.block_codes import joined_in_each
from numsim.kernels.ir.fp8 import I8
from numsim.kernels.ir.simd import (
    I64,
    V32,
    VF,
    broadcast,
    emitted,
    loop,
    pointer_at,
    splat,
    vectors_of,
)

_SIXTEEN = ir.VectorType(I8, 16)
_HALVES, _WHOLE = 1.5 * 2.0**22, 1.5 * 2.0**23  # adding them leaves multiples of 1/2, of 1


def _nearest(b: Any, v: Any, magic: float) -> Any:
    by = splat(VF, magic)
    return b.fsub(b.fadd(v, by), by)


def _least(b: Any, x: Any, y: float) -> Any:
    limit = splat(VF, y)
    return b.select(b.fcmp_ordered("<", x, limit), x, limit)


def _off_e2m1(b: Any, v: Any) -> Any:
    """Return how far magnitudes lie from the nearest of E2M1, in either direction."""
    word = b.add(b.bitcast(v, V32), splat(V32, 1 << 21))
    octave = b.bitcast(b.and_(word, splat(V32, -(1 << 22))), VF)  # two bits, half of one up
    small = b.fcmp_ordered("<", v, splat(VF, 1.0))
    return b.fsub(v, _least(b, b.select(small, _nearest(b, v, _HALVES), octave), 6.0))


def _off_integers(b: Any, v: Any) -> Any:
    return b.fsub(v, _least(b, _nearest(b, v, _WHOLE), 7.0))


def _error_sums(off: Any, squares: bool) -> Any:
    """Return an emitter that sums the errors of blocks under inverse scales, 16 blocks a run."""

    def sums(typing: Any, x: Any, inverse: Any, vectors: Any, runs: Any, out: Any) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            source = vectors_of(context, b, sig.args[0], args[0], V32)
            scales = pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0))
            target = vectors_of(context, b, sig.args[4], args[4], VF)
            vectors = args[2]

            def size(words: Any) -> Any:
                return b.bitcast(b.and_(words, splat(V32, 0x7FFFFFFF)), VF)

            def run(i: Any, _: list[Any]) -> list[Any]:
                block = b.mul(i, ir.Constant(I64, 16))
                at = [b.add(block, ir.Constant(I64, j)) for j in range(16)]
                by = [broadcast(b, b.load(b.gep(scales, [place])), VF) for place in at]
                first = [b.mul(place, vectors) for place in at]

                def step(v: Any, totals: list[Any]) -> list[Any]:
                    new = []
                    for j, total in enumerate(totals):
                        word = b.load(b.gep(source, [b.add(first[j], v)]), align=4)
                        e = off(b, b.fmul(size(word), by[j]))
                        error = b.fmul(e, e) if squares else size(b.bitcast(e, V32))
                        new.append(b.fadd(total, error))
                    return new

                total = loop(b, vectors, [splat(VF, 0.0)] * 16, step)
                b.store(joined_in_each(b, total, b.fadd), b.gep(target, [i]), align=4)
                return []

            loop(b, args[3], [], run)
            return context.get_dummy_value()

        return types.void(x, inverse, types.int64, types.int64, out), codegen

    return emitted(sums)


magnitudes_off_e2m1 = _error_sums(_off_e2m1, squares=False)
squares_off_e2m1 = _error_sums(_off_e2m1, squares=True)
squares_off_integers = _error_sums(_off_integers, squares=True)


@emitted
def half_steps(typing: Any, codes: Any, integers: Any, vectors: Any, blocks: Any) -> Any:
    """Turn codes of E2M1 in place: to half steps, or to twice a count of steps in some blocks."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        target = vectors_of(context, b, sig.args[0], args[0], _SIXTEEN)
        kinds = pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0))
        zero, four, seven = (splat(_SIXTEEN, value) for value in (0, 4, 7))

        def block(i: Any, _: list[Any]) -> list[Any]:
            kind = broadcast(b, b.load(b.gep(kinds, [i])), _SIXTEEN)
            whole = b.icmp_unsigned("!=", kind, zero)
            first = b.mul(i, args[2])

            def vector(v: Any, _: list[Any]) -> list[Any]:
                at = b.gep(target, [b.add(first, v)])
                code = b.load(at, align=1)
                count = b.and_(code, seven)  # of E2M1: 0 1 2 3 4 6 8 12
                beyond = b.icmp_unsigned(">", count, four)
                more = b.select(beyond, b.sub(count, four), zero)
                more = b.select(b.icmp_unsigned("==", count, seven), splat(_SIXTEEN, 5), more)
                step = b.add(count, b.select(whole, count, more))
                negative = b.icmp_unsigned(">", code, seven)
                b.store(b.select(negative, b.sub(zero, step), step), at, align=1)
                return []

            loop(b, args[2], [], vector)
            return []

        loop(b, args[3], [], block)
        return context.get_dummy_value()

    return types.void(codes, integers, types.int64, types.int64), codegen
