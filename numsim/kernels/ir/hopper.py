"""The vector kernel of Hopper's and Ada's FP8 rule, with AVX-512 or AVX2.

A sum is a float32 in the binade whose last place is the last fraction bit that is kept: a fused
multiply-add that rounds down aligns a product, cuts it and adds it, all at once. Toward zero, as
the rule has it, differs by one last place for each negative product that is not whole; those are
counted, from the places of the lowest bits that are set, 64 in an instruction, and added last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.np import arrayobj

from numsim.kernels.ir.blocks import Scales
from numsim.kernels.ir.control import toward_zero
from numsim.kernels.ir.fp8 import (
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
    TURN,
    Lanes,
    bottom,
    declared,
    halves,
    lanes,
    top,
)
from numsim.kernels.ir.fp8_codes import ByFields, ByTables, Room, apart, together
from numsim.kernels.ir.halves import Cuts, Halves
from numsim.kernels.ir.peaks import Peaks
from numsim.kernels.ir.simd import (
    FRACTION,
    I32,
    I64,
    Tile,
    broadcast,
    emitted,
    fetch,
    loop,
    pointer_at,
    splat,
)

_TOWARD_ZERO = 11  # of an instruction, without exceptions; for the sums, all positive, it is down


class _Rounding(NamedTuple):
    """How sums are cut toward zero, a * b + c and x + y; how a byte of words is added to others."""

    fma: Callable[[Any, Any, Any], Any]
    plus: Callable[[Any, Any], Any]
    add_byte: Callable[[Any, Any, int], Any]


def _of_instructions(b: Any, v: Lanes) -> _Rounding:
    fma = declared(b, "llvm.x86.avx512.vfmadd.ps.512", *(v.floats,) * 4, I32)
    plus = declared(b, "llvm.x86.avx512.add.ps.512", *(v.floats,) * 3, I32)
    dot4 = declared(b, "llvm.x86.avx512.vpdpbusd.512", *(v.words,) * 4)
    mode = ir.Constant(I32, _TOWARD_ZERO)

    def add_byte(words: Any, counts: Any, i: int) -> Any:
        return b.call(dot4, [words, counts, splat(v.words, 1 << 8 * i)])

    return _Rounding(
        lambda x, y, z: b.call(fma, [x, y, z, mode]),
        lambda x, y: b.call(plus, [x, y, mode]),
        add_byte,
    )


def _of_the_thread(b: Any, v: Lanes) -> _Rounding:
    fma = declared(b, f"llvm.fma.v{v.words.count}f32", *(v.floats,) * 4)

    def add_byte(words: Any, counts: Any, i: int) -> Any:
        byte = b.and_(b.lshr(counts, splat(v.words, 8 * i)), splat(v.words, 255))
        return b.add(words, byte)

    return _Rounding(lambda x, y, z: b.call(fma, [x, y, z]), b.fadd, add_byte)


@emitted
def float_tile(
    typing: Any, words: Any, rows: Any, coded: Any, tables: Any, fields: Any, below: Any,
    bases: Any, alone: Any, scales: Any, tiles: Any, runs: Any, a: Any, a_at: Any, b: Any,
    b_at: Any, out: Any, out_at: Any, stride: Any, steps: Any, a_step: Any,
) -> Any:  # fmt: skip
    """Chain groups of 16 `runs` products onto out[r, :]: align, cut to 13 fraction bits, add.

    `tiles` of `rows` rows each follow one another, `a_step` words apart in a. One call for all of
    them keeps what is constant in the first cache. `words`: of a vector, 16 for AVX-512 or 8 for
    AVX2. `coded`: b holds codes, not their planes, and `fields`, with AVX-512 `tables` too, say
    what they are (`ir.fp8_codes`), and `below` and `bases` what `ir.peaks` needs to know of rows,
    for each word of a plane of a, and for each run and row; this pays for few rows. 2 instead of 1,
    for one row: `alone` are its values for `ir.halves`, or has nothing in it. `scales`, with codes
    (AVX2: of one row), of blocks that are chains of their own: `ir.blocks.Scales`; otherwise 0.
    """
    if not all(isinstance(x, types.IntegerLiteral) for x in (words, rows, coded)):
        return None
    width, count, by_code = words.literal_value, rows.literal_value, bool(coded.literal_value)
    vectors, pieces, unroll = 4, COLUMNS // 4 // width, 4

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        v = lanes(width)
        tile = Tile(context, b, sig.args[:-1], args[:-1], vectors, v.floats)
        tile.apart = COLUMNS // 4
        (tiles, runs), a_step, a, out, panel = args[9:11], args[-1], tile.a, tile.out, tile.panel
        place: dict[str, Any] = {}  # the first run and row of the tile
        first_run = b.udiv(args[12], ir.Constant(I64, A_WORDS))
        fma, plus, add_byte = (_of_instructions if width == 16 else _of_the_thread)(b, v)
        less = declared(b, f"llvm.usub.sat.v{4 * width}i8", *(v.bytes,) * 3)
        compare = b.icmp_signed if TURN[width] else b.icmp_unsigned
        one = splat(v.bytes, 1)
        if width == 16:
            # a constant 1 would make LLVM add the mask as a vector, an instruction more
            kind = ir.FunctionType(v.bytes, [v.bytes])
            one = b.call(ir.InlineAsm(kind, "", "=v,0", side_effect=False), [one])

        def over_runs(
            first: Any, carried: list[Any], body: Callable[[Any, Any, list[Any]], list[Any]]
        ) -> Any:
            def run(p: Any, carried: list[Any]) -> Any:
                at = b.add(first, p)

                def some(i: Any, carried: list[Any]) -> list[Any]:
                    for u in range(unroll):
                        carried = body(at, tile.index(i, unroll, u), carried)
                    return carried

                return loop(b, ir.Constant(I64, RUN // unroll), carried, some)

            return loop(b, runs, carried, run)

        def left(run: Any, k: Any, plane: int, vector: Any) -> Any:
            at = b.add(tile.index(run, A_WORDS, plane * RUN), k)
            return b.bitcast(broadcast(b, b.load(b.gep(tile.a, [at])), v.words), vector)

        words = COLUMNS // 4 if by_code else B_WORDS
        read: ByTables | ByFields | None = None
        if by_code:
            wide = width == 16
            read = ByTables(context, b, sig.args[3], args[3]) if wide else ByFields(b, args[4])
        room = Room(b, read) if isinstance(read, ByFields) else None
        tops = Peaks(b, v, args[4]) if by_code else None
        scaled = isinstance(sig.args[8], types.BaseTuple)
        of = Scales(context, b, sig.args[8], args[8]) if scaled else None

        def told(which: int, run: Any, each: int, plus: list[Any]) -> list[Any]:
            """Return words of `below`, `bases` or `alone`: so many of each run and row."""
            at = b.mul(b.add(place["run"], run), ir.Constant(I64, ROWS * each))
            first = pointer_at(context, b, sig.args[which], args[which], at)
            return [b.load(b.gep(first, [x])) for x in plus]

        def right(run: Any, k: Any, word: int, vector: Any, ask: bool = False) -> Any:
            if ask:
                later = tile.index(b.add(tile.index(run, RUN, AHEAD), k), words, 0)
                fetch(b, b.gep(tile.panel, [later]))
            return tile.columns(b.add(tile.index(run, RUN, 0), k), words, word, vector)

        def right_exponents(run: Any, k: Any) -> Any:
            first = right(run, k, 0, v.bytes)
            return read.exponents(first) if read else first

        def in_group(first: Any, run: Any, k: Any) -> Any:
            return b.add(tile.index(b.sub(run, first), RUN, 0), k)

        def right_terms(first: Any, run: Any, k: Any) -> tuple[Any, Callable[[int], Any]]:
            if read:
                code = right(run, k, 0, v.bytes, ask=room is None)
                if isinstance(read, ByTables):
                    values = read.singles_apart(code)
                else:
                    assert room is not None
                    values = room.singles_apart(in_group(first, run, k))
                return read.lowest(code), lambda i: b.bitcast(values[i], v.floats)
            return right(run, k, 16, v.bytes), lambda i: right(run, k, 32 + 16 * i, v.floats)

        cut: Halves | Cuts | None = None
        if coded.literal_value == 2:

            def row(run: Any, k: Any) -> Any:
                return told(7, run, RUN, [k])[0]

            def codes(run: Any, k: Any) -> Any:
                return right(run, k, 0, v.bytes, ask=True)

            if room:
                cut = Cuts(b, row, room)
            else:
                make: Any = arrayobj.make_array
                size = make(sig.args[7])(context, b, args[7]).nitems
                cut = Halves(b, row, codes, b.icmp_signed("!=", size, ir.Constant(I64, 0)))

        def of_each_row(change: Callable[..., list[Any]], values: list[Any]) -> list[Any]:
            rows = [values[vectors * r : vectors * (r + 1)] for r in range(count)]
            return [value for row in rows for value in change(b, row)]

        def group(g: Any, acc: list[Any]) -> list[Any]:
            first = b.mul(g, runs)

            def peak(run: Any, k: Any, peaks: list[Any]) -> list[Any]:
                eb = right_exponents(run, k)
                return [top(b, peaks[r], b.add(left(run, k, r, v.bytes), eb)) for r in range(count)]

            floors = []
            for r in range(count):
                own = exponents_of(b, v, acc[vectors * r : vectors * (r + 1)])
                own = b.add(own, splat(v.bytes, 23 - FRACTION))
                floors.append(top(b, own, splat(v.bytes, FLOOR)))
            if tops:

                def quick(run: Any, k: Any, peaks: list[Any]) -> list[Any]:
                    code = right(run, k, 0, v.bytes, ask=room is not None)
                    if room:
                        room.keep(in_group(first, run, k), code)
                    rows = [b.add(k, ir.Constant(I64, r * RUN)) for r in range(count)]
                    below = [tops.bytes_of(word) for word in told(5, run, RUN, rows)]
                    return tops.body(code, below, peaks)

                rows = [ir.Constant(I64, r) for r in range(count)]
                bases = [tops.bytes_of(word) for word in told(6, first, 1, rows)]
                peaks = over_runs(first, [splat(v.bytes, 0)] * count, quick)
                peaks = tops.fields(peaks, bases, floors)
                doubt, before = tops.doubtful(peaks, bases), b.block
                with b.if_then(doubt):
                    exact, inside = over_runs(first, floors, peak), b.block
                chosen = [b.phi(v.bytes) for _ in range(count)]
                for phi, x, y in zip(chosen, peaks, exact, strict=True):
                    phi.add_incoming(x, before)
                    phi.add_incoming(y, inside)
                peaks = chosen
            else:
                peaks = over_runs(first, floors, peak)
            if isinstance(cut, Cuts):
                return cut.group(first, runs, peaks[0], acc)
            if not cut:
                return added(first, peaks, acc)
            with b.if_else(cut.fits(peaks[0])) as (quickly, else_):
                with quickly:
                    short, by_halves = cut.group(first, runs, peaks[0], acc), b.block
                with else_:
                    usual, by_singles = added(first, peaks, acc), b.block
            results = []
            for x, y in zip(short, usual, strict=True):
                result = b.phi(v.floats)
                result.add_incoming(x, by_halves)
                result.add_incoming(y, by_singles)
                results.append(result)
            return results

        def added(first: Any, peaks: list[Any], acc: list[Any]) -> list[Any]:
            """Return what accumulators become by a group, whose binades have these fields."""
            binades, starts, limits = [], [], []
            for r, field in enumerate(peaks):
                own = acc[vectors * r : vectors * (r + 1)]
                limit = b.call(less, [field, splat(v.bytes, FIELD + FRACTION - 2 * LOWEST)])
                limit = bottom(b, limit, splat(v.bytes, PLACES))
                limits.append(b.xor(limit, splat(v.bytes, TURN[width])))
                for i, value in enumerate(own):
                    binade = _binade(b, v, field, i)
                    sign = b.and_(b.bitcast(value, v.words), splat(v.words, -(1 << 31)))
                    same = b.bitcast(b.or_(b.bitcast(binade, v.words), sign), v.floats)
                    cut = plus(same, value)
                    starts.append(b.fadd(b.fsub(binade, same), cut))  # exact
                    binades.append(binade)

            def add(run: Any, k: Any, carried: list[Any]) -> list[Any]:
                sums, counts = carried[: len(acc)], carried[len(acc) :]
                lb, b_value = right_terms(first, run, k)
                for r in range(count):
                    lowest = b.add(left(run, k, ROWS + r, v.bytes), lb)
                    short = compare("<", lowest, limits[r])
                    counts[r] = b.select(short, b.add(counts[r], one), counts[r])
                a_values = [left(run, k, 2 * ROWS + r, v.floats) for r in range(count)]
                if isinstance(read, ByFields):
                    a_values = [b.fmul(x, read.scale) for x in a_values]
                for i in range(vectors):  # this order keeps a vector of b for the shortest time
                    column = b_value(i)
                    for r in range(count):
                        s = vectors * r + i
                        sums[s] = fma(a_values[r], column, sums[s])
                return [*sums, *counts]

            if read:
                starts = of_each_row(apart, starts)
            ends = list(over_runs(first, [*starts, *[splat(v.bytes, 0)] * count], add))
            if read:
                ends[: len(acc)] = of_each_row(together, ends[: len(acc)])
            results = []
            for s, binade in enumerate(binades):
                counts = b.bitcast(ends[len(acc) + s // vectors], v.words)
                bits = add_byte(b.bitcast(ends[s], v.words), counts, s % vectors)
                value = b.bitcast(b.fsub(b.bitcast(bits, v.floats), binade), v.words)  # exact
                kept = b.and_(value, splat(v.words, -(1 << (23 - FRACTION))))
                results.append(b.bitcast(kept, v.floats))
            return results

        def block(i: Any, totals: list[Any]) -> list[Any]:
            assert of is not None
            first, some = of.block(i, tile.steps)

            def next_group(g: Any, acc: list[Any]) -> list[Any]:
                return group(b.add(first, g), acc)

            acc = loop(b, some, [ir.Constant(v.floats, None)] * len(totals), next_group)
            places = [(r, c) for r in range(count) for c in range(vectors)]
            rows = [b.add(place["row"], ir.Constant(I64, r)) for r in range(count)]
            return [
                of.added(total, x, i, rows[r], COLUMNS // 4 * c + place["piece"])
                for total, x, (r, c) in zip(totals, acc, places, strict=True)
            ]

        def whole(t: Any, carried: list[Any]) -> list[Any]:
            place["row"] = tile.index(t, count, 0)
            tile.a = b.gep(a, [b.mul(t, a_step)])
            place["run"] = b.add(first_run, b.udiv(b.mul(t, a_step), ir.Constant(I64, A_WORDS)))
            first = b.gep(out, [b.mul(tile.index(t, count, 0), tile.stride)])
            for piece in range(pieces):  # the vectors' columns are those of AVX-512, cut in two
                at = [ir.Constant(I64, width * piece)]
                tile.out, tile.panel = b.gep(first, at), b.gep(panel, at)
                place["piece"] = width * piece
                if of:
                    tile.store(loop(b, of.blocks(tile.steps), tile.load(count), block), count)
                else:
                    tile.store(loop(b, tile.steps, tile.load(count), group), count)
            return carried

        with nullcontext() if width == 16 or isinstance(cut, Cuts) else toward_zero(b):
            loop(b, tiles, [], whole)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(
        words, rows, coded, tables, fields, below, bases, alone, scales, i64, i64, a, i64, b, i64,
        out, i64, i64, i64, i64,
    ), codegen  # fmt: skip


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
