"""Numbers to codes and back: one generic rounding, and faster paths proven equal to it."""
