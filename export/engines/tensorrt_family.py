"""Building engines of TensorRT and TensorRT-RTX, which share one Python API.

The network is strongly typed: its precision is the graph's. The layer information of the built engine must have the
same types, and the context operations computed by plugins or natively as chosen; where it cannot be read the build goes
on with a warning, and the parity gate decides. What a library or a version of TensorRT from 10.6 to 11 lacks is found
in its module, not by comparing versions.

API: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/BuilderConfig.html
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx
from tqdm import tqdm

from isnet_trt.bundle import ENGINE, TIMING_CACHE
from isnet_trt.cuda import plugins
from isnet_trt.cuda.backends import current_gpu
from isnet_trt.cuda.gpu import Gpu, find_gpu, probe_gpu
from isnet_trt.cuda.kernels import Kernels
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.tensorrt_api import collecting_logger, create, network_flags, parser_errors
from isnet_trt.engines.tensorrt_family import TensorRTFamily
from isnet_trt.errors import BuildError, EngineError, SettingsError
from isnet_trt.export.engines.base import BuildRequest, BuiltEngine, EngineBuilder
from isnet_trt.export.engines.inspection import Layer, inspect, summarise
from isnet_trt.export.engines.profiles import Shape, set_shapes
from isnet_trt.export.functions import remove_bodies, remove_plugin_namespace
from isnet_trt.export.graph import with_attention
from isnet_trt.export.onnx_edit import output_type
from isnet_trt.export.options import OPTIMISATION_LEVELS, Context, EngineOptions
from isnet_trt.files import write_file

GIB = 1 << 30
LAYERS = "layers.txt"
"""The file of a bundle with the library's own text about its layers, kept where it could not be checked."""
_MOST_STREAMS = 64
_LEAST = {"bf16": (8, 0), "fp8": (8, 9)}
"""Oldest capability with matrix units for a type: Ampere for bfloat16, Ada for E4M3 (CUDA programming guide)."""


@dataclass(frozen=True)
class SerialisedEngine:
    """A built engine: the compute capabilities it runs on, its size in bytes, and its layers as it reports them.

    ``unchecked`` says what could not be checked in ``layer_information``, the library's own text. ``timing_cache``
    holds the measurements of kernels (TensorRT only); ``reused``: they include an earlier build's.
    """

    capabilities: tuple[str, ...]
    size: int
    layers: tuple[Layer, ...]
    layer_information: str = ""
    unchecked: tuple[str, ...] = ()
    timing_cache: bytes = b""
    reused: bool = False


class TensorRTFamilyBuilder(EngineBuilder):
    """A library with TensorRT's Python API.

    Attributes:
        runs_plugins: the library runs plugins while it builds, on the GPU, and needs their kernels.
        polygraphy_environment: environment variables with which polygraphy uses this library.
    """

    library: TensorRTFamily
    eight_bits: ClassVar = {"int8": "tensorrt", "fp8": "fp8"}
    fastest_first = ("fp16", "int8", "fp8", "bf16", "fp32")  # float16 needs no calibration
    # The parser of TensorRT-RTX 1.7 takes HardSwish in float32 and float16 only, its builder ConvTranspose.
    no_bf16: ClassVar = {"HardSwish": "TensorRT", "ConvTranspose": "TensorRT"}
    runs_plugins: ClassVar[bool] = False
    polygraphy_environment: ClassVar[Mapping[str, str]] = {}

    def check(self, options: EngineOptions) -> None:
        super().check(options)
        if options.workspace is not None and not 0 < options.workspace < 1024:
            raise SettingsError(f"--workspace {options.workspace:g}: it must be more than 0 GiB and less than 1024")
        if options.optimisation_level not in (None, *OPTIMISATION_LEVELS):
            raise SettingsError(f"--optimisation-level {options.optimisation_level}: it must be 0 to 5")
        if options.streams is not None and not 1 <= options.streams <= _MOST_STREAMS:
            raise SettingsError(f"--streams {options.streams}: it must be 1 to {_MOST_STREAMS}")

    def context(self, options: EngineOptions) -> Context:
        return options.context or "plugin"

    def capabilities(self, options: EngineOptions, precision: str) -> tuple[str, ...]:
        least = _LEAST.get(precision, (0, 0))
        supported = self.supported(options, least)
        if lacking := [capability for capability in supported if as_numbers(capability) < least]:
            raise SettingsError(
                f"precision {precision} needs compute capability {'.'.join(map(str, least))} or newer, not "
                f"{', '.join(lacking)}; use fp16 or int8, or other targets"
            )
        return supported

    @abstractmethod
    def supported(self, options: EngineOptions, least: tuple[int, ...]) -> tuple[str, ...]:
        """The compute capabilities that an engine of these options runs on; by default those from ``least`` on."""

    def configure(self, module: Any, config: Any, options: EngineOptions, capabilities: tuple[str, ...]) -> None:
        """Set all of a builder's configuration but shapes, timing cache and progress.

        Raises:
            EngineUnavailable: this version of the library lacks one of the options.
        """
        # At the default verbosity the inspector gives the layers' names without their types.
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
        tf32 = getattr(module.BuilderFlag, "TF32", None)
        if tf32 is not None:  # float32 means float32: TF32 keeps ten bits of each factor
            config.clear_flag(tf32)
        if options.workspace is not None:
            config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, int(options.workspace * GIB))
        if options.optimisation_level is not None:
            config.builder_optimization_level = options.optimisation_level
        if options.streams is not None:  # the engine's own stream is one of them
            config.max_aux_streams = options.streams - 1

    def attach_timing_cache(self, config: Any, request: BuildRequest) -> tuple[Any, bool]:
        """The timing cache of a build (None: the library has none), and whether it holds an earlier measurement."""
        return None, False

    def build(self, request: BuildRequest, folder: Path) -> BuiltEngine:
        built = self.serialise(request, folder / ENGINE)
        notes: list[str] = []
        about: dict[str, Any] = {"bytes": built.size, "layers": summarise(built.layers)}
        if built.timing_cache:
            (folder / TIMING_CACHE).write_bytes(built.timing_cache)
            if request.measurements:
                write_file(request.measurements, built.timing_cache, BuildError)
            notes.append(f"measured {'only what was not known before' if built.reused else 'from the start'}")
        if built.unchecked:
            about["not checked"] = list(built.unchecked)
            notes += [f"warning: {reason}" for reason in built.unchecked]
        if built.unchecked and built.layer_information:
            (folder / LAYERS).write_text(built.layer_information, "utf-8", errors="backslashreplace")
            notes.append(f"the library's own text about the layers of the engine: {LAYERS}")
        gpu, shapes = find_gpu(request.options.gpu), request.shapes
        info = EngineInfo(
            self.kind,
            self.library.installed_version() or "",
            ENGINE,
            built.capabilities,
            gpu=gpu.name if gpu else None,
            driver=gpu.driver if gpu else None,
            shapes=(shapes.smallest, shapes.usual, shapes.largest),
            context=self.context(request.options),
            version_compatible=request.options.version_compatible,
            output=output_type(request.proto),
        )
        return BuiltEngine(info, about, tuple(notes))

    def serialise(self, request: BuildRequest, path: Path) -> SerialisedEngine:
        """Build an engine and write it to ``path``.

        Raises:
            EngineUnavailable: the library is missing, needs a GPU that is not there, or cannot take plugins here.
            EngineError: the library does not start.
            SettingsError: the options contradict each other, or a target has no units for the precision.
            BuildError: the library refused the graph (its last errors are in the message), or the layers differ from
                the graph's types or from the context option.
        """
        self.check(request.options)
        module = self.library.load()
        gpu, no_gpu = probe_gpu(request.options.gpu)
        self.library.check_builder(gpu, no_gpu)
        capabilities = self.capabilities(request.options, request.precision)
        logger = collecting_logger(module)
        with current_gpu(request.options.gpu), self._plugins(module, request, gpu) as host:
            serialised, cache, reused = self._compile(module, request, capabilities, logger, host)
            # While the plugins are registered: the inspector has to load the engine.
            text, reason = logger.layers, ""
            if not text:
                text, reason = self._layer_information(module, request, logger, serialised, host)
        logger.layers = ""  # long, and the logger is never freed
        context = self.context(request.options)
        layers, unchecked = ([], [reason]) if reason else inspect(text, request.proto, context)
        # After the checks, so that an engine with other types is never on the disk.
        path.write_bytes(serialised)
        return SerialisedEngine(capabilities, len(serialised), tuple(layers), text, tuple(unchecked), cache, reused)

    @contextlib.contextmanager
    def _plugins(self, module: Any, request: BuildRequest, gpu: Gpu | None) -> Iterator[plugins.Host | None]:
        """Plugins registered while the engine is built and inspected, or none."""
        if self.context(request.options) == "native":
            yield None
            return
        self.library.allow_plugins(module)
        with contextlib.ExitStack() as undo:
            kernels = None
            if self.runs_plugins and request.kernels is not None and gpu is not None:
                kernels = Kernels.open(request.kernels, gpu.compute_capability)
                undo.callback(kernels.close)
            host = undo.enter_context(plugins.kernels_for(module, kernels, gpu.multiprocessors if gpu else 1))
            undo.callback(setattr, host, "kernels", None)  # the Python API never frees a plugin that was cloned
            yield host

    def _prepare(self, request: BuildRequest) -> onnx.ModelProto:
        """The graph for the parser: plugins without bodies or plain bodies without plugins, and one shape if static."""
        graph = with_attention(request.proto, "plain")
        if self.context(request.options) == "native":
            remove_plugin_namespace(graph)  # a creator that somebody else has registered must not be taken
        else:
            remove_bodies(graph)  # a missing plugin is then an error, not a native engine
        if request.shapes.static:
            fix_input(graph, request.shapes.usual)
        return graph

    def _compile(
        self, module: Any, request: BuildRequest, capabilities: tuple[str, ...], logger: Any, host: plugins.Host | None
    ) -> tuple[bytes, bytes, bool]:
        """The serialised engine, the timing cache, and whether an earlier one was used."""
        label = self.library.label(module)
        builder = self.library.create_builder(logger)
        network = create(label, logger, builder.create_network, network_flags(module))
        parser = create(label, logger, module.OnnxParser, network, logger)
        if not parser.parse(self._prepare(request).SerializeToString()):
            reasons = _reasons(host, parser_errors(parser) or logger.errors)
            raise BuildError(f"{self.kind} cannot read the graph: {reasons}")
        config = create(label, logger, builder.create_builder_config)
        self.configure(module, config, request.options, capabilities)
        set_shapes(builder, config, request.shapes)
        cache, reused = self.attach_timing_cache(config, request)
        monitor = progress_monitor(module) if request.progress else None
        if monitor is not None:
            config.progress_monitor = monitor
        serialised = builder.build_serialized_network(network, config)
        # Before the check for None, which a build that was stopped returns as well.
        if monitor is not None and monitor.interrupted:
            raise KeyboardInterrupt
        if serialised is None:
            reasons = _reasons(host, logger.errors[-3:])
            raise BuildError(f"{label} could not build the engine: {reasons}")
        return bytes(serialised), bytes(cache.serialize()) if cache is not None else b"", reused

    def _layer_information(
        self, module: Any, request: BuildRequest, logger: Any, serialised: bytes, host: plugins.Host | None
    ) -> tuple[str, str]:
        """The engine inspector's text, or "" and why there is none.

        It needs the GPU that the engine was built for.
        """
        failed = "the layers of the engine cannot be inspected"
        try:
            runtime = self.library.create_runtime(logger)
            if request.options.version_compatible:  # the engine carries the lean runtime, code that was built just now
                runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(serialised)
            if engine is None:  # such as one that was built ahead of time; else opening it for the gate fails as well
                return "", f"{failed}: {_reasons(host, logger.errors[-3:])}"
            return layer_information(module, engine, request.shapes.usual), ""
        except Exception as error:  # whatever the library raises: an engine is not lost for its description
            return "", f"{failed}: {error}"


def layer_information(module: Any, engine: Any, shape: Shape) -> str:
    """The inspector's JSON text about an engine on this GPU.

    Types of tensors depend on free sizes: a context gives the first input ``shape`` (TensorRT's documentation, "Engine
    Inspector").

    Raises:
        EngineError: there is no inspector.
    """
    inspector = engine.create_engine_inspector()
    if inspector is None:
        raise EngineError("the library creates no engine inspector; is memory of the GPU free?")
    context = engine.create_execution_context()
    # None: no memory for it. Then the text has types where sizes are fixed.
    if context is not None and context.set_input_shape(engine.get_tensor_name(0), shape):
        inspector.execution_context = context
    text = str(inspector.get_engine_information(module.LayerInformationFormat.JSON))
    del inspector  # it does not keep the context alive
    return text


def as_numbers(capability: str) -> tuple[int, ...]:
    """A compute capability such as "8.9" as numbers, to be compared."""
    return tuple(map(int, capability.split(".")))


def fix_input(graph: onnx.ModelProto, shape: Shape) -> None:
    """Give the graph's input a static shape, and drop the free sizes that the exporter noted of tensors inside."""
    for dimension, value in zip(graph.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = value
    for output in graph.graph.output:
        output.type.tensor_type.ClearField("shape")
    del graph.graph.value_info[:]


def _reasons(host: plugins.Host | None, errors: Sequence[str]) -> str:
    """The plugins' own messages where they refused, else the library's."""
    return "; ".join(host.failures[:1] if host and host.failures else errors)


def progress_monitor(library: Any) -> Any:
    """The library's build phases as progress bars; None where it does not report them."""
    if not hasattr(library, "IProgressMonitor"):
        return None

    class ProgressBars(library.IProgressMonitor):
        """Ctrl-C asks the library to stop. An exception must not cross into it, so it is noted and raised later."""

        def __init__(self) -> None:
            super().__init__()
            self.interrupted = False
            self._bars: dict[str, tqdm] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._bars[phase_name] = tqdm(total=num_steps, desc=phase_name, leave=False, disable=None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                self._bars[phase_name].update(step + 1 - self._bars[phase_name].n)
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._bars.pop(phase_name).close()

    return ProgressBars()
