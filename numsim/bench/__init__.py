"""The product times itself against installed peers, as ratios of the same run (`numsim bench`)."""

from numsim.bench.cast import Timing, bench_cast
from numsim.bench.matmul import MatmulTiming, bench_matmul, print_matmul
from numsim.bench.model import ModelTiming, bench_model, print_model
from numsim.bench.train import TrainTiming, bench_train, print_train

__all__ = [
    "MatmulTiming", "ModelTiming", "Timing", "TrainTiming", "bench_cast", "bench_matmul",
    "bench_model", "bench_train", "print_matmul", "print_model", "print_train",
]  # fmt: skip
