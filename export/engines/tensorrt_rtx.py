"""Engines of TensorRT-RTX, built ahead of time on any machine."""

from __future__ import annotations

from typing import Any, ClassVar

from isnet_trt.engines.tensorrt_rtx import COMPUTE_CAPABILITIES, LIBRARY
from isnet_trt.errors import SettingsError
from isnet_trt.export.engines.tensorrt_family import TensorRTFamilyBuilder, as_numbers
from isnet_trt.export.options import EngineOptions


class TensorRTRTXBuilder(TensorRTFamilyBuilder):
    """TensorRT-RTX 1.7."""

    library = LIBRARY
    reasons: ClassVar = {
        "hardware_compatible": (
            f"a TensorRT-RTX engine runs on all of its --targets ({', '.join(COMPUTE_CAPABILITIES)})"
        ),
        "version_compatible": (
            "TensorRT-RTX has no lean runtime (libnvinfer_lean.so.1) to put into the engine, which runs under the "
            "version that built it"
        ),
        "timing_cache": (
            "TensorRT-RTX has no timing cache: it chooses kernels when the engine is loaded, on the GPU "
            "(https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/timing-cache-migration.html)"
        ),
    }
    polygraphy_environment: ClassVar = {"POLYGRAPHY_USE_TENSORRT_RTX": "1"}

    def supported(self, options: EngineOptions, least: tuple[int, ...]) -> tuple[str, ...]:
        targets = tuple(dict.fromkeys(options.targets or ()))
        if unknown := sorted(set(targets) - set(COMPUTE_CAPABILITIES)):
            raise SettingsError(
                f"TensorRT-RTX does not build for compute capability {', '.join(unknown)}; it knows "
                f"{', '.join(COMPUTE_CAPABILITIES)}"
            )
        return targets or tuple(capability for capability in COMPUTE_CAPABILITIES if as_numbers(capability) >= least)

    def configure(self, module: Any, config: Any, options: EngineOptions, capabilities: tuple[str, ...]) -> None:
        super().configure(module, config, options, capabilities)
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            target = getattr(module.ComputeCapability, "SM" + capability.replace(".", ""))
            config.set_compute_capability(target, index)
        # Its release notes to 1.2: without this an engine may allocate while it runs, which no CUDA graph can capture.
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)


BUILDER = TensorRTRTXBuilder()
