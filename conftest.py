"""What pytest leaves out where an extra is not installed."""

try:
    from torch import Tensor  # noqa: F401
except ImportError:
    collect_ignore = ["numsim/torch"]
