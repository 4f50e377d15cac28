"""The plugins inside the real TensorRT-RTX: what its parser and builder make of them, and every callback.

A library that is refused something may end the process, so that graphs are parsed in a process of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from children import explained
from onnx import TensorProto, helper

from isnet_trt.cuda import plugins
from isnet_trt.cuda.context_ops import NAMESPACE, VERSION, Attention, Pool
from isnet_trt.engines.tensorrt_rtx import LIBRARY
from isnet_trt.errors import BuildError
from isnet_trt.export import functions

pytestmark = [
    pytest.mark.rtx,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="there is no tensorrt-rtx wheel for this platform"
    ),
]
F32, F16, I32 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32

PARSE = """
import json, sys
from pathlib import Path
from isnet_trt.cuda.plugins import kernels_for
from isnet_trt.engines.tensorrt_api import collecting_logger
from isnet_trt.engines.tensorrt_rtx import LIBRARY
library = LIBRARY.load()
LIBRARY.allow_plugins(library)
for path in sys.argv[1:]:
    logger = collecting_logger(library)
    builder = library.Builder(logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    with kernels_for(library) as host:
        parsed = parser.parse(Path(path).read_bytes())
        layers = [network.get_layer(i).type.name for i in range(network.num_layers)]
    print(json.dumps({"parsed": parsed, "layers": layers, "failures": host.failures}))
"""


def attention(
    shapes: list[list[Any]], types: list[int], scale: float | None = 0.25, body: bool = True
) -> onnx.ModelProto:
    attributes = {} if scale is None else {"scale": scale}
    return model("ContextAttention", ["q", "k", "v", "bias"], ["out"], shapes, types, body, **attributes)


def model(
    kind: str,
    inputs: list[str],
    outputs: list[str],
    shapes: list[list[Any]],
    types: list[int],
    body: bool,
    **attributes: Any,
) -> onnx.ModelProto:
    node = helper.make_node(
        kind, inputs, outputs, name="the_node", domain=NAMESPACE, plugin_namespace=NAMESPACE, **attributes
    )
    values = [helper.make_tensor_value_info(n, t, s) for n, t, s in zip(inputs, types, shapes, strict=True)]
    kinds = [types[-1 if len(types) == 2 else 0], F32]
    results = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(outputs, kinds, strict=False)]
    graph = helper.make_graph([node], "one", values, results)
    opsets = [helper.make_opsetid("", functions.OPSET), helper.make_opsetid(NAMESPACE, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if body:
        functions.attach(model, "plain")
    return model


CASES = {
    "attention": (attention([[1, 5, 32], [1, 7, 32], [1, 7, 32], [1, 7]], [F32] * 4), ""),
    "free": (attention([["b", "n", 256], ["b", "m", 256], ["b", "m", 256], ["b", "m"]], [F16, F16, F16, F32]), ""),
    "pool": (
        model("RegionPool", ["logits", "features"], ["c", "l"], [[2, 9, 35], [2, 35, 17]], [F32, F16], True),
        "",
    ),
    "bias type": (
        attention([[1, 5, 32], [1, 7, 32], [1, 7, 32], [1, 7]], [F16] * 4),
        "node the_node: input bias of ContextAttention is fp16, it must be fp32",
    ),
    "key type": (
        attention([[1, 5, 32], [1, 7, 32], [1, 7, 32], [1, 7]], [F32, I32, F32, F32]),
        "node the_node: input k of ContextAttention is int32, it must be fp32",
    ),
    "rank": (
        attention([[1, 1, 5, 32], [1, 7, 32], [1, 7, 32], [1, 7]], [F32] * 4),
        "node the_node: input q of ContextAttention has 4 axes, it must be (B, N, D)",
    ),
    "sizes": (
        attention([[1, 5, 32], [1, 7, 32], [1, 8, 32], [1, 7]], [F32] * 4),
        "node the_node: axis M of ContextAttention is 7 in k and 8 in v",
    ),
    "width": (
        attention([[1, 5, 48], [1, 7, 48], [1, 7, 48], [1, 7]], [F32] * 4),
        "node the_node: ContextAttention has 48 channels in q; there are kernels for 32, 256; build with --context nat",
    ),
    "scale": (
        attention([[1, 5, 32], [1, 7, 32], [1, 7, 32], [1, 7]], [F32] * 4, scale=None, body=False),
        "node the_node: ContextAttention lacks the attribute scale",
    ),
}  # fmt: skip


def test_the_parser_takes_plugins_or_refuses_in_our_words(tmp_path: Path) -> None:
    """All cases one after the other in one process: none may end it, or spoil the next."""
    paths = []
    for number, (graph, _) in enumerate(CASES.values()):
        paths.append(str(tmp_path / f"{number}.onnx"))
        Path(paths[-1]).write_bytes(graph.SerializeToString())
    ran = subprocess.run([sys.executable, "-c", PARSE, *paths], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, explained(ran)
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(answers) == len(CASES)
    for (name, (_, message)), answer in zip(CASES.items(), answers, strict=True):
        assert answer["parsed"] == (not message), (name, answer)
        if message:
            assert answer["failures"][0].startswith(message), (name, answer)
        else:
            assert "PLUGIN_V3" in answer["layers"], (name, answer)
            assert answer["failures"] == []


class Kernels:
    """Kernels of sm_80 that note their launches."""

    def __init__(self, fails: bool = False) -> None:
        self.launches: list[tuple[str, int, dict[str, Any]]] = []
        self.fails = fails

    def launch(self, name: str, stream: int, **arguments: Any) -> None:
        if self.fails:
            raise MemoryError("out of everything")
        self.launches.append((name, stream, arguments))

    def constants(self, name: str) -> dict[str, Any]:
        return {"BLOCK_Q": 64, "BLOCK_K": 32, "BLOCK_C": 64, "BLOCK_N": 64}

    def __contains__(self, name: object) -> bool:
        return "_map" not in str(name)


@pytest.fixture
def library() -> Any:
    """TensorRT-RTX, or the library that `tests.real_tensorrt` runs these tests on."""
    return importlib.import_module(os.environ.get("PLUGIN_LIBRARY", LIBRARY.module))


def described(library: Any, *tensors: tuple[tuple[int, ...], str]) -> list[Any]:
    kinds = {"fp32": library.DataType.FLOAT, "fp16": library.DataType.HALF, "bf16": library.DataType.BF16}
    return [SimpleNamespace(dims=shape, type=kinds[kind]) for shape, kind in tensors]


def create_plugin(library: Any, operation: Any, kernels: Kernels | None, attributes: dict[str, float]) -> Any:
    return plugins.plugin_class(library)(operation, "the_node", attributes, plugins.Host(kernels, 132))


def test_enqueue_launches_the_kernels_on_the_engines_stream(library: Any) -> None:
    kernels = Kernels()
    plugin = create_plugin(library, Attention, kernels, {"scale": 0.5}).attach_to_context(None)
    inputs = described(
        library, ((1, 5, 32), "fp16"), ((1, 7, 32), "fp16"), ((1, 7, 32), "fp16"), ((1, 7), "fp32")
    )  # fmt: skip
    plugin.enqueue(inputs, [], [16, 32, 48, 64], [80], 4096, 99)
    (name, stream, arguments) = kernels.launches[0]
    assert (name, stream) == ("attention_fp16_w32", 99)
    assert [arguments[key] for key in ("q", "k", "v", "bias", "out")] == [16, 32, 48, 64, 80]
    assert arguments["queries"] == 5
    plugin = create_plugin(library, Pool, kernels, {})
    inputs = described(library, ((1, 9, 35), "fp32"), ((1, 35, 17), "bf16"))
    plugin.enqueue(inputs, [], [16, 32], [48, 64], 4096, 7)
    assert [one[0] for one in kernels.launches[1:]] == ["pool_fp32_bf16", "pool_join_bf16"]
    assert {one[1] for one in kernels.launches[1:]} == {7}


@pytest.mark.parametrize(
    ("kernels", "shape", "message"),
    [
        (None, (1, 35, 17), "RegionPool was given no kernels"),
        (Kernels(fails=True), (1, 35, 17), "MemoryError: out of everything"),
        (Kernels(), (1, 34, 17), "axis N of RegionPool is 35 in logits and 34 in features"),
    ],
)
def test_a_failing_enqueue_says_why(
    library: Any, kernels: Kernels | None, shape: tuple[int, ...], message: str
) -> None:
    plugin = create_plugin(library, Pool, kernels, {})
    inputs = described(library, ((1, 9, 35), "fp32"), (shape, "fp32"))
    with pytest.raises(RuntimeError, match=message):
        plugin.enqueue(inputs, [], [16, 32], [48, 64], 4096, 7)
    assert message in plugin.host.failures[0]


def test_what_is_serialised_makes_the_same_plugin(library: Any) -> None:
    plugin = create_plugin(library, Attention, None, {"scale": 0.17677669})
    kinds = library.DataType
    assert plugin.get_output_data_types([kinds.HALF, kinds.HALF, kinds.HALF, kinds.FLOAT]) == [kinds.HALF]
    fields = plugin.clone().get_fields_to_serialize()
    assert sorted(one.name for one in fields) == ["layout", "scale", "types"]
    kernels = Kernels()
    with plugins.kernels_for(library, kernels, 132) as host:
        creator = library.get_plugin_registry().get_creator("ContextAttention", VERSION, NAMESPACE)
        restored = creator.create_plugin("again", fields, library.TensorRTPhase.RUNTIME)
        assert host.failures == []
    assert restored.inputs == ("fp16", "fp16", "fp16", "fp32")
    assert restored.attributes["scale"] == pytest.approx(0.17677669)
    assert restored.host.kernels is kernels
    assert restored.host.multiprocessors == 132


@pytest.mark.parametrize(
    ("kernels", "layout", "message"), [(None, 1, "no kernels were given"), (Kernels(), 3, "built with another version")]
)
def test_an_engine_that_cannot_run_is_refused_when_it_is_opened(
    library: Any, kernels: Kernels | None, layout: int, message: str
) -> None:
    arrays = {"layout": np.array([layout], np.int32), "types": np.zeros(2, np.int32)}
    integer = library.PluginFieldType.INT32
    fields = library.PluginFieldCollection([library.PluginField(n, a, integer) for n, a in arrays.items()])
    with plugins.kernels_for(library, kernels) as host:
        creator = library.get_plugin_registry().get_creator("RegionPool", VERSION, NAMESPACE)
        assert creator.create_plugin("again", fields, library.TensorRTPhase.RUNTIME) is None
    assert message in host.failures[0]


def test_an_engine_of_the_first_layout_is_opened(library: Any) -> None:
    """It has its types in an array, which the bindings of TensorRT 10 do not give back under NumPy 2: equal ones."""
    arrays = {"layout": np.array([1], np.int32), "types": np.array([1, 1], np.int32)}
    integer = library.PluginFieldType.INT32
    fields = library.PluginFieldCollection([library.PluginField(n, a, integer) for n, a in arrays.items()])
    with plugins.kernels_for(library, Kernels()) as host:
        creator = library.get_plugin_registry().get_creator("RegionPool", VERSION, NAMESPACE)
        assert creator.create_plugin("again", fields, library.TensorRTPhase.RUNTIME).inputs == ("fp16", "fp16")
    assert host.failures == []


def test_plugins_are_registered_only_while_they_are_wanted(library: Any) -> None:
    registry = library.get_plugin_registry()

    def names() -> set[str]:
        return {creator.name for creator in registry.all_creators if creator.plugin_namespace == NAMESPACE}

    before = names()
    with plugins.kernels_for(library):
        assert names() == before | {"RegionPool", "ContextAttention"}
    assert names() == before
    with pytest.raises(ValueError), plugins.kernels_for(library):
        raise ValueError
    assert names() == before


def test_a_foreign_plugin_of_the_same_name(library: Any) -> None:
    """Two copies of this package in one process, say."""
    refused = pytest.raises(BuildError, match="has another plugin RegionPool")
    with plugins.kernels_for(library), refused, plugins.kernels_for(library):
        pass
