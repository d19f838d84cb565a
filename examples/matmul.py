"""One dot product on four machines: the same codes, four sums."""

# %%
import numpy as np

import numsim as ns

rng = np.random.default_rng(0)
a = ns.quantize(rng.random((1, 4096), np.float32), "float8_e4m3fn")
b = ns.quantize(rng.random((4096, 1), np.float32), "float8_e4m3fn")
exact = float(ns.matmul(a, b, target="ideal.exact")[0, 0])
for target in ("ideal.exact", "ideal.fp32", "nvidia.hopper.wgmma"):
    d = float(ns.matmul(a, b, target=target)[0, 0])
    print(f"{target:22} {d:12.5f}   relative error {d / exact - 1:+.2e}")

# %% An accumulator that is too narrow
q = ns.quantize(rng.standard_normal((1, 4096)), "int8")
for bits in (32, 20, 16):
    for overflow in ("wrap", "saturate"):
        unit = ns.get_target("ideal.int", acc_bits=bits, overflow=overflow)
        print(f"{bits} bits, {overflow:8}", ns.matmul(q, q.T, target=unit)[0, 0])
