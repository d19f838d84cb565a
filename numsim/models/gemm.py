"""The matrix products of a run: float64, or as the rules of a recipe say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.kernels.gemm.fma import PackedFma, gemm_fma, pack_b
from numsim.models.memory import OperandCache, held_bytes, release
from numsim.models.recipe import Recipe
from numsim.models.rule import Rule
from numsim.models.streams import draws, stream
from numsim.models.weights import Stored, Weights, shape_of, wide
from numsim.quant import QTensor, Quant, quantize
from numsim.quant.quantize import quantize_pieces
from numsim.quant.quick import quick
from numsim.quant.transforms import llm_int8, rotate
from numsim.targets import matmul

Array = NDArray[Any]
Ints = NDArray[np.int64]
Gemm = Callable[[str, Array, "str | Array", Ints], Array]
RAW = Quant("float32", granularity="none")  # an operand that is not quantised
# What was found last: each product alone asks anew, of thousands of experts.
_LAST: list[tuple[Recipe | None, Iterable[str], Mapping[str, Rule]]] = [(None, (), {})]


def _sides(rule: Rule) -> tuple[Quant, Quant]:
    """Return how the left and the right operand are stored; a rule holds what it was given so."""
    sides: Any = rule.activations or RAW, rule.weights or RAW
    return sides  # type: ignore[no-any-return]


@cache
def probe(rule: Rule) -> float:
    """Run a rule on one product of zeros: what its unit does not take is an error before any work.

    Returns the bytes that it keeps for a weight.

    Raises
    ------
    UnsupportedError
        The unit does not multiply these formats, or has no such output.
    """
    left, right = _sides(rule)
    zeros = np.zeros((64, 256), np.float32)
    a, b = quantize(zeros[:1], left, axis=-1), quantize(zeros, right, axis=-1).T
    matmul(a, b, target=rule.target, out_format=rule.out_format)
    return held_bytes(b) / zeros.size


def fitting_rules(recipe: Recipe, names: Iterable[str]) -> Mapping[str, Rule]:
    """Return the rule of each of `names`, all products of a network; see `probe`.

    Raises
    ------
    NumsimError
        A product without a rule, or a glob without a product.
    UnsupportedError
        A unit does not take what its rule gives it; the message names the rule.
    """
    before, of, rules = _LAST[0]
    if before is not recipe or of is not names:
        rules = MappingProxyType(_fitting(recipe, names))
        _LAST[0] = recipe, names, rules
    return rules


def _fitting(recipe: Recipe, names: Iterable[str]) -> dict[str, Rule]:
    rules = recipe.check(names)
    first: dict[Rule, str] = {}
    for name, rule in rules.items():
        first.setdefault(rule, name)
    for rule, name in first.items():
        try:
            if not rule.is_plain:
                probe(rule)
        except NumsimError as error:
            raise type(error)(
                f"Recipe: {recipe.place(name)}: {error}; change target, activations or weights "
                "(float32 where left out), or out_format"
            ) from None
    return rules


def packed_bytes(
    tensors: Mapping[str, Stored], rules: Mapping[str, Rule] | None, names: Iterable[str]
) -> dict[str, int]:
    """Return about how many bytes the packed stored matrix of each product takes."""
    needs = {}
    for name in names:
        rule = None if rules is None else rules[name]
        each = 8.0 if rule is None else 4.0 if rule.is_plain else probe(rule)
        if f"{name}.weight" in tensors:
            needs[name] = math.ceil(math.prod(shape_of(tensors, f"{name}.weight")) * each)
    return needs


def tapped(gemm: Gemm, keep_tap: Callable[[str, Array], None]) -> Gemm:
    """Return `gemm` with its operands and results offered to `keep_tap`."""

    def run(name: str, x: Array, operand: str | Array, positions: Ints) -> Array:
        keep_tap(f"{name}.in", x)
        if not isinstance(operand, str):
            keep_tap(f"{name}.operand", operand)
        y = gemm(name, x, operand, positions)
        keep_tap(f"{name}.out", y)
        return y

    return run


def rotated_by(x: Array, rule: Rule, axis: int) -> Array:
    """Return an operand rotated along K, where the rule says so.

    >>> rotated_by(np.ones((1, 4), np.float32), Rule(rotate=4), -1).tolist()
    [[2.0, 0.0, 0.0, 0.0]]
    """
    if rule.rotate is None:
        return x
    depth = x.shape[axis]
    block = rule.rotate if depth > rule.rotate or depth % rule.rotate == 0 else depth
    turned = rotate(x.astype(np.float32, copy=False).swapaxes(axis, -1), block=block)
    return turned.swapaxes(axis, -1)


def _split(
    name: str, threshold: float, x: Array, tensors: Mapping[str, Stored], operand: str | Array
) -> Array:
    """Return the product of LLM.int8()."""
    if not isinstance(operand, str):
        raise NumsimError(
            f"Recipe: outliers is for stored matrices; {name} multiplies two activations; match "
            "*_proj"
        )
    rows = x.reshape(-1, x.shape[-1])
    y = llm_int8(rows, wide(tensors[operand]).astype(np.float32), threshold=threshold).matmul()
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _rounded(values: Array, quant: Quant) -> QTensor:
    q = quick(values, quant)
    return quantize(values, quant, axis=-1) if q is None else q


def make_gemm(
    tensors: Mapping[str, Stored],
    cache: OperandCache,
    rules: Mapping[str, Rule] | None,
    seed: int = 0,
    on_left: Callable[[QTensor], object] = lambda stored: None,
) -> Gemm:
    """Return ``gemm(name, x, operand, positions)``: x [..., M, K] times a matrix [..., K, N].

    `operand` names a stored matrix or is an array. `positions` [T], of the tokens of x: M = T, or
    M = heads * T where x holds the query heads that share keys. `rules`: one for each product;
    None: everything in the dtype of x, chains of fused multiply-adds. `seed`: of stochastic
    rounding, see `streams`. `on_left` is shown each left operand as it was stored.
    """
    plain_names = {name for name, rule in (rules or {}).items() if rule.is_plain}
    recent: dict[Any, tuple[Array, Any]] = {}  # q, k, v and gate, up share their input

    def plain(x: Array, operand: str | Array) -> Array:
        """Chain of fused multiply-adds in the dtype of `x`."""
        if isinstance(operand, str):

            def pack() -> PackedFma:
                tensor = wide(tensors[operand])
                made = pack_b(tensor.astype(x.dtype).T[None])
                release(tensor)
                return made

            packed = cache.get(
                (operand, x.dtype.type),
                lambda: math.prod(shape_of(tensors, operand)) * x.itemsize, pack,
            )  # fmt: skip
            y = gemm_fma(x.reshape(1, -1, x.shape[-1]), packed)
            return y.reshape(*x.shape[:-1], y.shape[-1])
        count = math.prod(x.shape[:-2])  # -1 is no number where x is empty
        left, right = (z.reshape(count, *z.shape[-2:]) for z in (x, operand))
        return gemm_fma(left, right).reshape(*x.shape[:-1], operand.shape[-1])

    def stored_left(
        name: str, rule: Rule, quant: Quant, x: Array, shape: tuple[int, ...], ids: Ints
    ) -> Any:
        if quant.rounding != "sr":
            key = quant, rule.rotate
            before = recent.get(key)
            if before is not None and before[0] is x:
                return before[1]
            recent.clear()
            made = _rounded(rotated_by(x, rule, -1).reshape(shape), quant)
            recent[key] = x, made
            return made
        groups = shape[-3] if len(shape) > 2 else 1  # every product draws for itself
        random = draws(
            stream(seed, name, "left"), ids, x.shape[-1],
            groups=groups, heads=x.shape[-2] // max(len(ids), 1),
        )  # fmt: skip
        random = np.broadcast_to(random if len(shape) > 2 else random[0], x.shape).reshape(shape)
        turned = rotated_by(x, rule, -1).reshape(shape)
        return quantize(turned, quant, axis=-1, random=random)

    def stored_right(name: str, quant: Quant, operand: Array) -> QTensor:
        if quant.rounding != "sr":  # as stored weights are, [.., N, K]
            lines = np.ascontiguousarray(operand.swapaxes(-1, -2))
            return _rounded(lines, quant).T
        if isinstance(quant.block, tuple):  # (outputs, K), as tiles of stored weights [N, K]
            quant = replace(quant, block=quant.block[::-1])
        turned = operand.swapaxes(-1, -2) if name.endswith("qk") else operand  # [.., S, D]
        groups = turned.shape[-3] if turned.ndim > 2 else 1
        key, positions = stream(seed, name, "right"), np.arange(turned.shape[-2])
        random = draws(key, positions, turned.shape[-1], groups=groups)
        random = np.broadcast_to(random if turned.ndim > 2 else random[0], turned.shape)
        random = random.swapaxes(-1, -2) if name.endswith("qk") else random
        return quantize(operand, quant, axis=-2, random=random)

    def emulated(name: str, rule: Rule, x: Array, operand: str | Array, positions: Ints) -> Array:
        left, right = _sides(rule)
        if rule.outliers is not None:
            return _split(name, rule.outliers, x, tensors, operand)
        if isinstance(operand, str):
            shape: tuple[int, ...] = (-1, x.shape[-1])  # [B*T, K]: one scale for the whole batch
            key = stream(seed, name, "right") if right.rounding == "sr" else 0

            def store() -> QTensor:
                stored = tensors[operand]
                if isinstance(stored, QTensor) and rule.weights is not None:
                    if rule.rotate is not None:
                        raise NumsimError(
                            f"Recipe: rotate turns weights before they are rounded; {name} has "
                            "packed codes; load_model(dequantise=True) reads them as numbers"
                        )
                    return stored.T  # as it was stored: `check_stored` has seen that it is so
                tensor = wide(stored)
                narrow = tensor if tensor.itemsize <= 4 else tensor.astype(np.float32)
                narrow = rotated_by(narrow, rule, -1)
                made = quantize_pieces(
                    narrow, right, axis=-1, seed=key, done=lambda: release(tensor)
                )
                return made.T

            as_stored = isinstance(tensors, Weights) and not tensors.dequantise
            kept = operand, right, key, as_stored, rule.rotate
            b = cache.get(
                kept, lambda: int(math.prod(shape_of(tensors, operand)) * probe(rule)), store
            )
        else:
            shape, b = x.shape, stored_right(name, right, rotated_by(operand, rule, -2))
        try:
            a = stored_left(name, rule, left, x, shape, positions)
        except NumsimError as error:
            raise NumsimError(f"the input of {name}: {error}") from None
        on_left(a)
        y = matmul(a, b, target=rule.target, out_format=rule.out_format)
        if isinstance(operand, str):
            cache.measure(kept)
        return np.asarray(y, np.float32).reshape(*x.shape[:-1], y.shape[-1])

    def gemm(name: str, x: Array, operand: str | Array, positions: Ints) -> Array:
        if rules is None or name in plain_names:
            return plain(x, operand)
        return emulated(name, rules[name], x, operand, positions)

    return gemm
