"""Recipes of blocks in words: what one is, and how its scale and its elements come about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from numsim.decimals import exact_text
from numsim.errors import NumsimError, near_names
from numsim.explain.cast import explain_cast, one_number
from numsim.float_state import known_floats
from numsim.formats import get_format
from numsim.quant import QUANTS, SOURCES, Quant, quantize, recipe_name
from numsim.quant.scales import largest_scale
from numsim.quant.table import quantised_again

_RULES = {  # of scales; {most}: the largest block scale aimed at
    "floor": "floor: 2**(floor(log2 amax) - {emax}); quotients stay below 2**{above}, those beyond "
    "{max} saturate",
    "amax": "amax: amax of the block / {max}{over}",
    "4over6:mse": "4over6:mse: amax / 6 or amax / 4, whichever leaves the smaller squared error"
    "{over}",
    "if4": "if4: amax / {max}{over}; blocks that integers -7 .. 7 of 6/7 fit better hold those, "
    "bit 7 of the code says so",
    "hif4": "hif4: amax / 7 in bfloat16, then E6M2; 8 and 16 bits more double the scale of 8 and 4 "
    "values",
}
_ABOVE = {
    None: "",
    "per_tensor": ", over a float32 scale of the tensor, amax of the tensor / ({max} x {most})",
    "per_token": ", over a float32 scale of the row, amax of the row / ({max} x {most})",
}


@known_floats
def recipe_title(name: str) -> str:
    """Return what a recipe is in one line.

    Raises
    ------
    NumsimError
        For an unknown name.

    Examples
    --------
    >>> recipe_title("mxfp4_e2m1")
    'mxfp4_e2m1: blocks of 32 float4_e2m1fn under a float8_e8m0fnu scale'
    """
    name = _known(name)
    rule = QUANTS[name]
    return f"{name}: blocks of {rule.block} {rule.fmt.name} under a {rule.scale_format} scale"


@known_floats
def explain_recipe(name: str) -> str:
    """Return the element format, block, scale and source of a recipe, and its relatives.

    Raises
    ------
    NumsimError
        For an unknown name.

    Examples
    --------
    >>> print(explain_recipe("nvfp4").splitlines()[0])
    nvfp4: blocks of 16 float4_e2m1fn under a float8_e4m3fn scale, from NVIDIA cuBLAS, ...
    """
    name = _known(name)
    rule = QUANTS[name]
    f, scale = rule.fmt, get_format(rule.scale_format)
    most = exact_text(float(largest_scale(rule)))
    over = _ABOVE[rule.above].format(max=exact_text(f.max), most=most)
    text = _RULES[str(rule.scale_rule)]
    above = {None: "", "per_tensor": " and 32 for the tensor", "per_token": " and 32 for the row"}
    facts = [
        ("element", f"{f.name}, largest {exact_text(f.max)}: see numsim explain {f.name}"),
        ("block", f"{rule.block} values along the axis of the sum share a scale"),
        ("value", "scale x element: a stored scale multiplies"),
        ("scale format", f"{scale.name}, {scale.bits} bits, largest {exact_text(scale.max)}"),
        (
            "scale rule",
            text.format(emax=f.emax, above=f.emax + 1, max=exact_text(f.max), over=over),
        ),
        ("rounding, overflow", f"{rule.rounding}, {rule.overflow}"),
        ("quantised again", quantised_again(rule) or "the same values"),
        ("bits per value", f"{exact_text(_bits(rule))}{above[rule.above]}"),
    ]
    lines = [f"{recipe_title(name)}, from {SOURCES[name]}"]
    lines += [f"  {fact:<20} {words}" for fact, words in facts]
    lines.append("relatives, and where they differ:")
    lines += [f"  {n:<20} {_difference(rule, q)}" for n, q in QUANTS.items() if n != name]
    return "\n".join(lines)


@known_floats
def explain_block(
    values: Sequence[float], name: str, *, rounding: str = "rne", overflow: str = "saturate",
    seed: int = 0, offset: int = 0,
) -> str:  # fmt: skip
    """Return every step from the numbers of one block to its scale and codes.

    Parameters
    ----------
    values
        One to as many floats as a block has, computed with in float64.
    name
        A recipe: ``mxfp4_e2m1``, ``nvfp4`` ... For a scale above the blocks, this one is the
        whole tensor.
    rounding, overflow, seed, offset
        As `encode`, for the elements; element i draws with ``offset + i``.

    Raises
    ------
    NumsimError
        As `quantize` and `explain_cast`, and for more values than a block holds.

    Examples
    --------
    >>> print(explain_block([1.1], "mxfp4_e2m1"))
    1.1 to mxfp4_e2m1: blocks of 32 float4_e2m1fn under a float8_e8m0fnu scale
      amax          1.1
      scale         0.25, code 0x7d, rule floor
    1.1 / 0.25 = 4.4 to float4_e2m1fn, nearest, ties to even, overflow saturate
      input         +1.000110011001100110011001100110011001100110011001101 (binary) x 2**2
      quantum       2**1: the binade 2**2 keeps 2 bits
      kept bits     10 = 2 quanta
      guard, sticky 0, 1: the discarded part is 0.20000000000000018 of a quantum
      decision      less than half: stays
      code          0x6 = 0 11 0
      value         4.0 x 0.25 = 1.0
    """
    name = _known(name)
    rule = replace(QUANTS[name], rounding=rounding, overflow=overflow)
    most = int(str(rule.block))
    if not (isinstance(values, list | tuple) and 1 <= len(values) <= most):
        came = len(values) if isinstance(values, list | tuple) else f"a {type(values).__name__}"
        raise NumsimError(
            f"explain_block: values is a list of 1 to {most}, one block of {name}; got {came}; "
            "pass x[:block].tolist()"
        )
    x = np.array([one_number(value) for value in values], np.float64)
    q = quantize(x, rule, seed=seed, offset=offset)
    scale, codes = np.float64(np.asarray(q.scale).item()), np.asarray(q.scale_codes)
    lines = [
        f"{', '.join(map(repr, values))} to {recipe_title(name)}",
        f"  amax          {np.abs(x).max().item()!r}",
        f"  scale         {scale.item()!r}, code {codes.item():#04x}, rule {rule.scale_rule}",
    ]
    words = repr(scale.item())
    if q.tensor_scale is not None:
        above = np.float32(q.tensor_scale).reshape(()).item()  # of a tensor or of its only row
        lines.append(f"  tensor scale  {above!r}, a float32")
        words = f"({words} x {above!r})"
        scale *= np.float64(above)
    kept = q.dequantize()
    if rule.scale_rule in ("if4", "hif4"):
        unit = "half" if rule.scale_rule == "if4" else "quarter"
        return "\n".join([
            *lines,
            *(f"{value!r}: {code} {unit} steps x {words} = {kept[i].item()!r}"
              for i, (value, code) in enumerate(zip(values, q.codes.tolist(), strict=True))),
        ])  # fmt: skip
    for i, value in enumerate(values):
        element = (x[i] / scale).item()
        number = offset + i if rounding == "sr" else offset
        text = explain_cast(
            element, rule.fmt, rounding=rounding, overflow=overflow, seed=seed, offset=number
        )
        head, tail = f"{value!r} / {words} = ", f" x {words} = {kept[i].item()!r}"
        lines.append(head + text + tail)
    return "\n".join(lines)


def _known(name: str) -> str:
    known = recipe_name(name)
    if known is None:
        raise NumsimError(
            f"recipes of blocks are {', '.join(QUANTS)}; got {name!r:.60}"
            f"{near_names(str(name), QUANTS)}"
        )
    return known


def _bits(rule: Quant) -> float:
    return rule.fmt.bits + rule.bits_of_scale / int(str(rule.block))


def _difference(rule: Quant, other: Quant) -> str:
    texts = []
    if other.format != rule.format:
        texts.append(f"element {other.format}")
    if other.block != rule.block:
        texts.append(f"block {other.block}")
    if other.scale_format != rule.scale_format:
        texts.append(f"scale {other.scale_format}, rule {other.scale_rule}")
    return ", ".join([*texts, f"{exact_text(_bits(other))} bits per value"])
