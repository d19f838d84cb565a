"""What emulate swaps, names, refuses and gives back."""

import copy
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bridge import same_bits  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import numsim as ns  # noqa: E402
import numsim.torch as bridge  # noqa: E402
from numsim import float_state, train  # noqa: E402


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.qkv = torch.nn.Linear(8, 24)
        self.out = torch.nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(x.shape))


class Vit(torch.nn.Module):
    """Patches of an image, a learned token and positions, two blocks, a head."""

    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(1, 8, 4, 4)
        self.token = torch.nn.Parameter(torch.randn(1, 1, 8))
        self.places = torch.nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.mixer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.drop = torch.nn.Dropout(0.1)
        self.head = torch.nn.Linear(8, 10)

    def forward(self, x):
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(x), -1, -1), y], dim=1) + self.places
        for block in self.blocks:
            y = block(self.drop(y))
        return self.head(self.mixer(y)[:, 0])


@pytest.fixture
def vit():
    torch.manual_seed(2)
    return Vit()


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(9))


def seen(net, monkeypatch):
    """Names of the products that a call computes."""
    found = []
    own = train.Recipe.rule

    def rule(self, name):
        found.append(name)
        return own(self, name)

    monkeypatch.setattr(train.Recipe, "rule", rule)
    net(IMAGES)
    return list(dict.fromkeys(found))


def test_products_have_the_names_of_their_modules(vit, monkeypatch):
    blocks = [f"blocks.{i}{end}" for i in (0, 1) for end in (".qkv", ".qk", ".pv", ".out")]
    mixer = ["self_attn.in_proj", "self_attn.qk", "self_attn.pv", "self_attn.out_proj", "linear1",
             "linear2"]  # fmt: skip
    want = ["patches", *blocks, *(f"mixer.{name}" for name in mixer), "head"]
    net = bridge.emulate(vit, "fp8_hybrid")
    assert seen(net, monkeypatch) == want
    net.eval()
    with torch.no_grad():  # where torch's own encoder layer would not call its modules
        assert seen(net, monkeypatch) == want


def test_an_encoder_layer_calls_a_part_that_is_emulated_alone(monkeypatch):
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    bridge.emulate(layer.linear1, "int8")
    calls = []
    own = train.Recipe.rule
    monkeypatch.setattr(train.Recipe, "rule", lambda s, name: calls.append(name) or own(s, name))
    with torch.no_grad():
        layer(torch.randn(2, 3, 8))
    assert calls


def test_globs_choose_products(vit):
    plain, low = train.Rule(), train.recipe("int8").rule("head")
    x = IMAGES
    vit.eval()
    one = bridge.emulate(copy.deepcopy(vit), train.Recipe((("*", plain), ("blocks.1.*", low))))
    other = bridge.emulate(copy.deepcopy(vit), train.Recipe((("*", low), ("blocks.0.*", plain))))
    none = bridge.emulate(copy.deepcopy(vit), "float32")
    a, b, c = one(x), other(x), none(x)
    assert not torch.equal(a, c)
    assert not torch.equal(a, b)
    mixed = bridge.emulate(
        copy.deepcopy(vit), train.Recipe((("*", plain), ("*.qk", low), ("blocks.1.pv", low)))
    )
    assert not torch.equal(mixed(x), c)


def test_vit_trains_and_is_restored(vit):
    names, before = list(vit.state_dict()), vit.state_dict()
    plain = copy.deepcopy(vit).eval()
    assert bridge.emulate(vit, "fp8_hybrid") is vit
    assert list(vit.state_dict()) == names
    assert all(v.data_ptr() == before[k].data_ptr() for k, v in vit.state_dict().items())
    vit.eval()
    with torch.no_grad():
        low, first = vit(IMAGES), plain(IMAGES)
    assert 0 < float((low - first).abs().max()) < 0.5
    assert vit.train().training
    opt = torch.optim.AdamW(vit.parameters(), lr=1e-2)
    goal, losses = torch.arange(6), []
    for _ in range(20):
        opt.zero_grad()
        loss = functional.cross_entropy(vit(IMAGES), goal)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    twin = Vit()
    twin.load_state_dict(vit.state_dict())
    bridge.restore(vit)
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in vit.modules())
    same_bits(vit.eval()(IMAGES), twin.eval()(IMAGES))
    same_bits(bridge.restore(vit)(IMAGES), twin(IMAGES))


def test_a_forward_of_ones_own_comes_back(vit):
    own = Vit.forward.__get__(vit)
    vit.forward = own
    bridge.emulate(vit, "int8")(IMAGES)
    assert vars(bridge.restore(vit))["forward"] is own


def test_the_same_module_twice_and_a_part_restored(vit):
    bridge.emulate(vit, "int8")
    with pytest.raises(ns.NumsimError, match="emulated already"):
        bridge.emulate(vit, "int8")
    with pytest.raises(ns.NumsimError, match="head is emulated already"):
        bridge.emulate(torch.nn.ModuleDict({"head": vit.head}), "int8")
    bridge.restore(vit.head)
    with pytest.raises(ns.UnsupportedError, match="linear"):
        vit(IMAGES)  # strict: torch computes nothing unseen


def refused(module, message, *inputs):
    """Refused by name; strict=False leaves it as it is."""
    net = torch.nn.ModuleDict({"part": module})
    with pytest.raises(ns.UnsupportedError, match=message) as error:
        bridge.emulate(net, "fp8_hybrid")
    assert "part" in str(error.value)
    assert "strict=False" in str(error.value)
    assert "forward" not in vars(module)
    want = module(*inputs) if inputs else None
    bridge.emulate(net, "fp8_hybrid", strict=False)
    if inputs:
        torch.testing.assert_close(module(*inputs), want, rtol=0, atol=0)


class Twice(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_modules_that_cannot_be_emulated():
    x = torch.randn(2, 3, 4)
    refused(torch.nn.Conv3d(1, 1, 1), "Conv3d", torch.randn(1, 1, 2, 2, 2))
    refused(torch.nn.ConvTranspose1d(3, 2, 2), "transposed", x)
    refused(torch.nn.RNN(4, 5), "LSTM and GRU", x)
    refused(torch.nn.RNNCell(4, 5), "cells", x[0])
    refused(torch.nn.Bilinear(4, 4, 2), "bilinear", x, x)
    refused(torch.nn.EmbeddingBag(4, 2), "rows", torch.zeros(2, 2, dtype=torch.long))
    refused(torch.nn.LSTM(4, 5, proj_size=2), "proj_size")
    refused(torch.nn.Embedding(4, 2, max_norm=1.0), "max_norm")
    refused(torch.nn.Embedding(4, 2, sparse=True), "sparse")
    refused(torch.nn.Embedding(4, 2, scale_grad_by_freq=True), "scale_grad_by_freq")
    refused(torch.nn.MultiheadAttention(4, 2, add_bias_kv=True), "add_bias_kv", x, x, x)
    refused(torch.nn.MultiheadAttention(4, 2, add_zero_attn=True), "add_zero_attn", x, x, x)
    refused(torch.nn.LazyLinear(3), "sizes are not known")
    refused(Twice(4, 2), r"not that of torch.nn.Linear", x)
    refused(torch.nn.Linear(4, 2, device="meta"), r"weight: tensors are on the CPU; got meta")
    refused(torch.nn.Linear(4, 2).double(), "float64", x.double())
    refused(torch.nn.Linear(4, 2).bfloat16(), "bfloat16", x.bfloat16())
    half = torch.nn.Linear(4, 2)
    half.forward = lambda x: x
    refused_forward = torch.nn.ModuleDict({"part": half})
    with pytest.raises(ns.UnsupportedError, match="part"):
        bridge.emulate(refused_forward, "int8")


def test_all_refused_modules_are_named_at_once():
    net = torch.nn.ModuleDict({"a": torch.nn.RNN(2, 2), "b": torch.nn.Bilinear(1, 1, 1)})
    with pytest.raises(ns.UnsupportedError, match=r"a \(RNN\).*b \(Bilinear\).*leaves them"):
        bridge.emulate(net, "int8")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_compiled_modules():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ns.UnsupportedError, match="compiled"):
        bridge.emulate(torch.jit.trace(net, torch.zeros(1, 2)), "int8")


SUMS = {
    "matmul": lambda x, w: torch.matmul(x, w),
    "@": lambda x, w: x @ w,
    "einsum": lambda x, w: torch.einsum("btk,kn->btn", x, w),
    "linear": lambda x, w: functional.linear(x, w),
    "bmm": lambda x, w: torch.bmm(x, w.expand(2, 4, 4)),
    "conv1d": lambda x, w: functional.conv1d(x.transpose(1, 2), w[..., None]),
    "addmm": lambda x, w: torch.addmm(w, w, w),
    "mm": lambda x, w: w.mm(w),
    "mv": lambda x, w: w.mv(w[0]),
    "dot": lambda x, w: w[0].dot(w[0]),
    "tensordot": lambda x, w: torch.tensordot(x, w, 1),
    "inner": lambda x, w: torch.inner(x, w),
    "chained": lambda x, w: torch.linalg.multi_dot([w, w, w]),
    "vecdot": lambda x, w: torch.linalg.vecdot(w, w),
    "linalg": lambda x, w: torch.linalg.matmul(w, w),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_that_a_module_computes_with_torch(name):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return SUMS[name](x, self.weight)

    net = torch.nn.ModuleDict({"inner": Own()})
    x = torch.randn(2, 3, 4)
    want = net["inner"](x)
    bridge.emulate(net, "int8")
    with pytest.raises(ns.UnsupportedError, match="inner calls torch's"):
        net["inner"](x)
    with pytest.raises(ns.UnsupportedError):  # the names are clean after an error
        net["inner"](x)
    bridge.restore(net)
    same_bits(bridge.emulate(net, "int8", strict=False)["inner"](x), want)


def test_bad_arguments():
    net = torch.nn.ModuleDict({"head": torch.nn.Linear(4, 2)})
    rule = train.Rule()
    unsigned = train.Rule(dgrad=ns.Rule("int8", "int8", "x86.vpdpbusd"))
    cases = [
        (lambda: bridge.emulate(3, "int8"), "a torch.nn.Module; got int"),
        (lambda: bridge.restore(3), "a torch.nn.Module; got int"),
        (lambda: bridge.emulate(net, "fp8_hybird"), "fp8_hybrid"),
        (lambda: bridge.emulate(net, ns.Recipe((("*", ns.Rule()),))), "numsim.train.Recipe"),
        (
            lambda: bridge.emulate(net, train.Recipe((("*", rule), ("haed", rule)))),
            "'haed' matches none of head",
        ),
        (lambda: bridge.emulate(net, train.Recipe((("tail", rule),))), "head matches no"),
        (
            lambda: bridge.emulate(net, train.Recipe((("*", unsigned),))),
            "dgrad of head.*change its target or formats",
        ),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises(ns.NumsimError, match=message):
            call()
    assert "forward" not in vars(net["head"])


def test_bad_inputs_of_a_call():
    def linear(x):
        fc = bridge.emulate(torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 2)}), "int8")["fc"]
        return fc(x)

    for x, message in (
        (torch.zeros(3, 5), r"last axes \[4\]; got shape \[3, 5\]"),
        (torch.zeros(3, 4, dtype=torch.float64), "fc: recipes compute in float32"),
        (torch.zeros(3, 4, dtype=torch.float16), "fc: numbers are float32"),
        (torch.zeros(3, 4, device="meta"), "fc: tensors are on the CPU; got meta"),
        (torch.zeros(3, 4).to_sparse(), "fc: tensors are dense"),
        (torch.full((3, 4), float("nan")), "step 1, the input of fc"),
        (torch.zeros(3, 4, dtype=torch.long), "input 0 is an array of numbers"),
    ):
        with pytest.raises(ns.NumsimError, match=message):
            linear(x)
    table = bridge.emulate(torch.nn.Embedding(4, 2), "int8")
    with pytest.raises(ns.NumsimError, match="from 0 to 3; got 4"):
        table(torch.tensor([1, 4]))
    rnn = bridge.emulate(torch.nn.LSTM(3, 5, 2), "int8")
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(3, 3), torch.zeros(2, 3)])
    with pytest.raises(ns.UnsupportedError, match="pad the batch"):
        rnn(packed)
    with pytest.raises(ns.NumsimError, match=r"states are \[2, B, 5\]"):
        rnn(torch.zeros(4, 1, 3), (torch.zeros(1, 1, 5), torch.zeros(1, 1, 5)))


def test_a_gradient_that_is_not_finite_is_named():
    net = bridge.emulate(torch.nn.ModuleDict({"fc": torch.nn.Linear(4, 2)}), "fp8_hybrid")
    y = net["fc"](torch.ones(3, 4))
    with pytest.raises(ns.NumsimError, match="step 1, the gradient of fc"):
        y.backward(torch.full_like(y, float("inf")))


@pytest.mark.parametrize(
    ("frozen", "x_needs", "count"),
    [((), True, 2), ((), False, 1), (("weight",), True, 1), (("weight", "bias"), True, 1),
     (("weight",), False, 0), (("bias",), False, 1)],
)  # fmt: skip
def test_frozen_weights_cost_no_product(frozen, x_needs, count, monkeypatch):
    from numsim.nn import products

    layer = bridge.emulate(torch.nn.Linear(4, 2), "fp8_hybrid")
    whole = bridge.emulate(torch.nn.Linear(4, 2), "fp8_hybrid")
    whole.load_state_dict(layer.state_dict())
    for name in frozen:
        layer.get_parameter(name).requires_grad_(False)
    x, other = (torch.ones(3, 4, requires_grad=grad) for grad in (x_needs, True))
    y = layer(x)
    whole(other).sum().backward()
    made, real = [], products.matmul
    monkeypatch.setattr(products, "matmul", lambda *a, **how: made.append(1) or real(*a, **how))
    y.sum().backward()
    assert len(made) == count
    for name, p in layer.named_parameters():
        if name in frozen:
            assert p.grad is None
        else:
            same_bits(p.grad, whole.get_parameter(name).grad)
    if x_needs:
        same_bits(x.grad, other.grad)


def test_empty_batches():
    x = torch.zeros(0, 4, requires_grad=True)
    linear = bridge.emulate(torch.nn.Linear(4, 2), "fp8_hybrid")
    y = linear(x)
    assert y.shape == (0, 2)
    y.sum().backward()
    assert x.grad.shape == (0, 4)
    assert torch.equal(linear.weight.grad, torch.zeros(2, 4))


def test_parametrized_and_normed_weights():
    torch.manual_seed(0)
    net = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3))
    x = torch.randn(5, 4)
    plain = torch.nn.Linear(4, 3)
    plain.load_state_dict({"weight": net.weight.detach(), "bias": net.bias.detach()})
    bridge.emulate(plain, "fp8_hybrid")
    bridge.emulate(net, "fp8_hybrid")
    same_bits(net(x), plain(x))
    net(x).sum().backward()
    assert net.parametrizations.weight.original1.grad is not None


def test_frozen_parts_get_no_gradient():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    net[0].requires_grad_(False)
    bridge.emulate(net, "fp8_hybrid")(torch.randn(3, 4)).sum().backward()
    assert net[0].weight.grad is None
    assert net[1].weight.grad is not None
    with torch.no_grad():
        assert net(torch.randn(3, 4)).grad_fn is None


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_padded_encoders_in_evaluation():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = torch.nn.TransformerEncoder(layer, 1).eval()
    x, pad = torch.randn(2, 4, 8), torch.tensor([[False] * 4, [False, False, True, True]])
    want = net(x, src_key_padding_mask=pad)
    bridge.emulate(net, "float32")
    with torch.no_grad():
        got = net(x, src_key_padding_mask=pad)
    torch.testing.assert_close(got[~pad], want[~pad], rtol=1e-5, atol=1e-5)


def test_other_modes_of_torch():
    net = bridge.emulate(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()), "int8")
    x = torch.randn(3, 4)
    want = net(x)
    want.sum().backward()
    gradient = net[0].weight.grad.clone()
    with torch.inference_mode():
        same_bits(net(x), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same_bits(net(x), want)
    net.zero_grad()
    checkpoint(net, x, use_reentrant=False).sum().backward()
    same_bits(net[0].weight.grad, gradient)
    other = {k: v.detach() * 2 for k, v in net.named_parameters()}
    assert not torch.equal(torch.func.functional_call(net, other, (x,)), want)


def test_threads_have_their_own_names():
    from concurrent.futures import ThreadPoolExecutor

    net = bridge.emulate(Block(), "int8").eval()
    xs = [torch.randn(2, 3, 8) for _ in range(4)]
    want = [net(x).detach() for x in xs]
    with ThreadPoolExecutor(2) as pool:
        for a, b in zip(pool.map(lambda x: net(x).detach(), xs), want, strict=True):
            same_bits(a, b)


def test_everything_public_computes_under_known_floats():
    for item in (bridge.emulate, bridge.restore, bridge.optimizer):
        assert item.__code__.co_filename == float_state.__file__


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_numsim_and_its_cli_never_import_torch():
    done = python("import numsim, numsim.train, numsim.cli, sys; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_one_sentence_without_torch():
    done = python(
        "import sys; sys.modules['torch'] = None\n"
        "import numsim as ns\n"
        "try:\n    import numsim.torch\n"
        "except ImportError as error:\n"
        "    print(isinstance(error, ns.NumsimError), error)"
    )
    assert done.stdout.startswith("True numsim.torch needs torch"), done.stderr
    assert "pip install 'numsim[torch]'" in done.stdout


def test_numbers_by_hand():
    """INT8: 1.0 and 0.5 with amax 1 are 127 and 64; the product is 127 * 127 + 64 * 127."""
    net = torch.nn.Linear(2, 1, bias=False)
    net.weight.data.copy_(torch.tensor([[1.0, 0.5]]))
    y = bridge.emulate(net, "int8")(torch.tensor([[2.0, 2.0]]))
    exact = np.float64(127 * 127 + 64 * 127) * np.float64(np.float32(1 / 127))
    assert y.item() == np.float32(exact * np.float64(np.float32(2) / np.float32(127)))
