"""Conversions from float32 against the generic rounding and against ml_dtypes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.arguments import OVERFLOWS, ROUNDINGS
from numsim.convert import encode
from numsim.errors import NumsimError
from numsim.formats import Format, get_format, list_formats
from numsim.kernels import codec, jit

# Compared with ml_dtypes itself; all others with the generic kernel, which tests hold to
# tests/oracle.py.
BY_ML_DTYPES = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
POLICIES = ("saturate", "special")
_CHUNK = 1 << 22
# Low halves of float32 patterns around ties: with all 65,536 upper halves, 458,752 numbers.
_LOW_HALVES = (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xC000, 0xFFFF)


@dataclass(frozen=True)
class Check:
    """What one check compared.

    Parameters
    ----------
    name
        What was checked.
    reference
        What it was compared with.
    compared
        Results compared, each bit for bit.
    different
        How many of them differ.
    seconds
        How long it took.
    first
        The first difference in words; empty if there is none.
    """

    name: str
    reference: str
    compared: int
    different: int
    seconds: float
    first: str = ""


def formats_to_check() -> tuple[str, ...]:
    """Return the names of the table's floats of at most 16 bits.

    Examples
    --------
    >>> formats_to_check()[:3]
    ('float16', 'bfloat16', 'float8_e4m3fn')
    """
    every = (get_format(name) for name in list_formats())
    return tuple(f.name for f in every if f.kind == "float" and f.bits <= 16)


def check_every_float32(
    fmt: str | Format, *, overflow: str = "saturate", start: int = 0, stop: int = 1 << 32,
    progress: Callable[[int, int], None] | None = None,
) -> Check:  # fmt: skip
    """Encode the float32 bit patterns from `start` to `stop`, nearest even, and compare the codes.

    Parameters
    ----------
    fmt
        Float or integer format of at most 16 bits.
    overflow
        Overflow policy.
    start, stop
        Range of bit patterns; the default is all 2**32.
    progress
        Called with (patterns done, patterns in all).

    Returns
    -------
    Check
        With ml_dtypes as the reference for E4M3, E5M2 and E8M0, else the generic kernel. NaN into
        a format without NaN is checked with ``nan="max"``.

    Raises
    ------
    NumsimError
        For a format that is a table or wider than 16 bits.

    Examples
    --------
    >>> check = check_every_float32("e4m3", start=0x3F800000, stop=0x3F900000)
    >>> check.compared, check.different, check.reference
    (1048576, 0, 'ml_dtypes')
    """
    f = _checkable(fmt)
    direct = f.name in BY_ML_DTYPES
    begin = time.perf_counter()
    found: list[tuple[int, int]] = []
    for first in range(start, stop, _CHUNK):
        last = min(first + _CHUNK, stop)
        bits = np.arange(first, last, dtype=np.uint64).astype(np.uint32)
        codes = _encode(f, bits.view(np.float32), "rne", overflow)
        compare = _against_ml_dtypes if direct else _against_generic
        found += compare(f, bits, codes, 0, OVERFLOWS.index(overflow))
        if progress:
            progress(last - start, stop - start)
    return _summary(
        f"{f.name} rne {overflow}", "ml_dtypes" if direct else "generic kernel", stop - start,
        found, begin,
    )  # fmt: skip


def check_modes(fmt: str | Format) -> Check:
    """Compare every deterministic rounding and policy with the generic kernel, around all ties.

    Inputs are all 65,536 upper halves of float32 patterns, each with seven lower halves.

    Raises
    ------
    NumsimError
        For a format that is a table or wider than 16 bits.

    Examples
    --------
    >>> check_modes("float4_e2m1fn").different
    0
    """
    f = _checkable(fmt)
    begin = time.perf_counter()
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    found: list[tuple[int, int]] = []
    compared = 0
    for low in _LOW_HALVES:
        bits = upper | np.uint32(low)
        for mode in range(len(ROUNDINGS) - 1):
            for overflow in range(3):
                codes = _encode(f, bits.view(np.float32), ROUNDINGS[mode], OVERFLOWS[overflow])
                found += _against_generic(f, bits, codes, mode, overflow)
                compared += bits.size
    return _summary(f"{f.name} every mode", "generic kernel", compared, found, begin)


def _checkable(fmt: str | Format) -> Format:
    f = get_format(fmt)
    if f.kind == "table" or f.bits > 16:
        raise NumsimError(
            f"verify: floats and integers of at most 16 bits are checked; got {f.name}; "
            f"{', '.join(formats_to_check()[:4])} ... are"
        )
    return f


def _encode(f: Format, x: NDArray[np.float32], rounding: Any, overflow: Any) -> NDArray[Any]:
    return encode(x, f, rounding=rounding, overflow=overflow, nan=None if f.has_nan else "max")


def _against_generic(
    f: Format, bits: NDArray[np.uint32], codes: NDArray[Any], mode: int, overflow: int
) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    nan = f.nan_code if f.has_nan else f.max_code

    def compare(i: int, j: int) -> None:
        x, part = bits[i:j], codes[i:j]
        if ROUNDINGS[mode] == "rne" and OVERFLOWS[overflow] in POLICIES:
            special = OVERFLOWS[overflow] == "special"
            found.append(codec.differing_nearest(x, part, f.params, special, nan))
        else:
            found.append(codec.differing(x, part, f.params, mode, overflow, nan))

    jit.over_range(compare, bits.size, grain=1 << 15)
    return [pair for pair in found if pair[0]]


def _against_ml_dtypes(
    f: Format, bits: NDArray[np.uint32], codes: NDArray[Any], mode: int, overflow: int
) -> list[tuple[int, int]]:
    dtype = np.dtype(getattr(ml_dtypes, f.name))
    found: list[tuple[int, int]] = []

    def compare(i: int, j: int) -> None:
        x = bits[i:j].view(np.float32)
        with np.errstate(all="ignore"):  # overflow and NaN are what is tested
            if OVERFLOWS[overflow] == "saturate":
                x = np.clip(x, np.float32(f.min), np.float32(f.max))
            want = x.astype(dtype).view(codes.dtype)
        wrong = np.flatnonzero(codes[i:j] != want)
        if wrong.size:
            found.append((wrong.size, int(bits[i + int(wrong[0])])))

    jit.over_range(compare, bits.size, grain=1 << 15)
    return found


def _summary(
    name: str, reference: str, compared: int, found: list[tuple[int, int]], begin: float
) -> Check:
    different = sum(count for count, _ in found)
    first = ""
    if found:
        pattern = min(pattern for _, pattern in found)
        value = float(np.uint32(pattern).view(np.float32))
        first = f"float32 bits {pattern:#010x} ({value!r})"
    return Check(name, reference, compared, different, time.perf_counter() - begin, first)
