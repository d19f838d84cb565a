"""Networks changed before they are quantised, so that outliers do not set the scales.

Each step returns another `Model`; in float64 its outputs are those of the first, but for GPTQ's,
whose weights are rounded. Weights come back as float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike
from numsim.models.arch import Arch, has_experts
from numsim.models.memory import OperandCache
from numsim.models.products import layer_products
from numsim.models.run import Model
from numsim.models.weights import wide
from numsim.quant import Quant
from numsim.quant.transforms import gptq, hadamard_order, rotate, smooth

Array = NDArray[Any]


def readers(arch: Arch, layer: int) -> dict[str, list[str]]:
    """Return what reads the output of each norm of a layer, by our names of stored matrices."""
    made = [p.name for p in layer_products(arch, layer, cross=False) if p.shape is not None]
    first = ("q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj")
    names = f"layers.{layer}."
    return {
        f"{names}attn_norm": [names + n for n in made if n in first],
        f"{names}mlp_norm": [
            names + n for n in made if n == "router" or n.endswith(("gate_proj", "up_proj"))
        ],
    }


def _writers(arch: Arch, layer: int) -> Iterator[str]:
    """Yield the stored matrices of a layer that write to the residual stream."""
    for product in layer_products(arch, layer, cross=False):
        if product.name.endswith(("o_proj", "down_proj")):
            yield f"layers.{layer}.{product.name}"


def _refused(arch: Arch, step: str, *, centred: bool) -> None:
    """Say which part of a network a step cannot pass."""
    ways = {
        "its two stacks": bool(arch.decoder_layers),
        f"norms that are {arch.residual}, which stand between the blocks and the residual stream":
            arch.residual != "pre",
        "embed_norm, which has its own weight after the embedding": arch.embed_norm,
        "project_in, between the embedding and the layers": bool(arch.embed_dim),
        f"attn_norm, whose kind is {arch.norm}: a mean is subtracted, which a rotation moves":
            centred and arch.norm not in ("rms", "rms_plus_one"),
        f"attn_norm, whose kind is {arch.norm}: it has no weight to take factors":
            arch.norm == "layer_plain",
        "the table of positions and the pooler": bool(arch.positions or arch.pooler) and centred,
    }  # fmt: skip
    for words, there in ways.items():
        if there:
            raise NumsimError(
                f"{step}: {arch.family} does not allow it; in the way: {words}; rotate its "
                "products instead: Rule(rotate=128)"
            )


def _changed(model: Model, arch: Arch, tensors: Mapping[str, Array], word: str) -> Model:
    cache = OperandCache()
    return replace(model, arch=arch, tensors=dict(tensors), name=f"{model.name} {word}",
                   cache=cache)  # fmt: skip


@known_floats
def rotated(model: Model, *, seed: int | None = 0) -> Model:
    """Rotate the residual stream by a Hadamard matrix, the norms folded into what reads them.

    Parameters
    ----------
    model
        With RMS norms before the blocks.
    seed
        Of random signs before the matrix; None: none.

    Returns
    -------
    Model
        Its float64 outputs are those of `model` to about 1e-12.

    Raises
    ------
    NumsimError
        For a network whose structure does not allow it (with the norm in the way), and a width
        without a Hadamard matrix.

    Source
    ------
    Ashkboos et al., QuaRot, arXiv 2404.00456, section 4; SliceGPT, arXiv 2401.15024 (folding).

    Examples
    --------
    >>> from numsim.models import bundled_model
    >>> rotated(bundled_model()).name
    'tiny_llama rotated'
    """
    arch = model.arch
    _refused(arch, "rotated", centred=True)
    hadamard_order(arch.hidden)
    signs = None
    if seed is not None:
        signs = np.random.default_rng(seed).integers(0, 2, arch.hidden) * 2 - 1
    tensors = {name: wide(t) for name, t in model.tensors.items()}
    offset = 1.0 if arch.norm == "rms_plus_one" else 0.0

    def double(name: str) -> Array:
        return tensors[name].astype(np.float64)

    def fold(norm: str, names: list[str]) -> None:
        factors = double(f"{norm}.weight") + offset
        for name in names:
            tensors[f"{name}.weight"] = rotate(double(f"{name}.weight") * factors, signs=signs)
        tensors[f"{norm}.weight"] = np.full(len(factors), 1.0 - offset)

    if arch.head and arch.tied:
        tensors["lm_head.weight"] = tensors["embed.weight"]
    tensors["embed.weight"] = rotate(double("embed.weight"), signs=signs)
    for layer in range(arch.layers):
        for norm, names in readers(arch, layer).items():
            fold(norm, names)
        for name in _writers(arch, layer):
            turned = rotate(np.ascontiguousarray(double(f"{name}.weight").T), signs=signs)
            tensors[f"{name}.weight"] = np.ascontiguousarray(turned.T)
            if f"{name}.bias" in tensors:
                tensors[f"{name}.bias"] = rotate(double(f"{name}.bias"), signs=signs)
    last = ["lm_head"] if arch.head else ["classifier"] if arch.labels else []
    if arch.final_norm:
        fold("final_norm", last)
    return _changed(model, replace(arch, tied=False), tensors, "rotated")


@known_floats
def smoothed(model: Model, tokens: ArrayLike, *, alpha: float = 0.5) -> Model:
    """Move the range of activations into weights, through the norms before q, k, v and the MLP.

    Parameters
    ----------
    model
        With norms before the blocks.
    tokens
        Of a calibration, [T] or [B, T].
    alpha
        How much of the range moves, see `numsim.quant.transforms.smooth`.

    Raises
    ------
    NumsimError
        For a network whose structure does not allow it.

    Source
    ------
    Xiao et al., SmoothQuant, arXiv 2211.10438.

    Examples
    --------
    >>> from numsim.models import bundled_model
    >>> smoothed(bundled_model(), [1, 2, 3]).name
    'tiny_llama smoothed'
    """
    arch = model.arch
    _refused(arch, "smoothed", centred=False)
    tensors = {name: wide(t) for name, t in model.tensors.items()}
    offset = 1.0 if arch.norm == "rms_plus_one" else 0.0
    for norm, names, seen in _inputs(model, tokens):
        amax_x = np.abs(seen).max(axis=0)
        weights = {n: tensors[f"{n}.weight"].astype(np.float64) for n in names}
        factors = smooth(amax_x, np.max([np.abs(w).max(axis=0) for w in weights.values()], axis=0),
                         alpha=alpha)  # fmt: skip
        weight = tensors[f"{norm}.weight"].astype(np.float64)
        tensors[f"{norm}.weight"] = (weight + offset) / factors - offset
        if f"{norm}.bias" in tensors:
            tensors[f"{norm}.bias"] = tensors[f"{norm}.bias"].astype(np.float64) / factors
        for name, w in weights.items():
            tensors[f"{name}.weight"] = w * factors
    return _changed(model, arch, tensors, "smoothed")


def _inputs(model: Model, tokens: ArrayLike) -> Iterator[tuple[str, list[str], Array]]:
    """Yield every norm, the matrices that read it, and its output [rows, hidden] on some tokens."""
    arch = model.arch
    groups = [(norm, names) for i in range(arch.layers) for norm, names in readers(arch, i).items()]
    run = model.run(tokens, taps=[f"{names[0]}.in" for _, names in groups])
    for norm, names in groups:
        seen = np.asarray(run.taps[f"{names[0]}.in"])
        yield norm, names, seen.reshape(-1, seen.shape[-1]).astype(np.float64)


@known_floats
def rounded(
    model: Model, tokens: ArrayLike, quant: FormatLike | Quant, *, act_order: bool = False,
    rotate_by: int | None = None,
) -> Model:  # fmt: skip
    """Replace the weights of all block linears by those of GPTQ, dequantised.

    Run the result with activations quantised and weights as they are.

    Parameters
    ----------
    model
        Without experts, each of which sees few tokens.
    tokens
        Of a calibration, [T] or [B, T].
    quant, act_order
        As `numsim.quant.transforms.gptq`.
    rotate_by
        The weights are those of products whose `Rule` rotates by so many.

    Raises
    ------
    NumsimError
        As `gptq`, and for a network with experts.

    Source
    ------
    Frantar et al., GPTQ, arXiv 2210.17323; layers are calibrated on the float network's inputs.

    Examples
    --------
    >>> from numsim.models import bundled_model
    >>> rounded(bundled_model(), np.arange(64) % 50, Quant("int4", block=32)).name
    'tiny_llama GPTQ'
    """
    if any(has_experts(model.arch, i) for i in range(model.arch.layers)):
        raise NumsimError(
            f"rounded: experts of {model.arch.family} see too few tokens of a calibration each; "
            "use gptq on single matrices"
        )
    names = model.linear_names()
    run = model.run(tokens, taps=[f"{name}.in" for name in names])
    tensors = {name: wide(t) for name, t in model.tensors.items()}
    for name in names:
        seen = np.asarray(run.taps[f"{name}.in"])
        x = seen.reshape(-1, seen.shape[-1]).astype(np.float64)
        w = tensors[f"{name}.weight"].astype(np.float64)
        block = None
        if rotate_by is not None:
            block = rotate_by if w.shape[1] % rotate_by == 0 else w.shape[1]
            x, w = rotate(x, block=block), rotate(w, block=block)
        stored = gptq(w, x, quant, act_order=act_order).dequantize().astype(np.float64)
        if block is not None:
            stored = rotate(stored, block=block, inverse=True)
        tensors[f"{name}.weight"] = stored
    return _changed(model, model.arch, tensors, "GPTQ")


@known_floats
def prepare(model: Model, recipe: str, tokens: ArrayLike | None = None) -> Model:
    """Return the network as a named recipe wants it, by the steps that its name stands for.

    Parameters
    ----------
    model
        As loaded.
    recipe
        A name of `numsim.models.list_recipes`.
    tokens
        Of a calibration, where a step needs one.

    Raises
    ------
    NumsimError
        For an unknown name, a step without its calibration, or a structure that does not allow it.

    Examples
    --------
    >>> from numsim.models import bundled_model
    >>> prepare(bundled_model(), "quarot_w4a4").name
    'tiny_llama rotated'
    """
    from numsim.models.named import NAMED, named_recipe

    named_recipe(recipe)
    steps = NAMED[recipe].prepare if recipe in NAMED else ()
    for step in steps:
        if step == "rotate":
            model = rotated(model)
        elif tokens is None:
            raise NumsimError(
                f"prepare: {recipe} looks at activations; give tokens, some hundred of a text"
            )
        else:
            model = smoothed(model, tokens)
    return model
