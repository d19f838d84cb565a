"""Matrix-multiply units as data, and the one dispatch to their kernels."""

from numsim.targets.epilogue import epilogue, requantize
from numsim.targets.ops import matmul, rule_for
from numsim.targets.table import get_target, list_targets
from numsim.targets.types import Target

__all__ = [
    "Target", "epilogue", "get_target", "list_targets", "matmul", "requantize", "rule_for",
]  # fmt: skip
