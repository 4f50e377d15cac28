"""A bundle's engine and, where it works in GPU memory and the bundle has kernels, the pipeline around it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isnet_trt.bundle import KERNELS, ONNX, Bundle
from isnet_trt.cuda.device import Device
from isnet_trt.cuda.pipeline import Pipeline
from isnet_trt.cuda.plan import Model
from isnet_trt.engines.base import Engine
from isnet_trt.engines.libraries import LIBRARIES
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.engines.select import PLACEMENTS, Placement, check_engine
from isnet_trt.errors import EngineUnavailable, SettingsError


@dataclass(frozen=True)
class Opened:
    """An open engine; the pipeline around it, or why the stages other than the network run on the host."""

    engine: Engine
    pipeline: Pipeline | None = None
    reason: str = ""


def open_runtime(bundle: Bundle, kind: str | None, model: Model, *, threads: int | None, device: Placement) -> Opened:
    """The engine as `open_engine` opens it, with all stages on the GPU where that can be.

    Raises:
        SettingsError, EngineUnavailable, EngineError, BundleError: the engine cannot be opened.
    """
    if not on_gpu(bundle, kind, device):
        return Opened(open_engine(bundle, kind, threads=threads, device=device))
    with contextlib.ExitStack() as undo:
        gpu, reason = _open_device(bundle)
        if gpu is not None:
            undo.callback(_close, gpu)
        on_device = gpu is not None
        engine: Any = undo.enter_context(open_engine(bundle, kind, threads=threads, device=device, on_device=on_device))
        pipeline, reason = _pipeline(gpu, engine, model, reason)
        if pipeline is None and gpu is not None:
            _close(gpu)
        undo.pop_all()
    return Opened(engine, pipeline, reason)


def _open_device(bundle: Bundle) -> tuple[Device | None, str]:
    """The GPU for the stages other than the network, or why there is none."""
    if kernels_folder(bundle) is None:
        return None, "the bundle holds no kernels; build it again with python -m isnet_trt.build"
    try:
        return Device.open(), ""
    except EngineUnavailable as error:
        return None, str(error)


def _pipeline(gpu: Device | None, engine: Any, model: Model, reason: str) -> tuple[Pipeline | None, str]:
    if gpu is None:
        return None, reason
    if engine.kernels is None:
        return None, engine.no_kernels
    try:
        return Pipeline(gpu, engine.kernels, engine, model, engine.stream), ""
    except EngineUnavailable as error:
        return None, str(error)


def _close(gpu: Device) -> None:
    with gpu:
        gpu.close()


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
