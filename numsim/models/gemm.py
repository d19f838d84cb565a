"""The matrix products of a run: float64, or as the rules of a recipe say."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.gemm_fma import PackedFma, gemm_fma, pack_b
from numsim.models.memory import OperandCache, held_bytes, release
from numsim.models.recipe import Rule
from numsim.quant import QTensor, Quant, as_quant, quantize
from numsim.quant.quantize import quantize_pieces
from numsim.targets import matmul

Array = NDArray[Any]
Gemm = Callable[[str, Array, "str | Array"], Array]
RAW = Quant("float32", granularity="none")  # an operand that is not quantised


@cache
def probe(rule: Rule) -> float:
    """Run a rule on one product of zeros: what its unit does not take is an error before any work.

    Returns the bytes that it keeps for a weight.

    Raises
    ------
    UnsupportedError
        The unit does not multiply these formats, or has no such output.
    """
    left, right = as_quant(rule.activations or RAW), as_quant(rule.weights or RAW)
    zeros = np.zeros((64, 256), np.float32)
    a, b = quantize(zeros[:1], left, axis=-1), quantize(zeros, right, axis=-1).T
    matmul(a, b, target=rule.target, out_format=rule.out_format)
    return held_bytes(b) / zeros.size


def packed_bytes(
    tensors: Mapping[str, Array], rules: Mapping[str, Rule] | None, names: Iterable[str]
) -> dict[str, int]:
    """Return about how many bytes the packed stored matrix of each product takes."""
    needs = {}
    for name in names:
        rule = None if rules is None else rules[name]
        each = 8.0 if rule is None else 4.0 if rule.is_plain else probe(rule)
        if f"{name}.weight" in tensors:
            needs[name] = math.ceil(tensors[f"{name}.weight"].size * each)
    return needs


def tapped(gemm: Gemm, keep_tap: Callable[[str, Array], None]) -> Gemm:
    """Return `gemm` with its operands and results offered to `keep_tap`."""

    def run(name: str, x: Array, operand: str | Array) -> Array:
        keep_tap(f"{name}.in", x)
        if not isinstance(operand, str):
            keep_tap(f"{name}.operand", operand)
        y = gemm(name, x, operand)
        keep_tap(f"{name}.out", y)
        return y

    return run


def make_gemm(
    tensors: Mapping[str, Array], cache: OperandCache, rules: Mapping[str, Rule] | None
) -> Gemm:
    """Return ``gemm(name, x, operand)``: x [..., M, K] times a stored matrix or [..., K, N].

    `rules`: one for each product; None: everything in the dtype of x, chains of fused
    multiply-adds.
    """
    plain_names = {name for name, rule in (rules or {}).items() if rule.is_plain}
    recent: dict[Quant, tuple[Array, Any]] = {}  # q, k, v and gate, up share their input

    def plain(x: Array, operand: str | Array) -> Array:
        """Chain of fused multiply-adds in the dtype of `x`."""
        if isinstance(operand, str):
            tensor = tensors[operand]

            def pack() -> PackedFma:
                made = pack_b(tensor.astype(x.dtype).T[None])
                release(tensor)
                return made

            packed = cache.get((operand, x.dtype.type), tensor.size * x.itemsize, pack)
            y = gemm_fma(x.reshape(1, -1, x.shape[-1]), packed)
            return y.reshape(*x.shape[:-1], -1)
        y = gemm_fma(x.reshape(-1, *x.shape[-2:]), operand.reshape(-1, *operand.shape[-2:]))
        return y.reshape(*x.shape[:-1], -1)

    def emulated(name: str, rule: Rule, x: Array, operand: str | Array) -> Array:
        left, right = as_quant(rule.activations or RAW), as_quant(rule.weights or RAW)
        if isinstance(operand, str):
            tensor = tensors[operand]
            x_rows = x.reshape(-1, x.shape[-1])  # [B*T, K]: one scale for the whole batch

            def store() -> QTensor:
                wide = tensor if tensor.itemsize <= 4 else tensor.astype(np.float32)
                made = quantize_pieces(
                    wide, right, axis=-1, seed=_stream(name, 1), done=lambda: release(tensor)
                )
                return made.T

            b = cache.get((operand, right), int(tensor.size * probe(rule)), store)
        else:
            x_rows = x
            b = quantize(operand, right, axis=-2, seed=_stream(name, 1))
        if left not in recent or recent[left][0] is not x:
            recent.clear()
            recent[left] = (x, quantize(x_rows, left, axis=-1, seed=_stream(name, 0)))
        y = matmul(recent[left][1], b, target=rule.target, out_format=rule.out_format)
        if isinstance(operand, str):
            cache.measure((operand, right))
        return np.asarray(y, np.float32).reshape(*x.shape[:-1], -1)

    def gemm(name: str, x: Array, operand: str | Array) -> Array:
        if rules is None or name in plain_names:
            return plain(x, operand)
        return emulated(name, rules[name], x, operand)

    return gemm


def _stream(name: str, side: int) -> int:
    """Return the seed of a tensor's stochastic rounding: its own for every product and side."""
    return zlib.crc32(f"{name}:{side}".encode())
