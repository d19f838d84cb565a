"""Number formats as data: what each code means."""

from numsim.formats.table import get_format, list_formats
from numsim.formats.types import Format, Params

__all__ = ["Format", "Params", "get_format", "list_formats"]
