"""Squared errors of one row of float32 magnitudes under 32 scales at a time: a scale a lane.

What float32 loses here the caller knows (`numsim.kernels.convert.intervals`): products are fused
with additions where the processor does that, and nothing depends on it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.simd import (
    I32,
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

TRIALS = 32
PART = 256  # values that are summed before they are added to others
_VECTORS = TRIALS // VF.count
_VD = ir.VectorType(ir.DoubleType(), 8)


def _either(b: Any) -> Any:
    kind = ir.FunctionType(VF, [VF] * 3)
    return b.module.declare_intrinsic(f"llvm.fmuladd.v{VF.count}f32", (), kind)


def _least(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered("<", x, y), x, y)


def _smallest(b: Any, x: Any, y: Any) -> Any:
    """Return the smallest lane of positive numbers, which are in the order of their words."""
    x, y = b.bitcast(x, V32), b.bitcast(y, V32)
    least = b.select(b.icmp_unsigned("<", x, y), x, y)
    kind = ir.FunctionType(I32, [V32])
    reduce = b.module.declare_intrinsic(f"llvm.vector.reduce.umin.v{VF.count}i32", (), kind)
    return b.bitcast(b.call(reduce, [least]), ir.FloatType())


def _uniform(b: Any, args: Any) -> Any:
    """Return the rounding to equal steps: what is added leaves whole ones."""
    (shifter,) = (broadcast(b, value, VF) for value in args)

    def rounded(x: Any, inverse: Any, top: Any) -> Any:
        q = b.fsub(b.call(_either(b), [x, inverse, shifter]), shifter)
        return _least(b, q, top)

    return rounded


def _octaves(b: Any, args: Any) -> Any:
    """Return the rounding to as many steps in every octave; a tie goes up."""
    half, kept = (broadcast(b, value, V32) for value in args)

    def rounded(x: Any, inverse: Any, top: Any) -> Any:
        v = b.bitcast(_least(b, b.fmul(x, inverse), top), V32)
        return b.bitcast(b.and_(b.add(v, half), kept), VF)

    return rounded


def _grid(b: Any, args: Any) -> Any:
    """Return the rounding to equal steps up to a bound, and by octaves from there on."""
    by_octave, shifter, bound = _octaves(b, args[:2]), *(broadcast(b, v, VF) for v in args[2:])

    def rounded(x: Any, inverse: Any, top: Any) -> Any:
        even = b.fsub(b.call(_either(b), [x, inverse, shifter]), shifter)
        octave = by_octave(x, inverse, top)
        return b.select(b.fcmp_ordered("<", octave, bound), even, octave)

    return rounded


def _sums(rounding: Any, grid: int) -> Any:
    """Return the emitter for a grid that so many numbers describe."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        m, most, scales, target = (
            pointer_at(context, b, sig.args[k], args[k], ir.Constant(I64, 0)) for k in (0, 1, 3, 4)
        )
        lanes = [b.add(args[5], ir.Constant(I64, VF.count * j)) for j in range(_VECTORS)]
        at = [b.bitcast(b.gep(scales, [j]), VF.as_pointer()) for j in lanes]
        to = [b.bitcast(b.gep(target, [j]), VF.as_pointer()) for j in lanes]
        s = [b.load(pointer, align=4) for pointer in at]
        inverse, minus = [b.fdiv(splat(VF, 1.0), v) for v in s], [b.fneg(v) for v in s]
        multiply_add, rounded = _either(b), rounding(b, args[6 : 6 + grid])

        def part(k: Any, totals: list[Any]) -> list[Any]:
            first = b.mul(k, ir.Constant(I64, PART))
            left = b.sub(args[2], first)
            count = ir.Constant(I64, PART)
            count = b.select(b.icmp_signed("<", left, count), left, count)

            def step(i: Any, sums: list[Any]) -> list[Any]:
                at = b.add(first, i)
                x, top = (broadcast(b, b.load(b.gep(array, [at])), VF) for array in (m, most))
                new = []
                for j in range(_VECTORS):
                    q = rounded(x, inverse[j], top)
                    rest = b.call(multiply_add, [minus[j], q, x])
                    new.append(b.call(multiply_add, [rest, rest, sums[j]]))
                return new

            sums = loop(b, count, [splat(VF, 0.0)] * _VECTORS, step)
            return [b.fadd(x, y) for x, y in zip(totals, sums, strict=True)]

        parts = b.sdiv(b.add(args[2], ir.Constant(I64, PART - 1)), ir.Constant(I64, PART))
        totals = loop(b, parts, [splat(VF, 0.0)] * _VECTORS, part)
        for pointer, total in zip(to, totals, strict=True):
            b.store(total, pointer, align=4)
        return _smallest(b, *totals)

    return codegen


@emitted
def errors_uniform(
    typing: Any, m: Any, most: Any, count: Any, scales: Any, out: Any, at: Any, shifter: Any
) -> Any:
    """Sum (m - s q)**2 over `count` magnitudes for 32 scales from `at` on; return the least.

    q is m / s, at most `most` [count], rounded to equal steps. All arrays are contiguous.
    """
    return types.float32(m, most, count, scales, out, types.int64, shifter), _sums(_uniform, 1)


@emitted
def errors_octaves(
    typing: Any, m: Any, most: Any, count: Any, scales: Any, out: Any, at: Any, half: Any, kept: Any
) -> Any:
    """Do `errors_uniform` for steps that grow by octaves; `kept`: int32 of the bits of a level."""
    kinds = m, most, count, scales, out, types.int64, types.int32, types.int32
    return types.float32(*kinds), _sums(_octaves, 2)


@emitted
def errors_grid(
    typing: Any, m: Any, most: Any, count: Any, scales: Any, out: Any, at: Any, half: Any,
    kept: Any, shifter: Any, bound: Any,
) -> Any:  # fmt: skip
    """Do `errors_uniform` for equal steps up to a bound, which grow by octaves beyond it."""
    kinds = m, most, count, scales, out, types.int64, types.int32, types.int32, shifter, bound
    return types.float32(*kinds), _sums(_grid, 4)


@emitted
def marked(typing: Any, flags: Any, at: Any) -> Any:
    """Return 16 flags, int32 from an index on, as bits."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        first = pointer_at(context, b, sig.args[0], args[0], args[1])
        words = b.load(b.bitcast(first, V32.as_pointer()), align=4)
        bits = b.bitcast(b.icmp_unsigned("!=", words, splat(V32, 0)), ir.IntType(16))
        return b.zext(bits, I64)

    return types.uint64(flags, types.int64), codegen


@emitted
def products(typing: Any, m: Any, q: Any, count: Any) -> Any:
    """Return sums of m q and of q q over 8 `count` float64, in any order."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        one, other = (vectors_of(context, b, sig.args[k], args[k], _VD) for k in (0, 1))
        kind = ir.FunctionType(ir.DoubleType(), [ir.DoubleType(), _VD])
        add = b.module.declare_intrinsic("llvm.vector.reduce.fadd.v8f64", (), kind)

        def step(i: Any, sums: list[Any]) -> list[Any]:
            x, y = (b.load(b.gep(pointer, [i]), align=8) for pointer in (one, other))
            return [b.fadd(sums[0], b.fmul(x, y)), b.fadd(sums[1], b.fmul(y, y))]

        sums = loop(b, args[2], [splat(_VD, 0.0)] * 2, step)
        zero = ir.Constant(ir.DoubleType(), 0.0)
        found = [b.call(add, [zero, v], fastmath=("reassoc",)) for v in sums]
        return context.make_tuple(b, sig.return_type, found)

    return types.UniTuple(types.float64, 2)(m, q, types.int64), codegen
