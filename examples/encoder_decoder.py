"""An encoder-decoder: tokens on both sides, cross-attention, decoding from the start token.

The checkpoint is a tiny random T5 of the tests; any Hugging Face folder of the family does.
"""

# %%
from pathlib import Path

import numpy as np

import numsim as ns
from numsim.metrics import sqnr_db

model = ns.load_model(Path(__file__).parents[1] / "tests" / "data" / "oracle" / "t5")
source, target = np.arange(2, 12), [0, 5, 6, 7]
exact = model.run(source, decoder_tokens=target)
print(exact.logits.shape, len(exact.encoder_hidden_states), len(exact.hidden_states))

# %% One stack at a time in INT8: the names say which products belong to which.
rule = ns.Rule(ns.Quant("int8", "per_token"), ns.Quant("int8", "per_channel"), "ideal.int")
for glob in ("encoder.*_proj", "decoder.*.cross_*_proj", "decoder.*_proj", "*_proj"):
    recipe = ns.Recipe((("*", ns.Rule()), (glob, rule)))
    run = model.run(source, recipe, decoder_tokens=target)
    print(f"{glob:23} {sqnr_db(exact.logits, run.logits):5.1f} dB of the logits")

# %% What ran, product by product, the digest that names it, and a greedy answer.
print("\n".join(run.recipe.to_toml().splitlines()[:6]))
print(run.recipe.digest(), model.generate(source, recipe, max_new_tokens=5))
