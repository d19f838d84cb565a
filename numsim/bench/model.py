"""A whole Llama on Hopper's FP8 unit, and on others: seconds, share of products, peak memory.

Each network runs in a process of its own: its peak memory is its own, and it starts with as many
threads as it may use.
"""

from __future__ import annotations

import cProfile
import importlib
import importlib.util
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from numsim.bench.matmul import LARGE, operand, rate_of
from numsim.errors import NumsimError
from numsim.models import Model, Recipe, Rule, load_model
from numsim.models.arch import Arch
from numsim.models.config import read_arch
from numsim.models.families import get_family
from numsim.models.places import find_place
from numsim.models.products import tensor_shapes
from numsim.models.weights import wide
from numsim.targets import matmul
from numsim.terminal import columns, say, width

UNIT, FORMAT = "nvidia.hopper.wgmma", "float8_e4m3fn"
RECIPES = {  # by the library that is shown: storage of both operands, and the unit
    "numsim": (FORMAT, UNIT),
    "numsim INT8": ("int8", "ideal.int"),
    "numsim MXFP8": ("mxfp8_e4m3", "nvidia.blackwell.tcgen05"),
    "numsim NVFP4": ("nvfp4", "nvidia.blackwell.tcgen05"),
}


@dataclass(frozen=True)
class Size:
    """A Llama of random float16 weights with tied embeddings, and how it is run."""

    task: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int
    tokens: int
    threads: int
    repeats: int


SIZES = (
    Size("Llama of 110 M", 12, 768, 12, 2048, 32_000, tokens=256, threads=1, repeats=5),
    Size("block of Llama-2-7B", 1, 4096, 32, 11_008, 32, tokens=256, threads=1, repeats=3),
)


@dataclass(frozen=True)
class ModelTiming:
    """One network in one library.

    Parameters
    ----------
    task, library
        What runs, and what runs it.
    threads
        Threads it may use.
    first
        Seconds of loading the folder and of the first run, in which weights are quantised and
        packed.
    seconds
        Seconds of a later run, median of the repetitions.
    rate
        Billion multiply-accumulates a second of such a run, those of attention included.
    outside
        Share of a run that is not spent in calls of `numsim.targets.matmul`. A call packs the left
        operand (and keys and values), multiplies, and applies the scales. Outside are the
        quantisation of activations, keys and values, norms, rotary positions, softmax, activation
        functions, the embedding, the residual stream, and Python. NaN for other libraries.
    of_products
        Seconds divided by those that its multiply-accumulates take at the rate of ``bench matmul``
        (512 x 512 x 2048 in the same formats on the same unit), timed between the runs. NaN for
        other libraries.
    peak_bytes
        Largest resident memory of the process: the interpreter with its libraries, mapped files
        and everything else.
    of_weights
        `peak_bytes` divided by the bytes of the weights in float16.
    """

    task: str
    library: str
    threads: int
    first: float
    seconds: float
    rate: float
    outside: float
    of_products: float
    peak_bytes: int
    of_weights: float


def bench_model(sizes: tuple[Size, ...] = SIZES, *, peers: bool = True) -> list[ModelTiming]:
    """Run networks with every product in one format on one unit.

    ``numsim``: E4M3 with one scale a tensor on ``nvidia.hopper.wgmma``; INT8 on ``ideal.int``;
    MXFP8 (E4M3) and NVFP4 on ``nvidia.blackwell.tcgen05``.

    Parameters
    ----------
    sizes
        The networks.
    peers
        Run torch's float32 forward beside them, where it is installed.

    Returns
    -------
    For each network a `ModelTiming`, and one of each peer.

    Raises
    ------
    NumsimError
        A size that is no network.

    Examples
    --------
    >>> toy = Size("toy", 1, 32, 2, 64, 64, tokens=8, threads=1, repeats=1)
    >>> bench_model((toy,), peers=False)[0].library
    'numsim'
    """
    libraries = [*RECIPES]
    if peers and importlib.util.find_spec("torch") is not None:
        libraries.append("torch float32")
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="numsim") as folder:
            write_llama(Path(folder), size)
            rows += [_in_a_process(folder, size, library) for library in libraries]
    return rows


def write_llama(folder: Path, size: Size) -> Arch:
    """Write ``config.json`` and random float16 weights; return the network they make."""
    config = {
        "model_type": "llama", "num_hidden_layers": size.layers, "hidden_size": size.hidden,
        "num_attention_heads": size.heads, "intermediate_size": size.intermediate,
        "vocab_size": size.vocab, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    family = get_family("llama")
    arch = read_arch(config, family)
    rng = np.random.default_rng(0)
    tensors = {}
    shapes = tensor_shapes(arch)
    for name, shape in shapes.items():
        if len(shape) == 1:
            values = np.ones(shape, np.float16)
        else:
            values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        stored = find_place(name, family.names, family.prefixes[0], shapes, arch).name
        tensors[stored] = values.astype(np.float16)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return arch


def run_llama(folder: Path, size: Size, library: str) -> ModelTiming:
    """Run a written network in this process."""
    tokens = np.random.default_rng(1).integers(0, size.vocab, size.tokens)
    began = time.perf_counter()
    model = load_model(folder)
    run = (
        _emulated(model, tokens, *RECIPES[library])
        if library in RECIPES
        else _torch(model, tokens, size.threads)
    )
    run()
    first = time.perf_counter() - began
    seconds, rates = [], []
    for _ in range(size.repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
        if library in RECIPES:
            rates.append(_rate_alone(*RECIPES[library]))
    middle, macs = statistics.median(seconds), _products(model, size)
    alone = statistics.median(rates) if rates else float("nan")
    peak = peak_bytes()
    share = _share_outside(run) if library in RECIPES else float("nan")
    weights = sum(wide(t).size for name, t in model.tensors.items() if name != "lm_head.weight")
    return ModelTiming(
        size.task, library, size.threads, first, middle, macs / middle / 1e9, share,
        middle * alone * 1e9 / macs, peak, peak / (2 * weights),
    )  # fmt: skip


def _rate_alone(name: str, unit: str) -> float:
    """Return the rate of a large product as `bench_matmul` times it."""
    m, n, k = LARGE
    a, b = operand(m, k, name, 0), operand(k, n, name, 1, axis=-2)
    return rate_of(lambda: matmul(replace(a), b, target=unit), LARGE, 5)


def _emulated(
    model: Model, tokens: NDArray[np.int64], name: str, unit: str
) -> Callable[[], object]:
    recipe = Recipe((("*", Rule(name, name, unit)),))
    return lambda: model.run(tokens, recipe)


def _share_outside(run: Callable[[], object]) -> float:
    """Return the share of a run that is not inside `matmul`."""
    profile = cProfile.Profile()
    began = time.perf_counter()
    profile.runcall(run)
    whole = time.perf_counter() - began
    code = inspect.unwrap(matmul).__code__  # its wrapper's code is that of others, too
    inside: float = sum(e.totaltime for e in profile.getstats() if e.code is code)
    return 1 - inside / whole


def _products(model: Model, size: Size) -> int:
    """Return the multiply-accumulates of a run, causal zeros of attention included."""
    stored = sum(wide(t).size for t in model.tensors.values() if t.ndim == 2)
    tied = size.vocab * size.hidden  # the embedding is read, not multiplied
    return (stored - tied + 2 * size.layers * size.tokens * size.hidden) * size.tokens


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts what the parent held before exec
        lines = (line.split() for line in status.read_text(encoding="ascii").splitlines())
        return next((int(line[1]) * 1024 for line in lines if line[0] == "VmHWM:"), 0)
    resource: Any = importlib.import_module("resource")
    most = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return most if sys.platform == "darwin" else most * 1024


def _in_a_process(folder: str, size: Size, library: str) -> ModelTiming:
    program = (
        "import json, sys; from dataclasses import asdict; from pathlib import Path\n"
        "from numsim.bench.model import Size, run_llama\n"
        "folder, size, library = json.loads(sys.argv[1])\n"
        "print(json.dumps(asdict(run_llama(Path(folder), Size(**size), library))))"
    )
    counts = ("NUMBA", "OPENBLAS", "MKL", "OMP", "VECLIB", "BLIS")
    threads = {f"{name}_NUM_THREADS": str(size.threads) for name in counts}
    arguments = json.dumps((folder, vars(size), library))
    done = subprocess.run(
        [sys.executable, "-c", program, arguments], env=os.environ | threads, check=False,
        stdout=subprocess.PIPE, text=True, start_new_session=True,  # Ctrl-C: run() ends it
    )  # fmt: skip
    if done.returncode:
        raise NumsimError(
            f"bench model: {size.task} in {library} ended with code {done.returncode}; what it "
            "said stands above"
        )
    return ModelTiming(**json.loads(done.stdout))


def _torch(model: Model, tokens: NDArray[np.int64], threads: int) -> Callable[[], object]:
    """Return torch's float32 forward of the network."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(threads)
    a = model.arch
    w = {name: torch.from_numpy(np.array(t, np.float32)) for name, t in model.tensors.items()}
    assert a.rope is not None
    inverse = a.rope.theta ** -(torch.arange(0, a.head_dim, 2) / a.head_dim)
    angles = torch.outer(torch.arange(len(tokens)), inverse)
    cos, sin = torch.cos(angles), torch.sin(angles)  # [T, D/2]
    ids = torch.from_numpy(tokens)
    functional = torch.nn.functional

    def norm(x: Any, name: str) -> Any:
        return functional.rms_norm(x, (a.hidden,), w[f"{name}.weight"], a.norm_eps)

    def heads(x: Any) -> Any:
        return x.view(len(tokens), a.heads, a.head_dim).transpose(0, 1)  # [N, T, D]

    def turned(x: Any) -> Any:
        u, v = heads(x).chunk(2, dim=-1)
        return torch.cat((u * cos - v * sin, v * cos + u * sin), dim=-1)

    def forward() -> Any:
        with torch.no_grad():
            x = w["embed.weight"][ids]  # [T, H]
            for i in range(a.layers):
                at = f"layers.{i}."
                y = norm(x, f"{at}attn_norm")
                q, k, v = (y @ w[f"{at}{p}_proj.weight"].T for p in "qkv")
                mixed = functional.scaled_dot_product_attention(
                    turned(q), turned(k), heads(v), is_causal=True
                )
                x = x + mixed.transpose(0, 1).reshape(x.shape) @ w[f"{at}o_proj.weight"].T
                y = norm(x, f"{at}mlp_norm")
                gate = functional.silu(y @ w[f"{at}gate_proj.weight"].T)
                x = x + (gate * (y @ w[f"{at}up_proj.weight"].T)) @ w[f"{at}down_proj.weight"].T
            return norm(x, "final_norm") @ w["embed.weight"].T

    return forward


def print_model(rows: list[ModelTiming]) -> None:
    """Print timings as a table, each beside torch's of the same network where it was run."""
    heads = (
        "threads", "first run", "seconds", "/ torch", "GMAC/s", "outside", "/ products", "peak",
        "/ float16",
    )  # fmt: skip
    torch = {row.task: row.seconds for row in rows if row.library == "torch float32"}
    cells = [("task", "library", *heads)]
    cells += [
        (
            row.task, row.library, str(row.threads), f"{row.first:.2f} s", f"{row.seconds:.3f}",
            f"{row.seconds / torch[row.task]:.2f}" if row.task in torch else "",
            f"{row.rate:.2f}", "" if np.isnan(row.outside) else f"{row.outside:.0%}",
            "" if np.isnan(row.of_products) else f"{row.of_products:.2f}",
            f"{row.peak_bytes / 1e6:,.0f} MB", f"{row.of_weights:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    say(f"whole networks, every product emulated; numsim: {FORMAT} on {UNIT}")
    say("\n".join(columns(cells, "<<" + ">" * len(heads), gap="  " if width() > 110 else " ")))
    say(
        "outside: share of a run not in matmul, which packs activations, multiplies and scales;\n"
        "/ torch: over torch's float32, where it is installed (pip install 'numsim[torch]');\n"
        "/ products: seconds over those of its products at the rate of one of 512 x 512 x 2048;\n"
        "peak: the whole process; / float16: peak over the bytes of the weights in float16"
    )
