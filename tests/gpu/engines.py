"""Small graphs, engines of them by either TensorRT library, and running these on PyTorch's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, load_from_string, numpy_helper
from torch.nn import functional

from benchmarks import gpu_timing
from isnet_trt.engines.table import library as library_of
from isnet_trt.engines.tensorrt_api import collecting_logger, create, network_flags, parser_errors
from isnet_trt.errors import EngineError
from isnet_trt.export.engines.tensorrt_family import layer_information

OPSET = 20
FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
EIGHT_BITS = {"int8": (TensorProto.INT8, 127.0), "fp8": (TensorProto.FLOAT8E4M3FN, 448.0)}
"""Type of the levels, and the greatest one."""
FEATURES, WIDTH, SCALE = 512, 256, 1 / 16


def small_network(dtype: str, seed: int, batch: int = 2, side: int = 33) -> bytes:
    """A convolution, a dilated one, a softmax over positions and a product: what the network consists of, in ``dtype``.

    Input ``image`` (batch, 3, side, side) float32, output ``logits`` (batch, 19, side, side) float32.
    """
    node, rng = helper.make_node, np.random.default_rng(seed)
    nodes = [
        node("Cast", ["image"], ["x"], to=FLOATS[dtype]),
        node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], pads=[4] * 4, dilations=[4, 4]),
        node("Relu", ["c2"], ["r2"]),
        node("Reshape", ["r2", "flat"], ["f"]),
        node("Transpose", ["f"], ["ft"], perm=[0, 2, 1]),
        node("MatMul", ["f", "ft"], ["gram"]),
        node("Softmax", ["gram"], ["shares"], axis=2),
        node("MatMul", ["shares", "f"], ["mixed"]),
        node("Reshape", ["mixed", "back"], ["m"]),
        node("Conv", ["m", "w3"], ["y"]),
        node("Cast", ["y"], ["logits"], to=TensorProto.FLOAT),
    ]
    shapes = {"w1": (64, 3, 3, 3), "w2": (64, 64, 3, 3), "w3": (19, 64, 1, 1)}
    constants = [floats(name, rng.standard_normal(s) * 0.05, FLOATS[dtype]) for name, s in shapes.items()]
    constants += [integers("flat", [batch, 64, side * side]), integers("back", [batch, 64, side, side])]
    return graph(nodes, {"image": (batch, 3, side, side)}, {"logits": (batch, 19, side, side)}, constants)


def in_float64(model: bytes, image: Any) -> Any:
    """The result of `small_network` in float64, with the weights that it holds, on the CPU."""
    weights = {t.name: numpy_helper.to_array(t) for t in load_from_string(model).graph.initializer}
    w1, w2, w3 = (torch.from_numpy(weights[name].astype(np.float64)) for name in ("w1", "w2", "w3"))
    x = functional.relu(functional.conv2d(torch.from_numpy(image.astype(np.float64)), w1, padding=1))
    x = functional.relu(functional.conv2d(x, w2, padding=4, dilation=4))
    flat = x.flatten(2)
    mixed = torch.softmax(flat @ flat.transpose(1, 2), 2) @ flat
    return functional.conv2d(mixed.view_as(x), w3).numpy()


def convolution(dtype: str, shape: Sequence[int], kernel: int, dilation: int, seed: int, layers: int = 4) -> bytes:
    """``layers`` equal convolutions one after the other, so that a launch's own time counts little.

    ``dtype`` is one of `FLOATS` or of `EIGHT_BITS`, which lie in float16. ``shape`` (B, C, H, W), C filters. Input
    ``image`` and output ``logits`` are float16 or ``dtype``.
    """
    kind, rng, last = FLOATS.get(dtype, TensorProto.FLOAT16), np.random.default_rng(seed), "image"
    nodes: list[Any] = []
    constants: list[Any] = []
    for i in range(layers):
        weight = rng.standard_normal((shape[1], shape[1], kernel, kernel)) / np.sqrt(shape[1] * kernel * kernel)
        source, factor = last, f"w{i}"
        if dtype in FLOATS:
            constants.append(floats(factor, weight, kind))
        else:
            more, levels = eight_bits(dtype, i, last, weight)
            nodes, constants, source, factor = nodes + more, constants + levels, f"d{i}", f"wd{i}"
        pads = [dilation * (kernel // 2)] * 4
        last = "logits" if i == layers - 1 else f"y{i}"
        nodes.append(helper.make_node("Conv", [source, factor], [last], pads=pads, dilations=[dilation] * 2))
    return graph(nodes, {"image": shape}, {"logits": shape}, constants, kind)


def eight_bits(dtype: str, i: int, source: str, weight: Any) -> tuple[list[Any], list[Any]]:
    """Q and DQ of the input, DQ of weights that are stored in eight bits, one scale per filter."""
    kind, top = EIGHT_BITS[dtype]
    scales = np.abs(weight).max(axis=(1, 2, 3)) / top
    levels = (weight / scales[:, None, None, None]).astype(np.float32)
    zero = 0.0 if dtype == "fp8" else 0
    constants = [
        helper.make_tensor(f"s{i}", TensorProto.FLOAT16, [], np.asarray([4 / top], np.float16)),
        helper.make_tensor(f"z{i}", kind, [], [zero]),
        helper.make_tensor(f"ws{i}", TensorProto.FLOAT16, [len(scales)], scales.astype(np.float16)),
        helper.make_tensor(f"wq{i}", kind, levels.shape, levels.ravel())
        if dtype == "fp8"
        else numpy_helper.from_array(np.rint(levels).clip(-127, 127).astype(np.int8), f"wq{i}"),
        helper.make_tensor(f"wz{i}", kind, [len(scales)], [zero] * len(scales)),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", [source, f"s{i}", f"z{i}"], [f"q{i}"]),
        helper.make_node("DequantizeLinear", [f"q{i}", f"s{i}", f"z{i}"], [f"d{i}"]),
        helper.make_node("DequantizeLinear", [f"wq{i}", f"ws{i}", f"wz{i}"], [f"wd{i}"], axis=0),
    ]
    return nodes, constants


def head(dtype: str, seed: int, batch: int, classes: int, size: tuple[int, int]) -> bytes:
    """The two context modules around random weights, as the exporter makes them: nodes of our domain with bodies.

    Input ``image``: features (batch, 512, h, w) float32; output ``logits`` (batch, classes, h, w) float32.
    """
    from isnet_trt.export import functions

    node, rng, positions, own = helper.make_node, np.random.default_rng(seed), size[0] * size[1], functions.DOMAIN
    attention = {"domain": own, "scale": SCALE}
    nodes = [
        node("Cast", ["image"], ["x"], to=FLOATS[dtype]),
        node("Conv", ["x", "w_coarse"], ["coarse"]),
        node("Reshape", ["coarse", "flat_classes"], ["scores"]),
        node("Reshape", ["x", "flat"], ["rows"]),
        node("Transpose", ["rows"], ["features"], perm=[0, 2, 1]),
        node("RegionPool", ["scores", "features"], ["centres", "log_counts"], "pool", domain=own),
        *(node("MatMul", ["features", f"w_{n}"], [n]) for n in ("q", "k", "v")),
        *(node("MatMul", ["centres", f"w_{n}"], [f"centre_{n}"]) for n in ("k", "v")),
        node("ContextAttention", ["q", "k", "v", "no_bias"], ["near"], "image_level", **attention),
        node("ContextAttention", ["q", "centre_k", "centre_v", "log_counts"], ["far"], "semantic_level", **attention),
        node("Concat", ["near", "far"], ["both"], axis=2),
        node("MatMul", ["both", "w_out"], ["y"]),
        node("Transpose", ["y"], ["turned"], perm=[0, 2, 1]),
        node("Reshape", ["turned", "back"], ["z"]),
        node("Cast", ["z"], ["logits"], to=TensorProto.FLOAT),
    ]
    shapes = {"w_coarse": (classes, FEATURES, 1, 1), "w_out": (2 * WIDTH, classes)}
    shapes |= {f"w_{n}": (FEATURES, WIDTH) for n in ("q", "k", "v")}
    constants = [
        *(floats(name, rng.standard_normal(s) / np.sqrt(FEATURES), FLOATS[dtype]) for name, s in shapes.items()),
        floats("no_bias", np.zeros((batch, positions)), TensorProto.FLOAT),
        integers("flat_classes", [batch, classes, positions]),
        integers("flat", [batch, FEATURES, positions]),
        integers("back", [batch, classes, *size]),
    ]
    model = load_from_string(
        graph(nodes, {"image": (batch, FEATURES, *size)}, {"logits": (batch, classes, *size)}, constants)
    )
    functions.attach(model, "plain")
    return bytes(model.SerializeToString())


def floats(name: str, value: Any, kind: int) -> Any:
    return helper.make_tensor(name, kind, value.shape, value.astype(np.float32).ravel())


def integers(name: str, values: Sequence[int]) -> Any:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def graph(
    nodes: list[Any], inputs: Mapping[str, Any], outputs: Mapping[str, Any], constants: list[Any], kind: int = 1
) -> bytes:
    """A serialised graph; ``kind`` is the ONNX type of its inputs and outputs."""
    sources, results = (
        [helper.make_tensor_value_info(name, kind, tuple(shape)) for name, shape in values.items()]
        for values in (inputs, outputs)
    )
    whole = helper.make_graph(nodes, "test", sources, results, constants)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10).SerializeToString()


class BuildFailed(Exception):
    """A library refused a graph, a target or an engine; the message is its own."""


def start(log: Any, factory: Any) -> Any:
    """An object of a library that takes its logger.

    Raises:
        BuildFailed: there is none, such as where the driver is too old for it.
    """
    try:
        return create("the library", log, factory, log)
    except EngineError as error:
        raise BuildFailed(str(error)) from None


def build(library: Any, model: bytes, target: str = "default") -> bytes:
    """An engine of ``model`` for this GPU, or for a target of TensorRT-RTX such as ``SM80`` (ahead of time).

    Raises:
        BuildFailed: with everything that the library said.
    """
    logger = collecting_logger(library)
    if getattr(library, "__name__", "") == "tensorrt":
        start(logger, library.Runtime)  # where this fails, the Builder of TensorRT 10.6 would end the process
    builder = start(logger, library.Builder)
    network = builder.create_network(network_flags(library))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(model):
        raise BuildFailed("; ".join(parser_errors(parser)))
    config = builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    tf32 = getattr(library.BuilderFlag, "TF32", None)
    if tf32 is not None:
        config.clear_flag(tf32)  # float32 means float32
    if target != "default":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.ComputeCapability, target), 0)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        raise BuildFailed("; ".join(logger.errors) or "the build returned nothing and gave no reason")
    return bytes(serialised)


def load(kind: str) -> Any:
    """The module of an engine library."""
    return library_of(kind).load()


class Loaded:
    """An engine on this GPU with PyTorch's memory and PyTorch's current stream."""

    def __init__(self, library: Any, serialised: bytes) -> None:
        """Raises:
        BuildFailed: it cannot be deserialised; the message is the library's own.
        """
        self.library, self._log = library, collecting_logger(library)
        self._runtime = start(self._log, library.Runtime)
        self._engine = self._checked(self._runtime.deserialize_cuda_engine(serialised), "deserialisation")
        self._context = self._checked(self._engine.create_execution_context(), "the execution context")

    def _checked(self, value: Any, what: str) -> Any:
        if value is None or value is False:
            raise BuildFailed("; ".join(self._log.errors) or f"{what} failed and no reason was given")
        return value

    def layers(self) -> str:
        """What the engine's inspector says of its layers."""
        return layer_information(self.library, self._engine, tuple(self._engine.get_tensor_shape("image")))

    def layer_times(self, runs: int = 20) -> dict[str, float]:
        """Layer -> microseconds of one inference, the longest first; while they are timed, layers run one by one."""

        class Times(self.library.IProfiler):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.milliseconds: dict[str, float] = {}

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                self.milliseconds[layer_name] = self.milliseconds.get(layer_name, 0.0) + ms

        self.run()  # what is loaded at the first run is not timed
        torch.cuda.synchronize()
        self._context.profiler = times = Times()  # reported by each enqueue, which then waits
        for _ in range(runs):
            self.run()
        torch.cuda.synchronize()
        ordered = sorted(times.milliseconds.items(), key=lambda layer: -layer[1])
        return {name: 1e3 * ms / runs for name, ms in ordered}

    def bind(self, image: torch.Tensor) -> torch.Tensor:
        """Let the engine read ``image``; returns the output, which `run` fills, poisoned with NaN."""
        self._context.set_input_shape("image", tuple(image.shape))
        self._context.set_tensor_address("image", image.data_ptr())
        kinds = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}
        dtype = kinds[self._engine.get_tensor_dtype("logits").name]
        shape = tuple(self._context.get_tensor_shape("logits"))
        out = torch.full(shape, float("nan"), dtype=dtype, device=image.device)
        self._context.set_tensor_address("logits", out.data_ptr())
        self._bound = (image, out)
        return out

    def run(self, _: int = 0) -> None:
        """Queue one inference.

        Raises:
            BuildFailed: the library refused; the message is its own.
        """
        self._checked(self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream), "execute_async_v3")

    def microseconds(self) -> float:
        """Median of one inference, replayed from a CUDA graph where that can be, else as queued."""
        with torch.cuda.stream(torch.cuda.Stream()):
            try:
                return 1e6 * gpu_timing.seconds(self.run).p50
            except (RuntimeError, BuildFailed):  # it cannot be captured
                torch.cuda.synchronize()
                return 1e6 * gpu_timing.seconds(self.run, captured=False).p50

    def replays_equal(self) -> bool | None:
        """Whether the replay of a CUDA graph gives the bits of an eager run; None where none can be captured."""
        out, captured = self._bound[1], torch.cuda.CUDAGraph()
        with torch.cuda.stream(torch.cuda.Stream()):
            self.run()
            torch.cuda.synchronize()
            expected = out.clone()
            try:
                with torch.cuda.graph(captured):
                    self.run()
            except (RuntimeError, BuildFailed):
                torch.cuda.synchronize()
                return None
            out.fill_(float("nan"))
            torch.cuda.synchronize()
            captured.replay()
            torch.cuda.synchronize()
        return bool(torch.equal(out, expected))
