"""How far a result is from its reference: formulas and units in each docstring.

Everything is computed in float64. These are measurements, not emulated bits: NumPy's own ``exp``
and ``log`` serve here, so the last digit may differ between machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.tensors import host_array

_CHUNK = 2**20  # logits converted at a time


def _numbers(what: str, x: ArrayLike) -> NDArray[Any]:
    """Return `x` as an array of real numbers of its own type."""
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise NumsimError(f"{what}: a masked array would lose its mask; pass x.compressed()")
    array = host_array(what, x)
    narrow = array.dtype.kind == "V" and hasattr(ml_dtypes, array.dtype.name)  # bfloat16 ...
    if not narrow and array.dtype.kind not in "biuf":
        raise NumsimError(
            f"{what}: arrays hold real numbers; got {array.dtype} {list(array.shape)}; convert "
            "them first"
        )
    return array


def _pair(what: str, reference: ArrayLike, x: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    a, b = _numbers(what, reference), _numbers(what, x)
    if a.shape != b.shape or not a.size:
        raise NumsimError(
            f"{what}: reference and x must have one shape and at least one element; got "
            f"{list(a.shape)} and {list(b.shape)}; compare the same tensor of two runs"
        )
    return a, b


def _flat(what: str, reference: ArrayLike, x: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    a, b = _pair(what, reference, x)
    return a.astype(np.float64).ravel(), b.astype(np.float64).ravel()


@known_floats
def sqnr_db(reference: ArrayLike, x: ArrayLike) -> float:
    """Return the signal to quantisation-noise ratio, in decibel.

    ``10 log10(sum(reference**2) / sum((x - reference)**2))``; Inf where `x` is exact.

    Parameters
    ----------
    reference, x : arrays of one shape

    Raises
    ------
    NumsimError
        The shapes differ or are empty.

    Examples
    --------
    >>> round(sqnr_db([1.0, -1.0], [1.1, -0.9]), 2)
    20.0
    """
    a, b = _flat("sqnr_db", reference, x)
    with np.errstate(all="ignore"):
        noise = np.sum((b - a) ** 2)
        return float(10.0 * np.log10(np.sum(a * a) / noise)) if noise != 0 else float("inf")


@known_floats
def mse(reference: ArrayLike, x: ArrayLike) -> float:
    """Return the mean squared error ``mean((x - reference)**2)``, in squared units of the tensor.

    Raises
    ------
    NumsimError
        The shapes differ or are empty.

    Examples
    --------
    >>> mse([1.0, 2.0], [1.0, 4.0])
    2.0
    """
    a, b = _flat("mse", reference, x)
    with np.errstate(all="ignore"):
        return float(np.mean((b - a) ** 2))


@known_floats
def max_abs(reference: ArrayLike, x: ArrayLike) -> float:
    """Return the largest error ``max(abs(x - reference))``, in units of the tensor.

    Raises
    ------
    NumsimError
        The shapes differ or are empty.

    Examples
    --------
    >>> max_abs([1.0, 2.0], [1.5, 2.0])
    0.5
    """
    a, b = _flat("max_abs", reference, x)
    with np.errstate(all="ignore"):
        return float(np.max(np.abs(b - a)))


@known_floats
def cosine(reference: ArrayLike, x: ArrayLike) -> float:
    """Return the cosine similarity ``sum(a b) / sqrt(sum(a**2) sum(b**2))`` of two whole tensors.

    1 where both are all zero, 0 where one is.

    Raises
    ------
    NumsimError
        The shapes differ or are empty.

    Examples
    --------
    >>> cosine([1.0, 0.0], [1.0, 1.0])  # doctest: +ELLIPSIS
    0.70710678...
    """
    a, b = _flat("cosine", reference, x)
    with np.errstate(all="ignore"):
        aa, bb = np.sum(a * a), np.sum(b * b)
        if aa == 0 or bb == 0:
            return float(aa == bb)
        return float(np.sum(a * b) / np.sqrt(aa) / np.sqrt(bb))


@known_floats
def max_ulp(reference: ArrayLike, x: ArrayLike) -> float:
    """Return the largest error in units of the last place of the largest reference value.

    ``max(abs(x - reference))`` over the distance from ``max(abs(reference))``, rounded to float32,
    to the float32 above it. One unit for the whole tensor: steps counted value by value would be
    millions wherever a reference is near 0.

    Raises
    ------
    NumsimError
        The shapes differ or are empty.

    Examples
    --------
    >>> max_ulp([1.0, 2.0], [1.0 + 2**-22, 2.0])
    1.0
    """
    a, b = _flat("max_ulp", reference, x)
    with np.errstate(all="ignore"):
        return ulps(float(np.max(np.abs(b - a))), float(np.max(np.abs(a))))


@known_floats
def ulps(error: float, largest: float) -> float:
    """Return an error in units of the last place of `largest`, a float32.

    Examples
    --------
    >>> ulps(0.5, 2.0**23), ulps(0.5, 3 * 2.0**22), ulps(0.0, 0.0)
    (0.5, 0.5, 0.0)
    """
    with np.errstate(all="ignore"):
        return float(np.float64(error) / np.float64(np.spacing(np.float32(largest))))


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return shifted


def _chunks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        yield slice(start, start + step)


@known_floats
def token_nll(logits: ArrayLike, tokens: ArrayLike) -> NDArray[np.float64]:
    """Return the negative log-likelihood of each next token, in nats.

    ``-log_softmax(logits[t])[tokens[t + 1]]``; the logits of the last position are not used.

    Parameters
    ----------
    logits : array [..., T, vocab]
    tokens : int array [..., T], T >= 2
        What was fed to the model, the first token included.

    Returns
    -------
    float64 array [..., T - 1]

    Raises
    ------
    NumsimError
        The shapes do not fit, or a token is outside the vocabulary.

    Examples
    --------
    >>> token_nll(np.zeros((3, 4)), [0, 1, 2])
    array([1.38629436, 1.38629436])
    """
    values, ids = _numbers("token_nll", logits), _numbers("token_nll", tokens)
    if values.shape[:-1] != ids.shape or ids.ndim < 1 or ids.shape[-1] < 2 or not values.size:
        raise NumsimError(
            f"token_nll: logits [..., T, vocab] need tokens [..., T], T >= 2; got "
            f"{list(values.shape)} and {list(ids.shape)}; pass the tokens the model was fed"
        )
    width = values.shape[-1]
    targets = ids[..., 1:].reshape(-1)
    if ids.dtype.kind not in "iu" or (targets < 0).any() or (targets >= width).any():
        raise NumsimError(
            f"token_nll: tokens must be integers from 0 to {width - 1}; got {ids.dtype}, "
            f"{targets.min()} to {targets.max()}; pass the tokens the model was fed"
        )
    rows = values[..., :-1, :].reshape(-1, width)
    result = np.empty(len(targets))
    with np.errstate(all="ignore"):
        for part in _chunks(len(targets), width):
            picked = np.take_along_axis(_log_softmax(rows[part]), targets[part, None], axis=-1)
            result[part] = -picked[:, 0]
    return result.reshape(*ids.shape[:-1], ids.shape[-1] - 1)


@known_floats
def perplexity(nll: ArrayLike) -> float:
    """Return ``exp(mean(nll))`` of negative log-likelihoods in nats, any shape.

    Raises
    ------
    NumsimError
        `nll` is empty.

    Examples
    --------
    >>> round(perplexity(token_nll(np.zeros((3, 4)), [0, 1, 2])), 9)
    4.0
    """
    values = _numbers("perplexity", nll).astype(np.float64)
    if not values.size:
        raise NumsimError(
            "perplexity: nll must have at least one element; got none; score at least two tokens"
        )
    with np.errstate(all="ignore"):
        return float(np.exp(np.mean(values)))


@known_floats
def paired_difference(reference: ArrayLike, x: ArrayLike) -> tuple[float, float]:
    """Return the mean of ``x - reference`` and its standard error, in their unit.

    Of losses of the same tokens under two recipes: ``std(x - reference) / sqrt(n)`` is far below
    the error of either mean, since what makes a token hard is common to both. Tokens count as
    independent.

    Parameters
    ----------
    reference, x : arrays of one shape
        For example two results of ``Model.nll``.

    Returns
    -------
    mean, standard error : float

    Raises
    ------
    NumsimError
        The shapes differ or are empty.

    Examples
    --------
    >>> paired_difference([1.0, 2.0, 3.0, 4.0], [1.5, 2.0, 3.5, 4.0])
    (0.25, 0.125)
    """
    a, b = _flat("paired_difference", reference, x)
    with np.errstate(all="ignore"):
        difference = b - a
        return float(difference.mean()), float(difference.std() / np.sqrt(difference.size))


@known_floats
def kl_nats(reference: ArrayLike, logits: ArrayLike) -> float:
    """Return the mean Kullback-Leibler divergence of the output distributions, in nats.

    ``mean over positions of sum(p log(p / q))``, p = softmax(reference), q = softmax(logits).

    Parameters
    ----------
    reference, logits : arrays [..., vocab]

    Raises
    ------
    NumsimError
        The shapes differ or are empty.

    Examples
    --------
    >>> kl_nats([[0.0, 0.0]], [[0.0, 0.0]])
    0.0
    >>> round(kl_nats([[0.0, 0.0]], [[1.0, -1.0]]), 4)
    0.4338
    """
    a, b = (np.atleast_1d(x) for x in _pair("kl_nats", reference, logits))
    width = a.shape[-1]
    a, b = a.reshape(-1, width), b.reshape(-1, width)
    total = 0.0
    with np.errstate(all="ignore"):
        for part in _chunks(len(a), width):
            p, q = _log_softmax(a[part]), _log_softmax(b[part])
            weight = np.exp(p)
            total += float(np.sum(np.where(weight == 0, 0.0, weight * (p - q))))
    return total / len(a)


@known_floats
def top1_agreement(reference: ArrayLike, logits: ArrayLike) -> float:
    """Return the share of positions whose largest logit is at the same token, 0 to 1.

    Parameters
    ----------
    reference, logits : arrays [..., vocab]
        The lowest id counts among equals.

    Raises
    ------
    NumsimError
        The shapes differ or are empty.

    Examples
    --------
    >>> top1_agreement([[0.0, 1.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 1.0]])
    0.5
    """
    a, b = (np.atleast_1d(x) for x in _pair("top1_agreement", reference, logits))
    return float(np.mean(np.argmax(a, axis=-1) == np.argmax(b, axis=-1)))
