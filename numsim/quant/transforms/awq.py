"""AWQ: factors that give the columns of large activations finer steps, and clipping by search."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike
from numsim.kernels.gemm.fma import gemm_fma
from numsim.kernels.powers import power64
from numsim.quant.quantize import quantize
from numsim.quant.rule import Quant
from numsim.quant.table import as_quant
from numsim.quant.transforms.smooth import matrix
from numsim.quant.types import QTensor

Floats = NDArray[np.float64]


class Awq(NamedTuple):
    """What a search found.

    Parameters
    ----------
    ratio
        The exponent of the least loss; of equals the first.
    losses
        Of every exponent tried, [grid].
    scales
        Factors of the columns of the weight, [K]; activations are divided by them.
    weight
        The weight times its factors, quantised.
    """

    ratio: float
    losses: Floats
    scales: Floats
    weight: QTensor


@known_floats
def awq(w: ArrayLike, x: ArrayLike, quant: FormatLike | Quant, *, grid: int = 20) -> Awq:
    """Search the factors of columns under which a quantised weight changes its product least.

    ``s = max(mean|x_j|**(i / grid), 1e-4)`` for i = 0 .. grid - 1, over ``sqrt(max s min s)``; the
    loss is the mean of ``(x w^T - x (Q(w s) / s)^T)**2``.

    Parameters
    ----------
    w
        Weight [N, K].
    x
        Activations [rows, K].
    quant
        How ``w s`` is stored.
    grid
        Exponents that are tried.

    Raises
    ------
    NumsimError
        For matrices that do not match or are not finite, or a grid below 1.

    Source
    ------
    Lin et al., AWQ, arXiv 2306.00978; AutoAWQ's search of scales.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(32, 64)) * np.where(np.arange(64) == 3, 50, 1)
    >>> found = awq(rng.normal(size=(8, 64)), x, Quant("int4", block=32))
    >>> found.ratio > 0, bool(found.losses.min() < found.losses[0])
    (True, True)
    """
    weight, values, rule = _operands("awq", w, x, quant, grid)
    mean = np.abs(values).mean(axis=0)
    exact = _product(values, weight)
    losses, found = np.empty(grid), []
    for i in range(grid):
        used = np.where(mean > 0, mean, 1.0)
        raised = np.where(mean > 0, power64(used, i / grid), 0.0 if i else 1.0)
        factors = np.maximum(raised, 1e-4)
        factors = factors / np.sqrt(factors.max() * factors.min())
        stored = quantize(weight * factors, rule, axis=-1)
        rest = exact - _product(values, stored.dequantize().astype(np.float64) / factors)
        losses[i] = np.mean(rest * rest)
        found.append((factors, stored))
    best = int(np.argmin(losses))
    return Awq(best / grid, losses, *found[best])


@known_floats
def clip_search(w: ArrayLike, x: ArrayLike, quant: FormatLike | Quant, *, grid: int = 20) -> Floats:
    """Search the fraction of its largest magnitude at which every row of a group is clipped.

    Fractions 1 - i / grid, i = 0 .. grid / 2 - 1; the one of the least squared error of the group's
    part of the output, of equals the first.

    Parameters
    ----------
    w
        Weight [N, K].
    x
        Activations [rows, K].
    quant
        Per channel, or blocks along K.
    grid
        Steps of the whole range, of which half are tried.

    Returns
    -------
    float64 array [N, groups]; clip ``w`` to that fraction of each group's amax, then quantise it.

    Raises
    ------
    NumsimError
        As `awq`.

    Source
    ------
    AutoAWQ's search of clipping.

    Examples
    --------
    >>> w = np.array([[1.0, 1.0, 1.1, 7.9]])
    >>> clip_search(w, np.eye(4), Quant("int2", block=4)).shape
    (1, 1)
    """
    weight, values, rule = _operands("clip_search", w, x, quant, grid)
    depth = weight.shape[1]
    if isinstance(rule.block, tuple) or rule.granularity in ("none", "per_tensor"):
        raise NumsimError(
            "clip_search: clips rows, or blocks along them; got "
            f"granularity={rule.granularity!r}, block={rule.block!r}"
        )
    group = depth if rule.block is None else int(rule.block)
    starts = range(0, depth, group)
    best = np.ones((len(weight), len(starts)))
    for g, at in enumerate(starts):
        part, inputs = weight[:, at : at + group], values[:, at : at + group]
        amax = np.abs(part).max(axis=1, keepdims=True)
        least = np.full(len(weight), np.inf)
        for i in range(max(grid // 2, 1)):
            fraction = 1 - i / grid
            clipped = np.clip(part, -amax * fraction, amax * fraction)
            rest = _product(inputs, part - quantize(clipped, rule, axis=-1).dequantize())
            loss = np.mean(rest * rest, axis=0)
            better = loss < least
            least[better], best[better, g] = loss[better], fraction
    return best


def _operands(
    who: str, w: ArrayLike, x: ArrayLike, quant: FormatLike | Quant, grid: int
) -> tuple[Floats, Floats, Quant]:
    weight, values = matrix(f"{who}: w", w, "[N, K]"), matrix(f"{who}: x", x, "[rows, K]")
    if values.shape[1] != weight.shape[1]:
        raise NumsimError(f"{who}: x is [rows, K] for w [N, K]; got {values.shape}, {weight.shape}")
    if not is_integer(grid) or not 1 <= grid <= 1000:
        raise NumsimError(f"{who}: grid is an integer from 1 to 1000; got {grid!r:.40}")
    return weight, values, as_quant(quant)


def _product(x: Floats, w: Floats) -> Floats:
    """Return x w^T in a fixed order of additions."""
    return np.asarray(gemm_fma(np.ascontiguousarray(x)[None], np.ascontiguousarray(w.T)[None])[0])
