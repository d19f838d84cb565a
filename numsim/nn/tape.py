"""What a forward pass leaves for the backward one: a tuple of steps over numbered values.

A step holds the function that turns gradients of its outputs into those of its inputs, and what
that function needs. `Recorder` writes the steps while it computes; `run_back` reads them from the
end. Gradients of a value that is used several times are added from its last use to its first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.arguments import as_array
from numsim.errors import NumsimError
from numsim.nn.products import Context
from numsim.nn.rows import Codes
from numsim.quant import QTensor

Array = NDArray[Any]
Backward = Callable[..., tuple[Any, ...]]


class Step(NamedTuple):
    """One operation: ``backward(saved, *gradients of outputs)`` -> gradients of inputs, or None.

    With `chooses` it is also told which inputs' gradients are wanted: ``wanted=(True, False)``.
    """

    backward: Backward
    saved: tuple[Any, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    chooses: bool = False


class Tape(NamedTuple):
    """A finished forward pass: `numsim.nn.backward` reads it, any number of times."""

    steps: tuple[Step, ...]
    shapes: tuple[tuple[int, ...], ...]  # of every value
    inputs: tuple[int | None, ...]  # None: integers, without a gradient
    params: tuple[tuple[str, int | None, tuple[int, ...]], ...]  # None: not used
    outputs: tuple[int, ...]
    context: Context


@dataclass
class Recorder:
    """Computes, and writes down how."""

    context: Context
    params: dict[str, Any]
    values: list[Any] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)  # of parameters
    owners: list[tuple[int, str]] = field(default_factory=list)  # number of steps before, whose
    codes: dict[int, Codes] = field(default_factory=dict)  # of values that products share, as rows

    def put(self, value: Any) -> int:
        """Return the number of a new value."""
        self.values.append(value)
        return len(self.values) - 1

    def has(self, name: str) -> bool:
        """Whether there is such a parameter."""
        return name in self.params

    def param(self, name: str) -> int:
        """Return the number of a parameter; tensors stored in a format stay as they are."""
        if name not in self.slots:
            value = self.params[name]
            if not isinstance(value, QTensor):
                value = np.asarray(value).astype(self.context.dtype, copy=False)
            elif self.context.rules is None:
                value = value.dequantize().astype(self.context.dtype)
            self.slots[name] = self.put(value)
        return self.slots[name]

    def array(self, slot: int) -> Array:
        """Return a value as an array: a stored tensor is decoded."""
        value = self.values[slot]
        return value.dequantize() if isinstance(value, QTensor) else value

    def apply(
        self, backward: Backward, inputs: Sequence[int], value: Any, *saved: Any,
        chooses: bool = False,
    ) -> int:  # fmt: skip
        """Write a step with one output; return its number."""
        return self.apply_many(backward, inputs, (value,), *saved, chooses=chooses)[0]

    def apply_many(
        self, backward: Backward, inputs: Sequence[int], values: Sequence[Any], *saved: Any,
        chooses: bool = False,
    ) -> tuple[int, ...]:  # fmt: skip
        """Write a step with several outputs; return their numbers."""
        outs = tuple(self.put(value) for value in values)
        self.steps.append(Step(backward, saved, tuple(inputs), outs, chooses))
        return outs

    def first_not_finite(self) -> str | None:
        """Return what made the first value that is not finite: a parameter, or an operator.

        None where all are, or where such values came in.
        """
        bad = [not np.isfinite(self.array(slot)).all() for slot in range(len(self.values))]
        names = {slot: name for name, slot in self.slots.items()}
        for at, step in enumerate(self.steps):
            for slot in step.inputs:
                if bad[slot] and slot in names:
                    return f"the parameter {names[slot]}"
            if any(bad[slot] for slot in step.outputs) and not any(bad[s] for s in step.inputs):
                owners = [name for first, name in self.owners if first <= at]
                return f"the output of {owners[-1]}" if owners else "the output"
        return None

    def finish(self, inputs: Sequence[int | None], outputs: Sequence[int]) -> Tape:
        """Return the tape."""
        shapes = tuple(_shape(v) for v in self.values)
        return Tape(
            tuple(self.steps), shapes, tuple(inputs),
            tuple((name, self.slots.get(name), _shape(v)) for name, v in self.params.items()),
            tuple(outputs), self.context,
        )  # fmt: skip


def _shape(value: Any) -> tuple[int, ...]:
    return value.shape if isinstance(value, QTensor) else np.shape(value)


def run_back(tape: Tape, upstream: Sequence[Any], wanted: Collection[int]) -> list[Array | None]:
    """Return the gradients of the values `wanted`, at their places; None where no output needs one.

    What no wanted value depends on is not computed.
    """
    context = tape.context
    live = [slot in wanted for slot in range(len(tape.shapes))]  # depends on a wanted value
    for step in tape.steps:
        if any(live[slot] for slot in step.inputs):
            for slot in step.outputs:
                live[slot] = True
    found: list[Any] = [None] * len(tape.shapes)
    for slot, g in zip(tape.outputs, upstream, strict=True):
        given = as_array("backward: an upstream gradient", g)
        if given.shape != tape.shapes[slot] or given.dtype.kind not in "fV":
            raise NumsimError(
                f"backward: each upstream gradient has the shape of its output, "
                f"{tape.shapes[slot]}; got {given.dtype} {given.shape}"
            )
        own = given.astype(context.dtype)
        found[slot] = own if found[slot] is None else found[slot] + own
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for step in reversed(tape.steps):
            arrived = [found[slot] for slot in step.outputs]
            here = tuple(live[slot] for slot in step.inputs)
            if all(g is None for g in arrived) or not any(here):
                continue
            arrived = [
                np.zeros(tape.shapes[slot], context.dtype) if g is None else g
                for slot, g in zip(step.outputs, arrived, strict=True)
            ]
            how = {"wanted": here} if step.chooses else {}
            parts = step.backward(context, step.saved, *arrived, **how)
            for slot, part, needed in zip(step.inputs, parts, here, strict=True):
                if part is not None and needed:
                    found[slot] = part if found[slot] is None else found[slot] + part
            for slot in step.outputs:
                if slot not in tape.outputs:
                    found[slot] = None  # nothing earlier reads it
    return found
