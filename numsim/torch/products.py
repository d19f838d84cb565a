"""One call of numsim.nn inside torch's autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from numsim import nn
from numsim.errors import NumsimError, UnsupportedError
from numsim.float_state import known_floats
from numsim.quant import QTensor

Tensor = Any  # torch.Tensor: types of torch are not there where it is not installed
STORED = "_numsim_stored"  # attribute of a parameter: its QTensor and the values it had then
DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def refused_tensor(tensor: Tensor, recipe: Any) -> str | None:
    """Return why a tensor cannot take part, with the remedy; None where it can."""
    if tensor.device.type != "cpu":
        return f"tensors are on the CPU; got {tensor.device}; move the module with .cpu()"
    if tensor.layout != torch.strided:
        return f"tensors are dense; got {tensor.layout}; use .to_dense()"
    if tensor.is_floating_point() or tensor.is_complex():
        if tensor.dtype not in DTYPES:
            return f"numbers are float32; got {tensor.dtype}; convert them with .float()"
        if tensor.dtype == torch.float64 and recipe is not None:
            return "recipes compute in float32; got torch.float64; use .float(), or recipe=None"
    return None


def array(tensor: Tensor) -> NDArray[Any]:
    """Return the values of a tensor, of its memory where they lie one after the other."""
    given = tensor.detach().numpy()
    return np.ascontiguousarray(given).reshape(given.shape)


def stored(parameter: Tensor) -> QTensor | None:
    """Return the codes of a parameter that an optimizer keeps in a format.

    None where it is not, or has got other values since.
    """
    kept = getattr(parameter, STORED, None)
    if kept is None or not np.array_equal(kept[1], array(parameter)):
        return None
    q: QTensor = kept[0]
    return q


def thirds(parameter: Tensor) -> tuple[Tensor, ...]:
    """Return three parameters that are stored as one, with their codes."""
    parts: tuple[Tensor, ...] = parameter.chunk(3)
    q = stored(parameter)
    if q is not None and q.block_shape is None and (q.scale is None or q.scale.size == 1):
        for part, codes in zip(parts, np.split(q.codes, 3), strict=True):
            own = replace(q, codes=codes, packed={})
            setattr(part, STORED, (own, own.dequantize()))
    return parts


@dataclass(frozen=True)
class Call:
    """What one call of an emulated module knows: its name, the recipe, and the step."""

    name: str
    recipe: Any
    step: int
    scaling: dict[str, Any]
    training: bool

    def fail(self, message: str, *, unsupported: bool = True) -> NumsimError:
        """Return an error that names the module."""
        kind = UnsupportedError if unsupported else NumsimError
        return kind(f"numsim.torch: {self.name or 'the module'}: {message}")

    def run(
        self, layer: Any, inputs: Sequence[Tensor], params: dict[str, Tensor] | None = None,
        suffix: str = "",
    ) -> Any:  # fmt: skip
        """Compute a layer of numsim.nn, its products under the name of the module.

        `params` by the layer's names, None: not there.
        """
        name = ".".join(part for part in (self.name, suffix) if part)
        prefix = f"{name}." if name else ""
        own = {prefix + key: p for key, p in (params or {}).items() if p is not None}
        for tensor in (*inputs, *own.values()):
            reason = refused_tensor(tensor, self.recipe)
            if reason is not None:
                raise self.fail(reason)
        types = {t.dtype for t in (*inputs, *own.values()) if t.is_floating_point()}
        if len(types) > 1:
            raise self.fail(
                f"input and parameters have one type; got {', '.join(sorted(map(str, types)))}"
            )
        values = {key: self._value(key, p) for key, p in own.items()}
        job = _Job(
            self, nn.Sequential(**{name: layer}) if name else layer, values, len(inputs),
            types.pop(),
        )  # fmt: skip
        return _Emulated.apply(job, *inputs, *own.values())

    def _value(self, name: str, parameter: Tensor) -> Any:
        q = stored(parameter)
        wanted = None if self.recipe is None else self.recipe.storage
        # Vectors, which are biases, stay float32: see numsim.train.SGD.start.
        matrix = parameter.ndim > 1
        trained = matrix and self.training and parameter.requires_grad and parameter.is_leaf
        if wanted is not None and trained and (q is None or q.fmt != wanted.fmt):
            raise NumsimError(
                f"numsim.torch: the recipe keeps parameters in {wanted.format}, and {name} is not; "
                "make the optimizer with numsim.torch.optimizer(..., storage=recipe.storage)"
            )
        return array(parameter) if q is None or self.recipe is None else q


@dataclass(frozen=True)
class _Job:
    call: Call
    layer: Any
    params: dict[str, Any]
    inputs: int
    dtype: Any


def _tensor(values: Any, dtype: Any) -> Tensor:
    """Return a tensor of its own memory: nn may return one array twice, and torch writes in it."""
    return torch.from_numpy(np.array(values, DTYPES[dtype], order="C"))


@known_floats
def _forward(ctx: Any, job: _Job, *tensors: Tensor) -> Any:
    call = job.call
    y, tape = nn.forward(
        job.layer, job.params, *(array(t) for t in tensors[: job.inputs]), recipe=call.recipe,
        step=call.step, scaling=call.scaling,
    )  # fmt: skip
    ctx.job, ctx.tape = job, tape
    ctx.save_for_backward(*tensors)  # the tape reads their memory: torch watches for changes
    outputs = y if isinstance(y, tuple) else (y,)
    found = tuple(_tensor(part, job.dtype) for part in outputs)
    return found if len(found) > 1 else found[0]


@known_floats
def _backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors  # raises where one was changed in place
    if any(t.numel() == 0 for t in tensors):  # nothing came in: nothing comes back
        return (None, *(torch.zeros_like(t) if t.is_floating_point() else None for t in tensors))
    job, needed = ctx.job, ctx.needs_input_grad[1:]
    names = (*range(job.inputs), *job.params)
    wanted = [name for name, need in zip(names, needed, strict=True) if need]
    inputs, params = nn.backward(ctx.tape, *(array(g) for g in upstream), wanted=wanted)
    gradients = (*inputs, *map(params.get, job.params))
    return (None, *(
        None if g is None else _tensor(g, t.dtype)
        for g, t in zip(gradients, tensors, strict=True)
    ))  # fmt: skip


class _Emulated(torch.autograd.Function):  # type: ignore[misc]
    """`numsim.nn.forward` and `backward` of one layer."""

    forward = staticmethod(_forward)
    backward = staticmethod(torch.autograd.function.once_differentiable(_backward))
