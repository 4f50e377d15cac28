"""What can be asked of a TensorRT engine besides its arithmetic and shapes, and what cannot be had together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from isnet_trt.cuda.architectures import GPU_ARCHITECTURES
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines.table import compiling_kinds
from isnet_trt.engines.tensorrt_rtx import COMPUTE_CAPABILITIES as RTX_COMPUTE_CAPABILITIES
from isnet_trt.errors import SettingsError

Context = Literal["plugin", "native"]
CONTEXTS: tuple[Context, ...] = get_args(Context)
AMPERE_PLUS = tuple(arch.capability for arch in GPU_ARCHITECTURES)
"""Compute capabilities of the GPUs that a hardware-compatible engine runs on: Ampere and later (TensorRT's
documentation, "Hardware Compatibility")."""
_LEAST = {"bf16": (8, 0), "fp8": (8, 9)}
"""Oldest capability with matrix units for a type: Ampere for bfloat16, Ada for E4M3 (CUDA programming guide)."""
_RTX_CACHE = (
    "TensorRT-RTX has no timing cache: it chooses kernels when the engine is loaded, on the GPU "
    "(https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/timing-cache-migration.html)"
)


@dataclass(frozen=True)
class EngineOptions:
    """What a build asks of a TensorRT engine.

    Attributes:
        context: ``plugin``: the two context operations are computed by the kernels of `isnet_trt.kernels`; ``native``:
            by the engine's own layers, which hold N x N scores.
        targets: compute capabilities that TensorRT-RTX builds for, such as "8.9"; None: all that it knows.
        workspace: GiB of scratch memory that a layer may use at most; None: all of the GPU's.
        hardware_compatible: a TensorRT engine for every GPU from Ampere on, not only for the one it is built on.
        version_compatible: a TensorRT engine that later versions of the same major version run as well.
        timing_cache: file of an earlier build's measurements.
    """

    context: Context = "plugin"
    targets: tuple[str, ...] | None = None
    workspace: float | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    timing_cache: Path | None = None

    def check(self, kind: str) -> None:
        """Refuse what an engine of ``kind`` cannot have.

        Raises:
            SettingsError: the message says why, and what can be had.
        """
        if self.context not in CONTEXTS:
            raise SettingsError(f"context {self.context!r} is unknown; it is {' or '.join(CONTEXTS)}")
        if kind not in compiling_kinds():
            raise SettingsError(f"{', '.join(self._given())} are for TensorRT engines; {kind} has no such setting")
        if self.workspace is not None and not 0 < self.workspace < 1024:
            raise SettingsError(f"--workspace {self.workspace:g}: it must be more than 0 GiB and less than 1024")
        if kind == "tensorrt-rtx":
            self._check_rtx()
        elif self.targets:
            raise SettingsError(
                "--targets is for TensorRT-RTX; TensorRT builds for the GPU of this machine, or with "
                "--hardware-compatible for all from Ampere on"
            )
        if self.version_compatible and self.context == "plugin":
            raise SettingsError(
                "--version-compatible cannot be had with plugins: such an engine is run by TensorRT's lean runtime, "
                "which has no plugins in Python; add --context native"
            )
        if self.timing_cache is not None and not self.timing_cache.is_file():
            raise SettingsError(f"--timing-cache {self.timing_cache} does not exist or is no file")

    def _check_rtx(self) -> None:
        if self.hardware_compatible:
            raise SettingsError(
                "--hardware-compatible is for TensorRT; a TensorRT-RTX engine runs on all of its --targets "
                f"({', '.join(RTX_COMPUTE_CAPABILITIES)})"
            )
        if self.version_compatible:
            raise SettingsError(
                "--version-compatible is for TensorRT; TensorRT-RTX has no lean runtime (libnvinfer_lean.so.1) to put "
                "into the engine, which runs under the version that built it"
            )
        if self.timing_cache is not None:
            raise SettingsError(f"--timing-cache is for TensorRT; {_RTX_CACHE}")

    def _given(self) -> list[str]:
        """The options, as on the command line, that differ from their defaults."""
        plain = EngineOptions()
        names = [name for name in vars(plain) if getattr(self, name) != getattr(plain, name)]
        return ["--" + name.replace("_", "-") for name in names or ("context",)]

    def capabilities(self, kind: str, gpu: Gpu | None, precision: str) -> tuple[str, ...]:
        """The compute capabilities that the engine will run on.

        Raises:
            SettingsError: one of them is unknown to the library, or has no units for ``precision``.
        """
        if kind == "tensorrt-rtx":
            found = _rtx_capabilities(self.targets, precision)
        elif self.hardware_compatible:
            found = AMPERE_PLUS
        else:
            found = (gpu.compute_capability,) if gpu else ()
        least = _LEAST.get(precision, (0, 0))
        if lacking := [one for one in found if _number(one) < least]:
            raise SettingsError(
                f"precision {precision} needs compute capability {'.'.join(map(str, least))} or newer, not "
                f"{', '.join(lacking)}; use fp16 or int8, or other targets"
            )
        return found


def _rtx_capabilities(targets: tuple[str, ...] | None, precision: str) -> tuple[str, ...]:
    unknown = set(targets or ()) - set(RTX_COMPUTE_CAPABILITIES)
    if unknown:
        raise SettingsError(
            f"TensorRT-RTX does not build for compute capability {', '.join(sorted(unknown))}; "
            f"it knows {', '.join(RTX_COMPUTE_CAPABILITIES)}"
        )
    least = _LEAST.get(precision, (0, 0))
    return tuple(dict.fromkeys(targets or ()) or (one for one in RTX_COMPUTE_CAPABILITIES if _number(one) >= least))


def _number(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
