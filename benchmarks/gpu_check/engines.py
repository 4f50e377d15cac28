"""Small graphs, engines of them by either TensorRT library, and running these on PyTorch's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu_check import timing
from isnet_trt.engines.tensorrt_api import collecting_logger, create
from isnet_trt.errors import EngineError

OPSET = 20
FLOATS = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}


def small_network(dtype: str, seed: int, batch: int = 2, side: int = 33) -> bytes:
    """A convolution, a dilated one, a softmax over positions and a product: what the network consists of, in ``dtype``.

    Input ``image`` (batch, 3, side, side) float32, output ``logits`` (batch, 19, side, side) float32.
    """
    from onnx import TensorProto, helper

    kind = getattr(TensorProto, FLOATS[dtype])
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=kind),
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[4] * 4, dilations=[4, 4]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Reshape", ["r2", "flat"], ["f"]),
        helper.make_node("Transpose", ["f"], ["ft"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["f", "ft"], ["gram"]),
        helper.make_node("Softmax", ["gram"], ["shares"], axis=2),
        helper.make_node("MatMul", ["shares", "f"], ["mixed"]),
        helper.make_node("Reshape", ["mixed", "back"], ["m"]),
        helper.make_node("Conv", ["m", "w3"], ["y"]),
        helper.make_node("Cast", ["y"], ["logits"], to=TensorProto.FLOAT),
    ]
    weights = {"w1": (64, 3, 3, 3), "w2": (64, 64, 3, 3), "w3": (19, 64, 1, 1)}
    held = [constant(name, rng.standard_normal(shape) * 0.05, kind) for name, shape in weights.items()]
    held.append(helper.make_tensor("flat", TensorProto.INT64, [3], [batch, 64, side * side]))
    held.append(helper.make_tensor("back", TensorProto.INT64, [4], [batch, 64, side, side]))
    return graph_of(nodes, {"image": (batch, 3, side, side)}, {"logits": (batch, 19, side, side)}, held)


def convolution(
    dtype: str, shape: Sequence[int], filters: int, kernel: int, dilation: int, seed: int, layers: int = 4
) -> bytes:
    """``layers`` equal convolutions one after the other, so that a launch's own time counts little.

    ``dtype`` is one of `FLOATS`, ``int8`` or ``fp8``; eight bits lie in float16. ``shape`` (B, C, H, W), with C equal
    to ``filters``. Input ``image`` and output ``logits`` are float16 or ``dtype``.
    """
    from onnx import TensorProto, helper

    base = dtype if dtype in FLOATS else "fp16"
    kind, rng, last = getattr(TensorProto, FLOATS[base]), np.random.default_rng(seed), "image"
    nodes: list[Any] = []
    held: list[Any] = []
    for i in range(layers):
        weight = rng.standard_normal((filters, shape[1], kernel, kernel)) / np.sqrt(shape[1] * kernel * kernel)
        source, factor = last, f"w{i}"
        if dtype in FLOATS:
            held.append(constant(factor, weight, kind))
        else:
            more, constants, source, factor = _eight_bits(dtype, i, last, weight)
            nodes, held = nodes + more, held + constants
        pads = [dilation * (kernel // 2)] * 4
        last = "logits" if i == layers - 1 else f"y{i}"
        nodes.append(helper.make_node("Conv", [source, factor], [last], pads=pads, dilations=[dilation] * 2))
    result = (shape[0], filters, *shape[2:])
    return graph_of(nodes, {"image": tuple(shape)}, {"logits": result}, held, kind)


def _eight_bits(dtype: str, i: int, source: str, weight: Any) -> tuple[list[Any], list[Any], str, str]:
    """Q and DQ of the input, DQ of weights that are stored in eight bits, one scale per filter."""
    from onnx import TensorProto, helper

    kind = TensorProto.INT8 if dtype == "int8" else TensorProto.FLOAT8E4M3FN
    top = 127.0 if dtype == "int8" else 448.0
    scales = np.abs(weight).max(axis=(1, 2, 3)) / top
    levels = weight / scales[:, None, None, None]
    held = [
        helper.make_tensor(f"s{i}", TensorProto.FLOAT16, [], np.asarray([4 / top], np.float16)),
        helper.make_tensor(f"z{i}", kind, [], [0.0 if dtype == "fp8" else 0]),
        helper.make_tensor(f"ws{i}", TensorProto.FLOAT16, [len(scales)], scales.astype(np.float16)),
        _levels(f"wq{i}", levels, kind),
        helper.make_tensor(f"wz{i}", kind, [len(scales)], [0.0 if dtype == "fp8" else 0] * len(scales)),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", [source, f"s{i}", f"z{i}"], [f"q{i}"]),
        helper.make_node("DequantizeLinear", [f"q{i}", f"s{i}", f"z{i}"], [f"d{i}"]),
        helper.make_node("DequantizeLinear", [f"wq{i}", f"ws{i}", f"wz{i}"], [f"wd{i}"], axis=0),
    ]
    return nodes, held, f"d{i}", f"wd{i}"


def _levels(name: str, levels: Any, kind: int) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    if kind == TensorProto.INT8:
        return numpy_helper.from_array(np.rint(levels).clip(-127, 127).astype(np.int8), name)
    return helper.make_tensor(name, kind, levels.shape, levels.astype(np.float32).ravel())


def constant(name: str, value: Any, kind: int) -> Any:
    """A constant of a graph, of an ONNX type."""
    from onnx import helper

    return helper.make_tensor(name, kind, value.shape, value.astype(np.float32).ravel())


def graph_of(
    nodes: list[Any], inputs: Mapping[str, tuple], outputs: Mapping[str, tuple], held: list[Any], kind: int = 1
) -> bytes:
    """A serialised graph; ``kind`` is the ONNX type of its inputs and outputs."""
    from onnx import helper

    sources, results = (
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in side.items()] for side in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "check", sources, results, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10).SerializeToString()


class BuildFailed(Exception):
    """A library refused a graph, a target or an engine; the message is its own."""


def made(log: Any, kind: Any) -> Any:
    """An object of a library that takes its logger.

    Raises:
        BuildFailed: there is none, such as where the driver is too old for it.
    """
    try:
        return create(kind, log, "the library")
    except EngineError as error:
        raise BuildFailed(str(error)) from None


def build(library: Any, model: bytes, target: str | None = None) -> bytes:
    """An engine of ``model`` for this GPU, or for a target of TensorRT-RTX such as ``SM80`` (ahead of time).

    Raises:
        BuildFailed: with everything that the library said.
    """
    logger = collecting_logger(library)
    builder = made(logger, library.Builder)
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(model):
        raise BuildFailed("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    tf32 = getattr(library.BuilderFlag, "TF32", None)
    if tf32 is not None:
        config.clear_flag(tf32)  # float32 means float32
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.ComputeCapability, target), 0)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        raise BuildFailed("; ".join(logger.errors) or "the build returned nothing and gave no reason")
    return bytes(serialised)


class Loaded:
    """An engine on this GPU with PyTorch's memory and PyTorch's current stream."""

    def __init__(self, library: Any, serialised: bytes) -> None:
        """Raises:
        BuildFailed: it cannot be deserialised; the message is the library's own.
        """
        self.library, self._log = library, collecting_logger(library)
        self._runtime = made(self._log, library.Runtime)
        self._engine = self._runtime.deserialize_cuda_engine(serialised)
        if self._engine is None:
            raise BuildFailed("; ".join(self._log.errors) or "deserialisation returned nothing and gave no reason")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BuildFailed("; ".join(self._log.errors) or "no execution context was made")

    def layers(self) -> str:
        """What the engine's inspector says of its layers."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.library.LayerInformationFormat.ONELINE))

    def bind(self, image: Any) -> Any:
        """Let the engine read ``image``; returns the output, which `run` fills, poisoned with NaN."""
        import torch

        self._context.set_input_shape("image", tuple(image.shape))
        self._context.set_tensor_address("image", image.data_ptr())
        shape = tuple(self._context.get_tensor_shape("logits"))
        kinds = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}
        dtype = kinds[self._engine.get_tensor_dtype("logits").name]
        out = torch.full(shape, float("nan"), dtype=dtype, device=image.device)
        self._context.set_tensor_address("logits", out.data_ptr())
        self._held = (image, out)
        return out

    def run(self, _: int = 0) -> None:
        """Queue one inference.

        Raises:
            BuildFailed: the library refused; the message is its own.
        """
        import torch

        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise BuildFailed("; ".join(self._log.errors) or "execute_async_v3 returned False and gave no reason")

    def seconds(self) -> float:
        """Median seconds of one inference, replayed from a CUDA graph where that can be, else as queued."""
        import torch

        with torch.cuda.stream(torch.cuda.Stream()):
            try:
                return timing.seconds(self.run).p50
            except (RuntimeError, BuildFailed):  # it cannot be captured
                torch.cuda.synchronize()
                return timing.seconds(self.run, captured=False).p50

    def replays_equal(self) -> bool | None:
        """Whether the replay of a CUDA graph gives the bits of an eager run; None where none can be captured."""
        import torch

        out, graph = self._held[1], torch.cuda.CUDAGraph()
        with torch.cuda.stream(torch.cuda.Stream()):
            self.run()
            torch.cuda.synchronize()
            wanted = out.clone()
            try:
                with torch.cuda.graph(graph):
                    self.run()
            except (RuntimeError, BuildFailed):
                torch.cuda.synchronize()
                return None
            out.fill_(float("nan"))
            torch.cuda.synchronize()
            graph.replay()
            torch.cuda.synchronize()
        return bool(torch.equal(out, wanted))
