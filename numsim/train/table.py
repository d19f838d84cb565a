"""Named recipes of training: one entry each, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from numsim.arguments import is_word
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import get_format
from numsim.models import Rule as Product
from numsim.quant import Quant, as_quant
from numsim.targets import Target, get_target
from numsim.train.rules import Recipe, Rule
from numsim.train.scaling import DelayedScaling

QuantLike = Quant | str | None

_TILES = Quant("float4_e2m1fn", block=(16, 16), scale_format="float8_e4m3fn")
_ROWS = Quant("float4_e2m1fn", block=16, scale_format="float8_e4m3fn")
_ROWS_SR = replace(_ROWS, rounding="sr")


def _same(x: QuantLike, w: QuantLike, g: QuantLike, **more: Any) -> dict[str, Any]:
    """Return the usual three products: x and w forward, g and w for dx, g and x for dW."""
    return {"x": x, "w": w, "g": g} | more


# name -> tensors' formats, what the rule changes, how parameters are kept, and the source.
TABLE: dict[str, dict[str, Any]] = {
    "float32": _same(None, None, None),
    "fp8_hybrid": _same("float8_e4m3fn", "float8_e4m3fn", "float8_e5m2"),
    "fp8_e4m3": _same("float8_e4m3fn", "float8_e4m3fn", "float8_e4m3fn"),
    "fp8_e5m2": _same("float8_e5m2", "float8_e5m2", "float8_e5m2"),
    "fp8_delayed": _same(
        "float8_e4m3fn", "float8_e4m3fn", "float8_e5m2",
        delayed=DelayedScaling("float8_e4m3fn"),
    ),
    "mxfp8": _same("mxfp8_e4m3", "mxfp8_e4m3", "mxfp8_e5m2"),
    "nvfp4": _same(_ROWS, _TILES, _ROWS_SR, hadamard=16),
    "int8": _same("int8", "int8", "int8"),
    "q3.4_forward": _same("q3.4", "q3.4", None),
    "q3.4": _same("q3.4", "q3.4", "q3.4"),
    "q3.4_scale4096": _same("q3.4", "q3.4", "q3.4", gradient_scale=4096.0),
    "integer": _same("int8", "int8", "int8"),
}  # fmt: skip
SOURCES = {
    "float32": "a chain of fused multiply-adds",
    "fp8_hybrid": "Micikevicius et al., arXiv 2209.05433: E4M3 forward, E5M2 gradients",
    "fp8_e4m3": "one format everywhere, as DeepSeek-V3 trains",
    "fp8_e5m2": "one format everywhere",
    "fp8_delayed": "TransformerEngine's delayed scaling",
    "mxfp8": "OCP MX 1.0; every operand along the axis that its product sums",
    "nvfp4": "NVIDIA's NVFP4 training: 16 x 16 weights, stochastic gradients, Hadamard on wgrad",
    "int8": "symmetric INT8, one scale a tensor",
    "q3.4_forward": "8-bit fixed point, gradients in float32",
    "q3.4": "8-bit fixed point everywhere, raw casts",
    "q3.4_scale4096": "the same, gradients times 4096",
    "integer": "products of INT8 codes in INT32; see numsim.train.integer for the rest of a step",
}
_STORED = {
    "fp8": ("fp8_hybrid", "float8_e4m3fn"),
    "int8": ("int8", "int8"),
    "q3.4": ("q3.4_forward", "q3.4"),
}


@known_floats
def list_recipes() -> tuple[str, ...]:
    """Return the names that `recipe` knows.

    >>> "fp8_hybrid" in list_recipes() and "int8_stored_sr" in list_recipes()
    True
    """
    stored = (f"{kind}_stored_{rounding}" for kind in _STORED for rounding in ("rne", "sr"))
    return (*TABLE, *stored)


@known_floats
def recipe(name: str, *, target: str | Target | None = None, **changes: Any) -> Recipe:
    """Return a named recipe: one rule for every product.

    Parameters
    ----------
    name
        As `list_recipes` gives them; ``_stored_rne`` and ``_stored_sr`` keep the parameters in
        the format.
    target
        The unit of all products; None: ``ideal.fp32``, for integers and fixed point ``ideal.int``.
        A product of float32 operands keeps ``ideal.fp32``.
    changes
        Fields of `Rule` (``source``, ``gradient_scale``, ``hadamard``, ``clip_gradient``,
        ``delayed``, ``pointwise``), of `Recipe` (``seed``, ``storage``), or ``out_format`` of all
        products.

    Raises
    ------
    NumsimError
        For an unknown name or field, with near names.

    Source
    ------
    `SOURCES` names that of each.

    Examples
    --------
    >>> r = recipe("fp8_hybrid", target="nvidia.hopper.wgmma")
    >>> r.rule("head").dgrad.activations.format, r.rule("head").dgrad.target.name
    ('float8_e5m2', 'nvidia.hopper.wgmma')
    """
    if not is_word(name, list_recipes()):
        raise NumsimError(
            f"train.recipe: one of {', '.join(list_recipes())}; got {name!r}"
            f"{near_names(str(name), list_recipes())}"
        )
    storage: Quant | None = None
    base = name
    for kind, (products, fmt) in _STORED.items():
        for rounding in ("rne", "sr"):
            if name == f"{kind}_stored_{rounding}":
                base, storage = products, Quant(fmt, rounding=rounding)
    entry = dict(TABLE[base])
    x, w, g = (entry.pop(key) for key in ("x", "w", "g"))
    out_format = changes.pop("out_format", "float32")
    make = _products(target, out_format)
    rule = Rule(forward=make(x, w), dgrad=make(g, w), wgrad=make(g, x), **entry)
    own: dict[str, Any] = {key: changes.pop(key) for key in ("seed", "storage") if key in changes}
    known = tuple(f.name for f in fields(Rule))
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise NumsimError(
            f"train.recipe: {unknown[0]} is no field of a Rule or Recipe; they have "
            f"{', '.join(known)}, seed, storage"
        )
    return Recipe((("*", replace(rule, **changes)),), **({"storage": storage} | own))


def _products(
    target: str | Target | None, out_format: str
) -> Callable[[QuantLike, QuantLike], Product]:
    def make(left: QuantLike, right: QuantLike) -> Product:
        integers = [
            q is not None and get_format(as_quant(q).format).kind == "integer"
            for q in (left, right)
        ]
        unit: str | Target = "ideal.fp32"
        if None in (left, right) and target is not None:
            found = get_target(target)  # an ideal unit has one rule, by definition
            ideal = found.maturity == "definition" and len(found.rules) == 1
            unit = target if ideal and not any(integers) else unit
        elif target is not None:
            unit = target
        elif all(integers):
            unit = "ideal.int"
        return Product(left, right, unit, out_format)

    return make
