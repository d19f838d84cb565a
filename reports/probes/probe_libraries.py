"""Probe the matrix products of libraries on this machine's CPU, and print what was found.

    python reports/probes/probe_libraries.py [NAME ...]

NAME: torch-int8, torch-fp8, torch-bf16, torch-fp32, numpy-fp32, onnx-int8; all without.
Needs torch, onnx and onnxruntime beside numsim. One thread: how a library deals work to threads
is no part of a rule.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import ml_dtypes
import numpy as np

from numsim.probe import ProbeError, order_of, probe

Run = Callable[[Any, Any, Any], Any]


def _torch() -> Any:
    import torch

    torch.set_num_threads(1)
    return torch


def torch_int8() -> Run:
    torch = _torch()
    return lambda a, b, c: torch._int_mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def torch_fp8() -> Run:
    torch = _torch()
    one = torch.ones(())

    def run(a: Any, b: Any, c: Any) -> Any:
        left = torch.from_numpy(a).view(torch.float8_e4m3fn)
        right = torch.from_numpy(np.ascontiguousarray(b.T)).view(torch.float8_e4m3fn).t()
        d = torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.float32)
        return d.numpy()

    return run


def torch_bf16() -> Run:
    torch = _torch()

    def run(a: Any, b: Any, c: Any) -> Any:
        left, right = (torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) for x in (a, b))
        return (left @ right).view(torch.int16).numpy().view(ml_dtypes.bfloat16)

    return run


def torch_fp32() -> Run:
    torch = _torch()
    return lambda a, b, c: (
        torch.from_numpy(a.view(np.float32)) @ torch.from_numpy(b.view(np.float32))
    ).numpy()


def numpy_fp32() -> Run:
    return lambda a, b, c: a.view(np.float32) @ b.view(np.float32)


def onnx_int8() -> Run:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    ends = [
        helper.make_tensor_value_info(name, kind, [None, None])
        for name, kind in (
            ("a", TensorProto.UINT8),
            ("b", TensorProto.INT8),
            ("d", TensorProto.INT32),
        )
    ]
    node = helper.make_node("MatMulInteger", ["a", "b"], ["d"])
    graph = helper.make_graph([node], "product", ends[:2], ends[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda a, b, c: session.run(None, {"a": a, "b": b})[0]


MACHINES: dict[str, tuple[Callable[[], Run], Any, str | None]] = {
    "torch-int8": (torch_int8, "int8", None),
    "torch-fp8": (torch_fp8, "float8_e4m3fn", None),
    "torch-bf16": (torch_bf16, "bfloat16", "bfloat16"),
    "torch-fp32": (torch_fp32, "float32", None),
    "numpy-fp32": (numpy_fp32, "float32", None),
    "onnx-int8": (onnx_int8, ("uint8", "int8"), None),
}


def main() -> None:
    np.seterr(all="ignore")
    for name in sys.argv[1:] or MACHINES:
        make, formats, out = MACHINES[name]
        print(f"== {name}", flush=True)
        for rows in (32, 8):
            try:
                print(probe(make(), formats=formats, out_format=out, c=False, rows=rows))
                break
            except ProbeError as error:
                print(f"rows = {rows}: {error}")
        if name.endswith("fp32"):
            print("order of K = 32:", order_of(make(), formats=formats, depth=32, rows=8))


if __name__ == "__main__":
    main()
