"""Arrays out of what other libraries hold: torch tensors of any type, DLPack, `__array__`."""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError


def host_array(who: str, x: Any) -> NDArray[Any]:
    """Return `x` as a NumPy array of its own type; `who` begins the message of a refusal.

    A torch tensor is detached, and copied to the host where it lies on a device. bfloat16 and
    float8 arrive as the types of ml_dtypes, bit for bit. No library is imported for that.

    Raises
    ------
    NumsimError
        For what makes no array.

    Examples
    --------
    >>> host_array("encode", [1, 2])
    array([1, 2])
    """
    if type(x) is np.ndarray:
        return x
    try:
        if str(getattr(x, "dtype", "")).startswith("torch."):
            return _from_torch(who, x)
        return _plain(x)
    except NumsimError:
        raise
    except Exception as error:  # whatever the input's own __array__ or __dlpack__ raises
        raise NumsimError(
            f"{who}: the input makes no array ({' '.join(str(error).split())}); pass a rectangular "
            "NumPy array"
        ) from None


def _from_torch(who: str, x: Any) -> NDArray[Any]:
    name = str(x.dtype).removeprefix("torch.")
    if name.startswith(("quint", "qint")):
        raise NumsimError(f"{who}: {x.dtype} has scales of its own; pass x.dequantize()")
    if name.endswith("_x2"):
        raise NumsimError(
            f"{who}: {x.dtype} packs two numbers in a byte; x.view(torch.uint8) has the bytes: "
            "split them (low half first) and wrap them by QTensor.from_codes"
        )
    tensor = x.detach() if hasattr(x, "detach") else x
    tensor = tensor.cpu() if hasattr(tensor, "cpu") else tensor
    tensor = tensor.resolve_neg() if hasattr(tensor, "resolve_neg") else tensor
    kind = getattr(ml_dtypes, name, None)
    if kind is None:
        return _plain(tensor)
    # NumPy has no such type: the bits travel as integers, a type of the tensor's own library
    roots = [cls.__module__.partition(".")[0] for cls in (type(x.dtype), *type(x).__mro__)]
    integer = f"int{8 * np.dtype(kind).itemsize}"
    found = (getattr(sys.modules.get(root), integer, None) for root in roots)
    return _plain(tensor.view(next(t for t in found if t is not None))).view(kind)


def _plain(x: Any) -> NDArray[Any]:
    by_numpy = any(hasattr(x, name) for name in ("__array__", "__array_interface__"))
    if hasattr(x, "__dlpack__") and not by_numpy:
        return np.from_dlpack(x, device="cpu")
    return np.asarray(x)
