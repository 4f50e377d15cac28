"""The part of `Library` that TensorRT and TensorRT-RTX share, since they have one Python API."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from isnet_trt.cuda.backends import current_gpu
from isnet_trt.cuda.gpu import Gpu, probe_gpu
from isnet_trt.engines.base import DeviceEngine
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import PORTABLE, EngineSource, Library
from isnet_trt.engines.tensorrt_api import (
    collecting_logger,
    create,
    give_back,
    network_flags,
    parser_errors,
    runs_engine_of,
)
from isnet_trt.engines.tensorrt_engine import REBUILD, TensorRTEngine
from isnet_trt.engines.tensorrt_install import check_files, check_parts, driver_too_old
from isnet_trt.errors import EngineUnavailable, SettingsError


class TensorRTFamily(Library):
    """A library with TensorRT's Python API."""

    precisions: ClassVar = {
        "fp32": "float32 throughout, no TF32",
        "fp16": "float16 with fp32 fallback",
        "bf16": "bfloat16 with fp32 fallback (8.0 and newer)",
        "int8": "symmetric int8, the rest --rest",
        "fp8": "E4M3, the rest --rest (8.9 and newer)",
    }
    options = Library.options | {"device", "context", "workspace", "optimisation_level", "streams"}
    needs_gpu = True
    compiles = True

    def load(self) -> Any:
        """See `Library.load`; also EngineUnavailable where parts are cut off, or of several versions."""
        check_files(self.module)
        module = super().load()
        if reason := self.unsupported_version(str(module.__version__)):
            raise EngineUnavailable(reason)
        check_parts(self.kind, module)
        return module

    def unsupported(self, gpu: Gpu) -> str:
        return driver_too_old(self.kind, gpu)

    def check_driver(self, gpu: Gpu) -> None:
        """Raise EngineUnavailable where the driver of ``gpu`` is too old for the library, which is imported."""
        if reason := driver_too_old(self.kind, gpu, self.load()):
            raise EngineUnavailable(f"{reason}; or use engine {PORTABLE!r}")

    def start_builder(self, gpu: int = 0) -> None:
        self.check_builder(*probe_gpu(gpu))
        logger = collecting_logger(self.load())
        with current_gpu(gpu):
            self.create_builder(logger)
        give_back(logger)

    def create_builder(self, logger: Any) -> Any:
        """A ``Builder`` of the library that logs to ``logger``.

        Raises:
            EngineError: the library does not start.
        """
        module = self.load()
        return create(self.label(module), logger, module.Builder, logger)

    def create_runtime(self, logger: Any) -> Any:
        """A ``Runtime`` of the library that logs to ``logger``; see `create_builder`."""
        module = self.load()
        return create(self.label(module), logger, module.Runtime, logger)

    def label(self, module: Any) -> str:
        """Kind and version, for messages."""
        return f"{self.kind} {module.__version__}"

    def allow_plugins(self, module: Any) -> None:
        """Raise EngineUnavailable unless the ONNX parser of ``module`` can take a plugin node in this process."""

    def check(self, info: EngineInfo, gpu: int = 0) -> Gpu:
        """See `Library.check`; returns the GPU that the engine runs on.

        Raises:
            EngineUnavailable: library missing or of another version, no GPU, or one that the engine is not built for.
        """
        self._check_version(info)
        found, reason = probe_gpu(gpu)
        if found is None:
            raise EngineUnavailable(f"a {info.kind} engine needs an NVIDIA GPU and its driver: {reason}")
        if reason := driver_too_old(self.kind, found):
            raise EngineUnavailable(reason)
        if info.compute_capabilities and found.compute_capability not in info.compute_capabilities:
            raise EngineUnavailable(
                f"the engine was built for compute capability {', '.join(info.compute_capabilities)}, but "
                f"{found.label} has {found.compute_capability}; {REBUILD}"
            )
        return found

    def _check_version(self, info: EngineInfo) -> None:
        version = self.installed_version()
        if version is None:
            self.load()  # raises the error that says what to install
        elif reason := self.unsupported_version(version):
            raise EngineUnavailable(reason)
        elif not runs_engine_of(version, info.library_version, info.version_compatible):
            later = " or a later one of the same major version" if info.version_compatible else ""
            raise EngineUnavailable(
                f"the engine was built with {info.kind} {info.library_version}, but {version} is installed, and it "
                f"runs only under the version that built it{later}; pip install "
                f"'{self.packages[0]}=={info.library_version}', or {REBUILD}"
            )

    def open_on_gpu(self, source: EngineSource, *, threads: int | None = None, on_device: bool = True) -> DeviceEngine:
        gpu = self.check(source.info, source.gpu)
        self.check_driver(gpu)
        return TensorRTEngine(self.load(), gpu, source)

    def refusal(self, path: Path, gpu: int = 0) -> str:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror or error}") from None
        self.check_builder(*probe_gpu(gpu))
        with current_gpu(gpu):
            return self._refusal(content)

    def _refusal(self, content: bytes) -> str:
        module = self.load()
        label, logger = self.label(module), collecting_logger(module)
        builder = self.create_builder(logger)
        network = create(label, logger, builder.create_network, network_flags(module))
        parser = create(label, logger, module.OnnxParser, network, logger)
        if not parser.parse(content):
            return "; ".join(parser_errors(parser) or logger.errors)
        config = create(label, logger, builder.create_builder_config)
        if builder.build_serialized_network(network, config) is None:
            return "; ".join(logger.errors[-3:]) or "the library gave no reason"
        return ""
