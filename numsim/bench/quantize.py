"""Quantisation with every kind of scale per second on one core, as shares of rates of one run."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.bench.peers import check_repeats, installed
from numsim.kernels import jit
from numsim.quant import Quant, quantize
from numsim.quant.transforms import gptq, rotate

_E2M1 = "float4_e2m1fn"
_FP8 = "E4M3 per tensor"
LONG, TURNED = "float32 by rows", "float32 down columns"
HALF, BRAIN = "float16 by rows", "bfloat16 by rows"


@dataclass(frozen=True)
class Task:
    """What is timed, what it is compared with, and the share of that rate that is aimed at."""

    name: str
    quant: Any
    of: str = ""
    aim: float = 0.0
    layout: str = LONG
    threads: int = 1


def _blocks(name: str, aim: float) -> tuple[Task, ...]:
    """Return a format of blocks in each layout, and on two threads; the aim is that of float32."""
    return (
        Task(name, name, _FP8, aim),
        Task(f"{name} {TURNED}", name, _FP8, aim, TURNED),
        Task(f"{name} {HALF}", name, _FP8, 0.0, HALF),
        Task(f"{name} {BRAIN}", name, _FP8, 0.0, BRAIN),
        Task(f"{name} x2", name, _FP8, 0.0, LONG, 2),
    )


def _choices(name: str) -> tuple[Task, ...]:
    """Return a format of four bits in each layout, beside NVFP4 there."""
    return tuple(
        Task(f"{name}{place}", name, f"nvfp4{place}", 1 / 3, layout)
        for place, layout in (("", LONG), (f" {TURNED}", TURNED), (f" {HALF}", HALF))
    )


def _searches() -> tuple[Task, ...]:
    """Return exact least squares: of every granularity in float32, of blocks in narrow scales."""
    formats = {"int8": "int8", "int4": "int4", "E4M3": "float8_e4m3fn", "E2M1": _E2M1}
    kinds: dict[str, dict[str, Any]] = {
        "": {}, " per token": {"granularity": "per_token"},
        **{f" of {size}": {"block": size} for size in (16, 32, 128)},
    }  # fmt: skip
    scales = {"powers of two": "pow2", "E4M3": "float8_e4m3fn", "UE5M3": "float8_ue5m3"}
    found = [
        (f"{name}{kind}, least squares", Quant(fmt, scale_rule="mse", **how))
        for name, fmt in formats.items() for kind, how in kinds.items()
    ] + [
        (f"{name} of 16, least squares, {label}",
         Quant(fmt, block=16, scale_format=scale, scale_rule="mse"))
        for name, fmt in formats.items() for label, scale in scales.items()
    ]  # fmt: skip
    return tuple(Task(name, quant, _FP8, 0.01) for name, quant in found)


TASKS: tuple[Task, ...] = (
    Task("int8 per tensor", "int8"),
    Task("int8 per token", Quant("int8", "per_token"), "int8 per tensor", 0.6),
    Task(_FP8, "float8_e4m3fn"),
    Task(f"{_FP8} {HALF}", "float8_e4m3fn", _FP8, 0.0, HALF),
    Task(f"{_FP8} x2", "float8_e4m3fn", _FP8, 0.0, LONG, 2),
    Task("E4M3 per token", Quant("float8_e4m3fn", "per_token"), _FP8, 0.6),
    *_blocks("mxfp8_e4m3", 0.38), *_blocks("mxfp4_e2m1", 0.32), *_blocks("nvfp4", 0.32),
    *_blocks("mxint8", 0.38),
    *_choices("nvfp4_4over6"), *_choices("if4"), *_choices("hif4"), *_choices("amdfp4"),
    Task("uint8 with zero point", Quant("uint8", zero_point=True), "int8 per tensor"),
    *_searches(),
)  # fmt: skip


@dataclass(frozen=True)
class QuantizeTiming:
    """The speed of one kind of scale.

    Parameters
    ----------
    task, rate
        What is timed, and its best rate in million values a second.
    of, share, aim
        The task it is compared with, its share of that rate, and the share aimed at, 0: none. Both
        are timed by turns, so that what else the machine does meets both.
    of_copy
        Its share of the rate at which NumPy copies float32.
    """

    task: str
    rate: float
    of: str
    share: float
    aim: float
    of_copy: float


def bench_quantize(
    *, side: int = 2048, repeats: int = 7, tasks: tuple[Task, ...] = TASKS
) -> list[QuantizeTiming]:
    """Time `quantize` of a matrix, rotation beside a copy, and torchao where it is installed.

    Parameters
    ----------
    side
        Rows and columns of the matrix, a multiple of 128.
    repeats
        Calls of which the best counts, after one that does not.
    tasks
        What is timed; what a task is compared with stands before it.

    Returns
    -------
    One `QuantizeTiming` a task.

    Raises
    ------
    NumsimError
        If `repeats` is no positive integer.

    Examples
    --------
    >>> rows = bench_quantize(side=128, repeats=1)
    >>> rows[0].task, rows[1].of
    ('int8 per tensor', 'int8 per tensor')
    """
    check_repeats("bench quantize", repeats)
    x = np.random.default_rng(0).standard_normal((side, side), np.float32)
    arrays: dict[str, Any] = {LONG: x, TURNED: x, HALF: x.astype(np.float16)}
    arrays[BRAIN] = x.astype(ml_dtypes.bfloat16)
    target = np.empty_like(x)

    def call(task: Task) -> Callable[[], object]:
        axis = -2 if task.layout == TURNED else -1

        def work() -> None:
            with jit.using_threads(task.threads):
                quantize(arrays[task.layout], task.quant, axis=axis)

        return work

    calls: dict[str, Callable[[], object]] = {"copy": lambda: np.copyto(target, x)}
    rows = []
    with jit.using_threads(1):
        copy = _rates([calls["copy"]], x.size, repeats)[0]
        for task in tasks:
            calls[task.name] = call(task)
            rows.append(_row(task.name, task.of, task.aim, calls, x.size, repeats, copy))
        calls["Hadamard of 128"] = lambda: rotate(x, block=128)
        for name, of, aim in (("copy", "", 0.0), ("Hadamard of 128", "copy", 0.3)):
            rows.append(_row(name, of, aim, calls, x.size, repeats, copy))
        for name, work in _torchao(x):
            if name in calls:
                calls[f"torchao {name}"] = work
                rows.append(_row(f"torchao {name}", name, 0.0, calls, x.size, repeats, copy))
    return rows


def _torchao(x: NDArray[np.float32]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what torchao, where it is installed, does of the same tasks, on one thread."""
    torch, torchao = installed("torch"), installed("torchao")
    if torch is None or torchao is None:
        return
    mx = importlib.import_module("torchao.prototype.mx_formats.mx_tensor")
    nv = importlib.import_module("torchao.prototype.mx_formats.nvfp4_tensor")
    plain = importlib.import_module("torchao.quantization.quant_primitives")
    tensor, threads = torch.from_numpy(x), torch.get_num_threads()
    block = (1, x.shape[1])

    def int8() -> object:
        scale, zero = plain.choose_qparams_affine(
            tensor, plain.MappingType.SYMMETRIC, block, torch.int8
        )
        return plain.quantize_affine(tensor, block, scale, zero, torch.int8)

    def nvfp4() -> object:
        return nv.nvfp4_quantize(tensor, 16, tensor.abs().max() / (6 * 448))

    torch.set_num_threads(1)
    try:
        yield "int8 per token", int8
        yield "nvfp4", nvfp4
        yield "mxfp4_e2m1", lambda: mx.to_mx(tensor, torch.float4_e2m1fn_x2, 32)
    finally:
        torch.set_num_threads(threads)


def bench_gptq(side: int = 4096) -> float:
    """Return the seconds that GPTQ takes for one layer, on every thread.

    >>> bench_gptq(64) > 0
    True
    """
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((side, side)), rng.standard_normal((side, side))
    start = time.perf_counter()
    gptq(w, x, Quant("int4", block=min(128, side)))
    return time.perf_counter() - start


def _row(
    name: str, of: str, aim: float, calls: dict[str, Callable[[], object]], count: int,
    repeats: int, copy: float,
) -> QuantizeTiming:  # fmt: skip
    rate, *other = _rates([calls[name], *([calls[of]] if of else [])], count, repeats)
    share = rate / other[0] if other else float("nan")
    return QuantizeTiming(name, rate, of, share, aim, rate / copy)


def _rates(calls: list[Callable[[], object]], count: int, repeats: int) -> list[float]:
    """Return the best rates of calls that take turns, in million values a second."""
    best = [float("inf")] * len(calls)
    for turn in range(repeats + 1):
        for i, one in enumerate(calls):
            start = time.perf_counter()
            one()
            if turn:
                best[i] = min(best[i], time.perf_counter() - start)
    return [count / seconds / 1e6 for seconds in best]
