"""Under a recipe an emulated module is numsim.nn, in every bit: outputs and gradients."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bridge import results, same_bits  # noqa: E402

import numsim.torch as bridge  # noqa: E402
from numsim import nn, train  # noqa: E402

RECIPES = ("fp8_hybrid", "int8", "mxfp8", "nvfp4", "fp8_delayed", "q3.4", None)
each_recipe = pytest.mark.parametrize("name", RECIPES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(11)


def _recipe(name):
    return None if name is None else train.recipe(name)


def params(module, prefix=""):
    return {prefix + k: p.detach().numpy() for k, p in module.named_parameters()}


def upstream(*shapes):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator).numpy() for shape in shapes]


def by_nn(layer, values, inputs, name, *, step=1, scaling=None):
    """Outputs, gradients of inputs and parameters by numsim.nn, float32."""
    y, tape = nn.forward(layer, values, *inputs, recipe=_recipe(name), step=step, scaling=scaling)
    many = y if isinstance(y, tuple) else (y,)
    dx, dp = nn.backward(tape, *upstream(*(part.shape for part in many)))
    return [
        np.asarray(part, np.float32)
        for part in (*many, *(g for g in dx if g is not None), *dp.values())
    ]


def compare(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        same_bits(a, b)


@each_recipe
def test_linear_over_three_steps(name):
    """Random streams and delayed scales go on from step to step."""
    net = torch.nn.ModuleDict({"head": torch.nn.Linear(40, 24)})
    head = bridge.emulate(net, _recipe(name))["head"]
    layer, scaling = nn.Sequential(head=nn.Linear(40, 24)), {}
    for step in (1, 2, 3):
        x = torch.randn(4, 8, 40) * step
        want = by_nn(layer, params(net), [x.numpy()], name, step=step, scaling=scaling)
        compare(results(head, x), want)
    head.eval()
    with torch.no_grad():
        y, _ = nn.forward(
            layer, params(net), x.numpy(), recipe=_recipe(name), scaling=dict(scaling)
        )
        same_bits(head(x), np.asarray(y, np.float32))


@each_recipe
def test_convolutions(name):
    x = torch.randn(2, 8, 11, 9)
    own = bridge.emulate(torch.nn.Conv2d(8, 12, (3, 2), 2, 1), _recipe(name))
    layer = nn.Conv2d(8, 12, (3, 2), 2, 1)
    compare(results(own, x), by_nn(layer, params(own), [x.numpy()], name))
    own = bridge.emulate(torch.nn.Conv1d(8, 12, 3, 2, 1, dilation=2, groups=4), _recipe(name))
    layer = nn.Conv1d(8, 12, 3, 2, 1, dilation=2, groups=4)
    compare(results(own, x[..., 0]), by_nn(layer, params(own), [x[..., 0].numpy()], name))


def test_a_group_is_a_product_with_the_scales_of_the_whole():
    """Two groups are two convolutions of the parts, where one power of two scales both."""
    recipe = train.recipe("fp8_hybrid")
    own = bridge.emulate(torch.nn.Conv1d(4, 6, 3, groups=2, bias=False), recipe)
    x = torch.randn(2, 4, 9)
    with torch.no_grad():
        for part in (x[:, :2], x[:, 2:], own.weight[:3], own.weight[3:]):
            part.clamp_(-1, 1)
        x[0, 0, 4] = x[0, 2, 4] = own.weight[0, 0, 0] = own.weight[3, 0, 0] = 448 / 256
    whole = own.eval()(x)
    for at in range(2):
        weight = {"weight": own.weight[3 * at : 3 * at + 3].detach().numpy()}
        y, _ = nn.forward(
            nn.Conv1d(2, 3, 3, bias=False), weight, x[:, 2 * at : 2 * at + 2].numpy(),
            recipe=recipe,
        )  # fmt: skip
        same_bits(whole[:, 3 * at : 3 * at + 3], y)


@each_recipe
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_layers_of_a_recurrent_module(name, kind):
    """Three layers are three layers of numsim.nn, one after the other, named l0, l1, l2."""
    net = torch.nn.ModuleDict({"rnn": getattr(torch.nn, kind)(12, 16, 3, batch_first=True)})
    own = bridge.emulate(net, _recipe(name))["rnn"]
    x = torch.randn(3, 5, 12)
    got = results(own, x)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    tapes, ends, y = [], [], x.numpy()
    for at in range(3):
        layer = nn.Sequential(**{f"rnn.l{at}": getattr(nn, kind)(16 if at else 12, 16)})
        values = {
            f"rnn.l{at}.{key}": getattr(own, f"{key}_l{at}").detach().numpy() for key in names
        }
        out, tape = nn.forward(layer, values, y, recipe=_recipe(name), step=1)
        y, *last = (np.asarray(part, np.float32) for part in out)
        tapes.append(tape)
        ends.append(last)
    states = [np.stack(state) for state in zip(*ends, strict=True)]
    compare(got[: 1 + len(states)], [y, *states])
    dy, *dstates = upstream(y.shape, *(s.shape for s in states))
    found = []
    for at in reversed(range(3)):
        (dy,), dp = nn.backward(tapes[at], dy, *(d[at] for d in dstates))
        dy = np.asarray(dy, np.float32)
        found = [np.asarray(g, np.float32) for g in dp.values()] + found
    compare(got[1 + len(states) :], [dy, *found])


def test_one_layer_has_the_names_of_nn():
    net = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(12, 16, batch_first=True)})
    own = bridge.emulate(net, train.recipe("nvfp4"))["rnn"]
    x = torch.randn(4, 8, 12)
    values = {k.removesuffix("_l0"): v for k, v in params(net).items()}
    want = by_nn(nn.Sequential(rnn=nn.LSTM(12, 16)), values, [x.numpy()], "nvfp4")
    outputs, gradients = want[:3], want[3:]
    rng = torch.Generator().manual_seed(5)
    leaf = x.clone().requires_grad_()
    y, (h, c) = own(leaf)
    h, c = h[0], c[0]
    compare([y, h, c], outputs)
    loss = sum((t * torch.randn(t.shape, generator=rng)).sum() for t in (y, h, c))
    loss.backward()
    compare([leaf.grad, *(p.grad for p in net.parameters())], gradients)


def test_gradients_of_two_biases_have_memory_of_their_own():
    """numsim.nn returns one array for both: clipping in place must not scale it twice."""
    own = bridge.emulate(torch.nn.LSTM(3, 4), "fp8_hybrid")
    own(torch.randn(5, 2, 3))[0].sum().backward()
    assert own.bias_ih_l0.grad.data_ptr() != own.bias_hh_l0.grad.data_ptr()
    torch.nn.utils.clip_grad_norm_(own.parameters(), 1e-3)
    same_bits(own.bias_ih_l0.grad, own.bias_hh_l0.grad)


@each_recipe
def test_attention_is_three_products_and_a_softmax(name):
    net = torch.nn.ModuleDict({"attn": torch.nn.MultiheadAttention(16, 4, batch_first=True)})
    own = bridge.emulate(net, _recipe(name))["attn"]
    x = torch.randn(2, 6, 16)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    y, p = own(x, x, x, attn_mask=mask, average_attn_weights=False)
    recipe = _recipe(name)

    def run(layer, values, *inputs):
        kind = nn.Sequential(**layer)
        out, _ = nn.forward(kind, values, *inputs, recipe=recipe, step=1)
        return [np.asarray(v, np.float32) for v in (out if isinstance(out, tuple) else (out,))]

    values = {
        "attn.in_proj.weight": own.in_proj_weight.detach().numpy(),
        "attn.in_proj.bias": own.in_proj_bias.detach().numpy(),
    }
    (joined,) = run({"attn.in_proj": nn.Linear(16, 48)}, values, x.numpy())
    q, k, v = (
        np.ascontiguousarray(part.reshape(2, 6, 4, 4).transpose(0, 2, 1, 3))
        for part in np.split(joined, 3, axis=-1)
    )
    mixed, weights = run({"attn": nn.Attention(causal=True, weights=True)}, {}, q, k, v)
    out = {f"attn.out_proj.{k}": v for k, v in params(own.out_proj).items()}
    flat = np.ascontiguousarray(mixed.transpose(0, 2, 1, 3)).reshape(2, 6, 16)
    (want,) = run({"attn.out_proj": nn.Linear(16, 16)}, out, flat)
    same_bits(y, want)
    same_bits(p, weights)


def test_dropout_of_attention_is_torchs_draw():
    """Dropped weights are 0, the others doubled, before the second product."""
    own = torch.nn.functional.scaled_dot_product_attention

    class Dot(torch.nn.Module):
        def forward(self, q, k, v, p):
            return own(q, k, v, dropout_p=p)

    net = bridge.emulate(Dot(), "fp8_hybrid")
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    torch.manual_seed(1)
    got = net(q, k, v, 0.5)
    torch.manual_seed(1)
    factors = torch.nn.functional.dropout(torch.ones(2, 4, 5, 5), 0.5, training=True)
    want, _ = nn.forward(
        nn.Attention(dropout=True), {}, *(t.numpy() for t in (q, k, v, factors)),
        recipe=train.recipe("fp8_hybrid"),
    )  # fmt: skip
    same_bits(got, want)
    assert set(factors.unique().tolist()) == {0.0, 2.0}


@each_recipe
def test_embedding(name):
    ids = torch.tensor([[1, 0, 1], [5, 1, 2]])
    own = bridge.emulate(torch.nn.Embedding(6, 4), _recipe(name))
    compare(results(own, ids), by_nn(nn.Embedding(6, 4), params(own), [ids.numpy()], name))


def test_a_shared_module_and_a_tied_weight_add_their_gradients():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(6, 4)
            self.head = torch.nn.Linear(4, 6, bias=False)
            self.head.weight = self.embed.weight
            self.twice = self.again = torch.nn.Linear(4, 4)

        def forward(self, ids):
            return self.head(self.again(self.twice(self.embed(ids))))

    net = bridge.emulate(Tied(), "fp8_hybrid")
    ids = torch.tensor([[1, 0, 1], [5, 1, 2]])
    got = results(net, ids)
    p = params(net)
    linear = {"weight": p["twice.weight"], "bias": p["twice.bias"]}
    layers = [(nn.Embedding(6, 4), {"weight": p["embed.weight"]})]
    layers += [(nn.Linear(4, 4), linear)] * 2
    layers += [(nn.Linear(4, 6, bias=False), {"weight": p["embed.weight"]})]
    y, tapes = ids.numpy(), []
    for layer, values in layers:
        y, tape = nn.forward(layer, values, y, recipe=train.recipe("fp8_hybrid"))
        tapes.append(tape)
    same_bits(got[0], y)
    (g,), found = upstream(y.shape), []
    for tape in reversed(tapes):
        (g,), dp = nn.backward(tape, g)
        found.append(dp)
    same_bits(net.embed.weight.grad, found[0]["weight"] + found[3]["weight"])
    same_bits(net.twice.weight.grad, found[1]["weight"] + found[2]["weight"])
    assert set(net.state_dict()) == set(Tied().state_dict())


@pytest.mark.parametrize("turn", [lambda w: w.t(), lambda w: w[::2], lambda w: w[:, :3]])
def test_parameters_that_do_not_lie_in_order(turn):
    given = turn(torch.randn(6, 6))
    own = torch.nn.Linear(*reversed(given.shape), bias=False)
    own.weight = torch.nn.Parameter(given)
    x = torch.randn(8, 6, given.shape[1]).transpose(0, 1)[:, ::2]
    bridge.emulate(own, "fp8_hybrid")
    layer = nn.Linear(*reversed(given.shape), bias=False)
    compare(
        results(own, x),
        by_nn(layer, {"weight": given.numpy().copy()}, [x.numpy().copy()], "fp8_hybrid"),
    )


def test_copies_and_pickles_go_on_from_the_same_step():
    own = bridge.emulate(torch.nn.Sequential(torch.nn.Linear(32, 16)), train.recipe("nvfp4"))
    x = torch.randn(16, 32)
    results(own, x)
    twins = copy.deepcopy(own), pickle.loads(pickle.dumps(own))
    want = results(own, x)
    for twin in twins:
        compare(results(twin, x), want)
        assert twin[0].weight.data_ptr() != own[0].weight.data_ptr()
    fresh = bridge.emulate(bridge.restore(copy.deepcopy(own)), train.recipe("nvfp4"))
    assert not torch.equal(results(fresh, x)[1], want[1])  # step 1 again: other draws


def test_flush_to_zero_of_torch_changes_no_bit():
    x, small = torch.randn(4, 8), 2.0**-140
    own = bridge.emulate(torch.nn.Linear(8, 4, bias=False), "float32")
    with torch.no_grad():
        own.weight.mul_(small)
    want = [t.detach().clone() for t in results(own, x)]
    assert torch.set_flush_denormal(True)
    try:
        got = results(own, x)
    finally:
        torch.set_flush_denormal(False)
    assert want[0].abs().max() < 2.0**-126
    compare(got, want)


def test_results_can_be_changed_in_place_and_inputs_cannot():
    own = bridge.emulate(torch.nn.Linear(4, 4), "fp8_hybrid")
    x = torch.randn(3, 4)
    want = results(own, x)[-2]
    own.zero_grad()
    y = own(x.clone().requires_grad_())
    generator = torch.Generator().manual_seed(5)
    g = torch.randn(y.shape, generator=generator)
    y.mul_(2)
    (y * g / 2).sum().backward()
    same_bits(own.weight.grad, want)
    y = own(x)
    with torch.no_grad():
        own.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_no_gradient_twice():
    own = bridge.emulate(torch.nn.Linear(4, 4), "fp8_hybrid")
    x = torch.randn(3, 4, requires_grad=True)
    (g,) = torch.autograd.grad(own(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        g.sum().backward()


def test_a_cell_in_a_format_is_that_of_nn():
    plain = train.recipe("fp8_hybrid").rules[0][1]
    inside = train.Recipe((("*", plain), ("cell", train.Rule(pointwise="bfloat16"))))
    own = torch.nn.LSTM(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3)
    before = bridge.emulate(copy.deepcopy(own), "fp8_hybrid")(x)[0]
    params = {name[:-3]: p.detach().numpy() for name, p in own.state_dict().items()}
    (want, _, _), _ = nn.forward(nn.LSTM(3, 4), params, x.numpy(), recipe=inside)
    got = bridge.emulate(own, inside)(x)[0]
    same_bits(got, want)
    assert not torch.equal(got, before)
