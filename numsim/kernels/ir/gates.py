"""sigmoid and tanh of float32 by few operations, and with them the cells of an LSTM, 8 at a time.

A guess of 2**-41 or better decides the float32 wherever it is not that close to the middle of two;
where it is, or where a number is none that the guess is made for, `elementwise.activations`
computes. With s = 2**n, e**x = s (1 + q), and both functions are quotients of sums of 1, s and s q.
Proof: ``tests/kernels/test_gates.py`` compares the guess with the definition.

Source: q / r interpolates (e**r - 1) / r at nine Chebyshev nodes of |r| <= ln 2 / 2, off by less
than 2**-43.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.np import arrayobj

from numsim.kernels.ir.simd import I32, I64, emitted

LANES = 8  # cells of one call
LOW, HIGH = 0x0D800000, 0x42A00000  # float32 bits of 2**-100 and 80
LOG2E, LN2 = float.fromhex("0x1.71547652b82fep+0"), float.fromhex("0x1.62e42fefa39efp-1")
MAGIC, MAGIC_BITS = 1.5 * 2.0**52, 0x4338000000000000  # adding it leaves the nearest integer
POWERS = (
    2.7625115548647376e-06, 2.4876178959767158e-05, 0.00019841208732635247, 0.0013888821650716596,
    0.008333333353729289, 0.0416666668910917, 0.1666666666664829, 0.49999999999797773, 1.0,
)  # fmt: skip
# A positive float64 is closer than 2**12 of its last places to the middle of two float32 where its
# 29 lower bits, less _BELOW, are less than _WINDOW.
_BELOW, _WINDOW, _LOWER = (1 << 28) - (1 << 12), 1 << 13, (1 << 29) - 1


class _Numbers:
    """Arithmetic on float64 vectors of some lanes; constants become vectors too."""

    def __init__(self, b: Any, lanes: int) -> None:
        self.b = b
        self.floats = ir.VectorType(ir.DoubleType(), lanes)
        self.words = ir.VectorType(I64, lanes)
        self.singles, self.halves = ir.VectorType(ir.FloatType(), lanes), ir.VectorType(I32, lanes)
        name, three = f"llvm.fmuladd.v{lanes}f64", [self.floats] * 3
        self._fma = b.module.declare_intrinsic(name, (), ir.FunctionType(self.floats, three))

    def all(self, value: float) -> Any:
        """Return a constant."""
        return ir.Constant(self.floats, [value] * self.floats.count)

    def bits(self, value: int, vector: Any = None) -> Any:
        """Return a constant of integers."""
        vector = vector or self.words
        return ir.Constant(vector, [value] * vector.count)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """Return x y + z, rounded once or twice."""
        return self.b.call(self._fma, [x, y, z])


def _exponential(v: _Numbers, x: Any, by: float) -> tuple[Any, Any]:
    """Return s and s q of e**(by x), |by x| <= 160; `by` is a power of two and a sign."""
    b = v.b
    shifted = v.fma(x, v.all(by * LOG2E), v.all(MAGIC))
    n = b.fsub(shifted, v.all(MAGIC))
    r = v.fma(n, v.all(-LN2 / by), x)  # and by as much smaller
    p = v.all(POWERS[0] * by ** len(POWERS))
    for place, power in enumerate(POWERS[1:], 1):
        p = v.fma(p, r, v.all(power * by ** (len(POWERS) - place)))
    k = b.add(b.bitcast(shifted, v.words), v.bits(1023 - MAGIC_BITS))
    s = b.bitcast(b.shl(k, v.bits(52)), v.floats)
    return s, b.fmul(s, b.fmul(p, r))


def _of_sigmoid(v: _Numbers, x: Any) -> tuple[Any, Any]:
    """Return the parts of sigmoid(x), |x| < 80: it is the first by the second."""
    s, rest = _exponential(v, x, -1.0)
    return v.all(1.0), v.b.fadd(v.b.fadd(v.all(1.0), s), rest)


def _of_tanh(v: _Numbers, a: Any) -> tuple[Any, Any]:
    """Return the parts of tanh(a), 2**-100 <= a < 80."""
    b, one = v.b, v.all(1.0)
    s, rest = _exponential(v, a, -2.0)
    return b.fsub(b.fsub(one, s), rest), b.fadd(b.fadd(one, s), rest)


def _quotients(v: _Numbers, one: tuple[Any, Any], other: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return two quotients by one division."""
    b = v.b
    both = b.fdiv(v.all(1.0), b.fmul(one[1], other[1]))
    return (
        b.fmul(one[0], b.fmul(both, other[1])),
        b.fmul(other[0], b.fmul(both, one[1])),
    )


def _unsure(v: _Numbers, guess: Any) -> Any:
    """Return where a guess does not tell which of two float32 a positive number rounds to."""
    b = v.b
    below = b.sub(b.bitcast(guess, v.words), v.bits(_BELOW))
    return b.icmp_signed("<", b.and_(below, v.bits(_LOWER)), v.bits(_WINDOW))


def _magnitudes(v: _Numbers, x: Any) -> Any:
    return v.b.and_(v.b.bitcast(x, v.halves), v.bits(0x7FFFFFFF, v.halves))


def _beyond(v: _Numbers, magnitude: Any, *, small: bool) -> Any:
    """Return where float32 bits are not between LOW (if `small`) and HIGH."""
    least = LOW if small else 0
    moved = v.b.sub(magnitude, v.bits(least, v.halves)) if small else magnitude
    return v.b.icmp_unsigned(">=", moved, v.bits(HIGH - least, v.halves))


def _signed(v: _Numbers, guess: Any, x: Any) -> Any:
    """Return a guess as float32 with the sign of x."""
    b = v.b
    sign = b.and_(b.bitcast(x, v.halves), v.bits(-(1 << 31), v.halves))
    size = b.bitcast(b.fptrunc(guess, v.singles), v.halves)
    return b.bitcast(b.or_(size, sign), v.singles)


def _tanh_parts(v: _Numbers, x: Any) -> tuple[tuple[Any, Any], Any]:
    """Return the parts of tanh(|x|), and where they are not made for x."""
    magnitude = _magnitudes(v, x)
    a = v.b.fpext(v.b.bitcast(magnitude, v.singles), v.floats)
    return _of_tanh(v, a), _beyond(v, magnitude, small=True)


def _reader(context: Any, b: Any, v: _Numbers, sig: Any, args: Any) -> tuple[Any, Any]:
    """Return how 8 numbers of an array of `s` or of another are loaded and stored, at an index."""
    make: Any = arrayobj.make_array
    kinds = dict(zip(sig.args[0].fields, sig.args[0].types, strict=True))
    values = {name: b.extract_value(args[0], i) for i, name in enumerate(kinds)}
    kinds["hw"], values["hw"] = sig.args[1], args[1]

    def where(name: str, at: Any) -> Any:
        data = make(kinds[name])(context, b, values[name]).data
        return b.bitcast(b.gep(data, [at]), v.singles.as_pointer())

    return (
        lambda name, at: b.load(where(name, at), align=4),
        lambda name, at, value: b.store(value, where(name, at), align=4),
    )


def _any(b: Any, doubts: list[Any]) -> Any:
    """Return which lanes are doubtful by any of several masks."""
    met = doubts[0]
    for doubt in doubts[1:]:
        met = b.or_(met, doubt)
    return met


def _bits(b: Any, mask: Any) -> Any:
    return b.zext(b.bitcast(mask, ir.IntType(LANES)), I64)


@emitted
def lstm_gates(
    typing: Any, s: Any, hw: Any, at: Any, row: Any, j: Any, place: Any, state: Any, hidden: Any
) -> Any:
    """Do the gates and the new c of 8 cells, and keep the old h and c; return which are not sure.

    Their gates hold the sums before them.

    `s` is `gemm.recurrent.Forward`. In the memory of its arrays the cells begin at `at` of xw and
    gates (gate i), at `row` of the products hw, at `j` of the biases, at `place` of what is kept of
    each step, at `state` of h and c; gates are `hidden` apart.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        v = _Numbers(b, LANES)
        load, put = _reader(context, b, v, sig, args)
        _, _, first, line, column, kept, now, apart = args
        h, c = load("h", now), load("c", now)
        put("before_h", kept, h)
        put("before_c", kept, c)
        sums, parts, doubts = [], [], []
        for gate in range(4):
            more = b.mul(apart, ir.Constant(I64, gate))
            k, bias = b.add(first, more), b.add(column, more)
            x = b.fadd(load("xw", k), load("bias_x", bias))
            x = b.fadd(x, b.fadd(load("hw", b.add(line, more)), load("bias_h", bias)))
            sums.append((x, k))
            if gate == 2:
                found, odd = _tanh_parts(v, x)
            else:
                odd = _beyond(v, _magnitudes(v, x), small=False)
                found = _of_sigmoid(v, b.fpext(x, v.floats))
            parts.append(found)
            doubts.append(odd)
        guesses = [*_quotients(v, parts[0], parts[1]), *_quotients(v, parts[2], parts[3])]
        doubts += [_unsure(v, guess) for guess in guesses]
        doubt, gates = _any(b, doubts), []
        for gate, (guess, (x, k)) in enumerate(zip(guesses, sums, strict=True)):
            gates.append(_signed(v, guess, x) if gate == 2 else b.fptrunc(guess, v.singles))
            put("gates", k, b.select(doubt, x, gates[gate]))
        put("c", now, b.fadd(b.fmul(gates[1], c), b.fmul(gates[0], gates[2])))
        return _bits(b, doubt)

    i64 = types.int64
    return i64(s, hw, i64, i64, i64, i64, i64, i64), codegen


@emitted
def lstm_outputs(typing: Any, s: Any, hw: Any, at: Any, place: Any, state: Any, out: Any) -> Any:
    """Do tanh(c) and h of 8 cells as `lstm_gates` does; `at`: of gate o, `out`: of y."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        v = _Numbers(b, LANES)
        load, put = _reader(context, b, v, sig, args)
        _, _, first, kept, now, out = args
        c = load("c", now)
        (above, below), odd = _tanh_parts(v, c)
        guess = b.fdiv(above, below)
        squashed = _signed(v, guess, c)
        h = b.fmul(load("gates", first), squashed)
        for name, where, value in (("squashed", kept, squashed), ("h", now, h), ("y", out, h)):
            put(name, where, value)
        return _bits(b, _any(b, [odd, _unsure(v, guess)]))

    i64 = types.int64
    return i64(s, hw, i64, i64, i64, i64), codegen


def _guess(parts: Any) -> Any:
    def guess(typing: Any, x: Any) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            v, zero = _Numbers(b, 1), ir.Constant(I32, 0)
            given = b.insert_element(ir.Constant(v.floats, ir.Undefined), args[0], zero)
            made = parts(v, given)
            return b.extract_element(b.fdiv(*made), zero)

        return types.float64(types.float64), codegen

    return emitted(guess)


sigmoid_guess, tanh_guess = _guess(_of_sigmoid), _guess(_of_tanh)


@emitted
def unsure(typing: Any, guess: Any) -> Any:
    """Return whether a guess does not tell which of two float32 a positive number rounds to."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        v, zero = _Numbers(b, 1), ir.Constant(I32, 0)
        given = b.insert_element(ir.Constant(v.floats, ir.Undefined), args[0], zero)
        return b.extract_element(_unsure(v, given), zero)

    return types.boolean(types.float64), codegen
