"""Delayed scaling: the scale of a step comes from the largest magnitudes of earlier steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, is_integer, is_word
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike, get_format

_FLOAT32_MAX = np.float32(np.finfo(np.float32).max)
ALGORITHMS = ("max", "most_recent")
ZERO_AMAX = ("keep", "skip")


def next_multiplier(amax: Any, top: float, margin: int, before: np.float32) -> np.float32:
    """Return fp32(fp32(top / amax) / 2**margin); as before where amax is 0 or not finite.

    At most float32's largest.

    >>> next_multiplier(np.float32(2.0), 448.0, 1, np.float32(1.0))
    np.float32(112.0)
    """
    if not (np.isfinite(amax) and amax > 0):
        return before
    with np.errstate(over="ignore", under="ignore"):
        quotient = np.float32(np.float32(top) / np.float32(amax))
        return min(np.float32(quotient / np.float64(2.0) ** margin), _FLOAT32_MAX)


@known_floats
class DelayedScale:
    """The multiplier of a tensor before its cast, from a history of amaxes.

    Each step is cast with `multiplier`, then `update` is told its amax. The stored scale is
    1 / multiplier.

    Parameters
    ----------
    format
        Element format.
    history
        Amaxes that count.
    margin
        The multiplier is halved so many times.
    algorithm
        ``max`` of the history, or the ``most_recent``.
    zero_amax
        ``keep``: an amax of zero joins the history and pushes an old one out, as in
        TransformerEngine. ``skip``: it changes nothing, as in `numsim.train`.

    Raises
    ------
    NumsimError
        For a history below 1, an unknown word, or a format without a number above 0.

    Source
    ------
    TransformerEngine's DelayedScaling, as its CUDA kernel divides.

    Examples
    --------
    >>> state = DelayedScale("e4m3", history=2)
    >>> for amax in (2.0, 1.0, 1.0):
    ...     state.update(amax)
    ...     print(state.multiplier)
    224.0
    224.0
    448.0
    """

    def __init__(
        self, format: FormatLike, *, history: int = 1024, margin: int = 0, algorithm: str = "max",
        zero_amax: str = "keep",
    ) -> None:  # fmt: skip
        self.format = get_format(format)
        if self.format.max <= 0:
            raise NumsimError(
                f"DelayedScale: the largest value of {self.format.label} is "
                f"{self.format.max:g}, to which nothing scales; use another format"
            )
        if not is_integer(history) or not 1 <= history <= 1 << 20:
            raise NumsimError(
                f"DelayedScale: history is an integer from 1 to 2**20; got {history!r:.40}"
            )
        if not is_integer(margin) or abs(margin) > 100:
            raise NumsimError(
                f"DelayedScale: margin is an integer from -100 to 100; got {margin!r:.40}"
            )
        for name, value, known in (
            ("algorithm", algorithm, ALGORITHMS), ("zero_amax", zero_amax, ZERO_AMAX),
        ):  # fmt: skip
            if not is_word(value, known):
                raise NumsimError(
                    f"DelayedScale: {name} is one of {', '.join(known)}; got {value!r:.40}"
                )
        self.margin, self.algorithm, self.zero_amax = int(margin), algorithm, zero_amax
        self._history = np.zeros(int(history), np.float32)
        self._multiplier = np.float32(1)

    @property
    def multiplier(self) -> np.float32:
        """What the tensor of this step is multiplied by before its cast."""
        return self._multiplier

    @property
    def history(self) -> NDArray[np.float32]:
        """The amaxes that count, as TransformerEngine keeps them: [0] is that of the next step."""
        return self._history.copy()

    def update(self, amax: ArrayLike) -> None:
        """Note the amax of this step: a number, or the tensor itself.

        NaN and Inf leave the multiplier as it is, for as long as they are in the history.

        Raises
        ------
        NumsimError
            For what holds no real numbers.
        """
        array = as_array("DelayedScale.update", amax)
        if array.dtype.kind not in "iufV" or not array.size:
            raise NumsimError(
                f"DelayedScale.update: takes an amax or a tensor; got {array.dtype} of shape "
                f"{array.shape}"
            )
        with np.errstate(over="ignore", under="ignore"):
            most = np.float32(np.max(np.abs(array.astype(np.float64, copy=False))))
        if most == 0 and self.zero_amax == "skip":
            return
        self._history[0] = most
        a = np.max(self._history) if self.algorithm == "max" else self._history[0]
        self._multiplier = next_multiplier(a, self.format.max, self.margin, self._multiplier)
        self._history = np.roll(self._history, -1)
        self._history[0] = 0
