"""Engines: what runs the network. A bundle's manifest says which one it was built for."""

from __future__ import annotations

import os

from isnet_trt.bundle import ONNX, Bundle, EngineInfo
from isnet_trt.engines.base import Engine
from isnet_trt.engines.libraries import LIBRARIES
from isnet_trt.errors import EngineUnavailable, SettingsError

__all__ = ["Engine", "check_engine", "open_engine", "open_onnx"]


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


def open_engine(bundle: Bundle, kind: str | None = None, *, threads: int | None = None) -> Engine:
    """The bundle's engine, or for ``kind="onnxruntime"`` its ONNX graph on the CPU.

    ``threads`` is for the CPU (default: the physical cores that this process may use).

    Raises:
        SettingsError: ``kind`` is no engine kind.
        EngineUnavailable: that engine cannot run here or is not in the bundle; the message says what can be done.
        EngineError: it should run but cannot be loaded.
    """
    info = bundle.manifest.engine
    kind = kind or info.kind
    if kind == "onnxruntime":
        return open_onnx(bundle.path(info.file if info.kind == kind else ONNX), threads=threads)
    if kind not in LIBRARIES:
        raise SettingsError(
            f"engine {kind!r} is unknown to this isnet_trt; it knows onnxruntime, {', '.join(LIBRARIES)}"
        )
    if kind != info.kind:
        holds = "only its ONNX graph" if info.kind == "onnxruntime" else f"a {info.kind} engine and its ONNX graph"
        raise EngineUnavailable(
            f"{bundle.folder} holds {holds}, no {kind} engine; build one with "
            f"python -m isnet_trt.build --engine {kind}, or open it with engine='onnxruntime'"
        )
    check_engine(info)
    from isnet_trt.engines.tensorrt import TensorRTEngine

    return TensorRTEngine(bundle.path(info.file), info)
