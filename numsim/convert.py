"""encode, decode, cast: validate, then call one kernel."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import (
    check_wrap,
    choice,
    code_array,
    hardware,
    index_of,
    nan_rule,
    numbers,
    output,
    stochastic,
)
from numsim.dispatch import Plan, decode_array, encode_array
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import STOCHASTIC, Format, FormatLike, get_format
from numsim.vocabulary import OVERFLOWS, ROUNDINGS, NanPolicy, Overflow, Rounding


@known_floats
def encode(
    x: ArrayLike,
    fmt: FormatLike,
    *,
    rounding: Rounding = "rne",
    overflow: Overflow = "saturate",
    random_bits: int | None = None,
    sr: str = "truncate",
    seed: int = 0,
    offset: int = 0,
    random: ArrayLike | None = None,
    nan: NanPolicy | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Round numbers to the nearest codes of a format, once.

    Parameters
    ----------
    x
        float16, bfloat16, float32, float64 or integer array of any shape and strides; or what
        makes one: torch tensors of any real type (detached, and copied to the host from another
        device), objects with ``__array__`` or ``__dlpack__``.
    fmt
        Format, its name, a dtype or the path of a TOML file, as in `get_format`.
    rounding
        ``rne`` (IEEE roundTiesToEven), ``rna`` (roundTiesToAway), ``rtz`` (toward zero), ``rup``
        (toward +inf), ``rdn`` (toward -inf), ``rto`` (to odd: inexact results end in a one),
        ``sr`` (stochastic).
    overflow
        ``saturate``: finite overflow and Inf give the signed maximum. ``special``: IEEE 754,
        overflow gives Inf, or NaN where the format has no Inf; formats with neither saturate;
        roundings toward zero and ``rto`` stop at the largest finite value.
        ``saturate_finite``: finite overflow gives the maximum, Inf stays Inf or NaN.
        ``wrap``: modulo 2**bits, integers and fixed point only.
    random_bits
        Random bits the hardware adds, 1 to 32; None: as many as are discarded (64 at most).
    sr
        Few-bit variant, for the discarded fraction f and the random integer R of b bits:
        ``truncate`` rounds away when floor(f 2^b) + R >= 2^b, ``half_offset`` when
        floor(f 2^(b+1)) + 2R + 1 >= 2^(b+1), ``rne_first`` when round(f 2^b) + R >= 2^b. Or the
        name of hardware, which brings its variant and bits: ``"nvidia.cvt.rs"``,
        ``"amd.cvt_sr"``, ``"graphcore.ipu"``, ``"aws.trainium"``; what each does, and for which
        formats, is in `numsim.formats.STOCHASTIC`.
    seed, offset
        Element i of the call draws from Philox-2x32-7 with key `seed` and counter
        ``offset + i`` alone (the top `random_bits` of its 64), so results do not depend on
        slicing, strides or threads. Give tensors that must be independent different seeds, or
        offsets that keep their ranges apart.
    random
        Integers below ``2**random_bits``, one for each element, in place of the stream; `lfsr`
        makes those of a shift register in RTL. Without `random_bits` they are as wide as their
        type, which is unsigned: uint16 draws have 16 bits.
    nan
        What NaN inputs become. In a format with NaN: None keeps the sign and gives the quiet NaN
        (ml_dtypes); ``"canonical"`` gives one positive NaN whatever the sign, every bit but the
        sign set where the format has several (NVIDIA ``cvt``: 0x7F in E4M3 and E5M2);
        ``"payload"`` keeps the sign and the upper fraction bits and sets the quiet bit
        (x86 ``VCVTNEPS2BF16``), in formats with one NaN a sign it equals None. In a format
        without NaN: ``"max"`` gives the positive maximum (NVIDIA ``cvt`` to FP4 and FP6),
        ``"zero"`` the code of 0; None is an error.
    out
        Array that takes the codes and is returned: of the shape and type of the result,
        C-contiguous, apart from `x`. A buffer that is used again saves the operating system's
        clearing of fresh pages, the larger part of a big conversion. After an error it holds
        anything.

    Returns
    -------
    Codes of the shape of `x`: uint8, uint16 or uint32 bit patterns for floats; int8, int16, int32
    (or unsigned) values for integers and fixed point.

    Raises
    ------
    NumsimError
        For an input type that is not a real number, an unknown name, an argument outside its
        range or without effect (`sr`, `seed`, ``offset`` without ``rounding="sr"``, `nan` of the
        other kind of format), an `out` that cannot take the codes, or NaN where the format has
        none (with the count and the first index).

    Warns
    -----
    UnvalidatedWarning
        For the rounding of hardware that no recording confirms.

    Notes
    -----
    E8M0 under ``rne`` follows ml_dtypes: ties round up, and everything strictly between 2**-127
    and 2**-126 rounds up. Posits never give NaR for finite overflow, not under ``special``
    either: they saturate. Other formats with one bit of precision take ties to the even code.

    Source
    ------
    IEEE 754-2019 section 4.3; OCP OFP8 1.0 section 5 (overflow); Salmon et al., SC 2011 (Philox).
    `nan`: ``"canonical"`` and ``"max"`` PTX ISA, cvt (0x7F measured on an RTX 4060);
    ``"payload"`` Intel SDM, VCVTNEPS2BF16, and IEEE 754-2019 section 6.2.3; ``"zero"`` is the
    choice of this library.

    Examples
    --------
    >>> encode([448.0, 464.0, 465.0], "float8_e4m3fn", overflow="special")
    array([126, 126, 127], dtype=uint8)
    >>> encode([-2.5, 3.5, 200.0], "int8")
    array([ -2,   4, 127], dtype=int8)
    """
    f = get_format(fmt)
    values = numbers(x)
    plan, supplied = None, None
    if random is None and random_bits is None and nan is None and type(seed) is type(offset) is int:
        words = all(type(word) is str for word in (rounding, overflow, sr))
        if words and sr == "truncate" and seed == offset == 0:
            plan = _usual(f, rounding, overflow)
    if plan is None:
        mode = choice("rounding", rounding, ROUNDINGS)
        policy = choice("overflow", overflow, OVERFLOWS)
        if overflow == "wrap":
            check_wrap(f, values)
        if isinstance(sr, str) and sr in STOCHASTIC:
            random_bits, sr = hardware(f, mode, random_bits, sr)
        bits, variant, supplied = stochastic(mode, random_bits, sr, seed, offset, random, values)
        plan = Plan(mode, policy, bits, variant, int(seed), int(offset), *nan_rule(f, nan))
    codes = output("encode", out, values, f.code_dtype, supplied)
    refused, first = encode_array(f, values, codes, plan, supplied)
    if refused:
        raise _refused(f, refused, first, values.shape)
    return codes


@lru_cache(maxsize=256)
def _usual(f: Format, rounding: str, overflow: str) -> Plan | None:
    """Return the plan of a call without further options, None where words or inputs are checked."""
    if rounding == "sr" or rounding not in ROUNDINGS:
        return None
    if overflow == "wrap" or overflow not in OVERFLOWS:
        return None
    mode, policy = ROUNDINGS.index(rounding), OVERFLOWS.index(overflow)
    return Plan(mode, policy, 64, 0, 0, 0, *nan_rule(f, None))


def _refused(f: Format, count: int, first: int, shape: tuple[int, ...]) -> NumsimError:
    return NumsimError(
        f"encode: {f.name} has no NaN; {count} of {math.prod(shape)} inputs are NaN, the first at "
        f"index {index_of(first, shape)}; pass nan='max' or nan='zero', or remove them"
    )


def encode_divided(
    x: NDArray[np.float32], by: np.float32, fmt: Format, *, rounding: str = "rne",
    random_bits: int | None = None, seed: int = 0, offset: int = 0, random: ArrayLike | None = None,
) -> NDArray[Any]:  # fmt: skip
    """Return ``encode(fp32(x / by), fmt, ...)``, without an array of the quotients."""
    mode = choice("rounding", rounding, ROUNDINGS)
    bits, variant, supplied = stochastic(mode, random_bits, "truncate", seed, offset, random, x)
    plan = Plan(mode, 0, bits, variant, int(seed), int(offset), *nan_rule(fmt, None))
    codes = np.empty(x.shape, fmt.code_dtype)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        refused, first = encode_array(fmt, x, codes, plan, supplied, by)
    if refused:
        raise _refused(fmt, refused, first, x.shape)
    return codes


@known_floats
def decode(codes: ArrayLike, fmt: FormatLike, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return the values of codes.

    Parameters
    ----------
    codes
        Integer array of any shape: bit patterns of floats, values of integers and fixed point.
    fmt
        Format or its name.
    out
        Array that takes the values and is returned, as in `encode`.

    Returns
    -------
    float32 array of the same shape, float64 where float32 cannot hold the format.

    Raises
    ------
    NumsimError
        For codes that are not integers or lie outside the format (with the first index), or an
        `out` that cannot take the values.

    Examples
    --------
    >>> decode([0x7E, 0xFF, 0x01], "float8_e4m3fn")
    array([4.480000e+02,          nan, 1.953125e-03], dtype=float32)
    """
    f = get_format(fmt)
    array = checked_codes(codes, f)
    values = output("decode", out, array, f.value_dtype)
    decode_array(f, array, values)
    return values


def checked_codes(codes: ArrayLike, f: Format) -> NDArray[Any]:
    """Return codes as an array of integers, each of which the format has.

    Raises
    ------
    NumsimError
        As `decode`.

    Examples
    --------
    >>> checked_codes([[1, 2]], get_format("int8")).shape
    (1, 2)
    """
    if type(codes) is np.ndarray and codes.dtype == f.code_dtype and f.bits == 8 * codes.itemsize:
        return codes  # which has no others
    array = code_array(codes)
    twos = f.kind == "integer" and f.signed
    low, high = (-(1 << (f.bits - 1)), (1 << (f.bits - 1)) - 1) if twos else (0, (1 << f.bits) - 1)
    info = np.iinfo(array.dtype)
    over, under = info.max > high, info.min < low
    if array.size and ((over and array.max() > high) or (under and array.min() < low)):
        bad = np.flatnonzero(~((array >= max(low, info.min)) & (array <= min(high, info.max))))
        index = index_of(int(bad[0]), array.shape)
        raise NumsimError(
            f"decode: codes of {f.name} are {low} to {high}; {bad.size} of {array.size} are not, "
            f"the first is {int(array[index])} at index {index}; encode() makes codes"
        )
    return array


@known_floats
def cast(
    x: ArrayLike,
    fmt: FormatLike,
    *,
    rounding: Rounding = "rne",
    overflow: Overflow = "saturate",
    random_bits: int | None = None,
    sr: str = "truncate",
    seed: int = 0,
    offset: int = 0,
    random: ArrayLike | None = None,
    nan: NanPolicy | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Return ``decode(encode(x))``: the numbers a format stores in place of `x`.

    Takes what `encode` takes, returns what `decode` returns; `out` is for the values.

    Raises
    ------
    NumsimError
        As `encode`.

    Examples
    --------
    >>> cast([0.1, 1e9, -3.3], "float4_e2m1fn")
    array([ 0.,  6., -3.], dtype=float32)
    """
    codes = encode(
        x, fmt, rounding=rounding, overflow=overflow, random_bits=random_bits, sr=sr, seed=seed,
        offset=offset, random=random, nan=nan,
    )  # fmt: skip
    return decode(codes, fmt, out=out)
