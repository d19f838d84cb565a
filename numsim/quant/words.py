"""The stored words of blocks whose `codes` are plain numbers: IF4's halves, HiF4's quarters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.arguments import as_array
from numsim.convert import decode, encode
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import get_format
from numsim.quant.four_bits import HALVES, INTEGERS, QUARTERS
from numsim.quant.given import given_above
from numsim.quant.table import as_quant
from numsim.quant.types import QTensor

_E2M1 = get_format("float4_e2m1fn")
Bytes = NDArray[np.uint8]


class BlockWords(NamedTuple):
    """What blocks along the last axis are stored as.

    Parameters
    ----------
    elements
        Words of four bits [..., K]: of IF4 codes of E2M1, or integers in two's complement where
        the block's scale says so; of HiF4 a sign in bit 3 and three bits of magnitude.
    scales
        Codes of scales [..., blocks]: of IF4 E4M3, and bit 7 where elements are integers; of HiF4
        E6M2.
    level_2, level_3
        Of HiF4: 8 and 16 bits a block, [..., blocks]. Bit i doubles the elements from 8 i on (of
        level 3: from 4 i on), of which there are 8 (4). None for IF4.
    """

    elements: Bytes
    scales: Bytes
    level_2: Bytes | None = None
    level_3: NDArray[np.uint16] | None = None


@known_floats
def block_words(q: QTensor) -> BlockWords:
    """Return the stored words of a tensor in IF4 or HiF4; a zero has no sign.

    Raises
    ------
    NumsimError
        For a tensor in another format, whose `codes` and `scale_codes` are its words.

    Source
    ------
    fouroversix, IF4; Huawei, HiFloat4, arXiv 2602.11287.

    Examples
    --------
    >>> from numsim.quant import quantize
    >>> words = block_words(quantize(np.arange(64.0) - 32, "hif4"))
    >>> words.elements[:4].tolist(), words.scales.tolist(), words.level_2.tolist()
    ([14, 14, 14, 14], [201], [195])
    """
    axis, size = block_axis(q)
    codes = np.moveaxis(q.codes, axis, -1)
    assert q.scale_codes is not None
    scales = np.ascontiguousarray(np.moveaxis(q.scale_codes, axis, -1))
    blocks = _in_blocks(codes, size)
    if q.fmt == HALVES:
        whole = (blocks // 2) & 0xF
        floats = encode(blocks * 0.5, _E2M1)
        found = np.where((scales & INTEGERS)[..., None] != 0, whole, np.where(blocks, floats, 0))
        return BlockWords(_elements(found, codes.shape), scales)
    magnitude = np.abs(blocks.astype(np.int64))
    eights = magnitude.reshape(*scales.shape, 8, 8).max(-1)
    # a level doubles what is 4 or more of it: elements of three bits end below 8 quarters
    level_2 = eights >= 16
    fours = magnitude.reshape(*scales.shape, 16, 4).max(-1)
    level_3 = fours >= 8 << np.repeat(level_2, 2, -1)
    words = BlockWords(
        np.empty(0, np.uint8), scales, _bits(level_2, np.uint8), _bits(level_3, np.uint16)
    )
    found = (magnitude >> doubled(words)) | np.where(blocks < 0, 8, 0)
    return words._replace(elements=_elements(found, codes.shape))


@known_floats
def from_block_words(words: BlockWords, recipe: str, *, tensor_scale: Any = None) -> QTensor:
    """Return the tensor that words stand for, blocks along its last axis.

    Parameters
    ----------
    words
        As `block_words` returns them.
    recipe
        ``if4`` or ``hif4``, or a `Quant` of one of these rules.
    tensor_scale
        Of IF4, the float32 scale above its blocks, one a row [..., 1] where the `Quant` says
        per_token; None: 1.

    Raises
    ------
    NumsimError
        For another recipe, words of other shapes or with bits that they do not have, codes of
        scales that are NaN, and a tensor scale that is not positive or that HiF4 has not.

    Examples
    --------
    >>> from numsim.quant import quantize
    >>> q = quantize([7.0, -3.0, 1.0, 0.0], "hif4")
    >>> from_block_words(block_words(q), "hif4").dequantize()
    array([ 7., -3.,  1.,  0.], dtype=float32)
    """
    quant = as_quant(recipe)
    rule, size = quant.scale_rule, quant.block
    if rule not in ("if4", "hif4") or not isinstance(size, int):
        raise NumsimError(f"from_block_words: recipe is if4 or hif4; got {recipe!r:.60}")
    elements = _words("elements", words.elements, "uint4").astype(np.int64)
    scales = _words("scales", words.scales, "uint8")
    want = (*elements.shape[:-1], -(-elements.shape[-1] // size)) if elements.ndim else None
    given = (("level_2", words.level_2, "uint8"), ("level_3", words.level_3, "uint16"))
    levels = [_words(name, x, fmt) for name, x, fmt in given if x is not None]
    if scales.shape != want or len(levels) != 2 * (rule == "hif4") or any(
        x.shape != want for x in levels
    ):  # fmt: skip
        raise NumsimError(
            f"from_block_words: elements {elements.shape} of {recipe} have scales of shape {want}"
            f"{', and levels 2 and 3' if rule == 'hif4' else ', no levels'}; got {scales.shape}"
        )
    if tensor_scale is not None and quant.above is None:
        raise NumsimError(
            f"from_block_words: no scale stands above the blocks of {rule} here; got tensor_scale="
            f"{tensor_scale!r:.60}; leave it out"
        )
    blocks = _in_blocks(elements, size)
    kept: NDArray[Any] = scales
    if rule == "if4":
        kept = scales & 0x7F
        integers = (scales & INTEGERS) != 0
        halves = decode(blocks.astype(np.uint8), _E2M1) * 2
        found: Any = np.where(integers[..., None], ((blocks ^ 8) - 8) * 2, halves)
        over = given_above(tensor_scale, quant, elements.shape, -1, "from_block_words")
        fmt, above = HALVES, np.float32(1.0) if over is None else over
    else:
        integers, fmt, above = np.zeros(scales.shape, np.bool_), QUARTERS, None
        made = BlockWords(words.elements, scales, *levels)
        found = np.where(blocks & 8, -(blocks & 7), blocks & 7) << doubled(made)
    scale = decode(kept, quant.scale_format).astype(np.float64)
    if not np.isfinite(scale).all():
        raise NumsimError(
            f"from_block_words: {int((~np.isfinite(scale)).sum())} of {scale.size} scales are NaN"
        )
    stored = np.where(integers, scale * 6 / 7, scale).astype(np.float32)
    codes = _elements(found, elements.shape).view(np.int8).astype(fmt.code_dtype)
    shape = (*[1] * (elements.ndim - 1), size)
    return QTensor(codes, fmt, stored, quant, shape, scales, get_format(quant.scale_format), above)


def doubled(words: BlockWords) -> NDArray[np.int64]:
    """Return how often the levels of HiF4 double each element, [..., blocks, 64].

    >>> doubled(BlockWords(np.zeros(64), np.zeros(1), np.uint8([1]), np.uint16([3])))[0, ::4]
    array([2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    """
    two, three = (
        (np.asarray(x, np.int64)[..., None] >> np.arange(n)) & 1
        for x, n in ((words.level_2, 8), (words.level_3, 16))
    )
    return np.asarray(np.repeat(np.repeat(two, 2, -1) + three, 4, -1))


def block_axis(q: QTensor) -> tuple[int, int]:
    """Return the axis along which blocks of IF4 or HiF4 lie, and their size.

    Raises
    ------
    NumsimError
        As `block_words`.
    """
    rule = q.quant.scale_rule if isinstance(q, QTensor) and q.quant is not None else None
    if rule not in ("if4", "hif4") or q.block_shape is None:
        raise NumsimError(
            "block_words: words are of IF4 and HiF4; got "
            f"{q!r:.200}; codes and scale_codes of other tensors are their words"
        )
    size = max(q.block_shape)
    axis = max(i for i, n in enumerate(q.block_shape) if n == size)  # of blocks of one: the last
    return axis, size


def _words(name: str, given: Any, fmt: str) -> NDArray[Any]:
    """Return words as the unsigned integers of so many bits that they are."""
    f, array = get_format(fmt), as_array(f"from_block_words: {name}", given)
    if array.size:
        whole = array.dtype.kind in "iu"
        if not whole or array.min() < 0 or array.max() > f.max:
            raise NumsimError(
                f"from_block_words: {name} are integers of {f.bits} bits, without a sign; got "
                + (f"{array.min()} to {array.max()}" if whole else str(array.dtype))
            )
    return array.astype(f.code_dtype)


def _in_blocks(x: NDArray[Any], size: int) -> NDArray[Any]:
    """Return [..., blocks, size], the last block filled with zeros."""
    missing = -x.shape[-1] % size
    whole = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
    return whole.reshape(*x.shape[:-1], whole.shape[-1] // size, size)


def _elements(blocks: NDArray[Any], shape: tuple[int, ...]) -> Bytes:
    flat = blocks.reshape(*shape[:-1], math.prod(blocks.shape[-2:]))[..., : shape[-1]]
    return np.ascontiguousarray(flat.astype(np.int64).astype(np.uint8))


def _bits(flags: NDArray[np.bool_], dtype: Any) -> Any:
    weights = 1 << np.arange(flags.shape[-1])
    return (flags * weights).sum(-1).astype(dtype)
