"""The layouts that quantisers write, one entry each.

Source
------
compressed-tensors 0.20 (``compressors/*``); transformers ``integrations/{finegrained_fp8,mxfp4,
fbgemm_fp8}.py``; auto-gptq 0.7 and GPTQModel (``qlinear``), AutoAWQ 0.2 (``WQLinear_GEMM``);
bitsandbytes ``functional.QuantState``; torchao ``Float8Tensor``; ModelOpt ``export``.
"""

from __future__ import annotations

from numsim.models.packed.types import Layout

LAYOUTS: dict[str, Layout] = {
    "whole": Layout(  # FP8 and INT8 of compressed-tensors, ModelOpt, FBGEMM and others
        ".weight", ".weight_scale", zero=".weight_zero_point", groups=".weight_g_idx",
        inputs=".input_scale", beside=(".weight_shape", ".input_zero_point", ".input_scale_ub"),
    ),
    "words": Layout(
        ".weight_packed", ".weight_scale", "dense", zero=".weight_zero_point",
        groups=".weight_g_idx", shape=".weight_shape", inputs=".input_scale",
    ),
    "two_level": Layout(
        ".weight_packed", ".weight_scale", "dense", above=".weight_global_scale",
        above_divides=True, inputs=".input_global_scale",
    ),
    "mx": Layout(".weight_packed", ".weight_scale", "dense"),
    "modelopt_two_level": Layout(
        ".weight", ".weight_scale", "dense", above=".weight_scale_2", inputs=".input_scale"
    ),
    "blocks": Layout(".weight", ".weight_scale_inv", inputs=".activation_scale"),
    "fbgemm_experts": Layout("", "_scale", weight="", turned=True),
    "mx_experts": Layout("_blocks", "_scales", "dense", weight=""),
    "gptq": Layout(
        ".qweight", ".scales", "dense", zero=".qzeros", zero_less=1, groups=".g_idx", turned=True
    ),
    "gptq_v2": Layout(
        ".qweight", ".scales", "dense", zero=".qzeros", groups=".g_idx", turned=True
    ),
    "awq": Layout(".qweight", ".scales", "awq", zero=".qzeros", turned=True),
    "bnb_int8": Layout(".weight", ".SCB", scale_is=127.0, beside=(".weight_format",)),
    "bnb_4bit": Layout(
        ".weight", ".weight.absmax", "high_first",
        beside=(
            ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map",
            ".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4",
        ),
    ),
    "torchao": Layout("._weight_qdata", "._weight_scale", zero="._weight_zero_point"),
}  # fmt: skip

# ends of the scales of keys and values: of the cache, not of a matrix
CACHE_ENDS = (
    ".k_scale", ".v_scale", ".q_scale", ".kv_scale", "k_proj.output_scale", "v_proj.output_scale",
)  # fmt: skip
