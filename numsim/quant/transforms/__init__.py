"""Steps before and around quantisation that keep outliers from setting every scale.

Each is a function of arrays and composes with any `Quant`: what it returns is quantised as usual.
"""

from numsim.quant.transforms.awq import Awq, awq, clip_search
from numsim.quant.transforms.bias import bias_correction
from numsim.quant.transforms.gptq import gptq
from numsim.quant.transforms.hadamard import hadamard, hadamard_order, rotate
from numsim.quant.transforms.llm_int8 import LlmInt8, llm_int8
from numsim.quant.transforms.smooth import smooth

__all__ = [
    "Awq", "LlmInt8", "awq", "bias_correction", "clip_search", "gptq", "hadamard",
    "hadamard_order", "llm_int8", "rotate", "smooth",
]  # fmt: skip
