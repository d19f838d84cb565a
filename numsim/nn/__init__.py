"""Trainable layers: frozen data, pure functions, no tensor class; numsim.train trains them."""

from numsim.nn.draws import hadamard
from numsim.nn.layers import (
    GRU,
    LSTM,
    Activation,
    Attention,
    Conv1d,
    Conv2d,
    Embedding,
    Flatten,
    Last,
    LayerNorm,
    Linear,
    Mean,
    RMSNorm,
    Sequential,
    param_shapes,
    pointwise_names,
    product_names,
)
from numsim.nn.losses import loss
from numsim.nn.network import Network, from_model
from numsim.nn.run import backward, forward
from numsim.nn.start import init
from numsim.nn.tape import Tape

__all__ = [
    "GRU", "LSTM", "Activation", "Attention", "Conv1d", "Conv2d", "Embedding", "Flatten", "Last",
    "LayerNorm", "Linear", "Mean", "Network", "RMSNorm", "Sequential", "Tape", "backward",
    "forward", "from_model", "hadamard", "init", "loss", "param_shapes",
    "pointwise_names", "product_names",
]  # fmt: skip
