"""The product checks itself (`numsim verify`): each check counts what it compared."""

from numsim.verify.conversion import (
    Check,
    check_every_float32,
    check_modes,
    checkable,
    formats_to_check,
)
from numsim.verify.silicon import SiliconRow, check_silicon, golden_folder

__all__ = [
    "Check", "SiliconRow", "check_every_float32", "check_modes", "check_silicon",
    "checkable", "formats_to_check", "golden_folder",
]  # fmt: skip
