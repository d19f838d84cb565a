"""What 8 bits can hold: the same numbers in five formats, and what happens at the edge."""

# %%
import numpy as np

import numsim as ns

x = np.array([0.001, 0.1, 1 / 3, 3.14159, 100.0, 465.0, 1e6])
for name in ("float8_e4m3fn", "float8_e5m2", "int8", "q3.4", "posit8_es2"):
    print(f"{name:14}", ns.cast(x, name))

# %% Overflow is a choice of the conversion, not of the format
for overflow in ("saturate", "special"):
    print(f"465 as E4M3, {overflow:8}:", ns.cast(465.0, "e4m3", overflow=overflow))

# %% Stochastic rounding: the average of many draws is the number itself
draws = ns.cast(np.full(100_000, 0.3), "float4_e2m1fn", rounding="sr", seed=1)
print("0.3 in FP4, nearest:", ns.cast(0.3, "float4_e2m1fn"), " mean of draws:", draws.mean())
