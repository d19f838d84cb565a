"""Operands of products: read-only for everyone else from the first product on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.quant import QTensor
from numsim.quant.kept import Key, known
from numsim.quant.types import readable


class _Memory:
    """The memory of an array as one that may be written; the array stays alive with it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        described = array.__array_interface__
        self.__array_interface__ = described | {"data": (described["data"][0], False)}


def locked(q: QTensor) -> QTensor:
    """Return `q` as products read it; its codes and scales cannot be written from now on.

    What products keep with a tensor would no longer be true of changed codes. The arrays that `q`
    holds become read-only, and so does the memory that they are views of (that of `q.T` is that of
    `q`). Kernels never write operands, but are compiled for arrays that may be written and would
    be compiled again for others: they get a view of the codes that was made before.

    Raises
    ------
    NumsimError
        For codes of another type than their format's, which kernels would read as other codes.

    Examples
    --------
    >>> q = QTensor.from_codes([[1, 2]], "int8")
    >>> locked(q).codes is q.codes, q.codes.flags.writeable
    (False, False)
    """
    seen = known(q, "locked")
    if seen is None:
        codes = readable(q)
        if codes.dtype != q.fmt.code_dtype:
            raise NumsimError(
                f"matmul: codes of {q.fmt.label} are stored as {q.fmt.code_dtype}; got a QTensor "
                f"of {codes.dtype}; QTensor.from_codes converts codes and checks them"
            )
        seen = [codes.view() if codes.flags.writeable else np.asarray(_Memory(codes))]
        q.packed[Key("codes")] = q.packed[Key("locked")] = seen
        for array in (q.codes, q.scale, q.scale_codes, q.zero_point):
            while isinstance(array, np.ndarray):
                array.flags.writeable = False
                array = array.base
    read = object.__new__(QTensor)  # one tensor: what is packed for it is packed once
    read.__dict__.update(q.__dict__, codes=seen[0])
    return read
