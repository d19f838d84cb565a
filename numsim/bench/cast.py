"""Conversions per second on one core, beside a plain copy and the libraries that are installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.bench.peers import check_repeats, installed
from numsim.convert import decode, encode
from numsim.kernels import jit

FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8")


@dataclass(frozen=True)
class Timing:
    """The speed of one library at one conversion.

    Parameters
    ----------
    task
        What is converted.
    library
        Who converts it; ``numsim out=``: into an array that is there already, as the copy does;
        ``x2``: on two threads.
    rate
        Million elements per second, median of the repetitions.
    of_bound
        Share of the rate at which a copy's bandwidth would move the same bytes.
    ratio
        numsim's rate on one thread divided by this one (for ``numsim out= x2``: that of
        ``numsim out=``).
    """

    task: str
    library: str
    rate: float
    of_bound: float
    ratio: float


def bench_cast(*, elements: int = 1 << 23, repeats: int = 9) -> list[Timing]:
    """Time conversions from float32 and back, all in one run and on one thread.

    Parameters
    ----------
    elements
        Length of the arrays; 2**23 float32 numbers and their copy exceed most caches.
    repeats
        Calls of which the median counts, after one that does not.

    Returns
    -------
    One `Timing` for each conversion and each library that is installed and has it.

    Raises
    ------
    NumsimError
        If `repeats` is no positive integer.

    Examples
    --------
    >>> rows = bench_cast(elements=4096, repeats=1)
    >>> {row.library for row in rows} >= {"numsim", "ml_dtypes", "NumPy"}
    True
    """
    check_repeats("bench cast", repeats)
    x = np.random.default_rng(0).standard_normal(elements, np.float32) * np.float32(10)
    codes = encode(x, "float8_e4m3fn")
    rows: list[Timing] = []
    with jit.using_threads(1):
        target = np.empty_like(x)
        copy = _rate(lambda: np.copyto(target, x), elements, repeats)
        rows.append(Timing("copy float32", "NumPy", copy, 1.0, float("nan")))
        bound = copy * 8 / 5  # float32 on one side, one byte on the other
        for name in FORMATS:
            task = f"float32 -> {name}"
            rows += _compared(task, _encoders(name, x), bound, elements, repeats)
            rows += _compared(
                f"{name} -> float32", _decoders(name, encode(x, name)), bound, elements, repeats
            )
        rows += _compared(
            "float32 -> float8_e4m3fn, stochastic",
            {
                "numsim": lambda: encode(x, "float8_e4m3fn", rounding="sr"),
                "numsim out=": lambda: encode(x, "float8_e4m3fn", rounding="sr", out=codes),
                **_cpfloat(x, 5),
            },
            bound, elements, repeats,
        )  # fmt: skip
    return rows


def _compared(
    task: str, calls: dict[str, Callable[[], object]], bound: float, elements: int, repeats: int
) -> list[Timing]:
    rates = {library: _rate(call, elements, repeats) for library, call in calls.items()}
    with jit.using_threads(2) as two:
        for library in ("numsim", "numsim out=") if two else ():
            rates[f"{library} x2"] = _rate(calls[library], elements, repeats)
    rows = []
    for library, rate in rates.items():
        mine = rates["numsim out=" if library.startswith("numsim out=") else "numsim"]
        rows.append(Timing(task, library, rate, rate / bound, mine / rate))
    return rows


def _encoders(name: str, x: NDArray[np.float32]) -> dict[str, Callable[[], object]]:
    codes = encode(x, name)
    calls: dict[str, Callable[[], object]] = {
        "numsim": lambda: encode(x, name),
        "numsim out=": lambda: encode(x, name, out=codes),
    }
    if hasattr(ml_dtypes, name):
        dtype = np.dtype(getattr(ml_dtypes, name))
        calls["ml_dtypes"] = lambda: x.astype(dtype)
    torch = installed("torch")
    if torch is not None:
        torch.set_num_threads(1)
        tensor = torch.from_numpy(x)
        calls["torch"] = lambda: tensor.to(getattr(torch, name))
    gfloat = installed("gfloat")
    formats = installed("gfloat.formats")
    if gfloat is not None and formats is not None and name.startswith("float8"):
        info = getattr(formats, f"format_info_ocp_{'e4m3' if 'e4m3' in name else 'e5m2'}")
        calls["gfloat"] = lambda: gfloat.round_ndarray(info, x)
    if name.startswith("float8"):
        calls |= _cpfloat(x, 1)
    return calls


def _decoders(name: str, codes: NDArray[Any]) -> dict[str, Callable[[], object]]:
    values = decode(codes, name)
    calls: dict[str, Callable[[], object]] = {
        "numsim": lambda: decode(codes, name),
        "numsim out=": lambda: decode(codes, name, out=values),
    }
    if hasattr(ml_dtypes, name):
        typed = codes.view(getattr(ml_dtypes, name))
        calls["ml_dtypes"] = lambda: typed.astype(np.float32)
    torch = installed("torch")
    if torch is not None:
        tensor = torch.from_numpy(codes)
        tensor = tensor.view(getattr(torch, name)) if name != "int8" else tensor
        calls["torch"] = lambda: tensor.to(torch.float32)
    return calls


def _cpfloat(x: NDArray[np.float32], rounding: int) -> dict[str, Callable[[], object]]:
    """CPFloat's Python binding, where there is one: E4M3 values in place of codes."""
    library = installed("cpfloat")
    if library is None or not hasattr(library, "cpfloat"):
        return {}
    options = {"format": "E4M3", "round": rounding}
    return {"cpfloat": lambda: library.cpfloat(x, options)}


def _rate(call: Callable[[], object], elements: int, repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return elements / float(np.median(seconds)) / 1e6
