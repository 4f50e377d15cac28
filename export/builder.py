"""A TensorRT library's builder as we use it: configuration, logger, progress. Whatever one of the two libraries, or a
version of TensorRT from 10.13 to 11, has or lacks is found by asking the module, not by comparing versions.

API: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/BuilderConfig.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from isnet_trt.engines.tensorrt_api import keep_alive, logger_class
from isnet_trt.errors import EngineUnavailable
from isnet_trt.export.engine_options import EngineOptions
from isnet_trt.export.layers import HEAD

GIB = 1 << 30


def network_flags(library: Any) -> int:
    """Strong typing is a flag in TensorRT 10 and the only way from 11 on."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def configure(library: Any, config: Any, kind: str, options: EngineOptions, capabilities: Sequence[str]) -> None:
    """Set everything but shapes, timing cache and progress.

    Raises:
        EngineUnavailable: this version of the library lacks what was asked for.
    """
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    tf32 = getattr(library.BuilderFlag, "TF32", None)
    if tf32 is not None:  # float32 means float32: TF32 keeps ten bits of each factor
        config.clear_flag(tf32)
    if options.workspace is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, int(options.workspace * GIB))
    if kind == "tensorrt-rtx":
        _set_targets(library, config, capabilities)
        # Its release notes to 1.2: without this an engine may allocate while it runs, which no CUDA graph can capture.
        config.set_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if options.hardware_compatible:
        levels = _asked(library, "HardwareCompatibilityLevel", "--hardware-compatible")
        config.hardware_compatibility_level = levels.AMPERE_PLUS
    if options.version_compatible:
        flag = getattr(library.BuilderFlag, "VERSION_COMPATIBLE", None)
        if flag is None:
            raise EngineUnavailable(f"{kind} {library.__version__} has no --version-compatible engines")
        config.set_flag(flag)


def _asked(library: Any, name: str, option: str) -> Any:
    found = getattr(library, name, None)
    if found is None:
        raise EngineUnavailable(f"{library.__name__} {library.__version__} has no {name}, which {option} needs")
    return found


def _set_targets(library: Any, config: Any, capabilities: Sequence[str]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(getattr(library.ComputeCapability, "SM" + capability.replace(".", "")), index)


def attach_timing_cache(config: Any, earlier: bytes) -> tuple[Any, bool]:
    """A timing cache for a build, with the measurements ``earlier`` (b"": none), and whether these could be used.

    TensorRT takes measurements of the same version on the same GPU only. Not yet run on a GPU.
    """
    cache = config.create_timing_cache(earlier)
    if cache is not None and config.set_timing_cache(cache, False):
        return cache, bool(earlier)
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    return cache, False


def recording_logger(library: Any) -> Any:
    """A collecting logger that also keeps the layer information which TensorRT-RTX writes at the end of a build."""

    class Recorder(logger_class(library)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = ""

        def log(self, level: Any, message: str) -> None:
            super().log(level, message)
            if message.startswith(HEAD):
                self.layers = message

    return keep_alive(Recorder())


def progress_monitor(library: Any) -> Any:
    """The library's build phases as progress bars; None where it cannot tell."""
    if not hasattr(library, "IProgressMonitor"):
        return None

    class Bars(library.IProgressMonitor):
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

    return Bars()
