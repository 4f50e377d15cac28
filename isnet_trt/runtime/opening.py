"""Open a bundle's engine and the runtime around it: on the GPU where engine, kernels and device allow it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from isnet_trt.bundle import KERNELS, ONNX, Bundle
from isnet_trt.cuda.device import Device
from isnet_trt.cuda.pipeline import Pipeline
from isnet_trt.cuda.plan import Model
from isnet_trt.engines.base import DeviceEngine, Engine
from isnet_trt.engines.library import PLACEMENTS, PORTABLE, EngineSource, Library, Placement
from isnet_trt.engines.select import check_engine
from isnet_trt.engines.table import library
from isnet_trt.errors import EngineUnavailable, SettingsError
from isnet_trt.merging.merge import Head
from isnet_trt.runtime.base import Runtime
from isnet_trt.runtime.gpu import GpuRuntime
from isnet_trt.runtime.host import HostRuntime


def open_runtime(bundle: Bundle, kind: str | None, *, threads: int | None, device: Placement) -> Runtime:
    """The engine as `open_engine` opens it, with all stages on the GPU where that can be.

    Raises:
        SettingsError, EngineUnavailable, EngineError, BundleError: the engine cannot be opened.
    """
    model = _model(bundle, kind)
    if not on_gpu(bundle, kind, device):
        return HostRuntime(open_engine(bundle, kind, threads=threads, device=device), model, threads)
    with contextlib.ExitStack() as undo:
        gpu, reason = _open_device(bundle)
        if gpu is not None:
            undo.callback(_close, gpu)
        engine = open_device_engine(bundle, kind, threads=threads, device=device, on_device=gpu is not None)
        undo.callback(engine.close)
        try:
            if gpu is None or engine.kernels is None:
                raise EngineUnavailable(reason or engine.no_kernels)
            pipeline = Pipeline(gpu, engine.kernels, engine, model, engine.stream)
        except EngineUnavailable as error:
            if gpu is not None:
                _close(gpu)
            undo.pop_all()
            return HostRuntime(engine, model, threads, str(error))
        undo.pop_all()
    return GpuRuntime(engine, pipeline, threads)


def _model(bundle: Bundle, kind: str | None) -> Model:
    """The network's output, and the batches that the engine was built for: (smallest, usual, largest) shape."""
    manifest = bundle.manifest
    head = Head(manifest.labels.count, manifest.output_stride, manifest.labels.flip_pairs)
    shapes = manifest.engine.shapes if kind in (None, manifest.engine.kind) else ()
    if not shapes:
        return Model(head, manifest.preprocess)
    return Model(head, manifest.preprocess, batch=shapes[1][0], full_batches=shapes[0][0] > 1)


def _open_device(bundle: Bundle) -> tuple[Device | None, str]:
    """The GPU for the stages around the network, or why there is none."""
    if kernels_folder(bundle) is None:
        return None, "the bundle holds no kernels; build it again with python -m isnet_trt.build"
    try:
        return Device.open(), ""
    except EngineUnavailable as error:
        return None, str(error)


def _close(gpu: Device) -> None:
    with gpu:
        gpu.close()


def on_gpu(bundle: Bundle, kind: str | None = None, device: Placement = "auto") -> bool:
    """Whether `open_engine` with these arguments opens an engine on a GPU.

    Raises:
        SettingsError: ``kind`` or ``device`` is unknown.
    """
    if device not in PLACEMENTS:
        raise SettingsError(f"device {device!r} is unknown; use {', '.join(map(repr, PLACEMENTS))}")
    return device == "cuda" or library(kind or bundle.manifest.engine.kind).needs_gpu


def kernels_folder(bundle: Bundle) -> Path | None:
    """Where the bundle's compiled kernels are; None where it has none."""
    has_kernels = any(name.startswith(f"{KERNELS}/") for name in bundle.manifest.files)
    return bundle.folder / KERNELS if has_kernels else None


def open_engine(
    bundle: Bundle, kind: str | None = None, *, threads: int | None = None, device: Placement = "auto"
) -> Engine:
    """The bundle's engine, or for ``kind="onnxruntime"`` its ONNX graph.

    ``threads`` is for the CPU (default: the physical cores that this process may use). ``device="cuda"`` runs ONNX
    Runtime on the GPU.

    Raises:
        SettingsError: ``kind`` is no engine kind, or cannot run on ``device``.
        EngineUnavailable: that engine cannot run here or is not in the bundle; the message says what can be done.
        BundleError: its kernels are damaged.
        EngineError: it should run but cannot be loaded.
    """
    library, source = _source(bundle, kind, device)
    return library.open(source, threads=threads, device=device)


def open_device_engine(
    bundle: Bundle,
    kind: str | None = None,
    *,
    threads: int | None = None,
    device: Placement = "auto",
    on_device: bool = True,
) -> DeviceEngine:
    """As `open_engine`, of an engine on a GPU (see `on_gpu`).

    With ``on_device`` ONNX Runtime works in device memory too, as TensorRT's engines always do.
    """
    library, source = _source(bundle, kind, device)
    return library.open_on_gpu(source, threads=threads, on_device=on_device)


def _source(bundle: Bundle, kind: str | None, device: Placement) -> tuple[Library, EngineSource]:
    """The library of ``kind`` and what it opens, checked before the library is imported."""
    manifest = bundle.manifest
    info = manifest.engine
    chosen = library(kind or info.kind)
    on_gpu(bundle, kind, device)
    if device == "cpu" and chosen.needs_gpu:
        raise SettingsError(f"engine {chosen.kind!r} runs on a GPU only; for device='cpu' use engine={PORTABLE!r}")
    if chosen.compiles and chosen.kind != info.kind:
        content = "only its ONNX graph" if info.file == ONNX else f"a {info.kind} engine and its ONNX graph"
        raise EngineUnavailable(
            f"{bundle.folder} holds {content}, no {chosen.kind} engine; build one with "
            f"python -m isnet_trt.build --engine {chosen.kind}, or open it with engine={PORTABLE!r}"
        )
    if chosen.kind == info.kind:
        check_engine(info)
    path = bundle.path(info.file if chosen.kind == info.kind else ONNX)
    return chosen, EngineSource(path, info, kernels_folder(bundle), manifest.labels.count, manifest.output_stride)
