"""Which engine this machine can run, and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from isnet_trt.cuda.gpu import Gpu, probe_gpu
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.libraries import LIBRARIES, RTX_COMPUTE_CAPABILITIES, import_library, installed_version
from isnet_trt.errors import EngineUnavailable, SettingsError

Placement = Literal["auto", "cpu", "cuda"]
"""Where the network runs: "auto" is the GPU for TensorRT's engines and the CPU for ONNX Runtime, which takes its CUDA
provider for "cuda" only."""
PLACEMENTS: tuple[Placement, ...] = ("auto", "cpu", "cuda")
KINDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
_OLDEST = (7, 5)
"""Oldest compute capability of TensorRT from 10.5 on (Turing)."""


@dataclass(frozen=True)
class Choice:
    """An engine kind and, in a sentence, why it was chosen."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Machine:
    """What decides about engines here: the GPU (or why there is none) and the installed libraries' versions."""

    gpu: Gpu | None
    no_gpu: str = ""
    tensorrt: str | None = None
    tensorrt_rtx: str | None = None
    cuda_bindings: bool = True


def look() -> Machine:
    """This machine; no CUDA package is imported for it."""
    gpu, no_gpu = probe_gpu()
    return Machine(gpu, no_gpu, installed_version("tensorrt"), installed_version("tensorrt-rtx"), _has_bindings())


def _has_bindings() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except ImportError:  # no package called cuda at all
        return False


def choose(kind: str = "auto", machine: Machine | None = None) -> Choice:
    """The engine to build: ``kind``, or for ``auto`` the fastest that this machine can run.

    ``machine`` defaults to the one this runs on. TensorRT-RTX may be asked for on a machine without a GPU: it builds
    ahead of time.

    Raises:
        SettingsError: ``kind`` is unknown.
        EngineUnavailable: ``kind`` was asked for, and its library or the GPU that it builds on is missing.
    """
    if kind not in ("auto", *KINDS):
        raise SettingsError(f"engine {kind!r} is unknown; use auto, {', '.join(KINDS)}")
    if kind == "onnxruntime":
        return Choice(kind, "asked for")
    if kind in LIBRARIES:
        import_library(kind)
    machine = machine or look()
    if kind == "auto":
        return _automatic(machine)
    if kind == "tensorrt" and machine.gpu is None:
        raise EngineUnavailable(
            f"TensorRT builds on the GPU that will run the engine: {machine.no_gpu}; "
            f"use engine 'tensorrt-rtx' (it builds ahead of time) or 'onnxruntime'"
        )
    return Choice(kind, "asked for")


def _automatic(machine: Machine) -> Choice:
    if machine.gpu is None:
        return Choice("onnxruntime", f"no NVIDIA GPU is usable here: {machine.no_gpu}")
    here = f"{machine.gpu.name} (compute capability {machine.gpu.compute_capability})"
    reasons = {kind: _against(kind, machine) for kind in LIBRARIES}
    for kind, reason in reasons.items():
        if not reason:
            return Choice(kind, f"{here} with {kind} {_version(kind, machine)}")
    return Choice("onnxruntime", f"{here} cannot be used: {'; '.join(reasons.values())}")


def _version(kind: str, machine: Machine) -> str | None:
    return machine.tensorrt if kind == "tensorrt" else machine.tensorrt_rtx


def _against(kind: str, machine: Machine) -> str:
    """Why this machine, which has a GPU, cannot run ``kind``; empty if it can."""
    if _version(kind, machine) is None:
        return f"{kind} is not installed (pip install '{LIBRARIES[kind].install}')"
    if not machine.cuda_bindings:
        return f"{kind} needs cuda-bindings, which is not installed (pip install '{LIBRARIES[kind].install}')"
    capability = machine.gpu.compute_capability if machine.gpu else ""
    if kind == "tensorrt-rtx" and capability not in RTX_COMPUTE_CAPABILITIES:
        return f"{kind} runs on compute capability {', '.join(RTX_COMPUTE_CAPABILITIES)} only"
    if kind == "tensorrt" and tuple(map(int, capability.split("."))) < _OLDEST:
        return f"{kind} runs from compute capability {'.'.join(map(str, _OLDEST))} on"
    return ""


def check_engine(info: EngineInfo) -> None:
    """Whether the engine of a manifest can run here, asked without loading it.

    Raises:
        EngineUnavailable: it cannot; the message says why and what can.
    """
    if info.kind not in LIBRARIES:
        return
    from isnet_trt.engines.tensorrt import check_compatible

    try:
        check_compatible(info)
    except EngineUnavailable as error:
        raise EngineUnavailable(f"{error}. The same bundle opens on the CPU with engine='onnxruntime'") from None
