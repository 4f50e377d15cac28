"""Which engine library this machine can use, and why."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

from isnet_trt.cuda.gpu import Gpu, probe_gpu
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import PORTABLE, Library
from isnet_trt.engines.onnxruntime import LIBRARY
from isnet_trt.engines.table import KINDS, library
from isnet_trt.errors import EngineUnavailable, SettingsError


@dataclass(frozen=True)
class Choice:
    """An engine kind, in a sentence why it was chosen, and whether a kind that runs anywhere is to run on the GPU."""

    kind: str
    reason: str
    on_gpu: bool = False


@dataclass(frozen=True)
class Machine:
    """What the choice depends on: the GPU (or why there is none) and the installed version of each library.

    ``no_provider`` says what ONNX Runtime lacks to run on the GPU; empty if it has its CUDA provider.
    """

    gpu: Gpu | None
    no_gpu: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    cuda_bindings: bool = True
    no_provider: str = "ONNX Runtime's CUDA provider"


def look(gpu: int = 0) -> Machine:
    """This machine with its GPU number ``gpu``; no CUDA package is imported, and without a GPU no library."""
    found, no_gpu = probe_gpu(gpu)
    # The driver layer imports cuda-bindings with either owner of memory, pycuda included. Two steps: a submodule cannot
    # be looked up without its package.
    bindings = all(importlib.util.find_spec(name) for name in ("cuda", "cuda.bindings"))
    versions = {kind: library(kind).installed_version() for kind in KINDS}
    return Machine(found, no_gpu, versions, bindings, LIBRARY.missing_provider() if found else no_gpu)


def no_cuda_provider(gpu: int = 0) -> str:
    """Why ONNX Runtime cannot run on GPU ``gpu``; empty if GPU and CUDA provider are there."""
    found, no_gpu = probe_gpu(gpu)
    return LIBRARY.missing_provider() if found else no_gpu


def choose(kind: str = "auto", machine: Machine | None = None, gpu: int = 0) -> Choice:
    """The engine to build: ``kind``, or for ``auto`` the fastest that this machine can run on its GPU ``gpu``.

    Where a GPU is there but no library that needs one can be used, ``auto`` takes ONNX Runtime's CUDA provider.

    ``machine`` defaults to the one this runs on. A library that builds ahead of time may be chosen without a GPU.

    Raises:
        SettingsError: ``kind`` is unknown.
        EngineUnavailable: the library of ``kind`` or the GPU that it builds on is missing.
    """
    if kind == "auto":
        return _automatic(machine or look(gpu))
    if kind not in KINDS:
        raise SettingsError(f"engine {kind!r} is unknown; use auto, {', '.join(KINDS)}")
    library(kind).load()
    library(kind).check_builder(*((machine.gpu, machine.no_gpu) if machine else probe_gpu(gpu)))
    return Choice(kind, "asked for")


def _automatic(machine: Machine) -> Choice:
    if machine.gpu is None:
        return Choice(PORTABLE, f"no NVIDIA GPU is usable here: {machine.no_gpu}")
    gpu = f"{machine.gpu.label} (compute capability {machine.gpu.compute_capability})"
    reasons = []
    for candidate in (library(kind) for kind in KINDS if library(kind).needs_gpu):
        reason = _unusable(candidate, machine, machine.gpu)
        if not reason:
            return Choice(candidate.kind, f"{gpu} with {candidate.kind} {machine.versions[candidate.kind]}")
        reasons.append(reason)
    if not machine.no_provider:
        return Choice(PORTABLE, f"{gpu} with ONNX Runtime's CUDA provider: {'; '.join(reasons)}", on_gpu=True)
    return Choice(PORTABLE, f"{gpu} cannot be used: {'; '.join(reasons)}; {PORTABLE} needs {machine.no_provider}")


def _unusable(candidate: Library, machine: Machine, gpu: Gpu) -> str:
    """Why a library cannot be used on this machine and GPU; empty if it can."""
    version = machine.versions.get(candidate.kind)
    if version is None:
        return f"{candidate.kind} is not installed ({candidate.install})"
    if not machine.cuda_bindings:
        return f"{candidate.kind} needs cuda-bindings, which is not installed ({candidate.install})"
    return candidate.unsupported_version(version) or candidate.unsupported(gpu)


def check_engine(info: EngineInfo, gpu: int = 0) -> None:
    """Check that the engine of a manifest can run here, on GPU ``gpu`` if on any, without importing the library.

    Raises:
        EngineUnavailable: it cannot; the message says why, and which engine can.
    """
    try:
        library(info.kind).check(info, gpu)
    except (EngineUnavailable, SettingsError) as error:
        raise EngineUnavailable(f"{error}. The same bundle opens on the CPU with engine={PORTABLE!r}") from None
