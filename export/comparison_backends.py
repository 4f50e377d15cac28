"""What can be compared: graphs under ONNX Runtime, built engines, and graphs under a TensorRT library."""

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
from onnx import TensorProto

from isnet_trt.bundle import KERNELS, ONNX, Bundle, read_bundle
from isnet_trt.cuda import plugins
from isnet_trt.cuda.gpu import probe_gpu
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.table import compiling_kinds, library
from isnet_trt.errors import BuildError, EngineUnavailable, SettingsError
from isnet_trt.export.engines import engine_builder
from isnet_trt.export.engines.profiles import Shapes
from isnet_trt.export.engines.tensorrt_family import TensorRTFamilyBuilder
from isnet_trt.export.graph import OUTPUT
from isnet_trt.export.onnx_edit import FLOAT_CODES, element_types
from isnet_trt.export.options import EngineOptions
from isnet_trt.export.sessions import open_session
from isnet_trt.runtime.opening import open_engine

Run = Callable[[NDArray[np.float32]], dict[str, NDArray[Any]]]
"""A network input (1, 3, H, W) -> values by tensor name."""
_POLYGRAPHY = "polygraphy is not installed; pip install 'isnet_trt[build]'"


class ComparisonBackend(Protocol):
    """One of the two that are compared.

    Attributes:
        label: for people.
        tensors: names of what it can show, in the order of computation; the last is the logits.
    """

    label: str
    tensors: Sequence[str]

    def opened(self, names: Sequence[str], shape: tuple[int, int, int, int]) -> contextlib.AbstractContextManager[Run]:
        """Ready to show the tensors ``names`` for inputs of ``shape``."""
        ...


def shown(proto: onnx.ModelProto) -> list[str]:
    """Names of the floating-point tensors that nodes of a graph make, in the order of computation."""
    kinds = element_types(proto)
    return [name for node in proto.graph.node for name in node.output if name and kinds.get(name) in FLOAT_CODES]


@dataclass
class GraphBackend:
    """A graph under ONNX Runtime on the CPU."""

    label: str
    proto: onnx.ModelProto
    tensors: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = shown(self.proto)

    @contextlib.contextmanager
    def opened(self, names: Sequence[str], shape: tuple[int, int, int, int]) -> Iterator[Run]:
        """See `ComparisonBackend.opened`."""
        with open_session(self.proto, names) as session:
            source = session.get_inputs()[0].name
            yield lambda pixels: dict(zip(names, session.run(list(names), {source: pixels}), strict=True))


@dataclass
class BundleBackend:
    """The engine of a bundle, as it was built: it shows its logits only. TensorRT's need their GPU."""

    label: str
    bundle: Bundle
    tensors: Sequence[str] = (OUTPUT,)

    @contextlib.contextmanager
    def opened(self, names: Sequence[str], shape: tuple[int, int, int, int]) -> Iterator[Run]:
        """See `ComparisonBackend.opened`."""
        with open_engine(self.bundle) as engine:
            yield lambda pixels: {OUTPUT: engine.run(pixels)}


@dataclass
class TensorRTBackend:
    """A graph under TensorRT or TensorRT-RTX, with every tensor that is to be shown as an output of the engine.

    Marked tensors are kept, so that layers around them are not fused as in the engine that serves; what a fusion does
    shows in the logits only. Engines are built here without a GPU (TensorRT-RTX); running them has not been tried yet.
    """

    label: str
    proto: onnx.ModelProto
    kind: str
    info: EngineInfo | None = None
    kernels: Path | None = None
    tensors: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = shown(self.proto)

    def build(self, names: Sequence[str], shape: tuple[int, int, int, int], folder: Path) -> Path:
        """The serialised engine that shows ``names``.

        Raises:
            BuildError, EngineUnavailable: the library refuses, or needs its GPU.
        """
        marked = onnx.ModelProto()
        marked.CopyFrom(self.proto)
        there = {value.name for value in marked.graph.output}
        kinds = element_types(self.proto)
        for name in names:
            if name not in there:
                marked.graph.output.append(onnx.helper.make_tensor_value_info(name, kinds[name], None))
        path = folder / "marked.engine"
        plugin = self.kernels is not None and self.info is not None and self.info.context == "plugin"
        options = EngineOptions(context="plugin" if plugin else "native")
        precision = "fp32" if set(kinds.values()).isdisjoint(FLOAT_CODES - {TensorProto.FLOAT}) else "fp16"
        shapes = Shapes(shape, shape, shape)
        builder = _tensorrt(self.kind)
        builder.serialise(marked, path, shapes, options, precision=precision, kernels=self.kernels, progress=False)
        return path

    @contextlib.contextmanager
    def opened(self, names: Sequence[str], shape: tuple[int, int, int, int]) -> Iterator[Run]:
        """See `ComparisonBackend.opened`.

        Raises:
            EngineUnavailable: there is no GPU to run on.
        """
        gpu, reason = probe_gpu()
        if gpu is None:
            raise EngineUnavailable(f"{self.label} needs an NVIDIA GPU to run: {reason}")
        with tempfile.TemporaryDirectory() as folder:
            path = self.build(names, shape, Path(folder))
            with _running(self.kind, path.read_bytes(), self.kernels, gpu) as run:
                yield lambda pixels: {name: value for name, value in run(pixels).items() if name in names}


def _tensorrt(kind: str) -> TensorRTFamilyBuilder:
    builder = engine_builder(kind)
    if not isinstance(builder, TensorRTFamilyBuilder):
        raise SettingsError(f"tensors are compared under TensorRT's libraries only, not {kind}")
    return builder


@contextlib.contextmanager
def _running(kind: str, serialised: bytes, kernels: Path | None, gpu: Any) -> Iterator[Run]:
    """A serialised engine in polygraphy's runner. Not yet run on a GPU."""
    os.environ.update(_tensorrt(kind).polygraphy_environment)  # polygraphy reads it when it is first imported
    try:
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    except ImportError as error:
        raise EngineUnavailable(f"{_POLYGRAPHY} ({error})") from None
    from isnet_trt.cuda.kernels import Kernels

    loaded = Kernels.open(kernels, gpu.compute_capability) if kernels is not None else None
    registered = plugins.kernels_for(library(kind).load(), loaded, gpu.multiprocessors)
    with registered, TrtRunner(EngineFromBytes(serialised)) as runner:
        source = next(iter(runner.get_input_metadata()))
        yield lambda pixels: {name: np.array(value) for name, value in runner.infer({source: pixels}).items()}


def open_backend(text: str, beside: str | None = None) -> tuple[ComparisonBackend, Bundle | None]:
    """A side from the command line's word, and the bundle that it comes from, if any.

    ``text`` is a bundle's folder (its graph; with ``:engine`` behind it, its engine), a ``.onnx`` file, or, where
    ``beside`` is the other side's word, the name of an engine library that runs the other side's graph.

    Raises:
        SettingsError: it is none of these.
        BundleError: it is a damaged bundle.
    """
    if text in compiling_kinds() and beside is not None:
        proto, bundle = load_graph(beside)
        info = bundle.manifest.engine if bundle else None
        folder = bundle.folder / KERNELS if bundle and (bundle.folder / KERNELS).is_dir() else None
        return TensorRTBackend(f"{beside} under {text}", proto, text, info, folder), bundle
    if text.endswith(":engine"):
        bundle = read_bundle(text.removesuffix(":engine"))
        return BundleBackend(f"{text} ({bundle.manifest.engine.kind})", bundle), bundle
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
        return onnx.load(str(bundle.path(ONNX))), bundle
    if path.suffix != ".onnx" or not path.is_file():
        raise SettingsError(
            f"{text} is no bundle and no .onnx file; a bundle's engine is named {text}:engine, and the second side "
            f"may be {' or '.join(compiling_kinds())}"
        )
    try:
        return onnx.load(text), None
    except Exception as error:  # protobuf's errors have no common base with onnx's
        raise BuildError(f"{text} cannot be read as an ONNX graph: {error}") from None
