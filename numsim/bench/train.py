"""Training steps beside what they are made of, as ratios of the same run on one thread."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from numsim import nn, train
from numsim.bench.peers import check_repeats
from numsim.errors import UnvalidatedWarning
from numsim.kernels import jit
from numsim.kernels.elementwise.adam import Numbers, adam
from numsim.kernels.elementwise.cells import lstm_cell, lstm_cell_backward
from numsim.models import load_model
from numsim.quant import quantize
from numsim.targets import matmul

BATCH, STEPS, WIDTH, HIDDEN = 32, 64, 64, 64
HOPPER = "nvidia.hopper.wgmma"
CELLS = (
    ("fp8_hybrid", "ideal.fp32"), ("fp8_hybrid", HOPPER), ("int8", "ideal.int"),
    ("float32", "ideal.fp32"), ("mxfp8", "ideal.fp32"),
)  # fmt: skip


@dataclass(frozen=True)
class TrainTiming:
    """Time of one task, and its ratio to what it is compared with in the same run.

    Parameters
    ----------
    task
        What was done.
    milliseconds
        Median of the repetitions, of the processor's time: other programs take no part in it.
    ratio
        See `against`.
    against
        What the ratio is of.
    """

    task: str
    milliseconds: float
    ratio: float
    against: str


def bench_train(*, repeats: int = 5) -> list[TrainTiming]:
    """Time an LSTM step, a Linear's three products, an Adam step and a step of the small Llama.

    Parameters
    ----------
    repeats
        Calls of which the median counts, after one that does not.

    Returns
    -------
    list of TrainTiming

    Raises
    ------
    NumsimError
        If `repeats` is no positive integer.

    Examples
    --------
    >>> sorted({row.task.split()[0] for row in bench_train(repeats=1)})  # doctest: +SKIP
    ['Adam', 'LSTM', 'Linear', 'Llama']
    """
    check_repeats("bench train", repeats)
    with jit.using_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", UnvalidatedWarning)
        return [*_cells(repeats), _linear(repeats), *_adam(repeats), _llama(repeats)]


def print_train(rows: list[TrainTiming]) -> None:
    """Print the rows, one line each."""
    for row in rows:
        print(  # noqa: T201
            f"{row.task:<52} {row.milliseconds:9.2f} ms {row.ratio:7.2f} x {row.against}"
        )


def _median(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return float(np.median(times))


def _medians(
    one: Callable[[], object], other: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Time two works by turns, so that what else the machine does meets both."""
    times = []
    for _ in range(repeats + 1):
        began = time.thread_time()
        one()
        between = time.thread_time()
        other()
        times.append((between - began, time.thread_time() - between))
    first, second = np.median(times[1:], axis=0)
    return float(first), float(second)


def _cells(repeats: int) -> list[TrainTiming]:
    rng = np.random.default_rng(0)
    layer = nn.LSTM(WIDTH, HIDDEN)
    params = nn.init(layer)
    x = rng.normal(size=(BATCH, STEPS, WIDTH)).astype(np.float32)
    up = rng.normal(size=(BATCH, STEPS, HIDDEN)).astype(np.float32) * np.float32(1e-3)
    zeros = np.zeros((BATCH, HIDDEN), np.float32)
    rows = []
    for name, target in CELLS:
        recipe = train.recipe(name, target=target)

        def step(recipe: train.Recipe = recipe) -> None:
            _, tape = nn.forward(layer, params, x, recipe=recipe)
            nn.backward(tape, up, zeros, zeros)

        ours, loop = _medians(step, partial(_by_calls, recipe, params, x, up), 4 * repeats)
        rows.append(TrainTiming(
            f"LSTM 32 x 64 steps, 64 -> 64, {name}, {target}", 1e3 * ours, loop / ours,
            "as fast as a loop of public calls",
        ))  # fmt: skip
    return rows


def _by_calls(recipe: train.Recipe, params: dict[str, Any], x: Any, up: Any) -> None:
    """Do the step by quantize and matmul alone, each operand stored where it is used."""
    rule = recipe.rule("")
    one, two, three = rule.forward, rule.dgrad, rule.wgrad

    def stored(values: Any, quant: Any, axis: int) -> Any:
        return quantize(values, "float32" if quant is None else quant, axis=axis)

    flat = x.reshape(-1, WIDTH)
    w_x = stored(params["weight_ih"], one.weights, -1).T
    w_h = stored(params["weight_hh"], one.weights, -1).T
    xw = matmul(stored(flat, one.activations, -1), w_x, target=one.target)
    xw = xw.reshape(BATCH, STEPS, -1)
    h, c = (np.zeros((BATCH, HIDDEN), np.float32) for _ in range(2))
    states = []
    for t in range(STEPS):
        hw = matmul(stored(h, one.activations, -1), w_h, target=one.target)
        gates = np.empty_like(hw)
        new_c, squashed, new_h = (np.empty_like(c) for _ in range(3))
        lstm_cell(
            xw[:, t], hw, params["bias_ih"], params["bias_hh"], c, gates, new_c, squashed, new_h,
            0, BATCH,
        )  # fmt: skip
        states.append((gates, c, squashed, h))
        h, c = new_h, new_c
    back = stored(params["weight_hh"], two.weights, -2)
    dh, dc = (np.zeros((BATCH, HIDDEN), np.float32) for _ in range(2))
    dgates = np.empty((BATCH, STEPS, 4 * HIDDEN), np.float32)
    for t in reversed(range(STEPS)):
        gates, c, squashed, _ = states[t]
        lstm_cell_backward(dh + up[:, t], dc, gates, c, squashed, dgates[:, t], 0, BATCH)
        g = stored(dgates[:, t], two.activations, -1)
        dh = matmul(g, back, target=two.target)
    every = dgates.reshape(-1, 4 * HIDDEN)
    before = np.stack([s[3] for s in states], axis=1).reshape(-1, HIDDEN)
    w = stored(params["weight_ih"], two.weights, -2)
    matmul(stored(every, two.activations, -1), w, target=two.target)
    for right in (flat, before):
        left = stored(every, three.activations, -2).T
        matmul(left, stored(right, three.weights, -2), target=three.target)


def _linear(repeats: int) -> TrainTiming:
    m, k, n = 512, 768, 3072
    rng = np.random.default_rng(0)
    x, w, g = (rng.normal(size=s).astype(np.float32) for s in ((m, k), (n, k), (m, n)))
    recipe, layer = train.recipe("fp8_hybrid", target=HOPPER), nn.Linear(k, n, bias=False)

    def step() -> None:
        _, tape = nn.forward(layer, {"weight": w}, x, recipe=recipe)
        nn.backward(tape, g)

    a, b = quantize(x, "float8_e4m3fn"), quantize(w, "float8_e4m3fn").T
    product = _median(lambda: matmul(a, b, target=HOPPER), repeats)
    ours = _median(step, repeats)
    return TrainTiming(
        "Linear 512 x 768 -> 3072, three products, FP8 on Hopper", 1e3 * ours,
        3 * product / ours, "of the rate of matmul alone",
    )  # fmt: skip


def _adam(repeats: int) -> list[TrainTiming]:
    size = 1 << 20
    rng = np.random.default_rng(0)
    rule = train.Adam(1e-3, storage=train.recipe("fp8_stored_sr").storage)
    shape = 1024, size // 1024  # a vector would not be stored
    params = rule.start({"w": rng.normal(size=shape).astype(np.float32)})
    state, g = rule.init(params), {"w": rng.normal(size=shape).astype(np.float32)}
    touched = size * (2 + 4 + 16)  # codes and both moments in and out, the gradient in
    source = np.zeros(touched // 2, np.uint8)
    ours, copy = _medians(lambda: rule.step(params, g, state), source.copy, 4 * repeats)
    # What no storage can save: a root, two divisions, and the moments in and out of memory.
    p, up, first, second = (np.ones(shape, np.float32) for _ in range(4))
    one = np.float32(1)
    by = Numbers(one, one, one, one, one, one, np.float32(0.7), one, one)
    least, again = _medians(
        lambda: adam(p, up, first, second, None, by, decays=False), source.copy, 4 * repeats
    )
    against = "of a copy's rate for the bytes it touches"
    return [
        TrainTiming("Adam, 2**20 parameters stored in E4M3 with SR", 1e3 * ours, copy / ours,
                    against),
        TrainTiming("Adam, the update of as many float32 alone", 1e3 * least, again / least,
                    against),
    ]  # fmt: skip


def _llama(repeats: int) -> TrainTiming:
    layer, params = nn.from_model(load_model(train.bundled_model()))
    ids = np.arange(8 * 256).reshape(8, 256) * 37 % 2048
    recipe = train.recipe("fp8_hybrid", target=HOPPER)
    rule = train.AdamW(1e-4)
    state = rule.init(params)

    def step() -> None:
        logits, tape = nn.forward(layer, params, ids[:, :-1], recipe=recipe)
        _, gradient = nn.loss(
            "cross_entropy", logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
        )
        _, grads = nn.backward(tape, gradient.reshape(logits.shape))
        rule.step(params, grads, state)

    spent = 0.0
    whole = _median(step, repeats)
    for _, shape in sorted(_shapes(layer, params, ids[:, :-1], recipe)):
        spent += shape
    return TrainTiming(
        "Llama of 2.4 M, 8 x 255 tokens, FP8 hybrid on Hopper", 1e3 * whole, whole / spent,
        "times its products alone",
    )  # fmt: skip


def _shapes(
    layer: Any, params: dict[str, Any], ids: Any, recipe: train.Recipe
) -> list[tuple[int, float]]:
    """Return the seconds of every product of a step, run again on its own codes."""
    products: Any = import_module("numsim.nn.products")

    calls: list[tuple[Any, Any, Any]] = []
    real = products.matmul

    def noted(a: Any, b: Any, **how: Any) -> Any:
        calls.append((a, b, how))
        return real(a, b, **how)

    products.matmul = noted
    try:
        logits, tape = nn.forward(layer, params, ids, recipe=recipe)
        nn.backward(tape, np.full(logits.shape, 1e-5, np.float32))
    finally:
        products.matmul = real
    found = []
    for at, (a, b, how) in enumerate(calls):
        found.append((at, _median(partial(real, a, b, **how), 3)))
    return found
