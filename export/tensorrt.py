"""Building TensorRT and TensorRT-RTX engines: one code path, the library imported under one name.

The network is strongly typed: precision is what the graph says, and the built engine's own layer information must say
the same. TensorRT-RTX builds ahead of time for GPUs that are not
there, so this path runs on any machine; TensorRT's own builder needs its GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from isnet_trt.engines.device import Gpu, find_gpu
from isnet_trt.engines.libraries import RTX_COMPUTE_CAPABILITIES, collecting_logger, import_library
from isnet_trt.errors import BuildError, EngineUnavailable, SettingsError
from isnet_trt.export.graph import INPUT, with_attention
from isnet_trt.export.layers import HEAD, Layer, check_types, parse_layers
from isnet_trt.settings import Size
from isnet_trt.training.recipes import Recipe

Shape = tuple[int, int, int, int]
_SMALLEST = 32
_LEAST = {"bf16": (8, 0), "fp8": (8, 9)}
"""Oldest capability with matrix units for a type: Ampere for bfloat16, Ada for E4M3 (CUDA programming guide)."""


@dataclass(frozen=True)
class Shapes:
    """Smallest, usual and largest input (B, 3, H, W) of an engine; all equal for a static one."""

    smallest: Shape
    usual: Shape
    largest: Shape

    @property
    def static(self) -> bool:
        return self.smallest == self.largest


def shapes_for(recipe: Recipe, batch: int = 1, static: Size | None = None) -> Shapes:
    """The optimisation profile of a recipe: its window or test size as usual, up to the largest documented scale."""
    if static:
        one = (batch, 3, *static)
        return Shapes(one, one, one)
    usual = recipe.ms_flip.window or recipe.crop
    reach = recipe.preprocess.size
    long, short = max(reach), min(reach)
    if recipe.ms_flip.mode == "whole":
        factor = max(recipe.ms_flip.scales)
        long, short = int(long * factor), int(short * factor)
    # Either orientation may be the long one; a square profile would ask for the longer side twice over.
    largest = (short, long) if recipe.preprocess.keep_ratio else (long, long)
    largest = (max(largest[0], usual[0]), max(largest[1], usual[1]))
    return Shapes((1, 3, _SMALLEST, _SMALLEST), (batch, 3, *usual), (batch, 3, *largest))


@dataclass(frozen=True)
class Built:
    """What was written: the compute capabilities it runs on, size in bytes, and layers as the engine has them."""

    capabilities: tuple[str, ...]
    size: int
    layers: tuple[Layer, ...]


def build_engine(
    proto: onnx.ModelProto,
    kind: str,
    shapes: Shapes,
    path: Path,
    targets: Sequence[str] | None = None,
    progress: bool = True,
    precision: str = "fp32",
) -> Built:
    """Build ``proto`` for ``kind`` and write the serialised engine to ``path``.

    ``targets`` names the compute capabilities for TensorRT-RTX (default: all that it knows and that have units for
    ``precision``); TensorRT builds for the GPU of this machine.

    Raises:
        EngineUnavailable: the library is missing, or it needs a GPU that is not there.
        SettingsError: a target is unknown, or has no units for ``precision``.
        BuildError: the library refused the graph (its last errors are in the message), or the engine's layers do not
            have the types of the graph.
    """
    library = import_library(kind)
    gpu = find_gpu()
    if kind == "tensorrt" and gpu is None:
        raise EngineUnavailable(
            "TensorRT builds on the GPU that will run the engine, and no NVIDIA GPU is usable here; "
            "use --engine tensorrt-rtx (it builds ahead of time) or --engine onnxruntime"
        )
    capabilities = _capabilities(kind, gpu, targets, precision)
    logger = _recording_logger(library)
    graph = with_attention(proto, "plain")
    if shapes.static:
        _fix_input(graph, shapes.usual)
    serialised = _build(library, logger, graph, kind, shapes, capabilities, progress)
    layers = parse_layers(logger.layers or _inspected(library, logger, serialised))
    check_types(layers, proto)
    path.write_bytes(serialised)
    return Built(capabilities, len(serialised), tuple(layers))


def _recording_logger(library: Any) -> Any:
    """A collecting logger that also keeps the layer information which TensorRT-RTX writes at the end of a build."""

    class Recorder(type(collecting_logger(library))):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = ""

        def log(self, level: Any, message: str) -> None:
            super().log(level, message)
            if message.startswith(HEAD):
                self.layers = message

    return Recorder()


def _inspected(library: Any, logger: Any, serialised: bytes) -> str:
    """The engine inspector's text; it needs the GPU that the engine was built for. Not yet run on a GPU."""
    engine = library.Runtime(logger).deserialize_cuda_engine(serialised)
    if engine is None:
        raise BuildError(f"the built engine cannot be loaded for inspection: {'; '.join(logger.errors[-3:])}")
    return str(engine.create_engine_inspector().get_engine_information(library.LayerInformationFormat.ONELINE))


def check_targets(precision: str, kind: str, targets: Sequence[str] | None) -> None:
    """Refuse early what `build_engine` would refuse.

    Raises:
        SettingsError: a target is unknown, or has no units for ``precision``.
    """
    _capabilities(kind, find_gpu() if kind == "tensorrt" else None, targets, precision)


def _capabilities(kind: str, gpu: Gpu | None, targets: Sequence[str] | None, precision: str) -> tuple[str, ...]:
    here = (gpu.compute_capability,) if gpu else ()
    found = here if kind == "tensorrt" else _rtx_capabilities(targets, precision)
    least = _LEAST.get(precision, (0, 0))
    if lacking := [one for one in found if tuple(map(int, one.split("."))) < least]:
        raise SettingsError(
            f"precision {precision} needs compute capability {'.'.join(map(str, least))} or newer, not "
            f"{', '.join(lacking)}; use fp16 or int8, or other targets"
        )
    return found


def _rtx_capabilities(targets: Sequence[str] | None, precision: str) -> tuple[str, ...]:
    unknown = set(targets or ()) - set(RTX_COMPUTE_CAPABILITIES)
    if unknown:
        raise SettingsError(
            f"TensorRT-RTX does not build for compute capability {', '.join(sorted(unknown))}; "
            f"it knows {', '.join(RTX_COMPUTE_CAPABILITIES)}"
        )
    least = _LEAST.get(precision, (0, 0))
    able = (one for one in RTX_COMPUTE_CAPABILITIES if tuple(map(int, one.split("."))) >= least)
    return tuple(targets or able)


def _build(
    library: Any,
    logger: Any,
    proto: onnx.ModelProto,
    kind: str,
    shapes: Shapes,
    capabilities: Sequence[str],
    progress: bool,
) -> bytes:
    builder = library.Builder(logger)
    network = builder.create_network(_network_flags(library))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(proto.SerializeToString()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = [f"{e.node_operator()} node {e.node_name()}: {e.desc()}" for e in errors]
        raise BuildError(f"{kind} cannot read the graph: {'; '.join(reasons or logger.errors)}")
    config = builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    _disable_tf32(library, config)
    _set_shapes(builder, config, shapes)
    if kind == "tensorrt-rtx":
        _set_targets(library, config, capabilities)
    monitor = _monitor(library) if progress else None
    if monitor is not None:
        config.progress_monitor = monitor
    serialised = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.interrupted:
        raise KeyboardInterrupt
    if serialised is None:
        raise BuildError(f"{kind} {library.__version__} could not build the engine: {'; '.join(logger.errors[-3:])}")
    return bytes(serialised)


def _network_flags(library: Any) -> int:
    """Strong typing is a flag in TensorRT 10 and the only way from 11 on."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _disable_tf32(library: Any, config: Any) -> None:
    """float32 means float32: TF32 keeps ten bits of each factor."""
    flag = getattr(library.BuilderFlag, "TF32", None)
    if flag is not None:
        config.clear_flag(flag)


def _fix_input(graph: onnx.ModelProto, shape: Shape) -> None:
    """Give the graph's input a static shape; what the exporter noted of free sizes inside is dropped."""
    for dimension, value in zip(graph.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = value
    for output in graph.graph.output:
        output.type.tensor_type.ClearField("shape")
    del graph.graph.value_info[:]


def _set_shapes(builder: Any, config: Any, shapes: Shapes) -> None:
    if shapes.static:
        return
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, shapes.smallest, shapes.usual, shapes.largest)
    config.add_optimization_profile(profile)


def _set_targets(library: Any, config: Any, capabilities: Sequence[str]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(getattr(library.ComputeCapability, "SM" + capability.replace(".", "")), index)


def _monitor(library: Any) -> Any:
    if not hasattr(library, "IProgressMonitor"):
        return None

    class Bars(library.IProgressMonitor):
        """The library's build phases as progress bars; Ctrl-C asks it to stop.

        An exception must not cross into the library, so it is noted here and raised after the build.
        """

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

    return Bars()
