"""The vector kernel of Hopper's and Ada's FP8 rule with AVX-512.

A sum is a float32 in the binade whose last place is the last fraction bit that is kept: a fused
multiply-add that rounds down aligns a product, cuts it and adds it, all at once. Toward zero, as
the rule has it, differs by one last place for each negative product that is not whole; those are
counted, from the places of the lowest bits that are set, 64 in an instruction, and added last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.simd import _FRACTION as FRACTION
from numsim.kernels.simd import _I32 as I32
from numsim.kernels.simd import _I64 as I64
from numsim.kernels.simd import _V32 as V32
from numsim.kernels.simd import _VF as VF
from numsim.kernels.simd import _broadcast, _intrinsic, _loop, _splat, _Tile, fetch
from numsim.kernels.simd_fp8 import (
    A_WORDS,
    AHEAD,
    B_WORDS,
    COLUMNS,
    FIELD,
    FLOOR,
    LOWEST,
    PLACES,
    ROWS,
    RUN,
    V8,
    bottom,
    declared,
    halves,
    reader_by_tables,
    top,
)

_TOWARD_ZERO = 11  # of an instruction, without exceptions; for the sums, all positive, it is down


@_intrinsic
def float_tile(
    typing: Any, rows: Any, coded: Any, tables: Any, tiles: Any, runs: Any, a: Any, a_at: Any,
    b: Any, b_at: Any, out: Any, out_at: Any, stride: Any, steps: Any, a_step: Any,
) -> Any:  # fmt: skip
    """Chain groups of 16 `runs` products onto out[r, :]: align, cut to 13 fraction bits, add.

    `tiles` of `rows` rows each follow one another, `a_step` words apart in a. One call for all of
    them keeps what is constant in the first cache. `coded`: b holds codes, not their planes, and
    `tables` says what they are (`simd_fp8.looked_up_codes`); this pays for few rows.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(coded, types.IntegerLiteral)):
        return None
    count, by_code = rows.literal_value, bool(coded.literal_value)
    vectors, unroll = COLUMNS // 16, 4

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = _Tile(context, b, sig.args[:-1], args[:-1], vectors, VF)
        (tiles, runs), a_step, a, out = args[3:5], args[-1], tile.a, tile.out
        fma = declared(b, "llvm.x86.avx512.vfmadd.ps.512", VF, VF, VF, VF, I32)
        plus = declared(b, "llvm.x86.avx512.add.ps.512", VF, VF, VF, I32)
        dot4 = declared(b, "llvm.x86.avx512.vpdpbusd.512", V32, V32, V32, V32)
        less = declared(b, "llvm.usub.sat.v64i8", V8, V8, V8)
        toward_zero = ir.Constant(I32, _TOWARD_ZERO)
        # a constant 1 would make LLVM add the mask as a vector, which takes an instruction more
        hidden = ir.InlineAsm(ir.FunctionType(V8, [V8]), "", "=v,0", side_effect=False)
        one = b.call(hidden, [_splat(V8, 1)])

        def over_runs(
            first: Any, carried: list[Any], body: Callable[[Any, Any, list[Any]], list[Any]]
        ) -> Any:
            def run(p: Any, carried: list[Any]) -> Any:
                at = b.add(first, p)

                def some(i: Any, carried: list[Any]) -> list[Any]:
                    for u in range(unroll):
                        carried = body(at, tile.index(i, unroll, u), carried)
                    return carried

                return _loop(b, ir.Constant(I64, RUN // unroll), carried, some)

            return _loop(b, runs, carried, run)

        def left(run: Any, k: Any, plane: int, vector: Any) -> Any:
            at = b.add(tile.index(run, A_WORDS, plane * RUN), k)
            return b.bitcast(_broadcast(b, b.load(b.gep(tile.a, [at])), V32), vector)

        words = COLUMNS // 4 if by_code else B_WORDS
        exponents, rest = (
            reader_by_tables(context, b, sig.args[2], args[2]) if by_code else (None, None)
        )

        def right(run: Any, k: Any, word: int, vector: Any) -> Any:
            return tile.columns(b.add(tile.index(run, RUN, 0), k), words, word, vector)

        def right_exponents(run: Any, k: Any) -> Any:
            first = right(run, k, 0, V8)
            if not exponents:
                return first
            later = tile.index(b.add(tile.index(run, RUN, AHEAD), k), words, 0)
            fetch(b, b.gep(tile.panel, [later]))
            return exponents(first)

        def right_terms(run: Any, k: Any) -> tuple[Any, list[Any]]:
            if rest:
                lowest, values = rest(right(run, k, 0, V8))
                return lowest, [b.bitcast(value, VF) for value in values]
            values = [right(run, k, 32 + 16 * i, VF) for i in range(vectors)]
            return right(run, k, 16, V8), values

        def group(g: Any, acc: list[Any]) -> list[Any]:
            first = b.mul(g, runs)

            def peak(run: Any, k: Any, peaks: list[Any]) -> list[Any]:
                eb = right_exponents(run, k)
                return [top(b, peaks[r], b.add(left(run, k, r, V8), eb)) for r in range(count)]

            peaks = over_runs(first, [_splat(V8, FLOOR)] * count, peak)
            binades, starts, limits = [], [], []
            for r in range(count):
                own = acc[vectors * r : vectors * (r + 1)]
                field = top(b, peaks[r], b.add(_exponents(b, own), _splat(V8, 23 - FRACTION)))
                limit = b.call(less, [field, _splat(V8, FIELD + FRACTION - 2 * LOWEST)])
                limits.append(bottom(b, limit, _splat(V8, PLACES)))
                for i, value in enumerate(own):
                    binade = _binade(b, field, i)
                    sign = b.and_(b.bitcast(value, V32), _splat(V32, -(1 << 31)))
                    same = b.bitcast(b.or_(b.bitcast(binade, V32), sign), VF)
                    cut = b.call(plus, [same, value, toward_zero])
                    starts.append(b.fadd(b.fsub(binade, same), cut))  # exact
                    binades.append(binade)

            def add(run: Any, k: Any, carried: list[Any]) -> list[Any]:
                sums, counts = carried[: len(acc)], carried[len(acc) :]
                lb, b_values = right_terms(run, k)
                for r in range(count):
                    lowest = b.add(left(run, k, ROWS + r, V8), lb)
                    short = b.icmp_unsigned("<", lowest, limits[r])
                    counts[r] = b.select(short, b.add(counts[r], one), counts[r])
                    a_value = left(run, k, 2 * ROWS + r, VF)
                    for i in range(vectors):
                        s = vectors * r + i
                        sums[s] = b.call(fma, [a_value, b_values[i], sums[s], toward_zero])
                return [*sums, *counts]

            ends = over_runs(first, [*starts, *[_splat(V8, 0)] * count], add)
            results = []
            for s, binade in enumerate(binades):
                counts = b.bitcast(ends[len(acc) + s // vectors], V32)
                one_byte = _splat(V32, 1 << 8 * (s % vectors))
                bits = b.call(dot4, [b.bitcast(ends[s], V32), counts, one_byte])
                value = b.bitcast(b.fsub(b.bitcast(bits, VF), binade), V32)  # exact
                kept = b.and_(value, _splat(V32, -(1 << (23 - FRACTION))))
                results.append(b.bitcast(kept, VF))
            return results

        def whole(t: Any, carried: list[Any]) -> list[Any]:
            tile.a = b.gep(a, [b.mul(t, a_step)])
            tile.out = b.gep(out, [b.mul(tile.index(t, count, 0), tile.stride)])
            tile.store(_loop(b, tile.steps, tile.load(count), group), count)
            return carried

        _loop(b, tiles, [], whole)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(
        rows, coded, tables, i64, i64, a, i64, b, i64, out, i64, i64, i64, i64
    ), codegen


def _exponents(b: Any, values: list[Any]) -> Any:
    """Return the exponent fields of four vectors of float32, byte i of a word that of vector i."""
    bits = [b.bitcast(value, V32) for value in values]
    pairs = [
        b.shl(halves(b, bits[i + 2], b.lshr(bits[i], _splat(V32, 16)), 0xFFFF0000), _splat(V32, 1))
        for i in range(2)
    ]
    eight = _splat(V32, 8)
    return b.bitcast(halves(b, pairs[1], b.lshr(pairs[0], eight), 0xFF00FF00), V8)


def _binade(b: Any, fields: Any, i: int) -> Any:
    """Return the middle of the binades whose exponent fields are byte `i` of each word."""
    words, away = b.bitcast(fields, V32), 23 - 8 * i
    placed = b.shl(words, _splat(V32, away)) if i < 3 else b.lshr(words, _splat(V32, -away))
    return b.bitcast(b.or_(b.and_(placed, _splat(V32, 0xFF << 23)), _splat(V32, 1 << 22)), VF)
