"""Conversions from float32 against the generic rounding and against ml_dtypes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.convert import encode
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import Format, get_format, list_formats, table_name
from numsim.kernels import jit
from numsim.kernels.convert import codec
from numsim.vocabulary import OVERFLOWS, ROUNDINGS

# Compared with ml_dtypes itself; all others with the generic kernel, which tests hold to
# tests/oracle.py.
BY_ML_DTYPES = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
POLICIES = ("saturate", "special")
_CHUNK = 1 << 20  # a few megabytes: stays near the cores
# Low halves of float32 patterns around ties: with all 65,536 upper halves, 458,752 numbers.
_LOW_HALVES = (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xC000, 0xFFFF)


_Found = list[tuple[int, int]]  # (how many differ, bits of the first), piece by piece


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
        How long it took; two checks of one pass share its time evenly.
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


@known_floats
def check_every_float32(
    fmt: str | Format, *, start: int = 0, stop: int = 1 << 32,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Check, Check]:  # fmt: skip
    """Encode the float32 bit patterns from `start` to `stop`, nearest even, and compare the codes.

    Parameters
    ----------
    fmt
        Float or integer format of at most 16 bits.
    start, stop
        Range of bit patterns; the default is all 2**32.
    progress
        Called with (patterns done, patterns in all).

    Returns
    -------
    Checks of ``overflow="saturate"`` and of ``"special"``, made in one pass whose time they share.
    The reference is ml_dtypes for E4M3, E5M2 and E8M0, else the generic kernel. NaN into a format
    without NaN is checked with ``nan="max"``.

    Raises
    ------
    NumsimError
        For a format that is a table or wider than 16 bits.

    Examples
    --------
    >>> for check in check_every_float32("e4m3", start=0x3F800000, stop=0x3F900000):
    ...     print(check.name, check.compared, check.different, check.reference)
    float8_e4m3fn rne saturate 1048576 0 ml_dtypes
    float8_e4m3fn rne special 1048576 0 ml_dtypes
    """
    f = checkable(fmt)
    direct = table_name(f) in BY_ML_DTYPES
    compare = _against_ml_dtypes if direct else _against_generic_nearest
    begin = time.perf_counter()
    found: tuple[_Found, _Found] = ([], [])
    every = np.arange(min(_CHUNK, stop - start), dtype=np.uint32)
    for first in range(start, stop, _CHUNK):
        bits = every[: min(_CHUNK, stop - first)] + np.uint32(first)
        codes = [_encode(f, bits.view(np.float32), "rne", policy) for policy in POLICIES]
        compare(f, bits, codes[0], codes[1], found)
        if progress:
            progress(min(first + _CHUNK, stop) - start, stop - start)
    reference = "ml_dtypes" if direct else "generic kernel"
    seconds = (time.perf_counter() - begin) / 2
    names = [f"{f.name} rne {policy}" for policy in POLICIES]
    one, other = (
        _summary(name, reference, stop - start, part, seconds)
        for name, part in zip(names, found, strict=True)
    )
    return one, other


@known_floats
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
    f = checkable(fmt)
    begin = time.perf_counter()
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    found: _Found = []
    compared = 0
    for low in _LOW_HALVES:
        bits = upper | np.uint32(low)
        for mode in range(len(ROUNDINGS) - 1):
            for overflow in range(3):
                codes = _encode(f, bits.view(np.float32), ROUNDINGS[mode], OVERFLOWS[overflow])
                found += _against_generic(f, bits, codes, mode, overflow)
                compared += bits.size
    seconds = time.perf_counter() - begin
    return _summary(f"{f.name} every mode", "generic kernel", compared, found, seconds)


def checkable(fmt: str | Format) -> Format:
    """Return the format, if its conversions can be checked.

    Raises
    ------
    NumsimError
        For a format that is a table or wider than 16 bits.

    Examples
    --------
    >>> checkable("e4m3").name
    'float8_e4m3fn'
    """
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
) -> _Found:
    found: _Found = []
    nan = f.nan_code if f.has_nan else f.max_code

    def compare(i: int, j: int) -> None:
        found.append(codec.differing(bits[i:j], codes[i:j], f.params, mode, overflow, nan))

    jit.over_range(compare, bits.size, grain=1 << 15)
    return [pair for pair in found if pair[0]]


def _against_generic_nearest(
    f: Format, bits: NDArray[np.uint32], saturated: NDArray[Any], special: NDArray[Any],
    found: tuple[_Found, _Found],
) -> None:  # fmt: skip
    nan = f.nan_code if f.has_nan else f.max_code

    def compare(i: int, j: int) -> None:
        counts = codec.differing_nearest(bits[i:j], saturated[i:j], special[i:j], f.params, nan)
        for part, count, first in zip(found, counts[::2], counts[1::2], strict=True):
            if count:
                part.append((count, first))

    jit.over_range(compare, bits.size, grain=1 << 15)


def _against_ml_dtypes(
    f: Format, bits: NDArray[np.uint32], saturated: NDArray[Any], special: NDArray[Any],
    found: tuple[_Found, _Found],
) -> None:  # fmt: skip
    dtype = np.dtype(getattr(ml_dtypes, f.name))
    low, high = np.float32(f.min), np.float32(f.max)
    ends = np.array([low, high]).astype(dtype).view(saturated.dtype)

    def compare(i: int, j: int) -> None:
        x = bits[i:j].view(np.float32)
        with np.errstate(all="ignore"):  # overflow and NaN are what is tested
            want = x.astype(dtype).view(special.dtype)
            wrong = [special[i:j] != want]
            # the cast of the clipped number: only outside the range is that another number
            np.copyto(want, ends[0], where=x < low)
            np.copyto(want, ends[1], where=x > high)
        wrong.insert(0, saturated[i:j] != want)
        for part, differs in zip(found, wrong, strict=True):
            if differs.any():
                part.append((int(differs.sum()), int(bits[i + int(np.argmax(differs))])))

    jit.over_range(compare, bits.size, grain=1 << 15)


def _summary(name: str, reference: str, compared: int, found: _Found, seconds: float) -> Check:
    different = sum(count for count, _ in found)
    first = ""
    if found:
        pattern = min(pattern for _, pattern in found)
        value = float(np.uint32(pattern).view(np.float32))
        first = f"float32 bits {pattern:#010x} ({value!r})"
    return Check(name, reference, compared, different, seconds, first)
