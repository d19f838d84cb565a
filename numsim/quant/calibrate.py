"""Static scales from a stream of tensors, in constant memory.

A sketch counts magnitudes by their float32 exponent and the first eight bits of their fraction:
65,536 counters whatever comes, the same in any order and in any pieces, and every magnitude known
to 2**-9 of itself.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, index_of
from numsim.convert import cast
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import FormatLike, get_format
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import percentile
from numsim.quant.scales import scale_above, scales_from_amax
from numsim.quant.table import as_quant

CALIBRATIONS = ("amax", "moving", "percentile:P", "mse")
_SHIFT = 15  # of the 23 fraction bits, those below the sketch's
_BINS = 1 << (31 - _SHIFT)
_PIECE = 1 << 20


@known_floats
class Calibration:
    """What a stream of tensors says about one static scale.

    Parameters
    ----------
    rule
        ``amax``: the largest magnitude of all. ``moving``: a moving average of the largest
        magnitude of each tensor. ``percentile:P``: a magnitude with at least P percent of all at
        or below it. ``mse``: of 256 clips the one of the least squared error.
    momentum
        Of ``moving``: how much of the average stays with each tensor.

    Raises
    ------
    NumsimError
        For an unknown rule, or a momentum out of range.

    Source
    ------
    Observers of torch.ao.quantization (moving average, histogram); the sketch is this library's.

    Examples
    --------
    >>> seen = Calibration("percentile:50")
    >>> for batch in ([1.0, 2.0], [3.0]):
    ...     seen.update(batch)
    >>> round(seen.amax("int8"), 1), seen.tensors
    (2.0, 2)
    """

    def __init__(self, rule: str = "amax", *, momentum: float = 0.9) -> None:
        named = "percentile:P" if percentile(str(rule)) is not None else rule
        if named not in CALIBRATIONS:
            raise NumsimError(
                f"calibrate: rule is one of {', '.join(CALIBRATIONS)}; got {rule!r:.40}"
                f"{near_names(str(rule), CALIBRATIONS)}"
            )
        good = isinstance(momentum, int | float) and not isinstance(momentum, bool)
        if not good or not 0 <= momentum < 1:
            raise NumsimError(f"calibrate: momentum is 0 to below 1; got {momentum!r:.40}")
        self.rule, self.momentum = str(rule), float(momentum)
        self.tensors = 0
        self._most = 0.0
        self._average = 0.0
        self._counts = np.zeros(_BINS, np.int64)

    def update(self, x: ArrayLike) -> None:
        """Look at one tensor.

        Raises
        ------
        NumsimError
            For NaN, Inf and what is beyond float32, with the count and the first index.
        """
        array = as_array("calibrate", x)
        if array.dtype.kind not in "iuf" and not hasattr(ml_dtypes, array.dtype.name):
            raise NumsimError(f"calibrate: tensors hold real numbers; got {array.dtype}")
        flat = array.reshape(-1)
        most = 0.0
        for at in range(0, flat.size, _PIECE):
            with np.errstate(over="ignore"):
                part = np.abs(flat[at : at + _PIECE].astype(np.float32))
            top = float(part.max())
            if not math.isfinite(top):
                with np.errstate(over="ignore"):
                    bad = ~np.isfinite(array.astype(np.float32))
                first = index_of(int(np.argmax(bad)), array.shape)
                raise NumsimError(
                    f"calibrate: magnitudes are finite in float32; {int(bad.sum())} of "
                    f"{array.size} are not, the first at index {first}"
                )
            most = max(most, top)
            self._counts += np.bincount(part.view(np.uint32) >> _SHIFT, minlength=_BINS)
        self._most = max(self._most, most)
        kept = self.momentum if self.tensors else 0.0
        self._average = kept * self._average + (1 - kept) * most
        self.tensors += 1

    def amax(self, fmt: FormatLike) -> float:
        """Return the magnitude that is to map to the largest value of a format.

        Raises
        ------
        NumsimError
            Where no tensor came.
        """
        if not self.tensors or not self._counts.any():
            raise NumsimError(
                "calibrate: a scale comes from tensors; none came; update() with at least one"
            )
        share = percentile(self.rule)
        if share is not None:
            total = np.cumsum(self._counts)
            rank = math.ceil(share * int(total[-1]) / 100)
            found = int(np.searchsorted(total, rank))
            upper = np.uint32((found << _SHIFT) + (1 << _SHIFT) - 1).view(np.float32)
            return min(float(upper), self._most) if found else self._most
        if self.rule == "mse":
            return self._least_error(fmt)
        return self._average if self.rule == "moving" else self._most

    def scale(self, quant: FormatLike | Quant) -> np.float32:
        """Return the float32 scale of a tensor, what ``Quant(..., scale=)`` fixes.

        Raises
        ------
        NumsimError
            Where no tensor came, and for a `Quant` whose float32 scales are not the tensor's.

        Examples
        --------
        >>> seen = Calibration()
        >>> seen.update([-254.0])
        >>> seen.scale("int8")
        np.float32(2.0)
        """
        rule = as_quant(quant)
        if not rule.has_one_scale or (self.rule == "mse" and rule.above is not None):
            raise NumsimError(
                f"calibrate: {self.rule} finds one float32 scale of a tensor"
                f"{', with none below it' if self.rule == 'mse' else ''}; got {rule!r:.200}"
            )
        amax = np.asarray(self.amax(rule.fmt), np.float32)
        if rule.above is not None:
            return np.float32(scale_above(amax, rule, -1))
        return np.float32(scales_from_amax(amax, rule))

    def _least_error(self, fmt: FormatLike) -> float:
        f = get_format(fmt)
        used = np.flatnonzero(self._counts)
        middles = ((used << _SHIFT) + (1 << (_SHIFT - 1))).astype(np.uint32).view(np.float32)
        x, weight = np.minimum(middles.astype(np.float64), self._most), self._counts[used]
        best: tuple[float, float] = (math.inf, self._most)
        for threshold in self._most * np.geomspace(1.0, 2.0**-8, 256):
            s = threshold / f.max
            rest: NDArray[Any] = x - cast((x / s).astype(np.float32), f).astype(np.float64) * s
            best = min(best, (float(np.sum(weight * rest * rest)), float(threshold)))
        return best[1]
