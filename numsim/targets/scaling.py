"""Scales outside the unit: broadcast, applied to results, or block by block along K."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import UnsupportedError
from numsim.formats import get_format
from numsim.kernels.elementwise.times import times
from numsim.quant import QTensor
from numsim.targets.chain import DTYPES, one_nan, round_to
from numsim.targets.rules import Rule, adds_integers
from numsim.targets.rules.int_sum import Overflowed
from numsim.targets.split_k import bare, k_slice

_SINGLE = (np.dtype(np.int32), np.dtype(np.float32))  # accumulators that one pass scales
_LEAST_NORMAL, _NEAR_MOST = 2.0**-126, 2.0**127  # between them nothing warns of a rounding


def spread(q: QTensor, batch: tuple[int, ...]) -> QTensor:
    """Return a tensor with leading axes `batch`: the same codes and scales again.

    Examples
    --------
    >>> q = QTensor.from_codes([[1, 2]], "int8", scale=[[0.5, 0.25]], block=1)
    >>> spread(q, (3,)).dequantize()[2]
    array([[0.5, 0.5]], dtype=float32)
    """
    new = (1,) * (len(batch) + 2 - q.ndim)
    lead = new + q.shape[:-2]

    def wide(x: NDArray[Any] | None) -> Any:
        if x is None or q.block_shape is None:
            return x  # other scales broadcast as they are
        full = x.reshape(new + x.shape)
        sizes = (n if old == 1 else k for n, old, k in zip(batch, lead, full.shape, strict=False))
        return np.broadcast_to(full, (*sizes, *x.shape[-2:]))

    block = q.block_shape
    if block is not None:
        ahead = (1 if n == 1 else k for n, k in zip(lead, new + block, strict=False))
        block = (*ahead, *block[-2:])
    return replace(
        q, codes=np.broadcast_to(q.codes, (*batch, *q.shape[-2:])), scale=wide(q.scale),
        scale_codes=wide(q.scale_codes), block_shape=block, zero_point=wide(q.zero_point),
    )  # fmt: skip


def constant_scales(a: QTensor, b: QTensor) -> NDArray[np.float32] | np.float32 | None:
    """Return fp32(scale_a * scale_b) broadcastable to D, None without scales.

    Raises
    ------
    UnsupportedError
        For a scale that varies along K.
    """
    if a.scale is None and b.scale is None:
        return None
    one = _one_scale(a) * _one_scale(b)  # exact
    if _LEAST_NORMAL <= one < _NEAR_MOST:
        return np.float32(one)
    with np.errstate(over="ignore", under="ignore"):
        product: NDArray[np.float32] = np.asarray(_scale(a, -1) * _scale(b, -2), np.float32)
    return product


def _one_scale(q: QTensor) -> float:
    """Return the scale of a whole tensor, 1 without any, NaN where there are several."""
    if q.scale is None:
        return 1.0
    return float(q.scale.item()) if q.scale.size == 1 and not q.block_shape else math.nan


def k_block(a: QTensor, b: QTensor) -> int | None:
    """Return the run of k in which both scales are constant, None without block scales along K.

    Raises
    ------
    UnsupportedError
        For blocks that do not run along K: each would be a chain of one product, which no unit
        and no software around one does. For lengths of which none divides the other.

    Examples
    --------
    >>> q = QTensor.from_codes(np.ones((1, 4), int), "int8", scale=[[1.0, 2.0]], block=2)
    >>> k_block(q, q.T), k_block(bare(q), bare(q.T))
    (2, None)
    """
    left, right = _along_k(a, -1, "a [..., M, K]"), _along_k(b, -2, "b [..., K, N]")
    whole = a.shape[-1] in (left, right)
    if left and right and not whole and max(left, right) % min(left, right):
        raise UnsupportedError(
            f"matmul: of the lengths of scale blocks along K one divides the other; got {left} for "
            f"a and {right} for b; quantize both with one block"
        )
    return min(left or right, right or left) or None


def _along_k(q: QTensor, axis: int, name: str) -> int:
    """Return the length of blocks along K, at most that of K; 0 without blocks."""
    if q.block_shape is None:
        return 0
    depth, block = q.shape[axis], q.block_shape[axis]
    if block == 1 < depth:
        along = [i - q.ndim for i, size in enumerate(q.block_shape) if size > 1]
        got = f"blocks along axis {', '.join(map(str, along))}" if along else "blocks of one value"
        raise UnsupportedError(
            f"matmul: scale blocks of {name} run along K, its axis {axis}; got {got} "
            f"(block_shape {q.block_shape}); quantize it with axis={axis}, or with tiles that are "
            "longer than 1 along K"
        )
    return min(block, depth)


def _scale(q: QTensor, axis: int, k: int = 0) -> NDArray[np.float32]:
    """Return the scales at `k`, with at least two axes."""
    scale = q.element_scale()
    if scale is None:
        return np.ones((1, 1), np.float32)
    scale = scale.reshape((1,) * (2 - scale.ndim) + scale.shape)
    if scale.shape[axis] == 1:
        return scale
    if q.block_shape is None:
        raise UnsupportedError(
            f"matmul: a scale is constant along K, or has blocks; got scale {scale.shape} "
            f"for a tensor {q.shape}; quantize a along axis -1 and b along axis -2"
        )
    return np.take(scale, [k], axis)


def blockwise(
    rule: Rule, a: QTensor, b: QTensor, block: int,
    chain: Callable[[QTensor, QTensor, int], NDArray[Any]], c: NDArray[Any] | None,
    at_once: Callable[[NDArray[np.float32] | None], NDArray[np.float32] | None],
) -> NDArray[np.float32]:  # fmt: skip
    """Every block of K a chain from +0, scaled and added in float32 in K order; [count, M, N].

    `chain` gives the sums of the operands of a block that begins at a k.
    `c` starts the sum, or comes last where a scale of the whole tensor follows the blocks.
    `at_once` adds all blocks to the start of the sum, or returns None.
    """
    above = tensor_scale(a, b)
    start = None if c is None or above is not None else c.astype(np.float32)
    total = at_once(start)
    if total is None:
        total = _one_by_one(rule, a, b, block, chain, start)
    if above is not None:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            total = total * above
            total = total if c is None else total + c.astype(np.float32)
    return one_nan(total, rule)


def _one_by_one(
    rule: Rule, a: QTensor, b: QTensor, block: int,
    chain: Callable[[QTensor, QTensor, int], NDArray[Any]], total: NDArray[np.float32] | None,
) -> NDArray[np.float32]:  # fmt: skip
    k, lead = a.shape[-1], a.shape[:-2]
    codes_a, codes_b = bare(a), bare(b)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for k0 in range(0, k, block):
            stop = min(k0 + block, k)
            scale = _block_scale(_scale(a, -1, k0), _scale(b, -2, k0))
            try:
                left, right = k_slice(codes_a, -1, k0, stop), k_slice(codes_b, -2, k0, stop)
                acc = chain(left, right, k0)
            except Overflowed as found:
                found.k += k0
                raise
            part = scaled(acc.reshape(*lead, *acc.shape[-2:]), scale, rule, a, b)
            part = part.reshape(acc.shape).astype(np.float32)
            total = part if total is None else total + part
    assert total is not None
    return total


def powers_leave_float32(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Whether products of powers of two among scales a and b may become 0 or infinite in float32.

    >>> powers_leave_float32(np.float32([2.0**-100]), np.float32([2.0**-49, 2.0**-50]))
    True
    """
    if not (a.size and b.size):
        return False
    low, high = (
        np.float64(limit.reduce(a, axis=None)) * np.float64(limit.reduce(b, axis=None))
        for limit in (np.fmin, np.fmax)
    )
    if low >= 2.0**-149 and high < 2.0**128:
        return False
    return all(bool(((np.frexp(x)[0] == 0.5) | np.isnan(x)).all()) for x in (a, b))


def _block_scale(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[Any]:
    """Return fp32(a * b); in float64, exact, where a power of two leaves float32 (MX)."""
    if powers_leave_float32(a, b):
        return a.astype(np.float64) * b
    return np.asarray(a * b, np.float32)


def tensor_scale(a: QTensor, b: QTensor) -> Any:
    """Return the product of the scales of whole tensors or rows (NVFP4), None without any."""
    if a.tensor_scale is None and b.tensor_scale is None:
        return None
    one = np.float32(1.0)
    left, right = (one if q.tensor_scale is None else q.tensor_scale for q in (a, b))
    product = np.asarray(left * right, np.float32)
    if not product.ndim:
        return np.float32(product)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return np.broadcast_to(product, (*lead, *product.shape[-2:])).reshape(-1, *product.shape[-2:])


def scaled(
    acc: NDArray[Any], scale: Any, rule: Rule, a: QTensor, b: QTensor, *, in_place: bool = False
) -> NDArray[Any]:
    """Return fp32(acc * scale) in the type of a float accumulator, float32 for an integer one.

    An integer accumulator counts products of the operands' quanta: that power of two is exact, and
    the only rounding after ``fp32(acc)`` is that of the product. A float64 `scale` is exact.
    """
    factor = _in_quanta(scale, a, b) if adds_integers(rule) else scale
    if _is_one_number(factor) and acc.dtype in _SINGLE and acc.flags.c_contiguous:
        once, nan = times(acc, np.float32(factor.item()), in_place=in_place)
        return one_nan(once, rule) if nan else once
    with np.errstate(all="ignore"):
        single = acc.astype(np.float32, copy=False)
        out = single if in_place or single is not acc else None
        if factor is None:
            exact = single.astype(np.float64) * np.asarray(scale, np.float64)
            product = np.ldexp(exact, -(a.fmt.bias + b.fmt.bias)).astype(np.float32)
        else:
            if np.asarray(factor).dtype == np.float64:
                product = (single.astype(np.float64) * factor).astype(np.float32)
            else:
                product = np.multiply(single, factor, out=out)
        result: NDArray[Any] = one_nan(product, rule)
    if adds_integers(rule) or acc.dtype == np.float32:
        return result
    name = next(name for name, dtype in DTYPES.items() if np.dtype(dtype) == acc.dtype)
    return round_to(result, get_format(name), rule)


def one_factor(scale: Any, a: QTensor, b: QTensor) -> np.float32 | None:
    """Return the finite float32 that scales all integer sums of a product, None without one.

    >>> q = QTensor.from_codes([[1]], "q3.4")
    >>> one_factor(np.float32(0.5), q, q)
    np.float32(0.001953125)
    """
    factor = _in_quanta(scale, a, b)
    one = _is_one_number(factor) and np.isfinite(factor)
    return np.float32(factor.item()) if one else None


def _is_one_number(factor: Any) -> bool:
    one = isinstance(factor, np.ndarray | np.float32)
    return one and factor.size == 1 and factor.dtype == np.float32


def _in_quanta(scale: Any, a: QTensor, b: QTensor) -> Any:
    """Return float32 scales times the quantum of products, None where float32 does not hold it."""
    bias = a.fmt.bias + b.fmt.bias
    if bias == 0:
        return scale
    with np.errstate(all="ignore"):
        factor = np.ldexp(scale, -bias)
        return factor if (np.ldexp(factor, bias) == scale).all() else None
