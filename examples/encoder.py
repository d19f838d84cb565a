"""An encoder: padded sentences, hidden states and a pooled vector; it has no logits.

The checkpoint is a tiny random BERT of the tests; `int8_vs_fp8.py` sweeps a real one.
"""

# %%
from pathlib import Path

import numpy as np

import numsim as ns

model = ns.load_model(Path(__file__).parents[1] / "tests" / "data" / "oracle" / "bert")
ids = np.array([[2, 7, 11, 13, 3, 0, 0], [2, 9, 8, 7, 6, 5, 3]])
mask = np.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
exact = model.run(ids, attention_mask=mask)
print(exact.logits.shape, exact.hidden_states[-1].shape, exact.pooled.shape)

# %% Mean of the kept states, and how far a format turns it.
for fmt in ("float8_e4m3fn", "int8", "int4"):
    recipe = ns.Recipe.uniform(ns.Quant(fmt, "per_token"), target="ideal.fp32")
    run = model.run(ids, recipe, attention_mask=mask)
    mean = [(r.hidden_states[-1] * mask[..., None]).sum(1) for r in (exact, run)]
    a, b = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in mean)
    print(f"{fmt:14} cosine of each sentence", (a * b).sum(1).round(5))

# %% Padding changes no bit of a sentence as long as no scale is shared between tokens.
alone = model.run(ids[0, :5], recipe).hidden_states[-1]
print("padding changes nothing:", np.array_equal(alone[0], run.hidden_states[-1][0, :5]))
