"""The matrix products of training: y = x W^T, dx = g W and dW = g^T x, each by its own rule.

x [..., M, K], W [..., N, K], g [..., M, N], float32; operands are `numsim.quantize` of them along
the axis that the product sums, and the same codes serve two products where their scales allow it
(one for the whole tensor, none, or tiles). Without rules everything is float64, in chains of fused
multiply-adds, K ascending.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NotFiniteError, NumsimError
from numsim.kernels.gemm.fma import gemm_fma, pack_b
from numsim.models.gemm import RAW, probe
from numsim.nn import direct
from numsim.nn.draws import hadamard, random_signs, stream_key
from numsim.nn.rows import ONE_SCALE, Codes, by_steps, quickly, rows_turned
from numsim.quant import QTensor, Quant, as_quant, quantize
from numsim.targets import matmul

Array = NDArray[Any]
Watch = Callable[[str, str, Array, QTensor], object]
PRODUCTS = ("forward", "dgrad", "wgrad")


@dataclass
class Context:
    """What every operation of a pass knows.

    `rules` gives the rule of a product by name, None: float64. `step` counts updates, for random
    bits. `scaling` keeps delayed scales by product and tensor; a pass reads and extends it.
    `watch` is called with (product, tensor, values, stored) for every quantised operand, and for
    every result of an operation between products that is stored in a format; `between` gives the
    rule of such an operation by name.
    """

    dtype: Any = np.float64
    rules: Callable[[str], Any] | None = None
    seed: int = 0
    step: int = 0
    scaling: dict[str, Any] = field(default_factory=dict)
    watch: Watch | None = None
    between: Callable[[str], Any] | None = None
    checked: dict[str, Any] = field(default_factory=dict)  # rules of products, by name

    def pointwise(self, name: str) -> Any:
        """Return the rule of an operation between products; None: its result is not stored."""
        return None if self.between is None else self.between(name)

    def keep(self, rule: Any, name: str, tensor: str, values: Array, *at: int) -> QTensor:
        """Return the result of an operation between products as `rule` stores it.

        `at` tells apart the results of one name and tensor in a pass, for random bits.
        """
        quant = as_quant(rule.pointwise)
        how: dict[str, Any] = {}
        if quant.rounding == "sr":
            how["seed"] = stream_key(self.seed, name, tensor, *at, self.step)
        try:
            q: QTensor = quantize(values, quant, axis=-1, **how)
        except NumsimError as error:
            kind = NumsimError if np.isfinite(values).all() else NotFiniteError
            what = name or "the layer"
            raise kind(f"step {self.step}, the result of {what} ({tensor}): {error}") from None
        if self.watch is not None and quant != RAW:
            self.watch(name, tensor, values, q)
        return q

    def rule(self, name: str) -> Any:
        """Return the rule of a product, checked; None in float64."""
        if self.rules is None or name in self.checked:
            return self.checked.get(name)
        rule = self.rules(name)
        for product in PRODUCTS:
            if not hasattr(rule, product):
                raise NumsimError(
                    f"nn: training needs a rule for forward, dgrad and wgrad; that of "
                    f"{name or 'the product'} has no {product}; make the recipe with "
                    "numsim.train.recipe"
                )
        check_rule(name, rule)
        self.checked[name] = rule
        return rule


@lru_cache(maxsize=256)
def check_rule(name: str, rule: Any) -> None:
    """Raise where a unit does not multiply the formats of one of the three products."""
    for product in PRODUCTS:
        one = getattr(rule, product)
        try:
            probe(one)
        except NumsimError as error:
            raise type(error)(
                f"nn: {product} of {name or 'the product'}: {error}; change its target or formats"
            ) from None


def chains(a: Array, b: Array) -> Array:
    """Return a [..., M, K] by b [..., K, N] in float64, a chain of fused multiply-adds."""
    lead = a.shape[:-2]
    left = np.ascontiguousarray(a, np.float64).reshape(-1, *a.shape[-2:])
    right = np.ascontiguousarray(b, np.float64).reshape(-1, *b.shape[-2:])
    return gemm_fma(left, pack_b(right)).reshape(*lead, a.shape[-2], b.shape[-1])


@dataclass
class Operands:
    """The tensors of one product and their codes, each made once."""

    context: Context
    name: str
    rule: Any
    sources: dict[str, Any]  # x, w, g: float32 arrays, or QTensors that are stored
    weights: Codes = field(default_factory=dict)  # of w: steps of a cell share them
    made: dict[Any, QTensor] = field(default_factory=dict)
    at: tuple[object, ...] = ()  # tells this product from others of its name in a pass, for draws
    shared: dict[str, Codes] = field(default_factory=dict)  # of x, g: what other products share

    def get(self, tensor: str, quant: Any, axis: int) -> QTensor:
        """Return the codes of x, w or g with scales that are constant along `axis`, -1 or -2."""
        wanted = RAW if quant is None else as_quant(quant)
        key = tensor, wanted, None if _for_both_axes(wanted) else axis
        made = self.weights if tensor == "w" else self.made
        if key not in made:
            made[key] = self._make(tensor, wanted, axis)
        return made[key]

    def turned_weight(self, quant: Any) -> QTensor:
        """Return the codes of W^T, scales along K: one object, so that it is packed once."""
        key = "turned", quant
        if key not in self.weights:
            self.weights[key] = self.get("w", quant, -1).T
        return self.weights[key]

    def _make(self, tensor: str, quant: Quant, axis: int) -> QTensor:
        source = self.sources[tensor]
        if isinstance(source, QTensor):
            same = source.fmt == quant.fmt and (source.scale is None or source.scale.size == 1)
            if same and quant.granularity in ONE_SCALE:
                return source  # as stored: its codes are never rounded again
            source = source.dequantize()
        if self.rule.source == "requantise" and axis == -2 and tensor != "g":
            forward = self.rule.forward.activations if tensor == "x" else self.rule.forward.weights
            if forward is not None:
                source = self.get(tensor, forward, -1).dequantize()
        c = self.context
        try:
            if self.rule.delayed is not None and quant.granularity == "per_tensor":
                return self._delayed(tensor, quant, source)
            q = self._quantised(tensor, quant, source, axis)
        except NumsimError as error:
            kind = NumsimError if np.isfinite(source).all() else NotFiniteError
            name = self.name or "the product"
            raise kind(f"step {c.step}, {_role(tensor)} of {name}: {error}") from None
        if c.watch is not None and quant != RAW:
            c.watch(self.name, tensor if axis == -1 else f"{tensor}T", source, q)
        return q

    def _quantised(self, tensor: str, quant: Quant, source: Array, axis: int) -> QTensor:
        scale = np.float32(self.rule.gradient_scale if tensor == "g" else 1)
        # Each product has draws of its own, and what is requantised is this product's alone.
        same = quant.rounding != "sr" and source is self.sources[tensor]
        codes = self.shared.get(tensor, {}) if same else {}
        key = quant, None if _for_both_axes(quant) else axis, scale
        if key not in codes:
            scaled = source if scale == 1 else source * scale
            made = quickly(scaled, quant, axis)
            how = self._random(tensor, quant, axis)
            q = quantize(scaled, quant, axis=axis, **how) if made is None else made
            codes[key] = q if scale == 1 else _divided(q, scale)
        return codes[key]

    def _random(self, tensor: str, quant: Quant, axis: int) -> dict[str, Any]:
        if quant.rounding != "sr":
            return {}
        # Codes that serve both axes do not depend on who asks for them first; of w those of the
        # first product serve all others of its name.
        along = -1 if _for_both_axes(quant) else axis
        c, at = self.context, () if tensor == "w" else self.at
        return {"seed": stream_key(c.seed, self.name, tensor, along, *at, c.step)}

    def _delayed(self, tensor: str, quant: Quant, source: Array) -> QTensor:
        # A tensor in two formats, as x in forward and wgrad may be, has a history in each.
        c, key = self.context, f"{self.name}.{tensor}.{quant.fmt.name}"
        rule = replace(self.rule.delayed, format=quant.format)
        state = c.scaling[key] if key in c.scaling else rule.init()
        q: QTensor
        how = {"rounding": quant.rounding, "overflow": quant.overflow}
        how |= self._random(tensor, quant, -1)
        q, c.scaling[key] = rule.quantize(source, state, **how)
        if c.watch is not None:
            c.watch(self.name, tensor, source, q)
        return q


def _divided(q: QTensor, by: np.float32) -> QTensor:
    """Return a tensor whose scale is divided: where units read codes of scales, the one above."""
    given = q.scale if q.scale_codes is None else q.tensor_scale
    scale = np.asarray((np.float32(1) if given is None else given) / by, np.float32)
    if q.scale_codes is None:
        return replace(q, scale=scale, packed={})
    return replace(q, tensor_scale=scale, packed={})


def _for_both_axes(quant: Quant) -> bool:
    """Whether scales are constant along both axes of a matrix: one for all of it, or in tiles."""
    tiles = isinstance(quant.block, tuple) and quant.block[0] == quant.block[1]
    return quant.granularity in ONE_SCALE or tiles


def _role(tensor: str) -> str:
    return {"x": "the input", "w": "the weight", "g": "the gradient"}[tensor]


def forward_product(
    context: Context, name: str, x: Array, w: Any, weights: Codes | None = None,
    at: tuple[object, ...] = (), *, inputs: Codes | None = None, small: bool = False,
    turned: tuple[int, ...] | None = None,
) -> tuple[Array, tuple[Any, ...]]:  # fmt: skip
    """Return y = x W^T [..., M, N], and what `backward_product` needs.

    `weights` keeps the codes of W for further products with the same W, which `at` tells apart:
    each has random bits of its own. `inputs` keeps those of x for products with the same x.
    `small`: what asks before a product takes as long as it (`direct`). `turned`: the rows of x are
    [B, T], and y is [T, B, N].
    """
    rule = context.rule(name)
    if not x.size:  # no row: nothing to quantise, and no gradient
        y = np.zeros((*x.shape[:-1], w.shape[-2]), context.dtype)
        return (y if turned is None else by_steps(y, turned)), (x, w)
    if rule is None:
        y = chains(x, np.swapaxes(w, -1, -2))
        return (y if turned is None else by_steps(y, turned)), (x, w)
    kept = {} if weights is None else weights
    shared = {} if inputs is None else {"x": inputs}
    operands = Operands(context, name, rule, {"x": x, "w": w}, kept, at=at, shared=shared)
    one = rule.forward
    left = operands.get("x", one.activations, -1)
    right = operands.turned_weight(one.weights)
    if turned is None:
        return _multiply(left, right, one, small), (operands,)
    if left.scale is None or left.scale.ndim or left.block_shape or np.ndim(left.tensor_scale):
        return by_steps(_multiply(left, right, one, small), turned), (operands,)
    y = _multiply(rows_turned(left, turned), right, one, small)  # of codes, not of sums
    return y.reshape(*turned[::-1], -1), (operands,)


def backward_product(
    context: Context, saved: tuple[Any, ...], g: Array, *, inputs: bool = True, weights: bool = True
) -> tuple[Array | None, Array | None]:
    """Return dx = g W and dW = g^T x for the gradient g [..., M, N] of y."""
    dx, (dw,) = backward_products(context, [saved], g, inputs=inputs, weights=[weights])
    return dx, dw


def backward_products(
    context: Context, products: Sequence[tuple[Any, ...]], g: Array, *, inputs: bool,
    weights: Sequence[bool], small: bool = False, codes: Codes | None = None,
) -> tuple[Array | None, list[Array | None]]:  # fmt: skip
    """Return dx = g W of the first of several products with one g, and dW = g^T x of each.

    They share codes of g where none draws its own. One product gives all dW where each x has one
    scale: columns of x stand side by side, and the sums of one do not depend on the others. `codes`
    are those of g that are there.
    """
    codes = {} if codes is None else codes
    each = [
        _with_gradient(context, p[0], g, codes) if len(p) == 1 else p for p in products
    ]  # a tape may be read again, and then with another gradient
    if len(each) > 1 and all(weights) and _fit_side_by_side(each):
        dx, _ = _backward(context, each[0], g, inputs, False, small)
        return dx, _side_by_side(each, small)
    found = [
        _backward(context, p, g, inputs and p is each[0], wanted, small)
        for p, wanted in zip(each, weights, strict=True)
    ]
    return found[0][0], [dw for _, dw in found]


def _with_gradient(context: Context, kept: Operands, g: Array, codes: Codes) -> Operands:
    return Operands(
        context, kept.name, kept.rule, kept.sources | {"g": g}, kept.weights, dict(kept.made),
        kept.at, kept.shared | {"g": codes},
    )  # fmt: skip


def _backward(
    context: Context, product: Operands | tuple[Any, ...], g: Array, inputs: bool, weights: bool,
    small: bool,
) -> tuple[Array | None, Array | None]:  # fmt: skip
    if not isinstance(product, Operands):
        x, w = product
        if not x.size:
            dx = np.zeros(x.shape, context.dtype) if inputs else None
            return dx, np.zeros(w.shape, context.dtype) if weights else None
        dx = chains(g, w) if inputs else None
        return dx, chains(np.swapaxes(g, -1, -2), x) if weights else None
    rule, sources, dx, dw = product.rule, product.sources, None, None
    if inputs:
        one = rule.dgrad
        right = product.get("w", one.weights, -2)
        dx = _multiply(product.get("g", one.activations, -1), right, one, small)
        if rule.clip_gradient:
            dx = clipped(dx, sources["x"], product.get("x", rule.forward.activations, -1))
    if weights:
        dw = _weight_gradient(product)
        if rule.clip_gradient:
            dw = clipped(dw, sources["w"], product.get("w", rule.forward.weights, -1))
    return dx, dw


def _fit_side_by_side(products: Sequence[Operands | tuple[Any, ...]]) -> bool:
    rules = []
    for p in products:
        if not isinstance(p, Operands) or isinstance(p.sources["x"], QTensor):
            return False
        rules.append(p.rule)
    rule = rules[0]
    left, right = (
        RAW if q is None else as_quant(q) for q in (rule.wgrad.activations, rule.wgrad.weights)
    )
    own = rule.hadamard or rule.clip_gradient or rule.delayed or left.rounding == "sr"
    more = right.zero_point or right.above is not None  # than one scale
    one = right.granularity in ONE_SCALE and not more
    return not own and one and all(other == rule for other in rules)


def _side_by_side(products: Sequence[Any], small: bool) -> list[Array | None]:
    one = products[0].rule.wgrad
    gs = [p.get("g", one.activations, -2) for p in products]  # one tensor, told each watch
    xs = [p.get("x", one.weights, -2) for p in products]
    made = direct.products(gs[0].T, xs, one) if small else None
    if made is not None:
        return [*made]
    widths = [x.shape[-1] for x in xs]
    scales = np.repeat(np.array([x.scale for x in xs], np.float32).reshape(-1), widths)
    joined = QTensor(np.concatenate([x.codes for x in xs], axis=-1), xs[0].fmt, scales[None])
    both = _multiply(gs[0].T, joined, one)
    return [np.ascontiguousarray(dw) for dw in np.split(both, np.cumsum(widths)[:-1], axis=-1)]


def _weight_gradient(operands: Operands) -> Array:
    rule = operands.rule
    one, size = rule.wgrad, rule.hadamard
    if not size:
        left = operands.get("g", one.activations, -2).T
        return _multiply(left, operands.get("x", one.weights, -2), one)
    c = operands.context
    signs = random_signs(size, c.seed, operands.name, "hadamard", c.step)
    turned = {}
    for tensor in ("g", "x"):
        source = operands.sources[tensor]
        rows = source.shape[-2]
        wide = np.zeros((*source.shape[:-2], source.shape[-1], -(-rows // size) * size), np.float32)
        wide[..., :rows] = np.swapaxes(source, -1, -2)
        turned[tensor] = hadamard(wide, signs)  # zeros that fill a group add nothing
    # Other values than those of dgrad and forward: other draws.
    own = Operands(
        c, operands.name, replace(rule, source="high"), turned, {}, at=("hadamard", *operands.at)
    )
    left = own.get("g", one.activations, -1)
    return _multiply(left, own.get("x", one.weights, -1).T, one)


def _multiply(a: QTensor, b: QTensor, rule: Any, small: bool = False) -> Array:
    made = direct.products(a, [b], rule) if small else None
    if made is not None:
        return made[0]
    y = matmul(a, b, target=rule.target, out_format=rule.out_format)
    return np.asarray(y, np.float32)


def clipped(gradient: Array, source: Any, stored: QTensor) -> Array:
    """Return a gradient with 0 where storage saturated the value."""
    values = source.dequantize() if isinstance(source, QTensor) else source
    return np.where(beyond(values, stored), np.float32(0), gradient)


def beyond(values: Array, stored: QTensor) -> NDArray[np.bool_]:
    """Return which values lie outside of what a stored tensor reaches under its scale.

    An amax scale and the quotient are rounded to float32: the largest element may lie above what
    the scale reaches by 2**-20 of it, and is not outside.
    """
    scale = (
        np.float64(1) if stored.scale is None else np.asarray(stored.element_scale(), np.float64)
    )
    if stored.tensor_scale is not None:
        scale = scale * np.asarray(stored.tensor_scale, np.float64)
    reach = scale * (1 + 2.0**-20)
    found: NDArray[np.bool_] = (values > stored.fmt.max * reach) | (values < stored.fmt.min * reach)
    return found
