"""Where and why two units, or two recipes, part on one network."""

from numsim.diff.compute import ULPS, Cause, Depth, Diff, Product, diff
from numsim.diff.write import as_text, write_diff

__all__ = ["ULPS", "Cause", "Depth", "Diff", "Product", "as_text", "diff", "write_diff"]
