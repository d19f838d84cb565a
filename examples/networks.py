"""A vision and two speech networks of torch, by number format: reports/networks/report.md.

    python examples/networks.py [reports/networks/report.md]

Needs torch and the wheels that examples/torch_bridge.py names, in NUMSIM_TORCH_DATA.
"""

# %%
import runpy
import sys
from pathlib import Path

OUT = Path(__file__).parents[1] / "reports" / "networks" / "report.md"
RECIPES = ("float32", "mxfp8", "fp8_hybrid", "int8", "nvfp4")
SEEN = 4000  # digits to train on; the other thousand are scored


# %% What is measured of each network, under one recipe
def digits(bridge, torch, example, recipe, made={}):  # noqa: B006 - trained once
    """Return the SQNR of the logits in dB, and how many of the unseen digits are read."""
    if not made:
        torch.manual_seed(0)
        made["images"], made["labels"] = example["load_mnist"]()
        made["net"] = net = example["cnn"]()
        opt = torch.optim.Adam(net.parameters(), lr=2e-3)
        for step in range(240):
            at = step * 50 % SEEN
            images, labels = (made[name][at : at + 50] for name in ("images", "labels"))
            opt.zero_grad()
            torch.nn.functional.cross_entropy(net(images), labels).backward()
            opt.step()
        net.eval()
    images, labels = made["images"][SEEN:], made["labels"][SEEN:]
    with torch.no_grad():
        high = made["net"](images)
        low = bridge.emulate(made["net"], recipe)(images)
        bridge.restore(made["net"])
    right = float((low.argmax(1) == labels).double().mean())
    return example["noise_db"](low, high), f"{right:.1%} of 1,000 unseen digits"


def speaker(bridge, torch, example, recipe):
    """Return the SQNR of speakers' vectors in dB, and their smallest cosine to torch's."""
    generator = torch.Generator().manual_seed(0)
    mels = torch.rand(8, 80, 40, generator=generator) ** 4
    net = example["load_speaker_encoder"]()
    with torch.no_grad():
        high = net(mels)
        low = bridge.emulate(net, recipe)(mels)
    cosine = float(torch.nn.functional.cosine_similarity(low, high).min())
    return example["noise_db"](low, high), f"cosine at least {cosine:.4f}"


def voice(bridge, torch, example, recipe):
    """Return the SQNR of the state of a voice detector in dB, and how far a probability moves."""
    generator = torch.Generator().manual_seed(0)
    samples = 0.1 * torch.randn(64, 576, generator=generator)
    net = example["load_voice_activity"]()
    with torch.no_grad():
        high, (state, _) = net(samples)
        low, (moved, _) = bridge.emulate(net, recipe)(samples)
    most = float((low - high).abs().max())
    return example["noise_db"](moved, state), f"probabilities within {most:.4f}"


NETWORKS = {
    "Digits: two convolutions and a linear layer, trained in float32 on 4,000 of MNIST": digits,
    "Speech: the speaker encoder of Resemblyzer, three LSTM and a linear layer": speaker,
    "Speech: the voice detector of Silero, five convolutions and an LSTM cell": voice,
}


# %%
def main():
    example = runpy.run_path(str(Path(__file__).with_name("torch_bridge.py")))
    missing = [str(example[name]) for name in ("MNIST", "SPEAKER", "VOICE")
               if not example[name].exists()]  # fmt: skip
    if missing:
        print(f"left out, without {', '.join(missing)}: see examples/torch_bridge.py")
        return
    import torch

    import numsim.torch as bridge

    lines = [
        "# A vision and two speech networks, by number format", "",
        "Networks of torch, whose products `numsim.torch` computes; weights and activations of "
        "every layer are stored in the format. SQNR in dB against torch in float32; the speech "
        "networks hear noise, so their figures are of error, not of recognition. `mxfp8` chooses "
        "scales by floor, as OCP MX 1.0 does: the largest values of a block may saturate. Made by "
        "`python examples/networks.py`.",
    ]  # fmt: skip
    for title, measure in NETWORKS.items():
        lines += ["", f"## {title}", "", "| format | SQNR, dB | |", "| --- | ---: | --- |"]
        for recipe in RECIPES:
            decibels, words = measure(bridge, torch, example, recipe)
            lines.append(f"| `{recipe}` | {decibels:.1f} | {words} |")
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n")
    print(out)


if __name__ == "__main__":
    main()
