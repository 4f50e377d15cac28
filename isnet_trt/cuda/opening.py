"""A bundle's engine and, where it works in GPU memory and the bundle has kernels, the pipeline around it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from isnet_trt.bundle import Bundle
from isnet_trt.cuda.device import Device
from isnet_trt.cuda.pipeline import Pipeline
from isnet_trt.cuda.plan import Model
from isnet_trt.engines import Engine, Placement, kernels_folder, on_gpu, open_engine
from isnet_trt.errors import EngineUnavailable


@dataclass(frozen=True)
class Opened:
    """An open engine; the pipeline around it, or why the stages other than the network run on the host."""

    engine: Engine
    pipeline: Pipeline | None = None
    reason: str = ""


def open_runtime(bundle: Bundle, kind: str | None, model: Model, *, threads: int | None, device: Placement) -> Opened:
    """The engine as `isnet_trt.engines.open_engine` opens it, with all stages on the GPU where that can be.

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
