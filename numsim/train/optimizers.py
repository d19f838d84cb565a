"""SGD, Adam and AdamW by torch's formulas; parameters and moments also kept in a format.

Float64 parameters are computed in float64, all others in float32, each operation rounded once. A
parameter that is stored in a format is decoded, updated in float32 and encoded again: what is
smaller than half a step of the format is lost under nearest-even, and kept on average under
stochastic rounding, whose draws depend on (seed, parameter, step, element) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from numsim.dispatch import float_codes
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.elementwise.adam import Coded, Numbers, adam
from numsim.quant import QTensor
from numsim.train.kept import Array, Kept, QuantLike, check_number, value_of


@known_floats
@dataclass(frozen=True)
class SGD(Kept):
    """Stochastic gradient descent with momentum.

    Parameters
    ----------
    lr
        Learning rate, above 0.
    momentum, dampening, nesterov
        The first buffer is the gradient itself, without dampening.
    weight_decay
        Added to the gradient, times the parameter.
    storage
        A `Quant` or name: parameters that are QTensors (`start` makes them) are kept in this
        format. Its rounding (``rne``, ``sr``) is that of the update.
    keep_scale
        True: a stored parameter keeps its scale for ever; False: amax of each step.
    random_bits
        Of stochastic storage; None: every discarded bit.
    seed
        Of stochastic storage.
    master
        True: a float32 copy of stored parameters takes the updates.

    Raises
    ------
    NumsimError
        For numbers out of range, or nesterov without momentum.

    Source
    ------
    torch.optim.SGD.

    Examples
    --------
    >>> opt = SGD(0.5, momentum=0.9)
    >>> state = opt.init({"w": np.zeros(1)})
    >>> opt.step({"w": np.zeros(1)}, {"w": np.ones(1)}, state)[0]
    {'w': array([-0.5])}
    """

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    storage: QuantLike = None
    keep_scale: bool = False
    random_bits: int | None = None
    seed: int = 0
    master: bool = False
    moments: QuantLike = None

    def __post_init__(self) -> None:
        self._check()
        check_number("SGD", "momentum", self.momentum, 0.0, open_=False, high=1.0)
        check_number("SGD", "dampening", self.dampening, 0.0, open_=False, high=1.0)
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise NumsimError(
                "SGD: nesterov needs momentum above 0 and no dampening; got "
                f"momentum={self.momentum!r}, dampening={self.dampening!r}"
            )

    def _slots(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def _update(
        self, p: Any, g: Array, held: dict[str, Array], t: int
    ) -> tuple[Array, dict[str, Array], tuple[Any, Any]]:
        number = p.dtype.type
        if self.weight_decay:
            g = g + number(self.weight_decay) * p
        after = {}
        if self.momentum:
            old = held["momentum"]
            fresh = number(self.momentum) * old + number(1 - self.dampening) * g
            buffer = g if t == 1 else fresh
            after["momentum"] = buffer
            g = g + number(self.momentum) * buffer if self.nesterov else buffer
        new = p - number(self.lr) * g
        ends = (new.min(), new.max()) if new.size else (number(0), number(0))
        return new, after, ends


@known_floats
@dataclass(frozen=True)
class Adam(Kept):
    """Adam; weight decay is added to the gradient.

    Parameters
    ----------
    lr, betas, eps, weight_decay, amsgrad
        torch's; eps is added to ``sqrt(v / (1 - beta2**t))``.
    storage, keep_scale, random_bits, seed, master
        As `SGD`.
    moments
        A `Quant` or name in which both moments are kept.

    Raises
    ------
    NumsimError
        For numbers out of range.

    Source
    ------
    Kingma and Ba, ICLR 2015; torch.optim.Adam.

    Examples
    --------
    >>> opt = Adam(0.5)
    >>> state = opt.init({"w": np.zeros(1)})
    >>> opt.step({"w": np.zeros(1)}, {"w": np.ones(1)}, state)[0]
    {'w': array([-0.5])}
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    storage: QuantLike = None
    moments: QuantLike = None
    keep_scale: bool = False
    random_bits: int | None = None
    seed: int = 0
    master: bool = False

    _decoupled = False

    def __post_init__(self) -> None:
        self._check()
        who = type(self).__name__
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise NumsimError(f"{who}: betas are two numbers; got {self.betas!r}")
        object.__setattr__(self, "betas", tuple(self.betas))
        for beta in self.betas:
            check_number(who, "betas", beta, 0.0, open_=False, high=1.0 - 2.0**-53)
        check_number(who, "eps", self.eps, 0.0, open_=False, high=math.inf)

    def _read(self, given: Any) -> Any:
        """Return a stored parameter in its codes where the step decodes them on the way."""
        if (
            isinstance(given, QTensor)
            and given.fmt.bits == 8
            and given.fmt.value_dtype == np.float32
        ):
            plain = given.block_shape is None and given.tensor_scale is None
            how, scale = float_codes(given.fmt), 1.0 if given.scale is None else given.scale
            if plain and how and given.zero_point is None and np.size(scale) == 1:
                return Coded(given.codes, how, np.float32(np.reshape(scale, ())))
        return value_of(given)

    def _slots(self) -> tuple[str, ...]:
        return ("first", "second", *(("largest",) if self.amsgrad else ()))

    def _update(
        self, p: Any, g: Array, held: dict[str, Array], t: int
    ) -> tuple[Array, dict[str, Array], tuple[Any, Any]]:
        number = p.dtype.type
        (b1, b2), lr = self.betas, self.lr
        by = Numbers(
            number(1 - lr * self.weight_decay if self._decoupled else 1),
            number(self.weight_decay), number(b1), number(1 - b1), number(b2), number(1 - b2),
            number(math.sqrt(1 - b2**t)), number(self.eps), number(lr / (1 - b1**t)),
        )  # fmt: skip
        value, first, second, largest, ends = adam(
            p, g, held["first"], held["second"], held["largest"] if self.amsgrad else None, by,
            decays=bool(self.weight_decay) and not self._decoupled,
        )  # fmt: skip
        after = {"first": first, "second": second}
        return value, after if largest is None else after | {"largest": largest}, ends


@known_floats
@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay multiplies the parameter by ``1 - lr * weight_decay`` first.

    Parameters, errors: as `Adam`.

    Source
    ------
    Loshchilov and Hutter, ICLR 2019; torch.optim.AdamW.

    Examples
    --------
    >>> opt = AdamW(0.5, weight_decay=0.1)
    >>> state = opt.init({"w": np.ones(1)})
    >>> opt.step({"w": np.ones(1)}, {"w": np.zeros(1)}, state)[0]
    {'w': array([0.95])}
    """

    weight_decay: float = 0.01

    _decoupled = True
