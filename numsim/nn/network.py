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
from numsim.models.arch import (
    Arch,
    Moe,
    Stack,
    gemm_names,
    has_experts,
    layer_norms,
    stacks,
    tensor_shapes,
)
from numsim.models.checks import check_positions
from numsim.models.experts import route
from numsim.models.places import Place, put_rows
from numsim.models.rope import relative_buckets, rotary_tables
from numsim.models.weights import wide
from numsim.nn import ops
from numsim.nn.tape import Recorder

Ints = NDArray[np.int64]


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
        return _between(self.arch)

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


def _linear(r: Recorder, name: str, x: int, *, bias: bool) -> int:
    y = ops.product(r, name, x, r.param(f"{name}.weight"))
    return ops.add_bias(r, y, r.param(f"{name}.bias")) if bias else y


def _norm(r: Recorder, a: Arch, name: str, x: int, kind: str = "", eps: float | None = None) -> int:
    kind, eps = kind or a.norm, a.norm_eps if eps is None else eps
    r.owners.append((len(r.steps), name))
    if kind == "layer":
        y = ops.layer_norm(r, x, r.param(f"{name}.weight"), r.param(f"{name}.bias"), eps=eps)
    elif kind == "layer_plain":
        y = ops.layer_norm(r, x, None, None, eps=eps)
    else:
        offset = 1.0 if kind == "rms_plus_one" else 0.0
        y = ops.rms_norm(r, x, r.param(f"{name}.weight"), eps=eps, offset=offset)
    return ops.stored(r, name, y)


def _between(a: Arch) -> tuple[str, ...]:
    """Return the names of the operations between products, in no order that matters."""
    names = ["embed_norm"] if a.embed_norm else []
    for stack in stacks(a):
        for i in range(stack.layers):
            layer = f"{stack.prefix}layers.{i}"
            names += [f"{layer}.{norm}" for norm in layer_norms(a, i, cross=stack.cross)]
            names += [f"{layer}.softmax"] + [f"{layer}.cross_softmax"] * stack.cross
            if a.moe is None or not has_experts(a, i):
                names.append(f"{layer}.act")
                continue
            names += [f"{layer}.router.scores"]
            names += [f"{layer}.experts.{e}.act" for e in range(a.moe.experts)]
            names += [f"{layer}.shared.act"] * bool(a.moe.shared)
        names += [f"{stack.prefix}final_norm"] * a.final_norm
    return tuple(names)


@dataclass(frozen=True)
class _Pass:
    """What the layers of one stack share."""

    arch: Arch
    causal: bool
    positions: Ints
    turn: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    bias: int | None
    memory: int | None = None


def _heads(r: Recorder, x: int, heads: int) -> int:
    """[B, T, N D] -> [B, T, N, D]."""
    batch, steps = r.values[x].shape[:2]
    return ops.reshape(r, x, batch, steps, heads, -1)


def _turn(r: Recorder, p: _Pass, x: int) -> int:
    """Heads first, turned by position where that is rotary: [B, T, N, D] -> [B, N, T, D]."""
    if p.turn is None or p.arch.rope is None:
        return ops.transpose(r, x, 0, 2, 1, 3)
    return ops.rotary(r, x, *p.turn, interleaved=p.arch.rope.interleaved)


def _qkv(r: Recorder, p: _Pass, layer: str, x: int) -> tuple[int, int, int]:
    a = p.arch
    q = _heads(r, _linear(r, f"{layer}.q_proj", x, bias=a.qkv_bias), a.heads)
    k = _heads(r, _linear(r, f"{layer}.k_proj", x, bias=a.qkv_bias), a.kv_heads)
    v = _heads(r, _linear(r, f"{layer}.v_proj", x, bias=a.qkv_bias), a.kv_heads)
    if a.qk_norm:
        q = _norm(r, a, f"{layer}.q_norm", q, a.qk_norm)
        k = _norm(r, a, f"{layer}.k_norm", k, a.qk_norm)
    return _turn(r, p, q), _turn(r, p, k), ops.transpose(r, v, 0, 2, 1, 3)


def _latent_qkv(r: Recorder, p: _Pass, layer: str, x: int) -> tuple[int, int, int]:
    a, m = p.arch, p.arch.mla
    assert m is not None
    if m.q_rank is None:
        q = _linear(r, f"{layer}.q_proj", x, bias=False)
    else:
        q = _linear(r, f"{layer}.q_a_proj", x, bias=a.qkv_bias)
        q = _norm(r, a, f"{layer}.q_a_norm", q, eps=a.latent_eps)
        q = _linear(r, f"{layer}.q_b_proj", q, bias=False)
    q = _heads(r, q, a.heads)
    kv = _linear(r, f"{layer}.kv_a_proj", x, bias=a.qkv_bias)
    latent = ops.last(r, kv, 0, m.kv_rank)
    shared = _heads(r, ops.last(r, kv, m.kv_rank, m.kv_rank + m.rope), 1)
    latent = _norm(r, a, f"{layer}.kv_a_norm", latent, eps=a.latent_eps)
    kv = _heads(r, _linear(r, f"{layer}.kv_b_proj", latent, bias=False), a.heads)
    kv = ops.transpose(r, kv, 0, 2, 1, 3)  # [B, N, T, nope + E]
    turned = ops.repeat_heads(r, _turn(r, p, shared), a.heads)
    k = ops.join(r, ops.last(r, kv, 0, m.nope), turned)
    plain = ops.transpose(r, ops.last(r, q, 0, m.nope), 0, 2, 1, 3)
    placed = _turn(r, p, ops.last(r, q, m.nope, m.nope + m.rope))
    return ops.join(r, plain, placed), k, ops.last(r, kv, m.nope, m.nope + a.v_head_dim)


def _merged(r: Recorder, mixed: int) -> int:
    """[B, N, T, E] -> [B, T, N E]."""
    batch, _, steps, _ = r.values[mixed].shape
    return ops.reshape(r, ops.transpose(r, mixed, 0, 2, 1, 3), batch, steps, -1)


def _attention(r: Recorder, p: _Pass, layer: str, index: int, x: int) -> int:
    a = p.arch
    q, k, v = (_qkv if a.mla is None else _latent_qkv)(r, p, layer, x)
    window = a.windows[index] if a.windows else None
    first = None if window is None else np.maximum(p.positions - (window - 1), 0)
    mixed = ops.attend(
        r, f"{layer}.", q, k, v, cap=a.attn_cap, bias=p.bias,
        scale=a.attn_scale / (index + 1) if a.scale_by_layer else a.attn_scale,
        first=first, last=p.positions + 1 if p.causal else None,
    )  # fmt: skip
    return _linear(r, f"{layer}.o_proj", _merged(r, mixed), bias=a.o_bias)


def _cross_attention(r: Recorder, p: _Pass, layer: str, x: int) -> int:
    a = p.arch
    assert p.memory is not None
    q = _heads(r, _linear(r, f"{layer}.cross_q_proj", x, bias=a.qkv_bias), a.heads)
    k = _heads(r, _linear(r, f"{layer}.cross_k_proj", p.memory, bias=a.qkv_bias), a.kv_heads)
    v = _heads(r, _linear(r, f"{layer}.cross_v_proj", p.memory, bias=a.qkv_bias), a.kv_heads)
    q, k, v = (ops.transpose(r, s, 0, 2, 1, 3) for s in (q, k, v))
    mixed = ops.attend(r, f"{layer}.cross_", q, k, v, scale=a.attn_scale, cap=a.attn_cap)
    return _linear(r, f"{layer}.cross_o_proj", _merged(r, mixed), bias=a.o_bias)


def _mlp(r: Recorder, a: Arch, name: str, x: int) -> int:
    if a.gated:
        gate = _linear(r, f"{name}.gate_proj", x, bias=a.mlp_bias)
        middle = ops.stored(r, f"{name}.act", ops.activation(r, gate, a.activation))
        middle = ops.multiply(r, middle, _linear(r, f"{name}.up_proj", x, bias=a.mlp_bias))
    else:
        up = _linear(r, f"{name}.up_proj", x, bias=a.mlp_bias)
        middle = ops.stored(r, f"{name}.act", ops.activation(r, up, a.activation))
    return _linear(r, f"{name}.down_proj", middle, bias=a.mlp_bias)


def _mixture(r: Recorder, a: Arch, layer: str, x: int, moe: Moe) -> int:
    """Sum of each token's experts; the choice of experts is not differentiated."""
    shape = r.values[x].shape
    flat = ops.reshape(r, x, -1, shape[-1])
    logits = ops.product(r, f"{layer}.router", flat, r.param(f"{layer}.router.weight"))
    soft = moe.score == "softmax"
    scores = (
        ops.softmax(r, ops.reshape(r, logits, 1, -1, moe.experts))
        if soft
        else (ops.activation(r, logits, "sigmoid"))
    )
    scores = ops.stored(r, f"{layer}.router.scores", ops.reshape(r, scores, -1, moe.experts))
    fixed = r.array(r.param(f"{layer}.router.correction")) if moe.correction else None
    chosen, _ = route(r.array(logits), moe, fixed)  # [R, k]
    every = np.arange(len(chosen))[:, None]
    weights = ops.pick(r, scores, (every, chosen))
    if moe.normalise:
        weights = ops.share(r, weights, 0.0 if soft else 1e-20)
    if moe.scale != 1.0:
        weights = ops.scale(r, weights, moe.scale)
    total = r.put(np.zeros_like(r.array(flat)))
    for e in range(moe.experts):
        rows, slot = np.nonzero(chosen == e)
        if rows.size:
            y = _mlp(r, a, f"{layer}.experts.{e}", ops.pick(r, flat, (rows,)))
            y = ops.weighted(r, y, ops.pick(r, weights, (rows, slot)))
            total = ops.add_at(r, total, y, rows)
    y = ops.reshape(r, total, *shape)
    return ops.add(r, y, _mlp(r, a, f"{layer}.shared", x)) if moe.shared else y


def _feed_forward(r: Recorder, a: Arch, layer: str, index: int, x: int) -> int:
    if a.moe is not None and has_experts(a, index):
        return _mixture(r, a, layer, x, a.moe)
    return _mlp(r, a, layer, x)


def _block(r: Recorder, p: _Pass, layer: str, index: int, x: int) -> int:
    a = p.arch
    if a.residual == "post":
        y = ops.add(r, x, _attention(r, p, layer, index, x))
        x = _norm(r, a, f"{layer}.attn_norm", y)
        y = ops.add(r, x, _feed_forward(r, a, layer, index, x))
        return _norm(r, a, f"{layer}.mlp_norm", y)
    normed = _norm(r, a, f"{layer}.attn_norm", x)
    y = _attention(r, p, layer, index, normed)
    if a.residual in ("parallel", "parallel_shared"):
        if a.residual == "parallel":
            normed = _norm(r, a, f"{layer}.mlp_norm", x)
        return ops.add(r, ops.add(r, y, _feed_forward(r, a, layer, index, normed)), x)
    if a.residual == "sandwich":
        y = _norm(r, a, f"{layer}.attn_post_norm", y)
    x = ops.add(r, x, y)
    if p.memory is not None:
        normed = _norm(r, a, f"{layer}.cross_norm", x)
        x = ops.add(r, x, _cross_attention(r, p, layer, normed))
    y = _feed_forward(r, a, layer, index, _norm(r, a, f"{layer}.mlp_norm", x))
    if a.residual == "sandwich":
        y = _norm(r, a, f"{layer}.mlp_post_norm", y)
    return ops.add(r, x, y)


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
        x = _norm(r, a, "embed_norm", x)
    return x


def _stack(r: Recorder, a: Arch, stack: Stack, ids: Ints, memory: int | None) -> int:
    positions = np.arange(ids.shape[1])
    bias = None
    if a.buckets:
        buckets = relative_buckets(a, positions, positions, causal=stack.causal)
        bias = ops.relative_bias(r, r.param(f"{stack.prefix}relative.weight"), buckets)
    turn = rotary_tables(a.rope, 0, ids.shape[1]) if a.rope else None
    p = _Pass(a, stack.causal, positions, turn, bias, memory)
    types = np.zeros_like(ids) if a.token_types else None
    x = _embed(r, a, ids, types)
    for i in range(stack.layers):
        x = _block(r, p, f"{stack.prefix}layers.{i}", i, x)
    return _norm(r, a, f"{stack.prefix}final_norm", x) if a.final_norm else x


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
