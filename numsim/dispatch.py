"""Which kernel converts what: block by block over arrays of any type and layout.

A worker takes (block, out, start, random): a contiguous native block of the input, the slice of
the output it fills, the position of its first element, and supplied random integers. It returns
(how many NaNs the format refused, position of the first). Blocks of an array that is contiguous
and of the right type are views; of any other array, small copies.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from numsim.formats import Format, get_format, list_formats
from numsim.kernels import jit
from numsim.kernels.convert import codec
from numsim.kernels.convert import decode as fast_decode
from numsim.kernels.convert import float32 as fast
from numsim.kernels.convert.philox import random64
from numsim.kernels.convert.round import (
    HALF_OFFSET,
    RDN,
    RNA,
    RNE,
    RTO,
    RTZ,
    RUP,
    SATURATE,
    SPECIAL,
    SR,
    TRUNCATE,
    WRAP,
)
from numsim.kernels.ir import simd

Worker = Callable[[NDArray[Any], NDArray[Any], int, NDArray[np.uint64]], tuple[int, int]]

_GRAIN = 1 << 15  # elements; smaller arrays stay on one thread
_LONG_ROW = 256  # elements; a row of fewer is not worth a call
_BLOCK = 1 << 13  # elements of a copied block
_ODD = 1 << 15  # float64 numbers that become float32 at a time
_LOOKUP_FROM = 1 << 14  # elements from which a table of all 65,536 inputs pays
_NO_RANDOM = np.empty(0, np.uint64)
_NONE = (0, -1)


class Plan(NamedTuple):
    """Everything that decides a code besides the format and the number."""

    mode: int
    overflow: int
    bits: int  # random bits, 64: all
    variant: int
    seed: int
    offset: int
    nan_code: int  # -1: NaN is refused
    nan_sign: int = 0  # sign bit that a NaN keeps
    nan_drop: int = 52  # how many of its 52 float64 fraction bits a NaN loses


def encode_array(
    f: Format, x: NDArray[Any], out: NDArray[Any], how: Plan, random: NDArray[Any] | None
) -> tuple[int, int]:
    """Encode any real array into `out` (C order); return (NaNs refused, flat index of one)."""
    dtype, worker = _encoder(f, x, how, random is not None)
    return over_blocks(x, dtype, out.reshape(-1), worker, random)


def over_blocks(
    x: NDArray[Any], dtype: DTypeLike, out: NDArray[Any], worker: Worker,
    random: NDArray[Any] | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Run `worker` over all of `x` as `dtype`, in C order and on every thread; add its counts."""
    found: list[tuple[int, int]] = []
    if x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned and random is None:
        flat = x.reshape(-1)
        jit.over_range(
            lambda i, j: found.append(worker(flat[i:j], out[i:j], i, _NO_RANDOM)),
            x.size, grain=_GRAIN,
        )  # fmt: skip
    else:
        arrays = [x] if random is None else [x, random]
        types = [np.dtype(dtype), np.dtype(np.uint64)][: len(arrays)]
        jit.over_range(
            lambda i, j: found.extend(_copied(arrays, types, out, worker, i, j)),
            x.size, grain=_GRAIN,
        )  # fmt: skip
    places = [first for count, first in found if count]
    return sum(count for count, _ in found), min(places, default=-1)


def _copied(
    arrays: list[NDArray[Any]], types: list[np.dtype[Any]], out: NDArray[Any], worker: Worker,
    start: int, stop: int,
) -> list[tuple[int, int]]:  # fmt: skip
    options: list[Any] = [["readonly", "contig", "aligned", "nbo"]] * len(arrays)
    walk = np.nditer(
        arrays, ["external_loop", "buffered", "ranged"], options, types, order="C",
        casting="unsafe", buffersize=_BLOCK,
    )  # fmt: skip
    walk.iterrange = (start, stop)  # type: ignore[misc]  # NumPy's stub forgets the setter
    found = []
    with np.errstate(all="ignore"):  # signalling NaN
        for blocks in walk:
            block, random = blocks if isinstance(blocks, tuple) else (blocks, _NO_RANDOM)
            end = start + block.size
            found.append(worker(block, out[start:end], start, random))
            start = end
    return found


# ------------------------------------------------------------------------------------ encoding


def encode_quotients(
    f: Format, x: NDArray[np.float32], by: NDArray[np.float32], out: NDArray[Any]
) -> bool:
    """Write the codes of ``fp32(x / by)``, to nearest and saturated, in one pass over memory.

    `by` is of one element, or of one for each row of x along its last axis. Returns False, with
    `out` undefined, where no kernel does it: arrays that are not contiguous, most formats, NaN.
    """
    works = _of_quotients(f, simd.enabled())
    if works is None or not (x.flags.c_contiguous and out.flags.c_contiguous and x.flags.aligned):
        return False
    met: list[bool] = []
    if by.size == 1:
        source, codes, one = x.reshape(-1), out.reshape(-1), np.float32(by.item())
        jit.over_range(
            lambda i, j: met.append(works[0](source[i:j], one, codes[i:j])), x.size, grain=_GRAIN
        )
        return not any(met)
    if by.shape != (*x.shape[:-1], 1) or x.shape[-1] < _LONG_ROW:
        return False
    rows, found, each = (array.reshape(by.size, -1) for array in (x, out, by))
    each = np.ascontiguousarray(each[:, 0])
    jit.over_range(
        lambda i, j: met.append(works[1](rows[i:j], each[i:j], found[i:j])),
        by.size, grain=max(_GRAIN // max(x.shape[-1], 1), 1),
    )  # fmt: skip
    return not any(met)


@cache
def _of_quotients(f: Format, wide: bool) -> tuple[Callable[..., bool], Callable[..., bool]] | None:
    """Return the kernels of one scale and of a scale for each row."""
    if f.kind == "integer" and f.bits <= 16 and f.bias <= 120:
        unit = 2.0**f.bias
        limits = (np.float32(unit), np.float32(f.min * unit), np.float32(f.max * unit))
        return (
            lambda x, by, out: fast.quotients_to_integers(x, by, out, *limits),
            lambda x, by, out: fast.rows_to_integers(x, by, out, *limits),
        )
    if not (wide and simd.HAVE_BYTE_TABLES and f.kind == "float" and f.bits == 8 and f.zero):
        return None
    scalars = _scalars(f, RNE, SATURATE, f.nan_code)
    if scalars is None or not (_by_addition(f, scalars) and fast.takes_bytes(scalars)):
        return None
    return (
        lambda x, by, out: fast.quotients_to_bytes(x, by, out, scalars),
        lambda x, by, out: fast.rows_to_bytes(x, by, out, scalars),
    )


def _by_addition(f: Format, scalars: fast.Fast) -> bool:
    """Whether float32 additions round to nearest into a format (`kernels.convert.float32`)."""
    nearest = f.kind == "float" and f.signed and f.precision > 1
    return nearest and int(scalars.clamp >> np.uint32(23)) + 24 - f.precision < 255


def _encoder(f: Format, x: NDArray[Any], how: Plan, supplied: bool) -> tuple[np.dtype[Any], Worker]:
    dtype = x.dtype.newbyteorder("=")  # np.dtype(">f8") == np.float64 is False
    if dtype.kind in "iu":
        return np.dtype(np.uint64 if dtype == np.uint64 else np.int64), _from_integers(f, how)
    half = dtype in (np.float16, ml_dtypes.bfloat16)
    if half and how.mode != SR and x.size >= _LOOKUP_FROM:
        return dtype, _from_half(f, dtype, how)
    if dtype == np.float64:
        odd = None if supplied else _by_odd(f, how)
        return dtype, odd or _from_table(f, how) or _generic(f, how)
    # plans of stochastic rounding are as many as tensors, all others few
    worker = (_singles if how.mode == SR else _kept_singles)(f, how, supplied)
    if how.nan_drop < 52 and (single := _with_payloads(dtype)) is not None:
        return dtype, _by_code(single, worker)
    return np.dtype(np.float32), worker


def _singles(f: Format, how: Plan, supplied: bool) -> Worker:
    """Return the worker of float32."""
    return _from_table(f, how) or (None if supplied else _fast(f, how)) or _generic(f, how)


_kept_singles = lru_cache(maxsize=256)(_singles)


def _by_odd(f: Format, how: Plan) -> Worker | None:
    """Return the worker of float32 after a rounding to odd, where that decides the same."""
    far = f.min_subnormal >= 2.0**-140 and f.max < 2.0**127
    if how.mode == SR or how.nan_drop < 52 or f.kind == "table" or f.bits > 16 or not far:
        return None
    if how.overflow == WRAP:  # the lowest bits of large numbers count
        return None
    worker = _kept_singles(f, how, False)

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if x.size > _ODD:
            return _in_blocks(work, x, out, start, random, _ODD)
        singles = np.empty(x.size, np.uint32)
        fast.odd_singles(x, singles)
        return worker(singles.view(np.float32), out, start, random)

    return work


def _generic(f: Format, how: Plan) -> Worker:
    common = (f.params, how.mode, how.overflow, how.bits, how.variant)

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        rest = (random, how.seed, np.uint64(how.offset + start), *how[6:])
        if x.dtype == np.float32:
            found = codec.encode_float32(x.view(np.uint32), out, *common, *rest)
        else:
            found = codec.encode_float64(x.view(np.uint64), out, *common, *rest)
        return found[0], found[1] + start

    return work


def _from_integers(f: Format, how: Plan) -> Worker:
    table = _from_table(f, how)
    common = (f.params, how.mode, how.overflow, how.bits, how.variant) if table is None else ()

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if table is not None:
            if x.size > _BLOCK:
                return _in_blocks(work, x, out, start, random)
            found = table(x.astype(np.float64), out, start, random)
            # what float64 cannot hold is decided again
            wide = (x >= 1 << 53) | (x <= -(1 << 53) if x.dtype.kind == "i" else False)
            _exact(f, how, np.flatnonzero(wide), x, out, start, random)
            return found
        signed = x.dtype.kind == "i"
        rest = (random, how.seed, np.uint64(how.offset + start))
        codec.encode_integer(x.view(np.uint64), out, signed, *common, *rest)
        return _NONE

    return work


def _from_table(f: Format, how: Plan) -> Worker | None:
    if f.kind != "table":
        return None
    to_inf = f.has_inf and how.overflow == SPECIAL
    values, codes = _sorted_table(f, to_inf)
    common = (values, codes, how.mode, how.overflow, how.bits, how.variant)
    infinite = f.nan_code if f.has_nan else -1, f.nan_code
    if f.has_inf:
        infinite = f.inf_code, int(np.flatnonzero(np.isneginf(f.values()))[0])

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if how.mode == SR and x.size > _BLOCK:
            return _in_blocks(work, x, out, start, random)
        rest = (random, how.seed, np.uint64(how.offset + start), how.nan_code, infinite, to_inf)
        doubtful = np.zeros(x.size if how.mode == SR else 0, np.bool_)
        found = codec.encode_table(x, out, *common, *rest, doubtful)
        _exact(f, how, np.flatnonzero(doubtful), x, out, start, random)
        return found[0], found[1] + start

    return work


def _in_blocks(
    work: Worker, x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64],
    size: int = _BLOCK,
) -> tuple[int, int]:  # fmt: skip
    """Cut a big piece up: the worker's temporaries stay small."""
    cuts = [slice(i, i + size) for i in range(0, x.size, size)]
    parts = [work(x[c], out[c], start + c.start, random[c]) for c in cuts]
    return sum(n for n, _ in parts), min((at for n, at in parts if n), default=-1)


def _exact(
    f: Format, how: Plan, where: NDArray[np.intp], x: NDArray[Any], out: NDArray[Any], start: int,
    random: NDArray[np.uint64],
) -> None:  # fmt: skip
    """Round the elements at `where` into a table again, in exact fractions."""
    if not where.size:
        return
    table = _sorted_table(f, f.has_inf and how.overflow == SPECIAL)
    values, codes = (column.tolist() for column in table)
    for i in where.tolist():
        v = x[i].item()
        hi = bisect_left(values, v)
        if hi in (0, len(values)) or values[hi] == v:
            out[i] = codes[min(hi, len(values) - 1)]
            continue
        low, high = Fraction(values[hi - 1]), Fraction(values[hi])
        position = (Fraction(v) - low) / (high - low)
        if how.mode == SR:
            r = int(random[i]) if random.size else draw(how.offset + start + i, how.seed, how.bits)
            up = _carries(position if v > 0 else 1 - position, r, how) == (v > 0)
        else:
            even, half = codes[hi - 1] % 2 == 0, Fraction(1, 2)
            up = {
                RNE: position > half or (position == half and not even),
                RNA: position > half or (position == half and v > 0),
                RTZ: v < 0, RUP: True, RDN: False, RTO: even,
            }[how.mode]  # fmt: skip
        out[i] = codes[hi if up else hi - 1]


def draw(number: int, seed: int, bits: int) -> int:
    """Return the random integer of one number of the stream."""
    return int(random64(np.uint64(number), np.uint32(seed))) >> (64 - bits)


def _carries(fraction: Fraction, r: int, how: Plan) -> bool:
    """Do what `kernels.round.random_carry` does to any fraction."""
    one = 1 << how.bits
    if how.bits == 64 or how.variant == TRUNCATE:
        return fraction * one >= one - r
    if how.variant == HALF_OFFSET:
        return fraction * 2 * one >= 2 * one - 2 * r - 1
    return round(fraction * one) + r >= one  # Python rounds ties to even


def _from_half(f: Format, dtype: np.dtype[Any], how: Plan) -> Worker:
    table = _half_table(f, dtype, how)
    infinity = np.uint16(0x7C00 if dtype == np.float16 else 0x7F80)

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if codec.encode_lookup(x.view(np.uint16), out, table, infinity) and how.nan_code < 0:
            nan = np.flatnonzero((x.view(np.uint16) & np.uint16(0x7FFF)) > infinity)
            return nan.size, int(nan[0]) + start
        return _NONE

    return work


@lru_cache(maxsize=64)
def _half_table(f: Format, dtype: np.dtype[Any], how: Plan) -> NDArray[Any]:
    """Encode all 65,536 numbers of a 16-bit type."""
    with np.errstate(all="ignore"):
        x = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)
    out = np.zeros(1 << 16, f.code_dtype)
    encode_array(f, x, out, how, None)
    out.flags.writeable = False
    return out


@cache
def _with_payloads(dtype: np.dtype[Any]) -> NDArray[np.float32] | None:
    """Return the values of a float8 type that has NaNs of several fractions, else None.

    ml_dtypes makes one float32 NaN of them all.
    """
    f = get_format(dtype.name if dtype.name in list_formats() else "float32")
    if f.bits != 8 or f.nan != "ieee":
        return None
    codes = np.arange(256, dtype=np.uint32)
    bits = ((codes & 0x80) << 24) | 0x7F800000 | ((codes << (24 - f.precision)) & 0x7FFFFF)
    values = f.values().astype(np.float32)
    return np.where(np.isnan(values), bits.astype(np.uint32).view(np.float32), values)


def _by_code(values: NDArray[np.float32], worker: Worker) -> Worker:
    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if x.size > _BLOCK:
            return _in_blocks(work, x, out, start, random)
        return worker(values[x.view(np.uint8)], out, start, random)

    return work


def _fast(f: Format, how: Plan) -> Worker | None:
    """Return a branch-free worker from float32 where one applies."""
    if f == get_format("float32"):
        return _as_it_is(f, how)
    if f.bits > 16 or f.kind == "table" or how.overflow == WRAP:
        return None
    again = _generic(f, how)
    if f.kind == "integer" and how.mode == RNE and f.bias <= 120:
        unit = 2.0**f.bias
        limits = (np.float32(unit), np.float32(f.min * unit), np.float32(f.max * unit))

        def integer(
            x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
        ) -> tuple[int, int]:
            met = fast.integer_rne(x, out, *limits)
            return again(x, out, start, random) if met else _NONE

        return integer
    if not f.zero and how.mode == RNE and (f.bits, f.bias) == (8, 127) and f.has_nan:
        return _fast_scale(f, how)
    scalars = _scalars(f, how.mode, how.overflow, how.nan_code, how.nan_sign)
    slow_nan = how.nan_code < 0 or how.nan_drop < 52  # refused, or with its payload
    if scalars is None:
        return None
    if how.mode == SR:
        return _fast_stochastic(f, scalars, how, again)
    by_addition = how.mode == RNE and _by_addition(f, scalars)
    kernel = fast.float_rne if by_addition else fast.float_any
    eight = by_addition and fast.takes_bytes(scalars) and simd.HAVE_BYTE_TABLES

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        met = (fast.byte_rne if eight and simd.enabled() else kernel)(
            x.view(np.uint32), out, scalars
        )
        return again(x, out, start, random) if met and slow_nan else _NONE

    return work


def _as_it_is(f: Format, how: Plan) -> Worker:
    """Return the worker of float32 into float32: only NaN and, by the overflow, Inf can change."""
    again = _generic(f, how)

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if not np.isfinite(x).all():
            return again(x, out, start, random)
        np.copyto(out, x.view(np.uint32))
        return _NONE

    return work


def _fast_scale(f: Format, how: Plan) -> Worker:
    """Return the worker of E8M0."""
    top, nan = f.max_code, f.nan_code
    special = how.overflow == SPECIAL
    inf = top if how.overflow == SATURATE else nan
    codes = (nan if special else top, inf, nan if special else 0, 0 if inf == top else nan)
    limits = [np.uint32(code) for code in (*codes, how.nan_code)]

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        fast.scale_rne(x.view(np.uint32), out, *limits)
        return _NONE

    return work


def _fast_stochastic(f: Format, scalars: fast.Fast, how: Plan, again: Worker) -> Worker | None:
    narrow = how.variant == TRUNCATE or (how.variant == HALF_OFFSET and how.bits < 32)
    if how.bits != 64 and not (narrow and how.bits <= 32):
        return None
    half_offset = how.bits < 32 and how.variant == HALF_OFFSET
    noise = fast.noise(how.bits, half_offset, how.seed)
    point = 31 - f.precision  # fraction bits of a subnormal in `float_sr_narrow`
    scale = point - (f.emin - f.precision + 1)
    narrow = f.kind == "float" and point >= fast.SUB_BITS and scale < 128
    slow_nan = how.nan_code < 0 or how.nan_drop < 52
    eight = fast.takes_bytes(scalars) and simd.HAVE_BYTE_TABLES

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        number = np.uint64(how.offset + start)
        bits = x.view(np.uint32)
        if narrow:
            to_fixed = np.float32(2.0**scale)
            kernel = fast.byte_sr_narrow if eight and simd.enabled() else fast.float_sr_narrow
            met, lower = kernel(bits, out, scalars, noise, to_fixed, number)
        else:
            met, lower = fast.float_sr(bits, out, scalars, noise, number)
        return again(x, out, start, random) if lower or (met and slow_nan) else _NONE

    return work


@cache
def _scalars(
    f: Format, mode: int, overflow: int, nan_code: int, nan_sign: int = 0
) -> fast.Fast | None:
    limit = f.max
    if f.kind == "float" and overflow == SPECIAL and (f.has_inf or f.has_nan) and f.zero:
        limit = f.value_after_max
    bits = int(np.array(limit, np.float32).view(np.uint32)) if limit < 2.0**128 else 0x7F800000
    return fast.fast_scalars(tuple(f.params), mode, overflow, (nan_code, nan_sign), bits)


@cache
def _sorted_table(f: Format, to_inf: bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return values and their codes, lowest first; `to_inf`: with those that stand for Inf."""
    values = np.array(f.table) if to_inf else f.values()
    codes = np.flatnonzero(np.isfinite(values))
    order = codes[np.argsort(values[codes], kind="stable")]
    return values[order], order


# ------------------------------------------------------------------------------------ decoding


def decode_array(f: Format, codes: NDArray[Any], out: NDArray[Any]) -> None:
    """Decode codes that lie in the format's range into `out` (C order)."""
    worker = _decoder(f)

    def work(
        x: NDArray[Any], part: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        worker(x, part)
        return _NONE

    over_blocks(codes, f.code_dtype, out.reshape(-1), work)


@cache
def float_codes(f: Format) -> fast_decode.Codes | None:
    """Return how a kernel reads the codes of a float of at most 16 bits, None for other formats."""
    single = f.value_dtype == np.float32
    if not (f.kind == "float" and f.bits <= 16 and f.zero and f.emin >= -126 and single):
        return None
    nan_from = {"ieee": f.max_code + 2, "all_ones": f.nan_code}.get(f.nan, -1)
    one_nan = f.nan_code if f.nan == "minus_zero" else -1
    return fast_decode.code_scalars(
        f.bits, f.precision, f.emin, f.signed, f.inf_code, nan_from, one_nan
    )


@cache
def _decoder(f: Format) -> Callable[[NDArray[Any], NDArray[Any]], object]:
    if f.kind == "integer" and f.value_dtype == np.float32 and f.bits <= 24:
        quantum = np.float32(2.0**-f.bias)
        return lambda x, out: fast_decode.decode_integer(x, out, quantum)
    if f.kind == "integer":
        unit = 2.0**-f.bias
        return lambda x, out: np.multiply(x, unit, out=out)
    if f == get_format("float32"):
        return lambda x, out: np.copyto(out.view(np.uint32), x)
    scalars = float_codes(f)
    if scalars is not None:
        return lambda x, out: fast_decode.decode_float(x, out.view(np.uint32), scalars)
    if f.bits <= 16:
        table = f.values().astype(f.value_dtype)
        unsigned = np.dtype(f"u{f.code_dtype.itemsize}")
        return lambda x, out: fast_decode.decode_table(x.view(unsigned), out, table)

    def wide(x: NDArray[Any], out: NDArray[Any]) -> None:
        for i in range(0, x.size, _BLOCK):
            out[i : i + _BLOCK] = f.decode_bits(x[i : i + _BLOCK].astype(np.int64))

    return wide
