"""The product checks itself (`numsim verify`): each check counts what it compared."""

from numsim.verify.conversion import (
    Check,
    check_every_float32,
    check_modes,
    formats_to_check,
)

__all__ = ["Check", "check_every_float32", "check_modes", "formats_to_check"]
