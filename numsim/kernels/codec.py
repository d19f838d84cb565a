"""Arrays of values to codes and back: loops around `round.encode_value`, and table look-up."""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.jit import inline, kernel
from numsim.kernels.round import (
    RDN,
    RNA,
    RNE,
    RTO,
    RTZ,
    RUP,
    SATURATE,
    SR,
    encode_value,
    random_carry,
)


@inline
def philox2x32(index: np.uint64, seed: np.uint32) -> np.uint64:
    """Return 64 random bits for one counter value: Philox-2x32, ten rounds (Salmon et al. 2011)."""
    low = np.uint32(index)
    high = np.uint32(index >> np.uint64(32))
    key = seed
    for _ in range(10):
        product = np.uint64(0xD256D193) * np.uint64(low)
        low = np.uint32(product >> np.uint64(32)) ^ key ^ high
        high = np.uint32(product)
        key = np.uint32(key + np.uint32(0x9E3779B9))
    return (np.uint64(low) << np.uint64(32)) | np.uint64(high)


@inline
def draw(
    i: np.int64, random: np.ndarray, seed: np.uint32, offset: np.uint64, bits: np.int64
) -> np.uint64:
    """Return the `bits` random bits of element i: supplied, or the top bits of the stream."""
    if random.size:
        return np.uint64(random[i])
    return philox2x32(offset + np.uint64(i), seed) >> np.uint64(64 - bits)


@kernel
def encode_float32(
    x: np.ndarray, out: np.ndarray, start: int, stop: int, params: Any, mode: int,
    overflow: int, bits: int, variant: int, random: np.ndarray, seed: int, offset: int,
    nan_code: int,
) -> tuple[int, int]:  # fmt: skip
    """Encode float32 bit patterns (uint32) [start:stop]; return (NaNs refused, first index)."""
    refused, first = 0, -1
    for i in range(start, stop):
        u = x[i]
        negative = (u >> np.uint32(31)) != np.uint32(0)
        field = np.int64((u >> np.uint32(23)) & np.uint32(255))
        sig = np.uint64(u & np.uint32(0x7FFFFF))
        if field == 255 and sig != np.uint64(0):
            if nan_code < 0:
                refused += 1
                first = i if first < 0 else first
            else:
                sign = params.sign_bit if negative and params.nan_signed else 0
                out[i] = np.int64(nan_code | sign)
            continue
        if field:
            sig |= np.uint64(1 << 23)
        r = np.uint64(0)
        if mode == SR:
            r = draw(i, random, np.uint32(seed), np.uint64(offset), bits)
        out[i] = encode_value(
            negative, sig, max(field, np.int64(1)) - np.int64(150), field == 255, params, mode,
            overflow, r, bits, variant,
        )  # fmt: skip
    return refused, first


@kernel
def encode_float64(
    x: np.ndarray, out: np.ndarray, start: int, stop: int, params: Any, mode: int,
    overflow: int, bits: int, variant: int, random: np.ndarray, seed: int, offset: int,
    nan_code: int,
) -> tuple[int, int]:  # fmt: skip
    """Encode float64 bit patterns (uint64) [start:stop]; return (NaNs refused, first index)."""
    refused, first = 0, -1
    for i in range(start, stop):
        u = x[i]
        negative = (u >> np.uint64(63)) != np.uint64(0)
        field = np.int64((u >> np.uint64(52)) & np.uint64(2047))
        sig = u & np.uint64(0xFFFFFFFFFFFFF)
        if field == 2047 and sig != np.uint64(0):
            if nan_code < 0:
                refused += 1
                first = i if first < 0 else first
            else:
                sign = params.sign_bit if negative and params.nan_signed else 0
                out[i] = np.int64(nan_code | sign)
            continue
        if field:
            sig |= np.uint64(1 << 52)
        r = np.uint64(0)
        if mode == SR:
            r = draw(i, random, np.uint32(seed), np.uint64(offset), bits)
        out[i] = encode_value(
            negative, sig, max(field, np.int64(1)) - np.int64(1075), field == 2047, params, mode,
            overflow, r, bits, variant,
        )  # fmt: skip
    return refused, first


@kernel
def encode_integer(
    x: np.ndarray, signed: bool, out: np.ndarray, start: int, stop: int, params: Any, mode: int,
    overflow: int, bits: int, variant: int, random: np.ndarray, seed: int, offset: int,
) -> None:  # fmt: skip
    """Encode 64-bit integers, given as uint64 bit patterns."""
    for i in range(start, stop):
        u = x[i]
        negative = signed and (u >> np.uint64(63)) != np.uint64(0)
        sig = np.uint64(0) - u if negative else u
        r = np.uint64(0)
        if mode == SR:
            r = draw(i, random, np.uint32(seed), np.uint64(offset), bits)
        out[i] = encode_value(
            negative, sig, np.int64(0), False, params, mode, overflow, r, bits, variant
        )


@kernel
def encode_table(
    x: np.ndarray, out: np.ndarray, start: int, stop: int, values: np.ndarray, codes: np.ndarray,
    mode: int, overflow: int, bits: int, variant: int, random: np.ndarray, seed: int, offset: int,
    nan_code: int, inf_code: int,
) -> tuple[int, int]:  # fmt: skip
    """Encode float64 numbers into a format given by its sorted finite values and their codes."""
    refused, first = 0, -1
    last = len(values) - 1
    for i in range(start, stop):
        v = x[i]
        if np.isnan(v):
            if nan_code < 0:
                refused += 1
                first = i if first < 0 else first
            else:
                out[i] = nan_code
            continue
        if np.isinf(v) and overflow != SATURATE and inf_code >= 0:
            out[i] = inf_code
            continue
        if v <= values[0] or v >= values[last]:
            out[i] = codes[0] if v <= values[0] else codes[last]
            continue
        hi = np.searchsorted(values, v, side="left")
        if values[hi] == v:
            out[i] = codes[hi]
            continue
        lo = hi - 1
        middle = values[lo] + (values[hi] - values[lo]) * 0.5  # exact: neighbours are close
        lo_even = codes[lo] & 1 == 0
        if mode == RNE:
            up = v > middle or (v == middle and not lo_even)
        elif mode == RNA:
            up = v > middle or (v == middle and v > 0)
        elif mode == RTZ:
            up = v < 0
        elif mode in (RUP, RDN):
            up = mode == RUP
        elif mode == RTO:
            up = lo_even
        else:  # away from zero with the probability of the distance, in units of 2**-53
            near, far = (values[lo], values[hi]) if v > 0 else (values[hi], values[lo])
            fraction = np.uint64((v - near) / (far - near) * 2.0**53)
            r = draw(i, random, np.uint32(seed), np.uint64(offset), bits)
            away = random_carry(fraction, np.int64(53), r, np.int64(bits), np.int64(variant))
            up = away == (v > 0)
        out[i] = codes[hi] if up else codes[lo]
    return refused, first


@kernel
def check_codes(codes: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """Return (how many codes lie outside low..high, index of the first)."""
    bad, first = 0, -1
    for i in range(codes.size):
        c = np.int64(codes[i])
        if c < low or c > high:
            bad += 1
            first = i if first < 0 else first
    return bad, first


@kernel
def decode_table(codes: np.ndarray, table: np.ndarray, mask: int, out: np.ndarray) -> None:
    """Look every code's bit pattern up in the format's table of values."""
    for i in range(codes.size):
        out[i] = table[np.int64(codes[i]) & mask]


@kernel
def decode_integer(codes: np.ndarray, quantum: float, out: np.ndarray) -> None:
    """Multiply integer codes by the format's quantum (exact in the output type)."""
    for i in range(codes.size):
        out[i] = np.float64(codes[i]) * quantum
