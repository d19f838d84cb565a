"""Which kernel converts what: `encode` and `decode` choose a worker, `workers` walk over an array.

A worker takes (block, out, start, random): a contiguous native block of the input, the slice of
the output it fills, the position of its first element, and supplied random integers. It returns
(how many NaNs the format refused, position of the first). Blocks of an array that is contiguous
and of the right type are views; of any other array, small copies.
"""

from numsim.dispatch.decode import decode_array, float_codes
from numsim.dispatch.encode import encode_array, encode_by_amax, encode_quotients
from numsim.dispatch.exact import draw
from numsim.dispatch.workers import Plan

__all__ = [
    "Plan", "decode_array", "draw", "encode_array", "encode_by_amax", "encode_quotients",
    "float_codes",
]  # fmt: skip
