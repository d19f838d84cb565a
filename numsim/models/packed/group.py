"""From the tensors of files to weights: the parts of each are found, and fit each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from numsim.errors import UnsupportedError
from numsim.models.keys import listing
from numsim.models.packed.declared import ENDINGS, scheme_finder
from numsim.models.packed.layouts import CACHE_ENDS, LAYOUTS
from numsim.models.packed.types import Declared, Layout, Packed, Scheme, damaged
from numsim.models.packed.unpack import STATES, scale_shape, state_of, word_count
from numsim.models.stored import DTYPES, Maps, Tensor, view
from numsim.quant import Quant

Stored = dict[str, Tensor | Packed]
WHOLE = {
    "float8_e4m3fn": ("F8_E4M3",),
    "float8_e5m2": ("F8_E5M2",),
    "float6_e2m3fn": ("U8",),
    "float4_e2m1fn": ("U8",),
}


def unpacked_names(
    stored: Mapping[str, Tensor], declared: Declared, maps: Maps
) -> tuple[Stored, dict[str, Tensor]]:
    """Return the tensors of a checkpoint as if nothing were packed, and the scales of its cache.

    A packed weight stands by its plain name, a `Packed`; its parts are gone.

    Raises
    ------
    NumsimError
        A part is missing, of another type, or of a shape that does not fit the others.
    UnsupportedError
        Tensors of another method than the one that is declared.
    """
    left: dict[str, Tensor] = dict(stored)
    cache = {name: left.pop(name) for name in stored if name.endswith(CACHE_ENDS)}
    made: dict[str, Packed] = {}
    # longer ends first, so that none is taken for the end of another
    find = scheme_finder(declared)
    used = {key for _, s in declared.schemes for key in (s.layout, s.experts) if key}
    for key in sorted(used, key=lambda k: (-len(LAYOUTS[k].codes), k)):
        layout = LAYOUTS[key]
        for name in [name for name in left if _holds_codes(name, left, layout)]:
            stem = name.removesuffix(layout.codes)
            scheme = find(stem)
            if scheme is None or key not in (scheme.layout, scheme.experts):
                continue
            packed = _packed(stem, name, scheme, layout, left, maps)
            made[packed.name] = packed
    for name, packed in made.items():
        if name in left:
            rule = f"must be stored once; {packed.parts['codes'].file.name} has it packed too"
            raise damaged(left[name].file, name, rule, left[name].dtype)
    _check_rest(left, declared)
    return {**left, **made}, cache


def _holds_codes(name: str, stored: Mapping[str, Tensor], layout: Layout) -> bool:
    if not name.endswith(layout.codes):
        return False
    if layout.order == "high_first":  # in bytes of any type
        scaled = name.removesuffix(layout.codes) + layout.scale in stored
        return scaled or stored[name].dtype not in DTYPES
    if layout.codes == "":  # any name: those of a narrow type that have scales
        return stored[name].dtype not in DTYPES and f"{name}{layout.scale}" in stored
    return layout.codes != layout.weight or stored[name].dtype not in DTYPES


def _packed(
    stem: str, name: str, scheme: Scheme, layout: Layout, left: dict[str, Tensor], maps: Maps
) -> Packed:
    """Return a weight of its parts, which are taken out of `left`."""
    ends = {
        "codes": layout.codes, "scale": layout.scale, "above": layout.above, "zero": layout.zero,
        "groups": layout.groups, "shape": layout.shape, "inputs": layout.inputs,
        **{end: end for end in layout.beside},
    }  # fmt: skip
    file = left[name].file
    parts = {
        role: left.pop(stem + end)
        for role, end in ends.items()
        if (end or role == "codes") and stem + end in left
    }
    needed = ["scale"] + (["above"] if layout.above else [])
    needed += ["zero"] if scheme.weights.zero_point else []
    needed += ["inputs"] if scheme.static else []
    needed += ["groups"] if scheme.scattered else []
    for role in needed:
        if role not in parts:
            rule = f"must be stored beside {name}"
            raise damaged(file, stem + ends[role], rule, "no such tensor")
    if "zero" in parts and not scheme.weights.zero_point:  # older files store zeros
        zero = parts.pop("zero")
        if maps[zero.file][zero.begin : zero.end].any():
            rule = f"must be 0 or absent: {stem} is declared symmetric"
            raise damaged(zero.file, stem + layout.zero, rule, "other zero points")
    whole = stem + layout.weight
    if layout.order == "high_first":
        return _flat(whole, stem, scheme, layout, parts, maps)
    shape = _shape(stem, scheme.weights, layout, parts, maps)
    weights = _plain(scheme.weights, shape)
    if weights.scale_format == "float32" and not weights.zero_point:
        word = {"BF16": "bfloat16", "F16": "float16"}.get(parts["scale"].dtype, "float32")
        weights = replace(weights, scale_format=word)  # what it takes where it is stored
    scheme = replace(scheme, weights=weights)
    packed = Packed(whole, scheme, layout, parts, shape)
    _check_types(packed, stem)
    _check_shapes(packed, stem)
    return packed


def _plain(quant: Quant, shape: tuple[int, ...]) -> Quant:
    """Return the usual words for tiles that are a row, or all of a matrix."""
    if quant.block == shape:
        return replace(quant, granularity="per_tensor", block=None)
    if quant.block == (1, shape[-1]):
        return replace(quant, granularity="per_channel", block=None)
    return quant


def _flat(
    whole: str, stem: str, scheme: Scheme, layout: Layout, parts: dict[str, Tensor], maps: Maps
) -> Packed:
    """Return a 4-bit matrix of bitsandbytes, whose sizes are said beside it."""
    needed = [".weight.quant_map"]
    nested = parts["scale"].dtype == "U8"
    needed += [".weight.nested_absmax", ".weight.nested_quant_map"] if nested else []
    for end in needed:
        if end not in parts:
            rule = f"must be stored beside {whole}"
            raise damaged(parts["codes"].file, stem + end, rule, "no such tensor")
    if not set(STATES) & set(parts):
        rule = f"must be stored beside {whole}"
        raise damaged(parts["codes"].file, f"{whole}.quant_state", rule, "no such tensor")
    packed = Packed(whole, scheme, layout, parts, ())
    state = state_of(packed, maps)
    shape = (state["shape"][0], state["shape"][1])
    size, block = math.prod(shape), state["blocksize"]
    sizes = {"codes": -(-size // 2), "scale": -(-size // block), ".weight.quant_map": 16}
    if nested:
        sizes[".weight.nested_quant_map"] = 256
        sizes[".weight.nested_absmax"] = -(-sizes["scale"] // state["nested_blocksize"])
    for role, count in sizes.items():
        t = parts[role]
        end = {"codes": ".weight", "scale": layout.scale}.get(role, role)
        if (t.end - t.begin if role == "codes" else math.prod(t.shape)) != count:
            rule = f"must have {count} elements for {list(shape)} in blocks of {block}"
            raise damaged(t.file, stem + end, rule, str(list(t.shape)))
        if role != "codes" and not (t.dtype in DTYPES or (nested and role == "scale")):
            rule = f"must be stored as {' or '.join(DTYPES)}"
            raise damaged(t.file, stem + end, rule, t.dtype)
    quant = replace(scheme.weights, block=block)
    return replace(packed, shape=shape, scheme=replace(scheme, weights=quant))


def _shape(
    stem: str, quant: Quant, layout: Layout, parts: dict[str, Tensor], maps: Maps
) -> tuple[int, ...]:
    """Return [out, in] of a matrix from the shape of its codes."""
    t, bits = parts["codes"], quant.fmt.bits
    least = 3 if layout.codes in ("", "_blocks") else 2
    if len(t.shape) != (4 if layout.codes == "_blocks" else least) or 0 in t.shape:
        raise damaged(t.file, stem + layout.codes, "must be a matrix", f"shape {list(t.shape)}")
    if layout.order == "whole":
        return (*t.shape[:-2], t.shape[-1], t.shape[-2]) if layout.turned else t.shape
    if layout.order == "awq":
        return (t.shape[1] * 8, t.shape[0])
    if layout.turned:
        return (t.shape[1], t.shape[0] * 32 // bits)
    width = 32 if t.dtype == "I32" else 8
    if layout.codes == "_blocks":
        return (*t.shape[:-2], t.shape[-2] * t.shape[-1] * 8 // bits)
    if "shape" not in parts:
        return (t.shape[0], t.shape[1] * width // bits)
    told = tuple(int(n) for n in view(maps, parts["shape"]).reshape(-1))
    into = told[1] if len(told) == 2 else 0
    counts = [word_count(bits, max(into, 1), padded=padded) for padded in (False, True)]
    if len(told) != 2 or told[0] != t.shape[0] or told[1] < 1 or t.shape[1] not in counts:
        rule = f"must be the shape of a matrix whose {stem}{layout.codes} is {list(t.shape)}"
        raise damaged(parts["shape"].file, stem + layout.shape, rule, str(list(told)))
    return told


def _check_types(p: Packed, stem: str) -> None:
    """Raise where a part is stored as another type than the method writes."""
    fmt = p.scheme.weights.fmt
    if p.layout.order == "whole":
        known = WHOLE.get(fmt.name, ("I8",))
    else:
        known = ("I32",) if fmt.kind == "integer" else ("U8",)
    quant = p.scheme.weights
    if quant.scale_format == "float8_e8m0fnu":
        narrow: tuple[str, ...] = ("U8", "F8_E8M0")
    elif quant.scale_format == "float8_e4m3fn":
        narrow = ("F8_E4M3",)
    else:
        narrow = (*DTYPES, "F8_E8M0")
    checks = [("codes", p.layout.codes, known), ("scale", p.layout.scale, narrow)]
    checks += [("above", p.layout.above, ("F32",)), ("inputs", p.layout.inputs, tuple(DTYPES))]
    whole = p.layout.order == "whole"
    checks.append(("zero", p.layout.zero, ("I8", "I32", "I64") if whole else ("I32",)))
    checks.append(("groups", p.layout.groups, ("I32", "I64")))
    for role, end, types in checks:
        t = p.parts.get(role)
        if t is not None and t.dtype not in types:
            rule = f"must be stored as {' or '.join(types)}"
            raise damaged(t.file, stem + end, rule, t.dtype)


def _check_shapes(p: Packed, stem: str) -> None:
    """Raise where scales, zero points or groups do not fit the codes."""
    quant, (out, into) = p.scheme.weights, p.shape[-2:]
    want = scale_shape(quant, p.shape)
    allowed = [(*want[:-2], *want[:-3:-1]) if p.layout.turned else want]
    if len(want) == 3 and p.layout.turned:
        allowed.append(want)  # down_proj of FBGEMM
    if quant.granularity == "per_tensor" and len(p.shape) == 2:
        allowed += [(1,), (1, 1)]
    if quant.block is None and quant.granularity != "per_tensor" and not p.layout.turned:
        allowed += [(out,)]
    words = word_count(p.bits, out)
    whole, awq = p.layout.order == "whole", p.layout.order == "awq"
    groups = want[-1] if len(want) > 1 else 1
    zero = [(groups, out // 8 if awq else words)] if p.layout.turned else [(words, groups)]
    if not whole and not p.layout.turned:
        zero.append((word_count(p.bits, out, padded=True), groups))
    each = "" if quant.block is None else f" in blocks of {quant.block}"
    of = f"of {stem}{p.layout.weight} {list(p.shape)}{each}"
    checks = [
        ("scale", p.layout.scale, allowed, f"the scales {of}"),
        ("zero", p.layout.zero, allowed if whole else zero, f"the zero points {of}"),
        ("groups", p.layout.groups, [(into,)], f"the group of each of {into} columns"),
        ("above", p.layout.above, [(), (1,)], "one number"),
        ("inputs", p.layout.inputs, [(), (1,), (1, 1)], "one number"),
    ]
    for role, end, shapes, what in checks:
        t = p.parts.get(role)
        if t is not None and t.shape not in shapes:
            rule = f"must be {list(shapes[0])}, {what}"
            remedy = "correct the sizes in the table of the method, or quantise it again"
            raise damaged(t.file, stem + end, rule, str(list(t.shape)), remedy)
    if p.layout.turned and not whole and not awq and p.parts["codes"].shape[0] * 32 % p.bits:
        raise damaged(p.parts["codes"].file, stem + p.layout.codes, "must hold whole codes", "rest")


def _check_rest(left: Mapping[str, Tensor], declared: Declared) -> None:
    """Raise where tensors that are left belong to a method, and so to another than declared."""
    for name, t in left.items():
        other = next((who for end, who in ENDINGS.items() if name.endswith(end)), None)
        narrow = t.dtype not in DTYPES and name.endswith("weight")
        if other is None and not narrow:
            continue
        raise UnsupportedError(
            f"load_model: {t.file.name}: {listing([name])} must belong to a weight of "
            f"{declared.method}, as {declared.file} says; got a tensor of {other or t.dtype} that "
            "no module there accounts for; correct the table, or quantise the checkpoint again"
        )
