"""encode, decode, cast: validate, then call one kernel."""

from __future__ import annotations

import sys
import warnings
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.dispatch import Plan, decode_array, encode_array
from numsim.errors import NumsimError, UnvalidatedWarning, near_names
from numsim.formats import STOCHASTIC, Format, get_format, get_stochastic

Rounding = Literal["rne", "rna", "rtz", "rup", "rdn", "rto", "sr"]
Overflow = Literal["saturate", "special", "saturate_finite", "wrap"]

ROUNDINGS = ("rne", "rna", "rtz", "rup", "rdn", "rto", "sr")
OVERFLOWS = ("saturate", "special", "saturate_finite", "wrap")
SR_VARIANTS = ("truncate", "half_offset", "rne_first")


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
    out: NDArray[Any] | None = None,
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
        floor(f 2^(b+1)) + 2R + 1 >= 2^(b+1), ``rne_first`` when round(f 2^b) + R >= 2^b. Or the
        name of hardware, which brings its variant and bits: ``"nvidia.cvt.rs"``,
        ``"amd.cvt_sr"``, ``"graphcore.ipu"``, ``"aws.trainium"`` (`formats.STOCHASTIC`).
    seed, offset
        Element i of the call draws from Philox-2x32-7 with key `seed` and counter
        ``offset + i`` alone (the top `random_bits` of its 64), so results do not depend on
        slicing, strides or threads. Give tensors that must be independent different seeds, or
        offsets that keep their ranges apart.
    random
        Integers below ``2**random_bits``, one for each element, in place of the stream. Without
        `random_bits` they are as wide as their type: uint16 draws have 16 bits.
    nan
        What NaN becomes in a format without NaN: ``"max"`` (NVIDIA FP4/FP6) or ``"zero"``;
        by default it is an error.
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
        range, an `out` that cannot take the codes, or NaN where the format has none (with the
        count and the first index).

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
    if isinstance(sr, str) and sr in STOCHASTIC:
        random_bits, sr = _hardware(f, mode, random_bits, sr)
    bits, variant, supplied = _stochastic(mode, random_bits, sr, seed, offset, random, values)
    plan = Plan(mode, policy, bits, variant, int(seed), int(offset), _nan_code(f, nan))
    codes = _output("encode", out, values, f.code_dtype)
    refused, first = encode_array(f, values, codes, plan, supplied)
    if refused:
        raise NumsimError(
            f"encode: {f.name} has no NaN; {refused} of {values.size} inputs are NaN, the first "
            f"at index {_index(first, values.shape)}; pass nan='max' or nan='zero', or remove them"
        )
    return codes


def decode(codes: ArrayLike, fmt: str | Format, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
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
    array = _code_array(codes)
    twos = f.kind == "integer" and f.signed
    low, high = (-(1 << (f.bits - 1)), (1 << (f.bits - 1)) - 1) if twos else (0, (1 << f.bits) - 1)
    info = np.iinfo(array.dtype)
    over, under = info.max > high, info.min < low
    if array.size and ((over and array.max() > high) or (under and array.min() < low)):
        bad = np.flatnonzero(~((array >= max(low, info.min)) & (array <= min(high, info.max))))
        index = _index(int(bad[0]), array.shape)
        raise NumsimError(
            f"decode: codes of {f.name} are {low} to {high}; {bad.size} of {array.size} are not, "
            f"the first is {int(array[index])} at index {index}; encode() makes codes"
        )
    values = _output("decode", out, array, f.value_dtype)
    decode_array(f, array, values)
    return values


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


# --------------------------------------------------------------------------------- validation


def _numbers(x: ArrayLike) -> NDArray[Any]:
    """Return `x` as an array of real numbers, neither copied nor widened."""
    array = _array("encode", x)
    dtype = array.dtype
    real = dtype.kind in "iu" or (dtype.kind == "f" and dtype.itemsize <= 8)
    # bfloat16, float8, int4 ... of ml_dtypes: all exact in float32
    if real or (dtype.kind == "V" and dtype.names is None and hasattr(ml_dtypes, dtype.name)):
        return array
    remedy = "convert the array first"
    if dtype.kind == "c":
        remedy = "encode x.real and x.imag apart"
    elif dtype.kind == "b":
        remedy = "x.astype(np.uint8) makes numbers of truth values"
    elif dtype.kind in "OSUT" and array.size:
        value = array.flat[0]
        remedy = f"the first is {value!r} at index {_index(0, array.shape)}; {remedy}"
    raise NumsimError(
        f"encode: inputs are float16, bfloat16, float32, float64 or integers; got {dtype}; {remedy}"
    )


def _array(who: str, x: ArrayLike) -> NDArray[Any]:
    if isinstance(x, np.ma.MaskedArray):
        masked = int(np.sum(np.ma.getmaskarray(x)))
        raise NumsimError(
            f"{who}: a masked array would lose its mask; {masked} of {x.size} values are masked; "
            "pass x.filled(value) or x.compressed()"
        )
    try:
        return np.asarray(x)
    except Exception as error:  # whatever the input's own __array__ raises
        raise NumsimError(
            f"{who}: the input makes no array ({error}); pass a NumPy array"
        ) from None


def _output(
    who: str, out: NDArray[Any] | None, source: NDArray[Any], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return the array that takes the result: a new one, or the caller's after a look at it."""
    if out is None:
        return np.empty(source.shape, dtype)
    is_array = isinstance(out, np.ndarray)
    if not (is_array and out.shape == source.shape and out.dtype == dtype and out.dtype.isnative):
        came = f"{out.dtype} of shape {out.shape}" if is_array else type(out).__name__
        raise NumsimError(
            f"{who}: out is an array of the result's shape {source.shape} and type {dtype}; got "
            f"{came}; np.empty({source.shape}, np.{dtype}) makes one"
        )
    if not (out.flags.c_contiguous and out.flags.writeable and out.flags.aligned):
        raise NumsimError(f"{who}: out is C-contiguous, aligned and writeable; pass a fresh array")
    if np.may_share_memory(out, source):
        raise NumsimError(f"{who}: out shares memory with the input; give it memory of its own")
    return out


def _code_array(codes: ArrayLike) -> NDArray[Any]:
    array = _array("decode", codes)
    if array.dtype.kind in "iu":
        return array
    if array.size:
        raise NumsimError(f"decode: codes are integers; got {array.dtype}; encode() makes codes")
    return array.astype(np.uint8)


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _choice(what: str, value: object, known: tuple[str, ...]) -> int:
    if not isinstance(value, str) or value not in known:
        near = near_names(str(value), known)
        raise NumsimError(f"{what} is one of {', '.join(known)}; got {value!r}{near}")
    return known.index(str(value))


def _check_wrap(f: Format, values: NDArray[Any]) -> None:
    if f.kind != "integer":
        raise NumsimError(
            f"overflow='wrap' is for integers and fixed point; {f.name} is not one; "
            "use saturate, special or saturate_finite"
        )
    if values.dtype.kind not in "iu":
        with np.errstate(all="ignore"):  # signalling NaN
            infinite = np.isinf(values if values.dtype.kind == "f" else values.astype(np.float32))
        if infinite.any():
            index = _index(int(np.flatnonzero(infinite)[0]), values.shape)
            raise NumsimError(
                f"overflow='wrap': Inf has no residue modulo 2**{f.bits}; {int(infinite.sum())} of "
                f"{values.size} inputs are Inf, the first at index {index}; use saturate"
            )


def _hardware(f: Format, mode: int, random_bits: int | None, sr: str) -> tuple[int | None, str]:
    """Return the bits and the variant of a piece of hardware; warn where nothing confirms them."""
    unit = get_stochastic(sr)
    bits = unit.bits_for(f)
    if mode != ROUNDINGS.index("sr"):
        raise NumsimError(f"sr={sr!r} belongs to rounding='sr'; set it, or leave sr out")
    if not (random_bits is None or (_is_integer(random_bits) and random_bits == bits)):
        raise NumsimError(
            f"sr={sr!r} adds {bits} random bits for {f.name}; got random_bits={random_bits!r}; "
            f"leave it out, or use sr={unit.variant!r}"
        )
    if not unit.verified:
        by_cast = sys._getframe(2).f_code is cast.__code__
        warnings.warn(
            f"stochastic rounding {sr}: no recording confirms it; {unit.note}",
            UnvalidatedWarning, stacklevel=4 if by_cast else 3,
        )  # fmt: skip
    return bits, unit.variant


def _stochastic(
    mode: int, random_bits: int | None, sr: str, seed: int, offset: int,
    random: ArrayLike | None, values: NDArray[Any],
) -> tuple[int, int, NDArray[Any] | None]:  # fmt: skip
    variant = _choice("sr", sr, (*SR_VARIANTS, *STOCHASTIC))
    if random_bits is not None and not (_is_integer(random_bits) and 1 <= random_bits <= 32):
        raise NumsimError(f"random_bits is 1 to 32, or None for all; got {random_bits!r}")
    if random_bits is not None and mode != ROUNDINGS.index("sr"):
        raise NumsimError("random_bits= belongs to rounding='sr'; set it, or leave random_bits out")
    if not (_is_integer(seed) and 0 <= seed < 1 << 32):
        raise NumsimError(f"seed is an integer from 0 to 2**32 - 1; got {seed!r}")
    if not (_is_integer(offset) and 0 <= offset < 1 << 63):
        raise NumsimError(f"offset is an integer from 0 to 2**63 - 1; got {offset!r}")
    if random is None:
        return 64 if random_bits is None else int(random_bits), variant, None
    given = _array("random", random)
    if mode != ROUNDINGS.index("sr"):
        raise NumsimError("random= supplies integers to rounding='sr' only; set rounding='sr'")
    if given.dtype.kind not in "iu" or given.shape != values.shape:
        raise NumsimError(
            f"random holds one integer for each input, shape {values.shape}; got {given.dtype} "
            f"of shape {given.shape}"
        )
    bits = int(random_bits) if random_bits is not None else min(given.dtype.itemsize * 8, 64)
    if given.size and (int(given.min()) < 0 or int(given.max()) >= 1 << bits):
        wrong = np.flatnonzero((given < 0) | (given > (1 << bits) - 1))
        index = _index(int(wrong[0]), given.shape)
        raise NumsimError(
            f"random integers lie from 0 to 2**random_bits - 1 = {(1 << bits) - 1}; "
            f"{wrong.size} of {given.size} do not, the first is {int(given[index])} at index "
            f"{index}; mask them with & {(1 << bits) - 1}"
        )
    return bits, variant, given


def _nan_code(f: Format, nan: str | None) -> int:
    if nan is not None and not (isinstance(nan, str) and nan in ("max", "zero")):
        raise NumsimError(f"nan is None, 'max' or 'zero'; got {nan!r}")
    if f.kind == "table":
        own = int(np.flatnonzero(np.isnan(f.table))[0]) if f.has_nan else -1
    else:
        own = f.nan_code
    if own >= 0 or nan is None:
        return own
    return f.max_code if nan == "max" else int(encode(0.0, f))
