"""What encode and decode accept: inputs, words, random numbers; every refusal is here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError, UnvalidatedWarning, near_names, warn
from numsim.formats import STOCHASTIC, Format, get_stochastic
from numsim.tensors import host_array
from numsim.vocabulary import NAN_POLICIES, ROUNDINGS, SR_VARIANTS

P3109 = {  # what IEEE P3109 calls overflow policies and few-bit stochastic variants
    "SatFinite": "saturate", "SatPropagate": "saturate_finite", "SatNone": "special",
    "StochasticA": "truncate", "StochasticB": "half_offset", "StochasticC": "rne_first",
}  # fmt: skip

_SR = ROUNDINGS.index("sr")

_TEXT = "x.astype(np.float64) reads numbers from text"
_REMEDIES = {  # by kind of dtype
    "c": "encode x.real and x.imag apart", "b": "x.astype(np.uint8) makes numbers of truth values",
    "O": "x.astype(np.float64) makes numbers of objects", "S": _TEXT, "U": _TEXT, "T": _TEXT,
    "f": "x.astype(np.float64) rounds first", "M": "x.astype(np.int64) counts units of time",
    "m": "x.astype(np.int64) counts units of time",
}  # fmt: skip


def numbers(x: ArrayLike) -> NDArray[Any]:
    """Return `x` as an array of real numbers, neither copied nor widened."""
    array = as_array("encode", x)
    dtype = array.dtype
    real = dtype.kind in "iu" or (dtype.kind == "f" and dtype.itemsize <= 8)
    # bfloat16, float8, int4 ... of ml_dtypes: all exact in float32
    if real or (dtype.kind == "V" and dtype.names is None and hasattr(ml_dtypes, dtype.name)):
        return array
    remedy = _REMEDIES.get(dtype.kind, "convert the array first")
    raise NumsimError(
        f"encode: inputs are float16, bfloat16, float32, float64 or integers; got {dtype}; "
        f"{_first(array)}{remedy}"
    )


def _first(array: NDArray[Any]) -> str:
    """Name the first wrong element of an array of a wrong type: of objects the first no number."""
    if not array.size:
        return ""
    at = 0
    if array.dtype.kind == "O":
        at = next((i for i, v in enumerate(array.flat) if not _is_number(v)), 0)
    return f"the first is {array.flat[at]!r:.60} at index {index_of(at, array.shape)}; "


def _is_number(value: object) -> bool:
    if is_integer(value):
        return -(1 << 63) <= int(value) < 1 << 64  # type: ignore[call-overload, no-any-return]
    return isinstance(value, float | np.floating)


def as_array(who: str, x: ArrayLike) -> NDArray[Any]:
    """Return `x` as an array; `who` begins the message of a refusal."""
    if isinstance(x, np.ma.MaskedArray):
        masked = int(np.sum(np.ma.getmaskarray(x)))
        raise NumsimError(
            f"{who}: a masked array would lose its mask; {masked} of {x.size} values are masked; "
            "pass x.filled(value) or x.compressed()"
        )
    return host_array(who, x)


def real_array(who: str, x: ArrayLike, dtype: Any = np.float32) -> NDArray[Any]:
    """Return `x` as an array of `dtype`, a float type; what is beyond its range becomes infinite.

    >>> real_array("store: values", ["1"])
    Traceback (most recent call last):
    numsim.errors.NumsimError: store: values: holds real numbers; got <U1; convert it
    """
    array = as_array(who, x)
    if array.dtype.kind not in "biufV":
        raise NumsimError(f"{who}: holds real numbers; got {array.dtype}; convert it")
    with np.errstate(over="ignore", under="ignore"):
        return array.astype(dtype, copy=False)


def is_word(value: object, known: Iterable[object]) -> bool:
    """Return whether `value` is one of some words; None, arrays and lists are asked without error.

    >>> is_word("max", ("max", "most_recent")), is_word(np.ones(2), ("max",))
    (True, False)
    """
    return (value is None or isinstance(value, str)) and value in known


def output(
    who: str, out: NDArray[Any] | None, source: NDArray[Any], dtype: np.dtype[Any],
    random: NDArray[Any] | None = None,
) -> NDArray[Any]:  # fmt: skip
    """Return the array that takes the result: a new one, or the caller's after a look at it."""
    if out is None:
        return np.empty(source.shape, dtype)
    is_array = type(out) is np.ndarray  # a matrix stays one when it is reshaped
    if not (is_array and out.shape == source.shape and out.dtype == dtype and out.dtype.isnative):
        came = f"{out.dtype} of shape {out.shape}" if is_array else type(out).__name__
        raise NumsimError(
            f"{who}: out is an array of the result's shape {source.shape} and type {dtype}; got "
            f"{came}; np.empty({source.shape}, np.{dtype}) makes one"
        )
    if not (out.flags.c_contiguous and out.flags.writeable and out.flags.aligned):
        raise NumsimError(f"{who}: out is C-contiguous, aligned and writeable; pass a fresh array")
    for what, array in (("the input", source), ("random", random)):
        if array is not None and np.may_share_memory(out, array):
            raise NumsimError(f"{who}: out shares memory with {what}; give it memory of its own")
    return out


def code_array(codes: ArrayLike) -> NDArray[Any]:
    """Return codes as an array of integers."""
    array = as_array("decode", codes)
    if array.dtype.kind in "iu":
        return array
    if not array.size and array.dtype.kind == "f":  # np.asarray([])
        return array.astype(np.uint8)
    remedy = "encode(x, fmt) makes codes of values"
    if hasattr(ml_dtypes, array.dtype.name):
        bits = 8 * array.dtype.itemsize
        narrow = "int" in array.dtype.name
        remedy = "x.astype(np.int8) widens them" if narrow else f"x.view(np.uint{bits}) has them"
    raise NumsimError(f"decode: codes are integers; got {array.dtype}; {_first(array)}{remedy}")


def index_of(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of an element given by its place in C order."""
    return tuple(int(i) for i in np.unravel_index(flat, shape))


def is_integer(value: object) -> bool:
    """Return whether a value is an integer, and not a truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_truths(who: str, **values: object) -> None:
    """Raise for what is neither True nor False, by its name: a word like "no" would count as True.

    >>> check_truths("SGD", master="no")
    Traceback (most recent call last):
    numsim.errors.NumsimError: SGD: master is True or False; got 'no'
    """
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise NumsimError(f"{who}: {name} is True or False; got {value!r:.60}")


def choice(what: str, value: object, known: tuple[str, ...]) -> int:
    """Return the place of a word among the known ones; `P3109` has other words for some."""
    value = P3109.get(value, value) if isinstance(value, str) else value
    if not isinstance(value, str) or value not in known:
        near = near_names(value.lower(), known) if isinstance(value, str) else ""
        raise NumsimError(f"{what} is one of {', '.join(known)}; got {value!r}{near}")
    return known.index(str(value))


def check_wrap(f: Format, values: NDArray[Any]) -> None:
    """Refuse ``wrap`` where it has no meaning: floats, tables, infinite inputs."""
    if f.kind != "integer":
        raise NumsimError(
            f"overflow='wrap' is for integers and fixed point; {f.name} is not one; "
            "use saturate, special or saturate_finite"
        )
    if values.dtype.kind not in "iu":
        infinite, first = 0, -1
        for start, block in _blocks(values):
            found = np.isinf(block)
            if found.any():
                first = start + int(np.argmax(found)) if first < 0 else first
                infinite += int(found.sum())
        if infinite:
            raise NumsimError(
                f"overflow='wrap': Inf has no residue modulo 2**{f.bits}; {infinite} of "
                f"{values.size} inputs are Inf, the first at index "
                f"{index_of(first, values.shape)}; use saturate"
            )


def _blocks(values: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield (flat index, numbers) of small pieces in C order: no temporary grows with the array."""
    walk: Any = np.nditer(
        [values], ["external_loop", "buffered", "zerosize_ok"], [["readonly", "nbo"]],
        [np.dtype(np.float64)], order="C", casting="unsafe", buffersize=1 << 12,
    )  # fmt: skip
    start = 0
    with np.errstate(all="ignore"):  # signalling NaN
        for block in walk:
            yield start, block
            start += block.size


def hardware(f: Format, mode: int, random_bits: int | None, sr: str) -> tuple[int | None, str]:
    """Return the bits and the variant of a piece of hardware; warn where nothing confirms them."""
    unit = get_stochastic(sr)
    bits = unit.bits_for(f)
    if mode != _SR:
        raise NumsimError(f"sr={sr!r} belongs to rounding='sr'; set it, or leave sr out")
    if not (random_bits is None or (is_integer(random_bits) and random_bits == bits)):
        raise NumsimError(
            f"sr={sr!r} adds {bits} random bits for {f.name}; got random_bits={random_bits!r}; "
            f"leave it out, or use sr={unit.variant!r}"
        )
    if not unit.verified:
        warn(f"stochastic rounding {sr}: no recording confirms it; {unit.note}", UnvalidatedWarning)
    return bits, unit.variant


def without_draws(name: str, rounding: str) -> NumsimError:
    """Return what is said of an argument of stochastic rounding where nothing is drawn."""
    return NumsimError(
        f"{name}= belongs to rounding='sr', got rounding={rounding!r}; set rounding='sr', or leave "
        f"{name} out"
    )


def stochastic(
    mode: int, random_bits: int | None, sr: str, seed: int, offset: int,
    random: ArrayLike | None, values: NDArray[Any],
) -> tuple[int, int, NDArray[Any] | None]:  # fmt: skip
    """Return the random bits (64: all), the variant, and the supplied integers."""
    variant = choice("sr", sr, (*SR_VARIANTS, *STOCHASTIC))
    if random_bits is not None and not (is_integer(random_bits) and 1 <= random_bits <= 32):
        raise NumsimError(
            f"random_bits is an integer from 1 to 32; got {random_bits!r:.60}; leave it out to use "
            "every discarded bit"
        )
    if mode != _SR:
        in_vain = {
            "random": random is not None, "random_bits": random_bits is not None,
            "sr": variant != 0, "seed": not (is_integer(seed) and seed == 0),
            "offset": not (is_integer(offset) and offset == 0),
        }  # fmt: skip
        for name, came in in_vain.items():
            if came:
                raise without_draws(name, ROUNDINGS[mode])
    if not (is_integer(seed) and 0 <= seed < 1 << 32):
        raise NumsimError(f"seed is an integer from 0 to 2**32 - 1; got {seed!r:.60}; 0 is usual")
    if not (is_integer(offset) and 0 <= offset < 1 << 63):
        raise NumsimError(
            f"offset is an integer from 0 to 2**63 - 1; got {offset!r:.60}; 0 is usual"
        )
    if random is None:
        return 64 if random_bits is None else int(random_bits), variant, None
    given = as_array("random", random)
    if not given.size:
        given = given.astype(np.uint64)
    if given.dtype.kind not in "iu" or given.shape != values.shape:
        raise NumsimError(
            f"random holds one integer for each input, shape {values.shape}; got {given.dtype} "
            f"of shape {given.shape}; {'' if given.dtype.kind in 'iu' else _first(given)}"
            f"rng.integers(2**bits, size={values.shape}, dtype=np.uint64) makes some"
        )
    if random_bits is None and given.dtype.kind == "i":
        raise NumsimError(
            f"random of a signed type does not say how many bits were drawn; got {given.dtype} "
            f"and no random_bits; pass random.astype(np.u{given.dtype.name}), or random_bits= to "
            "encode"
        )
    bits = int(random_bits) if random_bits is not None else min(given.dtype.itemsize * 8, 64)
    if given.size and (int(given.min()) < 0 or int(given.max()) >= 1 << bits):
        wrong = np.flatnonzero((given < 0) | (given > (1 << bits) - 1))
        index = index_of(int(wrong[0]), given.shape)
        raise NumsimError(
            f"random integers lie from 0 to 2**random_bits - 1 = {(1 << bits) - 1}; "
            f"{wrong.size} of {given.size} do not, the first is {int(given[index])} at index "
            f"{index}; mask them with & {(1 << bits) - 1}"
        )
    return bits, variant, given


def nan_rule(f: Format, nan: str | None) -> tuple[int, int, int]:
    """Return what NaN becomes: (code, -1: refused; sign bit kept; fraction bits dropped of 52)."""
    if nan is not None:
        choice("nan", nan, NAN_POLICIES)
    if f.has_nan and nan in ("max", "zero"):
        raise NumsimError(
            f"nan={nan!r} is for formats without NaN; {f.name} has one; leave nan out, or use "
            "nan='canonical' or 'payload'"
        )
    if not f.has_nan and nan in ("canonical", "payload"):
        raise NumsimError(
            f"nan={nan!r} is for formats with NaN; {f.name} has none; use nan='max' or 'zero'"
        )
    if nan == "max":
        return f.max_code, 0, 52
    if nan == "zero":
        zero = int(np.argmin(np.abs(f.table))) if f.kind == "table" else 0
        return zero, 0, 52
    if f.kind == "table":
        return (int(np.flatnonzero(np.isnan(f.table))[0]) if f.has_nan else -1), 0, 52
    code = f.nan_code
    sign = f.params.sign_bit if f.params.nan_signed else 0
    if nan == "canonical":
        every = (1 << (f.bits - f.signed)) - 1
        return every if f.nan == "ieee" else code, 0, 52
    return code, sign, 53 - f.precision if nan == "payload" and f.nan == "ieee" else 52
