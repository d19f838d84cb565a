"""The product times itself against installed peers, as ratios of the same run (`numsim bench`)."""

from numsim.bench.cast import Timing, bench_cast

__all__ = ["Timing", "bench_cast"]
