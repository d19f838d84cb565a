"""Write what transformers computes in float64 into a folder of `families` or `twins`.

    pip install -e '.[peers]'
    python tests/data/make_family.py tests/data/families/FAMILY

The folder holds `config_v4.json`, a published config.json with small sizes, in the spelling that
checkpoints on the hub have (`rope_theta`, `rope_scaling`, `torch_dtype`). This adds `config.json`,
the same as transformers 5 spells it; `model.safetensors`, random float32; and `oracle.npz`:

    input_ids [2, 13]; of encoders and encoder-decoders attention_mask, of these decoder_input_ids
    logits, or last_hidden_state (and pooler_output) of a class without a head
    hidden_states [layers + 1, 2, 13, hidden], or encoder_hidden_states and decoder_hidden_states
    greedy_ids [8]: what a decoder adds to row 0

A family that transformers does not have needs the same files, computed by NumPy in float64.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
VALUES = ("logits", "last_hidden_state", "pooler_output")


def redrawn(model, seed):
    """Draw all parameters anew: the default initialisation would hide most mistakes."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, p in model.state_dict().items():
        noise = torch.randn(p.shape, generator=generator) if p.is_floating_point() else None
        if noise is None or "inv_freq" in name:
            continue
        if "norm" in name.lower() or ".ln_" in name:
            centre = 0.0 if "Gemma" in type(model).__name__ or "bias" in name else 1.0
            p.copy_(centre + 0.3 * noise)
        else:
            p.copy_(noise * (0.3 if p.ndim < 2 else p.shape[-1] ** -0.5))
    return model


def inputs_of(config, decoder):
    """Return ids, of all but decoders padded at the end of row 1."""
    ids = np.random.default_rng(0).integers(4, config.vocab_size, (2, 13))
    if decoder:
        return {"input_ids": ids}
    keep = np.ones(ids.shape, np.int64)
    keep[1, -4:] = 0
    given = {"input_ids": np.where(keep, ids, config.pad_token_id), "attention_mask": keep}
    return given | ({"decoder_input_ids": ids[:, :7]} if config.is_encoder_decoder else {})


def make(folder):
    """Write the files of a folder that holds config_v4.json."""
    import torch

    with torch.no_grad():
        write(folder)


def write(folder):
    import torch
    import transformers

    spelt = json.loads((folder / "config_v4.json").read_text())
    kind = getattr(transformers, spelt["architectures"][0])
    config = kind.config_class.from_dict(spelt)
    config._attn_implementation = config._experts_implementation = "eager"
    model = redrawn(kind(config).eval(), 0)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model.double()

    def run(given):
        tensors = {name: torch.tensor(array) for name, array in given.items()}
        return model(**tensors, output_hidden_states=True)

    decoder = kind.__name__.endswith(("ForCausalLM", "LMHeadModel"))
    given = inputs_of(config, decoder)
    found = run(given)
    oracle = {name: found[name].numpy() for name in VALUES if found.get(name) is not None}
    oracle |= {name: torch.stack(found[name]).numpy() for name in STATES if found.get(name)}
    oracle = {name: array.astype(np.float32) for name, array in oracle.items()}
    if decoder:
        ids = given["input_ids"][:1]
        for _ in range(8):
            last = run({"input_ids": ids}).logits[:, -1:].argmax(-1).numpy()
            ids = np.concatenate([ids, last], axis=1)
        oracle["greedy_ids"] = ids[0, -8:]
    np.savez_compressed(folder / "oracle.npz", **given, **oracle)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        make(Path(name))
