"""Zero points of products: the terms that integer hardware adds after its sum of codes.

``sum (qa - za)(qb - zb) = sum qa qb - za sum qb - zb sum qa + K za zb``. The unit adds codes; the
other terms are sums of codes and products in int32 (int64 where the accumulator is wider), which
wrap, saturate or raise as the accumulator does. Units of floats take codes less their zero points.

Source: Jacob et al., arXiv 1712.05877, section 2.3; gemmlowp, doc/low-precision.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import UnsupportedError
from numsim.formats import get_format
from numsim.quant import QTensor
from numsim.quant.kept import kept
from numsim.targets.rules.int_sum import limits
from numsim.targets.tensor import batched

Zero = NDArray[np.int64] | None


def has_zero_point(a: QTensor, b: QTensor) -> bool:
    """Whether one of two operands has zero points."""
    return a.zero_point is not None or b.zero_point is not None


def shifted(q: QTensor) -> QTensor:
    """Return a tensor whose codes are those of `q` less their zero points, in a wider integer.

    >>> q = QTensor.from_codes([[0, 255]], "uint8", scale=0.5, zero_point=128)
    >>> shifted(q).codes, shifted(q).zero_point
    (array([[-128,  127]], dtype=int16), None)
    """
    if q.zero_point is None:
        return q

    def made() -> QTensor:
        wide = get_format("int16" if q.fmt.bits <= 8 else "int18")
        zeros = np.asarray(q.element_zero_point(), np.int64)
        codes = q.codes.astype(np.int64) - zeros
        low, high = limits(wide.bits)
        if codes.size and not low <= int(codes.min()) <= int(codes.max()) <= high:
            raise UnsupportedError(
                f"matmul: codes less zero points are {int(codes.min())} to {int(codes.max())}, "
                f"which {wide.name} does not hold; use zero points that {q.fmt.name} holds"
            )
        return QTensor(
            codes.astype(wide.code_dtype), wide, q.scale, None, q.block_shape,
            tensor_scale=q.tensor_scale,
        )  # fmt: skip

    found: QTensor = kept(q, "without zero points", made)
    return found


def at(q: QTensor, axis: int, k: int = 0) -> Zero:
    """Return the zero points at `k` of K, which is `axis`; with two axes at least, or None.

    Raises
    ------
    UnsupportedError
        For a zero point that varies along K without blocks.
    """
    zeros = q.element_zero_point()
    if zeros is None:
        return None
    zeros = zeros.reshape((1,) * (2 - zeros.ndim) + zeros.shape)
    if zeros.shape[axis] != 1:
        if q.block_shape is None:
            raise UnsupportedError(
                f"matmul: a zero point is constant along K, or has blocks; got {zeros.shape} for a "
                f"tensor {q.shape}; quantize a along axis -1 and b along axis -2"
            )
        zeros = np.take(zeros, [k], axis)
    return zeros.astype(np.int64)


def terms(a: QTensor, b: QTensor, zero_a: Zero, zero_b: Zero) -> NDArray[np.int64]:
    """Return what zero points add to the sums of codes a [..., M, K] by b [..., K, N].

    >>> a = QTensor.from_codes([[5, 6]], "uint8")
    >>> terms(a, a.T, np.array([[2]]), None).tolist()
    [[[-22]]]
    """
    depth = a.shape[-1]
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    found: Any = np.int64(0)
    if zero_a is not None:  # b may be a stored weight: its sums are kept
        columns = kept(b, "sums of columns", lambda: b.codes.sum(-2, dtype=np.int64, keepdims=True))
        found = found - zero_a * columns
    if zero_b is not None:
        rows = kept(a, "sums of rows", lambda: a.codes.sum(-1, dtype=np.int64, keepdims=True))
        found = found - zero_b * rows
    if zero_a is not None and zero_b is not None:
        found = found + zero_a * zero_b * depth
    return batched(np.broadcast_to(found, (*lead, a.shape[-2], b.shape[-1])))
