"""The Winograd form against the direct convolution, and which convolutions it replaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from isnet_trt.engines.memory import limit_folding
from isnet_trt.export import winograd
from isnet_trt.export.functions import OPSET
from isnet_trt.export.sessions import open_session

ERROR = (np.float32, 1e-4, 1e-5)
"""Type, largest and root-mean-square error against float64, relative to the result's standard deviation."""


def model(weight: np.ndarray, bias: np.ndarray | None, **attributes: Any) -> onnx.ModelProto:
    """One convolution of free batch and size."""
    names = ["x", "weight"] if bias is None else ["x", "weight", "bias"]
    node = helper.make_node("Conv", names, ["y"], **{"pads": [1, 1, 1, 1], **attributes})
    free = helper.make_tensor_value_info
    channels = weight.shape[1] * attributes.get("group", 1)
    graph = helper.make_graph(
        [node],
        "convolution",
        [free("x", TensorProto.FLOAT, ["b", channels, "h", "w"])],
        [free("y", TensorProto.FLOAT, ["b", len(weight), "h", "w"])],
        [numpy_helper.from_array(v, k) for k, v in (("weight", weight), ("bias", bias)) if v is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def arrays(outputs: int, inputs: int, kernel: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(outputs + inputs)
    weight = random.standard_normal((outputs, inputs, kernel, kernel)) / np.sqrt(inputs * kernel**2)
    return weight.astype(np.float32), random.standard_normal(outputs).astype(np.float32)


def replaced(proto: onnx.ModelProto) -> bool:
    return [node.op_type for node in winograd.rewrite(proto).graph.node] == [winograd.NAME]


@pytest.mark.parametrize("size", [(1, 2), (2, 5), (4, 4), (7, 3), (13, 10), (16, 21)])
@pytest.mark.parametrize("batch", [1, 3])
def test_result_is_the_convolution(size: tuple[int, int], batch: int) -> None:
    weight, bias = arrays(256, 259)
    proto = winograd.rewrite(model(weight, bias))
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(7).standard_normal((batch, 259, *size), dtype=np.float32)
    actual = session.run(None, {"x": x})[0]
    want = F.conv2d(*(torch.from_numpy(a).double() for a in (x, weight, bias)), padding=1).numpy()
    assert actual.dtype == ERROR[0]
    assert actual.shape == want.shape
    error = (actual - want) / want.std()
    assert np.abs(error).max() <= ERROR[1]
    assert np.sqrt((error**2).mean()) <= ERROR[2]


@pytest.mark.parametrize("half", [False, True])
def test_filters_are_folded_within_the_limit_of_a_bundle(tmp_path: Path, half: bool) -> None:
    """`limit_folding` must leave the session as ONNX Runtime makes it without a limit, for half weights too."""
    weight, bias = arrays(256, 256)
    proto = winograd.rewrite(model(weight, bias))
    if half:
        wide = proto.graph.initializer[0]
        cast = helper.make_node("Cast", ["narrow"], [wide.name], to=TensorProto.FLOAT)
        narrow = numpy_helper.from_array(numpy_helper.to_array(wide).astype(np.float16), "narrow")
        proto.graph.initializer.remove(wide)
        proto.graph.initializer.append(narrow)
        proto.graph.node.insert(0, cast)
    content = proto.SerializeToString()
    counts = []
    for size in (None, len(content), 0):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 4
        if size is not None:
            limit_folding(options, size)
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        counts.append(len(onnx.load(tmp_path / "optimised.onnx").graph.node))
    assert counts[1] == counts[0] < counts[2]


def test_wide_convolutions_are_replaced() -> None:
    assert replaced(model(*arrays(256, 300)))
    assert replaced(model(*arrays(256, 256), strides=[1, 1], dilations=[1, 1], group=1, kernel_shape=[3, 3]))


def test_others_stay() -> None:
    weight, bias = arrays(256, 256)
    assert not replaced(model(*arrays(256, 255)))
    assert not replaced(model(*arrays(255, 256)))
    assert not replaced(model(*arrays(256, 256, kernel=1), pads=[0, 0, 0, 0]))
    assert not replaced(model(weight, None))
    assert not replaced(model(weight, bias, strides=[2, 2]))
    assert not replaced(model(weight, bias, dilations=[2, 2], pads=[2, 2, 2, 2]))
    assert not replaced(model(weight, bias, pads=[0, 0, 0, 0]))
    assert not replaced(model(weight, bias, group=2))


def test_a_graph_without_such_convolutions_is_the_same() -> None:
    proto = model(*arrays(8, 16))
    assert winograd.rewrite(proto) == proto


def test_the_original_is_left_alone() -> None:
    proto = model(*arrays(256, 256))
    before = proto.SerializeToString()
    winograd.rewrite(proto)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize(("opset", "rewritten"), [(13, False), (15, True), (17, True), (23, True)])
def test_the_function_has_the_graphs_opset(opset: int, rewritten: bool) -> None:
    """ONNX refuses a graph whose function uses another version of an operator: those of opset 17 were refused."""
    weight, bias = arrays(winograd.CHANNELS, winograd.CHANNELS)
    plain = model(weight, bias)
    plain.opset_import[0].version = opset
    result = winograd.rewrite(plain)
    assert (result.graph.node[0].op_type == winograd.NAME) == rewritten
    onnx.checker.check_model(result, full_check=True)
    x = np.random.default_rng(1).standard_normal((1, winograd.CHANNELS, 9, 11)).astype(np.float32)
    with open_session(plain) as direct, open_session(result) as other:
        expected = direct.run(None, {"x": x})[0]
        assert np.abs(other.run(None, {"x": x})[0] - expected).max() < 1e-4 * expected.std()
