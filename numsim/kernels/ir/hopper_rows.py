"""Hopper's and Ada's FP8 rule for few rows, whose columns' codes are read where they are.

With AVX-512 or AVX2. As in `ir.hopper` a sum is a float32 in the binade whose last place is the
last bit that is kept, and a multiply-add that rounds down cuts a product and adds it. Toward zero,
as the rule has it, differs by one for each negative product that is not whole. Values of rows are
here larger in size by their last place: then a negative product that is whole becomes one less,
too, and every negative product is corrected by one, whatever its bits. A product has 8 bits, and
at most 15 before the point: no other is taken to the next whole number. A zero of a row is a tiny
number instead. What is left to count are signs, where the largest exponent is looked for.

Proof: ``tests/targets/test_few_rows.py`` and ``tests/kernels/test_hopper_rows.py``.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from llvmlite import ir
from numba import types

from numsim.kernels.ir.blocks import Scales
from numsim.kernels.ir.control import toward_zero
from numsim.kernels.ir.fp8 import A_WORDS, COLUMNS, FLOOR, ROWS, RUN, WIDEST, lanes, top
from numsim.kernels.ir.fp8_codes import ByFields, Room, apart, together
from numsim.kernels.ir.hopper import chained_ends, chained_starts, exponents_of, rounding
from numsim.kernels.ir.peaks import Peaks
from numsim.kernels.ir.simd import (
    FRACTION,
    I64,
    PAGE,
    Tile,
    broadcast,
    emitted,
    fetch,
    loop,
    pointer_at,
    splat,
)

BELOW, SIGNS, VALUES, PLANES = 0, 1, 2, 3  # of a run of rows: words of each product
LONG = 1024  # products of a row, at most, in one call
_VECTORS, _UNROLL = 4, 4
_AHEAD = PAGE // COLUMNS  # k that are asked for before they are read
_HALF_PAGE = PAGE // 2  # bytes: what is read a whole page from what is written waits for it


def _to_memory(b: Any, pointer: Any) -> None:
    """Keep what is written to memory before from being read from registers after."""
    kind = ir.FunctionType(ir.VoidType(), [pointer.type])
    b.call(ir.InlineAsm(kind, "", "r,~{memory}", side_effect=True), [pointer])


@emitted
def hopper_rows(
    typing: Any, words: Any, rows: Any, fields: Any, left: Any, bases: Any, scales: Any, tiles: Any,
    runs: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any, stride: Any, steps: Any,
    a_step: Any,
) -> Any:  # fmt: skip
    """Chain groups of 16 `runs` products onto out[r, :]: align, cut to 13 fraction bits, add.

    `tiles` of `rows` rows each follow one another, `a_step` words apart in a: planes, of which the
    exponents are read where `ir.peaks` is in doubt. b holds codes, and `fields` say what they are;
    `left` and `bases` are what `gemm.hopper_left.few_left` returns. `words`: of a vector, 16 for
    AVX-512 or 8 for AVX2. `scales`, of blocks that are chains of their own: `ir.blocks.Scales`;
    otherwise 0. `steps` have at most `LONG` products.
    """
    if not all(isinstance(x, types.IntegerLiteral) for x in (words, rows)):
        return None
    width, count = words.literal_value, rows.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        v = lanes(width)
        tile = Tile(context, b, sig.args[:-1], args[:-1], _VECTORS, v.floats)
        tile.apart = COLUMNS // 4
        (tiles, runs), a_step, a, out, panel = args[6:8], args[-1], tile.a, tile.out, tile.panel
        place: dict[str, Any] = {}  # the first run and row of the tile
        first_run = b.udiv(args[9], ir.Constant(I64, A_WORDS))
        cut = rounding(b, v)
        read = ByFields(b, args[2], width)
        apart_by = WIDEST + _HALF_PAGE // (8 * width)
        room, tops = Room(b, read, apart_by + WIDEST), Peaks(b, v, args[2])
        of = None
        if isinstance(sig.args[5], types.BaseTuple):
            of = Scales(context, b, sig.args[5], args[5])
        one = splat(v.bytes, 1)
        if width == 16:
            # a constant 1 would make LLVM add the mask as a vector, an instruction more
            kind = ir.FunctionType(v.bytes, [v.bytes])
            one = b.call(ir.InlineAsm(kind, "", "=v,0", side_effect=False), [one])

        def over_runs(some: Any, carried: list[Any], body: Any) -> Any:
            """Emit `body` (run, k of it, carried) for all k of so many runs of a group."""

            def run(p: Any, carried: list[Any]) -> Any:
                def four(i: Any, carried: list[Any]) -> list[Any]:
                    for u in range(_UNROLL):
                        carried = body(p, tile.index(i, _UNROLL, u), carried)
                    return carried

                return loop(b, ir.Constant(I64, RUN // _UNROLL), carried, four)

            return loop(b, some, carried, run)

        def in_room(g: Any, p: Any, k: Any) -> Any:
            """Return where the values of a product are kept: those of two groups in turn."""
            turn = b.mul(b.and_(g, ir.Constant(I64, 1)), ir.Constant(I64, apart_by))
            return b.add(turn, b.add(tile.index(p, RUN, 0), k))

        def told(run: Any, plane: int, r: int, k: Any) -> Any:
            """Return a word of `left`, in all places."""
            words = PLANES * ROWS * RUN
            at = tile.index(b.add(place["run"], run), words, (plane * ROWS + r) * RUN)
            first = pointer_at(context, b, sig.args[3], args[3], b.add(at, k))
            return broadcast(b, b.load(first), v.words)

        def exponent(run: Any, k: Any, r: int) -> Any:
            at = b.add(tile.index(run, A_WORDS, r * RUN), k)
            return tops.bytes_of(b.load(b.gep(tile.a, [at])))

        def codes(run: Any, k: Any, *, ask: bool) -> Any:
            at = b.add(tile.index(run, RUN, 0), k)
            if ask:
                fetch(b, b.gep(tile.panel, [tile.index(at, COLUMNS // 4, _AHEAD * COLUMNS // 4)]))
            return tile.columns(at, COLUMNS // 4, 0, v.bytes)

        def looking(g: Any) -> Any:
            """Return what keeps values of group g, looks for exponents and counts signs."""
            first = b.mul(g, runs)

            def look(p: Any, k: Any, carried: list[Any]) -> list[Any]:
                run = b.add(first, p)
                code, counts = codes(run, k, ask=True), carried[count:]
                room.keep(in_room(g, p, k), code)
                below = [b.bitcast(told(run, BELOW, r, k), v.bytes) for r in range(count)]
                for r in range(count):
                    signs = b.xor(code, b.bitcast(told(run, SIGNS, r, k), v.bytes))
                    negative = b.icmp_signed(">", signs, splat(v.bytes, 0))
                    counts[r] = b.select(negative, b.add(counts[r], one), counts[r])
                return [*tops.body(code, below, carried[:count]), *counts]

            return look

        def adding(g: Any) -> Any:
            """Return what adds the products of group g to sums."""
            first = b.mul(g, runs)

            def add(p: Any, k: Any, sums: list[Any]) -> list[Any]:
                values, run = room.singles_apart(in_room(g, p, k)), b.add(first, p)
                own = [b.bitcast(told(run, VALUES, r, k), v.floats) for r in range(count)]
                pairs = [(r, i) for r in range(count) for i in range(_VECTORS)]
                terms = zip(pairs, sums, strict=True)
                return [cut.fma(own[r], values[i], total) for (r, i), total in terms]

            return add

        def of_each_row(change: Any, values: list[Any]) -> list[Any]:
            rows = [values[_VECTORS * r : _VECTORS * (r + 1)] for r in range(count)]
            return [value for row in rows for value in change(b, row)]

        nothing = [splat(v.bytes, 0)] * (2 * count)
        last = b.sub(tile.steps, ir.Constant(I64, 1))

        def group(g: Any, carried: list[Any]) -> list[Any]:
            """Return accumulators after group g, and what looking at the next one found."""
            acc, found = carried[: _VECTORS * count], carried[_VECTORS * count :]
            first, floors, bases = b.mul(g, runs), [], []
            for r in range(count):
                own = exponents_of(b, v, acc[_VECTORS * r : _VECTORS * (r + 1)])
                own = b.add(own, splat(v.bytes, 23 - FRACTION))
                floors.append(top(b, own, splat(v.bytes, FLOOR)))
                at = tile.index(b.add(place["run"], first), ROWS, r)
                word = b.load(pointer_at(context, b, sig.args[4], args[4], at))
                bases.append(tops.bytes_of(word))

            def peak(p: Any, k: Any, peaks: list[Any]) -> list[Any]:
                run = b.add(first, p)
                eb = read.exponents(codes(run, k, ask=False))
                return [top(b, peaks[r], b.add(exponent(run, k, r), eb)) for r in range(count)]

            peaks = tops.fields(found[:count], bases, floors)
            doubt, before = tops.doubtful(peaks, bases), b.block
            with b.if_then(doubt):
                exact, inside = over_runs(runs, floors, peak), b.block
            fields = []
            for x, y in zip(peaks, exact, strict=True):
                phi = b.phi(v.bytes)
                phi.add_incoming(x, before)
                phi.add_incoming(y, inside)
                fields.append(phi)
            binades, starts = chained_starts(b, v, fields, acc, cut)
            later = b.add(g, ir.Constant(I64, 1))
            later = b.select(b.icmp_signed("<", later, last), later, last)
            add, look, size = adding(g), looking(later), len(acc)

            def both(p: Any, k: Any, carried: list[Any]) -> list[Any]:
                return [*add(p, k, carried[:size]), *look(p, k, carried[size:])]

            ends = list(over_runs(runs, [*of_each_row(apart, starts), *nothing], both))
            sums = of_each_row(together, ends[:size])
            return [*chained_ends(b, v, sums, binades, found[count:], cut), *ends[size:]]

        def found_first() -> Any:
            """Return what looking at the first group finds."""
            some = b.icmp_signed(">", tile.steps, ir.Constant(I64, 0))
            some = b.select(some, runs, ir.Constant(I64, 0))
            return over_runs(some, nothing, looking(ir.Constant(I64, 0)))

        zeros = [ir.Constant(v.floats, None)] * (_VECTORS * count)

        def chain(i: Any, found: list[Any]) -> Any:
            """Return the results of block i, and what looking at the next group found."""
            assert of is not None
            first, some = of.block(i, tile.steps)
            return loop(b, some, [*zeros, *found], lambda g, x: group(b.add(first, g), x))

        def scaled(i: Any, totals: list[Any], results: list[Any]) -> list[Any]:
            assert of is not None
            pairs = [(r, c) for r in range(count) for c in range(_VECTORS)]
            rows = [b.add(place["row"], ir.Constant(I64, r)) for r in range(count)]
            return [
                of.added(total, x, i, rows[r], COLUMNS // 4 * c + place["piece"])
                for total, x, (r, c) in zip(totals, results, pairs, strict=True)
            ]

        if of and width == 8:  # a thread that cuts toward zero cannot scale: that comes after
            with b.goto_entry_block():
                kept = b.alloca(ir.ArrayType(v.floats, LONG // RUN * _VECTORS * count))

        def result_at(i: Any, n: int) -> Any:
            return b.gep(kept, [ir.Constant(I64, 0), tile.index(i, _VECTORS * count, n)])

        def keep(i: Any, found: list[Any]) -> Any:
            results = chain(i, found)
            for n, x in enumerate(results[: len(zeros)]):
                b.store(x, result_at(i, n), align=4)
            return results[len(zeros) :]

        def from_kept(i: Any, totals: list[Any]) -> list[Any]:
            results = [b.load(result_at(i, n), align=4) for n in range(len(totals))]
            return scaled(i, totals, results)

        def update() -> None:
            """Do a tile of the output, of as many columns as four vectors have."""
            size = len(zeros)
            if not of:
                carried = [*tile.load(count), *found_first()]
                tile.store(loop(b, tile.steps, carried, group)[:size], count)
                return

            def block(i: Any, carried: list[Any]) -> list[Any]:
                results = chain(i, carried[size:])
                return [*scaled(i, carried[:size], results[:size]), *results[size:]]

            blocks = of.blocks(tile.steps)
            if width == 16:
                carried = [*tile.load(count), *found_first()]
                tile.store(loop(b, blocks, carried, block)[:size], count)
                return
            with toward_zero(b):
                loop(b, blocks, found_first(), keep)
                _to_memory(b, kept)
            _to_memory(b, kept)
            tile.store(loop(b, blocks, tile.load(count), from_kept), count)

        def whole(t: Any, carried: list[Any]) -> list[Any]:
            place["row"] = tile.index(t, count, 0)
            tile.a = b.gep(a, [b.mul(t, a_step)])
            place["run"] = b.add(first_run, b.udiv(b.mul(t, a_step), ir.Constant(I64, A_WORDS)))
            first = b.gep(out, [b.mul(tile.index(t, count, 0), tile.stride)])
            for piece in range(COLUMNS // 4 // width):
                # the vectors' columns are those of AVX-512, cut in two
                at = [ir.Constant(I64, width * piece)]
                tile.out, tile.panel = b.gep(first, at), b.gep(panel, at)
                place["piece"] = width * piece
                update()
            return carried

        with nullcontext() if width == 16 or of else toward_zero(b):
            loop(b, tiles, [], whole)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(
        words, rows, fields, left, bases, scales, i64, i64, a, i64, b, i64, out, i64, i64, i64, i64
    ), codegen  # fmt: skip
