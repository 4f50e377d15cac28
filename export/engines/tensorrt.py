"""Engines of TensorRT, built on the GPU that will run them."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from isnet_trt.bundle import TIMING_CACHE, read_bundle
from isnet_trt.cuda.architectures import GPU_ARCHITECTURES
from isnet_trt.cuda.gpu import find_gpu
from isnet_trt.engines.tensorrt import LIBRARY
from isnet_trt.errors import BundleError, EngineUnavailable, SettingsError
from isnet_trt.export.engines.base import BuildRequest
from isnet_trt.export.engines.tensorrt_family import TensorRTFamilyBuilder
from isnet_trt.export.options import EngineOptions
from isnet_trt.files import regular_file_bytes

AMPERE_PLUS = tuple(arch.capability for arch in GPU_ARCHITECTURES)
"""Compute capabilities of the GPUs that a hardware-compatible engine runs on: Ampere and later (TensorRT's
documentation, "Hardware Compatibility")."""

_LARGEST_CACHE = 2**30


class TensorRTBuilder(TensorRTFamilyBuilder):
    """TensorRT 10.6 to 11."""

    library = LIBRARY
    reasons: ClassVar = {
        "targets": "TensorRT builds for the GPU of this machine, or with --hardware-compatible for all from Ampere on"
    }
    runs_plugins = True

    def check(self, options: EngineOptions) -> None:
        super().check(options)
        if options.version_compatible and self.context(options) == "plugin":
            raise SettingsError(
                "--version-compatible cannot be had with plugins: such an engine is run by TensorRT's lean runtime, "
                "which has no plugins in Python; add --context native"
            )
        if options.timing_cache is not None and not options.timing_cache.is_file():
            raise SettingsError(f"--timing-cache {options.timing_cache} does not exist or is no file")

    def supported(self, options: EngineOptions, least: tuple[int, ...]) -> tuple[str, ...]:
        if options.hardware_compatible:
            return AMPERE_PLUS
        gpu = find_gpu(options.gpu)
        # Without a GPU no target can be said to lack the precision; the build itself is refused later.
        return (gpu.compute_capability,) if gpu else ()

    def configure(self, module: Any, config: Any, options: EngineOptions, capabilities: tuple[str, ...]) -> None:
        super().configure(module, config, options, capabilities)
        if options.hardware_compatible:
            levels = getattr(module, "HardwareCompatibilityLevel", None)
            config.hardware_compatibility_level = _available(levels, module, "--hardware-compatible").AMPERE_PLUS
        if options.version_compatible:
            flag = getattr(module.BuilderFlag, "VERSION_COMPATIBLE", None)
            config.set_flag(_available(flag, module, "--version-compatible"))

    def attach_timing_cache(self, config: Any, request: BuildRequest) -> tuple[Any, bool]:
        return timing_cache(config, earlier_measurements(request))


def earlier_measurements(request: BuildRequest) -> bytes:
    """The timing cache named in the options, kept beside the bundle, or in the bundle that is replaced; b"": none."""
    options = request.options
    if options.timing_cache is not None:
        return regular_file_bytes(options.timing_cache, _LARGEST_CACHE)
    # A cache or bundle that cannot be read is about to be replaced: only its measurements are lost.
    with contextlib.suppress(SettingsError):
        if request.measurements is not None:
            return regular_file_bytes(request.measurements, _LARGEST_CACHE)
    try:
        replaced = request.replaced
        return read_bundle(replaced, verify=False).read(TIMING_CACHE, _LARGEST_CACHE) if replaced else b""
    except BundleError:
        return b""


def timing_cache(config: Any, earlier: bytes) -> tuple[Any, bool]:
    """A timing cache for a build, and whether the measurements ``earlier`` are in it.

    TensorRT takes measurements of the same version on the same GPU only.
    """
    cache = config.create_timing_cache(earlier)
    # False: measurements of another GPU or version are refused, not used in spite of the difference.
    if cache is not None and config.set_timing_cache(cache, False):
        return cache, bool(earlier)
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    return cache, False


def _available(setting: Any, module: Any, option: str) -> Any:
    """``setting`` of the library; EngineUnavailable where this version lacks it."""
    if setting is None:
        raise EngineUnavailable(f"{module.__name__} {module.__version__} lacks what {option} needs")
    return setting


BUILDER = TensorRTBuilder()
