"""Exchange the products of a torch module for those of numsim.nn, and back."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MethodType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from numsim.errors import NumsimError, UnsupportedError, near_names
from numsim.float_state import known_floats
from numsim.nn.products import Context
from numsim.torch import modules
from numsim.torch.products import Call, refused_tensor
from numsim.train import Recipe
from numsim.train import recipe as named_recipe

Module = Any

# Functions that sum products. Where a module calls one itself, the sum is torch's, not the unit's.
SUMS = frozenset({
    "__imatmul__", "__matmul__", "__rmatmul__", "_grouped_mm", "_int_mm", "_scaled_mm",
    "addbmm", "addbmm_", "addmm", "addmm_", "addmv", "addmv_", "baddbmm", "baddbmm_",
    "bilinear", "bmm", "cdist", "chain_matmul", "conv1d", "conv2d", "conv3d", "conv_tbc",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "dot", "einsum",
    "embedding_bag", "grouped_mm", "gru", "gru_cell", "inner", "linalg_matmul",
    "linalg_matrix_power", "linalg_multi_dot", "linalg_vecdot", "linear", "lstm", "lstm_cell",
    "matmul", "matrix_power", "mm", "multi_dot", "multi_head_attention_forward", "mv",
    "rnn_relu", "rnn_relu_cell", "rnn_tanh", "rnn_tanh_cell", "scaled_mm", "tensordot", "vdot",
    "vecdot",
})  # fmt: skip

# Modules of torch whose sums numsim.nn has no layer for.
REFUSED: tuple[tuple[Any, str], ...] = (
    (torch.nn.modules.conv._ConvTransposeNd, "transposed convolutions are not emulated"),
    (torch.nn.modules.conv._ConvNd, "convolutions are emulated along one and two axes"),
    (torch.nn.RNNBase, "of recurrent modules LSTM and GRU are emulated"),
    (torch.nn.RNNCellBase, "of recurrent cells LSTMCell and GRUCell are emulated"),
    (torch.nn.Bilinear, "bilinear forms are not emulated"),
    (torch.nn.EmbeddingBag, "sums of rows are not emulated; use Embedding"),
)


@dataclass
class _Emulation:
    recipe: Recipe | None
    strict: bool
    scaling: dict[str, Any] = field(default_factory=dict)  # delayed scales, by product and tensor


class _Names(threading.local):
    def __init__(self) -> None:
        self.inside: list[_Forward] = []


_NAMES = _Names()


@dataclass(eq=False)
class _Forward:
    """In place of a module's ``forward``: computes it, or notes that torch is inside it."""

    module: Module
    name: str
    emulation: _Emulation
    work: modules.Work | None  # None: its own forward
    before: Any = None  # a forward that the module had as an attribute
    steps: int = 0  # calls in training

    def call(self) -> Call:
        """Return the call that runs now. Without training: step 0, and scales stay as they are."""
        e, training = self.emulation, self._trains()
        return Call(
            self.name, e.recipe, self.steps if training else 0,
            e.scaling if training else dict(e.scaling), training,
        )  # fmt: skip

    def _trains(self) -> bool:
        return bool(self.module.training) and torch.is_grad_enabled()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.steps += self._trains()
        if self.work is not None:
            return self.work(self.module, self.call(), *args, **kwargs)
        own = self.before or MethodType(type(self.module).forward, self.module)
        first = not _NAMES.inside
        _NAMES.inside.append(self)
        try:
            if not first:
                return own(*args, **kwargs)
            with _Sums():
                return own(*args, **kwargs)
        finally:
            _NAMES.inside.pop()


class _Sums(TorchFunctionMode):  # type: ignore[misc]
    """Sees the functions of torch that modules call themselves."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        name = getattr(function, "__name__", "")
        inside = _NAMES.inside[-1]
        if name == "scaled_dot_product_attention":
            return modules.scaled_dot_product_attention(inside.call(), *args, **given)
        if name in SUMS and inside.emulation.strict:
            raise UnsupportedError(
                f"numsim.torch: {inside.name or 'the module'} calls torch's {name}, whose sum is "
                "not emulated; use a module of torch.nn for it, or strict=False to leave it to "
                "torch"
            )
        return function(*args, **given)


def _seen(module: Module, args: Any) -> None:
    """Do nothing, as a hook: TransformerEncoderLayer then calls its modules one by one."""


def _reason(module: Module, recipe: Any, work: modules.Work | None, base: Any) -> str | None:
    """Return why a module cannot be emulated; None where it can, or has no sums of its own."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled; emulate the module that it was made of"
    place = type(module).__module__
    if place.startswith(("torch.ao.", "torch._dynamo.")):
        return f"it is {place}.{type(module).__name__}; emulate the module that it was made of"
    if work is None:
        return next((why for kind, why in REFUSED if isinstance(module, kind)), None)
    if "forward" in vars(module) or type(module).forward is not base.forward:
        return f"its forward is not that of torch.nn.{base.__name__}"
    for name, parameter in module.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            return "its sizes are not known yet; run it once before"
        why = refused_tensor(parameter, recipe)
        if why is not None:
            return f"{name}: {why}"
    for name, wanted in (
        ("proj_size", 0), ("max_norm", None), ("scale_grad_by_freq", False), ("sparse", False),
        ("bias_k", None), ("add_zero_attn", False),
    ):  # fmt: skip
        if getattr(module, name, wanted) != wanted:
            word = "add_bias_kv" if name == "bias_k" else name
            return f"{word} is not emulated"
    return None


def _check_recipe(recipe: Any, products: list[str], names: list[str]) -> None:
    context = Context(rules=recipe.rule)
    for name in products:
        context.rule(name)  # a rule for it, that its unit can compute
    dots = [f"{name}." if name else "" for name in names]
    for glob, _ in recipe.rules:
        inner = (f"{dot}{end}" for dot in dots for end in ("qk", "pv", "softmax", "cell"))
        if names and not any(fnmatchcase(name, glob) for name in (*products, *inner)):
            raise NumsimError(
                f"numsim.torch.emulate: every glob must name a product; {glob!r} matches none of "
                f"{', '.join(products[:8])}{near_names(glob, products)}"
            )


@known_floats
def emulate(module: Module, recipe: Recipe | str | None, *, strict: bool = True) -> Module:
    """Let `numsim.nn` compute the products of a torch module, forward and backward.

    Linear, Conv1d, Conv2d, Embedding, LSTM, GRU (and their cells), MultiheadAttention and
    ``torch.nn.functional.scaled_dot_product_attention`` become calls of `numsim.nn.forward` and
    `backward`, the same in every bit; everything else stays torch's. Parameters, their names, the
    state_dict and the optimizers of the module stay as they are.

    A product has the name of its module: ``encoder.layers.0.linear1``; an LSTM or GRU has
    ``.input`` and ``.recurrent``, of several layers or directions ``.l0.input``,
    ``.l0_reverse.input``; attention ``.in_proj`` (``.q_proj``, ``.k_proj``, ``.v_proj`` where
    queries, keys and values are not one tensor), ``.qk`` and ``.pv``; scaled_dot_product_attention
    those two under the name of the module that calls it. `pointwise` of a rule reaches what numsim
    computes: the cells (``.cell``) and the softmax of attention (``.softmax``).

    Parameters
    ----------
    module : torch.nn.Module
        On the CPU, float32; it is changed in place.
    recipe
        A `numsim.train.Recipe` or the name of one. None: float64, rounded once to the type of the
        module. A recipe with storage needs `numsim.torch.optimizer` too.
    strict
        True: raise for a module that has sums of products and cannot be emulated, and when a
        module calls such a function of torch itself. False: leave those to torch.

    Returns
    -------
    torch.nn.Module
        The module itself.

    Raises
    ------
    NumsimError
        For a recipe that does not fit; a module that is emulated already.
        `UnsupportedError` where something cannot be emulated, with the names.

    Notes
    -----
    The k-th call of a module in training is step k of its random streams and delayed scales; other
    calls are step 0, with the scales of now. Pickling or copying the module keeps them.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.3]]))
    >>> x = torch.tensor([[1.0, 1.0]])
    >>> emulate(layer, "fp8_hybrid")(x).item()  # 0.3 is kept as 128 / 448
    1.2857...
    >>> restore(layer)(x).item()
    1.2999...
    """
    if not isinstance(module, torch.nn.Module):
        raise NumsimError(f"numsim.torch.emulate: a torch.nn.Module; got {type(module).__name__}")
    if isinstance(recipe, str):
        recipe = named_recipe(recipe)
    if recipe is not None and not isinstance(recipe, Recipe):
        raise NumsimError(
            "numsim.torch.emulate: recipe is a numsim.train.Recipe, its name or None; got "
            f"{type(recipe).__name__}"
        )
    found = list(module.named_modules())
    chosen: list[tuple[str, Module, Any]] = []
    refused: list[str] = []
    for name, part in found:
        if isinstance(vars(part).get("forward"), _Forward):
            raise NumsimError(
                f"numsim.torch.emulate: {name or 'the module'} is emulated already; "
                "numsim.torch.restore(module) first"
            )
        base, work = next((kind for kind in modules.KINDS if isinstance(part, kind[0])), (0, None))
        why = _reason(part, recipe, work, base)
        if why is not None:
            refused.append(f"{name or 'the module'} ({type(part).__name__}): {why}")
        elif work is not None or _runs(part):
            chosen.append((name, part, work))
    if strict and refused:
        raise UnsupportedError(
            f"numsim.torch.emulate: {'; '.join(refused)}; strict=False leaves "
            f"{'it' if len(refused) == 1 else 'them'} to torch"
        )
    if recipe is not None:
        products = [p for name, part, work in chosen if work for p in modules.products(part, name)]
        _check_recipe(recipe, products, [name for name, _, _ in chosen])
    emulation = _Emulation(recipe, bool(strict))
    for name, part, work in chosen:
        before = vars(part).get("forward")
        vars(part)["forward"] = _Forward(part, name, emulation, work, before)
        if work is not None:
            part.register_forward_pre_hook(_seen)
    return module


def _runs(module: Module) -> bool:
    """Whether a module has a forward of its own: lists of modules do not."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    return type(module).forward is not torch.nn.Module.forward or "forward" in vars(module)


@known_floats
def restore(module: Module) -> Module:
    """Undo `emulate`, of this module and all in it.

    Raises
    ------
    NumsimError
        For something that is no module.

    Examples
    --------
    >>> import torch
    >>> layer = emulate(torch.nn.Linear(2, 1), "int8")
    >>> "forward" in vars(restore(layer))
    False
    """
    if not isinstance(module, torch.nn.Module):
        raise NumsimError(f"numsim.torch.restore: a torch.nn.Module; got {type(module).__name__}")
    for part in module.modules():
        own = vars(part).get("forward")
        if not isinstance(own, _Forward):
            continue
        del vars(part)["forward"]
        if own.before is not None:
            vars(part)["forward"] = own.before
        for key, hook in list(part._forward_pre_hooks.items()):
            if hook is _seen:
                part._forward_pre_hooks.pop(key)
    return module
