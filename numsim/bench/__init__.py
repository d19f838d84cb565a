"""The product times itself against installed peers, as ratios of the same run (`numsim bench`)."""

from numsim.bench.cast import Timing, bench_cast
from numsim.bench.matmul import MatmulTiming, bench_matmul, print_matmul

__all__ = ["MatmulTiming", "Timing", "bench_cast", "bench_matmul", "print_matmul"]
