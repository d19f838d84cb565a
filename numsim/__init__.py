"""Bit-exact emulation of low-precision number formats and matrix-multiply hardware."""

from numsim.float_state import known_state

with known_state():  # tables are computed, and numbers of the source read, while modules load
    from numsim.convert import cast, decode, encode
    from numsim.errors import NumsimError, SkippedWarning, UnsupportedError, UnvalidatedWarning
    from numsim.formats import Format, get_format, list_formats
    from numsim.lfsr import lfsr
    from numsim.models import Model, Recipe, Rule, Run, load_model
    from numsim.quant import QTensor, Quant, quantize
    from numsim.sweep import SweepSpec, sweep
    from numsim.targets import (
        AccumulatorBits,
        MacStats,
        Target,
        accumulator_bits,
        epilogue,
        export_vectors,
        get_target,
        list_targets,
        matmul,
        requantize,
    )
    from numsim.version import __version__

__all__ = [
    "AccumulatorBits", "Format", "MacStats", "Model", "NumsimError", "QTensor", "Quant",
    "Recipe", "Rule", "Run", "SkippedWarning", "SweepSpec", "Target", "UnsupportedError",
    "UnvalidatedWarning", "__version__", "accumulator_bits", "cast", "decode", "encode", "epilogue",
    "export_vectors", "get_format", "get_target", "lfsr", "list_formats", "list_targets",
    "load_model", "matmul", "quantize", "requantize", "sweep",
]  # fmt: skip
