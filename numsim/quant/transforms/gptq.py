"""GPTQ: weights rounded column by column, what a column loses spread over those that follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.convert import decode, encode
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike
from numsim.kernels.gemm.cholesky import cholesky, inverse_of_lower
from numsim.kernels.gemm.fma import gemm_fma
from numsim.quant.affine import affine_codes
from numsim.quant.four_bits import halves, quarters
from numsim.quant.quantize import quantize
from numsim.quant.rule import Quant
from numsim.quant.table import as_quant
from numsim.quant.transforms.smooth import matrix
from numsim.quant.types import QTensor
from numsim.quant.words import block_words, doubled

_BLOCK = 128  # columns whose errors reach the others at once
Floats = NDArray[np.float64]


@known_floats
def gptq(
    w: ArrayLike, x: ArrayLike, quant: FormatLike | Quant, *, act_order: bool = False,
    damp: float = 0.01,
) -> QTensor:  # fmt: skip
    """Quantise a weight so that its product with the activations of a calibration changes little.

    ``H = 2 x^T x / rows + damp mean(diag H) I``; a column with H_ii = 0 becomes 0. Columns are
    rounded in order, each error spread over the columns that follow by the upper Cholesky factor of
    the inverse of H. The scales of a group are those of the weights as they are when its first
    column is reached, and so are the choices of 4over6, IF4 and HiF4 for a block.

    Parameters
    ----------
    w
        Weight [N, K].
    x
        Activations [rows, K].
    quant
        Per tensor, per channel, or blocks along K, of any format and with or without zero points.
    act_order
        Columns by falling diagonal of H; the scales are then those of the original weights.
    damp
        Not negative.

    Returns
    -------
    QTensor [N, K]

    Raises
    ------
    NumsimError
        For matrices that do not match or are not finite, an H that is singular (raise `damp`), and
        storage rules of tiles, or that round at random.

    Source
    ------
    Frantar et al., GPTQ, arXiv 2210.17323, algorithm 1.

    Examples
    --------
    >>> w, x = [[0.9, 0.4, 7.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.1, 0.0]]
    >>> gptq(w, x, Quant("int4", "per_channel")).codes, quantize(w, "int4").codes
    (array([[1, 0, 7]], dtype=int8), array([[1, 0, 7]], dtype=int8))
    """
    weight, values = matrix("gptq: w", w, "[N, K]"), matrix("gptq: x", x, "[rows, K]")
    rule = _checked(as_quant(quant))
    depth = weight.shape[1]
    if values.shape[1] != depth:
        raise NumsimError(f"gptq: x is [rows, K] for w [N, K]; got {values.shape}, {weight.shape}")
    if isinstance(damp, bool) or not isinstance(damp, int | float) or not 0 <= damp < np.inf:
        raise NumsimError(f"gptq: damp is a number from 0; got {damp!r:.40}; 0.01 is usual")
    upper, order = _spread_of(values, act_order, float(damp), weight)
    group = int(str(rule.block)) if rule.block is not None else depth
    whole = quantize(weight, rule, axis=-1)  # scales of the original weights, and of the tensor
    columns = np.ascontiguousarray(weight[:, order].T)  # [K, N]: a column is a line
    codes = np.empty(weight.shape, whole.codes.dtype)
    scales = _Scales(whole, rule)
    for at in range(0, depth, _BLOCK):
        end = min(at + _BLOCK, depth)
        lost = np.empty((end - at, len(weight)))
        for i in range(at, end):
            place = int(order[i])
            if not act_order and place % group == 0 and group < depth:
                part = columns[i : i + group].copy()
                if i + group > end and i > at:  # what this block lost has not reached those yet
                    ahead = np.ascontiguousarray(upper[at:i, end : i + group].T)
                    part[end - i :] -= gemm_fma(ahead[None], lost[None, : i - at])[0]
                scales.renew(place // group, part.T)
            code, value = scales.rounded(columns[i], place, place // group)
            codes[:, place] = code
            error = (columns[i] - value) / upper[i, i]
            lost[i - at] = error
            columns[i + 1 : end] -= upper[i, i + 1 : end, None] * error
        if end < depth:
            factors = np.ascontiguousarray(upper[at:end, end:].T)
            columns[end:] -= gemm_fma(factors[None], lost[None])[0]
    return scales.tensor(codes)


def _checked(rule: Quant) -> Quant:
    if isinstance(rule.block, tuple) or rule.rounding == "sr" or rule.granularity == "none":
        raise NumsimError(
            "gptq: rounds one column after another under scales of rows or blocks along them; got "
            f"granularity={rule.granularity!r}, block={rule.block!r}, "
            f"scale_rule={rule.scale_rule!r}, rounding={rule.rounding!r}"
        )
    return rule


def _spread_of(
    x: Floats, act_order: bool, damp: float, weight: Floats
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the upper factor of the inverse of H, and the order of columns; clear dead ones."""
    turned = np.ascontiguousarray(x.T)
    hessian = gemm_fma(turned[None], x[None])[0] * (2.0 / len(x))
    diagonal = np.diagonal(hessian).copy()
    dead = diagonal == 0
    diagonal[dead] = 1.0
    weight[:, dead] = 0.0
    order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(len(diagonal))
    diagonal += damp * diagonal.mean()
    np.fill_diagonal(hessian, diagonal)
    # H = R R^T with R upper is Cholesky's factor from the last column to the first; its inverse is
    # the upper factor of the inverse of H
    last = order[::-1]
    lower, bad = cholesky(hessian[np.ix_(last, last)])
    left = np.diagonal(lower) ** 2  # of each diagonal element; rounding alone leaves 2**-53 of it
    if bad < 0 and (left < 1e-13 * diagonal[last]).any():
        bad = int(np.argmax(left < 1e-13 * diagonal[last]))
    if bad >= 0:
        raise NumsimError(
            f"gptq: the Hessian of {len(x)} rows of {x.shape[1]} columns is singular at column "
            f"{int(last[bad])}; use more calibration rows, or a larger damp (got {damp:g})"
        )
    return np.ascontiguousarray(inverse_of_lower(lower)[::-1, ::-1]), order


class _Scales:
    """Scales by group, and codes of columns under them."""

    levels: NDArray[np.int64] | None = None  # how often HiF4 doubles each element, [N, K]

    def __init__(self, whole: QTensor, rule: Quant) -> None:
        self.rule, self.whole = rule, whole
        assert whole.scale is not None
        self.scale = _of_rows(whole.scale, len(whole.codes))
        self.codes = None if whole.scale_codes is None else whole.scale_codes.copy()
        zeros = whole.zero_point
        self.zeros = None if zeros is None else _of_rows(zeros, len(whole.codes))
        if rule.scale_rule == "hif4":
            self.levels = _levels(whole)

    def renew(self, group: int, part: Floats) -> None:
        """Choose the scales of a group again, from its columns as they are now."""
        above = None if self.rule.scale is not None else self.whole.tensor_scale
        given: Any = {} if above is None else {"tensor_scale": above}
        found = quantize(part, self.rule, axis=-1, **given)
        assert found.scale is not None
        self.scale[:, group] = found.scale[:, 0]
        if self.codes is not None and found.scale_codes is not None:
            self.codes[:, group] = found.scale_codes[:, 0]
        if self.zeros is not None and found.zero_point is not None:
            self.zeros[:, group] = found.zero_point[:, 0]

        if self.levels is not None:
            first = group * int(str(self.rule.block))
            self.levels[:, first : first + part.shape[1]] = _levels(found)

    def rounded(self, column: Floats, place: int, group: int) -> tuple[NDArray[Any], Floats]:
        """Return the codes and values of one column."""
        f = self.rule.fmt
        scale = self.scale[:, group].astype(np.float64)
        if self.levels is not None:
            return quarters(column, scale, self.levels[:, place])
        if self.rule.scale_rule == "if4":
            assert self.codes is not None
            return halves(column, self.codes[:, group], self.whole.tensor_scale, self.rule)
        if self.whole.tensor_scale is not None:
            scale = scale * np.asarray(self.whole.tensor_scale, np.float64).reshape(-1)
        if self.zeros is not None:
            codes = np.empty(column.shape, f.code_dtype)
            zero = self.zeros[:, group]
            affine_codes(column / scale, zero, self.rule, codes, {"rounding": self.rule.rounding})
            return codes, (codes.astype(np.float64) - zero) * scale
        how: Any = {"rounding": self.rule.rounding, "overflow": self.rule.overflow}
        codes = encode(column / scale, f, **how)
        return codes, decode(codes, f).astype(np.float64) * scale

    def tensor(self, codes: NDArray[Any]) -> QTensor:
        """Return the quantised weight."""
        whole = self.whole
        assert whole.scale is not None
        if not whole.scale.ndim:  # one of the tensor
            return replace(whole, codes=codes)
        return replace(
            whole, codes=codes, scale=self.scale, scale_codes=self.codes, zero_point=self.zeros
        )  # fmt: skip


def _levels(q: QTensor) -> NDArray[np.int64]:
    words = block_words(q)
    return doubled(words).reshape(len(q.codes), -1)[:, : q.shape[1]].copy()


def _of_rows(scales: NDArray[Any], rows: int) -> NDArray[Any]:
    """Return scales as [rows, groups]."""
    return np.array(np.broadcast_to(scales, (rows, 1)) if not scales.ndim else scales)
