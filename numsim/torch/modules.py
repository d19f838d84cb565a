"""What each kind of torch module computes, as layers of numsim.nn; torch only moves values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from numsim import nn
from numsim.torch.products import Call, Tensor, thirds

Work = Callable[..., Any]


def linear(m: Any, call: Call, input: Tensor) -> Tensor:
    """``torch.nn.Linear``."""
    return _linear(call, input, m.weight, m.bias)


def _linear(call: Call, x: Tensor, weight: Tensor, bias: Any, suffix: str = "") -> Tensor:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    rows = x.unsqueeze(0) if x.ndim == 1 else x
    y = call.run(layer, [rows], {"weight": weight, "bias": bias}, suffix)
    return y.squeeze(0) if x.ndim == 1 else y


def convolution(m: Any, call: Call, input: Tensor) -> Tensor:
    """``torch.nn.Conv1d`` and ``Conv2d``; what lies around the input is added before."""
    axes = len(m.kernel_size)
    x = input.unsqueeze(0) if input.ndim == axes + 1 else input
    around = _around(m)
    if any(around):
        mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
        x = functional.pad(x, around, mode=mode)
    outputs, part = m.weight.shape[:2]
    kind: Any = nn.Conv1d if axes == 1 else nn.Conv2d

    def own(sizes: tuple[int, ...]) -> Any:
        return sizes[0] if axes == 1 else sizes

    layer = kind(
        part * m.groups, outputs, own(tuple(m.weight.shape[2:])), own(m.stride),
        bias=m.bias is not None, dilation=own(m.dilation), groups=m.groups,
    )  # fmt: skip
    y = call.run(layer, [x], {"weight": m.weight, "bias": m.bias})
    return y.squeeze(0) if input.ndim == axes + 1 else y


def _around(m: Any) -> list[int]:
    """Return how much lies before and after each axis, the last first, as torch's pad takes it."""
    found: list[int] = []
    for axis in reversed(range(len(m.kernel_size))):
        more = m.dilation[axis] * (m.kernel_size[axis] - 1)
        if m.padding == "same":
            found += [more // 2, more - more // 2]
        else:
            found += [0, 0] if m.padding == "valid" else [m.padding[axis]] * 2
    return found


def embedding(m: Any, call: Call, input: Tensor) -> Tensor:
    """``torch.nn.Embedding``."""
    rows, width = m.weight.shape
    layer = nn.Embedding(rows, width, m.padding_idx)
    return call.run(layer, [input], {"weight": m.weight})


def sides(m: Any) -> list[tuple[str, str]]:
    """Return the suffixes of parameters and products of the layers of an LSTM or GRU."""
    ways = ("", "_reverse") if m.bidirectional else ("",)
    found = [(f"_l{at}{way}", f"l{at}{way}") for at in range(m.num_layers) for way in ways]
    return [(found[0][0], "")] if len(found) == 1 else found


def recurrent(m: Any, call: Call, input: Any, hx: Any = None) -> Any:
    """``torch.nn.LSTM`` and ``GRU``: a layer of numsim.nn for each of theirs and each direction."""
    if not isinstance(input, torch.Tensor):
        raise call.fail("a packed sequence has rows of several lengths; pad the batch")
    single = input.ndim == 2
    x = input.unsqueeze(0) if single else input if m.batch_first else input.transpose(0, 1)
    long = m.mode == "LSTM"
    given = () if hx is None else tuple(hx) if long else (hx,)
    starts = [s.unsqueeze(1) if single else s for s in given]
    parts = sides(m)
    if given and (len(given) != 1 + long or any(s.shape[:1] != (len(parts),) for s in starts)):
        shapes = [list(s.shape) for s in given]
        raise call.fail(
            f"states are [{len(parts)}, B, {m.hidden_size}], one for h"
            f"{' and one for c' if long else ''}; got {shapes}",
            unsupported=False,
        )
    layers = 2 if m.bidirectional else 1
    ends: list[list[Tensor]] = [[] for _ in range(1 + long)]
    for at in range(0, len(parts), layers):
        if at and m.dropout and m.training:
            x = functional.dropout(x, m.dropout, training=True)
        found = []
        for way in range(layers):
            suffix, product = parts[at + way]
            own = x.flip(1) if way else x
            y, *last = _cell_run(m, call, own, [s[at + way] for s in starts], suffix, product, long)
            found.append(y.flip(1) if way else y)
            for end, state in zip(ends, last, strict=True):
                end.append(state)
        x = torch.cat(found, dim=-1) if layers == 2 else found[0]
    y = x.squeeze(0) if single else x if m.batch_first else x.transpose(0, 1)
    states = [torch.stack(end) for end in ends]
    states = [s.squeeze(1) if single else s for s in states]
    return y, (tuple(states) if long else states[0])


def _cell_run(
    m: Any, call: Call, x: Tensor, states: list[Tensor], suffix: str, product: str, long: bool
) -> Any:
    names = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if m.bias else ()))
    params = {name: getattr(m, name + suffix) for name in names}
    kind: Any = nn.LSTM if long else nn.GRU
    layer = kind(params["weight_ih"].shape[1], params["weight_hh"].shape[1], bool(m.bias))
    return call.run(layer, [x, *states], params, product)


def cell(m: Any, call: Call, input: Tensor, hx: Any = None) -> Any:
    """``torch.nn.LSTMCell`` and ``GRUCell``: one step."""
    long = isinstance(m, torch.nn.LSTMCell)
    given = () if hx is None else tuple(hx) if long else (hx,)
    single = input.ndim == 1
    x = (input.unsqueeze(0) if single else input).unsqueeze(1)
    starts = [s.unsqueeze(0) if single else s for s in given]
    _, *last = _cell_run(m, call, x, starts, "", "", long)
    ends = [s.squeeze(0) if single else s for s in last]
    return tuple(ends) if long else ends[0]


def attention(
    m: Any, call: Call, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Any = None,
    need_weights: bool = True, attn_mask: Any = None, average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Any]:  # fmt: skip
    """``torch.nn.MultiheadAttention``."""
    if is_causal and attn_mask is None:
        raise call.fail("is_causal says what attn_mask holds; give attn_mask", unsupported=False)
    single = query.ndim == 2

    def rows(x: Tensor) -> Tensor:
        return x.unsqueeze(0) if single else x if m.batch_first else x.transpose(0, 1)

    together = query is key and key is value and m._qkv_same_embed_dim
    q, k, v = _projected(m, call, [rows(x) for x in (query, key, value)], together)
    batch, steps, width = q.shape

    def heads(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], m.num_heads, -1).transpose(1, 2)

    mask = _mask(m, attn_mask, key_padding_mask, single)
    y, p = attend(call, heads(q), heads(k), heads(v), mask, m.dropout if m.training else 0.0)
    y = m.out_proj(y.transpose(1, 2).reshape(batch, steps, width))
    y = y.squeeze(0) if single else y if m.batch_first else y.transpose(0, 1)
    if not need_weights:
        return y, None
    p = p.mean(dim=1) if average_attn_weights else p
    return y, p.squeeze(0) if single else p


def _projected(m: Any, call: Call, rows: list[Tensor], together: bool) -> list[Tensor]:
    """Return q, k, v: one product of the joined weight where all three read one tensor."""
    if together:
        joined = _linear(call, rows[0], m.in_proj_weight, m.in_proj_bias, "in_proj")
        return list(joined.chunk(3, dim=-1))
    if m._qkv_same_embed_dim:
        weights = thirds(m.in_proj_weight)
    else:
        weights = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
    biases = (None,) * 3 if m.in_proj_bias is None else thirds(m.in_proj_bias)
    names = ("q_proj", "k_proj", "v_proj")
    return [_linear(call, *part) for part in zip(rows, weights, biases, names, strict=True)]


def _mask(m: Any, attn_mask: Any, key_padding_mask: Any, single: bool) -> Any:
    """Return the masks of MultiheadAttention as one, [B or 1, heads or 1, T or 1, S]."""
    masks = []
    if attn_mask is not None:
        own = attn_mask.reshape(1, 1, *attn_mask.shape) if attn_mask.ndim == 2 else (
            attn_mask.reshape(-1, m.num_heads, *attn_mask.shape[1:])
        )  # fmt: skip
        masks.append(own)
    if key_padding_mask is not None:
        batch = key_padding_mask.unsqueeze(0) if single else key_padding_mask
        masks.append(batch.reshape(batch.shape[0], 1, 1, batch.shape[-1]))
    if not masks:
        return None
    if all(mask.dtype == torch.bool for mask in masks):  # there True hides a key
        hidden = masks[0] if len(masks) == 1 else masks[0] | masks[1]
        return ~hidden
    floats = [
        torch.zeros(mask.shape).masked_fill(mask, float("-inf")) if mask.dtype == torch.bool
        else mask
        for mask in masks
    ]  # fmt: skip
    return floats[0] if len(floats) == 1 else floats[0] + floats[1]


def attend(
    call: Call, q: Tensor, k: Tensor, v: Tensor, mask: Any, dropout: float,
    *, causal: bool = False, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the mixed values and the softmax; q, k, v [B, heads, T, d], True keeps a key."""
    shape = (*q.shape[:3], k.shape[2])
    inputs = [q, k, v]
    if mask is not None:
        inputs.append(mask.to(torch.int64 if mask.dtype == torch.bool else q.dtype))
    if dropout:
        inputs.append(functional.dropout(torch.ones(shape, dtype=q.dtype), dropout, training=True))
    layer = nn.Attention(causal, scale, bool(dropout), True)
    y, p = call.run(layer, inputs)
    return y, p


def scaled_dot_product_attention(
    call: Call, query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.scaled_dot_product_attention``."""
    if attn_mask is not None and is_causal:
        raise call.fail("attn_mask and is_causal exclude each other", unsupported=False)
    shared = -3 if enable_gqa else -2  # heads of keys may then be fewer
    tensors = [t.unsqueeze(0) if t.ndim == 2 else t for t in (query, key, value)]
    lead = torch.broadcast_shapes(*(t.shape[:shared] for t in tensors))
    q, k, v = (t.expand(*lead, *t.shape[shared:]) for t in tensors)
    if q.ndim == 3:  # one head
        q, k, v = (t.unsqueeze(1) for t in (q, k, v))
    outer = q.shape[:-3]
    steps, seen = q.shape[-2], k.shape[-2]
    mask = attn_mask
    if mask is not None and query.ndim == 3 and mask.ndim == 3:
        mask = mask.unsqueeze(1)
    elif mask is not None and len(outer) > 1 and mask.ndim > 3:
        mask = mask.expand(*outer, *mask.shape[-3:])
        mask = mask.reshape(-1, *mask.shape[-3:])
    elif is_causal and steps != seen:  # torch counts from the first key
        mask = torch.ones(steps, seen, dtype=torch.bool).tril()
    q, k, v = (t.reshape(-1, *t.shape[-3:]) for t in (q, k, v))
    y, _ = attend(call, q, k, v, mask, dropout_p, causal=is_causal and steps == seen, scale=scale)
    shape = (*query.shape[:-2], steps, y.shape[-1])
    full = (*lead, *((q.shape[1],) if enable_gqa else ()), steps, y.shape[-1])
    return y.reshape(full if query.ndim > 2 else shape)


KINDS: tuple[tuple[Any, Work], ...] = (
    (torch.nn.Linear, linear),
    (torch.nn.Conv1d, convolution),
    (torch.nn.Conv2d, convolution),
    (torch.nn.Embedding, embedding),
    (torch.nn.LSTM, recurrent),
    (torch.nn.GRU, recurrent),
    (torch.nn.LSTMCell, cell),
    (torch.nn.GRUCell, cell),
    (torch.nn.MultiheadAttention, attention),
)


def products(m: Any, name: str) -> list[str]:
    """Return the names of the products of an emulated module."""
    prefix = f"{name}." if name else ""
    if isinstance(m, torch.nn.Embedding):
        return []
    if isinstance(m, torch.nn.LSTM | torch.nn.GRU):
        parts = [prefix + (f"{own}." if own else "") for _, own in sides(m)]
        return [part + end for part in parts for end in ("input", "recurrent")]
    if isinstance(m, torch.nn.LSTMCell | torch.nn.GRUCell):
        return [f"{prefix}input", f"{prefix}recurrent"]
    if isinstance(m, torch.nn.MultiheadAttention):
        inner = ("in_proj",) if m._qkv_same_embed_dim else ()
        return [prefix + end for end in (*inner, "q_proj", "k_proj", "v_proj", "qk", "pv")]
    return [name]
