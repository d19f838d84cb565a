"""Recipes that people know by name: how weights and activations are stored, and on which unit."""

from __future__ import annotations

from typing import Any, NamedTuple

from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.models.recipe import Recipe
from numsim.models.rule import Rule
from numsim.quant import QUANTS, Quant
from numsim.quant.table import quantised_again
from numsim.targets import Target

_HOPPER, _BLACKWELL = "nvidia.hopper.wgmma", "nvidia.blackwell.tcgen05"
_E4M3 = Quant("float8_e4m3fn")
_HALF = Quant("float16", "none")
_TOKEN, _CHANNEL = Quant("int8", "per_token"), Quant("int8", "per_channel")


class Named(NamedTuple):
    """A recipe: the rule of the block linears, of keys and values, and what comes before.

    `prepare`: steps that change the network first, see `numsim.models.prepare`. `calibrate`:
    whether static scales of activations are found on texts (`numsim calibrate`).
    """

    linears: dict[str, Any]
    source: str
    keys: Any = None  # storage of keys and values
    prepare: tuple[str, ...] = ()
    calibrate: bool = False


NAMED: dict[str, Named] = {
    "te_current": Named(
        {"activations": _E4M3, "weights": _E4M3, "target": _HOPPER},
        "TransformerEngine, Float8CurrentScaling",
    ),
    "te_delayed": Named(
        {"activations": _E4M3, "weights": _E4M3, "target": _HOPPER},
        "TransformerEngine, DelayedScaling: at inference the scales of activations are static",
        calibrate=True,
    ),
    "deepseek_fp8": Named(
        {"activations": Quant("float8_e4m3fn", block=128),
         "weights": Quant("float8_e4m3fn", block=(128, 128)), "target": _HOPPER},
        "DeepSeek-V3, arXiv 2412.19437, section 3.3.2: 1 x 128 and 128 x 128",
    ),
    "w8a8": Named(
        {"activations": _TOKEN, "weights": _CHANNEL, "target": "ideal.int"},
        "compressed-tensors, W8A8: int8, one scale a token and one an output channel",
    ),
    "w8a8_fp8": Named(
        {"activations": Quant("float8_e4m3fn", "per_token"),
         "weights": Quant("float8_e4m3fn", "per_channel"), "target": _HOPPER},
        "compressed-tensors, FP8_DYNAMIC",
    ),
    "w4a16": Named(
        {"activations": _HALF, "weights": Quant("uint4", block=128, zero_point=True)},
        "AutoAWQ and AutoGPTQ: uint4 with zero points, groups of 128",
    ),
    "w4a8": Named(
        {"activations": _TOKEN, "weights": Quant("int4", block=128), "target": "ideal.int"},
        "QServe, arXiv 2405.04532, without its second level of scales",
    ),
    "nf4": Named(
        {"activations": Quant("bfloat16", "none"), "weights": Quant("nf4", block=64)},
        "Dettmers et al., QLoRA, arXiv 2305.14314: blocks of 64, absmax in float32",
    ),
    "kv8": Named({}, "vLLM, FP8 key-value cache with scale 1", keys=Quant("float8_e4m3fn", "none")),
    "kv4": Named(
        {}, "KIVI, arXiv 2402.02750, groups of 32 along K for keys and values",
        keys=Quant("uint4", block=32, zero_point=True),
    ),
    "llm_int8": Named({"outliers": 6.0}, "Dettmers et al., LLM.int8(), arXiv 2208.07339"),
    "smoothquant_w8a8": Named(
        {"activations": _TOKEN, "weights": _CHANNEL, "target": "ideal.int"},
        "Xiao et al., SmoothQuant, arXiv 2211.10438, alpha 0.5", prepare=("smooth",),
    ),
    "quarot_w4a4": Named(
        {"activations": Quant("int4", "per_token"), "weights": Quant("int4", "per_channel"),
         "target": "ideal.int"},
        "Ashkboos et al., QuaRot, arXiv 2404.00456: the residual stream rotated, o_proj and "
        "down_proj rotated as they run",
        prepare=("rotate",),
    ),
}  # fmt: skip
_ROTATED_AS_THEY_RUN = ("*o_proj", "*down_proj")


@known_floats
def list_recipes() -> tuple[str, ...]:
    """Return the recipes that have names: storage rules, which `quantize` takes, then networks.

    `named_recipe` takes both.

    Examples
    --------
    >>> list_recipes()[0], list_recipes()[-1]
    ('mxfp8_e4m3', 'quarot_w4a4')
    """
    return (*QUANTS, *NAMED)


@known_floats
def named_recipe(name: str, *, target: Target | str | None = None) -> Recipe:
    """Return a recipe by its name; what the name prepares in the network first is `prepare`'s.

    Parameters
    ----------
    name
        One of `list_recipes`; a storage rule is that of both operands of the block linears.
    target
        Another unit than the usual one.

    Raises
    ------
    NumsimError
        For an unknown name, with near ones.

    Source
    ------
    That of the entry.

    Examples
    --------
    >>> named_recipe("w8a8").rule("layers.0.q_proj").weights.granularity
    'per_channel'
    """
    if name not in NAMED and name not in QUANTS:
        known = list_recipes()
        raise NumsimError(
            f"recipes by name are {', '.join(known)}; got {name!r:.60}"
            f"{near_names(str(name), known)}"
        )
    if name in QUANTS:
        unit = _BLACKWELL if name in ("nvfp4", "nvfp4_row", "nvfp4_4over6") else "ideal.fp32"
        unit = _BLACKWELL if name.startswith("mxfp") else unit
        return Recipe.uniform(name, target=target or unit)
    entry = NAMED[name]
    fields = entry.linears if target is None else entry.linears | {"target": target}
    rules = [("*", Rule())]
    if fields:
        rules.append(("*_proj", Rule(**fields)))
    if "rotate" in entry.prepare:
        rules += [(glob, Rule(**fields, rotate=1 << 14)) for glob in _ROTATED_AS_THEY_RUN]
    if entry.keys is not None:
        rules += [(glob, Rule(weights=entry.keys)) for glob in ("*qk", "*pv")]
    return Recipe(tuple(rules))


def recipe_lines(name: str) -> list[str]:
    """Return what a recipe of networks is, in lines.

    >>> recipe_lines("w8a8")[0]
    'w8a8: from compressed-tensors, W8A8: int8, one scale a token and one an output channel'
    """
    entry = NAMED[name]
    lines = [f"{name}: from {entry.source}"]
    steps = {
        "smooth": "factors move the range of activations into weights",
        "rotate": "norms are folded and the residual stream is rotated by a Hadamard matrix",
    }
    lines += [f"  first: {steps[step]} (numsim.models.prepare)" for step in entry.prepare]
    if entry.calibrate:
        lines.append("  static scales of activations: numsim calibrate writes them")
    sides = {**entry.linears, "keys and values": entry.keys}
    for side in ("activations", "weights", "keys and values"):
        why = "" if sides.get(side) is None else quantised_again(sides[side])
        lines += [f"  {side} quantised again: {why}"] if why else []
    lines += [f"  {line}" for line in named_recipe(name).to_toml().splitlines()]
    return lines
