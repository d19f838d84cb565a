"""Blocks of float32 numbers along rows, 16 numbers a vector: largest magnitudes, scaling, codes.

A block is `vectors` vectors, a power of two. Proof: ``tests/quant/test_block_codes.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.encode import bytes_of
from numsim.kernels.ir.fp8 import I8, V8, bottom, top
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

_MAGNITUDE = 0x7FFFFFFF


def _index(b: Any, i: Any, times: int, plus: int) -> Any:
    return b.add(b.mul(i, ir.Constant(I64, times)), ir.Constant(I64, plus))


def _scale_at(b: Any, scales: Any, at: Any, shift: Any) -> Any:
    """Return the scale of the block that vector `at` belongs to, in all lanes."""
    return broadcast(b, b.load(b.gep(scales, [b.lshr(at, shift)])), VF)


def joined_in_each(b: Any, vectors: list[Any], join: Callable[[Any, Any], Any]) -> Any:
    """Return a number of each of 16 vectors: its lanes, neighbours joined until one is left."""
    while len(vectors) > 1:  # half as many lanes of each, which stay together
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [
            join(*(
                b.shuffle_vector(p, q, ir.Constant(V32, list(range(first, 32, 2))))
                for first in (0, 1)
            ))
            for p, q in pairs
        ]  # fmt: skip
    return vectors[0]


@emitted
def same_or(typing: Any, x: Any, room: Any) -> Any:
    """Return x where it is made of words of 32 bits, else `room`, which is."""
    chosen = 0 if x.dtype == types.uint32 else 1

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        context.nrt.incref(b, sig.return_type, args[chosen])
        return args[chosen]

    return (x, room)[chosen](x, room), codegen


@emitted
def block_tops(typing: Any, x: Any, vectors: Any, runs: Any, out: Any) -> Any:
    """Fill out with the bits of the largest magnitude of each block, 16 blocks a run."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], V32)
        target = vectors_of(context, b, sig.args[3], args[3], V32)
        vectors = args[1]

        def larger(p: Any, q: Any) -> Any:
            return b.select(b.icmp_unsigned(">", p, q), p, q)

        def run(i: Any, _: list[Any]) -> list[Any]:
            first = b.mul(b.mul(i, ir.Constant(I64, 16)), vectors)

            def step(v: Any, most: list[Any]) -> list[Any]:
                new = []
                for j, one in enumerate(most):
                    at = b.add(b.add(first, v), b.mul(vectors, ir.Constant(I64, j)))
                    word = b.load(b.gep(source, [at]), align=4)
                    new.append(larger(b.and_(word, splat(V32, _MAGNITUDE)), one))
                return new

            most = loop(b, vectors, [splat(V32, 0)] * 16, step)
            b.store(joined_in_each(b, most, larger), b.gep(target, [i]), align=4)
            return []

        loop(b, args[2], [], run)
        return context.get_dummy_value()

    return types.void(x, types.int64, types.int64, out), codegen


@emitted
def scaled(typing: Any, x: Any, by: Any, shift: Any, count: Any, out: Any) -> Any:
    """Fill out with `count` vectors of float32 words x times the number of each block.

    A block is ``2**shift`` vectors.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], VF)
        scales = pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0))
        target = vectors_of(context, b, sig.args[4], args[4], VF)

        def vector(i: Any, _: list[Any]) -> list[Any]:
            x = b.load(b.gep(source, [i]), align=4)
            b.store(b.fmul(x, _scale_at(b, scales, i, args[2])), b.gep(target, [i]), align=4)
            return []

        loop(b, args[3], [], vector)
        return context.get_dummy_value()

    return types.void(x, by, types.int64, types.int64, out), codegen


@emitted
def scaled_codes(
    typing: Any, x: Any, by: Any, shift: Any, runs: Any, out: Any, fields: Any
) -> Any:  # fmt: skip
    """Encode `runs` times 64 finite float32 words x times the number of each block.

    The arithmetic is that of `convert.float32.float_rne`; signs come in as bytes. `fields` is
    `convert.float32.Fast` of a format of at most eight bits with minus zero.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], V32)
        scales = pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0))
        target = vectors_of(context, b, sig.args[4], args[4], V8)
        cut, min_field, stored, clamp, sign = (
            b.extract_value(args[5], i) for i in (0, 1, 2, 5, 10)
        )
        base = b.trunc(b.shl(min_field, stored), I8)  # the rest of it leaves the low byte alone
        low, sign = (broadcast(b, value, V8) for value in (base, b.trunc(sign, I8)))
        twenty_three = ir.Constant(I32, 23)
        clamp, least, magic, cut = (
            broadcast(b, value, V32)
            for value in (clamp, b.shl(min_field, twenty_three), b.shl(cut, twenty_three), cut)
        )
        infinity, magnitude = splat(V32, 0x7F800000), splat(V32, _MAGNITUDE)

        def run(i: Any, _: list[Any]) -> list[Any]:
            words, sums = [], []
            for j in range(4):
                at = _index(b, i, 4, j)
                word = b.load(b.gep(source, [at]), align=4)
                value = b.fmul(b.bitcast(word, VF), _scale_at(b, scales, at, args[2]))
                c = bottom(b, b.and_(b.bitcast(value, V32), magnitude), clamp)
                e = top(b, b.and_(c, infinity), least)
                lifted = b.bitcast(b.add(e, magic), VF)
                s = b.bitcast(b.fadd(b.bitcast(c, VF), lifted), V32)
                sums.append(b.add(b.sub(s, e), b.lshr(e, cut)))
                words.append(word)
            signs = b.ashr(bytes_of(b, words, 3), splat(V8, 7))
            code = b.or_(b.sub(bytes_of(b, sums, 0), low), b.and_(signs, sign))
            b.store(code, b.gep(target, [i]), align=1)
            return []

        loop(b, args[3], [], run)
        return context.get_dummy_value()

    return types.void(x, by, types.int64, types.int64, out, fields), codegen


@emitted
def e2m1_codes(typing: Any, x: Any, least: Any, apart: Any, runs: Any, out: Any) -> Any:
    """Encode `runs` times four blocks of 16 float32 words to E2M1.

    Step n of block i begins at ``least[n * apart + i]``, bits of a magnitude: three comparisons
    find how many of the seven steps a number has passed.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = vectors_of(context, b, sig.args[0], args[0], V32)
        steps = pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0))
        target = vectors_of(context, b, sig.args[4], args[4], V8)
        places = [4 * (n % 16) + n // 16 for n in range(64)]  # byte j of a word is of block j
        order = ir.Constant(ir.VectorType(I32, 64), places)

        def run(i: Any, _: list[Any]) -> list[Any]:
            total = splat(V32, 0)
            for j in range(4):
                at = _index(b, i, 4, j)
                each = [b.add(at, b.mul(args[2], ir.Constant(I64, n))) for n in range(7)]
                s = [broadcast(b, b.load(b.gep(steps, [place])), V32) for place in each]
                word = b.load(b.gep(source, [at]), align=4)
                a = b.and_(word, splat(V32, _MAGNITUDE))
                four = b.icmp_unsigned(">=", a, s[3])
                two = b.icmp_unsigned(">=", a, b.select(four, s[5], s[1]))
                above, below = b.select(four, s[6], s[2]), b.select(four, s[4], s[0])
                one = b.icmp_unsigned(">=", a, b.select(two, above, below))
                sign = b.and_(word, splat(V32, -(1 << 31)))
                total = b.or_(total, b.lshr(sign, splat(V32, 28 - 8 * j)))
                for bit, passed in ((4, four), (2, two), (1, one)):
                    total = b.select(passed, b.or_(total, splat(V32, bit << 8 * j)), total)
            codes = b.bitcast(total, V8)
            b.store(b.shuffle_vector(codes, codes, order), b.gep(target, [i]), align=1)
            return []

        loop(b, args[3], [], run)
        return context.get_dummy_value()

    return types.void(x, least, types.int64, types.int64, out), codegen
