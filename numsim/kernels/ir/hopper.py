"""The vector kernel of Hopper's and Ada's FP8 rule, with AVX-512 or AVX2.

A sum is a float32 in the binade whose last place is the last fraction bit that is kept: a fused
multiply-add that rounds down aligns a product, cuts it and adds it, all at once. Toward zero, as
the rule has it, differs by one last place for each negative product that is not whole. Values of
rows are larger in size by their last place: then one that is whole becomes one less, too, and every
negative product is corrected by one, whatever its bits. It has 8 bits, at most 15 before the point:
none is taken to the next whole number. Zeros are tiny numbers with a sign. So signs are counted, of
eight products at a time, and added last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from numsim.kernels.ir.control import toward_zero
from numsim.kernels.ir.fp8 import (
    A_WORDS,
    COLUMNS,
    EIGHT,
    FLOOR,
    K_WORDS,
    ROWS,
    RUN,
    RUN_WORDS,
    Lanes,
    declared,
    halves,
    lanes,
    top,
)
from numsim.kernels.ir.simd import (
    FRACTION,
    I32,
    I64,
    Tile,
    broadcast,
    emitted,
    loop,
    splat,
)

_TOWARD_ZERO = 11  # of an instruction, without exceptions; for the sums, all positive, it is down


class Rounding(NamedTuple):
    """How sums are cut toward zero, a * b + c and x + y; how a byte of words is added to others."""

    fma: Callable[[Any, Any, Any], Any]
    plus: Callable[[Any, Any], Any]
    add_byte: Callable[[Any, Any, int], Any]


def _of_instructions(b: Any, v: Lanes) -> Rounding:
    fma = declared(b, "llvm.x86.avx512.vfmadd.ps.512", *(v.floats,) * 4, I32)
    plus = declared(b, "llvm.x86.avx512.add.ps.512", *(v.floats,) * 3, I32)
    dot4 = declared(b, "llvm.x86.avx512.vpdpbusd.512", *(v.words,) * 4)
    mode = ir.Constant(I32, _TOWARD_ZERO)

    def add_byte(words: Any, counts: Any, i: int) -> Any:
        return b.call(dot4, [words, counts, splat(v.words, 1 << 8 * i)])

    return Rounding(
        lambda x, y, z: b.call(fma, [x, y, z, mode]),
        lambda x, y: b.call(plus, [x, y, mode]),
        add_byte,
    )


def _of_the_thread(b: Any, v: Lanes) -> Rounding:
    fma = declared(b, f"llvm.fma.v{v.words.count}f32", *(v.floats,) * 4)

    def add_byte(words: Any, counts: Any, i: int) -> Any:
        byte = b.and_(b.lshr(counts, splat(v.words, 8 * i)), splat(v.words, 255))
        return b.add(words, byte)

    return Rounding(lambda x, y, z: b.call(fma, [x, y, z]), b.fadd, add_byte)


def rounding(b: Any, v: Lanes) -> Rounding:
    """Return how sums are cut: with AVX-512 by each instruction, otherwise by the thread."""
    return (_of_instructions if v.words.count == 16 else _of_the_thread)(b, v)


@emitted
def float_tile(
    typing: Any, words: Any, rows: Any, tiles: Any, runs: Any, a: Any, a_at: Any, b: Any, b_at: Any,
    out: Any, out_at: Any, stride: Any, steps: Any, a_step: Any,
) -> Any:  # fmt: skip
    """Chain groups of 16 `runs` products onto out[r, :]: align, cut to 13 fraction bits, add.

    `tiles` of `rows` rows each follow one another, `a_step` words apart in a. One call for all of
    them keeps what is constant in the first cache. `words`: of a vector, 16 for AVX-512 or 8 for
    AVX2.
    """
    if not (isinstance(words, types.IntegerLiteral) and isinstance(rows, types.IntegerLiteral)):
        return None
    width, count = words.literal_value, rows.literal_value
    vectors, pieces, unroll = 4, COLUMNS // 4 // width, 4

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        v = lanes(width)
        tile = Tile(context, b, sig.args[:-1], args[:-1], vectors, v.floats)
        tile.apart = COLUMNS // 4
        (tiles, runs), a_step, a, out, panel = args[2:4], args[-1], tile.a, tile.out, tile.panel
        cut = rounding(b, v)
        ones = declared(b, f"llvm.ctpop.v{4 * width}i8", v.bytes, v.bytes)

        def over_runs(
            first: Any, carried: list[Any], body: Callable[[Any, Any, list[Any]], list[Any]],
            before: Callable[[Any, list[Any]], list[Any]] = lambda _, carried: carried,
        ) -> Any:  # fmt: skip
            """Emit `body` (run, k of it, carried) for all k of a group, `before` for its runs."""

            def run(p: Any, carried: list[Any]) -> Any:
                at = b.add(first, p)
                carried = before(at, carried)

                def some(i: Any, carried: list[Any]) -> list[Any]:
                    for u in range(unroll):
                        carried = body(at, tile.index(i, unroll, u), carried)
                    return carried

                return loop(b, ir.Constant(I64, RUN // unroll), carried, some)

            return loop(b, runs, carried, run)

        def left(run: Any, k: Any, plane: int, vector: Any) -> Any:
            at = b.add(tile.index(run, A_WORDS, plane * RUN), k)
            return b.bitcast(broadcast(b, b.load(b.gep(tile.a, [at])), v.words), vector)

        def right(run: Any, k: Any, word: int, vector: Any) -> Any:
            at = b.add(tile.index(run, RUN_WORDS, word), b.mul(k, ir.Constant(I64, K_WORDS)))
            return tile.columns(at, 1, 0, vector)

        def group(g: Any, acc: list[Any]) -> list[Any]:
            first = b.mul(g, runs)

            def peak(run: Any, k: Any, peaks: list[Any]) -> list[Any]:
                eb = right(run, k, 0, v.bytes)
                return [top(b, peaks[r], b.add(left(run, k, r, v.bytes), eb)) for r in range(count)]

            floors = []
            for r in range(count):
                own = exponents_of(b, v, acc[vectors * r : vectors * (r + 1)])
                own = b.add(own, splat(v.bytes, 23 - FRACTION))
                floors.append(top(b, own, splat(v.bytes, FLOOR)))
            peaks = over_runs(first, floors, peak)
            binades, starts = chained_starts(b, v, peaks, acc, cut)

            def negative(run: Any, carried: list[Any]) -> list[Any]:
                """Count the products of a run that are negative."""
                sums, counts = carried[: len(acc)], carried[len(acc) :]
                for j in range(RUN // EIGHT):
                    k = ir.Constant(I64, j)
                    own = right(run, ir.Constant(I64, 0), RUN * K_WORDS + 16 * j, v.bytes)
                    for r in range(count):
                        signs = b.xor(left(run, k, ROWS + r, v.bytes), own)
                        counts[r] = b.add(counts[r], b.call(ones, [signs]))
                return [*sums, *counts]

            def add(run: Any, k: Any, carried: list[Any]) -> list[Any]:
                sums, counts = carried[: len(acc)], carried[len(acc) :]
                a_values = [left(run, k, 2 * ROWS + r, v.floats) for r in range(count)]
                for i in range(vectors):  # this order keeps a vector of b for the shortest time
                    column = right(run, k, 16 + 16 * i, v.floats)
                    for r in range(count):
                        s = vectors * r + i
                        sums[s] = cut.fma(a_values[r], column, sums[s])
                return [*sums, *counts]

            ends = list(over_runs(first, [*starts, *[splat(v.bytes, 0)] * count], add, negative))
            return chained_ends(b, v, ends[: len(acc)], binades, ends[len(acc) :], cut)

        def whole(t: Any, carried: list[Any]) -> list[Any]:
            tile.a = b.gep(a, [b.mul(t, a_step)])
            first = b.gep(out, [b.mul(tile.index(t, count, 0), tile.stride)])
            for piece in range(pieces):  # the vectors' columns are those of AVX-512, cut in two
                at = [ir.Constant(I64, width * piece)]
                tile.out, tile.panel = b.gep(first, at), b.gep(panel, at)
                tile.store(loop(b, tile.steps, tile.load(count), group), count)
            return carried

        with nullcontext() if width == 16 else toward_zero(b):
            loop(b, tiles, [], whole)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(words, rows, i64, i64, a, i64, b, i64, out, i64, i64, i64, i64), codegen


def chained_starts(
    b: Any, v: Lanes, fields: list[Any], acc: list[Any], cut: Rounding
) -> tuple[list[Any], list[Any]]:
    """Return the middles of binades with these fields, one vector a row, and what sums begin from.

    That are accumulators, four vectors a row, cut and in their binades.
    """
    binades, starts, vectors = [], [], len(acc) // len(fields)
    for r, field in enumerate(fields):
        for i, value in enumerate(acc[vectors * r : vectors * (r + 1)]):
            binade = _binade(b, v, field, i)
            sign = b.and_(b.bitcast(value, v.words), splat(v.words, -(1 << 31)))
            same = b.bitcast(b.or_(b.bitcast(binade, v.words), sign), v.floats)
            kept = cut.plus(same, value)
            starts.append(b.fadd(b.fsub(binade, same), kept))  # exact
            binades.append(binade)
    return binades, starts


def chained_ends(
    b: Any, v: Lanes, sums: list[Any], binades: list[Any], counts: list[Any], cut: Rounding
) -> list[Any]:
    """Return accumulators of sums in their binades, each one larger for each that is counted."""
    results, vectors = [], len(sums) // len(counts)
    for s, (total, binade) in enumerate(zip(sums, binades, strict=True)):
        words = b.bitcast(counts[s // vectors], v.words)
        bits = cut.add_byte(b.bitcast(total, v.words), words, s % vectors)
        value = b.bitcast(b.fsub(b.bitcast(bits, v.floats), binade), v.words)  # exact
        kept = b.and_(value, splat(v.words, -(1 << (23 - FRACTION))))
        results.append(b.bitcast(kept, v.floats))
    return results


def exponents_of(b: Any, v: Lanes, values: list[Any]) -> Any:
    """Return the exponent fields of four vectors of float32, byte i of a word that of vector i."""
    bits = [b.bitcast(value, v.words) for value in values]
    pairs = [
        b.shl(
            halves(b, bits[i + 2], b.lshr(bits[i], splat(v.words, 16)), 0xFFFF0000),
            splat(v.words, 1),
        )
        for i in range(2)
    ]
    eight = splat(v.words, 8)
    return b.bitcast(halves(b, pairs[1], b.lshr(pairs[0], eight), 0xFF00FF00), v.bytes)


def _binade(b: Any, v: Lanes, fields: Any, i: int) -> Any:
    """Return the middle of the binades whose exponent fields are byte `i` of each word."""
    words, away = b.bitcast(fields, v.words), 23 - 8 * i
    placed = b.shl(words, splat(v.words, away)) if i < 3 else b.lshr(words, splat(v.words, -away))
    return b.bitcast(
        b.or_(b.and_(placed, splat(v.words, 0xFF << 23)), splat(v.words, 1 << 22)), v.floats
    )
