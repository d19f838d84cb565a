"""Scales over time: of tensors from earlier amaxes, of the loss from what overflowed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import check_truths, is_integer, is_word, real_array
from numsim.convert import encode
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import Format, get_format, kept_format
from numsim.quant import QTensor, Quant
from numsim.quant.delayed import next_multiplier

_FLOAT32_MAX = np.float32(np.finfo(np.float32).max)
REDUCES = ("max", "most_recent")
ZERO_AMAX = ("skip", "keep")


class DelayedState(NamedTuple):
    """The scale of the next step and what it comes from; `length` amaxes of `window` are set."""

    multiplier: np.float32
    window: NDArray[np.float32]  # [history], newest first
    length: int


@known_floats
@dataclass(frozen=True)
class DelayedScaling:
    """A scale per tensor from the amaxes of earlier steps.

    Parameters
    ----------
    format
        Element format.
    history
        Amaxes that count, the newest.
    margin
        The multiplier is halved so many times.
    reduce
        ``max`` of the window, or the ``most_recent``.
    zero_amax
        ``skip``: a step whose amax is 0 changes nothing. ``keep``: it joins the window, where it
        pushes an old one out.

    Raises
    ------
    NumsimError
        For a history below 1 or an unknown word.

    Source
    ------
    TransformerEngine's DelayedScaling, whose "scale" is the multiplier here.

    Examples
    --------
    >>> rule = DelayedScaling("e4m3", history=4)
    >>> q, state = rule.quantize([1.0, -2.0], rule.init())
    >>> q.codes, float(state.multiplier)
    (array([ 56, 192], dtype=uint8), 224.0)
    """

    format: str | Format
    history: int = 1024
    margin: int = 0
    reduce: str = "max"
    zero_amax: str = "skip"

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", kept_format(self.format))
        if not is_integer(self.history) or not 1 <= self.history <= 1 << 20:
            raise NumsimError(
                f"DelayedScaling: history is an integer from 1 to 2**20; got {self.history!r}"
            )
        if not is_integer(self.margin) or abs(self.margin) > 100:
            raise NumsimError(
                f"DelayedScaling: margin is an integer from -100 to 100; got {self.margin!r}"
            )
        for name, value, known in (
            ("reduce", self.reduce, REDUCES), ("zero_amax", self.zero_amax, ZERO_AMAX),
        ):  # fmt: skip
            if not is_word(value, known):
                raise NumsimError(
                    f"DelayedScaling: {name} is one of {', '.join(known)}; got {value!r}"
                )

    def init(self) -> DelayedState:
        """Return the state before the first step: multiplier 1, no history."""
        return DelayedState(np.float32(1), np.zeros(self.history, np.float32), 0)

    def quantize(
        self, x: ArrayLike, state: DelayedState, **how: Any
    ) -> tuple[QTensor, DelayedState]:
        """Return codes under the scale of earlier steps, and the state after this one.

        Parameters
        ----------
        x
            Finite array of any shape.
        state
            Of `init` or an earlier call.
        how
            As in `numsim.encode`: rounding, overflow, seed. None: nearest even, saturated.

        Raises
        ------
        NumsimError
            For NaN or Inf, with the count.
        """
        fmt = get_format(self.format)
        values = real_array("DelayedScaling", x)
        if not isinstance(state, DelayedState):
            raise NumsimError(
                "DelayedScaling: the state is that of init or of the call before; got "
                f"{type(state).__name__}"
            )
        amax = np.float32(max(values.max(initial=0.0), -values.min(initial=0.0)))
        if not np.isfinite(amax):
            bad = int((~np.isfinite(values)).sum())
            raise NumsimError(
                f"DelayedScaling: a scale needs finite values; {bad} of {values.size} are not"
            )
        with np.errstate(over="ignore", under="ignore"):
            codes = encode(values * state.multiplier, fmt, **how)
            scale = np.asarray(np.float32(1) / state.multiplier, np.float32)
        q = QTensor(codes, fmt, scale, Quant(fmt))
        if amax == 0 and self.zero_amax == "skip":
            return q, state
        window = np.concatenate([[amax], state.window[:-1]]).astype(np.float32)
        length = min(state.length + 1, self.history)
        a = window[:length].max() if self.reduce == "max" else window[0]
        multiplier = next_multiplier(a, fmt.max, self.margin, state.multiplier)
        return q, DelayedState(multiplier, window, length)


def _real(value: object) -> bool:
    number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


class LossScaleState(NamedTuple):
    """The scale in force, and the finite steps since it changed."""

    scale: np.float32
    finite_steps: int


@known_floats
@dataclass(frozen=True)
class LossScale:
    """A factor of the loss that grows while gradients stay finite and shrinks when they do not.

    Parameters
    ----------
    init
        Scale of the first step.
    growth, interval
        After so many finite steps in a row the scale is multiplied; growth 1: a static scale.
    backoff
        Multiplies the scale when a gradient was not finite; that step is skipped.

    Raises
    ------
    NumsimError
        For factors out of range.

    Source
    ------
    Micikevicius et al., Mixed Precision Training, ICLR 2018; torch.amp.GradScaler.

    Examples
    --------
    >>> rule = LossScale(init=4.0, interval=1)
    >>> state = rule.init()
    >>> [float(rule.update(state, finite=finite).scale) for finite in (True, False)]
    [8.0, 2.0]
    """

    init_scale: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000

    def __init__(
        self, init: float = 65536.0, growth: float = 2.0, backoff: float = 0.5,
        interval: int = 2000,
    ) -> None:  # fmt: skip
        for name, value, good in (
            ("init", init, _real(init) and 0 < float(init) < 2.0**127),
            ("growth", growth, _real(growth) and 1 <= float(growth) < 2.0**64),
            ("backoff", backoff, _real(backoff) and 0 < backoff <= 1),
        ):  # fmt: skip
            if not good:
                raise NumsimError(
                    f"LossScale: init > 0, growth >= 1, 0 < backoff <= 1; got {name}={value!r}"
                )
        if not is_integer(interval) or interval < 1:
            raise NumsimError(f"LossScale: interval is an integer from 1; got {interval!r}")
        for name, value in (
            ("init_scale", float(init)), ("growth", float(growth)), ("backoff", float(backoff)),
            ("interval", int(interval)),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    def init(self) -> LossScaleState:
        """Return the state before the first step."""
        return LossScaleState(np.float32(self.init_scale), 0)

    def update(self, state: LossScaleState, *, finite: bool) -> LossScaleState:
        """Return the state after a step whose gradients were finite or not."""
        check_truths("LossScale", finite=finite)
        if not isinstance(state, LossScaleState):
            raise NumsimError(
                "LossScale: the state is that of init or of the update before; got "
                f"{type(state).__name__}"
            )
        if not finite:
            return LossScaleState(np.float32(state.scale * np.float32(self.backoff)), 0)
        if state.finite_steps + 1 >= self.interval:
            with np.errstate(over="ignore"):
                grown = np.float32(state.scale * np.float32(self.growth))
            return LossScaleState(min(grown, _FLOAT32_MAX), 0)
        return LossScaleState(state.scale, state.finite_steps + 1)


def all_finite(gradients: dict[str, Any]) -> bool:
    """Return whether every gradient is finite."""
    return all(bool(np.isfinite(g).all()) for g in gradients.values())
