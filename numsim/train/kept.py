"""How every optimizer keeps parameters, moments and master copies between steps.

What is smaller than half a step of the format is lost under nearest-even, and kept on average
under stochastic rounding, whose draws depend on (seed, parameter, step, element) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, check_truths, is_integer, is_word, real_array
from numsim.convert import encode, encode_divided
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.freed import keep_freed
from numsim.nn.draws import stream_key
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
    how: dict[str, Any] = {"rounding": rounding}
    if is_word(rounding, ("sr",)):
        how |= {"random_bits": random_bits, "seed": seed, "offset": offset, "random": random}
        how = {key: v for key, v in how.items() if v is not None}
    if new.dtype == np.float32 and np.size(scale) == 1:
        by = np.float32(np.reshape(scale, ()))
        codes = encode_divided(new, by, into.fmt, **how)
    else:
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            quotient = new / scale
        codes = encode(quotient, into.fmt, **how)
    if into.fmt.kind == "integer" and into.fmt.bias == 0 and into.fmt.signed:
        codes = np.maximum(codes, codes.dtype.type(-into.fmt.max))
    return replace(into, codes=codes, packed={})


@lru_cache(maxsize=64)
def _nearest(quant: Quant) -> Quant:
    """Return a rule that rounds to nearest."""
    return replace(quant, rounding="rne")


def check_dict(what: str, value: object) -> None:
    """Raise NumsimError for what is no dict."""
    if not isinstance(value, dict):
        raise NumsimError(f"{what} a dict of arrays by name; got {type(value).__name__}")


def check_number(
    who: str, name: str, value: object, low: float, *, open_: bool, high: float
) -> None:
    """Raise NumsimError for what is no number from `low` (above it: `open_`) to `high`."""
    real = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    good = real and math.isfinite(value) and value <= high  # type: ignore[arg-type,operator]
    if not good or not (value > low if open_ else value >= low):  # type: ignore[operator]
        bound = f"above {low:g}" if open_ else f"{low:g} or more"
        top = f", at most {high:g}" if math.isfinite(high) else ""
        raise NumsimError(f"{who}: {name} is a number {bound}{top}; got {value!r}")


@dataclass(frozen=True)
class Kept:
    """How every optimizer keeps what it updates; see `SGD`."""

    def _check(self) -> None:
        who = type(self).__name__
        own: Any = self
        switches = (
            "keep_scale",
            "master",
            *(n for n in ("nesterov", "amsgrad") if hasattr(own, n)),
        )
        check_truths(who, **{name: getattr(own, name) for name in switches})
        check_number(who, "lr", own.lr, 0.0, open_=True, high=math.inf)
        check_number(who, "weight_decay", own.weight_decay, 0.0, open_=False, high=math.inf)
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
        check_dict(f"{type(self).__name__}: parameters are", params)
        slots: dict[str, dict[str, Any]] = {}
        for name, value in params.items():
            wide = value_of(value)
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
        check_dict(f"{type(self).__name__}: parameters are", params)
        if own.storage is None:
            return params
        nearest = _nearest(own.storage)
        kept: Params = {}
        for name, p in params.items():
            few = isinstance(p, QTensor) or as_array(f"the parameter {name}", p).ndim < 2
            wide = p if few else real_array(f"the parameter {name}", p)
            kept[name] = p if few else quantize(wide, nearest)
        return kept

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
        check_dict(f"{who}: parameters are", params)
        check_dict(f"{who}: gradients are", grads)
        if random is not None:
            check_dict(f"{who}: random integers are", random)
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
            old = before["master"] if own.master else self._read(given)
            g = real_array(f"gradient of {name}", grads[name], old.dtype)
            if g.shape != old.shape:
                raise NumsimError(
                    f"{type(self).__name__}: the gradient of {name} has the shape {old.shape}; "
                    f"got {g.shape}"
                )
            held = {key: value_of(v) for key, v in before.items()}
            with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
                value, after, (low, high) = self._update(old, g, held, t)
            if not (math.isfinite(low) and math.isfinite(high)):
                bad = int((~np.isfinite(value)).sum())
                raise NumsimError(
                    f"step {t}, {name}, {type(self).__name__}: parameters are finite; {bad} of "
                    f"{value.size} are not after the update"
                )
            slots[name] = self._kept_slots(name, after, t)
            if own.master:
                slots[name]["master"] = value
            drawn = None if random is None else random.get(name)
            most = high if high >= -low else low
            new[name] = self._stored(name, value, most, given, t, drawn)
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

    def _stored(
        self, name: str, value: Array, most: Any, given: Any, t: int, random: ArrayLike | None
    ) -> Any:
        """Return a parameter as it is kept; `most` is the element of the largest magnitude."""
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
            one = np.full((1,) * value.ndim, most, value.dtype)
            into = replace(quantize(one, _nearest(quant)), codes=given.codes)
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

    def _read(self, given: Any) -> Any:
        """Return a parameter as `_update` takes it."""
        return value_of(given)

    def _update(
        self, p: Any, g: Array, held: dict[str, Array], t: int
    ) -> tuple[Array, dict[str, Array], tuple[Any, Any]]:
        """Return a parameter after the step, what is kept of it, and its least and largest."""
        raise NotImplementedError


def value_of(value: Any) -> Array:
    """Return what is computed with: float64 as it is, everything else float32."""
    if isinstance(value, QTensor):
        codes = value.values() if value.block_shape is None and value.tensor_scale is None else None
        if codes is None or value.scale is None or codes.dtype != np.float32:
            return value.dequantize()
        with np.errstate(over="ignore", under="ignore"):
            product: Array = codes * value.scale  # rounded once, as `dequantize` does by float64
        return product
    array = as_array("a parameter", value)
    double = array.dtype.kind == "f" and array.dtype.itemsize == 8  # of either byte order
    return real_array("a parameter", array, np.float64 if double else np.float32)
