"""Updates of parameters that are kept in a format, against hand computations in fractions."""

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest

import numsim as ns
from numsim import nn, train
from numsim.errors import NumsimError
from numsim.kernels.jit import using_threads
from numsim.nn.draws import stream_key
from numsim.quant import Quant

F32 = np.float32


def grid(name):
    """Return all magnitudes of a format, exactly."""
    if name == "q3.4":
        return [Fraction(i, 16) for i in range(129)]  # 8.0 is below zero only
    if name == "int8":
        return [Fraction(i) for i in range(128)]
    bits, bias, top = {"e4m3": (3, 7, Fraction(448)), "e5m2": (2, 15, Fraction(57344))}[name]
    found = set()
    for e in range(32):
        for f in range(1 << bits):
            one = Fraction(f, 1 << bits) + (1 if e else 0)
            found.add(one * Fraction(2) ** (max(e, 1) - bias))
    return sorted(v for v in found if v <= top)


def hand(q, name, draw=None, bits=None):
    """Return the value that a quotient is stored as: nearest even, or up where a draw carries."""
    values = grid(name)
    m = abs(Fraction(q))
    top = values[-1]
    if name == "q3.4" and q > 0:
        top = Fraction(127, 16)
    if m >= top:
        return math.copysign(float(top), q)
    low = max(v for v in values if v <= m)
    high = min(v for v in values if v > m)
    f = (m - low) / (high - low)
    if draw is None:
        even = values.index(low) % 2 == 0
        up = f > Fraction(1, 2) or (f == Fraction(1, 2) and not even)
    else:
        up = int(f * 2**bits) + draw >= 2**bits
    return math.copysign(float(high if up else low), q)


FORMATS = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2", "int8": "int8", "q3.4": "q3.4"}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rounding", ["rne", "sr"])
@pytest.mark.parametrize("bits", [3, 8, 13])
def test_a_kept_scale(name, rounding, bits):
    rng = np.random.default_rng(bits)
    scale = F32(1.0 if name == "q3.4" else 0.0625)
    quant = Quant(FORMATS[name], "none" if name == "q3.4" else "per_tensor", rounding=rounding)
    start = rng.uniform(-6, 6, size=40).astype(F32)
    codes = ns.encode(start / scale, FORMATS[name])
    w = ns.QTensor.from_codes(codes, FORMATS[name], scale=None if name == "q3.4" else scale)
    lr = 0.3
    opt = train.SGD(lr, storage=quant, keep_scale=True,
                    random_bits=bits if rounding == "sr" else None)  # fmt: skip
    params, state = {"w": w}, opt.init({"w": w})
    for _ in range(4):
        g = rng.normal(size=40).astype(F32)
        g[:4] *= F32(1000)  # beyond the largest value
        draws = rng.integers(0, 1 << bits, size=40, dtype=np.uint32)
        old = params["w"].dequantize()
        random = {"w": draws} if rounding == "sr" else None
        params, state = opt.step(params, {"w": g}, state, random=random)
        p = old - F32(lr) * g
        want = [
            hand(Fraction(float(v)) / Fraction(float(scale)), name,
                 *((int(r), bits) if rounding == "sr" else ()))
            for v, r in zip(p, draws, strict=True)
        ]  # fmt: skip
        got = params["w"].dequantize().astype(np.float64) / float(scale)
        np.testing.assert_array_equal(got, want)
        assert params["w"].scale is None or params["w"].scale == scale
    assert state.step == 4


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "int8"])
@pytest.mark.parametrize("rounding", ["rne", "sr"])
def test_a_scale_of_each_step(name, rounding):
    rng = np.random.default_rng(1)
    top = {"e4m3": 448, "e5m2": 57344, "int8": 127}[name]
    opt = train.SGD(0.1, storage=Quant(FORMATS[name], rounding=rounding))
    params = opt.start({"w": rng.normal(size=(5, 6)).astype(F32)})
    state = opt.init(params)
    for _ in range(3):
        g = rng.normal(size=(5, 6)).astype(F32)
        draws = rng.integers(0, 1 << 16, size=(5, 6)).astype(np.uint16)
        old = params["w"].dequantize()
        random = {"w": draws} if rounding == "sr" else None
        params, state = opt.step(params, {"w": g}, state, random=random)
        p = old - F32(0.1) * g
        scale = F32(np.abs(p).max() / F32(top))
        assert params["w"].scale == scale
        want = [
            hand(float(F32(v / scale)), name, *((int(r), 16) if rounding == "sr" else ()))
            for v, r in zip(p.ravel(), draws.ravel(), strict=True)
        ]
        values = ns.decode(params["w"].codes, FORMATS[name]).ravel()
        np.testing.assert_array_equal(values.astype(np.float64), want)


def test_a_master_copy_takes_updates_that_its_format_loses():
    w = np.ones((1, 4), F32)
    quant = Quant("float8_e4m3fn", "none")
    for master, want in ((False, 1.0), (True, 1.5)):
        opt = train.SGD(1.0, storage=quant, master=master)
        params, state = opt.start({"w": w}), opt.init({"w": w})
        for _ in range(16):
            params, state = opt.step(params, {"w": np.full((1, 4), -1 / 32, F32)}, state)
        np.testing.assert_array_equal(params["w"].dequantize(), want)
        if master:
            np.testing.assert_array_equal(state.slots["w"]["master"], F32(1.5))


def test_the_stall_and_its_cure():
    """E4M3 has a step of 1/8 above 1: +1/64 is a quarter of half of it."""
    for rounding in ("rne", "sr"):
        quant = Quant("float8_e4m3fn", "none", rounding=rounding)
        opt = train.SGD(1.0, storage=quant, keep_scale=True, seed=3)
        params = {"w": ns.QTensor.from_codes(np.full(4096, 56, np.uint8), "float8_e4m3fn")}
        state = opt.init(params)
        for _ in range(64):
            params, state = opt.step(params, {"w": np.full(4096, -1 / 64, F32)}, state)
        values = params["w"].dequantize().astype(np.float64)
        if rounding == "rne":
            assert set(params["w"].codes) == {56}
            continue
        # The walk by hand: the same draws, whole numbers
        eighths = np.full(4096, 8)
        for t in range(1, 65):
            key = hashlib.blake2s(f"3:w:storage:{t}".encode(), digest_size=4).digest()
            p = (eighths / 8 + 1 / 64).astype(F32)
            drawn = ns.encode(p, "float8_e4m3fn", rounding="sr",
                              seed=int.from_bytes(key, "little"))  # fmt: skip
            eighths = (ns.decode(drawn, "float8_e4m3fn") * 8).astype(np.int64)
        np.testing.assert_array_equal(values, eighths / 8)
        # one step of 1/8 (1/4 from 2 on) with probability 1/8 (1/16): variance below 64 / 256
        assert abs(values.mean() - 2.0) < 5 * 0.5 / 64


@pytest.mark.parametrize("storage", ["float8_e4m3fn", "int8", "q3.4"])
def test_draws_depend_on_seed_name_step_and_element_alone(storage):
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=(3, 50)).astype(F32) for _ in range(2))
    g = {"a": rng.normal(size=(3, 50)).astype(F32), "b": rng.normal(size=(3, 50)).astype(F32)}
    quant = Quant(storage, "none", rounding="sr")

    def after(seed, names, steps):
        opt = train.SGD(0.3, storage=quant, seed=seed)
        params = opt.start({n: {"a": a, "b": b}[n] for n in names})
        state = opt.init(params)
        for _ in range(steps):
            params, state = opt.step(params, g, state)
        return {n: p.codes for n, p in params.items()}

    both, turned, alone = after(1, "ab", 3), after(1, "ba", 3), after(1, "a", 3)
    np.testing.assert_array_equal(both["a"], turned["a"])
    np.testing.assert_array_equal(both["a"], alone["a"])
    assert np.any(both["a"] != after(2, "ab", 3)["a"])
    # the same parameter under another name, and at another step, draws anew
    opt = train.SGD(0.3, storage=quant)
    stored = opt.start({"a": a})["a"]
    one, _ = opt.step({"a": stored, "c": stored}, {"a": g["a"], "c": g["a"]},
                      opt.init({"a": stored, "c": stored}))  # fmt: skip
    later, _ = opt.step({"a": stored}, {"a": g["a"]}, train.State(7, {"a": {}}))
    assert np.any(one["a"].codes != one["c"].codes)
    assert np.any(one["a"].codes != later["a"].codes)
    row, gradient = a.reshape(1, -1), g["a"].reshape(1, -1)
    flat, _ = opt.step(opt.start({"a": row}), {"a": gradient}, opt.init({"a": row}))
    np.testing.assert_array_equal(flat["a"].codes, one["a"].codes.reshape(1, -1))


def test_vectors_stay_float32():
    opt = train.SGD(0.3, storage="int8")
    kept = opt.start({"w": np.ones((2, 2), F32), "b": np.ones(2, F32)})
    assert isinstance(kept["w"], ns.QTensor)
    after, _ = opt.step(kept, {"w": np.ones((2, 2)), "b": np.ones(2)}, opt.init(kept))
    np.testing.assert_array_equal(after["b"], F32(1) - F32(0.3))


def test_moments_in_a_format():
    rng = np.random.default_rng(4)
    w, g = (rng.normal(size=30).astype(F32) for _ in range(2))
    quant = Quant("float8_e5m2")
    opt = train.Adam(0.1, moments=quant)
    state = opt.init({"w": w})
    p, first, second = w, np.zeros(30, F32), np.zeros(30, F32)
    params = {"w": w}
    for t in (1, 2, 3):
        params, state = opt.step(params, {"w": g}, state)
        first = F32(0.9) * first + F32(1 - 0.9) * g
        second = F32(0.999) * second + F32(1 - 0.999) * (g * g)
        root = np.sqrt(second) / F32(math.sqrt(1 - 0.999**t)) + F32(1e-8)
        p = p - F32(0.1 / (1 - 0.9**t)) * (first / root)
        first, second = (ns.quantize(v, quant).dequantize() for v in (first, second))
        np.testing.assert_array_equal(params["w"], p)
        np.testing.assert_array_equal(state.slots["w"]["first"].dequantize(), first)
        np.testing.assert_array_equal(state.slots["w"]["second"].dequantize(), second)


def test_float64_stays_float64_and_float32_rounds_each_operation():
    g = np.array([0.1, -3.0])
    for dtype in (np.float64, F32):
        w = np.array([1.0, 2.0], dtype)
        opt = train.SGD(0.3, momentum=0.7, dampening=0.2, weight_decay=0.01)
        params, state = {"w": w}, opt.init({"w": w})
        p, buffer = w, None
        for _ in range(3):
            params, state = opt.step(params, {"w": g.astype(dtype)}, state)
            d = g.astype(dtype) + dtype(0.01) * p
            buffer = d if buffer is None else dtype(0.7) * buffer + dtype(1 - 0.2) * d
            p = p - dtype(0.3) * buffer
            assert params["w"].dtype == dtype
            np.testing.assert_array_equal(params["w"], p)
    assert np.array_equal(w, np.array([1.0, 2.0], F32))  # what came is not changed


BAD = {
    "lr": lambda: train.SGD(0.0),
    "negative lr": lambda: train.Adam(-1e-3),
    "lr NaN": lambda: train.Adam(math.nan),
    "lr True": lambda: train.SGD(True),
    "nesterov": lambda: train.SGD(0.1, nesterov=True),
    "nesterov and dampening": lambda: train.SGD(0.1, 0.9, 0.1, True),
    "momentum": lambda: train.SGD(0.1, -0.1),
    "betas": lambda: train.Adam(betas=(0.9, 1.0)),
    "one beta": lambda: train.Adam(betas=0.9),
    "eps": lambda: train.Adam(eps=-1.0),
    "decay": lambda: train.AdamW(weight_decay=-1),
    "bits": lambda: train.SGD(0.1, storage="int8", random_bits=0),
    "seed": lambda: train.SGD(0.1, seed=-1),
    "master alone": lambda: train.SGD(0.1, master=True),
    "storage": lambda: train.SGD(0.1, storage="int99"),
    "no dict": lambda: train.SGD(0.1).init([1.0]),
    "missing": lambda: step(train.SGD(0.1), {}),
    "shape": lambda: step(train.SGD(0.1), {"w": np.ones(3)}),
    "not finite": lambda: step(train.SGD(0.1), {"w": np.array([1.0, np.inf])}),
    "adam, eps 0": lambda: step(train.Adam(0.1, eps=0.0), {"w": np.array([1e-200, 1.0])}),
    "state": lambda: train.Adam().step({"w": np.ones(2)}, {"w": np.ones(2)},
                                       train.SGD(0.1).init({"w": np.ones(2)})),
    "state of others": lambda: train.SGD(0.1).step({"w": np.ones(2)}, {"w": np.ones(2)},
                                                   train.SGD(0.1).init({"v": np.ones(2)})),
    "stored without storage": lambda: train.SGD(0.1).step(
        {"w": ns.quantize([1.0], "int8")}, {"w": np.ones(1)},
        train.SGD(0.1).init({"w": np.ones(1)})),
    "store": lambda: train.store([1.0], [1.0]),
    "store shape": lambda: train.store([1.0], ns.quantize([1.0, 2.0], "int8")),
    "store blocks": lambda: train.store(np.ones((2, 32)), ns.quantize(np.ones((2, 32)),
                                                                     "mxfp8_e4m3")),
    "store NaN": lambda: train.store([np.nan], ns.quantize([1.0], "int8")),
    "bits of blocks": lambda: blocks(),
}  # fmt: skip


def step(opt, grads):
    params = {"w": np.ones(2)}
    return opt.step(params, grads, opt.init(params))


def blocks():
    opt = train.SGD(0.1, storage=Quant("float8_e4m3fn", block=32, rounding="sr"), random_bits=4)
    params = opt.start({"w": np.ones((2, 32), F32)})
    return opt.step(params, {"w": np.ones((2, 32), F32)}, opt.init(params))


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    with pytest.raises(NumsimError) as caught:
        BAD[what]()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [
    lambda: train.LossScale("x"), lambda: train.LossScale(0.0), lambda: train.LossScale(math.nan),
    lambda: train.LossScale(True), lambda: train.LossScale(growth=0.5),
    lambda: train.LossScale(backoff=0.0), lambda: train.LossScale(interval=0),
    lambda: train.DelayedScaling("e4m3", history=0),
    lambda: train.DelayedScaling("e4m3", margin=1.5),
    lambda: train.DelayedScaling("e4m3", reduce="mean"),
    lambda: train.DelayedScaling("e4m3", zero_amax="no"), lambda: train.DelayedScaling("e4m9"),
    lambda: train.DelayedScaling("e4m3").quantize([np.nan], train.DelayedScaling("e4m3").init()),
    lambda: train.hadamard(np.ones((2, 6)), np.ones(4)),
    lambda: train.hadamard(np.ones(3), np.ones(3)),
    lambda: train.hadamard(np.ones(4), [1, 1, 1, 2]), lambda: train.hadamard(1.0, [1]),
    lambda: train.to_int8([1.5]), lambda: train.to_int8([1], bits=0),
    lambda: train.to_int8(np.array([2**63 + 5], np.uint64)),
    lambda: train.to_int8(np.array([-(2**63)])), lambda: train.to_int8([1], random=[1, 2]),
    lambda: train.to_int8([1], random=[0.5]), lambda: train.integer_update([1], [1, 2], bits=2),
    lambda: train.integer_update([-128], [1], bits=2),
])  # fmt: skip
def test_bad_scales_and_integers(bad):
    with pytest.raises(NumsimError):
        bad()


def test_loss_scale_by_hand():
    rule = train.LossScale(init=8.0, growth=4.0, backoff=0.25, interval=2)
    state, seen = rule.init(), []
    for finite in (True, True, True, False, True, True, False, False):
        seen.append((float(state.scale), state.finite_steps))
        state = rule.update(state, finite=finite)
    assert seen == [(8, 0), (8, 1), (32, 0), (32, 1), (8, 0), (8, 1), (32, 0), (8, 0)]
    assert float(state.scale) == 2.0
    top = train.LossScale(init=2.0**126, growth=2.0**63, interval=1)
    assert np.isfinite(top.update(top.init(), finite=True).scale)


@pytest.mark.parametrize("zero_amax", ["skip", "keep"])
@pytest.mark.parametrize("reduce", ["max", "most_recent"])
def test_delayed_scaling_by_hand(zero_amax, reduce):
    rule = train.DelayedScaling("e5m2", history=3, margin=2, reduce=reduce, zero_amax=zero_amax)
    state, window, multiplier = rule.init(), [], F32(1)
    for x in ([4.0, -8.0], [0.0, 0.0], [1e-40, 0.0], [100.0], [3.0], [0.0], [0.5], [2e5]):
        q, state = rule.quantize(np.float32(x), state)
        with np.errstate(over="ignore"):
            want = ns.encode(F32(x) * multiplier, "float8_e5m2")
        np.testing.assert_array_equal(q.codes, want)
        assert q.scale == F32(1) / multiplier
        amax = F32(np.abs(F32(x)).max())
        if amax or zero_amax == "keep":
            window = [amax, *window][:3]
            a = max(window) if reduce == "max" else window[0]
            if a:
                with np.errstate(over="ignore"):
                    multiplier = min(F32(F32(57344 / 4) / a), np.finfo(F32).max)
        assert state.multiplier == multiplier


def test_integers_by_hand():
    rng = np.random.default_rng(5)
    for size in (1, 100, 10**6, 2**31 - 1):
        acc = rng.integers(-size, size, size=300, endpoint=True)
        for bits, drawn in ((7, None), (3, None), (7, "r"), (2, "r")):
            shift = max(0, int(np.abs(acc).max()).bit_length() - bits)
            r = rng.integers(0, 2**40, size=300) if drawn else None
            codes, got = train.to_int8(acc, bits=bits, random=r)
            assert got == shift
            want = []
            for i, a in enumerate(acc.tolist()):
                whole, rest = divmod(abs(a), 2**shift)
                if drawn:
                    up = rest + int(r[i]) % 2**shift >= 2**shift if shift else False
                else:
                    up = 2 * rest > 2**shift or (2 * rest == 2**shift and whole % 2)
                want.append(math.copysign(1, a) * min(127, whole + int(up)))
            np.testing.assert_array_equal(codes, want)
            w = rng.integers(-127, 128, size=300)
            new, _ = train.integer_update(w, acc, bits=bits, random=r)
            if bits < 7:
                np.testing.assert_array_equal(new, np.clip(w - np.array(want), -127, 127))


def test_adam_and_adamw_in_plain_python():
    rng = np.random.default_rng(6)
    grads = rng.normal(size=(6, 3))
    grads[:, 1] = 0.0
    for kind in (train.Adam, train.AdamW):
        for decay, largest in ((0.0, False), (0.1, False), (0.1, True)):
            opt = kind(0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=decay, amsgrad=largest)
            start = np.array([1.0, -2.0, 0.5])
            params, state = {"w": start}, opt.init({"w": start})
            p, m, v, top = start.tolist(), [0.0] * 3, [0.0] * 3, [0.0] * 3
            for t in range(1, 7):
                params, state = opt.step(params, {"w": grads[t - 1]}, state)
                for i in range(3):
                    g = float(grads[t - 1, i])
                    if kind is train.AdamW:
                        p[i] *= 1 - 0.02 * decay
                    else:
                        g += decay * p[i]
                    m[i] = 0.8 * m[i] + 0.2 * g
                    v[i] = 0.95 * v[i] + 0.05 * g * g
                    top[i] = max(top[i], v[i]) if largest else v[i]
                    root = math.sqrt(top[i] / (1 - 0.95**t)) + 1e-6
                    p[i] -= 0.02 * m[i] / (1 - 0.8**t) / root
                np.testing.assert_allclose(params["w"], p, rtol=1e-12)


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2", "int8", "int4", "q3.4"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_scale_of_stochastic_storage_is_that_of_the_whole_tensor(fmt, sign):
    values = sign * np.array([[0.3, -1.7], [0.0, 1.1]], np.float32)
    opt = train.SGD(1.0, storage=ns.Quant(fmt, rounding="sr"))
    params = opt.start({"w": values})
    new, _ = opt.step(params, {"w": 0 * values}, opt.init(params))
    want = ns.quantize(params["w"].dequantize(), ns.Quant(fmt))
    np.testing.assert_array_equal(new["w"].dequantize(), want.dequantize())
    if want.scale is not None:
        np.testing.assert_array_equal(new["w"].scale, want.scale)
        assert new["w"].scale.shape == want.scale.shape


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("cls", [train.Adam, train.AdamW])
def test_adam_in_one_pass_rounds_every_operation_once(cls, amsgrad, dtype):
    rng = np.random.default_rng(0)
    p, g = (np.exp(rng.normal(size=(3, 1100)) * 4).astype(dtype) for _ in range(2))
    g[0, :2], p[0, :2] = 0, -0.0
    opt = cls(1e-2, weight_decay=0.1, amsgrad=amsgrad)
    params, state = {"w": p}, opt.init({"w": p})
    m, v, top = (np.zeros_like(p) for _ in range(3))
    for t in (1, 2):
        up = g if t == 1 else -g[::-1] / dtype(3)
        params, state = opt.step(params, {"w": up}, state)
        decoupled = cls is train.AdamW
        p = p * dtype(1 - 1e-2 * 0.1) if decoupled else p
        up = up if decoupled else up + dtype(0.1) * p
        m = dtype(0.9) * m + dtype(1 - 0.9) * up
        v = dtype(0.999) * v + dtype(1 - 0.999) * (up * up)
        top = np.maximum(top, v) if amsgrad else v
        root = np.sqrt(top) / dtype(math.sqrt(1 - 0.999**t)) + dtype(1e-8)
        p = p - dtype(1e-2 / (1 - 0.9**t)) * (m / root)
        np.testing.assert_array_equal(params["w"], p)
        np.testing.assert_array_equal(state.slots["w"]["second"], v)


OPT = train.SGD(0.1, momentum=0.9)
W = {"w": np.ones((2, 3), np.float32)}


@pytest.mark.parametrize("wrong", [
    lambda: train.SGD(0.1, storage="mxfp8_e4m3", keep_scale=True),
    lambda: OPT.init([1.0]), lambda: OPT.start(None), lambda: OPT.step([1.0], W, OPT.init(W)),
    lambda: OPT.step(W, W["w"], OPT.init(W)), lambda: OPT.step(W, W, None),
    lambda: OPT.step(W, W, OPT.init(W), random=np.ones(3)),
    lambda: OPT.step(W, {"w": W["w"] * 1j}, OPT.init(W)), lambda: OPT.init({"w": "a"}),
    lambda: train.store(np.ones(2) * 1j, ns.quantize(np.ones(2), "int8")),
    lambda: train.store(["a", "b"], ns.quantize(np.ones(2), "int8")),
    lambda: train.DelayedScaling("e4m3").quantize([1.0, 2j], train.DelayedScaling("e4m3").init()),
    lambda: train.DelayedScaling("e4m3").quantize([1.0], None),
    lambda: train.DelayedScaling("e4m3", reduce=np.ones(2)), lambda: train.LossScale(init=np.inf),
    lambda: train.hadamard([[1.0, 2.0], [3.0]], [1, 1]), lambda: train.recipe(np.ones(2)),
    lambda: train.Rule(source=np.ones(2)),
    lambda: train.SGD(0.1, storage="int8", master="no"), lambda: train.SGD(0.1, keep_scale=2),
    lambda: train.SGD(0.1, momentum=0.9, nesterov=np.ones(2)), lambda: train.Adam(amsgrad="no"),
    lambda: train.LossScale().update(None, finite=True),
    lambda: train.LossScale().update(train.LossScale().init(), finite=np.ones(2)),
    lambda: train.store([1.0, 2.0], ns.quantize(np.ones(2), "int8"), rounding=np.ones(2)),
    lambda: train.Adam(storage="e4m3").start({"w": [[1.0], [1.0, 2.0]]}),
    lambda: OPT.init({"w": [[1.0], [1.0, 2.0]]}),
    lambda: train.Adam(storage="e4m3").start({"w": [["a", "b"]]}),
    lambda: train.Adam(storage="e4m3").start({"w": np.ones((2, 2), complex)}),
])  # fmt: skip
def test_wrong_types_are_one_sentence(wrong):
    with pytest.raises(NumsimError) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_the_other_byte_order_gives_the_same_bits():
    rng = np.random.default_rng(0)
    x, t, w = rng.normal(size=(4, 3)), rng.random((4, 3)), rng.normal(size=(2, 3))
    for kind in ("f4", "f8"):
        for loss in ("mse", "bce_with_logits"):
            one = nn.loss(loss, x.astype(f"<{kind}"), t.astype(f"<{kind}"))
            other = nn.loss(loss, x.astype(f">{kind}"), t.astype(f">{kind}"))
            assert one[0] == other[0]
            np.testing.assert_array_equal(one[1], other[1])
            assert one[1].dtype == other[1].dtype == np.dtype(kind)
        given = [{"w": w.astype(order + kind)} for order in "<>"]
        found = [OPT.step(p, p, OPT.init(p))[0]["w"] for p in given]
        np.testing.assert_array_equal(*found)
        assert found[0].dtype == found[1].dtype == np.dtype(kind)


def test_adam_in_float32_divides_by_the_root_exactly():
    """Roots next to a middle of two quotients, where a product in float32 would round wrong."""
    from numsim.kernels.elementwise.adam import Numbers, adam

    rng = np.random.default_rng(0)
    for _ in range(40):
        root = np.float32(rng.uniform(1e-4, 1.0))
        middles = (rng.integers(1 << 23, 1 << 24, 4096) * 2 + 1) * 2.0**-24  # 25 bits, the last odd
        s = (middles * np.float64(root)).astype(np.float32)
        v = (s.astype(np.float64) ** 2).astype(np.float32)
        ones, zeros = np.ones_like(v), np.zeros_like(v)
        f = np.float32
        by = Numbers(f(1), f(0), f(1), f(0), f(1), f(0), root, f(1e-8), f(1))
        value = adam(zeros, zeros, ones, v, None, by, decays=False)[0]
        np.testing.assert_array_equal(value, -(ones / (np.sqrt(v) / root + f(1e-8))))


@pytest.mark.parametrize("size", [1, 63, 70_000, 140_001])
@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2", "int8", "q3.4", "float4_e2m1fn"])
@pytest.mark.parametrize("how", [{}, {"rounding": "sr", "seed": 7}, {"rounding": "sr", "seed": 7,
                                      "offset": 11, "random_bits": 9}])  # fmt: skip
def test_store_encodes_the_quotient(fmt, size, how):
    rng = np.random.default_rng(size)
    values = (rng.normal(size=size) * 2.0 ** rng.integers(-20, 4, size)).astype(np.float32)
    scale = np.float32(0.37)
    into = ns.QTensor.from_codes(np.zeros(size, ns.get_format(fmt).code_dtype), fmt, scale=scale)
    want = ns.encode(values / scale, fmt, **how)
    if fmt == "int8":
        want = np.maximum(want, np.int8(-127))
    assert np.array_equal(train.store(values, into, **how).codes, want)
    with using_threads(2):
        assert np.array_equal(train.store(values, into, **how).codes, want)


def test_store_names_the_first_nan_of_the_whole_tensor():
    into = ns.QTensor.from_codes(np.zeros(200_000, np.int8), "int8", scale=1.0)
    values = np.zeros(200_000, np.float32)
    values[131_077] = np.nan
    with pytest.raises(ns.NumsimError, match=r"1 of 200000 .* index \(131077,\)"):
        train.store(values, into, rounding="sr", seed=1)


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "int8"])
def test_adam_decodes_stored_codes_on_the_way(fmt):
    """The same bits as from the parameter's values, and the scale of the largest element."""
    rng = np.random.default_rng(3)
    shape = (37, 61)
    opt = train.AdamW(0.01, weight_decay=0.1, storage=ns.Quant(fmt, "per_tensor", rounding="sr"))
    params = opt.start({"w": rng.normal(size=shape).astype(np.float32)})
    plain = train.AdamW(0.01, weight_decay=0.1)
    state, by_values = opt.init(params), plain.init({"w": params["w"].dequantize()})
    g = {"w": rng.normal(size=shape).astype(np.float32)}
    values, _ = plain.step({"w": params["w"].dequantize()}, g, by_values)
    made, after = opt.step(params, g, state)
    most = np.abs(values["w"]).max()
    scale = ns.quantize(np.reshape(most, (1, 1)), ns.Quant(fmt, "per_tensor")).scale
    assert np.array_equal(made["w"].scale, scale)
    assert np.array_equal(after.slots["w"]["first"], _first(plain, params, g, by_values))
    key = stream_key(opt.seed, "w", "storage", 1)
    assert np.array_equal(
        made["w"].codes,
        train.store(values["w"], made["w"], rounding="sr", seed=key).codes,
    )


def _first(opt, params, g, state):
    return opt.step({"w": params["w"].dequantize()}, g, state)[1].slots["w"]["first"]


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adam_names_a_step_that_is_not_finite(bad, dtype):
    opt = train.Adam(0.1)
    p = {"w": np.ones((3, 700), dtype)}
    g = {"w": np.zeros((3, 700), dtype)}
    g["w"][1, 650] = bad
    with pytest.raises(ns.NumsimError, match=r"step 1, w, Adam.*1 of 2100"):
        opt.step(p, g, opt.init(p))


def test_adam_of_no_elements_and_of_minus_zero():
    opt = train.Adam(0.1)
    for value in (np.ones((0, 4), np.float32), np.full((2, 2), -0.0, np.float32)):
        made, _ = opt.step({"w": value}, {"w": np.zeros_like(value)}, opt.init({"w": value}))
        assert made["w"].shape == value.shape
