"""Packed checkpoints against what the libraries that write them decode; see the data's README."""

import pathlib

import numpy as np
import pytest

from numsim.models import load_model

DATA = pathlib.Path(__file__).parents[2] / "data" / "packed"
KINDS = sorted(path.name for path in DATA.iterdir() if path.is_dir())


def oracle(kind):
    with np.load(DATA / kind / "oracle.npz") as stored:
        return {name: stored[name] for name in stored.files}


def each(found, what):
    return [(key.partition(":")[2], v) for key, v in found.items() if key.startswith(f"{what}:")]


def gap(got, want):
    return np.max(np.abs(np.asarray(got, np.float64) - want)) / np.max(np.abs(want))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_scales_and_numbers_are_those_of_the_library_that_wrote_them(kind):
    model, found = load_model(DATA / kind), oracle(kind)
    for name, want in each(found, "codes"):
        assert np.array_equal(model.tensors[name].codes.astype(np.int16), want.astype(np.int16))
    for name, want in each(found, "weight"):  # a product of two scales may round once more
        if kind == "gpt_oss_mxfp4" and name.endswith("down_proj"):
            want = want.swapaxes(-1, -2)  # as transformers' own parameter: [experts, in, out]
        assert gap(model.tensors[name].dequantize(), want) <= 3e-7
    for name, want in each(found, "rows"):
        numbers = model.tensors[name].dequantize().astype(np.float64)
        assert gap(numbers @ np.cos(np.arange(numbers.shape[-1])), want) <= 1e-6
        cols = np.einsum("o,...oi->...i", np.cos(np.arange(numbers.shape[-2])), numbers)
        assert gap(cols, found[f"cols:{name}"]) <= 1e-6
    assert {n for n, _ in each(found, "rows")} == {p.name for p, _ in model.tensors.packed.values()}
    for name, want in each(found, "scale"):
        q = model.tensors[name]
        scale = q.scale * (np.float32(1) if q.tensor_scale is None else q.tensor_scale)
        if f"g_idx:{name}" in found and scale.shape == q.shape:  # a scale a column
            want = want[:, found[f"g_idx:{name}"]]
        elif scale.shape == q.shape:
            continue  # in scattered groups, or blocks of 64 across rows
        assert gap(scale.reshape(want.shape), want) <= 2e-7
    for name, want in each(found, "zero"):
        zero = model.tensors[name].zero_point
        if zero.shape == model.tensors[name].shape:
            want = want[:, found[f"g_idx:{name}"]]
        assert np.array_equal(zero, want.reshape(zero.shape))


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_network_gives_the_logits_of_its_dequantised_weights(kind):
    model, found = load_model(DATA / kind), oracle(kind)
    logits = model.run(found["input_ids"]).logits
    assert np.max(np.abs(logits - found["logits"])) <= 2e-5 * max(1, np.max(np.abs(logits)))
    ids = model.generate(found["input_ids"][0], max_new_tokens=len(found["greedy_ids"]))
    assert list(ids[-len(found["greedy_ids"]) :]) == list(found["greedy_ids"])
    plain = load_model(DATA / kind, dequantise=True)
    assert all(isinstance(plain.tensors[name], np.ndarray) for name in plain.tensors)
    assert np.array_equal(plain.run(found["input_ids"]).logits, logits)


@pytest.mark.parametrize("kind", KINDS)
def test_the_declared_recipe_rounds_activations_as_the_checkpoint_says(kind):
    model, found = load_model(DATA / kind), oracle(kind)
    recipe = model.recipe()
    if "logits_recipe" not in found:
        assert recipe is None
        return
    logits = model.run(found["input_ids"], recipe).logits
    assert np.max(np.abs(logits - found["logits_recipe"])) <= 2e-4  # a flipped code is 0.05
