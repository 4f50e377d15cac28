"""Building TensorRT and TensorRT-RTX engines: one code path, the library imported under one name.

The network is strongly typed: precision is what the graph says, and the built engine's own layer information must say
the same, and that the context operations are computed by whom they should. TensorRT-RTX builds ahead of time for GPUs
that are not there, so this path runs on any machine; TensorRT's own builder needs its GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from isnet_trt.cuda import plugins
from isnet_trt.cuda.gpu import Gpu, find_gpu
from isnet_trt.cuda.kernels import Kernels
from isnet_trt.engines.table import library as library_of
from isnet_trt.engines.tensorrt_api import create
from isnet_trt.engines.tensorrt_family import TensorRTFamily
from isnet_trt.errors import BuildError, EngineUnavailable
from isnet_trt.export import builder as building
from isnet_trt.export.engine_options import EngineOptions
from isnet_trt.export.functions import remove_plugin_namespace
from isnet_trt.export.graph import with_attention
from isnet_trt.export.layers import Layer, check_context, check_types, parse_layers
from isnet_trt.export.profiles import Shape, Shapes, set_shapes

DEFAULTS = EngineOptions()


@dataclass(frozen=True)
class Built:
    """What was written: the compute capabilities it runs on, size in bytes, and layers as the engine has them.

    ``timing_cache`` holds what the library measured (TensorRT only), ``reused`` says whether it began with an earlier
    build's measurements.
    """

    capabilities: tuple[str, ...]
    size: int
    layers: tuple[Layer, ...]
    timing_cache: bytes = b""
    reused: bool = False


@dataclass(frozen=True)
class _Task:
    """One build's settled choices."""

    library: Any
    kind: str
    gpu: Gpu | None
    shapes: Shapes
    options: EngineOptions
    capabilities: tuple[str, ...]
    progress: bool
    kernels: Path | None
    earlier: bytes


def build_engine(
    proto: onnx.ModelProto,
    kind: str,
    shapes: Shapes,
    path: Path,
    options: EngineOptions = DEFAULTS,
    progress: bool = True,
    precision: str = "fp32",
    kernels: Path | None = None,
    earlier: bytes = b"",
) -> Built:
    """Build ``proto`` for ``kind`` and write the serialised engine to ``path``.

    TensorRT builds on the GPU of this machine and may run plugins while it does, for which it needs ``kernels``, the
    folder of the compiled ones; TensorRT-RTX does not. ``earlier`` are an earlier build's measurements, which
    ``options.timing_cache`` comes before.

    Raises:
        EngineUnavailable: the library is missing, needs a GPU that is not there, or cannot take plugins here.
        EngineError: the library does not start.
        SettingsError: the options contradict each other, or a target has no units for ``precision``.
        BuildError: the library refused the graph (its last errors are in the message), or the engine's layers do not
            have the types of the graph, or the context operations are not computed as asked.
    """
    options.check(kind)
    library = library_of(kind).load()
    gpu = find_gpu()
    if kind == "tensorrt" and gpu is None:
        raise EngineUnavailable(
            "TensorRT builds on the GPU that will run the engine, and no NVIDIA GPU is usable here; "
            "use --engine tensorrt-rtx (it builds ahead of time) or --engine onnxruntime"
        )
    capabilities = options.capabilities(kind, gpu, precision)
    if options.timing_cache is not None:
        earlier = options.timing_cache.read_bytes()
    task = _Task(library, kind, gpu, shapes, options, capabilities, progress, kernels, earlier)
    logger = building.recording_logger(library)
    with _context(task) as host:
        serialised, cache, reused = _build(task, logger, _prepared(proto, task), host)
        text = logger.layers or _inspected(task, logger, serialised, host)
    logger.layers = ""  # long, and the logger lives as long as the process
    layers = parse_layers(text)
    check_types(layers, proto)
    check_context(layers, proto, options.context)
    path.write_bytes(serialised)
    return Built(capabilities, len(serialised), tuple(layers), cache, reused)


def family(kind: str) -> TensorRTFamily:
    """The description of a TensorRT library."""
    found = library_of(kind)
    assert isinstance(found, TensorRTFamily)
    return found


def check_targets(precision: str, kind: str, options: EngineOptions = DEFAULTS) -> None:
    """Refuse early what `build_engine` would refuse.

    Raises:
        SettingsError: the options contradict each other, or a target has no units for ``precision``.
    """
    options.check(kind)
    options.capabilities(kind, find_gpu() if kind == "tensorrt" else None, precision)


@contextlib.contextmanager
def _context(task: _Task) -> Iterator[plugins.Host | None]:
    """Plugins registered while the engine is built and inspected, or none.

    Raises:
        EngineUnavailable: the library's parser would not survive a plugin in this process.
    """
    if task.options.context == "native":
        yield None
        return
    family(task.kind).allow_plugins(task.library)
    with contextlib.ExitStack() as undo:
        kernels = _loaded(task)
        if kernels is not None:
            undo.callback(kernels.close)
        size = task.gpu.multiprocessors if task.gpu else 1
        host = undo.enter_context(plugins.kernels_for(task.library, kernels, size))
        undo.callback(setattr, host, "kernels", None)  # the Python API never frees a plugin that the library cloned
        yield host


def _loaded(task: _Task) -> Kernels | None:
    """The kernels that TensorRT runs while it builds. Not yet run on a GPU."""
    if task.kind == "tensorrt-rtx" or task.kernels is None or task.gpu is None:
        return None
    return Kernels.open(task.kernels, task.gpu.compute_capability)


def _prepared(proto: onnx.ModelProto, task: _Task) -> onnx.ModelProto:
    """The graph as the parser should see it: plain bodies, one shape if static, plugins where they are meant."""
    graph = with_attention(proto, "plain")
    if task.options.context == "native":
        remove_plugin_namespace(graph)  # a creator that somebody else has registered must not be taken
    if task.shapes.static:
        fix_input(graph, task.shapes.usual)
    return graph


def fix_input(graph: onnx.ModelProto, shape: Shape) -> None:
    """Give the graph's input a static shape; what the exporter noted of free sizes inside is dropped."""
    for dimension, value in zip(graph.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = value
    for output in graph.graph.output:
        output.type.tensor_type.ClearField("shape")
    del graph.graph.value_info[:]


def _build(task: _Task, logger: Any, graph: onnx.ModelProto, host: plugins.Host | None) -> tuple[bytes, bytes, bool]:
    """The serialised engine, the timing cache, and whether an earlier one was used."""
    library, kind = task.library, task.kind
    builder = create(library.Builder, logger, f"{kind} {library.__version__}")
    network = builder.create_network(building.network_flags(library))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(graph.SerializeToString()):
        raise BuildError(f"{kind} cannot read the graph: {_refusal(parser, logger, host)}")
    config = builder.create_builder_config()
    building.configure(library, config, kind, task.options, task.capabilities)
    set_shapes(builder, config, task.shapes)
    cache, reused = building.attach_timing_cache(config, task.earlier) if kind == "tensorrt" else (None, False)
    monitor = building.progress_monitor(library) if task.progress else None
    if monitor is not None:
        config.progress_monitor = monitor
    serialised = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.interrupted:
        raise KeyboardInterrupt
    if serialised is None:
        said = _words(host, logger.errors[-3:])
        raise BuildError(f"{kind} {library.__version__} could not build the engine: {said}")
    return bytes(serialised), bytes(cache.serialize()) if cache is not None else b"", reused


def _refusal(parser: Any, logger: Any, host: plugins.Host | None) -> str:
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    reasons = [f"{e.node_operator()} node {e.node_name()}: {e.desc()}" for e in errors]
    return _words(host, reasons or logger.errors)


def _words(host: plugins.Host | None, said: Sequence[str]) -> str:
    """Our plugins' own words where they refused, else the library's."""
    return "; ".join(host.failures[:1] if host and host.failures else said)


def _inspected(task: _Task, logger: Any, serialised: bytes, host: plugins.Host | None) -> str:
    """The engine inspector's text; it needs the GPU that the engine was built for. Not yet run on a GPU."""
    runtime = create(task.library.Runtime, logger, f"{task.kind} {task.library.__version__}")
    if task.options.version_compatible:  # the engine carries a runtime, which is code; it was built a moment ago
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(serialised)
    if engine is None:
        raise BuildError(f"the built engine cannot be loaded for inspection: {_words(host, logger.errors[-3:])}")
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(task.library.LayerInformationFormat.ONELINE))
