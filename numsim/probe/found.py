"""What a probe found, and the error of one that could not go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.targets import Target


@known_floats
@dataclass(frozen=True)
class Witness:
    """Why a field has its value: a stimulus on which another value gives another result.

    `stimulus` is its batch and row, `answer` the machine's bits, `instead` what `other` gives.
    """

    field: str
    other: str
    stimulus: str
    answer: str
    instead: str


@known_floats
@dataclass(frozen=True, eq=False)
class Probe:
    """What a probe found out.

    Parameters
    ----------
    target
        The unit whose answers are the machine's, or come nearest; None where nothing was learned.
    evidence
        Field -> the stimuli that decided it.
    undecided
        Field -> what else it may be, and why no stimulus can tell.
    failed
        The question that no rule of numsim answers as the machine does, or the error that stopped
        the probe; "" where neither is.
    right, asked
        How many answers of `target` are the machine's, of how many.
    nearest
        Units of the table by the share of the machine's answers that they give.
    calls
        How often the machine was called.
    tried
        Rules that were tried.
    vectors
        What was recorded: arrays ``BATCH_a``, ``BATCH_b`` [S, K] of codes, ``BATCH_c``,
        ``BATCH_d`` [S]; of block scales ``BATCH_sa``, ``BATCH_sb`` [S, K / block].
    """

    target: Target | None
    evidence: Mapping[str, tuple[Witness, ...]]
    undecided: Mapping[str, str]
    failed: str
    right: int
    asked: int
    nearest: tuple[tuple[str, float], ...]
    calls: int
    tried: int
    vectors: Mapping[str, NDArray[Any]] = field(repr=False)

    def __str__(self) -> str:
        from numsim.probe.words import as_text

        return as_text(self)

    def to_toml(self) -> str:
        """Return the unit as TOML, with what decided each field, and what is open, as comments."""
        from numsim.probe.words import as_toml

        return as_toml(self)


class ProbeError(NumsimError):
    """A probe that could not go on; `probe` is what was learned until then."""

    def __init__(self, message: str, probe: Probe) -> None:
        super().__init__(message)
        self.probe = probe
