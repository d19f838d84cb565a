"""Blocks of four bits that are stored in one of two ways, or under scales of three levels.

``4over6``: two scales are candidates, one that maps the block's largest magnitude to 6 and one that
maps it to 4, whose neighbours lie closer. The second is kept where its error, of magnitudes
(``mae``) or squares (``mse``) summed in float64 in order, is strictly smaller.

``if4``: under the scale s of NVFP4 a block holds E2M1 or, where their squared error is strictly
smaller, the integers q = -7 .. 7 with value q s 6/7. Bit 7 of the scale's code says which. Here
codes of both are fixed point of half steps (q3.1: E2M1 exactly, integers as they are), and
a block of integers has the scale s 6/7, which `QTensor.scale` holds rounded to float32, so that
products run on it; `dequantize` rounds once.

``hif4``: blocks of 64 under a scale E6M2; eight bits double the scale of 8 values, sixteen that of
4 values; elements are -7 .. 7 quarters. Here codes are fixed point of quarters (q3.2) with the
doublings in them: what its integer units add.

Source: Cook et al., Four over six, arXiv 2512.02010 and fouroversix (4over6, IF4); Huawei,
HiFloat4, arXiv 2602.11287, and its scripts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import cast, decode
from numsim.dispatch.blocks import choose_four, covers_blocks, encode_hif4, encode_if4
from numsim.formats import get_format
from numsim.kernels.convert import block_search
from numsim.kernels.convert.hif4 import SEVENTH
from numsim.kernels.jit import over_range
from numsim.quant.clip import levels
from numsim.quant.grouped import groups
from numsim.quant.odd import product_to_odd, quotient_to_odd
from numsim.quant.rule import Quant
from numsim.quant.scales import narrow_codes, narrow_quotient

_E2M1 = get_format("float4_e2m1fn")
INTEGERS = 0x80  # bit of a scale's code: the block holds integers
HALVES, QUARTERS = get_format("q3.1"), get_format("q3.2")
_INTEGER_LEVELS = block_search.levels_of(np.arange(-7.0, 8.0))


def four_over_six(
    values: NDArray[Any], amax: NDArray[Any], above: Any, quant: Quant, sizes: tuple[int, ...]
) -> NDArray[Any]:
    """Return the codes of block scales, each the better one of two."""
    over = np.asarray(above, np.float64)
    wanted = (narrow_quotient(amax, top * over) for top in (6.0, 4.0))
    six, four = (narrow_codes(each, quant.scale_format) for each in wanted)
    absolute = str(quant.scale_rule).endswith("mae")
    axis = _axis_of_blocks(values, sizes)
    if axis is not None:
        one, other = (_scale(codes, above, quant) for codes in (six, four))
        better = choose_four(values, axis, sizes[axis], one, other, absolute)
        return np.where(better, four, six)
    both = [
        _errors(values, _scale(codes, above, quant), sizes, levels(_E2M1), absolute)
        for codes in (six, four)
    ]
    return np.where(both[1] < both[0], four, six)


def _axis_of_blocks(values: NDArray[Any], sizes: tuple[int, ...]) -> int | None:
    """Return the axis along which blocks lie that kernels take, None for others.

    >>> _axis_of_blocks(np.zeros((32, 3), np.float32), (16, 1))
    0
    """
    along = [axis for axis, size in enumerate(sizes) if size > 1]
    if len(along) != 1 or not covers_blocks(values, along[0], sizes[along[0]]):
        return None
    return along[0]


def if4(
    values: NDArray[Any], scale: NDArray[np.float64], sizes: tuple[int, ...], codes: NDArray[Any]
) -> NDArray[np.bool_]:
    """Fill `codes` with half steps under scales, one a block; return which blocks hold integers."""
    axis = _axis_of_blocks(values, sizes)
    if axis is not None:
        return encode_if4(values, axis, sizes[axis], np.ascontiguousarray(scale), codes)
    sevenths = values.astype(np.float64) * 7  # of which both scales are whole: equal errors are
    floats = _errors(sevenths, scale * 7, sizes, levels(_E2M1), False)
    whole = _errors(sevenths, scale * 6, sizes, _INTEGER_LEVELS, False)
    integers: NDArray[np.bool_] = whole < floats
    for group in groups(values, sizes):
        each = scale[group.scales].reshape(-1, 1)
        quotient = group.rows.astype(np.float64) / each
        halves = cast(quotient, _E2M1) * 2
        counts = np.clip(np.rint(quotient * 7 / 6), -7, 7) * 2
        chosen = np.where(integers[group.scales].reshape(-1, 1), counts, halves)
        group.put(chosen.astype(np.int8), codes)
    return integers


def halves(
    values: NDArray[np.float64], scale_codes: NDArray[Any], above: Any, quant: Quant
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Return half steps of IF4 under known scales, [rows] each, and what they stand for."""
    integers = (scale_codes & INTEGERS) != 0
    kept = np.asarray(scale_codes & 0x7F, np.uint8)
    scale = _scale(kept, 1.0 if above is None else np.ravel(above), quant)
    whole = np.clip(np.rint(values / scale * 7 / 6), -7, 7)
    steps = np.where(integers, whole, cast(values / scale, _E2M1).astype(np.float64))
    found = steps * np.where(integers, scale * 6 / 7, scale)
    return (steps * 2).astype(np.int8), found


def quarters(
    values: NDArray[np.float64], scale: NDArray[np.float64], doubled: NDArray[np.int64]
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Return quarters of HiF4 under known scales and levels, and what they stand for.

    >>> [part.tolist() for part in quarters(np.array([3.4]), np.array([1.0]), np.array([1]))]
    [[14], [3.5]]
    """
    inverse = cast(1.0 / scale, "bfloat16").astype(np.float64)
    elements = np.minimum(np.floor(np.ldexp(np.abs(values) * inverse, 2 - doubled) + 0.5), 7)
    found = np.copysign(np.ldexp(elements, doubled), values)
    return found.astype(np.int8), found / 4 * scale


def if4_scales(scale_codes: NDArray[Any], scale_format: str) -> NDArray[np.float32]:
    """Return the scales of blocks by their codes, 6/7 of it where a block holds integers.

    >>> if4_scales(np.uint8([0x38, 0xB8]), "float8_e4m3fn").tolist()
    [1.0, 0.8571428656578064]
    """
    plain = decode(np.arange(INTEGERS, dtype=np.uint8), scale_format).astype(np.float64)
    table = np.concatenate([plain, plain * 6 / 7]).astype(np.float32)
    return np.asarray(table[scale_codes])


def if4_values(codes: NDArray[Any], scale: Any, above: Any, integers: Any) -> NDArray[np.float32]:
    """Return fp32(code / 2 * scale * above), 6/7 of it where a block holds integers.

    >>> if4_values(np.int8([14, 12]), np.float64([1.0, 1.0]), 1.0, np.array([True, False]))
    array([6., 6.], dtype=float32)
    """
    exact = codes * (np.asarray(scale, np.float64) * 0.5) * np.asarray(above, np.float64)
    with np.errstate(under="ignore", over="ignore"):
        seventh = quotient_to_odd(exact * 6.0, 7.0)  # 40 bits: exact but for the division
        return np.asarray(np.where(integers, seventh, exact), np.float64).astype(np.float32)


def hif4(
    values: NDArray[Any], sizes: tuple[int, ...], scale: NDArray[np.float32], codes: NDArray[Any]
) -> None:
    """Fill codes in quarters of blocks of 64 under HiF4 and scales of `hif4_scales`."""
    axis = _axis_of_blocks(values, sizes)
    if axis is not None and values.shape[axis] % 64 == 0:
        encode_hif4(values, axis, _bfloat16(1.0 / scale.astype(np.float64)), codes)
        return
    for group in groups(values, sizes):
        rows = np.zeros((len(group.rows), 64))
        rows[:, : group.rows.shape[1]] = group.rows
        _, elements = hif4_blocks(rows)
        group.put(elements[:, : group.rows.shape[1]], codes)


def hif4_blocks(rows: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Return the scale codes [count] and quarters [count, 64] of blocks.

    >>> scale, quarters = hif4_blocks(np.full((1, 64), 7.0))
    >>> int(scale[0]), int(quarters[0, 0])
    (192, 28)
    """
    magnitude = np.abs(rows)
    scale_codes = hif4_scales(magnitude.max(axis=1))
    scale = decode(scale_codes, "float8_ue6m2").astype(np.float64)
    inverse = _bfloat16(1.0 / scale)[:, None]
    level_2 = (magnitude.reshape(-1, 8, 8).max(axis=2) * inverse >= 4).astype(np.int64)
    twice = np.repeat(level_2, 2, axis=1)
    quotient = magnitude.reshape(-1, 16, 4).max(axis=2) * inverse
    level_3 = (np.ldexp(quotient, -twice) >= 2).astype(np.int64)
    doubled = np.repeat(twice + level_3, 4, axis=1)
    elements = np.minimum(np.floor(np.ldexp(magnitude * inverse, 2 - doubled) + 0.5), 7)
    return scale_codes, np.copysign(np.ldexp(elements, doubled), rows).astype(np.int8)


def hif4_scales(amax: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the codes of first scales.

    >>> hif4_scales(np.float32([7.0, 0.0]))
    array([192,   0], dtype=uint8)
    """
    wide = np.asarray(amax, np.float64)  # of float32 numbers the product is exact
    product = product_to_odd(wide, SEVENTH) if amax.dtype == np.float64 else wide * SEVENTH
    wanted = np.clip(_bfloat16(product), 2.0**-48, 49152.0)
    fraction, exponent = np.frexp(wanted)
    eighths = np.rint(fraction * 8)  # 4 .. 8, ties to even: of codes too, which 8 carries on
    return np.asarray((exponent + 47) * 4 + eighths - 4, np.uint8)


def _bfloat16(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return cast(x, "bfloat16").astype(np.float64)


def _scale(codes: NDArray[Any], above: Any, quant: Quant) -> NDArray[np.float64]:
    """Return the scales of blocks times that of the tensor, exact in float64."""
    product: NDArray[np.float64] = decode(codes, quant.scale_format).astype(
        np.float64
    ) * np.asarray(above, np.float64)
    return product


def _errors(
    values: NDArray[Any], scale: NDArray[np.float64], sizes: tuple[int, ...],
    of: block_search.Levels, absolute: bool,
) -> NDArray[np.float64]:  # fmt: skip
    found = np.zeros(scale.shape)
    for group in groups(values, sizes):
        rows = group.rows.astype(np.float64)
        scales = np.ascontiguousarray(scale[group.scales]).reshape(-1)
        out = np.empty(len(rows))
        over_range(partial(block_search.errors, rows, scales, of, absolute, out), len(rows))
        found[group.scales] = out.reshape(group.shape)
    return found
