"""Convolutions as a Linear over patches, K in the order channel, kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.nn import ops
from numsim.nn.products import Context
from numsim.nn.tape import Recorder, Step
from numsim.quant import QTensor

Array = NDArray[Any]
Sizes = tuple[tuple[int, int, int, int], ...]  # kernel, stride, padding, dilation of each axis


def convolution(r: Recorder, prefix: str, x: int, layer: Any, sizes: Sizes) -> int:
    """Return patches of x [B, C, ...] times the kernels, by the Linear's three products.

    `sizes`: (kernel, stride, padding, dilation) an axis.
    """
    shape = np.shape(r.values[x])
    batch, spatial = shape[0], shape[2:]
    padded = [(0, 0), (0, 0)] + [(p, p) for _, _, p, _ in sizes]
    out = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, (k, s, p, d) in zip(spatial, sizes, strict=True)
    )
    if min(out) < 1:
        raise NumsimError(
            f"nn.{type(layer).__name__}: the kernel fits the padded input; got {list(shape)} and "
            f"kernel {[k for k, _, _, _ in sizes]}"
        )
    wide = np.pad(r.array(x), padded)
    n, groups = len(sizes), layer.groups
    rows = batch * int(np.prod(out))
    kernel = tuple(k for k, _, _, _ in sizes)
    each = np.empty((batch, *out, layer.inputs, *kernel), wide.dtype)
    for tap in np.ndindex(kernel):
        each[(..., *tap)] = np.moveaxis(wide[_read_by(tap, out, sizes)], 1, -1)
    patch: Array = each.reshape(rows, -1)
    flat: tuple[int, ...] = (layer.outputs, -1)
    if groups > 1:
        patch = np.ascontiguousarray(patch.reshape(rows, groups, -1).swapaxes(0, 1))
        flat = (groups, layer.outputs // groups, -1)
    patches = r.apply(_patches_back, (x,), patch, each.shape, wide.shape, sizes)
    weight = r.param(f"{prefix}weight")
    value = r.values[weight]
    if (
        isinstance(value, QTensor)
        and value.block_shape is None
        and (value.scale is None or value.scale.size == 1)
    ):  # codes as they are stored; other scales belong to axes that a patch does not have
        kernels = r.put(QTensor.from_codes(value.codes.reshape(flat), value.fmt, scale=value.scale))
        r.steps.append(_reshaped(value.shape, weight, kernels))
    else:
        kernels = ops.reshape(r, weight, *flat)
    y = ops.product(r, prefix.removesuffix("."), patches, kernels)
    if groups > 1:
        y = ops.reshape(r, ops.transpose(r, y, 1, 0, 2), rows, layer.outputs)
    if layer.bias:
        y = ops.add_bias(r, y, r.param(f"{prefix}bias"))
    y = ops.reshape(r, y, batch, *out, layer.outputs)
    return ops.transpose(r, y, 0, 1 + n, *range(1, 1 + n))


def _reshaped(shape: tuple[int, ...], source: int, flat: int) -> Any:
    return Step(lambda c, saved, g: (g.reshape(saved[0]),), (shape,), (source,), (flat,))


def _read_by(tap: tuple[int, ...], out: tuple[int, ...], sizes: Sizes) -> tuple[slice, ...]:
    """Return the elements of a padded input [B, C, ...] that one tap of the kernel reads."""
    each = zip(tap, out, sizes, strict=True)
    places = (slice(d * at, d * at + s * (n - 1) + 1, s) for at, n, (_, s, _, d) in each)
    return (slice(None), slice(None), *places)


def _patches_back(c: Context, saved: Any, g: Array) -> tuple[Array]:
    shape, padded, sizes = saved  # shape: [B, places, C, kernel]
    n = len(sizes)
    if g.ndim == 3:  # groups first
        g = g.swapaxes(0, 1)
    each, total = g.reshape(shape), np.zeros(padded)
    # Taps from the last to the first: an element adds its patches' gradients in their order.
    for tap in reversed(list(np.ndindex(shape[2 + n :]))):
        total[_read_by(tap, shape[1 : 1 + n], sizes)] += np.moveaxis(each[(..., *tap)], -1, 1)
    inside = tuple(slice(p, size - p) for size, (_, _, p, _) in zip(padded[2:], sizes, strict=True))
    return (total[(slice(None), slice(None), *inside)].astype(c.dtype),)
