"""The vector kernel of Hopper's and Ada's FP8 rule with AVX-512, and the planes that it reads.

A product of magnitudes is aligned and cut in one instruction: it is added, rounding toward zero, to
the power of two whose last place is the last fraction bit that is kept. The low 16 bits of the
result are the kept product; ``vpdpwssd`` gives them their sign and adds them. The sign of b is read
from memory, as it is or negated: the sign of a is the distance between the two.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.np import arrayobj

from numsim.kernels.simd import _BIAS as BIAS
from numsim.kernels.simd import _FRACTION as FRACTION
from numsim.kernels.simd import _I32 as I32
from numsim.kernels.simd import _I64 as I64
from numsim.kernels.simd import _V32 as V32
from numsim.kernels.simd import _VF as VF
from numsim.kernels.simd import HOPPER_ROWS as ROWS
from numsim.kernels.simd import _broadcast, _intrinsic, _loop, _max, _splat, _Tile, pointer_at

COLUMNS, QUAD = 32, 4  # QUAD: products whose exponents share a lane, a byte each
A_WORDS = 6 * ROWS  # of a quad: exponents, magnitudes, signs
B_WORDS = 13 * COLUMNS  # of a quad: exponents, magnitudes, both signs
TURNED = 16  # quads that are read from rows of codes at a time
LEAST, MOST = -16, 15  # exponents of factors
# The sum of two factors' bytes is the field of the power of two that their product is added to. A
# zero's byte is 0, which makes less than any sum of others. Accumulators are multiples of the last
# place at the floor, so that it cuts nothing from them.
_FIELD = BIAS + 23 - FRACTION
_LEFT, _RIGHT, _FLOOR = _FIELD // 2, -(-_FIELD // 2), _FIELD + 2 * LEAST - 1
_TOWARD_ZERO = 11  # of an instruction, without exceptions

_I8 = ir.IntType(8)
_V8 = ir.VectorType(_I8, 64)


def _cut_sum(b: Any, total: Any, term: Any, sign: Any) -> Any:
    # LLVM would replace the intrinsic by two instructions, to shorten a chain that is no limit here
    kind = ir.FunctionType(V32, [V32] * 3)
    once = ir.InlineAsm(kind, "vpdpwssd $3, $2, $0", "=v,0,v,v", side_effect=False)
    return b.call(once, [total, term, sign])


@_intrinsic
def float_tile(
    typing: Any, rows: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any,
    stride: Any, steps: Any, runs: Any,
) -> Any:  # fmt: skip
    """Chain groups of 4 `runs` products onto out[r, :]: align, cut to 13 fraction bits, add."""
    if not isinstance(rows, types.IntegerLiteral):
        return None
    count, vectors = rows.literal_value, COLUMNS // 16
    cells = [(r, c) for r in range(count) for c in range(vectors)]
    chains = max(1, 8 // len(cells))  # sums that do not wait for one another

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = _Tile(context, b, sig.args[:-1], args[:-1], vectors, VF)
        runs = args[-1]
        kind = ir.FunctionType(VF, [VF, VF, VF, I32])
        fma = b.module.declare_intrinsic("llvm.x86.avx512.vfmadd.ps.512", (), kind)
        toward_zero = ir.Constant(I32, _TOWARD_ZERO)
        signs = b.bitcast(tile.a, _I8.as_pointer())

        def left(quad: Any, at: int) -> Any:
            return _broadcast(b, tile.scalar(quad, A_WORDS, at), V32)

        def group(g: Any, acc: list[Any]) -> list[Any]:
            first = b.mul(g, runs)

            def peak(p: Any, top: list[Any]) -> list[Any]:
                quad = b.add(first, p)
                eb = [
                    b.bitcast(tile.columns(quad, B_WORDS, 16 * c, V32), _V8) for c in range(vectors)
                ]
                ea = [b.bitcast(left(quad, r), _V8) for r in range(count)]
                return [
                    _top(b, t, b.add(ea[r], eb[c])) for t, (r, c) in zip(top, cells, strict=True)
                ]

            top = _loop(b, runs, [_splat(_V8, _FLOOR)] * len(cells), peak)
            power, total = [], []
            for t, value in zip(top, acc, strict=True):
                for places in (16, 8):
                    half = b.lshr(b.bitcast(t, V32), _splat(V32, places))
                    t = _top(b, t, b.bitcast(half, _V8))
                field = b.lshr(b.shl(b.bitcast(t, V32), _splat(V32, 24)), _splat(V32, 1))
                own = b.and_(b.bitcast(value, V32), _splat(V32, 255 << 23))
                field = _max(b, field, b.add(own, _splat(V32, _FIELD - BIAS << 23)))
                up = b.sub(_splat(V32, _FIELD + BIAS + FRACTION << 23), field)
                total.append(b.fptosi(b.fmul(value, b.bitcast(up, VF)), V32))
                power.append(field)

            def add(p: Any, sums: list[Any]) -> list[Any]:
                quad = b.add(first, p)
                sums = list(sums)
                for q in range(QUAD):
                    mb = [
                        tile.columns(quad, B_WORDS, COLUMNS * (1 + q) + 16 * c, VF)
                        for c in range(vectors)
                    ]
                    pair = []
                    for c in range(vectors):
                        at = tile.index(quad, B_WORDS, COLUMNS * (5 + 2 * q) + 32 * c)
                        pair.append(b.bitcast(b.gep(tile.panel, [at]), I64.as_pointer()))
                    for r in range(count):
                        ma = b.bitcast(left(quad, ROWS * (1 + q) + r), VF)
                        at = tile.index(quad, 4 * A_WORDS, 4 * (5 * ROWS + r) + q)
                        away = b.zext(b.load(b.gep(signs, [at])), I64)
                        for c in range(vectors):
                            i = r * vectors + c
                            s = i * chains + q % chains
                            term = b.call(fma, [ma, mb[c], b.bitcast(power[i], VF), toward_zero])
                            sign = b.bitcast(b.gep(pair[c], [away]), V32.as_pointer())
                            sums[s] = _cut_sum(
                                b, sums[s], b.bitcast(term, V32), b.load(sign, align=4)
                            )
                return sums

            zero = _splat(V32, 0)
            starts = [t if c == 0 else zero for t in total for c in range(chains)]
            ends = _loop(b, runs, starts, add)
            results = []
            for i in range(len(cells)):
                sum_ = ends[i * chains]
                for c in range(1, chains):
                    sum_ = b.add(sum_, ends[i * chains + c])
                down = b.sub(power[i], _splat(V32, 23 << 23))
                value = b.fmul(b.sitofp(sum_, VF), b.bitcast(down, VF))  # exact
                kept = b.and_(b.bitcast(value, V32), _splat(V32, -(1 << (23 - FRACTION))))
                results.append(b.bitcast(kept, VF))
            return results

        tile.store(_loop(b, tile.steps, tile.load(count), group), count)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(rows, a, i64, b, i64, out, i64, i64, i64, i64), codegen


def _top(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.icmp_unsigned(">", x, y), x, y)


def _reader(b: Any, fields: Any, lanes: int, bias: int) -> tuple[Any, Any, Any]:
    """Return how `lanes` words of four codes each are read, as three functions."""
    wide, bytes_ = ir.VectorType(I32, lanes), ir.VectorType(_I8, 4 * lanes)
    floats = ir.VectorType(ir.FloatType(), lanes)

    def field(index: int, vector: Any = wide) -> Any:
        value = b.extract_value(fields, index)
        return _broadcast(b, value if vector is wide else b.trunc(value, _I8), vector)

    magnitude, up, rebias = (field(i) for i in (0, 6, 8))
    magnitude8, sign8, trailing8, bias8 = (field(i, bytes_) for i in (0, 1, 3, 5))
    zero8, one8, more8 = (_splat(bytes_, n) for n in (0, 1, bias))
    placed = b.shl(magnitude, up)
    kind = ir.FunctionType(wide, [wide] * 3)
    turn = b.module.declare_intrinsic(f"llvm.fshl.v{lanes}i32", (), kind)
    kind = ir.FunctionType(floats, [floats] * 3)
    fma = b.module.declare_intrinsic(f"llvm.fma.v{lanes}f32", (), kind)
    two = _splat(floats, 2.0)
    least = b.fneg(b.bitcast(b.add(rebias, _splat(wide, 1 << 23)), floats))

    def exponents(words: Any) -> Any:
        m = b.and_(b.bitcast(words, bytes_), magnitude8)
        e = b.lshr(m, trailing8)
        e = b.add(b.sub(_top(b, e, one8), bias8), more8)
        return b.select(b.icmp_unsigned("==", m, zero8), zero8, e)

    def magnitudes(words: Any, q: int) -> Any:
        bits = b.call(turn, [words, words, b.sub(up, _splat(wide, 8 * q))])  # counts modulo 32
        read = b.bitcast(b.add(b.and_(bits, placed), rebias), floats)
        # A subnormal magnitude was read as (1 + f) 2^(emin - 1) instead of f 2^emin, which is
        # twice that less 2^emin; for the others that difference is no less than what was read.
        twice = b.call(fma, [read, two, least])
        return b.select(b.fcmp_ordered("<", read, twice), read, twice)

    def negative(words: Any) -> Any:
        return b.icmp_unsigned("!=", b.and_(b.bitcast(words, bytes_), sign8), zero8)

    return exponents, magnitudes, negative


def _storing(b: Any, first: Any, vector: Any) -> Any:
    """Return a function that stores a value in the place of vector `plane` from `first` on."""
    start = b.bitcast(first, vector.as_pointer())

    def put(plane: int, value: Any) -> None:
        b.store(b.bitcast(value, vector), b.gep(start, [ir.Constant(I64, plane)]), align=4)

    return put


@_intrinsic
def left_quad(
    typing: Any, w0: Any, w1: Any, w2: Any, w3: Any, planes: Any, at: Any, fields: Any
) -> Any:
    """Write the planes of four codes of each of four rows, a word a row.

    `fields` is `gemm_codes.Fields`; formats have at most 3 fraction bits and 8 bits in all.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        vector = ir.VectorType(I32, ROWS)
        words: Any = ir.Constant(vector, ir.Undefined)
        for r in range(ROWS):
            words = b.insert_element(words, args[r], ir.Constant(I32, r))
        exponents, magnitudes, negative = _reader(b, args[6], ROWS, _LEFT)
        put = _storing(b, pointer_at(context, b, sig.args[4], args[4], args[5]), vector)
        put(0, exponents(words))
        for q in range(QUAD):
            put(1 + q, magnitudes(words, q))
        bytes_ = ir.VectorType(_I8, 4 * ROWS)
        distance = b.select(negative(words), _splat(bytes_, 8), _splat(bytes_, 0))
        put(1 + QUAD, distance)
        return context.get_dummy_value()

    word = types.uint32
    return types.void(word, word, word, word, planes, types.int64, fields), codegen


@_intrinsic
def right_quads(typing: Any, codes: Any, quads: Any, words: Any, fields: Any) -> Any:
    """Write the planes of `quads` times 32 columns of four codes."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        source = pointer_at(context, b, sig.args[0], args[0], ir.Constant(I64, 0))
        source = b.bitcast(source, V32.as_pointer())
        target = pointer_at(context, b, sig.args[2], args[2], ir.Constant(I64, 0))
        vectors = COLUMNS // 16
        exponents, magnitudes, negative = _reader(b, args[3], 16, _RIGHT)
        plus, minus = _splat(V32, 1), _splat(V32, 0xFFFF)

        def run(i: Any, carried: list[Any]) -> list[Any]:
            put = _storing(b, b.gep(target, [b.mul(i, ir.Constant(I64, B_WORDS))]), V32)
            for c in range(vectors):
                at = b.add(b.mul(i, ir.Constant(I64, vectors)), ir.Constant(I64, c))
                code = b.load(b.gep(source, [at]), align=1)
                put(c, exponents(code))
                signs = b.bitcast(b.sext(negative(code), _V8), V32)
                for q in range(QUAD):
                    put(vectors * (1 + q) + c, magnitudes(code, q))
                    one = b.and_(signs, _splat(V32, 1 << 8 * q))
                    away = b.icmp_unsigned("!=", one, _splat(V32, 0))
                    first = vectors * (1 + QUAD + 2 * q) + 2 * c
                    put(first, b.select(away, minus, plus))
                    put(first + 1, b.select(away, plus, minus))
            return carried

        _loop(b, args[1], [], run)
        return context.get_dummy_value()

    return types.void(codes, types.int64, words, fields), codegen


@_intrinsic
def turned_quads(typing: Any, rows: Any, words: Any) -> Any:
    """Write 64 codes of each of 32 rows [32, 64], a word a quad, as words [16 quads, 32 rows]."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        make: Any = arrayobj.make_array
        source = make(sig.args[0])(context, b, args[0])
        stride = b.extract_value(source.strides, 0)
        put = _storing(b, pointer_at(context, b, sig.args[1], args[1], ir.Constant(I64, 0)), V32)
        for c in range(COLUMNS // 16):
            lines = []
            for r in range(16):
                at = b.gep(source.data, [b.mul(stride, ir.Constant(I64, 16 * c + r))])
                lines.append(b.load(b.bitcast(at, V32.as_pointer()), align=1))
            for step in (1, 2, 4, 8):  # rows and lanes change places where this bit differs
                for i in range(16):
                    if not i & step:
                        x, y = lines[i], lines[i + step]
                        low = [j if not j & step else 16 + j - step for j in range(16)]
                        high = [j + step if not j & step else 16 + j for j in range(16)]
                        lines[i], lines[i + step] = (
                            b.shuffle_vector(x, y, ir.Constant(V32, mask)) for mask in (low, high)
                        )
            for quad, line in enumerate(lines):
                put(quad * (COLUMNS // 16) + c, line)
        return context.get_dummy_value()

    return types.void(rows, words), codegen
