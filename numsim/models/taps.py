"""Names of the tensors that a run can keep and of the operators that a recipe can lower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache

import numpy as np

from numsim.errors import NumsimError, UnsupportedError, near_names
from numsim.models.arch import Arch, has_experts, layer_rope, stacks
from numsim.models.lowered import act_forms
from numsim.models.products import gemm_names, tensor_shapes
from numsim.models.rule import Rule
from numsim.operators import Op
from numsim.operators.rules import Ops, kind_of, ops_for
from numsim.quant import Quant


def wanted_taps(arch: Arch, taps: Iterable[str]) -> set[str]:
    """Return the names of the tensors that globs ask for."""
    scalar = isinstance(taps, np.ndarray) and taps.ndim == 0
    listed = isinstance(taps, Iterable) and not scalar
    globs = (taps,) if isinstance(taps, str) else tuple(taps) if listed else ()
    if not listed or not all(isinstance(glob, str) for glob in globs):
        raise NumsimError(
            f"run: taps is an iterable of names or globs, each a str; got {globs or taps!r}; "
            "() keeps no tensor"
        )
    if not globs:
        return set()
    known = tap_names(arch)
    names: set[str] = set()
    for glob in globs:
        found = [name for name in known if fnmatchcase(name, glob)]
        if not found:
            raise NumsimError(
                f"run: every tap must match a tensor; {glob!r} matches none"
                f"{near_names(glob, known)}; see taps in the documentation of Model.run"
            )
        names.update(found)
    return names


def tap_names(arch: Arch) -> list[str]:
    """Return the names of all tensors a run can keep.

    Examples
    --------
    >>> from numsim.data import bundled_model_dir
    >>> from numsim.models import load_model
    >>> tap_names(load_model(bundled_model_dir()).arch)[:2]
    ['embed.out', 'layers.0.q_proj.in']
    """
    first = stacks(arch)[0].prefix
    known = [f"{first}{conv.name}.act.out" for conv in arch.convs if conv.activation]
    known += [f"{stack.prefix}embed.out" for stack in stacks(arch)]
    for name in gemm_names(arch):
        known += [f"{name}.in", f"{name}.out"]
        if name.endswith(("qk", "pv")):
            known.append(f"{name}.operand")
    every_norm = tensor_shapes(replace(arch, norm="rms"))  # those without a weight, too
    known += [
        f"{name.removesuffix('.weight')}.out" for name in every_norm if name.endswith("norm.weight")
    ]
    products = set(gemm_names(arch))
    biases = [name.removesuffix(".bias") for name in tensor_shapes(arch) if name.endswith(".bias")]
    known += [f"{name}.biased" for name in biases if name in products]
    for stack in stacks(arch):
        for i in range(stack.layers):
            layer = f"{stack.prefix}layers.{i}"
            parts = ["attn.out", "mlp.out", "out", "softmax.out"]
            parts += ["cross.out", "cross_softmax.out"] if stack.cross else []
            if layer_rope(arch, i) is not None:
                parts += ["q_rotary.out", "k_rotary.out"]
                parts += ["q_norm.out", "k_norm.out"] if arch.qk_norm == "l2" else []
            if arch.moe is not None and has_experts(arch, i):
                parts += ["router.experts", "router.weights"]
                parts += ["shared.act.out"] if arch.moe.shared else []
                for e in range(arch.moe.experts):
                    parts += [f"experts.{e}.rows", f"experts.{e}.act.out"]
            else:
                parts.append("act.out")
            known += [f"{layer}.{part}" for part in parts]
    if arch.head or arch.labels or arch.masked:
        known.append("logits")
    if arch.pooler:
        known.append("pooled")
    return known


def op_names(arch: Arch) -> list[str]:
    """Return the names of the operators outside the products, which recipes may lower.

    Examples
    --------
    >>> from numsim.data import bundled_model_dir
    >>> from numsim.models import load_model
    >>> op_names(load_model(bundled_model_dir()).arch)[::8]
    ['embedding', 'layers.1.attn_norm', 'final_norm', 'layers.2.rotary', 'logits']
    """
    known: list[str] = []
    for stack in stacks(arch):
        known.append(f"{stack.prefix}embedding")
        known += [f"{stack.prefix}layers.{i}.residual" for i in range(stack.layers)]
    for tap in tap_names(arch):
        name = tap.removesuffix(".out").replace("q_rotary", "rotary")
        if tap.endswith(("norm.out", "softmax.out", "q_rotary.out", ".act.out")):
            known.append(name)
    return [*known, "logits"] if arch.head or arch.masked else known


@lru_cache(maxsize=16)
def lowered_operators(arch: Arch, ops: Ops) -> Mapping[str, Op]:
    """Return what a recipe says of each operator of a network that it names.

    Raises
    ------
    NumsimError
        For a glob that names no operator, or settings that one does not have.
    UnsupportedError
        For an activation that has no form in low precision.
    """
    found = ops_for(ops, op_names(arch)) if ops else {}
    for name, op in found.items():
        kind = kind_of(name)
        if kind == "norm" and (op.weight_format or op.weight_rounding) and _has_mean(arch, name):
            raise NumsimError(
                f"ops: {name} is a LayerNorm, and weight_format and weight_rounding are settings "
                f"of RMSNorm; got weight_format {op.weight_format!r}; use format or out_format"
            )
        if kind == "act":
            check_act(arch, name, op)
        plain = not (arch.alibi or arch.buckets or arch.sinks)
        if kind == "softmax" and op.tile is not None and not plain:
            raise UnsupportedError(
                f"ops: {name} of {arch.family} has a bias or sinks, for which the order by tiles "
                "is not implemented; leave tile out"
            )
    return found


def check_tiles(found: Mapping[str, Op], rules: Mapping[str, Rule]) -> None:
    """Raise where values are drawn anew in each tile of an attention."""
    for name, op in found.items():
        if op.tile is None:
            continue
        values = f"{name.removesuffix('softmax')}pv"
        rule = rules[values]
        drawn = any(
            isinstance(side, Quant) and side.rounding == "sr"
            for side in (rule.weights, rule.activations)
        )
        if drawn:
            raise UnsupportedError(
                "Recipe: stochastic rounding draws by the place of a value among all keys, which "
                f"tiles do not know; {name} has tile {op.tile}, {values} rounds by sr; leave one "
                "out"
            )


def _has_mean(arch: Arch, name: str) -> bool:
    """Return whether a norm subtracts a mean: a LayerNorm of any kind."""
    own = name.endswith((".q_norm", ".k_norm"))
    return str(arch.qk_norm if own else arch.norm).startswith("layer")


def check_act(arch: Arch, name: str, op: Op) -> None:
    """Raise where an activation has no such form in low precision."""
    conv = next((c for c in arch.convs if name.endswith(f"{c.name}.act")), None)
    if conv is None and arch.swiglu_limit is not None:
        raise UnsupportedError(
            f"ops: {name} is a clamped SwiGLU, which has no form in low precision; leave its rule "
            "out"
        )
    word = arch.activation if conv is None or conv.activation is None else conv.activation
    forms = act_forms(word)
    if not forms or (op.variant is not None and op.variant not in forms):
        raise UnsupportedError(
            f"ops: {name} is {word}, which has {'one form' if forms else 'no form'} in low "
            f"precision; got variant {op.variant!r}; leave {'variant' if forms else 'its rule'} out"
        )
