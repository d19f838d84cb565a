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
        m, most = (
            pointer_at(context, b, sig.args[k], args[k], ir.Constant(I64, 0)) for k in (0, 1)
        )
        one_by_one = ir.Constant(VF, [float(n + 1) for n in range(VF.count)])
        high = broadcast(b, args[7], VF)
        s, to = [], []
        for j in range(_VECTORS):
            first, apart = (broadcast(b, args[3 + 2 * j + k], VF) for k in (0, 1))
            s.append(_least(b, b.fadd(first, b.fmul(apart, one_by_one)), high))
            at = b.add(args[10], ir.Constant(I64, VF.count * j))
            scales, out = (pointer_at(context, b, sig.args[k], args[k], at) for k in (8, 9))
            b.store(s[j], b.bitcast(scales, VF.as_pointer()), align=4)
            to.append(b.bitcast(out, VF.as_pointer()))
        inverse, minus = [b.fdiv(splat(VF, 1.0), v) for v in s], [b.fneg(v) for v in s]
        multiply_add, rounded = _either(b), rounding(b, args[11 : 11 + grid])

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
    typing: Any, m: Any, most: Any, count: Any, one: Any, apart: Any, other: Any, apart_too: Any,
    high: Any, scales: Any, out: Any, at: Any, shifter: Any,
) -> Any:  # fmt: skip
    """Sum (m - s q)**2 over `count` magnitudes for 32 scales; return the least.

    Scales begin above `one` and above `other`, 16 each so far apart, up to `high`; they and their
    sums are written from `at` on. q is m / s, at most `most` [count], rounded to equal steps. All
    arrays are contiguous, all numbers float32.
    """
    kinds = _kinds(m, most, scales, out)
    return types.float32(*kinds, types.float32), _sums(_uniform, 1)


def _kinds(m: Any, most: Any, scales: Any, out: Any) -> Any:
    return m, most, types.int64, *[types.float32] * 5, scales, out, types.int64


@emitted
def errors_octaves(
    typing: Any, m: Any, most: Any, count: Any, one: Any, apart: Any, other: Any, apart_too: Any,
    high: Any, scales: Any, out: Any, at: Any, half: Any, kept: Any,
) -> Any:  # fmt: skip
    """Do `errors_uniform` for steps that grow by octaves; `kept`: int32 of the bits of a level."""
    kinds = _kinds(m, most, scales, out)
    return types.float32(*kinds, types.int32, types.int32), _sums(_octaves, 2)


@emitted
def errors_grid(
    typing: Any, m: Any, most: Any, count: Any, one: Any, apart: Any, other: Any, apart_too: Any,
    high: Any, scales: Any, out: Any, at: Any, half: Any, kept: Any, shifter: Any, bound: Any,
) -> Any:  # fmt: skip
    """Do `errors_uniform` for equal steps up to a bound, which grow by octaves beyond it."""
    kinds = *_kinds(m, most, scales, out), types.int32, types.int32
    return types.float32(*kinds, types.float32, types.float32), _sums(_grid, 4)


@emitted
def changed(typing: Any, one: Any, other: Any, at: Any) -> Any:
    """Return which of 16 float64 from an index on differ in two arrays, as bits."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        bits = ir.Constant(I64, 0)
        for half in range(2):
            first = b.add(args[2], ir.Constant(I64, 8 * half))
            x, y = (
                b.load(
                    b.bitcast(
                        pointer_at(context, b, sig.args[k], args[k], first), _VD.as_pointer()
                    ),
                    align=8,
                )
                for k in (0, 1)
            )
            found = b.zext(b.bitcast(b.fcmp_unordered("!=", x, y), ir.IntType(8)), I64)
            bits = b.or_(bits, b.shl(found, ir.Constant(I64, 8 * half)))
        return bits

    return types.uint64(one, other, types.int64), codegen


def _to_grid(b: Any, args: Any) -> Any:
    """Return `block_search.on_grid` of eight: the same operations, so the same numbers."""
    shifter, bound, splitter = (broadcast(b, value, _VD) for value in args)

    def rounded(m: Any, by: Any, most: Any) -> Any:
        v = _least(b, b.fmul(m, by), most)
        wide = b.fmul(v, splitter)
        even, octave = b.fsub(b.fadd(v, shifter), shifter), b.fsub(wide, b.fsub(wide, v))
        return b.select(b.fcmp_ordered("<", v, bound), even, octave)

    return rounded


def _by_eight(finish: Any) -> Any:
    """Return the emitter of a pass over m, cap and out; `finish` is given m, q and the scale."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        m, cap, out = (vectors_of(context, b, sig.args[k], args[k], _VD) for k in (0, 1, 2))
        by, scale = (broadcast(b, args[k], _VD) for k in (4, 5))
        kind = ir.FunctionType(_VD, [_VD])
        size = b.module.declare_intrinsic("llvm.fabs.v8f64", (), kind)
        rounded = _to_grid(b, args[6:9])

        def step(i: Any, carried: list[Any]) -> list[Any]:
            x, most = (b.load(b.gep(pointer, [i]), align=8) for pointer in (m, cap))
            q = rounded(x, by, b.call(size, [most]))
            b.store(finish(b, x, q, scale), b.gep(out, [i]), align=8)
            return carried

        loop(b, args[3], [], step)
        return context.get_dummy_value()

    return codegen


def _square(b: Any, x: Any, q: Any, scale: Any) -> Any:
    rest = b.fsub(x, b.fmul(scale, q))
    return b.fmul(rest, rest)


@emitted
def levels_of_row(
    typing: Any, m: Any, cap: Any, out: Any, count: Any, by: Any, scale: Any, shifter: Any,
    bound: Any, splitter: Any,
) -> Any:  # fmt: skip
    """Fill the levels of 8 `count` magnitudes times `by`, at most the size of `cap`; float64."""
    kinds = m, cap, out, types.int64, *[types.float64] * 5
    return types.void(*kinds), _by_eight(lambda b, x, q, scale: q)


@emitted
def squares_of_row(
    typing: Any, m: Any, cap: Any, out: Any, count: Any, by: Any, scale: Any, shifter: Any,
    bound: Any, splitter: Any,
) -> Any:  # fmt: skip
    """Fill (m - scale q)**2 of those levels q."""
    kinds = m, cap, out, types.int64, *[types.float64] * 5
    return types.void(*kinds), _by_eight(_square)


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

    pair: Any = types.UniTuple
    return pair(types.float64, 2)(m, q, types.int64), codegen
