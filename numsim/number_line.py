"""A format's values as a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import Format, get_format


@known_floats
def draw_number_line(fmt: str | Format, path: str | Path) -> Path:
    """Draw every finite value of a format of at most 16 bits: linear, and magnitudes by exponent.

    Parameters
    ----------
    fmt
        Format or its name.
    path
        File to write; its ending names the type (``.png``, ``.svg``, ``.pdf``).

    Returns
    -------
    The path written.

    Raises
    ------
    NumsimError
        For a wider format, or an ending that is not an image type.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> draw_number_line("float4_e2m1fn", f"{folder}/fp4.png").name
    'fp4.png'
    """
    from matplotlib.figure import Figure

    f = get_format(fmt)
    if not isinstance(path, str | Path):
        raise NumsimError(f"number line: path is a str or Path; got {type(path).__name__}")
    path = Path(path)
    if f.bits > 16:
        raise NumsimError(f"number line: formats of at most 16 bits; {f.name} has {f.bits}")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise NumsimError(f"number line: the file ends in .png, .svg or .pdf; got {path.name!r}")
    values = f.values()
    values = np.unique(values[np.isfinite(values)])
    positive = values[values > 0]
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    line, scale = figure.subplots(2, 1)
    height = 0.8 if values.size <= 64 else 0.5
    line.vlines(values, 0, height, lw=0.8, color="#1f5fa8")
    line.set_title(
        f"{f.name}: {values.size} finite values, {f.min:.6g} to {f.max:.6g}", fontsize=10
    )
    scale.vlines(positive, 0, height, lw=0.8, color="#b4471f")
    scale.set_xscale("log", base=2)
    scale.set_xlabel("positive values, one power of two a step", fontsize=8)
    for axis in (line, scale):
        axis.set_ylim(0, 1)
        axis.set_yticks([])
        axis.tick_params(labelsize=8)
        for side in ("left", "right", "top"):
            axis.spines[side].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # a null character in the name
        why = getattr(error, "strerror", None) or error
        raise NumsimError(f"number line: cannot write {str(path)!r}: {why}") from None
    return path
