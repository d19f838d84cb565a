"""Four kinds of network through one set of blocks: decoder, experts, encoder, encoder-decoder.

The checkpoints are the tiny random ones of the tests; any Hugging Face folder of the same
families does.
"""

# %%
from pathlib import Path

import numpy as np

import numsim as ns
from numsim.models import Past

TINY = Path(__file__).parents[1] / "tests" / "data" / "oracle"
recipe = ns.Recipe.uniform(ns.Quant("e4m3", "per_token"), target="nvidia.hopper.wgmma")

# %% A decoder: token by token, keys and values kept, the bits of one run over everything.
model = ns.load_model(TINY / "qwen3")
ids = np.arange(8)
past = Past()
steps = [model.run(ids[i : i + 1], recipe, past=past).logits for i in range(8)]
same = np.array_equal(np.concatenate(steps, axis=1), model.run(ids, recipe).logits)
print(f"{model.arch.family}: decoding equals prefill: {same}")
print(model.generate(ids, recipe, max_new_tokens=4))

# %% Experts: which tokens each of them got, and the error of its output.
model = ns.load_model(TINY / "deepseek_v3")
run = model.run(ids, recipe, taps=["layers.1.experts.*.rows", "layers.1.mlp.out"])
for name, tokens in run.taps.items():
    if name.endswith(".rows"):
        print(name, tokens)

# %% An encoder has no logits, an encoder-decoder wants tokens on both sides.
encoder = ns.load_model(TINY / "bert").run(ids, recipe)
print("bert", encoder.logits.shape, encoder.hidden_states[-1].shape)
both = ns.load_model(TINY / "t5").run(ids, recipe, decoder_tokens=[0, 5, 6])
print("t5", both.logits.shape)

# %% What ran, product by product, and the digest that names it.
print(both.recipe.digest())
print("\n".join(both.recipe.to_toml().splitlines()[:5]))
