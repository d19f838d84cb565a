"""Quantisation with every kind of scale per second on one core, as shares of rates of one run."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.bench.peers import installed
from numsim.kernels import jit
from numsim.quant import Quant, quantize
from numsim.quant.transforms import gptq, rotate

_E2M1 = "float4_e2m1fn"
# what is timed, what it is compared with, and the share of that rate that is aimed at
_TASKS: tuple[tuple[str, Any, str, float], ...] = (
    ("int8 per tensor", "int8", "", 0.0),
    ("int8 per token", Quant("int8", "per_token"), "int8 per tensor", 0.6),
    ("E4M3 per tensor", "float8_e4m3fn", "", 0.0),
    ("E4M3 per token", Quant("float8_e4m3fn", "per_token"), "E4M3 per tensor", 0.6),
    ("nvfp4", "nvfp4", "", 0.0),
    ("nvfp4_4over6", "nvfp4_4over6", "nvfp4", 1 / 3),
    ("if4", "if4", "nvfp4", 1 / 3),
    ("hif4", "hif4", "nvfp4", 1 / 3),
    ("amdfp4", "amdfp4", "nvfp4", 1 / 3),
    ("mxfp4_e2m1", "mxfp4_e2m1", "", 0.0),
    ("uint8 with zero point", Quant("uint8", zero_point=True), "int8 per tensor", 0.0),
    ("int8, least squares", Quant("int8", scale_rule="mse"), "int8 per tensor", 0.01),
    ("int4, least squares", Quant("int4", scale_rule="mse"), "int8 per tensor", 0.01),
    ("int8 of 32, least squares", Quant("int8", block=32, scale_rule="mse"), "int8 per tensor",
     0.01),
    ("E2M1 of 32, least squares", Quant(_E2M1, block=32, scale_rule="mse"), "int8 per tensor",
     0.01),
)  # fmt: skip


@dataclass(frozen=True)
class QuantizeTiming:
    """The speed of one kind of scale.

    Parameters
    ----------
    task, rate
        What is timed, and its best rate in million values a second.
    of, share, aim
        The task it is compared with, its share of that rate, and the share aimed at, 0: none.
    """

    task: str
    rate: float
    of: str
    share: float
    aim: float


def bench_quantize(*, side: int = 2048, repeats: int = 7) -> list[QuantizeTiming]:
    """Time `quantize` of a float32 matrix, rotation beside a copy, and torchao, on one thread.

    Parameters
    ----------
    side
        Rows and columns of the matrix, a multiple of 128.
    repeats
        Calls of which the best counts, after one that does not.

    Returns
    -------
    One `QuantizeTiming` a task.

    Examples
    --------
    >>> rows = bench_quantize(side=128, repeats=1)
    >>> rows[0].task, rows[1].of
    ('int8 per tensor', 'int8 per tensor')
    """
    x = np.random.default_rng(0).standard_normal((side, side), np.float32)
    target = np.empty_like(x)
    rates: dict[str, float] = {}
    rows = []
    with jit.using_threads(1):
        for task, quant, of, aim in _TASKS:
            rates[task] = _rate(partial(quantize, x, quant), x.size, repeats)
            rows.append(_row(task, rates, of, aim))
        rates["copy"] = _rate(lambda: np.copyto(target, x), x.size, repeats)
        rates["Hadamard of 128"] = _rate(lambda: rotate(x, block=128), x.size, repeats)
        rows += [_row("copy", rates, "", 0.0), _row("Hadamard of 128", rates, "copy", 0.3)]
    for task, call in _torchao(x):
        rates[f"torchao {task}"] = _rate(call, x.size, repeats)
        rows.append(_row(f"torchao {task}", rates, task, 0.0))
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


def _row(task: str, rates: dict[str, float], of: str, aim: float) -> QuantizeTiming:
    share = rates[task] / rates[of] if of else float("nan")
    return QuantizeTiming(task, rates[task], of, share, aim)


def _rate(call: Callable[[], object], count: int, repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return count / min(times) / 1e6
