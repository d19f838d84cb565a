"""Named storage rules: one line each, accepted wherever a Quant is."""

from __future__ import annotations

from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import Format, get_format, list_formats
from numsim.quant.types import Quant

_MX = {"block": 32, "scale_format": "float8_e8m0fnu", "scale_rule": "floor"}

QUANTS: dict[str, Quant] = {
    "mxfp8_e4m3": Quant("float8_e4m3fn", **_MX),  # type: ignore[arg-type]
    "mxfp8_e5m2": Quant("float8_e5m2", **_MX),  # type: ignore[arg-type]
    "mxfp6_e2m3": Quant("float6_e2m3fn", **_MX),  # type: ignore[arg-type]
    "mxfp6_e3m2": Quant("float6_e3m2fn", **_MX),  # type: ignore[arg-type]
    "mxfp4_e2m1": Quant("float4_e2m1fn", **_MX),  # type: ignore[arg-type]
    "mxint8": Quant("q1.6", **_MX),  # type: ignore[arg-type]  # 8 bits with an implied 2**-6
    "nvfp4": Quant("float4_e2m1fn", block=16, scale_format="float8_e4m3fn"),
}

_OCP = "OCP Microscaling Formats (MX) 1.0, table 1; scale: section 6.3"
_NVIDIA = "NVIDIA cuBLAS, block scaling with scale mode VEC16_UE4M3"
SOURCES: dict[str, str] = {name: _NVIDIA if name == "nvfp4" else _OCP for name in QUANTS}


@known_floats
def as_quant(quant: str | Format | Quant) -> Quant:
    """Return a `Quant`: itself, a named one (``mxfp4_e2m1``), or the default of a format.

    Raises
    ------
    NumsimError
        For a name that is neither, with near names.

    Examples
    --------
    >>> as_quant("int8").granularity
    'per_tensor'
    >>> as_quant("nvfp4").block
    16
    """
    if isinstance(quant, Quant):
        return quant
    if isinstance(quant, str) and quant in QUANTS:
        return QUANTS[quant]
    try:
        return Quant(get_format(quant))
    except NumsimError:
        if isinstance(quant, str) and near_names(quant, QUANTS):
            near = near_names(quant, [*QUANTS, *list_formats()])
            raise NumsimError(f"unknown storage rule or format {quant!r}{near}") from None
        raise
