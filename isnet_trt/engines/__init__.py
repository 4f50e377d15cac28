"""Engines: what runs the network. A bundle's manifest says which one it was built for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from isnet_trt.bundle import KERNELS, ONNX, Bundle, EngineInfo
from isnet_trt.engines.base import Engine
from isnet_trt.engines.libraries import LIBRARIES
from isnet_trt.errors import EngineUnavailable, SettingsError

__all__ = ["Engine", "Placement", "check_engine", "kernels_folder", "on_gpu", "open_engine", "open_onnx"]

Placement = Literal["auto", "cpu", "cuda"]
"""Where the network runs: "auto" is the GPU for TensorRT's engines and the CPU for ONNX Runtime, which takes its CUDA
provider for "cuda" only."""
PLACEMENTS: tuple[Placement, ...] = ("auto", "cpu", "cuda")


def open_onnx(path: str | os.PathLike[str], *, threads: int | None = None) -> Engine:
    """A model file under ONNX Runtime on the CPU."""
    from isnet_trt.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(path, threads)


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


def on_gpu(bundle: Bundle, kind: str | None = None, device: Placement = "auto") -> bool:
    """Whether `open_engine` with these arguments opens an engine on a GPU.

    Raises:
        SettingsError: ``device`` is unknown.
    """
    if device not in PLACEMENTS:
        raise SettingsError(f"device {device!r} is unknown; use {', '.join(map(repr, PLACEMENTS))}")
    return device == "cuda" or (kind or bundle.manifest.engine.kind) in LIBRARIES


def kernels_folder(bundle: Bundle) -> Path | None:
    """Where the bundle's compiled kernels are; None where it has none."""
    held = any(name.startswith(f"{KERNELS}/") for name in bundle.manifest.files)
    return bundle.folder / KERNELS if held else None


def open_engine(
    bundle: Bundle,
    kind: str | None = None,
    *,
    threads: int | None = None,
    device: Placement = "auto",
    on_device: bool = False,
) -> Engine:
    """The bundle's engine, or for ``kind="onnxruntime"`` its ONNX graph.

    ``threads`` is for the CPU (default: the physical cores that this process may use). ``device="cuda"`` runs ONNX
    Runtime on the GPU; with ``on_device`` it then works in device memory too, as TensorRT's engines always do.

    Raises:
        SettingsError: ``kind`` is no engine kind, or cannot run on ``device``.
        EngineUnavailable: that engine cannot run here or is not in the bundle; the message says what can be done.
        BundleError: its kernels are damaged.
        EngineError: it should run but cannot be loaded.
    """
    info = bundle.manifest.engine
    kind = kind or info.kind
    gpu = on_gpu(bundle, kind, device)
    if kind == "onnxruntime":
        path = bundle.path(info.file if info.kind == kind else ONNX)
        return _open_cuda(bundle, path, on_device, threads) if gpu else open_onnx(path, threads=threads)
    if kind not in LIBRARIES:
        raise SettingsError(
            f"engine {kind!r} is unknown to this isnet_trt; it knows onnxruntime, {', '.join(LIBRARIES)}"
        )
    if device == "cpu":
        raise SettingsError(f"engine {kind!r} runs on a GPU only; for device='cpu' use engine='onnxruntime'")
    if kind != info.kind:
        holds = "only its ONNX graph" if info.kind == "onnxruntime" else f"a {info.kind} engine and its ONNX graph"
        raise EngineUnavailable(
            f"{bundle.folder} holds {holds}, no {kind} engine; build one with "
            f"python -m isnet_trt.build --engine {kind}, or open it with engine='onnxruntime'"
        )
    check_engine(info)
    from isnet_trt.engines.tensorrt import TensorRTEngine

    return TensorRTEngine(bundle.path(info.file), info, kernels_folder(bundle))


def _open_cuda(bundle: Bundle, path: Path, on_device: bool, threads: int | None) -> Engine:
    from isnet_trt.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine

    manifest = bundle.manifest
    output = (manifest.labels.count, manifest.output_stride)
    return OnnxRuntimeCudaEngine(path, output, kernels_folder(bundle), on_device, threads)
