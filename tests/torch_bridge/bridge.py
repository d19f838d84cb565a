"""What tests of the bridge share."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import numsim.torch as bridge  # noqa: E402


def same_bits(got, want):
    """Arrays or tensors of one type, shape and bits; NaN equals NaN, 0 is not -0."""
    a, b = (np.asarray(v.detach() if isinstance(v, torch.Tensor) else v) for v in (got, want))
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert np.array_equal(a, b, equal_nan=True)
    assert np.array_equal(np.signbit(a), np.signbit(b))


def flat(outputs):
    """Tensors of nested tuples, without None."""
    if outputs is None:
        return []
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [t for part in outputs for t in flat(part)]


def results(module, *inputs, **kwargs):
    """Outputs, and gradients of floating inputs and parameters, for fixed upstream gradients."""
    module.zero_grad()
    leaves = [t.detach().clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    outputs = flat(module(*leaves, **kwargs))
    generator = torch.Generator().manual_seed(5)
    loss = sum(
        (y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in outputs
    )
    loss.backward()
    grads = [t.grad for t in leaves if t.is_floating_point() and t.grad is not None]
    return [*outputs, *grads, *(p.grad for p in module.parameters() if p.grad is not None)]


def same_as_torch(module, *inputs, **kwargs):
    """In float64 the emulated module is torch's, but for the order of sums."""
    module = module.double()
    inputs = [t.double() if t.is_floating_point() else t for t in inputs]
    want = results(module, *inputs, **kwargs)
    got = results(bridge.emulate(copy.deepcopy(module), None), *inputs, **kwargs)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
