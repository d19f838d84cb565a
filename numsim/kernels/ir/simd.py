"""Vector micro-kernels in LLVM IR, and the loop that lays them over an output.

What the emitters of this folder share is here too. A micro-kernel updates a small tile of the
output in place over a run of k steps; operands are packed so that one step reads consecutive
memory::

    a [batch, tiles, steps, rows per tile]      b [1 or batch, panels, steps, columns per panel]

The wide kernels need AVX-512 (32 registers of 64 bytes) with VNNI; the narrow ones are plain vector
IR that LLVM lowers on any CPU. Some need AVX2: Hopper's FP8 rule, blocks that are cut to float32,
and finite codes of a byte. All give the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic
from numba.np import arrayobj

# Tile shapes. They are baked into compiled code, so they are the same on every CPU.
FMA_ROWS, FMA_BYTES = 12, 128  # bytes: columns per panel times the element size
INT8_ROWS, INT8_COLUMNS = 12, 32
HOPPER_ROWS, HOPPER_COLUMNS = 4, 16

PAGE = 4096  # bytes: weights are asked for so long before, the processor itself stops at each page

# Hopper, portable: a zero factor's exponent, low enough that its product never wins the maximum.
ZERO_EXPONENT = -200
# fp32 exponents are used with their bias. The floor stands for an accumulator of zero: it keeps the
# scale factors 2^(13-E) and 2^(E-13) normal numbers, and lies below every exponent that can occur.
BIAS, _FLOOR, FRACTION = 127, 27, 13


def _retargeted() -> bool:
    settings: Any = config
    return bool(settings.CPU_NAME or settings.CPU_FEATURES)


def _host_has(*names: str) -> bool:
    if os.environ.get("NUMSIM_SIMD") == "0" or _retargeted():
        return False  # numba was told to compile for something other than this host
    features = llvmlite.binding.get_host_cpu_features()
    return all(features.get(name, False) for name in names)


HAVE_AVX512_VNNI = _host_has("avx512f", "avx512bw", "avx512vnni")
HAVE_BYTE_TABLES = HAVE_AVX512_VNNI and _host_has("avx512vbmi")
HAVE_HALVES = HAVE_AVX512_VNNI and _host_has("avx512fp16")  # arithmetic of float16
# What kernels this host can run, the fastest last
PATHS = ("plain",) + ("avx2",) * _host_has("avx2", "fma", "f16c") + ("avx512",) * HAVE_AVX512_VNNI
_path = PATHS[-1]


if HAVE_AVX512_VNNI:
    llvmlite.binding.initialize_native_asmparser()  # for the one instruction that is named


def path() -> str:
    """Return which of `PATHS` is used."""
    return _path


def enabled() -> bool:
    """Return whether the AVX-512 kernels are used."""
    return _path == "avx512"


@contextmanager
def force(path: str) -> Iterator[None]:
    """Use one of `PATHS` inside the ``with`` block; for tests."""
    global _path  # noqa: PLW0603
    if path not in PATHS:
        raise ValueError(f"this machine's paths are {', '.join(PATHS)}, but path={path!r}.")
    before, _path = _path, path
    try:
        yield
    finally:
        _path = before


def compiled(dispatcher: Any, *signature: Any) -> Callable[..., Any]:
    """Return `dispatcher` compiled, on first use, for exactly one signature.

    Types of the arguments are then not looked at: layouts and read-only flags cannot multiply the
    number of compilations. Callers keep the result.
    """
    entry: Callable[..., Any] = dispatcher.compile(signature)
    return entry


def strided(dtype: Any, ndim: int) -> Any:
    """Return the Numba type of an input: any strides, read-only or unaligned memory too."""
    return types.Array(dtype, ndim, "A", readonly=True, aligned=False)


def literal(value: int) -> Any:
    """Return the Numba type of one number: part of what is compiled."""
    make: Any = types.literal
    return make(value)


def contiguous(dtype: Any, ndim: int) -> Any:
    """Return the Numba type of an array that the kernels allocated themselves."""
    return types.Array(dtype, ndim, "C")


def emitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an emitter of IR as a function that compiled code calls."""
    made: Callable[..., Any] = intrinsic(function)
    return made


I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
V16, V32, VF = (
    ir.VectorType(I16, 32),
    ir.VectorType(I32, 16),
    ir.VectorType(ir.FloatType(), 16),
)


def splat(vector: Any, value: float) -> Any:
    """Return a constant vector of one value."""
    return ir.Constant(vector, [value] * vector.count)


def broadcast(b: Any, scalar: Any, vector: Any) -> Any:
    """Return a vector whose elements are all `scalar`."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = b.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return b.shuffle_vector(
        first, undefined, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count)
    )


def joined(b: Any, x: Any, y: Any) -> Any:
    """Return the lanes of x and then those of y as one vector."""
    count = 2 * x.type.count
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, count), list(range(count))))


def maximum(b: Any, x: Any, y: Any) -> Any:
    """Return the larger of two signed integers, element by element."""
    return b.select(b.icmp_signed(">", x, y), x, y)


def loop(
    b: Any, count: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]
) -> Any:
    """Emit ``for i in range(count): carried = body(i, carried)``; return the last `carried`."""
    before = b.block
    head, inside, done = (b.append_basic_block(name) for name in ("head", "body", "done"))
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(I64)
    i.add_incoming(ir.Constant(I64, 0), before)
    phis = [b.phi(value.type) for value in carried]
    b.cbranch(b.icmp_signed("<", i, count), inside, done)
    b.position_at_end(inside)
    new = body(i, phis)
    i.add_incoming(b.add(i, ir.Constant(I64, 1)), b.block)
    for phi, first, value in zip(phis, carried, new, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(value, b.block)
    b.branch(head)
    b.position_at_end(done)
    return phis


def pointer_at(context: Any, b: Any, array: Any, value: Any, at: Any) -> Any:
    """Return the address of element `at` of an array, or a pointer, of Numba type `array`."""
    if isinstance(array, types.CPointer):
        return b.gep(value, [at])
    make: Any = arrayobj.make_array
    return b.gep(make(array)(context, b, value).data, [at])


def vectors_of(context: Any, b: Any, array: Any, value: Any, vector: Any) -> Any:
    """Return the address of an array's first element as that of vectors."""
    first = pointer_at(context, b, array, value, ir.Constant(I64, 0))
    return b.bitcast(first, vector.as_pointer())


def fetch(b: Any, pointer: Any, *, write: bool = False, level: int = 1) -> None:
    """Ask for the line at an address that is read later; beyond the end of memory nothing comes.

    `write`: it is written later; `level`: of the cache that it comes to.
    """
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    ask = b.module.declare_intrinsic("llvm.prefetch.p0i8", (), kind)
    how = [ir.Constant(I32, value) for value in (int(write), 4 - level, 1)]  # 1: data
    b.call(ask, [b.bitcast(pointer, byte), *how])


class Tile:
    """Addresses of one micro-kernel call: packed a and b, and the output tile."""

    def __init__(
        self, context: Any, b: Any, kinds: Any, args: Any, vectors: int, vector: Any
    ) -> None:
        a, a_at, other, b_at, out, out_at, self.stride, self.steps = args[-8:]
        self.b, self.vectors, self.vector, self.apart = b, vectors, vector, vector.count
        self.a = self.pointer(context, kinds[-8], a, a_at)
        self.panel = self.pointer(context, kinds[-6], other, b_at)
        self.out = self.pointer(context, kinds[-4], out, out_at)
        self.size = context.get_abi_sizeof(self.panel.type.pointee)

    def pointer(self, context: Any, array: Any, value: Any, at: Any) -> Any:
        """Return a pointer to the element of an array at an index."""
        return pointer_at(context, self.b, array, value, at)

    def index(self, i: Any, times: int, plus: int) -> Any:
        """Return ``i * times + plus``."""
        return self.b.add(self.b.mul(i, ir.Constant(I64, times)), ir.Constant(I64, plus))

    def ask(self, out: Any, t: Any, count: int, columns: int) -> None:
        """Ask for the rows that the tile after the next writes, of tiles of `count` rows.

        They are far apart in a wide output, and no cache foresees it.
        """
        for r in range(count):
            line = self.b.gep(out, [self.b.mul(self.index(t, count, 2 * count + r), self.stride)])
            for i in range(0, columns, 16):
                fetch(self.b, self.b.gep(line, [ir.Constant(I64, i)]), write=True)

    def scalar(self, i: Any, times: int, plus: int) -> Any:
        """Return the element ``i * times + plus`` of the left operand."""
        return self.b.load(self.b.gep(self.a, [self.index(i, times, plus)]))

    def rows(self, i: Any, times: int, plus: int, vector: Any) -> Any:
        """Return the vector that begins at ``i * times + plus`` of the left operand."""
        at = self.b.gep(self.a, [self.index(i, times, plus)])
        return self.b.load(self.b.bitcast(at, vector.as_pointer()), align=4)

    def columns(self, i: Any, times: int, plus: int, vector: Any = None) -> Any:
        """Return the vector that begins at ``i * times + plus`` of the right operand's panel."""
        at = self.b.gep(self.panel, [self.index(i, times, plus)])
        at = self.b.bitcast(at, (vector or self.vector).as_pointer())
        return self.b.load(at, align=4)

    def ahead(self, i: Any, times: int, plus: int) -> None:
        """Ask for what stands in the panel a page later than `columns` reads it."""
        at = self.index(i, times, plus + PAGE // self.size)
        fetch(self.b, self.b.gep(self.panel, [at]))

    def outputs(self, rows: int) -> list[Any]:
        """Return the addresses of the vectors of the tile of the output, row by row."""
        b = self.b
        pointers = []
        for r in range(rows):
            for c in range(self.vectors):
                at = b.add(
                    b.mul(self.stride, ir.Constant(I64, r)), ir.Constant(I64, c * self.apart)
                )
                pointers.append(b.bitcast(b.gep(self.out, [at]), self.vector.as_pointer()))
        return pointers

    def load(self, rows: int) -> list[Any]:
        """Return the tile of the output, a vector a row."""
        return [self.b.load(at, align=4) for at in self.outputs(rows)]

    def store(self, values: list[Any], rows: int) -> None:
        """Write the tile of the output."""
        for at, value in zip(self.outputs(rows), values, strict=True):
            self.b.store(value, at, align=4)


def signature_of(a: Any, b: Any, out: Any, *literals: Any) -> Any:
    """Return the Numba signature of a micro-kernel: operands and output with their offsets."""
    i64 = types.int64  # the literals are part of the signature: Numba lowers once for each
    return types.void(*literals, a, i64, b, i64, out, i64, i64, i64)


@emitted
def fma_tile(
    typing: Any, rows: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any,
    stride: Any, steps: Any,
) -> Any:  # fmt: skip
    """Update out[r, :] = fma(a[k, r], b[k, :], out[r, :]) in order of k; NaN is canonical."""
    if not isinstance(rows, types.IntegerLiteral):
        return None
    count = rows.literal_value

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        double = sig.args[1].dtype == types.float64
        lanes = 8 if double else 16
        vector = ir.VectorType(ir.DoubleType() if double else ir.FloatType(), lanes)
        tile = Tile(context, b, sig.args, args, 2, vector)
        name = f"llvm.fma.v{lanes}f{512 // lanes}"
        fma = b.module.declare_intrinsic(name, (), ir.FunctionType(vector, [vector] * 3))

        def step(k: Any, acc: list[Any]) -> list[Any]:
            columns = [tile.columns(k, 2 * lanes, c * lanes) for c in range(2)]
            if count == 1:
                for c in range(2):
                    tile.ahead(k, 2 * lanes, c * lanes)
            new = []
            for r in range(count):
                x = broadcast(b, tile.scalar(k, FMA_ROWS, r), vector)
                new += [b.call(fma, [x, columns[c], acc[2 * r + c]]) for c in range(2)]
            return new

        acc = loop(b, tile.steps, tile.load(count), step)
        nan = splat(vector, float("nan"))
        tile.store([b.select(b.fcmp_unordered("uno", v, v), nan, v) for v in acc], count)
        return context.get_dummy_value()

    return signature_of(a, b, out, rows), codegen


@emitted
def hopper_tile(
    typing: Any, a: Any, a_at: Any, b: Any, b_at: Any, out: Any, out_at: Any, stride: Any,
    steps: Any, runs: Any,
) -> Any:  # fmt: skip
    """Chain groups of 8 `runs` products onto out[:]: align, cut to 13 fraction bits, add.

    Both operands hold int16 pairs (k, k+1) in three planes: significand, exponent, sign.
    """
    unroll = 4

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        tile = Tile(context, b, sig.args[:-1], args[:-1], 1, VF)
        runs = args[-1]
        sixteen, limit = splat(V32, 16), splat(V16, 15)

        def low(x: Any) -> Any:
            return b.ashr(b.shl(x, sixteen), sixteen)

        def shifted(x: Any, by: Any) -> Any:  # products are below 2^15: shifted by 15 they are 0
            return b.lshr(x, b.select(b.icmp_unsigned("<", by, limit), by, limit))

        def signed_sum(total: Any, x: Any, sign: Any) -> Any:
            pair = b.bitcast(b.mul(x, sign), V32)
            return b.add(total, b.add(low(pair), b.ashr(pair, sixteen)))

        def row(pair: Any, u: int, plane: int) -> Any:
            step, at = 3 * HOPPER_ROWS, (3 * u + plane) * HOPPER_ROWS
            return b.bitcast(broadcast(b, tile.scalar(pair, unroll * step, at), V32), V16)

        def column(pair: Any, u: int, plane: int) -> Any:
            step, at = 3 * HOPPER_COLUMNS, (3 * u + plane) * HOPPER_COLUMNS
            return tile.columns(pair, unroll * step, at, V16)

        def group(g: Any, acc: list[Any]) -> list[Any]:
            first = b.mul(g, runs)

            def peak(p: Any, top: list[Any]) -> list[Any]:
                pair = b.add(first, p)
                for u in range(unroll):
                    top = [maximum(b, top[0], b.add(row(pair, u, 1), column(pair, u, 1)))]
                return top

            (top,) = loop(b, runs, [splat(V16, _FLOOR)], peak)
            x, value = b.bitcast(top, V32), acc[0]
            e = maximum(b, low(x), b.ashr(x, sixteen))
            bits = b.bitcast(value, V32)
            e = maximum(b, e, b.and_(b.lshr(bits, splat(V32, 23)), splat(V32, 255)))
            up = b.shl(b.sub(splat(V32, 2 * BIAS + FRACTION), e), splat(V32, 23))
            total = b.fptosi(b.fmul(value, b.bitcast(up, VF)), V32)
            both = b.bitcast(b.or_(e, b.shl(e, sixteen)), V16)

            def add(p: Any, sums: list[Any]) -> list[Any]:
                pair = b.add(first, p)
                for u in range(unroll):
                    ma, ea, sa = (row(pair, u, plane) for plane in range(3))
                    mb, eb, sb = (column(pair, u, plane) for plane in range(3))
                    term = shifted(b.mul(ma, mb), b.sub(both, b.add(ea, eb)))
                    sums = [signed_sum(sums[0], term, b.xor(sa, sb))]
                return sums

            (total,) = loop(b, runs, [total], add)
            down = b.shl(b.sub(e, splat(V32, FRACTION)), splat(V32, 23))
            value = b.fmul(b.sitofp(total, VF), b.bitcast(down, VF))  # exact
            kept = b.and_(b.bitcast(value, V32), splat(V32, -(1 << (23 - FRACTION))))
            return [b.bitcast(kept, VF)]

        tile.store(loop(b, tile.steps, tile.load(1), group), 1)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, b, i64, out, i64, i64, i64, i64), codegen
