"""Operations on a recorder's values: each computes, and says how its gradient comes back.

`r` is the `Recorder`, whole numbers are its values. Every operation rounds once to the type of the
pass (float64, or float32 between products); sums over rows are float64 inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise import activations, functions
from numsim.kernels.elementwise import derivatives as slopes
from numsim.kernels.elementwise import rotary as rotary_kernel
from numsim.models.places import Place, put_rows, rows_of_groups
from numsim.nn.products import Context, backward_product, clipped, forward_product
from numsim.nn.tape import Recorder

Array = NDArray[Any]
Ints = NDArray[np.int64]


def _product_back(
    c: Context, saved: Any, g: Array, *, wanted: tuple[bool, bool]
) -> tuple[Array | None, Array | None]:
    product, shape = saved
    one_matrix = len(shape) == 2  # all leading dimensions are rows
    rows = np.ascontiguousarray(g).reshape(-1, g.shape[-1]) if one_matrix else g
    dx, dw = backward_product(c, product, rows, inputs=wanted[0], weights=wanted[1])
    return (None if dx is None else dx.reshape(*g.shape[:-1], shape[-1])), dw


def product(r: Recorder, name: str, x: int, w: int) -> int:
    """``x W^T``: x [..., M, K]; W [N, K] for all rows at once, or [..., N, K] one for each."""
    left, right = r.array(x), r.values[w]
    if name:
        r.owners.append((len(r.steps), f"the product {name}"))
    if len(right.shape) == 2:
        codes = r.codes.setdefault(x, {})
        rows = left.reshape(-1, left.shape[-1])
        y, saved = forward_product(r.context, name, rows, right, inputs=codes)
        y = y.reshape(*left.shape[:-1], y.shape[-1])
    else:
        y, saved = forward_product(r.context, name, left, right)
    return r.apply(_product_back, (x, w), y, saved, right.shape, chooses=True)


def _stored_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    return (g if saved[0] is None else clipped(g, *saved),)


def stored(r: Recorder, name: str, x: int) -> int:
    """Return x, the result of the operation `name`, as its rule stores it; x where none does.

    Gradients pass straight through.
    """
    rule = r.context.pointwise(name)
    if rule is None:
        return x
    q = r.context.keep(rule, name, "y", r.array(x))
    saved = (r.array(x), q) if rule.clip_gradient else (None,)
    return r.apply(_stored_back, (x,), q.dequantize(), *saved)


def add(r: Recorder, x: int, y: int) -> int:
    """``x + y``, of one shape."""
    return r.apply(lambda c, saved, g: (g, g), (x, y), r.array(x) + r.array(y))


def _bias_back(c: Context, saved: Any, g: Array) -> tuple[Array, Array]:
    return g, slopes.column_sums(g)


def add_bias(r: Recorder, x: int, bias: int) -> int:
    """``x + bias``, bias [H] for the last axis."""
    return r.apply(_bias_back, (x, bias), r.array(x) + r.array(bias))


def _multiply_back(c: Context, saved: Any, g: Array) -> tuple[Array, Array]:
    x, y = saved
    return g * y, g * x


def multiply(r: Recorder, x: int, y: int) -> int:
    """``x * y``, of one shape."""
    a, b = r.array(x), r.array(y)
    return r.apply(_multiply_back, (x, y), a * b, a, b)


def _scale_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    return (g * c.dtype(saved[0]),)


def scale(r: Recorder, x: int, factor: float) -> int:
    """``x * factor``."""
    return r.apply(_scale_back, (x,), r.array(x) * r.context.dtype(factor), factor)


def _reshape_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    return (g.reshape(saved[0]),)


def reshape(r: Recorder, x: int, *shape: int) -> int:
    """Return the same values in another shape."""
    value = r.array(x)
    return r.apply(_reshape_back, (x,), value.reshape(shape), value.shape)


def _transpose_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    return (np.ascontiguousarray(g.transpose(saved[0])),)


def transpose(r: Recorder, x: int, *axes: int) -> int:
    """Axes in another order."""
    value = np.ascontiguousarray(r.array(x).transpose(axes))
    return r.apply(_transpose_back, (x,), value, tuple(int(i) for i in np.argsort(axes)))


def _slice_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    shape, start, stop = saved
    out = np.zeros(shape, g.dtype)
    out[..., start:stop] = g
    return (out,)


def _part_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    shape, place = saved
    out = np.zeros(shape, g.dtype)
    put_rows(out, place, g)
    return (out,)


def part(r: Recorder, x: int, place: Place) -> int:
    """Return the rows of one of several tensors that are stored as one."""
    value = r.array(x)
    y = np.ascontiguousarray(rows_of_groups(value, place))
    return r.apply(_part_back, (x,), y, value.shape, place)


def last(r: Recorder, x: int, start: int, stop: int) -> int:
    """Elements start..stop of the last axis."""
    value = r.array(x)
    part = np.ascontiguousarray(value[..., start:stop])
    return r.apply(_slice_back, (x,), part, value.shape, start, stop)


def _join_back(c: Context, saved: Any, g: Array) -> tuple[Array, ...]:
    return tuple(np.ascontiguousarray(part) for part in np.split(g, saved[0], axis=-1))


def join(r: Recorder, *parts: int) -> int:
    """Parts side by side along the last axis."""
    arrays = [r.array(part) for part in parts]
    edges = np.cumsum([a.shape[-1] for a in arrays])[:-1]
    return r.apply(_join_back, parts, np.concatenate(arrays, axis=-1), edges)


def _repeat_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    total = np.zeros((*g.shape[:1], 1, *g.shape[2:]), g.dtype)
    for head in range(g.shape[1]):
        total += g[:, head : head + 1]
    return (total,)


def repeat_heads(r: Recorder, x: int, heads: int) -> int:
    """[B, 1, T, D] for every head."""
    value = r.array(x)
    wide = np.broadcast_to(value, (value.shape[0], heads, *value.shape[2:]))
    return r.apply(_repeat_back, (x,), np.ascontiguousarray(wide))


def _broadcast_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    shape = (1,) * (g.ndim - len(saved[0])) + saved[0]
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    kept = [axis for axis, size in enumerate(shape) if size != 1]
    rows = int(np.prod([g.shape[axis] for axis in ones]))
    flat = np.ascontiguousarray(g.transpose(*ones, *kept)).reshape(rows, -1)
    return (slopes.column_sums(flat).reshape(saved[0]),)


def broadcast(r: Recorder, x: int, *shape: int) -> int:
    """Return x repeated along axes of length 1, or that it lacks."""
    value = r.array(x)
    wide = np.ascontiguousarray(np.broadcast_to(value, shape))
    return r.apply(_broadcast_back, (x,), wide, value.shape)


def _rows_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    ids, rows, still = saved
    gradient = slopes.add_rows(ids, g.reshape(-1, g.shape[-1]), rows)
    if still is not None:
        gradient[still] = 0
    return (gradient,)


def rows(r: Recorder, table: int, ids: Ints, still: int | None = None) -> int:
    """Rows `ids` of a table [rows, H]; a repeated row adds its gradients, row `still` has none."""
    values = r.array(table)
    return r.apply(_rows_back, (table,), values[ids], ids, len(values), still)


def _mean_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    (steps,) = saved
    each = g / c.dtype(steps)
    return (np.ascontiguousarray(np.repeat(each[:, None], steps, axis=1)),)


def mean(r: Recorder, x: int) -> int:
    """Return the mean over steps, [B, T, H] -> [B, H]: the sum in order, then a division."""
    value = r.array(x)
    total = np.add.accumulate(value, axis=1)[:, -1]  # step after step
    steps = value.shape[1]
    return r.apply(_mean_back, (x,), total / r.context.dtype(steps), steps)


def _bias_rows_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    buckets, count = saved
    flat = np.moveaxis(g, 0, -1).reshape(-1, g.shape[0])  # [T S, N]
    return (slopes.add_rows(buckets, np.ascontiguousarray(flat), count),)


def relative_bias(r: Recorder, table: int, buckets: Ints) -> int:
    """Bias [N, T, S] of positions: column n of row ``buckets[t, s]`` of a table [buckets, N]."""
    values = r.array(table)
    bias = np.ascontiguousarray(np.moveaxis(values[buckets], -1, 0))
    return r.apply(_bias_rows_back, (table,), bias, buckets, len(values))


def _scatter_back(c: Context, saved: Any, g: Array) -> tuple[Array, Array]:
    (ids,) = saved
    return g, g[ids]


def add_at(r: Recorder, total: int, part: int, ids: Ints) -> int:
    """``total`` [R, H] with ``part`` [n, H] added to rows `ids`, each once."""
    value = r.array(total).copy()
    value[ids] += r.array(part)
    return r.apply(_scatter_back, (total, part), value, ids)


def _weighted_back(c: Context, saved: Any, g: Array) -> tuple[Array, Array]:
    x, w = saved
    return g * w[:, None], slopes.column_sums(np.ascontiguousarray((g * x).T))


def weighted(r: Recorder, x: int, w: int) -> int:
    """Rows x [R, H] times numbers w [R]."""
    values, by = r.array(x), r.array(w)
    return r.apply(_weighted_back, (x, w), values * by[:, None], values, by)


def _pick_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    shape, index = saved
    out = np.zeros(shape, g.dtype)
    out[index] = g  # no index occurs twice
    return (out,)


def pick(r: Recorder, x: int, index: Any) -> int:
    """Elements of x by an index that names none twice."""
    value = r.array(x)
    return r.apply(_pick_back, (x,), value[index], value.shape, index)


def _share_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    y, total = saved
    inner = slopes.column_sums(np.ascontiguousarray((g * y).T))
    return ((g - inner[:, None]) / total[:, None],)


def share(r: Recorder, x: int, tiny: float) -> int:
    """Rows x [R, k] over their sums, in order, plus `tiny`."""
    values = r.array(x)
    total = np.zeros(len(values), values.dtype)
    for j in range(values.shape[1]):
        total = total + values[:, j]
    if tiny:
        total = total + values.dtype.type(tiny)
    y = values / total[:, None]
    return r.apply(_share_back, (x,), y, y, total)


def _norm_back(c: Context, saved: Any, g: Array) -> tuple[Array | None, ...]:
    x, weight, eps, offset, centre, affine = saved
    dx, dweight, dbias = slopes.norm_backward(x, weight, g, eps=eps, offset=offset, centre=centre)
    return (dx, dweight, dbias)[: 1 + affine]


def rms_norm(r: Recorder, x: int, weight: int, *, eps: float, offset: float = 0.0) -> int:
    """``x / sqrt(mean(x**2) + eps) * (offset + weight)``."""
    values, w = r.array(x), r.array(weight)
    y = functions.rms_norm(values, w, eps=eps, offset=offset)
    return r.apply(_norm_back, (x, weight), y, values, w, eps, offset, False, 1)


def layer_norm(r: Recorder, x: int, weight: int | None, bias: int | None, *, eps: float) -> int:
    """Layer norm, with weight and bias or without."""
    values, dtype = r.array(x), r.context.dtype
    width = values.shape[-1]
    w = np.ones(width, dtype) if weight is None else r.array(weight)
    b = np.zeros(width, dtype) if bias is None else r.array(bias)
    y = functions.layer_norm(values, w, b, eps=eps)
    inputs = [slot for slot in (x, weight, bias) if slot is not None]
    return r.apply(_norm_back, inputs, y, values, w, eps, 0.0, True, len(inputs) - 1)


def _activation_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    x, name = saved
    return (slopes.SLOPES[name](x, g),)


def activation(r: Recorder, x: int, name: str) -> int:
    """Apply an activation by its spelling in a config."""
    work = activations.ACTIVATIONS[name]
    value = r.array(x)
    return r.apply(_activation_back, (x,), work(value), value, work.__name__)


def _softcap_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    x, by, cap = saved
    return (slopes.softcap_backward(x, g, scale=by, cap=cap),)


def softcap(r: Recorder, x: int, *, cap: float, scale: float = 1.0) -> int:
    """``cap * tanh(scale * x / cap)``."""
    value = r.array(x)
    y = activations.softcap(value, scale=scale, cap=cap)
    return r.apply(_softcap_back, (x,), y, value, scale, cap)


def _softmax_back(c: Context, saved: Any, g: Array) -> tuple[Array, ...]:
    p, by, heads = saved
    dx = slopes.softmax_backward(p, g, scale=by)
    if heads is None:
        return (dx,)
    shift = slopes.softmax_backward(p, g)  # [B, N, T, S]
    if heads == p.shape[0] * p.shape[1]:  # each row has a bias of its own
        return dx, shift.reshape(-1, *shift.shape[2:])
    total = np.zeros(shift.shape[1:], shift.dtype)
    for one in shift:
        total = total + one
    return dx, total


def softmax(
    r: Recorder, x: int, *, scale: float = 1.0, bias: int | None = None, **mask: Any
) -> int:
    """Softmax of ``scale * x + bias`` over the keys that `functions.softmax`'s mask leaves."""
    shift = None if bias is None else np.asarray(r.array(bias), np.float64)
    p = functions.softmax(r.array(x), scale=scale, bias=shift, **mask)
    inputs = (x,) if bias is None else (x, bias)
    return r.apply(_softmax_back, inputs, p, p, scale, None if shift is None else len(shift))


def _rotary_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    cos, sin, interleaved = saved
    turned = rotary_kernel.rotary(np.ascontiguousarray(g.swapaxes(1, 2)), cos, -sin)
    dx = np.ascontiguousarray(turned.swapaxes(1, 2))  # [B, T, N, D]
    if interleaved:
        halves = dx.reshape(*dx.shape[:-1], 2, -1)
        dx = np.ascontiguousarray(halves.swapaxes(-1, -2)).reshape(dx.shape)
    return (dx,)


def rotary(
    r: Recorder, x: int, cos: NDArray[np.float64], sin: NDArray[np.float64], *, interleaved: bool
) -> int:
    """Heads [B, T, N, D] turned by position, heads first: [B, N, T, D]."""
    value = r.array(x)
    if interleaved:  # pairs (2j, 2j + 1) become (j, D / 2 + j)
        pairs = value.reshape(*value.shape[:-1], -1, 2)
        value = np.ascontiguousarray(pairs.swapaxes(-1, -2)).reshape(value.shape)
    return r.apply(_rotary_back, (x,), rotary_kernel.rotary(value, cos, sin), cos, sin, interleaved)
