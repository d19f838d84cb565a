"""The words of compressed-tensors for what a `Quant` says, as `compressed` reads them back."""

from __future__ import annotations

from typing import Any

from numsim.errors import UnsupportedError
from numsim.models.packed.compressed import FLOATS
from numsim.quant import Quant

BITS = {name: bits for bits, name in FLOATS.items()}


def format_word(quant: Quant) -> str:
    """Return the name of a way of storage.

    Raises
    ------
    UnsupportedError
        compressed-tensors has no words for it.
    """
    name, scales, block = quant.fmt.name, quant.scale_format, quant.block
    integer = quant.fmt.kind == "integer" and quant.fmt.signed and not quant.fmt.bias
    plain = scales in ("float32", "bfloat16", "pow2")
    if name == "float8_e4m3fn" and plain:
        return "float-quantized"
    if integer and plain and 2 <= quant.fmt.bits <= 8 and quant.scale is None:
        tile = isinstance(block, tuple)
        if quant.fmt.bits == 8 or tile:
            return "int-quantized"
        return "pack-quantized"
    mx = {"float8_e4m3fn": "mxfp8-quantized", "float6_e2m3fn": "mxfp6-pack-quantized"}
    mx["float4_e2m1fn"] = "mxfp4-pack-quantized"
    if scales == "float8_e8m0fnu" and block == 32 and name in mx:
        return mx[name]
    usual = quant.above == "per_tensor" and quant.scale_rule != "if4"  # of two formats
    if (name, scales, block) == ("float4_e2m1fn", "float8_e4m3fn", 16) and usual:
        return "nvfp4-pack-quantized"
    raise UnsupportedError(
        "compressed-tensors stores int2 to int8, float8_e4m3fn, float6_e2m3fn and float4_e2m1fn "
        "with blocks of 32 and E8M0 scales, and NVFP4 with one scale a tensor above them; got "
        f"{quant.fmt.label} {quant.granularity}, block={block}, scale_format={scales!r}, "
        f"scale_rule={quant.scale_rule!r}, tensor_scale={quant.above!r}"
    )


def _number_args(quant: Quant) -> dict[str, Any]:
    integer = quant.fmt.kind == "integer"
    bits = quant.fmt.bits if integer else BITS[quant.fmt.name]
    args = {"num_bits": bits, "type": "int" if integer else "float"}
    return args | {"symmetric": not quant.zero_point}


def weight_args(quant: Quant) -> dict[str, Any]:
    """Return the table of stored weights.

    Raises
    ------
    UnsupportedError
        compressed-tensors has no words for it.
    """
    args = _number_args(quant) | {"dynamic": False}
    if quant.block is None:
        word = {"per_tensor": "tensor", "per_channel": "channel", "per_token": "channel"}
        if quant.granularity not in word:
            raise UnsupportedError(
                f"compressed-tensors stores a scale; got granularity {quant.granularity!r}; use "
                "per_channel"
            )
        args |= {"strategy": word[str(quant.granularity)]}
    elif isinstance(quant.block, tuple):
        args |= {"strategy": "block", "block_structure": list(quant.block)}
    else:
        args |= {"strategy": "group", "group_size": quant.block}
    return args | _scale_args(quant)


def _scale_args(quant: Quant) -> dict[str, Any]:
    if quant.scale_format == "float8_e8m0fnu":
        return {"scale_dtype": "torch.uint8"}
    if quant.scale_format == "float8_e4m3fn":
        return {"scale_dtype": "torch.float8_e4m3fn", "strategy": "tensor_group"}
    return {}


def input_args(quant: Quant) -> dict[str, Any]:
    """Return the table of activations; `compressed_tensors` reads the same `Quant` back.

    Raises
    ------
    UnsupportedError
        compressed-tensors has no words for it.
    """
    integer = quant.fmt.kind == "integer" and quant.fmt.signed and not quant.fmt.bias
    known = quant.fmt.name in BITS or (integer and 2 <= quant.fmt.bits <= 8)
    plain = quant.scale_format == "float32" and quant.scale_rule == "amax"
    mx = quant.scale_format == "float8_e8m0fnu" and quant.scale_rule == "even"
    two = quant.scale_format == "float8_e4m3fn" and quant.block == 16
    two = two and quant.above == "per_tensor" and quant.scale_rule == "amax"
    usual = quant.rounding == "rne" and quant.overflow == "saturate"
    if known and usual:
        args = _number_args(quant) | _scale_args(quant)
        static = quant.scale is not None
        if isinstance(quant.block, int) and (plain or mx):
            return args | {"strategy": "group", "group_size": quant.block, "dynamic": True}
        if two:
            return args | {"group_size": 16, "dynamic": "local" if static else True}
        if plain and quant.granularity in ("per_token", "per_channel"):
            return args | {"strategy": "token", "dynamic": True}
        if plain and quant.granularity == "per_tensor":
            return args | {"strategy": "tensor", "dynamic": not static}
    raise UnsupportedError(
        "compressed-tensors rounds activations to int2 to int8 or float8_e4m3fn by tensor, token "
        "or group, to MX by the scale rule 'even', or to NVFP4, to nearest even and saturating; "
        f"got {quant}"
    )
