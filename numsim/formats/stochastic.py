"""Stochastic rounding as hardware documents it: how many random bits, added how, to what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from numsim.errors import NumsimError, near_names
from numsim.formats.lookup import get_format, table_name
from numsim.formats.types import Format
from numsim.vocabulary import Variant


@dataclass(frozen=True)
class Stochastic:
    """A unit's stochastic rounding.

    Parameters
    ----------
    name
        What ``encode(..., sr=name)`` takes.
    random_bits
        Random bits by format name; the formats the unit rounds to, and no others.
    variant
        Few-bit variant, as `encode` defines it.
    verified
        Whether recordings of the hardware confirm the rule.
    note
        What is known and what is assumed.
    source
        Where it is documented.
    """

    name: str
    random_bits: Mapping[str, int]
    variant: Variant
    verified: bool
    note: str
    source: str

    def bits_for(self, fmt: str | Format) -> int:
        """Return the random bits for a format.

        Raises
        ------
        NumsimError
            Where the unit does not round to that format.

        Examples
        --------
        >>> get_stochastic("amd.cvt_sr").bits_for("e5m2")
        21
        """
        f = get_format(fmt)
        name = table_name(f)
        if name not in self.random_bits:
            raise NumsimError(
                f"sr={self.name!r} rounds to {', '.join(self.random_bits)}; got {f.label}; "
                "choose one of them, or sr='truncate' with random_bits="
            )
        return self.random_bits[name]

    @property
    def formats(self) -> tuple[str, ...]:
        """Names of the formats the unit rounds to."""
        return tuple(self.random_bits)


_FP8 = ("float8_e4m3fn", "float8_e5m2")
_FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz")
_FP6 = ("float6_e2m3fn", "float6_e3m2fn")

_TABLE = [
    Stochastic(
        "nvidia.cvt.rs",
        {"float16": 13, "bfloat16": 16, **dict.fromkeys(_FP8 + _FP6, 16), "float4_e2m1fn": 8},
        "truncate", False,
        "away from zero when the sum of random and discarded bits carries; that discarded bits "
        "below the random ones are ignored is assumed, and so are independent bits where two "
        "outputs of x4 conversions share theirs",
        "PTX ISA 8.7, cvt.rs, operand rbits (sm_100a, sm_103a)",
    ),
    Stochastic(
        "amd.cvt_sr",
        {"float8_e4m3fn": 20, "float8_e4m3fnuz": 20, "float8_e5m2": 21, "float8_e5m2fnuz": 21},
        "truncate", False,
        "adds rnd[31:12] (FP8) or rnd[31:11] (BF8) to the float32 fraction and truncates: exact "
        "for normal results; for subnormal results the top 20 or 21 discarded bits are assumed",
        "AMD ISA V_CVT_SR_FP8_F32, V_CVT_SR_BF8_F32; Fasi, Filip, Mikaitis, arXiv 2603.06060",
    ),
    Stochastic(
        "graphcore.ipu", {"float16": 13, **dict.fromkeys(_FNUZ, 24)}, "truncate", False,
        "13 to 24 random bits are reported: 13 are all that float16 discards of float32, 24 for "
        "FP8 is assumed",
        "survey of Fasi, Filip, Mikaitis, arXiv 2603.06060; xoroshiro128aox paper",
    ),
    Stochastic(
        "aws.trainium", {"bfloat16": 16}, "truncate", False,
        "float32 to bfloat16 with all 16 discarded bits; the width is assumed",
        "AWS Neuron documentation, stochastic rounding of BF16",
    ),
]  # fmt: skip

STOCHASTIC: dict[str, Stochastic] = {s.name: s for s in _TABLE}


def get_stochastic(name: str) -> Stochastic:
    """Return the stochastic rounding of a piece of hardware.

    Raises
    ------
    NumsimError
        For an unknown name, with near names.

    Examples
    --------
    >>> get_stochastic("nvidia.cvt.rs").bits_for("float4_e2m1fn")
    8
    """
    if not isinstance(name, str) or name not in STOCHASTIC:
        near = near_names(str(name), STOCHASTIC)
        raise NumsimError(
            f"stochastic rounding of {', '.join(STOCHASTIC)} is known; got {name!r}{near}"
        )
    return STOCHASTIC[name]
