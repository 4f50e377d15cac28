"""The graphs for ONNX Runtime's CUDA provider, as far as its CPU provider can run them.

That the provider of onnxruntime-gpu takes them whole, with a CUDA graph, takes its libraries (docs/cuda-runtime.md).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from isnet_trt.bundle import CUDA_ONNX, ONNX, read_bundle
from isnet_trt.cuda.gpu import find_gpu
from isnet_trt.errors import SettingsError
from isnet_trt.export import cuda_provider
from isnet_trt.export.build_bundle import EngineOptions, PrecisionOptions, build
from isnet_trt.export.cuda_provider import CONTRIB, for_cuda_provider
from isnet_trt.export.engines import engine_builder
from isnet_trt.export.engines.base import BuildRequest
from isnet_trt.export.engines.onnxruntime import BATCH
from isnet_trt.export.engines.profiles import Shapes
from isnet_trt.export.functions import context_nodes
from isnet_trt.export.graph import save_graph
from isnet_trt.export.lowering import Arithmetic, lower_graph
from isnet_trt.export.onnx_edit import FLOAT_CODES, copied, output_type
from isnet_trt.export.precision import without_last_cast
from isnet_trt.export.ranges import measure_ranges
from isnet_trt.export.sessions import open_session
from isnet_trt.runtime.segmenter import Segmenter


def _logits(proto: onnx.ModelProto, picture: np.ndarray) -> np.ndarray:
    with open_session(proto) as session:
        return session.run(None, {"image": picture})[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_nothing_stays_on_the_host(graph: onnx.ModelProto, picture: np.ndarray, precision: str, tmp_path: Path) -> None:
    lowered = lower_graph(graph, Arithmetic(precision), "onnxruntime", measure_ranges(graph, [picture]))
    provided = for_cuda_provider(lowered.engine)
    save_graph(provided, tmp_path / "checked.onnx")  # it checks the graph
    nodes = [*provided.graph.node, *(node for function in provided.functions for node in function.node)]
    assert not [node.op_type for node in nodes if any(each.HasField("g") for each in node.attribute)]
    fused = [node for node in nodes if node.domain == CONTRIB]
    assert len(fused) == (precision != "fp32")  # the attention over the picture itself; that over classes has a bias
    assert ("MaxPool" in {node.op_type for node in nodes}) == (precision != "bf16")
    assert {node.op_type for node in context_nodes(provided)} == {"RegionPool", "ContextAttention"}
    weights = {tensor.data_type for tensor in provided.graph.initializer} & FLOAT_CODES
    assert len(weights) == (1 if precision == "fp32" else 2)  # what stays float32 is beside the half
    if precision == "bf16":  # which no CPU provider computes
        return
    logits, reference = _logits(provided, picture), _logits(graph, picture)
    rms = np.sqrt(((logits - reference) ** 2).mean()) / reference.std()
    assert rms <= {"fp32": 1e-4, "fp16": 5e-3}[precision]
    if precision == "fp16":  # with casts that ONNX Runtime inserts
        assert rms >= 1e-5
        assert (logits.argmax(1) == _logits(lowered.portable, picture).argmax(1)).mean() >= 0.995


def test_the_fused_attention_is_the_same(graph: onnx.ModelProto, picture: np.ndarray) -> None:
    """In float32, which the CPU provider's operator takes."""
    fused = copied(graph)
    writer = cuda_provider._CudaWriter(graph)
    replaced = 0
    for node in fused.graph.node:
        if node.op_type == "ContextAttention" and writer._is_zero(node.input[3]):
            node.CopyFrom(cuda_provider._fused_attention(node))
            replaced += 1
    assert replaced == 1
    fused.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    np.testing.assert_allclose(_logits(fused, picture), _logits(graph, picture), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 8), (12, 9)])
def test_max_pooling_by_slices_is_exact(height: int, width: int) -> None:
    """In float32: no provider of a CPU has these operators in bfloat16."""
    pool = helper.make_node(
        "MaxPool", ["x"], ["y"], name="pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    )
    x = np.random.default_rng(1).standard_normal((2, 3, height, width)).astype(np.float32)
    values = [helper.make_tensor_value_info(name, 1, [2, 3, None, None]) for name in ("x", "y")]

    def model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> onnx.ModelProto:
        built = helper.make_graph(nodes, "pool", values[:1], values[1:], constants)
        return helper.make_model(built, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)

    plain = model([pool], [])
    writer = cuda_provider._CudaWriter(plain)
    sliced = model(writer._max_pool(pool), list(writer.added.values()))
    outputs = []
    for proto in (plain, sliced):
        with open_session(proto) as session:
            outputs.append(session.run(None, {"x": x})[0])
    np.testing.assert_array_equal(*outputs)
    pool.attribute.append(helper.make_attribute("ceil_mode", 1))
    assert [node.op_type for node in writer._max_pool(pool)] == ["Cast", "MaxPool", "Cast"]


def test_a_bias_that_is_not_zero_is_kept(graph: onnx.ModelProto) -> None:
    writer = cuda_provider._CudaWriter(graph)
    biases = [node.input[3] for node in context_nodes(graph) if node.op_type == "ContextAttention"]
    assert sorted(map(writer._is_zero, biases)) == [False, True]
    zero = next(name for name in biases if writer._is_zero(name))
    source = writer.producers[zero].input[0]
    writer.constants[source] = numpy_helper.from_array(np.array(1, np.float32), source)
    assert not writer._is_zero(zero)


@pytest.mark.parametrize(
    ("precision", "options", "file"),
    [
        ("fp32", EngineOptions("onnxruntime"), ONNX),
        ("fp16", EngineOptions("onnxruntime"), ONNX),
        ("fp16", EngineOptions("onnxruntime", device="cuda"), CUDA_ONNX),
        ("fp32", EngineOptions("onnxruntime", kernels=True), CUDA_ONNX),
        ("bf16", EngineOptions("onnxruntime"), CUDA_ONNX),
    ],
)
def test_which_bundles_have_a_graph_for_the_gpu(
    graph: onnx.ModelProto, picture: np.ndarray, tmp_path: Path, precision: str, options: EngineOptions, file: str
) -> None:
    ranges = measure_ranges(graph, [picture]) if precision != "fp32" else None
    graphs = lower_graph(graph, Arithmetic(precision), "onnxruntime", ranges)
    save_graph(graphs.portable, tmp_path / ONNX)
    shape = (1, 3, 64, 64)
    built = engine_builder("onnxruntime").build(
        BuildRequest(graphs.engine, Shapes(shape, shape, shape), options, precision), tmp_path
    )
    assert built.info.file == file
    assert {path.name for path in tmp_path.iterdir()} == {ONNX, file}
    assert built.about["bytes"] == (tmp_path / file).stat().st_size
    batches = [shape[0] for shape in built.info.shapes]
    assert batches == ([] if file == ONNX else [1, 1, 1] if precision == "fp32" else [1, BATCH, BATCH])


def test_the_graph_for_the_gpu_can_have_half_precision_logits(
    graph: onnx.ModelProto, picture: np.ndarray, tmp_path: Path
) -> None:
    lowered = lower_graph(graph, Arithmetic("fp16"), "onnxruntime", measure_ranges(graph, [picture]))
    shape, options = (1, 3, 64, 64), EngineOptions("onnxruntime", device="cuda", half_logits=True)
    builder = engine_builder("onnxruntime")
    built = builder.build(
        BuildRequest(without_last_cast(lowered.engine), Shapes(shape, shape, shape), options, "fp16"), tmp_path
    )
    assert built.info.output == output_type(onnx.load(tmp_path / CUDA_ONNX)) == "fp16"
    with pytest.raises(SettingsError, match="--half-logits is for an engine on a GPU: give --device cuda or --kernels"):
        builder.check(EngineOptions("onnxruntime", half_logits=True))


@pytest.mark.slow
@pytest.mark.skipif(find_gpu() is not None, reason="the gate would run on the GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_bundle_for_the_gpu_is_compared_without_one(checkpoint: Path, tmp_path: Path, precision: str) -> None:
    said: list[str] = []
    out = tmp_path / "bundle"
    build(
        checkpoint,
        out,
        engine=EngineOptions("onnxruntime", device="cuda", half_logits=True),
        precision=PrecisionOptions(precision),
        say=said.append,
    )
    manifest = read_bundle(out).manifest
    engine = manifest.engine
    assert (engine.kind, engine.file, engine.output) == ("onnxruntime", CUDA_ONNX, precision)
    assert [name for name in manifest.files if name.endswith(f"sm_80/finite_{precision}.cubin")]
    assert not [name for name in manifest.files if "finite_fp32" in name]
    assert any("the graph for a GPU cannot run here" in line for line in said)
    assert "cannot run here" in (out / "precision.md").read_text("utf-8")
    with Segmenter.open(out) as segmenter:
        assert "CPU" in segmenter.description
        assert segmenter(np.zeros((40, 60, 3), np.uint8)).labels.shape == (40, 60)
