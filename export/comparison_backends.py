"""Comparison backends: what runs a graph or engine for a comparison, tensor by tensor.

A backend is a graph under ONNX Runtime, the engine of a bundle, or a graph under a TensorRT library.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from isnet_trt.bundle import KERNELS, ONNX, Bundle, read_bundle
from isnet_trt.cuda import plugins
from isnet_trt.cuda.backends import current_gpu
from isnet_trt.cuda.gpu import Gpu, probe_gpu
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.table import compiling_kinds, library
from isnet_trt.engines.tensorrt_api import collecting_logger
from isnet_trt.errors import BuildError, EngineUnavailable, IsnetError, SettingsError, needs
from isnet_trt.export.engines import engine_builder
from isnet_trt.export.engines.base import BuildRequest
from isnet_trt.export.engines.profiles import Shapes
from isnet_trt.export.engines.tensorrt_family import TensorRTFamilyBuilder
from isnet_trt.export.graph import OUTPUT
from isnet_trt.export.onnx_edit import CODES, FLOAT_CODES, copied, element_types, from_bytes
from isnet_trt.export.options import EngineOptions
from isnet_trt.export.sessions import open_session
from isnet_trt.runtime.opening import open_engine
from isnet_trt.settings import Placement

Shape = tuple[int, int, int, int]
Run = Callable[[NDArray[np.float32]], dict[str, NDArray[Any]]]
"""Network input (1, 3, H, W) -> values by tensor name."""


class ComparisonBackend(Protocol):
    """One of the two that are compared.

    Attributes:
        label: name in messages and reports.
        tensors: names of the tensors that it can return, in the order of computation; the last is the logits.
    """

    label: str
    tensors: Sequence[str]

    @property
    def proto(self) -> onnx.ModelProto | None:
        """Its graph, if it has one."""
        ...

    def open(self, names: Sequence[str], shape: Shape) -> contextlib.AbstractContextManager[Run]:
        """Make it ready to return the tensors ``names`` for inputs of ``shape``."""
        ...


def float_outputs(proto: onnx.ModelProto) -> list[str]:
    """Names of the floating-point outputs of the graph's nodes, in the order of computation."""
    types = element_types(proto)
    return [name for node in proto.graph.node for name in node.output if name and types.get(name) in FLOAT_CODES]


@dataclass
class GraphBackend:
    """A graph under ONNX Runtime on the CPU."""

    label: str
    proto: onnx.ModelProto
    tensors: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = float_outputs(self.proto)

    @contextlib.contextmanager
    def open(self, names: Sequence[str], shape: Shape) -> Iterator[Run]:
        """See `ComparisonBackend.open`."""
        with open_session(self.proto, names) as session:
            source = session.get_inputs()[0].name
            yield lambda pixels: dict(zip(names, session.run(list(names), {source: pixels}), strict=True))


@dataclass
class BundleBackend:
    """The engine of a bundle as it was built, which returns its logits only. Those of TensorRT need their GPU."""

    label: str
    bundle: Bundle
    device: str = "auto"
    tensors: Sequence[str] = (OUTPUT,)
    proto: None = None

    @contextlib.contextmanager
    def open(self, names: Sequence[str], shape: Shape) -> Iterator[Run]:
        """See `ComparisonBackend.open`."""
        with open_engine(self.bundle, device=self.device) as engine:
            yield lambda pixels: {OUTPUT: engine.run(pixels)}


@dataclass
class TensorRTBackend:
    """A graph under TensorRT or TensorRT-RTX, in an engine whose outputs are the compared tensors.

    A tensor that is an output is kept, so that layers around it are not fused as in the engine of a bundle; the effect
    of a fusion shows in the logits only. TensorRT-RTX engines are built here without a GPU; running them has not been
    tried yet.
    """

    label: str
    proto: onnx.ModelProto
    kind: str
    info: EngineInfo | None = None
    kernels: Path | None = None
    device: str = "auto"
    tensors: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = float_outputs(self.proto)

    def build(self, names: Sequence[str], shape: Shape, folder: Path) -> Path:
        """Build the engine that returns ``names``; the path of its file in ``folder``.

        Raises:
            BuildError, EngineUnavailable: the library refuses the graph, or needs its GPU.
        """
        graph = copied(self.proto)
        available = {value.name for value in graph.graph.output}
        types = element_types(self.proto)
        for name in names:
            if name not in available:
                # Without a shape: sizes inside the graph may be free, and the parser infers them.
                graph.graph.output.append(onnx.helper.make_tensor_value_info(name, types[name], None))
        path = folder / "model.engine"
        plugin = self.kernels is not None and self.info is not None and self.info.context == "plugin"
        options = EngineOptions(context="plugin" if plugin else "native", device=self.device)
        precision = "fp32" if set(types.values()).isdisjoint(FLOAT_CODES - {CODES["fp32"]}) else "fp16"
        shapes = Shapes(shape, shape, shape)
        request = BuildRequest(graph, shapes, options, precision, kernels=self.kernels, progress=False)
        _tensorrt(self.kind).serialise(request, path)
        return path

    @contextlib.contextmanager
    def open(self, names: Sequence[str], shape: Shape) -> Iterator[Run]:
        """See `ComparisonBackend.open`.

        Raises:
            EngineUnavailable: there is no GPU to run on.
        """
        # Asked before the build, which takes long and under TensorRT-RTX would succeed without a GPU.
        gpu, reason = probe_gpu(Placement.parse(self.device).gpu)
        if gpu is None:
            raise EngineUnavailable(f"{self.label} needs an NVIDIA GPU to run: {reason}")
        with tempfile.TemporaryDirectory() as folder:
            path = self.build(names, shape, Path(folder))
            with _polygraphy_runner(self.kind, path.read_bytes(), self.kernels, gpu) as run:
                # The engine also returns the graph's own output, which may not be among ``names``.
                yield lambda pixels: {name: value for name, value in run(pixels).items() if name in names}


def _tensorrt(kind: str) -> TensorRTFamilyBuilder:
    builder = engine_builder(kind)
    if not isinstance(builder, TensorRTFamilyBuilder):
        raise SettingsError(f"tensors are compared under TensorRT's libraries only, not {kind}")
    return builder


@contextlib.contextmanager
def _polygraphy_runner(kind: str, serialised: bytes, kernels: Path | None, gpu: Gpu) -> Iterator[Run]:
    """A serialised engine in polygraphy's runner."""
    os.environ.update(_tensorrt(kind).polygraphy_environment)  # polygraphy reads it when it is first imported
    with needs("polygraphy's runner", "build"):
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from isnet_trt.cuda.kernels import Kernels

    loaded = Kernels.open(kernels, gpu.compute_capability) if kernels is not None else None
    module = library(kind).load()
    registered = plugins.kernels_for(module, loaded, gpu.multiprocessors)
    # A runtime of ours: polygraphy's own would end the process where CUDA does not start.
    with current_gpu(gpu.index):
        runtime = _tensorrt(kind).library.create_runtime(collecting_logger(module))
    with current_gpu(gpu.index), registered, TrtRunner(EngineFromBytes(serialised, runtime=runtime)) as runner:
        source = next(iter(runner.get_input_metadata()))
        # Copied: the runner reuses its output buffers in the next inference.
        yield lambda pixels: {name: np.array(value) for name, value in runner.infer({source: pixels}).items()}


def open_backend(text: str, other: str | None = None, device: str = "auto") -> tuple[ComparisonBackend, Bundle | None]:
    """The backend that a command-line argument names, and its bundle if it comes from one.

    ``text`` is a bundle's folder (its graph; with ``:engine`` appended, its engine), a ``.onnx`` file, or the name of
    an engine library that runs the graph of the ``other`` argument. ``device`` is for engines: a GPU ("cuda:N").

    Raises:
        SettingsError: it is none of these.
        BundleError: it is a damaged bundle.
    """
    if text in compiling_kinds() and other is not None:
        proto, bundle = load_graph(other)
        info = bundle.manifest.engine if bundle else None
        folder = bundle.folder / KERNELS if bundle and (bundle.folder / KERNELS).is_dir() else None
        return TensorRTBackend(f"{other} under {text}", proto, text, info, folder, device), bundle
    if text.endswith(":engine"):
        bundle = read_bundle(text.removesuffix(":engine"))
        return BundleBackend(f"{text} ({bundle.manifest.engine.kind})", bundle, device), bundle
    proto, bundle = load_graph(text)
    return GraphBackend(text, proto), bundle


def load_graph(text: str) -> tuple[onnx.ModelProto, Bundle | None]:
    """The graph of a bundle's folder or a ``.onnx`` file, and the bundle.

    Raises:
        SettingsError: it is neither.
        BuildError: the file holds no graph.
        BundleError: the bundle is damaged.
    """
    path = Path(text)
    if path.is_dir():
        bundle = read_bundle(path)
        try:
            return from_bytes(bundle.read(ONNX), bundle.read), bundle
        except IsnetError:
            raise
        except Exception as error:  # protobuf's errors have no common base with onnx's
            raise BuildError(f"{bundle.path(ONNX)} cannot be read as an ONNX graph: {error}") from None
    if path.suffix != ".onnx" or not path.is_file():
        raise SettingsError(
            f"{text} is no bundle and no .onnx file; a bundle's engine is named {text}:engine, and the second side "
            f"may be {' or '.join(compiling_kinds())}"
        )
    try:
        return onnx.load(text), None
    except Exception as error:  # protobuf's errors have no common base with onnx's
        raise BuildError(f"{text} cannot be read as an ONNX graph: {error}") from None
