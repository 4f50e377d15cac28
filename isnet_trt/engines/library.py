"""The runtime's description of an engine library; `isnet_trt.engines.table` lists the libraries."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from isnet_trt.cuda.element_types import FLOATS
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.cuda.kernels import KernelSource
from isnet_trt.engines.base import DeviceEngine, Engine
from isnet_trt.engines.info import EngineInfo
from isnet_trt.errors import EngineError, EngineUnavailable, install_hint
from isnet_trt.files import regular_file_bytes
from isnet_trt.settings import Placement

PORTABLE = "onnxruntime"
"""The library that opens the ONNX graph of any bundle on any machine."""
PRECISIONS = (*FLOATS, "int8", "fp8")
_AUTO = Placement()


@dataclass(frozen=True)
class ModelContent:
    """An engine or a graph in memory, and the files of its external data by the names that the graph has for them."""

    model: bytes
    external: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineSource:
    """What an engine is opened from.

    ``path`` is the serialised engine, or the ONNX graph for a library that does not compile; ``kernels`` the bundle's
    compiled kernels; ``classes`` and ``stride`` describe the network's output. With ``content``, checked bytes,
    nothing is read from ``path``, which is then for messages only. ``gpu`` is the number of the GPU, for engines that
    run on one, and ``precision`` that of the model. ``note`` says why this engine is opened, for its description.
    """

    path: Path
    info: EngineInfo
    kernels: KernelSource | None
    classes: int
    stride: int
    content: ModelContent | None = None
    gpu: int = 0
    precision: str = "fp32"
    note: str = ""

    def read_model(self) -> bytes:
        """The bytes of the engine or graph; EngineError if its file cannot be read."""
        return self.content.model if self.content else regular_file_bytes(self.path, error_type=EngineError)


class Library:
    """One engine library at run time. Nothing of it is imported before `load`.

    Attributes:
        kind: name on command lines and in manifests.
        title: name in sentences.
        module: Python module.
        packages: distributions that may bring the module; the first is the one to install.
        extra: the optional dependencies of ``setup.py`` that bring it; empty: it comes with the project.
        precisions: precision -> what it means under this library, for ``--help``.
        options: names of the build's `EngineOptions` that it has.
        needs_gpu: engines run on an NVIDIA GPU only.
        compiles: builds serialised engines from graphs; otherwise it runs the bundle's ONNX graph.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    module: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str] = ""
    precisions: ClassVar[Mapping[str, str]]
    options: ClassVar[frozenset[str]] = frozenset({"batch", "static", "kernels", "half_logits"})
    needs_gpu: ClassVar[bool] = False
    compiles: ClassVar[bool] = False

    @property
    def install(self) -> str:
        """The command that installs the library."""
        return install_hint(self.extra) if self.extra else f"pip install {self.packages[0]}"

    def installed_version(self) -> str | None:
        """The library's version, without importing it; None where it is not installed."""
        if importlib.util.find_spec(self.module) is None:
            return None
        # Versions are looked up by distribution, and several distributions bring the same module.
        for package in self.packages:
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return str(self.load().__version__)

    def load(self) -> Any:
        """The library's module.

        Raises:
            EngineUnavailable: it is not installed or cannot be loaded; the message says what to install.
        """
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError, RuntimeError) as error:  # any of the three where its own libraries are missing
            instead = "" if self.kind == PORTABLE else f", or use engine {PORTABLE!r}"
            raise EngineUnavailable(
                f"engine {self.kind!r} needs the Python package {self.packages[0]}, which cannot be imported "
                f"({error}); {self.install}{instead}"
            ) from None

    def unsupported(self, gpu: Gpu) -> str:
        """Why engines of this library cannot run on ``gpu``, or under its driver; empty if they can."""
        return ""

    def unsupported_version(self, version: str) -> str:
        """Why ``version`` of the library cannot be used; empty if it can."""
        return ""

    def start_builder(self, gpu: int = 0) -> None:
        """Start what engines are built with on GPU ``gpu``, and stop it: a build does so before what takes long.

        Raises:
            EngineUnavailable, EngineError: the library is missing or does not start here; the message has its reason.
        """

    def check_builder(self, gpu: Gpu | None, reason: str) -> None:
        """Raise EngineUnavailable where engines cannot be built beside ``gpu``; ``reason`` says why there is none."""

    def check(self, info: EngineInfo, gpu: int = 0) -> Gpu | None:
        """Raise EngineUnavailable where the engine of a manifest cannot run on GPU ``gpu``; nothing is imported."""
        return None

    def open(
        self,
        source: EngineSource,
        *,
        threads: int | None = None,
        device: Placement = _AUTO,
        on_device: bool = False,
    ) -> Engine:
        """An engine on the GPU of ``source`` if the library needs one or ``device`` is "cuda", else on the CPU.

        ``threads`` is for the CPU. See `open_on_gpu` for ``on_device``.

        Raises:
            EngineUnavailable, BundleError, EngineError: it cannot be opened.
        """
        if self.needs_gpu or device.kind == "cuda":
            return self.open_on_gpu(source, threads=threads, on_device=on_device)
        return self.open_on_cpu(source, threads=threads)

    def open_on_cpu(self, source: EngineSource, *, threads: int | None = None) -> Engine:
        """An engine on the CPU; only of libraries that do not need a GPU."""
        raise NotImplementedError

    def open_on_gpu(self, source: EngineSource, *, threads: int | None = None, on_device: bool = True) -> DeviceEngine:
        """An engine on the GPU; without ``on_device`` its `run` is all that is needed."""
        raise NotImplementedError

    def refusal(self, path: Path, gpu: int = 0) -> str:
        """Why the library, one that compiles, cannot build the graph of static shapes in a file on GPU ``gpu``; empty
        where it can.

        Raises:
            EngineUnavailable, EngineError: the library is not installed or does not start.
            SettingsError: the file cannot be read.
        """
        raise NotImplementedError
