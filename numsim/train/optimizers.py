"""SGD, Adam and AdamW by torch's formulas; parameters and moments also kept in a format.

Float64 parameters are computed in float64, all others in float32, each operation rounded once. A
parameter that is stored in a format is decoded, updated in float32 and encoded again: what is
smaller than half a step of the format is lost under nearest-even, and kept on average under
stochastic rounding, whose draws depend on (seed, parameter, step, element) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import is_integer, real_array
from numsim.convert import encode
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.freed import keep_freed
from numsim.kernels.elementwise.adam import Numbers, adam
from numsim.nn.products import stream_key
from numsim.quant import QTensor, Quant, as_quant, quantize

Array = NDArray[Any]
Params = dict[str, Any]
QuantLike = Quant | str | None


class State(NamedTuple):
    """Steps taken, and arrays by parameter and name (momentum, moments, master copy)."""

    step: int
    slots: dict[str, dict[str, Any]]


@known_floats
def store(
    values: ArrayLike,
    into: QTensor,
    *,
    rounding: str = "rne",
    random_bits: int | None = None,
    random: ArrayLike | None = None,
    seed: int = 0,
    offset: int = 0,
) -> QTensor:
    """Return new codes under the scale of a stored tensor.

    A code is ``encode(fp32(value / scale))``, saturated; signed integers stay symmetric
    (INT8: +-127), fixed point uses its whole range.

    Parameters
    ----------
    values
        Array of the shape of `into`.
    into
        A tensor with one scale (or none) for all of it.
    rounding, random_bits, random, seed, offset
        As in `numsim.encode`.

    Raises
    ------
    NumsimError
        For another shape, block scales, or NaN where the format has none.

    Examples
    --------
    >>> q = QTensor.from_codes([56, 56], "e4m3", scale=1.0)
    >>> store([1.0, 1.1], q).dequantize()
    array([1.   , 1.125], dtype=float32)
    """
    if not isinstance(into, QTensor):
        raise NumsimError(f"store: into is a QTensor; got {type(into).__name__}")
    new = real_array("store: values", values)
    if new.shape != into.shape:
        raise NumsimError(f"store: values have the shape of into, {into.shape}; got {new.shape}")
    if into.block_shape is not None:
        raise NumsimError("store: the tensor has one scale, or one that broadcasts; got blocks")
    scale = np.float32(1) if into.scale is None else into.scale
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        quotient = new / scale
    how: dict[str, Any] = {"rounding": rounding}
    if rounding == "sr":
        how |= {"random_bits": random_bits, "seed": seed, "offset": offset, "random": random}
        how = {key: v for key, v in how.items() if v is not None}
    codes = encode(quotient, into.fmt, **how)
    if into.fmt.kind == "integer" and into.fmt.bias == 0 and into.fmt.signed:
        codes = np.maximum(codes, codes.dtype.type(-into.fmt.max))
    return replace(into, codes=codes, packed={})


def _check_dict(what: str, value: object) -> None:
    if not isinstance(value, dict):
        raise NumsimError(f"{what} a dict of arrays by name; got {type(value).__name__}")


def _number(who: str, name: str, value: object, low: float, *, open_: bool, high: float) -> None:
    real = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    good = real and math.isfinite(value) and value <= high  # type: ignore[arg-type,operator]
    if not good or not (value > low if open_ else value >= low):  # type: ignore[operator]
        bound = f"above {low:g}" if open_ else f"{low:g} or more"
        top = f", at most {high:g}" if math.isfinite(high) else ""
        raise NumsimError(f"{who}: {name} is a number {bound}{top}; got {value!r}")


@dataclass(frozen=True)
class _Kept:
    """How every optimizer keeps what it updates; see `SGD`."""

    def _check(self) -> None:
        who = type(self).__name__
        own: Any = self
        _number(who, "lr", own.lr, 0.0, open_=True, high=math.inf)
        _number(who, "weight_decay", own.weight_decay, 0.0, open_=False, high=math.inf)
        for name in ("storage", "moments"):
            if getattr(own, name, None) is not None:
                object.__setattr__(self, name, as_quant(getattr(own, name)))
        storage = own.storage
        if own.keep_scale and storage is not None and storage.granularity == "per_block":
            raise NumsimError(
                f"{who}: keep_scale is for storage without blocks, whose scales are not kept; got "
                f"{storage.format} in blocks; leave it out"
            )
        bits = own.random_bits
        if bits is not None and not (is_integer(bits) and 1 <= bits <= 32):
            raise NumsimError(f"{who}: random_bits is an integer from 1 to 32; got {bits!r}")
        if not is_integer(own.seed) or not 0 <= own.seed < 1 << 32:
            raise NumsimError(f"{who}: seed is an integer from 0 to 2**32 - 1; got {own.seed!r}")
        if own.master and own.storage is None:
            raise NumsimError(
                f"{who}: master keeps a float32 copy of stored parameters; give storage, or leave "
                "master out"
            )

    def init(self, params: Params) -> State:
        """Return the state before the first step."""
        own: Any = self
        _check_dict(f"{type(self).__name__}: parameters are", params)
        slots: dict[str, dict[str, Any]] = {}
        for name, value in params.items():
            wide = _value(value)
            slots[name] = {slot: np.zeros(wide.shape, wide.dtype) for slot in self._slots()}
            if own.master:
                slots[name]["master"] = wide.copy()
            if getattr(own, "moments", None) is not None:
                for slot in self._slots():
                    slots[name][slot] = quantize(slots[name][slot], own.moments)
        return State(0, slots)

    def start(self, params: Params) -> Params:
        """Return parameters as this optimizer keeps them.

        Tensors of two axes or more are rounded to nearest into its storage; vectors, which are
        biases and weights of norms, stay float32.
        """
        own: Any = self
        _check_dict(f"{type(self).__name__}: parameters are", params)
        if own.storage is None:
            return params
        nearest = replace(own.storage, rounding="rne")
        return {
            name: p
            if isinstance(p, QTensor) or np.ndim(p) < 2
            else quantize(np.asarray(p, np.float32), nearest)
            for name, p in params.items()
        }

    def step(
        self, params: Params, grads: Params, state: State, *,
        random: dict[str, ArrayLike] | None = None,
    ) -> tuple[Params, State]:  # fmt: skip
        """Return parameters and state after one step.

        Parameters
        ----------
        params
            Arrays, or QTensors where they are stored.
        grads
            A gradient of each parameter, of its shape.
        state
            Of `init` or the step before.
        random
            Random integers of stochastic storage by parameter, in place of the stream.

        Raises
        ------
        NumsimError
            For a gradient that is missing or of another shape, or a value that is not finite:
            the parameter and the step.
        """
        keep_freed()
        own: Any = self
        who = type(self).__name__
        _check_dict(f"{who}: parameters are", params)
        _check_dict(f"{who}: gradients are", grads)
        if random is not None:
            _check_dict(f"{who}: random integers are", random)
        if not isinstance(state, State):
            raise NumsimError(
                f"{who}: the state is that of init or of the step before; got "
                f"{type(state).__name__}"
            )
        t = state.step + 1
        new: Params = {}
        slots: dict[str, dict[str, Any]] = {}
        for name, given in params.items():
            if name not in grads:
                raise NumsimError(f"{type(self).__name__}: the gradient of {name} is missing")
            before = self._before(name, state)
            old = before["master"] if own.master else _value(given)
            g = real_array(f"gradient of {name}", grads[name], old.dtype)
            if g.shape != old.shape:
                raise NumsimError(
                    f"{type(self).__name__}: the gradient of {name} has the shape {old.shape}; "
                    f"got {g.shape}"
                )
            held = {key: _value(v) for key, v in before.items()}
            with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
                value, after = self._update(old, g, held, t)
            if not np.isfinite(value).all():
                bad = int((~np.isfinite(value)).sum())
                raise NumsimError(
                    f"step {t}, {name}, {type(self).__name__}: parameters are finite; {bad} of "
                    f"{value.size} are not after the update"
                )
            slots[name] = self._kept_slots(name, after, t)
            if own.master:
                slots[name]["master"] = value
            drawn = None if random is None else random.get(name)
            new[name] = self._stored(name, value, given, t, drawn)
        return new, State(t, slots)

    def _before(self, name: str, state: State) -> dict[str, Any]:
        """Return what the last step kept of a parameter."""
        own: Any = self
        kept: dict[str, Any] | None = state.slots.get(name)
        wanted = (*self._slots(), *(("master",) if own.master else ()))
        if kept is None or any(slot not in kept for slot in wanted):
            lacks = f"{name} ({', '.join(wanted)})" if wanted else name
            raise NumsimError(
                f"{type(self).__name__}: the state is of these parameters and this optimizer; it "
                f"lacks {lacks}; init(params) makes it"
            )
        return kept

    def _kept_slots(self, name: str, after: dict[str, Array], t: int) -> dict[str, Any]:
        moments = getattr(self, "moments", None)
        if moments is None:
            return dict(after)
        own: Any = self
        how: dict[str, dict[str, Any]] = {
            slot: {"seed": stream_key(own.seed, name, slot, t)} if moments.rounding == "sr" else {}
            for slot in after
        }
        return {slot: quantize(v, moments, **how[slot]) for slot, v in after.items()}

    def _stored(self, name: str, value: Array, given: Any, t: int, random: ArrayLike | None) -> Any:
        own: Any = self
        quant: Quant | None = own.storage
        if not isinstance(given, QTensor):
            return value
        if quant is None:
            raise NumsimError(
                f"{type(self).__name__}: {name} is stored in {given.fmt.name}; give "
                "storage=, which says how it is rounded"
            )
        draws: dict[str, Any] = {}
        if quant.rounding == "sr":
            draws = (
                {"seed": stream_key(own.seed, name, "storage", t)}
                if random is None
                else {"random": random}
            )
        if own.keep_scale:
            into = given
        elif quant.granularity in ("none", "per_tensor") and quant.scale_rule == "amax":
            if quant.rounding == "rne":
                return quantize(value, quant)
            # The scale is that of the largest element, which is all that is rounded for it.
            high, low = (value.max(), value.min()) if value.size else (value.sum(), value.sum())
            most = np.reshape(high if high >= -low else low, (1,) * value.ndim)
            into = replace(quantize(most, replace(quant, rounding="rne")), codes=given.codes)
        else:
            if own.random_bits is not None:
                raise NumsimError(
                    f"{type(self).__name__}: random_bits is for storage with one amax scale; got "
                    f"{quant.granularity}, {quant.scale_rule}; leave it out"
                )
            return quantize(value, quant, **draws)
        bits = own.random_bits if quant.rounding == "sr" else None
        return store(value, into, rounding=quant.rounding, random_bits=bits, **draws)

    def _slots(self) -> tuple[str, ...]:
        raise NotImplementedError

    def _update(
        self, p: Array, g: Array, held: dict[str, Array], t: int
    ) -> tuple[Array, dict[str, Array]]:
        raise NotImplementedError


def _value(value: Any) -> Array:
    """Return what is computed with: float64 as it is, everything else float32."""
    if isinstance(value, QTensor):
        codes = value.values() if value.block_shape is None and value.tensor_scale is None else None
        if codes is None or value.scale is None or codes.dtype != np.float32:
            return value.dequantize()
        with np.errstate(over="ignore", under="ignore"):
            product: Array = codes * value.scale  # rounded once, as `dequantize` does by float64
        return product
    array = np.asarray(value)
    double = array.dtype.kind == "f" and array.dtype.itemsize == 8  # of either byte order
    return real_array("a parameter", array, np.float64 if double else np.float32)


@known_floats
@dataclass(frozen=True)
class SGD(_Kept):
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
        _number("SGD", "momentum", self.momentum, 0.0, open_=False, high=1.0)
        _number("SGD", "dampening", self.dampening, 0.0, open_=False, high=1.0)
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise NumsimError(
                "SGD: nesterov needs momentum above 0 and no dampening; got "
                f"momentum={self.momentum!r}, dampening={self.dampening!r}"
            )

    def _slots(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def _update(
        self, p: Array, g: Array, held: dict[str, Array], t: int
    ) -> tuple[Array, dict[str, Array]]:
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
        return p - number(self.lr) * g, after


@known_floats
@dataclass(frozen=True)
class Adam(_Kept):
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
            _number(who, "betas", beta, 0.0, open_=False, high=1.0 - 2.0**-53)
        _number(who, "eps", self.eps, 0.0, open_=False, high=math.inf)

    def _slots(self) -> tuple[str, ...]:
        return ("first", "second", *(("largest",) if self.amsgrad else ()))

    def _update(
        self, p: Array, g: Array, held: dict[str, Array], t: int
    ) -> tuple[Array, dict[str, Array]]:
        number = p.dtype.type
        (b1, b2), lr = self.betas, self.lr
        by = Numbers(
            number(1 - lr * self.weight_decay if self._decoupled else 1),
            number(self.weight_decay), number(b1), number(1 - b1), number(b2), number(1 - b2),
            number(math.sqrt(1 - b2**t)), number(self.eps), number(lr / (1 - b1**t)),
        )  # fmt: skip
        value, first, second, largest = adam(
            p, g, held["first"], held["second"], held["largest"] if self.amsgrad else None, by,
            decays=bool(self.weight_decay) and not self._decoupled,
        )  # fmt: skip
        after = {"first": first, "second": second}
        return value, after if largest is None else after | {"largest": largest}


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
