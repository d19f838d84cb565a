"""Bit-exact emulation of low-precision number formats and matrix-multiply hardware."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from numsim.float_state import known_state

with known_state():  # tables are computed, and numbers of the source read, while modules load
    from numsim import metrics
    from numsim.convert import cast, decode, encode
    from numsim.errors import (
        DamagedFileWarning,
        NumsimError,
        SkippedWarning,
        UnsupportedError,
        UnvalidatedWarning,
    )
    from numsim.formats import Format, get_format, list_formats
    from numsim.quant import DelayedScale, QTensor, Quant, quantize
    from numsim.shift_register import lfsr
    from numsim.targets import (
        AccumulatorBits,
        MacStats,
        Plan,
        Target,
        accumulator_bits,
        epilogue,
        export_vectors,
        get_target,
        list_targets,
        matmul,
        plan,
        requantize,
    )
    from numsim.version import __version__

if TYPE_CHECKING:
    from numsim.models import Model, Recipe, Rule, Run, bundled_model, list_recipes, load_model
    from numsim.operators import KV, Op
    from numsim.probe import Apart, Probe, ProbeError, probe, tell_apart
    from numsim.report import report
    from numsim.sweep import SweepSpec, sweep

_ON_FIRST_USE = {  # name -> module; pandas and pydantic load with them
    **dict.fromkeys(
        ("Model", "Recipe", "Rule", "Run", "bundled_model", "list_recipes", "load_model"),
        "numsim.models",
    ),
    **dict.fromkeys(("SweepSpec", "sweep"), "numsim.sweep"),
    **dict.fromkeys(("KV", "Op"), "numsim.operators"),
    "report": "numsim.report",
    **dict.fromkeys(("Apart", "Probe", "ProbeError", "probe", "tell_apart"), "numsim.probe"),
}

__all__ = [
    "KV",
    "AccumulatorBits",
    "Apart",
    "DamagedFileWarning",
    "DelayedScale",
    "Format",
    "MacStats",
    "Model",
    "NumsimError",
    "Op",
    "Plan",
    "Probe",
    "ProbeError",
    "QTensor",
    "Quant",
    "Recipe",
    "Rule",
    "Run",
    "SkippedWarning",
    "SweepSpec",
    "Target",
    "UnsupportedError",
    "UnvalidatedWarning",
    "__version__",
    "accumulator_bits",
    "bundled_model",
    "cast",
    "decode",
    "encode",
    "epilogue",
    "export_vectors",
    "get_format",
    "get_target",
    "lfsr",
    "list_formats",
    "list_recipes",
    "list_targets",
    "load_model",
    "matmul",
    "metrics",
    "plan",
    "probe",
    "quantize",
    "report",
    "requantize",
    "sweep",
    "tell_apart",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'numsim' has no attribute {name!r}")
    with known_state():
        found = import_module(_ON_FIRST_USE[name])
    # numsim.sweep and numsim.report are called themselves: `import numsim.sweep.columns` works too
    return globals().setdefault(name, getattr(found, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
