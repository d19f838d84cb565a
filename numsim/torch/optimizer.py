"""A torch optimizer whose steps are those of numsim.train, parameters kept in a format."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from numsim.errors import NumsimError, UnsupportedError
from numsim.float_state import known_floats
from numsim.quant import QTensor, Quant, as_quant
from numsim.torch.products import STORED, Tensor, array, refused_tensor, stored
from numsim.train import SGD, Adam, AdamW, State

SLOTS = {  # names of numsim.train and torch
    "momentum": "momentum_buffer", "first": "exp_avg", "second": "exp_avg_sq",
    "largest": "max_exp_avg_sq", "master": "master",
}  # fmt: skip


@known_floats
def optimizer(
    torch_optimizer: Any,
    *,
    storage: Quant | str | None = None,
    moments: Quant | str | None = None,
    keep_scale: bool = False,
    random_bits: int | None = None,
    seed: int = 0,
    master: bool = False,
) -> Any:
    """Return a torch optimizer that steps as `numsim.train` does, bit for bit.

    Parameters
    ----------
    torch_optimizer
        A ``torch.optim.SGD``, ``Adam`` or ``AdamW``: its groups, their numbers and its state go on
        to be used, so a scheduler made for it, before or after, works. Made from
        ``module.named_parameters()`` stochastic draws depend on the names of the parameters,
        otherwise on their numbers "0", "1", ...
    storage
        Format in which parameters of two axes or more are kept; they are rounded into it at once,
        to nearest. An emulated module multiplies these codes as they are. None: float32, as
        biases and weights of norms always are.
    moments, keep_scale, random_bits, seed, master
        As in `numsim.train.SGD` and `Adam`.

    Returns
    -------
    torch.optim.Optimizer

    Raises
    ------
    NumsimError
        For numbers out of range; parameters that share memory. `UnsupportedError` for another
        optimizer, or parameters that are not dense float32 on the CPU.

    Examples
    --------
    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> _ = layer.weight.data.fill_(1.0)
    >>> raw = Quant("e4m3", "none")
    >>> opt = optimizer(torch.optim.SGD(layer.named_parameters(), lr=1 / 64), storage=raw)
    >>> for _ in range(64):
    ...     layer.weight.grad = torch.full((1, 1), -1.0)
    ...     opt.step()  # 1/64 is lost below half a step of the format
    >>> layer.weight.item()
    1.0
    """
    kinds = {torch.optim.SGD: SGD, torch.optim.Adam: Adam, torch.optim.AdamW: AdamW}
    kind = kinds.get(type(torch_optimizer))
    if kind is None:
        raise UnsupportedError(
            "numsim.torch.optimizer: a torch.optim.SGD, Adam or AdamW; got "
            f"{type(torch_optimizer).__name__}"
        )
    how = {
        "storage": None if storage is None else as_quant(storage), "moments": moments,
        "keep_scale": keep_scale, "random_bits": random_bits, "seed": seed, "master": master,
    }  # fmt: skip
    _check_memory([p for group in torch_optimizer.param_groups for p in group["params"]])
    return _Steps(torch_optimizer, kind, how)


def _check_memory(parameters: list[Tensor]) -> None:
    """Raise for parameters that the steps cannot read and write each on its own."""
    taken: list[tuple[int, int]] = []
    for number, p in enumerate(parameters):
        why = refused_tensor(p, "storage")
        if why is not None or not p.is_floating_point():
            raise UnsupportedError(
                f"numsim.torch.optimizer: parameter {number}: "
                f"{why or f'parameters are numbers; got {p.dtype}'}"
            )
        if not p.numel():
            continue
        if any(step == 0 and size > 1 for step, size in zip(p.stride(), p.shape, strict=True)):
            raise NumsimError(
                f"numsim.torch.optimizer: parameter {number} repeats one value in memory (stride "
                "0); use .contiguous()"
            )
        reach = sum(step * (size - 1) for step, size in zip(p.stride(), p.shape, strict=True))
        taken.append((p.data_ptr(), p.data_ptr() + (reach + 1) * p.element_size()))
    taken.sort()
    for (_, end), (start, _) in pairwise(taken):
        if start < end:
            raise NumsimError(
                "numsim.torch.optimizer: parameters share memory, so that one update would be "
                "taken twice; use one Parameter in both places, or a copy"
            )


def _keep(p: Tensor, q: QTensor) -> None:
    """Write stored values into a parameter, and remember their codes."""
    values = q.dequantize()
    with torch.no_grad():
        p.copy_(torch.from_numpy(values))
    setattr(p, STORED, (q, values))


@known_floats
class _Steps(torch.optim.Optimizer):  # type: ignore[misc]
    """Groups and state of a torch optimizer; steps of numsim.train."""

    def __init__(self, given: Any, kind: Any, how: dict[str, Any]) -> None:
        self._kind, self._how = kind, how
        for group in given.param_groups:
            self._rule(group)  # numbers out of range are errors before any step
        super().__init__(given.param_groups, given.defaults)
        self.state = given.state
        if how["storage"] is not None:
            self._start()

    def _start(self) -> None:
        for group in self.param_groups:
            own = self._rule(group)
            for p in group["params"]:
                if self._how["master"] and "master" not in self.state[p]:
                    self.state[p]["master"] = p.detach().clone()
                q = stored(p)
                if q is None or q.quant != own.storage:
                    q = own.start({"": array(p)})[""]
                if isinstance(q, QTensor):  # vectors stay float32
                    _keep(p, q)
                    self._write_codes(p, q)

    def _rule(self, group: dict[str, Any]) -> Any:
        """Return the optimizer of numsim.train with the numbers of a group."""
        numbers: dict[str, Any] = {
            "lr": float(group["lr"]),
            "weight_decay": float(group["weight_decay"]),
        }
        kind = self._kind
        if kind is SGD:
            numbers |= {name: group[name] for name in ("momentum", "dampening", "nesterov")}
        else:
            numbers |= {
                "betas": tuple(float(b) for b in group["betas"]), "eps": float(group["eps"]),
                "amsgrad": group["amsgrad"],
            }  # fmt: skip
            kind = AdamW if group.get("decoupled_weight_decay") else kind
        return kind(**numbers, **self._how)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number, updates = 0, []
        for group in self.param_groups:
            own = self._rule(group)
            names = group.get("param_names")
            for at, p in enumerate(group["params"]):
                name = str(number) if names is None else names[at]
                number += 1
                if p.grad is not None:
                    updates.append((p, *self._update(own, name, p, group)))
        for update in updates:  # all of them or, where one has failed, none
            self._write(*update)
        return loss

    def _update(self, own: Any, name: str, p: Tensor, group: dict[str, Any]) -> tuple[Any, State]:
        """Return a parameter after the step, and its state."""
        why = refused_tensor(p.grad, "storage") or refused_tensor(p, "storage")
        if why is not None:
            raise UnsupportedError(f"numsim.torch.optimizer: the gradient of {name}: {why}")
        q = stored(p) if own.storage is not None else None
        # Other values since, behind the back of this optimizer, are rounded into the format again.
        given = own.start({name: array(p)}) if q is None else {name: q}
        gradient = -array(p.grad) if group.get("maximize") else array(p.grad)
        kept = self.state.get(p, {})
        slots = dict(own.init(given).slots[name])
        for slot in slots:
            if kept.get(SLOTS[slot]) is not None:
                slots[slot] = array(kept[SLOTS[slot]])
        steps = int(kept["step"]) if "step" in kept else 0
        if self._kind is SGD and "step" not in kept and kept.get("momentum_buffer") is not None:
            steps = 1  # torch's SGD does not count: the buffer is there from its first step
        new, after = own.step(given, {name: gradient}, State(steps, {name: slots}))
        return new[name], State(after.step, after.slots[name])

    def _write(self, p: Tensor, new: Any, after: State) -> None:
        kept = self.state[p]
        kept["step"] = torch.tensor(float(after.step))
        for slot, value in after.slots.items():
            wide = value.dequantize() if isinstance(value, QTensor) else value
            kept[SLOTS[slot]] = torch.from_numpy(np.array(wide, np.float32))
        if isinstance(new, QTensor):
            _keep(p, new)
            self._write_codes(p, new)
            return
        with torch.no_grad():
            p.copy_(torch.from_numpy(new))

    def __getstate__(self) -> dict[str, Any]:
        own: dict[str, Any] = super().__getstate__()
        return own | {"_kind": self._kind, "_how": self._how}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on as a copy: torch copies parameters without what is known of their codes."""
        super().__setstate__(state)
        if "_how" in vars(self):  # not while the optimizer is being made
            self._recall()

    def _write_codes(self, p: Tensor, q: QTensor) -> None:
        """Keep codes and scale in the state, so that a state_dict brings them back."""
        if q.block_shape is None and q.fmt.bits <= 16 and q.tensor_scale is None:
            self.state[p]["codes"] = torch.from_numpy(q.codes.astype(np.float32))
            if q.scale is not None:
                self.state[p]["scale"] = torch.from_numpy(np.array(q.scale, np.float32))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read a state; stored parameters have their codes and scales again."""
        super().load_state_dict(state_dict)
        self._recall()

    def _recall(self) -> None:
        storage = self._how["storage"]
        for p, kept in self.state.items():
            if storage is None or "codes" not in kept:
                continue
            scale = None if "scale" not in kept else array(kept["scale"])
            codes = array(kept["codes"]).astype(storage.fmt.code_dtype)
            q = QTensor(codes, storage.fmt, scale, storage)
            setattr(p, STORED, (q, q.dequantize()))
