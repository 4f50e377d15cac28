"""The part of `Library` that TensorRT and TensorRT-RTX share, since they have one Python API."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from isnet_trt.cuda.gpu import Gpu, probe_gpu
from isnet_trt.engines.base import DeviceEngine
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import EngineSource, Library
from isnet_trt.engines.tensorrt_api import collecting_logger, create, network_flags, parser_errors, runs_engine_of
from isnet_trt.engines.tensorrt_engine import REBUILD, TensorRTEngine
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
    options = Library.options | {"context", "workspace"}
    needs_gpu = True
    compiles = True

    def allow_plugins(self, module: Any) -> None:
        """Raise EngineUnavailable unless the ONNX parser of ``module`` can take a plugin node in this process."""

    def check(self, info: EngineInfo) -> Gpu:
        """See `Library.check`; returns the GPU that the engine runs on.

        Raises:
            EngineUnavailable: library missing or of another version, no GPU, or one that the engine is not built for.
        """
        self._check_version(info)
        gpu, reason = probe_gpu()
        if gpu is None:
            raise EngineUnavailable(f"a {info.kind} engine needs an NVIDIA GPU and its driver: {reason}")
        if info.compute_capabilities and gpu.compute_capability not in info.compute_capabilities:
            raise EngineUnavailable(
                f"the engine was built for compute capability {', '.join(info.compute_capabilities)}, but {gpu.name} "
                f"has {gpu.compute_capability}; {REBUILD}"
            )
        return gpu

    def _check_version(self, info: EngineInfo) -> None:
        version = self.installed_version()
        if version is None:
            self.load()  # raises the error that says what to install
        elif not runs_engine_of(version, info.library_version, info.version_compatible):
            later = " or a later one of the same major version" if info.version_compatible else ""
            raise EngineUnavailable(
                f"the engine was built with {info.kind} {info.library_version}, but {version} is installed, and it "
                f"runs only under the version that built it{later}; pip install "
                f"'{self.packages[0]}=={info.library_version}', or {REBUILD}"
            )

    def open_on_gpu(self, source: EngineSource, *, threads: int | None = None, on_device: bool = True) -> DeviceEngine:
        gpu = self.check(source.info)
        return TensorRTEngine(self.load(), gpu, source.path, source.info, source.kernels)

    def refusal(self, path: Path) -> str:
        module = self.load()
        logger = collecting_logger(module)
        builder = create(module.Builder, logger, f"{self.kind} {module.__version__}")
        network = builder.create_network(network_flags(module))
        parser = module.OnnxParser(network, logger)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror or error}") from None
        if not parser.parse(content):
            return "; ".join(parser_errors(parser) or logger.errors)
        if builder.build_serialized_network(network, builder.create_builder_config()) is None:
            return "; ".join(logger.errors[-3:]) or "the library gave no reason"
        return ""
