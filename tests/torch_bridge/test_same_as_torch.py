"""Without a recipe every emulated module is torch's in float64, gradients included."""

import pytest

torch = pytest.importorskip("torch")

from bridge import same_as_torch  # noqa: E402
from torch import nn  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(3)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape, bias):
    same_as_torch(nn.Linear(5, 3, bias=bias), torch.randn(*shape))


CONVOLUTIONS = {
    "plain": {},
    "stride": {"stride": 2},
    "padding": {"padding": 2, "bias": False},
    "same": {"padding": "same", "kernel_size": 4},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "replicate": {"padding": 1, "padding_mode": "replicate"},
    "dilation": {"dilation": 2, "padding": 1, "stride": 3},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4, "out_channels": 8, "dilation": 2},
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("axes", [1, 2])
def test_convolution(name, axes):
    how = {"in_channels": 4, "out_channels": 6, "kernel_size": 3} | CONVOLUTIONS[name]
    kind = nn.Conv1d if axes == 1 else nn.Conv2d
    same_as_torch(kind(**how), torch.randn(2, 4, *(9, 8)[:axes]))


def test_convolution_of_one_image_and_of_unequal_axes():
    same_as_torch(nn.Conv2d(2, 3, (3, 2), (1, 2), (2, 0), dilation=(2, 1)), torch.randn(2, 9, 8))
    same_as_torch(nn.Conv1d(2, 3, 3), torch.randn(2, 9))


@pytest.mark.parametrize("padding_idx", [None, 0, -1])
def test_embedding(padding_idx):
    ids = torch.tensor([[0, 3, 6], [6, 3, 3]])
    same_as_torch(nn.Embedding(7, 4, padding_idx=padding_idx), ids)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_recurrent(kind, layers, both, batch_first):
    module = kind(4, 5, layers, bias=not both, bidirectional=both, batch_first=batch_first)
    same_as_torch(module, torch.randn(3, 6, 4))


class Started(nn.Module):
    """A recurrent module with initial states as inputs."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, *states):
        return self.module(x, states if len(states) > 1 else states[0])


@pytest.mark.parametrize("single", [False, True])
def test_recurrent_from_states(single):
    shape = (6, 4) if single else (3, 6, 4)
    states = [torch.randn(*((4, 5) if single else (4, 3, 5))) for _ in range(2)]
    long = nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True)
    same_as_torch(Started(long), torch.randn(*shape), *states)
    same_as_torch(Started(nn.GRU(4, 5, 4, batch_first=True)), torch.randn(*shape), states[0])


@pytest.mark.parametrize("batch", [(), (3,)])
def test_cells(batch):
    x, h, c = torch.randn(*batch, 4), torch.randn(*batch, 5), torch.randn(*batch, 5)
    same_as_torch(nn.LSTMCell(4, 5), x)
    same_as_torch(Started(nn.LSTMCell(4, 5)), x, h, c)
    same_as_torch(nn.GRUCell(4, 5, bias=False), x)
    same_as_torch(Started(nn.GRUCell(4, 5)), x, h)


class SelfAttention(nn.Module):
    """Queries, keys and values are one tensor."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, **kwargs):
        return self.module(x, x, x, **kwargs)


CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
MASKS = {
    "none": {},
    "no weights": {"need_weights": False},
    "weights of heads": {"average_attn_weights": False},
    "causal": {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    "numbers": {"attn_mask": torch.randn(5, 5, dtype=torch.float64)},
    "of heads": {"attn_mask": torch.randn(8, 5, 5, dtype=torch.float64)},
    "padding": {"key_padding_mask": PADDED},
    "both": {"key_padding_mask": PADDED, "attn_mask": CAUSAL},
    "numbers and padding": {
        "key_padding_mask": PADDED, "attn_mask": torch.randn(5, 5, dtype=torch.float64),
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("name", MASKS)
def test_attention_of_one_tensor(name):
    module = SelfAttention(nn.MultiheadAttention(8, 4, batch_first=True))
    same_as_torch(module, torch.randn(2, 5, 8), **MASKS[name])


@pytest.mark.parametrize("how", [{}, {"kdim": 6, "vdim": 7}, {"bias": False}])
def test_attention_of_three_tensors(how):
    widths = (8, how.get("kdim", 8), how.get("vdim", 8))
    inputs = [torch.randn(n, 2, w) for n, w in zip((3, 5, 5), widths, strict=True)]
    same_as_torch(nn.MultiheadAttention(8, 2, **how), *inputs)
    same_as_torch(nn.MultiheadAttention(8, 2, **how), *(x[:, 0] for x in inputs))


class Dot(nn.Module):
    """scaled_dot_product_attention called by a module."""

    def forward(self, q, k, v, **kwargs):
        return nn.functional.scaled_dot_product_attention(q, k, v, **kwargs)


FOUR = torch.randn(3, 4, 5, 5).double()
DOTS = {
    "plain": ((2, 4, 5, 8), (2, 4, 6, 8), {}),
    "causal": ((2, 4, 5, 8), (2, 4, 5, 8), {"is_causal": True}),
    "causal, more keys": ((2, 4, 5, 8), (2, 4, 7, 8), {"is_causal": True}),
    "causal, fewer keys": ((2, 4, 5, 8), (2, 4, 3, 8), {"is_causal": True}),
    "scale": ((2, 4, 5, 8), (2, 4, 6, 8), {"scale": 0.3}),
    "kept": ((2, 4, 5, 8), (2, 4, 5, 8), {"attn_mask": ~CAUSAL}),
    "numbers": ((2, 1, 5, 8), (2, 1, 5, 8), {"attn_mask": torch.randn(2, 1, 5, 5).double()}),
    "of the batch": ((2, 4, 5, 8), (2, 4, 5, 8), {"attn_mask": torch.randn(2, 1, 1, 5).double()}),
    "grouped": ((2, 4, 5, 8), (2, 2, 5, 8), {"enable_gqa": True}),
    "one head": ((3, 5, 8), (3, 6, 8), {"attn_mask": torch.randn(3, 5, 6).double()}),
    "one": ((5, 8), (6, 8), {}),
    "five axes": ((2, 3, 4, 5, 8), (2, 3, 4, 5, 8), {"attn_mask": FOUR}),
    "broadcast": ((2, 4, 5, 8), (1, 4, 6, 8), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", DOTS)
def test_scaled_dot_product_attention(name):
    q, k, how = DOTS[name]
    value = torch.randn(*k[:-1], 3)
    same_as_torch(Dot(), torch.randn(*q), torch.randn(*k), value, **how)


def test_a_learned_mask_has_its_gradient():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.randn(4, 1, 6))

        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)

    same_as_torch(Biased(), torch.randn(2, 4, 5, 8), *torch.randn(2, 2, 4, 6, 8))


@pytest.mark.parametrize("first", [False, True])
def test_transformer(first):
    """Layers of torch that skip their modules in evaluation: not the emulated ones."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=first)
    module = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    same_as_torch(module, torch.randn(3, 5, 8))
    same_as_torch(module.eval(), torch.randn(3, 5, 8))
    decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    same_as_torch(decoder, torch.randn(3, 5, 8), torch.randn(3, 4, 8))
