"""A step of an LSTM in FP8 by definition: fractions and floats, no kernel of numsim."""

import math
from fractions import Fraction

import numpy as np
import pytest

from numsim import nn, train

FORMATS = {  # name: fraction bits, lowest exponent of a normal number, largest value
    "e4m3": (3, -6, Fraction(448)),
    "e5m2": (2, -14, Fraction(57344)),
}


def f32(x):
    """Round a fraction to the nearest float32, ties to even; x is far from the range's ends."""
    x = Fraction(x)
    if x == 0:
        return Fraction(0)
    e = exponent(x)
    step = Fraction(2) ** (max(e, -126) - 23)
    return round(x / step) * step  # Python rounds fractions half to even


def exponent(x):
    x = abs(Fraction(x))
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def rounded(x, name):
    """Return the nearest value of a format, ties to even, saturated."""
    bits, least, top = FORMATS[name]
    if x == 0:
        return Fraction(0)
    step = Fraction(2) ** (max(exponent(x), least) - bits)
    y = round(Fraction(x) / step) * step
    return max(-top, min(top, y))


def stored(rows, name):
    """Return values of the codes of a matrix and its scale."""
    amax = max(abs(v) for row in rows for v in row)
    if amax == 0:
        return [[Fraction(0)] * len(row) for row in rows], Fraction(1)
    scale = f32(amax / FORMATS[name][2])
    return [[rounded(f32(v / scale), name) for v in row] for row in rows], scale


def chain(terms):
    """Return a sum as ideal.fp32 makes it: the exact product, one rounding a step."""
    total = Fraction(0)
    for a, b in terms:
        total = f32(total + a * b)
    return total


def product(a, b, fa, fb):
    """Return a [M, K] times b [N, K] transposed, both stored."""
    (qa, sa), (qb, sb) = stored(a, fa), stored(b, fb)
    both = f32(sa * sb)
    return [[f32(chain(zip(x, w, strict=True)) * both) for w in qb] for x in qa]


def turned(a):
    return [list(row) for row in zip(*a, strict=True)]


def tanh(x):
    return f32(Fraction(math.tanh(float(x))))


def sigmoid(x):
    return f32(Fraction(1.0 / (1.0 + math.exp(-float(x)))))


def step_back(dh, dc, gates, before, squashed, width):
    """Return the gradient of the sums before the gates, and that of the cell state before."""
    sums, states = [], []
    for b in range(len(dh)):
        i, f, g, o = (gates[b][k * width : (k + 1) * width] for k in range(4))
        di, df, dg, do, dcs = [], [], [], [], []
        for j in range(width):
            t, up = squashed[b][j], dh[b][j]
            whole = f32(dc[b][j] + f32(f32(up * o[j]) * f32(1 - f32(t * t))))
            di.append(f32(f32(whole * g[j]) * f32(i[j] * f32(1 - i[j]))))
            df.append(f32(f32(whole * before[b][j]) * f32(f[j] * f32(1 - f[j]))))
            dg.append(f32(f32(whole * i[j]) * f32(1 - f32(g[j] * g[j]))))
            do.append(f32(f32(up * t) * f32(o[j] * f32(1 - o[j]))))
            dcs.append(f32(whole * f[j]))
        sums.append(di + df + dg + do)
        states.append(dcs)
    return sums, states


def fractions(x):
    return [[Fraction(float(v)) for v in row] for row in x]


def floats(x):
    return np.array([[float(v) for v in row] for row in x], np.float32)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_steps_of_an_lstm_and_back(seed):
    batch, inputs, width = 2, 3, 2
    rng = np.random.default_rng(seed)
    layer = nn.LSTM(inputs, width)
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in nn.param_shapes(layer).items()}
    x = rng.normal(size=(batch, 2, inputs)).astype(np.float32)
    h0, c0, uh, uc = (rng.normal(size=(batch, width)).astype(np.float32) for _ in range(4))
    uy = rng.normal(size=(batch, 2, width)).astype(np.float32)
    (y, h, c), tape = nn.forward(layer, params, x, h0, c0, recipe=train.recipe("fp8_hybrid"))
    (dx, dh0, dc0), grads = nn.backward(tape, uy, uh, uc)

    w, u = fractions(params["weight_ih"]), fractions(params["weight_hh"])
    bx, bh = fractions([params["bias_ih"], params["bias_hh"]])
    every = fractions(x.reshape(-1, inputs))  # [B T, K]: one product over all steps
    (qx, sx), (qw, sw) = stored(every, "e4m3"), stored(w, "e4m3")
    both = f32(sx * sw)
    xw = [[f32(chain(zip(a, b, strict=True)) * both) for b in qw] for a in qx]
    hs, cs, kept = [fractions(h0)], [fractions(c0)], []
    for t in range(2):
        hw = product(hs[-1], u, "e4m3", "e4m3")
        gates, cells, squashed, out = [], [], [], []
        for b in range(batch):
            row = []
            for j in range(4 * width):
                v = f32(f32(xw[2 * b + t][j] + bx[j]) + f32(hw[b][j] + bh[j]))
                row.append(tanh(v) if 2 * width <= j < 3 * width else sigmoid(v))
            i, f, g, o = (row[k * width : (k + 1) * width] for k in range(4))
            cell = [f32(f32(f[j] * cs[-1][b][j]) + f32(i[j] * g[j])) for j in range(width)]
            gates.append(row)
            cells.append(cell)
            squashed.append([tanh(v) for v in cell])
            out.append([f32(o[j] * squashed[b][j]) for j in range(width)])
        kept.append((gates, squashed))
        hs.append(out)
        cs.append(cells)
    for t in range(2):
        np.testing.assert_array_equal(y[:, t], floats(hs[t + 1]))
    np.testing.assert_array_equal(h, floats(hs[-1]))
    np.testing.assert_array_equal(c, floats(cs[-1]))

    dh, dc, sums = fractions(uh), fractions(uc), [None, None]
    for t in (1, 0):
        up = fractions(uy[:, t])
        dh = [[f32(a + b) for a, b in zip(r, s, strict=True)] for r, s in zip(dh, up, strict=True)]
        gates, squashed = kept[t]
        sums[t], dc = step_back(dh, dc, gates, cs[t], squashed, width)
        dh = product(sums[t], turned(u), "e5m2", "e4m3")
    np.testing.assert_array_equal(dh0, floats(dh))
    np.testing.assert_array_equal(dc0, floats(dc))
    flat = [sums[t][b] for b in range(batch) for t in range(2)]
    states = [hs[t][b] for b in range(batch) for t in range(2)]
    back = floats(product(flat, turned(w), "e5m2", "e4m3"))
    np.testing.assert_array_equal(dx.reshape(-1, inputs), back)
    for name, right in (("weight_ih", every), ("weight_hh", states)):
        want = product(turned(flat), turned(right), "e5m2", "e4m3")
        np.testing.assert_array_equal(grads[name], floats(want))
    bias = [float(np.float32(sum(float(row[j]) for row in flat))) for j in range(4 * width)]
    np.testing.assert_array_equal(grads["bias_ih"], np.float32(bias))
    np.testing.assert_array_equal(grads["bias_hh"], np.float32(bias))
