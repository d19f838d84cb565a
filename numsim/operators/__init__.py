"""Operators outside the matrix products, in low precision, and caches of keys and values."""

from numsim.operators.chains import residual, silu_gate, softmax
from numsim.operators.fixed_point import gemmlowp_exp, gemmlowp_logistic, gemmlowp_tanh
from numsim.operators.gpu import exp2_lut, exp2_poly, online_softmax
from numsim.operators.ibert import (
    ibert_exp,
    ibert_gelu,
    ibert_norm,
    ibert_softmax,
    ibert_sqrt,
)
from numsim.operators.kv import KVCache
from numsim.operators.kv_rules import KV
from numsim.operators.kv_spec import Spec, Stored
from numsim.operators.norms import layernorm, rmsnorm
from numsim.operators.positions import rotary, rotary_tables
from numsim.operators.rounded import elementwise
from numsim.operators.rules import Op
from numsim.operators.runtimes import ggml_gelu_f16, ort_qlinear_softmax
from numsim.operators.tflite import (
    tflite_logistic8,
    tflite_lut16,
    tflite_softmax_int8,
    tflite_softmax_int16,
    tflite_tanh8,
)
from numsim.operators.variants import Variant, approximate, list_variants

__all__ = [
    "KV",
    "KVCache",
    "Op",
    "Spec",
    "Stored",
    "Variant",
    "approximate",
    "elementwise",
    "exp2_lut",
    "exp2_poly",
    "gemmlowp_exp",
    "gemmlowp_logistic",
    "gemmlowp_tanh",
    "ggml_gelu_f16",
    "ibert_exp",
    "ibert_gelu",
    "ibert_norm",
    "ibert_softmax",
    "ibert_sqrt",
    "layernorm",
    "list_variants",
    "online_softmax",
    "ort_qlinear_softmax",
    "residual",
    "rmsnorm",
    "rotary",
    "rotary_tables",
    "silu_gate",
    "softmax",
    "tflite_logistic8",
    "tflite_lut16",
    "tflite_softmax_int8",
    "tflite_softmax_int16",
    "tflite_tanh8",
]  # fmt: skip
