"""encode, decode, cast: validate, then call one kernel."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError, near_names
from numsim.formats import Format, get_format
from numsim.kernels import codec, fast, jit

Rounding = Literal["rne", "rna", "rtz", "rup", "rdn", "rto", "sr"]
Overflow = Literal["saturate", "special", "saturate_finite", "wrap"]

ROUNDINGS = ("rne", "rna", "rtz", "rup", "rdn", "rto", "sr")
OVERFLOWS = ("saturate", "special", "saturate_finite", "wrap")
SR_VARIANTS = ("truncate", "half_offset", "rne_first")

_GRAIN = 1 << 15  # elements; smaller arrays stay on one thread


def encode(
    x: ArrayLike,
    fmt: str | Format,
    *,
    rounding: Rounding = "rne",
    overflow: Overflow = "saturate",
    random_bits: int | None = None,
    sr: str = "truncate",
    seed: int = 0,
    offset: int = 0,
    random: ArrayLike | None = None,
    nan: Literal["max", "zero"] | None = None,
) -> NDArray[Any]:
    """Round numbers to the nearest codes of a format, once.

    Parameters
    ----------
    x
        float16, bfloat16, float32, float64 or integer array of any shape and strides.
    fmt
        Format or its name.
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
        floor(f 2^(b+1)) + 2R + 1 >= 2^(b+1), ``rne_first`` when round(f 2^b) + R >= 2^b.
    seed, offset
        Element i of the call draws from Philox-2x32-10 with key `seed` and counter
        ``offset + i`` alone, so results do not depend on slicing or threads.
    random
        Integers below ``2**random_bits``, one for each element, in place of the stream.
    nan
        What NaN becomes in a format without NaN: ``"max"`` (NVIDIA FP4/FP6) or ``"zero"``;
        by default it is an error.

    Returns
    -------
    Codes of the shape of `x`: uint8, uint16 or uint32 bit patterns for floats; int8, int16, int32
    (or unsigned) values for integers and fixed point.

    Raises
    ------
    NumsimError
        For an input type that is not a real number, an unknown name, or NaN where the format has
        none (with the count and the first index).

    Source
    ------
    IEEE 754-2019 section 4.3; OCP OFP8 1.0 section 5 (overflow); Salmon et al., SC 2011 (Philox).

    Examples
    --------
    >>> encode([448.0, 464.0, 465.0], "float8_e4m3fn", overflow="special")
    array([126, 126, 127], dtype=uint8)
    >>> encode([-2.5, 3.5, 200.0], "int8")
    array([ -2,   4, 127], dtype=int8)
    """
    f = get_format(fmt)
    values = _numbers(x)
    mode = _choice("rounding", rounding, ROUNDINGS)
    policy = _choice("overflow", overflow, OVERFLOWS)
    if overflow == "wrap":
        _check_wrap(f, values)
    bits, variant, supplied = _stochastic(mode, random_bits, sr, seed, offset, random, values)
    nan_code = _nan_code(f, nan)

    out = np.empty(values.shape, f.code_dtype)
    flat = np.ascontiguousarray(values).reshape(-1)
    stochastic = (bits, variant, supplied, seed, offset)
    if f.kind == "table":
        refused = _encode_table(f, flat, out.reshape(-1), mode, policy, stochastic, nan_code)
    else:
        refused = _encode_generic(f, flat, out.reshape(-1), mode, policy, stochastic, nan_code)
    if refused[0]:
        index = np.unravel_index(refused[1], values.shape)
        raise NumsimError(
            f"encode: {f.name} has no NaN; {refused[0]} of {values.size} inputs are NaN, the first "
            f"at index {tuple(int(i) for i in index)}; pass nan='max' or nan='zero', or remove them"
        )
    return out


def decode(codes: ArrayLike, fmt: str | Format) -> NDArray[Any]:
    """Return the values of codes.

    Parameters
    ----------
    codes
        Integer array of any shape: bit patterns of floats, values of integers and fixed point.
    fmt
        Format or its name.

    Returns
    -------
    float32 array of the same shape, float64 where float32 cannot hold the format.

    Raises
    ------
    NumsimError
        For codes that are not integers or lie outside the format (with the first index).

    Examples
    --------
    >>> decode([0x7E, 0xFF, 0x01], "float8_e4m3fn")
    array([4.480000e+02,          nan, 1.953125e-03], dtype=float32)
    """
    f = get_format(fmt)
    array = np.asarray(codes)
    if array.dtype.kind not in "iu" and array.size:
        raise NumsimError(f"decode: codes are integers; got {array.dtype}; encode() makes codes")
    native = array.dtype.newbyteorder("=") if array.size else np.dtype(np.uint8)
    array = array.astype(native, copy=False)
    flat = np.ascontiguousarray(array).reshape(-1)
    twos = f.kind == "integer" and f.signed
    low, high = (-(1 << (f.bits - 1)), (1 << (f.bits - 1)) - 1) if twos else (0, (1 << f.bits) - 1)
    info = np.iinfo(array.dtype)
    if info.min < low or info.max > high:
        if array.dtype == np.uint64:
            bad, first = codec.check_codes(np.minimum(flat, 1 << 62).astype(np.int64), low, high)
        else:
            bad, first = codec.check_codes(flat, low, high)
        if bad:
            index = tuple(int(i) for i in np.unravel_index(first, array.shape))
            raise NumsimError(
                f"decode: codes of {f.name} are {low} to {high}; {bad} of {array.size} are not, "
                f"the first is {int(flat[first])} at index {index}"
            )
    out = np.empty(array.shape, f.value_dtype)
    if f.kind == "integer":
        codec.decode_integer(flat, 2.0**-f.bias, out.reshape(-1))
    elif f.name == "float32":
        out = flat.astype(np.uint32).view(np.float32).reshape(array.shape)
    elif f.bits <= 16:
        codec.decode_table(flat, _value_table(f), (1 << f.bits) - 1, out.reshape(-1))
    else:
        out[...] = f.decode_bits(array.astype(np.int64))
    return out


def cast(
    x: ArrayLike,
    fmt: str | Format,
    *,
    rounding: Rounding = "rne",
    overflow: Overflow = "saturate",
    random_bits: int | None = None,
    sr: str = "truncate",
    seed: int = 0,
    offset: int = 0,
    random: ArrayLike | None = None,
    nan: Literal["max", "zero"] | None = None,
) -> NDArray[Any]:
    """Return ``decode(encode(x))``: the numbers a format stores in place of `x`.

    Takes what `encode` takes, returns what `decode` returns.

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
    return decode(codes, fmt)


# --------------------------------------------------------------------------------- validation


def _numbers(x: ArrayLike) -> NDArray[Any]:
    """Return `x` as a native array of float32, float64, int64 or uint64, without rounding."""
    array = np.asarray(x)
    dtype = array.dtype
    if dtype.kind in "iu":
        wide = np.uint64 if dtype == np.uint64 else np.int64
        return array.astype(wide)
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return array.astype(np.float32 if dtype.itemsize <= 4 else np.float64, copy=False)
    if dtype.kind == "V" and dtype.names is None and hasattr(ml_dtypes, dtype.name):
        return array.astype(np.float32)  # bfloat16, float8, int4 ...: all exact in float32
    raise NumsimError(
        f"encode: inputs are float16, bfloat16, float32, float64 or integers; got {dtype}; "
        "convert the array first"
    )


def _choice(what: str, value: object, known: tuple[str, ...]) -> int:
    if value not in known:
        near = near_names(str(value), known)
        raise NumsimError(f"{what} is one of {', '.join(known)}; got {value!r}{near}")
    return known.index(str(value))


def _check_wrap(f: Format, values: NDArray[Any]) -> None:
    if f.kind != "integer":
        raise NumsimError(
            f"overflow='wrap' is for integers and fixed point; {f.name} is not one; "
            "use saturate, special or saturate_finite"
        )
    if values.dtype.kind == "f":
        infinite = np.isinf(values)
        if infinite.any():
            index = tuple(int(i) for i in np.argwhere(infinite)[0])
            raise NumsimError(
                f"overflow='wrap': Inf has no residue modulo 2**{f.bits}; {int(infinite.sum())} of "
                f"{values.size} inputs are Inf, the first at index {index}; use saturate"
            )


def _stochastic(
    mode: int, random_bits: int | None, sr: str, seed: int, offset: int,
    random: ArrayLike | None, values: NDArray[Any],
) -> tuple[int, int, NDArray[np.uint64]]:  # fmt: skip
    variant = _choice("sr", sr, SR_VARIANTS)
    none = np.empty(0, np.uint64)
    if random_bits is not None and not (
        isinstance(random_bits, int | np.integer) and 1 <= random_bits <= 32
    ):
        raise NumsimError(f"random_bits is 1 to 32, or None for all; got {random_bits!r}")
    if random_bits is not None and mode != ROUNDINGS.index("sr"):
        raise NumsimError("random_bits= belongs to rounding='sr'; set it, or leave random_bits out")
    if not (isinstance(seed, int | np.integer) and 0 <= seed < 1 << 32):
        raise NumsimError(f"seed is an integer from 0 to 2**32 - 1; got {seed!r}")
    if not (isinstance(offset, int | np.integer) and 0 <= offset < 1 << 63):
        raise NumsimError(f"offset is an integer from 0 to 2**63 - 1; got {offset!r}")
    if random is None:
        return 64 if random_bits is None else int(random_bits), variant, none
    given = np.asarray(random)
    if mode != ROUNDINGS.index("sr"):
        raise NumsimError("random= supplies integers to rounding='sr' only; set rounding='sr'")
    if given.dtype.kind not in "iu" or given.shape != values.shape:
        raise NumsimError(
            f"random holds one integer for each input, shape {values.shape}; got {given.dtype} "
            f"of shape {given.shape}"
        )
    bits = int(random_bits) if random_bits is not None else min(given.dtype.itemsize * 8, 64)
    if given.size and (int(given.min()) < 0 or int(given.max()) >= 1 << bits):
        raise NumsimError(
            f"random integers lie below 2**random_bits = 2**{bits}; got {int(given.min())} to "
            f"{int(given.max())}"
        )
    return bits, variant, np.ascontiguousarray(given.reshape(-1), np.uint64)


def _nan_code(f: Format, nan: str | None) -> int:
    if nan is not None and nan not in ("max", "zero"):
        raise NumsimError(f"nan is None, 'max' or 'zero'; got {nan!r}")
    if f.kind == "table":
        own = int(np.flatnonzero(np.isnan(f.table))[0]) if f.has_nan else -1
    else:
        own = f.nan_code
    if own >= 0 or nan is None:
        return own
    return f.max_code if nan == "max" else int(encode(0.0, f))


# ---------------------------------------------------------------------------------- execution


def _encode_generic(
    f: Format, flat: NDArray[Any], out: NDArray[Any], mode: int, policy: int,
    stochastic: tuple[Any, ...], nan_code: int,
) -> tuple[int, int]:  # fmt: skip
    if mode == 0 and flat.dtype == np.float32 and _encode_fast(f, flat, out, policy, nan_code):
        return 0, -1
    refused: list[tuple[int, int]] = []
    common = (f.params, mode, policy, *stochastic)
    if flat.dtype.kind in "iu":
        signed = flat.dtype.kind == "i"
        bits = flat.view(np.uint64)
        jit.over_range(
            lambda i, j: codec.encode_integer(bits, signed, out, i, j, *common),
            flat.size, grain=_GRAIN,
        )  # fmt: skip
        return 0, -1
    single = flat.dtype == np.float32
    bits = flat.view(np.uint32 if single else np.uint64)
    run = codec.encode_float32 if single else codec.encode_float64
    jit.over_range(
        lambda i, j: refused.append(run(bits, out, i, j, *common, nan_code)),
        flat.size, grain=_GRAIN,
    )  # fmt: skip
    return _merge(refused)


def _encode_fast(
    f: Format, flat: NDArray[np.float32], out: NDArray[Any], policy: int, nan_code: int
) -> bool:
    """Encode by a branch-free kernel where one applies; False leaves it to the generic one."""
    if f.bits > 16 or OVERFLOWS[policy] == "wrap":
        return False
    met: list[bool] = []
    if f.kind == "integer":
        if f.bias > 120:
            return False
        scale, low, high = np.float32(2.0**f.bias), f.min * 2.0**f.bias, f.max * 2.0**f.bias
        limits = (scale, np.float32(low), np.float32(high))
        jit.over_range(
            lambda i, j: met.append(fast.integer_rne(flat, out, i, j, *limits)),
            flat.size, grain=_GRAIN,
        )  # fmt: skip
        return not any(met)
    if not (f.signed and f.zero and f.emin >= -126):
        return False
    p = f.params
    scalars = fast.fast_float(
        f.bits, p.p, p.emin, f.max_code, p.inf, p.nan, p.nan_signed, p.minus_zero, policy, nan_code
    )
    bits = flat.view(np.uint32)
    jit.over_range(
        lambda i, j: met.append(fast.float_rne(bits, out, i, j, scalars)), flat.size, grain=_GRAIN
    )
    return f.has_nan or not any(met)


def _encode_table(
    f: Format, flat: NDArray[Any], out: NDArray[Any], mode: int, policy: int,
    stochastic: tuple[Any, ...], nan_code: int,
) -> tuple[int, int]:  # fmt: skip
    if flat.dtype.kind in "iu":
        flat = _round_to_odd(flat)
    numbers = flat.astype(np.float64, copy=False)
    values, codes = _sorted_table(f)
    refused: list[tuple[int, int]] = []
    jit.over_range(
        lambda i, j: refused.append(
            codec.encode_table(
                numbers, out, i, j, values, codes, mode, policy, *stochastic, nan_code,
                f.nan_code if f.has_nan else -1,
            )
        ),
        flat.size, grain=_GRAIN,
    )  # fmt: skip
    return _merge(refused)


def _merge(refused: list[tuple[int, int]]) -> tuple[int, int]:
    found = [first for count, first in refused if count]
    return sum(count for count, _ in refused), min(found, default=-1)


def _round_to_odd(integers: NDArray[Any]) -> NDArray[np.float64]:
    """Integers beyond 53 bits to float64 with a sticky last bit: comparisons stay right."""
    magnitude = np.abs(integers.astype(object)) if integers.size else integers
    sticky = [
        m if m < 1 << 53 else (m >> 11 | ((m & 2047) != 0)) << 11 for m in map(int, magnitude)
    ]
    return np.array(sticky, np.float64) * np.where(integers < 0, -1.0, 1.0)


@cache
def _sorted_table(f: Format) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    values = f.values()
    codes = np.flatnonzero(np.isfinite(values))
    order = codes[np.argsort(values[codes], kind="stable")]
    return values[order], order


@cache
def _value_table(f: Format) -> NDArray[Any]:
    return f.values().astype(f.value_dtype)
