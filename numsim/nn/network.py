"""The networks that numsim runs, as one trainable layer: the blocks of `numsim.models`, recorded.

The same operations in the same order as ``numsim.models.blocks``; a test compares their float64
results for every family.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError, UnsupportedError
from numsim.float_state import known_floats
from numsim.models import Model
from numsim.models.arch import Arch, Stack, stacks
from numsim.models.checks import check_positions
from numsim.models.places import Place, put_rows
from numsim.models.products import gemm_names, tensor_shapes
from numsim.models.rope import relative_buckets, rotary_tables
from numsim.models.weights import wide
from numsim.nn import ops
from numsim.nn.blocks import Ints, Pass, block, names_between, norm
from numsim.nn.tape import Recorder


@dataclass(frozen=True)
class Network:
    """A network of `numsim.models`: ids [B, T] -> logits [B, T, vocab]; encoders: states.

    An encoder-decoder takes ids of the encoder and of the decoder. No padding: every token counts.
    Parameters have the names and the layout of the checkpoint; `places` says which part of one
    is which tensor of the blocks.
    """

    arch: Arch
    places: tuple[tuple[str, Place], ...]

    @property
    def adds_one(self) -> bool:
        """Whether norms multiply by 1 + weight."""
        return self.arch.norm == "rms_plus_one"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the parameters and their shapes; a tied head is the embedding."""
        ours = tensor_shapes(self.arch)
        return {place.name: place.stored_shape(ours[name]) for name, place in self.places}

    def products(self) -> tuple[str, ...]:
        """Return the names of the matrix products."""
        return gemm_names(self.arch)

    def between(self) -> tuple[str, ...]:
        """Return the names of norms, activation functions and softmax."""
        return names_between(self.arch)

    def run(self, r: Recorder, inputs: list[Any]) -> tuple[int, ...]:
        """Record a pass."""
        return _network(_Named(r, dict(self.places)), self.arch, inputs)


class _Named(Recorder):
    """A recorder whose parameters are asked for by the blocks' names."""

    def __init__(self, r: Recorder, places: dict[str, Place]) -> None:
        super().__init__(r.context, r.params, r.values, r.steps, r.slots, r.owners)
        self.places, self.parts = places, dict[str, int]()

    def param(self, name: str) -> int:
        """Return the number of a tensor of the blocks: a parameter, or the part of one."""
        if name not in self.parts:
            place = self.places[name]
            slot = super().param(place.name)
            if place.turned and len(self.values[slot].shape) == 2:
                slot = ops.transpose(self, slot, 1, 0)
            if not place.whole:
                slot = ops.part(self, slot, place)
            self.parts[name] = slot
        return self.parts[name]


@known_floats
def from_model(model: Model) -> tuple[Network, dict[str, NDArray[Any]]]:
    """Return a model as a trainable layer, and its parameters in float32 as a state dict has them.

    Parameters
    ----------
    model
        Of `numsim.load_model`.

    Returns
    -------
    layer, params
        ``forward(layer, params, ids)`` gives the logits of ``model.run(ids)``, of an encoder the
        last hidden states. A tied head is one parameter, the embedding, with both gradients.

    Raises
    ------
    NumsimError
        For something that is no model.
    UnsupportedError
        For a network with a block that has no backward pass, by its name.

    Examples
    --------
    >>> from numsim.data import bundled_model_dir
    >>> from numsim.models import load_model
    >>> layer, params = from_model(load_model(bundled_model_dir()))
    >>> layer.arch.family, params["model.layers.0.self_attn.q_proj.weight"].shape
    ('llama', (192, 192))
    """
    if not isinstance(model, Model):
        raise NumsimError(f"from_model: a model of numsim.load_model; got {type(model).__name__}")
    _check(model.arch)
    ours = tensor_shapes(model.arch)
    layer = Network(model.arch, tuple((name, model.places[name]) for name in ours))
    params: dict[str, NDArray[Any]] = {}
    shapes = layer.shapes()
    for name, place in layer.places:
        tensor = wide(model.tensors[name])
        numbers = tensor.astype(np.float64 if tensor.dtype == np.float64 else np.float32)
        if place.whole:
            params[place.name] = np.array(numbers.T if place.turned else numbers)
            continue
        whole = params.setdefault(place.name, np.empty(shapes[place.name], numbers.dtype))
        put_rows(whole.T if place.turned else whole, place, numbers)
    return layer, params


# What this module's blocks cover, by field of `Arch`: a new field of a family that is not listed
# here is refused, so that no network is trained as another one.
_FIELDS = """family vocab hidden layers heads kv_heads head_dim v_head_dim intermediate activation
norm_eps attn_scale norm residual final_norm qk_norm latent_eps rope positions position_offset
position_count buckets bucket_distance causal windows attn_cap scale_by_layer qkv_bias o_bias mla
gated mlp_bias moe embed_dim embed_scale embed_norm token_types tied head head_bias head_scale
head_cap pooler pad decoder_layers decoder_start moe.experts moe.top_k moe.intermediate moe.score
moe.normalise moe.scale moe.groups moe.top_groups moe.correction moe.shared moe.dense"""
_KNOWN = frozenset(_FIELDS.split())
_VALUES = {  # and of these fields some values only
    "norm": ("rms", "rms_plus_one", "layer", "layer_plain"),
    "residual": ("pre", "post", "sandwich", "parallel", "parallel_shared"),
    "qk_norm": (None, "rms", "rms_plus_one", "layer"),
    "position_count": ("all", "kept"),
    "moe.score": ("softmax", "sigmoid"),
}


def _check(arch: Arch) -> None:
    every = {f.name: (getattr(arch, f.name), f.default) for f in fields(arch)}
    if arch.moe is not None:
        every |= {f"moe.{f.name}": (getattr(arch.moe, f.name), f.default) for f in fields(arch.moe)}
    for name, (value, default) in every.items():
        covered = value in _VALUES.get(name, (value,)) if name in _KNOWN else value == default
        if not covered:
            raise UnsupportedError(
                f"from_model: {arch.family} has {name} = {value!r:.60}, a block without a backward "
                "pass; train another family"
            )
    rope = arch.rope
    if rope is not None and rope.interleaved and rope.width < arch.head_dim and arch.mla is None:
        raise UnsupportedError(
            f"from_model: {arch.family} turns pairs (2j, 2j + 1) of a part of a head, a block "
            "without a backward pass; train another family"
        )


def _embed(r: Recorder, a: Arch, ids: Ints, types: Ints | None) -> int:
    x = ops.rows(r, r.param("embed.weight"), ids)
    if a.embed_dim:
        x = ops.product(r, "project_in", x, r.param("project_in.weight"))
    if a.embed_scale != 1.0:
        x = ops.scale(r, x, a.embed_scale)
    if types is not None:
        x = ops.add(r, x, ops.rows(r, r.param("token_type.weight"), types))
    if a.positions:
        places = np.arange(ids.shape[1]) + a.position_offset
        places = np.broadcast_to(places, ids.shape)
        x = ops.add(r, x, ops.rows(r, r.param("position.weight"), np.ascontiguousarray(places)))
    if a.embed_norm:
        x = norm(r, a, "embed_norm", x)
    return x


def _stack(r: Recorder, a: Arch, stack: Stack, ids: Ints, memory: int | None) -> int:
    positions = np.arange(ids.shape[1])
    bias = None
    if a.buckets:
        buckets = relative_buckets(a, positions, positions, causal=stack.causal)
        bias = ops.relative_bias(r, r.param(f"{stack.prefix}relative.weight"), buckets)
    turn = rotary_tables(a.rope, 0, ids.shape[1]) if a.rope else None
    p = Pass(a, stack.causal, positions, turn, bias, memory)
    types = np.zeros_like(ids) if a.token_types else None
    x = _embed(r, a, ids, types)
    for i in range(stack.layers):
        x = block(r, p, f"{stack.prefix}layers.{i}", i, x)
    return norm(r, a, f"{stack.prefix}final_norm", x) if a.final_norm else x


def _ids(a: Arch, inputs: list[Any], at: int, what: str) -> Ints:
    ids = inputs[at] if at < len(inputs) else None
    if not isinstance(ids, np.ndarray) or ids.ndim != 2 or not ids.size:
        came = "nothing" if ids is None else "numbers" if isinstance(ids, int) else list(ids.shape)
        raise NumsimError(f"nn: {a.family} takes {what} as integer ids [B, T]; got {came}")
    if int(ids.min()) < 0 or int(ids.max()) >= a.vocab:
        worst = int(ids.max()) if int(ids.max()) >= a.vocab else int(ids.min())
        raise NumsimError(f"nn: ids lie from 0 to {a.vocab - 1}; got {worst}")
    check_positions(a, ids.shape[1])
    return ids


def _network(r: Recorder, a: Arch, inputs: list[Any]) -> tuple[int, ...]:
    wanted = 2 if a.decoder_layers else 1
    if len(inputs) != wanted:
        raise NumsimError(f"nn: {a.family} takes {wanted} inputs of ids; got {len(inputs)}")
    every = stacks(a)
    x = _stack(r, a, every[0], _ids(a, inputs, 0, "tokens"), None)
    if a.decoder_layers:
        x = _stack(r, a, every[1], _ids(a, inputs, 1, "decoder tokens"), x)
    if a.embed_dim:
        x = ops.product(r, "project_out", x, r.param("project_out.weight"))
    if a.head:
        if a.head_scale != 1.0:
            x = ops.scale(r, x, a.head_scale)
        name = "embed.weight" if a.tied else "lm_head.weight"
        x = ops.product(r, "lm_head", x, r.param(name))
        if a.head_bias:
            x = ops.add_bias(r, x, r.param("lm_head.bias"))
        if a.head_cap is not None:
            x = ops.softcap(r, x, cap=a.head_cap)
    return (x,)
