"""Steps of the bridge are steps of numsim.train, in every bit."""

import copy
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bridge import same_bits  # noqa: E402

import numsim as ns  # noqa: E402
import numsim.torch as bridge  # noqa: E402
from numsim import nn, train  # noqa: E402

LAYER = nn.Sequential(hidden=nn.Linear(12, 16), act=nn.Activation("relu"), head=nn.Linear(16, 3))
X = torch.randn(20, 12, generator=torch.Generator().manual_seed(1))
GOAL = torch.arange(20) % 3


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = torch.nn.Linear(12, 16), torch.nn.Linear(16, 3)
        for name, value in nn.init(LAYER, seed=4).items():
            self.get_parameter(name).data.copy_(torch.from_numpy(value))

    def forward(self, x):
        return self.head(self.hidden(x).relu())


def loss_gradient(y):
    """The gradient of the loss by numsim: torch's cross-entropy has bits of its own."""
    return torch.from_numpy(nn.loss("cross_entropy", y.detach().numpy(), GOAL.numpy())[1])


def trained(net, opt, steps, scheduler=None):
    for _ in range(steps):
        opt.zero_grad()
        y = net(X)
        y.backward(loss_gradient(y))
        opt.step()
        if scheduler is not None:
            scheduler.step()


def by_train(recipe, own, steps, rates=None):
    params = own.start(nn.init(LAYER, seed=4))
    state = own.init(params if not own.master else nn.init(LAYER, seed=4))
    for number in range(1, steps + 1):
        y, tape = nn.forward(LAYER, params, X.numpy(), recipe=recipe, step=number)
        _, grads = nn.backward(tape, nn.loss("cross_entropy", y, GOAL.numpy())[1])
        here = own if rates is None else replace(own, lr=rates[number - 1])
        params, state = here.step(params, grads, state)
    return params, state


def compare(net, params):
    for name, p in net.named_parameters():
        want = params[name]
        same_bits(p, want.dequantize() if isinstance(want, ns.QTensor) else want)


PAIRS = {
    "sgd": (torch.optim.SGD, train.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, train.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (torch.optim.SGD, train.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, train.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "amsgrad": (torch.optim.Adam, train.Adam, {"lr": 0.01, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, train.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}
KEPT = {
    "float32": ("fp8_hybrid", {}),
    "rne": ("fp8_stored_rne", {}),
    "sr": ("fp8_stored_sr", {}),
    "int8": ("int8_stored_sr", {"keep_scale": True, "random_bits": 8, "seed": 3}),
    "q3.4": ("q3.4_stored_sr", {}),
    "master": ("fp8_stored_rne", {"master": True}),
    "moments": ("fp8_stored_sr", {"moments": "bfloat16"}),
    "blocks": ("mxfp8", {"storage": "mxfp8_e4m3"}),
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("kind", PAIRS)
def test_steps_are_those_of_train(kind, kept):
    theirs, ours, numbers = PAIRS[kind]
    name, how = KEPT[kept]
    recipe = train.recipe(name)
    how = {"storage": recipe.storage} | how
    net = bridge.emulate(Net(), recipe)
    opt = bridge.optimizer(theirs(net.named_parameters(), **numbers), **how)
    trained(net, opt, 4)
    params, _ = by_train(recipe, ours(**numbers, **how), 4)
    compare(net, params)


@pytest.mark.parametrize("before", [True, False])
def test_schedulers_of_torch_set_the_rate(before):
    net = bridge.emulate(Net(), "fp8_hybrid")
    own = torch.optim.SGD(net.named_parameters(), lr=0.5)
    opt = bridge.optimizer(own) if not before else None
    scheduler = torch.optim.lr_scheduler.ExponentialLR(own if before else opt, 0.5)
    if before:
        own.step()  # the scheduler counts it
        opt = bridge.optimizer(own)
    trained(net, opt, 3, scheduler)
    params, _ = by_train(train.recipe("fp8_hybrid"), train.SGD(0.5), 3, [0.5, 0.25, 0.125])
    compare(net, params)


@pytest.mark.parametrize("kept", ["sr", "int8", "moments", "master", "float32"])
def test_state_dicts_resume_every_bit(kept, tmp_path):
    name, how = KEPT[kept]
    recipe = train.recipe(name)
    how = {"storage": recipe.storage} | how

    def make():
        net = Net()
        return net, bridge.optimizer(torch.optim.Adam(net.named_parameters(), lr=0.02), **how)

    net, opt = make()
    bridge.emulate(net, recipe)
    trained(net, opt, 3)
    torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, tmp_path / "state.pt")
    again, resumed = make()
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(read["opt"])
    again.load_state_dict(read["net"])
    bridge.emulate(again, recipe)
    trained(net, opt, 3)
    trained(again, resumed, 3)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_state_of_torchs_own_steps_goes_on(kind):
    theirs, ours, numbers = PAIRS[kind]
    net = Net()
    own = theirs(net.named_parameters(), **numbers)
    trained(net, own, 2)
    names = {"momentum": ["momentum"], "adam": ["first", "second"]}[kind]
    keys = {"momentum": "momentum_buffer", "first": "exp_avg", "second": "exp_avg_sq"}
    before = {k: p.detach().numpy().copy() for k, p in net.named_parameters()}
    slots = {
        k: {slot: own.state[p][keys[slot]].numpy().copy() for slot in names}
        for k, p in net.named_parameters()
    }
    opt = bridge.optimizer(own)
    trained(net, opt, 1)
    grads = {k: p.grad.numpy() for k, p in net.named_parameters()}
    compare(net, ours(**numbers).step(before, grads, train.State(2, slots))[0])


def test_a_copy_of_net_and_optimizer_goes_on():
    net = Net()
    opt = bridge.optimizer(torch.optim.Adam(net.named_parameters(), lr=0.01), storage="bfloat16")
    bridge.emulate(net, "fp8_hybrid")
    trained(net, opt, 2)
    twin, other = copy.deepcopy((net, opt))
    trained(net, opt, 2)
    trained(twin, other, 2)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("storage", ["int8", "fp8_e4m3"])
def test_a_copy_multiplies_the_same_codes_before_its_first_step(storage):
    """With keep_scale codes differ from those that the values would be given anew."""
    net = Net()
    opt = bridge.optimizer(
        torch.optim.SGD(net.parameters(), lr=0.5), storage=storage, keep_scale=True
    )
    bridge.emulate(net, "int8" if storage == "int8" else "fp8_hybrid")
    trained(net, opt, 3)
    twin, _ = copy.deepcopy((net, opt))
    same_bits(twin(X), net(X))


def test_matrices_are_kept_in_the_format_and_vectors_stay_float32():
    net = Net()
    opt = bridge.optimizer(torch.optim.SGD(net.parameters(), lr=0.1), storage="fp8_e4m3")
    bridge.emulate(net, "fp8_stored_rne")
    trained(net, opt, 2)
    for p in net.parameters():
        assert ("codes" in opt.state[p]) == (p.ndim == 2)
        rounded = ns.quantize(p.detach().numpy(), "fp8_e4m3").dequantize()
        assert np.array_equal(rounded, p.detach().numpy()) == (p.ndim == 2)


def test_values_that_were_changed_behind_the_optimizer_are_stored_again():
    p = torch.nn.Parameter(torch.ones(4, 1))
    opt = bridge.optimizer(torch.optim.SGD([p], lr=1 / 64), storage=ns.Quant("e4m3", "none"))
    p.data.fill_(1.3)  # no value of the format: 1.25 is the nearest
    p.grad = torch.full((4, 1), -1.0)
    opt.step()
    assert torch.equal(p.detach(), torch.full((4, 1), 1.25))


def test_codes_are_multiplied_as_they_are_stored():
    """A value whose scale is not the amax one again: re-quantising would move codes."""
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[3.0, 0.7]]))
    opt = bridge.optimizer(
        torch.optim.SGD(layer.parameters(), lr=1.0), storage="int8", keep_scale=True
    )
    bridge.emulate(layer, "int8")
    layer.weight.grad = torch.tensor([[1.5, 0.0]])
    opt.step()
    scale = np.float32(3.0) / np.float32(127)
    assert layer.weight.tolist() == [[float(np.float32(64 * scale)), float(np.float32(30 * scale))]]
    q = ns.QTensor.from_codes([[64, 30]], "int8", scale=scale)
    want, _ = nn.forward(
        nn.Linear(2, 1, bias=False), {"weight": q}, np.ones((1, 2), np.float32),
        recipe=train.recipe("int8"),
    )  # fmt: skip
    same_bits(layer(torch.ones(1, 2)), want)
    layer.weight.data.fill_(0.3)  # other values, behind the back of the optimizer: not these codes
    same_bits(layer(torch.ones(1, 2)), np.full((1, 1), 2 * np.float32(0.3), np.float32))


def test_a_part_without_a_gradient_stays():
    net = Net()
    net.hidden.requires_grad_(False)
    opt = bridge.optimizer(torch.optim.SGD(net.parameters(), lr=0.1), storage="fp8_e4m3")
    before = [p.detach().clone() for p in net.parameters()]
    bridge.emulate(net, "fp8_hybrid")
    trained(net, opt, 1)
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert moved == [False, False, True, True]


def test_maximize_is_the_other_way():
    a, b = Net(), Net()
    down = bridge.optimizer(torch.optim.SGD(a.parameters(), lr=0.1))
    up = bridge.optimizer(torch.optim.SGD(b.parameters(), lr=0.1, maximize=True))
    for net, opt, sign in ((a, down, 1), (b, up, -1)):
        for p in net.parameters():
            p.grad = torch.ones_like(p) * sign
        opt.step()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        same_bits(p, q)


def test_the_closure_is_called():
    net = Net()
    opt = bridge.optimizer(torch.optim.SGD(net.parameters(), lr=0.1))

    def closure():
        opt.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        return loss

    first = opt.step(closure)
    assert opt.step(closure) < first


def test_the_stall_and_its_cure():
    """E4M3 at 1.0, 1/64 a step: nearest stays, stochastic rounding moves on average."""
    ends = {}
    for rounding in ("rne", "sr"):
        p = torch.nn.Parameter(torch.ones(256, 1))
        opt = bridge.optimizer(
            torch.optim.SGD([("p", p)], lr=1 / 64),
            storage=ns.Quant("e4m3", "none", rounding=rounding),
        )
        for _ in range(64):
            p.grad = torch.full((256, 1), -1.0)
            opt.step()
        ends[rounding] = p.detach()
    assert torch.equal(ends["rne"], torch.ones(256, 1))
    assert abs(float(ends["sr"].mean()) - 2.0) < 0.05


BAD = {
    "another": (lambda net: torch.optim.RMSprop(net.parameters()), {}, "SGD, Adam or AdamW; got R"),
    "no optimizer": (lambda net: net, {}, "got Net"),
    "rate": (lambda net: torch.optim.SGD(net.parameters(), lr=0.0), {}, "lr is a number above 0"),
    "storage": (lambda net: torch.optim.SGD(net.parameters()), {"storage": "fp9"}, "fp9"),
    "bits": (lambda net: torch.optim.SGD(net.parameters()), {"random_bits": 40}, "random_bits"),
    "master": (lambda net: torch.optim.SGD(net.parameters()), {"master": True}, "give storage"),
    "double": (lambda net: torch.optim.SGD(net.double().parameters()), {}, "float64"),
    "half": (lambda net: torch.optim.SGD(net.half().parameters()), {}, "float16"),
    "elsewhere": (lambda net: torch.optim.SGD(net.to("meta").parameters()), {}, "got meta"),
    "one value": (
        lambda net: torch.optim.SGD([torch.nn.Parameter(torch.zeros(1).expand(3))]), {}, "stride",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, how, message = BAD[name]
    with pytest.raises(ns.NumsimError, match=message):
        bridge.optimizer(make(Net()), **how)


def test_memory_of_two_parameters():
    whole = torch.zeros(6)
    a, b, c = (torch.nn.Parameter(whole[i:j]) for i, j in ((0, 3), (3, 6), (2, 4)))
    bridge.optimizer(torch.optim.SGD([a, b]))
    with pytest.raises(ns.NumsimError, match="share memory"):
        bridge.optimizer(torch.optim.SGD([a, b, c]))


def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing():
    net = Net()
    opt = bridge.optimizer(torch.optim.SGD(net.named_parameters(), lr=0.1))
    before = net.hidden.weight.detach().clone()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net.head.bias.grad.fill_(float("nan"))
    with pytest.raises(ns.NumsimError, match=r"head\.bias"):
        opt.step()
    same_bits(net.hidden.weight, before)
    assert not opt.state


def test_a_recipe_that_keeps_parameters_needs_the_optimizer():
    recipe = train.recipe("fp8_stored_sr")
    net = bridge.emulate(Net(), recipe)
    with pytest.raises(ns.NumsimError, match=r"hidden\.weight is not; make the optimizer"):
        net(X)
    assert net.eval()(X).shape == (20, 3)
    bridge.optimizer(torch.optim.SGD(net.parameters()), storage=recipe.storage)
    assert net.train()(X).shape == (20, 3)


def test_parts_of_a_stored_parameter_are_stored():
    """Queries and keys of two tensors: the joined weight has one scale, its thirds keep it."""
    torch.manual_seed(0)
    net = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    net.in_proj_weight.data[:8] *= 0.1  # an amax of its own would be another
    opt = bridge.optimizer(torch.optim.SGD(net.parameters(), lr=0.1), storage="int8")
    recipe = train.recipe("int8_stored_rne")
    codes = opt.state[net.in_proj_weight]["codes"].numpy().astype(np.int8)
    scale = opt.state[net.in_proj_weight]["scale"].numpy()
    bridge.emulate(net, recipe)
    x, y = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    out, _ = net(x, y, y)
    out.sum().backward()
    head = ns.QTensor.from_codes(codes[:8], "int8", scale=scale)
    bias = net.in_proj_bias[:8].detach().numpy()
    calls = []
    own = nn.forward

    def watched(layer, params, *inputs, **how):
        found = own(layer, params, *inputs, **how)
        calls.append((layer, params, found[0]))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn, "forward", watched)
        net(x, y, y)
    layer, params, q = calls[0]
    assert layer.names == ("q_proj",)
    assert np.array_equal(params["q_proj.weight"].codes, codes[:8])
    want, _ = own(nn.Linear(8, 8), {"weight": head, "bias": bias}, x.numpy(), recipe=recipe)
    same_bits(q, want)
    assert net.in_proj_weight.grad.shape == (24, 8)


@pytest.mark.parametrize("name", ["int8_stored_sr", "fp8_stored_sr"])
def test_recurrent_nets_stored(name):
    recipe = train.recipe(name)
    layer = nn.Sequential(lstm=nn.LSTM(6, 8), last=nn.Last(), head=nn.Linear(8, 3))
    start = nn.init(layer, seed=1)

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(6, 8, batch_first=True)
            self.head = torch.nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    net, x, goal = Classifier(), torch.randn(4, 5, 6), np.arange(4) % 3
    names = {f"{k}_l0" if k.startswith("lstm") else k: k for k in start}
    for theirs, ours in names.items():
        net.get_parameter(theirs).data.copy_(torch.from_numpy(start[ours]))
    bridge.emulate(net, recipe)
    named = [(names[k], p) for k, p in net.named_parameters()]
    opt = bridge.optimizer(torch.optim.Adam(named, lr=0.02), storage=recipe.storage)
    own = train.Adam(0.02, storage=recipe.storage)
    params = own.start(start)
    state = own.init(params)
    for step in (1, 2, 3):
        opt.zero_grad()
        y = net(x)
        y.backward(torch.from_numpy(nn.loss("cross_entropy", y.detach().numpy(), goal)[1]))
        opt.step()
        want, tape = nn.forward(layer, params, x.numpy(), recipe=recipe, step=step)
        same_bits(y, want)
        _, grads = nn.backward(tape, nn.loss("cross_entropy", want, goal)[1])
        params, state = own.step(params, grads, state)
    for theirs, ours in names.items():
        want = params[ours]
        assert isinstance(want, ns.QTensor) == (want.ndim > 1)
        same_bits(
            net.get_parameter(theirs),
            want.dequantize() if isinstance(want, ns.QTensor) else want,
        )
