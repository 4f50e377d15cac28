"""The plugins' own ``enqueue`` with the real kernels on host memory, against the nodes' function bodies."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from isnet_trt.cuda import plugins
from isnet_trt.cuda.context_ops import NAMESPACE, Attention, Operation, Pool
from isnet_trt.engines.tensorrt_rtx import LIBRARY
from isnet_trt.export import functions
from tests.interpreter import use_interpreter
from tests.kernels.variants import TritonKernels

use_interpreter()

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="there is no tensorrt-rtx")
ELEMENTS = {"fp32": (np.float32, TensorProto.FLOAT), "fp16": (np.float16, TensorProto.FLOAT16)}
# Both round their weights and results; the body keeps its products in float32 only where they are float32.
TOLERANCE = {"fp32": 3e-6, "fp16": 4e-3}
SCALE = 0.17677669


def by_body(operation: type[Operation], arrays: dict[str, np.ndarray], types: dict[str, str]) -> list[np.ndarray]:
    """The node's outputs under ONNX Runtime, through its function body."""
    attributes = dict.fromkeys(operation.attributes, SCALE)
    names = list(operation.outputs)
    node = helper.make_node(operation.name, list(arrays), names, domain=NAMESPACE, **attributes)
    values = [helper.make_tensor_value_info(n, ELEMENTS[types[n]][1], a.shape) for n, a in arrays.items()]
    results = [helper.make_tensor_value_info(n, ELEMENTS[types[n]][1], None) for n in names]
    opsets = [helper.make_opsetid("", functions.OPSET), helper.make_opsetid(NAMESPACE, 1)]
    graph = helper.make_graph([node], "one", values, results)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    functions.attach(model, "plain")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, arrays)


def by_plugin(
    operation: type[Operation], arrays: dict[str, np.ndarray], types: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> list[np.ndarray]:
    """The same through the plugin: sizes from descriptions, workspace as it asked for, addresses in order."""
    library = LIBRARY.load()
    kinds = {"fp32": library.DataType.FLOAT, "fp16": library.DataType.HALF}
    inputs = [SimpleNamespace(dims=a.shape, type=kinds[types[n]]) for n, a in arrays.items()]
    kernels = TritonKernels(("fp32", "fp16"), width=32)
    plugin = plugins.plugin_class(library)(
        operation, "node", dict.fromkeys(operation.attributes, SCALE), plugins.Host(kernels, 13)
    )
    largest = [SimpleNamespace(desc=one, max=one.dims) for one in inputs]
    workspace = np.full(plugin.get_workspace_size(largest, []) + 256, 0x5A, np.uint8)
    results = [np.full(shapes[n], 777, ELEMENTS[types[n]][0]) for n in operation.outputs]
    address = -(-workspace.ctypes.data // 256) * 256
    sources = [array.ctypes.data for array in arrays.values()]
    plugin.enqueue(inputs, [], sources, [result.ctypes.data for result in results], address, 0)
    assert plugin.host.failures == []
    assert len(kernels.log) == 2  # in parts, which the second joins
    return results


def aligned(array: np.ndarray) -> np.ndarray:
    """The array at a multiple of 256, as device memory is."""
    place = np.empty(array.nbytes + 256, np.uint8)
    start = -place.ctypes.data % 256
    made = place[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    made[...] = array
    return made


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_attention(kind: str) -> None:
    rng = np.random.default_rng(1)
    shapes = {"q": (2, 21, 32), "k": (2, 333, 32), "v": (2, 333, 32)}
    arrays: dict[str, Any] = {n: aligned(rng.standard_normal(s).astype(ELEMENTS[kind][0])) for n, s in shapes.items()}
    arrays["bias"] = aligned(np.log(rng.integers(1, 9, (2, 333)).astype(np.float32)))
    arrays["bias"][:, 5] = -np.inf
    types = dict.fromkeys(("q", "k", "v", "out"), kind) | {"bias": "fp32"}
    (wanted,) = by_body(Attention, arrays, types)
    (made,) = by_plugin(Attention, arrays, types, {"out": (2, 21, 32)})
    np.testing.assert_allclose(made.astype(np.float64), wanted.astype(np.float64), atol=TOLERANCE[kind])


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_region_pool(kind: str) -> None:
    rng = np.random.default_rng(2)
    arrays: dict[str, Any] = {
        "logits": aligned(4 * rng.standard_normal((1, 9, 357)).astype(np.float32)),
        "features": aligned(rng.standard_normal((1, 357, 40)).astype(ELEMENTS[kind][0])),
    }
    arrays["logits"][:, 4] = -40  # wins nowhere
    types = {"logits": "fp32", "features": kind, "centres": kind, "log_counts": "fp32"}
    wanted = by_body(Pool, arrays, types)
    made = by_plugin(Pool, arrays, types, {"centres": (1, 9, 40), "log_counts": (1, 9)})
    np.testing.assert_allclose(made[0].astype(np.float64), wanted[0].astype(np.float64), atol=TOLERANCE[kind])
    np.testing.assert_allclose(made[1], wanted[1], rtol=1e-6)
    assert np.isneginf(made[1][0, 4])


def test_sizes_of_a_description_are_those_of_the_operation() -> None:
    library = LIBRARY.load()
    plugin = plugins.plugin_class(library)(Pool, "node", {}, plugins.Host())
    tensors = [SimpleNamespace(type=library.DataType.FLOAT), SimpleNamespace(type=library.DataType.BF16)]
    assert plugin._size(tensors, [(2, 9, 35), (2, 35, 40)]) == Pool(2, 9, 35, 40, "fp32", "bf16")
    plugin = plugins.plugin_class(library)(Attention, "node", {"scale": 1.0}, plugins.Host())
    tensors = [SimpleNamespace(type=library.DataType.HALF)] * 3 + [SimpleNamespace(type=library.DataType.FLOAT)]
    assert plugin._size(tensors, [(1, 5, 32), (1, 7, 32), (1, 7, 32), (1, 7)]) == Attention(1, 5, 7, 32, "fp16")
