"""Matrix-multiply units as data, and the one dispatch to their kernels."""

from numsim.targets.advisor import AccumulatorBits, accumulator_bits
from numsim.targets.epilogue import epilogue, requantize
from numsim.targets.ops import matmul
from numsim.targets.plan import Plan, plan, rule_for
from numsim.targets.stats import MacStats
from numsim.targets.table import get_target, list_targets
from numsim.targets.types import Target
from numsim.targets.vectors import export_vectors

__all__ = [
    "AccumulatorBits", "MacStats", "Plan", "Target", "accumulator_bits", "epilogue",
    "export_vectors", "get_target", "list_targets", "matmul", "plan", "requantize", "rule_for",
]  # fmt: skip
